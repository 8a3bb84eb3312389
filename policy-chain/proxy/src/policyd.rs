//! The stream from policyd: what decisions mean, as `sluice_contract::proxy` has it.
//!
//! A stream that breaks is opened again, for as long as this process lives; what was told stays in force. A process that
//! finds no policyd goes on with the snapshot that policyd has left on disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sluice_contract::proxy::{
    self as plain, FRAME_LIMIT, FromPolicyd, FromProxy, PROTOCOL, SNAPSHOT_LIMIT, Snapshot, Update, WITH_RECORDS, hello,
};
use sluice_contract::rpc::{FrameError, Hello};
use sluice_daemon::frame;
use sluice_daemon::log::ErrorChain;
use sluice_policy_core::l7::dns::NamePattern;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, timeout};

use crate::SOFTWARE;
use crate::names::{Ask, Class, Link, Wanted};
use crate::policy::{Gates, Pushed, Unreadable};
use crate::record::ring::Ring;
use crate::record::told;

/// Between two attempts to reach policyd.
const AGAIN: Duration = Duration::from_millis(200);

/// How long policyd has to greet.
const GREETING: Duration = Duration::from_secs(5);

/// How often policyd is told what became of requests: no more of them than one frame has.
const RECORDS_EVERY: Duration = Duration::from_millis(100);

/// Acknowledgements that may wait to be sent.
const ACKS: usize = 64;

/// Names that are told in one frame.
const TOLD_AT_ONCE: usize = 256;

/// Names that may wait for policyd's word; the oldest is given up if there are more.
const WAITING: usize = 8192;

/// What is known of the stream.
#[derive(Debug, Default)]
pub struct Status {
    connected: AtomicBool,
    version: AtomicU64,
    connections: AtomicU64,
    updates: AtomicU64,
}

impl Status {
    /// Whether policyd is there.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// policyd's number of what is in force.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    /// Times that policyd was reached.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Changes that were taken in.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.updates.load(Ordering::Relaxed)
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    /// Nobody listens.
    #[error("policyd cannot be reached")]
    Away(#[source] io::Error),
    /// A frame could not be read or written.
    #[error("the stream from policyd broke")]
    Frame(#[from] FrameError),
    /// It did not greet in time.
    #[error("policyd did not greet within {GREETING:?}")]
    Silent,
    /// No version is common.
    #[error(
        "{} speaks versions {} to {}, this {SOFTWARE} {} to {}: install both of one release",
        .0.software, .0.protocol.min, .0.protocol.max, PROTOCOL.min, PROTOCOL.max
    )]
    Skew(Hello),
    /// An update has more than a node can have.
    #[error("an update is longer than {SNAPSHOT_LIMIT} bytes")]
    TooLong,
}

/// The stream, and what it leads to.
pub struct Policyd<G> {
    socket: PathBuf,
    policy: Arc<Pushed<G>>,
    open: Box<dyn Fn() -> Result<G, Unreadable> + Send + Sync>,
    status: Arc<Status>,
    names: Link,
    /// What policyd is told of requests, and the number of the last record that it was told.
    records: Option<(Arc<Ring>, u64)>,
    /// Names that policyd was told of, until it says what has become of them.
    waiting: Waiting,
}

/// By number: whom to tell.
type Waiting = Mutex<BTreeMap<u64, oneshot::Sender<bool>>>;

impl<G> std::fmt::Debug for Policyd<G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policyd").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl<G: Gates> Policyd<G> {
    /// A stream to policyd's socket that keeps `policy` up to date. `open` opens the kernel's maps: policyd makes them, and may
    /// have made others since.
    pub fn new(
        socket: PathBuf,
        policy: Arc<Pushed<G>>,
        open: impl Fn() -> Result<G, Unreadable> + Send + Sync + 'static,
        names: Link,
    ) -> Self {
        Self {
            socket,
            policy,
            open: Box::new(open),
            status: Arc::default(),
            names,
            records: None,
            waiting: Waiting::default(),
        }
    }

    /// Tells policyd what became of requests, too.
    #[must_use]
    pub fn with_records(mut self, ring: Arc<Ring>) -> Self {
        self.records = Some((ring, 0));
        self
    }

    /// Goes by what a snapshot says of names, until policyd says more.
    pub fn begin_with(&self, names: &plain::Names) {
        self.names.wanted.send_replace(Arc::new(wanted(names)));
    }

    /// What is known of the stream.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }

    /// Follows policyd for as long as it is polled.
    pub async fn follow(mut self) {
        let mut told = false;
        if let Err(error) = self.open_gates() {
            tracing::warn!(error = %ErrorChain(&error), "no flow is served before policyd has made its maps");
        }
        loop {
            match self.connect().await {
                Ok((stream, version)) => {
                    told = false;
                    self.status.connections.fetch_add(1, Ordering::Relaxed);
                    self.status.connected.store(true, Ordering::Relaxed);
                    tracing::info!("policyd is there");
                    let ended = self.serve(stream, version).await;
                    self.status.connected.store(false, Ordering::Relaxed);
                    tracing::warn!(error = %ErrorChain(&ended), "policyd is away: what it told stays in force");
                }
                Err(error) if !std::mem::replace(&mut told, true) => {
                    tracing::warn!(error = %ErrorChain(&error), "policyd is not there; trying on");
                }
                Err(_) => {}
            }
            // policyd may have made its maps since, and not listen yet.
            if !self.policy.has_gates() && self.open_gates().is_ok() {
                tracing::info!("the gates' maps are there");
            }
            self.waiting.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
            let again = tokio::time::sleep(AGAIN);
            tokio::pin!(again);
            loop {
                tokio::select! {
                    () = &mut again => break,
                    // There is nobody to tell: whoever waits is told so.
                    Some(ask) = self.names.asks.recv() => drop(ask),
                }
            }
        }
    }

    fn open_gates(&self) -> Result<(), Unreadable> {
        (self.open)().map(|gates| self.policy.set_gates(Arc::new(gates)))
    }

    /// The stream, and the newest version that both sides speak.
    async fn connect(&self) -> Result<(UnixStream, u32), Ended> {
        let mut stream = UnixStream::connect(&self.socket).await.map_err(Ended::Away)?;
        let greet = async {
            frame::write(&mut stream, &hello(SOFTWARE), FRAME_LIMIT).await?;
            frame::read::<Hello>(&mut stream, FRAME_LIMIT).await
        };
        let theirs = timeout(GREETING, greet).await.map_err(|_late| Ended::Silent)??;
        let Some(version) = theirs.protocol.common(PROTOCOL) else { return Err(Ended::Skew(theirs)) };
        Ok((stream, version))
    }

    /// Serves a stream to its end.
    async fn serve(&mut self, stream: UnixStream, version: u32) -> Ended {
        // policyd has made its maps before it listened.
        if let Err(error) = self.open_gates() {
            tracing::error!(error = %ErrorChain(&error), "policyd is there, and its maps are not");
        }
        let (mut from, mut to) = stream.into_split();
        let (acks, acked) = mpsc::channel(ACKS);
        let Self { policy, status, names: Link { asks, wanted }, waiting, records, .. } = self;
        let records = records.as_mut().filter(|_| version >= WITH_RECORDS);
        let told = Told { policy, status, wanted, waiting };
        let ended = tokio::select! {
            ended = told.listen(&mut from, acks) => ended,
            ended = speak(&mut to, acked, asks, waiting, records) => ended,
        };
        ended.err().unwrap_or(Ended::Frame(FrameError::Closed))
    }
}

/// Where what policyd says goes.
struct Told<'s, G> {
    policy: &'s Pushed<G>,
    status: &'s Status,
    wanted: &'s watch::Sender<Arc<Wanted>>,
    waiting: &'s Waiting,
}

impl<G: Gates> Told<'_, G> {
    async fn listen(&self, from: &mut (impl AsyncRead + Unpin), acks: mpsc::Sender<u64>) -> Result<(), Ended> {
        let mut whole = Update::default();
        let mut parts = 0u64;
        loop {
            match frame::read(from, FRAME_LIMIT).await? {
                FromPolicyd::Update(part) => {
                    let more = part.more;
                    parts += 1;
                    // Frames have 256 KiB of texts, or one object.
                    if parts.saturating_mul(256 << 10) > SNAPSHOT_LIMIT {
                        return Err(Ended::TooLong);
                    }
                    whole.extend(*part);
                    if more {
                        continue;
                    }
                    let update = Update { more: false, ..std::mem::take(&mut whole) };
                    parts = 0;
                    // Expressions are compiled: it may take as long as a request may wait, but on this thread only.
                    self.policy.apply(&update);
                    if let Some(names) = &update.names {
                        self.wanted.send_replace(Arc::new(wanted(names)));
                    }
                    self.status.version.store(update.version, Ordering::Relaxed);
                    self.status.updates.fetch_add(1, Ordering::Relaxed);
                    if acks.send(update.version).await.is_err() {
                        return Ok(());
                    }
                }
                FromPolicyd::Known { kept, dropped } => {
                    let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                    for (ids, is_kept) in [(kept, true), (dropped, false)] {
                        for done in ids.iter().filter_map(|id| waiting.remove(id)) {
                            // Whoever asked may wait no longer.
                            let _gone = done.send(is_kept);
                        }
                    }
                }
            }
        }
    }
}

async fn speak(
    to: &mut (impl AsyncWrite + Unpin),
    mut acked: mpsc::Receiver<u64>,
    asks: &mut mpsc::Receiver<Ask>,
    waiting: &Waiting,
    mut records: Option<&mut (Arc<Ring>, u64)>,
) -> Result<(), Ended> {
    let mut look = tokio::time::interval(RECORDS_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next = 0u64;
    let mut asked = Vec::new();
    let mut asking = true;
    loop {
        let message = tokio::select! {
            acked = acked.recv() => match acked {
                Some(version) => FromProxy::Ack { version },
                None => return Ok(()),
            },
            count = asks.recv_many(&mut asked, TOLD_AT_ONCE), if asking => {
                if count == 0 {
                    asking = false;
                    continue;
                }
                let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let resolved = asked.drain(..).map(|Ask { resolution, done }| {
                    next += 1;
                    waiting.insert(next, done);
                    plain::Resolution {
                        id: next,
                        namespace: resolution.pod.namespace.to_string(),
                        pod: resolution.pod.name.to_string(),
                        name: resolution.name.to_string(),
                        addresses: resolution.addresses.to_vec(),
                        ttl: resolution.ttl,
                    }
                });
                let resolved: Vec<plain::Resolution> = resolved.collect();
                while waiting.len() > WAITING {
                    waiting.pop_first();
                }
                FromProxy::Resolved(resolved)
            }
            _ = look.tick(), if records.is_some() => {
                let new = records.as_mut().and_then(|(ring, last)| {
                    let (told, newest) = told::since(ring, *last)?;
                    *last = newest;
                    Some(told)
                });
                match new {
                    Some(told) => FromProxy::Records(told),
                    None => continue,
                }
            }
        };
        frame::write(to, &message, FRAME_LIMIT).await?;
    }
}

/// What policyd wants to know of names. A pattern that cannot be read means no name.
fn wanted(names: &plain::Names) -> Wanted {
    let patterns = |texts: &[String]| {
        let read = texts.iter().map(|text| NamePattern::cilium(text));
        let read = read.inspect(|pattern| {
            if let Err(error) = pattern {
                tracing::error!(error = %error, "a pattern of names from policyd cannot be used");
            }
        });
        read.filter_map(Result::ok).collect()
    };
    let class = |class: &plain::NameClass| Class {
        base: class.base,
        patterns: patterns(&class.patterns),
        identity: class.identity,
    };
    Wanted {
        patterns: patterns(&names.patterns),
        least: Duration::from_secs(names.least.into()),
        classes: names.classes.iter().map(class).collect(),
    }
}

/// What policyd has left on disk. Nothing, if it cannot be read: then flows wait for policyd, and are refused without it.
#[must_use]
pub fn snapshot(path: &Path) -> Snapshot {
    let read = || -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        File::open(path)?.take(SNAPSHOT_LIMIT + 1).read_to_end(&mut content)?;
        Ok(content)
    };
    let parsed = match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Snapshot::default(),
        Err(error) => Err(error.to_string()),
        Ok(content) if u64::try_from(content.len()).is_ok_and(|length| length > SNAPSHOT_LIMIT) => {
            Err(format!("it is longer than {SNAPSHOT_LIMIT} bytes"))
        }
        Ok(content) => serde_json::from_slice(&content).map_err(|error| error.to_string()),
    };
    parsed.unwrap_or_else(|error| {
        tracing::error!(path = %path.display(), error, "policyd's snapshot cannot be read");
        Snapshot::default()
    })
}

#[cfg(test)]
mod tests;
