//! The owner of an image: events in, operations out.
//!
//! [`Engine::apply`] notes what an event may change, [`Engine::commit`] works that out and nothing else:
//!
//! 1. which policies select which of the node's pods, and the programs that these make;
//! 2. the predicates that come into force with new programs, and the addresses for which they hold;
//! 3. the classes of addresses, the tables of policies, the frontends of Services, the gates: then the image has what
//!    is old and what is new, and no gate has anything old;
//! 4. programs that nobody runs any more go, with the predicates that only they asked, and classes are merged.
//!
//! An update has the operations of 1 to 3, then those of 4, and each of them is safe: no flow passes more freely than before
//! the update or after it (see `stage`). A predicate in force is one of a policy that selects a pod of the
//! node.

mod atoms;
mod book;
mod checkpoint;
mod fronts;
mod moved;
mod named;
mod numbers;

mod programs;
mod shapes;
mod store;
mod subjects;
mod words;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use self::atoms::{Atom, Atoms, plain};
use self::book::{Book, Context, managed};
use self::checkpoint::Restored;
use self::fronts::{Dialled, Fronts};
pub(in crate::compile) use self::numbers::Numbers;

use self::programs::{Born, Gone, Programs};
use self::store::Store;
use self::subjects::Subject;
use super::diff::Operation;
use super::identity::{Classes, Key, Kind, Moves, NONE, once};
use super::image::Image;
use super::predicate::Predicate;
use super::view::matches;
use crate::cluster::{Applied, Cluster, EndpointSlice, Event, Labels, ObjectId, ObjectKey, PodKey};
use crate::flow::{Direction, Judgement, Query};
use crate::l7::dns::Name;
use crate::model::cilium::ServiceSelector;
use crate::model::{PolicyRef, Text};
use crate::pack::pack_set;
use crate::settings::Settings;

pub use self::checkpoint::{Checkpoint, CheckpointFrontend, CheckpointIdentity, Floor};
pub use self::named::NameClass;
pub use self::programs::MAX_CONDITIONS;

/// Compiles what it is told into an image, for one node.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    cluster: Cluster,
    /// Labels of the namespaces that have a pod or an object.
    namespaces: BTreeMap<Text, Labels>,
    /// The names of the slices of Services.
    slices_of: BTreeSet<(ObjectKey, Text)>,
    /// How many addresses there were when room was last made.
    packed: usize,
    atoms: Atoms,
    book: Book,
    classes: Classes,
    programs: Programs,
    fronts: Fronts,
    subjects: BTreeMap<PodKey, Subject>,
    subject_addresses: BTreeMap<IpAddr, BTreeSet<PodKey>>,
    store: Store,
    restored: Restored,
    /// Revisions of gates are above this.
    first_revision: u64,
    dirty: Dirty,
    born_blocks: Vec<Atom>,
    /// Whether the rows of the own node are those of an API server.
    host_api_server: bool,
    names_told: u64,
}

/// What events may have changed.
#[derive(Debug, Default)]
struct Dirty {
    subjects: BTreeSet<PodKey>,
    namespaces: BTreeSet<Text>,
    policies: BTreeSet<PolicyRef>,
    services: BTreeSet<ObjectKey>,
    names: BTreeSet<Name>,
    groups: bool,
    own_node: bool,
    first: bool,
}

/// What a commit changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    /// What to write to the kernel's maps, in this order.
    pub operations: Vec<Operation>,
    /// What someone should know.
    pub notices: Vec<Notice>,
}

/// Something that someone should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Addresses of names were forgotten because there were too many, so many since the last commit. What rules allow
    /// these names does not allow the addresses.
    NamesForgotten(u64),
    /// What all policies of a direction say together is too large ([`MAX_CONDITIONS`]): nothing passes these pods' gates, by
    /// [`crate::flow::Reason::TooLarge`].
    TooLarge {
        /// The direction.
        direction: Direction,
        /// The policies, sorted.
        policies: Vec<PolicyRef>,
        /// The pods of the node that they select, sorted; later, those that have come since.
        pods: Vec<PodKey>,
    },
}

impl Engine {
    /// An engine that knows nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            cluster: Cluster::default(),
            namespaces: BTreeMap::new(),
            slices_of: BTreeSet::new(),
            packed: 0,
            atoms: Atoms::default(),
            book: Book::default(),
            classes: Classes::new(),
            programs: Programs::new(),
            fronts: Fronts::default(),
            subjects: BTreeMap::new(),
            subject_addresses: BTreeMap::new(),
            store: Store::new(),
            restored: Restored::default(),
            first_revision: 0,
            dirty: Dirty { first: true, ..Dirty::default() },
            born_blocks: Vec::new(),
            host_api_server: false,
            names_told: 0,
        }
    }

    /// The image as of the last commit.
    #[must_use]
    pub const fn image(&self) -> &Image {
        self.store.image()
    }

    /// What is known.
    #[must_use]
    pub const fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The pod that has an address; of several that claim it, the one that the gates take it for.
    #[must_use]
    pub fn pod_at(&self, address: IpAddr) -> Option<&Arc<crate::cluster::Pod>> {
        self.book.pod_at(address)
    }

    /// The nodes that have an address.
    pub fn nodes_at(&self, address: IpAddr) -> impl Iterator<Item = &Text> {
        self.book.nodes_at(address)
    }

    /// May the first packet of a flow pass, as of the last commit?
    #[must_use]
    pub fn judge(&self, query: &Query) -> Judgement {
        self.image().judge(query)
    }

    /// Takes an event in.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Upsert(object) => {
                let id = object.id();
                self.object(Event::Upsert(object), &id);
            }
            Event::Delete(id) => self.object(Event::Delete(id.clone()), &id),
            Event::Resolved { .. } | Event::Time(_) => {
                if let Applied::Names(names) = self.cluster.apply(event) {
                    self.dirty.names.extend(names);
                }
            }
        }
    }

    fn object(&mut self, event: Event, id: &ObjectId) {
        match id {
            ObjectId::Pod(key) => {
                let old = self.cluster.pods.get(key).cloned();
                if self.cluster.apply(event) != Applied::Object {
                    return;
                }
                let new = self.cluster.pods.get(key).cloned();
                if let Some(old) = &old {
                    self.book.release(old);
                    for address in &old.addresses {
                        if let Some(keys) = self.subject_addresses.get_mut(&address) {
                            keys.remove(key);
                            if keys.is_empty() {
                                self.subject_addresses.remove(&address);
                            }
                        }
                    }
                }
                if let Some(new) = &new {
                    self.book.claim(new);
                }
                let local = |pod: &Arc<crate::cluster::Pod>| managed(pod) && pod.node == self.settings.node;
                if old.as_ref().is_some_and(local) || new.as_ref().is_some_and(local) {
                    self.dirty.subjects.insert(key.clone());
                }
                self.note_namespace(&key.namespace);
            }
            ObjectId::Namespace(name) => {
                if self.cluster.apply(event) == Applied::Object {
                    self.note_namespace(name);
                }
            }
            ObjectId::Node(name) => {
                let old = self.cluster.nodes.get(name).cloned();
                if self.cluster.apply(event) == Applied::Object {
                    self.book.set_node(old.as_ref(), self.cluster.nodes.get(name));
                    self.dirty.own_node |= self.settings.node.as_ref() == Some(name);
                }
            }
            ObjectId::Service(key) => {
                if self.cluster.apply(event) == Applied::Object {
                    self.dirty.services.insert(key.clone());
                }
            }
            ObjectId::EndpointSlice(key) => {
                let old = self.service_of(key);
                if self.cluster.apply(event) != Applied::Object {
                    return;
                }
                let new = self.service_of(key);
                if let Some(old) = old {
                    self.slices_of.remove(&(old.clone(), Text::clone(&key.name)));
                    self.dirty.services.insert(old);
                }
                if let Some(new) = new {
                    self.slices_of.insert((new.clone(), Text::clone(&key.name)));
                    self.dirty.services.insert(new);
                }
            }
            ObjectId::CidrGroup(_) => self.dirty.groups |= self.cluster.apply(event) == Applied::Object,
            ObjectId::Policy(id) => {
                if self.cluster.apply(event) == Applied::Object {
                    self.dirty.policies.insert(id.clone());
                }
            }
        }
    }

    fn service_of(&self, slice: &ObjectKey) -> Option<ObjectKey> {
        let name = self.cluster.slices.get(slice)?.service.clone()?;
        Some(ObjectKey { namespace: Text::clone(&slice.namespace), name })
    }

    /// A namespace has other labels than it had, or has pods from now on, or none any more.
    fn note_namespace(&mut self, name: &Text) {
        let first = PodKey { namespace: Text::clone(name), name: "".into() };
        let has_pods = self.cluster.pods.range(first..).next().is_some_and(|(key, _)| key.namespace == *name);
        if !has_pods && !self.cluster.namespaces.contains_key(name) {
            self.namespaces.remove(name);
            return;
        }
        if let (Some(known), Some(object)) = (self.namespaces.get(name), self.cluster.namespaces.get(name))
            && *known == object.labels
        {
            return;
        }
        let labels = self.cluster.namespace_labels(name);
        if self.namespaces.get(name) != Some(&labels) {
            self.namespaces.insert(Text::clone(name), labels);
            self.dirty.namespaces.insert(Text::clone(name));
        }
    }

    /// Brings the image up to date.
    pub fn commit(&mut self) -> Update {
        let overflowed = self.cluster.names_overflowed;
        let (mut moves, mut released, mut gates) = (Moves::default(), Vec::new(), Vec::new());
        if std::mem::take(&mut self.dirty.first) {
            for root in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
                if let Ok(root) = IpNet::new(root, 0) {
                    self.book.add_region(root, &mut self.classes);
                }
            }
        }
        // Policies and programs.
        let mut born = Born::default();
        let mut changed = self.resolve(&mut born, &mut released);
        // Addresses.
        let gone_fronts = self.update_services();
        self.bring_into_force(&born);
        let touched = self.book.settle(&mut self.atoms, &self.namespaces, &born.atoms, &mut self.classes, &mut moves);
        for namespace in std::mem::take(&mut self.dirty.namespaces) {
            self.book.relabel(&namespace, &mut self.atoms, &self.namespaces, &born.atoms, &self.classes);
        }
        self.add_atoms(&born);
        self.classify(&born, &mut moves);
        let restored = &mut self.restored;
        let atoms = &self.atoms;
        self.classes.number_all(&mut |key| restored.identity(key, atoms));
        // Tables.
        let mut closed = self.fill_programs(&moves);
        let api_server = self.own_api_server();
        self.programs.set_host_rows(api_server == self.host_api_server, api_server, &mut self.store);
        self.host_api_server = api_server;
        self.write_addresses(&moves);
        let refreshed = self.fronts.refresh(&self.book, &self.classes);
        let mut moved = self.fronts.fill(&refreshed.shaped, &mut self.programs, &mut self.store);
        Fronts::forget(&gone_fronts, &mut self.programs, &mut self.store);
        if !gone_fronts.is_empty() {
            let egress = self.programs.iter().filter(|(_, instance)| instance.frontend_row.is_some());
            moved.extend(egress.map(|(index, _)| index));
        }
        self.note_moves(&moves, &mut moved);
        moved.extend(&closed);
        // Gates.
        for front in refreshed.iter().filter_map(|index| self.fronts.get(index)) {
            for (address, _) in front.backends.iter() {
                changed.extend(self.subject_addresses.get(&address).into_iter().flatten().cloned());
            }
        }
        for address in self.fronts.take_left().into_iter().chain(touched) {
            changed.extend(self.subject_addresses.get(&address).into_iter().flatten().cloned());
        }
        self.drop_subjects(&changed, &mut released, &mut gates);
        self.set_gates(&changed, &moved, &mut gates);
        let mut operations = self.store.staged(&mut self.classes.numbers, &mut self.programs.numbers);
        // What is old.
        let late = self.retire(&released, &gates, &mut moves);
        self.set_gates(&BTreeSet::new(), &late, &mut gates);
        closed.extend(&late);
        operations.append(&mut self.store.operations());
        self.settle();
        let forgotten = overflowed.saturating_sub(std::mem::replace(&mut self.names_told, overflowed));
        let mut notices = if forgotten > 0 { vec![Notice::NamesForgotten(forgotten)] } else { Vec::new() };
        notices.extend(closed.iter().filter_map(|program| self.too_large(*program, &|_| true)));
        let came = born.joined.iter().filter(|(program, _)| !closed.contains(*program));
        notices.extend(came.filter_map(|(program, pods)| self.too_large(*program, &|pod| pods.contains(pod))));
        Update { operations, notices }
    }

    /// Gives the programs that are too large from now on.
    fn fill_programs(&mut self, moves: &Moves) -> BTreeSet<u32> {
        let new = self.split(moves);
        let front = |index: u32| self.fronts.get(index).map(|front| front.identity);
        self.programs.fill(&new, &self.classes, &self.atoms, &front, &mut self.store)
    }

    /// What those of its pods are to be told that are meant, if the program is closed.
    fn too_large(&self, program: u32, is_meant: &dyn Fn(&PodKey) -> bool) -> Option<Notice> {
        let instance = self.programs.get(program).filter(|instance| instance.is_closed())?;
        let runs = |subject: &Subject| subject.sides.iter().any(|side| side.program == Some(program));
        let pods = self.subjects.iter().filter(|(pod, subject)| is_meant(pod) && runs(subject));
        let pods = pods.map(|(pod, _)| pod.clone()).collect();
        Some(Notice::TooLarge { direction: instance.program.direction(), policies: instance.policies(), pods })
    }

    /// Services, their backends and their frontends.
    fn update_services(&mut self) -> Vec<(u32, fronts::Front)> {
        let mut dirty = std::mem::take(&mut self.dirty.services);
        let api = ObjectKey { namespace: "default".into(), name: "kubernetes".into() };
        if dirty.contains(&api) {
            self.book.set_api_servers(self.backends_of(&api));
        }
        if !dirty.is_empty() {
            let asked: Vec<Atom> = self.atoms.about_services.iter().copied().collect();
            for atom in asked {
                let addresses = self.backers(atom);
                self.book.set_backers(atom, addresses);
            }
        }
        if std::mem::take(&mut self.dirty.own_node) {
            let with_node_ports = self
                .cluster
                .services
                .values()
                .filter(|service| service.ports.iter().any(|port| port.node_port.is_some()));
            dirty.extend(with_node_ports.map(|service| service.key.clone()));
        }
        let own_node = self.settings.node.as_ref().and_then(|name| self.cluster.nodes.get(name));
        let mut gone = Vec::new();
        for key in dirty {
            let service = self.cluster.services.get(&key);
            let slices = slices_of(&self.slices_of, &self.cluster, &key).collect();
            let restored = &mut self.restored;
            gone.append(&mut self.fronts.set_service(
                &key,
                &Dialled { service, slices, own_node },
                &mut self.classes,
                &mut |id| restored.frontend(id),
                &mut self.store,
            ));
        }
        gone
    }

    fn pack(&mut self) {
        self.cluster.pack();
        self.book.pack();
        self.classes.pack();
        self.fronts.pack();
        self.programs.pack();
        self.store.pack();
        pack_set(&mut self.slices_of);
    }

    /// The addresses of a Service's ready endpoints.
    fn backends_of(&self, service: &ObjectKey) -> BTreeSet<IpAddr> {
        let slices = slices_of(&self.slices_of, &self.cluster, service);
        slices.flat_map(|slice| slice.ready.iter()).collect()
    }

    /// The addresses for which a predicate about Services holds.
    fn backers(&self, atom: Atom) -> BTreeSet<IpAddr> {
        let Some(Predicate::Services(selector)) = self.atoms.predicate(atom) else { return BTreeSet::new() };
        match selector {
            ServiceSelector::Named { namespace, name } => {
                let meant = self.cluster.services.keys().filter(|key| {
                    key.name == *name && namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
                });
                meant.flat_map(|key| self.backends_of(key)).collect()
            }
            ServiceSelector::Labels { namespace, selector } => {
                let meant = self.cluster.services.values().filter(|service| {
                    namespace.as_ref().is_none_or(|namespace| *namespace == service.key.namespace)
                        && matches(selector, &service.labels)
                });
                meant.flat_map(|service| self.backends_of(&service.key)).collect()
            }
        }
    }

    /// The parts of the book that new predicates need: regions, backers, names.
    fn bring_into_force(&mut self, born: &Born) {
        let blocks: Vec<Atom> = born
            .atoms
            .iter()
            .filter(|atom| matches!(self.atoms.predicate(**atom), Some(Predicate::Block { .. })))
            .copied()
            .collect();
        self.born_blocks = blocks;
        for atom in &born.atoms {
            if self.atoms.about_services.contains(atom) {
                let addresses = self.backers(*atom);
                self.book.set_backers(*atom, addresses);
            }
        }
        let mut names = std::mem::take(&mut self.dirty.names);
        if born.atoms.iter().any(|atom| self.atoms.about_names.contains(atom)) {
            names.extend(self.cluster.names.keys().cloned());
        }
        for name in names {
            self.update_name(&name);
        }
    }

    fn update_name(&mut self, name: &Name) {
        let addresses: BTreeSet<IpAddr> =
            self.cluster.names.get(name).into_iter().flat_map(BTreeMap::keys).copied().collect();
        let meant = |atom: &&Atom| matches!(self.atoms.predicate(**atom), Some(Predicate::Name(pattern)) if pattern.matches(name));
        let atoms: BTreeSet<Atom> = self.atoms.about_names.iter().filter(meant).copied().collect();
        self.book.set_name(name, atoms, addresses);
    }

    /// Gives new atoms to what they hold for.
    fn add_atoms(&mut self, born: &Born) {
        let blocks = std::mem::take(&mut self.born_blocks);
        self.book.add_blocks(&blocks, &self.atoms, &mut self.classes);
        let (mut others, mut api_servers) = (false, false);
        for atom in &born.atoms {
            let Some(predicate) = self.atoms.predicate(*atom) else { continue };
            self.book.set_pods(*atom, predicate, &self.namespaces, true, &self.classes);
            others |= self.atoms.about_kind.contains(atom);
            api_servers |= matches!(predicate, Predicate::Entity(_));
        }
        for name in &born.port_names {
            self.book.add_port_name(name, &mut self.atoms, &self.classes);
        }
        if others {
            self.book.affect_all_but_pods();
        }
        if api_servers {
            self.book.affect_api_servers();
        }
    }

    /// Moves entries to the classes that they belong to.
    fn classify(&mut self, born: &Born, moves: &mut Moves) {
        let context = Context { atoms: &self.atoms, own: self.settings.node.as_ref(), nodes: &self.cluster.nodes };
        let facts = std::mem::take(&mut self.book.facts);
        let mut affected = std::mem::take(&mut self.book.affected);
        let is_born = |atom: u32| {
            born.atoms.contains(&plain(atom))
                || self.atoms.port_of(atom).is_some_and(|port| born.port_names.contains(&port.name))
        };
        let mut moving: Vec<(u32, Key, u32)> = Vec::new();
        // Many addresses have few keys: each is held once.
        let mut keys: HashSet<Key> = HashSet::new();
        for entry in facts {
            let Some(key) = self.book.key(entry, &self.classes, context) else { continue };
            let same =
                self.classes.key_of(entry).is_some_and(|old| old.iter().eq(key.iter().filter(|atom| !is_born(**atom))));
            if same {
                affected.insert(entry);
            } else {
                affected.remove(&entry);
                let before = self.classes.get(entry).map_or(NONE, |entry| entry.class);
                self.classes.take_out(entry, moves);
                moving.push((entry, once(&mut keys, key), before));
            }
        }
        let mut refined = Vec::new();
        for entry in affected {
            if let Some(key) = self.book.key(entry, &self.classes, context) {
                refined.push((entry, once(&mut keys, key)));
            }
        }
        self.classes.refine(refined, moves);
        for (entry, key, before) in moving {
            self.classes.place(entry, &key, before, moves);
        }
    }

    /// The classes that are new, each with one that its members come from.
    fn split(&self, moves: &Moves) -> Vec<(u32, Option<u32>)> {
        let mut parents: BTreeMap<u32, Option<u32>> = moves.born.iter().map(|class| (*class, None)).collect();
        for (entry, before) in &moves.entries {
            // A class that is new itself is in no table yet.
            if *before != NONE
                && !parents.contains_key(before)
                && let Some(parent) = self.classes.get(*entry).and_then(|entry| parents.get_mut(&entry.class))
            {
                parent.get_or_insert(*before);
            }
        }
        moves.born.iter().map(|class| (*class, parents.get(class).copied().flatten())).collect()
    }

    /// Writes the addresses whose identity changed.
    fn write_addresses(&mut self, moves: &Moves) {
        let mut prefixes = std::mem::take(&mut self.book.prefixes);
        let mut names = std::mem::take(&mut self.book.name_addresses);
        for (entry, _) in &moves.entries {
            let Some(entry) = self.classes.get(*entry) else { continue };
            let Some(prefix) = self.classes.prefix(entry) else { continue };
            match entry.kind {
                Kind::Host | Kind::Region => {
                    prefixes.insert(prefix);
                }
                Kind::Name => {
                    names.insert(prefix.addr());
                }
            }
        }
        for prefix in prefixes {
            let class = self.book.class_of(&prefix, &self.classes);
            self.store.set_address(prefix, class.and_then(|class| self.classes.number(class)));
            self.fronts.touch(prefix.network(), prefix.broadcast());
        }
        for address in names {
            let class = self.book.class_of_name(address, &self.classes);
            self.store.set_name(IpNet::from(address), class.and_then(|class| self.classes.number(class)));
            self.fronts.touch(address, address);
        }
    }

    /// Whether the own node is an API server.
    fn own_api_server(&self) -> bool {
        let node = self.settings.node.as_ref().and_then(|name| self.cluster.nodes.get(name));
        node.is_some_and(|node| node.addresses.iter().any(|address| self.book.api_servers.contains(address)))
    }

    /// Drops what nobody needs any more. Gives the programs that are too large from now on: peers that were told apart by
    /// what is gone may be new to them.
    fn retire(&mut self, released: &[u32], gates: &[(u32, programs::Overrides)], moves: &mut Moves) -> BTreeSet<u32> {
        let front = |index: u32| self.fronts.get(index).map(|front| front.identity);
        for (program, overrides) in gates {
            self.programs.release_variant(*program, overrides, &self.classes, &front, &mut self.store);
        }
        released.iter().for_each(|program| self.programs.release(*program));
        moves.entries.clear();
        moves.lost.clear();
        moves.taken.clear();
        moves.born.clear();
        let gone = self.programs.retire(&mut self.atoms, &mut self.store);
        let closed = match gone.atoms.is_empty() && gone.port_names.is_empty() {
            true => BTreeSet::new(),
            false => self.put_out_of_force(&gone, moves),
        };
        let swept = self.classes.sweep(&moves.dead);
        self.programs.forget_classes(&swept, &mut self.store);
        self.fronts.settle(&mut self.store);
        self.programs.settle(&mut self.store);
        self.store.sweep();
        closed
    }

    fn put_out_of_force(&mut self, gone: &Gone, moves: &mut Moves) -> BTreeSet<u32> {
        for atom in &gone.atoms {
            let Some(predicate) = self.atoms.predicate(*atom) else { continue };
            self.book.set_pods(*atom, predicate, &self.namespaces, false, &self.classes);
            match predicate {
                Predicate::Block { .. } => {
                    self.book.remove_block(*atom, &self.atoms, &mut self.classes, moves);
                }
                Predicate::Services(_) => self.book.set_backers(*atom, BTreeSet::new()),
                _ => {}
            }
        }
        let mut ports: BTreeSet<Atom> = BTreeSet::new();
        for name in &gone.port_names {
            ports.append(&mut self.atoms.remove_ports(name));
        }
        if !ports.is_empty() {
            self.book.remove_ports(&ports);
        }
        let names = gone.atoms.iter().any(|atom| self.atoms.about_names.contains(atom));
        for atom in &gone.atoms {
            self.atoms.remove(*atom);
        }
        if names {
            for name in self.book.names() {
                self.update_name(&name);
            }
        }
        self.classes.merge(&|atom| gone.atoms.contains(&plain(atom)) || ports.contains(&atom), moves);
        self.book.settle(&mut self.atoms, &self.namespaces, &BTreeSet::new(), &mut self.classes, moves);
        self.classify(&Born::default(), moves);
        let (restored, atoms) = (&mut self.restored, &self.atoms);
        self.classes.number_all(&mut |key| restored.identity(key, atoms));
        let closed = self.fill_programs(moves);
        self.write_addresses(moves);
        let refreshed = self.fronts.refresh(&self.book, &self.classes);
        self.fronts.fill(&refreshed.shaped, &mut self.programs, &mut self.store);
        closed
    }

    fn settle(&mut self) {
        self.book.settle_groups();
        self.classes.settle();
        self.store.settle();
        self.restored.settle();
        // What grew in order takes twice the room that it needs.
        let addresses = self.image().ipcache.len();
        if addresses > 2 * self.packed {
            self.packed = addresses.max(1_000);
            self.pack();
        }
    }
}

/// The slices of a Service.
fn slices_of<'a>(
    known: &'a BTreeSet<(ObjectKey, Text)>,
    cluster: &'a Cluster,
    service: &'a ObjectKey,
) -> impl Iterator<Item = &'a EndpointSlice> {
    let from = known.range((service.clone(), "".into())..).take_while(move |(of, _)| of == service);
    from.filter_map(|(of, name)| {
        cluster.slices.get(&ObjectKey { namespace: Text::clone(&of.namespace), name: Text::clone(name) })
    })
}
