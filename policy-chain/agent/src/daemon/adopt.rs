//! Pods that ran before policyd was there: they get gates too, without a break for the flows that they have.
//!
//! Such a pod has an address for the cluster and an interface on the host, and nobody has asked for its policy. Its interface is
//! that of the name that the VPC CNI and sluice-eni give it, else that to which the host has a route of the pod's address alone, as
//! `ptp` makes it. Of its further interfaces, on other network cards, the cluster knows nothing: they are told by their names, and
//! their addresses by the host's routes. Its container's id is not known; its end is that of its interfaces.

use std::net::IpAddr;

use sluice_contract::id::{Attachment, ContainerId, IfName, InvalidId, NetworkName, PodRef};
use sluice_contract::node::branch::STRICT_PREFIX;
use sluice_contract::node::veth::POD_IFNAME;
use sluice_contract::node::{VETH_PREFIX, hex, host_veth, nic};
use sluice_contract::rpc::{GateInterface, PolicyAdd};
use sluice_daemon::log::ErrorChain;
use sluice_policy_core::cluster::PodKey;

use super::{Daemon, Knowledge};
use crate::cluster::Cluster;
use crate::daemon::pods::interface;
use crate::datapath::Datapath;
use crate::registry::Binding;

/// The network of attachments that nobody has told of: no runtime's GC means them.
const NETWORK: &str = "sluice-adopted";

/// Pods that are adopted in one step.
const AT_ONCE: usize = 16;

impl<C: Cluster, D: Datapath> Daemon<C, D> {
    /// Takes in pods that have an interface here and no gate.
    pub(super) async fn find_ungated(&mut self) {
        if self.knowledge != Knowledge::All || self.links.is_empty() {
            return;
        }
        let ungated: Vec<PodKey> = self.ungated().cloned().collect();
        let Ok(eth0) = IfName::new(POD_IFNAME) else { return };
        let mut begun = 0;
        for key in ungated {
            let Some(pod) = self.engine.cluster().pods.get(&key) else { continue };
            let of = PodRef {
                namespace: key.namespace.to_string(),
                name: key.name.to_string(),
                uid: (!pod.uid.is_empty()).then(|| pod.uid.to_string()),
            };
            let mut addresses: Vec<IpAddr> = pod.addresses.to_vec();
            // With a branch ENI in strict mode it has another beginning, and the main table leads elsewhere.
            let named = [VETH_PREFIX, STRICT_PREFIX].into_iter().find_map(|prefix| {
                let name = host_veth(prefix, &of, 0).ok()?;
                let link = self.links.iter().find(|(_, link)| link.as_str() == name.as_str());
                link.map(|(index, _)| (*index, name))
            });
            let link = match named {
                Some(named) => Some(named),
                None => self.routed_to(&addresses).await,
            };
            let Some((index, name)) = link.filter(|(index, _)| !self.ended.contains(index)) else { continue };
            let further = self.further(&of, &eth0).await;
            addresses.retain(|address| !further.iter().any(|gate| gate.addresses.contains(address)));
            let first = GateInterface { host: name, host_index: index, container: eth0.clone(), addresses };
            match adopted(of, first, further) {
                Ok(add) => self.begin_adoption(add),
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

    /// The interfaces of a pod after its first one.
    async fn further(&mut self, pod: &PodRef, first: &IfName) -> Vec<GateInterface> {
        let mut found = Vec::new();
        for number in 1..nic::INTERFACES_MAX {
            let named = host_veth(VETH_PREFIX, pod, number).ok().and_then(|host| {
                let (index, _) = self.links.iter().find(|(_, link)| link.as_str() == host.as_str())?;
                Some((*index, host))
            });
            // They are counted without gaps.
            let Some((host_index, host)) = named.filter(|(index, _)| !self.ended.contains(index)) else { break };
            let Some(container) = nic::ifname(first, number) else { break };
            let addresses = self.parts.gates.routed_by(&host).await;
            found.push(GateInterface { host, host_index, container, addresses });
        }
        found
    }

    /// The interface to which the host routes an address, where no other pod claims the address or has the interface.
    async fn routed_to(&mut self, addresses: &[IpAddr]) -> Option<(u32, IfName)> {
        for address in addresses {
            let pods = self.engine.cluster().pods.values();
            if pods.filter(|pod| pod.addresses.contains(address)).count() > 1 {
                continue;
            }
            let Some((index, name)) = self.parts.gates.behind(*address).await else { continue };
            let taken = |binding: &Binding| binding.interfaces().iter().any(|gate| gate.host_index == index);
            if !self.bindings.values().any(taken) {
                return Some((index, name));
            }
        }
        None
    }

    fn begin_adoption(&mut self, add: PolicyAdd) {
        let binding = Binding { add, number: self.number + 1 };
        if let Err(error) = self.parts.registry.write(&binding) {
            tracing::error!(error = %ErrorChain(&error), "an endpoint could not be recorded");
            self.parts.metrics.error("adopt");
            return;
        }
        self.number += 1;
        self.adopting.insert(binding.add.attachment.clone());
        self.record(binding);
    }

    /// Puts gates on them, now that what they need is in the maps.
    pub(super) async fn finish_adoptions(&mut self) {
        for attachment in std::mem::take(&mut self.adopting) {
            let Some(binding) = self.bindings.get(&attachment).cloned() else { continue };
            let key = binding.key();
            let mut done = Ok(());
            for gate in binding.interfaces() {
                let interface = interface(gate);
                done = match self.parts.gates.bind(&key, &interface).await {
                    Ok(()) => {
                        self.parts.gates.seed(&interface).await;
                        self.parts.gates.attach(&interface).await.map_err(|error| ErrorChain(&error).to_string())
                    }
                    Err(error) => Err(ErrorChain(&error).to_string()),
                };
                if done.is_err() {
                    break;
                }
            }
            match done {
                Ok(()) => {
                    tracing::info!(pod = %key, "a pod that was there before has a gate now");
                    // Links of Cilium's at its interface keep packets from the gate until then.
                    self.tend_soon();
                }
                Err(error) => {
                    tracing::error!(pod = %key, error, "a pod that was there before could not be given a gate");
                    self.parts.metrics.error("adopt");
                    self.release(&attachment);
                }
            }
        }
    }

    /// Pods of this node that have an address and no gate.
    pub(super) fn ungated(&self) -> impl Iterator<Item = &PodKey> {
        let state = self.engine.cluster();
        self.engine.image().endpoints.keys().filter(|key| {
            !self.told.contains_key(*key) && state.pods.get(key).is_some_and(|pod| !pod.addresses.is_empty())
        })
    }
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
