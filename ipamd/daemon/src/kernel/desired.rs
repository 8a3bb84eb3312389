//! What the host's network should be like: pure, and compared as text with the golden node of VPC CNI in the tests.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use sluice_contract::id::IfName;
use sluice_contract::node::{RULE_FROM_ENI, RULE_PRIMARY_ENI_MARK, TABLE_MAIN};
use sluice_hostnet::desired::{Desired, Devices, LinkSettings, RouteScope, RuleScope, Scope};
use sluice_hostnet::state::{
    Address, Family, InvalidSysctlKey, Mark, NftFamily, NftTableId, Protocol, Route, Rule, Sysctl, SysctlKey,
    host_prefix,
};

use super::{EniNetwork, NodeNetwork};
use crate::config::{NetworkConfig, RandomizeSnat};

/// Our nftables table, `ip sluice`.
#[must_use]
pub fn table() -> NftTableId {
    NftTableId::new(NftFamily::Ip, "sluice")
}

/// The node's own part, its nftables table apart ([`ruleset`]). `primary` is the primary ENI's link.
///
/// # Errors
/// [`InvalidSysctlKey`] when a sysctl's name cannot be made of the link's.
pub fn node(node: &NodeNetwork, primary: &IfName) -> Result<Desired, InvalidSysctlKey> {
    let mark = Mark { value: node.config.connmark, mask: node.config.connmark };
    let early_demux = u8::from(!node.config.disable_tcp_early_demux);
    Ok(Desired {
        scope: Scope {
            rules: BTreeSet::from([RuleScope::priority(Family::V4, RULE_PRIMARY_ENI_MARK)]),
            nft: BTreeSet::from([table()]),
            ..Scope::default()
        },
        links: vec![LinkSettings { dev: primary.clone(), up: None, mtu: Some(node.config.eni_mtu) }],
        rules: vec![Rule::mark(Family::V4, RULE_PRIMARY_ENI_MARK, mark, TABLE_MAIN)],
        sysctls: vec![
            // The kernel resets per-interface settings when this changes, so it comes first.
            Sysctl::new(SysctlKey::new("net/ipv4/ip_forward")?, 1),
            // Replies to what was translated come in by the primary ENI although the pod's route leads out by another.
            Sysctl::new(SysctlKey::of_interface(Family::V4, primary, "rp_filter")?, 2),
            Sysctl::new(SysctlKey::new("net/ipv4/tcp_early_demux")?, early_demux),
        ],
        ..Desired::default()
    })
}

/// The body of our nftables table.
///
/// - `node-port`: connections that come in by the primary ENI to an address of the node are marked, so that the replies
///   of a pod on another ENI leave by the primary one.
/// - `outbound`: connections that pods open to outside the VPC are marked too: only the primary ENI's address is
///   translated on its way out. It comes after destination translation (-100), whoever does it, and looks at where the
///   packet really goes. A chain of type `nat` would not do: it is passed over when an earlier one has translated.
/// - `leave-vpc`: what leaves the VPC gets the node's address.
#[must_use]
pub fn ruleset(node: &NodeNetwork, primary: &IfName) -> String {
    let NetworkConfig { connmark, veth_prefix, randomize_snat, node_port_support, .. } = &node.config;
    let cidrs = cidr_set(&node.vpc_cidrs, node.primary_ip);
    let node_port = if *node_port_support {
        format!(
            "chain node-port {{
\t\ttype filter hook prerouting priority mangle; policy accept;
\t\tiifname \"{primary}\" fib daddr . iif type local ct mark set ct mark or {connmark:#x}
\t}}
\t"
        )
    } else {
        String::new()
    };
    let ports = match randomize_snat {
        RandomizeSnat::Prng => " fully-random",
        RandomizeSnat::Hashrandom => " random",
        RandomizeSnat::None => "",
    };
    format!(
        "\t{node_port}chain outbound {{
\t\ttype filter hook prerouting priority dstnat + 10; policy accept;
\t\tiifname \"{veth_prefix}*\" ct state new ip daddr != {cidrs} fib daddr type != local ct mark set ct mark or {connmark:#x}
\t\tiifname \"{veth_prefix}*\" ct mark and {connmark:#x} == {connmark:#x} meta mark set meta mark or {connmark:#x}
\t}}
\tchain leave-vpc {{
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\toifname != \"vlan*\" ip daddr != {cidrs} fib daddr type != local snat to {ip}{ports}
\t}}
",
        ip = node.primary_ip
    )
}

/// The CIDRs as an nft set: sorted, without those inside others. It is never empty, which nft would refuse.
fn cidr_set(cidrs: &[Ipv4Net], fallback: Ipv4Addr) -> String {
    let mut cidrs = Ipv4Net::aggregate(&cidrs.to_vec());
    cidrs.sort_unstable();
    if cidrs.is_empty() {
        cidrs.push(Ipv4Net::from(fallback));
    }
    let elements: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
    format!("{{ {} }}", elements.join(", "))
}

/// The router of a subnet: its second address (VPC User Guide, "Subnet CIDR blocks").
#[must_use]
pub fn router(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()).saturating_add(1))
}

/// A secondary ENI's part. `dev` is its link.
#[must_use]
pub fn eni(eni: &EniNetwork, dev: &IfName) -> Desired {
    let router = IpAddr::from(router(eni.subnet));
    let own = IpNet::from(Ipv4Net::new(eni.primary_ip, eni.subnet.prefix_len()).unwrap_or(eni.subnet));
    Desired {
        scope: Scope {
            addresses: BTreeSet::from([dev.clone()]),
            routes: BTreeSet::from([
                RouteScope::table(eni.table, Family::V4),
                // The kernel's route to the subnet would take what leaves by the primary ENI.
                RouteScope {
                    table: TABLE_MAIN,
                    family: Family::V4,
                    devices: Devices::Named(dev.clone()),
                    protocols: Some(BTreeSet::from([Protocol::KERNEL])),
                },
            ]),
            rules: BTreeSet::from([rule_scope(eni)]),
            ..Scope::default()
        },
        links: vec![LinkSettings { dev: dev.clone(), up: Some(true), mtu: Some(eni.mtu) }],
        addresses: vec![Address::new(dev.clone(), own).without_prefix_route()],
        routes: vec![
            Route::on_link(eni.table, host_prefix(router), dev.clone()),
            Route::default_via(eni.table, router, dev.clone()),
        ],
        rules: vec![rule(eni)],
        ..Desired::default()
    }
}

/// Nothing of a secondary ENI whose link may be gone.
#[must_use]
pub fn no_eni(eni: &EniNetwork) -> Desired {
    Desired {
        scope: Scope {
            routes: BTreeSet::from([RouteScope::table(eni.table, Family::V4)]),
            rules: BTreeSet::from([rule_scope(eni)]),
            ..Scope::default()
        },
        ..Desired::default()
    }
}

fn rule(eni: &EniNetwork) -> Rule {
    Rule::from(RULE_FROM_ENI, host_prefix(eni.primary_ip.into()), eni.table)
}

const fn rule_scope(eni: &EniNetwork) -> RuleScope {
    RuleScope { family: Family::V4, priority: RULE_FROM_ENI, table: Some(eni.table) }
}

#[cfg(test)]
mod tests;
