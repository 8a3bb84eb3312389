//! ipamd's Kubernetes source against the fake API server: what it tells, what it writes, and that nothing of what goes wrong
//! there is believed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::Ipv4Net;
use kube::{Client, Config};
use serde_json::{Value, json};
use sluice_contract::id::PodRef;
use sluice_ipamd_core::shared::Group;
use sluice_ipamd_daemon::cluster::objects::Naming;
use sluice_ipamd_daemon::cluster::{
    About, Claims, Cluster as _, Condition, Feature, Notice, Report, Shared, TOLD_LIMIT, Told, Weight,
};
use sluice_ipamd_kube::{Kubernetes, Settings};
use sluice_tests::apiserver::{ApiServer, Fault, FaultRule, Kind, Outage, TableId, builtin, policy_kinds};
use sluice_tests::bed::{Bed, LIMIT, add_pods, ask, scene};
use sluice_tests::directory::Directory;
use sluice_tests::privileged::privileged;
use sluice_vpcsim::deployment::Deployment;
use sluice_vpcsim::probe::{self, ECHO_PORT};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::kube_source::observer::{eventually, timing};

const DEADLINE: Duration = Duration::from_secs(20);

/// Variables with their values, or what is wrong with them.
type Variables = Result<Vec<(String, String)>, Vec<String>>;

/// A source on a node, and what is true by what it has told.
struct Seen {
    told: mpsc::Receiver<Told>,
    reports: mpsc::Sender<Report>,
    running: JoinHandle<()>,
    bound: Option<BTreeSet<PodRef>>,
    schedulable: Option<bool>,
    /// The subnet of the ENIConfig.
    subnet: Option<Option<String>>,
    overrides: Option<Variables>,
    elected: bool,
    groups: BTreeMap<String, Group>,
    routes: Option<Vec<Ipv4Net>>,
    claims: Claims,
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Seen {
    fn on(server: &ApiServer, node: &str) -> Self {
        let mut config = Config::new(server.url().parse().unwrap());
        config.default_retry = false;
        let naming = Naming { annotation: "annotation".to_owned(), label: "zone".to_owned() };
        let mut settings = Settings::new(node.to_owned(), "kube-system".to_owned(), Some(naming), 7);
        settings.timing = timing();
        settings.timing.patience = Duration::from_millis(500);
        settings.routes = true;
        settings.claims = true;
        settings.condition_stands = Duration::from_millis(500);
        settings.lease = (Duration::from_secs(3), Duration::from_millis(300));
        let source = Kubernetes::new(Client::try_from(config).unwrap(), settings);
        let (told, receiver) = mpsc::channel(TOLD_LIMIT);
        let (reports, reported) = mpsc::channel(64);
        let running = tokio::spawn(async move { source.watch(told, reported).await });
        Self {
            told: receiver,
            reports,
            running,
            bound: None,
            schedulable: None,
            subnet: None,
            overrides: None,
            elected: false,
            groups: BTreeMap::new(),
            routes: None,
            claims: Claims::new(),
        }
    }

    fn take(&mut self, told: Told) {
        match told {
            Told::PodsBound(bound) => self.bound = Some(bound),
            Told::Schedulable(schedulable) => self.schedulable = Some(schedulable),
            Told::EniConfig(config) => self.subnet = Some(config.map(|config| config.subnet.to_string())),
            Told::Overrides(overrides) => {
                self.overrides = Some(overrides.map(|overrides| overrides.0.into_iter().collect()));
            }
            Told::Elected(elected) => self.elected = elected,
            Told::Groups(groups) => self.groups = groups,
            Told::Routes(routes) => self.routes = Some(routes),
            Told::Claims(claims) => self.claims = claims,
        }
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !holds(self) {
            let told = timeout_at(deadline, self.told.recv()).await;
            let told = told.unwrap_or_else(|_| {
                panic!("{what}: {:?} {:?} {:?} {:?}", self.pods(), self.schedulable, self.subnet, self.overrides)
            });
            self.take(told.expect("the source has ended"));
        }
    }

    fn pods(&self) -> Vec<&str> {
        self.bound.iter().flatten().map(|pod| pod.name.as_str()).collect()
    }

    fn report(&self, report: Report) {
        self.reports.try_send(report).unwrap();
    }
}

fn pods() -> TableId {
    TableId::new("", "pods")
}

fn eni_configs() -> Kind {
    Kind::custom("crd.k8s.amazonaws.com/v1alpha1", "ENIConfig", "eniconfigs", false, false)
}

fn cni_nodes() -> Kind {
    Kind::custom("vpcresources.k8s.aws/v1alpha1", "CNINode", "cninodes", false, false)
}

fn cni_node(name: &str, features: &Value) -> Value {
    json!({
        "apiVersion": "vpcresources.k8s.aws/v1alpha1", "kind": "CNINode", "metadata": {"name": name},
        "spec": {"features": features, "tags": {"a": "b"}},
    })
}

fn trunk_wanted() -> Report {
    Report::Features(vec![Feature { name: "SecurityGroupsForPods".to_owned(), value: String::new() }])
}

fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"big": "x".repeat(2000)}},
        "spec": {"nodeName": node, "containers": []}, "status": {"phase": "Pending"},
    })
}

fn node(name: &str, rest: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"zone": "a"}}, "spec": rest})
}

fn eni_config(name: &str, subnet: &str) -> Value {
    json!({
        "apiVersion": "crd.k8s.amazonaws.com/v1alpha1", "kind": "ENIConfig", "metadata": {"name": name},
        "spec": {"subnet": subnet, "securityGroups": ["sg-00000001"]},
    })
}

fn map(data: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "sluice-ipamd", "namespace": "kube-system"}, "data": data,
    })
}

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
    server.put(node("n1", &json!({"unschedulable": true}))).unwrap();
    server.put(eni_config("a", "subnet-00000002")).unwrap();
    server.put(map(&json!({"all": "{envs: }"}))).unwrap();
    seen.until("what changed", |seen| {
        seen.pods() == ["c"]
            && seen.schedulable == Some(false)
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

fn cidr_groups() -> TableId {
    TableId::new("cilium.io", "ciliumcidrgroups")
}

/// A server with the kinds of policies.
async fn server_of_policies() -> ApiServer {
    let server = ApiServer::start_bare().await.unwrap();
    policy_kinds().into_iter().for_each(|kind| server.install(kind));
    server
}

fn policy(name: &str, security_group: &str) -> Value {
    json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"endpointSelector": {}, "egress": [{"toGroups": [{"aws": {"securityGroupsNames": [security_group]}}]}]},
    })
}

/// Each CiliumCIDRGroup with its CIDRs.
fn written(server: &ApiServer) -> BTreeMap<String, Vec<String>> {
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

/// What docs/ipamd-kubernetes.md says that it may do is what it asks for, and nothing else.
#[tokio::test]
async fn it_asks_for_what_the_documentation_says() {
    let text = include_str!("../../../docs/ipamd-kubernetes.md");
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
    eventually("everything was asked for", async || {
        server.count("patch", "events") > 0
            && server.count("patch", "cninodes") > 0
            && server.count("patch", "nodes") > 0
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

/// Where the API server of a node is, in its own namespace.
const API: &str = "127.0.0.1:6443";

/// Makes a directory with a configuration that names [`API`]; its path.
fn kubeconfig(directory: &Directory) -> String {
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{API}")}}],
        "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}]});
    directory.write("kubeconfig", &config.to_string()).unwrap();
    directory.path().join("kubeconfig").display().to_string()
}

async fn server_on(node: &Deployment) -> ApiServer {
    let bound = node.node().run(|| {
        let listener = std::net::TcpListener::bind(API)?;
        listener.set_nonblocking(true)?;
        Ok::<_, std::io::Error>(listener)
    });
    let listener = TcpListener::from_std(bound.await.unwrap().unwrap()).unwrap();
    ApiServer::on(listener, builtin()).unwrap()
}

/// One node asks EC2 for all, and each has what came of it: security groups for policies, and peered VPCs without translation.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_learns_of_ec2_all_nodes_have() {
    if !privileged() {
        return;
    }
    let directory = Directory::new("shared").unwrap();
    let path = kubeconfig(&directory);
    let settings = [("KUBECONFIG", path.as_str()), ("SLUICE_EXCLUDE_SNAT_ROUTES", "true")];
    let peered = scene(0.1)
        .replace("routes: {0.0.0.0/0: internet-gateway}", "routes: {0.0.0.0/0: internet-gateway, 10.9.0.0/16: peering/pair}")
        .replace("  node-b: {type: m5.large, subnet: main/nodes, public_address: true}\n", "")
        .replace(
            "instances:\n",
            "  shared:\n    cidrs: [10.9.0.0/16]\n    subnets: {only: {cidr: 10.9.1.0/24, routes: {10.0.0.0/16: peering/pair}}}\n\
             peerings: {pair: [main, shared]}\ninstances:\n  peer: {type: t3.micro, subnet: shared/only, tags: {role: db}}\n",
        );
    let bed = Bed::up_on(&peered, |name| name != "peer", &settings).await.unwrap();
    let node = bed.node("node-a").unwrap();
    let peer = bed.world.instance("peer").unwrap();
    let peer = bed.world.look(|model, _| model.state().attached(peer)[0].primary);
    let to = SocketAddr::from((peer, ECHO_PORT));
    bed.world.node("peer").unwrap().run_async(move || probe::serve_in_background(to)).await.unwrap().unwrap();
    let pod = add_pods(node, "default", "p", 1).await.unwrap().remove(0);
    let (own, _) = bed.addresses_of("node-a").unwrap();
    assert_eq!(ask(node, &pod, peer).await.unwrap(), own, "nothing is known of the peered VPC yet");

    let server = server_on(node).await;
    policy_kinds().into_iter().for_each(|kind| server.install(kind));
    server.put(self::node("node-a", &json!({}))).unwrap();
    let mut named = policy("db", "unused");
    named["spec"]["egress"][0]["toGroups"][0] = json!({"aws": {"labels": {"role": "db"}}});
    server.put(named).unwrap();
    // It asks seldom whether a server that was away has the Lease: a start asks at once.
    node.kill_ipamd().await;
    node.start_ipamd().await.unwrap();
    eventually("the database's address", async || written(&server).into_values().eq([vec![format!("{peer}/32")]]))
        .await;
    eventually("the pod keeps its address into the peered VPC", async || {
        ask(node, &pod, peer).await.unwrap() == pod.address
    })
    .await;
    // A restart without the API server knows it too.
    drop(server);
    node.kill_ipamd().await;
    node.start_ipamd().await.unwrap();
    node.ready(LIMIT).await.unwrap();
    assert_eq!(ask(node, &pod, peer).await.unwrap(), pod.address);
}

/// DESIGN 11: without the API server everything is served; with it, pods have their addresses before they ask.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_node_pods_are_served_without_the_api_server_and_foreseen_with_it() {
    if !privileged() {
        return;
    }
    let directory = Directory::new("ipamd-kube").unwrap();
    let path = kubeconfig(&directory);
    let settings = [("KUBECONFIG", path.as_str()), ("WARM_IP_TARGET", "1"), ("MINIMUM_IP_TARGET", "1")];
    let bed = Bed::up(&scene(0.1), &settings).await.unwrap();
    let ipamd = bed.node("node-a").unwrap();
    // There is no API server yet.
    add_pods(ipamd, "default", "early", 2).await.unwrap();
    let begun = Instant::now();
    ipamd.kill_ipamd().await;
    ipamd.start_ipamd().await.unwrap();
    ipamd.add("default", "after-restart").await.unwrap();
    println!("killed, started, and a pod added after {:?}, without an API server", begun.elapsed());

    let server = server_on(ipamd).await;
    server.put(node("node-a", &json!({}))).unwrap();
    for number in 0..10 {
        server.put(pod(&format!("p{number}"), "node-a")).unwrap();
    }
    let free = |view: &Value| view["pool"]["free"].as_u64().unwrap_or_default();
    ipamd.pool_until("addresses for pods that are bound", LIMIT, |view| free(view) >= 10).await.unwrap();
    // The cluster's settings, while it runs.
    server.put(map(&json!({"all": "{env: {WARM_IP_TARGET: 4}}"}))).unwrap();
    for number in 0..10 {
        server.delete(&pods(), "default", &format!("p{number}")).unwrap();
    }
    eventually("the Event of the new settings", async || {
        let events = server.objects(&TableId::new("events.k8s.io", "events"));
        events.iter().any(|event| event["reason"] == "SettingsChanged")
    })
    .await;
    eventually("the condition", async || {
        let node = server.get(&TableId::new("", "nodes"), "", "node-a").unwrap();
        node["status"]["conditions"][0]["status"] == "True"
    })
    .await;
    // It goes away: everything is served on.
    drop(server);
    let added = ipamd.add("default", "last").await.unwrap();
    ipamd.delete(&added.sandbox).await.unwrap();
}
