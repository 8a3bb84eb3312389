//! An image without its numbers: two images that do the same have equal canonical forms.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{FrontendKey, Identity, Image, PolicyId, RowId};
use crate::cluster::PodKey;
use crate::compile::row::Row;
use crate::flow::{Judgement, Protocol};

type Content = Arc<Row<Judgement>>;

/// What an image does, whatever its numbers. Identities and policies are numbered by where they are first used, rows stand
/// for themselves, and revisions, which are history, are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canonical {
    /// Prefixes of the ipcache.
    pub ipcache: BTreeMap<IpNet, usize>,
    /// Prefixes of the names.
    pub names: BTreeMap<IpNet, usize>,
    /// Frontends.
    pub frontends: BTreeMap<FrontendKey, usize>,
    /// Gates.
    pub endpoints: BTreeMap<PodKey, CanonicalEndpoint>,
    /// For each policy, the row of each identity in use; the last two are those of the own node and of all others.
    pub policies: Vec<Vec<Option<Content>>>,
}

/// A gate without numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanonicalEndpoint {
    /// Addresses.
    pub addresses: Vec<CanonicalAddress>,
    /// Policy of each direction, ingress first; none: no policy.
    pub policies: [Option<usize>; 2],
    /// Dry run.
    pub audit: bool,
}

/// An address of a pod with its hairpin rows, ingress first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanonicalAddress {
    /// The address.
    pub address: IpAddr,
    /// The rows.
    pub hairpin: [Option<Content>; 2],
}

#[derive(Default)]
struct Numbers<K>(BTreeMap<K, usize>, Vec<K>);

impl<K: Copy + Ord> Numbers<K> {
    fn of(&mut self, key: K) -> usize {
        let next = self.1.len();
        *self.0.entry(key).or_insert_with(|| {
            self.1.push(key);
            next
        })
    }
}

impl Image {
    /// The image without its numbers.
    #[must_use]
    pub fn canonical(&self) -> Canonical {
        let rows: BTreeMap<RowId, Content> = self.rows.keys().map(|id| (*id, Arc::new(self.content(*id)))).collect();
        let mut identities = Numbers::<Identity>(BTreeMap::new(), Vec::new());
        let ipcache = self.ipcache.iter().map(|(prefix, id)| (prefix, identities.of(id))).collect();
        let names = self.names.iter().map(|(prefix, id)| (prefix, identities.of(id))).collect();
        let peers = identities.1.len();
        let frontends = self.frontends.iter().map(|(key, id)| (*key, identities.of(*id))).collect();
        let mut policies = Numbers::<PolicyId>(BTreeMap::new(), Vec::new());
        let mut policy = |id: PolicyId| (id != PolicyId::NONE).then(|| policies.of(id));
        let endpoints = self
            .endpoints
            .iter()
            .map(|(pod, endpoint)| {
                let row = |id: Option<RowId>| id.and_then(|id| rows.get(&id).cloned());
                let addresses = endpoint
                    .addresses
                    .iter()
                    .map(|own| CanonicalAddress { address: own.address, hairpin: [row(own.ingress), row(own.egress)] });
                let canonical = CanonicalEndpoint {
                    addresses: addresses.collect(),
                    policies: [policy(endpoint.ingress), policy(endpoint.egress)],
                    audit: endpoint.audit,
                };
                (pod.clone(), canonical)
            })
            .collect();
        let table = |policy: &PolicyId| -> Vec<Option<Content>> {
            let of = |(index, identity): (usize, &Identity)| {
                let otherwise = if index < peers { Identity::ANY } else { Identity::FRONTEND };
                self.row(*policy, *identity, otherwise).and_then(|row| rows.get(&row).cloned())
            };
            let special = [Identity::HOST, Identity::ANY]
                .map(|identity| self.row(*policy, identity, Identity::ANY).and_then(|row| rows.get(&row).cloned()));
            identities.1.iter().enumerate().map(of).chain(special).collect()
        };
        let policies = policies.1.iter().map(table).collect();
        Canonical { ipcache, names, frontends, endpoints, policies }
    }

    /// A row with the judgements in place of their numbers.
    fn content(&self, row: RowId) -> Row<Judgement> {
        let entries = self.rows.get(&row).map(|row| row.entries.as_slice()).unwrap_or_default();
        let judgement = |id| self.decisions.get(id).map_or_else(super::broken, |judgement| Judgement::clone(judgement));
        Row { entries: entries.iter().map(|(prefix, id)| (*prefix, judgement(id))).collect() }
    }

    /// What happens to a peer's packets at a policy, for those who print it.
    #[must_use]
    pub fn lookup(&self, policy: PolicyId, identity: Identity, protocol: Protocol, port: u16) -> Option<&Judgement> {
        let row = self.row(policy, identity, Identity::ANY)?;
        let decision = self.rows.get(&row)?.get(protocol, port)?;
        self.decisions.get(decision).map(AsRef::as_ref)
    }
}
