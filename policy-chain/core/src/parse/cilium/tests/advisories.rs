//! Cilium's security advisories, the parser's share of each.

use serde_json::{Value, json};

use super::{allows, clusterwide, denies, namespaced, policy, rule};
use crate::model::cilium::{Application, CiliumPeers};
use crate::model::port::{PortTarget, Ports};
use crate::model::selector::{CiliumRequirement, LabelSource, Operator};
use crate::parse::{Severity, object};

/// Whether a requirement holds its selector in the policy's own namespace, by a label that pods cannot give themselves.
fn is_own(one: &CiliumRequirement) -> bool {
    one.source == LabelSource::Kubernetes
        && &*one.requirement.key == "io.kubernetes.pod.namespace"
        && one.requirement.operator == Operator::In
        && one.requirement.values == ["shop".into()]
}

/// Subjects that try to leave the namespace of their policy.
const ESCAPES: &[&str] = &[
    "{}",
    "{matchLabels: {io.kubernetes.pod.namespace: kube-system}}",
    "{matchLabels: {\"k8s:io.kubernetes.pod.namespace\": kube-system}}",
    "{matchLabels: {\"any:io.kubernetes.pod.namespace\": kube-system}}",
    "{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: In, values: [shop, kube-system]}]}",
    "{matchExpressions: [{key: \"k8s:io.kubernetes.pod.namespace\", operator: Exists}]}",
    "{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: DoesNotExist}]}",
    "{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: NotIn, values: [shop]}]}",
    "{matchExpressions: [{key: \"reserved:init\", operator: DoesNotExist}]}",
    "{matchExpressions: [{key: \"reserved:init\", operator: Exists}]}",
    "{matchLabels: {\"reserved:host\": \"\"}}",
    "{matchLabels: {$init: \"\"}}",
    "{matchLabels: {io.cilium.k8s.namespace.labels.team: a}}",
];

#[test]
fn cve_2023_39347_a_label_of_the_pod_does_not_choose_the_namespace() {
    // A pod's own label io.kubernetes.pod.namespace has the source k8s too; that it is not seen is the engine's share.
    // Here: what holds a policy in its namespace is one requirement, and no other on that key is left beside it.
    for escape in ESCAPES {
        let parsed = object(&namespaced(&format!("spec: {{endpointSelector: {escape}, ingress: [{{}}]}}")));
        let subject = &policy(&parsed).rules[0].subject;
        let on_namespace: Vec<_> =
            subject.requirements.iter().filter(|one| &*one.requirement.key == "io.kubernetes.pod.namespace").collect();
        assert!(matches!(on_namespace.as_slice(), [one] if is_own(one)), "{escape}: {subject:?}");
    }
}

#[test]
fn cve_2023_41333_no_subject_leaves_its_namespace() {
    for escape in ESCAPES {
        let parsed = object(&namespaced(&format!("spec: {{endpointSelector: {escape}, ingress: [{{}}]}}")));
        let subject = &policy(&parsed).rules[0].subject;
        assert!(subject.requirements.iter().any(is_own), "{escape}: {subject:?}");
        assert!(parsed.issues.iter().all(|issue| issue.severity == Severity::Warning), "{escape}: {:?}", parsed.issues);
    }
    // A cluster-wide one may.
    let rule = rule(&clusterwide(
        "spec: {endpointSelector: {matchExpressions: [{key: \"reserved:init\", operator: DoesNotExist}]}, ingress: [{}]}",
    ));
    assert_eq!(rule.subject.requirements.len(), 1);
}

#[test]
fn cve_2025_30163_nodes_are_no_endpoints() {
    let spec = "spec: {endpointSelector: {}, ingress: [{fromNodes: [{matchLabels: {a: b}}, {}]}], \
                egress: [{toNodes: [{matchLabels: {a: b}}, {}]}], ingressDeny: [{fromNodes: [{}]}]}";
    let rule = rule(&namespaced(spec));
    for allow in allows(&rule) {
        let allow = allow.as_ref().expect("usable");
        assert!(matches!(&allow.peers, CiliumPeers::Nodes(nodes) if nodes.len() == 2), "{allow:?}");
    }
    for deny in denies(&rule) {
        assert!(matches!(&deny.as_ref().expect("usable").peers, CiliumPeers::Nodes(_)));
    }
}

#[test]
fn cve_2025_64715_a_list_that_stands_for_nothing_is_nobody() {
    let ingress = ["fromEndpoints", "fromCIDR", "fromCIDRSet", "fromEntities", "fromGroups", "fromNodes"];
    let egress = ["toEndpoints", "toCIDR", "toCIDRSet", "toEntities", "toServices", "toGroups", "toNodes", "toFQDNs"];
    let mut tested = 0;
    for (direction, fields) in [("ingress", &ingress[..]), ("egress", &egress[..])] {
        for field in fields {
            for ports in [json!(null), json!([]), json!([{"ports": [{"port": "80", "protocol": "TCP"}]}])] {
                for (name, deny) in [(direction.to_owned(), false), (format!("{direction}Deny"), true)] {
                    if deny && *field == "toFQDNs" {
                        continue;
                    }
                    let mut document = namespaced("spec: {endpointSelector: {}}");
                    document["spec"][&name] = json!([{*field: [], "toPorts": ports}]);
                    let rule = rule(&document);
                    let peers: Vec<&CiliumPeers> = allows(&rule)
                        .map(|rule| &rule.as_ref().expect("usable").peers)
                        .chain(denies(&rule).map(|rule| &rule.as_ref().expect("usable").peers))
                        .collect();
                    assert_eq!(peers, [&CiliumPeers::Nothing], "{document}");
                    tested += 1;
                }
            }
        }
    }
    assert_eq!(tested, 3 * (6 * 2 + 8 * 2 - 1));
    // A group keeps its name, whether or not someone has written the CiliumCIDRGroup yet.
    let rule =
        rule(&namespaced("spec: {endpointSelector: {}, egress: [{toGroups: [{aws: {securityGroupsIds: [sg-0]}}]}]}"));
    let allow = rule.egress[0].as_ref().expect("usable");
    assert!(matches!(&allow.peers, CiliumPeers::Groups(names) if names.len() == 1));
}

#[test]
fn cve_2023_30851_an_allow_of_one_peer_says_nothing_of_another() {
    let rule = rule(&namespaced(
        "spec: {endpointSelector: {}, egress: [{toEndpoints: [{matchLabels: {a: b}}, {matchLabels: {c: d}}], \
         toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {http: [{method: GET}]}}]}, \
         {toEndpoints: [{matchLabels: {a: b}}]}]}",
    ));
    let rules: Vec<_> = rule.egress.iter().map(|rule| rule.as_ref().expect("usable")).collect();
    assert!(matches!(&rules[0].peers, CiliumPeers::Endpoints(peers) if peers.len() == 2));
    assert!(matches!(&rules[0].ports[0].application, Application::Http(rules) if rules.len() == 1));
    assert!(matches!(&rules[1].peers, CiliumPeers::Endpoints(peers) if peers.len() == 1));
    assert_eq!(rules[1].ports[0].application, Application::None);
}

#[test]
fn cve_2024_47825_a_broad_deny_stands_without_default_deny() {
    let rule = rule(&namespaced(
        "spec: {endpointSelector: {}, enableDefaultDeny: {egress: false}, egressDeny: [{toCIDR: [10.0.0.0/8]}], \
         egress: [{toCIDR: [10.0.0.1/32]}, {toEntities: [all]}]}",
    ));
    assert!(!rule.default_deny_egress && !rule.default_deny_ingress);
    let deny = rule.egress_deny[0].as_ref().expect("usable");
    assert!(matches!(&deny.peers, CiliumPeers::Cidrs(blocks) if blocks.len() == 1));
    assert_eq!(deny.ports, Ports::Any);
}

#[test]
fn cve_2024_52529_a_range_does_not_swallow_the_application_rules_inside_of_it() {
    let rule = rule(&namespaced(
        "spec: {endpointSelector: {}, ingress: [{fromEndpoints: [{}], toPorts: [\
         {ports: [{port: \"80\", endPort: 444, protocol: TCP}]}, \
         {ports: [{port: \"80\", protocol: TCP}], rules: {http: [{}]}}]}]}",
    ));
    let ports = &rule.ingress[0].as_ref().expect("usable").ports;
    assert_eq!(ports[0].application, Application::None);
    assert!(matches!(&ports[0].ports, Ports::Of(ports) if ports[0].port == PortTarget::Range(80, 444)));
    assert!(matches!(&ports[1].application, Application::Http(rules) if rules.len() == 1));
    assert!(matches!(&ports[1].ports, Ports::Of(ports) if ports[0].port == PortTarget::Range(80, 80)));
}

#[test]
fn cilium_41314_one_bad_expression_does_not_take_the_policy_with_it() {
    let long = "/(a|b){1,100}/[0-9a-f-]{36}(/.*)?";
    let document = |path: &str| {
        let mut document = namespaced("spec: {endpointSelector: {}}");
        document["spec"]["ingress"] = json!([
            {"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"path": path}, {"path": "/ok"}]}}]},
            {"fromEntities": ["world"]}
        ]);
        document
    };
    let http = |document: &Value| {
        let parsed = object(document);
        let rule = policy(&parsed).rules[0].clone();
        assert!(rule.ingress[1].is_ok());
        match &rule.ingress[0].as_ref().expect("usable").ports[0].application {
            Application::Http(rules) => (rules.len(), parsed.issues.len()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(http(&document(long)), (2, 0));
    for bad in ["(", "[", "a{1,1000000}", "(((a{1000}){1000}){1000})", "(?=a)", "\\1", &"(a".repeat(5000)] {
        assert_eq!(http(&document(bad)), (1, 1), "{bad}");
    }
}
