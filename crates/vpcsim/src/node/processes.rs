//! What runs in a set of namespaces, found in `/proc` and ended by process id.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill as signal};
use nix::unistd::Pid;
use sluice_hostnet::netns::NamespaceId;

/// How often a wait for processes to go looks again.
const LOOK: Duration = Duration::from_millis(5);

/// Processes in any of `namespaces`, and those that descend from them, this process excepted. A process whose threads
/// have all ended and that waits for its parent is in no namespace any more.
pub(crate) fn running(namespaces: &BTreeSet<NamespaceId>) -> BTreeSet<i32> {
    let me = i32::try_from(std::process::id()).unwrap_or_default();
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    let mut found = BTreeSet::new();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let proc = Path::new("/proc").join(pid.to_string());
        if pid == me {
            continue;
        }
        if let Some(parent) = living_parent(&proc) {
            children.entry(parent).or_default().push(pid);
        }
        if is_in(&proc, namespaces) || threads_of_the_dead(&proc).any(|thread| is_in(&thread, namespaces)) {
            found.insert(pid);
        }
    }
    let mut queue: Vec<i32> = found.iter().copied().collect();
    while let Some(pid) = queue.pop() {
        for child in children.get(&pid).into_iter().flatten() {
            if found.insert(*child) {
                queue.push(*child);
            }
        }
    }
    found
}

/// Whether a process or thread is in one of `namespaces`.
fn is_in(proc: &Path, namespaces: &BTreeSet<NamespaceId>) -> bool {
    ["mnt", "net"].iter().any(|file| {
        std::fs::metadata(proc.join("ns").join(file))
            .is_ok_and(|ns| namespaces.contains(&NamespaceId { dev: ns.dev(), ino: ns.ino() }))
    })
}

/// The threads of a process whose first thread has ended: they may take a moment more.
fn threads_of_the_dead(proc: &Path) -> impl Iterator<Item = PathBuf> {
    let ended = std::fs::metadata(proc.join("ns/net")).is_err();
    let threads = ended.then(|| std::fs::read_dir(proc.join("task"))).into_iter().flatten().flatten();
    threads.filter_map(|thread| Some(thread.ok()?.path()))
}

/// The parent of a process that has not ended (proc(5), `stat`: the name in parentheses, the state, the parent).
fn living_parent(proc: &Path) -> Option<i32> {
    let stat = std::fs::read_to_string(proc.join("stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(parent)
}

/// Kills what runs in `namespaces` and waits for it to go, up to `limit`. What is left is the error.
pub(crate) fn kill(namespaces: &BTreeSet<NamespaceId>, limit: Duration) -> Result<(), BTreeSet<i32>> {
    let deadline = Instant::now() + limit;
    loop {
        // Again each time: what was just forked was not in the last list.
        let left = running(namespaces);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(left);
        }
        for pid in &left {
            // Gone meanwhile is what is wanted.
            let _gone = signal(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        std::thread::park_timeout(LOOK);
    }
}
