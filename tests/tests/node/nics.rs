//! Pods that have an interface on each network card of their node (VPC CNI's `ENABLE_MULTI_NIC`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_contract::id::PodRef;
use sluice_contract::node::{VETH_PREFIX, host_veth, nic, route_table};
use sluice_hostnet::netns::NamespaceThread;
use sluice_hostnet::watch::{Event, Watch, Watched};
use sluice_tests::bed::{Bed, INTERNET, LIMIT, LOST, ask, ip, scene, scene_with_ipv6, serve};
use sluice_tests::directory::Directory;
use sluice_tests::live::eni;
use sluice_tests::privileged::privileged;
use sluice_vpcsim::deployment::{Binaries, Deployment, GateBinaries, Pod};
use sluice_vpcsim::policyd::Source;
use sluice_vpcsim::probe::{self, ECHO_PORT};
use sluice_vpcsim::world::World;

use crate::containerd::traces;
use crate::packets::{routes, rules};
use crate::upgrade::{self, Load, replace_ipamd};

/// An instance type with two network cards.
pub(super) const TWO_CARDS: &str = "c6in.32xlarge";
/// What ipamd is told. Pools of fifty addresses an ENI would not fit into the subnet.
pub(super) const SETTINGS: [(&str, &str); 2] = [("ENABLE_MULTI_NIC", "true"), ("WARM_IP_TARGET", "3")];
/// What a pod has, in the order of its interfaces.
const INTERFACES: [&str; 2] = ["eth0", "mNicIf1"];

async fn up(scene: &str, more: &[(&str, &str)]) -> Bed {
    let bed = Bed::up(&scene.replace("m5.large", TWO_CARDS), &[&SETTINGS[..], more].concat()).await.unwrap();
    bed.booted().await.unwrap();
    bed
}

/// The annotation by which a pod asks for it.
pub(super) fn wanted() -> BTreeMap<String, String> {
    BTreeMap::from([(nic::ANNOTATION.to_owned(), nic::EVERY_CARD.to_owned())])
}

/// A pod that asks for it. While a card's first ENI is on its way it is refused for now, and a runtime tries again.
async fn on_every_card(node: &Deployment, namespace: &str, name: &str) -> Pod {
    let begun = Instant::now();
    loop {
        match node.add_annotated(namespace, name, wanted()).await {
            Ok(pod) => return pod,
            Err(error) => {
                let again = error.to_string().contains("code 11") && begun.elapsed() < LIMIT;
                assert!(again, "{error}\n{}", node.log_tail(20));
            }
        }
    }
}

/// The addresses of a pod's interfaces, the loopback interface apart.
async fn interfaces(node: &Deployment, pod: &Pod) -> BTreeMap<String, Vec<IpAddr>> {
    let links = ip(node, Some(&pod.sandbox.netns), &["addr", "show"]).await.unwrap();
    let links = links.as_array().unwrap().iter().filter(|link| link["ifname"] != "lo");
    let global = |link: &Value| -> Vec<IpAddr> {
        let all = link["addr_info"].as_array().unwrap().iter().filter(|address| address["scope"] == "global");
        all.map(|address| address["local"].as_str().unwrap().parse().unwrap()).collect()
    };
    links.map(|link| (link["ifname"].as_str().unwrap().to_owned(), global(link))).collect()
}

/// All addresses of a pod on both interfaces.
async fn addresses(node: &Deployment, pod: &Pod) -> Vec<IpAddr> {
    let held = interfaces(node, pod).await;
    assert_eq!(held.keys().collect::<Vec<_>>(), INTERFACES);
    held.into_values().flatten().collect()
}

/// A pod's address in the family of another one.
fn own(pod: &Pod, like: IpAddr) -> IpAddr {
    if like.is_ipv4() { pod.address.into() } else { pod.ipv6.expect("an IPv6 address").into() }
}

async fn inside(node: &Deployment, pod: &Pod) -> Arc<NamespaceThread> {
    node.node().pod(&pod.sandbox.netns).await.unwrap()
}

/// Starts an echo server on each of these addresses of a pod.
async fn serve_at(thread: &NamespaceThread, addresses: &[IpAddr]) {
    for address in addresses {
        let address = (*address, ECHO_PORT);
        thread.run(move || probe::serve_in_background(address)).await.unwrap().unwrap();
    }
}

/// Whom the server at `to` sees when a pod speaks to it from this one of its addresses.
async fn from_to(thread: &NamespaceThread, from: IpAddr, to: IpAddr) -> std::io::Result<IpAddr> {
    thread.run(move || probe::seen_from(from, (to, ECHO_PORT).into(), LOST)).await.unwrap()
}

/// Waits until nothing on a node speaks of these words any more.
async fn forgotten(node: &Deployment, words: &[String]) {
    let begun = Instant::now();
    loop {
        let all = traces(node.node()).await;
        let is_one = |word: &str| words.iter().any(|one| one == word);
        let left: Vec<&str> = all.lines().filter(|line| line.split([' ', '/', '@', ':']).any(is_one)).collect();
        if left.is_empty() {
            return;
        }
        assert!(begun.elapsed() < LIMIT, "{left:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn assigned(node: &Deployment, count: u64) {
    let are = |view: &Value| view["pool"]["assigned"] == count;
    node.pool_until(&format!("there were not {count} addresses in use"), LIMIT, are).await.unwrap();
}

/// SPECIFICATION P-64: reference/vpc-cni.md 4.1 to 4.4 and 4.11, with the addresses that EC2 gave.
#[tokio::test(flavor = "multi_thread")]
async fn p64_a_pod_has_an_address_on_each_network_card_as_by_the_vpc_cni_and_leaves_nothing() {
    if !privileged() {
        return;
    }
    let bed = up(&scene(0.1), &[]).await;
    let node = bed.node("node-a").unwrap();
    let plain = node.add("default", "plain").await.unwrap();
    let pod = on_every_card(node, "default", "sample-pod").await;
    assert_eq!(interfaces(node, &plain).await, BTreeMap::from([("eth0".to_owned(), vec![plain.address.into()])]));
    let both = addresses(node, &pod).await;
    let [first, second] = both[..] else { panic!("one address each: {both:?}") };
    assert_eq!(first, pod.address, "the runtime is told of the first");
    let (place, other_place) = (bed.place_of(first).unwrap(), bed.place_of(second).unwrap());
    assert_eq!((place.0, other_place.0), (0, 1), "network cards");

    let netns = Some(pod.sandbox.netns.as_path());
    assert_eq!(
        rules(node, netns).await,
        [
            "0: from all lookup local".to_owned(),
            format!("1: from {second} lookup 1"),
            "32766: from all lookup main".to_owned(),
            "32767: from all lookup default".to_owned(),
        ]
    );
    for (table, interface, gateway) in [("main", "eth0", "169.254.1.1"), ("1", "mNicIf1", "169.254.1.2")] {
        assert_eq!(
            routes(node, netns, table).await,
            [format!("{gateway} dev {interface} scope link"), format!("default via {gateway} dev {interface}")]
        );
    }

    let of = PodRef { namespace: "default".into(), name: "sample-pod".into(), uid: None };
    let veths = [0, 1].map(|index| host_veth(VETH_PREFIX, &of, index).unwrap().to_string());
    let (host, main) = (rules(node, None).await, routes(node, None, "main").await);
    let about = |address: IpAddr| -> Vec<&str> {
        let word = address.to_string();
        host.iter().filter(|rule| rule.split(' ').any(|part| part == word)).map(String::as_str).collect()
    };
    for (address, (card, device), veth) in [(first, place, &veths[0]), (second, other_place, &veths[1])] {
        let mut expected = vec![format!("512: from all to {address} lookup main")];
        if (card, device) != (0, 0) {
            expected.push(format!("1536: from {address} lookup {}", route_table(card, device).unwrap()));
        }
        assert_eq!(about(address), expected);
        assert!(main.contains(&format!("{address} dev {veth} scope link")), "{main:?}");
    }
    let (eni, eni_address) = bed.eni_of(second).unwrap();
    let (link, table) = (bed.world.link_of(&eni).await.unwrap(), route_table(other_place.0, other_place.1).unwrap());
    assert_eq!(about(eni_address.into()), [format!("32765: from {eni_address} lookup {table}")]);
    assert_eq!(
        routes(node, None, &table.to_string()).await,
        [format!("10.0.1.1 dev {link} scope link"), format!("default via 10.0.1.1 dev {link}")]
    );

    // The runtime names the first interface alone, and means all.
    assigned(node, 3).await;
    let runtime = node.runtime();
    runtime.check(node.node(), &pod.sandbox).await.unwrap();
    runtime.gc(node.node(), &[&plain.sandbox, &pod.sandbox]).await.unwrap();
    assert_eq!(addresses(node, &pod).await, both);
    node.delete(&pod.sandbox).await.unwrap();
    runtime.del_blindly(node.node(), &pod.sandbox).await.unwrap();
    let words = |both: &[IpAddr], veths: &[String; 2]| -> Vec<String> {
        both.iter().map(ToString::to_string).chain(veths.iter().cloned()).collect()
    };
    forgotten(node, &words(&both, &veths)).await;
    assigned(node, 1).await;

    let lost = on_every_card(node, "default", "sample-pod").await;
    let both = addresses(node, &lost).await;
    runtime.gc(node.node(), &[&plain.sandbox]).await.unwrap();
    forgotten(node, &words(&both, &veths)).await;
    assigned(node, 1).await;
}

/// Everybody reaches all addresses of the pod, and it speaks from all of them; each by the ENI that has it.
async fn packets(bed: &Bed) {
    let (here, there) = (bed.node("node-a").unwrap(), bed.node("node-b").unwrap());
    let pod = on_every_card(here, "default", "both").await;
    let near = here.add("default", "near").await.unwrap();
    let far = there.add("default", "far").await.unwrap();
    serve(here, &near).await.unwrap();
    serve(there, &far).await.unwrap();
    let held = addresses(here, &pod).await;
    let thread = inside(here, &pod).await;
    serve_at(&thread, &held).await;
    let router = bed.world.router("main").await.unwrap();
    eni::count(router.net()).await.unwrap();
    for address in &held {
        for (node, other) in [(here, &near), (there, &far)] {
            let theirs = own(other, *address);
            assert_eq!(ask(node, other, *address).await.unwrap(), theirs, "from {theirs} to {address}");
            assert_eq!(from_to(&thread, *address, theirs).await.unwrap(), *address, "from {address} to {theirs}");
        }
    }
    let ways = eni::counted(router.net()).await.unwrap();
    for address in &held {
        let links: BTreeSet<&String> =
            ways.keys().filter(|(_, from, _)| from == address).map(|(link, _, _)| link).collect();
        let (eni, _) = bed.eni_of(*address).unwrap();
        assert_eq!(links, BTreeSet::from([&World::port_of(&eni)]), "{address}");
    }
    // Without an address of its own choice the pod leaves by its first interface. The Internet is reached in the name of the
    // node, whichever it is.
    assert_eq!(ask(here, &pod, far.address).await.unwrap(), pod.address);
    let (_, public) = bed.addresses_of("node-a").unwrap();
    assert_eq!(ask(here, &pod, INTERNET).await.unwrap(), public);
    for address in held.iter().filter(|address| address.is_ipv4()) {
        assert_eq!(from_to(&thread, *address, INTERNET.into()).await.unwrap(), public, "from {address}");
    }
    assert_eq!(bed.world.dropped().await.unwrap(), []);
}

/// SPECIFICATION P-65.
#[tokio::test(flavor = "multi_thread")]
async fn p65_what_a_pod_sends_from_an_address_leaves_by_the_eni_of_that() {
    if !privileged() {
        return;
    }
    packets(&up(&scene(0.1), &[]).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_both_families_has_both_on_each_network_card() {
    if !privileged() {
        return;
    }
    packets(&up(&scene_with_ipv6(0.1), &[("ENABLE_IPv6", "true")]).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ipamd_is_replaced_while_both_interfaces_are_in_use() {
    if !privileged() {
        return;
    }
    let bed = up(&scene(0.1), &[]).await;
    let (here, there) = (bed.node("node-a").unwrap(), bed.node("node-b").unwrap());
    let pod = on_every_card(here, "default", "both").await;
    let near = here.add("default", "near").await.unwrap();
    let far = there.add("default", "far").await.unwrap();
    let held = addresses(here, &pod).await;
    let thread = inside(here, &pod).await;
    let mut load = Load::default();
    for address in &held {
        let to = (*address, upgrade::PORT).into();
        thread.run(move || upgrade::serve(to)).await.unwrap().unwrap();
        for (name, client) in [("near", inside(here, &near).await), ("far", inside(there, &far).await)] {
            load.start(&client, format!("{name} to {address}"), to).await;
        }
    }
    let mut watch = Watch::open(here.node().net(), Watched::ALL).await.unwrap();
    replace_ipamd(here, &load).await;
    load.end().await;
    let events = watch.settle().await;
    let touches = |event: &&Event| {
        let text = format!("{event:?}");
        matches!(event, Event::Lost) || held.iter().any(|address| text.contains(&format!("{address}/32")))
    };
    let touched: Vec<&Event> = events.iter().filter(touches).collect();
    assert!(touched.is_empty(), "nothing of the pod is touched: {touched:?}");
    assert_eq!(bed.world.dropped().await.unwrap(), []);
    // The new one knows them all.
    assigned(here, 3).await;
    here.delete(&pod.sandbox).await.unwrap();
    forgotten(here, &held.iter().map(ToString::to_string).collect::<Vec<_>>()).await;
    assigned(here, 1).await;
}

/// Pods `both` let nobody in but `friend`, and `friend` nobody but them.
const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: both, namespace: x}
spec: {podSelector: {matchLabels: {app: both}}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friend, namespace: x}
spec: {podSelector: {matchLabels: {app: friend}}, ingress: [{from: [{podSelector: {matchLabels: {app: both}}}]}]}
";

/// The cluster as it is told of: a pod's status has the addresses that its runtime reports.
fn tell(directory: &Directory, pods: &BTreeMap<&str, Option<IpAddr>>) {
    let mut items = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}}),
    ];
    items.extend(pods.iter().map(|(name, address)| {
        let ips: Vec<Value> = address.iter().map(|address| json!({"ip": address})).collect();
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "x", "uid": format!("u-{name}"), "labels": {"app": name}},
            "spec": {"nodeName": "node-a", "containers": []}, "status": {"phase": "Running", "podIPs": ips}})
    }));
    directory.write("cluster.json", &json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()).unwrap();
}

/// SPECIFICATION P-66: a gate stands at each interface, by the same policy; on its own node the pod is known by all addresses.
#[tokio::test(flavor = "multi_thread")]
async fn p66_policy_is_in_force_at_all_interfaces_of_a_pod() {
    if !privileged() {
        return;
    }
    let world = World::up(&scene(0.1).replace("m5.large", TWO_CARDS).parse().unwrap()).await.unwrap();
    let directory = Directory::new("nics").unwrap();
    let names = ["both", "friend", "other"];
    tell(&directory, &names.map(|name| (name, None)).into());
    directory.write("policies.yaml", POLICIES).unwrap();
    let (binaries, gate) = (Binaries::beside_this_program().unwrap(), GateBinaries::beside_this_program().unwrap());
    let environment = SETTINGS.map(|(variable, value)| (variable.to_owned(), value.to_owned())).into();
    let source = Source::Directory(directory.path().to_owned());
    let node = Arc::clone(world.node("node-a").unwrap());
    let node = Deployment::install_gated(node, &binaries, &gate, environment, source).await.unwrap();
    let policyd = node.policyd().unwrap();
    node.start_ipamd().await.unwrap();
    policyd.start().await.unwrap();
    node.ready(LIMIT).await.unwrap();
    policyd.ready(LIMIT).await.unwrap();

    let pod = on_every_card(&node, "x", "both").await;
    let friend = node.add("x", "friend").await.unwrap();
    let other = node.add("x", "other").await.unwrap();
    let gates = |view: &Value| {
        let of_pod = |gate: &&Value| gate["name"] == "both" && !gate["revision"].is_null();
        view["endpoints"].as_array().is_some_and(|all| all.iter().filter(of_pod).count() == INTERFACES.len())
    };
    policyd.until("there was not a gate at each interface", LIMIT, gates).await.unwrap();
    let held = addresses(&node, &pod).await;
    let thread = inside(&node, &pod).await;
    serve_at(&thread, &held).await;
    serve(&node, &friend).await.unwrap();
    let in_force = async || {
        for address in &held {
            assert_eq!(ask(&node, &friend, *address).await.unwrap(), friend.address, "to {address}");
            assert!(ask(&node, &other, *address).await.is_err(), "to {address}");
            // It is known by each.
            let seen = from_to(&thread, *address, friend.address.into()).await;
            assert_eq!(seen.unwrap_or_else(|error| panic!("from {address}: {error}")), *address);
        }
        assert!(ask(&node, &other, friend.address).await.is_err());
    };
    in_force().await;
    // The cluster learns of the first address alone, and the agent starts anew with that.
    let told = [("both", &pod), ("friend", &friend), ("other", &other)];
    tell(&directory, &told.map(|(name, pod)| (name, Some(pod.address.into()))).into());
    policyd.kill().await;
    in_force().await;
    policyd.start().await.unwrap();
    policyd.ready(LIMIT).await.unwrap();
    policyd.until("there was not a gate at each interface", LIMIT, gates).await.unwrap();
    in_force().await;

    directory.write("policies.yaml", "").unwrap();
    let none = |view: &Value| view["policies"].as_array().is_some_and(Vec::is_empty);
    policyd.until("policies are still in force", LIMIT, none).await.unwrap();
    for address in &held {
        assert_eq!(ask(&node, &other, *address).await.unwrap(), other.address);
    }
    node.delete(&pod.sandbox).await.unwrap();
    policyd.without("x", "both", LIMIT).await.unwrap();
    forgotten(&node, &held.iter().map(ToString::to_string).collect::<Vec<_>>()).await;
}
