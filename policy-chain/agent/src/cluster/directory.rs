//! A directory of YAML and JSON files as the cluster: for machines without an API server, edge nodes, tests, the demo.
//!
//! Files whose names end in `.yaml`, `.yml` or `.json` are read, not those of directories within. Whatever changes in the
//! directory, all of it is read again, a moment later, so that what is written in one go is seen in one go; only what
//! differs in content is told. A file that cannot be read, or a document in it, is reported and keeps what it
//! said before.

mod contents;

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use sluice_policy_core::cluster::{ObjectId, PodKey, Uid};
use sluice_policy_core::manifest::MAX_TEXT_BYTES;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::contents::{Contents, Files};
use super::{Cluster, ClusterError, Notice, PolicyStatus, Told, Weight};

/// After a change, how long nothing else may change before the directory is read.
const QUIET: Duration = Duration::from_millis(20);

/// After a change, the longest until the directory is read, however much goes on changing.
const AT_LATEST: Duration = Duration::from_millis(200);

/// How often it is read without a change: links in it may lead to files that change elsewhere.
const AGAIN: Duration = Duration::from_secs(30);

/// After a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Files of the directory that are read; more make it unreadable.
const MAX_FILES: usize = 20_000;

/// Bytes of all files together; more make it unreadable.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// Pods that may wait to be looked up.
const LOOKUPS: usize = 64;

/// What changes the directory.
const CHANGES: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_MODIFY)
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);

/// A directory that cannot be read.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("{action} {} failed", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} has more than {MAX_FILES} files", path.display())]
    TooMany { path: PathBuf },
    #[error("the files of {} have more than {MAX_BYTES} bytes", path.display())]
    TooLong { path: PathBuf },
    #[error("the reading of {} was broken off", path.display())]
    Broken {
        path: PathBuf,
        #[source]
        source: tokio::task::JoinError,
    },
}

/// Changes of a directory, as a file descriptor that can be waited for.
#[derive(Debug)]
struct Changes(Inotify);

impl AsRawFd for Changes {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[derive(Debug)]
struct Lookup {
    pod: PodKey,
    answer: oneshot::Sender<bool>,
}

/// The source.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    lookups: mpsc::Sender<Lookup>,
    asked: Mutex<mpsc::Receiver<Lookup>>,
}

impl Directory {
    /// The directory at `path`. It need not be there yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        let (lookups, asked) = mpsc::channel(LOOKUPS);
        Self { path, lookups, asked: Mutex::new(asked) }
    }

    /// Reads the files.
    async fn files(&self) -> Result<Files, ReadError> {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || read_files(&path)).await;
        read.unwrap_or_else(|source| Err(ReadError::Broken { path: self.path.clone(), source }))
    }

    fn watch(&self) -> Result<AsyncFd<Changes>, ReadError> {
        let failed = |source| ReadError::File { action: "watching", path: self.path.clone(), source };
        let inotify =
            Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(|error| failed(error.into()))?;
        inotify.add_watch(&self.path, CHANGES).map_err(|error| failed(error.into()))?;
        register(inotify).map_err(failed)
    }

    /// Reads and watches until something fails, or nobody listens any more (`Ok`).
    async fn follow(
        &self,
        contents: &mut Contents,
        asked: &mut mpsc::Receiver<Lookup>,
        told: &mpsc::Sender<Told>,
    ) -> Result<(), ReadError> {
        // The watch is there before the files are read, so that no change is missed.
        let mut watch = self.watch()?;
        let mut synced = false;
        let mut answers: Vec<Lookup> = Vec::new();
        loop {
            for change in contents.read(self.files().await?) {
                if told.send(change).await.is_err() {
                    return Ok(());
                }
            }
            if !std::mem::replace(&mut synced, true) && told.send(Told::Synced).await.is_err() {
                return Ok(());
            }
            for Lookup { pod, answer } in answers.drain(..) {
                // Whoever asked may have gone.
                let _told = answer.send(contents.has(&ObjectId::Pod(pod)));
            }
            tokio::select! {
                changed = changed(&mut watch) => {
                    let failed = |source| ReadError::File { action: "watching", path: self.path.clone(), source };
                    let end = Instant::now() + AT_LATEST;
                    if changed.map_err(failed)? {
                        // The directory itself has gone or moved: what is at its path now has to be watched.
                        watch = self.watch()?;
                    }
                    while let Ok(changed) = timeout(QUIET.min(end.saturating_duration_since(Instant::now())), changed_again(&mut watch, end)).await {
                        if changed.map_err(failed)? {
                            watch = self.watch()?;
                        }
                    }
                }
                Some(lookup) = asked.recv() => {
                    answers.push(lookup);
                    while let Ok(more) = asked.try_recv() {
                        answers.push(more);
                    }
                }
                () = told.closed() => return Ok(()),
                () = sleep(AGAIN) => {}
            }
        }
    }
}

#[expect(unsafe_code, reason = "tokio cannot know by itself that the descriptor lives as long as its owner")]
fn register(inotify: Inotify) -> io::Result<AsyncFd<Changes>> {
    // SAFETY: `Changes` owns the descriptor, gives out that one only, and closes it when it is dropped.
    unsafe { AsyncFd::register(Changes(inotify)) }.map_err(Into::into)
}

/// Waits for events and takes them in. Whether the watch itself has ended with them.
async fn changed(watch: &mut AsyncFd<Changes>) -> io::Result<bool> {
    loop {
        let mut ready = watch.readable_mut().await?;
        match ready.try_io(|inotify| inotify.get_ref().0.read_events().map_err(io::Error::from)) {
            Ok(events) => {
                let ended = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_IGNORED;
                return Ok(events?.iter().any(|event| event.mask.intersects(ended)));
            }
            Err(_would_block) => {}
        }
    }
}

/// The same, and never after `end`.
async fn changed_again(watch: &mut AsyncFd<Changes>, end: Instant) -> io::Result<bool> {
    tokio::select! {
        biased;
        () = sleep_until(end) => std::future::pending().await,
        changed = changed(watch) => changed,
    }
}

/// The files of a directory that hold objects.
fn read_files(directory: &Path) -> Result<Files, ReadError> {
    let failed = |source| ReadError::File { action: "reading", path: directory.to_owned(), source };
    let mut files = Files::new();
    let mut bytes = 0;
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let is_ours = path
            .extension()
            .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|ours| extension.eq_ignore_ascii_case(ours)));
        if !is_ours || name.starts_with('.') {
            continue;
        }
        if files.len() >= MAX_FILES {
            return Err(ReadError::TooMany { path: directory.to_owned() });
        }
        let content = match read_file(&path) {
            Ok(Some(content)) => Ok(content),
            Ok(None) => continue,
            // Gone since the directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => Err(format!("the file cannot be read: {error}")),
        };
        bytes += content.as_ref().map_or(0, Vec::len) as u64;
        if bytes > MAX_BYTES {
            return Err(ReadError::TooLong { path: directory.to_owned() });
        }
        files.insert(name.to_owned(), content);
    }
    Ok(files)
}

/// The bytes of a file; none of what is no file. Without following into a device or a pipe that would never end.
fn read_file(path: &Path) -> io::Result<Option<Vec<u8>>> {
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;

    let fd: OwnedFd = open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty())?;
    let file = File::from(fd);
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut content = Vec::new();
    // One more byte than allowed, so that the manifest's reader says that it is too long.
    file.take(MAX_TEXT_BYTES as u64 + 1).read_to_end(&mut content)?;
    Ok(Some(content))
}

impl Cluster for Directory {
    async fn run(&self, told: mpsc::Sender<Told>) {
        let mut asked = self.asked.lock().await;
        let mut contents = Contents::default();
        let mut said = String::new();
        loop {
            match self.follow(&mut contents, &mut asked, &told).await {
                Ok(()) => return,
                Err(error) => {
                    let why = sluice_daemon::log::ErrorChain(&error).to_string();
                    if why != said {
                        said.clone_from(&why);
                        if told.send(Told::Stale { why }).await.is_err() {
                            return;
                        }
                    }
                }
            }
            tokio::select! {
                () = told.closed() => return,
                () = sleep(RETRY) => {}
            }
        }
    }

    async fn look_up(&self, pod: &PodKey) -> Result<bool, ClusterError> {
        let (answer, found) = oneshot::channel();
        let lookup = Lookup { pod: pod.clone(), answer };
        let unavailable = |source: Box<dyn std::error::Error + Send + Sync>| ClusterError::Unavailable {
            action: format!("looking for {pod} in {}", self.path.display()),
            source,
        };
        self.lookups.send(lookup).await.map_err(|error| unavailable(error.to_string().into()))?;
        found.await.map_err(|error| unavailable(error.into()))
    }

    /// Files have no place for it: every node's files tell the same.
    async fn publish_addresses(&self, _: &PodKey, _: &Uid, _: &[IpAddr]) -> Result<(), ClusterError> {
        Ok(())
    }

    /// Faults are logged by whoever is told of them; files have no status.
    async fn report(&self, _: &PolicyStatus) -> Result<(), ClusterError> {
        Ok(())
    }

    /// Into the log.
    async fn emit(&self, notice: &Notice) -> Result<(), ClusterError> {
        let about = notice.about.clone().map(|id| super::Place::Object(id).to_string());
        let about = about.as_deref().unwrap_or("the node");
        match notice.weight {
            Weight::Normal => tracing::info!(about, reason = notice.reason, message = notice.message, "event"),
            Weight::Warning => tracing::warn!(about, reason = notice.reason, message = notice.message, "event"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
