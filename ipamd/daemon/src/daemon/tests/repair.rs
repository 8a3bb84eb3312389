//! Others change the host's network.

use super::*;
use crate::cluster::{About, Notice, Report, Weight};

#[tokio::test(start_paused = true)]
async fn a_repair_follows_each_change_at_most_twice_a_second_and_knows_the_pods() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let old = node.add("old").await.unwrap();
    world.pod_runs("old", old.ip);
    tokio::time::sleep(Duration::from_secs(200)).await;
    let young = node.add("young").await.unwrap();
    world.pod_runs("young", young.ip);
    let looked = world.host.state().repaired.len();
    assert_eq!(looked, 0, "nothing has changed");

    let begun = Instant::now();
    for _ in 0..50 {
        world.host.disturbed.notify_one();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let repaired = world.host.state().repaired.clone();
    let told = world.reported().into_iter().filter(|report| {
        matches!(report, Report::Notice(Notice { about: About::Node, weight: Weight::Warning, reason: "NetworkRepaired", message })
            if message.contains("rule add (missing)"))
    });
    assert_eq!(told.count(), repaired.len());
    let (first, pods) = &repaired[0];
    assert!(*first - begun <= Duration::from_millis(10), "the first one at once: {:?}", *first - begun);
    assert!((9..=12).contains(&repaired.len()), "{repaired:?}");
    assert!(repaired.is_sorted_by(|(one, _), (next, _)| *next - *one >= Duration::from_millis(500)));
    let seen: Vec<_> = pods.iter().map(|pod| (pod.addresses.clone(), pod.table, pod.settled)).collect();
    let mut expected = vec![(vec![old.ip], old.table, true), (vec![young.ip], young.table, false)];
    expected.sort_by_key(|(ips, ..)| (ips[0] != pods[0].addresses[0], ips.clone()));
    assert_eq!(seen, expected);
    assert_eq!(pods.iter().map(|pod| &pod.dev).filter(|dev| **dev == host_ifname("old")).count(), 1);
    world.pod_ends(old.ip);
    world.pod_ends(young.ip);
    node.del("old").await;
    node.del("young").await;
    world.host.disturbed.notify_one();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.host.state().repaired.last().unwrap().1, [], "the ledger has no pod any more");
    world.agrees(&node).await;
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_mended_is_tried_again_without_another_change() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    world.host.state().failing_repairs = 2;
    world.host.disturbed.notify_one();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let repaired = world.host.state().repaired.clone();
    assert_eq!(repaired.len(), 3, "{repaired:?}");
    assert!(repaired.is_sorted_by(|(one, _), (next, _)| *next - *one >= Duration::from_millis(500)));
    // Then it is at rest until more is changed.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.host.state().repaired.len(), 3);
    world.host.disturbed.notify_one();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.host.state().repaired.len(), 4);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_mended_holds_up_nothing_that_is_heard_of_later() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    // Each repair mends what it can, and one thing stays as it is.
    world.host.state().failing_repairs = u32::MAX;
    world.host.state().echoes = true;
    world.host.disturbed.notify_one();
    for change in ["one", "another", "one", "a last"] {
        // Between two tries there is half a minute by now.
        tokio::time::sleep(Duration::from_secs(100)).await;
        let changed = Instant::now();
        world.host.state().change = Some(change.to_owned());
        world.host.disturbed.notify_one();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let repaired = world.host.state().repaired.clone();
        assert!(repaired.iter().any(|(at, _)| *at >= changed), "the later change: {repaired:?}");
        assert!(repaired.is_sorted_by(|(one, _), (next, _)| *next - *one >= Duration::from_millis(500)));
    }
    // By itself it is tried seldom, and until it has been mended.
    let before = world.host.state().repaired.len();
    tokio::time::sleep(Duration::from_secs(300)).await;
    let tried = world.host.state().repaired.len() - before;
    assert!((5..=100).contains(&tried), "{tried}");
    world.host.state().failing_repairs = 0;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let mended = world.host.state().repaired.len();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.host.state().repaired.len(), mended);
    node.stop().await;
}
