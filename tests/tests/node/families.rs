//! Pods of IPv6, and of both families: real packets between pods of two nodes.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use serde_json::Value;
use sluice_contract::node::egress::egress_of;
use sluice_tests::bed::{self, Bed, INTERNET, LIMIT, LOST, add_pods, ask, ip, run, scene_with_ipv6, serve};
use sluice_tests::privileged::privileged;
use sluice_vpcsim::deployment::{Deployment, Pod};
use sluice_vpcsim::probe::{self, ECHO_PORT};
use tokio::net::TcpStream;

const V6: &[(&str, &str)] = &[("ENABLE_IPv4", "false"), ("ENABLE_IPv6", "true")];
const DUAL: &[(&str, &str)] = &[("ENABLE_IPv6", "true")];
/// The host on the Internet by IPv6.
const INTERNET_V6: &str = "2001:db8:51::10";

fn v6(pod: &Pod) -> IpAddr {
    pod.ipv6.expect("an IPv6 address").into()
}

/// `PRIORITY SELECTOR TABLE` of the rules of one family that pods have.
async fn pod_rules(node: &Deployment, family: &str) -> Vec<String> {
    let rules = ip(node, None, &[family, "rule", "show"]).await.unwrap();
    let word = |rule: &Value, key: &str| rule[key].as_str().unwrap_or("all").to_owned();
    let all = rules.as_array().unwrap().iter();
    let pods = all.filter(|rule| [512, 1536].contains(&rule["priority"].as_u64().unwrap()));
    pods.map(|rule| format!("{} {}>{} {}", rule["priority"], word(rule, "src"), word(rule, "dst"), word(rule, "table")))
        .collect()
}

async fn routes(node: &Deployment, pod: &Pod) -> Vec<String> {
    let inside = Some(pod.sandbox.netns.as_path());
    let routes = ip(node, inside, &["-6", "route", "show", "table", "main"]).await.unwrap();
    let all = routes.as_array().unwrap().iter();
    // The kernel's own: the pod's address, and the link-local prefix.
    let ours = all.filter(|route| route["protocol"] != "kernel");
    let mut lines: Vec<String> =
        ours.map(|route| format!("{} via {} dev {}", route["dst"], route["gateway"], route["dev"])).collect();
    lines.sort();
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_ipv6_alone_reach_each_other_and_their_node_reaches_them() {
    if !privileged() {
        return;
    }
    let bed = Bed::up(&scene_with_ipv6(0.1), V6).await.unwrap();
    bed.booted().await.unwrap();
    let mut pods = Vec::new();
    for name in ["node-a", "node-b"] {
        let node = bed.node(name).unwrap();
        for pod in add_pods(node, "default", "p", 2).await.unwrap() {
            assert!(pod.address.is_unspecified(), "{}", pod.result);
            assert_eq!(bed.device_of(v6(&pod)), Some(0));
            // Usable at once: nobody waits for the detection of duplicates.
            let inside = Some(pod.sandbox.netns.as_path());
            let link = ip(node, inside, &["-6", "addr", "show", "dev", "eth0", "scope", "global"]).await.unwrap();
            let address = &link[0]["addr_info"][0];
            assert_eq!((&address["local"], &address["prefixlen"]), (&v6(&pod).to_string().into(), &128.into()));
            assert!(address["tentative"].is_null() && address["dadfailed"].is_null(), "{address}");
            assert_eq!(
                routes(node, &pod).await,
                ["\"default\" via \"fe80::1\" dev \"eth0\"", "\"fe80::1\" via null dev \"eth0\""]
            );
            serve(node, &pod).await.unwrap();
            // As the kubelet's probes do.
            let target = SocketAddr::new(v6(&pod), ECHO_PORT);
            node.node().run_async(move || probe::seen_by(target, LOST)).await.unwrap().unwrap();
            pods.push((name, pod));
        }
    }
    for (name, from) in &pods {
        let node = bed.node(name).unwrap();
        for (_, to) in pods.iter().filter(|(_, to)| to.ipv6 != from.ipv6) {
            assert_eq!(ask(node, from, v6(to)).await.unwrap(), v6(from), "from {} to {}", v6(from), v6(to));
        }
    }
    assert_eq!(bed.world.dropped().await.unwrap(), []);
    // Who scrapes comes by IPv6 too.
    let scraped = bed.world.instance("node-a").unwrap();
    let own = bed.world.look(|model, _| model.state().attached(scraped)[0].ipv6.first().copied().unwrap());
    let metrics = SocketAddr::new(own.into(), 61678);
    let other = bed.node("node-b").unwrap();
    other.node().run_async(move || TcpStream::connect(metrics)).await.unwrap().unwrap();
    let calls = bed.calls();
    assert_eq!(
        (calls.get("AssignIpv6Addresses"), calls.get("AssignPrivateIpAddresses")),
        (Some(&2), None),
        "{calls:?}"
    );
    assert_eq!(calls.get("CreateNetworkInterface"), None);

    let node = bed.node("node-a").unwrap();
    let [first, second] = [v6(&pods[0].1), v6(&pods[1].1)];
    let mut rules = pod_rules(node, "-6").await;
    rules.sort();
    let mut expected = [first, second].map(|ip| format!("512 all>{ip} main"));
    expected.sort();
    assert_eq!(rules, expected);
    node.delete(&pods[0].1.sandbox).await.unwrap();
    assert_eq!(pod_rules(node, "-6").await, [format!("512 all>{second} main")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_both_families_use_the_same_eni_in_both_and_a_missing_rule_breaks_the_one() {
    if !privileged() {
        return;
    }
    let bed = Bed::up(&scene_with_ipv6(0.1), DUAL).await.unwrap();
    bed.booted().await.unwrap();
    let mut cast = Vec::new();
    for name in ["node-a", "node-b"] {
        let node = bed.node(name).unwrap();
        let pods = add_pods(node, "default", "p", 10).await.unwrap();
        for pod in &pods {
            assert_eq!(bed.device_of(pod.address), bed.device_of(v6(pod)), "{}", pod.result);
        }
        let (primary, secondary): (Vec<_>, Vec<_>) =
            pods.into_iter().partition(|pod| bed.device_of(pod.address) == Some(0));
        // One of each kind of ENI on each node.
        cast.extend([primary, secondary].map(|mut pods| (name, pods.remove(0))));
    }
    for (name, pod) in &cast {
        serve(bed.node(name).unwrap(), pod).await.unwrap();
    }
    for (name, from) in &cast {
        let node = bed.node(name).unwrap();
        for (_, to) in cast.iter().filter(|(_, to)| to.address != from.address) {
            assert_eq!(ask(node, from, to.address).await.unwrap(), from.address);
            assert_eq!(ask(node, from, v6(to)).await.unwrap(), v6(from), "from {} to {}", v6(from), v6(to));
        }
    }
    assert_eq!(bed.world.dropped().await.unwrap(), []);

    let [_, (name, victim), (_, other), _] = cast.as_slice() else { panic!("four pods") };
    let node = bed.node(name).unwrap();
    let device = bed.device_of(victim.address).unwrap();
    for (family, address) in [("-4", victim.address.into()), ("-6", v6(victim))] {
        let rule = format!("1536 {address}>all {}", device + 1);
        assert!(pod_rules(node, family).await.contains(&rule), "{rule}");
    }
    // It would mend it.
    node.kill_ipamd().await;
    run(node, &["ip", "-6", "rule", "del", "priority", "1536", "from", &v6(victim).to_string()]).await.unwrap();
    let error = ask(node, victim, v6(other)).await.unwrap_err();
    assert!(matches!(error, bed::BedError::Unreachable { .. }), "{error}");
    assert_eq!(ask(node, victim, other.address).await.unwrap(), victim.address, "IPv4 goes on");
    let dropped = bed.world.dropped().await.unwrap();
    assert!(
        dropped.iter().any(|drop| drop.source == v6(victim) && drop.destination == v6(other)),
        "the fabric drops what comes from the wrong ENI: {dropped:?}"
    );
    // CHECK of the chain sees it, the next daemon puts it back, and DEL takes both away.
    assert!(node.runtime().check(node.node(), &victim.sandbox).await.is_err());
    node.start_ipamd().await.unwrap();
    node.ready(LIMIT).await.unwrap();
    let begun = Instant::now();
    while ask(node, victim, v6(other)).await.is_err() {
        assert!(begun.elapsed() < LIMIT, "{}", node.log_tail(20));
    }
    node.delete(&victim.sandbox).await.unwrap();
    for (family, address) in [("-4", IpAddr::from(victim.address)), ("-6", v6(victim))] {
        let left = pod_rules(node, family).await;
        let address = address.to_string();
        // Whole words: another pod's address may begin as this one.
        let names = |rule: &String| rule.split([' ', '>']).any(|word| word == address);
        assert!(!left.iter().any(names), "{left:?}");
    }
}

/// A VPC whose nodes reach the Internet in both families.
fn scene_with_internet() -> String {
    scene_with_ipv6(0.1)
        .replace("0.0.0.0/0: internet-gateway", "0.0.0.0/0: internet-gateway, \"::/0\": internet-gateway")
        .replace("[198.51.100.10]", &format!("[198.51.100.10, \"{INTERNET_V6}\"]"))
}

/// The address that a pod has for egress alone, by its host's route.
async fn egress_route(node: &Deployment, of: IpAddr) -> Vec<Value> {
    let family = if of.is_ipv6() { "-6" } else { "-4" };
    ip(node, None, &[family, "route", "show", &of.to_string()]).await.unwrap().as_array().unwrap().clone()
}

/// Issue F: the other family of the Internet, by the node's address.
#[tokio::test(flavor = "multi_thread")]
async fn pods_of_one_family_leave_in_the_other_as_their_node_and_nobody_reaches_them_there() {
    if !privileged() {
        return;
    }
    let v6_internet: IpAddr = INTERNET_V6.parse().unwrap();
    for (settings, leaves) in [(V6, "-4"), (&[("ENABLE_V6_EGRESS", "true"), ("MAX_ENI", "2")][..], "-6")] {
        let bed = Bed::up(&scene_with_internet(), settings).await.unwrap();
        bed.booted().await.unwrap();
        let (node, other) = (bed.node("node-a").unwrap(), bed.node("node-b").unwrap());
        // Of IPv4 the last one is on a secondary ENI, and leaves by the primary one all the same.
        let count = if leaves == "-6" { 10 } else { 2 };
        let pods = add_pods(node, "default", "p", count).await.unwrap();
        let cast = [&pods[0], &pods[count - 1]];
        let own = |pod: &Pod| pod.ipv6.map_or(IpAddr::V4(pod.address), IpAddr::V6);
        let egress = |pod: &Pod| egress_of(own(pod)).unwrap();
        if leaves == "-6" {
            assert_eq!(bed.device_of(own(cast[1])), Some(1));
        }
        let eni = |name: &str| {
            let id = bed.world.instance(name).unwrap();
            bed.world.look(|model, _| {
                let eni = model.state().attached(id).into_iter().next().unwrap();
                (IpAddr::V4(eni.primary), eni.ipv6.first().copied().map(IpAddr::V6).unwrap())
            })
        };
        let (_, public) = bed.addresses_of("node-a").unwrap();
        let (mine, theirs) = (eni("node-a"), eni("node-b"));
        let (internet, seen, neighbour, as_node) = match leaves {
            "-4" => (IpAddr::V4(INTERNET), IpAddr::V4(public), theirs.0, mine.0),
            _ => (v6_internet, mine.1, theirs.1, mine.1),
        };
        let echo = SocketAddr::new(neighbour, ECHO_PORT);
        other.node().run_async(move || probe::serve_in_background(echo)).await.unwrap().unwrap();
        for pod in cast {
            assert_eq!(ask(node, pod, internet).await.unwrap(), seen, "{settings:?}");
            assert_eq!(ask(node, pod, neighbour).await.unwrap(), as_node, "within the VPC too");
            assert_eq!(egress_route(node, egress(pod)).await.len(), 1);
            assert!(!pod.result.to_string().contains(&egress(pod).to_string()), "{}", pod.result);
            node.runtime().check(node.node(), &pod.sandbox).await.unwrap();
        }
        // A server of the one pod at that address is for nobody: not for a pod of the same node.
        let target = SocketAddr::new(egress(cast[1]), ECHO_PORT);
        let inside = node.node().pod(&cast[1].sandbox.netns).await.unwrap();
        inside.run(move || probe::serve_in_background(target)).await.unwrap().unwrap();
        let error = ask(node, cast[0], egress(cast[1])).await.unwrap_err().to_string();
        assert!(error.contains("refused"), "{error}");
        assert_eq!(bed.world.dropped().await.unwrap(), []);

        // It is mended as the rest of the pod is, outlives a restart of the daemon, and goes with its pod.
        let address = egress(cast[0]).to_string();
        run(node, &["ip", leaves, "route", "del", &address]).await.unwrap();
        let begun = Instant::now();
        while egress_route(node, egress(cast[0])).await.is_empty() {
            assert!(begun.elapsed() < LIMIT, "{}", node.log_tail(20));
        }
        node.kill_ipamd().await;
        assert_eq!(ask(node, cast[0], internet).await.unwrap(), seen);
        node.start_ipamd().await.unwrap();
        node.ready(LIMIT).await.unwrap();
        assert_eq!(ask(node, cast[0], internet).await.unwrap(), seen);
        node.delete(&cast[0].sandbox).await.unwrap();
        assert_eq!(egress_route(node, egress(cast[0])).await, [] as [Value; 0]);
    }
}
