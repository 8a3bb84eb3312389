//! Nodes, a router between them that is the rest of the world too, and pods.
//!
//! ```text
//!  spare-1            router (externals on its loopback)          spare-2
//!   eth0 ───────── n0  169.254.0.1, fe80::1 on each link  n1 ───────── eth0
//!   │ eniXXX                                                           │ eniYYY
//!   pod                                                                pod
//! ```
//!
//! The router has a route for every pod and node; a node sends what is not its own pods' to the router. Next hops are
//! link-local, so that every other address can be one of the file's.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use sluice_contract::node::CONFLIST;
use sluice_hostnet::netns::{Namespace, NamespaceError};
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::model::Text;
use sluice_policy_core::vector::schema::{Fixture, PodSpec};
use sluice_vpcsim::deployment::DeploymentError;
use sluice_vpcsim::node::{Node, NodeError};
use sluice_vpcsim::runtime::{BIN_DIR, Runtime, RuntimeError, Sandbox};
use sluice_vpcsim::world::{BASE_DIR, Claim};

use super::eni::{self, Eni};
use super::ipamd::{self, Book, Entry};
use crate::prober::{Prober, Station};
use crate::service_proxy::{Backend, Proxy};

/// MTU of all links, in bytes.
const MTU: u32 = 9001;

/// Why a town is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum TownError {
    /// A machine.
    #[error("a machine failed")]
    Node(#[from] NodeError),
    /// The binaries.
    #[error(transparent)]
    Deployment(#[from] DeploymentError),
    /// The plugins.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A namespace.
    #[error("a namespace failed")]
    Namespace(#[from] NamespaceError),
    /// Files and sockets.
    #[error("{what}")]
    Io {
        /// What was to be done.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// `ip` says no.
    #[error("ip -batch: {said}\n{lines}")]
    Ip {
        /// What was asked.
        lines: String,
        /// What it said.
        said: String,
    },
    /// Something is not there.
    #[error("there is no {kind} {name} in this town")]
    Unknown {
        /// What it would be.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The work was cancelled.
    #[error("the work was cancelled")]
    Cancelled(#[from] tokio::task::JoinError),
}

pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> TownError {
    let what = what.into();
    move |source| TownError::Io { what, source }
}

/// How a town's pods are attached.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The conflist.
    pub conflist: String,
    /// Plugins to put in place: file names and where they are on this machine.
    pub plugins: Vec<(String, PathBuf)>,
    /// The service proxy of every node.
    pub proxy: Backend,
}

/// A node.
#[derive(Debug)]
pub struct TownNode {
    /// The machine.
    pub node: Arc<Node>,
    /// What executes the plugins.
    pub runtime: Runtime,
    /// Its service proxy.
    pub proxy: Arc<Proxy>,
    index: usize,
}

/// A pod that is attached.
#[derive(Debug)]
pub struct TownPod {
    /// Its node.
    pub on: Text,
    /// Its sandbox; none for one that shares the node's network.
    pub sandbox: Option<Sandbox>,
    /// Its network.
    pub net: Namespace,
    addresses: Vec<IpAddr>,
    eni: Eni,
}

/// A cluster in namespaces. Dropping it takes all of it down.
#[derive(Debug)]
pub struct Town {
    /// Its servers and probes.
    pub prober: Prober,
    /// The pods.
    pub pods: BTreeMap<PodKey, TownPod>,
    /// The nodes by name.
    pub nodes: BTreeMap<Text, TownNode>,
    router: Namespace,
    outside: BTreeSet<IpAddr>,
    book: Book,
    tag: String,
    /// Goes last, after the machines.
    claim: Claim,
}

impl Town {
    /// Boots the fixture's nodes and sets the router up; there are no pods yet.
    ///
    /// # Errors
    /// [`TownError`]; what was made is taken away again.
    pub async fn build(fixture: &Fixture, plan: &Plan) -> Result<Self, TownError> {
        static TOWNS: AtomicU32 = AtomicU32::new(0);
        let tag = format!("{}-town-{}", std::process::id(), TOWNS.fetch_add(1, Ordering::Relaxed));
        let claim = Claim::of(Path::new(BASE_DIR).join(&tag)).map_err(io("no directory for a town"))?;
        let router = Namespace::new_unbound()?;
        let mut town = Self {
            prober: Prober::default(),
            pods: BTreeMap::new(),
            nodes: BTreeMap::new(),
            router,
            outside: BTreeSet::new(),
            book: Book::default(),
            tag,
            claim,
        };
        let router = town.router.clone();
        forwards(&router).await?;
        ip(&router, vec!["link set lo up".into()]).await?;
        for (index, (name, spec)) in fixture.nodes.iter().enumerate() {
            let node = town.boot(name, plan).await?;
            let link = Eni::Primary.link(index);
            let peer = format!("/proc/{}/fd/{}", std::process::id(), node.net().as_fd().as_raw_fd());
            let mut near = vec![
                format!("link add {link} mtu {MTU} type veth peer name eth0 mtu {MTU} netns {peer}"),
                format!("addr add 169.254.0.1/32 dev {link} scope link"),
                format!("addr add fe80::1/64 dev {link} nodad"),
                format!("link set {link} up"),
            ];
            let mut far = Vec::new();
            for address in spec.addresses.iter() {
                far.push(format!("addr add {address} dev eth0{}", if address.is_ipv6() { " nodad" } else { "" }));
            }
            far.extend(
                ["addr add 169.254.0.2/32 dev eth0 scope link", "addr add fe80::2/64 dev eth0 nodad"].map(String::from),
            );
            far.extend(["link set eth0 up", "route add 169.254.0.1 dev eth0 scope link"].map(String::from));
            far.extend(
                ["route add default via 169.254.0.1 dev eth0", "route add default via fe80::1 dev eth0"]
                    .map(String::from),
            );
            near.extend(spec.addresses.iter().map(|address| route(address, Eni::Primary, index)));
            ip(&router, near.drain(..4).collect()).await?;
            ip(node.net(), far).await?;
            ip(&router, near).await?;
            if Eni::all(fixture).contains(&Eni::Second) {
                let own: Vec<IpAddr> = spec.addresses.iter().collect();
                eni::plug_second(&router, node.net(), index, &own, (&peer, MTU)).await?;
            }
            let proxy = Arc::new(Proxy::new(node.net().clone(), plan.proxy));
            let runtime = Runtime::start(&node).await?;
            town.nodes.insert(Text::clone(name), TownNode { node, runtime, proxy, index });
        }
        Ok(town)
    }

    async fn boot(&self, name: &Text, plan: &Plan) -> Result<Arc<Node>, TownError> {
        let node = Arc::new(Node::boot(name, &self.claim.dir().join(&**name), &self.tag).await?);
        forwards(node.net()).await?;
        for (file, from) in &plan.plugins {
            node.install(from, &Path::new(BIN_DIR).join(file)).await?;
        }
        node.write(CONFLIST, &plan.conflist).await?;
        ipamd::serve(&node, Arc::clone(&self.book)).await?.map_err(io("no socket for addresses"))?;
        Ok(node)
    }

    /// A node.
    ///
    /// # Errors
    /// [`TownError::Unknown`].
    pub fn node(&self, name: &str) -> Result<&TownNode, TownError> {
        self.nodes.get(name).ok_or_else(|| TownError::Unknown { kind: "node", name: name.into() })
    }

    /// A pod.
    ///
    /// # Errors
    /// [`TownError::Unknown`].
    pub fn pod(&self, key: &PodKey) -> Result<&TownPod, TownError> {
        self.pods.get(key).ok_or_else(|| TownError::Unknown { kind: "pod", name: key.to_string() })
    }

    /// Attaches pods, one after the other.
    ///
    /// # Errors
    /// The first that failed.
    pub async fn add(&mut self, pods: &[(PodKey, PodSpec)]) -> Result<(), TownError> {
        for (key, spec) in pods.iter().filter(|(_, spec)| !spec.finished) {
            if spec.host_network {
                let on = spec.node.clone().unwrap_or_default();
                let net = self.node(&on)?.node.net().clone();
                self.pods
                    .insert(key.clone(), TownPod { on, sandbox: None, net, addresses: Vec::new(), eni: Eni::Primary });
            } else {
                let sandbox = self.sandbox(key, spec).await?;
                self.attach(key, spec, sandbox).await?;
            }
        }
        Ok(())
    }

    /// Makes the sandbox of a pod, which is not attached yet.
    ///
    /// # Errors
    /// The node's.
    pub async fn sandbox(&self, key: &PodKey, spec: &PodSpec) -> Result<Sandbox, TownError> {
        let at = self.node(spec.node.as_deref().unwrap_or_default())?;
        Ok(at.node.sandbox(&key.namespace, &key.name).await?)
    }

    /// The network of a sandbox.
    ///
    /// # Errors
    /// The node's.
    pub async fn net(&self, spec: &PodSpec, sandbox: &Sandbox) -> Result<Namespace, TownError> {
        let at = self.node(spec.node.as_deref().unwrap_or_default())?;
        Ok(at.node.pod(&sandbox.netns).await?.net().clone())
    }

    /// Attaches a pod's sandbox. The world knows the way to it before, as a VPC does.
    ///
    /// # Errors
    /// The chain's; what was done is undone then, as a runtime does.
    pub async fn attach(&mut self, key: &PodKey, spec: &PodSpec, sandbox: Sandbox) -> Result<(), TownError> {
        let on = spec.node.clone().unwrap_or_default();
        let addresses: Vec<IpAddr> = spec.addresses.iter().collect();
        let name = (key.namespace.to_string(), key.name.to_string());
        let eni = Eni::of(spec);
        let entry = Entry { addresses: addresses.clone(), eni };
        self.book.lock().unwrap_or_else(PoisonError::into_inner).insert(name, entry);
        let at = self.node(&on)?;
        ip(&self.router, addresses.iter().map(|address| route(*address, eni, at.index)).collect()).await?;
        if let Err(error) = at.runtime.add(&at.node, &sandbox).await {
            // The first error is the one to tell.
            let _undone = at.runtime.del(&at.node, &sandbox).await;
            let _gone = at.node.remove_sandbox(&sandbox).await;
            return Err(error.into());
        }
        let net = at.node.pod(&sandbox.netns).await?.net().clone();
        self.pods.insert(key.clone(), TownPod { on, sandbox: Some(sandbox), net, addresses, eni });
        Ok(())
    }

    /// Detaches what a new pod takes the place of: the pod of its name, and one whose address it is to have.
    ///
    /// # Errors
    /// As [`Self::delete`].
    pub async fn make_room(&mut self, key: &PodKey, spec: &PodSpec) -> Result<(), TownError> {
        let shares = |pod: &TownPod| spec.addresses.iter().any(|address| pod.addresses.contains(&address));
        let old = self.pods.iter().filter(|(other, pod)| *other == key || shares(pod));
        for old in old.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.delete(&old).await?;
        }
        Ok(())
    }

    /// Detaches a pod and takes it away.
    ///
    /// # Errors
    /// The chain's, or the node's.
    pub async fn delete(&mut self, key: &PodKey) -> Result<(), TownError> {
        let Some(pod) = self.pods.remove(key) else { return Ok(()) };
        let Some(sandbox) = &pod.sandbox else { return Ok(()) };
        self.prober.forget(&pod.net);
        let at = self.node(&pod.on)?;
        at.runtime.del(&at.node, sandbox).await?;
        let way = |address: &IpAddr| route(*address, pod.eni, at.index).replacen("route replace", "route del", 1);
        let lines = pod.addresses.iter().map(way);
        let lines = lines.collect();
        at.node.remove_sandbox(sandbox).await?;
        ip(&self.router, lines).await
    }

    /// The rest of the world at an address, which it has from now on.
    ///
    /// # Errors
    /// `ip` says no.
    pub async fn outside(&mut self, address: IpAddr) -> Result<Station, TownError> {
        if self.outside.insert(address) {
            let nodad = if address.is_ipv6() { " nodad" } else { "" };
            ip(&self.router, vec![format!("addr add {address} dev lo{nodad}")]).await?;
            if address.is_ipv6() {
                reachable(&self.router, address).await?;
            }
        }
        Ok(Station { net: self.router.clone(), address })
    }

    /// Begins to count which way packets between nodes take.
    ///
    /// # Errors
    /// [`TownError`].
    pub async fn count(&self) -> Result<(), TownError> {
        eni::count(&self.router).await
    }

    /// How many packets came from which node by which ENI since [`Self::count`].
    ///
    /// # Errors
    /// [`TownError`].
    pub async fn counted(&self) -> Result<BTreeMap<eni::Way, u64>, TownError> {
        eni::counted(&self.router).await
    }

    /// The router's end of a node's ENI.
    ///
    /// # Errors
    /// [`TownError::Unknown`].
    pub fn link(&self, node: &str, eni: Eni) -> Result<String, TownError> {
        Ok(eni.link(self.node(node)?.index))
    }

    /// What tells this town from others.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

fn route(address: IpAddr, eni: Eni, node: usize) -> String {
    let link = eni.link(node);
    match address {
        IpAddr::V4(v4) => format!("route replace {v4} via {} dev {link} onlink", eni.next_hop()),
        IpAddr::V6(v6) => format!("route replace {v6} via fe80::2 dev {link} onlink"),
    }
}

/// Lets a namespace forward, in both families.
async fn forwards(net: &Namespace) -> Result<(), TownError> {
    let net = net.clone();
    let write = move || {
        let settings = [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/disable_ipv6", "0"),
            ("ipv6/conf/default/disable_ipv6", "0"),
            ("ipv6/conf/all/forwarding", "1"),
        ];
        settings.into_iter().try_for_each(|(key, value)| std::fs::write(format!("/proc/sys/net/{key}"), value))
    };
    let written = tokio::task::spawn_blocking(move || net.run(write)).await??;
    written.map_err(io("a sysctl cannot be written"))
}

/// How long the kernel may take to know the way to an address that it has.
const KNOWN: Duration = Duration::from_secs(10);

/// Waits until the kernel delivers to an IPv6 address of its own: it enters the route some time after the address.
async fn reachable(net: &Namespace, address: IpAddr) -> Result<(), TownError> {
    let end = Instant::now() + KNOWN;
    loop {
        let (net, address) = (net.clone(), address.to_string());
        let ask = move || {
            let mut command = std::process::Command::new("ip");
            command.args(["-6", "route", "show", "table", "local", &address]).output()
        };
        let answer = tokio::task::spawn_blocking(move || net.run(ask)).await??.map_err(io("ip cannot be run"))?;
        if !answer.stdout.is_empty() {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(io("an address is not reachable")(io::ErrorKind::TimedOut.into()));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Runs lines of `ip -batch` in a namespace.
pub(crate) async fn ip(net: &Namespace, lines: Vec<String>) -> Result<(), TownError> {
    if lines.is_empty() {
        return Ok(());
    }
    let (net, lines) = (net.clone(), lines.join("\n") + "\n");
    let done = tokio::task::spawn_blocking(move || {
        let ran = net.run(|| batch(&lines))?;
        let output = ran.map_err(io("ip cannot be run"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(TownError::Ip { lines, said: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
    });
    done.await?
}

fn batch(lines: &str) -> io::Result<std::process::Output> {
    use std::io::Write as _;
    let mut command = std::process::Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // What it does not read it says why.
        let _unread = stdin.write_all(lines.as_bytes());
    }
    child.wait_with_output()
}

/// The conflist of a chain of plugins.
#[must_use]
pub fn conflist(plugins: &Value) -> String {
    serde_json::json!({"cniVersion": "1.0.0", "name": "sluice", "plugins": plugins}).to_string()
}
