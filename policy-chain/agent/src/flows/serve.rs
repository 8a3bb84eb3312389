//! Where Hubble's services are to be had: a Unix socket for those on the node, and a TCP port.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use sluice_daemon::http;
use sluice_daemon::log::ErrorChain;
use sluice_daemon::rpc::listen;
use sluice_hubble::observer::observer_server::ObserverServer;
use sluice_hubble::peer::peer_server::PeerServer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep, timeout};
use tonic::transport::Server;
use tonic::transport::server::{Connected, Router};

use super::{Observer, Tls};

/// Between two attempts to get a port or a socket.
const AGAIN: Duration = Duration::from_secs(5);

/// Connections at once, of each of the two.
const CONNECTIONS: usize = 32;

/// Requests of a connection at once.
const STREAMS: u32 = 32;

/// How often a connection that says nothing is asked whether it is there, and how long it has to answer.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// After that a connection takes no new requests, and ends with the last of those that it has: without any, at once. So one
/// that is idle does not keep its place from others; whoever follows flows goes on.
const AGE: Duration = Duration::from_secs(300);

/// How long a client may take for TLS, and for the octets by which HTTP/2 begins.
const BEGINNING: Duration = Duration::from_secs(10);

/// Octets by which HTTP/2 begins: the preface, and the head of the client's settings (RFC 9113, 3.4).
const PREFACE: usize = 24 + 9;

/// Before the next attempt when no connection can be accepted, as without file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

fn router(observer: &Observer) -> Router {
    Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_connection_age(AGE)
        .add_service(ObserverServer::new(observer.clone()))
        .add_service(PeerServer::new(observer.clone()))
}

/// Serves at a TCP port for as long as it is polled, with TLS if it is to. A busy port is tried again.
pub(crate) async fn serve_port(address: SocketAddr, tls: Option<Tls>, observer: Observer) {
    let bind = || http::listen(address);
    serve(&address.to_string(), tls, &observer, bind, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        (accepted, listener)
    })
    .await;
}

/// Serves at a Unix socket, which is root's, for as long as it is polled.
pub(crate) async fn serve_socket(path: &Path, observer: Observer) {
    let bind = || async { listen(path).map_err(|error| io::Error::other(ErrorChain(&error).to_string())) };
    serve(&path.display().to_string(), None, &observer, bind, |listener: UnixListener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        (accepted, listener)
    })
    .await;
}

async fn serve<L, S, B, A>(
    place: &str,
    tls: Option<Tls>,
    observer: &Observer,
    bind: impl Fn() -> B,
    accept: impl Fn(L) -> A + Send + Sync + Clone + 'static,
) where
    L: Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Future<Output = io::Result<L>>,
    A: Future<Output = (io::Result<S>, L)> + Send,
{
    let mut said = false;
    loop {
        match bind().await {
            Ok(listener) => {
                said = false;
                tracing::info!(what = "flows", address = place, "serving");
                let tls = tls.clone();
                let secured = move |held| secured(held, tls.clone());
                let incoming = bounded(listener, accept.clone()).map(secured).buffer_unordered(CONNECTIONS);
                let incoming =
                    Box::pin(incoming.filter_map(|stream| std::future::ready(stream.map(Ok::<_, io::Error>))));
                if let Err(error) = router(observer).serve_with_incoming(incoming).await {
                    tracing::error!(what = "flows", error = %ErrorChain(&error), "serving ended");
                }
            }
            Err(error) if !said => {
                said = true;
                tracing::warn!(what = "flows", address = place, error = %error, "the port cannot be had; trying on");
            }
            Err(_) => {}
        }
        sleep(AGAIN).await;
    }
}

/// Connections, so many at once; more wait in the socket's queue.
fn bounded<L, S, A>(listener: L, accept: impl Fn(L) -> A) -> impl Stream<Item = Held<S>>
where
    A: Future<Output = (io::Result<S>, L)>,
{
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    futures_util::stream::unfold((listener, accept, room), |(mut listener, accept, room)| async move {
        // The semaphore is never closed; if it were, a connection without a permit does no harm.
        let permit = Arc::clone(&room).acquire_owned().await.ok();
        loop {
            let (accepted, back) = accept(listener).await;
            listener = back;
            match accepted {
                Ok(stream) => return Some((Held::new(stream, permit), (listener, accept, room))),
                Err(error) => {
                    tracing::warn!(error = %error, "a connection for flows could not be accepted");
                    sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    })
}

/// The connection, by TLS if it is to be; none where the client does not get that far.
async fn secured<S>(held: Held<S>, tls: Option<Tls>) -> Option<Line>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(tls) = tls else { return Some(Line(Box::pin(held))) };
    match timeout(BEGINNING, tls.accept(held)).await.unwrap_or_else(|_late| Err(io::ErrorKind::TimedOut.into())) {
        // The octets that the connection has had were TLS's: what is said through it has to begin, too. It has its place already.
        Ok(stream) => Some(Line(Box::pin(Held::new(stream, None)))),
        Err(error) => {
            tracing::debug!(error = %error, "a client for flows did not get through TLS");
            None
        }
    }
}

/// What octets go by.
trait Octets: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Octets for T {}

/// A connection of any kind.
struct Line(Pin<Box<dyn Octets>>);

impl Connected for Line {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_read(context, into)
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_shutdown(context)
    }
}

/// A connection that has its place as long as it lives. One whose client does not begin in time fails.
struct Held<S> {
    stream: S,
    /// Octets that have come, until they are enough; and when they have to be there.
    begun: usize,
    deadline: Pin<Box<Sleep>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<S> Held<S> {
    fn new(stream: S, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { stream, begun: 0, deadline: Box::pin(sleep(BEGINNING)), _permit: permit }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        if self.begun < PREFACE {
            self.begun += into.filled().len().saturating_sub(before);
            if self.begun < PREFACE && self.deadline.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_does_not_begin_loses_the_place_and_who_has_begun_keeps_it() {
        for (sent, keeps) in [(0, false), (PREFACE - 1, false), (PREFACE, true)] {
            let (mut client, server) = tokio::io::duplex(1024);
            let mut held = Held::new(server, None);
            client.write_all(&vec![0; sent]).await.unwrap();
            let mut all = vec![0; 1024];
            let read = async {
                let mut had = 0;
                while had < PREFACE + 1 {
                    had += held.read(&mut all).await?;
                }
                Ok::<_, io::Error>(())
            };
            match timeout(BEGINNING * 10, read).await {
                Err(_still_there) => assert!(keeps, "{sent} octets"),
                Ok(ended) => assert!(!keeps && ended.unwrap_err().kind() == io::ErrorKind::TimedOut, "{sent} octets"),
            }
        }
    }
}
