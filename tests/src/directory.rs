//! A directory of a test, gone with it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A new directory in the temporary directory. It goes with its value.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// Makes one, with `what` in its name.
    ///
    /// # Errors
    /// The system's.
    pub fn new(what: &str) -> io::Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sluice-{what}-{}-{number}", std::process::id()));
        // A process of this number may have been killed, long ago.
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::create_dir(&path)?,
        }
        Ok(Self(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file in one go: readers see it before or after.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let hidden = self.0.join(format!("{name}.new"));
        std::fs::write(&hidden, text)?;
        std::fs::rename(hidden, self.0.join(name))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Nobody reads it any more; what stays is a small file in the temporary directory.
        let _stays = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_new_and_goes_with_its_value() {
        let (one, other) = (Directory::new("directory").unwrap(), Directory::new("directory").unwrap());
        assert_ne!(one.path(), other.path());
        one.write("file", "text").unwrap();
        assert_eq!(std::fs::read_to_string(one.path().join("file")).unwrap(), "text");
        let path = one.path().to_owned();
        drop(one);
        assert!(!path.exists() && other.path().exists());
    }
}
