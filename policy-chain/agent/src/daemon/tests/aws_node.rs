//! A node that the AWS VPC CNI's daemon serves.

use super::sim::*;
use crate::datapath::model::Attached;
use crate::inbox::Input;

const FRIEND: &str = "10.1.0.1";
const STRANGER: &str = "10.1.0.2";

const OLD: &str = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: old, namespace: web, uid: u-old, labels: {app: a}}\n\
                   spec: {nodeName: node-1}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.77}]}\n";

/// The interface of [`OLD`], and all others of the node, as the link watch tells.
async fn with_old(node: &Node) {
    let of = sluice_contract::id::PodRef { namespace: "web".into(), name: "old".into(), uid: None };
    let name = sluice_contract::node::host_veth("eni", &of, 0).unwrap();
    node.kernel(|kernel| {
        kernel.plug_named(77, name.as_str(), Attached::Nothing);
        kernel.uplink.get_or_insert(Attached::Nothing);
    });
    let links = node.kernel(|kernel| kernel.links());
    node.send(Input::Links(links)).await;
}

fn untouched(node: &Node) {
    assert_eq!(node.kernel(|kernel| kernel.attached(77)), Some(Attached::Nothing), "the pod is its");
    let told = |notice: &crate::cluster::Notice| notice.reason == "PodWithoutGate";
    assert!(!node.source.world(|world| world.notices.iter().any(told)), "which is no news");
}

#[tokio::test(start_paused = true)]
async fn while_aws_node_serves_nothing_is_adopted_or_tended_and_then_all_is() {
    let mut node = Node::stopped();
    node.aws_node = true;
    node.source.set(&[scene(), OLD.to_owned()].concat());
    node.start().await;
    with_old(&node).await;
    // Every timer has come several times.
    for _ in 0..30 {
        node.send(Input::VethChanged).await;
        node.send(Input::NetworkChanged { of_pod: false }).await;
        node.wait(10_000).await;
        untouched(&node);
        assert_eq!(node.kernel(|kernel| kernel.uplink), Some(Attached::Nothing));
    }
    let view = node.view().await;
    assert!(view.aws_node && view.synced && view.without_gate == ["web/old"], "{view:?}");
    assert!(!node.is_marked(), "no conflist is to be written for it");
    node.send(Input::AwsNodeGone).await;
    node.settle().await;
    assert!(node.passes(77, FRIEND, 80) && !node.passes(77, STRANGER, 80));
    assert_eq!(node.kernel(|kernel| kernel.uplink), Some(Attached::Gate));
    assert!(!node.view().await.aws_node && node.is_marked());
}

/// Somebody has started the VPC CNI's daemon beside it: what is enforced stays enforced, by the policy of now.
#[tokio::test(start_paused = true)]
async fn on_a_node_with_gates_aws_node_stops_no_policy() {
    let mut node = Node::with(&[scene(), pod("a", "app: a")].concat()).await;
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    node.kernel(|kernel| kernel.uplink = Some(Attached::Gate));
    node.kill().await;
    node.aws_node = true;
    node.source.set(OLD);
    node.start().await;
    node.settle().await;
    with_old(&node).await;
    let is_gated =
        |node: &Node| matches!(node.kernel(|kernel| kernel.attached(7)), Some(Attached::Gate | Attached::Links));
    assert!(is_gated(&node), "by this process");
    assert_eq!(node.kernel(|kernel| kernel.uplink), Some(Attached::Gate));
    node.kernel(|kernel| kernel.strip(7));
    node.send(Input::HooksChanged(7)).await;
    node.wait(100).await;
    assert!(is_gated(&node), "what was taken away is put back");
    node.wait(120_000).await;
    assert!(node.passes(7, FRIEND, 80) && !node.passes(7, STRANGER, 80));
    untouched(&node);
    node.source.set(&policy("p", "a", "other"));
    node.settle().await;
    assert!(!node.passes(7, FRIEND, 80) && node.passes(7, STRANGER, 80));
    assert!(node.view().await.aws_node, "and it is not ready");
}
