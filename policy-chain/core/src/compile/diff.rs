//! From one image to the next: the fewest operations, in an order in which each step is safe.
//!
//! Everything is written before what refers to it and removed after it. Addresses move one at a time, each from its old
//! identity to its new one with nothing between. A gate gets its new policies in one write.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::image::{DecisionId, Endpoint, FrontendKey, Identity, Image, PolicyId, RowEntries, RowId};
use crate::cluster::PodKey;
use crate::flow::Judgement;

/// A write to one map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// A decision is new.
    SetDecision(DecisionId, Arc<Judgement>),
    /// A row is new. Nothing refers to it yet, so it may be written entry by entry.
    SetRow(RowId, Arc<RowEntries>),
    /// A policy has a row for an identity.
    SetPeer(PolicyId, Identity, RowId),
    /// A prefix of the ipcache has an identity.
    SetAddress(IpNet, Identity),
    /// A prefix of the ipcache is gone.
    RemoveAddress(IpNet),
    /// An address of names has an identity.
    SetName(IpNet, Identity),
    /// An address of names is gone.
    RemoveName(IpNet),
    /// A frontend has an identity.
    SetFrontend(FrontendKey, Identity),
    /// A frontend is gone.
    RemoveFrontend(FrontendKey),
    /// A gate is new, or has other policies or addresses.
    SetEndpoint(PodKey, Arc<Endpoint>),
    /// The flows of a gate have to be judged again.
    SetRevision(PodKey, u64),
    /// A gate is gone.
    RemoveEndpoint(PodKey),
    /// Nobody asks a policy for an identity any more.
    RemovePeer(PolicyId, Identity),
    /// Nobody refers to a row any more.
    RemoveRow(RowId),
    /// Nobody refers to a decision any more.
    RemoveDecision(DecisionId),
}

impl Image {
    /// Does what an operation says.
    pub fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::SetDecision(id, judgement) => {
                self.decisions.insert(*id, Arc::clone(judgement));
            }
            Operation::SetRow(id, row) => {
                self.rows.insert(*id, Arc::clone(row));
            }
            Operation::SetPeer(policy, identity, row) => {
                self.peers.insert((*policy, *identity), *row);
            }
            Operation::SetAddress(prefix, identity) => {
                self.ipcache.set(*prefix, Some(*identity));
            }
            Operation::RemoveAddress(prefix) => {
                self.ipcache.set(*prefix, None);
            }
            Operation::SetName(prefix, identity) => {
                self.names.set(*prefix, Some(*identity));
            }
            Operation::RemoveName(prefix) => {
                self.names.set(*prefix, None);
            }
            Operation::SetFrontend(key, identity) => {
                self.frontends.insert(*key, *identity);
            }
            Operation::RemoveFrontend(key) => {
                self.frontends.remove(key);
            }
            Operation::SetEndpoint(pod, endpoint) => {
                self.endpoints.insert(pod.clone(), Arc::clone(endpoint));
            }
            Operation::SetRevision(pod, revision) => {
                if let Some(endpoint) = self.endpoints.get_mut(pod) {
                    Arc::make_mut(endpoint).revision = *revision;
                }
            }
            Operation::RemoveEndpoint(pod) => {
                self.endpoints.remove(pod);
            }
            Operation::RemovePeer(policy, identity) => {
                self.peers.remove(&(*policy, *identity));
            }
            Operation::RemoveRow(id) => {
                self.rows.remove(id);
            }
            Operation::RemoveDecision(id) => {
                self.decisions.remove(id);
            }
        }
    }
}

/// What was in an image before it was changed, for every key that was touched.
#[derive(Debug, Default)]
pub(super) struct Before {
    pub(super) decisions: BTreeMap<DecisionId, Option<Arc<Judgement>>>,
    pub(super) rows: BTreeMap<RowId, Option<Arc<RowEntries>>>,
    pub(super) peers: BTreeMap<(PolicyId, Identity), Option<RowId>>,
    pub(super) ipcache: BTreeMap<IpNet, Option<Identity>>,
    pub(super) names: BTreeMap<IpNet, Option<Identity>>,
    pub(super) frontends: BTreeMap<FrontendKey, Option<Identity>>,
    pub(super) endpoints: BTreeMap<PodKey, Option<Arc<Endpoint>>>,
}

/// The operations that turn `old` into `new`.
///
/// They are in an order in which each step is safe, that is, lets nothing pass that neither image lets pass, if the numbers
/// that both images use mean the same in both, and if no gate gets another policy while an address that it judges gets
/// another identity. The updates of an engine are safe in this case too.
#[must_use]
pub fn diff(old: &Image, new: &Image) -> Vec<Operation> {
    let before = Before {
        decisions: differing(&old.decisions, &new.decisions),
        rows: differing(&old.rows, &new.rows),
        peers: differing(&old.peers, &new.peers),
        ipcache: differing(&old.ipcache.iter().collect(), &new.ipcache.iter().collect()),
        names: differing(&old.names.iter().collect(), &new.names.iter().collect()),
        frontends: differing(&old.frontends, &new.frontends),
        endpoints: differing(&old.endpoints, &new.endpoints),
    };
    operations(&before, new)
}

fn differing<K: Ord + Clone, V: Clone + PartialEq>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> BTreeMap<K, Option<V>> {
    let changed = old.iter().filter(|(key, value)| new.get(key) != Some(value));
    let gone = changed.map(|(key, value)| (key.clone(), Some(value.clone())));
    let added = new.keys().filter(|key| !old.contains_key(key)).map(|key| (key.clone(), None));
    gone.chain(added).collect()
}

/// The operations that lead from what was before to `new`, in safe order: as long as no gate gets another policy while an
/// address gets another identity (for that there is [`super::stage`]).
pub(super) fn operations(before: &Before, new: &Image) -> Vec<Operation> {
    let mut list = Vec::new();
    set_content(before, new, &mut list);
    for (key, old) in &before.peers {
        if let Some(row) = new.peers.get(key).filter(|row| old.as_ref() != Some(row)) {
            list.push(Operation::SetPeer(key.0, key.1, *row));
        }
    }
    move_addresses(before, new, &mut list);
    swap_endpoints(before, new, &mut list);
    for (key, old) in &before.peers {
        if old.is_some() && !new.peers.contains_key(key) {
            list.push(Operation::RemovePeer(key.0, key.1));
        }
    }
    move_revisions(before, new, &mut list);
    remove_content(before, new, &mut list);
    list
}

/// New decisions and rows.
pub(super) fn set_content(before: &Before, new: &Image, list: &mut Vec<Operation>) {
    for (id, old) in &before.decisions {
        if let Some(judgement) = new.decisions.get(id).filter(|judgement| old.as_ref() != Some(judgement)) {
            list.push(Operation::SetDecision(*id, Arc::clone(judgement)));
        }
    }
    for (id, old) in &before.rows {
        if let Some(row) = new.rows.get(id).filter(|row| old.as_ref() != Some(row)) {
            list.push(Operation::SetRow(*id, Arc::clone(row)));
        }
    }
}

/// Rows and decisions that are gone.
pub(super) fn remove_content(before: &Before, new: &Image, list: &mut Vec<Operation>) {
    for (id, old) in &before.rows {
        if old.is_some() && !new.rows.contains_key(id) {
            list.push(Operation::RemoveRow(*id));
        }
    }
    for (id, old) in &before.decisions {
        if old.is_some() && !new.decisions.contains_key(id) {
            list.push(Operation::RemoveDecision(*id));
        }
    }
}

/// Long prefixes are written before short ones and removed after them: what a prefix held back from the one around it
/// never shows the other's new identity. In the same way frontends that are new come before all addresses, and those that go
/// after them: the port of a node that is new is never judged as the node.
fn move_addresses(before: &Before, new: &Image, list: &mut Vec<Operation>) {
    let mut set: Vec<(IpNet, Identity)> = Vec::new();
    let mut removed: Vec<IpNet> = Vec::new();
    for (prefix, old) in &before.ipcache {
        match new.ipcache.get(prefix) {
            Some(identity) if *old != Some(identity) => set.push((*prefix, identity)),
            None if old.is_some() => removed.push(*prefix),
            _ => {}
        }
    }
    set.sort_by_key(|(prefix, _)| (std::cmp::Reverse(prefix.prefix_len()), *prefix));
    removed.sort_by_key(|prefix| (prefix.prefix_len(), *prefix));
    for (key, old) in &before.frontends {
        if let (None, Some(identity)) = (old, new.frontends.get(key)) {
            list.push(Operation::SetFrontend(*key, *identity));
        }
    }
    for (prefix, old) in &before.names {
        match new.names.get(prefix) {
            Some(identity) if *old != Some(identity) => list.push(Operation::SetName(*prefix, identity)),
            _ => {}
        }
    }
    list.extend(set.into_iter().map(|(prefix, identity)| Operation::SetAddress(prefix, identity)));
    list.extend(removed.into_iter().map(Operation::RemoveAddress));
    for (prefix, old) in &before.names {
        if old.is_some() && new.names.get(prefix).is_none() {
            list.push(Operation::RemoveName(*prefix));
        }
    }
    for (key, old) in &before.frontends {
        match new.frontends.get(key) {
            Some(identity) if old.is_some_and(|old| old != *identity) => {
                list.push(Operation::SetFrontend(*key, *identity));
            }
            None if old.is_some() => list.push(Operation::RemoveFrontend(*key)),
            _ => {}
        }
    }
}

/// Gates get their policies; those that are gone go. One that was there keeps its revision until [`move_revisions`]: its other policy
/// may not be as it is to be yet.
pub(super) fn swap_endpoints(before: &Before, new: &Image, list: &mut Vec<Operation>) {
    let mut removed = Vec::new();
    for (pod, old) in &before.endpoints {
        match (old, new.endpoints.get(pod)) {
            (Some(old), Some(endpoint)) if old.same_but_revision(endpoint) => {}
            (Some(old), Some(endpoint)) if old.revision != endpoint.revision => {
                let endpoint = Endpoint { revision: old.revision, ..Endpoint::clone(endpoint) };
                list.push(Operation::SetEndpoint(pod.clone(), Arc::new(endpoint)));
            }
            (_, Some(endpoint)) => list.push(Operation::SetEndpoint(pod.clone(), Arc::clone(endpoint))),
            (Some(_), None) => removed.push(Operation::RemoveEndpoint(pod.clone())),
            (None, None) => {}
        }
    }
    list.append(&mut removed);
}

/// Gates that were there get their revisions. What a flow is judged anew by has to be there then, and what it is not to be
/// judged by any more has to be gone: it is judged once.
pub(super) fn move_revisions(before: &Before, new: &Image, list: &mut Vec<Operation>) {
    for (pod, old) in &before.endpoints {
        if let (Some(old), Some(endpoint)) = (old, new.endpoints.get(pod))
            && old.revision != endpoint.revision
        {
            list.push(Operation::SetRevision(pod.clone(), endpoint.revision));
        }
    }
}
