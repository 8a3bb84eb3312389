//! What happens to the packets of one peer, by protocol and port.

use std::collections::BTreeMap;

use crate::flow::{Judgement, Protocol};

/// Which packets an entry is for: a longest-prefix match on (protocol, port), as the kernel's trie does it.
/// The order is that of the trie's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortPrefix {
    /// The protocol; none: every protocol (then `port` and `bits` are 0).
    pub protocol: Option<Protocol>,
    /// The port's leading bits; the others are 0.
    pub port: u16,
    /// How many bits of the port count: 0 (every port of the protocol) to 16.
    pub bits: u8,
}

impl PortPrefix {
    /// Every packet.
    pub const ANY: Self = Self { protocol: None, port: 0, bits: 0 };

    /// Whether a packet is meant.
    #[must_use]
    pub fn holds(self, protocol: Protocol, port: u16) -> bool {
        match self.protocol {
            None => true,
            Some(exactly) => {
                exactly == protocol
                    && (self.bits == 0 || (self.port ^ port) >> (16 - u32::from(self.bits.min(16))) == 0)
            }
        }
    }
}

/// A row: the longest prefix that holds decides. It always has an entry for [`PortPrefix::ANY`], is sorted by prefix,
/// and has no entry whose removal would change nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Row<D = Judgement> {
    /// The entries.
    pub entries: Vec<(PortPrefix, D)>,
}

impl<D> Row<D> {
    /// What happens to a packet.
    ///
    #[must_use]
    pub fn get(&self, protocol: Protocol, port: u16) -> Option<&D> {
        self.entries
            .iter()
            .filter(|(prefix, _)| prefix.holds(protocol, port))
            .max_by_key(|(prefix, _)| (prefix.protocol.is_some(), prefix.bits))
            .map(|(_, decision)| decision)
    }

    /// Whether this holds for what the two rows say about some packet.
    pub(super) fn compare(&self, other: &Self, holds: impl Fn(&D, &D) -> bool) -> bool {
        let (Some((_, any)), Some((_, others_any))) = (self.entries.first(), other.entries.first()) else {
            return false;
        };
        let (spans, others) = (self.spans(any), other.spans(others_any));
        holds(any, others_any)
            || spans
                .keys()
                .chain(others.keys())
                .any(|from| holds(at(&spans, *from).unwrap_or(any), at(&others, *from).unwrap_or(others_any)))
    }

    /// The decision from a port of a protocol on, until the next one's. `any` is that of the protocols that are not there.
    fn spans<'r>(&'r self, any: &'r D) -> Spans<'r, D> {
        let mut spans = BTreeMap::new();
        let named = self.entries.iter().filter_map(|(prefix, decision)| Some((prefix.protocol?, prefix, decision)));
        let named: Vec<_> = named.collect();
        for of_one in named.chunk_by(|one, next| one.0 == next.0) {
            // The prefixes that a port is in, the widest first, with their last ports.
            let mut around: Vec<(u16, &D)> = vec![(u16::MAX, any)];
            let leave = |around: &mut Vec<(u16, &'r D)>, protocol, before: u32, spans: &mut Spans<'r, D>| {
                while let Some((last, _)) = around.last().copied()
                    && u32::from(last) < before
                    && around.len() > 1
                {
                    around.pop();
                    if let (Some(behind), Some((_, decision))) = (last.checked_add(1), around.last()) {
                        spans.insert((protocol, behind), *decision);
                    }
                }
            };
            for (protocol, prefix, decision) in of_one {
                leave(&mut around, *protocol, u32::from(prefix.port), &mut spans);
                spans.entry((*protocol, 0)).or_insert(any);
                spans.insert((*protocol, prefix.port), *decision);
                around.push((prefix.port | u16::MAX.checked_shr(u32::from(prefix.bits)).unwrap_or(0), decision));
            }
            if let Some((protocol, ..)) = of_one.first() {
                leave(&mut around, *protocol, u32::from(u16::MAX) + 1, &mut spans);
            }
        }
        spans
    }
}

/// Decisions by the protocol and port from which on they hold.
type Spans<'r, D> = BTreeMap<(Protocol, u16), &'r D>;

fn at<'r, D>(spans: &Spans<'r, D>, (protocol, port): (Protocol, u16)) -> Option<&'r D> {
    spans.range((protocol, 0)..=(protocol, port)).next_back().map(|(_, decision)| *decision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_compared_at_every_packet() {
        let entry = |port, bits, decision| (PortPrefix { protocol: Some(Protocol::TCP), port, bits }, decision);
        let nested = Row {
            entries: vec![
                (PortPrefix::ANY, 0),
                entry(0, 0, 1),
                entry(64, 10, 2),
                entry(80, 16, 3),
                entry(0xffff, 16, 4),
            ],
        };
        let plain = Row { entries: vec![(PortPrefix::ANY, 9)] };
        let seen = std::cell::RefCell::new(std::collections::BTreeSet::new());
        let note = |one: &i32, other: &i32| {
            seen.borrow_mut().insert((*one, *other));
            false
        };
        assert!(!nested.compare(&plain, note) && !plain.compare(&nested, |other, one| note(one, other)));
        assert_eq!(*seen.borrow(), [(0, 9), (1, 9), (2, 9), (3, 9), (4, 9)].into());
        // Port by port, as they are looked up.
        let others = [
            Row { entries: vec![(PortPrefix::ANY, 5), entry(80, 15, 6), entry(81, 16, 7)] },
            Row { entries: vec![(PortPrefix::ANY, 5), entry(0, 1, 6), entry(127, 16, 7), entry(0x8000, 1, 8)] },
        ];
        for other in &others {
            seen.borrow_mut().clear();
            nested.compare(other, note);
            let mut expected = std::collections::BTreeSet::from([(0, 5)]);
            for port in 0..=u16::MAX {
                expected.extend(nested.get(Protocol::TCP, port).copied().zip(other.get(Protocol::TCP, port).copied()));
            }
            assert_eq!(*seen.borrow(), expected);
        }
    }
}
