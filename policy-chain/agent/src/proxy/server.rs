//! The socket that proxies connect to: one stream each, for as long as both live.

use std::sync::Arc;
use std::time::Duration;

use sluice_contract::proxy::{FRAME_LIMIT, FromPolicyd, FromProxy, PROTOCOL, Update, hello};
use sluice_contract::rpc::{FrameError, Hello};
use sluice_daemon::frame;
use sluice_daemon::log::ErrorChain;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::feed::{Feed, Place};
use crate::inbox::{Handle, Input, Known, SOFTWARE};
use crate::metrics::Metrics;

/// Proxies at once: one, and those that drain while a new one has taken over.
const AT_ONCE: usize = 8;

/// How long a proxy has to greet.
const GREETING: Duration = Duration::from_secs(5);

/// How long a proxy may take to read what it is told. One that takes longer is told everything anew when it comes back.
const READING: Duration = Duration::from_secs(10);

/// Batches of resolutions of a proxy that may wait for the gates to know them.
const RESOLUTIONS: usize = 256;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("it did not greet within {GREETING:?}")]
    Silent,
    #[error("it did not read for {READING:?}")]
    Slow,
    #[error(
        "it ({}) speaks versions {} to {}, this policyd {} to {}: install both of one release",
        .0.software, .0.protocol.min, .0.protocol.max, PROTOCOL.min, PROTOCOL.max
    )]
    Skew(Hello),
}

/// Serves proxies for as long as it is polled.
pub(crate) async fn serve(listener: UnixListener, feed: Feed, handle: Handle, metrics: Arc<Metrics>) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if open.len() < AT_ONCE => {
                    if is_root(&stream, &metrics) {
                        open.spawn(stream_of(stream, feed.clone(), handle.clone(), Arc::clone(&metrics)));
                    }
                }
                Ok(_) => {
                    tracing::warn!("too many proxies: one more was refused");
                    metrics.rejected("too_many");
                }
                Err(error) => {
                    tracing::error!(error = %error, "a proxy's connection could not be accepted");
                    metrics.error("accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(ended) = open.join_next(), if !open.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(error = %ErrorChain(&error), "a proxy's stream ended badly");
                    metrics.error("proxy");
                }
            }
        }
    }
}

fn is_root(stream: &UnixStream, metrics: &Metrics) -> bool {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw() => true,
        peer => {
            tracing::warn!(peer = ?peer, "a connection that is not root's was closed");
            metrics.rejected("not_root");
            false
        }
    }
}

async fn stream_of(stream: UnixStream, feed: Feed, handle: Handle, metrics: Arc<Metrics>) {
    match follow(stream, &feed, &handle).await {
        Err(Ended::Frame(FrameError::Closed)) => tracing::info!("a proxy has gone"),
        Err(error) => {
            tracing::warn!(error = %ErrorChain(&error), "a proxy's stream was closed");
            metrics.error("proxy");
        }
        Ok(()) => {}
    }
}

async fn follow(mut stream: UnixStream, feed: &Feed, handle: &Handle) -> Result<(), Ended> {
    let theirs: Hello =
        timeout(GREETING, frame::read(&mut stream, FRAME_LIMIT)).await.map_err(|_late| Ended::Silent)??;
    frame::write(&mut stream, &hello(SOFTWARE), FRAME_LIMIT).await?;
    if theirs.protocol.common(PROTOCOL).is_none() {
        return Err(Ended::Skew(theirs));
    }
    tracing::info!(software = theirs.software, "a proxy is there");
    let place = feed.join();
    let (mut from, mut to) = stream.into_split();
    let (done, known) = mpsc::channel(RESOLUTIONS);
    tokio::select! {
        ended = listen(&mut from, &place, handle, &done) => ended,
        ended = tell(&mut to, feed, known) => ended,
    }
}

async fn listen(
    from: &mut (impl AsyncRead + Unpin),
    place: &Place,
    handle: &Handle,
    done: &mpsc::Sender<Known>,
) -> Result<(), Ended> {
    let room = Arc::new(Semaphore::new(RESOLUTIONS));
    loop {
        match frame::read(from, FRAME_LIMIT).await? {
            FromProxy::Ack { version } => place.acknowledge(version),
            FromProxy::Records(records) => handle.send(Input::Requested(records)).await,
            FromProxy::Resolved(resolutions) => {
                // With no room left nothing more is read until some are answered.
                let Ok(room) = Arc::clone(&room).acquire_owned().await else { return Ok(()) };
                let (handle, done) = (handle.clone(), done.clone());
                tokio::spawn(async move {
                    let ids: Vec<u64> = resolutions.iter().map(|resolution| resolution.id).collect();
                    let (to, reply) = oneshot::channel();
                    handle.send(Input::Resolved(resolutions, to)).await;
                    let known = reply.await.unwrap_or(Known { kept: Vec::new(), dropped: ids });
                    // A proxy that has gone wants to know nothing.
                    let _told = done.send(known).await;
                    drop(room);
                });
            }
        }
    }
}

async fn tell(to: &mut (impl AsyncWrite + Unpin), feed: &Feed, mut known: mpsc::Receiver<Known>) -> Result<(), Ended> {
    let mut version = feed.version();
    let mut told = None;
    loop {
        // Read before the changes are, so that none between is missed.
        version.mark_unchanged();
        for update in feed.since(told) {
            told = Some(update.version);
            for part in update.parts() {
                let without = Update { version: part.version, full: part.full, more: part.more, ..Update::default() };
                match say(to, part).await {
                    // One list that is longer than a frame: the decisions that name it are refused.
                    Err(Ended::Frame(error @ FrameError::TooLong { .. })) => {
                        tracing::error!(error = %error, "rules are too long for the proxy");
                        say(to, without).await?;
                    }
                    said => said?,
                }
            }
        }
        loop {
            tokio::select! {
                changed = version.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return Ok(()),
                },
                Some(Known { kept, dropped }) = known.recv() => write(to, FromPolicyd::Known { kept, dropped }).await?,
            }
        }
    }
}

async fn say(to: &mut (impl AsyncWrite + Unpin), update: Update) -> Result<(), Ended> {
    write(to, FromPolicyd::Update(Box::new(update))).await
}

async fn write(to: &mut (impl AsyncWrite + Unpin), message: FromPolicyd) -> Result<(), Ended> {
    let written = timeout(READING, frame::write(to, &message, FRAME_LIMIT)).await.map_err(|_late| Ended::Slow)?;
    Ok(written?)
}
