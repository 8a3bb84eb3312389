//! Policies as text, every part of the model in it.

use crate::cluster::Object;
use crate::model::cilium::{
    Application, CidrBlock, CidrRule, CiliumAllow, CiliumDeny, CiliumPeers, CiliumPolicy, CiliumPorts, ServiceSelector,
};
use crate::model::port::{PortMatch, PortTarget, Ports, ProtocolMatch};
use crate::model::selector::{CiliumSelector, LabelSelector, LabelSource, Operator, Requirement};
use crate::model::{Policy, Usable};
use crate::parse::Parsed;

/// What was read, then the faults.
pub(super) fn parsed(parsed: &Parsed) -> String {
    let mut text = match &parsed.object {
        None => "nothing\n".to_owned(),
        Some(Object::Policy(Policy::Cilium(policy))) => self::policy(policy),
        Some(Object::CidrGroup(group)) => {
            let labels: Vec<_> = group.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let cidrs = match &group.cidrs {
                Err(why) => format!("unusable: {}", why.path),
                Ok(cidrs) => list(cidrs, ToString::to_string),
            };
            format!("group {} {{{}}} {cidrs}\n", group.name, labels.join(","))
        }
        Some(other) => panic!("{other:?}"),
    };
    for issue in &parsed.issues {
        text += &format!("! {:?} {}: {}\n", issue.severity, issue.path, issue.message);
    }
    text
}

fn policy(policy: &CiliumPolicy) -> String {
    let mut text = String::new();
    for rule in &policy.rules {
        text += &format!("for {}\n", cilium(&rule.subject));
        for (direction, deny) in [("ingress", rule.default_deny_ingress), ("egress", rule.default_deny_egress)] {
            if deny {
                text += &format!("  {direction} default deny\n");
            }
        }
        let mut rules = |name: &str, rules: Vec<String>| {
            for (index, rule) in rules.iter().enumerate() {
                text += &format!("  {name}[{index}] {rule}\n");
            }
        };
        rules("ingress", rule.ingress.iter().map(allow).collect());
        rules("ingressDeny", rule.ingress_deny.iter().map(deny).collect());
        rules("egress", rule.egress.iter().map(allow).collect());
        rules("egressDeny", rule.egress_deny.iter().map(deny).collect());
        if let Some(log) = &rule.log {
            text += &format!("  log {log}\n");
        }
    }
    if policy.audit {
        text += "dry run\n";
    }
    text
}

fn allow(rule: &Usable<CiliumAllow>) -> String {
    match rule {
        Err(why) => format!("unusable: {}", why.path),
        Ok(rule) => format!("{} on {}", peers(&rule.peers), list(&rule.ports, on)),
    }
}

fn deny(rule: &Usable<CiliumDeny>) -> String {
    match rule {
        Err(why) => format!("unusable: {}", why.path),
        Ok(rule) => format!("{} on {}", peers(&rule.peers), ports(&rule.ports)),
    }
}

fn on(rule: &CiliumPorts) -> String {
    let rules = match &rule.application {
        Application::None => return ports(&rule.ports),
        Application::Http(rules) => {
            let mut shown = Vec::new();
            for rule in rules.iter() {
                let spec = rule.spec();
                let mut parts = Vec::new();
                for (name, value) in [("path", &spec.path), ("method", &spec.method), ("host", &spec.host)] {
                    parts.extend(value.iter().map(|value| format!("{name} {value}")));
                }
                parts.extend(spec.headers.iter().map(|header| format!("header {header}")));
                parts.extend(spec.header_matches.iter().map(|header| {
                    format!("match {} {} {:?}", header.name, header.value.as_deref().unwrap_or("-"), header.mismatch)
                }));
                shown.push(parts.join(" & "));
            }
            format!("http{}", list(&shown, |rule| format!("<{rule}>")))
        }
        Application::Dns(names) => format!("dns{}", list(names, ToString::to_string)),
        Application::ServerNames(names) => format!("names{}", list(names, ToString::to_string)),
    };
    format!("{} {rules}", ports(&rule.ports))
}

fn ports(ports: &Ports) -> String {
    match ports {
        Ports::Any => "any port".to_owned(),
        Ports::Of(ports) => list(ports, port),
    }
}

fn port(port: &PortMatch) -> String {
    let protocol = match port.protocol {
        ProtocolMatch::Transport => "*".to_owned(),
        ProtocolMatch::Exactly(protocol) => protocol.to_string(),
    };
    match &port.port {
        PortTarget::Any => format!("{protocol}/*"),
        PortTarget::Range(first, last) if first == last => format!("{protocol}/{first}"),
        PortTarget::Range(first, last) => format!("{protocol}/{first}-{last}"),
        PortTarget::Named(name) => format!("{protocol}/{name}"),
    }
}

fn peers(peers: &CiliumPeers) -> String {
    match peers {
        CiliumPeers::Any => "anyone".to_owned(),
        CiliumPeers::Nothing => "nobody".to_owned(),
        CiliumPeers::Endpoints(selectors) => format!("endpoints{}", list(selectors, cilium)),
        CiliumPeers::Cidrs(rules) => format!("cidrs{}", list(rules, cidr)),
        CiliumPeers::Entities(entities) => format!("entities{}", list(entities, |entity| format!("{entity:?}"))),
        CiliumPeers::Services(services) => format!("services{}", list(services, service)),
        CiliumPeers::Groups(names) => format!("groups{}", list(names, ToString::to_string)),
        CiliumPeers::Nodes(selectors) => format!("nodes{}", list(selectors, plain)),
        CiliumPeers::Names(names) => format!("names{}", list(names, ToString::to_string)),
    }
}

fn cidr(rule: &CidrRule) -> String {
    let mut text = match &rule.block {
        CidrBlock::Cidr(block) => block.to_string(),
        CidrBlock::Group(name) => format!("group {name}"),
        CidrBlock::Groups(selector) => format!("groups {}", plain(selector)),
    };
    if !rule.except.is_empty() {
        text += &format!(" but {}", list(&rule.except, ToString::to_string));
    }
    text
}

fn service(service: &ServiceSelector) -> String {
    let place = |namespace: &Option<_>| namespace.clone().unwrap_or_else(|| "*".into());
    match service {
        ServiceSelector::Named { namespace, name } => format!("{}/{name}", place(namespace)),
        ServiceSelector::Labels { namespace, selector } => format!("{}/{}", place(namespace), plain(selector)),
    }
}

fn cilium(selector: &CiliumSelector) -> String {
    let shown: Vec<String> = selector
        .requirements
        .iter()
        .map(|one| {
            let source = match &one.source {
                LabelSource::Any => "any",
                LabelSource::Kubernetes => "k8s",
                LabelSource::Reserved => "reserved",
                LabelSource::Other(name) => name,
            };
            format!("{source}:{}", requirement(&one.requirement))
        })
        .collect();
    format!("{{{}}}", shown.join(", "))
}

fn plain(selector: &LabelSelector) -> String {
    let shown: Vec<String> = selector.requirements.iter().map(requirement).collect();
    format!("{{{}}}", shown.join(", "))
}

fn requirement(one: &Requirement) -> String {
    let key = &one.key;
    match one.operator {
        Operator::In => format!("{key}={}", one.values.join("|")),
        Operator::NotIn => format!("{key}!={}", one.values.join("|")),
        Operator::Exists => format!("{key}"),
        Operator::DoesNotExist => format!("!{key}"),
    }
}

fn list<T>(values: &[T], show: impl Fn(&T) -> String) -> String {
    let shown: Vec<String> = values.iter().map(show).collect();
    format!("[{}]", shown.join(", "))
}
