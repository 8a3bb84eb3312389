//! One flow, by how its opener's packets look.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, NetlinkAddr, recv, sendto};

use super::{
    CT_GET, CT_NEW, CTA_TUPLE_ORIG, ConntrackError, DATAGRAM, Flow, NFGENMSG, NLM_F_REQUEST, NLMSG_ERROR, NLMSG_HEADER,
    Tuple, flow, message, open,
};
use crate::netns::Namespace;

/// Answers to older questions that are read past: there is at most one, of a call whose wait ran out.
const STALE_ANSWERS: usize = 8;
/// `NLA_F_NESTED` of `linux/netlink.h`.
pub(super) const NESTED: u16 = 0x8000;

/// A socket in one namespace on which single flows are asked for. A call is a question and its answer, some 10
/// microseconds, and does not wait.
#[derive(Debug)]
pub struct Lookup {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Lookup {
    /// Opens the socket in `namespace`.
    ///
    /// # Errors
    /// [`ConntrackError::Namespace`], [`ConntrackError::Socket`].
    pub fn open(namespace: &Namespace) -> Result<Self, ConntrackError> {
        let socket = namespace.run(open).map_err(ConntrackError::Namespace)??;
        Ok(Self { socket, sequence: 0, buffer: vec![0; DATAGRAM] })
    }

    /// The flow whose opener's packets, before any translation, look like this; none: it is not tracked.
    ///
    /// # Errors
    /// [`ConntrackError`].
    pub fn flow(&mut self, original: &Tuple) -> Result<Option<Flow>, ConntrackError> {
        let (family, attributes) = named(original);
        let Some(answer) = self.ask(CT_GET, NLM_F_REQUEST, family, &attributes)? else { return Ok(None) };
        flow(&answer).map(Some).ok_or(ConntrackError::Unreadable)
    }

    /// The attributes that the kernel answers with about one flow, none of them where it only agrees; nothing: there is no
    /// such flow.
    pub(super) fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        attributes: &[u8],
    ) -> Result<Option<Vec<u8>>, ConntrackError> {
        let failed = |errno: Errno| ConntrackError::Socket(errno.into());
        self.sequence = self.sequence.wrapping_add(1);
        let question = question(kind, flags, self.sequence, family, attributes);
        sendto(self.socket.as_raw_fd(), &question, &NetlinkAddr::new(0, 0), MsgFlags::empty()).map_err(failed)?;
        for _ in 0..STALE_ANSWERS {
            let length = recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()).map_err(failed)?;
            let bytes = self.buffer.get(..length).ok_or(ConntrackError::Unreadable)?;
            let sequence = bytes.get(8..).and_then(|bytes| bytes.first_chunk()).map(|bytes| u32::from_ne_bytes(*bytes));
            if sequence != Some(self.sequence) {
                continue;
            }
            let (answer, _) = message(bytes).ok_or(ConntrackError::Unreadable)?;
            return match answer.kind {
                CT_NEW => {
                    let attributes = answer.body.get(NFGENMSG..).ok_or(ConntrackError::Unreadable)?;
                    Ok(Some(attributes.to_vec()))
                }
                NLMSG_ERROR => {
                    let code = answer.body.first_chunk().map(|code| i32::from_ne_bytes(*code));
                    match code.ok_or(ConntrackError::Unreadable)?.saturating_neg() {
                        0 => Ok(Some(Vec::new())),
                        libc::ENOENT => Ok(None),
                        errno => Err(ConntrackError::Refused(io::Error::from_raw_os_error(errno))),
                    }
                }
                _ => Err(ConntrackError::Unreadable),
            };
        }
        Err(ConntrackError::Unreadable)
    }
}

/// A flow's family, and the attributes that name it.
fn named(original: &Tuple) -> (u8, Vec<u8>) {
    const CTA_TUPLE_IP: u16 = 1;
    const CTA_TUPLE_PROTO: u16 = 2;
    const CTA_IP_V4_SRC: u16 = 1;
    const CTA_IP_V4_DST: u16 = 2;
    const CTA_IP_V6_SRC: u16 = 3;
    const CTA_IP_V6_DST: u16 = 4;
    const CTA_PROTO_NUM: u16 = 1;
    const CTA_PROTO_SRC_PORT: u16 = 2;
    const CTA_PROTO_DST_PORT: u16 = 3;
    let mut addresses = Vec::new();
    let family = match (original.source, original.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            attribute(&mut addresses, CTA_IP_V4_SRC, &source.octets());
            attribute(&mut addresses, CTA_IP_V4_DST, &destination.octets());
            libc::AF_INET
        }
        (source, destination) => {
            let octets = |address| match address {
                IpAddr::V4(v4) => std::net::Ipv4Addr::to_ipv6_mapped(&v4).octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            attribute(&mut addresses, CTA_IP_V6_SRC, &octets(source));
            attribute(&mut addresses, CTA_IP_V6_DST, &octets(destination));
            libc::AF_INET6
        }
    };
    let mut protocol = Vec::new();
    attribute(&mut protocol, CTA_PROTO_NUM, &[original.protocol]);
    attribute(&mut protocol, CTA_PROTO_SRC_PORT, &original.source_port.to_be_bytes());
    attribute(&mut protocol, CTA_PROTO_DST_PORT, &original.destination_port.to_be_bytes());
    let mut tuple = Vec::new();
    attribute(&mut tuple, NESTED | CTA_TUPLE_IP, &addresses);
    attribute(&mut tuple, NESTED | CTA_TUPLE_PROTO, &protocol);
    let mut body = Vec::new();
    attribute(&mut body, NESTED | CTA_TUPLE_ORIG, &tuple);
    (u8::try_from(family).unwrap_or_default(), body)
}

fn question(kind: u16, flags: u16, sequence: u32, family: u8, attributes: &[u8]) -> Vec<u8> {
    let length = NLMSG_HEADER + NFGENMSG + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    // nfgenmsg: family, version 0, resource 0.
    bytes.extend([family, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// Appends an attribute, padded to four bytes.
pub(super) fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    to.extend(u16::try_from(value.len() + 4).unwrap_or_default().to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}
