//! What the elected node does for all: it reads which groups of AWS's interfaces policies name, has EC2 asked for them, and
//! writes the objects by which every node knows the answers.
//!
//! A CiliumCIDRGroup stands for each group, of the name that policies' readers derive from what the group says. One of that
//! name that carries no label of ours is somebody else's, and is let alone. One of ours that no policy names any more goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use http::Method;
use ipnet::IpNet;
use prometheus_client::metrics::gauge::Gauge;
use serde_json::{Value, json};
use sluice_cluster::{Api, Backoff, CallError, Dice, JSON, Options, Session, escaped, hash};
use sluice_daemon::log::ErrorChain;
use sluice_ipamd_core::shared::Group;
use sluice_ipamd_daemon::cluster::objects::{ROUTES_KEY, SHARED_NAME};
use sluice_ipamd_daemon::cluster::{Shared, TOLD_LIMIT, Told};
use sluice_policy_core::parse::cilium::groups::{AwsGroup, NAME_PREFIX, aws_groups};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::kinds::{CIDR_GROUP, watched_by_the_elected};
use crate::metrics::Metrics;
use crate::store::{Heard, Item, Store};

/// The label of what is written here, and its value (Kubernetes documentation, "Recommended Labels").
const LABEL: (&str, &str) = ("app.kubernetes.io/managed-by", "sluice-ipamd");

/// The media type of a change to some fields (RFC 7396).
const MERGE: &str = "application/merge-patch+json";

/// The kinds that are read, in the order of [`watched_by_the_elected`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sort {
    NetworkPolicy,
    ClusterwidePolicy,
    CidrGroup,
}

impl fmt::Display for Sort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NetworkPolicy => "CiliumNetworkPolicy",
            Self::ClusterwidePolicy => "CiliumClusterwideNetworkPolicy",
            Self::CidrGroup => "CiliumCIDRGroup",
        })
    }
}

/// What is kept of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    /// The groups that a policy names.
    Policy(BTreeMap<String, Group>),
    /// A CiliumCIDRGroup whose name begins as ours do: whether it is ours, and its CIDRs.
    CidrGroup(String, bool, Vec<String>),
    /// Another CiliumCIDRGroup.
    Other,
}

impl Item for Seen {
    type Sort = Sort;

    fn read(sort: Sort, object: Value) -> Result<Self, serde_json::Error> {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
        Ok(match sort {
            Sort::NetworkPolicy | Sort::ClusterwidePolicy => {
                let groups = aws_groups(&object).into_iter();
                Self::Policy(groups.map(|(name, group)| (name.to_string(), of_ec2(&group))).collect())
            }
            Sort::CidrGroup if text("/metadata/name").starts_with(NAME_PREFIX) => {
                let label = object.pointer("/metadata/labels").and_then(|labels| labels.get(LABEL.0));
                let cidrs = object.pointer("/spec/externalCIDRs").and_then(Value::as_array).into_iter().flatten();
                let cidrs = cidrs.map(|cidr| cidr.as_str().unwrap_or_default().to_owned()).collect();
                let is_ours = label.and_then(Value::as_str) == Some(LABEL.1);
                Self::CidrGroup(text("/metadata/name").to_owned(), is_ours, cidrs)
            }
            Sort::CidrGroup => Self::Other,
        })
    }
}

fn of_ec2(group: &AwsGroup) -> Group {
    let AwsGroup { labels, ids, names, region } = group;
    Group {
        tags: labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        ids: ids.iter().map(ToString::to_string).collect(),
        names: names.iter().map(ToString::to_string).collect(),
        region: region.as_ref().map(ToString::to_string),
    }
}

/// What it works with.
#[derive(Debug)]
pub(crate) struct Sharing<'a> {
    pub(crate) api: &'a Api,
    pub(crate) options: Options,
    pub(crate) metrics: &'a Metrics,
    /// What EC2 has said so far.
    pub(crate) found: &'a watch::Sender<Shared>,
}

/// What there is to write, and what is there.
#[derive(Debug, Default)]
struct Books {
    wanted: BTreeMap<String, Group>,
    /// Ours and others', where all of them are known.
    existing: Option<BTreeMap<String, (bool, Vec<String>)>>,
    /// Somebody else's objects that have been told of.
    foreign: BTreeSet<String>,
}

impl Sharing<'_> {
    /// Tells whether the Lease is `held`, and works while it is.
    pub(crate) async fn run(&self, namespace: &str, told: &mpsc::Sender<Told>, mut held: watch::Receiver<bool>) {
        let dice = Dice::new(self.options.seed ^ hash(&[&self.options.node, SHARED_NAME]));
        let mut backoff = Backoff::new(self.options.timing.least, self.options.timing.most, dice);
        loop {
            let ended = held.wait_for(|held| *held).await.is_err();
            if ended || told.send(Told::Elected(true)).await.is_err() {
                return;
            }
            // What was found while another one may have written newer things.
            self.found.send_replace(Shared::default());
            let ended = tokio::select! {
                () = self.hold(namespace, told, &mut backoff) => true,
                ended = async { held.wait_for(|held| !*held).await.is_err() } => ended,
            };
            let news = [Told::Elected(false), Told::Groups(BTreeMap::new())];
            for news in news {
                if ended || told.send(news).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Reads, has EC2 asked, and writes, until nobody listens.
    async fn hold(&self, namespace: &str, told: &mpsc::Sender<Told>, backoff: &mut Backoff) {
        let (heard, mut hears) = mpsc::channel(TOLD_LIMIT);
        // Whether a kind can be read is told of the others, which every node reads.
        let counters = sluice_cluster::Metrics { failing: Gauge::default(), ..self.metrics.api.clone() };
        let watched = watched_by_the_elected().to_vec();
        let session = Arc::new(Session::new(self.api.clone(), self.options.clone(), counters, watched, heard));
        let sorts = [Sort::NetworkPolicy, Sort::ClusterwidePolicy, Sort::CidrGroup];
        let stores = sorts.map(|sort| Arc::new(Mutex::new(Store::<Seen>::new(sort))));
        let _tasks = session.start(&stores).await;
        let mut complete: BTreeSet<Sort> = BTreeSet::new();
        let mut found = self.found.subscribe();
        let mut books = Books::default();
        let mut again: Option<Instant> = None;
        loop {
            let retry = async {
                match again {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                heard = hears.recv() => {
                    let mut next = heard;
                    if next.is_none() {
                        return;
                    }
                    while let Some(heard) = next {
                        if let Heard::Complete(sort) = heard {
                            complete.insert(sort);
                        }
                        next = hears.try_recv().ok();
                    }
                }
                changed = found.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = retry => {}
            }
            let mut wanted = BTreeMap::new();
            let mut existing = BTreeMap::new();
            for store in &stores {
                for seen in store.lock().await.objects() {
                    match seen {
                        Seen::Policy(groups) => wanted.extend(groups.clone()),
                        Seen::CidrGroup(name, is_ours, cidrs) => {
                            existing.insert(name.clone(), (*is_ours, cidrs.clone()));
                        }
                        Seen::Other => {}
                    }
                }
            }
            // Of policies that are not known yet nothing may be missed: their groups would go.
            if !complete.contains(&Sort::NetworkPolicy) || !complete.contains(&Sort::ClusterwidePolicy) {
                continue;
            }
            if books.wanted != wanted {
                tracing::info!(groups = wanted.len(), "groups of AWS's interfaces that policies name");
                if told.send(Told::Groups(wanted.clone())).await.is_err() {
                    return;
                }
                books.wanted = wanted;
                self.found.send_if_modified(|found| {
                    found.groups.retain(|name, _| books.wanted.contains_key(name));
                    false
                });
            }
            books.existing = complete.contains(&Sort::CidrGroup).then_some(existing);
            let known = found.borrow_and_update().clone();
            let version = session.version_of(CIDR_GROUP_NUMBER);
            again = match self.write(namespace, version, &mut books, &known).await {
                Ok(()) => {
                    backoff.reset();
                    None
                }
                Err(error) => {
                    self.metrics.shared_failed.inc();
                    tracing::warn!(error = %ErrorChain(&error), "what EC2 has said for all nodes cannot be written");
                    Some(Instant::now() + backoff.next(error.retry_after()))
                }
            };
        }
    }

    /// Writes what differs. The first failure ends it, and all of it is looked at again.
    async fn write(
        &self,
        namespace: &str,
        version: Option<&str>,
        books: &mut Books,
        known: &Shared,
    ) -> Result<(), CallError> {
        if let Some(routes) = &known.routes {
            self.write_routes(namespace, &routes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")).await?;
        }
        let (Some(existing), Some(version)) = (&books.existing, version) else { return Ok(()) };
        let all = CIDR_GROUP.path(version);
        for name in books.wanted.keys() {
            let Some(cidrs) = known.groups.get(name) else { continue };
            let cidrs: Vec<String> = cidrs.iter().map(IpNet::to_string).collect();
            match existing.get(name) {
                None => {
                    let body = json!({
                        "apiVersion": CIDR_GROUP.api_version(version),
                        "kind": CIDR_GROUP.kind,
                        "metadata": {"name": name, "labels": {LABEL.0: LABEL.1}},
                        "spec": {"externalCIDRs": cidrs},
                    });
                    match self.send(Method::POST, &all, JSON, &body).await {
                        // It is there by now; the watch is about to say so.
                        Err(error) if error.code() == Some(409) => {}
                        sent => sent?,
                    }
                }
                Some((false, _)) => {
                    if books.foreign.insert(name.clone()) {
                        tracing::warn!(name, "a CiliumCIDRGroup of this name is not ours: it is left as it is");
                    }
                }
                Some((true, before)) if *before == cidrs => {}
                Some((true, _)) => {
                    let path = format!("{all}/{}", escaped(name));
                    self.send(Method::PATCH, &path, MERGE, &json!({"spec": {"externalCIDRs": cidrs}})).await?;
                }
            }
        }
        for (name, _) in existing.iter().filter(|(name, (is_ours, _))| *is_ours && !books.wanted.contains_key(*name)) {
            match self.send(Method::DELETE, &format!("{all}/{}", escaped(name)), JSON, &json!({})).await {
                Err(error) if error.code() == Some(404) => {}
                sent => sent?,
            }
        }
        Ok(())
    }

    async fn write_routes(&self, namespace: &str, routes: &str) -> Result<(), CallError> {
        let all = format!("/api/v1/namespaces/{}/configmaps", escaped(namespace));
        let path = format!("{all}/{SHARED_NAME}");
        let data = json!({ROUTES_KEY: routes});
        match self.api.object(&path).await {
            Ok(json) => {
                let before: Value = serde_json::from_slice(&json).map_err(CallError::Garbled)?;
                if before.pointer(&format!("/data/{ROUTES_KEY}")).and_then(Value::as_str) == Some(routes) {
                    return Ok(());
                }
                self.send(Method::PATCH, &path, MERGE, &json!({"data": data})).await
            }
            Err(error) if error.code() == Some(404) => {
                let metadata = json!({"name": SHARED_NAME, "namespace": namespace, "labels": {LABEL.0: LABEL.1}});
                let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data});
                self.send(Method::POST, &all, JSON, &body).await
            }
            Err(error) => Err(error),
        }
    }

    async fn send(&self, method: Method, path: &str, form: &str, body: &Value) -> Result<(), CallError> {
        self.api.write(method, path, form, body).await?;
        self.metrics.shared.inc();
        Ok(())
    }
}

/// Which of [`watched_by_the_elected`] CiliumCIDRGroups are.
const CIDR_GROUP_NUMBER: usize = 2;
