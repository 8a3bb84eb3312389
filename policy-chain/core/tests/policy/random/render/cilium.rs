//! Policies of cilium.io, in one of the ways in which they may be written.

use serde_json::{Map, Value, json};
use sluice_policy_core::flow::{Direction, Protocol};
use sluice_policy_core::l7::dns::NamePattern;
use sluice_policy_core::l7::http::{HeaderMatchSpec, HttpRule, HttpRuleSpec, MismatchAction};
use sluice_policy_core::model::cilium::{
    Application, CidrBlock, CidrRule, CiliumAllow, CiliumDeny, CiliumPeers, CiliumPorts, CiliumRule, Entity,
    ServiceSelector,
};
use sluice_policy_core::model::port::{PortMatch, PortTarget, Ports, ProtocolMatch};
use sluice_policy_core::model::selector::{CiliumRequirement, CiliumSelector, LabelSource};
use sluice_policy_core::model::{CiliumPolicy, PolicyRef, Usable};

use super::super::Random;
use super::super::objects::{SECURITY_GROUPS, aws_group};
use super::super::policies::with_namespace;
use super::{expression, selector, texts, unusable};

/// `spec` and `specs`.
pub(super) fn specs(policy: &CiliumPolicy, random: &mut Random) -> Vec<(&'static str, Value)> {
    let mut of = Of { id: &policy.id, random };
    let (one, more): (Vec<_>, Vec<_>) = policy.rules.iter().partition(|rule| rule.number == 0);
    let mut specs: Vec<_> = one.into_iter().map(|rule| ("spec", of.rule(rule))).collect();
    if !more.is_empty() {
        specs.push(("specs", more.into_iter().map(|rule| of.rule(rule)).collect()));
    }
    specs
}

struct Of<'a> {
    id: &'a PolicyRef,
    random: &'a mut Random,
}

/// The fields of a rule's element: its ports, then its peers.
type Element = Map<String, Value>;

impl Of<'_> {
    fn rule(&mut self, rule: &CiliumRule) -> Value {
        let mut fields = json!({"endpointSelector": self.selector(&rule.subject, true)});
        for (field, direction, list) in
            [("ingress", Direction::Ingress, &rule.ingress), ("egress", Direction::Egress, &rule.egress)]
        {
            if !list.is_empty() {
                fields[field] = list.iter().map(|one| self.allow(one, direction)).collect();
            }
        }
        for (field, direction, list) in [
            ("ingressDeny", Direction::Ingress, &rule.ingress_deny),
            ("egressDeny", Direction::Egress, &rule.egress_deny),
        ] {
            if !list.is_empty() {
                fields[field] = list.iter().map(|one| self.deny(one, direction)).collect();
            }
        }
        let mut default_deny = Map::new();
        for (direction, denies, rules) in [
            ("ingress", rule.default_deny_ingress, rule.ingress.len() + rule.ingress_deny.len()),
            ("egress", rule.default_deny_egress, rule.egress.len() + rule.egress_deny.len()),
        ] {
            if denies != (rules > 0) || self.random.one_in(4) {
                default_deny.insert(direction.to_owned(), json!(denies));
            }
        }
        if !default_deny.is_empty() {
            fields["enableDefaultDeny"] = Value::Object(default_deny);
        }
        if let Some(log) = &rule.log {
            fields["log"] = json!({"value": &**log});
        }
        fields
    }

    /// What the policy adds to a selector is left out now and then, so that the parser has to add it.
    fn selector(&mut self, selector: &CiliumSelector, subject: bool) -> Value {
        let mut requirements = selector.requirements.clone();
        for index in 0..requirements.len() {
            let mut less = selector.requirements.clone();
            less.remove(index);
            if with_namespace(less.clone(), self.id, subject) == *selector && self.random.one_in(2) {
                requirements = less;
                break;
            }
        }
        let expressions: Vec<Value> =
            requirements.iter().map(|one| expression(&self.key(one), &one.requirement)).collect();
        json!({"matchExpressions": expressions})
    }

    fn key(&mut self, one: &CiliumRequirement) -> String {
        let key = &one.requirement.key;
        match &one.source {
            LabelSource::Any if self.random.one_in(2) => key.to_string(),
            LabelSource::Any => format!("any:{key}"),
            LabelSource::Kubernetes => format!("k8s:{key}"),
            LabelSource::Reserved if self.random.one_in(4) => format!("${key}"),
            LabelSource::Reserved => format!("reserved:{key}"),
            LabelSource::Other(source) => format!("{source}:{key}"),
        }
    }

    fn allow(&mut self, allow: &Usable<CiliumAllow>, direction: Direction) -> Value {
        let Ok(CiliumAllow { peers, ports }) = allow else { return unusable() };
        let mut fields = Element::new();
        match ports.as_slice() {
            [CiliumPorts { ports: Ports::Any, application: Application::None }] => {}
            [CiliumPorts { ports: Ports::Of(list), application: Application::None }] if is_icmp(list) => {
                fields.insert("icmps".to_owned(), icmps(list));
            }
            lists => {
                fields.insert("toPorts".to_owned(), lists.iter().map(port_rule).collect());
            }
        }
        self.peers(&mut fields, peers, direction);
        Value::Object(fields)
    }

    fn deny(&mut self, deny: &Usable<CiliumDeny>, direction: Direction) -> Value {
        let Ok(CiliumDeny { peers, ports }) = deny else { return unusable() };
        let mut fields = Element::new();
        match ports {
            Ports::Any => {}
            Ports::Of(list) if is_icmp(list) => {
                fields.insert("icmps".to_owned(), icmps(list));
            }
            Ports::Of(list) => {
                fields.insert("toPorts".to_owned(), json!([{"ports": list.iter().map(port).collect::<Vec<_>>()}]));
            }
        }
        self.peers(&mut fields, peers, direction);
        Value::Object(fields)
    }

    fn peers(&mut self, fields: &mut Element, peers: &CiliumPeers, direction: Direction) {
        let (kind, list): (&str, Vec<Value>) = match peers {
            // Without ports either, an element is nobody; everybody is an entity then.
            CiliumPeers::Any => return,
            CiliumPeers::Nothing => ("Endpoints", Vec::new()),
            CiliumPeers::Endpoints(list) => ("Endpoints", list.iter().map(|one| self.selector(one, false)).collect()),
            CiliumPeers::Cidrs(rules) => {
                let bare = rules.iter().map(|rule| match rule {
                    CidrRule { block: CidrBlock::Cidr(cidr), except } if except.is_empty() => Some(json!(cidr)),
                    _ => None,
                });
                match bare.collect::<Option<Vec<Value>>>() {
                    Some(bare) if self.random.one_in(2) => ("CIDR", bare),
                    _ => ("CIDRSet", rules.iter().map(cidr_rule).collect()),
                }
            }
            CiliumPeers::Entities(list) => ("Entities", list.iter().map(|one| json!(entity(*one))).collect()),
            CiliumPeers::Services(list) => ("Services", list.iter().map(|one| self.service(one)).collect()),
            CiliumPeers::Groups(names) => {
                let id = |name: &&str| SECURITY_GROUPS.into_iter().find(|id| *aws_group(id) == **name);
                let group = |name: &str| json!({"aws": {"securityGroupsIds": [id(&name).unwrap()]}});
                ("Groups", names.iter().map(|name| group(name)).collect())
            }
            CiliumPeers::Nodes(list) => ("Nodes", list.iter().map(selector).collect()),
            CiliumPeers::Names(list) => ("FQDNs", list.iter().map(name).collect()),
        };
        let side = if direction == Direction::Ingress { "from" } else { "to" };
        fields.insert(format!("{side}{kind}"), Value::Array(list));
    }

    fn service(&mut self, service: &ServiceSelector) -> Value {
        match service {
            ServiceSelector::Named { namespace, name } => {
                let mut fields = json!({"serviceName": &**name});
                if let Some(namespace) = namespace {
                    fields["namespace"] = json!(&**namespace);
                }
                json!({ "k8sService": fields })
            }
            ServiceSelector::Labels { namespace, selector: labels } => {
                let mut fields = json!({"selector": selector(labels)});
                if let Some(namespace) = namespace {
                    fields["namespace"] = json!(&**namespace);
                }
                json!({ "k8sServiceSelector": fields })
            }
        }
    }
}

fn cidr_rule(rule: &CidrRule) -> Value {
    let mut fields = match &rule.block {
        CidrBlock::Cidr(cidr) => json!({ "cidr": cidr }),
        CidrBlock::Group(name) => json!({"cidrGroupRef": &**name}),
        CidrBlock::Groups(labels) => json!({"cidrGroupSelector": selector(labels)}),
    };
    fields["except"] = json!(texts(&rule.except));
    fields
}

const fn entity(entity: Entity) -> &'static str {
    match entity {
        Entity::All => "all",
        Entity::World => "world",
        Entity::WorldIpv4 => "world-ipv4",
        Entity::WorldIpv6 => "world-ipv6",
        Entity::Cluster => "cluster",
        Entity::Host => "host",
        Entity::Init => "init",
        Entity::Ingress => "ingress",
        Entity::Unmanaged => "unmanaged",
        Entity::RemoteNode => "remote-node",
        Entity::Health => "health",
        Entity::None => "none",
        Entity::KubeApiserver => "kube-apiserver",
    }
}

fn name(pattern: &NamePattern) -> Value {
    json!({"matchPattern": pattern.to_string()})
}

fn is_icmp(ports: &[PortMatch]) -> bool {
    let of = |protocol| [Protocol::ICMP, Protocol::ICMPV6].map(ProtocolMatch::Exactly).contains(&protocol);
    ports.iter().any(|one| of(one.protocol))
}

fn icmps(ports: &[PortMatch]) -> Value {
    let field = |one: &PortMatch| {
        let family = if one.protocol == ProtocolMatch::Exactly(Protocol::ICMP) { "IPv4" } else { "IPv6" };
        let PortTarget::Range(kind, _) = one.port else { panic!("{one:?} has no type") };
        json!({"family": family, "type": kind})
    };
    json!([{"fields": ports.iter().map(field).collect::<Vec<_>>()}])
}

fn port_rule(rule: &CiliumPorts) -> Value {
    let Ports::Of(list) = &rule.ports else { panic!("an element of toPorts has ports") };
    let mut fields = json!({"ports": list.iter().map(port).collect::<Vec<_>>()});
    match &rule.application {
        Application::None => {}
        Application::Http(rules) => {
            fields["rules"] = json!({"http": rules.iter().map(|one| http(one)).collect::<Vec<_>>()});
        }
        Application::Dns(names) => fields["rules"] = json!({"dns": names.iter().map(name).collect::<Vec<_>>()}),
        Application::ServerNames(names) => fields["serverNames"] = json!(texts(names)),
    }
    fields
}

fn port(port: &PortMatch) -> Value {
    let protocol = match port.protocol {
        ProtocolMatch::Transport => "ANY",
        ProtocolMatch::Exactly(protocol) => match protocol.0 {
            2 => "IGMP",
            6 => "TCP",
            17 => "UDP",
            47 => "GRE",
            112 => "VRRP",
            132 => "SCTP",
            other => panic!("protocol {other}"),
        },
    };
    match &port.port {
        PortTarget::Any => json!({"port": "0", "protocol": protocol}),
        PortTarget::Named(name) => json!({"port": &**name, "protocol": protocol}),
        PortTarget::Range(first, last) => json!({"port": first.to_string(), "endPort": last, "protocol": protocol}),
    }
}

fn http(rule: &HttpRule) -> Value {
    let HttpRuleSpec { path, method, host, headers, header_matches } = rule.spec();
    let header = |one: &HeaderMatchSpec| {
        let mismatch = match one.mismatch {
            MismatchAction::Refuse => None,
            MismatchAction::Log => Some("LOG"),
            MismatchAction::Add => Some("ADD"),
            MismatchAction::Delete => Some("DELETE"),
            MismatchAction::Replace => Some("REPLACE"),
        };
        json!({"name": one.name, "value": one.value, "mismatch": mismatch})
    };
    let matches: Vec<Value> = header_matches.iter().map(header).collect();
    json!({"path": path, "method": method, "host": host, "headers": headers, "headerMatches": matches})
}
