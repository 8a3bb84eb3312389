//! Links and the addresses on them.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sluice_contract::id::{IfName, MacAddr};

use super::RtScope;

/// What kind of device a link is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LinkKind {
    /// Hardware, or what looks like it: the kernel names no kind. An ENI is one.
    Physical,
    /// `lo`.
    Loopback,
    /// One end of a veth pair. An ENI of vpcsim is one.
    Veth,
    /// Any other kind, as the kernel names it (`bridge`, `vlan`, ...).
    Other(String),
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: IfName,
    /// Its Ethernet address; none where the link has no such thing.
    pub mac: Option<MacAddr>,
    /// The largest packet, in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Whether it is switched on (`IFF_UP`), which says nothing about the carrier.
    pub up: bool,
    /// What it is.
    pub kind: LinkKind,
    /// The number of the link that it is tied to (a veth's other end, a VLAN's parent), in the namespace
    /// [`Link::peer_netns`].
    pub peer: Option<u32>,
    /// The kernel's id of the namespace of [`Link::peer`], where that is another than the link's own.
    pub peer_netns: Option<i32>,
    /// A free text that stays with the link (`IFLA_IFALIAS`).
    pub alias: Option<String>,
    /// The number of the link that it is a port of: of a bridge, say (`IFLA_MASTER`).
    pub master: Option<u32>,
}

/// An address on an interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Address {
    /// The interface.
    pub dev: IfName,
    /// The address, with the length of the prefix that is on the link.
    pub net: IpNet,
    /// How far it may be used.
    pub scope: RtScope,
    /// IPv6: no duplicate address detection, so the address is usable at once (`IFA_F_NODAD`).
    pub nodad: bool,
    /// The kernel adds no route to the prefix (`IFA_F_NOPREFIXROUTE`).
    pub noprefixroute: bool,
}

impl Address {
    /// A global address that is usable at once.
    #[must_use]
    pub const fn new(dev: IfName, net: IpNet) -> Self {
        Self { dev, net, scope: RtScope::Global, nodad: true, noprefixroute: false }
    }

    /// The same address without the kernel's route to its prefix.
    #[must_use]
    pub const fn without_prefix_route(mut self) -> Self {
        self.noprefixroute = true;
        self
    }

    /// Whether the kernel takes both for the same address: flags may differ.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.dev == other.dev && self.net == other.net
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.net, self.dev)
    }
}
