//! Gates: which interface is whose, and what its entry says.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use sluice_contract::node::egress::egress_of;
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::compile::image::{Endpoint, RowId};

use super::maps::removed;
use super::open::own_addresses;
use super::{ApplyError, Gate, Interface};
use crate::layout::{
    self, Address, ENDPOINT_ANY_SOURCE, ENDPOINT_AUDIT, ENDPOINT_BRIDGE, ENDPOINT_LOCKDOWN, OwnAddress,
};

/// Addresses that an entry has room for.
const ADDRESSES: usize = layout::ENDPOINT_ADDRESSES as usize;

/// What holds for an interface after it was bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The pod's endpoint.
    InForce,
    /// What held before the restart, until the pod's endpoint is known.
    Kept,
    /// Everything is dropped, until the pod's endpoint is known.
    Waiting,
}

/// A pod of the node.
#[derive(Debug)]
pub(super) struct Pod {
    /// The number by which its flows go; another for every life of a pod of this name.
    pub(super) id: u32,
    /// What is added to the compiler's revision, so that the number in the map never goes back.
    base: u64,
    endpoint: Option<Arc<Endpoint>>,
    locked: bool,
    interfaces: BTreeMap<u32, Interface>,
    /// Whether the map says of all their addresses that they are this pod's. Without that no entry is written.
    owned: bool,
}

impl Pod {
    const fn new(id: u32) -> Self {
        // Above 0: what is seeded is of revision 0, and so is judged before it passes.
        Self { id, base: 1, endpoint: None, locked: false, interfaces: BTreeMap::new(), owned: false }
    }

    /// The addresses of the entry of an interface, and how many it must have: the interface's own, which come first. As far as
    /// there is room then the interface's own for egress, those that the compiler has rows for, and those of the other
    /// interfaces, by which the pod may answer. A pod with an interface on each of many network cards has more than there is room
    /// for, and sends from each by its own interface.
    fn addresses(&self, interface: &Interface) -> (Vec<OwnAddress>, usize) {
        let row = |row: Option<RowId>| row.map_or(0, |row| row.0);
        let known = self.endpoint.iter().flat_map(|endpoint| &endpoint.addresses).map(|own| OwnAddress {
            address: Address::from(own.address.to_canonical()),
            ingress: row(own.ingress),
            egress: row(own.egress),
        });
        let mut addresses: Vec<OwnAddress> = known.collect();
        let own: Vec<Address> =
            interface.addresses.iter().map(|address| Address::from(address.to_canonical())).collect();
        let others = self.interfaces.values().flat_map(|other| other.addresses.iter().copied());
        let more = others.chain(self.interfaces.values().filter_map(egress));
        for address in own.iter().copied().chain(more.map(|address| Address::from(address.to_canonical()))) {
            if !addresses.iter().any(|known| known.address == address) {
                addresses.push(OwnAddress { address, ingress: 0, egress: 0 });
            }
        }
        let own_egress = egress(interface).map(|address| Address::from(address.to_canonical()));
        // Stable: the order of all else is as above.
        addresses.sort_by_key(|known| (!own.contains(&known.address), own_egress != Some(known.address)));
        let needed = addresses.iter().take_while(|address| own.contains(&address.address)).count();
        (addresses, needed)
    }

    /// The entry of one of its interfaces. Closed, if something is missing.
    fn entry(&self, interface: &Interface) -> layout::Endpoint {
        let (addresses, needed) = self.addresses(interface);
        let open = !self.locked && needed <= ADDRESSES;
        let mut entry = layout::Endpoint { id: self.id, revision: self.base, ..Default::default() };
        for (slot, address) in entry.addresses.iter_mut().zip(addresses) {
            *slot = address;
        }
        match &self.endpoint {
            Some(endpoint) => {
                entry.ingress = endpoint.ingress.0;
                entry.egress = endpoint.egress.0;
                entry.revision = self.base.saturating_add(endpoint.revision);
                entry.flags = if open { 0 } else { ENDPOINT_LOCKDOWN };
                if endpoint.audit {
                    entry.flags |= ENDPOINT_AUDIT;
                }
            }
            None => entry.flags = ENDPOINT_LOCKDOWN,
        }
        if interface.any_source {
            entry.flags |= ENDPOINT_ANY_SOURCE;
        }
        entry
    }
}

/// The address that a pod of one family may have for egress in the other, of which the runtime is not told. Where it has none, the
/// host drops what is sent in that name. Only a pod's first interface has one: the others' IPv6 addresses are counted on network
/// cards of their own, so that theirs would be those of other pods.
fn egress(interface: &Interface) -> Option<IpAddr> {
    let (first, others) = interface.addresses.split_first().filter(|_| interface.first)?;
    egress_of(*first).filter(|_| others.iter().all(|other| other.is_ipv4() == first.is_ipv4()))
}

impl Gate {
    /// The interface belongs to the pod from now on. Binding it again changes what is other than before.
    ///
    /// An entry that the interface has from before a restart stays as it is until the pod's endpoint is set.
    ///
    /// # Errors
    /// [`ApplyError`]; the interface drops then.
    pub fn bind(&mut self, pod: &PodKey, interface: Interface) -> Result<Bound, ApplyError> {
        let index = interface.index;
        if self.bound.get(&index).is_some_and(|other| other != pod) {
            self.release(index)?;
        }
        self.closed.remove(&index);
        let kept = self.kept.get(&index).copied().filter(|entry| holds(entry, &interface));
        if kept.is_none() {
            // It was another pod's.
            self.kept.remove(&index);
        }
        let id = match kept.filter(|kept| kept.id != 0 && !self.is_taken(kept.id, pod)) {
            Some(kept) => kept.id,
            None => self.next_id(),
        };
        let entry = self.pods.entry(pod.clone()).or_insert_with(|| Pod::new(id));
        if entry.interfaces.is_empty() {
            entry.id = id;
        }
        if let Some(kept) = kept {
            entry.base = entry.base.max(kept.revision.saturating_add(1));
        }
        entry.interfaces.insert(index, interface);
        self.bound.insert(index, pod.clone());
        self.write(pod)?;
        let in_force = self.pods.get(pod).is_some_and(|pod| pod.endpoint.is_some() && !pod.locked);
        Ok(match (in_force, self.kept.contains_key(&index)) {
            (true, _) => Bound::InForce,
            (false, true) => Bound::Kept,
            (false, false) => Bound::Waiting,
        })
    }

    /// The interface belongs to nobody from now on: it drops everything for as long as it is there. One that is not known
    /// is success.
    ///
    /// # Errors
    /// [`ApplyError::Kernel`].
    pub fn unbind(&mut self, index: u32) -> Result<(), ApplyError> {
        let mut entry = match self.maps.endpoints.get(&index, 0) {
            Ok(entry) => entry,
            // Nothing passes where nothing is.
            Err(_) => return self.release(index),
        };
        entry.flags |= ENDPOINT_LOCKDOWN;
        self.put(index, entry)?;
        self.release(index)?;
        self.closed.insert(index);
        Ok(())
    }

    /// The link is gone: nothing is kept of it. One that is not known is success.
    ///
    /// # Errors
    /// [`ApplyError::Kernel`].
    pub fn forget(&mut self, index: u32) -> Result<(), ApplyError> {
        self.change(|maps| removed("endpoints", maps.endpoints.remove(&index)))?;
        self.release(index)?;
        self.kept.remove(&index);
        self.closed.remove(&index);
        self.pins.remove_links(index);
        Ok(())
    }

    /// The pods to which interfaces are bound, by their numbers in the maps.
    pub fn endpoints(&self) -> impl Iterator<Item = (u32, &PodKey)> + Clone {
        self.pods.iter().filter(|(_, pod)| !pod.interfaces.is_empty()).map(|(key, pod)| (pod.id, key))
    }

    /// All interfaces of the pod drop everything, established flows too, until its endpoint is set again (DESIGN 6.10).
    ///
    /// # Errors
    /// [`ApplyError::Kernel`].
    pub fn lock_down(&mut self, pod: &PodKey) -> Result<(), ApplyError> {
        let Some(entry) = self.pods.get_mut(pod) else { return Ok(()) };
        entry.locked = true;
        self.write(pod)
    }

    /// Every entry from before a restart that has not been written since drops everything from now on: what to do when
    /// nobody knows any more what the numbers in the maps mean. Says how many they are.
    ///
    /// # Errors
    /// [`ApplyError::Kernel`].
    pub fn lock_down_kept(&mut self) -> Result<usize, ApplyError> {
        let kept: Vec<(u32, layout::Endpoint)> = self.kept.iter().map(|(index, entry)| (*index, *entry)).collect();
        for (index, mut entry) in kept.iter().copied() {
            entry.flags |= ENDPOINT_LOCKDOWN;
            self.put(index, entry)?;
            // It is still from before: its number and revision are gone on with.
            self.kept.insert(index, entry);
        }
        Ok(kept.len())
    }

    /// In what the interface's entry is not as it should be, in words; empty: in nothing.
    ///
    /// # Errors
    /// [`ApplyError::Kernel`].
    pub fn differences(&self, index: u32) -> Result<Vec<String>, ApplyError> {
        let mut words = Vec::new();
        let Some((pod, interface)) = self.bound.get(&index).and_then(|key| {
            let pod = self.pods.get(key)?;
            Some((pod, pod.interfaces.get(&index)?))
        }) else {
            return Ok(vec![format!("interface {index} belongs to no pod")]);
        };
        let Ok(entry) = self.maps.endpoints.get(&index, 0) else {
            return Ok(vec![format!("interface {index} has no entry")]);
        };
        if self.kept.contains_key(&index) {
            words.push(format!("interface {index} is as before the restart"));
        } else if entry != pod.entry(interface) {
            words.push(format!("the entry of interface {index} was changed by somebody else"));
        }
        if entry.flags & ENDPOINT_LOCKDOWN != 0 {
            words.push(format!("interface {index} is locked down"));
        }
        Ok(words)
    }

    /// The addresses behind an interface, as its entry has them.
    pub(super) fn own_addresses(&self, index: u32) -> Vec<IpAddr> {
        let entry = self.maps.endpoints.get(&index, 0).unwrap_or_default();
        own_addresses(&entry).collect()
    }

    pub(super) fn set_endpoint(&mut self, pod: &PodKey, endpoint: &Arc<Endpoint>) -> Result<(), ApplyError> {
        let entry = match self.pods.get_mut(pod) {
            Some(entry) => entry,
            None => {
                let id = self.next_id();
                self.pods.entry(pod.clone()).or_insert_with(|| Pod::new(id))
            }
        };
        entry.endpoint = Some(Arc::clone(endpoint));
        entry.locked = false;
        self.write(pod)
    }

    pub(super) fn set_revision(&mut self, pod: &PodKey, revision: u64) -> Result<(), ApplyError> {
        let Some(entry) = self.pods.get_mut(pod) else { return Ok(()) };
        let Some(endpoint) = entry.endpoint.as_mut() else { return Ok(()) };
        Arc::make_mut(endpoint).revision = revision;
        // Whose addresses are where is as before, and a change of many identities comes by here for every pod.
        if entry.owned { self.put_entries(pod) } else { self.write(pod) }
    }

    pub(super) fn remove_endpoint(&mut self, pod: &PodKey) -> Result<(), ApplyError> {
        let Some(entry) = self.pods.get_mut(pod) else { return Ok(()) };
        entry.endpoint = None;
        entry.locked = true;
        self.write(pod)?;
        self.pods.retain(|key, entry| key != pod || !entry.interfaces.is_empty());
        Ok(())
    }

    /// Writes the entries of a pod's interfaces.
    fn write(&mut self, key: &PodKey) -> Result<(), ApplyError> {
        let Some(pod) = self.pods.get(key) else { return Ok(()) };
        let count = pod.interfaces.values().map(|interface| pod.addresses(interface).1).max().unwrap_or_default();
        let interfaces: Vec<Interface> = pod.interfaces.values().cloned().collect();
        let owned = interfaces.iter().try_for_each(|interface| self.put_owner(interface));
        if let Some(pod) = self.pods.get_mut(key) {
            pod.owned = owned.is_ok();
        }
        owned?;
        self.put_entries(key)?;
        if count > ADDRESSES {
            return Err(ApplyError::Addresses { pod: key.clone(), count, limit: ADDRESSES });
        }
        Ok(())
    }

    /// The same without what is known of whose addresses are behind them.
    fn put_entries(&mut self, key: &PodKey) -> Result<(), ApplyError> {
        let Some(pod) = self.pods.get(key) else { return Ok(()) };
        let undecided = pod.endpoint.is_none() && !pod.locked;
        let entries: Vec<(u32, layout::Endpoint)> =
            pod.interfaces.iter().map(|(index, interface)| (*index, pod.entry(interface))).collect();
        for (index, entry) in entries {
            if undecided && self.kept.contains_key(&index) {
                continue;
            }
            self.put(index, entry)?;
        }
        Ok(())
    }

    fn put(&mut self, index: u32, entry: layout::Endpoint) -> Result<(), ApplyError> {
        self.change(|maps| {
            let written = maps.endpoints.insert(index, entry, 0);
            written.map_err(|error| maps.failed("endpoints", error))
        })?;
        self.kept.remove(&index);
        Ok(())
    }

    /// Makes known whose addresses are behind an interface, and that a bridge is none.
    fn put_owner(&mut self, interface: &Interface) -> Result<(), ApplyError> {
        for address in interface.addresses.iter().copied().chain(egress(interface)) {
            let written = self.maps.owners.insert(Address::from(address.to_canonical()), interface.index, 0);
            written.map_err(|error| self.maps.failed("owners", error))?;
        }
        let Some(bridge) = interface.bridge else { return Ok(()) };
        self.put(bridge, layout::Endpoint { flags: ENDPOINT_BRIDGE, ..Default::default() })
    }

    /// Takes the interface from its pod. Its entry is the caller's business.
    fn release(&mut self, index: u32) -> Result<(), ApplyError> {
        let Some(key) = self.bound.remove(&index) else { return Ok(()) };
        let next = self.next_id();
        let Some(pod) = self.pods.get_mut(&key) else { return Ok(()) };
        let interface = pod.interfaces.remove(&index);
        if pod.interfaces.is_empty() {
            // The next pod of this name has flows of its own.
            *pod = Pod { endpoint: pod.endpoint.take(), locked: pod.locked, ..Pod::new(next) };
            if pod.endpoint.is_none() {
                self.pods.remove(&key);
            }
        }
        let addresses = |interface: Interface| {
            let egress = egress(&interface);
            interface.addresses.into_iter().chain(egress)
        };
        for address in interface.into_iter().flat_map(addresses) {
            let address = Address::from(address.to_canonical());
            if self.maps.owners.get(&address, 0).is_ok_and(|owner| owner == index) {
                removed("owners", self.maps.owners.remove(&address))?;
            }
        }
        Ok(())
    }

    fn is_taken(&self, id: u32, by_other_than: &PodKey) -> bool {
        self.pods.iter().any(|(key, pod)| pod.id == id && key != by_other_than && !pod.interfaces.is_empty())
    }

    /// A number that no entry has. They are used up after four thousand million pods, and then begin anew.
    fn next_id(&mut self) -> u32 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            let id = self.last_id;
            let taken = self.pods.values().any(|pod| pod.id == id) || self.kept.values().any(|entry| entry.id == id);
            if !taken {
                return id;
            }
        }
    }
}

/// Whether an entry may be of this interface: it has its addresses.
fn holds(entry: &layout::Endpoint, interface: &Interface) -> bool {
    let known = |address: Address| entry.addresses.iter().any(|own| own.address == address);
    interface.addresses.iter().all(|address| known(Address::from(address.to_canonical())))
}
