//! Pods that ran before policyd was there: they get gates too, without a break for the flows that they have.
//!
//! Such a pod has an address for the cluster and an interface on the host, and nobody has asked for its policy. Its interface is
//! that of the name that the VPC CNI and sluice-eni give it, else that to which the host has a route of the pod's address alone, as
//! `ptp` makes it. Of its further interfaces, on other network cards, the cluster knows nothing: they are told by their names, and
//! their addresses by the host's routes. A name alone proves nothing there, because `a`'s second interface is called like the first
//! of a pod `a.1`: the kernel has to show that both are of one sandbox. They are looked for as long as the pod lives. Its
//! container's id is not known; its end is that of its interfaces.

use std::collections::BTreeSet;
use std::net::IpAddr;

use sluice_contract::id::{Attachment, ContainerId, IfName, InvalidId, NetworkName, PodRef};
use sluice_contract::node::branch::STRICT_PREFIX;
use sluice_contract::node::veth::{POD_IFNAME, attachment};
use sluice_contract::node::{VETH_PREFIX, hex, host_veth, nic, veth_hash};
use sluice_contract::rpc::{GateInterface, PolicyAdd};
use sluice_daemon::log::ErrorChain;
use sluice_policy_core::cluster::{Pod, PodKey};

use super::{Daemon, Knowledge};
use crate::cluster::Cluster;
use crate::daemon::pods::interface;
use crate::datapath::{AttachError, Datapath, Veth};
use crate::registry::Binding;

/// The network of attachments that nobody has told of: no runtime's GC means them.
const NETWORK: &str = "sluice-adopted";

/// Pods that are adopted in one step. Each interface takes two grace periods of the kernel, and plugins wait meanwhile.
const AT_ONCE: usize = 4;

impl<C: Cluster, D: Datapath> Daemon<C, D> {
    /// Takes in pods that have an interface here and no gate, and interfaces without one of pods that were taken in.
    pub(super) async fn find_ungated(&mut self) {
        if self.knowledge != Knowledge::All || !self.links_told || self.aws_node {
            return;
        }
        let ungated: Vec<PodKey> = self.ungated().cloned().collect();
        if ungated.is_empty() && !(self.has_new_veths && self.bindings.values().any(is_adopted)) {
            return;
        }
        // One look for all of them. Without it nobody knows what belongs together: pods that may have several
        // interfaces wait.
        let seen = self.parts.gates.veths().await;
        self.has_new_veths = seen.is_none();
        let veths = seen.as_deref().unwrap_or_default();
        let gated: BTreeSet<u32> =
            self.bindings.values().flat_map(Binding::interfaces).map(|gate| gate.host_index).collect();
        let is_free = |veth: &&Veth| !gated.contains(&veth.index) && !self.ended.contains(&veth.index);
        let free: Vec<&Veth> = veths.iter().filter(is_free).collect();
        self.complete_adopted(veths, &free);

        let Ok(eth0) = IfName::new(POD_IFNAME) else { return };
        let mut begun = 0;
        for key in ungated {
            let Some(pod) = self.engine.cluster().pods.get(&key) else { continue };
            let of = PodRef {
                namespace: key.namespace.to_string(),
                name: key.name.to_string(),
                uid: (!pod.uid.is_empty()).then(|| pod.uid.to_string()),
            };
            let addresses: Vec<IpAddr> = pod.addresses.to_vec();
            let link = match self.named(&of, veths) {
                Some(named) => Some(named),
                None => self.routed_to(&addresses).await,
            };
            let Some((host_index, host)) = link.filter(|(index, _)| !self.ended.contains(index)) else { continue };
            if seen.is_none() && !self.is_alone(&of, &host) {
                continue;
            }
            let mut first = GateInterface { host, host_index, container: eth0.clone(), addresses };
            let (further, held) = self.further(&key, &of, &first, veths, &free);
            self.has_new_veths |= held;
            retain_own(&mut first, &further);
            let new = std::iter::once(&first).chain(&further).map(|gate| gate.host_index).collect();
            match adopted(of, first, further) {
                Ok(add) => self.begin_adoption(Binding { add, number: self.number + 1 }, new),
                Err(error) => tracing::error!(pod = %key, error = %error, "a pod cannot be adopted"),
            }
            begun += 1;
            if begun >= AT_ONCE {
                // The rest comes with the next step.
                self.adopt_soon();
                return;
            }
        }
    }

    /// The AWS VPC CNI's daemon has gone: what was there before is taken in.
    pub(super) fn aws_node_gone(&mut self) {
        self.aws_node = false;
        self.has_new_veths = true;
        self.tend_soon();
        self.adopt_soon();
        if !self.dirty {
            self.mark_ready();
        }
    }

    /// Adds to pods that were taken in the interfaces that they have beside, which may have come later.
    fn complete_adopted(&mut self, veths: &[Veth], free: &[&Veth]) {
        let (mut found, mut any_held) = (Vec::new(), false);
        for binding in self.bindings.values().filter(|binding| is_adopted(binding)) {
            let first = binding.interfaces().iter().find(|gate| nic::index(&gate.container) == 0);
            let Some(first) = first.filter(|_| !self.superseded.contains(&binding.add.attachment)) else { continue };
            let (further, held) = self.further(&binding.key(), &binding.add.pod, first, veths, free);
            any_held |= held;
            if !further.is_empty() {
                found.push((binding.clone(), further));
            }
        }
        self.has_new_veths |= any_held;
        for (mut binding, further) in found {
            tracing::info!(pod = %binding.key(), count = further.len(), "a pod has more interfaces than were known");
            let new = further.iter().map(|gate| gate.host_index).collect();
            let interfaces = &mut binding.add.interfaces;
            // What was called so before has gone.
            interfaces.retain(|gate| further.iter().all(|new| new.container != gate.container));
            for gate in interfaces.iter_mut() {
                retain_own(gate, &further);
            }
            interfaces.extend(further);
            self.begin_adoption(binding, new);
        }
    }

    /// The interface that is called as a pod's first one.
    fn named(&self, pod: &PodRef, veths: &[Veth]) -> Option<(u32, IfName)> {
        // With a branch ENI in strict mode it has another beginning, and the main table leads elsewhere.
        let named = [VETH_PREFIX, STRICT_PREFIX].into_iter().find_map(|prefix| {
            let name = host_veth(prefix, pod, 0).ok()?;
            let link = self.links.iter().find(|(_, link)| link.as_str() == name.as_str());
            link.map(|(index, _)| (*index, name))
        });
        named.filter(|(index, _)| {
            let marked = veths.iter().find(|veth| veth.index == *index).and_then(marked);
            !self.is_bound(*index) && marked.is_none_or(|attachment| nic::index(&attachment.ifname) == 0)
        })
    }

    /// Whether names alone say that a pod has one interface, and that it is no further one of another pod.
    fn is_alone(&self, pod: &PodRef, first: &IfName) -> bool {
        let hash = veth_hash(pod, 0);
        let Some(prefix) = first.as_str().strip_suffix(hash.as_str()) else { return true };
        // The second interface of `a` is called like the first of `a.1`.
        let is_numbered = pod.name.rsplit_once('.').is_some_and(|(_, number)| number.parse::<u8>().is_ok());
        let is_there = |name: IfName| self.links.values().any(|link| link == name.as_str());
        let has_further = |number| host_veth(prefix, pod, number).is_ok_and(is_there);
        !is_numbered && !(1..nic::INTERFACES_MAX).any(has_further)
    }

    /// The interfaces of a pod beside its first one that have no gate, of those that are `free`: called after it, and of one
    /// sandbox with it. None to which no address is routed yet, because its gate would know none, and none with an
    /// address that another pod claims: whether there are such is told beside.
    fn further(
        &self,
        key: &PodKey,
        pod: &PodRef,
        first: &GateInterface,
        veths: &[Veth],
        free: &[&Veth],
    ) -> (Vec<GateInterface>, bool) {
        let none = (Vec::new(), false);
        let hash = veth_hash(pod, 0);
        let Some(prefix) = first.host.as_str().strip_suffix(hash.as_str()) else { return none };
        let Some(known) = veths.iter().find(|veth| veth.index == first.host_index) else { return none };
        let is_other = |veth: &&&Veth| veth.index != known.index && !self.is_bound(veth.index);
        let of_sandbox = free.iter().filter(is_other).filter(|veth| are_of_one_pod(known, veth));
        let called = of_sandbox.filter_map(|veth| {
            let is_its = |number: &u8| host_veth(prefix, pod, *number).is_ok_and(|name| name == veth.name);
            let number = (1..nic::INTERFACES_MAX).find(is_its)?;
            Some((*veth, nic::ifname(&first.container, number)?))
        });
        let is_clear =
            |(veth, _): &(&Veth, IfName)| !veth.addresses.is_empty() && !self.is_anothers(key, &veth.addresses);
        let (its, held): (Vec<_>, Vec<_>) = called.partition(is_clear);
        let gate = |(veth, container): (&Veth, IfName)| GateInterface {
            host: veth.name.clone(),
            host_index: veth.index,
            container,
            addresses: veth.addresses.clone(),
        };
        (its.into_iter().map(gate).collect(), !held.is_empty())
    }

    /// The interface to which the host routes an address, where no other pod claims the address or has the interface.
    async fn routed_to(&mut self, addresses: &[IpAddr]) -> Option<(u32, IfName)> {
        for address in addresses {
            let pods = self.engine.cluster().pods.values();
            if pods.filter(|pod| claims(pod, address)).count() > 1 {
                continue;
            }
            let Some((index, name)) = self.parts.gates.behind(*address).await else { continue };
            if !self.is_bound(index) {
                return Some((index, name));
            }
        }
        None
    }

    /// Whether an interface is a sandbox's already.
    fn is_bound(&self, index: u32) -> bool {
        self.bindings.values().any(|binding| binding.interfaces().iter().any(|gate| gate.host_index == index))
    }

    /// Whether another pod claims one of these addresses.
    fn is_anothers(&self, pod: &PodKey, addresses: &[IpAddr]) -> bool {
        let mut others = self.engine.cluster().pods.iter().filter(|(key, _)| *key != pod);
        others.any(|(_, other)| addresses.iter().any(|address| claims(other, address)))
    }

    /// Records a pod whose interfaces `new` are to have gates.
    fn begin_adoption(&mut self, binding: Binding, new: BTreeSet<u32>) {
        if let Err(error) = self.parts.registry.write(&binding) {
            tracing::error!(error = %ErrorChain(&error), "an endpoint could not be recorded");
            self.parts.metrics.error("adopt");
            self.has_new_veths = true;
            return;
        }
        self.number = self.number.max(binding.number);
        self.adopting.entry(binding.add.attachment.clone()).or_default().extend(new);
        self.record(binding);
    }

    /// Puts gates on them, now that what they need is in the maps.
    pub(super) async fn finish_adoptions(&mut self) {
        let mut gone = Vec::new();
        for (attachment, new) in std::mem::take(&mut self.adopting) {
            let Some(binding) = self.bindings.get(&attachment).cloned() else { continue };
            let key = binding.key();
            let mut is_whole = true;
            for gate in binding.interfaces() {
                let interface = interface(gate);
                is_whole &= self.bind(&key, &interface).await;
                if !new.contains(&interface.index) {
                    continue;
                }
                self.parts.gates.seed(&interface).await;
                match self.parts.gates.adopt(&interface).await {
                    Ok(()) => {
                        // Those that have begun since.
                        self.parts.gates.seed(&interface).await;
                        self.seen_whole(interface.index);
                    }
                    // The link watch may have said so before anybody here knew of it.
                    Err(AttachError::Gone { .. }) => {
                        gone.push(interface.index);
                        is_whole = false;
                    }
                    Err(error) => {
                        let error = ErrorChain(&error);
                        tracing::error!(pod = %key, %error, "a pod that was there before has no gate yet; trying on");
                        self.parts.metrics.error("adopt");
                        // The next check of all gates finds it missing.
                        self.refused.insert(interface.index);
                        is_whole = false;
                    }
                }
            }
            if is_whole {
                tracing::info!(pod = %key, "a pod that was there before has a gate now");
            }
            // Cilium's links at its interfaces keep packets from a gate by filters, and judge beside one by links, until then.
            self.tend_soon();
        }
        for index in gone {
            self.link_gone(index);
        }
    }

    /// Pods of this node that have an address and no gate, or an interface at which no gate could be put or bound.
    pub(super) fn without_gate(&self) -> BTreeSet<PodKey> {
        let lacks = |gate: &GateInterface| {
            self.refused.contains(&gate.host_index) || self.unbindable.contains(&gate.host_index)
        };
        let bound = self.bindings.values().filter(|binding| binding.interfaces().iter().any(lacks));
        bound.map(Binding::key).chain(self.ungated().cloned()).collect()
    }

    /// Pods of this node that have an address, and of which no sandbox is known.
    fn ungated(&self) -> impl Iterator<Item = &PodKey> {
        let state = self.engine.cluster();
        self.engine.image().endpoints.keys().filter(|key| {
            !self.told.contains_key(*key) && state.pods.get(key).is_some_and(|pod| !pod.addresses.is_empty())
        })
    }
}

/// Whether a pod has an address. One that has ended holds none, whatever its status says, and its host's are no pod's.
fn claims(pod: &Pod, address: &IpAddr) -> bool {
    !pod.finished && !pod.host_network && pod.addresses.contains(address)
}

/// Whether a sandbox is that of a pod that was there before.
fn is_adopted(binding: &Binding) -> bool {
    binding.add.attachment.network.as_str() == NETWORK
}

/// The attachment whose mark a veth bears.
fn marked(veth: &Veth) -> Option<Attachment> {
    veth.alias.as_deref().and_then(attachment)
}

/// Whether the kernel proves that two veths lead to one sandbox: their marks name it, or, where the VPC CNI has made them, their
/// other ends are in one namespace.
fn are_of_one_pod(one: &Veth, other: &Veth) -> bool {
    match (marked(one), marked(other)) {
        (Some(one), Some(other)) => nic::first(&one) == nic::first(&other),
        _ => one.peer_netns.is_some() && one.peer_netns == other.peer_netns,
    }
}

/// Takes from an interface the addresses that are of others of its pod: the cluster knows a pod's addresses, and not which is where.
fn retain_own(gate: &mut GateInterface, others: &[GateInterface]) {
    gate.addresses.retain(|address| others.iter().all(|other| !other.addresses.contains(address)));
}

/// What a plugin would have said.
fn adopted(pod: PodRef, first: GateInterface, further: Vec<GateInterface>) -> Result<PolicyAdd, InvalidId> {
    // A container of its own for every interface that ever was.
    let uid = hex(pod.uid.as_deref().unwrap_or_default().as_bytes());
    let container: String = format!("adopted-{}-{uid}", first.host_index).chars().take(128).collect();
    Ok(PolicyAdd {
        attachment: Attachment {
            container: ContainerId::new(container)?,
            ifname: first.container.clone(),
            network: NetworkName::new(NETWORK)?,
        },
        pod,
        netns: String::new(),
        interfaces: std::iter::once(first).chain(further).collect(),
    })
}
