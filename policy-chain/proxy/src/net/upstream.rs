//! Connections to servers, in their clients' names.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{SockType, setsockopt, sockopt};
use sluice_hostnet::conntrack::{ConntrackError, Lookup, Tuple};
use sluice_hostnet::netns::Namespace;
use tokio::net::TcpSocket;
use tokio::time::Instant;

use super::sys::{bind_to, cookie, disconnect, family, transparent};
use crate::connect::{Connect, Upstream};
use crate::flow::{Direction, Flow, Protocol};

/// How long a four-tuple that is still in use is waited for: what is left of a connection that both sides have closed goes
/// within a second (`tcp_tw_reuse`).
const TAKEN: Duration = Duration::from_secs(3);
/// Between two attempts, the first time; twice as long each time after.
const PAUSE: Duration = Duration::from_millis(1);
/// Below so many known connections, nobody looks for those that are gone.
const KNOWN: usize = 1024;

/// A connection that may still live. The descriptor is its owner's, who may close it at any time.
#[derive(Debug, Clone, Copy)]
struct Live {
    socket: RawFd,
    cookie: u64,
}

/// The connections of one worker, by client and server.
#[derive(Debug, Default)]
struct Known {
    live: HashMap<(SocketAddr, SocketAddr), Live>,
    /// Beyond so many, those that are gone are looked for.
    limit: usize,
}

impl Known {
    /// Resets what still lives of an older connection of this four-tuple: its client has begun anew.
    fn abort(&mut self, key: &(SocketAddr, SocketAddr)) {
        let Some(live) = self.live.remove(key) else { return };
        if cookie(live.socket) == Some(live.cookie)
            && let Err(error) = disconnect(live.socket)
        {
            tracing::debug!(client = %key.0, server = %key.1, %error, "cannot reset an older connection to the server");
        }
    }

    fn insert(&mut self, key: (SocketAddr, SocketAddr), socket: RawFd) {
        let Some(cookie) = cookie(socket) else { return };
        self.live.insert(key, Live { socket, cookie });
        if self.live.len() > self.limit.max(KNOWN) {
            self.live.retain(|_, live| self::cookie(live.socket) == Some(live.cookie));
            self.limit = self.live.len().saturating_mul(2);
        }
    }
}

/// Opens connections to servers; one a worker, because a four-tuple always comes to the same one. Used on its thread, which
/// lives in the direction's namespace.
#[derive(Debug)]
pub struct Upstreams {
    direction: Direction,
    known: Mutex<Known>,
    /// None: nothing translates, as for ingress flows, whose server is the pod itself.
    lookup: Option<Mutex<Lookup>>,
}

impl Upstreams {
    /// For a worker of a direction; `host` is the namespace in which the service proxy translates.
    ///
    /// # Errors
    /// There is no ctnetlink socket.
    pub fn new(direction: Direction, host: &Namespace) -> Result<Self, ConntrackError> {
        let lookup = match direction {
            Direction::Egress => Some(Mutex::new(Lookup::open(host)?)),
            Direction::Ingress => None,
        };
        Ok(Self { direction, known: Mutex::default(), lookup })
    }

    /// Those of several workers.
    ///
    /// # Errors
    /// As [`Upstreams::new`].
    pub fn of_workers(
        direction: Direction,
        host: &Namespace,
        workers: usize,
    ) -> Result<Vec<Arc<Self>>, ConntrackError> {
        (0..workers).map(|_| Self::new(direction, host).map(Arc::new)).collect()
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A socket in the client's name, not yet connected.
    fn socket(client: SocketAddr, server: SocketAddr) -> io::Result<TcpSocket> {
        let socket = transparent(family(server), SockType::Stream)?;
        // Beside a listener or another connection that has this port.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        setsockopt(&socket, sockopt::ReusePort, &true)?;
        bind_to(&socket, client)?;
        Ok(TcpSocket::from_std_stream(socket.into()))
    }

    async fn open(&self, flow: &Flow) -> io::Result<tokio::net::TcpStream> {
        let key = (flow.client, flow.server);
        let deadline = Instant::now() + TAKEN;
        let mut pause = PAUSE;
        loop {
            self.known().abort(&key);
            let socket = match Self::socket(flow.client, flow.server) {
                Ok(socket) => socket,
                Err(error) if is_taken(&error) && Instant::now() < deadline => {
                    tokio::time::sleep(pause).await;
                    pause = pause.saturating_mul(2);
                    continue;
                }
                Err(error) => return Err(error),
            };
            // While it opens, too, its client may begin anew.
            self.known().insert(key, socket.as_raw_fd());
            match socket.connect(flow.server).await {
                Err(error) if is_taken(&error) && Instant::now() < deadline => {
                    tokio::time::sleep(pause).await;
                    pause = pause.saturating_mul(2);
                }
                connected => return connected,
            }
        }
    }

    /// Where the service proxy sends the packets of a connection.
    fn backend(&self, flow: &Flow) -> io::Result<SocketAddr> {
        let Some(lookup) = &self.lookup else { return Ok(flow.server) };
        let original = Tuple {
            source: flow.client.ip(),
            destination: flow.server.ip(),
            protocol: Protocol::TCP.0,
            source_port: flow.client.port(),
            destination_port: flow.server.port(),
        };
        let found = lookup.lock().unwrap_or_else(PoisonError::into_inner).flow(&original);
        match found.map_err(io::Error::other)? {
            Some(found) => Ok(SocketAddr::new(found.reply.source, found.reply.source_port)),
            // What is not tracked is not translated.
            None => Ok(flow.server),
        }
    }
}

impl Connect for Upstreams {
    async fn connect(&self, flow: &Flow) -> io::Result<Upstream> {
        if flow.direction != self.direction {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a flow of the other direction"));
        }
        let stream = self.open(flow).await?;
        stream.set_nodelay(true)?;
        let backend = self.backend(flow)?;
        Ok(Upstream { stream, backend })
    }
}

/// Whether the four-tuple is still in use.
fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse)
}
