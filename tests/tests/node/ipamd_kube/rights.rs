//! What it may do by the documentation, and what it does.

use serde_json::json;
use sluice_ipamd_daemon::cluster::{About, Condition, Notice, PodIps, Report, Shared, Weight};
use sluice_tests::apiserver::TableId;

use super::groups::{policy, server_of_policies, written};
use super::seen::{Seen, cni_node, cni_nodes, eni_configs, named, node, pod, trunk_wanted};
use crate::kube_source::observer::eventually;

/// What docs/ipamd-kubernetes.md says that it may do is what it asks for, and nothing else.
#[tokio::test]
async fn it_asks_for_what_the_documentation_says() {
    let text = include_str!("../../../../docs/ipamd-kubernetes.md");
    let rules: Vec<&str> = text.lines().filter(|line| line.trim_start().starts_with("- {apiGroups")).collect();
    let said = |group: &str, resource: &str, verb: &str| {
        let list = |line: &str, name: &str| -> Vec<String> {
            let rest = line.split_once(&format!("{name}: [")).map_or("", |(_, rest)| rest);
            let inner = rest.split_once(']').map_or("", |(inner, _)| inner);
            inner.split(',').map(|word| word.trim().trim_matches('"').to_owned()).collect()
        };
        rules.iter().any(|line| {
            let has = |name: &str, word: &str| list(line, name).iter().any(|one| one == word);
            has("apiGroups", group) && has("resources", resource) && has("verbs", verb)
        })
    };
    let server = server_of_policies().await;
    server.install(eni_configs());
    server.put(node("n1", &json!({}))).unwrap();
    server.put(policy("a", "web")).unwrap();
    let mut seen = Seen::on(&server, "n1");
    seen.until("elected", |seen| seen.elected && seen.subnet.is_some() && seen.overrides.is_some()).await;
    seen.until("the group", |seen| seen.groups.len() == 1).await;
    let name = seen.groups.keys().next().unwrap().clone();
    for number in 1..=2 {
        let groups = [(name.clone(), vec![format!("10.0.0.{number}/32").parse().unwrap()])].into();
        let routes = Some(vec![format!("10.{number}.0.0/16").parse().unwrap()]);
        seen.report(Report::Shared(Shared { groups, routes }));
        seen.until("it was written", |seen| {
            seen.routes.as_ref().is_some_and(|found| found[0].addr().octets()[1] == number)
        })
        .await;
        eventually("it was written", async || {
            written(&server).get(&name).is_some_and(|found| found[0] == format!("10.0.0.{number}/32"))
        })
        .await;
    }
    server.delete(&TableId::new("cilium.io", "ciliumnetworkpolicies"), "default", "a").unwrap();
    eventually("the group is gone", async || written(&server).is_empty()).await;
    let notice = Notice { about: About::Node, weight: Weight::Normal, reason: "Test", message: "m".to_owned() };
    seen.report(Report::Notice(notice.clone()));
    seen.report(Report::Notice(notice));
    seen.report(Report::Condition(Condition { holds: true, reason: "Available", message: String::new() }));
    server.install(cni_nodes());
    server.put(cni_node("n1", &json!([]))).unwrap();
    seen.report(trunk_wanted());
    server.put(pod("web", "n1")).unwrap();
    let all = [(named(&server, "web"), vec!["10.0.0.1".parse().unwrap()])].into();
    seen.report(Report::PodIps(PodIps { all, again: false }));
    eventually("everything was asked for", async || {
        server.count("patch", "events") > 0
            && server.count("patch", "cninodes") > 0
            && server.count("patch", "nodes") > 0
            && server.count("patch", "pods") > 0
            && server.count("update", "leases") > 0
    })
    .await;
    let groups = [
        ("events", "events.k8s.io"),
        ("leases", "coordination.k8s.io"),
        ("eniconfigs", "crd.k8s.amazonaws.com"),
        ("cninodes", "vpcresources.k8s.aws"),
        ("ciliumcidrgroups", "cilium.io"),
        ("ciliumclusterwidenetworkpolicies", "cilium.io"),
        ("ciliumnetworkpolicies", "cilium.io"),
    ];
    for request in server.requests().iter().filter(|request| request.verb != "discovery") {
        let group = groups.iter().find(|(plural, _)| *plural == request.plural).map_or("", |(_, group)| group);
        let resource = match request.subresource.as_str() {
            "" => request.plural.clone(),
            sub => format!("{}/{sub}", request.plural),
        };
        assert!(said(group, &resource, request.verb), "{} {resource}.{group}", request.verb);
    }
}
