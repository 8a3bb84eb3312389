use serde_json::{Value, json};

use crate::l7::dns::NamePattern;
use crate::model::network_policy::{NetworkPeer, NetworkPeers, NetworkPolicy};
use crate::model::{Policy, PolicyKind};
use crate::parse::object;
use crate::parse::tests::{policy, table, told, yaml};

fn with_spec(spec: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.aws/v1alpha1", "kind": "ApplicationNetworkPolicy",
        "metadata": {"name": "p", "namespace": "shop"}, "spec": yaml(spec),
    })
}

fn with_peer(peer: &str) -> Value {
    with_spec(&format!("{{podSelector: {{}}, egress: [{{to: [{{{peer}}}], ports: [{{port: 443}}]}}]}}"))
}

/// But for domain names, it is a NetworkPolicy.
#[test]
fn it_is_a_network_policy() {
    let spec = "{podSelector: {matchLabels: {a: b}}, policyTypes: [Ingress, Egress],
        ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 1, endPort: 2}]}],
        egress: [{to: [{podSelector: {}, namespaceSelector: {}}]}]}";
    let value = with_spec(spec);
    let mut other = value.clone();
    other["apiVersion"] = json!("networking.k8s.io/v1");
    other["kind"] = json!("NetworkPolicy");
    assert_eq!((told(&value), told(&other)), (vec![], vec![]));
    let (Policy::Network(policy), Policy::Network(other)) = (policy(&value), policy(&other)) else { panic!() };
    let mut id = other.id.clone();
    id.kind = PolicyKind::AwsApplicationNetworkPolicy;
    assert_eq!(policy, NetworkPolicy { id, ..other });
}

#[test]
fn domain_names() {
    let value = with_peer("domainNames: [example.com, '*.amazonaws.com']");
    assert_eq!(told(&value), [""; 0]);
    let Policy::Network(policy) = policy(&value) else { panic!() };
    let names = ["example.com", "*.amazonaws.com"].map(|name| NamePattern::domain(name).expect("a name"));
    let egress = policy.egress.expect("isolated");
    assert_eq!(egress[0].as_ref().expect("usable").peers, NetworkPeers::Of(vec![Ok(NetworkPeer::Names(names.into()))]));
    const ALONE: &str = "refused spec.egress[0].to[0]: has domainNames and another peer; domainNames stands alone";
    table(
        &[
            ("domainNames: [a.b], podSelector: {}", &[ALONE]),
            ("domainNames: [a.b], namespaceSelector: {}", &[ALONE]),
            (
                "domainNames: [a.b], ipBlock: {cidr: 10.0.0.0/8}",
                &["refused spec.egress[0].to[0]: has ipBlock and another peer; ipBlock stands alone"],
            ),
            ("domainNames: []", &["refused spec.egress[0].to[0].domainNames: has 0 elements; at least 1 is needed"]),
            (
                "",
                &[
                    "refused spec.egress[0].to[0]: has no peer; podSelector, namespaceSelector, ipBlock or domainNames is \
                   needed",
                ],
            ),
        ],
        with_peer,
    );
    let many: Vec<String> = (0..100).map(|index| format!("a{index}.b")).collect();
    assert_eq!(told(&with_peer(&format!("domainNames: [{}]", many.join(", ")))), [""; 0]);
    // Not of ingress.
    let value = with_spec("{podSelector: {}, ingress: [{from: [{domainNames: [a.b]}]}]}");
    assert_eq!(
        told(&value),
        ["unusable spec.ingress[0].from[0].domainNames: this field is not known (value [\"a.b\"])"]
    );
}

/// Its schema requires the selector, and does not hold the grammar of labels.
#[test]
fn the_selector() {
    let value = with_spec("{}");
    assert_eq!(told(&value), ["refused spec.podSelector: is missing"]);
    assert_eq!(object(&value).object, None);
    let value = with_spec("{podSelector: {matchLabels: {'': a}}}");
    assert!(told(&value)[0].starts_with("unusable spec.podSelector.matchLabels: \"\" is not a label key"));
}
