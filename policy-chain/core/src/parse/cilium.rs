//! CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy (`cilium.io/v2`).
//!
//! Follows `pkg/policy/api` of Cilium 1.20, with its words for what it refuses. Two differences, both towards less traffic:
//! a fault makes the rule that has it unusable, where Cilium drops the whole object and enforces nothing; and what Sluice has
//! no part for (host firewall, mutual authentication, TLS contexts, listeners, values out of Secrets) is a fault too.

mod application;
pub(super) mod cidr;
pub mod groups;
mod peers;
mod ports;
mod selector;

use self::peers::Peers;
use super::cursor::{Cursor, Faults, Fields, Report};
use super::metadata::{Metadata, NameForm, Scope};
use crate::cluster::Object;
use crate::flow::Direction;
use crate::model::cilium::{CiliumAllow, CiliumDeny, CiliumPeers, CiliumPolicy, CiliumPorts, CiliumRule};
use crate::model::port::Ports;
use crate::model::selector::CiliumSelector;
use crate::model::{Policy, PolicyKind, PolicyRef, Text, Unusable, Usable};

/// Rules in one list, and elements of `specs`: a rule is told by 16-bit numbers.
const MAX_RULES: usize = u16::MAX as usize;

/// Characters of a `log.value` (Cilium, `pkg/policy/api/rule.go`).
const MAX_LOG: usize = 32;

/// Reads a CiliumNetworkPolicy.
pub(super) fn policy(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    read(document, report, PolicyKind::CiliumNetworkPolicy)
}

/// Reads a CiliumClusterwideNetworkPolicy.
pub(super) fn clusterwide_policy(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    read(document, report, PolicyKind::CiliumClusterwideNetworkPolicy)
}

fn read(document: &Cursor<'_>, report: &mut Report, kind: PolicyKind) -> Option<Object> {
    let scope = if kind == PolicyKind::CiliumNetworkPolicy { Scope::Namespaced } else { Scope::Cluster };
    let mut fields = document.fields(report).ok()?;
    for ignored in ["apiVersion", "kind", "status"] {
        fields.take(ignored);
    }
    let metadata = Metadata::read(&mut fields, report, scope, NameForm::Subdomain)?;
    let audit = metadata.audit(report);
    let namespace = (scope == Scope::Namespaced).then(|| Text::clone(&metadata.namespace));

    let mut rules = Vec::new();
    let mut subjects = false;
    let (one, more) = (fields.take("spec"), fields.take("specs"));
    if one.is_none() && more.is_none() {
        report.refused("spec", format!("Invalid {} spec(s): empty policy", kind.as_str()));
    }
    let more = match more.map(|list| (list.elements(report), list.path)) {
        Some((Ok(list), path)) if list.len() > MAX_RULES => {
            report.refused(&path, format!("has {} elements, the max is {MAX_RULES}", list.len()));
            return None;
        }
        Some((Ok(list), _)) => list,
        Some((Err(_), _)) | None => Vec::new(),
    };
    for (number, spec) in one.iter().map(|spec| (0, spec)).chain((1..=u16::MAX).zip(&more)) {
        let (rule, known) = rule(spec, number, namespace.as_ref(), report);
        rules.push(rule);
        subjects |= known;
    }
    if let Err(why) = fields.finish(report) {
        rules.iter_mut().for_each(|rule| spoil(rule, &why));
    }
    let id = PolicyRef { kind, namespace, name: metadata.name };
    subjects.then(|| Object::Policy(Policy::Cilium(CiliumPolicy { id, audit, rules })))
}

/// Reads one `spec`, and tells whether it says whom it governs. One that does not, or governs nodes, becomes a rule that
/// governs nobody.
fn rule(spec: &Cursor<'_>, number: u16, namespace: Option<&Text>, report: &mut Report) -> (CiliumRule, bool) {
    let Ok(mut fields) = spec.fields(report) else { return (governs_nobody(number), false) };
    let mut faults = Faults::default();
    let subject = subject(&mut fields, namespace, &mut faults, report);

    let allowing = |fields: &mut Fields<'_>, name, direction, report: &mut Report| {
        list(fields.take(name), report, |cursor, report| allow(cursor, direction, namespace, report))
    };
    let denying = |fields: &mut Fields<'_>, name, direction, report: &mut Report| {
        list(fields.take(name), report, |cursor, report| deny(cursor, direction, namespace, report))
    };
    let ingress = allowing(&mut fields, "ingress", Direction::Ingress, report);
    let ingress_deny = denying(&mut fields, "ingressDeny", Direction::Ingress, report);
    let egress = allowing(&mut fields, "egress", Direction::Egress, report);
    let egress_deny = denying(&mut fields, "egressDeny", Direction::Egress, report);
    let (inward, outward) = (ingress.len() + ingress_deny.len() > 0, egress.len() + egress_deny.len() > 0);
    if !inward && !outward {
        // An empty list is no rule: `ingress: []` alone is refused, `ingress: [{}]` is default deny.
        let message =
            "rule must have at least one of Ingress, IngressDeny, Egress, EgressDeny, with at least one element";
        report.refused(&spec.path, message);
    }

    let default_deny_field = fields.take("enableDefaultDeny");
    let said = default_deny(default_deny_field.as_ref(), &mut faults, report);
    if let Some(labels) = fields.take("labels") {
        told(labels.elements(report));
    }
    if let Some(description) = fields.take("description") {
        told(description.text(report));
    }
    let log = fields.take("log").and_then(|log| faults.keep(read_log(&log, report))).flatten();
    faults.keep(fields.finish(report));

    let known = !matches!(subject, Subject::Unknown);
    let Subject::Pods(subject) = subject else { return (governs_nobody(number), known) };
    let mut rule = CiliumRule {
        number,
        subject,
        default_deny_ingress: said.0.unwrap_or(inward),
        default_deny_egress: said.1.unwrap_or(outward),
        ingress,
        ingress_deny,
        egress,
        egress_deny,
        log,
    };
    if let Some(why) = faults.first() {
        spoil(&mut rule, why);
    }
    (rule, known)
}

/// Whom a rule governs.
enum Subject {
    Pods(CiliumSelector),
    /// Nodes: their gates are not ours.
    Nodes,
    Unknown,
}

fn subject(fields: &mut Fields<'_>, namespace: Option<&Text>, faults: &mut Faults, report: &mut Report) -> Subject {
    let path = fields.path().to_owned();
    let (pods, nodes) = (fields.take("endpointSelector"), fields.take("nodeSelector"));
    match (&pods, &nodes) {
        (None, None) => {
            report.refused(&path, "rule must have one of EndpointSelector or NodeSelector");
            return Subject::Unknown;
        }
        (Some(_), Some(_)) => {
            faults.keep::<()>(Err(report.refused(&path, "rule cannot have both EndpointSelector and NodeSelector")));
        }
        (None, Some(nodes)) if namespace.is_some() => {
            report.refused(&nodes.path, "rule cannot have NodeSelector");
        }
        (None, Some(nodes)) => {
            let message = "rules for nodes (host firewall) are not supported; this one governs nobody";
            report.unusable(&nodes.path, message);
        }
        (Some(_), None) => {}
    }
    let Some(pods) = pods else { return Subject::Nodes };
    selector::subject(&pods, namespace, report).map_or(Subject::Unknown, Subject::Pods)
}

/// `enableDefaultDeny`, per direction: what it says, if it says something. A direction of which it cannot be read what it
/// says is under default deny.
fn default_deny(field: Option<&Cursor<'_>>, faults: &mut Faults, report: &mut Report) -> (Option<bool>, Option<bool>) {
    let Some(field) = field else { return (None, None) };
    let mut fields = match field.fields(report) {
        Ok(fields) => fields,
        Err(why) => {
            faults.keep::<()>(Err(why));
            return (Some(true), Some(true));
        }
    };
    let mut direction = |name| fields.take(name).map(|field| faults.keep(field.boolean(report)).unwrap_or(true));
    let said = (direction("ingress"), direction("egress"));
    faults.keep(fields.finish(report));
    said
}

/// `log`. It changes no verdict, so that a value that is too long is only refused.
fn read_log(log: &Cursor<'_>, report: &mut Report) -> Usable<Option<Text>> {
    let mut fields = log.fields(report)?;
    let value = match fields.take("value") {
        None => None,
        Some(value) => {
            let text = value.text(report).ok().filter(|text| !text.is_empty());
            if text.is_some_and(|text| text.chars().count() > MAX_LOG) {
                report.refused(&value.path, format!("{} has more than {MAX_LOG} characters", value.shown()));
            }
            text.filter(|text| text.chars().count() <= MAX_LOG)
        }
    };
    fields.finish(report)?;
    Ok(value.map(Into::into))
}

/// An element of `ingress` or `egress`.
fn allow(
    element: &Cursor<'_>,
    direction: Direction,
    namespace: Option<&Text>,
    report: &mut Report,
) -> Usable<CiliumAllow> {
    let mut fields = element.fields(report)?;
    let mut faults = Faults::default();
    let peers = faults.keep(peers::read(&mut fields, Peers { direction, namespace, deny: false }, report));
    let ports = faults.keep(ports::allowed(&mut fields, direction, report));
    if let Some(authentication) = fields.take("authentication") {
        faults.keep(no_authentication(&authentication, report));
    }
    faults.keep(fields.finish(report));
    match (peers.flatten(), ports.flatten()) {
        // Without any field it allows nothing; only ports are for any peer; only peers are for any port.
        (None, None) => faults.or(CiliumAllow { peers: CiliumPeers::Nothing, ports: vec![CiliumPorts::any()] }),
        (None, Some(ports)) => faults.or(CiliumAllow { peers: CiliumPeers::Any, ports }),
        (Some(peers), ports) => {
            faults.or(CiliumAllow { peers, ports: ports.unwrap_or_else(|| vec![CiliumPorts::any()]) })
        }
    }
}

/// An element of `ingressDeny` or `egressDeny`.
fn deny(
    element: &Cursor<'_>,
    direction: Direction,
    namespace: Option<&Text>,
    report: &mut Report,
) -> Usable<CiliumDeny> {
    let mut fields = element.fields(report)?;
    let mut faults = Faults::default();
    let peers = faults.keep(peers::read(&mut fields, Peers { direction, namespace, deny: true }, report));
    let ports = faults.keep(ports::denied(&mut fields, report));
    if let Some(authentication) = fields.take("authentication") {
        faults.keep::<()>(Err(report.unusable(&authentication.path, "is not allowed in a deny rule")));
    }
    faults.keep(fields.finish(report));
    match (peers.flatten(), ports.flatten()) {
        (None, None) => faults.or(CiliumDeny { peers: CiliumPeers::Nothing, ports: Ports::Any }),
        (None, Some(ports)) => faults.or(CiliumDeny { peers: CiliumPeers::Any, ports }),
        (Some(peers), ports) => faults.or(CiliumDeny { peers, ports: ports.unwrap_or(Ports::Any) }),
    }
}

/// `authentication` of an allow: only that none is asked for can be used.
fn no_authentication(cursor: &Cursor<'_>, report: &mut Report) -> Usable<()> {
    let mut fields = cursor.fields(report)?;
    let mode = fields.required(report, "mode")?;
    if mode.text(report)? != "disabled" {
        let message = "mutual authentication is not supported; remove the field to allow without it";
        return Err(report.unusable(&mode.path, message));
    }
    fields.finish(report)
}

/// Reads a list of rules. What is no list, or too long a one, is one rule that cannot be used.
fn list<T>(
    field: Option<Cursor<'_>>,
    report: &mut Report,
    mut read: impl FnMut(&Cursor<'_>, &mut Report) -> Usable<T>,
) -> Vec<Usable<T>> {
    let Some(field) = field else { return Vec::new() };
    match field.elements(report) {
        Err(why) => vec![Err(why)],
        Ok(list) if list.len() > MAX_RULES => {
            vec![Err(report.refused(&field.path, format!("has {} elements, the max is {MAX_RULES}", list.len())))]
        }
        Ok(list) => list.iter().map(|element| read(element, report)).collect(),
    }
}

/// For what changes no verdict: a fault in it is reported already, and that is all.
pub(super) fn told<T>(_: Usable<T>) {}

/// Makes all of a rule unusable.
fn spoil(rule: &mut CiliumRule, why: &Unusable) {
    rule.ingress.iter_mut().for_each(|rule| *rule = Err(why.clone()));
    rule.ingress_deny.iter_mut().for_each(|rule| *rule = Err(why.clone()));
    rule.egress.iter_mut().for_each(|rule| *rule = Err(why.clone()));
    rule.egress_deny.iter_mut().for_each(|rule| *rule = Err(why.clone()));
}

/// A rule without effect.
fn governs_nobody(number: u16) -> CiliumRule {
    CiliumRule {
        number,
        subject: selector::nobody(),
        default_deny_ingress: false,
        default_deny_egress: false,
        ingress: Vec::new(),
        ingress_deny: Vec::new(),
        egress: Vec::new(),
        egress_deny: Vec::new(),
        log: None,
    }
}

/// Reads every element, so that all faults are told.
fn each<T>(
    elements: &[Cursor<'_>],
    report: &mut Report,
    mut read: impl FnMut(&Cursor<'_>, &mut Report) -> Usable<T>,
) -> Usable<Vec<T>> {
    let mut faults = Faults::default();
    let values = elements.iter().filter_map(|element| faults.keep(read(element, report))).collect();
    faults.or(values)
}

#[cfg(test)]
mod tests;
