//! HTTP requests in the one form in which they are matched and forwarded, and the rules for them.

/// A rule of `rules.http`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpRule {}
