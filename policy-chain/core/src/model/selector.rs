//! Label selectors.

use super::Text;

/// How a requirement compares (Kubernetes API, `LabelSelectorRequirement`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// The label is there, with one of the values.
    In,
    /// The label is not there, or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

/// One condition of a selector.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// Label key.
    pub key: Text,
    /// Comparison.
    pub operator: Operator,
    /// Values, sorted, without doubles; empty for [`Operator::Exists`] and [`Operator::DoesNotExist`].
    pub values: Vec<Text>,
}

/// A Kubernetes label selector: all requirements hold. The empty one selects everything.
/// `matchLabels` stands here as [`Operator::In`] with one value. Requirements are sorted, without doubles.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelSelector {
    /// The conditions.
    pub requirements: Vec<Requirement>,
}

/// Where a label of Cilium comes from (Cilium, `pkg/labels`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LabelSource {
    /// `any:` or no source: a label of whatever source.
    Any,
    /// `k8s:`: the pod's labels, and those that the system adds (namespace, namespace labels, service account, cluster).
    Kubernetes,
    /// `reserved:`: what an address is, e.g. `reserved:host`.
    Reserved,
    /// Another source, which no endpoint here has labels of: `container:`, `unspec:` ...
    Other(Text),
}

/// One condition of a Cilium selector.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CiliumRequirement {
    /// Label source.
    pub source: LabelSource,
    /// The condition on the label.
    pub requirement: Requirement,
}

/// A Cilium endpoint selector, with what the policy's namespace adds to it already added
/// (the namespace of a CiliumNetworkPolicy; "has a namespace" for a peer of a CiliumClusterwideNetworkPolicy).
/// Requirements are sorted, without doubles.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CiliumSelector {
    /// The conditions; all hold.
    pub requirements: Vec<CiliumRequirement>,
}
