//! A model of the kernel's gates: maps with limits, programs on interfaces, and packets judged as the programs judge them.
//!
//! The kernel's part outlives the process, as pinned maps do. A process can be killed at any write.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::compile::diff::Operation;
use sluice_policy_core::compile::engine::Floor;
use sluice_policy_core::compile::image::{Endpoint, Identity, Image};
use sluice_policy_core::flow::{Query, Verdict};

use super::{ApplyError, AttachError, Datapath, Difference, Found, HeldIdentities, Interface, Seen, Tended, Veth};
use ipnet::IpNet;
use sluice_contract::id::IfName;

/// What stands at both hooks of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attached {
    /// Nothing: packets pass unjudged.
    Nothing,
    /// The drop program.
    Drop,
    /// The gate, by filters.
    Gate,
    /// The gate, by filters that the process before has put there.
    Older,
    /// The gate of another layout of the maps, by links.
    OtherLayout,
    /// The gate, by links.
    Links,
}

/// An entry of the map of endpoints.
#[derive(Debug, Clone)]
struct Entry {
    endpoint: Endpoint,
    locked: bool,
}

/// What the kernel holds.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    /// All maps but that of endpoints.
    maps: Image,
    entries: BTreeMap<u32, Entry>,
    links: BTreeMap<u32, (String, Attached)>,
    /// Entries that a map can hold.
    limits: BTreeMap<&'static str, usize>,
    /// Writes until the process is killed.
    fuse: Option<u32>,
    /// The maps of another layout.
    before: Option<Box<Self>>,
    /// A process of that layout is still there.
    pub(crate) before_is_held: bool,
    /// Programs cannot be put anywhere.
    pub(crate) refuses_programs: bool,
    /// What stands at the uplink; none: there is none.
    pub(crate) uplink: Option<Attached>,
    /// They cannot be put at this interface.
    pub(crate) refuses_at: Option<u32>,
    /// How often each interface was looked at.
    pub(crate) checks: BTreeMap<u32, u32>,
    /// It has no links, as before Linux 6.6.
    pub(crate) without_links: bool,
    /// Interfaces whose flows were made known before they had a gate.
    pub(crate) seeded: BTreeSet<u32>,
    /// Interfaces to which the host has a route of an address alone.
    pub(crate) routes: BTreeMap<IpAddr, u32>,
    /// The aliases of interfaces.
    pub(crate) aliases: BTreeMap<u32, String>,
    /// The namespaces that the other ends of interfaces are in.
    pub(crate) namespaces: BTreeMap<u32, i32>,
    /// It does not tell of all interfaces.
    pub(crate) hides_veths: bool,
    /// How often it was asked for all interfaces.
    pub(crate) dumps: u32,
    /// Addresses with which pods have open flows.
    pub(crate) peers: BTreeSet<IpAddr>,
}

impl Kernel {
    /// A link appears, with what its plugin has left on it.
    pub(crate) fn plug(&mut self, index: u32, attached: Attached) {
        self.links.insert(index, (format!("eni{index}"), attached));
    }

    /// A link of another name.
    pub(crate) fn plug_named(&mut self, index: u32, name: &str, attached: Attached) {
        self.links.insert(index, (name.to_owned(), attached));
    }

    /// A link goes.
    pub(crate) fn unplug(&mut self, index: u32) {
        self.links.remove(&index);
    }

    /// What comes next has another layout of the maps. Gates stand by links.
    pub(crate) fn change_layout(&mut self) {
        let before = std::mem::take(self);
        let links = before.links.iter();
        self.links = links.map(|(index, (name, _))| (*index, (name.clone(), Attached::OtherLayout))).collect();
        self.uplink = before.uplink.map(|_| Attached::OtherLayout);
        self.before = Some(Box::new(before));
    }

    /// Whether there is another layout of the maps.
    pub(crate) const fn has_other_layout(&self) -> bool {
        self.before.is_some()
    }

    /// Somebody takes the filters of a link away.
    pub(crate) fn strip(&mut self, index: u32) {
        if let Some((_, attached)) = self.links.get_mut(&index)
            && !matches!(attached, Attached::Links | Attached::OtherLayout)
        {
            *attached = Attached::Nothing;
        }
    }

    pub(crate) fn links(&self) -> BTreeMap<u32, String> {
        self.links.iter().map(|(index, (name, _))| (*index, name.clone())).collect()
    }

    pub(crate) fn attached(&self, index: u32) -> Option<Attached> {
        self.links.get(&index).map(|(_, attached)| *attached)
    }

    pub(crate) fn limit(&mut self, map: &'static str, entries: usize) {
        self.limits.insert(map, entries);
    }

    pub(crate) fn unlimited(&mut self) {
        self.limits.clear();
    }

    /// The process is killed after so many more writes.
    pub(crate) const fn kill_after(&mut self, writes: u32) {
        self.fuse = Some(writes);
    }

    /// It is not killed.
    pub(crate) const fn disarm(&mut self) {
        self.fuse = None;
    }

    /// Entries by map.
    pub(crate) fn sizes(&self) -> BTreeMap<&'static str, usize> {
        let mut sizes: BTreeMap<_, _> = self.maps.sizes().into_iter().map(|size| (size.map, size.entries)).collect();
        sizes.insert("endpoints", self.entries.len());
        sizes
    }

    /// Whether the first packet of a flow passes the interface. Whose it is comes from the interface, not from the query.
    pub(crate) fn passes(&self, index: u32, query: &Query) -> bool {
        match self.attached(index) {
            Some(Attached::Nothing) => return true,
            Some(Attached::Drop) | None => return false,
            Some(Attached::OtherLayout) => {
                return self.before.as_ref().is_some_and(|before| before.judges(index, query));
            }
            Some(Attached::Gate | Attached::Older | Attached::Links) => {}
        }
        self.judges(index, query)
    }

    /// What the maps say of it.
    fn judges(&self, index: u32, query: &Query) -> bool {
        let Some(entry) = self.entries.get(&index).filter(|entry| !entry.locked) else { return false };
        let mut maps = self.maps.clone();
        maps.endpoints.insert(query.subject.clone(), Arc::new(entry.endpoint.clone()));
        maps.judge(query).verdict != Verdict::Deny
    }

    /// The revision of the interface's gate.
    pub(crate) fn revision(&self, index: u32) -> Option<u64> {
        self.entries.get(&index).map(|entry| entry.endpoint.revision)
    }

    fn room(&self, map: &'static str) -> Result<(), ApplyError> {
        match self.limits.get(map) {
            Some(limit) if self.sizes().get(map).is_some_and(|held| held > limit) => {
                Err(ApplyError::Full { map, limit: u32::try_from(*limit).unwrap_or(u32::MAX) })
            }
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Default)]
struct Remembered {
    endpoint: Option<Arc<Endpoint>>,
    locked: bool,
    interfaces: BTreeSet<u32>,
}

/// The gates as one process has them.
#[derive(Debug)]
pub(crate) struct Model {
    kernel: Arc<Mutex<Kernel>>,
    pods: BTreeMap<PodKey, Remembered>,
    bound: BTreeMap<u32, PodKey>,
    /// Entries from before that have not been written since.
    kept: BTreeSet<u32>,
    /// Interfaces that have been bound and are not gone.
    guarded: BTreeSet<u32>,
    /// Interfaces whose gates wait for links.
    unlinked: BTreeSet<u32>,
}

impl Model {
    /// What a process that starts now opens.
    pub(crate) fn open(kernel: &Arc<Mutex<Kernel>>) -> (Self, Found) {
        let mut held = kernel.lock().unwrap_or_else(PoisonError::into_inner);
        // Programs are loaded anew: links run them, filters run those of before.
        for (_, attached) in held.links.values_mut().filter(|(_, attached)| *attached == Attached::Gate) {
            *attached = Attached::Older;
        }
        if held.uplink == Some(Attached::Gate) {
            held.uplink = Some(Attached::Older);
        }
        let maps = &held.maps;
        let identities = maps
            .ipcache
            .iter()
            .map(|(_, identity)| identity)
            .chain(maps.names.iter().map(|(_, identity)| identity))
            .chain(maps.frontends.values().copied())
            .chain(maps.peers.keys().map(|(_, identity)| *identity));
        let floor = Floor {
            identity: identities.map(|identity| identity.0).max().unwrap_or(0),
            policy: maps.peers.keys().map(|(policy, _)| policy.0).max().unwrap_or(0),
            row: maps.rows.keys().map(|row| row.0).max().unwrap_or(0),
            decision: maps.decisions.keys().map(|decision| decision.0).max().unwrap_or(0),
            revision: held.entries.values().map(|entry| entry.endpoint.revision).max().unwrap_or(0),
        };
        let kept: BTreeSet<u32> = held.entries.keys().copied().collect();
        let found = Found { endpoints: kept.clone(), floor };
        let kernel = Arc::clone(kernel);
        (
            Self {
                kernel,
                pods: BTreeMap::new(),
                bound: BTreeMap::new(),
                kept,
                guarded: BTreeSet::new(),
                unlinked: BTreeSet::new(),
            },
            found,
        )
    }

    /// The kernel, for one write.
    fn write(&self) -> MutexGuard<'_, Kernel> {
        let mut kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut kernel.fuse {
            Some(0) => {
                kernel.fuse = None;
                drop(kernel);
                panic!("killed");
            }
            Some(left) => *left -= 1,
            None => {}
        }
        kernel
    }

    /// Writes the entry of a bound interface as its pod is.
    fn put(&self, index: u32) -> Result<(), ApplyError> {
        let Some(pod) = self.bound.get(&index).and_then(|pod| self.pods.get(pod)) else { return Ok(()) };
        let mut kernel = self.write();
        match &pod.endpoint {
            Some(endpoint) => {
                let entry = Entry { endpoint: endpoint.as_ref().clone(), locked: pod.locked };
                let before = kernel.entries.insert(index, entry);
                let room = kernel.room("endpoints");
                if room.is_err() && before.is_none() {
                    kernel.entries.remove(&index);
                    return room;
                }
            }
            // From before a restart, or nothing.
            None if pod.locked => {
                if let Some(entry) = kernel.entries.get_mut(&index) {
                    entry.locked = true;
                }
            }
            None => {}
        }
        Ok(())
    }

    fn put_all(&mut self, pod: &PodKey) -> Result<(), ApplyError> {
        let interfaces = self.pods.get(pod).map(|pod| pod.interfaces.clone()).unwrap_or_default();
        for index in interfaces {
            self.put(index)?;
            if self.pods.get(pod).is_some_and(|pod| pod.endpoint.is_some()) {
                self.kept.remove(&index);
            }
        }
        Ok(())
    }

    fn set_endpoint(&mut self, pod: &PodKey, endpoint: &Arc<Endpoint>) -> Result<(), ApplyError> {
        let known = self.pods.entry(pod.clone()).or_default();
        let before = (known.endpoint.replace(Arc::clone(endpoint)), std::mem::take(&mut known.locked));
        let written = self.put_all(pod);
        if written.is_err()
            && let Some(known) = self.pods.get_mut(pod)
        {
            (known.endpoint, known.locked) = before;
        }
        written
    }

    fn set_other(&self, operation: &Operation) -> Result<(), ApplyError> {
        let map = match operation {
            Operation::SetDecision(..) => Some("decisions"),
            Operation::SetRow(..) => Some("rows"),
            Operation::SetPeer(..) => Some("peers"),
            Operation::SetAddress(..) => Some("ipcache"),
            Operation::SetName(..) => Some("names"),
            Operation::SetFrontend(..) => Some("frontends"),
            _ => None,
        };
        let mut kernel = self.write();
        let before = map.and_then(|map| kernel.limits.contains_key(map).then(|| kernel.maps.clone()));
        kernel.maps.apply(operation);
        let room = map.map_or(Ok(()), |map| kernel.room(map));
        if let (Err(_), Some(before)) = (&room, before) {
            kernel.maps = before;
        }
        room
    }
}

impl Datapath for Model {
    fn apply(&mut self, operation: &Operation) -> Result<(), ApplyError> {
        match operation {
            Operation::SetEndpoint(pod, endpoint) => self.set_endpoint(pod, endpoint),
            Operation::SetRevision(pod, revision) => {
                if let Some(endpoint) = self.pods.get_mut(pod).and_then(|pod| pod.endpoint.as_mut()) {
                    Arc::make_mut(endpoint).revision = *revision;
                }
                self.put_all(pod)
            }
            Operation::RemoveEndpoint(pod) => {
                let Some(known) = self.pods.get_mut(pod) else { return Ok(()) };
                known.endpoint = None;
                known.locked = false;
                let interfaces = known.interfaces.clone();
                for index in interfaces {
                    self.write().entries.remove(&index);
                }
                Ok(())
            }
            other => self.set_other(other),
        }
    }

    fn identities(&self, prefix: &IpNet) -> Option<HeldIdentities> {
        let kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        let held = &kernel.maps.ipcache;
        let mut shorter = (0..=prefix.prefix_len()).rev().filter_map(|bits| IpNet::new(prefix.addr(), bits).ok());
        let address = shorter.find_map(|prefix| held.get(&prefix.trunc())).unwrap_or(Identity::WORLD);
        Some(HeldIdentities { name: kernel.maps.names.get(prefix), address })
    }

    async fn bind(&mut self, pod: &PodKey, interface: &Interface) -> Result<(), ApplyError> {
        if self.bound.get(&interface.index).is_some_and(|other| other != pod) {
            self.unbind(interface.index)?;
        }
        self.bound.insert(interface.index, pod.clone());
        self.guarded.insert(interface.index);
        self.pods.entry(pod.clone()).or_default().interfaces.insert(interface.index);
        self.put(interface.index)
    }

    fn unbind(&mut self, index: u32) -> Result<(), ApplyError> {
        self.unlinked.remove(&index);
        if let Some(entry) = self.write().entries.get_mut(&index) {
            entry.locked = true;
        }
        if let Some(pod) = self.bound.remove(&index).and_then(|pod| self.pods.get_mut(&pod)) {
            pod.interfaces.remove(&index);
        }
        Ok(())
    }

    fn forget(&mut self, index: u32) -> Result<(), ApplyError> {
        self.unbind(index)?;
        self.write().entries.remove(&index);
        self.guarded.remove(&index);
        Ok(())
    }

    fn lock_down_kept(&mut self) -> Result<usize, ApplyError> {
        let mut kernel = self.write();
        for index in &self.kept {
            if let Some(entry) = kernel.entries.get_mut(index) {
                entry.locked = true;
            }
        }
        Ok(self.kept.len())
    }

    fn lock_down(&mut self, pod: &PodKey) -> Result<(), ApplyError> {
        self.pods.entry(pod.clone()).or_default().locked = true;
        self.put_all(pod)
    }

    async fn attach(&mut self, interface: &Interface) -> Result<(), AttachError> {
        assert!(self.guarded.contains(&interface.index), "only interfaces that were bound are attached");
        let mut kernel = self.write();
        if kernel.refuses_programs || kernel.refuses_at == Some(interface.index) {
            let action = format!("putting the gate on {}", interface.name);
            return Err(AttachError::Kernel { action, source: "refused".into() });
        }
        match kernel.links.get_mut(&interface.index) {
            Some((_, Attached::Links)) => Ok(()),
            Some((name, attached)) if *name == interface.name.as_str() => {
                *attached = Attached::Gate;
                drop(kernel);
                self.unlinked.insert(interface.index);
                Ok(())
            }
            _ => Err(AttachError::Gone { name: interface.name.clone(), index: interface.index }),
        }
    }

    async fn adopt(&mut self, interface: &Interface) -> Result<(), AttachError> {
        self.attach(interface).await?;
        let mut kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        if !kernel.without_links
            && let Some((_, attached)) = kernel.links.get_mut(&interface.index)
        {
            *attached = Attached::Links;
            drop(kernel);
            self.unlinked.remove(&interface.index);
        }
        Ok(())
    }

    async fn promote(&mut self) -> Option<Result<IfName, AttachError>> {
        let index = self.unlinked.first().copied()?;
        let mut kernel = self.write();
        if kernel.without_links {
            return None;
        }
        let (name, attached) = kernel.links.get_mut(&index)?;
        *attached = Attached::Links;
        let name = name.clone();
        drop(kernel);
        self.unlinked.remove(&index);
        Some(Ok(IfName::new(name.as_str()).unwrap()))
    }

    async fn check(&mut self, interface: &Interface) -> Result<Vec<Difference>, AttachError> {
        let mut kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        *kernel.checks.entry(interface.index).or_default() += 1;
        match kernel.attached(interface.index) {
            None => Err(AttachError::Gone { name: interface.name.clone(), index: interface.index }),
            Some(Attached::Gate | Attached::Links) => Ok(Vec::new()),
            Some(other) => {
                let older = matches!(other, Attached::Older | Attached::OtherLayout);
                Ok(vec![Difference { what: format!("{other:?} in place of the gate"), older }])
            }
        }
    }

    async fn behind(&mut self, address: IpAddr) -> Option<(u32, IfName)> {
        let kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        let index = *kernel.routes.get(&address)?;
        kernel.links.get(&index).map(|(name, _)| (index, IfName::new(name.as_str()).unwrap()))
    }

    async fn veths(&mut self) -> Option<Vec<Veth>> {
        let mut kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        kernel.dumps += 1;
        let routed =
            |index: u32| kernel.routes.iter().filter(move |(_, to)| **to == index).map(|(address, _)| *address);
        let veth = |(index, (name, _)): (&u32, &(String, Attached))| Veth {
            index: *index,
            name: IfName::new(name.as_str()).unwrap(),
            alias: kernel.aliases.get(index).cloned(),
            peer_netns: kernel.namespaces.get(index).copied(),
            addresses: routed(*index).collect(),
        };
        (!kernel.hides_veths).then(|| kernel.links.iter().map(veth).collect())
    }

    async fn seed(&mut self, interface: &Interface) {
        self.write().seeded.insert(interface.index);
    }

    async fn tend(&mut self, replace: bool) -> Tended {
        let mut kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        let uplink = kernel.uplink;
        if uplink == Some(Attached::Nothing) || replace && uplink.is_some() {
            kernel.uplink = Some(Attached::Gate);
        }
        let lost = usize::from(uplink == Some(Attached::Nothing));
        Tended { lost, replaced: kernel.uplink != Some(Attached::OtherLayout) }
    }

    fn endpoints(&self) -> impl Iterator<Item = (u32, &PodKey)> + Clone {
        self.bound.iter().map(|(index, pod)| (*index, pod))
    }

    fn sweep(&mut self, image: &Image) -> Result<(), ApplyError> {
        let mut kernel = self.write();
        kernel.maps = Image { endpoints: BTreeMap::new(), ..image.clone() };
        let bound = &self.bound;
        kernel.entries.retain(|index, _| bound.get(index).is_some_and(|pod| image.endpoints.contains_key(pod)));
        Ok(())
    }

    fn leave_other_layouts(&mut self) -> Result<bool, ApplyError> {
        let mut kernel = self.write();
        if kernel.before_is_held {
            return Ok(false);
        }
        kernel.before = None;
        assert_ne!(kernel.uplink, Some(Attached::OtherLayout), "the uplink would stand open");
        for (_, attached) in kernel.links.values_mut().filter(|(_, attached)| *attached == Attached::OtherLayout) {
            *attached = Attached::Nothing;
        }
        Ok(true)
    }

    fn seen(&mut self) -> Vec<Seen> {
        Vec::new()
    }

    fn counters(&mut self) -> BTreeMap<u32, u64> {
        BTreeMap::new()
    }

    fn drops(&mut self) -> BTreeMap<&'static str, u64> {
        BTreeMap::new()
    }

    fn expire(&mut self) {}

    fn in_use(&mut self, addresses: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        self.write().peers.intersection(addresses).copied().collect()
    }
}
