//! From the configuration to a running proxy and back: start, take-over, serving, drain.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use sluice_contract::node::GATE_DIR;
use sluice_daemon::log::ErrorChain;
use sluice_daemon::rpc::ListenError;
use sluice_hostnet::conntrack::ConntrackError;
use sluice_hostnet::netns::{Namespace, NamespaceError, NamespaceThread};
use sluice_policy_bpf::proxy::ProxyError;
use sluice_policy_bpf::reader::Reader;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config::Config;
use crate::dns::{self, Dns};
use crate::engine::Limits;
use crate::flow::Direction;
use crate::handover::Seat;
use crate::metrics::{Metrics, parts};
use crate::names::Names;
use crate::names::alone::{Alone, Pinned};
use crate::net::{Listeners, PlaceConfig, PlaceError, Places, Upstreams};
use crate::pages::{Pages, serve_pages};
use crate::policy::{Pushed, reader};
use crate::policyd::{Policyd, snapshot};
use crate::record::file::RecordFile;
use crate::record::ring::Ring;
use crate::worker::{Shared, work};

/// Between two attempts to find what policyd makes.
const AGAIN: Duration = Duration::from_millis(200);

/// How often it is looked whether something was taken away.
const REPAIR_EVERY: Duration = Duration::from_secs(30);

/// Why the proxy cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The namespaces, or the programs in them.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The programs do not take the listening sockets.
    #[error("the gates cannot be told where the proxy listens")]
    TakeOver(#[source] ProxyError),
    /// The listening sockets.
    #[error("the proxy cannot listen for {0} flows")]
    Listen(Direction, #[source] io::Error),
    /// Connection tracking.
    #[error("connection tracking cannot be asked for backends")]
    Conntrack(#[from] ConntrackError),
    /// A thread in a namespace.
    #[error("a worker cannot be started")]
    Thread(#[from] NamespaceError),
    /// The socket at which a process after this one tells that it has taken over.
    #[error("the next process cannot be listened for")]
    Seat(#[from] ListenError),
    /// A worker ended by itself.
    #[error("a worker for {0} flows did not come up, or has ended")]
    Worker(Direction),
}

/// A worker that runs.
struct Worker {
    direction: Direction,
    thread: Arc<NamespaceThread>,
}

/// Runs the proxy until `shutdown` resolves, then lets connections end by themselves for as long as the configuration says.
///
/// # Errors
/// [`RunError`].
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    tokio::pin!(shutdown);
    let config = Arc::new(config);
    let ring = Arc::new(Ring::new(config.records, 2 * config.workers));
    let snapshot = snapshot(&config.snapshot());
    let policy = Arc::new(Pushed::<Reader>::new(&snapshot));
    let maps = Box::new(Pinned::new(GATE_DIR.into()));
    let (names, link) = Names::new(Some(Alone::new(maps, config.names())));
    let name_counters = names.counters();
    let dns_limits = dns::Limits { refusal: config.dns_refusal, ..dns::Limits::default() };
    let dns = Dns::new(Arc::clone(&policy), Arc::clone(&ring), names, dns_limits);
    let shared = Arc::new(Shared {
        policy: Arc::clone(&policy),
        recorder: Arc::clone(&ring),
        limits: Limits { pod_connections: config.pod_connections, ..Limits::default() },
        counters: Arc::default(),
        connections: Arc::default(),
        flows: Arc::default(),
        dns,
    });
    let policyd = Policyd::new(config.socket(), Arc::clone(&policy), || reader::open(GATE_DIR.as_ref()), link)
        .with_records(Arc::clone(&ring));
    policyd.begin_with(&snapshot.names);
    let metrics = Arc::new(Metrics::new(
        Arc::clone(&ring),
        Arc::clone(&policy),
        policyd.status(),
        Arc::clone(&shared.flows),
        parts(Arc::clone(&shared.counters), shared.dns.counters(), name_counters),
    ));
    let mut background = JoinSet::new();
    if let Some(path) = &config.records_file {
        let file = RecordFile::new(path.clone(), config.records_file_size);
        metrics.set_file(file.lost());
        background.spawn(file.follow(Arc::clone(&ring)));
    }
    let status = policyd.status();
    background.spawn(policyd.follow());
    let pages = Pages {
        config: Arc::clone(&config),
        ring: Arc::clone(&ring),
        policy: Arc::clone(&policy),
        status,
        connections: Arc::clone(&shared.connections),
        flows: Arc::clone(&shared.flows),
        metrics: Arc::clone(&metrics),
    };
    let mut ports = JoinSet::new();
    ports.spawn(serve_pages(pages.clone()));
    let place = PlaceConfig { directory: config.namespaces(), gate: GATE_DIR.into(), mtu: config.mtu };
    let places = tokio::select! {
        places = ensure(&place) => places?,
        () = &mut shutdown => return Ok(()),
    };
    let (stop, stops) = watch::channel(false);
    let (mut workers, ended) = start(&config, &shared, places, &stops, &place, &mut background).await?;
    let seat = Seat::take(&config.seat()).await?;
    // The process before has left them, so that nobody has to wait until they are tried again.
    ports.shutdown().await;
    ports.spawn(serve_pages(pages));
    metrics.set_serving(true);
    tracing::info!(workers = config.workers, "what gates redirect is served");
    let successor = tokio::select! {
        () = &mut shutdown => None,
        successor = seat.taken() => Some(successor),
        direction = first(ended) => {
            drop(workers);
            return Err(RunError::Worker(direction));
        }
    };
    metrics.set_serving(false);
    stop.send_replace(true);
    shared.connections.end();
    // Whoever comes next needs the ports, and looks after the namespaces.
    ports.shutdown().await;
    if let Some(successor) = successor {
        tracing::info!("another process has taken over; what is open ends here");
        drop(successor);
        shutdown.await;
    }
    drain(&config, &shared, &mut workers).await;
    background.shutdown().await;
    Ok(())
}

/// Makes the namespaces, as soon as policyd has made its maps.
async fn ensure(config: &PlaceConfig) -> Result<Places, PlaceError> {
    let mut said = false;
    loop {
        match Places::ensure(config).await {
            Err(PlaceError::Programs(error @ ProxyError::NoMap { .. })) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(error = %ErrorChain(&error), "policyd has not made its maps; waiting");
                }
                tokio::time::sleep(AGAIN).await;
            }
            places => return places,
        }
    }
}

type Ends = Vec<(Direction, oneshot::Receiver<()>)>;

/// Starts the workers, and takes over from a process before once all of them accept.
async fn start(
    config: &Config,
    shared: &Arc<Shared<Pushed<Reader>, Ring>>,
    mut places: Places,
    stops: &watch::Receiver<bool>,
    place: &PlaceConfig,
    background: &mut JoinSet<()>,
) -> Result<(Vec<Worker>, Ends), RunError> {
    let host = Namespace::current()?;
    let (mut workers, mut ends) = (Vec::new(), Vec::new());
    for direction in [Direction::Ingress, Direction::Egress] {
        let of = places.of(direction).clone();
        let listeners = Listeners::open(&of, config.workers).map_err(|error| RunError::Listen(direction, error))?;
        let upstreams = Upstreams::of_workers(direction, &host, config.workers)?;
        let stand_in = match listeners.first() {
            Some(first) => Some(stand_in(first).map_err(|error| RunError::Listen(direction, error))?),
            None => None,
        };
        for (number, (listeners, upstreams)) in listeners.into_iter().zip(upstreams).enumerate() {
            let thread = Arc::new(of.thread(format!("{direction}-{number}"))?);
            let (accepting, accepts) = oneshot::channel();
            let (end, ended) = oneshot::channel();
            let (shared, stops, on) = (Arc::clone(shared), stops.clone(), Arc::clone(&thread));
            background.spawn(async move {
                match on.run(move || work(shared, listeners, upstreams, stops, accepting)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::error!(direction = %direction, error = %error, "a worker has ended"),
                    Err(error) => {
                        tracing::error!(direction = %direction, error = %ErrorChain(&error), "a worker has died");
                    }
                }
                // Whoever waits may have gone.
                let _told = end.send(());
            });
            accepts.await.map_err(|_gone| RunError::Worker(direction))?;
            workers.push(Worker { direction, thread });
            ends.push((direction, ended));
        }
        if let Some(stand_in) = stand_in {
            places.take_over(&stand_in).map_err(RunError::TakeOver)?;
        }
    }
    let place = place.clone();
    let stops = stops.clone();
    let (renew, renewed) = oneshot::channel();
    ends.push((Direction::Egress, renewed));
    background.spawn(async move {
        let mut stops = stops;
        loop {
            if timeout(REPAIR_EVERY, stops.wait_for(|stops| *stops)).await.is_ok() {
                // The process after this one looks after them.
                return std::future::pending().await;
            }
            match places.repair(&place).await {
                Ok(renewed) if renewed.is_empty() => {}
                Ok(_) => {
                    tracing::error!(
                        "a namespace of the proxy was taken away: its sockets are gone, and it begins anew"
                    );
                    let _told = renew.send(());
                    return;
                }
                Err(error) => {
                    tracing::error!(error = %ErrorChain(&error), "the proxy's namespaces could not be looked after");
                }
            }
        }
    });
    Ok((workers, ends))
}

/// The same sockets once more: the programs are told of them when their worker has them already.
fn stand_in(listeners: &Listeners) -> io::Result<Listeners> {
    Ok(Listeners {
        direction: listeners.direction,
        tcp: listeners.tcp.try_clone()?,
        udp: listeners.udp.try_clone()?,
        udp_v6: listeners.udp_v6.as_ref().map(std::net::UdpSocket::try_clone).transpose()?,
    })
}

/// The direction of the first worker that ends.
async fn first(ends: Ends) -> Direction {
    let mut all = JoinSet::new();
    for (direction, ended) in ends {
        all.spawn(async move {
            let _ended = ended.await;
            direction
        });
    }
    match all.join_next().await {
        Some(Ok(direction)) => direction,
        _ => std::future::pending().await,
    }
}

/// Accepts nothing more, and waits for what is open.
async fn drain(config: &Config, shared: &Shared<Pushed<Reader>, Ring>, workers: &mut Vec<Worker>) {
    use std::sync::atomic::Ordering;
    let open = || shared.flows.open.load(Ordering::Relaxed);
    tracing::info!(open = open(), "draining");
    let quiet = async {
        // Longer than a worker takes until it accepts nothing more.
        tokio::time::sleep(Duration::from_millis(500)).await;
        while open() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    if timeout(config.drain, quiet).await.is_err() {
        tracing::warn!(open = open(), "connections were still open at the end");
    }
    let threads: Vec<Worker> = std::mem::take(workers);
    for Worker { direction, thread } in threads {
        tracing::debug!(direction = %direction, "a worker ends");
        drop(thread);
    }
}
