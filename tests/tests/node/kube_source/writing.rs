//! What goes back: addresses, conditions, Events.

use std::net::IpAddr;

use serde_json::{Value, json};
use sluice_policy_core::cluster::{ObjectId, PodKey, Uid};
use sluice_policy_core::model::{PolicyKind, PolicyRef};
use sluice_policy_core::parse::{Issue, Severity};
use sluice_policyd::cluster::{Cluster as _, ClusterError, Notice, PolicyStatus, Weight};
use sluice_tests::apiserver::{ApiServer, Fault, FaultRule, TableId};

use super::observer::{Observer, cilium_policy, eventually, network_policy, pod, pods, timing};

fn key(name: &str) -> PodKey {
    PodKey { namespace: "default".into(), name: name.into() }
}

fn addresses(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|one| one.parse().unwrap()).collect()
}

fn text(object: &Value, path: &str) -> String {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn announced(server: &ApiServer, name: &str) -> String {
    let pod = server.get(&pods(), "default", name).unwrap();
    text(&pod, "/metadata/annotations/vpc.amazonaws.com~1pod-ips")
}

fn uid(server: &ApiServer, name: &str) -> Uid {
    Uid::from(text(&server.get(&pods(), "default", name).unwrap(), "/metadata/uid").as_str())
}

#[tokio::test]
async fn addresses_are_published_once_and_on_the_right_pod() {
    let server = ApiServer::start().await.unwrap();
    server.put(pod("default", "a", "")).unwrap();
    let mut seen = Observer::new(&server);
    seen.synced().await;
    let list = addresses(&["10.0.0.1", "2001:db8::1"]);
    let id = uid(&server, "a");
    seen.source.publish_addresses(&key("a"), &id, &list).await.unwrap();
    assert_eq!(announced(&server, "a"), "10.0.0.1,2001:db8::1");
    seen.until("every node knows", |seen| seen.state.pods.get(&key("a")).is_some_and(|pod| pod.addresses.len() == 2))
        .await;
    seen.source.publish_addresses(&key("a"), &id, &list).await.unwrap();
    assert_eq!(server.count("patch", "pods"), 1, "it is there already");

    // Another pod of that name; one that is gone; a static pod, which its runtime knows by another uid.
    seen.source.publish_addresses(&key("a"), &Uid::from("another"), &list).await.unwrap();
    seen.source.publish_addresses(&key("none"), &id, &list).await.unwrap();
    assert_eq!(server.count("patch", "pods"), 1);
    let mut mirror = pod("default", "static", "");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "file-1"});
    server.put(mirror).unwrap();
    seen.source.publish_addresses(&key("static"), &Uid::from("file-1"), &addresses(&["10.0.0.2"])).await.unwrap();
    assert_eq!(announced(&server, "static"), "10.0.0.2");
}

#[tokio::test]
async fn publishing_survives_a_busy_server_and_says_when_it_may_not() {
    let server = ApiServer::start().await.unwrap();
    server.put(pod("default", "a", "")).unwrap();
    let mut seen = Observer::new(&server);
    seen.synced().await;
    server.fault(FaultRule::times(1, "patch", "pods", Fault::Drop));
    server.fault(FaultRule::times(2, "patch", "pods", Fault::Status { code: 429, retry_after: Some(0) }));
    seen.source.publish_addresses(&key("a"), &uid(&server, "a"), &addresses(&["10.0.0.1"])).await.unwrap();
    assert_eq!((announced(&server, "a"), server.count("patch", "pods")), ("10.0.0.1".to_owned(), 4));
    server.fault(FaultRule::always("patch", "pods", Fault::Status { code: 403, retry_after: None }));
    let denied = seen.source.publish_addresses(&key("a"), &uid(&server, "a"), &addresses(&["10.0.0.2"])).await;
    assert!(matches!(denied, Err(ClusterError::Denied { .. })), "{denied:?}");
}

fn policy_ref(kind: PolicyKind, name: &str) -> PolicyRef {
    PolicyRef { kind, namespace: Some("default".into()), name: name.into() }
}

fn issue(severity: Severity) -> Vec<Issue> {
    vec![Issue { severity, path: "spec.ingress[0]".to_owned(), message: "is odd".to_owned() }]
}

fn status(kind: PolicyKind, name: &str, generation: i64, issues: Vec<Issue>) -> PolicyStatus {
    PolicyStatus { policy: policy_ref(kind, name), generation: Some(generation), issues }
}

fn nodes(server: &ApiServer, count: usize) {
    for number in 0..count {
        server
            .put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node-{number}")}}))
            .unwrap();
    }
}

fn condition(server: &ApiServer, plural: &str, namespace: &str, name: &str) -> Value {
    let group = if plural.starts_with("cilium") { "cilium.io" } else { "policy.networking.k8s.io" };
    let object = server.get(&TableId::new(group, plural), namespace, name).unwrap();
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    conditions.into_iter().find(|one| one["type"] == "Valid" || one["type"] == "Accepted").unwrap_or_default()
}

#[tokio::test]
async fn one_node_writes_a_condition_and_only_when_it_changes() {
    let server = ApiServer::start().await.unwrap();
    nodes(&server, 3);
    server.put(cilium_policy("default", "p")).unwrap();
    let mut all = Vec::new();
    for number in 0..3 {
        let mut seen = Observer::on_node(&server, &format!("node-{number}"), timing());
        seen.synced().await;
        assert_eq!(seen.generations["CiliumNetworkPolicy default/p"], Some(1));
        all.push(seen);
    }
    let kind = PolicyKind::CiliumNetworkPolicy;
    let mut turns = 0;
    let mut report = async |issues: Vec<Issue>, is: &str| {
        for seen in &all {
            seen.source.report(&status(kind, "p", 1, issues.clone())).await.unwrap();
        }
        turns += all.len();
        eventually("all have had their turn", async || {
            let turn =
                |seen: &Observer| seen.source.metrics().statuses.get() + seen.source.metrics().statuses_found.get();
            all.iter().map(turn).sum::<u64>() == turns as u64
        })
        .await;
        assert_eq!(condition(&server, "ciliumnetworkpolicies", "default", "p")["status"], is);
    };
    report(Vec::new(), "True").await;
    report(issue(Severity::Unusable), "False").await;
    let written = condition(&server, "ciliumnetworkpolicies", "default", "p");
    assert_eq!((&written["reason"], &written["message"]), (&json!("Unusable"), &json!("spec.ingress[0]: is odd")));
    assert_eq!(written.get("observedGeneration"), None, "the kind's schema has none");
    // The same again, from all: nothing to write.
    report(issue(Severity::Unusable), "False").await;
    report(issue(Severity::Warning), "True").await;
    assert_eq!(server.count("patch", "ciliumnetworkpolicies"), 3, "one write a change");
}

#[tokio::test]
async fn a_node_that_is_away_is_stood_in_for_and_conditions_of_others_stay() {
    let server = ApiServer::start().await.unwrap();
    nodes(&server, 4);
    let kcnp = json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": "k"},
        "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}},
        "status": {"conditions": [{"type": "Other", "status": "True"}]},
    });
    server.put(kcnp).unwrap();
    // Only one of the four nodes runs the agent; whichever rank it has, it writes in the end.
    let mut seen = Observer::on_node(&server, "node-2", timing());
    seen.synced().await;
    let policy = PolicyRef { kind: PolicyKind::ClusterNetworkPolicy, namespace: None, name: "k".into() };
    seen.source.report(&PolicyStatus { policy, generation: Some(1), issues: Vec::new() }).await.unwrap();
    eventually("accepted", async || condition(&server, "clusternetworkpolicies", "", "k")["status"] == "True").await;
    let object = server.get(&TableId::new("policy.networking.k8s.io", "clusternetworkpolicies"), "", "k").unwrap();
    assert_eq!(object["status"]["conditions"].as_array().unwrap().len(), 2);
    assert_eq!(condition(&server, "clusternetworkpolicies", "", "k")["observedGeneration"], 1);
    // Nothing but the status was touched.
    assert_eq!(object["metadata"]["generation"], 1);
}

#[tokio::test]
async fn a_condition_that_another_one_holds_is_left_to_it() {
    let server = ApiServer::start().await.unwrap();
    server.put(cilium_policy("default", "p")).unwrap();
    let mut seen = Observer::new(&server);
    seen.synced().await;
    let policies: kube::Api<kube::api::DynamicObject> = kube::Api::namespaced_with(
        super::observer::client(&server),
        "default",
        &kube::api::ApiResource::from_gvk_with_plural(
            &kube::api::GroupVersionKind::gvk("cilium.io", "v2", "CiliumNetworkPolicy"),
            "ciliumnetworkpolicies",
        ),
    );
    let theirs = json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "status": {"conditions": [{"type": "Valid", "status": "True", "reason": "Theirs", "message": "ok"}]},
    });
    let manager = kube::api::PatchParams::apply("cilium-operator");
    policies.patch_status("p", &manager, &kube::api::Patch::Apply(&theirs)).await.unwrap();
    seen.source.report(&status(PolicyKind::CiliumNetworkPolicy, "p", 1, issue(Severity::Unusable))).await.unwrap();
    eventually("it was tried", async || server.count("patch", "ciliumnetworkpolicies") == 2).await;
    assert_eq!(condition(&server, "ciliumnetworkpolicies", "default", "p")["reason"], "Theirs");
}

#[tokio::test]
async fn a_policy_without_status_gets_one_event_from_all_nodes() {
    let server = ApiServer::start().await.unwrap();
    nodes(&server, 3);
    server.put(network_policy("default", "p")).unwrap();
    let mut all = Vec::new();
    for number in 0..3 {
        let mut seen = Observer::on_node(&server, &format!("node-{number}"), timing());
        seen.synced().await;
        let faulty = status(PolicyKind::NetworkPolicy, "p", 1, issue(Severity::Unusable));
        seen.source.report(&faulty).await.unwrap();
        seen.source.report(&status(PolicyKind::NetworkPolicy, "none", 1, issue(Severity::Unusable))).await.unwrap();
        all.push(seen);
    }
    eventually("all had their turn", async || server.count("create", "events") == 3).await;
    let events = server.objects(&TableId::new("events.k8s.io", "events"));
    assert_eq!(events.len(), 1, "{events:?}");
    let event = &events[0];
    assert_eq!((&event["reason"], &event["type"]), (&json!("PolicyUnusable"), &json!("Warning")));
    let policy = server.get(&TableId::new("networking.k8s.io", "networkpolicies"), "default", "p").unwrap();
    assert_eq!(event["regarding"]["uid"], policy["metadata"]["uid"]);
}

#[tokio::test]
async fn events_are_counted_bounded_and_never_wait() {
    let server = ApiServer::start().await.unwrap();
    server.put(pod("default", "a", "10.0.0.1")).unwrap();
    let mut seen = Observer::new(&server);
    seen.synced().await;
    let notice = |message: String| Notice {
        about: Some(ObjectId::Pod(key("a"))),
        uid: Some(uid(&server, "a")),
        weight: Weight::Warning,
        reason: "LockedDown",
        message,
    };
    for _ in 0..5 {
        seen.source.emit(&notice("the gate is closed".to_owned())).await.unwrap();
    }
    let events = || server.objects(&TableId::new("events.k8s.io", "events"));
    eventually("the count", async || events().iter().any(|event| event["series"]["count"] == 5)).await;
    assert_eq!(events().len(), 1);
    assert_eq!(events()[0]["regarding"]["uid"], json!(uid(&server, "a").to_string()));
    assert_eq!(events()[0]["reportingInstance"], "node-a");
    // Of many different ones, only so many; and nobody waits for the server, whatever it does.
    server.freeze(true);
    let flood = async {
        for number in 0..2_000 {
            seen.source.emit(&notice(format!("flood {number}"))).await.unwrap();
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(5), flood).await.unwrap();
    server.freeze(false);
    let metrics = &seen.source.metrics().api;
    eventually("all were sent or dropped", async || metrics.events_sent.get() + metrics.events_dropped.get() == 2_001)
        .await;
    assert!((5..=15).contains(&events().len()), "{}", events().len());
    // About the node itself.
    let node = Notice { about: None, uid: None, weight: Weight::Normal, reason: "Ready", message: String::new() };
    seen.source.emit(&node).await.unwrap();
    eventually("the node's", async || events().iter().any(|event| event["regarding"]["kind"] == "Node")).await;
}
