//! A node as VPC CNI leaves it, and what is around it.
//!
//! ```text
//!  a 10.0.0.101 ─ eni1 ┐        ┌ eth0 10.0.0.10 ┐
//!  c 10.0.0.103 ─ eni3 ┤  node  │                ├ br0 10.0.0.1: the VPC's router and source check
//!  b 10.0.0.102 ─ eni2 ┘        └ eth1 10.0.0.20 ┘   10.0.2.9 in the VPC, 198.51.100.7 beyond it
//! ```
//!
//! Pod `b` has its address from the second ENI, the others from the first.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
pub(crate) use sluice_contract::cni::chain;
use sluice_contract::id::IfName;
use sluice_hostnet::netlink::{Netlink, VethSpec};
use sluice_hostnet::netns::{Namespace, NamespaceThread, ThreadSpec};
use sluice_policy_bpf::filters::Filters;
use sluice_policy_bpf::gate::{Gate, GateConfig, Interface};
use sluice_policy_bpf::layout::DropReason;
use sluice_policy_core::cluster::{Event, PodKey};
use sluice_policy_core::compile::engine::Engine;
use sluice_policy_core::settings::Settings;
use sluice_policy_core::{manifest, parse};
use sluice_proxy::connect::Connect as _;
use sluice_proxy::flow::{Direction, Flow};
use sluice_proxy::net::{Acceptor, Listeners, PlaceConfig, Places, Upstreams, datagram, place, splice};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;

/// How long an answer may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);
/// So long one waits for an answer that does not come.
pub(crate) const SILENCE: Duration = Duration::from_millis(400);
pub(crate) const ROOT: &str = "/mnt/bpf/sluice/1";
const NETNS: &str = "/mnt/run/netns";
/// Workers of a direction.
const WORKERS: usize = 2;

/// In the VPC, and beyond it.
pub(crate) const IN_VPC: &str = "10.0.2.9";
pub(crate) const SERVICE: &str = "10.96.0.1";

/// Whether this machine lets us make namespaces. Where tests must run (`CI` is set), that it does not is a failure.
fn may_run() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "the test cannot run: it needs root");
    let _nobody = writeln!(std::io::stderr(), "skipped: it needs root");
    false
}

/// Runs a test on a node of its own, which is gone when it returns.
pub(crate) fn on_a_node<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F + Send + 'static) {
    if !may_run() {
        return;
    }
    // One at a time: a process that another test starts has, for a moment, all open sockets, and they close with it.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let node = NamespaceThread::spawn(ThreadSpec::new_node("node", "node")).unwrap();
    node.run_blocking(|| async {
        mount(Some("tmpfs"), "/mnt", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        std::fs::create_dir("/mnt/bpf").unwrap();
        mount(Some("bpf"), "/mnt/bpf", Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        test().await;
    })
    .unwrap();
}

pub(crate) fn sh(namespace: Option<&Namespace>, script: &str) -> String {
    let run = || Command::new("sh").args(["-ec", script]).output().unwrap();
    let output = match namespace {
        Some(namespace) => namespace.run(run).unwrap(),
        None => run(),
    };
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Somebody with a namespace.
#[derive(Clone)]
pub(crate) struct Party {
    pub(crate) namespace: Namespace,
    thread: Arc<NamespaceThread>,
}

impl Party {
    pub(crate) fn of(namespace: Namespace) -> Self {
        let thread = NamespaceThread::spawn(ThreadSpec::in_net("party", namespace.clone())).unwrap();
        Self { namespace, thread: Arc::new(thread) }
    }

    /// Runs a future there.
    pub(crate) async fn run<F, Fut, T>(&self, work: F) -> T
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        self.thread.run(work).await.unwrap()
    }

    /// A server that says who has come, and then everything that it hears until the client has finished.
    pub(crate) async fn serve(&self, address: &str) {
        let address: SocketAddr = address.parse().unwrap();
        self.run(move || async move {
            let listener = TcpListener::bind(address).await.unwrap();
            tokio::task::spawn_local(async move {
                loop {
                    let (mut stream, client) = listener.accept().await.unwrap();
                    tokio::task::spawn_local(async move {
                        let hello = format!("{client}\n");
                        if stream.write_all(hello.as_bytes()).await.is_ok() {
                            let (mut from, mut to) = stream.split();
                            drop(tokio::io::copy(&mut from, &mut to).await);
                            drop(to.shutdown().await);
                        }
                    });
                }
            });
        })
        .await;
    }

    /// Connects, says something and hears it again: the address that the server has seen.
    pub(crate) async fn ask(&self, to: &str) -> std::io::Result<SocketAddr> {
        self.ask_within(to, DEADLINE).await.map(|(seen, _)| seen)
    }

    /// As [`Self::ask`]; the client's own address too.
    pub(crate) async fn ask_within(&self, to: &str, wait: Duration) -> std::io::Result<(SocketAddr, SocketAddr)> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(move || async move {
            let asked = async {
                let mut stream = TcpStream::connect(to).await?;
                let own = stream.local_addr()?;
                let seen = hello(&mut stream).await?;
                echo(&mut stream).await?;
                Ok((seen, own))
            };
            tokio::time::timeout(wait, asked).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        })
        .await
    }
}

/// The line with which a server of [`Party::serve`] begins.
pub(crate) async fn hello(stream: &mut TcpStream) -> std::io::Result<SocketAddr> {
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await? {
            b'\n' => break,
            byte => line.push(byte),
        }
    }
    Ok(String::from_utf8(line).unwrap().parse().unwrap())
}

pub(crate) async fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"hello").await?;
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).await?;
    assert_eq!(&heard, b"hello");
    Ok(())
}

/// A pod: its namespace, joined to the node as VPC CNI does it.
pub(crate) struct Pod {
    pub(crate) party: Party,
    pub(crate) index: u32,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
}

/// What a relay in the proxy's place has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) flow: Flow,
    pub(crate) backend: SocketAddr,
}

pub(crate) struct World {
    pub(crate) gate: Gate,
    engine: Engine,
    pub(crate) filters: Filters,
    pub(crate) pods: BTreeMap<&'static str, Pod>,
    /// The VPC, and everything in it.
    pub(crate) vpc: Party,
}

const NODE_RULES: &str = "table ip nat {
 chain post { type nat hook postrouting priority 100
  meta mark & 0x4000 == 0x4000 masquerade
  oifname \"eth*\" ip saddr 10.0.0.0/24 ip daddr != 10.0.0.0/16 snat to 10.0.0.10 fully-random
 }
 chain pre { type nat hook prerouting priority -100
  ip daddr 10.96.0.1 tcp dport 80 dnat to 10.0.0.103:8080
  ip daddr 10.96.0.1 tcp dport 81 dnat to 10.0.2.9:8080
  ip daddr 10.96.0.1 tcp dport 82 meta mark set meta mark or 0x4000 dnat to 10.0.0.101:8080
  ip daddr 10.0.0.10 tcp dport 30080 dnat to 10.0.0.103:8080
  ip daddr 10.0.0.10 tcp dport 30082 dnat to 10.0.0.102:8080
  ip daddr 10.0.0.10 tcp dport 30081 meta mark set meta mark or 0x4000 dnat to 10.0.0.103:8080
 }
}
table ip mangle {
 chain pre { type filter hook prerouting priority -150
  iifname \"eth0\" fib daddr type local ct mark set ct mark or 0x80
  iifname \"eni*\" ct mark & 0x80 == 0x80 meta mark set meta mark or 0x80
 }
}
table inet filter {
 chain forward { type filter hook forward priority 0
  ct state invalid drop
 }
}";

/// What AWS does: an ENI may send from its own addresses only.
const VPC_RULES: &str = "table bridge check {
 counter primary { }
 counter secondary { }
 counter spoofed { }
 chain pre { type filter hook prerouting priority 0
  iifname \"n0\" ip saddr { 10.0.0.10, 10.0.0.101, 10.0.0.103 } counter name primary accept
  iifname \"n1\" ip saddr { 10.0.0.20, 10.0.0.102 } counter name secondary accept
  iifname \"n0\" ip6 saddr { 2001:db8::10, 2001:db8::101, 2001:db8::103 } counter name primary accept
  iifname \"n1\" ip6 saddr 2001:db8::102 counter name secondary accept
  ether type ip counter name spoofed drop
  ip6 saddr 2001:db8::/32 counter name spoofed drop
 }
}";

impl World {
    /// A node with three pods, and a gate that lets everything pass until it is told otherwise.
    pub(crate) async fn new() -> Self {
        Self::build("").await
    }

    /// The same, where every endpoint is a dry run.
    pub(crate) async fn with_audit() -> Self {
        Self::build(", annotations: {sluice.dev/audit: 'true'}").await
    }

    async fn build(metadata: &str) -> Self {
        let vpc = Namespace::new_unbound().unwrap();
        let netlink = Netlink::open().unwrap();
        sh(
            None,
            "ip link set lo up
             sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0 \
               net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=1 net.ipv4.conf.default.send_redirects=0 \
               net.ipv4.conf.all.send_redirects=0",
        );
        sh(
            Some(&vpc),
            "ip link set lo up
             sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0 \
               net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv4.conf.all.send_redirects=0 \
               net.ipv4.conf.default.send_redirects=0
             ip link add br0 mtu 9001 type bridge; ip link set br0 up
             ip addr add 10.0.0.1/24 dev br0; ip addr add 2001:db8::1/64 dev br0 nodad
             ip addr add 10.0.2.9/32 dev lo; ip addr add 198.51.100.7/32 dev lo; ip addr add 2001:db8:0:2::9/128 dev lo nodad",
        );
        let mut macs = Vec::new();
        for (name, peer) in [("eth0", "n0"), ("eth1", "n1")] {
            let spec = VethSpec {
                name: &IfName::new(name).unwrap(),
                mac: None,
                up: true,
                peer_name: &IfName::new(peer).unwrap(),
                peer_mac: None,
                peer_namespace: Some(&vpc),
                mtu: 9001,
            };
            macs.push(netlink.create_veth(&spec).await.unwrap().mac.unwrap());
            sh(Some(&vpc), &format!("ip link set {peer} up master br0"));
        }
        sh(
            None,
            "ip addr add 10.0.0.10/24 dev eth0; ip addr add 10.0.0.20/32 dev eth1
             ip addr add 2001:db8::10/64 dev eth0 nodad
             ip route add default via 10.0.0.1 dev eth0; ip -6 route add default via 2001:db8::1 dev eth0
             ip route add 10.0.0.1 dev eth1 scope link table 2; ip route add default via 10.0.0.1 dev eth1 table 2
             ip -6 route add 2001:db8::1 dev eth1 table 2; ip -6 route add default via 2001:db8::1 dev eth1 table 2
             ip rule add fwmark 0x80/0x80 priority 1024 lookup main",
        );
        // Both ENIs are on one wire here, and AWS asks neither for the other's address. rp_filter: as VPC CNI sets it for node
        // ports.
        sh(None, "sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.eth0.rp_filter=2");
        sh(None, &format!("nft -f - <<'E'\n{NODE_RULES}\nE"));
        sh(Some(&vpc), &format!("nft -f - <<'E'\n{VPC_RULES}\nE"));
        let (gate, _) = open_gate();
        let mut pods = BTreeMap::new();
        for (name, number, eni) in [("a", 1_u8, 0), ("b", 2, 1), ("c", 3, 0)] {
            pods.insert(name, Self::pod(&netlink, &vpc, number, eni, &macs[eni].to_string()).await);
        }
        let filters = Filters::new(gate.programs(), netlink.clone());
        let engine = Engine::new(Settings { node: Some("n1".into()), ..Settings::default() });
        let mut world = Self { gate, engine, filters, pods, vpc: Party::of(vpc) };
        world.gate_all().await;
        for (name, pod) in &world.pods {
            let yaml = format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: x, labels: {{app: {name}}}{metadata}}}, spec: \
                 {{nodeName: n1, containers: [{{name: c}}]}}, status: {{phase: Running, podIPs: [{{ip: {}}}, {{ip: \
                 '{}'}}]}}}}",
                pod.v4, pod.v6
            );
            upsert(&mut world.engine, &yaml);
        }
        world.commit();
        world
    }

    async fn pod(netlink: &Netlink, vpc: &Namespace, number: u8, eni: usize, mac: &str) -> Pod {
        let namespace = Namespace::new_unbound().unwrap();
        let host = IfName::new(format!("eni{number}")).unwrap();
        let spec = VethSpec {
            name: &host,
            mac: None,
            up: true,
            peer_name: &IfName::new("eth0").unwrap(),
            peer_mac: None,
            peer_namespace: Some(&namespace),
            mtu: 9001,
        };
        let link = netlink.create_veth(&spec).await.unwrap();
        let host_mac = link.mac.unwrap();
        let (v4, v6) = (format!("10.0.0.10{number}"), format!("2001:db8::10{number}"));
        sh(
            Some(&namespace),
            &format!(
                "sysctl -qw net.ipv6.conf.eth0.accept_dad=0
                 ip link set lo up; ip link set eth0 up
                 ip addr add {v4}/32 dev eth0; ip addr add {v6}/128 dev eth0 nodad
                 ip route add 169.254.1.1 dev eth0; ip route add default via 169.254.1.1 dev eth0
                 ip neigh add 169.254.1.1 dev eth0 lladdr {host_mac} nud permanent
                 ip -6 neigh add fe80::1 dev eth0 lladdr {host_mac} nud permanent
                 ip -6 route add default via fe80::1 dev eth0"
            ),
        );
        sh(
            None,
            &format!(
                "ip route add {v4} dev {host}; ip -6 route add {v6} dev {host}
                 ip rule add to {v4} priority 512 lookup main; ip -6 rule add to {v6} priority 512 lookup main"
            ),
        );
        if eni == 1 {
            sh(
                None,
                &format!(
                    "ip rule add from {v4} to 10.0.0.0/16 priority 1536 lookup 2
                     ip -6 rule add from {v6} priority 1536 lookup 2"
                ),
            );
        }
        sh(
            Some(vpc),
            &format!(
                "ip neigh add {v4} lladdr {mac} dev br0 nud permanent; ip -6 neigh add {v6} lladdr {mac} dev br0 nud permanent"
            ),
        );
        let party = Party::of(namespace);
        Pod { party, index: link.index, v4: v4.parse().unwrap(), v6: v6.parse().unwrap() }
    }

    async fn gate_all(&mut self) {
        for (name, pod) in &self.pods {
            let interface = Interface {
                index: pod.index,
                name: IfName::new("eni0").unwrap(),
                addresses: vec![pod.v4, pod.v6],
                first: true,
                any_source: false,
                bridge: None,
            };
            self.gate.bind(&key(name), interface).unwrap();
            self.filters.attach(pod.index).await.unwrap();
        }
    }

    pub(crate) fn party(&self, name: &str) -> &Party {
        &self.pods[name].party
    }

    /// Tells the compiler of objects, and the kernel of what they mean.
    pub(crate) fn tell(&mut self, yaml: &str) {
        for document in yaml.split("---\n") {
            upsert(&mut self.engine, document);
        }
        self.commit();
    }

    /// Tells the compiler what a name resolved to, and the kernel of what that means.
    pub(crate) fn resolved(&mut self, name: &str, addresses: &[IpAddr]) {
        let name = sluice_policy_core::l7::dns::Name::new(name).unwrap();
        self.engine.apply(Event::Resolved { name, addresses: addresses.to_vec(), until: None });
        self.commit();
    }

    /// What addresses have become by their names.
    pub(crate) fn name_classes(&self) -> Vec<sluice_proxy::names::Class> {
        let classes = self.engine.name_classes();
        let of = |class: sluice_policy_core::compile::engine::NameClass| sluice_proxy::names::Class {
            base: class.base.0,
            patterns: class.patterns,
            identity: class.identity.0,
        };
        classes.into_iter().map(of).collect()
    }

    fn commit(&mut self) {
        for operation in self.engine.commit().operations {
            self.gate.apply(&operation).unwrap();
        }
    }

    pub(crate) fn lock_down(&mut self, name: &str) {
        self.gate.lock_down(&key(name)).unwrap();
    }

    pub(crate) fn drops(&self, reason: DropReason) -> u64 {
        self.gate.counters().unwrap().drops.get(&reason).map_or(0, |counter| counter.packets)
    }

    /// Packets that the VPC has taken from an ENI: `primary`, `secondary`; or not taken: `spoofed`.
    pub(crate) fn counted(&self, counter: &str) -> u64 {
        let text = sh(Some(&self.vpc.namespace), &format!("nft list counter bridge check {counter}"));
        let words: Vec<&str> = text.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "packets").unwrap();
        words[at + 1].parse().unwrap()
    }
}

fn upsert(engine: &mut Engine, yaml: &str) {
    for document in manifest::documents(yaml).unwrap() {
        let parsed = parse::object(&document);
        assert_eq!(parsed.issues, [], "{document}");
        engine.apply(Event::Upsert(parsed.object.unwrap()));
    }
}

pub(crate) fn open_gate() -> (Gate, sluice_policy_bpf::gate::Found) {
    let limits = BTreeMap::from([("connections", 65536), ("ipcache", 4096), ("peers", 4096), ("rows", 4096)]);
    let config = GateConfig { root: ROOT.into(), limits };
    Gate::open(&config).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

fn key(name: &str) -> PodKey {
    PodKey { namespace: "x".into(), name: name.into() }
}

/// A policy that sends what goes to port 80 and 8080 (`egress`), or comes to port 8080 (`ingress`), by way of the proxy, and
/// forbids everything else but port 22.
pub(crate) fn policy(name: &str, pod: &str, directions: &[Direction]) -> String {
    let mut spec = format!("endpointSelector: {{matchLabels: {{app: {pod}}}}}");
    let ports = |list: &str| {
        format!(
            "[{{ports: [{list}], rules: {{http: [{{}}]}}}}, {{ports: [{{port: '22', protocol: TCP}}]}}, \
             {{ports: [{{port: '53', protocol: UDP}}], rules: {{dns: [{{matchPattern: '*'}}]}}}}]"
        )
    };
    for direction in directions {
        let (which, peer, list) = match direction {
            Direction::Egress => (
                "egress",
                "toEntities",
                "{port: '80', protocol: TCP}, {port: '81', protocol: TCP}, {port: '82', protocol: TCP}, {port: '8080', \
                 protocol: TCP}",
            ),
            Direction::Ingress => ("ingress", "fromEntities", "{port: '8080', protocol: TCP}"),
        };
        let ports = match direction {
            Direction::Egress => ports(list),
            Direction::Ingress => {
                format!("[{{ports: [{list}], rules: {{http: [{{}}]}}}}, {{ports: [{{port: '22', protocol: TCP}}]}}]")
            }
        };
        spec += &format!(", {which}: [{{{peer}: [all], toPorts: {ports}}}]");
    }
    format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: {name}, namespace: x}}, spec: {{{spec}}}}}\n"
    )
}

/// A Service, so that the compiler knows what the node's rules translate.
pub(crate) fn service(name: &str, port: u16, backend: &str, target: u16) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: x}}, spec: {{clusterIP: {SERVICE}, clusterIPs: \
         [{SERVICE}], ports: [{{port: {port}, targetPort: {target}, name: a}}]}}}}\n---\n{{apiVersion: \
         discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}-1, namespace: x, labels: \
         {{kubernetes.io/service-name: {name}}}}}, addressType: IPv4, ports: [{{name: a, port: {target}, protocol: TCP}}], \
         endpoints: [{{addresses: [{backend}], conditions: {{ready: true}}}}]}}\n"
    )
}

/// The proxy's process, with a relay in the place of the engines.
pub(crate) struct Proxy {
    pub(crate) places: Places,
    threads: Vec<NamespaceThread>,
    seen: mpsc::Receiver<Seen>,
}

pub(crate) fn places() -> PlaceConfig {
    PlaceConfig { directory: NETNS.into(), gate: ROOT.into(), mtu: 9001 }
}

impl Proxy {
    pub(crate) async fn start() -> Self {
        let mut places = Places::ensure(&places()).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        let host = Namespace::current().unwrap();
        let (tell, seen) = mpsc::channel(4096);
        let mut threads = Vec::new();
        for direction in [Direction::Ingress, Direction::Egress] {
            let listeners = Listeners::open(places.of(direction), WORKERS).unwrap();
            let upstreams = Upstreams::of_workers(direction, &host, WORKERS).unwrap();
            let mut first = true;
            for (listeners, upstreams) in listeners.into_iter().zip(upstreams) {
                let thread = places.of(direction).thread("worker").unwrap();
                let tell = tell.clone();
                if std::mem::take(&mut first) {
                    places.take_over(&listeners).unwrap_or_else(|error| panic!("{}", chain(&error)));
                }
                thread.run(move || async move { work(listeners, upstreams, tell) }).await.unwrap();
                threads.push(thread);
            }
        }
        Self { places, threads, seen }
    }

    /// What has been relayed since the last call, in order; waits until there is something.
    pub(crate) async fn next(&mut self) -> Seen {
        tokio::time::timeout(DEADLINE, self.seen.recv()).await.expect("nothing was relayed").unwrap()
    }

    /// Whether nothing is waiting to be looked at.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.seen.try_recv().is_err()
    }

    /// As if the process were killed: every socket is gone, the namespaces stay.
    pub(crate) fn kill(self) {
        drop(self.threads);
    }
}

fn work(listeners: Listeners, upstreams: Arc<Upstreams>, tell: mpsc::Sender<Seen>) {
    let Listeners { direction, tcp, udp, udp_v6 } = listeners;
    let acceptor = Acceptor::new(direction, tcp).unwrap();
    tokio::task::spawn_local(async move {
        loop {
            let (client, flow) = acceptor.accept().await.unwrap();
            let (upstreams, tell) = (Arc::clone(&upstreams), tell.clone());
            tokio::task::spawn_local(async move {
                match upstreams.connect(&flow).await {
                    Ok(upstream) => {
                        // Nobody looks where thousands are relayed.
                        drop(tell.try_send(Seen { flow, backend: upstream.backend }).map_err(Box::new));
                        splice::relay(client, upstream.stream, Duration::ZERO).await;
                    }
                    Err(error) => {
                        let _nobody = writeln!(std::io::stderr(), "{flow}: {error}");
                        splice::reset(client);
                    }
                }
            });
        }
    });
    for socket in std::iter::once(udp).chain(udp_v6) {
        tokio::task::spawn_local(crate::names::forward(socket));
    }
}

/// A UDP socket in the client's name, and one in the server's.
pub(crate) fn datagrams(client: SocketAddr, server: SocketAddr) -> (tokio::net::UdpSocket, std::net::UdpSocket) {
    let upstream = tokio::net::UdpSocket::from_std(datagram::upstream(client, server).unwrap()).unwrap();
    (upstream, datagram::reply(server).unwrap())
}

/// Takes the proxy's namespaces away.
pub(crate) async fn remove_places() {
    place::remove(&places()).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(!Path::new(NETNS).join("egress").exists());
}

/// A socket at a port of its own choice, which may be used again at once.
pub(crate) fn bound(own: IpAddr, port: u16) -> TcpSocket {
    let socket = if own.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(SocketAddr::new(own, port)).unwrap();
    socket
}
