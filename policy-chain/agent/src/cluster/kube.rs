//! The Kubernetes API as the cluster.
//!
//! ```text
//! discover ── which kinds are served ──> reflect, one for each kind: list, then watch, then on from where it broke off
//!                                          │ keep: what nobody looks at is dropped while it is decoded
//!                                          ▼
//!                                        known: what was told, and so what there is to tell ──> Told
//! publish, status, event: what goes back
//! ```
//!
//! Objects are read as JSON by policy-core, as those of files are: one that is malformed is reported, and the rest goes on.
//! Of an object only its name and revision stay here.
//!
//! Nothing is told to be gone because it is not found: a kind that is missing must be missing twice, an
//! object that a list lacks must be older than the list, and a list with an element that cannot be told by name takes nothing
//! away.

mod backoff;
mod call;
mod discover;
mod event;
mod fresh;
mod keep;
mod kinds;
mod known;
mod line;
mod list;
mod metrics;
mod publish;
mod reflect;
mod status;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ::kube::{Client, Config};
use prometheus_client::registry::Registry;
use sluice_daemon::log::ErrorChain;
use sluice_policy_core::cluster::{ObjectId, PodKey, Uid};
use tokio::sync::{Mutex, Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use self::backoff::{Backoff, Dice, hash};
use self::call::{Api, CallError};
use self::event::{Events, Outgoing};
use self::fresh::Fresh;
use self::kinds::{KINDS, Kind, of_policy};
use self::known::Known;
pub use self::metrics::Metrics;
use self::status::Statuses;
use super::{Cluster, ClusterError, Notice, PolicyStatus, Told};

/// Kinds that are listed at the same time.
const LISTS: usize = 3;

/// The number under which [`Fresh`] has the asking which kinds are served is `KINDS.len()`, and this one the pulse.
const PULSE: usize = 1;

/// What is served: kind -> version. None: not known yet.
type Served = Option<BTreeMap<usize, &'static str>>;

/// How the source goes about it.
#[derive(Debug, Clone)]
pub struct Options {
    /// The name of this node, as the API has it.
    pub node: String,
    /// Makes this process's pauses others than those of another one.
    pub seed: u64,
    /// Pauses and deadlines.
    pub timing: Timing,
}

/// Pauses and deadlines.
#[derive(Debug, Clone)]
pub struct Timing {
    /// The shortest pause after a failure.
    pub least: Duration,
    /// The longest one.
    pub most: Duration,
    /// How long a part of an answer may take.
    pub patience: Duration,
    /// How long a watch is asked to last, at least; at most twice as long.
    pub watch: Duration,
    /// How long a watch may be silent before another one takes its place. Servers send a bookmark a minute.
    pub idle: Duration,
    /// After how long of silence on all watches the server is asked whether it is there.
    pub pulse: Duration,
    /// How long its answer may take, and how long it is until it is asked again, at most, while it does not answer: so long
    /// after a server is back, everything goes on.
    pub answer: Duration,
    /// A watch that ends sooner is not begun again at once.
    pub quick: Duration,
    /// How often it is asked which kinds are served.
    pub discover: Duration,
    /// For how long a kind must be missing until it is gone.
    pub gone_after: Duration,
    /// How long the second node waits before it says on a policy what the first one did not. The third and fourth wait twice
    /// as long, the next four three times, and so on.
    pub status: Duration,
    /// How often the count of an Event is told.
    pub count: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            least: Duration::from_millis(200),
            most: Duration::from_secs(30),
            patience: Duration::from_secs(30),
            watch: Duration::from_secs(300),
            idle: Duration::from_secs(150),
            pulse: Duration::from_secs(20),
            answer: Duration::from_secs(3),
            quick: Duration::from_secs(1),
            discover: Duration::from_secs(300),
            gone_after: Duration::from_secs(5),
            status: Duration::from_secs(5),
            count: Duration::from_secs(30),
        }
    }
}

/// The API server cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is neither a kubeconfig nor a service account.
    #[error(
        "no API server is configured: set KUBECONFIG, or run in a pod with a service account, or use --cluster-dir"
    )]
    Unconfigured(#[source] Box<::kube::config::InferConfigError>),
    /// What is configured cannot be used.
    #[error("the client of the API server cannot be made")]
    Client(#[source] Box<::kube::Error>),
}

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
#[derive(Debug, Default)]
struct Writes {
    statuses: Statuses,
    events: Events,
}

/// What the tasks of a run share.
#[derive(Debug)]
struct Run {
    api: Api,
    options: Options,
    metrics: Metrics,
    writes: Arc<Writes>,
    told: mpsc::Sender<Told>,
    /// In the order of [`KINDS`].
    known: Vec<Arc<Mutex<Known>>>,
    fresh: Mutex<Fresh>,
    served: watch::Sender<Served>,
    /// Asks anew which kinds are served.
    discover: Notify,
    /// Counts the times that all watches were to be begun anew.
    reopen: watch::Sender<u64>,
    /// Something was not answered since the server was there last.
    away: AtomicBool,
    /// Counts the times that the server was back: nobody waits any longer for what it was asked before, or to ask it again.
    back: watch::Sender<u64>,
    lists: Semaphore,
    began: Instant,
    /// When something was last heard on a watch, in milliseconds since `began`.
    heard: AtomicU64,
}

impl Kube {
    /// The API server that KUBECONFIG or the pod's service account names.
    ///
    /// # Errors
    /// There is none, or its configuration cannot be used.
    pub async fn connect(options: Options) -> Result<Self, ConnectError> {
        let mut config = Config::infer().await.map_err(|error| ConnectError::Unconfigured(Box::new(error)))?;
        // Attempts and their pauses are ours.
        config.default_retry = false;
        config.connect_timeout = Some(Duration::from_secs(10));
        let client = Client::try_from(config).map_err(|error| ConnectError::Client(Box::new(error)))?;
        Ok(Self::new(client, options))
    }

    /// The API server of a client, which should not retry by itself.
    #[must_use]
    pub fn new(client: Client, options: Options) -> Self {
        Self {
            api: Api { client, patience: options.timing.patience },
            options,
            metrics: Metrics::default(),
            writes: Arc::default(),
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
        run.clone().ok_or_else(|| CallError::Odd("the source does not run").into_cluster(action.to_owned()))
    }
}

impl Run {
    fn dice(&self, purpose: &str) -> Dice {
        Dice::new(self.options.seed ^ hash(&[&self.options.node, purpose]))
    }

    fn backoff(&self, purpose: &str) -> Backoff {
        Backoff::new(self.options.timing.least, self.options.timing.most, self.dice(purpose))
    }

    fn known(&self, kind: &Kind) -> Option<&Mutex<Known>> {
        self.known.get(KINDS.iter().position(|one| std::ptr::eq(one, kind))?).map(|known| &**known)
    }

    /// The version of a kind that is read now.
    fn version_of(&self, kind: &Kind) -> Option<&'static str> {
        let number = KINDS.iter().position(|one| std::ptr::eq(one, kind))?;
        if kind.required {
            return kind.versions.first().copied();
        }
        self.served.borrow().as_ref()?.get(&number).copied()
    }

    fn heard(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.store(now, Ordering::Relaxed);
    }

    /// A kind is read completely, or its watch goes on. Whether somebody listens.
    async fn up(&self, number: usize) -> bool {
        // Held while it is told, so that what is told is in order.
        let mut fresh = self.fresh.lock().await;
        let told = fresh.up(number);
        self.metrics.failing.set(fresh.failing().try_into().unwrap_or(i64::MAX));
        if let Some(told) = told {
            tracing::info!("the cluster is known");
            return self.told.send(told).await.is_ok();
        }
        true
    }

    /// A kind cannot be read. Whether somebody listens.
    async fn down(&self, number: usize, doing: &str, error: &CallError) -> bool {
        let why = format!("{doing}: {}", ErrorChain(error));
        let mut fresh = self.fresh.lock().await;
        let told = fresh.down(number, why.clone());
        self.metrics.failing.set(fresh.failing().try_into().unwrap_or(i64::MAX));
        if let Some(told) = told {
            tracing::warn!(why, "what is known of the cluster may be out of date");
            return self.told.send(told).await.is_ok();
        }
        tracing::debug!(why, "failed again");
        true
    }

    /// Asks whether the server is there when nothing was heard for long: a connection may be dead without saying so.
    async fn pulse(self: Arc<Self>) {
        let Timing { least, pulse, answer: patience, .. } = self.options.timing;
        let mut backoff = Backoff::new(least.min(patience), patience, self.dice("pulse"));
        loop {
            let heard = Duration::from_millis(self.heard.load(Ordering::Relaxed));
            let silent = self.began.elapsed().saturating_sub(heard);
            let limit = if self.away.load(Ordering::Relaxed) { pulse.min(patience) } else { pulse };
            if silent < limit {
                sleep((limit - silent).min(patience)).await;
                continue;
            }
            let asked = tokio::time::timeout(patience, self.api.object("/version")).await;
            let answer = asked.unwrap_or(Err(CallError::Slow(patience)));
            let number = KINDS.len() + PULSE;
            match answer {
                Ok(_) => {
                    self.heard();
                    backoff.reset();
                    if self.away.swap(false, Ordering::Relaxed) {
                        self.back.send_modify(|count| *count = count.wrapping_add(1));
                    }
                    if !self.up(number).await {
                        return;
                    }
                }
                // It is there; who may read what is for the kinds to find out.
                Err(CallError::Refused { code, .. }) if code < 429 => self.heard(),
                Err(error) => {
                    if !self.down(number, "asking whether the API server is there", &error).await {
                        return;
                    }
                    self.away.store(true, Ordering::Relaxed);
                    self.reopen.send_modify(|count| *count = count.wrapping_add(1));
                    sleep(backoff.next(error.retry_after())).await;
                }
            }
        }
    }
}

impl Cluster for Kube {
    async fn run(&self, told: mpsc::Sender<Told>) {
        let node: Arc<str> = self.options.node.as_str().into();
        let run = Arc::new(Run {
            api: self.api.clone(),
            options: self.options.clone(),
            metrics: self.metrics.clone(),
            writes: Arc::clone(&self.writes),
            told: told.clone(),
            known: KINDS.iter().map(|kind| Arc::new(Mutex::new(Known::new(kind, Arc::clone(&node))))).collect(),
            // All kinds, the asking for kinds, and the pulse.
            fresh: Mutex::new(Fresh::new(KINDS.len() + 1 + PULSE)),
            served: watch::Sender::new(None),
            discover: Notify::new(),
            reopen: watch::Sender::new(0),
            away: AtomicBool::new(false),
            back: watch::Sender::new(0),
            lists: Semaphore::new(LISTS),
            began: Instant::now(),
            heard: AtomicU64::new(0),
        });
        *self.run.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&run));
        run.up(KINDS.len() + PULSE).await;
        let mut tasks = JoinSet::new();
        for reflector in reflect::all(&run) {
            tasks.spawn(reflector.follow());
        }
        tasks.spawn(discover::run(Arc::clone(&run)));
        tasks.spawn(discover::watch_definitions(Arc::clone(&run)));
        tasks.spawn(Arc::clone(&run).pulse());
        tasks.spawn(status::run(Arc::clone(&run)));
        tasks.spawn(event::run(Arc::clone(&run)));
        told.closed().await;
        tasks.shutdown().await;
        *self.run.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn look_up(&self, pod: &PodKey) -> Result<bool, ClusterError> {
        let action = format!("looking for pod {pod}");
        let run = self.current(&action)?;
        run.look_up(pod).await.map_err(|error| error.into_cluster(action))
    }

    async fn publish_addresses(&self, pod: &PodKey, uid: &Uid, addresses: &[IpAddr]) -> Result<(), ClusterError> {
        let action = format!("publishing the addresses of pod {pod}");
        let run = self.current(&action)?;
        run.publish(pod, uid, addresses).await.map_err(|error| error.into_cluster(action))
    }

    /// It is put to be written, in its time.
    async fn report(&self, status: &PolicyStatus) -> Result<(), ClusterError> {
        let action = format!("reporting on {}", status.policy);
        let run = self.current(&action)?;
        if self.writes.statuses.put(&run, status).await {
            return Ok(());
        }
        self.metrics.status_dropped.inc();
        Err(CallError::Odd("too many policies wait for their status").into_cluster(action))
    }

    fn register(&self, registry: &mut Registry) {
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
        self.writes.events.put(event, &self.metrics);
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
        let version = version.or_else(|| kind?.versions.first().copied()).unwrap_or_default();
        Outgoing {
            version: kind.map(|kind| kind.api_version(version)).unwrap_or_default(),
            kind: kind.map_or("", |kind| kind.kind),
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
    KINDS.iter().find(|kind| kind.kind == name)
}
