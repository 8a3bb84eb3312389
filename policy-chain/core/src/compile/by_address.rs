//! Maps and sets by address, in which an address of IPv4 takes no more room than it needs.
//!
//! An [`IpAddr`] takes 17 bytes, of which one of IPv4 needs four. A hundred thousand addresses stand in several of these.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::cluster::AddressSet;
use crate::pack::{pack_map, pack_set};

/// A map by address.
#[derive(Debug)]
pub(super) struct ByAddress<V> {
    v4: BTreeMap<Ipv4Addr, V>,
    v6: BTreeMap<Ipv6Addr, V>,
}

impl<V> Default for ByAddress<V> {
    fn default() -> Self {
        Self { v4: BTreeMap::new(), v6: BTreeMap::new() }
    }
}

impl<V> ByAddress<V> {
    pub(super) fn get(&self, address: &IpAddr) -> Option<&V> {
        match address {
            IpAddr::V4(address) => self.v4.get(address),
            IpAddr::V6(address) => self.v6.get(address),
        }
    }

    pub(super) fn get_mut(&mut self, address: &IpAddr) -> Option<&mut V> {
        match address {
            IpAddr::V4(address) => self.v4.get_mut(address),
            IpAddr::V6(address) => self.v6.get_mut(address),
        }
    }

    /// What is there, or this from now on.
    pub(super) fn or_insert(&mut self, address: IpAddr, value: V) -> &mut V {
        match address {
            IpAddr::V4(address) => self.v4.entry(address).or_insert(value),
            IpAddr::V6(address) => self.v6.entry(address).or_insert(value),
        }
    }

    pub(super) fn remove(&mut self, address: &IpAddr) -> Option<V> {
        match address {
            IpAddr::V4(address) => self.v4.remove(address),
            IpAddr::V6(address) => self.v6.remove(address),
        }
    }

    /// Those of some addresses; both ends are of one family, or none is found.
    pub(super) fn range(&self, addresses: RangeInclusive<IpAddr>) -> impl Iterator<Item = (IpAddr, &V)> {
        let (v4, v6) = match (*addresses.start(), *addresses.end()) {
            (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => (Some(self.v4.range(first..=last)), None),
            (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => (None, Some(self.v6.range(first..=last))),
            _ => (None, None),
        };
        let v4 = v4.into_iter().flatten().map(|(address, value)| (IpAddr::V4(*address), value));
        v4.chain(v6.into_iter().flatten().map(|(address, value)| (IpAddr::V6(*address), value)))
    }

    /// Less room for what is held.
    pub(super) fn pack(&mut self) {
        pack_map(&mut self.v4);
        pack_map(&mut self.v6);
    }
}

/// Things at addresses.
#[derive(Debug)]
pub(super) struct SetAt<T> {
    v4: BTreeSet<(Ipv4Addr, T)>,
    v6: BTreeSet<(Ipv6Addr, T)>,
}

impl<T> Default for SetAt<T> {
    fn default() -> Self {
        Self { v4: BTreeSet::new(), v6: BTreeSet::new() }
    }
}

impl<T: Ord + Copy> SetAt<T> {
    pub(super) fn insert(&mut self, (address, thing): (IpAddr, T)) {
        match address {
            IpAddr::V4(address) => self.v4.insert((address, thing)),
            IpAddr::V6(address) => self.v6.insert((address, thing)),
        };
    }

    pub(super) fn remove(&mut self, (address, thing): (IpAddr, T)) {
        match address {
            IpAddr::V4(address) => self.v4.remove(&(address, thing)),
            IpAddr::V6(address) => self.v6.remove(&(address, thing)),
        };
    }

    /// Those from one to another, by address, then by themselves; both ends are of one family, or none is found.
    pub(super) fn range(&self, first: (IpAddr, T), last: (IpAddr, T)) -> impl Iterator<Item = T> {
        let (v4, v6) = match (first.0, last.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) if first <= last => {
                (Some(self.v4.range((from, first.1)..=(to, last.1))), None)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) if first <= last => {
                (None, Some(self.v6.range((from, first.1)..=(to, last.1))))
            }
            _ => (None, None),
        };
        let v4 = v4.into_iter().flatten().map(|(_, thing)| *thing);
        v4.chain(v6.into_iter().flatten().map(|(_, thing)| *thing))
    }

    /// Less room for what is held.
    pub(super) fn pack(&mut self) {
        pack_set(&mut self.v4);
        pack_set(&mut self.v6);
    }
}

/// Addresses of one family with ports, in the order given. Those of a clone, and of the ports of one Service, are held once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sockets {
    /// Each with this port, as nearly all are.
    V4(Arc<[Ipv4Addr]>, u16),
    V6(Arc<[Ipv6Addr]>, u16),
    /// With several ports.
    Mixed(Arc<[(IpAddr, u16)]>),
}

impl Sockets {
    /// Those of a slice, by family; of no port.
    pub(super) fn of(addresses: &AddressSet) -> [Self; 2] {
        [Self::V4(Arc::clone(addresses.v4()), 0), Self::V6(Arc::clone(addresses.v6()), 0)]
    }

    /// Those of a list that are of a family; what they have in common with some of `made` is shared.
    pub(super) fn new(v4: bool, list: &[(IpAddr, u16)], made: &[Self]) -> Self {
        let first = list.first().map_or(0, |(_, port)| *port);
        if list.iter().any(|(_, port)| *port != first) {
            return Self::Mixed(list.iter().filter(|(address, _)| address.is_ipv4() == v4).copied().collect());
        }
        let addresses = || list.iter().map(|(address, _)| *address);
        if v4 {
            let of =
                addresses().filter_map(|address| if let IpAddr::V4(address) = address { Some(address) } else { None });
            let own: Arc<[Ipv4Addr]> = of.collect();
            let known = made.iter().find_map(|one| if let Self::V4(known, _) = one { Some(known) } else { None });
            Self::V4(known.filter(|known| **known == own).cloned().unwrap_or(own), first)
        } else {
            let of =
                addresses().filter_map(|address| if let IpAddr::V6(address) = address { Some(address) } else { None });
            let own: Arc<[Ipv6Addr]> = of.collect();
            let known = made.iter().find_map(|one| if let Self::V6(known, _) = one { Some(known) } else { None });
            Self::V6(known.filter(|known| **known == own).cloned().unwrap_or(own), first)
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (IpAddr, u16)> {
        let (v4, v6, mixed, port): (&[_], &[_], &[_], u16) = match self {
            Self::V4(list, port) => (list, &[], &[], *port),
            Self::V6(list, port) => (&[], list, &[], *port),
            Self::Mixed(list) => (&[], &[], list, 0),
        };
        let v4 = v4.iter().map(move |address| (IpAddr::V4(*address), port));
        v4.chain(v6.iter().map(move |address| (IpAddr::V6(*address), port))).chain(mixed.iter().copied())
    }
}

impl Default for Sockets {
    fn default() -> Self {
        Self::V4(Arc::default(), 0)
    }
}
