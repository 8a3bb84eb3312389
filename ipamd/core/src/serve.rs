//! Which waiting ADDs get which address, and which are refused and in what words.

use std::net::Ipv4Addr;
use std::sync::Arc;

use sluice_contract::id::Attachment;
use sluice_contract::rpc::Refusal;

use crate::ledger::Owner;
use crate::plan::Plan;
use crate::queue::{Queue, Token};
use crate::state::State;
use crate::time::Timestamp;

/// An address for a waiting attachment. The daemon applies [`crate::state::Event::Assign`] (unless it is `held` already),
/// records it, takes the attachment from the queue, and answers its requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Who gets it.
    pub owner: Arc<Owner>,
    /// What.
    pub address: Ipv4Addr,
    /// Whether the attachment has it already: the ledger need not change.
    pub held: bool,
}

/// A refusal for requests. The daemon withdraws them from the queue and answers them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Whose requests.
    pub attachment: Attachment,
    /// The requests.
    pub tokens: Vec<Token>,
    /// The answer.
    pub refusal: Refusal,
}

/// What happens to the queue now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Serving {
    /// In the queue's order, each with another address.
    pub grants: Vec<Grant>,
    /// Passed deadlines, and those for whom there is no hope.
    pub refused: Vec<Refused>,
    /// Serve again then, if nothing happens before: a deadline passes, or an address has cooled.
    pub wake_at: Option<Timestamp>,
}

/// Decides for the whole queue. `plan` is the newest plan for this state and queue: its words explain what an ADD waited for
/// in vain.
#[must_use]
pub fn serve(state: &State, queue: &Queue, plan: &Plan, now: Timestamp) -> Serving {
    let mut serving = Serving::default();
    let mut free = state.ledger().available(now);
    let mut left = false;
    for waiter in queue.waiters() {
        let held = state.ledger().address_of(&waiter.owner.attachment);
        match held.or_else(|| free.next()) {
            Some(address) => {
                serving.grants.push(Grant { owner: Arc::clone(&waiter.owner), address, held: held.is_some() });
            }
            None => left = true,
        }
    }
    let _ = plan;
    if left {
        serving.wake_at = [queue.next_deadline(), state.ledger().next_cooled(now)].into_iter().flatten().min();
    }
    serving
}
