//! What a proxy tells of the requests that it judged.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::Pod;

/// Records of a frame, at most.
pub const AT_ONCE: usize = 256;

/// Some records, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Records {
    /// Requests since the frame before that are not in this one, because there were too many.
    pub lost: u64,
    /// Those that are.
    pub records: Vec<Record>,
}

/// What became of one request, question or connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When it began, in microseconds since 1970.
    pub time_us: u64,
    /// Whether the pod is the client (egress) or the server (ingress).
    pub egress: bool,
    /// Whose policy judged; none for a flow whose pod is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// Who opened the connection.
    pub client: SocketAddr,
    /// Whom the client dialled.
    pub server: SocketAddr,
    /// Where its packets went, if a connection to the server was opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<SocketAddr>,
    /// Whether it came by UDP.
    #[serde(default)]
    pub udp: bool,
    /// What it was.
    pub kind: Kind,
    /// Whether it passed.
    pub passes: bool,
    /// The rule that let it pass, as policyd has told it ([`List::rule`](super::List::rule)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Why it passed or did not, in words.
    pub reason: String,
    /// Whether it would pass if the policies that are dry runs were in force, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would_pass: Option<bool>,
    /// From its first octet to the first octet of the answer, in microseconds; for a connection, to its end.
    pub latency_us: u64,
}

impl Record {
    /// When it began.
    #[must_use]
    pub fn time(&self) -> Option<SystemTime> {
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(self.time_us))
    }
}

/// What a record is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An HTTP request, in its canonical form.
    Http {
        /// Method.
        method: String,
        /// Path and query.
        path: String,
        /// Host.
        host: String,
        /// Status of the response, the server's or the proxy's own; none if there was none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
        /// Version by which the request came: `HTTP/1.1`.
        version: String,
    },
    /// A question to a DNS server.
    Dns {
        /// The name asked for.
        name: String,
        /// Type of the records asked for.
        qtype: u16,
        /// Response code, the server's or the proxy's own; none if there was no answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rcode: Option<u16>,
        /// Addresses in the answer.
        #[serde(default)]
        addresses: Vec<IpAddr>,
    },
    /// A TLS connection.
    Tls {
        /// The server that its ClientHello names, if it names one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server_name: Option<String>,
    },
    /// A connection or datagram flow that is not looked into.
    Connection,
}
