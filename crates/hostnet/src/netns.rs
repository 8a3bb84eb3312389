//! Namespaces, and the threads that live in them.
//!
//! A thread enters a namespace once and dies there; nothing ever switches back. So no other code has to wonder which
//! network it talks to: it holds a [`Namespace`], or it runs on a [`NamespaceThread`]. This module is the only one
//! that calls `setns` and `unshare`.
//!
//! Entering needs `CAP_SYS_ADMIN`, except where the caller is already in the namespace.

mod thread;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

pub use thread::{Enter, NamespaceThread, ThreadError, ThreadSpec};

/// A removed namespace file may have been mounted over more than once; what is deeper than this is not ours to dig up.
const MAX_STACKED_MOUNTS: usize = 8;

/// Which of a process's surroundings a namespace holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NamespaceKind {
    /// Links, addresses, routes, rules, nftables, network sysctls.
    Net,
    /// The tree of mounts.
    Mount,
    /// The host name.
    Uts,
}

impl NamespaceKind {
    /// The file below `/proc/PID/ns`.
    #[must_use]
    pub const fn file(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Mount => "mnt",
            Self::Uts => "uts",
        }
    }

    const fn flag(self) -> CloneFlags {
        match self {
            Self::Net => CloneFlags::CLONE_NEWNET,
            Self::Mount => CloneFlags::CLONE_NEWNS,
            Self::Uts => CloneFlags::CLONE_NEWUTS,
        }
    }
}

/// The identity of a namespace: two handles with one id are the same namespace, whatever the paths they came from
/// (namespaces(7)). An id is not reused while a handle lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceId {
    /// Device of the nsfs file.
    pub dev: u64,
    /// Inode of the nsfs file.
    pub ino: u64,
}

/// Why a namespace could not be made, opened, entered or removed.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The file could not be opened. `NotFound` means that the namespace is gone or never was.
    #[error("cannot open the namespace {path}")]
    Open {
        /// What was to be opened.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// The path is an ordinary file, as is left behind when a namespace was unmounted but not removed.
    #[error("{path} is not a namespace: it was unmounted, or never mounted")]
    NotANamespace {
        /// The path, or `a file descriptor`.
        path: PathBuf,
    },
    /// The kernel refused the thread's entry.
    #[error("cannot enter the {kind:?} namespace (CAP_SYS_ADMIN is needed)")]
    Enter {
        /// The kind of the namespace.
        kind: NamespaceKind,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// A new namespace could not be made.
    #[error("cannot make a new namespace (CAP_SYS_ADMIN is needed)")]
    New {
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// A namespace could not be bound to a path. `AlreadyExists` means that the name is taken.
    #[error("cannot bind a namespace to {path}")]
    Bind {
        /// The path.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// The mount or the file at a path could not be removed.
    #[error("cannot remove the namespace {path}")]
    Remove {
        /// The path.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// No thread could be started, or it died.
    #[error("the thread for a namespace could not be started, or died")]
    Thread {
        /// The system's word, if there is one.
        #[source]
        source: Option<io::Error>,
    },
}

impl NamespaceError {
    /// Whether the namespace does not exist (any more), which a DEL takes for success.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Open { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::NotANamespace { .. } => true,
            _ => false,
        }
    }
}

/// A handle on a namespace. It keeps the namespace alive, also when its last process is gone. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Namespace {
    file: Arc<File>,
    kind: NamespaceKind,
    id: NamespaceId,
}

impl Namespace {
    /// Opens the network namespace at `path`, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// [`NamespaceError::Open`] and [`NamespaceError::NotANamespace`]; [`NamespaceError::is_gone`] tells whether
    /// there is nothing there.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NamespaceError> {
        Self::open_kind(NamespaceKind::Net, path)
    }

    /// Opens a namespace of another kind.
    ///
    /// # Errors
    /// As [`Namespace::open`].
    pub fn open_kind(kind: NamespaceKind, path: impl AsRef<Path>) -> Result<Self, NamespaceError> {
        let path = path.as_ref();
        // Without waiting: the path may lead to a pipe.
        let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
        let file = file.map_err(|source| NamespaceError::Open { path: path.into(), source })?;
        Self::from_file(kind, file, path)
    }

    /// The calling thread's network namespace.
    ///
    /// # Errors
    /// As [`Namespace::open`]: /proc is not mounted.
    pub fn current() -> Result<Self, NamespaceError> {
        Self::current_kind(NamespaceKind::Net)
    }

    /// The calling thread's namespace of a kind.
    ///
    /// # Errors
    /// As [`Namespace::open`]: /proc is not mounted.
    pub fn current_kind(kind: NamespaceKind) -> Result<Self, NamespaceError> {
        Self::open_kind(kind, own_path(kind))
    }

    /// Takes a network namespace that came as a file descriptor.
    ///
    /// # Errors
    /// [`NamespaceError::NotANamespace`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NamespaceError> {
        Self::from_file(NamespaceKind::Net, File::from(fd), Path::new("a file descriptor"))
    }

    fn from_file(kind: NamespaceKind, file: File, path: &Path) -> Result<Self, NamespaceError> {
        let open = |source| NamespaceError::Open { path: path.into(), source };
        if fstatfs(&file).map_err(|errno| open(errno.into()))?.filesystem_type() != NSFS_MAGIC {
            return Err(NamespaceError::NotANamespace { path: path.into() });
        }
        let metadata = file.metadata().map_err(open)?;
        let id = NamespaceId { dev: metadata.dev(), ino: metadata.ino() };
        Ok(Self { file: Arc::new(file), kind, id })
    }

    /// Makes a network namespace that lives until [`Namespace::remove`], bound to `path` as `ip netns` does below
    /// `/run/netns`. Missing directories are made. Its loopback interface is down.
    ///
    /// # Errors
    /// [`NamespaceError::Bind`] with `AlreadyExists` when the path is taken; [`NamespaceError::New`].
    pub fn create(path: impl AsRef<Path>) -> Result<Self, NamespaceError> {
        let path = path.as_ref();
        let namespace = Self::new_unbound()?;
        namespace.bind(path)?;
        Ok(namespace)
    }

    /// Makes a network namespace that lives as long as its handles.
    ///
    /// # Errors
    /// [`NamespaceError::New`].
    pub fn new_unbound() -> Result<Self, NamespaceError> {
        on_a_new_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|source| NamespaceError::New { source })?;
            Self::current()
        })?
    }

    /// Binds the namespace to `path`, where it lives on without this handle.
    fn bind(&self, path: impl AsRef<Path>) -> Result<(), NamespaceError> {
        let path = path.as_ref();
        let failed = |source| NamespaceError::Bind { path: path.into(), source };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        drop(OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?);
        let from = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&*self.file)));
        mount(Some(&from), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|errno| {
            // The file is ours and empty; if it stays behind, the next create says that the name is taken.
            drop(std::fs::remove_file(path));
            failed(errno.into())
        })
    }

    /// Takes the namespace at `path` away from there. What still uses it keeps it alive. Nothing at the path is
    /// success.
    ///
    /// # Errors
    /// [`NamespaceError::Remove`].
    pub fn remove(path: impl AsRef<Path>) -> Result<(), NamespaceError> {
        let path = path.as_ref();
        unmount(path)?;
        match std::fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(NamespaceError::Remove { path: path.into(), source })
            }
            _ => Ok(()),
        }
    }

    /// Which namespace this is.
    #[must_use]
    pub const fn id(&self) -> NamespaceId {
        self.id
    }

    /// What the namespace holds.
    #[must_use]
    pub const fn kind(&self) -> NamespaceKind {
        self.kind
    }

    /// Whether the calling thread is in this namespace.
    #[must_use]
    pub fn is_current(&self) -> bool {
        std::fs::metadata(own_path(self.kind)).is_ok_and(|m| NamespaceId { dev: m.dev(), ino: m.ino() } == self.id)
    }

    /// Runs `work` in this namespace and waits for it: on a thread made for it, or right here when the caller is in
    /// the namespace already. About 60 microseconds; what needs a runtime goes on a [`NamespaceThread`].
    ///
    /// # Errors
    /// [`NamespaceError::Enter`]; [`NamespaceError::Thread`] when no thread could be started, or `work` panicked.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        if self.is_current() {
            return Ok(work());
        }
        on_a_new_thread(|| {
            self.enter()?;
            Ok(work())
        })?
    }

    /// Moves the calling thread into this namespace for the rest of its life.
    fn enter(&self) -> Result<(), NamespaceError> {
        let failed = |source| NamespaceError::Enter { kind: self.kind, source };
        if self.kind == NamespaceKind::Mount {
            // A thread that shares its root and working directory with others may not change its mounts (setns(2)).
            unshare(CloneFlags::CLONE_FS).map_err(failed)?;
        }
        setns(self.file.as_fd(), self.kind.flag()).map_err(failed)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl PartialEq for Namespace {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Namespace {}

/// Takes every mount at `path` away, down to a limit.
fn unmount(path: &Path) -> Result<(), NamespaceError> {
    for _ in 0..MAX_STACKED_MOUNTS {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            // No mount at the path, or no path.
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(errno) => return Err(NamespaceError::Remove { path: path.into(), source: errno.into() }),
        }
    }
    Ok(())
}

fn own_path(kind: NamespaceKind) -> PathBuf {
    Path::new("/proc/thread-self/ns").join(kind.file())
}

/// Runs `work` on a thread that ends with it, so that whatever it unshares or enters ends too.
fn on_a_new_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .map_err(|source| NamespaceError::Thread { source: Some(source) })?;
        thread.join().map_err(drop).map_err(|()| NamespaceError::Thread { source: None })
    })
}

#[expect(clippy::disallowed_methods, reason = "this module is where threads change their namespaces")]
fn unshare(flags: CloneFlags) -> io::Result<()> {
    Ok(nix::sched::unshare(flags)?)
}

#[expect(clippy::disallowed_methods, reason = "this module is where threads change their namespaces")]
fn setns(fd: BorrowedFd<'_>, kind: CloneFlags) -> io::Result<()> {
    Ok(nix::sched::setns(fd, kind)?)
}

#[cfg(test)]
mod tests;
