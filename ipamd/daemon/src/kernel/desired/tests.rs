//! The golden node of VPC CNI (reference: the "golden example" of the AWS VPC CNI): eth0 10.0.1.10/24, eth1 a secondary
//! ENI with 10.0.1.50, VPC 10.0.0.0/16.

use sluice_contract::id::EniId;
use sluice_contract::node::route_table;
use sluice_hostnet::plan::plan;
use sluice_hostnet::state::Observed;

use super::*;
use crate::config::Config;

fn golden_node() -> NodeNetwork {
    NodeNetwork {
        primary_mac: "02:00:00:00:01:10".parse().unwrap(),
        primary_ip: "10.0.1.10".parse().unwrap(),
        vpc_cidrs: vec!["10.0.0.0/16".parse().unwrap()],
        routed_cidrs: Vec::new(),
        config: Config::load(&|_| None).unwrap().network,
    }
}

fn golden_eni() -> EniNetwork {
    EniNetwork {
        eni: EniId::new("eni-00000000000000050").unwrap(),
        mac: "02:00:00:00:01:50".parse().unwrap(),
        primary_ip: "10.0.1.50".parse().unwrap(),
        subnet: "10.0.1.0/24".parse().unwrap(),
        ipv6: None,
        table: 2,
        mtu: 9001,
        trunk: false,
    }
}

fn dev(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

fn text(desired: &Desired) -> String {
    let mut lines = Vec::new();
    lines.extend(desired.links.iter().map(|l| format!("link {} up {:?} mtu {:?}", l.dev, l.up, l.mtu)));
    lines.extend(desired.addresses.iter().map(|a| format!("address {a} noprefixroute {}", a.noprefixroute)));
    lines.extend(desired.routes.iter().map(|r| format!("route {r}")));
    lines.extend(desired.rules.iter().map(|r| format!("rule {r}")));
    lines.extend(desired.sysctls.iter().map(|s| format!("sysctl {} = {}", s.key, s.value)));
    lines.join("\n")
}

#[test]
fn the_node_is_the_golden_node() {
    assert_eq!(
        text(&node(&golden_node(), &dev("eth0")).unwrap()),
        "link eth0 up None mtu Some(9001)
rule 1024: from all fwmark 0x80/0x80 lookup 254
sysctl net/ipv4/ip_forward = 1
sysctl net/ipv4/conf/eth0/rp_filter = 2
sysctl net/ipv4/tcp_early_demux = 1"
    );
}

#[test]
fn a_secondary_eni_is_the_golden_one() {
    let desired = eni(&golden_eni(), &dev("eth1")).unwrap();
    assert_eq!(
        text(&desired),
        "link eth1 up Some(true) mtu Some(9001)
address 10.0.1.50/24 dev eth1 noprefixroute true
route 10.0.1.1/32 dev eth1 table 2
route default via 10.0.1.1 dev eth1 table 2
rule 32765: from 10.0.1.50/32 lookup 2"
    );
    let subnet =
        Route { protocol: Protocol::KERNEL, ..Route::on_link(254, "10.0.1.0/24".parse().unwrap(), dev("eth1")) };
    assert!(desired.scope.owns_route(&subnet), "the kernel's route to the subnet goes");
    let pod = Route::on_link(254, "10.0.1.60/32".parse().unwrap(), dev("enib5faff8a083"));
    assert!(!desired.scope.owns_route(&pod), "pods' routes stay");
    assert!(!desired.scope.owns_rule(&Rule::from(1536, "10.0.1.60/32".parse().unwrap(), 2)), "pods' rules stay");
}

#[test]
fn the_nftables_table_says_what_vpc_cnis_chains_say() {
    assert_eq!(
        ruleset(&golden_node(), &dev("eth0")),
        "\tchain own-address {
\t\ttype filter hook prerouting priority raw; policy accept;
\t\tiifname \"eni*\" fib saddr . iif oif missing counter drop
\t}
\tchain node-port {
\t\ttype filter hook prerouting priority mangle; policy accept;
\t\tiifname \"eth0\" fib daddr . iif type local ct mark set ct mark or 0x80
\t}
\tchain outbound {
\t\ttype filter hook prerouting priority dstnat + 10; policy accept;
\t\tiifname \"eni*\" ct state new ip daddr != { 10.0.0.0/16 } fib daddr type != local ct mark set ct mark or 0x80
\t\tiifname \"eni*\" ct mark and 0x80 == 0x80 meta mark set meta mark or 0x80
\t}
\tchain leave-vpc {
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\toifname != \"vlan*\" ip daddr != { 10.0.0.0/16 } fib daddr type != local snat to 10.0.1.10 fully-random
\t}
"
    );
}

#[test]
fn the_metadata_service_can_be_kept_from_pods() {
    let mut node = golden_node();
    node.config.families = Families::Dual;
    node.config.block_metadata = true;
    let bodies: Vec<_> = rulesets(&node, &dev("eth0")).into_iter().map(|(_, body)| body).collect();
    for (body, address) in bodies.iter().zip(["ip daddr 169.254.169.254", "ip6 daddr fd00:ec2::254"]) {
        assert!(body.contains(&format!("iifname \"eni*\" {address} counter reject")), "{body}");
    }
}

#[test]
fn settings_change_the_table() {
    let mut node = golden_node();
    node.config.node_port_support = false;
    node.config.randomize_snat = RandomizeSnat::None;
    node.config.connmark = 0x100;
    node.vpc_cidrs = vec!["100.64.0.0/16".parse().unwrap(), "10.0.0.0/16".parse().unwrap()];
    let text = ruleset(&node, &dev("ens5"));
    assert!(!text.contains("node-port"), "{text}");
    assert!(text.contains("{ 10.0.0.0/16, 100.64.0.0/16 }"), "{text}");
    assert!(text.contains("snat to 10.0.1.10\n"), "{text}");
    assert!(text.contains("ct mark and 0x100 == 0x100"), "{text}");
}

#[test]
fn each_eni_can_translate_to_its_own_address() {
    let mut node = golden_node();
    node.config.snat_by_eni = true;
    let text = ruleset(&node, &dev("eth0"));
    assert!(!text.contains("ct state new"), "nothing is sent by the primary ENI for that: {text}");
    assert!(text.contains("meta mark set"), "answers of node ports are: {text}");
    assert!(
        text.ends_with(
            "\t\toifname \"eth0\" ip daddr != { 10.0.0.0/16 } fib daddr type != local snat to 10.0.1.10 fully-random
\t\toifname != \"vlan*\" oifname != \"eth0\" ip daddr != { 10.0.0.0/16 } fib daddr type != local masquerade fully-random
\t}
"
        ),
        "{text}"
    );
}

#[test]
fn external_translation_leaves_only_what_node_ports_need() {
    let mut node = golden_node();
    node.config.external_snat = true;
    let text = ruleset(&node, &dev("eth0"));
    assert!(!text.contains("snat") && !text.contains("ct state new"), "{text}");
    assert!(text.contains("chain node-port") && text.contains("meta mark set"), "{text}");
    assert_eq!(super::node(&node, &dev("eth0")).unwrap().rules.len(), 1);
    node.config.node_port_support = false;
    let text = ruleset(&node, &dev("eth0"));
    assert!(text.starts_with("\tchain own-address") && text.matches("chain").count() == 1, "{text}");
    assert_eq!(super::node(&node, &dev("eth0")).unwrap().rules, []);
}

#[test]
fn exclusions_and_external_services_are_vpc_cnis() {
    let mut node = golden_node();
    node.config.exclude_snat = vec!["192.168.0.0/16".parse().unwrap(), "10.0.3.0/24".parse().unwrap()];
    node.config.external_services = vec!["172.20.0.0/16".parse().unwrap()];
    assert!(ruleset(&node, &dev("eth0")).contains("{ 10.0.0.0/16, 192.168.0.0/16 }"));
    let rules: Vec<_> = super::node(&node, &dev("eth0")).unwrap().rules.iter().map(ToString::to_string).collect();
    assert_eq!(rules, ["1024: from all fwmark 0x80/0x80 lookup 254", "1535: from all to 172.20.0.0/16 lookup 254"]);
    node.routed_cidrs = vec!["10.9.0.0/16".parse().unwrap(), "10.0.4.0/24".parse().unwrap()];
    assert!(ruleset(&node, &dev("eth0")).contains("{ 10.0.0.0/16, 10.9.0.0/16, 192.168.0.0/16 }"));
    node.config.exclude_snat = vec!["0.0.0.0/0".parse().unwrap()];
    assert!(!ruleset(&node, &dev("eth0")).contains("snat"), "everything is excluded");
    // nft takes no set that is everything.
    node.config.exclude_snat = ["0.0.0.0/1", "128.0.0.0/1"].map(|half| half.parse().unwrap()).into();
    assert!(!ruleset(&node, &dev("eth0")).contains("snat"), "in two halves");
}

#[test]
fn ipv6_alone_has_its_sysctls_and_translates_nothing() {
    let mut node = golden_node();
    node.config.families = Families::V6;
    assert_eq!(
        text(&super::node(&node, &dev("eth0")).unwrap()),
        "link eth0 up None mtu Some(9001)
sysctl net/ipv4/ip_forward = 1
sysctl net/ipv4/conf/eth0/rp_filter = 2
sysctl net/ipv4/tcp_early_demux = 1
sysctl net/ipv6/conf/all/disable_ipv6 = 0
sysctl net/ipv6/conf/eth0/accept_ra = 2
sysctl net/ipv6/conf/all/forwarding = 1"
    );
    let [(v4, empty), (v6, own)] = &rulesets(&node, &dev("eth0"))[..] else { panic!("a table for each family") };
    assert_eq!((v4, empty.as_str(), v6), (&table(Family::V4), "", &table(Family::V6)));
    assert!(own.starts_with("\tchain own-address") && own.matches("chain").count() == 1, "{own}");
}

#[test]
fn pods_of_one_family_leave_in_the_other_by_the_nodes_address() {
    let mut node = golden_node();
    node.config.families = Families::V6;
    node.config.egress = Some(Family::V4);
    assert_eq!(
        ruleset(&node, &dev("eth0")),
        "\tchain own-address {
\t\ttype filter hook prerouting priority raw; policy accept;
\t\tiifname \"eni*\" fib saddr . iif oif missing counter drop
\t}
\tchain egress-only {
\t\ttype filter hook forward priority filter; policy accept;
\t\tip daddr { 169.254.172.0/22, 169.254.176.0/22 } ct state new counter reject
\t}
\tchain leave-node {
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tip saddr 169.254.176.0/22 ip daddr != 224.0.0.0/4 snat to 10.0.1.10 fully-random
\t}
"
    );
    node.config.families = Families::V4;
    node.config.egress = Some(Family::V6);
    node.config.randomize_snat = RandomizeSnat::None;
    let [(_, v4), (_, v6)] = &rulesets(&node, &dev("eth0"))[..] else { panic!("a table for each family") };
    assert!(v4.contains("leave-vpc") && !v4.contains("leave-node"), "{v4}");
    assert_eq!(
        v6,
        "\tchain own-address {
\t\ttype filter hook prerouting priority raw; policy accept;
\t\tiifname \"eni*\" ip6 saddr != { ::, fe80::/10 } fib saddr . iif oif missing counter drop
\t}
\tchain egress-only {
\t\ttype filter hook forward priority filter; policy accept;
\t\tip6 daddr fd00::ac:0:0/96 ct state new counter reject
\t}
\tchain leave-node {
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tip6 saddr fd00::ac:0:0/96 ip6 daddr != ff00::/8 masquerade
\t}
"
    );
    let sysctls = super::node(&node, &dev("eth0")).unwrap().sysctls;
    assert!(sysctls.iter().any(|sysctl| sysctl.key.to_string() == "net/ipv6/conf/all/forwarding"), "{sysctls:?}");
}

#[test]
fn a_dual_stack_node_marks_connections_to_node_ports_in_both_families() {
    let mut node = golden_node();
    node.config.families = Families::Dual;
    let rules: Vec<_> = super::node(&node, &dev("eth0")).unwrap().rules;
    assert_eq!(rules.iter().map(|rule| rule.family).collect::<Vec<_>>(), Family::ALL);
    assert!(rules.iter().all(|rule| rule.to_string() == "1024: from all fwmark 0x80/0x80 lookup 254"), "{rules:?}");
    let v6 = rulesets(&node, &dev("eth0")).remove(1);
    assert_eq!(
        v6,
        (
            table(Family::V6),
            "\tchain own-address {
\t\ttype filter hook prerouting priority raw; policy accept;
\t\tiifname \"eni*\" ip6 saddr != { ::, fe80::/10 } fib saddr . iif oif missing counter drop
\t}
\tchain node-port {
\t\ttype filter hook prerouting priority mangle; policy accept;
\t\tiifname \"eth0\" fib daddr . iif type local ct mark set ct mark or 0x80
\t}
\tchain outbound {
\t\ttype filter hook prerouting priority dstnat + 10; policy accept;
\t\tiifname \"eni*\" ct mark and 0x80 == 0x80 meta mark set meta mark or 0x80
\t}
"
            .to_owned()
        )
    );
}

#[test]
fn a_secondary_eni_with_a_delegated_prefix_routes_ipv6_too() {
    let network = EniNetwork { ipv6: Some("3fff::a00:132".parse().unwrap()), ..golden_eni() };
    let desired = eni(&network, &dev("eth1")).unwrap();
    assert_eq!(
        text(&desired),
        "link eth1 up Some(true) mtu Some(9001)
address 10.0.1.50/24 dev eth1 noprefixroute true
address 3fff::a00:132/128 dev eth1 noprefixroute true
route 10.0.1.1/32 dev eth1 table 2
route default via 10.0.1.1 dev eth1 table 2
route default via fe80:ec2::1 dev eth1 table 2
rule 32765: from 10.0.1.50/32 lookup 2
rule 32765: from 3fff::a00:132/128 lookup 2
sysctl net/ipv6/conf/eth1/accept_ra = 0
sysctl net/ipv6/conf/eth1/accept_dad = 0"
    );
    let left = Route::default_via(2, "fe80:ec2::1".parse().unwrap(), dev("eth1"));
    assert!(no_eni(2).scope.owns_route(&left), "the route goes with the ENI");
}

#[test]
fn with_strict_security_groups_of_pods_the_nodes_own_addresses_come_after_pods_rules() {
    let mut strict = golden_node();
    strict.config.pod_eni = Some(Mode::Strict);
    strict.config.families = Families::Dual;
    let rules = |of: &NodeNetwork| -> Vec<String> {
        let wanted = node(of, &dev("eth0")).unwrap();
        wanted.rules.iter().map(ToString::to_string).filter(|rule| rule.ends_with("lookup 255")).collect()
    };
    assert_eq!(
        rules(&strict),
        ["20: from all lookup 255", "20: from all lookup 255", "0: from fe80:ec2::1/128 lookup 255"]
    );
    // The kernel's own rules make way, after what takes their place.
    let kernels = Family::ALL.map(|family| Rule::all(family, 0, TABLE_LOCAL));
    let seen = Observed { rules: kernels.to_vec(), ..Observed::default() };
    let ops: Vec<String> =
        plan(&seen, &node(&strict, &dev("eth0")).unwrap()).iter().map(|planned| planned.op.to_string()).collect();
    let at = |words: &str| ops.iter().position(|op| op == words).unwrap_or_else(|| panic!("{words}: {ops:#?}"));
    assert!(at("rule add 20: from all lookup 255") < at("rule del 0: from all lookup 255"));
    assert!(!ops.iter().any(|op| op.starts_with("rule del 0: from fe80")));
    strict.config.pod_eni = Some(Mode::Standard);
    assert_eq!(rules(&strict), [""; 0]);
    assert!(!node(&strict, &dev("eth0")).unwrap().scope.owns_rule(&Rule::all(Family::V4, 0, TABLE_LOCAL)));
}

#[test]
fn pods_with_security_groups_of_their_own_are_kept_from_the_metadata_service_too() {
    let mut network = golden_node();
    network.config.block_metadata = true;
    let without = ruleset(&network, &dev("eth0"));
    assert!(!without.contains("iifname \"vlan*\""), "{without}");
    network.config.pod_eni = Some(Mode::Strict);
    let strict = ruleset(&network, &dev("eth0"));
    assert!(strict.contains("iifname \"vlan*\" ip daddr 169.254.169.254 counter reject"), "{strict}");
}

#[test]
fn what_comes_by_a_strict_pods_interface_leaves_by_a_vlan_alone() {
    const ASTRAY: &str = "iifname \"vlan*\" oifname != \"vlan*\" counter drop";
    let mut network = golden_node();
    network.config.families = Families::Dual;
    let bodies = |of: &NodeNetwork| rulesets(of, &dev("eth0")).into_iter().map(|(_, body)| body).collect::<Vec<_>>();
    for (mode, there) in [(None, false), (Some(Mode::Standard), false), (Some(Mode::Strict), true)] {
        network.config.pod_eni = mode;
        let bodies = bodies(&network);
        assert_eq!(bodies.len(), 2);
        assert!(bodies.iter().all(|body| body.contains(ASTRAY) == there), "{mode:?}: {bodies:?}");
    }
}

#[test]
fn a_trunk_is_set_up_without_a_rule_and_a_vlans_rules_go_with_its_table() {
    let network = EniNetwork { trunk: true, ..golden_eni() };
    let wanted = eni(&network, &dev("eth1")).unwrap();
    assert_eq!((wanted.rules.len(), wanted.routes.len(), wanted.addresses.len()), (0, 2, 1));
    let strict = Rule::iif(Family::V4, RULE_BRANCH, dev("vlan.eth.7"), 107);
    assert!(no_eni(107).scope.owns_rule(&strict));
    let foreign = Rule::iif(Family::V4, RULE_BRANCH, dev("vlan.eth.7"), 2);
    assert!(!no_eni(2).scope.owns_rule(&foreign));
}

#[test]
fn an_eni_on_a_further_card_has_a_table_of_its_own_whatever_its_device() {
    for (device, table) in [(0, 10_100), (1, 10_101)] {
        let network = EniNetwork { table: route_table(1, device).unwrap(), ..golden_eni() };
        let wanted = eni(&network, &dev("eth4")).unwrap();
        assert_eq!(
            text(&wanted),
            format!(
                "link eth4 up Some(true) mtu Some(9001)
address 10.0.1.50/24 dev eth4 noprefixroute true
route 10.0.1.1/32 dev eth4 table {table}
route default via 10.0.1.1 dev eth4 table {table}
rule 32765: from 10.0.1.50/32 lookup {table}"
            )
        );
        let left = Route::default_via(table, "10.0.1.1".parse().unwrap(), dev("eth4"));
        assert!(no_eni(table).scope.owns_route(&left), "the route goes with the ENI");
        let strict = Rule::iif(Family::V4, RULE_BRANCH, dev("vlan.eth.7"), table);
        assert!(!no_eni(table).scope.owns_rule(&strict), "no VLAN has that table");
    }
}
