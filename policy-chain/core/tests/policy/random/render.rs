//! Policies as their authors would write them, so that a random policy goes through the parser too.

mod cilium;

use serde_json::{Map, Value, json};
use sluice_policy_core::flow::Protocol;
use sluice_policy_core::model::cluster_network_policy::{Action, ClusterPeer, ClusterRule, ClusterSubject};
use sluice_policy_core::model::network_policy::{NetworkPeer, NetworkPeers, NetworkRule};
use sluice_policy_core::model::port::{PortMatch, PortTarget, Ports, ProtocolMatch};
use sluice_policy_core::model::selector::{LabelSelector, Operator, Requirement};
use sluice_policy_core::model::{
    AUDIT_ANNOTATION, ClusterNetworkPolicy, NetworkPolicy, Policy, PolicyKind, PolicyRef, Usable,
};

use super::Random;

/// The object of a policy. None: with what no author could write.
pub(crate) fn policy(policy: &Policy, random: &mut Random) -> Option<Value> {
    let (version, specs) = match policy {
        Policy::Network(one) => {
            let version = match one.id.kind {
                PolicyKind::NetworkPolicy => "networking.k8s.io/v1",
                _ => "networking.k8s.aws/v1alpha1",
            };
            (version, vec![("spec", network_spec(one, random))])
        }
        Policy::Cluster(one) => (Dialect::of(one.id.kind).version, vec![("spec", cluster_spec(one)?)]),
        Policy::Cilium(one) => ("cilium.io/v2", cilium::specs(one, random)),
    };
    let PolicyRef { kind, namespace, name } = policy.id();
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), json!(&**name));
    if let Some(namespace) = namespace {
        metadata.insert("namespace".to_owned(), json!(&**namespace));
    }
    if policy.audit() {
        metadata.insert("annotations".to_owned(), json!({ AUDIT_ANNOTATION: "true" }));
    }
    let mut object = json!({"apiVersion": version, "kind": kind.as_str(), "metadata": metadata});
    for (field, spec) in specs {
        object[field] = spec;
    }
    Some(object)
}

fn network_spec(policy: &NetworkPolicy, random: &mut Random) -> Value {
    let mut types = Vec::new();
    let mut spec = Map::new();
    spec.insert("podSelector".to_owned(), selector(&policy.pods));
    for (kind, field, peers, rules) in
        [("Ingress", "ingress", "from", &policy.ingress), ("Egress", "egress", "to", &policy.egress)]
    {
        if let Some(rules) = rules {
            types.push(kind);
            spec.insert(field.to_owned(), rules.iter().map(|rule| network_rule(rule, peers)).collect());
        }
    }
    // What is so without saying is not always said.
    let implied = if policy.egress.as_ref().is_some_and(|rules| !rules.is_empty()) { 2 } else { 1 };
    if types != ["Ingress", "Egress"][..implied] || random.one_in(2) {
        spec.insert("policyTypes".to_owned(), json!(types));
    }
    Value::Object(spec)
}

/// In what the kinds differ that are read as ClusterNetworkPolicies.
#[derive(Clone, Copy)]
struct Dialect {
    version: &'static str,
    accept: &'static str,
    /// Whether ports are `protocols`, as upstream now has them.
    protocols: bool,
    tier: bool,
    priority: bool,
}

impl Dialect {
    fn of(kind: PolicyKind) -> Self {
        let upstream = Self {
            version: "policy.networking.k8s.io/v1alpha2",
            accept: "Accept",
            protocols: true,
            tier: true,
            priority: true,
        };
        let admin = Self {
            version: "policy.networking.k8s.io/v1alpha1",
            accept: "Allow",
            protocols: false,
            tier: false,
            priority: true,
        };
        match kind {
            PolicyKind::ClusterNetworkPolicy => upstream,
            PolicyKind::AwsClusterNetworkPolicy => {
                Self { version: "networking.k8s.aws/v1alpha1", protocols: false, ..upstream }
            }
            PolicyKind::AdminNetworkPolicy => admin,
            PolicyKind::BaselineAdminNetworkPolicy => Self { priority: false, ..admin },
            other => panic!("{other:?} is no ClusterNetworkPolicy"),
        }
    }
}

fn cluster_spec(policy: &ClusterNetworkPolicy) -> Option<Value> {
    let dialect = Dialect::of(policy.id.kind);
    let rules = |rules: &[ClusterRule], peers: &str| -> Vec<Value> {
        rules.iter().map(|rule| cluster_rule(rule, peers, dialect)).collect()
    };
    let mut spec = json!({
        "subject": subject(policy.subject.as_ref()?),
        "ingress": rules(&policy.ingress, "from"),
        "egress": rules(&policy.egress, "to"),
    });
    if dialect.tier {
        spec["tier"] = json!(format!("{:?}", policy.tier));
    }
    if dialect.priority {
        spec["priority"] = json!(policy.priority);
    }
    Some(spec)
}

fn selector(selector: &LabelSelector) -> Value {
    let one = |one: &Requirement| expression(&one.key, one);
    json!({"matchExpressions": selector.requirements.iter().map(one).collect::<Vec<_>>()})
}

fn expression(key: &str, one: &Requirement) -> Value {
    let operator = match one.operator {
        Operator::In => "In",
        Operator::NotIn => "NotIn",
        Operator::Exists => "Exists",
        Operator::DoesNotExist => "DoesNotExist",
    };
    json!({"key": key, "operator": operator, "values": texts(&one.values)})
}

fn texts<T: ToString>(list: &[T]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn unusable() -> Value {
    json!({"novel": true})
}

fn network_rule(rule: &Usable<NetworkRule>, peers: &str) -> Value {
    let Ok(rule) = rule else { return unusable() };
    let mut fields = Map::new();
    if let NetworkPeers::Of(list) = &rule.peers {
        fields.insert(peers.to_owned(), list.iter().map(network_peer).collect());
    }
    if let Ports::Of(ports) = &rule.ports {
        fields.insert("ports".to_owned(), ports.iter().map(network_port).collect());
    }
    Value::Object(fields)
}

fn network_peer(peer: &Usable<NetworkPeer>) -> Value {
    match peer {
        Err(_) => unusable(),
        Ok(NetworkPeer::Names(names)) => json!({"domainNames": texts(names)}),
        Ok(NetworkPeer::Pods { namespaces: None, pods }) => json!({"podSelector": selector(pods)}),
        Ok(NetworkPeer::Pods { namespaces: Some(namespaces), pods }) => {
            json!({"namespaceSelector": selector(namespaces), "podSelector": selector(pods)})
        }
        Ok(NetworkPeer::IpBlock { cidr, except }) => {
            json!({"ipBlock": {"cidr": cidr.to_string(), "except": texts(except)}})
        }
    }
}

fn network_port(port: &PortMatch) -> Value {
    let protocol = match port.protocol {
        ProtocolMatch::Exactly(protocol) => protocol.to_string(),
        ProtocolMatch::Transport => unreachable!("NetworkPolicy has none"),
    };
    match &port.port {
        PortTarget::Any => json!({"protocol": protocol}),
        PortTarget::Named(name) => json!({"protocol": protocol, "port": &**name}),
        PortTarget::Range(first, last) => json!({"protocol": protocol, "port": first, "endPort": last}),
    }
}

fn subject(subject: &ClusterSubject) -> Value {
    match subject {
        ClusterSubject::Namespaces(namespaces) => json!({"namespaces": selector(namespaces)}),
        ClusterSubject::Pods { namespaces, pods } => {
            json!({"pods": {"namespaceSelector": selector(namespaces), "podSelector": selector(pods)}})
        }
    }
}

fn cluster_rule(rule: &ClusterRule, peers: &str, dialect: Dialect) -> Value {
    let action = match rule.action {
        Action::Deny => "Deny",
        Action::Pass => "Pass",
        Action::Accept => dialect.accept,
    };
    let mut fields = json!({"action": action});
    if let Some(name) = &rule.name {
        fields["name"] = json!(&**name);
    }
    let Ok(matches) = &rule.matches else {
        fields[peers] = json!([unusable()]);
        return fields;
    };
    fields[peers] = matches.peers.iter().map(cluster_peer).collect();
    if let Ports::Of(ports) = &matches.ports {
        let (field, write): (&str, fn(&PortMatch) -> Value) =
            if dialect.protocols { ("protocols", cluster_port) } else { ("ports", admin_port) };
        fields[field] = ports.iter().map(write).collect();
    }
    fields
}

fn cluster_peer(peer: &ClusterPeer) -> Value {
    match peer {
        ClusterPeer::Pods(pods) => subject(pods),
        ClusterPeer::Networks(networks) => json!({"networks": texts(networks)}),
        ClusterPeer::Nodes(nodes) => json!({"nodes": selector(nodes)}),
        ClusterPeer::Names(names) => json!({"domainNames": texts(names)}),
    }
}

fn cluster_port(port: &PortMatch) -> Value {
    let inner = match &port.port {
        PortTarget::Named(name) => return json!({"destinationNamedPort": &**name}),
        PortTarget::Range(first, last) if first == last => json!({"number": first}),
        PortTarget::Range(first, last) => json!({"range": {"start": first, "end": last}}),
        PortTarget::Any => json!({"range": {"start": 1, "end": 65535}}),
    };
    let name = match port.protocol {
        ProtocolMatch::Exactly(Protocol::UDP) => "udp",
        ProtocolMatch::Exactly(Protocol::SCTP) => "sctp",
        _ => "tcp",
    };
    json!({name: {"destinationPort": inner}})
}

fn admin_port(port: &PortMatch) -> Value {
    let protocol = match port.protocol {
        ProtocolMatch::Exactly(protocol) => protocol.to_string(),
        ProtocolMatch::Transport => "TCP".to_owned(),
    };
    match &port.port {
        PortTarget::Named(name) => json!({"namedPort": &**name}),
        PortTarget::Range(first, last) if first == last => {
            json!({"portNumber": {"protocol": protocol, "port": first}})
        }
        PortTarget::Range(first, last) => {
            json!({"portRange": {"protocol": protocol, "start": first, "end": last}})
        }
        PortTarget::Any => json!({"portRange": {"protocol": protocol, "start": 1, "end": 65535}}),
    }
}
