//! Serves and dials from any address of any network namespace, with real packets, out of one process.
//!
//! A socket belongs to the namespace in which it was made, whoever uses it later. So a short-lived thread makes the
//! sockets of a namespace, and one runtime serves them all: a thousand probes from a hundred pods cost a hundred threads of
//! 60 microseconds and one poll loop.
//!
//! Servers of TCP and UDP send an octet back, and answer HTTP, DNS and TLS when they are spoken to in these; SCTP is spoken over raw
//! sockets, INIT and INIT-ACK, because it must be probed on kernels without SCTP too; ICMP echo requests are answered by the
//! kernel. Of what nobody answers it counts that it arrives.

mod host;
mod packet;
mod raw;
mod talk;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use sluice_hostnet::netns::{Namespace, NamespaceError, NamespaceId};
use sluice_vpcsim::probe::dns::{self, Zone};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use host::Names;
use packet::{Arrivals, Catcher};
use raw::Raw;
pub use talk::Ask;

/// Octets that wait to be read by a server of UDP, with what the kernel needs for them: a machine that does something else for
/// seconds loses no datagram.
const RECEIVED: usize = 8 << 20;
/// The first wait before a datagram or an INIT is sent again; it doubles.
const RETRY: Duration = Duration::from_millis(100);
/// How long a connection that has to stand is watched for its end.
const QUIET: Duration = Duration::from_millis(300);
/// Probes that are on their way at once.
const AT_ONCE: usize = 4096;

/// A way to talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP: a connection, and an answer on it.
    Tcp,
    /// UDP: a datagram, and its answer.
    Udp,
    /// SCTP: an INIT, and its INIT-ACK.
    Sctp,
    /// ICMP or ICMPv6 echo request and reply, as the addresses are.
    Ping,
    /// A packet of this IP protocol, which has to arrive. The port is the type of an ICMP message.
    Packet(u8),
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("TCP"),
            Self::Udp => f.write_str("UDP"),
            Self::Sctp => f.write_str("SCTP"),
            Self::Ping => f.write_str("ping"),
            Self::Packet(protocol) => write!(f, "protocol {protocol}"),
        }
    }
}

/// An address in a network namespace.
#[derive(Debug, Clone)]
pub struct Station {
    /// The namespace.
    pub net: Namespace,
    /// An address that it has.
    pub address: IpAddr,
}

/// A probe.
#[derive(Debug, Clone)]
pub struct Dial {
    /// Who sends.
    pub from: Station,
    /// The address that is dialled.
    pub to: IpAddr,
    /// Its port; nothing for [`Transport::Ping`].
    pub port: u16,
    /// How.
    pub transport: Transport,
    /// What is said over TCP or UDP.
    pub ask: Ask,
    /// How long an answer is waited for.
    pub patience: Duration,
}

/// What came of a probe.
#[derive(Debug)]
pub enum Answer {
    /// It was answered: packets pass in both directions.
    Answered,
    /// The question was declined in the words of its protocol: HTTP 403, DNS' REFUSED, a TLS alert.
    Declined(String),
    /// Nothing came back.
    Silent,
    /// Somebody said no: a reset, or an ICMP error.
    Refused(io::Error),
    /// It could not be sent.
    Failed(io::Error),
}

impl Answer {
    fn of(error: io::Error) -> Self {
        use io::ErrorKind::{
            ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, PermissionDenied, TimedOut,
        };
        match error.kind() {
            TimedOut => Self::Silent,
            ConnectionRefused | ConnectionReset | HostUnreachable | NetworkUnreachable | PermissionDenied => {
                Self::Refused(error)
            }
            _ => Self::Failed(error),
        }
    }

    /// Whether it was answered.
    #[must_use]
    pub const fn is_answered(&self) -> bool {
        matches!(self, Self::Answered)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered => f.write_str("answered"),
            Self::Declined(words) => write!(f, "declined: {words}"),
            Self::Silent => f.write_str("silent"),
            Self::Refused(error) => write!(f, "refused: {error}"),
            Self::Failed(error) => write!(f, "not sent: {error}"),
        }
    }
}

/// Why sockets could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ProberError {
    /// The namespace cannot be entered.
    #[error("a namespace cannot be entered")]
    Namespace(#[from] NamespaceError),
    /// A socket.
    #[error("no socket for {transport} {address}")]
    Socket {
        /// How it talks.
        transport: Transport,
        /// Its address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// The prober's own work was cancelled.
    #[error("the sockets were not made")]
    Cancelled(#[from] tokio::task::JoinError),
}

type Place = (NamespaceId, IpAddr);
/// What is served in a namespace.
type Service = (IpAddr, Transport, u16);

/// The servers and raw sockets of a cluster. Dropping it closes them.
#[derive(Debug, Default)]
pub struct Prober {
    servers: Mutex<BTreeMap<(Place, Transport, u16), Server>>,
    raws: Mutex<BTreeMap<(Place, Transport), Arc<Raw>>>,
    catchers: Mutex<BTreeMap<Place, Catcher>>,
    arrivals: Arc<Arrivals>,
    names: Names,
}

#[derive(Debug)]
struct Server(Option<JoinHandle<()>>);

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// A TCP connection that a probe opened and left open.
#[derive(Debug)]
pub struct Held {
    stream: TcpStream,
    opened: Ask,
}

impl Held {
    /// Says again what it was opened with, and waits for the answer: the connection lives.
    pub async fn poke(&mut self, patience: Duration) -> Answer {
        let ask = self.opened.clone();
        self.ask(&ask, patience).await
    }

    /// Says something on it, and waits for the answer.
    pub async fn ask(&mut self, ask: &Ask, patience: Duration) -> Answer {
        match timeout(patience, talk::talk(&mut self.stream, ask)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Answer::of(error),
            Err(_elapsed) => Answer::Silent,
        }
    }
}

enum Opened {
    Tcp(TcpSocket),
    Udp(std::net::UdpSocket),
    Raw(Arc<Raw>),
    Packet(std::os::fd::OwnedFd),
}

impl Prober {
    /// Serves at these addresses, those that are served already apart. Returns once clients may come.
    ///
    /// # Errors
    /// [`ProberError`]; what was opened stays open.
    pub async fn serve(&self, wanted: impl IntoIterator<Item = (Station, Transport, u16)>) -> Result<(), ProberError> {
        let mut by_net: BTreeMap<NamespaceId, (Namespace, BTreeSet<Service>)> = BTreeMap::new();
        {
            let servers = lock(&self.servers);
            for (station, transport, port) in wanted {
                let id = station.net.id();
                if transport != Transport::Ping && !servers.contains_key(&((id, station.address), transport, port)) {
                    let entry = by_net.entry(id).or_insert_with(|| (station.net, BTreeSet::new()));
                    entry.1.insert((station.address, transport, port));
                }
            }
        }
        for (id, (net, wanted)) in by_net {
            let opened = on(&net, move || {
                let open = |(address, transport, port): Service| {
                    let at = SocketAddr::new(address, port);
                    let opened = listen(transport, at);
                    opened.map_err(|source| ProberError::Socket { transport, address: at, source })
                };
                wanted.into_iter().map(|one| Ok((one, open(one)?))).collect::<Result<Vec<_>, ProberError>>()
            });
            for ((address, transport, port), socket) in opened.await?? {
                let broken = |source| ProberError::Socket { transport, address: (address, port).into(), source };
                let names = Arc::clone(&self.names);
                let task = match socket {
                    Listening::Tcp(socket) => {
                        Some(tokio::spawn(host::tcp(TcpListener::from_std(socket).map_err(broken)?, names)))
                    }
                    Listening::Udp(socket) => {
                        Some(tokio::spawn(host::udp(UdpSocket::from_std(socket).map_err(broken)?, names)))
                    }
                    Listening::Tap(tap) => {
                        if let std::collections::btree_map::Entry::Vacant(slot) =
                            lock(&self.catchers).entry((id, address))
                        {
                            slot.insert(Catcher::of(tap, address, Arc::clone(&self.arrivals)).map_err(broken)?);
                        }
                        None
                    }
                    Listening::Raw => {
                        let station = Station { net: net.clone(), address };
                        self.raw(&station, transport).await?.serve(port);
                        None
                    }
                };
                lock(&self.servers).insert(((id, address), transport, port), Server(task));
            }
        }
        Ok(())
    }

    /// What DNS servers know from now on.
    pub fn know(&self, names: Zone) {
        *lock(&self.names) = names;
    }

    /// Forgets all servers and raw sockets of a namespace that goes.
    pub fn forget(&self, net: &Namespace) {
        let id = net.id();
        lock(&self.catchers).retain(|(at, _), _| *at != id);
        lock(&self.servers).retain(|((at, _), ..), _| *at != id);
        lock(&self.raws).retain(|((at, _), _), _| *at != id);
    }

    async fn raw(&self, station: &Station, transport: Transport) -> Result<Arc<Raw>, ProberError> {
        let key = ((station.net.id(), station.address), transport);
        if let Some(raw) = lock(&self.raws).get(&key) {
            return Ok(Arc::clone(raw));
        }
        let address = station.address;
        let failed = |source| ProberError::Socket { transport, address: (address, 0).into(), source };
        let socket = on(&station.net, move || raw::open(address, transport)).await?.map_err(failed)?;
        let raw = Arc::new(Raw::of(socket, address, transport).map_err(failed)?);
        Ok(Arc::clone(lock(&self.raws).entry(key).or_insert(raw)))
    }

    /// Probes, all at once, and answers in the same order.
    ///
    /// # Errors
    /// A namespace cannot be entered.
    pub async fn dial(&self, dials: &[Dial]) -> Result<Vec<Answer>, ProberError> {
        let mut by_net: BTreeMap<NamespaceId, Vec<usize>> = BTreeMap::new();
        for (index, dial) in dials.iter().enumerate() {
            by_net.entry(dial.from.net.id()).or_default().push(index);
        }
        let mut opened: BTreeMap<usize, io::Result<Opened>> = BTreeMap::new();
        for indices in by_net.into_values() {
            let Some(net) = indices.first().and_then(|index| dials.get(*index)).map(|dial| &dial.from.net) else {
                continue;
            };
            let mut plain = Vec::new();
            for index in indices {
                let Some(dial) = dials.get(index) else { continue };
                match dial.transport {
                    Transport::Tcp | Transport::Udp | Transport::Packet(_) => {
                        plain.push((index, dial.transport, dial.from.address));
                    }
                    Transport::Sctp | Transport::Ping => {
                        let raw = self.raw(&dial.from, dial.transport).await?;
                        opened.insert(index, Ok(Opened::Raw(raw)));
                    }
                }
            }
            let made = on(net, move || {
                let open = |(index, transport, from)| (index, caller(transport, from));
                plain.into_iter().map(open).collect::<Vec<(usize, io::Result<Opened>)>>()
            });
            opened.extend(made.await?);
        }
        let slots = Arc::new(Semaphore::new(AT_ONCE));
        let mut calls = JoinSet::new();
        for (index, socket) in opened {
            let Some(dial) = dials.get(index) else { continue };
            let (dial, slots, arrivals) = (dial.clone(), Arc::clone(&slots), Arc::clone(&self.arrivals));
            calls.spawn(async move {
                let _slot = slots.acquire().await;
                let answer = match socket {
                    Err(error) => Answer::Failed(error),
                    Ok(socket) => match timeout(dial.patience, call(socket, &dial, &arrivals)).await {
                        Ok(Ok(answer)) => answer,
                        Ok(Err(error)) => Answer::of(error),
                        Err(_elapsed) => Answer::Silent,
                    },
                };
                (index, answer)
            });
        }
        let mut answers = BTreeMap::new();
        while let Some(done) = calls.join_next().await {
            let (index, answer) = done?;
            answers.insert(index, answer);
        }
        Ok(answers.into_values().collect())
    }

    /// Opens a TCP connection that stays open.
    ///
    /// # Errors
    /// What came instead of an answer.
    pub async fn hold(&self, dial: &Dial) -> Result<Held, Answer> {
        let from = dial.from.address;
        let made = on(&dial.from.net, move || caller(Transport::Tcp, from)).await;
        let socket = match made {
            Ok(Ok(Opened::Tcp(socket))) => socket,
            Ok(Ok(_)) => return Err(Answer::Failed(io::ErrorKind::InvalidInput.into())),
            Ok(Err(error)) => return Err(Answer::Failed(error)),
            Err(error) => return Err(Answer::Failed(io::Error::other(error))),
        };
        let open = async {
            let mut stream = socket.connect(SocketAddr::new(dial.to, dial.port)).await?;
            Ok((talk::talk(&mut stream, &dial.ask).await?, stream))
        };
        match timeout(dial.patience, open).await {
            Ok(Ok((Answer::Answered, stream))) => Ok(Held { stream, opened: dial.ask.clone() }),
            Ok(Ok((other, _))) => Err(other),
            Ok(Err(error)) => Err(Answer::of(error)),
            Err(_elapsed) => Err(Answer::Silent),
        }
    }
}

/// Runs `work` in a namespace, away from the runtime's threads.
async fn on<T: Send + 'static>(net: &Namespace, work: impl FnOnce() -> T + Send + 'static) -> Result<T, ProberError> {
    let net = net.clone();
    Ok(tokio::task::spawn_blocking(move || net.run(work)).await??)
}

enum Listening {
    Tcp(std::net::TcpListener),
    Udp(std::net::UdpSocket),
    Tap(std::os::fd::OwnedFd),
    Raw,
}

fn listen(transport: Transport, at: SocketAddr) -> io::Result<Listening> {
    match transport {
        Transport::Tcp => {
            let socket = std::net::TcpListener::bind(at)?;
            socket.set_nonblocking(true)?;
            Ok(Listening::Tcp(socket))
        }
        Transport::Udp => {
            let socket = std::net::UdpSocket::bind(at)?;
            socket.set_nonblocking(true)?;
            // Where it may not be larger, it is as large as ever.
            let _as_ever = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVED);
            Ok(Listening::Udp(socket))
        }
        Transport::Packet(_) => Ok(Listening::Tap(packet::tap()?)),
        Transport::Sctp | Transport::Ping => Ok(Listening::Raw),
    }
}

fn caller(transport: Transport, from: IpAddr) -> io::Result<Opened> {
    if let Transport::Packet(_) = transport {
        return Ok(Opened::Packet(packet::sender(from)?));
    }
    let any_port = SocketAddr::new(from, 0);
    if transport == Transport::Udp {
        let socket = std::net::UdpSocket::bind(any_port)?;
        socket.set_nonblocking(true)?;
        return Ok(Opened::Udp(socket));
    }
    let socket = if from.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(any_port)?;
    Ok(Opened::Tcp(socket))
}

async fn call(socket: Opened, dial: &Dial, arrivals: &Arrivals) -> io::Result<Answer> {
    let to = SocketAddr::new(dial.to, dial.port);
    match socket {
        Opened::Tcp(socket) => {
            let mut stream = socket.connect(to).await?;
            talk::talk(&mut stream, &dial.ask).await
        }
        Opened::Udp(socket) => {
            let socket = UdpSocket::from_std(socket)?;
            socket.connect(to).await?;
            exchange(&socket, &dial.ask).await
        }
        Opened::Packet(socket) => {
            let Transport::Packet(protocol) = dial.transport else { return Err(io::ErrorKind::InvalidInput.into()) };
            packet::call(socket, dial.from.address, protocol, to, arrivals).await.map(|()| Answer::Answered)
        }
        Opened::Raw(raw) => {
            let mut wait = RETRY;
            let mut waiting = raw.call()?;
            loop {
                raw.send(to, waiting.id).await?;
                if timeout(wait, &mut waiting.answer).await.is_ok() {
                    return Ok(Answer::Answered);
                }
                wait *= 2;
            }
        }
    }
}

/// Sends a datagram until it is answered.
async fn exchange(socket: &UdpSocket, ask: &Ask) -> io::Result<Answer> {
    let asked = match ask {
        Ask::Dns { name, kind } => Some(dns::question(socket.local_addr()?.port(), name, *kind)?),
        _ => None,
    };
    let (mut wait, mut buffer) = (RETRY, [0; 512]);
    loop {
        socket.send(asked.as_deref().unwrap_or(&[talk::ECHO])).await?;
        if let Ok(received) = timeout(wait, socket.recv(&mut buffer)).await {
            let answer = buffer.get(..received?).unwrap_or_default();
            return match &asked {
                None => Ok(Answer::Answered),
                Some(asked) => talk::dns_answer(answer, asked).ok_or_else(|| io::ErrorKind::InvalidData.into()),
            };
        }
        wait *= 2;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
