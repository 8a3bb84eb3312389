//! Buffers, lent to connections only while they hold octets.
//!
//! A node has thousands of idle connections. They hold no buffer: one is taken when octets have arrived and goes back when
//! they have left. Each thread keeps some for the next, so that a busy connection allocates nothing.

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::tcp::ReadHalf;

/// Octets of a buffer.
pub(crate) const BLOCK: usize = 16 << 10;
/// Most buffers that a thread keeps for later, and most texts.
const KEPT: usize = 128;

thread_local! {
    static BLOCKS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static TEXTS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

fn take_block() -> Box<[u8]> {
    BLOCKS.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BLOCK].into_boxed_slice())
}

fn give_block(block: Box<[u8]>) {
    if block.len() == BLOCK {
        BLOCKS.with_borrow_mut(|blocks| {
            if blocks.len() < KEPT {
                blocks.push(block);
            }
        });
    }
}

/// What has been read and not yet been forwarded.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    block: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// What it holds.
    pub(crate) fn octets(&self) -> &[u8] {
        self.block.as_deref().and_then(|block| block.get(self.start..self.end)).unwrap_or_default()
    }

    /// Whether it holds nothing.
    pub(crate) const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether there is room for more.
    pub(crate) fn has_room(&self) -> bool {
        self.block.as_deref().is_none_or(|block| self.end - self.start < block.len())
    }

    /// Forgets the first `count` octets. Gives the block back with the last.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
        if self.is_empty() {
            self.release();
        }
    }

    /// Makes room for up to `limit` octets in all; false if it has that many already.
    pub(crate) fn grow(&mut self, limit: usize) -> bool {
        let held = self.octets();
        if held.len() >= limit {
            return false;
        }
        if !self.has_room() {
            let mut block = vec![0; limit].into_boxed_slice();
            let count = held.len();
            if let Some(to) = block.get_mut(..count) {
                to.copy_from_slice(held);
            }
            if let Some(old) = self.block.replace(block) {
                give_block(old);
            }
            (self.start, self.end) = (0, count);
        }
        true
    }

    /// Reads what has arrived. Ready with 0 at the end of the stream, or if there is no room.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>, from: &mut ReadHalf<'_>) -> Poll<io::Result<usize>> {
        if self.block.is_none() {
            ready!(from.as_ref().poll_read_ready(cx))?;
            self.block = Some(take_block());
        }
        let Some(block) = &mut self.block else { return Poll::Ready(Ok(0)) };
        if self.start > 0 && self.end == block.len() {
            block.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let mut room = ReadBuf::new(block.get_mut(self.end..).unwrap_or_default());
        if room.capacity() == 0 {
            return Poll::Ready(Ok(0));
        }
        let answer = Pin::new(from).poll_read(cx, &mut room);
        let count = room.filled().len();
        self.end += count;
        if self.is_empty() {
            self.release();
        }
        ready!(answer)?;
        Poll::Ready(Ok(count))
    }

    fn release(&mut self) {
        (self.start, self.end) = (0, 0);
        if let Some(block) = self.block.take() {
            give_block(block);
        }
    }
}

impl From<&[u8]> for Buffer {
    fn from(octets: &[u8]) -> Self {
        let mut block = if octets.len() > BLOCK { vec![0; octets.len()].into_boxed_slice() } else { take_block() };
        if let Some(to) = block.get_mut(..octets.len()) {
            to.copy_from_slice(octets);
        }
        Self { block: Some(block), start: 0, end: octets.len() }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.release();
    }
}

/// Text that is made to be written: a message's head.
#[derive(Debug, Default)]
pub(crate) struct Text(Vec<u8>);

impl Text {
    /// An empty one.
    pub(crate) fn take() -> Self {
        Self(TEXTS.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(2048)))
    }

    /// What it holds.
    pub(crate) fn octets(&self) -> &[u8] {
        &self.0
    }

    /// To append to it.
    pub(crate) const fn edit(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        let mut text = std::mem::take(&mut self.0);
        if (1..=BLOCK).contains(&text.capacity()) {
            text.clear();
            TEXTS.with_borrow_mut(|texts| {
                if texts.len() < KEPT {
                    texts.push(text);
                }
            });
        }
    }
}

/// Room for a few header fields on the stack.
pub(crate) const fn uninit<T, const N: usize>() -> [MaybeUninit<T>; N] {
    [const { MaybeUninit::uninit() }; N]
}
