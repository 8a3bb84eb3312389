//! Tables of decisions: the tiers, the union of application rules, default deny, ports, dry runs, the own node.

mod direct;
mod properties;
mod selection;
mod world;

use world::*;

use super::*;
use crate::flow::Protocol;
use crate::model::cilium::{Application, CidrRule, CiliumAllow, CiliumPeers, CiliumPorts, CiliumRule};
use crate::model::cluster_network_policy::{Action, BANP_PRIORITY, ClusterMatch, ClusterTier};
use crate::model::network_policy::{NetworkPeer, NetworkPeers};
use crate::model::port::{PortMatch, PortTarget, Ports, ProtocolMatch};
use crate::model::selector::LabelSelector;
use crate::model::{Policy, Unusable, Usable};

const ADMIN: ClusterTier = ClusterTier::Admin;
const BASELINE: ClusterTier = ClusterTier::Baseline;

fn admin(priority: u16, name: &str, rules: impl IntoIterator<Item = (Action, Usable<ClusterMatch>)>) -> Policy {
    Policy::Cluster(cluster(ADMIN, priority, name, rules))
}

fn baseline(priority: u16, name: &str, rules: impl IntoIterator<Item = (Action, Usable<ClusterMatch>)>) -> Policy {
    Policy::Cluster(cluster(BASELINE, priority, name, rules))
}

fn np(name: &str, rules: impl IntoIterator<Item = (NetworkPeers, Ports)>) -> Policy {
    Policy::Network(network(name, rules))
}

fn cnp(name: &str, rules: impl IntoIterator<Item = CiliumRule>) -> Policy {
    Policy::Cilium(cilium(name, rules))
}

fn dry_run(mut policy: Policy) -> Policy {
    match &mut policy {
        Policy::Network(policy) => policy.audit = true,
        Policy::Cluster(policy) => policy.audit = true,
        Policy::Cilium(policy) => policy.audit = true,
    }
    policy
}

/// Asks about the pod `a` at TCP 80.
fn a80(policies: impl IntoIterator<Item = Policy>) -> String {
    ask(&ingress(policies), &pod("a"), TCP, 80)
}

fn both(port: u16) -> Ports {
    ports([one(TCP, port), one(UDP, port)])
}

// D.1, D.3: ordered tiers.

#[test]
fn the_lower_priority_and_the_earlier_rule_decide() {
    let narrow = || rule(Action::Accept, "a", tcp(80));
    let wide = || rule(Action::Deny, "a", Ports::Any);
    assert_eq!(a80([admin(1, "one", [narrow(), wide()])]), "allow one[0]");
    assert_eq!(a80([admin(1, "one", [wide(), narrow()])]), "deny one[0]");
    assert_eq!(a80([admin(2, "a", [wide()]), admin(1, "z", [narrow()])]), "allow z[0]");
    assert_eq!(a80([admin(0, "z", [wide()]), admin(1000, "a", [narrow()])]), "deny z[0]");
    // A policy whose rules do not mean the packet leaves it to the next.
    assert_eq!(a80([admin(0, "z", [rule(Action::Deny, "b", Ports::Any)]), admin(5, "a", [narrow()])]), "allow a[0]");
    assert_eq!(a80([admin(0, "z", [rule(Action::Deny, "a", tcp(81))]), admin(5, "a", [narrow()])]), "allow a[0]");
}

#[test]
fn ties_go_to_deny_then_pass_then_accept_then_the_name() {
    let with = |action| [rule(action, "a", Ports::Any)];
    let tie = |one, other| a80([admin(7, "one", with(one)), admin(7, "other", with(other)), np("np", [])]);
    assert_eq!(tie(Action::Accept, Action::Deny), "deny other[0]");
    assert_eq!(tie(Action::Pass, Action::Deny), "deny other[0]");
    assert_eq!(tie(Action::Accept, Action::Pass), "deny isolated np");
    assert_eq!(tie(Action::Deny, Action::Deny), "deny one[0]");
    assert_eq!(tie(Action::Accept, Action::Accept), "allow one[0]");
}

#[test]
fn a_tie_is_between_the_first_matches_not_between_all_rules() {
    // The policy's own order comes first: its Deny behind an Accept is not asked.
    let first = admin(7, "one", [rule(Action::Accept, "a", Ports::Any), rule(Action::Deny, "a", Ports::Any)]);
    let second = admin(7, "two", [rule(Action::Deny, "b", Ports::Any), rule(Action::Accept, "a", Ports::Any)]);
    assert_eq!(a80([first.clone(), second.clone()]), "allow one[0]");
    let third = admin(7, "three", [rule(Action::Deny, "a", tcp(81)), rule(Action::Pass, "a", Ports::Any)]);
    assert_eq!(a80([first.clone(), third.clone()]), "allow nothing");
    assert_eq!(ask(&ingress([first, second, third]), &pod("a"), TCP, 81), "deny three[0]");
}

#[test]
fn pass_skips_the_tier_and_nothing_else() {
    let pass = || admin(1, "pass", [rule(Action::Pass, "a", Ports::Any)]);
    let later = || admin(2, "later", [rule(Action::Deny, "a", Ports::Any)]);
    let base = || baseline(0, "base", [rule(Action::Deny, "a", Ports::Any)]);
    assert_eq!(a80([pass(), later()]), "allow nothing");
    assert_eq!(a80([pass(), later(), base()]), "deny base[0]");
    assert_eq!(a80([pass(), later(), base(), np("np", [])]), "deny isolated np");
    assert_eq!(a80([pass(), later(), base(), np("np", [(np_peers("a"), tcp(80))])]), "allow np[0]");
    let denies = cnp("cnp", [open(spec([], [deny(endpoints("a"), Ports::Any)]))]);
    assert_eq!(a80([pass(), base(), denies]), "deny cnp![0]");
}

#[test]
fn accept_of_tier_admin_ends_the_direction() {
    let accept = admin(1, "accept", [rule(Action::Accept, "a", tcp(80))]);
    let denies = cnp("cnp", [spec([], [deny(CiliumPeers::Any, Ports::Any)])]);
    let all = [accept, denies, np("np", []), baseline(0, "base", [rule(Action::Deny, "a", Ports::Any)])];
    assert_eq!(a80(all.clone()), "allow accept[0]");
    assert_eq!(ask(&ingress(all), &pod("a"), TCP, 81), "deny cnp![0]");
}

#[test]
fn baseline_is_asked_only_where_nothing_isolates() {
    let base = || {
        let pass = (rule(Action::Pass, "a", tcp(81)), rule(Action::Accept, "a", tcp(80)));
        baseline(3, "base", [pass.0, pass.1, rule(Action::Deny, "a", Ports::Any)])
    };
    let singleton = || baseline(BANP_PRIORITY, "default", [rule(Action::Deny, "b", Ports::Any)]);
    let open_program = ingress([base(), singleton()]);
    assert_eq!(ask(&open_program, &pod("a"), TCP, 80), "allow base[1]");
    assert_eq!(ask(&open_program, &pod("a"), TCP, 81), "allow nothing");
    assert_eq!(ask(&open_program, &pod("a"), UDP, 1), "deny base[2]");
    assert_eq!(ask(&open_program, &pod("b"), UDP, 1), "deny default[0]");
    assert_eq!(a80([base(), np("np", [])]), "deny isolated np");
    // A rule that allows without isolating comes before Baseline too (reference 2.5).
    let allows = cnp("cnp", [open(spec([plain(endpoints("a"), Ports::Any)], []))]);
    let program = ingress([base(), allows, singleton()]);
    assert_eq!(ask(&program, &pod("a"), UDP, 1), "allow cnp[0]");
    assert_eq!(ask(&program, &pod("b"), UDP, 1), "deny default[0]");
}

// D.2: NetworkPolicy and cilium.io together.

#[test]
fn allows_add_up_and_the_least_rule_is_named() {
    let policies = || {
        [
            np("z", [(np_peers("b"), Ports::Any), (np_peers("a"), tcp(80))]),
            np("m", [(NetworkPeers::All, both(80))]),
            cnp("a", [spec([plain(endpoints("a"), Ports::Any)], [])]),
        ]
    };
    let program = ingress(policies());
    // NetworkPolicy is before CiliumNetworkPolicy, then the name.
    assert_eq!(ask(&program, &pod("a"), TCP, 80), "allow m[0]");
    assert_eq!(ask(&program, &pod("a"), TCP, 81), "allow a[0]");
    assert_eq!(ask(&program, &pod("b"), TCP, 81), "allow z[0]");
    assert_eq!(ask(&program, &[], TCP, 81), "deny isolated m");
    let mut turned = policies();
    turned.reverse();
    assert_eq!(ingress(turned), program);
    assert_eq!(program.isolated_by().unwrap().name.as_ref(), "m");
}

#[test]
fn a_deny_beats_every_allow_however_wide_either_is() {
    // Reference 2.6: deny 192.0.2.0/24 and allow 192.0.2.3/32 is deny.
    let block = |text: &str| CiliumPeers::Cidrs(vec![CidrRule { block: CidrBlock::Cidr(net(text)), except: vec![] }]);
    let policies = [cnp(
        "cnp",
        [spec(
            [plain(block("192.0.2.3/32"), Ports::Any), http(block("192.0.2.3/32"), tcp(80))],
            [deny(block("192.0.2.0/24"), tcp(80)), deny(CiliumPeers::Any, ports([one(TCP, 90)]))],
        )],
    )];
    let program = ingress(policies);
    let narrow = |text: &str| Predicate::Block { cidr: net(text), except: vec![], managed: false };
    let peer = [narrow("192.0.2.3/32"), narrow("192.0.2.0/24")];
    assert_eq!(ask(&program, &peer, TCP, 80), "deny cnp![0]");
    assert_eq!(ask(&program, &peer, TCP, 81), "allow cnp[0]");
    assert_eq!(ask(&program, &peer, TCP, 90), "deny cnp![1]");
}

#[test]
fn cve_2024_47825_a_deny_of_a_wide_block_holds_beside_narrower_allows_without_default_deny() {
    let block = |text: &str| CiliumPeers::Cidrs(vec![CidrRule { block: CidrBlock::Cidr(net(text)), except: vec![] }]);
    let names = CiliumPeers::Names(vec![crate::l7::dns::NamePattern::name("example.com").unwrap()]);
    let policies = [
        cnp("deny", [open(spec([], [deny(block("0.0.0.0/0"), Ports::Any)]))]),
        cnp("narrow", [open(spec([plain(block("1.1.1.1/32"), Ports::Any), plain(names, tcp(443))], []))]),
        cnp("wide", [open(spec([plain(CiliumPeers::Entities(vec![Entity::All]), Ports::Any)], []))]),
    ];
    let program = program(Direction::Egress, policies);
    let everything = program.predicates().to_vec();
    assert_eq!(ask(&program, &everything, TCP, 443), "deny deny![0]");
    assert_eq!(ask(&program, &[], TCP, 443), "allow wide[0]");
}

#[test]
fn application_rules_never_narrow_a_plain_allow_of_the_same_peer() {
    // Reference 2.7, items 1 and 2.
    let l4 = cnp("l4", [spec([plain(endpoints("a"), tcp(80)), http(endpoints("a"), tcp(80))], [])]);
    assert_eq!(a80([l4]), "redirect l4[1] else allow l4[0]");
    let l3 = cnp("l3", [spec([http(endpoints("a"), tcp(80)), plain(endpoints("a"), Ports::Any)], [])]);
    assert_eq!(a80([l3]), "redirect l3[0] else allow l3[1]");
    let anyone = cnp("any", [spec([http(endpoints("a"), tcp(80)), plain(CiliumPeers::Any, tcp(80))], [])]);
    assert_eq!(a80([anyone]), "redirect any[0] else allow any[1]");
    let l7 = || cnp("l7", [spec([http(endpoints("a"), tcp(80))], [])]);
    assert_eq!(a80([l7()]), "redirect l7[0] else deny isolated l7");
    assert_eq!(a80([l7(), np("np", [(np_peers("a"), tcp(80))])]), "redirect l7[0] else allow np[0]");
    // One element may have both.
    let ports = vec![
        CiliumPorts::of(vec![one(TCP, 80)]),
        CiliumPorts { ports: tcp(80), application: Application::Http(vec![]) },
    ];
    let mixed = CiliumAllow { peers: endpoints("a"), ports };
    assert_eq!(a80([cnp("mix", [spec([Ok(mixed)], [])])]), "redirect mix[0] else allow mix[0]");
}

#[test]
fn cve_2023_30851_an_allow_of_one_peer_is_not_a_wildcard_for_another() {
    // Reference 2.7 item 3: a's rules stay a's; b passes whole; c is dropped before the proxy.
    let program = ingress([cnp(
        "cnp",
        [spec(
            [http(CiliumPeers::Endpoints(vec![app("a"), app("b")]), tcp(80)), plain(endpoints("b"), Ports::Any)],
            [],
        )],
    )]);
    assert_eq!(ask(&program, &pod("a"), TCP, 80), "redirect cnp[0] else deny isolated cnp");
    assert_eq!(ask(&program, &pod("b"), TCP, 80), "redirect cnp[0] else allow cnp[1]");
    assert_eq!(ask(&program, &pod("c"), TCP, 80), "deny isolated cnp");
}

#[test]
fn cve_2024_52529_a_plain_range_does_not_skip_the_proxy() {
    let ranged = ports([range(TCP, 8000, 9000)]);
    let policies = [cnp("cnp", [spec([plain(endpoints("a"), ranged), http(CiliumPeers::Any, tcp(8080))], [])])];
    let program = ingress(policies);
    assert_eq!(ask(&program, &pod("a"), TCP, 8080), "redirect cnp[1] else allow cnp[0]");
    assert_eq!(ask(&program, &pod("a"), TCP, 8081), "allow cnp[0]");
    assert_eq!(ask(&program, &pod("b"), TCP, 8080), "redirect cnp[1] else deny isolated cnp");
}

#[test]
fn a_deny_keeps_a_packet_from_the_proxy() {
    let rules = spec([http(endpoints("a"), tcp(80))], [deny(CiliumPeers::Any, tcp(80))]);
    assert_eq!(a80([cnp("cnp", [rules])]), "deny cnp![0]");
}

#[test]
fn application_rules_of_overlapping_ranges_are_split_and_united() {
    // Reference 2.7 item 5.
    let program = ingress([cnp(
        "cnp",
        [spec(
            [
                http(CiliumPeers::Any, ports([range(TCP, 70, 90)])),
                http(CiliumPeers::Any, ports([range(TCP, 80, 8080)])),
            ],
            [],
        )],
    )]);
    for (port, expected) in [
        (69, "deny isolated cnp"),
        (70, "redirect cnp[0] else deny isolated cnp"),
        (79, "redirect cnp[0] else deny isolated cnp"),
        (80, "redirect cnp[0] cnp[1] else deny isolated cnp"),
        (90, "redirect cnp[0] cnp[1] else deny isolated cnp"),
        (91, "redirect cnp[1] else deny isolated cnp"),
        (8080, "redirect cnp[1] else deny isolated cnp"),
        (8081, "deny isolated cnp"),
    ] {
        assert_eq!(ask(&program, &[], TCP, port), expected, "{port}");
        assert_eq!(ask(&program, &[], UDP, port), "deny isolated cnp", "{port}");
    }
}

#[test]
fn dns_and_http_rules_that_meet_on_a_port_grant_nothing() {
    let rules = |and: Vec<Usable<CiliumAllow>>| {
        let parts = [dns(endpoints("a"), both(53)), http(endpoints("a"), ports([range(TCP, 50, 60)]))];
        ingress([cnp("cnp", [spec(parts.into_iter().chain(and), [])])])
    };
    let program = rules(vec![]);
    assert_eq!(ask(&program, &pod("a"), TCP, 53), "deny isolated cnp");
    assert_eq!(ask(&program, &pod("a"), TCP, 54), "redirect cnp[1] else deny isolated cnp");
    assert_eq!(ask(&program, &pod("a"), UDP, 53), "redirect cnp[0] else deny isolated cnp");
    assert_eq!(ask(&rules(vec![plain(CiliumPeers::Any, tcp(53))]), &pod("a"), TCP, 53), "allow cnp[2]");
    // Server names and HTTP can share a port.
    let names = allow(endpoints("a"), tcp(443), Application::ServerNames(vec![]));
    let tls = ingress([cnp("tls", [spec([names, http(endpoints("a"), tcp(443))], [])])]);
    assert_eq!(ask(&tls, &pod("a"), TCP, 443), "redirect tls[0] tls[1] else deny isolated tls");
}

#[test]
fn application_rules_hold_for_the_protocols_of_their_parsers_only() {
    let wide = |application| {
        let transport = PortMatch { protocol: ProtocolMatch::Transport, port: PortTarget::Range(53, 53) };
        cnp("cnp", [spec([allow(CiliumPeers::Any, ports([transport]), application)], [])])
    };
    let dns = ingress([wide(Application::Dns(vec![]))]);
    let redirect = "redirect cnp[0] else deny isolated cnp";
    for (protocol, expected) in [(TCP, redirect), (UDP, redirect), (SCTP, "deny isolated cnp")] {
        assert_eq!(ask(&dns, &[], protocol, 53), expected);
    }
    let http = ingress([wide(Application::Http(vec![]))]);
    assert_eq!(ask(&http, &[], TCP, 53), redirect);
    assert_eq!(ask(&http, &[], UDP, 53), "deny isolated cnp");
    let every = ingress([cnp("cnp", [spec([world::http(CiliumPeers::Any, Ports::Any)], [])])]);
    assert_eq!(ask(&every, &[], TCP, 1), redirect);
    assert_eq!(ask(&every, &[], UDP, 1), "deny isolated cnp");
    assert_eq!(ask(&every, &[], GRE, 0), "deny isolated cnp");
}

#[test]
fn default_deny_is_what_the_rules_say_it_is() {
    // Reference 2.5, DESIGN 6.7.
    let without = |rule| a80([cnp("open", [open(rule)])]);
    assert_eq!(without(spec([], [])), "allow nothing");
    assert_eq!(without(spec([plain(endpoints("b"), Ports::Any)], [])), "allow nothing");
    assert_eq!(without(spec([http(endpoints("a"), tcp(80))], [])), "redirect open[0] else allow nothing");
    assert_eq!(without(spec([], [deny(endpoints("a"), tcp(80))])), "deny open![0]");
    // Another policy's default deny makes the same application rule a restriction.
    let l7 = || cnp("open", [open(spec([http(endpoints("a"), tcp(80))], []))]);
    assert_eq!(a80([l7(), np("np", [])]), "redirect open[0] else deny isolated np");
    // Baseline stands below the application rule.
    let base = baseline(0, "base", [rule(Action::Deny, "a", Ports::Any)]);
    assert_eq!(a80([l7(), base]), "redirect open[0] else deny base[0]");
    // Default deny without rules; deny-only rules that default-deny; an element without fields.
    assert_eq!(a80([cnp("closed", [spec([], [])])]), "deny isolated closed");
    assert_eq!(a80([cnp("denies", [spec([], [deny(endpoints("b"), Ports::Any)])])]), "deny isolated denies");
    assert_eq!(a80([cnp("empty", [spec([plain(CiliumPeers::Nothing, Ports::Any)], [])])]), "deny isolated empty");
    // One spec of several is enough.
    assert_eq!(a80([cnp("two", [open(spec([], [])), spec([], [])])]), "deny isolated two");
}

#[test]
fn the_second_of_specs_is_named() {
    let specs = [spec([], []), spec([plain(endpoints("a"), Ports::Any)], [deny(endpoints("a"), tcp(81))])];
    let program = ingress([cnp("cnp", specs)]);
    assert_eq!(ask(&program, &pod("a"), TCP, 80), "allow cnp/1[0]");
    assert_eq!(ask(&program, &pod("a"), TCP, 81), "deny cnp/1![0]");
}

#[test]
fn only_the_specs_that_select_the_pod_count() {
    let specs = [spec([plain(endpoints("a"), Ports::Any)], []), spec([], [deny(CiliumPeers::Any, Ports::Any)])];
    let mut one = selected(cnp("cnp", specs));
    one.specs = vec![0];
    let program = Program::new(Direction::Ingress, &[one], &[], &|_| Networks::default(), &Settings::default());
    assert_eq!(ask(&program, &pod("a"), TCP, 80), "allow cnp[0]");
}

// Rules that cannot be used.

#[test]
fn what_cannot_be_used_grants_nothing_and_denies_all() {
    let mut policy = network("np", [(np_peers("a"), tcp(80))]);
    policy.ingress = Some(vec![unusable(), policy.ingress.unwrap()[0].clone()]);
    let program = ingress([Policy::Network(policy)]);
    assert_eq!(ask(&program, &pod("a"), TCP, 80), "allow np[1]");
    assert_eq!(ask(&program, &pod("a"), TCP, 81), "deny isolated np");

    let peers = NetworkPeers::Of(vec![unusable(), Ok(np_peer("a"))]);
    assert_eq!(a80([np("peer", [(peers, Ports::Any)])]), "allow peer[0]");
    assert_eq!(a80([np("peer", [(NetworkPeers::Of(vec![unusable()]), Ports::Any)])]), "deny isolated peer");

    assert_eq!(a80([cnp("cnp", [spec([unusable()], [])])]), "deny isolated cnp");
    let deny_all = ingress([cnp("cnp", [open(spec([plain(CiliumPeers::Any, Ports::Any)], [unusable()]))])]);
    for protocol in [TCP, UDP, GRE, Protocol::ICMP] {
        assert_eq!(ask(&deny_all, &[], protocol, 9), "deny cnp![0]");
    }
}

#[test]
fn a_cluster_rule_that_cannot_be_used_fails_closed_at_its_place() {
    let first = rule(Action::Accept, "a", tcp(80));
    for action in [Action::Deny, Action::Pass] {
        let program = ingress([admin(1, "one", [first.clone(), (action, unusable())]), np("np", [])]);
        assert_eq!(ask(&program, &pod("a"), TCP, 80), "allow one[0]");
        assert_eq!(ask(&program, &pod("a"), TCP, 81), "deny one[1]");
        assert_eq!(ask(&program, &pod("b"), GRE, 0), "deny one[1]");
        let base = ingress([baseline(1, "base", [(action, unusable())])]);
        assert_eq!(ask(&base, &[], UDP, 1), "deny base[0]");
    }
    assert_eq!(a80([admin(1, "one", [(Action::Accept, unusable()), first])]), "allow one[1]");
}

#[test]
fn cve_2025_64715_a_group_that_resolves_to_nothing_matches_nothing() {
    let groups = CiliumPeers::Groups(vec!["sg-1".into()]);
    let policies = [selected(cnp("cnp", [spec([plain(groups, Ports::Any)], [])]))];
    let compile = |known: Vec<IpNet>| {
        let networks = Networks { known, others: false };
        Program::new(Direction::Egress, &policies, &[], &|_| networks.clone(), &Settings::default())
    };
    let empty = compile(vec![]);
    assert!(empty.depends_on_groups());
    assert!(empty.predicates().is_empty());
    assert_eq!(ask(&empty, &[], TCP, 80), "deny isolated cnp");
    let full = compile(vec![net("10.0.0.0/8"), net("10.9.0.0/16")]);
    assert_eq!(full.predicates().len(), 2);
    assert_eq!(ask(&full, &full.predicates()[..1], TCP, 80), "allow cnp[0]");
}

// E: ports.

#[test]
fn a_rule_opens_its_own_protocol_only() {
    let program = ingress([np("np", [(NetworkPeers::All, ports([one(SCTP, 80), all_of(UDP)]))])]);
    assert_eq!(ask(&program, &[], SCTP, 80), "allow np[0]");
    assert_eq!(ask(&program, &[], TCP, 80), "deny isolated np");
    assert_eq!(ask(&program, &[], UDP, 65535), "allow np[0]");
    assert_eq!(ask(&program, &[], GRE, 0), "deny isolated np");
    assert_eq!(ask(&program, &[], Protocol::ICMP, 8), "deny isolated np");
}

#[test]
fn every_protocol_is_more_than_the_transports() {
    let transport = PortMatch { protocol: ProtocolMatch::Transport, port: PortTarget::Any };
    let program = ingress([np("np", [(np_peers("a"), ports([transport])), (np_peers("b"), Ports::Any)])]);
    for protocol in [TCP, UDP, SCTP] {
        assert_eq!(ask(&program, &pod("a"), protocol, 0), "allow np[0]");
        assert_eq!(ask(&program, &pod("a"), protocol, 65535), "allow np[0]");
    }
    for protocol in [Protocol::ICMP, Protocol::ICMPV6, GRE, Protocol(0), Protocol(255)] {
        assert_eq!(ask(&program, &pod("a"), protocol, 0), "deny isolated np");
        assert_eq!(ask(&program, &pod("b"), protocol, 0), "allow np[1]");
    }
    assert_eq!(row(&program, &pod("b"), &[], Origin::Forwarded).entries.len(), 1);
    assert_eq!(row(&program, &pod("a"), &[], Origin::Forwarded).entries.len(), 4);
}

#[test]
fn icmp_types_are_the_ports_of_icmp() {
    let types = ports([one(Protocol::ICMP, 8), one(Protocol::ICMPV6, 128), all_of(GRE)]);
    let program = ingress([cnp("cnp", [spec([plain(CiliumPeers::Any, types)], [])])]);
    assert_eq!(ask(&program, &[], Protocol::ICMP, 8), "allow cnp[0]");
    assert_eq!(ask(&program, &[], Protocol::ICMP, 0), "deny isolated cnp");
    assert_eq!(ask(&program, &[], Protocol::ICMPV6, 128), "allow cnp[0]");
    assert_eq!(ask(&program, &[], Protocol::ICMPV6, 8), "deny isolated cnp");
    assert_eq!(ask(&program, &[], GRE, 0), "allow cnp[0]");
    assert_eq!(ask(&program, &[], TCP, 8), "deny isolated cnp");
}

#[test]
fn named_ports_are_the_subjects_on_ingress_and_the_peers_on_egress() {
    let http_port = || ports([named(ProtocolMatch::Exactly(TCP), "http")]);
    let policies = [selected(np("np", [(np_peers("a"), http_port())]))];
    let own = [port("http", TCP, 8080), port("http", UDP, 9090), port("https", TCP, 8443)];
    let of = |direction| Program::new(direction, &policies, &own, &|_| Networks::default(), &Settings::default());
    let ingress = of(Direction::Ingress);
    assert!(ingress.named_ports().is_empty());
    assert_eq!(ask(&ingress, &pod("a"), TCP, 8080), "allow np[0]");
    assert_eq!(ask(&ingress, &pod("a"), UDP, 9090), "deny isolated np");
    assert_eq!(ask(&ingress, &pod("a"), TCP, 8443), "deny isolated np");

    let egress = of(Direction::Egress);
    assert_eq!(egress.named_ports(), ["http".into()]);
    let answer =
        |ports: &[NamedPort], number| say(row(&egress, &pod("a"), ports, Origin::Forwarded).get(TCP, number).unwrap());
    assert_eq!(answer(&[], 8080), "deny isolated np");
    for number in [80, 3000] {
        let theirs = [port("http", TCP, number), port("metrics", TCP, 9)];
        assert_eq!(answer(&theirs, number), "allow np[0]");
        assert_eq!(answer(&theirs, 8080), "deny isolated np");
        assert_eq!(answer(&theirs, 9), "deny isolated np");
    }
    assert_eq!(answer(&[port("http", UDP, 80)], 80), "deny isolated np");
}

#[test]
fn a_named_port_of_no_protocol_is_that_of_the_container_port() {
    let any = || ports([named(ProtocolMatch::Transport, "dns")]);
    let program = program(Direction::Egress, [np("np", [(np_peers("a"), any())])]);
    let theirs = [port("dns", UDP, 53), port("dns", TCP, 5353)];
    let row = row(&program, &pod("a"), &theirs, Origin::Forwarded);
    for (protocol, number, expected) in [
        (UDP, 53, "allow np[0]"),
        (TCP, 5353, "allow np[0]"),
        (TCP, 53, "deny isolated np"),
        (UDP, 5353, "deny isolated np"),
    ] {
        assert_eq!(say(row.get(protocol, number).unwrap()), expected);
    }
}

#[test]
fn a_peers_ports_matter_only_to_the_rules_that_mean_it() {
    let http_port = ports([named(ProtocolMatch::Exactly(TCP), "http")]);
    let program = program(Direction::Egress, [np("np", [(np_peers("a"), http_port), (np_peers("b"), tcp(80))])]);
    let key = |peer: &[Predicate], ports: &[NamedPort]| {
        let holds = |index: usize| peer.contains(&program.predicates()[index]);
        program.key(&PeerFacts { holds: &holds, named_ports: ports, origin: Origin::Forwarded })
    };
    let (one, two) = ([port("http", TCP, 1), port("x", TCP, 1)], [port("http", TCP, 2)]);
    assert_eq!(key(&pod("b"), &one), key(&pod("b"), &two));
    assert_ne!(key(&pod("a"), &one), key(&pod("a"), &two));
    assert_eq!(key(&pod("a"), &one), key(&pod("a"), &one[..1]));
    assert_eq!(key(&[], &one), program.default_key(Origin::Forwarded));
}

// C, and a pod that reaches itself.

fn own_node(program: &Program, peer: &[Predicate], protocol: Protocol, port: u16) -> String {
    say(row(program, peer, &[], Origin::OwnNode).get(protocol, port).unwrap())
}

#[test]
fn the_own_node_is_let_in_by_everything_but_a_deny_that_names_it() {
    let host = || CiliumPeers::Entities(vec![Entity::Host]);
    let everyone = CiliumPeers::Entities(vec![Entity::All, Entity::Cluster]);
    let closed = ingress([
        admin(0, "admin", [(Action::Deny, unusable())]),
        np("np", []),
        cnp(
            "cnp",
            [spec(
                [http(host(), tcp(80)), plain(host(), Ports::Any)],
                [deny(everyone, Ports::Any), deny(CiliumPeers::Any, Ports::Any), unusable()],
            )],
        ),
    ]);
    let all = closed.predicates().to_vec();
    assert_eq!(own_node(&closed, &all, TCP, 80), "allow own node");
    assert_eq!(ask(&closed, &all, TCP, 80), "deny admin[0]");

    let denied = ingress([cnp("cnp", [spec([], [deny(endpoints("a"), Ports::Any), deny(host(), tcp(22))])])]);
    let all = denied.predicates().to_vec();
    assert_eq!(own_node(&denied, &all, TCP, 22), "deny cnp![1]");
    assert_eq!(own_node(&denied, &all, TCP, 80), "allow own node");
    assert_eq!(own_node(&denied, &all, UDP, 22), "allow own node");

    let besides = CiliumPeers::Entities(vec![Entity::All, Entity::Host]);
    let denied = ingress([cnp("cnp", [spec([], [deny(besides, Ports::Any)])])]);
    assert_eq!(own_node(&denied, denied.predicates(), TCP, 22), "deny cnp![0]");
    assert_eq!(ask(&denied, &[], TCP, 22), "deny cnp![0]");
}

#[test]
fn a_selector_names_the_own_node_if_it_asks_for_it_and_selects_it() {
    let by_label = CiliumPeers::Endpoints(vec![host_selector()]);
    let program = ingress([cnp("cnp", [spec([], [deny(by_label, Ports::Any)])])]);
    assert_eq!(own_node(&program, &[Predicate::Endpoints(host_selector())], TCP, 22), "deny cnp![0]");
    assert_eq!(own_node(&program, &[], TCP, 22), "allow own node");
    let not = |operator| {
        let selector = cilium_selector(&[(LabelSource::Reserved, "host", operator, &["x"])]);
        names_host(&Predicate::Endpoints(selector))
    };
    assert!(not(Operator::In) && not(Operator::Exists));
    assert!(!not(Operator::NotIn) && !not(Operator::DoesNotExist));
    let other = cilium_selector(&[(LabelSource::Any, "host", Operator::Exists, &[])]);
    assert!(!names_host(&Predicate::Endpoints(other)));
}

#[test]
fn networkpolicy_never_denies_a_pod_that_reaches_itself() {
    let answer =
        |policies: Vec<Policy>| say(row(&ingress(policies), &pod("a"), &[], Origin::Hairpin).get(TCP, 80).unwrap());
    let l7 = || cnp("cnp", [spec([http(endpoints("a"), tcp(80))], [])]);
    assert_eq!(answer(vec![np("np", []), np("az", [])]), "allow isolated az");
    assert_eq!(answer(vec![np("np", [(np_peers("a"), tcp(80))]), np("az", [])]), "allow np[0]");
    assert_eq!(answer(vec![np("np", []), l7()]), "redirect cnp[0] else allow isolated np");
    // Cilium's and the cluster's own policies hold for it.
    assert_eq!(answer(vec![l7()]), "redirect cnp[0] else deny isolated cnp");
    assert_eq!(answer(vec![cnp("cnp", [spec([], [])])]), "deny isolated cnp");
    assert_eq!(answer(vec![np("np", []), cnp("cnp", [spec([], [])])]), "allow isolated np");
    let denies = cnp("cnp", [spec([], [deny(endpoints("a"), Ports::Any)])]);
    assert_eq!(answer(vec![np("np", []), denies]), "deny cnp![0]");
    let cluster = || admin(1, "admin", [rule(Action::Deny, "a", Ports::Any)]);
    assert_eq!(answer(vec![np("np", []), cluster()]), "deny admin[0]");
}

// F: dry runs.

#[test]
fn dry_runs_are_told_and_do_nothing() {
    assert_eq!(a80([dry_run(np("np", []))]), "allow nothing (dry run: deny isolated np)");
    let real = || np("real", [(np_peers("a"), tcp(80))]);
    assert_eq!(a80([real(), dry_run(np("dry", []))]), "allow real[0]");
    assert_eq!(
        ask(&ingress([real(), dry_run(np("dry", []))]), &pod("a"), TCP, 81),
        "deny isolated real (dry run: deny isolated dry)"
    );
    let allows = dry_run(np("dry", [(np_peers("a"), Ports::Any)]));
    assert_eq!(ask(&ingress([real(), allows]), &pod("a"), TCP, 81), "deny isolated real (dry run: allow dry[0])");
    // Another reason is told too.
    let same = dry_run(np("a", [(np_peers("a"), tcp(80))]));
    assert_eq!(a80([real(), same]), "allow real[0] (dry run: allow a[0])");
    let l7 = dry_run(cnp("l7", [spec([http(endpoints("a"), tcp(80))], [])]));
    assert_eq!(a80([real(), l7]), "allow real[0] (dry run: redirect l7[0] else allow real[0])");
    let l7 = cnp("l7", [spec([http(endpoints("a"), tcp(80))], [])]);
    let more = dry_run(cnp("more", [spec([http(endpoints("a"), tcp(80))], [])]));
    assert_eq!(
        a80([l7, more]),
        "redirect l7[0] else deny isolated l7 (dry run: redirect l7[0] more[0] else deny isolated l7)"
    );
    let admin = dry_run(admin(1, "admin", [rule(Action::Deny, "a", Ports::Any)]));
    assert_eq!(a80([real(), admin]), "allow real[0] (dry run: deny admin[0])");
}

#[test]
fn dry_runs_of_what_concerns_the_own_node_and_the_pod_itself() {
    let host = CiliumPeers::Entities(vec![Entity::Host]);
    let program = ingress([dry_run(cnp("cnp", [spec([], [deny(host, Ports::Any)])]))]);
    assert_eq!(own_node(&program, program.predicates(), TCP, 1), "allow own node (dry run: deny cnp![0])");
    let program = ingress([cnp("cnp", [spec([], [])]), dry_run(np("np", []))]);
    let itself = row(&program, &[], &[], Origin::Hairpin);
    assert_eq!(say(itself.get(TCP, 80).unwrap()), "deny isolated cnp (dry run: allow isolated np)");
}

// What the engine asks of a program.

#[test]
fn predicates_are_sorted_distinct_and_in_one_form() {
    let block = |cidr: &str, except: &[&str]| {
        let except = except.iter().map(|text| net(text)).collect();
        (NetworkPeers::Of(vec![Ok(NetworkPeer::IpBlock { cidr: net(cidr), except })]), Ports::Any)
    };
    let program = ingress([np(
        "np",
        [
            block("10.0.0.0/8", &["10.2.0.0/16", "10.1.0.0/16", "10.1.2.0/24", "192.168.0.0/16", "fd00::/8"]),
            block("10.0.0.0/8", &["10.1.0.0/16", "10.2.0.0/16"]),
            block("10.0.0.0/16", &["10.0.0.0/8"]),
            (np_peers("a"), tcp(80)),
            (np_peers("a"), tcp(81)),
        ],
    )]);
    let whole = Predicate::Block {
        cidr: net("10.0.0.0/8"),
        except: vec![net("10.1.0.0/16"), net("10.2.0.0/16")],
        managed: true,
    };
    assert_eq!(program.predicates(), [np_pods("a"), whole]);
}

#[test]
fn cilium_blocks_match_pods_and_nodes_only_if_a_setting_says_so() {
    let block = CidrRule { block: CidrBlock::Cidr(net("10.0.0.0/8")), except: vec![] };
    let policies = [selected(cnp("cnp", [spec([plain(CiliumPeers::Cidrs(vec![block]), Ports::Any)], [])]))];
    for managed in [false, true] {
        let settings = Settings { cilium_cidrs_match_managed: managed, ..Settings::default() };
        let program = Program::new(Direction::Ingress, &policies, &[], &|_| Networks::default(), &settings);
        assert_eq!(program.predicates(), [Predicate::Block { cidr: net("10.0.0.0/8"), except: vec![], managed }]);
    }
}

#[test]
fn entities_that_nothing_is_are_no_predicates() {
    let nothing = [Entity::None, Entity::Init, Entity::Ingress, Entity::Unmanaged, Entity::Health];
    let program = ingress([cnp("cnp", [spec([plain(CiliumPeers::Entities(nothing.to_vec()), Ports::Any)], [])])]);
    assert!(program.predicates().is_empty());
    assert_eq!(ask(&program, &[], TCP, 80), "deny isolated cnp");
}

#[test]
fn an_open_program_is_one_that_says_nothing() {
    let none = ingress([]);
    assert!(none.is_open());
    assert_eq!(none.isolated_by(), None);
    let default = none.default_row(Origin::Forwarded);
    assert_eq!(default.entries.len(), 1);
    assert_eq!(say(&default.entries[0].1), "allow nothing");
    assert_eq!(say(&none.default_row(Origin::OwnNode).entries[0].1), "allow own node");
    let dry = ingress([dry_run(np("np", []))]);
    assert!(!dry.is_open());
    assert_eq!(dry.isolated_by(), None);
    assert_eq!(dry.isolated_by_any().unwrap().name.as_ref(), "np");
    assert!(!ingress([cnp("cnp", [spec([], [])])]).is_open());
    assert!(ingress([cnp("cnp", [open(spec([plain(CiliumPeers::Nothing, Ports::Any)], []))])]).is_open());
}

#[test]
fn the_default_row_has_the_rules_for_anyone() {
    let program = ingress([np("np", [(np_peers("a"), Ports::Any), (NetworkPeers::All, tcp(443))])]);
    let default = program.default_row(Origin::Forwarded);
    assert_eq!(default, row(&program, &[], &[], Origin::Forwarded));
    assert_eq!(say(default.get(TCP, 443).unwrap()), "allow np[1]");
    assert_eq!(say(default.get(TCP, 80).unwrap()), "deny isolated np");
    assert_eq!(default.entries.len(), 2);
}

#[test]
fn map_row_asks_once_for_each_decision() {
    let many = ports((0..100).map(|index| one(TCP, 1000 + 10 * index)));
    let program = ingress([np("np", [(NetworkPeers::All, many)])]);
    let mut asked = Vec::new();
    let row = program.map_row(&program.default_key(Origin::Forwarded), |judgement| {
        asked.push(say(&judgement));
        asked.len()
    });
    assert_eq!(asked, ["deny isolated np", "allow np[0]"]);
    assert_eq!(row.entries.len(), 101);
    assert_eq!(row.get(TCP, 1010), Some(&2));
}

#[test]
fn networks_of_groups_by_name_and_label() {
    use crate::cluster::{CidrGroup, Labels};
    let group = |name: &str, kind: &str, cidr: &str| CidrGroup {
        name: name.into(),
        labels: Labels::new([("kind".into(), kind.into())]),
        cidrs: Ok(vec![net(cidr)]),
    };
    let groups = [group("one", "x", "10.0.0.0/8"), group("two", "x", "11.0.0.0/8"), group("three", "y", "12.0.0.0/8")];
    let of = |block| {
        let Networks { known, others } = networks(&groups, &block);
        assert!(!others);
        known
    };
    assert_eq!(of(CidrBlock::Cidr(net("1.0.0.0/8"))), [net("1.0.0.0/8")]);
    assert_eq!(of(CidrBlock::Group("two".into())), [net("11.0.0.0/8")]);
    assert_eq!(of(CidrBlock::Group("four".into())), []);
    assert_eq!(of(CidrBlock::Groups(labelled("kind", "x"))), [net("10.0.0.0/8"), net("11.0.0.0/8")]);
    assert_eq!(of(CidrBlock::Groups(LabelSelector::default())).len(), 3);
    let mut groups = groups;
    groups[1].cidrs = Err(Unusable { path: "spec".to_owned(), reason: "this field is not known".to_owned() });
    let of = |block| networks(&groups, &block);
    assert_eq!(of(CidrBlock::Group("two".into())), Networks { known: Vec::new(), others: true });
    let both = Networks { known: vec![net("10.0.0.0/8")], others: true };
    assert_eq!(of(CidrBlock::Groups(labelled("kind", "x"))), both);
    assert!(!of(CidrBlock::Groups(labelled("kind", "y"))).others);
}
