//! UDP in others' names. Both on a thread in the direction's namespace.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use nix::sys::socket::{SockType, setsockopt, sockopt};

use super::sys::{bind_to, family, transparent};

/// A socket that speaks to a server from the client's address and port, connected: answers come to it and to no listener. It
/// does not wait.
///
/// # Errors
/// What the system says; `EMFILE` when descriptors run out.
pub fn upstream(client: SocketAddr, server: SocketAddr) -> io::Result<UdpSocket> {
    let socket = in_the_name_of(client)?;
    socket.connect(server)?;
    Ok(socket)
}

/// A socket that speaks to clients from a server's address and port. What clients send to that address does not come here but
/// to the listeners. It does not wait.
///
/// # Errors
/// As [`upstream`].
pub fn reply(server: SocketAddr) -> io::Result<UdpSocket> {
    in_the_name_of(server)
}

/// Both, as the DNS proxy asks for them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Datagrams;

impl crate::dns::Sockets for Datagrams {
    fn upstream(&self, client: SocketAddr, server: SocketAddr) -> io::Result<UdpSocket> {
        upstream(client, server)
    }

    fn reply(&self, server: SocketAddr) -> io::Result<UdpSocket> {
        reply(server)
    }
}

fn in_the_name_of(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = transparent(family(address), SockType::Datagram)?;
    // Several clients speak to servers of one port, and one client to several servers.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind_to(&socket, address)?;
    Ok(socket.into())
}
