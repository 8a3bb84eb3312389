//! Reading a number of kinds for as long as somebody listens: what their loops share.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use sluice_daemon::log::ErrorChain;
use tokio::sync::{Mutex, Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::backoff::{Backoff, Dice, hash};
use crate::call::{Api, CallError};
use crate::discover;
use crate::fresh::{Fresh, Turn};
use crate::kind::{Kind, Scope};
use crate::metrics::Metrics;
use crate::reflect::Reflector;
use crate::timing::{Options, Timing};

/// Kinds that are listed at the same time.
const LISTS: usize = 3;

/// The number under which [`Fresh`] has the asking which kinds are served is that of the kinds, and this one more the pulse.
const PULSE: usize = 1;

/// What is served: kind -> version. None: not known yet.
pub(crate) type Served = Option<BTreeMap<usize, &'static str>>;

/// What a session tells.
pub trait Tell: Send + 'static {
    /// Everything that exists has been told: for the first time, or again after [`Self::stale`].
    fn synced() -> Self;

    /// From now on what was told may be out of date, and why.
    fn stale(why: String) -> Self;

    /// Everything that a kind (`plural.group`) had at a revision has been told. None: nobody needs to know.
    fn upto(kind: &Arc<str>, revision: u64) -> Option<Self>
    where
        Self: Sized;

    /// Whether it tells of an object that is new, changed or gone.
    fn is_object(&self) -> bool;
}

/// What an event of a watch says of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `ADDED`, `MODIFIED`.
    Is,
    /// `DELETED`.
    Gone,
}

/// What is known of the objects of one kind, and so what there is to tell.
pub trait Objects: Send + 'static {
    /// What is told.
    type Told: Tell;

    /// Everything up to this revision is known; 0: nothing.
    fn revision(&self) -> u64;

    /// Revisions have begun anew, below what is known: all of it is as old as can be.
    fn set_back(&mut self);

    /// A list of everything begins.
    fn begin(&mut self, out: &mut Vec<Self::Told>);

    /// The revision of the list whose objects follow.
    fn listed_at(&mut self, revision: u64);

    /// An object of the list, as this version of its kind has it.
    fn item(&mut self, version: &str, object: Value, out: &mut Vec<Self::Told>);

    /// The list is complete, as of a revision: what was not in it is gone.
    fn end(&mut self, revision: u64, out: &mut Vec<Self::Told>);

    /// An event of the watch.
    fn event(&mut self, verb: Verb, version: &str, object: Value, out: &mut Vec<Self::Told>);

    /// Something that is no JSON, or too large, came in place of `what`.
    fn garbled(&mut self, what: &str, out: &mut Vec<Self::Told>);

    /// Everything up to a revision is known.
    fn bookmark(&mut self, revision: u64);

    /// The kind is not there any more.
    fn clear(&mut self, out: &mut Vec<Self::Told>);

    /// How many objects could not be read since this was last asked.
    fn take_malformed(&mut self) -> u64;
}

/// A kind that is read, and which of its objects.
#[derive(Debug, Clone)]
pub struct Watched {
    /// The kind.
    pub kind: &'static Kind,
    /// Which of its objects.
    pub scope: Scope,
}

/// What the loops of all kinds share. It tells until the receiver is dropped.
pub struct Session<T> {
    pub(crate) api: Api,
    pub(crate) options: Options,
    pub(crate) metrics: Metrics,
    pub(crate) told: mpsc::Sender<T>,
    pub(crate) kinds: Vec<Watched>,
    fresh: Mutex<Fresh>,
    pub(crate) served: watch::Sender<Served>,
    /// Asks anew which kinds are served.
    pub(crate) discover: Notify,
    /// Counts the times that all watches were to be begun anew.
    pub(crate) reopen: watch::Sender<u64>,
    /// Something was not answered since the server was there last.
    pub(crate) away: AtomicBool,
    /// Counts the times that the server was back: nobody waits any longer for what it was asked before, or to ask it again.
    pub(crate) back: watch::Sender<u64>,
    pub(crate) lists: Semaphore,
    began: Instant,
    /// When something was last heard on a watch, in milliseconds since `began`.
    heard: AtomicU64,
}

impl<T> fmt::Debug for Session<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("options", &self.options).field("kinds", &self.kinds).finish_non_exhaustive()
    }
}

impl<T: Tell> Session<T> {
    /// A session that reads these kinds, and tells what it reads by `told`. It reads nothing before [`Self::start`].
    #[must_use]
    pub fn new(api: Api, options: Options, metrics: Metrics, kinds: Vec<Watched>, told: mpsc::Sender<T>) -> Self {
        Self {
            api,
            options,
            metrics,
            told,
            // All kinds, the asking for kinds, and the pulse.
            fresh: Mutex::new(Fresh::new(kinds.len() + 1 + PULSE)),
            kinds,
            served: watch::Sender::new(None),
            discover: Notify::new(),
            reopen: watch::Sender::new(0),
            away: AtomicBool::new(false),
            back: watch::Sender::new(0),
            lists: Semaphore::new(LISTS),
            began: Instant::now(),
            heard: AtomicU64::new(0),
        }
    }

    /// Begins to read: one loop for each kind, in the order of the kinds of [`Self::new`]. They end with the set.
    pub async fn start<O: Objects<Told = T>>(self: &Arc<Self>, objects: &[Arc<Mutex<O>>]) -> JoinSet<()> {
        self.up(self.kinds.len() + PULSE).await;
        let mut tasks = JoinSet::new();
        for (number, (watched, known)) in self.kinds.iter().zip(objects).enumerate() {
            tasks.spawn(Reflector::new(Arc::clone(self), number, watched.clone(), Arc::clone(known)).follow());
        }
        tasks.spawn(discover::run(Arc::clone(self)));
        tasks.spawn(Arc::clone(self).pulse());
        tasks
    }

    /// Watches the CustomResourceDefinitions of the kinds that come with one, so that a kind that is installed is noticed at
    /// once and not when it is next asked for.
    pub async fn watch_definitions(self: Arc<Self>) {
        discover::watch_definitions(self).await;
    }

    /// What chance gives for a purpose: others than those of other nodes and purposes.
    #[must_use]
    pub fn dice(&self, purpose: &str) -> Dice {
        Dice::new(self.options.seed ^ hash(&[&self.options.node, purpose]))
    }

    /// Pauses between attempts, for a purpose.
    #[must_use]
    pub fn backoff(&self, purpose: &str) -> Backoff {
        Backoff::new(self.options.timing.least, self.options.timing.most, self.dice(purpose))
    }

    /// The API server.
    #[must_use]
    pub const fn api(&self) -> &Api {
        &self.api
    }

    /// How it goes about it.
    #[must_use]
    pub const fn options(&self) -> &Options {
        &self.options
    }

    /// What is counted.
    #[must_use]
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Tells something beside what is read. Whether somebody listens.
    pub async fn tell(&self, told: T) -> bool {
        self.told.send(told).await.is_ok()
    }

    /// The version in which the kind with this number is read now.
    #[must_use]
    pub fn version_of(&self, number: usize) -> Option<&'static str> {
        let kind = self.kinds.get(number)?.kind;
        if kind.required {
            return kind.versions.first().copied();
        }
        self.served.borrow().as_ref()?.get(&number).copied()
    }

    pub(crate) fn heard(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.store(now, Ordering::Relaxed);
    }

    /// A kind is read completely, or its watch goes on. Whether somebody listens.
    pub(crate) async fn up(&self, number: usize) -> bool {
        // Held while it is told, so that what is told is in order.
        let mut fresh = self.fresh.lock().await;
        let turn = fresh.up(number);
        self.metrics.failing.set(fresh.failing().try_into().unwrap_or(i64::MAX));
        if turn == Some(Turn::Synced) {
            tracing::info!("the cluster is known");
            return self.told.send(T::synced()).await.is_ok();
        }
        true
    }

    /// A kind cannot be read. Whether somebody listens.
    pub(crate) async fn down(&self, number: usize, doing: &str, error: &CallError) -> bool {
        let why = format!("{doing}: {}", ErrorChain(error));
        let mut fresh = self.fresh.lock().await;
        let turn = fresh.down(number, why.clone());
        self.metrics.failing.set(fresh.failing().try_into().unwrap_or(i64::MAX));
        if let Some(Turn::Stale { why: told }) = turn {
            tracing::warn!(reason = why, "what is known of the cluster may be out of date");
            return self.told.send(T::stale(told)).await.is_ok();
        }
        tracing::debug!(reason = why, "failed again");
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
            let number = self.kinds.len() + PULSE;
            match answer {
                // It is there, even if it says no; who may read what is for the kinds to find out.
                Ok(_) | Err(CallError::Refused { code: ..=428, .. }) => {
                    self.heard();
                    backoff.reset();
                    if self.away.swap(false, Ordering::Relaxed) {
                        self.back.send_modify(|count| *count = count.wrapping_add(1));
                    }
                    if !self.up(number).await {
                        return;
                    }
                }
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
