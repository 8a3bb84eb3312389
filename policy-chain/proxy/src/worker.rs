//! A worker: a thread in the namespace of a direction that takes flows and serves them to their ends.

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use sluice_daemon::log::ErrorChain;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_local};
use tokio::time::timeout;

use crate::connections::Connections;
use crate::dns::Dns;
use crate::engine::{Counters, Engine, Limits};
use crate::flow::{Flow, Protocol};
use crate::net::{Acceptor, Datagrams, Listeners, Upstreams, splice};
use crate::policy::{Looks, Policy};
use crate::record::{Kind, Record, Recorder};

/// After an accept(2) that failed, as without file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Once a worker is to end: when nothing has come for so long, a process after this one has taken over, or nobody asks.
const QUIET: Duration = Duration::from_millis(200);

/// And how long that is waited for at most.
const QUIET_LATEST: Duration = Duration::from_secs(2);

/// What all workers share.
#[derive(Debug)]
pub struct Shared<P, R> {
    /// Where rules come from.
    pub policy: Arc<P>,
    /// Where records go.
    pub recorder: Arc<R>,
    /// Questions to DNS servers.
    pub dns: Dns<P, R>,
    /// What a connection may take.
    pub limits: Limits,
    /// What happens on connections.
    pub counters: Arc<Counters>,
    /// Those that are open.
    pub connections: Arc<Connections>,
    /// What happens to flows before anything is read of them.
    pub flows: Arc<Flows>,
}

/// What happens to flows before anything is read of them, since the start.
#[derive(Debug, Default)]
pub struct Flows {
    /// Connections that are open.
    pub open: AtomicUsize,
    /// Connections reset because no rules were found for them, or a gate denies them.
    pub refused: AtomicU64,
    /// Of these: policyd had not told what their decision means, or whose endpoint it is.
    pub unsettled: AtomicU64,
    /// Connections that could not be accepted.
    pub not_accepted: AtomicU64,
}

/// Serves until `stop` is set and every connection has ended, or for as long as it is polled. `accepting` is told when the
/// worker takes what comes. To be run on a thread of the direction's namespace, in a `LocalSet`.
///
/// # Errors
/// The listening sockets cannot be used.
pub async fn work<P: Policy, R: Recorder>(
    shared: Arc<Shared<P, R>>,
    listeners: Listeners,
    upstreams: Arc<Upstreams>,
    mut stop: watch::Receiver<bool>,
    accepting: tokio::sync::oneshot::Sender<()>,
) -> io::Result<()> {
    let Listeners { direction, tcp, udp, udp_v6 } = listeners;
    let acceptor = Acceptor::new(direction, tcp)?;
    let engine = Arc::new(Engine::new(
        Arc::clone(&shared.policy),
        Arc::clone(&shared.recorder),
        Arc::clone(&upstreams),
        shared.limits.clone(),
        Arc::clone(&shared.counters),
        Arc::clone(&shared.connections),
    ));
    let datagrams: Vec<UdpSocket> = std::iter::once(udp).chain(udp_v6).collect();
    let answering = {
        let shared = Arc::clone(&shared);
        spawn_local(async move {
            if let Err(error) = shared.dns.serve_datagrams(datagrams, Datagrams).await {
                tracing::error!(direction = %direction, error = %error, "DNS over UDP is not served");
            }
        })
    };
    // Whoever waits may have gone.
    let _told = accepting.send(());
    let mut open = JoinSet::new();
    let begin = |(client, flow): (TcpStream, Flow), open: &mut JoinSet<()>| {
        let (shared, engine, upstreams) = (Arc::clone(&shared), Arc::clone(&engine), Arc::clone(&upstreams));
        shared.flows.open.fetch_add(1, Ordering::Relaxed);
        open.spawn_local(async move {
            serve(&shared, &engine, &upstreams, client, flow).await;
            shared.flows.open.fetch_sub(1, Ordering::Relaxed);
        });
    };
    while !*stop.borrow() {
        tokio::select! {
            accepted = acceptor.accept() => match accepted {
                Ok(accepted) => begin(accepted, &mut open),
                Err(error) => {
                    shared.flows.not_accepted.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(error = %error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            },
            Some(_ended) = open.join_next(), if !open.is_empty() => {}
            changed = stop.changed() => if changed.is_err() { break },
        }
    }
    let latest = tokio::time::Instant::now() + QUIET_LATEST;
    while tokio::time::Instant::now() < latest {
        match timeout(QUIET, acceptor.accept()).await {
            Ok(Ok(accepted)) => begin(accepted, &mut open),
            Ok(Err(_)) => tokio::time::sleep(ACCEPT_AGAIN).await,
            Err(_quiet) => break,
        }
    }
    drop(acceptor);
    while open.join_next().await.is_some() {}
    answering.abort();
    Ok(())
}

async fn serve<P: Policy, R: Recorder>(
    shared: &Shared<P, R>,
    engine: &Engine<P, R, Upstreams>,
    upstreams: &Upstreams,
    client: TcpStream,
    flow: Flow,
) {
    let version = shared.policy.version();
    match shared.policy.settled(&flow, Protocol::TCP, flow.server).await {
        Ok(rules) if rules.looks == Looks::Dns => {
            if let Err(error) = shared.dns.serve_stream(upstreams, client, flow).await {
                tracing::debug!(flow = %flow, error = %ErrorChain(&error), "a DNS connection has ended");
            }
        }
        Ok(rules) => engine.serve(client, flow, rules, version).await,
        Err(refused) => {
            shared.flows.refused.fetch_add(1, Ordering::Relaxed);
            if refused.may_settle() {
                shared.flows.unsettled.fetch_add(1, Ordering::Relaxed);
            }
            splice::reset(client);
            shared.recorder.record(Record {
                flow,
                backend: None,
                pod: None,
                time: std::time::SystemTime::now(),
                kind: Kind::Connection,
                passes: false,
                rule: None,
                reason: refused.to_string().into(),
                would_pass: None,
                latency: Duration::ZERO,
                bytes: (0, 0),
            });
        }
    }
}
