//! The ADDs that wait for an address: first come, first served, each until its deadline.
//!
//! An attachment waits once, however many requests ask for it: a request for an attachment that waits already joins it and
//! gets the same answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use sluice_contract::id::Attachment;
use sluice_contract::rpc::{Refusal, RefusalCode};

use crate::ledger::Owner;
use crate::time::Timestamp;

/// Attachments that may wait at once. A node has far fewer pods.
pub const QUEUE_LIMIT: usize = 1024;

/// Requests for one attachment that may wait at once.
pub const JOINED_LIMIT: usize = 16;

/// One waiting request, as the daemon numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// An attachment that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiter {
    /// Who will hold the address.
    pub owner: Arc<Owner>,
    /// The network card whose ENI the address has to be of; none for a pod with one interface, which has it of card 0 unless that
    /// is full.
    pub card: Option<u32>,
    /// Since when it waits.
    pub since: Timestamp,
    /// The requests that wait for it, each with its deadline.
    pub tokens: BTreeMap<Token, Timestamp>,
}

/// All that wait.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queue {
    order: VecDeque<Attachment>,
    waiters: BTreeMap<Attachment, Waiter>,
    /// What each request waits for: one attachment, or those of all interfaces of a pod that has several.
    owners: BTreeMap<Token, BTreeSet<Attachment>>,
}

impl Queue {
    /// Attachments that wait: the planner's demand.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        u32::try_from(self.order.len()).unwrap_or(u32::MAX)
    }

    /// Those of them that wait for an address of one network card and no other, by card.
    #[must_use]
    pub fn waiting_by_card(&self) -> BTreeMap<u32, u32> {
        let mut waiting = BTreeMap::new();
        for card in self.waiters.values().filter_map(|waiter| waiter.card) {
            *waiting.entry(card).or_default() += 1;
        }
        waiting
    }

    /// Those that wait, the longest-waiting first.
    pub fn waiters(&self) -> impl Iterator<Item = &Waiter> {
        self.order.iter().filter_map(|attachment| self.waiters.get(attachment))
    }

    /// The first deadline of all.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.waiters.values().flat_map(|waiter| waiter.tokens.values()).min().copied()
    }

    /// Whether an attachment waits.
    #[must_use]
    pub fn waits(&self, attachment: &Attachment) -> bool {
        self.waiters.contains_key(attachment)
    }

    /// A request begins to wait, until `deadline`, for an address of `card` ([`Waiter::card`]). It may wait for several attachments.
    ///
    /// # Errors
    /// [`RefusalCode::QueueFull`] when too many wait already; nothing has changed then.
    pub fn join(
        &mut self,
        token: Token,
        owner: Arc<Owner>,
        card: Option<u32>,
        deadline: Timestamp,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let attachment = owner.attachment.clone();
        let full = |what: String| {
            Err(Refusal::new(RefusalCode::QueueFull, what)
                .hint("the runtime will try again; see `sluice status` for what the pool waits for")
                .retry_after(Duration::from_secs(5)))
        };
        match self.waiters.get_mut(&attachment) {
            Some(waiter) if waiter.tokens.len() >= JOINED_LIMIT => {
                return full(format!("{JOINED_LIMIT} requests wait for an address for {attachment} already"));
            }
            Some(waiter) => {
                waiter.tokens.insert(token, deadline);
            }
            None if self.order.len() >= QUEUE_LIMIT => {
                return full(format!("{QUEUE_LIMIT} pods wait for an address on this node already"));
            }
            None => {
                let tokens = BTreeMap::from([(token, deadline)]);
                self.waiters.insert(attachment.clone(), Waiter { owner, card, since: now, tokens });
                self.order.push_back(attachment.clone());
            }
        }
        self.owners.entry(token).or_default().insert(attachment);
        Ok(())
    }

    /// A request is withdrawn, as when its socket closes. An attachment goes with the last of its requests.
    ///
    /// Answers whether it waited.
    pub fn withdraw(&mut self, token: Token) -> bool {
        let Some(attachments) = self.owners.remove(&token) else { return false };
        for attachment in attachments {
            if let Some(waiter) = self.waiters.get_mut(&attachment) {
                waiter.tokens.remove(&token);
                if waiter.tokens.is_empty() {
                    self.remove(&attachment);
                }
            }
        }
        true
    }

    /// An attachment stops waiting: it has been served, or refused, or its DEL has come. Answers the requests to be told.
    pub fn remove(&mut self, attachment: &Attachment) -> Vec<Token> {
        let Some(waiter) = self.waiters.remove(attachment) else { return Vec::new() };
        self.order.retain(|waiting| waiting != attachment);
        for token in waiter.tokens.keys() {
            if let Some(attachments) = self.owners.get_mut(token) {
                attachments.remove(attachment);
                if attachments.is_empty() {
                    self.owners.remove(token);
                }
            }
        }
        waiter.tokens.into_keys().collect()
    }
}

#[cfg(test)]
mod tests;
