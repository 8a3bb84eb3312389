//! What is spoken at the sockets for what a daemon logs ([`LOG_SOCKETS`](crate::node::LOG_SOCKETS)): a client sends a filter as
//! `SLUICE_LOG` has it (nothing: it only asks), closes its half of the connection, and reads one JSON object, [`Answer`].

use serde::{Deserialize, Serialize};

/// Bytes of a filter, at the most.
pub const FILTER_LIMIT: usize = 4096;
/// In place of a filter: the one that the daemon was started with.
pub const CONFIGURED: &str = "configured";

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The filter that is in force.
    pub filter: String,
    /// The one that the daemon was started with.
    pub configured: String,
    /// Why what was asked for was not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
