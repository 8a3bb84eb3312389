//! `networking.k8s.io/v1 NetworkPolicy`, and AWS's ApplicationNetworkPolicy, which adds domain names to it.

use ipnet::IpNet;

use super::port::Ports;
use super::selector::LabelSelector;
use super::{PolicyRef, Usable};
use crate::l7::dns::NamePattern;

/// A NetworkPolicy.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkPolicy {
    /// Which policy.
    pub id: PolicyRef,
    /// Dry run.
    pub audit: bool,
    /// The pods of the policy's namespace that it selects.
    pub pods: LabelSelector,
    /// The ingress rules, if `policyTypes` (or its default) has `Ingress`: then the selected pods are isolated for ingress.
    pub ingress: Option<Vec<Usable<NetworkRule>>>,
    /// The same for egress.
    pub egress: Option<Vec<Usable<NetworkRule>>>,
}

/// What a rule allows: these peers on these ports.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkRule {
    /// Peers.
    pub peers: NetworkPeers,
    /// Ports.
    pub ports: Ports,
}

/// The `from` or `to` of a rule.
#[derive(Debug, Clone, PartialEq)]
pub enum NetworkPeers {
    /// The list is missing or empty: every source or destination, pods or not.
    All,
    /// One of these. A peer that cannot be used grants nothing; the others of its rule do.
    Of(Vec<Usable<NetworkPeer>>),
}

/// One peer.
#[derive(Debug, Clone, PartialEq)]
pub enum NetworkPeer {
    /// Pods. Without a namespace selector: of the policy's own namespace.
    Pods {
        /// `namespaceSelector`.
        namespaces: Option<LabelSelector>,
        /// `podSelector`; missing = empty = all pods.
        pods: LabelSelector,
    },
    /// Addresses, of pods too (DESIGN 6.2).
    IpBlock {
        /// The block, with the host bits cleared.
        cidr: IpNet,
        /// What is left out of it, host bits cleared.
        except: Vec<IpNet>,
    },
    /// `domainNames` of AWS's ApplicationNetworkPolicy (egress).
    Names(Vec<NamePattern>),
}
