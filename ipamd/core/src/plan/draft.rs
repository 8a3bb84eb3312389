//! A plan in the making: what has been asked for so far, and what stands in the way.

use std::collections::BTreeSet;

use super::{Cause, Hopeless, Mistake, Plan, Planned, Relief};
use crate::cloud::{Api, CloudErrorKind};
use crate::op::{Op, OpKey};
use crate::state::{Obstacle, State};
use crate::time::Timestamp;

pub(super) struct Draft<'a> {
    pub(super) state: &'a State,
    pub(super) now: Timestamp,
    pub(super) plan: Plan,
    /// The network card whose pool is thought about.
    pub(super) card: u32,
    keys: BTreeSet<OpKey>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(state: &'a State, now: Timestamp) -> Self {
        Self { state, now, plan: Plan::default(), card: 0, keys: BTreeSet::new() }
    }

    /// Whether something is under way, or planned, on this object.
    pub(super) fn is_busy(&self, key: &OpKey) -> bool {
        self.keys.contains(key) || self.state.flights().contains_key(key)
    }

    /// What keeps an API from being called, if anything; the plan is to be made anew when that has passed.
    pub(super) fn obstacle(&mut self, api: Api) -> Option<&'a Obstacle> {
        let obstacle = self.state.obstacle(api, self.now)?;
        self.wake(obstacle.until);
        Some(obstacle)
    }

    /// Asks for an operation, unless its API is not worth calling. Answers what stands in the way.
    pub(super) fn ask(&mut self, op: Op, reason: String) -> Result<(), Cause> {
        if let Some(obstacle) = self.obstacle(op.api()) {
            return Err(cause_of(self.state, op.api(), obstacle));
        }
        self.keys.insert(op.key());
        self.plan.ops.push(Planned { op, reason });
        Ok(())
    }

    /// Notes why the pool does not grow; the first cause stands.
    pub(super) fn held_up(&mut self, cause: Cause) {
        let held_up = match self.card {
            0 => &mut self.plan.held_up,
            card => &mut self.plan.further.entry(card).or_default().held_up,
        };
        held_up.get_or_insert(cause);
    }

    /// Says whether some that wait for the card's addresses wait in vain, and why.
    pub(super) fn conclude(&mut self, hopeless: Option<Hopeless>) {
        match self.card {
            0 => self.plan.hopeless = hopeless,
            card => self.plan.further.entry(card).or_default().hopeless = hopeless,
        }
    }

    /// What has been concluded for the card.
    pub(super) fn hopeless(&self) -> Option<Hopeless> {
        match self.card {
            0 => self.plan.hopeless.clone(),
            card => self.plan.further.get(&card)?.hopeless.clone(),
        }
    }

    /// So many pods with one interface have found no card with a place.
    pub(super) fn conclude_spill(&mut self, left: u32) {
        if let Some(hopeless) = self.plan.hopeless.take_if(|_| self.plan.spills) {
            self.plan.hopeless = (left > 0).then_some(Hopeless { beyond: left, ..hopeless });
        }
    }

    /// The plan is to be made anew then.
    pub(super) fn wake(&mut self, at: Timestamp) {
        if at > self.now {
            self.plan.wake_at = Some(self.plan.wake_at.map_or(at, |other| other.min(at)));
        }
    }

    /// The operations that are planned and under way.
    pub(super) fn ops(&self) -> impl Iterator<Item = &Op> {
        self.state.flights().values().chain(self.plan.ops.iter().map(|planned| &planned.op))
    }
}

/// An obstacle as a cause.
pub(super) fn cause_of(state: &State, api: Api, obstacle: &Obstacle) -> Cause {
    let (message, until) = (obstacle.message.clone(), obstacle.until);
    match obstacle.kind {
        CloudErrorKind::Denied => Cause::Denied { api, message, until },
        CloudErrorKind::Throttled => Cause::Throttled { api, until },
        CloudErrorKind::AttachmentLimit => {
            let attached = state.ledger().enis().filter(|eni| eni.card == 0 && eni.device.is_some()).count();
            let limit = u32::try_from(attached).unwrap_or(u32::MAX);
            let addresses = state.ledger().for_pods(0);
            Cause::EniLimit { limit, by_setting: false, addresses, relief: Relief::None }
        }
        _ => Cause::Unavailable { api, message, mistake: Mistake::of(&obstacle.code, state), until },
    }
}
