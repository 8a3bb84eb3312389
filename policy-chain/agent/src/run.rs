//! From the configuration to a running daemon and back: start, serving, graceful stop.

use std::collections::BTreeMap;
use std::future::Future;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sluice_contract::id::Attachment;
use sluice_daemon::aws_node::AwsNode;
use sluice_daemon::lock::{LockError, only_one};
use sluice_daemon::log::ErrorChain;
use sluice_daemon::rpc::{ListenError, Server, listen};
use sluice_daemon::tombstones::Tombstones;
use sluice_hostnet::netns::{Namespace, NamespaceError};
use sluice_policy_core::compile::engine::{Checkpoint, Engine};
use sluice_policy_core::settings::Settings;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinError;

use crate::cluster::{Cluster, TOLD_LIMIT};
use crate::config::Config;
use crate::daemon::{Clock, Daemon, Parts, Start, interface};
use crate::datapath::{Datapath, Found};
use crate::flows::{Flows, Node, Observer, Tls, export, serve_port, serve_socket};
use crate::gates::Gates;
use crate::http::{Pages, serve_pages};
use crate::inbox::{Handle, Input, Plugins, SOFTWARE};
use crate::journal::Journal;
use crate::links;
use crate::metrics::Metrics;
use crate::names::NameFiles;
use crate::outbox::{self, Outbox};
use crate::proxy::{self, Proxies};
use crate::registry::{Binding, Registry};
use crate::store::{self, StoreError};

/// How old what was known before a restart may be to go on with it while the cluster does not answer (DESIGN 6).
const JOURNAL_AGE: Duration = Duration::from_secs(300);

/// Bytes of a checkpoint that is read.
const CHECKPOINT_LIMIT: u64 = 64 * 1024 * 1024;

/// How long a stop lets open connections come to their end.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Why the daemon could not start, or did not go on. Once it runs, nothing but a stop or a fault of its own ends it.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The directory of the runtime state cannot be used.
    #[error("the directory of the runtime state cannot be used")]
    Store(#[from] StoreError),
    /// Another policyd runs on this node, or that cannot be told.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The socket cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The gates cannot be opened.
    #[error("the gates in the kernel cannot be opened")]
    Open(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The network namespace of this process cannot be opened.
    #[error("the host's network namespace cannot be opened")]
    Namespace(#[from] NamespaceError),
    /// The kernel does not list its interfaces.
    #[error("the host's interfaces cannot be listed")]
    Links(#[source] io::Error),
    /// A part of the daemon has ended by itself.
    #[error("the daemon's {part} has ended by itself")]
    Died {
        /// Which.
        part: &'static str,
        /// Why, if it panicked.
        #[source]
        source: Option<JoinError>,
    },
}

/// Runs policyd until `shutdown` resolves. Pods keep their gates after that.
///
/// `open` opens the gates in the kernel; it is called when it is sure that no other policyd runs.
///
/// # Errors
/// [`RunError`].
pub async fn run<C: Cluster, D: Datapath>(
    config: Config,
    cluster: C,
    open: impl FnOnce() -> Result<(D, Found), Box<dyn std::error::Error + Send + Sync>>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), RunError> {
    let directory = config.directory();
    store::make_directory(&directory)?;
    tokio::pin!(shutdown);
    let lock = directory.join("policyd.lock");
    let _lock = tokio::select! {
        lock = only_one(SOFTWARE, &lock) => lock?,
        () = &mut shutdown => return Ok(()),
    };
    let aws_node = AwsNode::new(config.aws_node_file.clone());
    let aws_node_serves = aws_node.answers().await.is_some();
    let (datapath, found) = open().map_err(RunError::Open)?;
    let listener = listen(&config.socket())?;
    let proxy_listener = listen(&config.proxy_socket())?;
    // Plugins that connect from here on wait in the socket's queue.
    let metrics = Arc::new(Metrics::new());
    metrics.register_more(|registry| cluster.register(registry));
    let cluster = Arc::new(cluster);
    let links = crate::registry::links().map_err(RunError::Links)?;
    let clock = Clock::starting_at(SystemTime::now());
    let (outbox, letters) = Outbox::new(Arc::clone(&metrics));
    let (parts, mut start) =
        prepare(config.clone(), clock, Arc::clone(&cluster), (datapath, &found), Arc::clone(&metrics), outbox, &links)
            .await?;
    start.aws_node = aws_node_serves;
    let (handle, inputs) = Handle::new();
    let (sender, told) = mpsc::channel(TOLD_LIMIT);
    let node = Node { name: config.node.clone(), run: RandomState::new().build_hasher().finish() };
    let pages = Pages {
        handle: handle.clone(),
        metrics: Arc::clone(&metrics),
        config: Arc::new(config.clone()),
        flows: parts.flows.clone(),
        flow_node: node.clone(),
    };
    let tls = config.hubble_tls.clone().map(Tls::new);
    let observer = Observer::new(parts.flows.clone(), node.clone(), handle.clone(), tls.is_some());
    let to_file = config.export.clone();
    let written = parts.flows.clone();
    let plugins = Plugins { handle: handle.clone(), metrics: Arc::clone(&metrics) };
    let server = Server::new(plugins, config.max_waiting, config.add_deadline);
    let (stop_server, server_stops) = oneshot::channel();
    let (stop_daemon, daemon_stops) = oneshot::channel::<()>();
    let mut serving = tokio::spawn(server.serve(listener, server_stops, STOP_GRACE));
    let pages = tokio::spawn(serve_pages(pages));
    let feeding =
        tokio::spawn(proxy::serve(proxy_listener, parts.proxies.feed(), handle.clone(), Arc::clone(&parts.metrics)));
    let (hubble_socket, hubble_address) = (config.hubble_socket(), config.hubble_address);
    let telling = tokio::spawn(async move {
        let port = async {
            if let Some(address) = hubble_address {
                serve_port(address, tls, observer.clone()).await;
            }
        };
        let file = async {
            if let Some(to_file) = to_file {
                export(to_file, written, node).await;
            }
        };
        tokio::join!(serve_socket(&hubble_socket, observer.clone()), port, file);
    });
    let waiting = tokio::spawn(wait_for_aws_node(aws_node, aws_node_serves, handle.clone()));
    let watching = tokio::spawn(links::watch(Namespace::current()?, handle));
    let sending = tokio::spawn(outbox::send(Arc::clone(&cluster), letters, metrics));
    let mut source = tokio::spawn(async move { cluster.run(sender).await });
    let mut daemon = tokio::spawn(Daemon::new(parts, start).run(inputs, told, async {
        // A sender that is gone means the same.
        let _stop = daemon_stops.await;
    }));
    let died = |part| move |ended: Result<(), JoinError>| RunError::Died { part, source: ended.err() };
    // Whoever started us starts us again; the gates stay as they are.
    tokio::select! {
        () = shutdown => {}
        ended = &mut daemon => return Err(died("loop")(ended)),
        ended = &mut source => return Err(died("source")(ended)),
        ended = &mut serving => return Err(died("server")(ended)),
    }
    drop(stop_daemon);
    drop(stop_server);
    for (task, name) in [(daemon, "daemon"), (serving, "server")] {
        if let Err(error) = task.await {
            tracing::error!(task = name, error = %ErrorChain(&error), "a task ended badly");
        }
    }
    for task in [pages, telling, waiting, watching, feeding, sending, source] {
        task.abort();
    }
    tracing::info!("policyd has ended");
    Ok(())
}

/// Tells the loop when the AWS VPC CNI's daemon has gone, if it was there at the start.
async fn wait_for_aws_node(aws_node: AwsNode, serves: bool, handle: Handle) {
    if serves {
        aws_node.has_gone().await;
        handle.send(Input::AwsNodeGone).await;
    }
}

/// Everything that the loop needs, and what it starts with: the gates of the sandboxes that live are bound, and judge
/// as they did.
pub(crate) async fn prepare<C: Cluster, D: Datapath>(
    config: Config,
    clock: Clock,
    cluster: Arc<C>,
    (mut datapath, found): (D, &Found),
    metrics: Arc<Metrics>,
    outbox: Outbox,
    links: &BTreeMap<u32, String>,
) -> Result<(Parts<C, D>, Start), StoreError> {
    let directory = config.directory();
    let registry = Registry::new(directory.join("endpoints"));
    let bindings = adopt(&registry, &mut datapath, found, links).await?;
    let checkpoint = directory.join("checkpoint.json");
    let settings = Settings {
        node: Some(config.node.as_str().into()),
        cilium_cidrs_match_managed: config.cilium_cidrs_match_managed,
    };
    let engine = Engine::restore(settings, &read_checkpoint(&checkpoint), found.floor);
    let names = NameFiles::new(&directory);
    let resolved = names.read();
    let mut journal = Journal::new(directory.join("journal"));
    let known = journal.read(JOURNAL_AGE, clock.now());
    tracing::info!(endpoints = bindings.len(), found = found.endpoints.len(), journal = known.is_some(), "starting");
    let proxies = Proxies::new(directory.join("proxy.json"), Arc::clone(&metrics));
    let flows = Flows::new(config.flows, metrics.of_flows());
    let parts = Parts {
        flows,
        tombstones: Tombstones::new(directory.join("tombstones")),
        ready_mark: directory.join("ready"),
        config,
        clock,
        cluster,
        gates: Gates::new(datapath),
        metrics,
        registry,
        journal,
        outbox,
        proxies,
        checkpoint,
        names,
    };
    Ok((
        parts,
        Start { engine, known_identities: found.floor.identity, bindings, known, names: resolved, aws_node: false },
    ))
}

/// Binds the interfaces of the sandboxes that live; what the maps have for them stays until their pods' policy is known.
async fn adopt<D: Datapath>(
    registry: &Registry,
    datapath: &mut D,
    found: &Found,
    links: &BTreeMap<u32, String>,
) -> Result<BTreeMap<Attachment, Binding>, StoreError> {
    let mut bindings = registry.read()?;
    bindings.retain(|attachment, binding| {
        let lives = |index: u32, name: &str| links.get(&index).is_some_and(|link| link == name);
        let lives = binding.interfaces().iter().any(|gate| lives(gate.host_index, gate.host.as_str()));
        if !lives {
            tracing::info!(attachment = %attachment, pod = %binding.key(), "its interfaces went while policyd was down");
            registry.remove(attachment);
        }
        lives
    });
    for binding in bindings.values() {
        for gate in binding.interfaces() {
            if !found.endpoints.contains(&gate.host_index) {
                tracing::warn!(pod = %binding.key(), interface = %gate.host, "the maps have no gate: it drops until they do");
            }
            if let Err(error) = datapath.bind(&binding.key(), &interface(gate)).await {
                tracing::error!(pod = %binding.key(), error = %ErrorChain(&error), "an interface could not be bound");
            }
        }
    }
    Ok(bindings)
}

/// The checkpoint; an empty one if it cannot be read. The engine then numbers above what the maps hold.
fn read_checkpoint(path: &Path) -> Checkpoint {
    let content = match store::read(path, CHECKPOINT_LIMIT) {
        Ok(None) => return Checkpoint::default(),
        Ok(Some(content)) => content,
        Err(error) => {
            tracing::error!(error = %ErrorChain(&error), "the checkpoint cannot be read");
            return Checkpoint::default();
        }
    };
    serde_json::from_slice(&content).unwrap_or_else(|error| {
        let kept: PathBuf = path.with_extension("json.bad");
        tracing::error!(error = %error, kept = %kept.display(), "the checkpoint is not one and is put aside");
        if let Err(error) = std::fs::rename(path, &kept) {
            tracing::error!(error = %error, "it could not be put aside");
        }
        Checkpoint::default()
    })
}

#[cfg(test)]
mod tests;
