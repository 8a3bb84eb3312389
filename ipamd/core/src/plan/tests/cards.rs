//! Nodes with several network cards.

use sluice_contract::id::EniId;

use super::*;
use crate::cloud::InstanceLimits;
use crate::queue::Token;
use crate::serve::serve;
use crate::state::Node;

/// A node whose type has three ENIs on card 0 and two on each of two further cards.
fn wide() -> Node {
    let limits = InstanceLimits { further_cards: vec![2, 2], ..node().limits };
    Node { limits, multi_nic: true, ..node() }
}

/// ENI `n`, attached to a card.
fn on(card: u32, device: u32, n: u32, blocks: &[&str]) -> Ec2Eni {
    let mut eni = eni(n, blocks);
    let at = eni.attachment.as_mut().unwrap();
    (at.card, at.device) = (card, device);
    eni
}

/// EC2 has told everything about a node, and all ENIs are set up.
fn told(node: Node, enis: Vec<Ec2Eni>) -> State {
    let mut state = State::new(1);
    let ids: Vec<EniId> = enis.iter().map(|eni| eni.eni.clone()).collect();
    state.apply(Event::NodeKnown(node), at(0)).unwrap();
    state.apply(Event::SubnetsKnown(vec![subnet(1, 1000, &[])]), at(0)).unwrap();
    state.apply(Event::Surveyed(enis), at(0)).unwrap();
    for id in ids {
        state.ledger.eni_mut(&id).unwrap().recheck = None;
        state.apply(Event::EniReady(id), at(0)).unwrap();
    }
    assert_eq!(check(&state, at(0)), []);
    state
}

fn planned(state: &State, targets: &Targets, demand: &Demand, seconds: u64) -> Vec<String> {
    plan(state, targets, demand, at(seconds)).ops.iter().map(|planned| planned.op.to_string()).collect()
}

#[test]
fn each_further_card_keeps_one_address_and_attaches_its_own_enis() {
    let mut state = told(wide(), vec![eni(1, &["10.0.0.1/32"])]);
    assert_eq!(state.cards(), [0, 1, 2]);
    let ops: Vec<Op> = plan(&state, &warm_ips(1), &Demand::default(), at(1)).ops.into_iter().map(|it| it.op).collect();
    let words: Vec<String> = ops.iter().map(ToString::to_string).collect();
    assert_eq!(words, ["create ENI in subnet-00000001 with 1 address"; 2]);
    for (op, n) in ops.iter().zip([2, 3]) {
        let made = Ec2Eni { attachment: None, ..with(n, &[format!("10.0.0.{n}/32")]) };
        done(&mut state, op, Outcome::Created(made), at(2));
    }
    let attach = planned(&state, &warm_ips(1), &Demand::default(), 3);
    assert_eq!(attach, ["attach eni-00000002 as card 1 device 0", "attach eni-00000003 as card 2 device 0"]);
    assert_eq!(check(&state, at(3)), []);
}

#[test]
fn without_the_setting_further_cards_are_let_alone() {
    let alone = Node { multi_nic: false, ..wide() };
    let mut state = told(alone, vec![eni(1, &["10.0.0.1/32"]), on(1, 0, 2, &["10.0.0.2/32"])]);
    assert_eq!(state.cards(), [0]);
    assert_eq!(state.ledger().available(at(1)).collect::<Vec<_>>(), [ip("10.0.0.1")]);
    assert_eq!(ops(&state, &warm_ips(1), 0, 1), [""; 0]);
    // Switched on, it is for pods if its tags do not say otherwise.
    state.apply(Event::NodeKnown(wide()), at(2)).unwrap();
    assert!(ops(&state, &warm_ips(1), 0, 3).contains(&"ask EC2 about eni-00000002".to_owned()));
    let described = on(1, 0, 2, &["10.0.0.2/32"]);
    state.apply(Event::EniDescribed(eni_id(2), Some(described)), at(4)).unwrap();
    state.apply(Event::EniReady(eni_id(2)), at(4)).unwrap();
    assert_eq!(state.ledger().available_on(1, at(4)).collect::<Vec<_>>(), [ip("10.0.0.2")]);
    assert_eq!(check(&state, at(4)), []);
    // Switched off again, it is drained: a pod keeps its address, and no other comes.
    state.apply(Event::Assign(ip("10.0.0.2"), owner("a")), at(5)).unwrap();
    state.apply(Event::NodeKnown(Node { multi_nic: false, ..wide() }), at(6)).unwrap();
    assert_eq!(state.ledger().address_of(&owner("a").attachment), Some(ip("10.0.0.2")));
    assert_eq!(state.ledger().available(at(1000)).collect::<Vec<_>>(), [ip("10.0.0.1")]);
    assert_eq!(check(&state, at(6)), []);
}

#[test]
fn a_card_with_efa_alone_serves_no_pods_and_one_with_more_does() {
    let efa = |n: u32| Ec2Eni { interface_type: InterfaceType::EfaOnly, ..on(1, n - 2, n, &[]) };
    let state = told(wide(), vec![eni(1, &["10.0.0.1/32"]), efa(2)]);
    assert_eq!(state.cards(), [0, 2]);
    let state = told(wide(), vec![eni(1, &["10.0.0.1/32"]), efa(2), on(1, 1, 3, &["10.0.0.3/32"])]);
    assert_eq!(state.cards(), [0, 1, 2]);
    assert_eq!(state.ledger().available_on(1, at(1)).collect::<Vec<_>>(), [ip("10.0.0.3")]);
}

#[test]
fn who_waits_for_a_card_is_served_from_it_and_told_of_it() {
    let mut state = told(wide(), vec![eni(1, &["10.0.0.1/32", "10.0.0.9/32"]), on(1, 0, 2, &["10.0.0.2/32"])]);
    let mut queue = Queue::default();
    let part = |index: u8| {
        let attachment = sluice_contract::node::nic::attachment(&owner("a").attachment, index).unwrap();
        std::sync::Arc::new(crate::ledger::Owner { attachment, ..crate::ledger::Owner::clone(&owner("a")) })
    };
    for (index, card) in (0..).zip(state.cards()) {
        queue.join(Token(1), part(index), Some(card), at(60), at(0)).unwrap();
    }
    let demand = Demand::of(&state, &queue);
    assert_eq!(demand, Demand { waiting: 1, bound: 0, pinned: 1, further: BTreeMap::from([(1, 1), (2, 1)]) });
    let plan_now = |state: &State, now: u64| plan(state, &warm_ips(1), &demand, at(now));
    let serving = serve(&state, &queue, &plan_now(&state, 1), at(1));
    let grants: Vec<String> = serving.grants.iter().map(|grant| grant.address.to_string()).collect();
    assert_eq!(grants, ["10.0.0.1", "10.0.0.2"]);
    for grant in serving.grants {
        state.apply(Event::Assign(grant.address, std::sync::Arc::clone(&grant.owner)), at(1)).unwrap();
        queue.remove(&grant.owner.attachment);
    }
    assert_eq!(check(&state, at(1)), []);
    let late = serve(&state, &queue, &plan_now(&state, 61), at(61)).refused;
    assert_eq!(late.len(), 1);
    assert!(late[0].refusal.message.starts_with("no address of network card 2 was free within"), "{:?}", late[0]);
    assert!(queue.withdraw(Token(1)));
    assert_eq!(queue, Queue::default());
}

#[test]
fn pods_with_one_interface_go_to_a_further_card_only_when_the_first_is_full() {
    let narrow = Node { limits: InstanceLimits { enis: 1, further_cards: vec![1], ..node().limits }, ..wide() };
    let nine = singles(9);
    let mut state = told(narrow, vec![with(1, &nine), on(1, 0, 2, &["10.0.2.1/32"])]);
    let mut queue = Queue::default();
    for n in 0..10u32 {
        queue.join(Token(n.into()), owner(&format!("pod{n}")), None, at(60), at(0)).unwrap();
    }
    let serving = serve(&state, &queue, &plan(&state, &idle(), &Demand::of(&state, &queue), at(1)), at(1));
    assert_eq!(serving.grants.last().unwrap().address, ip("10.0.2.1"));
    assert_eq!((serving.grants.len(), serving.refused.len()), (10, 0));
    for grant in serving.grants {
        state.apply(Event::Assign(grant.address, std::sync::Arc::clone(&grant.owner)), at(1)).unwrap();
        queue.remove(&grant.owner.attachment);
    }
    // The next one makes the further card grow; beyond that, there is no hope.
    let demand = |waiting| Demand { waiting, ..Demand::default() };
    assert_eq!(planned(&state, &idle(), &demand(1), 2), ["assign 2 addresses to eni-00000002"]);
    let plan = plan(&state, &idle(), &demand(20), at(2));
    assert_eq!(plan.hopeless.as_ref().map(|hopeless| hopeless.beyond), Some(20 - 8));
    let full = &plan.hopeless.unwrap().cause;
    assert!(matches!(full, Cause::EniLimit { limit: 1, .. }), "{full}");
}

#[test]
fn what_spills_is_no_hope_for_who_has_to_have_an_address_of_the_first_card() {
    let narrow = Node { limits: InstanceLimits { enis: 1, further_cards: vec![2], ..node().limits }, ..wide() };
    let nine = singles(9);
    let mut state = told(narrow, vec![with(1, &nine), on(1, 0, 2, &["10.0.2.1/32"])]);
    for n in 1..=9u32 {
        let address = ip(&format!("10.0.0.{n}"));
        state.apply(Event::Assign(address, owner(&format!("old{n}"))), at(0)).unwrap();
    }
    let mut queue = Queue::default();
    queue.join(Token(1), owner("pinned"), Some(0), at(60), at(0)).unwrap();
    queue.join(Token(2), owner("any"), None, at(60), at(0)).unwrap();
    let demand = Demand::of(&state, &queue);
    assert_eq!((demand.waiting, demand.pinned), (2, 1));
    let plan = plan(&state, &idle(), &demand, at(1));
    // Card 1 keeps one spare beside the one that spills, and grows for nobody else.
    let words: Vec<String> = plan.ops.iter().map(|planned| planned.op.to_string()).collect();
    assert_eq!(words, ["assign 1 address to eni-00000002"]);
    let serving = serve(&state, &queue, &plan, at(1));
    let grants: Vec<_> = serving.grants.iter().map(|it| (it.owner.pod.name.as_str(), it.address.to_string())).collect();
    assert_eq!(grants, [("any", "10.0.2.1".to_owned())]);
    let refused: Vec<_> = serving.refused.iter().map(|it| it.attachment.container.as_str()).collect();
    assert_eq!(refused, ["pinned"]);
    // Without provisioning it is the same with what there is.
    let plan = super::plan(&state, &Targets { provisioning: false, ..idle() }, &demand, at(1));
    assert_eq!((plan.hopeless.is_none(), plan.hopeless_in(Some(0)).map(|it| it.beyond)), (true, Some(1)));
}

#[test]
fn a_card_that_ec2_says_is_full_holds_up_no_other() {
    let mut state = told(wide(), vec![eni(1, &["10.0.0.1/32"]), on(1, 0, 2, &["10.0.0.2/32"])]);
    let made = Ec2Eni { attachment: None, ..with(3, &["10.0.0.3/32".to_owned()]) };
    let create = plan(&state, &warm_ips(1), &Demand::default(), at(1)).ops.remove(0).op;
    done(&mut state, &create, Outcome::Created(made), at(2));
    let attach = plan(&state, &warm_ips(1), &Demand::default(), at(3)).ops.remove(0).op;
    failed(&mut state, &attach, CloudErrorKind::AttachmentLimit, at(4));
    assert_eq!(state.full_until(2, at(5)), Some(at(304)));
    let further = BTreeMap::from([(1, 20), (2, 1)]);
    let plan = plan(&state, &warm_ips(30), &Demand { further, ..Demand::default() }, at(5));
    let words: Vec<String> = plan.ops.iter().map(|planned| planned.op.to_string()).collect();
    assert_eq!(
        words,
        [
            "delete eni-00000003",
            "assign 8 addresses to eni-00000001",
            "create ENI in subnet-00000001 with 9 addresses",
            "create ENI in subnet-00000001 with 9 addresses",
            "assign 8 addresses to eni-00000002",
            "create ENI in subnet-00000001 with 9 addresses",
        ]
    );
    assert!(plan.hopeless_in(Some(2)).is_some() && plan.hopeless.is_none(), "{plan:?}");
}

#[test]
fn with_ipv6_alone_a_further_card_has_one_eni_with_a_prefix_of_its_own() {
    use crate::ipv6::Families;
    let mut state = State::new(1);
    state.apply(Event::NodeKnown(Node { families: Families::V6, ..wide() }), at(0)).unwrap();
    let ipv6_cidr = Some("2001:db8:0:1::/64".parse().unwrap());
    state
        .apply(Event::SubnetsKnown(vec![crate::cloud::Ec2Subnet { ipv6_cidr, ..subnet(1, 1000, &[]) }]), at(0))
        .unwrap();
    let delegated = |eni: Ec2Eni, net: &str| Ec2Eni { ipv6_prefixes: [net.parse().unwrap()].into(), ..eni };
    state.apply(Event::Surveyed(vec![delegated(eni(1, &[]), "2001:db8:0:1:7::/80")]), at(0)).unwrap();
    let creates = plan(&state, &Targets::default(), &Demand::default(), at(1)).ops;
    assert_eq!(creates.len(), 2, "{creates:?}");
    let Op::Create(request) = &creates[0].op else { panic!("{creates:?}") };
    assert_eq!((request.card, request.addresses.places(), request.ipv6_prefix), (1, 0, true));
    let made = Ec2Eni { attachment: None, ..delegated(eni(2, &[]), "2001:db8:0:1:8::/80") };
    done(&mut state, &creates[0].op, Outcome::Created(made), at(2));
    let attach = plan(&state, &Targets::default(), &Demand::default(), at(3)).ops;
    let attach = attach.iter().find(|planned| matches!(planned.op, Op::Attach { .. })).unwrap().op.clone();
    assert_eq!(attach.to_string(), "attach eni-00000002 as card 1 device 0");
    done(&mut state, &attach, Outcome::Attached(crate::fixture::attachment_id(2)), at(4));
    state.apply(Event::EniReady(eni_id(2)), at(5)).unwrap();
    assert_eq!(state.ledger().available_on(1, at(5)).next(), Some(ip("2001:db8:0:1:8::1")));
    assert_eq!(check(&state, at(5)), []);
    // A pod of IPv6 alone stands against freeing it as any other does, and so does its address while that cools.
    let detach = Op::Detach { eni: eni_id(2), attachment: crate::fixture::attachment_id(2) };
    state.apply(Event::Assign(ip("2001:db8:0:1:8::1"), owner("a")), at(6)).unwrap();
    assert!(state.apply(Event::Begin(detach.clone()), at(1000)).is_err());
    state.apply(Event::Release(owner("a").attachment.clone(), COOLDOWN), at(1000)).unwrap();
    assert!(state.apply(Event::Begin(detach), at(1001)).is_err());
    assert_eq!(check(&state, at(1001)), []);
}
