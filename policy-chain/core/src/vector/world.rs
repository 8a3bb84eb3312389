//! The cluster of a vector: what a fixture and the steps make of it, as events for whoever judges.

mod services;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::schema::{Addresses, Deleted, Endpoint, External, Family, Fixture, PodSpec, Step};
use crate::cluster::{
    CidrGroup, Cluster, Created, Event, Labels, NamedPort, Namespace, Node, Object, ObjectId, ObjectKey, Pod, PodKey,
    PodTemplate,
};
use crate::model::{PolicyKind, PolicyRef, Text};
use crate::parse::{self, Issue};

pub use services::Behind;

/// What cannot be done as the file says: the file is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Fault {
    /// Where in the file.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

impl Fault {
    pub(super) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

/// The cluster of a vector.
#[derive(Debug)]
pub struct World {
    cluster: Cluster,
    externals: BTreeMap<Text, External>,
    services: BTreeMap<ObjectKey, services::Made>,
    allocated: u32,
    now: u64,
    steps: i64,
    events: Vec<Event>,
    issues: Vec<(String, Issue)>,
}

/// Who is at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    /// Its address.
    pub address: IpAddr,
    /// The pod, if it is one with a gate.
    pub pod: Option<Arc<Pod>>,
    /// The node, if it is one, or a pod that shares its network.
    pub node: Option<Text>,
}

impl World {
    /// The cluster before the first step.
    #[must_use]
    pub fn new(fixture: &Fixture) -> Self {
        let mut world = Self {
            cluster: Cluster::default(),
            externals: fixture.externals.clone(),
            services: BTreeMap::new(),
            allocated: 0,
            now: 0,
            steps: 0,
            events: Vec::new(),
            issues: Vec::new(),
        };
        for (name, labels) in &fixture.namespaces {
            world.namespace(name, labels);
        }
        for (name, node) in &fixture.nodes {
            let addresses = node.addresses.iter().collect();
            world.upsert(Object::Node(Node { name: Arc::clone(name), labels: node.labels.clone(), addresses }));
        }
        for (name, group) in &fixture.cidr_groups {
            let (labels, cidrs) = (group.labels.clone(), Ok(group.cidrs.clone()));
            world.upsert(Object::CidrGroup(CidrGroup { name: Arc::clone(name), labels, cidrs }));
        }
        for (key, pod) in &fixture.pods {
            world.pod(key, pod);
        }
        for (key, service) in &fixture.services {
            world.service(key, service);
        }
        for external in fixture.externals.values() {
            for name in &external.names {
                let addresses = external.addresses.iter().collect();
                world.event(Event::Resolved { name: name.clone(), addresses, until: None });
            }
        }
        world.follow();
        world
    }

    /// The cluster as it is now.
    #[must_use]
    pub const fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// What happened since this was last asked.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// The faults of the objects that were applied: which object, and what.
    #[must_use]
    pub fn issues(&self) -> &[(String, Issue)] {
        &self.issues
    }

    /// Does what a step says, in the order that the schema gives.
    ///
    /// # Errors
    /// It names something that is not there, or applies something that is no object.
    pub fn step(&mut self, step: &Step) -> Result<(), Fault> {
        self.steps += 1;
        if step.advance_seconds > 0 {
            self.now = self.now.saturating_add(step.advance_seconds);
            self.event(Event::Time(self.now));
        }
        for (index, object) in step.apply.iter().enumerate() {
            self.apply(object, &format!("{}.apply[{index}]", step.path))?;
        }
        for (index, deleted) in step.delete.iter().enumerate() {
            self.delete(deleted, &format!("{}.delete[{index}]", step.path))?;
        }
        for (name, labels) in &step.set_namespace_labels {
            self.namespace(name, labels);
        }
        for (key, labels) in &step.set_pod_labels {
            let Some(pod) = self.cluster.pods.get(key) else {
                return Err(Fault::new(format!("{}.setPodLabels", step.path), format!("there is no pod {key}")));
            };
            let pod = Pod { labels: labels.clone(), ..Pod::clone(pod) };
            self.upsert(Object::Pod(pod));
        }
        for (name, labels) in &step.create_namespace {
            self.namespace(name, labels);
        }
        for name in &step.delete_namespace {
            self.delete_namespace(name);
        }
        for (key, pod) in &step.create_pod {
            self.pod(key, pod);
        }
        for key in &step.delete_pod {
            if !self.cluster.pods.contains_key(key) {
                return Err(Fault::new(format!("{}.deletePod", step.path), format!("there is no pod {key}")));
            }
            self.event(Event::Delete(ObjectId::Pod(key.clone())));
        }
        for (name, resolution) in &step.resolve {
            let until = resolution.ttl.map(|ttl| self.now.saturating_add(ttl));
            let addresses = resolution.addresses.clone();
            self.event(Event::Resolved { name: name.clone(), addresses, until });
        }
        self.follow();
        Ok(())
    }

    fn event(&mut self, event: Event) {
        self.cluster.apply(event.clone());
        self.events.push(event);
    }

    fn upsert(&mut self, object: Object) {
        self.event(Event::Upsert(object));
    }

    fn namespace(&mut self, name: &Text, labels: &Labels) {
        self.upsert(Object::Namespace(Namespace { name: Arc::clone(name), labels: labels.clone() }));
    }

    fn pod(&mut self, key: &PodKey, spec: &PodSpec) {
        let named = spec.ports.iter().filter_map(|port| {
            let name = Arc::clone(port.name.as_ref()?);
            Some(NamedPort { name, protocol: port.protocol, port: port.port })
        });
        let own = || spec.addresses.iter().collect();
        let node = spec.node.as_ref().filter(|_| spec.host_network && spec.addresses == Addresses::default());
        let of_node = node.and_then(|name| self.cluster.nodes.get(name));
        let addresses = of_node.map_or_else(own, |node| node.addresses.clone().into());
        self.upsert(Object::Pod(Pod {
            key: key.clone(),
            uid: "".into(),
            created: Created::at(self.steps),
            labels: spec.labels.clone(),
            template: Arc::new(PodTemplate {
                service_account: spec.service_account.clone().unwrap_or_else(|| Text::from("default")),
                ports: named.collect(),
                visible: spec.visible.clone(),
            }),
            node: spec.node.clone(),
            host_network: spec.host_network,
            finished: spec.finished,
            addresses,
            ready: spec.ready,
            audit: spec.audit,
        }));
    }

    fn apply(&mut self, value: &serde_json::Value, path: &str) -> Result<(), Fault> {
        let value = self.given_addresses(value);
        let parsed = parse::object(&value);
        let Some(object) = parsed.object else {
            let issues: Vec<String> = parsed.issues.iter().map(ToString::to_string).collect();
            return Err(Fault::new(path, format!("this is no object that can be applied: {}", issues.join("; "))));
        };
        let what = name_of(&object);
        self.issues.retain(|(of, _)| *of != what);
        self.issues.extend(parsed.issues.into_iter().map(|issue| (what.clone(), issue)));
        if let Object::Service(service) = &object {
            self.applied_service(service, &value);
        }
        self.upsert(object);
        Ok(())
    }

    fn delete(&mut self, deleted: &Deleted, path: &str) -> Result<(), Fault> {
        let ids = ids(deleted, path)?;
        let known: Vec<ObjectId> = ids.into_iter().filter(|id| self.knows(id)).collect();
        if known.is_empty() {
            let name = match &deleted.namespace {
                Some(namespace) => format!("{namespace}/{}", deleted.name),
                None => deleted.name.to_string(),
            };
            return Err(Fault::new(path, format!("there is no {} {name}", deleted.kind)));
        }
        for id in known {
            match &id {
                ObjectId::Namespace(name) => self.delete_namespace(name),
                ObjectId::Service(key) => {
                    self.services.remove(key);
                    self.event(Event::Delete(id));
                }
                _ => self.event(Event::Delete(id)),
            }
        }
        Ok(())
    }

    fn knows(&self, id: &ObjectId) -> bool {
        match id {
            ObjectId::Namespace(name) => self.cluster.namespaces.contains_key(name),
            ObjectId::Pod(key) => self.cluster.pods.contains_key(key),
            ObjectId::Node(name) => self.cluster.nodes.contains_key(name),
            ObjectId::Service(key) => self.cluster.services.contains_key(key),
            ObjectId::EndpointSlice(key) => self.cluster.slices.contains_key(key),
            ObjectId::CidrGroup(name) => self.cluster.cidr_groups.contains_key(name),
            ObjectId::Policy(id) => self.cluster.policies.contains_key(id),
        }
    }

    /// Deletes a namespace as the API server does: what is in it first.
    fn delete_namespace(&mut self, name: &Text) {
        let cluster = &self.cluster;
        let within = |namespace: &Text| namespace == name;
        let pods = cluster.pods.keys().filter(|key| within(&key.namespace)).cloned().map(ObjectId::Pod);
        let services = cluster.services.keys().filter(|key| within(&key.namespace)).cloned().map(ObjectId::Service);
        let slices = cluster.slices.keys().filter(|key| within(&key.namespace)).cloned().map(ObjectId::EndpointSlice);
        let policies = cluster
            .policies
            .keys()
            .filter(|id| id.namespace.as_ref().is_some_and(within))
            .cloned()
            .map(ObjectId::Policy);
        let ids: Vec<ObjectId> = pods.chain(services).chain(slices).chain(policies).collect();
        self.services.retain(|key, _| !within(&key.namespace));
        for id in ids {
            self.event(Event::Delete(id));
        }
        self.event(Event::Delete(ObjectId::Namespace(Arc::clone(name))));
    }

    /// Who an endpoint is, in a family.
    ///
    /// # Errors
    /// There is no such endpoint, or it has no address of the family.
    pub fn party(&self, endpoint: &Endpoint, family: Family, path: &str) -> Result<Party, Fault> {
        let without = || Fault::new(path, format!("{endpoint} has no {} address", family.as_str()));
        let unknown = |what: &str| Fault::new(path, format!("there is no {what} {endpoint}"));
        let in_family = |address: &IpAddr| Family::of(*address) == family;
        match endpoint {
            Endpoint::Pod(key) => {
                let pod = self.cluster.pods.get(key).ok_or_else(|| unknown("pod"))?;
                let address = pod.addresses.iter().find(in_family).ok_or_else(without)?;
                if pod.host_network {
                    return Ok(Party { address, pod: None, node: pod.node.clone() });
                }
                Ok(Party { address, pod: Some(Arc::clone(pod)), node: None })
            }
            Endpoint::Node(name) => {
                let node = self.cluster.nodes.get(name).ok_or_else(|| unknown("node"))?;
                let address = node.addresses.iter().copied().find(in_family).ok_or_else(without)?;
                Ok(Party { address, pod: None, node: Some(Arc::clone(name)) })
            }
            Endpoint::External(name) => {
                let external = self.externals.get(name).ok_or_else(|| unknown("endpoint among the externals:"))?;
                let address = external.addresses.of(family).ok_or_else(without)?;
                Ok(Party { address, pod: None, node: None })
            }
            Endpoint::Address(address) if Family::of(*address) != family => Err(without()),
            Endpoint::Address(address) => Ok(self.holder(*address)),
        }
    }

    /// Who has an address: the youngest live pod that claims it, else the node.
    #[must_use]
    pub fn holder(&self, address: IpAddr) -> Party {
        if let Some(pod) = pod_at(&self.cluster, address) {
            return Party { address, pod: Some(Arc::clone(pod)), node: None };
        }
        let node = self.cluster.nodes.values().find(|node| node.addresses.contains(&address));
        Party { address, pod: None, node: node.map(|node| Arc::clone(&node.name)) }
    }
}

/// The youngest live pod that claims an address.
pub(super) fn pod_at(cluster: &Cluster, address: IpAddr) -> Option<&Arc<Pod>> {
    let live = |pod: &&Arc<Pod>| !pod.host_network && !pod.finished && pod.addresses.contains(&address);
    let pods = cluster.pods.values().filter(live);
    pods.max_by(|a, b| (&a.created, &a.key).cmp(&(&b.created, &b.key)))
}

/// How messages call an object.
fn name_of(object: &Object) -> String {
    let key = |kind: &str, key: &ObjectKey| format!("{kind} {}/{}", key.namespace, key.name);
    match object {
        Object::Namespace(namespace) => format!("Namespace {}", namespace.name),
        Object::Pod(pod) => format!("Pod {}", pod.key),
        Object::Node(node) => format!("Node {}", node.name),
        Object::Service(service) => key("Service", &service.key),
        Object::EndpointSlice(slice) => key("EndpointSlice", &slice.key),
        Object::CidrGroup(group) => format!("CiliumCIDRGroup {}", group.name),
        Object::Policy(policy) => policy.id().to_string(),
    }
}

/// Which objects are meant: one, or one of each API that has the kind.
fn ids(deleted: &Deleted, path: &str) -> Result<Vec<ObjectId>, Fault> {
    let name = Arc::clone(&deleted.name);
    let namespace = || deleted.namespace.clone().unwrap_or_else(|| Text::from("default"));
    let key = |name: &Text| ObjectKey { namespace: namespace(), name: Arc::clone(name) };
    let policy = |kind: PolicyKind, namespaced: bool| {
        let namespace = namespaced.then(namespace);
        ObjectId::Policy(PolicyRef { kind, namespace, name: Arc::clone(&deleted.name) })
    };
    let aws = deleted.api_version.as_deref().map(|version| version.starts_with("networking.k8s.aws/"));
    Ok(match deleted.kind.as_ref() {
        "Namespace" => vec![ObjectId::Namespace(name)],
        "Pod" => vec![ObjectId::Pod(PodKey { namespace: namespace(), name })],
        "Node" => vec![ObjectId::Node(name)],
        "Service" => vec![ObjectId::Service(key(&name))],
        "EndpointSlice" => vec![ObjectId::EndpointSlice(key(&name))],
        "CiliumCIDRGroup" => vec![ObjectId::CidrGroup(name)],
        "NetworkPolicy" => vec![policy(PolicyKind::NetworkPolicy, true)],
        "ApplicationNetworkPolicy" => vec![policy(PolicyKind::AwsApplicationNetworkPolicy, true)],
        "CiliumNetworkPolicy" => vec![policy(PolicyKind::CiliumNetworkPolicy, true)],
        "CiliumClusterwideNetworkPolicy" => vec![policy(PolicyKind::CiliumClusterwideNetworkPolicy, false)],
        "AdminNetworkPolicy" => vec![policy(PolicyKind::AdminNetworkPolicy, false)],
        "BaselineAdminNetworkPolicy" => vec![policy(PolicyKind::BaselineAdminNetworkPolicy, false)],
        "ClusterNetworkPolicy" => {
            let kinds = [PolicyKind::ClusterNetworkPolicy, PolicyKind::AwsClusterNetworkPolicy];
            let wanted = kinds
                .into_iter()
                .filter(|kind| aws.is_none_or(|aws| aws == (*kind == PolicyKind::AwsClusterNetworkPolicy)));
            wanted.map(|kind| policy(kind, false)).collect()
        }
        kind => return Err(Fault::new(path, format!("{kind:?} is not a kind that is known"))),
    })
}
