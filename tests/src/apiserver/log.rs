//! What was asked of the server.

use std::collections::{BTreeMap, VecDeque};

use serde_json::Value;

/// Requests that are remembered; older ones are only counted.
const REMEMBERED: usize = 10_000;

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `discovery`.
    pub verb: &'static str,
    /// API group of the kind; empty for the core group and for `discovery`.
    pub group: String,
    /// Plural of the kind; the path for `discovery`.
    pub plural: String,
    /// Namespace; empty where there is none.
    pub namespace: String,
    /// Name; empty where there is none.
    pub name: String,
    /// Subresource; empty where there is none.
    pub subresource: String,
    /// Query, decoded.
    pub query: BTreeMap<String, String>,
    /// `Content-Type`.
    pub content_type: String,
    /// Body; null where there is none, or where it is no JSON.
    pub body: Value,
    /// Status of the answer; none for one that was dropped.
    pub status: Option<u16>,
}

/// The log, bounded.
#[derive(Debug, Default)]
pub(super) struct Log {
    requests: VecDeque<Request>,
    counts: BTreeMap<(&'static str, String), u64>,
    forgotten: u64,
}

impl Log {
    pub(super) fn add(&mut self, request: Request) {
        *self.counts.entry((request.verb, request.plural.clone())).or_default() += 1;
        if self.requests.len() == REMEMBERED {
            self.requests.pop_front();
            self.forgotten += 1;
        }
        self.requests.push_back(request);
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.iter().cloned().collect()
    }

    pub(super) fn count(&self, verb: &str, plural: &str) -> u64 {
        let any = |wanted: &str, own: &str| wanted.is_empty() || wanted == own;
        self.counts.iter().filter(|(key, _)| any(verb, key.0) && any(plural, &key.1)).map(|(_, count)| count).sum()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
