//! The addresses by which pods of one family reach what has only the other: never seen outside the node, which puts its own
//! address in their place.
//!
//! They follow from the pod's address of the VPC, so that nobody has to remember them: no two pods of a node have the same, and
//! one goes with its pod. VPC CNI gives pods addresses of 169.254.172.0/22 and fd00::ac:0/118; ours are beside those, because the
//! pods of a node that is taken over keep theirs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// IPv4 addresses of IPv6 pods: link-local ones (RFC 3927), as many as a node has pods' IPv6 addresses.
pub const EGRESS_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 176, 0), 22);

/// IPv6 addresses of IPv4 pods: unique local ones (RFC 4193), with the IPv4 address in the last four bytes.
pub const EGRESS_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0xac, 0, 0), 96);

/// The IPv4 addresses that VPC CNI's egress plugin gives IPv6 pods.
pub const EGRESS_V4_VPC_CNI: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 172, 0), 22);

/// The address by which a pod with `address` leaves in the other family. An IPv6 address needs a number below 1,023 in its
/// /80, as ipamd gives them.
#[must_use]
pub fn egress_of(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => {
            Some(Ipv6Addr::from_bits(EGRESS_V6.network().to_bits() | u128::from(address.to_bits())).into())
        }
        IpAddr::V6(address) => {
            let number = u32::try_from(address.to_bits() & u128::MAX >> 80).ok()?;
            let last = EGRESS_V4.broadcast().to_bits() - EGRESS_V4.network().to_bits();
            (1..last).contains(&number).then(|| Ipv4Addr::from_bits(EGRESS_V4.network().to_bits() | number).into())
        }
    }
}

/// Whether an address is one of these.
#[must_use]
pub fn is_egress(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => EGRESS_V4.contains(&address),
        IpAddr::V6(address) => EGRESS_V6.contains(&address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(address: &str) -> Option<String> {
        egress_of(address.parse().unwrap()).map(|egress| egress.to_string())
    }

    #[test]
    fn each_address_of_a_family_has_one_of_the_other() {
        for (address, egress) in [
            ("3fff:0:0:101:7::1", Some("169.254.176.1")),
            ("3fff:0:0:101:7::3fe", Some("169.254.179.254")),
            // The network's own, its broadcast, and what is beyond the window.
            ("3fff:0:0:101:7::", None),
            ("3fff:0:0:101:7::3ff", None),
            ("3fff:0:0:101:7:1:0:1", None),
            ("10.0.1.60", Some("fd00::ac:a00:13c")),
        ] {
            assert_eq!(of(address).as_deref(), egress, "{address}");
            assert!(egress.is_none_or(|egress| is_egress(egress.parse().unwrap())));
        }
        for other in ["169.254.172.1", "169.254.180.0", "10.0.1.60", "fd00::ac:0", "3fff::1"] {
            assert!(!is_egress(other.parse().unwrap()), "{other}");
        }
    }
}
