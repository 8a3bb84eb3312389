//! Questions that wait for their answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sluice_policy_core::l7::dns::Name;
use tokio::time::Instant;

use super::wire::{Answer, failure, rcode, same_question};
use crate::policy::Rules;

/// A place among the questions of a pod that wait.
#[derive(Debug)]
pub(super) struct Slot(Arc<AtomicU32>);

impl Slot {
    /// A place, if there are fewer than `limit` taken.
    pub(super) fn take(of: &Arc<AtomicU32>, limit: u32) -> Option<Self> {
        let taken = of.fetch_add(1, Ordering::Relaxed);
        // Given back if it is one too many.
        let slot = Self(Arc::clone(of));
        (taken < limit).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A question that was forwarded.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) id: u16,
    /// As it was asked, letter by letter.
    pub(super) question: Box<[u8]>,
    pub(super) name: Option<Name>,
    pub(super) qtype: u16,
    /// Whether its answer may be a series of messages.
    pub(super) transfer: bool,
    pub(super) at: Instant,
    pub(super) rule: Option<Arc<str>>,
    pub(super) reason: Arc<str>,
    pub(super) would_pass: Option<bool>,
    pub(super) rules: Arc<Rules>,
    #[expect(dead_code, reason = "held for as long as the question waits")]
    pub(super) slot: Slot,
}

impl Asked {
    /// The answer that says that there is none: SERVFAIL.
    pub(super) fn failure(&self) -> Vec<u8> {
        failure(self.id, &self.question)
    }
}

/// The questions that one client asked one server.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    by_id: HashMap<u16, Vec<Asked>>,
    count: usize,
}

/// Whose answer a message is.
#[derive(Debug)]
pub(super) enum Found {
    /// The question's; it waits no more.
    Asked(Box<Asked>),
    /// That of a question whose answer is a series of messages: it waits on.
    More,
    /// Nobody's: no question with its number waits.
    Unasked,
    /// Questions with its number wait, and its own is none of them: made up by somebody, or meant for a question of before.
    Other,
}

impl Waiting {
    pub(super) const fn len(&self) -> usize {
        self.count
    }

    /// Whether the same question with the same number waits already: its client asks again.
    pub(super) fn has(&self, id: u16, question: &[u8]) -> bool {
        self.by_id.get(&id).is_some_and(|asked| asked.iter().any(|asked| *asked.question == *question))
    }

    pub(super) fn add(&mut self, asked: Asked) {
        self.by_id.entry(asked.id).or_default().push(asked);
        self.count += 1;
    }

    /// The question that a message answers.
    pub(super) fn take(&mut self, answer: &Answer<'_>) -> Found {
        let Some(waiting) = self.by_id.get_mut(&answer.id) else { return Found::Unasked };
        let at = match answer.question {
            // Letter by letter first: a client may have asked for a name in two ways.
            Some(question) => waiting
                .iter()
                .position(|asked| *asked.question == *question)
                .or_else(|| waiting.iter().position(|asked| same_question(&asked.question, question))),
            // Servers that do not understand a query may leave its question out; so do the later messages of a transfer.
            None => {
                let [only] = waiting.as_slice() else { return Found::Other };
                (answer.rcode != rcode::NO_ERROR || only.transfer).then_some(0)
            }
        };
        let Some(at) = at else { return Found::Other };
        if let Some(asked) = waiting.get_mut(at).filter(|asked| asked.transfer && answer.rcode == rcode::NO_ERROR) {
            asked.at = Instant::now();
            return Found::More;
        }
        let asked = waiting.swap_remove(at);
        if waiting.is_empty() {
            self.by_id.remove(&answer.id);
        }
        self.count -= 1;
        Found::Asked(Box::new(asked))
    }

    /// Those that have waited longer than `timeout`.
    pub(super) fn overdue(&mut self, now: Instant, timeout: Duration) -> Vec<Asked> {
        let mut overdue = Vec::new();
        if self.count == 0 {
            return overdue;
        }
        self.by_id.retain(|_, waiting| {
            overdue.extend(waiting.extract_if(.., |asked| now.saturating_duration_since(asked.at) > timeout));
            !waiting.is_empty()
        });
        self.count -= overdue.len();
        overdue
    }

    /// All.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Asked> {
        self.count = 0;
        std::mem::take(&mut self.by_id).into_values().flatten()
    }
}
