//! What happens to the packets of one peer, by protocol and port.

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
}
