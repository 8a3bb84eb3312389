//! The client's side of the socket of ipamd.

use std::io::{self, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use sluice_contract::cni::ErrorCode;
use sluice_contract::rpc::{
    AddReply, AddRequest, Call, CheckRequest, DelReply, DelRequest, FrameError, GcReply, GcRequest, Hello, Outcome,
    ProtocolRange, Refusal, RefusalCode, Reply, Request, encode, read_frame,
};

use crate::failure::{Failure, chain};

/// Time between two tries to connect.
const RETRY: Duration = Duration::from_millis(20);
/// How much longer than the deadline that it was told a reply is waited for: the daemon answers before the deadline,
/// and its answer says more than a time-out.
const GRACE: Duration = Duration::from_secs(1);

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IpamdError {
    /// Nobody listens.
    #[error("ipamd does not listen on {path}; see `systemctl` or the sluice DaemonSet on this node")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The deadline passed.
    #[error("ipamd on {path} gave no answer within {} ms", .waited.as_millis())]
    Late {
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The connection broke.
    #[error("ipamd on {path} gave no answer")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: FrameError,
    },
    /// The daemon is of another age.
    #[error(
        "ipamd ({software}) speaks protocol {} to {}, this plugin {} to {}; upgrade the older of them",
        .theirs.min, .theirs.max, ProtocolRange::OURS.min, ProtocolRange::OURS.max
    )]
    Skew {
        /// Who answered.
        software: String,
        /// What it speaks.
        theirs: ProtocolRange,
    },
    /// The daemon refuses.
    #[error("ipamd refuses")]
    Refused(#[source] Refusal),
    /// The answer belongs to another question.
    #[error("ipamd answered another question than {asked}")]
    Unexpected {
        /// The question.
        asked: &'static str,
    },
}

impl IpamdError {
    /// Whether the daemon is gone, or as good as that: asking again may help, and a DEL leaves a tombstone.
    pub(crate) const fn is_gone(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Late { .. }
                | Self::Broken { source: FrameError::Closed | FrameError::Socket(_), .. }
        )
    }

    /// Whether the daemon says that it does not know the attachment.
    pub(crate) const fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused(Refusal { code: RefusalCode::UnknownAttachment, .. }))
    }
}

impl From<IpamdError> for Failure {
    fn from(error: IpamdError) -> Self {
        match error {
            IpamdError::Refused(refusal) => Self::Refused(refusal),
            IpamdError::Unreachable { .. } | IpamdError::Late { .. } | IpamdError::Broken { .. } => {
                Self::of(ErrorCode::TryAgain, &error)
            }
            IpamdError::Skew { .. } => Self::of(ErrorCode::VersionSkew, &error),
            IpamdError::Unexpected { .. } => Self::of(ErrorCode::Refused, &error),
        }
    }
}

/// ipamd, until a deadline.
#[derive(Debug)]
pub(crate) struct Ipamd<'a> {
    /// Its socket.
    pub(crate) socket: &'a Path,
    /// When every answer must be there.
    pub(crate) deadline: Instant,
    /// How long a daemon that is gone is waited for: one that restarts is back within a second.
    pub(crate) patience: Duration,
}

impl Ipamd<'_> {
    /// Asks for addresses.
    pub(crate) fn add(&self, request: AddRequest) -> Result<AddReply, IpamdError> {
        match self.ask(Call::Add(request))? {
            Outcome::Add(reply) => Ok(reply),
            _ => Err(IpamdError::Unexpected { asked: "add" }),
        }
    }

    /// Gives addresses back.
    pub(crate) fn del(&self, request: DelRequest) -> Result<DelReply, IpamdError> {
        match self.ask(Call::Del(request))? {
            Outcome::Del(reply) => Ok(reply),
            _ => Err(IpamdError::Unexpected { asked: "del" }),
        }
    }

    /// Asks for the addresses that an attachment has.
    pub(crate) fn check(&self, request: CheckRequest) -> Result<AddReply, IpamdError> {
        match self.ask(Call::Check(request))? {
            Outcome::Add(reply) => Ok(reply),
            _ => Err(IpamdError::Unexpected { asked: "check" }),
        }
    }

    /// Has everything given back that is not in a list.
    pub(crate) fn gc(&self, request: GcRequest) -> Result<GcReply, IpamdError> {
        match self.ask(Call::Gc(request))? {
            Outcome::Gc(reply) => Ok(reply),
            _ => Err(IpamdError::Unexpected { asked: "gc" }),
        }
    }

    /// Asks, and asks again while the daemon is gone: every question may be asked twice.
    fn ask(&self, call: Call) -> Result<Outcome, IpamdError> {
        let mut request = Request { deadline_ms: 0, call };
        let mut give_up = self.deadline.min(Instant::now() + self.patience);
        loop {
            request.deadline_ms = millis(self.deadline.saturating_duration_since(Instant::now()));
            let error = match self.exchange(&request) {
                Err(error) if error.is_gone() => error,
                other => return other,
            };
            if matches!(error, IpamdError::Broken { .. }) {
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

    fn exchange(&self, request: &Request) -> Result<Outcome, IpamdError> {
        let path = || self.socket.to_path_buf();
        let asked = Instant::now();
        let broken = |source| match &source {
            FrameError::Socket(error) if is_timeout(error) => {
                IpamdError::Late { path: path(), waited: asked.elapsed() }
            }
            _ => IpamdError::Broken { path: path(), source },
        };
        let io = |source| broken(FrameError::Socket(source));
        let wait = self.deadline.saturating_duration_since(Instant::now()) + GRACE;
        let mut socket = connect_within(self.socket, wait).map_err(|source| {
            if is_timeout(&source) { io(source) } else { IpamdError::Unreachable { path: path(), source } }
        })?;
        let mut frames = encode(&Hello::of("sluice-eni")).map_err(broken)?;
        frames.extend(encode(request).map_err(broken)?);
        io::Write::write_all(&mut socket, &frames).map_err(io)?;
        // Both frames of the answer nearly always come at once.
        let mut socket = BufReader::new(socket);
        let hello: Hello = read_frame(&mut socket).map_err(broken)?;
        if ProtocolRange::OURS.common(hello.protocol).is_none() {
            return Err(IpamdError::Skew { software: hello.software, theirs: hello.protocol });
        }
        match read_frame(&mut socket).map_err(broken)? {
            Reply::Done(outcome) => Ok(outcome),
            Reply::Refused(refusal) => Err(IpamdError::Refused(refusal)),
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

/// One line for standard error about a question that was not answered and does not matter.
pub(crate) fn shrug(what: &str, error: &IpamdError) -> String {
    format!("{what}: {}", chain(error))
}

#[cfg(test)]
mod tests;
