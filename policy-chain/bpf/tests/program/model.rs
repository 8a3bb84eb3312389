//! The gate once more, slowly: what a frame says, which flow it is of, and the image as the judge. Written from the
//! specifications, not from the programs.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice_policy_bpf::layout::Hook;
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::compile::image::Image;
use sluice_policy_core::flow::{Direction, Origin, Protocol, Query, Verdict};

use crate::kernel::{Action, FREE_INTERFACE};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    First,
    Later,
}

/// What a packet's headers say.
#[derive(Debug, Clone)]
struct Seen {
    source: IpAddr,
    destination: IpAddr,
    protocol: Protocol,
    part: Part,
    identification: u32,
    hops: u8,
    /// The transport header and what follows, as far as it is there.
    transport: Vec<u8>,
    source_port: u16,
    destination_port: u16,
    /// TCP's flags, ICMP's type, SCTP's first chunk.
    flags: u8,
}

/// `None`: it is dropped.
type Read<T> = Option<T>;

fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

fn read_ipv4(bytes: &[u8], quoted: bool) -> Read<Seen> {
    let header = bytes.get(..20)?;
    let length = usize::from(header[0] & 15) * 4;
    let total = usize::from(be16(&header[2..]));
    if header[0] >> 4 != 4 || length < 20 || total < length || bytes.len() < length {
        return None;
    }
    if total > bytes.len() && !quoted {
        return None;
    }
    let mut options = &bytes[20..length];
    while let Some(kind) = options.first() {
        match kind {
            0 => break,
            1 => options = &options[1..],
            131 | 137 => return None,
            _ => {
                // The byte after the last one of the options is read as a length, and is none of ours to judge.
                let skip = match options.get(1) {
                    Some(length) => usize::from(*length),
                    None => usize::from(*bytes.get(length)?),
                };
                if skip < 2 {
                    return None;
                }
                options = options.get(skip..).unwrap_or_default();
            }
        }
    }
    let fragment = be16(&header[6..]);
    let (offset, more) = (fragment & 0x1fff, fragment & 0x2000 != 0);
    let protocol = Protocol(header[9]);
    let part = match (offset, more) {
        (0, false) => Part::Whole,
        (0, true) => Part::First,
        _ => Part::Later,
    };
    if part == Part::Later && protocol == Protocol::TCP && offset * 8 < 20 {
        return None;
    }
    let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]).into();
    Some(Seen {
        source: address(12),
        destination: address(16),
        protocol,
        part,
        identification: u32::from(be16(&header[4..])),
        hops: header[8],
        transport: bytes[length..total.min(bytes.len())].to_vec(),
        source_port: 0,
        destination_port: 0,
        flags: 0,
    })
}

fn read_ipv6(bytes: &[u8], quoted: bool) -> Read<Seen> {
    let header = bytes.get(..40)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&header[at..at + 16]).unwrap());
    let (source, destination) = (address(8), address(24));
    if source.to_ipv4_mapped().is_some() || destination.to_ipv4_mapped().is_some() {
        return None;
    }
    let mut end = 40 + usize::from(be16(&header[4..]));
    if end == 40 && header[6] == 0 && !quoted {
        end = bytes.len();
    }
    if end > bytes.len() {
        if !quoted {
            return None;
        }
        end = bytes.len();
    }
    let (mut next, mut at, mut part, mut identification) = (header[6], 40, Part::Whole, 0);
    let (mut headers, mut fragmented) = (0, false);
    while [0, 43, 44, 51, 60, 135, 139, 140].contains(&next) && part != Part::Later {
        headers += 1;
        let extension = bytes.get(at..at + 8)?;
        if headers > 8 || (next == 44 && fragmented) || (next == 43 && extension[3] != 0) {
            return None;
        }
        at += match next {
            44 => {
                fragmented = true;
                let word = be16(&extension[2..]);
                part = match (word & 0xfff8, word & 1) {
                    (0, 0) => Part::Whole,
                    (0, _) => Part::First,
                    _ => Part::Later,
                };
                if part == Part::Later && word & 0xfff8 < 24 {
                    return None;
                }
                identification = u32::from_be_bytes(extension[4..8].try_into().unwrap());
                8
            }
            51 => (usize::from(extension[1]) + 2) * 4,
            _ => (usize::from(extension[1]) + 1) * 8,
        };
        next = extension[0];
    }
    Some(Seen {
        source: source.into(),
        destination: destination.into(),
        protocol: Protocol(next),
        part,
        identification,
        hops: header[7],
        transport: bytes.get(at..end)?.to_vec(),
        source_port: 0,
        destination_port: 0,
        flags: 0,
    })
}

fn is_icmp(protocol: Protocol) -> bool {
    protocol == Protocol::ICMP || protocol == Protocol::ICMPV6
}

fn read(bytes: &[u8], v6: bool, quoted: bool) -> Read<Seen> {
    let mut seen = if v6 { read_ipv6(bytes, quoted)? } else { read_ipv4(bytes, quoted)? };
    if seen.part == Part::Later {
        return Some(seen);
    }
    let transport = &seen.transport;
    let needed = match seen.protocol {
        Protocol::TCP if !quoted => 20,
        Protocol::SCTP if !quoted => 12,
        Protocol::TCP | Protocol::SCTP | Protocol::UDP | Protocol::ICMP | Protocol::ICMPV6 => 8,
        _ => return Some(seen),
    };
    if transport.len() < needed {
        return None;
    }
    if is_icmp(seen.protocol) {
        seen.flags = transport[0];
        (seen.source_port, seen.destination_port) = (be16(&transport[4..]), be16(&transport[4..]));
        return Some(seen);
    }
    (seen.source_port, seen.destination_port) = (be16(transport), be16(&transport[2..]));
    if !quoted {
        seen.flags = match seen.protocol {
            Protocol::TCP => transport[13],
            Protocol::SCTP => transport.get(12).copied().unwrap_or(0),
            _ => 0,
        };
    }
    Some(seen)
}

/// A flow, as its pod sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    own: IpAddr,
    peer: IpAddr,
    protocol: Protocol,
    own_port: u16,
    peer_port: u16,
    /// The type of an ICMP query, and who asked.
    query: Option<(u8, Direction)>,
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    direction: Direction,
    origin: Origin,
    answered: bool,
    finished: bool,
    reset: bool,
}

/// The packet, as the pod's: its key, and whether it is of a flow at all.
fn key(seen: &Seen, towards: Direction) -> (Key, bool) {
    let (own, own_port, peer, peer_port) = match towards {
        Direction::Egress => (seen.source, seen.source_port, seen.destination, seen.destination_port),
        Direction::Ingress => (seen.destination, seen.destination_port, seen.source, seen.source_port),
    };
    let mut key = Key { own, peer, protocol: seen.protocol, own_port, peer_port, query: None };
    if !is_icmp(seen.protocol) {
        return (key, true);
    }
    let Some((kind, asks)) = query(seen) else {
        return (key, false);
    };
    let asker = if asks { towards } else { opposite(towards) };
    match asker {
        Direction::Egress => key.peer_port = 0,
        Direction::Ingress => key.own_port = 0,
    }
    key.query = Some((kind, asker));
    (key, true)
}

fn query(seen: &Seen) -> Option<(u8, bool)> {
    match (seen.protocol, seen.flags) {
        (Protocol::ICMP, kind @ (8 | 13 | 15 | 17)) => Some((kind, true)),
        (Protocol::ICMP, 0) => Some((8, false)),
        (Protocol::ICMP, kind @ (14 | 16 | 18)) => Some((kind - 1, false)),
        (Protocol::ICMPV6, 128) => Some((128, true)),
        (Protocol::ICMPV6, 129) => Some((128, false)),
        _ => None,
    }
}

const fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Ingress => Direction::Egress,
        Direction::Egress => Direction::Ingress,
    }
}

fn is_opening(seen: &Seen) -> bool {
    match seen.protocol {
        _ if seen.part == Part::Later => false,
        Protocol::TCP => seen.flags & 0x12 == 2,
        Protocol::SCTP => seen.flags == 1,
        _ => false,
    }
}

type FragmentKey = (IpAddr, IpAddr, u32, u8, Direction);

/// The gate of a pod.
pub(crate) struct Model<'a> {
    pub(crate) image: &'a Image,
    pub(crate) pod: PodKey,
    flows: BTreeMap<Key, Flow>,
    /// The last frame took the place of a flow that was there.
    pub(crate) replaced: bool,
    fragments: BTreeMap<FragmentKey, Seen>,
}

impl<'a> Model<'a> {
    pub(crate) fn new(image: &'a Image, pod: PodKey) -> Self {
        Self { image, pod, flows: BTreeMap::new(), replaced: false, fragments: BTreeMap::new() }
    }

    fn is_own(&self, address: IpAddr) -> bool {
        self.image.endpoints[&self.pod].addresses.iter().any(|own| own.address == address)
    }

    fn is_audit(&self) -> bool {
        self.image.endpoints[&self.pod].audit
    }

    /// What becomes of a frame, and what is remembered.
    pub(crate) fn gate(&mut self, hook: Hook, frame: &[u8], from: u32) -> Action {
        let towards = if hook == Hook::FromPod { Direction::Egress } else { Direction::Ingress };
        self.replaced = false;
        if self.passes(towards, frame, from) == Some(true) { Action::Pass } else { Action::Drop }
    }

    fn passes(&mut self, towards: Direction, frame: &[u8], from: u32) -> Read<bool> {
        let bytes = frame.get(14..)?;
        let v6 = match be16(&frame[12..]) {
            0x0800 => false,
            0x86dd => true,
            0x0806 => return Some(towards == Direction::Ingress || self.arp(bytes)?),
            _ => return None,
        };
        let mut seen = read(bytes, v6, false)?;
        let fragment =
            (seen.source, seen.destination, seen.identification, if v6 { 0 } else { seen.protocol.0 }, towards);
        if seen.part == Part::Later {
            let first = self.fragments.get(&fragment)?;
            (seen.source_port, seen.destination_port) = (first.source_port, first.destination_port);
            seen.flags = if is_icmp(first.protocol) { first.flags } else { 0 };
            seen.protocol = first.protocol;
        }
        if seen.protocol == Protocol::ICMPV6
            && seen.part == Part::Whole
            && let Some(passes) = self.link(towards, &seen)
        {
            return Some(passes);
        }
        if towards == Direction::Egress && !self.is_own(seen.source) {
            return None;
        }
        let passes = self.of_a_flow(towards, &seen, v6, from)?;
        if passes && seen.part == Part::First {
            self.fragments.insert(fragment, seen);
        }
        Some(passes)
    }

    fn of_a_flow(&mut self, towards: Direction, seen: &Seen, v6: bool, from: u32) -> Read<bool> {
        let (key, is_flow) = key(seen, towards);
        if !is_flow {
            return Some(self.is_related(towards, seen, v6) || self.judge(towards, towards, seen, &key, from)?);
        }
        let origin = self.origin(towards, seen, from);
        if let Some(flow) = self.flows.get_mut(&key) {
            let own = flow.direction == towards;
            let fresh = !(flow.answered || flow.finished || flow.reset);
            let same_sender = towards == Direction::Egress || !own || origin == Some(flow.origin);
            if same_sender && (!is_opening(seen) || (own && fresh)) {
                flow.answered |= !own;
                if seen.protocol == Protocol::TCP && seen.part != Part::Later {
                    flow.reset = seen.flags & 4 != 0;
                    flow.finished |= seen.flags & 1 != 0;
                }
                return Some(true);
            }
        }
        let answers = query(seen).is_some_and(|(_, asks)| !asks);
        let passes = self.judge(towards, towards, seen, &key, from)?;
        let tcp = seen.protocol == Protocol::TCP;
        if passes && !answers && !(tcp && seen.flags & 4 != 0) {
            let finished = tcp && seen.flags & 1 != 0;
            let flow = Flow { direction: towards, origin: origin?, answered: false, finished, reset: false };
            self.replaced = self.flows.insert(key, flow).is_some();
        }
        Some(passes)
    }

    /// Who sent a packet. `None`: it is not who it says.
    fn origin(&self, towards: Direction, seen: &Seen, from: u32) -> Read<Origin> {
        match (towards, from) {
            (Direction::Egress, _) => Some(Origin::Forwarded),
            (Direction::Ingress, 0) => Some(Origin::OwnNode),
            (Direction::Ingress, _) if !self.is_own(seen.source) => Some(Origin::Forwarded),
            (Direction::Ingress, FREE_INTERFACE) => Some(Origin::Hairpin),
            (Direction::Ingress, _) => None,
        }
    }

    fn judge(&self, towards: Direction, direction: Direction, seen: &Seen, key: &Key, from: u32) -> Read<bool> {
        let origin = self.origin(towards, seen, from)?;
        let port = match direction {
            _ if is_icmp(seen.protocol) => u16::from(seen.flags),
            Direction::Egress => key.peer_port,
            Direction::Ingress => key.own_port,
        };
        let query =
            Query { subject: self.pod.clone(), direction, peer: key.peer, protocol: seen.protocol, port, origin };
        Some(match self.image.judge(&query).verdict {
            Verdict::Allow | Verdict::Defer => true,
            Verdict::Redirect(_) => self.is_audit(),
            Verdict::Deny => false,
        })
    }

    /// Whether it is an error about a packet of a known flow.
    fn is_related(&self, towards: Direction, seen: &Seen, v6: bool) -> bool {
        let kinds: &[u8] = if seen.protocol == Protocol::ICMP { &[3, 4, 11, 12] } else { &[1, 2, 3, 4] };
        if seen.part == Part::Later || !kinds.contains(&seen.flags) {
            return false;
        }
        let Some(quoted) = seen.transport.get(8..).and_then(|bytes| read(bytes, v6, true)) else { return false };
        let (key, is_flow) = key(&quoted, opposite(towards));
        quoted.part != Part::Later && quoted.source == seen.destination && is_flow && self.flows.contains_key(&key)
    }

    /// Neighbour discovery, multicast listeners: whether it passes, if it is that.
    fn link(&self, towards: Direction, seen: &Seen) -> Option<bool> {
        let sent = towards == Direction::Egress;
        if sent && (seen.flags == 134 || seen.flags == 137) {
            return Some(false);
        }
        match (seen.flags, seen.hops) {
            (133..=137, 255) | (130..=132 | 143, 1) => {}
            _ => return None,
        }
        let link_local = |address: IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if !sent {
            return Some(true);
        }
        if !(self.is_own(seen.source) || link_local(seen.source) || seen.source.is_unspecified()) {
            return Some(false);
        }
        if seen.flags != 136 {
            return Some(true);
        }
        let target = seen.transport.get(8..24).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
        let Some(target) = target.map(|bytes| IpAddr::from(Ipv6Addr::from(bytes))) else { return Some(false) };
        Some(self.is_own(target) || link_local(target))
    }

    fn arp(&self, bytes: &[u8]) -> Read<bool> {
        let message = bytes.get(..18)?;
        let source = Ipv4Addr::new(message[14], message[15], message[16], message[17]);
        let ethernet = be16(&message[2..]) == 0x0800 && message[4] == 6 && message[5] == 4;
        Some(ethernet && (source.is_unspecified() || self.is_own(source.into())))
    }
}
