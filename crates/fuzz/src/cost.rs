//! What a case takes: time on a processor, and memory, counted at the allocator, both of one thread.
#![expect(unsafe_code, reason = "an allocator that counts is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// The system's allocator, with a count for each thread. A test program that has targets makes it its own
/// (`#[global_allocator]`); without that memory counts as none.
#[derive(Debug)]
pub struct Counting;

thread_local! {
    /// Octets that this thread holds, and the most that it held.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(octets: isize) {
    // A thread that ends has none any more; nobody asks it.
    let _ended = HELD.try_with(|held| {
        let (now, most) = held.get();
        let now = now.saturating_add(octets);
        held.set((now, most.max(now)));
    });
}

fn signed(size: usize) -> isize {
    isize::try_from(size).unwrap_or(isize::MAX)
}

// SAFETY: every call goes to the system's allocator as it came.
// JUSTIFICATION: octets can be counted exactly in no other way.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: the caller's promises are the callee's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(signed(layout.size()).saturating_neg());
        // SAFETY: the caller's promises are the callee's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Octets that this thread has been given and has not given back: what others free of it counts as held. None without
/// [`Counting`].
#[must_use]
pub fn held() -> isize {
    HELD.get().0
}

/// What a case took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    /// How long this thread ran: others do not count, where the kernel tells it.
    pub(crate) time: Duration,
    /// The most octets that it held, beyond those that it held before.
    pub(crate) octets: usize,
}

/// Time on a processor so far.
fn ran() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// Does something and tells what it took. What it returns counts.
pub(crate) fn cost<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let (clock, ran_before, before) = (Instant::now(), ran(), HELD.get().0);
    HELD.set((before, before));
    let done = work();
    let octets = usize::try_from(HELD.get().1.saturating_sub(before)).unwrap_or(0);
    let time = match (ran_before, ran()) {
        (Some(before), Some(after)) => after.saturating_sub(before),
        _ => clock.elapsed(),
    };
    (done, Cost { time, octets })
}
