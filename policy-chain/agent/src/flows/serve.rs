//! Where Hubble's services are to be had: a Unix socket for those on the node, and a TCP port.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use sluice_daemon::http;
use sluice_daemon::log::ErrorChain;
use sluice_daemon::rpc::listen;
use sluice_hubble::observer::observer_server::ObserverServer;
use sluice_hubble::peer::peer_server::PeerServer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::Server;
use tonic::transport::server::{Connected, Router};

use super::Observer;

/// Between two attempts to get a port or a socket.
const AGAIN: Duration = Duration::from_secs(5);

/// Connections at once, of each of the two.
const CONNECTIONS: usize = 32;

/// Requests of a connection at once.
const STREAMS: u32 = 32;

/// How often a connection that says nothing is asked whether it is there, and how long it has to answer.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Before the next attempt when no connection can be accepted, as without file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

fn router(observer: &Observer) -> Router {
    Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(ObserverServer::new(observer.clone()))
        .add_service(PeerServer::new(observer.clone()))
}

/// Serves at a TCP port for as long as it is polled. A busy port is tried again.
pub(crate) async fn serve_port(address: SocketAddr, observer: Observer) {
    let bind = || http::listen(address);
    serve(&address.to_string(), &observer, bind, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        (accepted, listener)
    })
    .await;
}

/// Serves at a Unix socket, which is root's, for as long as it is polled.
pub(crate) async fn serve_socket(path: &Path, observer: Observer) {
    let bind = || async { listen(path).map_err(|error| io::Error::other(ErrorChain(&error).to_string())) };
    serve(&path.display().to_string(), &observer, bind, |listener: UnixListener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        (accepted, listener)
    })
    .await;
}

async fn serve<L, S, B, A>(
    place: &str,
    observer: &Observer,
    bind: impl Fn() -> B,
    accept: impl Fn(L) -> A + Send + Sync + Clone + 'static,
) where
    L: Send + 'static,
    S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    B: Future<Output = io::Result<L>>,
    A: Future<Output = (io::Result<S>, L)> + Send,
{
    let mut said = false;
    loop {
        match bind().await {
            Ok(listener) => {
                said = false;
                tracing::info!(what = "flows", address = place, "serving");
                let incoming = Box::pin(bounded(listener, accept.clone()));
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
        tokio::time::sleep(AGAIN).await;
    }
}

/// Connections, so many at once; more wait in the socket's queue.
fn bounded<L, S, A>(listener: L, accept: impl Fn(L) -> A) -> impl Stream<Item = io::Result<Held<S>>>
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
                Ok(stream) => return Some((Ok(Held { stream, _permit: permit }), (listener, accept, room))),
                Err(error) => {
                    tracing::warn!(error = %error, "a connection for flows could not be accepted");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    })
}

/// A connection that has its place as long as it lives.
struct Held<S> {
    stream: S,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<S: Connected> Connected for Held<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
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
