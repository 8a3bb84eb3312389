//! Neighbours that somebody set down.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use sluice_contract::id::{IfName, MacAddr};

/// What is set down about an address on a link. What the kernel learns by itself is not represented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NeighbourKind {
    /// It has this Ethernet address, for good.
    Permanent(MacAddr),
    /// This host answers for it (`ip neigh add proxy`).
    Proxy,
}

/// An entry of the neighbour table that somebody set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Neighbour {
    /// The interface.
    pub dev: IfName,
    /// The neighbour's address.
    pub address: IpAddr,
    /// What is set down.
    pub kind: NeighbourKind,
}

impl Neighbour {
    /// `ADDRESS dev DEV lladdr MAC nud permanent`.
    #[must_use]
    pub const fn permanent(dev: IfName, address: IpAddr, mac: MacAddr) -> Self {
        Self { dev, address, kind: NeighbourKind::Permanent(mac) }
    }

    /// `proxy ADDRESS dev DEV`.
    #[must_use]
    pub const fn proxy(dev: IfName, address: IpAddr) -> Self {
        Self { dev, address, kind: NeighbourKind::Proxy }
    }

    /// Whether one takes the other's place: a permanent and a proxy entry of one address live side by side.
    #[must_use]
    pub fn is_same_entry(&self, other: &Self) -> bool {
        self.dev == other.dev
            && self.address == other.address
            && matches!(self.kind, NeighbourKind::Proxy) == matches!(other.kind, NeighbourKind::Proxy)
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            NeighbourKind::Permanent(mac) => write!(f, "{} dev {} lladdr {mac}", self.address, self.dev),
            NeighbourKind::Proxy => write!(f, "proxy {} dev {}", self.address, self.dev),
        }
    }
}
