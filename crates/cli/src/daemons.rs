//! What the daemons of this node say of themselves: the pages of their introspection ports.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use clap::ValueEnum;
use serde_json::Value;
use sluice_contract::node::{
    IPAMD_INTROSPECTION_PORT, LOG_SOCKETS, POLICYD_INTROSPECTION_PORT, PROXY_INTROSPECTION_PORT,
};

use crate::config;

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Bytes of a page that is read: a node with a thousand addresses has less than a MiB.
const LIMIT: u64 = 64 << 20;

/// A daemon of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Daemon {
    Ipamd,
    Policyd,
    Proxy,
}

impl Daemon {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Ipamd, Self::Policyd, Self::Proxy];

    /// The name of its program.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ipamd => "sluice-ipamd",
            Self::Policyd => "sluice-policyd",
            Self::Proxy => "sluice-proxy",
        }
    }

    /// The pages that it has, the one that says how it is first.
    pub(crate) const fn pages(self) -> &'static [&'static str] {
        match self {
            Self::Ipamd => {
                &["/v1/pool", "/v1/calls", "/v1/eni-configs", "/v1/ipamd-env-settings", "/v1/networkutils-env-settings"]
            }
            Self::Policyd => &["/v1/policy", "/v1/names", "/v1/settings"],
            Self::Proxy => &["/v1/policy", "/v1/connections", "/v1/settings"],
        }
    }

    /// The name of its socket for what it logs, below the directory of the runtime state.
    pub(crate) const fn log_socket(self) -> &'static str {
        let [ipamd, policyd, proxy] = LOG_SOCKETS;
        match self {
            Self::Ipamd => ipamd,
            Self::Policyd => policyd,
            Self::Proxy => proxy,
        }
    }

    /// Where its pages are: by the variable that the daemon itself reads.
    fn address(self) -> Result<SocketAddr, String> {
        let (variable, port) = match self {
            Self::Ipamd => ("INTROSPECTION_BIND_ADDRESS", IPAMD_INTROSPECTION_PORT),
            Self::Policyd => ("SLUICE_POLICY_INTROSPECTION_ADDRESS", POLICYD_INTROSPECTION_PORT),
            Self::Proxy => ("SLUICE_PROXY_INTROSPECTION_ADDRESS", PROXY_INTROSPECTION_PORT),
        };
        config::introspection(variable, port)
    }

    /// A page of it, as JSON.
    pub(crate) fn page(self, path: &str) -> Result<Value, String> {
        let address = self.address()?;
        let body = get(address, path).map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => format!("nobody listens at {address}"),
            _ => format!("{address}{path}: {error}"),
        })?;
        serde_json::from_slice(&body).map_err(|error| format!("{address}{path}: {error}"))
    }
}

fn get(address: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // With HTTP/1.0 a page ends where the connection does (RFC 9112, 6.3).
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(LIMIT).read_to_end(&mut answer)?;
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let end =
        answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or_else(|| wrong("it is no HTTP answer"))?;
    let (head, body) = answer.split_at(end);
    let status = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    if status != b"200" {
        return Err(wrong(&format!("status {}", String::from_utf8_lossy(status))));
    }
    Ok(body.get(4..).unwrap_or_default().to_vec())
}

/// What all of them say first.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) ipamd: Result<Value, String>,
    pub(crate) policyd: Result<Value, String>,
    pub(crate) proxy: Result<Value, String>,
}

impl Node {
    /// Asks them.
    pub(crate) fn look() -> Self {
        let first = |daemon: Daemon| daemon.page(daemon.pages().first().copied().unwrap_or("/"));
        Self { ipamd: first(Daemon::Ipamd), policyd: first(Daemon::Policyd), proxy: first(Daemon::Proxy) }
    }
}

/// A number of a page; 0 where it is not there.
pub(crate) fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
}

/// A text of a page; empty where it is not there.
pub(crate) fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Whether a page says so.
pub(crate) fn is(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_bool).unwrap_or_default()
}

/// What stands in a list of a page.
pub(crate) fn list<'v>(value: &'v Value, pointer: &str) -> &'v [Value] {
    value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}
