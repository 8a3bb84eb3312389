//! What the connections of one worker thread share: where rules come from, where records go, how servers are reached, and
//! limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::connect::Connect;
use crate::connections::Connections;
use crate::flow::Flow;
use crate::policy::{Looks, Policy, Rules};
use crate::record::Recorder;
use crate::session::Session;
use crate::{http, relay, tls};

/// What a connection may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Octets of a request's or response's head, its first line included.
    pub head: usize,
    /// Header fields of a message; at most 512.
    pub fields: usize,
    /// From the first octet of a request's head, or of a ClientHello, to its last.
    pub head_time: Duration,
    /// Between two requests, while nothing is under way.
    pub idle: Duration,
    /// Without any octet of a body or of a response having moved, in either direction.
    pub stall: Duration,
    /// Until the first octet of a response.
    pub response: Duration,
    /// Until a server has accepted a connection.
    pub connect: Duration,
    /// Without any octet having moved on a connection that is not looked into.
    pub relay_idle: Duration,
    /// Between two requests, once connections are to end.
    pub leave: Duration,
    /// Octets of the body of a refused request that are read so that its connection can be kept.
    pub drain: u64,
    /// Connections of one pod.
    pub pod_connections: usize,
    /// Streams of one HTTP/2 connection at once.
    pub streams: u32,
    /// Octets of bodies under way on one HTTP/2 connection, each way.
    pub window: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: 64 << 10,
            fields: 128,
            head_time: Duration::from_secs(30),
            idle: Duration::from_secs(3600),
            stall: Duration::from_secs(300),
            response: Duration::from_secs(3600),
            connect: Duration::from_secs(10),
            relay_idle: Duration::from_secs(8000),
            leave: Duration::from_secs(2),
            drain: 256 << 10,
            pod_connections: 20_000,
            streams: 128,
            window: 1 << 20,
        }
    }
}

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $name:ident,)+) => {
        /// What has happened, since the start.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $help])+ pub $name: AtomicU64,)+
        }

        impl Counters {
            /// Name, meaning and value of each.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), concat!($($help),+).trim_ascii(), self.$name.load(Ordering::Relaxed)),)+].into_iter()
            }
        }
    };
}

counters! {
    /// Connections taken.
    connections,
    /// Connections reset because their pod had too many.
    pod_connections_exceeded,
    /// Connections reset because the gate refuses where they would go.
    connections_refused,
    /// HTTP requests that passed.
    requests_passed,
    /// HTTP requests refused by rules.
    requests_refused,
    /// HTTP requests that were malformed, or could be read in more than one way.
    requests_bad,
    /// HTTP requests for a path with escaped slashes, answered with where to ask for it without them.
    requests_moved,
    /// Connections whose rules are for HTTP or TLS and that spoke something else.
    other_protocols,
    /// Request heads with too many octets or fields.
    heads_too_large,
    /// Request heads and ClientHellos that took too long.
    heads_too_slow,
    /// Connections closed because nothing moved for too long.
    stalled,
    /// Connections to servers that could not be opened.
    connects_failed,
    /// Responses of servers that were malformed.
    responses_bad,
    /// HTTP/2 connections ended for abuse.
    http2_abuse,
    /// HTTP requests refused or stripped of an upgrade to HTTP/2.
    http2_upgrades_removed,
    /// TLS connections that passed.
    tls_passed,
    /// TLS connections refused by rules.
    tls_refused,
    /// ClientHellos that were malformed, or could be read in more than one way.
    tls_bad,
    /// TLS connections whose ClientHello has an encrypted part, so that the server's name may be another.
    tls_encrypted_hello,
}

impl Counters {
    /// The count of requests that are answered with this status without having been judged.
    pub(crate) const fn unjudged(&self, status: u16) -> &AtomicU64 {
        match status {
            307 => &self.requests_moved,
            431 => &self.heads_too_large,
            _ => &self.requests_bad,
        }
    }
}

/// One more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What the connections of one worker thread share.
#[derive(Debug)]
pub struct Engine<P, R, C> {
    pub(crate) policy: Arc<P>,
    pub(crate) recorder: Arc<R>,
    pub(crate) connect: Arc<C>,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<Counters>,
    pub(crate) connections: Arc<Connections>,
}

impl<P: Policy, R: Recorder, C: Connect> Engine<P, R, C> {
    /// An engine.
    #[must_use]
    pub const fn new(
        policy: Arc<P>,
        recorder: Arc<R>,
        connect: Arc<C>,
        limits: Limits,
        counters: Arc<Counters>,
        connections: Arc<Connections>,
    ) -> Self {
        Self { policy, recorder, connect, limits, counters, connections }
    }

    /// Serves a connection to its end. `rules` are those of the flow to [`Flow::server`] as of `version`, and do not look for
    /// DNS. The connection has `TCP_NODELAY`: nobody waits for more octets before these are sent.
    ///
    /// Everything that can go wrong ends in an answer to the client, a counter and a record.
    pub async fn serve(&self, client: TcpStream, flow: Flow, rules: Arc<Rules>, version: u64) {
        count(&self.counters.connections);
        let Some(place) = self.connections.take(flow, &rules, self.limits.pod_connections) else {
            count(&self.counters.pod_connections_exceeded);
            reset(&client);
            return;
        };
        let session = Session::new(self, flow, rules, version, place);
        match session.rules().looks {
            Looks::Http | Looks::HttpOrTls => http::serve(session, client).await,
            Looks::Tls => tls::serve(session, client, relay::Buffer::default()).await,
            Looks::Nothing | Looks::Dns => relay::serve(session, client).await,
        }
    }
}

/// Makes the end of a connection a reset, as that of its other half was.
pub(crate) fn reset(stream: &TcpStream) {
    // It fails on a closed socket only, which needs no reset.
    stream.set_zero_linger().ok();
}
