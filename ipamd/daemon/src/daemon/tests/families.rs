//! Pods of IPv6, and of both families.

use sluice_vpcsim::model::state::Eni;
use sluice_vpcsim::model::{Fault, FaultEffect};

use super::*;

pub(super) const DUAL: &[(&str, &str)] = &[("ENABLE_IPv6", "true")];
pub(super) const V6: &[(&str, &str)] = &[("ENABLE_IPv4", "false"), ("ENABLE_IPv6", "true")];

fn world(settings: &[(&str, &str)]) -> World {
    let mut world = World::new("m5.large");
    settings.iter().for_each(|(name, value)| world.set(name, value));
    world
}

async fn add(world: &World, node: &Node, container: &str) -> Vec<PodAddress> {
    let addresses = match node.ask(Call::Add(add_request(container)), Duration::from_secs(60)).await {
        Reply::Done(Outcome::Add(reply)) => reply.addresses,
        other => panic!("{container}: {other:?}"),
    };
    addresses.iter().for_each(|address| world.pod_runs(container, address.ip));
    addresses
}

async fn del(world: &World, node: &Node, container: &str) -> Vec<PodAddress> {
    let addresses = node.del(container).await;
    addresses.iter().for_each(|address| world.pod_ends(address.ip));
    addresses
}

fn carries(eni: &Eni, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => eni.holds(address),
        IpAddr::V6(address) => eni.assigned_ipv6().any(|net| net.contains(&address)),
    }
}

fn calls(world: &World, action: &str) -> u64 {
    world.cloud.counts().get(action).copied().unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn ipv6_alone_takes_one_delegated_prefix_of_the_primary_eni_and_nothing_else() {
    let mut world = world(V6);
    let node = world.settled().await;
    let mut given = BTreeSet::new();
    for index in 0..100 {
        let addresses = add(&world, &node, &format!("p{index}")).await;
        assert_eq!(addresses.len(), 1);
        assert!(addresses[0].ip.is_ipv6() && given.insert(addresses[0].ip), "{addresses:?}");
        assert_eq!((addresses[0].device, addresses[0].table), (0, sluice_contract::node::TABLE_MAIN));
    }
    let (enis, loose) = world.cloud.owned();
    assert_eq!((enis.len(), loose.len()), (1, 0));
    assert_eq!((enis[0].ipv6_prefixes.len(), enis[0].secondaries.len(), enis[0].prefixes.len()), (1, 0, 0));
    assert!(given.iter().all(|address| carries(&enis[0], *address)));
    assert_eq!((calls(&world, "AssignIpv6Addresses"), calls(&world, "AssignPrivateIpAddresses")), (1, 0));
    let before = add(&world, &node, "again").await;
    node.kill().await;
    let node = world.start().await;
    assert_eq!(node.add("again").await.unwrap(), before[0]);
    assert_eq!(del(&world, &node, "again").await, before);
    for index in 0..100 {
        let addresses = add(&world, &node, &format!("q{index}")).await;
        assert_ne!(addresses[0].ip, before[0].ip, "it cools");
    }
    node.wait("a settled pool", View::is_settled).await;
    world.agrees(&node).await;
    let view = node.view().await;
    assert_eq!((view.pool.assigned, view.pool.cooling), (200, 1));
}

#[tokio::test(start_paused = true)]
async fn both_addresses_of_a_pod_are_of_one_eni() {
    let mut world = world(DUAL);
    let node = world.settled().await;
    let mut given = BTreeSet::new();
    for index in 0..27 {
        let addresses = add(&world, &node, &format!("p{index}")).await;
        let [v4, v6] = &addresses[..] else { panic!("{addresses:?}") };
        assert!(v4.ip.is_ipv4() && v6.ip.is_ipv6());
        assert_eq!((&v4.eni, v4.device, v4.table), (&v6.eni, v6.device, v6.table));
        assert!(given.insert(v4.ip) && given.insert(v6.ip));
        let (enis, _) = world.cloud.owned();
        let eni = enis.iter().find(|eni| eni.id == v4.eni).unwrap();
        assert!(carries(eni, v4.ip) && carries(eni, v6.ip), "{addresses:?}");
    }
    let (enis, _) = world.cloud.owned();
    assert_eq!(enis.len(), 3);
    assert!(enis.iter().all(|eni| eni.ipv6_prefixes.len() == 1));
    // The secondary ENIs were made with theirs.
    assert_eq!(calls(&world, "AssignIpv6Addresses"), 1);
    assert!(world.host.state().enis.values().all(|eni| eni.ipv6.is_some()));
    node.kill().await;
    let node = world.start().await;
    let held = node.ask(Call::Add(add_request("p20")), Duration::from_secs(1)).await;
    let released = del(&world, &node, "p20").await;
    assert_eq!(released.len(), 2);
    assert!(matches!(held, Reply::Done(Outcome::Add(reply)) if reply.addresses == released));
    node.wait("a settled pool", View::is_settled).await;
    world.agrees(&node).await;
}

#[tokio::test(start_paused = true)]
async fn an_address_counts_as_alive_until_both_are_gone_from_the_kernel() {
    let mut world = world(DUAL);
    let node = world.settled().await;
    let addresses = add(&world, &node, "a").await;
    // Half of the pod is gone, and its DEL has not come.
    world.pod_ends(addresses[0].ip);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(node.view().await.pool.assigned, 1);
    world.pod_ends(addresses[1].ip);
    let view = node.wait("a free address", |view| view.pool.assigned == 0).await;
    assert_eq!(view.pool.quarantined, 0);
}

#[tokio::test(start_paused = true)]
async fn without_a_checkpoint_the_kernel_tells_whose_both_addresses_are() {
    let mut world = world(DUAL);
    let node = world.settled().await;
    let addresses = add(&world, &node, "a").await;
    for address in &addresses {
        world.host.state().attachments.insert(address.ip, attachment("a"));
    }
    node.kill().await;
    std::fs::remove_file(world.config().checkpoint()).unwrap();
    let node = world.start().await;
    node.wait("a settled pool", |view| view.is_settled() && view.pool.assigned == 1).await;
    assert_eq!(del(&world, &node, "a").await, addresses);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_becomes_dual_stack_keeps_its_pods_and_gives_new_ones_both() {
    let mut world = world(&[]);
    let node = world.settled().await;
    let old = add(&world, &node, "old").await;
    for index in 0..12 {
        add(&world, &node, &format!("p{index}")).await;
    }
    node.wait("a settled pool", View::is_settled).await;
    node.stop().await;
    DUAL.iter().for_each(|(name, value)| world.set(name, value));
    let node = world.start().await;
    assert_eq!(add(&world, &node, "new").await.len(), 2);
    node.wait("a settled pool", View::is_settled).await;
    world.agrees(&node).await;
    assert_eq!(del(&world, &node, "old").await, old);
    let (enis, _) = world.cloud.owned();
    assert!(enis.iter().all(|eni| eni.ipv6_prefixes.len() == 1));
}

#[tokio::test(start_paused = true)]
async fn a_denied_delegation_is_told_to_who_waits_for_it() {
    let mut world = world(V6);
    let effect =
        FaultEffect::Error { code: "UnauthorizedOperation".into(), message: "not allowed".into(), status: None };
    let fault = Fault { action: Some("AssignIpv6Addresses".into()), effect, count: None, of_million: None };
    world.cloud.model().add_fault(fault).unwrap();
    let node = world.start().await;
    let refusal = node.add("a").await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::IamDenied, "{refusal:?}");
    assert!(refusal.hint.unwrap().contains("ec2:AssignIpv6Addresses"));
    world.cloud.model().clear_faults();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(add(&world, &node, "a").await.len(), 1);
}
