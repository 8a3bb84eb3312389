//! What the cluster tells, and what it is told.

use sluice_contract::id::{EniId, InstanceId};
use sluice_ipamd_core::shared::{Group, MOST_GROUPS};
use sluice_ipamd_core::state::tag;
use sluice_vpcsim::model::api::{AttachNetworkInterface, CreateNetworkInterface, CreateTags, TerminateInstances};
use sluice_vpcsim::model::state::RouteTarget;
use sluice_vpcsim::model::{Fault, FaultEffect, Reply, Request};

use super::*;
use crate::cluster::{About, Condition, Notice, Report, Shared, Told};
use crate::config::overrides::Overrides;
use crate::inbox::Input;

fn minutes(count: u64) -> Duration {
    Duration::from_secs(count * 60)
}

impl Node {
    async fn tell(&self, told: Told) {
        self.handle.send(Input::Told(told)).await;
    }
}

fn pod(number: u32) -> PodRef {
    PodRef { namespace: "default".into(), name: format!("c{number}"), uid: None }
}

#[tokio::test(start_paused = true)]
async fn pods_that_are_bound_have_addresses_before_they_ask() {
    let mut world = World::new("m5.large");
    world.set("WARM_IP_TARGET", "1");
    let node = world.settled().await;
    assert_eq!(node.view().await.pool.free, 1);
    let before = world.cloud.counts();
    node.tell(Told::PodsBound((0..12).map(pod).collect())).await;
    node.wait("addresses for all", |view| view.is_settled() && view.pool.free >= 12).await;
    // Then none of them waits.
    for number in 0..12 {
        let begun = Instant::now();
        node.add(&format!("c{number}")).await.unwrap();
        assert!(begun.elapsed() < Duration::from_millis(100));
    }
    let calls = |counts: &BTreeMap<String, u64>, api: &str| counts.get(api).copied().unwrap_or_default();
    let after = world.cloud.counts();
    let assigns = calls(&after, "AssignPrivateIpAddresses") - calls(&before, "AssignPrivateIpAddresses");
    assert!(assigns <= 3, "{assigns} calls");
    // They are gone before they had a sandbox: what was meant for them is given back.
    node.tell(Told::PodsBound((12..20).map(pod).collect())).await;
    node.wait("room for eight more", |view| view.pool.free >= 8).await;
    node.tell(Told::PodsBound(BTreeSet::new())).await;
    node.wait("one spare address", |view| view.is_settled() && view.pool.free == 1).await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn settings_of_the_cluster_change_the_pool_at_once_and_wrong_ones_change_nothing() {
    let mut world = World::new("m5.large");
    world.set("WARM_IP_TARGET", "2");
    let node = world.settled().await;
    let set = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Told::Overrides(Ok(Overrides(pairs.collect())))
    };
    let shown = async |node: &Node| node.handle.in_force().await.unwrap().config.pool.warm_ip_target;
    assert_eq!(shown(&node).await, 2);
    node.tell(set(&[("WARM_IP_TARGET", "6")])).await;
    node.wait("six free", |view| view.is_settled() && view.pool.free == 6).await;
    assert_eq!(shown(&node).await, 6);
    node.tell(set(&[("WARM_IP_TARGET", "many"), ("IP_COOLDOWN_PERIOD", "5")])).await;
    node.tell(Told::Overrides(Err(vec!["all: it is no YAML".into()]))).await;
    node.tell(set(&[("WARM_IP_TARGET", "6"), ("AWS_VPC_ENI_MTU", "1500")])).await;
    let view = node.wait("six free", |view| view.is_settled()).await;
    assert_eq!(view.pool.free, 6);
    let told = world.reported().into_iter().filter_map(|report| match report {
        Report::Notice(Notice { about: About::Node, reason, message, .. }) => Some((reason, message)),
        _ => None,
    });
    let told: Vec<_> = told.collect();
    let reasons: Vec<_> = told.iter().map(|(reason, _)| *reason).collect();
    assert_eq!(reasons, ["SettingsChanged", "SettingsRejected", "SettingsRejected", "SettingsNeedRestart"]);
    assert!(told[1].1.contains("WARM_IP_TARGET=\"many\"") && told[2].1.contains("no YAML"), "{told:?}");
    assert!(told[3].1.contains("AWS_VPC_ENI_MTU"), "{told:?}");
    // The next start needs no API server to have them.
    node.kill().await;
    let node = world.settled().await;
    assert_eq!(node.view().await.pool.free, 6);
    node.tell(set(&[])).await;
    node.wait("two free", |view| view.is_settled() && view.pool.free == 2).await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_stands_in_the_way_is_told_beside_the_node_and_its_pods() {
    // A /28 has 11 addresses: one is the node's own, nine are pods', and an ENI with the last one would hold none.
    let mut world = World::with(Settings::aws(), "m5.large", "10.0.1.0/28");
    world.set("WARM_IP_TARGET", "1");
    let node = world.settled().await;
    assert!(matches!(world.reported().as_slice(), [Report::Condition(Condition { holds: true, .. })]));
    for number in 0..9 {
        node.add(&format!("c{number}")).await.unwrap();
    }
    let refused = node.add_within("late", Duration::from_secs(30)).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::SubnetExhausted);
    let node_view = node.view().await;
    assert_eq!(node_view.pool.free, 0);
    let reported = world.reported();
    let condition = reported.iter().rev().find_map(|report| match report {
        Report::Condition(condition) => Some(condition.clone()),
        Report::Notice(_) | Report::Shared(_) | Report::Features(_) | Report::PodIps(_) => None,
    });
    let condition = condition.unwrap();
    assert_eq!((condition.holds, condition.reason), (false, "SubnetExhausted"));
    assert!(condition.message.contains("has no free address left; free addresses in the subnet"), "{condition:?}");
    let about = |wanted: &About| {
        reported.iter().any(|report| {
            matches!(report, Report::Notice(Notice { about, reason: "SubnetExhausted", .. }) if about == wanted)
        })
    };
    let late = PodRef { namespace: "default".into(), name: "late".into(), uid: None };
    assert!(about(&About::Node) && about(&About::Pod(late)), "{reported:#?}");
    // Pods go, and it holds again.
    for number in 0..3 {
        node.del(&format!("c{number}")).await;
    }
    node.wait("free addresses", |view| view.pool.free > 0).await;
    tokio::time::sleep(minutes(10)).await;
    let last = world.reported().into_iter().rev().find_map(|report| match report {
        Report::Condition(condition) => Some(condition.holds),
        Report::Notice(_) | Report::Shared(_) | Report::Features(_) | Report::PodIps(_) => None,
    });
    assert_eq!(last, Some(true));
    node.stop().await;
}

/// Makes an ENI as the ipamd of an instance does, and returns it.
fn left_by(world: &World, instance: &InstanceId, cluster: &str, number: u8) -> EniId {
    let now = world.cloud.now();
    let subnet = world.cloud.owned().0[0].subnet.clone();
    let mut create = CreateNetworkInterface::new(subnet);
    create.client_token = Some(format!("left-{number}"));
    create.tags = [
        (tag::INSTANCE, instance.to_string()),
        (tag::CLUSTER, cluster.to_owned()),
        (tag::CREATED_AT, world.clock.now().to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    match world.cloud.model().call_from("another node", Request::from(create), now).result {
        Ok(Reply::NetworkInterface(eni)) => eni.id,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn the_elected_node_deletes_what_nodes_that_are_gone_have_left_and_nothing_else() {
    let mut clouds = SimCloud::fleet(Settings::aws(), 3, "m5.large", "10.0.1.0/24");
    let (gone, lives) = (clouds[1].instance(), clouds[2].instance());
    let mut world = World::of(clouds.remove(0));
    world.set("CLUSTER_NAME", "prod");
    let node = world.settled().await;
    let leaked = left_by(&world, &gone, "prod", 1);
    let kept = [left_by(&world, &lives, "prod", 2), left_by(&world, &gone, "other", 3)];
    let there = |world: &World, eni: &EniId| world.cloud.model().state().enis.contains_key(eni);
    let end = Request::from(TerminateInstances { instances: vec![gone] });
    world.cloud.model().call_from("somebody", end, world.cloud.now()).result.unwrap();

    // Nobody is elected: nobody asks.
    tokio::time::sleep(minutes(60)).await;
    assert!(there(&world, &leaked));
    let asked = |world: &World| world.cloud.counts().get("DescribeInstances").copied().unwrap_or_default();
    assert_eq!(asked(&world), 0);
    node.tell(Told::Elected(true)).await;
    tokio::time::sleep(minutes(14)).await;
    assert!(there(&world, &leaked), "it was seen alone for less than 15 minutes");
    tokio::time::sleep(minutes(10)).await;
    assert!(!there(&world, &leaked));
    tokio::time::sleep(minutes(120)).await;
    assert!(kept.iter().all(|eni| there(&world, eni)));
    let looks = asked(&world);
    assert!((12..=16).contains(&looks), "{looks} looks in 144 minutes");
    node.tell(Told::Elected(false)).await;
    tokio::time::sleep(minutes(60)).await;
    assert_eq!(asked(&world), looks);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_elected_node_that_is_told_no_cluster_says_that_nobody_deletes_what_is_left() {
    // As the chart has it by default; and as somebody who wants no search has it.
    for (settings, told) in [
        (vec![("CLUSTER_NAME", "")], 1),
        (vec![("CLUSTER_NAME", "prod")], 0),
        (vec![("CLUSTER_NAME", ""), ("DISABLE_LEAKED_ENI_CLEANUP", "true")], 0),
    ] {
        let mut world = World::new("m5.large");
        settings.iter().for_each(|(name, value)| world.set(name, value));
        let node = world.settled().await;
        world.reported();
        node.tell(Told::Elected(true)).await;
        node.view().await;
        let found = notices(&mut world, "ClusterNameNotSet");
        assert_eq!(found.len(), told, "{settings:?}");
        assert!(found.iter().all(|message| message.contains("nobody deletes them")), "{found:?}");
        node.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_eni_that_another_instance_uses_by_then_stays() {
    let mut clouds = SimCloud::fleet(Settings::aws(), 3, "m5.large", "10.0.1.0/24");
    let (gone, other) = (clouds[1].instance(), clouds[2].instance());
    let mut world = World::of(clouds.remove(0));
    world.set("CLUSTER_NAME", "prod");
    let node = world.settled().await;
    let eni = left_by(&world, &gone, "prod", 1);
    let end = Request::from(TerminateInstances { instances: vec![gone] });
    world.cloud.model().call_from("somebody", end, world.cloud.now()).result.unwrap();
    node.tell(Told::Elected(true)).await;
    // By the second look, and before it has been alone for long enough.
    tokio::time::sleep(minutes(12)).await;
    let attach = AttachNetworkInterface { eni: eni.clone(), instance: other, card: 0, device: 1 };
    world.cloud.model().call_from("somebody", Request::from(attach), world.cloud.now()).result.unwrap();
    tokio::time::sleep(minutes(120)).await;
    assert!(world.cloud.model().state().enis.contains_key(&eni));
    node.stop().await;
}

/// What the elected node has handed on, in turn.
fn handed_on(world: &mut World) -> Vec<Shared> {
    let shared = world.reported().into_iter().filter_map(|report| match report {
        Report::Shared(shared) => Some(shared),
        Report::Notice(_) | Report::Condition(_) | Report::Features(_) | Report::PodIps(_) => None,
    });
    shared.collect()
}

/// Groups by the tags of instances and by the names of security groups.
fn groups() -> BTreeMap<String, Group> {
    let names = Group { names: ["default".to_owned()].into(), ..Group::default() };
    let tags = Group { tags: [("role".to_owned(), "db".to_owned())].into(), ..Group::default() };
    [("by-name".to_owned(), names), ("by-tag".to_owned(), tags)].into()
}

#[tokio::test(start_paused = true)]
async fn the_elected_node_asks_who_is_in_the_groups_and_where_routes_lead() {
    let mut clouds = SimCloud::fleet(Settings::aws(), 2, "m5.large", "10.0.1.0/24");
    let db = clouds[1].instance();
    let mut world = World::of(clouds.remove(0));
    world.set("SLUICE_EXCLUDE_SNAT_ROUTES", "true");
    let node = world.settled().await;
    let (before, table) = {
        let tag = CreateTags { resources: vec![db.to_string()], tags: [("role".to_owned(), "db".to_owned())].into() };
        let now = world.cloud.now();
        let mut model = world.cloud.model();
        model.call_from("somebody", Request::from(tag), now).result.unwrap();
        let vpc = model.state().vpcs.keys().next().unwrap().clone();
        let other = model.add_vpc(&["10.9.0.0/16".parse().unwrap()], None, BTreeMap::new()).unwrap();
        let peering = model.add_peering(&vpc, &other).unwrap();
        let table = model.state().vpcs[&vpc].main_route_table.clone();
        let destination: ipnet::Ipv4Net = "10.9.0.0/16".parse().unwrap();
        model.set_route(&table, destination, Some(RouteTarget::Peering(peering))).unwrap();
        (model.state().attached(&db)[0].primary, table)
    };
    let asked = |world: &World, api: &str| world.cloud.counts().get(api).copied().unwrap_or_default();
    tokio::time::sleep(minutes(10)).await;
    assert_eq!(asked(&world, "DescribeRouteTables"), 0, "nobody is elected");
    node.tell(Told::Elected(true)).await;
    node.tell(Told::Groups(groups())).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let shared = handed_on(&mut world);
    let routes: Vec<_> = shared.iter().filter_map(|shared| shared.routes.clone()).collect();
    assert_eq!(routes, [["10.9.0.0/16".parse().unwrap()]]);
    let of = |name: &str| shared.iter().find_map(|shared| shared.groups.get(name).cloned()).unwrap();
    assert_eq!(of("by-tag"), [ipnet::IpNet::from(IpAddr::V4(before))]);
    assert!(of("by-name").len() > 1, "the node's own ENIs are in the group too");
    // Once a minute, and no more.
    let looks = asked(&world, "DescribeRouteTables");
    tokio::time::sleep(minutes(10)).await;
    assert!((9..=11).contains(&(asked(&world, "DescribeRouteTables") - looks)));

    // EC2 refuses: what was told stays, and it is said once.
    handed_on(&mut world);
    world.cloud.set_down(true);
    tokio::time::sleep(minutes(5)).await;
    assert!(handed_on(&mut world).is_empty());
    world.cloud.set_down(false);
    world.cloud.model().set_route(&table, "10.9.0.0/16".parse::<ipnet::Ipv4Net>().unwrap(), None).unwrap();
    tokio::time::sleep(minutes(3)).await;
    assert_eq!(handed_on(&mut world).last().unwrap().routes, Some(Vec::new()));
    // Another is elected.
    node.tell(Told::Elected(false)).await;
    tokio::time::sleep(minutes(1)).await;
    let looks = asked(&world, "DescribeRouteTables");
    tokio::time::sleep(minutes(60)).await;
    assert_eq!(asked(&world, "DescribeRouteTables"), looks);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_denied_group_is_said_once_and_a_new_one_is_asked_for_at_once() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    world.reported();
    let denied =
        FaultEffect::Error { code: "UnauthorizedOperation".into(), message: "Denied.".into(), status: Some(403) };
    let fault = Fault { action: Some("DescribeInstances".into()), effect: denied, count: None, of_million: None };
    world.cloud.model().add_fault(fault).unwrap();
    node.tell(Told::Elected(true)).await;
    node.tell(Told::Groups(groups())).await;
    tokio::time::sleep(minutes(10)).await;
    let reported = world.reported();
    let notices = reported.iter().filter(|report| {
        matches!(report, Report::Notice(Notice { reason: "GroupNotResolved", message, .. }) if message.contains("by-tag"))
    });
    assert_eq!(notices.count(), 1, "{reported:#?}");
    let knows = |name: &str| {
        reported.iter().any(|report| matches!(report, Report::Shared(shared) if shared.groups.contains_key(name)))
    };
    assert!(knows("by-name") && !knows("by-tag"));
    world.cloud.model().clear_faults();
    tokio::time::sleep(minutes(3)).await;
    assert!(handed_on(&mut world).iter().any(|shared| shared.groups.contains_key("by-tag")));
    let mut more = groups();
    more.insert("new".to_owned(), Group { ids: ["sg-00000001".to_owned()].into(), ..Group::default() });
    node.tell(Told::Groups(more)).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let shared = handed_on(&mut world);
    assert!(matches!(shared.as_slice(), [one] if one.groups.keys().eq(["new"])), "{shared:?}");
    node.stop().await;
}

/// The Events of a reason that have been reported since this was last asked.
fn notices(world: &mut World, wanted: &str) -> Vec<String> {
    let notices = world.reported().into_iter().filter_map(|report| match report {
        Report::Notice(Notice { reason, message, .. }) if reason == wanted => Some(message),
        _ => None,
    });
    notices.collect()
}

#[tokio::test(start_paused = true)]
async fn groups_that_are_too_many_are_said_and_counted() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let named = |count: usize| -> Told {
        let group = |number: usize| Group { ids: [format!("sg-{number:08x}")].into(), ..Group::default() };
        Told::Groups((0..count).map(|number| (format!("sluice-aws-{number:04}"), group(number))).collect())
    };
    node.tell(named(MOST_GROUPS + 3)).await;
    node.view().await;
    let told = notices(&mut world, "TooManyGroups");
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("name 503 groups") && told[0].contains("3 are not, sluice-aws-0500 first"), "{told:?}");
    assert_eq!(node.counted("sluice_ipamd_groups_left_out"), 3);
    assert_eq!(node.counted("sluice_ipamd_groups"), 500);
    node.tell(named(MOST_GROUPS)).await;
    node.view().await;
    assert_eq!(node.counted("sluice_ipamd_groups_left_out"), 0);
    assert!(notices(&mut world, "TooManyGroups").is_empty());
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_ec2_does_not_answer_about_is_told_as_that_when_it_lasts() {
    let mut world = World::new("m5.large");
    world.set("SLUICE_EXCLUDE_SNAT_ROUTES", "true");
    let node = world.settled().await;
    world.reported();
    for action in ["DescribeInstances", "DescribeRouteTables"] {
        let effect = FaultEffect::TimeoutBeforeEffect;
        let fault = Fault { action: Some(action.into()), effect, count: None, of_million: None };
        world.cloud.model().add_fault(fault).unwrap();
    }
    node.tell(Told::Elected(true)).await;
    node.tell(Told::Groups(groups())).await;
    tokio::time::sleep(minutes(20)).await;
    let reported = world.reported();
    let told = |wanted: &str| -> Vec<String> {
        let notices = reported.iter().filter_map(|report| match report {
            Report::Notice(Notice { reason, message, .. }) if *reason == wanted => Some(message.clone()),
            _ => None,
        });
        notices.collect()
    };
    for (reason, what) in [("GroupNotResolved", "by-tag"), ("RoutesNotResolved", "routes")] {
        let told = told(reason);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains(what) && told[0].contains("no answer"), "{told:?}");
    }
    // And it goes on when EC2 answers again.
    world.cloud.model().clear_faults();
    tokio::time::sleep(minutes(5)).await;
    assert!(handed_on(&mut world).iter().any(|shared| shared.groups.contains_key("by-tag") && shared.routes.is_some()));
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_free_in_subnets_is_told_while_it_is_known_and_the_elected_node_asks_on() {
    let mut world = World::new("m5.large");
    let node = world.settled().await;
    let asked = |world: &World| world.cloud.counts().get("DescribeSubnets").copied().unwrap_or_default();
    let told = async |node: &Node| -> Option<u64> {
        node.metrics.set_pool(&node.view().await.pool);
        let text = node.metrics.encode();
        let line = text.lines().find_map(|line| line.strip_prefix("sluice_subnet_free_addresses{subnet="))?;
        Some(line.split_once(' ')?.1.parse().unwrap())
    };
    // A /24 has 251; the node's ENIs have taken some.
    let at_first = told(&node).await.unwrap();
    assert!((200..=251).contains(&at_first), "{at_first}");
    let before = asked(&world);
    tokio::time::sleep(minutes(16)).await;
    assert_eq!(told(&node).await, None, "it was said a quarter of an hour ago");
    assert_eq!(asked(&world), before, "a pool at rest asks nobody");
    node.tell(Told::Elected(true)).await;
    tokio::time::sleep(minutes(61)).await;
    let asks = asked(&world) - before;
    assert!((12..=14).contains(&asks), "{asks} times in an hour");
    let later = told(&node).await.unwrap();
    node.add("a").await.unwrap();
    // Denied, it is no obstacle to the pool, and what is known ends again.
    let denied =
        FaultEffect::Error { code: "UnauthorizedOperation".into(), message: "Denied.".into(), status: Some(403) };
    let fault = Fault { action: Some("DescribeSubnets".into()), effect: denied, count: None, of_million: None };
    world.cloud.model().add_fault(fault).unwrap();
    tokio::time::sleep(minutes(9)).await;
    assert_eq!(told(&node).await, Some(later), "what EC2 said last");
    tokio::time::sleep(minutes(10)).await;
    assert_eq!(told(&node).await, None);
    world.cloud.model().clear_faults();
    node.tell(Told::Elected(false)).await;
    tokio::time::sleep(minutes(1)).await;
    let before = asked(&world);
    tokio::time::sleep(minutes(60)).await;
    assert_eq!(asked(&world), before, "another is elected");
    node.stop().await;
}
