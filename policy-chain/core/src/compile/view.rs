//! The labels of an address, as selectors see them.

use crate::cluster::Labels;
use crate::model::selector::{CiliumSelector, LabelSelector, LabelSource, Operator, Requirement};

/// Cilium's label for a pod's namespace. A user's pod label of that name is not seen (CVE-2023-39347).
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";

/// What begins the labels that only the system may set.
const SYSTEM: &str = "io.cilium.k8s.";

/// What begins the labels that a pod has from its namespace.
const OF_NAMESPACE: &str = "io.cilium.k8s.namespace.labels.";

/// The label for a pod's service account.
const SERVICE_ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";

/// The label for the cluster; there is one, with Cilium's default name.
const CLUSTER: &str = "io.cilium.k8s.policy.cluster";

/// What policies see of a pod.
#[derive(Debug, Clone, Copy)]
pub struct PodView<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// The namespace's labels, its name among them.
    pub namespace_labels: &'a Labels,
    /// The pod's labels.
    pub labels: &'a Labels,
    /// Its service account.
    pub service_account: &'a str,
}

impl<'a> PodView<'a> {
    /// The value of a label of source `k8s`.
    fn label(&self, key: &str) -> Option<&'a str> {
        if key == POD_NAMESPACE {
            return Some(self.namespace);
        }
        if !key.starts_with(SYSTEM) {
            return self.labels.get(key);
        }
        if let Some(key) = key.strip_prefix(OF_NAMESPACE) {
            return self.namespace_labels.get(key);
        }
        match key {
            SERVICE_ACCOUNT => Some(self.service_account),
            CLUSTER => Some("default"),
            _ => None,
        }
    }
}

/// Cilium's view of an address: what `fromEndpoints`, `toEndpoints` and `endpointSelector` select by.
#[derive(Debug, Clone, Copy)]
pub enum CiliumView<'a> {
    /// A managed pod.
    Pod(PodView<'a>),
    /// Anything else: the keys of its labels of source `reserved`, which have no value.
    Reserved(&'a [&'a str]),
}

impl<'a> CiliumView<'a> {
    fn label(&self, source: &LabelSource, key: &str) -> Option<&'a str> {
        match (self, source) {
            (Self::Pod(pod), LabelSource::Any | LabelSource::Kubernetes) => pod.label(key),
            (Self::Reserved(keys), LabelSource::Any | LabelSource::Reserved) => keys.contains(&key).then_some(""),
            _ => None,
        }
    }

    /// Whether the selector selects it.
    #[must_use]
    pub fn matches(&self, selector: &CiliumSelector) -> bool {
        selector.requirements.iter().all(|wanted| {
            let requirement = &wanted.requirement;
            holds(requirement, self.label(&wanted.source, &requirement.key))
        })
    }
}

/// Whether a Kubernetes selector selects an object with these labels.
#[must_use]
pub fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.requirements.iter().all(|wanted| holds(wanted, labels.get(&wanted.key)))
}

/// Whether a requirement holds for the value of its label, if there is one (Kubernetes API, `LabelSelectorRequirement`:
/// `NotIn` and `DoesNotExist` hold where the label is missing).
fn holds(requirement: &Requirement, value: Option<&str>) -> bool {
    let listed = |value: &str| requirement.values.iter().any(|wanted| wanted.as_ref() == value);
    match requirement.operator {
        Operator::In => value.is_some_and(listed),
        Operator::NotIn => !value.is_some_and(listed),
        Operator::Exists => value.is_some(),
        Operator::DoesNotExist => value.is_none(),
    }
}
