//! Numbers for lists of rules, and which decisions need them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use sluice_contract::proxy::{Decision, Snapshot, Update};
use sluice_policy_core::compile::diff::Operation;
use sluice_policy_core::flow::{Judgement, List, Lists, Verdict};
use tokio::time::Instant;

use super::{LINGER, plain};

/// Most places at which decisions name lists, all together. A decision beyond it lets nothing pass.
const MAX_NAMED: usize = 1 << 20;

/// Decisions that are remembered for [`LINGER`]; the oldest are forgotten before their time if there are more.
const MAX_LEAVING: usize = 65_536;

/// Whether flows come to the proxy by a decision: in force, or as a dry run.
fn is_for_proxy(judgement: &Judgement) -> bool {
    let redirects = |judgement: &Judgement| matches!(judgement.verdict, Verdict::Redirect(_));
    redirects(judgement) || judgement.audit.as_deref().is_some_and(redirects)
}

/// What has numbers.
#[derive(Debug, Default)]
pub(super) struct Book {
    numbers: HashMap<Arc<List>, u32>,
    /// The list of a number, and how many decisions name it.
    lists: HashMap<u32, (Arc<List>, usize)>,
    /// The lists that a decision names, its dry run included.
    decisions: HashMap<u32, Vec<u32>>,
    /// Decisions that the kernel has forgotten.
    leaving: VecDeque<(Instant, u32)>,
    /// What was told before this process.
    before: Option<Update>,
    next: u32,
    named: usize,
    overflowed: bool,
}

impl Book {
    /// A book of nothing, whose numbers are above those of what was told before.
    pub(super) fn after(told: &Snapshot) -> Self {
        let next = told.lists.keys().next_back().map_or(1, |last| last.saturating_add(1));
        let lists = told.lists.keys().map(|number| (*number, None)).collect();
        let decisions = told.decisions.keys().map(|number| (*number, None)).collect();
        let before = Update { lists, decisions, ..Update::default() };
        Self { next, before: Some(before).filter(|before| !before.is_empty()), ..Self::default() }
    }

    /// What has to be told before these operations are carried out.
    pub(super) fn announce(&mut self, operations: &[Operation]) -> Update {
        let mut update = Update::default();
        for operation in operations {
            if let Operation::SetDecision(id, judgement) = operation
                && is_for_proxy(judgement)
            {
                // One that is on its way out, or is told again.
                self.leaving.retain(|(_, leaving)| *leaving != id.0);
                let old = self.decisions.remove(&id.0);
                let decision = self.decision(id.0, judgement, &mut update);
                update.decisions.insert(id.0, Some(decision));
                for number in old.into_iter().flatten() {
                    self.release(number, &mut update);
                }
                if let Some(before) = &mut self.before {
                    before.decisions.remove(&id.0);
                }
            }
        }
        update
    }

    /// Whether there were too many rules since this was asked last.
    pub(super) const fn overflowed(&mut self) -> bool {
        std::mem::replace(&mut self.overflowed, false)
    }

    fn decision(&mut self, id: u32, judgement: &Judgement, update: &mut Update) -> Decision {
        let mut named = Vec::new();
        let mut number = |lists: &Lists| {
            if self.named + lists.len() > MAX_NAMED {
                self.overflowed = true;
                return None;
            }
            self.named += lists.len();
            let numbers: Vec<u32> = lists.iter().filter_map(|list| self.number(list, update)).collect();
            named.extend_from_slice(&numbers);
            Some(numbers)
        };
        let verdict = plain::verdict(judgement, &mut number);
        let audit = judgement.audit.as_ref().map(|audit| plain::verdict(audit, &mut number));
        self.decisions.insert(id, named);
        Decision { verdict, audit }
    }

    fn number(&mut self, list: &Arc<List>, update: &mut Update) -> Option<u32> {
        if let Some(number) = self.numbers.get(list) {
            let (_, uses) = self.lists.get_mut(number)?;
            *uses += 1;
            return Some(*number);
        }
        let told = plain::list(list)?;
        let number = self.next;
        self.next = self.next.saturating_add(1);
        self.numbers.insert(Arc::clone(list), number);
        self.lists.insert(number, (Arc::clone(list), 1));
        update.lists.insert(number, Some(told));
        Some(number)
    }

    fn release(&mut self, number: u32, update: &mut Update) {
        self.named = self.named.saturating_sub(1);
        let Some((list, uses)) = self.lists.get_mut(&number) else { return };
        *uses -= 1;
        if *uses == 0 {
            self.numbers.remove(list);
            self.lists.remove(&number);
            update.lists.insert(number, None);
        }
    }

    /// The kernel has forgotten decisions.
    pub(super) fn removed(&mut self, operations: &[Operation], now: Instant) {
        for operation in operations {
            let gone = match operation {
                Operation::RemoveDecision(id) => id.0,
                Operation::SetDecision(id, judgement) if !is_for_proxy(judgement) => id.0,
                _ => continue,
            };
            if self.decisions.contains_key(&gone) {
                self.leaving.push_back((now, gone));
            }
        }
    }

    /// What may be forgotten by now.
    pub(super) fn expire(&mut self, now: Instant) -> Update {
        let mut update = Update::default();
        while let Some((since, id)) = self.leaving.front().copied() {
            if now.saturating_duration_since(since) < LINGER && self.leaving.len() <= MAX_LEAVING {
                break;
            }
            self.leaving.pop_front();
            for number in self.decisions.remove(&id).into_iter().flatten() {
                self.release(number, &mut update);
            }
            update.decisions.insert(id, None);
        }
        update
    }

    /// What was told before this process and is not in force any more.
    pub(super) fn swept(&mut self) -> Update {
        self.before.take().unwrap_or_default()
    }

    /// How many decisions redirect, those of before included.
    pub(super) fn decisions(&self) -> usize {
        self.decisions.len() + self.before.as_ref().map_or(0, |before: &Update| before.decisions.len())
    }
}
