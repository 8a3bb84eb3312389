//! Prefixes that policies name, and which blocks each of them is in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::super::atoms::{Atom, Atoms};
use crate::compile::identity::{Classes, Kind as EntryKind};
use crate::compile::predicate::{Predicate, in_block};

/// The addresses for which a prefix is the longest that is named.
#[derive(Debug)]
pub(super) struct Region {
    /// How many blocks name it.
    references: u32,
    pub(super) entry: u32,
    /// The blocks that it is in, sorted.
    pub(super) blocks: Box<[Atom]>,
}

/// All regions.
#[derive(Debug, Default)]
pub(super) struct Regions {
    list: BTreeMap<IpNet, Region>,
    /// The blocks that begin at a prefix.
    cidrs: BTreeMap<IpNet, Vec<Atom>>,
    /// How many regions there are of each length, IPv4 and IPv6.
    lengths: [BTreeMap<u8, usize>; 2],
}

const fn family(v4: bool) -> usize {
    if v4 { 0 } else { 1 }
}

impl Regions {
    pub(super) fn get(&self, prefix: &IpNet) -> Option<&Region> {
        self.list.get(prefix)
    }

    /// The entries of all regions.
    pub(super) fn entries(&self) -> impl Iterator<Item = u32> {
        self.list.values().map(|region| region.entry)
    }

    /// The region of an address.
    pub(super) fn of(&self, address: IpAddr) -> Option<&Region> {
        let lengths = self.lengths.get(family(address.is_ipv4()))?;
        lengths.keys().rev().find_map(|length| self.list.get(&IpNet::new(address, *length).ok()?.trunc()))
    }

    /// One more block names a prefix. Returns the entry if it is new.
    pub(super) fn add(&mut self, prefix: IpNet, classes: &mut Classes) -> Option<u32> {
        let region = self.list.entry(prefix).or_insert_with(|| {
            if let Some(lengths) = self.lengths.get_mut(family(matches!(prefix, IpNet::V4(_)))) {
                *lengths.entry(prefix.prefix_len()).or_default() += 1;
            }
            Region { references: 0, entry: classes.entry(prefix, EntryKind::Region), blocks: Box::default() }
        });
        region.references += 1;
        (region.references == 1).then_some(region.entry)
    }

    /// One block less names a prefix. Returns the entry if none does any more.
    pub(super) fn remove(&mut self, prefix: IpNet) -> Option<u32> {
        let region = self.list.get_mut(&prefix)?;
        region.references = region.references.saturating_sub(1);
        if region.references > 0 {
            return None;
        }
        let gone = self.list.remove(&prefix)?;
        if let Some(lengths) = self.lengths.get_mut(family(matches!(prefix, IpNet::V4(_))))
            && let Some(count) = lengths.get_mut(&prefix.prefix_len())
        {
            *count -= 1;
            if *count == 0 {
                lengths.remove(&prefix.prefix_len());
            }
        }
        Some(gone.entry)
    }

    /// A block is in force from now on. Which regions it holds, [`Self::refresh`] finds out.
    pub(super) fn set_block(&mut self, cidr: IpNet, atom: Atom) {
        self.cidrs.entry(cidr).or_default().push(atom);
    }

    /// A block is in force no more.
    pub(super) fn unset_block(&mut self, cidr: IpNet, atom: Atom) {
        if let Some(blocks) = self.cidrs.get_mut(&cidr) {
            blocks.retain(|one| *one != atom);
            if blocks.is_empty() {
                self.cidrs.remove(&cidr);
            }
        }
        for (_, region) in self.list.range_mut(range_of(cidr)) {
            if region.blocks.binary_search(&atom).is_ok() {
                region.blocks = region.blocks.iter().copied().filter(|one| *one != atom).collect();
            }
        }
    }

    /// Finds out in which blocks the regions inside of a prefix are, and gives the entries of those that are in others than
    /// before.
    pub(super) fn refresh(&mut self, cidr: IpNet, atoms: &Atoms) -> Vec<u32> {
        let inside: Vec<IpNet> =
            self.list.range(range_of(cidr)).map(|(prefix, _)| *prefix).filter(|prefix| cidr.contains(prefix)).collect();
        let mut changed = Vec::new();
        for prefix in inside {
            let blocks = self.around(&prefix, atoms);
            if let Some(region) = self.list.get_mut(&prefix)
                && *region.blocks != *blocks
            {
                region.blocks = blocks.into();
                changed.push(region.entry);
            }
        }
        changed
    }

    /// The blocks that a prefix is in.
    fn around(&self, prefix: &IpNet, atoms: &Atoms) -> Vec<Atom> {
        let mut found = Vec::new();
        let lengths = self.lengths.get(family(matches!(prefix, IpNet::V4(_))));
        for length in lengths.into_iter().flat_map(BTreeMap::keys).take_while(|length| **length <= prefix.prefix_len())
        {
            let Some(around) = IpNet::new(prefix.addr(), *length).ok().map(|net| net.trunc()) else { continue };
            for atom in self.cidrs.get(&around).into_iter().flatten() {
                if let Some(Predicate::Block { cidr, except, .. }) = atoms.predicate(*atom)
                    && in_block(cidr, except, prefix)
                {
                    found.push(*atom);
                }
            }
        }
        found.sort_unstable();
        found
    }
}

/// Those that are in no other; in order.
pub(super) fn widest(cidrs: &BTreeSet<IpNet>) -> Vec<IpNet> {
    let mut list: Vec<IpNet> = Vec::new();
    // In order of their first address, and the wider first.
    for cidr in cidrs {
        if !list.last().is_some_and(|wider| wider.contains(cidr)) {
            list.push(*cidr);
        }
    }
    list
}

/// Whether one of these, which are in order and of which none is in another, has an address.
pub(super) fn any_has(cidrs: &[IpNet], address: IpAddr) -> bool {
    let host = IpNet::from(address);
    let before = cidrs.partition_point(|one| *one <= host);
    before.checked_sub(1).and_then(|at| cidrs.get(at)).is_some_and(|one| one.contains(&host))
}

/// The prefixes whose first address is in a prefix, in the order of a map.
fn range_of(cidr: IpNet) -> RangeInclusive<IpNet> {
    let last = cidr.broadcast();
    let full = cidr.max_prefix_len();
    let bound = |address, length| IpNet::new(address, length).unwrap_or(cidr);
    bound(cidr.network(), 0)..=bound(last, full)
}
