//! A source on a node, what it has told, and the objects that tests put there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::Ipv4Net;
use kube::{Client, Config};
use serde_json::{Value, json};
use sluice_contract::id::PodRef;
use sluice_ipamd_core::shared::Group;
use sluice_ipamd_daemon::cluster::objects::Naming;
use sluice_ipamd_daemon::cluster::{Claims, Cluster as _, Feature, Report, TOLD_LIMIT, Told};
use sluice_ipamd_kube::{Kubernetes, Settings};
use sluice_tests::apiserver::{ApiServer, Kind, TableId};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::kube_source::observer::timing;

const DEADLINE: Duration = Duration::from_secs(20);

/// Variables with their values, or what is wrong with them.
pub(super) type Variables = Result<Vec<(String, String)>, Vec<String>>;

/// A source on a node, and what is true by what it has told.
pub(super) struct Seen {
    pub(super) told: mpsc::Receiver<Told>,
    reports: mpsc::Sender<Report>,
    running: JoinHandle<()>,
    pub(super) bound: Option<BTreeSet<PodRef>>,
    pub(super) schedulable: Option<bool>,
    pub(super) max_pods: Option<u32>,
    /// The subnet of the ENIConfig.
    pub(super) subnet: Option<Option<String>>,
    pub(super) overrides: Option<Variables>,
    pub(super) elected: bool,
    pub(super) groups: BTreeMap<String, Group>,
    pub(super) routes: Option<Vec<Ipv4Net>>,
    pub(super) claims: Claims,
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Seen {
    pub(super) fn on(server: &ApiServer, node: &str) -> Self {
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
            max_pods: None,
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
            Told::MaxPods(pods) => self.max_pods = Some(pods),
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

    pub(super) async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !holds(self) {
            let told = timeout_at(deadline, self.told.recv()).await;
            let told = told.unwrap_or_else(|_| {
                panic!("{what}: {:?} {:?} {:?} {:?}", self.pods(), self.schedulable, self.subnet, self.overrides)
            });
            self.take(told.expect("the source has ended"));
        }
    }

    pub(super) fn pods(&self) -> Vec<&str> {
        self.bound.iter().flatten().map(|pod| pod.name.as_str()).collect()
    }

    pub(super) fn report(&self, report: Report) {
        self.reports.try_send(report).unwrap();
    }
}

pub(super) fn pods() -> TableId {
    TableId::new("", "pods")
}

/// A pod that the server has, as its runtime names it.
pub(super) fn named(server: &ApiServer, name: &str) -> PodRef {
    let object = server.get(&pods(), "default", name).unwrap();
    let uid = object["metadata"]["uid"].as_str().map(str::to_owned);
    PodRef { namespace: "default".to_owned(), name: name.to_owned(), uid }
}

pub(super) fn eni_configs() -> Kind {
    Kind::custom("crd.k8s.amazonaws.com/v1alpha1", "ENIConfig", "eniconfigs", false, false)
}

pub(super) fn cni_nodes() -> Kind {
    Kind::custom("vpcresources.k8s.aws/v1alpha1", "CNINode", "cninodes", false, false)
}

pub(super) fn cni_node(name: &str, features: &Value) -> Value {
    json!({
        "apiVersion": "vpcresources.k8s.aws/v1alpha1", "kind": "CNINode", "metadata": {"name": name},
        "spec": {"features": features, "tags": {"a": "b"}},
    })
}

pub(super) fn trunk_wanted() -> Report {
    Report::Features(vec![Feature { name: "SecurityGroupsForPods".to_owned(), value: String::new() }])
}

pub(super) fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"big": "x".repeat(2000)}},
        "spec": {"nodeName": node, "containers": []}, "status": {"phase": "Pending"},
    })
}

pub(super) fn node(name: &str, rest: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"zone": "a"}}, "spec": rest})
}

pub(super) fn eni_config(name: &str, subnet: &str) -> Value {
    json!({
        "apiVersion": "crd.k8s.amazonaws.com/v1alpha1", "kind": "ENIConfig", "metadata": {"name": name},
        "spec": {"subnet": subnet, "securityGroups": ["sg-00000001"]},
    })
}

pub(super) fn map(data: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "sluice-ipamd", "namespace": "kube-system"}, "data": data,
    })
}
