//! What it does when the API server is away, wrong or behind. In all of it: what is known stays, the rest goes on, and that
//! it may be out of date is told.

use std::time::Duration;

use serde_json::json;
use sluice_tests::apiserver::{ApiServer, Fault, FaultRule, Outage, TableId};

use super::observer::{Observer, eventually, network_policy, pod, pods, timing};

fn policies() -> TableId {
    TableId::new("networking.k8s.io", "networkpolicies")
}

#[tokio::test]
async fn the_api_server_is_away() {
    for outage in [Outage::Refuse, Outage::Hang] {
        let server = ApiServer::start().await.unwrap();
        server.put(pod("default", "stays", "10.0.0.1")).unwrap();
        server.put(pod("default", "goes", "10.0.0.2")).unwrap();
        let mut quick = timing();
        quick.patience = Duration::from_millis(300);
        let mut seen = Observer::on_node(&server, "node-a", quick);
        seen.synced().await;
        server.outage(outage);
        if outage == Outage::Refuse {
            seen.until("stale", |seen| seen.stale.is_some()).await;
        }
        assert_eq!(seen.pods().len(), 2, "what is known stays");
        server.delete(&pods(), "default", "goes").unwrap();
        server.put(pod("default", "comes", "10.0.0.3")).unwrap();
        server.put(network_policy("default", "p")).unwrap();
        server.heal();
        server.cut();
        seen.until("what changed meanwhile", |seen| {
            seen.stale.is_none() && seen.pods() == ["default/comes", "default/stays"] && seen.policies().len() == 1
        })
        .await;
        assert_eq!(server.count("list", "pods"), 1, "watches go on where they ended");
    }
}

/// Nobody waits for what a server was asked while it hung, nor for the end of a pause, once it answers again.
#[tokio::test]
async fn what_a_server_has_is_known_soon_after_it_answers_again() {
    let server = ApiServer::start().await.unwrap();
    server.put(pod("default", "a", "10.0.0.1")).unwrap();
    let mut patient = timing();
    patient.pulse = Duration::from_millis(100);
    patient.patience = Duration::from_secs(600);
    (patient.least, patient.most) = (Duration::from_secs(300), Duration::from_secs(600));
    let mut seen = Observer::on_node(&server, "node-a", patient);
    seen.synced().await;
    server.outage(Outage::Hang);
    server.cut();
    seen.until("stale", |seen| seen.stale.is_some()).await;
    server.put(pod("default", "b", "10.0.0.2")).unwrap();
    server.put(network_policy("default", "p")).unwrap();
    server.heal();
    // Within the observer's deadline, which is far below the pauses.
    seen.until("what changed meanwhile", |seen| {
        seen.stale.is_none() && seen.pods().len() == 2 && seen.policies().len() == 1
    })
    .await;
}

#[tokio::test]
async fn the_api_server_is_away_at_the_beginning() {
    let server = ApiServer::start().await.unwrap();
    server.put(pod("default", "a", "10.0.0.1")).unwrap();
    server.outage(Outage::Refuse);
    let mut seen = Observer::new(&server);
    seen.until("stale", |seen| seen.stale.as_ref().is_some_and(|why| why.contains("cannot be reached"))).await;
    server.heal();
    seen.synced().await;
    assert_eq!(seen.pods().len(), 1);
}

#[tokio::test]
async fn a_network_swallows_everything() {
    let server = ApiServer::start().await.unwrap();
    let mut quick = timing();
    quick.pulse = Duration::from_millis(100);
    quick.patience = Duration::from_millis(200);
    let mut seen = Observer::on_node(&server, "node-a", quick);
    seen.synced().await;
    server.freeze(true);
    seen.until("stale", |seen| seen.stale.as_ref().is_some_and(|why| why.contains("did not answer"))).await;
    server.put(pod("default", "a", "10.0.0.1")).unwrap();
    server.freeze(false);
    seen.until("the pod", |seen| seen.stale.is_none() && seen.pods().len() == 1).await;
}

#[tokio::test]
async fn watches_break() {
    let server = ApiServer::start().await.unwrap();
    let mut seen = Observer::new(&server);
    seen.synced().await;
    for round in 0..5 {
        if round % 2 == 0 {
            server.cut();
        } else {
            server.end_watches();
        }
        server.put(pod("default", &format!("p{round}"), "10.0.0.1")).unwrap();
        seen.until("the next pod", |seen| seen.pods().len() == round + 1).await;
    }
    seen.synced().await;
    assert_eq!(server.count("list", "pods"), 1);
    // Nothing else was written.
    seen.until("all that is told", |seen| seen.upto.get("pods") == Some(&server.revision())).await;
}

#[tokio::test]
async fn a_watch_is_gone_and_what_was_deleted_meanwhile_is_found() {
    let server = ApiServer::start().await.unwrap();
    for name in ["a", "b", "c"] {
        server.put(pod("default", name, "10.0.0.1")).unwrap();
        server.put(network_policy("default", name)).unwrap();
    }
    let mut seen = Observer::new(&server);
    seen.synced().await;
    let events = seen.events;
    server.outage(Outage::Refuse);
    server.delete(&pods(), "default", "a").unwrap();
    server.delete(&policies(), "default", "b").unwrap();
    server.put(pod("default", "d", "10.0.0.4")).unwrap();
    server.compact();
    server.heal();
    seen.until("what changed meanwhile", |seen| {
        seen.pods() == ["default/b", "default/c", "default/d"] && seen.policies().len() == 2 && seen.stale.is_none()
    })
    .await;
    assert_eq!(seen.events, events + 3, "only what changed is told");
    // 410 as an event of a watch that is under way.
    server.delete(&pods(), "default", "b").unwrap();
    server.compact();
    seen.until("b is gone", |seen| seen.pods() == ["default/c", "default/d"]).await;
    assert!(seen.source.metrics().api.relists.get() >= 2);
}

#[tokio::test]
async fn the_pages_of_a_list_take_too_long() {
    let server = ApiServer::start().await.unwrap();
    for number in 0..700 {
        server.put(network_policy("default", &format!("p{number}"))).unwrap();
    }
    // The second page's token is too old, twice.
    for _ in 0..2 {
        server.fault(FaultRule::times(1, "list", "networkpolicies", Fault::Slow(Duration::ZERO)));
        server.fault(FaultRule::times(1, "list", "networkpolicies", Fault::Status { code: 410, retry_after: None }));
    }
    let mut seen = Observer::new(&server);
    seen.synced().await;
    assert_eq!(seen.policies().len(), 700);
    let asked = server.requests();
    assert!(asked.iter().any(|request| request.query.get("limit").is_some_and(|limit| limit == "0")), "in one page");
}

#[tokio::test]
async fn the_storage_is_restored_from_a_backup() {
    for bumped in [true, false] {
        restored(bumped).await;
    }
}

async fn restored(bumped: bool) {
    let server = ApiServer::start().await.unwrap();
    server.put(pod("default", "a", "10.0.0.1")).unwrap();
    let backup = server.backup();
    let mut seen = Observer::new(&server);
    server.put(pod("default", "b", "10.0.0.2")).unwrap();
    server.put(pod("default", "a", "10.0.0.9")).unwrap();
    seen.until("both", |seen| seen.stale.is_none() && seen.pods().len() == 2).await;
    if bumped {
        server.restore(&backup);
    } else {
        server.set_back(&backup);
    }
    seen.until("as it was", |seen| {
        seen.pods() == ["default/a"]
            && seen.state.pods.values().all(|pod| pod.addresses.contains(&"10.0.0.1".parse().unwrap()))
            && seen.stale.is_none()
    })
    .await;
    server.put(pod("default", "c", "10.0.0.3")).unwrap();
    seen.until("and on", |seen| seen.pods() == ["default/a", "default/c"]).await;
}

#[tokio::test]
async fn a_malformed_object_is_among_good_ones() {
    let server = ApiServer::start().await.unwrap();
    server.put(network_policy("default", "good")).unwrap();
    server.put(network_policy("default", "turns-bad")).unwrap();
    let broken = |name: &str| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name, "namespace": "default"},
            "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/99"}}]}]},
        })
    };
    server.put(broken("bad")).unwrap();
    server.put_raw(&pods(), "default", "text", json!("no object at all")).unwrap();
    server.put_raw(&pods(), "default", "odd", json!({"metadata": {"name": 7}, "spec": []})).unwrap();
    server.put(pod("default", "a", "10.0.0.1")).unwrap();
    let mut seen = Observer::new(&server);
    seen.synced().await;
    assert_eq!((seen.pods(), seen.policies().len()), (vec!["default/a".to_owned()], 3));
    let issues = &seen.faults["NetworkPolicy default/bad"];
    assert!(issues[0].path.contains("ipBlock") && seen.faults.len() >= 2, "{}", seen.shown());

    // One that turns bad by the watch keeps what it said; those after it follow.
    let mut lost = network_policy("default", "turns-bad");
    lost["spec"] = json!(7);
    server.put(lost).unwrap();
    server.put(pod("default", "b", "10.0.0.2")).unwrap();
    seen.until("the next pod, and the fault", |seen| {
        seen.pods().len() == 2 && seen.faults.contains_key("NetworkPolicy default/turns-bad")
    })
    .await;
    assert_eq!(seen.policies().len(), 3);
    // Mended, the fault goes.
    server.put(network_policy("default", "bad")).unwrap();
    server.put(network_policy("default", "turns-bad")).unwrap();
    seen.until("mended", |seen| !seen.faults.keys().any(|place| place.starts_with("NetworkPolicy"))).await;
    assert!(seen.stale.is_none());
}

#[tokio::test]
async fn a_watch_carries_garbage() {
    let server = ApiServer::start().await.unwrap();
    let mut seen = Observer::new(&server);
    seen.synced().await;
    eventually("pods are watched", async || server.count("watch", "pods") == 1).await;
    server.watch_line(&pods(), "{\"type\":\"ADDED\",\"object\":{\"metadata\"");
    server.put(pod("default", "a", "10.0.0.1")).unwrap();
    seen.until("the pod", |seen| seen.pods() == ["default/a"]).await;
    eventually("it was listed again", async || server.count("list", "pods") == 2).await;
}

#[tokio::test]
async fn answers_break_off_or_are_refused() {
    let server = ApiServer::start().await.unwrap();
    server.put(pod("default", "a", "10.0.0.1")).unwrap();
    let busy = Fault::Status { code: 429, retry_after: Some(0) };
    for fault in [Fault::Truncate(60), Fault::Drop, Fault::Garbage("<html>".to_owned()), busy] {
        server.fault(FaultRule::times(1, "list", "pods", fault.clone()));
        server.fault(FaultRule::times(1, "watch", "pods", fault));
    }
    server.fault(FaultRule::times(2, "discovery", "/apis", Fault::Status { code: 503, retry_after: None }));
    let mut seen = Observer::new(&server);
    seen.synced().await;
    server.put(pod("default", "b", "10.0.0.2")).unwrap();
    seen.until("both", |seen| seen.pods().len() == 2 && seen.stale.is_none()).await;
    assert!(seen.faults.keys().all(|place| !place.contains("default/")), "{}", seen.shown());
}

#[tokio::test]
async fn a_server_that_is_busy_is_left_alone_for_as_long_as_it_says() {
    let server = ApiServer::start().await.unwrap();
    server.fault(FaultRule::times(1, "list", "pods", Fault::Status { code: 429, retry_after: Some(1) }));
    let began = tokio::time::Instant::now();
    let mut slow = timing();
    slow.most = Duration::from_secs(1);
    let mut seen = Observer::on_node(&server, "node-a", slow);
    seen.synced().await;
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.count("list", "pods"), 2);
}

#[tokio::test]
async fn a_kind_that_may_not_be_read_is_not_taken_for_one_without_objects() {
    let server = ApiServer::start().await.unwrap();
    server.put(pod("default", "a", "10.0.0.1")).unwrap();
    server.fault(FaultRule::always("list", "ciliumnetworkpolicies", Fault::Status { code: 403, retry_after: None }));
    let mut seen = Observer::new(&server);
    seen.until("stale", |seen| seen.stale.as_ref().is_some_and(|why| why.contains("403"))).await;
    seen.until("the rest goes on", |seen| seen.pods().len() == 1).await;
    assert_eq!(seen.synced, 0);
    server.heal();
    seen.synced().await;
}
