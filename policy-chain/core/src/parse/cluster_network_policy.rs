//! `policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy`, and what is read as one: AdminNetworkPolicy,
//! BaselineAdminNetworkPolicy, and AWS's ClusterNetworkPolicy.
//!
//! What is checked is what the API server checks by the kinds' schemas and CEL rules (network-policy-api, `apis/v1alpha1`,
//! `apis/v1alpha2`). A rule with a part that cannot be used fails closed, whole (type comment of
//! `ClusterNetworkPolicyIngressPeer`).

use super::Severity;
use super::cluster_peer::{peer, subject};
use super::cursor::{Cursor, Faults, Fields, Report, quoted};
use super::metadata::{Metadata, NameForm, Scope};
use super::port::{admin_port, cluster_protocol};
use crate::cluster::Object;
use crate::flow::Direction;
use crate::model::cluster_network_policy::{
    Action, BANP_PRIORITY, ClusterMatch, ClusterNetworkPolicy, ClusterPeer, ClusterRule, ClusterTier,
};
use crate::model::port::{PortMatch, PortTarget, Ports};
use crate::model::{Policy, PolicyKind, PolicyRef, Text, Unusable, Usable};

/// In what the kinds differ.
#[derive(Debug)]
pub(super) struct Dialect {
    kind: PolicyKind,
    /// Where tier and priority come from.
    rank: Rank,
    /// Actions, and what they are called.
    actions: &'static [(&'static str, Action)],
    /// Rules of a direction, peers of a rule and ports of a rule, at most.
    most: usize,
    /// The field with the ports, and how an element of it is read.
    ports: (&'static str, PortReader),
    /// Whether the API refuses named ports beside peers that are not pods.
    named_ports_of_pods_only: bool,
    /// Whether `nodes` is a peer.
    pub(super) nodes: bool,
    /// Actions with which `domainNames` may be used. None: it is not a peer.
    pub(super) names_with: &'static [Action],
    /// What it is to use them with another: upstream the API server lets it pass, AWS's does not.
    pub(super) names_fault: Severity,
    /// Whether `namespaceSelector` may be missing in `pods`.
    pub(super) namespaces_optional: bool,
    /// Whether the API server takes any short text for a network.
    pub(super) cidrs_unchecked: bool,
}

/// Reads one port condition.
type PortReader = fn(&Cursor<'_>, &mut Report) -> Usable<PortMatch>;

#[derive(Debug)]
enum Rank {
    /// `tier` and `priority`.
    Fields,
    /// `priority`, in tier Admin.
    Admin,
    /// No field: the last of tier Baseline.
    Baseline,
}

const ACCEPT_DENY_PASS: &[(&str, Action)] =
    &[("Accept", Action::Accept), ("Deny", Action::Deny), ("Pass", Action::Pass)];
const ALLOW_DENY_PASS: &[(&str, Action)] = &[("Allow", Action::Accept), ("Deny", Action::Deny), ("Pass", Action::Pass)];
const ALLOW_DENY: &[(&str, Action)] = &[("Allow", Action::Accept), ("Deny", Action::Deny)];

const CLUSTER: Dialect = Dialect {
    kind: PolicyKind::ClusterNetworkPolicy,
    rank: Rank::Fields,
    actions: ACCEPT_DENY_PASS,
    most: 25,
    ports: ("protocols", cluster_protocol),
    named_ports_of_pods_only: true,
    nodes: true,
    names_with: &[Action::Accept],
    names_fault: Severity::Unusable,
    namespaces_optional: true,
    cidrs_unchecked: false,
};

const ADMIN: Dialect = Dialect {
    kind: PolicyKind::AdminNetworkPolicy,
    rank: Rank::Admin,
    actions: ALLOW_DENY_PASS,
    most: 100,
    ports: ("ports", admin_port),
    namespaces_optional: false,
    ..CLUSTER
};

const BASELINE: Dialect = Dialect {
    kind: PolicyKind::BaselineAdminNetworkPolicy,
    rank: Rank::Baseline,
    actions: ALLOW_DENY,
    names_with: &[],
    ..ADMIN
};

/// AWS's kind (amazon-network-policy-controller-k8s, `api/v1alpha1`).
pub(super) const AWS: Dialect = Dialect {
    kind: PolicyKind::AwsClusterNetworkPolicy,
    rank: Rank::Fields,
    actions: ACCEPT_DENY_PASS,
    named_ports_of_pods_only: false,
    nodes: false,
    names_with: &[Action::Accept, Action::Pass],
    names_fault: Severity::Refused,
    cidrs_unchecked: true,
    ..ADMIN
};

impl Dialect {
    /// The peers that an egress rule may have, for messages.
    pub(super) const fn egress_peers(&self) -> &'static str {
        match (self.nodes, self.names_with.is_empty()) {
            (true, false) => "namespaces, pods, nodes, networks, domainNames",
            (true, true) => "namespaces, pods, nodes, networks",
            (false, false) => "namespaces, pods, networks, domainNames",
            (false, true) => "namespaces, pods, networks",
        }
    }
}

/// The greatest priority, which is the last in turn.
const LAST_PRIORITY: i64 = 1000;

/// Longest name of a rule.
const LONGEST_NAME: usize = 100;

/// The one name of a BaselineAdminNetworkPolicy.
const BASELINE_NAME: &str = "default";

/// Reads a ClusterNetworkPolicy.
pub(super) fn policy(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    read(document, report, &CLUSTER)
}

/// Reads an AdminNetworkPolicy.
pub(super) fn admin(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    read(document, report, &ADMIN)
}

/// Reads a BaselineAdminNetworkPolicy.
pub(super) fn baseline(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    read(document, report, &BASELINE)
}

/// Reads a policy of one of the kinds.
pub(super) fn read(document: &Cursor<'_>, report: &mut Report, dialect: &Dialect) -> Option<Object> {
    let mut fields = document.fields(report).ok()?;
    fields.take("apiVersion");
    fields.take("kind");
    fields.take("status");
    let metadata = Metadata::read(&mut fields, report, Scope::Cluster, NameForm::Subdomain)?;
    if matches!(dialect.rank, Rank::Baseline) && &*metadata.name != BASELINE_NAME {
        let message = format!("{} is not {BASELINE_NAME:?}, the name of the one such policy", quoted(&metadata.name));
        report.refused("metadata.name", message);
    }
    let audit = metadata.audit(report);
    let id = PolicyRef { kind: dialect.kind, namespace: None, name: metadata.name };
    let spec = fields.required(report, "spec");
    // What is not known here, or of what place the rules are, makes every rule unusable.
    let mut faults = Faults::default();
    faults.keep(fields.finish(report));
    let mut fields = spec.ok()?.fields(report).ok()?;
    let (tier, priority) = rank(&mut fields, report, dialect, &mut faults);
    let subject = fields.required(report, "subject").and_then(|field| subject(&field, report, dialect));
    let ingress = fields.take("ingress");
    let egress = fields.take("egress");
    faults.keep(fields.finish(report));
    let fault = faults.first();
    let ingress = rules(ingress.as_ref(), Direction::Ingress, report, dialect, fault);
    let egress = rules(egress.as_ref(), Direction::Egress, report, dialect, fault);
    let subject = subject.ok();
    let policy = ClusterNetworkPolicy { id, audit, tier, priority, subject, ingress, egress };
    Some(Object::Policy(Policy::Cluster(policy)))
}

/// Reads tier and priority. Where they cannot be read, the policy is put first: its rules are not used, and what denies in
/// their stead denies before everything.
fn rank(fields: &mut Fields<'_>, report: &mut Report, dialect: &Dialect, faults: &mut Faults) -> (ClusterTier, u16) {
    let tier = match dialect.rank {
        Rank::Fields => {
            let tier = fields.required(report, "tier").and_then(|field| match field.text(report)? {
                "Admin" => Ok(ClusterTier::Admin),
                "Baseline" => Ok(ClusterTier::Baseline),
                other => Err(report.refused(&field.path, format!("{} is neither Admin nor Baseline", quoted(other)))),
            });
            faults.keep(tier).unwrap_or(ClusterTier::Admin)
        }
        Rank::Admin => ClusterTier::Admin,
        Rank::Baseline => return (ClusterTier::Baseline, BANP_PRIORITY),
    };
    let priority = fields.required(report, "priority").and_then(|field| field.number(report, 0, LAST_PRIORITY));
    let priority = faults.keep(priority).and_then(|number| u16::try_from(number).ok()).unwrap_or(0);
    (tier, priority)
}

/// Reads the rules of a direction. `fault` is why none of them can be used.
fn rules(
    field: Option<&Cursor<'_>>,
    direction: Direction,
    report: &mut Report,
    dialect: &Dialect,
    fault: Option<&Unusable>,
) -> Vec<ClusterRule> {
    let Some(field) = field else { return Vec::new() };
    let elements = match field.elements(report) {
        Ok(elements) => elements,
        Err(fault) => return vec![closed(fault)],
    };
    let mut rules: Vec<ClusterRule> = elements
        .iter()
        .take(dialect.most)
        .map(|element| rule(element, direction, report, dialect))
        .map(|rule| match fault {
            Some(fault) => ClusterRule { matches: Err(fault.clone()), ..rule },
            None => rule,
        })
        .collect();
    if elements.len() > dialect.most {
        let message = format!("has {} elements; at most {} are possible", elements.len(), dialect.most);
        rules.push(closed(report.refused(&field.path, message)));
    }
    rules
}

/// What stands for rules that cannot be told.
const fn closed(fault: Unusable) -> ClusterRule {
    ClusterRule { name: None, action: Action::Deny, matches: Err(fault) }
}

fn rule(element: &Cursor<'_>, direction: Direction, report: &mut Report, dialect: &Dialect) -> ClusterRule {
    let mut fields = match element.fields(report) {
        Ok(fields) => fields,
        Err(fault) => return closed(fault),
    };
    let mut faults = Faults::default();
    let name = fields.take("name").and_then(|field| rule_name(&field, report));
    let action = fields.required(report, "action").and_then(|field| {
        let text = field.text(report)?;
        let known = dialect.actions.iter().find(|known| known.0 == text);
        known.map(|known| known.1).ok_or_else(|| {
            let names: Vec<&str> = dialect.actions.iter().map(|known| known.0).collect();
            report.refused(&field.path, format!("{} is none of {}", quoted(text), names.join(", ")))
        })
    });
    let action = faults.keep(action);
    let peers = fields.required(
        report,
        match direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        },
    );
    let peers = peers.and_then(|field| field.elements_between(report, 1, dialect.most));
    let peers: Vec<ClusterPeer> = faults
        .keep(peers)
        .unwrap_or_default()
        .iter()
        .filter_map(|element| faults.keep(peer(element, report, dialect, direction, action)))
        .collect();
    let (name_of_ports, read_port) = dialect.ports;
    let path_of_ports = fields.path_of(name_of_ports);
    let elements = fields.take(name_of_ports).map(|field| field.elements_between(report, 1, dialect.most));
    let ports = match elements {
        None => Ports::Any,
        Some(elements) => Ports::Of(
            faults
                .keep(elements)
                .unwrap_or_default()
                .iter()
                .filter_map(|element| faults.keep(read_port(element, report)))
                .collect(),
        ),
    };
    if is_named(&ports) && peers.iter().any(|peer| !matches!(peer, ClusterPeer::Pods(_))) {
        let message = "a port is known by its name on pods only, and a peer of this rule is not made of pods";
        if dialect.named_ports_of_pods_only {
            faults.keep::<()>(Err(report.refused(&path_of_ports, message)));
        } else {
            report.warn(&path_of_ports, message);
        }
    }
    faults.keep(fields.finish(report));
    ClusterRule { name, action: action.unwrap_or(Action::Deny), matches: faults.or(ClusterMatch { peers, ports }) }
}

fn is_named(ports: &Ports) -> bool {
    match ports {
        Ports::Any => false,
        Ports::Of(ports) => ports.iter().any(|port| matches!(port.port, PortTarget::Named(_))),
    }
}

/// The name of a rule; it means nothing, so a fault in it takes nothing from the rule.
fn rule_name(field: &Cursor<'_>, report: &mut Report) -> Option<Text> {
    let text = field.text(report).ok()?;
    if text.chars().count() <= LONGEST_NAME {
        return Some(text).filter(|text| !text.is_empty()).map(Into::into);
    }
    report.refused(&field.path, format!("{} is longer than {LONGEST_NAME} characters", quoted(text)));
    let cut: String = text.chars().take(LONGEST_NAME).collect();
    Some(cut.into())
}

#[cfg(test)]
mod tests;
