//! Tables of decisions: the tiers, the union of application rules, default deny, ports, dry runs, the own node.

mod application;
mod direct;
mod own;
mod ports;
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
    let program =
        Program::new(Direction::Ingress, &[one], &template(&[]), &|_| Networks::default(), &Settings::default());
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
        Program::new(Direction::Egress, &policies, &template(&[]), &|_| networks.clone(), &Settings::default())
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
        let program = Program::new(Direction::Ingress, &policies, &template(&[]), &|_| Networks::default(), &settings);
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
