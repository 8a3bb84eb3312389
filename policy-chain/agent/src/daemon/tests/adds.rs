//! ADD waits, is refused, is answered; DEL, GC, CHECK and STATUS.

use sluice_contract::id::{IfName, NetworkName};
use sluice_contract::rpc::{
    GateInterface, GcRequest, PolicyCall, PolicyCheck, PolicyCheckReply, PolicyOutcome, RefusalCode,
};

use super::sim::*;
use crate::datapath::model::Attached;
use crate::inbox::Input;
use crate::testing::{add, attachment};

const FRIEND: &str = "10.1.0.1";
const STRANGER: &str = "10.1.0.2";

#[tokio::test(start_paused = true)]
async fn a_known_pod_is_served_at_once_and_its_policy_is_in_force() {
    let node = Node::with(&[scene(), pod("a", "app: a"), pod("b", "app: b")].concat()).await;
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    assert_eq!(node.kernel(|kernel| kernel.attached(7)), Some(Attached::Gate));
    assert!(node.passes(7, FRIEND, 80));
    assert!(!node.passes(7, FRIEND, 81));
    assert!(!node.passes(7, STRANGER, 80));
    // Nothing restricts b.
    assert!(node.add("c2", "b", 8).await.unwrap().is_ok());
    assert!(node.passes(8, STRANGER, 80));
    let view = node.view().await;
    assert_eq!((view.endpoints.len(), view.waiting, view.synced), (2, 0, true));
    assert_eq!(view.policies[0].generation, Some(3));
}

#[tokio::test(start_paused = true)]
async fn an_add_waits_for_its_pod_and_for_every_policy_that_was_received() {
    let node = Node::with(&scene()).await;
    let mut asked = node.begin(add("c1", "a", 7)).await;
    node.wait(3000).await;
    assert_eq!(asked.answer(), None);
    assert_eq!(node.view().await.waiting, 1);
    assert!(!node.passes(7, FRIEND, 80), "it is closed while it waits");
    // A policy, then the pod: both are in force with the answer.
    node.source.set(&[policy("q", "a", "nobody"), pod("a", "app: a")].concat());
    node.source.remove(policy_id("p"));
    node.settle().await;
    assert!(asked.answer().unwrap().is_ok());
    assert!(!node.passes(7, FRIEND, 80));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_watch_is_late_with_is_looked_up_once() {
    let node = Node::with(&scene()).await;
    node.source.hide(&pod("a", "app: a"));
    let mut asked = node.begin(add("c1", "a", 7)).await;
    node.wait(490).await;
    assert_eq!(node.source.world(|world| world.looked_up.len()), 0);
    assert_eq!(asked.answer(), None);
    node.wait(50).await;
    assert!(asked.answer().unwrap().is_ok());
    assert!(node.passes(7, FRIEND, 80) && !node.passes(7, STRANGER, 80));
    // One that is nowhere is asked for once, and refused in time.
    let mut asked = node.begin(add("c2", "nowhere", 8)).await;
    node.wait(9900).await;
    assert_eq!(asked.answer(), None);
    node.wait(200).await;
    let refusal = asked.answer().unwrap().unwrap_err();
    assert_eq!(refusal.code, RefusalCode::PolicyNotReady);
    assert!(refusal.code.is_retriable());
    assert!(refusal.message.contains("not yet told of the pod web/nowhere"), "{refusal}");
    assert_eq!(node.source.world(|world| world.looked_up.len()), 2);
    assert_eq!(node.kernel(|kernel| kernel.attached(8)), Some(Attached::Drop));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_served_before_everything_has_been_told() {
    let mut node = Node::stopped();
    node.source.set(&[scene(), pod("a", "app: a")].concat());
    node.source.silent(true);
    node.start().await;
    let mut asked = node.begin(add("c1", "a", 7)).await;
    node.wait(4000).await;
    assert_eq!(asked.answer(), None);
    assert!(!node.view().await.serving);
    node.source.silent(false);
    node.settle().await;
    assert!(asked.answer().unwrap().is_ok());
    assert!(!node.passes(7, STRANGER, 80));
    // And one whose time ends first is told why.
    node.kill().await;
    node.age(std::time::Duration::from_secs(1000));
    node.source.silent(true);
    node.start().await;
    let mut asked = node.begin(add("c2", "a", 8)).await;
    node.wait(10_100).await;
    let refusal = asked.answer().unwrap().unwrap_err();
    assert_eq!(refusal.code, RefusalCode::PolicyNotReady);
    assert!(refusal.message.contains("the API server is away"), "{refusal}");
}

#[tokio::test(start_paused = true)]
async fn the_pod_is_meant_by_its_uid() {
    let node = Node::with(&[scene(), pod_of("a", "u-old", NODE, "app: b")].concat()).await;
    let mut asked = node.begin(add("c1", "a", 7)).await;
    node.wait(2000).await;
    assert_eq!(asked.answer(), None, "the successor is not known yet");
    node.source.set(&pod("a", "app: a"));
    node.settle().await;
    assert!(asked.answer().unwrap().is_ok());
    assert!(!node.passes(7, STRANGER, 80));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_served_is_refused_with_the_reason() {
    let finished = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: done, namespace: web, uid: u-done}\n\
                    spec: {nodeName: node-1}\nstatus: {phase: Succeeded}\n";
    let host = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: host, namespace: web, uid: u-host}\n\
                spec: {nodeName: node-1, hostNetwork: true}\n";
    let node = Node::with(&[&scene(), finished, host, &pod_of("far", "u-far", "node-2", "")].concat()).await;
    for (name, words) in [
        ("done", "has ended"),
        ("host", "host's network"),
        ("far", "on node node-2 for the cluster, and this node is node-1"),
    ] {
        let mut asked = node.begin(add(name, name, 7)).await;
        node.wait(10_050).await;
        let refusal = asked.answer().unwrap().unwrap_err();
        assert!(refusal.message.contains(words), "{refusal}");
    }
    // What can never be served is refused at once.
    let mut nameless = add("c", "a", 9);
    nameless.pod.name.clear();
    let mut bare = add("c", "a", 9);
    bare.interfaces.clear();
    let mut addressless = add("c", "a", 9);
    addressless.interfaces[0].addresses.clear();
    for request in [nameless, bare, addressless] {
        let mut asked = node.begin(request).await;
        node.settle().await;
        assert_eq!(asked.answer().unwrap().unwrap_err().code, RefusalCode::BadRequest);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_a_file_without_node_is_of_the_node_that_runs_it() {
    let bare = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: web, labels: {app: a}}\n";
    let node = Node::with(&[&scene(), bare].concat()).await;
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    assert!(node.passes(7, FRIEND, 80) && !node.passes(7, STRANGER, 80));
    node.del("c1").await;
    assert!(!node.passes(7, FRIEND, 80));
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_add_leaves_the_queue() {
    let node = Node::with(&scene()).await;
    let asked = node.begin(add("c1", "a", 7)).await;
    node.send(Input::Withdrawn(asked.token)).await;
    node.settle().await;
    assert_eq!(node.view().await.waiting, 0);
    node.source.set(&pod("a", "app: a"));
    node.settle().await;
    assert_eq!(node.kernel(|kernel| kernel.attached(7)), Some(Attached::Drop));
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded() {
    let node = Node::with(&scene()).await;
    let mut waiting = Vec::new();
    for number in 0..8 {
        waiting.push(node.begin(add(&format!("c{number}"), "nowhere", 10 + number)).await);
    }
    assert_eq!(node.refused("c9", "nowhere", 30).await, RefusalCode::QueueFull);
    assert_eq!(node.view().await.waiting, 8);
}

#[tokio::test(start_paused = true)]
async fn a_del_cancels_a_waiting_add_and_turns_a_gate_to_drop() {
    let node = Node::with(&[scene(), pod("b", "app: b")].concat()).await;
    let mut asked = node.begin(add("c1", "a", 7)).await;
    node.settle().await;
    node.del("c1").await;
    assert_eq!(asked.answer().unwrap().unwrap_err().code, RefusalCode::Cancelled);
    assert!(node.add("c2", "b", 8).await.unwrap().is_ok());
    assert!(node.passes(8, STRANGER, 80));
    node.del("c2").await;
    assert_eq!(node.kernel(|kernel| kernel.attached(8)), Some(Attached::Gate), "nothing is detached");
    assert!(!node.passes(8, STRANGER, 80));
    // Twice, and of nobody: success.
    node.del("c2").await;
    node.del("unknown").await;
    assert!(node.view().await.endpoints.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_late_del_does_not_hit_the_successor_of_the_same_name() {
    let node = Node::with(&[scene(), pod_of("a", "u-old", NODE, "app: b")].concat()).await;
    let mut first = add("c1", "a", 7);
    first.pod.uid = Some("u-old".into());
    let mut asked = node.begin(first).await;
    node.settle().await;
    assert!(asked.answer().unwrap().is_ok());
    assert!(node.passes(7, STRANGER, 80));
    // The successor comes before the DEL: the old sandbox has another pod's name from now on.
    node.source.set(&pod("a", "app: a"));
    node.settle().await;
    assert!(!node.passes(7, FRIEND, 80), "the old sandbox drops");
    assert!(node.add("c2", "a", 8).await.unwrap().is_ok());
    assert!(node.passes(8, FRIEND, 80));
    node.del("c1").await;
    node.settle().await;
    assert!(node.passes(8, FRIEND, 80) && !node.passes(8, STRANGER, 80));
    let view = node.view().await;
    assert_eq!(view.endpoints.iter().map(|endpoint| endpoint.index).collect::<Vec<_>>(), [8]);
}

#[tokio::test(start_paused = true)]
async fn a_second_sandbox_of_a_pod_has_its_addresses_and_the_first_one_has_not() {
    let node = Node::with(&[scene(), pod("a", "app: a")].concat()).await;
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    assert!(node.add("c2", "a", 8).await.unwrap().is_ok());
    // A pod may always reach itself: at its own address, which is the younger sandbox's.
    assert!(node.passes(8, "10.0.0.8", 81) && !node.passes(8, "10.0.0.7", 81));
    node.del("c1").await;
    assert!(node.passes(8, "10.0.0.8", 81) && node.passes(8, FRIEND, 80));
    node.del("c2").await;
    assert!(!node.passes(8, FRIEND, 80));
}

#[tokio::test(start_paused = true)]
async fn the_same_add_again_is_answered_again() {
    let node = Node::with(&[scene(), pod("a", "app: a")].concat()).await;
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    assert!(node.passes(7, FRIEND, 80) && !node.passes(7, STRANGER, 80));
    // With another interface: the first one is nobody's any more.
    assert!(node.add("c1", "a", 8).await.unwrap().is_ok());
    assert!(node.passes(8, FRIEND, 80));
    assert!(!node.passes(7, FRIEND, 80));
    assert_eq!(node.view().await.endpoints.len(), 1);
}

/// A pod with an interface on each network card is one attachment here.
#[tokio::test(start_paused = true)]
async fn a_pod_with_two_interfaces_has_two_gates_and_is_known_by_both_addresses() {
    let mut node = Node::with(&[scene(), pod("a", "app: a"), pod("two", "app: a, role: friend")].concat()).await;
    let mut request = add("c1", "two", 7);
    let second = add("c1", "two", 8).interfaces.remove(0);
    request.interfaces.push(GateInterface { container: IfName::new("mNicIf1").unwrap(), ..second });
    let mut asked = node.begin(request.clone()).await;
    node.settle().await;
    assert!(asked.answer().unwrap().is_ok());
    assert!(node.add("c2", "a", 9).await.unwrap().is_ok());
    let in_force = |node: &Node| {
        for (index, other) in [(7, "10.0.0.8"), (8, "10.0.0.7")] {
            let attached = node.kernel(|kernel| kernel.attached(index));
            assert!(matches!(attached, Some(Attached::Gate | Attached::Links)), "{attached:?}");
            assert!(
                node.passes(index, FRIEND, 80) && !node.passes(index, STRANGER, 80) && !node.passes(index, FRIEND, 81)
            );
            assert!(node.passes(index, other, 81), "a pod may always reach itself");
            // Another pod of the node takes it for the friend that it is.
            assert!(node.passes(9, other, 80) && !node.passes(9, other, 81));
        }
    };
    in_force(&node);
    let check = PolicyCheck { attachment: request.attachment, interfaces: request.interfaces };
    let PolicyOutcome::Check(checked) = node.call(PolicyCall::Check(check)).await else { panic!() };
    assert_eq!(checked.differences, Vec::<String>::new());
    node.wait(10_000).await;
    let published = node.source.world(|world| world.published.clone());
    let of_pod: Vec<_> = published.iter().filter(|(pod, _)| &*pod.name == "two").map(|(_, all)| all.len()).collect();
    assert_eq!(of_pod, [2], "other nodes are told of both");

    // Its status has the address alone that the runtime knows; its sandbox is the better witness, also after a restart.
    let status = pod("two", "app: a, role: friend").replace("Running", "Running, podIPs: [{ip: 10.0.0.7}]");
    node.source.set(&status);
    node.settle().await;
    in_force(&node);
    node.kill().await;
    in_force(&node);
    node.start().await;
    node.settle().await;
    in_force(&node);
    node.del("c1").await;
    node.settle().await;
    assert!(!node.passes(7, FRIEND, 80) && !node.passes(8, FRIEND, 80));
    assert!(!node.passes(9, "10.0.0.8", 80), "it is nobody's any more");
}

/// policyd knows of links that have come since it began, by the ADDs that brought them.
#[tokio::test(start_paused = true)]
async fn a_pod_that_loses_one_interface_keeps_the_other() {
    let old = pod("old", "app: a").replace("Running", "Running, podIPs: [{ip: 10.0.0.99}]");
    let node = Node::with(&[scene(), pod("two", "app: a"), old].concat()).await;
    node.send(Input::Links(node.kernel(|kernel| kernel.links()))).await;
    let mut request = add("c1", "two", 7);
    let second = add("c1", "two", 8).interfaces.remove(0);
    request.interfaces.push(GateInterface { container: IfName::new("mNicIf1").unwrap(), ..second });
    let gates = request.interfaces.iter().map(crate::daemon::interface);
    assert_eq!(gates.map(|gate| gate.first).collect::<Vec<_>>(), [true, false]);
    let mut asked = node.begin(request).await;
    node.settle().await;
    assert!(asked.answer().unwrap().is_ok());
    node.kernel(|kernel| kernel.unplug(8));
    node.send(Input::LinkGone(8)).await;
    node.settle().await;
    assert!(!node.view().await.endpoints.is_empty());
    assert!(node.passes(7, FRIEND, 80) && !node.passes(7, STRANGER, 80));
    node.kernel(|kernel| kernel.unplug(7));
    node.send(Input::LinkGone(7)).await;
    assert!(node.view().await.endpoints.is_empty());
    // Neither number is barred: here it is that of a pod's which policyd has not been asked about.
    let of = sluice_contract::id::PodRef { namespace: "web".into(), name: "old".into(), uid: None };
    let name = sluice_contract::node::host_veth("eni", &of, 0).unwrap();
    node.kernel(|kernel| kernel.plug_named(8, name.as_str(), Attached::Nothing));
    node.send(Input::Links(node.kernel(|kernel| kernel.links()))).await;
    node.settle().await;
    assert!(node.passes(8, FRIEND, 80) && !node.passes(8, STRANGER, 80));
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_outlives_its_pods_object() {
    let node = Node::with(&[scene(), pod("a", "app: a")].concat()).await;
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    node.source.remove(pod_id("a"));
    node.settle().await;
    assert!(node.passes(7, FRIEND, 80) && !node.passes(7, STRANGER, 80));
    // It still follows its policies.
    node.source.set(&policy("p", "a", "other"));
    node.settle().await;
    assert!(!node.passes(7, FRIEND, 80) && node.passes(7, STRANGER, 80));
    node.del("c1").await;
    node.settle().await;
    assert_eq!(node.view().await.pods, 2);
}

#[tokio::test(start_paused = true)]
async fn gc_removes_what_the_runtime_does_not_know() {
    let node = Node::with(&[scene(), pod("a", "app: a"), pod("b", "app: b")].concat()).await;
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    assert!(node.add("c2", "b", 8).await.unwrap().is_ok());
    let gone = attachment("c1");
    let valid = vec![sluice_contract::cni::GcAttachment::new(gone.container.clone(), gone.ifname.clone())];
    let other = GcRequest { network: NetworkName::new("other").unwrap(), valid: Vec::new() };
    node.call(PolicyCall::Gc(other)).await;
    assert_eq!(node.view().await.endpoints.len(), 2, "another network's");
    node.call(PolicyCall::Gc(GcRequest { network: gone.network, valid })).await;
    assert!(node.passes(7, FRIEND, 80) && !node.passes(8, FRIEND, 80));
}

#[tokio::test(start_paused = true)]
async fn check_says_what_is_not_as_it_should_be() {
    let node = Node::with(&[scene(), pod("a", "app: a")].concat()).await;
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    let check = async |request: sluice_contract::rpc::PolicyAdd| {
        let request = PolicyCheck { attachment: request.attachment, interfaces: request.interfaces };
        match node.try_call(PolicyCall::Check(request)).await {
            Ok(PolicyOutcome::Check(PolicyCheckReply { differences, .. })) => differences,
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => vec![refusal.code.to_string()],
        }
    };
    assert_eq!(check(add("c1", "a", 7)).await, Vec::<String>::new());
    assert_eq!(check(add("c9", "a", 7)).await, ["unknown_attachment"]);
    assert!(check(add("c1", "a", 8)).await[0].contains("eni8 (index 8) has no gate"));
    let mut other = add("c1", "a", 7);
    other.interfaces[0].addresses = vec!["10.0.0.99".parse().unwrap()];
    assert!(check(other).await[0].contains("10.0.0.99"));
    node.kernel(|kernel| kernel.strip(7));
    assert!(check(add("c1", "a", 7)).await[0].contains("in place of the gate"));
}

#[tokio::test(start_paused = true)]
async fn status_counts_gates() {
    let node = Node::with(&[scene(), pod("a", "app: a")].concat()).await;
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    let PolicyOutcome::Status(status) = node.call(PolicyCall::Status).await else { panic!() };
    assert_eq!((status.endpoints, status.synced), (1, true));
    assert!(status.revision > 0);
    assert!(node.dir.path().join("run/policy/ready").exists());
}

#[tokio::test(start_paused = true)]
async fn a_pods_address_and_a_policys_status_are_made_known_and_tried_again() {
    let node = Node::with(&[scene(), pod("a", "app: a")].concat()).await;
    node.source.world(|world| world.failing = 3);
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    node.wait(10_000).await;
    let published = node.source.world(|world| world.published.clone());
    assert_eq!(published.len(), 1);
    assert_eq!(published[0].1, ["10.0.0.7".parse::<std::net::IpAddr>().unwrap()]);
}
