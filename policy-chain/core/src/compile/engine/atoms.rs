//! What identities are made of: predicates in force, and named ports that programs ask peers for.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::words;
use crate::cluster::NamedPort;
use crate::compile::predicate::Predicate;
use crate::model::Text;

/// A fact about an address, by number: a predicate that holds, a named port that it has, or one of the marks below.
pub(super) type Atom = u32;

/// Of a predicate: it holds for the own node's address where that is the source of a forwarded packet (DESIGN 6.3).
pub(super) const FORWARDED: Atom = 1 << 30;
/// A named port.
pub(super) const PORT: Atom = 2 << 30;
/// The address is the own node's.
pub(super) const OWN_NODE: Atom = 3 << 30;
/// The bits that say which of these an atom is; none of them: a predicate.
pub(super) const KIND: Atom = 3 << 30;

/// The atom of a predicate that holds whatever way the address is looked at.
pub(super) const fn plain(atom: Atom) -> Atom {
    if atom & KIND == FORWARDED { atom & !KIND } else { atom }
}

#[derive(Debug)]
struct Known {
    predicate: Predicate,
    references: u32,
}

/// All atoms in force.
#[derive(Debug, Default)]
pub(super) struct Atoms {
    predicates: Vec<Option<Known>>,
    free: Vec<Atom>,
    by_predicate: HashMap<Predicate, Atom>,
    /// Names of ports that programs ask for, with how many do.
    names: BTreeMap<Text, u32>,
    ports: BTreeMap<NamedPort, Atom>,
    ports_by_atom: BTreeMap<Atom, NamedPort>,
    next_port: Atom,
    /// Predicates about what kind of address it is, which may hold for what is no pod.
    pub(super) about_kind: BTreeSet<Atom>,
    /// Predicates about pods of these namespaces.
    about_pods_of: BTreeMap<Text, BTreeSet<Atom>>,
    /// Predicates about pods of any namespace.
    about_pods: BTreeSet<Atom>,
    pub(super) about_services: BTreeSet<Atom>,
    pub(super) about_names: BTreeSet<Atom>,
}

impl Atoms {
    /// One more program refers to a predicate. Returns its atom, and whether it is new.
    pub(super) fn refer(&mut self, predicate: &Predicate) -> (Atom, bool) {
        if let Some(atom) = self.by_predicate.get(predicate).copied() {
            if let Some(known) = self.predicates.get_mut(atom as usize).and_then(Option::as_mut) {
                known.references += 1;
            }
            return (atom, false);
        }
        let atom = self.free.pop().unwrap_or_else(|| {
            self.predicates.push(None);
            u32::try_from(self.predicates.len() - 1).unwrap_or(0)
        });
        if let Some(slot) = self.predicates.get_mut(atom as usize) {
            *slot = Some(Known { predicate: predicate.clone(), references: 1 });
        }
        self.by_predicate.insert(predicate.clone(), atom);
        match predicate {
            Predicate::Pods { .. } => {}
            Predicate::Endpoints(_) | Predicate::Entity(_) | Predicate::Nodes(_) => {
                self.about_kind.insert(atom);
            }
            Predicate::Services(_) => {
                self.about_services.insert(atom);
            }
            Predicate::Name(_) => {
                self.about_names.insert(atom);
            }
            Predicate::Block { .. } => {}
        }
        if is_about_pods(predicate) {
            match predicate.namespaces() {
                Some(names) => {
                    for name in names {
                        self.about_pods_of.entry(Text::clone(name)).or_default().insert(atom);
                    }
                }
                None => {
                    self.about_pods.insert(atom);
                }
            }
        }
        (atom, true)
    }

    /// One program less refers to a predicate. Returns whether that was the last.
    pub(super) fn release(&mut self, atom: Atom) -> bool {
        let Some(known) = self.predicates.get_mut(atom as usize).and_then(Option::as_mut) else { return false };
        known.references = known.references.saturating_sub(1);
        known.references == 0
    }

    /// Forgets a predicate that nobody refers to.
    pub(super) fn remove(&mut self, atom: Atom) {
        let Some(known) = self.predicates.get_mut(atom as usize).and_then(Option::take) else { return };
        self.by_predicate.remove(&known.predicate);
        self.free.push(atom);
        for name in known.predicate.namespaces().unwrap_or_default() {
            if let Some(of) = self.about_pods_of.get_mut(name) {
                of.remove(&atom);
                if of.is_empty() {
                    self.about_pods_of.remove(name);
                }
            }
        }
        for set in [&mut self.about_kind, &mut self.about_pods, &mut self.about_services, &mut self.about_names] {
            set.remove(&atom);
        }
    }

    /// The predicates that can hold for pods of a namespace.
    pub(super) fn about_pods(&self, namespace: &str) -> impl Iterator<Item = (Atom, &Predicate)> {
        let of = self.about_pods_of.get(namespace).into_iter().flatten();
        of.chain(&self.about_pods).filter_map(|atom| Some((*atom, self.predicate(*atom)?)))
    }

    pub(super) fn predicate(&self, atom: Atom) -> Option<&Predicate> {
        self.predicates.get(atom as usize)?.as_ref().map(|known| &known.predicate)
    }

    pub(super) fn of(&self, predicate: &Predicate) -> Option<Atom> {
        self.by_predicate.get(predicate).copied()
    }

    /// One more program asks for ports of this name. Returns whether it is the first.
    pub(super) fn refer_name(&mut self, name: &Text) -> bool {
        let count = self.names.entry(Text::clone(name)).or_default();
        *count += 1;
        *count == 1
    }

    /// One less. Returns whether it was the last.
    pub(super) fn release_name(&mut self, name: &Text) -> bool {
        let Some(count) = self.names.get_mut(name) else { return false };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.names.remove(name);
        true
    }

    pub(super) fn asks_for(&self, name: &Text) -> bool {
        self.names.contains_key(name)
    }

    pub(super) fn port(&mut self, port: &NamedPort) -> Atom {
        if let Some(atom) = self.ports.get(port) {
            return *atom;
        }
        let atom = PORT | (self.next_port & !KIND);
        self.next_port = self.next_port.wrapping_add(1);
        self.ports.insert(port.clone(), atom);
        self.ports_by_atom.insert(atom, port.clone());
        atom
    }

    /// Forgets the ports of a name, and gives their atoms.
    pub(super) fn remove_ports(&mut self, name: &Text) -> BTreeSet<Atom> {
        let gone: Vec<NamedPort> = self.ports.keys().filter(|port| port.name == *name).cloned().collect();
        gone.iter()
            .filter_map(|port| {
                let atom = self.ports.remove(port)?;
                self.ports_by_atom.remove(&atom);
                Some(atom)
            })
            .collect()
    }

    /// The named port that an atom is.
    pub(super) fn port_of(&self, atom: Atom) -> Option<&NamedPort> {
        self.ports_by_atom.get(&atom)
    }

    /// The named ports of a class.
    pub(super) fn ports_of(&self, key: &[Atom]) -> Vec<NamedPort> {
        let ports = key.iter().filter(|atom| *atom & KIND == PORT);
        ports.filter_map(|atom| self.ports_by_atom.get(atom).cloned()).collect()
    }

    /// What an atom says, in words that do not depend on its number.
    pub(super) fn text(&self, atom: Atom) -> String {
        match atom & KIND {
            PORT => match self.ports_by_atom.get(&atom) {
                Some(port) => words::port(port),
                None => String::new(),
            },
            OWN_NODE => "own node".to_owned(),
            FORWARDED => {
                format!("forwarded {}", self.predicate(atom & !KIND).map(words::predicate).unwrap_or_default())
            }
            _ => self.predicate(atom).map(words::predicate).unwrap_or_default(),
        }
    }
}

/// Whether it can hold for a pod because of what the pod is, not where.
pub(super) const fn is_about_pods(predicate: &Predicate) -> bool {
    matches!(predicate, Predicate::Pods { .. } | Predicate::Endpoints(_) | Predicate::Entity(_))
}
