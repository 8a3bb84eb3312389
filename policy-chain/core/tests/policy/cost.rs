//! What a piece of work takes: time on a processor, and bytes, both of one thread.

use crate::allocator::{begin, peak};

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
    let (before, began) = (begin(), nanoseconds());
    let done = work();
    let nanoseconds = nanoseconds() - began;
    (done, Cost { nanoseconds, bytes: peak().saturating_sub(before) })
}
