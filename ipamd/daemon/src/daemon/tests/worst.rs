//! The ten failures of the AWS VPC CNI that cost its users most, as its issue tracker has them, each lived through by the whole
//! daemon. Two of the ten have their tests elsewhere: RequestLimitExceeded for ten minutes at boot
//! ([`super::trouble`]), and a restart that touches no rule of a running pod ([`super::crash`]).

use std::net::Ipv4Addr;

use sluice_vpcsim::model::SceneEni;
use sluice_vpcsim::model::api::{WantIpv4, WantIpv6};

use super::burst::burst;
use super::crash::die_at;
use super::sim::Crash;
use super::*;
use crate::cluster::Weight;

const HOUR: Duration = Duration::from_secs(3600);

/// Calls that take something away.
fn destructive(world: &World) -> u64 {
    let counts = world.cloud.counts();
    ["UnassignPrivateIpAddresses", "DetachNetworkInterface", "DeleteNetworkInterface"]
        .iter()
        .map(|action| counts.get(*action).copied().unwrap_or_default())
        .sum()
}

/// Whether EC2 has the address on an ENI of the node.
fn is_ours(world: &World, address: IpAddr) -> bool {
    world.cloud.owned().0.iter().any(|eni| eni.assigned().any(|net| ipnet::IpNet::V4(net).contains(&address)))
}

/// Pods that run, asked for again: each has kept its address.
async fn keep(node: &Node, prefix: &str, addresses: &[PodAddress]) {
    for (index, address) in addresses.iter().enumerate() {
        assert_eq!(node.add(&format!("{prefix}{index}")).await.as_ref(), Ok(address));
    }
}

/// #1967, #3821: the VPC CNI drops the pods of an ENI that IMDS leaves out, then frees it under them.
#[tokio::test(start_paused = true)]
async fn issue_1967_an_eni_that_imds_leaves_out_keeps_its_pods() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let (pods, _) = burst(&world, &node, "p", 15).await;
    node.wait("a settled pool", View::is_settled).await;
    let before = (destructive(&world), world.host.state().changes);
    world.cloud.omit(Some(1));
    tokio::time::sleep(HOUR).await;
    assert_eq!((destructive(&world), world.host.state().changes), before, "nothing is taken on hearsay");
    node.kill().await;
    let node = world.start().await;
    tokio::time::sleep(HOUR).await;
    keep(&node, "p", &pods).await;
    world.cloud.omit(None);
    tokio::time::sleep(HOUR).await;
    assert_eq!(destructive(&world), before.0);
    world.agrees(&node).await;
}

/// #3887: an address that was given back is still in IMDS after a restart, and the VPC CNI hands it to a pod.
#[tokio::test(start_paused = true)]
async fn issue_3887_an_address_that_only_imds_shows_is_not_handed_out() {
    for keeps_checkpoint in [true, false] {
        let mut world = World::new("m5.large");
        world.set("WARM_IP_TARGET", "3");
        world.set("IP_COOLDOWN_PERIOD", "1");
        let node = world.settled().await;
        let (pods, _) = burst(&world, &node, "p", 5).await;
        node.wait("a settled pool", View::is_settled).await;
        for (index, pod) in pods.iter().enumerate() {
            world.pod_ends(pod.ip);
            node.del(&format!("p{index}")).await;
        }
        node.wait("what is left over to go", |view| view.pool.total == 3).await;
        node.kill().await;
        world.cloud.lag(Settings::aws().describe_lag, Duration::from_secs(120));
        if !keeps_checkpoint {
            std::fs::remove_file(world.config().checkpoint()).unwrap();
        }
        let node = world.start().await;
        for index in 0..8 {
            let address = node.add(&format!("q{index}")).await.unwrap();
            assert!(is_ours(&world, address.ip), "{} is not on an ENI of the node", address.ip);
            world.pod_runs(&format!("q{index}"), address.ip);
        }
    }
}

/// #3824, #3019: a pod lives on a prefix that the daemon does not know of after a restart; the VPC CNI calls it stale, and days
/// later gives the prefix back.
#[tokio::test(start_paused = true)]
async fn issue_3824_a_prefix_in_use_is_not_given_back_because_it_was_unknown() {
    let mut world = World::new("m5.large");
    world.set("ENABLE_PREFIX_DELEGATION", "true");
    let node = world.settled().await;
    let (pods, _) = burst(&world, &node, "p", 20).await;
    node.kill().await;
    std::fs::remove_file(world.config().checkpoint()).unwrap();
    // What EC2 and IMDS tell is from before the prefixes came.
    world.cloud.lag(Duration::from_secs(20), Duration::from_secs(60));
    let node = world.start().await;
    tokio::time::sleep(48 * HOUR).await;
    for pod in &pods {
        assert!(is_ours(&world, pod.ip), "the prefix of {} was given back under its pod", pod.ip);
    }
    for index in 0..20 {
        let address = node.add(&format!("q{index}")).await.unwrap();
        world.pod_runs(&format!("q{index}"), address.ip);
    }
}

/// #2896: cooling addresses count as warm in the VPC CNI, and pods fail for as long as they cool.
#[tokio::test(start_paused = true)]
async fn issue_2896_pods_do_not_wait_for_addresses_that_cool() {
    let mut world = World::new("m5.4xlarge");
    world.set("WARM_IP_TARGET", "2");
    world.set("MINIMUM_IP_TARGET", "23");
    let node = world.settled().await;
    let (pods, _) = burst(&world, &node, "p", 23).await;
    node.wait("a settled pool", View::is_settled).await;
    for (index, pod) in pods.iter().take(4).enumerate() {
        world.pod_ends(pod.ip);
        node.del(&format!("p{index}")).await;
    }
    let (new, took) = burst(&world, &node, "q", 4).await;
    assert!(took < Duration::from_millis(1500), "one assignment takes 0.6 s: {took:?}");
    assert!(new.iter().all(|address| !pods[..4].contains(address)), "none of those that cool");
}

/// A cooling address is handed back to EC2 in the VPC CNI's WARM_IP mode, and another node has it within seconds.
#[tokio::test(start_paused = true)]
async fn a_cooling_address_is_not_given_back() {
    let mut world = World::new("m5.large");
    world.set("WARM_IP_TARGET", "1");
    world.set("IP_COOLDOWN_PERIOD", "120");
    let node = world.settled().await;
    let (pods, _) = burst(&world, &node, "p", 6).await;
    node.wait("a settled pool", View::is_settled).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    for (index, pod) in pods.iter().enumerate() {
        world.pod_ends(pod.ip);
        node.del(&format!("p{index}")).await;
    }
    tokio::time::sleep(Duration::from_secs(115)).await;
    assert!(pods.iter().all(|pod| is_ours(&world, pod.ip)), "each is still the node's");
    node.wait("what has cooled to go", |view| view.pool.total == 1).await;
    assert_eq!(pods.iter().filter(|pod| is_ours(&world, pod.ip)).count(), 1);
}

/// #69, #608, #1223: killed between Create and Attach, and around each of the calls beside these. Nothing is leaked.
#[tokio::test(start_paused = true)]
async fn issue_69_an_eni_that_was_being_made_is_found_again() {
    for point in 1..12 {
        die_at(Crash::BeforeCall(point), &[]).await;
        die_at(Crash::AfterCall(point), &[]).await;
    }
}

/// #3634: a new pod gets the address that its predecessor has just left, and its peers' retried packets.
#[tokio::test(start_paused = true)]
async fn issue_3634_an_address_is_used_again_as_late_as_possible() {
    let mut world = World::new("m5.large");
    world.set("IP_COOLDOWN_PERIOD", "30");
    let node = world.settled().await;
    let mut before = BTreeMap::new();
    for index in 0..40u32 {
        let name = format!("p{index}");
        let address = node.add(&name).await.unwrap();
        if let Some(last) = before.insert(address.ip, Instant::now()) {
            assert!(last.elapsed() >= Duration::from_secs(80), "{} comes too soon", address.ip);
            let told = world.host.state().forgotten.clone();
            let times = told.iter().filter(|(at, addresses)| *at > last && addresses.contains(&address.ip)).count();
            assert_eq!(times, 1, "connection tracking has forgotten {}", address.ip);
        }
        node.del(&name).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    assert!(before.len() >= 9, "all take turns: {}", before.len());
}

/// What connection tracking was to forget, and how long after a moment.
fn forgotten(world: &World, since: Instant) -> Vec<(Duration, BTreeSet<IpAddr>)> {
    let all = world.host.state().forgotten.clone();
    all.into_iter().map(|(at, addresses)| (at - since, addresses)).collect()
}

/// #3634 too: a peer's connection to the pod that was there goes on to the one that is there now, by what connection
/// tracking has kept of it.
#[tokio::test(start_paused = true)]
async fn issue_3634_flows_are_forgotten_before_their_address_is_used_again() {
    let mut world = World::new("m5.large");
    world.set("ENABLE_IPv6", "true");
    let node = world.settled().await;
    for index in 0..8 {
        node.add(&format!("p{index}")).await.unwrap();
    }
    // One that never ran has no flows.
    let request = DelRequest { attachment: attachment("p7"), pod: PodRef::default(), add_failed: true };
    let reply = node.ask(Call::Del(request), Duration::from_secs(10)).await;
    assert!(matches!(reply, Reply::Done(Outcome::Del(reply)) if reply.addresses.len() == 2));
    let first = Instant::now();
    let mut addresses = BTreeSet::new();
    for index in 0..6 {
        let described = node.del(&format!("p{index}")).await;
        assert_eq!(described.len(), 2, "of both families");
        addresses.extend(described.into_iter().map(|address| address.ip));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let told = forgotten(&world, first);
    let [(after, once)] = told.as_slice() else { panic!("many DELs are one look: {told:?}") };
    assert_eq!(*once, addresses);
    assert!(*after > Duration::from_secs(15) && *after < Duration::from_secs(30), "{after:?}");
    assert_eq!(node.counted("sluice_ipamd_flows_forgotten_total"), 12);
    assert_eq!(node.counted("sluice_ipamd_flow_failures_total"), 0);
}

#[tokio::test(start_paused = true)]
async fn flows_are_forgotten_in_a_short_cooldown_and_after_a_failure_and_a_crash() {
    let mut world = World::new("m5.large");
    world.set("IP_COOLDOWN_PERIOD", "5");
    let node = world.settled().await;
    for index in 0..3 {
        node.add(&format!("p{index}")).await.unwrap();
    }
    let first = Instant::now();
    for index in 0..2 {
        node.del(&format!("p{index}")).await;
        // The second is taken back a moment after the look that the first has led to.
        tokio::time::sleep(Duration::from_millis(1200)).await;
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    let times: Vec<Duration> = forgotten(&world, first).into_iter().map(|(after, _)| after).collect();
    assert_eq!(times.len(), 2, "{times:?}");
    assert!(times[1] - times[0] >= Duration::from_secs(5), "{times:?}");
    // Within both cooldowns: the second's ends 6.2 s after the first DEL.
    assert!(times[0] < Duration::from_secs(5) && times[1] < Duration::from_millis(6200), "{times:?}");
    node.kill().await;

    world.set("IP_COOLDOWN_PERIOD", "30");
    world.host.state().forgotten.clear();
    world.host.state().failing_flows = 1;
    let node = world.start().await;
    let address = node.add("p2").await.unwrap();
    let released = Instant::now();
    node.del("p2").await;
    node.kill().await;
    let node = world.start().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let told = forgotten(&world, released);
    let expected = BTreeSet::from([address.ip]);
    assert!(told.len() == 2 && told.iter().all(|(_, addresses)| *addresses == expected), "tried again once: {told:?}");
    assert!(told[1].0 < Duration::from_secs(30), "before it is free: {told:?}");
    assert_eq!(node.counted("sluice_ipamd_flow_failures_total"), 1);
    assert_eq!(node.counted("awscni_ipamd_error_count{fn=\"forget_flows\"}"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_kernel_without_connection_tracking_is_asked_once() {
    let mut world = World::new("m5.large");
    world.host.state().no_conntrack = true;
    let node = world.settled().await;
    for index in 0..5 {
        node.add(&format!("p{index}")).await.unwrap();
        node.del(&format!("p{index}")).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.host.state().forgotten.len(), 1);
    assert_eq!(node.counted("sluice_ipamd_flow_failures_total"), 1);
}

/// #1375, #1939, #3270: a StatefulSet's pod is made anew while the daemon is down, the old DEL comes late and twice, an ADD
/// comes twice.
#[tokio::test(start_paused = true)]
async fn a_late_del_does_not_hit_the_successor_of_the_same_name() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let add = |container: &str| {
        let mut request = add_request(container);
        request.pod.name = "web-0".into();
        Call::Add(request)
    };
    let address = |reply| match reply {
        Reply::Done(Outcome::Add(mut reply)) => reply.addresses.remove(0),
        other => panic!("{other:?}"),
    };
    let old = address(node.ask(add("old"), Duration::from_secs(5)).await);
    world.pod_runs("old", old.ip);
    node.kill().await;
    world.pod_ends(old.ip);
    let node = world.start().await;
    let new = address(node.ask(add("new"), Duration::from_secs(5)).await);
    world.pod_runs("new", new.ip);
    assert_ne!(new, old);
    assert_eq!(address(node.ask(add("new"), Duration::from_secs(5)).await), new, "an ADD that comes twice");
    node.del("old").await;
    node.del("old").await;
    assert_eq!(address(node.ask(add("new"), Duration::from_secs(5)).await), new);
    tokio::time::sleep(Duration::from_secs(120)).await;
    let view = node.wait("only the new one", |view| view.pool.assigned == 1).await;
    assert_eq!(view.pool.quarantined, 0);
}

/// #1634, #1836, #3264: the subnet has a hundred free addresses and not one whole /28; the VPC CNI's pods fail.
#[tokio::test(start_paused = true)]
async fn issue_1634_a_subnet_without_a_whole_prefix_gives_single_addresses() {
    let mut world = World::with(Settings::aws(), "m5.large", "10.0.1.0/25");
    world.set("ENABLE_PREFIX_DELEGATION", "true");
    let subnet = world.cloud.owned().0[0].subnet.clone();
    let mut others = Vec::new();
    for block in 0..8u8 {
        let eni = SceneEni {
            subnet: subnet.clone(),
            private_ip: Some(Ipv4Addr::new(10, 0, 1, 16 * block + 9)),
            want: WantIpv4::default(),
            want_ipv6: WantIpv6::default(),
            place: None,
            tags: BTreeMap::new(),
        };
        // One of them may be the node's own address; that block is broken all the same.
        others.extend(world.cloud.model().add_eni(&eni));
    }
    let node = world.start().await;
    let (pods, took) = burst(&world, &node, "p", 20).await;
    assert!(took < Duration::from_secs(30), "{took:?}");
    let view = node.wait("a settled pool", View::is_settled).await;
    assert_eq!((view.pool.prefixes, pods.len()), (0, 20));
    // It is told: on the node, in the view and in the metrics.
    assert_eq!(view.pool.without_prefixes, [subnet.to_string()]);
    node.metrics.set_pool(&view.pool);
    assert_eq!(node.counted("sluice_ipamd_subnets_without_prefixes"), 1);
    // More pods than single addresses fit are refused for the ENIs, and not for a subnet that has addresses.
    let (more, _) = burst(&world, &node, "q", 7).await;
    let refusal = node.add("late").await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::EniLimit, "{refusal:?}");
    assert!(refusal.message.ends_with(&format!("subnet {subnet} has no whole /28 left")), "{refusal:?}");
    assert!(refusal.hint.unwrap().contains("aws ec2 create-subnet-cidr-reservation"));
    let reported = world.reported();
    let told = reported.iter().filter_map(|report| match report {
        Report::Notice(notice) => Some((notice.reason, notice.weight, notice.message.as_str())),
        _ => None,
    });
    let told: Vec<_> = told.collect();
    let of_prefixes: Vec<_> = told.iter().filter(|(reason, ..)| *reason == "PrefixesExhausted").collect();
    let [(_, Weight::Warning, message)] = of_prefixes.as_slice() else { panic!("once: {told:?}") };
    assert!(message.contains(subnet.as_str()) && message.contains("create-subnet-cidr-reservation"), "{message}");
    assert!(told.iter().all(|(reason, ..)| *reason != "SubnetExhausted"), "{told:?}");
    let condition = |report: &Report| matches!(report, Report::Condition(found) if found.holds && found.reason == "PrefixesExhausted");
    assert!(reported.iter().any(condition), "{reported:?}");
    for (index, address) in more.iter().enumerate() {
        world.pod_ends(address.ip);
        node.del(&format!("q{index}")).await;
    }
    for eni in others {
        let request = sluice_vpcsim::model::api::DeleteNetworkInterface { eni };
        let now = world.cloud.now();
        world.cloud.model().call(request, now).result.unwrap();
    }
    // Prefixes come back when there are some; pods keep what they have.
    let view = node.wait("prefixes", |view| view.pool.prefixes > 0).await;
    assert_eq!(view.pool.without_prefixes, [""; 0]);
    node.metrics.set_pool(&view.pool);
    assert_eq!(node.counted("sluice_ipamd_subnets_without_prefixes"), 0);
    keep(&node, "p", &pods).await;
}
