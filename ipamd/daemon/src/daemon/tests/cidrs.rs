//! The VPC gets another CIDR while the daemon runs.

use ipnet::Ipv4Net;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_cidr_that_the_vpc_gets_is_the_vpcs_within_two_minutes_and_no_pod_notices() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let pod = node.add("old").await.unwrap();
    world.pod_runs("old", pod.ip);
    node.wait("a settled pool", View::is_settled).await;
    let cidrs = |world: &World| world.host.state().node.clone().unwrap().vpc_cidrs;
    let [first, second]: [Ipv4Net; 2] = ["10.0.0.0/16", "100.64.0.0/16"].map(|cidr| cidr.parse().unwrap());
    assert_eq!(cidrs(&world), [first]);
    let (calls, changes) = (world.cloud.counts(), world.host.state().changes);

    let vpc = world.cloud.vpc();
    world.cloud.model().add_vpc_cidr(&vpc, second).unwrap();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(cidrs(&world), [first, second]);
    assert_eq!(world.host.state().changes, changes + 1, "the node's network is set up once more, and no ENI's is");
    assert_eq!(world.cloud.counts(), calls, "the metadata service tells of it: EC2 is not asked");
    assert_eq!(node.view().await.pool.assigned, 1);

    // What it had is what it has when nobody tells it otherwise.
    world.cloud.set_down(true);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(cidrs(&world), [first, second]);
    world.cloud.set_down(false);
    node.wait("a settled pool", View::is_settled).await;
    world.agrees(&node).await;
    // The next daemon has both from the start.
    node.kill().await;
    world.host.state().node = None;
    let node = world.settled().await;
    assert_eq!(cidrs(&world), [first, second]);
    world.agrees(&node).await;
}
