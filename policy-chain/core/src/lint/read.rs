//! Documents to objects, with what the parser says of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Document, Findings, Id, Item, Role};
use crate::cluster::{Cluster, Event, Object};
use crate::model::PolicyRef;
use crate::parse::{self, Parsed};

/// What the documents hold.
#[derive(Debug)]
pub(super) struct Read<'a> {
    /// The policies; of two with one name, the one that counts.
    pub(super) items: Vec<Item<'a>>,
    /// All other objects, and a pod for each workload's template.
    pub(super) cluster: Cluster,
}

/// API groups whose kinds are policies, if their name says so.
const POLICY_GROUPS: [&str; 3] = ["cilium.io", "policy.networking.k8s.io", "networking.k8s.aws"];

pub(super) fn read<'a>(documents: &'a [Document], findings: &mut Findings) -> Read<'a> {
    let mut cluster = Cluster::default();
    let mut items: BTreeMap<PolicyRef, Item<'a>> = BTreeMap::new();
    let mut seen: BTreeMap<String, (usize, Role)> = BTreeMap::new();
    let mut skipped: BTreeMap<&str, (usize, BTreeMap<String, usize>)> = BTreeMap::new();
    for (index, document) in documents.iter().enumerate() {
        let object = name_of(&document.value);
        let Kind::Known = kind(&document.value) else {
            other(document, index, &object, findings, &mut skipped);
            if let Some(pod) = template(&document.value) {
                cluster_object(&mut cluster, parse::object(&pod));
            }
            continue;
        };
        let parsed = parse::object(&document.value);
        issues((index, document, &object), &parsed, findings);
        if let Some(first) = duplicate(&mut seen, index, document, &parsed, documents) {
            let message = format!("this object is in {first} too; the one that is applied last counts");
            let hint = "keep one of the two, or give them different names";
            findings.tell((index, document, object), Id::DuplicateObject, "metadata.name", message, hint);
        }
        match parsed.object {
            Some(Object::Policy(policy)) => {
                let id = policy.id().clone();
                // What is checked is newer than what the cluster has.
                let newer = document.role == Role::Checked || items.get(&id).is_none_or(|item| !item.is_checked());
                if newer {
                    items.insert(id, Item { index, document, policy: Arc::new(policy) });
                }
            }
            object => cluster_object(&mut cluster, Parsed { object, issues: Vec::new() }),
        }
    }
    for (index, kinds) in skipped.into_values() {
        let Some(document) = documents.get(index) else { continue };
        let list: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let total: usize = kinds.values().sum();
        let objects = if total == 1 { "object that is no policy is" } else { "objects that are no policies are" };
        let message = format!("{total} {objects} passed over: {}", list.join(", "));
        let hint = "nothing; of workloads, labels and ports of the pods are looked at";
        findings.tell((index, document, String::new()), Id::OtherKind, "", message, hint);
    }
    let mut items: Vec<Item<'a>> = items.into_values().collect();
    items.sort_by_key(|item| item.index);
    Read { items, cluster }
}

fn cluster_object(cluster: &mut Cluster, parsed: Parsed) {
    if let Some(object) = parsed.object {
        cluster.apply(Event::Upsert(object));
    }
}

/// Where an object was before, if that counts.
fn duplicate(
    seen: &mut BTreeMap<String, (usize, Role)>,
    index: usize,
    document: &Document,
    parsed: &Parsed,
    documents: &[Document],
) -> Option<String> {
    parsed.object.as_ref()?;
    let value = |path: &[&str]| {
        path.iter().try_fold(&document.value, |value, name| value.get(name)).and_then(Value::as_str).unwrap_or_default()
    };
    let namespace = value(&["metadata", "namespace"]);
    let namespace = if namespace.is_empty() { "default" } else { namespace };
    let key =
        format!("{}\n{}\n{namespace}\n{}", value(&["apiVersion"]), value(&["kind"]), value(&["metadata", "name"]));
    let (before, role) = seen.insert(key, (index, document.role))?;
    let before = documents.get(before).filter(|_| role == Role::Checked && document.role == Role::Checked)?;
    let file = if before.file == document.file { "this file".to_owned() } else { before.file.clone() };
    Some(format!("{file}, line {},", before.line))
}

/// What is known of a kind.
enum Kind {
    /// It is read; or it is not even told, which the parser says.
    Known,
    /// Another version of it is read.
    Version,
    /// It is a policy.
    Policy,
    Other,
}

fn kind(value: &Value) -> Kind {
    let text = |name| value.get(name).and_then(Value::as_str);
    let (Some(version), Some(kind)) = (text("apiVersion"), text("kind")) else { return Kind::Known };
    if parse::is_known(version, kind) {
        return Kind::Known;
    }
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let of_calico = group.ends_with("projectcalico.org");
    if parse::is_known_kind(group, kind) || (kind == "NetworkPolicy" && group == "extensions") {
        Kind::Version
    } else if kind.ends_with("Policy")
        && (POLICY_GROUPS.contains(&group) || kind.ends_with("NetworkPolicy") || of_calico)
    {
        Kind::Policy
    } else {
        Kind::Other
    }
}

/// Tells of an object that is not read.
fn other<'a>(
    document: &'a Document,
    index: usize,
    object: &str,
    findings: &mut Findings,
    skipped: &mut BTreeMap<&'a str, (usize, BTreeMap<String, usize>)>,
) {
    let text = |name| document.value.get(name).and_then(Value::as_str).unwrap_or_default();
    let about = (index, document, object.to_owned());
    match kind(&document.value) {
        Kind::Known => {}
        Kind::Version => {
            let message = format!(
                "{} is not a version of {} that is read; nothing of the object is in force",
                quoted(text("apiVersion")),
                text("kind")
            );
            let hint = match parse::versions(text("kind")).as_slice() {
                [] => "write it in a version that is read".to_owned(),
                versions => format!("write it as {}", versions.join(" or ")),
            };
            findings.tell(about, Id::UnknownVersion, "apiVersion", message, hint);
        }
        Kind::Policy => {
            let message = format!(
                "policies of the kind {} are not read; nothing of the object is in force",
                quoted(text("kind"))
            );
            let hint = "write it as NetworkPolicy, ClusterNetworkPolicy or CiliumNetworkPolicy";
            findings.tell(about, Id::UnknownPolicyKind, "kind", message, hint);
        }
        Kind::Other if document.role == Role::Checked => {
            let file = skipped.entry(&document.file).or_insert((index, BTreeMap::new()));
            let kinds = &mut file.1;
            let kind: String = text("kind").chars().take(60).collect();
            // A file may have any number of kinds.
            let kind = if kinds.len() < 50 || kinds.contains_key(&kind) { kind } else { "others".to_owned() };
            *kinds.entry(kind).or_insert(0) += 1;
        }
        Kind::Other => {}
    }
}

fn quoted(text: &str) -> String {
    parse::cursor::quoted(text)
}

/// The object, as far as it can be told: `NetworkPolicy shop/db`.
fn name_of(value: &Value) -> String {
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or("object");
    let text = |name: &str| value.get("metadata")?.get(name)?.as_str();
    let cut = |text: &str| text.chars().take(253).collect::<String>();
    let scoped = matches!(
        kind,
        "NetworkPolicy" | "ApplicationNetworkPolicy" | "CiliumNetworkPolicy" | "Pod" | "Service" | "EndpointSlice"
    );
    let namespace = text("namespace").filter(|name| !name.is_empty()).or_else(|| scoped.then_some("default"));
    match (namespace, text("name")) {
        (Some(namespace), Some(name)) => format!("{} {}/{}", cut(kind), cut(namespace), cut(name)),
        (None, Some(name)) => format!("{} {}", cut(kind), cut(name)),
        (_, None) => cut(kind),
    }
}

/// What the parser found.
fn issues(about: (usize, &Document, &str), parsed: &Parsed, findings: &mut Findings) {
    let (index, document, object) = about;
    for issue in &parsed.issues {
        let about = (index, document, object.to_owned());
        let (id, hint) = match issue.severity {
            parse::Severity::Refused => {
                (Id::Invalid, "mend it: the API server refuses the object, and the part grants nothing here")
            }
            parse::Severity::Unusable => {
                (Id::Unusable, "write it without: an allow with it grants nothing, a deny with it denies everything")
            }
            parse::Severity::Warning if issue.message.starts_with(parse::NOT_IN_FORCE) => {
                (Id::RuleNotInForce, "name the direction in policyTypes, or remove the rules")
            }
            parse::Severity::Warning => (Id::Doubtful, "see whether this is meant, and write it as it is used"),
        };
        findings.tell(about, id, &issue.path, issue.message.clone(), hint);
    }
}

/// A pod as a workload makes them.
fn template(value: &Value) -> Option<Value> {
    let kind = value.get("kind")?.as_str()?;
    let spec = value.get("spec")?;
    let template = match kind {
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" | "Rollout" => {
            spec.get("template")?
        }
        "CronJob" => spec.get("jobTemplate")?.get("spec")?.get("template")?,
        _ => return None,
    };
    let metadata = value.get("metadata")?;
    let labels = template.get("metadata").and_then(|metadata| metadata.get("labels")).cloned().unwrap_or_default();
    let name = format!("{}-{}", kind.to_lowercase(), metadata.get("name")?.as_str()?);
    let namespace = metadata.get("namespace").cloned().unwrap_or_default();
    Some(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": labels },
        "spec": template.get("spec").cloned().unwrap_or_default(),
    }))
}
