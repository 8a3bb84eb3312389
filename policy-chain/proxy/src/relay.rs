//! Octets both ways, once a connection needs no more looking at.
//!
//! The end of a stream is carried over when all before it has been: a half-closed connection stays so. A reset of one side
//! resets the other. Small messages are copied through a buffer that is held only while it has something; a full buffer means
//! bulk, which goes through a pipe and never enters this process.

mod buffer;
#[expect(
    unsafe_code,
    reason = "splice(2): nix has it behind a feature that all other packages would be built anew for"
)]
mod splice;
mod timer;
mod write;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

pub(crate) use self::buffer::{BLOCK, Buffer, Text, uninit};
pub(crate) use self::splice::{Failed, splice_some};
pub(crate) use self::timer::{Progress, Stalled, Timer};
pub(crate) use self::write::write_two;
use crate::connect::Connect;
use crate::engine::{count, reset};
use crate::policy::{Policy, Rules};
use crate::record::{Kind, Recorder};
use crate::session::{Session, Since};
use crate::wake::Flagged;

/// Octets that one step of a bulk transfer moves at most.
pub(crate) const STEP: usize = 1 << 20;
/// Steps in a row, each of less than a buffer, after which a bulk transfer is one no longer.
const SMALL_STEPS: u32 = 8;

/// Serves a connection that is not looked into.
pub(crate) async fn serve<P: Policy, R: Recorder, C: Connect>(mut session: Session<'_, P, R, C>, client: TcpStream) {
    if let Some(upstream) = reach(&mut session, &client, Kind::Connection).await {
        unread(session, client, upstream, Buffer::default(), Buffer::default()).await;
    }
}

/// Relays what could not be read as what the rules are for, if all may pass.
pub(crate) async fn unread<P: Policy, R: Recorder, C: Connect>(
    session: Session<'_, P, R, C>,
    client: TcpStream,
    upstream: TcpStream,
    from_client: Buffer,
    from_server: Buffer,
) {
    let rules = Arc::clone(session.rules());
    let ruling = rules.judge_unread();
    let pending = session.begin(Kind::Connection, &ruling, Since::Start);
    if !ruling.passes {
        reset(&client);
        reset(&upstream);
        session.finish(pending);
        return;
    }
    let ends = Ends { client, upstream, from_client, from_server };
    run(session, ends, pending, |rules| rules.judge_unread().passes).await;
}

/// Connects to the server. One that cannot be reached, or may not, is told by a reset: no protocol has words for it.
pub(crate) async fn reach<P: Policy, R: Recorder, C: Connect>(
    session: &mut Session<'_, P, R, C>,
    client: &TcpStream,
    kind: Kind,
) -> Option<TcpStream> {
    let connected = session.connect().await;
    connected
        .inspect_err(|failed| {
            reset(client);
            session.record_failed(kind, &failed.to_string());
        })
        .ok()
}

/// Both connections, and what has been read of them.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) client: TcpStream,
    pub(crate) upstream: TcpStream,
    pub(crate) from_client: Buffer,
    pub(crate) from_server: Buffer,
}

/// Relays until both streams have ended, one is reset, nothing moves for too long, or policy no longer lets it.
pub(crate) async fn run<P: Policy, R: Recorder, C: Connect>(
    mut session: Session<'_, P, R, C>,
    mut ends: Ends,
    mut pending: crate::session::Pending,
    still: impl Fn(&Rules) -> bool,
) {
    let progress = Progress::within(session.engine.limits.relay_idle);
    let moved = Moved { up: Cell::new(0), down: Cell::new(0), progress };
    let kept = {
        let (client_read, client_write) = ends.client.split();
        let (upstream_read, upstream_write) = ends.upstream.split();
        let up = one_way(client_read, ends.from_client, upstream_write, &moved.up, &moved.progress);
        let down = one_way(upstream_read, ends.from_server, client_write, &moved.down, &moved.progress);
        let (mut up, mut down) = (pin!(up), pin!(down));
        let (mut up_ended, mut down_ended) = (false, false);
        let mut both = pin!(poll_fn(|cx| {
            if !up_ended && let Poll::Ready(end) = up.as_mut().poll(cx) {
                up_ended = true;
                if let Err(error) = end {
                    return Poll::Ready(Err(error));
                }
            }
            if !down_ended && let Poll::Ready(end) = down.as_mut().poll(cx) {
                down_ended = true;
                if let Err(error) = end {
                    return Poll::Ready(Err(error));
                }
            }
            if up_ended && down_ended { Poll::Ready(Ok(())) } else { Poll::Pending }
        }));
        let mut timer = Timer::default();
        loop {
            let stale = {
                let mut work = pin!(timer.guard(&moved.progress, both.as_mut()));
                let changed = pin!(session.changed());
                let mut changed = Flagged::new(changed);
                poll_fn(|cx| match work.as_mut().poll(cx) {
                    Poll::Ready(ended) => Poll::Ready(Some(ended)),
                    Poll::Pending if changed.poll(cx, session.is_stale()) => Poll::Ready(None),
                    Poll::Pending => Poll::Pending,
                })
                .await
            };
            match stale {
                Some(Ok(ended)) => break ended.is_ok(),
                Some(Err(Stalled)) => {
                    count(&session.engine.counters.stalled);
                    break false;
                }
                None if session.refresh().await.is_err() || !still(session.rules()) => break false,
                None => {}
            }
        }
    };
    if !kept {
        reset(&ends.client);
        reset(&ends.upstream);
    }
    pending.ended(moved.up.get(), moved.down.get());
    session.finish(pending);
}

/// Octets moved, to the server and to the client.
struct Moved {
    up: Cell<u64>,
    down: Cell<u64>,
    progress: Progress,
}

/// Relays one direction to its end.
async fn one_way(
    mut from: ReadHalf<'_>,
    mut held: Buffer,
    mut to: WriteHalf<'_>,
    moved: &Cell<u64>,
    progress: &Progress,
) -> io::Result<()> {
    let note = |count: usize| {
        moved.set(moved.get() + count as u64);
        progress.mark();
    };
    loop {
        if held.is_empty() && poll_fn(|cx| held.poll_fill(cx, &mut from)).await? == 0 {
            break;
        }
        let bulk = !held.has_room();
        write_two(&mut to, held.octets(), &[], note).await?;
        held.consume(usize::MAX);
        if !bulk {
            continue;
        }
        let mut small = 0;
        while small < SMALL_STEPS {
            let count = splice_some(from.as_ref(), to.as_ref(), STEP, note).await.map_err(|failed| match failed {
                Failed::From(error) | Failed::To(error) => error,
            })?;
            if count == 0 {
                return to.shutdown().await;
            }
            small = if count < BLOCK { small + 1 } else { 0 };
        }
    }
    to.shutdown().await
}
