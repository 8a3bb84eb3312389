//! Streams: one task serves a connection and the one to its server (RFC 1035, 4.2.2; RFC 7766).
//!
//! Queries are forwarded as they come, and answers as they come, in whatever order; one that is held lets those behind it
//! pass. A message is read whole before it is judged, and nothing more is read from a client who waits for too many.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout, timeout_at};

use super::asked::{Found, Slot, Waiting};
use super::wire::{Answer, HEADER, NoQuery, Query, bare_refusal, rcode};
use super::{Counters, Dns, Judged};
use crate::connect::{Connect, Upstream};
use crate::flow::{Flow, Protocol};
use crate::names::{Learned, Learner, Resolution};
use crate::policy::{Looks, Policy, Rules};
use crate::record::Recorder;

/// Messages that may wait to be written to a client.
const OUT: usize = 16;

/// Why a connection ended before its client ended it.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Its server cannot be reached.
    #[error("the server of {flow} cannot be reached")]
    Connect {
        /// The flow.
        flow: Flow,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its rules are not known, deny it, or are not for DNS.
    #[error("{flow} has no rules for DNS")]
    NoRules {
        /// The flow.
        flow: Flow,
    },
    /// A connection broke, or a message that was begun did not come whole.
    #[error("{flow} broke")]
    Broken {
        /// The flow.
        flow: Flow,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What both directions of a connection share.
struct Shared {
    waiting: Mutex<State>,
    /// A question waits no more.
    answered: Notify,
    /// The server says nothing more.
    ended: Notify,
}

struct State {
    waiting: Waiting,
    /// Answers that are held, or on their way to the client.
    leaving: usize,
    /// When something was last read from either side.
    used: Instant,
}

impl State {
    /// Whether the client is still to be answered something.
    const fn is_owed(&self) -> bool {
        self.waiting.len() > 0 || self.leaving > 0
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: Policy, R: Recorder> Dns<P, R> {
    /// Serves a connection to its end. When this fails the client is to be reset: its server would not have answered
    /// either.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn serve_stream<C: Connect>(
        &self,
        connect: &C,
        client: TcpStream,
        flow: Flow,
    ) -> Result<(), StreamError> {
        let connected = timeout(self.limits.timeout, connect.connect(&flow)).await;
        let Upstream { stream: server, backend } = connected
            .unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| StreamError::Connect { flow, source })?;
        let version = self.policy.version();
        let rules = match self.policy.settled(&flow, Protocol::TCP, backend).await {
            Ok(rules) if rules.looks == Looks::Dns => rules,
            Ok(_) => return Err(StreamError::NoRules { flow }),
            Err(refused) => {
                tracing::debug!(flow = %flow, reason = refused.as_str(), "a DNS connection has no rules");
                Counters::add(&self.counters.no_rules);
                return Err(StreamError::NoRules { flow });
            }
        };
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let shared = Shared {
            waiting: Mutex::new(State { waiting: Waiting::default(), leaving: 0, used: Instant::now() }),
            answered: Notify::new(),
            ended: Notify::new(),
        };
        let (out, messages) = mpsc::channel(OUT);
        let asking = self.queries(&flow, backend, (version, rules), from_client, to_server, &shared, out.clone());
        let answering = self.answers(&flow, from_server, &shared, out);
        let writing = write_all(to_client, messages);
        let both = async { tokio::try_join!(asking, answering, writing).map(|_| ()) };
        tokio::select! {
            ended = both => ended.or_else(|error| match error {
                Ended::Done => Ok(()),
                Ended::Broken(source) => Err(StreamError::Broken { flow, source }),
            }),
            () = self.silence(&flow, &shared) => Ok(()),
        }
    }

    /// Resolves when nothing has come for too long. Questions that wait too long are given up.
    async fn silence(&self, flow: &Flow, shared: &Shared) {
        loop {
            let used = shared.lock().used;
            let end = used + self.limits.idle;
            let soon = Instant::now() + self.limits.timeout;
            if timeout_at(end.min(soon), std::future::pending::<()>()).await.is_err() {
                let overdue = shared.lock().waiting.overdue(Instant::now(), self.limits.timeout);
                for asked in overdue {
                    Counters::add(&self.counters.timed_out);
                    self.record(flow, &asked, None, &[]);
                }
                shared.answered.notify_one();
                if shared.lock().used + self.limits.idle <= Instant::now() {
                    return;
                }
            }
        }
    }

    /// Reads queries and forwards those that pass.
    #[expect(clippy::too_many_arguments, reason = "the two ends of two connections")]
    async fn queries(
        &self,
        flow: &Flow,
        backend: SocketAddr,
        (mut version, mut rules): (u64, Arc<Rules>),
        mut client: OwnedReadHalf,
        mut server: OwnedWriteHalf,
        shared: &Shared,
        out: mpsc::Sender<Vec<u8>>,
    ) -> Result<(), Ended> {
        let mut load = self.load_of(&rules.pod);
        loop {
            let frame = tokio::select! {
                frame = read_frame(&mut client) => frame?,
                () = shared.ended.notified() => return Ok(()),
            };
            let Some(frame) = frame else { break };
            Counters::add(&self.counters.tcp_queries);
            shared.lock().used = Instant::now();
            let message = frame.get(2..).unwrap_or_default();
            let query = match Query::read(message) {
                Ok(query) => query,
                Err(no_query) => {
                    Counters::add(&self.counters.malformed);
                    match no_query {
                        NoQuery::Refuse(rcode) => answer(&out, bare_refusal(message, rcode)).await?,
                        // Whoever sends anything else speaks no DNS.
                        NoQuery::Silence => return Err(Ended::Broken(io::ErrorKind::InvalidData.into())),
                    }
                    continue;
                }
            };
            if self.policy.version() != version {
                version = self.policy.version();
                rules = match self.policy.settled(flow, Protocol::TCP, backend).await {
                    Ok(rules) if rules.looks == Looks::Dns => rules,
                    _ => {
                        Counters::add(&self.counters.no_rules);
                        return Err(Ended::Broken(io::ErrorKind::PermissionDenied.into()));
                    }
                };
                load = self.load_of(&rules.pod);
            }
            let judged = {
                let mut state = shared.lock();
                if state.waiting.has(query.id, query.question) {
                    // A stream loses nothing: whoever asks twice is answered once.
                    Counters::add(&self.counters.repeated);
                    continue;
                }
                let slot = || Slot::take(&load, self.limits.asked_of_pod);
                match self.judge(&query, flow, &rules, slot) {
                    Judged::Passes(asked) => {
                        state.waiting.add(asked);
                        None
                    }
                    Judged::Refused(refusal) => Some(refusal),
                    Judged::Dropped => Some(query.refusal(rcode::SERVER_FAILURE)),
                }
            };
            match judged {
                Some(refusal) => answer(&out, Some(refusal)).await?,
                None => {
                    Counters::add(&self.counters.passed);
                    server.write_all(&frame).await?;
                }
            }
            while shared.lock().waiting.len() >= self.limits.asked_of_connection {
                tokio::select! {
                    () = shared.answered.notified() => {}
                    () = shared.ended.notified() => return Ok(()),
                }
            }
        }
        // The client has asked all that it wants to ask: the server is told so when it has answered, because some close at
        // once on the end of a stream.
        drop(out);
        while shared.lock().is_owed() {
            tokio::select! {
                () = shared.answered.notified() => {}
                () = shared.ended.notified() => return Ok(()),
            }
        }
        server.shutdown().await?;
        Ok(())
    }

    /// Reads answers and forwards them to the client who waits for them.
    async fn answers(
        &self,
        flow: &Flow,
        mut server: OwnedReadHalf,
        shared: &Shared,
        out: mpsc::Sender<Vec<u8>>,
    ) -> Result<(), Ended> {
        let mut learner = Learner::new(self.names.clone());
        let mut held = FuturesUnordered::new();
        // Reads whole frames even if an answer that was held goes in between.
        let mut reading = Box::pin(next_frame(&mut server));
        loop {
            tokio::select! {
                Some((message, resolution, learned)) = held.next(), if !held.is_empty() => {
                    let (message, resolution, learned): (Vec<u8>, Resolution, Learned) = (message, resolution, learned);
                    learner.settled(&resolution, learned);
                    answer(&out, Some(message)).await?;
                    shared.lock().leaving -= 1;
                    shared.answered.notify_one();
                }
                (read, reader) = &mut reading => {
                    let Some(frame) = read? else { break };
                    reading = Box::pin(next_frame(reader));
                    shared.lock().used = Instant::now();
                    let message = frame.get(2..).unwrap_or_default();
                    let Some(read) = Answer::read(message) else {
                        Counters::add(&self.counters.unasked);
                        continue;
                    };
                    let found = {
                        let mut state = shared.lock();
                        let found = state.waiting.take(&read);
                        state.leaving += usize::from(matches!(found, Found::Asked(_)));
                        found
                    };
                    let asked = match found {
                        Found::Asked(asked) => asked,
                        Found::More => {
                            answer(&out, Some(message.to_vec())).await?;
                            continue;
                        }
                        Found::Unasked => {
                            Counters::add(&self.counters.unasked);
                            continue;
                        }
                        Found::Other => {
                            Counters::add(&self.counters.other_question);
                            continue;
                        }
                    };
                    Counters::add(&self.counters.answers);
                    let found = self.addresses(&read, message);
                    self.record(flow, &asked, Some(found.rcode), &found.addresses);
                    let name = asked.name.as_ref().filter(|_| read.rcode == rcode::NO_ERROR);
                    let waits = name.and_then(|name| learner.learn(&asked.rules.pod, name, &found.addresses, found.ttl));
                    let message = message.to_vec();
                    match waits {
                        Some(waits) => {
                            let longest = self.limits.hold;
                            held.push(async move {
                                let (resolution, learned) = waits.settle(longest).await;
                                (message, resolution, learned)
                            });
                        }
                        None => {
                            answer(&out, Some(message)).await?;
                            shared.lock().leaving -= 1;
                            shared.answered.notify_one();
                        }
                    }
                }
            }
        }
        while let Some((message, resolution, learned)) = held.next().await {
            learner.settled(&resolution, learned);
            answer(&out, Some(message)).await?;
        }
        // The server says nothing more: the client is told so, whatever it still waits for.
        shared.ended.notify_one();
        Ok(())
    }
}

/// Why one side of a connection ended the whole.
#[derive(Debug)]
enum Ended {
    /// It is over.
    Done,
    /// Something broke.
    Broken(io::Error),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// Has a message written to the client.
async fn answer(out: &mpsc::Sender<Vec<u8>>, message: Option<Vec<u8>>) -> Result<(), Ended> {
    let Some(message) = message else { return Ok(()) };
    out.send(message).await.map_err(|_closed| Ended::Done)
}

async fn write_all(mut client: OwnedWriteHalf, mut messages: mpsc::Receiver<Vec<u8>>) -> Result<(), Ended> {
    while let Some(message) = messages.recv().await {
        // A message of a server or of the proxy has a length that fits: it was read by its length, or is short.
        let Ok(length) = u16::try_from(message.len()) else { continue };
        let mut frame = Vec::with_capacity(2 + message.len());
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&message);
        client.write_all(&frame).await?;
    }
    client.shutdown().await?;
    Ok(())
}

async fn next_frame(stream: &mut OwnedReadHalf) -> (io::Result<Option<Vec<u8>>>, &mut OwnedReadHalf) {
    (read_frame(stream).await, stream)
}

/// A message with its length before it. None: the stream has ended before one.
async fn read_frame(stream: &mut OwnedReadHalf) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    let first = stream.read(&mut length).await?;
    match first {
        0 => return Ok(None),
        1 => {
            let [_, second] = &mut length;
            *second = stream.read_u8().await?;
        }
        _ => {}
    }
    let size = usize::from(u16::from_be_bytes(length));
    if size < HEADER {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // Room is made as it comes, so that a length alone costs nothing.
    let mut frame = Vec::with_capacity(2 + size.min(1_024));
    frame.extend_from_slice(&length);
    let read = stream.take(size as u64).read_to_end(&mut frame).await?;
    if read < size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(frame))
}
