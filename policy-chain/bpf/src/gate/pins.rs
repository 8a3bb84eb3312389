//! The directory of pins: who holds it, what is in it, and how a pin is replaced.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{MapInfo, MapType};
use nix::fcntl::{Flock, FlockArg};
use nix::net::if_::if_indextoname;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::OpenError;
use crate::layout::{MapKind, MapLayout};
use crate::links;
use crate::programs::Program;
use crate::sys::{self, LinkPlace};

/// Directory of the programs, below the layout's.
const PROGRAMS: &str = "programs";
/// Directory of the links.
const LINKS: &str = "links";

/// The directory of a layout, held by a lock. The lock goes with the process.
#[derive(Debug)]
pub(super) struct Pins {
    root: PathBuf,
    _lock: Flock<File>,
}

impl Pins {
    /// Makes the directory and takes it.
    pub(super) fn take(root: &Path) -> Result<Self, OpenError> {
        let existing = root.ancestors().find(|path| path.is_dir()).unwrap_or_else(|| Path::new("/"));
        let kind = statfs(existing).map_err(|errno| failed(existing)(errno.into()))?.filesystem_type();
        if kind != BPF_FS_MAGIC {
            return Err(OpenError::NotBpffs { path: existing.into() });
        }
        for directory in [root.to_owned(), root.join(PROGRAMS), root.join(LINKS)] {
            std::fs::create_dir_all(&directory).map_err(failed(&directory))?;
        }
        let directory = File::open(root).map_err(failed(root))?;
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { root: root.into(), _lock: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(OpenError::Held { path: root.into() }),
            Err((_, errno)) => Err(failed(root)(errno.into())),
        }
    }

    /// Takes away what other layouts have pinned beside this one, and with it what their links hold at interfaces and hooks. One
    /// that a process holds stays.
    pub(super) fn remove_other_layouts(&self) -> io::Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for path in self.other_layouts()? {
            let Ok(_lock) = Flock::lock(File::open(&path)?, FlockArg::LockExclusiveNonblock) else { continue };
            std::fs::remove_dir_all(&path)?;
            removed.push(path);
        }
        Ok(removed)
    }

    /// The directories of other layouts.
    pub(super) fn other_layouts(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in self.root.parent().map(std::fs::read_dir).into_iter().flatten().flatten() {
            let path = entry?.path();
            let is_layout = path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()).is_some();
            if is_layout && path != self.root {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// Whether another layout has pinned a link by which this program of its own is attached to an interface.
    pub(super) fn has_link_of_another_layout(&self, index: u32, program: Program) -> bool {
        let path = |layout: &PathBuf| layout.join(LINKS).join(links::name(index, program));
        self.other_layouts().unwrap_or_default().iter().any(|layout| is_link_at(&path(layout), index))
    }

    /// Whether this layout has pinned a link by which a program, of whichever process, is attached to an interface.
    pub(super) fn has_link(&self, index: u32, program: Program) -> bool {
        is_link_at(&self.links().join(links::name(index, program)), index)
    }

    /// The directory of the layout.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Where a map is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Where a program is pinned.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.root.join(PROGRAMS).join(name)
    }

    /// The directory of the links.
    pub(super) fn links(&self) -> PathBuf {
        self.root.join(LINKS)
    }

    /// How many entries a pinned map can hold; none where there is no pin.
    ///
    /// # Errors
    /// [`OpenError::Mismatch`]: it is not of this layout.
    pub(super) fn inspect(&self, map: &MapLayout) -> Result<Option<u32>, OpenError> {
        let path = self.map(map.name);
        if !path.exists() {
            return Ok(None);
        }
        let info = MapInfo::from_pin(&path).map_err(|source| OpenError::Map { map: map.name, source })?;
        let differs = |what, pinned: String, expected: String| {
            Err(OpenError::Mismatch { path: path.clone(), what, pinned, expected })
        };
        let (kind, expected) = (info.map_type().ok(), kind(map.kind));
        if kind != Some(expected) {
            return differs("type", format!("{kind:?}"), format!("{expected:?}"));
        }
        if map.kind == MapKind::Ring {
            return Ok(Some(info.max_entries()));
        }
        for (what, pinned, expected) in
            [("bytes of a key", info.key_size(), map.key), ("bytes of a value", info.value_size(), map.value)]
        {
            if usize::try_from(pinned).ok() != Some(expected) {
                return differs(what, pinned.to_string(), expected.to_string());
            }
        }
        Ok(Some(info.max_entries()))
    }

    /// Whether a program is attached to an interface by a link. All of ours are pinned.
    pub(super) fn has_links(&self, index: u32) -> bool {
        Program::POD.iter().any(|(_, program)| self.links().join(links::name(index, *program)).exists())
    }

    /// Removes the pins of an interface that is gone. Those of one that is there stay: without them it has no gate.
    pub(super) fn remove_links(&self, index: u32) {
        // nix says that it has the empty name where there is none.
        if if_indextoname(index).is_ok_and(|name| !name.is_empty()) {
            return;
        }
        for (_, program) in Program::POD {
            let path = self.links().join(links::name(index, program));
            if let Err(error) = absent(std::fs::remove_file(&path)) {
                tracing::warn!(path = %path.display(), %error, "cannot remove the pin of a link");
            }
        }
    }
}

/// How the name of a pin ends that is not in its place yet.
pub(crate) const NEW_PIN: &str = "-new";

/// Puts what `pin` pins in the place of what is pinned at `path`, in one step: whoever opens it meanwhile finds the one or
/// the other.
pub(crate) fn replace_pin(path: &Path, pin: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    // The file system of BPF objects takes no names with dots.
    let name = path.file_name().and_then(std::ffi::OsStr::to_str).unwrap_or("pin");
    let new = path.with_file_name(format!("{name}{NEW_PIN}"));
    absent(std::fs::remove_file(&new))?;
    pin(&new)?;
    std::fs::rename(&new, path)
}

/// Whether a link is pinned there that attaches its program to the interface.
fn is_link_at(path: &Path, index: u32) -> bool {
    path.exists() && sys::link_interface(path).is_ok_and(|place| place == LinkPlace::Interface(index))
}

fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    |source| OpenError::Directory { path, source }
}

const fn kind(kind: MapKind) -> MapType {
    match kind {
        MapKind::Hash => MapType::Hash,
        MapKind::Lpm => MapType::LpmTrie,
        MapKind::LruHash => MapType::LruHash,
        MapKind::PerCpuHash => MapType::PerCpuHash,
        MapKind::PerCpuArray => MapType::PerCpuArray,
        MapKind::Array => MapType::Array,
        MapKind::SockMap => MapType::SockMap,
        MapKind::Ring => MapType::RingBuf,
    }
}
