mod cards;

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::check::check;
use crate::cloud::{Api, Assigned, CloudErrorKind, ConnectionTracking, Ec2Eni, InterfaceType, Unassign};
use crate::fixture::{
    COOLDOWN, at, done, eni, eni_id, failed, failure, ip, net, node, owner, state, subnet, subnet_id,
};
use crate::ledger::Stage;
use crate::op::Outcome;
use crate::queue::Queue;
use crate::state::{Event, tag};

fn warm_ips(warm_ips: u32) -> Targets {
    Targets { warm_ips, ..Targets::default() }
}

/// Nothing is kept spare.
fn idle() -> Targets {
    Targets { warm_enis: 0, ..Targets::default() }
}

fn ops(state: &State, targets: &Targets, waiting: u32, seconds: u64) -> Vec<String> {
    plan(state, targets, &Demand { waiting, ..Demand::default() }, at(seconds))
        .ops
        .iter()
        .map(|planned| planned.op.to_string())
        .collect()
}

fn begin_all(state: &mut State, targets: &Targets, waiting: u32, seconds: u64) -> Vec<Op> {
    let ops: Vec<Op> = plan(state, targets, &Demand { waiting, ..Demand::default() }, at(seconds))
        .ops
        .into_iter()
        .map(|planned| planned.op)
        .collect();
    for op in &ops {
        state.apply(Event::Begin(op.clone()), at(seconds)).unwrap();
    }
    ops
}

fn singles(count: u8) -> Vec<String> {
    (1..=count).map(|host| format!("10.0.0.{host}/32")).collect()
}

fn with(n: u32, blocks: &[String]) -> Ec2Eni {
    eni(n, &blocks.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn what_is_under_way_is_not_asked_for_twice() {
    let mut state = state(vec![eni(1, &[])]);
    let targets = Targets::default();
    let begun = begin_all(&mut state, &targets, 15, 1);
    assert_eq!(
        begun.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "assign 9 addresses to eni-00000001",
            "create ENI in subnet-00000001 with 9 addresses",
            "create ENI in subnet-00000001 with 9 addresses"
        ]
    );
    assert_eq!(ops(&state, &targets, 15, 2), [""; 0]);
    // More demand than is on its way, on an ENI that is busy: it waits for the end of that call.
    assert_eq!(ops(&state, &targets, 25, 2), [""; 0]);
    // The creates are known by their client tokens, also when their calls have ended without an answer.
    let failure = failure(Api::CreateNetworkInterface, CloudErrorKind::Timeout);
    state.apply(Event::End(begun[1].clone(), Err(failure)), at(3)).unwrap();
    assert_eq!(ops(&state, &targets, 15, 4), [""; 0]);
    let again = plan(&state, &targets, &Demand { waiting: 15, ..Demand::default() }, at(13)).ops;
    assert_eq!(again.iter().map(|planned| &planned.op).collect::<Vec<_>>(), [&begun[1]], "word for word");
}

#[test]
fn a_new_eni_goes_through_its_life_one_step_at_a_time() {
    let mut state = state(vec![with(1, &singles(9))]);
    let targets = Targets::default();
    let create = begin_all(&mut state, &targets, 0, 1);
    assert_eq!(create, []);
    let create = begin_all(&mut state, &targets, 1, 1);
    assert_eq!(create.len(), 1, "nine are no whole ENI's worth once one is taken");
    let made = Ec2Eni { attachment: None, ..eni(2, &["10.0.1.1/32"]) };
    state.apply(Event::End(create[0].clone(), Ok(Outcome::Created(made))), at(2)).unwrap();
    let attach = begin_all(&mut state, &targets, 1, 2);
    assert_eq!(attach[0].to_string(), "attach eni-00000002 as card 0 device 1");
    let attachment = crate::fixture::attachment_id(2);
    state.apply(Event::End(attach[0].clone(), Ok(Outcome::Attached(attachment))), at(5)).unwrap();
    assert_eq!(ops(&state, &targets, 1, 5), ["mark eni-00000002 to go with the instance"]);
    // EC2 gave one address where nine were asked for: the rest follows when it is wanted, beside the attribute.
    assert_eq!(ops(&state, &targets, 2, 5)[1], "assign 8 addresses to eni-00000002");
    assert_eq!(state.ledger().tally(at(5)).pending, 1);
    state.apply(Event::EniReady(eni_id(2)), at(6)).unwrap();
    assert_eq!(state.ledger().tally(at(6)).free, 10);
}

#[test]
fn the_lowest_device_number_that_ec2_accepts_is_taken() {
    let mut third = eni(3, &[]);
    third.attachment.as_mut().unwrap().device = 2;
    let created = Ec2Eni { attachment: None, ..eni(2, &[]) };
    let mut state = state(vec![with(1, &singles(9)), created, third]);
    let targets = Targets { max_pods: 0, ..Targets::default() };
    let attach = "attach eni-00000002 as card 0 device 1";
    let op = plan(&state, &targets, &Demand::default(), at(1)).ops.remove(0).op;
    assert_eq!(op.to_string(), attach);
    failed(&mut state, &op, CloudErrorKind::Conflict, at(1));
    // EC2 is asked first what has become of it, then another number is tried, and the first one again a minute later.
    assert_eq!(ops(&state, &targets, 0, 11)[0], "ask EC2 about eni-00000002");
    let inspect = Op::Inspect { eni: eni_id(2) };
    let created = Ec2Eni { attachment: None, ..eni(2, &[]) };
    let later = |state: &State, seconds| {
        let mut state = state.clone();
        done(&mut state, &inspect, Outcome::Inspected(Some(created.clone())), at(seconds));
        ops(&state, &targets, 0, seconds).remove(0)
    };
    assert_eq!(later(&state, 11), "attach eni-00000002 as card 0 device 3");
    assert_eq!(later(&state, 62), attach);
}

#[test]
fn an_eni_of_others_takes_a_place_and_nothing_else() {
    let mut unmanaged = eni(2, &["10.0.0.20/32"]);
    unmanaged.tags.insert(tag::NO_MANAGE.to_owned(), "true".to_owned());
    let mut trunk = eni(3, &["10.0.0.30/32"]);
    trunk.interface_type = InterfaceType::Trunk;
    let state = state(vec![with(1, &singles(9)), unmanaged, trunk]);
    let plan = plan(&state, &Targets::default(), &Demand { waiting: 10, ..Demand::default() }, at(1_000));
    assert_eq!(plan.ops, []);
    let limit = Cause::EniLimit { limit: 3, by_setting: false, addresses: 9, relief: Relief::Prefixes };
    assert_eq!(plan.hopeless, Some(Hopeless { cause: limit, beyond: 1 }));
}

#[test]
fn an_eni_beyond_the_limit_is_deleted_not_attached() {
    let created = Ec2Eni { attachment: None, ..eni(4, &["10.0.4.1/32"]) };
    let state = state(vec![with(1, &singles(9)), eni(2, &[]), eni(3, &[]), created]);
    let targets = Targets { max_pods: 0, ..Targets::default() };
    assert!(ops(&state, &targets, 0, 100).contains(&"delete eni-00000004".to_owned()));
}

#[test]
fn a_young_eni_and_a_pool_that_has_just_changed_are_left_alone() {
    let mut state = state(vec![with(1, &singles(9)), eni(2, &[])]);
    let targets = warm_ips(2);
    assert_eq!(
        ops(&state, &targets, 0, 1),
        ["unassign from eni-00000001: 10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6 10.0.0.7"]
    );
    let unassign = plan(&state, &targets, &Demand::default(), at(1)).ops.remove(0).op;
    done(&mut state, &unassign, Outcome::Done, at(1));
    assert_eq!(ops(&state, &targets, 0, 30), [""; 0]);
    assert_eq!(plan(&state, &targets, &Demand::default(), at(30)).wake_at, Some(at(60)), "one minute old");
    assert_eq!(ops(&state, &targets, 0, 60), ["detach eni-00000002"]);
    // While somebody waits, nothing goes.
    assert_eq!(ops(&state, &targets, 1, 60), ["assign 1 address to eni-00000001"]);
}

#[test]
fn cooling_addresses_are_not_spare_and_not_given_back() {
    let mut state = state(vec![with(1, &singles(4))]);
    let targets = warm_ips(2);
    for name in ["a", "b"] {
        let address = state.ledger().next_available(at(1)).unwrap();
        state.apply(Event::Assign(address, owner(name)), at(1)).unwrap();
    }
    for name in ["a", "b"] {
        state.apply(Event::Release(owner(name).attachment.clone(), COOLDOWN), at(100)).unwrap();
    }
    assert_eq!(ops(&state, &targets, 0, 101), [""; 0], "two are free, two are cooling");
    assert_eq!(plan(&state, &targets, &Demand::default(), at(101)).wake_at, Some(at(130)));
    assert_eq!(ops(&state, &targets, 0, 130), ["unassign from eni-00000001: 10.0.0.3 10.0.0.4"]);
}

#[test]
fn a_change_to_prefixes_makes_room_for_them_and_keeps_the_pods() {
    let targets = Targets { prefixes: true, ..Targets::default() };
    let mut state = state(vec![with(1, &singles(9)), with(2, &[]), with(3, &[])]);
    state.apply(Event::Assign(ip("10.0.0.1"), owner("a")), at(1)).unwrap();
    // There is room on others: the addresses go later, in peace.
    assert_eq!(ops(&state, &targets, 0, 2), ["assign 1 prefix to eni-00000002"]);
    let mut full = crate::fixture::state(vec![with(1, &singles(9))]);
    full.apply(Event::Assign(ip("10.0.0.1"), owner("a")), at(1)).unwrap();
    assert_eq!(ops(&full, &targets, 0, 2), ["unassign from eni-00000001: 10.0.0.2"]);
    let unassign = plan(&full, &targets, &Demand::default(), at(2)).ops.remove(0).op;
    done(&mut full, &unassign, Outcome::Done, at(2));
    let assign = plan(&full, &targets, &Demand::default(), at(2)).ops.remove(0).op;
    let assigned = Assigned { prefixes: [net("10.0.1.0/28")].into(), ..Assigned::default() };
    done(&mut full, &assign, Outcome::Assigned(assigned), at(2));
    let rest = ops(&full, &targets, 0, 40);
    assert_eq!(rest.len(), 1);
    assert!(rest[0].starts_with("unassign from eni-00000001: 10.0.0.3 "), "{rest:?}");
    // And back: a free prefix makes room for single addresses.
    let mut blocks = singles(8);
    blocks.push("10.0.1.0/28".to_owned());
    let back = crate::fixture::state(vec![with(1, &blocks)]);
    assert_eq!(ops(&back, &Targets::default(), 0, 100), ["unassign from eni-00000001: 10.0.1.0/28"]);
}

#[test]
fn subnets_are_chosen_by_tag_and_by_what_is_free() {
    let mut state = state(vec![with(1, &singles(9))]);
    let subnets = vec![
        subnet(1, 50, &[]),
        subnet(2, 400, &[("kubernetes.io/role/cni", "1")]),
        subnet(3, 900, &[("kubernetes.io/role/cni", "0")]),
        subnet(4, 900, &[("kubernetes.io/role/cni", "1"), ("cni.networking.k8s.aws/cluster/other", "x")]),
        subnet(5, 900, &[]),
    ];
    state.apply(Event::SubnetsKnown(subnets), at(1)).unwrap();
    let chosen = |targets: &Targets| ops(&state, targets, 1, 1);
    let ours = Targets { cluster: Some("ours".to_owned()), ..Targets::default() };
    assert_eq!(chosen(&ours), ["create ENI in subnet-00000002 with 9 addresses"]);
    assert_eq!(chosen(&Targets::default()), ["create ENI in subnet-00000004 with 9 addresses"]);
    let primary_only = Targets { subnet_discovery: false, ..Targets::default() };
    assert_eq!(chosen(&primary_only), ["create ENI in subnet-00000001 with 9 addresses"]);
    // One that is short is passed over.
    state.subnets.get_mut(&subnet_id(2)).unwrap().no_addresses =
        Some(crate::state::Shortage { until: at(99), times: 1, at_most: 1 });
    assert_eq!(ops(&state, &ours, 1, 1), ["create ENI in subnet-00000001 with 9 addresses"]);
}

#[test]
fn before_ec2_has_spoken_no_eni_is_made_and_nothing_given_back() {
    let mut state = state(vec![with(1, &singles(9))]);
    state.survey_at = Some(at(1));
    assert_eq!(ops(&state, &Targets::default(), 5, 1), ["ask EC2 for all ENIs of this node"]);
    assert_eq!(ops(&state, &warm_ips(1), 0, 1), ["ask EC2 for all ENIs of this node"]);
    let unknown = State::new(1);
    assert_eq!(
        plan(&unknown, &Targets::default(), &Demand { waiting: 1, ..Demand::default() }, at(0)).held_up,
        Some(Cause::NotReady)
    );
}

#[test]
fn an_eni_whose_attachment_is_unknown_is_asked_about_before_it_is_freed() {
    let mut state = state(vec![with(1, &singles(9)), eni(2, &[])]);
    state.ledger.eni_mut(&eni_id(2)).unwrap().attachment = None;
    assert_eq!(ops(&state, &Targets::default(), 0, 100), ["ask EC2 about eni-00000002"]);
    let _known = state.apply(Event::EniDescribed(eni_id(2), Some(eni(2, &[]))), at(101));
    let detach = plan(&state, &Targets::default(), &Demand::default(), at(101)).ops.remove(0).op;
    assert_eq!(detach.to_string(), "detach eni-00000002");
    done(&mut state, &detach, Outcome::Done, at(101));
    assert_eq!(state.ledger().eni(&eni_id(2)).unwrap().stage, Stage::Leaving);
    assert_eq!(ops(&state, &Targets::default(), 0, 102), [""; 0], "a detach takes a while");
    assert_eq!(ops(&state, &Targets::default(), 0, 103), ["delete eni-00000002"]);
}

#[test]
fn no_more_pods_than_the_kubelet_takes_are_prepared_for() {
    let state = state(vec![with(1, &singles(5))]);
    let targets = Targets { max_pods: 5, ..Targets::default() };
    assert_eq!(ops(&state, &targets, 0, 1), [""; 0]);
    // Who waits is there all the same.
    assert_eq!(ops(&state, &targets, 6, 1), ["assign 4 addresses to eni-00000001"]);
}

/// VPC CNI takes one step after the other and stops at the first that comes to what the kubelet takes.
#[test]
fn a_crowd_brings_no_eni_beyond_the_one_that_holds_what_the_kubelet_takes() {
    let state = state(vec![with(1, &singles(9))]);
    let created = |max_pods: u32| ops(&state, &Targets { max_pods, ..Targets::default() }, 10, 1).len();
    assert_eq!((created(18), created(19)), (1, 2));
    // Addresses are counted one by one where the target is.
    let targets = Targets { max_pods: 9, ..warm_ips(5) };
    let assigned = |max_pods| {
        ops(&crate::fixture::state(vec![with(1, &singles(3))]), &Targets { max_pods, ..targets.clone() }, 3, 1)
    };
    assert_eq!(assigned(9), ["assign 5 addresses to eni-00000001"]);
    assert_eq!(assigned(6), ["assign 3 addresses to eni-00000001"]);
}

/// Of two ENIs' worth of pods one ENI has room, and the subnet has no whole /28: single addresses fill all ENIs, and who is left over
/// hears of that and not of a subnet without addresses.
#[test]
fn a_subnet_without_a_whole_prefix_is_no_subnet_without_addresses() {
    let mut state = state(vec![with(1, &[])]);
    let targets = Targets { prefixes: true, ..Targets::default() };
    let one = Op::Assign { eni: eni_id(1), count: AddressCount::Prefixes(1) };
    failed(&mut state, &one, CloudErrorKind::InsufficientPrefixes, at(1));
    assert!(state.subnets()[&subnet_id(1)].lacks_prefixes());
    let plan = plan(&state, &targets, &Demand { waiting: 40, ..Demand::default() }, at(2));
    let asked: Vec<String> = plan.ops.iter().map(|planned| planned.op.to_string()).collect();
    let create = "create ENI in subnet-00000001 with 9 addresses";
    assert_eq!(asked, ["assign 9 addresses to eni-00000001", create, create]);
    let Hopeless { cause, beyond } = plan.hopeless.unwrap();
    assert!(matches!(cause, Cause::EniLimit { limit: 3, .. }), "{cause}");
    assert_eq!(beyond, 40 - 27);
    let assigned = Assigned { prefixes: [net("10.0.1.0/28")].into(), ..Assigned::default() };
    done(&mut state, &one, Outcome::Assigned(assigned), at(70));
    assert!(!state.subnets()[&subnet_id(1)].lacks_prefixes());
}

#[test]
fn every_operation_has_a_reason() {
    let state = state(vec![eni(1, &[])]);
    let planned = plan(&state, &warm_ips(3), &Demand { waiting: 2, ..Demand::default() }, at(1)).ops;
    assert_eq!(planned[0].reason, "2 ADDs wait, 0 addresses are spare or coming, WARM_IP_TARGET=3");
    assert_eq!(node().limits.enis, 3);
}

/// Somebody detaches an ENI with a pod on it: the pod keeps its routes, and the ENI is attached again when the pod has gone.
#[test]
fn an_eni_that_was_detached_from_under_a_pod_is_attached_again_after_it() {
    let mut state = state(vec![eni(1, &[]), eni(2, &["10.0.0.1/32", "10.0.0.2/32"])]);
    state.apply(Event::Assign(ip("10.0.0.1"), owner("a")), at(1)).unwrap();
    let detached = Ec2Eni { attachment: None, ..eni(2, &["10.0.0.1/32", "10.0.0.2/32"]) };
    let describe = |state: &mut State, now| {
        state.apply(Event::EniDescribed(eni_id(2), Some(detached.clone())), now).unwrap();
        assert_eq!(check(state, now), []);
    };
    let asked = |state: &State, now| {
        let planned = plan(state, &Targets::default(), &Demand::default(), now).ops;
        let on = planned.into_iter().map(|planned| planned.op).filter(|op| op.eni() == Some(&eni_id(2)));
        on.collect::<Vec<_>>()
    };
    describe(&mut state, at(100));
    let known = state.ledger().eni(&eni_id(2)).unwrap();
    assert_eq!((known.device, known.stage), (Some(1), Stage::InService));
    assert_eq!(state.ledger().next_available(at(100)), None, "no pod is put on it");
    let inspect = Op::Inspect { eni: eni_id(2) };
    assert!(!asked(&state, at(100)).contains(&inspect), "EC2 is not asked while the pod lives");
    state.apply(Event::Release(owner("a").attachment.clone(), COOLDOWN), at(200)).unwrap();
    assert_eq!(asked(&state, at(200)), [inspect]);
    describe(&mut state, at(201));
    let known = state.ledger().eni(&eni_id(2)).unwrap();
    assert_eq!((known.device, known.stage), (None, Stage::Created));
    assert!(matches!(asked(&state, at(201))[..], [Op::Attach { device: 1, .. }]));
}

/// A give-back that has failed is repeated also while the node wants more than it can have: nobody can use the places.
#[test]
fn a_give_back_that_failed_is_repeated_whatever_is_missing() {
    let mut state = state(vec![with(1, &singles(9))]);
    let what = Unassign { addresses: BTreeSet::from(["10.0.0.9".parse().unwrap()]), prefixes: BTreeSet::new() };
    let unassign = Op::Unassign { eni: eni_id(1), what };
    failed(&mut state, &unassign, CloudErrorKind::Unavailable, at(100));
    let targets = Targets { max_enis: Some(1), ..Targets::default() };
    assert!(ops(&state, &targets, 20, 200).contains(&unassign.to_string()), "{:?}", ops(&state, &targets, 20, 200));
    done(&mut state, &unassign, Outcome::Done, at(200));
    assert_eq!(ops(&state, &targets, 20, 201), ["assign 1 address to eni-00000001"]);
}

/// Pods that are bound to the node count until they wait or hold an address, and never make an ADD hopeless.
#[test]
fn pods_that_are_about_to_ask_are_demand_once() {
    let mut state = state(vec![with(1, &singles(4))]);
    let targets = warm_ips(1);
    let bound: BTreeSet<_> = ["a", "b", "c", "d", "e", "f"].iter().map(|name| owner(name).pod.clone()).collect();
    state.apply(Event::PodsBound(bound), at(1)).unwrap();
    let mut queue = Queue::default();
    assert_eq!(Demand::of(&state, &queue), Demand { bound: 6, ..Demand::default() });
    let planned = plan(&state, &targets, &Demand::of(&state, &queue), at(1)).ops;
    assert_eq!(planned[0].op.to_string(), "assign 3 addresses to eni-00000001");
    assert_eq!(planned[0].reason, "6 pods are about to ask, 4 addresses are spare or coming, WARM_IP_TARGET=1");
    state.apply(Event::Assign(ip("10.0.0.1"), owner("a")), at(2)).unwrap();
    queue.join(crate::queue::Token(1), owner("b"), None, at(60), at(2)).unwrap();
    assert_eq!(Demand::of(&state, &queue), Demand { waiting: 1, bound: 4, ..Demand::default() });
    // One that was made anew under the same name is another pod.
    let again = |uid: &str| sluice_contract::id::PodRef { uid: Some(uid.to_owned()), ..owner("a").pod.clone() };
    state.apply(Event::PodsBound(BTreeSet::from([again("2")])), at(3)).unwrap();
    assert_eq!(Demand::of(&state, &queue).bound, 0, "its UID is not known to be another");
    // Nothing is given back that they will want, and no ADD is refused for their sake.
    let limits = Targets { max_enis: Some(1), ..warm_ips(0) };
    let many = Demand { bound: 50, ..Demand::default() };
    let planned = plan(&state, &limits, &many, at(100));
    assert_eq!((planned.ops.len(), planned.hopeless), (1, None));
}

mod custom {
    use super::*;
    use crate::check::check;
    use crate::cloud::EniConfig;
    use crate::fixture::subnet;
    use crate::state::Node;

    fn custom_node() -> Node {
        Node { custom_networking: true, ..node() }
    }

    fn config(n: u32) -> EniConfig {
        EniConfig {
            name: "zone".to_owned(),
            subnet: subnet_id(n),
            security_groups: vec!["sg-00000007".parse().unwrap()],
        }
    }

    /// A node with custom networking that EC2 has said everything about.
    fn custom_state() -> State {
        let mut state = State::new(1);
        state.apply(Event::NodeKnown(custom_node()), at(0)).unwrap();
        state.apply(Event::SubnetsKnown(vec![subnet(1, 1000, &[]), subnet(2, 500, &[])]), at(0)).unwrap();
        state.apply(Event::Surveyed(vec![eni(1, &[])]), at(0)).unwrap();
        state.ledger.eni_mut(&eni_id(1)).unwrap().recheck = None;
        state.apply(Event::EniReady(eni_id(1)), at(0)).unwrap();
        state
    }

    #[test]
    fn enis_are_made_where_the_eni_config_says_and_the_primary_one_takes_no_pods() {
        let mut state = custom_state();
        let plan = plan(&state, &Targets::default(), &Demand { waiting: 3, ..Demand::default() }, at(1));
        assert!(plan.ops.is_empty(), "the primary ENI is not filled: {:?}", plan.ops);
        assert_eq!(plan.held_up, Some(Cause::NoEniConfig));
        assert_eq!(plan.hopeless, None, "it may be told of at any moment");
        state.apply(Event::EniConfigKnown(Some(config(2))), at(1)).unwrap();
        let plan = super::plan(&state, &Targets::default(), &Demand { waiting: 3, ..Demand::default() }, at(1));
        let [Op::Create(request), ..] = &plan.ops.iter().map(|planned| planned.op.clone()).collect::<Vec<_>>()[..]
        else {
            panic!("{:?}", plan.ops);
        };
        assert_eq!((&request.subnet, &request.security_groups), (&subnet_id(2), &config(2).security_groups));
        assert_eq!(check(&state, at(1)), []);
    }

    #[test]
    fn an_eni_config_that_names_a_foreign_subnet_is_told_to_who_waits() {
        let mut state = custom_state();
        state.apply(Event::EniConfigKnown(Some(config(9))), at(1)).unwrap();
        let plan = plan(&state, &Targets::default(), &Demand { waiting: 1, ..Demand::default() }, at(1));
        let cause = plan.hopeless.unwrap().cause;
        assert_eq!(cause.to_string(), "ENIConfig zone names subnet-00000009, which is not in the node's VPC and zone");
    }

    #[test]
    fn a_primary_eni_that_had_pods_keeps_them_and_gives_back_what_they_leave() {
        let mut state = state(vec![eni(1, &["10.0.0.1/32", "10.0.0.2/32"])]);
        state.apply(Event::Assign(ip("10.0.0.1"), owner("a")), at(1)).unwrap();
        state.apply(Event::NodeKnown(custom_node()), at(2)).unwrap();
        assert_eq!(state.ledger().next_available(at(3)), None);
        assert_eq!(check(&state, at(3)), []);
        let ops = |state: &State, now| plan(state, &Targets::default(), &Demand::default(), at(now)).ops;
        let words =
            |state: &State, now| ops(state, now).iter().map(|planned| planned.op.to_string()).collect::<Vec<_>>();
        assert_eq!(words(&state, 3), ["unassign from eni-00000001: 10.0.0.2"]);
        state.apply(Event::Release(owner("a").attachment.clone(), COOLDOWN), at(4)).unwrap();
        assert_eq!(words(&state, 60), ["unassign from eni-00000001: 10.0.0.1 10.0.0.2"]);
    }
}

#[test]
fn security_groups_of_the_primary_eni_are_followed_by_those_that_were_made_for_pods() {
    let groups = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<_>>();
    let with =
        |n: u32, names: &[&str]| Ec2Eni { security_groups: groups(names), ..eni(n, &[&format!("10.0.{n}.1/32")]) };
    let mut state = state(vec![with(1, &["sg-00000001"]), with(2, &["sg-00000002", "sg-00000001"])]);
    let now = |state: &mut State, names: &[&str]| {
        let node = crate::state::Node { security_groups: groups(names), ..node() };
        state.apply(Event::NodeKnown(node), at(1)).unwrap();
        ops(state, &idle(), 0, 1)
    };
    assert_eq!(now(&mut state, &["sg-00000001", "sg-00000002"]), [] as [&str; 0], "their order means nothing");
    let planned = now(&mut state, &["sg-00000001", "sg-00000003"]);
    assert_eq!(planned, ["set the security groups of eni-00000002: sg-00000001 sg-00000003"]);
    let op = Op::SetGroups { eni: eni_id(2), groups: groups(&["sg-00000001", "sg-00000003"]) };
    done(&mut state, &op, Outcome::Done, at(2));
    assert_eq!(ops(&state, &idle(), 0, 3), [] as [&str; 0]);
}

#[test]
fn without_provisioning_ec2_is_only_asked_and_who_waits_in_vain_hears_it() {
    let state = state(vec![eni(1, &["10.0.0.1/32"])]);
    let targets = Targets { provisioning: false, ..Targets::default() };
    let plan = plan(&state, &targets, &Demand { waiting: 3, ..Demand::default() }, at(1));
    assert!(plan.ops.is_empty(), "{:?}", plan.ops);
    let hopeless = plan.hopeless.unwrap();
    assert_eq!((hopeless.cause, hopeless.beyond), (Cause::NotProvisioning { imds_only: false }, 2));
    let mut fresh = State::new(1);
    fresh.apply(Event::NodeKnown(node()), at(0)).unwrap();
    assert!(!ops(&fresh, &targets, 0, 0).is_empty(), "what there is, is asked for");
}

#[test]
fn a_cordoned_node_serves_who_waits_and_keeps_nothing_warm() {
    let mut state = state(vec![eni(1, &["10.0.0.1/32"])]);
    state.apply(Event::Schedulable(false), at(1)).unwrap();
    assert_eq!(ops(&state, &warm_ips(5), 1, 1), [] as [&str; 0]);
    assert_eq!(ops(&state, &warm_ips(5), 3, 1), ["assign 2 addresses to eni-00000001"]);
    let warm = Targets { warm_when_cordoned: true, ..warm_ips(5) };
    assert_eq!(ops(&state, &warm, 1, 1), ["assign 5 addresses to eni-00000001"]);
}

#[test]
fn what_attached_enis_lack_of_this_nodes_tags_they_get() {
    let bare = Ec2Eni { tags: BTreeMap::from([("team".to_owned(), "a".to_owned())]), ..eni(2, &["10.0.2.1/32"]) };
    let mut others = Ec2Eni { tags: BTreeMap::new(), ..eni(3, &[]) };
    others.tags.insert(tag::NO_MANAGE.to_owned(), "true".to_owned());
    let mut state = state(vec![eni(1, &[]), bare, others]);
    let planned = ops(&state, &idle(), 0, 1);
    assert_eq!(planned, [format!("tag eni-00000002: {}=i-00000001", tag::INSTANCE)]);
    let op = plan(&state, &idle(), &Demand::default(), at(1)).ops.remove(0).op;
    done(&mut state, &op, Outcome::Done, at(2));
    assert_eq!(ops(&state, &idle(), 0, 3), [] as [&str; 0]);
}

mod excluded {
    use super::*;
    use crate::check::check;
    use crate::fixture::subnet;

    fn words(state: &State, waiting: u32, now: u64) -> Vec<String> {
        let demand = Demand { waiting, ..Demand::default() };
        plan(state, &warm_ips(1), &demand, at(now)).ops.iter().map(|planned| planned.op.to_string()).collect()
    }

    fn tagged(state: &mut State, tags: &[(&str, &str)], now: u64) {
        let subnets = vec![subnet(1, 100, &[]), subnet(2, 100, tags), subnet(3, 100, &[(tag::SUBNET_ROLE, "1")])];
        state.apply(Event::SubnetsKnown(subnets), at(now)).unwrap();
    }

    /// An ENI in subnet 1, the primary one, and one in subnet 2 with a pod and two free addresses.
    fn two() -> State {
        let second = Ec2Eni {
            subnet: subnet_id(2),
            ..with(2, &["10.0.2.1/32", "10.0.2.2/32", "10.0.2.3/32"].map(str::to_owned))
        };
        let mut state = state(vec![with(1, &["10.0.0.1/32".to_owned()]), second]);
        state.apply(Event::Assign(ip("10.0.2.1"), owner("a")), at(1)).unwrap();
        state
    }

    #[test]
    fn enis_in_a_subnet_that_is_tagged_out_of_use_are_drained_and_go() {
        let mut state = two();
        tagged(&mut state, &[(tag::SUBNET_ROLE, "0")], 100);
        assert_eq!(check(&state, at(100)), []);
        assert_eq!(state.ledger().available(at(100)).collect::<Vec<_>>(), [ip("10.0.0.1")]);
        assert_eq!(words(&state, 0, 100), ["unassign from eni-00000002: 10.0.2.2 10.0.2.3"]);
        // The pod keeps what it has, and what it needs on the host.
        assert_eq!(state.ledger().address_of(&owner("a").attachment), Some(ip("10.0.2.1")));
        assert!(state.ledger().eni(&eni_id(2)).unwrap().is_of_pods());
        state.apply(Event::Release(owner("a").attachment.clone(), COOLDOWN), at(110)).unwrap();
        assert_eq!(words(&state, 0, 139), ["unassign from eni-00000002: 10.0.2.2 10.0.2.3"], "it cools");
        assert_eq!(words(&state, 0, 140), ["detach eni-00000002"], "whole, when nothing is on it");
        // New ENIs go elsewhere: to the tagged subnet or the primary one's.
        let full = words(&state, 40, 140);
        assert!(full.iter().all(|op| !op.contains(&format!("create ENI in {}", subnet_id(2)))), "{full:?}");
        assert!(full.iter().any(|op| op.starts_with("create ENI in")), "{full:?}");
    }

    #[test]
    fn what_cannot_be_confirmed_to_be_excluded_is_used() {
        for (tags, cluster, excluded) in [
            (&[][..], None, false),
            (&[(tag::SUBNET_ROLE, "")], None, false),
            (&[(tag::SUBNET_ROLE, "0")], None, true),
            (&[(tag::SUBNET_ROLE, "1")], Some("ours"), false),
            (&[(tag::SUBNET_ROLE, "1"), ("cni.networking.k8s.aws/cluster/ours", "")], Some("ours"), false),
            (&[(tag::SUBNET_ROLE, "1"), ("cni.networking.k8s.aws/cluster/theirs", "")], Some("ours"), true),
            (&[(tag::SUBNET_ROLE, "1"), ("cni.networking.k8s.aws/cluster/theirs", "")], None, false),
            (&[("cni.networking.k8s.aws/cluster/theirs", "")], Some("ours"), false),
        ] {
            let mut node = node();
            node.tags.extend(cluster.map(|name| (tag::CLUSTER.to_owned(), name.to_owned())));
            let mut state = two();
            state.apply(Event::NodeKnown(node.clone()), at(2)).unwrap();
            tagged(&mut state, tags, 2);
            assert_eq!(state.ledger().eni(&eni_id(2)).unwrap().closed, excluded, "{tags:?} {cluster:?}");
            // It is asked for by ENABLE_SUBNET_DISCOVERY.
            state.apply(Event::NodeKnown(crate::state::Node { subnet_discovery: false, ..node }), at(3)).unwrap();
            assert!(!state.ledger().eni(&eni_id(2)).unwrap().closed);
        }
    }
}

#[test]
fn new_enis_remember_connections_for_as_long_as_the_primary_one() {
    let tracking = ConnectionTracking { tcp_established: Some(350), ..ConnectionTracking::default() };
    let primary = Ec2Eni { connection_tracking: Some(tracking), ..with(1, &singles(9)) };
    for (primary, expected) in [(primary, Some(tracking)), (with(1, &singles(9)), None)] {
        let state = state(vec![primary]);
        let plan = plan(&state, &Targets::default(), &Demand { waiting: 12, ..Demand::default() }, at(1));
        let created = plan.ops.iter().find_map(|planned| match &planned.op {
            Op::Create(request) => Some(request.connection_tracking),
            _ => None,
        });
        assert_eq!(created, Some(expected));
    }
}

#[test]
fn a_place_is_kept_for_the_trunk_until_it_is_there() {
    // Three ENIs may be there, one is.
    let targets = Targets { warm_enis: 3, trunk: true, max_pods: 1000, ..Targets::default() };
    let creates = |state: &State, targets: &Targets| {
        let planned = plan(state, targets, &Demand::default(), at(1)).ops;
        planned.iter().filter(|planned| matches!(planned.op, Op::Create(_))).count()
    };
    let alone = state(vec![eni(1, &[])]);
    let without = Targets { trunk: false, ..targets.clone() };
    assert_eq!(creates(&alone, &without), creates(&alone, &targets) + 1);
    let mut trunk = eni(2, &[]);
    trunk.interface_type = InterfaceType::Trunk;
    let with = state(vec![eni(1, &[]), trunk]);
    assert_eq!(creates(&with, &targets), creates(&with, &without));
    // Its type has none.
    let mut burstable = node();
    burstable.identity.instance_type = "t3.large".to_owned();
    let mut small = alone;
    small.apply(Event::NodeKnown(burstable), at(1)).unwrap();
    assert_eq!(creates(&small, &targets), creates(&small, &without));
}

#[test]
fn an_adaptive_pool_that_is_too_rich_shrinks_to_what_it_wants() {
    use crate::arrivals::Band;
    let mut state = state(vec![with(1, &singles(9))]);
    let targets = Targets { mode: WarmMode::Adaptive(Band::default()), ..Targets::default() };
    for minute in 1..600 {
        state.apply(Event::Arrived, at(minute * 60)).unwrap();
    }
    let band = state.arrivals().band(9, at(36_000));
    assert!(band.high < band.most && band.most < 9, "{band:?}");
    let planned = plan(&state, &targets, &Demand::default(), at(36_000)).ops;
    let Op::Unassign { what, .. } = &planned[0].op else { panic!("{planned:?}") };
    assert_eq!(9 - what.addresses.len(), usize::try_from(band.high).unwrap(), "{band:?}");
}

/// VPC CNI makes a second call at once, for one address, whatever the first error was, throttling included.
#[test]
fn a_throttled_call_is_not_made_again_before_its_pause_is_over() {
    let mut state = state(vec![eni(1, &[])]);
    let assign = plan(&state, &warm_ips(3), &Demand { waiting: 2, ..Demand::default() }, at(1)).ops.remove(0).op;
    assert!(matches!(assign, Op::Assign { .. }), "{assign}");
    // For ten seconds.
    failed(&mut state, &assign, CloudErrorKind::Throttled, at(1));
    for seconds in [1, 2, 6, 10] {
        let planned = ops(&state, &warm_ips(3), 2, seconds);
        assert!(!planned.iter().any(|op| op.starts_with("assign")), "after {seconds} s: {planned:?}");
    }
    assert!(ops(&state, &warm_ips(3), 2, 11).contains(&assign.to_string()));
}

/// VPC CNI takes a new ENI for ready as soon as it shows more than one of the prefixes that were asked for, and not with one.
#[test]
fn fewer_prefixes_than_were_asked_for_are_used_and_the_rest_is_asked_for() {
    let targets = Targets { prefixes: true, ..Targets::default() };
    let demand = Demand { waiting: 40, ..Demand::default() };
    let asked = |state: &State, seconds| match plan(state, &targets, &demand, at(seconds)).ops.remove(0).op {
        Op::Assign { eni, count: AddressCount::Prefixes(count) } => (eni, count),
        other => panic!("{other}"),
    };
    let mut state = state(vec![eni(1, &[])]);
    let (eni, count) = asked(&state, 1);
    assert!(count >= 3, "{count}");
    let assign = Op::Assign { eni: eni.clone(), count: AddressCount::Prefixes(count) };
    let assigned = Assigned { prefixes: [net("10.0.1.0/28")].into(), ..Assigned::default() };
    done(&mut state, &assign, Outcome::Assigned(assigned), at(2));
    assert_eq!(state.ledger().tally(at(2)).free, 16);
    assert_eq!(asked(&state, 2), (eni, count - 1));
    assert_eq!(check(&state, at(2)), []);
}
