//! Who an address is. What was found out is kept, and shared by all records of the address, until the cluster changes.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_policy_core::cluster::{Cluster, Labels, ObjectKey, Pod, PodKey};
use sluice_policy_core::compile::engine::Engine;
use sluice_policy_core::model::Text;
use tokio::time::Instant;

/// Addresses that are kept.
const MOST: usize = 16_384;

/// Names that are told of an address.
const NAMES: usize = 8;

/// How often, at most, it is looked which addresses names and Services have: all of them are read then.
const INDEX_EVERY: Duration = Duration::from_secs(1);

/// Cilium's numbers of what is no pod; those of Sluice's identities begin above them.
const IDENTITY_HOST: u32 = 1;
const IDENTITY_WORLD: u32 = 2;
const IDENTITY_REMOTE_NODE: u32 = 6;

/// One end of a flow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Party {
    /// The pod.
    pub(crate) pod: Option<PodKey>,
    /// The number that gates have for it, if it is of this node.
    pub(crate) endpoint: u32,
    /// The identity that gates take its address for; Cilium's number for what has no identity of its own.
    pub(crate) identity: u32,
    /// Labels, as Hubble writes them.
    pub(crate) labels: Vec<String>,
    /// What made the pod: its kind and its name.
    pub(crate) workload: Option<(&'static str, String)>,
    /// Names that were seen to resolve to its address.
    pub(crate) names: Vec<String>,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceName {
    /// Namespace.
    pub(crate) namespace: Text,
    /// Name.
    pub(crate) name: Text,
}

/// A pod of this node.
#[derive(Debug, Clone)]
pub(crate) struct Gated {
    /// Which.
    pub(crate) key: PodKey,
    /// Name of the interface.
    pub(crate) interface: Arc<str>,
}

/// The pods of this node, by the numbers that gates have for them.
pub(crate) type Pods<'p> = BTreeMap<u32, &'p PodKey>;

/// Who is known.
#[derive(Debug, Default)]
pub(crate) struct Parties {
    known: HashMap<IpAddr, Arc<Party>>,
    names: HashMap<IpAddr, Vec<String>>,
    services: HashMap<IpAddr, Arc<ServiceName>>,
    /// Whether names and Services may be others than these.
    changed: bool,
    indexed: Option<Instant>,
}

impl Parties {
    /// The cluster is another than before.
    pub(crate) fn forget(&mut self) {
        self.known.clear();
        self.changed = true;
    }

    /// Brings names and Services up to date, if it is time. To be called before a batch.
    pub(crate) fn refresh(&mut self, cluster: &Cluster, now: Instant) {
        let due = self.indexed.is_none_or(|at| now >= at + INDEX_EVERY);
        if !due || !(self.changed || self.indexed.is_none()) {
            return;
        }
        self.changed = false;
        self.indexed = Some(now);
        self.names.clear();
        self.services.clear();
        self.known.clear();
        for (name, addresses) in &cluster.names {
            for address in addresses.keys() {
                let names = self.names.entry(*address).or_default();
                if names.len() < NAMES {
                    names.push(name.to_string());
                }
            }
        }
        for (ObjectKey { namespace, name }, service) in cluster.services.iter() {
            let service_name = Arc::new(ServiceName { namespace: Text::clone(namespace), name: Text::clone(name) });
            for address in &service.addresses {
                self.services.insert(address, Arc::clone(&service_name));
            }
        }
    }

    /// The Service that has an address.
    pub(crate) fn service(&self, address: IpAddr) -> Option<Arc<ServiceName>> {
        self.services.get(&address).cloned()
    }

    /// Who has an address.
    pub(crate) fn at(&mut self, address: IpAddr, engine: &Engine, own_node: &str, pods: &Pods<'_>) -> Arc<Party> {
        if let Some(party) = self.known.get(&address) {
            return Arc::clone(party);
        }
        let names = self.names.get(&address).cloned().unwrap_or_default();
        let party = Arc::new(match engine.pod_at(address) {
            Some(pod) => Self::pod(pod, engine, address, pods),
            None => {
                let mut nodes = engine.nodes_at(address).peekable();
                let (label, identity) = if nodes.peek().is_none() {
                    ("world", engine.image().identity(address).0.max(IDENTITY_WORLD))
                } else if nodes.any(|node| &**node == own_node) {
                    ("host", IDENTITY_HOST)
                } else {
                    ("remote-node", IDENTITY_REMOTE_NODE)
                };
                Party { identity, labels: vec![format!("reserved:{label}")], names, ..Party::default() }
            }
        });
        if self.known.len() >= MOST {
            // Whoever is still talking is found again.
            self.known.clear();
        }
        self.known.insert(address, Arc::clone(&party));
        party
    }

    /// The pod behind a gate, whatever address it sends from.
    pub(crate) fn gated(&mut self, key: &PodKey, address: IpAddr, engine: &Engine, pods: &Pods<'_>) -> Arc<Party> {
        if engine.pod_at(address).is_some_and(|pod| pod.key == *key) {
            // It is a pod's, so it does not matter which node is the own one.
            return self.at(address, engine, "", pods);
        }
        match engine.cluster().pods.get(key) {
            Some(pod) => Arc::new(Self::pod(pod, engine, address, pods)),
            None => Arc::new(Party { pod: Some(key.clone()), endpoint: number(key, pods), ..Party::default() }),
        }
    }

    fn pod(pod: &Pod, engine: &Engine, address: IpAddr, pods: &Pods<'_>) -> Party {
        let namespace = &pod.key.namespace;
        let mut labels: Vec<String> = pod.labels.iter().map(|(key, value)| format!("k8s:{key}={value}")).collect();
        if let Some(namespace) = engine.cluster().namespaces.get(&**namespace) {
            let of_namespace = |(key, value)| format!("k8s:io.cilium.k8s.namespace.labels.{key}={value}");
            labels.extend(namespace.labels.iter().map(of_namespace));
        }
        labels.push(format!("k8s:io.cilium.k8s.policy.serviceaccount={}", pod.template.service_account));
        labels.push(format!("k8s:io.kubernetes.pod.namespace={namespace}"));
        labels.sort_unstable();
        Party {
            endpoint: number(&pod.key, pods),
            identity: engine.image().identity(address).0,
            labels,
            workload: workload(&pod.key.name, &pod.labels),
            pod: Some(pod.key.clone()),
            names: Vec::new(),
        }
    }
}

fn number(key: &PodKey, pods: &Pods<'_>) -> u32 {
    pods.iter().find(|(_, pod)| **pod == key).map_or(0, |(number, _)| *number)
}

/// What made a pod, by the labels that its controllers leave.
fn workload(pod: &str, labels: &Labels) -> Option<(&'static str, String)> {
    if let Some(job) = labels.get("batch.kubernetes.io/job-name").or_else(|| labels.get("job-name")) {
        return Some(("Job", job.to_owned()));
    }
    let name = pod.rsplit_once('-').map(|(name, _)| name)?;
    if let Some(hash) = labels.get("pod-template-hash") {
        return Some(match name.strip_suffix(hash).and_then(|name| name.strip_suffix('-')) {
            Some(deployment) => ("Deployment", deployment.to_owned()),
            None => ("ReplicaSet", name.to_owned()),
        });
    }
    if labels.get("statefulset.kubernetes.io/pod-name").is_some() {
        return Some(("StatefulSet", name.to_owned()));
    }
    labels.get("controller-revision-hash").map(|_| ("DaemonSet", name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_known_by_what_made_it() {
        let labels =
            |pairs: &[(&str, &str)]| Labels::new(pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())));
        for (pod, pairs, expected) in [
            ("web-7d4b9c-x2x1z", &[("pod-template-hash", "7d4b9c")][..], Some(("Deployment", "web"))),
            ("web-x2x1z", &[("pod-template-hash", "7d4b9c")], Some(("ReplicaSet", "web"))),
            ("db-0", &[("statefulset.kubernetes.io/pod-name", "db-0")], Some(("StatefulSet", "db"))),
            ("proxy-x2x1z", &[("controller-revision-hash", "6")], Some(("DaemonSet", "proxy"))),
            ("once-x2x1z", &[("job-name", "once")], Some(("Job", "once"))),
            ("alone", &[], None),
        ] {
            let found = workload(pod, &labels(pairs));
            assert_eq!(found.as_ref().map(|(kind, name)| (*kind, &**name)), expected, "{pod}");
        }
    }
}
