//! The flows that connection tracking knows, over ctnetlink (`linux/netfilter/nfnetlink_conntrack.h`): all of them by a dump,
//! or one by its tuple ([`Lookup`]). Those of addresses whose owner has gone can be deleted ([`forget()`]).

mod forget;
mod lookup;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::NlasIterator;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::netns::{Namespace, NamespaceError};

pub use forget::forget;
pub use lookup::Lookup;

/// The kernel answers within its own call.
const ANSWER_TIMEOUT: TimeVal = TimeVal::new(10, 0);
/// A datagram of a dump is at most this long (`NLMSG_GOODSIZE` and what a larger receive buffer may ask for).
const DATAGRAM: usize = 32 * 1024;
/// How often a dump is begun again that a change of the table's size has spoiled.
const ATTEMPTS: usize = 5;

const NLMSG_HEADER: usize = 16;
const NFGENMSG: usize = 4;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`.
const CT_GET: u16 = 0x0101;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW`: what a dump's entries are.
const CT_NEW: u16 = 0x0100;
const CTA_TUPLE_ORIG: u16 = 1;

/// A direction of a flow: as its packets look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Where they come from.
    pub source: IpAddr,
    /// Where they go.
    pub destination: IpAddr,
    /// IP protocol, by its number.
    pub protocol: u8,
    /// Source port; of an ICMP flow its identifier.
    pub source_port: u16,
    /// Destination port; of an ICMP flow the message's type.
    pub destination_port: u16,
}

/// A flow that connection tracking knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The opener's packets, before any translation.
    pub original: Tuple,
    /// The answers to them, before they are translated back: the source is whoever answers in truth.
    pub reply: Tuple,
    /// `IPS_*` bits (`linux/netfilter/nf_conntrack_common.h`).
    pub status: u32,
    /// `TCP_CONNTRACK_*` (`linux/netfilter/nf_conntrack_tcp.h`), for TCP.
    pub tcp_state: Option<u8>,
    /// How long the entry still lives without a packet.
    pub expires_in: Duration,
}

impl Flow {
    /// Packets went in both directions (`IPS_SEEN_REPLY`).
    #[must_use]
    pub const fn is_answered(&self) -> bool {
        self.status & 0x2 != 0
    }
}

/// What connection tracking did not do.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// The namespace could not be entered.
    #[error("cannot open a ctnetlink socket in the namespace")]
    Namespace(#[source] NamespaceError),
    /// There is no socket, or no answer on it.
    #[error("cannot ask connection tracking for its flows")]
    Socket(#[source] io::Error),
    /// The kernel refused (EPERM: `CAP_NET_ADMIN` is needed).
    #[error("connection tracking does not list its flows")]
    Refused(#[source] io::Error),
    /// The kernel did not delete a flow.
    #[error("connection tracking does not delete a flow")]
    Kept(#[source] io::Error),
    /// There are more flows than the caller has room for.
    #[error("connection tracking knows more than {limit} of the flows that are looked for")]
    TooMany {
        /// The caller's limit.
        limit: usize,
    },
    /// The answer is none.
    #[error("cannot read what connection tracking lists")]
    Unreadable,
}

impl ConntrackError {
    /// Whether the kernel has no ctnetlink at all, so that asking again is in vain.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::Socket(error) => matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT)),
            // A dump has nothing in it that could be wrong: nobody knows its subsystem.
            Self::Refused(error) => matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)),
            Self::Namespace(_) | Self::Kept(_) | Self::TooMany { .. } | Self::Unreadable => false,
        }
    }
}

/// The flows in `namespace` that `wanted` says yes to, at most `limit` of them. Blocks for as long as the dump takes:
/// about a millisecond for 1,000 flows.
///
/// # Errors
/// [`ConntrackError`].
pub fn flows(
    namespace: &Namespace,
    limit: usize,
    wanted: impl Fn(&Flow) -> bool + Send + Sync,
) -> Result<Vec<Flow>, ConntrackError> {
    namespace.run(|| dump(limit, &wanted)).map_err(ConntrackError::Namespace)?
}

fn dump(limit: usize, wanted: &dyn Fn(&Flow) -> bool) -> Result<Vec<Flow>, ConntrackError> {
    let mut flows = Vec::new();
    for _ in 0..ATTEMPTS {
        flows.clear();
        let consistent = each_entry(|entry| {
            // A protocol whose tuple has another form is nothing that a pod's gate tracks.
            match entry.get(NFGENMSG..).and_then(flow).filter(wanted) {
                Some(_) if flows.len() >= limit => return Err(ConntrackError::TooMany { limit }),
                Some(flow) => flows.push(flow),
                None => {}
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if consistent {
            break;
        }
    }
    // Better a list with holes than none.
    Ok(flows)
}

/// A ctnetlink socket in the namespace of the calling thread.
fn open() -> Result<OwnedFd, ConntrackError> {
    let failed = |errno: Errno| ConntrackError::Socket(errno.into());
    let protocol = SockProtocol::NetlinkNetFilter;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).map_err(failed)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &ANSWER_TIMEOUT).map_err(failed)?;
    Ok(socket)
}

/// Hands each entry of one dump, an nfgenmsg and its attributes, to `take`, until that breaks off. Answers whether the
/// table kept its size meanwhile, without which entries may be missing.
fn each_entry<F>(mut take: F) -> Result<bool, ConntrackError>
where
    F: FnMut(&[u8]) -> Result<ControlFlow<()>, ConntrackError>,
{
    let failed = |errno: Errno| ConntrackError::Socket(errno.into());
    let socket = open()?;
    sendto(socket.as_raw_fd(), &request(), &NetlinkAddr::new(0, 0), MsgFlags::empty()).map_err(failed)?;
    let mut consistent = true;
    let mut buffer = vec![0_u8; DATAGRAM];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(failed)?;
        let mut rest = buffer.get(..length).ok_or(ConntrackError::Unreadable)?;
        while !rest.is_empty() {
            let (message, behind) = message(rest).ok_or(ConntrackError::Unreadable)?;
            rest = behind;
            consistent &= message.flags & NLM_F_DUMP_INTR == 0;
            match message.kind {
                NLMSG_DONE => return Ok(consistent),
                NLMSG_ERROR => {
                    let code = message.body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return Err(ConntrackError::Refused(io::Error::from_raw_os_error(code.saturating_neg())));
                }
                CT_NEW if take(message.body)?.is_break() => return Ok(consistent),
                _ => {}
            }
        }
    }
}

/// A dump of both families' entries.
fn request() -> Vec<u8> {
    let length = NLMSG_HEADER + NFGENMSG;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
    bytes.extend(CT_GET.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    // Sequence, port, and the nfgenmsg: AF_UNSPEC, version 0, no resource.
    bytes.resize(length, 0);
    bytes
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    body: &'a [u8],
}

fn message(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let flags = u16::from_ne_bytes(*bytes.get(6..)?.first_chunk()?);
    let body = bytes.get(NLMSG_HEADER..length)?;
    let behind = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((Message { kind, flags, body }, behind))
}

/// The value of an attribute (`CTA_*`).
fn attribute(attributes: &[u8], wanted: u16) -> Option<Vec<u8>> {
    let found = NlasIterator::new(attributes).flatten().find(|nla| nla.kind() == wanted)?;
    Some(found.value().to_vec())
}

fn flow(attributes: &[u8]) -> Option<Flow> {
    const CTA_TUPLE_REPLY: u16 = 2;
    const CTA_STATUS: u16 = 3;
    const CTA_PROTOINFO: u16 = 4;
    const CTA_TIMEOUT: u16 = 7;
    const CTA_PROTOINFO_TCP: u16 = 1;
    const CTA_PROTOINFO_TCP_STATE: u16 = 1;
    let number = |kind| attribute(attributes, kind)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
    let tcp_state = || {
        let tcp = attribute(&attribute(attributes, CTA_PROTOINFO)?, CTA_PROTOINFO_TCP)?;
        attribute(&tcp, CTA_PROTOINFO_TCP_STATE)?.first().copied()
    };
    Some(Flow {
        original: tuple(&attribute(attributes, CTA_TUPLE_ORIG)?)?,
        reply: tuple(&attribute(attributes, CTA_TUPLE_REPLY)?)?,
        status: number(CTA_STATUS).unwrap_or_default(),
        tcp_state: tcp_state(),
        expires_in: Duration::from_secs(number(CTA_TIMEOUT).unwrap_or_default().into()),
    })
}

fn tuple(attributes: &[u8]) -> Option<Tuple> {
    const CTA_TUPLE_IP: u16 = 1;
    const CTA_TUPLE_PROTO: u16 = 2;
    const CTA_IP_V4_SRC: u16 = 1;
    const CTA_IP_V4_DST: u16 = 2;
    const CTA_IP_V6_SRC: u16 = 3;
    const CTA_IP_V6_DST: u16 = 4;
    const CTA_PROTO_NUM: u16 = 1;
    const CTA_PROTO_SRC_PORT: u16 = 2;
    const CTA_PROTO_DST_PORT: u16 = 3;
    const CTA_PROTO_ICMP_ID: u16 = 4;
    const CTA_PROTO_ICMP_TYPE: u16 = 5;
    const CTA_PROTO_ICMPV6_ID: u16 = 7;
    const CTA_PROTO_ICMPV6_TYPE: u16 = 8;
    let ip = attribute(attributes, CTA_TUPLE_IP)?;
    let address = |v4, v6| -> Option<IpAddr> {
        if let Some(bytes) = attribute(&ip, v4) {
            return Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into());
        }
        Some(Ipv6Addr::from(*attribute(&ip, v6)?.first_chunk::<16>()?).into())
    };
    let proto = attribute(attributes, CTA_TUPLE_PROTO)?;
    let port = |kind| attribute(&proto, kind)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
    let message_type = |kind| attribute(&proto, kind)?.first().copied().map(u16::from);
    let icmp = || port(CTA_PROTO_ICMP_ID).or_else(|| port(CTA_PROTO_ICMPV6_ID));
    let icmp_type = || message_type(CTA_PROTO_ICMP_TYPE).or_else(|| message_type(CTA_PROTO_ICMPV6_TYPE));
    Some(Tuple {
        source: address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
        destination: address(CTA_IP_V4_DST, CTA_IP_V6_DST)?,
        protocol: attribute(&proto, CTA_PROTO_NUM)?.first().copied()?,
        source_port: port(CTA_PROTO_SRC_PORT).or_else(icmp).unwrap_or_default(),
        destination_port: port(CTA_PROTO_DST_PORT).or_else(icmp_type).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests;
