//! Questions to the kernel's packet filter over netlink, and its answers (`linux/netfilter/nfnetlink.h`).

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLA_F_NESTED`.
pub(crate) const NESTED: u16 = 0x8000;
/// `NLA_TYPE_MASK`.
const KIND: u16 = 0x3fff;

const HEADER: usize = 16;
/// `struct nfgenmsg`: family, version, resource.
const NFGENMSG: usize = 4;
/// The kernel answers within its own call.
const ANSWER_TIMEOUT: TimeVal = TimeVal::new(10, 0);
/// A datagram of a dump is at most this long (`NLMSG_GOODSIZE` and what a larger receive buffer may ask for).
pub(crate) const DATAGRAM: usize = 32 * 1024;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum NfnetlinkError {
    /// There is no socket, or nothing came on it.
    Socket(io::Error),
    /// The kernel says no.
    Refused(io::Error),
    /// What came is no netlink message.
    Unreadable,
}

impl From<NfnetlinkError> for io::Error {
    fn from(error: NfnetlinkError) -> Self {
        match error {
            NfnetlinkError::Socket(error) | NfnetlinkError::Refused(error) => error,
            NfnetlinkError::Unreadable => io::ErrorKind::InvalidData.into(),
        }
    }
}

/// A socket in the namespace of the calling thread.
pub(crate) fn open() -> io::Result<OwnedFd> {
    let protocol = SockProtocol::NetlinkNetFilter;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &ANSWER_TIMEOUT)?;
    Ok(socket)
}

pub(crate) fn send(socket: &OwnedFd, question: &[u8]) -> io::Result<()> {
    sendto(socket.as_raw_fd(), question, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    Ok(())
}

/// The next datagram, as the front of `buffer`.
pub(crate) fn receive<'a>(socket: &OwnedFd, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let length = recv(socket.as_raw_fd(), buffer, MsgFlags::empty())?;
    buffer.get(..length).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// What is asked for: `kind` is `NFNL_SUBSYS_* << 8` and the message's own number.
pub(crate) fn question(kind: u16, flags: u16, sequence: u32, family: u8, attributes: &[u8]) -> Vec<u8> {
    let length = HEADER + NFGENMSG + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // The kernel's port; then version 0, and no resource.
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend([family, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// Asks for a list, and hands the family and attributes of each entry of the kind `listed` to `take`, until that breaks off. Answers
/// whether nothing was changed meanwhile, without which entries may be missing.
pub(crate) fn dump<E: From<NfnetlinkError>>(
    (asked, listed): (u16, u16),
    family: u8,
    attributes: &[u8],
    mut take: impl FnMut(u8, &[u8]) -> Result<ControlFlow<()>, E>,
) -> Result<bool, E> {
    let socket = open().map_err(NfnetlinkError::Socket)?;
    let question = question(asked, NLM_F_REQUEST | NLM_F_DUMP, 0, family, attributes);
    send(&socket, &question).map_err(NfnetlinkError::Socket)?;
    let mut is_whole = true;
    let mut buffer = vec![0_u8; DATAGRAM];
    loop {
        let mut rest = receive(&socket, &mut buffer).map_err(NfnetlinkError::Socket)?;
        while !rest.is_empty() {
            let message = Message::first(rest).ok_or(NfnetlinkError::Unreadable)?;
            rest = message.behind;
            is_whole &= message.flags & NLM_F_DUMP_INTR == 0;
            match message.kind {
                NLMSG_DONE => return Ok(is_whole),
                NLMSG_ERROR => return Err(NfnetlinkError::Refused(message.error()).into()),
                kind if kind == listed => {
                    let (family, attributes) = message.entry().ok_or(NfnetlinkError::Unreadable)?;
                    if take(family, attributes)?.is_break() {
                        return Ok(is_whole);
                    }
                }
                _ => {}
            }
        }
    }
}

/// A message among others.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    flags: u16,
    pub(crate) sequence: u32,
    body: &'a [u8],
    behind: &'a [u8],
}

impl<'a> Message<'a> {
    /// The first of a datagram; none: it is cut off, or none at all.
    pub(crate) fn first(bytes: &'a [u8]) -> Option<Self> {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        Some(Self {
            kind: u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?),
            flags: u16::from_ne_bytes(*bytes.get(6..)?.first_chunk()?),
            sequence: u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?),
            body: bytes.get(HEADER..length)?,
            behind: bytes.get(length.next_multiple_of(4)..).unwrap_or_default(),
        })
    }

    /// The family and attributes of an entry.
    pub(crate) fn entry(&self) -> Option<(u8, &'a [u8])> {
        Some((*self.body.first()?, self.body.get(NFGENMSG..)?))
    }

    /// What a message of the kind [`NLMSG_ERROR`] says; 0 is agreement.
    pub(crate) fn error(&self) -> io::Error {
        let code = self.body.first_chunk().map(|code| i32::from_ne_bytes(*code));
        code.map_or_else(
            || io::ErrorKind::InvalidData.into(),
            |code| io::Error::from_raw_os_error(code.saturating_neg()),
        )
    }
}

/// Attributes by kind and value, as far as they can be read.
#[derive(Debug)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

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

/// The value of an attribute.
pub(crate) fn attribute(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    Attributes(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// Appends an attribute, padded to four bytes.
pub(crate) fn append(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    to.extend(u16::try_from(value.len() + 4).unwrap_or_default().to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_or_strange_is_no_message_and_no_attribute() {
        assert!(Message::first(&[20, 0, 0, 0, 0, 1]).is_none());
        assert!(Message::first(&[200, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_none());
        assert!(Message::first(&[3, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_none());
        let empty = Message::first(&[16, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        assert!(empty.entry().is_none());
        assert_eq!(empty.error().kind(), io::ErrorKind::InvalidData);
        assert_eq!(Attributes(&[1, 0, 1, 0]).count(), 0, "a length that is none");
        assert_eq!(Attributes(&[9, 0, 1, 0, 7]).count(), 0, "a length that is not there");
    }

    #[test]
    fn an_attribute_is_read_as_it_was_written() {
        let mut bytes = Vec::new();
        append(&mut bytes, NESTED | 2, b"abc");
        append(&mut bytes, 3, b"defgh");
        assert_eq!(bytes.len(), 8 + 12);
        assert_eq!(Attributes(&bytes).collect::<Vec<_>>(), [(2, &b"abc"[..]), (3, &b"defgh"[..])]);
        assert_eq!((attribute(&bytes, 3), attribute(&bytes, 4)), (Some(&b"defgh"[..]), None));
    }
}
