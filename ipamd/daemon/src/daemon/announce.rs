//! What pods' annotations are to say of their addresses (VPC CNI's `ANNOTATE_POD_IP`). It follows from what pods hold: what
//! differs from what was reported last is reported after the replies, so that no ADD and no DEL waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_contract::id::{ContainerId, PodRef};
use sluice_contract::node::nic;
use sluice_ipamd_core::ledger::{AddressState, Owner};
use sluice_ipamd_core::state::State;
use sluice_ipamd_core::time::Timestamp;

use super::Daemon;
use crate::cloud::Cloud;
use crate::cluster::{PodIps, Report};
use crate::kernel::Kernel;

/// Addresses by pod.
type Addresses = BTreeMap<PodRef, Vec<IpAddr>>;

/// What has been reported.
#[derive(Debug, Default)]
pub(super) struct Announced {
    all: Addresses,
    /// What the daemon before this one has reported was compared with what the cluster has.
    compared: bool,
}

impl Announced {
    /// The daemon before this one has reported what `state` holds.
    pub(super) fn before(state: &State) -> Self {
        Self { all: held(state), compared: false }
    }
}

impl<C: Cloud, K: Kernel> Daemon<C, K> {
    /// Reports what pods have come to, and what they have no longer.
    pub(super) fn announce(&mut self) {
        if !self.parts.config.annotate_pod_ip {
            return;
        }
        let mut now = held(&self.state);
        // What an ADD has that was not answered it may have to give back; its pod may have had a sandbox before.
        let unanswered: BTreeSet<&PodRef> = self.waiting.values().map(|waiting| &waiting.pod).collect();
        for pod in unanswered {
            match self.announced.all.get(pod) {
                Some(before) => now.insert(pod.clone(), before.clone()),
                None => now.remove(pod),
            };
        }
        let before = &self.announced.all;
        let came = now.iter().filter(|(pod, addresses)| before.get(*pod) != Some(*addresses));
        let came = came.map(|(pod, addresses)| (pod.clone(), addresses.clone()));
        let gone = before.keys().filter(|pod| !now.contains_key(*pod)).map(|pod| (pod.clone(), Vec::new()));
        let all: Addresses = came.chain(gone).collect();
        // What found no room differs still, and is reported after the next change.
        if !all.is_empty() && self.report(Report::PodIps(PodIps { all, again: false })) {
            self.announced.all = now;
        }
    }

    /// The cluster's pods of this node are known: those that do not say what was reported before the restart are to be told
    /// once more.
    pub(super) fn announce_again(&mut self) {
        if !self.parts.config.annotate_pod_ip || self.announced.compared {
            return;
        }
        let all = self.announced.all.clone();
        self.announced.compared = all.is_empty() || self.report(Report::PodIps(PodIps { all, again: true }));
    }
}

/// The sandbox that a pod got last, and the addresses of its interfaces.
struct Sandbox<'a> {
    container: &'a ContainerId,
    since: Timestamp,
    addresses: BTreeMap<u8, Vec<IpAddr>>,
}

/// The addresses that pods of Kubernetes hold on their own interfaces, in the order of these, and IPv4 first. Of a pod with two
/// sandboxes those of the newer one: the DEL of the other is still to come.
fn held(state: &State) -> Addresses {
    let mut pods: BTreeMap<&PodRef, Sandbox<'_>> = BTreeMap::new();
    for (owner, since, addresses) in of_pool(state).chain(of_branches(state)) {
        let Owner { attachment, pod, .. } = owner;
        let index = nic::index(&attachment.ifname);
        // Other networks of a pod are no matter of its status either.
        if pod.name.is_empty() || index == 0 && !nic::has_further(attachment) {
            continue;
        }
        let container = &attachment.container;
        let new = || Sandbox { container, since, addresses: BTreeMap::new() };
        let sandbox = pods.entry(pod).or_insert_with(new);
        if sandbox.container != container {
            if sandbox.since >= since {
                continue;
            }
            *sandbox = new();
        }
        sandbox.addresses.insert(index, addresses);
    }
    pods.into_iter().map(|(pod, sandbox)| (pod.clone(), sandbox.addresses.into_values().flatten().collect())).collect()
}

/// Who has addresses of the pool, since when, and which.
fn of_pool(state: &State) -> impl Iterator<Item = (&Owner, Timestamp, Vec<IpAddr>)> {
    let ledger = state.ledger();
    ledger.owners().filter_map(|(_, address)| match ledger.address(address)? {
        AddressState::Assigned { owner, ipv6, since } => {
            let addresses = std::iter::once(address).chain(ipv6.map(IpAddr::V6)).collect();
            Some((&**owner, *since, addresses))
        }
        _ => None,
    })
}

/// The same of branch ENIs.
fn of_branches(state: &State) -> impl Iterator<Item = (&Owner, Timestamp, Vec<IpAddr>)> {
    state.branches().map(|held| (&held.owner, held.since, held.addresses.iter().map(|(ip, _)| *ip).collect()))
}
