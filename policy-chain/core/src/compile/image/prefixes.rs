//! A longest-prefix map.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Identity;
use crate::pack::pack_map;

/// Prefixes, and the longest of them that has an address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prefixes {
    entries: BTreeMap<IpNet, Identity>,
    /// How many entries there are of each length, so that a lookup asks for no length that nobody has.
    v4: BTreeMap<u8, usize>,
    v6: BTreeMap<u8, usize>,
}

impl Prefixes {
    /// Less room for what is held.
    pub(in crate::compile) fn pack(&mut self) {
        pack_map(&mut self.entries);
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry of exactly this prefix.
    #[must_use]
    pub fn get(&self, prefix: &IpNet) -> Option<Identity> {
        self.entries.get(prefix).copied()
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
    pub fn iter(&self) -> impl Iterator<Item = (&IpNet, &Identity)> {
        self.entries.iter()
    }

    /// Sets or removes an entry, and gives what was there.
    pub fn set(&mut self, prefix: IpNet, identity: Option<Identity>) -> Option<Identity> {
        let before = match identity {
            Some(identity) => self.entries.insert(prefix, identity),
            None => self.entries.remove(&prefix),
        };
        let lengths = match prefix {
            IpNet::V4(_) => &mut self.v4,
            IpNet::V6(_) => &mut self.v6,
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
