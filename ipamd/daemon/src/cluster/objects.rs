//! The Kubernetes objects that ipamd reads, and what they mean: pure.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sluice_contract::id::{SecurityGroupId, SubnetId};
use sluice_ipamd_core::cloud::EniConfig;

use super::quantity::whole;

/// The label that goes before all else (VPC CNI).
const EXTERNAL_LABEL: &str = "vpc.amazonaws.com/externalEniConfig";
/// The ENIConfig of nodes that name none.
const DEFAULT_NAME: &str = "default";
/// Security groups of an ENI (EC2 quota).
const MOST_GROUPS: usize = 16;

/// Pods that a node may take; what is more is no number of pods.
const MOST_PODS: u64 = 10_000;

/// Nodes of a text (mappings, sequences and scalars), lists of a whole cluster included.
const MOST_NODES: usize = 200_000;
/// How deep a text may be nested.
const MOST_DEPTH: usize = 64;

/// The annotation by which a pod of the API is that of a static pod: the UID that this has on its node.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// The ConfigMap that sets ipamd's variables on groups of nodes.
pub const OVERRIDES_NAME: &str = "sluice-ipamd";
/// The ConfigMap by which the elected node tells all others what it has asked EC2 for.
pub const SHARED_NAME: &str = "sluice-vpc";
/// Its key with the private networks that the VPC's route tables lead to: IPv4 CIDRs with commas between them.
pub const ROUTES_KEY: &str = "privateNetworks";

/// The kinds that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sort {
    /// `Node`.
    Node,
    /// `Pod`.
    Pod,
    /// `ConfigMap`.
    ConfigMap,
    /// `ENIConfig`.
    EniConfig,
    /// The ConfigMap [`SHARED_NAME`], which is watched apart from the other one.
    Shared,
}

impl Sort {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Node, Self::Pod, Self::ConfigMap, Self::EniConfig, Self::Shared];

    /// The kind of this name.
    #[must_use]
    pub fn of(kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|sort| sort.name() == kind)
    }

    /// Its name (`kind`).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::ConfigMap | Self::Shared => "ConfigMap",
            Self::EniConfig => "ENIConfig",
        }
    }
}

impl fmt::Display for Sort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An object, as far as it is read.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Object {
    /// `kind`; the API's lists leave it out.
    #[serde(default)]
    pub kind: String,
    /// `metadata`.
    #[serde(default)]
    pub metadata: Metadata,
    /// `spec` of an ENIConfig, a Node or a Pod.
    #[serde(default)]
    pub spec: Spec,
    /// `status` of a Node or a Pod.
    #[serde(default)]
    pub status: Status,
    /// `data` of a ConfigMap.
    #[serde(default)]
    pub data: BTreeMap<String, String>,
}

impl Object {
    /// Reads an object of a kind.
    ///
    /// # Errors
    /// A field is of another type.
    pub fn read(sort: Sort, value: serde_json::Value) -> Result<Self, serde_json::Error> {
        let read: Self = serde_json::from_value(value)?;
        Ok(Self { kind: sort.name().to_owned(), ..read })
    }

    /// Of which kind it is.
    #[must_use]
    pub fn sort(&self) -> Option<Sort> {
        Sort::of(&self.kind)
    }
}

/// `metadata`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Metadata {
    /// `name`.
    #[serde(default)]
    pub name: String,
    /// `namespace`.
    #[serde(default)]
    pub namespace: String,
    /// `uid`.
    #[serde(default)]
    pub uid: String,
    /// `deletionTimestamp`: it is about to go.
    #[serde(default, rename = "deletionTimestamp")]
    pub deletion_timestamp: Option<String>,
    /// `labels`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `annotations`.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl Metadata {
    /// The UID that a pod's sandbox has: the API's pod for a static one has another than the kubelet gives its sandbox.
    #[must_use]
    pub fn sandbox_uid(&self) -> Option<String> {
        let uid = self.annotations.get(MIRROR_ANNOTATION).unwrap_or(&self.uid);
        Some(uid.clone()).filter(|uid| !uid.is_empty())
    }
}

/// `status` of a Node or a Pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// `phase`.
    #[serde(default)]
    pub phase: String,
    /// `podIP`.
    #[serde(default, rename = "podIP")]
    pub pod_ip: String,
    /// `capacity` of a Node.
    #[serde(default)]
    pub capacity: Option<Capacity>,
}

/// `status.capacity` of a Node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Capacity {
    /// `pods`, a quantity, in whatever form it is there.
    #[serde(default)]
    pub pods: Option<serde_json::Value>,
}

/// `spec` of an ENIConfig (`crd.k8s.amazonaws.com/v1alpha1`), of a Node, or of a Pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Spec {
    /// `unschedulable` of a Node.
    #[serde(default)]
    pub unschedulable: bool,
    /// `subnet`.
    #[serde(default)]
    pub subnet: String,
    /// `securityGroups`.
    #[serde(default, rename = "securityGroups")]
    pub security_groups: Vec<String>,
    /// `nodeName` of a Pod.
    #[serde(default, rename = "nodeName")]
    pub node_name: String,
    /// `hostNetwork` of a Pod.
    #[serde(default, rename = "hostNetwork")]
    pub host_network: bool,
    /// `containers` of a Pod.
    #[serde(default)]
    pub containers: Vec<Container>,
}

impl Spec {
    /// Whether a container of a Pod asks for a resource of this name, or of one that begins so.
    #[must_use]
    pub fn asks_for(&self, resource: &str) -> bool {
        let limits = self.containers.iter().filter_map(|container| container.resources.as_ref()?.limits.as_ref());
        limits.flat_map(BTreeMap::keys).any(|name| name.starts_with(resource))
    }
}

/// An element of `containers` of a Pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Container {
    /// `resources`.
    #[serde(default)]
    pub resources: Option<Resources>,
}

/// `resources` of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Resources {
    /// `limits`: of what no more than how much.
    #[serde(default)]
    pub limits: Option<BTreeMap<String, serde_json::Value>>,
}

/// Why a text cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is not YAML, or more than is read.
    #[error("it is no YAML that can be read: {0}")]
    Yaml(String),
    /// An object has a field of another type.
    #[error("{kind} {name}: {reason}")]
    Object {
        /// `kind`.
        kind: String,
        /// `metadata.name`.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

/// The documents of a text of YAML or JSON, with bounds on their size and depth.
fn documents<T: DeserializeOwned>(text: &str) -> Result<Vec<T>, Unreadable> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MOST_DEPTH,
            max_nodes: MOST_NODES,
            max_events: 3 * MOST_NODES,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MOST_NODES },
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| Unreadable::Yaml(error.to_string().chars().take(200).collect()))
}

/// The one document of a text of YAML or JSON.
///
/// # Errors
/// [`Unreadable`]: it is none, or another than is wanted.
pub(super) fn yaml<T: DeserializeOwned>(text: &str) -> Result<T, Unreadable> {
    let mut all = documents(text)?;
    match (all.pop(), all.is_empty()) {
        (Some(one), true) => Ok(one),
        _ => Err(Unreadable::Yaml("it must be one document".to_owned())),
    }
}

/// The objects of a text of YAML or JSON that are of the kinds of [`Sort`]: one document or more, each an object or a `List`. Objects of other
/// kinds are passed over, so that a directory can be shared with whoever reads those.
///
/// # Errors
/// [`Unreadable`]; nothing of the text is used then.
pub fn read(text: &str) -> Result<Vec<Object>, Unreadable> {
    let documents: Vec<serde_json::Value> = documents(text)?;
    let mut objects = Vec::new();
    for document in documents {
        let items = match document.get("items").and_then(serde_json::Value::as_array) {
            Some(items) => items.clone(),
            None => vec![document],
        };
        for item in items {
            let word = |value: Option<&serde_json::Value>| -> String {
                value.and_then(serde_json::Value::as_str).unwrap_or_default().chars().take(80).collect()
            };
            let kind = word(item.get("kind"));
            let Some(sort) = Sort::of(&kind) else { continue };
            let name = word(item.pointer("/metadata/name"));
            let object = Object::read(sort, item).map_err(|error| {
                let reason = error.to_string().chars().take(200).collect();
                Unreadable::Object { kind, name, reason }
            })?;
            objects.push(object);
        }
    }
    Ok(objects)
}

/// How a node names its ENIConfig.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Naming {
    /// `ENI_CONFIG_ANNOTATION_DEF`.
    pub annotation: String,
    /// `ENI_CONFIG_LABEL_DEF`.
    pub label: String,
}

/// Why a node has no ENIConfig.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoEniConfig {
    /// The node is not there.
    #[error("there is no Node {0}")]
    NoNode(String),
    /// What it names is not there.
    #[error("Node {node} names the ENIConfig {name}, which is not there")]
    Missing {
        /// The node.
        node: String,
        /// The ENIConfig.
        name: String,
    },
    /// A field makes no sense.
    #[error("{field} of ENIConfig {name} is {value:?}: {why}")]
    Invalid {
        /// The ENIConfig.
        name: String,
        /// The field.
        field: &'static str,
        /// What it says.
        value: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Whether pods may be scheduled to a node; of one that is not there nothing else is known.
pub fn is_schedulable<'o>(objects: impl IntoIterator<Item = &'o Object>, node: &str) -> bool {
    !objects
        .into_iter()
        .any(|object| object.kind == "Node" && object.metadata.name == node && object.spec.unschedulable)
}

/// How many pods a node's kubelet takes (`status.capacity.pods`), those of the host's network among them; none where its object is not
/// there or does not say so.
///
/// # Errors
/// What it says instead of a whole number that can be: it is cut where it is long.
pub fn max_pods<'o>(objects: impl IntoIterator<Item = &'o Object>, node: &str) -> Option<Result<u32, String>> {
    let found = objects.into_iter().find(|object| object.kind == "Node" && object.metadata.name == node)?;
    let pods = found.status.capacity.as_ref()?.pods.as_ref()?;
    let most = whole(pods).filter(|pods| *pods <= MOST_PODS).and_then(|pods| u32::try_from(pods).ok());
    Some(most.ok_or_else(|| pods.to_string().chars().take(80).collect()))
}

/// The ENIConfig of a node: by the label of whoever assigns them from outside, else by the annotation, else by the label that
/// the settings name, else `default` (reference: VPC CNI's `pkg/eniconfig`).
///
/// # Errors
/// [`NoEniConfig`] says what is missing or wrong.
pub fn eni_config(objects: &[Object], node: &str, naming: &Naming) -> Result<EniConfig, NoEniConfig> {
    let find =
        |kind: &str, name: &str| objects.iter().find(|object| object.kind == kind && object.metadata.name == name);
    let found = find("Node", node).ok_or_else(|| NoEniConfig::NoNode(node.to_owned()))?;
    let Metadata { labels, annotations, .. } = &found.metadata;
    let names = [labels.get(EXTERNAL_LABEL), annotations.get(&naming.annotation), labels.get(&naming.label)];
    let named = names.into_iter().flatten().find(|name| !name.is_empty());
    let name = named.map_or(DEFAULT_NAME, String::as_str);
    let missing = || NoEniConfig::Missing { node: node.to_owned(), name: name.to_owned() };
    let Spec { subnet, security_groups, .. } = &find("ENIConfig", name).ok_or_else(missing)?.spec;
    let invalid = |field, value: &str, why: String| {
        let value = value.chars().take(80).collect();
        NoEniConfig::Invalid { name: name.to_owned(), field, value, why }
    };
    if security_groups.len() > MOST_GROUPS {
        let count = security_groups.len().to_string();
        return Err(invalid("spec.securityGroups", &count, format!("an ENI has {MOST_GROUPS} at most")));
    }
    let groups = security_groups.iter().map(|group| {
        SecurityGroupId::new(group.as_str()).map_err(|error| invalid("spec.securityGroups", group, error.to_string()))
    });
    Ok(EniConfig {
        name: name.to_owned(),
        subnet: SubnetId::new(subnet.as_str()).map_err(|error| invalid("spec.subnet", subnet, error.to_string()))?,
        security_groups: groups.collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests {
    use super::*;

    fn objects(node: &str) -> Vec<Object> {
        let config = |name: &str, n: u8| {
            format!(
                "{{kind: ENIConfig, metadata: {{name: {name}}}, spec: {{subnet: subnet-0000000{n}, securityGroups: [sg-0000000{n}]}}}}"
            )
        };
        let texts = [
            format!("{{kind: Node, metadata: {{name: n1, {node}}}, spec: {{podCIDR: 10.0.0.0/24}}}}"),
            config("default", 1),
            config("zone-a", 2),
            config("annotated", 3),
            config("external", 4),
        ];
        read(&texts.join("\n---\n")).unwrap()
    }

    fn naming() -> Naming {
        let key = "k8s.amazonaws.com/eniConfig".to_owned();
        Naming { annotation: key, label: "topology.kubernetes.io/zone".into() }
    }

    #[test]
    fn the_most_special_name_goes_first() {
        let name = |node: &str| eni_config(&objects(node), "n1", &naming()).unwrap().name;
        assert_eq!(name("labels: {}"), "default");
        let zone = "topology.kubernetes.io/zone: zone-a";
        assert_eq!(name(&format!("labels: {{{zone}}}")), "zone-a");
        let annotation = "annotations: {k8s.amazonaws.com/eniConfig: annotated}";
        assert_eq!(name(&format!("labels: {{{zone}}}, {annotation}")), "annotated");
        let external = "vpc.amazonaws.com/externalEniConfig: external";
        assert_eq!(name(&format!("labels: {{{zone}, {external}}}, {annotation}")), "external");
    }

    #[test]
    fn a_cordoned_node_is_told_from_others() {
        let mut all = objects("labels: {}");
        assert!(is_schedulable(&all, "n1"));
        all[0].spec.unschedulable = true;
        assert!(!is_schedulable(&all, "n1") && is_schedulable(&all, "n2"));
    }

    #[test]
    fn how_many_pods_a_node_takes_is_read_from_its_capacity() {
        let pods = |capacity: &str| {
            let text = format!("{{kind: Node, metadata: {{name: n1}}, status: {{capacity: {capacity}}}}}");
            max_pods(&read(&text).unwrap(), "n1")
        };
        assert_eq!(pods("{cpu: '2', memory: 7931448Ki, pods: '29'}"), Some(Ok(29)));
        assert_eq!(pods("{pods: 110}"), Some(Ok(110)));
        assert_eq!(pods("{pods: '0.11k'}"), Some(Ok(110)));
        assert_eq!(pods("{pods: many}"), Some(Err("\"many\"".to_owned())));
        assert_eq!(pods("{pods: '1M'}"), Some(Err("\"1M\"".to_owned())), "no node takes so many");
        assert_eq!(pods("{pods: [29]}"), Some(Err("[29]".to_owned())));
        for unsaid in ["{cpu: '2'}", "{pods: null}", "{}", "null"] {
            assert_eq!(pods(unsaid), None, "{unsaid}");
        }
        assert_eq!(
            max_pods(&read("{kind: Node, metadata: {name: n2}, status: {capacity: {pods: '29'}}}").unwrap(), "n1"),
            None
        );
    }

    #[test]
    fn lists_are_read_and_objects_of_others_are_passed_over() {
        let text = r#"{"kind": "List", "items": [
            {"kind": "Node", "metadata": {"name": "n1"}, "spec": {"unschedulable": true}},
            {"kind": "Service", "spec": {"subnet": ["of another type"]}}]}"#;
        let objects = read(text).unwrap();
        assert_eq!((objects.len(), is_schedulable(&objects, "n1")), (1, false));
        let error = read("{kind: ENIConfig, metadata: {name: a}, spec: {subnet: [1]}}").unwrap_err().to_string();
        assert!(error.starts_with("ENIConfig a: invalid type: sequence, expected a string"), "{error}");
        assert!(read("kind: [").unwrap_err().to_string().starts_with("it is no YAML that can be read: "));
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(read(&deep).is_err());
    }

    #[test]
    fn what_is_missing_or_wrong_is_said() {
        let config = eni_config(&objects("labels: {}"), "n1", &naming()).unwrap();
        assert_eq!((config.subnet.as_str(), config.security_groups[0].as_str()), ("subnet-00000001", "sg-00000001"));
        assert_eq!(eni_config(&objects("labels: {}"), "n2", &naming()), Err(NoEniConfig::NoNode("n2".into())));
        let error = eni_config(&objects("labels: {topology.kubernetes.io/zone: zone-b}"), "n1", &naming()).unwrap_err();
        assert_eq!(error.to_string(), "Node n1 names the ENIConfig zone-b, which is not there");
        let mut wrong = objects("labels: {}");
        wrong[1].spec.subnet = "10.0.0.0/24".into();
        let error = eni_config(&wrong, "n1", &naming()).unwrap_err().to_string();
        assert!(error.starts_with("spec.subnet of ENIConfig default is \"10.0.0.0/24\": "), "{error}");
    }
}
