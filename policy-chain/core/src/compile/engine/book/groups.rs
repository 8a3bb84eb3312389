//! Pods that no predicate about pods can tell apart: those of a namespace with equal labels, service account and named ports.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::super::atoms::{Atom, Atoms, is_about_pods};
use crate::cluster::{Labels, Pod};
use crate::compile::identity::{Classes, Key, NONE, once};
use crate::compile::predicate::{Kind, Predicate};
use crate::compile::view::PodView;
use crate::model::Text;
use crate::pack::pack_set;

#[derive(Debug)]
struct Group {
    /// One that is or was in it: what it has in common with the others is what counts.
    like: Arc<Pod>,
    /// What holds for them, sorted: predicates about pods, and named ports asked for. Many groups share it.
    atoms: Key,
    /// The first of the entries of their addresses, which are linked; or [`NONE`].
    first: u32,
}

/// All groups.
#[derive(Debug, Default)]
pub(super) struct Groups {
    list: Vec<Option<Group>>,
    free: Vec<u32>,
    freed: Vec<u32>,
    /// By the hash of what they have in common.
    by_hash: BTreeSet<(u32, u32)>,
    of_namespace: BTreeMap<Text, BTreeSet<u32>>,
}

/// What predicates about pods can see.
fn common(pod: &Pod) -> impl Hash + PartialEq {
    (&pod.key.namespace, &pod.labels, &*pod.template)
}

fn hash_of(pod: &Pod) -> u32 {
    let mut hasher = DefaultHasher::new();
    common(pod).hash(&mut hasher);
    u32::try_from(hasher.finish() >> 32).unwrap_or_default()
}

fn view<'a>(pod: &'a Pod, namespace_labels: &'a Labels) -> PodView<'a> {
    PodView {
        namespace: &pod.key.namespace,
        namespace_labels,
        labels: &pod.labels,
        service_account: &pod.template.service_account,
    }
}

/// Adds one; false if it is there.
fn insert(atoms: &mut Key, atom: Atom) -> bool {
    let Err(at) = atoms.binary_search(&atom) else { return false };
    let (before, behind) = atoms.split_at(at);
    *atoms = before.iter().chain(&[atom]).chain(behind).copied().collect();
    true
}

/// The entries that are linked to one, which is the first.
fn members(first: u32, classes: &Classes) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(first), |entry| classes.get(*entry).map(|entry| entry.group_next))
        .take_while(|entry| *entry != NONE)
}

impl Groups {
    fn get_mut(&mut self, group: u32) -> Option<&mut Group> {
        self.list.get_mut(group as usize)?.as_mut()
    }

    /// What holds for the pods of a group; none if there is no such group.
    pub(super) fn atoms(&self, group: u32) -> Option<&[Atom]> {
        Some(&self.list.get(group as usize)?.as_ref()?.atoms)
    }

    /// The group of a pod. Predicates that come into force in this commit are not looked at: [`Self::set`] does that.
    pub(super) fn of(
        &mut self,
        pod: &Arc<Pod>,
        atoms: &mut Atoms,
        namespaces: &BTreeMap<Text, Labels>,
        born: &BTreeSet<Atom>,
    ) -> u32 {
        let hash = hash_of(pod);
        let like = |index: &u32| {
            self.list
                .get(*index as usize)
                .and_then(Option::as_ref)
                .is_some_and(|group| common(&group.like) == common(pod))
        };
        let known = self.by_hash.range((hash, 0)..=(hash, u32::MAX)).map(|(_, index)| *index).find(like);
        if let Some(known) = known {
            return known;
        }
        let holding = holding(pod, atoms, namespaces, born);
        let index = self.free.pop().unwrap_or_else(|| {
            self.list.push(None);
            u32::try_from(self.list.len() - 1).unwrap_or(NONE)
        });
        self.of_namespace.entry(Text::clone(&pod.key.namespace)).or_default().insert(index);
        self.by_hash.insert((hash, index));
        if let Some(slot) = self.list.get_mut(index as usize) {
            *slot = Some(Group { like: Arc::clone(pod), atoms: holding, first: NONE });
        }
        index
    }

    /// Puts an address into a group.
    pub(super) fn join(&mut self, entry: u32, group: u32, classes: &mut Classes) {
        let Some(found) = self.get_mut(group) else { return };
        let next = std::mem::replace(&mut found.first, entry);
        if let Some(next) = classes.get_mut(next) {
            next.group_previous = entry;
        }
        if let Some(entry) = classes.get_mut(entry) {
            (entry.group, entry.group_previous, entry.group_next) = (group, NONE, next);
        }
    }

    /// Takes an address out of its group.
    pub(super) fn leave(&mut self, entry: u32, classes: &mut Classes) {
        let Some(found) = classes.get_mut(entry) else { return };
        let (index, previous, next) = (found.group, found.group_previous, found.group_next);
        (found.group, found.group_previous, found.group_next) = (NONE, NONE, NONE);
        let Some(group) = self.list.get_mut(index as usize).and_then(Option::as_mut) else { return };
        match classes.get_mut(previous) {
            Some(previous) => previous.group_next = next,
            None => group.first = next,
        }
        if let Some(next) = classes.get_mut(next) {
            next.group_previous = previous;
        }
        if group.first == NONE
            && let Some(group) = self.list.get_mut(index as usize).and_then(Option::take)
        {
            self.by_hash.remove(&(hash_of(&group.like), index));
            if let Some(of) = self.of_namespace.get_mut(&group.like.key.namespace) {
                of.remove(&index);
                if of.is_empty() {
                    self.of_namespace.remove(&group.like.key.namespace);
                }
            }
            self.freed.push(index);
        }
    }

    /// The labels of a namespace changed: the entries for which other predicates hold now go to `changed`.
    pub(super) fn relabel(
        &mut self,
        namespace: &str,
        atoms: &mut Atoms,
        namespaces: &BTreeMap<Text, Labels>,
        born: &BTreeSet<Atom>,
        classes: &Classes,
        changed: &mut BTreeSet<u32>,
    ) {
        for index in self.of_namespace.get(namespace).into_iter().flatten() {
            let Some(group) = self.list.get_mut(*index as usize).and_then(Option::as_mut) else { continue };
            let now = holding(&group.like, atoms, namespaces, born);
            if now != group.atoms {
                group.atoms = now;
                changed.extend(members(group.first, classes));
            }
        }
    }

    /// The groups that a predicate about pods holds for get it, or lose it. The entries of those that get it go to `affected`.
    pub(super) fn set(
        &mut self,
        atom: Atom,
        predicate: &Predicate,
        namespaces: &BTreeMap<Text, Labels>,
        holds: bool,
        classes: &Classes,
        affected: &mut BTreeSet<u32>,
    ) {
        if !is_about_pods(predicate) {
            return;
        }
        let (of_namespace, groups) = (&self.of_namespace, &mut self.list);
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
                    if group.atoms.binary_search(&atom).is_ok() {
                        group.atoms = group.atoms.iter().copied().filter(|one| *one != atom).collect();
                    }
                } else if predicate.holds(&Kind::Pod(view(&group.like, labels)), true, false, &[])
                    && insert(&mut group.atoms, atom)
                {
                    affected.extend(members(group.first, classes));
                }
            }
        };
        match predicate.namespaces() {
            Some(names) => {
                names.iter().filter_map(|name| of_namespace.get_key_value(name)).for_each(|(name, of)| visit(name, of))
            }
            None => of_namespace.iter().for_each(|(name, of)| visit(name, of)),
        }
    }

    /// A name of ports is asked for from now on.
    pub(super) fn add_port_name(
        &mut self,
        name: &Text,
        atoms: &mut Atoms,
        classes: &Classes,
        affected: &mut BTreeSet<u32>,
    ) {
        for group in self.list.iter_mut().flatten() {
            for port in group.like.template.ports.iter().filter(|port| port.name == *name) {
                if insert(&mut group.atoms, atoms.port(port)) {
                    affected.extend(members(group.first, classes));
                }
            }
        }
    }

    /// Nobody asks for these ports any more.
    pub(super) fn remove_ports(&mut self, gone: &BTreeSet<Atom>) {
        for group in self.list.iter_mut().flatten() {
            if group.atoms.iter().any(|atom| gone.contains(atom)) {
                group.atoms = group.atoms.iter().copied().filter(|atom| !gone.contains(atom)).collect();
            }
        }
    }

    /// What was freed may be used again.
    pub(super) fn settle(&mut self) {
        self.freed.sort_unstable();
        self.free.append(&mut self.freed);
    }

    /// Less room for what is held.
    pub(super) fn pack(&mut self) {
        self.list.shrink_to_fit();
        let mut keys = HashSet::new();
        for group in self.list.iter_mut().flatten() {
            group.atoms = once(&mut keys, Key::clone(&group.atoms));
        }
        pack_set(&mut self.by_hash);
        self.of_namespace.values_mut().for_each(pack_set);
    }
}

/// What holds for a pod, sorted.
fn holding(pod: &Pod, atoms: &mut Atoms, namespaces: &BTreeMap<Text, Labels>, born: &BTreeSet<Atom>) -> Key {
    let Some(labels) = namespaces.get(&pod.key.namespace) else { return Key::default() };
    let kind = Kind::Pod(view(pod, labels));
    let about = atoms.about_pods(&pod.key.namespace).filter(|(atom, _)| !born.contains(atom));
    let mut holding: Vec<Atom> =
        about.filter(|(_, predicate)| predicate.holds(&kind, true, false, &[])).map(|(atom, _)| atom).collect();
    for port in pod.template.ports.iter() {
        if atoms.asks_for(&port.name) {
            holding.push(atoms.port(port));
        }
    }
    holding.sort_unstable();
    holding.dedup();
    holding.into()
}
