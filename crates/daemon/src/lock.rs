//! One daemon of a kind on a node: a second one would change the same things.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::time::Instant;

/// How long a start waits for the daemon before to end.
const PREDECESSOR: Duration = Duration::from_secs(30);

/// Between two looks at whether it has.
const PREDECESSOR_AGAIN: Duration = Duration::from_millis(50);

/// Why the lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The lock file cannot be opened.
    #[error("opening the lock {} failed", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another one runs on this node.
    #[error("another {daemon} holds {} and did not end within {PREDECESSOR:?}", path.display())]
    Running {
        /// Its name.
        daemon: &'static str,
        /// The lock.
        path: PathBuf,
    },
}

/// The lock: held until it is dropped, or the process is gone.
#[derive(Debug)]
pub struct OnlyOne(#[expect(dead_code, reason = "it is held, not used")] Flock<File>);

/// Makes sure that one `daemon` runs on the node. The one before may take a moment to end.
///
/// # Errors
/// [`LockError`].
pub async fn only_one(daemon: &'static str, path: &Path) -> Result<OnlyOne, LockError> {
    let failed = |source: io::Error| LockError::Open { path: path.to_owned(), source };
    let end = Instant::now() + PREDECESSOR;
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map_err(failed)?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(OnlyOne(lock)),
            Err((_, error)) if error != nix::errno::Errno::EWOULDBLOCK => return Err(failed(error.into())),
            Err(_) if Instant::now() > end => return Err(LockError::Running { daemon, path: path.to_owned() }),
            Err((unlocked, _)) => file = unlocked,
        }
        tokio::time::sleep(PREDECESSOR_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_second_waits_for_the_first_and_gives_up() {
        let path = std::env::temp_dir().join(format!("sluice-daemon-lock-{}", std::process::id()));
        let first = only_one("sluice-x", &path).await.unwrap();
        let error = only_one("sluice-x", &path).await.unwrap_err();
        assert!(error.to_string().starts_with("another sluice-x holds"), "{error}");
        drop(first);
        let second = only_one("sluice-x", &path).await;
        std::fs::remove_file(&path).unwrap();
        assert!(second.is_ok());
    }
}
