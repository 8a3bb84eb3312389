//! What packets meet on a node.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use sluice_hostnet::conntrack::{self, Flow};
use sluice_policy_core::cluster::{
    Cluster, EndpointSlice, Event, Labels, NamedPort, Object, ObjectKey, Service, ServicePort,
};
use sluice_policy_core::flow::Protocol;
use sluice_tests::bed::{self, Bed, INTERNET, LIMIT, LOST, add_pods, ask, ip, run, scene, scene_with_ipv6, serve};
use sluice_tests::privileged::privileged;
use sluice_tests::service_proxy::{Backend, Extra, Proxy};
use sluice_vpcsim::deployment::Deployment;
use sluice_vpcsim::probe::{self, ECHO_PORT};
use tokio::net::{TcpStream, UdpSocket};

/// Rules of IPv4 as `ip rule` prints them, of the node or of one of its pods.
pub(super) async fn rules(node: &Deployment, netns: Option<&Path>) -> Vec<String> {
    let rules = ip(node, netns, &["rule", "show"]).await.unwrap();
    let text = |rule: &Value, key: &str| rule[key].as_str().map(str::to_owned);
    rules
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| {
            let mut line = format!("{}: from {}", rule["priority"], text(rule, "src").unwrap());
            if let Some(to) = text(rule, "dst") {
                line += &format!(" to {to}");
            }
            if let Some(mark) = text(rule, "fwmark") {
                line += &format!(" fwmark {mark}/{}", text(rule, "fwmask").unwrap());
            }
            line + &format!(" lookup {}", text(rule, "table").unwrap())
        })
        .collect()
}

/// Routes of a table as `destination via gateway dev device scope`.
pub(super) async fn routes(node: &Deployment, netns: Option<&Path>, table: &str) -> Vec<String> {
    let routes = ip(node, netns, &["route", "show", "table", table]).await.unwrap();
    let mut lines: Vec<String> = routes
        .as_array()
        .unwrap()
        .iter()
        .map(|route| {
            let mut line = route["dst"].as_str().unwrap().to_owned();
            for (key, word) in [("gateway", "via"), ("dev", "dev"), ("scope", "scope")] {
                if let Some(value) = route[key].as_str() {
                    line += &format!(" {word} {value}");
                }
            }
            line
        })
        .collect();
    lines.sort();
    lines
}

/// SPECIFICATION P-02: reference/vpc-cni.md 4.14, with the addresses that EC2 gave.
#[tokio::test(flavor = "multi_thread")]
async fn p02_a_node_with_two_pods_is_as_the_vpc_cni_leaves_it() {
    if !privileged() {
        return;
    }
    let bed = Bed::up(&scene(0.1), &[("IP_COOLDOWN_PERIOD", "1"), ("MAX_ENI", "2")]).await.unwrap();
    let node = bed.node("node-a").unwrap();
    let a = node.add("default", "sample-pod").await.unwrap();
    let fill = add_pods(node, "fill", "f", 8).await.unwrap();
    let b = node.add("kube-system", "coredns-57ff979f67-qqbdh").await.unwrap();
    for pod in &fill {
        node.delete(&pod.sandbox).await.unwrap();
    }
    assert_eq!(
        (bed.device_of(a.address), bed.device_of(b.address)),
        (Some(0), Some(1)),
        "both kinds of ENI are in use"
    );
    let (primary, _) = bed.addresses_of("node-a").unwrap();
    let id = bed.world.instance("node-a").unwrap().clone();
    let enis: Vec<Ipv4Addr> =
        bed.world.look(|model, _| model.state().attached(&id).into_iter().map(|eni| eni.primary).collect());
    let (one, other) = (a.address.min(b.address), a.address.max(b.address));

    let mut expected = vec![
        "0: from all lookup local".to_owned(),
        format!("512: from all to {one} lookup main"),
        format!("512: from all to {other} lookup main"),
        "1024: from all fwmark 0x80/0x80 lookup main".to_owned(),
        format!("1536: from {} lookup 2", b.address),
    ];
    expected.extend(
        enis.iter().enumerate().skip(1).map(|(device, own)| format!("32765: from {own} lookup {}", device + 1)),
    );
    expected.extend(["32766: from all lookup main".to_owned(), "32767: from all lookup default".to_owned()]);
    let mut seen = rules(node, None).await;
    // Rules of one priority are compared as a set: their order among each other means nothing.
    let key = |line: &String| (line.split(':').next().unwrap().parse::<u32>().unwrap(), line.clone());
    seen.sort_by_key(key);
    expected.sort_by_key(key);
    assert_eq!(seen, expected);

    let main = routes(node, None, "main").await;
    let mut pods_and_node = vec![
        format!("{} dev enicc21c2d7785 scope link", a.address),
        format!("{} dev enib5faff8a083 scope link", b.address),
        "10.0.1.0/24 dev eth0 scope link".to_owned(),
        "default via 10.0.1.1 dev eth0".to_owned(),
    ];
    pods_and_node.sort();
    assert_eq!(main, pods_and_node, "and no route of the subnet by eth1");
    assert_eq!(routes(node, None, "2").await, ["10.0.1.1 dev eth1 scope link", "default via 10.0.1.1 dev eth1"]);
    assert_eq!(primary, enis[0]);

    for (pod, veth) in [(&a, "enicc21c2d7785"), (&b, "enib5faff8a083")] {
        let inside = Some(pod.sandbox.netns.as_path());
        assert_eq!(
            routes(node, inside, "main").await,
            ["169.254.1.1 dev eth0 scope link", "default via 169.254.1.1 dev eth0"]
        );
        let host = ip(node, None, &["link", "show", "dev", veth]).await.unwrap();
        assert_eq!(host[0]["mtu"], 9001);
        let link = ip(node, inside, &["addr", "show", "dev", "eth0"]).await.unwrap();
        assert_eq!(link[0]["mtu"], 9001);
        let addresses: Vec<String> = link[0]["addr_info"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|address| address["family"] == "inet")
            .map(|address| {
                format!("{}/{} {}", address["local"].as_str().unwrap(), address["prefixlen"], address["scope"])
            })
            .collect();
        assert_eq!(addresses, [format!("{}/32 \"global\"", pod.address)]);
        let neighbours = ip(node, inside, &["-4", "neigh", "show", "dev", "eth0"]).await.unwrap();
        assert_eq!(
            (&neighbours[0]["dst"], &neighbours[0]["lladdr"], &neighbours[0]["state"][0]),
            (&"169.254.1.1".into(), &host[0]["address"], &"PERMANENT".into())
        );
    }
}

/// SPECIFICATION P-01 and P-03: everybody reaches everybody with the right source, and a missing rule shows.
#[tokio::test(flavor = "multi_thread")]
async fn p01_pods_reach_each_other_and_the_internet_and_p03_a_missing_rule_breaks_it() {
    if !privileged() {
        return;
    }
    let bed = Bed::up(&scene(0.1), &[]).await.unwrap();
    let mut pods = Vec::new();
    for name in ["node-a", "node-b"] {
        let node = bed.node(name).unwrap();
        for pod in add_pods(node, "default", "p", 10).await.unwrap() {
            pods.push((name, pod));
        }
    }
    // One of each kind on each node.
    let cast: Vec<_> = ["node-a", "node-b"]
        .into_iter()
        .flat_map(|name| [true, false].map(|primary| (name, primary)))
        .map(|(name, primary)| {
            let fits = |device: u32| (device == 0) == primary;
            pods.iter().find(|(node, pod)| *node == name && bed.device_of(pod.address).is_some_and(fits)).unwrap()
        })
        .collect();
    for (name, pod) in &cast {
        serve(bed.node(name).unwrap(), pod).await.unwrap();
    }
    for (name, from) in &cast {
        let node = bed.node(name).unwrap();
        for (_, to) in cast.iter().filter(|(_, to)| to.address != from.address) {
            assert_eq!(ask(node, from, to.address).await.unwrap(), from.address, "{} to {}", from.address, to.address);
        }
        let (_, public) = bed.addresses_of(name).unwrap();
        assert_eq!(ask(node, from, INTERNET).await.unwrap(), public, "from {} to the Internet", from.address);
    }
    assert!(bed.world.dropped().await.unwrap().is_empty(), "no ENI sent from an address that it does not hold");

    let [_, (name, victim), (_, other), _] = cast.as_slice() else { panic!("four pods") };
    let node = bed.node(name).unwrap();
    let address = victim.address.to_string();
    // It would mend it.
    node.kill_ipamd().await;
    run(node, &["ip", "rule", "del", "priority", "1536", "from", &address]).await.unwrap();
    let error = ask(node, victim, other.address).await.unwrap_err();
    assert!(matches!(error, bed::BedError::Unreachable { .. }), "{error}");
    let dropped = bed.world.dropped().await.unwrap();
    assert!(
        dropped.iter().any(|drop| drop.source == victim.address && drop.destination == other.address),
        "the fabric drops what comes from the wrong ENI: {dropped:?}"
    );
}

/// Packets that a chain of our table of a family has dropped or refused.
async fn refused(node: &Deployment, family: &str, chain: &str) -> u64 {
    let listed = run(node, &["nft", "-j", "list", "chain", family, "sluice", chain]).await.unwrap();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let rules = listed["nftables"].as_array().unwrap().iter().filter_map(|object| object["rule"]["expr"].as_array());
    rules.flatten().filter_map(|part| part["counter"]["packets"].as_u64()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_send_as_themselves_alone_and_can_be_kept_from_the_metadata_service() {
    if !privileged() {
        return;
    }
    let settings = [("ENABLE_IPv6", "true"), ("SLUICE_BLOCK_POD_METADATA", "true")];
    let bed = Bed::up(&scene_with_ipv6(0.1), &settings).await.unwrap();
    bed.booted().await.unwrap();
    let node = bed.node("node-a").unwrap();
    let pods = add_pods(node, "default", "p", 2).await.unwrap();
    serve(node, &pods[1]).await.unwrap();
    let metadata = || async { TcpStream::connect((Ipv4Addr::new(169, 254, 169, 254), 80)).await.map(drop) };
    let inside = node.node().pod(&pods[0].sandbox.netns).await.unwrap();
    let error = inside.run(metadata).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "at once, so that clients go on");
    node.node().run_async(metadata).await.unwrap().expect("the node itself reaches it");
    assert!(refused(node, "ip", "metadata").await > 0);
    assert_eq!(ask(node, &pods[0], pods[1].address).await.unwrap(), pods[0].address);

    // Addresses that the pod has given itself.
    let netns = format!("--net={}", pods[0].sandbox.netns.display());
    for (family, chain, forged, to) in [
        ("ip", "own-address", "10.0.1.222", IpAddr::V4(pods[1].address)),
        ("ip6", "own-address", "3fff::bad", pods[1].ipv6.unwrap().into()),
    ] {
        let words = ["nsenter", &netns, "ip", "addr", "add", forged, "dev", "eth0"];
        let nodad: &[&str] = if family == "ip6" { &["nodad"] } else { &[] };
        run(node, &[&words[..], nodad].concat()).await.unwrap();
        let before = refused(node, family, chain).await;
        let from: IpAddr = forged.parse().unwrap();
        let sent = inside.run(move || async move {
            let socket = UdpSocket::bind((from, 0)).await?;
            socket.send_to(b"?", (to, ECHO_PORT)).await
        });
        sent.await.unwrap().unwrap();
        let begun = Instant::now();
        while refused(node, family, chain).await == before {
            assert!(begun.elapsed() < LIMIT, "{family}: what is forged passes");
        }
    }
}

/// Issue F: as many addresses to translate to as there are ENIs.
#[tokio::test(flavor = "multi_thread")]
async fn what_leaves_the_vpc_can_leave_by_its_pods_eni_with_the_address_of_that() {
    if !privileged() {
        return;
    }
    let peered =
        scene(0.1).replace("0.0.0.0/0: internet-gateway", "0.0.0.0/0: internet-gateway, 10.9.0.0/16: peering/pair");
    let peered = peered.replace(
        "instances:\n",
        "  shared:\n    cidrs: [10.9.0.0/16]\n    subnets: {only: {cidr: 10.9.1.0/24, routes: {10.0.0.0/16: peering/pair}}}\n\
         peerings: {pair: [main, shared]}\ninstances:\n  peer: {type: t3.micro, subnet: shared/only}\n",
    );
    let settings = [("SLUICE_SNAT_BY_ENI", "true"), ("MAX_ENI", "2")];
    let bed = Bed::up_on(&peered, |name| name == "node-a", &settings).await.unwrap();
    let node = bed.node("node-a").unwrap();
    let address_of = |machine: &str, device: usize| {
        let id = bed.world.instance(machine).unwrap();
        bed.world.look(|model, _| model.state().attached(id)[device].primary)
    };
    let peer = address_of("peer", 0);
    let machine = bed.world.node("peer").unwrap();
    let to = SocketAddr::new(peer.into(), ECHO_PORT);
    machine.run_async(move || probe::serve_in_background(to)).await.unwrap().unwrap();
    let pods = add_pods(node, "default", "p", 10).await.unwrap();
    for (pod, device) in [(&pods[0], 0), (&pods[9], 1)] {
        assert_eq!(bed.device_of(pod.address), Some(device));
        let own = address_of("node-a", usize::try_from(device).unwrap());
        assert_eq!(ask(node, pod, peer).await.unwrap(), own, "from the ENI of device {device}");
    }
    assert_eq!(bed.world.dropped().await.unwrap(), []);
}

/// A Service on port 80 with echo servers behind it.
fn service(address: IpAddr, backends: &[IpAddr]) -> Cluster {
    let mut cluster = Cluster::default();
    let key = ObjectKey { namespace: "default".into(), name: "echo".into() };
    let port = ServicePort { name: "echo".into(), protocol: Protocol::TCP, port: 80, node_port: None };
    cluster.apply(Event::Upsert(Object::EndpointSlice(EndpointSlice {
        key: key.clone(),
        service: Some("echo".into()),
        ports: vec![NamedPort { name: "echo".into(), protocol: Protocol::TCP, port: ECHO_PORT }].into(),
        ready: backends.iter().copied().collect(),
    })));
    cluster.apply(Event::Upsert(Object::Service(Service {
        key,
        labels: Labels::default(),
        addresses: vec![address].into(),
        ports: [port].into(),
        selector: None,
    })));
    cluster
}

/// What connection tracking of a node knows of flows that name an address.
async fn flows_of(node: &Deployment, address: Ipv4Addr) -> Vec<Flow> {
    let net = node.node().net().clone();
    let names = move |flow: &Flow| {
        [flow.original, flow.reply].iter().any(|tuple| [tuple.source, tuple.destination].contains(&address.into()))
    };
    tokio::task::spawn_blocking(move || conntrack::flows(&net, 1000, names)).await.unwrap().unwrap()
}

/// Failure 6 of reference/vpc-cni.md 10 (#3634): what a service proxy has sent to a pod goes to nobody who has its address next.
#[tokio::test(flavor = "multi_thread")]
async fn flows_of_a_pod_that_is_gone_are_forgotten_and_others_stay() {
    if !privileged() {
        return;
    }
    let bed = Bed::up(&scene(0.1), &[("IP_COOLDOWN_PERIOD", "5")]).await.unwrap();
    let node = bed.node("node-a").unwrap();
    let pods = add_pods(node, "default", "p", 3).await.unwrap();
    let [client, gone, other] = pods.as_slice() else { panic!("three pods") };
    for pod in [gone, other] {
        serve(node, pod).await.unwrap();
    }
    let virtual_ip = IpAddr::from([172, 20, 0, 10]);
    let cluster = service(virtual_ip, &[gone.address.into()]);
    let proxy = Proxy::new(node.node().net().clone(), Backend::Nftables);
    let apply = move || proxy.apply(&cluster, &Extra::default());
    tokio::task::spawn_blocking(apply).await.unwrap().unwrap();
    let inside = node.node().pod(&client.sandbox.netns).await.unwrap();
    let front = SocketAddr::new(virtual_ip, 80);
    inside.run(move || async move { probe::seen_by(front, LOST).await }).await.unwrap().unwrap();
    ask(node, client, other.address).await.unwrap();
    let translated = |flow: &Flow| flow.original.destination == virtual_ip;
    assert!(flows_of(node, gone.address).await.iter().any(translated), "the service proxy's is one of them");
    assert!(!flows_of(node, other.address).await.is_empty());

    node.delete(&gone.sandbox).await.unwrap();
    let begun = Instant::now();
    loop {
        let left = flows_of(node, gone.address).await;
        if left.is_empty() {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "they are known still: {left:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // By itself a connection that was closed goes after two minutes.
    assert!(!flows_of(node, other.address).await.is_empty(), "nobody else's are touched");
}
