//! A source that runs, and what has been told by it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::{Client, Config};
use serde_json::{Value, json};
use sluice_policy_core::cluster::{Cluster as State, Event};
use sluice_policy_core::parse::Issue;
use sluice_policyd::cluster::kube::{Kube, Options, Timing};
use sluice_policyd::cluster::{Cluster as _, TOLD_LIMIT, Told};
use sluice_tests::apiserver::{ApiServer, TableId};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Pauses of a test: short, but for those that would hide what is tested.
pub(crate) fn timing() -> Timing {
    Timing {
        least: Duration::from_millis(5),
        most: Duration::from_millis(100),
        patience: Duration::from_secs(5),
        watch: Duration::from_secs(300),
        idle: Duration::from_secs(150),
        pulse: Duration::from_secs(150),
        answer: Duration::from_millis(200),
        quick: Duration::from_millis(100),
        discover: Duration::from_secs(300),
        gone_after: Duration::from_millis(100),
        status: Duration::from_millis(400),
        count: Duration::from_millis(50),
    }
}

/// A client that leaves attempts to the source.
pub(crate) fn client(server: &ApiServer) -> Client {
    let mut config = Config::new(server.url().parse().unwrap());
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

/// A source, and all that it has told.
pub(crate) struct Observer {
    pub(crate) source: Arc<Kube>,
    told: mpsc::Receiver<Told>,
    running: JoinHandle<()>,
    pub(crate) state: State,
    /// Faults by place.
    pub(crate) faults: BTreeMap<String, Vec<Issue>>,
    /// The generation of the latest report by place.
    pub(crate) generations: BTreeMap<String, Option<i64>>,
    /// JSON of policies and groups, as told last.
    pub(crate) json: Vec<String>,
    /// Why what is known may be out of date; none: it is not.
    pub(crate) stale: Option<String>,
    pub(crate) synced: u32,
    pub(crate) events: u32,
    /// Up to which revision each kind has been told.
    pub(crate) upto: BTreeMap<String, u64>,
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Observer {
    pub(crate) fn new(server: &ApiServer) -> Self {
        Self::on_node(server, "node-a", timing())
    }

    pub(crate) fn on_node(server: &ApiServer, node: &str, timing: Timing) -> Self {
        let options = Options { node: node.to_owned(), seed: 7, timing };
        let source = Arc::new(Kube::new(client(server), options));
        let (told, receiver) = mpsc::channel(TOLD_LIMIT);
        let running = tokio::spawn({
            let source = Arc::clone(&source);
            async move { source.run(told).await }
        });
        Self {
            source,
            told: receiver,
            running,
            state: State::default(),
            faults: BTreeMap::new(),
            generations: BTreeMap::new(),
            json: Vec::new(),
            stale: Some("it has just begun".to_owned()),
            synced: 0,
            events: 0,
            upto: BTreeMap::new(),
        }
    }

    /// Takes in what is told until something holds.
    pub(crate) async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !holds(self) {
            let told = timeout_at(deadline, self.told.recv()).await;
            let told = told.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}\n{}", self.shown()));
            self.take(told.expect("the source has ended"));
        }
    }

    pub(crate) async fn synced(&mut self) {
        self.until("synced", |seen| seen.stale.is_none()).await;
    }

    /// Takes in what has been told already.
    pub(crate) fn drain(&mut self) {
        while let Ok(told) = self.told.try_recv() {
            self.take(told);
        }
    }

    fn take(&mut self, told: Told) {
        match told {
            Told::Event { event, json } => {
                assert_eq!(
                    json.is_some(),
                    matches!(&event, Event::Upsert(object) if is_read_again(object)),
                    "{event:?}"
                );
                self.events += 1;
                self.json.extend(json.map(|json| json.to_string()));
                self.state.apply(event);
            }
            Told::Report(report) => {
                let place = report.place.to_string();
                self.generations.insert(place.clone(), report.generation);
                if report.issues.is_empty() {
                    self.faults.remove(&place);
                } else {
                    self.faults.insert(place, report.issues);
                }
            }
            Told::Synced => {
                self.stale = None;
                self.synced += 1;
            }
            Told::Stale { why } => self.stale = Some(why),
            Told::Upto { kind, revision } => {
                self.upto.insert(kind.to_string(), revision);
            }
        }
    }

    pub(crate) fn pods(&self) -> Vec<String> {
        self.state.pods.keys().map(ToString::to_string).collect()
    }

    pub(crate) fn policies(&self) -> Vec<String> {
        self.state.policies.keys().map(ToString::to_string).collect()
    }

    pub(crate) fn shown(&self) -> String {
        format!(
            "pods {:?}\npolicies {:?}\nfaults {:?}\nstale {:?}",
            self.pods(),
            self.policies(),
            self.faults,
            self.stale
        )
    }
}

const fn is_read_again(object: &sluice_policy_core::cluster::Object) -> bool {
    use sluice_policy_core::cluster::Object;
    matches!(object, Object::Policy(_) | Object::CidrGroup(_))
}

pub(crate) fn pods() -> TableId {
    TableId::new("", "pods")
}

pub(crate) fn pod(namespace: &str, name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": namespace, "labels": {"app": name},
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
        },
        "spec": {"nodeName": "node-a", "containers": [{"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 80}]}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    })
}

pub(crate) fn network_policy(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    })
}

pub(crate) fn cilium_policy(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"endpointSelector": {}, "ingress": [{"fromEndpoints": [{}]}]},
    })
}

/// Waits until something holds that no channel tells of.
pub(crate) async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
