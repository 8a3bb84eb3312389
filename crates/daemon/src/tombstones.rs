//! The directory of tombstones, from a daemon's side (`sluice_contract::rpc::tombstone` has the protocol).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use sluice_contract::id::Attachment;
use sluice_contract::rpc::tombstone::{LOCK_FILE, SIZE_LIMIT, file_name, from_json, is_tombstone};

use crate::log::ErrorChain;

/// Tombstones that one pass takes in; the next pass takes the rest.
const AT_ONCE: usize = 1024;

/// The directory, and what its files hold: the DELs of one plugin.
#[derive(Debug, Clone)]
pub struct Tombstones<D>(PathBuf, PhantomData<fn() -> D>);

impl<D: DeserializeOwned> Tombstones<D> {
    /// The tombstones in `directory`, which need not be there.
    #[must_use]
    pub const fn new(directory: PathBuf) -> Self {
        Self(directory, PhantomData)
    }

    /// All tombstones. They stay until [`Tombstones::remove`]. Empty when a plugin writes at this moment: the next pass
    /// sees what it has written.
    #[must_use]
    pub fn read(&self) -> Vec<(PathBuf, D)> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                tracing::error!(error = %error, "the directory of tombstones cannot be read");
                return Vec::new();
            }
        };
        let paths: Vec<PathBuf> = entries
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|p| is_tombstone(p))
            .take(AT_ONCE)
            .collect();
        if paths.is_empty() {
            return Vec::new();
        }
        let Some(_lock) = self.lock() else { return Vec::new() };
        paths.into_iter().filter_map(|path| Some((path.clone(), read_one(&path)?))).collect()
    }

    /// The tombstone of one attachment. It stays until [`Tombstones::remove`].
    #[must_use]
    pub fn find(&self, attachment: &Attachment) -> Option<(PathBuf, D)> {
        let path = self.0.join(file_name(attachment));
        let request = read_one(&path)?;
        Some((path, request))
    }

    /// Removes tombstones whose attachments have been released.
    pub fn remove(&self, paths: &[PathBuf]) {
        for path in paths {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::error!(path = %path.display(), error = %error, "a tombstone could not be removed");
                }
                _ => {}
            }
        }
    }

    fn lock(&self) -> Option<Flock<File>> {
        let path = self.0.join(LOCK_FILE);
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).ok()?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()
    }
}

/// Reads one tombstone. One that cannot be read is put aside, so that it is not read again.
fn read_one<D: DeserializeOwned>(path: &Path) -> Option<D> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        file => file,
    };
    let content = file.and_then(|file| {
        let mut content = Vec::new();
        file.take(SIZE_LIMIT + 1).read_to_end(&mut content).map(|_| content)
    });
    let why = match content {
        Ok(content) if content.len() as u64 > SIZE_LIMIT => "it is too long".to_owned(),
        Ok(content) => match from_json(&content) {
            Ok(request) => return Some(request),
            Err(error) => ErrorChain(&error).to_string(),
        },
        Err(error) => error.to_string(),
    };
    tracing::error!(path = %path.display(), reason = why, "a tombstone cannot be read and is put aside");
    if let Err(error) = fs::rename(path, path.with_extension("json.bad")) {
        tracing::error!(path = %path.display(), error = %error, "a tombstone could not be put aside");
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use sluice_contract::id::{ContainerId, IfName, NetworkName};
    use sluice_contract::rpc::DelRequest;
    use sluice_contract::rpc::tombstone::to_json;

    struct TestDir(PathBuf);

    impl TestDir {
        fn new() -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("sluice-daemon-{}-{count}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for TestDir {
        fn drop(&mut self) {
            let _removed = fs::remove_dir_all(&self.0);
        }
    }

    fn attachment(container: &str) -> Attachment {
        Attachment {
            container: ContainerId::new(container).unwrap(),
            ifname: IfName::new("eth0").unwrap(),
            network: NetworkName::new("sluice").unwrap(),
        }
    }

    fn write(dir: &Path, request: &DelRequest) {
        fs::write(dir.join(file_name(&request.attachment)), to_json(request).unwrap()).unwrap();
    }

    fn del(name: &str) -> DelRequest {
        DelRequest { attachment: attachment(name), pod: sluice_contract::id::PodRef::default(), add_failed: false }
    }

    #[test]
    fn tombstones_stay_until_they_are_removed() {
        let dir = TestDir::new();
        let tombstones = Tombstones::<DelRequest>::new(dir.path().to_owned());
        write(dir.path(), &del("a"));
        write(dir.path(), &del("b"));
        let read = tombstones.read();
        assert_eq!(read.len(), 2);
        assert_eq!(tombstones.read().len(), 2);
        tombstones.remove(&read.into_iter().map(|(path, _)| path).collect::<Vec<_>>());
        assert!(tombstones.read().is_empty());
    }

    #[test]
    fn one_attachments_tombstone_is_found() {
        let dir = TestDir::new();
        let tombstones = Tombstones::<DelRequest>::new(dir.path().to_owned());
        write(dir.path(), &del("a"));
        assert_eq!(tombstones.find(&attachment("b")), None);
        let (path, request) = tombstones.find(&attachment("a")).unwrap();
        assert_eq!(request, del("a"));
        tombstones.remove(&[path]);
        assert_eq!(tombstones.find(&attachment("a")), None);
    }

    #[test]
    fn a_plugin_that_holds_the_lock_is_waited_for() {
        let dir = TestDir::new();
        let tombstones = Tombstones::<DelRequest>::new(dir.path().to_owned());
        write(dir.path(), &del("a"));
        let held = tombstones.lock().unwrap();
        assert!(tombstones.read().is_empty());
        drop(held);
        assert_eq!(tombstones.read().len(), 1);
    }

    #[test]
    fn garbage_is_put_aside() {
        let dir = TestDir::new();
        let tombstones = Tombstones::<DelRequest>::new(dir.path().to_owned());
        let name = file_name(&attachment("a"));
        fs::write(dir.path().join(&name), b"not json").unwrap();
        assert!(tombstones.read().is_empty());
        assert!(dir.path().join(format!("{name}.bad")).exists());
        let missing = Tombstones::<DelRequest>::new(dir.path().join("missing"));
        assert!(missing.read().is_empty());
    }
}
