//! Policies as their authors meant them: plain data, one type a dialect.
//!
//! What [`crate::parse`] could not read is not left out: a rule that cannot be used stands here as [`Unusable`], because
//! an allow that cannot be used grants nothing, and a deny or pass that cannot be used denies all of its direction.

pub mod cilium;
pub mod cluster_network_policy;
pub mod network_policy;
pub mod port;
pub mod selector;

use std::fmt;
use std::sync::Arc;

pub use cilium::CiliumPolicy;
pub use cluster_network_policy::ClusterNetworkPolicy;
pub use network_policy::NetworkPolicy;

/// Text that many objects share: names, label keys and values.
pub type Text = Arc<str>;

/// The API kind of a policy. The order is the order in which rules of equal standing are named as the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// `policy.networking.k8s.io/v1alpha1 AdminNetworkPolicy`.
    AdminNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy`.
    ClusterNetworkPolicy,
    /// `networking.k8s.aws/v1alpha1 ClusterNetworkPolicy`.
    AwsClusterNetworkPolicy,
    /// `networking.k8s.io/v1 NetworkPolicy`.
    NetworkPolicy,
    /// `networking.k8s.aws/v1alpha1 ApplicationNetworkPolicy`.
    AwsApplicationNetworkPolicy,
    /// `cilium.io/v2 CiliumNetworkPolicy`.
    CiliumNetworkPolicy,
    /// `cilium.io/v2 CiliumClusterwideNetworkPolicy`.
    CiliumClusterwideNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha1 BaselineAdminNetworkPolicy`.
    BaselineAdminNetworkPolicy,
}

impl PolicyKind {
    /// The kind's name in its API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AdminNetworkPolicy => "AdminNetworkPolicy",
            Self::ClusterNetworkPolicy | Self::AwsClusterNetworkPolicy => "ClusterNetworkPolicy",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::AwsApplicationNetworkPolicy => "ApplicationNetworkPolicy",
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
        }
    }
}

/// Which policy: kind, namespace and name are unique in a cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyRef {
    /// API kind.
    pub kind: PolicyKind,
    /// Namespace; none for a cluster-scoped kind.
    pub namespace: Option<Text>,
    /// Name.
    pub name: Text,
}

impl fmt::Display for PolicyRef {
    /// `NetworkPolicy shop/db`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind.as_str(), self.name),
            None => write!(f, "{} {}", self.kind.as_str(), self.name),
        }
    }
}

/// A policy of any dialect.
#[derive(Debug, Clone, PartialEq)]
pub enum Policy {
    /// NetworkPolicy, and AWS's ApplicationNetworkPolicy.
    Network(NetworkPolicy),
    /// ClusterNetworkPolicy, and what is imported as one: AdminNetworkPolicy, BaselineAdminNetworkPolicy, AWS's.
    Cluster(ClusterNetworkPolicy),
    /// CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy.
    Cilium(CiliumPolicy),
}

impl Policy {
    /// Which policy this is.
    #[must_use]
    pub fn id(&self) -> &PolicyRef {
        match self {
            Self::Network(policy) => &policy.id,
            Self::Cluster(policy) => &policy.id,
            Self::Cilium(policy) => &policy.id,
        }
    }

    /// Whether the policy is a dry run: its verdicts are recorded, and traffic goes as if it were not there.
    #[must_use]
    pub fn audit(&self) -> bool {
        match self {
            Self::Network(policy) => policy.audit,
            Self::Cluster(policy) => policy.audit,
            Self::Cilium(policy) => policy.audit,
        }
    }
}

/// Annotation on a policy or a pod that makes it a dry run, with the value `"true"`.
pub const AUDIT_ANNOTATION: &str = "sluice.dev/audit";

/// Why a rule cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// Where in the object, e.g. `spec.ingress[0].from[1].ipBlock.cidr`.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A part of a policy that was read, or the reason why it cannot be used.
pub type Usable<T> = Result<T, Unusable>;
