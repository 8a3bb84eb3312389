//! HTTP/1 and HTTP/2: each request is judged before its first octet is forwarded.
//!
//! A client's connection has one to the server, as if the proxy were not there, and both end together. It is opened once the
//! first request may pass as far as is known before the backend is; then the request is judged again, by that backend's rules.
//!
//! What a connection speaks is told by its first line: HTTP/2's preface, an HTTP/1 request line, or neither. What is neither
//! is refused with 400; but if all may pass on the flow, and rules only make it seen, it is relayed as it is (DESIGN 6.6), and
//! the server may speak first.

mod answer;
mod chunk;
mod connection;
mod exchange;
#[cfg(test)]
mod fuzz;
mod h2;
mod head;
mod judge;
mod message;
mod pump;

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use sluice_policy_core::l7::http::Version;
use tokio::net::TcpStream;

use self::answer::{Answer, Kept};
use self::head::REQUEST_LINE;
use crate::connect::Connect;
use crate::engine::{Counters, count, reset};
use crate::policy::{Looks, Policy};
use crate::record::{Kind, Recorder};
use crate::relay::{self, Buffer, Progress, Stalled, Text, Timer, write_two};
use crate::session::{Session, unreadable};
use crate::tls;

/// What a client of HTTP/2 sends first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaks {
    /// It cannot be told yet.
    Unclear,
    /// HTTP/1.
    Http1,
    /// HTTP/2, with prior knowledge.
    Http2,
    /// TLS.
    Tls,
    /// Something else.
    Other,
}

/// Tells what a connection speaks from its first octets.
fn speaks(mut octets: &[u8]) -> Speaks {
    // Empty lines before a request are none of it (RFC 9112, 2.2).
    while let Some(rest) = octets.strip_prefix(b"\r\n") {
        octets = rest;
    }
    let common = octets.iter().zip(PREFACE).take_while(|(one, other)| one == other).count();
    if common == PREFACE.len() {
        return Speaks::Http2;
    }
    // "PRI" alone is how no request of HTTP/1 begins: the method is reserved (RFC 9113, 11.6).
    if common == octets.len() {
        return Speaks::Unclear;
    }
    if common > 3 {
        return Speaks::Other;
    }
    match octets.first() {
        Some(22) => return Speaks::Tls,
        Some(octet) if octet.is_ascii_graphic() => {}
        Some(b'\r') if octets.len() == 1 => return Speaks::Unclear,
        _ => return Speaks::Other,
    }
    let Some(end) = memchr::memchr(b'\n', octets) else {
        let fits = octets.len() <= REQUEST_LINE && octets.iter().all(|octet| *octet >= b' ' || *octet == b'\r');
        // Too long a line is answered by the engine.
        return match (fits, octets.len() > REQUEST_LINE) {
            (true, _) => Speaks::Unclear,
            (false, true) => Speaks::Http1,
            (false, false) => Speaks::Other,
        };
    };
    let line = octets.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let named = line.rsplit(|octet| *octet == b' ').next().is_some_and(|version| version.starts_with(b"HTTP/1."));
    if named && line.contains(&b' ') { Speaks::Http1 } else { Speaks::Other }
}

/// What the first octets of a connection led to.
enum First {
    Speaks(Speaks),
    Server,
    Ended,
}

/// Serves a connection whose requests are judged.
pub(crate) async fn serve<P: Policy, R: Recorder, C: Connect>(
    mut session: Session<'_, P, R, C>,
    mut client: TcpStream,
) {
    let mut from_client = Buffer::default();
    let mut from_server = Buffer::default();
    let mut upstream = None;
    // The server may be the one that speaks first, and may be reached whatever the client says.
    if session.rules().otherwise.passes {
        let Some(stream) = relay::reach(&mut session, &client, Kind::Connection).await else { return };
        upstream = Some(stream);
    }
    let limits = &session.engine.limits;
    let mut timer = Timer::default();
    let progress = Progress::within(limits.idle);
    let first = listen(&mut client, &mut from_client, upstream.as_mut(), &mut from_server, &progress, limits.head_time);
    let first = match timer.guard(&progress, first).await {
        Ok(Ok(first)) => first,
        Ok(Err(_)) => First::Ended,
        Err(Stalled) => {
            count(&session.engine.counters.heads_too_slow);
            if !from_client.is_empty() {
                refuse(&session, client, from_client, Answer::new(408, "the request took too long")).await;
            }
            return;
        }
    };
    drop(timer);
    let all_pass = session.rules().otherwise.passes;
    match (first, upstream) {
        (First::Ended, upstream) => {
            if !from_client.is_empty() {
                reset(&client);
            }
            drop(upstream);
        }
        (First::Server, Some(upstream)) => relay::unread(session, client, upstream, from_client, from_server).await,
        (First::Speaks(Speaks::Http2), upstream) => h2::serve(session, client, upstream, from_client).await,
        (First::Speaks(Speaks::Tls), upstream) if session.rules().looks == Looks::HttpOrTls => {
            // What the ClientHello says decides; if all may pass it decides nothing, and another connection does no harm.
            drop(upstream);
            tls::serve(session, client, from_client).await;
        }
        (First::Speaks(Speaks::Other | Speaks::Tls), Some(upstream)) if all_pass => {
            count(&session.engine.counters.other_protocols);
            relay::unread(session, client, upstream, from_client, from_server).await;
        }
        (First::Speaks(Speaks::Other | Speaks::Tls), _) | (First::Server, None) => {
            count(&session.engine.counters.other_protocols);
            refuse(&session, client, from_client, Answer::new(400, "this is no HTTP request")).await;
        }
        (First::Speaks(Speaks::Http1 | Speaks::Unclear), upstream) => {
            connection::serve(session, client, upstream, from_client, from_server).await;
        }
    }
}

/// Listens to both sides until it is clear what is spoken.
async fn listen(
    client: &mut TcpStream,
    from_client: &mut Buffer,
    upstream: Option<&mut TcpStream>,
    from_server: &mut Buffer,
    progress: &Progress,
    head_time: std::time::Duration,
) -> io::Result<First> {
    let (mut client_read, _) = client.split();
    let mut upstream_read = upstream.map(|upstream| upstream.split().0);
    poll_fn(|cx| {
        loop {
            let silent = from_client.is_empty();
            if !from_client.has_room() && !from_client.grow(REQUEST_LINE + 2) {
                return Poll::Ready(Ok(First::Speaks(Speaks::Http1)));
            }
            match from_client.poll_fill(cx, &mut client_read)? {
                Poll::Ready(0) => return Poll::Ready(Ok(First::Ended)),
                Poll::Ready(_) => match speaks(from_client.octets()) {
                    Speaks::Unclear if silent => progress.expect(head_time),
                    Speaks::Unclear => {}
                    clear => return Poll::Ready(Ok(First::Speaks(clear))),
                },
                Poll::Pending => break,
            }
        }
        if let Some(upstream_read) = &mut upstream_read
            && from_client.is_empty()
            && let Poll::Ready(count) = from_server.poll_fill(cx, upstream_read)?
        {
            // Its end alone is carried to the client by the relay too.
            return Poll::Ready(Ok(if count == 0 { First::Ended } else { First::Server }));
        }
        Poll::Pending
    })
    .await
}

/// Answers a connection that cannot go on, records it, and ends it.
async fn refuse<P: Policy, R: Recorder, C: Connect>(
    session: &Session<'_, P, R, C>,
    mut client: TcpStream,
    from_client: Buffer,
    answer: Answer,
) {
    session.record_failed(unreadable(Version::Http11, answer.status), answer.why);
    close_with(&mut client, from_client, &answer, &session.engine.counters).await;
}

/// Writes an answer and ends the connection so that the client gets to read it: a socket that is closed with octets unread
/// is reset, and a reset overtakes what was written.
async fn close_with(client: &mut TcpStream, mut from_client: Buffer, answer: &Answer, counters: &Counters) {
    let progress = Progress::within(LINGER);
    let work = async {
        let (mut read, mut write) = client.split();
        let mut text = Text::take();
        answer.put(text.edit(), Kept::No, false);
        if write_two(&mut write, text.octets(), &[], |_| {}).await.is_ok() {
            linger(&mut read, &mut write, &mut from_client).await;
        }
    };
    if Timer::default().guard(&progress, work).await.is_err() {
        count(&counters.stalled);
    }
}

/// How long a client has to read an answer that ends its connection.
pub(crate) const LINGER: std::time::Duration = std::time::Duration::from_secs(2);
/// Octets that are read meanwhile, and thrown away.
const LINGER_OCTETS: usize = 1 << 20;

/// Ends the proxy's half of a connection and waits for the client to end the other.
pub(crate) async fn linger(
    read: &mut tokio::net::tcp::ReadHalf<'_>,
    write: &mut tokio::net::tcp::WriteHalf<'_>,
    from_client: &mut Buffer,
) {
    if tokio::io::AsyncWriteExt::shutdown(write).await.is_err() {
        return;
    }
    let mut left = LINGER_OCTETS;
    loop {
        from_client.consume(usize::MAX);
        match poll_fn(|cx| from_client.poll_fill(cx, read)).await {
            Ok(count @ 1..) if count <= left => left -= count,
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests;
