//! The compiler's operations, carried out.

use std::sync::Arc;

use ipnet::IpNet;
use sluice_policy_core::compile::diff::Operation;
use sluice_policy_core::compile::image::{DecisionId, Identity, RowEntries, RowId};

use super::maps::{found, removed, row_key, trie_key};
use super::{ApplyError, Gate, keys};
use crate::layout::{Peer, RowPrefix};

impl Gate {
    /// Carries out an operation. What is there already is written again, what is gone is not missed: a list that was broken
    /// off can be carried out again from its begin.
    ///
    /// [`Operation::SetEndpoint`] of a pod to which no interface is bound is remembered and written when one is; it also
    /// ends a lockdown. [`Operation::RemoveEndpoint`] makes the pod's interfaces drop.
    ///
    /// # Errors
    /// [`ApplyError`]; nothing that a packet could find has been written then.
    pub fn apply(&mut self, operation: &Operation) -> Result<(), ApplyError> {
        let maps = &mut self.maps;
        match operation {
            Operation::SetDecision(id, judgement) => {
                let value = keys::decision(judgement);
                let written = maps.decisions.insert(id.0, value, 0);
                written.map_err(|error| maps.failed("decisions", error))
            }
            Operation::SetRow(id, row) => self.set_row(*id, row),
            Operation::SetPeer(policy, identity, row) => {
                let written = maps.peers.insert(Peer { policy: policy.0, identity: identity.0 }, row.0, 0);
                written.map_err(|error| maps.failed("peers", error))
            }
            Operation::SetAddress(net, identity) => {
                let written = maps.ipcache.insert(&trie_key(keys::prefix(net)), identity.0, 0);
                written.map_err(|error| maps.failed("ipcache", error))
            }
            Operation::RemoveAddress(net) => removed("ipcache", maps.ipcache.remove(&trie_key(keys::prefix(net)))),
            Operation::SetName(net, identity) => {
                let written = maps.names.insert(&trie_key(keys::prefix(net)), identity.0, 0);
                written.map_err(|error| maps.failed("names", error))
            }
            Operation::RemoveName(net) => removed("names", maps.names.remove(&trie_key(keys::prefix(net)))),
            Operation::SetFrontend(key, identity) => {
                let written = maps.frontends.insert(keys::frontend(key), identity.0, 0);
                written.map_err(|error| maps.failed("frontends", error))
            }
            Operation::RemoveFrontend(key) => removed("frontends", maps.frontends.remove(&keys::frontend(key))),
            Operation::SetEndpoint(pod, endpoint) => self.set_endpoint(pod, endpoint),
            Operation::SetRevision(pod, revision) => self.set_revision(pod, *revision),
            Operation::RemoveEndpoint(pod) => self.remove_endpoint(pod),
            Operation::RemovePeer(policy, identity) => {
                removed("peers", maps.peers.remove(&Peer { policy: policy.0, identity: identity.0 }))
            }
            Operation::RemoveRow(id) => self.remove_row(*id),
            Operation::RemoveDecision(id) => self.remove_decision(*id),
        }
    }

    /// Whom the programs take the addresses of a prefix for that are in no longer one: as such that names resolved to, and else.
    ///
    /// # Errors
    /// [`ApplyError::Kernel`].
    pub fn identities(&self, prefix: &IpNet) -> Result<(Option<Identity>, Option<Identity>), ApplyError> {
        let key = trie_key(keys::prefix(prefix));
        let names = found("names", self.maps.names.get(&key, 0))?;
        Ok((names.map(Identity), found("ipcache", self.maps.ipcache.get(&key, 0))?.map(Identity)))
    }

    /// A row goes in entry by entry, and out again where it does not fit: nothing refers to it yet.
    fn set_row(&mut self, id: RowId, row: &Arc<RowEntries>) -> Result<(), ApplyError> {
        let before = self.rows.get(&id).cloned();
        let had = |ports| before.as_ref().is_some_and(|row| row.entries.iter().any(|(other, _)| *other == ports));
        for (written, (ports, decision)) in row.entries.iter().enumerate() {
            let result = self.maps.rows.insert(&row_key(keys::row_prefix(id, *ports)), decision.0, 0);
            if let Err(error) = result {
                let error = self.maps.failed("rows", error);
                for (ports, _) in row.entries.iter().take(written).filter(|(ports, _)| !had(*ports)) {
                    removed("rows", self.maps.rows.remove(&row_key(keys::row_prefix(id, *ports))))?;
                }
                return Err(error);
            }
        }
        for (ports, _) in before.iter().flat_map(|row| &row.entries) {
            if !row.entries.iter().any(|(other, _)| other == ports) {
                removed("rows", self.maps.rows.remove(&row_key(keys::row_prefix(id, *ports))))?;
            }
        }
        self.rows.insert(id, Arc::clone(row));
        Ok(())
    }

    fn remove_row(&mut self, id: RowId) -> Result<(), ApplyError> {
        let Some(row) = self.rows.get(&id) else { return Ok(()) };
        let mut prefixes: Vec<RowPrefix> = row.entries.iter().map(|(ports, _)| keys::row_prefix(id, *ports)).collect();
        // Short ones first: a packet that still asks must not get the answer that a long one held back.
        prefixes.sort_unstable_by_key(|prefix| prefix.bits);
        for prefix in prefixes {
            removed("rows", self.maps.rows.remove(&row_key(prefix)))?;
        }
        self.rows.remove(&id);
        Ok(())
    }

    /// Its counter goes too: the number may come to mean something else.
    fn remove_decision(&mut self, id: DecisionId) -> Result<(), ApplyError> {
        removed("decisions", self.maps.decisions.remove(&id.0))?;
        removed("counters", self.maps.counters.remove(&id.0))
    }
}
