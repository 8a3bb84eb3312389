//! Any JSON, with the names of the API in it: nothing panics, and what is said of it stays small.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::policy;
use crate::parse::cursor::MAX_ISSUES;
use crate::parse::{Parsed, object};

const NAMES: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata",
    "name",
    "namespace",
    "annotations",
    "labels",
    "spec",
    "specs",
    "status",
    "endpointSelector",
    "nodeSelector",
    "ingress",
    "ingressDeny",
    "egress",
    "egressDeny",
    "enableDefaultDeny",
    "description",
    "log",
    "value",
    "fromEndpoints",
    "fromCIDR",
    "fromCIDRSet",
    "fromEntities",
    "fromGroups",
    "fromNodes",
    "fromRequires",
    "toEndpoints",
    "toCIDR",
    "toCIDRSet",
    "toEntities",
    "toServices",
    "toGroups",
    "toNodes",
    "toFQDNs",
    "toRequires",
    "toPorts",
    "ports",
    "port",
    "endPort",
    "protocol",
    "icmps",
    "fields",
    "family",
    "type",
    "rules",
    "http",
    "dns",
    "kafka",
    "l7",
    "l7proto",
    "path",
    "method",
    "host",
    "headers",
    "headerMatches",
    "mismatch",
    "secret",
    "serverNames",
    "listener",
    "terminatingTLS",
    "originatingTLS",
    "authentication",
    "mode",
    "matchLabels",
    "matchExpressions",
    "key",
    "operator",
    "values",
    "matchName",
    "matchPattern",
    "cidr",
    "except",
    "cidrGroupRef",
    "cidrGroupSelector",
    "aws",
    "securityGroupsIds",
    "securityGroupsNames",
    "region",
    "k8sService",
    "k8sServiceSelector",
    "serviceName",
    "selector",
    "externalCIDRs",
];

const TEXTS: &[&str] = &[
    "",
    "a",
    "shop",
    "80",
    "0",
    "65535",
    "65536",
    "http",
    "TCP",
    "UDP",
    "ANY",
    "SCTP",
    "GRE",
    "ICMP",
    "world",
    "all",
    "host",
    "10.0.0.0/8",
    "10.0.0.1",
    "::/0",
    "fd00::/8",
    "0.0.0.0/33",
    "*",
    "*.b",
    "**.b",
    "a.b",
    "In",
    "NotIn",
    "Exists",
    "DoesNotExist",
    "k8s:app",
    "reserved:host",
    "any:a",
    "cidr:10.0.0.0/8",
    "$host",
    ":",
    "io.kubernetes.pod.namespace",
    "io.cilium.k8s.namespace.labels.a",
    "IPv4",
    "IPv6",
    "EchoRequest",
    "sg-1",
    "/.*",
    "(",
    "GET",
    "X-A: b",
    "LOG",
    "ADD",
    "required",
    "true",
    "cilium.io/v2",
    "\u{0}",
    "é",
    "💧",
];

fn name() -> impl Strategy<Value = String> {
    prop_oneof![20 => proptest::sample::select(NAMES).prop_map(str::to_owned), 1 => "[a-z:/$.]{0,12}", 1 => any::<String>()]
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        8 => proptest::sample::select(TEXTS).prop_map(Value::from),
        1 => any::<String>().prop_map(Value::from),
        2 => (-2_i64..70_000).prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
    ];
    leaf.prop_recursive(7, 128, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::from),
            btree_map(name(), inner, 0..6).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A document of one of the kinds, with anything in it, or with rules that are at their place.
fn any_document() -> impl Strategy<Value = Value> {
    let kinds = ["CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy", "CiliumCIDRGroup"];
    let rules = (vec(json(), 0..4), vec(json(), 0..4), vec(json(), 0..4), vec(json(), 0..4), json()).prop_map(
        |(ingress, ingress_deny, egress, egress_deny, selector)| {
            json!({
                "endpointSelector": selector, "ingress": ingress, "ingressDeny": ingress_deny, "egress": egress,
                "egressDeny": egress_deny
            })
        },
    );
    let spec = prop_oneof![json().boxed(), rules.boxed()];
    (proptest::sample::select(kinds.to_vec()), spec, proptest::option::of(json()), any::<bool>()).prop_map(
        |(kind, spec, specs, named)| {
            let mut document = json!({"apiVersion": "cilium.io/v2", "kind": kind, "spec": spec});
            if named {
                document["metadata"] = json!({"name": "p", "namespace": "shop"});
            }
            if let Some(specs) = specs {
                document["specs"] = specs;
            }
            document
        },
    )
}

fn nodes(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(nodes).sum(),
        Value::Object(map) => map.values().map(nodes).sum(),
        _ => 0,
    }
}

fn is_bounded(document: &Value, parsed: &Parsed) {
    assert!(parsed.issues.len() <= MAX_ISSUES + 1);
    for issue in &parsed.issues {
        assert!(issue.message.len() <= 1000 && issue.path.len() <= 1000, "{issue}");
    }
    // Every value of the text becomes a bounded piece of the model, the texts in it apart.
    let model = format!("{:?}", parsed.object).len();
    let text = document.to_string().len();
    assert!(model <= 2000 * nodes(document) + 16 * text, "{model} of {text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn anything_is_read_within_bounds_and_always_the_same(document in any_document()) {
        let parsed = object(&document);
        is_bounded(&document, &parsed);
        prop_assert_eq!(&parsed, &object(&document));
        for (name, group) in crate::parse::cilium::groups::aws_groups(&document) {
            prop_assert_eq!(name, group.cidr_group_name());
        }
    }
}

#[test]
fn large_documents_stay_small() {
    let document = |spec: Value| {
        let metadata = json!({"name": "p", "namespace": "shop"});
        json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec})
    };
    let long = "x".repeat(1 << 20);
    let many = |element: Value, count: usize| Value::Array(vec![element; count]);
    let unknown: Map<String, Value> = (0..20_000).map(|index| (format!("field{index}"), json!([]))).collect();
    for spec in [
        json!({"endpointSelector": {}, "ingress": many(json!({"fromEntities": [long]}), 2)}),
        json!({"endpointSelector": {}, "ingress": many(json!({}), 20_000), long.as_str(): 1}),
        json!({"endpointSelector": {}, "ingress": many(json!({"toPorts": 1}), 20_000)}),
        json!({"endpointSelector": {"matchLabels": {long.as_str(): long}}, "ingress": [{}]}),
        json!({"endpointSelector": {}, "egress": [{"toCIDR": many(json!("10.0.0.0/33"), 20_000)}]}),
        json!({"endpointSelector": {}, "egress": [{"toFQDNs": [{"matchPattern": long}]}]}),
        json!({"endpointSelector": {}, "egress": [{"toPorts": [{"ports": [{"port": long}], "serverNames": [long]}]}]}),
        json!({"endpointSelector": {}, "egress": [{"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"path": long}]}}]}]}),
        Value::Object(unknown),
    ] {
        let document = document(spec);
        is_bounded(&document, &object(&document));
    }
}

#[test]
fn too_many_rules_are_one_that_cannot_be_used() {
    let list = |count: usize| Value::Array(vec![json!({"fromEntities": ["world"]}); count]);
    let read = |count: usize| {
        object(&json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "p", "namespace": "shop"},
            "spec": {"endpointSelector": {}, "ingress": list(count), "ingressDeny": list(1)}
        }))
    };
    let most = read(65_535);
    assert_eq!(most.issues, []);
    assert_eq!(policy(&most).rules[0].ingress.len(), 65_535);
    let more = read(65_536);
    assert_eq!(more.issues.len(), 1);
    let rule = &policy(&more).rules[0];
    assert!(matches!(rule.ingress.as_slice(), [Err(_)]) && rule.default_deny_ingress && rule.ingress_deny[0].is_ok());
}
