//! Servers that speak what they are spoken to in: by the first octet they know what a client wants.

use std::io;
use std::sync::{Arc, Mutex};

use sluice_vpcsim::probe::dns::{self, Zone};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::talk::{ECHO, HANDSHAKE, RECORD, server_hello};
use super::{RETRY, lock};

/// Connections that one server holds at once; more wait in the kernel's queue.
const HELD: usize = 1024;
/// Octets that a client may send before it is answered.
const ASKED: usize = 65_536;

/// The names that DNS servers know.
pub(super) type Names = Arc<Mutex<Zone>>;

/// Serves the connections of a listener until it is dropped.
pub(super) async fn tcp(listener: TcpListener, names: Names) {
    let slots = Arc::new(Semaphore::new(HELD));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        // Out of descriptors, or a client that is gone already: the next one may do better.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        let names = Arc::clone(&names);
        drop(tokio::spawn(async move {
            // A client that goes away, or speaks nonsense, has the connection closed.
            let _gone = converse(stream, &names).await;
            drop(slot);
        }));
    }
}

async fn converse(mut stream: TcpStream, names: &Names) -> io::Result<()> {
    let mut asked = Vec::new();
    while stream.read_buf(&mut asked).await? > 0 && asked.len() < ASKED {
        while let Some((taken, answer)) = answer(&asked, names) {
            asked.drain(..taken);
            stream.write_all(&answer?).await?;
        }
    }
    Ok(())
}

/// How many octets are a whole question, and the answer to it; none if there are more to come.
fn answer(asked: &[u8], names: &Names) -> Option<(usize, io::Result<Vec<u8>>)> {
    match asked {
        [] => None,
        [ECHO, ..] => Some((1, Ok(vec![ECHO]))),
        [HANDSHAKE, ..] => {
            let length = RECORD + usize::from(u16::from_be_bytes([*asked.get(3)?, *asked.get(4)?]));
            (asked.len() >= length).then(|| (length, server_hello()))
        }
        // The length of a DNS message (RFC 1035, section 4.2.2).
        [0 | 1, low, ..] => {
            let length = usize::from(u16::from_be_bytes([*asked.first()?, *low]));
            let question = asked.get(2..2 + length)?;
            let answer = dns::answer(question, &lock(names));
            let framed = answer.and_then(|answer| {
                let length = u16::try_from(answer.len()).ok()?;
                Some([&length.to_be_bytes()[..], &answer].concat())
            });
            Some((2 + length, framed.ok_or_else(|| io::ErrorKind::InvalidData.into())))
        }
        _ => {
            let head = asked.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
            // Requests have no bodies.
            let line = asked.split(|octet| *octet == b'\r').next().unwrap_or_default();
            let mut response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", line.len()).into_bytes();
            let line = if line.starts_with(b"HEAD ") { &[][..] } else { line };
            response.extend(line);
            Some((head, Ok(response)))
        }
    }
}

/// Answers questions for names, and sends everything else back.
pub(super) async fn udp(socket: UdpSocket, names: Names) {
    let mut buffer = [0; 512];
    loop {
        // An ICMP error of an earlier answer shows up here.
        if let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let asked = buffer.get(..length).unwrap_or_default();
            let answer = dns::answer(asked, &lock(&names)).unwrap_or_else(|| asked.to_vec());
            // A full queue loses datagrams; clients ask again.
            let _lost = socket.send_to(&answer, peer).await;
        }
    }
}
