//! What the proxy makes of a request.

use std::net::IpAddr;

use super::probe::Leg;
use super::schema::Request;
use super::world::World;
use crate::flow::{Direction, Outcome, Proxied, Query, Reason, RuleRef};
use crate::l7::Message;
use crate::l7::dns::Name;
use crate::l7::http::{Field, RawRequest, Request as HttpRequest, Version};
use crate::l7::sni::server_name;
use crate::model::Policy;
use crate::model::cilium::CiliumPorts;
use crate::model::port::{PortMatch, PortTarget, Ports};

/// What the proxy does with a request of a redirected flow, and why. A request that has two readings is refused.
pub(super) fn outcome(world: &World, leg: &Leg, proxied: &Proxied, request: &Request) -> Outcome {
    let passes = |rule: &&RuleRef| with_message(leg, request, |message| permits(world, &leg.query, rule, message));
    match proxied.rules.iter().find(|rule| passes(rule) == Some(true)) {
        Some(rule) => Outcome::Allow(Reason::Rule(rule.clone())),
        None if with_message(leg, request, |_| ()).is_none() => {
            let reason = proxied.rules.first().map_or(Reason::NoPolicy, |rule| Reason::Rule(rule.clone()));
            Outcome::Deny(reason)
        }
        None => proxied.otherwise.clone(),
    }
}

/// Calls `then` with the request in the form in which rules see it; none if it has no such form.
fn with_message<T>(leg: &Leg, request: &Request, then: impl FnOnce(&Message<'_>) -> T) -> Option<T> {
    match request {
        Request::Http { method, target, host, headers } => {
            // A client that is told no name sends the address that it dials (RFC 9110, 7.2).
            let dialled = match leg.dialled {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => format!("[{address}]"),
            };
            let host = if host.is_empty() { dialled.as_str() } else { host };
            let fields: Vec<Field<'_>> = std::iter::once(("Host", host))
                .chain(headers.iter().map(|(name, value)| (name.as_ref(), value.as_ref())))
                .map(|(name, value): (&str, &str)| Field { name: name.as_bytes(), value: value.as_bytes() })
                .collect();
            let raw = RawRequest {
                version: Version::Http11,
                method: method.as_bytes(),
                target: target.as_bytes(),
                authority: None,
                fields: &fields,
            };
            HttpRequest::new(raw).ok().map(|request| then(&Message::Http(request)))
        }
        Request::Dns(name) => Name::new(name).ok().map(|name| then(&Message::Dns { name, qtype: 1 })),
        Request::ServerName(name) => server_name(name.as_bytes()).ok().map(|name| then(&Message::ServerName(name))),
    }
}

/// Whether a rule lets the request pass, by those of its ports that the flow is of.
fn permits(world: &World, query: &Query, rule: &RuleRef, message: &Message<'_>) -> bool {
    let Some(Policy::Cilium(policy)) = world.cluster().policies.get(&rule.policy).map(AsRef::as_ref) else {
        return false;
    };
    let Some(spec) = policy.rule(rule.spec) else { return false };
    let list = match rule.direction {
        Direction::Ingress => &spec.ingress,
        Direction::Egress => &spec.egress,
    };
    let Some(Ok(allow)) = list.get(usize::from(rule.index)) else { return false };
    let of_the_flow = |ports: &&CiliumPorts| match &ports.ports {
        Ports::Any => true,
        Ports::Of(matches) => matches.iter().any(|one| holds(world, query, one)),
    };
    allow.ports.iter().filter(of_the_flow).any(|ports| ports.application.permits(message).passes())
}

fn holds(world: &World, query: &Query, one: &PortMatch) -> bool {
    one.protocol.holds(query.protocol)
        && match &one.port {
            PortTarget::Any => true,
            PortTarget::Range(first, last) => (*first..=*last).contains(&query.port),
            PortTarget::Named(name) => {
                let pod = match query.direction {
                    Direction::Ingress => world.cluster().pods.get(&query.subject).cloned(),
                    Direction::Egress => world.holder(query.peer).pod,
                };
                pod.is_some_and(|pod| {
                    pod.ports
                        .iter()
                        .any(|port| port.name == *name && port.protocol == query.protocol && port.port == query.port)
                })
            }
        }
}
