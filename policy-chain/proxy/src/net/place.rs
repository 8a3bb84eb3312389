//! The namespaces in which the proxy's sockets live.
//!
//! There are two, because a flow that is proxied at both of its ends has its four-tuple twice on a node. Each is joined to the
//! host by a veth pair, over which the gates send it what they redirect. Inside, every address is local; the host gets nothing
//! but the link: no rule, no route, no sysctl.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use sluice_contract::id::{IfName, MacAddr};
use sluice_contract::node::{GATE_DIR, MTU, TABLE_MAIN, pod_gateway_v4, pod_gateway_v6};
use sluice_hostnet::desired::{Desired, LinkSettings, RouteScope, RuleScope, Scope};
use sluice_hostnet::host::{Host, ReconcileError};
use sluice_hostnet::netlink::{LinkError, Netlink, NetlinkError, OpenError, VethSpec};
use sluice_hostnet::netns::{Namespace, NamespaceError, NamespaceThread, ThreadSpec};
use sluice_hostnet::state::{
    Family, Link, LinkKind, Neighbour, Protocol, Route, RouteKind, RtScope, Rule, Sysctl, SysctlKey,
};
use sluice_hostnet::sysctl;
use sluice_policy_bpf::proxy::{ProxyError, ProxyPrograms};

use crate::flow::Direction;

/// The namespaces' own end of their link.
const INNER: &str = "eth0";
/// The table in which every address is local, for what comes in by the link; and the priority of the rule that says so.
const EVERYTHING_LOCAL: u32 = 100;

/// Where the namespaces are, and how large their packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceConfig {
    /// Directory in which they are bound: `egress`, `ingress`.
    pub directory: PathBuf,
    /// Directory of policyd's pins.
    pub gate: PathBuf,
    /// MTU of the links, in bytes; not less than the pods'.
    pub mtu: u32,
}

impl Default for PlaceConfig {
    fn default() -> Self {
        Self { directory: "/run/sluice/netns".into(), gate: GATE_DIR.into(), mtu: MTU }
    }
}

/// Why the namespaces are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// One could not be made or opened.
    #[error("cannot make or open the proxy's namespace {path}")]
    Namespace {
        /// Where it is bound.
        path: PathBuf,
        /// Why.
        #[source]
        source: NamespaceError,
    },
    /// There is no netlink socket.
    #[error("cannot open a netlink socket")]
    Netlink(#[source] OpenError),
    /// The link to the host could not be made.
    #[error("cannot join the proxy's namespace {name} to the host")]
    Link {
        /// The host's end.
        name: IfName,
        /// Why.
        #[source]
        source: LinkError,
    },
    /// The kernel does not tell which namespace a link leads to.
    #[error("cannot tell where the link {name} leads")]
    Number {
        /// The host's end.
        name: IfName,
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// Routes and settings inside could not be set.
    #[error("cannot set up the proxy's namespace {path}")]
    Inside {
        /// Where it is bound.
        path: PathBuf,
        /// Why.
        #[source]
        source: ReconcileError,
    },
    /// The kernel's programs could not be put in place.
    #[error(transparent)]
    Programs(#[from] ProxyError),
}

/// The namespace of one direction.
#[derive(Debug, Clone)]
pub struct Place {
    direction: Direction,
    namespace: Namespace,
    link: u32,
    mac: MacAddr,
}

impl Place {
    /// Finds the namespace and its link, makes what is not there, and mends what is not as it should be. Connections in it
    /// stay where nothing was missing. The caller is in the host's namespace.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub async fn ensure(config: &PlaceConfig, direction: Direction) -> Result<Self, PlaceError> {
        let path = config.directory.join(name(direction));
        let namespace = open_or_make(&path).map_err(|source| PlaceError::Namespace { path: path.clone(), source })?;
        let host = Netlink::open().map_err(PlaceError::Netlink)?;
        let inside = Host::of(namespace.clone()).map_err(PlaceError::Netlink)?;
        let outer = link_name(direction);
        let inner = interface(INNER);
        let failed = |source| PlaceError::Link { name: outer.clone(), source };

        let (mut near, far) = match join(&host, &inside, &namespace, &outer, &inner, config.mtu).await? {
            Some(ends) => ends,
            None => {
                let spec = VethSpec {
                    name: &outer,
                    mac: None,
                    up: true,
                    peer_name: &inner,
                    peer_mac: None,
                    peer_namespace: Some(&namespace),
                    mtu: config.mtu,
                };
                let near = host.create_veth(&spec).await.map_err(failed)?;
                let far = inside.netlink().link_by_name(&inner).await.map_err(failed)?;
                let Some(far) = far else { return Err(PlaceError::Link { name: outer, source: gone(&inner) }) };
                (near, far)
            }
        };
        if near.mtu != config.mtu || !near.up {
            host.set_link(near.index, Some(true), Some(config.mtu)).await.map_err(failed)?;
            near.mtu = config.mtu;
        }
        let (Some(host_mac), Some(mac)) = (near.mac, far.mac) else {
            return Err(PlaceError::Link { name: outer, source: gone(&inner) });
        };
        let wanted = desired(&namespace, host_mac, config.mtu);
        inside.reconcile(&wanted).await.map_err(|source| PlaceError::Inside { path, source })?;
        Ok(Self { direction, namespace, link: near.index, mac })
    }

    /// Whose flows it takes.
    #[must_use]
    pub const fn direction(&self) -> Direction {
        self.direction
    }

    /// The namespace.
    #[must_use]
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Index of the host's end of its link.
    #[must_use]
    pub const fn link(&self) -> u32 {
        self.link
    }

    /// A thread that lives in it, with a runtime of its own.
    ///
    /// # Errors
    /// [`NamespaceError`].
    pub fn thread(&self, name: impl Into<String>) -> Result<NamespaceThread, NamespaceError> {
        NamespaceThread::spawn(ThreadSpec::in_net(name, self.namespace.clone()))
    }
}

/// Both namespaces, and the kernel's programs that belong to them.
#[derive(Debug)]
pub struct Places {
    /// Of ingress flows.
    pub ingress: Place,
    /// Of egress flows.
    pub egress: Place,
    programs: ProxyPrograms,
}

impl Places {
    /// Makes or finds both, and tells the gates where they are. They send nothing there yet: that begins with
    /// [`Places::take_over`].
    ///
    /// # Errors
    /// [`PlaceError`]; of [`PlaceError::Programs`], [`ProxyError::NoMap`] says that policyd has not started yet.
    pub async fn ensure(config: &PlaceConfig) -> Result<Self, PlaceError> {
        let mut programs = ProxyPrograms::load(&config.gate)?;
        let host = Netlink::open().map_err(PlaceError::Netlink)?;
        let ingress = Place::ensure(config, Direction::Ingress).await?;
        let egress = Place::ensure(config, Direction::Egress).await?;
        for place in [&ingress, &egress] {
            programs.join(place.direction, &host, place.link, place.mac, &place.namespace).await?;
        }
        Ok(Self { ingress, egress, programs })
    }

    /// Looks again, as a process does from time to time: what was taken away is put back. Gives the directions whose namespace
    /// is another than before: no socket of this process is in it, and nothing that is redirected passes until one is.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub async fn repair(&mut self, config: &PlaceConfig) -> Result<Vec<Direction>, PlaceError> {
        let host = Netlink::open().map_err(PlaceError::Netlink)?;
        let mut renewed = Vec::new();
        for direction in [Direction::Ingress, Direction::Egress] {
            let place = Place::ensure(config, direction).await?;
            self.programs.join(direction, &host, place.link, place.mac, &place.namespace).await?;
            if place.namespace != self.of(direction).namespace {
                renewed.push(direction);
            }
            match direction {
                Direction::Ingress => self.ingress = place,
                Direction::Egress => self.egress = place,
            }
        }
        Ok(renewed)
    }

    /// The one of a direction.
    #[must_use]
    pub const fn of(&self, direction: Direction) -> &Place {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// From now on these sockets take what the gates send: those of a process before get nothing new, and keep what they
    /// have. Of each kind one stands for all workers'.
    ///
    /// # Errors
    /// [`ProxyError::Map`].
    pub fn take_over(&mut self, listeners: &super::Listeners) -> Result<(), ProxyError> {
        self.programs.take_over(listeners.direction, &listeners.sockets())
    }
}

/// Makes both namespaces below `directory`, where they are not there yet. Links and what is inside are a proxy's to make.
///
/// # Errors
/// [`NamespaceError`].
pub fn make(directory: &Path) -> Result<(), NamespaceError> {
    for direction in [Direction::Ingress, Direction::Egress] {
        open_or_make(&directory.join(name(direction)))?;
    }
    Ok(())
}

/// Takes both namespaces and their links away. Nothing there is success.
///
/// # Errors
/// [`PlaceError`].
pub async fn remove(config: &PlaceConfig) -> Result<(), PlaceError> {
    let host = Netlink::open().map_err(PlaceError::Netlink)?;
    for direction in [Direction::Ingress, Direction::Egress] {
        let name = link_name(direction);
        let removed = host.delete_link_if(&name, |link| link.kind == LinkKind::Veth).await;
        removed.map_err(|source| PlaceError::Link { name, source })?;
        let path = config.directory.join(self::name(direction));
        Namespace::remove(&path).map_err(|source| PlaceError::Namespace { path, source })?;
    }
    Ok(())
}

/// Both ends of the link, if it leads where it should; else it is removed.
async fn join(
    host: &Netlink,
    inside: &Host,
    namespace: &Namespace,
    outer: &IfName,
    inner: &IfName,
    mtu: u32,
) -> Result<Option<(Link, Link)>, PlaceError> {
    let failed = |source| PlaceError::Link { name: outer.clone(), source };
    let near = host.link_by_name(outer).await.map_err(failed)?;
    let far = inside.netlink().link_by_name(inner).await.map_err(failed)?;
    let number = host.number_of(namespace).await;
    let number = number.map_err(|source| PlaceError::Number { name: outer.clone(), source })?;
    if let (Some(near), Some(far)) = (&near, &far)
        && near.kind == LinkKind::Veth
        && near.peer == Some(far.index)
        && near.peer_netns == number
    {
        if far.mtu != mtu {
            inside.netlink().set_link(far.index, None, Some(mtu)).await.map_err(failed)?;
        }
        return Ok(Some((near.clone(), far.clone())));
    }
    if let Some(near) = near {
        host.delete_link(near.index).await.map_err(failed)?;
    }
    if let Some(far) = far {
        inside.netlink().delete_link(far.index).await.map_err(failed)?;
    }
    Ok(None)
}

fn open_or_make(path: &Path) -> Result<Namespace, NamespaceError> {
    match Namespace::open(path) {
        Err(error) if error.is_gone() => {
            // What an unmounted one leaves is an empty file.
            Namespace::remove(path)?;
            Namespace::create(path)
        }
        opened => opened,
    }
}

/// What is inside: everything that comes by the link is for us, everything that we send goes to the host's end of it, and the
/// ends of connections are short.
fn desired(namespace: &Namespace, host_mac: MacAddr, mtu: u32) -> Desired {
    let (eth0, lo) = (interface(INNER), interface("lo"));
    let mut desired = Desired {
        links: vec![
            LinkSettings { dev: lo.clone(), up: Some(true), mtu: None },
            LinkSettings { dev: eth0.clone(), up: Some(true), mtu: Some(mtu) },
        ],
        ..Desired::default()
    };
    let mut scope = Scope::default();
    scope.neighbours.insert(eth0.clone());
    for family in Family::ALL {
        let everything: IpNet = family.everything();
        let gateway: IpAddr = match family {
            Family::V4 => pod_gateway_v4(0).into(),
            Family::V6 => pod_gateway_v6(0).into(),
        };
        scope.routes.insert(RouteScope::table(EVERYTHING_LOCAL, family));
        scope.rules.insert(RuleScope::priority(family, EVERYTHING_LOCAL));
        let local = Route {
            kind: RouteKind::Local,
            scope: if family == Family::V4 { RtScope::Host } else { RtScope::Global },
            ..Route::on_link(EVERYTHING_LOCAL, everything, lo.clone())
        };
        desired.routes.push(Route { protocol: Protocol::BOOT, ..local });
        desired.routes.push(Route::default_via(TABLE_MAIN, gateway, eth0.clone()).with_onlink());
        desired.rules.push(Rule::iif(family, EVERYTHING_LOCAL, eth0.clone(), EVERYTHING_LOCAL));
        desired.neighbours.push(Neighbour::permanent(eth0.clone(), gateway, host_mac));
    }
    desired.scope = scope;
    desired.sysctls = sysctls(namespace);
    desired
}

fn sysctls(namespace: &Namespace) -> Vec<Sysctl> {
    let wanted = [
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/eth0/rp_filter", "0"),
        // A client may use its port again at once, and so must we.
        ("net/ipv4/tcp_tw_reuse", "1"),
        ("net/ipv4/tcp_tw_reuse_delay", "1"),
        ("net/ipv4/tcp_fin_timeout", "10"),
        ("net/core/somaxconn", "16384"),
        ("net/ipv4/tcp_max_syn_backlog", "16384"),
        // A listener that closes hands what it has not taken to another of its group.
        ("net/ipv4/tcp_migrate_req", "1"),
        ("net/ipv6/conf/eth0/disable_ipv6", "0"),
        ("net/ipv6/conf/eth0/accept_ra", "0"),
        ("net/ipv6/conf/eth0/accept_dad", "0"),
        ("net/ipv6/conf/eth0/addr_gen_mode", "1"),
    ];
    let known = |(key, value): (&str, &str)| {
        let key = SysctlKey::new(key).ok()?;
        // Not every kernel has all of them, and the links' are there with the links.
        let there = sysctl::read(&key).ok().flatten().is_some();
        there.then(|| Sysctl::new(key, value))
    };
    namespace.run(|| wanted.into_iter().filter_map(known).collect()).unwrap_or_default()
}

/// The name of a direction's namespace.
const fn name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

/// The host's end of its link.
fn link_name(direction: Direction) -> IfName {
    interface(match direction {
        Direction::Ingress => "sluice-ingress",
        Direction::Egress => "sluice-egress",
    })
}

#[expect(clippy::expect_used, reason = "the names are constants of this file")]
fn interface(name: &str) -> IfName {
    IfName::new(name).expect("a name of an interface")
}

fn gone(name: &IfName) -> LinkError {
    LinkError { action: "find", link: name.to_string(), source: NetlinkError::Unexpected }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name(self.direction))
    }
}
