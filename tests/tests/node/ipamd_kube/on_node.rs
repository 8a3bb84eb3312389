//! ipamd itself, on nodes, beside an API server that comes and goes.

use std::net::SocketAddr;

use serde_json::{Value, json};
use sluice_tests::apiserver::{ApiServer, TableId, builtin, policy_kinds};
use sluice_tests::bed::{Bed, LIMIT, add_pods, ask, scene};
use sluice_tests::directory::Directory;
use sluice_tests::privileged::privileged;
use sluice_vpcsim::deployment::Deployment;
use sluice_vpcsim::probe::{self, ECHO_PORT};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::groups::{policy, written};
use super::seen::{map, node, pod, pods};
use crate::kube_source::observer::eventually;

/// Where the API server of a node is, in its own namespace.
const API: &str = "127.0.0.1:6443";

/// Makes a directory with a configuration that names [`API`]; its path.
fn kubeconfig(directory: &Directory) -> String {
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{API}")}}],
        "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}]});
    directory.write("kubeconfig", &config.to_string()).unwrap();
    directory.path().join("kubeconfig").display().to_string()
}

async fn server_on(node: &Deployment) -> ApiServer {
    let bound = node.node().run(|| {
        let listener = std::net::TcpListener::bind(API)?;
        listener.set_nonblocking(true)?;
        Ok::<_, std::io::Error>(listener)
    });
    let listener = TcpListener::from_std(bound.await.unwrap().unwrap()).unwrap();
    ApiServer::on(listener, builtin()).unwrap()
}

/// One node asks EC2 for all, and each has what came of it: security groups for policies, and peered VPCs without translation.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_learns_of_ec2_all_nodes_have() {
    if !privileged() {
        return;
    }
    let directory = Directory::new("shared").unwrap();
    let path = kubeconfig(&directory);
    let settings = [("KUBECONFIG", path.as_str()), ("SLUICE_EXCLUDE_SNAT_ROUTES", "true")];
    let peered = scene(0.1)
        .replace("routes: {0.0.0.0/0: internet-gateway}", "routes: {0.0.0.0/0: internet-gateway, 10.9.0.0/16: peering/pair}")
        .replace("  node-b: {type: m5.large, subnet: main/nodes, public_address: true}\n", "")
        .replace(
            "instances:\n",
            "  shared:\n    cidrs: [10.9.0.0/16]\n    subnets: {only: {cidr: 10.9.1.0/24, routes: {10.0.0.0/16: peering/pair}}}\n\
             peerings: {pair: [main, shared]}\ninstances:\n  peer: {type: t3.micro, subnet: shared/only, tags: {role: db}}\n",
        );
    let bed = Bed::up_on(&peered, |name| name != "peer", &settings).await.unwrap();
    let node = bed.node("node-a").unwrap();
    let peer = bed.world.instance("peer").unwrap();
    let peer = bed.world.look(|model, _| model.state().attached(peer)[0].primary);
    let to = SocketAddr::from((peer, ECHO_PORT));
    bed.world.node("peer").unwrap().run_async(move || probe::serve_in_background(to)).await.unwrap().unwrap();
    let pod = add_pods(node, "default", "p", 1).await.unwrap().remove(0);
    let (own, _) = bed.addresses_of("node-a").unwrap();
    assert_eq!(ask(node, &pod, peer).await.unwrap(), own, "nothing is known of the peered VPC yet");

    let server = server_on(node).await;
    policy_kinds().into_iter().for_each(|kind| server.install(kind));
    server.put(self::node("node-a", &json!({}))).unwrap();
    let mut named = policy("db", "unused");
    named["spec"]["egress"][0]["toGroups"][0] = json!({"aws": {"labels": {"role": "db"}}});
    server.put(named).unwrap();
    // It asks seldom whether a server that was away has the Lease: a start asks at once.
    node.kill_ipamd().await;
    node.start_ipamd().await.unwrap();
    eventually("the database's address", async || written(&server).into_values().eq([vec![format!("{peer}/32")]]))
        .await;
    eventually("the pod keeps its address into the peered VPC", async || {
        ask(node, &pod, peer).await.unwrap() == pod.address
    })
    .await;
    // A restart without the API server knows it too.
    drop(server);
    node.kill_ipamd().await;
    node.start_ipamd().await.unwrap();
    node.ready(LIMIT).await.unwrap();
    assert_eq!(ask(node, &pod, peer).await.unwrap(), pod.address);
}

/// DESIGN 11: without the API server everything is served; with it, pods have their addresses before they ask.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_node_pods_are_served_without_the_api_server_and_foreseen_with_it() {
    if !privileged() {
        return;
    }
    let directory = Directory::new("ipamd-kube").unwrap();
    let path = kubeconfig(&directory);
    let settings = [("KUBECONFIG", path.as_str()), ("WARM_IP_TARGET", "1"), ("MINIMUM_IP_TARGET", "1")];
    let bed = Bed::up(&scene(0.1), &settings).await.unwrap();
    let ipamd = bed.node("node-a").unwrap();
    // There is no API server yet.
    add_pods(ipamd, "default", "early", 2).await.unwrap();
    let begun = Instant::now();
    ipamd.kill_ipamd().await;
    ipamd.start_ipamd().await.unwrap();
    ipamd.add("default", "after-restart").await.unwrap();
    println!("killed, started, and a pod added after {:?}, without an API server", begun.elapsed());

    let server = server_on(ipamd).await;
    server.put(node("node-a", &json!({}))).unwrap();
    for number in 0..10 {
        server.put(pod(&format!("p{number}"), "node-a")).unwrap();
    }
    let free = |view: &Value| view["pool"]["free"].as_u64().unwrap_or_default();
    ipamd.pool_until("addresses for pods that are bound", LIMIT, |view| free(view) >= 10).await.unwrap();
    // The cluster's settings, while it runs.
    server.put(map(&json!({"all": "{env: {WARM_IP_TARGET: 4}}"}))).unwrap();
    for number in 0..10 {
        server.delete(&pods(), "default", &format!("p{number}")).unwrap();
    }
    eventually("the Event of the new settings", async || {
        let events = server.objects(&TableId::new("events.k8s.io", "events"));
        events.iter().any(|event| event["reason"] == "SettingsChanged")
    })
    .await;
    eventually("the condition", async || {
        let node = server.get(&TableId::new("", "nodes"), "", "node-a").unwrap();
        node["status"]["conditions"][0]["status"] == "True"
    })
    .await;
    // It goes away: everything is served on.
    drop(server);
    let added = ipamd.add("default", "last").await.unwrap();
    ipamd.delete(&added.sandbox).await.unwrap();
}
