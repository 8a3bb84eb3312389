//! Whole models, value by value.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{namespaced, policy, rule};
use crate::flow::Protocol;
use crate::l7::dns::NamePattern;
use crate::l7::http::{HttpRule, HttpRuleSpec};
use crate::model::cilium::{
    Application, CidrBlock, CidrRule, CiliumAllow, CiliumDeny, CiliumPeers, CiliumPolicy, CiliumPorts, CiliumRule,
    Entity,
};
use crate::model::port::{PortMatch, PortTarget, Ports, ProtocolMatch};
use crate::model::selector::{CiliumRequirement, CiliumSelector, LabelSource, Operator, Requirement};
use crate::model::{PolicyKind, PolicyRef};
use crate::parse::cilium::groups::{AwsGroup, aws_groups};
use crate::parse::object;

fn requirement(source: LabelSource, key: &str, operator: Operator, values: &[&str]) -> CiliumRequirement {
    let values = values.iter().map(|value| (*value).into()).collect();
    CiliumRequirement { source, requirement: Requirement { key: key.into(), operator, values } }
}

fn own() -> CiliumRequirement {
    requirement(LabelSource::Kubernetes, "io.kubernetes.pod.namespace", Operator::In, &["shop"])
}

const fn port(protocol: Protocol, port: u16) -> PortMatch {
    PortMatch { protocol: ProtocolMatch::Exactly(protocol), port: PortTarget::Range(port, port) }
}

#[test]
fn a_policy_of_all_parts_is_read_to_the_last_one() {
    let parsed = object(&namespaced(
        r#"
spec:
  description: web, and what it needs
  endpointSelector: {matchLabels: {app: web}}
  enableDefaultDeny: {egress: false}
  ingress:
  - fromEndpoints: [{matchLabels: {"k8s:app": front}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules: {http: [{method: GET, path: "/v1/.*"}]}
  ingressDeny:
  - fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]
  egress:
  - toEntities: [kube-apiserver]
  - toPorts:
    - ports: [{port: "53", protocol: ANY}]
      rules: {dns: [{matchPattern: "*.example.com"}]}
  egressDeny:
  - icmps: [{fields: [{type: EchoRequest, family: IPv6}]}]
  log: {value: web}
"#,
    ));
    assert_eq!(parsed.issues, []);
    let http = HttpRuleSpec { path: Some("/v1/.*".into()), method: Some("GET".into()), ..HttpRuleSpec::default() };
    let expected = CiliumPolicy {
        id: PolicyRef { kind: PolicyKind::CiliumNetworkPolicy, namespace: Some("shop".into()), name: "p".into() },
        audit: false,
        rules: vec![CiliumRule {
            number: 0,
            subject: CiliumSelector {
                requirements: vec![requirement(LabelSource::Any, "app", Operator::In, &["web"]), own()],
            },
            default_deny_ingress: true,
            default_deny_egress: false,
            ingress: vec![Ok(CiliumAllow {
                peers: CiliumPeers::Endpoints(vec![CiliumSelector {
                    requirements: vec![requirement(LabelSource::Kubernetes, "app", Operator::In, &["front"]), own()],
                }]),
                ports: vec![CiliumPorts {
                    ports: Ports::Of(vec![port(Protocol::TCP, 80)]),
                    application: Application::Http([Arc::new(HttpRule::new(http).expect("rule"))].into()),
                }],
            })],
            ingress_deny: vec![Ok(CiliumDeny {
                peers: CiliumPeers::Cidrs(vec![CidrRule {
                    block: CidrBlock::Cidr("10.0.0.0/8".parse().expect("block")),
                    except: vec!["10.1.0.0/16".parse().expect("block")],
                }]),
                ports: Ports::Any,
            })],
            egress: vec![
                Ok(CiliumAllow {
                    peers: CiliumPeers::Entities(vec![Entity::KubeApiserver]),
                    ports: vec![CiliumPorts::any()],
                }),
                Ok(CiliumAllow {
                    peers: CiliumPeers::Any,
                    ports: vec![CiliumPorts {
                        ports: Ports::Of(vec![port(Protocol::TCP, 53), port(Protocol::UDP, 53)]),
                        application: Application::Dns([NamePattern::cilium("*.example.com").expect("pattern")].into()),
                    }],
                }),
            ],
            egress_deny: vec![Ok(CiliumDeny {
                peers: CiliumPeers::Any,
                ports: Ports::Of(vec![port(Protocol::ICMPV6, 128)]),
            })],
            log: Some("web".into()),
        }],
    };
    assert_eq!(*policy(&parsed), expected);
}

#[test]
fn a_group_is_named_by_what_it_says() {
    let group = AwsGroup {
        labels: BTreeMap::from([("team".into(), "x".into()), ("k".into(), "v".into())]),
        ids: BTreeSet::from(["sg-2".into(), "sg-1".into()]),
        names: BTreeSet::from(["a\nb".into()]),
        region: Some("eu-west-1".into()),
    };
    // printf 'region "eu-west-1"\nid "sg-1"\nid "sg-2"\nname "a\\nb"\nlabel "k" "v"\nlabel "team" "x"\n' | sha256sum
    assert_eq!(&*group.cidr_group_name(), "sluice-aws-fff1c074f1a961cbd790633da89526cc");
    let other = AwsGroup { region: None, ..group.clone() };
    assert_ne!(other.cidr_group_name(), group.cidr_group_name());
}

#[test]
fn what_has_to_be_resolved_is_what_the_policies_look_for() {
    let document = namespaced(
        r"
spec:
  endpointSelector: {}
  ingress: [{fromGroups: [{aws: {securityGroupsIds: [sg-1]}}, {}]}]
  egressDeny: [{toGroups: [{aws: {securityGroupsIds: [sg-2]}}]}]
specs:
- endpointSelector: {}
  ingressDeny: [{fromGroups: [{aws: {securityGroupsNames: [a]}}]}]
  egress: [{toGroups: [{aws: {securityGroupsIds: [sg-1]}}]}, {toEntities: [world]}]
",
    );
    let found: Vec<_> = aws_groups(&document).into_iter().collect();
    for (name, group) in &found {
        assert_eq!(*name, group.cidr_group_name());
    }
    let found: BTreeSet<_> = found.into_iter().map(|(_, group)| group).collect();
    let ids = |id: &str| AwsGroup { ids: BTreeSet::from([id.into()]), ..AwsGroup::default() };
    let names = AwsGroup { names: BTreeSet::from(["a".into()]), ..AwsGroup::default() };
    assert_eq!(found, BTreeSet::from([ids("sg-1"), ids("sg-2"), names]));
    assert!(aws_groups(&serde_json::json!({"spec": {"ingress": 7}, "specs": [[]]})).is_empty());
}

#[test]
fn limits_hold_to_the_last_element() {
    let ports = |count: usize| {
        let ports = vec![r#"{port: "80", protocol: TCP}"#; count].join(", ");
        namespaced(&format!("spec: {{endpointSelector: {{}}, ingress: [{{toPorts: [{{ports: [{ports}]}}]}}]}}"))
    };
    assert!(rule(&ports(40)).ingress[0].is_ok());
    let parsed = object(&ports(41));
    assert_eq!(
        parsed.issues.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["spec.ingress[0].toPorts[0].ports: too many ports, the max is 40"]
    );
    assert!(policy(&parsed).rules[0].ingress[0].is_err());

    let fields = |count: usize| {
        let fields = vec!["{type: 8}"; count].join(", ");
        namespaced(&format!("spec: {{endpointSelector: {{}}, ingressDeny: [{{icmps: [{{fields: [{fields}]}}]}}]}}"))
    };
    assert!(rule(&fields(40)).ingress_deny[0].is_ok());
    let parsed = object(&fields(41));
    assert_eq!(
        parsed.issues.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["spec.ingressDeny[0].icmps[0].fields: too many types, the max is 40"]
    );
    assert!(policy(&parsed).rules[0].ingress_deny[0].is_err());
}
