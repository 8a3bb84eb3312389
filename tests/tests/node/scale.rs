//! Many pods: 250 at once, and what an ADD costs beside hundreds that are there.

use std::sync::Arc;

use sluice_tests::bed::{Bed, LIMIT, add_pods, run, scene};
use sluice_tests::privileged::{everything, privileged};
use sluice_vpcsim::deployment::{Deployment, Pod};

/// ADDs at once.
const BURST: usize = 250;
/// ADDs whose system calls are counted, of which the cheapest counts: how often a thread waits is chance.
const COUNTED: usize = 6;
/// In percent.
const MORE: usize = 5;

/// The plugin, traced: one line of the trace a system call, of all its threads.
const TRACED: &str = "#!/bin/sh
exec strace -f -qq -o /run/add.trace /opt/cni/bin/sluice-eni.real \"$@\"
";

/// System calls of an ADD.
async fn calls(node: &Deployment, prefix: &str) -> usize {
    let plugin = "/opt/cni/bin/sluice-eni";
    let real = "/opt/cni/bin/sluice-eni.real";
    run(node, &["mv", plugin, real]).await.unwrap();
    node.node().write(plugin, TRACED).await.unwrap();
    run(node, &["chmod", "755", plugin]).await.unwrap();
    let mut fewest = usize::MAX;
    for number in 0..COUNTED {
        node.add("counted", &format!("{prefix}{number}")).await.unwrap();
        let lines = run(node, &["grep", "-c", "(", "/run/add.trace"]).await.unwrap();
        fewest = fewest.min(lines.trim().parse().unwrap());
    }
    run(node, &["mv", real, plugin]).await.unwrap();
    fewest
}

/// ADDs at once, all of which succeed.
async fn burst(node: &Arc<Deployment>, prefix: &str, count: usize) -> Vec<Pod> {
    let adds = (0..count).map(|number| {
        let (node, name) = (Arc::clone(node), format!("{prefix}{number}"));
        tokio::spawn(async move { node.add("burst", &name).await })
    });
    let adds: Vec<_> = adds.collect();
    let mut pods = Vec::new();
    for add in adds {
        pods.push(add.await.unwrap().unwrap());
    }
    pods
}

/// Issue F, 3.
#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_and_fifty_pods_at_once_and_an_add_beside_them_costs_what_it_did() {
    if !privileged() {
        return;
    }
    let all = everything();
    let bursts: &[usize] = if all { &[BURST, 240] } else { &[BURST] };
    let scene = scene(0.1).replace("m5.large", "m5.4xlarge").replace("10.0.1.0/24", "10.0.16.0/20");
    let target = (bursts.iter().sum::<usize>() + 3 * COUNTED + 20).to_string();
    let settings = [
        ("ENABLE_PREFIX_DELEGATION", "true"),
        ("MINIMUM_IP_TARGET", target.as_str()),
        ("WARM_IP_TARGET", "16"),
        ("SLUICE_MAX_PODS", "737"),
    ];
    let bed = Bed::up_on(&scene, |name| name == "node-a", &settings).await.unwrap();
    let node = bed.node("node-a").unwrap();
    let free = |view: &serde_json::Value| view["pool"]["free"].as_u64() >= target.parse().ok();
    node.pool_until("a pool for all", LIMIT, free).await.unwrap();
    add_pods(node, "first", "p", 10).await.unwrap();
    let few = calls(node, "few").await;
    for (number, count) in bursts.iter().enumerate() {
        let pods = burst(node, &format!("b{number}-"), *count).await;
        let addresses: std::collections::BTreeSet<_> = pods.iter().map(|pod| pod.address).collect();
        assert_eq!(addresses.len(), *count, "no address twice");
    }
    let many = calls(node, "many").await;
    println!("{few} system calls an ADD beside 10 pods, {many} beside {}", bursts.iter().sum::<usize>() + 16);
    assert!(many.abs_diff(few) * 100 < few * MORE, "{few} calls beside few pods, {many} beside many");
}
