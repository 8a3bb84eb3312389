//! Label selectors, and the labels that they look at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::address::Kind;
use crate::cluster::{Cluster, Labels, NAMESPACE_NAME_LABEL, Pod};
use crate::model::selector::{CiliumSelector, LabelSelector, LabelSource, Operator, Requirement};

/// `meta/v1 LabelSelectorRequirement`: In and Exists need the label; NotIn and DoesNotExist hold without it.
fn holds(requirement: &Requirement, value: Option<&str>) -> bool {
    let listed = |value: &str| requirement.values.iter().any(|one| &**one == value);
    match (requirement.operator, value) {
        (Operator::In, Some(value)) => listed(value),
        (Operator::NotIn, Some(value)) => !listed(value),
        (Operator::Exists, value) => value.is_some(),
        (Operator::DoesNotExist, value) => value.is_none(),
        (Operator::In, None) => false,
        (Operator::NotIn, None) => true,
    }
}

/// `meta/v1 LabelSelector`: all requirements are ANDed; the empty one matches all objects.
pub(super) fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.requirements.iter().all(|one| holds(one, labels.get(&one.key)))
}

/// The same on a namespace, which has its name as a label that nobody can change (Network Policies, "Targeting a
/// Namespace by its name"); one without an object has nothing else.
pub(super) fn selects_namespace(selector: &LabelSelector, cluster: &Cluster, namespace: &str) -> bool {
    selector.requirements.iter().all(|one| holds(one, namespace_label(cluster, namespace, &one.key)))
}

fn namespace_label<'a>(cluster: &'a Cluster, namespace: &'a str, key: &str) -> Option<&'a str> {
    if key == NAMESPACE_NAME_LABEL {
        return Some(namespace);
    }
    cluster.namespaces.get(namespace)?.labels.get(key)
}

/// Cilium's labels of an address, by source (Cilium, `pkg/labels`; reference 2.3, 2.4).
#[derive(Debug, Default)]
pub(super) struct CiliumLabels {
    /// `k8s:`: a pod's.
    kubernetes: BTreeMap<String, String>,
    /// `reserved:`: what the address is. Their values are empty.
    reserved: BTreeSet<&'static str>,
}

impl CiliumLabels {
    /// The labels of an address.
    pub(super) fn of(cluster: &Cluster, address: IpAddr, kind: Kind<'_>, api_server: bool) -> Self {
        let mut labels = Self::default();
        match kind {
            // It has no reserved label, whatever else its address is.
            Kind::Pod(pod) => return Self::of_pod(cluster, pod),
            Kind::OwnNode => labels.reserved.extend(["host"]),
            Kind::RemoteNode => labels.reserved.extend(["remote-node"]),
            Kind::Masqueraded | Kind::Other => {
                let family = if address.is_ipv4() { "world-ipv4" } else { "world-ipv6" };
                labels.reserved.extend(["world", family]);
            }
        }
        if api_server {
            labels.reserved.extend(["kube-apiserver"]);
        }
        labels
    }

    /// The labels of a pod: its own, but none that only the system may set (CVE-2023-39347), then those that the system sets.
    pub(super) fn of_pod(cluster: &Cluster, pod: &Pod) -> Self {
        let mut labels = Self::default();
        let namespace = &*pod.key.namespace;
        let mut add = |key: &str, value: &str| labels.kubernetes.insert(key.to_owned(), value.to_owned());
        for (key, value) in pod.labels.iter() {
            if !key.starts_with("io.cilium.k8s.") && &**key != "io.kubernetes.pod.namespace" {
                add(key, value);
            }
        }
        add("io.kubernetes.pod.namespace", namespace);
        add("io.cilium.k8s.policy.serviceaccount", &pod.template.service_account);
        add("io.cilium.k8s.policy.cluster", "default");
        if let Some(object) = cluster.namespaces.get(namespace) {
            for (key, value) in object.labels.iter() {
                add(&format!("io.cilium.k8s.namespace.labels.{key}"), value);
            }
        }
        add(&format!("io.cilium.k8s.namespace.labels.{NAMESPACE_NAME_LABEL}"), namespace);
        labels
    }

    /// The value of a label; `any:` looks at every source.
    fn get(&self, source: &LabelSource, key: &str) -> Option<&str> {
        let kubernetes = || self.kubernetes.get(key).map(String::as_str);
        let reserved = || self.reserved.contains(key).then_some("");
        match source {
            LabelSource::Any => kubernetes().or_else(reserved),
            LabelSource::Kubernetes => kubernetes(),
            LabelSource::Reserved => reserved(),
            LabelSource::Other(_) => None,
        }
    }

    /// Whether an endpoint selector selects what has these labels.
    pub(super) fn selected_by(&self, selector: &CiliumSelector) -> bool {
        selector.requirements.iter().all(|one| holds(&one.requirement, self.get(&one.source, &one.requirement.key)))
    }
}
