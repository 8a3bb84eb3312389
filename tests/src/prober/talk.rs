//! What a probe says once it is heard, and what the answer means.

use std::io;

use sluice_vpcsim::probe::dns::{self, Kind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Answer, QUIET};

/// The octet that servers send back.
pub(super) const ECHO: u8 = b'?';
/// The longest head of an HTTP response, or other answer, that is read, in octets.
const ANSWER: usize = 8192;
/// TLS records (RFC 8446, section 5.1).
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
/// The alert of a peer that may not be spoken to (RFC 8446, section 6.2).
const ACCESS_DENIED: u8 = 49;
/// Octets of a TLS record before what it carries.
pub(super) const RECORD: usize = 5;

/// What is said to a server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Ask {
    /// An octet, which comes back.
    #[default]
    Echo,
    /// Nothing: it counts that the connection stands.
    Nothing,
    /// A request of HTTP/1.1, as it is written.
    Http {
        /// Method, target, and header fields with the host among them.
        head: String,
    },
    /// A question for a name.
    Dns {
        /// The name.
        name: String,
        /// What is asked of it.
        kind: Kind,
    },
    /// A TLS handshake that names this server.
    Tls {
        /// The name.
        server: String,
    },
}

impl Ask {
    /// An HTTP request without a body.
    #[must_use]
    pub fn http<'f>(
        method: &str,
        target: &str,
        host: &str,
        fields: impl IntoIterator<Item = (&'f str, &'f str)>,
    ) -> Self {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n");
        if !matches!(method, "GET" | "HEAD") {
            head += "Content-Length: 0\r\n";
        }
        for (name, value) in fields {
            head += &format!("{name}: {value}\r\n");
        }
        Self::Http { head: head + "\r\n" }
    }
}

/// Says it on a connection that stands, and reads the answer. The connection can be used again if it was an answer.
pub(super) async fn talk(stream: &mut TcpStream, ask: &Ask) -> io::Result<Answer> {
    match ask {
        Ask::Echo => {
            stream.write_all(&[ECHO]).await?;
            let mut octet = [0];
            stream.read_exact(&mut octet).await?;
            if octet == [ECHO] { Ok(Answer::Answered) } else { Err(invalid("no echo")) }
        }
        Ask::Nothing => match timeout(QUIET, stream.read_u8()).await {
            Err(_elapsed) => Ok(Answer::Answered),
            Ok(Ok(_)) => Err(invalid("the server speaks first")),
            Ok(Err(error)) => Err(error),
        },
        Ask::Http { head } => {
            stream.write_all(head.as_bytes()).await?;
            http_answer(stream, head.starts_with("HEAD ")).await
        }
        Ask::Dns { name, kind } => {
            let asked = dns::question(stream.local_addr()?.port(), name, *kind)?;
            stream.write_u16(u16::try_from(asked.len()).map_err(io::Error::other)?).await?;
            stream.write_all(&asked).await?;
            let mut message = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut message).await?;
            dns_answer(&message, &asked).ok_or_else(|| invalid("this is no answer to the question"))
        }
        Ask::Tls { server } => {
            stream.write_all(&client_hello(server)?).await?;
            let mut record = [0; RECORD];
            stream.read_exact(&mut record).await?;
            let [kind, _, _, high, low] = record;
            let mut carried = vec![0; usize::from(u16::from_be_bytes([high, low]))];
            stream.read_exact(&mut carried).await?;
            match (kind, carried.as_slice()) {
                (HANDSHAKE, [2, ..]) => Ok(Answer::Answered),
                (ALERT, [2, ACCESS_DENIED]) => Ok(Answer::Declined("alert access_denied".into())),
                (ALERT, [_, other]) => Err(invalid(&format!("alert {other}"))),
                _ => Err(invalid("no TLS")),
            }
        }
    }
}

/// What a DNS message says; none if it is not the answer to `asked`.
pub(super) fn dns_answer(message: &[u8], asked: &[u8]) -> Option<Answer> {
    let answer = dns::read(message, asked)?;
    Some(match answer.rcode {
        0 | dns::NAME_ERROR => Answer::Answered,
        dns::REFUSED => Answer::Declined("REFUSED".into()),
        other => Answer::Failed(io::Error::other(format!("response code {other}"))),
    })
}

/// Reads a response whose length its head tells; that to a HEAD has no content.
async fn http_answer(stream: &mut TcpStream, to_head: bool) -> io::Result<Answer> {
    let mut response = Vec::new();
    let head = loop {
        if let Some(end) = response.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if response.len() > ANSWER {
            return Err(invalid("a response without end"));
        }
        if stream.read_buf(&mut response).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let text = String::from_utf8_lossy(response.get(..head).unwrap_or_default()).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let length = length.filter(|length| *length <= ANSWER).ok_or_else(|| invalid("a response without a length"))?;
    let length = if to_head { 0 } else { length };
    while response.len() < head + length {
        if stream.read_buf(&mut response).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let body = response.get(head..).unwrap_or_default();
    match text.split(' ').nth(1) {
        Some("200") => Ok(Answer::Answered),
        Some("403") if body == b"Access denied\r\n" || to_head && body.is_empty() => Ok(Answer::Declined("403".into())),
        // What has two readings, and what is to be asked for elsewhere. No server here says so.
        Some(status @ ("307" | "400")) => Ok(Answer::Declined(status.into())),
        status => Ok(Answer::Failed(io::Error::other(format!("status {}", status.unwrap_or("?"))))),
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A ClientHello (RFC 8446, section 4.1.2) in one record, with a server's name (RFC 6066, section 3) and nothing else that is
/// optional: no server would finish this handshake, but each begins it.
fn client_hello(server: &str) -> io::Result<Vec<u8>> {
    let name = prefixed::<2>(&[&[0], &*prefixed::<2>(server.as_bytes())?].concat())?;
    let extensions = [&[0, 0], &*prefixed::<2>(&name)?].concat();
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    // No session; TLS_AES_128_GCM_SHA256; no compression.
    hello.extend([0, 0, 2, 0x13, 1, 1, 0]);
    hello.extend(prefixed::<2>(&extensions)?);
    record(&[&[1], &*prefixed::<3>(&hello)?].concat())
}

/// The beginning of a ServerHello's record: what a client waits for.
pub(super) fn server_hello() -> io::Result<Vec<u8>> {
    let mut hello = vec![3, 3];
    hello.extend([9; 32]);
    hello.extend([0, 0x13, 1, 0]);
    record(&[&[2], &*prefixed::<3>(&hello)?].concat())
}

fn record(message: &[u8]) -> io::Result<Vec<u8>> {
    Ok([&[HANDSHAKE, 3, 1], &*prefixed::<2>(message)?].concat())
}

/// The octets behind their length, which takes `N` octets.
fn prefixed<const N: usize>(octets: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(octets.len()).map_err(io::Error::other)?.to_be_bytes();
    let (beyond, length) = length.split_at(length.len() - N);
    if beyond.iter().any(|octet| *octet != 0) {
        return Err(invalid("too long"));
    }
    Ok([length, octets].concat())
}
