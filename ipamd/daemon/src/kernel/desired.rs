//! What the host's network should be like: pure, and compared as text with the golden node of VPC CNI in the tests.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use sluice_contract::id::IfName;
use sluice_contract::node::branch::{
    Mode, ROUTER_V6, RULE_BRANCH, RULE_LOCAL, RULE_ROUTER, STRICT_PREFIX, vlan_of_table,
};
use sluice_contract::node::egress::{EGRESS_V4, EGRESS_V4_VPC_CNI, EGRESS_V6};
use sluice_contract::node::{RULE_EXTERNAL_SERVICE, RULE_FROM_ENI, RULE_PRIMARY_ENI_MARK, TABLE_MAIN};
use sluice_hostnet::desired::{Desired, Devices, LinkSettings, RouteScope, RuleScope, Scope};
use sluice_hostnet::state::{
    Address, Family, InvalidSysctlKey, Mark, NftFamily, NftTableId, Protocol, Route, Rule, Sysctl, SysctlKey,
    TABLE_LOCAL, host_prefix,
};

use sluice_ipamd_core::ipv6::Families;

use super::{EniNetwork, NodeNetwork};
use crate::config::{NetworkConfig, RandomizeSnat};

/// Our nftables table of a family, `ip sluice` or `ip6 sluice`.
#[must_use]
pub fn table(family: Family) -> NftTableId {
    let family = match family {
        Family::V4 => NftFamily::Ip,
        Family::V6 => NftFamily::Ip6,
    };
    NftTableId::new(family, "sluice")
}

/// The node's own part, its nftables table apart ([`ruleset`]). `primary` is the primary ENI's link.
///
/// # Errors
/// [`InvalidSysctlKey`] when a sysctl's name cannot be made of the link's.
pub fn node(node: &NodeNetwork, primary: &IfName) -> Result<Desired, InvalidSysctlKey> {
    let mark = Mark { value: node.config.connmark, mask: node.config.connmark };
    let early_demux = u8::from(!node.config.disable_tcp_early_demux);
    let marked = Family::ALL
        .into_iter()
        .filter(|family| restores_marks(node, *family))
        .map(|family| Rule::mark(family, RULE_PRIMARY_ENI_MARK, mark, TABLE_MAIN));
    let mut sysctls = vec![
        // The kernel resets per-interface settings when this changes, so it comes first.
        Sysctl::new(SysctlKey::new("net/ipv4/ip_forward")?, 1),
        // Replies to what was translated come in by the primary ENI although the pod's route leads out by another.
        Sysctl::new(SysctlKey::of_interface(Family::V4, primary, "rp_filter")?, 2),
        Sysctl::new(SysctlKey::new("net/ipv4/tcp_early_demux")?, early_demux),
    ];
    if node.config.carries(Family::V6) {
        sysctls.push(Sysctl::new(SysctlKey::new("net/ipv6/conf/all/disable_ipv6")?, 0));
        // Before forwarding, which makes the kernel drop the default route that it has from an advertisement unless
        // advertisements are heard by routers too.
        sysctls.push(Sysctl::new(SysctlKey::of_interface(Family::V6, primary, "accept_ra")?, 2));
        sysctls.push(Sysctl::new(SysctlKey::new("net/ipv6/conf/all/forwarding")?, 1));
    }
    let services = node.config.external_services.iter();
    let mut scope = BTreeSet::from([
        RuleScope::priority(Family::V4, RULE_PRIMARY_ENI_MARK),
        RuleScope::priority(Family::V6, RULE_PRIMARY_ENI_MARK),
        RuleScope::priority(Family::V4, RULE_EXTERNAL_SERVICE),
    ]);
    let strict = strict_rules(node);
    // The kernel's own rule, once the one that takes its place is there.
    let kernels = |rule: &Rule| RuleScope { family: rule.family, priority: RULE_ROUTER, table: Some(TABLE_LOCAL) };
    scope.extend(strict.iter().map(kernels));
    Ok(Desired {
        scope: Scope { rules: scope, nft: Family::ALL.map(table).into(), ..Scope::default() },
        links: vec![LinkSettings { dev: primary.clone(), up: None, mtu: Some(node.config.eni_mtu) }],
        rules: marked
            .chain(services.map(|cidr| Rule::to(RULE_EXTERNAL_SERVICE, IpNet::from(*cidr), TABLE_MAIN)))
            .chain(strict)
            .collect(),
        sysctls,
        ..Desired::default()
    })
}

/// With strict security groups of pods, what comes by a pod's interfaces is not for the node, also where it goes to an address of
/// the node: the node's own addresses come after the rules that say so. What the VPC's router says to the node itself comes before.
/// A node that has been strict keeps them; nothing but those rules is in between.
fn strict_rules(node: &NodeNetwork) -> Vec<Rule> {
    let NetworkConfig { families, pod_eni, .. } = &node.config;
    let mut rules = Vec::new();
    if *pod_eni == Some(Mode::Strict) {
        if families.has_v4() {
            rules.push(Rule::all(Family::V4, RULE_LOCAL, TABLE_LOCAL));
        }
        if families.has_v6() {
            rules.push(Rule::all(Family::V6, RULE_LOCAL, TABLE_LOCAL));
            rules.push(Rule::from(RULE_ROUTER, host_prefix(ROUTER_V6.into()), TABLE_LOCAL));
        }
    }
    rules
}

/// Our nftables tables: each family's that pods have, with its body.
#[must_use]
pub fn rulesets(node: &NodeNetwork, primary: &IfName) -> Vec<(NftTableId, String)> {
    let bodies = [(Family::V4, ruleset(node, primary)), (Family::V6, ruleset_v6(node, primary))];
    let wanted = bodies.into_iter().filter(|(family, body)| *family == Family::V4 || !body.is_empty());
    wanted.map(|(family, body)| (table(family), body)).collect()
}

/// The body of our table for IPv6: connections to NodePorts, as for IPv4. Nothing is translated but what pods of IPv4 alone
/// send, and pods that have their addresses of the primary ENI need no mark.
fn ruleset_v6(node: &NodeNetwork, primary: &IfName) -> String {
    if !node.config.carries(Family::V6) {
        return String::new();
    }
    let mut body = guard(node, Family::V6);
    if restores_marks(node, Family::V6) {
        body += &node_port(node, primary);
        body += &chain("outbound", OUTBOUND, &[restore(node)]);
    }
    if node.config.egress == Some(Family::V6) {
        // The node's address is whichever the primary ENI has.
        body += &egress(&format!("ip6 daddr {EGRESS_V6}"));
        let ports = ports(node);
        let leaves = format!("ip6 saddr {EGRESS_V6} ip6 daddr != ff00::/8 masquerade{ports}");
        body += &chain("leave-node", LEAVE, &[leaves]);
    }
    body
}

/// Addresses for egress alone are of no use to anybody but their pods: nobody opens a connection to one, be it a pod of the same
/// node.
fn egress(to: &str) -> String {
    let refused = format!("{to} ct state new counter reject");
    chain("egress-only", "type filter hook forward priority filter", &[refused])
}

/// How the source ports of translated connections are picked, as nft says it behind an address.
const fn ports(node: &NodeNetwork) -> &'static str {
    match node.config.randomize_snat {
        RandomizeSnat::Prng => " fully-random",
        RandomizeSnat::Hashrandom => " random",
        RandomizeSnat::None => "",
    }
}

/// The instance metadata service (EC2 User Guide, "Access instance metadata").
const METADATA: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(169, 254, 169, 254), Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254));

/// What pods may not do whoever they are:
///
/// - `own-address`: send from an address that is not routed to the interface that they send by. It comes before connection
///   tracking, so that forged packets leave nothing there. Neighbours speak from link-local addresses, and from `::` before they
///   have one.
/// - `metadata`, if it is wanted: reach the instance metadata service.
/// - `branch-only`, with strict security groups of pods: leave by another interface than a VLAN. A VLAN's table is empty while its
///   link is down, and has nothing for a family that the branch ENI has no address of: the main table would lead to the primary
///   ENI then, past the pod's security groups.
fn guard(node: &NodeNetwork, family: Family) -> String {
    let NetworkConfig { veth_prefix, block_metadata, .. } = &node.config;
    let pods = format!("iifname \"{veth_prefix}*\"");
    let (of, service) = match family {
        Family::V4 => ("", format!("ip daddr {}", METADATA.0)),
        Family::V6 => (" ip6 saddr != { ::, fe80::/10 }", format!("ip6 daddr {}", METADATA.1)),
    };
    let own = format!("{pods}{of} fib saddr . iif oif missing counter drop");
    let mut body = chain("own-address", "type filter hook prerouting priority raw", &[own]);
    if *block_metadata {
        let refused = |pods: &str| format!("{pods} {service} counter reject");
        let strict = (node.config.pod_eni == Some(Mode::Strict)).then(|| format!("iifname \"{STRICT_PREFIX}*\""));
        let rules: Vec<String> = std::iter::once(&pods).chain(&strict).map(|pods| refused(pods)).collect();
        body += &chain("metadata", "type filter hook forward priority filter", &rules);
    }
    if node.config.pod_eni == Some(Mode::Strict) {
        let astray = format!("iifname \"{STRICT_PREFIX}*\" oifname != \"{STRICT_PREFIX}*\" counter drop");
        body += &chain("branch-only", "type filter hook forward priority filter", &[astray]);
    }
    body
}

/// Marks connections that come in by the primary ENI to an address of the node.
fn node_port(node: &NodeNetwork, primary: &IfName) -> String {
    let connmark = node.config.connmark;
    let mark = format!("iifname \"{primary}\" fib daddr . iif type local ct mark set ct mark or {connmark:#x}");
    chain("node-port", "type filter hook prerouting priority mangle", &[mark])
}

/// Puts the mark of a connection on what a pod sends.
fn restore(node: &NodeNetwork) -> String {
    let NetworkConfig { connmark, veth_prefix, .. } = &node.config;
    format!(
        "iifname \"{veth_prefix}*\" ct mark and {connmark:#x} == {connmark:#x} meta mark set meta mark or {connmark:#x}"
    )
}

/// Where sources are translated.
const LEAVE: &str = "type nat hook postrouting priority srcnat";

/// Where the chain `outbound` is hooked.
const OUTBOUND: &str = "type filter hook prerouting priority dstnat + 10";

/// The body of our table for IPv4.
///
/// - `own-address` and `metadata`: what pods may not do.
/// - `node-port`: connections that come in by the primary ENI to an address of the node are marked, so that the replies
///   of a pod on another ENI leave by the primary one.
/// - `outbound`: connections that pods open to outside the VPC are marked too: only the primary ENI's address is
///   translated on its way out. It comes after destination translation (-100), whoever does it, and looks at where the
///   packet really goes. A chain of type `nat` would not do: it is passed over when an earlier one has translated.
/// - `leave-vpc`: what leaves the VPC gets the node's address; with `SLUICE_SNAT_BY_ENI` that of the ENI by which it leaves, which
///   then is its pod's, because it is not marked.
/// - `leave-node`, where pods have IPv6 alone: what they send by IPv4 gets the node's address wherever it goes, and
///   `egress-only`: nobody else reaches their addresses of that family.
#[must_use]
pub fn ruleset(node: &NodeNetwork, primary: &IfName) -> String {
    let NetworkConfig { connmark, veth_prefix, .. } = &node.config;
    let (ip, ports) = (node.primary_ip, ports(node));
    let untranslated = untranslated(node);
    let mut body = if node.config.carries(Family::V4) { guard(node, Family::V4) } else { String::new() };
    if node.config.node_port_support && node.config.families.has_v4() {
        body += &node_port(node, primary);
    }
    if restores_marks(node, Family::V4) {
        let pods = format!("iifname \"{veth_prefix}*\"");
        let marked = untranslated.as_ref().filter(|_| !node.config.snat_by_eni);
        let leaves = marked.map(|cidrs| {
            format!(
                "{pods} ct state new ip daddr != {cidrs} fib daddr type != local ct mark set ct mark or {connmark:#x}"
            )
        });
        let rules: Vec<String> = leaves.into_iter().chain([restore(node)]).collect();
        body += &chain("outbound", OUTBOUND, &rules);
    }
    if let Some(cidrs) = untranslated {
        let leaving = format!("ip daddr != {cidrs} fib daddr type != local");
        let rules = if node.config.snat_by_eni {
            // A secondary ENI's link has its own address and no other of IPv4.
            vec![
                format!("oifname \"{primary}\" {leaving} snat to {ip}{ports}"),
                format!("oifname != \"vlan*\" oifname != \"{primary}\" {leaving} masquerade{ports}"),
            ]
        } else {
            vec![format!("oifname != \"vlan*\" {leaving} snat to {ip}{ports}")]
        };
        body += &chain("leave-vpc", LEAVE, &rules);
    }
    if node.config.egress == Some(Family::V4) {
        // VPC CNI refuses the same for the pods that it has made; they may be here still.
        body += &egress(&format!("ip daddr {{ {EGRESS_V4_VPC_CNI}, {EGRESS_V4} }}"));
        let leaves = format!("ip saddr {EGRESS_V4} ip daddr != 224.0.0.0/4 snat to {ip}{ports}");
        body += &chain("leave-node", LEAVE, &[leaves]);
    }
    body
}

fn chain(name: &str, hook: &str, rules: &[String]) -> String {
    let rules: String = rules.iter().map(|rule| format!("\t\t{rule}\n")).collect();
    format!("\tchain {name} {{\n\t\t{hook}; policy accept;\n{rules}\t}}\n")
}

/// Whether marks of connections have to be put on their packets: where pods can be on other ENIs than the primary one.
const fn restores_marks(node: &NodeNetwork, family: Family) -> bool {
    let NetworkConfig { families, node_port_support, external_snat, .. } = &node.config;
    match family {
        Family::V4 => families.has_v4() && (*node_port_support || !*external_snat),
        Family::V6 => matches!(families, Families::Dual) && *node_port_support,
    }
}

/// Where packets keep their source, as an nft set: sorted, without what lies inside others, never empty, which nft would
/// refuse. None when they keep it everywhere.
fn untranslated(node: &NodeNetwork) -> Option<String> {
    if node.config.external_snat || !node.config.families.has_v4() {
        return None;
    }
    let networks = [&node.vpc_cidrs, &node.routed_cidrs, &node.config.exclude_snat];
    let named: Vec<Ipv4Net> = networks.into_iter().flatten().copied().collect();
    let mut cidrs = Ipv4Net::aggregate(&named);
    // Two halves of everything are everything.
    if cidrs.iter().any(|cidr| cidr.prefix_len() == 0) {
        return None;
    }
    if cidrs.is_empty() {
        cidrs.push(Ipv4Net::from(node.primary_ip));
    }
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
///
/// # Errors
/// [`InvalidSysctlKey`] when a sysctl's name cannot be made of the link's.
pub fn eni(eni: &EniNetwork, dev: &IfName) -> Result<Desired, InvalidSysctlKey> {
    let router = IpAddr::from(router(eni.subnet));
    let own = IpNet::from(Ipv4Net::new(eni.primary_ip, eni.subnet.prefix_len()).unwrap_or(eni.subnet));
    let mut routes = vec![
        Route::on_link(eni.table, host_prefix(router), dev.clone()),
        Route::default_via(eni.table, router, dev.clone()),
    ];
    let mut addresses = vec![Address::new(dev.clone(), own).without_prefix_route()];
    let mut rules = Vec::new();
    if !eni.trunk {
        rules.push(Rule::from(RULE_FROM_ENI, host_prefix(eni.primary_ip.into()), eni.table));
    }
    let mut sysctls = Vec::new();
    if let Some(own) = eni.ipv6 {
        // What is masqueraded on its way out by this ENI takes an address of it, and has to find one: any other address of the
        // node is another ENI's, and the VPC drops what comes from that.
        addresses.push(Address::new(dev.clone(), host_prefix(own.into())).without_prefix_route());
        rules.push(Rule::from(RULE_FROM_ENI, host_prefix(own.into()), eni.table));
        // By an advertisement the kernel would have a second default route in the main table.
        sysctls.push(Sysctl::new(SysctlKey::of_interface(Family::V6, dev, "accept_ra")?, 0));
        // Until the link-local address counts as no duplicate, the router could not be asked for: a second or two in which
        // new pods would send nothing. It is made of the ENI's MAC address, which nobody else has.
        sysctls.push(Sysctl::new(SysctlKey::of_interface(Family::V6, dev, "accept_dad")?, 0));
        routes.push(Route::default_via(eni.table, ROUTER_V6.into(), dev.clone()));
    }
    Ok(Desired {
        scope: Scope {
            addresses: BTreeSet::from([dev.clone()]),
            routes: BTreeSet::from([
                RouteScope::table(eni.table, Family::V4),
                RouteScope::table(eni.table, Family::V6),
                // The kernel's route to the subnet would take what leaves by the primary ENI.
                RouteScope {
                    table: TABLE_MAIN,
                    family: Family::V4,
                    devices: Devices::Named(dev.clone()),
                    protocols: Some(BTreeSet::from([Protocol::KERNEL])),
                },
            ]),
            rules: Family::ALL.map(|family| rule_scope(family, eni.table)).into(),
            // A permanent entry for the router would send pods' packets to whoever it names.
            neighbours: BTreeSet::from([dev.clone()]),
            ..Scope::default()
        },
        links: vec![LinkSettings { dev: dev.clone(), up: Some(true), mtu: Some(eni.mtu) }],
        addresses,
        routes,
        rules,
        sysctls,
        ..Desired::default()
    })
}

/// Nothing of the secondary ENI, or of the VLAN, that had this table; its link may be gone.
#[must_use]
pub fn no_eni(table: u32) -> Desired {
    let is_vlans = vlan_of_table(table).is_some();
    let strict = |family| is_vlans.then_some(RuleScope { family, priority: RULE_BRANCH, table: Some(table) });
    Desired {
        scope: Scope {
            routes: Family::ALL.map(|family| RouteScope::table(table, family)).into(),
            rules: Family::ALL
                .into_iter()
                .flat_map(|family| [Some(rule_scope(family, table)), strict(family)])
                .flatten()
                .collect(),
            ..Scope::default()
        },
        ..Desired::default()
    }
}

const fn rule_scope(family: Family, table: u32) -> RuleScope {
    RuleScope { family, priority: RULE_FROM_ENI, table: Some(table) }
}

#[cfg(test)]
mod tests;
