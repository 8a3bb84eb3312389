//! Many nodes in one account, whose buckets EC2 keeps for all of them together.

use super::*;

const NODES: usize = 1000;
/// Calls that each node has to make at the least: what it owns (two), and the addresses of its first ENI.
const NEEDED: usize = 2 + 1;

/// How long it may take. EC2 answers 100 calls of an action at once and, a second, 20 more that read and 5 that change (vpcsim's
/// buckets): 1,000 first assignments take three minutes.
const LONGEST: Duration = Duration::from_secs(900);

/// Nodes whose pods come at once, and pods of each: more than the nine addresses of its first ENI.
const CROWDED: usize = 200;
const PODS: usize = 15;

/// What EC2 was asked in one second.
#[derive(Debug, Clone, Copy, Default)]
struct Second {
    calls: usize,
    refused: usize,
}

#[tokio::test(start_paused = true)]
async fn a_thousand_nodes_that_boot_at_once_converge_without_a_retry_storm() {
    let clouds = SimCloud::fleet(Settings::aws(), NODES, "m5.large", "10.0.0.0/17");
    let cloud = clouds[0].clone();
    let mut worlds: Vec<World> = clouds.into_iter().map(World::of).collect();
    let begun = Instant::now();
    let mut nodes = Vec::new();
    for (seed, world) in worlds.iter_mut().enumerate() {
        // Each node draws its own seed at random in production.
        world.starts = 1000 * seed as u64;
        nodes.push(world.start().await);
    }
    let (mut seconds, mut last) = (Vec::<Second>::new(), 0);
    let mut refused_by_action: BTreeMap<String, usize> = BTreeMap::new();
    let mut unsettled: Vec<&Node> = nodes.iter().collect();
    while !unsettled.is_empty() {
        assert!(begun.elapsed() < LONGEST, "{} nodes are not settled", unsettled.len());
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut second = Second::default();
        for record in cloud.model().log().records().rev().take_while(|record| record.number > last) {
            second.calls += 1;
            if record.outcome == "RequestLimitExceeded" {
                second.refused += 1;
                *refused_by_action.entry(record.action.clone()).or_default() += 1;
            }
        }
        last = cloud.model().log().total();
        seconds.push(second);
        if seconds.len() % 10 == 0 {
            let mut still = Vec::new();
            for node in unsettled {
                let view = node.view().await;
                if !(view.ready && view.is_settled() && view.pool.free == 9) {
                    still.push(node);
                }
            }
            unsettled = still;
            let ten = seconds.iter().rev().take(10);
            let (calls, refused) = ten.fold((0, 0), |(c, r), second| (c + second.calls, r + second.refused));
            println!(
                "{:4} s: {calls:5} calls, {refused:5} refused, {:4} nodes settled",
                seconds.len(),
                NODES - unsettled.len()
            );
        }
    }
    let calls: usize = seconds.iter().map(|second| second.calls).sum();
    let refused: usize = seconds.iter().map(|second| second.refused).sum();
    println!(
        "{NODES} nodes settled after {} s, with {calls} calls, of which EC2 refused {refused}: {refused_by_action:?}",
        seconds.len()
    );
    println!("{:?}", cloud.counts());
    assert!(calls - refused >= NODES * NEEDED, "{calls}");
    // Had each asked once a second for as long as it had to wait, it would be a hundred for each that was granted.
    assert!(refused <= 6 * (calls - refused), "{refused} of {calls} calls are refused");
    // They come less and less often, and never again together.
    let busiest =
        |from: usize, to: usize| seconds.iter().take(to).skip(from).map(|second| second.calls).max().unwrap_or(0);
    let (first, later) = (busiest(0, 10), busiest(30, usize::MAX));
    println!("calls in the busiest second: {first} of the first ten, {later} after the thirtieth");
    assert!(later <= NODES / 4, "{later} calls in a second");
}

/// A pod of the node: the kubelet asks for it again and again until it runs.
async fn until_it_runs(handle: Handle, name: String) -> (IpAddr, u32) {
    let mut refusals = 0;
    loop {
        let (_, reply) = handle.ask(Call::Add(add_request(&name)), Instant::now() + Duration::from_secs(60)).await;
        match reply.await.unwrap().reply {
            Reply::Done(Outcome::Add(reply)) => return (reply.addresses[0].ip, refusals),
            Reply::Refused(refusal) => assert!(refusal.code.is_retriable(), "{refusal:?}"),
            other => panic!("{name}: {other:?}"),
        }
        refusals += 1;
        let request = DelRequest { attachment: attachment(&name), pod: PodRef::default(), add_failed: true };
        let (_, reply) = handle.ask(Call::Del(request), Instant::now() + Duration::from_secs(60)).await;
        reply.await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
}

/// A deployment is scaled out over many nodes: each of them needs a second ENI in the same minute.
#[tokio::test(start_paused = true)]
async fn pods_that_come_to_many_nodes_at_once_all_run_and_calls_stay_few() {
    let clouds = SimCloud::fleet(Settings::aws(), CROWDED, "m5.large", "10.0.0.0/17");
    let cloud = clouds[0].clone();
    let mut worlds: Vec<World> = clouds.into_iter().map(World::of).collect();
    let mut nodes = Vec::new();
    for (seed, world) in worlds.iter_mut().enumerate() {
        world.starts = 1000 * seed as u64;
        nodes.push(world.start().await);
    }
    for node in &nodes {
        node.wait("a settled pool", |view| view.ready && view.is_settled() && view.pool.free == 9).await;
    }
    let (before, last) = (cloud.counts(), cloud.model().log().total());
    let begun = Instant::now();
    let mut pods = Vec::new();
    for (number, node) in nodes.iter().enumerate() {
        for pod in 0..PODS {
            pods.push(tokio::spawn(until_it_runs(node.handle.clone(), format!("n{number}-p{pod}"))));
        }
    }
    let (mut given, mut refusals) = (BTreeSet::new(), 0);
    for pod in pods {
        let (ip, refused) = pod.await.unwrap();
        assert!(given.insert(ip), "{ip} is given twice");
        refusals += refused;
    }
    let took = begun.elapsed();
    let after = cloud.counts();
    let made: BTreeMap<&String, u64> =
        after.iter().map(|(action, count)| (action, count - before.get(action).copied().unwrap_or(0))).collect();
    let (mut calls, mut refused) = (0, 0);
    for record in cloud.model().log().records().rev().take_while(|record| record.number > last) {
        calls += 1;
        refused += usize::from(record.outcome == "RequestLimitExceeded");
    }
    println!(
        "{} pods of {CROWDED} nodes run after {took:?}: {calls} calls, {refused} of them refused by EC2; the kubelets asked \
         {refusals} times more; {made:?}",
        CROWDED * PODS
    );
    assert_eq!(given.len(), CROWDED * PODS);
}
