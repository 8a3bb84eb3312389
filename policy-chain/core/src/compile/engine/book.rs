//! Who has which address, and what is known of it.

mod groups;
mod names;
mod regions;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use self::groups::Groups;
use self::names::Names;
use self::regions::{Regions, any_has, widest};
use super::atoms::{Atom, Atoms, FORWARDED, KIND, OWN_NODE};
use crate::cluster::{Labels, Node, Pod};
use crate::compile::by_address::ByAddress;
use crate::compile::identity::{Classes, Key, Kind as EntryKind, Moves, NONE};
use crate::compile::predicate::{Kind, Predicate};
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

/// All addresses and prefixes that have a class, and why.
#[derive(Debug, Default)]
pub(super) struct Book {
    hosts: ByAddress<Host>,
    /// The entries of those that no pod has.
    podless: BTreeSet<u32>,
    /// Claims on an address that another pod has.
    rivals: BTreeMap<IpAddr, Vec<Arc<Pod>>>,
    nodes: BTreeMap<IpAddr, BTreeSet<Text>>,
    pub(super) api_servers: BTreeSet<IpAddr>,
    /// Predicates about Services, by the addresses of ready backends.
    backers: BTreeMap<IpAddr, BTreeSet<Atom>>,
    backers_of: BTreeMap<Atom, BTreeSet<IpAddr>>,
    names: Names,
    regions: Regions,
    groups: Groups,
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

impl Book {
    /// The pod that has an address.
    pub(super) fn pod_at(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.hosts.get(&address)?.pod.as_ref()
    }

    /// The nodes that have an address.
    pub(super) fn nodes_at(&self, address: IpAddr) -> impl Iterator<Item = &Text> {
        self.nodes.get(&address).into_iter().flatten()
    }

    // Claims.

    pub(super) fn claim(&mut self, pod: &Arc<Pod>) {
        if !managed(pod) {
            return;
        }
        for address in &pod.addresses {
            self.touched.insert(address);
            let host = self.hosts.or_insert(address, Host { pod: None, entry: NONE });
            match &host.pod {
                Some(other) if (other.created, &other.key) >= (pod.created, &pod.key) => {
                    self.rivals.entry(address).or_default().push(Arc::clone(pod));
                }
                other => {
                    if let Some(other) = other {
                        self.rivals.entry(address).or_default().push(Arc::clone(other));
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
            self.touched.insert(address);
            let mut rivals = self.rivals.remove(&address).unwrap_or_default();
            rivals.retain(|rival| rival.key != pod.key);
            if let Some(host) = self.hosts.get_mut(&address)
                && host.pod.as_ref().is_some_and(|owner| owner.key == pod.key)
            {
                rivals.sort_by(|one, other| (one.created, &one.key).cmp(&(other.created, &other.key)));
                host.pod = rivals.pop();
            }
            if !rivals.is_empty() {
                self.rivals.insert(address, rivals);
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
        self.names.set(name, atoms, addresses, &mut self.touched);
    }

    /// The names that a predicate means.
    pub(super) fn names(&self) -> Vec<Name> {
        self.names.all()
    }

    // Regions.

    pub(super) fn add_region(&mut self, prefix: IpNet, classes: &mut Classes) {
        if let Some(entry) = self.regions.add(prefix, classes) {
            self.facts.insert(entry);
            self.prefixes.insert(prefix);
        }
    }

    fn remove_region(&mut self, prefix: IpNet, classes: &mut Classes, moves: &mut Moves) {
        if let Some(entry) = self.regions.remove(prefix) {
            classes.remove(entry, moves);
            self.forget(entry);
            self.prefixes.insert(prefix);
        }
    }

    /// Brings blocks into force.
    pub(super) fn add_blocks(&mut self, blocks: &[Atom], atoms: &Atoms, classes: &mut Classes) {
        let mut cidrs: BTreeSet<IpNet> = BTreeSet::new();
        let mut managed_too: BTreeSet<IpNet> = BTreeSet::new();
        for atom in blocks {
            let Some(Predicate::Block { cidr, except, managed }) = atoms.predicate(*atom) else { continue };
            self.regions.set_block(*cidr, *atom);
            self.add_region(*cidr, classes);
            for net in except {
                self.add_region(*net, classes);
            }
            cidrs.insert(*cidr);
            if *managed {
                managed_too.insert(*cidr);
            }
        }
        let managed_too = widest(&managed_too);
        for cidr in widest(&cidrs) {
            self.affected.extend(self.regions.refresh(cidr, atoms));
            let addresses = cidr.network()..=cidr.broadcast();
            self.affected.extend(self.names.entries.range(addresses.clone()).map(|(_, entry)| *entry));
            for (address, host) in self.hosts.range(addresses) {
                if host.pod.is_none() || any_has(&managed_too, address) {
                    self.affected.insert(host.entry);
                }
            }
        }
        self.affected.remove(&NONE);
    }

    /// Takes a block out of force.
    pub(super) fn remove_block(&mut self, atom: Atom, atoms: &Atoms, classes: &mut Classes, moves: &mut Moves) {
        let Some(Predicate::Block { cidr, except, .. }) = atoms.predicate(atom) else { return };
        self.regions.unset_block(*cidr, atom);
        self.remove_region(*cidr, classes, moves);
        for net in except {
            self.remove_region(*net, classes, moves);
        }
    }

    /// The blocks that an address is in.
    pub(super) fn blocks(&self, address: IpAddr) -> &[Atom] {
        self.regions.of(address).map(|region| &*region.blocks).unwrap_or_default()
    }

    /// Whether a predicate about Services holds for an address.
    pub(super) fn backs(&self, address: IpAddr, atom: Atom) -> bool {
        self.backers_of.get(&atom).is_some_and(|addresses| addresses.contains(&address))
    }

    // Groups.

    /// The labels of a namespace changed.
    pub(super) fn relabel(
        &mut self,
        namespace: &str,
        atoms: &mut Atoms,
        namespaces: &BTreeMap<Text, Labels>,
        born: &BTreeSet<Atom>,
        classes: &Classes,
    ) {
        self.groups.relabel(namespace, atoms, namespaces, born, classes, &mut self.facts);
    }

    /// The groups that a predicate about pods holds for get it, or lose it.
    pub(super) fn set_pods(
        &mut self,
        atom: Atom,
        predicate: &Predicate,
        namespaces: &BTreeMap<Text, Labels>,
        holds: bool,
        classes: &Classes,
    ) {
        self.groups.set(atom, predicate, namespaces, holds, classes, &mut self.affected);
    }

    /// A name of ports is asked for from now on.
    pub(super) fn add_port_name(&mut self, name: &Text, atoms: &mut Atoms, classes: &Classes) {
        self.groups.add_port_name(name, atoms, classes, &mut self.affected);
    }

    /// Nobody asks for these ports any more.
    pub(super) fn remove_ports(&mut self, gone: &BTreeSet<Atom>) {
        self.groups.remove_ports(gone);
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
                let host = self.hosts.or_insert(*address, Host { pod: None, entry: NONE });
                if host.entry == NONE {
                    host.entry = classes.entry(prefix, EntryKind::Host);
                    self.prefixes.insert(prefix);
                    // Of one that a name was known by, its loss is told below.
                    let region = self.regions.of(*address).filter(|_| !self.names.entries.contains_key(address));
                    let before = region.and_then(|region| classes.get(region.entry)).map_or(NONE, |entry| entry.class);
                    moves.taken.push((*address, before));
                }
                let entry = host.entry;
                if pod.is_none() {
                    self.podless.insert(entry);
                } else {
                    self.podless.remove(&entry);
                }
                let group = pod.as_ref().map_or(NONE, |pod| self.groups.of(pod, atoms, namespaces, born));
                if classes.get(entry).is_some_and(|entry| entry.group != group) {
                    self.groups.leave(entry, classes);
                    self.groups.join(entry, group, classes);
                }
                self.facts.insert(entry);
            } else if let Some(host) = self.hosts.remove(address)
                && host.entry != NONE
            {
                self.groups.leave(host.entry, classes);
                self.podless.remove(&host.entry);
                let before = classes.get(host.entry).map_or(NONE, |entry| entry.class);
                classes.remove(host.entry, moves);
                self.forget(host.entry);
                moves.lost.push((*address, before));
                self.prefixes.insert(prefix);
            }
            if pod.is_none() && !node && self.names.has(*address) {
                let entry =
                    *self.names.entries.entry(*address).or_insert_with(|| classes.entry(prefix, EntryKind::Name));
                self.facts.insert(entry);
                self.name_addresses.insert(*address);
            } else if let Some(entry) = self.names.entries.remove(address) {
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
        self.affected.extend(self.regions.entries());
        self.affected.extend(self.names.entries.values());
        self.affected.extend(&self.podless);
    }

    /// Every API server is looked at again.
    pub(super) fn affect_api_servers(&mut self) {
        for address in &self.api_servers {
            self.affected.extend(self.hosts.get(address).map(|host| host.entry));
            self.affected.extend(self.names.entries.get(address));
        }
        self.affected.remove(&NONE);
    }

    /// What holds for an entry.
    pub(super) fn key(&self, entry: u32, classes: &Classes, context: Context<'_>) -> Option<Key> {
        let entry = classes.get(entry)?;
        let prefix = classes.prefix(entry)?;
        let address = prefix.addr();
        let mut key: Vec<Atom> = Vec::new();
        if entry.kind == EntryKind::Region {
            about_kind(&mut key, &Kind::Other, address.is_ipv4(), false, &[], context.atoms);
            key.extend(&self.regions.get(&prefix)?.blocks);
        } else {
            self.host_key(&mut key, entry.group, address, context);
            if entry.kind == EntryKind::Name {
                key.extend(self.names.atoms(address));
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
        if let Some(of_group) = self.groups.atoms(group) {
            key.extend(of_group);
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
            // Who sent it is not known, and a block of cilium.io is about that; but all of a family is `world` too.
            let of_world = |atom: &&Atom| {
                matches!(atoms.predicate(**atom), Some(Predicate::Block { cidr, except, managed })
                    if *managed || (cidr.prefix_len() == 0 && except.is_empty()))
            };
            forwarded.extend(blocks.iter().filter(of_world));
            key.extend(forwarded.iter().map(|atom| atom | FORWARDED));
            key.push(OWN_NODE);
        } else {
            about_kind(key, &Kind::RemoteNode, v4, api_server, &labels, atoms);
        }
    }

    /// What was freed may be used again.
    pub(super) fn settle_groups(&mut self) {
        self.groups.settle();
    }

    /// Less room for what is held.
    pub(super) fn pack(&mut self) {
        self.hosts.pack();
        self.groups.pack();
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
        classes.get(*self.names.entries.get(&address)?).map(|entry| entry.class)
    }

    /// The class of an address.
    pub(super) fn class(&self, address: IpAddr, classes: &Classes) -> Option<u32> {
        let entry = match (self.names.entries.get(&address), self.hosts.get(&address)) {
            (Some(entry), _) => *entry,
            (None, Some(host)) if host.entry != NONE => host.entry,
            _ => self.regions.of(address)?.entry,
        };
        classes.get(entry).map(|entry| entry.class)
    }
}

fn about_kind(key: &mut Vec<Atom>, kind: &Kind<'_>, v4: bool, api_server: bool, nodes: &[&Labels], atoms: &Atoms) {
    let holds =
        |atom: &&Atom| atoms.predicate(**atom).is_some_and(|predicate| predicate.holds(kind, v4, api_server, nodes));
    key.extend(atoms.about_kind.iter().filter(holds));
}

/// Which predicates of a key count in a direction: of the own node's address, at ingress, those that hold where it was not
/// the node that sent the packet.
pub(super) fn counted(key: &[Atom], direction: Direction) -> impl Iterator<Item = Atom> {
    let forwarded = direction == Direction::Ingress && key.last() == Some(&OWN_NODE);
    let kind = if forwarded { FORWARDED } else { 0 };
    key.iter().filter(move |atom| **atom & KIND == kind).map(|atom| *atom & !KIND)
}
