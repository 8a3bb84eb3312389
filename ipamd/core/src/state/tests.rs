use super::*;
use crate::check::check;
use crate::cloud::{AddressCount, Assigned, ImdsEni, InterfaceType, Unassign};
use crate::fixture::{COOLDOWN, at, attachment_id, done, eni, eni_id, failed, ip, net, node, owner, state, subnet_id};
use crate::ledger::{AddressState, Role};

#[test]
fn an_address_cools_and_the_longest_free_comes_first() {
    let mut state = state(vec![eni(1, &["10.0.0.1/32", "10.0.0.2/32"])]);
    let first = state.ledger().next_available(at(1)).unwrap();
    state.apply(Event::Assign(first, owner("a")), at(1)).unwrap();
    assert_eq!(state.ledger().address_of(&owner("a").attachment), Some(first));
    state.apply(Event::Release(owner("a").attachment.clone(), COOLDOWN), at(2)).unwrap();
    // It is the other one's turn, and then nobody's until 30 s are over.
    let second = state.ledger().next_available(at(3)).unwrap();
    assert_ne!(first, second);
    state.apply(Event::Assign(second, owner("b")), at(3)).unwrap();
    assert_eq!(state.ledger().next_available(at(31)), None);
    assert_eq!(state.ledger().next_cooled(at(31)), Some(at(32)));
    let early = state.apply(Event::Assign(first, owner("c")), at(31)).unwrap_err();
    assert_eq!(early.to_string(), "address 10.0.0.1 cannot be assigned: it is cooling");
    state.apply(Event::Assign(first, owner("c")), at(32)).unwrap();
    assert_eq!(check(&state, at(32)), []);
}

#[test]
fn nobody_gets_two_addresses_and_no_address_two_owners() {
    let mut state = state(vec![eni(1, &["10.0.0.1/32", "10.0.0.2/32"])]);
    state.apply(Event::Assign(ip("10.0.0.1"), owner("a")), at(1)).unwrap();
    let before = state.clone();
    for (address, who) in [("10.0.0.2", "a"), ("10.0.0.1", "b"), ("10.0.0.9", "b")] {
        assert!(state.apply(Event::Assign(ip(address), owner(who)), at(1)).is_err());
    }
    assert!(state.apply(Event::Release(owner("b").attachment.clone(), COOLDOWN), at(1)).is_err());
    assert_eq!(state, before);
}

#[test]
fn what_is_alive_and_unknown_is_quarantined_until_it_is_gone() {
    let mut state = state(vec![eni(1, &["10.0.0.1/32"])]);
    let alive = BTreeSet::from([ip("10.0.0.1"), ip("10.0.0.77")]);
    state.apply(Event::KernelSeen(alive, COOLDOWN), at(1)).unwrap();
    assert_eq!(state.ledger().next_available(at(1)), None);
    assert_eq!(state.ledger().strays(), &BTreeSet::from([ip("10.0.0.77")]));
    // The stray's ENI turns up.
    state.apply(Event::EniDescribed(eni_id(1), Some(eni(1, &["10.0.0.1/32", "10.0.0.77/32"]))), at(2)).unwrap();
    assert!(matches!(state.ledger().address(ip("10.0.0.77")), Some(AddressState::Quarantined { .. })));
    state.apply(Event::KernelSeen(BTreeSet::new(), COOLDOWN), at(3)).unwrap();
    assert_eq!(state.ledger().next_available(at(32)), None);
    assert!(state.ledger().next_available(at(33)).is_some());
    assert_eq!(check(&state, at(33)), []);
}

#[test]
fn a_used_eni_is_not_freed_and_used_addresses_are_not_given_back() {
    let mut state = state(vec![eni(1, &[]), eni(2, &["10.0.0.1/32", "10.0.0.2/32"])]);
    state.apply(Event::Assign(ip("10.0.0.1"), owner("a")), at(1)).unwrap();
    let detach = Op::Detach { eni: eni_id(2), attachment: attachment_id(2) };
    let what = Unassign { addresses: BTreeSet::from(["10.0.0.1".parse().unwrap()]), prefixes: BTreeSet::new() };
    let unassign = Op::Unassign { eni: eni_id(2), what };
    for op in [&detach, &unassign] {
        assert!(matches!(state.apply(Event::Begin(op.clone()), at(2)), Err(ApplyError::Stale { .. })));
    }
    state.apply(Event::Release(owner("a").attachment.clone(), COOLDOWN), at(3)).unwrap();
    for op in [&detach, &unassign] {
        assert!(state.apply(Event::Begin(op.clone()), at(32)).is_err(), "it cools");
    }
    let primary = Op::Detach { eni: eni_id(1), attachment: attachment_id(1) };
    assert!(state.apply(Event::Begin(primary), at(33)).is_err());
    done(&mut state, &unassign, Outcome::Done, at(33));
    assert!(state.ledger().address(ip("10.0.0.1")).is_none());
    // A description that shows it for some time yet does not bring it back.
    let late = eni(2, &["10.0.0.1/32", "10.0.0.2/32"]);
    state.apply(Event::EniDescribed(eni_id(2), Some(late.clone())), at(35)).unwrap();
    assert!(state.ledger().address(ip("10.0.0.1")).is_none());
    // After a minute EC2 is believed.
    state.apply(Event::EniDescribed(eni_id(2), Some(late)), at(94)).unwrap();
    assert!(state.ledger().address(ip("10.0.0.1")).is_some());
}

#[test]
fn nothing_goes_because_a_description_is_late_and_nothing_in_use_goes_at_all() {
    let mut state = state(vec![eni(1, &[]), eni(2, &["10.0.0.1/32"])]);
    state.apply(Event::Assign(ip("10.0.0.1"), owner("a")), at(1)).unwrap();
    let without = Ec2Eni { secondary_ips: BTreeSet::new(), ..eni(2, &[]) };
    state.apply(Event::EniDescribed(eni_id(2), Some(without.clone())), at(2)).unwrap();
    assert!(state.ledger().eni(&eni_id(2)).unwrap().unsure, "EC2 is asked again");
    state.apply(Event::EniDescribed(eni_id(2), None), at(100)).unwrap();
    state.apply(Event::EniDescribed(eni_id(2), Some(without)), at(200)).unwrap();
    assert_eq!(state.ledger().address_of(&owner("a").attachment), Some(ip("10.0.0.1")));
    // Once the pod is gone, so is the address.
    state.apply(Event::Release(owner("a").attachment.clone(), COOLDOWN), at(201)).unwrap();
    assert_eq!(state.ledger().next_available(at(300)), None, "EC2 says that it is not ours");
    state.apply(Event::EniDescribed(eni_id(2), None), at(300)).unwrap();
    assert!(state.ledger().eni(&eni_id(2)).is_none());
    assert_eq!(check(&state, at(300)), []);
}

#[test]
fn imds_removes_nothing_and_its_news_wait_for_ec2() {
    let mut state = state(vec![eni(1, &["10.0.0.1/32"]), eni(2, &["10.0.0.2/32"])]);
    let shown = ImdsEni {
        eni: eni_id(1),
        mac: eni(1, &[]).mac,
        device: 0,
        card: 0,
        subnet: subnet_id(1),
        subnet_cidr: net("10.0.0.0/16"),
        primary_ip: "10.0.255.1".parse().unwrap(),
        secondary_ips: BTreeSet::from(["10.0.0.1".parse().unwrap(), "10.0.0.9".parse().unwrap()]),
        prefixes: BTreeSet::new(),
        ipv6_prefixes: BTreeSet::new(),
        security_groups: Vec::new(),
    };
    let known = |state: &State| state.ledger().enis().map(|eni| eni.blocks.len()).collect::<Vec<_>>();
    // EC2 has spoken not long ago: IMDS is merely late.
    state.apply(Event::ImdsSeen(vec![shown.clone()]), at(90)).unwrap();
    assert!(state.ledger().enis().all(|eni| !eni.unsure));
    state.apply(Event::ImdsSeen(vec![shown.clone()]), at(400)).unwrap();
    assert_eq!(known(&state), [1, 1]);
    assert!(state.ledger().enis().all(|eni| eni.unsure), "the first has something new, the second is missing");
    // An ENI that is not in the ledger makes EC2 be asked for all.
    let other = ImdsEni { eni: eni_id(3), device: 2, ..shown };
    state.apply(Event::ImdsSeen(vec![other]), at(400)).unwrap();
    assert_eq!(state.survey_at, Some(at(400)));
    assert!(state.ledger().eni(&eni_id(3)).is_none());
}

#[test]
fn a_first_start_believes_imds_about_the_primary_eni_only() {
    let shown = |n: u32| ImdsEni {
        eni: eni_id(n),
        mac: eni(n, &[]).mac,
        device: n - 1,
        card: 0,
        subnet: subnet_id(1),
        subnet_cidr: net("10.0.0.0/16"),
        primary_ip: format!("10.0.255.{n}").parse().unwrap(),
        secondary_ips: BTreeSet::from([format!("10.0.0.{n}").parse().unwrap()]),
        prefixes: BTreeSet::new(),
        ipv6_prefixes: BTreeSet::new(),
        security_groups: Vec::new(),
    };
    let mut state = State::new(1);
    state.apply(Event::NodeKnown(node()), at(0)).unwrap();
    state.apply(Event::ImdsSeen(vec![shown(1), shown(2)]), at(0)).unwrap();
    state.apply(Event::EniReady(eni_id(1)), at(0)).unwrap();
    assert_eq!(state.ledger().next_available(at(0)), Some(ip("10.0.0.1")));
    assert!(state.ledger().eni(&eni_id(2)).is_none(), "only its tags tell whether it is ours");
}

#[test]
fn enis_are_what_their_tags_and_type_say() {
    let mut unmanaged = eni(2, &["10.0.0.2/32"]);
    unmanaged.tags.insert(tag::NO_MANAGE.to_owned(), "true".to_owned());
    let mut trunk = eni(3, &["10.0.0.3/32"]);
    trunk.interface_type = InterfaceType::Trunk;
    let mut efa = eni(4, &["10.0.0.4/32"]);
    efa.interface_type = InterfaceType::Efa;
    let mut efa_only = eni(5, &[]);
    efa_only.interface_type = InterfaceType::EfaOnly;
    let mut elsewhere = eni(6, &["10.0.0.6/32"]);
    elsewhere.attachment.as_mut().unwrap().instance = None;
    let mut left_behind = eni(7, &["10.0.0.7/32"]);
    left_behind.attachment = None;
    let mut strangers = left_behind.clone();
    (strangers.eni, strangers.tags) = (eni_id(8), BTreeMap::new());
    let primary = eni(1, &["10.0.0.1/32"]);
    let enis = vec![primary, unmanaged, trunk, efa, efa_only, elsewhere, left_behind, strangers];
    let mut state = State::new(1);
    let mut big = node();
    big.limits.enis = 8;
    state.apply(Event::NodeKnown(big), at(0)).unwrap();
    state.apply(Event::Surveyed(enis), at(0)).unwrap();
    let seen: Vec<_> = state
        .ledger()
        .enis()
        .map(|eni| (eni.role, eni.stage, eni.carries_pods(), eni.may_be_freed(), eni.blocks.len()))
        .collect();
    assert_eq!(
        seen,
        [
            (Role::Primary, Stage::Attached, true, false, 1),
            (Role::Unmanaged, Stage::Attached, false, false, 0),
            (Role::Secondary, Stage::Attached, false, false, 0),
            (Role::Secondary, Stage::Attached, true, false, 1),
            (Role::Secondary, Stage::Attached, false, false, 0),
            (Role::Secondary, Stage::Created, true, true, 1),
        ]
    );
    assert_eq!(check(&state, at(0)), []);
}

#[test]
fn an_address_that_ec2_has_moved_on_makes_way() {
    let mut state = state(vec![eni(1, &["10.0.0.1/32"]), eni(2, &[])]);
    let what = Unassign { addresses: BTreeSet::from(["10.0.0.1".parse().unwrap()]), prefixes: BTreeSet::new() };
    failed(&mut state, &Op::Unassign { eni: eni_id(1), what }, CloudErrorKind::Timeout, at(1));
    let assigned = Assigned { addresses: BTreeSet::from(["10.0.0.1".parse().unwrap()]), prefixes: BTreeSet::new() };
    let assign = Op::Assign { eni: eni_id(2), count: AddressCount::Secondary(1) };
    done(&mut state, &assign, Outcome::Assigned(assigned), at(2));
    assert_eq!(state.ledger().eni_of(ip("10.0.0.1")).unwrap().id, eni_id(2));
    assert_eq!(check(&state, at(2)), []);
}

#[test]
fn a_subnet_that_refuses_is_asked_for_half_and_then_left_alone() {
    let mut state = state(vec![eni(1, &[])]);
    let asked = |state: &State| {
        let subnet = &state.subnets()[&subnet_id(1)];
        let form = AddressCount::Secondary(1);
        (subnet.asked_at_most(form), subnet.short_until(form, at(1)))
    };
    for (count, expected) in
        [(9, (4, None)), (4, (2, None)), (2, (1, None)), (1, (1, Some(at(16)))), (1, (1, Some(at(31))))]
    {
        let op = Op::Assign { eni: eni_id(1), count: AddressCount::Secondary(count) };
        failed(&mut state, &op, CloudErrorKind::InsufficientAddresses, at(1));
        assert_eq!(asked(&state), expected);
    }
    let assigned = Assigned { addresses: BTreeSet::from(["10.0.0.1".parse().unwrap()]), prefixes: BTreeSet::new() };
    let op = Op::Assign { eni: eni_id(1), count: AddressCount::Secondary(1) };
    done(&mut state, &op, Outcome::Assigned(assigned), at(40));
    assert_eq!(asked(&state), (u32::MAX, None));
}

/// With IMDS alone: what it shows is used, what it lacks twice goes, what a pod uses stays.
#[test]
fn without_ec2_the_metadata_service_is_believed_and_nothing_is_asked() {
    use crate::plan::{Cause, Demand, Targets, plan};
    let mut state = State::new(1);
    state.apply(Event::NodeKnown(Node { imds_only: true, ..node() }), at(0)).unwrap();
    let seen = |n: u32, addresses: &[&str]| crate::cloud::ImdsEni {
        eni: eni_id(n),
        mac: eni(n, &[]).mac,
        device: n - 1,
        card: 0,
        subnet: subnet_id(1),
        subnet_cidr: "10.0.0.0/16".parse().unwrap(),
        primary_ip: eni(n, &[]).primary_ip,
        secondary_ips: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        prefixes: BTreeSet::new(),
        ipv6_prefixes: BTreeSet::new(),
        security_groups: Vec::new(),
    };
    let free = |state: &State, now| state.ledger().available(at(now)).collect::<Vec<_>>();
    let look = |state: &mut State, enis: Vec<crate::cloud::ImdsEni>, now| {
        state.apply(Event::ImdsSeen(enis), at(now)).unwrap();
        assert_eq!(check(state, at(now)), []);
        let plan = plan(state, &Targets::default(), &Demand { waiting: 9, ..Demand::default() }, at(now));
        assert_eq!(plan.ops, [], "EC2 is never called");
        plan.hopeless
    };
    let both = || vec![seen(1, &["10.0.0.1", "10.0.0.2"]), seen(2, &["10.0.0.3", "10.0.0.4"])];
    let hopeless = look(&mut state, both(), 1).unwrap();
    assert_eq!((hopeless.cause, hopeless.beyond), (Cause::NotProvisioning { imds_only: true }, 5));
    for n in [1, 2] {
        state.apply(Event::EniReady(eni_id(n)), at(2)).unwrap();
    }
    assert_eq!(free(&state, 2).len(), 4);
    state.apply(Event::Assign(ip("10.0.0.3"), owner("a")), at(3)).unwrap();
    // Once: no new pods get what it lacks. Twice: it is gone, but for what a pod uses.
    let fewer = || vec![seen(1, &["10.0.0.1"])];
    look(&mut state, fewer(), 60);
    assert_eq!(free(&state, 60), [ip("10.0.0.1")]);
    assert!(state.ledger().address(ip("10.0.0.2")).is_some());
    look(&mut state, fewer(), 120);
    assert!(state.ledger().address(ip("10.0.0.2")).is_none() && state.ledger().address(ip("10.0.0.4")).is_none());
    assert_eq!(state.ledger().address_of(&owner("a").attachment), Some(ip("10.0.0.3")));
    // It was wrong: all is used again.
    look(&mut state, both(), 180);
    assert_eq!(free(&state, 180).len(), 3);
    state.apply(Event::Release(owner("a").attachment.clone(), COOLDOWN), at(190)).unwrap();
    look(&mut state, fewer(), 240);
    look(&mut state, fewer(), 300);
    look(&mut state, fewer(), 360);
    assert!(state.ledger().eni(&eni_id(2)).is_none(), "an ENI that is gone and unused is forgotten");
}

/// A throttled Unassign may have been the second try of one that EC2 has carried out: nobody gets the addresses before EC2 has
/// shown them when it cannot be late any more. (A life of the storm ended with addresses that EC2 did not hold.)
/// Storm, seed 1795: an Assign comes twice, and the surplus is a prefix that was given back before.
#[test]
fn what_was_given_back_and_comes_again_unasked_is_found() {
    let whole = ["10.0.0.16/28", "10.0.0.80/28"];
    let mut state = state(vec![eni(1, &whole)]);
    let what = Unassign { addresses: BTreeSet::new(), prefixes: [net("10.0.0.16/28")].into() };
    done(&mut state, &Op::Unassign { eni: eni_id(1), what }, Outcome::Done, at(100));
    let shown = |prefixes: &[&str]| {
        Event::ImdsSeen(vec![ImdsEni {
            eni: eni_id(1),
            mac: eni(1, &[]).mac,
            device: 0,
            card: 0,
            subnet: subnet_id(1),
            subnet_cidr: net("10.0.0.0/16"),
            primary_ip: "10.0.255.1".parse().unwrap(),
            secondary_ips: BTreeSet::new(),
            prefixes: prefixes.iter().map(|prefix| net(prefix)).collect(),
            ipv6_prefixes: BTreeSet::new(),
            security_groups: Vec::new(),
        }])
    };
    let unsure = |state: &State| state.ledger().eni(&eni_id(1)).unwrap().unsure;
    state.apply(shown(&whole), at(230)).unwrap();
    assert!(!unsure(&state), "IMDS tells of the past");
    let assign = Op::Assign { eni: eni_id(1), count: AddressCount::Prefixes(1) };
    let assigned = Assigned { prefixes: [net("10.0.0.32/28")].into(), ..Assigned::default() };
    let mut later = state.clone();
    done(&mut state, &assign, Outcome::Assigned(assigned), at(250));
    state.apply(shown(&["10.0.0.16/28", "10.0.0.32/28", "10.0.0.80/28"]), at(400)).unwrap();
    assert!(unsure(&state), "EC2 is to say whether it is there again");
    // Without any call of ours it is asked too, once nothing can be that late.
    later.apply(shown(&whole), at(700)).unwrap();
    assert!(unsure(&later));
}

#[test]
fn a_refused_give_back_may_have_come_twice() {
    for kind in [CloudErrorKind::Throttled, CloudErrorKind::Denied] {
        let mut state = state(vec![eni(1, &["10.0.0.1/32", "10.0.0.2/32"])]);
        let what = Unassign { addresses: ["10.0.0.1".parse().unwrap()].into(), prefixes: BTreeSet::new() };
        failed(&mut state, &Op::Unassign { eni: eni_id(1), what }, kind, at(100));
        let free = |state: &State, now| state.ledger().available(at(now)).collect::<Vec<_>>();
        let describe = |state: &mut State, blocks: &[&str], now| {
            state.apply(Event::EniDescribed(eni_id(1), Some(eni(1, blocks))), at(now)).unwrap();
            assert_eq!(check(state, at(now)), []);
        };
        assert_eq!(free(&state, 101), [ip("10.0.0.2")]);
        describe(&mut state, &["10.0.0.1/32", "10.0.0.2/32"], 110);
        assert_eq!(free(&state, 110), [ip("10.0.0.2")], "it may tell of the past");
        let asks = |state: &State, now| {
            let planned =
                crate::plan::plan(state, &crate::plan::Targets::default(), &crate::plan::Demand::default(), at(now));
            planned.ops.iter().any(|planned| matches!(planned.op, Op::Inspect { .. }))
        };
        assert!(!asks(&state, 159) && asks(&state, 160), "EC2 is asked when it cannot be late");
        let mut gone = state.clone();
        describe(&mut state, &["10.0.0.1/32", "10.0.0.2/32"], 160);
        assert_eq!(free(&state, 160).len(), 2, "it was refused indeed");
        describe(&mut gone, &["10.0.0.2/32"], 160);
        assert_eq!(gone.ledger().address(ip("10.0.0.1")), None, "EC2 has taken it");
        // A restart in between changes nothing.
        let back = crate::checkpoint::Checkpoint::of(&gone, at(161)).into_state(at(161)).unwrap();
        assert_eq!(back.ledger(), gone.ledger());
    }
}

/// VPC CNI panics at device number 100. Whatever is attached where there is no route table takes its place there, and carries
/// no pods.
#[test]
fn an_eni_where_there_is_no_route_table_is_let_alone() {
    use crate::plan::{Demand, Targets, plan};
    let wide = || {
        let limits = InstanceLimits { further_cards: vec![2], ..node().limits };
        Node { limits, multi_nic: true, ..node() }
    };
    let far_away = |card: u32, device: u32| {
        let mut eni = eni(2, &["10.0.0.2/32"]);
        let place = eni.attachment.as_mut().unwrap();
        (place.card, place.device) = (card, device);
        eni
    };
    for (card, device) in [(0, 100), (0, 253), (0, 4_000_000_000), (1, 100), (1, 4_000_000_000), (u32::MAX, 1)] {
        let far = far_away(card, device);
        let mut state = State::new(1);
        state.apply(Event::NodeKnown(wide()), at(0)).unwrap();
        state.apply(Event::Surveyed(vec![eni(1, &["10.0.0.1/32"]), far.clone()]), at(0)).unwrap();
        for now in [100, 200] {
            let known = state.ledger().eni(&eni_id(2)).unwrap();
            assert_eq!((known.role, known.table(), known.blocks.len()), (Role::Unmanaged, None, 0), "{card} {device}");
            assert_eq!(check(&state, at(now)), []);
            let planned = plan(&state, &Targets::default(), &Demand { waiting: 30, ..Demand::default() }, at(now)).ops;
            assert!(planned.iter().all(|planned| planned.op.eni() != Some(&eni_id(2))), "{planned:?}");
            state.apply(Event::EniDescribed(eni_id(2), Some(far.clone())), at(now)).unwrap();
        }
        // So it is by the metadata service alone.
        let shown = |n: u32, card, device| ImdsEni {
            eni: eni_id(n),
            mac: eni(n, &[]).mac,
            device,
            card,
            subnet: subnet_id(1),
            subnet_cidr: net("10.0.0.0/16"),
            primary_ip: eni(n, &[]).primary_ip,
            secondary_ips: BTreeSet::from([format!("10.0.0.{n}").parse().unwrap()]),
            prefixes: BTreeSet::new(),
            ipv6_prefixes: BTreeSet::new(),
            security_groups: Vec::new(),
        };
        let mut state = State::new(1);
        state.apply(Event::NodeKnown(Node { imds_only: true, ..wide() }), at(0)).unwrap();
        for now in [1, 60, 120] {
            state.apply(Event::ImdsSeen(vec![shown(1, 0, 0), shown(2, card, device)]), at(now)).unwrap();
            let known = state.ledger().eni(&eni_id(2)).unwrap();
            assert_eq!((known.role, known.table(), known.blocks.len()), (Role::Unmanaged, None, 0), "{card} {device}");
            assert_eq!(check(&state, at(now)), []);
        }
    }
    // One of ours cannot come there without being detached first: a pod keeps its route, and nobody else is put on it.
    let mut state = state(vec![eni(1, &[]), eni(2, &["10.0.0.1/32", "10.0.0.2/32"])]);
    state.apply(Event::Assign(ip("10.0.0.1"), owner("a")), at(1)).unwrap();
    let moved = Ec2Eni { secondary_ips: eni(2, &["10.0.0.1/32", "10.0.0.2/32"]).secondary_ips, ..far_away(0, 100) };
    state.apply(Event::EniDescribed(eni_id(2), Some(moved)), at(100)).unwrap();
    assert_eq!(state.ledger().address_of(&owner("a").attachment), Some(ip("10.0.0.1")));
    assert_eq!(state.ledger().eni(&eni_id(2)).unwrap().table(), Some(2));
    assert_eq!(state.ledger().next_available(at(100)), None);
    assert_eq!(check(&state, at(100)), []);
}

/// In VPC CNI an ENI that is removed by force is subtracted from the totals twice, and what was given back is still in them.
#[test]
fn totals_are_of_what_is_there() {
    let mut state = state(vec![eni(1, &["10.0.1.0/28"]), eni(2, &["10.0.2.0/28", "10.0.3.0/28"])]);
    let totals = |state: &State, now| {
        let tally = state.ledger().tally(at(now));
        (tally.enis, tally.prefixes, tally.total(), tally.assigned)
    };
    state.apply(Event::Assign(ip("10.0.2.1"), owner("a")), at(1)).unwrap();
    assert_eq!(totals(&state, 1), (2, 3, 48, 1));
    let what = Unassign { addresses: BTreeSet::new(), prefixes: [net("10.0.3.0/28")].into() };
    done(&mut state, &Op::Unassign { eni: eni_id(2), what }, Outcome::Done, at(100));
    assert_eq!(totals(&state, 100), (2, 2, 32, 1));
    // EC2 does not know the ENI any more: the pod has what it has, and nobody else gets anything of it.
    state.apply(Event::EniDescribed(eni_id(2), None), at(200)).unwrap();
    assert_eq!(totals(&state, 200), (2, 1, 17, 1));
    state.apply(Event::Release(owner("a").attachment.clone(), COOLDOWN), at(201)).unwrap();
    state.apply(Event::EniDescribed(eni_id(2), None), at(300)).unwrap();
    assert_eq!(totals(&state, 300), (1, 1, 16, 0));
    assert_eq!(check(&state, at(300)), []);
}

/// As long as a description may be late it does not bring back what was deleted: it would be attached in vain, in the place of one that
/// is there.
#[test]
fn an_eni_that_was_deleted_is_not_found_again_by_a_late_description() {
    let (mut state, ghost) = (state(vec![eni(1, &[]), eni(2, &[])]), eni_id(2));
    let detach = Op::Detach { eni: ghost.clone(), attachment: attachment_id(2) };
    done(&mut state, &detach, Outcome::Done, at(1));
    done(&mut state, &Op::Delete { eni: ghost.clone() }, Outcome::Done, at(5));
    let shown = || vec![eni(1, &[]), Ec2Eni { attachment: None, ..eni(2, &[]) }];
    state.apply(Event::Surveyed(shown()), at(7)).unwrap();
    assert!(state.ledger().eni(&ghost).is_none());
    // After a restart nobody remembers: it comes back, and has no claim to an address that EC2 has given on.
    let document = crate::checkpoint::Checkpoint::of(&state, at(8)).to_json().unwrap();
    let mut read = crate::checkpoint::Checkpoint::from_json(&document).unwrap().into_state(at(8)).unwrap();
    read.apply(Event::Surveyed(shown()), at(9)).unwrap();
    let own = read.ledger().eni(&ghost).unwrap().primary_ip;
    let assign = Op::Assign { eni: eni_id(1), count: AddressCount::Secondary(1) };
    let assigned = Assigned { addresses: [own].into(), ..Assigned::default() };
    done(&mut read, &assign, Outcome::Assigned(assigned), at(10));
    assert_eq!(check(&read, at(10)), []);
    // What is shown later is there.
    state.apply(Event::Surveyed(shown()), at(66)).unwrap();
    assert!(state.ledger().eni(&ghost).is_some());
}

/// The call came twice: the first made an ENI, and the answer is the second's.
#[test]
fn what_a_refused_create_may_have_made_is_looked_for() {
    use crate::plan::{Demand, Targets, plan};
    let mut state = state(vec![eni(1, &[])]);
    let planned = plan(&state, &Targets::default(), &Demand { waiting: 30, ..Demand::default() }, at(1)).ops;
    let create = planned.into_iter().map(|planned| planned.op).find(|op| matches!(op, Op::Create(_))).unwrap();
    failed(&mut state, &create, CloudErrorKind::InsufficientAddresses, at(2));
    assert_eq!((state.intents().len(), state.survey_at), (0, Some(at(62))));
}

/// The answer of a delete is lost, and EC2 gives the ENI's own address to another at once.
#[test]
fn the_address_of_an_eni_that_may_be_deleted_can_be_anothers() {
    let mut state = state(vec![eni(1, &[]), eni(2, &[])]);
    let detach = Op::Detach { eni: eni_id(2), attachment: attachment_id(2) };
    done(&mut state, &detach, Outcome::Done, at(1));
    failed(&mut state, &Op::Delete { eni: eni_id(2) }, CloudErrorKind::Timeout, at(5));
    let own = state.ledger().eni(&eni_id(2)).unwrap().primary_ip;
    let assign = Op::Assign { eni: eni_id(1), count: AddressCount::Secondary(1) };
    let assigned = Assigned { addresses: [own].into(), ..Assigned::default() };
    done(&mut state, &assign, Outcome::Assigned(assigned), at(6));
    assert_eq!(check(&state, at(6)), []);
    let document = crate::checkpoint::Checkpoint::of(&state, at(6)).to_json().unwrap();
    let read = crate::checkpoint::Checkpoint::from_json(&document).unwrap().into_state(at(7)).unwrap();
    assert_eq!(read.ledger().next_available(at(7)), Some(own.into()));
}
