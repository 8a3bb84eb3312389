//! From the configuration to a running daemon and back: start, serving, graceful stop.

use std::collections::BTreeMap;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_contract::id::PodRef;
use sluice_daemon::lock::{LockError, only_one};
use sluice_daemon::rpc::{ListenError, Server, listen};
use sluice_daemon::tombstones::Tombstones;
use sluice_ipamd_core::checkpoint::{Checkpoint, CheckpointError};
use sluice_ipamd_core::ledger::Owner;
use sluice_ipamd_core::recover::{Finding, Recovered, recover};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::cloud::Cloud;
use crate::cluster::{Cluster, REPORT_LIMIT, Report, TOLD_LIMIT};
use crate::config::Config;
use crate::daemon::{Daemon, Parts, Start};
use crate::executor::{Backoff, Executor, Random};
use crate::http::{Pages, Stage, serve_health, serve_introspection, serve_metrics};
use crate::inbox::{Handle, Input, SOFTWARE};
use crate::kernel::{Kernel, Pods};
use crate::log::ErrorChain;
use crate::metrics::Metrics;
use crate::rpc::Plugins;
use crate::store::{Store, StoreError};
use crate::takeover::AwsNode;

/// Why the daemon could not start, or did not go on. Once it runs, nothing but a stop or a fault of its own ends it.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The directory of the runtime state cannot be used.
    #[error("the directory of the runtime state cannot be used")]
    Store(#[from] StoreError),
    /// Another ipamd runs on this node, or that cannot be told.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The socket cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The daemon's loop has ended by itself.
    #[error("the daemon's loop has ended by itself")]
    Died(#[source] Option<tokio::task::JoinError>),
}

/// Runs ipamd until `shutdown` resolves; then stops accepting, hears calls under way out, writes the last checkpoint and
/// returns.
///
/// While the AWS VPC CNI's daemon serves the node, it waits; health is served meanwhile. Serving starts from the checkpoint, before IMDS
/// or EC2 have been asked; both are tried for ever.
///
/// # Errors
/// [`RunError`] when the daemon cannot start (its directory, its lock or its socket cannot be had), and
/// [`RunError::Died`] after a fault of its own.
pub async fn run<C: Cloud, K: Kernel>(
    config: Config,
    cloud: C,
    kernel: K,
    cluster: impl Cluster,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), RunError> {
    let clock = Clock::system();
    for variable in &config.without_effect {
        tracing::warn!(variable, "this setting is known and has no effect yet");
    }
    let store = Store::new(config.checkpoint());
    store.prepare()?;
    tokio::pin!(shutdown);
    let lock_path = config.run_dir.join("ipamd.lock");
    let lock = tokio::select! {
        lock = only_one(SOFTWARE, &lock_path) => lock?,
        () = &mut shutdown => {
            ended(Instant::now());
            return Ok(());
        }
    };
    let aws_node = AwsNode::new(config.aws_node_file.clone());
    let (stage, stages) = watch::channel(if aws_node.serves().await { Stage::AwsNode } else { Stage::Starting });
    let health = AbortOnDrop(tokio::spawn(serve_health(config.health_address, stages)));
    tokio::select! {
        () = aws_node.has_gone() => stage.send_replace(Stage::Starting),
        () = &mut shutdown => {
            ended(Instant::now());
            return Ok(());
        }
    };
    let begun = Instant::now();
    let listener = listen(&config.socket())?;
    // Plugins that connect from here on wait in the socket's queue.
    let seed = random_seed();
    let (handle, inputs) = Handle::new();
    let mut metrics = Metrics::new();
    cluster.register(metrics.registry());
    let metrics = Arc::new(metrics);
    let (reports, reported) = mpsc::channel(REPORT_LIMIT);
    let (parts, begin) = tokio::select! {
        begun = start(config.clone(), clock, cloud, kernel, Arc::clone(&metrics), reports, seed) => begun,
        () = &mut shutdown => {
            ended(Instant::now());
            return Ok(());
        }
    };
    let cluster = tokio::spawn(hear(cluster, handle.clone(), reported));
    let pages = Pages { handle: handle.clone(), metrics: Arc::clone(&metrics) };
    let counts = Arc::clone(&metrics);
    stage.send_replace(Stage::Running(handle.clone()));
    let server = Server::new(Plugins { handle, metrics }, config.max_waiting, config.add_deadline);
    let (stop_server, server_stops) = oneshot::channel();
    let (stop_daemon, daemon_stops) = oneshot::channel::<()>();
    let grace = config.stop_grace + Duration::from_secs(1);
    let serving = tokio::spawn(server.serve(listener, server_stops, grace));
    counts.started(begun.elapsed());
    let pages = tokio::spawn(serve_pages(config, pages));
    let mut daemon = tokio::spawn(Daemon::new(parts, begin).run(inputs, async {
        // A sender that is gone means the same.
        let _stop = daemon_stops.await;
    }));
    tokio::select! {
        () = shutdown => {}
        ended = &mut daemon => {
            // Only a fault of ours ends it. The checkpoint has everything; whoever started us starts us again.
            return Err(RunError::Died(ended.err()));
        }
    }
    let begun = Instant::now();
    drop(stop_server);
    drop(stop_daemon);
    for (task, name) in [(daemon, "daemon"), (serving, "server")] {
        if let Err(error) = task.await {
            tracing::error!(task = name, error = %ErrorChain(&error), "a task ended badly");
        }
    }
    drop(health);
    pages.abort();
    cluster.abort();
    drop(lock);
    ended(begun);
    Ok(())
}

/// A task that ends with what started it.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The last line of the log, whenever the end came: what waits for it must not miss it.
fn ended(begun: Instant) {
    tracing::info!(took = ?begun.elapsed(), "ipamd has ended");
}

/// Everything that the loop needs, and the state that it starts with.
pub(crate) async fn start<C: Cloud, K: Kernel>(
    config: Config,
    clock: Clock,
    cloud: C,
    kernel: K,
    metrics: Arc<Metrics>,
    reports: mpsc::Sender<Report>,
    seed: u64,
) -> (Parts<C, K>, Start) {
    let mut random = Random::new(seed);
    let store = Store::new(config.checkpoint());
    let executor =
        Executor::new(Arc::new(cloud), Arc::clone(&metrics), config.ec2_rate, config.call_timeout, random.next());
    let pods = kernel_view(&kernel, &config.network.veth_prefix, &mut random).await;
    let served = config.ready_mark().exists();
    let aws_node = AwsNode::new(config.aws_node_file.clone());
    let start = recovered(&store, served, pods, &aws_node, random.next(), config.pool.cooldown, clock);
    let tombstones = Tombstones::new(config.tombstones());
    let parts = Parts {
        config,
        clock,
        executor: Arc::new(executor),
        kernel: Arc::new(kernel),
        metrics,
        reports,
        store,
        tombstones,
        seed: random.next(),
    };
    (parts, start)
}

/// What the kernel shows. Without it nothing can be served: an address could be alive.
async fn kernel_view<K: Kernel>(kernel: &K, veth_prefix: &str, random: &mut Random) -> Pods {
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
    loop {
        match kernel.pods(veth_prefix).await {
            Ok(pods) => return pods,
            Err(error) => {
                tracing::error!(error = %ErrorChain(&error), "the kernel's pods could not be read");
                tokio::time::sleep(backoff.next(random)).await;
            }
        }
    }
}

/// The state that the checkpoint and the kernel give. A checkpoint that cannot be used is put aside; whose the addresses
/// are that live is then learnt from the kernel. `served`: a daemon has served since the boot, and so has left a checkpoint.
fn recovered(
    store: &Store,
    served: bool,
    pods: Pods,
    aws_node: &AwsNode,
    seed: u64,
    cooldown: Duration,
    clock: Clock,
) -> Start {
    let now = clock.now();
    let document = match store.read() {
        Ok(document) => document,
        Err(error) => {
            tracing::error!(error = %ErrorChain(&error), "the checkpoint cannot be read");
            Some(Vec::new())
        }
    };
    let mut forgotten = document.is_none();
    let is_there = document.is_some();
    let missing = served.then_some(Err(CheckpointError::Missing));
    let checkpoint = document.map(|document| Checkpoint::from_json(&document)).or(missing);
    let Recovered { state, findings } = recover(checkpoint, &pods.view, seed, cooldown, now);
    for finding in &findings {
        tracing::warn!(finding = %finding, "found at the start");
        if matches!(finding, Finding::CheckpointLost(_)) {
            forgotten = true;
            if !is_there {
                continue;
            }
            match store.put_aside(now) {
                Ok(aside) => tracing::error!(kept = %aside.display(), "the checkpoint was put aside"),
                Err(error) => tracing::error!(error = %ErrorChain(&error), "the checkpoint could not be put aside"),
            }
        }
    }
    tracing::info!(
        attachments = state.ledger().owners().count(),
        enis = state.ledger().enis().count(),
        pods_alive = pods.view.pods.len(),
        "starting"
    );
    let mut known = BTreeMap::new();
    if forgotten {
        known = aws_node.owners(&pods);
        // What an interface says of itself is newer.
        known.extend(orphans(pods));
    }
    Start { state, orphans: known }
}

/// The owners that the kernel names. The pods' names are lost with the checkpoint; the attachments are what counts.
fn orphans(pods: Pods) -> BTreeMap<IpAddr, Owner> {
    let Pods { view, attachments, .. } = pods;
    attachments
        .into_iter()
        .filter_map(|(address, attachment)| {
            let host_ifname = view.pods.get(&address)?.clone();
            Some((address, Owner { attachment, pod: PodRef::default(), host_ifname, netns: String::new() }))
        })
        .collect()
}

/// Hands on what the cluster's source tells, and to it what is reported.
async fn hear(cluster: impl Cluster, handle: Handle, reports: mpsc::Receiver<Report>) {
    let (told, mut heard) = mpsc::channel(TOLD_LIMIT);
    let hand_on = async {
        while let Some(told) = heard.recv().await {
            handle.send(Input::Told(told)).await;
        }
    };
    tokio::join!(cluster.watch(told, reports), hand_on);
}

async fn serve_pages(config: Config, pages: Pages) {
    let metrics = async {
        if let Some(address) = config.metrics_address {
            serve_metrics(address, pages.clone()).await;
        }
    };
    let introspection = async {
        if let Some(address) = config.introspection_address {
            serve_introspection(address, pages.clone()).await;
        }
    };
    tokio::join!(metrics, introspection);
}

/// A number that no other process has: the standard library seeds its hash maps from the kernel's random numbers.
fn random_seed() -> u64 {
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish()
}

#[cfg(test)]
mod tests;
