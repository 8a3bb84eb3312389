//! Chains and rules of nftables as the kernel has them (`linux/netfilter/nf_tables.h`).
//!
//! iptables-nft writes a rule's comment as a match of its own, of which `nft` prints the name alone. So what it says is read here,
//! where the kernel keeps it; everything else of a rule that is not known here is not looked at.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::ControlFlow;

use nix::errno::Errno;

use crate::nfnetlink::{self, Attributes, NfnetlinkError, append, attribute};
use crate::state::{NftFamily, NftTableId};

/// How often a dump is begun again that a change of the rules has spoiled.
const ATTEMPTS: usize = 10;

/// `NFNL_SUBSYS_NFTABLES << 8`, and the message.
const NEW_CHAIN: u16 = 0x0a03;
const GET_CHAIN: u16 = 0x0a04;
const NEW_RULE: u16 = 0x0a06;
const GET_RULE: u16 = 0x0a07;

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
fn dump(id: &NftTableId, kinds: (u16, u16), mut take: impl FnMut(&[u8])) -> io::Result<bool> {
    const NFTA_RULE_TABLE: u16 = 1;
    let family = if id.family == NftFamily::Ip6 { libc::AF_INET6 } else { libc::AF_INET };
    let mut attributes = Vec::new();
    if kinds.0 == GET_RULE {
        // Of this table alone: there are tens of thousands of others' rules on a node at times.
        append(&mut attributes, NFTA_RULE_TABLE, &[id.name.as_bytes(), &[0]].concat());
    }
    let take = |_, entry: &[u8]| -> Result<ControlFlow<()>, NfnetlinkError> {
        take(entry);
        Ok(ControlFlow::Continue(()))
    };
    Ok(nfnetlink::dump(kinds, u8::try_from(family).unwrap_or_default(), &attributes, take)?)
}

/// What is before the first zero.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// The name of a chain, if it is one of the table's.
fn chain(id: &NftTableId, attributes: &[u8]) -> Option<String> {
    const NFTA_CHAIN_TABLE: u16 = 1;
    const NFTA_CHAIN_NAME: u16 = 3;
    let is_its = text(attribute(attributes, NFTA_CHAIN_TABLE)?) == id.name;
    Some(text(attribute(attributes, NFTA_CHAIN_NAME)?)).filter(|_| is_its)
}

fn rule(id: &NftTableId, attributes: &[u8]) -> Option<Rule> {
    const NFTA_RULE_TABLE: u16 = 1;
    const NFTA_RULE_CHAIN: u16 = 2;
    const NFTA_RULE_HANDLE: u16 = 3;
    const NFTA_RULE_EXPRESSIONS: u16 = 4;
    const NFTA_RULE_USERDATA: u16 = 7;
    const NFTA_EXPR_NAME: u16 = 1;
    const NFTA_EXPR_DATA: u16 = 2;
    if text(attribute(attributes, NFTA_RULE_TABLE)?) != id.name {
        return None;
    }
    let handle = u64::from_be_bytes(*attribute(attributes, NFTA_RULE_HANDLE)?.first_chunk()?);
    let mut rule = Rule { chain: text(attribute(attributes, NFTA_RULE_CHAIN)?), handle, ..Rule::default() };
    for (_, expression) in Attributes(attribute(attributes, NFTA_RULE_EXPRESSIONS).unwrap_or_default()) {
        let data = attribute(expression, NFTA_EXPR_DATA).unwrap_or_default();
        match attribute(expression, NFTA_EXPR_NAME).map(text).as_deref() {
            Some("immediate") => rule.targets.extend(target(data)),
            Some("match") => rule.comments.extend(comment(data)),
            Some("cmp") => rule.addresses.extend(address(id.family, data)),
            _ => {}
        }
    }
    rule.comments.extend(attribute(attributes, NFTA_RULE_USERDATA).and_then(own_comment));
    Some(rule)
}

/// The chain of a verdict, where it has one.
fn target(immediate: &[u8]) -> Option<String> {
    const NFTA_IMMEDIATE_DATA: u16 = 2;
    const NFTA_DATA_VERDICT: u16 = 2;
    const NFTA_VERDICT_CHAIN: u16 = 2;
    let verdict = attribute(attribute(immediate, NFTA_IMMEDIATE_DATA)?, NFTA_DATA_VERDICT)?;
    attribute(verdict, NFTA_VERDICT_CHAIN).map(text)
}

/// What iptables' match `comment` says.
fn comment(data: &[u8]) -> Option<String> {
    const NFTA_MATCH_NAME: u16 = 1;
    const NFTA_MATCH_INFO: u16 = 3;
    let is_comment = text(attribute(data, NFTA_MATCH_NAME)?) == "comment";
    attribute(data, NFTA_MATCH_INFO).map(text).filter(|_| is_comment)
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
    let bytes = attribute(attribute(cmp, NFTA_CMP_DATA)?, NFTA_DATA_VALUE)?;
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
        let id = NftTableId::new(NftFamily::Ip, "nat");
        let mut whole = Vec::new();
        append(&mut whole, 1, b"nat\0");
        append(&mut whole, 2, b"PREROUTING\0");
        append(&mut whole, 3, &7_u64.to_be_bytes());
        append(&mut whole, 7, &[9, 1, 0, 0, 4, b'A', b'W', b'S', 0]);
        let expected = Rule { chain: "PREROUTING".into(), handle: 7, comments: vec!["AWS".into()], ..Rule::default() };
        assert_eq!(rule(&id, &whole), Some(expected));
        assert_eq!(rule(&NftTableId::new(NftFamily::Ip, "natty"), &whole), None);
        for end in 0..whole.len() {
            let _nothing_panics = rule(&id, &whole[..end]);
        }
        assert_eq!(own_comment(&[0, 200, b'A']), None);
    }
}
