//! Memory of a process that lives for a millisecond.
//!
//! What a plugin allocates fits into some hundred KiB, and all of it goes when it ends. So memory is given out one piece after
//! the other from one room and, but for the last piece, not taken back; what the room has no place for is the system
//! allocator's. That of musl asks the kernel for a page at a time and gives it back: a third of an ADD's CPU went into that.
#![expect(unsafe_code, reason = "an allocator is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::fmt;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of the room. Pages of it that nobody writes to take no memory.
const ROOM: usize = if cfg!(test) { 1 << 16 } else { 1 << 20 };
/// How the room is aligned.
const ALIGN: usize = 4096;

#[repr(C, align(4096))]
struct Room(UnsafeCell<[MaybeUninit<u8>; ROOM]>);

/// The allocator, for `#[global_allocator]` of a plugin.
pub struct Arena {
    room: Room,
    /// Bytes of the room that are given out, from its begin.
    used: AtomicUsize,
}

// SAFETY: a byte of the room belongs to whom it was given to, and to nobody else, until `used` has gone back below it; that
// and giving it out again are ordered by `used`, whose changes acquire and release.
// JUSTIFICATION: the room is shared by all threads, as the memory of every allocator is.
unsafe impl Sync for Arena {}

impl Arena {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { room: Room(UnsafeCell::new([MaybeUninit::uninit(); ROOM])), used: AtomicUsize::new(0) }
    }

    const fn base(&self) -> *mut u8 {
        self.room.0.get().cast()
    }

    /// Where in the room a piece begins; none: it is the system's.
    fn place_of(&self, piece: *mut u8) -> Option<usize> {
        Some(piece.addr().wrapping_sub(self.base().addr())).filter(|place| *place < ROOM)
    }

    /// Moves the end of what is given out from one place to another, if it is there.
    fn move_end(&self, from: usize, to: usize) -> Result<usize, usize> {
        self.used.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
    }
}

impl Default for Arena {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("used", &self.used).finish_non_exhaustive()
    }
}

// SAFETY: a piece lies within the room, where `place_of` finds it again, at a multiple of its alignment, and overlaps no other
// (`used` has passed it in one step), or is the system allocator's, to which it goes back.
// JUSTIFICATION: there is no other way to give a program an allocator.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut used = self.used.load(Ordering::Acquire);
        loop {
            let begin = used.next_multiple_of(layout.align());
            let end = begin.saturating_add(layout.size());
            if layout.align() > ALIGN || end > ROOM {
                // SAFETY: the caller's promises are the callee's.
                return unsafe { System.alloc(layout) };
            }
            match self.move_end(used, end) {
                // SAFETY: `begin` is within the room, or just behind it for a piece of no bytes.
                Ok(_) => return unsafe { self.base().add(begin) },
                Err(now) => used = now,
            }
        }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        match self.place_of(piece) {
            // Only the last piece goes back; that of others is lost until the process ends.
            Some(begin) => {
                let _is_last = self.move_end(begin + layout.size(), begin);
            }
            // SAFETY: it is the system allocator's; the caller's promises are the callee's.
            None => unsafe { System.dealloc(piece, layout) },
        }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(begin) = self.place_of(piece) else {
            // SAFETY: it is the system allocator's; the caller's promises are the callee's.
            return unsafe { System.realloc(piece, layout, size) };
        };
        let end = begin.saturating_add(size);
        let is_moved = end <= ROOM && self.move_end(begin + layout.size(), end).is_ok();
        if is_moved || size <= layout.size() {
            return piece;
        }
        // SAFETY: the caller promises that the size, rounded up to the alignment, is one that a layout can have.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: the size is not 0, as it is above that of the piece.
        let new = unsafe { self.alloc(wanted) };
        if !new.is_null() {
            // SAFETY: the old piece has so many bytes, the new one more, and they do not overlap.
            unsafe { piece.copy_to_nonoverlapping(new, layout.size()) };
            // SAFETY: the piece is this allocator's, of that layout, and is not used any more.
            unsafe { self.dealloc(piece, layout) };
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Alloc { size: usize, align: usize },
        Dealloc(usize),
        Realloc(usize, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Some are larger than the room, or are aligned more than it is.
        let size = prop_oneof![8 => 1usize..2_000, 1 => 1usize..2 * ROOM];
        prop_oneof![
            4 => (size.clone(), 0u32..14).prop_map(|(size, shift)| Step::Alloc { size, align: 1 << shift }),
            2 => any::<usize>().prop_map(Step::Dealloc),
            3 => (any::<usize>(), size).prop_map(|(at, size)| Step::Realloc(at, size)),
        ]
    }

    /// A piece and what was written into all of its bytes.
    struct Piece(*mut u8, Layout, u8);

    impl Piece {
        fn fill(&self) {
            // SAFETY: the piece has so many bytes.
            unsafe { self.0.write_bytes(self.2, self.1.size()) };
        }

        fn holds(&self, bytes: usize) -> bool {
            // SAFETY: the piece has at least so many bytes, all of them written.
            unsafe { std::slice::from_raw_parts(self.0, bytes) }.iter().all(|byte| *byte == self.2)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Nobody writes into another's piece: each holds what was written until it goes back, aligned as it was asked for.
        #[test]
        fn pieces_are_apart(steps in proptest::collection::vec(step(), 1..200)) {
            let arena: Box<Arena> = Box::default();
            let mut pieces: Vec<Piece> = Vec::new();
            for (number, step) in (0u8..=255).cycle().zip(steps) {
                match step {
                    Step::Alloc { size, align } => {
                        let layout = Layout::from_size_align(size, align).unwrap();
                        // SAFETY: the size is not 0.
                        let piece = Piece(unsafe { arena.alloc(layout) }, layout, number);
                        prop_assert!(!piece.0.is_null() && piece.0.addr().is_multiple_of(align));
                        piece.fill();
                        pieces.push(piece);
                    }
                    Step::Dealloc(at) if !pieces.is_empty() => {
                        let piece = pieces.swap_remove(at % pieces.len());
                        prop_assert!(piece.holds(piece.1.size()));
                        // SAFETY: it is the arena's, and of that layout.
                        unsafe { arena.dealloc(piece.0, piece.1) };
                    }
                    Step::Realloc(at, size) if !pieces.is_empty() => {
                        let at = at % pieces.len();
                        let Piece(old, layout, byte) = pieces.swap_remove(at);
                        // SAFETY: it is the arena's, and of that layout; the size is not 0.
                        let new = unsafe { arena.realloc(old, layout, size) };
                        let piece = Piece(new, Layout::from_size_align(size, layout.align()).unwrap(), byte);
                        prop_assert!(!new.is_null() && new.addr().is_multiple_of(layout.align()));
                        prop_assert!(piece.holds(size.min(layout.size())));
                        piece.fill();
                        pieces.push(piece);
                    }
                    Step::Dealloc(_) | Step::Realloc(..) => {}
                }
            }
            for piece in pieces {
                prop_assert!(piece.holds(piece.1.size()));
                // SAFETY: it is the arena's, and of that layout.
                unsafe { arena.dealloc(piece.0, piece.1) };
            }
        }
    }

    #[test]
    fn the_last_piece_grows_and_goes_back() {
        let arena: Box<Arena> = Box::default();
        let layout = Layout::from_size_align(16, 8).unwrap();
        // SAFETY: the size is not 0.
        let first = unsafe { arena.alloc(layout) };
        // SAFETY: the piece is the arena's, of that layout.
        assert_eq!(unsafe { arena.realloc(first, layout, 100) }, first);
        let grown = Layout::from_size_align(100, 8).unwrap();
        assert_eq!(arena.used.load(Ordering::Relaxed), 100);
        // SAFETY: the piece is the arena's, of that layout.
        unsafe { arena.dealloc(first, grown) };
        assert_eq!(arena.used.load(Ordering::Relaxed), 0);
    }
}
