//! A longest-prefix map.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Identity;
use crate::pack::pack_map;

/// Prefixes, and the longest of them that has an address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prefixes {
    /// By family: a prefix of IPv4 takes no more room than it needs.
    entries_v4: BTreeMap<Ipv4Net, Identity>,
    entries_v6: BTreeMap<Ipv6Net, Identity>,
    /// How many entries there are of each length, so that a lookup asks for no length that nobody has.
    v4: BTreeMap<u8, usize>,
    v6: BTreeMap<u8, usize>,
}

impl Prefixes {
    /// Less room for what is held.
    pub(in crate::compile) fn pack(&mut self) {
        pack_map(&mut self.entries_v4);
        pack_map(&mut self.entries_v6);
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries_v4.len() + self.entries_v6.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entry of exactly this prefix.
    #[must_use]
    pub fn get(&self, prefix: &IpNet) -> Option<Identity> {
        match prefix {
            IpNet::V4(prefix) => self.entries_v4.get(prefix).copied(),
            IpNet::V6(prefix) => self.entries_v6.get(prefix).copied(),
        }
    }

    /// The entry of the longest prefix that has the address.
    #[must_use]
    pub fn longest(&self, address: IpAddr) -> Option<Identity> {
        self.lengths(address.is_ipv4()).keys().rev().find_map(|length| {
            let prefix = IpNet::new(address, *length).ok()?.trunc();
            self.get(&prefix)
        })
    }

    /// All entries, by prefix.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, Identity)> {
        let v4 = self.entries_v4.iter().map(|(prefix, identity)| (IpNet::V4(*prefix), *identity));
        v4.chain(self.entries_v6.iter().map(|(prefix, identity)| (IpNet::V6(*prefix), *identity)))
    }

    /// Sets or removes an entry, and gives what was there.
    pub fn set(&mut self, prefix: IpNet, identity: Option<Identity>) -> Option<Identity> {
        let (before, lengths) = match prefix {
            IpNet::V4(prefix) => (put(&mut self.entries_v4, prefix, identity), &mut self.v4),
            IpNet::V6(prefix) => (put(&mut self.entries_v6, prefix, identity), &mut self.v6),
        };
        match (before, identity) {
            (None, Some(_)) => *lengths.entry(prefix.prefix_len()).or_default() += 1,
            (Some(_), None) => {
                if let Some(count) = lengths.get_mut(&prefix.prefix_len()) {
                    *count -= 1;
                    if *count == 0 {
                        lengths.remove(&prefix.prefix_len());
                    }
                }
            }
            _ => {}
        }
        before
    }

    /// How many entries there are of each length.
    pub(in crate::compile) const fn lengths(&self, v4: bool) -> &BTreeMap<u8, usize> {
        if v4 { &self.v4 } else { &self.v6 }
    }
}

/// Sets or removes an entry, and gives what was there.
fn put<P: Ord>(entries: &mut BTreeMap<P, Identity>, prefix: P, identity: Option<Identity>) -> Option<Identity> {
    match identity {
        Some(identity) => entries.insert(prefix, identity),
        None => entries.remove(&prefix),
    }
}
