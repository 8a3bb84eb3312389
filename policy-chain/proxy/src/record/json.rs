//! Records as JSON, one object each.

use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use jiff::Timestamp;
use serde::Serialize;
use sluice_policy_core::l7::http::Version;

use super::ring::Numbered;
use super::{Kind, Record};

/// A record for people and programs.
#[derive(Debug, Serialize)]
pub struct Line<'r> {
    /// Its number: grows by one with every record of the process, so that a gap tells what was lost.
    number: u64,
    time: String,
    direction: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    client: SocketAddr,
    server: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<SocketAddr>,
    #[serde(flatten)]
    kind: KindLine<'r>,
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'r str>,
    reason: &'r str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dry_run: Option<&'static str>,
    latency_us: u64,
    bytes_to_server: u64,
    bytes_from_server: u64,
}

#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum KindLine<'r> {
    Http {
        method: &'r str,
        path: &'r str,
        host: &'r str,
        #[serde(skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
        version: &'static str,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        mismatched: &'r [Box<str>],
    },
    Dns {
        name: &'r str,
        qtype: u16,
        #[serde(skip_serializing_if = "Option::is_none")]
        rcode: Option<u16>,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        addresses: &'r [IpAddr],
    },
    Tls {
        #[serde(skip_serializing_if = "Option::is_none")]
        server_name: Option<&'r str>,
    },
    Connection,
}

const fn verdict(passes: bool) -> &'static str {
    if passes { "passed" } else { "refused" }
}

impl<'r> From<&'r Numbered> for Line<'r> {
    fn from((number, record): &'r Numbered) -> Self {
        let Record { flow, backend, pod, time, kind, passes, rule, reason, would_pass, latency, bytes } = &**record;
        let kind = match kind {
            Kind::Http { asked, status, version, mismatched } => KindLine::Http {
                method: asked.method(),
                path: asked.path(),
                host: asked.host(),
                status: *status,
                version: match version {
                    Version::Http10 => "1.0",
                    Version::Http11 => "1.1",
                    Version::Http2 => "2",
                },
                mismatched,
            },
            Kind::Dns { name, qtype, rcode, addresses } => {
                KindLine::Dns { name, qtype: *qtype, rcode: *rcode, addresses }
            }
            Kind::Tls { server_name } => KindLine::Tls { server_name: server_name.as_deref() },
            Kind::Connection => KindLine::Connection,
        };
        Self {
            number: *number,
            time: timestamp(*time),
            direction: flow.direction.as_str(),
            pod: pod.as_ref().map(ToString::to_string),
            client: flow.client,
            server: flow.server,
            backend: backend.filter(|backend| *backend != flow.server),
            kind,
            verdict: verdict(*passes),
            rule: rule.as_deref(),
            reason,
            dry_run: would_pass.map(verdict),
            latency_us: u64::try_from(latency.as_micros()).unwrap_or(u64::MAX),
            bytes_to_server: bytes.0,
            bytes_from_server: bytes.1,
        }
    }
}

fn timestamp(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| String::new(), |time| format!("{time:.6}"))
}

/// Lines of JSON, one a record.
#[must_use]
pub fn lines(records: &[Numbered]) -> Vec<u8> {
    let mut text = Vec::new();
    for record in records {
        let before = text.len();
        match serde_json::to_writer(&mut text, &Line::from(record)) {
            Ok(()) => text.push(b'\n'),
            // It is plain data, so this does not happen; half a line would harm the others.
            Err(_) => text.truncate(before),
        }
    }
    text
}
