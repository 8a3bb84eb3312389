//! A node on which the VPC CNI's network policy agent enforced policies is taken over with its pods talking, and handed back.
//!
//! What is at its pods is as the agent has it (`pkg/tc` of aws/aws-ebpf-sdk-go, `pkg/ebpf` of aws/aws-network-policy-agent): filters by its
//! names, at the priority and handle that the gate's have, and a map below `globals/aws`. They count what they see and let it pass.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use sluice_hostnet::netlink::Netlink;
use sluice_hostnet::tc::{Existing, Hook, Program, Slot};
use sluice_tests::bed::{Bed, LIMIT, add_pods, ask, run, scene, serve};
use sluice_tests::directory::Directory;
use sluice_tests::privileged::privileged;
use sluice_vpcsim::deployment::{GateBinaries, Pod};
use sluice_vpcsim::node::Node;
use sluice_vpcsim::policyd::{Policyd, Source};

use super::cilium::{POLICIES, StandIns, cluster, finding, guide, linked, with_aws_list};
use super::{Talk, as_aws_node_leaves_it};
use crate::install::{eventually, exists, sluice};

/// Its programs by hook: what a pod sends comes in by the host's interface.
const PROGRAMS: [(Hook, &str); 2] = [(Hook::Ingress, "handle_egress"), (Hook::Egress, "handle_ingress")];
const PINS: &str = "/sys/fs/bpf/globals/aws";
const MAP: &str = "/sys/fs/bpf/globals/aws/maps/global_aws_conntrack_map";

/// The agent puts its programs to pods' interfaces; these.
async fn attach(node: &Arc<Node>, netlink: &Netlink, programs: &StandIns) -> Vec<(u32, String)> {
    let programs = programs.clone();
    let loaded = node.run(move || programs.descriptors()).await.unwrap();
    let mut places = Vec::new();
    for link in netlink.links().await.unwrap().into_iter().filter(|link| link.name.as_str().starts_with("eni")) {
        let wanted = PROGRAMS.map(|(hook, name)| (hook, Program { fd: loaded[name].as_fd(), name }));
        netlink.attach(link.index, Slot::GATE, &wanted, Existing::Replace).await.unwrap();
        places.push((link.index, link.name.as_str().to_owned()));
    }
    places
}

/// The programs at an interface, by name.
async fn at_hooks(node: &Arc<Node>, netlink: &Netlink, (index, interface): &(u32, String)) -> Vec<String> {
    let mut names = Vec::new();
    for hook in Hook::ALL {
        let filters = netlink.filters(*index, hook).await.unwrap();
        names.extend(filters.into_iter().filter_map(|filter| filter.name));
    }
    let interface = interface.clone();
    names.extend(node.run(move || linked(&interface)).await.unwrap());
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn p25_a_node_with_the_network_policy_agent_is_taken_over_and_handed_back_without_a_packet_lost() {
    if !privileged() {
        return;
    }
    let bed = Bed::up(&scene(0.1), &[]).await.unwrap();
    let (node, other) = (bed.node("node-a").unwrap(), bed.node("node-b").unwrap());
    let machine = node.node();
    let pods = add_pods(node, "default", "p", 4).await.unwrap();
    let [server, client, stranger, idle] = pods.as_slice() else { panic!("four pods: {pods:?}") };
    let far = other.add("default", "far").await.unwrap();
    serve(other, &far).await.unwrap();
    for pod in [server, idle] {
        serve(node, pod).await.unwrap();
    }

    // The node as it is before, when aws-node has ended.
    as_aws_node_leaves_it(&bed, "node-a", &pods.iter().collect::<Vec<_>>()).await;
    with_aws_list(node).await;
    let own = Directory::new("agent").unwrap();
    let netlink = Netlink::open_in(machine.net()).unwrap();
    let programs = StandIns::compiled(&own, &PROGRAMS.map(|(_, name)| name), "aws_conntrack_map", MAP);
    let places = attach(machine, &netlink, &programs).await;
    assert_eq!(places.len(), pods.len(), "{places:?}");
    let seen = async || {
        let programs = programs.clone();
        machine.run(move || programs.seen()).await.unwrap()
    };
    let talk = Talk::begin(vec![
        (Arc::clone(node), client.clone(), far.address),
        (Arc::clone(node), client.clone(), server.address),
        (Arc::clone(other), far.clone(), server.address),
    ]);
    let moves = async |what: &str| {
        let before = talk.asked.load(Ordering::Relaxed);
        eventually(what, async || talk.asked.load(Ordering::Relaxed) > before + 20).await;
    };
    moves("traffic before").await;
    assert!(seen().await > 20, "its programs are not asked");
    ask(node, stranger, server.address).await.unwrap();

    // Over. The gates stand in the place of its filters.
    let label = |pod: &Pod| match &pod.sandbox.name {
        name if *name == server.sandbox.name => json!({"app": "server"}),
        name if *name == client.sandbox.name => json!({"app": "client"}),
        _ => json!({"app": "stranger"}),
    };
    let mut known: Vec<(&Pod, &str, Value)> = pods.iter().map(|pod| (pod, "node-a", label(pod))).collect();
    known.push((&far, "node-b", json!({"app": "far"})));
    let directory = Directory::new("takeover-agent").unwrap();
    directory.write("cluster.json", &cluster(&known)).unwrap();
    directory.write("policies.yaml", POLICIES).unwrap();
    let (ok, said) = sluice(machine, &["install", "plugins"]).await;
    assert!(ok, "{said}");
    let source = Source::Directory(directory.path().to_owned());
    let policyd = Policyd::new(Arc::clone(machine), GateBinaries::beside_this_program().unwrap().policyd, source);
    node.start_ipamd().await.unwrap();
    policyd.start().await.unwrap();
    node.ready(LIMIT).await.unwrap();
    let gated = |view: &Value| {
        let gates = view["endpoints"].as_array().cloned().unwrap_or_default();
        let is_done = gates.len() == pods.len() && gates.iter().all(|gate| !gate["revision"].is_null());
        is_done && view["without_gate"].as_array().is_some_and(Vec::is_empty)
    };
    policyd.until("the pods have no gates", LIMIT, gated).await.unwrap();
    let (ok, said) = sluice(machine, &["install", "conflist"]).await;
    assert!(ok, "{said}");
    for place in &places {
        let names = at_hooks(machine, &netlink, place).await;
        assert!(
            ["from_pod", "to_pod"].iter().all(|gate| names.iter().any(|name| name == gate)),
            "{place:?}: {names:?}"
        );
        assert!(!names.iter().any(|name| name.starts_with("handle_")), "{place:?}: {names:?}");
    }
    let before = seen().await;
    moves("traffic by the gates").await;
    assert_eq!(seen().await, before, "its programs are still asked");
    assert!(ask(node, stranger, server.address).await.is_err(), "a stranger reaches the server");
    ask(node, stranger, idle.address).await.unwrap();

    // What it has left is found, and the guide's command takes it away.
    let (standing, said) = finding(machine, "other CNIs").await;
    assert!(standing == "doubtful" && said.contains(PINS), "{said}");
    run(node, &["sh", "-ec", &guide(PINS)]).await.unwrap();
    assert!(!exists(machine, PINS).await, "{PINS} is left");
    let (standing, said) = finding(machine, "other CNIs").await;
    assert_eq!(standing, "well", "{said}");
    moves("traffic without its pins").await;

    // And back: the hooks are its again.
    node.kill_ipamd().await;
    policyd.stop().await;
    let (ok, said) = sluice(machine, &["handback"]).await;
    assert!(ok && said.starts_with("pods that are the AWS VPC CNI's: 4 "), "{said}");
    let (ok, said) = sluice(machine, &["uninstall"]).await;
    assert!(ok, "{said}");
    for place in &places {
        eventually("the gates go", async || at_hooks(machine, &netlink, place).await.is_empty()).await;
    }
    assert_eq!(attach(machine, &netlink, &programs).await, places);
    eventually("its programs see packets", async || seen().await > 20).await;
    let (asked, lost) = talk.end().await;
    println!("{asked} connections, {} lost", lost.len());
    assert!(lost.is_empty() && asked > 100, "{asked} asked, lost: {lost:?}");
    assert_eq!(bed.world.dropped().await.unwrap(), []);
}
