//! DNS over UDP (RFC 1035): a server of a few names with addresses, and a client of one question. Messages can be had alone, for
//! other sockets.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::time::Duration;

use tokio::net::UdpSocket;

use super::{RETRY, within};

/// The port of DNS servers.
pub const DNS_PORT: u16 = 53;
/// Longest message over UDP without extensions (RFC 1035, section 2.3.4).
const MESSAGE: usize = 512;
/// Octets of a message's header.
const HEADER: usize = 12;
/// Response code of a name that is not there.
pub const NAME_ERROR: u8 = 3;
/// Response code of a server that will not say.
pub const REFUSED: u8 = 5;
/// Seconds that an answer may be kept.
const TTL: u32 = 30;
/// Class IN.
const IN: [u8; 2] = [0, 1];

/// What is asked of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Its IPv4 addresses.
    A,
    /// Its IPv6 addresses (RFC 3596).
    Aaaa,
}

impl Kind {
    /// Type and class on the wire.
    const fn octets(self) -> [u8; 4] {
        match self {
            Self::A => [0, 1, IN[0], IN[1]],
            Self::Aaaa => [0, 28, IN[0], IN[1]],
        }
    }
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The response code; 0 is no error.
    pub rcode: u8,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
}

/// Names, in lower case and without the last dot, and their addresses.
pub type Zone = BTreeMap<String, Vec<IpAddr>>;

/// Binds `address`, and returns once clients may ask; the serving goes on, on this thread, until it ends.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve_in_background(address: SocketAddrV4, zone: Zone) -> io::Result<()> {
    let socket = UdpSocket::bind(address).await?;
    drop(tokio::task::spawn_local(async move {
        let mut question = [0; MESSAGE];
        loop {
            let received = match socket.recv_from(&mut question).await {
                Ok(received) => received,
                Err(error) => {
                    tracing::warn!(%address, %error, "a DNS server stopped");
                    return;
                }
            };
            let (length, peer) = received;
            if let Some(answer) = answer(question.get(..length).unwrap_or_default(), &zone) {
                // A full queue loses datagrams; clients ask again.
                let _lost = socket.send_to(&answer, peer).await;
            }
        }
    }));
    Ok(())
}

/// The answer to a question; none to what is no question. Of names that the zone has, all but addresses is missing; others are
/// not there.
#[must_use]
pub fn answer(question: &[u8], zone: &Zone) -> Option<Vec<u8>> {
    let (name, end) = name(question, HEADER)?;
    let asked = question.get(HEADER..end + 4)?;
    // One question, and no answer.
    if question.get(2)? & 0x80 != 0 || question.get(4..6)? != [0, 1] {
        return None;
    }
    let found = zone.get(&name);
    let wanted = |address: &&IpAddr| asked.ends_with(&kind_of(**address).octets());
    let addresses: Vec<IpAddr> = found.into_iter().flatten().filter(wanted).copied().collect();
    let count = u16::try_from(addresses.len()).ok()?.to_be_bytes();
    let mut answer = question.get(..2)?.to_vec();
    // An answer of an authority; the recursion that was desired is repeated.
    answer.extend([0x84 | (question.get(2)? & 1), if found.is_some() { 0 } else { NAME_ERROR }]);
    answer.extend([0, 1, count[0], count[1], 0, 0, 0, 0]);
    answer.extend(asked);
    for address in addresses {
        // The name of the question, by a pointer.
        answer.extend([0xc0, 12]);
        answer.extend(kind_of(address).octets());
        answer.extend(TTL.to_be_bytes());
        match address {
            IpAddr::V4(v4) => {
                answer.extend([0, 4]);
                answer.extend(v4.octets());
            }
            IpAddr::V6(v6) => {
                answer.extend([0, 16]);
                answer.extend(v6.octets());
            }
        }
    }
    (answer.len() <= MESSAGE).then_some(answer)
}

const fn kind_of(address: IpAddr) -> Kind {
    if address.is_ipv4() { Kind::A } else { Kind::Aaaa }
}

/// The name at an offset, in lower case, and the offset behind it. Pointers are not followed: questions have none.
fn name(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels: Vec<String> = Vec::new();
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        match length {
            0 => return Some((labels.join("."), at)),
            1..=63 => {
                let label = message.get(at..at + length)?;
                labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
                at += length;
            }
            _ => return None,
        }
    }
}

/// A question with this number, which asks for recursion.
///
/// # Errors
/// `InvalidInput` for what is no name.
pub fn question(id: u16, name: &str, kind: Kind) -> io::Result<Vec<u8>> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.strip_suffix('.').unwrap_or(name).split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length));
        let length =
            length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no name")))?;
        message.push(length);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(kind.octets());
    Ok(message)
}

/// What an answer to `asked` says; none if it is an answer to something else.
#[must_use]
pub fn read(message: &[u8], asked: &[u8]) -> Option<Answer> {
    let questions = asked.get(HEADER..)?;
    let is_ours = message.get(..2)? == asked.get(..2)? && message.get(2)? & 0x80 != 0;
    if !is_ours || message.get(HEADER..HEADER + questions.len())? != questions {
        return None;
    }
    let rcode = message.get(3)? & 15;
    let count = u16::from_be_bytes([*message.get(6)?, *message.get(7)?]);
    let mut addresses = Vec::new();
    let mut at = HEADER + questions.len();
    for _ in 0..count {
        // A pointer, type and class, time to live, length.
        let head = message.get(at..at + 12)?;
        let length = usize::from(u16::from_be_bytes([*head.get(10)?, *head.get(11)?]));
        let data = message.get(at + 12..at + 12 + length)?;
        if head.get(2..6)? == Kind::A.octets() {
            addresses.push(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).into());
        } else if head.get(2..6)? == Kind::Aaaa.octets() {
            addresses.push(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).into());
        }
        at += 12 + length;
    }
    Some(Answer { rcode, addresses })
}

/// Asks a server for the IPv4 addresses of `name`, again after a while when no answer comes.
///
/// # Errors
/// `TimedOut` after `limit`; `InvalidInput` for what is no name; else the system's reason.
pub async fn resolve(server: SocketAddrV4, name: &str, limit: Duration) -> io::Result<Answer> {
    within(limit, async {
        let socket = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)).await?;
        socket.connect(server).await?;
        let asked = question(socket.local_addr()?.port(), &name.to_ascii_lowercase(), Kind::A)?;
        let (mut wait, mut message) = (RETRY, [0; MESSAGE]);
        loop {
            socket.send(&asked).await?;
            let received = tokio::time::timeout(wait, async {
                loop {
                    let length = socket.recv(&mut message).await?;
                    if let Some(answer) = read(message.get(..length).unwrap_or_default(), &asked) {
                        return Ok::<_, io::Error>(answer);
                    }
                }
            });
            if let Ok(answer) = received.await {
                return answer;
            }
            wait *= 2;
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_of_the_zone_are_answered_and_no_others() {
        let local = tokio::task::LocalSet::new();
        let server = SocketAddrV4::new(Ipv4Addr::new(127, 0, 7, 4), 40_704);
        let address: IpAddr = Ipv4Addr::new(198, 51, 100, 10).into();
        let zone = Zone::from([("api.example".to_owned(), vec![address, Ipv4Addr::LOCALHOST.into()])]);
        local
            .run_until(async {
                serve_in_background(server, zone).await.unwrap();
                let limit = Duration::from_secs(5);
                let found = resolve(server, "API.example", limit).await.unwrap();
                assert_eq!(found, Answer { rcode: 0, addresses: vec![address, Ipv4Addr::LOCALHOST.into()] });
                let other = resolve(server, "other.example", limit).await.unwrap();
                assert_eq!(other, Answer { rcode: NAME_ERROR, addresses: vec![] });
                let nonsense = resolve(server, "a..b", limit).await.unwrap_err();
                assert_eq!(nonsense.kind(), io::ErrorKind::InvalidInput);
            })
            .await;
    }

    #[test]
    fn each_family_is_a_question_of_its_own() {
        let addresses = [IpAddr::from([198, 51, 100, 10]), "2001:db8::10".parse().unwrap()];
        let zone = Zone::from([("a.example".to_owned(), addresses.to_vec())]);
        for (kind, address) in [(Kind::A, addresses[0]), (Kind::Aaaa, addresses[1])] {
            let asked = question(9, "a.example.", kind).unwrap();
            let found = read(&answer(&asked, &zone).unwrap(), &asked).unwrap();
            assert_eq!(found, Answer { rcode: 0, addresses: vec![address] });
        }
    }

    #[test]
    fn what_is_no_question_has_no_answer() {
        let zone = Zone::new();
        let good = question(7, "a.example", Kind::A).unwrap();
        assert!(answer(&good, &zone).is_some());
        for cut in 0..good.len() {
            assert!(answer(&good[..cut], &zone).is_none(), "{cut}");
        }
        let mut pointer = good.clone();
        pointer[HEADER] = 0xc0;
        assert!(answer(&pointer, &zone).is_none());
    }
}
