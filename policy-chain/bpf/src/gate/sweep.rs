//! What a restart leaves behind: entries that no image has any more.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use sluice_policy_core::compile::image::{DecisionId, Identity, Image, PolicyId, RowId};

use super::maps::{removed, row_key, trie_key};
use super::{ApplyError, Gate, keys};
use crate::cilium;
use crate::layout::{
    Address, AddressPrefix, Counter, Decision, ENDPOINT_BRIDGE, ENDPOINT_LOCKDOWN, Endpoint, Frontend, Peer, RowPrefix,
};

/// What a sweep did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries removed, by map.
    pub removed: BTreeMap<&'static str, usize>,
    /// Gates that drop everything from now on: their interface is bound to no pod, or its pod is not in the image.
    pub locked: Vec<u32>,
}

impl Gate {
    /// Takes away what other layouts of the maps have pinned: after an upgrade or a rollback across layouts, when every pod has
    /// its gate here. What a process holds stays ([`Self::other_layouts`]). Answers what is gone.
    ///
    /// # Errors
    /// Those of the file system; what was not removed is removed by the next call.
    pub fn remove_other_layouts(&self) -> io::Result<Vec<PathBuf>> {
        self.pins.remove_other_layouts()
    }

    /// The directories of other layouts that are there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn other_layouts(&self) -> io::Result<Vec<PathBuf>> {
        self.pins.other_layouts()
    }

    /// Takes away Cilium's links at the interfaces that are bound here, which would keep packets from the gate's filters; where it
    /// has no others, those of devices too. Answers what is gone.
    ///
    /// # Errors
    /// Those of the file system; what was not removed is removed by the next call.
    pub fn remove_cilium_links(&self) -> io::Result<Vec<PathBuf>> {
        let bpffs = self.pins.root().ancestors().nth(2).unwrap_or_else(|| Path::new("/"));
        cilium::remove_links(bpffs, |index| self.bound.contains_key(&index))
    }

    /// Removes everything that the maps hold and `image` does not: after a restart, when the first whole image has been
    /// applied. Entries of interfaces stay (a link that still exists must not be without one), but those that are of no pod
    /// of the image drop everything. What is in `names` and not in the image is removed as well.
    ///
    /// First what refers, then what is referred to.
    ///
    /// # Errors
    /// [`ApplyError::Kernel`]; what was not removed is removed by the next call.
    pub fn sweep(&mut self, image: &Image) -> Result<Swept, ApplyError> {
        let mut swept = Swept { removed: BTreeMap::new(), locked: self.lock_strays(image)? };
        let mut count = |map, number: usize| {
            if number > 0 {
                swept.removed.insert(map, number);
            }
        };

        let mut stale: Vec<Address> = Vec::new();
        self.maps.read("owners", |address: Address, index: u32| {
            if !self.bound.contains_key(&index) {
                stale.push(address);
            }
        })?;
        for address in &stale {
            removed("owners", self.maps.owners.remove(address))?;
        }
        count("owners", stale.len());

        let mut stale: Vec<Frontend> = Vec::new();
        self.maps.read("frontends", |key: Frontend, _: u32| {
            if !image.frontends.contains_key(&keys::frontend_key(&key)) {
                stale.push(key);
            }
        })?;
        for key in &stale {
            removed("frontends", self.maps.frontends.remove(key))?;
        }
        count("frontends", stale.len());

        for map in ["names", "ipcache"] {
            let wanted = if map == "names" { &image.names } else { &image.ipcache };
            let mut stale: Vec<(u32, AddressPrefix)> = Vec::new();
            self.maps.read(map, |key: AddressPrefix, _: u32| {
                let net: Option<IpNet> = keys::net(&key);
                if net.is_none_or(|net| wanted.get(&net).is_none()) {
                    stale.push((key.bits, key));
                }
            })?;
            // Short ones first: what a long one held back must not show the short one's identity.
            stale.sort_unstable();
            let trie = if map == "names" { &mut self.maps.names } else { &mut self.maps.ipcache };
            for (_, key) in &stale {
                removed(map, trie.remove(&trie_key(*key)))?;
            }
            count(map, stale.len());
        }

        let mut stale: Vec<Peer> = Vec::new();
        self.maps.read("peers", |key: Peer, _: u32| {
            if !image.peers.contains_key(&(PolicyId(key.policy), Identity(key.identity))) {
                stale.push(key);
            }
        })?;
        for key in &stale {
            removed("peers", self.maps.peers.remove(key))?;
        }
        count("peers", stale.len());

        let mut stale: Vec<RowPrefix> = Vec::new();
        self.maps.read("rows", |key: RowPrefix, _: u32| {
            let wanted = keys::port_prefix(&key).is_some_and(|(row, ports)| {
                let row = image.rows.get(&row);
                row.is_some_and(|row| row.entries.iter().any(|(other, _)| *other == ports))
            });
            if !wanted {
                stale.push(key);
            }
        })?;
        for key in &stale {
            removed("rows", self.maps.rows.remove(&row_key(*key)))?;
        }
        count("rows", stale.len());
        self.rows.retain(|row: &RowId, _| image.rows.contains_key(row));

        let mut stale: Vec<u32> = Vec::new();
        self.maps.read("decisions", |key: u32, _: Decision| {
            if !image.decisions.contains_key(&DecisionId(key)) {
                stale.push(key);
            }
        })?;
        for key in &stale {
            removed("decisions", self.maps.decisions.remove(key))?;
        }
        count("decisions", stale.len());

        let counted: Vec<(u32, Vec<Counter>)> = self.count_decisions()?;
        let stale: Vec<u32> = counted.iter().map(|(key, _)| *key).collect();
        for key in stale.iter().filter(|key| !image.decisions.contains_key(&DecisionId(**key))) {
            removed("counters", self.maps.counters.remove(key))?;
        }
        Ok(swept)
    }

    /// Closes the gates that are of no pod of the image.
    fn lock_strays(&mut self, image: &Image) -> Result<Vec<u32>, ApplyError> {
        let mut strays: Vec<u32> = Vec::new();
        let known = |index: u32| self.bound.get(&index).is_some_and(|pod| image.endpoints.contains_key(pod));
        self.maps.read("endpoints", |index: u32, entry: Endpoint| {
            if !known(index) && entry.flags & (ENDPOINT_LOCKDOWN | ENDPOINT_BRIDGE) == 0 {
                strays.push(index);
            }
        })?;
        for index in &strays {
            match self.bound.get(index).cloned() {
                Some(pod) => self.lock_down(&pod)?,
                None => self.unbind(*index)?,
            }
        }
        Ok(strays)
    }
}
