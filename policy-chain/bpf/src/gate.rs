//! The gates of a node: the owner of the pinned maps and programs.
//!
//! ```text
//! Gate     maps: endpoints, identities, policies, counters, flows   one owner, synchronous, a system call a write
//! Filters  programs on interfaces, by clsact                        any task, asynchronous (netlink)
//! Links    programs on interfaces, by pinned tcx links              a thread of its own: each takes a grace period
//! Events   what the programs tell                                   one reader
//! ```
//!
//! Nothing passes that no map allows: an interface without an entry drops, an entry with the flag for lockdown drops, and
//! a row or a decision that is missing drops. So whatever is half done, by a crash or a full map, is closed and not open.

mod apply;
mod connections;
mod counters;
mod keys;
mod maps;
mod open;
mod pins;
mod pods;
mod sweep;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use sluice_contract::id::IfName;
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::compile::image::{PolicyId, RowEntries, RowId};

use crate::btf::{self, BtfError};
use crate::events::Events;
use crate::layout;
use crate::programs::{Program, Programs};
use maps::Maps;
use pins::Pins;
use pods::Pod;

pub use connections::Expired;
pub use counters::Counters;
pub use open::{GateConfig, OpenError};
pub(crate) use pins::{NEW_PIN, replace_pin};
pub use pods::Bound;
pub use sweep::Swept;

/// An instant of `CLOCK_MONOTONIC`, in nanoseconds: what the programs measure time with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ktime(pub u64);

impl Ktime {
    /// This instant; 0 on a kernel without the clock, which there is none of.
    #[must_use]
    pub fn now() -> Self {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
        Self(now.ok().and_then(|now| u64::try_from(std::time::Duration::from(now).as_nanos()).ok()).unwrap_or_default())
    }

    /// This long after it.
    #[must_use]
    pub fn plus(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// The host's side of one interface of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: IfName,
    /// The addresses behind it: what the pod may send from.
    pub addresses: Vec<IpAddr>,
    /// It is the pod's first. By that one alone may a pod of one family leave in the other.
    pub first: bool,
    /// The pod may send from any address, because it routes for others.
    pub any_source: bool,
    /// Index of the bridge that it is a port of, if it is: what a bridge forwards names the bridge, not the port.
    pub bridge: Option<u32>,
}

/// Why a write to the maps failed. What was asked for has then not been done, not even half.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The map is full.
    #[error("the map {map} is full: it holds {limit} entries")]
    Full {
        /// Its name.
        map: &'static str,
        /// What it can hold.
        limit: u32,
    },
    /// The pod has more addresses than an entry has room for. Its gate is locked down.
    #[error("pod {pod} has {count} addresses, and its gate has room for {limit}")]
    Addresses {
        /// The pod.
        pod: PodKey,
        /// What it has.
        count: usize,
        /// What there is room for.
        limit: usize,
    },
    /// The kernel refused.
    #[error("the kernel refuses to {action} the map {map}")]
    Kernel {
        /// Its name.
        map: &'static str,
        /// What was tried: `write to`, `remove from`, `read`.
        action: &'static str,
        /// Its word.
        #[source]
        source: io::Error,
    },
}

/// Why the programs do not know what connection tracking knows.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// The kernel does not tell.
    #[error("the kernel does not tell how its connection tracking keeps flows")]
    Types(#[from] BtfError),
    /// It could not be written down.
    #[error(transparent)]
    Write(#[from] ApplyError),
}

/// A gate as it was found pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundEndpoint {
    /// The number by which its flows and events go.
    pub id: u32,
    /// Policy for what goes to the pod.
    pub ingress: PolicyId,
    /// Policy for what comes out of it.
    pub egress: PolicyId,
    /// Everything is dropped.
    pub locked: bool,
    /// The gate is a dry run.
    pub audit: bool,
    /// Moves when flows have to be judged again. Not the number of the pod's [`Endpoint`], but above it.
    ///
    /// [`Endpoint`]: sluice_policy_core::compile::image::Endpoint
    pub revision: u64,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
}

/// The greatest numbers in use: who begins anew without knowing what they mean begins above them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Highest {
    /// Of [`Identity`](sluice_policy_core::compile::image::Identity).
    pub identity: u32,
    /// Of [`PolicyId`].
    pub policy: u32,
    /// Of [`RowId`].
    pub row: u32,
    /// Of [`DecisionId`](sluice_policy_core::compile::image::DecisionId).
    pub decision: u32,
    /// Of an endpoint's revision.
    pub revision: u64,
}

impl Highest {
    fn identity(&mut self, number: u32) {
        self.identity = self.identity.max(number);
    }

    fn policy(&mut self, number: u32) {
        self.policy = self.policy.max(number);
    }

    fn row(&mut self, number: u32) {
        self.row = self.row.max(number);
    }

    fn decision(&mut self, number: u32) {
        self.decision = self.decision.max(number);
    }
}

/// What the pinned maps held when they were opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The maps that were not there, by name, in the order of [`layout::MAPS`]; all of them on a node that had no gate.
    pub made: Vec<&'static str>,
    /// Gates, by index of the host's interface.
    pub endpoints: BTreeMap<u32, FoundEndpoint>,
    /// Where numbers can go on.
    pub highest: Highest,
    /// Entries, by the map's name.
    pub entries: BTreeMap<&'static str, usize>,
}

impl Found {
    /// Whether there was nothing.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.made.len() == layout::MAPS.len()
    }
}

/// The owner of a node's gates. There is one at a time: it holds a lock for as long as it lives, or its process does.
///
/// What is pinned stays when it is dropped, and goes on judging.
#[derive(Debug)]
pub struct Gate {
    maps: Maps,
    programs: Arc<Programs>,
    events: Option<Events>,
    pods: BTreeMap<PodKey, Pod>,
    /// The pod of each interface.
    bound: BTreeMap<u32, PodKey>,
    /// Entries from before, of which nothing has been written since.
    kept: BTreeMap<u32, layout::Endpoint>,
    /// Entries of interfaces that belong to nobody: they drop until their link is gone.
    closed: BTreeSet<u32>,
    /// Tries cannot be asked for the entries of a row.
    rows: BTreeMap<RowId, Arc<RowEntries>>,
    last_id: u32,
    /// What is set.
    settings: layout::Settings,
    /// Where the next step of the flows' expiry goes on.
    expiry: connections::Walk,
    pins: Pins,
}

impl Gate {
    /// What each map can hold, by its name.
    pub fn limits(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.maps.limits.iter().map(|(name, limit)| (*name, *limit))
    }

    /// The interfaces that are bound, and their pods.
    pub fn interfaces(&self) -> impl Iterator<Item = (u32, &PodKey)> {
        self.bound.iter().map(|(index, pod)| (*index, pod))
    }

    /// The pod that an event's number of an endpoint stands for.
    #[must_use]
    pub fn pod_of(&self, endpoint: u32) -> Option<&PodKey> {
        self.pods.iter().find(|(_, pod)| pod.id == endpoint).map(|(key, _)| key)
    }

    /// Whether an interface has its programs, or one of them, by a link. Asks no more than which pins there are.
    #[must_use]
    pub fn is_linked(&self, index: u32) -> bool {
        self.pins.has_links(index)
    }

    /// Whether what stands in a program's place at an interface is that of another layout of the maps, by a link: as long as
    /// nobody takes it away, it judges, and comes before all filters.
    #[must_use]
    pub fn is_of_another_layout(&self, index: u32, program: Program) -> bool {
        self.pins.has_link_of_another_layout(index, program)
    }

    /// Whether a link of this layout attaches this program to an interface. Where it is not that of now, which
    /// [`Filters`](crate::filters::Filters) tell, it is that of a process before: the link could not be given another.
    #[must_use]
    pub fn has_link(&self, index: u32, program: Program) -> bool {
        self.pins.has_link(index, program)
    }

    /// The reader of what the programs tell; there is one.
    pub const fn events(&mut self) -> Option<Events> {
        self.events.take()
    }

    /// The programs, to attach them.
    #[must_use]
    pub fn programs(&self) -> Arc<Programs> {
        Arc::clone(&self.programs)
    }

    /// Until then a TCP packet of no known flow that opens none may be the reply half of one (DESIGN 7).
    ///
    /// # Errors
    /// [`ApplyError::Kernel`].
    pub fn adopt_until(&mut self, until: Ktime) -> Result<(), ApplyError> {
        self.settings.adopt_until = until.0;
        self.end_change()
    }

    /// A flow that was let pass, and answered, stays so when policy changes (DESIGN 6.5), or is judged anew.
    ///
    /// # Errors
    /// [`ApplyError::Kernel`].
    pub fn keep_established(&mut self, keep: bool) -> Result<(), ApplyError> {
        self.flag(layout::SETTING_KEEP_ESTABLISHED, keep);
        self.end_change()
    }

    /// What pods send to Services with a backend on the node itself is judged at local input, or is not: then the gates judge
    /// every answer of such a backend.
    ///
    /// # Errors
    /// [`ApplyError::Kernel`].
    pub fn judged_at_local_input(&mut self, judged: bool) -> Result<(), ApplyError> {
        self.flag(layout::SETTING_LOCAL_INPUT, judged);
        self.end_change()
    }

    /// The programs tell what they see, or are silent: then nothing is written into the ring, and nothing counts as lost.
    ///
    /// # Errors
    /// [`ApplyError::Kernel`].
    pub fn tell_events(&mut self, tell: bool) -> Result<(), ApplyError> {
        self.flag(layout::SETTING_NO_EVENTS, !tell);
        self.end_change()
    }

    fn flag(&mut self, flag: u32, set: bool) {
        self.settings.flags = if set { self.settings.flags | flag } else { self.settings.flags & !flag };
    }

    /// Changes `endpoints`. What the programs remember of before is forgotten by the end, and nothing is remembered meanwhile:
    /// also where this process ends in between.
    fn change<T>(&mut self, change: impl FnOnce(&mut Maps) -> Result<T, ApplyError>) -> Result<T, ApplyError> {
        self.settings.generation = self.settings.generation.wrapping_add(1) | 1;
        self.write_settings()?;
        let done = change(&mut self.maps);
        self.end_change()?;
        done
    }

    /// What the programs remember is not true any more.
    fn end_change(&mut self) -> Result<(), ApplyError> {
        self.settings.generation = (self.settings.generation | 1).wrapping_add(1);
        self.write_settings()
    }

    fn write_settings(&mut self) -> Result<(), ApplyError> {
        let written = self.maps.settings.set(0, self.settings, 0);
        written.map_err(|error| maps::kernel("settings", "write to", error))
    }

    /// Tells the programs where connection tracking keeps the tuples of a flow, if that is not known yet: whether it is now. As
    /// long as it is not, flows to Services are not judged by their backends, and the source of translated ones is the packet's.
    ///
    /// # Errors
    /// [`ConntrackError`].
    pub fn find_conntrack(&mut self) -> Result<bool, ConntrackError> {
        if self.settings.conntrack_tuples != 0 {
            return Ok(true);
        }
        let Some(tuples) = btf::conntrack_tuples()? else { return Ok(false) };
        self.settings.conntrack_tuples = tuples;
        if let Err(error) = self.end_change() {
            // It is not known to the programs.
            self.settings.conntrack_tuples = 0;
            return Err(error.into());
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
