//! What the proxy makes of a request.

use std::net::IpAddr;

use super::probe::Leg;
use super::schema::Request;
use crate::flow::{AppProtocol, Outcome, Proxied, Reason};
use crate::l7::Message;
use crate::l7::dns::Name;
use crate::l7::http::{Field, RawRequest, Request as HttpRequest, Version};
use crate::l7::sni::server_name;

/// What the proxy does with a request of a redirected flow, and why. A request that has two readings is refused, if a list is
/// about it, or if the flow is looked into for such.
pub(super) fn outcome(leg: &Leg, proxied: &Proxied, request: &Request) -> Outcome {
    let found = with_message(leg, request, |message| proxied.outcome(message));
    let looked_for = match request {
        Request::Http { .. } => AppProtocol::Http,
        Request::Dns(_) => AppProtocol::Dns,
        Request::ServerName(_) => AppProtocol::Tls,
    };
    found.unwrap_or_else(|| match (proxied.lists.first(), &proxied.otherwise) {
        (Some(list), _) => Outcome::Deny(Reason::Rule(list.at.rule.clone())),
        (None, Outcome::Allow(why)) if proxied.see == Some(looked_for) => Outcome::Deny(why.clone()),
        (None, otherwise) => otherwise.clone(),
    })
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
