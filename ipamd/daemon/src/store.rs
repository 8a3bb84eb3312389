//! The checkpoint on disk: written whole, atomically, before a reply that depends on it or a call that it records.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sluice_ipamd_core::time::Timestamp;

/// The longest checkpoint that is read, in bytes: the largest instance type's takes 2 MiB.
const SIZE_LIMIT: u64 = 64 << 20;

/// Why a checkpoint could not be written, read or put aside.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("{action} {} failed", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It is longer than any checkpoint can be.
    #[error("{} is over {SIZE_LIMIT} bytes long", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::File { action, path: path.to_owned(), source }
}

/// The file that holds the checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    path: PathBuf,
    temporary: PathBuf,
}

impl Store {
    pub(crate) fn new(path: PathBuf) -> Self {
        let temporary = path.with_extension("json.tmp");
        Self { path, temporary }
    }

    /// Makes the directory, readable for root only.
    pub(crate) fn prepare(&self) -> Result<(), StoreError> {
        match self.path.parent() {
            Some(directory) => fs::create_dir_all(directory).map_err(failed("making", directory)),
            None => Ok(()),
        }
    }

    /// Writes `content` so that a crash leaves either the old checkpoint or the new one.
    pub(crate) fn write(&self, content: &[u8]) -> Result<(), StoreError> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&self.temporary).map_err(failed("opening", &self.temporary))?;
        file.write_all(content).map_err(failed("writing", &self.temporary))?;
        file.sync_all().map_err(failed("syncing", &self.temporary))?;
        fs::rename(&self.temporary, &self.path).map_err(failed("renaming", &self.temporary))
    }

    /// Reads the checkpoint; none where there is no file.
    pub(crate) fn read(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed("opening", &self.path))?,
        };
        let mut content = Vec::new();
        file.take(SIZE_LIMIT + 1).read_to_end(&mut content).map_err(failed("reading", &self.path))?;
        if content.len() as u64 > SIZE_LIMIT {
            return Err(StoreError::TooLong { path: self.path.clone() });
        }
        Ok(Some(content))
    }

    /// Keeps a checkpoint that cannot be used under another name, for people.
    pub(crate) fn put_aside(&self, now: Timestamp) -> Result<PathBuf, StoreError> {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".corrupt-{}", now.as_millis() / 1000));
        let aside = PathBuf::from(name);
        fs::rename(&self.path, &aside).map_err(failed("renaming", &self.path))?;
        Ok(aside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestDir;

    #[test]
    fn a_checkpoint_is_written_whole_and_replaces_the_one_before() {
        let dir = TestDir::new();
        let store = Store::new(dir.path().join("run/ipam.json"));
        store.prepare().unwrap();
        assert_eq!(store.read().unwrap(), None);
        store.write(b"one, and longer").unwrap();
        store.write(b"two").unwrap();
        assert_eq!(store.read().unwrap().as_deref(), Some(b"two".as_slice()));
        let aside = store.put_aside(Timestamp::from_millis(5_000)).unwrap();
        assert!(aside.ends_with("ipam.json.corrupt-5"), "{}", aside.display());
        assert_eq!(store.read().unwrap(), None);
        assert_eq!(fs::read(aside).unwrap(), b"two");
    }

    #[test]
    fn a_full_or_missing_directory_is_an_error_that_names_the_file() {
        let dir = TestDir::new();
        let store = Store::new(dir.path().join("missing/ipam.json"));
        let error = store.write(b"x").unwrap_err();
        assert!(error.to_string().contains("missing/ipam.json.tmp"), "{error}");
    }
}
