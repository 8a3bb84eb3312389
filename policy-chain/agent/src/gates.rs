//! The kernel's gates as the engine's image wants them, and what becomes of a write that fails.
//!
//! DESIGN 6.10: full maps lock an endpoint down, they never enforce half a policy. A write that failed is owed: it is tried
//! again, as the image has it then, whenever something was written and every few seconds. As long as anything is
//! owed, every pod that it might concern is locked down, and its endpoint is not written: those whose policy has the row or the
//! decision, or tells the peer from whom the kernel takes it for. All others go on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use sluice_contract::id::IfName;
use sluice_daemon::log::ErrorChain;
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::compile::diff::Operation;
use sluice_policy_core::compile::image::{
    DecisionId, Endpoint, FrontendKey, Identity, Image, PolicyId, Prefixes, RowId,
};

use crate::datapath::{ApplyError, AttachError, Datapath, Difference, Interface, Seen, Tended, Veth};

/// A key of a map of which the kernel does not have what the image has. The order is that in which they are written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Owed {
    Decision(DecisionId),
    Row(RowId),
    Peer(PolicyId, Identity),
    Name(IpNet),
    Address(IpNet),
    Frontend(FrontendKey),
    Endpoint(PodKey),
}

impl Owed {
    fn of(operation: &Operation) -> Self {
        match operation {
            Operation::SetDecision(id, _) | Operation::RemoveDecision(id) => Self::Decision(*id),
            Operation::SetRow(id, _) | Operation::RemoveRow(id) => Self::Row(*id),
            Operation::SetPeer(policy, identity, _) | Operation::RemovePeer(policy, identity) => {
                Self::Peer(*policy, *identity)
            }
            Operation::SetName(prefix, _) | Operation::RemoveName(prefix) => Self::Name(*prefix),
            Operation::SetAddress(prefix, _) | Operation::RemoveAddress(prefix) => Self::Address(*prefix),
            Operation::SetFrontend(key, _) | Operation::RemoveFrontend(key) => Self::Frontend(*key),
            Operation::SetEndpoint(pod, _) | Operation::SetRevision(pod, _) | Operation::RemoveEndpoint(pod) => {
                Self::Endpoint(pod.clone())
            }
        }
    }

    /// What has to be written for it, as the image is now.
    fn operation(&self, image: &Image) -> Operation {
        match self {
            Self::Decision(id) => image
                .decisions
                .get(id)
                .map_or(Operation::RemoveDecision(*id), |judgement| Operation::SetDecision(*id, Arc::clone(judgement))),
            Self::Row(id) => {
                image.rows.get(id).map_or(Operation::RemoveRow(*id), |row| Operation::SetRow(*id, Arc::clone(row)))
            }
            Self::Peer(policy, identity) => image
                .peers
                .get(&(*policy, *identity))
                .map_or(Operation::RemovePeer(*policy, *identity), |row| Operation::SetPeer(*policy, *identity, *row)),
            Self::Name(prefix) => image
                .names
                .get(prefix)
                .map_or(Operation::RemoveName(*prefix), |identity| Operation::SetName(*prefix, identity)),
            Self::Address(prefix) => image
                .ipcache
                .get(prefix)
                .map_or(Operation::RemoveAddress(*prefix), |identity| Operation::SetAddress(*prefix, identity)),
            Self::Frontend(key) => image
                .frontends
                .get(key)
                .map_or(Operation::RemoveFrontend(*key), |identity| Operation::SetFrontend(*key, *identity)),
            Self::Endpoint(pod) => {
                image.endpoints.get(pod).map_or(Operation::RemoveEndpoint(pod.clone()), |endpoint| {
                    Operation::SetEndpoint(pod.clone(), Arc::clone(endpoint))
                })
            }
        }
    }

    /// The pods whose verdicts may be wrong without it. Rather too many than too few.
    fn affects(&self, image: &Image, datapath: &impl Datapath) -> BTreeSet<PodKey> {
        let having = |policies: &BTreeSet<PolicyId>, row: Option<RowId>| -> BTreeSet<PodKey> {
            let hairpin = |endpoint: &Endpoint| {
                row.is_some() && endpoint.addresses.iter().any(|own| own.ingress == row || own.egress == row)
            };
            image
                .endpoints
                .iter()
                .filter(|(_, endpoint)| {
                    policies.contains(&endpoint.ingress) || policies.contains(&endpoint.egress) || hairpin(endpoint)
                })
                .map(|(pod, _)| pod.clone())
                .collect()
        };
        let having_rows = |rows: &BTreeSet<RowId>| {
            let policies = image.peers.iter().filter(|(_, row)| rows.contains(row)).map(|((policy, _), _)| *policy);
            let mut pods = having(&policies.collect(), None);
            pods.extend(rows.iter().flat_map(|row| having(&BTreeSet::new(), Some(*row))));
            pods
        };
        // Those to whom it makes a difference for whom an address is taken.
        let telling_apart = |wanted: Identity, held: Option<Identity>| {
            let policies: BTreeSet<PolicyId> =
                image.endpoints.values().flat_map(|endpoint| [endpoint.ingress, endpoint.egress]).collect();
            let row = |policy: PolicyId, identity| image.row(policy, identity, Identity::ANY);
            let differs = |policy: &PolicyId| held.is_none_or(|held| row(*policy, wanted) != row(*policy, held));
            having(&policies.into_iter().filter(|policy| *policy != PolicyId::NONE && differs(policy)).collect(), None)
        };
        match self {
            Self::Decision(id) => {
                let rows = image.rows.iter().filter(|(_, row)| row.entries.iter().any(|(_, decision)| decision == id));
                having_rows(&rows.map(|(row, _)| *row).collect())
            }
            Self::Address(prefix) => {
                telling_apart(covering(&image.ipcache, prefix), datapath.identities(prefix).map(|held| held.address))
            }
            Self::Name(prefix) => {
                let wanted = image.names.get(prefix).unwrap_or_else(|| covering(&image.ipcache, prefix));
                telling_apart(wanted, datapath.identities(prefix).map(|held| held.name.unwrap_or(held.address)))
            }
            Self::Row(row) => having_rows(&BTreeSet::from([*row])),
            Self::Peer(policy, _) => having(&BTreeSet::from([*policy]), None),
            // Without it a Service's address is judged like any other: also for a pod without a policy, which would
            // then not be judged at the backend.
            Self::Frontend(_) => image.endpoints.keys().cloned().collect(),
            Self::Endpoint(pod) => BTreeSet::from([pod.clone()]),
        }
    }
}

/// Whom the addresses of a prefix are taken for that have no longer one.
fn covering(prefixes: &Prefixes, prefix: &IpNet) -> Identity {
    let shorter = (0..=prefix.prefix_len()).rev().filter_map(|bits| IpNet::new(prefix.addr(), bits).ok());
    shorter.map(|prefix| prefix.trunc()).find_map(|prefix| prefixes.get(&prefix)).unwrap_or(Identity::WORLD)
}

/// Something that went wrong while writing.
#[derive(Debug)]
pub(crate) struct Trouble {
    /// `full`, or `kernel`.
    pub(crate) kind: &'static str,
    /// The map that is full; empty where the kernel refused.
    pub(crate) map: &'static str,
    /// In words.
    pub(crate) message: String,
    /// The pods that were locked down for it and were not before.
    pub(crate) locked: Vec<PodKey>,
}

/// The gates.
#[derive(Debug)]
pub(crate) struct Gates<D> {
    datapath: D,
    owed: BTreeSet<Owed>,
    /// Pods that are locked down because of what is owed.
    locked: BTreeSet<PodKey>,
    /// Lockdowns that failed themselves.
    unlocked: BTreeSet<PodKey>,
}

impl<D: Datapath> Gates<D> {
    pub(crate) const fn new(datapath: D) -> Self {
        Self { datapath, owed: BTreeSet::new(), locked: BTreeSet::new(), unlocked: BTreeSet::new() }
    }

    /// Carries out operations in their order. `image` is what they lead to.
    pub(crate) fn carry_out(&mut self, operations: &[Operation], image: &Image) -> Vec<Trouble> {
        let mut troubles = Vec::new();
        self.lock_more(image);
        for operation in operations {
            self.carry_out_one(operation, image, &mut troubles);
        }
        if self.is_behind() {
            self.lock_more(image);
            self.retry(image);
        }
        troubles
    }

    fn carry_out_one(&mut self, operation: &Operation, image: &Image, troubles: &mut Vec<Trouble>) {
        if let Operation::SetEndpoint(pod, _) | Operation::SetRevision(pod, _) = operation
            && self.locked.contains(pod)
        {
            // Written when nothing is owed any more that concerns it.
            return;
        }
        let owed = Owed::of(operation);
        // A row is written entry by entry: what the last row of this number left must be gone first.
        let leftover = matches!(operation, Operation::SetRow(..)) && self.owed.contains(&owed);
        let cleared = match (leftover, &owed) {
            (true, Owed::Row(id)) => self.datapath.apply(&Operation::RemoveRow(*id)),
            _ => Ok(()),
        };
        match cleared.and_then(|()| self.datapath.apply(operation)) {
            Ok(()) => {
                self.owed.remove(&owed);
                if let Operation::RemoveEndpoint(pod) = operation {
                    self.locked.remove(pod);
                    self.unlocked.remove(pod);
                }
            }
            Err(error) => {
                let locked: Vec<PodKey> = owed
                    .affects(image, &self.datapath)
                    .into_iter()
                    .filter(|pod| self.locked.insert(pod.clone()))
                    .collect();
                for pod in &locked {
                    self.lock(pod.clone());
                }
                self.owed.insert(owed);
                let (kind, map) = match &error {
                    ApplyError::Full { map, .. } => ("full", *map),
                    ApplyError::Kernel { .. } => ("kernel", ""),
                };
                let message = ErrorChain(&error).to_string();
                tracing::error!(error = message, locked = locked.len(), "a gate could not be written");
                troubles.push(Trouble { kind, map, message, locked });
            }
        }
    }

    /// What is owed may concern further pods by now.
    fn lock_more(&mut self, image: &Image) {
        for pod in self.affected(image) {
            if self.locked.insert(pod.clone()) {
                self.lock(pod);
            }
        }
    }

    /// The pods that what is owed may concern.
    fn affected(&self, image: &Image) -> BTreeSet<PodKey> {
        self.owed.iter().flat_map(|owed| owed.affects(image, &self.datapath)).collect()
    }

    fn lock(&mut self, pod: PodKey) {
        match self.datapath.lock_down(&pod) {
            Ok(()) => {
                self.unlocked.remove(&pod);
            }
            Err(error) => {
                tracing::error!(pod = %pod, error = %ErrorChain(&error), "an endpoint could not be locked down");
                self.unlocked.insert(pod);
            }
        }
    }

    /// Tries what is owed again, and opens the gates that nothing of it concerns any more. Whether nothing is owed now.
    pub(crate) fn retry(&mut self, image: &Image) -> bool {
        for pod in std::mem::take(&mut self.unlocked) {
            self.lock(pod);
        }
        // Endpoints come last, and only when all else is there that they need.
        for owed in self.owed.clone() {
            if let Owed::Endpoint(pod) = &owed {
                let others = self.owed.iter().filter(|other| !matches!(other, Owed::Endpoint(_)));
                if others.flat_map(|other| other.affects(image, &self.datapath)).any(|other| other == *pod) {
                    continue;
                }
            }
            if matches!(owed, Owed::Row(_))
                && let Owed::Row(id) = &owed
                && self.datapath.apply(&Operation::RemoveRow(*id)).is_err()
            {
                continue;
            }
            if self.datapath.apply(&owed.operation(image)).is_ok() {
                self.owed.remove(&owed);
            }
        }
        let affected = self.affected(image);
        let (locked, opened) = std::mem::take(&mut self.locked).into_iter().partition(|pod| affected.contains(pod));
        self.locked = locked;
        for pod in opened {
            let owed = Owed::Endpoint(pod.clone());
            if self.datapath.apply(&owed.operation(image)).is_err() {
                self.owed.insert(owed);
                self.locked.insert(pod);
            }
        }
        self.owed.is_empty()
    }

    /// Whether the kernel does not have all of the image, or something is locked down.
    pub(crate) fn is_behind(&self) -> bool {
        !self.owed.is_empty() || !self.locked.is_empty() || !self.unlocked.is_empty()
    }

    /// Pods that are locked down.
    pub(crate) const fn locked(&self) -> &BTreeSet<PodKey> {
        &self.locked
    }

    pub(crate) async fn bind(&mut self, pod: &PodKey, interface: &Interface) -> Result<(), ApplyError> {
        self.datapath.bind(pod, interface).await?;
        if self.locked.contains(pod) {
            self.lock(pod.clone());
        }
        Ok(())
    }

    pub(crate) fn unbind(&mut self, index: u32) -> Result<(), ApplyError> {
        self.datapath.unbind(index)
    }

    pub(crate) fn forget(&mut self, index: u32) -> Result<(), ApplyError> {
        self.datapath.forget(index)
    }

    pub(crate) fn lock_down_kept(&mut self) -> Result<usize, ApplyError> {
        self.datapath.lock_down_kept()
    }

    pub(crate) fn attach(&mut self, interface: &Interface) -> impl Future<Output = Result<(), AttachError>> + Send {
        self.datapath.attach(interface)
    }

    pub(crate) fn adopt(&mut self, interface: &Interface) -> impl Future<Output = Result<(), AttachError>> + Send {
        self.datapath.adopt(interface)
    }

    pub(crate) fn check(
        &mut self,
        interface: &Interface,
    ) -> impl Future<Output = Result<Vec<Difference>, AttachError>> + Send {
        self.datapath.check(interface)
    }

    pub(crate) fn behind(&mut self, address: IpAddr) -> impl Future<Output = Option<(u32, IfName)>> + Send {
        self.datapath.behind(address)
    }

    pub(crate) fn veths(&mut self) -> impl Future<Output = Option<Vec<Veth>>> + Send {
        self.datapath.veths()
    }

    pub(crate) fn seed(&mut self, interface: &Interface) -> impl Future<Output = ()> + Send {
        self.datapath.seed(interface)
    }

    pub(crate) fn promote(&mut self) -> impl Future<Output = Option<Result<IfName, AttachError>>> + Send {
        self.datapath.promote()
    }

    pub(crate) fn tend(&mut self, replace: bool) -> impl Future<Output = Tended> + Send {
        self.datapath.tend(replace)
    }

    pub(crate) fn sweep(&mut self, image: &Image) -> Result<(), ApplyError> {
        self.datapath.sweep(image)
    }

    pub(crate) fn leave_other_layouts(&mut self) -> Result<bool, ApplyError> {
        self.datapath.leave_other_layouts()
    }

    pub(crate) fn endpoints(&self) -> impl Iterator<Item = (u32, &PodKey)> + Clone {
        self.datapath.endpoints()
    }

    pub(crate) fn seen(&mut self) -> Vec<Seen> {
        self.datapath.seen()
    }

    pub(crate) fn counters(&mut self) -> BTreeMap<u32, u64> {
        self.datapath.counters()
    }

    pub(crate) fn drops(&mut self) -> BTreeMap<&'static str, u64> {
        self.datapath.drops()
    }

    pub(crate) fn expire(&mut self) {
        self.datapath.expire();
    }

    pub(crate) fn in_use(&mut self, addresses: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        self.datapath.in_use(addresses)
    }
}
