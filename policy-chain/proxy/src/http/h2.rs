//! A connection of HTTP/2, with prior knowledge: each stream of the client's is one of the server's.
//!
//! Bodies and trailers go on as they come, within the windows of both sides: what one side does not take, the other may not
//! send. gRPC is HTTP/2 whose refusals are said in its own words.
//!
//! - An upgrade from HTTP/1.1 (`h2c`) is never offered to the server (`message`), so its requests come this way or not at all.
//! - Extended CONNECT (RFC 8441) is not offered to clients: WebSocket goes over HTTP/1.1.
//! - When policy changes, the requests under way are judged again; those that no longer pass are reset on both sides.

#[cfg(test)]
mod fuzz;
mod stream;

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use h2::Reason;
use h2::client::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use self::stream::{Ended, Judged, Sides};
use crate::connect::Connect;
use crate::engine::{Limits, count};
use crate::policy::Policy;
use crate::record::Recorder;
use crate::relay::{Buffer, Progress, Stalled, Timer};
use crate::session::{NoUpstream, Session};

/// Streams that a client may reset within [`CALM`] before their response has begun (CVE-2023-44487).
const RESETS: u32 = 200;
/// See [`RESETS`].
const CALM: Duration = Duration::from_secs(1);
/// Window of one stream.
const STREAM_WINDOW: u32 = 256 << 10;
/// Octets of one stream that wait to be sent.
const STREAM_SEND: usize = 256 << 10;

/// A connection of which some has been read before.
struct Rewound {
    stream: TcpStream,
    held: Buffer,
}

impl AsyncRead for Rewound {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.held.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let octets = self.held.octets();
        let count = octets.len().min(buf.remaining());
        buf.put_slice(octets.get(..count).unwrap_or_default());
        self.held.consume(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

type Server = h2::server::Connection<Rewound, Bytes>;
type Driver = h2::client::Connection<TcpStream, Bytes>;

fn server_settings(limits: &Limits) -> h2::server::Builder {
    let mut settings = h2::server::Builder::new();
    settings
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.head).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW.min(limits.window))
        .initial_connection_window_size(limits.window)
        .max_send_buffer_size(STREAM_SEND)
        .max_concurrent_reset_streams(32)
        .max_pending_accept_reset_streams(20);
    settings
}

async fn to_server(upstream: TcpStream, limits: &Limits) -> Result<(SendRequest<Bytes>, Driver), h2::Error> {
    h2::client::Builder::new()
        .enable_push(false)
        .max_header_list_size(u32::try_from(limits.head).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW.min(limits.window))
        .initial_connection_window_size(limits.window)
        .max_send_buffer_size(STREAM_SEND)
        .initial_max_send_streams(usize::try_from(limits.streams).unwrap_or(usize::MAX))
        .handshake(upstream)
        .await
}

/// How a connection ended.
enum End {
    /// Both sides are done with it.
    Quiet,
    /// It is reset.
    Reset,
    /// The client was asked to behave, and to go.
    Abuse,
}

/// Serves a connection of HTTP/2. What has been read of it, the preface, is in `from_client`.
pub(super) async fn serve<P: Policy, R: Recorder, C: Connect>(
    mut session: Session<'_, P, R, C>,
    client: TcpStream,
    upstream: Option<TcpStream>,
    from_client: Buffer,
) {
    let limits = session.engine.limits.clone();
    let progress = Progress::within(limits.head_time);
    let mut timer = Timer::default();
    let shake = server_settings(&limits).handshake::<_, Bytes>(Rewound { stream: client, held: from_client });
    let mut server = match timer.guard(&progress, shake).await {
        Ok(Ok(server)) => server,
        Ok(Err(_)) => return,
        Err(Stalled) => {
            count(&session.engine.counters.heads_too_slow);
            return;
        }
    };
    let mut driver = None;
    if let Some(upstream) = upstream {
        match timer.guard(&progress, to_server(upstream, &limits)).await {
            Ok(Ok(made)) => driver = Some(made),
            _ => return,
        }
    }
    progress.expect(limits.idle);
    // Boxed: it is large, and a connection of HTTP/1 would have room for it too.
    let end = Box::pin(streams(&mut session, &mut server, driver, &progress, &mut timer)).await;
    match end {
        End::Quiet | End::Reset => {}
        End::Abuse => {
            count(&session.engine.counters.http2_abuse);
            server.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        }
    }
    if matches!(end, End::Reset) {
        // What is still to be sent is of no use to the client, and dropping it resets its connection.
        return;
    }
    progress.expect(super::LINGER);
    // Ready when what says goodbye has been sent, and the client has gone; or when it takes too long.
    let goodbye = std::future::poll_fn(|cx| server.poll_closed(cx));
    if timer.guard(&progress, goodbye).await.is_err() {
        count(&session.engine.counters.stalled);
    }
}

/// Takes stream after stream, until the connection ends.
async fn streams<P: Policy, R: Recorder, C: Connect>(
    session: &mut Session<'_, P, R, C>,
    server: &mut Server,
    upstream: Option<(SendRequest<Bytes>, Driver)>,
    progress: &Progress,
    timer: &mut Timer,
) -> End {
    let engine = session.engine;
    let mut running: FuturesUnordered<LocalBoxFuture<'_, Ended>> = FuturesUnordered::new();
    let (mut sender, mut driver) = match upstream {
        Some((sender, driver)) => (Some(sender), Some(driver)),
        None => (None, None),
    };
    let mut resets = Resets::default();
    let mut leaving = false;
    let mut passing = stream::Passing::default();
    let mut ending = pin!(engine.connections.until_end());
    let mut told = false;
    loop {
        let event = async {
            let mut connection = pin!(async {
                match &mut driver {
                    Some(driver) => {
                        // It ends when the server does.
                        driver.await.ok();
                    }
                    None => std::future::pending().await,
                }
            });
            tokio::select! {
                accepted = server.accept() => Event::Accepted(accepted.map(|stream| stream.map(Box::new))),
                Some(ended) = running.next(), if !running.is_empty() => Event::Ended(ended),
                () = connection.as_mut(), if !leaving => Event::ServerGone,
                () = session.changed() => Event::Changed,
                () = ending.as_mut(), if !told => Event::Ending,
            }
        };
        let event = match timer.guard(progress, event).await {
            Ok(event) => event,
            Err(Stalled) if running.is_empty() => {
                count(&engine.counters.stalled);
                server.graceful_shutdown();
                return End::Quiet;
            }
            Err(Stalled) => {
                count(&engine.counters.stalled);
                return End::Reset;
            }
        };
        progress.mark();
        match event {
            Event::Accepted(None) => return End::Quiet,
            Event::Accepted(Some(Err(error))) => {
                if error.reason() == Some(Reason::ENHANCE_YOUR_CALM) {
                    count(&engine.counters.http2_abuse);
                }
                return End::Quiet;
            }
            Event::Accepted(Some(Ok(stream))) => {
                let (request, respond) = *stream;
                if session.is_stale() && session.refresh().await.is_err() {
                    return End::Reset;
                }
                let Judged::Passes(ready) = stream::judge(session, request, respond) else { continue };
                if leaving {
                    stream::send_back(ready);
                    continue;
                }
                let ready = if sender.is_some() {
                    ready
                } else {
                    // The first that passes, as far as is known: judged again once the backend is.
                    match connected(session).await {
                        Ok((made, driven)) => (sender, driver) = (Some(made), Some(driven)),
                        Err(failed) => {
                            let refused = matches!(failed, NoUpstream::Refused(_));
                            stream::fail(session, ready, &failed);
                            if refused {
                                return End::Reset;
                            }
                            continue;
                        }
                    }
                    let Judged::Passes(ready) = stream::judge_again(session, ready) else { continue };
                    ready
                };
                let Some(sender) = &sender else { return End::Reset };
                count(&engine.counters.requests_passed);
                let sides = Sides { ready, sender: sender.clone() };
                running.push(Box::pin(stream::run(engine, sides, passing.enter())));
            }
            Event::Ended(Ended::Well | Ended::Refused) => {}
            Event::Ended(Ended::ServerLeaves) => {
                server.graceful_shutdown();
            }
            Event::Ended(Ended::ClientReset) if resets.one_more() => {}
            Event::Ended(Ended::ClientReset) => return End::Abuse,
            Event::ServerGone => {
                leaving = true;
                sender = None;
                driver = None;
                server.graceful_shutdown();
                if running.is_empty() {
                    return End::Quiet;
                }
            }
            Event::Changed => {
                if session.refresh().await.is_err() {
                    return End::Reset;
                }
                passing.judge(session);
            }
            Event::Ending => {
                told = true;
                server.graceful_shutdown();
            }
        }
        if leaving && running.is_empty() {
            return End::Quiet;
        }
    }
}

/// A client's stream: its request, and where the response goes.
type Stream = (http::Request<h2::RecvStream>, h2::server::SendResponse<Bytes>);

/// What happens on a connection.
enum Event {
    Accepted(Option<Result<Box<Stream>, h2::Error>>),
    Ended(Ended),
    ServerGone,
    Changed,
    Ending,
}

/// Connects to the server, and greets it.
async fn connected<P: Policy, R: Recorder, C: Connect>(
    session: &mut Session<'_, P, R, C>,
) -> Result<(SendRequest<Bytes>, Driver), NoUpstream> {
    let upstream = session.connect().await?;
    match tokio::time::timeout(session.engine.limits.connect, to_server(upstream, &session.engine.limits)).await {
        Ok(Ok(made)) => Ok(made),
        Ok(Err(error)) => Err(NoUpstream::Failed(io::Error::other(error))),
        Err(_elapsed) => Err(NoUpstream::TimedOut),
    }
}

/// Resets by the client of late.
struct Resets {
    count: u32,
    since: Instant,
}

impl Default for Resets {
    fn default() -> Self {
        Self { count: 0, since: Instant::now() }
    }
}

impl Resets {
    /// One more; false if there are too many.
    fn one_more(&mut self) -> bool {
        if self.since.elapsed() >= CALM {
            *self = Self::default();
        }
        self.count += 1;
        self.count <= RESETS
    }
}
