//! Flows: what gates and proxies judged, with names, for people and programs.
//!
//! ```text
//! gates ── ring in the kernel ─┐ a look every 200 ms
//! proxies ── records ──────────┴─> loop: whose addresses these are ──> ring ──> observer: Hubble's protocol
//!                                                                        └──> counters
//! ```
//!
//! The loop writes down who an address was at that moment, shared between all records of it; everything else that a flow says
//! (strings, policies, Hubble's numbers) is made when somebody reads it. What there was no room for is counted, and told
//! where it is missing.

mod counters;
mod export;
mod message;
mod observer;
mod parties;
mod record;
mod serve;
mod tls;

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use self::tests::samples;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

pub(crate) use self::counters::FlowMetrics;
pub use self::export::Export;
pub(crate) use self::export::export;
pub(crate) use self::message::Node;
pub(crate) use self::observer::Observer;
pub(crate) use self::parties::{Gated, Parties, Pods};
pub(crate) use self::record::{LostAt, Packet, Record, Requested, What};
pub(crate) use self::serve::{serve_port, serve_socket};
pub(crate) use self::tls::Tls;
pub use self::tls::TlsFiles;

/// Seconds over which the rate of flows is told.
const RATE_OVER: u64 = 60;

/// The last flows, for those who read them. The loop alone writes.
#[derive(Debug, Clone)]
pub(crate) struct Flows {
    ring: Arc<Mutex<Ring>>,
    last: watch::Sender<u64>,
    limit: usize,
    metrics: FlowMetrics,
}

#[derive(Debug, Default)]
struct Ring {
    records: VecDeque<Arc<Record>>,
    /// The number of the last record; numbers grow by one.
    last: u64,
    /// Flows so far, without what tells of losses.
    seen: u64,
    lost: u64,
    /// Flows by second, the newest last.
    rate: VecDeque<(u64, u64)>,
}

/// How many there are and were.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Counts {
    /// Flows that can be looked at.
    pub(crate) kept: usize,
    /// Flows that are kept at most.
    pub(crate) limit: usize,
    /// Flows so far.
    pub(crate) seen: u64,
    /// Events that did not become flows.
    pub(crate) lost: u64,
    /// Flows a second, over the last minute.
    pub(crate) rate: f64,
}

impl Flows {
    /// None yet; `limit` are kept, and with 0 none are written down.
    pub(crate) fn new(limit: usize, metrics: FlowMetrics) -> Self {
        Self { ring: Arc::default(), last: watch::Sender::new(0), limit, metrics }
    }

    fn ring(&self) -> std::sync::MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether flows are written down at all.
    pub(crate) const fn wanted(&self) -> bool {
        self.limit > 0
    }

    /// Writes records down, in this order; their numbers are given here.
    pub(crate) fn add(&self, records: impl IntoIterator<Item = Record>) {
        if !self.wanted() {
            return;
        }
        let mut ring = self.ring();
        let before = ring.last;
        for mut record in records {
            ring.last += 1;
            record.number = ring.last;
            self.metrics.count(&record);
            match &record.what {
                What::Lost { count, .. } => ring.lost = ring.lost.saturating_add(*count),
                What::Packet(_) | What::Request(_) => ring.count(seconds(record.time)),
            }
            if ring.records.len() >= self.limit {
                ring.records.pop_front();
            }
            ring.records.push_back(Arc::new(record));
        }
        let last = ring.last;
        drop(ring);
        if last != before {
            self.last.send_replace(last);
        }
    }

    /// Records with numbers above `after`, oldest first, `most` of them at most; and how many with numbers above it are
    /// not kept any more.
    pub(crate) fn after(&self, after: u64, most: usize) -> (Vec<Arc<Record>>, u64) {
        let ring = self.ring();
        let oldest = ring.records.front().map_or(ring.last + 1, |record| record.number);
        let gone = oldest.saturating_sub(after + 1);
        let skip = usize::try_from((after + 1).saturating_sub(oldest)).unwrap_or(usize::MAX);
        (ring.records.iter().skip(skip).take(most).cloned().collect(), gone)
    }

    /// Wakes when there are new ones.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    /// How many there are and were.
    pub(crate) fn counts(&self, now: SystemTime) -> Counts {
        let ring = self.ring();
        let since = seconds(now).saturating_sub(RATE_OVER);
        let lately: u64 = ring.rate.iter().filter(|(second, _)| *second > since).map(|(_, count)| count).sum();
        #[expect(clippy::cast_precision_loss, reason = "a rate is an estimate")]
        let rate = lately as f64 / RATE_OVER as f64;
        Counts { kept: ring.records.len(), limit: self.limit, seen: ring.seen, lost: ring.lost, rate }
    }
}

impl Ring {
    fn count(&mut self, second: u64) {
        self.seen = self.seen.saturating_add(1);
        match self.rate.back_mut() {
            // Clocks may go back a little.
            Some((last, count)) if *last >= second => *count += 1,
            _ => self.rate.push_back((second, 1)),
        }
        while self.rate.len() > usize::try_from(RATE_OVER).unwrap_or(usize::MAX) {
            self.rate.pop_front();
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
