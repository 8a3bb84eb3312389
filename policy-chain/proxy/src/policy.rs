//! The rules of a flow, and what they say of a request.

mod lists;
mod plain;
mod pushed;
pub mod reader;
mod ruling;
mod table;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::l7::{Message, Permit};
use sluice_policy_core::model::cilium::Application;

pub use self::lists::Lists;
pub use self::plain::InvalidList;
pub use self::pushed::{Entry, Gates, Judged, Pushed, Sizes, Unreadable};
pub use self::ruling::Ruling;
use crate::flow::{Flow, Protocol};

/// How long a flow is held whose policy is not known yet: policyd tells what a decision means before the kernel takes it, so
/// that it can only be on its way.
pub const SETTLING: Duration = Duration::from_secs(1);

/// Where the rules of flows come from.
pub trait Policy: Send + Sync + 'static {
    /// What is in force for a flow whose packets go to `backend`: [`Flow::server`] where nothing is translated.
    ///
    /// It costs lookups in the kernel and waits for nothing. A flow that has its rules asks again when [`Self::version`] has
    /// moved, and for another backend.
    ///
    /// # Errors
    /// The flow must not go on: see [`Refused`].
    fn rules(&self, flow: &Flow, protocol: Protocol, backend: SocketAddr) -> Result<Arc<Rules>, Refused>;

    /// Moves with every change of policy: a long-lived flow asks for its rules again when it has.
    fn version(&self) -> u64;

    /// Resolves when [`Self::version`] is no longer `version`.
    fn changed(&self, version: u64) -> impl Future<Output = ()> + Send;

    /// [`Self::rules`], waiting [`SETTLING`] at most for what may be on its way.
    ///
    /// # Errors
    /// As [`Self::rules`].
    fn settled(
        &self,
        flow: &Flow,
        protocol: Protocol,
        backend: SocketAddr,
    ) -> impl Future<Output = Result<Arc<Rules>, Refused>> + Send {
        async move {
            let end = tokio::time::Instant::now() + SETTLING;
            loop {
                // Read before the question, so that no change between the two is missed.
                let version = self.version();
                match self.rules(flow, protocol, backend) {
                    Err(refused) if refused.may_settle() => {
                        if tokio::time::timeout_at(end, self.changed(version)).await.is_err() {
                            return Err(refused);
                        }
                    }
                    answer => return answer,
                }
            }
        }
    }
}

/// Why a flow must not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The gate does not let it go to where its packets would go.
    #[error("{0}")]
    Denied(Arc<str>),
    /// The gate does not know the flow, or no longer sends it here.
    #[error("the gate knows no such flow that goes through the proxy")]
    NoFlow,
    /// The pod whose gate it was is not known.
    #[error("the pod of endpoint {0} is not known: policyd has not told of it")]
    NoPod(u32),
    /// What the gate has decided cannot be understood.
    #[error("what decision {0} means is not known: policyd has not told it")]
    NoDecision(u32),
    /// The kernel's maps cannot be read.
    #[error("the gate's maps cannot be read")]
    NoMaps,
}

impl Refused {
    /// Whether it may be known in a moment what is not known now.
    #[must_use]
    pub const fn may_settle(&self) -> bool {
        matches!(self, Self::NoPod(_) | Self::NoDecision(_))
    }

    /// The value of metrics' label `reason`.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Denied(_) => "denied",
            Self::NoFlow => "no_flow",
            Self::NoPod(_) => "no_pod",
            Self::NoDecision(_) => "no_decision",
            Self::NoMaps => "no_maps",
        }
    }
}

/// The rules of a flow.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Whose policy it is.
    pub pod: PodKey,
    /// What lets requests pass: the first list that has a request names the rule.
    pub lists: Lists,
    /// What becomes of a request that none of them has.
    pub otherwise: Outcome,
    /// The rules as they would be if the policies that are dry runs were in force, where those differ.
    pub audit: Option<Arc<Self>>,
    /// What has to be read of the flow.
    pub looks: Looks,
}

/// The application rules of one element of a rule's `toPorts`.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleList {
    /// The rule, as people write it: `CiliumNetworkPolicy shop/db, egress[0]`.
    pub rule: Arc<str>,
    /// The application rules.
    pub application: Application,
    /// Whether some of them have header matches, which may change a request that another list lets pass.
    edits: bool,
}

impl RuleList {
    /// A list.
    #[must_use]
    pub fn new(rule: Arc<str>, application: Application) -> Self {
        let edits = matches!(&application, Application::Http(rules)
            if rules.iter().any(|rule| !rule.spec().header_matches.is_empty()));
        Self { rule, application, edits }
    }
}

/// What becomes of what no list has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it passes: the lists only make the flow seen.
    pub passes: bool,
    /// Why, in words.
    pub reason: Arc<str>,
}

/// What has to be read of a flow to judge it, or to show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Looks {
    /// Nothing: octets are relayed.
    #[default]
    Nothing,
    /// HTTP requests.
    Http,
    /// A TLS ClientHello.
    Tls,
    /// Either: rules of both kinds hold for the port, and the first octet tells (22 begins a TLS handshake record and no
    /// HTTP request).
    HttpOrTls,
    /// DNS messages. Where there are rules of another kind for the same port, those never let a DNS question pass, and
    /// nothing else is spoken there.
    Dns,
}

impl Looks {
    /// What application rules have to see.
    #[must_use]
    pub const fn of(application: &Application) -> Self {
        match application {
            Application::None => Self::Nothing,
            Application::Http(_) => Self::Http,
            Application::Dns(_) => Self::Dns,
            Application::ServerNames(_) => Self::Tls,
        }
    }

    /// What both have to see.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Dns, _) | (_, Self::Dns) => Self::Dns,
            (Self::Nothing, one) | (one, Self::Nothing) => one,
            (Self::Http, Self::Http) => Self::Http,
            (Self::Tls, Self::Tls) => Self::Tls,
            _ => Self::HttpOrTls,
        }
    }
}

impl Rules {
    /// What the rules say of a request.
    #[must_use]
    pub fn judge<'r>(&'r self, message: &Message<'_>) -> Ruling<'r> {
        let mut ruling = self.unread();
        match (message, self.lists.index()) {
            (Message::Http(request), Some(index)) => index.judge(request, &self.lists, &mut ruling),
            _ => self.ask_all(message, &mut ruling),
        }
        ruling.would_pass = self.audit.as_ref().map(|audit| audit.judge(message).passes);
        ruling
    }

    fn ask_all<'r>(&'r self, message: &Message<'_>, ruling: &mut Ruling<'r>) {
        let mut found = false;
        for list in self.lists.iter() {
            if found && !list.edits {
                continue;
            }
            let permit = list.application.permits(message);
            if !permit.passes() {
                continue;
            }
            if !found {
                found = true;
                (ruling.passes, ruling.rule, ruling.reason) = (true, Some(&list.rule), &list.rule);
            }
            if let (Permit::Rule { http: Some(matched), .. }, Message::Http(request)) = (permit, message) {
                ruling.headers.extend(matched.passes(request).filter(|pass| pass.log()));
            }
        }
    }

    /// What the rules say of what no list can have: a connection that is not looked into, a ClientHello that names no server.
    #[must_use]
    pub fn judge_unread(&self) -> Ruling<'_> {
        let mut ruling = self.unread();
        ruling.would_pass = self.audit.as_ref().map(|audit| audit.otherwise.passes);
        ruling
    }

    const fn unread(&self) -> Ruling<'_> {
        Ruling {
            passes: self.otherwise.passes,
            rule: None,
            reason: &self.otherwise.reason,
            headers: Vec::new(),
            would_pass: None,
        }
    }
}

#[cfg(test)]
mod tests;
