//! Addresses that names were seen to resolve to, as far as a predicate means the names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::super::atoms::Atom;
use crate::l7::dns::Name;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// The predicates by address, with the number of names of theirs that resolved to it.
    named: BTreeMap<IpAddr, BTreeMap<Atom, u32>>,
    names: BTreeMap<Name, (BTreeSet<Atom>, BTreeSet<IpAddr>)>,
    /// The entries of addresses.
    pub(super) entries: BTreeMap<IpAddr, u32>,
}

impl Names {
    /// The names that a predicate means.
    pub(super) fn all(&self) -> Vec<Name> {
        self.names.keys().cloned().collect()
    }

    /// Whether a predicate means a name that resolved to an address.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.named.contains_key(&address)
    }

    /// The predicates that mean names which resolved to an address.
    pub(super) fn atoms(&self, address: IpAddr) -> impl Iterator<Item = Atom> {
        self.named.get(&address).into_iter().flat_map(BTreeMap::keys).copied()
    }

    /// The addresses of a name, and the predicates that mean it. Addresses of which something changed go to `touched`.
    pub(super) fn set(
        &mut self,
        name: &Name,
        atoms: BTreeSet<Atom>,
        addresses: BTreeSet<IpAddr>,
        touched: &mut BTreeSet<IpAddr>,
    ) {
        let (old_atoms, old) = self.names.remove(name).unwrap_or_default();
        for (set, by, add) in [(&old, &old_atoms, false), (&addresses, &atoms, true)] {
            for address in set {
                let counts = self.named.entry(*address).or_default();
                for atom in by {
                    let count = counts.entry(*atom).or_default();
                    *count = if add { *count + 1 } else { count.saturating_sub(1) };
                }
            }
        }
        for address in old.union(&addresses) {
            if let Some(counts) = self.named.get_mut(address) {
                counts.retain(|_, count| *count > 0);
                if counts.is_empty() {
                    self.named.remove(address);
                }
            }
            let same = old.contains(address) && addresses.contains(address) && old_atoms == atoms;
            if !same {
                touched.insert(*address);
            }
        }
        if !atoms.is_empty() && !addresses.is_empty() {
            self.names.insert(name.clone(), (atoms, addresses));
        }
    }
}
