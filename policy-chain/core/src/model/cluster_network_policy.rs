//! `policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy`, and what is imported as one.

use ipnet::IpNet;

use super::port::Ports;
use super::selector::LabelSelector;
use super::{PolicyRef, Text, Usable};
use crate::l7::dns::NamePattern;

/// Before or after the namespaces' own policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClusterTier {
    /// Before.
    Admin,
    /// After.
    Baseline,
}

/// The priority of a BaselineAdminNetworkPolicy among the policies of tier Baseline: after all of them (which have 0 to 1000).
pub const BANP_PRIORITY: u16 = 1001;

/// A ClusterNetworkPolicy.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterNetworkPolicy {
    /// Which policy.
    pub id: PolicyRef,
    /// Dry run.
    pub audit: bool,
    /// Tier.
    pub tier: ClusterTier,
    /// The lower, the earlier.
    pub priority: u16,
    /// Whom it governs; never a pod with `hostNetwork`. None: a kind of subject that is not known, which selects nobody.
    pub subject: Option<ClusterSubject>,
    /// Rules, in order; the first that matches decides.
    pub ingress: Vec<ClusterRule>,
    /// The same for egress.
    pub egress: Vec<ClusterRule>,
}

/// The subject of a policy, or a peer that is made of pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterSubject {
    /// All pods of these namespaces.
    Namespaces(LabelSelector),
    /// These pods of these namespaces.
    Pods {
        /// Namespaces.
        namespaces: LabelSelector,
        /// Pods.
        pods: LabelSelector,
    },
}

/// What a rule does with what it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Drop.
    Deny,
    /// Leave it to what comes after this tier.
    Pass,
    /// Let pass, and ask no further rule of this direction.
    Accept,
}

/// One rule.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterRule {
    /// The author's name for it.
    pub name: Option<Text>,
    /// What it does. An action that is not known stands here as [`Action::Deny`] with an unusable `matches`.
    pub action: Action,
    /// What it matches. If it cannot be used: nothing for [`Action::Accept`], everything for a [`Action::Deny`] or
    /// [`Action::Pass`], which both deny then.
    pub matches: Usable<ClusterMatch>,
}

/// What a rule matches: one of the peers, on one of the ports.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterMatch {
    /// Peers; one at the least.
    pub peers: Vec<ClusterPeer>,
    /// Ports.
    pub ports: Ports,
}

/// One peer.
#[derive(Debug, Clone, PartialEq)]
pub enum ClusterPeer {
    /// Pods, but those with `hostNetwork`.
    Pods(ClusterSubject),
    /// Addresses, of pods too (egress).
    Networks(Vec<IpNet>),
    /// All addresses of these nodes (egress).
    Nodes(LabelSelector),
    /// Addresses that one of these names has resolved to (egress, `Accept` only).
    Names(Vec<NamePattern>),
}
