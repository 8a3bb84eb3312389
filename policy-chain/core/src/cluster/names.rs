//! Which addresses names were seen to resolve to, and until when.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Cluster;
use crate::l7::dns::Name;

/// Addresses that are kept for one name.
pub const MAX_ADDRESSES_OF_A_NAME: usize = 1_000;

/// Addresses that are kept for all names together (an address that two names have counts twice).
pub const MAX_ADDRESSES_OF_NAMES: usize = 65_536;

/// What keeps [`Cluster::names`] within its limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ends {
    /// When each address of a name is forgotten; those that never are come last.
    order: BTreeSet<(End, Name, IpAddr)>,
    /// The latest time that was told.
    now: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    At(u64),
    Never,
}

impl From<Option<u64>> for End {
    fn from(until: Option<u64>) -> Self {
        until.map_or(Self::Never, Self::At)
    }
}

impl Cluster {
    /// Addresses of names that the next [`super::Event::Time`] with this time makes forgotten, those that end first first.
    pub fn names_ending(&self, now: u64) -> impl Iterator<Item = (&Name, IpAddr)> {
        let ended = self.ends.order.iter().take_while(move |(end, ..)| *end <= End::At(now));
        ended.map(|(_, name, address)| (name, *address))
    }

    /// How many addresses of names are known; one that two names have counts twice.
    #[must_use]
    pub fn names_known(&self) -> usize {
        self.ends.order.len()
    }

    pub(super) fn resolved(&mut self, name: &Name, addresses: &[IpAddr], until: Option<u64>) -> BTreeSet<Name> {
        let mut changed = BTreeSet::new();
        if until.is_some_and(|until| until <= self.ends.now) {
            return changed;
        }
        for address in addresses {
            let address = address.to_canonical();
            let known = self.names.get(name).and_then(|known| known.get(&address)).copied();
            match known {
                Some(end) if End::from(end) >= End::from(until) => continue,
                Some(end) => {
                    self.ends.order.remove(&(end.into(), name.clone(), address));
                }
                None => {
                    changed.insert(name.clone());
                }
            }
            self.names.entry(name.clone()).or_default().insert(address, until);
            self.ends.order.insert((until.into(), name.clone(), address));
        }
        self.shrink(name, &mut changed);
        changed
    }

    /// Forgets what is too much: of a name that has too many addresses, then of all names, what ends first.
    fn shrink(&mut self, name: &Name, changed: &mut BTreeSet<Name>) {
        let Some(known) = self.names.get(name) else { return };
        let excess = known.len().saturating_sub(MAX_ADDRESSES_OF_A_NAME);
        if excess > 0 {
            let mut ends: Vec<(End, IpAddr)> =
                known.iter().map(|(address, until)| (End::from(*until), *address)).collect();
            ends.sort_unstable();
            for (end, address) in ends.into_iter().take(excess) {
                self.overflow(&(end, name.clone(), address));
                changed.insert(name.clone());
            }
        }
        while self.ends.order.len() > MAX_ADDRESSES_OF_NAMES {
            let Some(first) = self.ends.order.first().cloned() else { return };
            self.overflow(&first);
            changed.insert(first.1);
        }
    }

    fn overflow(&mut self, entry: &(End, Name, IpAddr)) {
        self.forget(entry);
        self.names_overflowed = self.names_overflowed.saturating_add(1);
    }

    fn forget(&mut self, entry: &(End, Name, IpAddr)) {
        self.ends.order.remove(entry);
        let (_, name, address) = entry;
        if let Some(known) = self.names.get_mut(name) {
            known.remove(address);
            if known.is_empty() {
                self.names.remove(name);
            }
        }
    }

    pub(super) fn time(&mut self, now: u64) -> BTreeSet<Name> {
        let mut changed = BTreeSet::new();
        self.ends.now = self.ends.now.max(now);
        while let Some(first) = self.ends.order.first().filter(|(end, ..)| *end <= End::At(self.ends.now)).cloned() {
            self.forget(&first);
            changed.insert(first.1);
        }
        changed
    }
}

/// Addresses of names, as [`Cluster`] shows them.
pub type Names = BTreeMap<Name, BTreeMap<IpAddr, Option<u64>>>;
