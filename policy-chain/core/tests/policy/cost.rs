//! What a piece of work takes: time on a processor, and bytes, counted at the allocator, both of one thread.
#![expect(unsafe_code, reason = "an allocator that counts is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    /// Bytes that this thread holds, and the most that it held.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(bytes: isize) {
    // A thread that ends has none any more; nobody asks it.
    let _ended = HELD.try_with(|held| {
        let (now, most) = held.get();
        let now = now + bytes;
        held.set((now, most.max(now)));
    });
}

// SAFETY: every call goes to the system's allocator as it came.
// JUSTIFICATION: bytes can be counted exactly in no other way.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(isize::try_from(layout.size()).unwrap_or(isize::MAX));
        // SAFETY: the caller's promises are the callee's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-isize::try_from(layout.size()).unwrap_or(isize::MAX));
        // SAFETY: the caller's promises are the callee's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that this thread holds.
pub(crate) fn held() -> usize {
    usize::try_from(HELD.get().0).unwrap_or(0)
}

/// What something took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// Nanoseconds that this thread ran: others do not count.
    pub(crate) nanoseconds: u64,
    /// The most bytes that it held, beyond those that it held before.
    pub(crate) bytes: usize,
}

fn nanoseconds() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("schedstat");
    text.split_whitespace().next().and_then(|word| word.parse().ok()).expect("nanoseconds on a processor")
}

/// Does something and tells what it took. What it returns counts.
pub(crate) fn cost<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let (before, began) = (HELD.get().0, nanoseconds());
    HELD.set((before, before));
    let done = work();
    let nanoseconds = nanoseconds() - began;
    (done, Cost { nanoseconds, bytes: usize::try_from(HELD.get().1 - before).unwrap_or(0) })
}
