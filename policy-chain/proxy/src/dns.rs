//! DNS over UDP and TCP: names asked for are judged, and addresses in answers are learned.
//!
//! A query is forwarded as it is, in the client's name, or answered with REFUSED; an answer is forwarded as it is, once the
//! gates know the addresses in it. An answer goes to whoever asked its question, of that server, by that number, and to
//! nobody else. Rules look at the name that is asked for, and at nothing else (reference: Cilium, `rules.dns`).
//!
//! - `udp`: one task a thread serves all datagrams of the thread. `tcp`: one task a connection.
//! - `wire`: messages. `asked`: questions that wait for their answers. `socket`: many datagrams a system call.

mod asked;
#[cfg(test)]
mod fuzz;
mod socket;
mod tcp;
mod udp;
mod wire;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::l7::Message;
use tokio::time::Instant;

use self::asked::{Asked, Slot};
pub use self::tcp::StreamError;
pub use self::udp::Sockets;
use self::wire::{Answer, Query, rcode};
use crate::flow::Flow;
use crate::names::Names;
use crate::policy::{Policy, Rules};
use crate::record::{ADDRESSES, Kind, Record, Recorder};

/// How a query is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Refusal {
    /// REFUSED. Some resolvers (musl) take it for the end of their search list: such names have to be allowed too.
    #[default]
    Refused,
    /// NXDOMAIN: the name is not there, so that a resolver goes on with its search list.
    #[serde(rename = "nxdomain")]
    NameError,
}

impl Refusal {
    const fn rcode(self) -> u16 {
        match self {
            Self::Refused => rcode::REFUSED,
            Self::NameError => rcode::NAME_ERROR,
        }
    }
}

/// Limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How a query that no rule has is answered.
    pub refusal: Refusal,
    /// How long a server has for its answer.
    pub timeout: Duration,
    /// How long an answer is held at most until the gates know its addresses.
    pub hold: Duration,
    /// Answers that a thread holds at once; those above it are released at once.
    pub held: usize,
    /// Questions of a pod that wait for their answers.
    pub asked_of_pod: u32,
    /// Questions of a thread that wait for their answers.
    pub asked: usize,
    /// UDP sockets of a thread, one for each client's port and server.
    pub sockets: usize,
    /// Questions of a TCP connection that wait for their answers; then nothing more is read from it.
    pub asked_of_connection: usize,
    /// How long a TCP connection may be silent.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            refusal: Refusal::default(),
            // Resolvers give up after 5 seconds (resolv.conf(5)), and a recursive server may take longer.
            timeout: Duration::from_secs(10),
            hold: Duration::from_millis(100),
            held: 4_096,
            asked_of_pod: 4_096,
            asked: 16_384,
            sockets: 8_192,
            asked_of_connection: 128,
            // RFC 7766, 6.2.3: "of the order of a few seconds"; stub resolvers keep theirs longer.
            idle: Duration::from_secs(60),
        }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $field:ident: $name:literal, $help:literal;)*) => {
        /// Counts, since the start.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub(crate) $field: AtomicU64,)*
        }

        impl Counters {
            /// Each with its name and meaning.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$(($name, $help, self.$field.load(Ordering::Relaxed)),)*].into_iter()
            }
        }
    };
}

counters! {
    udp_queries: "sluice_proxy_dns_udp_queries", "DNS queries that came over UDP";
    tcp_queries: "sluice_proxy_dns_tcp_queries", "DNS queries that came over TCP";
    passed: "sluice_proxy_dns_forwarded", "DNS queries forwarded to their server";
    refused: "sluice_proxy_dns_refused", "DNS queries that no rule has";
    malformed: "sluice_proxy_dns_malformed", "DNS queries that cannot be read, or do not have exactly one question";
    repeated: "sluice_proxy_dns_repeated", "DNS queries sent again by their client before the answer came";
    answers: "sluice_proxy_dns_answers", "DNS answers forwarded to their client";
    unasked: "sluice_proxy_dns_unasked", "DNS answers dropped: nobody waits for one with their number";
    other_question: "sluice_proxy_dns_other_question",
        "DNS answers dropped: their number is one that is waited for, their question is another";
    unreadable: "sluice_proxy_dns_unreadable", "DNS answers forwarded from which nothing could be learned";
    timed_out: "sluice_proxy_dns_timed_out", "DNS queries without an answer in time";
    unreachable: "sluice_proxy_dns_unreachable", "DNS queries answered SERVFAIL: their server cannot be reached";
    over_pod: "sluice_proxy_dns_over_pod", "DNS queries dropped: too many of their pod wait";
    over_thread: "sluice_proxy_dns_over_thread", "DNS queries dropped: too many of all pods wait, or too many sockets";
    no_rules: "sluice_proxy_dns_no_rules", "DNS queries dropped: the rules of their flow are not known or deny it";
    not_held: "sluice_proxy_dns_not_held", "DNS answers released at once: too many are held";
    unreceived: "sluice_proxy_dns_unreceived", "Attempts to read DNS queries that failed";
    unsent: "sluice_proxy_dns_unsent", "DNS datagrams that the kernel did not take";
}

impl Counters {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// What all DNS threads have in common.
#[derive(Debug)]
pub struct Dns<P, R> {
    policy: Arc<P>,
    recorder: Arc<R>,
    names: Names,
    limits: Limits,
    counters: Arc<Counters>,
    pods: Mutex<HashMap<PodKey, Arc<AtomicU32>>>,
}

impl<P: Policy, R: Recorder> Dns<P, R> {
    /// An engine.
    pub fn new(policy: Arc<P>, recorder: Arc<R>, names: Names, limits: Limits) -> Self {
        Self { policy, recorder, names, limits, counters: Arc::default(), pods: Mutex::default() }
    }

    /// The counts.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// The number of a pod's questions that wait, on all threads.
    fn load_of(&self, pod: &PodKey) -> Arc<AtomicU32> {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(load) = pods.get(pod) {
            return Arc::clone(load);
        }
        // Those that nobody holds any more are of pods that ask nothing.
        if pods.len() >= 1_024 && pods.len().is_power_of_two() {
            pods.retain(|_, load| Arc::strong_count(load) > 1);
        }
        Arc::clone(pods.entry(pod.clone()).or_default())
    }

    /// Judges a query. The question to be waited for, if it passes.
    fn judge(&self, query: &Query<'_>, flow: &Flow, rules: &Arc<Rules>, slot: impl FnOnce() -> Option<Slot>) -> Judged {
        let message = query.name.clone().map(|name| Message::Dns { name, qtype: query.qtype });
        let ruling = match &message {
            Some(message) => rules.judge(message),
            None => rules.judge_unread(),
        };
        let (passes, would_pass) = (ruling.passes, ruling.would_pass);
        let (rule, reason) = (ruling.rule.cloned(), Arc::clone(ruling.reason));
        if passes {
            let Some(slot) = slot() else {
                Counters::add(&self.counters.over_pod);
                return Judged::Dropped;
            };
            return Judged::Passes(Asked {
                id: query.id,
                question: query.question.into(),
                name: query.name.clone(),
                qtype: query.qtype,
                transfer: query.is_transfer(),
                at: Instant::now(),
                rule,
                reason,
                would_pass,
                rules: Arc::clone(rules),
                slot,
            });
        }
        Counters::add(&self.counters.refused);
        let rcode = self.limits.refusal.rcode();
        self.recorder.record(Record {
            flow: *flow,
            backend: None,
            pod: Some(rules.pod.clone()),
            time: SystemTime::now(),
            kind: kind(query.name.as_ref().map_or("?", |name| name.as_str()), query.qtype, Some(rcode), &[]),
            passes,
            rule,
            reason,
            would_pass,
            latency: Duration::ZERO,
            bytes: (0, 0),
        });
        Judged::Refused(query.refusal(rcode))
    }

    /// The record of a question that was forwarded.
    fn record(&self, flow: &Flow, asked: &Asked, rcode: Option<u16>, addresses: &[IpAddr]) {
        let latency = asked.at.elapsed();
        let now = SystemTime::now();
        self.recorder.record(Record {
            flow: *flow,
            backend: None,
            pod: Some(asked.rules.pod.clone()),
            time: now.checked_sub(latency).unwrap_or(now),
            kind: kind(asked.name.as_ref().map_or("?", |name| name.as_str()), asked.qtype, rcode, addresses),
            passes: true,
            rule: asked.rule.clone(),
            reason: Arc::clone(&asked.reason),
            would_pass: asked.would_pass,
            latency,
            bytes: (0, 0),
        });
    }

    /// What an answer says, if it is one that can be read.
    fn addresses(&self, answer: &Answer<'_>, message: &[u8]) -> wire::Addresses {
        answer.addresses(message).unwrap_or_else(|| {
            Counters::add(&self.counters.unreadable);
            wire::Addresses { rcode: answer.rcode, ..wire::Addresses::default() }
        })
    }
}

/// What becomes of a query.
#[derive(Debug)]
enum Judged {
    Passes(Asked),
    /// It is answered with this.
    Refused(Vec<u8>),
    /// It is not answered.
    Dropped,
}

fn kind(name: &str, qtype: u16, rcode: Option<u16>, addresses: &[IpAddr]) -> Kind {
    let addresses = addresses.get(..ADDRESSES).unwrap_or(addresses).into();
    Kind::Dns { name: name.into(), qtype, rcode, addresses }
}

#[cfg(test)]
mod tests;
