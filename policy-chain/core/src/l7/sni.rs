//! TLS server names, and the patterns that rules give for them.

/// An element of `serverNames`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerNamePattern {}
