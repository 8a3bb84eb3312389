//! The Kubernetes API as the cluster.
//!
//! ```text
//! sluice-cluster: the lists and watches of all kinds ──> known: what was told, and so what there is to tell ──> Told
//! publish, status, sluice-cluster's Events: what goes back
//! ```
//!
//! Objects are read as JSON by policy-core, as those of files are: one that is malformed is reported, and the rest goes on.
//! Of an object only its name and revision stay here.

mod kinds;
mod known;
mod metrics;
mod publish;
mod status;

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use ::kube::Client;
use sluice_cluster::{Api, CallError, Events, Outgoing, Reporter, Scope, Session, Tell, Watched, connect};
pub use sluice_cluster::{ConnectError, Options, Timing};
use sluice_daemon::metrics::Named;
use sluice_policy_core::cluster::{ObjectId, PodKey, Uid};
use tokio::sync::{Mutex, mpsc};

use self::kinds::{KINDS, Kind, of_policy};
use self::known::Known;
pub use self::metrics::Metrics;
use self::status::Statuses;
use super::{Cluster, ClusterError, Notice, PolicyStatus, Told};

/// In whose name Events are made.
const REPORTER: Reporter = Reporter { controller: "sluice.dev/policyd", action: "EnforcePolicy" };

/// The source.
#[derive(Debug)]
pub struct Kube {
    api: Api,
    options: Options,
    metrics: Metrics,
    writes: Arc<Writes>,
    /// What the latest [`Cluster::run`] works with.
    run: RwLock<Option<Arc<Run>>>,
}

/// What waits to go back to the API: it outlives a run.
#[derive(Debug)]
struct Writes {
    statuses: Statuses,
    events: Events,
}

/// What the tasks of a run share.
#[derive(Debug)]
struct Run {
    session: Arc<Session<Told>>,
    metrics: Metrics,
    writes: Arc<Writes>,
    /// In the order of [`KINDS`].
    known: Vec<Arc<Mutex<Known>>>,
}

impl Kube {
    /// The API server that KUBECONFIG or the pod's service account names, at the URL `endpoint` if there is one
    /// (`CLUSTER_ENDPOINT`). Nothing is asked of it yet.
    ///
    /// # Errors
    /// There is none, or its configuration cannot be used.
    pub async fn connect(options: Options, endpoint: Option<&str>) -> Result<Self, ConnectError> {
        Ok(Self::new(connect(endpoint).await?, options))
    }

    /// The API server of a client, which should not retry by itself.
    #[must_use]
    pub fn new(client: Client, options: Options) -> Self {
        Self {
            api: Api { client, patience: options.timing.patience },
            options,
            metrics: Metrics::default(),
            writes: Arc::new(Writes { statuses: Statuses::default(), events: Events::new(REPORTER) }),
            run: RwLock::new(None),
        }
    }

    /// What it counts.
    #[must_use]
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn current(&self, action: &str) -> Result<Arc<Run>, ClusterError> {
        let run = self.run.read().unwrap_or_else(PoisonError::into_inner);
        run.clone().ok_or_else(|| failed(CallError::Odd("the source does not run"), action.to_owned()))
    }
}

impl Run {
    fn known(&self, kind: &Kind) -> Option<&Mutex<Known>> {
        self.known.get(number_of(kind)?).map(|known| &**known)
    }

    /// The version of a kind that is read now.
    fn version_of(&self, kind: &Kind) -> Option<&'static str> {
        self.session.version_of(number_of(kind)?)
    }
}

/// The place of a kind in [`KINDS`].
fn number_of(kind: &Kind) -> Option<usize> {
    KINDS.iter().position(|one| std::ptr::eq(one, kind))
}

/// A failure as the seam has it.
fn failed(error: CallError, action: String) -> ClusterError {
    match error.code() {
        Some(401 | 403) => ClusterError::Denied { action, source: error.into() },
        _ => ClusterError::Unavailable { action, source: error.into() },
    }
}

impl Tell for Told {
    fn synced() -> Self {
        Self::Synced
    }

    fn stale(why: String) -> Self {
        Self::Stale { why }
    }

    fn upto(kind: &Arc<str>, revision: u64) -> Option<Self> {
        Some(Self::Upto { kind: Arc::clone(kind), revision })
    }

    fn is_object(&self) -> bool {
        matches!(self, Self::Event { .. })
    }
}

impl Cluster for Kube {
    async fn run(&self, told: mpsc::Sender<Told>) {
        let node: Arc<str> = self.options.node.as_str().into();
        let kinds = KINDS.iter().map(|kind| Watched { kind: &kind.api, scope: Scope::default() }).collect();
        let metrics = self.metrics.api.clone();
        let session = Session::new(self.api.clone(), self.options.clone(), metrics, kinds, told.clone());
        let run = Arc::new(Run {
            session: Arc::new(session),
            metrics: self.metrics.clone(),
            writes: Arc::clone(&self.writes),
            known: KINDS.iter().map(|kind| Arc::new(Mutex::new(Known::new(kind, Arc::clone(&node))))).collect(),
        });
        *self.run.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&run));
        let mut tasks = run.session.start(&run.known).await;
        tasks.spawn(Arc::clone(&run.session).watch_definitions());
        tasks.spawn(status::run(Arc::clone(&run)));
        tasks.spawn(async move {
            let session = &run.session;
            run.writes.events.send(session.api(), session.options(), session.metrics()).await;
        });
        told.closed().await;
        tasks.shutdown().await;
        *self.run.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn look_up(&self, pod: &PodKey) -> Result<bool, ClusterError> {
        let action = format!("looking for pod {pod}");
        let run = self.current(&action)?;
        run.look_up(pod).await.map_err(|error| failed(error, action))
    }

    async fn publish_addresses(&self, pod: &PodKey, uid: &Uid, addresses: &[IpAddr]) -> Result<(), ClusterError> {
        let action = format!("publishing the addresses of pod {pod}");
        let run = self.current(&action)?;
        run.publish(pod, uid, addresses).await.map_err(|error| failed(error, action))
    }

    /// It is put to be written, in its time.
    async fn report(&self, status: &PolicyStatus) -> Result<(), ClusterError> {
        let action = format!("reporting on {}", status.policy);
        let run = self.current(&action)?;
        if self.writes.statuses.put(&run, status).await {
            return Ok(());
        }
        self.metrics.status_dropped.inc();
        Err(failed(CallError::Odd("too many policies wait for their status"), action))
    }

    fn register(&self, registry: &mut Named) {
        self.metrics.register(registry);
    }

    /// It is put to be sent, if there is room: what is too much is counted, and no error.
    async fn emit(&self, notice: &Notice) -> Result<(), ClusterError> {
        let event = match &notice.about {
            Some(id) => self.outgoing(id, notice).await,
            // The kubelet's own Events name the node as their uid too.
            None => Outgoing {
                version: "v1".to_owned(),
                kind: "Node",
                namespace: String::new(),
                object: self.options.node.clone(),
                uid: self.options.node.clone(),
                weight: notice.weight,
                reason: notice.reason,
                note: notice.message.clone(),
                name: None,
            },
        };
        self.writes.events.put(event, &self.metrics.api);
        Ok(())
    }
}

impl Kube {
    /// An Event about an object, with the uid by which it is found, where that is known.
    async fn outgoing(&self, id: &ObjectId, notice: &Notice) -> Outgoing {
        let run = self.current("").ok();
        let (kind, namespace, name) = match id {
            ObjectId::Policy(policy) => {
                let namespace = policy.namespace.as_deref().unwrap_or_default();
                (of_policy(policy.kind), namespace, &*policy.name)
            }
            ObjectId::Pod(key) => (kind("Pod"), &*key.namespace, &*key.name),
            ObjectId::Service(key) => (kind("Service"), &*key.namespace, &*key.name),
            ObjectId::EndpointSlice(key) => (kind("EndpointSlice"), &*key.namespace, &*key.name),
            ObjectId::Namespace(name) => (kind("Namespace"), "", &**name),
            ObjectId::Node(name) => (kind("Node"), "", &**name),
            ObjectId::CidrGroup(name) => (kind("CiliumCIDRGroup"), "", &**name),
        };
        let mut uid = notice.uid.as_ref().map(ToString::to_string).unwrap_or_default();
        let known = run.as_ref().zip(kind).and_then(|(run, kind)| run.known(kind));
        if let Some(known) = known {
            let known = known.lock().await;
            match id {
                // A static pod has another uid on its node than in the API.
                ObjectId::Pod(key) => {
                    let local = known.local(key).filter(|local| Some(&local.uid) == notice.uid.as_ref());
                    uid = local.map_or(uid, |local| local.api_uid.to_string());
                }
                ObjectId::Policy(policy) => uid = known.uid(policy).map_or(uid, ToString::to_string),
                ObjectId::Node(name) => uid = name.to_string(),
                _ => {}
            }
        }
        let version = run.as_ref().zip(kind).and_then(|(run, kind)| run.version_of(kind));
        let version = version.or_else(|| kind?.api.versions.first().copied()).unwrap_or_default();
        Outgoing {
            version: kind.map(|kind| kind.api.api_version(version)).unwrap_or_default(),
            kind: kind.map_or("", |kind| kind.api.kind),
            namespace: namespace.to_owned(),
            object: name.to_owned(),
            uid,
            weight: notice.weight,
            reason: notice.reason,
            note: notice.message.clone(),
            name: None,
        }
    }
}

/// A kind that is no policy, by its name.
fn kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.api.kind == name)
}
