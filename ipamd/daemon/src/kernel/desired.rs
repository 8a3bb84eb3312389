//! What the host's network should be like: pure, and compared as text with the golden node of VPC CNI in the tests.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use sluice_contract::id::IfName;
use sluice_contract::node::{RULE_EXTERNAL_SERVICE, RULE_FROM_ENI, RULE_PRIMARY_ENI_MARK, TABLE_MAIN};
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
    let marked = restores_marks(node).then(|| Rule::mark(Family::V4, RULE_PRIMARY_ENI_MARK, mark, TABLE_MAIN));
    let services = node.config.external_services.iter();
    Ok(Desired {
        scope: Scope {
            rules: BTreeSet::from([
                RuleScope::priority(Family::V4, RULE_PRIMARY_ENI_MARK),
                RuleScope::priority(Family::V4, RULE_EXTERNAL_SERVICE),
            ]),
            nft: BTreeSet::from([table()]),
            ..Scope::default()
        },
        links: vec![LinkSettings { dev: primary.clone(), up: None, mtu: Some(node.config.eni_mtu) }],
        rules: marked
            .into_iter()
            .chain(services.map(|cidr| Rule::to(RULE_EXTERNAL_SERVICE, IpNet::from(*cidr), TABLE_MAIN)))
            .collect(),
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
    let ports = match randomize_snat {
        RandomizeSnat::Prng => " fully-random",
        RandomizeSnat::Hashrandom => " random",
        RandomizeSnat::None => "",
    };
    let untranslated = untranslated(node);
    let mut body = String::new();
    if *node_port_support {
        let mark = format!("iifname \"{primary}\" fib daddr . iif type local ct mark set ct mark or {connmark:#x}");
        body += &chain("node-port", "type filter hook prerouting priority mangle", &[mark]);
    }
    if restores_marks(node) {
        let pods = format!("iifname \"{veth_prefix}*\"");
        let leaves = untranslated.as_ref().map(|cidrs| {
            format!(
                "{pods} ct state new ip daddr != {cidrs} fib daddr type != local ct mark set ct mark or {connmark:#x}"
            )
        });
        let restore =
            format!("{pods} ct mark and {connmark:#x} == {connmark:#x} meta mark set meta mark or {connmark:#x}");
        let rules: Vec<String> = leaves.into_iter().chain([restore]).collect();
        body += &chain("outbound", "type filter hook prerouting priority dstnat + 10", &rules);
    }
    if let Some(cidrs) = untranslated {
        let ip = node.primary_ip;
        let snat = format!("oifname != \"vlan*\" ip daddr != {cidrs} fib daddr type != local snat to {ip}{ports}");
        body += &chain("leave-vpc", "type nat hook postrouting priority srcnat", &[snat]);
    }
    body
}

fn chain(name: &str, hook: &str, rules: &[String]) -> String {
    let rules: String = rules.iter().map(|rule| format!("\t\t{rule}\n")).collect();
    format!("\tchain {name} {{\n\t\t{hook}; policy accept;\n{rules}\t}}\n")
}

/// Whether marks of connections have to be put on their packets.
const fn restores_marks(node: &NodeNetwork) -> bool {
    node.config.node_port_support || !node.config.external_snat
}

/// Where packets keep their source, as an nft set: sorted, without what lies inside others, never empty, which nft would
/// refuse. None when they keep it everywhere.
fn untranslated(node: &NodeNetwork) -> Option<String> {
    let mut cidrs: Vec<Ipv4Net> = node.vpc_cidrs.iter().chain(&node.config.exclude_snat).copied().collect();
    if node.config.external_snat || cidrs.iter().any(|cidr| cidr.prefix_len() == 0) {
        return None;
    }
    if cidrs.is_empty() {
        cidrs.push(Ipv4Net::from(node.primary_ip));
    }
    cidrs = Ipv4Net::aggregate(&cidrs);
    cidrs.sort_unstable();
    let elements: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
    Some(format!("{{ {} }}", elements.join(", ")))
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
            rules: BTreeSet::from([rule_scope(eni.table)]),
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

/// Nothing of the secondary ENI that had this table; its link may be gone.
#[must_use]
pub fn no_eni(table: u32) -> Desired {
    Desired {
        scope: Scope {
            routes: BTreeSet::from([RouteScope::table(table, Family::V4)]),
            rules: BTreeSet::from([rule_scope(table)]),
            ..Scope::default()
        },
        ..Desired::default()
    }
}

fn rule(eni: &EniNetwork) -> Rule {
    Rule::from(RULE_FROM_ENI, host_prefix(eni.primary_ip.into()), eni.table)
}

const fn rule_scope(table: u32) -> RuleScope {
    RuleScope { family: Family::V4, priority: RULE_FROM_ENI, table: Some(table) }
}

#[cfg(test)]
mod tests;
