//! Records of what went through the proxy.

pub mod file;
pub mod json;
pub mod ring;
pub(crate) mod told;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::l7::http::Version;

use crate::flow::Flow;

/// Takes records. It never blocks: what there is no room for is counted and dropped.
pub trait Recorder: Send + Sync + 'static {
    /// Takes one.
    fn record(&self, record: Record);
}

/// What became of one request, question or connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The flow.
    pub flow: Flow,
    /// Where its packets went, if a connection to the server was opened.
    pub backend: Option<SocketAddr>,
    /// Whose policy judged; none for a flow whose pod is not known.
    pub pod: Option<PodKey>,
    /// When it began.
    pub time: SystemTime,
    /// What it was.
    pub kind: Kind,
    /// Whether it passed.
    pub passes: bool,
    /// The rule that let it pass.
    pub rule: Option<Arc<str>>,
    /// Why it passed or did not, in words.
    pub reason: Arc<str>,
    /// Whether it would pass if the policies that are dry runs were in force, where there are any.
    pub would_pass: Option<bool>,
    /// From its first octet to the first octet of the answer; for a connection, to its end.
    pub latency: Duration,
    /// Octets of content to the server, and from it.
    pub bytes: (u64, u64),
}

/// What a record is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// An HTTP request, in its canonical form.
    Http {
        /// Method.
        method: Box<str>,
        /// Path and query.
        path: Box<str>,
        /// Host.
        host: Box<str>,
        /// Status of the response, the server's or the proxy's own; none if there was none.
        status: Option<u16>,
        /// Version by which the request came.
        version: Version,
        /// Names of headers that a rule wants otherwise and lets pass (`mismatch`).
        mismatched: Box<[Box<str>]>,
    },
    /// A question to a DNS server.
    Dns {
        /// The name asked for.
        name: Box<str>,
        /// Type of the records asked for.
        qtype: u16,
        /// Response code, the server's or the proxy's own; none if there was no answer.
        rcode: Option<u16>,
        /// Addresses in the answer.
        addresses: Box<[IpAddr]>,
    },
    /// A TLS connection.
    Tls {
        /// The server that its ClientHello names, if it names one.
        server_name: Option<Box<str>>,
    },
    /// A connection or datagram flow that is not looked into.
    Connection,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::flow::Direction;

    /// A record of a request.
    pub(crate) fn request(path: &str, passes: bool) -> Record {
        let at = |text: &str| text.parse().unwrap();
        Record {
            flow: Flow { direction: Direction::Egress, client: at("10.0.0.7:40000"), server: at("10.0.1.9:80") },
            backend: Some(at("10.0.1.10:8080")),
            pod: Some(PodKey { namespace: "shop".into(), name: "web".into() }),
            time: SystemTime::UNIX_EPOCH + Duration::from_secs(1),
            kind: Kind::Http {
                method: "GET".into(),
                path: path.into(),
                host: "shop".into(),
                status: Some(if passes { 200 } else { 403 }),
                version: Version::Http11,
                mismatched: Box::default(),
            },
            passes,
            rule: None,
            reason: "otherwise".into(),
            would_pass: None,
            latency: Duration::from_micros(250),
            bytes: (0, 5),
        }
    }

    #[test]
    fn a_line_says_what_happened() {
        let line = json::lines(&[(7, Arc::new(request("/a?b", false)))]);
        let expected = r#"{"number":7,"time":"1970-01-01T00:00:01.000000Z","direction":"egress","pod":"shop/web","client":"10.0.0.7:40000","server":"10.0.1.9:80","backend":"10.0.1.10:8080","kind":"http","method":"GET","path":"/a?b","host":"shop","status":403,"version":"1.1","verdict":"refused","reason":"otherwise","latency_us":250,"bytes_to_server":0,"bytes_from_server":5}"#;
        assert_eq!(String::from_utf8(line).unwrap(), format!("{expected}\n"));
    }
}
