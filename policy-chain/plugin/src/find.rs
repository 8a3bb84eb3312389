//! Finds the interfaces of a sandbox, and the host's interface behind each, in the kernel.
//!
//! What belongs together is the kernel's word, not the result's: the sandbox's link names the number of its other end,
//! and the host's link of that number names the sandbox and the number of the link in it. Both together are proof.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use sluice_contract::cni::{AddResult, ErrorCode};
use sluice_contract::id::{IfName, InvalidId};
use sluice_contract::rpc::GateInterface;
use sluice_hostnet::desired::View;
use sluice_hostnet::host::{Host, ObserveError};
use sluice_hostnet::netlink::{LinkError, Netlink, NetlinkError, OpenError};
use sluice_hostnet::netns::Namespace;
use sluice_hostnet::state::{Address, Family, Link, LinkKind};

use crate::note;
use crate::reported::Reported;

/// The most interfaces of one sandbox. An instance has fewer ENIs.
const INTERFACES_MAX: usize = 64;

/// Why the interfaces of a sandbox could not be found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FindError {
    /// No socket.
    #[error("cannot speak to the kernel")]
    Open(#[source] OpenError),
    /// A link could not be read.
    #[error("cannot look for links")]
    Look(#[source] LinkError),
    /// The host's number of the sandbox could not be read.
    #[error("cannot look for the sandbox")]
    Sandbox(#[source] NetlinkError),
    /// The addresses could not be read.
    #[error("cannot look for the sandbox's addresses")]
    Addresses(#[source] ObserveError),
    /// The result has a name that no interface can have.
    #[error("prevResult names an interface of the sandbox that cannot be")]
    Name(#[source] InvalidId),
    /// The result and the kernel contradict each other.
    #[error("the sandbox has no interface {name}, which the plugins before this one should have made")]
    Missing {
        /// The interface.
        name: IfName,
    },
    /// The sandbox's interface has no end on the host.
    #[error(
        "interface {name} of the sandbox ({kind}) has no interface of its own on the host, where its policy could be \
         enforced; sluice-policy works behind plugins that make a veth pair, such as sluice-eni, aws-cni, ptp and bridge"
    )]
    NoHostEnd {
        /// The interface.
        name: IfName,
        /// What it is.
        kind: String,
    },
    /// Nothing could be sent from the sandbox.
    #[error("no interface of the sandbox has an address, neither in prevResult nor in the kernel")]
    NoAddress,
    /// More than anyone needs.
    #[error("the sandbox has {count} interfaces; at most {INTERFACES_MAX} are gated")]
    TooMany {
        /// How many.
        count: usize,
    },
}

impl FindError {
    /// The code on the wire.
    pub(crate) const fn code(&self) -> ErrorCode {
        match self {
            Self::Open(_) | Self::Look(_) | Self::Sandbox(_) | Self::Addresses(_) => ErrorCode::Kernel,
            Self::Name(_) | Self::Missing { .. } | Self::NoHostEnd { .. } | Self::NoAddress | Self::TooMany { .. } => {
                ErrorCode::InvalidConfig
            }
        }
    }
}

/// Which interfaces of a sandbox are an attachment's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Those that the result names.
    Reported,
    /// Those that it does not name, too. A plugin that makes an interface and says nothing of it (the VPC CNI's `v4if0`
    /// of pods with IPv6) must not open a way around the policy.
    All,
}

/// The interfaces of a sandbox: those that the result names, in its order, then others.
pub(crate) async fn find(
    result: &AddResult,
    ifname: &IfName,
    netns: &Namespace,
    path: &Path,
    whose: Whose,
) -> Result<Vec<GateInterface>, FindError> {
    let is_sandbox = |given: &str| {
        let given = Path::new(given);
        given == path || (given.is_absolute() && Namespace::open(given).is_ok_and(|it| it.id() == netns.id()))
    };
    let reported = Reported::of(result, ifname, is_sandbox).map_err(FindError::Name)?;
    let host = Netlink::open().map_err(FindError::Open)?;
    let inside = || Host::of(netns.clone()).map_err(FindError::Open);
    let number = host.number_of(netns).await.map_err(FindError::Sandbox)?;
    let links = match number {
        // Asked from here: no thread has to enter the sandbox.
        Some(number) => host.links_in(number).await,
        // No link leads there, or nobody has looked at it yet.
        None => inside()?.netlink().links().await,
    };
    let links = links.map_err(FindError::Look)?;
    let host_side = HostSide { netlink: &host, sandbox: netns, number };

    let mut found = Vec::with_capacity(reported.interfaces.len());
    for (name, addresses) in &reported.interfaces {
        let link = links.iter().find(|link| link.name == *name);
        let link = link.ok_or_else(|| FindError::Missing { name: name.clone() })?;
        let Some(host_end) = host_side.end_of(link).await? else {
            return Err(FindError::NoHostEnd { name: name.clone(), kind: kind(link) });
        };
        if !reported.hosts.is_empty() && !reported.hosts.iter().any(|host| host == host_end.name.as_str()) {
            note(&format!("the host's end of {name} is {}, which prevResult does not name", host_end.name));
        }
        found.push(gate(link, &host_end, addresses.clone()));
    }
    let is_other = |link: &&Link| {
        whose == Whose::All
            && link.kind != LinkKind::Loopback
            && reported.interfaces.iter().all(|(name, _)| *name != link.name)
    };
    for link in links.iter().filter(is_other) {
        match host_side.end_of(link).await? {
            Some(host_end) => {
                note(&format!("{} of the sandbox is gated too, though prevResult does not name it", link.name));
                found.push(gate(link, &host_end, Vec::new()));
            }
            // The kernel makes some of its own accord (`sit0`, `tunl0`), which are down.
            None if !link.up => {}
            None => note(&format!("{} ({}) of the sandbox cannot be gated and is let alone", link.name, kind(link))),
        }
    }
    if found.len() > INTERFACES_MAX {
        return Err(FindError::TooMany { count: found.len() });
    }
    if found.iter().any(|interface| interface.addresses.is_empty()) {
        let view = View { addresses: Family::ALL.into(), ..View::default() };
        let seen = inside()?.observe(&view).await.map_err(FindError::Addresses)?;
        for interface in found.iter_mut().filter(|interface| interface.addresses.is_empty()) {
            interface.addresses = addresses_on(&seen.addresses, &interface.container);
        }
    }
    if found.iter().all(|interface| interface.addresses.is_empty()) {
        return Err(FindError::NoAddress);
    }
    Ok(found)
}

/// The host, as it sees a sandbox.
struct HostSide<'a> {
    netlink: &'a Netlink,
    sandbox: &'a Namespace,
    /// The host's number of it, where it had one from the begin.
    number: Option<i32>,
}

impl HostSide<'_> {
    /// The host's end of a sandbox's link: each names the other. A macvlan names its parent, which does not name it.
    async fn end_of(&self, link: &Link) -> Result<Option<Link>, FindError> {
        let (Some(peer), Some(_)) = (link.peer, link.peer_netns) else { return Ok(None) };
        let Some(host_end) = self.netlink.link_by_index(peer).await.map_err(FindError::Look)? else { return Ok(None) };
        if host_end.peer != Some(link.index) || host_end.peer_netns.is_none() {
            return Ok(None);
        }
        // Links in other sandboxes have the same numbers.
        let sandbox = match self.number {
            Some(number) => Some(number),
            // Looking at the link has given it one.
            None => self.netlink.number_of(self.sandbox).await.map_err(FindError::Sandbox)?,
        };
        Ok(Some(host_end).filter(|host_end| host_end.peer_netns == sandbox))
    }
}

fn gate(link: &Link, host_end: &Link, addresses: Vec<IpAddr>) -> GateInterface {
    let (host, host_index) = (host_end.name.clone(), host_end.index);
    GateInterface { host, host_index, container: link.name.clone(), addresses }
}

fn kind(link: &Link) -> String {
    match &link.kind {
        LinkKind::Physical => "a device without kind".to_owned(),
        LinkKind::Loopback => "loopback".to_owned(),
        LinkKind::Veth => "veth".to_owned(),
        LinkKind::Other(kind) => kind.clone(),
    }
}

/// The addresses on a link by which it can be spoken to from elsewhere. Those of the link alone (fe80::/10) are
/// the gate's to know.
fn addresses_on(addresses: &[Address], name: &IfName) -> Vec<IpAddr> {
    let of_link = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let own = addresses.iter().filter(|address| address.dev == *name).map(|address| address.net.addr());
    own.filter(|ip| !of_link(ip) && !ip.is_loopback()).collect::<BTreeSet<_>>().into_iter().collect()
}
