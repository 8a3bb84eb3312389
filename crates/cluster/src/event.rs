//! Kubernetes Events (events.k8s.io/v1): the same thing twice is one Event with a count, and there are never too many.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use sluice_daemon::log::ErrorChain;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, sleep_until};

use crate::backoff::hash;
use crate::call::{Api, CallError, JSON};
use crate::metrics::Metrics;
use crate::timing::Options;

/// Events that may wait to be sent; what is too much is not sent.
const WAITING: usize = 256;

/// Different Events that are remembered.
const REMEMBERED: usize = 1_024;

/// Events that may be sent at once about one object, and how long until there is room for a further one.
const OF_ONE: Rate = Rate { burst: 10, every: Duration::from_secs(30) };

/// The same of all objects together.
const OF_ALL: Rate = Rate { burst: 50, every: Duration::from_secs(1) };

/// How long the same thing is the same Event (the API server keeps one for an hour).
const SAME: Duration = Duration::from_secs(15 * 60);

/// Characters of a note; the API takes 1 kB.
const NOTE: usize = 1_000;

/// How much an event matters (`type` of a Kubernetes Event).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Weight {
    /// For the record.
    Normal,
    /// Somebody has to do something.
    Warning,
}

/// Who makes Events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reporter {
    /// `reportingController`.
    pub controller: &'static str,
    /// `action`: what it was about to do.
    pub action: &'static str,
}

/// An Event to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// `apiVersion` of the object that it is about.
    pub version: String,
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace; empty for an object without one.
    pub namespace: String,
    /// Its name.
    pub object: String,
    /// Its uid, by which people's tools find the Events of an object; empty where it is not known.
    pub uid: String,
    /// `type`.
    pub weight: Weight,
    /// `reason`: one word in CamelCase, constant.
    pub reason: &'static str,
    /// What happened and what to do.
    pub note: String,
    /// Its name, where all nodes are to make one Event; else each makes its own.
    pub name: Option<String>,
}

/// The queue of a reporter's Events. It never holds anybody up: what is too much is counted and not sent.
#[derive(Debug)]
pub struct Events {
    reporter: Reporter,
    queue: mpsc::Sender<Outgoing>,
    waiting: Mutex<mpsc::Receiver<Outgoing>>,
}

impl Events {
    /// An empty queue.
    #[must_use]
    pub fn new(reporter: Reporter) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING);
        Self { reporter, queue, waiting: Mutex::new(waiting) }
    }

    /// Has an Event sent, if there is room. It never waits.
    pub fn put(&self, event: Outgoing, metrics: &Metrics) {
        if self.queue.try_send(event).is_err() {
            metrics.events_dropped.inc();
        }
    }

    /// Sends what is put, in the node's name, until this future is dropped.
    pub async fn send(&self, api: &Api, options: &Options, metrics: &Metrics) {
        let run = Sender { reporter: self.reporter, api, options, metrics };
        let mut waiting = self.waiting.lock().await;
        let mut sent: BTreeMap<u64, Sent> = BTreeMap::new();
        let mut limits = Limits::new();
        loop {
            let due = sent.values().filter(|sent| sent.count > sent.told).map(|sent| sent.due).min();
            let count = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = waiting.recv() => {
                    let Some(event) = event else { return };
                    take(&run, event, &mut sent, &mut limits).await;
                }
                () = count => tell_counts(&run, &mut sent, &mut limits).await,
            }
            let now = Instant::now();
            limits.forget(now);
            sent.retain(|_, sent| sent.count > sent.told || now.saturating_duration_since(sent.last) < SAME);
        }
    }
}

/// How many, how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rate {
    burst: u32,
    every: Duration,
}

/// How many may be sent now.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    left: u32,
    filled: Instant,
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        Self { rate, left: rate.burst, filled: Instant::now() }
    }

    fn fill(&mut self, now: Instant) {
        let Rate { burst, every } = self.rate;
        let periods = now.saturating_duration_since(self.filled).as_millis() / every.as_millis().max(1);
        let periods = u32::try_from(periods).unwrap_or(burst).min(burst);
        if periods > 0 {
            self.left = self.left.saturating_add(periods).min(burst);
            self.filled = if self.left == burst { now } else { self.filled + every * periods };
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.left == self.rate.burst
    }
}

/// How many may be sent now: about each object, and of all.
#[derive(Debug)]
struct Limits {
    all: Bucket,
    /// Of the objects that something was sent about lately.
    objects: BTreeMap<u64, Bucket>,
}

impl Limits {
    fn new() -> Self {
        Self { all: Bucket::new(OF_ALL), objects: BTreeMap::new() }
    }

    fn take(&mut self, object: u64, now: Instant) -> bool {
        self.objects.entry(object).or_insert_with(|| Bucket::new(OF_ONE)).take(now) && self.all.take(now)
    }

    fn forget(&mut self, now: Instant) {
        self.objects.retain(|_, bucket| !bucket.is_full(now));
    }
}

/// An Event that was sent.
#[derive(Debug)]
struct Sent {
    name: String,
    namespace: String,
    count: u32,
    /// The count that the API has.
    told: u32,
    last: Instant,
    /// When the count may be told next.
    due: Instant,
}

/// What sending takes.
struct Sender<'a> {
    reporter: Reporter,
    api: &'a Api,
    options: &'a Options,
    metrics: &'a Metrics,
}

async fn take(run: &Sender<'_>, event: Outgoing, sent: &mut BTreeMap<u64, Sent>, limits: &mut Limits) {
    let now = Instant::now();
    let key = hash(&[&event.uid, &event.namespace, event.kind, &event.object, event.reason, &event.note]);
    if let Some(known) = sent.get_mut(&key) {
        known.last = now;
        if event.name.is_none() {
            known.count = known.count.saturating_add(1);
        }
        run.metrics.events_counted.inc();
        return;
    }
    let object = hash(&[&event.namespace, event.kind, &event.object]);
    if sent.len() >= REMEMBERED || !limits.take(object, now) {
        run.metrics.events_dropped.inc();
        return;
    }
    let namespace = if event.namespace.is_empty() { "default".to_owned() } else { event.namespace.clone() };
    let at = time();
    let name = event.name.clone().unwrap_or_else(|| {
        let id = hash(&[&run.options.node, &at, &key.to_string()]);
        // The name of the object may be as long as that of the Event may be.
        let object: String = event.object.chars().take(230).collect();
        format!("{object}.{id:016x}")
    });
    let body = body(run, &event, &namespace, &name, &at);
    let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
    match run.api.write(Method::POST, &path, JSON, &body).await {
        Ok(_) => run.metrics.events_sent.inc(),
        // Another node made it.
        Err(CallError::Refused { code: 409, .. }) => 0,
        Err(error) => {
            tracing::warn!(reason = event.reason, error = %ErrorChain(&error), "an Event cannot be sent");
            run.metrics.events_dropped.inc();
            return;
        }
    };
    let due = now + run.options.timing.count;
    sent.insert(key, Sent { name, namespace, count: 1, told: 1, last: now, due });
}

/// Tells the counts that have grown.
async fn tell_counts(run: &Sender<'_>, sent: &mut BTreeMap<u64, Sent>, limits: &mut Limits) {
    let mut gone = Vec::new();
    for (key, event) in sent.iter_mut().filter(|(_, sent)| sent.count > sent.told) {
        let now = Instant::now();
        if event.due > now {
            continue;
        }
        event.due = now + run.options.timing.count;
        if !limits.all.take(now) {
            continue;
        }
        let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events/{}", event.namespace, event.name);
        let body = json!({"series": {"count": event.count, "lastObservedTime": time()}});
        match run.api.write(Method::PATCH, &path, "application/merge-patch+json", &body).await {
            Ok(_) => event.told = event.count,
            // It has been forgotten by now: the next one is a new one.
            Err(error) if error.code() == Some(404) => gone.push(*key),
            Err(error) => {
                tracing::debug!(error = %ErrorChain(&error), "the count of an Event cannot be told");
                if !error.passes() {
                    event.told = event.count;
                }
            }
        }
    }
    for key in gone {
        sent.remove(&key);
    }
}

fn body(run: &Sender<'_>, event: &Outgoing, namespace: &str, name: &str, at: &str) -> Value {
    let within = event.note.char_indices().take_while(|(at, one)| at + one.len_utf8() <= NOTE);
    let note: String = within.map(|(_, one)| one).collect();
    let mut regarding = json!({"apiVersion": event.version, "kind": event.kind, "name": event.object});
    if let Some(fields) = regarding.as_object_mut() {
        for (field, value) in [("namespace", &event.namespace), ("uid", &event.uid)] {
            if !value.is_empty() {
                fields.insert(field.to_owned(), value.as_str().into());
            }
        }
    }
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "eventTime": at,
        "reportingController": run.reporter.controller,
        "reportingInstance": run.options.node.chars().take(128).collect::<String>(),
        "action": run.reporter.action,
        "reason": event.reason,
        "type": match event.weight { Weight::Normal => "Normal", Weight::Warning => "Warning" },
        "regarding": regarding,
        "note": note,
    })
}

/// The time as Events and Leases have it, with microseconds.
pub(crate) fn time() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_object_has_a_burst_and_then_one_at_a_time_and_leaves_room_for_others() {
        let mut limits = Limits::new();
        let mut taken = |object| (0..100).filter(|_| limits.take(object, Instant::now())).count();
        assert_eq!((taken(1), taken(2)), (10, 10));
        tokio::time::advance(OF_ONE.every * 3).await;
        assert_eq!((taken(1), taken(3)), (3, 10));
        assert_eq!((4..100).map(&mut taken).sum::<usize>(), 37);
        tokio::time::advance(OF_ONE.every * 1_000).await;
        limits.forget(Instant::now());
        assert!(limits.objects.is_empty());
    }

    #[test]
    fn times_have_microseconds() {
        let time = time();
        assert_eq!((time.len(), time.as_bytes().last()), ("2026-01-31T23:59:59.000000Z".len(), Some(&b'Z')), "{time}");
    }
}
