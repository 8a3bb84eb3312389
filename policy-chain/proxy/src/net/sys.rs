//! The calls that have no safe door in the standard library or nix, and the options that all sockets here have.
#![expect(unsafe_code, reason = "connect(2) to no address, SO_COOKIE and splice(2) have no safe door")]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, setsockopt, socket, sockopt};

/// A socket that may have any address, and takes no thread's time while it waits.
pub(super) fn transparent(family: AddressFamily, kind: SockType) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, kind, flags, None)?;
    setsockopt(&socket, sockopt::IpTransparent, &true)?;
    Ok(socket)
}

/// The family of an address.
pub(super) const fn family(address: SocketAddr) -> AddressFamily {
    match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Binds a socket to an address that need not be this host's.
pub(super) fn bind_to(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(v4) => bind(socket.as_raw_fd(), &SockaddrIn::from(v4))?,
        SocketAddr::V6(v6) => bind(socket.as_raw_fd(), &SockaddrIn6::from(v6))?,
    }
    Ok(())
}

/// The kernel's number of a socket, which no other ever gets; none: the descriptor is not that of a socket (any more).
pub(super) fn cookie(socket: RawFd) -> Option<u64> {
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).ok()?;
    // SAFETY: both addresses are of live variables, and `length` is the size of the first.
    let result = unsafe {
        libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_COOKIE, (&raw mut cookie).cast(), &raw mut length)
    };
    (result == 0).then_some(cookie)
}

/// Resets a TCP connection whoever has its socket, who finds it closed: connect(2) to `AF_UNSPEC`.
pub(super) fn disconnect(socket: RawFd) -> io::Result<()> {
    let unspecified = libc::sa_family_t::try_from(libc::AF_UNSPEC).unwrap_or_default();
    let nowhere = libc::sockaddr { sa_family: unspecified, sa_data: [0; 14] };
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr>()).unwrap_or_default();
    // SAFETY: the address is of a live variable of the length that is told.
    let result = unsafe { libc::connect(socket, &raw const nowhere, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Moves up to `limit` bytes between a pipe and a socket without a copy, and without waiting. 0: the source has ended.
pub(super) fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, limit: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    loop {
        // SAFETY: the descriptors are open, and no offsets are given.
        let moved = unsafe {
            libc::splice(from.as_raw_fd(), std::ptr::null_mut(), to.as_raw_fd(), std::ptr::null_mut(), limit, flags)
        };
        match usize::try_from(moved) {
            Ok(moved) => return Ok(moved),
            Err(_negative) => match Errno::last() {
                Errno::EINTR => {}
                errno => return Err(errno.into()),
            },
        }
    }
}
