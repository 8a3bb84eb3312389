//! Entries of interfaces.

use sluice_policy_core::compile::diff::Operation;
use sluice_policy_core::compile::image::{Endpoint, OwnAddress};

use super::*;
use crate::layout::{Address, ENDPOINT_ANY_SOURCE, ENDPOINT_BRIDGE, ENDPOINT_LOCKDOWN};

fn endpoint(address: &str, ingress: u32, revision: u64) -> Arc<Endpoint> {
    let address = OwnAddress { address: address.parse().unwrap(), ingress: Some(RowId(5)), egress: None };
    let (ingress, egress) = (PolicyId(ingress), PolicyId::NONE);
    Arc::new(Endpoint { addresses: vec![address], ingress, egress, audit: false, revision })
}

fn set(gate: &mut Gate, name: &str, endpoint: Arc<Endpoint>) {
    gate.apply(&Operation::SetEndpoint(key(name), endpoint)).unwrap();
}

#[test]
fn a_pod_is_closed_until_its_endpoint_is_known() {
    on_a_node(|| async {
        let (mut gate, _) = open();
        let waiting = gate.bind(&key("db"), interface(7, &["10.0.0.1"])).unwrap();
        assert_eq!(waiting, Bound::Waiting);
        assert_eq!(entries(&gate)[&7].flags, ENDPOINT_LOCKDOWN);
        set(&mut gate, "db", endpoint("10.0.0.1", 3, 1));
        let entry = entries(&gate)[&7];
        assert_eq!((entry.flags, entry.ingress, entry.egress), (0, 3, 0));
        assert_eq!((entry.addresses[0].ingress, entry.addresses[0].egress), (5, 0));
        assert_eq!(gate.pod_of(entry.id), Some(&key("db")));
        // The other order: what was set is remembered.
        set(&mut gate, "api", endpoint("10.0.0.2", 4, 1));
        assert_eq!(gate.bind(&key("api"), interface(8, &["10.0.0.2"])).unwrap(), Bound::InForce);
        assert_eq!(entries(&gate)[&8].ingress, 4);
        assert_ne!(entries(&gate)[&8].id, entry.id);
    });
}

#[test]
fn a_revision_moves_all_interfaces_of_a_pod() {
    on_a_node(|| async {
        let (mut gate, _) = open();
        set(&mut gate, "db", endpoint("10.0.0.1", 3, 1));
        gate.bind(&key("db"), interface(7, &["10.0.0.1"])).unwrap();
        gate.bind(&key("db"), interface(8, &["10.0.0.8"])).unwrap();
        let before = entries(&gate);
        assert_eq!(before[&7].id, before[&8].id);
        let of = |index: u32| before[&index].addresses.map(|own| own.address);
        assert!(of(7).iter().all(|address| of(8).contains(address)), "a pod may answer by its other interface");
        gate.apply(&Operation::SetRevision(key("db"), 4)).unwrap();
        let after = entries(&gate);
        for index in [7, 8] {
            assert_eq!(after[&index].revision, before[&index].revision + 3);
        }
    });
}

/// What the programs remember of packets is of no use after anything of this, and is not made while it goes on.
#[test]
fn every_change_of_a_gate_moves_the_generation() {
    on_a_node(|| async {
        let (mut gate, _) = open();
        let generation = |gate: &Gate| gate.maps.settings.get(&0, 0).unwrap().generation;
        let mut last = generation(&gate);
        assert_eq!(last % 2, 0);
        let mut moved = |gate: &Gate| {
            let now = generation(gate);
            assert!(now % 2 == 0 && now > last, "{now} after {last}");
            last = now;
        };
        set(&mut gate, "db", endpoint("10.0.0.1", 3, 1));
        gate.bind(&key("db"), interface(7, &["10.0.0.1"])).unwrap();
        moved(&gate);
        gate.apply(&Operation::SetRevision(key("db"), 4)).unwrap();
        moved(&gate);
        gate.lock_down(&key("db")).unwrap();
        moved(&gate);
        gate.unbind(7).unwrap();
        moved(&gate);
        gate.forget(7).unwrap();
        moved(&gate);
        gate.keep_established(true).unwrap();
        moved(&gate);
        // Ended in the middle of a change.
        gate.settings.generation |= 1;
        gate.write_settings().unwrap();
        assert_eq!(generation(&gate) % 2, 1);
        drop(gate);
        let (gate, _) = open();
        moved(&gate);
        assert_eq!(gate.settings.flags, layout::SETTING_KEEP_ESTABLISHED, "and nothing else is lost");
    });
}

#[test]
fn lockdown_lasts_until_the_endpoint_is_set_again() {
    on_a_node(|| async {
        let (mut gate, _) = open();
        set(&mut gate, "db", endpoint("10.0.0.1", 3, 1));
        gate.bind(&key("db"), interface(7, &["10.0.0.1"])).unwrap();
        gate.lock_down(&key("db")).unwrap();
        gate.apply(&Operation::SetRevision(key("db"), 2)).unwrap();
        assert_eq!(entries(&gate)[&7].flags, ENDPOINT_LOCKDOWN);
        assert_eq!(gate.differences(7).unwrap(), ["interface 7 is locked down"]);
        set(&mut gate, "db", endpoint("10.0.0.1", 3, 3));
        assert_eq!(entries(&gate)[&7].flags, 0);
        gate.apply(&Operation::RemoveEndpoint(key("db"))).unwrap();
        assert_eq!(entries(&gate)[&7].flags, ENDPOINT_LOCKDOWN, "a pod that the cluster does not know");
        set(&mut gate, "db", endpoint("10.0.0.1", 3, 4));
        assert_eq!(entries(&gate)[&7].flags, 0);
    });
}

#[test]
fn an_interface_of_nobody_drops_until_it_is_gone() {
    on_a_node(|| async {
        let (mut gate, _) = open();
        set(&mut gate, "db", endpoint("10.0.0.1", 3, 1));
        gate.bind(&key("db"), interface(7, &["10.0.0.1"])).unwrap();
        let first = entries(&gate)[&7];
        gate.unbind(7).unwrap();
        gate.unbind(7).unwrap();
        set(&mut gate, "db", endpoint("10.0.0.1", 3, 2));
        assert_eq!(entries(&gate)[&7], layout::Endpoint { flags: ENDPOINT_LOCKDOWN, ..first });
        assert!(gate.pod_of(first.id).is_none());
        gate.forget(7).unwrap();
        gate.forget(7).unwrap();
        assert_eq!(entries(&gate), BTreeMap::new());
        // The next pod of the name has flows of its own.
        gate.bind(&key("db"), interface(9, &["10.0.0.1"])).unwrap();
        assert_ne!(entries(&gate)[&9].id, first.id);
        assert_eq!(gate.unbind(4711).ok(), Some(()), "nobody knows it");
    });
}

#[test]
fn a_restart_changes_nothing_until_the_endpoint_is_set() {
    on_a_node(|| async {
        let (mut gate, _) = open();
        for (name, index, address) in [("db", 7, "10.0.0.1"), ("api", 8, "10.0.0.2"), ("x", 9, "10.0.0.3")] {
            set(&mut gate, name, endpoint(address, 3, 41));
            gate.bind(&key(name), interface(index, &[address])).unwrap();
        }
        let before = entries(&gate);
        drop(gate);
        let (mut gate, _) = open();
        assert_eq!(gate.bind(&key("db"), interface(7, &["10.0.0.1"])).unwrap(), Bound::Kept);
        assert_eq!(entries(&gate), before);
        assert_eq!(gate.differences(7).unwrap(), ["interface 7 is as before the restart"]);
        set(&mut gate, "db", endpoint("10.0.0.1", 9, 1));
        let after = entries(&gate)[&7];
        assert_eq!((after.id, after.ingress), (before[&7].id, 9), "its flows are its own still");
        assert!(after.revision > before[&7].revision, "and are judged again");
        // Another pod's interface by now: what was there is not gone on with.
        assert_eq!(gate.bind(&key("new"), interface(8, &["10.0.0.77"])).unwrap(), Bound::Waiting);
        let other = entries(&gate)[&8];
        assert!(other.flags == ENDPOINT_LOCKDOWN && other.id != before[&8].id, "{other:?}");
        // Whoever does not know what the numbers mean closes what is left.
        assert_eq!(gate.lock_down_kept().unwrap(), 1);
        assert_eq!(entries(&gate)[&9].flags, ENDPOINT_LOCKDOWN);
        assert_eq!(gate.bind(&key("x"), interface(9, &["10.0.0.3"])).unwrap(), Bound::Kept);
        set(&mut gate, "x", endpoint("10.0.0.3", 3, 1));
        assert_eq!((entries(&gate)[&9].flags, entries(&gate)[&9].id), (0, before[&9].id));
    });
}

#[test]
fn more_addresses_than_there_is_room_for_close_the_gate() {
    on_a_node(|| async {
        let (mut gate, _) = open();
        set(&mut gate, "db", endpoint("10.0.0.1", 3, 1));
        let many = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"];
        let error = gate.bind(&key("db"), interface(7, &many)).unwrap_err();
        assert_eq!(error.to_string(), "pod shop/db has 5 addresses, and its gate has room for 4");
        assert_eq!(entries(&gate)[&7].flags, ENDPOINT_LOCKDOWN);
        gate.bind(&key("db"), interface(7, &many[..4])).unwrap();
        assert_eq!(entries(&gate)[&7].flags, 0);
        // Addresses of other interfaces are of use, but no need.
        gate.bind(&key("db"), Interface { first: false, ..interface(8, &many[4..]) }).unwrap();
        let entry = entries(&gate)[&8];
        let addresses: Vec<IpAddr> = entry.addresses.iter().map(|own| own.address.into()).collect();
        assert_eq!(entry.flags, 0);
        assert_eq!(addresses[..2], ["10.0.0.5", "10.0.0.1"].map(|text| text.parse::<IpAddr>().unwrap()));
    });
}

/// One on each network card: each has its own address, with the compiler's row, and the pod is open.
#[test]
fn a_pod_may_have_more_interfaces_than_an_entry_has_room_for_addresses() {
    on_a_node(|| async {
        let (mut gate, _) = open();
        let all: Vec<String> = (1..=8).map(|number| format!("10.0.0.{number}")).collect();
        let row =
            |address: &String| OwnAddress { address: address.parse().unwrap(), ingress: Some(RowId(5)), egress: None };
        let addresses = all.iter().map(row).collect();
        let (ingress, egress) = (PolicyId(3), PolicyId::NONE);
        set(&mut gate, "db", Arc::new(Endpoint { addresses, ingress, egress, audit: false, revision: 1 }));
        for (index, address) in (7..).zip(&all) {
            assert_eq!(gate.bind(&key("db"), interface(index, &[address.as_str()])).unwrap(), Bound::InForce);
        }
        let entries = entries(&gate);
        for (index, address) in (7..).zip(&all) {
            let entry = entries[&index];
            let own = entry.addresses[0];
            assert_eq!((entry.flags, own.ingress, IpAddr::from(own.address).to_string()), (0, 5, address.clone()));
            assert_eq!(entry.id, entries[&7].id, "they are one pod's");
        }
    });
}

/// A pod of one family may have an address for egress in the other, of which nobody tells: its gate knows it.
#[test]
fn a_pod_of_one_family_leaves_in_the_other_by_its_gate() {
    on_a_node(|| async {
        let (mut gate, _) = open();
        set(&mut gate, "db", endpoint("2001:db8:1::7", 3, 1));
        gate.bind(&key("db"), interface(7, &["2001:db8:1::7"])).unwrap();
        assert_eq!(own(&gate, 7), ["2001:db8:1::7", "169.254.176.7"]);
        let owner = |gate: &Gate| gate.maps.owners.get(&IpAddr::from([169, 254, 176, 7]).into(), 0).ok();
        assert_eq!(owner(&gate), Some(7));
        set(&mut gate, "api", endpoint("10.0.0.2", 4, 1));
        gate.bind(&key("api"), interface(8, &["10.0.0.2", "2001:db8:1::8"])).unwrap();
        assert_eq!(own(&gate, 8), ["10.0.0.2", "2001:db8:1::8"], "it has both");
        drop(gate);
        let (mut gate, found) = open();
        assert_eq!(found.endpoints[&7].addresses, ["2001:db8:1::7".parse::<IpAddr>().unwrap()]);
        gate.bind(&key("db"), interface(7, &["2001:db8:1::7"])).unwrap();
        gate.unbind(7).unwrap();
        assert_eq!(owner(&gate), None);
    });
}

fn own(gate: &Gate, index: u32) -> Vec<String> {
    let entry = entries(gate)[&index];
    let held = entry.addresses.iter().filter(|own| !own.address.is_none());
    held.map(|own| IpAddr::from(own.address).to_string()).collect()
}

/// Behind a bridge an entry without owner would open the gate for nobody's packets, and by a revision alone nothing opens.
#[test]
fn without_room_for_whose_addresses_they_are_a_revision_opens_nothing() {
    on_a_node(|| async {
        let (mut gate, _) = open();
        set(&mut gate, "db", endpoint("10.0.0.1", 3, 1));
        let others: Vec<Address> = (0..1_u32 << 16).map(|n| IpAddr::V4((0x0b00_0000 + n).into()).into()).collect();
        let room = others.iter().position(|other| gate.maps.owners.insert(other, 99, 0).is_err()).unwrap();
        gate.bind(&key("db"), interface(7, &["10.0.0.1"])).unwrap_err();
        gate.apply(&Operation::SetRevision(key("db"), 4)).unwrap_err();
        assert!(!entries(&gate).contains_key(&7));
        for other in &others[..room.min(4)] {
            gate.maps.owners.remove(other).unwrap();
        }
        gate.apply(&Operation::SetRevision(key("db"), 5)).unwrap();
        assert_eq!(entries(&gate)[&7].flags, 0);
    });
}

/// On the first interface of each network card IPv6 addresses are counted from one, and so their numbers are other pods' too.
#[test]
fn a_further_interface_has_no_address_for_egress() {
    on_a_node(|| async {
        let (mut gate, _) = open();
        let owner = |gate: &Gate| gate.maps.owners.get(&IpAddr::from([169, 254, 176, 1]).into(), 0).ok();
        let (other, first, second) = ("2001:db8::a:0:0:1", "2001:db8::a:0:0:2", "2001:db8::b:0:0:1");
        set(&mut gate, "db", endpoint(other, 3, 1));
        gate.bind(&key("db"), interface(7, &[other])).unwrap();
        assert_eq!(owner(&gate), Some(7));
        set(&mut gate, "two", endpoint(first, 3, 1));
        gate.bind(&key("two"), interface(8, &[first])).unwrap();
        let further = Interface { first: false, ..interface(9, &[second]) };
        gate.bind(&key("two"), further).unwrap();
        assert_eq!(owner(&gate), Some(7), "it stays the other pod's");
        assert_eq!(own(&gate, 8), [first, "169.254.176.2", second]);
        assert_eq!(own(&gate, 9), [second, first, "169.254.176.2"]);
        gate.unbind(9).unwrap();
        assert_eq!(owner(&gate), Some(7));
        gate.unbind(7).unwrap();
        assert_eq!(owner(&gate), None);
    });
}

/// Whatever else there is no room for: an interface's own address for egress comes right after its own addresses.
#[test]
fn the_first_of_many_interfaces_keeps_its_address_for_egress() {
    on_a_node(|| async {
        let (mut gate, _) = open();
        let all: Vec<String> = (1..=8).map(|number| format!("2001:db8::{number}:0:0:7")).collect();
        let row =
            |address: &String| OwnAddress { address: address.parse().unwrap(), ingress: Some(RowId(5)), egress: None };
        let addresses = all.iter().map(row).collect();
        let (ingress, egress) = (PolicyId(3), PolicyId::NONE);
        set(&mut gate, "db", Arc::new(Endpoint { addresses, ingress, egress, audit: false, revision: 1 }));
        for (index, address) in (7..).zip(&all) {
            let interface = Interface { first: index == 7, ..interface(index, &[address.as_str()]) };
            assert_eq!(gate.bind(&key("db"), interface).unwrap(), Bound::InForce);
        }
        assert_eq!(own(&gate, 7)[1], "169.254.176.7");
        assert_eq!(own(&gate, 14)[..2], [all[7].clone(), all[0].clone()]);
    });
}

#[test]
fn every_pod_is_known_by_its_addresses() {
    on_a_node(|| async {
        let (mut gate, _) = open();
        let owner = |gate: &Gate, address: [u8; 4]| gate.maps.owners.get(&IpAddr::from(address).into(), 0).ok();
        set(&mut gate, "db", endpoint("10.0.0.1", 3, 1));
        gate.bind(&key("db"), interface(7, &["10.0.0.1"])).unwrap();
        gate.bind(&key("db"), interface(8, &["10.0.0.2"])).unwrap();
        assert_eq!((owner(&gate, [10, 0, 0, 1]), owner(&gate, [10, 0, 0, 2])), (Some(7), Some(8)));
        // Its successor has the address already when the old interface goes.
        gate.bind(&key("next"), interface(9, &["10.0.0.2"])).unwrap();
        gate.unbind(8).unwrap();
        gate.unbind(7).unwrap();
        assert_eq!((owner(&gate, [10, 0, 0, 1]), owner(&gate, [10, 0, 0, 2])), (None, Some(9)));
    });
}

#[test]
fn a_port_of_a_bridge_is_known_by_its_addresses() {
    on_a_node(|| async {
        let (mut gate, _) = open();
        set(&mut gate, "db", endpoint("10.0.0.1", 3, 1));
        let port = Interface { bridge: Some(4), any_source: true, ..interface(7, &["10.0.0.1"]) };
        gate.bind(&key("db"), port).unwrap();
        let owner = |gate: &Gate| gate.maps.owners.get(&IpAddr::from([10, 0, 0, 1]).into(), 0).ok();
        assert_eq!(owner(&gate), Some(7));
        assert_eq!(entries(&gate)[&4].flags, ENDPOINT_BRIDGE);
        assert_eq!(entries(&gate)[&7].flags, ENDPOINT_ANY_SOURCE);
        gate.unbind(7).unwrap();
        assert_eq!(owner(&gate), None);
        drop(gate);
        let (_, found) = open();
        assert_eq!(found.endpoints.keys().collect::<Vec<_>>(), [&7], "a bridge is no pod");
    });
}
