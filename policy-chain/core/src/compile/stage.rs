//! From one image to the next where addresses and policies change together, in steps of which each is safe.
//!
//! A flow is judged by its gate's policy and by the identity of its peer. Where both change, as they do for pods of a namespace
//! whose labels change, there is a step between the two writes in which the old policy judges the new identity, or the
//! other way round: that may let pass what neither the old image nor the new one does. So that every flow goes from its old
//! verdict to its new one in one write:
//!
//! 1. Whoever moves from one identity to another is given a number of its own for the time of the update. Policies that are
//!    leaving gates list for it the row of the old identity, all others the row of the new one: the move changes nothing
//!    behind the former, and everything at once behind the latter.
//! 2. A policy that is leaving some gates and stays at others is copied for those that it leaves.
//! 3. Policies that are leaving gates are not changed before they have left.
//! 4. The gates are swapped.
//! 5. Then whoever moved gets its identity, and numbers and copies go.
//!
//! Where no policy that is leaving a gate can tell the old identity from the new one, all this is spared.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::diff::{self, Before, Operation};
use super::image::{Endpoint, FrontendKey, Identity, Image, PolicyId, RowId};
use crate::cluster::PodKey;
use crate::flow::Direction;

/// What is known of the numbers of an update.
pub(super) struct Numbering<'a> {
    /// Whether an identity was not in use before the update.
    pub(super) born: &'a dyn Fn(Identity) -> bool,
    /// Whether an identity is not in use after it.
    pub(super) dead: &'a dyn Fn(Identity) -> bool,
    /// An identity for the time of the update.
    pub(super) identity: &'a mut dyn FnMut() -> Identity,
    /// A policy id for the time of the update.
    pub(super) policy: &'a mut dyn FnMut() -> PolicyId,
}

impl std::fmt::Debug for Numbering<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Numbering").finish_non_exhaustive()
    }
}

/// How an address is looked up in a policy: its identity, and what stands for those that are not listed.
type Slot = (Identity, Identity);

/// What is written to change an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Prefix(IpNet),
    Name(IpNet),
    Frontend(FrontendKey),
}

/// A change of an identity.
#[derive(Debug)]
struct Move {
    place: Place,
    /// What the map had.
    from: Option<Identity>,
    /// What it is to have.
    to: Option<Identity>,
    old: Slot,
    new: Slot,
    /// A number for the time of the update.
    between: Option<Identity>,
}

/// A gate that gets other policies.
#[derive(Debug)]
struct Swap<'a> {
    pod: &'a PodKey,
    old: &'a Endpoint,
    /// The directions in which one policy takes the place of another.
    sides: Vec<(Direction, PolicyId)>,
}

/// The operations that lead from what was before to `new`, each of them safe.
pub(super) fn operations(before: &Before, new: &Image, numbering: &mut Numbering<'_>) -> Vec<Operation> {
    let swaps = swaps(before, new);
    let moving = !(before.ipcache.is_empty() && before.names.is_empty() && before.frontends.is_empty());
    if swaps.is_empty() && before.frontends.is_empty() {
        return diff::operations(before, new);
    }
    let stage = Stage { before, new, lengths: lengths(before, new), born: numbering.born };
    let in_place = stage.in_place(numbering.dead);
    if in_place.is_empty() && (swaps.is_empty() || !moving) {
        return diff::operations(before, new);
    }
    stage.plan(&swaps, &in_place, numbering)
}

fn swaps<'a>(before: &'a Before, new: &Image) -> Vec<Swap<'a>> {
    let of = |(pod, old): (&'a PodKey, &'a Option<Arc<Endpoint>>)| {
        let (old, now) = (old.as_deref()?, new.endpoints.get(pod)?);
        let replaced = |direction: &Direction| {
            let (old, now) = (old.policy(*direction), now.policy(*direction));
            // Where there is no policy everything passes, so nothing is too much.
            old != now && old != PolicyId::NONE && now != PolicyId::NONE
        };
        let sides: Vec<_> =
            Direction::BOTH.into_iter().filter(replaced).map(|direction| (direction, old.policy(direction))).collect();
        (!sides.is_empty()).then_some(Swap { pod, old, sides })
    };
    before.endpoints.iter().filter_map(of).collect()
}

/// The lengths of prefixes of either image, longest first; IPv4, then IPv6.
fn lengths(before: &Before, new: &Image) -> [Vec<u8>; 2] {
    [true, false].map(|v4| {
        let of = |prefix: &&IpNet| matches!(prefix, IpNet::V4(_)) == v4;
        let gone = before.ipcache.keys().filter(of).map(IpNet::prefix_len);
        let all: BTreeSet<u8> = new.ipcache.lengths(v4).keys().copied().chain(gone).collect();
        all.into_iter().rev().collect()
    })
}

/// Both images.
struct Stage<'a> {
    before: &'a Before,
    new: &'a Image,
    lengths: [Vec<u8>; 2],
    born: &'a dyn Fn(Identity) -> bool,
}

impl Stage<'_> {
    /// The peers that have another row now while flows are judged by them: frontends whose backends changed, the own node.
    fn in_place(&self, dead: &dyn Fn(Identity) -> bool) -> BTreeSet<(PolicyId, Identity)> {
        let gates = self.new.endpoints.iter().filter(|(pod, _)| !self.before.endpoints.contains_key(*pod));
        let gates = gates.map(|(_, gate)| gate).chain(self.before.endpoints.values().flatten());
        let judging: BTreeSet<PolicyId> =
            gates.flat_map(|gate| Direction::BOTH.map(|direction| gate.policy(direction))).collect();
        let changed = self.before.peers.iter().filter(|(key, old)| self.new.peers.get(key) != old.as_ref());
        let used = |(policy, identity): &(PolicyId, Identity)| {
            let told = *identity == Identity::HOST || *identity >= Identity::FIRST;
            told && judging.contains(policy) && !(self.born)(*identity) && !dead(*identity)
        };
        changed.map(|(key, _)| *key).filter(used).collect()
    }

    fn old_peer(&self, key: (PolicyId, Identity)) -> Option<RowId> {
        self.before.peers.get(&key).copied().unwrap_or_else(|| self.new.peers.get(&key).copied())
    }

    fn old_row(&self, policy: PolicyId, (identity, otherwise): Slot) -> Option<RowId> {
        self.old_peer((policy, identity)).or_else(|| self.old_peer((policy, otherwise)))
    }

    fn new_row(&self, policy: PolicyId, (identity, otherwise): Slot) -> Option<RowId> {
        self.new.row(policy, identity, otherwise)
    }

    /// As long as a policy that is leaving gates is not changed: what is new in it is there.
    fn frozen_row(&self, policy: PolicyId, slot: Slot) -> Option<RowId> {
        if (self.born)(slot.0) { self.new_row(policy, slot) } else { self.old_row(policy, slot) }
    }

    /// The identity of the longest prefix that has an address, of those that are no longer than `most`.
    fn covering(&self, address: IpAddr, most: u8, old: bool) -> Identity {
        let lengths = self.lengths.get(usize::from(address.is_ipv6())).map(Vec::as_slice).unwrap_or_default();
        let of = |length: &u8| {
            let prefix = IpNet::new(address, *length).ok()?.trunc();
            let was = self.before.ipcache.get(&prefix).filter(|_| old);
            was.copied().unwrap_or_else(|| self.new.ipcache.get(&prefix))
        };
        lengths.iter().filter(|length| **length <= most).find_map(of).unwrap_or(Identity::WORLD)
    }

    /// The identity of an address.
    fn identity(&self, address: IpAddr, old: bool) -> Identity {
        let prefix = IpNet::from(address);
        let was = self.before.names.get(&prefix).filter(|_| old);
        let name = was.copied().unwrap_or_else(|| self.new.names.get(&prefix));
        name.unwrap_or_else(|| self.covering(address, u8::MAX, old))
    }

    fn moves(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        let mut add = |place, from, to, old, new| {
            if from != to {
                moves.push(Move { place, from, to, old, new, between: None });
            }
        };
        let any = |identity| (identity, Identity::ANY);
        for (prefix, from) in &self.before.ipcache {
            let to = self.new.ipcache.get(prefix);
            let around = |old| match prefix.prefix_len().checked_sub(1) {
                Some(most) => self.covering(prefix.network(), most, old),
                None => Identity::WORLD,
            };
            let (old, new) = (from.unwrap_or_else(|| around(true)), to.unwrap_or_else(|| around(false)));
            add(Place::Prefix(*prefix), *from, to, any(old), any(new));
        }
        for (prefix, from) in &self.before.names {
            let to = self.new.names.get(prefix);
            let around = |old| self.covering(prefix.addr(), u8::MAX, old);
            let (old, new) = (from.unwrap_or_else(|| around(true)), to.unwrap_or_else(|| around(false)));
            add(Place::Name(*prefix), *from, to, any(old), any(new));
        }
        for (key, from) in &self.before.frontends {
            let to = self.new.frontends.get(key).copied();
            let slot = |frontend: Option<Identity>, old| match frontend {
                Some(identity) => (identity, Identity::FRONTEND),
                None => any(self.identity(key.0, old)),
            };
            add(Place::Frontend(*key), *from, to, slot(*from, true), slot(to, false));
        }
        moves
    }

    fn plan(
        &self,
        swaps: &[Swap<'_>],
        in_place: &BTreeSet<(PolicyId, Identity)>,
        numbering: &mut Numbering<'_>,
    ) -> Vec<Operation> {
        let leaving: BTreeSet<PolicyId> =
            swaps.iter().flat_map(|swap| &swap.sides).map(|(_, policy)| *policy).collect();
        let rewritten: BTreeSet<Identity> = in_place.iter().map(|(_, identity)| *identity).collect();
        let mut moves = self.moves();
        let mut between: BTreeMap<(Slot, Slot), Option<Identity>> = BTreeMap::new();
        for one in &mut moves {
            one.between = *between.entry((one.old, one.new)).or_insert_with(|| {
                let told = |policy: &PolicyId| self.old_row(*policy, one.old) != self.frozen_row(*policy, one.new);
                let unsafe_at_once =
                    rewritten.contains(&one.old.0) || rewritten.contains(&one.new.0) || leaving.iter().any(told);
                (one.old != one.new && unsafe_at_once).then(|| (numbering.identity)())
            });
        }
        let between: Vec<(Slot, Slot, Identity)> =
            between.into_iter().filter_map(|((old, new), number)| Some((old, new, number?))).collect();
        // Which of the policies that are leaving must not change before they have left.
        let mut frozen: BTreeSet<PolicyId> = leaving
            .iter()
            .filter(|policy| {
                in_place.range((**policy, Identity::ANY)..=(**policy, Identity(u32::MAX))).next().is_some()
                    || between.iter().any(|(old, new, _)| self.old_row(**policy, *old) != self.new_row(**policy, *new))
            })
            .copied()
            .collect();
        if between.is_empty() && frozen.is_empty() {
            return diff::operations(self.before, self.new);
        }
        let used: BTreeSet<PolicyId> = self
            .new
            .endpoints
            .values()
            .flat_map(|endpoint| Direction::BOTH.map(|direction| endpoint.policy(direction)))
            .filter(|policy| *policy != PolicyId::NONE)
            .collect();
        let copies: BTreeMap<PolicyId, PolicyId> =
            frozen.intersection(&used).map(|policy| (*policy, (numbering.policy)())).collect();
        frozen.retain(|policy| !copies.contains_key(policy));

        let mut list = Vec::new();
        let mut end = Vec::new();
        diff::set_content(self.before, self.new, &mut list);
        // What nobody is judged by yet, at once; the rest when everybody has moved, or when the policy has left.
        let (mut then, mut late) = (Vec::new(), Vec::new());
        for (key, old) in &self.before.peers {
            let operation = match self.new.peers.get(key) {
                Some(row) if *old != Some(*row) => Operation::SetPeer(key.0, key.1, *row),
                None if old.is_some() => Operation::RemovePeer(key.0, key.1),
                _ => continue,
            };
            if !in_place.contains(key) {
                if matches!(operation, Operation::SetPeer(..)) { list.push(operation) } else { end.push(operation) }
            } else if frozen.contains(&key.0) {
                late.push(operation);
            } else {
                then.push(operation);
            }
        }
        for (policy, copy) in &copies {
            self.copy(*policy, *copy, &mut list, &mut end);
        }
        let leaves = self.before.endpoints.values().flatten();
        let old_policies = leaves.flat_map(|endpoint| Direction::BOTH.map(|direction| endpoint.policy(direction)));
        let all: BTreeSet<PolicyId> = old_policies.filter(|policy| *policy != PolicyId::NONE).chain(used).collect();
        for (old, new, number) in &between {
            let mut set = |policy: PolicyId, row: Option<RowId>| {
                if let Some(row) = row {
                    list.push(Operation::SetPeer(policy, *number, row));
                    end.push(Operation::RemovePeer(policy, *number));
                }
            };
            for policy in &all {
                let as_before = frozen.contains(policy);
                set(*policy, if as_before { self.old_row(*policy, *old) } else { self.new_row(*policy, *new) });
            }
            for (policy, copy) in &copies {
                set(*copy, self.old_row(*policy, *old));
            }
        }
        for swap in swaps {
            let copy = |direction: Direction| {
                let policy = swap.old.policy(direction);
                let leaves = swap.sides.contains(&(direction, policy));
                copies.get(&policy).filter(|_| leaves).copied().unwrap_or(policy)
            };
            let (ingress, egress) = (copy(Direction::Ingress), copy(Direction::Egress));
            if (ingress, egress) != (swap.old.ingress, swap.old.egress) {
                let endpoint = Endpoint { ingress, egress, ..swap.old.clone() };
                list.push(Operation::SetEndpoint(swap.pod.clone(), Arc::new(endpoint)));
            }
        }
        move_all(&moves, &mut list);
        list.append(&mut then);
        diff::swap_endpoints(self.before, self.new, &mut list);
        list.append(&mut late);
        arrive(&moves, &mut list);
        list.append(&mut end);
        diff::move_revisions(self.before, self.new, &mut list);
        diff::remove_content(self.before, self.new, &mut list);
        list
    }

    /// A policy as it was, under another id, until the end.
    fn copy(&self, policy: PolicyId, copy: PolicyId, list: &mut Vec<Operation>, end: &mut Vec<Operation>) {
        let range = (policy, Identity::ANY)..=(policy, Identity(u32::MAX));
        let known = self.new.peers.range(range.clone()).map(|((_, identity), _)| *identity);
        let gone = self.before.peers.range(range).map(|((_, identity), _)| *identity);
        for identity in known.chain(gone).collect::<BTreeSet<Identity>>() {
            let key = (policy, identity);
            let row = if (self.born)(identity) { self.new.peers.get(&key).copied() } else { self.old_peer(key) };
            if let Some(row) = row {
                list.push(Operation::SetPeer(copy, identity, row));
                end.push(Operation::RemovePeer(copy, identity));
            }
        }
    }
}

/// Writes an identity, or none.
fn write(place: Place, identity: Option<Identity>) -> Operation {
    match (place, identity) {
        (Place::Prefix(prefix), Some(identity)) => Operation::SetAddress(prefix, identity),
        (Place::Prefix(prefix), None) => Operation::RemoveAddress(prefix),
        (Place::Name(prefix), Some(identity)) => Operation::SetName(prefix, identity),
        (Place::Name(prefix), None) => Operation::RemoveName(prefix),
        (Place::Frontend(key), Some(identity)) => Operation::SetFrontend(key, identity),
        (Place::Frontend(key), None) => Operation::RemoveFrontend(key),
    }
}

/// Moves everybody, to the number for the time of the update if there is one. What is looked up first, or is longer, is
/// written before what it holds back, and removed after it.
fn move_all(moves: &[Move], list: &mut Vec<Operation>) {
    let mut sorted: Vec<(u8, u8, Operation)> = moves
        .iter()
        .map(|one| {
            let to = one.between.or(one.to);
            let order = match (one.place, to) {
                (Place::Frontend(_), Some(_)) if one.from.is_none() => (0, 0),
                (Place::Name(_), Some(_)) => (1, 0),
                (Place::Prefix(prefix), Some(_)) => (2, u8::MAX - prefix.prefix_len()),
                (Place::Prefix(prefix), None) => (3, prefix.prefix_len()),
                (Place::Name(_), None) => (4, 0),
                (Place::Frontend(_), _) => (5, 0),
            };
            (order.0, order.1, write(one.place, to))
        })
        .collect();
    sorted.sort_by_key(|(first, second, _)| (*first, *second));
    list.extend(sorted.into_iter().map(|(_, _, operation)| operation));
}

/// Those that have a number for the time of the update get what they are to have.
fn arrive(moves: &[Move], list: &mut Vec<Operation>) {
    let mut sorted: Vec<(u8, u8, Operation)> = moves
        .iter()
        .filter(|one| one.between.is_some())
        .map(|one| {
            let order = match (one.place, one.to) {
                (Place::Prefix(prefix), Some(_)) => (0, u8::MAX - prefix.prefix_len()),
                (Place::Prefix(prefix), None) => (1, prefix.prefix_len()),
                (Place::Name(_), _) => (2, 0),
                (Place::Frontend(_), _) => (3, 0),
            };
            (order.0, order.1, write(one.place, one.to))
        })
        .collect();
    sorted.sort_by_key(|(first, second, _)| (*first, *second));
    list.extend(sorted.into_iter().map(|(_, _, operation)| operation));
}
