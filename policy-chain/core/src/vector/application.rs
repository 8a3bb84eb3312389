//! What the proxy makes of a request.

use std::net::IpAddr;

use super::probe::Leg;
use super::schema::Request;
use super::world::{World, pod_at};
use crate::cluster::Cluster;
use crate::flow::{Direction, Origin, Outcome, Proxied, Query, Reason, RuleRef};
use crate::l7::Message;
use crate::l7::dns::Name;
use crate::l7::http::{Field, RawRequest, Request as HttpRequest, Version};
use crate::l7::sni::server_name;
use crate::model::Policy;
use crate::model::cilium::{Application, CiliumPorts};
use crate::model::port::{PortMatch, PortTarget, Ports};

/// What the proxy does with a request of a redirected flow, and why. A request that has two readings is refused.
pub(super) fn outcome(world: &World, leg: &Leg, proxied: &Proxied, request: &Request) -> Outcome {
    let found = with_message(leg, request, |message| judged(world.cluster(), &leg.query, proxied, message));
    found.unwrap_or_else(|| {
        Outcome::Deny(proxied.rules.first().map_or(Reason::NoPolicy, |rule| Reason::Rule(rule.clone())))
    })
}

/// What becomes of a request of a flow whose verdict is this, and why: the first of the rules that has it, else what is done
/// otherwise.
#[must_use]
pub fn judged(cluster: &Cluster, query: &Query, proxied: &Proxied, message: &Message<'_>) -> Outcome {
    let having = proxied.rules.iter().find(|rule| permits(cluster, query, rule, message));
    having.map_or_else(|| proxied.otherwise.clone(), |rule| Outcome::Allow(Reason::Rule(rule.clone())))
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

/// Whether the application rules of a rule let the request pass, by those of its ports that the flow is of. What it allows
/// without application rules is no word of the proxy's: it is why the request passes otherwise.
fn permits(cluster: &Cluster, query: &Query, rule: &RuleRef, message: &Message<'_>) -> bool {
    let Some(Policy::Cilium(policy)) = cluster.policies.get(&rule.policy).map(AsRef::as_ref) else {
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
        Ports::Of(matches) => matches.iter().any(|one| holds(cluster, query, one)),
    };
    let mut lists = allow.ports.iter().filter(|ports| ports.application != Application::None).filter(of_the_flow);
    lists.any(|ports| ports.application.permits(message).passes())
}

fn holds(cluster: &Cluster, query: &Query, one: &PortMatch) -> bool {
    one.protocol.holds(query.protocol)
        && match &one.port {
            PortTarget::Any => true,
            PortTarget::Range(first, last) => (*first..=*last).contains(&query.port),
            PortTarget::Named(name) => {
                let pod = match query.direction {
                    Direction::Ingress => cluster.pods.get(&query.subject),
                    // To itself through its Service (DESIGN 6.11), whoever else claims its address.
                    Direction::Egress if query.origin == Origin::Hairpin => cluster.pods.get(&query.subject),
                    Direction::Egress => pod_at(cluster, query.peer.to_canonical()),
                };
                pod.is_some_and(|pod| {
                    pod.ports
                        .iter()
                        .any(|port| port.name == *name && port.protocol == query.protocol && port.port == query.port)
                })
            }
        }
}
