//! Pods with security groups of their own: each has a branch ENI, which is a VLAN on the link of the instance's trunk ENI.
//!
//! Names, priorities and tables are those of the AWS VPC CNI (reference/vpc-cni.md, 4.9), with one exception: the tables of
//! three VLANs would be the kernel's own ([`table`]).

use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::id::{IfName, InvalidId, VlanId};

/// How the host's interfaces of pods begin where nothing passes by the VPC ([`Mode::Strict`]).
pub const STRICT_PREFIX: &str = "vlan";

/// How the names of the VLANs' links begin.
const LINK_PREFIX: &str = "vlan.eth.";

/// Priority of `iif DEVICE lookup TABLE`, for both interfaces of a pod in strict mode: before the node's own addresses.
pub const RULE_BRANCH: u32 = 10;

/// Priority of `lookup local` where there is strict mode; the kernel has it at [`RULE_ROUTER`].
pub const RULE_LOCAL: u32 = 20;

/// Priority of `from ROUTER lookup local` for IPv6 in strict mode: the router's neighbour discovery is the node's own business.
pub const RULE_ROUTER: u32 = 0;

/// The VPC's router on every link of an ENI, for IPv6 (VPC User Guide, "Subnet CIDR blocks": it answers there on Nitro).
pub const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0xec2, 0, 0, 0, 0, 0, 1);

/// What is added to a VLAN's number for its table.
const TABLES: u32 = 100;

/// What is added once more where that would be a table of the kernel: beyond the tables of all VLANs (4194), and before those
/// of further network cards (10100).
const BESIDE_THE_KERNELS: u32 = 5000;

/// Whether traffic of pods with security groups of their own is always judged by those
/// (`POD_SECURITY_GROUP_ENFORCING_MODE`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// All of it goes by the branch ENI, also between a pod and its own node.
    #[default]
    Strict,
    /// What stays on the node does not leave it, and what leaves the VPC leaves by the primary ENI.
    Standard,
}

/// The route table of a VLAN: its number and 100. For the VLANs 153 to 155 that would be `default`, `main` and `local` of the
/// kernel, into which the VPC CNI then writes; here they have 5253 to 5255.
#[must_use]
pub fn table(vlan: VlanId) -> u32 {
    match TABLES + u32::from(vlan.get()) {
        kernels @ 253..=255 => kernels + BESIDE_THE_KERNELS,
        table => table,
    }
}

/// The VLAN that has a table; none for tables of others.
#[must_use]
pub fn vlan_of_table(of: u32) -> Option<VlanId> {
    let plain = if of > BESIDE_THE_KERNELS { of - BESIDE_THE_KERNELS } else { of };
    let number = u16::try_from(plain.checked_sub(TABLES)?).ok()?;
    VlanId::new(number).ok().filter(|vlan| table(*vlan) == of)
}

/// The link of a VLAN: `vlan.eth.NUMBER`.
///
/// # Errors
/// Never: every number makes a name.
pub fn link(vlan: VlanId) -> Result<IfName, InvalidId> {
    IfName::new(format!("{LINK_PREFIX}{vlan}"))
}

/// The VLAN whose link has this name, if one has.
#[must_use]
pub fn vlan_of_link(name: &IfName) -> Option<VlanId> {
    let digits = name.as_str().strip_prefix(LINK_PREFIX)?;
    let vlan = VlanId::new(digits.parse().ok()?).ok()?;
    (vlan.to_string() == digits).then_some(vlan)
}

/// What the host's interface of a pod is called that would be called `host` without a branch ENI: in strict mode the same hash
/// behind `vlan`, so that what is said of all other pods' interfaces is not said of it.
#[must_use]
pub fn host_name(host: &IfName, mode: Mode) -> IfName {
    let hash = host.as_str().len().checked_sub(11).and_then(|at| host.as_str().get(at..));
    match (mode, hash) {
        (Mode::Strict, Some(hash)) => IfName::new(format!("{STRICT_PREFIX}{hash}")).unwrap_or_else(|_| host.clone()),
        _ => host.clone(),
    }
}

/// The router of a branch ENI's subnet in the family of `address`: the second address of `subnet` for IPv4.
#[must_use]
pub fn router(address: IpAddr, subnet: ipnet::IpNet) -> IpAddr {
    match (address, subnet) {
        (IpAddr::V4(_), ipnet::IpNet::V4(net)) => {
            std::net::Ipv4Addr::from_bits(net.network().to_bits().saturating_add(1)).into()
        }
        _ => ROUTER_V6.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vlan(number: u16) -> VlanId {
        VlanId::new(number).unwrap()
    }

    #[test]
    fn tables_are_those_of_the_vpc_cni_and_never_the_kernels() {
        assert_eq!(table(vlan(1)), 101);
        assert_eq!(table(vlan(7)), 107);
        assert_eq!(table(vlan(152)), 252);
        assert_eq!([153, 154, 155].map(|number| table(vlan(number))), [5253, 5254, 5255]);
        assert_eq!(table(vlan(156)), 256);
        assert_eq!(table(vlan(4094)), 4194);
    }

    #[test]
    fn every_vlan_has_a_table_and_a_link_of_its_own_and_is_known_by_both() {
        let mut tables = std::collections::BTreeSet::new();
        for number in 1..=4094 {
            let vlan = vlan(number);
            assert!(tables.insert(table(vlan)), "{vlan}");
            assert_eq!(vlan_of_table(table(vlan)), Some(vlan));
            assert_eq!(vlan_of_link(&link(vlan).unwrap()), Some(vlan));
        }
        for foreign in [0, 1, 2, 100, 253, 254, 255, 4195, 5000, 5101, 5252, 5256, 10_100, u32::MAX] {
            assert_eq!(vlan_of_table(foreign), None, "{foreign}");
        }
        for foreign in ["vlan.eth.0", "vlan.eth.07", "vlan.eth.4095", "vlan.eth.", "vlan7", "eth0"] {
            assert_eq!(vlan_of_link(&IfName::new(foreign).unwrap()), None, "{foreign}");
        }
    }

    #[test]
    fn only_in_strict_mode_has_the_hosts_interface_another_name() {
        let host = IfName::new("enicc21c2d7785").unwrap();
        assert_eq!(host_name(&host, Mode::Strict).as_str(), "vlancc21c2d7785");
        assert_eq!(host_name(&host, Mode::Standard), host);
        let own = IfName::new("xcc21c2d7785").unwrap();
        assert_eq!(host_name(&own, Mode::Strict).as_str(), "vlancc21c2d7785");
    }

    #[test]
    fn a_subnets_router_is_its_second_address() {
        let router =
            |address: &str, subnet: &str| router(address.parse().unwrap(), subnet.parse().unwrap()).to_string();
        assert_eq!(router("10.0.2.30", "10.0.2.0/24"), "10.0.2.1");
        assert_eq!(router("10.0.2.30", "10.0.2.77/24"), "10.0.2.1");
        assert_eq!(router("2001:db8::30", "2001:db8::/64"), "fe80:ec2::1");
    }
}
