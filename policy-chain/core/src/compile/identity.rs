//! Identities: the classes of addresses for which the same facts hold.
//!
//! A fact is an atom: a number for a predicate in force, or for a named port. A class has a key, the sorted atoms of its members,
//! and a number, its [`Identity`]. The number means the same to every policy as long as it is in use: an address for which something
//! else holds moves to another class. When a predicate comes into force, the classes of the addresses for which it holds
//! are split, the larger part keeping the number; where it holds for all members the class keeps it anyway. When one goes,
//! classes that do not differ any more are merged, the smaller into the larger.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::engine::Numbers;
use super::image::Identity;

/// No class, no group.
pub(super) const NONE: u32 = u32::MAX;

/// Sorted atoms.
pub(super) type Key = Arc<[u32]>;

/// The key that is equal, if there was one before: many addresses have few keys.
pub(super) fn once(keys: &mut HashSet<Key>, key: Key) -> Key {
    if let Some(known) = keys.get(&key) {
        return Key::clone(known);
    }
    keys.insert(Key::clone(&key));
    key
}

/// What has a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An address of a pod, a node, an API server or a backend.
    Host,
    /// The addresses of a named prefix that are in no longer one.
    Region,
    /// An address that a name was seen to resolve to.
    Name,
}

/// Something that has a class.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// An address of IPv4; of IPv6, where it stands among [`Classes::v6`].
    address: u32,
    length: u8,
    v4: bool,
    pub(super) kind: Kind,
    /// Its class, or [`NONE`].
    pub(super) class: u32,
    position: u32,
    /// The group of pods with equal labels that it belongs to, or [`NONE`].
    pub(super) group: u32,
    /// The members of the group before and after it, or [`NONE`].
    pub(super) group_previous: u32,
    pub(super) group_next: u32,
}

/// A class.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) key: Key,
    members: Vec<u32>,
    /// 0 until it is known.
    number: u32,
}

/// All classes.
#[derive(Debug)]
pub(super) struct Classes {
    entries: Vec<Entry>,
    free_entries: Vec<u32>,
    v6: Vec<Ipv6Addr>,
    free_v6: Vec<u32>,
    classes: Vec<Option<Class>>,
    free: Vec<u32>,
    freed: Vec<u32>,
    by_key: HashMap<Key, u32>,
    unnumbered: BTreeSet<u32>,
    /// Shared with what else has identities.
    pub(super) numbers: Numbers,
}

/// A class that is no more.
#[derive(Debug)]
pub(super) struct Swept {
    /// Its place.
    pub(super) class: u32,
    /// Its number, if it had one.
    pub(super) number: Option<Identity>,
    /// What held for its members.
    pub(super) key: Key,
}

/// What [`Classes::refine`] and [`Classes::merge`] did.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Entries that have another class than before, with the class that they had.
    pub(super) entries: Vec<(u32, u32)>,
    /// Classes that are new.
    pub(super) born: Vec<u32>,
    /// Classes that may be empty.
    pub(super) dead: Vec<u32>,
    /// Addresses that are no entries any more, with the class that they had.
    pub(super) lost: Vec<(IpAddr, u32)>,
    /// Addresses that are entries from now on, with the class of the prefix that they were in.
    pub(super) taken: Vec<(IpAddr, u32)>,
}

impl Classes {
    pub(super) fn new() -> Self {
        Self {
            entries: Vec::new(),
            free_entries: Vec::new(),
            v6: Vec::new(),
            free_v6: Vec::new(),
            classes: Vec::new(),
            free: Vec::new(),
            freed: Vec::new(),
            by_key: HashMap::new(),
            unnumbered: BTreeSet::new(),
            numbers: Numbers::from(Identity::FIRST.0),
        }
    }

    /// Less room for what is held.
    pub(super) fn pack(&mut self) {
        self.entries.shrink_to_fit();
        self.v6.shrink_to_fit();
        self.classes.shrink_to_fit();
        self.by_key.shrink_to_fit();
        self.classes.iter_mut().flatten().for_each(|class| class.members.shrink_to_fit());
    }

    /// A new entry, without class.
    pub(super) fn entry(&mut self, prefix: IpNet, kind: Kind) -> u32 {
        let address = match prefix.addr() {
            IpAddr::V4(address) => u32::from(address),
            IpAddr::V6(address) => {
                let at = self.free_v6.pop().unwrap_or_else(|| {
                    self.v6.push(Ipv6Addr::UNSPECIFIED);
                    u32::try_from(self.v6.len() - 1).unwrap_or(NONE)
                });
                if let Some(slot) = self.v6.get_mut(at as usize) {
                    *slot = address;
                }
                at
            }
        };
        let (length, v4) = (prefix.prefix_len(), prefix.addr().is_ipv4());
        let entry = Entry {
            address,
            length,
            v4,
            kind,
            class: NONE,
            position: 0,
            group: NONE,
            group_previous: NONE,
            group_next: NONE,
        };
        if let Some(index) = self.free_entries.pop() {
            if let Some(slot) = self.entries.get_mut(index as usize) {
                *slot = entry;
            }
            return index;
        }
        self.entries.push(entry);
        u32::try_from(self.entries.len() - 1).unwrap_or(NONE)
    }

    pub(super) fn get(&self, entry: u32) -> Option<&Entry> {
        self.entries.get(entry as usize)
    }

    /// What has the class: one address, or the prefix of a region.
    pub(super) fn prefix(&self, entry: &Entry) -> Option<IpNet> {
        let address = match entry.v4 {
            true => IpAddr::V4(entry.address.into()),
            false => IpAddr::V6(*self.v6.get(entry.address as usize)?),
        };
        IpNet::new(address, entry.length).ok()
    }

    pub(super) fn get_mut(&mut self, entry: u32) -> Option<&mut Entry> {
        self.entries.get_mut(entry as usize)
    }

    /// Takes an entry away; its class may be empty then.
    pub(super) fn remove(&mut self, entry: u32, moves: &mut Moves) {
        self.detach(entry, moves);
        self.free_v6.extend(self.get(entry).filter(|entry| !entry.v4).map(|entry| entry.address));
        self.free_entries.push(entry);
    }

    pub(super) fn class(&self, class: u32) -> Option<&Class> {
        self.classes.get(class as usize)?.as_ref()
    }

    pub(super) fn key_of(&self, entry: u32) -> Option<&Key> {
        self.class(self.get(entry)?.class).map(|class| &class.key)
    }

    /// All classes.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Class)> {
        (0..).zip(&self.classes).filter_map(|(index, class)| Some((index, class.as_ref()?)))
    }

    pub(super) fn number(&self, class: u32) -> Option<Identity> {
        self.class(class).map(|class| class.number).filter(|number| *number != 0).map(Identity)
    }

    /// Takes an entry out of its class. An empty class stays until [`Self::sweep`], so that its number is not lost to the
    /// entry if it comes back.
    fn detach(&mut self, entry: u32, moves: &mut Moves) {
        let Some((class_index, position)) = self.get(entry).map(|entry| (entry.class, entry.position)) else { return };
        let Some(class) = self.classes.get_mut(class_index as usize).and_then(Option::as_mut) else { return };
        if (position as usize) < class.members.len() {
            class.members.swap_remove(position as usize);
        }
        if let Some(moved) = class.members.get(position as usize).copied()
            && let Some(moved) = self.entries.get_mut(moved as usize)
        {
            moved.position = position;
        }
        if class.members.is_empty() {
            moves.dead.push(class_index);
        }
        if let Some(entry) = self.entries.get_mut(entry as usize) {
            entry.class = NONE;
        }
    }

    fn attach(&mut self, entry: u32, class_index: u32) {
        let Some(class) = self.classes.get_mut(class_index as usize).and_then(Option::as_mut) else { return };
        let Some(entry_ref) = self.entries.get_mut(entry as usize) else { return };
        entry_ref.class = class_index;
        entry_ref.position = u32::try_from(class.members.len()).unwrap_or(NONE);
        class.members.push(entry);
    }

    /// The class of a key, made if it is not there.
    fn of_key(&mut self, key: &Key, moves: &mut Moves) -> u32 {
        if let Some(class) = self.by_key.get(key) {
            return *class;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.classes.push(None);
            u32::try_from(self.classes.len() - 1).unwrap_or(NONE)
        });
        if let Some(slot) = self.classes.get_mut(index as usize) {
            *slot = Some(Class { key: Arc::clone(key), members: Vec::new(), number: 0 });
        }
        self.by_key.insert(Arc::clone(key), index);
        self.unnumbered.insert(index);
        moves.born.push(index);
        index
    }

    fn rename(&mut self, index: u32, key: Key) {
        if let Some(class) = self.classes.get_mut(index as usize).and_then(Option::as_mut) {
            if self.by_key.get(&class.key) == Some(&index) {
                self.by_key.remove(&class.key);
            }
            class.key = Arc::clone(&key);
            self.by_key.insert(key, index);
        }
    }

    /// Takes an entry, for which other facts hold than before, out of its class.
    pub(super) fn take_out(&mut self, entry: u32, moves: &mut Moves) {
        self.detach(entry, moves);
    }

    /// Puts an entry that is new or was taken out of the class `before` where it belongs.
    pub(super) fn place(&mut self, entry: u32, key: &Key, before: u32, moves: &mut Moves) {
        let class = self.of_key(key, moves);
        self.attach(entry, class);
        if class != before {
            moves.entries.push((entry, before));
        }
    }

    fn move_all(&mut self, entries: &[u32], to: u32, moves: &mut Moves) {
        for entry in entries {
            let before = self.get(*entry).map_or(NONE, |entry| entry.class);
            self.detach(*entry, moves);
            self.attach(*entry, to);
            moves.entries.push((*entry, before));
        }
    }

    /// Splits classes, some of whose members have new keys because predicates came into force. The largest part keeps the
    /// number.
    pub(super) fn refine(&mut self, affected: Vec<(u32, Key)>, moves: &mut Moves) {
        let mut parts: BTreeMap<u32, BTreeMap<Key, Vec<u32>>> = BTreeMap::new();
        for (entry, key) in affected {
            let Some(class) = self.get(entry).map(|entry| entry.class) else { continue };
            if self.class(class).is_some_and(|class| class.key != key) {
                parts.entry(class).or_default().entry(key).or_default().push(entry);
            }
        }
        for (index, mut parts) in parts {
            let Some(class) = self.class(index) else { continue };
            let affected: usize = parts.values().map(Vec::len).sum();
            let rest = class.members.len().saturating_sub(affected);
            let largest = parts.iter().max_by_key(|(key, part)| (part.len(), std::cmp::Reverse(Key::clone(key))));
            if let Some((key, size)) = largest.map(|(key, part)| (Key::clone(key), part.len()))
                && size > rest
                && !self.by_key.contains_key(&key)
            {
                let old = Key::clone(&class.key);
                if rest > 0 {
                    let affected: HashSet<u32> = parts.values().flatten().copied().collect();
                    let left = class.members.iter().filter(|entry| !affected.contains(entry)).copied().collect();
                    parts.insert(old, left);
                }
                parts.remove(&key);
                self.rename(index, key);
            }
            for (key, entries) in parts {
                let to = self.of_key(&key, moves);
                self.move_all(&entries, to, moves);
            }
        }
    }

    /// Takes atoms out of all keys, and merges the classes that do not differ any more. The larger keeps the number.
    pub(super) fn merge(&mut self, gone: &dyn Fn(u32) -> bool, moves: &mut Moves) {
        let concerned: Vec<u32> =
            self.iter().filter(|(_, class)| class.key.iter().any(|atom| gone(*atom))).map(|(index, _)| index).collect();
        for index in concerned {
            let Some(class) = self.class(index) else { continue };
            let key: Key = class.key.iter().copied().filter(|atom| !gone(*atom)).collect();
            match self.by_key.get(&key).copied() {
                None => self.rename(index, key),
                Some(other) => {
                    let others = self.class(other).map_or(0, |other| other.members.len());
                    let (from, to) = if class.members.len() > others { (other, index) } else { (index, other) };
                    let members = self.class(from).map(|from| from.members.clone()).unwrap_or_default();
                    if to == index {
                        self.rename(index, key);
                    }
                    self.move_all(&members, to, moves);
                    moves.dead.push(from);
                }
            }
        }
    }

    /// Gives numbers to the classes that have none. `restored` knows the numbers that classes had before a restart.
    pub(super) fn number_all(&mut self, restored: &mut dyn FnMut(&Key) -> Option<u32>) {
        for index in std::mem::take(&mut self.unnumbered) {
            let Some(class) = self.classes.get_mut(index as usize).and_then(Option::as_mut) else { continue };
            if class.members.is_empty() {
                self.unnumbered.insert(index);
            } else if class.number == 0 {
                class.number = restored(&class.key).unwrap_or_else(|| self.numbers.take());
            }
        }
    }

    /// Forgets those of these classes that are empty.
    pub(super) fn sweep(&mut self, dead: &[u32]) -> Vec<Swept> {
        let mut swept = Vec::new();
        for index in dead.iter().collect::<BTreeSet<_>>() {
            let Some(slot) = self.classes.get_mut(*index as usize) else { continue };
            if slot.as_ref().is_none_or(|class| !class.members.is_empty()) {
                continue;
            }
            let Some(class) = slot.take() else { continue };
            if self.by_key.get(&class.key) == Some(index) {
                self.by_key.remove(&class.key);
            }
            self.unnumbered.remove(index);
            let number = (class.number != 0).then_some(Identity(class.number));
            if let Some(number) = number {
                self.numbers.give_back(number.0);
            }
            self.freed.push(*index);
            swept.push(Swept { class: *index, number, key: class.key });
        }
        swept
    }

    /// What was freed may be used again.
    pub(super) fn settle(&mut self) {
        self.freed.sort_unstable();
        self.free.append(&mut self.freed);
        self.numbers.settle();
    }
}
