//! What is told of pods' addresses, for their annotations.

use super::*;
use crate::cluster::{PodIps, Told};
use crate::inbox::Input;

const MINUTE: Duration = Duration::from_secs(60);

/// What has been reported of pods' addresses since this was last asked, in turn: `again`, the pod's name, its addresses.
async fn announced(world: &mut World, node: &Node) -> Vec<(bool, String, Vec<IpAddr>)> {
    // The loop has ended the step in which it answered.
    node.view().await;
    let reports = world.reported().into_iter().filter_map(|report| match report {
        Report::PodIps(PodIps { all, again }) => Some((again, all)),
        Report::Notice(_) | Report::Condition(_) | Report::Shared(_) | Report::Features(_) => None,
    });
    reports.flat_map(|(again, all)| all.into_iter().map(move |(pod, ips)| (again, pod.name, ips))).collect()
}

fn annotating() -> World {
    let mut world = World::new("m5.large");
    world.set("ANNOTATE_POD_IP", "true");
    world.set("MY_NODE_NAME", "n1");
    world.set("WARM_IP_TARGET", "2");
    world
}

#[tokio::test(start_paused = true)]
async fn addresses_of_pods_are_told_after_their_add_and_taken_back_after_their_del() {
    let mut world = annotating();
    let node = world.settled().await;
    let address = node.add("a").await.unwrap().ip;
    assert_eq!(announced(&mut world, &node).await, [(false, "a".to_owned(), vec![address])]);
    // The same ADD again, and one that is refused, are no news.
    assert_eq!(node.add("a").await.unwrap().ip, address);
    node.wait("a settled pool", View::is_settled).await;
    world.cloud.set_down(true);
    let free = node.view().await.pool.free;
    for number in 0..free {
        node.add(&format!("c{number}")).await.unwrap();
    }
    assert_eq!(announced(&mut world, &node).await.len(), usize::try_from(free).unwrap());
    node.add_within("refused", Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(node.del("refused").await, []);
    assert_eq!(announced(&mut world, &node).await, []);
    node.del("a").await;
    assert_eq!(announced(&mut world, &node).await, [(false, "a".to_owned(), Vec::new())]);
    assert_eq!(node.del("a").await, []);
    assert_eq!(announced(&mut world, &node).await, []);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn without_the_setting_nothing_is_told_of_pods_addresses() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    node.add("a").await.unwrap();
    node.del("a").await;
    node.handle.send(Input::Told(Told::PodsBound(BTreeSet::new()))).await;
    assert_eq!(announced(&mut world, &node).await, []);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pods_second_sandbox_goes_before_the_first_ones_del() {
    let mut world = annotating();
    let node = world.settled().await;
    let add = async |container: &str| {
        let mut request = add_request(container);
        request.pod = PodRef { namespace: "default".into(), name: "c7".into(), uid: Some("u-7".into()) };
        match node.ask(Call::Add(request), MINUTE).await {
            Reply::Done(Outcome::Add(AddReply { addresses, .. })) => addresses[0].ip,
            other => panic!("{other:?}"),
        }
    };
    let first = add("first").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let second = add("second").await;
    let told = |address: IpAddr| (false, "c7".to_owned(), vec![address]);
    assert_eq!(announced(&mut world, &node).await, [told(first), told(second)]);
    node.del("first").await;
    assert_eq!(announced(&mut world, &node).await, []);
    node.del("second").await;
    assert_eq!(announced(&mut world, &node).await, [(false, "c7".to_owned(), Vec::new())]);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn addresses_that_nobody_heard_of_are_taken_back() {
    let mut world = annotating();
    let node = world.settled().await;
    // The socket closed before the loop answered.
    let (_, reply) = node.handle.ask(Call::Add(add_request("a")), Instant::now() + MINUTE).await;
    drop(reply);
    assert_eq!(announced(&mut world, &node).await, []);
    // It was answered, and the reply could not be written.
    let (token, reply) = node.handle.ask(Call::Add(add_request("a")), Instant::now() + MINUTE).await;
    let answer = reply.await.unwrap();
    assert_eq!(announced(&mut world, &node).await.len(), 1);
    node.handle.send(Input::Undelivered(token, answer.granted.unwrap())).await;
    assert_eq!(announced(&mut world, &node).await, [(false, "a".to_owned(), Vec::new())]);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_has_addresses_compared_once_the_pods_are_known() {
    let mut world = annotating();
    let node = world.settled().await;
    let (kept, gone) = (node.add("kept").await.unwrap().ip, node.add("gone").await.unwrap().ip);
    for (name, address) in [("kept", kept), ("gone", gone)] {
        world.pod_runs(name, address);
    }
    node.kill().await;
    let node = world.settled().await;
    assert_eq!(announced(&mut world, &node).await, []);
    world.pod_ends(gone);
    node.del("gone").await;
    assert_eq!(announced(&mut world, &node).await, [(false, "gone".to_owned(), Vec::new())]);
    for expected in [vec![(true, "kept".to_owned(), vec![kept])], Vec::new()] {
        node.handle.send(Input::Told(Told::PodsBound(BTreeSet::new()))).await;
        assert_eq!(announced(&mut world, &node).await, expected);
    }
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn both_addresses_of_a_pod_are_told_ipv4_first() {
    let mut world = annotating();
    world.set("ENABLE_IPv6", "true");
    let node = world.settled().await;
    let addresses = match node.ask(Call::Add(add_request("a")), MINUTE).await {
        Reply::Done(Outcome::Add(AddReply { addresses, .. })) => addresses,
        other => panic!("{other:?}"),
    };
    let both: Vec<IpAddr> = addresses.iter().map(|address| address.ip).collect();
    assert!(both.len() == 2 && both[0].is_ipv4(), "{both:?}");
    assert_eq!(announced(&mut world, &node).await, [(false, "a".to_owned(), both)]);
    node.stop().await;
}
