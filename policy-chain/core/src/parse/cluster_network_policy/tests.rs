use serde_json::{Value, json};

use crate::flow::Protocol;
use crate::l7::dns::NamePattern;
use crate::model::cluster_network_policy::{
    Action, BANP_PRIORITY, ClusterMatch, ClusterNetworkPolicy, ClusterPeer, ClusterRule, ClusterSubject, ClusterTier,
};
use crate::model::port::{PortMatch, PortTarget, Ports, ProtocolMatch};
use crate::model::selector::{LabelSelector, Operator, Requirement};
use crate::model::{Policy, PolicyKind, PolicyRef};
use crate::parse::tests::{policy, table, told, yaml};

const CLUSTER: (&str, &str) = ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy");
const ADMIN: (&str, &str) = ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy");
const BASELINE: (&str, &str) = ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy");
const AWS: (&str, &str) = ("networking.k8s.aws/v1alpha1", "ClusterNetworkPolicy");

/// A policy of a kind: good, but for the fields that `spec` adds or replaces.
fn with_spec(kind: (&str, &str), spec: &str) -> Value {
    let mut whole = yaml(match kind.1 {
        "ClusterNetworkPolicy" => "{tier: Admin, priority: 7, subject: {namespaces: {}}}",
        "AdminNetworkPolicy" => "{priority: 7, subject: {namespaces: {}}}",
        _ => "{subject: {namespaces: {}}}",
    });
    let Value::Object(different) = yaml(spec) else { panic!("{spec}") };
    whole.as_object_mut().expect("an object").extend(different);
    json!({"apiVersion": kind.0, "kind": kind.1, "metadata": {"name": "default"}, "spec": whole})
}

fn cluster(value: &Value) -> ClusterNetworkPolicy {
    match policy(value) {
        Policy::Cluster(policy) => policy,
        other => panic!("{other:?}"),
    }
}

fn equals(key: &str, value: &str) -> LabelSelector {
    let requirement = Requirement { key: key.into(), operator: Operator::In, values: vec![value.into()] };
    LabelSelector { requirements: vec![requirement] }
}

fn port(protocol: Protocol, first: u16, last: u16) -> PortMatch {
    PortMatch { protocol: ProtocolMatch::Exactly(protocol), port: PortTarget::Range(first, last) }
}

fn named(name: &str) -> PortMatch {
    PortMatch { protocol: ProtocolMatch::Transport, port: PortTarget::Named(name.into()) }
}

fn rule(name: Option<&str>, action: Action, peers: Vec<ClusterPeer>, ports: Ports) -> ClusterRule {
    ClusterRule { name: name.map(Into::into), action, matches: Ok(ClusterMatch { peers, ports }) }
}

#[test]
fn a_policy_with_everything() {
    let value = yaml(
        "
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: everything, uid: 7b, annotations: {sluice.dev/audit: 'false'}}
spec:
  tier: Baseline
  priority: 1000
  subject: {pods: {namespaceSelector: {matchLabels: {ns: x}}, podSelector: {matchLabels: {pod: a}}}}
  ingress:
  - action: Pass
    from:
    - namespaces: {matchLabels: {ns: y}}
    - pods: {podSelector: {matchLabels: {pod: b}}}
    protocols:
    - tcp: {destinationPort: {number: 80}}
    - udp: {destinationPort: {range: {start: 1, end: 65535}}}
    - sctp: {destinationPort: {number: 65535}}
    - destinationNamedPort: web
  egress:
  - name: names
    action: Accept
    to: [{domainNames: ['*.Example.com', example.com.]}]
  - name: ''
    action: Deny
    to: [{nodes: {matchLabels: {role: edge}}}, {networks: [10.0.0.0/8, 'fd00::/8', 10.0.0.1/8]}]
",
    );
    assert_eq!(
        told(&value),
        ["warning spec.egress[1].to[1].networks[2]: \"10.0.0.1/8\" has host bits; it is used as 10.0.0.0/8"]
    );
    let expected = ClusterNetworkPolicy {
        id: PolicyRef { kind: PolicyKind::ClusterNetworkPolicy, namespace: None, name: "everything".into() },
        audit: false,
        tier: ClusterTier::Baseline,
        priority: 1000,
        subject: Some(ClusterSubject::Pods { namespaces: equals("ns", "x"), pods: equals("pod", "a") }),
        ingress: vec![rule(
            None,
            Action::Pass,
            vec![
                ClusterPeer::Pods(ClusterSubject::Namespaces(equals("ns", "y"))),
                ClusterPeer::Pods(ClusterSubject::Pods {
                    namespaces: LabelSelector::default(),
                    pods: equals("pod", "b"),
                }),
            ],
            Ports::Of(vec![
                port(Protocol::TCP, 80, 80),
                port(Protocol::UDP, 1, 65535),
                port(Protocol::SCTP, 65535, 65535),
                named("web"),
            ]),
        )],
        egress: vec![
            rule(
                Some("names"),
                Action::Accept,
                vec![ClusterPeer::Names(
                    ["*.example.com", "example.com"].map(|name| NamePattern::domain(name).expect("a name")).into(),
                )],
                Ports::Any,
            ),
            rule(
                None,
                Action::Deny,
                vec![
                    ClusterPeer::Nodes(equals("role", "edge")),
                    ClusterPeer::Networks(
                        ["10.0.0.0/8", "fd00::/8", "10.0.0.0/8"].map(|net| net.parse().expect("a block")).into(),
                    ),
                ],
                Ports::Any,
            ),
        ],
    };
    assert_eq!(cluster(&value), expected);
}

/// The mapping to ClusterNetworkPolicy loses nothing (netpol.md 2.2): the elder kinds are equal to what they became.
#[test]
fn the_elder_kinds_and_aws() {
    let spec = |action: &str, ports: &str| {
        let from = "[{namespaces: {matchLabels: {a: b}}}, {pods: {namespaceSelector: {}, podSelector: {}}}]";
        let to = "[{namespaces: {}}, {networks: [10.0.0.0/8]}]";
        format!(
            "{{ingress: [{{name: r, action: {action}, from: {from}, {ports}}}, {{action: Deny, from: {from}}}],
               egress: [{{action: Deny, to: {to}}}]}}"
        )
    };
    let new = "protocols: [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 1, end: 2}}}}, \
               {sctp: {destinationPort: {number: 3}}}, {destinationNamedPort: web}]";
    let old = "ports: [{portNumber: {port: 80}}, {portRange: {protocol: UDP, start: 1, end: 2}}, \
               {portNumber: {protocol: SCTP, port: 3}}, {namedPort: web}]";
    let expected = cluster(&with_spec(CLUSTER, &spec("Accept", new)));
    assert_eq!(told(&with_spec(CLUSTER, &spec("Accept", new))), [""; 0]);
    for (kind, policy_kind, action, tier, priority) in [
        (ADMIN, PolicyKind::AdminNetworkPolicy, "Allow", ClusterTier::Admin, 7),
        (BASELINE, PolicyKind::BaselineAdminNetworkPolicy, "Allow", ClusterTier::Baseline, BANP_PRIORITY),
        (AWS, PolicyKind::AwsClusterNetworkPolicy, "Accept", ClusterTier::Admin, 7),
    ] {
        let value = with_spec(kind, &spec(action, old));
        assert_eq!(told(&value), [""; 0], "{kind:?}");
        let id = PolicyRef { kind: policy_kind, ..expected.id.clone() };
        let expected = ClusterNetworkPolicy { id, tier, priority, ..expected.clone() };
        assert_eq!(cluster(&value), expected, "{kind:?}");
    }
}

#[test]
fn what_is_told_of_a_spec() {
    let too_many = |count: usize| {
        let rules = vec!["{action: Deny, from: [{namespaces: {}}]}"; count].join(", ");
        format!("{{ingress: [{rules}]}}")
    };
    let (most, more) = (too_many(25), too_many(26));
    table(
        &[
            ("{}", &[]),
            ("{ingress: [], egress: null}", &[]),
            ("{priority: 0, tier: Baseline}", &[]),
            ("{priority: 1000}", &[]),
            (&most, &[]),
            (&more, &["refused spec.ingress: has 26 elements; at most 25 are possible"]),
            ("{tier: null}", &["refused spec.tier: is missing"]),
            ("{tier: admin}", &["refused spec.tier: \"admin\" is neither Admin nor Baseline"]),
            ("{priority: null}", &["refused spec.priority: is missing"]),
            ("{priority: -1}", &["refused spec.priority: -1 is not a whole number from 0 to 1000"]),
            ("{priority: 1001}", &["refused spec.priority: 1001 is not a whole number from 0 to 1000"]),
            ("{priority: '5'}", &["refused spec.priority: \"5\" is not a whole number from 0 to 1000"]),
            ("{subject: null}", &["refused spec.subject: is missing"]),
            ("{subject: {}}", &["refused spec.subject: has 0 of the fields namespaces, pods; exactly one is needed"]),
            (
                "{subject: {namespaces: {}, pods: {podSelector: {}}}}",
                &["refused spec.subject: has 2 of the fields namespaces, pods; exactly one is needed"],
            ),
            ("{subject: {nodes: {}}}", &["unusable spec.subject.nodes: this field is not known (value {})"]),
            ("{subject: {pods: {namespaceSelector: {}}}}", &["refused spec.subject.pods.podSelector: is missing"]),
            ("{subject: {pods: {podSelector: {}}}}", &[]),
            // The schema of a custom resource does not hold the grammar of labels.
            (
                "{subject: {namespaces: {matchLabels: {a: '-'}}}}",
                &[
                    "unusable spec.subject.namespaces.matchLabels: \"-\" is not a label value: at most 63 letters, digits, \
                 '-', '_' and '.', with a letter or digit at both ends, or nothing",
                ],
            ),
            ("{rules: []}", &["unusable spec.rules: this field is not known (value [])"]),
            ("{ingress: 1}", &["refused spec.ingress: 1 is not a list"]),
            ("{ingress: [null]}", &["refused spec.ingress[0]: null is not an object"]),
            (
                "{ingress: [{}]}",
                &["refused spec.ingress[0].action: is missing", "refused spec.ingress[0].from: is missing"],
            ),
        ],
        |spec| with_spec(CLUSTER, spec),
    );
    for kind in [CLUSTER, ADMIN, BASELINE, AWS] {
        let mut value = with_spec(kind, "{}");
        value.as_object_mut().expect("an object").remove("spec");
        assert_eq!(told(&value), ["refused spec: is missing"]);
        value["spec"] = json!([]);
        assert_eq!(told(&value), ["refused spec: [] is not an object"]);
    }
    // The elder kinds: more rules, no tier; the baseline has no priority and one name.
    for kind in [ADMIN, BASELINE, AWS] {
        let more = |count| told(&with_spec(kind, &too_many(count)));
        assert_eq!(more(100), [""; 0], "{kind:?}");
        assert_eq!(more(101), ["refused spec.ingress: has 101 elements; at most 100 are possible"], "{kind:?}");
    }
    let unknown = |field: &str, value: &str| format!("unusable spec.{field}: this field is not known (value {value})");
    assert_eq!(told(&with_spec(ADMIN, "{tier: Admin}")), [unknown("tier", "\"Admin\"")]);
    assert_eq!(told(&with_spec(BASELINE, "{priority: 5}")), [unknown("priority", "5")]);
    let mut value = with_spec(BASELINE, "{}");
    value["metadata"]["name"] = json!("base");
    assert_eq!(told(&value), ["refused metadata.name: \"base\" is not \"default\", the name of the one such policy"]);
    assert_eq!(&*cluster(&value).id.name, "base");
}

#[test]
fn what_is_told_of_a_rule() {
    let peers = |count: usize| vec!["{namespaces: {}}"; count].join(", ");
    let ports = |count: usize| vec!["{destinationNamedPort: a}"; count].join(", ");
    let most = format!("action: Deny, to: [{}], protocols: [{}]", peers(25), ports(25));
    let more = format!("action: Deny, to: [{}], protocols: [{}]", peers(26), ports(26));
    let name = format!("name: {}, action: Deny, to: [{{namespaces: {{}}}}]", "ä".repeat(100));
    let long_name = format!("name: {}, action: Deny, to: [{{namespaces: {{}}}}]", "ä".repeat(101));
    let told_of_name = format!("refused spec.egress[0].name: \"{}... is longer than 100 characters", "ä".repeat(79));
    table(
        &[
            ("action: Accept, to: [{namespaces: {}}]", &[]),
            (&most, &[]),
            (
                &more,
                &[
                    "refused spec.egress[0].to: has 26 elements; 1 to 25 are possible",
                    "refused spec.egress[0].protocols: has 26 elements; 1 to 25 are possible",
                ],
            ),
            (&name, &[]),
            (&long_name, &[&told_of_name]),
            ("name: 1, action: Deny, to: [{namespaces: {}}]", &["refused spec.egress[0].name: 1 is not a string"]),
            (
                "action: Allow, to: [{namespaces: {}}]",
                &["refused spec.egress[0].action: \"Allow\" is none of Accept, Deny, Pass"],
            ),
            ("action: 1, to: [{namespaces: {}}]", &["refused spec.egress[0].action: 1 is not a string"]),
            ("action: Deny", &["refused spec.egress[0].to: is missing"]),
            ("action: Deny, to: []", &["refused spec.egress[0].to: has 0 elements; 1 to 25 are possible"]),
            ("action: Deny, to: {}", &["refused spec.egress[0].to: {} is not a list"]),
            (
                "action: Deny, to: [{namespaces: {}}], from: [{namespaces: {}}]",
                &["unusable spec.egress[0].from: this field is not known (value [{\"namespaces\":{}}])"],
            ),
            (
                "action: Deny, to: [{namespaces: {}}], ports: []",
                &["unusable spec.egress[0].ports: this field is not known (value [])"],
            ),
            (
                "action: Deny, to: [{namespaces: {}}], protocols: []",
                &["refused spec.egress[0].protocols: has 0 elements; 1 to 25 are possible"],
            ),
        ],
        |rule| with_spec(CLUSTER, &format!("{{egress: [{{{rule}}}]}}")),
    );
    // Of the elder kinds, `Allow`; the baseline cannot pass.
    let action = |kind, action: &str| {
        told(&with_spec(kind, &format!("{{ingress: [{{action: {action}, from: [{{namespaces: {{}}}}]}}]}}")))
    };
    let none_of =
        |action: &str, names: &str| vec![format!("refused spec.ingress[0].action: {action:?} is none of {names}")];
    assert_eq!(action(ADMIN, "Accept"), none_of("Accept", "Allow, Deny, Pass"));
    assert_eq!(action(BASELINE, "Pass"), none_of("Pass", "Allow, Deny"));
    assert_eq!(action(AWS, "Allow"), none_of("Allow", "Accept, Deny, Pass"));
    for (kind, names) in [(ADMIN, "Allow Deny Pass"), (BASELINE, "Allow Deny"), (AWS, "Accept Deny Pass")] {
        for name in names.split(' ') {
            assert_eq!(action(kind, name), [""; 0], "{kind:?} {name}");
        }
    }
}

#[test]
fn what_is_told_of_a_peer() {
    let list = |item: &dyn Fn(usize) -> String, count: usize| {
        (0..count).map(|index| format!("'{}'", item(index))).collect::<Vec<_>>().join(", ")
    };
    let nets = |count| format!("networks: [{}]", list(&|index| format!("10.0.0.{index}/32"), count));
    let names = |count| format!("domainNames: [{}]", list(&|index| format!("a{index}.example.com"), count));
    table(
        &[
            ("namespaces: {}", &[]),
            ("nodes: {}", &[]),
            (&nets(25), &[]),
            (&names(25), &[]),
            (&nets(26), &["refused spec.egress[0].to[0].networks: has 26 elements; 1 to 25 are possible"]),
            (&names(26), &["refused spec.egress[0].to[0].domainNames: has 26 elements; 1 to 25 are possible"]),
            (
                "",
                &["refused spec.egress[0].to[0]: has 0 of the fields namespaces, pods, nodes, networks, domainNames; \
                 exactly one is needed"],
            ),
            (
                "namespaces: null",
                &["refused spec.egress[0].to[0]: has 0 of the fields namespaces, pods, nodes, networks, domainNames; \
                 exactly one is needed"],
            ),
            (
                "namespaces: {}, nodes: {}, networks: [10.0.0.0/8]",
                &["refused spec.egress[0].to[0]: has 3 of the fields namespaces, pods, nodes, networks, domainNames; \
                 exactly one is needed"],
            ),
            ("externals: {}", &["unusable spec.egress[0].to[0].externals: this field is not known (value {})"]),
            (
                "namespaces: {}, externals: {}",
                &["unusable spec.egress[0].to[0].externals: this field is not known (value {})"],
            ),
            (
                "namespaces: {sameLabels: [a]}",
                &["unusable spec.egress[0].to[0].namespaces.sameLabels: this field is not known (value [\"a\"])"],
            ),
            (
                "namespaces: {notSameLabels: [a]}",
                &["unusable spec.egress[0].to[0].namespaces.notSameLabels: this field is not known (value [\"a\"])"],
            ),
            ("pods: {}", &["refused spec.egress[0].to[0].pods.podSelector: is missing"]),
            (
                "pods: {podSelector: {}, nodes: {}}",
                &["unusable spec.egress[0].to[0].pods.nodes: this field is not known (value {})"],
            ),
            ("nodes: []", &["refused spec.egress[0].to[0].nodes: [] is not an object"]),
            ("networks: []", &["refused spec.egress[0].to[0].networks: has 0 elements; 1 to 25 are possible"]),
            (
                "networks: [10.0.0.0/8, 10.0.0.0/8]",
                &["refused spec.egress[0].to[0].networks[1]: \"10.0.0.0/8\" stands here twice"],
            ),
            (
                "networks: [10.0.0.0/33]",
                &[
                    "refused spec.egress[0].to[0].networks[0]: \"10.0.0.0/33\" is not an address block, such as 10.0.0.0/8 \
                 or fd00::/8",
                ],
            ),
            (
                "networks: ['::ffff:10.0.0.0/104']",
                &[
                    "refused spec.egress[0].to[0].networks[0]: \"::ffff:10.0.0.0/104\" is an IPv4 block written as IPv6; \
                 write it as IPv4",
                ],
            ),
            ("domainNames: []", &["refused spec.egress[0].to[0].domainNames: has 0 elements; 1 to 25 are possible"]),
            (
                "domainNames: [a.example.com, a.example.com]",
                &["refused spec.egress[0].to[0].domainNames[1]: \"a.example.com\" stands here twice"],
            ),
            ("domainNames: [1]", &["refused spec.egress[0].to[0].domainNames[0]: 1 is not a string"]),
        ],
        |peer| with_spec(CLUSTER, &format!("{{egress: [{{action: Accept, to: [{{{peer}}}]}}]}}")),
    );
    for name in ["", "a", "*", "a.*", "*a.b", "a..b", "-a.b", "a.b-", ".a.b", "*.b", "a b.c", "**.a.b"] {
        let value = with_spec(CLUSTER, &format!("{{egress: [{{action: Accept, to: [{{domainNames: ['{name}']}}]}}]}}"));
        let lines = told(&value);
        assert_eq!(lines.len(), 1, "{name}: {lines:?}");
        assert!(lines[0].starts_with("refused spec.egress[0].to[0].domainNames[0]: "), "{lines:?}");
    }
    // Only addresses can be a destination; only pods can be a source.
    for (kind, peer) in [
        (CLUSTER, "nodes"),
        (CLUSTER, "networks"),
        (CLUSTER, "domainNames"),
        (ADMIN, "nodes"),
        (BASELINE, "networks"),
        (AWS, "networks"),
    ] {
        let value = with_spec(kind, &format!("{{ingress: [{{action: Deny, from: [{{{peer}: {{}}}}]}}]}}"));
        let expected = format!("unusable spec.ingress[0].from[0].{peer}: this field is not known (value {{}})");
        assert_eq!(told(&value), [expected], "{kind:?}");
    }
    // What a kind has not.
    for (kind, peer) in [(AWS, "nodes"), (BASELINE, "domainNames")] {
        let value = with_spec(kind, &format!("{{egress: [{{action: Deny, to: [{{{peer}: {{}}}}]}}]}}"));
        let expected = format!("unusable spec.egress[0].to[0].{peer}: this field is not known (value {{}})");
        assert_eq!(told(&value), [expected], "{kind:?}");
    }
    // v1alpha1 has no default for it.
    for kind in [ADMIN, BASELINE, AWS] {
        let value = with_spec(kind, "{subject: {pods: {podSelector: {}}}}");
        assert_eq!(told(&value), ["refused spec.subject.pods.namespaceSelector: is missing"], "{kind:?}");
    }
}

#[test]
fn domain_names_and_actions() {
    const WHY: &str = "spec.egress[0].to[0].domainNames: domain names cannot be used with this action: what a name resolves \
                       to is not known beforehand";
    let unusable = || vec![format!("unusable {WHY}")];
    for (kind, action, expected) in [
        (CLUSTER, "Accept", vec![]),
        (CLUSTER, "Deny", unusable()),
        (CLUSTER, "Pass", unusable()),
        (ADMIN, "Allow", vec![]),
        (ADMIN, "Deny", unusable()),
        (ADMIN, "Pass", unusable()),
        (AWS, "Accept", vec![]),
        (AWS, "Pass", vec![]),
        // A CEL rule of AWS's schema.
        (AWS, "Deny", vec![format!("refused {WHY}")]),
    ] {
        let value = with_spec(kind, &format!("{{egress: [{{action: {action}, to: [{{domainNames: [a.b]}}]}}]}}"));
        assert_eq!(told(&value), expected, "{kind:?} {action}");
        assert_eq!(cluster(&value).egress[0].matches.is_ok(), expected.is_empty());
    }
}

#[test]
fn what_is_told_of_a_protocol() {
    const FIELDS: &str = "of the fields tcp, udp, sctp, destinationNamedPort; exactly one is needed";
    let none = format!("refused spec.ingress[0].protocols[0]: has 0 {FIELDS}");
    let two = format!("refused spec.ingress[0].protocols[0]: has 2 {FIELDS}");
    table(
        &[
            ("tcp: {destinationPort: {number: 1}}", &[]),
            ("udp: {destinationPort: {range: {start: 1, end: 2}}}", &[]),
            ("sctp: {destinationPort: {number: 65535}}", &[]),
            ("destinationNamedPort: web", &[]),
            ("", &[&none]),
            ("tcp: null", &[&none]),
            ("tcp: {destinationPort: {number: 1}}, destinationNamedPort: web", &[&two]),
            ("icmp: {}", &["unusable spec.ingress[0].protocols[0].icmp: this field is not known (value {})"]),
            (
                "tcp: {}",
                &[
                    "refused spec.ingress[0].protocols[0].tcp: needs a destinationPort; for every port write range {start: 1, \
                 end: 65535}",
                ],
            ),
            (
                "tcp: {sourcePort: {number: 1}}",
                &[
                    "unusable spec.ingress[0].protocols[0].tcp.sourcePort: this field is not known (value {\"number\":1})",
                ],
            ),
            (
                "tcp: {destinationPort: {}}",
                &[
                    "refused spec.ingress[0].protocols[0].tcp.destinationPort: has neither number nor range; exactly one is \
                 needed",
                ],
            ),
            (
                "tcp: {destinationPort: {number: 1, range: {start: 1, end: 2}}}",
                &[
                    "refused spec.ingress[0].protocols[0].tcp.destinationPort: has number and range; exactly one is needed",
                ],
            ),
            (
                "tcp: {destinationPort: {number: 0}}",
                &[
                    "refused spec.ingress[0].protocols[0].tcp.destinationPort.number: 0 is not a whole number from 1 to 65535",
                ],
            ),
            (
                "tcp: {destinationPort: {name: web}}",
                &[
                    "unusable spec.ingress[0].protocols[0].tcp.destinationPort.name: this field is not known (value \"web\")",
                ],
            ),
            (
                "tcp: {destinationPort: {range: {start: 2, end: 2}}}",
                &["refused spec.ingress[0].protocols[0].tcp.destinationPort.range.end: 2 has to be greater than the \
                 beginning of the range, 2"],
            ),
            (
                "tcp: {destinationPort: {range: {start: 3, end: 2}}}",
                &["refused spec.ingress[0].protocols[0].tcp.destinationPort.range.end: 2 has to be greater than the \
                 beginning of the range, 3"],
            ),
            (
                "tcp: {destinationPort: {range: {}}}",
                &[
                    "refused spec.ingress[0].protocols[0].tcp.destinationPort.range.start: is missing",
                    "refused spec.ingress[0].protocols[0].tcp.destinationPort.range.end: is missing",
                ],
            ),
            (
                "tcp: {destinationPort: {range: {start: 1, end: 2, protocol: TCP}}}",
                &[
                    "unusable spec.ingress[0].protocols[0].tcp.destinationPort.range.protocol: this field is not known (value \
                 \"TCP\")",
                ],
            ),
            (
                "destinationNamedPort: 80",
                &["refused spec.ingress[0].protocols[0].destinationNamedPort: 80 is not a string"],
            ),
            (
                "destinationNamedPort: '80'",
                &[
                    "warning spec.ingress[0].protocols[0].destinationNamedPort: no container port is called \"80\", so this \
                 matches nothing: 1 to 15 lower case letters, digits and '-', one letter at the least, no '--' and no '-' \
                 at either end",
                ],
            ),
        ],
        |protocol| {
            let rule = format!("action: Deny, from: [{{namespaces: {{}}}}], protocols: [{{{protocol}}}]");
            with_spec(CLUSTER, &format!("{{ingress: [{{{rule}}}]}}"))
        },
    );
}

#[test]
fn what_is_told_of_an_elder_port() {
    const FIELDS: &str = "of the fields portNumber, portRange, namedPort; exactly one is needed";
    let none = format!("refused spec.ingress[0].ports[0]: has 0 {FIELDS}");
    let two = format!("refused spec.ingress[0].ports[0]: has 2 {FIELDS}");
    for kind in [ADMIN, BASELINE, AWS] {
        table(
            &[
                ("portNumber: {port: 1}", &[]),
                ("portNumber: {protocol: null, port: 1}", &[]),
                ("portRange: {protocol: SCTP, start: 1, end: 65535}", &[]),
                ("namedPort: web", &[]),
                ("", &[&none]),
                ("portNumber: {port: 1}, namedPort: web", &[&two]),
                ("portNumber: {}", &["refused spec.ingress[0].ports[0].portNumber.port: is missing"]),
                (
                    "portNumber: {port: web}",
                    &[
                        "refused spec.ingress[0].ports[0].portNumber.port: \"web\" is not a whole number from 1 to 65535",
                    ],
                ),
                (
                    "portNumber: {protocol: ICMP, port: 1}",
                    &["refused spec.ingress[0].ports[0].portNumber.protocol: \"ICMP\" is none of TCP, UDP, SCTP"],
                ),
                (
                    "portNumber: {port: 1, endPort: 2}",
                    &["unusable spec.ingress[0].ports[0].portNumber.endPort: this field is not known (value 2)"],
                ),
                (
                    "portRange: {start: 2, end: 1}",
                    &[
                        "refused spec.ingress[0].ports[0].portRange.end: 1 has to be greater than the beginning of the range, \
                     2",
                    ],
                ),
                ("portRange: {start: 2}", &["refused spec.ingress[0].ports[0].portRange.end: is missing"]),
                ("tcp: {}", &["unusable spec.ingress[0].ports[0].tcp: this field is not known (value {})"]),
            ],
            |port| {
                let rule = format!("action: Deny, from: [{{namespaces: {{}}}}], ports: [{{{port}}}]");
                with_spec(kind, &format!("{{ingress: [{{{rule}}}]}}"))
            },
        );
    }
}

/// The CEL rule of `ClusterNetworkPolicyEgressRule`; AWS has none.
#[test]
fn named_ports_are_of_pods() {
    const WHY: &str = "a port is known by its name on pods only, and a peer of this rule is not made of pods";
    let peers = ["{nodes: {}}", "{networks: [10.0.0.0/8]}", "{domainNames: [a.b]}", "{namespaces: {}}"];
    for (kind, field, port, severity) in [
        (CLUSTER, "protocols", "destinationNamedPort: web", "refused"),
        (ADMIN, "ports", "namedPort: web", "refused"),
        (AWS, "ports", "namedPort: web", "warning"),
    ] {
        for peer in peers {
            if kind == AWS && peer.contains("nodes") {
                continue;
            }
            let action = if kind == ADMIN { "Allow" } else { "Accept" };
            let rule = format!("action: {action}, to: [{{namespaces: {{}}}}, {peer}], {field}: [{{{port}}}]");
            let value = with_spec(kind, &format!("{{egress: [{{{rule}}}]}}"));
            let pods = peer.contains("namespaces");
            let expected = if pods { vec![] } else { vec![format!("{severity} spec.egress[0].{field}: {WHY}")] };
            assert_eq!(told(&value), expected, "{kind:?} {peer}");
            assert_eq!(cluster(&value).egress[0].matches.is_ok(), pods || severity == "warning");
        }
    }
}

/// AWS's schema does not look at networks (it is we who cannot use them), and neither at names of ports.
#[test]
fn networks_of_aws() {
    let value = with_spec(AWS, "{egress: [{action: Pass, to: [{networks: [10.0.0.0]}]}]}");
    assert_eq!(
        told(&value),
        [
            "unusable spec.egress[0].to[0].networks[0]: \"10.0.0.0\" is not an address block, such as 10.0.0.0/8 or fd00::/8"
        ]
    );
}

/// What is left of a policy that has a fault: the rule with it fails closed, at its place; a fault of the whole closes all.
#[test]
fn faults_fail_closed() {
    let shape = |spec: &str| {
        let policy = cluster(&with_spec(CLUSTER, spec));
        let rules = |rules: &[ClusterRule]| {
            let shape = rules.iter().map(|rule| (rule.action, rule.matches.is_ok()));
            shape.collect::<Vec<_>>()
        };
        (policy.tier, policy.priority, policy.subject.is_some(), rules(&policy.ingress), rules(&policy.egress))
    };
    use Action::{Accept, Deny, Pass};
    let good = "{action: Pass, from: [{namespaces: {}}]}";
    let admin = ClusterTier::Admin;
    let one = |spec: &str| shape(spec).3;
    assert_eq!(
        shape(&format!("{{ingress: [{good}, {{action: Accept, from: [{{namespaces: {{}}}}, {{}}]}}, {good}]}}")),
        (admin, 7, true, vec![(Pass, true), (Accept, false), (Pass, true)], vec![])
    );
    // An action that is not known may have been a deny.
    assert_eq!(one("{ingress: [{action: Log, from: [{namespaces: {}}]}]}"), [(Deny, false)]);
    assert_eq!(one("{ingress: {}}"), [(Deny, false)]);
    assert_eq!(one("{ingress: [7]}"), [(Deny, false)]);
    // The name of a rule means nothing.
    assert_eq!(one("{ingress: [{name: 7, action: Pass, from: [{namespaces: {}}]}]}"), [(Pass, true)]);
    // A fault of the whole: its rules are not used, and where its place cannot be told, it is the first.
    for (spec, priority) in [("mode: dry", 7), ("tier: Default", 7), ("priority: 1001", 0), ("priority: null", 0)] {
        let spec = format!("{{{spec}, ingress: [{good}], egress: [{{action: Accept, to: [{{nodes: {{}}}}]}}]}}");
        assert_eq!(shape(&spec), (admin, priority, true, vec![(Pass, false)], vec![(Accept, false)]), "{spec}");
    }
    // Rules beyond the limit may have been denies.
    let rules = vec![good; 30].join(", ");
    let mut expected = vec![(Pass, true); 25];
    expected.push((Deny, false));
    assert_eq!(one(&format!("{{ingress: [{rules}]}}")), expected);
    // Nobody is governed by a policy whose subject cannot be told.
    assert!(!shape("{subject: {clusters: {}}}").2);
}
