//! What policyd asks of the API server is what its role grants: nothing is missing, and nothing is granted for no use.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};
use sluice_policy_core::cluster::{ObjectId, PodKey, Uid};
use sluice_policy_core::model::{PolicyKind, PolicyRef};
use sluice_policyd::cluster::{Cluster as _, Notice, PolicyStatus, Weight};
use sluice_tests::apiserver::{ApiServer, TableId};

use super::observer::{Observer, cilium_policy, eventually, pod, pods};

/// A verb on a resource of a group, e.g. `patch cilium.io/ciliumnetworkpolicies/status`.
type Rights = BTreeSet<String>;

/// What policyd's ClusterRole in deploy/manifests grants.
fn granted() -> Rights {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests/sluice.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let documents = sluice_policy_core::manifest::documents(&text).unwrap();
    let role = documents
        .into_iter()
        .find(|object| object["kind"] == "ClusterRole" && object["metadata"]["name"] == "sluice-policyd")
        .unwrap();
    let mut rights = Rights::new();
    for rule in role["rules"].as_array().unwrap() {
        assert_eq!(rule.as_object().unwrap().len(), 3, "groups, resources and verbs say it all: {rule}");
        let list = |name: &str| rule[name].as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned());
        for group in list("apiGroups") {
            for resource in list("resources") {
                rights.extend(list("verbs").map(|verb| format!("{verb} {group}/{resource}")));
            }
        }
    }
    rights
}

/// What was asked.
fn used(server: &ApiServer) -> Rights {
    let asked = server.requests().into_iter().filter(|request| request.verb != "discovery");
    let right = |request: sluice_tests::apiserver::Request| {
        let sub = if request.subresource.is_empty() { String::new() } else { format!("/{}", request.subresource) };
        format!("{} {}/{}{sub}", request.verb, request.group, request.plural)
    };
    asked.map(right).collect()
}

/// An object of each kind whose status policyd writes.
fn policies() -> Vec<(PolicyKind, Value)> {
    let cluster_wide = |version: &str, kind: &str, name: &str| {
        json!({
            "apiVersion": format!("policy.networking.k8s.io/{version}"), "kind": kind, "metadata": {"name": name},
            "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}},
        })
    };
    let mut clusterwide = cilium_policy("default", "p");
    clusterwide["kind"] = json!("CiliumClusterwideNetworkPolicy");
    clusterwide["metadata"] = json!({"name": "p"});
    vec![
        (PolicyKind::CiliumNetworkPolicy, cilium_policy("default", "p")),
        (PolicyKind::CiliumClusterwideNetworkPolicy, clusterwide),
        (PolicyKind::ClusterNetworkPolicy, cluster_wide("v1alpha2", "ClusterNetworkPolicy", "p")),
        (PolicyKind::AdminNetworkPolicy, cluster_wide("v1alpha1", "AdminNetworkPolicy", "p")),
        (PolicyKind::BaselineAdminNetworkPolicy, cluster_wide("v1alpha1", "BaselineAdminNetworkPolicy", "default")),
    ]
}

#[tokio::test]
async fn the_role_grants_what_is_asked_and_nothing_else() {
    let server = ApiServer::start().await.unwrap();
    server.put(pod("default", "a", "")).unwrap();
    for (_, policy) in policies() {
        server.put(policy).unwrap();
    }
    let mut seen = Observer::new(&server);
    seen.synced().await;

    let key = |name: &str| PodKey { namespace: "default".into(), name: name.into() };
    let uid = server.get(&pods(), "default", "a").unwrap()["metadata"]["uid"].as_str().map(Uid::from).unwrap();
    seen.source.publish_addresses(&key("a"), &uid, &["10.0.0.1".parse().unwrap()]).await.unwrap();
    // A pod that the watch does not know is asked for.
    seen.source.publish_addresses(&key("none"), &uid, &[]).await.unwrap();
    for (kind, object) in policies() {
        let namespace = object["metadata"]["namespace"].as_str().map(Into::into);
        let policy = PolicyRef { kind, namespace, name: object["metadata"]["name"].as_str().unwrap().into() };
        seen.source.report(&PolicyStatus { policy, generation: Some(1), issues: Vec::new() }).await.unwrap();
    }
    let notice = Notice {
        about: Some(ObjectId::Pod(key("a"))),
        uid: Some(uid),
        weight: Weight::Warning,
        reason: "PolicyMapFull",
        message: "the gate is closed".to_owned(),
    };
    // The same again is counted on the Event that is there.
    eventually("the Event was made and counted", async || {
        seen.source.emit(&notice).await.unwrap();
        server.count("create", "events") > 0 && server.count("patch", "events") > 0
    })
    .await;
    eventually("all conditions are written", async || {
        let written = |(_, object): &(PolicyKind, Value)| {
            let kind = object["kind"].as_str().unwrap().to_lowercase();
            let plural = format!("{}ies", kind.trim_end_matches('y'));
            let group = object["apiVersion"].as_str().unwrap().split('/').next().unwrap();
            let name = object["metadata"]["name"].as_str().unwrap();
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
            let there = server.get(&TableId::new(group, &plural), namespace, name).unwrap();
            there.pointer("/status/conditions/0").is_some()
        };
        policies().iter().all(written)
    })
    .await;

    let (granted, used) = (granted(), used(&server));
    let missing: Vec<_> = used.difference(&granted).collect();
    let idle: Vec<_> = granted.difference(&used).collect();
    assert!(
        missing.is_empty() && idle.is_empty(),
        "asked and not granted: {missing:?}; granted and not asked: {idle:?}"
    );
}
