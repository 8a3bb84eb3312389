//! Files of objects, and directories of them.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use sluice_policy_core::manifest;

/// Files of a directory tree that are read.
const MAX_FILES: usize = 100_000;

/// Directories within each other.
const MAX_DEPTH: usize = 32;

/// What stands for standard input.
pub(crate) const STDIN: &str = "-";

/// Bytes of a file that are read.
const MAX_BYTES: u64 = manifest::MAX_TEXT_BYTES as u64;

/// The bytes of a file; `-` is standard input.
pub(crate) fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    if path.as_os_str() == STDIN {
        return limited(io::stdin().lock());
    }
    limited(std::fs::File::open(path)?)
}

fn limited(file: impl io::Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("it has more than {MAX_BYTES} bytes; split it")));
    }
    Ok(bytes)
}

/// Why there are no files to read, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct NoFiles {
    message: String,
    /// What to do.
    pub(crate) hint: &'static str,
}

/// What to do about what cannot be read.
pub(crate) const HINT: &str = "see whether it is there, and readable";

/// The files that a path stands for: the file itself, or those of the directory.
///
/// # Errors
/// It is a directory that cannot be read, or one without files.
pub(crate) fn at(path: &Path) -> Result<Vec<PathBuf>, NoFiles> {
    if path.as_os_str() == STDIN || !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    in_directory(path)
}

/// The files of a directory.
///
/// # Errors
/// It cannot be read, or there are none.
pub(crate) fn in_directory(path: &Path) -> Result<Vec<PathBuf>, NoFiles> {
    match of_directory(path) {
        Ok(found) if found.is_empty() => Err(NoFiles {
            message: "the directory has no file to read".to_owned(),
            hint: "give a directory with files that end in .yaml, .yml or .json",
        }),
        Ok(found) => Ok(found),
        Err(error) => Err(NoFiles { message: format!("the directory cannot be read: {error}"), hint: HINT }),
    }
}

/// The files of a directory tree whose names end in .yaml, .yml or .json, by name. Names that begin with a dot are left out.
pub(crate) fn of_directory(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    walk(path, 0, &mut files)?;
    Ok(files)
}

fn walk(path: &Path, depth: usize, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if depth > MAX_DEPTH || files.len() > MAX_FILES {
        let message = format!("more than {MAX_FILES} files, or {MAX_DEPTH} directories within each other");
        return Err(io::Error::other(message));
    }
    let mut entries = std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    entries.sort();
    for entry in entries {
        let name = entry.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with('.') {
            continue;
        }
        if entry.is_dir() {
            walk(&entry, depth + 1, files)?;
        } else if [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end)) {
            files.push(entry);
        }
    }
    Ok(())
}
