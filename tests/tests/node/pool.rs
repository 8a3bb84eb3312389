//! The warm pool under load, and attachments that come and go in every order.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;
use sluice_tests::bed::{Bed, LIMIT, add_pods, ip, scene};
use sluice_tests::privileged::privileged;
use sluice_vpcsim::deployment::Deployment;
use tokio::task::JoinSet;

/// SPECIFICATION P-05: a burst that needs every address of the node.
#[tokio::test(flavor = "multi_thread")]
async fn p05_27_pods_at_once_are_all_served_by_enis_made_in_parallel() {
    if !privileged() {
        return;
    }
    let bed = Bed::up(&scene(1.0), &[]).await.unwrap();
    let node = bed.node("node-a").unwrap();
    let before = bed.calls();
    let mut adding = JoinSet::new();
    for number in 0..27 {
        let node = Arc::clone(node);
        adding.spawn(async move { node.add("burst", &format!("p{number}")).await });
    }
    let mut addresses = BTreeSet::new();
    while let Some(added) = adding.join_next().await {
        let pod = added.unwrap().unwrap();
        assert!(addresses.insert(pod.address), "{} was given twice", pod.address);
    }
    assert_eq!(addresses.len(), 27);
    let calls = bed.calls();
    let made = |action: &str| calls.get(action).copied().unwrap_or(0) - before.get(action).copied().unwrap_or(0);
    let total: u64 = calls.keys().map(|action| made(action)).sum();
    println!("EC2 calls of 27 pods at once: {total}, by action since the start of the nodes: {calls:?}");
    assert_eq!((made("CreateNetworkInterface"), made("AttachNetworkInterface")), (2, 2));
    assert!(total <= 10, "{total} calls");
    let caller = bed.addresses_of("node-a").unwrap().0.to_string();
    // By the attachment, not by the creation before it: how soon 19 pods have asked is the machine's matter.
    let (begun, attached): (Vec<u64>, Vec<u64>) = bed.world.look(|model, _| {
        let ours = |action: &'static str| {
            model.log().records().filter(move |call| call.action == action).filter(|call| call.caller == caller)
        };
        let attached = ours("AttachNetworkInterface").map(|call| call.at_millis + call.answer_millis);
        (ours("CreateNetworkInterface").map(|call| call.at_millis).collect(), attached.collect())
    });
    let there = attached.iter().min().copied().unwrap();
    assert!(
        begun.iter().all(|&at| at < there),
        "the second ENI was not begun before the first was there: {begun:?}, {attached:?}"
    );
}

/// The priorities of all rules of pods.
async fn pod_rules(node: &Deployment) -> Vec<u64> {
    let rules = ip(node, None, &["rule", "show"]).await.unwrap();
    let priorities = rules.as_array().unwrap().iter().filter_map(|rule| rule["priority"].as_u64());
    priorities.filter(|priority| [512, 1536].contains(priority)).collect()
}

/// SPECIFICATION P-04, without crashes: every verb twice, and in a world that has moved on.
#[tokio::test(flavor = "multi_thread")]
async fn p04_add_and_del_converge_twice_without_netns_and_without_ipamd() {
    if !privileged() {
        return;
    }
    let bed = Bed::up(&scene(0.1), &[("IP_COOLDOWN_PERIOD", "1")]).await.unwrap();
    let deployment = bed.node("node-a").unwrap();
    let (node, runtime) = (deployment.node(), deployment.runtime());
    let bare = |state: Value| (state["pool"]["assigned"].clone(), state["pool"]["violations"].clone());

    let pod = deployment.add("default", "twice").await.unwrap();
    let again = runtime.add(node, &pod.sandbox).await.unwrap();
    assert_eq!(again["ips"], pod.result["ips"], "a second ADD gives the same address");
    runtime.check(node, &pod.sandbox).await.unwrap();
    runtime.del(node, &pod.sandbox).await.unwrap();
    runtime.del(node, &pod.sandbox).await.unwrap();
    node.remove_sandbox(&pod.sandbox).await.unwrap();

    // The namespace goes before the DEL: the kernel has taken the veth along, rules and the address remain.
    let pod = deployment.add("default", "gone").await.unwrap();
    node.remove_sandbox(&pod.sandbox).await.unwrap();
    runtime.del(node, &pod.sandbox).await.unwrap();
    assert_eq!(bare(deployment.page("/v1/pool").await.unwrap()), (0.into(), 0.into()));

    // ipamd is down at the DEL: it succeeds, and what it left is taken up at the next start.
    let pod = deployment.add("default", "tombstone").await.unwrap();
    deployment.kill_ipamd().await;
    runtime.del(node, &pod.sandbox).await.unwrap();
    node.remove_sandbox(&pod.sandbox).await.unwrap();
    deployment.start_ipamd().await.unwrap();
    let drained = |view: &Value| view["pool"]["assigned"] == 0 && view["ready"] == true;
    let view = deployment.pool_until("the tombstone was not drained", LIMIT, drained).await.unwrap();
    assert_eq!(view["pool"]["violations"], 0);

    // The same with the sandbox gone and nothing told: the plugin can find no rule, and ipamd removes them.
    let pods = add_pods(deployment, "default", "lost", 10).await.unwrap();
    deployment.kill_ipamd().await;
    for pod in &pods {
        node.remove_sandbox(&pod.sandbox).await.unwrap();
        runtime.del_blindly(node, &pod.sandbox).await.unwrap();
    }
    assert!(!pod_rules(deployment).await.is_empty(), "the rules are there until ipamd is back");
    deployment.start_ipamd().await.unwrap();
    let view = deployment.pool_until("the tombstones were not drained", LIMIT, drained).await.unwrap();
    assert_eq!(view["pool"]["violations"], 0);
    assert_eq!(pod_rules(deployment).await, [0_u64; 0]);

    // A runtime that lost a sandbox tells so by GC.
    let pods = add_pods(deployment, "default", "gc", 2).await.unwrap();
    runtime.gc(node, &[&pods[0].sandbox]).await.unwrap();
    let view = deployment.page("/v1/pool").await.unwrap();
    assert_eq!(view["pool"]["assigned"], 1, "{view}");
    runtime.check(node, &pods[0].sandbox).await.unwrap();
    runtime.gc(node, &[]).await.unwrap();
    for pod in &pods {
        node.remove_sandbox(&pod.sandbox).await.unwrap();
    }
    assert_eq!(pod_rules(deployment).await, [0_u64; 0], "no rule of a pod is left");
    assert_eq!(bare(deployment.page("/v1/pool").await.unwrap()), (0.into(), 0.into()));
}
