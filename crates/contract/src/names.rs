//! What names resolved to, as files in the policy directory keep it: one line of JSON each.
//!
//! policyd keeps what it knows in [`FILE`]. The proxy notes in [`ALONE_FILE`] what it wrote to the kernel's maps while
//! policyd was away; policyd reads it when it starts, and removes it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The name of policyd's file, in the policy directory.
pub const FILE: &str = "names";

/// The name of the proxy's file, in the policy directory.
pub const ALONE_FILE: &str = "names.alone";

/// A name that resolved to addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// The name that was asked for, in lower case, without a dot at its end.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// When they are forgotten, in seconds since 1970.
    pub until: u64,
    /// Namespace and name of the pod that asked first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<(String, String)>,
}
