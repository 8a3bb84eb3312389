//! From one process to the next on the same node.
//!
//! Whoever has taken the listening sockets over tells the process before, by the socket that each keeps in the run directory.
//! That one leaves its ports and the care for the namespaces to the new one at once, lets its connections end, and then
//! waits to be ended: by itself it does not, for whoever runs it would start it again.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sluice_daemon::rpc::{ListenError, listen};
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// How long the process before may take to leave its ports.
const LEAVES: Duration = Duration::from_secs(2);

/// The place of the process that has the listening sockets. Dropping it leaves it to another.
#[derive(Debug)]
pub struct Seat {
    listener: UnixListener,
    path: PathBuf,
}

/// A process that takes the seat: it waits until this is dropped.
#[derive(Debug)]
pub struct Successor(#[expect(dead_code, reason = "its end is what it says")] UnixStream);

impl Seat {
    /// Takes the seat at `path`. Returns once the process before has left its ports, if there is one: at the latest after two
    /// seconds.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub async fn take(path: &Path) -> Result<Self, ListenError> {
        match UnixStream::connect(path).await {
            Ok(before) => leave(before).await,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {}
            Err(error) => tracing::warn!(%error, "the process before cannot be told that it is replaced"),
        }
        Ok(Self { listener: listen(path)?, path: path.to_owned() })
    }

    /// Resolves when another process has taken the listening sockets over, and waits for this one to leave its ports.
    pub async fn taken(&self) -> Successor {
        loop {
            match self.listener.accept().await {
                // The socket's mode lets in nobody but root.
                Ok((stream, _)) => return Successor(stream),
                Err(error) => {
                    tracing::warn!(%error, "a successor cannot be heard");
                    tokio::time::sleep(LEAVES).await;
                }
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

async fn leave(mut before: UnixStream) {
    let mut nothing = [0];
    // It says nothing: that it is done is told by the end.
    match timeout(LEAVES, before.read(&mut nothing)).await {
        Ok(Ok(_) | Err(_)) => tracing::info!("the process before has left"),
        Err(_elapsed) => tracing::warn!("the process before does not leave its ports"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_successor_waits_until_the_process_before_has_left() {
        let directory = std::env::temp_dir().join(format!("sluice-seat-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("proxy.sock");
        let first = Seat::take(&path).await.unwrap();
        let taking = tokio::spawn({
            let path = path.clone();
            async move { Seat::take(&path).await.unwrap() }
        });
        let successor = first.taken().await;
        assert!(!taking.is_finished());
        drop(successor);
        let second = taking.await.unwrap();
        // The first one's socket is no longer there; the third finds the second.
        drop(first);
        let (third, told) = tokio::join!(Seat::take(&path), async { drop(second.taken().await) });
        assert_eq!((third.unwrap().path(), told), (&*path, ()));
        // One that has died is no obstacle.
        drop(second);
        Seat::take(&path).await.unwrap();
        std::fs::remove_dir_all(directory).unwrap();
    }
}
