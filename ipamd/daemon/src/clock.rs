//! The daemon's clock: wall-clock time for the ledger, moved on by tokio's clock, so that virtual time moves both and a
//! wall clock that is set while the daemon runs moves neither.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sluice_ipamd_core::time::Timestamp;
use tokio::time::Instant;

/// Wall-clock time counted from a start.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    wall: Timestamp,
    start: Instant,
}

impl Clock {
    /// The clock of a process that starts now.
    #[must_use]
    pub fn system() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self::starting_at(Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
    }

    /// A clock that shows `wall` now: tests restart daemons on one time line.
    #[must_use]
    pub fn starting_at(wall: Timestamp) -> Self {
        Self { wall, start: Instant::now() }
    }

    /// The wall-clock time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.wall + self.start.elapsed()
    }

    /// The moment at which the clock shows `at`; now, if that has passed.
    #[must_use]
    pub fn instant(&self, at: Timestamp) -> Instant {
        Instant::now() + at.since(self.now())
    }
}
