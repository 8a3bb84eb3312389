//! What connection tracking knows of pods that are gone: flows that are open still, connections that a service proxy has
//! just sent their way. It is forgotten before their address is another pod's, which would get the packets otherwise.
//!
//! That is done late in the cooldown, so that what peers try in vain until then goes with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use sluice_ipamd_core::ledger::AddressState;
use sluice_ipamd_core::time::Timestamp;
use tokio::time::Instant;

use super::Daemon;
use super::jobs::Job;
use crate::cloud::Cloud;
use crate::kernel::{Kernel, KernelError};
use crate::log::ErrorChain;

/// So long before an address is free again its flows are to be forgotten: long enough for another attempt.
const AHEAD: Duration = Duration::from_secs(10);

/// So long a short cooldown is left alone, for others to go with it.
const GATHER: Duration = Duration::from_secs(1);

/// Between two looks at all flows of the node. What would be due until the next goes with the one before, so that nothing
/// with a cooldown of this length or more comes too late.
const GAP: Duration = Duration::from_secs(5);

/// Addresses that wait. From half of it on they do not wait for their time.
const WAITING_MOST: usize = 16_384;

/// An address whose pod is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Left {
    due: Instant,
    /// When it can be another pod's.
    free: Instant,
    address: IpAddr,
    /// What the pod had beside it.
    companion: Option<Ipv6Addr>,
    /// The address by which it left in the other family; the next pod of the address has the same.
    egress: Option<IpAddr>,
}

/// The addresses whose flows are to be forgotten.
#[derive(Debug)]
pub(super) struct Forgetting {
    waiting: BTreeSet<Left>,
    runs: bool,
    not_before: Instant,
    /// Whether it failed the last time, which was told then.
    fails: bool,
    /// The kernel cannot do it.
    is_impossible: bool,
}

impl Forgetting {
    pub(super) const fn new(now: Instant) -> Self {
        Self { waiting: BTreeSet::new(), runs: false, not_before: now, fails: false, is_impossible: false }
    }

    /// Answers whether there is room for it.
    fn wait(&mut self, left: Left) -> bool {
        if self.is_impossible {
            return true;
        }
        let has_room = self.waiting.len() < WAITING_MOST;
        if has_room {
            self.waiting.insert(left);
        }
        has_room
    }

    fn is_crowded(&self) -> bool {
        self.waiting.len() >= WAITING_MOST / 2
    }

    /// When there is something to do; none while it is being done.
    pub(super) fn wake(&self) -> Option<Instant> {
        let first = self.waiting.first().filter(|_| !self.runs)?;
        Some(if self.is_crowded() { self.not_before } else { first.due.max(self.not_before) })
    }

    /// What is to be forgotten now.
    fn due(&mut self, now: Instant) -> Vec<Left> {
        if self.wake().is_none_or(|at| at > now) {
            return Vec::new();
        }
        let all = self.is_crowded();
        let is_due = |left: &Left| all || left.due <= now + GAP;
        let (due, later): (BTreeSet<Left>, BTreeSet<Left>) =
            std::mem::take(&mut self.waiting).into_iter().partition(is_due);
        self.waiting = later;
        due.into_iter().collect()
    }
}

impl<C: Cloud, K: Kernel> Daemon<C, K> {
    /// The pod of an address is gone. Without a cooldown it never ran.
    pub(super) fn leaves_flows(&mut self, address: IpAddr, companion: Option<Ipv6Addr>, cooldown: Duration) {
        if cooldown.is_zero() {
            return;
        }
        let now = Instant::now();
        let due = now + cooldown.saturating_sub(AHEAD).max(GATHER);
        let egress = self.parts.config.network.egress_of(address);
        if !self.forgetting.wait(Left { due, free: now + cooldown, address, companion, egress }) {
            self.parts.metrics.flows_left();
        }
    }

    /// The addresses that cool, and until when.
    pub(super) fn cooling(&self) -> BTreeMap<IpAddr, Timestamp> {
        let blocks = self.state.ledger().enis().flat_map(|eni| eni.blocks.values());
        let cooling = blocks.flat_map(|block| &block.addresses).filter_map(|(address, state)| match state {
            AddressState::Cooling { until } => Some((*address, *until)),
            AddressState::Free { .. } | AddressState::Assigned { .. } | AddressState::Quarantined { .. } => None,
        });
        cooling.collect()
    }

    /// Pods are gone of which nobody has told: those of the addresses that cool and did not before.
    pub(super) fn cool_since(&mut self, before: &BTreeMap<IpAddr, Timestamp>) {
        let now = self.parts.clock.now();
        for (address, until) in self.cooling() {
            if before.get(&address) != Some(&until) {
                let companion = self.state.ledger().eni_of(address).and_then(|eni| eni.companion(address));
                self.leaves_flows(address, companion, until.since(now));
            }
        }
    }

    /// Has flows forgotten, if it is time to.
    pub(super) fn forget_flows(&mut self, now: Instant) {
        let mut due = self.forgetting.due(now);
        let ledger = self.state.ledger();
        // Not those of an address that a pod has again, or that is another node's by now.
        due.retain(|left| {
            let state = ledger.address(left.address);
            matches!(state, Some(AddressState::Free { .. } | AddressState::Cooling { .. }))
        });
        if !due.is_empty() {
            self.forgetting.runs = true;
            self.forgetting.not_before = now + GAP;
            self.spawn(Job::ForgetFlows(due));
        }
    }

    /// What came of it.
    pub(super) fn forgot_flows(&mut self, left: Vec<Left>, forgotten: Result<usize, KernelError>) {
        match forgotten {
            Ok(count) => {
                self.forgetting.runs = false;
                self.forgetting.fails = false;
                self.parts.metrics.flows_forgotten(count);
                if count > 0 {
                    tracing::info!(count, addresses = left.len(), "flows of pods that are gone are forgotten");
                }
            }
            Err(error @ KernelError::NoConntrack(_)) => {
                tracing::warn!(error = %ErrorChain(&error), "flows of pods that are gone cannot be forgotten");
                self.parts.metrics.flows_not_forgotten();
                self.forgetting = Forgetting { is_impossible: true, ..Forgetting::new(Instant::now()) };
            }
            Err(error) => {
                if !std::mem::replace(&mut self.forgetting.fails, true) {
                    tracing::warn!(error = %ErrorChain(&error), "flows of pods that are gone could not be forgotten");
                }
                self.flows_not_forgotten(left);
            }
        }
    }

    /// They are tried again with what is due next, for as long as that is of use.
    pub(super) fn flows_not_forgotten(&mut self, left: Vec<Left>) {
        self.forgetting.runs = false;
        self.parts.metrics.error("forget_flows");
        self.parts.metrics.flows_not_forgotten();
        let now = Instant::now();
        for one in left {
            // From then on it may be another pod's, whose flows are none of these.
            if now + GAP >= one.free || !self.forgetting.wait(one) {
                self.parts.metrics.flows_left();
            }
        }
    }
}

impl Left {
    /// All addresses of these pods.
    pub(super) fn addresses(left: &[Self]) -> BTreeSet<IpAddr> {
        let all = |one: &Self| [Some(one.address), one.companion.map(IpAddr::V6), one.egress].into_iter().flatten();
        left.iter().flat_map(all).collect()
    }
}
