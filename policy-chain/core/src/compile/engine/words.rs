//! Facts about addresses in words: what a checkpoint has of identities.
//!
//! The words are an interface of their own: a file with them outlives the program that wrote it. Whoever changes what is
//! written here moves [`super::Checkpoint::VERSION`]. Names, keys and values are JSON strings, so that no name can look like
//! another fact.
//!
//! ```text
//! fact      = "own node"
//!           | "port" NAME PROTOCOL-NUMBER PORT          the pod has a port of this name
//!           | predicate                                 it holds
//!           | "forwarded" predicate                     it holds where the packet was forwarded, not sent by the node
//! predicate = "pods in" NAMESPACE selector
//!           | "pods in" selector selector               of namespaces with these labels
//!           | "block" CIDR { "-" CIDR } [ "managed" ]   "managed": also addresses of pods and nodes
//!           | "endpoints" selector
//!           | "entity" ENTITY                           as cilium.io spells it
//!           | "nodes" selector
//!           | "service" [ NAMESPACE ] "/" NAME
//!           | "services in" [ NAMESPACE ] selector
//!           | "name" PATTERN                            lower case, without final dot
//! selector  = "{" { [ SOURCE ":" ] KEY operator [ "," ] } "}"
//! operator  = "in [" VALUES "]" | "notin [" VALUES "]" | "exists" | "absent"
//! ```

use std::fmt::Write;

use serde_json::Value;

use super::fronts::FrontId;
use crate::cluster::NamedPort;
use crate::compile::predicate::{Namespaces, Predicate};
use crate::model::cilium::{Entity, ServiceSelector};
use crate::model::selector::{CiliumSelector, LabelSelector, LabelSource, Operator, Requirement};

/// What is written to a `String` does not fail.
macro_rules! put {
    ($out:expr, $($arguments:tt)*) => {
        let _never_fails = write!($out, $($arguments)*);
    };
}

/// A named port.
pub(super) fn port(port: &NamedPort) -> String {
    let mut out = String::from("port ");
    quoted(&mut out, &port.name);
    put!(out, " {} {}", port.protocol.0, port.port);
    out
}

/// A predicate.
pub(super) fn predicate(predicate: &Predicate) -> String {
    let mut out = String::new();
    match predicate {
        Predicate::Pods { namespaces, pods } => {
            out.push_str("pods in ");
            match namespaces {
                Namespaces::Named(name) => quoted(&mut out, name),
                Namespaces::Labelled(selector) => labels(&mut out, selector),
            }
            out.push(' ');
            labels(&mut out, pods);
        }
        Predicate::Block { cidr, except, managed } => {
            put!(out, "block {cidr}");
            for one in except {
                put!(out, " -{one}");
            }
            if *managed {
                out.push_str(" managed");
            }
        }
        Predicate::Endpoints(selector) => {
            out.push_str("endpoints ");
            endpoints(&mut out, selector);
        }
        Predicate::Entity(one) => {
            out.push_str("entity ");
            out.push_str(entity(*one));
        }
        Predicate::Nodes(selector) => {
            out.push_str("nodes ");
            labels(&mut out, selector);
        }
        Predicate::Services(ServiceSelector::Named { namespace, name }) => {
            out.push_str("service ");
            if let Some(namespace) = namespace {
                quoted(&mut out, namespace);
            }
            out.push('/');
            quoted(&mut out, name);
        }
        Predicate::Services(ServiceSelector::Labels { namespace, selector }) => {
            out.push_str("services in ");
            if let Some(namespace) = namespace {
                quoted(&mut out, namespace);
                out.push(' ');
            }
            labels(&mut out, selector);
        }
        Predicate::Name(pattern) => {
            out.push_str("name ");
            quoted(&mut out, pattern.normal());
        }
    }
    out
}

/// A frontend of a Service: `NAMESPACE/NAME PORT-NAME PROTOCOL-NUMBER PORT FAMILY`.
pub(super) fn frontend(id: &FrontId) -> String {
    let FrontId { service, name, protocol, port, v4 } = id;
    let mut out = String::new();
    quoted(&mut out, &service.namespace);
    out.push('/');
    quoted(&mut out, &service.name);
    out.push(' ');
    quoted(&mut out, name);
    put!(out, " {} {port} {}", protocol.0, if *v4 { "IPv4" } else { "IPv6" });
    out
}

fn quoted(out: &mut String, text: &str) {
    put!(out, "{}", Value::from(text));
}

fn labels(out: &mut String, selector: &LabelSelector) {
    out.push('{');
    for (index, one) in selector.requirements.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        requirement(out, one);
    }
    out.push('}');
}

fn endpoints(out: &mut String, selector: &CiliumSelector) {
    out.push('{');
    for (index, one) in selector.requirements.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        match &one.source {
            LabelSource::Any => {}
            LabelSource::Kubernetes => out.push_str("k8s:"),
            LabelSource::Reserved => out.push_str("reserved:"),
            LabelSource::Other(source) => {
                quoted(out, source);
                out.push(':');
            }
        }
        requirement(out, &one.requirement);
    }
    out.push('}');
}

fn requirement(out: &mut String, one: &Requirement) {
    quoted(out, &one.key);
    let values = |out: &mut String, word: &str| {
        put!(out, " {word} [");
        for (index, value) in one.values.iter().enumerate() {
            if index > 0 {
                out.push_str(", ");
            }
            quoted(out, value);
        }
        out.push(']');
    };
    match one.operator {
        Operator::In => values(out, "in"),
        Operator::NotIn => values(out, "notin"),
        Operator::Exists => out.push_str(" exists"),
        Operator::DoesNotExist => out.push_str(" absent"),
    }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cluster::ObjectKey;
    use crate::flow::Protocol;
    use crate::l7::dns::NamePattern;
    use crate::model::selector::CiliumRequirement;

    fn one(key: &str, operator: Operator, values: &[&str]) -> Requirement {
        Requirement { key: key.into(), operator, values: values.iter().map(|value| (*value).into()).collect() }
    }

    /// A change here is a change of what is in files: it needs another version.
    #[test]
    fn words_stay_as_they_are() {
        let selector = LabelSelector { requirements: vec![one("app", Operator::In, &["db", "web"])] };
        let both = LabelSelector {
            requirements: vec![
                one("a\"b", Operator::Exists, &[]),
                one("c", Operator::DoesNotExist, &[]),
                one("d", Operator::NotIn, &["x"]),
            ],
        };
        let sources =
            [LabelSource::Any, LabelSource::Kubernetes, LabelSource::Reserved, LabelSource::Other("unspec".into())];
        let endpoints = CiliumSelector {
            requirements: sources
                .map(|source| CiliumRequirement { source, requirement: one("k", Operator::In, &["v"]) })
                .into(),
        };
        let named = |name: &str, namespace: Option<&str>| {
            Predicate::Services(ServiceSelector::Named { namespace: namespace.map(Into::into), name: name.into() })
        };
        let services = |namespace: Option<&str>| {
            Predicate::Services(ServiceSelector::Labels {
                namespace: namespace.map(Into::into),
                selector: selector.clone(),
            })
        };
        let block = |except: &[&str], managed| Predicate::Block {
            cidr: "10.0.0.0/8".parse().unwrap(),
            except: except.iter().map(|one| one.parse().unwrap()).collect(),
            managed,
        };
        let pods = |namespaces| Predicate::Pods { namespaces, pods: selector.clone() };
        for (predicate, words) in [
            (pods(Namespaces::Named("shop".into())), r#"pods in "shop" {"app" in ["db", "web"]}"#),
            (
                pods(Namespaces::Labelled(both)),
                r#"pods in {"a\"b" exists, "c" absent, "d" notin ["x"]} {"app" in ["db", "web"]}"#,
            ),
            (block(&[], false), "block 10.0.0.0/8"),
            (block(&["10.1.0.0/16", "10.2.0.0/16"], true), "block 10.0.0.0/8 -10.1.0.0/16 -10.2.0.0/16 managed"),
            (
                Predicate::Endpoints(endpoints),
                r#"endpoints {"k" in ["v"], k8s:"k" in ["v"], reserved:"k" in ["v"], "unspec":"k" in ["v"]}"#,
            ),
            (Predicate::Entity(Entity::KubeApiserver), "entity kube-apiserver"),
            (Predicate::Nodes(LabelSelector::default()), "nodes {}"),
            (named("s", Some("shop")), r#"service "shop"/"s""#),
            (named("s", None), r#"service /"s""#),
            (services(Some("shop")), r#"services in "shop" {"app" in ["db", "web"]}"#),
            (services(None), r#"services in {"app" in ["db", "web"]}"#),
            (Predicate::Name(NamePattern::name("API.Example.com").unwrap()), r#"name "api.example.com""#),
        ] {
            assert_eq!(super::predicate(&predicate), words);
        }
        let named = NamedPort { name: "http".into(), protocol: Protocol::TCP, port: 8080 };
        assert_eq!(port(&named), r#"port "http" 6 8080"#);
        let service = Arc::new(ObjectKey { namespace: "shop".into(), name: "web".into() });
        let front = FrontId { service, name: "http".into(), protocol: Protocol::TCP, port: 80, v4: true };
        assert_eq!(frontend(&front), r#""shop"/"web" "http" 6 80 IPv4"#);
    }
}
