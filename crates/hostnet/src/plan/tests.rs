use std::collections::BTreeSet;

use proptest::prelude::*;
use sluice_contract::id::MacAddr;

use super::*;
use crate::desired::{Devices, RouteScope, RuleScope, Scope};
use crate::state::{
    Link, LinkKind, Mark, NftContent, NftFamily, Protocol, RouteKind, RtScope, TABLE_MAIN, host_prefix,
};

fn dev(number: u8) -> IfName {
    IfName::new(format!("eth{number}")).unwrap()
}

fn ip(text: &str) -> std::net::IpAddr {
    text.parse().unwrap()
}

fn devices() -> impl Strategy<Value = IfName> {
    (0u8..3).prop_map(dev)
}

fn links() -> impl Strategy<Value = Vec<Link>> {
    proptest::collection::vec((any::<bool>(), 1500u32..1502), 3).prop_map(|links| {
        (0u8..)
            .zip(links)
            .map(|(number, (up, mtu))| Link {
                index: u32::from(number) + 1,
                name: dev(number),
                mac: Some(MacAddr([2, 0, 0, 0, 0, number])),
                mtu,
                up,
                kind: LinkKind::Physical,
                peer: None,
                peer_netns: None,
                alias: None,
                master: None,
            })
            .collect()
    })
}

fn prefixes() -> impl Strategy<Value = ipnet::IpNet> {
    prop_oneof![
        (0u8..4).prop_map(|low| host_prefix(ip(&format!("10.0.1.{low}")))),
        (0u8..3).prop_map(|low| format!("10.0.{low}.0/24").parse().unwrap()),
        (0u8..3).prop_map(|low| host_prefix(ip(&format!("2001:db8::{low}")))),
        Just(Family::V4.everything()),
        Just(Family::V6.everything()),
    ]
}

fn addresses() -> impl Strategy<Value = Address> {
    (devices(), 1u8..5, any::<bool>()).prop_map(|(dev, low, link_local)| {
        let net = format!("10.0.1.{low}/24").parse().unwrap();
        let scope = if link_local { RtScope::Link } else { RtScope::Global };
        Address { scope, ..Address::new(dev, net) }
    })
}

fn routes() -> impl Strategy<Value = Route> {
    (prefixes(), devices(), prop_oneof![Just(2u32), Just(TABLE_MAIN)], 0u8..4, any::<bool>()).prop_map(
        |(destination, dev, table, shape, kernel)| {
            let gateway = |destination: ipnet::IpNet| match destination {
                ipnet::IpNet::V4(_) => ip("10.0.1.1"),
                ipnet::IpNet::V6(_) => ip("fe80::1"),
            };
            let route = match shape {
                0 => Route::on_link(table, destination, dev),
                1 => Route::via(table, destination, gateway(destination), dev),
                2 => Route::blackhole(table, destination),
                _ => Route::on_link(table, destination, dev).with_metric(7),
            };
            Route { protocol: if kernel { Protocol::KERNEL } else { Protocol::BOOT }, ..route }
        },
    )
}

fn rules() -> impl Strategy<Value = Rule> {
    (prefixes(), prop_oneof![Just(512u32), Just(1536u32)], 0u8..4, 1u32..4).prop_map(|(net, priority, shape, table)| {
        match shape {
            0 => Rule::from(priority, net, table),
            1 => Rule::to(priority, net, table),
            2 => Rule::mark(Family::V4, priority, Mark { value: 0x80, mask: 0x80 }, table),
            _ => Rule::iif(Family::V6, priority, dev(0), table),
        }
    })
}

fn neighbours() -> impl Strategy<Value = Neighbour> {
    (devices(), 0u8..3, 0u8..3).prop_map(|(dev, low, mac)| {
        let address = ip(&format!("169.254.1.{low}"));
        if mac == 0 {
            Neighbour::proxy(dev, address)
        } else {
            Neighbour::permanent(dev, address, MacAddr([2, 0, 0, 0, 1, mac]))
        }
    })
}

fn sysctls() -> impl Strategy<Value = Sysctl> {
    (devices(), 0u8..3)
        .prop_map(|(dev, value)| Sysctl::new(SysctlKey::of_interface(Family::V4, &dev, "rp_filter").unwrap(), value))
}

fn nft_tables() -> impl Strategy<Value = NftTable> {
    (0u8..3, 0u8..3).prop_map(|(name, content)| NftTable {
        id: NftTableId::new(NftFamily::Ip, format!("t{name}")),
        content: NftContent(content.to_string()),
    })
}

/// Keeps the first of what has one key, as the kernel does.
fn unique<T, K: PartialEq>(all: Vec<T>, key: impl Fn(&T) -> K) -> Vec<T> {
    let mut kept: Vec<T> = Vec::new();
    for item in all {
        if !kept.iter().any(|earlier| key(earlier) == key(&item)) {
            kept.push(item);
        }
    }
    kept
}

fn some<S: Strategy>(of: S) -> impl Strategy<Value = Vec<S::Value>> {
    proptest::collection::vec(of, 0..6)
}

fn observed() -> impl Strategy<Value = Observed> {
    let routing = (some(routes()), some(rules()).prop_map(|rules| rules.into_iter().map(Rule::canonical).collect()));
    (links(), some(addresses()), routing, some(neighbours()), some(sysctls()), some(nft_tables())).prop_map(
        |(links, addresses, (routes, mut rules), neighbours, sysctls, nft): (_, _, (_, Vec<Rule>), _, _, _)| {
            rules.sort_by_key(|rule| rule.priority);
            Observed {
                links,
                addresses: unique(addresses, |a| (a.dev.clone(), a.net)),
                // Several routes of one key are what IPv4's `append` leaves behind; equal ones are not possible.
                routes: unique(routes, Route::clone),
                rules,
                neighbours: unique(neighbours, |n| {
                    (n.dev.clone(), n.address, n.kind == crate::state::NeighbourKind::Proxy)
                }),
                sysctls: unique(sysctls, |s| s.key.clone()),
                nft: unique(nft, |t| t.id.clone()),
            }
        },
    )
}

fn scopes() -> impl Strategy<Value = Scope> {
    let routes = prop_oneof![
        Just(RouteScope::table(2, Family::V4)),
        Just(RouteScope::table(2, Family::V6)),
        Just(RouteScope::devices(TABLE_MAIN, Family::V4, Devices::Named(dev(1)))),
        Just(RouteScope::devices(TABLE_MAIN, Family::V6, Devices::Prefixed("eth2".into()))),
        Just(RouteScope {
            protocols: Some(BTreeSet::from([Protocol::BOOT])),
            ..RouteScope::table(TABLE_MAIN, Family::V4)
        }),
    ];
    let rules = prop_oneof![
        Just(RuleScope::priority(Family::V4, 512)),
        Just(RuleScope::priority(Family::V6, 1536)),
        Just(RuleScope { table: Some(2), ..RuleScope::priority(Family::V4, 1536) }),
    ];
    (
        proptest::collection::btree_set(devices(), 0..3),
        proptest::collection::btree_set(routes, 0..4),
        proptest::collection::btree_set(rules, 0..3),
        proptest::collection::btree_set(devices(), 0..3),
        proptest::collection::btree_set((0u8..3).prop_map(|n| NftTableId::new(NftFamily::Ip, format!("t{n}"))), 0..3),
    )
        .prop_map(|(addresses, routes, rules, neighbours, nft)| Scope {
            addresses,
            routes,
            rules,
            neighbours,
            nft,
        })
}

fn desired() -> impl Strategy<Value = Desired> {
    let links = some((devices(), any::<Option<bool>>(), proptest::option::of(1500u32..1502)))
        .prop_map(|links| links.into_iter().map(|(dev, up, mtu)| LinkSettings { dev, up, mtu }).collect::<Vec<_>>());
    let nft = some(nft_tables()).prop_map(|tables| {
        tables
            .into_iter()
            .map(|table| NftRuleset { body: table.content.0.clone(), id: table.id, content: table.content })
            .collect::<Vec<_>>()
    });
    (scopes(), links, some(addresses()), (some(routes()), some(rules())), some(neighbours()), some(sysctls()), nft)
        .prop_map(|(scope, links, addresses, (routes, rules), neighbours, sysctls, nft)| Desired {
            scope,
            links: unique(links, |l| l.dev.clone()),
            addresses: unique(addresses, |a| (a.dev.clone(), a.net)),
            routes: unique(routes, |r| r.clone().canonical().key()),
            rules,
            neighbours: unique(neighbours, |n| {
                (n.dev.clone(), n.address, n.kind == crate::state::NeighbourKind::Proxy)
            }),
            sysctls: unique(sysctls, |s| s.key.clone()),
            nft: unique(nft, |t| t.id.clone()),
        })
}

/// What is neither ours nor in the place of something desired.
fn untouchable(seen: &Observed, desired: &Desired) -> Observed {
    let keys: Vec<_> = desired.routes.iter().map(|route| route.clone().canonical().key()).collect();
    let scope = &desired.scope;
    let mut kept = seen.clone();
    kept.addresses.retain(|a| !scope.owns_address(a));
    kept.routes.retain(|r| !scope.owns_route(r) && !keys.contains(&r.key()));
    kept.rules.retain(|r| !scope.owns_rule(r));
    kept.neighbours
        .retain(|n| !scope.owns_neighbour(n) && !desired.neighbours.iter().any(|wanted| wanted.is_same_entry(n)));
    kept.nft.retain(|t| !scope.nft.contains(&t.id) && !desired.nft.iter().any(|wanted| wanted.id == t.id));
    kept
}

fn contains_all<T: PartialEq + fmt::Debug>(after: &[T], before: &[T]) {
    for item in before {
        assert!(after.contains(item), "{item:?} was not ours, and is gone");
    }
}

fn sorted(mut picture: Observed) -> Observed {
    picture.addresses.sort();
    picture.routes.sort();
    picture.rules.sort();
    picture.neighbours.sort();
    picture.sysctls.sort();
    picture
}

proptest! {
    // Rejected cases grow with the cases that are asked for.
    #![proptest_config(ProptestConfig {
        cases: 512, max_global_rejects: 100_000, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn planning_against_the_applied_state_gives_nothing(before in observed(), desired in desired()) {
        let mut after = before;
        for planned in plan(&after, &desired) {
            prop_assert!(!planned.reason.is_empty());
            after.apply(&planned.op);
        }
        prop_assert_eq!(plan(&after, &desired), vec![]);
        for route in &desired.routes {
            prop_assert!(after.routes.iter().any(|seen| seen.is_same(&route.clone().canonical())));
        }
        for rule in &desired.rules {
            prop_assert!(after.rules.contains(&rule.clone().canonical()));
        }
        for address in &desired.addresses {
            prop_assert!(after.addresses.iter().any(|seen| seen.is_same(address)));
        }
    }

    #[test]
    fn what_is_out_of_scope_stays(before in observed(), desired in desired()) {
        let mut after = before.clone();
        for planned in plan(&before, &desired) {
            after.apply(&planned.op);
        }
        let kept = untouchable(&before, &desired);
        contains_all(&after.addresses, &kept.addresses);
        contains_all(&after.routes, &kept.routes);
        contains_all(&after.rules, &kept.rules);
        contains_all(&after.neighbours, &kept.neighbours);
        contains_all(&after.nft, &kept.nft);
    }

    #[test]
    fn an_empty_desire_changes_nothing(before in observed()) {
        prop_assert_eq!(plan(&before, &Desired::default()), vec![]);
    }

    #[test]
    fn adds_come_before_deletes(before in observed(), desired in desired()) {
        let deletes: Vec<bool> = plan(&before, &desired).iter().map(|planned| planned.op.is_delete()).collect();
        prop_assert!(deletes.is_sorted(), "{deletes:?}");
    }

    /// What the executor's undo relies on: each op's inverse, in reverse order, gives the picture before, wherever
    /// it was cut off.
    #[test]
    fn inverses_in_reverse_restore_the_picture(before in observed(), desired in desired(), cut in 0usize..20) {
        let mut desired = desired;
        desired.nft.clear();
        desired.scope.nft.clear();
        let ops: Vec<Op> = plan(&before, &desired).into_iter().map(|planned| planned.op).take(cut).collect();
        // A sysctl that was not read has no value to go back to.
        prop_assume!(ops.iter().all(|op| op.inverse().is_some()));
        // Equal rules and same-key routes lose their order among each other; the set is what counts.
        let mut after = before.clone();
        for op in &ops {
            after.apply(op);
        }
        for op in ops.iter().rev() {
            after.apply(&op.inverse().unwrap());
        }
        let doubled = before.rules.len() != unique(before.rules.clone(), Rule::clone).len();
        let keys = before.routes.len() != unique(before.routes.clone(), Route::key).len();
        if !doubled && !keys {
            prop_assert_eq!(sorted(after), sorted(before));
        }
    }
}

#[test]
fn a_secondary_eni_is_set_up_next_hop_first() {
    let eth1 = dev(1);
    let link = Link {
        index: 3,
        name: eth1.clone(),
        mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
        mtu: 1500,
        up: false,
        kind: LinkKind::Physical,
        peer: None,
        peer_netns: None,
        alias: None,
        master: None,
    };
    let subnet = Route {
        protocol: Protocol::KERNEL,
        ..Route::on_link(TABLE_MAIN, "10.0.1.0/24".parse().unwrap(), eth1.clone())
    };
    let observed = Observed { links: vec![link], routes: vec![subnet], ..Observed::default() };
    let desired = Desired {
        scope: Scope {
            addresses: BTreeSet::from([eth1.clone()]),
            routes: BTreeSet::from([
                RouteScope::table(2, Family::V4),
                RouteScope::devices(TABLE_MAIN, Family::V4, Devices::Named(eth1.clone())),
            ]),
            rules: BTreeSet::from([RuleScope::priority(Family::V4, 32765)]),
            ..Scope::default()
        },
        links: vec![LinkSettings { dev: eth1.clone(), up: Some(true), mtu: Some(9001) }],
        addresses: vec![Address::new(eth1.clone(), "10.0.1.50/24".parse().unwrap()).without_prefix_route()],
        routes: vec![
            Route::default_via(2, ip("10.0.1.1"), eth1.clone()),
            Route::on_link(2, host_prefix(ip("10.0.1.1")), eth1),
        ],
        rules: vec![Rule::from(32765, host_prefix(ip("10.0.1.50")), 2)],
        ..Desired::default()
    };
    let lines: Vec<String> = plan(&observed, &desired).iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "link set eth1 up mtu 9001 (is down, MTU is 1500)",
            "address add 10.0.1.50/24 dev eth1 (missing)",
            "route replace 10.0.1.1/32 dev eth1 table 2 (missing)",
            "route replace default via 10.0.1.1 dev eth1 table 2 (missing)",
            "rule add 32765: from 10.0.1.50/32 lookup 2 (missing)",
            "route del 10.0.1.0/24 dev eth1 table 254 (ours, and not wanted)",
        ]
    );
}

#[test]
fn a_link_that_is_not_there_is_passed_over() {
    let desired = Desired {
        links: vec![LinkSettings { dev: dev(1), up: Some(true), mtu: None }],
        addresses: vec![Address::new(dev(1), "10.0.1.50/24".parse().unwrap())],
        routes: vec![
            Route::on_link(2, host_prefix(ip("10.0.1.1")), dev(1)),
            Route::blackhole(2, Family::V4.everything()),
        ],
        neighbours: vec![Neighbour::permanent(dev(1), ip("10.0.1.1"), MacAddr([2, 0, 0, 0, 0, 1]))],
        ..Desired::default()
    };
    let lines: Vec<String> = plan(&Observed::default(), &desired).iter().map(ToString::to_string).collect();
    assert_eq!(lines, ["route replace blackhole default table 2 (missing)"]);
}

#[test]
fn an_address_that_shares_a_prefix_with_a_doomed_one_is_saved_first() {
    let (old, new) = ("10.0.1.50/24".parse().unwrap(), "10.0.1.51/24".parse().unwrap());
    let link = Link {
        index: 3,
        name: dev(1),
        mac: None,
        mtu: 9001,
        up: true,
        kind: LinkKind::Physical,
        peer: None,
        peer_netns: None,
        alias: None,
        master: None,
    };
    let observed = Observed { links: vec![link], addresses: vec![Address::new(dev(1), old)], ..Observed::default() };
    let desired = Desired {
        scope: Scope { addresses: BTreeSet::from([dev(1)]), ..Scope::default() },
        addresses: vec![Address::new(dev(1), new)],
        ..Desired::default()
    };
    let lines: Vec<String> = plan(&observed, &desired).iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "sysctl net/ipv4/conf/eth1/promote_secondaries = 1 (so that deleting 10.0.1.50/24 spares 10.0.1.51/24)",
            "address add 10.0.1.51/24 dev eth1 (missing)",
            "address del 10.0.1.50/24 dev eth1 (ours, and not wanted)",
        ]
    );
}

#[test]
fn kinds_of_route_are_told_apart() {
    let mut route = Route::blackhole(2, Family::V4.everything());
    assert_eq!(route.to_string(), "blackhole default table 2");
    route.kind = RouteKind::Unreachable;
    assert!(!route.is_same(&Route::blackhole(2, Family::V4.everything())));
}
