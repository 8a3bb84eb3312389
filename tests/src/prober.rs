//! Serves and dials from any address of any network namespace, with real packets, out of one process.
//!
//! A socket belongs to the namespace in which it was made, whoever uses it later. So a short-lived thread makes the
//! sockets of a namespace, and one runtime serves them all: a thousand probes from a hundred pods cost a hundred threads of
//! 60 microseconds and one poll loop.
//!
//! TCP servers greet and then echo; UDP servers echo; SCTP is spoken over raw sockets, INIT and INIT-ACK, because it must be
//! probed on kernels without SCTP too; ICMP echo requests are answered by the kernel.

mod raw;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sluice_hostnet::netns::{Namespace, NamespaceError, NamespaceId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use raw::Raw;

/// What a TCP server says first.
const GREETING: &[u8] = b"sluice\n";
/// Connections that one server holds at once; more wait in the kernel's queue.
const HELD: usize = 1024;
/// The first wait before a datagram or an INIT is sent again; it doubles.
const RETRY: Duration = Duration::from_millis(100);
/// Probes that are on their way at once.
const AT_ONCE: usize = 4096;

/// A way to talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP: a connection, and a greeting on it.
    Tcp,
    /// UDP: a datagram, and its echo.
    Udp,
    /// SCTP: an INIT, and its INIT-ACK.
    Sctp,
    /// ICMP or ICMPv6 echo request and reply, as the addresses are.
    Ping,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Ping => "ping",
        })
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
    /// How long an answer is waited for.
    pub patience: Duration,
}

/// What came of a probe.
#[derive(Debug)]
pub enum Answer {
    /// It was answered: packets pass in both directions.
    Answered,
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
pub struct Held(TcpStream);

impl Held {
    /// Sends a byte and waits for its echo: the connection lives.
    pub async fn poke(&mut self, patience: Duration) -> Answer {
        let exchange = async {
            self.0.write_all(b"?").await?;
            let mut byte = [0];
            self.0.read_exact(&mut byte).await.map(drop)
        };
        match timeout(patience, exchange).await {
            Ok(Ok(())) => Answer::Answered,
            Ok(Err(error)) => Answer::of(error),
            Err(_elapsed) => Answer::Silent,
        }
    }
}

enum Opened {
    Tcp(TcpSocket),
    Udp(std::net::UdpSocket),
    Raw(Arc<Raw>),
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
                let task = match socket {
                    Listening::Tcp(socket) => Some(tokio::spawn(greet(TcpListener::from_std(socket).map_err(broken)?))),
                    Listening::Udp(socket) => Some(tokio::spawn(echo(UdpSocket::from_std(socket).map_err(broken)?))),
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

    /// Forgets all servers and raw sockets of a namespace that goes.
    pub fn forget(&self, net: &Namespace) {
        let id = net.id();
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
                    Transport::Tcp | Transport::Udp => plain.push((index, dial.transport, dial.from.address)),
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
            let (to, patience, slots) = (SocketAddr::new(dial.to, dial.port), dial.patience, Arc::clone(&slots));
            calls.spawn(async move {
                let _slot = slots.acquire().await;
                let answer = match socket {
                    Err(error) => Answer::Failed(error),
                    Ok(socket) => match timeout(patience, call(socket, to)).await {
                        Ok(Ok(())) => Answer::Answered,
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
    /// What came instead of the greeting.
    pub async fn hold(&self, dial: &Dial) -> Result<Held, Answer> {
        let from = dial.from.address;
        let made = on(&dial.from.net, move || caller(Transport::Tcp, from)).await;
        let socket = match made {
            Ok(Ok(Opened::Tcp(socket))) => socket,
            Ok(Ok(_)) => return Err(Answer::Failed(io::ErrorKind::InvalidInput.into())),
            Ok(Err(error)) => return Err(Answer::Failed(error)),
            Err(error) => return Err(Answer::Failed(io::Error::other(error))),
        };
        match timeout(dial.patience, connect(socket, SocketAddr::new(dial.to, dial.port))).await {
            Ok(Ok(stream)) => Ok(Held(stream)),
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
            Ok(Listening::Udp(socket))
        }
        Transport::Sctp | Transport::Ping => Ok(Listening::Raw),
    }
}

fn caller(transport: Transport, from: IpAddr) -> io::Result<Opened> {
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

async fn call(socket: Opened, to: SocketAddr) -> io::Result<()> {
    match socket {
        Opened::Tcp(socket) => connect(socket, to).await.map(drop),
        Opened::Udp(socket) => {
            let socket = UdpSocket::from_std(socket)?;
            socket.connect(to).await?;
            let (mut wait, mut byte) = (RETRY, [0]);
            loop {
                socket.send(b"?").await?;
                if let Ok(received) = timeout(wait, socket.recv(&mut byte)).await {
                    return received.map(drop);
                }
                wait *= 2;
            }
        }
        Opened::Raw(raw) => {
            let mut wait = RETRY;
            let mut waiting = raw.call()?;
            loop {
                raw.send(to, waiting.id).await?;
                if timeout(wait, &mut waiting.answer).await.is_ok() {
                    return Ok(());
                }
                wait *= 2;
            }
        }
    }
}

async fn connect(socket: TcpSocket, to: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = socket.connect(to).await?;
    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting).await?;
    if greeting == GREETING { Ok(stream) } else { Err(io::ErrorKind::InvalidData.into()) }
}

async fn greet(listener: TcpListener) {
    let slots = Arc::new(Semaphore::new(HELD));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        // Out of descriptors, or a client that is gone already: the next one may do better.
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        drop(tokio::spawn(async move {
            let mut buffer = [0; 64];
            let mut said = stream.write_all(GREETING).await;
            while said.is_ok() {
                said = match stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(length) => stream.write_all(buffer.get(..length).unwrap_or_default()).await,
                };
            }
            drop(slot);
        }));
    }
}

async fn echo(socket: UdpSocket) {
    let mut buffer = [0; 64];
    loop {
        // An ICMP error of an earlier answer shows up here.
        if let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            // A full queue loses datagrams; clients ask again.
            let _lost = socket.send_to(buffer.get(..length).unwrap_or_default(), peer).await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
