//! Full maps, filters that somebody takes away, links that go.

use sluice_contract::rpc::RefusalCode;

use super::sim::*;
use crate::datapath::model::Attached;
use crate::inbox::Input;

const FRIEND: &str = "10.1.0.1";
const STRANGER: &str = "10.1.0.2";

#[tokio::test(start_paused = true)]
async fn a_full_map_locks_down_what_needs_it_and_nothing_else() {
    let node = Node::with(&[scene(), pod("a", "app: a"), pod("b", "app: b")].concat()).await;
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    assert!(node.add("c2", "b", 8).await.unwrap().is_ok());
    let held = node.kernel(|kernel| kernel.sizes()["peers"]);
    node.kernel(|kernel| kernel.limit("peers", held));
    // A further policy for a needs further peers.
    let wide = policy("wide", "a", "other");
    node.source.set(&wide);
    node.settle().await;
    assert!(!node.passes(7, FRIEND, 80), "half a policy is none: it is closed");
    assert!(node.passes(8, STRANGER, 80), "b has nothing to do with it");
    let view = node.view().await;
    let locked: Vec<(&str, bool)> =
        view.endpoints.iter().map(|endpoint| (endpoint.name.as_str(), endpoint.locked)).collect();
    assert_eq!(locked, [("a", true), ("b", false)]);
    node.settle().await;
    let notices = node.source.world(|world| world.notices.clone());
    assert_eq!(notices.iter().map(|notice| notice.reason).collect::<Vec<_>>(), ["PolicyMapFull"]);
    assert!(notices[0].message.contains("peers"), "{}", notices[0].message);
    // A new pod of that policy is refused, and stays closed.
    node.source.set(&pod("late", "app: a"));
    node.settle().await;
    assert_eq!(node.refused("c3", "late", 9).await, RefusalCode::PolicyNotReady);
    assert_eq!(node.kernel(|kernel| kernel.attached(9)), Some(Attached::Drop));
    // There is room again: it opens by itself.
    node.kernel(|kernel| kernel.limit("peers", 1000));
    node.wait(6000).await;
    assert!(node.passes(7, FRIEND, 80) && node.passes(7, STRANGER, 80) && !node.passes(7, "10.9.9.9", 80));
    assert!(node.add("c3", "late", 9).await.unwrap().is_ok());
    assert!(node.view().await.endpoints.iter().all(|endpoint| !endpoint.locked));
}

/// A decision or an address that finds no room concerns the pods whose policy has it, and not the others that have policies.
#[tokio::test(start_paused = true)]
async fn a_full_map_of_all_pods_locks_down_those_whose_policy_needs_it() {
    for map in ["decisions", "ipcache"] {
        let more = policy("q", "b", "friend");
        let node = Node::with(&[scene(), more, pod("a", "app: a"), pod("b", "app: b")].concat()).await;
        assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
        assert!(node.add("c2", "b", 8).await.unwrap().is_ok());
        let held = node.kernel(|kernel| kernel.sizes()[map]);
        node.kernel(|kernel| kernel.limit(map, held));
        let more = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: more, namespace: web}\n\
                    spec: {podSelector: {matchLabels: {app: a}}, ingress: \
                    [{from: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: 443}]}]}\n";
        node.source.set(more);
        node.settle().await;
        assert!(!node.passes(7, FRIEND, 80), "{map}: half a policy is none");
        assert!(node.passes(8, FRIEND, 80) && !node.passes(8, STRANGER, 80), "{map}: the other's is whole");
        // What concerns the other pod goes on coming into force.
        node.source.set(&policy("q", "b", "other"));
        node.settle().await;
        assert!(node.passes(8, STRANGER, 80) && !node.passes(8, FRIEND, 80), "{map}");
        // What there is no room for concerns a no longer.
        node.source.set(&more.replace("app: a", "app: nobody"));
        node.wait(6000).await;
        assert!(node.passes(7, FRIEND, 80) && !node.passes(7, STRANGER, 80), "{map}");
    }
}

#[tokio::test(start_paused = true)]
async fn removing_what_is_too_much_opens_again_too() {
    let node = Node::with(&[scene(), pod("a", "app: a")].concat()).await;
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    for map in ["peers", "rows", "decisions", "ipcache"] {
        let held = node.kernel(|kernel| kernel.sizes()[map]);
        node.kernel(|kernel| kernel.limit(map, held));
        let more = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: more, namespace: web}\n\
                    spec: {podSelector: {matchLabels: {app: a}}, ingress: \
                    [{from: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: 443}]}]}\n";
        node.source.set(more);
        node.settle().await;
        assert!(!node.passes(7, FRIEND, 80), "{map}");
        node.source.remove(policy_id("more"));
        node.wait(6000).await;
        assert!(node.passes(7, FRIEND, 80) && !node.passes(7, STRANGER, 80), "{map}");
        node.kernel(|kernel| kernel.limit(map, 100_000));
    }
}

#[tokio::test(start_paused = true)]
async fn no_room_for_another_gate_refuses_the_pod() {
    let node = Node::with(&[scene(), pod("a", "app: a"), pod("b", "app: b")].concat()).await;
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    node.kernel(|kernel| kernel.limit("endpoints", 1));
    assert_eq!(node.refused("c2", "b", 8).await, RefusalCode::PolicyNotReady);
    assert_eq!(node.kernel(|kernel| kernel.attached(8)), Some(Attached::Drop));
    assert!(node.passes(7, FRIEND, 80));
    node.kernel(|kernel| kernel.limit("endpoints", 2));
    assert!(node.add("c2", "b", 8).await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_is_taken_away_is_put_back_and_reported() {
    let node = Node::with(&[scene(), pod("a", "app: a")].concat()).await;
    node.kernel(|kernel| kernel.without_links = true);
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    let repaired = |count: u32| node.metrics.encode().contains(&format!("sluice_policy_gates_repaired {count}\n"));
    // Somebody else's interface, and one that nothing was taken from.
    node.send(Input::HooksChanged(99)).await;
    node.send(Input::HooksChanged(7)).await;
    node.wait(50).await;
    assert!(repaired(0) && node.source.world(|world| world.notices.is_empty()));
    // The kernel tells.
    node.kernel(|kernel| kernel.strip(7));
    assert!(node.passes(7, STRANGER, 80));
    node.send(Input::HooksChanged(7)).await;
    node.wait(50).await;
    assert!(!node.passes(7, STRANGER, 80) && node.passes(7, FRIEND, 80));
    assert!(repaired(1), "{}", node.metrics.encode());
    let notices = node.source.world(|world| world.notices.clone());
    assert_eq!(notices.iter().map(|notice| notice.reason).collect::<Vec<_>>(), ["PolicyGateRemoved"]);
    assert_eq!(notices[0].about, Some(pod_id("a")));
    assert!(notices[0].message.contains("eni7"), "{}", notices[0].message);
    // It does not.
    node.kernel(|kernel| kernel.strip(7));
    node.wait(10_500).await;
    assert!(!node.passes(7, STRANGER, 80));
    assert!(repaired(2));
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_stands_by_links_is_not_taken_away_with_filters() {
    let node = Node::with(&[scene(), pod("a", "app: a")].concat()).await;
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    node.wait(600).await;
    assert_eq!(node.kernel(|kernel| kernel.attached(7)), Some(Attached::Links));
    node.kernel(|kernel| kernel.strip(7));
    assert!(!node.passes(7, STRANGER, 80) && node.passes(7, FRIEND, 80));
    assert!(node.metrics.encode().contains("sluice_policy_gates_linked 1\n"));
}

/// A restart loads the programs anew, and nobody has taken the old ones away.
#[tokio::test(start_paused = true)]
async fn the_gates_of_the_process_before_are_replaced_without_a_word() {
    let mut node = Node::with(&[scene(), pod("a", "app: a")].concat()).await;
    node.kernel(|kernel| kernel.without_links = true);
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    node.kill().await;
    node.start().await;
    node.settle().await;
    assert_eq!(node.kernel(|kernel| kernel.attached(7)), Some(Attached::Gate));
    assert!(node.metrics.encode().contains("sluice_policy_gates_repaired 0\n"));
    assert_eq!(node.source.world(|world| world.notices.len()), 0);
}

#[tokio::test(start_paused = true)]
async fn an_interface_that_went_is_forgotten() {
    let node = Node::with(&[scene(), pod("a", "app: a"), pod("b", "app: b")].concat()).await;
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    assert!(node.add("c2", "b", 8).await.unwrap().is_ok());
    node.kernel(|kernel| kernel.unplug(7));
    node.send(Input::LinkGone(7)).await;
    node.send(Input::LinkGone(99)).await;
    assert_eq!(node.view().await.endpoints.len(), 1);
    // Of one whose pod's DEL came before nothing is kept either.
    assert!(node.add("c3", "a", 9).await.unwrap().is_ok());
    node.del("c3").await;
    assert_eq!(node.kernel(|kernel| kernel.sizes()["endpoints"]), 2, "it drops as long as it is there");
    node.kernel(|kernel| kernel.unplug(9));
    node.send(Input::LinkGone(9)).await;
    node.settle().await;
    assert_eq!(node.kernel(|kernel| kernel.sizes()["endpoints"]), 1);
    // Events were lost: the whole list is compared. A link of another name is another link.
    node.send(Input::Links([(8, "other".to_owned())].into())).await;
    assert!(node.view().await.endpoints.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_interface_that_goes_before_it_is_attached_refuses_the_add() {
    let node = Node::with(&scene()).await;
    let mut asked = node.begin(crate::testing::add("c1", "a", 7)).await;
    node.settle().await;
    node.kernel(|kernel| kernel.unplug(7));
    node.source.set(&pod("a", "app: a"));
    node.settle().await;
    let refusal = asked.answer().unwrap().unwrap_err();
    assert!(refusal.message.contains("eni7"), "{refusal}");
    assert!(node.view().await.endpoints.is_empty());
}

#[tokio::test(start_paused = true)]
async fn tombstones_come_before_an_add_of_the_same_attachment() {
    let node = Node::with(&[scene(), pod("a", "app: a")].concat()).await;
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    node.tombstone("c1");
    assert!(node.add("c1", "a", 8).await.unwrap().is_ok());
    node.wait(6000).await;
    assert!(node.passes(8, FRIEND, 80) && !node.passes(7, FRIEND, 80));
    assert_eq!(node.view().await.endpoints.len(), 1);
}

/// A pod that nobody can give a gate, and rules for a proxy without one: told once it has lasted, once each, and when it is over.
#[tokio::test(start_paused = true)]
async fn what_lasts_is_told_once() {
    let before = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: old, namespace: web, uid: u-old, labels: {app: a}}\n\
                  spec: {nodeName: node-1}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.77}]}\n";
    let rules = "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: api, namespace: web}\n\
                 spec: {endpointSelector: {matchLabels: {app: a}}, ingress: [{toPorts: [{ports: [{port: \"80\", protocol: TCP}], \
                 rules: {http: [{method: GET}]}}]}]}\n";
    let node = Node::with(&[scene().as_str(), before, rules, pod("a", "app: a").as_str()].concat()).await;
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    let reasons = || node.source.world(|world| world.notices.iter().map(|notice| notice.reason).collect::<Vec<_>>());
    node.wait(50_000).await;
    assert!(reasons().is_empty(), "what may pass by itself: {:?}", reasons());
    node.wait(30_000).await;
    let mut told = reasons();
    told.sort_unstable();
    assert_eq!(told, ["PodWithoutGate", "ProxyMissing"]);
    let about = node.source.world(|world| world.notices.iter().map(|notice| notice.about.clone()).collect::<Vec<_>>());
    assert!(about.contains(&None) && about.contains(&Some(pod_id("old"))), "{about:?}");
    node.wait(600_000).await;
    assert_eq!(reasons().len(), 2, "{:?}", reasons());
    let place = node.feed().join();
    node.wait(20_000).await;
    assert_eq!(reasons().last(), Some(&"ProxyFound"));
    drop(place);
}
