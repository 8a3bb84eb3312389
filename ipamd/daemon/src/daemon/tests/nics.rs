//! Pods with an interface on each network card.

use sluice_contract::cni::GcAttachment;
use sluice_contract::node::{host_veth, nic, route_table};
use sluice_contract::rpc::{CheckRequest, GcRequest};
use sluice_ipamd_core::queue::Token;

use super::*;
use crate::inbox::{Answer, Input};

const FIVE: Duration = Duration::from_secs(5);

/// A node with four network cards, of which each further one keeps one address warm.
fn world() -> World {
    let mut world = World::new("p4d.24xlarge");
    world.set("ENABLE_MULTI_NIC", "true");
    world.set("WARM_IP_TARGET", "3");
    world
}

fn request(container: &str) -> Call {
    Call::Add(AddRequest { every_card: true, ..add_request(container) })
}

fn addresses(reply: Reply) -> Result<Vec<PodAddress>, Refusal> {
    match reply {
        Reply::Done(Outcome::Add(AddReply { addresses, .. })) => Ok(addresses),
        Reply::Refused(refusal) => Err(refusal),
        other => panic!("{other:?}"),
    }
}

async fn add(node: &Node, container: &str, deadline: Duration) -> Result<Vec<PodAddress>, Refusal> {
    addresses(node.ask(request(container), deadline).await)
}

async fn check(node: &Node, container: &str) -> Result<Vec<PodAddress>, Refusal> {
    addresses(node.ask(Call::Check(CheckRequest { attachment: attachment(container) }), FIVE).await)
}

/// An ADD that is not waited for. It has what is to be had at once.
async fn begin(node: &Node, container: &str, deadline: Duration) -> (Token, oneshot::Receiver<Answer>) {
    let begun = node.handle.ask(request(container), Instant::now() + deadline).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    begun
}

/// How many addresses of a card are so.
fn count(view: &View, card: u32, state: &str) -> usize {
    let enis = view.enis.values().filter(|eni| eni.card == card);
    let addresses = enis.flat_map(|eni| eni.blocks.values()).flat_map(BTreeMap::values);
    addresses.filter(|address| address.state == state).count()
}

fn is_warm(view: &View) -> bool {
    view.is_settled() && (1..4).all(|card| count(view, card, "free") == 1)
}

#[tokio::test(start_paused = true)]
async fn a_pod_has_an_address_of_each_card_until_its_del() {
    let mut world = world();
    let node = world.settled().await;
    let view = node.wait("one warm address a card", is_warm).await;
    assert_eq!((view.node.as_ref().unwrap().cards.clone(), count(&view, 0, "free")), (vec![0, 1, 2, 3], 3));
    let pod = add(&node, "a", FIVE).await.unwrap();
    let cards: Vec<_> = pod.iter().map(|address| (address.interface, address.card)).collect();
    assert_eq!(cards, [(0, 0), (1, 1), (2, 2), (3, 3)]);
    for address in &pod {
        assert_eq!(Some(address.table), route_table(address.card, address.device));
    }
    // Each by a host interface of its own.
    let view = node.wait("warm cards again", is_warm).await;
    let known = view.enis.values().flat_map(|eni| eni.blocks.values()).flatten();
    let known: BTreeMap<IpAddr, IfName> =
        known.filter_map(|(address, known)| Some((*address, known.host_ifname.clone()?))).collect();
    let of = add_request("a").pod;
    for address in &pod[1..] {
        assert_eq!(known[&address.ip], host_veth("eni", &of, address.interface).unwrap());
    }
    assert_eq!(known[&pod[0].ip], host_ifname("a"));

    assert_eq!(add(&node, "a", FIVE).await.unwrap(), pod, "the same again");
    assert_eq!(node.add("a").await.unwrap(), pod[0], "one that asks for one interface is told of one");
    assert_eq!(check(&node, "a").await.unwrap(), pod);
    world.agrees(&node).await;
    assert_eq!(node.del("a").await, pod);
    let view = node.view().await;
    assert_eq!((view.pool.assigned, view.pool.cooling), (0, 4));
    assert_eq!(node.del("a").await, []);
    assert_eq!(check(&node, "a").await.unwrap_err().code, RefusalCode::UnknownAttachment);
    node.wait("warm cards", is_warm).await;
    world.agrees(&node).await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_one_interface_has_it_on_the_first_card() {
    let mut world = world();
    let node = world.settled().await;
    node.wait("warm cards", is_warm).await;
    for index in 0..12 {
        let pod = node.add(&format!("p{index}")).await.unwrap();
        assert_eq!((pod.interface, pod.card), (0, 0));
    }
    assert_eq!(node.wait("a settled pool", is_warm).await.pool.assigned, 12);
    node.stop().await;
    // Without the setting nobody has more than one, whoever asks.
    world.set("ENABLE_MULTI_NIC", "false");
    let node = world.start().await;
    assert_eq!(add(&node, "x", Duration::from_secs(60)).await.unwrap().len(), 1);
    assert_eq!(node.view().await.node.unwrap().cards, [0]);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn without_an_address_of_one_card_a_pod_has_none_of_the_others() {
    let mut world = World::with(Settings::aws(), "c6in.32xlarge", "10.0.1.0/28");
    world.set("ENABLE_MULTI_NIC", "true");
    world.set("WARM_IP_TARGET", "6");
    let node = world.settled().await;
    // Eleven addresses: two ENIs' own, seven of the first card and two of the second.
    for container in ["a", "b"] {
        assert_eq!(add(&node, container, Duration::from_secs(60)).await.unwrap().len(), 2);
        node.wait("a settled pool", View::is_settled).await;
    }
    let before = node.view().await;
    assert!(count(&before, 0, "free") > 0 && count(&before, 1, "free") == 0, "{before:#?}");
    let refusal = add(&node, "c", Duration::from_secs(30)).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::SubnetExhausted);
    assert!(refusal.message.ends_with("has none of card 1"), "{refusal:?}");
    let view = node.view().await;
    assert_eq!((view.pool.assigned, view.pool.cooling, view.pool.waiting), (4, 0, 0));
    assert_eq!(count(&view, 0, "free"), count(&before, 0, "free"), "what it had goes back uncooled");
    assert_eq!(check(&node, "c").await.unwrap_err().code, RefusalCode::UnknownAttachment);
    assert_eq!(node.add("c").await.unwrap().card, 0, "for one interface there is enough");
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_keeps_all_interfaces() {
    let mut world = world();
    let node = world.settled().await;
    node.wait("warm cards", is_warm).await;
    let pod = add(&node, "a", FIVE).await.unwrap();
    node.kill().await;
    world.cloud.set_down(true);
    let node = world.start().await;
    assert_eq!(add(&node, "a", FIVE).await.unwrap(), pod);
    assert_eq!(check(&node, "a").await.unwrap(), pod);
    assert_eq!(node.del("a").await, pod);
    assert_eq!(node.view().await.pool.assigned, 0);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn gc_takes_all_interfaces_of_a_pod_or_none() {
    let mut world = world();
    let node = world.settled().await;
    node.wait("warm cards", is_warm).await;
    let pod = add(&node, "a", FIVE).await.unwrap();
    let gc = async |valid: Vec<GcAttachment>| {
        let request = GcRequest { network: attachment("a").network, valid };
        match node.ask(Call::Gc(request), FIVE).await {
            Reply::Done(Outcome::Gc(reply)) => reply.released,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(gc(vec![GcAttachment::of(&attachment("a"))]).await, []);
    let released = gc(Vec::new()).await;
    let interfaces: BTreeSet<_> = released.iter().map(|(of, _)| (nic::first(of), nic::index(&of.ifname))).collect();
    assert_eq!(interfaces, (0..4).map(|index| (attachment("a"), index)).collect());
    let mut told: Vec<PodAddress> = released.into_iter().flat_map(|(_, addresses)| addresses).collect();
    told.sort_by_key(|address| address.interface);
    assert_eq!(told, pod);
    assert_eq!(node.view().await.pool.assigned, 0);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_pod_was_given_goes_back_when_it_does_not_wait_for_the_rest() {
    let mut world = world();
    let node = world.settled().await;
    node.wait("warm cards", is_warm).await;
    world.cloud.set_down(true);
    // It has the only address of each further card.
    assert_eq!(add(&node, "a", FIVE).await.unwrap().len(), 4);
    let figures = async || {
        let pool = node.view().await.pool;
        (pool.assigned, pool.cooling, pool.waiting)
    };
    // Its socket closes.
    let (token, reply) = begin(&node, "b", Duration::from_secs(60)).await;
    assert_eq!(figures().await, (5, 0, 1));
    drop(reply);
    node.handle.send(Input::Withdrawn(token)).await;
    assert_eq!(figures().await, (4, 0, 0));
    // Its deadline passes.
    let refusal = add(&node, "b", FIVE).await.unwrap_err();
    assert!(refusal.message.contains("the pod wants an address of each network card"), "{refusal:?}");
    assert_eq!(figures().await, (4, 0, 0));
    // Its DEL comes.
    let (_, reply) = begin(&node, "b", Duration::from_secs(60)).await;
    assert_eq!(figures().await, (5, 0, 1));
    assert_eq!(node.del("b").await, []);
    assert_eq!(addresses(reply.await.unwrap().reply).unwrap_err().code, RefusalCode::Cancelled);
    assert_eq!(figures().await, (4, 0, 0));
    // GC finds what it has while it waits: it waits for that again.
    let (_, reply) = begin(&node, "b", Duration::from_secs(200)).await;
    let valid = vec![GcAttachment::of(&attachment("a"))];
    let gc = GcRequest { network: attachment("a").network, valid };
    assert!(matches!(node.ask(Call::Gc(gc), FIVE).await, Reply::Done(Outcome::Gc(gc)) if gc.released.len() == 1));
    world.cloud.set_down(false);
    assert_eq!(addresses(reply.await.unwrap().reply).unwrap().len(), 4);
    assert_eq!(node.view().await.pool.violations, 0);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_the_same_pod_inherits_what_the_first_was_given() {
    let mut world = world();
    let node = world.settled().await;
    node.wait("warm cards", is_warm).await;
    world.cloud.set_down(true);
    assert_eq!(add(&node, "a", FIVE).await.unwrap().len(), 4);
    let (first, gone) = begin(&node, "b", Duration::from_secs(200)).await;
    let (second, reply) = begin(&node, "b", Duration::from_secs(200)).await;
    assert_eq!(node.view().await.pool.assigned, 5);
    drop(gone);
    node.handle.send(Input::Withdrawn(first)).await;
    assert_eq!(node.view().await.pool.assigned, 5, "the second waits for the rest");
    world.cloud.set_down(false);
    let answer = reply.await.unwrap();
    let granted = answer.granted.clone().unwrap();
    assert_eq!(addresses(answer.reply).unwrap().len(), 4);
    // A third has been told of them, before it shows that the second never was.
    let (_, reply) = begin(&node, "b", FIVE).await;
    assert_eq!(reply.await.unwrap().granted, None);
    node.handle.send(Input::Undelivered(second, granted)).await;
    assert_eq!(node.view().await.pool.assigned, 8);
    let (token, reply) = begin(&node, "c", Duration::from_secs(200)).await;
    let granted = reply.await.unwrap().granted.unwrap();
    node.handle.send(Input::Undelivered(token, granted)).await;
    let view = node.view().await;
    assert_eq!((view.pool.assigned, view.pool.cooling), (8, 0), "what nobody heard of goes back, all of it");
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_clears_all_interfaces_before_the_next_pod_has_any() {
    let mut world = world();
    let node = world.settled().await;
    node.wait("warm cards", is_warm).await;
    let pod = add(&node, "a", FIVE).await.unwrap();
    let request = DelRequest { attachment: attachment("a"), pod: PodRef::default(), add_failed: false };
    let dir = world.config().tombstones();
    std::fs::create_dir_all(&dir).unwrap();
    let name = sluice_contract::rpc::tombstone::file_name(&request.attachment);
    std::fs::write(dir.join(name), sluice_contract::rpc::tombstone::to_json(&request).unwrap()).unwrap();
    world.host.state().rules.extend(pod.iter().map(|address| address.ip));
    let next = add(&node, "a", Duration::from_secs(60)).await.unwrap();
    assert!(world.host.state().rules.is_empty(), "the rules of all addresses are removed");
    let both: BTreeSet<IpAddr> = pod.iter().chain(&next).map(|address| address.ip).collect();
    assert_eq!((next.len(), both.len()), (4, 8), "the old ones cool");
    assert_eq!(node.view().await.pool.assigned, 4);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_names_of_further_interfaces_are_no_runtimes_to_use() {
    let mut world = world();
    let node = world.settled().await;
    node.wait("warm cards", is_warm).await;
    let pod = add(&node, "a", FIVE).await.unwrap();
    let third = nic::attachment(&attachment("a"), 3).unwrap();
    let request = AddRequest { attachment: third.clone(), ..add_request("a") };
    let refusal = addresses(node.ask(Call::Add(request), FIVE).await).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::BadRequest);
    assert!(refusal.message.contains("kept for further interfaces of pods"), "{refusal:?}");
    let del = DelRequest { attachment: third, pod: PodRef::default(), add_failed: true };
    let reply = node.ask(Call::Del(del), FIVE).await;
    assert!(matches!(&reply, Reply::Done(Outcome::Del(reply)) if reply.addresses.is_empty()), "{reply:?}");
    assert_eq!(check(&node, "a").await.unwrap(), pod);
    node.stop().await;
}

/// In VPC CNI each card overwrites the figures of the one before.
#[tokio::test(start_paused = true)]
async fn figures_are_of_all_network_cards_together_and_of_each_eni_alone() {
    let mut world = world();
    let node = world.settled().await;
    node.wait("warm cards", is_warm).await;
    for container in ["a", "b"] {
        assert_eq!(add(&node, container, Duration::from_secs(60)).await.unwrap().len(), 4);
    }
    let view = node.wait("warm cards again", is_warm).await;
    node.metrics.set_pool(&view.pool);
    let all = |state: &str| u64::try_from((0..4).map(|card| count(&view, card, state)).sum::<usize>()).unwrap();
    assert_eq!(node.counted("awscni_assigned_ip_addresses"), 8);
    assert_eq!(node.counted("awscni_total_ip_addresses"), all("assigned") + all("free"));
    assert_eq!(node.counted("awscni_eni_allocated"), u64::try_from(view.enis.len()).unwrap());
    for (id, eni) in &view.enis {
        let held = eni.blocks.values().flatten().filter(|(_, address)| address.state == "assigned").count();
        let told = node.counted(&format!("awscni_assigned_ip_per_eni{{eni=\"{id}\"}}"));
        assert_eq!(told, u64::try_from(held).unwrap(), "{id}");
    }
    node.stop().await;
}
