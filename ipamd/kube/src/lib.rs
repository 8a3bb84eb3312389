//! The Kubernetes API as ipamd's cluster: a source of the `Cluster` seam, and the way back.
//!
//! It reads little: this node's object, its own pods, one ConfigMap and, with custom networking, ENIConfigs. What the objects
//! mean is the seam's to say, as for those of a directory. Of a kind nothing is told before all of it is known, and one that
//! cannot be read holds up no other. ipamd itself waits for none of this.
//!
//! It writes Events, a condition on the node's object, what is wanted of AWS's VPC resource controller, annotations of pods with
//! their addresses, and the Lease by which one node of the cluster is elected. That one reads policies too, and writes what EC2
//! says of the groups that they name, and where the VPC's route tables lead.
#![forbid(unsafe_code)]

mod annotation;
mod cninode;
mod condition;
mod kinds;
mod metrics;
mod shared;
mod store;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use sluice_cluster::{
    Api, ConnectError, Events, Lease, Options, Outgoing, Reporter, Session, Timing, Watched, connect,
};
use sluice_daemon::metrics::Named;
use sluice_ipamd_daemon::cluster::meaning::Meaning;
use sluice_ipamd_daemon::cluster::objects::{Naming, Object, Sort};
use sluice_ipamd_daemon::cluster::{About, Cluster, Condition, Notice, Report, Shared, TOLD_LIMIT, Told, Weight};
use tokio::sync::{Mutex, mpsc, watch};

use self::annotation::Annotations;
use self::shared::Sharing;
use self::store::{Heard, Store};
pub use metrics::Metrics;

/// In whose name Events are made.
const REPORTER: Reporter = Reporter { controller: "sluice.dev/ipamd", action: "AssignAddress" };

/// The Lease of the one node that does what one has to do.
const LEASE: &str = "sluice-ipamd";

/// How long the Lease lasts, and how often its holder writes it. Nothing that the holder does is urgent, and a thousand nodes
/// look at it.
const LEASE_LASTS: Duration = Duration::from_secs(180);
const LEASE_RENEWED: Duration = Duration::from_secs(45);

/// How long a condition stands at least before another one is written.
const CONDITION_STANDS: Duration = Duration::from_secs(10);

/// What the source has to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The node's name (`MY_NODE_NAME`).
    pub node: String,
    /// The namespace of the ConfigMap and the Lease (`SLUICE_NAMESPACE`).
    pub namespace: String,
    /// How the node names its ENIConfig; none without custom networking.
    pub naming: Option<Naming>,
    /// Whether the node wants to know where the VPC's route tables lead.
    pub routes: bool,
    /// Whether it is to be told what its pods say of branch ENIs.
    pub claims: bool,
    /// A number that no other process has.
    pub seed: u64,
    /// Pauses and deadlines.
    pub timing: Timing,
    /// How long the Lease lasts and how often it is renewed.
    pub lease: (Duration, Duration),
    /// How long a condition of the node stands at least before another one is written.
    pub condition_stands: Duration,
}

impl Settings {
    /// Settings with the usual pauses.
    #[must_use]
    pub fn new(node: String, namespace: String, naming: Option<Naming>, seed: u64) -> Self {
        let lease = (LEASE_LASTS, LEASE_RENEWED);
        Self {
            node,
            namespace,
            naming,
            routes: false,
            claims: false,
            seed,
            timing: Timing::default(),
            lease,
            condition_stands: CONDITION_STANDS,
        }
    }
}

/// The source.
#[derive(Debug)]
pub struct Kubernetes {
    api: Api,
    settings: Settings,
    metrics: Metrics,
}

impl Kubernetes {
    /// The API server that KUBECONFIG or the pod's service account names, at the URL `endpoint` if there is one
    /// (`CLUSTER_ENDPOINT`). Nothing is asked of it yet.
    ///
    /// # Errors
    /// There is none, or its configuration cannot be used.
    pub async fn connect(settings: Settings, endpoint: Option<&str>) -> Result<Self, ConnectError> {
        Ok(Self::new(connect(endpoint).await?, settings))
    }

    /// The API server of a client, which should not retry by itself.
    #[must_use]
    pub fn new(client: Client, settings: Settings) -> Self {
        let api = Api { client, patience: settings.timing.patience };
        Self { api, settings, metrics: Metrics::default() }
    }

    fn options(&self) -> Options {
        let Settings { node, seed, timing, .. } = &self.settings;
        Options { node: node.clone(), seed: *seed, timing: timing.clone() }
    }
}

impl Cluster for Kubernetes {
    async fn watch(&self, told: mpsc::Sender<Told>, reports: mpsc::Receiver<Report>) {
        let closed = told.clone();
        let (holds, held) = watch::channel(false);
        let found = watch::Sender::new(Shared::default());
        let pods = Arc::new(Mutex::new(Store::new(Sort::Pod)));
        let sharing = Sharing { api: &self.api, options: self.options(), metrics: &self.metrics, found: &found };
        let work = async {
            tokio::join!(
                self.read(told.clone(), &pods),
                self.write(reports, &found, &pods),
                self.stand(holds),
                sharing.run(&self.settings.namespace, &told, held),
            )
        };
        tokio::select! {
            _ = work => {}
            () = closed.closed() => {}
        }
    }

    fn register(&self, registry: &mut Named) {
        self.metrics.register(registry);
    }
}

impl Kubernetes {
    /// Reads, and tells what it means. The pods that it knows are in `pods`.
    async fn read(&self, told: mpsc::Sender<Told>, pods: &Arc<Mutex<Store<Object>>>) {
        let Settings { node, namespace, naming, routes, claims, .. } = &self.settings;
        let (sorts, watched): (Vec<Sort>, Vec<Watched>) =
            kinds::watched(node, namespace, naming.is_some(), *routes, *claims).into_iter().unzip();
        let (heard, mut hears) = mpsc::channel(TOLD_LIMIT);
        let session = Session::new(self.api.clone(), self.options(), self.metrics.api.clone(), watched, heard);
        let session = Arc::new(session);
        let store = |sort: Sort| match sort {
            Sort::Pod => Arc::clone(pods),
            sort => Arc::new(Mutex::new(Store::new(sort))),
        };
        let stores: Vec<Arc<Mutex<Store<Object>>>> = sorts.into_iter().map(store).collect();
        let _tasks = session.start(&stores).await;
        let mut complete: BTreeSet<Sort> = BTreeSet::new();
        let mut before = Meaning::default();
        while let Some(first) = hears.recv().await {
            // What came at once is looked at once.
            let mut changed = false;
            let mut next = Some(first);
            while let Some(heard) = next {
                match heard {
                    Heard::Complete(sort) => changed |= complete.insert(sort),
                    Heard::Changed(_) => changed = true,
                    Heard::Synced | Heard::Stale => {}
                }
                next = hears.try_recv().ok();
            }
            if !changed {
                continue;
            }
            let mut objects = Vec::new();
            for store in &stores {
                let store = store.lock().await;
                objects.extend(store.objects().filter(|_| complete.contains(&store.sort)).cloned());
            }
            let meaning = Meaning::of(&objects, &complete, node, naming.as_ref());
            let meaning = if *claims { meaning } else { meaning.without_claims() };
            for news in meaning.news(&before) {
                if told.send(news).await.is_err() {
                    return;
                }
            }
            before = meaning;
        }
    }

    /// Passes on what is reported.
    async fn write(
        &self,
        mut reports: mpsc::Receiver<Report>,
        found: &watch::Sender<Shared>,
        pods: &Mutex<Store<Object>>,
    ) {
        let events = Events::new(REPORTER);
        let annotations = Annotations::default();
        let (wanted, wants) = watch::channel::<Option<Condition>>(None);
        let (features, features_wanted) = watch::channel(Vec::new());
        let options = self.options();
        let take = async {
            while let Some(report) = reports.recv().await {
                match report {
                    Report::Notice(notice) => events.put(self.outgoing(notice), &self.metrics.api),
                    Report::Condition(condition) => {
                        wanted.send_replace(Some(condition));
                    }
                    Report::Features(wanted) => {
                        features.send_replace(wanted);
                    }
                    Report::PodIps(ips) => annotations.put(ips, &self.metrics),
                    Report::Shared(Shared { groups, routes }) => found.send_modify(|all| {
                        all.groups.extend(groups);
                        all.routes = routes.or(all.routes.take());
                    }),
                }
            }
        };
        let send = events.send(&self.api, &options, &self.metrics.api);
        tokio::join!(
            take,
            send,
            annotations.write(&self.api, &options, &self.metrics, pods),
            cninode::keep(&self.api, &options, &self.metrics, features_wanted),
            condition::keep(&self.api, &options, self.settings.condition_stands, &self.metrics, wants)
        );
    }

    fn outgoing(&self, notice: Notice) -> Outgoing {
        let (kind, namespace, object, uid) = match notice.about {
            // The kubelet's own Events name the node as their uid too.
            About::Node => ("Node", String::new(), self.settings.node.clone(), self.settings.node.clone()),
            About::Pod(pod) => ("Pod", pod.namespace, pod.name, pod.uid.unwrap_or_default()),
        };
        Outgoing {
            version: "v1".to_owned(),
            kind,
            namespace,
            object,
            uid,
            weight: match notice.weight {
                Weight::Normal => sluice_cluster::Weight::Normal,
                Weight::Warning => sluice_cluster::Weight::Warning,
            },
            reason: notice.reason,
            note: notice.message,
            name: None,
        }
    }

    /// Stands for the Lease.
    async fn stand(&self, holds: watch::Sender<bool>) {
        let Settings { node, namespace, seed, lease: (lasts, renew), .. } = &self.settings;
        let lease = Lease {
            namespace: namespace.clone(),
            name: LEASE.to_owned(),
            identity: format!("{node}_{seed:016x}"),
            lasts: *lasts,
            renew: *renew,
        };
        lease.stand(&self.api, *seed, &holds).await;
    }
}
