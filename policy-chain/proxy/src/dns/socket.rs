//! Many datagrams by one system call, each with the address that it was sent to; and waiting for many sockets at once.

#![expect(unsafe_code, reason = "recvmmsg, sendmmsg and epoll have no safe form in the standard library or in tokio")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Datagrams of one call, at most.
pub(super) const BATCH: usize = 32;
/// `struct sockaddr_in6` (ipv6(7)); that of IPv4 is shorter.
const SOCKADDR: usize = 28;
const SOCKADDR_LENGTH: libc::socklen_t = 28;
/// Octets of a C int.
const INT_LENGTH: libc::socklen_t = 4;
/// Room for one control message with a socket address.
const CONTROL: usize = 64;

/// A datagram that has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Datagram<'b> {
    pub(super) bytes: &'b [u8],
    /// Who sent it.
    pub(super) from: SocketAddr,
    /// Where it was sent to, before it came here.
    pub(super) to: Option<SocketAddr>,
}

/// Room for datagrams.
#[derive(Debug)]
pub(super) struct Buffers {
    octets: Box<[u8]>,
    /// Octets of one datagram; what is longer is cut, and left out.
    size: usize,
    addresses: Box<[[u8; SOCKADDR]]>,
    controls: Box<[Control]>,
    received: Vec<Received>,
}

#[derive(Debug, Clone, Copy)]
#[repr(align(8))]
struct Control([u8; CONTROL]);

#[derive(Debug, Clone, Copy)]
struct Received {
    length: usize,
    control: usize,
    cut: bool,
}

impl Buffers {
    /// Room for [`BATCH`] datagrams of `size` octets.
    pub(super) fn new(size: usize) -> Self {
        Self {
            octets: vec![0; size * BATCH].into_boxed_slice(),
            size,
            addresses: vec![[0; SOCKADDR]; BATCH].into_boxed_slice(),
            controls: vec![Control([0; CONTROL]); BATCH].into_boxed_slice(),
            received: Vec::with_capacity(BATCH),
        }
    }

    /// Takes what has come, without waiting. How many they are; never 0.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.received.clear();
        let mut parts: Vec<libc::iovec> = self
            .octets
            .chunks_exact_mut(self.size)
            .map(|chunk| libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: chunk.len() })
            .collect();
        let each = parts.iter_mut().zip(self.addresses.iter_mut()).zip(self.controls.iter_mut());
        let mut headers: Vec<libc::mmsghdr> = each
            .map(|((part, address), control)| {
                let mut header = empty_header();
                header.msg_hdr.msg_name = address.as_mut_ptr().cast();
                header.msg_hdr.msg_namelen = SOCKADDR_LENGTH;
                header.msg_hdr.msg_iov = part;
                header.msg_hdr.msg_iovlen = 1;
                header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
                header.msg_hdr.msg_controllen = CONTROL as _;
                header
            })
            .collect();
        let count = libc::c_uint::try_from(headers.len()).unwrap_or(0);
        // SAFETY: the headers and all that they point to are exclusively borrowed by this call and outlive it.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        let received = usize::try_from(received).map_err(|_negative| io::Error::last_os_error())?;
        self.received.extend(headers.iter().take(received).map(|header| Received {
            length: header.msg_len as usize,
            control: header.msg_hdr.msg_controllen as _,
            cut: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        }));
        Ok(received)
    }

    /// One of those that came last. None for one that was cut.
    pub(super) fn get(&self, index: usize) -> Option<Datagram<'_>> {
        let received = self.received.get(index).filter(|received| !received.cut)?;
        let begin = index * self.size;
        let bytes = self.octets.get(begin..begin + received.length)?;
        let from = read_address(self.addresses.get(index)?)?;
        let control = self.controls.get(index)?.0.get(..received.control.min(CONTROL))?;
        Some(Datagram { bytes, from, to: original_destination(control) })
    }
}

fn empty_header() -> libc::mmsghdr {
    // SAFETY: a plain C structure of integers and pointers; all of it may be zero.
    unsafe { std::mem::zeroed() }
}

/// Sends datagrams, of a connected socket without an address, in their order and without waiting. How many of them the
/// kernel took, from the first on.
///
/// # Errors
/// The first was not taken.
pub(super) fn send(socket: &UdpSocket, datagrams: &[(&[u8], Option<SocketAddr>)]) -> io::Result<usize> {
    match datagrams {
        [(bytes, None)] => return socket.send(bytes).map(|_octets| 1),
        [(bytes, Some(to))] => return socket.send_to(bytes, to).map(|_octets| 1),
        _ => {}
    }
    let mut addresses: Vec<([u8; SOCKADDR], usize)> =
        datagrams.iter().map(|(_, to)| to.map_or(([0; SOCKADDR], 0), written_address)).collect();
    let mut parts: Vec<libc::iovec> = datagrams
        .iter()
        .map(|(bytes, _)| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() })
        .collect();
    let mut headers: Vec<libc::mmsghdr> = parts
        .iter_mut()
        .zip(&mut addresses)
        .map(|(part, (address, length))| {
            let mut header = empty_header();
            if *length > 0 {
                header.msg_hdr.msg_name = address.as_mut_ptr().cast();
                header.msg_hdr.msg_namelen = libc::socklen_t::try_from(*length).unwrap_or(0);
            }
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
            header
        })
        .collect();
    let count = libc::c_uint::try_from(headers.len()).unwrap_or(0);
    // SAFETY: the headers and all that they point to live until the call returns, and the kernel only reads the octets.
    let sent = unsafe {
        libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _)
    };
    usize::try_from(sent).map_err(|_negative| io::Error::last_os_error())
}

/// Has the socket tell where each datagram was sent to before it came here (`IP_RECVORIGDSTADDR`, Linux 2.6.37).
pub(super) fn tell_destinations(socket: &UdpSocket) -> io::Result<()> {
    let (level, option) = match socket.local_addr()? {
        SocketAddr::V4(_) => (libc::SOL_IP, libc::IP_RECVORIGDSTADDR),
        SocketAddr::V6(_) => (libc::SOL_IPV6, libc::IPV6_RECVORIGDSTADDR),
    };
    let on: libc::c_int = 1;
    // SAFETY: the value is a C int that outlives the call, and its size is given.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(&on).cast(), INT_LENGTH) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The address in the control messages of a datagram: a header of length, level and type, then the data (cmsg(3)).
fn original_destination(mut control: &[u8]) -> Option<SocketAddr> {
    const HEAD: usize = size_of::<libc::cmsghdr>();
    loop {
        let (length, rest) = control.split_first_chunk::<{ size_of::<usize>() }>()?;
        let length = usize::from_ne_bytes(*length);
        let (level, rest) = rest.split_first_chunk::<4>()?;
        let (kind, _) = rest.split_first_chunk::<4>()?;
        let (level, kind) = (i32::from_ne_bytes(*level), i32::from_ne_bytes(*kind));
        let data = control.get(HEAD..length)?;
        if matches!((level, kind), (libc::SOL_IP, libc::IP_ORIGDSTADDR) | (libc::SOL_IPV6, libc::IPV6_ORIGDSTADDR)) {
            return read_address(data);
        }
        control = control.get(length.next_multiple_of(size_of::<usize>())..)?;
    }
}

/// `struct sockaddr_in` (ip(7)), `struct sockaddr_in6` (ipv6(7)).
fn read_address(raw: &[u8]) -> Option<SocketAddr> {
    let (family, rest) = raw.split_first_chunk::<2>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => Some((Ipv4Addr::from(*rest.first_chunk::<4>()?), port).into()),
        libc::AF_INET6 => {
            let address = Ipv6Addr::from(*rest.get(4..)?.first_chunk::<16>()?);
            Some((IpAddr::V6(address), port).into())
        }
        _ => None,
    }
}

fn written_address(address: SocketAddr) -> ([u8; SOCKADDR], usize) {
    let mut raw = [0; SOCKADDR];
    let (family, length) = match address {
        SocketAddr::V4(_) => (libc::AF_INET, 16),
        SocketAddr::V6(_) => (libc::AF_INET6, SOCKADDR),
    };
    let family = u16::try_from(family).unwrap_or(0).to_ne_bytes();
    let mut put = |at: usize, octets: &[u8]| {
        if let Some(to) = raw.get_mut(at..at + octets.len()) {
            to.copy_from_slice(octets);
        }
    };
    put(0, &family);
    put(2, &address.port().to_be_bytes());
    match address {
        SocketAddr::V4(address) => put(4, &address.ip().octets()),
        SocketAddr::V6(address) => put(8, &address.ip().octets()),
    }
    (raw, length)
}

/// A set of sockets of which those are told that have something to be read (epoll(7)).
#[derive(Debug)]
pub(super) struct Poll {
    epoll: OwnedFd,
}

impl Poll {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and belongs to nobody else.
        Ok(Self { epoll: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// The set as something that can itself be waited for.
    pub(super) fn awaited(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the descriptor is owned by the value that is registered, and stays open and the same until that is gone.
        let awaited = unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) };
        awaited.map_err(io::Error::from)
    }

    /// Watches a socket. One that is closed leaves by itself.
    pub(super) fn add(&self, socket: &UdpSocket, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: the event outlives the call.
        let result =
            unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, socket.as_raw_fd(), &raw mut event) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Watches a socket no longer.
    pub(super) fn remove(&self, socket: &UdpSocket) -> io::Result<()> {
        // SAFETY: no event is needed to remove one (Linux 2.6.9).
        let result = unsafe {
            libc::epoll_ctl(
                self.epoll.as_raw_fd(),
                libc::EPOLL_CTL_DEL,
                socket.as_raw_fd(),
                std::ptr::null_mut::<libc::epoll_event>(),
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The tokens of sockets that can be read, without waiting; none: there are none. Whether to look once more when these have
    /// been read: there may be others; or one has an error, which recvmmsg(2) tells only after the datagrams before it.
    pub(super) fn ready(&self, tokens: &mut Vec<u64>) -> io::Result<bool> {
        const ROOM: libc::c_int = 256;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; ROOM as usize];
        // SAFETY: the kernel writes as many events as there is room for, and the room outlives the call.
        let count = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), ROOM, 0) };
        let count = usize::try_from(count).map_err(|_negative| io::Error::last_os_error())?;
        tokens.clear();
        tokens.extend(events.iter().take(count).map(|event| event.u64));
        Ok(count >= events.len() || events.iter().take(count).any(|event| event.events & libc::EPOLLERR as u32 != 0))
    }
}

impl AsRawFd for Poll {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_come_with_both_of_their_addresses() {
        for (address, other) in [("127.0.0.1", "127.0.0.2"), ("::1", "::1")] {
            let address: IpAddr = address.parse().unwrap();
            let any: IpAddr =
                if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let listener = UdpSocket::bind((any, 0)).unwrap();
            tell_destinations(&listener).unwrap();
            let port = listener.local_addr().unwrap().port();
            let sender = UdpSocket::bind((address, 0)).unwrap();
            let to = SocketAddr::new(other.parse().unwrap(), port);
            let sent = send(&sender, &[(b"one", Some(to)), (b"two, longer than there is room for", Some(to))]).unwrap();
            assert_eq!(sent, 2);
            let mut buffers = Buffers::new(8);
            let mut seen = 0;
            while seen < 2 {
                match buffers.receive(&listener) {
                    Ok(count) => {
                        if seen == 0 {
                            let one = buffers.get(0).unwrap();
                            assert_eq!((one.bytes, one.from), (b"one".as_slice(), sender.local_addr().unwrap()));
                            assert_eq!(one.to, Some(to));
                        }
                        seen += count;
                        assert!(buffers.get(count - 1).is_none() || seen < 2, "what is cut is left out");
                    }
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
        }
    }

    #[test]
    fn a_poll_tells_the_sockets_that_can_be_read() {
        let poll = Poll::new().unwrap();
        let sockets = [UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap()];
        for (token, socket) in (7..).zip(&sockets) {
            poll.add(socket, token).unwrap();
        }
        let mut tokens = vec![1];
        poll.ready(&mut tokens).unwrap();
        assert!(tokens.is_empty());
        sockets[0].send_to(b"x", sockets[1].local_addr().unwrap()).unwrap();
        while tokens.is_empty() {
            poll.ready(&mut tokens).unwrap();
        }
        assert_eq!(tokens, [8]);
        poll.remove(&sockets[1]).unwrap();
        poll.ready(&mut tokens).unwrap();
        assert!(tokens.is_empty());
        poll.add(&sockets[1], 9).unwrap();
        poll.ready(&mut tokens).unwrap();
        assert_eq!(tokens, [9]);
    }
}
