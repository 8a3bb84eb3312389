//! Against the real kernel, in namespaces made for it (root), read back through `ip` and `nft`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;
use sluice_contract::id::{IfName, MacAddr};

use super::*;
use crate::desired::{Devices, LinkSettings, RouteScope, RuleScope, Scope};
use crate::netlink::VethSpec;
use crate::plan::{Op, Planned};
use crate::state::{
    Address, Family, LinkKind, Mark, Neighbour, NftFamily, NftTableId, Route, RtScope, Rule, Sysctl, SysctlKey,
    TABLE_MAIN, host_prefix,
};

const ENI_MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 1, 1]);

fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

fn command(program: &str, arguments: &str, namespace: &Namespace) -> String {
    let output = namespace
        .run(|| std::process::Command::new(program).args(arguments.split_whitespace()).output())
        .unwrap()
        .unwrap_or_else(|error| panic!("{program} is needed (apt-get install iproute2 nftables): {error}"));
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn ip_json(arguments: &str, namespace: &Namespace) -> Value {
    let text = command("ip", &format!("-j {arguments}"), namespace);
    if text.trim().is_empty() { Value::Array(Vec::new()) } else { serde_json::from_str(&text).unwrap() }
}

/// One field of each object in a list. `ip` leaves an empty object where its filter took one away.
fn column(list: &Value, field: &str) -> Vec<String> {
    let objects = list.as_array().unwrap().iter().filter(|object| !object[field].is_null());
    objects.map(|object| object[field].to_string().replace('"', "")).collect()
}

/// A node with an ENI `eth1` (down), and the VPC behind it.
async fn node() -> (Host, Host) {
    let host = Host::of(Namespace::new_unbound().unwrap()).unwrap();
    let vpc = Host::of(Namespace::new_unbound().unwrap()).unwrap();
    let spec = VethSpec {
        name: &name("eth1"),
        mac: Some(ENI_MAC),
        up: false,
        peer_name: &name("eni1"),
        peer_mac: None,
        peer_namespace: Some(vpc.namespace()),
        mtu: 1500,
    };
    let link = host.netlink().create_veth(&spec).await.unwrap();
    vpc.netlink().set_link(link.peer.unwrap(), Some(true), None).await.unwrap();
    (host, vpc)
}

/// The set-up of a secondary ENI, with one pod on it, in both families.
fn eni() -> Desired {
    let eth1 = name("eth1");
    let setting = |setting: &str| SysctlKey::of_interface(Family::V4, &name("eth1"), setting).unwrap();
    Desired {
        scope: Scope {
            addresses: BTreeSet::from([eth1.clone()]),
            routes: BTreeSet::from([
                RouteScope::table(2, Family::V4),
                RouteScope::table(2, Family::V6),
                RouteScope::devices(TABLE_MAIN, Family::V4, Devices::Named(eth1.clone())),
            ]),
            rules: BTreeSet::from([
                RuleScope::priority(Family::V4, 1536),
                RuleScope::priority(Family::V6, 1536),
                RuleScope::priority(Family::V4, 1024),
            ]),
            neighbours: BTreeSet::from([eth1.clone()]),
            nft: BTreeSet::new(),
        },
        links: vec![LinkSettings { dev: eth1.clone(), up: Some(true), mtu: Some(9001) }],
        addresses: vec![
            Address::new(eth1.clone(), net("10.0.1.50/24")).without_prefix_route(),
            Address::new(eth1.clone(), net("2001:db8::50/64")),
        ],
        routes: vec![
            Route::default_via(2, ip("10.0.1.1"), eth1.clone()),
            Route::on_link(2, host_prefix(ip("10.0.1.1")), eth1.clone()),
            Route::default_via(2, ip("fe80::1"), eth1.clone()),
            Route::on_link(2, host_prefix(ip("fe80::1")), eth1.clone()),
            Route {
                mtu: Some(1400),
                ..Route::via(2, net("10.9.0.0/16"), ip("10.0.1.7"), eth1.clone()).with_onlink().with_metric(9)
            },
            Route::blackhole(2, net("10.99.0.0/16")),
            Route::unreachable(2, net("2001:db8:99::/48")),
        ],
        rules: vec![
            Rule::from(1536, host_prefix(ip("10.0.1.60")), 2),
            Rule::from(1536, host_prefix(ip("2001:db8::60")), 2),
            Rule::mark(Family::V4, 1024, Mark { value: 0x80, mask: 0x80 }, TABLE_MAIN),
        ],
        neighbours: vec![
            Neighbour::permanent(eth1.clone(), ip("10.0.1.1"), MacAddr([2, 0, 0, 0, 9, 9])),
            Neighbour::permanent(eth1.clone(), ip("fe80::1"), MacAddr([2, 0, 0, 0, 9, 9])),
            Neighbour::proxy(eth1, ip("10.0.1.77")),
        ],
        sysctls: vec![Sysctl::new(setting("rp_filter"), 2)],
        ..Desired::default()
    }
}

#[tokio::test]
async fn a_plan_is_carried_out_and_then_there_is_nothing_to_do() {
    let (host, _vpc) = node().await;
    command("ip", "rule add prio 100 from 192.0.2.1 lookup 7", host.namespace());
    command("ip", "rule add prio 1024 not from 192.0.2.1 lookup 7", host.namespace());
    let desired = eni();
    let executed = host.reconcile(&desired).await.unwrap();
    assert_eq!(executed.unchanged, 0);

    let space = host.namespace();
    let link = &ip_json("link show eth1", space)[0];
    assert_eq!(link["mtu"], 9001);
    assert_eq!(link["address"], ENI_MAC.to_string());
    assert!(link["flags"].to_string().contains("\"UP\""), "{link}");
    let addresses = ip_json("address show dev eth1 scope global", space);
    assert_eq!(column(&addresses[0]["addr_info"], "local"), ["10.0.1.50", "2001:db8::50"]);
    assert!(!addresses.to_string().contains("tentative"), "{addresses}");
    let routes = ip_json("route show table 2", space);
    assert_eq!(column(&routes, "dst"), ["default", "10.0.1.1", "10.9.0.0/16", "10.99.0.0/16"]);
    assert_eq!(routes[2]["flags"][0], "onlink");
    assert_eq!(routes[2]["metrics"][0]["mtu"], 1400);
    assert_eq!(routes[3]["type"], "blackhole");
    assert_eq!(ip_json("route show table main", space), Value::Array(vec![]), "no route to the prefix");
    let rules = ip_json("rule show", space);
    assert_eq!(column(&rules, "priority"), ["0", "100", "1024", "1024", "1536", "32766", "32767"]);
    let neighbours = ip_json("neighbour show dev eth1 nud permanent", space);
    assert_eq!(neighbours.as_array().unwrap().len(), 2);
    assert_eq!(ip_json("neighbour show proxy", space)[0]["dst"], "10.0.1.77");

    // Nothing to do, and nothing done: not a single message of change.
    assert_eq!(host.reconcile(&desired).await.unwrap(), Executed::default());

    // Drift is mended, and only that.
    command("ip", "rule del prio 1536 from 10.0.1.60", space);
    command("ip", "route replace default via 10.0.1.2 dev eth1 onlink table 2", space);
    command("ip", "route add 10.0.1.0/24 dev eth1", space);
    command("ip", "address add 10.0.1.99/24 dev eth1 noprefixroute", space);
    let executed = host.reconcile(&desired).await.unwrap();
    let done: Vec<String> = executed.changed.iter().map(|planned| planned.op.to_string()).collect();
    assert_eq!(
        done,
        [
            "route replace default via 10.0.1.1 dev eth1 table 2",
            "rule add 1536: from 10.0.1.60/32 lookup 2",
            "route del 10.0.1.0/24 dev eth1 table 254",
            "address del 10.0.1.99/24 dev eth1",
        ]
    );
    assert_eq!(host.reconcile(&desired).await.unwrap(), Executed::default());

    // Everything of ours goes; what is not ours, or says more than we can, stays.
    let nothing = Desired { scope: desired.scope.clone(), ..Desired::default() };
    host.reconcile(&nothing).await.unwrap();
    assert_eq!(column(&ip_json("rule show", space), "priority"), ["0", "100", "1024", "32766", "32767"]);
    assert_eq!(ip_json("-6 rule show", space).as_array().unwrap().len(), 2);
    let seen = host.observe(&desired.view()).await.unwrap();
    assert_eq!(plan(&seen, &nothing), vec![]);
    assert!(seen.routes.iter().all(|route| route.table != 2), "{:?}", seen.routes);
    assert!(seen.neighbours.is_empty(), "{:?}", seen.neighbours);
}

#[tokio::test]
async fn deleting_a_first_address_spares_its_siblings_and_the_routes() {
    let (host, _vpc) = node().await;
    let mut desired = eni();
    host.reconcile(&desired).await.unwrap();
    desired.addresses[0] = Address::new(name("eth1"), net("10.0.1.51/24")).without_prefix_route();
    host.reconcile(&desired).await.unwrap();
    assert_eq!(host.reconcile(&desired).await.unwrap(), Executed::default());
    let addresses = ip_json("-4 address show dev eth1", host.namespace());
    assert_eq!(column(&addresses[0]["addr_info"], "local"), ["10.0.1.51"]);
}

#[tokio::test]
async fn a_failure_takes_back_what_was_done_and_keeps_the_kernels_words() {
    let (host, _vpc) = node().await;
    let mut first = eni();
    first.routes.truncate(2);
    host.reconcile(&first).await.unwrap();
    let view = eni().view();
    let before = host.observe(&view).await.unwrap();

    let mut desired = eni();
    desired.sysctls[0].value = "1".into();
    desired.links[0].mtu = Some(8000);
    desired.routes[0] = Route::default_via(2, ip("10.0.1.9"), name("eth1")).with_onlink();
    // The kernel has no way to this next hop.
    desired.routes.push(Route::via(2, net("10.55.0.0/16"), ip("192.0.2.1"), name("eth1")));
    let seen = host.observe(&desired.view()).await.unwrap();
    let mut steps = plan(&seen, &desired);
    // A delete that comes before the failure is taken back too.
    let gone = before.rules.iter().find(|rule| rule.priority == 1536).unwrap().clone();
    steps.insert(0, Planned::new(Op::DeleteRule(gone), "for the test"));
    let error = host.execute(&steps).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot do: route replace 10.55.0.0/16 via 192.0.2.1 dev eth1 table 2 (missing)");
    assert!(error.not_undone.is_empty(), "{:?}", error.not_undone);
    assert!(error.undone > 5, "{}", error.undone);
    let OpError::Netlink(refused) = &error.source else { panic!("{error:?}") };
    assert_eq!(refused.errno(), Some(Errno::ENETUNREACH));
    assert_eq!(refused.to_string(), "the kernel says: Nexthop has invalid gateway");

    let mut after = host.observe(&view).await.unwrap();
    let mut before = before;
    for picture in [&mut before, &mut after] {
        // The kernel adds its own link-local address when it sees fit.
        picture.addresses.retain(|address| address.scope == RtScope::Global);
        picture.addresses.sort();
        picture.routes.sort();
        picture.neighbours.sort();
        picture.rules.sort();
    }
    assert_eq!(after, before);
}

#[tokio::test]
async fn ops_can_be_done_twice_and_links_may_be_gone() {
    let (host, _vpc) = node().await;
    let desired = eni();
    let seen = host.observe(&desired.view()).await.unwrap();
    let steps = plan(&seen, &desired);
    assert_eq!(host.execute(&steps).await.unwrap().unchanged, 0);
    host.execute(&steps).await.unwrap();
    assert_eq!(host.reconcile(&desired).await.unwrap(), Executed::default());

    let deletes: Vec<Planned> = steps
        .iter()
        .filter_map(|planned| planned.op.inverse())
        .filter(Op::is_delete)
        .rev()
        .map(|op| Planned::new(op, "test"))
        .collect();
    assert!(host.execute(&deletes).await.unwrap().unchanged < deletes.len());
    let again = host.execute(&deletes).await.unwrap();
    assert_eq!((again.changed.len(), again.unchanged), (0, deletes.len()), "{:?}", again.changed);

    let index = host.netlink().link_by_name(&name("eth1")).await.unwrap().unwrap().index;
    host.netlink().delete_link(index).await.unwrap();
    host.netlink().delete_link(index).await.unwrap();
    assert_eq!(host.execute(&deletes).await.unwrap().unchanged, deletes.len());
    let error = host.execute(&steps).await.unwrap_err();
    assert!(matches!(&error.source, OpError::Sysctl(_) | OpError::NoLink(_)), "{error:?}");
}

#[tokio::test]
async fn a_veth_pair_is_made_in_place_and_deleted_only_when_it_is_the_one() {
    let (host, vpc) = node().await;
    let eth1 = name("eth1");
    let link = host.netlink().link_by_name(&eth1).await.unwrap().unwrap();
    assert_eq!((link.kind.clone(), link.mac, link.mtu, link.up), (LinkKind::Veth, Some(ENI_MAC), 1500, false));
    let far = vpc.netlink().link_by_index(link.peer.unwrap()).await.unwrap().unwrap();
    assert_eq!((far.name.as_str(), far.up, far.mtu), ("eni1", true, 1500));
    assert_eq!(far.peer, Some(link.index));
    assert_eq!(host.observe(&View::default()).await.unwrap().link_by_mac(ENI_MAC).unwrap().name, eth1);

    let taken = VethSpec {
        name: &eth1,
        mac: None,
        up: true,
        peer_name: &name("other"),
        peer_mac: None,
        peer_namespace: None,
        mtu: 1500,
    };
    let error = host.netlink().create_veth(&taken).await.unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EEXIST), "{error:?}");
    assert_eq!(host.netlink().link_by_name(&name("other")).await.unwrap(), None);

    host.netlink().set_alias(link.index, "sluice container-1").await.unwrap();
    assert_eq!(ip_json("link show eth1", host.namespace())[0]["ifalias"], "sluice container-1");
    let is = |alias: &'static str| move |link: &crate::state::Link| link.alias.as_deref() == Some(alias);
    assert!(!host.netlink().delete_link_if(&eth1, is("sluice container-2")).await.unwrap());
    assert!(host.netlink().delete_link_if(&eth1, is("sluice container-1")).await.unwrap());
    assert!(!host.netlink().delete_link_if(&eth1, is("sluice container-1")).await.unwrap());
    assert_eq!(vpc.netlink().link_by_name(&name("eni1")).await.unwrap(), None);
}

#[tokio::test]
async fn many_links_are_found_at_once_and_the_missing_left_out() {
    let (host, _vpc) = node().await;
    let mut names = Vec::new();
    for n in 0..30 {
        let (near, far) = (name(&format!("near{n}")), name(&format!("far{n}")));
        let spec = VethSpec {
            name: &near,
            mac: None,
            up: false,
            peer_name: &far,
            peer_mac: None,
            peer_namespace: None,
            mtu: 1500,
        };
        host.netlink().create_veth(&spec).await.unwrap();
        names.extend([near, name(&format!("no{n}")), far]);
    }
    let found = host.netlink().links_by_name(&names).await.unwrap();
    assert_eq!(found.len(), 60);
    let all = host.netlink().links().await.unwrap();
    assert_eq!(all.len(), 62);
    assert!(found.iter().all(|link| all.contains(link)));
}

/// Daemons run these on any thread.
#[tokio::test]
async fn the_futures_can_be_spawned() {
    fn spawnable<T: Send>(_: &T) {}
    let host = Host::of(Namespace::new_unbound().unwrap()).unwrap();
    let (desired, view) = (Desired::default(), View::default());
    spawnable(&host.observe(&view));
    spawnable(&host.reconcile(&desired));
    spawnable(&host.execute(&[]));
    spawnable(&host.wait_for_link(ENI_MAC, std::time::Duration::ZERO));
    spawnable(&host.ruleset(NftTableId::new(NftFamily::Ip, "t"), ""));
}

#[tokio::test]
async fn a_link_moves_and_takes_another_name() {
    let (host, vpc) = node().await;
    let link = vpc.netlink().link_by_name(&name("eni1")).await.unwrap().unwrap();
    vpc.netlink().move_link(link.index, host.namespace()).await.unwrap();
    let moved = host.netlink().link_by_name(&name("eni1")).await.unwrap().unwrap();
    host.netlink().rename_link(moved.index, &name("eth7")).await.unwrap();
    host.netlink().set_link(moved.index, Some(true), Some(1400)).await.unwrap();
    let link = &ip_json("link show eth7", host.namespace())[0];
    assert_eq!((link["mtu"].as_u64(), link["flags"].to_string().contains("UP")), (Some(1400), true));
}

#[tokio::test]
async fn a_table_of_nftables_is_compared_by_content() {
    let (host, _vpc) = node().await;
    let id = NftTableId::new(NftFamily::Ip, "sluice");
    let body = "set vpc { type ipv4_addr; flags interval; elements = { 10.0.0.0/16, 10.1.0.0/16 } }
        chain post { type nat hook postrouting priority 100; policy accept;
          ip daddr @vpc return
          oifname \"eth0\" fib daddr type != local counter snat to 10.0.1.10 fully-random
        }";
    let desired = Desired { nft: vec![host.ruleset(id.clone(), body).await.unwrap()], ..Desired::default() };
    let executed = host.reconcile(&desired).await.unwrap();
    assert_eq!(executed.changed.len(), 1);
    let listed = command("nft", "list ruleset", host.namespace());
    assert!(listed.contains("snat to 10.0.1.10 fully-random"), "{listed}");
    assert_eq!(host.reconcile(&desired).await.unwrap(), Executed::default());

    // Somebody meddles.
    command("nft", "flush chain ip sluice post", host.namespace());
    assert_eq!(host.reconcile(&desired).await.unwrap().changed[0].reason, "differs");
    assert_eq!(host.reconcile(&desired).await.unwrap(), Executed::default());

    // A failure later in the plan puts the table back as it was.
    let other = host.ruleset(id.clone(), "chain other { }\n").await.unwrap();
    let set = Planned::new(Op::SetNft { ruleset: other, before: None }, "test");
    let fails = Planned::new(Op::AddAddress(Address::new(name("nolink"), net("10.0.0.1/32"))), "test");
    let error = host.execute(&[set, fails]).await.unwrap_err();
    assert!(matches!(&error.source, OpError::NoLink(dev) if dev.as_str() == "nolink"), "{error:?}");
    assert_eq!(host.reconcile(&desired).await.unwrap(), Executed::default());

    let gone = Desired { scope: Scope { nft: BTreeSet::from([id.clone()]), ..Scope::default() }, ..Desired::default() };
    host.reconcile(&gone).await.unwrap();
    assert_eq!(command("nft", "list ruleset", host.namespace()), "");

    let error = host.ruleset(id, "chain x { nonsense }\n").await.unwrap_err();
    assert!(matches!(&error, NftError::Refused { message, .. } if message.contains("nonsense")), "{error:?}");
}

#[test]
fn a_missing_nft_is_named() {
    use nix::mount::{MsFlags, mount};

    let bare = NamespaceThread::spawn(ThreadSpec::new_node("bare", "bare")).unwrap();
    let error = bare.run_blocking(|| async {
        for dir in ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"] {
            // Seen by this thread and its children only.
            mount(Some("none"), dir, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        }
        Host::current().unwrap().ruleset(NftTableId::new(NftFamily::Ip, "t"), "").await.unwrap_err().to_string()
    });
    assert_eq!(error.unwrap(), "the program nft is not there: install nftables");
}

#[tokio::test]
async fn tables_that_change_are_still_read_whole() {
    let (host, _vpc) = node().await;
    host.reconcile(&eni()).await.unwrap();
    let route = |n: u32| {
        let address = std::net::Ipv4Addr::from(u32::from_be_bytes([10, 200, 0, 0]) + n);
        Route::on_link(9, host_prefix(address.into()), name("eth1"))
    };
    let set = move |n: u32| Planned::new(Op::SetRoute { route: route(n), before: None }, "test");
    let all: Vec<Planned> = (0..3000).map(set).collect();
    host.execute(&all).await.unwrap();
    let other = Host::of(host.namespace().clone()).unwrap();
    let churn = tokio::spawn(async move {
        for round in 0u32.. {
            let (one, two) = (set(3000 + round % 7), Planned::new(Op::DeleteRoute(route(3000 + round % 7)), "test"));
            other.execute(&[one, two]).await.unwrap();
        }
    });
    let view = View { routes: BTreeSet::from([(Family::V4, 9)]), ..View::default() };
    for _ in 0..10 {
        let (one, two) = tokio::join!(host.observe(&view), host.observe(&view));
        for seen in [one.unwrap(), two.unwrap()] {
            assert!((3000..=3001).contains(&seen.routes.len()), "{}", seen.routes.len());
        }
    }
    churn.abort();
}

/// Random desires one after the other: the kernel ends up where the pure model says, and then there is nothing to do.
#[tokio::test(flavor = "current_thread")]
async fn whatever_is_desired_is_reached_and_stays() {
    use proptest::sample::subsequence;
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::test_runner::TestRunner;

    let (host, _vpc) = node().await;
    // Without any address there is no local table, and no next hop is valid.
    command("ip", "link set lo up", host.namespace());
    let all = eni();
    let mut routes = all.routes.clone();
    routes.extend([
        Route::default_via(2, ip("10.0.1.3"), name("eth1")).with_onlink(),
        Route::on_link(2, net("10.9.0.0/16"), name("eth1")).with_metric(9),
        Route::on_link(TABLE_MAIN, host_prefix(ip("10.0.1.88")), name("eth1")),
        Route::unreachable(2, net("10.99.0.0/16")),
        Route { mtu: Some(1300), ..Route::via(2, net("2001:db8:7::/48"), ip("fe80::7"), name("eth1")) },
        Route::via(2, net("2001:db8:7::/48"), ip("fe80::8"), name("eth1")).with_metric(7),
    ]);
    let mut rules = all.rules.clone();
    rules.extend([
        Rule::from(1536, host_prefix(ip("10.0.1.61")), 70_000),
        Rule::to(1536, net("10.0.0.0/8"), 2),
        Rule::iif(Family::V6, 1536, name("eth1"), 2),
    ]);
    // One stays: with a link's last IPv4 address the kernel drops its routes.
    let (stays, mut addresses) = (all.addresses[0].clone(), all.addresses[1..].to_vec());
    addresses.extend([
        Address::new(name("eth1"), net("10.0.1.51/24")).without_prefix_route(),
        Address::new(name("eth1"), net("10.0.2.50/24")),
        Address::new(name("eth1"), net("2001:db8::51/128")),
    ]);
    let pick = (
        subsequence(routes.clone(), 0..=routes.len()),
        subsequence(rules.clone(), 0..=rules.len()),
        subsequence(addresses.clone(), 0..=addresses.len()),
        subsequence(all.neighbours.clone(), 0..=3),
        1400u32..9001,
    );
    let mut runner = TestRunner::deterministic();
    let mut before = String::from("nothing");
    for _ in 0..60 {
        let (mut routes, rules, addresses, neighbours, mtu) = pick.new_tree(&mut runner).unwrap().current();
        // One route a key, and no next hop without a way to it.
        let mut keys = BTreeSet::new();
        routes.retain(|route| keys.insert(route.key()));
        for gateway in ["10.0.1.1", "fe80::1", "fe80::7", "fe80::8"] {
            let way = Route::on_link(2, host_prefix(ip(gateway)), name("eth1"));
            let needed = routes.iter().any(|route| route.gateway == Some(ip(gateway)));
            if needed && !routes.contains(&way) {
                routes.push(way);
            }
        }
        let mut desired = Desired { routes, rules, addresses, neighbours, ..all.clone() };
        desired.links[0].mtu = Some(mtu);
        desired.addresses.push(stays.clone());
        let seen = host.observe(&desired.view()).await.unwrap();
        let steps = plan(&seen, &desired);
        let now = format!("{desired:#?}");
        if let Err(error) = host.execute(&steps).await {
            panic!("{error}: {:?}\nfrom {before}\nto {now}\nby {steps:#?}", error.source);
        }
        let again = host.reconcile(&desired).await.unwrap();
        let lines: Vec<String> = again.changed.iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "{lines:#?}\nfrom {before}\nto {now}");
        before = now;
    }
}
