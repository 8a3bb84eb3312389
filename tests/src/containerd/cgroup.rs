//! The control group of a runtime's pods. Groups belong to the machine, not to a namespace, so they need a name of
//! their own and someone who takes them away.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where the hierarchies are mounted: one directory a version 1 hierarchy, or the version 2 hierarchy itself.
const MOUNT: &str = "/sys/fs/cgroup";
/// How long what was killed may take to go.
const LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(5);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A group with a name that nobody else uses. Dropping it kills what is in it and removes it.
#[derive(Debug)]
pub(super) struct Cgroup {
    name: String,
}

impl Cgroup {
    /// Thinks of a name; the runtime makes the group.
    pub(super) fn new() -> Self {
        Self { name: format!("sluice-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)) }
    }

    /// The group as CRI's `cgroup_parent` names it.
    pub(super) fn parent(&self) -> String {
        format!("/{}", self.name)
    }

    /// The group's directories, one in each hierarchy where it was made.
    pub(super) fn directories(&self) -> Vec<PathBuf> {
        let hierarchies = std::fs::read_dir(MOUNT).into_iter().flatten().filter_map(Result::ok);
        let mut found: Vec<PathBuf> = hierarchies.map(|entry| entry.path().join(&self.name)).collect();
        found.push(Path::new(MOUNT).join(&self.name));
        found.retain(|path| path.is_dir());
        found
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + LIMIT;
        loop {
            for directory in self.directories() {
                for pid in remove(&directory) {
                    // Gone meanwhile is what is wanted.
                    let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
            if self.directories().is_empty() || Instant::now() >= deadline {
                return;
            }
            std::thread::park_timeout(LOOK);
        }
    }
}

/// Removes the group at `path` with the groups below it as far as they are empty; the processes that hold it are the
/// result.
fn remove(path: &Path) -> Vec<i32> {
    let entries = std::fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    let below = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
    let mut holders: Vec<i32> = below.flat_map(|path| remove(&path)).collect();
    let listed = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    holders.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()));
    // Where it fails, the holders say why.
    let _held = std::fs::remove_dir(path);
    holders
}
