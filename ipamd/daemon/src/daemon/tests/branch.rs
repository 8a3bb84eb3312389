//! Pods with security groups of their own.

use sluice_contract::node::branch::Mode;
use sluice_contract::rpc::CheckRequest;
use sluice_vpcsim::model::api::{AttachNetworkInterface, CreateNetworkInterface};
use sluice_vpcsim::model::state::InterfaceType;
use sluice_vpcsim::model::{Reply as Ec2Reply, Request};

use super::*;
use crate::cluster::{Claim, Claims, Feature, Told};
use crate::inbox::Input;

fn annotation(vlan: u16, address: &str) -> Option<String> {
    Some(format!(
        r#"[{{"eniId":"eni-0a1b2c3d4e5f6{vlan:04}","ifAddress":"02:00:00:00:00:30","privateIp":"{address}","vlanId":{vlan},
        "subnetCidr":"10.0.2.0/24"}}]"#
    ))
}

/// What pods say: their names, and what is wanted of a branch ENI.
fn claims(pods: &[(&str, Option<Option<String>>)]) -> Told {
    let claim = |(name, wants): &(&str, Option<Option<String>>)| {
        let claim = Claim { uid: None, wants: wants.is_some(), annotation: wants.clone().flatten() };
        (("default".to_owned(), (*name).to_owned()), claim)
    };
    Told::Claims(pods.iter().map(claim).collect::<Claims>())
}

async fn tell(node: &Node, told: Told) {
    node.handle.send(Input::Told(told)).await;
}

fn world() -> World {
    let mut world = World::new("m5.large");
    world.set("ENABLE_POD_ENI", "true");
    world.set("MY_NODE_NAME", "n1");
    world.set("WARM_IP_TARGET", "1");
    world
}

/// What AWS's controller does.
fn attach_trunk(world: &World) {
    let now = world.cloud.now();
    let mut create = CreateNetworkInterface::new(world.cloud.owned().0[0].subnet.clone());
    create.interface_type = InterfaceType::Trunk;
    let made = world.cloud.model().call_from("controller", Request::from(create), now).result;
    let Ok(Ec2Reply::NetworkInterface(eni)) = made else { panic!("{made:?}") };
    let attach = AttachNetworkInterface { eni: eni.id, instance: world.cloud.instance(), card: 0, device: 1 };
    world.cloud.model().call_from("controller", Request::from(attach), now).result.unwrap();
}

async fn check(node: &Node, container: &str) -> Result<Vec<PodAddress>, RefusalCode> {
    let request = CheckRequest { attachment: attachment(container) };
    match node.ask(Call::Check(request), Duration::from_secs(10)).await {
        Reply::Done(Outcome::Add(AddReply { addresses, .. })) => Ok(addresses),
        Reply::Refused(refusal) => Err(refusal.code),
        other => panic!("CHECK answered {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_its_branch_eni_and_has_it_until_its_del() {
    let mut world = world();
    let node = world.settled().await;
    let features = world.reported().into_iter().filter(|report| matches!(report, Report::Features(_)));
    let trunk = Feature { name: "SecurityGroupsForPods".to_owned(), value: String::new() };
    assert_eq!(features.collect::<Vec<_>>(), [Report::Features(vec![trunk])]);

    let five = Duration::from_secs(5);
    let why = async |node: &Node, container: &str| {
        let refusal = node.add_within(container, five).await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::PodEniPending, "{refusal:?}");
        refusal.message
    };
    assert!(why(&node, "plain").await.ends_with("no pods of this node are"));
    tell(&node, claims(&[("plain", None), ("own", Some(None))])).await;
    assert_eq!(node.add("plain").await.unwrap().branch, None);
    assert!(why(&node, "stranger").await.ends_with("the API server has not told of it"));
    assert!(why(&node, "own").await.ends_with("it has no annotation vpc.amazonaws.com/pod-eni yet"));
    let told = claims(&[("plain", None), ("own", Some(annotation(7, "10.0.2.30")))]);
    tell(&node, told).await;
    assert!(why(&node, "own").await.contains("waits for the node's trunk ENI"));
    attach_trunk(&world);
    node.wait("the trunk", |view| view.enis.len() == 2 && view.is_settled()).await;

    let own = node.add("own").await.unwrap();
    let branch = own.branch.unwrap();
    assert_eq!((own.ip.to_string().as_str(), own.table, own.device), ("10.0.2.30", 107, 1));
    assert_eq!((branch.vlan.get(), branch.mode, branch.gateway.to_string().as_str()), (7, Mode::Strict, "10.0.2.1"));
    assert_eq!(node.add("own").await.unwrap(), own, "the same again");
    assert_eq!(node.view().await.pool.violations, 0);

    // Neither the API server nor EC2 has to answer for what is known.
    node.kill().await;
    world.cloud.set_down(true);
    let node = world.start().await;
    assert_eq!(check(&node, "own").await.unwrap(), std::slice::from_ref(&own));
    assert_eq!(node.add("own").await.unwrap(), own);
    assert_eq!(node.del("own").await, [own]);
    assert_eq!(node.del("own").await, []);
    assert_eq!(check(&node, "own").await, Err(RefusalCode::UnknownAttachment));
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_annotation_that_comes_while_an_add_waits_ends_the_waiting() {
    let mut world = world();
    world.set("POD_SECURITY_GROUP_ENFORCING_MODE", "standard");
    let node = world.settled().await;
    attach_trunk(&world);
    node.wait("the trunk", |view| view.enis.len() == 2 && view.is_settled()).await;
    tell(&node, claims(&[("a", Some(None)), ("b", Some(None))])).await;
    let later = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        tell(&node, claims(&[("a", Some(annotation(7, "10.0.2.30"))), ("b", Some(None))])).await;
        // The runtime gives the other one up.
        assert_eq!(node.del("b").await, []);
    };
    let begun = Instant::now();
    let (a, b, ()) = tokio::join!(node.add("a"), node.add("b"), later);
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!((a.unwrap().branch.unwrap().mode, b.unwrap_err().code), (Mode::Standard, RefusalCode::Cancelled));
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_an_annotation_has_wrong_is_said_and_nobody_has_anothers_vlan() {
    let mut world = world();
    let node = world.settled().await;
    attach_trunk(&world);
    node.wait("the trunk", |view| view.enis.len() == 2 && view.is_settled()).await;
    let pods = |broken: &str| {
        claims(&[
            ("a", Some(annotation(7, "10.0.2.30"))),
            ("b", Some(annotation(7, "10.0.2.31"))),
            ("broken", Some(Some(broken.to_owned()))),
        ])
    };
    tell(&node, pods("[{}]")).await;
    let refusal = node.add("broken").await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::BadRequest);
    assert!(
        refusal.message.starts_with("annotation vpc.amazonaws.com/pod-eni of pod default/broken cannot be used: "),
        "{refusal:?}"
    );
    // A plugin of before there were any; then one of now.
    let of_old = async || match node
        .ask(Call::Add(AddRequest { branches: false, ..add_request("a") }), Duration::from_secs(5))
        .await
    {
        Reply::Refused(refusal) => refusal.code,
        other => panic!("{other:?}"),
    };
    assert_eq!(of_old().await, RefusalCode::VersionSkew);
    let a = node.add("a").await.unwrap();
    assert_eq!(of_old().await, RefusalCode::VersionSkew);
    let refusal = node.add_within("b", Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(refusal.message, "VLAN 7 of pod default/b is that of pod default/a, which is still there");
    // Nor its address, by another VLAN.
    tell(&node, pods(&annotation(8, "10.0.2.30").unwrap())).await;
    let refusal = node.add_within("broken", Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(
        refusal.message,
        "address 10.0.2.30 of pod default/broken is that of pod default/a, which is still there"
    );
    assert_eq!(check(&node, "a").await.unwrap(), std::slice::from_ref(&a));
    // An address of the pool is nobody's branch.
    let pooled = world.cloud.owned().0[0].primary;
    let stolen =
        annotation(8, "10.0.2.32").unwrap().replace("10.0.2.32", &pooled.to_string()).replace("10.0.2.0", "10.0.1.0");
    tell(&node, pods(&stolen)).await;
    assert_eq!(node.add("broken").await.unwrap_err().code, RefusalCode::BadRequest);

    // The pod's veth is not there, and its DEL never comes: what it had is the next one's.
    tokio::time::sleep(Duration::from_secs(400)).await;
    assert_eq!(check(&node, "a").await, Err(RefusalCode::UnknownAttachment));
    assert_eq!(node.add("b").await.unwrap().branch, a.branch);
    assert_eq!(node.view().await.pool.violations, 0);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_lives_keeps_its_branch_and_is_put_right() {
    let mut world = world();
    let node = world.settled().await;
    attach_trunk(&world);
    node.wait("the trunk", |view| view.enis.len() == 2 && view.is_settled()).await;
    tell(&node, claims(&[("a", Some(annotation(7, "10.0.2.30")))])).await;
    node.add("a").await.unwrap();
    let dev = sluice_contract::node::branch::host_name(&host_ifname("a"), Mode::Strict);
    world.host.state().veths.insert(dev.clone());
    tokio::time::sleep(Duration::from_secs(400)).await;
    assert_eq!(check(&node, "a").await.unwrap().len(), 1);
    world.host.disturbed.notify_one();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let repaired = world.host.state().repaired.last().unwrap().1.clone();
    let pod = repaired.iter().find(|pod| pod.dev == dev).unwrap();
    assert_eq!((pod.table, pod.settled, pod.branch.is_some()), (107, true, true));
    // The trunk is set up, and nothing is sent from its own address.
    assert_eq!(world.host.state().enis.values().map(|eni| eni.trunk).collect::<Vec<_>>(), [true]);
    node.stop().await;
}
