//! What the elected node does for all: it reads which groups of AWS's interfaces policies name, has EC2 asked for them, and
//! writes the objects by which every node knows the answers.
//!
//! A CiliumCIDRGroup stands for each group, of the name that policies' readers derive from what the group says. One of that
//! name that carries no label of ours is somebody else's, and is let alone. One of ours that no policy names any more goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

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

/// How long the ConfigMap is taken to be as it was written last: somebody else may have changed it, or taken it away.
const ROUTES_STAND: Duration = Duration::from_secs(600);

/// Objects that are refused alike, one after the other, after which the others are taken to meet the same.
const ALIKE: u32 = 3;

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
    /// The private networks as they were written last, and how long they are taken to stand.
    routes: Option<(String, Instant)>,
    /// Objects that the server has refused, or not answered about, and until when they are left for the others' sake.
    refused: BTreeMap<String, Instant>,
    /// The group that was written last in a pass that ended early: the next one begins behind it, so that each has its turn.
    last: Option<String>,
}

/// A CiliumCIDRGroup that is not as it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// It is not there, and has to have these CIDRs.
    Create(Vec<String>),
    /// It has other CIDRs than these.
    Change(Vec<String>),
    /// No policy names it any more.
    Remove,
}

impl Books {
    /// The private networks as they are to be written, if they are.
    fn routes_due(&self, known: &Shared, now: Instant) -> Option<String> {
        let routes: Vec<String> = known.routes.as_ref()?.iter().map(ToString::to_string).collect();
        let routes = routes.join(",");
        let stands = self.routes.as_ref().is_some_and(|(written, until)| *written == routes && now < *until);
        (!stands && !self.refused.contains_key(SHARED_NAME)).then_some(routes)
    }

    /// The CiliumCIDRGroups that are to be written, by name.
    fn groups_due(&self, known: &Shared) -> Vec<(String, Step)> {
        let Some(existing) = &self.existing else { return Vec::new() };
        let mut due = Vec::new();
        for name in self.wanted.keys() {
            let Some(cidrs) = known.groups.get(name) else { continue };
            let cidrs: Vec<String> = cidrs.iter().map(IpNet::to_string).collect();
            match existing.get(name) {
                None => due.push((name.clone(), Step::Create(cidrs))),
                Some((true, before)) if *before != cidrs => due.push((name.clone(), Step::Change(cidrs))),
                Some(_) => {}
            }
        }
        let gone = existing.iter().filter(|(name, (is_ours, _))| *is_ours && !self.wanted.contains_key(*name));
        due.extend(gone.map(|(name, _)| (name.clone(), Step::Remove)));
        due.retain(|(name, _)| !self.refused.contains_key(name));
        due.sort_by(|(one, _), (other, _)| one.cmp(other));
        let behind = self.last.as_ref().map_or(0, |last| due.partition_point(|(name, _)| name <= last));
        due.rotate_left(behind);
        due
    }

    /// Says of objects of our names that are somebody else's, once, that they are left as they are.
    fn tell_of_foreign(&mut self) {
        self.foreign.retain(|name| self.wanted.contains_key(name));
        for (name, (is_ours, _)) in self.existing.iter().flatten() {
            if !*is_ours && self.wanted.contains_key(name) && self.foreign.insert(name.clone()) {
                tracing::warn!(name, "a CiliumCIDRGroup of this name is not ours: it is left as it is");
            }
        }
    }
}

/// What the server has refused while what differs is written once.
#[derive(Debug, Default)]
struct Pass {
    /// What is left for the others' sake: refused, or not answered about.
    left: Vec<String>,
    /// How many were refused one after the other, and with which status.
    alike: u32,
    code: Option<u16>,
}

impl Pass {
    /// Takes in that an object was refused with a status; whether the others are to be asked for all the same.
    fn goes_on(&mut self, code: Option<u16>) -> bool {
        self.alike = if self.code == code { self.alike + 1 } else { 1 };
        self.code = code;
        self.alike < ALIKE
    }

    /// Takes in that one was not refused.
    const fn went(&mut self) {
        self.alike = 0;
    }
}

/// Whether what went wrong is about the one object that was asked for. Where it is not, the server is away, does not know who
/// asks or wants to be asked later, and the others would meet the same.
const fn is_of_one(error: &CallError) -> bool {
    match error {
        CallError::Refused { code, .. } => !matches!(*code, 401 | 429 | 502 | 503 | 504),
        CallError::Unreachable(_) | CallError::Slow(_) | CallError::Broken(_) => false,
        CallError::TooLarge(_)
        | CallError::Garbled(_)
        | CallError::NoList(_)
        | CallError::Odd(_)
        | CallError::Unmade(_) => true,
    }
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
            // Of policies that are not known yet nothing may be missed: their groups would go. Routes wait for none of them.
            let sorts = [Sort::NetworkPolicy, Sort::ClusterwidePolicy];
            let policies_known = sorts.iter().all(|sort| complete.contains(sort));
            if policies_known && books.wanted != wanted {
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
            books.existing = (policies_known && complete.contains(&Sort::CidrGroup)).then_some(existing);
            let known = found.borrow_and_update().clone();
            let version = session.version_of(CIDR_GROUP_NUMBER);
            again = match self.write(namespace, version, &mut books, &known).await {
                Ok(again) => {
                    backoff.reset();
                    again
                }
                Err(error) => Some(Instant::now() + backoff.next(error.retry_after())),
            };
        }
    }

    /// Writes what differs, and says when to look again. What is refused of one object holds up no other: it is tried again
    /// after a pause. An error: the server is away, or wants to be asked later, or refuses one object like the other, and the
    /// rest waits.
    async fn write(
        &self,
        namespace: &str,
        version: Option<&str>,
        books: &mut Books,
        known: &Shared,
    ) -> Result<Option<Instant>, CallError> {
        books.refused.retain(|_, until| *until > Instant::now());
        let mut pass = Pass::default();
        let went = self.write_due(namespace, version, books, known, &mut pass).await;
        // One time for all of them: each time is another look at everything.
        let until = Instant::now() + self.options.timing.most;
        books.refused.extend(pass.left.into_iter().map(|name| (name, until)));
        went.map(|()| books.refused.values().min().copied())
    }

    async fn write_due(
        &self,
        namespace: &str,
        version: Option<&str>,
        books: &mut Books,
        known: &Shared,
        pass: &mut Pass,
    ) -> Result<(), CallError> {
        let now = Instant::now();
        if let Some(routes) = books.routes_due(known, now) {
            let wrote = self.write_routes(namespace, &routes).await;
            if self.went(pass, SHARED_NAME, wrote)? {
                books.routes = Some((routes, Instant::now() + ROUTES_STAND));
            }
        }
        books.tell_of_foreign();
        if let Some(version) = version {
            for (name, step) in books.groups_due(known) {
                let wrote = self.write_group(version, &name, &step).await;
                books.last = Some(name.clone());
                self.went(pass, &name, wrote)?;
            }
            books.last = None;
        }
        Ok(())
    }

    /// Takes in how the write of an object went; whether it did.
    fn went(&self, pass: &mut Pass, name: &str, wrote: Result<(), CallError>) -> Result<bool, CallError> {
        let Err(error) = wrote else {
            pass.went();
            return Ok(true);
        };
        self.metrics.shared_failed.inc();
        let is_of_one = is_of_one(&error);
        // One that the server does not answer about must not come first for ever.
        if is_of_one || matches!(error, CallError::Slow(_)) {
            pass.left.push(name.to_owned());
        }
        if is_of_one && pass.goes_on(error.code()) {
            tracing::warn!(name, error = %ErrorChain(&error), "an object for all nodes is refused: the others are written");
            return Ok(false);
        }
        tracing::warn!(name, error = %ErrorChain(&error), "an object for all nodes could not be written: the others wait too");
        Err(error)
    }

    async fn write_group(&self, version: &str, name: &str, step: &Step) -> Result<(), CallError> {
        let all = CIDR_GROUP.path(version);
        let path = format!("{all}/{}", escaped(name));
        let sent = match step {
            Step::Create(cidrs) => {
                let body = json!({
                    "apiVersion": CIDR_GROUP.api_version(version),
                    "kind": CIDR_GROUP.kind,
                    "metadata": {"name": name, "labels": {LABEL.0: LABEL.1}},
                    "spec": {"externalCIDRs": cidrs},
                });
                self.send(Method::POST, &all, JSON, &body).await
            }
            Step::Change(cidrs) => {
                self.send(Method::PATCH, &path, MERGE, &json!({"spec": {"externalCIDRs": cidrs}})).await
            }
            Step::Remove => self.send(Method::DELETE, &path, JSON, &json!({})).await,
        };
        match (step, sent) {
            // It is there by now, or gone; the watch is about to say so.
            (Step::Create(_), Err(error)) if error.code() == Some(409) => Ok(()),
            (Step::Remove, Err(error)) if error.code() == Some(404) => Ok(()),
            (_, sent) => sent,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(groups: &[(&str, &str)], routes: Option<&str>) -> Shared {
        let groups = groups.iter().map(|(name, cidr)| ((*name).to_owned(), vec![cidr.parse().unwrap()]));
        Shared { groups: groups.collect(), routes: routes.map(|route| vec![route.parse().unwrap()]) }
    }

    fn cidrs(cidr: &str) -> Vec<String> {
        vec![cidr.to_owned()]
    }

    #[test]
    fn what_differs_is_due_and_what_was_refused_is_left_for_now() {
        let wanted = ["changed", "foreign", "new", "refused", "same", "unknown"];
        let existing = [
            ("changed", true, "10.0.0.9/32"),
            ("foreign", false, "192.0.2.1/32"),
            ("gone", true, "10.0.0.8/32"),
            ("gone-foreign", false, "192.0.2.2/32"),
            ("same", true, "10.0.0.1/32"),
        ];
        let mut books = Books {
            wanted: wanted.map(|name| (name.to_owned(), Group::default())).into(),
            refused: [("refused".to_owned(), Instant::now())].into(),
            ..Books::default()
        };
        let all = |cidr: &str| -> Shared {
            let named = ["changed", "foreign", "new", "refused", "same"].map(|name| (name, cidr));
            shared(&named, None)
        };
        let known = all("10.0.0.1/32");
        assert!(books.groups_due(&known).is_empty(), "what is there is not known yet");
        let existing = existing.map(|(name, is_ours, cidr)| (name.to_owned(), (is_ours, cidrs(cidr))));
        books.existing = Some(existing.into());
        let due = [
            ("changed".to_owned(), Step::Change(cidrs("10.0.0.1/32"))),
            ("gone".to_owned(), Step::Remove),
            ("new".to_owned(), Step::Create(cidrs("10.0.0.1/32"))),
        ];
        assert_eq!(books.groups_due(&known), due);
        // Where the last pass ended early, the next one begins behind it, and once around.
        for (last, first) in
            [("a", "changed"), ("changed", "gone"), ("gone", "new"), ("new", "changed"), ("z", "changed")]
        {
            books.last = Some(last.to_owned());
            let due = books.groups_due(&known);
            assert_eq!((due.len(), due[0].0.as_str()), (3, first), "behind {last}");
        }
        books.last = None;
        books.tell_of_foreign();
        assert_eq!(books.foreign, ["foreign".to_owned()].into());
    }

    #[test]
    fn routes_are_written_when_they_differ_and_looked_at_now_and_then() {
        let now = Instant::now();
        let mut books = Books::default();
        let known = shared(&[], Some("10.9.0.0/16"));
        assert_eq!(books.routes_due(&shared(&[], None), now), None);
        assert_eq!(books.routes_due(&known, now).as_deref(), Some("10.9.0.0/16"));
        books.routes = Some(("10.9.0.0/16".to_owned(), now + ROUTES_STAND));
        assert_eq!(books.routes_due(&known, now), None);
        assert!(books.routes_due(&known, now + ROUTES_STAND).is_some(), "somebody may have changed them");
        assert!(books.routes_due(&shared(&[], Some("10.8.0.0/16")), now).is_some());
        books.refused.insert(SHARED_NAME.to_owned(), now);
        assert_eq!(books.routes_due(&shared(&[], Some("10.8.0.0/16")), now), None);
    }

    #[test]
    fn what_is_refused_alike_ends_a_pass() {
        let ends = |answers: &[Option<u16>]| {
            let mut pass = Pass::default();
            answers.iter().position(|code| {
                if code.is_none() {
                    pass.went();
                }
                code.is_some() && !pass.goes_on(*code)
            })
        };
        assert_eq!(ends(&[Some(403); 500]), Some(2), "a role without the right");
        assert_eq!(ends(&[Some(403), Some(403), None, Some(403), Some(403)]), None);
        assert_eq!(ends(&[Some(403), Some(422), Some(403), Some(422), Some(422), Some(422)]), Some(5));
    }

    #[test]
    fn a_refusal_is_of_one_object_and_an_outage_of_all() {
        let refused =
            |code| CallError::Refused { code, reason: String::new(), message: String::new(), retry_after: None };
        for code in [400, 403, 409, 422, 500] {
            assert!(is_of_one(&refused(code)), "{code}");
        }
        for code in [401, 429, 502, 503, 504] {
            assert!(!is_of_one(&refused(code)), "{code}");
        }
        assert!(!is_of_one(&CallError::Slow(Duration::from_secs(30))));
    }
}
