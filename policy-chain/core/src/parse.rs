//! From JSON or YAML to [`crate::model`] and [`crate::cluster`], with every fault named by path and value.

pub mod cilium;
pub mod cursor;

mod aws;
mod cidr;
mod cidr_group;
mod cluster_network_policy;
mod cluster_peer;
mod endpoint_slice;
pub mod metadata;
mod namespace;
mod network_policy;
mod node;
mod plain;
mod pod;
mod port;
mod selector;
mod service;
pub(crate) mod visibility;

use std::fmt;

use serde_json::Value;

use self::cursor::{Cursor, Report, quoted};
use crate::cluster::Object;

/// How much a fault matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing; everything is in force as written.
    Warning,
    /// A part cannot be used: an allow in it grants nothing, a deny or pass in it denies all of its direction.
    Unusable,
    /// The API server refuses such an object. If it is here nonetheless, what could be read of it counts, with the faulty
    /// parts unusable.
    Refused,
}

/// A fault in an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// How much it matters.
    pub severity: Severity,
    /// Where, e.g. `spec.ingress[0].from[1].ipBlock.cidr`.
    pub path: String,
    /// What is wrong, with the value, and what is expected.
    pub message: String,
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            return f.write_str(&self.message);
        }
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// What could be read of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The object; none if its kind, name or subject cannot be told. Then the issues say why.
    pub object: Option<Object>,
    /// Its faults, in the order of the text.
    pub issues: Vec<Issue>,
}

/// Reads an object of one kind; what it cannot read, it reports.
type Reader = fn(&Cursor<'_>, &mut Report) -> Option<Object>;

/// The kinds that are known: apiVersion, kind, and who reads it.
const KINDS: &[(&str, &str, Reader)] = &[
    ("v1", "Namespace", namespace::namespace),
    ("v1", "Pod", pod::pod),
    ("v1", "Node", node::node),
    ("v1", "Service", service::service),
    ("discovery.k8s.io/v1", "EndpointSlice", endpoint_slice::endpoint_slice),
    ("networking.k8s.io/v1", "NetworkPolicy", network_policy::policy),
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", cluster_network_policy::policy),
    ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", cluster_network_policy::admin),
    ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy", cluster_network_policy::baseline),
    ("networking.k8s.aws/v1alpha1", "ClusterNetworkPolicy", aws::cluster_policy),
    ("networking.k8s.aws/v1alpha1", "ApplicationNetworkPolicy", aws::application_policy),
    ("cilium.io/v2", "CiliumNetworkPolicy", cilium::policy),
    ("cilium.io/v2", "CiliumClusterwideNetworkPolicy", cilium::clusterwide_policy),
    ("cilium.io/v2", "CiliumCIDRGroup", cidr_group::cidr_group),
    ("cilium.io/v2alpha1", "CiliumCIDRGroup", cidr_group::cidr_group),
];

/// Reads an object of any kind that is known, told by its `apiVersion` and `kind`. What cannot be read is reported; nothing
/// is passed over in silence.
#[must_use]
pub fn object(value: &Value) -> Parsed {
    let mut report = Report::default();
    let object = read(&Cursor::document(value), &mut report);
    Parsed { object, issues: report.into_issues() }
}

fn read(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    let mut fields = document.fields(report).ok()?;
    // Both are asked for, so that both are told if they are missing.
    let version = fields.required(report, "apiVersion").and_then(|field| field.text(report));
    let kind = fields.required(report, "kind").and_then(|field| field.text(report));
    let (version, kind) = (version.ok()?, kind.ok()?);
    match KINDS.iter().find(|known| (known.0, known.1) == (version, kind)) {
        Some((_, _, reader)) => reader(document, report),
        None => {
            unknown_kind(version, kind, report);
            None
        }
    }
}

/// How the warning begins that a NetworkPolicy's `policyTypes` leaves out a direction that it has rules for.
pub(crate) const NOT_IN_FORCE: &str = "is not in force";

/// Whether objects of this version and kind are read.
pub(crate) fn is_known(version: &str, kind: &str) -> bool {
    KINDS.iter().any(|known| (known.0, known.1) == (version, kind))
}

/// Whether objects of some version of this API group and kind are read.
pub(crate) fn is_known_kind(group: &str, kind: &str) -> bool {
    let group_of = |version: &'static str| version.split_once('/').map_or("", |(group, _)| group);
    KINDS.iter().any(|known| (group_of(known.0), known.1) == (group, kind))
}

/// The versions of a kind that are read.
pub(crate) fn versions(kind: &str) -> Vec<&'static str> {
    KINDS.iter().filter(|known| known.1 == kind).map(|known| known.0).collect()
}

/// Says that there is no such kind, and which there are: other versions of the kind, if any, else all.
fn unknown_kind(version: &str, kind: &str, report: &mut Report) {
    let same_kind: Vec<&str> = KINDS.iter().filter(|known| known.1 == kind).map(|known| known.0).collect();
    if same_kind.is_empty() {
        let known: Vec<String> = KINDS.iter().map(|(version, kind, _)| format!("{version} {kind}")).collect();
        report.refused("kind", format!("{} is not a known kind; known are {}", quoted(kind), known.join(", ")));
    } else {
        report.refused(
            "apiVersion",
            format!("{} is not a known version of {kind}; known are {}", quoted(version), same_kind.join(", ")),
        );
    }
}

#[cfg(test)]
mod tests;
