//! One flow, by how its opener's packets look.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use super::{CT_GET, CT_NEW, CTA_TUPLE_ORIG, ConntrackError, Flow, Tuple, flow, open};
use crate::netns::Namespace;
use crate::nfnetlink::{self, DATAGRAM, Message, NESTED, NLM_F_REQUEST, NLMSG_ERROR, append};

/// Answers to older questions that are read past: there is at most one, of a call whose wait ran out.
const STALE_ANSWERS: usize = 8;

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
        self.sequence = self.sequence.wrapping_add(1);
        let question = nfnetlink::question(kind, flags, self.sequence, family, attributes);
        nfnetlink::send(&self.socket, &question).map_err(ConntrackError::Socket)?;
        for _ in 0..STALE_ANSWERS {
            let bytes = nfnetlink::receive(&self.socket, &mut self.buffer).map_err(ConntrackError::Socket)?;
            let answer = Message::first(bytes).ok_or(ConntrackError::Unreadable)?;
            if answer.sequence != self.sequence {
                continue;
            }
            return match answer.kind {
                CT_NEW => answer.entry().map(|(_, attributes)| Some(attributes.to_vec())),
                NLMSG_ERROR => {
                    let error = answer.error();
                    match error.raw_os_error() {
                        Some(0) => return Ok(Some(Vec::new())),
                        Some(libc::ENOENT) => return Ok(None),
                        Some(_) => return Err(ConntrackError::Refused(error)),
                        None => None,
                    }
                }
                _ => None,
            }
            .ok_or(ConntrackError::Unreadable);
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
            append(&mut addresses, CTA_IP_V4_SRC, &source.octets());
            append(&mut addresses, CTA_IP_V4_DST, &destination.octets());
            libc::AF_INET
        }
        (source, destination) => {
            let octets = |address| match address {
                IpAddr::V4(v4) => std::net::Ipv4Addr::to_ipv6_mapped(&v4).octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            append(&mut addresses, CTA_IP_V6_SRC, &octets(source));
            append(&mut addresses, CTA_IP_V6_DST, &octets(destination));
            libc::AF_INET6
        }
    };
    let mut protocol = Vec::new();
    append(&mut protocol, CTA_PROTO_NUM, &[original.protocol]);
    append(&mut protocol, CTA_PROTO_SRC_PORT, &original.source_port.to_be_bytes());
    append(&mut protocol, CTA_PROTO_DST_PORT, &original.destination_port.to_be_bytes());
    let mut tuple = Vec::new();
    append(&mut tuple, NESTED | CTA_TUPLE_IP, &addresses);
    append(&mut tuple, NESTED | CTA_TUPLE_PROTO, &protocol);
    let mut body = Vec::new();
    append(&mut body, NESTED | CTA_TUPLE_ORIG, &tuple);
    (u8::try_from(family).unwrap_or_default(), body)
}
