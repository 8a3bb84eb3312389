use super::*;
use crate::cloud::{AddressCount, CloudErrorKind, Ec2Eni, InstanceLimits, InterfaceType};
use crate::fixture::{at, eni, eni_id, failed, node, state};
use crate::ipv6::Families;
use crate::op::Op;
use crate::state::Event;

fn of(node: Node, enis: Vec<Ec2Eni>, targets: &Targets) -> Capacity {
    let mut known = state(enis);
    known.apply(Event::NodeKnown(node), at(1)).unwrap();
    Capacity::of(&known, targets, at(1))
}

fn prefixes() -> Targets {
    Targets { prefixes: true, ..Targets::default() }
}

#[test]
fn a_place_holds_an_address_or_a_prefix() {
    let one = || vec![eni(1, &["10.0.0.1/32"])];
    let singles = Capacity { enis: 3, addresses: 27, by_setting: false, prefixes_would_help: true };
    assert_eq!(of(node(), one(), &Targets::default()), singles);
    let empty = || vec![eni(1, &[])];
    assert_eq!(of(node(), empty(), &prefixes()), Capacity { addresses: 432, prefixes_would_help: false, ..singles });
    // An address by itself takes the place of a prefix.
    assert_eq!(of(node(), one(), &prefixes()).addresses, 432 - 15);
    // A type without prefixes is not helped by the setting.
    let xen = Node { limits: InstanceLimits { prefixes: false, ..node().limits }, ..node() };
    let without = Capacity { prefixes_would_help: false, ..singles };
    assert_eq!(of(xen.clone(), one(), &Targets::default()), without);
    assert_eq!(of(xen, one(), &prefixes()), without);
    assert_eq!(Capacity::of(&State::new(1), &prefixes(), at(1)), Capacity::default());
}

#[test]
fn what_takes_enis_away_takes_their_addresses() {
    let first = || vec![eni(1, &[])];
    let two = of(node(), first(), &Targets { max_enis: Some(2), ..prefixes() });
    assert_eq!((two.enis, two.addresses, two.by_setting), (2, 288, true));
    let many = of(node(), first(), &Targets { max_enis: Some(9), ..prefixes() });
    assert_eq!((many.enis, many.addresses, many.by_setting), (3, 432, false));
    // With custom networking pods get no address of the primary ENI, known or not.
    let custom = || Node { custom_networking: true, ..node() };
    assert_eq!(of(custom(), first(), &Targets::default()).addresses, 18);
    assert_eq!(of(custom(), Vec::new(), &Targets::default()).addresses, 18);
    // The trunk's place is kept, and then taken.
    let trunk = Targets { trunk: true, ..Targets::default() };
    assert_eq!(of(node(), first(), &trunk).addresses, 18);
    let there = Ec2Eni { interface_type: InterfaceType::Trunk, ..eni(2, &[]) };
    assert_eq!(of(node(), vec![eni(1, &[]), there], &trunk).addresses, 18);
}

#[test]
fn every_card_that_serves_pods_counts() {
    let limits = InstanceLimits { further_cards: vec![2, 2], ..node().limits };
    let wide = |multi_nic| Node { limits: limits.clone(), multi_nic, ..node() };
    let first = || vec![eni(1, &[])];
    let alone = of(wide(false), first(), &Targets::default());
    assert_eq!((alone.enis, alone.addresses), (3, 27));
    let all = of(wide(true), first(), &Targets::default());
    assert_eq!((all.enis, all.addresses), (7, 63));
    // MAX_ENI is a card's.
    let fewer = of(wide(true), first(), &Targets { max_enis: Some(1), ..Targets::default() });
    assert_eq!((fewer.enis, fewer.addresses, fewer.by_setting), (3, 27, true));
    // With IPv6 alone a /80 on each is all there is.
    let v6 = Node { families: Families::V6, ..wide(true) };
    let v6 = of(v6, first(), &Targets::default());
    assert_eq!((v6.addresses, v6.prefixes_would_help), (3 * u32::from(WINDOW), false));
    let dual = of(Node { families: Families::Dual, ..node() }, first(), &prefixes());
    assert_eq!(dual.addresses, 432);
}

#[test]
fn it_is_what_the_planner_refuses_by() {
    use crate::plan::{Cause, Demand, Relief, plan};
    let nine = |n: u32| (1..=9).map(|host| format!("10.0.{n}.{host}/32")).collect::<Vec<_>>();
    let full = |n: u32| eni(n, &nine(n).iter().map(String::as_str).collect::<Vec<_>>());
    let mut known = state(vec![full(1), full(2), full(3)]);
    let demand = Demand { waiting: 28, ..Demand::default() };
    let cause = |known: &State, targets: &Targets| plan(known, targets, &demand, at(2)).hopeless.unwrap().cause;
    let Cause::EniLimit { addresses, relief, .. } = cause(&known, &Targets::default()) else { panic!() };
    assert_eq!(addresses, Capacity::of(&known, &Targets::default(), at(2)).addresses);
    assert_eq!((addresses, relief), (27, Relief::Prefixes));
    // They are on, and the subnet has none: single addresses have taken all places.
    let op = Op::Assign { eni: eni_id(1), count: AddressCount::Prefixes(1) };
    let mut empty = state(vec![eni(1, &[])]);
    failed(&mut empty, &op, CloudErrorKind::InsufficientPrefixes, at(1));
    known.subnets = empty.subnets().clone();
    let cause = cause(&known, &prefixes());
    let subnets: Vec<_> = known.subnets().keys().cloned().collect();
    assert!(
        matches!(&cause, Cause::EniLimit { addresses: 27, relief: Relief::WholePrefixes(of), .. } if *of == subnets)
    );
    let words = "the instance type allows 3 ENIs, and all 27 of their addresses for pods are taken; subnet subnet-00000001 has no whole \
                 /28 left";
    assert_eq!(cause.to_string(), words);
    assert!(cause.hint().contains("aws ec2 create-subnet-cidr-reservation"), "{}", cause.hint());
}
