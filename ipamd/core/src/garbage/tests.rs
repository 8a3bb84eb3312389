use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::cloud::{Ec2Eni, Ec2Subnet};
use crate::fixture::{at, eni, eni_id, ip, node, owner, state, subnet};
use crate::ipv6::Families;
use crate::state::{Event, Node};

/// An ENI with three addresses, of which `a` has the first and `b` the second; the third is in quarantine.
fn world() -> State {
    let mut state = state(vec![eni(1, &["10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32"])]);
    state.apply(Event::NodeKnown(node()), at(0)).unwrap();
    for (address, name) in [("10.0.0.1", "a"), ("10.0.0.2", "b")] {
        state.apply(Event::Assign(ip(address), owner(name)), at(1)).unwrap();
    }
    state.kernel_seen(&[ip("10.0.0.3")].into(), std::time::Duration::ZERO, at(2));
    state
}

fn dev(name: &str) -> IfName {
    owner(name).host_ifname.clone()
}

/// The rules of an address that nobody holds.
fn rules(address: &str) -> Litter {
    Litter::Rules { address: ip(address), all: [ip(address)].into(), owner: None }
}

/// The rules of an address that a pod has held since [`world`].
fn rules_of(address: &str, name: &str) -> Litter {
    Litter::Rules { address: ip(address), all: [ip(address)].into(), owner: Some((of(name), at(1))) }
}

fn of(name: &str) -> Attachment {
    owner(name).attachment.clone()
}

fn whole() -> Look {
    Look {
        routed: [("10.0.0.1", "a"), ("10.0.0.2", "b")].map(|(address, name)| (ip(address), dev(name))).into(),
        dead: BTreeSet::new(),
        marked: ["a", "b"].map(|name| (dev(name), of(name))).into(),
    }
}

/// What goes after two looks that see the same, the second of them late enough.
fn goes(look: &Look, busy: impl Fn(&Attachment) -> bool + Copy) -> Vec<Litter> {
    goes_in(&world(), look, busy)
}

fn goes_in(state: &State, look: &Look, busy: impl Fn(&Attachment) -> bool + Copy) -> Vec<Litter> {
    let mut garbage = Garbage::default();
    assert_eq!(garbage.look(look, state, busy, at(10)), []);
    assert_eq!(garbage.look(look, state, busy, at(130)), [], "as long as an ADD may take");
    garbage.look(look, state, busy, at(131))
}

#[test]
fn what_lives_and_what_is_not_of_pods_stays() {
    assert_eq!(goes(&whole(), |_| false), []);
    let mut look = whole();
    // Somebody's own rules and routes, of the same form.
    look.dead.insert(ip("192.0.2.7"));
    look.dead.insert(ip("2001:db8::7"));
    look.routed.insert(ip("192.0.2.8"), dev("a"));
    // A pod that nobody knows and that carries an address.
    look.marked.insert(dev("x"), of("x"));
    look.routed.insert(ip("10.0.0.9"), dev("x"));
    // One whose ADD waits.
    look.marked.insert(dev("y"), of("y"));
    assert_eq!(goes(&look, |attachment| *attachment == of("y")), []);
}

#[test]
fn what_pods_have_left_goes() {
    let mut look = whole();
    look.dead.extend([ip("10.0.0.3"), ip("10.0.7.7")]);
    look.routed.insert(ip("10.0.0.9"), dev("a"));
    look.marked.insert(dev("x"), of("x"));
    let litter = [
        rules("10.0.0.3"),
        rules("10.0.7.7"),
        Litter::Route(ip("10.0.0.9"), dev("a")),
        Litter::Link(dev("x"), of("x")),
    ];
    assert_eq!(goes(&look, |_| false), litter);
    // The interface of a pod of the ledger is gone: its rules, and then its address is given back.
    let mut look = whole();
    look.routed.remove(&ip("10.0.0.1"));
    look.marked.remove(&dev("a"));
    look.dead.insert(ip("10.0.0.1"));
    assert_eq!(goes(&look, |_| false), [rules_of("10.0.0.1", "a")]);
}

#[test]
fn what_is_whole_in_between_begins_anew() {
    let (mut garbage, state) = (Garbage::default(), world());
    let mut look = whole();
    look.dead.insert(ip("10.0.0.3"));
    assert_eq!(garbage.look(&look, &state, |_| false, at(0)), []);
    assert_eq!(garbage.look(&whole(), &state, |_| false, at(60)), []);
    assert_eq!(garbage.look(&look, &state, |_| false, at(125)), []);
    assert_eq!(garbage.look(&look, &state, |_| false, at(250)), [rules("10.0.0.3")]);
}

#[test]
fn what_the_next_holder_of_an_address_has_made_is_not_what_the_last_one_left() {
    let (mut garbage, mut state) = (Garbage::default(), world());
    let mut look = whole();
    look.routed.remove(&ip("10.0.0.1"));
    look.marked.remove(&dev("a"));
    look.dead.insert(ip("10.0.0.1"));
    assert_eq!(garbage.look(&look, &state, |_| false, at(10)), []);
    // Between two looks the pod's DEL comes, the address cools, and another pod's ADD has made its rules and not yet its route.
    state.apply(Event::Release(of("a"), std::time::Duration::from_secs(30)), at(20)).unwrap();
    state.apply(Event::Assign(ip("10.0.0.1"), owner("c")), at(130)).unwrap();
    look.marked.insert(dev("c"), of("c"));
    assert_eq!(garbage.look(&look, &state, |_| false, at(131)), []);
    // It never comes to its end: then that is what was left.
    let litter = garbage.look(&look, &state, |_| false, at(252));
    let owner = Some((of("c"), at(130)));
    assert_eq!(litter, [Litter::Rules { address: ip("10.0.0.1"), all: [ip("10.0.0.1")].into(), owner }]);
}

/// An ENI that had one /80 when `a` came to it, and has another one by now.
fn after_another_delegation() -> State {
    let with = |net: &str| Ec2Eni {
        ipv6_prefixes: BTreeSet::from([net.parse().unwrap()]),
        ..eni(1, &["10.0.0.1/32", "10.0.0.2/32"])
    };
    let subnets = [(1, "2001:db8:0:1::/64"), (2, "2001:db8:0:2::/64")];
    let subnets = subnets.map(|(n, cidr)| Ec2Subnet { ipv6_cidr: Some(cidr.parse().unwrap()), ..subnet(n, 1000, &[]) });
    let mut state = State::new(1);
    for (event, seconds) in [
        (Event::NodeKnown(Node { families: Families::Dual, ..node() }), 0),
        (Event::SubnetsKnown(subnets.into()), 0),
        (Event::Surveyed(vec![with("2001:db8:0:1:7::/80")]), 0),
        (Event::EniReady(eni_id(1)), 0),
        (Event::Assign(ip("10.0.0.1"), owner("a")), 1),
        (Event::EniDescribed(eni_id(1), Some(with("2001:db8:0:1:8::/80"))), 200),
    ] {
        state.apply(event, at(seconds)).unwrap();
    }
    assert_eq!(state.ledger().primary().unwrap().ipv6.unwrap().net, "2001:db8:0:1:8::/80".parse().unwrap());
    state
}

#[test]
fn what_is_of_an_earlier_delegation_goes_but_for_what_a_pod_still_has() {
    let state = after_another_delegation();
    let mut look = Look {
        routed: ["10.0.0.1", "2001:db8:0:1:7::a00:1"].map(|address| (ip(address), dev("a"))).into(),
        dead: BTreeSet::new(),
        marked: [(dev("a"), of("a"))].into(),
    };
    assert_eq!(goes_in(&state, &look, |_| false), [], "it is the pod's");
    // Its route is lost, and will be put back; its rules stay with it.
    look.routed.remove(&ip("2001:db8:0:1:7::a00:1"));
    look.dead.insert(ip("2001:db8:0:1:7::a00:1"));
    assert_eq!(goes_in(&state, &look, |_| false), []);
    // What others have left of it, of the ENI's own subnet and of one in which no ENI is any more.
    look.routed.insert(ip("2001:db8:0:1:7::a00:9"), dev("a"));
    look.dead.extend([ip("2001:db8:0:1:7::a00:2"), ip("2001:db8:0:2:5::a00:2")]);
    // Not of any subnet of ours.
    look.dead.insert(ip("2001:db8:0:3:5::a00:2"));
    look.routed.insert(ip("2001:db8:0:3:5::a00:9"), dev("a"));
    let litter = [
        rules("2001:db8:0:1:7::a00:2"),
        rules("2001:db8:0:2:5::a00:2"),
        Litter::Route(ip("2001:db8:0:1:7::a00:9"), dev("a")),
    ];
    assert_eq!(goes_in(&state, &look, |_| false), litter);
}

#[test]
fn pods_without_ipv6_by_now_keep_what_they_were_given() {
    let mut state = after_another_delegation();
    state.apply(Event::NodeKnown(node()), at(201)).unwrap();
    let look = Look {
        routed: ["10.0.0.1", "2001:db8:0:1:7::a00:1"].map(|address| (ip(address), dev("a"))).into(),
        dead: [ip("2001:db8:0:1:7::a00:2")].into(),
        marked: [(dev("a"), of("a"))].into(),
    };
    assert_eq!(goes_in(&state, &look, |_| false), [rules("2001:db8:0:1:7::a00:2")]);
    assert_eq!(anchored(&state, ip("2001:db8:0:1:7::a00:1")), ip("10.0.0.1"));
}

fn looks() -> impl Strategy<Value = Look> {
    let name = prop::sample::select(vec!["a", "b", "x", "y"]);
    let address = prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.9", "192.0.2.7"]);
    let routed = prop::collection::btree_map(address.clone(), name.clone(), 0..5);
    let marked = prop::collection::btree_set(name, 0..4);
    (routed, prop::collection::btree_set(address, 0..5), marked).prop_map(|(routed, dead, marked)| {
        let routed: BTreeMap<IpAddr, IfName> =
            routed.into_iter().map(|(address, name)| (ip(address), dev(name))).collect();
        let dead = dead.into_iter().map(ip).filter(|address| !routed.contains_key(address)).collect();
        Look { routed, dead, marked: marked.into_iter().map(|name| (dev(name), of(name))).collect() }
    })
}

proptest! {
    /// Whatever is there: what a live pod has stays, what is not of pods stays, and when the litter is gone nothing else is litter.
    #[test]
    fn only_litter_goes_and_all_of_it(look in looks()) {
        let state = world();
        let litter = goes(&look, |_| false);
        let mut clean = look.clone();
        for one in &litter {
            match one {
                Litter::Rules { address, all, .. } => {
                    prop_assert_eq!(all.len(), 1);
                    prop_assert!(!look.routed.contains_key(address) && *address != ip("192.0.2.7"));
                    prop_assert!(clean.dead.remove(address));
                }
                Litter::Route(address, by) => {
                    let owner = &look.marked[by];
                    prop_assert!(state.ledger().address_of(owner).is_some_and(|own| own != *address));
                    prop_assert!(*address != ip("192.0.2.7"));
                    clean.routed.remove(address);
                }
                Litter::Link(by, attachment) => {
                    prop_assert!(state.ledger().address_of(attachment).is_none());
                    prop_assert!(look.routed.values().all(|other| other != by));
                    clean.marked.remove(by);
                }
            }
        }
        prop_assert_eq!(goes(&clean, |_| false), []);
    }
}

#[test]
fn the_owner_of_the_fixture_is_what_the_tests_take_it_for() {
    assert_eq!(world().ledger().address_of(&Arc::clone(&owner("a")).attachment), Some(ip("10.0.0.1")));
    assert!(matches!(world().ledger().address(ip("10.0.0.3")), Some(AddressState::Quarantined { .. })));
}
