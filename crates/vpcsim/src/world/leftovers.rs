//! The directory of a world, and what is left of worlds whose program was killed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::BASE_DIR;

/// The variable that programs started on a node carry: the world's tag.
pub(crate) const TAG_VARIABLE: &str = "VPCSIM_TAG";
/// The file that says whose a world is: process id and its start time, which together are never reused.
const OWNER: &str = "owner";
/// How long a live world gets to go down by itself.
const GOES_DOWN: Duration = Duration::from_secs(20);
/// How often a wait looks again.
const LOOK: Duration = Duration::from_millis(20);

/// A world's directory, which goes with this: also when the world was given up while it came up.
#[derive(Debug)]
pub struct Claim(PathBuf);

impl Claim {
    /// Makes the directory and writes down that it is this process's.
    ///
    /// # Errors
    /// The system's, when it cannot be made or written.
    pub fn of(dir: PathBuf) -> io::Result<Self> {
        let claim = Self(dir);
        std::fs::create_dir_all(&claim.0)?;
        let me = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        let started =
            start_time(me).ok_or_else(|| io::Error::other("/proc does not tell when this process started"))?;
        std::fs::write(claim.0.join(OWNER), format!("{me} {started}\n"))?;
        Ok(claim)
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        release(&self.0);
    }
}

/// Removes a world's directory, and the one above when it was the last.
fn release(dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "a world's directory stays");
    }
    if let Some(base) = dir.parent() {
        // Other worlds are in it; that is what keeps it.
        let _others = std::fs::remove_dir(base);
    }
}

/// What [`down`] did about a world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its program was told to stop, and did.
    Stopped,
    /// Its program had been killed; so many processes of it were ended and its directory was removed.
    Cleaned {
        /// Processes that were killed.
        processes: usize,
    },
    /// Its program was told to stop and still runs.
    Runs,
}

/// Takes down the worlds of this machine, or the one with `tag`: living ones by telling their program, dead ones by
/// removing what they left.
///
/// # Errors
/// When the directory of worlds cannot be read.
pub fn down(tag: Option<&str>) -> io::Result<BTreeMap<String, Outcome>> {
    let mut done = BTreeMap::new();
    let entries = match std::fs::read_dir(BASE_DIR) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(done),
        entries => entries?,
    };
    for entry in entries {
        let (dir, name) = entry.map(|entry| (entry.path(), entry.file_name().to_string_lossy().into_owned()))?;
        if tag.is_none_or(|tag| tag == name) {
            done.insert(name.clone(), take_down(&dir, &name));
        }
    }
    Ok(done)
}

fn take_down(dir: &Path, tag: &str) -> Outcome {
    if let Some(owner) = owner(dir) {
        // A refusal shows by its still being there.
        let _refused = kill(Pid::from_raw(owner.pid), Signal::SIGTERM);
        let deadline = Instant::now() + GOES_DOWN;
        while owner.lives() {
            if Instant::now() >= deadline {
                return Outcome::Runs;
            }
            std::thread::park_timeout(LOOK);
        }
        if !dir.exists() {
            return Outcome::Stopped;
        }
    }
    let left = tagged(tag);
    for pid in &left {
        // Gone meanwhile is what is wanted.
        let _gone = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    release(dir);
    Outcome::Cleaned { processes: left.len() }
}

/// The process that a world belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    pid: i32,
    started: String,
}

impl Owner {
    fn lives(&self) -> bool {
        start_time(self.pid).as_ref() == Some(&self.started)
    }
}

/// The process that a world belongs to, if it lives.
fn owner(dir: &Path) -> Option<Owner> {
    let text = std::fs::read_to_string(dir.join(OWNER)).ok()?;
    let (pid, started) = text.trim().split_once(' ')?;
    let owner = Owner { pid: pid.parse().ok()?, started: started.to_owned() };
    owner.lives().then_some(owner)
}

/// When a process that has not ended started, in ticks since boot (proc(5), `stat`, fields 3 and 22).
fn start_time(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    fields.nth(18).filter(|_| !ended).map(str::to_owned)
}

/// Processes that were started on a node of the world with this tag, or by one that was.
fn tagged(tag: &str) -> BTreeSet<i32> {
    let wanted = format!("{TAG_VARIABLE}={tag}");
    let me = i32::try_from(std::process::id()).unwrap_or_default();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let carries = |pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
    };
    pids.filter(|pid| *pid != me && carries(pid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_belongs_to_the_process_that_made_it_as_long_as_that_lives() {
        let dir = std::env::temp_dir().join(format!("vpcsim-claim-{}", std::process::id())).join("world");
        let claim = Claim::of(dir.clone()).unwrap();
        assert_eq!(claim.dir(), dir);
        assert_eq!(owner(&dir).map(|owner| owner.pid), i32::try_from(std::process::id()).ok());
        std::fs::write(dir.join(OWNER), "1 1\n").unwrap();
        assert_eq!(owner(&dir), None, "another process has that number now");
        drop(claim);
        assert!(!dir.exists() && !dir.parent().unwrap().exists());
    }
}
