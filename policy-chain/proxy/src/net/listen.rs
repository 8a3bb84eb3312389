//! The sockets that take what the gates send.
//!
//! Each worker has its own of each kind; those of a kind share a port, and the kernel chooses among them by the four-tuple,
//! always the same one. The port says nothing: the lookup of sockets goes by the flow. A process that takes over opens sockets
//! at a port of its own, and so shares with nobody.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockType, listen, setsockopt, sockopt};
use sluice_policy_bpf::proxy::Sockets;
use tokio::net::{TcpListener, TcpStream};

use super::Place;
use super::sys::{bind_to, transparent};
use crate::flow::{Direction, Flow};

/// Connections that wait to be accepted, a worker.
const BACKLOG: i32 = 4096;
/// Bytes that wait in a UDP socket: some thousand queries.
const DATAGRAM_BUFFER: usize = 4 * 1024 * 1024;

/// The sockets of one worker; they take nothing until [`super::Places::take_over`].
#[derive(Debug)]
pub struct Listeners {
    /// Whose flows they take.
    pub direction: Direction,
    /// TCP of both families; becomes an [`Acceptor`].
    pub tcp: std::net::TcpListener,
    /// UDP over IPv4. Each datagram comes with its original destination (`IP_ORIGDSTADDR`).
    pub udp: std::net::UdpSocket,
    /// UDP over IPv6, with `IPV6_ORIGDSTADDR`; none on a kernel without IPv6.
    pub udp_v6: Option<std::net::UdpSocket>,
}

impl Listeners {
    /// Opens the sockets of so many workers in a namespace. They do not wait (`O_NONBLOCK`).
    ///
    /// # Errors
    /// What the system says: descriptors run out (`EMFILE`), or the namespace cannot be entered.
    pub fn open(place: &Place, workers: usize) -> io::Result<Vec<Self>> {
        let direction = place.direction();
        let open = || {
            let mut ports = Ports::default();
            (0..workers.max(1)).map(|_| Self::open_one(direction, &mut ports)).collect::<io::Result<Vec<_>>>()
        };
        place.namespace().run(open).map_err(io::Error::other)?
    }

    fn open_one(direction: Direction, ports: &mut Ports) -> io::Result<Self> {
        let tcp = match tcp(AddressFamily::Inet6, ports.tcp) {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => tcp(AddressFamily::Inet, ports.tcp)?,
            opened => opened?,
        };
        ports.tcp = tcp.local_addr()?.port();
        let udp = udp(AddressFamily::Inet, ports.udp)?;
        ports.udp = udp.local_addr()?.port();
        let udp_v6 = match self::udp(AddressFamily::Inet6, ports.udp_v6) {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            opened => Some(opened?),
        };
        if let Some(udp_v6) = &udp_v6 {
            ports.udp_v6 = udp_v6.local_addr()?.port();
        }
        Ok(Self { direction, tcp, udp, udp_v6 })
    }

    pub(super) fn sockets(&self) -> Sockets<'_> {
        Sockets {
            tcp: self.tcp.as_fd(),
            tcp_v6: None,
            udp: Some(self.udp.as_fd()),
            udp_v6: self.udp_v6.as_ref().map(AsFd::as_fd),
        }
    }
}

/// The ports that the first worker was given, for those after it.
#[derive(Debug, Default)]
struct Ports {
    tcp: u16,
    udp: u16,
    udp_v6: u16,
}

fn any(family: AddressFamily, port: u16) -> SocketAddr {
    match family {
        AddressFamily::Inet6 => (Ipv6Addr::UNSPECIFIED, port).into(),
        _ => (Ipv4Addr::UNSPECIFIED, port).into(),
    }
}

fn tcp(family: AddressFamily, port: u16) -> io::Result<std::net::TcpListener> {
    let socket = transparent(family, SockType::Stream)?;
    if family == AddressFamily::Inet6 {
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    }
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    // A request and its answer are written whole; waiting for more to send would cost a round trip. Connections have it from
    // their listening socket.
    setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
    bind_to(&socket, any(family, port))?;
    listen(&socket, Backlog::new(BACKLOG).map_err(io::Error::from)?)?;
    Ok(socket.into())
}

fn udp(family: AddressFamily, port: u16) -> io::Result<std::net::UdpSocket> {
    let socket: OwnedFd = transparent(family, SockType::Datagram)?;
    if family == AddressFamily::Inet6 {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
        setsockopt(&socket, sockopt::Ipv6OrigDstAddr, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true)?;
    }
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    // Beside the sockets that speak in a client's name and happen to have this port.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    match setsockopt(&socket, sockopt::RcvBufForce, &DATAGRAM_BUFFER) {
        // CAP_NET_ADMIN goes beyond the system's limit.
        Err(Errno::EPERM) => setsockopt(&socket, sockopt::RcvBuf, &DATAGRAM_BUFFER)?,
        set => set?,
    }
    bind_to(&socket, any(family, port))?;
    Ok(socket.into())
}

/// Takes connections.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    direction: Direction,
}

impl Acceptor {
    /// Of a worker's listener, on that worker's thread.
    ///
    /// # Errors
    /// The runtime takes no more sockets.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(direction: Direction, listener: std::net::TcpListener) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::from_std(listener)?, direction })
    }

    /// The next connection, and whose it is. Safe to drop and call again.
    ///
    /// # Errors
    /// Those of accept(2). `EMFILE` and the like are over when others close; of others (`ECONNABORTED`) only this connection
    /// is concerned.
    pub async fn accept(&self) -> io::Result<(TcpStream, Flow)> {
        let (stream, client) = self.listener.accept().await?;
        let server = stream.local_addr()?;
        let flow = Flow { direction: self.direction, client: canonical(client), server: canonical(server) };
        Ok((stream, flow))
    }
}

/// IPv4 as IPv4, where an IPv6 socket shows it as mapped.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
