//! When a repeated job is due: at its interval, or earlier and earlier-spaced after failures.

use std::time::Duration;

use tokio::time::Instant;

use crate::executor::{Backoff, Random};

/// First and longest pause after failures in a row.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// One repeated job that is never started while it runs.
#[derive(Debug, Clone)]
pub(super) struct Timer {
    due: Instant,
    every: Duration,
    running: bool,
    backoff: Backoff,
}

impl Timer {
    pub(super) const fn due(due: Instant, every: Duration) -> Self {
        Self { due, every, running: false, backoff: Backoff::new(PAUSE.0, PAUSE.1) }
    }

    /// When to look at it again; none while it runs.
    pub(super) fn wake(&self) -> Option<Instant> {
        (!self.running).then_some(self.due)
    }

    pub(super) const fn is_running(&self) -> bool {
        self.running
    }

    /// Whether it is to be started now; it runs from then on.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let begins = !self.running && self.due <= now;
        self.running |= begins;
        begins
    }

    /// It has ended well.
    pub(super) fn succeeded(&mut self, now: Instant) {
        self.running = false;
        self.due = now + self.every;
        self.backoff.reset();
    }

    /// It has failed; it is worth trying again after `at_least`.
    pub(super) fn failed(&mut self, now: Instant, at_least: Duration, random: &mut Random) {
        self.running = false;
        self.due = now + self.backoff.next(random).max(at_least);
    }

    /// Something stands in its way for now.
    pub(super) fn postpone(&mut self, now: Instant) {
        self.due = self.due.max(now + PAUSE.0);
    }

    /// It is due now, if it does not run.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.due = self.due.min(now);
    }
}
