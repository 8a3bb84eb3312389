//! One connection's flow, its rules as they are now, and its records.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::l7::http::Version;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::connect::Connect;
use crate::connections::Place;
use crate::engine::{Engine, count};
use crate::flow::{Flow, Protocol};
use crate::policy::{Policy, Refused, Rules, Ruling};
use crate::record::{Asked, Kind, Record, Recorder, short};

/// One connection's flow, and its rules as they are now.
#[derive(Debug)]
pub(crate) struct Session<'e, P, R, C> {
    pub(crate) engine: &'e Engine<P, R, C>,
    pub(crate) flow: Flow,
    rules: Arc<Rules>,
    /// The pod of the rules, in the thread's own words.
    pod: PodKey,
    version: u64,
    backend: Option<SocketAddr>,
    began: Instant,
    time: SystemTime,
    place: Place,
}

/// Most texts that a thread has copies of.
const TEXTS: usize = 1_024;

/// By its address: what all threads share, and the thread's own copy.
type Copies = HashMap<usize, (Arc<str>, Arc<str>), BuildHasherDefault<ByAddress>>;

/// A hash of addresses, which nobody chooses.
#[derive(Debug, Default)]
struct ByAddress(u64);

impl Hasher for ByAddress {
    fn write(&mut self, octets: &[u8]) {
        octets.iter().for_each(|octet| self.write_usize(usize::from(*octet)));
    }

    fn write_usize(&mut self, number: usize) {
        // The golden ratio spreads numbers to the upper bits, of which tables take theirs too.
        self.0 = (self.0.rotate_left(32) ^ number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0.rotate_left(32)
    }
}

thread_local! {
    static COPIES: RefCell<Copies> = RefCell::default();
}

/// The thread's own copy of what its records say of pod and rule: to count references that another CPU counts too takes longer
/// than the rest of a record.
fn own(shared: &Arc<str>) -> Arc<str> {
    let at = Arc::as_ptr(shared).cast::<u8>().addr();
    COPIES.with_borrow_mut(|texts| {
        if texts.len() >= TEXTS && !texts.contains_key(&at) {
            texts.clear();
        }
        let (_, own) = texts.entry(at).or_insert_with(|| (Arc::clone(shared), Arc::from(&**shared)));
        Arc::clone(own)
    })
}

/// The pod of rules, as [`own`] has its texts.
fn own_pod(rules: &Rules) -> PodKey {
    let PodKey { namespace, name } = &rules.pod;
    PodKey { namespace: own(namespace), name: own(name) }
}

/// Why there is no connection to the server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoUpstream {
    /// The gate refuses where it would go.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The server did not accept it in time.
    #[error("the server did not answer in time")]
    TimedOut,
    /// It failed.
    #[error("the server could not be reached")]
    Failed(#[source] io::Error),
}

impl<'e, P: Policy, R: Recorder, C: Connect> Session<'e, P, R, C> {
    pub(crate) fn new(engine: &'e Engine<P, R, C>, flow: Flow, rules: Arc<Rules>, version: u64, place: Place) -> Self {
        let pod = own_pod(&rules);
        Self { engine, flow, rules, pod, version, backend: None, began: Instant::now(), time: SystemTime::now(), place }
    }

    /// From now on these rules hold.
    fn take(&mut self, rules: Arc<Rules>) {
        self.rules = rules;
        self.pod = own_pod(&self.rules);
        self.place.update(&self.rules, self.backend);
    }

    /// The rules that were in force when they were last asked for.
    pub(crate) const fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// Whether policy has changed since.
    pub(crate) fn is_stale(&self) -> bool {
        self.engine.policy.version() != self.version
    }

    /// Brings the rules up to date, if policy has changed since.
    ///
    /// # Errors
    /// The flow must not go on.
    pub(crate) async fn refresh(&mut self) -> Result<(), Refused> {
        while self.is_stale() {
            self.version = self.engine.policy.version();
            let to = self.backend.unwrap_or(self.flow.server);
            let rules = self.engine.policy.settled(&self.flow, Protocol::TCP, to).await;
            self.take(rules.inspect_err(|_refused| count(&self.engine.counters.connections_refused))?);
        }
        Ok(())
    }

    /// Resolves when policy has changed since the rules were last asked for.
    pub(crate) async fn changed(&self) {
        self.engine.policy.changed(self.version).await;
    }

    /// Connects to the server. From now on the rules are those for its backend.
    ///
    /// # Errors
    /// See [`NoUpstream`].
    pub(crate) async fn connect(&mut self) -> Result<TcpStream, NoUpstream> {
        let connect = self.engine.connect.connect(&self.flow);
        let upstream = match tokio::time::timeout(self.engine.limits.connect, connect).await {
            Ok(Ok(upstream)) => upstream,
            failed => {
                count(&self.engine.counters.connects_failed);
                return Err(match failed {
                    Ok(Err(error)) if error.kind() != io::ErrorKind::TimedOut => NoUpstream::Failed(error),
                    _ => NoUpstream::TimedOut,
                });
            }
        };
        self.backend = Some(upstream.backend);
        if upstream.backend != self.flow.server || self.is_stale() {
            self.version = self.engine.policy.version();
            let rules = self.engine.policy.settled(&self.flow, Protocol::TCP, upstream.backend).await;
            self.take(rules.inspect_err(|_refused| count(&self.engine.counters.connections_refused))?);
        }
        Ok(upstream.stream)
    }

    /// The record of something that begins now, or began with the connection.
    pub(crate) fn begin(&self, kind: Kind, ruling: &Ruling<'_>, since: Since) -> Pending {
        let (began, time) = match since {
            Since::Now => (Instant::now(), SystemTime::now()),
            Since::Start => (self.began, self.time),
        };
        let rule = ruling.rule.map(own);
        let reason = match (&rule, ruling.rule) {
            (Some(own), Some(rule)) if Arc::ptr_eq(rule, ruling.reason) => Arc::clone(own),
            _ => own(ruling.reason),
        };
        let record = Record {
            flow: self.flow,
            backend: self.backend,
            pod: Some(self.pod.clone()),
            time,
            kind,
            passes: ruling.passes,
            rule,
            reason,
            would_pass: ruling.would_pass,
            latency: Duration::ZERO,
            bytes: (0, 0),
        };
        Pending { record, began }
    }

    /// Records something that came to nothing.
    pub(crate) fn record_failed(&self, kind: Kind, reason: &str) {
        self.engine.recorder.record(Record {
            flow: self.flow,
            backend: self.backend,
            pod: Some(self.rules.pod.clone()),
            time: self.time,
            kind,
            passes: false,
            rule: None,
            reason: short(reason).into(),
            would_pass: None,
            latency: self.began.elapsed(),
            bytes: (0, 0),
        });
    }

    /// Hands over a record that is whole.
    pub(crate) fn finish(&self, pending: Pending) {
        self.engine.finish(pending);
    }
}

impl<P, R: Recorder, C> Engine<P, R, C> {
    /// Hands over a record that is whole.
    pub(crate) fn finish(&self, pending: Pending) {
        self.recorder.record(pending.record);
    }
}

/// When something began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// Now.
    Now,
    /// With the connection.
    Start,
}

/// A record that is not whole yet.
#[derive(Debug)]
pub(crate) struct Pending {
    record: Record,
    began: Instant,
}

impl Pending {
    /// The answer begins.
    pub(crate) fn answered(&mut self, answer: u16) {
        if let Kind::Http { status, .. } = &mut self.record.kind {
            *status = Some(answer);
        }
        self.record.latency = self.began.elapsed();
    }

    /// It passes: by what was judged before it.
    pub(crate) const fn passed(&mut self) {
        self.record.passes = true;
    }

    /// It does not pass after all.
    pub(crate) fn refused(&mut self, why: &str) {
        self.record.passes = false;
        self.record.rule = None;
        self.record.reason = why.into();
    }

    /// It has ended.
    pub(crate) fn ended(&mut self, to_server: u64, from_server: u64) {
        self.record.bytes = (to_server, from_server);
        if self.record.latency.is_zero() {
            self.record.latency = self.began.elapsed();
        }
    }
}

/// What a record says of a request that could not be read.
pub(crate) fn unreadable(version: Version, status: u16) -> Kind {
    Kind::Http { asked: Asked::default(), status: Some(status), version, mismatched: Box::default() }
}
