//! What the server does wrong on demand.

use std::time::Duration;

/// How a request goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The connection is closed without an answer.
    Drop,
    /// An answer with this status, and `Retry-After` in seconds if there is one. Nothing is done.
    Status {
        /// HTTP status, e.g. 429, 500, 503, 403, 410.
        code: u16,
        /// Seconds.
        retry_after: Option<u64>,
    },
    /// The answer comes later by so much.
    Slow(Duration),
    /// The body of the answer is cut after so many bytes, and the connection closed.
    Truncate(usize),
    /// The request is answered as if it had succeeded, with this body.
    Garbage(String),
}

/// Which requests a fault is for, and how often. An empty text stands for any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultRule {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `discovery`; empty: any.
    pub verb: &'static str,
    /// Plural, e.g. `pods`; empty: any.
    pub plural: &'static str,
    /// Requests that are still to go wrong; none: all, until [`super::ApiServer::heal`].
    pub times: Option<u32>,
    /// What goes wrong.
    pub fault: Fault,
}

impl FaultRule {
    /// All requests of a verb for a kind go wrong.
    #[must_use]
    pub const fn always(verb: &'static str, plural: &'static str, fault: Fault) -> Self {
        Self { verb, plural, times: None, fault }
    }

    /// The next so many requests of a verb for a kind go wrong.
    #[must_use]
    pub const fn times(times: u32, verb: &'static str, plural: &'static str, fault: Fault) -> Self {
        Self { verb, plural, times: Some(times), fault }
    }

    fn is_for(&self, verb: &str, plural: &str) -> bool {
        let any = |own: &str, other: &str| own.is_empty() || own == other;
        self.times != Some(0) && any(self.verb, verb) && any(self.plural, plural)
    }
}

/// How all of the server is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// Connections are closed at once.
    Refuse,
    /// Connections are taken, and nothing is answered: a partition of the network.
    Hang,
}

/// The faults in force.
#[derive(Debug, Default)]
pub(super) struct Faults {
    rules: Vec<FaultRule>,
    pub(super) outage: Option<Outage>,
}

impl Faults {
    pub(super) fn add(&mut self, rule: FaultRule) {
        self.rules.push(rule);
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
    }

    /// The fault of this request, if one is due. It counts.
    pub(super) fn take(&mut self, verb: &str, plural: &str) -> Option<Fault> {
        let rule = self.rules.iter_mut().find(|rule| rule.is_for(verb, plural))?;
        if let Some(times) = &mut rule.times {
            *times -= 1;
        }
        Some(rule.fault.clone())
    }
}
