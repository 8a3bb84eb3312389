//! A service proxy as kube-proxy is one: ClusterIPs, external IPs, node ports and session affinity, in nftables, iptables-nft
//! or iptables-legacy. What a node's service proxy does to packets decides what gates see of them.
//!
//! [`plan()`] is pure: which frontends there are, and who is behind each. [`nft::text`] and [`iptables::text`] write the rules
//! out, with kube-proxy's names, hooks, priorities and mark; [`Proxy`] hands the text to the kernel in one transaction.
//!
//! With `externalTrafficPolicy: Local` what comes from outside goes to the node's own backends, with its source. As on EKS, where
//! kube-proxy is not told which addresses are pods', a pod that dials a node port counts as somebody outside.
//!
//! Left out: topology, health checks, load balancer source ranges, what kube-proxy's iptables mode drops as invalid, and the removal of
//! conntrack entries of UDP flows whose backend is gone. kube-proxy itself is not run (docs/adr/0016).

pub mod iptables;
pub mod nft;
mod program;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use sluice_policy_core::cluster::{Cluster, ObjectKey, Service, ServicePort};
use sluice_policy_core::flow::Protocol;
use sluice_policy_core::vector::schema::Family;

pub(crate) use program::nft as nftables;
pub use program::{Backend, Proxy, ProxyError};

/// The mark by which kube-proxy remembers that a packet is to be masqueraded.
const MASQUERADE_MARK: u32 = 0x4000;

/// A Service's port in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Front {
    /// `namespace/name/protocol/port name`, as kube-proxy calls it.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// ClusterIPs with the port.
    pub cluster: Vec<SocketAddr>,
    /// External and load-balancer IPs with the port.
    pub external: Vec<SocketAddr>,
    /// The node port.
    pub node_port: Option<u16>,
    /// How long a client stays with a backend (`sessionAffinity: ClientIP`).
    pub affinity: Option<Duration>,
    /// Ready backends, in order.
    pub backends: Vec<SocketAddr>,
    /// Those on this node, which alone serve what comes from outside (`externalTrafficPolicy: Local`).
    pub local: Option<Vec<SocketAddr>>,
}

impl Front {
    /// A few characters that tell this front, and one of its backends, from others.
    fn hash(&self, backend: Option<SocketAddr>) -> String {
        let text = format!("{}{}", self.name, backend.map_or_else(String::new, |backend| backend.to_string()));
        let digest = Sha256::digest(text.as_bytes());
        sluice_contract::node::hex(&digest).chars().take(16).collect::<String>().to_ascii_uppercase()
    }

    /// As rules spell the protocol; none for one that Services do not have.
    fn protocol(&self) -> Option<&'static str> {
        match self.protocol {
            Protocol::TCP => Some("tcp"),
            Protocol::UDP => Some("udp"),
            Protocol::SCTP => Some("sctp"),
            _ => None,
        }
    }
}

/// What a cluster's Services do not tell of themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extra {
    /// Which of a Service's addresses are external IPs or a load balancer's; the others are ClusterIPs.
    pub external: BTreeSet<IpAddr>,
    /// Services with `sessionAffinity: ClientIP`, and for how long.
    pub affinity: BTreeMap<ObjectKey, Duration>,
    /// Services with `externalTrafficPolicy: Local`.
    pub local: BTreeSet<ObjectKey>,
    /// Addresses of the pods on this node.
    pub here: BTreeSet<IpAddr>,
}

/// The fronts of a family, in order of their names.
#[must_use]
pub fn plan(cluster: &Cluster, family: Family, extra: &Extra) -> Vec<Front> {
    let mut fronts: Vec<Front> = cluster
        .services
        .values()
        .flat_map(|service| service.ports.iter().filter_map(|port| front(cluster, family, extra, service, port)))
        .collect();
    fronts.sort_by(|a, b| a.name.cmp(&b.name));
    fronts
}

fn front(cluster: &Cluster, family: Family, extra: &Extra, service: &Service, port: &ServicePort) -> Option<Front> {
    let mine = service.addresses.iter().filter(|address| Family::of(*address) == family);
    let (external, inner): (Vec<IpAddr>, Vec<IpAddr>) = mine.partition(|address| extra.external.contains(address));
    if external.is_empty() && inner.is_empty() {
        return None;
    }
    let mut backends = BTreeSet::new();
    let slices = cluster.slices.values().filter(|slice| {
        slice.key.namespace == service.key.namespace && slice.service.as_ref() == Some(&service.key.name)
    });
    for slice in slices {
        let target = slice.ports.iter().find(|target| target.name == port.name && target.protocol == port.protocol);
        let Some(target) = target else { continue };
        let of = slice.ready.iter().filter(|address| Family::of(*address) == family);
        backends.extend(of.map(|address| SocketAddr::new(address, target.port)));
    }
    let own = || backends.iter().filter(|at: &&SocketAddr| extra.here.contains(&at.ip())).copied().collect();
    let local = extra.local.contains(&service.key).then(own);
    let with_port = |addresses: Vec<IpAddr>| addresses.into_iter().map(|at| SocketAddr::new(at, port.port)).collect();
    let protocol = port.protocol.to_string().to_ascii_lowercase();
    Some(Front {
        name: format!("{}/{}/{protocol}/{}", service.key.namespace, service.key.name, port.name),
        protocol: port.protocol,
        cluster: with_port(inner),
        external: with_port(external),
        node_port: port.node_port,
        affinity: extra.affinity.get(&service.key).copied(),
        backends: backends.into_iter().collect(),
        local,
    })
}

#[cfg(test)]
mod tests;
