//! ipamd's Kubernetes source against the fake API server: what it tells, what it writes, and that nothing of what goes wrong
//! there is believed.

use std::collections::BTreeSet;
use std::time::Duration;

use kube::{Client, Config};
use serde_json::{Value, json};
use sluice_contract::id::PodRef;
use sluice_ipamd_daemon::cluster::objects::Naming;
use sluice_ipamd_daemon::cluster::{About, Cluster as _, Condition, Notice, Report, TOLD_LIMIT, Told, Weight};
use sluice_ipamd_kube::{Kubernetes, Settings};
use sluice_tests::apiserver::{ApiServer, Fault, FaultRule, Kind, Outage, TableId, builtin};
use sluice_tests::bed::{Bed, LIMIT, add_pods, scene};
use sluice_tests::privileged::privileged;
use sluice_vpcsim::deployment::Deployment;
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
    let server = ApiServer::start_bare().await.unwrap();
    server.install(eni_configs());
    server.put(node("n1", &json!({}))).unwrap();
    let mut seen = Seen::on(&server, "n1");
    seen.until("elected", |seen| seen.elected && seen.subnet.is_some() && seen.overrides.is_some()).await;
    let notice = Notice { about: About::Node, weight: Weight::Normal, reason: "Test", message: "m".to_owned() };
    seen.report(Report::Notice(notice.clone()));
    seen.report(Report::Notice(notice));
    seen.report(Report::Condition(Condition { holds: true, reason: "Available", message: String::new() }));
    eventually("everything was asked for", async || {
        server.count("patch", "events") > 0
            && server.count("patch", "nodes") > 0
            && server.count("update", "leases") > 0
    })
    .await;
    let groups =
        [("events", "events.k8s.io"), ("leases", "coordination.k8s.io"), ("eniconfigs", "crd.k8s.amazonaws.com")];
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

async fn server_on(node: &Deployment) -> ApiServer {
    let bound = node.node().run(|| {
        let listener = std::net::TcpListener::bind(API)?;
        listener.set_nonblocking(true)?;
        Ok::<_, std::io::Error>(listener)
    });
    let listener = TcpListener::from_std(bound.await.unwrap().unwrap()).unwrap();
    ApiServer::on(listener, builtin()).unwrap()
}

/// DESIGN 11: without the API server everything is served; with it, pods have their addresses before they ask.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_node_pods_are_served_without_the_api_server_and_foreseen_with_it() {
    if !privileged() {
        return;
    }
    let dir = std::env::temp_dir().join(format!("sluice-ipamd-kube-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{API}")}}],
        "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}]});
    std::fs::write(dir.join("kubeconfig"), config.to_string()).unwrap();
    let path = dir.join("kubeconfig").display().to_string();
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
    std::fs::remove_dir_all(&dir).unwrap();
}
