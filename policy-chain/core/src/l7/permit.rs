//! Whether application rules let one request of a flow pass.

use super::dns::Name;
use super::http::{self, HttpMatch, Request};
use crate::model::cilium::Application;

/// A request of a flow that goes through the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// An HTTP request.
    Http(Request<'a>),
    /// A question to a DNS server.
    Dns {
        /// The name that is asked for.
        name: Name,
        /// Type of the records asked for. Rules do not look at it.
        qtype: u16,
    },
    /// The server that a TLS ClientHello names.
    ServerName(Name),
}

/// What application rules say of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permit<'r> {
    /// There are no application rules: everything passes.
    All,
    /// It passes by this rule.
    Rule {
        /// Which one of its list.
        index: usize,
        /// What comes with an HTTP request that passes.
        http: Option<HttpMatch<'r>>,
    },
    /// No rule has it.
    No,
}

impl Permit<'_> {
    /// Whether it passes.
    #[must_use]
    pub const fn passes(&self) -> bool {
        !matches!(self, Self::No)
    }
}

impl Application {
    /// Whether these rules let a request pass. Rules of one protocol never let a request of another pass.
    #[must_use]
    pub fn permits(&self, message: &Message<'_>) -> Permit<'_> {
        let found = match (self, message) {
            (Self::None, _) => return Permit::All,
            (Self::Http(rules), Message::Http(request)) => {
                return http::first_match(rules, request)
                    .map_or(Permit::No, |found| Permit::Rule { index: found.index, http: Some(found) });
            }
            (Self::Dns(patterns), Message::Dns { name, .. }) => patterns.iter().position(|one| one.matches(name)),
            (Self::ServerNames(patterns), Message::ServerName(name)) => {
                patterns.iter().position(|one| one.matches(name))
            }
            _ => None,
        };
        found.map_or(Permit::No, |index| Permit::Rule { index, http: None })
    }
}

#[cfg(test)]
mod tests;
