//! Who has which address, and what is known of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::atoms::{Atom, Atoms, FORWARDED, OWN_NODE, is_about_pods};
use crate::cluster::{Labels, NamedPort, Node, Pod};
use crate::compile::identity::{Classes, Key, Kind as EntryKind, Moves, NONE};
use crate::compile::predicate::{Kind, Predicate, in_block};
use crate::compile::view::PodView;
use crate::flow::Direction;
use crate::l7::dns::Name;
use crate::model::Text;
use crate::model::cilium::Entity;

/// Whether a pod has addresses that are its own.
pub(super) fn managed(pod: &Pod) -> bool {
    !pod.host_network && !pod.finished
}

#[derive(Debug)]
struct Host {
    /// The pod that has the address.
    pod: Option<Arc<Pod>>,
    entry: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct GroupKey {
    namespace: Text,
    labels: Labels,
    service_account: Text,
    ports: Arc<[NamedPort]>,
}

/// Pods that no predicate about pods can tell apart.
#[derive(Debug)]
struct Group {
    key: GroupKey,
    /// What holds for them, sorted: predicates about pods, and named ports asked for.
    atoms: Vec<Atom>,
    /// The addresses.
    members: Vec<u32>,
}

/// The addresses for which a prefix is the longest that is named.
#[derive(Debug)]
struct Region {
    /// How many blocks name it.
    references: u32,
    entry: u32,
    /// The blocks that it is in, sorted.
    blocks: Vec<Atom>,
}

/// All addresses and prefixes that have a class, and why.
#[derive(Debug, Default)]
pub(super) struct Book {
    hosts: BTreeMap<IpAddr, Host>,
    /// The entries of those that no pod has.
    podless: BTreeSet<u32>,
    /// Claims on an address that another pod has.
    rivals: BTreeMap<IpAddr, Vec<Arc<Pod>>>,
    nodes: BTreeMap<IpAddr, BTreeSet<Text>>,
    pub(super) api_servers: BTreeSet<IpAddr>,
    /// Predicates about Services, by the addresses of ready backends.
    backers: BTreeMap<IpAddr, BTreeSet<Atom>>,
    backers_of: BTreeMap<Atom, BTreeSet<IpAddr>>,
    /// Predicates about names, by the addresses that names of theirs resolved to, with the number of those names.
    named: BTreeMap<IpAddr, BTreeMap<Atom, u32>>,
    names: BTreeMap<Name, (BTreeSet<Atom>, BTreeSet<IpAddr>)>,
    name_entries: BTreeMap<IpAddr, u32>,
    regions: BTreeMap<IpNet, Region>,
    /// The blocks that begin at a prefix.
    cidrs: BTreeMap<IpNet, BTreeSet<Atom>>,
    /// How many regions there are of each length, IPv4 and IPv6.
    lengths: [BTreeMap<u8, usize>; 2],
    groups: Vec<Option<Group>>,
    free_groups: Vec<u32>,
    freed_groups: Vec<u32>,
    groups_by_key: HashMap<GroupKey, u32>,
    groups_of: BTreeMap<Text, BTreeSet<u32>>,
    /// Addresses of which something changed.
    pub(super) touched: BTreeSet<IpAddr>,
    /// Entries of which something changed.
    pub(super) facts: BTreeSet<u32>,
    /// Entries for which a new predicate holds, or may hold.
    pub(super) affected: BTreeSet<u32>,
    /// Prefixes of the ipcache to be written anew.
    pub(super) prefixes: BTreeSet<IpNet>,
    /// Names to be written anew.
    pub(super) name_addresses: BTreeSet<IpAddr>,
}

/// What looks at addresses has to know besides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) atoms: &'a Atoms,
    pub(super) own: Option<&'a Text>,
    pub(super) nodes: &'a BTreeMap<Text, Node>,
}

const fn family(v4: bool) -> usize {
    if v4 { 0 } else { 1 }
}

fn insert(atoms: &mut Vec<Atom>, atom: Atom) -> bool {
    match atoms.binary_search(&atom) {
        Ok(_) => false,
        Err(at) => {
            atoms.insert(at, atom);
            true
        }
    }
}

impl Book {
    // Claims.

    pub(super) fn claim(&mut self, pod: &Arc<Pod>) {
        if !managed(pod) {
            return;
        }
        for address in &pod.addresses {
            self.touched.insert(*address);
            let host = self.hosts.entry(*address).or_insert(Host { pod: None, entry: NONE });
            match &host.pod {
                Some(other) if (other.created, &other.key) >= (pod.created, &pod.key) => {
                    self.rivals.entry(*address).or_default().push(Arc::clone(pod));
                }
                other => {
                    if let Some(other) = other {
                        self.rivals.entry(*address).or_default().push(Arc::clone(other));
                    }
                    host.pod = Some(Arc::clone(pod));
                }
            }
        }
    }

    pub(super) fn release(&mut self, pod: &Pod) {
        if !managed(pod) {
            return;
        }
        for address in &pod.addresses {
            self.touched.insert(*address);
            let mut rivals = self.rivals.remove(address).unwrap_or_default();
            rivals.retain(|rival| rival.key != pod.key);
            if let Some(host) = self.hosts.get_mut(address)
                && host.pod.as_ref().is_some_and(|owner| owner.key == pod.key)
            {
                rivals.sort_by(|one, other| (one.created, &one.key).cmp(&(other.created, &other.key)));
                host.pod = rivals.pop();
            }
            if !rivals.is_empty() {
                self.rivals.insert(*address, rivals);
            }
        }
    }

    pub(super) fn set_node(&mut self, old: Option<&Node>, new: Option<&Node>) {
        if let Some(node) = old {
            for address in &node.addresses {
                self.touched.insert(*address);
                if let Some(names) = self.nodes.get_mut(address) {
                    names.remove(&node.name);
                    if names.is_empty() {
                        self.nodes.remove(address);
                    }
                }
            }
        }
        if let Some(node) = new {
            for address in &node.addresses {
                self.touched.insert(*address);
                self.nodes.entry(*address).or_default().insert(Text::clone(&node.name));
            }
        }
    }

    pub(super) fn set_api_servers(&mut self, addresses: BTreeSet<IpAddr>) {
        self.touched.extend(self.api_servers.symmetric_difference(&addresses));
        self.api_servers = addresses;
    }

    /// The addresses for which a predicate about Services holds.
    pub(super) fn set_backers(&mut self, atom: Atom, addresses: BTreeSet<IpAddr>) {
        let before = self.backers_of.remove(&atom).unwrap_or_default();
        for address in before.symmetric_difference(&addresses) {
            self.touched.insert(*address);
            let atoms = self.backers.entry(*address).or_default();
            if addresses.contains(address) {
                atoms.insert(atom);
            } else {
                atoms.remove(&atom);
            }
            if atoms.is_empty() {
                self.backers.remove(address);
            }
        }
        if !addresses.is_empty() {
            self.backers_of.insert(atom, addresses);
        }
    }

    /// The addresses of a name, and the predicates that mean it.
    pub(super) fn set_name(&mut self, name: &Name, atoms: BTreeSet<Atom>, addresses: BTreeSet<IpAddr>) {
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
                self.touched.insert(*address);
            }
        }
        if !atoms.is_empty() && !addresses.is_empty() {
            self.names.insert(name.clone(), (atoms, addresses));
        }
    }

    // Regions.

    pub(super) fn add_region(&mut self, prefix: IpNet, classes: &mut Classes) {
        let region = self.regions.entry(prefix).or_insert_with(|| {
            let length = prefix.prefix_len();
            if let Some(lengths) = self.lengths.get_mut(family(matches!(prefix, IpNet::V4(_)))) {
                *lengths.entry(length).or_default() += 1;
            }
            Region { references: 0, entry: classes.entry(prefix, EntryKind::Region), blocks: Vec::new() }
        });
        region.references += 1;
        if region.references == 1 {
            self.facts.insert(region.entry);
            self.prefixes.insert(prefix);
        }
    }

    fn remove_region(&mut self, prefix: IpNet, classes: &mut Classes, moves: &mut Moves) {
        let Some(region) = self.regions.get_mut(&prefix) else { return };
        region.references = region.references.saturating_sub(1);
        if region.references > 0 {
            return;
        }
        classes.remove(region.entry, moves);
        self.regions.remove(&prefix);
        self.prefixes.insert(prefix);
        if let Some(lengths) = self.lengths.get_mut(family(matches!(prefix, IpNet::V4(_))))
            && let Some(count) = lengths.get_mut(&prefix.prefix_len())
        {
            *count -= 1;
            if *count == 0 {
                lengths.remove(&prefix.prefix_len());
            }
        }
    }

    /// Brings blocks into force.
    pub(super) fn add_blocks(&mut self, blocks: &[Atom], atoms: &Atoms, classes: &mut Classes) {
        let mut cidrs: BTreeSet<IpNet> = BTreeSet::new();
        let mut managed_too: BTreeSet<IpNet> = BTreeSet::new();
        for atom in blocks {
            let Some(Predicate::Block { cidr, except, managed }) = atoms.predicate(*atom) else { continue };
            self.cidrs.entry(*cidr).or_default().insert(*atom);
            self.add_region(*cidr, classes);
            for net in except {
                self.add_region(*net, classes);
            }
            cidrs.insert(*cidr);
            if *managed {
                managed_too.insert(*cidr);
            }
        }
        for cidr in widest(&cidrs) {
            let inside: Vec<IpNet> = self.regions.range(range_of(cidr)).map(|(prefix, _)| *prefix).collect();
            for prefix in inside.into_iter().filter(|prefix| cidr.contains(prefix)) {
                let blocks = self.blocks_around(&prefix, atoms);
                if let Some(region) = self.regions.get_mut(&prefix)
                    && region.blocks != blocks
                {
                    region.blocks = blocks;
                    self.affected.insert(region.entry);
                }
            }
            let addresses = cidr.network()..=cidr.broadcast();
            self.affected.extend(self.name_entries.range(addresses).map(|(_, entry)| *entry));
        }
        for cidr in widest(&cidrs) {
            for (address, host) in self.hosts.range(cidr.network()..=cidr.broadcast()) {
                let other = host.pod.is_none() && !self.nodes.contains_key(address);
                let own = host.pod.is_none() && !other;
                if other || own || managed_too.iter().any(|managed| managed.contains(address)) {
                    self.affected.insert(host.entry);
                }
            }
        }
        self.affected.remove(&NONE);
    }

    /// Takes a block out of force.
    pub(super) fn remove_block(&mut self, atom: Atom, atoms: &Atoms, classes: &mut Classes, moves: &mut Moves) {
        let Some(Predicate::Block { cidr, except, .. }) = atoms.predicate(atom) else { return };
        if let Some(blocks) = self.cidrs.get_mut(cidr) {
            blocks.remove(&atom);
            if blocks.is_empty() {
                self.cidrs.remove(cidr);
            }
        }
        let inside = self.regions.range_mut(range_of(*cidr));
        for (_, region) in inside {
            if let Ok(at) = region.blocks.binary_search(&atom) {
                region.blocks.remove(at);
            }
        }
        self.remove_region(*cidr, classes, moves);
        for net in except {
            self.remove_region(*net, classes, moves);
        }
    }

    /// The blocks that a prefix is in.
    fn blocks_around(&self, prefix: &IpNet, atoms: &Atoms) -> Vec<Atom> {
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

    fn region(&self, address: IpAddr) -> Option<&Region> {
        let lengths = self.lengths.get(family(address.is_ipv4()))?;
        lengths.keys().rev().find_map(|length| self.regions.get(&IpNet::new(address, *length).ok()?.trunc()))
    }

    /// The blocks that an address is in.
    pub(super) fn blocks(&self, address: IpAddr) -> &[Atom] {
        self.region(address).map(|region| region.blocks.as_slice()).unwrap_or_default()
    }

    /// Whether a predicate about Services holds for an address.
    pub(super) fn backs(&self, address: IpAddr, atom: Atom) -> bool {
        self.backers_of.get(&atom).is_some_and(|addresses| addresses.contains(&address))
    }

    // Groups.

    fn group(
        &mut self,
        pod: &Pod,
        context: &mut Atoms,
        namespaces: &BTreeMap<Text, Labels>,
        born: &BTreeSet<Atom>,
    ) -> u32 {
        let key = GroupKey {
            namespace: Text::clone(&pod.key.namespace),
            labels: pod.labels.clone(),
            service_account: Text::clone(&pod.service_account),
            ports: Arc::clone(&pod.ports),
        };
        if let Some(group) = self.groups_by_key.get(&key) {
            return *group;
        }
        let atoms = group_atoms(&key, context, namespaces, born);
        let index = self.free_groups.pop().unwrap_or_else(|| {
            self.groups.push(None);
            u32::try_from(self.groups.len() - 1).unwrap_or(NONE)
        });
        self.groups_of.entry(Text::clone(&key.namespace)).or_default().insert(index);
        self.groups_by_key.insert(key.clone(), index);
        if let Some(slot) = self.groups.get_mut(index as usize) {
            *slot = Some(Group { key, atoms, members: Vec::new() });
        }
        index
    }

    fn leave(&mut self, entry: u32, classes: &mut Classes) {
        let Some(found) = classes.get_mut(entry) else { return };
        let (index, position) = (found.group, found.group_position);
        found.group = NONE;
        let Some(group) = self.groups.get_mut(index as usize).and_then(Option::as_mut) else { return };
        if (position as usize) < group.members.len() {
            group.members.swap_remove(position as usize);
        }
        if let Some(moved) = group.members.get(position as usize)
            && let Some(moved) = classes.get_mut(*moved)
        {
            moved.group_position = position;
        }
        if group.members.is_empty()
            && let Some(group) = self.groups.get_mut(index as usize).and_then(Option::take)
        {
            self.groups_by_key.remove(&group.key);
            if let Some(of) = self.groups_of.get_mut(&group.key.namespace) {
                of.remove(&index);
                if of.is_empty() {
                    self.groups_of.remove(&group.key.namespace);
                }
            }
            self.freed_groups.push(index);
        }
    }

    /// The labels of a namespace changed.
    pub(super) fn relabel(
        &mut self,
        namespace: &str,
        atoms: &mut Atoms,
        namespaces: &BTreeMap<Text, Labels>,
        born: &BTreeSet<Atom>,
    ) {
        for index in self.groups_of.get(namespace).into_iter().flatten() {
            let Some(group) = self.groups.get_mut(*index as usize).and_then(Option::as_mut) else { continue };
            let now = group_atoms(&group.key, atoms, namespaces, born);
            if now != group.atoms {
                group.atoms = now;
                self.facts.extend(&group.members);
            }
        }
    }

    /// The groups that a predicate about pods holds for get it, or lose it.
    pub(super) fn set_pods(
        &mut self,
        atom: Atom,
        predicate: &Predicate,
        namespaces: &BTreeMap<Text, Labels>,
        holds: bool,
    ) {
        if !is_about_pods(predicate) {
            return;
        }
        let (groups_of, groups, affected) = (&self.groups_of, &mut self.groups, &mut self.affected);
        let mut visit = |name: &Text, of: &BTreeSet<u32>| {
            let Some(labels) = namespaces.get(name) else { return };
            if let Predicate::Pods { namespaces, .. } = predicate
                && !namespaces.holds(name, labels)
            {
                return;
            }
            for index in of {
                let Some(group) = groups.get_mut(*index as usize).and_then(Option::as_mut) else { continue };
                if !holds {
                    if let Ok(at) = group.atoms.binary_search(&atom) {
                        group.atoms.remove(at);
                    }
                } else if predicate.holds(&Kind::Pod(view(&group.key, labels)), true, false, &[])
                    && insert(&mut group.atoms, atom)
                {
                    affected.extend(&group.members);
                }
            }
        };
        match predicate.namespaces() {
            Some(names) => {
                names.iter().filter_map(|name| groups_of.get_key_value(name)).for_each(|(name, of)| visit(name, of))
            }
            None => groups_of.iter().for_each(|(name, of)| visit(name, of)),
        }
    }

    /// A name of ports is asked for from now on.
    pub(super) fn add_port_name(&mut self, name: &Text, atoms: &mut Atoms) {
        for group in self.groups.iter_mut().flatten() {
            for port in group.key.ports.iter().filter(|port| port.name == *name) {
                if insert(&mut group.atoms, atoms.port(port)) {
                    self.affected.extend(&group.members);
                }
            }
        }
    }

    /// Nobody asks for these ports any more.
    pub(super) fn remove_ports(&mut self, gone: &BTreeSet<Atom>) {
        for group in self.groups.iter_mut().flatten() {
            group.atoms.retain(|atom| !gone.contains(atom));
        }
    }

    // Entries.

    /// Brings the entries of the touched addresses up to date.
    pub(super) fn settle(
        &mut self,
        atoms: &mut Atoms,
        namespaces: &BTreeMap<Text, Labels>,
        born: &BTreeSet<Atom>,
        classes: &mut Classes,
        moves: &mut Moves,
    ) -> BTreeSet<IpAddr> {
        let touched = std::mem::take(&mut self.touched);
        for address in &touched {
            let prefix = IpNet::from(*address);
            let node = self.nodes.contains_key(address);
            let kept = node || self.api_servers.contains(address) || self.backers.contains_key(address);
            let pod = self.hosts.get(address).and_then(|host| host.pod.clone());
            if kept || pod.is_some() {
                let host = self.hosts.entry(*address).or_insert(Host { pod: None, entry: NONE });
                if host.entry == NONE {
                    host.entry = classes.entry(prefix, EntryKind::Host);
                    self.prefixes.insert(prefix);
                }
                let entry = host.entry;
                if pod.is_none() {
                    self.podless.insert(entry);
                } else {
                    self.podless.remove(&entry);
                }
                let group = pod.as_ref().map_or(NONE, |pod| self.group(pod, atoms, namespaces, born));
                if classes.get(entry).is_some_and(|entry| entry.group != group) {
                    self.leave(entry, classes);
                    if let Some(group_ref) = self.groups.get_mut(group as usize).and_then(Option::as_mut)
                        && let Some(entry_ref) = classes.get_mut(entry)
                    {
                        entry_ref.group = group;
                        entry_ref.group_position = u32::try_from(group_ref.members.len()).unwrap_or(NONE);
                        group_ref.members.push(entry);
                    }
                }
                self.facts.insert(entry);
            } else if let Some(host) = self.hosts.remove(address)
                && host.entry != NONE
            {
                self.leave(host.entry, classes);
                self.podless.remove(&host.entry);
                let before = classes.get(host.entry).map_or(NONE, |entry| entry.class);
                classes.remove(host.entry, moves);
                self.forget(host.entry);
                moves.lost.push((*address, before));
                self.prefixes.insert(prefix);
            }
            if pod.is_none() && !node && self.named.contains_key(address) {
                let entry =
                    *self.name_entries.entry(*address).or_insert_with(|| classes.entry(prefix, EntryKind::Name));
                self.facts.insert(entry);
                self.name_addresses.insert(*address);
            } else if let Some(entry) = self.name_entries.remove(address) {
                let before = classes.get(entry).map_or(NONE, |entry| entry.class);
                classes.remove(entry, moves);
                self.forget(entry);
                moves.lost.push((*address, before));
                self.name_addresses.insert(*address);
            }
        }
        touched
    }

    fn forget(&mut self, entry: u32) {
        self.facts.remove(&entry);
        self.affected.remove(&entry);
    }

    /// Every entry that is no pod's is looked at again.
    pub(super) fn affect_all_but_pods(&mut self) {
        self.affected.extend(self.regions.values().map(|region| region.entry));
        self.affected.extend(self.name_entries.values());
        self.affected.extend(&self.podless);
    }

    /// Every API server is looked at again.
    pub(super) fn affect_api_servers(&mut self) {
        for address in &self.api_servers {
            self.affected.extend(self.hosts.get(address).map(|host| host.entry));
            self.affected.extend(self.name_entries.get(address));
        }
        self.affected.remove(&NONE);
    }

    /// What holds for an entry.
    pub(super) fn key(&self, entry: u32, classes: &Classes, context: Context<'_>) -> Option<Key> {
        let entry = classes.get(entry)?;
        let address = entry.prefix.addr();
        let mut key: Vec<Atom> = Vec::new();
        if entry.kind == EntryKind::Region {
            about_kind(&mut key, &Kind::Other, address.is_ipv4(), false, &[], context.atoms);
            key.extend(&self.regions.get(&entry.prefix)?.blocks);
        } else {
            self.host_key(&mut key, entry.group, address, context);
            if entry.kind == EntryKind::Name {
                key.extend(self.named.get(&address).into_iter().flat_map(BTreeMap::keys));
            }
        }
        key.sort_unstable();
        key.dedup();
        Some(key.into())
    }

    fn host_key(&self, key: &mut Vec<Atom>, group: u32, address: IpAddr, context: Context<'_>) {
        let atoms = context.atoms;
        let (v4, api_server) = (address.is_ipv4(), self.api_servers.contains(&address));
        let blocks = self.blocks(address);
        let of_managed = |atom: &&Atom| matches!(atoms.predicate(**atom), Some(Predicate::Block { managed: true, .. }));
        key.extend(self.backers.get(&address).into_iter().flatten());
        if let Some(group) = self.groups.get(group as usize).and_then(Option::as_ref) {
            key.extend(&group.atoms);
            key.extend(blocks.iter().filter(of_managed));
            if api_server {
                key.extend(atoms.of(&Predicate::Entity(Entity::KubeApiserver)));
            }
            return;
        }
        let Some(names) = self.nodes.get(&address) else {
            about_kind(key, &Kind::Other, v4, api_server, &[], atoms);
            key.extend(blocks);
            return;
        };
        let labels: Vec<&Labels> =
            names.iter().filter_map(|name| context.nodes.get(name)).map(|node| &node.labels).collect();
        key.extend(blocks.iter().filter(of_managed));
        if context.own.is_some_and(|own| names.contains(own)) {
            about_kind(key, &Kind::OwnNode, v4, api_server, &labels, atoms);
            let mut forwarded = Vec::new();
            about_kind(&mut forwarded, &Kind::Other, v4, false, &[], atoms);
            forwarded.extend(blocks);
            key.extend(forwarded.iter().map(|atom| atom | FORWARDED));
            key.push(OWN_NODE);
        } else {
            about_kind(key, &Kind::RemoteNode, v4, api_server, &labels, atoms);
        }
    }

    /// The names that a predicate means.
    pub(super) fn names(&self) -> Vec<Name> {
        self.names.keys().cloned().collect()
    }

    /// What was freed may be used again.
    pub(super) fn settle_groups(&mut self) {
        self.freed_groups.sort_unstable();
        self.free_groups.append(&mut self.freed_groups);
    }

    // For those who write the image.

    /// The class that the ipcache has for a prefix.
    pub(super) fn class_of(&self, prefix: &IpNet, classes: &Classes) -> Option<u32> {
        let host = (prefix.prefix_len() == prefix.max_prefix_len()).then(|| self.hosts.get(&prefix.addr())).flatten();
        let entry = match host {
            Some(host) if host.entry != NONE => host.entry,
            _ => self.regions.get(prefix)?.entry,
        };
        classes.get(entry).map(|entry| entry.class)
    }

    pub(super) fn class_of_name(&self, address: IpAddr, classes: &Classes) -> Option<u32> {
        classes.get(*self.name_entries.get(&address)?).map(|entry| entry.class)
    }

    /// The class of an address.
    pub(super) fn class(&self, address: IpAddr, classes: &Classes) -> Option<u32> {
        let entry = match (self.name_entries.get(&address), self.hosts.get(&address)) {
            (Some(entry), _) => *entry,
            (None, Some(host)) if host.entry != NONE => host.entry,
            _ => self.region(address)?.entry,
        };
        classes.get(entry).map(|entry| entry.class)
    }
}

fn view<'a>(key: &'a GroupKey, namespace_labels: &'a Labels) -> PodView<'a> {
    PodView { namespace: &key.namespace, namespace_labels, labels: &key.labels, service_account: &key.service_account }
}

fn group_atoms(
    key: &GroupKey,
    atoms: &mut Atoms,
    namespaces: &BTreeMap<Text, Labels>,
    born: &BTreeSet<Atom>,
) -> Vec<Atom> {
    let Some(labels) = namespaces.get(&key.namespace) else { return Vec::new() };
    let kind = Kind::Pod(view(key, labels));
    let about = atoms.about_pods(&key.namespace).filter(|(atom, _)| !born.contains(atom));
    let mut holding: Vec<Atom> =
        about.filter(|(_, predicate)| predicate.holds(&kind, true, false, &[])).map(|(atom, _)| atom).collect();
    for port in key.ports.iter() {
        if atoms.asks_for(&port.name) {
            holding.push(atoms.port(port));
        }
    }
    holding.sort_unstable();
    holding.dedup();
    holding
}

fn about_kind(key: &mut Vec<Atom>, kind: &Kind<'_>, v4: bool, api_server: bool, nodes: &[&Labels], atoms: &Atoms) {
    let holds =
        |atom: &&Atom| atoms.predicate(**atom).is_some_and(|predicate| predicate.holds(kind, v4, api_server, nodes));
    key.extend(atoms.about_kind.iter().filter(holds));
}

/// Those that are in no other.
fn widest(cidrs: &BTreeSet<IpNet>) -> Vec<IpNet> {
    let mut list: Vec<IpNet> = Vec::new();
    // In order of their first address, and the wider first.
    for cidr in cidrs {
        if !list.last().is_some_and(|wider| wider.contains(cidr)) {
            list.push(*cidr);
        }
    }
    list
}

/// The prefixes whose first address is in a prefix, in the order of a map.
fn range_of(cidr: IpNet) -> std::ops::RangeInclusive<IpNet> {
    let last = cidr.broadcast();
    let full = cidr.max_prefix_len();
    let bound = |address, length| IpNet::new(address, length).unwrap_or(cidr);
    bound(cidr.network(), 0)..=bound(last, full)
}

/// Which atoms of a key count in a direction: of the own node's address, at ingress, what holds where it was not the
/// node that sent the packet.
pub(super) fn holds(key: &[Atom], atom: Atom, direction: Direction) -> bool {
    let forwarded = direction == Direction::Ingress && key.last() == Some(&OWN_NODE);
    let atom = if forwarded { atom | FORWARDED } else { atom };
    key.binary_search(&atom).is_ok()
}
