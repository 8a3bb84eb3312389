//! What the proxy is told: what the decisions mean by which gates redirect flows (`sluice_contract::proxy`).
//!
//! ```text
//! engine ── Operation ──> book: numbers for lists ── Update ──> feed ── a stream each ──> proxies
//!                                                                └── snapshot on disk, for a proxy that finds no policyd
//! ```
//!
//! A decision is told before the kernel gets it, and the loop waits for the proxies to have it, for [`PATIENCE`] at most: a
//! proxy holds a flow whose decision it does not know, and then refuses it, so a late one closes and opens nothing. A
//! decision is forgotten [`LINGER`] after the kernel has.

mod book;
mod feed;
mod plain;
mod server;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sluice_contract::proxy::{Names, Pod, SNAPSHOT_LIMIT, Snapshot, Update};
use sluice_daemon::log::ErrorChain;
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::compile::diff::Operation;
use tokio::time::Instant;

use self::book::Book;
pub(crate) use self::feed::Feed;
#[cfg(test)]
pub(crate) use self::feed::Place;
pub(crate) use self::server::serve;
use crate::metrics::Metrics;
use crate::store;
use crate::view::ProxyView;

/// How long the kernel waits for the proxies to know a decision.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// How long what a decision meant is remembered when the kernel has forgotten it: a connection's entry may name it until the
/// connection's next packet.
pub(crate) const LINGER: Duration = Duration::from_secs(60);

/// The loop's side.
#[derive(Debug)]
pub(crate) struct Proxies {
    book: Book,
    feed: Feed,
    file: PathBuf,
    metrics: Arc<Metrics>,
}

impl Proxies {
    /// Goes on from what policyd told last, as it stands in `file`: the kernel's maps may still have decisions of then.
    pub(crate) fn new(file: PathBuf, metrics: Arc<Metrics>) -> Self {
        let snapshot = read(&file);
        let book = Book::after(&snapshot);
        Self { book, feed: Feed::new(snapshot), file, metrics }
    }

    /// What streams are fed from.
    pub(crate) fn feed(&self) -> Feed {
        self.feed.clone()
    }

    /// Tells the decisions that these operations will write, and waits until the proxies know them.
    pub(crate) async fn announce(&mut self, operations: &[Operation]) {
        let update = self.book.announce(operations);
        if self.book.overflowed() {
            self.metrics.error("proxy_lists");
        }
        if update.is_empty() {
            return;
        }
        let version = self.publish(update);
        let begun = Instant::now();
        let late = self.feed.acknowledged(version, begun + PATIENCE).await;
        if late > 0 {
            tracing::warn!(late, "a proxy has not taken in what decisions mean: the gates get them nevertheless");
            self.metrics.proxy_late(late);
        }
        self.metrics.proxy_told(begun.elapsed());
    }

    /// The operations have been carried out: flows may have other decisions now.
    pub(crate) fn carried_out(&mut self, operations: &[Operation], now: Instant) {
        self.book.removed(operations, now);
        if !operations.is_empty() && self.book.decisions() > 0 {
            self.publish(Update::default());
        }
    }

    /// Forgets what nobody can need any more.
    pub(crate) fn expire(&mut self, now: Instant) {
        let update = self.book.expire(now);
        if !update.is_empty() {
            self.publish(update);
        }
    }

    /// The maps hold nothing any more from before this process.
    pub(crate) fn swept(&mut self) {
        let update = self.book.swept();
        if !update.is_empty() {
            self.publish(update);
        }
    }

    /// These pods have gates, by their endpoints' numbers.
    pub(crate) fn endpoints<'p>(&mut self, now: impl Iterator<Item = (u32, &'p PodKey)>) {
        let now: BTreeMap<u32, &PodKey> = now.collect();
        let changes: BTreeMap<u32, Option<Pod>> = self.feed.look(|told| {
            let told = &told.endpoints;
            let is_told = |id: &u32, pod: &PodKey| {
                told.get(id).is_some_and(|told| told.namespace == *pod.namespace && told.name == *pod.name)
            };
            let pod = |pod: &PodKey| Pod { namespace: pod.namespace.to_string(), name: pod.name.to_string() };
            let new = now.iter().filter(|(id, key)| !is_told(id, key)).map(|(id, key)| (*id, Some(pod(key))));
            let gone = told.keys().filter(|id| !now.contains_key(id)).map(|id| (*id, None));
            new.chain(gone).collect()
        });
        if !changes.is_empty() {
            self.publish(Update { endpoints: changes, ..Update::default() });
        }
    }

    /// Tells what is to be known of names, if it has changed.
    pub(crate) fn names(&self, names: Names) {
        if self.feed.look(|told| told.names != names) {
            self.publish(Update { names: Some(names), ..Update::default() });
        }
    }

    /// For the picture of the state.
    pub(crate) fn view(&self) -> ProxyView {
        self.feed.view()
    }

    fn publish(&self, update: Update) -> u64 {
        // Of gates no proxy needs to know to which nothing is redirected; with the first decision all that is told is written.
        let keep = !update.is_empty() && (!update.is_of_endpoints() || self.book.decisions() > 0);
        let version = self.feed.publish(update);
        self.metrics.proxy_update();
        if keep {
            let written = self.feed.look(serde_json::to_vec).map_err(|error| error.to_string());
            let written = written
                .and_then(|json| store::write(&self.file, &json).map_err(|error| ErrorChain(&error).to_string()));
            if let Err(error) = written {
                tracing::error!(error, "what the proxy is told could not be written to disk");
                self.metrics.error("proxy_snapshot");
            }
        }
        version
    }
}

/// What was told last. Nothing, if it cannot be read: then flows by decisions of then are refused until the gates have new
/// ones, a moment later.
fn read(file: &Path) -> Snapshot {
    let content = match store::read(file, SNAPSHOT_LIMIT) {
        Ok(None) => return Snapshot::default(),
        Ok(Some(content)) => content,
        Err(error) => {
            tracing::error!(error = %ErrorChain(&error), "what the proxy was told cannot be read");
            return Snapshot::default();
        }
    };
    serde_json::from_slice(&content).unwrap_or_else(|error| {
        tracing::error!(error = %error, "what the proxy was told is not understood");
        Snapshot::default()
    })
}
