//! What it tells of a cluster in which nothing fails.

use std::sync::Arc;

use serde_json::json;
use sluice_policy_core::cluster::PodKey;
use sluice_policyd::cluster::Cluster as _;
use sluice_tests::apiserver::{ApiServer, Kind, TableId};

use super::observer::{Observer, cilium_policy, client, eventually, network_policy, pod, pods};

const ALL_KINDS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: a}}
---
apiVersion: v1
kind: Node
metadata: {name: node-a}
status: {addresses: [{type: InternalIP, address: 10.0.0.9}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 172.20.0.1, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-x, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.0.0.1]}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: k}
spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}
---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: a}
spec: {priority: 1, subject: {namespaces: {}}}
---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: BaselineAdminNetworkPolicy
metadata: {name: default}
spec: {subject: {namespaces: {}}}
---
apiVersion: networking.k8s.aws/v1alpha1
kind: ClusterNetworkPolicy
metadata: {name: aws}
spec: {tier: Admin, priority: 1, subject: {namespaces: {}}}
---
apiVersion: networking.k8s.aws/v1alpha1
kind: ApplicationNetworkPolicy
metadata: {name: app, namespace: shop}
spec: {podSelector: {}, policyTypes: [Egress]}
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: ccnp}
spec: {endpointSelector: {}, ingress: [{}]}
---
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: g}
spec: {externalCIDRs: [192.0.2.0/24]}
";

#[tokio::test]
async fn every_kind_is_told_and_then_synced() {
    let server = ApiServer::start().await.unwrap();
    server.put_yaml(ALL_KINDS);
    server.put(pod("shop", "web", "10.0.0.1")).unwrap();
    server.put(network_policy("shop", "np")).unwrap();
    server.put(cilium_policy("shop", "cnp")).unwrap();
    let mut seen = Observer::new(&server);
    seen.synced().await;
    assert_eq!(seen.faults, std::collections::BTreeMap::new());
    assert_eq!(seen.policies().len(), 8, "{}", seen.shown());
    let state = &seen.state;
    assert_eq!((state.nodes.len(), state.services.len(), state.slices.len(), state.cidr_groups.len()), (1, 1, 1, 1));
    assert_eq!(state.namespaces["shop"].labels.get("team"), Some("a"));
    let web = state.pods.get(&PodKey { namespace: "shop".into(), name: "web".into() }).unwrap();
    assert_eq!((web.addresses.len(), web.template.ports.len(), web.uid.is_empty()), (1, 1, false));
    assert!(
        seen.json.iter().all(|json| !json.contains("managedFields") && json.contains("apiVersion")),
        "{:?}",
        seen.json
    );
    assert_eq!(seen.json.len(), 9);
}

#[tokio::test]
async fn changes_follow() {
    let server = ApiServer::start().await.unwrap();
    let mut seen = Observer::new(&server);
    seen.synced().await;
    server.put(pod("default", "a", "10.0.0.1")).unwrap();
    server.put(cilium_policy("default", "p")).unwrap();
    seen.until("both", |seen| seen.pods() == ["default/a"] && seen.policies().len() == 1).await;
    server.put(pod("default", "a", "10.0.0.2")).unwrap();
    seen.until("the address", |seen| {
        seen.state.pods.values().any(|pod| pod.addresses.contains(&"10.0.0.2".parse().unwrap()))
    })
    .await;
    server.delete(&pods(), "default", "a").unwrap();
    server.delete(&TableId::new("cilium.io", "ciliumnetworkpolicies"), "default", "p").unwrap();
    seen.until("none", |seen| seen.pods().is_empty() && seen.policies().is_empty()).await;
    assert_eq!((seen.synced, server.count("list", "pods")), (1, 1));
}

#[tokio::test]
async fn large_lists_come_in_pages() {
    let server = ApiServer::start().await.unwrap();
    for number in 0..1_201 {
        server.put(network_policy("default", &format!("p{number}"))).unwrap();
    }
    let mut seen = Observer::new(&server);
    seen.synced().await;
    assert_eq!((seen.policies().len(), server.count("list", "networkpolicies")), (1_201, 3));
}

#[tokio::test]
async fn a_kind_that_is_installed_later_is_noticed_and_one_that_goes_takes_its_objects_along() {
    let server = ApiServer::start_bare().await.unwrap();
    let mut seen = Observer::new(&server);
    seen.synced().await;
    assert_eq!(server.count("list", "ciliumnetworkpolicies"), 0);
    eventually("the definitions are watched", async || server.count("watch", "customresourcedefinitions") > 0).await;
    server.install(Kind::custom("cilium.io/v2", "CiliumNetworkPolicy", "ciliumnetworkpolicies", true, true));
    server.install(Kind::custom("cilium.io/v2alpha1", "CiliumCIDRGroup", "ciliumcidrgroups", false, false));
    server.put(cilium_policy("default", "p")).unwrap();
    server.put_yaml("{apiVersion: cilium.io/v2alpha1, kind: CiliumCIDRGroup, metadata: {name: g}, spec: {externalCIDRs: [192.0.2.0/24]}}");
    seen.until("the policy", |seen| seen.policies().len() == 1 && seen.state.cidr_groups.len() == 1).await;
    server.uninstall(&TableId::new("cilium.io", "ciliumnetworkpolicies"));
    seen.until("no policy", |seen| seen.policies().is_empty()).await;
    server.put(pod("default", "a", "10.0.0.1")).unwrap();
    seen.until("the pod", |seen| seen.pods().len() == 1).await;
    assert_eq!((seen.stale.clone(), seen.synced), (None, 1));
}

#[tokio::test]
async fn a_kind_that_is_missing_for_a_moment_loses_nothing() {
    use sluice_tests::apiserver::{Fault, FaultRule};
    let server = ApiServer::start().await.unwrap();
    server.put(cilium_policy("default", "p")).unwrap();
    let mut seen = Observer::new(&server);
    seen.synced().await;
    // As an API server that has just begun: the kind's path is not found, and its group is not among the groups.
    server.fault(FaultRule::times(1, "watch", "ciliumnetworkpolicies", Fault::Status { code: 404, retry_after: None }));
    server.fault(FaultRule::times(1, "list", "ciliumnetworkpolicies", Fault::Status { code: 404, retry_after: None }));
    let none = json!({"kind": "APIGroupList", "groups": []}).to_string();
    server.fault(FaultRule::times(1, "discovery", "/apis", Fault::Garbage(none)));
    server.cut();
    eventually("it was asked again", async || server.count("discovery", "/apis") > 2).await;
    server.put(cilium_policy("default", "q")).unwrap();
    seen.until("both", |seen| seen.policies().len() == 2).await;
    assert!(seen.events >= 3, "nothing was told to be gone: {}", seen.shown());
}

#[tokio::test]
async fn a_pod_is_looked_up_before_its_watch_has_it() {
    let server = ApiServer::start().await.unwrap();
    let mut seen = Observer::new(&server);
    seen.synced().await;
    server.freeze(true);
    server.put(pod("default", "a", "10.0.0.1")).unwrap();
    let key = |name: &str| PodKey { namespace: "default".into(), name: name.into() };
    let looking = tokio::spawn({
        let (source, key) = (Arc::clone(&seen.source), key("a"));
        async move { source.look_up(&key).await }
    });
    server.freeze(false);
    assert!(looking.await.unwrap().unwrap());
    seen.until("the pod", |seen| seen.pods() == ["default/a"]).await;
    let events = seen.events;
    assert!(seen.source.look_up(&key("a")).await.unwrap());
    assert!(!seen.source.look_up(&key("b")).await.unwrap());
    seen.drain();
    assert_eq!(seen.events, events);
    server.delete(&pods(), "default", "a").unwrap();
    seen.until("no pod", |seen| seen.pods().is_empty()).await;
}

#[tokio::test]
async fn it_ends_with_its_listener_and_can_begin_anew() {
    let server = ApiServer::start().await.unwrap();
    server.put(pod("default", "a", "10.0.0.1")).unwrap();
    let options =
        sluice_policyd::cluster::kube::Options { node: "n".to_owned(), seed: 1, timing: super::observer::timing() };
    let source = sluice_policyd::cluster::kube::Kube::new(client(&server), options);
    for _ in 0..2 {
        let (told, mut receiver) = tokio::sync::mpsc::channel(16);
        let listen = async {
            while let Some(told) = receiver.recv().await {
                if told == sluice_policyd::cluster::Told::Synced {
                    break;
                }
            }
            receiver.close();
            while receiver.recv().await.is_some() {}
        };
        let both = async { tokio::join!(source.run(told), listen) };
        tokio::time::timeout(super::observer::DEADLINE, both).await.unwrap();
    }
    eventually("no watch is left", async || server.watches() == 0).await;
}
