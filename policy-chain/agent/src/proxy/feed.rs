//! What all proxies are told, and what each has taken in.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use sluice_contract::proxy::{Snapshot, Update};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use crate::view::ProxyView;

/// Changes that are kept for proxies that lag; one that lags more is told everything anew.
const LOG: usize = 256;

/// What proxies are told. Clones are of the same feed.
#[derive(Debug, Clone)]
pub(crate) struct Feed(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    version: watch::Sender<u64>,
    acknowledged: Notify,
}

#[derive(Debug)]
struct Inner {
    told: Snapshot,
    log: VecDeque<Arc<Update>>,
    /// By connection: the version that is in force there; none before the first.
    streams: BTreeMap<u64, Option<u64>>,
    /// Connections that were waited for in vain, and have acknowledged nothing since: they are not waited for again.
    silent: BTreeSet<u64>,
    next: u64,
}

impl Inner {
    /// The connections where this version is not in force, without those that are not waited for.
    fn late(&self, version: u64) -> Vec<u64> {
        let late =
            self.streams.iter().filter(|(number, acked)| **acked < Some(version) && !self.silent.contains(*number));
        late.map(|(number, _)| *number).collect()
    }
}

/// A proxy's place in the feed, for as long as its stream lives.
#[derive(Debug)]
pub(crate) struct Place {
    feed: Feed,
    number: u64,
}

impl Feed {
    pub(super) fn new(told: Snapshot) -> Self {
        let (version, _) = watch::channel(told.version);
        let (log, streams, silent) = (VecDeque::new(), BTreeMap::new(), BTreeSet::new());
        let inner = Inner { told, log, streams, silent, next: 0 };
        Self(Arc::new(Shared { inner: Mutex::new(inner), version, acknowledged: Notify::new() }))
    }

    fn with<T>(&self, then: impl FnOnce(&mut Inner) -> T) -> T {
        then(&mut self.0.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at all that is told.
    pub(crate) fn look<T>(&self, then: impl FnOnce(&Snapshot) -> T) -> T {
        self.with(|inner| then(&inner.told))
    }

    /// Tells all proxies; gives the version.
    pub(super) fn publish(&self, mut update: Update) -> u64 {
        let version = self.with(|inner| {
            update.version = inner.told.version.saturating_add(1);
            inner.told.apply(update.clone());
            if inner.log.len() >= LOG {
                inner.log.pop_front();
            }
            inner.log.push_back(Arc::new(update));
            inner.told.version
        });
        self.0.version.send_replace(version);
        version
    }

    /// What somebody has to be told who knows `version`, or nothing.
    pub(crate) fn since(&self, version: Option<u64>) -> Vec<Update> {
        self.with(|inner| {
            let first = inner.log.front().map(|update| update.version);
            match version {
                Some(version) if version == inner.told.version => Vec::new(),
                Some(version) if first.is_some_and(|first| first <= version.saturating_add(1)) => {
                    inner.log.iter().filter(|update| update.version > version).map(|one| Update::clone(one)).collect()
                }
                _ => vec![inner.told.full()],
            }
        })
    }

    /// The version, which moves.
    pub(super) fn version(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    /// A place for a proxy.
    pub(crate) fn join(&self) -> Place {
        let number = self.with(|inner| {
            inner.next += 1;
            inner.streams.insert(inner.next, None);
            inner.next
        });
        Place { feed: self.clone(), number }
    }

    /// Waits until all proxies have this version in force. Gives how many have not at `deadline`; these are waited for again when
    /// they have acknowledged something.
    pub(super) async fn acknowledged(&self, version: u64, deadline: Instant) -> usize {
        loop {
            let moved = self.0.acknowledged.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if self.with(|inner| inner.late(version).is_empty()) {
                return 0;
            }
            if timeout_at(deadline, moved).await.is_err() {
                return self.with(|inner| {
                    let late = inner.late(version);
                    inner.silent.extend(&late);
                    late.len()
                });
            }
        }
    }

    pub(super) fn view(&self) -> ProxyView {
        self.with(|inner| ProxyView {
            connected: inner.streams.len(),
            version: inner.told.version,
            in_force: inner.streams.values().min().copied().flatten(),
            lists: inner.told.lists.len(),
            decisions: inner.told.decisions.len(),
            endpoints: inner.told.endpoints.len(),
        })
    }
}

impl Place {
    /// The proxy has this version in force.
    pub(crate) fn acknowledge(&self, version: u64) {
        self.feed.with(|inner| {
            // One that nobody has told cannot be in force.
            if version <= inner.told.version
                && let Some(acked) = inner.streams.get_mut(&self.number)
            {
                *acked = (*acked).max(Some(version));
                inner.silent.remove(&self.number);
            }
        });
        self.feed.0.acknowledged.notify_waiters();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.feed.with(|inner| {
            inner.streams.remove(&self.number);
            inner.silent.remove(&self.number);
        });
        self.feed.0.acknowledged.notify_waiters();
    }
}
