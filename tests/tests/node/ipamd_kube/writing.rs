//! What it writes of its own node: wishes, Events, the condition; and who is elected.

use serde_json::json;
use sluice_contract::id::PodRef;
use sluice_ipamd_daemon::cluster::{About, Condition, Notice, Report, Weight};
use sluice_tests::apiserver::{ApiServer, Fault, FaultRule, Outage, TableId};

use super::seen::{Seen, cni_node, cni_nodes, node, trunk_wanted};
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
