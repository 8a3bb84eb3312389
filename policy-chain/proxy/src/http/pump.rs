//! Bodies on their way, in whatever framing, through one buffer or none.

use std::cell::Cell;
use std::future::poll_fn;

use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::chunk::Then;
use super::head::read_trailers;
use super::message::{Body, put_trailers};
use crate::relay::{Buffer, Failed, Progress, STEP, Text, splice_some, write_two};

/// Octets still to come from which on they go through a pipe.
const BULK: u64 = 64 << 10;

/// Why a body did not get through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// Reading failed.
    From,
    /// Writing failed.
    To,
    /// It ended before its end.
    Early,
    /// It is malformed.
    Malformed(&'static str),
}

/// What has moved of a message's content.
#[derive(Debug)]
pub(super) struct Meter<'p> {
    pub(super) content: &'p Cell<u64>,
    pub(super) progress: &'p Progress,
}

impl Meter<'_> {
    fn add(&self, count: u64) {
        self.content.set(self.content.get() + count);
    }
}

/// Sends a head and the body after it. `body` becomes [`Body::Empty`] once it has been sent.
pub(super) async fn pump(
    from: &mut ReadHalf<'_>,
    held: &mut Buffer,
    to: &mut WriteHalf<'_>,
    mut head: &[u8],
    body: &mut Body,
    meter: Meter<'_>,
) -> Result<(), Broken> {
    let mark = |_count| meter.progress.mark();
    let mut bulk = false;
    loop {
        let octets = held.octets();
        let take = match body {
            Body::Empty => {
                return write_two(to, head, &[], mark).await.map_err(|_error| Broken::To);
            }
            Body::Length(left) => usize::try_from(*left).unwrap_or(usize::MAX).min(octets.len()),
            Body::UntilEnd => octets.len(),
            Body::Chunked(_) => {
                chunk(held, to, &mut head, body, &meter).await?;
                if *body != Body::Empty {
                    fill(from, held, meter.progress).await?;
                }
                continue;
            }
        };
        bulk |= !held.has_room();
        write_two(to, head, octets.get(..take).unwrap_or_default(), mark).await.map_err(|_error| Broken::To)?;
        head = &[];
        held.consume(take);
        meter.add(take as u64);
        if let Body::Length(left) = body {
            *left -= take as u64;
            if *left == 0 {
                *body = Body::Empty;
                return Ok(());
            }
        }
        let limit = match body {
            Body::Length(left) if *left >= BULK => usize::try_from(*left).unwrap_or(usize::MAX).min(STEP),
            Body::UntilEnd if bulk => STEP,
            _ => {
                match (fill(from, held, meter.progress).await, &body) {
                    (Err(Broken::Early), Body::UntilEnd) => break,
                    (filled, _) => filled?,
                }
                continue;
            }
        };
        let count = splice_some(from.as_ref(), to.as_ref(), limit, mark).await.map_err(|failed| match failed {
            Failed::From(_) => Broken::From,
            Failed::To(_) => Broken::To,
        })?;
        meter.add(count as u64);
        match body {
            Body::Length(_) if count == 0 => return Err(Broken::Early),
            Body::Length(left) => *left = left.saturating_sub(count as u64),
            _ if count == 0 => break,
            _ => {}
        }
    }
    *body = Body::Empty;
    Ok(())
}

/// Reads more of a message.
pub(super) async fn fill(from: &mut ReadHalf<'_>, held: &mut Buffer, progress: &Progress) -> Result<(), Broken> {
    match poll_fn(|cx| held.poll_fill(cx, from)).await {
        Ok(0) => Err(Broken::Early),
        Ok(_) => {
            progress.mark();
            Ok(())
        }
        Err(_) => Err(Broken::From),
    }
}

/// Sends what is there of a chunked body, after a head.
async fn chunk(
    held: &mut Buffer,
    to: &mut WriteHalf<'_>,
    head: &mut &[u8],
    body: &mut Body,
    meter: &Meter<'_>,
) -> Result<(), Broken> {
    let mark = |_count| meter.progress.mark();
    loop {
        let Body::Chunked(chunks) = body else { return Ok(()) };
        let octets = held.octets();
        let run = chunks.advance(octets).map_err(Broken::Malformed)?;
        meter.add(run.content);
        let raw = octets.get(..run.raw).unwrap_or_default();
        write_two(to, head, raw, mark).await.map_err(|_error| Broken::To)?;
        *head = &[];
        let skip = match run.then {
            Then::More | Then::End => 0,
            Then::Skip(skip) => skip,
            Then::Line { skip, size } => {
                let mut line = Text::take();
                put_size(line.edit(), size);
                write_two(to, line.octets(), &[], mark).await.map_err(|_error| Broken::To)?;
                skip
            }
            Then::Last { line, trailers } => {
                if !chunks.is_stripped() {
                    let at = run.raw + line;
                    let section = held.octets().get(at..at + trailers).unwrap_or_default();
                    let mut text = Text::take();
                    text.edit().extend_from_slice(b"0\r\n");
                    read_trailers(section, |fields| put_trailers(text.edit(), fields))
                        .map_err(|_bad| Broken::Malformed("the trailers are malformed"))?;
                    text.edit().extend_from_slice(b"\r\n");
                    write_two(to, text.octets(), &[], mark).await.map_err(|_error| Broken::To)?;
                }
                line + trailers
            }
        };
        held.consume(run.raw + skip);
        if chunks.is_done() {
            *body = Body::Empty;
        } else if run.then == Then::More {
            return Ok(());
        }
    }
}

/// Appends a chunk's size line.
fn put_size(out: &mut Vec<u8>, size: u64) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (64 - size.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        let digit = usize::try_from(size >> (4 * place) & 15).unwrap_or_default();
        out.push(DIGITS.get(digit).copied().unwrap_or(b'0'));
    }
    out.extend_from_slice(b"\r\n");
}

/// Reads the body of a request that goes nowhere, if it is no longer than `limit`.
pub(super) async fn discard(
    from: &mut ReadHalf<'_>,
    held: &mut Buffer,
    body: &mut Body,
    mut limit: u64,
    progress: &Progress,
) -> bool {
    loop {
        let octets = held.octets();
        let taken = match body {
            Body::Empty => return true,
            Body::UntilEnd => return false,
            Body::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(octets.len());
                *left -= take as u64;
                if *left > limit {
                    return false;
                }
                if *left == 0 {
                    *body = Body::Empty;
                }
                take
            }
            Body::Chunked(chunks) => {
                let Ok(run) = chunks.advance(octets) else { return false };
                let skip = match run.then {
                    Then::More | Then::End => 0,
                    Then::Skip(skip) | Then::Line { skip, .. } => skip,
                    Then::Last { line, trailers } => line + trailers,
                };
                let more = run.then != Then::More;
                if chunks.is_done() {
                    *body = Body::Empty;
                }
                let taken = run.raw + skip;
                held.consume(taken);
                let Some(left) = limit.checked_sub(taken as u64) else { return false };
                limit = left;
                if more {
                    continue;
                }
                0
            }
        };
        held.consume(taken);
        let Some(left) = limit.checked_sub(taken as u64) else { return false };
        limit = left;
        if *body == Body::Empty {
            return true;
        }
        if fill(from, held, progress).await.is_err() {
            return false;
        }
    }
}
