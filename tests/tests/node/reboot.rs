//! A node that restarts: everything of the product's that is left is what EC2 knows, and ENIs with addresses that
//! belonged to pods which are no more (DESIGN 11, "node reboot").

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use sluice_tests::privileged::privileged;
use sluice_vpcsim::deployment::{Binaries, Deployment, PLAIN_CONFLIST, Pod};
use sluice_vpcsim::probe;
use sluice_vpcsim::world::World;

const SCENE: &str = "
time_scale: 0.1
vpcs:
  main:
    cidrs: [10.0.0.0/16]
    internet_gateway: true
    subnets: {public: {cidr: 10.0.1.0/24, routes: {0.0.0.0/0: internet-gateway}}}
instances:
  node: {type: m5.large, subnet: main/public, public_address: true}
internet_hosts: [198.51.100.10]
";
const INTERNET: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 10), probe::ECHO_PORT);
const LIMIT: Duration = Duration::from_secs(30);
/// More than the primary ENI of an m5.large holds.
const PODS: usize = 12;

/// Installs the product, waits until pods may start, and starts them all at once.
async fn deploy(world: &World, boot: &str) -> (Deployment, Vec<Pod>) {
    let node = Arc::clone(world.node("node").unwrap());
    let binaries = Binaries::beside_this_program().unwrap();
    let product = Deployment::install(node, &binaries, PLAIN_CONFLIST, BTreeMap::new()).await.unwrap();
    product.start_ipamd().await.unwrap();
    product.ready(LIMIT).await.unwrap();
    let product = Arc::new(product);
    let mut adds = tokio::task::JoinSet::new();
    for n in 0..PODS {
        let (product, name) = (Arc::clone(&product), format!("{boot}-{n}"));
        adds.spawn(async move { product.add("default", &name).await });
    }
    let mut pods = Vec::new();
    while let Some(added) = adds.join_next().await {
        pods.push(added.unwrap().unwrap_or_else(|error| panic!("{error}\n{}", product.log_tail(40))));
    }
    (Arc::into_inner(product).unwrap(), pods)
}

/// Every pod reaches the Internet and every other pod, and no two have one address.
async fn all_reach_all(product: &Deployment, pods: &[Pod]) {
    let mut addresses = BTreeSet::new();
    for pod in pods {
        assert!(addresses.insert(pod.address), "two pods have {}", pod.address);
        let serve = SocketAddrV4::new(pod.address, probe::ECHO_PORT);
        let inside = product.node().pod(&pod.sandbox.netns).await.unwrap();
        inside.run(move || probe::serve_in_background(serve)).await.unwrap().unwrap();
    }
    for pod in pods {
        let others = pods.iter().filter(|other| other.address != pod.address);
        let targets: Vec<_> = others.map(|other| SocketAddrV4::new(other.address, probe::ECHO_PORT)).collect();
        let inside = product.node().pod(&pod.sandbox.netns).await.unwrap();
        let ask = move || async move {
            for target in targets {
                probe::tcp(None, target, LIMIT).await?;
            }
            probe::tcp(None, INTERNET, LIMIT).await
        };
        inside.run(ask).await.unwrap().unwrap_or_else(|error| panic!("{}: {error}", pod.address));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_a_node_that_restarts_serves_pods_from_what_ec2_knows() {
    if !privileged() {
        return;
    }
    let mut world = World::up(&SCENE.parse().unwrap()).await.unwrap();
    let (product, pods) = deploy(&world, "first").await;
    all_reach_all(&product, &pods).await;
    drop(product);

    world.reboot("node").await.unwrap();
    let (product, pods) = deploy(&world, "second").await;
    all_reach_all(&product, &pods).await;
    assert_eq!(world.dropped().await.unwrap(), [], "the VPC refused packets of a pod");
}
