//! Policies as their authors would write them, so that a random policy goes through the parser too.

use serde_json::{Map, Value, json};
use sluice_policy_core::flow::Protocol;
use sluice_policy_core::model::cluster_network_policy::{Action, ClusterPeer, ClusterRule, ClusterSubject};
use sluice_policy_core::model::network_policy::{NetworkPeer, NetworkPeers, NetworkRule};
use sluice_policy_core::model::port::{PortMatch, PortTarget, Ports, ProtocolMatch};
use sluice_policy_core::model::selector::{LabelSelector, Operator};
use sluice_policy_core::model::{AUDIT_ANNOTATION, Policy, PolicyKind, PolicyRef, Usable};

/// The object of a policy. None: of a dialect that is not written here, or with what no author could write.
pub(crate) fn policy(policy: &Policy) -> Option<Value> {
    let (version, spec) = match policy {
        Policy::Network(one) if one.id.kind == PolicyKind::NetworkPolicy => {
            let mut types = Vec::new();
            let mut spec = Map::new();
            spec.insert("podSelector".to_owned(), selector(&one.pods));
            for (kind, field, peers, rules) in
                [("Ingress", "ingress", "from", &one.ingress), ("Egress", "egress", "to", &one.egress)]
            {
                if let Some(rules) = rules {
                    types.push(kind);
                    spec.insert(field.to_owned(), rules.iter().map(|rule| network_rule(rule, peers)).collect());
                }
            }
            spec.insert("policyTypes".to_owned(), json!(types));
            ("networking.k8s.io/v1", Value::Object(spec))
        }
        Policy::Cluster(one) if one.id.kind == PolicyKind::ClusterNetworkPolicy => {
            let rules = |rules: &[ClusterRule], peers: &str| -> Option<Vec<Value>> {
                rules.iter().map(|rule| cluster_rule(rule, peers)).collect()
            };
            let spec = json!({
                "tier": format!("{:?}", one.tier),
                "priority": one.priority,
                "subject": subject(one.subject.as_ref()?),
                "ingress": rules(&one.ingress, "from")?,
                "egress": rules(&one.egress, "to")?,
            });
            ("policy.networking.k8s.io/v1alpha2", spec)
        }
        _ => return None,
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
    Some(json!({"apiVersion": version, "kind": kind.as_str(), "metadata": metadata, "spec": spec}))
}

fn selector(selector: &LabelSelector) -> Value {
    let one = |one: &sluice_policy_core::model::selector::Requirement| {
        let values: Vec<&str> = one.values.iter().map(AsRef::as_ref).collect();
        let operator = match one.operator {
            Operator::In => "In",
            Operator::NotIn => "NotIn",
            Operator::Exists => "Exists",
            Operator::DoesNotExist => "DoesNotExist",
        };
        json!({"key": &*one.key, "operator": operator, "values": values})
    };
    json!({"matchExpressions": selector.requirements.iter().map(one).collect::<Vec<_>>()})
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
        Err(_) | Ok(NetworkPeer::Names(_)) => unusable(),
        Ok(NetworkPeer::Pods { namespaces: None, pods }) => json!({"podSelector": selector(pods)}),
        Ok(NetworkPeer::Pods { namespaces: Some(namespaces), pods }) => {
            json!({"namespaceSelector": selector(namespaces), "podSelector": selector(pods)})
        }
        Ok(NetworkPeer::IpBlock { cidr, except }) => {
            let except: Vec<String> = except.iter().map(ToString::to_string).collect();
            json!({"ipBlock": {"cidr": cidr.to_string(), "except": except}})
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

fn cluster_rule(rule: &ClusterRule, peers: &str) -> Option<Value> {
    let mut fields = Map::new();
    let action = match rule.action {
        Action::Deny => "Deny",
        Action::Pass => "Pass",
        Action::Accept => "Accept",
    };
    fields.insert("action".to_owned(), json!(action));
    if let Some(name) = &rule.name {
        fields.insert("name".to_owned(), json!(&**name));
    }
    let Ok(matches) = &rule.matches else {
        fields.insert(peers.to_owned(), json!([unusable()]));
        return Some(Value::Object(fields));
    };
    let list: Option<Vec<Value>> = matches.peers.iter().map(cluster_peer).collect();
    fields.insert(peers.to_owned(), json!(list?));
    if let Ports::Of(ports) = &matches.ports {
        fields.insert("protocols".to_owned(), ports.iter().map(cluster_port).collect());
    }
    Some(Value::Object(fields))
}

fn cluster_peer(peer: &ClusterPeer) -> Option<Value> {
    Some(match peer {
        ClusterPeer::Pods(pods) => subject(pods),
        ClusterPeer::Networks(networks) => {
            json!({"networks": networks.iter().map(ToString::to_string).collect::<Vec<_>>()})
        }
        ClusterPeer::Nodes(nodes) => json!({"nodes": selector(nodes)}),
        ClusterPeer::Names(names) => {
            json!({"domainNames": names.iter().map(ToString::to_string).collect::<Vec<_>>()})
        }
    })
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
