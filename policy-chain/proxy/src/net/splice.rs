//! Bytes from one connection to the other, by way of a pipe: splice(2) moves pages, where a copy would read and write them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::sys::splice;

/// Bytes that are under way in a direction, at most: what a pipe may hold without more rights (`fs.pipe-max-size`).
const PIPE_BYTES: i32 = 1024 * 1024;
/// Bytes of one call.
const AT_ONCE: usize = 1024 * 1024;

/// How a relay ended, and what it has moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Relayed {
    /// Bytes from the client.
    pub sent: u64,
    /// Bytes from the server.
    pub received: u64,
    /// Why it ended before both sides had finished; both are reset then. None: both finished.
    pub broken: Option<Broken>,
}

/// Why a relay was broken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// A side reset its connection, or it failed.
    Reset,
    /// No byte moved for too long.
    Idle,
    /// There are no descriptors left for pipes.
    Resources,
}

/// Moves bytes both ways until both sides have finished. Each side's end is passed on as an end (half-close), a reset as a
/// reset. `idle`: how long no byte may move; zero: for ever.
pub async fn relay(client: TcpStream, server: TcpStream, idle: Duration) -> Relayed {
    let mut relayed = Relayed::default();
    let last = Activity::new();
    let end = {
        let sent = one_way(&client, &server, &mut relayed.sent, &last);
        let received = one_way(&server, &client, &mut relayed.received, &last);
        let both = async { tokio::try_join!(sent, received).map(drop) };
        tokio::select! {
            end = both => end.map_err(|error| match error.raw_os_error() {
                Some(libc::EMFILE | libc::ENFILE) => Broken::Resources,
                _ => Broken::Reset,
            }),
            // A side that has finished and waits is not read from: its reset is an event of its own.
            () = failed(&client) => Err(Broken::Reset),
            () = failed(&server) => Err(Broken::Reset),
            () = last.idle_for(idle) => Err(Broken::Idle),
        }
    };
    if let Err(broken) = end {
        relayed.broken = Some(broken);
        reset(client);
        reset(server);
    }
    relayed
}

/// Closes a connection with a reset.
#[expect(clippy::needless_pass_by_value, reason = "it is closed here")]
pub fn reset(stream: TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, "cannot reset a connection: it is closed instead");
    }
}

/// Waits until a connection is reset.
async fn failed(stream: &TcpStream) {
    loop {
        match stream.ready(Interest::ERROR).await {
            Ok(ready) if !ready.is_error() => {}
            _ => return,
        }
    }
}

/// When a byte was last moved.
#[derive(Debug)]
struct Activity(std::cell::Cell<Instant>);

impl Activity {
    fn new() -> Self {
        Self(std::cell::Cell::new(Instant::now()))
    }

    fn note(&self) {
        self.0.set(Instant::now());
    }

    async fn idle_for(&self, idle: Duration) {
        if idle.is_zero() {
            return std::future::pending().await;
        }
        loop {
            let until = self.0.get() + idle;
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

async fn one_way(from: &TcpStream, to: &TcpStream, moved: &mut u64, last: &Activity) -> io::Result<()> {
    let (out, into) = pipe()?;
    loop {
        from.readable().await?;
        let taken = from.try_io(Interest::READABLE, || splice(from.as_fd(), into.as_fd(), AT_ONCE));
        let mut held = match taken {
            Ok(0) => break,
            Ok(taken) => taken,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        last.note();
        while held > 0 {
            to.writable().await?;
            match to.try_io(Interest::WRITABLE, || splice(out.as_fd(), to.as_fd(), held)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(given) => {
                    held = held.saturating_sub(given);
                    *moved = moved.saturating_add(u64::try_from(given).unwrap_or_default());
                    last.note();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
    let _gone_already =
        nix::sys::socket::shutdown(std::os::fd::AsRawFd::as_raw_fd(to), nix::sys::socket::Shutdown::Write);
    Ok(())
}

/// Its reading and its writing end.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (out, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    if let Err(error) = fcntl(&into, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES)) {
        // A smaller pipe does as well, only slower.
        tracing::trace!(%error, "a pipe stays small");
    }
    Ok((out, into))
}
