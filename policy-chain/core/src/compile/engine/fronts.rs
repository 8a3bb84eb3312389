//! Frontends of Services.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::book::Book;
use super::programs::{Instance, Programs};
use super::shapes::Shapes;
use super::store::Store;
use crate::cluster::{EndpointSlice, Node, ObjectKey, Service};
use crate::compile::by_address::{SetAt, Sockets};
use crate::compile::identity::{Classes, NONE};
use crate::compile::image::{DecisionId, FrontendKey, Identity, RowEntries, RowId};
use crate::compile::row::PortPrefix;
use crate::compile::service;
use crate::few::Few;
use crate::flow::{Direction, Protocol};
use crate::model::Text;
use crate::pack::pack_set;

/// A port of a Service, in one family.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FrontId {
    /// What the frontends of a Service share.
    pub(super) service: Arc<ObjectKey>,
    pub(super) name: Text,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    pub(super) v4: bool,
}

#[derive(Debug)]
pub(super) struct Front {
    pub(super) id: FrontId,
    pub(super) identity: Identity,
    /// Where it is dialled, with the place of the port in its Service; by address.
    keys: Few<(FrontendKey, u16)>,
    /// By address, then port.
    pub(super) backends: Sockets,
    /// Or [`NONE`] as long as it is not known.
    shape: u32,
}

/// Frontends that are not as they were.
#[derive(Debug)]
pub(super) struct Refreshed {
    /// Of which the backends have other classes or ports.
    pub(super) shaped: Vec<u32>,
    /// Which are new, or have other backends.
    pub(super) rebacked: BTreeSet<u32>,
}

impl Refreshed {
    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        self.shaped.iter().chain(&self.rebacked).copied()
    }
}

/// What frontends are made of.
#[derive(Debug)]
pub(super) struct Dialled<'a> {
    pub(super) service: Option<&'a Service>,
    /// The slices of the Service.
    pub(super) slices: Vec<&'a EndpointSlice>,
    pub(super) own_node: Option<&'a Node>,
}

/// All frontends.
#[derive(Debug, Default)]
pub(super) struct Fronts {
    list: Vec<Option<Front>>,
    free: Vec<u32>,
    freed: Vec<u32>,
    of_service: BTreeSet<(Arc<ObjectKey>, u32)>,
    /// Which frontends are dialled at an address.
    claims: SetAt<(Protocol, u16, u32)>,
    /// The Services that have a backend at an address, by the least of their frontends.
    at: SetAt<u32>,
    /// Those that are new, or have other backends.
    rebacked: BTreeSet<u32>,
    /// Those of whose backends the classes may be others.
    dirty: BTreeSet<u32>,
    shapes: Shapes,
    /// Addresses that were a backend of a frontend and are no more.
    left: BTreeSet<IpAddr>,
    cache: HashMap<Vec<DecisionId>, RowId>,
}

impl Fronts {
    pub(super) fn get(&self, index: u32) -> Option<&Front> {
        self.list.get(index as usize)?.as_ref()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Front)> {
        (0..).zip(&self.list).filter_map(|(index, front)| Some((index, front.as_ref()?)))
    }

    /// The frontends of Services with a backend at an address.
    pub(super) fn at(&self, address: IpAddr) -> impl Iterator<Item = u32> {
        self.at.range((address, 0), (address, u32::MAX)).flat_map(|least| self.beside(least))
    }

    /// The classes of addresses changed.
    pub(super) fn touch(&mut self, first: IpAddr, last: IpAddr) {
        let of: Vec<u32> = self.at.range((first, 0), (last, u32::MAX)).flat_map(|least| self.beside(least)).collect();
        self.dirty.extend(of);
    }

    /// The frontends of the Service that a frontend is of.
    fn beside(&self, front: u32) -> impl Iterator<Item = u32> {
        self.get(front).into_iter().flat_map(|front| self.of_service(&front.id.service))
    }

    /// The frontends of a Service.
    fn of_service(&self, service: &Arc<ObjectKey>) -> impl Iterator<Item = u32> {
        let range = (Arc::clone(service), 0)..=(Arc::clone(service), u32::MAX);
        self.of_service.range(range).map(|(_, index)| *index)
    }

    /// The least frontend of a Service, and the addresses of all its backends.
    fn backed(&self, service: &Arc<ObjectKey>) -> Option<(u32, BTreeSet<IpAddr>)> {
        let least = self.of_service(service).next()?;
        let fronts = self.of_service(service).filter_map(|index| self.get(index));
        Some((least, fronts.flat_map(|front| front.backends.iter()).map(|(address, _)| address).collect()))
    }

    /// A Service changed, or its slices, or where it is dialled. Returns the frontends that are gone, and the backends of
    /// all that changed.
    pub(super) fn set_service(
        &mut self,
        key: &ObjectKey,
        dialled: &Dialled<'_>,
        classes: &mut Classes,
        restored: &mut dyn FnMut(&FrontId) -> Option<u32>,
        store: &mut Store,
    ) -> Vec<(u32, Front)> {
        let key = Arc::new(key.clone());
        let known: Vec<(Arc<ObjectKey>, u32)> =
            self.of_service.range((Arc::clone(&key), 0)..=(Arc::clone(&key), u32::MAX)).cloned().collect();
        let key = known.first().map_or(key, |(known, _)| Arc::clone(known));
        let mut wanted = wanted(&key, dialled);
        let backed = self.backed(&key);
        let mut gone = Vec::new();
        let mut changed: BTreeSet<FrontendKey> = BTreeSet::new();
        for (_, index) in known {
            let Some(front) = self.list.get_mut(index as usize).and_then(Option::as_mut) else { continue };
            let Wanted { keys, backends } = wanted.remove(&front.id).unwrap_or_default();
            let old = std::mem::replace(&mut front.keys, keys.iter().map(|(key, at)| (*key, *at)).collect());
            for (address, _) in old.iter().filter(|(address, _)| !keys.contains_key(address)) {
                self.claims.remove(claim(*address, index));
            }
            keys.keys().for_each(|address| self.claims.insert(claim(*address, index)));
            if old != front.keys {
                changed.extend(old.iter().chain(front.keys.iter()).map(|(address, _)| *address));
            }
            self.set_backends(index, backends);
            if keys.is_empty()
                && let Some(front) = self.list.get_mut(index as usize).and_then(Option::take)
            {
                self.of_service.remove(&(Arc::clone(&key), index));
                self.dirty.remove(&index);
                self.rebacked.remove(&index);
                self.shapes.leave(index, front.shape);
                self.freed.push(index);
                classes.numbers.give_back(front.identity.0);
                gone.push((index, front));
            }
        }
        for (id, Wanted { keys, backends }) in wanted {
            let index = self.free.pop().unwrap_or_else(|| {
                self.list.push(None);
                u32::try_from(self.list.len() - 1).unwrap_or(u32::MAX)
            });
            let identity = Identity(restored(&id).unwrap_or_else(|| classes.numbers.take()));
            changed.extend(keys.keys());
            keys.keys().for_each(|address| self.claims.insert(claim(*address, index)));
            self.of_service.insert((Arc::clone(&key), index));
            let front =
                Front { id, identity, keys: keys.into_iter().collect(), backends: Sockets::default(), shape: NONE };
            if let Some(slot) = self.list.get_mut(index as usize) {
                *slot = Some(front);
            }
            self.rebacked.insert(index);
            self.set_backends(index, backends);
        }
        for address in changed {
            store.set_frontend(address, self.winner(address));
        }
        let backed_now = self.backed(&key);
        if backed_now != backed {
            if let Some((least, addresses)) = backed {
                addresses.iter().for_each(|address| self.at.remove((*address, least)));
            }
            if let Some((least, addresses)) = backed_now {
                addresses.iter().for_each(|address| self.at.insert((*address, least)));
            }
        }
        gone
    }

    /// Whom an address means: of several frontends, that of the least Service, and of its ports, of the first.
    fn winner(&self, address: FrontendKey) -> Option<Identity> {
        let claims = self.claims.range(claim(address, 0), claim(address, u32::MAX));
        let fronts = claims.filter_map(|(.., index)| self.get(index));
        let place = |front: &Front| {
            let at = front.keys.binary_search_by_key(&address, |(key, _)| *key).ok();
            at.and_then(|at| front.keys.get(at)).map(|(_, place)| *place)
        };
        let least = fronts
            .min_by(|one, other| one.id.service.cmp(&other.id.service).then_with(|| place(one).cmp(&place(other))));
        least.map(|front| front.identity)
    }

    fn set_backends(&mut self, index: u32, backends: Sockets) {
        let Some(front) = self.list.get_mut(index as usize).and_then(Option::as_mut) else { return };
        if front.backends == backends {
            return;
        }
        self.left.extend(front.backends.iter().map(|(address, _)| address));
        front.backends = backends;
        self.rebacked.insert(index);
    }

    /// The addresses that lost a frontend since this was asked last: a pod that has one decides that frontend as others do now.
    pub(super) fn take_left(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.left)
    }

    /// Brings the classes of backends up to date, and gives the frontends for which they are others, or which are new.
    pub(super) fn refresh(&mut self, book: &Book, classes: &Classes) -> Refreshed {
        let mut refreshed = Refreshed { shaped: Vec::new(), rebacked: std::mem::take(&mut self.rebacked) };
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.extend(&refreshed.rebacked);
        for index in dirty {
            let Some(front) = self.list.get_mut(index as usize).and_then(Option::as_mut) else { continue };
            let mut targets: Vec<(u32, u16)> = Vec::new();
            let mut seen: BTreeSet<(u32, u16)> = BTreeSet::new();
            for (address, port) in front.backends.iter() {
                if let Some(class) = book.class(address, classes)
                    && seen.insert((class, port))
                {
                    targets.push((class, port));
                }
            }
            if self.shapes.get(front.shape).is_some_and(|shape| *shape.targets == *targets) {
                continue;
            }
            let before = std::mem::replace(&mut front.shape, NONE);
            front.shape = self.shapes.join(index, front.id.protocol, targets);
            self.shapes.leave(index, before);
            refreshed.shaped.push(index);
        }
        refreshed
    }

    /// What a program decides for the frontends of a shape. The row is kept until [`Self::settle`].
    fn decide(&mut self, shape: u32, instance: &Instance, store: &mut Store) -> Option<RowId> {
        let shape = self.shapes.get(shape)?;
        let mut decisions: Vec<DecisionId> = Vec::new();
        for (class, port) in shape.targets.iter() {
            if let Some(decision) =
                store.entries(instance.row_at(*class)).and_then(|row| row.get(shape.protocol, *port))
                && !decisions.contains(decision)
            {
                decisions.push(*decision);
            }
        }
        Some(combined(&mut self.cache, decisions, store))
    }

    /// What a program decides for a frontend at a pod that is one of its backends, with the pod's own rows.
    pub(super) fn decide_at(
        &mut self,
        index: u32,
        instance: &Instance,
        own: &BTreeMap<IpAddr, RowId>,
        book: &Book,
        classes: &Classes,
        store: &mut Store,
    ) -> Option<RowId> {
        let front = self.list.get(index as usize)?.as_ref()?;
        let protocol = front.id.protocol;
        let mut decisions: Vec<DecisionId> = Vec::new();
        for (address, port) in front.backends.iter() {
            let row = match own.get(&address) {
                Some(row) => *row,
                None => instance.row_at(book.class(address, classes)?),
            };
            if let Some(decision) = store.entries(row).and_then(|row| row.get(protocol, port))
                && !decisions.contains(decision)
            {
                decisions.push(*decision);
            }
        }
        Some(combined(&mut self.cache, decisions, store))
    }

    /// Fills the frontends of new programs, and brings these up to date in the others. Gives the programs in which what
    /// there was before changed.
    pub(super) fn fill(&mut self, changed: &[u32], programs: &mut Programs, store: &mut Store) -> BTreeSet<u32> {
        let mut moved = BTreeSet::new();
        for (number, instance) in programs.iter_mut() {
            if instance.program.direction() == Direction::Ingress {
                continue;
            }
            if instance.frontend_row.is_none() {
                self.fill_new(instance, store);
                continue;
            }
            for front in changed {
                let Some((identity, shape)) = self.get(*front).map(|front| (front.identity, front.shape)) else {
                    continue;
                };
                let Some(row) = self.decide(shape, instance, store) else { continue };
                let before = instance.row_of_front(*front);
                if before == Some(row) {
                    continue;
                }
                moved.insert(number);
                let listed = (instance.frontend_row != Some(row)).then_some(row);
                if let Some(row) = listed {
                    store.refer(row);
                }
                let old = match listed {
                    Some(row) => instance.listed.insert(*front, row),
                    None => instance.listed.remove(front),
                };
                if let Some(old) = old {
                    store.release(old);
                }
                for (overrides, variant) in &instance.variants {
                    if !overrides.iter().any(|(one, _)| one == front) {
                        store.set_peer(variant.id, identity, listed);
                    }
                }
            }
        }
        moved
    }

    /// The row that most frontends have is not listed.
    fn fill_new(&mut self, instance: &mut Instance, store: &mut Store) {
        // Those with a backend that the program tells from others, and of the others each kind.
        let told: BTreeSet<u32> = instance.table.keys().flat_map(|class| self.shapes.of_class(*class)).collect();
        let mut rows: Vec<(u32, RowId)> = Vec::with_capacity(told.len());
        let mut counts: BTreeMap<RowId, usize> = BTreeMap::new();
        let mut told_of_kind: BTreeMap<u32, usize> = BTreeMap::new();
        for index in &told {
            let Some((kind, fronts)) = self.shapes.get(*index).map(|shape| (shape.kind, shape.fronts.len())) else {
                continue;
            };
            let Some(row) = self.decide(*index, instance, store) else { continue };
            *told_of_kind.entry(kind).or_default() += fronts;
            *counts.entry(row).or_default() += fronts;
            rows.push((*index, row));
        }
        let mut kinds: Vec<(u32, RowId)> = Vec::new();
        for (index, kind) in self.shapes.kinds() {
            let rest = kind.fronts.saturating_sub(told_of_kind.get(&index).copied().unwrap_or_default());
            if rest == 0 {
                continue;
            }
            let default = store.entries(instance.default_row);
            let mut decisions: Vec<DecisionId> = Vec::new();
            for port in kind.ports.iter() {
                if let Some(decision) = default.and_then(|row| row.get(kind.protocol, *port))
                    && !decisions.contains(decision)
                {
                    decisions.push(*decision);
                }
            }
            let row = combined(&mut self.cache, decisions, store);
            *counts.entry(row).or_default() += rest;
            kinds.push((index, row));
        }
        let most = counts.iter().max_by_key(|(row, count)| (**count, std::cmp::Reverse(**row))).map(|(row, _)| *row);
        let usual = most.unwrap_or_else(|| {
            let default = store.entries(instance.default_row).and_then(|row| row.get(Protocol::TCP, 0)).copied();
            combined(&mut self.cache, default.into_iter().collect(), store)
        });
        store.refer(usual);
        instance.frontend_row = Some(usual);
        for (kind, row) in kinds.into_iter().filter(|(_, row)| *row != usual) {
            let shapes = self.shapes.kind(kind).into_iter().flat_map(|kind| &kind.shapes);
            rows.extend(shapes.filter(|shape| !told.contains(shape)).map(|shape| (*shape, row)));
        }
        for (shape, row) in rows.into_iter().filter(|(_, row)| *row != usual) {
            for front in self.shapes.get(shape).into_iter().flat_map(|shape| &shape.fronts) {
                store.refer(row);
                instance.listed.insert(*front, row);
            }
        }
    }

    /// A frontend is gone.
    pub(super) fn forget(gone: &[(u32, Front)], programs: &mut Programs, store: &mut Store) {
        for (_, instance) in programs.iter_mut() {
            for (index, front) in gone {
                if let Some(row) = instance.listed.remove(index) {
                    store.release(row);
                }
                for variant in instance.variants.values() {
                    store.set_peer(variant.id, front.identity, None);
                }
            }
        }
    }

    /// Less room for what is held.
    pub(super) fn pack(&mut self) {
        self.list.shrink_to_fit();
        pack_set(&mut self.of_service);
        self.claims.pack();
        self.at.pack();
        self.shapes.pack();
    }

    pub(super) fn settle(&mut self, store: &mut Store) {
        for (_, row) in self.cache.drain() {
            store.release(row);
        }
        self.freed.sort_unstable();
        self.free.append(&mut self.freed);
    }
}

fn combined(cache: &mut HashMap<Vec<DecisionId>, RowId>, decisions: Vec<DecisionId>, store: &mut Store) -> RowId {
    if let Some(row) = cache.get(&decisions) {
        return *row;
    }
    let judgement = service::frontend(decisions.iter().filter_map(|id| store.judgement(*id)));
    let decision = store.decision(judgement);
    let row = store.row(RowEntries { entries: vec![(PortPrefix::ANY, decision)] });
    cache.insert(decisions, row);
    row
}

/// That a frontend is dialled at an address, as it stands in [`Fronts::claims`].
const fn claim((address, protocol, port): FrontendKey, front: u32) -> (IpAddr, (Protocol, u16, u32)) {
    (address, (protocol, port, front))
}

/// What a frontend is to be.
#[derive(Default)]
struct Wanted {
    /// Where it is dialled, with the first place of the port in its Service.
    keys: BTreeMap<FrontendKey, u16>,
    backends: Sockets,
}

/// The frontends of a Service: its addresses and ports, and the own node's with its node ports; each with the ready
/// endpoints of its slices in the same family.
fn wanted(key: &Arc<ObjectKey>, dialled: &Dialled<'_>) -> BTreeMap<FrontId, Wanted> {
    let Dialled { service, slices, own_node } = dialled;
    let mut wanted: BTreeMap<FrontId, Wanted> = BTreeMap::new();
    let Some(service) = service else { return wanted };
    for (at, port) in (0_u16..).zip(service.ports.iter()) {
        let at_service = service.addresses.iter().map(|address| (address, port.port));
        let at_node = own_node
            .iter()
            .flat_map(|node| node.addresses.iter().filter_map(|address| Some((*address, port.node_port?))));
        for (address, number) in at_service.chain(at_node) {
            let id = FrontId {
                service: Arc::clone(key),
                name: Text::clone(&port.name),
                protocol: port.protocol,
                port: port.port,
                v4: address.is_ipv4(),
            };
            wanted.entry(id).or_default().keys.entry((address, port.protocol, number)).or_insert(at);
        }
    }
    // Of a Service with one slice, all ports have the slice's addresses.
    let mut made: Vec<Sockets> = slices.iter().flat_map(|slice| Sockets::of(&slice.ready)).collect();
    for (id, Wanted { backends, .. }) in &mut wanted {
        let mut found: Vec<(IpAddr, u16)> = Vec::new();
        for slice in slices {
            let target = slice.ports.iter().find(|port| port.name == id.name && port.protocol == id.protocol);
            let Some(target) = target else { continue };
            let family = slice.ready.iter().filter(|address| address.is_ipv4() == id.v4);
            found.extend(family.map(|address| (address, target.port)));
        }
        found.sort_unstable();
        found.dedup();
        *backends = Sockets::new(id.v4, &found, &made);
        made.push(backends.clone());
    }
    wanted
}
