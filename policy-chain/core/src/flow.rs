//! What is asked of a policy set, and what it answers.

mod lists;

use std::fmt;
use std::net::IpAddr;

pub use self::lists::{Iter as ListsIter, List, ListRef, Lists};
use crate::cluster::PodKey;
use crate::l7::Message;
use crate::model::{PolicyRef, Text};

/// Direction of a flow, as its pod sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// `ingress` or `egress`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An IP protocol, by its number (IANA, Assigned Internet Protocol Numbers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP for IPv4; a port is the message's type.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// ICMPv6; a port is the message's type.
    pub const ICMPV6: Self = Self(58);
    /// SCTP.
    pub const SCTP: Self = Self(132);
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ICMP => f.write_str("ICMP"),
            Self::TCP => f.write_str("TCP"),
            Self::UDP => f.write_str("UDP"),
            Self::ICMPV6 => f.write_str("ICMPv6"),
            Self::SCTP => f.write_str("SCTP"),
            Self(number) => write!(f, "protocol {number}"),
        }
    }
}

/// How a packet came to the pod's gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// From elsewhere, or (egress) from the pod.
    Forwarded,
    /// Ingress: from the pod's own node itself, no interface before it (DESIGN 6.3). The peer's address is one of the node's.
    OwnNode,
    /// From the pod to one of its Services, which chose the pod itself as the backend (DESIGN 6.11). The peer's address is
    /// the pod's own.
    Hairpin,
}

/// A question: may the first packet of this flow pass the gate of `subject` in this direction?
///
/// On egress the peer may be an address:port that the service proxy translates; the answer is then
/// [`Verdict::Defer`], [`Verdict::Deny`] or [`Verdict::Redirect`] (DESIGN 7), and the backend is asked about next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The pod whose gate it is.
    pub subject: PodKey,
    /// Direction.
    pub direction: Direction,
    /// The other side.
    pub peer: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Destination port; the type of an ICMP message; 0 where the protocol has none.
    pub port: u16,
    /// How the packet came.
    pub origin: Origin,
}

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It passes.
    Allow,
    /// It is dropped, silently.
    Deny,
    /// It goes to the proxy, which judges each request.
    Redirect(Proxied),
    /// It passes this gate untranslated and is judged where its backend can be seen (DESIGN 7).
    Defer,
}

impl Verdict {
    /// `allow`, `deny`, `redirect` or `defer`.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Redirect(_) => "redirect",
            Self::Defer => "defer",
        }
    }
}

/// An application protocol that the proxy can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AppProtocol {
    /// HTTP, its requests.
    Http,
    /// DNS, its questions and answers.
    Dns,
    /// TLS, the server name of its ClientHello.
    Tls,
}

impl fmt::Display for AppProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "HTTP",
            Self::Dns => "DNS",
            Self::Tls => "TLS",
        })
    }
}

/// What the proxy does with the requests of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Proxied {
    /// The lists of application rules that are for the flow: a request passes if one of them has it.
    pub lists: Lists,
    /// What the proxy looks for although no list is about it, to record it or to learn from it. Nobody is refused by it.
    pub see: Option<AppProtocol>,
    /// What becomes of a request that no list has: the verdict without these lists
    /// ([`Outcome::Allow`]: they only make it seen, DESIGN 6.6), and why.
    pub otherwise: Outcome,
}

/// The port of DNS (RFC 1035, 4.2). Where rules mean peers by their names, what a pod may send there by TCP or UDP is looked
/// at by the proxy, so that names are learned; unless rules of another protocol are for the flow, which has one parser.
pub const DNS_PORT: u16 = 53;

impl Proxied {
    /// A flow that passes, for this reason, and is looked at.
    #[must_use]
    pub fn seen(protocol: AppProtocol, reason: Reason) -> Self {
        Self { lists: Lists::default(), see: Some(protocol), otherwise: Outcome::Allow(reason) }
    }

    /// What becomes of a request, and why: the first of the lists that has it, else what is done otherwise.
    #[must_use]
    pub fn outcome(&self, message: &Message<'_>) -> Outcome {
        let having = self.lists.iter().find(|list| list.application.permits(message).passes());
        having.map_or_else(|| self.otherwise.clone(), |list| Outcome::Allow(Reason::Rule(list.at.rule.clone())))
    }
}

/// A final verdict, and why.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Passes.
    Allow(Reason),
    /// Does not pass.
    Deny(Reason),
}

/// A rule of a policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleRef {
    /// The policy.
    pub policy: PolicyRef,
    /// Direction of the rule.
    pub direction: Direction,
    /// Where the rule stands in a policy of cilium.io: 0 is `spec`, n is element n - 1 of `specs`. 0 in the other dialects.
    pub spec: u16,
    /// Of `ingressDeny` or `egressDeny`, not `ingress` or `egress` (Cilium).
    pub deny: bool,
    /// Index in its list.
    pub index: u16,
}

impl fmt::Display for RuleRef {
    /// `NetworkPolicy shop/db, ingress[0]`; `CiliumNetworkPolicy shop/db, specs[1].egressDeny[0]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, ", self.policy)?;
        if let Some(element) = self.spec.checked_sub(1) {
            write!(f, "specs[{element}].")?;
        }
        write!(f, "{}{}[{}]", self.direction, if self.deny { "Deny" } else { "" }, self.index)
    }
}

/// Why a verdict is what it is.
///
/// Where several rules of one standing match, the least [`RuleRef`] is named.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// This rule says so.
    Rule(RuleRef),
    /// A policy isolates the pod in this direction, and no rule allows the flow. The least policy that does.
    Isolated(PolicyRef),
    /// Nothing decides: what no policy restricts is allowed.
    NoPolicy,
    /// The pod's own node may always reach it (DESIGN 6.3).
    OwnNode,
    /// A pod may always reach its own address (DESIGN 6.11).
    OwnAddress,
    /// The address is a Service's: its backends decide (DESIGN 6.8).
    Service,
    /// The policies that select the pod say more, all together, than can be put in force: nothing passes
    /// ([`crate::compile::engine::MAX_CONDITIONS`]).
    TooLarge,
    /// The pod is not known.
    Unknown,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(rule) => rule.fmt(f),
            Self::Isolated(policy) => write!(f, "{policy} isolates the pod, and no rule allows this"),
            Self::NoPolicy => f.write_str("no policy decides"),
            Self::OwnNode => f.write_str("the pod's own node may always reach it"),
            Self::OwnAddress => f.write_str("a pod may always reach itself"),
            Self::Service => f.write_str("the Service's backends decide"),
            Self::TooLarge => f.write_str("the pod's policies are too large to be in force, so nothing passes"),
            Self::Unknown => f.write_str("the pod is not known"),
        }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Judgement {
    /// What happens.
    pub verdict: Verdict,
    /// Why. For a [`Verdict::Redirect`]: the rule of the first of its lists; if it has none, why it would pass.
    pub reason: Reason,
    /// What would happen if the policies that are dry runs (and the pod's gate, if it is one) were in force, where that
    /// differs in verdict or reason.
    pub audit: Option<Box<Self>>,
}

/// The policy log text (`log.value` of Cilium) that goes with a rule.
pub type PolicyLog = Option<Text>;
