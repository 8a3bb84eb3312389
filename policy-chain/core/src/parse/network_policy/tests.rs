use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::flow::Protocol;
use crate::model::network_policy::{NetworkPeer, NetworkPeers, NetworkPolicy, NetworkRule};
use crate::model::port::{PortMatch, PortTarget, Ports, ProtocolMatch};
use crate::model::selector::{LabelSelector, Operator, Requirement};
use crate::model::{Policy, PolicyKind, PolicyRef};
use crate::parse::object;
use crate::parse::tests::{policy, table, told, yaml};

/// A NetworkPolicy with this `spec`.
fn with_spec(spec: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "shop"}, "spec": yaml(spec),
    })
}

fn network(value: &Value) -> NetworkPolicy {
    match policy(value) {
        Policy::Network(policy) => policy,
        other => panic!("{other:?}"),
    }
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a block")
}

fn label(key: &str, operator: Operator, values: &[&str]) -> Requirement {
    Requirement { key: key.into(), operator, values: values.iter().map(|&value| value.into()).collect() }
}

fn selector(requirements: &[Requirement]) -> LabelSelector {
    LabelSelector { requirements: requirements.to_vec() }
}

fn port(protocol: Protocol, port: PortTarget) -> PortMatch {
    PortMatch { protocol: ProtocolMatch::Exactly(protocol), port }
}

/// The example of the documentation (kubernetes.io, Network Policies), with every kind of peer, port and operator.
#[test]
fn a_policy_with_everything() {
    let value = yaml(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: everything, namespace: shop, annotations: {sluice.dev/audit: 'true'}, managedFields: [{}]}
spec:
  podSelector: {matchLabels: {role: db}, matchExpressions: [{key: a.b/c, operator: NotIn, values: [z, '', z]}]}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24]}
    - namespaceSelector: {matchLabels: {project: shop}}
    - podSelector: {matchExpressions: [{key: role, operator: Exists}, {key: old, operator: DoesNotExist, values: []}]}
    - {namespaceSelector: {}, podSelector: {matchLabels: {role: web}}}
    ports:
    - {protocol: TCP, port: 6379}
    - {port: 32000, endPort: 32768}
    - {protocol: UDP, port: dns}
    - {protocol: SCTP}
    - {}
  - {}
  egress:
  - {from: null, to: [], ports: []}
status: {anything: goes}
",
    );
    assert_eq!(told(&value), [""; 0]);
    let expected = NetworkPolicy {
        id: PolicyRef { kind: PolicyKind::NetworkPolicy, namespace: Some("shop".into()), name: "everything".into() },
        audit: true,
        pods: selector(&[label("a.b/c", Operator::NotIn, &["", "z"]), label("role", Operator::In, &["db"])]),
        ingress: Some(vec![
            Ok(NetworkRule {
                peers: NetworkPeers::Of(vec![
                    Ok(NetworkPeer::IpBlock { cidr: net("172.17.0.0/16"), except: vec![net("172.17.1.0/24")] }),
                    Ok(NetworkPeer::Pods {
                        namespaces: Some(selector(&[label("project", Operator::In, &["shop"])])),
                        pods: selector(&[]),
                    }),
                    Ok(NetworkPeer::Pods {
                        namespaces: None,
                        pods: selector(&[
                            label("old", Operator::DoesNotExist, &[]),
                            label("role", Operator::Exists, &[]),
                        ]),
                    }),
                    Ok(NetworkPeer::Pods {
                        namespaces: Some(selector(&[])),
                        pods: selector(&[label("role", Operator::In, &["web"])]),
                    }),
                ]),
                ports: Ports::Of(vec![
                    port(Protocol::TCP, PortTarget::Range(6379, 6379)),
                    port(Protocol::TCP, PortTarget::Range(32000, 32768)),
                    port(Protocol::UDP, PortTarget::Named("dns".into())),
                    port(Protocol::SCTP, PortTarget::Any),
                    port(Protocol::TCP, PortTarget::Any),
                ]),
            }),
            Ok(NetworkRule { peers: NetworkPeers::All, ports: Ports::Any }),
        ]),
        egress: Some(vec![Ok(NetworkRule { peers: NetworkPeers::All, ports: Ports::Any })]),
    };
    assert_eq!(network(&value), expected);
}

/// reference: NetworkPolicySpec.policyTypes.
#[test]
fn which_directions_are_isolated() {
    let rows: &[(&str, bool, bool)] = &[
        ("{}", true, false),
        ("{podSelector: null}", true, false),
        ("{ingress: []}", true, false),
        ("{egress: []}", true, false),
        ("{egress: null}", true, false),
        // A policy for egress only isolates ingress too, unless it says otherwise.
        ("{egress: [{}]}", true, true),
        ("{ingress: [{}], egress: [{}]}", true, true),
        ("{policyTypes: [], egress: [{}]}", true, true),
        ("{policyTypes: null}", true, false),
        ("{policyTypes: [Egress]}", false, true),
        ("{policyTypes: [Egress], ingress: [{}]}", false, true),
        ("{policyTypes: [Ingress], egress: [{}]}", true, false),
        ("{policyTypes: [Ingress, Ingress]}", true, false),
        ("{policyTypes: [Ingress, Egress]}", true, true),
        // What cannot be read isolates both.
        ("{policyTypes: [ingress]}", true, true),
        ("{policyTypes: Ingress}", true, true),
        ("{policyTypes: [Egress, Egress, Egress]}", true, true),
        ("{egress: 1}", true, true),
        ("{policyType: [Egress]}", true, true),
        ("{policyType: [Egress], policyTypes: [Ingress]}", true, false),
    ];
    for &(spec, ingress, egress) in rows {
        let policy = network(&with_spec(spec));
        assert_eq!((policy.ingress.is_some(), policy.egress.is_some()), (ingress, egress), "{spec}");
    }
    let mut value = with_spec("{}");
    value.as_object_mut().expect("an object").remove("spec");
    assert_eq!(
        told(&value),
        ["warning spec: is missing: the policy selects every pod of its namespace and allows nothing in"]
    );
    let policy = network(&value);
    assert_eq!((policy.ingress, policy.egress), (Some(Vec::new()), None));
}

#[test]
fn what_is_told_of_a_spec() {
    table(
        &[
            ("{}", &[]),
            ("7", &["refused spec: 7 is not an object"]),
            ("{podSelector: []}", &["refused spec.podSelector: [] is not an object"]),
            ("{podselector: {}}", &["unusable spec.podselector: this field is not known (value {})"]),
            (
                "{policyTypes: [Ingress, Both]}",
                &["refused spec.policyTypes[1]: \"Both\" is neither Ingress nor Egress"],
            ),
            (
                "{policyTypes: [Ingress, Egress, Egress]}",
                &["refused spec.policyTypes: has 3 elements; 0 to 2 are possible"],
            ),
            ("{policyTypes: [7]}", &["refused spec.policyTypes[0]: 7 is not a string"]),
            ("{policyTypes: [Egress], ingress: []}", &[]),
            (
                "{policyTypes: [Egress], ingress: [{}]}",
                &["warning spec.ingress: is not in force: policyTypes does not have Ingress"],
            ),
            (
                "{policyTypes: [Ingress], egress: [{}]}",
                &["warning spec.egress: is not in force: policyTypes does not have Egress"],
            ),
            ("{ingress: {}}", &["refused spec.ingress: {} is not a list"]),
            // `null` would be a rule without conditions, which allows everything.
            ("{ingress: [null]}", &["refused spec.ingress[0]: null is not an object"]),
            ("{ingress: [{from: {}}]}", &["refused spec.ingress[0].from: {} is not a list"]),
            ("{ingress: [{ports: {}}]}", &["refused spec.ingress[0].ports: {} is not a list"]),
            ("{ingress: [{to: []}]}", &["unusable spec.ingress[0].to: this field is not known (value [])"]),
            ("{egress: [{from: []}]}", &["unusable spec.egress[0].from: this field is not known (value [])"]),
        ],
        with_spec,
    );
}

#[test]
fn what_is_told_of_a_peer() {
    table(
        &[
            ("[{podSelector: {}}, {namespaceSelector: {}}, {ipBlock: {cidr: '::/0'}}]", &[]),
            ("[null]", &["refused spec.ingress[0].from[0]: null is not an object"]),
            (
                "[{}]",
                &["refused spec.ingress[0].from[0]: has no peer; podSelector, namespaceSelector or ipBlock is needed"],
            ),
            (
                "[{podSelector: null}]",
                &["refused spec.ingress[0].from[0]: has no peer; podSelector, namespaceSelector or ipBlock is needed"],
            ),
            (
                "[{podSelector: {}}, {namespaces: {}}]",
                &["unusable spec.ingress[0].from[1].namespaces: this field is not known (value {})"],
            ),
            (
                "[{domainNames: [example.com]}]",
                &["unusable spec.ingress[0].from[0].domainNames: this field is not known (value [\"example.com\"])"],
            ),
            (
                "[{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]",
                &["refused spec.ingress[0].from[0]: has ipBlock and another peer; ipBlock stands alone"],
            ),
            (
                "[{namespaceSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]",
                &["refused spec.ingress[0].from[0]: has ipBlock and another peer; ipBlock stands alone"],
            ),
            ("[{ipBlock: {}}]", &["refused spec.ingress[0].from[0].ipBlock.cidr: is missing"]),
            ("[{ipBlock: 1}]", &["refused spec.ingress[0].from[0].ipBlock: 1 is not an object"]),
            (
                "[{ipBlock: {cidr: 10.0.0.0}}]",
                &["refused spec.ingress[0].from[0].ipBlock.cidr: \"10.0.0.0\" is not an address block, such as \
                   10.0.0.0/8 or fd00::/8"],
            ),
            (
                "[{ipBlock: {cidr: 10.0.0.0/8, expect: []}}]",
                &["unusable spec.ingress[0].from[0].ipBlock.expect: this field is not known (value [])"],
            ),
            (
                "[{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]",
                &["refused spec.ingress[0].from[0].ipBlock.except[0]: \"10.0.0.0/8\" is not a part of cidr, \
                   10.0.0.0/8, that is smaller than it"],
            ),
            (
                "[{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 11.0.0.0/9]}}]",
                &["refused spec.ingress[0].from[0].ipBlock.except[1]: \"11.0.0.0/9\" is not a part of cidr, \
                   10.0.0.0/8, that is smaller than it"],
            ),
            (
                "[{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/7]}}]",
                &["refused spec.ingress[0].from[0].ipBlock.except[0]: \"10.0.0.0/7\" is not a part of cidr, \
                   10.0.0.0/8, that is smaller than it"],
            ),
            (
                "[{ipBlock: {cidr: 0.0.0.0/0, except: ['fd00::/8']}}]",
                &["refused spec.ingress[0].from[0].ipBlock.except[0]: \"fd00::/8\" is not a part of cidr, 0.0.0.0/0, \
                   that is smaller than it"],
            ),
            (
                "[{ipBlock: {cidr: 0.0.0.0/0, except: [1]}}]",
                &["refused spec.ingress[0].from[0].ipBlock.except[0]: 1 is not a string"],
            ),
            (
                "[{ipBlock: {cidr: 192.168.1.1/4, except: [192.168.1.2/32]}}]",
                &["warning spec.ingress[0].from[0].ipBlock.cidr: \"192.168.1.1/4\" has host bits; it is used as \
                   192.0.0.0/4"],
            ),
        ],
        |peers| with_spec(&format!("{{ingress: [{{from: {peers}}}]}}")),
    );
}

/// kubernetes, `ValidateNetworkPolicyPort`.
#[test]
fn what_is_told_of_a_port() {
    const NAME: &str = "1 to 15 lower case letters, digits and '-', one letter at the least, no '--' and no '-' at \
                        either end";
    let refused_name =
        |name: &str| format!("refused spec.egress[0].ports[0].port: {name} is not the name of a port: {NAME}");
    for name in ["80", "", "a--b", "-a", "a-", "HTTP", "http_", "a234567890123456", "1-2"] {
        let value = with_spec(&format!("{{egress: [{{ports: [{{port: '{name}'}}]}}]}}"));
        assert_eq!(told(&value), [refused_name(&format!("{name:?}"))]);
    }
    table(
        &[
            ("{}", &[]),
            ("{protocol: null, port: null, endPort: null}", &[]),
            ("{port: 1, endPort: 1}", &[]),
            ("{port: 65535}", &[]),
            ("{port: a23456789012345}", &[]),
            ("{protocol: SCTP, port: 1-a}", &[]),
            ("null", &["refused spec.egress[0].ports[0]: null is not an object"]),
            ("{protocol: tcp}", &["refused spec.egress[0].ports[0].protocol: \"tcp\" is none of TCP, UDP, SCTP"]),
            ("{protocol: ICMP}", &["refused spec.egress[0].ports[0].protocol: \"ICMP\" is none of TCP, UDP, SCTP"]),
            ("{protocol: ''}", &["refused spec.egress[0].ports[0].protocol: \"\" is none of TCP, UDP, SCTP"]),
            ("{protocol: 6}", &["refused spec.egress[0].ports[0].protocol: 6 is not a string"]),
            ("{port: 0}", &["refused spec.egress[0].ports[0].port: 0 is not a whole number from 1 to 65535"]),
            ("{port: 65536}", &["refused spec.egress[0].ports[0].port: 65536 is not a whole number from 1 to 65535"]),
            ("{port: -1}", &["refused spec.egress[0].ports[0].port: -1 is not a whole number from 1 to 65535"]),
            ("{port: 1.5}", &["refused spec.egress[0].ports[0].port: 1.5 is not a whole number from 1 to 65535"]),
            ("{port: true}", &["refused spec.egress[0].ports[0].port: true is not a whole number from 1 to 65535"]),
            ("{endPort: 80}", &["refused spec.egress[0].ports[0].endPort: needs a port as the beginning of the range"]),
            (
                "{port: http, endPort: 80}",
                &[
                    "refused spec.egress[0].ports[0].endPort: needs a port with a number, not a name, as the beginning of \
                   the range",
                ],
            ),
            (
                "{port: 80, endPort: 79}",
                &["refused spec.egress[0].ports[0].endPort: 79 has to be not less than the beginning of the range, 80"],
            ),
            (
                "{port: 80, endPort: 65536}",
                &["refused spec.egress[0].ports[0].endPort: 65536 is not a whole number from 1 to 65535"],
            ),
            (
                "{port: 80, endPort: '90'}",
                &["refused spec.egress[0].ports[0].endPort: \"90\" is not a whole number from 1 to 65535"],
            ),
            (
                "{port: 0, endPort: 0}",
                &[
                    "refused spec.egress[0].ports[0].port: 0 is not a whole number from 1 to 65535",
                    "refused spec.egress[0].ports[0].endPort: 0 is not a whole number from 1 to 65535",
                ],
            ),
            ("{prot: TCP}", &["unusable spec.egress[0].ports[0].prot: this field is not known (value \"TCP\")"]),
        ],
        |port| with_spec(&format!("{{egress: [{{ports: [{port}]}}]}}")),
    );
}

/// A peer that cannot be used takes nothing from the others of its rule; any other part takes the rule.
#[test]
fn what_cannot_be_used_allows_nothing() {
    let value = with_spec(
        "{ingress: [{from: [{}, {podSelector: {}}]}, {from: [{}]}, {ports: [{port: 0}, {port: 80}]}, {prots: []}, {}]}",
    );
    let rules = network(&value).ingress.expect("isolated");
    let fault = |rule: usize| rules[rule].as_ref().expect_err("unusable").path.clone();
    let peers = |rule: usize| match &rules[rule].as_ref().expect("usable").peers {
        NetworkPeers::Of(peers) => peers.iter().map(Result::is_ok).collect::<Vec<_>>(),
        NetworkPeers::All => panic!("all"),
    };
    assert_eq!(peers(0), [false, true]);
    assert_eq!(peers(1), [false]);
    assert_eq!(fault(2), "spec.ingress[2].ports[0].port");
    assert_eq!(fault(3), "spec.ingress[3].prots");
    assert!(rules[4].is_ok());

    // A field of spec that is not known: no rule can be trusted.
    let value = with_spec("{deny: [], ingress: [{}], egress: [{}]}");
    let policy = network(&value);
    for rules in [policy.ingress, policy.egress] {
        let faults: Vec<_> =
            rules.expect("isolated").into_iter().map(|rule| rule.expect_err("unusable").path).collect();
        assert_eq!(faults, ["spec.deny"]);
    }
    // Whom the policy governs cannot be told: there is none.
    assert_eq!(object(&with_spec("{podSelector: {matchLabels: {'a b': c}}}")).object, None);
}

#[test]
fn rules_have_a_limit() {
    let rules: Vec<Value> = vec![json!({}); super::MAX_RULES + 1];
    let mut value = with_spec("{}");
    value["spec"]["ingress"] = rules.into();
    assert_eq!(told(&value), ["unusable spec.ingress: has 10001 elements; those after the first 10000 allow nothing"]);
    assert_eq!(network(&value).ingress.map(|rules| rules.len()), Some(super::MAX_RULES));
}

/// Many broken peers take no room, and a rule that has only such ones does not become one without peers.
#[test]
fn broken_peers_are_not_hoarded() {
    let broken = vec![json!({}); 1000];
    let mut value = with_spec("{ingress: [{}, {}]}");
    value["spec"]["ingress"][0]["from"] = broken.clone().into();
    value["spec"]["ingress"][1]["from"] = [broken, vec![json!({"podSelector": {}})]].concat().into();
    assert_eq!(told(&value).last().map(String::as_str), Some("warning 1936 more faults are not shown"));
    let rules = network(&value).ingress.expect("isolated");
    let usable = |rule: &NetworkRule| match &rule.peers {
        NetworkPeers::Of(peers) => (peers.len(), peers.iter().filter(|peer| peer.is_ok()).count()),
        NetworkPeers::All => panic!("all"),
    };
    let found: Vec<_> = rules.iter().map(|rule| usable(rule.as_ref().expect("a rule"))).collect();
    assert_eq!(found, [(64, 0), (2, 1)]);
}

/// An IPv4 block that is written as IPv6 is IPv4: no packet has such an address.
#[test]
fn ipv4_that_is_written_as_ipv6() {
    let value = with_spec("{ingress: [{from: [{ipBlock: {cidr: '::ffff:10.0.0.0/104', except: [10.1.0.0/16]}}]}]}");
    let Some(Ok(rule)) = network(&value).ingress.and_then(|rules| rules.into_iter().next()) else { panic!() };
    let NetworkPeers::Of(peers) = rule.peers else { panic!() };
    let address: IpAddr = "10.2.0.1".parse().expect("an address");
    match peers.as_slice() {
        [Ok(NetworkPeer::IpBlock { cidr, except })] => {
            assert!(cidr.contains(&address) && !except[0].contains(&address));
        }
        other => panic!("{other:?}"),
    }
}
