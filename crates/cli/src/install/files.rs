//! Files that others read at any moment: each is written beside its place, and moved there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Why a file is not in place.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub(super) struct FileError {
    /// What was to be done.
    action: &'static str,
    /// With which.
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl FileError {
    pub(super) fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }
}

/// Copies an executable, unless the same is there. Whether it was another. What runs keeps running: it has the old file.
pub(super) fn copy(from: &Path, to: &Path) -> Result<bool, FileError> {
    let content = fs::read(from).map_err(FileError::of("read", from))?;
    let same = fs::read(to).is_ok_and(|there| there == content);
    if same && fs::metadata(to).is_ok_and(|found| found.permissions().mode() & 0o777 == 0o755) {
        return Ok(false);
    }
    put(to, &content, 0o755).map(|()| true)
}

/// Gives a file a content, in one step that survives a loss of power.
pub(super) fn put(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).map_err(FileError::of("make", directory))?;
    // Runtimes read what ends in .conf, .conflist or .json.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = directory.join(format!(".{name}.{}.new", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(directory)?.sync_all()
    })();
    written.map_err(|error| {
        // It may not even be there.
        let _gone = fs::remove_file(&beside);
        FileError::of("write", path)(error)
    })
}

/// Removes a file; none is success. Whether there was one.
pub(super) fn remove(path: &Path) -> Result<bool, FileError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FileError::of("remove", path)(error)),
    }
}

/// Removes a directory with all that is in it; none is success. Whether there was one.
pub(super) fn remove_all(path: &Path) -> Result<bool, FileError> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FileError::of("remove", path)(error)),
    }
}
