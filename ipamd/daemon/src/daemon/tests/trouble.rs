//! EC2 throttles, denies, hangs; subnets run dry; checkpoints are damaged.

use sluice_vpcsim::model::{Fault, FaultEffect};

use super::burst::burst;
use super::*;
use crate::cluster::{About, Notice};

fn fault(action: Option<&str>, code: &str) -> Fault {
    let effect = FaultEffect::Error { code: code.into(), message: format!("{code} it is"), status: None };
    Fault { action: action.map(Into::into), effect, count: None, of_million: None }
}

#[tokio::test(start_paused = true)]
async fn ten_minutes_of_throttling_end_nothing() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    world.cloud.model().add_fault(fault(None, "RequestLimitExceeded")).unwrap();
    let before = world.cloud.model().log().total();
    let (addresses, took) = burst(&world, &node, "warm", 9).await;
    assert!(took < Duration::from_millis(50), "what there is, is served: {took:?}");
    let refusal = node.add_within("cold", Duration::from_secs(30)).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Throttled, "{refusal:?}");
    world.pod_ends(addresses[0].ip);
    node.del("warm0").await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let calls = world.cloud.model().log().total() - before;
    println!("{calls} calls in ten minutes of throttling");
    assert!(calls <= 80, "a throttled EC2 is not hammered: {calls} calls");
    world.cloud.model().clear_faults();
    let (_, took) = burst(&world, &node, "late", 10).await;
    println!("served {took:?} after the throttling had ended");
    node.wait("a settled pool", View::is_settled).await;
    world.agrees(&node).await;
}

#[tokio::test(start_paused = true)]
async fn calls_without_answer_are_looked_into_and_leave_nothing_behind() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    for action in ["CreateNetworkInterface", "AttachNetworkInterface", "AssignPrivateIpAddresses"] {
        let effect = FaultEffect::TimeoutAfterEffect;
        let fault = Fault { action: Some(action.into()), effect, count: Some(1), of_million: None };
        world.cloud.model().add_fault(fault).unwrap();
    }
    let (_, took) = burst(&world, &node, "p", 20).await;
    println!("20 pods took {took:?} with three calls unanswered");
    node.wait("a settled pool", View::is_settled).await;
    world.agrees(&node).await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_in_the_cause() {
    for (code, expected) in [
        ("UnauthorizedOperation", RefusalCode::IamDenied),
        ("InternalError", RefusalCode::Ec2Unavailable),
        ("RequestLimitExceeded", RefusalCode::Throttled),
    ] {
        let mut world = World::new("m5.large");
        let node = world.settled().await;
        world.cloud.model().add_fault(fault(None, code)).unwrap();
        burst(&world, &node, "warm", 9).await;
        let begun = Instant::now();
        let refusal = node.add_within("cold", Duration::from_secs(20)).await.unwrap_err();
        assert_eq!(refusal.code, expected, "{refusal:?}");
        assert!(begun.elapsed() <= Duration::from_secs(20), "{:?}", begun.elapsed());
        assert!(!refusal.message.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_account_does_not_allow_is_told_with_what_to_mend() {
    for (code, mend) in [
        ("NetworkInterfaceLimitExceeded", "raise the account's quota of network interfaces"),
        ("InvalidSecurityGroupID.NotFound", "see the security groups of the primary ENI"),
        (
            "SecurityGroupsPerInterfaceLimitExceeded",
            "raise the account's quota of security groups per network interface",
        ),
    ] {
        let mut world = World::new("m5.large");
        let node = world.settled().await;
        world.cloud.model().add_fault(fault(Some("CreateNetworkInterface"), code)).unwrap();
        burst(&world, &node, "warm", 9).await;
        let refusal = node.add_within("cold", Duration::from_secs(20)).await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Ec2Unavailable, "{refusal:?}");
        assert!(refusal.message.contains(code) && refusal.hint.as_ref().unwrap().contains(mend), "{refusal:?}");
        tokio::time::sleep(Duration::from_secs(180)).await;
        let of_node = |report: &Report| match report {
            Report::Notice(Notice { about: About::Node, reason: "Ec2Unavailable", message, .. }) => {
                message.contains(mend)
            }
            _ => false,
        };
        let reported = world.reported();
        assert_eq!(reported.iter().filter(|report| of_node(report)).count(), 1, "{reported:?}");
        // It goes on by itself once it is put right.
        world.cloud.model().clear_faults();
        node.wait("another ENI", |view| view.pool.free > 0 && view.is_settled()).await;
        node.add("later").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn one_pod_more_than_the_instance_can_hold_is_told_so() {
    let mut world = World::new("t3.small");
    let node = world.settled().await;
    burst(&world, &node, "p", 9).await;
    let refusal = node.add("one-more").await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::EniLimit, "{refusal:?}");
    world.agrees(&node).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_subnet_is_told_so() {
    // 16 addresses less EC2's five, the node's own and those of the ENIs.
    let mut world = World::with(Settings::aws(), "m5.large", "10.0.1.0/28");
    let node = world.start().await;
    node.wait("some addresses", |view| view.ready && view.pool.free > 0 && view.under_way.is_empty()).await;
    let free = usize::try_from(node.view().await.pool.free).unwrap();
    burst(&world, &node, "p", free).await;
    let refusal = loop {
        match node.add_within(&format!("more{}", Instant::now().elapsed().as_nanos()), Duration::from_secs(30)).await {
            Ok(address) => world.pod_runs("more", address.ip),
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal.code, RefusalCode::SubnetExhausted, "{refusal:?}");
}

#[tokio::test(start_paused = true)]
async fn whose_an_address_is_survives_the_loss_of_the_checkpoint() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let (addresses, _) = burst(&world, &node, "p", 12).await;
    for (index, address) in addresses.iter().enumerate() {
        world.host.state().attachments.insert(address.ip, attachment(&format!("p{index}")));
    }
    node.kill().await;
    std::fs::remove_file(world.config().checkpoint()).unwrap();
    let node = world.start().await;
    // The DEL of one comes before its ENI is known.
    world.pod_ends(addresses[0].ip);
    assert_eq!(node.del("p0").await, []);
    let view = node.wait("a settled pool", View::is_settled).await;
    assert_eq!(view.pool.assigned, 11);
    assert_eq!(node.add("p5").await.unwrap(), addresses[5]);
    assert_eq!(node.del("p7").await, [addresses[7].clone()]);
    world.pod_ends(addresses[7].ip);
    node.wait("no quarantine", |view| view.pool.quarantined == 0 && view.pool.assigned == 10).await;
    world.agrees(&node).await;
}

#[tokio::test(start_paused = true)]
async fn a_corrupt_checkpoint_is_put_aside_and_pods_keep_their_addresses() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let (addresses, _) = burst(&world, &node, "p", 12).await;
    node.kill().await;
    let path = world.config().checkpoint();
    let document = std::fs::read(&path).unwrap();
    std::fs::write(&path, &document[..document.len() / 2]).unwrap();
    let node = world.settled().await;
    let aside: Vec<_> = std::fs::read_dir(world.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("ipam.json.corrupt-"))
        .collect();
    assert_eq!(aside.len(), 1);
    let view = node.view().await;
    assert_eq!(view.pool.quarantined, 12, "whose they are is forgotten; that they live is seen");
    let given = node.add("new").await.unwrap();
    assert!(!addresses.iter().any(|address| address.ip == given.ip));
    // The pods go; their addresses leave quarantine.
    world.host.state().pods.clear();
    node.wait("no quarantine", |view| view.pool.quarantined == 0 && view.pool.cooling == 0).await;
}
