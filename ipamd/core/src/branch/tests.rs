use sluice_contract::id::IfName;

use super::*;
use crate::check::check;
use crate::checkpoint::Checkpoint;
use crate::fixture::{at, eni, eni_id, ip, owner, state};
use crate::garbage::{Garbage, Litter, Look};
use crate::recover::{KernelView, reconcile};
use crate::state::Event;

const V4: &str = include_str!("../../corpus/pod-eni/v4");
const BOTH: &str = include_str!("../../corpus/pod-eni/both");

fn held(who: &str, vlan: u16, address: &str) -> Held {
    let address = ip(address);
    Held {
        owner: (*owner(who)).clone(),
        eni: eni_id(100 + u32::from(vlan)),
        mac: MacAddr([2, 0, 0, 0, 1, 1]),
        vlan: VlanId::new(vlan).unwrap(),
        trunk_mac: MacAddr([2, 0, 0, 0, 0, 3]),
        trunk_device: 2,
        addresses: vec![(address, router(address, "10.0.2.0/24".parse().unwrap()))],
        mode: Mode::Strict,
        since: at(1),
    }
}

#[test]
fn an_annotation_is_read_for_the_families_that_pods_have() {
    let read = |text: &str, families| PodEni::read(text, families).unwrap();
    let v4 = read(V4, Families::V4);
    assert_eq!(
        (v4.eni.as_str(), v4.mac.to_string(), v4.vlan.get()),
        ("eni-0a1b2c3d4e5f60718", "02:00:00:00:00:30".into(), 7)
    );
    assert_eq!(v4.addresses, [(ip("10.0.2.30"), ip("10.0.2.1"))]);
    assert_eq!(read(BOTH, Families::V4).addresses.len(), 1);
    assert_eq!(read(BOTH, Families::V6).addresses, [(ip("2001:db8:0:2::30"), ip("fe80:ec2::1"))]);
    assert_eq!(read(BOTH, Families::Dual).addresses.len(), 2);
    // As Go reads it.
    assert_eq!(read(&V4.replace("vlanId", "vlanID"), Families::V4), v4);
}

#[test]
fn what_is_wrong_with_an_annotation_is_said() {
    let said = |text: &str| crate::recover::with_sources(&PodEni::read(text, Families::V4).unwrap_err());
    for (old, new, words) in [
        ("eni-0a1b", "eth-0a1b", "eniId cannot be used: network interface id \"eth-0a1b2c3d4e5f60718\" is not valid: "),
        ("02:00:00:00:00:30", "02:00", "ifAddress cannot be used: MAC address \"02:00\" is not valid: "),
        (":7,", ":0,", "vlanId cannot be used: VLAN number \"0\" is not valid: it must be 1 to 4094"),
        (":7,", ":70000,", "it is no JSON list of branch ENIs: "),
        ("10.0.2.30", "10.0.2", "privateIp is \"10.0.2\": it must be an IPv4 address"),
        (
            "10.0.2.30",
            "10.0.3.30",
            "privateIp is \"10.0.3.30\": it must be an address that a host of the subnet can have",
        ),
        (
            "10.0.2.30",
            "10.0.2.1",
            "privateIp is \"10.0.2.1\": it must be an address that a host of the subnet can have",
        ),
        ("10.0.2.0/24", "", "subnetCidr is \"\": it must be the IPv4 CIDR of its subnet"),
        (
            "10.0.2.",
            "169.254.169.",
            "privateIp is \"169.254.169.30\": it must be an address that a host of the subnet can have",
        ),
        ("10.0.2.30", "", "it has no address of a family that pods of this node have"),
    ] {
        let text = said(&V4.replace(old, new));
        assert!(text.starts_with(words), "{old} -> {new}: {text}");
    }
    assert_eq!(said("[]"), "it names no branch ENI");
    assert!(said("{}").starts_with("it is no JSON list of branch ENIs: "));
    assert_eq!(said(&" ".repeat(LONGEST + 1)), "it has 16385 bytes, more than 16384");
}

#[test]
fn what_a_pod_was_given_is_remembered_until_it_is_gone() {
    let mut state = state(vec![eni(1, &["10.0.0.1/32"])]);
    state.apply(Event::BranchHeld(Box::new(held("a", 7, "10.0.2.30"))), at(1)).unwrap();
    let document = Checkpoint::of(&state, at(2)).to_json().unwrap();
    let mut state = Checkpoint::from_json(&document).unwrap().into_state(at(2)).unwrap();
    let attachment = owner("a").attachment.clone();
    let addresses = state.branch_of(&attachment).unwrap().pod_addresses();
    assert_eq!((addresses[0].ip, addresses[0].table, addresses[0].device), (ip("10.0.2.30"), 107, 2));
    assert_eq!(check(&state, at(2)), []);
    // It lives, and is no stray.
    let dev = owner("a").host_ifname.clone();
    let kernel = KernelView { pods: [(ip("10.0.2.30"), dev)].into() };
    assert_eq!(reconcile(&mut state, &kernel, std::time::Duration::ZERO, at(500)), []);
    assert_eq!(state.ledger().strays().len(), 0);
    state.apply(Event::BranchReleased(attachment.clone()), at(501)).unwrap();
    assert!(state.branch_of(&attachment).is_none());
    state.apply(Event::BranchReleased(attachment), at(501)).unwrap_err();
}

#[test]
fn a_new_sandbox_takes_the_place_of_the_earlier_one() {
    let mut state = state(vec![eni(1, &["10.0.0.1/32"])]);
    let hold = |state: &mut State, held: Held| state.apply(Event::BranchHeld(Box::new(held)), at(1));
    hold(&mut state, held("a", 7, "10.0.2.30")).unwrap();
    hold(&mut state, held("b", 8, "10.0.2.31")).unwrap();
    let mut again = held("c", 7, "10.0.2.30");
    again.owner.pod = owner("a").pod.clone();
    hold(&mut state, again).unwrap();
    let who: Vec<&str> = state.branches().map(|held| held.owner.attachment.container.as_str()).collect();
    assert_eq!(who, ["b", "c"]);
    assert_eq!(check(&state, at(1)), []);
}

#[test]
fn an_address_of_the_pool_is_nobodys_branch() {
    let mut state = state(vec![eni(1, &["10.0.0.1/32"])]);
    state.apply(Event::Assign(ip("10.0.0.1"), owner("a")), at(1)).unwrap();
    let before = state.clone();
    let refused =
        |state: &mut State, held: Held| state.apply(Event::BranchHeld(Box::new(held)), at(1)).unwrap_err().to_string();
    assert_eq!(
        refused(&mut state, held("a", 7, "10.0.2.30")),
        "a/eth0@sluice cannot have a branch ENI: it has an address of the pool"
    );
    assert_eq!(
        refused(&mut state, held("b", 7, "10.0.0.1")),
        "b/eth0@sluice cannot have a branch ENI: the address is the pool's, or the node's own"
    );
    assert_eq!(
        refused(&mut state, held("b", 7, "10.1.2.30")),
        "b/eth0@sluice cannot have a branch ENI: the address is not of the VPC"
    );
    assert_eq!(state, before);
}

#[test]
fn services_of_the_link_are_nobodys_branch() {
    let services = BOTH.replace("2001:db8:0:2::30", "fd00:ec2::254").replace("2001:db8:0:2::/64", "fd00:ec2::/64");
    PodEni::read(&services, Families::V6).unwrap_err();
}

#[test]
fn a_record_that_contradicts_the_pool_is_forgotten_alone() {
    let mut state = state(vec![eni(1, &["10.0.0.1/32"])]);
    state.apply(Event::Assign(ip("10.0.0.1"), owner("a")), at(1)).unwrap();
    state.apply(Event::BranchHeld(Box::new(held("b", 8, "10.0.2.31"))), at(1)).unwrap();
    // The pool has come to have it since.
    let forged = held("c", 7, "10.0.0.1");
    state.branches.insert(forged.owner.attachment.clone(), forged);
    let kernel = KernelView { pods: [(ip("10.0.0.1"), owner("a").host_ifname.clone())].into() };
    assert_eq!(reconcile(&mut state, &kernel, std::time::Duration::ZERO, at(500)), []);
    assert_eq!(state.ledger().address_of(&owner("a").attachment), Some(ip("10.0.0.1")));
    let document = Checkpoint::of(&state, at(501)).to_json().unwrap();
    let state = Checkpoint::from_json(&document).unwrap().into_state(at(501)).unwrap();
    let who: Vec<&str> = state.branches().map(|held| held.owner.attachment.container.as_str()).collect();
    assert_eq!(who, ["b"]);
    assert_eq!(state.ledger().address_of(&owner("a").attachment), Some(ip("10.0.0.1")));
}

#[test]
fn the_trunk_is_told_from_other_enis() {
    let mut trunk = eni(3, &[]);
    trunk.interface_type = InterfaceType::Trunk;
    assert_eq!(state(vec![eni(1, &[]), trunk]).trunk().map(|eni| eni.id.clone()), Some(eni_id(3)));
    assert_eq!(state(vec![eni(1, &[]), eni(2, &[])]).trunk(), None);
}

#[test]
fn what_is_a_branchs_is_no_litter() {
    let mut state = state(vec![eni(1, &["10.0.0.1/32"])]);
    state.apply(Event::BranchHeld(Box::new(held("a", 7, "10.0.2.30"))), at(1)).unwrap();
    let dev = |name: &str| IfName::new(name).unwrap();
    let of = |who: &str| owner(who).attachment.clone();
    let look = Look {
        dead: [ip("10.0.2.30"), ip("10.0.2.99")].into(),
        marked: [(dev("vlan.eth.7"), of("a")), (dev("vlan.eth.8"), of("b"))].into(),
        ..Look::default()
    };
    let mut garbage = Garbage::default();
    assert_eq!(garbage.look(&look, &state, |_| false, at(1)), []);
    assert_eq!(
        garbage.look(&look, &state, |_| false, at(500)),
        [
            Litter::Rules { address: ip("10.0.2.99"), all: [ip("10.0.2.99")].into(), owner: None },
            Litter::Link(dev("vlan.eth.8"), of("b")),
        ]
    );
}
