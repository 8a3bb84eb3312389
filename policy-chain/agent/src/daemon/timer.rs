//! Things that are done every so often.

use std::time::Duration;

use tokio::time::Instant;

/// Something that is due every so often.
#[derive(Debug)]
pub(super) struct Timer {
    next: Instant,
    every: Duration,
}

impl Timer {
    /// Due for the first time at `first`.
    pub(super) const fn new(first: Instant, every: Duration) -> Self {
        Self { next: first, every }
    }

    /// When it is due.
    pub(super) const fn next(&self) -> Instant {
        self.next
    }

    /// Due at `at` at the latest.
    pub(super) fn bring_forward(&mut self, at: Instant) {
        self.next = self.next.min(at);
    }

    /// Whether it is due; then it is due again after its time.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let due = self.next <= now;
        if due {
            self.next = now + self.every;
        }
        due
    }
}
