//! Protocols and ports of rules, as sets that can be compared.

use std::collections::{BTreeMap, BTreeSet};

use crate::flow::Protocol;
use crate::model::Text;
use crate::model::port::{PortTarget, Ports, ProtocolMatch};

/// Packets by protocol and port. Names are not resolved: what a name means differs from pod to pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PortSet {
    /// Every packet, whatever its protocol.
    every: bool,
    /// By protocol; sorted, neither overlapping nor touching.
    ranges: BTreeMap<Protocol, Vec<(u16, u16)>>,
    named: BTreeSet<(Protocol, Text)>,
}

const TRANSPORT: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];

impl PortSet {
    pub(super) fn new<'a>(all: impl IntoIterator<Item = &'a Ports>) -> Self {
        let mut set = Self::default();
        for ports in all {
            match ports {
                Ports::Any => set.every = true,
                Ports::Of(list) => {
                    for one in list {
                        let (exactly, transport);
                        let protocols: &[Protocol] = match one.protocol {
                            ProtocolMatch::Exactly(protocol) => {
                                exactly = [protocol];
                                &exactly
                            }
                            ProtocolMatch::Transport => {
                                transport = TRANSPORT;
                                &transport
                            }
                        };
                        for protocol in protocols {
                            set.add(*protocol, &one.port);
                        }
                    }
                }
            }
        }
        set.merge();
        set
    }

    fn add(&mut self, protocol: Protocol, port: &PortTarget) {
        let range = match port {
            PortTarget::Any => (0, u16::MAX),
            PortTarget::Range(first, last) if first <= last => (*first, *last),
            PortTarget::Range(..) => return,
            PortTarget::Named(name) => {
                self.named.insert((protocol, Text::clone(name)));
                return;
            }
        };
        self.ranges.entry(protocol).or_default().push(range);
    }

    fn merge(&mut self) {
        for ranges in self.ranges.values_mut() {
            ranges.sort_unstable();
            ranges.dedup_by(|next, range| {
                let joined = next.0 <= range.1.saturating_add(1);
                if joined {
                    range.1 = range.1.max(next.1);
                }
                joined
            });
        }
    }

    /// What of it is of these protocols.
    pub(super) fn only(mut self, protocols: &[Protocol]) -> Self {
        if self.every {
            self.ranges = protocols.iter().map(|protocol| (*protocol, vec![(0, u16::MAX)])).collect();
            self.every = false;
        }
        self.ranges.retain(|protocol, _| protocols.contains(protocol));
        self.named.retain(|(protocol, _)| protocols.contains(protocol));
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.every && self.ranges.is_empty() && self.named.is_empty()
    }

    fn has(&self, protocol: Protocol, first: u16, last: u16) -> bool {
        self.every
            || self.ranges.get(&protocol).is_some_and(|ranges| ranges.iter().any(|one| one.0 <= first && last <= one.1))
    }

    /// Whether a packet to this port is meant.
    pub(super) fn has_port(&self, protocol: Protocol, port: u16) -> bool {
        self.has(protocol, port, port)
    }

    /// Whether some port is only known by name.
    pub(super) fn has_names(&self) -> bool {
        !self.named.is_empty()
    }

    /// Whether everything that is meant here is meant there too.
    pub(super) fn within(&self, other: &Self) -> bool {
        if other.every {
            return true;
        }
        let named = |(protocol, name): &(Protocol, Text)| {
            other.has(*protocol, 0, u16::MAX) || other.named.contains(&(*protocol, Text::clone(name)))
        };
        !self.every
            && self.ranges.iter().all(|(protocol, ranges)| ranges.iter().all(|one| other.has(*protocol, one.0, one.1)))
            && self.named.iter().all(named)
    }

    /// Whether something is surely meant by both.
    pub(super) fn meets(&self, other: &Self) -> bool {
        if self.every || other.every {
            return !self.is_empty() && !other.is_empty();
        }
        let meet = |one: &(u16, u16), other: &(u16, u16)| one.0 <= other.1 && other.0 <= one.1;
        let ranges = self.ranges.iter().any(|(protocol, ranges)| {
            let theirs = other.ranges.get(protocol);
            theirs.is_some_and(|theirs| ranges.iter().any(|one| theirs.iter().any(|other| meet(one, other))))
        });
        ranges || !self.named.is_disjoint(&other.named)
    }

    /// Whether nothing can be meant by both.
    pub(super) fn apart(&self, other: &Self) -> bool {
        !(self.meets(other) || self.has_names() && !other.is_empty() || other.has_names() && !self.is_empty())
    }
}
