//! Chains and rules of nftables as the kernel has them (`linux/netfilter/nf_tables.h`).
//!
//! iptables-nft writes a rule's comment as a match of its own, of which `nft` prints the name alone. So what it says is read here,
//! where the kernel keeps it; everything else of a rule that is not known here is not looked at.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::state::{NftFamily, NftTableId};

/// The kernel answers within its own call.
const ANSWER_TIMEOUT: TimeVal = TimeVal::new(10, 0);
/// A datagram of a dump is at most this long.
const DATAGRAM: usize = 32 * 1024;
/// How often a dump is begun again that a change of the rules has spoiled.
const ATTEMPTS: usize = 10;

const NLMSG_HEADER: usize = 16;
const NFGENMSG: usize = 4;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NFNL_SUBSYS_NFTABLES << 8`.
const NFTABLES: u16 = 0x0a00;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
/// `NLA_TYPE_MASK`.
const KIND: u16 = 0x3fff;

/// A table with its chains and rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    /// Its name.
    pub(super) id: NftTableId,
    /// Its chains.
    pub(super) chains: BTreeSet<String>,
    /// Its rules, chain by chain.
    pub(super) rules: Vec<Rule>,
}

/// What is known of a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rule {
    /// Its chain.
    pub(super) chain: String,
    /// Its number, by which it can be deleted.
    pub(super) handle: u64,
    /// The chains that it leads to.
    pub(super) targets: Vec<String>,
    /// What it says of itself, of iptables' kind and of nftables' own.
    pub(super) comments: Vec<String>,
    /// Values as long as an address of its family that it compares with.
    pub(super) addresses: Vec<IpAddr>,
}

/// The table in the namespace of the calling thread. One that is not there has no chains.
pub(super) fn table(id: NftTableId) -> io::Result<Table> {
    for _ in 0..ATTEMPTS {
        let (mut chains, mut rules) = (BTreeSet::new(), Vec::new());
        let is_whole = dump(&id, (GET_CHAIN, NEW_CHAIN), |attributes| chains.extend(chain(&id, attributes)))?
            && dump(&id, (GET_RULE, NEW_RULE), |attributes| rules.extend(rule(&id, attributes)))?;
        if is_whole {
            return Ok(Table { id, chains, rules });
        }
    }
    Err(io::Error::from_raw_os_error(Errno::EBUSY as i32))
}

/// Hands the attributes of each entry to `take`; whether nothing was changed meanwhile.
fn dump(id: &NftTableId, (get, new): (u16, u16), mut take: impl FnMut(&[u8])) -> io::Result<bool> {
    let protocol = SockProtocol::NetlinkNetFilter;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &ANSWER_TIMEOUT)?;
    sendto(socket.as_raw_fd(), &request(id, get), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let unreadable = || io::Error::from(io::ErrorKind::InvalidData);
    let mut is_whole = true;
    let mut buffer = vec![0_u8; DATAGRAM];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = buffer.get(..length).ok_or_else(unreadable)?;
        while !rest.is_empty() {
            let message = message(rest).ok_or_else(unreadable)?;
            rest = message.behind;
            is_whole &= message.flags & NLM_F_DUMP_INTR == 0;
            match message.kind {
                NLMSG_DONE => return Ok(is_whole),
                NLMSG_ERROR => {
                    let code = message.body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return Err(io::Error::from_raw_os_error(code.saturating_neg()));
                }
                kind if kind == NFTABLES | new => take(message.body.get(NFGENMSG..).ok_or_else(unreadable)?),
                _ => {}
            }
        }
    }
}

fn request(id: &NftTableId, get: u16) -> Vec<u8> {
    const NFTA_RULE_TABLE: u16 = 1;
    let mut bytes = vec![0_u8; NLMSG_HEADER];
    bytes.extend([if id.family == NftFamily::Ip6 { 10 } else { 2 }, 0, 0, 0]);
    if get == GET_RULE {
        // Of this table alone: there are tens of thousands of others' rules on a node at times.
        let length = u16::try_from(4 + id.name.len() + 1).unwrap_or_default();
        bytes.extend(length.to_ne_bytes());
        bytes.extend(NFTA_RULE_TABLE.to_ne_bytes());
        bytes.extend(id.name.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let header = [
        &u32::try_from(bytes.len()).unwrap_or_default().to_ne_bytes()[..],
        &(NFTABLES | get).to_ne_bytes(),
        &(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes(),
    ]
    .concat();
    for (byte, value) in bytes.iter_mut().zip(header) {
        *byte = value;
    }
    bytes
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    body: &'a [u8],
    behind: &'a [u8],
}

fn message(bytes: &[u8]) -> Option<Message<'_>> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let flags = u16::from_ne_bytes(*bytes.get(6..)?.first_chunk()?);
    let body = bytes.get(NLMSG_HEADER..length)?;
    let behind = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(Message { kind, flags, body, behind })
}

/// Attributes by kind and value, as far as they can be read.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes(*self.0.get(2..)?.first_chunk()?) & KIND;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

fn value(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    Attributes(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// What is before the first zero.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// The name of a chain, if it is one of the table's.
fn chain(id: &NftTableId, attributes: &[u8]) -> Option<String> {
    const NFTA_CHAIN_TABLE: u16 = 1;
    const NFTA_CHAIN_NAME: u16 = 3;
    let is_its = text(value(attributes, NFTA_CHAIN_TABLE)?) == id.name;
    Some(text(value(attributes, NFTA_CHAIN_NAME)?)).filter(|_| is_its)
}

fn rule(id: &NftTableId, attributes: &[u8]) -> Option<Rule> {
    const NFTA_RULE_TABLE: u16 = 1;
    const NFTA_RULE_CHAIN: u16 = 2;
    const NFTA_RULE_HANDLE: u16 = 3;
    const NFTA_RULE_EXPRESSIONS: u16 = 4;
    const NFTA_RULE_USERDATA: u16 = 7;
    const NFTA_EXPR_NAME: u16 = 1;
    const NFTA_EXPR_DATA: u16 = 2;
    if text(value(attributes, NFTA_RULE_TABLE)?) != id.name {
        return None;
    }
    let handle = u64::from_be_bytes(*value(attributes, NFTA_RULE_HANDLE)?.first_chunk()?);
    let mut rule = Rule { chain: text(value(attributes, NFTA_RULE_CHAIN)?), handle, ..Rule::default() };
    for (_, expression) in Attributes(value(attributes, NFTA_RULE_EXPRESSIONS).unwrap_or_default()) {
        let data = value(expression, NFTA_EXPR_DATA).unwrap_or_default();
        match value(expression, NFTA_EXPR_NAME).map(text).as_deref() {
            Some("immediate") => rule.targets.extend(target(data)),
            Some("match") => rule.comments.extend(comment(data)),
            Some("cmp") => rule.addresses.extend(address(id.family, data)),
            _ => {}
        }
    }
    rule.comments.extend(value(attributes, NFTA_RULE_USERDATA).and_then(own_comment));
    Some(rule)
}

/// The chain of a verdict, where it has one.
fn target(immediate: &[u8]) -> Option<String> {
    const NFTA_IMMEDIATE_DATA: u16 = 2;
    const NFTA_DATA_VERDICT: u16 = 2;
    const NFTA_VERDICT_CHAIN: u16 = 2;
    let verdict = value(value(immediate, NFTA_IMMEDIATE_DATA)?, NFTA_DATA_VERDICT)?;
    value(verdict, NFTA_VERDICT_CHAIN).map(text)
}

/// What iptables' match `comment` says.
fn comment(data: &[u8]) -> Option<String> {
    const NFTA_MATCH_NAME: u16 = 1;
    const NFTA_MATCH_INFO: u16 = 3;
    let is_comment = text(value(data, NFTA_MATCH_NAME)?) == "comment";
    value(data, NFTA_MATCH_INFO).map(text).filter(|_| is_comment)
}

/// The comment among what nftables' users keep with a rule: kind, length and value of each, a byte for the former two.
fn own_comment(mut data: &[u8]) -> Option<String> {
    const COMMENT: u8 = 0;
    loop {
        let [kind, length] = *data.first_chunk()?;
        let value = data.get(2..)?.get(..usize::from(length))?;
        if kind == COMMENT {
            return Some(text(value));
        }
        data = data.get(2 + usize::from(length)..)?;
    }
}

fn address(family: NftFamily, cmp: &[u8]) -> Option<IpAddr> {
    const NFTA_CMP_DATA: u16 = 3;
    const NFTA_DATA_VALUE: u16 = 1;
    let bytes = value(value(cmp, NFTA_CMP_DATA)?, NFTA_DATA_VALUE)?;
    if family == NftFamily::Ip6 {
        return <[u8; 16]>::try_from(bytes).ok().map(|bytes| Ipv6Addr::from(bytes).into());
    }
    <[u8; 4]>::try_from(bytes).ok().map(|bytes| Ipv4Addr::from(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_left_out() {
        let attribute = |kind: u16, value: &[u8]| -> Vec<u8> {
            let mut bytes = u16::try_from(4 + value.len()).unwrap().to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let id = NftTableId::new(NftFamily::Ip, "nat");
        let whole = [
            attribute(1, b"nat\0"),
            attribute(2, b"PREROUTING\0"),
            attribute(3, &7_u64.to_be_bytes()),
            attribute(7, &[9, 1, 0, 0, 4, b'A', b'W', b'S', 0]),
        ]
        .concat();
        let expected = Rule { chain: "PREROUTING".into(), handle: 7, comments: vec!["AWS".into()], ..Rule::default() };
        assert_eq!(rule(&id, &whole), Some(expected));
        assert_eq!(rule(&NftTableId::new(NftFamily::Ip, "natty"), &whole), None);
        for end in 0..whole.len() {
            let _nothing_panics = rule(&id, &whole[..end]);
        }
        assert_eq!(own_comment(&[0, 200, b'A']), None);
        assert_eq!(Attributes(&[1, 0, 1, 0]).count(), 0, "a length that is none");
    }
}
