//! Which policies select a pod.

use std::sync::Arc;

use super::view::{CiliumView, PodView, matches};
use crate::flow::Direction;
use crate::model::cilium::CiliumRule;
use crate::model::cluster_network_policy::ClusterSubject;
use crate::model::{Policy, PolicyRef};

/// A policy that selects a pod, in one direction. Equal ones make equal programs.
#[derive(Debug, Clone, PartialEq)]
pub struct Selected {
    /// The policy.
    pub policy: Arc<Policy>,
    /// Of a cilium.io policy: which of its `spec` and `specs` select the pod and say something about the direction,
    /// ascending. Empty for the others.
    pub specs: Vec<u16>,
}

impl Selected {
    /// Which policy.
    #[must_use]
    pub fn id(&self) -> &PolicyRef {
        self.policy.id()
    }
}

/// Whether a policy selects a managed pod and says something about one direction of its traffic.
#[must_use]
pub fn selects(policy: &Arc<Policy>, direction: Direction, pod: &PodView<'_>) -> Option<Selected> {
    let specs = specs(policy, direction, pod)?;
    Some(Selected { policy: Arc::clone(policy), specs })
}

fn specs(policy: &Policy, direction: Direction, pod: &PodView<'_>) -> Option<Vec<u16>> {
    match policy {
        Policy::Network(policy) => {
            let rules = match direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            let selected = rules.is_some()
                && policy.id.namespace.as_deref() == Some(pod.namespace)
                && matches(&policy.pods, pod.labels);
            selected.then(Vec::new)
        }
        Policy::Cluster(policy) => {
            let rules = match direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            let selected = !rules.is_empty()
                && match &policy.subject {
                    Some(ClusterSubject::Namespaces(namespaces)) => matches(namespaces, pod.namespace_labels),
                    Some(ClusterSubject::Pods { namespaces, pods }) => {
                        matches(namespaces, pod.namespace_labels) && matches(pods, pod.labels)
                    }
                    None => false,
                };
            selected.then(Vec::new)
        }
        Policy::Cilium(policy) => {
            let view = CiliumView::Pod(*pod);
            let specs: Vec<u16> = (0..=u16::MAX)
                .zip(&policy.rules)
                .filter(|(_, rule)| speaks(rule, direction) && view.matches(&rule.subject))
                .map(|(index, _)| index)
                .collect();
            (!specs.is_empty()).then_some(specs)
        }
    }
}

/// Whether a rule says anything about a direction.
fn speaks(rule: &CiliumRule, direction: Direction) -> bool {
    match direction {
        Direction::Ingress => rule.default_deny_ingress || !rule.ingress.is_empty() || !rule.ingress_deny.is_empty(),
        Direction::Egress => rule.default_deny_egress || !rule.egress.is_empty() || !rule.egress_deny.is_empty(),
    }
}
