//! The flows that connection tracking knows, over ctnetlink (`linux/netfilter/nfnetlink_conntrack.h`): all of them by a dump,
//! or one by its tuple ([`Lookup`]). Those of addresses whose owner has gone can be deleted ([`forget()`]).

mod forget;
mod lookup;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::netns::{Namespace, NamespaceError};
use crate::nfnetlink::{self, NfnetlinkError, attribute};

pub use forget::forget;
pub use lookup::Lookup;

/// How often a dump is begun again that a change of the table's size has spoiled.
const ATTEMPTS: usize = 5;

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

impl From<NfnetlinkError> for ConntrackError {
    fn from(error: NfnetlinkError) -> Self {
        match error {
            NfnetlinkError::Socket(error) => Self::Socket(error),
            NfnetlinkError::Refused(error) => Self::Refused(error),
            NfnetlinkError::Unreadable => Self::Unreadable,
        }
    }
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
        let consistent = each_entry(|_, attributes| {
            // A protocol whose tuple has another form is nothing that a pod's gate tracks.
            match flow(attributes).filter(wanted) {
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
    nfnetlink::open().map_err(ConntrackError::Socket)
}

/// Hands the family and attributes of each entry to `take`, of both families, until that breaks off. Answers whether the table kept
/// its size meanwhile, without which entries may be missing.
fn each_entry<F>(take: F) -> Result<bool, ConntrackError>
where
    F: FnMut(u8, &[u8]) -> Result<ControlFlow<()>, ConntrackError>,
{
    // AF_UNSPEC.
    nfnetlink::dump((CT_GET, CT_NEW), 0, &[], take)
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
        let tcp = attribute(attribute(attributes, CTA_PROTOINFO)?, CTA_PROTOINFO_TCP)?;
        attribute(tcp, CTA_PROTOINFO_TCP_STATE)?.first().copied()
    };
    Some(Flow {
        original: tuple(attribute(attributes, CTA_TUPLE_ORIG)?)?,
        reply: tuple(attribute(attributes, CTA_TUPLE_REPLY)?)?,
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
        if let Some(bytes) = attribute(ip, v4) {
            return Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into());
        }
        Some(Ipv6Addr::from(*attribute(ip, v6)?.first_chunk::<16>()?).into())
    };
    let proto = attribute(attributes, CTA_TUPLE_PROTO)?;
    let port = |kind| attribute(proto, kind)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
    let message_type = |kind| attribute(proto, kind)?.first().copied().map(u16::from);
    let icmp = || port(CTA_PROTO_ICMP_ID).or_else(|| port(CTA_PROTO_ICMPV6_ID));
    let icmp_type = || message_type(CTA_PROTO_ICMP_TYPE).or_else(|| message_type(CTA_PROTO_ICMPV6_TYPE));
    Some(Tuple {
        source: address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
        destination: address(CTA_IP_V4_DST, CTA_IP_V6_DST)?,
        protocol: attribute(proto, CTA_PROTO_NUM)?.first().copied()?,
        source_port: port(CTA_PROTO_SRC_PORT).or_else(icmp).unwrap_or_default(),
        destination_port: port(CTA_PROTO_DST_PORT).or_else(icmp_type).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests;
