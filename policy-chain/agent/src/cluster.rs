//! The `Cluster` seam: where pods, Services and policies come from, and where what the node finds out goes.
//!
//! Two implementations exist: [`kube::Kube`], the Kubernetes API, and [`directory::Directory`]. A source reads
//! objects with policy-core's `parse` (one way for files and for the API) and tells them in the order in which they
//! changed. It decides nothing.

pub mod directory;
pub mod kube;

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

pub use sluice_cluster::Weight;
use sluice_daemon::metrics::Named;
use sluice_policy_core::cluster::{Event, ObjectId, PodKey, Uid};
use sluice_policy_core::model::PolicyRef;
use sluice_policy_core::parse::Issue;
use tokio::sync::mpsc;

/// Values that may wait between a source and the state's owner; a source waits when it is full.
pub const TOLD_LIMIT: usize = 1024;

/// What a source tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// An object is new, other than before, or gone.
    Event {
        /// What changed. [`Event::Upsert`] and [`Event::Delete`] only.
        event: Event,
        /// For a policy or a CiliumCIDRGroup that was upserted: the object as it was read, as compact JSON without
        /// `managedFields` and `status`, so that it can be read again after a restart without the source. None for
        /// other kinds, which are written from what was read.
        json: Option<Arc<str>>,
    },
    /// What was found wrong with an object. It replaces what was reported of the same place before; empty: nothing is wrong
    /// any more.
    Report(Report),
    /// Everything that a kind had at a revision of the API server has been told.
    Upto {
        /// The kind, as `plural.group`.
        kind: Arc<str>,
        /// The revision (`resourceVersion`).
        revision: u64,
    },
    /// Everything that exists has been told, and what is gone has been told to be gone: for the first time, or again after
    /// [`Told::Stale`]. What was told before this process began and is not told by now is gone.
    Synced,
    /// From now on what was told may be out of date: the source has lost what it reads from. It tries on.
    Stale {
        /// Why, for logs and for people.
        why: String,
    },
}

/// The faults of one object or file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Where.
    pub place: Place,
    /// The generation of the object (`metadata.generation`), where it has one: a status says of which it speaks.
    pub generation: Option<i64>,
    /// What is wrong, in the order of the text.
    pub issues: Vec<Issue>,
}

/// Where a fault is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In an object that could be told by kind and name.
    Object(ObjectId),
    /// In something that could not: a file and line, or `kind namespace/name` as the API has it.
    Text(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Object(ObjectId::Namespace(name)) => write!(f, "Namespace {name}"),
            Self::Object(ObjectId::Pod(key)) => write!(f, "Pod {key}"),
            Self::Object(ObjectId::Node(name)) => write!(f, "Node {name}"),
            Self::Object(ObjectId::Service(key)) => write!(f, "Service {}/{}", key.namespace, key.name),
            Self::Object(ObjectId::EndpointSlice(key)) => write!(f, "EndpointSlice {}/{}", key.namespace, key.name),
            Self::Object(ObjectId::CidrGroup(name)) => write!(f, "CiliumCIDRGroup {name}"),
            Self::Object(ObjectId::Policy(id)) => id.fmt(f),
        }
    }
}

/// Whether this node enforces a policy, for the policy's status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyStatus {
    /// Which.
    pub policy: PolicyRef,
    /// The generation that this is about.
    pub generation: Option<i64>,
    /// What is wrong with it; empty: all of it is in force.
    pub issues: Vec<Issue>,
}

/// Something that an operator should see beside the object that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The object; the node itself where there is none.
    pub about: Option<ObjectId>,
    /// UID of the pod, where it is about one.
    pub uid: Option<Uid>,
    /// `type`.
    pub weight: Weight,
    /// `reason`: one word in CamelCase, constant.
    pub reason: &'static str,
    /// What happened and what to do.
    pub message: String,
}

/// Why a source could not do something.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The API server, or the directory, does not answer; later it may.
    #[error("{action} failed")]
    Unavailable {
        /// What was tried.
        action: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Not allowed to (RBAC); a person has to mend it.
    #[error("{action} is not allowed")]
    Denied {
        /// What was tried.
        action: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A source of objects, and the way back.
pub trait Cluster: Send + Sync + 'static {
    /// Tells everything there is, then [`Told::Synced`], then what changes, until the receiver of `told` is dropped. It
    /// does not end because something fails: it tells [`Told::Stale`] and tries on, with pauses.
    fn run(&self, told: mpsc::Sender<Told>) -> impl Future<Output = ()> + Send;

    /// Looks a pod up now, because its watch may be late. What is found is told by the channel of [`Cluster::run`] like any
    /// other change, so that it never undoes something newer; and what is not there any more later is told to be gone.
    /// Whether it is there.
    fn look_up(&self, pod: &PodKey) -> impl Future<Output = Result<bool, ClusterError>> + Send;

    /// Makes the addresses of a local pod known to all nodes, before the API server's own status has them: annotation
    /// [`sluice_policy_core::cluster::POD_IPS_ANNOTATION`] on the pod with this UID. A pod that is gone is success.
    fn publish_addresses(
        &self,
        pod: &PodKey,
        uid: &Uid,
        addresses: &[IpAddr],
    ) -> impl Future<Output = Result<(), ClusterError>> + Send;

    /// Says on a policy whether it is in force here. A policy that is gone is success.
    fn report(&self, status: &PolicyStatus) -> impl Future<Output = Result<(), ClusterError>> + Send;

    /// Emits an event.
    fn emit(&self, notice: &Notice) -> impl Future<Output = Result<(), ClusterError>> + Send;

    /// Registers the metrics of its own.
    fn register(&self, _registry: &mut Named) {}
}
