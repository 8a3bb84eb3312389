//! Waiting for what a flag says too, without asking each time whoever sets it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};

/// A wait for something that a flag says once it is so.
///
/// It is polled once for each task, so that it wakes the task when the flag is set. A connection's task runs several times a
/// request, and each time a [`tokio::sync::Notify`] would take a lock that all threads have in common.
pub(crate) struct Flagged<'f, F> {
    wait: Pin<&'f mut F>,
    waker: Option<Waker>,
}

impl<F> fmt::Debug for Flagged<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flagged").finish_non_exhaustive()
    }
}

impl<'f, F: Future<Output = ()>> Flagged<'f, F> {
    /// A wait that wakes its task after the flag has been set.
    pub(crate) const fn new(wait: Pin<&'f mut F>) -> Self {
        Self { wait, waker: None }
    }

    /// Whether it is so, `flag` being what the flag says now. Not to be asked again once it is.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, flag: bool) -> bool {
        if flag {
            return true;
        }
        if self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return false;
        }
        self.waker = Some(cx.waker().clone());
        self.wait.as_mut().poll(cx).is_ready()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::task::{Poll, Wake};

    use super::*;

    struct Counted(AtomicUsize);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn it_is_asked_once_a_task_and_wakes_the_last_that_waited() {
        let (polls, set) = (AtomicUsize::new(0), AtomicBool::new(false));
        let mut kept = None;
        let mut wait = pin!(poll_fn(|cx| {
            polls.fetch_add(1, Ordering::Relaxed);
            kept = Some(cx.waker().clone());
            if set.load(Ordering::Relaxed) { Poll::Ready(()) } else { Poll::Pending }
        }));
        let tasks = [(); 2].map(|()| Arc::new(Counted(AtomicUsize::new(0))));
        let wakers = tasks.clone().map(Waker::from);
        {
            let mut flagged = Flagged::new(wait.as_mut());
            for waker in [&wakers[0], &wakers[0], &wakers[1], &wakers[1]] {
                assert!(!flagged.poll(&mut Context::from_waker(waker), set.load(Ordering::Relaxed)));
            }
            assert_eq!(polls.load(Ordering::Relaxed), 2);
            set.store(true, Ordering::Relaxed);
            assert!(flagged.poll(&mut Context::from_waker(&wakers[1]), set.load(Ordering::Relaxed)));
        }
        kept.unwrap().wake();
        assert_eq!(tasks.map(|task| task.0.load(Ordering::Relaxed)), [0, 1]);
    }
}
