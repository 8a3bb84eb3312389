//! What it tells its node, and that nothing of what goes wrong at the server is believed.

use serde_json::json;
use sluice_tests::apiserver::{ApiServer, Fault, FaultRule, Outage, TableId};

use super::seen::{Seen, eni_config, eni_configs, map, node, pod, pods};

#[tokio::test]
async fn it_tells_what_concerns_its_node() {
    let server = ApiServer::start_bare().await.unwrap();
    server.install(eni_configs());
    server.put(node("n1", &json!({}))).unwrap();
    server.put(node("n2", &json!({"unschedulable": true}))).unwrap();
    server.put(pod("a", "n1")).unwrap();
    server.put(pod("b", "n2")).unwrap();
    server.put(eni_config("a", "subnet-00000001")).unwrap();
    server.put(map(&json!({"all": "{env: {WARM_IP_TARGET: 3}}"}))).unwrap();
    let mut seen = Seen::on(&server, "n1");
    let three = || vec![("WARM_IP_TARGET".to_owned(), "3".to_owned())];
    seen.until("all of it", |seen| {
        seen.pods() == ["a"]
            && seen.schedulable == Some(true)
            && seen.subnet == Some(Some("subnet-00000001".to_owned()))
            && seen.overrides == Some(Ok(three()))
    })
    .await;
    assert!(seen.bound.iter().flatten().all(|pod| pod.uid.is_some()));

    let mut started = pod("a", "n1");
    started["status"] = json!({"phase": "Pending", "podIP": "10.0.0.9"});
    server.put(started).unwrap();
    server.put(pod("c", "n1")).unwrap();
    let mut cordoned = node("n1", &json!({"unschedulable": true}));
    cordoned["status"] = json!({"capacity": {"cpu": "2", "pods": "29"}});
    server.put(cordoned).unwrap();
    server.put(eni_config("a", "subnet-00000002")).unwrap();
    server.put(map(&json!({"all": "{envs: }"}))).unwrap();
    seen.until("what changed", |seen| {
        seen.pods() == ["c"]
            && seen.schedulable == Some(false)
            && seen.max_pods == Some(29)
            && seen.subnet == Some(Some("subnet-00000002".to_owned()))
            && matches!(&seen.overrides, Some(Err(faults)) if faults.len() == 1)
    })
    .await;
    server.delete(&pods(), "default", "c").unwrap();
    server.delete(&TableId::new("", "configmaps"), "kube-system", "sluice-ipamd").unwrap();
    seen.until("what is gone", |seen| seen.pods().is_empty() && seen.overrides == Some(Ok(Vec::new()))).await;
    // Nothing of other nodes is asked for.
    let unlimited = server.requests().into_iter().filter(|request| {
        matches!(request.verb, "list" | "watch")
            && matches!(request.plural.as_str(), "pods" | "nodes" | "configmaps")
            && !request.query.contains_key("fieldSelector")
    });
    assert_eq!(unlimited.count(), 0);
}

#[tokio::test]
async fn what_pods_say_of_branch_enis_is_told_when_it_is_written() {
    let server = ApiServer::start_bare().await.unwrap();
    server.put(node("n1", &json!({}))).unwrap();
    server.put(pod("plain", "n1")).unwrap();
    let mut asks = pod("asks", "n1");
    asks["spec"]["containers"] = json!([{"name": "c", "resources": {"limits": {"vpc.amazonaws.com/pod-eni": "1"}}}]);
    server.put(asks.clone()).unwrap();
    let mut seen = Seen::on(&server, "n1");
    let claim = |seen: &Seen, name: &str| seen.claims.get(&("default".to_owned(), name.to_owned())).cloned();
    seen.until("both", |seen| seen.claims.len() == 2 && seen.pods() == ["plain"]).await;
    assert!(!claim(&seen, "plain").unwrap().wants);
    let asked = claim(&seen, "asks").unwrap();
    assert!(asked.wants && asked.annotation.is_none() && asked.uid.is_some(), "{asked:?}");
    asks["metadata"]["annotations"] = json!({"vpc.amazonaws.com/pod-eni": "[]", "other": "x"});
    server.put(asks).unwrap();
    seen.until("the annotation", |seen| claim(seen, "asks").unwrap().annotation.as_deref() == Some("[]")).await;
}

#[tokio::test]
async fn one_kind_that_cannot_be_read_holds_up_no_other() {
    let server = ApiServer::start_bare().await.unwrap();
    server.put(node("n1", &json!({}))).unwrap();
    server.put(pod("a", "n1")).unwrap();
    for plural in ["configmaps", "eniconfigs"] {
        server.fault(FaultRule::always("list", plural, Fault::Status { code: 403, retry_after: None }));
    }
    let mut seen = Seen::on(&server, "n1");
    // The ENIConfig's kind is not served at all.
    seen.until("pods and node", |seen| seen.pods() == ["a"] && seen.schedulable == Some(true)).await;
    assert_eq!(seen.overrides, None);
    server.heal();
    seen.until("no overrides", |seen| seen.overrides == Some(Ok(Vec::new()))).await;
}

#[tokio::test]
async fn what_goes_wrong_at_the_server_is_not_believed() {
    let server = ApiServer::start_bare().await.unwrap();
    server.put(node("n1", &json!({}))).unwrap();
    server.put(pod("a", "n1")).unwrap();
    server.outage(Outage::Refuse);
    let mut seen = Seen::on(&server, "n1");
    server.heal();
    seen.until("after the outage", |seen| seen.pods() == ["a"]).await;

    // Throttled, cut off, and answers that are no list.
    for fault in [
        Fault::Status { code: 429, retry_after: None },
        Fault::Drop,
        Fault::Truncate(20),
        Fault::Garbage("{\"items\": 7".to_owned()),
    ] {
        server.fault(FaultRule::times(2, "list", "pods", fault.clone()));
        server.fault(FaultRule::times(1, "watch", "pods", fault));
    }
    // Watches lose their place: 410.
    server.put(pod("b", "n1")).unwrap();
    server.compact();
    server.cut();
    seen.until("after 410", |seen| seen.pods() == ["a", "b"]).await;
    server.heal();

    // A malformed pod: what it said before holds, and the others are read.
    server
        .put_raw(
            &pods(),
            "default",
            "b",
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "b", "namespace": "default"},
                "spec": {"nodeName": "n1", "hostNetwork": "maybe"},
            }),
        )
        .unwrap();
    server.put(pod("c", "n1")).unwrap();
    seen.until("beside a malformed pod", |seen| seen.pods() == ["a", "b", "c"]).await;

    // The server hangs, and goes on: what was told stays, what changed comes.
    server.freeze(true);
    server.put(pod("d", "n1")).unwrap();
    assert!(seen.told.try_recv().is_err());
    server.freeze(false);
    seen.until("after it hung", |seen| seen.pods() == ["a", "b", "c", "d"]).await;
}
