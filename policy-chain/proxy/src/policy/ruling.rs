//! What rules say of one request.

use std::sync::Arc;

use sluice_policy_core::l7::http::{Edit, Pass};

/// What rules say of one request.
#[derive(Debug, Clone)]
pub struct Ruling<'r> {
    /// Whether it passes.
    pub passes: bool,
    /// The rule that lets it pass, if one does.
    pub rule: Option<&'r Arc<str>>,
    /// Why it passes or does not, in words.
    pub reason: &'r Arc<str>,
    /// Whether it would pass if the policies that are dry runs were in force, where there are any.
    pub would_pass: Option<bool>,
    /// What comes with an HTTP request by all rules that match it, where headers did not.
    pub(super) headers: Vec<Pass<'r>>,
}

impl<'r> Ruling<'r> {
    /// The changes of headers to make before the request is forwarded, in this order.
    pub fn edits(&self) -> impl Iterator<Item = Edit<'r>> + '_ {
        self.headers.iter().flat_map(Pass::edits)
    }

    /// Names of the headers that a rule wants otherwise and lets pass: the request's record has them.
    pub fn mismatched(&self) -> impl Iterator<Item = &'r str> + '_ {
        self.headers.iter().flat_map(Pass::mismatched).map(|header| header.name.as_str())
    }
}
