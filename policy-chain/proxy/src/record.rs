//! Records of what went through the proxy.

pub mod file;
pub mod json;
pub mod ring;
pub(crate) mod told;

use std::borrow::Cow;
use std::fmt;
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

/// Octets of a text that a record has at most: what a client chooses fills no memory.
pub const MOST: usize = 2048;

/// Addresses of an answer that a record has at most.
pub const ADDRESSES: usize = 64;

/// What a record has of a text: all of it, or its beginning with an ellipsis.
#[must_use]
pub fn short(text: &str) -> Cow<'_, str> {
    const CUT: char = '\u{2026}';
    if text.len() <= MOST {
        return text.into();
    }
    format!("{}{CUT}", text.split_at(text.floor_char_boundary(MOST - CUT.len_utf8())).0).into()
}

/// What was asked for, each text as [`short`] has it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Asked {
    /// One after the other: records come by the ten thousand, and each piece of memory costs.
    text: Box<str>,
    method: usize,
    path: usize,
}

impl Asked {
    /// A method, a path with its query, and a host.
    #[must_use]
    pub fn new(method: &str, path: &str, host: &str) -> Self {
        let [method, path, host] = [method, path, host].map(short);
        let mut text = String::with_capacity(method.len() + path.len() + host.len());
        text.extend([&*method, &*path, &*host]);
        Self { text: text.into(), method: method.len(), path: path.len() }
    }

    /// Method.
    #[must_use]
    pub fn method(&self) -> &str {
        self.text.get(..self.method).unwrap_or_default()
    }

    /// Path and query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.text.get(self.method..self.method + self.path).unwrap_or_default()
    }

    /// Host.
    #[must_use]
    pub fn host(&self) -> &str {
        self.text.get(self.method + self.path..).unwrap_or_default()
    }
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of {}", self.method(), self.path(), self.host())
    }
}

/// What a record is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// An HTTP request, in its canonical form.
    Http {
        /// Method, path and host.
        asked: Asked,
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
        /// Addresses in the answer, [`ADDRESSES`] at most.
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
                asked: Asked::new("GET", path, "shop"),
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
    fn what_a_client_chooses_is_cut() {
        let whole = "p".repeat(MOST);
        let asked = Asked::new("GET", &whole, "");
        assert_eq!((asked.method(), asked.path(), asked.host()), ("GET", &*whole, ""));
        let asked = Asked::new(&"m".repeat(70_000), &"\u{e9}".repeat(35_000), "shop");
        for text in [asked.method(), asked.path()] {
            assert!((MOST - 4..=MOST).contains(&text.len()) && text.ends_with('\u{2026}'), "{}", text.len());
        }
        assert_eq!(asked.host(), "shop");
        assert!(Asked::default().method().is_empty());
    }

    #[test]
    fn a_line_says_what_happened() {
        let line = json::lines(&[(7, Arc::new(request("/a?b", false)))]);
        let expected = r#"{"number":7,"time":"1970-01-01T00:00:01.000000Z","direction":"egress","pod":"shop/web","client":"10.0.0.7:40000","server":"10.0.1.9:80","backend":"10.0.1.10:8080","kind":"http","method":"GET","path":"/a?b","host":"shop","status":403,"version":"1.1","verdict":"refused","reason":"otherwise","latency_us":250,"bytes_to_server":0,"bytes_from_server":5}"#;
        assert_eq!(String::from_utf8(line).unwrap(), format!("{expected}\n"));
    }
}
