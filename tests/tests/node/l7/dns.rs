//! A DNS server of a few names (RFC 1035), over UDP and TCP, and a client of one question. It counts what it is asked.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::spawn_local;
use tokio::time::timeout;

const HEADER: usize = 12;
/// Before a question is asked again.
const AGAIN: Duration = Duration::from_millis(500);
pub(super) const A: u16 = 1;
pub(super) const AAAA: u16 = 28;
/// Response code of a name that is not there.
const NAME_ERROR: u8 = 3;

/// What a name means.
#[derive(Debug, Clone, Default)]
pub(super) struct Entry {
    pub(super) ttl: u32,
    pub(super) addresses: Vec<IpAddr>,
    /// Only over TCP; over UDP the answer is cut.
    pub(super) long: bool,
}

/// How a question came.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Asked {
    pub(super) name: String,
    pub(super) kind: u16,
    pub(super) tcp: bool,
}

/// Names and their meaning, and how often each was asked for. Clones are the same zone.
#[derive(Debug, Clone, Default)]
pub(super) struct Zone(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    names: BTreeMap<String, Entry>,
    asked: BTreeMap<Asked, usize>,
}

impl Zone {
    pub(super) fn put(&self, name: &str, entry: Entry) {
        self.0.lock().unwrap().names.insert(name.to_owned(), entry);
    }

    /// How often a name was asked for, in whatever way, with this type.
    pub(super) fn asked(&self, name: &str, kind: u16) -> usize {
        let state = self.0.lock().unwrap();
        state.asked.iter().filter(|(asked, _)| asked.name == name && asked.kind == kind).map(|(_, count)| count).sum()
    }

    /// Everything that was asked for.
    pub(super) fn all(&self) -> Vec<Asked> {
        self.0.lock().unwrap().asked.keys().cloned().collect()
    }

    /// Serves at an address, on the thread that calls it, from the moment at which this returns.
    pub(super) async fn serve(&self, at: SocketAddr) -> io::Result<()> {
        let (udp, tcp) = (UdpSocket::bind(at).await?, TcpListener::bind(at).await?);
        let zone = self.clone();
        spawn_local(async move {
            let mut question = [0; 4096];
            while let Ok((length, peer)) = udp.recv_from(&mut question).await {
                if let Some(answer) = zone.answer(&question[..length], false) {
                    udp.send_to(&answer, peer).await.ok();
                }
            }
        });
        let zone = self.clone();
        spawn_local(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let zone = zone.clone();
                spawn_local(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut question = vec![0; length.into()];
                        if stream.read_exact(&mut question).await.is_err() {
                            return;
                        }
                        let Some(answer) = zone.answer(&question, true) else { return };
                        if stream.write_all(&framed(&answer)).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Ok(())
    }

    fn answer(&self, question: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let (name, end) = name(question)?;
        let asked = question.get(HEADER..end + 4)?;
        let kind = u16::from_be_bytes(question.get(end..end + 2)?.try_into().ok()?);
        let mut state = self.0.lock().unwrap();
        *state.asked.entry(Asked { name: name.clone(), kind, tcp }).or_default() += 1;
        let entry = state.names.get(&name);
        let cut = entry.is_some_and(|entry| entry.long && !tcp);
        let of_kind = |address: &&IpAddr| matches!((kind, address), (A, IpAddr::V4(_)) | (AAAA, IpAddr::V6(_)));
        let found: Vec<&IpAddr> = match entry {
            Some(entry) if !cut => entry.addresses.iter().filter(of_kind).collect(),
            _ => Vec::new(),
        };
        let mut answer = question.get(..2)?.to_vec();
        let flags = 0x84 | (question.get(2)? & 1) | if cut { 2 } else { 0 };
        answer.extend([flags, 0x80 | if entry.is_some() { 0 } else { NAME_ERROR }]);
        answer.extend([0, 1, 0, u8::try_from(found.len()).ok()?, 0, 0, 0, 0]);
        answer.extend(asked);
        for address in found {
            answer.extend([0xc0, 12]);
            answer.extend(kind.to_be_bytes());
            answer.extend([0, 1]);
            answer.extend(entry?.ttl.to_be_bytes());
            match address {
                IpAddr::V4(v4) => answer.extend([&[0, 4][..], &v4.octets()].concat()),
                IpAddr::V6(v6) => answer.extend([&[0, 16][..], &v6.octets()].concat()),
            }
        }
        Some(answer)
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
}

/// The name that is asked for, in lower case, and the offset behind it.
fn name(message: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut at) = (Vec::new(), HEADER);
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        match length {
            0 => return Some((labels.join("."), at)),
            1..=63 => labels.push(String::from_utf8_lossy(message.get(at..at + length)?).to_ascii_lowercase()),
            _ => return None,
        }
        at += length;
    }
}

/// Asks for the addresses of a name in the caller's namespace, until there is an answer.
pub(super) async fn ask(server: SocketAddr, of: &str, kind: u16, limit: Duration) -> io::Result<Vec<IpAddr>> {
    let mut question = vec![0x5c, 0x1d, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in of.split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend(label.as_bytes());
    }
    question.push(0);
    question.extend(kind.to_be_bytes());
    question.extend([0, 1]);
    let asked = async {
        let any: SocketAddr = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
        let socket = UdpSocket::bind(any).await?;
        socket.connect(server).await?;
        let mut answer = vec![0; 4096];
        loop {
            socket.send(&question).await?;
            if let Ok(received) = timeout(AGAIN, socket.recv(&mut answer)).await {
                answer.truncate(received?);
                return Ok(answer);
            }
        }
    };
    let answer: io::Result<Vec<u8>> =
        timeout(limit, asked).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let answer = answer?;
    read(&answer, &question).ok_or_else(|| io::Error::other(format!("no answer: {answer:02x?}")))
}

fn read(answer: &[u8], question: &[u8]) -> Option<Vec<IpAddr>> {
    if answer.get(..2)? != question.get(..2)? || answer.get(HEADER..question.len())? != question.get(HEADER..)? {
        return None;
    }
    let mut at = question.len();
    let mut addresses = Vec::new();
    for _ in 0..u16::from_be_bytes(answer.get(6..8)?.try_into().ok()?) {
        let length = usize::from(u16::from_be_bytes(answer.get(at + 10..at + 12)?.try_into().ok()?));
        let data = answer.get(at + 12..at + 12 + length)?;
        match length {
            4 => addresses.push(IpAddr::from(<[u8; 4]>::try_from(data).ok()?)),
            _ => addresses.push(IpAddr::from(<[u8; 16]>::try_from(data).ok()?)),
        }
        at += 12 + length;
    }
    Some(addresses)
}
