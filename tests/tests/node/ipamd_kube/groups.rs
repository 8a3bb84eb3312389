//! Who is in the security groups that policies name, as the elected node writes it for all.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sluice_ipamd_daemon::cluster::{Report, Shared};
use sluice_tests::apiserver::{ApiServer, Fault, FaultRule, TableId, policy_kinds};

use super::seen::Seen;
use crate::kube_source::observer::eventually;

fn cidr_groups() -> TableId {
    TableId::new("cilium.io", "ciliumcidrgroups")
}

/// A server with the kinds of policies.
pub(super) async fn server_of_policies() -> ApiServer {
    let server = ApiServer::start_bare().await.unwrap();
    policy_kinds().into_iter().for_each(|kind| server.install(kind));
    server
}

pub(super) fn policy(name: &str, security_group: &str) -> Value {
    json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"endpointSelector": {}, "egress": [{"toGroups": [{"aws": {"securityGroupsNames": [security_group]}}]}]},
    })
}

/// Each CiliumCIDRGroup with its CIDRs.
pub(super) fn written(server: &ApiServer) -> BTreeMap<String, Vec<String>> {
    let objects = server.objects(&cidr_groups()).into_iter();
    let read = |object: &Value| {
        let cidrs = object["spec"]["externalCIDRs"].as_array().unwrap().iter();
        let cidrs = cidrs.map(|cidr| cidr.as_str().unwrap().to_owned()).collect();
        (object["metadata"]["name"].as_str().unwrap().to_owned(), cidrs)
    };
    objects.map(|object| read(&object)).collect()
}

#[tokio::test]
async fn the_elected_node_writes_who_is_in_the_groups_that_policies_name() {
    let server = server_of_policies().await;
    server.put(policy("a", "web")).unwrap();
    server.put(policy("same", "web")).unwrap();
    let mut seen = Seen::on(&server, "n1");
    seen.until("the group", |seen| seen.elected && seen.groups.len() == 1).await;
    let (name, group) = seen.groups.first_key_value().map(|(name, group)| (name.clone(), group.clone())).unwrap();
    assert!(name.starts_with("sluice-aws-") && group.names.contains("web"), "{name} {group:?}");
    assert!(written(&server).is_empty(), "nothing is known of it yet");

    let told = |seen: &Seen, cidrs: &[&str], routes: Option<&[&str]>| {
        let groups = [(name.clone(), cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect())].into();
        let routes = routes.map(|routes| routes.iter().map(|route| route.parse().unwrap()).collect());
        seen.report(Report::Shared(Shared { groups, routes }));
    };
    // The first attempts fail.
    server.fault(FaultRule::times(2, "create", "ciliumcidrgroups", Fault::Status { code: 503, retry_after: None }));
    told(&seen, &["10.0.0.1/32", "2001:db8::1/128"], Some(&["10.9.0.0/16"]));
    seen.until("what was written comes back", |seen| seen.routes == Some(vec!["10.9.0.0/16".parse().unwrap()])).await;
    eventually("the object", async || {
        written(&server).get(&name) == Some(&vec!["10.0.0.1/32".to_owned(), "2001:db8::1/128".to_owned()])
    })
    .await;
    // Nobody is in it any more: it is written so, not left out.
    told(&seen, &[], None);
    eventually("an empty group", async || written(&server).get(&name) == Some(&Vec::new())).await;

    // One that somebody else has made is let alone, with its policy and without; ours go with their policies.
    server.put(policy("b", "db")).unwrap();
    seen.until("both groups", |seen| seen.groups.len() == 2).await;
    let other = seen.groups.keys().find(|key| **key != name).unwrap().clone();
    let foreign = json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumCIDRGroup", "metadata": {"name": other},
        "spec": {"externalCIDRs": ["192.0.2.1/32"]},
    });
    server.put(foreign).unwrap();
    let groups = [(other.clone(), vec!["10.0.0.2/32".parse().unwrap()])].into();
    seen.report(Report::Shared(Shared { groups, routes: None }));
    told(&seen, &["10.0.0.3/32"], Some(&["10.9.0.0/16", "10.8.0.0/16"]));
    eventually("ours is written", async || written(&server)[&name] == ["10.0.0.3/32"]).await;
    seen.until("more routes", |seen| seen.routes.as_ref().is_some_and(|routes| routes.len() == 2)).await;
    for gone in ["a", "same", "b"] {
        server.delete(&TableId::new("cilium.io", "ciliumnetworkpolicies"), "default", gone).unwrap();
    }
    eventually("ours is gone", async || !written(&server).contains_key(&name)).await;
    assert_eq!(written(&server)[&other], ["192.0.2.1/32"]);
}

#[tokio::test]
async fn an_object_that_is_refused_holds_up_no_other() {
    for code in [403, 409, 422] {
        let server = server_of_policies().await;
        server.put(policy("a", "web")).unwrap();
        server.put(policy("b", "db")).unwrap();
        let mut seen = Seen::on(&server, "n1");
        seen.until("both groups", |seen| seen.elected && seen.groups.len() == 2).await;
        let names: Vec<String> = seen.groups.keys().cloned().collect();
        // The first in line is there with another address, and may not be changed; nor may the ConfigMap be made.
        let ours = json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumCIDRGroup",
            "metadata": {"name": names[0], "labels": {"app.kubernetes.io/managed-by": "sluice-ipamd"}},
            "spec": {"externalCIDRs": ["10.0.0.9/32"]},
        });
        server.put(ours).unwrap();
        let refused = || Fault::Status { code, retry_after: None };
        server.fault(FaultRule::always("patch", "ciliumcidrgroups", refused()));
        server.fault(FaultRule::always("create", "configmaps", refused()));
        let groups = names.iter().map(|name| (name.clone(), vec!["10.0.0.1/32".parse().unwrap()])).collect();
        let routes = Some(vec!["10.9.0.0/16".parse().unwrap()]);
        seen.report(Report::Shared(Shared { groups, routes }));
        let has = |name: &String| written(&server).get(name).is_some_and(|cidrs| *cidrs == ["10.0.0.1/32"]);
        eventually("the second", async || has(&names[1])).await;
        assert_eq!(written(&server)[&names[0]], ["10.0.0.9/32"], "{code}");
        // What is refused is asked for again after a pause, for as long as it is.
        let asked = server.count("patch", "ciliumcidrgroups");
        eventually("another try", async || server.count("patch", "ciliumcidrgroups") > asked).await;
        server.heal();
        eventually("the first", async || has(&names[0])).await;
        seen.until("routes", |seen| seen.routes == Some(vec!["10.9.0.0/16".parse().unwrap()])).await;
    }
}

#[tokio::test]
async fn objects_that_are_refused_alike_hold_up_the_last_not_for_ever() {
    let server = server_of_policies().await;
    for name in ["a", "b", "c", "d", "e"] {
        server.put(policy(name, name)).unwrap();
    }
    let mut seen = Seen::on(&server, "n1");
    seen.until("all groups", |seen| seen.elected && seen.groups.len() == 5).await;
    let names: Vec<String> = seen.groups.keys().cloned().collect();
    let (last, others) = names.split_last().unwrap();
    // More of them may not be changed than are tried one after the other.
    for name in others {
        let ours = json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumCIDRGroup",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "sluice-ipamd"}},
            "spec": {"externalCIDRs": ["10.0.0.9/32"]},
        });
        server.put(ours).unwrap();
    }
    server.fault(FaultRule::always("patch", "ciliumcidrgroups", Fault::Status { code: 403, retry_after: None }));
    let groups = names.iter().map(|name| (name.clone(), vec!["10.0.0.1/32".parse().unwrap()])).collect();
    seen.report(Report::Shared(Shared { groups, routes: None }));
    let has = |name: &String| written(&server).get(name).is_some_and(|cidrs| *cidrs == ["10.0.0.1/32"]);
    eventually("the last", async || has(last)).await;
    assert!(!others.iter().any(has));
    server.heal();
    eventually("the others", async || others.iter().all(has)).await;
}

#[tokio::test]
async fn groups_outlive_policies_that_cannot_be_read() {
    let server = server_of_policies().await;
    server.put(policy("a", "web")).unwrap();
    let mut first = Seen::on(&server, "n1");
    first.until("the group", |seen| seen.groups.len() == 1).await;
    let name = first.groups.keys().next().unwrap().clone();
    let groups: BTreeMap<_, _> = [(name.clone(), vec!["10.0.0.1/32".parse().unwrap()])].into();
    first.report(Report::Shared(Shared { groups, routes: None }));
    eventually("the object", async || written(&server).contains_key(&name)).await;
    drop(first);
    // The next one that is elected may read no policies: it takes nothing away.
    server.fault(FaultRule::always("list", "ciliumnetworkpolicies", Fault::Status { code: 403, retry_after: None }));
    let mut second = Seen::on(&server, "n2");
    second.until("elected", |seen| seen.elected).await;
    eventually("the others are read", async || server.count("watch", "ciliumcidrgroups") > 1).await;
    assert!(written(&server).contains_key(&name) && second.groups.is_empty());
    // What has nothing to do with policies does not wait for them.
    second
        .report(Report::Shared(Shared { groups: BTreeMap::new(), routes: Some(vec!["10.9.0.0/16".parse().unwrap()]) }));
    second.until("routes", |seen| seen.routes == Some(vec!["10.9.0.0/16".parse().unwrap()])).await;
    server.heal();
    second.until("the group", |seen| seen.groups.len() == 1).await;
    assert!(written(&server).contains_key(&name));
}
