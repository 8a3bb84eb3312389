//! Tables of objects and what is told of them, for every kind that is read here; and what holds for every text.

mod hostile;

use serde_json::{Value, json};

use super::{KINDS, Severity, object};
use crate::cluster::Object;
use crate::model::Policy;

/// A YAML text as the parsers are given it.
pub(super) fn yaml(text: &str) -> Value {
    // `y` is a name, not a truth.
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options).expect("the test's own YAML is good")
}

/// What is told of an object, one line a fault: `refused spec.tier: is missing`.
pub(super) fn told(value: &Value) -> Vec<String> {
    let lines = object(value).issues.into_iter().map(|issue| {
        let severity = match issue.severity {
            Severity::Warning => "warning",
            Severity::Unusable => "unusable",
            Severity::Refused => "refused",
        };
        format!("{severity} {issue}")
    });
    lines.collect()
}

/// The policy in an object.
pub(super) fn policy(value: &Value) -> Policy {
    match object(value).object {
        Some(Object::Policy(policy)) => policy,
        other => panic!("not a policy but {other:?}: {:?}", told(value)),
    }
}

/// Holds each row of a table, `(what is different, what is told of it)`, against what is told of `build(what)`.
pub(super) fn table(rows: &[(&str, &[&str])], build: impl Fn(&str) -> Value) {
    let mut wrong = Vec::new();
    for (different, expected) in rows {
        let got = told(&build(different));
        if got != *expected {
            wrong.push(format!("{different}\n  expected {expected:#?}\n  got      {got:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// An object of a kind with nothing but a name.
fn named(version: &str, kind: &str, metadata: &str) -> Value {
    json!({"apiVersion": version, "kind": kind, "metadata": yaml(metadata), "spec": {"podSelector": {}}})
}

#[test]
fn what_no_kind_is_told_of() {
    let known: Vec<String> = KINDS.iter().map(|(version, kind, _)| format!("{version} {kind}")).collect();
    let no_kind = |kind: &str| format!("refused kind: {kind} is not a known kind; known are {}", known.join(", "));
    let no_version = |version: &str, kind: &str, known: &str| {
        vec![format!("refused apiVersion: {version} is not a known version of {kind}; known are {known}")]
    };
    let missing = |name: &str| format!("refused {name}: is missing");
    let rows = [
        ("7", vec!["refused 7 is not an object".to_owned()]),
        ("null", vec!["refused null is not an object".to_owned()]),
        ("{}", vec![missing("apiVersion"), missing("kind")]),
        ("{apiVersion: v1}", vec![missing("kind")]),
        ("{apiVersion: v1, kind: 7}", vec!["refused kind: 7 is not a string".to_owned()]),
        ("{apiVersion: v1, kind: Secret}", vec![no_kind("\"Secret\"")]),
        ("{apiVersion: v1, kind: networkpolicy}", vec![no_kind("\"networkpolicy\"")]),
        (
            "{apiVersion: extensions/v1beta1, kind: NetworkPolicy}",
            no_version("\"extensions/v1beta1\"", "NetworkPolicy", "networking.k8s.io/v1"),
        ),
        (
            "{apiVersion: policy.networking.k8s.io/v1beta1, kind: ClusterNetworkPolicy}",
            no_version(
                "\"policy.networking.k8s.io/v1beta1\"",
                "ClusterNetworkPolicy",
                "policy.networking.k8s.io/v1alpha2, networking.k8s.aws/v1alpha1",
            ),
        ),
    ];
    for (text, expected) in rows {
        let value = yaml(text);
        assert_eq!(told(&value), expected, "{text}");
        assert_eq!(object(&value).object, None);
    }
}

/// Every kind of the table is read by its own reader: an object with a name only is that kind, or wants more of its own.
#[test]
fn every_kind_is_read() {
    for (version, kind, _) in KINDS {
        let value = named(version, kind, "{name: default}");
        let parsed = object(&value);
        assert!(parsed.object.is_some() || !parsed.issues.is_empty(), "{version} {kind}");
        assert!(told(&value).iter().all(|line| !line.contains("known are")), "{version} {kind}");
        // Without a name there is no object, and the name is what is told of.
        let value = named(version, kind, "{}");
        assert_eq!(object(&value).object, None, "{version} {kind}");
        assert!(told(&value).contains(&"refused metadata.name: is missing".to_owned()), "{version} {kind}");
    }
}

#[test]
fn what_is_told_of_metadata() {
    const NAME: &str = "is not a name: at most 253 characters; lower case letters, digits and '-', with a letter or digit \
                        at both ends, in parts joined by '.'";
    const NAMESPACE: &str = "is not a namespace: 1 to 63 lower case letters, digits and '-', with a letter or digit at both \
                             ends";
    const AUDIT: &str = "is neither \"true\" nor \"false\"; the object is in force, not a dry run";
    let bad_name = |name: &str| format!("refused metadata.name: {name:?} {NAME}");
    let long = "a".repeat(253);
    let (fits, longer) = (format!("{{name: {long}}}"), format!("{{name: {long}a}}"));
    let too_long = format!("refused metadata.name: \"{}... {NAME}", "a".repeat(79));
    let (upper, dots, dash, score) = (bad_name("A"), bad_name("a..b"), bad_name("-a"), bad_name("a_b"));
    let namespace = format!("refused metadata.namespace: \"a.b\" {NAMESPACE}");
    let audit = |value: &str| format!("warning metadata.annotations: sluice.dev/audit: {value} {AUDIT}");
    let (audit_yes, audit_bool) = (audit("\"yes\""), audit("true"));
    table(
        &[
            ("{name: a.b-c.9}", &[]),
            (&fits, &[]),
            (&longer, &[&too_long]),
            ("{name: A}", &[&upper]),
            ("{name: a..b}", &[&dots]),
            ("{name: -a}", &[&dash]),
            ("{name: a_b}", &[&score]),
            ("{name: ''}", &["refused metadata.name: is empty"]),
            ("{name: 7}", &["refused metadata.name: 7 is not a string"]),
            ("{name: null}", &["refused metadata.name: is missing"]),
            ("[]", &["refused metadata: [] is not an object"]),
            ("null", &["refused metadata: is missing"]),
            ("{name: a, namespace: a.b}", &[&namespace]),
            ("{name: a, namespace: 7}", &["refused metadata.namespace: 7 is not a string"]),
            ("{name: a, namespace: ''}", &[]),
            ("{name: a, labels: []}", &["refused metadata.labels: [] is not an object"]),
            ("{name: a, labels: {b: 7}}", &["refused metadata.labels: \"b\": 7 is not a string"]),
            ("{name: a, annotations: 7}", &["refused metadata.annotations: 7 is not an object"]),
            ("{name: a, annotations: {sluice.dev/audit: 'true'}}", &[]),
            ("{name: a, annotations: {sluice.dev/audit: 'yes'}}", &[&audit_yes]),
            ("{name: a, annotations: {sluice.dev/audit: true}}", &[&audit_bool]),
            // What nobody needs is not looked at.
            ("{name: a, finalizers: 7, generation: x, later: {}}", &[]),
        ],
        |metadata| named("networking.k8s.io/v1", "NetworkPolicy", metadata),
    );
    let id = |version: &str, kind: &str, metadata: &str| policy(&named(version, kind, metadata)).id().clone();
    let np = |metadata: &str| id("networking.k8s.io/v1", "NetworkPolicy", metadata).to_string();
    assert_eq!(np("{name: a}"), "NetworkPolicy default/a");
    assert_eq!(np("{name: a, namespace: ''}"), "NetworkPolicy default/a");
    assert_eq!(np("{name: a, namespace: shop}"), "NetworkPolicy shop/a");
    // A name that the API refuses names the object nonetheless: its denies are not lost.
    assert_eq!(np("{name: A b}"), "NetworkPolicy default/A b");
    let cluster = json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "a", "namespace": "shop"},
        "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}},
    });
    assert_eq!(
        told(&cluster),
        ["warning metadata.namespace: this kind lives in no namespace; \"shop\" is not looked at"]
    );
    assert_eq!(policy(&cluster).id().to_string(), "ClusterNetworkPolicy a");
}

/// A field beside `spec` that is not known may be `spec` misspelt.
#[test]
fn what_is_beside_spec() {
    for (version, kind) in
        [("networking.k8s.io/v1", "NetworkPolicy"), ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy")]
    {
        let value = json!({
            "apiVersion": version, "kind": kind, "metadata": {"name": "a"}, "sepc": {},
            "spec": {
                "podSelector": {}, "tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
                "ingress": [{"action": "Accept", "from": []}],
            },
        });
        assert_eq!(told(&value)[0], "unusable sepc: this field is not known (value {})");
    }
}

/// Every policy of the acceptance vectors is read without a fault, but for those that are about faults.
#[test]
fn policies_of_the_vectors() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/scenarios/policy/netpol.yaml");
    let text = std::fs::read_to_string(path).expect("the vectors are in the repository");
    let file = yaml(&text);
    let list = |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
    let mut read = 0;
    let mut faulty = Vec::new();
    for vector in list(&file, "vectors") {
        for value in list(&vector, "steps").iter().flat_map(|step| list(step, "apply")) {
            let parsed = object(&value);
            read += 1;
            assert!(matches!(parsed.object, Some(Object::Policy(_))), "{value}");
            if parsed.issues.iter().any(|issue| issue.severity > Severity::Warning) {
                faulty.push((vector["id"].clone(), list(&vector, "tags")));
            }
        }
    }
    assert!(read > 300, "{read}");
    let ids: Vec<&str> = faulty.iter().filter_map(|(id, _)| id.as_str()).collect();
    assert!(
        faulty.iter().all(|(_, tags)| tags.iter().any(|tag| tag == "fail-closed" || tag == "legacy-schema-v0.1.1")),
        "{faulty:?}"
    );
    assert_eq!(
        ids,
        [
            "pa/06-ingress-same-labels-port-range",
            "pa/08-ordering-matters-for-overlapping-rules-order-1",
            "pa/20-banp-deny-all-after-anp",
            "edge/29-cnp-fail-closed-unknown-peer-deny",
            "edge/31-cnp-fail-closed-unknown-peer-accept",
        ]
    );
}
