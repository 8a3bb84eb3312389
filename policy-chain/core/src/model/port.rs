//! Protocols and ports of rules.

use super::Text;
use crate::flow::Protocol;

/// Which protocols a port condition is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProtocolMatch {
    /// TCP, UDP and SCTP (`ANY` of Cilium; a `destinationNamedPort`, whose protocol is that of the container port).
    Transport,
    /// This one.
    Exactly(Protocol),
}

impl ProtocolMatch {
    /// Whether a packet of `protocol` is meant.
    #[must_use]
    pub fn holds(self, protocol: Protocol) -> bool {
        match self {
            Self::Transport => matches!(protocol, Protocol::TCP | Protocol::UDP | Protocol::SCTP),
            Self::Exactly(exactly) => exactly == protocol,
        }
    }
}

/// Which ports of the protocol. For ICMP and ICMPv6 a "port" is the message's type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortTarget {
    /// Every port, and packets of protocols that have none.
    Any,
    /// From the first to the last, both included; first <= last.
    Range(u16, u16),
    /// The container port of that name: of the selected pod on ingress, of each destination pod on egress.
    Named(Text),
}

/// A condition on a packet's protocol and destination port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortMatch {
    /// Protocol.
    pub protocol: ProtocolMatch,
    /// Ports of it.
    pub port: PortTarget,
}

/// The protocols and ports of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    /// Everything, whatever the protocol.
    Any,
    /// What one of these says; nothing if there is none.
    Of(Vec<PortMatch>),
}
