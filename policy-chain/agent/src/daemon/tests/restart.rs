//! Restarts: nothing changes, nothing opens, and what went meanwhile is gone.

use std::time::Duration;

use super::sim::*;
use crate::datapath::model::Attached;

const FRIEND: &str = "10.1.0.1";
const STRANGER: &str = "10.1.0.2";

fn scene_with_pods() -> String {
    [scene(), pod("a", "app: a"), pod("b", "app: b")].concat()
}

async fn with_gates() -> Node {
    let node = Node::with(&scene_with_pods()).await;
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    assert!(node.add("c2", "b", 8).await.unwrap().is_ok());
    node
}

fn as_before(node: &Node) {
    assert!(node.passes(7, FRIEND, 80) && !node.passes(7, STRANGER, 80) && !node.passes(7, FRIEND, 81));
    assert!(node.passes(8, STRANGER, 80));
}

#[tokio::test(start_paused = true)]
async fn a_restart_changes_no_verdict_and_forgets_nobody() {
    let mut node = with_gates().await;
    let sizes = node.kernel(|kernel| kernel.sizes());
    for _ in 0..3 {
        node.kill().await;
        as_before(&node);
        node.start().await;
        as_before(&node);
        node.settle().await;
        as_before(&node);
        assert_eq!(node.view().await.endpoints.len(), 2);
        assert_eq!(node.kernel(|kernel| kernel.sizes()), sizes, "the maps hold nothing of before");
    }
    // And its gates follow.
    node.source.set(&policy("p", "a", "other"));
    node.settle().await;
    assert!(!node.passes(7, FRIEND, 80) && node.passes(7, STRANGER, 80));
    node.del("c1").await;
    assert!(!node.passes(7, STRANGER, 80));
}

#[tokio::test(start_paused = true)]
async fn without_the_cluster_a_young_journal_serves() {
    let mut node = with_gates().await;
    node.source.set(&pod("late", "app: a"));
    node.settle().await;
    node.kill().await;
    node.source.silent(true);
    node.start().await;
    node.settle().await;
    as_before(&node);
    assert!(node.add("c3", "late", 9).await.unwrap().is_ok(), "its labels are known");
    assert!(node.passes(9, FRIEND, 80) && !node.passes(9, STRANGER, 80));
    // Once more: it does not become younger by that.
    node.kill().await;
    node.start().await;
    node.settle().await;
    as_before(&node);
    assert!(node.view().await.serving);
    node.kill().await;
    node.age(Duration::from_secs(301));
    node.start().await;
    node.settle().await;
    as_before(&node);
    assert!(!node.view().await.serving);
    // The cluster is back.
    node.source.silent(false);
    node.settle().await;
    as_before(&node);
    assert!(node.view().await.synced);
    assert_eq!(node.view().await.endpoints.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_journal_is_kept_young_while_the_cluster_answers_and_only_then() {
    let mut node = with_gates().await;
    node.wait(3_600_000).await;
    node.kill().await;
    node.source.silent(true);
    node.start().await;
    node.settle().await;
    assert!(node.view().await.serving);
    node.wait(240_000).await;
    node.kill().await;
    node.start().await;
    node.settle().await;
    assert!(node.view().await.serving);
    node.wait(120_000).await;
    node.kill().await;
    node.start().await;
    node.settle().await;
    assert!(!node.view().await.serving);
    as_before(&node);
}

#[tokio::test(start_paused = true)]
async fn what_was_received_before_the_kill_is_in_force_after_it() {
    let mut node = with_gates().await;
    node.source.set(&policy("q", "b", "friend"));
    node.settle().await;
    assert!(!node.passes(8, STRANGER, 80));
    node.source.silent(true);
    node.kill().await;
    node.start().await;
    node.settle().await;
    assert!(!node.passes(8, STRANGER, 80) && node.passes(8, FRIEND, 80));
}

#[tokio::test(start_paused = true)]
async fn what_changed_meanwhile_is_in_force_and_what_went_is_gone() {
    let mut node = with_gates().await;
    node.kill().await;
    // The policy of a is gone, b has one; b's pod is gone; a DEL was left behind; a link has gone.
    node.source.remove(policy_id("p"));
    node.source.set(&policy("q", "b", "friend"));
    node.start().await;
    node.settle().await;
    assert!(node.passes(7, STRANGER, 80));
    assert!(!node.passes(8, STRANGER, 80) && node.passes(8, FRIEND, 80));
    node.kill().await;
    node.tombstone("c1");
    node.kernel(|kernel| kernel.unplug(8));
    node.start().await;
    node.settle().await;
    assert!(!node.passes(7, STRANGER, 80));
    assert!(node.view().await.endpoints.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_gate_whose_file_is_lost_drops_once_everything_is_known() {
    let mut node = with_gates().await;
    node.kill().await;
    std::fs::remove_dir_all(node.dir.path().join("run/policy/endpoints")).unwrap();
    node.source.silent(true);
    node.start().await;
    node.settle().await;
    as_before(&node);
    node.source.silent(false);
    node.settle().await;
    assert!(!node.passes(7, FRIEND, 80) && !node.passes(8, FRIEND, 80));
}

#[tokio::test(start_paused = true)]
async fn lost_maps_drop_until_the_policy_is_known() {
    let mut node = with_gates().await;
    node.kill().await;
    node.kernel(|kernel| {
        let mut fresh = crate::datapath::model::Kernel::default();
        fresh.plug(7, Attached::Gate);
        fresh.plug(8, Attached::Gate);
        *kernel = fresh;
    });
    node.source.silent(true);
    node.age(Duration::from_secs(1000));
    node.start().await;
    node.settle().await;
    assert!(!node.passes(7, FRIEND, 80) && !node.passes(8, FRIEND, 80));
    node.source.silent(false);
    node.settle().await;
    as_before(&node);
}

/// Gates whose links belong to another layout of the maps judge until those of now stand in their place, also where that fails at
/// first: then nothing of them goes.
#[tokio::test(start_paused = true)]
async fn gates_of_another_layout_judge_until_they_are_replaced() {
    let mut node = with_gates().await;
    node.kill().await;
    node.kernel(|kernel| {
        kernel.uplink = Some(Attached::Gate);
        kernel.change_layout();
        kernel.refuses_programs = true;
    });
    node.source.silent(true);
    node.age(Duration::from_secs(1000));
    node.start().await;
    node.wait(11_000).await;
    as_before(&node);
    assert_eq!(node.kernel(|kernel| kernel.attached(7)), Some(Attached::OtherLayout), "nothing is known yet");
    assert_eq!(node.kernel(|kernel| kernel.uplink), Some(Attached::OtherLayout), "the maps of now let all pass there");
    node.source.silent(false);
    node.settle().await;
    as_before(&node);
    assert_eq!(node.kernel(|kernel| kernel.uplink), Some(Attached::Gate));
    node.wait(11_000).await;
    as_before(&node);
    assert_eq!(node.kernel(|kernel| kernel.attached(7)), Some(Attached::OtherLayout), "programs are refused");
    node.kernel(|kernel| kernel.refuses_programs = false);
    node.wait(11_000).await;
    as_before(&node);
    for index in [7, 8] {
        let attached = node.kernel(|kernel| kernel.attached(index));
        assert!(matches!(attached, Some(Attached::Gate | Attached::Links)), "{attached:?}");
    }
    let notices = node.source.world(|world| world.notices.clone());
    assert!(notices.iter().all(|notice| notice.reason != "PolicyGateRemoved"), "{notices:?}");
}

/// One gate that cannot be replaced is tried again by itself, and told of; the others have theirs.
#[tokio::test(start_paused = true)]
async fn a_gate_of_another_layout_that_stays_is_tried_alone_and_told_of() {
    let mut node = with_gates().await;
    node.kill().await;
    node.kernel(|kernel| {
        kernel.change_layout();
        kernel.refuses_at = Some(7);
    });
    node.start().await;
    node.settle().await;
    as_before(&node);
    assert_eq!(node.kernel(|kernel| kernel.attached(7)), Some(Attached::OtherLayout));
    let checks = |node: &Node, index: u32| node.kernel(|kernel| kernel.checks.get(&index).copied().unwrap_or_default());
    let before = (checks(&node, 7), checks(&node, 8));
    node.wait(100_000).await;
    as_before(&node);
    let (failed, whole) = (checks(&node, 7) - before.0, checks(&node, 8) - before.1);
    assert!(whole + 10 < failed, "{whole} looks at a gate that is whole, {failed} at the other");
    let told = |node: &Node| node.source.world(|world| world.notices.iter().map(|one| one.reason).collect::<Vec<_>>());
    assert_eq!(told(&node), ["PolicyGateNotReplaced"]);
    node.kernel(|kernel| kernel.refuses_at = None);
    node.wait(21_000).await;
    as_before(&node);
    assert_eq!(told(&node), ["PolicyGateNotReplaced", "PolicyGateReplaced"]);
    assert!(!node.kernel(|kernel| kernel.has_other_layout()));
}

/// It goes when the process that holds it has ended, though nothing else happens.
#[tokio::test(start_paused = true)]
async fn another_layout_that_is_held_goes_later() {
    let mut node = with_gates().await;
    node.kill().await;
    node.kernel(|kernel| {
        kernel.change_layout();
        kernel.before_is_held = true;
    });
    node.start().await;
    node.wait(11_000).await;
    as_before(&node);
    assert!(node.kernel(|kernel| kernel.has_other_layout()));
    node.kernel(|kernel| kernel.before_is_held = false);
    node.wait(11_000).await;
    as_before(&node);
    assert!(!node.kernel(|kernel| kernel.has_other_layout()));
}

#[tokio::test(start_paused = true)]
async fn a_lost_or_broken_checkpoint_opens_nothing() {
    for broken in [false, true] {
        let mut node = with_gates().await;
        node.kill().await;
        let checkpoint = node.dir.path().join("run/policy/checkpoint.json");
        assert!(checkpoint.exists());
        if broken {
            std::fs::write(&checkpoint, "{").unwrap();
        } else {
            std::fs::remove_file(&checkpoint).unwrap();
        }
        let revision = node.kernel(|kernel| kernel.revision(7)).unwrap();
        node.start().await;
        node.settle().await;
        as_before(&node);
        assert!(node.kernel(|kernel| kernel.revision(7)).unwrap() > revision, "flows are judged again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_kill_at_every_write_of_an_add_a_change_and_a_del_opens_nothing() {
    for fuse in 0..60 {
        let mut node = with_gates().await;
        node.source.set(&pod("n", "app: a"));
        node.settle().await;
        node.kernel(|kernel| kernel.kill_after(fuse));
        let _asked = node.begin(crate::testing::add("c3", "n", 9)).await;
        node.source.set(&policy("q", "b", "friend"));
        node.settle().await;
        let killed = node.is_dead();
        // Between b without a policy and with one, there is nothing else.
        assert!(node.passes(8, FRIEND, 80));
        assert!(!node.passes(9, STRANGER, 80) && !node.passes(9, FRIEND, 81), "killed after {fuse}");
        assert!(node.passes(7, FRIEND, 80) && !node.passes(7, STRANGER, 80), "killed after {fuse}");
        node.kill().await;
        node.kernel(|kernel| kernel.disarm());
        node.start().await;
        node.settle().await;
        assert!(!node.passes(9, STRANGER, 80) && !node.passes(9, FRIEND, 81), "killed after {fuse}");
        assert!(node.passes(7, FRIEND, 80) && !node.passes(7, STRANGER, 80), "killed after {fuse}");
        assert!(node.passes(8, FRIEND, 80) && !node.passes(8, STRANGER, 80), "killed after {fuse}");
        // The runtime tries again.
        assert!(node.add("c3", "n", 9).await.unwrap().is_ok());
        assert!(node.passes(9, FRIEND, 80) && !node.passes(9, STRANGER, 80), "killed after {fuse}");
        if !killed {
            assert!(fuse > 5, "an ADD and a policy take some writes");
            return;
        }
    }
    panic!("it is never done");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ran_before_is_counted_and_adopted_with_its_flows() {
    let before = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: old, namespace: web, uid: u-old, labels: {app: a}}\n\
                  spec: {nodeName: node-1}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.77}]}\n";
    let mut node = Node::with(&[&scene(), before].concat()).await;
    assert_eq!(node.view().await.without_gate, ["web/old"]);
    let of = sluice_contract::id::PodRef { namespace: "web".into(), name: "old".into(), uid: None };
    let name = sluice_contract::node::host_veth("eni", &of, 0).unwrap();
    node.kernel(|kernel| kernel.plug_named(77, name.as_str(), Attached::Nothing));
    node.send(crate::inbox::Input::Links([(77, name.to_string())].into())).await;
    node.settle().await;
    assert!(node.passes(77, FRIEND, 80) && !node.passes(77, STRANGER, 80));
    assert!(node.kernel(|kernel| kernel.seeded.contains(&77)));
    assert!(node.view().await.without_gate.is_empty());
    // No GC means it, and a restart finds it again.
    let gc = sluice_contract::rpc::GcRequest {
        network: sluice_contract::id::NetworkName::new("sluice").unwrap(),
        valid: Vec::new(),
    };
    node.call(sluice_contract::rpc::PolicyCall::Gc(gc)).await;
    node.kill().await;
    node.start().await;
    node.settle().await;
    assert!(node.passes(77, FRIEND, 80) && !node.passes(77, STRANGER, 80));
    // Its DEL names a container that nobody has heard of; its link goes.
    node.del("real").await;
    node.kernel(|kernel| kernel.unplug(77));
    node.send(crate::inbox::Input::LinkGone(77)).await;
    assert!(node.view().await.endpoints.is_empty());
}

/// The cluster knows the address of the first one alone.
#[tokio::test(start_paused = true)]
async fn all_interfaces_of_a_pod_that_ran_before_are_adopted() {
    let before = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: old, namespace: web, uid: u-old, labels: {app: a}}\n\
                  spec: {nodeName: node-1}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.77}]}\n";
    let mut node = Node::with(&[&scene(), before].concat()).await;
    let of = sluice_contract::id::PodRef { namespace: "web".into(), name: "old".into(), uid: None };
    for (number, index) in [(0, 77), (1, 78), (2, 79)] {
        let name = sluice_contract::node::host_veth("eni", &of, number).unwrap();
        let address = format!("10.0.0.{index}").parse().unwrap();
        node.kernel(|kernel| {
            kernel.plug_named(index, name.as_str(), Attached::Nothing);
            kernel.routes.insert(address, index);
            kernel.namespaces.insert(index, 5);
        });
    }
    let dumps = node.kernel(|kernel| kernel.dumps);
    let links = node.kernel(|kernel| kernel.links());
    node.send(crate::inbox::Input::Links(links)).await;
    node.settle().await;
    assert_eq!(node.kernel(|kernel| kernel.dumps), dumps + 1, "one look is enough for all");
    let in_force = |node: &Node| {
        for index in 77..80 {
            assert!(node.passes(index, FRIEND, 80) && !node.passes(index, STRANGER, 80), "{index}");
            assert!(node.passes(index, "10.0.0.79", 81), "it is known by all of its addresses");
        }
    };
    in_force(&node);
    assert!(node.kernel(|kernel| kernel.seeded.is_superset(&[77, 78, 79].into())));
    assert!(node.view().await.without_gate.is_empty());
    node.kill().await;
    node.start().await;
    node.settle().await;
    in_force(&node);
    // It ends with the last of its links.
    let links = node.kernel(|kernel| kernel.links());
    node.send(crate::inbox::Input::Links(links)).await;
    for (index, left) in [(78, true), (77, true), (79, false)] {
        node.kernel(|kernel| kernel.unplug(index));
        node.send(crate::inbox::Input::LinkGone(index)).await;
        assert_eq!(!node.view().await.endpoints.is_empty(), left, "{index}");
    }
}

/// A pod that ran before policyd, with an address for the cluster.
fn ran_before(name: &str, address: &str) -> String {
    pod(name, "app: a").replace("Running", &format!("Running, podIPs: [{{ip: {address}}}]"))
}

/// A link that nobody has gated: the `number`-th interface of a pod, in a namespace, with the address 10.0.0.INDEX.
fn plug(node: &Node, (pod, number): (&str, u8), prefix: &str, index: u32, namespace: i32) {
    let of = sluice_contract::id::PodRef { namespace: "web".into(), name: pod.into(), uid: None };
    let name = sluice_contract::node::host_veth(prefix, &of, number).unwrap();
    let address = format!("10.0.0.{index}").parse().unwrap();
    node.kernel(|kernel| {
        kernel.plug_named(index, name.as_str(), Attached::Nothing);
        kernel.routes.insert(address, index);
        kernel.namespaces.insert(index, namespace);
    });
}

async fn tell_links(node: &Node) {
    let links = node.kernel(|kernel| kernel.links());
    node.send(crate::inbox::Input::Links(links)).await;
    node.settle().await;
}

/// Whether an interface has a gate that enforces the policy of pods like `a`.
fn is_gated(node: &Node, index: u32) -> bool {
    node.passes(index, FRIEND, 80) && !node.passes(index, STRANGER, 80)
}

/// `old`'s second interface has the name of the first of `old.1`: whose one is, its mark or its namespace says.
#[tokio::test(start_paused = true)]
async fn no_pod_is_given_the_interface_of_another_whose_name_is_alike() {
    for is_marked in [false, true] {
        let pods = [ran_before("old", "10.0.0.77"), ran_before("old.1", "10.0.0.78")].concat();
        let node = Node::with(&[scene(), pods].concat()).await;
        plug(&node, ("old", 0), "eni", 77, 1);
        plug(&node, ("old.1", 0), "eni", 78, if is_marked { 1 } else { 2 });
        // They need not be without gaps.
        plug(&node, ("old", 2), "eni", 79, if is_marked { 3 } else { 1 });
        if is_marked {
            let aliases = [(77, "c1/eth0"), (78, "c2/eth0"), (79, "c1/mNicIf2")];
            let marks = aliases.map(|(index, of)| (index, format!("sluice {of}@sluice")));
            node.kernel(|kernel| kernel.aliases.extend(marks));
        }
        tell_links(&node).await;
        assert!([77, 78, 79].into_iter().all(|index| is_gated(&node, index)));
        assert_eq!(node.view().await.endpoints.len(), 3);
        // A pod may always reach itself, by the addresses that are its own.
        assert!(node.passes(77, "10.0.0.79", 81) && !node.passes(77, "10.0.0.78", 81), "{is_marked}");
        assert!(node.passes(78, "10.0.0.78", 81) && !node.passes(78, "10.0.0.77", 81), "{is_marked}");
    }
}

/// The other way round: what is marked as a further interface is nobody's first.
#[tokio::test(start_paused = true)]
async fn the_second_interface_of_a_pod_is_not_taken_for_the_first_of_another() {
    let pods = [ran_before("old", "10.0.0.77"), ran_before("old.1", "10.0.0.99")].concat();
    let node = Node::with(&[scene(), pods].concat()).await;
    plug(&node, ("old", 0), "eni", 77, 1);
    plug(&node, ("old", 1), "eni", 78, 1);
    let marks = [(77, "c1/eth0"), (78, "c1/mNicIf1")].map(|(index, of)| (index, format!("sluice {of}@sluice")));
    node.kernel(|kernel| kernel.aliases.extend(marks));
    tell_links(&node).await;
    assert_eq!(node.view().await.without_gate, ["web/old.1"]);
    assert!(is_gated(&node, 77) && is_gated(&node, 78));
    assert!(node.passes(78, "10.0.0.77", 81) && !node.passes(78, "10.0.0.99", 81));
}

/// An address that another pod claims proves the contrary.
#[tokio::test(start_paused = true)]
async fn an_interface_with_an_address_of_another_pod_is_left_alone() {
    let pods = [ran_before("old", "10.0.0.77"), peer("far", "10.0.0.78", "role: other")].concat();
    let node = Node::with(&[scene(), pods].concat()).await;
    plug(&node, ("old", 0), "eni", 77, 1);
    plug(&node, ("old", 1), "eni", 78, 1);
    tell_links(&node).await;
    assert!(is_gated(&node, 77));
    assert_eq!(node.kernel(|kernel| kernel.attached(78)), Some(Attached::Nothing));
}

/// Whatever they are called, and though the pod has come since policyd began or was adopted without them.
#[tokio::test(start_paused = true)]
async fn further_interfaces_are_found_later_too() {
    let mut node = Node::with(&scene()).await;
    tell_links(&node).await;
    plug(&node, ("old", 0), "gan", 77, 5);
    plug(&node, ("old", 1), "gan", 78, 5);
    node.source.set(&ran_before("old", "10.0.0.77"));
    node.wait(11_000).await;
    assert!(is_gated(&node, 77) && is_gated(&node, 78));
    plug(&node, ("old", 2), "gan", 79, 5);
    node.send(crate::inbox::Input::VethChanged).await;
    node.wait(11_000).await;
    assert!([77, 78, 79].into_iter().all(|index| is_gated(&node, index)));
    assert!(node.kernel(|kernel| kernel.seeded.contains(&79)));
    assert_eq!(node.view().await.endpoints.len(), 3);
    node.kill().await;
    node.start().await;
    node.settle().await;
    assert!([77, 78, 79].into_iter().all(|index| is_gated(&node, index)));
    assert!(node.passes(77, "10.0.0.79", 81), "it is known by all of its addresses");
    // One of them is made anew.
    tell_links(&node).await;
    node.kernel(|kernel| kernel.unplug(78));
    node.send(crate::inbox::Input::LinkGone(78)).await;
    node.kernel(|kernel| kernel.routes.clear());
    plug(&node, ("old", 1), "gan", 80, 5);
    node.send(crate::inbox::Input::VethChanged).await;
    node.wait(11_000).await;
    assert!([77, 79, 80].into_iter().all(|index| is_gated(&node, index)));
    assert!(node.passes(77, "10.0.0.80", 81) && !node.passes(77, "10.0.0.78", 81));
}

/// Without the host's routes nobody knows what a gate is to let pass.
#[tokio::test(start_paused = true)]
async fn a_pod_waits_until_the_kernel_tells_of_its_interfaces() {
    let node = Node::with(&[scene(), ran_before("old", "10.0.0.77")].concat()).await;
    plug(&node, ("old", 0), "eni", 77, 5);
    plug(&node, ("old", 1), "eni", 78, 5);
    node.kernel(|kernel| kernel.hides_veths = true);
    tell_links(&node).await;
    assert_eq!(node.view().await.without_gate, ["web/old"]);
    node.kernel(|kernel| kernel.hides_veths = false);
    node.wait(11_000).await;
    assert!(is_gated(&node, 77) && is_gated(&node, 78));
    assert!(node.passes(77, "10.0.0.78", 81), "it is known by all of its addresses");
}

/// A gate that cannot be put there is tried again, and the others stand.
#[tokio::test(start_paused = true)]
async fn one_interface_that_refuses_its_gate_keeps_none_of_the_others_from_theirs() {
    let node = Node::with(&[scene(), ran_before("old", "10.0.0.77")].concat()).await;
    for (number, index) in [(0, 77), (1, 78), (2, 79)] {
        plug(&node, ("old", number), "eni", index, 5);
    }
    node.kernel(|kernel| kernel.refuses_at = Some(78));
    tell_links(&node).await;
    assert!(is_gated(&node, 77) && is_gated(&node, 79));
    node.wait(11_000).await;
    assert_eq!(node.kernel(|kernel| kernel.attached(78)), Some(Attached::Nothing));
    node.kernel(|kernel| kernel.refuses_at = None);
    node.wait(11_000).await;
    assert!([77, 78, 79].into_iter().all(|index| is_gated(&node, index)));
    let notices = node.source.world(|world| world.notices.clone());
    assert!(notices.iter().all(|notice| notice.reason != "PolicyGateRemoved"), "nobody has taken it: {notices:?}");
}

/// The only interface of a pod refuses its gate: the pod is counted and told of, also after a restart, and nobody has
/// taken a gate away until one was there.
#[tokio::test(start_paused = true)]
async fn a_pod_whose_gate_is_refused_is_one_without_gate() {
    let mut node = Node::with(&[scene(), ran_before("old", "10.0.0.77")].concat()).await;
    plug(&node, ("old", 0), "eni", 77, 5);
    node.kernel(|kernel| {
        kernel.refuses_at = Some(77);
        kernel.without_links = true;
    });
    tell_links(&node).await;
    let told = |node: &Node| node.source.world(|world| world.notices.iter().map(|one| one.reason).collect::<Vec<_>>());
    assert_eq!(node.view().await.without_gate, ["web/old"]);
    node.wait(80_000).await;
    assert_eq!(told(&node), ["PodWithoutGate"]);
    node.kill().await;
    node.start().await;
    node.wait(31_000).await;
    assert_eq!(node.view().await.without_gate, ["web/old"]);
    assert_eq!(told(&node), ["PodWithoutGate"]);
    node.kernel(|kernel| kernel.refuses_at = None);
    node.wait(11_000).await;
    assert!(is_gated(&node, 77) && node.view().await.without_gate.is_empty());
    assert_eq!(told(&node), ["PodWithoutGate"]);
    node.kernel(|kernel| kernel.strip(77));
    node.wait(11_000).await;
    assert!(is_gated(&node, 77));
    assert_eq!(told(&node), ["PodWithoutGate", "PolicyGateRemoved"]);
}

/// It drops everything, and is tried again every few seconds.
#[tokio::test(start_paused = true)]
async fn an_adopted_interface_that_cannot_be_bound_is_tried_again_now_and_then() {
    let node = Node::with(&[scene(), pod("a", "app: a"), ran_before("old", "10.0.0.77")].concat()).await;
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    plug(&node, ("old", 0), "eni", 77, 5);
    node.kernel(|kernel| kernel.limit("endpoints", 1));
    tell_links(&node).await;
    node.wait(20_000).await;
    assert!(!node.passes(77, FRIEND, 80));
    assert_eq!(node.view().await.without_gate, ["web/old"]);
    let metrics = node.metrics.encode();
    let failed = metrics.lines().find_map(|line| line.strip_prefix("sluice_policy_errors{part=\"bind\"} "));
    let failed: u32 = failed.unwrap().parse().unwrap();
    assert!((2..8).contains(&failed), "{failed}");
    node.kernel(|kernel| kernel.limit("endpoints", 2));
    node.wait(6000).await;
    assert!(is_gated(&node, 77) && node.view().await.without_gate.is_empty());
}

/// What its object says of its addresses is of the past, and they are others' now.
#[tokio::test(start_paused = true)]
async fn a_pod_that_has_ended_claims_no_address() {
    let ended = |name: &str, address: &str| ran_before(name, address).replace("Running", "Succeeded");
    let of_host =
        |name: &str, address: &str| ran_before(name, address).replace("spec: {", "spec: {hostNetwork: true, ");
    let running = [ran_before("old", "10.0.0.77"), ran_before("other", "10.0.0.80")];
    let past = [ended("job", "10.0.0.78"), of_host("agent", "10.0.0.79"), ended("last", "10.0.0.80")];
    let node = Node::with(&[scene(), running.concat(), past.concat()].concat()).await;
    for (number, index) in [(0, 77), (1, 78), (2, 79)] {
        plug(&node, ("old", number), "eni", index, 5);
    }
    node.kernel(|kernel| {
        kernel.plug_named(80, "veth80", Attached::Nothing);
        kernel.routes.insert("10.0.0.80".parse().unwrap(), 80);
    });
    tell_links(&node).await;
    assert_eq!([77, 78, 79, 80].map(|index| is_gated(&node, index)), [true; 4]);
}

/// Names and routes say enough of a pod with one interface; all interfaces are looked through when there may be others.
#[tokio::test(start_paused = true)]
async fn all_interfaces_are_looked_through_only_for_what_is_missing() {
    let pods = [ran_before("old", "10.0.0.77"), ran_before("old.1", "10.0.0.78"), ran_before("one", "10.0.0.79")];
    let node = Node::with(&[scene(), pods.concat()].concat()).await;
    plug(&node, ("old", 0), "eni", 77, 1);
    plug(&node, ("old.1", 0), "eni", 78, 2);
    plug(&node, ("one", 0), "eni", 79, 3);
    node.kernel(|kernel| kernel.hides_veths = true);
    tell_links(&node).await;
    assert_eq!([77, 78, 79].map(|index| is_gated(&node, index)), [false, false, true], "whose 78 is is not known");
    node.kernel(|kernel| kernel.hides_veths = false);
    node.wait(11_000).await;
    assert_eq!([77, 78, 79].map(|index| is_gated(&node, index)), [true; 3]);
    let dumps = || node.kernel(|kernel| kernel.dumps);
    let before = dumps();
    node.wait(60_000).await;
    assert_eq!(dumps(), before, "they are whole");
    // One that has no address yet is looked for until it has.
    plug(&node, ("one", 1), "eni", 80, 3);
    let address: std::net::IpAddr = "10.0.0.80".parse().unwrap();
    node.kernel(|kernel| kernel.routes.remove(&address));
    node.send(crate::inbox::Input::VethChanged).await;
    node.wait(21_000).await;
    assert_eq!(node.kernel(|kernel| kernel.attached(80)), Some(Attached::Nothing));
    node.kernel(|kernel| kernel.routes.insert(address, 80));
    node.wait(11_000).await;
    assert!(is_gated(&node, 80));
    let before = dumps();
    node.wait(60_000).await;
    assert_eq!(dumps(), before, "it is whole");
}

/// Behind plugins that name interfaces as they like, the host's route says whose one is.
#[tokio::test(start_paused = true)]
async fn a_pod_that_ran_before_is_found_by_the_route_to_its_address() {
    let before = |name: &str, address: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: web, uid: u-{name}, labels: {{app: a}}}}\n\
             spec: {{nodeName: node-1}}\nstatus: {{phase: Running, podIPs: [{{ip: {address}}}]}}\n"
        )
    };
    let pods = [before("old", "10.0.0.77"), before("one", "10.0.0.78"), before("two", "10.0.0.78")].concat();
    let node = Node::with(&[scene(), pods].concat()).await;
    for (index, address) in [(77, "10.0.0.77"), (78, "10.0.0.78")] {
        node.kernel(|kernel| {
            kernel.plug_named(index, &format!("veth{index}"), Attached::Nothing);
            kernel.routes.insert(address.parse().unwrap(), index);
        });
    }
    let links = node.kernel(|kernel| kernel.links());
    node.send(crate::inbox::Input::Links(links)).await;
    node.settle().await;
    assert!(node.passes(77, FRIEND, 80) && !node.passes(77, STRANGER, 80));
    assert!(node.kernel(|kernel| kernel.seeded.contains(&77)));
    assert_eq!(node.view().await.without_gate, ["web/one", "web/two"], "whose it is is not known");
    assert_eq!(node.kernel(|kernel| kernel.attached(78)), Some(Attached::Nothing));
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_ended_is_not_adopted_although_its_link_is_still_there() {
    let yaml = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: web, uid: u-a, labels: {app: a}}\n\
                spec: {nodeName: node-1}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.9}]}\n";
    let node = Node::with(&[&scene(), yaml].concat()).await;
    let mut request = crate::testing::add("c1", "a", 9);
    let name = sluice_contract::node::host_veth("eni", &request.pod, 0).unwrap();
    request.interfaces[0].host = name.clone();
    node.kernel(|kernel| kernel.plug_named(9, name.as_str(), Attached::Drop));
    let mut asked = node.begin(request).await;
    node.settle().await;
    assert!(asked.answer().unwrap().is_ok());
    assert!(node.passes(9, FRIEND, 80));
    node.del("c1").await;
    let links = node.kernel(|kernel| kernel.links());
    node.send(crate::inbox::Input::Links(links)).await;
    node.wait(11_000).await;
    assert!(!node.passes(9, FRIEND, 80));
    assert_eq!(node.view().await.without_gate, ["web/a"]);
}
