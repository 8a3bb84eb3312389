//! What holds for every object, however broken: nothing panics, what is told is bounded, and what is told of has no effect
//! that it should not have.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{told, yaml};
use crate::cluster::Object;
use crate::model::network_policy::NetworkPeers;
use crate::model::{Policy, Unusable};
use crate::parse::cursor::MAX_ISSUES;
use crate::parse::{KINDS, Parsed, Severity, object};

/// One good object of each kind of policy that is read here, with every field.
const GOOD: &[&str] = &[
    "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: n, namespace: shop, labels: {a: b}, annotations: {sluice.dev/audit: 'true'}}
spec:
  podSelector: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: In, values: [d, e]}]}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - {namespaceSelector: {matchLabels: {a: b}}, podSelector: {matchExpressions: [{key: c, operator: Exists}]}}
    - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}
    ports: [{protocol: UDP, port: 53}, {port: web}, {port: 80, endPort: 90}]
  egress:
  - to: [{podSelector: {}}]
    ports: [{protocol: SCTP}]
status: {}
",
    "
apiVersion: networking.k8s.aws/v1alpha1
kind: ApplicationNetworkPolicy
metadata: {name: n, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {a: b}}}]}]
  egress: [{to: [{domainNames: [a.b, '*.c.d']}], ports: [{port: 443}]}]
",
    "
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: n}
spec:
  tier: Admin
  priority: 7
  subject: {pods: {namespaceSelector: {matchLabels: {a: b}}, podSelector: {}}}
  ingress:
  - name: one
    action: Deny
    from:
    - namespaces: {matchExpressions: [{key: c, operator: DoesNotExist}]}
    - pods: {namespaceSelector: {}, podSelector: {matchLabels: {a: b}}}
    protocols:
    - tcp: {destinationPort: {number: 80}}
    - udp: {destinationPort: {range: {start: 1, end: 2}}}
    - destinationNamedPort: web
  egress:
  - action: Accept
    to: [{nodes: {matchLabels: {a: b}}}, {networks: [10.0.0.0/8, 'fd00::/8']}, {domainNames: [a.b]}]
  - {action: Pass, to: [{namespaces: {}}], protocols: [{sctp: {destinationPort: {number: 1}}}]}
",
    "
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: n}
spec:
  priority: 7
  subject: {namespaces: {matchLabels: {a: b}}}
  ingress:
  - name: one
    action: Pass
    from: [{namespaces: {}}]
    ports: [{portNumber: {protocol: TCP, port: 80}}, {portRange: {protocol: UDP, start: 1, end: 2}}, {namedPort: web}]
  egress: [{action: Allow, to: [{networks: [10.0.0.0/8]}]}]
",
    "
apiVersion: policy.networking.k8s.io/v1alpha1
kind: BaselineAdminNetworkPolicy
metadata: {name: default}
spec:
  subject: {namespaces: {matchLabels: {a: b}}}
  ingress: [{action: Deny, from: [{namespaces: {}}]}]
  egress: [{action: Allow, to: [{nodes: {}}], ports: [{portNumber: {port: 80}}]}]
",
    "
apiVersion: networking.k8s.aws/v1alpha1
kind: ClusterNetworkPolicy
metadata: {name: n}
spec:
  tier: Baseline
  priority: 7
  subject: {namespaces: {}}
  ingress: [{action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {}}}], ports: [{namedPort: web}]}]
  egress: [{action: Pass, to: [{domainNames: [a.b]}, {networks: [10.0.0.0/8]}], ports: [{portNumber: {port: 80}}]}]
",
];

/// The values that take the place of a part.
fn replacements() -> Vec<Value> {
    vec![
        Value::Null,
        json!(true),
        json!(0),
        json!(-1),
        json!(80),
        json!(70_000),
        json!(1.5),
        json!(u64::MAX),
        json!(""),
        json!("-"),
        json!("web"),
        json!("10.0.0.0/8"),
        json!("Deny"),
        json!("\u{1f600}".repeat(300)),
        json!([]),
        json!([null]),
        json!([{}]),
        json!(["a", "a"]),
        json!({}),
        json!({"zz": 1}),
        json!({"podSelector": {}}),
    ]
}

/// JSON pointers of all parts of a value, the whole first.
fn parts(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                parts(value, &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), found);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                parts(value, &format!("{at}/{index}"), found);
            }
        }
        _ => {}
    }
}

/// What stands as unusable in a policy.
fn unusable(policy: &Policy) -> Vec<&Unusable> {
    let mut found = Vec::new();
    match policy {
        Policy::Network(policy) => {
            for rule in policy.ingress.iter().chain(&policy.egress).flatten() {
                match rule {
                    Err(fault) => found.push(fault),
                    Ok(rule) => {
                        if let NetworkPeers::Of(peers) = &rule.peers {
                            found.extend(peers.iter().filter_map(|peer| peer.as_ref().err()));
                        }
                    }
                }
            }
        }
        Policy::Cluster(policy) => {
            let rules = policy.ingress.iter().chain(&policy.egress);
            found.extend(rules.filter_map(|rule| rule.matches.as_ref().err()));
        }
        Policy::Cilium(_) => {}
    }
    found
}

/// Whether a policy is one without subject.
fn governs_nobody(policy: &Policy) -> bool {
    matches!(policy, Policy::Cluster(policy) if policy.subject.is_none())
}

/// A fault that takes nothing from the rules: of metadata, of a name of a rule, and of `policyTypes`, which isolates then.
fn is_harmless(path: &str) -> bool {
    path.starts_with("metadata") || path.ends_with("].name") || path.starts_with("spec.policyTypes")
}

/// Holds what is true of every policy object.
fn check(parsed: &Parsed, value: &Value) {
    assert!(parsed.issues.len() <= MAX_ISSUES + 1);
    for issue in &parsed.issues {
        assert!(issue.path.len() < 1000 && issue.message.len() < 2000, "{issue}");
    }
    let policy = match &parsed.object {
        Some(Object::Policy(policy)) => policy,
        Some(_) => return,
        None => {
            let refused = parsed.issues.iter().any(|issue| issue.severity > Severity::Warning);
            assert!(refused, "refused without a word: {value}");
            return;
        }
    };
    let faults = unusable(policy);
    let is_told = |fault: &Unusable| {
        parsed.issues.iter().any(|issue| {
            issue.severity > Severity::Warning && issue.path == fault.path && issue.message == fault.reason
        })
    };
    if parsed.issues.len() <= MAX_ISSUES {
        for fault in &faults {
            assert!(is_told(fault), "not told: {fault:?} of {value}");
        }
    }
    // What is told as a fault is out of force: a rule that has it, or all rules there are, or the subject.
    let (ingress, egress) = match policy {
        Policy::Network(policy) => {
            (policy.ingress.as_ref().map_or(0, Vec::len), policy.egress.as_ref().map_or(0, Vec::len))
        }
        Policy::Cluster(policy) => (policy.ingress.len(), policy.egress.len()),
        Policy::Cilium(_) => return,
    };
    for issue in parsed.issues.iter().filter(|issue| issue.severity > Severity::Warning && !is_harmless(&issue.path)) {
        let of_nobody = governs_nobody(policy) || (ingress + egress == 0);
        // Rules of a direction that `policyTypes` leaves out are read, and are not in the policy.
        let left_out = match policy {
            Policy::Network(policy) => {
                (issue.path.starts_with("spec.ingress") && policy.ingress.is_none())
                    || (issue.path.starts_with("spec.egress") && policy.egress.is_none())
            }
            _ => false,
        };
        let in_its_rule = |fault: &&&Unusable| {
            let rule = |path: &str| path.split_once(']').map(|(rule, _)| rule.to_owned());
            fault.path == issue.path || (rule(&fault.path).is_some() && rule(&fault.path) == rule(&issue.path))
        };
        let effective = faults.iter().find(in_its_rule).is_some() || of_nobody || left_out;
        // With a fault of the whole, the rules carry that one.
        let whole = !faults.is_empty() && faults.iter().all(|fault| !fault.path.contains('['));
        assert!(effective || whole, "without effect: {issue} of {value}\n{policy:#?}");
    }
}

#[test]
fn good_objects_are_good() {
    for text in GOOD {
        let value = yaml(text);
        assert_eq!(told(&value), [""; 0], "{text}");
        check(&object(&value), &value);
    }
}

/// Each part of a good object is replaced by each of many values. What changes nothing is told of in no way.
#[test]
fn one_part_is_something_else() {
    let mut count = 0;
    for text in GOOD {
        let good = yaml(text);
        let mut places = Vec::new();
        parts(&good, "", &mut places);
        for place in &places {
            for replacement in replacements() {
                let mut value = good.clone();
                *value.pointer_mut(place).expect("a part") = replacement;
                let parsed = object(&value);
                check(&parsed, &value);
                if value == good {
                    assert!(parsed.issues.is_empty(), "{value}");
                }
                count += 1;
            }
        }
    }
    assert!(count > 5_000, "{count}");
}

/// Wherever a field that is not known comes to stand, it is told of, and has the effect that it must.
#[test]
fn one_field_is_not_known() {
    for text in GOOD {
        let good = yaml(text);
        let mut places = Vec::new();
        parts(&good, "", &mut places);
        for place in places.iter().filter(|place| !place.starts_with("/metadata") && *place != "/status") {
            let mut value = good.clone();
            let Some(Value::Object(map)) = value.pointer_mut(place) else { continue };
            map.insert("zz".to_owned(), json!({"value": "x".repeat(10_000)}));
            let parsed = object(&value);
            check(&parsed, &value);
            let path = place.trim_start_matches('/').split('/').fold(String::new(), |path, step| match step {
                "" => path,
                _ if step.bytes().all(|byte| byte.is_ascii_digit()) => format!("{path}[{step}]"),
                _ if path.is_empty() => step.to_owned(),
                _ => format!("{path}.{step}"),
            });
            let (severity, path) = match (place.ends_with("matchLabels"), path.as_str()) {
                (true, _) => (Severity::Refused, path),
                (false, "") => (Severity::Unusable, "zz".to_owned()),
                (false, _) => (Severity::Unusable, format!("{path}.zz")),
            };
            let found = parsed.issues.iter().any(|issue| issue.severity == severity && issue.path == path);
            assert!(found, "{place}: {:?}", parsed.issues);
        }
    }
}

/// A part that is taken away: an element of a list, or a field.
#[test]
fn one_part_is_missing() {
    for text in GOOD {
        let good = yaml(text);
        let mut places = Vec::new();
        parts(&good, "", &mut places);
        for place in places.iter().skip(1) {
            let mut value = good.clone();
            let (parent, name) = place.rsplit_once('/').expect("not the whole");
            match value.pointer_mut(parent) {
                Some(Value::Object(map)) => drop(map.remove(&name.replace("~1", "/").replace("~0", "~"))),
                Some(Value::Array(list)) => drop(list.remove(name.parse().expect("an index"))),
                other => panic!("{other:?}"),
            }
            check(&object(&value), &value);
        }
    }
}

/// Names of real fields, so that broken objects get far.
const FIELDS: &[&str] = &[
    "action",
    "addresses",
    "annotations",
    "cidr",
    "cidrGroupRef",
    "cidrGroupSelector",
    "clusterIPs",
    "conditions",
    "containers",
    "description",
    "destinationNamedPort",
    "destinationPort",
    "dns",
    "domainNames",
    "egress",
    "egressDeny",
    "enableDefaultDeny",
    "end",
    "endPort",
    "endpointSelector",
    "endpoints",
    "except",
    "externalCIDRs",
    "from",
    "fromCIDR",
    "fromCIDRSet",
    "fromEndpoints",
    "fromEntities",
    "fromNodes",
    "fromRequires",
    "http",
    "icmps",
    "ingress",
    "ingressDeny",
    "ipBlock",
    "key",
    "labels",
    "log",
    "matchExpressions",
    "matchLabels",
    "matchName",
    "matchPattern",
    "method",
    "name",
    "namedPort",
    "namespace",
    "namespaceSelector",
    "namespaces",
    "networks",
    "nodeSelector",
    "nodes",
    "number",
    "operator",
    "path",
    "phase",
    "podIPs",
    "podSelector",
    "pods",
    "policyTypes",
    "port",
    "portNumber",
    "portRange",
    "ports",
    "priority",
    "protocol",
    "protocols",
    "range",
    "rules",
    "sctp",
    "serverNames",
    "spec",
    "specs",
    "start",
    "status",
    "subject",
    "tcp",
    "tier",
    "to",
    "toCIDR",
    "toCIDRSet",
    "toEndpoints",
    "toEntities",
    "toFQDNs",
    "toGroups",
    "toPorts",
    "toServices",
    "type",
    "udp",
    "value",
    "values",
    "zz",
];

const TEXTS: &[&str] = &[
    "",
    "-",
    "*",
    "a",
    "web",
    "TCP",
    "UDP",
    "ICMP",
    "In",
    "NotIn",
    "Exists",
    "DoesNotExist",
    "Ingress",
    "Egress",
    "Admin",
    "Baseline",
    "Accept",
    "Allow",
    "Deny",
    "Pass",
    "default",
    "10.0.0.0/8",
    "10.0.0.1/8",
    "10.1.0.0/16",
    "::ffff:0:0/96",
    "fd00::/8",
    "10.0.0.1",
    "*.example.com",
    "a.b",
    "world",
    "host",
    "all",
    "k8s:a",
    "reserved:host",
    "80",
    "GET",
    "/.*",
    "(",
    "a/b",
    "a b",
    "\u{0}",
    "ä",
];

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
        2 => prop_oneof![0_i64..2000, any::<i64>(), Just(65_535), Just(65_536)].prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        8 => prop::sample::select(TEXTS).prop_map(Value::from),
        1 => "\\PC{0,200}".prop_map(Value::from),
    ]
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![9 => prop::sample::select(FIELDS).prop_map(str::to_owned), 1 => "\\PC{0,100}"]
}

fn any_value() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(8, 128, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key(), inner), 0..8)
                .prop_map(|fields| Value::from(fields.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// A good object in which some parts are something else.
fn broken() -> impl Strategy<Value = Value> {
    let change = (any::<prop::sample::Index>(), any_value());
    (prop::sample::select(GOOD), prop::collection::vec(change, 1..6)).prop_map(|(text, changes)| {
        let mut value = yaml(text);
        for (index, replacement) in changes {
            let mut places = Vec::new();
            parts(&value, "", &mut places);
            if let Some(part) = value.pointer_mut(&places[index.index(places.len())]) {
                *part = replacement;
            }
        }
        value
    })
}

proptest! {
    /// Under every kind, also those that are read elsewhere.
    #[test]
    fn anything_under_a_kind(
        index in any::<prop::sample::Index>(),
        metadata in prop_oneof![3 => Just(json!({"name": "n", "namespace": "s"})), 1 => any_value()],
        spec in any_value(),
        status in any_value(),
        more in prop_oneof![5 => Just(None), 1 => (key(), any_value()).prop_map(Some)],
    ) {
        let (version, kind, _) = KINDS[index.index(KINDS.len())];
        let mut value = json!({"metadata": metadata, "spec": spec, "status": status});
        if let Some((key, more)) = more {
            value[key] = more;
        }
        value["apiVersion"] = version.into();
        value["kind"] = kind.into();
        let parsed = object(&value);
        prop_assert_eq!(&parsed, &object(&value), "the same object, the same answer");
        check(&parsed, &value);
    }

    #[test]
    fn anything_at_all(value in any_value()) {
        let parsed = object(&value);
        check(&parsed, &value);
    }

    #[test]
    fn a_good_object_with_several_parts_that_are_something_else(value in broken()) {
        check(&object(&value), &value);
    }
}
