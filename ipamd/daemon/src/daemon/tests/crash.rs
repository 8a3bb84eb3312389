//! kill -9 at every point at which the world may have changed. S-05: no address twice, none forgotten.

use super::burst::burst;
use super::families::{DUAL, V6};
use super::sim::Crash;
use super::*;

/// What addresses pods have, and in which form a node has them.
const PREFIXES: &[(&str, &str)] = &[("ENABLE_PREFIX_DELEGATION", "true")];
const MODES: [&[(&str, &str)]; 4] = [&[], DUAL, V6, PREFIXES];

/// Pods that were answered, as the runtime remembers them.
async fn add_all(world: &World, node: &Node, pods: &mut BTreeMap<String, PodAddress>, names: &[String]) {
    let mut replies = Vec::new();
    for name in names {
        let call = Call::Add(add_request(name));
        replies.push((name, node.handle.ask(call, Instant::now() + Duration::from_secs(60)).await.1));
    }
    for (name, reply) in replies {
        let Ok(answer) = reply.await else { continue };
        let mut reply = match answer.reply {
            Reply::Done(Outcome::Add(reply)) => reply,
            other => panic!("{name}: {other:?}\n{:#?}\n{:#?}", node.view().await, world.cloud.model().log()),
        };
        let address = reply.addresses.remove(0);
        match pods.insert(name.clone(), address.clone()) {
            None => world.pod_runs(name, address.ip),
            Some(before) => assert_eq!(before, address, "{name} keeps its address"),
        }
    }
}

/// 20 pods come; the daemon dies at the point given and starts again; the runtime tries again whatever had no answer.
pub(super) async fn die_at(crash: Crash, settings: &[(&str, &str)]) -> bool {
    let mut world = World::new("m5.large");
    settings.iter().for_each(|(name, value)| world.set(name, value));
    world.cloud.crash_at(Some(crash));
    let node = world.start().await;
    let cloud = world.cloud.clone();
    outlive(world, node, cloud.crashed(), &format!("{crash:?}")).await
}

/// Lives until `death`, starts again, and compares. Answers whether it died.
async fn outlive(mut world: World, node: Node, death: impl Future<Output = ()>, what: &str) -> bool {
    let names: Vec<String> = (0..20).map(|index| format!("p{index}")).collect();
    let mut pods = BTreeMap::new();
    let died = tokio::select! {
        biased;
        () = death => true,
        () = async {
            add_all(&world, &node, &mut pods, &names).await;
            node.wait("a settled pool", View::is_settled).await;
        } => false,
    };
    node.kill().await;
    world.cloud.crash_at(None);
    let node = world.start().await;
    for (name, address) in &pods {
        assert_eq!(node.add(name).await.as_ref(), Ok(address), "{what}: {name} is remembered");
    }
    add_all(&world, &node, &mut pods, &names).await;
    assert_eq!(pods.len(), 20, "{what}");
    let distinct: BTreeSet<IpAddr> = pods.values().map(|address| address.ip).collect();
    assert_eq!(distinct.len(), 20, "{what}: an address was given twice");
    node.wait("a settled pool", View::is_settled).await;
    world.agrees(&node).await;
    died
}

/// Wherever the loop waits for anything: a call, a job on the host, a timer, a request.
#[tokio::test(start_paused = true)]
async fn s05_death_at_every_await_leaves_nothing_behind() {
    for settings in MODES {
        let mut point = 0;
        loop {
            point += 1;
            let mut world = World::new("m5.large");
            settings.iter().for_each(|(name, value)| world.set(name, value));
            let (node, died) = world.start_mortal(point).await;
            if !outlive(world, node, died.notified(), &format!("{settings:?} at await {point}")).await {
                break;
            }
        }
        println!("{settings:?}: died at {} awaits", point - 1);
        assert!(point > 10, "{settings:?}: the loop has waited {point} times only");
    }
}

#[tokio::test(start_paused = true)]
async fn s05_death_at_every_call_leaves_nothing_behind() {
    for (settings, least) in MODES.into_iter().zip([6, 7, 3, 3]) {
        let mut points = 0;
        for point in 1.. {
            let before = die_at(Crash::BeforeCall(point), settings).await;
            let after = die_at(Crash::AfterCall(point), settings).await;
            if !before && !after {
                break;
            }
            points += 1;
        }
        println!("{settings:?}: died at {points} calls, before and after each");
        assert!(points >= least, "{settings:?}: only {points} calls were made");
    }
}

/// The daemon dies while an ENI is on its way out. What it had on the host goes as soon as it has left, so that the next
/// ENI of its device, which has the same route table, does not wait.
#[tokio::test(start_paused = true)]
async fn an_eni_that_leaves_over_a_restart_does_not_hold_up_the_next() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let (addresses, _) = burst(&world, &node, "p", 15).await;
    node.wait("a settled pool", View::is_settled).await;
    for (index, address) in addresses.iter().enumerate() {
        world.pod_ends(address.ip);
        node.del(&format!("p{index}")).await;
    }
    let leaving = async || node.view().await.enis.values().any(|eni| eni.stage == Stage::Leaving);
    let end = Instant::now() + Duration::from_secs(300);
    while !leaving().await {
        assert!(Instant::now() < end, "no ENI is given back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!world.host.state().enis.is_empty());
    node.kill().await;
    let node = world.start().await;
    let enis = node.view().await.enis.len();
    while node.view().await.enis.len() == enis {
        assert!(Instant::now() < end, "the ENI does not leave");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (_, took) = burst(&world, &node, "q", 27).await;
    println!("27 pods took {took:?} after an ENI had left");
    assert!(took < Duration::from_secs(9), "the next ENI waits for the table of the one before: {took:?}");
    node.wait("a settled pool", View::is_settled).await;
    world.agrees(&node).await;
}

#[tokio::test(start_paused = true)]
async fn s05_death_at_any_time_of_a_burst() {
    for tick in 0..40u64 {
        let mut world = World::new("m5.large");
        let node = world.settled().await;
        let names: Vec<String> = (0..25).map(|index| format!("p{index}")).collect();
        let mut pods = BTreeMap::new();
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(tick * 251)) => {}
            () = add_all(&world, &node, &mut pods, &names) => {}
        }
        node.kill().await;
        let node = world.start().await;
        add_all(&world, &node, &mut pods, &names).await;
        assert_eq!(pods.len(), 25, "at {tick}");
        let distinct: BTreeSet<IpAddr> = pods.values().map(|address| address.ip).collect();
        assert_eq!(distinct.len(), 25, "at {tick}: an address was given twice");
        node.wait("a settled pool", View::is_settled).await;
        world.agrees(&node).await;
    }
}

#[tokio::test(start_paused = true)]
async fn s04_a_restart_serves_at_once_without_ec2_and_touches_nothing() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let (addresses, _) = burst(&world, &node, "p", 5).await;
    let free = node.wait("a settled pool", View::is_settled).await.pool.free;
    let changes = world.host.state().changes;
    node.kill().await;
    world.cloud.set_down(true);
    let node = world.start().await;
    let begun = Instant::now();
    assert!(
        matches!(node.ask(Call::Status, Duration::from_secs(1)).await, Reply::Done(Outcome::Status(s)) if s.free == free)
    );
    assert_eq!(node.add("p0").await.unwrap(), addresses[0]);
    let new = node.add("new").await.unwrap();
    assert!(!addresses.iter().any(|address| address.ip == new.ip));
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(world.host.state().changes, changes, "what is right stays untouched");
}

#[tokio::test(start_paused = true)]
async fn s05_cooldown_survives_a_crash() {
    let mut world = World::new("m5.large");
    world.set("IP_COOLDOWN_PERIOD", "300");
    let node = world.settled().await;
    let held = node.add("a").await.unwrap();
    node.del("a").await;
    node.kill().await;
    let node = world.start().await;
    let mut given = BTreeSet::new();
    for index in 0..8 {
        given.insert(node.add(&format!("b{index}")).await.unwrap().ip);
    }
    assert!(!given.contains(&held.ip));
    assert_eq!(node.view().await.pool.cooling, 1);
}
