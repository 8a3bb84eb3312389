//! Nodes of a world with the product installed, for tests.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use serde_json::Value;
use sluice_contract::id::EniId;
use sluice_vpcsim::deployment::{Binaries, Deployment, DeploymentError, Pod};
use sluice_vpcsim::model::IMDS;
use sluice_vpcsim::model::api::AuthorizeSecurityGroupIngress;
use sluice_vpcsim::model::state::{Eni, Permission, State, Vpc};
use sluice_vpcsim::node::NodeError;
use sluice_vpcsim::probe::{self, ECHO_PORT};
use sluice_vpcsim::scene::{Scene, SceneError};
use sluice_vpcsim::world::{World, WorldError};
use tokio::process::Command;

/// The host on the Internet of [`scene`].
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// The CIDR of the VPC that is peered in [`scene_with_peer`].
pub const PEERED: &str = "10.9.0.0/16";
/// A conflist of CNI 1.1.0, which has all six verbs.
const CONFLIST: &str = r#"{"cniVersion": "1.1.0", "name": "sluice",
    "plugins": [{"type": "sluice-eni", "capabilities": {"io.kubernetes.cri.pod-annotations": true}}]}"#;
/// How long a node may take to become ready, and a pool to become what a test waits for.
pub const LIMIT: Duration = Duration::from_secs(60);
/// How long a connection may take before it counts as lost.
pub const LOST: Duration = Duration::from_secs(2);

/// Why a bed was not made, or a look at it failed.
#[derive(Debug, thiserror::Error)]
pub enum BedError {
    /// The scene.
    #[error("the scene is wrong")]
    Scene(#[from] SceneError),
    /// The world.
    #[error("the world failed")]
    World(#[from] WorldError),
    /// A node.
    #[error("a node failed")]
    Node(#[from] NodeError),
    /// Sluice on a node.
    #[error(transparent)]
    Deployment(#[from] DeploymentError),
    /// A program did not run or said no.
    #[error("{command}: {reason}")]
    Program {
        /// The program with its arguments.
        command: String,
        /// What it said.
        reason: String,
    },
    /// A connection was not answered.
    #[error("{from} does not reach {to}: {reason}")]
    Unreachable {
        /// The namespace.
        from: String,
        /// The address.
        to: IpAddr,
        /// Why.
        reason: String,
    },
}

/// Two m5.large nodes with public addresses in one subnet, and a host on the Internet. `time_scale` multiplies EC2's
/// latencies. Packets obey security groups; what these let in besides each other is what [`Bed::up`] says.
#[must_use]
pub fn scene(time_scale: f64) -> String {
    format!(
        "time_scale: {time_scale}\nthrottle: false\nvpcs:\n  main:\n    cidrs: [10.0.0.0/16]\n    internet_gateway: true\n    \
         enforce_security_groups: true\n    \
         subnets: {{nodes: {{cidr: 10.0.1.0/24, routes: {{0.0.0.0/0: internet-gateway}}}}}}\ninstances:\n  node-a: {{type: \
         m5.large, subnet: main/nodes, public_address: true}}\n  node-b: {{type: m5.large, subnet: main/nodes, \
         public_address: true}}\ninternet_hosts: [198.51.100.10]\n"
    )
}

/// The same in a VPC with IPv6.
#[must_use]
pub fn scene_with_ipv6(time_scale: f64) -> String {
    scene(time_scale)
        .replace("cidrs: [10.0.0.0/16]", "cidrs: [10.0.0.0/16]\n    ipv6_cidr: 3fff:0:0:100::/56")
        .replace("cidr: 10.0.1.0/24,", "cidr: 10.0.1.0/24, ipv6_cidr: \"3fff:0:0:101::/64\",")
}

/// The same, with ways of both families to the Internet, which has a host of either, and with a machine, `peer`, in a VPC that is
/// peered ([`PEERED`]).
#[must_use]
pub fn scene_with_peer(time_scale: f64) -> String {
    scene_with_ipv6(time_scale)
        .replace(
            "routes: {0.0.0.0/0: internet-gateway}",
            "routes: {0.0.0.0/0: internet-gateway, \"::/0\": internet-gateway, 10.9.0.0/16: peering/pair, \
             \"3fff:0:0:900::/56\": peering/pair}",
        )
        .replace(
            "instances:\n",
            "  shared:\n    cidrs: [10.9.0.0/16]\n    ipv6_cidr: 3fff:0:0:900::/56\n    subnets: {only: {cidr: 10.9.1.0/24, \
             ipv6_cidr: \"3fff:0:0:901::/64\", routes: {10.0.0.0/16: peering/pair, \"3fff:0:0:100::/56\": \
             peering/pair}}}\npeerings: {pair: [main, shared]}\ninstances:\n  peer: {type: t3.micro, subnet: shared/only}\n",
        )
        .replace("[198.51.100.10]", "[198.51.100.10, \"2001:db8:51::10\"]")
}

/// What a cluster's operator lets in by a VPC's default group, which by itself lets in its own members alone: node ports from
/// everywhere, and everything from VPCs that are peered.
fn opened(state: &State, vpc: &Vpc) -> Vec<Permission> {
    let ports = ["tcp", "udp"].map(|protocol| Permission {
        protocol: protocol.to_owned(),
        from_port: Some(30_000),
        to_port: Some(32_767),
        cidrs: vec![Ipv4Net::default()],
        ipv6_cidrs: vec![Ipv6Net::default()],
        ..Permission::default()
    });
    let far_side = state.peerings.values().filter_map(|peering| {
        let sides = [(&peering.requester, &peering.accepter), (&peering.accepter, &peering.requester)];
        let (_, other) = sides.into_iter().find(|(mine, _)| **mine == vpc.id)?;
        state.vpcs.get(other)
    });
    let all = far_side.map(|other| Permission {
        protocol: "-1".to_owned(),
        cidrs: other.cidrs.clone(),
        ipv6_cidrs: other.ipv6_cidrs.clone(),
        ..Permission::default()
    });
    ports.into_iter().chain(all).collect()
}

/// A world whose nodes run the product.
#[derive(Debug)]
pub struct Bed {
    /// The nodes by name.
    pub nodes: BTreeMap<String, Arc<Deployment>>,
    /// Everything else. It goes last, when nothing of the above is used any more.
    pub world: World,
}

impl Bed {
    /// Brings `scene` up, installs the product on every node, starts ipamd with `settings`, and waits until pods may
    /// start. Where packets obey security groups, a VPC's default group also lets in node ports, and VPCs that are peered.
    ///
    /// # Errors
    /// [`BedError`]; what was made is taken away again.
    pub async fn up(scene: &str, settings: &[(&str, &str)]) -> Result<Self, BedError> {
        Self::up_on(scene, |_| true, settings).await
    }

    /// The same, with the product on those machines alone that `is_node` names.
    ///
    /// # Errors
    /// As [`Bed::up`].
    pub async fn up_on(
        scene: &str,
        is_node: impl Fn(&str) -> bool,
        settings: &[(&str, &str)],
    ) -> Result<Self, BedError> {
        let binaries = Binaries::beside_this_program()?;
        let world = World::up(&scene.parse::<Scene>()?).await?;
        let guarded: Vec<AuthorizeSecurityGroupIngress> = world.look(|model, _| {
            let state = model.state();
            let guarded = state.vpcs.values().filter(|vpc| vpc.enforces_groups);
            let open = |vpc: &Vpc| AuthorizeSecurityGroupIngress {
                group: vpc.default_security_group.clone(),
                permissions: opened(state, vpc),
            };
            guarded.map(open).collect()
        });
        for open in guarded {
            world.call(open).await.map_err(WorldError::from)?;
        }
        let mut nodes = BTreeMap::new();
        for (name, node) in world.nodes().iter().filter(|(name, _)| is_node(name)) {
            let environment = [("MY_NODE_NAME", name.as_str())]
                .iter()
                .chain(settings)
                .map(|(variable, value)| ((*variable).to_owned(), (*value).to_owned()))
                .collect();
            let deployment = Deployment::install(Arc::clone(node), &binaries, CONFLIST, environment).await?;
            deployment.start_ipamd().await?;
            nodes.insert(name.clone(), Arc::new(deployment));
        }
        for node in nodes.values() {
            node.ready(LIMIT).await?;
        }
        Ok(Self { nodes, world })
    }

    /// Waits until the nodes' own IPv6 addresses count as no duplicates, as they do on a machine that has booted a while ago;
    /// before that nothing of a node is sent by IPv6 (RFC 4862, section 5.4).
    ///
    /// # Errors
    /// [`BedError::Program`] when it cannot be asked, or they do not within [`LIMIT`].
    pub async fn booted(&self) -> Result<(), BedError> {
        const ASK: [&str; 6] = ["ip", "-6", "-o", "address", "show", "tentative"];
        let all = async {
            for node in self.nodes.values() {
                while !run(node, &ASK).await?.is_empty() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            Ok(())
        };
        let late = |_elapsed| BedError::Program { command: ASK.join(" "), reason: "addresses stay tentative".into() };
        tokio::time::timeout(LIMIT, all).await.map_err(late)?
    }

    /// A node.
    ///
    /// # Errors
    /// [`WorldError::Unknown`].
    pub fn node(&self, name: &str) -> Result<&Arc<Deployment>, BedError> {
        Ok(self.nodes.get(name).ok_or_else(|| WorldError::Unknown { kind: "node", name: name.into() })?)
    }

    /// How often each EC2 action has been called, questions to the metadata service apart.
    #[must_use]
    pub fn calls(&self) -> BTreeMap<String, u64> {
        let mut calls = self.world.look(|model, _| model.log().counts().clone());
        calls.remove(IMDS);
        calls
    }

    /// A node's own address, and the one that the Internet sees.
    ///
    /// # Errors
    /// [`WorldError::Unknown`] when it has none.
    pub fn addresses_of(&self, node: &str) -> Result<(Ipv4Addr, Ipv4Addr), BedError> {
        let id = self.world.instance(node)?;
        let found = self.world.look(|model, _| {
            let eni = model.state().attached(id).into_iter().next()?;
            Some((eni.primary, eni.association.as_ref()?.public_ip))
        });
        Ok(found.ok_or_else(|| WorldError::Unknown { kind: "public address of", name: node.into() })?)
    }

    /// Device number of the ENI that holds `address`, as EC2 knows it.
    #[must_use]
    pub fn device_of(&self, address: impl Into<IpAddr>) -> Option<u32> {
        self.place_of(address).map(|(_, device)| device)
    }

    /// Network card and device number of the ENI that holds `address`, as EC2 knows them.
    #[must_use]
    pub fn place_of(&self, address: impl Into<IpAddr>) -> Option<(u32, u32)> {
        let address = address.into();
        self.world.look(|model, _| {
            let attachment = holder(model.state(), address)?.attachment.as_ref()?;
            Some((attachment.card, attachment.device))
        })
    }

    /// The ENI that holds `address`, as EC2 knows it, and that one's own address.
    #[must_use]
    pub fn eni_of(&self, address: impl Into<IpAddr>) -> Option<(EniId, Ipv4Addr)> {
        let address = address.into();
        self.world.look(|model, _| holder(model.state(), address).map(|eni| (eni.id.clone(), eni.primary)))
    }
}

fn holder(state: &State, address: IpAddr) -> Option<&Eni> {
    state.enis.values().find(|eni| match address {
        IpAddr::V4(address) => eni.holds(address),
        IpAddr::V6(address) => eni.assigned_ipv6().any(|net| net.contains(&address)),
    })
}

/// Adds pods to a node until `count` are there, one after the other: `namespace/prefix1`, ….
///
/// # Errors
/// The first ADD that failed.
pub async fn add_pods(node: &Deployment, namespace: &str, prefix: &str, count: usize) -> Result<Vec<Pod>, BedError> {
    let mut pods = Vec::new();
    for number in 1..=count {
        pods.push(node.add(namespace, &format!("{prefix}{number}")).await?);
    }
    Ok(pods)
}

/// Starts an echo server on each address of a pod, and returns once they listen.
///
/// # Errors
/// [`BedError::Unreachable`] when an address cannot be bound.
pub async fn serve(node: &Deployment, pod: &Pod) -> Result<(), BedError> {
    let inside = node.node().pod(&pod.sandbox.netns).await?;
    let v4 = Some(pod.address).filter(|address| !address.is_unspecified()).map(IpAddr::V4);
    for to in v4.into_iter().chain(pod.ipv6.map(IpAddr::V6)) {
        let address = SocketAddr::new(to, ECHO_PORT);
        let served = inside.run(move || async move { probe::serve_in_background(address).await }).await;
        let failed = |reason: String| BedError::Unreachable { from: pod.sandbox.name.clone(), to, reason };
        served.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))?;
    }
    Ok(())
}

/// The source address that an echo server at `to` sees when `pod` connects to it.
///
/// # Errors
/// [`BedError::Unreachable`] when there is no answer within [`LOST`].
pub async fn ask(node: &Deployment, pod: &Pod, to: impl Into<IpAddr>) -> Result<IpAddr, BedError> {
    let to = to.into();
    let target = SocketAddr::new(to, ECHO_PORT);
    let inside = node.node().pod(&pod.sandbox.netns).await?;
    let asked = inside.run(move || async move { probe::seen_by(target, LOST).await }).await;
    let failed = |reason: String| BedError::Unreachable { from: pod.sandbox.name.clone(), to, reason };
    asked.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
}

/// Runs a program on a node and returns what it prints.
///
/// # Errors
/// [`BedError::Program`] when it cannot be run or exits with another status than 0.
pub async fn run(node: &Deployment, words: &[&str]) -> Result<String, BedError> {
    let failed = |reason: String| BedError::Program { command: words.join(" "), reason };
    let (program, arguments) = words.split_first().ok_or_else(|| failed("no program".into()))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let output =
        node.node().spawn(command).await?.wait_with_output().await.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

/// What `ip -j` prints on a node, or in the namespace `netns` of one of its pods.
///
/// # Errors
/// [`BedError::Program`].
pub async fn ip(node: &Deployment, netns: Option<&Path>, words: &[&str]) -> Result<Value, BedError> {
    let enter = netns.map(|netns| format!("--net={}", netns.display()));
    let mut all: Vec<&str> = enter.iter().flat_map(|enter| ["nsenter", enter.as_str()]).collect();
    all.extend(["ip", "-j"]);
    all.extend(words);
    let text = run(node, &all).await?;
    let text = if text.trim().is_empty() { "[]" } else { &text };
    serde_json::from_str(text)
        .map_err(|error| BedError::Program { command: all.join(" "), reason: format!("{error}: {text}") })
}
