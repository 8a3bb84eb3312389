//! One machine with two pods, and what stands between them.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_contract::id::IfName;
use sluice_hostnet::netns::Namespace;
use sluice_policy_core::cluster::{Event, PodKey};
use sluice_policy_core::compile::engine::Engine;
use sluice_policy_core::settings::Settings;
use sluice_policyd::datapath::gate::{Behaviour, GateDatapath};
use sluice_policyd::datapath::{Datapath as _, Interface};
use sluice_vpcsim::node::Node;

use super::super::BenchError;
use super::super::policy::town::read;
use super::traffic::{self, Open, Turn};

/// The node's name, for policies.
const NODE: &str = "node";
/// The pods' namespace.
const NAMESPACE: &str = "bench";
/// Addresses of one policy: as many as fit well into an object.
const OF_A_POLICY: u32 = 1_000;
/// What a pod's packets go to first.
const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::1";
/// How long it may take until a gate stands by links, and how often policyd sees to it.
const SETTLED: Duration = Duration::from_secs(60);
const PROMOTE_EVERY: Duration = Duration::from_millis(500);
/// As policyd's defaults have it.
const BEHAVIOUR: Behaviour = Behaviour { keep_established: false, tell_events: true };
/// Pods that nobody has, which policies allow.
const OTHERS: u32 = 0x0b00_0000;

/// What stands between the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing.
    Open,
    /// The gate, at both pods, by links, as it stands once a pod has settled, with a policy that allows so many addresses
    /// beside the pods'.
    Gate(u32),
    /// The same by filters, as it stands in a pod's first seconds.
    Filters(u32),
    /// A chain of nftables with so many rules, the last of which allows what the pods open.
    Nftables(u32),
    /// The same in iptables.
    Iptables(u32),
}

/// A pod.
#[derive(Debug)]
pub(super) struct Pod {
    name: &'static str,
    namespace: Namespace,
    /// Its IPv4 address, and its IPv6 address.
    addresses: [IpAddr; 2],
    /// The index of its interface on the host.
    pub(super) index: u32,
}

impl Pod {
    pub(super) const fn v4(&self) -> IpAddr {
        self.addresses[0]
    }

    pub(super) const fn v6(&self) -> IpAddr {
        self.addresses[1]
    }
}

/// The machine.
#[derive(Debug)]
pub(super) struct Arm {
    /// The pod that connects.
    pub(super) client: Pod,
    /// The pod that listens.
    pub(super) server: Pod,
    /// The machine. It goes last.
    pub(super) node: Arc<Node>,
}

impl Arm {
    /// Sets it up.
    pub(super) async fn up(number: usize, kind: Kind) -> Result<Self, BenchError> {
        let tag = format!("sluice-packet-{}-{number}", std::process::id());
        let node = Arc::new(Node::boot(&format!("packet-{number}"), &std::env::temp_dir().join(&tag), &tag).await?);
        let set_up = node.run(|| {
            for (file, value) in [
                ("ipv4/conf/all/forwarding", "1"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/default/rp_filter", "0"),
            ] {
                std::fs::write(format!("/proc/sys/net/{file}"), value)
                    .map_err(BenchError::setup(format!("the sysctl {file} cannot be set")))?;
            }
            let pod = |name, last: u8| {
                Pod::make(
                    name,
                    [IpAddr::from([10, 0, 0, last]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)])],
                )
            };
            Ok::<_, BenchError>((pod("client", 1)?, pod("server", 2)?))
        });
        let (client, server) = set_up.await??;
        let arm = Self { client, server, node };
        let both = [arm.client.v4(), arm.server.v4()].map(|address| address.to_string());
        match kind {
            Kind::Open => {}
            Kind::Gate(others) => arm.gate(others, true).await?,
            Kind::Filters(others) => arm.gate(others, false).await?,
            Kind::Nftables(rules) => {
                arm.node.run(move || run("nft", &["-f", "-"], &nftables(rules, &both))).await??;
            }
            Kind::Iptables(rules) => {
                arm.node.run(move || run("iptables-legacy-restore", &[], &iptables(rules, &both))).await??;
            }
        }
        Ok(arm)
    }

    /// The gates, as policyd puts them there.
    async fn gate(&self, others: u32, settled: bool) -> Result<(), BenchError> {
        let pods = [&self.client, &self.server];
        let mut engine = Engine::new(Settings { node: Some(NODE.into()), cilium_cidrs_match_managed: false });
        let mut allowed: Vec<String> = pods
            .iter()
            .flat_map(|pod| pod.addresses)
            .map(|ip| format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 }))
            .collect();
        allowed.extend((0..others).map(|other| format!("{}/32", std::net::Ipv4Addr::from(OTHERS + other))));
        let policies = allowed.chunks(usize::try_from(OF_A_POLICY).unwrap_or(1)).enumerate();
        let mut values = vec![json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } })];
        values.extend(pods.iter().map(|pod| pod.object()));
        values.extend(policies.map(|(number, cidrs)| policy(number, cidrs)));
        for value in &values {
            engine.apply(Event::Upsert(read(value)?));
        }
        let operations = engine.commit().operations;
        let interfaces = pods.map(|pod| (pod.key(), pod.interface()));
        let put = self.node.run_async(move || async move {
            let (mut datapath, _) =
                GateDatapath::open(BEHAVIOUR).map_err(BenchError::setup("the gates cannot be opened"))?;
            for operation in &operations {
                datapath.apply(operation).map_err(BenchError::setup("the maps cannot be written"))?;
            }
            let mut unlinked = 0_usize;
            for (key, interface) in interfaces {
                let interface = interface?;
                let bound = datapath.bind(&key, &interface).await;
                bound.map_err(BenchError::setup("an interface cannot be bound"))?;
                datapath.attach(&interface).await.map_err(BenchError::setup("a gate cannot be attached"))?;
                unlinked += usize::from(settled);
            }
            let begun = Instant::now();
            while unlinked > 0 {
                match datapath.promote().await {
                    Some(done) => {
                        done.map_err(BenchError::setup("a gate cannot be given links"))?;
                        unlinked -= 1;
                    }
                    None if begun.elapsed() > SETTLED => {
                        return Err(BenchError::setup("a gate was not given links")("the kernel may have none"));
                    }
                    None => tokio::time::sleep(PROMOTE_EVERY).await,
                }
            }
            Ok(())
        });
        put.await?
    }

    /// A connection of the client with one of the server's addresses.
    pub(super) fn open(&self, server: IpAddr) -> Result<Open, BenchError> {
        let (there, here) = (&self.server.namespace, &self.client.namespace);
        let listener = entered(there, || traffic::listen(server))?;
        entered(here, || traffic::connect(&listener))
    }

    /// Measures once.
    pub(super) fn turn(&self) -> Result<Turn, BenchError> {
        let server = self.server.v4();
        let listener = entered(&self.server.namespace, || traffic::listen(server))?;
        entered(&self.client.namespace, || traffic::turn(&listener))
    }
}

/// Runs `work` in a namespace.
fn entered<T: Send>(namespace: &Namespace, work: impl FnOnce() -> std::io::Result<T> + Send) -> Result<T, BenchError> {
    let done = namespace.run(work).map_err(BenchError::setup("a pod's namespace cannot be entered"))?;
    done.map_err(BenchError::setup("the pods cannot speak with each other"))
}

impl Pod {
    /// On the machine's thread.
    fn make(name: &'static str, addresses: [IpAddr; 2]) -> Result<Self, BenchError> {
        let namespace = Namespace::new_unbound().map_err(BenchError::setup("a pod's namespace cannot be made"))?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd());
        let ip = |arguments: &str| run("ip", &arguments.split_whitespace().collect::<Vec<_>>(), "");
        ip(&format!("link add {name} type veth peer name eth0 netns {path}"))?;
        ip(&format!("-4 address add {GATEWAY_V4}/32 dev {name}"))?;
        ip(&format!("-6 address add {GATEWAY_V6}/64 dev {name} nodad"))?;
        ip(&format!("link set {name} up"))?;
        let inside = namespace.run(|| {
            ip("link set lo up")?;
            for address in addresses {
                let (family, bits, nodad) = if address.is_ipv4() { ("-4", 32, "") } else { ("-6", 128, "nodad") };
                ip(&format!("{family} address add {address}/{bits} dev eth0 {nodad}"))?;
            }
            ip("link set eth0 up")?;
            ip(&format!("-4 route add default via {GATEWAY_V4} dev eth0 onlink"))?;
            ip(&format!("-6 route add default via {GATEWAY_V6} dev eth0"))
        });
        inside.map_err(BenchError::setup("a pod's namespace cannot be entered"))??;
        for address in addresses {
            ip(&format!("{} route add {address} dev {name}", if address.is_ipv4() { "-4" } else { "-6" }))?;
        }
        let index = nix::net::if_::if_nametoindex(name).map_err(BenchError::setup("a pod's interface is not there"))?;
        Ok(Self { name, namespace, addresses, index })
    }

    fn key(&self) -> PodKey {
        PodKey { namespace: NAMESPACE.into(), name: self.name.into() }
    }

    fn interface(&self) -> Result<Interface, BenchError> {
        let name = IfName::new(self.name).map_err(BenchError::setup("a name is none"))?;
        Ok(Interface { index: self.index, name, first: true, addresses: self.addresses.to_vec() })
    }

    fn object(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": NAMESPACE, "name": self.name, "uid": self.name, "labels": { "app": self.name } },
            "spec": { "nodeName": NODE, "containers": [{ "name": "main", "image": "main" }] },
            "status": {
                "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }],
                "podIPs": self.addresses.map(|ip| json!({ "ip": ip })),
            },
        })
    }
}

fn policy(number: usize, cidrs: &[String]) -> Value {
    let peers: Vec<Value> = cidrs.iter().map(|cidr| json!({ "ipBlock": { "cidr": cidr } })).collect();
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": NAMESPACE, "name": format!("peers-{number}") },
        "spec": {
            "podSelector": {}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{ "from": peers }], "egress": [{ "to": peers }],
        },
    })
}

/// One rule an address, as those write them who make a rule of each peer: what is known passes first.
fn nftables(rules: u32, pods: &[String; 2]) -> String {
    let mut text = String::from(
        "table inet peers {\n chain forward {\n  type filter hook forward priority 0; policy drop;\n  ct state established,related accept\n",
    );
    for other in 0..rules.saturating_sub(2) {
        text.push_str(&format!("  ip saddr {} accept\n", std::net::Ipv4Addr::from(OTHERS + other)));
    }
    for pod in pods {
        text.push_str(&format!("  ip saddr {pod} accept\n"));
    }
    text.push_str(" }\n}\n");
    text
}

fn iptables(rules: u32, pods: &[String; 2]) -> String {
    let mut text = String::from(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n",
    );
    for other in 0..rules.saturating_sub(2) {
        text.push_str(&format!("-A FORWARD -s {}/32 -j ACCEPT\n", std::net::Ipv4Addr::from(OTHERS + other)));
    }
    for pod in pods {
        text.push_str(&format!("-A FORWARD -s {pod}/32 -j ACCEPT\n"));
    }
    text.push_str("COMMIT\n");
    text
}

/// Runs a program in the thread's namespace.
fn run(program: &str, arguments: &[&str], input: &str) -> Result<(), BenchError> {
    let what = format!("{program} {}", arguments.join(" "));
    let failed = BenchError::setup::<std::io::Error>;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed(what.clone()))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(failed(what.clone()))?;
    }
    let output = child.wait_with_output().map_err(failed(what.clone()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(BenchError::setup(what)(String::from_utf8_lossy(&output.stderr).into_owned()))
}
