//! Selectors of Cilium: label sources, and the namespace that a policy adds.

use super::super::Severity;
use super::super::cursor::{Cursor, Faults, Fields, Report, quoted, shown};
use super::super::selector::{label_key, label_value};
use super::each;
use crate::model::selector::{CiliumRequirement, CiliumSelector, LabelSelector, LabelSource, Operator, Requirement};
use crate::model::{Text, Usable};

/// The label with an endpoint's namespace.
const NAMESPACE: &str = "io.kubernetes.pod.namespace";

/// Before the keys of a namespace's labels, on its endpoints.
const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";

/// Sources of labels that Cilium gives to blocks and names, with what says the same here.
const OUTSIDE: [(&str, &str); 3] =
    [("cidr", "CIDR fields"), ("cidrgroup", "cidrGroupRef or cidrGroupSelector"), ("fqdn", "toFQDNs")];

/// A requirement as it was written.
struct Written {
    source: LabelSource,
    requirement: Requirement,
    path: String,
}

impl Written {
    /// Whether it is about a label of the system, for which no source, `any:` and `k8s:` are one.
    fn is_system(&self, test: impl Fn(&str) -> bool) -> bool {
        matches!(self.source, LabelSource::Any | LabelSource::Kubernetes) && test(&self.requirement.key)
    }
}

/// `endpointSelector`. In a namespaced policy it selects endpoints of that namespace and no others, whatever else it asks
/// for (CVE-2023-41333); in a cluster-wide one endpoints that have a namespace.
pub(super) fn subject(cursor: &Cursor<'_>, namespace: Option<&Text>, report: &mut Report) -> Usable<CiliumSelector> {
    let mut written = read(cursor, report)?;
    let Some(namespace) = namespace else { return Ok(of_peers(written, None)) };
    let own = namespace_requirement(Operator::In, vec![Text::clone(namespace)]);
    written.retain(|one| {
        if !one.is_system(|key| key == NAMESPACE) {
            return true;
        }
        if one.requirement.operator != Operator::In || one.requirement.values != own.requirement.values {
            let message = format!(
                "the policy governs endpoints of its own namespace {namespace} only; \
                 this requirement on {NAMESPACE} is not looked at"
            );
            report.warn(&one.path, message);
        }
        false
    });
    Ok(selector(written, Some(own)))
}

/// An element of `fromEndpoints` or `toEndpoints`.
pub(super) fn peer(cursor: &Cursor<'_>, namespace: Option<&Text>, report: &mut Report) -> Usable<CiliumSelector> {
    Ok(of_peers(read(cursor, report)?, namespace))
}

/// A selector of objects that have Kubernetes labels only: nodes, Services, CiliumCIDRGroups.
pub(super) fn plain(cursor: &Cursor<'_>, report: &mut Report) -> Usable<LabelSelector> {
    let mut faults = Faults::default();
    let mut requirements = Vec::new();
    for one in read(cursor, report)? {
        match one.source {
            LabelSource::Any | LabelSource::Kubernetes => requirements.push(one.requirement),
            LabelSource::Reserved | LabelSource::Other(_) => {
                let message = "only labels of the object itself can be asked for here, without source or with k8s:";
                faults.keep::<()>(Err(report.unusable(&one.path, message)));
            }
        }
    }
    requirements.sort();
    requirements.dedup();
    faults.or(LabelSelector { requirements })
}

/// The selector that nothing matches: it asks for a label of a source that has none.
pub(super) fn nobody() -> CiliumSelector {
    let requirement = Requirement { key: "none".into(), operator: Operator::Exists, values: Vec::new() };
    CiliumSelector { requirements: vec![CiliumRequirement { source: LabelSource::Other("none".into()), requirement }] }
}

/// Without a word on the namespace or on `reserved:` labels a selector is for the policy's namespace, or in a cluster-wide policy
/// for endpoints that have one, so that `{}` never means the world or a host. With one it is what it says and nothing is added
/// (Cilium, `getEndpointSelector`): "not of this namespace" holds for the world and for nodes too, which have none. A deny
/// needs that, and an allow is no other selector. Labels of the namespace count in a namespaced policy only, as there.
fn of_peers(written: Vec<Written>, namespace: Option<&Text>) -> CiliumSelector {
    let says = |test: fn(&Written) -> bool| written.iter().any(test);
    let added = if says(|one| one.source == LabelSource::Reserved || one.is_system(|key| key == NAMESPACE)) {
        None
    } else {
        match namespace {
            None => Some(namespace_requirement(Operator::Exists, Vec::new())),
            Some(_) if says(|one| one.is_system(|key| key.starts_with(NAMESPACE_LABELS))) => None,
            Some(own) => Some(namespace_requirement(Operator::In, vec![Text::clone(own)])),
        }
    };
    selector(written, added)
}

fn namespace_requirement(operator: Operator, values: Vec<Text>) -> CiliumRequirement {
    CiliumRequirement {
        source: LabelSource::Kubernetes,
        requirement: Requirement { key: NAMESPACE.into(), operator, values },
    }
}

fn selector(written: Vec<Written>, added: Option<CiliumRequirement>) -> CiliumSelector {
    let mut requirements: Vec<CiliumRequirement> = written
        .into_iter()
        .map(|one| CiliumRequirement { source: one.source, requirement: one.requirement })
        .chain(added)
        .collect();
    requirements.sort();
    requirements.dedup();
    CiliumSelector { requirements }
}

/// `matchLabels` and `matchExpressions`.
fn read(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Vec<Written>> {
    let mut fields = cursor.fields(report)?;
    let mut faults = Faults::default();
    let labels = fields.take("matchLabels");
    let mut written = labels.and_then(|field| faults.keep(match_labels(&field, report))).unwrap_or_default();
    if let Some(expressions) = fields.take("matchExpressions") {
        let elements = faults.keep(expressions.elements(report)).unwrap_or_default();
        written.extend(faults.keep(each(&elements, report, match_expression)).unwrap_or_default());
    }
    faults.keep(fields.finish(report));
    faults.or(written)
}

fn match_labels(field: &Cursor<'_>, report: &mut Report) -> Usable<Vec<Written>> {
    let serde_json::Value::Object(map) = field.value else {
        return Err(report.refused(&field.path, format!("{} is not an object", field.shown())));
    };
    let mut faults = Faults::default();
    let mut written = Vec::new();
    for (name, value) in map {
        let key = faults.keep(read_key(name, &field.path, report));
        let value = match value.as_str() {
            Some(text) => label_value(text, &field.path, report, Severity::Refused),
            None => Err(report.refused(&field.path, format!("{}: {} is not a string", quoted(name), shown(value)))),
        };
        let value = faults.keep(value);
        if let (Some((source, key)), Some(value)) = (key, value) {
            let requirement = Requirement { key, operator: Operator::In, values: vec![value] };
            written.push(Written { source, requirement, path: field.path.clone() });
        }
    }
    faults.or(written)
}

fn match_expression(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Written> {
    let mut fields = cursor.fields(report)?;
    let mut faults = Faults::default();
    let key = fields.required(report, "key").and_then(|field| {
        let text = field.text(report)?;
        read_key(text, &field.path, report)
    });
    let key = faults.keep(key);
    let operator = faults.keep(operator(&mut fields, report));
    let values = match fields.take("values") {
        None => Some(Vec::new()),
        Some(field) => {
            let elements = faults.keep(field.elements(report)).unwrap_or_default();
            let values = each(&elements, report, |cursor, report| {
                let text = cursor.text(report)?;
                label_value(text, &cursor.path, report, Severity::Refused)
            });
            faults.keep(values)
        }
    };
    if let (Some(operator), Some(values)) = (operator, &values) {
        let wanted = matches!(operator, Operator::In | Operator::NotIn);
        let path = fields.path_of("values");
        if wanted && values.is_empty() {
            faults.keep::<()>(Err(report.refused(&path, "must be specified when `operator` is 'In' or 'NotIn'")));
        } else if !wanted && !values.is_empty() {
            faults.keep::<()>(Err(
                report.refused(&path, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
            ));
        }
    }
    faults.keep(fields.finish(report));
    match (key, operator, values) {
        (Some((source, key)), Some(operator), Some(mut values)) => {
            values.sort();
            values.dedup();
            let requirement = Requirement { key, operator, values };
            faults.or(Written { source, requirement, path: cursor.path.clone() })
        }
        // One of them cannot be used.
        _ => faults.or(()).and_then(|()| Err(report.refused(&cursor.path, "cannot be read"))),
    }
}

fn operator(fields: &mut Fields<'_>, report: &mut Report) -> Usable<Operator> {
    let field = fields.required(report, "operator")?;
    match field.text(report)? {
        "In" => Ok(Operator::In),
        "NotIn" => Ok(Operator::NotIn),
        "Exists" => Ok(Operator::Exists),
        "DoesNotExist" => Ok(Operator::DoesNotExist),
        _ => {
            let message =
                format!("{} is not a valid selector operator: In, NotIn, Exists, DoesNotExist", field.shown());
            Err(report.refused(&field.path, message))
        }
    }
}

/// Source and key of a label (Cilium, `pkg/labels`, `parseSource`): `$key` is `reserved:key`.
fn read_key(text: &str, path: &str, report: &mut Report) -> Usable<(LabelSource, Text)> {
    let (source, key) = match text.strip_prefix('$') {
        Some(key) => ("reserved", key),
        None => text.split_once(':').unwrap_or(("any", text)),
    };
    let given = || shown(&text.into());
    if let Some((_, instead)) = OUTSIDE.iter().find(|(name, _)| *name == source) {
        let message = format!("{}: labels of the source {source}: are not known here; use {instead}", given());
        return Err(report.unusable(path, message));
    }
    let key = label_key(key, path, report, Severity::Refused)?;
    let source = match source {
        "any" => LabelSource::Any,
        "k8s" => LabelSource::Kubernetes,
        "reserved" => LabelSource::Reserved,
        other => LabelSource::Other(label_key(other, path, report, Severity::Refused)?),
    };
    Ok((source, key))
}
