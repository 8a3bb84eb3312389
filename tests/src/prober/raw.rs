//! Raw sockets: one for an address and a protocol, shared by all of its probes and servers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, bind, socket};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::wire::{Chunk, Sctp, behind_v4, ping, read_pong, read_sctp, sctp};
use super::{Transport, lock};

/// The first local port of SCTP probes: above those that are served.
const FIRST_ID: u16 = 32_768;

/// Makes the socket; called in its namespace.
pub(super) fn open(address: IpAddr, transport: Transport) -> io::Result<OwnedFd> {
    let (family, protocol) = match (address, transport) {
        (IpAddr::V4(_), Transport::Sctp) => (AddressFamily::Inet, SockProtocol::Sctp),
        (IpAddr::V6(_), Transport::Sctp) => (AddressFamily::Inet6, SockProtocol::Sctp),
        (IpAddr::V4(_), _) => (AddressFamily::Inet, SockProtocol::Icmp),
        (IpAddr::V6(_), _) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(family, SockType::Raw, flags, protocol)?;
    match address {
        IpAddr::V4(address) => bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(address, 0)))?,
        IpAddr::V6(address) => bind(fd.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(address, 0, 0, 0)))?,
    }
    Ok(fd)
}

/// A raw socket with its reader.
#[derive(Debug)]
pub(super) struct Raw {
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    /// The standard library's type for datagrams sends and receives on a raw socket as on one for UDP.
    socket: UdpSocket,
    v4: bool,
    transport: Transport,
    next: AtomicU16,
    waiting: Mutex<BTreeMap<u16, oneshot::Sender<()>>>,
    served: Mutex<BTreeSet<u16>>,
}

/// A probe that waits for its answer.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Its port or identifier.
    pub(super) id: u16,
    /// Resolves when the answer comes.
    pub(super) answer: oneshot::Receiver<()>,
}

impl Raw {
    pub(super) fn of(socket: OwnedFd, address: IpAddr, transport: Transport) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            socket: UdpSocket::from_std(socket.into())?,
            v4: address.is_ipv4(),
            transport,
            next: AtomicU16::new(0),
            waiting: Mutex::default(),
            served: Mutex::default(),
        });
        let reader = tokio::spawn(read(Arc::clone(&shared)));
        Ok(Self { shared, reader })
    }

    /// Answers INITs to this port from now on.
    pub(super) fn serve(&self, port: u16) {
        lock(&self.shared.served).insert(port);
    }

    /// A probe with an identity that no other one has now.
    pub(super) fn call(&self) -> io::Result<Waiting> {
        let mut waiting = lock(&self.shared.waiting);
        waiting.retain(|_, answer| !answer.is_closed());
        for _ in 0..FIRST_ID {
            let id = FIRST_ID | self.shared.next.fetch_add(1, Ordering::Relaxed);
            if let std::collections::btree_map::Entry::Vacant(slot) = waiting.entry(id) {
                let (answered, answer) = oneshot::channel();
                slot.insert(answered);
                return Ok(Waiting { id, answer });
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    pub(super) async fn send(&self, to: SocketAddr, id: u16) -> io::Result<()> {
        let packet = match self.shared.transport {
            Transport::Sctp => sctp(Sctp { source: id, destination: to.port(), chunk: Chunk::Init(u32::from(id) + 1) }),
            _ => ping(self.shared.v4, id),
        };
        self.shared.socket.send_to(&packet, SocketAddr::new(to.ip(), 0)).await.map(drop)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read(shared: Arc<Shared>) {
    let mut buffer = [0; 2048];
    loop {
        let Ok((length, peer)) = shared.socket.recv_from(&mut buffer).await else {
            // An interface that went down, say: not worth a busy loop.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let packet = buffer.get(..length).unwrap_or_default();
        let packet = if shared.v4 { behind_v4(packet) } else { packet };
        if shared.transport != Transport::Sctp {
            if let Some(id) = read_pong(shared.v4, packet) {
                shared.answered(id);
            }
            continue;
        }
        match read_sctp(packet) {
            Some(Sctp { source, destination, chunk: Chunk::Init(tag) })
                if lock(&shared.served).contains(&destination) =>
            {
                let answer = Sctp { source: destination, destination: source, chunk: Chunk::InitAck(tag) };
                // Lost is lost; clients ask again.
                let _lost = shared.socket.send_to(&sctp(answer), SocketAddr::new(peer.ip(), 0)).await;
            }
            Some(Sctp { destination, chunk: Chunk::InitAck(tag), .. }) if tag == u32::from(destination) + 1 => {
                shared.answered(destination);
            }
            _ => {}
        }
    }
}

impl Shared {
    fn answered(&self, id: u16) {
        if let Some(waiting) = lock(&self.waiting).remove(&id) {
            // Whoever asked may have stopped waiting.
            let _gone = waiting.send(());
        }
    }
}
