//! A file that is appended to and begun anew when it has its size.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// When it has its size it becomes `FILE.1`, in the place of an older one, and is begun anew. Only its owner may read it.
#[derive(Debug)]
pub struct RotatedFile {
    path: PathBuf,
    limit: u64,
    open: Option<(File, u64)>,
}

impl RotatedFile {
    /// A file of at most `limit` bytes, or of one text, if that is longer. It is not opened yet.
    #[must_use]
    pub const fn new(path: PathBuf, limit: u64) -> Self {
        Self { path, limit, open: None }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a text. After an error the file is opened anew.
    ///
    /// # Errors
    /// It cannot be opened, renamed or written; some of the text may be in it.
    pub fn write(&mut self, text: &[u8]) -> io::Result<()> {
        let written = self.append(text);
        if written.is_err() {
            self.open = None;
        }
        written
    }

    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        let more = u64::try_from(text.len()).unwrap_or(u64::MAX);
        if self.open.as_ref().is_some_and(|(_, size)| *size > 0 && size.saturating_add(more) > self.limit) {
            self.open = None;
            let mut before = self.path.clone().into_os_string();
            before.push(".1");
            fs::rename(&self.path, before)?;
        }
        let (file, size) = match &mut self.open {
            Some(open) => open,
            closed => {
                let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?;
                let size = file.metadata()?.len();
                closed.insert((file, size))
            }
        };
        file.write_all(text)?;
        *size = size.saturating_add(more);
        Ok(())
    }
}
