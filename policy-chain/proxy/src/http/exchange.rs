//! One request on its way to the server, and its response on the way back.

use std::cell::Cell;
use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::task::Poll;

use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::head::{BadHead, Scan, read_response};
use super::message::{Body, RequestPlan, ResponsePlan, put_response};
use super::pump::{Broken, Meter, fill, pump};
use crate::engine::Limits;
use crate::relay::{Buffer, Progress, Stalled, Text, Timer};
use crate::session::Pending;

/// Both connections, by halves, and what has been read of them.
pub(super) struct Link<'s> {
    pub(super) client_read: ReadHalf<'s>,
    pub(super) client_write: WriteHalf<'s>,
    pub(super) from_client: Buffer,
    pub(super) upstream_read: ReadHalf<'s>,
    pub(super) upstream_write: WriteHalf<'s>,
    pub(super) from_server: Buffer,
    /// The client's stream has ended.
    pub(super) client_ended: bool,
}

/// How an exchange ended.
#[derive(Debug)]
pub(super) enum Exchanged {
    /// Wholly; the request's body too, if `request_done`.
    Answered {
        /// The response.
        response: ResponsePlan,
        /// Whether the request has been sent to its end.
        request_done: bool,
    },
    /// The server ended its connection without an octet of a response, or reset it.
    NoResponse {
        /// Whether it was reset.
        reset: bool,
    },
    /// The server's response is malformed, or its connection failed, before anything of the response had gone on.
    BadResponse(&'static str),
    /// The response broke off after its beginning had gone on.
    BrokeOff,
    /// The client's connection failed.
    ClientGone,
    /// The request's body is malformed; whether the response has begun.
    BadRequest {
        /// What is wrong.
        why: &'static str,
        /// Whether something of a response has gone on.
        answered: bool,
    },
    /// Nothing moved for too long; whether the response has begun.
    Stalled {
        /// Whether something of a response has gone on.
        answered: bool,
    },
}

/// How far a request has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Under,
    Whole,
    Unwanted,
}

/// Why there is no whole response.
enum Down {
    Broken,
    Nothing { reset: bool },
    Malformed(&'static str),
    Client,
}

/// Sends a request, whose head is `head`, and passes the response back.
pub(super) async fn exchange(
    link: &mut Link<'_>,
    head: &[u8],
    plan: &RequestPlan,
    limits: &Limits,
    timer: &mut Timer,
    record: &mut Pending,
) -> Exchanged {
    let progress = Progress::within(if plan.body == Body::Empty { limits.response } else { limits.stall });
    let (sent, received) = (Cell::new(0), Cell::new(0));
    let (request_done, answered) = (Cell::new(Sent::Under), Cell::new(false));
    let mut body = plan.body;
    let exchanged = {
        let up = async {
            let meter = Meter { content: &sent, progress: &progress };
            let sending =
                pump(&mut link.client_read, &mut link.from_client, &mut link.upstream_write, head, &mut body, meter);
            match sending.await {
                Ok(()) => request_done.set(Sent::Whole),
                // The server wants no more of it. Its response may be there all the same.
                Err(Broken::To) => {
                    request_done.set(Sent::Unwanted);
                    pending().await
                }
                Err(broken) => return broken,
            }
            if plan.body != Body::Empty {
                progress.expect(limits.response);
            }
            watch(&mut link.client_read, &mut link.from_client, &mut link.upstream_write, &mut link.client_ended).await
        };
        let down = async {
            let mut text = Text::take();
            loop {
                let from = (&mut link.upstream_read, &mut link.from_server);
                let mut response = response(from, plan, limits, &progress, &mut text).await?;
                // HTTP/1.0 has no interim responses (RFC 9110, 15.2).
                if response.is_interim() && plan.version == sluice_policy_core::l7::http::Version::Http10 {
                    continue;
                }
                if !response.is_interim() {
                    answered.set(true);
                    record.answered(response.status);
                    progress.expect(if request_done.get() == Sent::Under { limits.stall } else { limits.response });
                }
                let meter = Meter { content: &received, progress: &progress };
                let (from, held) = (&mut link.upstream_read, &mut link.from_server);
                pump(from, held, &mut link.client_write, text.octets(), &mut response.body, meter).await.map_err(
                    |broken| match broken {
                        Broken::To => Down::Client,
                        _ => Down::Broken,
                    },
                )?;
                if !response.is_interim() {
                    return Ok(response);
                }
            }
        };
        run(timer, &progress, (up, down), (&request_done, &answered)).await
    };
    record.ended(sent.get(), received.get());
    exchanged
}

/// Runs both directions together.
async fn run(
    timer: &mut Timer,
    progress: &Progress,
    (up, down): (impl Future<Output = Broken>, impl Future<Output = Result<ResponsePlan, Down>>),
    (request_done, answered): (&Cell<Sent>, &Cell<bool>),
) -> Exchanged {
    let (mut up, mut down) = (pin!(up), pin!(down));
    let mut response = None;
    let both = poll_fn(|cx| {
        if let Poll::Ready(broken) = up.as_mut().poll(cx) {
            return Poll::Ready(match broken {
                Broken::Malformed(why) => Exchanged::BadRequest { why, answered: answered.get() },
                _ => Exchanged::ClientGone,
            });
        }
        if response.is_none()
            && let Poll::Ready(end) = down.as_mut().poll(cx)
        {
            match end {
                Ok(plan) => response = Some(plan),
                Err(failed) => {
                    return Poll::Ready(match (failed, answered.get()) {
                        (Down::Client, _) => Exchanged::ClientGone,
                        (_, true) => Exchanged::BrokeOff,
                        (Down::Nothing { reset }, false) => Exchanged::NoResponse { reset },
                        (Down::Malformed(why), false) => Exchanged::BadResponse(why),
                        (Down::Broken, false) => Exchanged::BadResponse("the server's connection failed"),
                    });
                }
            }
        }
        match response {
            // A server that answers early and lives on may still read the rest, and the connection be kept.
            Some(response) if request_done.get() != Sent::Under || !response.persists => {
                Poll::Ready(Exchanged::Answered { response, request_done: request_done.get() == Sent::Whole })
            }
            _ => Poll::Pending,
        }
    });
    match timer.guard(progress, both).await {
        Ok(exchanged) => exchanged,
        Err(Stalled) => Exchanged::Stalled { answered: answered.get() },
    }
}

/// Reads what the client sends meanwhile, as far as there is room, so that its end and its reset are seen.
async fn watch(
    client_read: &mut ReadHalf<'_>,
    from_client: &mut Buffer,
    upstream_write: &mut WriteHalf<'_>,
    client_ended: &mut bool,
) -> Broken {
    while !*client_ended && from_client.has_room() {
        match poll_fn(|cx| from_client.poll_fill(cx, client_read)).await {
            Ok(0) => *client_ended = true,
            Ok(_) => {}
            Err(_) => return Broken::From,
        }
    }
    // The server sees what it would see without the proxy: that no further request comes.
    if from_client.is_empty()
        && let Err(error) = upstream_write.shutdown().await
    {
        tracing::trace!(%error, "the end of the client's stream was not carried over");
    }
    pending().await
}

/// Reads the head of a response and makes it what goes on.
async fn response(
    (from, held): (&mut ReadHalf<'_>, &mut Buffer),
    request: &RequestPlan,
    limits: &Limits,
    progress: &Progress,
    text: &mut Text,
) -> Result<ResponsePlan, Down> {
    let mut scan = Scan::default();
    let malformed = |bad| match bad {
        BadHead::Malformed(why) => Down::Malformed(why),
        BadHead::Fields => Down::Malformed("the response has too many fields"),
    };
    let end = loop {
        if let Some(end) = scan.find_end(held.octets()).map_err(malformed)? {
            break end;
        }
        if !held.has_room() && !held.grow(limits.head) {
            return Err(Down::Malformed("the response's head is too large"));
        }
        match fill(from, held, progress).await {
            Ok(()) => {}
            Err(broken) if held.is_empty() => {
                return Err(Down::Nothing { reset: broken == Broken::From });
            }
            Err(_) => return Err(Down::Broken),
        }
    };
    text.edit().clear();
    let head = held.octets().get(..end).unwrap_or_default();
    let read = read_response(head, scan.lines(), |line, fields| put_response(text.edit(), line, fields, request));
    let plan = read.map_err(malformed)?.map_err(Down::Malformed)?;
    held.consume(end);
    Ok(plan)
}
