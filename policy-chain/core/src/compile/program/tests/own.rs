//! The own node, a pod that reaches itself, dry runs.

use super::*;

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
