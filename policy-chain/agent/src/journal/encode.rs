//! Objects as manifests, so that [`sluice_policy_core::parse`] reads them again as they are.

use serde_json::{Map, Value, json};
use sluice_policy_core::cluster::{
    EndpointSlice, Labels, NamedPort, Node, Object, ObjectKey, Pod, Service, VISIBILITY_ANNOTATION,
};
use sluice_policy_core::model::AUDIT_ANNOTATION;

/// The manifest of an object. A policy or group is its own text: what was read of it does not say all of it. None: the
/// text is missing, or is no JSON.
pub(super) fn object(object: &Object, own: Option<&str>) -> Option<Value> {
    let manifest = match object {
        Object::Namespace(namespace) => json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": &*namespace.name, "labels": labels(&namespace.labels)},
        }),
        Object::Pod(object) => pod(object),
        Object::Node(object) => node(object),
        Object::Service(object) => service(object),
        Object::EndpointSlice(object) => slice(object),
        Object::CidrGroup(_) | Object::Policy(_) => serde_json::from_str(own?).ok()?,
    };
    Some(manifest)
}

fn labels(labels: &Labels) -> Value {
    labels.iter().map(|(key, value)| (key.to_string(), Value::from(value))).collect::<Map<_, _>>().into()
}

fn pod(pod: &Pod) -> Value {
    let mut metadata = json!({
        "namespace": &*pod.key.namespace, "name": &*pod.key.name, "labels": labels(&pod.labels),
    });
    if !pod.uid.is_empty() {
        put(&mut metadata, "uid", pod.uid.to_string());
    }
    let created = pod.created.seconds().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    if let Some(created) = created {
        put(&mut metadata, "creationTimestamp", created.to_string());
    }
    let mut annotations = Map::new();
    if pod.audit {
        annotations.insert(AUDIT_ANNOTATION.to_owned(), "true".into());
    }
    if !pod.template.visible.is_empty() {
        let visible: Vec<String> = pod.template.visible.iter().map(ToString::to_string).collect();
        annotations.insert(VISIBILITY_ANNOTATION.to_owned(), visible.join(",").into());
    }
    if !annotations.is_empty() {
        put(&mut metadata, "annotations", annotations);
    }
    let mut spec = json!({
        "serviceAccountName": &*pod.template.service_account, "hostNetwork": pod.host_network,
        "containers": [{"ports": pod.template.ports.iter().map(|port| named_port(port, "containerPort")).collect::<Vec<_>>()}],
    });
    if let Some(node) = &pod.node {
        put(&mut spec, "nodeName", &**node);
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec,
        "status": {
            "phase": if pod.finished { "Succeeded" } else { "Running" },
            "podIPs": pod.addresses.iter().map(|address| json!({"ip": address})).collect::<Vec<_>>(),
            "conditions": [{"type": "Ready", "status": if pod.ready { "True" } else { "False" }}],
        },
    })
}

fn node(node: &Node) -> Value {
    let addresses: Vec<Value> =
        node.addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": &*node.name, "labels": labels(&node.labels)},
        "status": {"addresses": addresses},
    })
}

/// All addresses as cluster IPs: they mean the same to us, and a Service without any has none.
fn service(service: &Service) -> Value {
    let ports = service.ports.iter().map(|port| {
        let mut value = json!({"name": &*port.name, "protocol": port.protocol.to_string(), "port": port.port});
        if let Some(node_port) = port.node_port {
            put(&mut value, "nodePort", node_port);
        }
        value
    });
    let mut spec = json!({"clusterIPs": service.addresses.to_vec(), "ports": ports.collect::<Vec<_>>()});
    if let Some(selector) = &service.selector {
        put(&mut spec, "selector", labels(selector));
    }
    json!({
        "apiVersion": "v1", "kind": "Service", "spec": spec,
        "metadata": metadata(&service.key, labels(&service.labels)),
    })
}

fn slice(slice: &EndpointSlice) -> Value {
    let name = slice.service.as_ref().map(|service| json!({"kubernetes.io/service-name": &**service}));
    // Either type is read in the same way.
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": metadata(&slice.key, name.unwrap_or_else(|| json!({}))),
        "ports": slice.ports.iter().map(|port| named_port(port, "port")).collect::<Vec<_>>(),
        "endpoints": slice.ready.iter().map(|address| json!({"addresses": [address]})).collect::<Vec<_>>(),
    })
}

fn metadata(key: &ObjectKey, labels: Value) -> Value {
    let mut metadata = json!({"namespace": &*key.namespace, "name": &*key.name});
    put(&mut metadata, "labels", labels);
    metadata
}

fn named_port(port: &NamedPort, number: &'static str) -> Value {
    let mut value = json!({"name": &*port.name, "protocol": port.protocol.to_string()});
    put(&mut value, number, port.port);
    value
}

fn put(object: &mut Value, key: &'static str, value: impl Into<Value>) {
    if let Value::Object(fields) = object {
        fields.insert(key.to_owned(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_policy_core::{manifest, parse};

    const OBJECTS: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: web, labels: {team: "a b"}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: bare, namespace: web}}
---
apiVersion: v1
kind: Pod
metadata:
  name: all
  namespace: web
  uid: 3ab3b0a5-1b2c-4d5e-8f90-112233445566
  creationTimestamp: "2026-01-31T23:59:59Z"
  labels: {app: x, "k8s.io/y": ""}
  annotations: {sluice.dev/audit: "true", sluice.dev/visibility: "ingress/80/TCP/HTTP,egress/53/UDP/DNS"}
spec:
  nodeName: node-1
  serviceAccountName: robot
  containers:
  - ports: [{name: http, containerPort: 80}, {name: dns, containerPort: 53, protocol: UDP}]
status:
  phase: Running
  podIPs: [{ip: 10.0.0.1}, {ip: "2001:db8::1"}]
  conditions: [{type: Ready, status: "True"}]
---
apiVersion: v1
kind: Pod
metadata: {name: static, namespace: web, uid: other, annotations: {kubernetes.io/config.mirror: abc}}
spec: {hostNetwork: true}
status: {phase: Failed}
---
apiVersion: v1
kind: Pod
metadata: {name: early, namespace: web, annotations: {vpc.amazonaws.com/pod-ips: "10.0.0.9"}}
---
apiVersion: v1
kind: Node
metadata: {name: node-1, labels: {zone: a}}
status: {addresses: [{type: InternalIP, address: 10.0.0.2}, {type: ExternalIP, address: 192.0.2.1}, {type: Hostname, address: x}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: web, labels: {a: b}}
spec:
  clusterIPs: [172.20.0.1, "fd00::1"]
  externalIPs: [192.0.2.7]
  selector: {app: x}
  ports: [{name: http, port: 80, nodePort: 30080}, {name: sctp, port: 9, protocol: SCTP}]
status: {loadBalancer: {ingress: [{ip: 192.0.2.8}]}}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: web}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: web, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: ["2001:db8::1"]}, {addresses: ["2001:db8::2"], conditions: {ready: false}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: lone, namespace: web}
addressType: IPv4
---
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: group, labels: {x: y}}
spec: {externalCIDRs: [10.0.0.0/8]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: web}
spec: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {a: b}}}]}]}
"#;

    #[test]
    fn every_kind_reads_as_it_was() {
        let documents = manifest::documents(OBJECTS).unwrap();
        assert_eq!(documents.len(), 12);
        for document in documents {
            let before = parse::object(&document).object.unwrap_or_else(|| panic!("{document}"));
            let written = object(&before, Some(&document.to_string())).unwrap();
            let after = parse::object(&written);
            assert_eq!(after.object.as_ref(), Some(&before), "{written}");
            assert!(after.issues.is_empty(), "{:?}", after.issues);
        }
    }

    #[test]
    fn a_policy_without_its_text_is_none() {
        let document = manifest::documents(OBJECTS).unwrap().pop().unwrap();
        let policy = parse::object(&document).object.unwrap();
        assert_eq!(object(&policy, None), None);
        assert_eq!(object(&policy, Some("{")), None);
    }
}
