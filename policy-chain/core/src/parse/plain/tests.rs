//! Objects other than policies, row by row.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::cluster::{EndpointSlice, Node, Object, Pod, Service};
use crate::parse::{Severity, object};

/// An object that has no fault.
#[track_caller]
fn read(value: &Value) -> Object {
    let parsed = object(value);
    assert_eq!(parsed.issues, [], "{value}");
    parsed.object.unwrap()
}

fn with(mut base: Value, parts: &Value) -> Value {
    for (key, part) in parts.as_object().unwrap() {
        base[key] = part.clone();
    }
    base
}

#[track_caller]
fn pod(parts: &Value) -> Pod {
    let base = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "shop"}});
    let Object::Pod(pod) = read(&with(base, parts)) else { panic!("not a pod") };
    pod
}

#[track_caller]
fn service(spec: &Value, status: &Value) -> Service {
    let value = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "shop"}, "spec": spec, "status": status});
    let Object::Service(service) = read(&value) else { panic!("not a Service") };
    service
}

fn shown<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_pod_as_the_api_server_gives_it() {
    let found = pod(&json!({
        "metadata": {
            "name": "p", "namespace": "shop", "uid": "3f1c2b4d-0000-4abc-8def-0123456789ab", "creationTimestamp": "2026-11-25T21:15:41Z",
            "labels": {"app": "web"}, "annotations": {"sluice.dev/audit": "true", "vpc.amazonaws.com/pod-ips": "10.9.9.9"},
            "managedFields": [{"manager": "kubelet"}], "ownerReferences": [{}],
        },
        "spec": {
            "nodeName": "n1", "serviceAccountName": "web", "tolerations": [{}], "volumes": [{"name": "x"}],
            "containers": [
                {"name": "a", "image": "x", "ports": [{"name": "http", "containerPort": 80}, {"containerPort": 81}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]},
                {"name": "b", "ports": [{"name": "http", "containerPort": 80, "protocol": "TCP"}, {"name": "http", "containerPort": 8080}]},
            ],
            "initContainers": [
                {"name": "stays", "restartPolicy": "Always", "ports": [{"name": "mesh", "containerPort": 15001}]},
                {"name": "goes", "ports": [{"name": "gone", "containerPort": 1}]},
            ],
        },
        "status": {
            "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            "conditions": [{"type": "Initialized", "status": "False"}, {"type": "Ready", "status": "True"}],
        },
    }));
    assert_eq!(found.key.to_string(), "shop/p");
    assert_eq!(found.uid.to_string(), "3f1c2b4d-0000-4abc-8def-0123456789ab");
    assert_eq!(found.created, crate::cluster::Created::at(1_795_641_341));
    assert_eq!((found.node.as_deref(), &*found.template.service_account), (Some("n1"), "web"));
    assert_eq!((found.host_network, found.finished, found.ready, found.audit), (false, false, true, true));
    assert_eq!(shown(&found.addresses), "10.0.0.1 fd00::1");
    let ports = found.template.ports.iter().map(|port| format!("{}:{}/{}", port.name, port.port, port.protocol));
    assert_eq!(shown(ports), "dns:53/UDP http:80/TCP http:8080/TCP mesh:15001/TCP");
    assert_eq!(found.labels.get("app"), Some("web"));
}

#[test]
fn a_pod_that_is_little_known() {
    let found = pod(&json!({}));
    assert!(
        found.uid.is_empty() && found.addresses.is_empty() && found.template.ports.is_empty() && found.node.is_none()
    );
    assert_eq!(
        (&*found.template.service_account, found.ready, found.finished, found.audit),
        ("default", false, false, false)
    );
    assert_eq!(found.created, crate::cluster::Created::default());
    for nothing in [
        json!({"spec": null, "status": null}),
        json!({"spec": {}, "status": {}}),
        json!({"spec": {"nodeName": "", "containers": null}}),
    ] {
        assert_eq!(pod(&nothing), found);
    }
    for (phase, finished) in
        [("Pending", false), ("Running", false), ("Unknown", false), ("Succeeded", true), ("Failed", true)]
    {
        assert_eq!(pod(&json!({"status": {"phase": phase}})).finished, finished, "{phase}");
    }
    assert!(pod(&json!({"spec": {"hostNetwork": true}})).host_network);
    // A static pod is known to its node by another UID than to the API.
    let mirror = json!({"name": "p", "uid": "3f1c2b4d-0000-4abc-8def-0123456789ab", "annotations": {"kubernetes.io/config.mirror": "0123456789abcdef"}});
    assert_eq!(pod(&json!({"metadata": mirror})).uid.to_string(), "0123456789abcdef");
}

#[test]
fn addresses_of_a_pod() {
    let annotated = json!({"name": "p", "annotations": {"vpc.amazonaws.com/pod-ips": " 10.9.9.9, fd00::9,,"}});
    let table = [
        (json!({}), "10.9.9.9 fd00::9"),
        (json!({"podIPs": []}), "10.9.9.9 fd00::9"),
        (json!({"podIP": "", "podIPs": null}), "10.9.9.9 fd00::9"),
        (json!({"podIP": "10.0.0.1"}), "10.0.0.1"),
        (json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "::ffff:10.0.0.2"}, {"ip": "10.0.0.2"}]}), "10.0.0.2"),
    ];
    for (status, expected) in table {
        assert_eq!(shown(&pod(&json!({"metadata": annotated, "status": status})).addresses), expected, "{status}");
    }
}

#[test]
fn faults_of_objects() {
    let pod = |parts: Value| with(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}), &parts);
    let slice = |parts: Value| {
        with(
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "p"}, "addressType": "IPv4"}),
            &parts,
        )
    };
    let service = |spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "p"}, "spec": spec});
    let table = [
        (
            pod(json!({"status": {"podIPs": [{"ip": "10.0.0"}]}})),
            "status.podIPs[0].ip: \"10.0.0\" is not an IP address",
        ),
        (pod(json!({"status": {"podIP": 7}})), "status.podIP: 7 is not a string"),
        (pod(json!({"spec": {"hostNetwork": "yes"}})), "spec.hostNetwork: \"yes\" is not true or false"),
        (pod(json!({"spec": {"containers": {}}})), "spec.containers: {} is not a list"),
        (
            pod(json!({"spec": {"containers": [{"ports": [{"name": "a", "containerPort": 0}]}]}})),
            "spec.containers[0].ports[0].containerPort: 0 is not a whole number from 1 to 65535",
        ),
        (
            pod(json!({"spec": {"containers": [{"ports": [{"name": "a"}]}]}})),
            "spec.containers[0].ports[0].containerPort: is missing",
        ),
        (
            pod(json!({"spec": {"containers": [{"ports": [{"name": "a", "containerPort": 1, "protocol": "tcp"}]}]}})),
            "spec.containers[0].ports[0].protocol: \"tcp\" is not TCP, UDP or SCTP",
        ),
        (
            pod(json!({"metadata": {"name": "p", "creationTimestamp": "today"}})),
            "metadata.creationTimestamp: \"today\" is not a time such as",
        ),
        (
            pod(json!({"metadata": {"name": "p", "annotations": {"vpc.amazonaws.com/pod-ips": "x"}}})),
            "metadata.annotations: vpc.amazonaws.com/pod-ips: \"x\" is not an IP address",
        ),
        (slice(json!({"addressType": "Odd"})), "addressType: \"Odd\" is not IPv4, IPv6 or FQDN"),
        (slice(json!({"endpoints": [{"addresses": ["x"]}]})), "endpoints[0].addresses[0]: \"x\" is not an IP address"),
        (service(json!({"clusterIP": "x"})), "spec.clusterIP: \"x\" is not an IP address"),
        (service(json!({"ports": [{"port": 70_000}]})), "spec.ports[0].port: 70000 is not a whole number"),
    ];
    for (value, expected) in table {
        let parsed = object(&value);
        assert!(parsed.object.is_some(), "what can be read counts: {value}");
        assert_eq!(parsed.issues.len(), 1, "{value}: {:?}", parsed.issues);
        assert!(parsed.issues[0].to_string().starts_with(expected), "{} is not {expected}", parsed.issues[0]);
    }
}

#[test]
fn a_namespace_is_named_by_its_label() {
    let value = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"a": "b", "kubernetes.io/metadata.name": "other"}}});
    let parsed = object(&value);
    assert_eq!(parsed.issues.iter().map(|issue| issue.severity).collect::<Vec<_>>(), [Severity::Warning]);
    let Some(Object::Namespace(namespace)) = parsed.object else { panic!("not a Namespace") };
    assert_eq!(
        shown(namespace.labels.iter().map(|(key, value)| format!("{key}={value}"))),
        "a=b kubernetes.io/metadata.name=shop"
    );
}

#[test]
fn addresses_of_a_node() {
    let value = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "labels": {"a": "b"}}, "spec": {"podCIDR": "10.0.0.0/8"}, "status": {"addresses": [
        {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "n"}, {"type": "InternalDNS", "address": "n.x"},
        {"type": "ExternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "fd00::1"}, {"type": "InternalIP", "address": "10.0.0.1"}]}});
    let Object::Node(Node { addresses, .. }) = read(&value) else { panic!("not a Node") };
    assert_eq!(shown(addresses), "10.0.0.1 192.0.2.1 fd00::1");
    assert!(
        matches!(read(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}})), Object::Node(Node { addresses, .. }) if addresses.is_empty())
    );
}

#[test]
fn addresses_of_a_service() {
    let balancer = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "x"}, {"ip": "192.0.2.2", "ipMode": "Proxy"}, {"ip": "192.0.2.3", "ipMode": "VIP"}]}});
    let table = [
        (json!({"clusterIP": "10.0.0.1"}), json!({}), "10.0.0.1"),
        (json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"]}), json!({}), "10.0.0.1 fd00::1"),
        (
            json!({"clusterIP": "10.0.0.1", "externalIPs": ["203.0.113.1", "10.0.0.1"]}),
            balancer.clone(),
            "10.0.0.1 203.0.113.1 192.0.2.1 192.0.2.3",
        ),
        (json!({"clusterIP": "None", "clusterIPs": ["None"], "externalIPs": ["203.0.113.1"]}), balancer.clone(), ""),
        (json!({"type": "ExternalName", "externalName": "example.com", "clusterIP": ""}), json!({}), ""),
        (json!({"type": "ExternalName", "clusterIP": "10.0.0.1", "externalIPs": ["203.0.113.1"]}), balancer, ""),
        (json!({}), Value::Null, ""),
    ];
    for (spec, status, expected) in table {
        assert_eq!(shown(&service(&spec, &status).addresses), expected, "{spec}");
    }
}

#[test]
fn ports_of_a_service() {
    let ports = json!([{"port": 80}, {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "dns", "nodePort": 30_053}, {"name": "a", "port": 1, "nodePort": 0}]);
    let told = |service: Service| {
        shown(
            service
                .ports
                .iter()
                .map(|port| format!("{}:{}/{}:{:?}", port.name, port.port, port.protocol, port.node_port)),
        )
    };
    let found = service(&json!({"clusterIP": "10.0.0.1", "ports": ports, "selector": {"app": "web"}}), &json!({}));
    assert_eq!(found.selector.as_ref().and_then(|selector| selector.get("app")), Some("web"));
    assert_eq!(told(found), ":80/TCP:None dns:53/UDP:Some(30053) a:1/TCP:None");
    let headless = service(&json!({"clusterIP": "None", "ports": ports, "selector": {}}), &json!({}));
    assert_eq!(
        (headless.selector.clone(), told(headless)),
        (None, ":80/TCP:None dns:53/UDP:None a:1/TCP:None".to_owned())
    );
}

#[test]
fn slices() {
    let slice = |kind: &str, endpoints: Value| {
        let value = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind, "endpoints": endpoints,
            "metadata": {"name": "s-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "s"}},
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "http"}, {"port": null, "name": "all"}, {"port": 53, "protocol": "UDP"}]});
        let Object::EndpointSlice(slice) = read(&value) else { panic!("not an EndpointSlice") };
        slice
    };
    let EndpointSlice { service, ports, ready, .. } = slice(
        "IPv4",
        json!([
        {"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"], "conditions": {}}, {"addresses": ["10.0.0.3"], "conditions": {"ready": null}},
        {"addresses": ["10.0.0.4"], "conditions": {"ready": true, "serving": true}}, {"addresses": ["10.0.0.5"], "conditions": {"ready": false, "serving": true}},
        {"addresses": []}]),
    );
    assert_eq!(service.as_deref(), Some("s"));
    assert_eq!(
        shown(ports.iter().map(|port| format!("{}:{}/{}", port.name, port.port, port.protocol))),
        "http:8080/TCP :53/UDP"
    );
    assert_eq!(shown(ready.iter()), "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4");
    assert!(slice("FQDN", json!([{"addresses": ["example.com"]}])).ready.is_empty());
    assert!(slice("IPv6", Value::Null).ready.is_empty());
}

/// JSON whose keys are often those that are read.
fn odd() -> impl Strategy<Value = Value> {
    const KEYS: &str = "(metadata|name|namespace|labels|annotations|spec|status|ports|port|containerPort|nodePort|containers|initContainers|podIPs|ip|podIP|addresses|address|type|endpoints|conditions|ready|clusterIPs|clusterIP|loadBalancer|ingress|selector|addressType|protocol)";
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<i16>().prop_map(|quarters| Value::from(f64::from(quarters) / 4.0)),
        "(10\\.0\\.0\\.1|::1|None|TCP|Always|InternalIP|True|IPv4|\\PC{0,8})".prop_map(Value::from)
    ];
    leaf.prop_recursive(6, 60, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(KEYS, inner, 0..6).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_object_is_too_odd(which in 0..5_usize, spec in odd(), status in odd(), rest in odd()) {
        let kinds = [("v1", "Namespace"), ("v1", "Pod"), ("v1", "Node"), ("v1", "Service"), ("discovery.k8s.io/v1", "EndpointSlice")];
        let (version, kind) = kinds[which];
        let value = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "n", "labels": rest, "annotations": spec}, "spec": spec, "status": status,
            "addressType": "IPv4", "ports": spec["ports"], "endpoints": rest});
        let parsed = object(&value);
        prop_assert!(parsed.object.is_some(), "an object with a name is read: {}", value);
        let _whole = object(&rest);
    }

    #[test]
    fn yaml_and_json_say_the_same(spec in odd(), status in odd()) {
        let value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "n"}, "spec": spec, "status": status});
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let read = crate::manifest::documents(&text).map_err(|error| error.to_string());
            prop_assert_eq!(read.map(|read| read.iter().map(object).collect::<Vec<_>>()), Ok(vec![object(&value)]));
            let read = crate::manifest::documents(&format!("--- # YAML\n{text}")).map_err(|error| error.to_string());
            prop_assert_eq!(read.map(|read| read.iter().map(object).collect::<Vec<_>>()), Ok(vec![object(&value)]), "{}", text);
        }
    }
}
