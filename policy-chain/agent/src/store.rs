//! Files of the runtime state: written whole, atomically. They are on a tmpfs, which dies with the node's pods.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why a file could not be written, read or removed.
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
    /// It is longer than it can be.
    #[error("{} is over {limit} bytes long", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
}

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::File { action, path: path.to_owned(), source }
}

/// Makes a directory and those above it, for root only.
pub(crate) fn make_directory(path: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("making", path))
}

/// Writes `content` so that a crash leaves either what was there before or the new content.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let temporary = PathBuf::from(name);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&temporary).map_err(failed("opening", &temporary))?;
    file.write_all(content).map_err(failed("writing", &temporary))?;
    fs::rename(&temporary, path).map_err(failed("renaming", &temporary))
}

/// Reads a file of at most `limit` bytes; none where there is no file.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed("opening", path))?,
    };
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).map_err(failed("reading", path))?;
    if content.len() as u64 > limit {
        return Err(StoreError::TooLong { path: path.to_owned(), limit });
    }
    Ok(Some(content))
}

/// Removes a file; one that is not there is success.
pub(crate) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestDir;

    #[test]
    fn a_file_is_written_whole_and_replaces_the_one_before() {
        let dir = TestDir::new();
        let directory = dir.path().join("a/b");
        make_directory(&directory).unwrap();
        let path = directory.join("state.json");
        assert_eq!(read(&path, 100).unwrap(), None);
        write(&path, b"one, and longer").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(read(&path, 3).unwrap().as_deref(), Some(b"two".as_slice()));
        assert!(matches!(read(&path, 2), Err(StoreError::TooLong { .. })));
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read(&path, 3).unwrap(), None);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    }

    #[test]
    fn an_error_names_the_file() {
        let dir = TestDir::new();
        let error = write(&dir.path().join("missing/x.json"), b"x").unwrap_err();
        assert!(error.to_string().contains("missing/x.json.tmp"), "{error}");
    }
}
