use std::net::Ipv4Addr;

use sluice_contract::id::EniId;
use sluice_hostnet::branch::PodBranch;
use sluice_hostnet::state::{Neighbour, NftFamily, Protocol};

use super::*;
use crate::config::Config;
use crate::kernel::{EniNetwork, NodeNetwork, desired};
use crate::testing::attachment;

const PRIMARY: MacAddr = MacAddr([2, 0, 0, 0, 1, 0x10]);
const SECONDARY: MacAddr = MacAddr([2, 0, 0, 0, 1, 0x50]);

fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

fn pod_ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 1, last])
}

fn link(index: u32, dev: &str) -> Link {
    Link {
        index,
        name: name(dev),
        mac: None,
        mtu: 9001,
        up: true,
        kind: LinkKind::Veth,
        peer: None,
        peer_netns: None,
        alias: None,
        master: None,
    }
}

fn pod_route_of(last: u8, dev: &str) -> Route {
    Route::on_link(TABLE_MAIN, host_prefix(pod_ip(last)), name(dev))
}

/// A node with a secondary ENI and one pod that stands.
fn ours() -> Ours {
    let node = NodeNetwork {
        primary_mac: PRIMARY,
        primary_ip: Ipv4Addr::new(10, 0, 1, 10),
        vpc_cidrs: vec!["10.0.0.0/16".parse().unwrap()],
        routed_cidrs: Vec::new(),
        config: Config::load(&|_| None).unwrap().network,
    };
    let eni = EniNetwork {
        eni: EniId::new("eni-00000000000000050").unwrap(),
        mac: SECONDARY,
        primary_ip: Ipv4Addr::new(10, 0, 1, 50),
        subnet: "10.0.1.0/24".parse().unwrap(),
        ipv6: None,
        table: 2,
        mtu: 9001,
        trunk: false,
    };
    let mut ours = Ours::default();
    ours.parts.insert(Part::Node, (PRIMARY, desired::node(&node, &name("eth0")).unwrap()));
    ours.parts.insert(Part::Eni(2), (SECONDARY, desired::eni(&eni, &name("eth1")).unwrap()));
    ours.stands(&pod_route_of(20, "enia"), "eni");
    ours
}

fn said(event: &Event) -> Option<String> {
    ours().touched(event, "eni")
}

#[test]
fn what_is_ours_is_noticed() {
    let rule_to_pod = Rule::to(RULE_TO_POD, host_prefix(pod_ip(20)), TABLE_MAIN);
    let mark = ours().parts[&Part::Node].1.rules[0].clone();
    let router = ours().parts[&Part::Eni(2)].1.routes[1].clone();
    let own = ours().parts[&Part::Eni(2)].1.addresses[0].clone();
    let second = Route { metric: 5, ..router.clone() };
    let elsewhere = Rule::from(RULE_FROM_POD, host_prefix(pod_ip(20)), 77);
    for event in [
        Event::Rule(Change::Gone, mark),
        Event::Rule(Change::Gone, rule_to_pod),
        Event::Rule(Change::New, elsewhere),
        Event::Rule(Change::New, Rule::all(Family::V4, 1024, 9)),
        Event::Route(Change::Gone, router),
        Event::Route(Change::New, second),
        Event::Route(Change::Gone, pod_route_of(20, "enia")),
        Event::Route(Change::New, pod_route_of(20, "eth0")),
        Event::Address(Change::Gone, own.clone()),
        Event::Address(Change::New, sluice_hostnet::state::Address { net: "10.9.9.9/24".parse().unwrap(), ..own }),
        Event::Neighbour(Change::New, Neighbour::permanent(name("eth1"), pod_ip(1), SECONDARY)),
        Event::Neighbour(Change::New, Neighbour::permanent(name("enia"), pod_ip(20), SECONDARY)),
        Event::Link(Change::New, Link { up: false, ..link(3, "eth1") }),
        Event::Link(Change::New, Link { mtu: 1500, ..link(2, "eth0") }),
        Event::Link(Change::New, Link { up: false, ..link(4, "enia") }),
        Event::Link(Change::New, Link { mac: Some(SECONDARY), ..link(3, "lan7") }),
        Event::Lost,
    ] {
        assert!(said(&event).is_some(), "{event:?}");
    }
    assert!(ours().owns_table(&NftTableId::new(NftFamily::Ip, "sluice")));
}

#[test]
fn what_is_somebody_elses_or_as_it_should_be_is_not() {
    let mark = ours().parts[&Part::Node].1.rules[0].clone();
    let router = ours().parts[&Part::Eni(2)].1.routes[1].clone();
    let own = ours().parts[&Part::Eni(2)].1.addresses[0].clone();
    let kernels = Route {
        protocol: Protocol::KERNEL,
        ..Route::on_link(TABLE_MAIN, "10.0.1.0/24".parse().unwrap(), name("eth0"))
    };
    for event in [
        Event::Rule(Change::New, mark),
        Event::Rule(Change::New, Rule::all(Family::V4, 100, 9)),
        Event::Rule(Change::Gone, Rule::all(Family::V4, 100, 9)),
        // A pod that is being added or deleted.
        Event::Rule(Change::New, Rule::to(RULE_TO_POD, host_prefix(pod_ip(21)), TABLE_MAIN)),
        Event::Rule(Change::Gone, Rule::to(RULE_TO_POD, host_prefix(pod_ip(21)), TABLE_MAIN)),
        Event::Route(Change::New, router),
        Event::Route(Change::New, pod_route_of(21, "enib")),
        Event::Route(Change::New, kernels),
        Event::Route(Change::New, Route::on_link(77, "192.0.2.0/24".parse().unwrap(), name("eth1"))),
        Event::Address(Change::New, own),
        Event::Neighbour(Change::New, Neighbour::permanent(name("eth0"), pod_ip(1), SECONDARY)),
        Event::Link(Change::New, link(3, "eth1")),
        Event::Link(Change::New, Link { up: false, ..link(9, "docker0") }),
        Event::Link(Change::Gone, link(3, "enia")),
    ] {
        assert_eq!(said(&event), None, "{event:?}");
    }
    assert!(!ours().owns_table(&NftTableId::new(NftFamily::Ip, "kube-proxy")));
}

#[test]
fn a_pod_ends_with_its_interface() {
    let mut ours = ours();
    assert_eq!(ours.touched(&Event::Link(Change::Gone, link(4, "enia")), "eni"), None);
    for event in [
        Event::Route(Change::Gone, pod_route_of(20, "enia")),
        Event::Rule(Change::Gone, Rule::to(RULE_TO_POD, host_prefix(pod_ip(20)), TABLE_MAIN)),
    ] {
        assert_eq!(ours.touched(&event, "eni"), None);
    }
    assert_eq!(ours.standing.len(), 0);
}

fn pod(settled: bool) -> PodNetwork {
    PodNetwork {
        attachment: attachment("a"),
        dev: name("enia"),
        addresses: vec![pod_ip(20)],
        egress: None,
        table: 2,
        branch: None,
        settled,
    }
}

fn words(seen: &Observed, pod: PodNetwork, standing: &BTreeMap<IpAddr, IfName>) -> Vec<String> {
    pods(seen, &[pod], standing).into_iter().map(|planned| planned.op.to_string()).collect()
}

#[test]
fn a_pod_that_stands_gets_back_what_it_has_lost_and_loses_what_others_gave_it() {
    let standing = ours().standing;
    let alias = Some("sluice a/eth0@sluice".to_owned());
    let foreign = Rule::to(RULE_TO_POD, host_prefix(pod_ip(99)), 9);
    let seen = Observed {
        links: vec![Link { alias, up: false, ..link(4, "enia") }],
        rules: vec![Rule::from(RULE_FROM_POD, host_prefix(pod_ip(20)), 77), foreign],
        neighbours: vec![Neighbour::permanent(name("enia"), pod_ip(20), SECONDARY)],
        ..Observed::default()
    };
    let expected = [
        "link set enia up",
        "route replace 10.0.1.20/32 dev enia table 254",
        "rule add 512: from all to 10.0.1.20/32 lookup 254",
        "rule add 1536: from 10.0.1.20/32 lookup 2",
        "rule del 1536: from 10.0.1.20/32 lookup 77",
        "neighbour del 10.0.1.20 dev enia lladdr 02:00:00:00:01:50",
    ];
    assert_eq!(words(&seen, pod(false), &standing), expected);
    assert_eq!(words(&seen, pod(true), &BTreeMap::new()), expected, "also one whose ADD ended long ago");
    // In the middle of its ADD.
    assert_eq!(words(&seen, pod(false), &BTreeMap::new()), [""; 0]);
    // Another pod's interface, and none.
    let other = Observed {
        links: vec![Link { alias: Some("sluice b/eth0@sluice".to_owned()), ..link(4, "enia") }],
        ..seen.clone()
    };
    assert_eq!(words(&other, pod(true), &standing), [""; 0]);
    assert_eq!(words(&Observed { links: Vec::new(), ..seen }, pod(true), &standing), [""; 0]);
}

#[test]
fn a_pod_with_a_branch_eni_gets_back_what_is_its_alone() {
    let vlan = sluice_contract::id::VlanId::new(7).unwrap();
    let branch = PodBranch {
        link: name("vlan.eth.7"),
        vlan,
        mac: SECONDARY,
        trunk_mac: PRIMARY,
        mode: sluice_contract::node::branch::Mode::Strict,
        table: 107,
        addresses: vec![(pod_ip(20), pod_ip(1))],
    };
    let strict = PodNetwork { dev: name("vlana"), table: 107, branch: Some(branch), ..pod(true) };
    let alias = Some("sluice a/eth0@sluice".to_owned());
    let vlan_link = Link { kind: LinkKind::Other("vlan".to_owned()), ..link(5, "vlan.eth.7") };
    let mut seen = Observed { links: vec![Link { alias, ..link(4, "vlana") }, vlan_link], ..Observed::default() };
    let none = BTreeMap::new();
    let ops = words(&seen, strict.clone(), &none);
    let expected = [
        "route replace 10.0.1.1/32 dev vlan.eth.7 table 107",
        "route replace 10.0.1.20/32 dev vlana table 107",
        "route replace default via 10.0.1.1 dev vlan.eth.7 table 107",
        "rule add 10: from all iif vlan.eth.7 lookup 107",
        "rule add 10: from all iif vlana lookup 107",
    ];
    assert_eq!(ops, expected);
    for planned in pods(&seen, std::slice::from_ref(&strict), &none) {
        seen.apply(&planned.op);
    }
    assert_eq!(words(&seen, strict.clone(), &none), [""; 0]);
    seen.links[1].up = false;
    assert_eq!(words(&seen, strict.clone(), &none), ["link set vlan.eth.7 up"]);
    // Without the VLAN nothing can be put back.
    seen.links.pop();
    seen.rules.clear();
    assert_eq!(words(&seen, strict, &none), [""; 0]);
    let mut ours = ours();
    let gone = Event::Rule(Change::Gone, Rule::iif(Family::V4, 10, name("vlana"), 107));
    assert_eq!(ours.touched(&gone, "eni").as_deref(), Some("rule 10: from all iif vlana lookup 107 was deleted"));
    let foreign = Event::Rule(Change::Gone, Rule::iif(Family::V4, 10, name("vlana"), 7));
    assert_eq!(ours.touched(&foreign, "eni"), None);
}
