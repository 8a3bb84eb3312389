//! DNS messages, as far as they have to be read (RFC 1035, 4.1; RFC 6891; RFC 9619).
//!
//! A message is forwarded octet by octet or not at all, so only its question, and the addresses of an answer, are read.
//! Nothing here trusts a length, follows a pointer that does not go backwards, or looks at more than [`MAX_RECORDS`] records.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice_policy_core::l7::dns::Name;

/// Octets of a message's header.
pub(super) const HEADER: usize = 12;
/// Records of an answer that are looked at for addresses; those after them are not learned.
pub(super) const MAX_RECORDS: usize = 1_000;
/// Aliases that are followed from the name asked for; resolvers follow 8 (glibc) to 17 (BIND's `max-query-restarts`).
const MAX_ALIASES: usize = 17;
/// Octets of a name on the wire (RFC 1035, 2.3.4).
const MAX_NAME: usize = 255;
/// Size of a UDP answer that the proxy's own refusals say they could take: what fits everywhere (DNS flag day 2020).
const UDP_PAYLOAD: u16 = 1232;

const CLASS_IN: u16 = 1;
const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
/// Incremental zone transfer (RFC 1995): the one query that has a record, in its authority section.
pub(super) const TYPE_IXFR: u16 = 251;
/// Zone transfer (RFC 5936): the answer is a series of messages.
pub(super) const TYPE_AXFR: u16 = 252;

const RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const CHECKING_DISABLED: u16 = 0x0010;

/// Response codes that the proxy gives or looks for (IANA, DNS RCODEs).
pub(super) mod rcode {
    pub(in crate::dns) const NO_ERROR: u16 = 0;
    pub(in crate::dns) const FORMAT_ERROR: u16 = 1;
    pub(in crate::dns) const SERVER_FAILURE: u16 = 2;
    pub(in crate::dns) const NAME_ERROR: u16 = 3;
    pub(in crate::dns) const NOT_IMPLEMENTED: u16 = 4;
    pub(in crate::dns) const REFUSED: u16 = 5;
}

/// A question to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query<'m> {
    /// The number by which its answer is known.
    pub(super) id: u16,
    flags: u16,
    /// The question as it stands in the message: name, type and class.
    pub(super) question: &'m [u8],
    /// The name asked for; none if it has characters that no rule can mean.
    pub(super) name: Option<Name>,
    /// Type of the records asked for.
    pub(super) qtype: u16,
    /// The flags of EDNS, if there is EDNS.
    edns: Option<u16>,
}

/// A message that is no question that can be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoQuery {
    /// It is no query at all, and is answered with nothing.
    Silence,
    /// It is answered with this response code.
    Refuse(u16),
}

/// An answer of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer<'m> {
    /// The number of its query.
    pub(super) id: u16,
    /// Response code, without the part that EDNS adds.
    pub(super) rcode: u16,
    /// Whether it says that not all of it is there.
    pub(super) truncated: bool,
    /// The question that it repeats: exactly one, or none.
    pub(super) question: Option<&'m [u8]>,
    /// Records in its answer section.
    records: u16,
    /// All others.
    others: u16,
    /// Where its records begin.
    at: usize,
}

/// What an answer says of the name that was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Addresses {
    /// The addresses of the name, or of the names that it is an alias of; each once, in order.
    pub(super) addresses: Vec<IpAddr>,
    /// For how many seconds: the least of the records'.
    pub(super) ttl: u32,
    /// The whole response code, with what EDNS adds.
    pub(super) rcode: u16,
}

/// Reads a message octet by octet.
#[derive(Debug, Clone, Copy)]
struct Reader<'m> {
    message: &'m [u8],
    at: usize,
}

impl<'m> Reader<'m> {
    fn take(&mut self, count: usize) -> Option<&'m [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.message.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn octet(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn short(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn long(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    /// Passes a name over: labels, then the root or a pointer.
    fn skip_name(&mut self) -> Option<()> {
        let begin = self.at;
        loop {
            let length = self.octet()?;
            match length >> 6 {
                0 if length == 0 => break,
                0 => {
                    self.take(length.into())?;
                }
                3 => {
                    self.octet()?;
                    break;
                }
                _ => return None,
            }
            if self.at - begin >= MAX_NAME {
                return None;
            }
        }
        (self.at - begin <= MAX_NAME).then_some(())
    }

    /// The question: a name in full, type, class.
    fn question(&mut self) -> Option<&'m [u8]> {
        let begin = self.at;
        loop {
            let length = self.octet()?;
            // There is nothing yet that a pointer could point at.
            if length >> 6 != 0 {
                return None;
            }
            self.take(length.into())?;
            if self.at - begin > MAX_NAME {
                return None;
            }
            if length == 0 {
                break;
            }
        }
        self.take(4)?;
        self.message.get(begin..self.at)
    }

    fn record(&mut self) -> Option<RecordHead> {
        let owner = self.at;
        self.skip_name()?;
        let (kind, class, ttl, length) = (self.short()?, self.short()?, self.long()?, self.short()?);
        let data = self.at;
        self.take(length.into())?;
        Some(RecordHead { owner, kind, class, ttl, data, length })
    }
}

/// Where a record's parts are.
#[derive(Debug, Clone, Copy)]
struct RecordHead {
    owner: usize,
    kind: u16,
    class: u16,
    ttl: u32,
    data: usize,
    length: u16,
}

/// The labels of a question's name.
fn labels(question: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = question;
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first()?;
        let label = after.get(..usize::from(*length)).filter(|label| !label.is_empty())?;
        rest = after.get(label.len()..)?;
        Some(label)
    })
}

fn header(reader: &mut Reader<'_>) -> Option<(u16, u16, [u16; 4])> {
    let (id, flags) = (reader.short()?, reader.short()?);
    Some((id, flags, [reader.short()?, reader.short()?, reader.short()?, reader.short()?]))
}

/// Type and class of a question.
fn kind_and_class(question: &[u8]) -> (u16, u16) {
    match question.last_chunk::<4>() {
        Some([kind @ .., class_high, class_low]) => {
            (u16::from_be_bytes(*kind), u16::from_be_bytes([*class_high, *class_low]))
        }
        None => (0, 0),
    }
}

impl<'m> Query<'m> {
    /// Reads a query. It has exactly one question (RFC 9619), nothing that answers it, and nothing behind its records.
    pub(super) fn read(message: &'m [u8]) -> Result<Self, NoQuery> {
        let mut reader = Reader { message, at: 0 };
        let (id, flags, [questions, answers, authorities, additional]) = header(&mut reader).ok_or(NoQuery::Silence)?;
        if flags & RESPONSE != 0 {
            return Err(NoQuery::Silence);
        }
        if flags & OPCODE != 0 {
            return Err(NoQuery::Refuse(rcode::NOT_IMPLEMENTED));
        }
        let bad = NoQuery::Refuse(rcode::FORMAT_ERROR);
        if questions != 1 || answers != 0 {
            return Err(bad);
        }
        let question = reader.question().ok_or(bad)?;
        let (qtype, _) = kind_and_class(question);
        if authorities != 0 && qtype != TYPE_IXFR {
            return Err(bad);
        }
        for _ in 0..authorities {
            reader.record().ok_or(bad)?;
        }
        let mut edns = None;
        for _ in 0..additional {
            let record = reader.record().ok_or(bad)?;
            if record.kind == TYPE_OPT {
                let [_, _, flags @ ..] = record.ttl.to_be_bytes();
                // "If a query message with more than one OPT RR is received, a FORMERR MUST be returned" (RFC 6891, 6.1.1).
                if edns.replace(u16::from_be_bytes(flags)).is_some() {
                    return Err(bad);
                }
            }
        }
        if reader.at != message.len() {
            return Err(bad);
        }
        let name = Name::from_labels(labels(question)).ok();
        Ok(Self { id, flags, question, name, qtype, edns })
    }

    /// Whether its answer may be a series of messages.
    pub(super) const fn is_transfer(&self) -> bool {
        matches!(self.qtype, TYPE_AXFR | TYPE_IXFR)
    }

    /// The proxy's own answer: the question as it was asked, letter by letter, and EDNS if it was asked with EDNS.
    pub(super) fn refusal(&self, rcode: u16) -> Vec<u8> {
        let kept = self.flags & (RECURSION_DESIRED | CHECKING_DISABLED);
        let mut message = Vec::with_capacity(HEADER + self.question.len() + 11);
        let counts = [1, 0, 0, u16::from(self.edns.is_some())];
        for field in [self.id, RESPONSE | kept | rcode].into_iter().chain(counts) {
            message.extend_from_slice(&field.to_be_bytes());
        }
        message.extend_from_slice(self.question);
        if let Some(flags) = self.edns {
            // The root, OPT, our size, no extended code, version 0; of the flags DO is repeated (RFC 3225, 3).
            message.push(0);
            message.extend_from_slice(&TYPE_OPT.to_be_bytes());
            message.extend_from_slice(&UDP_PAYLOAD.to_be_bytes());
            message.extend_from_slice(&[0, 0]);
            message.extend_from_slice(&(flags & 0x8000).to_be_bytes());
            message.extend_from_slice(&[0, 0]);
        }
        message
    }
}

/// The answer to a question for which there is none: its server cannot be reached.
pub(super) fn failure(id: u16, question: &[u8]) -> Vec<u8> {
    let fields = [id, RESPONSE | RECURSION_DESIRED | rcode::SERVER_FAILURE, 1, 0, 0, 0];
    fields.into_iter().flat_map(u16::to_be_bytes).chain(question.iter().copied()).collect()
}

/// The answer to a message whose question cannot be read: its header alone.
pub(super) fn bare_refusal(message: &[u8], rcode: u16) -> Option<Vec<u8>> {
    let (id, flags, _) = header(&mut Reader { message, at: 0 })?;
    let fields = [id, RESPONSE | (flags & (OPCODE | RECURSION_DESIRED)) | rcode, 0, 0, 0, 0];
    Some(fields.into_iter().flat_map(u16::to_be_bytes).collect())
}

impl<'m> Answer<'m> {
    /// Reads an answer up to its records. None: it is not one, or has more than one question.
    pub(super) fn read(message: &'m [u8]) -> Option<Self> {
        let mut reader = Reader { message, at: 0 };
        let (id, flags, [questions, records, authorities, additional]) = header(&mut reader)?;
        if flags & RESPONSE == 0 || flags & OPCODE != 0 {
            return None;
        }
        let question = match questions {
            0 => None,
            1 => Some(reader.question()?),
            _ => return None,
        };
        Some(Self {
            id,
            rcode: flags & 0x000f,
            truncated: flags & TRUNCATED != 0,
            question,
            records,
            others: authorities.saturating_add(additional),
            at: reader.at,
        })
    }

    /// The addresses of the name in its question, and the whole response code. None: a record is cut or malformed.
    pub(super) fn addresses(&self, message: &[u8]) -> Option<Addresses> {
        let mut reader = Reader { message, at: self.at };
        let mut found = Addresses { ttl: u32::MAX, rcode: self.rcode, ..Addresses::default() };
        let mut heads: Vec<RecordHead> = Vec::new();
        let mut aliases: Vec<(Vec<u8>, Vec<u8>, u32)> = Vec::new();
        for _ in 0..self.records {
            let head = reader.record()?;
            if head.class != CLASS_IN || heads.len() >= MAX_RECORDS {
                continue;
            }
            match (head.kind, head.length) {
                (TYPE_A, 4) | (TYPE_AAAA, 16) => heads.push(head),
                (TYPE_CNAME, _) if aliases.len() < MAX_ALIASES => {
                    aliases.push((expand(message, head.owner)?, expand(message, head.data)?, head.ttl));
                }
                _ => {}
            }
        }
        for _ in 0..self.others {
            let head = reader.record()?;
            if head.kind == TYPE_OPT {
                let [extended, ..] = head.ttl.to_be_bytes();
                found.rcode = (u16::from(extended) << 4) | self.rcode;
            }
        }
        let Some(question) = self.question else { return Some(Addresses { ttl: 0, ..found }) };
        let mut names = vec![canonical(question)];
        while let Some(name) = names.last()
            && let Some(at) = aliases.iter().position(|(owner, ..)| owner == name)
        {
            let (_, target, ttl) = aliases.swap_remove(at);
            found.ttl = found.ttl.min(seconds(ttl));
            names.push(target);
        }
        for head in heads {
            // What most owners are: a pointer to the question.
            let is_asked = names.len() == 1 && message.get(head.owner..head.owner + 2) == Some(&[0xc0, 12]);
            if !is_asked {
                let owner = expand(message, head.owner)?;
                if !names.contains(&owner) {
                    continue;
                }
            }
            let data = message.get(head.data..head.data + usize::from(head.length))?;
            let address = match data.len() {
                4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?)),
                _ => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?)),
            };
            found.ttl = found.ttl.min(seconds(head.ttl));
            found.addresses.push(address.to_canonical());
        }
        found.addresses.sort_unstable();
        found.addresses.dedup();
        if found.addresses.is_empty() {
            found.ttl = 0;
        }
        Some(found)
    }
}

/// "A TTL with its most significant bit set is to be treated as zero" (RFC 2181, 8).
const fn seconds(ttl: u32) -> u32 {
    if ttl > i32::MAX as u32 { 0 } else { ttl }
}

/// The name of a question in lower case, with its lengths.
fn canonical(question: &[u8]) -> Vec<u8> {
    let name = question.len().saturating_sub(4);
    question.get(..name).unwrap_or_default().to_ascii_lowercase()
}

/// The same of a name anywhere in a message. Each pointer has to point before the part that it ends (RFC 1035, 4.1.4: "a
/// prior occurrence"), so that it ends.
fn expand(message: &[u8], at: usize) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(64);
    let (mut part, mut reader) = (at, Reader { message, at });
    loop {
        let length = reader.octet()?;
        match length >> 6 {
            0 => {
                name.push(length);
                name.extend(reader.take(length.into())?.iter().map(u8::to_ascii_lowercase));
                if name.len() > MAX_NAME {
                    return None;
                }
                if length == 0 {
                    return Some(name);
                }
            }
            3 => {
                let target = usize::from(u16::from_be_bytes([length & 0x3f, reader.octet()?]));
                if target >= part {
                    return None;
                }
                part = target;
                reader.at = target;
            }
            _ => return None,
        }
    }
}

/// Whether an answer's question is the one that was asked: names are equal whatever the case of their letters.
pub(super) fn same_question(one: &[u8], other: &[u8]) -> bool {
    let (Some((name, kind)), Some((other_name, other_kind))) =
        (one.split_last_chunk::<4>(), other.split_last_chunk::<4>())
    else {
        return false;
    };
    kind == other_kind && name.eq_ignore_ascii_case(other_name)
}

#[cfg(test)]
pub(in crate::dns) mod tests;
