use std::collections::BTreeSet;

use super::*;
use crate::check::check;
use crate::checkpoint::Checkpoint;
use crate::cloud::{Ec2Eni, InstanceLimits};
use crate::fixture::{COOLDOWN, at, done, eni, eni_id, failed, ip, node, owner, subnet_id};
use crate::ipv6::Families;
use crate::op::Outcome;
use crate::plan::{Demand, Plan, Targets, plan};
use crate::state::{Event, State};

fn node_with(families: Families) -> Node {
    Node { families, ..node() }
}

fn with_ipv6(n: u32, blocks: &[&str]) -> Ec2Eni {
    let net = format!("2001:db8:0:1:{n}::/80").parse().unwrap();
    Ec2Eni { ipv6_prefixes: BTreeSet::from([net]), ..eni(n, blocks) }
}

/// A node that EC2 has said everything about, all ENIs set up.
fn state(families: Families, enis: Vec<Ec2Eni>) -> State {
    let mut state = State::new(1);
    let subnet = crate::cloud::Ec2Subnet {
        ipv6_cidr: Some("2001:db8:0:1::/64".parse().unwrap()),
        ..crate::fixture::subnet(1, 1000, &[])
    };
    state.apply(Event::NodeKnown(node_with(families)), at(0)).unwrap();
    state.apply(Event::SubnetsKnown(vec![subnet]), at(0)).unwrap();
    let ids: Vec<_> = enis.iter().map(|eni| eni.eni.clone()).collect();
    state.apply(Event::Surveyed(enis), at(0)).unwrap();
    for id in ids {
        state.ledger.eni_mut(&id).unwrap().recheck = None;
        state.apply(Event::EniReady(id), at(0)).unwrap();
    }
    state
}

fn planned(state: &State, waiting: u32, now: u64) -> (Vec<String>, Plan) {
    let plan = plan(state, &Targets::default(), &Demand { waiting, ..Demand::default() }, at(now));
    (plan.ops.iter().map(|planned| planned.op.to_string()).collect(), plan)
}

#[test]
fn ipv6_alone_wants_one_delegation_and_never_grows_or_shrinks() {
    let mut state = state(Families::V6, vec![eni(1, &["10.0.0.1/32"])]);
    assert_eq!(planned(&state, 5, 0).0, ["assign a /80 to eni-00000001"]);
    assert!(!state.ledger().primary().unwrap().takes_pods(), "not before it has a /80");
    assert_eq!(state.ledger().primary().unwrap().blocks.len(), 0, "IPv4 is not for pods");
    let net = "2001:db8:0:1:7::/80".parse().unwrap();
    done(&mut state, &Op::AssignIpv6 { eni: eni_id(1) }, Outcome::AssignedIpv6(net), at(1));
    state.apply(Event::EniReady(eni_id(1)), at(1)).unwrap();
    assert_eq!(state.ledger().next_available(at(1)), Some(ip("2001:db8:0:1:7::1")));
    assert_eq!(state.ledger().tally(at(1)).free, u32::from(WINDOW));
    for waiting in [0, 5, 300] {
        let (ops, plan) = planned(&state, waiting, 300);
        assert!(ops.is_empty() && plan.hopeless.is_none() && plan.held_up.is_none(), "{ops:?}");
    }
    assert_eq!(check(&state, at(1)), []);
}

#[test]
fn who_comes_after_the_window_is_full_hears_of_it_and_of_the_next_that_cools() {
    let mut state = state(Families::V6, vec![with_ipv6(1, &[])]);
    let free: Vec<_> = state.ledger().available(at(1)).collect();
    for (index, address) in free.iter().enumerate() {
        state.apply(Event::Assign(*address, owner(&format!("p{index}"))), at(1)).unwrap();
    }
    let (_, plan) = planned(&state, 2, 2);
    assert_eq!(plan.hopeless.as_ref().unwrap().beyond, 2);
    assert_eq!(
        plan.hopeless.unwrap().cause.to_string(),
        "the instance type allows 1 ENI, and all 1022 of its addresses for pods are taken"
    );
    state.apply(Event::Release(owner("p3").attachment.clone(), COOLDOWN), at(3)).unwrap();
    let (_, plan) = planned(&state, 2, 4);
    assert_eq!((plan.hopeless.unwrap().beyond, plan.wake_at), (1, Some(at(33))));
}

#[test]
fn an_instance_without_prefixes_has_no_ipv6() {
    let mut state = state(Families::V6, vec![eni(1, &[])]);
    let limits = InstanceLimits { prefixes: false, ..node().limits };
    let node = Node { limits, ..node_with(Families::V6) };
    state.apply(Event::NodeKnown(node), at(1)).unwrap();
    let (ops, plan) = planned(&state, 1, 1);
    assert_eq!(ops, [] as [&str; 0]);
    assert_eq!(plan.hopeless.unwrap().cause, Cause::NoIpv6 { instance_type: "m5.large".to_owned() });
}

#[test]
fn dual_stack_delegates_to_every_eni_and_makes_new_ones_with_a_delegation() {
    let mut state = state(Families::Dual, vec![with_ipv6(1, &["10.0.0.1/32"]), eni(2, &["10.0.0.2/32"])]);
    assert_eq!(state.ledger().available(at(0)).collect::<Vec<_>>(), [ip("10.0.0.1")], "only what has both");
    let (ops, plan) = planned(&state, 20, 0);
    assert_eq!(ops.first().unwrap(), "assign a /80 to eni-00000002");
    assert!(ops.iter().any(|op| op.starts_with("assign 8 addresses to eni-00000002")), "both at once: {ops:?}");
    let creates = plan.ops.iter().filter_map(|planned| match &planned.op {
        Op::Create(request) => Some(request.ipv6_prefix),
        _ => None,
    });
    assert_eq!(creates.collect::<Vec<_>>(), [true]);
    state.apply(Event::Assign(ip("10.0.0.1"), owner("a")), at(1)).unwrap();
    assert_eq!(state.ledger().companion_of(ip("10.0.0.1")), Some("2001:db8:0:1:1::a00:1".parse().unwrap()));
    let again = Checkpoint::of(&state, at(2)).into_state(at(2)).unwrap();
    assert_eq!(again.ledger(), state.ledger());
}

#[test]
fn an_eni_is_not_made_where_there_is_no_ipv6() {
    let mut state = state(Families::Dual, vec![with_ipv6(1, &["10.0.0.1/32"])]);
    state.apply(Event::SubnetsKnown(vec![crate::fixture::subnet(1, 1000, &[])]), at(0)).unwrap();
    let (ops, plan) = planned(&state, 20, 0);
    assert!(ops.iter().all(|op| !op.contains("create")), "{ops:?}");
    assert_eq!(plan.hopeless.unwrap().cause, Cause::NoSubnet);
    assert_eq!(state.subnets()[&subnet_id(1)].ipv6_cidr, None);
}

#[test]
fn a_refused_delegation_says_nothing_of_the_subnets_ipv4_addresses() {
    let mut state = state(Families::Dual, vec![eni(1, &["10.0.0.1/32"])]);
    failed(&mut state, &Op::AssignIpv6 { eni: eni_id(1) }, CloudErrorKind::InsufficientPrefixes, at(1));
    assert!(state.subnets()[&subnet_id(1)].no_prefixes.is_none());
    let (ops, plan) = planned(&state, 1, 2);
    assert!(!ops.iter().any(|op| op.contains("/80")), "{ops:?}");
    assert!(matches!(plan.held_up, Some(Cause::Unavailable { api: Api::AssignIpv6Addresses, .. })));
    assert!(planned(&state, 1, 20).0.contains(&"assign a /80 to eni-00000001".to_owned()));
}

#[test]
fn a_description_that_lacks_a_delegation_is_believed_late_and_takes_nothing_from_pods() {
    let mut state = state(Families::Dual, vec![with_ipv6(1, &["10.0.0.1/32", "10.0.0.2/32"])]);
    state.apply(Event::Assign(ip("10.0.0.1"), owner("a")), at(1)).unwrap();
    let without = eni(1, &["10.0.0.1/32", "10.0.0.2/32"]);
    state.apply(Event::EniDescribed(eni_id(1), Some(without.clone())), at(30)).unwrap();
    assert!(state.ledger().primary().unwrap().takes_pods(), "it may be late");
    assert!(state.ledger().primary().unwrap().unsure);
    state.apply(Event::EniDescribed(eni_id(1), Some(without)), at(100)).unwrap();
    let primary = state.ledger().primary().unwrap();
    assert!(primary.ipv6.is_none() && !primary.takes_pods());
    assert!(state.ledger().companion_of(ip("10.0.0.1")).is_some(), "the pod keeps its address");
    assert_eq!(check(&state, at(100)), []);
    assert_eq!(planned(&state, 0, 100).0.first().unwrap(), "assign a /80 to eni-00000001");
}
