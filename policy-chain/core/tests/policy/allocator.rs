//! An allocator that counts the bytes of each thread. `tests/src/bin/policy-memory.rs` has it too.
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

/// Bytes that this thread holds, of what it has allocated itself.
pub(crate) fn held() -> usize {
    usize::try_from(HELD.get().0).unwrap_or(0)
}

/// The most that it held since [`begin`].
pub(crate) fn peak() -> usize {
    usize::try_from(HELD.get().1).unwrap_or(0)
}

/// Begins anew to look for the most. Gives what is held.
pub(crate) fn begin() -> usize {
    let (now, _) = HELD.get();
    HELD.set((now, now));
    held()
}
