//! A connection of HTTP/1, request by request.
//!
//! Requests that a client sends ahead wait in its buffer: one is under way at a time, so that no response can be taken for
//! another's.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::answer::{Answer, DENIED, Kept};
use super::exchange::{Exchanged, Link, exchange};
use super::head::{BadHead, REQUEST_LINE, Scan};
use super::judge::{Judged, judge, still_passes};
use super::message::{Body, RequestPlan};
use super::pump::discard;
use super::{close_with, linger};
use crate::connect::Connect;
use crate::engine::{count, reset};
use crate::policy::Policy;
use crate::record::{Kind, Recorder};
use crate::relay::{self, Buffer, Ends, Progress, Stalled, Text, Timer, write_two};
use crate::session::{NoUpstream, Pending, Session, Since};
use crate::wake::Flagged;

/// Most empty lines before a request that are passed over (RFC 9112, 2.2).
const EMPTY_LINES: usize = 2;

/// How a connection goes on after one of its requests, or in place of one.
#[derive(Debug)]
enum Next {
    /// With the next request.
    Request,
    /// It ends, once the client has read what was written.
    Close,
    /// It ends, and the client has said itself that it asks no more.
    Over,
    /// It ends with this answer.
    Answer(Answer),
    /// It is reset, and the server's with it.
    Reset,
    /// It is no longer HTTP. What had been asked for it was the head of so many lines.
    Tunnel(Box<[u8]>, usize),
}

/// What has come in place of a request.
#[derive(Debug)]
enum Head {
    /// A head of so many octets and lines.
    Whole(usize, usize),
    /// Something else.
    Other(Next),
}

/// Serves a connection of HTTP/1. What has been read of it is in `from_client`.
pub(super) async fn serve<P: Policy, R: Recorder, C: Connect>(
    mut session: Session<'_, P, R, C>,
    mut client: TcpStream,
    upstream: Option<TcpStream>,
    mut from_client: Buffer,
    from_server: Buffer,
) {
    let mut timer = Timer::default();
    let connections = &session.engine.connections;
    let ending = pin!(connections.until_end());
    let mut ending = Flagged::new(ending);
    let upstream = match upstream {
        Some(upstream) => Ok(upstream),
        None => before_upstream(&mut session, &mut client, &mut from_client, &mut timer, &mut ending).await,
    };
    let mut upstream = match upstream {
        Ok(upstream) => upstream,
        Err(next) => return end(&session, client, None, from_client, next).await,
    };
    let (next, from_client, from_server) = {
        let (client_read, client_write) = client.split();
        let (upstream_read, upstream_write) = upstream.split();
        let mut link = Link {
            client_read,
            client_write,
            from_client,
            upstream_read,
            upstream_write,
            from_server,
            client_ended: false,
        };
        let next = requests(&mut session, &mut link, &mut timer, &mut ending).await;
        (next, link.from_client, link.from_server)
    };
    drop(timer);
    match next {
        Next::Tunnel(head, lines) => {
            let rules = Arc::clone(session.rules());
            let ruling = rules.judge_unread();
            let mut pending = session.begin(Kind::Connection, &ruling, Since::Now);
            pending.passed();
            let ends = Ends { client, upstream, from_client, from_server };
            relay::run(session, ends, pending, move |rules| still_passes(rules, &head, lines)).await;
        }
        next => end(&session, client, Some(upstream), from_client, next).await,
    }
}

/// Ends a connection.
async fn end<P: Policy, R: Recorder, C: Connect>(
    session: &Session<'_, P, R, C>,
    mut client: TcpStream,
    upstream: Option<TcpStream>,
    mut from_client: Buffer,
    next: Next,
) {
    match next {
        Next::Reset => {
            reset(&client);
            upstream.iter().for_each(reset);
        }
        Next::Answer(answer) => {
            drop(upstream);
            close_with(&mut client, from_client, &answer, &session.engine.counters).await;
        }
        // The kernel sends what is still to be sent. Octets that are there all the same would make it a reset.
        Next::Over if from_client.is_empty() && client.try_read(&mut [0]).is_err() => {}
        Next::Request | Next::Close | Next::Over | Next::Tunnel(..) => {
            drop(upstream);
            let (mut read, mut write) = client.split();
            let progress = Progress::within(super::LINGER);
            let work = linger(&mut read, &mut write, &mut from_client);
            if Timer::default().guard(&progress, work).await.is_err() {
                count(&session.engine.counters.stalled);
            }
        }
    }
}

/// Requests that are refused before there is a connection to the server; then that connection. The request that passes stays
/// in the buffer.
async fn before_upstream<P: Policy, R: Recorder, C: Connect>(
    session: &mut Session<'_, P, R, C>,
    client: &mut TcpStream,
    from_client: &mut Buffer,
    timer: &mut Timer,
    ending: &mut Flagged<'_, impl Future<Output = ()>>,
) -> Result<TcpStream, Next> {
    let (mut read, mut write) = client.split();
    loop {
        let (end, lines) = match next_head(session, &mut read, from_client, None, (timer, ending)).await {
            Head::Whole(end, lines) => (end, lines),
            Head::Other(next) => return Err(next),
        };
        if session.refresh().await.is_err() {
            return Err(Next::Reset);
        }
        let mut out = Text::take();
        match judge(session, from_client.octets().get(..end).unwrap_or_default(), lines, out.edit()) {
            Judged::Bad(answer) => return Err(Next::Answer(answer)),
            Judged::Refused(plan, pending) => {
                from_client.consume(end);
                match deny(session, (&mut read, &mut write), from_client, plan, pending, timer).await {
                    Next::Request => {}
                    next => return Err(next),
                }
            }
            Judged::Passes(_, mut pending) => {
                return match session.connect().await {
                    Ok(upstream) => Ok(upstream),
                    Err(NoUpstream::Refused(refused)) => {
                        pending.refused(&refused.to_string());
                        session.finish(pending);
                        Err(Next::Reset)
                    }
                    Err(failed) => {
                        let status = if matches!(failed, NoUpstream::TimedOut) { 504 } else { 502 };
                        pending.answered(status);
                        session.finish(pending);
                        Err(Next::Answer(Answer::new(status, "the server could not be reached")))
                    }
                };
            }
        }
    }
}

/// Request after request, until the connection ends or is no longer HTTP.
async fn requests<P: Policy, R: Recorder, C: Connect>(
    session: &mut Session<'_, P, R, C>,
    link: &mut Link<'_>,
    timer: &mut Timer,
    ending: &mut Flagged<'_, impl Future<Output = ()>>,
) -> Next {
    let mut first = true;
    loop {
        if link.client_ended && link.from_client.is_empty() {
            return Next::Close;
        }
        if !link.from_server.is_empty() {
            // What the server said beyond its response would be taken for the next.
            count(&session.engine.counters.responses_bad);
            return Next::Close;
        }
        let server = Some((&mut link.upstream_read, &mut link.from_server));
        let client = (&mut link.client_read, &mut link.from_client);
        let (end, lines) = match next_head(session, client.0, client.1, server, (timer, ending)).await {
            Head::Whole(end, lines) => (end, lines),
            Head::Other(next) => return next,
        };
        if session.is_stale() && session.refresh().await.is_err() {
            return Next::Reset;
        }
        let mut out = Text::take();
        let head = link.from_client.octets().get(..end).unwrap_or_default();
        let judged = judge(session, head, lines, out.edit());
        // Of a request that may become a tunnel, its head as it came: it is judged again when policy changes.
        let asked: Option<Box<[u8]>> = match &judged {
            Judged::Passes(plan, _) if plan.offers_upgrade || plan.is_connect => Some(head.into()),
            _ => None,
        };
        let next = match judged {
            Judged::Bad(answer) => Next::Answer(answer),
            Judged::Refused(plan, pending) => {
                link.from_client.consume(end);
                let client = (&mut link.client_read, &mut link.client_write);
                deny(session, client, &mut link.from_client, plan, pending, timer).await
            }
            Judged::Passes(mut plan, mut pending) => {
                link.from_client.consume(end);
                count(&session.engine.counters.requests_passed);
                let is_last = !plan.persists;
                // The client is told with the answer, so that it asks its next on another connection.
                plan.persists &= !session.engine.connections.ending();
                if plan.lost_upgrade {
                    count(&session.engine.counters.http2_upgrades_removed);
                }
                let engine = session.engine;
                let exchanged = {
                    let work = exchange(link, out.octets(), &plan, &engine.limits, timer, &mut pending);
                    while_it_passes(session, out.octets(), pin!(work)).await
                };
                let Some(exchanged) = exchanged else {
                    pending.refused("policy changed while it was answered");
                    session.finish(pending);
                    return Next::Reset;
                };
                let asked = asked.map(|head| (head, lines));
                match (after(session, &exchanged, pending, asked, std::mem::take(&mut first)), exchanged) {
                    (Next::Close, Exchanged::Answered { request_done: true, .. }) if is_last => Next::Over,
                    (next, _) => next,
                }
            }
        };
        if !matches!(next, Next::Request) {
            return next;
        }
    }
}

/// Goes on with an exchange for as long as rules let its request pass, `head` being what went on of it; none if they no longer
/// do. Policy that has changed is looked at with the next octets, before they go on: as gates do it, with the next packet.
async fn while_it_passes<P: Policy, R: Recorder, C: Connect>(
    session: &mut Session<'_, P, R, C>,
    head: &[u8],
    mut work: Pin<&mut impl Future<Output = Exchanged>>,
) -> Option<Exchanged> {
    loop {
        let exchanged = poll_fn(|cx| match session.is_stale() {
            true => Poll::Ready(None),
            false => work.as_mut().poll(cx).map(Some),
        });
        if let Some(exchanged) = exchanged.await {
            return Some(exchanged);
        }
        let mut scan = Scan::default();
        let whole = scan.find_end(head).is_ok_and(|end| end.is_some());
        if session.refresh().await.is_err() || !whole || !still_passes(session.rules(), head, scan.lines()) {
            return None;
        }
    }
}

/// How the connection goes on after an exchange.
fn after<P: Policy, R: Recorder, C: Connect>(
    session: &Session<'_, P, R, C>,
    exchanged: &Exchanged,
    mut pending: Pending,
    asked: Option<(Box<[u8]>, usize)>,
    first: bool,
) -> Next {
    let counters = &session.engine.counters;
    let bad_gateway = |why| {
        count(&counters.responses_bad);
        Next::Answer(Answer::new(502, why))
    };
    let next = match *exchanged {
        Exchanged::Answered { response, request_done } => match asked {
            Some((head, lines)) if response.becomes_tunnel && request_done => Next::Tunnel(head, lines),
            _ if response.becomes_tunnel => Next::Reset,
            _ if response.persists && request_done => Next::Request,
            _ => Next::Close,
        },
        Exchanged::NoResponse { .. } if first => bad_gateway("the server gave no response"),
        // As the client would see it without the proxy, so that it can send the request again: the server may have ended the
        // idle connection while the request was on its way.
        Exchanged::NoResponse { reset: false } => Next::Close,
        Exchanged::NoResponse { reset: true } => Next::Reset,
        Exchanged::BadResponse(why) => bad_gateway(why),
        Exchanged::BrokeOff => {
            count(&counters.responses_bad);
            Next::Reset
        }
        Exchanged::ClientGone => Next::Reset,
        Exchanged::BadRequest { why, answered } => {
            count(&counters.requests_bad);
            if answered { Next::Reset } else { Next::Answer(Answer::new(400, why)) }
        }
        Exchanged::Stalled { answered } => {
            count(&counters.stalled);
            if answered { Next::Reset } else { Next::Answer(Answer::new(504, "the server took too long")) }
        }
    };
    if let Next::Answer(answer) = &next {
        pending.answered(answer.status);
    }
    session.finish(pending);
    next
}

/// Answers a request that rules refuse, and passes over its body.
async fn deny<P: Policy, R: Recorder, C: Connect>(
    session: &Session<'_, P, R, C>,
    (read, write): (&mut ReadHalf<'_>, &mut WriteHalf<'_>),
    from_client: &mut Buffer,
    plan: RequestPlan,
    mut pending: Pending,
    timer: &mut Timer,
) -> Next {
    let limits = &session.engine.limits;
    // A client that asked whether to send the body may take the refusal for the answer, or not.
    let drains = match plan.body {
        Body::Empty => true,
        Body::Length(length) => !plan.expects && length <= limits.drain,
        Body::Chunked(_) => !plan.expects,
        Body::UntilEnd => false,
    };
    let keeps = plan.persists && drains && !plan.is_connect && !session.engine.connections.ending();
    let kept = match (keeps, plan.version) {
        (false, _) => Kept::No,
        (true, sluice_policy_core::l7::http::Version::Http10) => Kept::Told,
        (true, _) => Kept::Yes,
    };
    pending.answered(DENIED.status);
    session.finish(pending);
    let mut text = Text::take();
    DENIED.put(text.edit(), kept, plan.is_head);
    let progress = Progress::within(limits.head_time);
    let mut body = plan.body;
    let work = async {
        if write_two(write, text.octets(), &[], |_| progress.mark()).await.is_err() {
            return Next::Reset;
        }
        // Not one octet of time more for a body that trickles in.
        let fixed = Progress::within(limits.head_time);
        if keeps && discard(read, from_client, &mut body, limits.drain, &fixed).await {
            Next::Request
        } else {
            Next::Close
        }
    };
    match timer.guard(&progress, work).await {
        Ok(next) => next,
        Err(Stalled) => {
            count(&session.engine.counters.stalled);
            Next::Close
        }
    }
}

/// Waits for a whole head, and for the end of either side.
async fn next_head<P: Policy, R: Recorder, C: Connect>(
    session: &Session<'_, P, R, C>,
    read: &mut ReadHalf<'_>,
    from_client: &mut Buffer,
    mut server: Option<(&mut ReadHalf<'_>, &mut Buffer)>,
    (timer, ending): (&mut Timer, &mut Flagged<'_, impl Future<Output = ()>>),
) -> Head {
    let (limits, counters) = (&session.engine.limits, &session.engine.counters);
    let progress = Progress::within(if from_client.is_empty() { limits.idle } else { limits.head_time });
    let mut scan = Scan::default();
    let mut empty_lines = 0;
    let mut leaves = false;
    let work = poll_fn(|cx| {
        loop {
            while empty_lines < EMPTY_LINES && from_client.octets().starts_with(b"\r\n") {
                from_client.consume(2);
                empty_lines += 1;
                scan = Scan::default();
            }
            match scan.find_end(from_client.octets()) {
                Ok(Some(end)) => return Poll::Ready(Head::Whole(end, scan.lines())),
                Ok(None) => {}
                Err(BadHead::Malformed(why)) => {
                    count(&counters.requests_bad);
                    return Poll::Ready(Head::Other(Next::Answer(Answer::new(400, why))));
                }
                Err(BadHead::Fields) => return Poll::Ready(too_large(counters)),
            }
            if !scan.has_line() && from_client.octets().len() > REQUEST_LINE {
                count(&counters.heads_too_large);
                return Poll::Ready(Head::Other(Next::Answer(Answer::new(414, "the request line is too long"))));
            }
            if !from_client.has_room() && !from_client.grow(limits.head) {
                return Poll::Ready(too_large(counters));
            }
            let silent = from_client.is_empty();
            match from_client.poll_fill(cx, read) {
                Poll::Ready(Ok(0)) if from_client.is_empty() => return Poll::Ready(Head::Other(Next::Close)),
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Head::Other(Next::Reset)),
                Poll::Ready(Ok(_)) if silent => progress.expect(limits.head_time),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        // A server that ends an idle connection, or speaks without having been asked, ends the client's.
        if let Some((upstream_read, from_server)) = &mut server
            && let Poll::Ready(read) = from_server.poll_fill(cx, upstream_read)
        {
            return Poll::Ready(Head::Other(if read.is_ok() { Next::Close } else { Next::Reset }));
        }
        if !leaves && from_client.is_empty() && ending.poll(cx, session.engine.connections.ending()) {
            leaves = true;
            progress.expect(limits.leave);
        }
        Poll::Pending
    });
    match timer.guard(&progress, work).await {
        Ok(head) => head,
        Err(Stalled) if from_client.is_empty() => {
            if !session.engine.connections.ending() {
                count(&counters.stalled);
            }
            Head::Other(Next::Close)
        }
        Err(Stalled) => {
            count(&counters.heads_too_slow);
            Head::Other(Next::Answer(Answer::new(408, "the request took too long")))
        }
    }
}

fn too_large(counters: &crate::engine::Counters) -> Head {
    count(&counters.heads_too_large);
    Head::Other(Next::Answer(Answer::new(431, "the request's head is too large")))
}
