//! Which nftables tables change, as they change.
//!
//! The kernel tells of every object of every transaction (`enum nfnetlink_groups`, `NFNLGRP_NFTABLES`), whoever made it. Each
//! message names the table as its first attribute (`linux/netfilter/nf_tables.h`: attribute 1 of tables, chains, rules, sets,
//! elements, objects and flow tables alike), and that is all that is read of it here.

use std::collections::VecDeque;
use std::fmt;
use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::errno::Errno;

use crate::netlink::OpenError;
use crate::netns::Namespace;
use crate::state::{NftFamily, NftTableId};

/// `NFNLGRP_NFTABLES`, as a mask of groups.
const GROUP: u32 = 1 << (7 - 1);
/// `NFNL_SUBSYS_NFTABLES`: the upper byte of a message's type.
const SUBSYSTEM: u8 = 10;
/// `NFT_MSG_NEWGEN`: a transaction has ended. It names no table.
const NEW_GENERATION: u8 = 15;
/// Lengths of `struct nlmsghdr` and `struct nfgenmsg`.
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
/// The most that the kernel puts into one datagram (`NLMSG_GOODSIZE` is below a page; a dump's are larger, a notice's are not).
const DATAGRAM: usize = 32 * 1024;
/// The attribute that names the table.
const TABLE: u16 = 1;

/// Something changed in nftables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NftEvent {
    /// A table, or something in it.
    Table(NftTableId),
    /// Events were lost: what is there must be read anew.
    Lost,
}

/// A watch on the nftables tables of one network namespace. The kernel's buffer bounds it: who reads too slowly gets
/// [`NftEvent::Lost`].
pub struct NftWatch {
    socket: TokioSocket,
    pending: VecDeque<NftTableId>,
}

impl fmt::Debug for NftWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NftWatch").field("pending", &self.pending).finish_non_exhaustive()
    }
}

impl NftWatch {
    /// Watches `namespace` from now on.
    ///
    /// # Errors
    /// [`OpenError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open(namespace: &Namespace) -> Result<Self, OpenError> {
        let runtime = tokio::runtime::Handle::current();
        let socket = namespace.run(|| {
            let _guard = runtime.enter();
            let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
            socket.socket_mut().bind(&SocketAddr::new(0, GROUP))?;
            Ok(socket)
        });
        let socket = socket.map_err(OpenError::Namespace)?.map_err(OpenError::Socket)?;
        Ok(Self { socket, pending: VecDeque::new() })
    }

    /// Waits for the next event. May be dropped and called again.
    ///
    /// # Errors
    /// When the socket has failed.
    pub async fn next(&mut self) -> io::Result<NftEvent> {
        loop {
            if let Some(table) = self.pending.pop_front() {
                return Ok(NftEvent::Table(table));
            }
            let mut datagram = Vec::with_capacity(DATAGRAM);
            match self.socket.recv(&mut datagram).await {
                Ok(_) => self.pending.extend(tables(&datagram)),
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => return Ok(NftEvent::Lost),
                Err(error) => return Err(error),
            }
        }
    }
}

/// The tables that a datagram tells of, each once in a row: a transaction of many rules tells of its table with each.
fn tables(mut datagram: &[u8]) -> Vec<NftTableId> {
    let mut found: Vec<NftTableId> = Vec::new();
    while let Some((message, rest)) = message(datagram) {
        datagram = rest;
        let table = table(message);
        if let Some(table) = table.filter(|table| found.last() != Some(table)) {
            found.push(table);
        }
    }
    found
}

/// The first message, its header included, and what follows.
fn message(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*datagram.first_chunk()?)).ok()?;
    let message = datagram.get(..length).filter(|message| message.len() >= HEADER)?;
    // Messages begin at multiples of four bytes; the last one need not fill its own.
    Some((message, datagram.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn table(message: &[u8]) -> Option<NftTableId> {
    let [kind, subsystem] = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?).to_le_bytes();
    if subsystem != SUBSYSTEM || kind == NEW_GENERATION {
        return None;
    }
    let family = family(*message.get(HEADER)?)?;
    let mut attributes = message.get(HEADER + FAMILY_HEADER..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
        let value = attributes.get(4..length)?;
        if kind == TABLE {
            let name = value.split(|byte| *byte == 0).next()?;
            return Some(NftTableId::new(family, String::from_utf8_lossy(name)));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// `NFPROTO_*` (`linux/netfilter.h`); none for families that no table of ours is in.
const fn family(number: u8) -> Option<NftFamily> {
    match number {
        1 => Some(NftFamily::Inet),
        2 => Some(NftFamily::Ip),
        5 => Some(NftFamily::Netdev),
        10 => Some(NftFamily::Ip6),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(kind: u8, family: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![family, 0, 0, 0];
        for (name, value) in attributes {
            body.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            body.extend(name.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut message = u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes().to_vec();
        message.extend(u16::from_le_bytes([kind, SUBSYSTEM]).to_ne_bytes());
        message.resize(HEADER, 0);
        message.extend(body);
        message
    }

    #[test]
    fn each_table_of_a_datagram_is_told_once_in_a_row() {
        let rule = notice(6, 2, &[(2, b"chain\0"), (1, b"sluice\0")]);
        let other = notice(3, 10, &[(1, b"kube-proxy\0")]);
        let end = notice(NEW_GENERATION, 0, &[(1, &[0, 0, 0, 1])]);
        let datagram = [rule.clone(), rule.clone(), other, end, rule].concat();
        let (ours, theirs) = (NftTableId::new(NftFamily::Ip, "sluice"), NftTableId::new(NftFamily::Ip6, "kube-proxy"));
        assert_eq!(tables(&datagram), [ours.clone(), theirs, ours]);
    }

    #[test]
    fn what_is_cut_short_or_of_another_kind_is_passed_over() {
        let rule = notice(6, 2, &[(1, b"sluice\0")]);
        for length in 0..rule.len() {
            assert_eq!(tables(&rule[..length]), []);
        }
        assert_eq!(tables(&notice(6, 3, &[(1, b"arp\0")])), []);
        assert_eq!(tables(&notice(6, 2, &[(1, &[])])), [NftTableId::new(NftFamily::Ip, "")]);
        assert_eq!(tables(&[0; 64]), []);
    }

    #[tokio::test]
    async fn a_change_by_somebody_else_is_seen_in_its_namespace_alone() {
        let namespace = Namespace::new_unbound().expect("the tests run as root");
        let other = Namespace::new_unbound().unwrap();
        let mut watch = NftWatch::open(&namespace).unwrap();
        let nft = |namespace: &Namespace, command: &str| {
            let mut nft = std::process::Command::new("nft");
            nft.args(command.split_whitespace());
            assert!(namespace.run(|| nft.status()).unwrap().expect("apt-get install nftables").success());
        };
        nft(&other, "add table ip elsewhere");
        nft(&namespace, "add table ip6 here");
        assert_eq!(watch.next().await.unwrap(), NftEvent::Table(NftTableId::new(NftFamily::Ip6, "here")));
    }
}
