//! The client's side of a daemon's socket (`sluice_contract::rpc` has the protocol).

use std::io::{self, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sluice_contract::cni::{ErrorCode, Failure};
use sluice_contract::rpc::{
    FrameError, Hello, ProtocolRange, Refusal, RefusalCode, Reply, Request, encode, read_frame,
};

/// Time between two tries to connect.
const RETRY: Duration = Duration::from_millis(20);
/// How much longer than the deadline that it was told a reply is waited for: the daemon answers before the deadline,
/// and its answer says more than a time-out.
const GRACE: Duration = Duration::from_secs(1);

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("{daemon} does not listen on {path}; see `systemctl` or the sluice DaemonSet on this node")]
    Unreachable {
        /// The daemon.
        daemon: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The deadline passed.
    #[error("{daemon} on {path} gave no answer within {} ms", .waited.as_millis())]
    Late {
        /// The daemon.
        daemon: &'static str,
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The connection broke.
    #[error("{daemon} on {path} gave no answer")]
    Broken {
        /// The daemon.
        daemon: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: FrameError,
    },
    /// The daemon is of another age.
    #[error(
        "{daemon} ({software}) speaks protocol {} to {}, this plugin {} to {}; upgrade the older of them",
        .theirs.min, .theirs.max, ProtocolRange::OURS.min, ProtocolRange::OURS.max
    )]
    Skew {
        /// The daemon.
        daemon: &'static str,
        /// Who answered.
        software: String,
        /// What it speaks.
        theirs: ProtocolRange,
    },
    /// The daemon refuses.
    #[error("the daemon refuses")]
    Refused(#[source] Refusal),
    /// The answer belongs to another question.
    #[error("{daemon} answered another question than {asked}")]
    Unexpected {
        /// The daemon.
        daemon: &'static str,
        /// The question.
        asked: &'static str,
    },
}

impl ClientError {
    /// Whether the daemon is gone, or as good as that: asking again may help, and a DEL leaves a tombstone.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Late { .. }
                | Self::Broken { source: FrameError::Closed | FrameError::Socket(_), .. }
        )
    }

    /// Whether the daemon says that it does not know the attachment.
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused(Refusal { code: RefusalCode::UnknownAttachment, .. }))
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(refusal) => Self::Refused(refusal),
            ClientError::Unreachable { .. } | ClientError::Late { .. } | ClientError::Broken { .. } => {
                Self::of(ErrorCode::TryAgain, &error)
            }
            ClientError::Skew { .. } => Self::of(ErrorCode::VersionSkew, &error),
            ClientError::Unexpected { .. } => Self::of(ErrorCode::Refused, &error),
        }
    }
}

/// A daemon, until a deadline.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// Who asks: the plugin's name.
    pub us: &'static str,
    /// The daemon's name.
    pub daemon: &'static str,
    /// Its socket.
    pub socket: &'a Path,
    /// When every answer must be there.
    pub deadline: Instant,
    /// How long a daemon that is gone is waited for: one that restarts is back within a second.
    pub patience: Duration,
}

impl Client<'_> {
    /// Asks, and asks again while the daemon is gone: every question may be asked twice. `C` and `O` are the questions
    /// and the answers of the daemon's socket.
    ///
    /// # Errors
    /// Any [`ClientError`] but [`ClientError::Unexpected`].
    pub fn ask<C: Serialize, O: DeserializeOwned>(&self, call: C) -> Result<O, ClientError> {
        let mut request = Request { deadline_ms: 0, call };
        let mut give_up = self.deadline.min(Instant::now() + self.patience);
        loop {
            request.deadline_ms = millis(self.deadline.saturating_duration_since(Instant::now()));
            let error = match self.exchange(&request) {
                Err(error) if error.is_gone() => error,
                other => return other,
            };
            if matches!(error, ClientError::Broken { .. }) {
                // It was there: its restart has all the patience again.
                give_up = self.deadline.min(Instant::now() + self.patience);
            }
            if Instant::now() + RETRY >= give_up {
                return Err(error);
            }
            // Waking early only means asking early.
            std::thread::park_timeout(RETRY);
        }
    }

    fn exchange<C: Serialize, O: DeserializeOwned>(&self, request: &Request<C>) -> Result<O, ClientError> {
        let daemon = self.daemon;
        let path = || self.socket.to_path_buf();
        let asked = Instant::now();
        let broken = |source| match &source {
            FrameError::Socket(error) if is_timeout(error) => {
                ClientError::Late { daemon, path: path(), waited: asked.elapsed() }
            }
            _ => ClientError::Broken { daemon, path: path(), source },
        };
        let io = |source| broken(FrameError::Socket(source));
        let wait = self.deadline.saturating_duration_since(Instant::now()) + GRACE;
        let mut socket = connect_within(self.socket, wait).map_err(|source| {
            if is_timeout(&source) { io(source) } else { ClientError::Unreachable { daemon, path: path(), source } }
        })?;
        let mut frames = encode(&Hello::of(self.us)).map_err(broken)?;
        frames.extend(encode(request).map_err(broken)?);
        io::Write::write_all(&mut socket, &frames).map_err(io)?;
        // Both frames of the answer nearly always come at once.
        let mut socket = BufReader::new(socket);
        let hello: Hello = read_frame(&mut socket).map_err(broken)?;
        if ProtocolRange::OURS.common(hello.protocol).is_none() {
            return Err(ClientError::Skew { daemon, software: hello.software, theirs: hello.protocol });
        }
        match read_frame(&mut socket).map_err(broken)? {
            Reply::Done(outcome) => Ok(outcome),
            Reply::Refused(refusal) => Err(ClientError::Refused(refusal)),
        }
    }
}

/// A connection on which nothing takes longer than `wait`, connecting included: a daemon that hangs accepts nobody, and
/// once its queue is full, `connect` waits for a place in it, by default for ever (`unix(7)`, `SO_SNDTIMEO`).
fn connect_within(path: &Path, wait: Duration) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let socket = UnixStream::from(socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?);
    socket.set_read_timeout(Some(wait))?;
    socket.set_write_timeout(Some(wait))?;
    connect(socket.as_raw_fd(), &address)?;
    Ok(socket)
}

/// What a connect, read or write says when the socket's time limit has passed (`socket(7)`, `SO_RCVTIMEO`).
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
