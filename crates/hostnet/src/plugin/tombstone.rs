//! Leaves a DEL that a daemon could not be told of as a file, in the form of [`sluice_contract::rpc::tombstone`].

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use sluice_contract::id::Attachment;
use sluice_contract::rpc::tombstone::{LOCK_FILE, file_name, to_json};

/// How long the lock is waited for. Its holders have it for as long as it takes to read or write some small files.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time between two tries.
const RETRY: Duration = Duration::from_millis(2);

/// Why a tombstone could not be left.
#[derive(Debug, thiserror::Error)]
#[error("cannot leave a tombstone: {step} {path}")]
pub struct TombstoneError {
    /// What failed.
    step: &'static str,
    /// On which path.
    path: PathBuf,
    /// Why.
    #[source]
    source: io::Error,
}

/// Leaves the tombstone of `attachment` in `dir`: what its daemon is to be told. It is there as a whole or not at all,
/// also when the process is killed.
///
/// # Errors
/// [`TombstoneError`], also when the lock is held for too long.
pub fn leave<D: Serialize>(dir: &Path, attachment: &Attachment, request: &D) -> Result<(), TombstoneError> {
    let failed = |step, path: &Path| {
        let path = path.to_path_buf();
        move |source| TombstoneError { step, path, source }
    };
    let json = to_json(request).map_err(io::Error::other).map_err(failed("cannot encode", dir))?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("cannot make", dir))?;
    let lock = dir.join(LOCK_FILE);
    let file = private_file(OpenOptions::new().write(true), &lock).map_err(failed("cannot open", &lock))?;
    let guard = locked(file).map_err(failed("cannot lock", &lock))?;
    let name = dir.join(file_name(attachment));
    let half = name.with_extension("json.tmp");
    let mut file =
        private_file(OpenOptions::new().write(true).truncate(true), &half).map_err(failed("cannot write", &half))?;
    file.write_all(&json).map_err(failed("cannot write", &half))?;
    std::fs::rename(&half, &name).map_err(failed("cannot name", &name))?;
    drop(guard);
    Ok(())
}

/// Not `flock`'s own waiting, which would never end if a holder hangs: the runtime asks again.
fn locked(mut file: File) -> io::Result<Flock<File>> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(guard) => return Ok(guard),
            Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) if Instant::now() < give_up => file,
            Err((_, errno)) => return Err(errno.into()),
        };
        // Waking early only means trying early.
        std::thread::park_timeout(RETRY);
    }
}

fn private_file(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_contract::id::{ContainerId, IfName, NetworkName, PodRef};
    use sluice_contract::rpc::DelRequest;
    use sluice_contract::rpc::tombstone::{from_json, is_tombstone};

    fn request(add_failed: bool) -> DelRequest {
        let attachment = Attachment {
            container: ContainerId::new("abc").unwrap(),
            ifname: IfName::new("eth0").unwrap(),
            network: NetworkName::new("sluice").unwrap(),
        };
        DelRequest { attachment, pod: PodRef::default(), add_failed }
    }

    fn leave(dir: &Path, request: &DelRequest) -> Result<(), TombstoneError> {
        super::leave(dir, &request.attachment, request)
    }

    #[test]
    fn a_tombstone_can_be_read_and_takes_the_place_of_an_older_one() {
        let dir = std::env::temp_dir().join(format!("sluice-tombstone-{}", std::process::id()));
        leave(&dir.join("x"), &request(true)).unwrap();
        leave(&dir.join("x"), &request(false)).unwrap();
        let names: Vec<_> = std::fs::read_dir(dir.join("x")).unwrap().map(|entry| entry.unwrap().path()).collect();
        let found: Vec<_> = names.iter().filter(|name| is_tombstone(name)).collect();
        assert_eq!(found.len(), 1, "{names:?}");
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(from_json::<DelRequest>(&std::fs::read(found[0]).unwrap()).unwrap(), request(false));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_lock_whose_holder_hangs_is_not_waited_for_without_end() {
        let dir = std::env::temp_dir().join(format!("sluice-locked-{}", std::process::id()));
        leave(&dir, &request(false)).unwrap();
        let held = Flock::lock(File::open(dir.join(LOCK_FILE)).unwrap(), FlockArg::LockExclusive).unwrap();
        let (told, answer) = std::sync::mpsc::channel();
        let place = dir.clone();
        let leaving = std::thread::spawn(move || told.send(leave(&place, &request(false))).unwrap());
        let result = answer.recv_timeout(Duration::from_secs(30));
        // Lets one that still waits go on.
        drop(held);
        leaving.join().unwrap();
        let error = result.expect("it gives up").unwrap_err().to_string();
        assert_eq!(error, format!("cannot leave a tombstone: cannot lock {}", dir.join(LOCK_FILE).display()));
        leave(&dir, &request(false)).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let error = leave(Path::new("/proc/nowhere"), &request(false)).unwrap_err();
        assert_eq!(error.to_string(), "cannot leave a tombstone: cannot make /proc/nowhere");
    }
}
