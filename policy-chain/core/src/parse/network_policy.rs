//! `networking.k8s.io/v1 NetworkPolicy`, and AWS's ApplicationNetworkPolicy, which adds domain names to it.
//!
//! What is checked is what the API server checks (kubernetes, `pkg/apis/networking/validation`). Everything in a
//! NetworkPolicy allows, so a part that cannot be used is left out of what is allowed: a peer of its list, a rule.

use serde_json::Value;

use super::cidr::{CidrForm, cidr};
use super::cluster_peer::domain_names;
use super::cursor::{Cursor, Faults, Fields, Report, quoted};
use super::metadata::{Metadata, NameForm, Scope};
use super::port::network_port;
use super::selector::label_selector;
use super::{NOT_IN_FORCE, Severity};
use crate::cluster::Object;
use crate::flow::Direction;
use crate::model::network_policy::{NetworkPeer, NetworkPeers, NetworkPolicy, NetworkRule};
use crate::model::port::Ports;
use crate::model::selector::LabelSelector;
use crate::model::{Policy, PolicyKind, PolicyRef, Usable};

/// Rules of one direction that are read; a rule is told by a number of 16 bits. The API sets no limit but the size of the
/// object.
const MAX_RULES: usize = 10_000;

/// Reads a NetworkPolicy.
pub(super) fn policy(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    read(document, report, PolicyKind::NetworkPolicy)
}

/// Reads a policy of one of the two kinds.
pub(super) fn read(document: &Cursor<'_>, report: &mut Report, kind: PolicyKind) -> Option<Object> {
    let mut fields = document.fields(report).ok()?;
    fields.take("apiVersion");
    fields.take("kind");
    fields.take("status");
    let metadata = Metadata::read(&mut fields, report, Scope::Namespaced, NameForm::Subdomain)?;
    let audit = metadata.audit(report);
    let id = PolicyRef { kind, namespace: Some(metadata.namespace), name: metadata.name };
    let spec = fields.take("spec");
    // What is not known here may change the meaning of every rule.
    let mut faults = Faults::default();
    faults.keep(fields.finish(report));
    let spec = match spec {
        Some(spec) => Spec::read(&spec, report, kind, faults)?,
        None => {
            report.warn("spec", "is missing: the policy selects every pod of its namespace and allows nothing in");
            let egress = faults.first().map(|_| Vec::new());
            Spec { pods: LabelSelector::default(), ingress: Some(Vec::new()), egress }
        }
    };
    let Spec { pods, ingress, egress } = spec;
    Some(Object::Policy(Policy::Network(NetworkPolicy { id, audit, pods, ingress, egress })))
}

type Rules = Vec<Usable<NetworkRule>>;

struct Spec {
    pods: LabelSelector,
    ingress: Option<Rules>,
    egress: Option<Rules>,
}

impl Spec {
    /// Reads `spec`. None: whom the policy governs cannot be told.
    fn read(spec: &Cursor<'_>, report: &mut Report, kind: PolicyKind, mut faults: Faults) -> Option<Self> {
        let mut fields = spec.fields(report).ok()?;
        let subject = match (fields.take("podSelector"), kind) {
            (Some(selector), _) => label_selector(&selector, report, grammar(kind)),
            // Optional on the wire.
            (None, PolicyKind::NetworkPolicy) => Ok(LabelSelector::default()),
            (None, _) => Err(report.refused(&fields.path_of("podSelector"), "is missing")),
        };
        let types = fields.take("policyTypes").and_then(|field| Types::read(&field, report));
        let ingress = fields.take("ingress");
        let egress = fields.take("egress");
        faults.keep(fields.finish(report));
        let types = types.unwrap_or(Types {
            ingress: true,
            // A field that is not known may isolate, in a direction that nothing else isolates.
            egress: faults.first().is_some() || !is_empty_list(egress.as_ref()),
        });
        for (isolated, field, name) in [(types.ingress, &ingress, "Ingress"), (types.egress, &egress, "Egress")] {
            if let Some(field) = field.as_ref().filter(|field| !isolated && !is_empty_list(Some(field))) {
                report.warn(&field.path, format!("{NOT_IN_FORCE}: policyTypes does not have {name}"));
            }
        }
        let ingress = rules(ingress.as_ref(), Direction::Ingress, kind, report, &faults);
        let egress = rules(egress.as_ref(), Direction::Egress, kind, report, &faults);
        Some(Self {
            pods: subject.ok()?,
            ingress: types.ingress.then_some(ingress),
            egress: types.egress.then_some(egress),
        })
    }
}

/// How much a fault in the grammar of a selector matters: of ApplicationNetworkPolicy, the API server knows the schema only.
const fn grammar(kind: PolicyKind) -> Severity {
    match kind {
        PolicyKind::NetworkPolicy => Severity::Refused,
        _ => Severity::Unusable,
    }
}

/// Whether there is no list, or nothing in it.
fn is_empty_list(field: Option<&Cursor<'_>>) -> bool {
    field.is_none_or(|field| matches!(field.value, Value::Array(list) if list.is_empty()))
}

/// Which directions a policy isolates.
struct Types {
    ingress: bool,
    egress: bool,
}

impl Types {
    /// Reads `policyTypes`. None: it is empty, which is the same as missing. If it cannot be read, both directions are meant.
    fn read(field: &Cursor<'_>, report: &mut Report) -> Option<Self> {
        const BOTH: Types = Types { ingress: true, egress: true };
        let Ok(elements) = field.elements_between(report, 0, 2) else { return Some(BOTH) };
        if elements.is_empty() {
            return None;
        }
        let mut types = Self { ingress: false, egress: false };
        let mut faults = Faults::default();
        for element in elements {
            match faults.keep(element.text(report)) {
                Some("Ingress") => types.ingress = true,
                Some("Egress") => types.egress = true,
                Some(other) => {
                    let message = format!("{} is neither Ingress nor Egress", quoted(other));
                    faults.keep::<()>(Err(report.refused(&element.path, message)));
                }
                None => {}
            }
        }
        Some(if faults.first().is_some() { BOTH } else { types })
    }
}

fn rules(
    field: Option<&Cursor<'_>>,
    direction: Direction,
    kind: PolicyKind,
    report: &mut Report,
    of_spec: &Faults,
) -> Rules {
    let Some(field) = field else { return Vec::new() };
    let elements = match field.elements(report) {
        Ok(elements) => elements,
        Err(fault) => return vec![Err(fault)],
    };
    if elements.len() > MAX_RULES {
        let message = format!("has {} elements; those after the first {MAX_RULES} allow nothing", elements.len());
        report.unusable(&field.path, message);
    }
    let read = |element: &Cursor<'_>| {
        let rule = rule(element, direction, kind, report);
        of_spec.first().map_or(rule, |fault| Err(fault.clone()))
    };
    elements.iter().take(MAX_RULES).map(read).collect()
}

fn rule(element: &Cursor<'_>, direction: Direction, kind: PolicyKind, report: &mut Report) -> Usable<NetworkRule> {
    let mut fields = element.fields(report)?;
    let mut faults = Faults::default();
    let peers = fields.take(match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    });
    let peers = peers.map_or(Ok(Vec::new()), |field| field.elements(report));
    let elements = faults.keep(peers).unwrap_or_default();
    let mut peers = Vec::new();
    for element in &elements {
        let full = report.is_full();
        let peer = peer(element, direction, kind, report);
        // One that is only counted is not kept either, unless it is what tells this rule from one without peers.
        if peer.is_ok() || !full || peers.is_empty() {
            peers.push(peer);
        }
    }
    let ports = fields.take("ports").map_or(Ok(Vec::new()), |field| field.elements(report));
    let ports = faults.keep(ports).unwrap_or_default();
    let ports: Vec<_> = ports.iter().filter_map(|element| faults.keep(network_port(element, report))).collect();
    faults.keep(fields.finish(report));
    faults.or(NetworkRule {
        // A list that is empty is a list that is missing.
        peers: if peers.is_empty() { NetworkPeers::All } else { NetworkPeers::Of(peers) },
        ports: if ports.is_empty() { Ports::Any } else { Ports::Of(ports) },
    })
}

fn peer(element: &Cursor<'_>, direction: Direction, kind: PolicyKind, report: &mut Report) -> Usable<NetworkPeer> {
    let mut fields = element.fields(report)?;
    let mut faults = Faults::default();
    let with_names = kind == PolicyKind::AwsApplicationNetworkPolicy && direction == Direction::Egress;
    let pods = fields.take("podSelector");
    let namespaces = fields.take("namespaceSelector");
    let block = fields.take("ipBlock");
    let names = if with_names { fields.take("domainNames") } else { None };
    let selectors = pods.is_some() || namespaces.is_some();

    let mut select = |field: &Cursor<'_>| faults.keep(label_selector(field, report, grammar(kind)));
    let pods = pods.as_ref().map(&mut select);
    let namespaces = namespaces.as_ref().map(&mut select);
    let block = block.as_ref().map(|field| faults.keep(ip_block(field, report)));
    let names = names.as_ref().map(|field| faults.keep(domain_names(field, report, usize::MAX)));
    faults.keep(fields.finish(report));

    let fault = match (selectors, block.is_some(), names.is_some()) {
        (true, true, _) | (_, true, true) => Some("has ipBlock and another peer; ipBlock stands alone"),
        (true, _, true) => Some("has domainNames and another peer; domainNames stands alone"),
        (false, false, false) if faults.first().is_none() => Some(if with_names {
            "has no peer; podSelector, namespaceSelector, ipBlock or domainNames is needed"
        } else {
            "has no peer; podSelector, namespaceSelector or ipBlock is needed"
        }),
        _ => None,
    };
    if let Some(message) = fault {
        faults.keep::<()>(Err(report.refused(&element.path, message)));
    }
    let peer = match (block.flatten(), names.flatten()) {
        (Some(block), _) => block,
        (None, Some(names)) => NetworkPeer::Names(names),
        (None, None) => {
            NetworkPeer::Pods { namespaces: namespaces.flatten(), pods: pods.flatten().unwrap_or_default() }
        }
    };
    faults.or(peer)
}

fn ip_block(field: &Cursor<'_>, report: &mut Report) -> Usable<NetworkPeer> {
    let mut fields: Fields<'_> = field.fields(report)?;
    let mut faults = Faults::default();
    let block = fields.required(report, "cidr").and_then(|field| cidr(&field, report, CidrForm::Sloppy));
    let block = faults.keep(block);
    let elements = fields.take("except").map_or(Ok(Vec::new()), |field| field.elements(report));
    let mut except = Vec::new();
    for element in faults.keep(elements).unwrap_or_default() {
        let Some(inner) = faults.keep(cidr(&element, report, CidrForm::Sloppy)) else { continue };
        match block {
            Some(block) if inner == block || !block.contains(&inner) => {
                let message = format!("{} is not a part of cidr, {block}, that is smaller than it", element.shown());
                faults.keep::<()>(Err(report.refused(&element.path, message)));
            }
            Some(_) => except.push(inner),
            None => {}
        }
    }
    faults.keep(fields.finish(report));
    // Without a block there is a fault, and it is given back instead of the peer.
    match block {
        Some(cidr) => faults.or(NetworkPeer::IpBlock { cidr, except }),
        None => faults.or(NetworkPeer::Names(Vec::new())),
    }
}

#[cfg(test)]
mod tests;
