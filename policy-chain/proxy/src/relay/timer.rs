//! One timer for a connection, however often its deadline moves.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// When something last happened on a connection, and how long nothing may.
#[derive(Debug)]
pub(crate) struct Progress {
    last: Cell<Instant>,
    limit: Cell<Duration>,
}

impl Progress {
    /// From now on.
    pub(crate) fn within(limit: Duration) -> Self {
        Self { last: Cell::new(Instant::now()), limit: Cell::new(limit) }
    }

    /// It happens now.
    pub(crate) fn mark(&self) {
        self.last.set(Instant::now());
    }

    /// From now on, nothing may happen for so long.
    pub(crate) fn expect(&self, limit: Duration) {
        self.limit.set(limit);
        self.mark();
    }

    fn deadline(&self) -> Instant {
        self.last.get() + self.limit.get()
    }
}

/// Nothing has happened for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stalled;

/// A connection's timer.
///
/// A deadline that moves away costs nothing: the timer goes off at an earlier one, looks, and is set anew.
#[derive(Debug, Default)]
pub(crate) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Runs `work` until it ends, or until nothing has happened for too long.
    pub(crate) async fn guard<F: Future>(&mut self, progress: &Progress, work: F) -> Result<F::Output, Stalled> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            if let Poll::Ready(output) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(progress.deadline())));
            // One that a longer limit has set.
            if sleep.deadline() > progress.deadline() {
                sleep.as_mut().reset(progress.deadline());
            }
            while sleep.as_mut().poll(cx).is_ready() {
                let deadline = progress.deadline();
                if deadline <= Instant::now() {
                    return Poll::Ready(Err(Stalled));
                }
                sleep.as_mut().reset(deadline);
            }
            Poll::Pending
        })
        .await
    }
}
