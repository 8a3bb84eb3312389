//! Defects of the AWS VPC CNI 1.23.1 as its code has them (docs/vpc-cni.md lists all), each lived through by the whole daemon.

use sluice_vpcsim::model::behaviour::Span;
use sluice_vpcsim::model::{Fault, FaultEffect};

use super::burst::burst;
use super::*;
use crate::cluster::{About, Notice};

const MINUTE: Duration = Duration::from_secs(60);

fn refused(code: &str) -> FaultEffect {
    FaultEffect::Error { code: code.into(), message: format!("{code} it is"), status: None }
}

fn fault(action: Option<&str>, effect: FaultEffect, count: Option<u32>) -> Fault {
    Fault { action: action.map(Into::into), effect, count, of_million: None }
}

/// (e), (g), (x): prefixes are given back, and one of the calls fails. The VPC CNI has forgotten by then what EC2 still has.
#[tokio::test(start_paused = true)]
async fn a_give_back_that_fails_halfway_leaves_nothing_out() {
    for effect in [refused("InternalError"), refused("RequestLimitExceeded"), FaultEffect::TimeoutAfterEffect] {
        let mut world = World::with(Settings::aws(), "m5.large", "10.0.0.0/20");
        world.set("ENABLE_PREFIX_DELEGATION", "true");
        let node = world.settled().await;
        // More than one ENI holds.
        let (pods, _) = burst(&world, &node, "p", 200).await;
        let view = node.wait("a settled pool", View::is_settled).await;
        assert!(view.enis.len() > 1 && view.pool.prefixes > 9, "{:?}", view.pool);
        world.cloud.model().add_fault(fault(Some("UnassignPrivateIpAddresses"), effect.clone(), Some(1))).unwrap();
        for (index, pod) in pods.iter().enumerate() {
            world.pod_ends(pod.ip);
            assert_eq!(node.del(&format!("p{index}")).await, std::slice::from_ref(pod));
        }
        let blocks = |view: &View| view.enis.values().map(|eni| eni.blocks.len()).sum::<usize>();
        let view = node.wait("one prefix", |view| view.is_settled() && blocks(view) == 1).await;
        assert_eq!((view.pool.total, view.pool.free, view.pool.cooling), (16, 16, 0), "after {effect:?}");
        world.agrees(&node).await;
        node.stop().await;
    }
}

/// (l): the link of an ENI that is attached shows late. The VPC CNI leaves such an ENI to its next reconciliation.
#[tokio::test(start_paused = true)]
async fn an_eni_whose_link_is_late_is_used_as_soon_as_it_shows() {
    let settings = Settings { link: Span::from_millis(70_000, 70_000), ..Settings::aws() };
    let mut world = World::with(settings, "m5.large", "10.0.1.0/24");
    let node = world.settled().await;
    burst(&world, &node, "p", 9).await;
    let begun = Instant::now();
    let late = node.add_within("late", Duration::from_secs(200)).await.unwrap();
    println!("served {:?} after it asked, by device {}", begun.elapsed(), late.device);
    assert!(late.device > 0 && begun.elapsed() > MINUTE, "{late:?}");
    world.pod_runs("late", late.ip);
    node.wait("a settled pool", View::is_settled).await;
    world.agrees(&node).await;
}

/// (p): EC2 throttles every call of a node that boots. The VPC CNI ends, and calls anew as it is started again.
#[tokio::test(start_paused = true)]
async fn a_node_that_boots_while_ec2_throttles_waits_and_calls_seldom() {
    let mut world = World::new("m5.large");
    world.cloud.model().add_fault(fault(None, refused("RequestLimitExceeded"), None)).unwrap();
    let node = world.start().await;
    let mut calls = Vec::new();
    for _ in 0..10 {
        let before = world.cloud.model().log().total();
        tokio::time::sleep(MINUTE).await;
        calls.push(world.cloud.model().log().total() - before);
    }
    println!("calls in each of ten minutes: {calls:?}");
    assert!(!node.task.is_finished());
    assert!(calls.iter().sum::<u64>() <= 120, "{calls:?}");
    node.add_within("early", Duration::from_secs(20)).await.unwrap_err();
    world.cloud.model().clear_faults();
    // The longest pause is shorter.
    tokio::time::sleep(MINUTE).await;
    burst(&world, &node, "p", 9).await;
    node.wait("a settled pool", View::is_settled).await;
    world.agrees(&node).await;
}

/// (q): with prefixes a further network card holds one that no pod uses. The VPC CNI gives it back and takes another every 30 s.
#[tokio::test(start_paused = true)]
async fn an_idle_network_card_keeps_its_prefix() {
    let mut world = World::with(Settings::aws(), "p4d.24xlarge", "10.0.0.0/20");
    world.set("ENABLE_MULTI_NIC", "true");
    world.set("ENABLE_PREFIX_DELEGATION", "true");
    let node = world.settled().await;
    tokio::time::sleep(5 * MINUTE).await;
    let view = node.wait("a settled pool", View::is_settled).await;
    for card in 0..4 {
        let on_card = view.enis.values().filter(|eni| eni.card == card);
        assert_eq!(on_card.map(|eni| eni.blocks.len()).sum::<usize>(), 1, "card {card} has one prefix");
    }
    let before = world.cloud.counts();
    tokio::time::sleep(60 * MINUTE).await;
    assert_eq!(world.cloud.counts(), before);
    world.agrees(&node).await;
}

/// (t): IAM denies that an ENI is detached. The VPC CNI's event is never made, since it looks at another error.
#[tokio::test(start_paused = true)]
async fn a_denied_detach_is_told_with_what_is_missing() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let (pods, _) = burst(&world, &node, "p", 15).await;
    node.wait("a settled pool", View::is_settled).await;
    let denied = fault(Some("DetachNetworkInterface"), refused("UnauthorizedOperation"), None);
    world.cloud.model().add_fault(denied).unwrap();
    for (index, pod) in pods.iter().enumerate() {
        world.pod_ends(pod.ip);
        node.del(&format!("p{index}")).await;
    }
    world.reported();
    tokio::time::sleep(10 * MINUTE).await;
    let told: Vec<String> = world
        .reported()
        .into_iter()
        .filter_map(|report| match report {
            Report::Notice(Notice { about: About::Node, reason: "MissingIAMPermissions", message, .. }) => {
                Some(message)
            }
            _ => None,
        })
        .collect();
    assert_eq!(told.len(), 1, "once: {told:?}");
    assert!(told[0].contains("ec2:DetachNetworkInterface"), "{told:?}");
    world.cloud.model().clear_faults();
    node.wait("one ENI's worth", |view| view.pool.enis <= 2 && view.is_settled()).await;
    world.agrees(&node).await;
}
