//! Records in a file.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sluice_daemon::rotated::RotatedFile;

use super::json::lines;
use super::ring::Ring;

/// How often what is new is written.
const EVERY: Duration = Duration::from_millis(200);

/// Records that are written in one go.
const AT_ONCE: usize = 65_536;

/// A file of records. When it has its size it becomes `FILE.1`, in the place of an older one, and is begun anew.
#[derive(Debug)]
pub struct RecordFile {
    file: RotatedFile,
    /// The number of the last record that was written, or lost.
    last: u64,
    lost: Arc<AtomicU64>,
    failed: bool,
}

impl RecordFile {
    /// A file of at most `limit` bytes.
    #[must_use]
    pub fn new(path: PathBuf, limit: u64) -> Self {
        Self { file: RotatedFile::new(path, limit), last: 0, lost: Arc::default(), failed: false }
    }

    /// Counts records that are not in the file: they came too fast, or it could not be written.
    #[must_use]
    pub fn lost(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.lost)
    }

    /// Writes what comes for as long as it is polled.
    pub async fn follow(mut self, ring: Arc<Ring>) {
        loop {
            self.write_new(&ring);
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Writes what has come since the last time.
    pub fn write_new(&mut self, ring: &Ring) {
        let records = ring.after(self.last, AT_ONCE);
        let Some((newest, _)) = records.last() else { return };
        let came = newest.saturating_sub(self.last);
        let count = u64::try_from(records.len()).unwrap_or(u64::MAX);
        self.last = *newest;
        let lost = match self.file.write(&lines(&records)) {
            Ok(()) => {
                self.failed = false;
                came.saturating_sub(count)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::error!(path = %self.file.path().display(), error = %error, "records could not be written");
                }
                came
            }
        };
        self.lost.fetch_add(lost, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::record::Recorder;
    use crate::record::tests::request;

    #[test]
    fn a_file_is_begun_anew_at_its_size_and_losses_are_counted() {
        let directory = std::env::temp_dir().join(format!("sluice-proxy-records-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("records.json");
        let ring = Ring::new(16, 1);
        let mut file = RecordFile::new(path.clone(), 4096);
        let lost = file.lost();
        for round in 0..8 {
            (0..4).for_each(|_| ring.record(request(&format!("/{round}"), true)));
            file.write_new(&ring);
        }
        assert_eq!(lost.load(Ordering::Relaxed), 0);
        (0..20).for_each(|_| ring.record(request("/late", true)));
        file.write_new(&ring);
        assert_eq!(lost.load(Ordering::Relaxed), 4);
        let text = |path: PathBuf| fs::read_to_string(path).unwrap();
        let (now, before) = (text(path.clone()), text(directory.join("records.json.1")));
        fs::remove_dir_all(&directory).unwrap();
        assert!(now.ends_with("}\n") && before.ends_with("}\n"));
        assert!(now.len() <= 8192 && before.len() <= 4096, "{} {}", now.len(), before.len());
        for line in now.lines().chain(before.lines()) {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["kind"], "http");
        }
    }
}
