//! What it writes of its own node: wishes, Events, the condition; and who is elected.

use std::net::IpAddr;

use serde_json::json;
use sluice_contract::id::PodRef;
use sluice_ipamd_daemon::cluster::{About, Condition, Notice, PodIps, Report, Weight};
use sluice_tests::apiserver::{ApiServer, Fault, FaultRule, Outage, TableId};

use super::seen::{Seen, cni_node, cni_nodes, named, node, pod, pods, trunk_wanted};
use crate::kube_source::observer::eventually;

#[tokio::test]
async fn the_trunk_is_asked_for_beside_what_others_ask_for() {
    let server = ApiServer::start_bare().await.unwrap();
    server.install(cni_nodes());
    server.put(node("n1", &json!({}))).unwrap();
    let seen = Seen::on(&server, "n1");
    // The controller has not made it yet; then somebody else is quicker.
    seen.report(trunk_wanted());
    eventually("it was looked for", async || server.count("get", "cninodes") > 1).await;
    server.fault(FaultRule::times(1, "patch", "cninodes", Fault::Status { code: 409, retry_after: None }));
    server.put(cni_node("n1", &json!([{"name": "Other", "value": "x"}]))).unwrap();
    let table = TableId::new("vpcresources.k8s.aws", "cninodes");
    let all = json!([{"name": "Other", "value": "x"}, {"name": "SecurityGroupsForPods"}]);
    eventually("both are wanted", async || {
        server.get(&table, "", "n1").is_some_and(|found| found["spec"]["features"] == all)
    })
    .await;
    assert_eq!(server.get(&table, "", "n1").unwrap()["spec"]["tags"], json!({"a": "b"}));
    let (written, gets) = (server.count("patch", "cninodes"), server.count("get", "cninodes"));
    seen.report(trunk_wanted());
    eventually("it was looked at again", async || server.count("get", "cninodes") > gets).await;
    assert_eq!(server.count("patch", "cninodes"), written, "what is there is not written again");
}

#[tokio::test]
async fn events_are_counted_and_the_condition_is_written_when_it_changes() {
    let server = ApiServer::start_bare().await.unwrap();
    let mut others = node("n1", &json!({}));
    others["status"] = json!({"conditions": [{"type": "Ready", "status": "True"}]});
    server.put(others).unwrap();
    let seen = Seen::on(&server, "n1");
    let refused = Notice {
        about: About::Pod(PodRef { namespace: "default".into(), name: "web".into(), uid: Some("u-1".into()) }),
        weight: Weight::Warning,
        reason: "SubnetExhausted",
        message: "no address is free: subnet subnet-00000001 has no free address left".to_owned(),
    };
    for _ in 0..20 {
        seen.report(Report::Notice(refused.clone()));
    }
    seen.report(Report::Notice(Notice { about: About::Node, ..refused.clone() }));
    let events = || server.objects(&TableId::new("events.k8s.io", "events"));
    eventually("two Events, one counted", async || {
        let events = events();
        events.len() == 2 && events.iter().any(|event| event.pointer("/series/count") == Some(&json!(20)))
    })
    .await;
    let about = |kind: &str| events().into_iter().find(|event| event["regarding"]["kind"] == kind).unwrap();
    let pod = about("Pod");
    assert_eq!((&pod["regarding"]["uid"], &pod["metadata"]["namespace"]), (&json!("u-1"), &json!("default")));
    assert_eq!((&pod["reason"], &pod["type"]), (&json!("SubnetExhausted"), &json!("Warning")));
    assert_eq!(pod["reportingController"], "sluice.dev/ipamd");
    assert_eq!(about("Node")["regarding"]["name"], "n1");

    let condition = |holds: bool, reason: &'static str| Condition { holds, reason, message: reason.to_owned() };
    let shown = async |status: &str, reason: &str| {
        let node = server.get(&TableId::new("", "nodes"), "", "n1").unwrap();
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.len() == 2
            && conditions[0]["type"] == "Ready"
            && conditions[1]["type"] == "sluice.dev/PodAddresses"
            && conditions[1]["status"] == status
            && conditions[1]["reason"] == reason
    };
    server.fault(FaultRule::times(2, "patch", "nodes", Fault::Status { code: 503, retry_after: None }));
    seen.report(Report::Condition(condition(true, "Available")));
    eventually("the condition", async || shown("True", "Available").await).await;
    seen.report(Report::Condition(condition(false, "SubnetExhausted")));
    seen.report(Report::Condition(condition(false, "SubnetExhausted")));
    eventually("the condition", async || shown("False", "SubnetExhausted").await).await;
    assert!(server.count("patch", "nodes") <= 4 + 1, "{}", server.count("patch", "nodes"));
    // One that comes and goes is written as it is in the end, and not each time.
    let before = server.count("patch", "nodes");
    for _ in 0..20 {
        seen.report(Report::Condition(condition(true, "Available")));
        seen.report(Report::Condition(condition(false, "EniLimitReached")));
        tokio::task::yield_now().await;
    }
    eventually("the last condition", async || shown("False", "EniLimitReached").await).await;
    let written = server.count("patch", "nodes") - before;
    assert!(written <= 2, "{written} times");
}

#[tokio::test]
async fn one_node_is_elected_and_another_when_it_is_gone() {
    let server = ApiServer::start_bare().await.unwrap();
    let mut first = Seen::on(&server, "n1");
    first.until("the first", |seen| seen.elected).await;
    let mut second = Seen::on(&server, "n2");
    second.until("the second sees", |seen| seen.bound.is_some()).await;
    assert!(!second.elected);
    drop(first);
    second.until("the second, after the first", |seen| seen.elected).await;
    let lease = server.get(&TableId::new("coordination.k8s.io", "leases"), "kube-system", "sluice-ipamd").unwrap();
    assert!(lease["spec"]["holderIdentity"].as_str().unwrap().starts_with("n2_"), "{lease}");
    assert_eq!(lease["spec"]["leaseTransitions"], 1);
    // Without the server nobody can know who holds it.
    server.outage(Outage::Refuse);
    second.until("no longer", |seen| !seen.elected).await;
    server.heal();
    second.until("again", |seen| seen.elected).await;
}

const POD_IPS: &str = "vpc.amazonaws.com/pod-ips";

fn ips(pod: PodRef, addresses: &[&str], again: bool) -> Report {
    let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    Report::PodIps(PodIps { all: [(pod, addresses)].into(), again })
}

/// What a pod's annotation says.
fn said(server: &ApiServer, name: &str) -> Option<String> {
    server.get(&pods(), "default", name)?["metadata"]["annotations"][POD_IPS].as_str().map(str::to_owned)
}

#[tokio::test]
async fn a_pods_annotation_says_its_addresses_in_spite_of_conflicts_and_outages() {
    let server = ApiServer::start_bare().await.unwrap();
    for name in ["web", "refused", "other"] {
        server.put(pod(name, "n1")).unwrap();
    }
    let mut seen = Seen::on(&server, "n1");
    seen.until("the pods", |seen| seen.pods().len() == 3).await;
    for code in [409, 503, 429] {
        server.fault(FaultRule::times(1, "patch", "pods", Fault::Status { code, retry_after: None }));
    }
    let web = named(&server, "web");
    seen.report(ips(web.clone(), &["10.0.0.1", "2001:db8::1"], false));
    eventually("both addresses", async || said(&server, "web").as_deref() == Some("10.0.0.1,2001:db8::1")).await;
    let requests =
        server.requests().into_iter().filter(|request| (request.verb, request.plural.as_str()) == ("patch", "pods"));
    let requests: Vec<_> = requests.collect();
    assert_eq!(requests.len(), 4);
    let body = json!({"metadata": {"uid": web.uid, "annotations": {POD_IPS: "10.0.0.1,2001:db8::1"}}});
    assert!(
        requests.iter().all(|request| request.body == body && request.content_type == "application/merge-patch+json")
    );

    // While the server cannot, the latest of a pod waits, and is written when it can.
    server.fault(FaultRule::always("patch", "pods", Fault::Status { code: 503, retry_after: None }));
    seen.report(ips(web.clone(), &["10.0.0.2"], false));
    eventually("it was tried again", async || server.count("patch", "pods") > 5).await;
    seen.report(ips(web.clone(), &[], false));
    server.heal();
    eventually("none", async || said(&server, "web").as_deref() == Some("")).await;

    // What is refused is tried again behind the others, since a right may be given; a pod that is gone is given up.
    server.fault(FaultRule::times(1, "patch", "pods", Fault::Status { code: 403, retry_after: None }));
    seen.report(ips(named(&server, "refused"), &["10.0.0.3"], false));
    seen.report(ips(PodRef { name: "gone".to_owned(), ..web.clone() }, &["10.0.0.4"], false));
    seen.report(ips(named(&server, "other"), &["10.0.0.5"], false));
    eventually("the next one", async || said(&server, "other").as_deref() == Some("10.0.0.5")).await;
    eventually("the refused one", async || said(&server, "refused").as_deref() == Some("10.0.0.3")).await;
}

#[tokio::test]
async fn another_pod_of_the_name_is_not_written_on_and_what_is_said_is_not_said_again() {
    let server = ApiServer::start_bare().await.unwrap();
    for (name, annotation) in [("new", ""), ("says", "2001:db8::1, 10.0.0.1"), ("last", "")] {
        let mut object = pod(name, "n1");
        object["metadata"]["annotations"] = json!({POD_IPS: annotation});
        server.put(object).unwrap();
    }
    let mut seen = Seen::on(&server, "n1");
    seen.until("the pods", |seen| seen.pods().len() == 3).await;
    let before = PodRef { uid: Some("of-before".to_owned()), ..named(&server, "new") };
    seen.report(ips(before.clone(), &[], false));
    seen.report(ips(PodRef { uid: None, ..before.clone() }, &["10.0.0.9"], false));
    seen.report(ips(named(&server, "says"), &["10.0.0.1", "2001:db8::1"], true));
    seen.report(ips(named(&server, "last"), &["10.0.0.2"], true));
    eventually("the last one", async || said(&server, "last").as_deref() == Some("10.0.0.2")).await;
    assert_eq!(server.count("patch", "pods"), 1);
    // The watch might be late: it is tried, and the server says no, a bounded number of times.
    seen.report(ips(before, &["10.0.0.9"], false));
    eventually("it was given up", async || server.count("patch", "pods") == 13).await;
    seen.report(ips(named(&server, "last"), &["10.0.0.3"], false));
    eventually("the last one", async || said(&server, "last").as_deref() == Some("10.0.0.3")).await;
    assert_eq!(server.count("patch", "pods"), 14);
    assert_eq!(said(&server, "new").as_deref(), Some(""));
}

#[tokio::test]
async fn a_static_pod_is_found_by_the_uid_of_its_sandbox() {
    let server = ApiServer::start_bare().await.unwrap();
    let mut mirror = pod("static", "n1");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "hash"});
    server.put(mirror).unwrap();
    let mut seen = Seen::on(&server, "n1");
    seen.until("the pod", |seen| seen.pods().len() == 1).await;
    seen.report(ips(PodRef { uid: Some("hash".to_owned()), ..named(&server, "static") }, &["10.0.0.1"], false));
    eventually("its address", async || said(&server, "static").as_deref() == Some("10.0.0.1")).await;
}
