//! Many pods at once.

use super::*;

/// Adds `count` pods at once; the time that the last one waited.
pub(super) async fn burst(world: &World, node: &Node, prefix: &str, count: usize) -> (Vec<PodAddress>, Duration) {
    let begun = Instant::now();
    let mut replies = Vec::new();
    for index in 0..count {
        let call = Call::Add(add_request(&format!("{prefix}{index}")));
        replies.push(node.handle.ask(call, Instant::now() + Duration::from_secs(60)).await.1);
    }
    let mut addresses = Vec::new();
    for (index, reply) in replies.into_iter().enumerate() {
        match reply.await.unwrap().reply {
            Reply::Done(Outcome::Add(mut reply)) => {
                let address = reply.addresses.remove(0);
                world.pod_runs(&format!("{prefix}{index}"), address.ip);
                addresses.push(address);
            }
            other => panic!("{prefix}{index}: {other:?}"),
        }
    }
    (addresses, begun.elapsed())
}

fn since(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    after
        .iter()
        .map(|(action, count)| (action.clone(), count - before.get(action).unwrap_or(&0)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

#[tokio::test(start_paused = true)]
async fn s02_27_pods_at_once_on_an_m5_large() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let before = world.cloud.counts();
    let (addresses, took) = burst(&world, &node, "p", 27).await;
    let calls = since(&before, &world.cloud.counts());
    println!("27 pods took {took:?} and {calls:?}");
    assert_eq!(addresses.iter().map(|a| a.ip).collect::<BTreeSet<_>>().len(), 27);
    assert_eq!(addresses.iter().map(|a| a.table).collect::<BTreeSet<_>>(), BTreeSet::from([2, 3, 254]));
    // Create, attach and link take 9 s at worst; one after the other they would take twice that.
    assert!(took < Duration::from_secs(9), "the ENIs are not made in parallel: {took:?}");
    assert_eq!(calls["CreateNetworkInterface"], 2);
    assert_eq!(calls["AttachNetworkInterface"], 2);
    let total: u64 = calls.values().sum();
    assert!(total <= 8, "{calls:?}");
    node.wait("a settled pool", View::is_settled).await;
    world.agrees(&node).await;
}

#[tokio::test(start_paused = true)]
async fn s02_232_pods_at_once_by_prefixes() {
    let mut world = World::with(Settings::aws(), "m5.4xlarge", "10.0.0.0/20");
    world.set("ENABLE_PREFIX_DELEGATION", "true");
    let node = world.settled().await;
    let before = world.cloud.counts();
    let (addresses, took) = burst(&world, &node, "p", 232).await;
    let calls = since(&before, &world.cloud.counts());
    println!("232 pods by prefixes took {took:?} and {calls:?}");
    assert_eq!(addresses.iter().map(|a| a.ip).collect::<BTreeSet<_>>().len(), 232);
    assert!(calls["AssignPrivateIpAddresses"] <= 2, "{calls:?}");
    assert!(took < Duration::from_millis(1600), "EC2 takes 0.6 s: {took:?}");
    node.wait("a settled pool", View::is_settled).await;
    world.agrees(&node).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_burst_has_made_is_given_back() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let (addresses, _) = burst(&world, &node, "p", 20).await;
    node.wait("a settled pool", View::is_settled).await;
    for (index, address) in addresses.iter().enumerate() {
        world.pod_ends(address.ip);
        assert_eq!(node.del(&format!("p{index}")).await, std::slice::from_ref(address));
    }
    let view = node.wait("one ENI's worth", |view| view.pool.enis <= 2 && view.is_settled()).await;
    assert_eq!(view.pool.cooling, 0);
    world.agrees(&node).await;
}

/// In the VPC CNI each ADD and each DEL writes the whole file.
#[tokio::test(start_paused = true)]
async fn adds_at_once_share_a_checkpoint() {
    let mut world = World::new("m5.large");
    world.set("WARM_IP_TARGET", "26");
    let node = world.settled().await;
    let written = || node.counted("sluice_ipamd_checkpoint_duration_seconds_count");
    let before = written();
    let (_, took) = burst(&world, &node, "p", 26).await;
    let checkpoints = written() - before;
    println!("26 ADDs at once: {checkpoints} checkpoints");
    assert!((1..=3).contains(&checkpoints), "{checkpoints} for 26 ADDs");
    assert!(took < Duration::from_millis(100), "none of them waits for EC2: {took:?}");
    // One after the other, each has its own: no reply goes before it is recorded.
    let before = written();
    for index in 0..5 {
        assert_eq!(node.del(&format!("p{index}")).await.len(), 1);
    }
    assert!(written() - before >= 5);
}
