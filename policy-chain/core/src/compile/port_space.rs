//! Protocols and ports: the sets of them that rules name, and the least set of prefixes that says what happens on each.

use super::row::PortPrefix;
use crate::cluster::NamedPort;
use crate::flow::Protocol;
use crate::model::Text;
use crate::model::port::{PortTarget, Ports, ProtocolMatch};

/// The protocols that [`ProtocolMatch::Transport`] means.
const TRANSPORT: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];

/// Ports of one protocol, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PortRange {
    pub(super) protocol: Protocol,
    pub(super) first: u16,
    pub(super) last: u16,
}

/// Packets, by protocol and port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PortSet {
    /// All of them; then nothing else is said.
    pub(super) every: bool,
    /// Sorted; those of one protocol neither overlap nor touch.
    pub(super) ranges: Vec<PortRange>,
    /// Names that each peer resolves; sorted.
    pub(super) named: Vec<(Text, ProtocolMatch)>,
}

impl PortSet {
    /// What several conditions say, any of which may hold. Names are resolved with `own`, if the subject resolves them.
    pub(super) fn new<'a>(all: impl IntoIterator<Item = &'a Ports>, own: Option<&[NamedPort]>) -> Self {
        let mut set = Self::default();
        for ports in all {
            let list = match ports {
                Ports::Any => return Self { every: true, ..Self::default() },
                Ports::Of(list) => list,
            };
            for condition in list {
                match &condition.port {
                    PortTarget::Any => set.add(condition.protocol, 0, u16::MAX),
                    PortTarget::Range(first, last) => set.add(condition.protocol, *first, *last),
                    PortTarget::Named(name) => match own {
                        Some(own) => set.resolve(name, condition.protocol, own),
                        None => set.named.push((Text::clone(name), condition.protocol)),
                    },
                }
            }
        }
        set.named.sort();
        set.named.dedup();
        set.merge();
        set
    }

    /// The set once the peer's ports are known.
    pub(super) fn resolved(&self, ports: &[NamedPort]) -> Vec<PortRange> {
        let mut set = Self { ranges: self.ranges.clone(), ..Self::default() };
        for (name, protocol) in &self.named {
            set.resolve(name, *protocol, ports);
        }
        set.merge();
        set.ranges
    }

    /// What of it is of these protocols.
    pub(super) fn within(self, protocols: &[Protocol]) -> Self {
        let every = protocols.iter().filter(|_| self.every);
        let every = every.map(|&protocol| PortRange { protocol, first: 0, last: u16::MAX });
        let ranges = self.ranges.into_iter().filter(|range| protocols.contains(&range.protocol));
        let named = self.named.iter().flat_map(|(name, wanted)| {
            let held = protocols.iter().filter(|protocol| wanted.holds(**protocol));
            held.map(|&protocol| (Text::clone(name), ProtocolMatch::Exactly(protocol)))
        });
        let mut named: Vec<_> = named.collect();
        named.sort();
        named.dedup();
        let mut set = Self { every: false, ranges: every.chain(ranges).collect(), named };
        set.merge();
        set
    }

    /// Whether no packet is meant, whatever the peer.
    pub(super) const fn is_empty(&self) -> bool {
        !self.every && self.ranges.is_empty() && self.named.is_empty()
    }

    fn add(&mut self, protocol: ProtocolMatch, first: u16, last: u16) {
        if first > last {
            return;
        }
        match protocol {
            ProtocolMatch::Exactly(protocol) => self.ranges.push(PortRange { protocol, first, last }),
            ProtocolMatch::Transport => {
                self.ranges.extend(TRANSPORT.map(|protocol| PortRange { protocol, first, last }));
            }
        }
    }

    /// A container port counts if both its name and its protocol are the wanted ones.
    fn resolve(&mut self, name: &Text, protocol: ProtocolMatch, ports: &[NamedPort]) {
        let found = ports.iter().filter(|port| port.name == *name && protocol.holds(port.protocol));
        self.ranges.extend(found.map(|port| PortRange { protocol: port.protocol, first: port.port, last: port.port }));
    }

    fn merge(&mut self) {
        self.ranges.sort_unstable();
        self.ranges.dedup_by(|next, range| {
            let joined = next.protocol == range.protocol && next.first <= range.last.saturating_add(1);
            if joined {
                range.last = range.last.max(next.last);
            }
            joined
        });
    }
}

/// What happens on the ports of one protocol: from each port on, up to the next one. The first is port 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spans {
    pub(super) protocol: Protocol,
    pub(super) decisions: Vec<(u16, u32)>,
}

/// The fewest prefixes that say what `spans` say, and `other` for all protocols that they do not have. Sorted. Where two
/// decisions serve equally well, `other` is taken, else the lower number.
///
/// This is Optimal Routing Table Construction (Draves, King, Venkatachary, Zill: "Constructing optimal IP routing
/// tables", INFOCOM 1999) with a root of 256 children, the protocols, each the root of a binary tree of 16 levels. Only
/// the nodes that several spans meet in are made.
pub(super) fn cover(other: u32, spans: &[Spans]) -> Vec<(PortPrefix, u32)> {
    let mut trie = Trie::default();
    let roots: Vec<(Protocol, Node)> =
        spans.iter().map(|spans| (spans.protocol, trie.build(&spans.decisions, 0, 0))).collect();
    let least = trie.commonest(other, &roots);
    let mut entries = vec![(PortPrefix::ANY, least)];
    let mut roots = roots.iter().peekable();
    for number in 0..=u8::MAX {
        let protocol = Protocol(number);
        if let Some((_, root)) = roots.next_if(|(of, _)| *of == protocol) {
            trie.emit(root, least, PortPrefix { protocol: Some(protocol), port: 0, bits: 0 }, &mut entries);
        } else if least != other {
            entries.push((PortPrefix { protocol: Some(protocol), port: 0, bits: 0 }, other));
        }
    }
    entries
}

/// The binary trees.
#[derive(Debug, Default)]
struct Trie {
    /// Pairs of children.
    pairs: Vec<(Node, Node)>,
    /// The sets of all nodes, each sorted.
    sets: Vec<u32>,
}

/// A prefix that was looked at.
#[derive(Debug, Clone, Copy)]
struct Node {
    /// Which part of `Trie::sets`: the decisions that an entry here, or the entry above, may have in a least cover.
    set: (usize, usize),
    /// Which of `Trie::pairs`; none where the whole prefix has one decision.
    children: Option<usize>,
}

impl Trie {
    /// Makes the node of a prefix, from the spans that meet in it.
    fn build(&mut self, spans: &[(u16, u32)], port: u16, bits: u8) -> Node {
        let (Some(first), Some(last)) = (spans.first(), spans.last()) else {
            return Node { set: (0, 0), children: None };
        };
        let half = 15_u8.checked_sub(bits).map(|bit| 1_u16 << bit);
        let Some(half) = half.filter(|_| spans.len() > 1) else {
            let start = self.sets.len();
            self.sets.push(first.1);
            return Node { set: (start, start + 1), children: None };
        };
        let middle = port | half;
        let split = spans.partition_point(|(from, _)| *from < middle);
        // The span before the middle goes on behind it, unless another begins there.
        let goes_on = spans.get(split).is_none_or(|(from, _)| *from != middle);
        let right = if goes_on { split.saturating_sub(1) } else { split };
        let low = self.build(spans.get(..split.max(1)).unwrap_or(&[*first]), port, bits + 1);
        let high = self.build(spans.get(right..).unwrap_or(&[*last]), middle, bits + 1);
        let set = self.join(low.set, high.set);
        self.pairs.push((low, high));
        Node { set, children: Some(self.pairs.len() - 1) }
    }

    fn set(&self, (start, end): (usize, usize)) -> &[u32] {
        self.sets.get(start..end).unwrap_or(&[])
    }

    /// What two sets have in common, or if that is nothing, all of both.
    fn join(&mut self, low: (usize, usize), high: (usize, usize)) -> (usize, usize) {
        if self.set(low) == self.set(high) {
            return low;
        }
        let start = self.sets.len();
        let common: Vec<u32> =
            self.set(low).iter().filter(|decision| self.set(high).binary_search(decision).is_ok()).copied().collect();
        if common.is_empty() {
            self.sets.extend_from_within(low.0..low.1);
            self.sets.extend_from_within(high.0..high.1);
            if let Some(both) = self.sets.get_mut(start..) {
                both.sort_unstable();
            }
        } else {
            self.sets.extend(common);
        }
        (start, self.sets.len())
    }

    /// The decision that spares most protocols an entry of their own.
    fn commonest(&self, other: u32, roots: &[(Protocol, Node)]) -> u32 {
        let mut wanted: Vec<u32> = roots.iter().flat_map(|(_, root)| self.set(root.set)).copied().collect();
        wanted.sort_unstable();
        let unnamed = 256_usize.saturating_sub(roots.len());
        let count = |decision: u32| wanted.iter().filter(|wanted| **wanted == decision).count();
        let mut best = (count(other) + unnamed, other);
        for group in wanted.chunk_by(|one, next| one == next) {
            if let Some(&decision) = group.first()
                && decision != other
                && group.len() > best.0
            {
                best = (group.len(), decision);
            }
        }
        best.1
    }

    /// Writes the entries of a node that `above` is in force for.
    fn emit(&self, node: &Node, above: u32, prefix: PortPrefix, entries: &mut Vec<(PortPrefix, u32)>) {
        let set = self.set(node.set);
        let here = match set.first() {
            Some(&least) if set.binary_search(&above).is_err() => {
                entries.push((prefix, least));
                least
            }
            _ => above,
        };
        if let Some((low, high)) = node.children.and_then(|pair| self.pairs.get(pair)) {
            let bits = prefix.bits + 1;
            self.emit(low, here, PortPrefix { bits, ..prefix }, entries);
            let port = prefix.port | 16_u8.checked_sub(bits).map_or(0, |bit| 1 << bit);
            self.emit(high, here, PortPrefix { port, bits, ..prefix }, entries);
        }
    }
}

#[cfg(test)]
mod tests;
