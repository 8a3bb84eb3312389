//! Programs in use, and their tables in the image.

mod size;

use std::collections::{BTreeMap, BTreeSet, HashMap};

pub use self::size::MAX_CONDITIONS;
use self::size::Size;
use super::atoms::{Atom, Atoms, plain};
use super::book::counted;
use super::numbers::Numbers;
use super::store::Store;
use crate::cluster::{CidrGroup, Labels, NamedPort, PodKey, PodTemplate, Visible};
use crate::compile::identity::{Class, Classes, Swept};
use crate::compile::image::{Identity, PolicyId, RowEntries, RowId};
use crate::compile::predicate::Kind;
use crate::compile::program::{PeerFacts, Program, RowKey, Selected, networks};
use crate::flow::{Direction, Origin};
use crate::model::{PolicyRef, Text};
use crate::pack::pack_map;
use crate::settings::Settings;

/// The policies of a program, by where they are in memory, and which parts of them count.
type List = Vec<(usize, Vec<u16>)>;

/// What programs of one direction depend on of the pods that run them: on ingress their named ports, and what is to be seen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Own {
    ports: Vec<NamedPort>,
    visible: Vec<Visible>,
}

impl Own {
    fn of(template: &PodTemplate, direction: Direction) -> Self {
        let ports: &[NamedPort] = if direction == Direction::Ingress { &template.ports } else { &[] };
        let visible = template.visible.iter().filter(|visible| visible.direction == direction);
        Self { ports: ports.to_vec(), visible: visible.copied().collect() }
    }
}

/// Rows of frontends that are other than the rest of those who run the program have, because the pod is a backend.
pub(super) type Overrides = Vec<(u32, RowId)>;

#[derive(Debug)]
pub(super) struct Variant {
    pub(super) id: PolicyId,
    references: u32,
}

/// A program that local pods run.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) program: Program,
    /// Keeps the policies where they are, so that a [`List`] means them.
    selected: Vec<Selected>,
    /// Of pods that run it.
    own: BTreeSet<Own>,
    references: u32,
    /// The atom of each of the program's predicates.
    predicates: Vec<Atom>,
    /// By atom, with the place among the predicates.
    sorted: Box<[(Atom, u32)]>,
    default_key: RowKey,
    pub(super) default_row: RowId,
    host_row: Option<RowId>,
    /// The row of a frontend that is not listed (egress).
    pub(super) frontend_row: Option<RowId>,
    /// The rows of classes that do not have the default row.
    pub(super) table: BTreeMap<u32, RowId>,
    /// The rows of frontends that do not have the row of frontends.
    pub(super) listed: BTreeMap<u32, RowId>,
    pub(super) variants: BTreeMap<Overrides, Variant>,
    cache: HashMap<RowKey, RowId>,
    /// What the rows of this commit were made of, of [`MAX_CONDITIONS`].
    spent: usize,
    size: Size,
}

#[derive(Debug)]
pub(super) struct Programs {
    list: Vec<Option<Instance>>,
    free: Vec<u32>,
    by_list: HashMap<(Direction, List), Vec<u32>>,
    by_key: HashMap<(Direction, List, Own), u32>,
    /// Which programs ask for a predicate.
    users: HashMap<Atom, Vec<u32>>,
    /// Which programs ask peers for named ports.
    port_users: BTreeSet<u32>,
    pub(super) numbers: Numbers,
    /// Those that have no table yet.
    pub(super) born: Vec<u32>,
}

/// What programs depend on besides policies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) groups: &'a BTreeMap<Text, CidrGroup>,
    pub(super) settings: &'a Settings,
}

/// What came into force with new programs.
#[derive(Debug, Default)]
pub(super) struct Born {
    pub(super) atoms: BTreeSet<Atom>,
    pub(super) port_names: BTreeSet<Text>,
    /// By program, old ones too, the pods that run it from now on.
    pub(super) joined: BTreeMap<u32, BTreeSet<PodKey>>,
}

/// What went out of force with old ones.
#[derive(Debug, Default)]
pub(super) struct Gone {
    pub(super) atoms: BTreeSet<Atom>,
    pub(super) port_names: BTreeSet<Text>,
}

fn list_of(selected: &[Selected]) -> List {
    selected.iter().map(|one| (std::sync::Arc::as_ptr(&one.policy).addr(), one.specs.clone())).collect()
}

impl Programs {
    pub(super) fn new() -> Self {
        Self {
            list: Vec::new(),
            free: Vec::new(),
            by_list: HashMap::new(),
            by_key: HashMap::new(),
            users: HashMap::new(),
            port_users: BTreeSet::new(),
            numbers: Numbers::from(1),
            born: Vec::new(),
        }
    }

    /// Less room for what is held.
    pub(super) fn pack(&mut self) {
        self.list.shrink_to_fit();
        for (_, instance) in self.iter_mut() {
            pack_map(&mut instance.table);
            pack_map(&mut instance.listed);
            instance.cache.shrink_to_fit();
        }
    }

    /// Numbers of policies are above this.
    pub(super) fn number_above(&mut self, policy: u32) {
        self.numbers = Numbers::above(1, policy, &BTreeSet::new());
    }

    /// Nothing below is in use any more.
    pub(super) fn open_numbers(&mut self) {
        self.numbers.open();
    }

    pub(super) fn get(&self, index: u32) -> Option<&Instance> {
        self.list.get(index as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Instance> {
        self.list.get_mut(index as usize)?.as_mut()
    }

    /// All programs, with their numbers.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Instance)> {
        (0..).zip(&mut self.list).filter_map(|(index, instance)| Some((index, instance.as_mut()?)))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Instance)> {
        (0..).zip(&self.list).filter_map(|(index, instance)| Some((index, instance.as_ref()?)))
    }

    /// The program for a pod that these policies select; none if it restricts nothing, and nothing is to be seen.
    pub(super) fn acquire(
        &mut self,
        direction: Direction,
        selected: &[Selected],
        template: &PodTemplate,
        inputs: &Inputs<'_>,
        (atoms, store): (&mut Atoms, &mut Store),
        born: &mut Born,
    ) -> Option<u32> {
        let own = Own::of(template, direction);
        if selected.is_empty() && own.visible.is_empty() {
            return None;
        }
        let list = list_of(selected);
        let key = (direction, list.clone(), own.clone());
        if let Some(index) = self.by_key.get(&key).copied() {
            self.get_mut(index)?.references += 1;
            return Some(index);
        }
        let program = Program::new(
            direction,
            selected,
            template,
            &|block| networks(inputs.groups.values(), block),
            inputs.settings,
        );
        if program.is_open() {
            return None;
        }
        let same = |index: &&u32| self.get(**index).is_some_and(|instance| instance.program == program);
        let known = self.by_list.get(&(direction, list.clone())).and_then(|of| of.iter().find(same)).copied();
        if let Some(index) = known {
            self.by_key.insert(key, index);
            let instance = self.get_mut(index)?;
            instance.own.insert(own);
            instance.references += 1;
            return Some(index);
        }
        let mut predicates = Vec::with_capacity(program.predicates().len());
        for predicate in program.predicates() {
            let (atom, new) = atoms.refer(predicate);
            if new {
                born.atoms.insert(atom);
            }
            predicates.push(atom);
        }
        for name in program.named_ports() {
            if atoms.refer_name(name) {
                born.port_names.insert(Text::clone(name));
            }
        }
        let default_key = program.default_key(Origin::Forwarded);
        let spent = program.weight(&default_key);
        let default_row = row_of(&program, &default_key, store);
        let mut sorted: Box<[(Atom, u32)]> = predicates.iter().copied().zip(0..).collect();
        sorted.sort_unstable();
        let instance = Instance {
            program,
            selected: selected.to_vec(),
            own: BTreeSet::from([own]),
            references: 1,
            predicates,
            sorted,
            default_key,
            default_row,
            host_row: None,
            frontend_row: None,
            table: BTreeMap::new(),
            listed: BTreeMap::new(),
            variants: BTreeMap::new(),
            cache: HashMap::new(),
            spent,
            size: if spent > MAX_CONDITIONS { Size::Exceeded } else { Size::Fits },
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.list.push(None);
            u32::try_from(self.list.len() - 1).unwrap_or(u32::MAX)
        });
        for atom in &instance.predicates {
            self.users.entry(*atom).or_default().push(index);
        }
        if !instance.program.named_ports().is_empty() {
            self.port_users.insert(index);
        }
        *self.list.get_mut(index as usize)? = Some(instance);
        self.by_list.entry((direction, list)).or_default().push(index);
        self.by_key.insert(key, index);
        self.born.push(index);
        Some(index)
    }

    /// One pod less runs a program.
    pub(super) fn release(&mut self, index: u32) {
        if let Some(instance) = self.get_mut(index) {
            instance.references = instance.references.saturating_sub(1);
        }
    }

    /// CIDR groups changed: the programs that depend on them have to be looked for anew. Gives them.
    pub(super) fn groups_changed(&mut self) -> BTreeSet<u32> {
        let depend: BTreeSet<u32> =
            self.iter().filter(|(_, instance)| instance.program.depends_on_groups()).map(|(index, _)| index).collect();
        self.by_key.retain(|_, index| !depend.contains(index));
        depend
    }

    /// The programs for which one of these facts can make a difference.
    pub(super) fn that_ask_for<'a>(&self, atoms: impl IntoIterator<Item = &'a Atom>) -> Vec<u32> {
        let mut found = Vec::new();
        for atom in atoms {
            match is_port(*atom) {
                true => found.extend(&self.port_users),
                false => found.extend(self.users.get(&plain(*atom)).into_iter().flatten()),
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Fills the tables of new programs, and adds new classes to the others', each with the class that it was split from if
    /// there is one. Gives the programs that are too large to be in force, from now on.
    pub(super) fn fill(
        &mut self,
        new: &[(u32, Option<u32>)],
        classes: &Classes,
        atoms: &Atoms,
        front: &dyn Fn(u32) -> Option<Identity>,
        store: &mut Store,
    ) -> BTreeSet<u32> {
        self.add_classes(new, classes, atoms, store);
        let mut closed = BTreeSet::new();
        for (index, instance) in self.iter_mut().filter(|(_, instance)| instance.size == Size::Exceeded) {
            instance.close(classes, front, store);
            closed.insert(index);
        }
        if !closed.is_empty() {
            store.sweep_unseen();
        }
        closed
    }

    fn add_classes(&mut self, new: &[(u32, Option<u32>)], classes: &Classes, atoms: &Atoms, store: &mut Store) {
        let born: BTreeSet<u32> = std::mem::take(&mut self.born).into_iter().collect();
        for (class, parent) in new {
            let Some(key) = classes.class(*class).map(|class| &class.key) else { continue };
            for index in self.that_ask_for(key.iter()).into_iter().filter(|index| !born.contains(index)) {
                if let Some(instance) = self.get_mut(index) {
                    instance.add(*class, *parent, classes, atoms, store);
                }
            }
        }
        if born.is_empty() {
            return;
        }
        let by_atom = ByAtom::new(born.iter().filter_map(|index| self.get(*index)), classes);
        for index in &born {
            let Some(instance) = self.get_mut(*index) else { continue };
            for class in by_atom.of(instance) {
                instance.add(class, None, classes, atoms, store);
            }
        }
    }

    /// What happens to the own node's packets, where nothing came in by an interface.
    pub(super) fn set_host_rows(&mut self, only_new: bool, api_server: bool, store: &mut Store) {
        for (_, instance) in self.iter_mut() {
            if instance.program.direction() == Direction::Egress || (only_new && instance.host_row.is_some()) {
                continue;
            }
            let key = {
                let predicates = instance.program.predicates();
                let nodes: [&Labels; 0] = [];
                let holds = |at: usize| {
                    predicates.get(at).is_some_and(|one| one.holds(&Kind::OwnNode, true, api_server, &nodes))
                };
                instance.program.key(&PeerFacts { holds: &holds, named_ports: &[], origin: Origin::OwnNode })
            };
            let row = row_of(&instance.program, &key, store);
            for variant in instance.variants.values() {
                store.set_peer(variant.id, Identity::HOST, Some(row));
            }
            if let Some(before) = instance.host_row.replace(row) {
                store.release(before);
            }
        }
    }

    /// The policy id of a program with these overrides.
    pub(super) fn variant(
        &mut self,
        index: u32,
        overrides: &Overrides,
        classes: &Classes,
        front: &dyn Fn(u32) -> Option<Identity>,
        store: &mut Store,
    ) -> PolicyId {
        let Some(instance) = self.list.get_mut(index as usize).and_then(Option::as_mut) else { return PolicyId::NONE };
        if let Some(variant) = instance.variants.get_mut(overrides) {
            variant.references += 1;
            return variant.id;
        }
        let id = PolicyId(self.numbers.take());
        for (_, row) in overrides {
            store.refer(*row);
        }
        store.set_peer(id, Identity::ANY, Some(instance.default_row));
        if let Some(row) = instance.host_row {
            store.set_peer(id, Identity::HOST, Some(row));
        }
        if let Some(row) = instance.frontend_row {
            store.set_peer(id, Identity::FRONTEND, Some(row));
        }
        for (class, row) in &instance.table {
            if let Some(number) = classes.number(*class) {
                store.set_peer(id, number, Some(*row));
            }
        }
        for (index, row) in instance.listed.iter().chain(overrides.iter().map(|(index, row)| (index, row))) {
            if let Some(number) = front(*index) {
                store.set_peer(id, number, Some(*row));
            }
        }
        instance.variants.insert(overrides.clone(), Variant { id, references: 1 });
        id
    }

    /// One gate less has a policy id.
    pub(super) fn release_variant(
        &mut self,
        index: u32,
        overrides: &Overrides,
        classes: &Classes,
        front: &dyn Fn(u32) -> Option<Identity>,
        store: &mut Store,
    ) {
        let Some(instance) = self.list.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let Some(variant) = instance.variants.get_mut(overrides) else { return };
        variant.references = variant.references.saturating_sub(1);
        if variant.references > 0 {
            return;
        }
        let id = variant.id;
        instance.variants.remove(overrides);
        for identity in [Identity::ANY, Identity::HOST, Identity::FRONTEND] {
            store.set_peer(id, identity, None);
        }
        for class in instance.table.keys() {
            if let Some(number) = classes.number(*class) {
                store.set_peer(id, number, None);
            }
        }
        for index in instance.listed.keys().chain(overrides.iter().map(|(index, _)| index)) {
            if let Some(number) = front(*index) {
                store.set_peer(id, number, None);
            }
        }
        for (_, row) in overrides {
            store.release(*row);
        }
        self.numbers.give_back(id.0);
    }

    /// Classes are gone.
    pub(super) fn forget_classes(&mut self, swept: &[Swept], store: &mut Store) {
        for Swept { class, number, key } in swept {
            for index in self.that_ask_for(key.iter()) {
                let Some(instance) = self.get_mut(index) else { continue };
                let Some(row) = instance.table.remove(class) else { continue };
                store.release(row);
                for variant in instance.variants.values() {
                    if let Some(number) = number {
                        store.set_peer(variant.id, *number, None);
                    }
                }
            }
        }
    }

    /// Drops the programs that nobody runs any more.
    pub(super) fn retire(&mut self, atoms: &mut Atoms, store: &mut Store) -> Gone {
        let mut gone = Gone::default();
        for (index, slot) in (0_u32..).zip(&mut self.list) {
            if slot.as_ref().is_none_or(|instance| instance.references > 0) {
                continue;
            }
            let Some(instance) = slot.take() else { continue };
            for atom in &instance.predicates {
                if let Some(users) = self.users.get_mut(atom) {
                    users.retain(|one| *one != index);
                    if users.is_empty() {
                        self.users.remove(atom);
                    }
                }
            }
            self.port_users.remove(&index);
            let rows = instance.table.values().chain(instance.listed.values());
            rows.chain(&instance.host_row).chain(&instance.frontend_row).for_each(|row| store.release(*row));
            store.release(instance.default_row);
            for row in instance.cache.values() {
                store.release(*row);
            }
            gone.atoms.extend(instance.predicates.iter().filter(|atom| atoms.release(**atom)));
            for name in instance.program.named_ports() {
                if atoms.release_name(name) {
                    gone.port_names.insert(Text::clone(name));
                }
            }
            let direction = instance.program.direction();
            let list = list_of(&instance.selected);
            for own in instance.own {
                let key = (direction, list.clone(), own);
                if self.by_key.get(&key) == Some(&index) {
                    self.by_key.remove(&key);
                }
            }
            if let Some(of) = self.by_list.get_mut(&(direction, list.clone())) {
                of.retain(|one| *one != index);
                if of.is_empty() {
                    self.by_list.remove(&(direction, list));
                }
            }
            self.free.push(index);
        }
        gone
    }

    /// Forgets what is kept for the time of a commit only.
    pub(super) fn settle(&mut self, store: &mut Store) {
        for (_, instance) in self.iter_mut() {
            for (_, row) in instance.cache.drain() {
                store.release(row);
            }
            instance.spent = 0;
        }
        self.numbers.settle();
    }
}

fn row_of(program: &Program, key: &RowKey, store: &mut Store) -> RowId {
    let row: RowEntries = program.map_row(key, |judgement| store.decision(judgement));
    store.row(row)
}

impl Instance {
    /// Adds a class that is new, or to a table that is. `parent` is in the table already, if it is not as any other.
    fn add(&mut self, index: u32, parent: Option<u32>, classes: &Classes, atoms: &Atoms, store: &mut Store) {
        if self.size != Size::Fits {
            return;
        }
        let Some(class) = classes.class(index) else { return };
        let asks = !self.program.named_ports().is_empty();
        let holding = self.holding(&class.key);
        if (holding.is_empty() && !(asks && class.key.iter().any(|atom| is_port(*atom))))
            || self.table.contains_key(&index)
        {
            return;
        }
        let parent = parent.and_then(|parent| Some((parent, &classes.class(parent)?.key)));
        let ports = |key: &[Atom]| key.iter().copied().filter(|atom| is_port(*atom)).collect::<Vec<Atom>>();
        let alike = parent
            .filter(|(_, key)| self.holding(key) == holding && (!asks || ports(key) == ports(&class.key)))
            .map(|(parent, _)| self.table.get(&parent).copied());
        // What the program cannot tell from the class that it was split from has the same row.
        let row = match alike {
            Some(row) => row,
            None => self.row(class, &holding, atoms, store),
        };
        let Some(row) = row else { return };
        store.refer(row);
        self.table.insert(index, row);
        if let Some(number) = classes.number(index) {
            for variant in self.variants.values() {
                store.set_peer(variant.id, number, Some(row));
            }
        }
    }

    /// Which of the program's predicates hold for a class.
    fn holding(&self, key: &[Atom]) -> Vec<usize> {
        let counted = counted(key, self.program.direction());
        let place = |atom: Atom| {
            let at = self.sorted.binary_search_by_key(&atom, |(atom, _)| *atom).ok()?;
            self.sorted.get(at).map(|(_, place)| *place as usize)
        };
        counted.filter_map(place).collect()
    }

    /// The row of a class; none if it is the default one.
    fn row(&mut self, class: &Class, holding: &[usize], atoms: &Atoms, store: &mut Store) -> Option<RowId> {
        let ports = if self.program.named_ports().is_empty() { Vec::new() } else { atoms.ports_of(&class.key) };
        let key = self.program.key_of(holding, &ports, Origin::Forwarded);
        if key == self.default_key {
            return None;
        }
        if let Some(row) = self.cache.get(&key) {
            return (*row != self.default_row).then_some(*row);
        }
        self.spent += self.program.weight(&key);
        if self.spent > MAX_CONDITIONS {
            self.size = Size::Exceeded;
            return None;
        }
        let row = row_of(&self.program, &key, store);
        self.cache.insert(key, row);
        (row != self.default_row).then_some(row)
    }

    /// The row for facts that are no class's, with a reference.
    pub(super) fn row_for(&self, facts: &PeerFacts<'_>, store: &mut Store) -> RowId {
        let key = self.program.key(facts);
        let known = if key == self.default_key { Some(self.default_row) } else { self.cache.get(&key).copied() };
        let Some(row) = known else { return row_of(&self.program, &key, store) };
        store.refer(row);
        row
    }

    /// Whether it is too large to be in force.
    pub(super) fn is_closed(&self) -> bool {
        self.size == Size::Closed
    }

    /// The policies that it puts in force, sorted.
    pub(super) fn policies(&self) -> Vec<PolicyRef> {
        let mut policies: Vec<PolicyRef> = self.selected.iter().map(|one| one.policy.id().clone()).collect();
        policies.sort();
        policies.dedup();
        policies
    }

    /// The row of a class, which may be the default one.
    pub(super) fn row_at(&self, class: u32) -> RowId {
        self.table.get(&class).copied().unwrap_or(self.default_row)
    }

    /// The row of a frontend.
    pub(super) fn row_of_front(&self, front: u32) -> Option<RowId> {
        self.listed.get(&front).copied().or(self.frontend_row)
    }

    pub(super) fn atom(&self, at: usize) -> Option<Atom> {
        self.predicates.get(at).copied()
    }
}

const fn is_port(atom: Atom) -> bool {
    atom >> 30 == 2
}

/// Which classes have an atom that some new program asks for.
struct ByAtom {
    classes: HashMap<Atom, Vec<u32>>,
    with_ports: Vec<u32>,
}

impl ByAtom {
    fn new<'a>(born: impl Iterator<Item = &'a Instance>, classes: &Classes) -> Self {
        let asked = born.flat_map(|instance| &instance.predicates).map(|atom| (*atom, Vec::new()));
        let mut by_atom = Self { classes: asked.collect(), with_ports: Vec::new() };
        for (index, class) in classes.iter() {
            let mut ports = false;
            for atom in class.key.iter() {
                ports |= is_port(*atom);
                if let Some(of) = by_atom.classes.get_mut(&plain(*atom)) {
                    of.push(index);
                }
            }
            if ports {
                by_atom.with_ports.push(index);
            }
        }
        by_atom
    }

    fn of(&self, instance: &Instance) -> Vec<u32> {
        let mut found: Vec<u32> =
            instance.predicates.iter().filter_map(|atom| self.classes.get(atom)).flatten().copied().collect();
        if !instance.program.named_ports().is_empty() {
            found.extend(&self.with_ports);
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}
