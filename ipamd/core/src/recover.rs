//! What a start makes of the checkpoint and of what the kernel shows.
//!
//! Serving begins with the result; IMDS and EC2 are heard afterwards, as events like any other
//! ([`crate::state::Event::ImdsSeen`], [`crate::op::Op::Survey`]).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use sluice_contract::id::{Attachment, IfName};

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::ipv6::{Families, anchor};
use crate::ledger::{AddressState, Owner};
use crate::state::{Event, State};
use crate::time::Timestamp;

/// An allocation whose pod the kernel does not show is kept for so long: its ADD may be under way.
pub const ADD_TAKES: Duration = Duration::from_secs(120);

/// After a checkpoint was lost, what is found is not given out for so long, nor before EC2 has shown it a second time, at
/// least so long after the start: a first description may show what was given back just before the crash.
///
/// IMDS does not stand in for the second look: it is late by the same give-back, and for longer. What waits meanwhile is
/// served with addresses that EC2 assigns anew. A description lags by seconds; [`crate::state::SETTLE`] is longer because
/// what is taken away by it is lost, and here it would only keep pods waiting.
const FOUND_COOLS: Duration = Duration::from_secs(30);
const LOOK_TWICE: Duration = Duration::from_secs(20);

/// The pods' addresses as the kernel has them: routes of one address by a pod's host interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelView {
    /// Address -> host interface.
    pub pods: BTreeMap<IpAddr, IfName>,
}

impl KernelView {
    /// The view with one address for each pod, which is what the ledger has: where pods have both families, their IPv6
    /// address stands for the IPv4 address that it belongs to. So an address counts as alive until both are gone.
    fn by_anchor(&self, state: &State) -> Self {
        Self { pods: self.pods.iter().map(|(address, dev)| (anchored(state, *address), dev.clone())).collect() }
    }
}

/// The address by which the ledger has a pod's address.
pub(crate) fn anchored(state: &State, address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let ledger = state.ledger();
    if ledger.address(address).is_some() {
        return address;
    }
    if state.families() == Families::Dual {
        let nets = ledger.enis().filter_map(|eni| eni.ipv6);
        if let Some(v4) = nets.filter_map(|ipv6| anchor(ipv6.net, v6)).next() {
            return IpAddr::V4(v4);
        }
    }
    // Of a /80 that its ENI had before, or from when pods had both families: a pod keeps what it was given.
    ledger.anchor_of(v6).unwrap_or(address)
}

/// A difference between what was recorded and what there is, and what was made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// The checkpoint could not be used: the daemon keeps it aside. All is learnt anew.
    CheckpointLost(String),
    /// The pod of an allocation is gone: the address cools.
    PodGone(Attachment, IpAddr),
    /// The allocation is kept though another host interface than the recorded one carries the address.
    OtherInterface {
        /// Whose.
        attachment: Attachment,
        /// Which address.
        address: IpAddr,
        /// The interface that the kernel shows.
        seen: IfName,
    },
    /// The address lives and nobody is known to have it: quarantined.
    Quarantined(IpAddr, IfName),
    /// The address lives, and no ENI that is known has it: quarantined as soon as one turns out to.
    Stray(IpAddr, IfName),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CheckpointLost(why) => write!(f, "starting without a checkpoint: {why}"),
            Self::PodGone(attachment, address) => write!(f, "the pod of {attachment} is gone; {address} cools"),
            Self::OtherInterface { attachment, address, seen } => {
                write!(f, "{address} of {attachment} is on {seen}, not on the interface that was recorded")
            }
            Self::Quarantined(address, seen) => {
                write!(f, "{address} lives on {seen} and no attachment has it: quarantined")
            }
            Self::Stray(address, seen) => write!(f, "{address} lives on {seen} and no known ENI has it"),
        }
    }
}

/// The state to start with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The state.
    pub state: State,
    /// What was different, for the log.
    pub findings: Vec<Finding>,
}

/// Joins the checkpoint and the kernel's view. `checkpoint` is what reading the file gave: nothing when there is no file,
/// as after a reboot ([`CheckpointError::Missing`] where there has been one since). `seed` is a random number for a state without a checkpoint; `cooldown` is what a gone pod's address
/// gets.
#[must_use]
pub fn recover(
    checkpoint: Option<Result<Checkpoint<'_>, CheckpointError>>,
    kernel: &KernelView,
    seed: u64,
    cooldown: Duration,
    now: Timestamp,
) -> Recovered {
    let mut findings = Vec::new();
    let state = match checkpoint.map(|read| read.and_then(|checkpoint| checkpoint.into_state(now))) {
        Some(Ok(state)) => state,
        Some(Err(error)) => {
            findings.push(Finding::CheckpointLost(with_sources(&error)));
            without_checkpoint(seed, cooldown, now)
        }
        // Pods live and nothing is known of them: then IMDS is not to be trusted with what is free either.
        None if !kernel.pods.is_empty() => without_checkpoint(seed, cooldown, now),
        None => State::new(seed),
    };
    let mut recovered = Recovered { state, findings };
    recovered.findings.extend(reconcile(&mut recovered.state, kernel, cooldown, now));
    recovered
}

/// A state that knows that another was lost: what IMDS shows may have been given back, what is found may have been released
/// just now, and an ENI may have been made of which EC2 does not tell yet.
fn without_checkpoint(seed: u64, cooldown: Duration, now: Timestamp) -> State {
    State {
        imds_trusted: false,
        found_cool_until: Some(now + cooldown.max(FOUND_COOLS)),
        resurvey_at: Some(now + LOOK_TWICE),
        hearsay_until: Some(now + LOOK_TWICE),
        ..State::new(seed)
    }
}

/// Brings the state in line with the kernel: at start, and from time to time for pods whose DEL was lost.
pub fn reconcile(state: &mut State, kernel: &KernelView, cooldown: Duration, now: Timestamp) -> Vec<Finding> {
    // Those of branch ENIs are no pool's; what the pool has is, whatever an annotation says.
    let branches = state.branch_addresses();
    let mut kernel = kernel.by_anchor(state);
    kernel.pods.retain(|address, _| !branches.contains(address) || state.ledger().address(*address).is_some());
    let kernel = &kernel;
    let mut findings = Vec::new();
    for attachment in gone(state, kernel, now) {
        let address = state.ledger().address_of(&attachment);
        let released = state.apply(Event::Release(attachment.clone(), cooldown), now);
        findings.extend(address.filter(|_| released.is_ok()).map(|address| Finding::PodGone(attachment, address)));
    }
    for (address, seen) in &kernel.pods {
        findings.extend(match state.ledger().address(*address) {
            None if state.ledger().strays().contains(address) => None,
            None => Some(Finding::Stray(*address, seen.clone())),
            Some(AddressState::Assigned { owner, .. }) if owner.host_ifname != *seen => {
                Some(other(owner, *address, seen))
            }
            Some(AddressState::Assigned { .. } | AddressState::Quarantined { .. }) => None,
            Some(AddressState::Free { .. } | AddressState::Cooling { .. }) => {
                Some(Finding::Quarantined(*address, seen.clone()))
            }
        });
    }
    let alive = kernel.pods.keys().copied().collect();
    state.kernel_seen(&alive, cooldown, now);
    findings
}

/// Attachments that hold an address though the kernel shows no pod that has it, and whose ADD cannot be under way any more.
fn gone(state: &State, kernel: &KernelView, now: Timestamp) -> Vec<Attachment> {
    let ledger = state.ledger();
    ledger
        .owners()
        .filter(|(_, address)| !kernel.pods.contains_key(address))
        .filter(|(_, address)| match ledger.address(*address) {
            Some(AddressState::Assigned { since, .. }) => now.since(*since) > ADD_TAKES,
            _ => false,
        })
        .map(|(attachment, _)| attachment.clone())
        .collect()
}

fn other(owner: &Owner, address: IpAddr, seen: &IfName) -> Finding {
    Finding::OtherInterface { attachment: owner.attachment.clone(), address, seen: seen.clone() }
}

pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
