//! Datagrams: one task serves all of its thread.
//!
//! A session is a client's address and port and a server: it has one socket in the client's name, connected to the server,
//! so that the kernel itself leaves out what comes from anybody else. Sessions stay for a while, because clients use their
//! ports again. No answer waits for another: what is held stands aside.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, MissedTickBehavior};

use super::asked::{Asked, Found, Slot, Waiting};
use super::socket::{BATCH, Buffers, Poll, send, tell_destinations};
use super::wire::{Answer, NoQuery, Query, bare_refusal, rcode};
use super::{Counters, Dns, Judged};
use crate::flow::{Direction, Flow, Protocol};
use crate::names::{Learned, Learner, Resolution};
use crate::policy::{Looks, Policy, Refused, Rules};
use crate::record::Recorder;

/// Octets of a query. Longer ones are no questions: a name has 255, and EDNS options are few.
const QUERY: usize = 4_096;
/// Octets of an answer: as many as a datagram can have.
const ANSWER: usize = 65_536;
/// How often overdue questions are looked for.
const SWEEP: Duration = Duration::from_millis(500);
/// How long a session stays that nobody uses: clients that use a port again do so at once.
const LINGER: Duration = Duration::from_secs(5);
/// Sockets that answers are sent from, one a server.
const SERVERS: usize = 1_024;
/// Rounds of reading before others have their turn.
const ROUNDS: usize = 64;
/// Errors of a listener, one after the other, after which it is left alone until the next sweep: one is of a datagram that was sent
/// before, and the next attempt may succeed; so many say that none will, and a processor would be spent on them.
pub(super) const FAILURES: u32 = 16;
/// Tokens of listeners are from here on; below it are sessions.
const LISTENER: u64 = 1 << 63;

/// Where sockets come from that speak in others' names.
pub trait Sockets {
    /// A socket with the client's address and port, connected to the server; it does not block.
    ///
    /// # Errors
    /// There is none: the address is in use, descriptors are used up, there is no route.
    fn upstream(&self, client: SocketAddr, server: SocketAddr) -> io::Result<UdpSocket>;

    /// A socket with the server's address and port, connected to nobody; it does not block.
    ///
    /// # Errors
    /// As for [`Self::upstream`].
    fn reply(&self, server: SocketAddr) -> io::Result<UdpSocket>;
}

#[derive(Debug)]
struct Session {
    socket: UdpSocket,
    flow: Flow,
    rules: Arc<Rules>,
    version: u64,
    load: Arc<AtomicU32>,
    waiting: Waiting,
    used: Instant,
    /// Tells it from an earlier one in the same place.
    generation: u32,
}

/// A socket by which queries come.
#[derive(Debug)]
struct Listener {
    socket: UdpSocket,
    /// Errors since it could last be read, or had nothing.
    failures: u32,
    /// Nobody waits for what comes there, until the next sweep.
    paused: bool,
}

/// Something that stood aside.
enum Aside {
    /// An answer whose addresses were to be made known.
    Answer { flow: Flow, message: Vec<u8>, resolution: Resolution, learned: Learned },
    /// A query whose rules were on their way.
    Query { flow: Flow, message: Vec<u8>, version: u64, rules: Result<Arc<Rules>, Refused> },
}

type Standing = Pin<Box<dyn Future<Output = Aside>>>;

struct Thread<'d, P, R, S> {
    dns: &'d Dns<P, R>,
    sockets: S,
    poll: AsyncFd<Poll>,
    listeners: Vec<Listener>,
    places: HashMap<(SocketAddr, SocketAddr), usize>,
    sessions: Vec<Option<Session>>,
    free: Vec<usize>,
    generation: u32,
    servers: HashMap<SocketAddr, UdpSocket>,
    asked: usize,
    aside: FuturesUnordered<Standing>,
    learner: Learner,
}

/// What a batch of queries makes to be sent.
#[derive(Default)]
struct Outgoing {
    /// By session, the datagram's place in the batch.
    forward: Vec<(usize, usize)>,
    replies: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
}

impl<P: Policy, R: Recorder> Dns<P, R> {
    /// Serves the datagrams that come to these sockets, for as long as it is polled. The sockets do not block, and get
    /// what gates redirect; each is of one family. To be called once a thread.
    ///
    /// # Errors
    /// A socket cannot be waited for.
    pub async fn serve_datagrams<S: Sockets>(&self, listeners: Vec<UdpSocket>, sockets: S) -> io::Result<()> {
        listeners.iter().try_for_each(tell_destinations)?;
        self.serve_telling(listeners, sockets).await
    }

    /// The same, where the sockets tell where datagrams were sent to.
    pub(super) async fn serve_telling<S: Sockets>(&self, listeners: Vec<UdpSocket>, sockets: S) -> io::Result<()> {
        let poll = Poll::new()?;
        for (token, listener) in (LISTENER..).zip(&listeners) {
            poll.add(listener, token)?;
        }
        let listeners = listeners.into_iter().map(|socket| Listener { socket, failures: 0, paused: false }).collect();
        let thread = Thread {
            dns: self,
            sockets,
            poll: poll.awaited()?,
            listeners,
            places: HashMap::new(),
            sessions: Vec::new(),
            free: Vec::new(),
            generation: 0,
            servers: HashMap::new(),
            asked: 0,
            aside: FuturesUnordered::new(),
            learner: Learner::new(self.names.clone()),
        };
        thread.run().await
    }
}

impl<P: Policy, R: Recorder, S: Sockets> Thread<'_, P, R, S> {
    async fn run(mut self) -> io::Result<()> {
        let queries = RefCell::new(Buffers::new(QUERY));
        let answers = RefCell::new(Buffers::new(ANSWER));
        let mut tokens = Vec::new();
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Whether sockets may have something of which nobody is told again.
        let mut rest = false;
        loop {
            tokio::select! {
                guard = self.poll.readable(), if !rest => guard?.clear_ready(),
                // Others of this thread have had their turn.
                () = yield_now(), if rest => {}
                Some(aside) = self.aside.next(), if !self.aside.is_empty() => {
                    self.stood_aside(aside);
                    continue;
                }
                _ = sweep.tick() => {
                    self.resume();
                    self.sweep();
                    continue;
                }
            }
            for _round in 0..ROUNDS {
                rest = self.poll.get_ref().ready(&mut tokens)?;
                for token in &tokens {
                    rest |= match token.checked_sub(LISTENER) {
                        Some(listener) => {
                            self.queries(usize::try_from(listener).unwrap_or(0), &mut queries.borrow_mut())
                        }
                        None => self.answers(*token, &mut answers.borrow_mut()),
                    };
                }
                if !rest {
                    break;
                }
            }
        }
    }

    /// Reads queries, and sends what follows from them. Whether there may be more.
    fn queries(&mut self, listener: usize, buffers: &mut Buffers) -> bool {
        let Some(of) = self.listeners.get_mut(listener) else { return false };
        let received = match buffers.receive(&of.socket) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return self.unreceived(listener, &error),
            received => received,
        };
        if of.failures >= FAILURES {
            tracing::info!("a socket for DNS queries can be read again");
        }
        of.failures = 0;
        // Nothing more has come.
        let Ok(count) = received else { return false };
        let mut outgoing = Outgoing::default();
        for index in 0..count {
            let Some(datagram) = buffers.get(index) else {
                Counters::add(&self.dns.counters.malformed);
                continue;
            };
            let Some(server) = datagram.to else { continue };
            let flow = Flow { direction: Direction::Egress, client: datagram.from, server };
            if let Some(session) = self.query(&flow, datagram.bytes, None, &mut outgoing.replies) {
                outgoing.forward.push((session, index));
            }
        }
        let Outgoing { mut forward, mut replies } = outgoing;
        forward.sort_by_key(|(session, _)| *session);
        for group in forward.chunk_by(|one, next| one.0 == next.0) {
            let Some((session, _)) = group.first() else { continue };
            let messages: Vec<(&[u8], Option<SocketAddr>)> =
                group.iter().filter_map(|(_, index)| Some((buffers.get(*index)?.bytes, None))).collect();
            self.forward(*session, &messages);
        }
        replies.sort_by_key(|(server, ..)| *server);
        for group in replies.chunk_by(|one, next| one.0 == next.0) {
            let Some((server, ..)) = group.first() else { continue };
            let messages: Vec<(&[u8], Option<SocketAddr>)> =
                group.iter().map(|(_, client, message)| (message.as_slice(), Some(*client))).collect();
            self.reply(*server, &messages);
        }
        count >= BATCH
    }

    /// A listener could not be read. Whether it is to be tried again at once.
    fn unreceived(&mut self, listener: usize, error: &io::Error) -> bool {
        Counters::add(&self.dns.counters.unreceived);
        let Some(of) = self.listeners.get_mut(listener) else { return false };
        of.failures = of.failures.saturating_add(1);
        if of.failures < FAILURES {
            return true;
        }
        if of.failures == FAILURES {
            tracing::error!(error = %error, "a socket for DNS queries cannot be read; trying on, now and then");
        }
        // Whoever waits for all of them would be woken by this one for ever.
        match self.poll.get_ref().remove(&of.socket) {
            Ok(()) => of.paused = true,
            Err(error) => tracing::debug!(error = %error, "a socket for DNS queries is waited for on"),
        }
        false
    }

    /// Waits again for what comes by listeners that were left alone.
    fn resume(&mut self) {
        for (token, of) in (LISTENER..).zip(&mut self.listeners).filter(|(_, of)| of.paused) {
            match self.poll.get_ref().add(&of.socket, token) {
                Ok(()) => of.paused = false,
                Err(error) => tracing::debug!(error = %error, "a socket for DNS queries cannot be waited for yet"),
            }
        }
    }

    /// Judges a query. The session by which it is to be forwarded, if it is.
    fn query(
        &mut self,
        flow: &Flow,
        message: &[u8],
        settled: Option<(u64, &Arc<Rules>)>,
        replies: &mut Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    ) -> Option<usize> {
        let counters = &self.dns.counters;
        if settled.is_none() {
            Counters::add(&counters.udp_queries);
        }
        let query = match Query::read(message) {
            Ok(query) => query,
            Err(no_query) => {
                Counters::add(&counters.malformed);
                if let NoQuery::Refuse(rcode) = no_query
                    && let Some(refusal) = bare_refusal(message, rcode)
                {
                    replies.push((flow.server, flow.client, refusal));
                }
                return None;
            }
        };
        let place = self.session(flow, message, settled)?;
        let dns = self.dns;
        let session = self.sessions.get_mut(place)?.as_mut()?;
        session.used = Instant::now();
        if session.waiting.has(query.id, query.question) {
            // The first may have been lost on its way.
            Counters::add(&dns.counters.repeated);
            return Some(place);
        }
        if self.asked >= dns.limits.asked {
            Counters::add(&dns.counters.over_thread);
            return None;
        }
        let slot = || Slot::take(&session.load, dns.limits.asked_of_pod);
        match dns.judge(&query, &session.flow, &session.rules, slot) {
            Judged::Passes(asked) => {
                Counters::add(&dns.counters.passed);
                // A transfer is one message here.
                session.waiting.add(Asked { transfer: false, ..asked });
                self.asked += 1;
                Some(place)
            }
            Judged::Refused(refusal) => {
                replies.push((flow.server, flow.client, refusal));
                None
            }
            Judged::Dropped => None,
        }
    }

    /// The session of a flow, with the rules of now. None: there is none, or its rules are waited for.
    fn session(&mut self, flow: &Flow, message: &[u8], settled: Option<(u64, &Arc<Rules>)>) -> Option<usize> {
        let version = self.dns.policy.version();
        let known = self.places.get(&(flow.client, flow.server)).copied();
        if let Some(place) = known
            && let Some(Some(session)) = self.sessions.get(place)
            && session.version == version
        {
            return Some(place);
        }
        let (version, rules) = match settled {
            Some((version, rules)) => (version, Arc::clone(rules)),
            None => match self.dns.policy.rules(flow, Protocol::UDP, flow.server) {
                Ok(rules) => (version, rules),
                Err(refused) => {
                    self.without_rules(flow, message, &refused);
                    return None;
                }
            },
        };
        if rules.looks != Looks::Dns {
            Counters::add(&self.dns.counters.no_rules);
            return None;
        }
        let load = self.dns.load_of(&rules.pod);
        if let Some(place) = known
            && let Some(Some(session)) = self.sessions.get_mut(place)
        {
            (session.version, session.rules, session.load) = (version, rules, load);
            return Some(place);
        }
        self.open(flow, version, rules, load)
    }

    /// What is on its way is waited for, and the query with it.
    fn without_rules(&mut self, flow: &Flow, message: &[u8], refused: &Refused) {
        if !refused.may_settle() || self.aside.len() >= self.dns.limits.held {
            tracing::debug!(flow = %flow, reason = refused.as_str(), "a DNS query has no rules");
            Counters::add(&self.dns.counters.no_rules);
            return;
        }
        let (flow, message, policy) = (*flow, message.to_vec(), Arc::clone(&self.dns.policy));
        self.aside.push(Box::pin(async move {
            let version = policy.version();
            let rules = policy.settled(&flow, Protocol::UDP, flow.server).await;
            Aside::Query { flow, message, version, rules }
        }));
    }

    fn open(&mut self, flow: &Flow, version: u64, rules: Arc<Rules>, load: Arc<AtomicU32>) -> Option<usize> {
        if self.places.len() >= self.dns.limits.sockets {
            self.close_idle(Duration::ZERO, self.dns.limits.sockets / 4);
        }
        if self.places.len() >= self.dns.limits.sockets {
            Counters::add(&self.dns.counters.over_thread);
            return None;
        }
        let socket = match self.sockets.upstream(flow.client, flow.server) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::debug!(flow = %flow, error = %error, "there is no socket for a DNS query");
                Counters::add(&self.dns.counters.unsent);
                return None;
            }
        };
        let place = self.free.pop().unwrap_or_else(|| {
            self.sessions.push(None);
            self.sessions.len() - 1
        });
        self.generation = self.generation.wrapping_add(1) & 0x7fff_ffff;
        let token = u64::from(u32::try_from(place).unwrap_or(u32::MAX)) | (u64::from(self.generation) << 32);
        if let Err(error) = self.poll.get_ref().add(&socket, token) {
            tracing::debug!(flow = %flow, error = %error, "a socket for a DNS query cannot be waited for");
            Counters::add(&self.dns.counters.unsent);
            self.free.push(place);
            return None;
        }
        let session = Session {
            socket,
            flow: *flow,
            rules,
            version,
            load,
            waiting: Waiting::default(),
            used: Instant::now(),
            generation: self.generation,
        };
        *self.sessions.get_mut(place)? = Some(session);
        self.places.insert((flow.client, flow.server), place);
        Some(place)
    }

    /// Closes sessions that wait for nothing and were not used for a while, `most` at most, the oldest first.
    fn close_idle(&mut self, unused: Duration, most: usize) {
        let now = Instant::now();
        let mut idle: Vec<(Instant, usize)> = self
            .sessions
            .iter()
            .enumerate()
            .filter_map(|(place, session)| Some((place, session.as_ref()?)))
            .filter(|(_, session)| session.waiting.len() == 0 && now.saturating_duration_since(session.used) >= unused)
            .map(|(place, session)| (session.used, place))
            .collect();
        idle.sort_unstable();
        for (_, place) in idle.into_iter().take(most) {
            if let Some(session) = self.sessions.get_mut(place).and_then(Option::take) {
                self.places.remove(&(session.flow.client, session.flow.server));
                self.free.push(place);
            }
        }
    }

    fn forward(&mut self, place: usize, messages: &[(&[u8], Option<SocketAddr>)]) {
        let Some(Some(session)) = self.sessions.get(place) else { return };
        let mut rest = messages;
        while !rest.is_empty() {
            match send(&session.socket, rest) {
                Ok(sent) => rest = rest.get(sent.max(1)..).unwrap_or_default(),
                Err(error) if is_unreachable(&error) => {
                    // What an earlier datagram met; this one is still to be sent.
                    self.unreachable(place);
                    return;
                }
                Err(error) => {
                    tracing::debug!(flow = %session.flow, error = %error, "a DNS query could not be sent");
                    Counters::add(&self.dns.counters.unsent);
                    rest = rest.get(1..).unwrap_or_default();
                }
            }
        }
    }

    fn reply(&mut self, server: SocketAddr, messages: &[(&[u8], Option<SocketAddr>)]) {
        if !self.servers.contains_key(&server) {
            if self.servers.len() >= SERVERS {
                self.servers.clear();
            }
            match self.sockets.reply(server) {
                Ok(socket) => {
                    self.servers.insert(server, socket);
                }
                Err(error) => {
                    tracing::debug!(server = %server, error = %error, "there is no socket for DNS answers");
                    self.dns.counters.unsent.fetch_add(messages.len() as u64, std::sync::atomic::Ordering::Relaxed);
                    return;
                }
            }
        }
        let Some(socket) = self.servers.get(&server) else { return };
        let mut rest = messages;
        while !rest.is_empty() {
            match send(socket, rest) {
                Ok(sent) => rest = rest.get(sent.max(1)..).unwrap_or_default(),
                Err(error) => {
                    tracing::debug!(server = %server, error = %error, "a DNS answer could not be sent");
                    Counters::add(&self.dns.counters.unsent);
                    rest = rest.get(1..).unwrap_or_default();
                }
            }
        }
    }

    /// Reads what has come for a session, and sends it on. Whether there may be more.
    fn answers(&mut self, token: u64, buffers: &mut Buffers) -> bool {
        let [high @ .., _, _, _, _] = token.to_be_bytes();
        let place = usize::try_from(token & u64::from(u32::MAX)).unwrap_or(usize::MAX);
        let generation = u32::from_be_bytes(high);
        let Some(Some(session)) = self.sessions.get_mut(place) else { return false };
        if session.generation != generation {
            return false;
        }
        let count = match buffers.receive(&session.socket) {
            Ok(count) => count,
            Err(error) => {
                if is_unreachable(&error) {
                    self.unreachable(place);
                }
                return error.kind() != io::ErrorKind::WouldBlock;
            }
        };
        let flow = session.flow;
        session.used = Instant::now();
        let mut passing = Vec::with_capacity(BATCH);
        for index in 0..count {
            let Some(datagram) = buffers.get(index) else { continue };
            if self.answer(place, &flow, datagram.bytes) {
                passing.push((datagram.bytes, Some(flow.client)));
            }
        }
        if !passing.is_empty() {
            self.reply(flow.server, &passing);
        }
        count >= BATCH
    }

    /// Whether a message that came from a server goes to its client now.
    fn answer(&mut self, place: usize, flow: &Flow, message: &[u8]) -> bool {
        let dns = self.dns;
        let Some(Some(session)) = self.sessions.get_mut(place) else { return false };
        let Some(answer) = Answer::read(message) else {
            Counters::add(&dns.counters.unasked);
            return false;
        };
        let asked = match session.waiting.take(&answer) {
            Found::Asked(asked) => asked,
            Found::Unasked => {
                Counters::add(&dns.counters.unasked);
                return false;
            }
            Found::More | Found::Other => {
                Counters::add(&dns.counters.other_question);
                return false;
            }
        };
        self.asked = self.asked.saturating_sub(1);
        Counters::add(&dns.counters.answers);
        let found = dns.addresses(&answer, message);
        dns.record(flow, &asked, Some(found.rcode), &found.addresses);
        // Of an answer that is cut what is there counts too: the client may use it.
        let Some(name) = asked.name.as_ref().filter(|_| answer.rcode == rcode::NO_ERROR) else { return true };
        let Some(held) = self.learner.learn(&asked.rules.pod, name, &found.addresses, found.ttl) else { return true };
        if self.aside.len() >= dns.limits.held {
            Counters::add(&dns.counters.not_held);
            return true;
        }
        let (flow, message, longest) = (*flow, message.to_vec(), dns.limits.hold);
        self.aside.push(Box::pin(async move {
            let (resolution, learned) = held.settle(longest).await;
            Aside::Answer { flow, message, resolution, learned }
        }));
        false
    }

    fn stood_aside(&mut self, aside: Aside) {
        match aside {
            Aside::Answer { flow, message, resolution, learned } => {
                self.learner.settled(&resolution, learned);
                self.reply(flow.server, &[(&message, Some(flow.client))]);
            }
            Aside::Query { flow, rules: Err(refused), .. } => {
                tracing::debug!(flow = %flow, reason = refused.as_str(), "a DNS query has no rules");
                Counters::add(&self.dns.counters.no_rules);
            }
            Aside::Query { flow, message, version, rules: Ok(rules) } => {
                let mut replies = Vec::new();
                if let Some(session) = self.query(&flow, &message, Some((version, &rules)), &mut replies) {
                    self.forward(session, &[(&message, None)]);
                }
                for (server, client, message) in replies {
                    self.reply(server, &[(&message, Some(client))]);
                }
            }
        }
    }

    /// The server of a session cannot be reached: who waits is told so, and asks another one.
    fn unreachable(&mut self, place: usize) {
        let Some(Some(session)) = self.sessions.get_mut(place) else { return };
        let flow = session.flow;
        let asked: Vec<Asked> = session.waiting.drain().collect();
        self.asked = self.asked.saturating_sub(asked.len());
        for asked in asked {
            Counters::add(&self.dns.counters.unreachable);
            self.dns.record(&flow, &asked, Some(rcode::SERVER_FAILURE), &[]);
            self.reply(flow.server, &[(&asked.failure(), Some(flow.client))]);
        }
    }

    /// Forgets questions that waited too long, and sessions that nobody uses.
    fn sweep(&mut self) {
        let now = Instant::now();
        let dns = self.dns;
        for session in self.sessions.iter_mut().flatten() {
            let overdue = session.waiting.overdue(now, dns.limits.timeout);
            self.asked = self.asked.saturating_sub(overdue.len());
            for asked in overdue {
                Counters::add(&dns.counters.timed_out);
                dns.record(&session.flow, &asked, None, &[]);
            }
        }
        self.close_idle(LINGER, usize::MAX);
    }
}

/// Whether an error tells that an earlier datagram did not arrive (ICMP).
fn is_unreachable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
    )
}

/// Lets the other tasks of the thread run once.
async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
