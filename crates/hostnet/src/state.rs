//! Plain types for what a network namespace holds. No I/O.
//!
//! Devices are named, not numbered: a name can be written down before the link exists. Values are kept in the form in
//! which the kernel reports them, so that equal means equal; constructors bring them into it.

mod link;
mod neighbour;
mod nft;
mod route;
mod rule;
mod sysctl;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use sluice_contract::id::{IfName, MacAddr};

pub use link::{Address, Link, LinkKind};
pub use neighbour::{Neighbour, NeighbourKind};
pub use nft::{NftContent, NftFamily, NftRuleset, NftTable, NftTableId};
pub use route::{IPV6_DEFAULT_METRIC, Protocol, Route, RouteKey, RouteKind, TABLE_LOCAL, TABLE_MAIN};
pub use rule::{Mark, Rule};
pub use sysctl::{InvalidSysctlKey, Sysctl, SysctlKey};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The prefix that holds every address of the family: the destination of a default route.
    #[must_use]
    pub fn everything(self) -> IpNet {
        match self {
            Self::V4 => Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into(),
            Self::V6 => Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0).into(),
        }
    }
}

/// The family of a prefix.
fn family_of(net: &IpNet) -> Family {
    Family::of(net.addr())
}

/// The /32 or /128 of an address.
#[must_use]
pub fn host_prefix(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// How far away an address or a route's destination can be (`rtnetlink(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RtScope {
    /// Anywhere.
    Global,
    /// Within the site.
    Site,
    /// On the attached link.
    Link,
    /// On this host.
    Host,
    /// Does not exist.
    Nowhere,
    /// A number that somebody chose.
    Other(u8),
}

/// A picture of a network namespace, as far as it was looked at. A part that was not read is empty, so a plan must be
/// made from a picture that covers what the plan's scope names ([`crate::desired::Desired::view`]).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Links.
    pub links: Vec<Link>,
    /// Addresses.
    pub addresses: Vec<Address>,
    /// Routes, with a single next hop.
    pub routes: Vec<Route>,
    /// Rules, in the kernel's order. The same rule may stand there twice.
    pub rules: Vec<Rule>,
    /// Permanent and proxy neighbours.
    pub neighbours: Vec<Neighbour>,
    /// Sysctls that exist.
    pub sysctls: Vec<Sysctl>,
    /// nftables tables.
    pub nft: Vec<NftTable>,
}

impl Observed {
    /// The link of a name.
    #[must_use]
    pub fn link(&self, name: &IfName) -> Option<&Link> {
        self.links.iter().find(|link| link.name == *name)
    }

    /// The first link with an Ethernet address. An ENI is known by it before its name is; skip the kinds that copy
    /// their parent's address (VLAN, macvlan) by [`Link::kind`].
    #[must_use]
    pub fn link_by_mac(&self, mac: MacAddr) -> Option<&Link> {
        self.links.iter().find(|link| link.mac == Some(mac))
    }
}
