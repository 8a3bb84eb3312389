//! What requests are answered with, and what becomes of addresses that nobody hears of.

use sluice_contract::cni::GcAttachment;
use sluice_contract::rpc::{CheckRequest, GcRequest};

use super::*;

#[tokio::test(start_paused = true)]
async fn s03_a_fresh_node_fills_its_pool_and_then_calls_nobody() {
    let mut world = World::new("m5.large");
    let node = world.start().await;
    let Reply::Refused(refusal) = node.ask(Call::Status, Duration::from_secs(1)).await else { panic!("ready at once") };
    assert_eq!(refusal.code, RefusalCode::NotReady);
    let view = node.wait("a settled pool", |view| view.ready && view.is_settled()).await;
    assert_eq!((view.pool.free, view.pool.assigned), (9, 0), "one ENI's worth of addresses is warm");
    assert!(
        matches!(node.ask(Call::Status, Duration::from_secs(1)).await, Reply::Done(Outcome::Status(s)) if s.free == 9)
    );
    let network = world.host.state().node.clone().unwrap();
    assert_eq!(network.vpc_cidrs, ["10.0.0.0/16".parse().unwrap()]);
    world.agrees(&node).await;
    let before = world.cloud.counts();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.cloud.counts(), before, "a steady state makes no call of EC2");
}

#[tokio::test(start_paused = true)]
async fn an_add_is_idempotent_and_a_del_too() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let first = node.add("a").await.unwrap();
    assert_eq!(first.table, 254);
    assert_eq!(node.add("a").await.unwrap(), first);
    let check = Call::Check(CheckRequest { attachment: attachment("a") });
    assert!(
        matches!(node.ask(check, Duration::from_secs(1)).await, Reply::Done(Outcome::Add(r)) if r.addresses == [first.clone()])
    );
    assert_eq!(node.del("a").await, std::slice::from_ref(&first));
    assert_eq!(node.del("a").await, []);
    let check = Call::Check(CheckRequest { attachment: attachment("a") });
    assert!(
        matches!(node.ask(check, Duration::from_secs(1)).await, Reply::Refused(r) if r.code == RefusalCode::UnknownAttachment)
    );
    assert_ne!(node.add("b").await.unwrap().ip, first.ip, "the address cools");
    assert_eq!(node.view().await.pool.cooling, 1);
}

#[tokio::test(start_paused = true)]
async fn an_add_before_the_node_is_known_waits() {
    let mut world = World::new("m5.large");
    world.cloud.set_down(true);
    let node = world.start().await;
    let handle = node.handle.clone();
    let (_, reply) = handle.ask(Call::Add(add_request("a")), Instant::now() + Duration::from_secs(60)).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    world.cloud.set_down(false);
    assert!(matches!(reply.await.unwrap().reply, Reply::Done(Outcome::Add(_))));
}

#[tokio::test(start_paused = true)]
async fn a_del_cancels_the_waiting_add_of_the_same_attachment() {
    let mut world = World::new("m5.large");
    world.cloud.set_down(true);
    let node = world.start().await;
    let (_, reply) = node.handle.ask(Call::Add(add_request("a")), Instant::now() + Duration::from_secs(60)).await;
    assert_eq!(node.del("a").await, []);
    let Reply::Refused(refusal) = reply.await.unwrap().reply else { panic!("served") };
    assert_eq!(refusal.code, RefusalCode::Cancelled);
    assert_eq!(node.view().await.pool.waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_whose_socket_closes_leaves_the_queue() {
    let mut world = World::new("m5.large");
    world.cloud.set_down(true);
    let node = world.start().await;
    let (token, reply) = node.handle.ask(Call::Add(add_request("a")), Instant::now() + Duration::from_secs(60)).await;
    assert_eq!(node.view().await.pool.waiting, 1);
    node.handle.send(crate::inbox::Input::Withdrawn(token)).await;
    drop(reply);
    assert_eq!(node.view().await.pool.waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_nobody_heard_of_goes_back_uncooled() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    // The socket closed before the loop answered.
    let (_, reply) = node.handle.ask(Call::Add(add_request("a")), Instant::now() + Duration::from_secs(60)).await;
    drop(reply);
    let view = node.wait("the address back", |view| view.pool.assigned == 0 && view.is_settled()).await;
    assert_eq!(view.pool.cooling, 0);
    // The reply could not be written.
    let (token, reply) = node.handle.ask(Call::Add(add_request("b")), Instant::now() + Duration::from_secs(60)).await;
    let answer = reply.await.unwrap();
    let granted = answer.granted.unwrap();
    node.handle.send(crate::inbox::Input::Undelivered(token, granted)).await;
    assert_eq!(node.view().await.pool.assigned, 0);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_somebody_else_asked_for_again_stays() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let (token, reply) = node.handle.ask(Call::Add(add_request("a")), Instant::now() + Duration::from_secs(60)).await;
    let granted = reply.await.unwrap().granted.unwrap();
    let again = node.add("a").await.unwrap();
    node.handle.send(crate::inbox::Input::Undelivered(token, granted)).await;
    assert_eq!(node.add("a").await.unwrap(), again);
    assert_eq!(node.view().await.pool.assigned, 1);
}

#[tokio::test(start_paused = true)]
async fn gc_takes_back_what_is_in_no_list() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    for container in ["a", "b", "c"] {
        node.add(container).await.unwrap();
    }
    let network = attachment("a").network;
    let b = attachment("b");
    let valid = vec![GcAttachment::new(b.container, b.ifname)];
    let Reply::Done(Outcome::Gc(reply)) =
        node.ask(Call::Gc(GcRequest { network, valid }), Duration::from_secs(1)).await
    else {
        panic!("refused")
    };
    let released: Vec<_> =
        reply.released.iter().map(|(a, addresses)| (a.container.to_string(), addresses.len())).collect();
    assert_eq!(released, [("a".to_owned(), 1), ("c".to_owned(), 1)]);
    assert_eq!(node.view().await.pool.assigned, 1);
}

#[tokio::test(start_paused = true)]
async fn tombstones_are_drained_and_a_later_add_is_not_hit() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let (a, b) = (node.add("a").await.unwrap(), node.add("b").await.unwrap());
    let dir = world.config().tombstones();
    std::fs::create_dir_all(&dir).unwrap();
    let leave = |container: &str| {
        let request = DelRequest { attachment: attachment(container), pod: PodRef::default(), add_failed: false };
        let name = sluice_contract::rpc::tombstone::file_name(&request.attachment);
        std::fs::write(dir.join(name), sluice_contract::rpc::tombstone::to_json(&request).unwrap()).unwrap();
    };
    leave("a");
    leave("b");
    world.host.state().rules.extend([a.ip, b.ip]);
    // The DEL of b came before this ADD: the old address is taken back first, and the new one stays.
    let again = node.add("b").await.unwrap();
    assert_ne!(again.ip, b.ip);
    let view = node.wait("drained tombstones", |view| view.pool.cooling == 0 && view.is_settled()).await;
    assert_eq!(view.pool.assigned, 1);
    assert_eq!(node.add("b").await.unwrap(), again);
    assert_ne!(node.add("a").await.unwrap().ip, a.ip);
    let left = std::fs::read_dir(&dir).unwrap().filter(|e| e.as_ref().unwrap().file_name() != ".lock").count();
    assert_eq!(left, 0);
    assert!(world.host.state().rules.is_empty(), "the rules of the pods are removed");
}

#[tokio::test(start_paused = true)]
async fn an_address_is_not_given_before_the_rules_of_its_pod_are_gone() {
    let mut world = World::new("m5.large");
    world.set("IP_COOLDOWN_PERIOD", "0");
    let node = world.settled().await;
    let a = node.add("a").await.unwrap();
    world.host.state().rules.insert(a.ip);
    world.host.state().broken = true;
    let request = DelRequest { attachment: attachment("a"), pod: PodRef::default(), add_failed: false };
    let dir = world.config().tombstones();
    std::fs::create_dir_all(&dir).unwrap();
    let name = sluice_contract::rpc::tombstone::file_name(&request.attachment);
    std::fs::write(dir.join(name), sluice_contract::rpc::tombstone::to_json(&request).unwrap()).unwrap();
    // The next pod of the attachment must not have it, and neither may others.
    assert_eq!(node.add("a").await.unwrap_err().code, RefusalCode::NotReady);
    for index in 0..9 {
        assert_ne!(node.add(&format!("p{index}")).await.unwrap().ip, a.ip);
    }
    world.host.state().broken = false;
    node.wait("the address back", |view| view.pool.assigned == 9).await;
    assert!(world.host.state().rules.is_empty());
    assert_eq!(node.view().await.pool.violations, 0);
}

#[tokio::test(start_paused = true)]
async fn rules_that_no_pod_has_are_removed_and_their_address_comes_back() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let a = node.add("a").await.unwrap();
    // Its plugin has said DEL, and has not removed the rules.
    world.host.state().rules.insert(a.ip);
    node.del("a").await;
    node.wait("quarantine", |view| view.pool.quarantined == 1).await;
    let view = node.wait("the address back", |view| view.pool.quarantined == 0 && view.is_settled()).await;
    assert_eq!(view.pool.violations, 0);
    assert!(world.host.state().rules.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_a_pod_without_a_del_has_left_goes_and_its_address_comes_back() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let (a, b) = (node.add("a").await.unwrap(), node.add("b").await.unwrap());
    for (container, pod) in [("a", &a), ("b", &b)] {
        world.pod_runs(container, pod.ip);
        world.host.state().rules.insert(pod.ip);
    }
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(world.host.state().rules.len(), 2, "what lives stays");
    // The interface goes with the sandbox; the DEL has gone with the runtime.
    world.pod_ends(a.ip);
    let view = node.wait("the address back", |view| view.pool.assigned == 1 && view.is_settled()).await;
    assert_eq!((view.pool.violations, view.pool.quarantined), (0, 0));
    assert_eq!(world.host.state().rules, [b.ip].into());
    world.agrees(&node).await;
}

#[tokio::test(start_paused = true)]
async fn litter_is_counted_when_it_is_gone() {
    let rules = |node: &Node| node.counted("sluice_ipamd_litter_total{kind=\"rule\"}");
    let links = |node: &Node| node.counted("sluice_ipamd_litter_total{kind=\"link\"}");
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let a = node.add("a").await.unwrap();
    world.host.state().rules.insert(a.ip);
    world.host.state().marked.insert(host_ifname("x"), attachment("x"));
    world.host.state().broken = true;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!((rules(&node), links(&node)), (0, 1), "netlink does not take rules away");
    world.host.state().broken = false;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(world.host.state().rules.is_empty());
    assert!(world.host.state().marked.is_empty());
    assert_eq!((rules(&node), links(&node)), (1, 1));
    // What has gone by itself meanwhile was not removed.
    world.host.state().rules.insert(a.ip);
    world.host.state().rules_go = true;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(world.host.state().rules.is_empty());
    assert_eq!((rules(&node), links(&node)), (1, 1));
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_recorded_is_refused_and_taken_back() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let dir = world.dir.path().to_owned();
    std::fs::remove_dir_all(&dir).unwrap();
    let refusal = node.add("a").await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Storage);
    assert_eq!(node.view().await.pool.assigned, 0);
    std::fs::create_dir_all(&dir).unwrap();
    node.add("a").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stop_refuses_who_waits_and_leaves_a_checkpoint() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let held = node.add("a").await.unwrap();
    world.cloud.set_down(true);
    let mut waiting = Vec::new();
    for index in 0..12 {
        let call = Call::Add(add_request(&format!("w{index}")));
        waiting.push(node.handle.ask(call, Instant::now() + Duration::from_secs(60)).await.1);
    }
    node.view().await;
    node.stop().await;
    let mut refused = 0;
    for reply in waiting {
        if let Reply::Refused(refusal) = reply.await.unwrap().reply {
            assert_eq!(refusal.code, RefusalCode::NotReady);
            refused += 1;
        }
    }
    assert_eq!(refused, 4, "8 of the 9 warm addresses were free");
    let node = world.start().await;
    assert_eq!(node.add("a").await.unwrap(), held, "served without EC2");
}
