//! What was asked of EC2, by whom, and what came of it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::Serialize;

/// Calls that are kept; older ones are counted and forgotten.
const KEPT_CALLS: usize = 10_000;
const LONGEST_SUMMARY: usize = 400;

/// One call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CallRecord {
    /// Its number, from 1.
    pub number: u64,
    /// When it came, in milliseconds since the world began.
    pub at_millis: u64,
    /// Who called, as the server knows it: the source address.
    pub caller: String,
    /// The action, also one that does not exist.
    pub action: String,
    /// Its parameters, shortened.
    pub parameters: String,
    /// `ok`, an error code, or `no-answer`.
    pub outcome: String,
    /// How long the answer took, in milliseconds.
    pub answer_millis: u64,
}

/// The log of calls.
#[derive(Debug, Default)]
pub struct CallLog {
    records: VecDeque<CallRecord>,
    total: u64,
    counts: BTreeMap<String, u64>,
}

impl CallLog {
    /// The calls that are kept, oldest first.
    pub fn records(&self) -> impl DoubleEndedIterator<Item = &CallRecord> {
        self.records.iter()
    }

    /// How many calls there were, forgotten ones too. It is also the number of the last one.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How many calls there were of each action, forgotten ones too, and how many requests to the metadata service
    /// ([`IMDS`](super::IMDS)).
    #[must_use]
    pub fn counts(&self) -> &BTreeMap<String, u64> {
        &self.counts
    }

    /// Counts something without a record of its own.
    pub(super) fn count(&mut self, what: &str) {
        let count = self.counts.entry(what.to_owned()).or_default();
        *count = count.saturating_add(1);
    }

    pub(super) fn add(
        &mut self,
        now: Duration,
        caller: &str,
        action: &str,
        parameters: &str,
        outcome: &str,
        took: Duration,
    ) {
        self.total = self.total.saturating_add(1);
        let action: String = action.chars().take(80).collect();
        // Names that do not exist come from outside: they share one count, so that nobody can grow the map.
        let known = action.parse::<super::api::Action>().is_ok();
        self.count(if known { &action } else { "(unknown)" });
        if self.records.len() >= KEPT_CALLS {
            self.records.pop_front();
        }
        self.records.push_back(CallRecord {
            number: self.total,
            at_millis: millis(now),
            caller: caller.to_owned(),
            action,
            parameters: parameters.chars().take(LONGEST_SUMMARY).collect(),
            outcome: outcome.to_owned(),
            answer_millis: millis(took),
        });
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
