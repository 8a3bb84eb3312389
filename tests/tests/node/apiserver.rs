//! The fake API server, spoken to by the real client: what other tests build on.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
    Preconditions, WatchEvent, WatchParams,
};
use kube::runtime::watcher;
use kube::{Client, Config, Discovery, Error, ResourceExt as _};
use serde_json::json;
use sluice_tests::apiserver::{ApiServer, Fault, FaultRule, Kind, Outage, TableId};

const DEADLINE: Duration = Duration::from_secs(20);

/// A client that does not retry by itself.
fn client(server: &ApiServer) -> Client {
    let mut config = Config::new(server.url().parse().unwrap());
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

async fn in_time<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.expect("it takes too long")
}

fn map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"value": value}}, "data": {"value": value}}))
        .unwrap()
}

fn cilium() -> ApiResource {
    let kind = GroupVersionKind::gvk("cilium.io", "v2", "CiliumNetworkPolicy");
    ApiResource::from_gvk_with_plural(&kind, "ciliumnetworkpolicies")
}

fn code(error: &Error) -> (u16, String) {
    match error {
        Error::Api(status) => (status.code, status.reason.clone()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn objects_are_created_read_replaced_and_deleted() {
    let server = ApiServer::start().await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client(&server), "default");
    let made = maps.create(&PostParams::default(), &map("a", "1")).await.unwrap();
    assert!(made.uid().is_some() && made.creation_timestamp().is_some());
    let again = maps.create(&PostParams::default(), &map("a", "1")).await.unwrap_err();
    assert_eq!(code(&again), (409, "AlreadyExists".to_owned()));

    let mut next = map("a", "2");
    next.metadata.resource_version = made.resource_version();
    let replaced = maps.replace("a", &PostParams::default(), &next).await.unwrap();
    assert_ne!(replaced.resource_version(), made.resource_version());
    let stale = maps.replace("a", &PostParams::default(), &next).await.unwrap_err();
    assert_eq!(code(&stale), (409, "Conflict".to_owned()));

    // What changes nothing is no change.
    let same = maps.replace("a", &PostParams::default(), &replaced).await.unwrap();
    assert_eq!(same.resource_version(), replaced.resource_version());

    let other =
        DeleteParams::default().preconditions(Preconditions { uid: Some("x".to_owned()), resource_version: None });
    assert_eq!(code(&maps.delete("a", &other).await.unwrap_err()).0, 409);
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(maps.get_opt("a").await.unwrap(), None);
    let elsewhere: Api<ConfigMap> = Api::namespaced(client(&server), "nowhere");
    assert_eq!(code(&elsewhere.create(&PostParams::default(), &map("a", "1")).await.unwrap_err()).0, 404);
    assert_eq!((server.count("create", "configmaps"), server.count("delete", "")), (3, 2));
}

#[tokio::test]
async fn a_list_in_pages_is_of_one_moment() {
    let server = ApiServer::start().await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client(&server), "default");
    for number in 0..10 {
        maps.create(&PostParams::default(), &map(&format!("m{number}"), "1")).await.unwrap();
    }
    let mut names = Vec::new();
    let mut params = ListParams::default().limit(4);
    loop {
        let page = maps.list(&params).await.unwrap();
        names.extend(page.items.iter().map(|item| item.name_any()));
        // What changes between the pages is not in them.
        let _gone = maps.delete("m9", &DeleteParams::default()).await;
        let _made = maps.create(&PostParams::default(), &map("m5x", "1")).await;
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    assert_eq!(names, (0..10).map(|number| format!("m{number}")).collect::<Vec<_>>());

    let first = maps.list(&ListParams::default().limit(2)).await.unwrap();
    server.compact();
    let late = ListParams::default().limit(2).continue_token(&first.metadata.continue_.unwrap());
    assert_eq!(code(&maps.list(&late).await.unwrap_err()), (410, "Expired".to_owned()));
    let selected = maps.list(&ListParams::default().labels("value=1").fields("metadata.name=m1")).await.unwrap();
    assert_eq!(selected.items.len(), 1);
}

#[tokio::test]
async fn a_watch_tells_what_changes_and_ends_at_410() {
    let server = ApiServer::start().await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client(&server), "default");
    let from = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    maps.create(&PostParams::default(), &map("a", "1")).await.unwrap();
    let selected = WatchParams::default().labels("value=1");
    let mut watch = maps.watch(&selected, &from).await.unwrap().boxed();
    let mut next = async || in_time(watch.try_next()).await.unwrap();
    assert!(matches!(next().await, Some(WatchEvent::Added(map)) if map.name_any() == "a"));
    // An object that is not selected any more is gone to the watch.
    maps.patch("a", &PatchParams::default(), &Patch::Merge(json!({"metadata": {"labels": {"value": "2"}}})))
        .await
        .unwrap();
    assert!(matches!(next().await, Some(WatchEvent::Deleted(_))));
    server.bookmark();
    let Some(WatchEvent::Bookmark(mark)) = next().await else { panic!() };
    assert_eq!(mark.metadata.resource_version, server.revision().to_string());
    server.compact();
    assert!(matches!(next().await, Some(WatchEvent::Error(status)) if status.code == 410));
    assert!(next().await.is_none());

    let mut late = maps.watch(&WatchParams::default(), &from).await.unwrap().boxed();
    assert!(matches!(in_time(late.try_next()).await.unwrap(), Some(WatchEvent::Error(status)) if status.code == 410));
    let mut ended = maps.watch(&WatchParams::default(), &server.revision().to_string()).await.unwrap().boxed();
    server.end_watches();
    assert!(in_time(ended.try_next()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_list_can_be_streamed_by_a_watch() {
    let server = ApiServer::start().await.unwrap();
    server.put_yaml("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}");
    let maps: Api<ConfigMap> = Api::all(client(&server));
    let mut watch = maps.watch(&WatchParams::default().initial_events(), "0").await.unwrap().boxed();
    assert!(matches!(in_time(watch.try_next()).await.unwrap(), Some(WatchEvent::Added(_))));
    let Some(WatchEvent::Bookmark(end)) = in_time(watch.try_next()).await.unwrap() else { panic!() };
    assert_eq!(end.metadata.annotations.get("k8s.io/initial-events-end").map(String::as_str), Some("true"));
}

#[tokio::test]
async fn kubes_own_watcher_survives_cut_watches_and_410() {
    let server = ApiServer::start().await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client(&server), "default");
    server.put_yaml("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}");
    let mut events = watcher(maps, watcher::Config::default().any_semantic()).boxed();
    let mut known = BTreeMap::new();
    let mut step = async |known: &mut BTreeMap<String, ()>| match in_time(events.next()).await.unwrap() {
        Ok(watcher::Event::Init) => known.clear(),
        Ok(watcher::Event::InitApply(map) | watcher::Event::Apply(map)) => drop(known.insert(map.name_any(), ())),
        Ok(watcher::Event::Delete(map)) => drop(known.remove(&map.name_any())),
        Ok(watcher::Event::InitDone) | Err(_) => {}
    };
    let names = |known: &BTreeMap<String, ()>| known.keys().cloned().collect::<Vec<_>>().join(" ");
    while names(&known) != "a" {
        step(&mut known).await;
    }
    server.cut();
    server.put_yaml("{apiVersion: v1, kind: ConfigMap, metadata: {name: b}}");
    while names(&known) != "a b" {
        step(&mut known).await;
    }
    server.delete(&TableId::new("", "configmaps"), "default", "a").unwrap();
    server.compact();
    while names(&known) != "b" {
        step(&mut known).await;
    }
}

#[tokio::test]
async fn status_is_written_by_its_subresource_only_and_applied_by_manager() {
    let server = ApiServer::start().await.unwrap();
    server.put_yaml("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}");
    let policies: Api<DynamicObject> = Api::namespaced_with(client(&server), "shop", &cilium());
    let mut policy = DynamicObject::new("p", &cilium()).data(json!({"spec": {"a": 1}, "status": {"lost": true}}));
    policy.metadata.namespace = Some("shop".to_owned());
    let made = policies.create(&PostParams::default(), &policy).await.unwrap();
    assert_eq!((made.data.get("status"), made.metadata.generation), (None, Some(1)));

    let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let status = |kind: &str| {
        Patch::Apply(
            json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "status": {"conditions": [condition(kind)]}}),
        )
    };
    policies.patch_status("p", &PatchParams::apply("one"), &status("A")).await.unwrap();
    let both = policies.patch_status("p", &PatchParams::apply("two"), &status("B")).await.unwrap();
    assert_eq!(both.data["status"]["conditions"].as_array().unwrap().len(), 2);
    assert_eq!(both.metadata.generation, Some(1));
    let again = policies.patch_status("p", &PatchParams::apply("two"), &status("B")).await.unwrap();
    assert_eq!(again.resource_version(), both.resource_version());

    let spec = json!({"spec": {"a": 2}, "status": {"conditions": []}});
    let patched = policies.patch("p", &PatchParams::default(), &Patch::Merge(spec)).await.unwrap();
    assert_eq!(patched.metadata.generation, Some(2));
    assert_eq!(patched.data["status"]["conditions"].as_array().unwrap().len(), 2);
    let put = json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "q", "generation": 7}});
    assert_eq!(server.put(put).unwrap()["metadata"]["generation"], 7);
    let unconditional = policies.replace("p", &PostParams::default(), &policy).await.unwrap_err();
    assert_eq!(code(&unconditional).0, 422);
}

#[tokio::test]
async fn annotations_are_merged_if_the_uid_is_right() {
    let server = ApiServer::start().await.unwrap();
    let pod = server
        .put(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "status": {"phase": "Running"}}));
    let pod = pod.unwrap();
    let pods: Api<Pod> = Api::namespaced(client(&server), "default");
    let patch = |uid: &str| {
        Patch::Merge(json!({"metadata": {"uid": uid, "annotations": {"vpc.amazonaws.com/pod-ips": "10.0.0.1"}}}))
    };
    let wrong = pods.patch("p", &PatchParams::default(), &patch("another")).await.unwrap_err();
    assert_eq!(code(&wrong).0, 409);
    let right =
        pods.patch("p", &PatchParams::default(), &patch(pod["metadata"]["uid"].as_str().unwrap())).await.unwrap();
    assert_eq!(right.annotations()["vpc.amazonaws.com/pod-ips"], "10.0.0.1");
    assert_eq!(right.status.unwrap().phase.unwrap(), "Running");
    let strategic = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    pods.patch_status("p", &PatchParams::default(), &Patch::Strategic(strategic)).await.unwrap();
    let patched = server.requests().into_iter().rfind(|request| request.verb == "patch").unwrap();
    assert_eq!((patched.subresource.as_str(), patched.status), ("status", Some(200)));
}

#[tokio::test]
async fn leases_and_events_are_kept() {
    let server = ApiServer::start().await.unwrap();
    let leases: Api<Lease> = Api::namespaced(client(&server), "kube-system");
    let lease = Lease {
        metadata: serde_json::from_value(json!({"name": "l"})).unwrap(),
        spec: Some(LeaseSpec { holder_identity: Some("me".to_owned()), ..LeaseSpec::default() }),
    };
    let made = leases.create(&PostParams::default(), &lease).await.unwrap();
    let taken = leases.replace("l", &PostParams::default(), &Lease { metadata: made.metadata, ..lease }).await.unwrap();
    assert_eq!(taken.spec.unwrap().holder_identity.as_deref(), Some("me"));
    let events: Api<Event> = Api::namespaced(client(&server), "default");
    let event = json!({"metadata": {"generateName": "e"}, "reason": "R", "eventTime": "2026-01-01T00:00:00.000000Z"});
    let made = events.create(&PostParams::default(), &serde_json::from_value(event).unwrap()).await.unwrap();
    let series = json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"}});
    let patched = events.patch(&made.name_any(), &PatchParams::default(), &Patch::Merge(series)).await.unwrap();
    assert_eq!(patched.series.unwrap().count, 2);
}

#[tokio::test]
async fn kinds_come_and_go() {
    let server = ApiServer::start_bare().await.unwrap();
    let policies: Api<DynamicObject> = Api::all_with(client(&server), &cilium());
    assert_eq!(code(&policies.list(&ListParams::default()).await.unwrap_err()).0, 404);
    server.install(Kind::custom("cilium.io/v2", "CiliumNetworkPolicy", "ciliumnetworkpolicies", true, true));
    assert_eq!(policies.list(&ListParams::default()).await.unwrap().items.len(), 0);
    let found = Discovery::new(client(&server)).run().await.unwrap();
    let group = found.get("cilium.io").unwrap();
    assert!(group.recommended_resources().iter().any(|(resource, _)| resource.plural == "ciliumnetworkpolicies"));
    assert!(found.has_group(""));
    let definitions: Api<DynamicObject> = Api::all_with(
        client(&server),
        &ApiResource::from_gvk(&GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition")),
    );
    let metadata = definitions.list_metadata(&ListParams::default()).await.unwrap();
    assert_eq!(metadata.items[0].name_any(), "ciliumnetworkpolicies.cilium.io");
    server.uninstall(&TableId::new("cilium.io", "ciliumnetworkpolicies"));
    assert_eq!(code(&policies.list(&ListParams::default()).await.unwrap_err()).0, 404);
    assert_eq!(definitions.list_metadata(&ListParams::default()).await.unwrap().items.len(), 0);
    assert_eq!(client(&server).apiserver_version().await.unwrap().minor, "33");
}

#[tokio::test]
async fn a_namespace_takes_what_is_in_it_and_finalizers_hold() {
    let server = ApiServer::start().await.unwrap();
    server.put_yaml("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}");
    server.put_yaml("{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop}}");
    server.put_yaml("{apiVersion: v1, kind: ConfigMap, metadata: {name: held, finalizers: [x/y]}}");
    let namespaces: Api<Namespace> = Api::all(client(&server));
    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    assert!(server.objects(&TableId::new("", "pods")).is_empty());
    let maps: Api<ConfigMap> = Api::namespaced(client(&server), "default");
    maps.delete("held", &DeleteParams::default()).await.unwrap();
    assert!(maps.get("held").await.unwrap().metadata.deletion_timestamp.is_some());
    maps.patch("held", &PatchParams::default(), &Patch::Merge(json!({"metadata": {"finalizers": null}})))
        .await
        .unwrap();
    assert_eq!(maps.get_opt("held").await.unwrap(), None);
}

#[tokio::test]
async fn requests_go_wrong_on_demand() {
    let server = ApiServer::start().await.unwrap();
    let nodes: Api<Node> = Api::all(client(&server));
    let list = async || nodes.list(&ListParams::default()).await;
    server.fault(FaultRule::times(1, "list", "nodes", Fault::Status { code: 429, retry_after: Some(7) }));
    let slow = list().await.unwrap_err();
    assert_eq!(code(&slow), (429, "TooManyRequests".to_owned()));
    list().await.unwrap();

    for fault in [Fault::Drop, Fault::Truncate(20), Fault::Garbage("{\"items\": 7".to_owned())] {
        server.fault(FaultRule::always("list", "nodes", fault.clone()));
        assert!(list().await.is_err(), "{fault:?}");
        server.heal();
        list().await.unwrap();
    }
    server.fault(FaultRule::always("", "nodes", Fault::Slow(Duration::from_secs(3600))));
    assert!(tokio::time::timeout(Duration::from_millis(50), list()).await.is_err());
    server.heal();

    for outage in [Outage::Refuse, Outage::Hang] {
        server.outage(outage);
        let answer = tokio::time::timeout(Duration::from_millis(50), list()).await;
        assert!(!matches!(answer, Ok(Ok(_))), "{outage:?}");
        server.heal();
        // A connection that was taken while it hung is lost; the next one is not.
        server.cut();
        in_time(async { while list().await.is_err() {} }).await;
    }

    let table = TableId::new("", "nodes");
    server.put_raw(&table, "", "broken", json!(["not", "an", "object"])).unwrap();
    assert!(list().await.is_err());
    let mut watch = nodes.watch(&WatchParams::default(), &server.revision().to_string()).await.unwrap().boxed();
    server.watch_line(&table, "{\"type\":");
    server.put_yaml("{apiVersion: v1, kind: Node, metadata: {name: good}}");
    assert!(matches!(in_time(watch.try_next()).await.unwrap(), Some(WatchEvent::Added(_))));
}
