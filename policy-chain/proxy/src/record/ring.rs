//! The last records, in memory.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Record, Recorder};

/// Parts of the ring, so that threads seldom meet at one.
const SHARDS: usize = 16;

/// A record and its number. Numbers grow by one with every record of the process.
pub type Numbered = (u64, Arc<Record>);

/// The last records. Each thread writes to a part of its own.
#[derive(Debug)]
pub struct Ring {
    shards: Vec<Mutex<VecDeque<Numbered>>>,
    limit: usize,
    next: AtomicU64,
    refused: AtomicU64,
    would_be_refused: AtomicU64,
}

thread_local! {
    static SHARD: Cell<usize> = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS)
    };
}

impl Ring {
    /// A ring of about `limit` records: each part of it holds that many, shared by the number of threads.
    #[must_use]
    pub fn new(limit: usize, threads: usize) -> Self {
        let limit = limit.div_ceil(threads.clamp(1, SHARDS));
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, limit, next: AtomicU64::new(1), refused: AtomicU64::new(0), would_be_refused: AtomicU64::new(0) }
    }

    /// Records with numbers above `after`, ascending, the newest `most` of them.
    #[must_use]
    pub fn after(&self, after: u64, most: usize) -> Vec<Numbered> {
        let mut found: Vec<Numbered> = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let new = shard.iter().rev().take_while(|(number, _)| *number > after).take(most);
            found.extend(new.map(|(number, record)| (*number, Arc::clone(record))));
        }
        found.sort_unstable_by_key(|(number, _)| *number);
        let surplus = found.len().saturating_sub(most);
        found.drain(..surplus);
        found
    }

    /// The number that the last record has; 0 before there is one.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.next.load(Ordering::Relaxed).saturating_sub(1)
    }

    /// Records of what did not pass.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Records of what passed and would not if the policies that are dry runs were in force.
    #[must_use]
    pub fn would_be_refused(&self) -> u64 {
        self.would_be_refused.load(Ordering::Relaxed)
    }
}

impl Recorder for Ring {
    fn record(&self, record: Record) {
        if !record.passes {
            self.refused.fetch_add(1, Ordering::Relaxed);
        } else if record.would_pass == Some(false) {
            self.would_be_refused.fetch_add(1, Ordering::Relaxed);
        }
        let Some(shard) = self.shards.get(SHARD.get()) else { return };
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if shard.len() >= self.limit {
            shard.pop_front();
        }
        // Within the lock, so that a part's numbers ascend.
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        shard.push_back((number, Arc::new(record)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::request;

    #[test]
    fn the_newest_are_kept() {
        let ring = Ring::new(4, 1);
        assert!(ring.after(0, 10).is_empty());
        for _ in 0..6 {
            ring.record(request("/", true));
        }
        let numbers = |after, most| ring.after(after, most).iter().map(|(number, _)| *number).collect::<Vec<_>>();
        assert_eq!(numbers(0, 10), [3, 4, 5, 6]);
        assert_eq!(numbers(4, 10), [5, 6]);
        assert_eq!(numbers(0, 2), [5, 6]);
        assert_eq!(ring.last(), 6);
    }

    #[test]
    fn numbers_of_several_threads_are_told_in_order() {
        let ring = Arc::new(Ring::new(1024, 4));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let ring = Arc::clone(&ring);
                std::thread::spawn(move || (0..100).for_each(|count| ring.record(request("/", count % 2 == 0))))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let numbers: Vec<u64> = ring.after(0, 1000).iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (1..=400).collect::<Vec<_>>());
        assert_eq!(ring.refused(), 200);
    }
}
