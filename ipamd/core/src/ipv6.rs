//! IPv6 of pods: which families they have, and which addresses of an ENI's /80.
//!
//! EC2 delegates /80s to an ENI. One is enough for any node, so there is no pool to size: what has to be kept is only which
//! of its addresses lives.
//!
//! - Pods of IPv6 alone take the first [`WINDOW`] addresses of the primary ENI's /80. The ledger keeps each of them as it
//!   keeps IPv4 addresses: owner, cooldown and quarantine are the same.
//! - Pods of both families take the IPv6 address that belongs to their IPv4 address ([`companion`]). One state stands for
//!   both, so that neither can be given out, cool or be reused without the other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// The prefix length of what EC2 delegates (EC2 User Guide, "Prefix delegation").
pub const DELEGATED: u8 = 80;

/// Addresses of a /80 that pods may have: more than any node has pods, with room for those that cool.
///
/// They are numbered from 1; 0 is the prefix's anycast address of routers (RFC 4291, section 2.6.1).
pub const WINDOW: u16 = 1022;

/// The address families of pods (`ENABLE_IPv4`, `ENABLE_IPv6`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Families {
    /// IPv4.
    #[default]
    V4,
    /// IPv6, all of it on the primary ENI; further interfaces of pods have theirs on one ENI of each further network card.
    V6,
    /// Both, from the same ENI.
    Dual,
}

impl Families {
    /// Whether pods have IPv4 addresses of the VPC.
    #[must_use]
    pub const fn has_v4(self) -> bool {
        matches!(self, Self::V4 | Self::Dual)
    }

    /// Whether pods have IPv6 addresses of the VPC.
    #[must_use]
    pub const fn has_v6(self) -> bool {
        matches!(self, Self::V6 | Self::Dual)
    }
}

/// A /80 that an ENI has, and of which pods' addresses are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegation {
    /// The /80.
    pub net: Ipv6Net,
    /// When it came into the ledger.
    pub since: Timestamp,
}

/// The IPv6 address of a pod that has the IPv4 address `address` on an ENI with the /80 `net`: the IPv4 address is its
/// last four bytes. Two pods of one ENI differ in it as they do in IPv4, and two ENIs have two /80s.
#[must_use]
pub fn companion(net: Ipv6Net, address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(net.network().to_bits() | u128::from(address.to_bits()))
}

/// The IPv4 address whose companion in `net` is `address`.
#[must_use]
pub fn anchor(net: Ipv6Net, address: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = net.contains(&address).then(|| address.to_bits() & !net.netmask().to_bits())?;
    u32::try_from(bits).ok().map(Ipv4Addr::from_bits)
}

/// Whether it is what EC2 assigns to an ENI for its pods: an IPv4 address, a /28, or a /80 (EC2 User Guide, "Prefix
/// delegation").
#[must_use]
pub const fn is_block(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => matches!(net.prefix_len(), 28 | 32),
        IpNet::V6(net) => net.prefix_len() == DELEGATED,
    }
}

/// Whether a block is a prefix, not a single address.
#[must_use]
pub fn is_prefix(net: &IpNet) -> bool {
    net.prefix_len() < net.max_prefix_len()
}

/// A block as IPv4's pool has it; nothing for a /80, which no pool grows or gives back.
#[must_use]
pub const fn pooled(net: &IpNet) -> Option<Ipv4Net> {
    match net {
        IpNet::V4(net) => Some(*net),
        IpNet::V6(_) => None,
    }
}

/// The addresses of a block that pods may have: all of IPv4's, the first and the last of a prefix included, since EC2
/// routes them all to the ENI; the window of a /80.
pub fn hosts(net: IpNet) -> impl Iterator<Item = IpAddr> {
    let (v4, v6) = match net {
        IpNet::V4(net) => (Some(net.network().to_bits()..=net.broadcast().to_bits()), None),
        IpNet::V6(net) => (None, Some((1..=WINDOW).map(move |n| net.network().to_bits() | u128::from(n)))),
    };
    let v4 = v4.into_iter().flatten().map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)));
    v4.chain(v6.into_iter().flatten().map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_companion_leads_back_to_its_address() {
        let net: Ipv6Net = "2600:1f14:5e8:9000:7::/80".parse().unwrap();
        let address = Ipv4Addr::new(10, 0, 1, 200);
        assert_eq!(companion(net, address), "2600:1f14:5e8:9000:7::a00:1c8".parse::<Ipv6Addr>().unwrap());
        assert_eq!(anchor(net, companion(net, address)), Some(address));
        assert_eq!(anchor(net, "2600:1f14:5e8:9000:7:1:a00:1c8".parse().unwrap()), None);
        assert_eq!(anchor(net, "2600:1f14:5e8:9000:8::a00:1c8".parse().unwrap()), None);
    }

    #[test]
    fn a_block_has_its_addresses_and_a_delegated_prefix_its_window() {
        let count = |net: &str| hosts(net.parse().unwrap()).count();
        assert_eq!((count("10.0.0.7/32"), count("10.0.0.16/28")), (1, 16));
        let window: Vec<IpAddr> = hosts("2001:db8:0:0:7::/80".parse().unwrap()).collect();
        assert_eq!(window.len(), usize::from(WINDOW));
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(window.first(), Some(&address("2001:db8:0:0:7::1")));
        assert_eq!(window.last(), Some(&address("2001:db8:0:0:7::3fe")));
    }
}
