//! ipamd dies, and with it EC2 and the metadata; pods notice nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use sluice_hostnet::watch::{Change, Event, Watch, Watched};
use sluice_tests::bed::{Bed, LIMIT, add_pods, ask, scene, serve};
use sluice_tests::privileged::privileged;
use sluice_vpcsim::world::Service;
use tokio::task::JoinSet;

/// SPECIFICATION P-06 and S-05.
#[tokio::test(flavor = "multi_thread")]
async fn p06_ipamd_killed_in_a_burst_serves_again_without_ec2_and_touches_no_running_pod() {
    if !privileged() {
        return;
    }
    let bed = Bed::up(&scene(0.1), &[]).await.unwrap();
    let node = bed.node("node-a").unwrap();
    let first = add_pods(node, "default", "first", 2).await.unwrap();
    serve(node, &first[1]).await.unwrap();

    let mut adding = JoinSet::new();
    for number in 0..16 {
        let node = Arc::clone(node);
        adding.spawn(async move { node.add("burst", &format!("p{number}")).await });
    }
    let mut pods = Vec::new();
    let mut refused = 0;
    // Some are served; the rest meet the crash.
    for _ in 0..5 {
        pods.push(adding.join_next().await.unwrap().unwrap().unwrap());
    }
    node.kill_ipamd().await;
    bed.world.stop_service(Service::Ec2).await;
    bed.world.stop_service(Service::Imds).await;
    let mut watch = Watch::open(node.node().net(), Watched::ALL).await.unwrap();
    let begun = Instant::now();
    node.start_ipamd().await.unwrap();
    node.ready(LIMIT).await.unwrap();
    println!("ipamd serves {:.0} ms after its start, without EC2 and IMDS", begun.elapsed().as_secs_f64() * 1000.0);
    // The primary ENI's nine addresses were in the pool: all of them are served without EC2.
    let served = |view: &Value| view["pool"]["assigned"] == 9;
    node.pool_until("the pool was not served from the checkpoint", LIMIT, served).await.unwrap();
    bed.world.start_service(Service::Ec2).await.unwrap();
    bed.world.start_service(Service::Imds).await.unwrap();
    while let Some(added) = adding.join_next().await {
        match added.unwrap() {
            Ok(pod) => pods.push(pod),
            Err(error) => {
                // A runtime tries again.
                assert!(error.to_string().contains("code 11"), "an ADD that meets the crash may be retried: {error}");
                refused += 1;
            }
        }
    }
    println!("{} pods were served, {refused} ADDs are to be retried", pods.len());

    let events = watch.settle().await;
    let alive: BTreeSet<_> = first.iter().map(|pod| pod.address).collect();
    let touched: Vec<&Event> = events
        .iter()
        .filter(|event| match event {
            Event::Route(_, route) => {
                alive.iter().any(|address| route.destination.to_string() == format!("{address}/32"))
            }
            Event::Rule(_, rule) => alive.iter().any(|address| {
                let of = format!("{address}/32");
                [&rule.from, &rule.to].into_iter().flatten().any(|net| net.to_string() == of)
            }),
            Event::Lost | Event::Address(Change::Gone, _) => true,
            _ => false,
        })
        .collect();
    assert!(touched.is_empty(), "nothing of a running pod is touched: {touched:?}");

    let mut owners = BTreeMap::new();
    for pod in pods.iter().chain(&first) {
        assert!(owners.insert(pod.address, &pod.sandbox.name).is_none(), "{} was given twice", pod.address);
    }
    assert_eq!(ask(node, &first[0], first[1].address).await.unwrap(), first[0].address);
    let sound =
        |view: &Value| view["pool"]["violations"] == 0 && view["obstacles"].as_object().is_some_and(|o| o.is_empty());
    let view = node.pool_until("EC2 was not found again", LIMIT, sound).await.unwrap();
    assert_eq!(view["pool"]["assigned"], owners.len(), "{view}");
}

/// SPECIFICATION P-07: a checkpoint that cannot be read.
#[tokio::test(flavor = "multi_thread")]
async fn p07_a_corrupt_checkpoint_is_kept_aside_and_no_address_of_a_pod_is_given_again() {
    if !privileged() {
        return;
    }
    let bed = Bed::up(&scene(0.1), &[]).await.unwrap();
    let node = bed.node("node-a").unwrap();
    let pods = add_pods(node, "default", "p", 4).await.unwrap();
    node.kill_ipamd().await;
    node.node().write("/run/sluice/ipam.json", "{\"version\": \"sluice").await.unwrap();
    node.start_ipamd().await.unwrap();
    node.ready(LIMIT).await.unwrap();
    let mut taken: BTreeSet<_> = pods.iter().map(|pod| pod.address).collect();
    for pod in add_pods(node, "default", "q", 4).await.unwrap() {
        assert!(taken.insert(pod.address), "{} belongs to a running pod", pod.address);
    }
    let kept = node.node().run(|| {
        let names = std::fs::read_dir("/run/sluice").unwrap().map(|entry| entry.unwrap().file_name());
        names.filter_map(|name| name.into_string().ok()).filter(|name| name.contains("corrupt")).count()
    });
    assert_eq!(kept.await.unwrap(), 1, "the unreadable file is kept for a person to look at");
    serve(node, &pods[1]).await.unwrap();
    assert_eq!(ask(node, &pods[0], pods[1].address).await.unwrap(), pods[0].address);
    for pod in &pods {
        node.delete(&pod.sandbox).await.unwrap();
    }
}
