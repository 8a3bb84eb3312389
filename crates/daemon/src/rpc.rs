//! The socket that plugins speak to: one task a connection, one request a connection.
//!
//! Only root is heard. Connections, frames and the time to send them are limited; what cannot be understood is refused in
//! words and logged. A connection that closes before its reply has withdrawn its request.

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sluice_contract::rpc::{
    FRAME_LIMIT, FrameError, Hello, ProtocolRange, Refusal, RefusalCode, Reply, Request, encode,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::frame;
use crate::log::ErrorChain;

/// How long a connection may take to send its request.
const HEARING: Duration = Duration::from_secs(5);

/// How long a reply may take to be written.
const WRITING: Duration = Duration::from_secs(5);

/// Connections beyond the requests that may wait.
const SPARE_CONNECTIONS: usize = 128;

/// A deadline is met this much before it passes, so that the reply arrives in time: a tenth of it, this at most.
const MARGIN: Duration = Duration::from_millis(500);

/// How long the loop may be late before a connection answers for it.
const LOOP_GRACE: Duration = Duration::from_secs(2);

/// Why the socket could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("opening the socket {} failed", path.display())]
pub struct ListenError {
    path: PathBuf,
    source: io::Error,
}

/// A reply.
#[derive(Debug)]
pub struct Answer<O, G> {
    /// What to write.
    pub reply: Reply<O>,
    /// What the daemon has to be told of if the reply cannot be written.
    pub granted: Option<G>,
}

impl<O, G> From<Reply<O>> for Answer<O, G> {
    fn from(reply: Reply<O>) -> Self {
        Self { reply, granted: None }
    }
}

impl<O, G> From<Refusal> for Answer<O, G> {
    fn from(refusal: Refusal) -> Self {
        Reply::Refused(refusal).into()
    }
}

/// Something that the daemon counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incident {
    /// A fault of the daemon's own, by the part that failed.
    Error(&'static str),
    /// A connection that brought no request, and why not.
    Rejected(&'static str),
    /// A refusal that the server itself has written.
    Refused(RefusalCode),
    /// A reply that could not be written.
    Undelivered,
}

/// Where the reply to a request will come.
pub type Receiver<S> = oneshot::Receiver<Answer<<S as Service>::Outcome, <S as Service>::Granted>>;

/// The daemon behind a socket.
pub trait Service: Clone + Send + Sync + 'static {
    /// What is asked.
    type Call: DeserializeOwned + Send + 'static;
    /// What is answered.
    type Outcome: Serialize + Send + Sync + 'static;
    /// What [`Service::undelivered`] is told.
    type Granted: Send + 'static;
    /// The number of a request.
    type Token: Copy + Send + 'static;

    /// The program's name, e.g. `sluice-ipamd`.
    const SOFTWARE: &'static str;

    /// Takes a request in; the reply comes by the receiver, by `deadline`.
    fn ask(&self, call: Self::Call, deadline: Instant) -> impl Future<Output = (Self::Token, Receiver<Self>)> + Send;

    /// The socket of a request has closed before its reply.
    fn withdrawn(&self, token: Self::Token) -> impl Future<Output = ()> + Send;

    /// The reply to a request could not be written.
    fn undelivered(&self, token: Self::Token, granted: Self::Granted) -> impl Future<Output = ()> + Send;

    /// Counts.
    fn incident(&self, incident: Incident);
}

/// The refusal of a daemon that is on its way out.
#[must_use]
pub fn stopping(software: &str) -> Refusal {
    Refusal::new(RefusalCode::NotReady, format!("{software} is stopping"))
        .hint("it is restarted by its supervisor; the runtime will try again")
        .retry_after(Duration::from_secs(1))
}

/// Opens the socket, in place of one that a daemon before has left.
///
/// # Errors
/// [`ListenError`].
pub fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError { path: path.to_owned(), source };
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // Bound under a name that nobody connects to, so that the socket never has wider rights than it should.
    let hidden = path.with_extension("sock.new");
    match fs::remove_file(&hidden) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&hidden).map_err(failed)?;
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    fs::rename(&hidden, path).map_err(failed)?;
    Ok(listener)
}

/// Serves connections.
#[derive(Debug, Clone)]
pub struct Server<S> {
    service: S,
    connections: Arc<Semaphore>,
    longest: Duration,
}

impl<S: Service> Server<S> {
    /// A server of requests, of which `max_waiting` may wait at once, each for `longest` at most whatever its own deadline.
    #[must_use]
    pub fn new(service: S, max_waiting: u32, longest: Duration) -> Self {
        let limit = usize::try_from(max_waiting).unwrap_or(usize::MAX).saturating_add(SPARE_CONNECTIONS);
        Self { service, connections: Arc::new(Semaphore::new(limit)), longest }
    }

    /// Serves until `stop` resolves, then lets the connections that are open come to their end for `grace`.
    pub async fn serve(self, listener: UnixListener, stop: oneshot::Receiver<()>, grace: Duration) {
        let mut open = JoinSet::new();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                _ = &mut stop => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.accept(stream, &mut open),
                    Err(error) => {
                        // No file descriptors, most likely: closing ones free some.
                        tracing::error!(error = %error, "a connection could not be accepted");
                        self.service.incident(Incident::Error("accept"));
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(ended) = open.join_next(), if !open.is_empty() => self.ended(ended),
            }
        }
        drop(listener);
        let drained = timeout(grace, async {
            while let Some(ended) = open.join_next().await {
                self.ended(ended);
            }
        });
        if drained.await.is_err() {
            tracing::warn!(open = open.len(), "connections were still open at the stop");
        }
    }

    fn ended(&self, ended: Result<(), tokio::task::JoinError>) {
        if let Err(error) = ended {
            tracing::error!(error = %ErrorChain(&error), "a connection's task ended badly");
            self.service.incident(Incident::Error("connection"));
        }
    }

    fn accept(&self, stream: UnixStream, open: &mut JoinSet<()>) {
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw() => {}
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), pid = peer.pid(), "a connection that is not root's was closed");
                self.service.incident(Incident::Rejected("not_root"));
                return;
            }
            Err(error) => {
                tracing::warn!(error = %error, "a connection whose owner is unknown was closed");
                self.service.incident(Incident::Rejected("no_credentials"));
                return;
            }
        }
        let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
            tracing::warn!("too many connections are open: one more was refused");
            self.service.incident(Incident::Rejected("too_many"));
            let refusal = Refusal::new(
                RefusalCode::QueueFull,
                format!("too many requests are open on this node's {}", S::SOFTWARE),
            )
            .retry_after(Duration::from_secs(1));
            // It fits into the socket's buffer, so that nobody has to wait for the peer.
            if let Ok(frames) = frames::<S>(&Reply::Refused(refusal)) {
                let _written = stream.try_write(&frames);
            }
            return;
        };
        let server = self.clone();
        open.spawn(async move {
            server.connection(stream).await;
            drop(permit);
        });
    }

    async fn connection(&self, mut stream: UnixStream) {
        let heard = timeout(HEARING, hear(&mut stream)).await.unwrap_or(Err(Deaf::Silent));
        let request = match heard {
            Ok(request) => request,
            Err(deaf) => return self.not_understood(&mut stream, deaf).await,
        };
        let begun = Instant::now();
        let asked_for = Duration::from_millis(request.deadline_ms).min(self.longest);
        let deadline = begun + asked_for.saturating_sub(MARGIN.min(asked_for / 10));
        let (token, reply) = self.service.ask(request.call, deadline).await;
        let answer = tokio::select! {
            answer = timeout_at(deadline + LOOP_GRACE, reply) => match answer {
                Ok(Ok(answer)) => answer,
                Ok(Err(_ended)) => stopping(S::SOFTWARE).into(),
                Err(_late) => {
                    tracing::error!("the daemon's loop did not answer in time");
                    self.service.incident(Incident::Error("loop"));
                    Refusal::new(RefusalCode::NotReady, format!("{} did not answer in time", S::SOFTWARE)).into()
                }
            },
            () = closed(&mut stream) => {
                self.service.withdrawn(token).await;
                return;
            }
        };
        let Answer { reply, granted } = answer;
        if let Err(error) = say::<S>(&mut stream, &reply).await {
            tracing::warn!(error = %ErrorChain(&error), "a reply could not be written");
            self.service.incident(Incident::Undelivered);
            if let Some(granted) = granted {
                self.service.undelivered(token, granted).await;
            }
        }
    }

    async fn not_understood(&self, stream: &mut UnixStream, deaf: Deaf) {
        let refusal = match deaf {
            Deaf::Closed => {
                self.service.incident(Incident::Rejected("closed"));
                return;
            }
            Deaf::Silent => {
                self.service.incident(Incident::Rejected("silent"));
                Refusal::new(RefusalCode::BadRequest, format!("no request came within {HEARING:?}"))
            }
            Deaf::Skew(theirs) => {
                self.service.incident(Incident::Rejected("version_skew"));
                let ours = ProtocolRange::OURS;
                let message = format!(
                    "{} speaks protocol {} to {}, {} speaks {} to {}",
                    theirs.software,
                    theirs.protocol.min,
                    theirs.protocol.max,
                    S::SOFTWARE,
                    ours.min,
                    ours.max
                );
                Refusal::new(RefusalCode::VersionSkew, message)
                    .hint("install the plugin of the daemon's version: `sluice install`")
            }
            Deaf::Garbage(error) => {
                self.service.incident(Incident::Rejected("garbage"));
                Refusal::new(RefusalCode::BadRequest, ErrorChain(&error).to_string())
            }
        };
        tracing::warn!(code = %refusal.code, reason = %refusal.message, "a request was not understood");
        self.service.incident(Incident::Refused(refusal.code));
        if let Err(error) = say::<S>(stream, &Reply::Refused(refusal)).await {
            tracing::debug!(error = %ErrorChain(&error), "a refusal could not be written");
        }
    }
}

/// Why no request was heard.
#[derive(Debug)]
enum Deaf {
    /// The peer closed.
    Closed,
    /// Nothing came in time.
    Silent,
    /// No version is common.
    Skew(Hello),
    /// It is not the protocol.
    Garbage(FrameError),
}

impl From<FrameError> for Deaf {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Closed | FrameError::Socket(_) => Self::Closed,
            FrameError::TooLong { .. } | FrameError::Json(_) => Self::Garbage(error),
        }
    }
}

async fn hear<C: DeserializeOwned>(stream: &mut UnixStream) -> Result<Request<C>, Deaf> {
    let hello: Hello = frame::read(stream, FRAME_LIMIT).await?;
    if hello.protocol.common(ProtocolRange::OURS).is_none() {
        return Err(Deaf::Skew(hello));
    }
    Ok(frame::read(stream, FRAME_LIMIT).await?)
}

/// The greeting and the reply.
fn frames<S: Service>(reply: &Reply<S::Outcome>) -> Result<Vec<u8>, FrameError> {
    let mut frames = encode(&Hello::of(S::SOFTWARE))?;
    frames.extend(encode_reply::<S>(reply)?);
    Ok(frames)
}

/// Writes the greeting and the reply.
async fn say<S: Service>(stream: &mut UnixStream, reply: &Reply<S::Outcome>) -> Result<(), FrameError> {
    let frames = frames::<S>(reply)?;
    let write = async {
        stream.write_all(&frames).await?;
        stream.shutdown().await
    };
    timeout(WRITING, write)
        .await
        .unwrap_or_else(|_late| Err(io::ErrorKind::TimedOut.into()))
        .map_err(FrameError::Socket)
}

/// A reply that is too long for a frame is refused in one that is not.
fn encode_reply<S: Service>(reply: &Reply<S::Outcome>) -> Result<Vec<u8>, FrameError> {
    match encode(reply) {
        Err(FrameError::TooLong { length, .. }) => {
            let message = format!("the reply would take {length} bytes, more than a frame holds");
            encode(&Reply::<S::Outcome>::Refused(Refusal::new(RefusalCode::Other, message)))
        }
        frame => frame,
    }
}

/// Resolves when the peer has closed. What it sends after its request is passed over, up to a limit.
async fn closed(stream: &mut UnixStream) {
    let mut surplus = [0; 256];
    for _ in 0..64 {
        match stream.read(&mut surplus).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}
