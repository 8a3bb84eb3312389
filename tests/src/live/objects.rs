//! The cluster as Kubernetes objects: what a test writes for an agent to read.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use sluice_policy_core::cluster::{
    CidrGroup, EndpointSlice, Event, Labels, NamedPort, Namespace, Node, Object, ObjectId, ObjectKey, Pod, PodKey,
    Service, VISIBILITY_ANNOTATION,
};
use sluice_policy_core::model::AUDIT_ANNOTATION;
use sluice_policy_core::parse;

/// The namespace of the policy whose generation says which step is in force.
pub const MARKER_NAMESPACE: &str = "sluice-live";
/// The name of that policy.
pub const MARKER: &str = "step";

/// The objects of a cluster, as they are to be written.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    objects: BTreeMap<ObjectId, Value>,
    generation: i64,
}

impl Objects {
    /// Takes in what happened. Policies have to be told by [`Self::apply`] before: a parsed policy cannot be written back.
    pub fn follow(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::Upsert(Object::Policy(_)) | Event::Resolved { .. } | Event::Time(_) => {}
                Event::Upsert(object) => {
                    if let Some((id, value)) = render(object) {
                        self.objects.insert(id, value);
                    }
                }
                Event::Delete(id) => {
                    self.objects.remove(id);
                }
            }
        }
    }

    /// Takes objects in as they stand in a file.
    pub fn apply(&mut self, values: &[Value]) {
        for value in values {
            if let Some(Object::Policy(policy)) = parse::object(value).object {
                self.objects.insert(ObjectId::Policy(policy.id().clone()), value.clone());
            }
        }
    }

    /// Forgets all of them; the marker goes on counting.
    pub fn clear(&mut self) {
        self.objects.clear();
    }

    /// The objects by id.
    #[must_use]
    pub const fn all(&self) -> &BTreeMap<ObjectId, Value> {
        &self.objects
    }

    /// The generation of the marker that is written next.
    pub const fn next(&mut self) -> i64 {
        self.generation += 1;
        self.generation
    }
}

/// The marker: a policy that concerns nobody, and whose generation says which step is in force.
#[must_use]
pub fn marker(generation: i64) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": MARKER, "namespace": MARKER_NAMESPACE, "generation": generation},
        "spec": {"podSelector": {"matchLabels": {"step": generation.to_string()}}, "policyTypes": ["Ingress"]}
    })
}

fn render(object: &Object) -> Option<(ObjectId, Value)> {
    Some(match object {
        Object::Namespace(namespace) => (ObjectId::Namespace(Arc::clone(&namespace.name)), namespace_value(namespace)),
        Object::Pod(pod) => (ObjectId::Pod(pod.key.clone()), pod_value(pod)),
        Object::Node(node) => (ObjectId::Node(Arc::clone(&node.name)), node_value(node)),
        Object::Service(service) => (ObjectId::Service(service.key.clone()), service_value(service)),
        Object::EndpointSlice(slice) => (ObjectId::EndpointSlice(slice.key.clone()), slice_value(slice)),
        Object::CidrGroup(group) => (ObjectId::CidrGroup(Arc::clone(&group.name)), group_value(group)),
        Object::Policy(_) => return None,
    })
}

fn labels(labels: &Labels) -> Value {
    labels.iter().map(|(name, value)| (name.to_string(), Value::from(value))).collect::<Map<_, _>>().into()
}

fn key(key: &ObjectKey, of: &Value) -> Value {
    json!({"name": &*key.name, "namespace": &*key.namespace, "labels": of})
}

fn namespace_value(namespace: &Namespace) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": &*namespace.name, "labels": labels(&namespace.labels)}})
}

/// A UID for a pod, in the form that the API server gives it: the same for the same pod.
#[must_use]
pub fn uid(pod: &PodKey) -> String {
    use sha2::Digest as _;
    let digest = sluice_contract::node::hex(&sha2::Sha256::digest(pod.to_string()));
    let part = |from: usize, to: usize| digest.get(from..to).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}

fn pod_value(pod: &Pod) -> Value {
    let port = |port: &NamedPort| json!({"name": &*port.name, "containerPort": port.port, "protocol": port.protocol.to_string()});
    let mut annotations = if pod.audit { json!({AUDIT_ANNOTATION: "true"}) } else { json!({}) };
    if let (Some(annotations), false) = (annotations.as_object_mut(), pod.template.visible.is_empty()) {
        let elements: Vec<String> = pod.template.visible.iter().map(ToString::to_string).collect();
        annotations.insert(VISIBILITY_ANNOTATION.into(), elements.join(",").into());
    }
    let ips: Vec<Value> = pod.addresses.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
    let created = pod.created.seconds().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    let created = created.map(|time| time.to_string());
    let ready = if pod.ready { "True" } else { "False" };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": &*pod.key.name, "namespace": &*pod.key.namespace, "labels": labels(&pod.labels),
            "uid": uid(&pod.key), "annotations": annotations, "creationTimestamp": created},
        "spec": {"nodeName": pod.node.as_deref(), "serviceAccountName": &*pod.template.service_account,
            "hostNetwork": pod.host_network,
            "containers": [{"name": "c", "ports": pod.template.ports.iter().map(port).collect::<Vec<_>>()}]},
        "status": {"phase": if pod.finished { "Succeeded" } else { "Running" }, "podIPs": ips,
            "conditions": [{"type": "Ready", "status": ready}]}
    })
}

fn node_value(node: &Node) -> Value {
    let addresses: Vec<Value> =
        node.addresses.iter().map(|ip| json!({"type": "InternalIP", "address": ip.to_string()})).collect();
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": &*node.name, "labels": labels(&node.labels)},
        "status": {"addresses": addresses}})
}

fn service_value(service: &Service) -> Value {
    let port = |port: &sluice_policy_core::cluster::ServicePort| {
        let mut value = json!({"name": &*port.name, "port": port.port, "protocol": port.protocol.to_string()});
        if let (Some(number), Some(map)) = (port.node_port, value.as_object_mut()) {
            map.insert("nodePort".into(), number.into());
        }
        value
    };
    let text: Vec<String> = service.addresses.iter().map(|address| address.to_string()).collect();
    // One ClusterIP of each family at most; what is beyond is external.
    let mut families = [None, None];
    let (mut inner, mut outer) = (Vec::new(), Vec::new());
    for (address, text) in service.addresses.iter().zip(text) {
        let slot = if address.is_ipv4() { &mut families[0] } else { &mut families[1] };
        if slot.replace(()).is_none() { inner.push(text) } else { outer.push(text) }
    }
    let first = inner.first().cloned().unwrap_or_else(|| "None".into());
    let ports: Vec<Value> = service.ports.iter().map(port).collect();
    let mut spec = json!({"clusterIP": first, "clusterIPs": if inner.is_empty() { vec!["None".to_owned()] } else { inner },
        "externalIPs": outer, "ports": ports, "type": "NodePort"});
    if let (Some(selector), Some(map)) = (&service.selector, spec.as_object_mut()) {
        map.insert("selector".into(), labels(selector));
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": key(&service.key, &labels(&service.labels)), "spec": spec})
}

fn slice_value(slice: &EndpointSlice) -> Value {
    let v6 = slice.ready.iter().any(|address| address.is_ipv6());
    let port =
        |port: &NamedPort| json!({"name": &*port.name, "port": port.port, "protocol": port.protocol.to_string()});
    let endpoint = |address: std::net::IpAddr| json!({"addresses": [address.to_string()]});
    let service = match &slice.service {
        Some(name) => json!({"kubernetes.io/service-name": &**name}),
        None => json!({}),
    };
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": key(&slice.key, &service),
        "addressType": if v6 { "IPv6" } else { "IPv4" },
        "ports": slice.ports.iter().map(port).collect::<Vec<_>>(),
        "endpoints": slice.ready.iter().map(endpoint).collect::<Vec<_>>()})
}

fn group_value(group: &CidrGroup) -> Value {
    let cidrs: Vec<String> = match &group.cidrs {
        Ok(cidrs) => cidrs.iter().map(ToString::to_string).collect(),
        // It is to be as unusable where it is read again.
        Err(unusable) => vec![unusable.reason.clone()],
    };
    json!({"apiVersion": "cilium.io/v2", "kind": "CiliumCIDRGroup",
        "metadata": {"name": &*group.name, "labels": labels(&group.labels)}, "spec": {"externalCIDRs": cidrs}})
}

#[cfg(test)]
mod tests {
    use sluice_policy_core::cluster::{Cluster, ServicePort, Uid};
    use sluice_policy_core::vector::{self, world::World};

    use super::*;

    const FILE: &str = include_str!("../../scenarios/policy/sluice.yaml");

    /// What is written is what an agent reads back, but for UIDs.
    #[test]
    fn a_cluster_reads_as_it_was_written() {
        let suite = vector::read(FILE).unwrap();
        for fixture in suite.fixtures.values() {
            let mut world = World::new(fixture);
            let mut objects = Objects::default();
            objects.follow(&world.take_events());
            let mut read = Cluster::default();
            for value in objects.all().values() {
                let parsed = parse::object(value);
                assert!(parsed.issues.is_empty(), "{value}: {:?}", parsed.issues);
                let mut object = parsed.object.unwrap_or_else(|| panic!("{value}"));
                if let Object::Pod(pod) = &mut object {
                    pod.uid = Uid::default();
                }
                read.apply(Event::Upsert(object));
            }
            let mut wanted = world.cluster().clone();
            wanted.names = read.names.clone();
            let headless = wanted.services.values().filter(|service| service.addresses.is_empty()).cloned();
            for mut service in headless.collect::<Vec<_>>() {
                service.ports =
                    service.ports.iter().map(|port| ServicePort { node_port: None, ..port.clone() }).collect();
                wanted.apply(Event::Upsert(Object::Service(service)));
            }
            assert_eq!(read, wanted);
        }
    }
}
