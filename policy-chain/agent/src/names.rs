//! What names resolved to, on disk: so that what was allowed before a restart is allowed after it.
//!
//! One line a resolution, appended before the kernel's maps have its addresses. Beside it lies what the proxy wrote to the
//! maps while policyd was away; it is taken over at the start, before anything is removed from the maps.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sluice_contract::names::{ALONE_FILE, FILE, Resolved};

use crate::store::{self, StoreError, failed};

/// Octets of a file that are read: several times what 65,536 addresses take.
const SIZE_LIMIT: u64 = 64 * 1024 * 1024;

/// Octets that may be appended before the file is written anew, if what it held when it was written is less.
const SLACK: u64 = 1024 * 1024;

/// The files.
#[derive(Debug)]
pub(crate) struct NameFiles {
    path: PathBuf,
    alone: PathBuf,
    file: Option<File>,
    written: u64,
    appended: u64,
}

impl NameFiles {
    /// The files in the policy directory. Nothing is read or written.
    pub(crate) fn new(directory: &Path) -> Self {
        let (path, alone) = (directory.join(FILE), directory.join(ALONE_FILE));
        Self { path, alone, file: None, written: 0, appended: 0 }
    }

    /// What was known before, and what the proxy wrote since.
    pub(crate) fn read(&self) -> Vec<Resolved> {
        let mut known = lines(&self.path);
        known.append(&mut self.take_alone());
        known
    }

    /// What the proxy wrote without policyd; its file is gone then.
    pub(crate) fn take_alone(&self) -> Vec<Resolved> {
        let taken = self.alone.with_extension("taken");
        // A file that was taken and not read to its end is of a policyd that was killed then.
        let mut found = lines(&taken);
        match fs::rename(&self.alone, &taken) {
            Ok(()) => found.append(&mut lines(&taken)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(error = %error, path = %self.alone.display(), "the proxy's names cannot be taken")
            }
        }
        found
    }

    /// What was taken is known elsewhere now.
    pub(crate) fn forget_taken(&self) -> Result<(), StoreError> {
        store::remove(&self.alone.with_extension("taken"))
    }

    /// Whether the file is to be written anew: it is not there, or has grown much.
    pub(crate) fn wants_rewriting(&self) -> bool {
        self.file.is_none() || self.appended > SLACK.max(self.written.saturating_mul(2))
    }

    /// Writes everything anew.
    pub(crate) fn rewrite(&mut self, all: impl Iterator<Item = Resolved>) -> Result<(), StoreError> {
        let text: Vec<u8> = all.flat_map(|one| line(&one)).collect();
        self.file = None;
        store::write(&self.path, &text)?;
        let mut options = OpenOptions::new();
        let file = options.append(true).mode(0o600).open(&self.path).map_err(failed("opening", &self.path))?;
        (self.file, self.written, self.appended) = (Some(file), text.len() as u64, 0);
        Ok(())
    }

    /// Appends what is new. On a failure the file is written anew the next time.
    pub(crate) fn append(&mut self, new: impl Iterator<Item = Resolved>) -> Result<(), StoreError> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let text: Vec<u8> = new.flat_map(|one| line(&one)).collect();
        self.appended += text.len() as u64;
        if let Err(source) = file.write_all(&text) {
            self.file = None;
            return Err(failed("writing", &self.path)(source));
        }
        Ok(())
    }
}

fn line(one: &Resolved) -> Vec<u8> {
    // JSON has no line feed of its own: serde_json escapes those in strings.
    let mut line = serde_json::to_vec(one).unwrap_or_default();
    line.push(b'\n');
    line
}

/// The lines that can be read. The last one is cut when the process was killed while it wrote: then the maps have none of it.
fn lines(path: &Path) -> Vec<Resolved> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::error!(error = %error, path = %path.display(), "names of before cannot be read");
            return Vec::new();
        }
    };
    let all = BufReader::new(file.take(SIZE_LIMIT)).split(b'\n');
    all.map_while(Result::ok).filter_map(|line| serde_json::from_slice(&line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestDir;

    fn resolved(name: &str, until: u64) -> Resolved {
        let addresses = vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        Resolved { name: name.into(), addresses, until, pod: Some(("web".into(), "client".into())) }
    }

    #[test]
    fn what_was_known_is_read_again_whatever_was_cut() {
        let dir = TestDir::new();
        let mut files = NameFiles::new(dir.path());
        assert_eq!(files.read(), []);
        assert!(files.wants_rewriting());
        files.append([resolved("lost.example.com", 5)].into_iter()).unwrap();
        files.rewrite([resolved("a.example.com", 5)].into_iter()).unwrap();
        files.append([resolved("b.example.com", 6)].into_iter()).unwrap();
        let path = dir.path().join(FILE);
        let mut text = fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"name\":\"c.exa");
        fs::write(&path, text).unwrap();
        assert_eq!(NameFiles::new(dir.path()).read(), [resolved("a.example.com", 5), resolved("b.example.com", 6)]);
    }

    #[test]
    fn what_the_proxy_wrote_is_taken_once_and_not_lost_by_a_kill() {
        let dir = TestDir::new();
        let files = NameFiles::new(dir.path());
        let alone = dir.path().join(ALONE_FILE);
        fs::write(&alone, line(&resolved("a.example.com", 5))).unwrap();
        assert_eq!(files.take_alone(), [resolved("a.example.com", 5)]);
        assert!(!alone.exists());
        // Killed here: the next one reads it again, with what came since.
        fs::write(&alone, line(&resolved("b.example.com", 6))).unwrap();
        assert_eq!(files.read(), [resolved("a.example.com", 5), resolved("b.example.com", 6)]);
        files.forget_taken().unwrap();
        assert_eq!(files.read(), []);
    }

    #[test]
    fn a_file_that_grows_is_written_anew() {
        let dir = TestDir::new();
        let mut files = NameFiles::new(dir.path());
        files.rewrite(std::iter::empty()).unwrap();
        let mut rounds = 0;
        while !files.wants_rewriting() {
            files.append((0..1_000).map(|at| resolved("a.example.com", at))).unwrap();
            rounds += 1;
            assert!(rounds < 100);
        }
        files.rewrite(std::iter::once(resolved("a.example.com", 5))).unwrap();
        assert!(!files.wants_rewriting());
    }
}
