//! Small clients and servers that prove reachability with real packets. Each future runs in the namespace of the thread
//! that drives it ([`crate::node::Node::run_async`], or the thread of a pod).

pub mod dns;
pub mod http;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

/// The port of the Internet's echo servers, TCP and UDP.
pub const ECHO_PORT: u16 = 8080;
/// Connections that an echo server serves at once; more wait in the kernel's queue.
const SERVED_AT_ONCE: usize = 64;
/// Longest text of an answer, `255.255.255.255:65535` and some room.
const ANSWER: usize = 64;
/// How long one connection of the server may take.
const SERVE: Duration = Duration::from_secs(10);
/// The first wait before a datagram is sent again; it doubles.
const RETRY: Duration = Duration::from_millis(100);

/// Serves on TCP and UDP `address` for ever: every client is told the address and port that it was seen with.
///
/// # Errors
/// When the address cannot be bound or a socket breaks.
pub async fn serve(address: SocketAddrV4) -> io::Result<()> {
    let tcp = TcpListener::bind(address).await?;
    let udp = UdpSocket::bind(address).await?;
    run(tcp, udp).await
}

/// Binds as [`serve`] does, and returns once clients may come; the serving goes on, on this thread, until it ends.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve_in_background(address: impl Into<SocketAddr>) -> io::Result<()> {
    let address = address.into();
    let tcp = TcpListener::bind(address).await?;
    let udp = UdpSocket::bind(address).await?;
    drop(tokio::task::spawn_local(async move {
        if let Err(error) = run(tcp, udp).await {
            tracing::warn!(%address, %error, "an echo server stopped");
        }
    }));
    Ok(())
}

async fn run(tcp: TcpListener, udp: UdpSocket) -> io::Result<()> {
    tokio::try_join!(answer_streams(tcp), answer_datagrams(udp)).map(|((), ())| ())
}

async fn answer_streams(tcp: TcpListener) -> io::Result<()> {
    let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(SERVED_AT_ONCE));
    loop {
        let Ok(slot) = std::sync::Arc::clone(&slots).acquire_owned().await else { return Ok(()) };
        let (mut stream, peer) = tcp.accept().await?;
        drop(tokio::spawn(async move {
            // A client that goes away takes its answer with it.
            let _gone = tokio::time::timeout(SERVE, stream.write_all(format!("{peer}\n").as_bytes())).await;
            drop(slot);
        }));
    }
}

async fn answer_datagrams(udp: UdpSocket) -> io::Result<()> {
    let mut request = [0; ANSWER];
    loop {
        let (_, peer) = udp.recv_from(&mut request).await?;
        // A full queue loses datagrams; clients ask again.
        let _lost = udp.send_to(format!("{peer}\n").as_bytes(), peer).await;
    }
}

fn answer(text: &[u8]) -> io::Result<SocketAddrV4> {
    let text = std::str::from_utf8(text).map(str::trim).unwrap_or_default();
    text.parse().map_err(|_not| io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no address")))
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
}

/// Connects to an echo server and returns the address that it saw. `from` binds the client's address.
///
/// # Errors
/// `TimedOut` after `limit`; else the system's reason.
pub async fn tcp(from: Option<Ipv4Addr>, to: SocketAddrV4, limit: Duration) -> io::Result<SocketAddrV4> {
    within(limit, async {
        let socket = TcpSocket::new_v4()?;
        if let Some(from) = from {
            socket.bind(SocketAddrV4::new(from, 0).into())?;
        }
        let stream = socket.connect(to.into()).await?;
        let mut text = Vec::new();
        stream.take(ANSWER as u64).read_to_end(&mut text).await?;
        answer(&text)
    })
    .await
}

/// Connects to an echo server of either family and returns the address that it saw.
///
/// # Errors
/// `TimedOut` after `limit`; else the system's reason.
pub async fn seen_by(to: SocketAddr, limit: Duration) -> io::Result<IpAddr> {
    within(limit, async { read_seen(TcpStream::connect(to).await?).await }).await
}

/// The same from an address of the client's own.
///
/// # Errors
/// As [`seen_by`], and when the address cannot be bound.
pub async fn seen_from(from: IpAddr, to: SocketAddr, limit: Duration) -> io::Result<IpAddr> {
    within(limit, async {
        let socket = if from.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.bind(SocketAddr::new(from, 0))?;
        read_seen(socket.connect(to).await?).await
    })
    .await
}

async fn read_seen(stream: TcpStream) -> io::Result<IpAddr> {
    let mut text = Vec::new();
    stream.take(ANSWER as u64).read_to_end(&mut text).await?;
    let text = String::from_utf8_lossy(&text);
    let seen: Result<SocketAddr, _> = text.trim().parse();
    seen.map(|seen| seen.ip())
        .map_err(|_not| io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no address")))
}

/// Asks an echo server by UDP which address it sees, again after a while when no answer comes.
///
/// # Errors
/// `TimedOut` after `limit`; else the system's reason.
pub async fn udp(from: Option<Ipv4Addr>, to: SocketAddrV4, limit: Duration) -> io::Result<SocketAddrV4> {
    within(limit, async {
        let socket = UdpSocket::bind(SocketAddrV4::new(from.unwrap_or(Ipv4Addr::UNSPECIFIED), 0)).await?;
        socket.connect(to).await?;
        let (mut wait, mut text) = (RETRY, [0; ANSWER]);
        loop {
            socket.send(b"?").await?;
            if let Ok(received) = tokio::time::timeout(wait, socket.recv(&mut text)).await {
                let length = received?;
                return answer(text.get(..length).unwrap_or_default());
            }
            wait *= 2;
        }
    })
    .await
}

/// Sends ICMP echo requests with `payload` bytes and the "don't fragment" bit left to the kernel (set, for path MTU
/// discovery), until one is answered.
///
/// # Errors
/// `TimedOut` after `limit`; else the system's reason.
pub async fn ping(from: Option<Ipv4Addr>, to: Ipv4Addr, payload: usize, limit: Duration) -> io::Result<()> {
    within(limit, async {
        let socket = icmp_socket(from)?;
        let identity = u16::try_from(socket.as_raw_fd()).unwrap_or(1).to_be_bytes();
        let mut wait = RETRY;
        for sequence in 1..=u16::MAX {
            socket.send_to(&echo_request(identity, sequence, payload), SocketAddrV4::new(to, 0)).await?;
            match tokio::time::timeout(wait, reply(&socket, identity, to)).await {
                Ok(answered) => return answered,
                Err(_elapsed) => wait *= 2,
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    })
    .await
}

/// A raw socket. The standard library's type for datagrams sends and receives on it as on one for UDP.
fn icmp_socket(from: Option<Ipv4Addr>) -> io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp)?;
    if let Some(from) = from {
        bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(from, 0)))?;
    }
    UdpSocket::from_std(fd.into())
}

/// RFC 792: type 8, code 0, checksum, identifier, sequence number, data.
fn echo_request(identity: [u8; 2], sequence: u16, payload: usize) -> Vec<u8> {
    let header = |checksum: u16| {
        let ([a, b], [c, d], [e, f]) = (checksum.to_be_bytes(), identity, sequence.to_be_bytes());
        [8, 0, a, b, c, d, e, f]
    };
    let mut packet = header(0).to_vec();
    packet.resize(packet.len() + payload, 0);
    let checksum = internet_checksum(&packet);
    packet.splice(..8, header(checksum));
    packet
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| match *pair {
            [high, low] => u32::from(u16::from_be_bytes([high, low])),
            [high] => u32::from(u16::from_be_bytes([high, 0])),
            _ => 0,
        })
        .fold(0, u32::wrapping_add);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

async fn reply(socket: &UdpSocket, identity: [u8; 2], from: Ipv4Addr) -> io::Result<()> {
    let mut packet = vec![0; 10_240];
    loop {
        let (length, _) = socket.recv_from(&mut packet).await?;
        if is_reply(packet.get(..length).unwrap_or_default(), identity, from) {
            return Ok(());
        }
    }
}

/// Whether an IP packet, as a raw socket gives it, is the answer: RFC 792, type 0, our identifier.
fn is_reply(packet: &[u8], identity: [u8; 2], from: Ipv4Addr) -> bool {
    let header = packet.first().map_or(0, |first| usize::from(first & 15) * 4);
    let source = packet.get(12..16);
    let Some([kind, _, _, _, a, b, ..]) = packet.get(header..) else { return false };
    source == Some(&from.octets()) && *kind == 0 && [*a, *b] == identity
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071, section 3, the example.
    #[test]
    fn the_checksum_is_the_one_of_the_rfc() {
        assert_eq!(internet_checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        let packet = echo_request([1, 2], 3, 5);
        assert_eq!(internet_checksum(&packet), 0);
    }

    #[tokio::test]
    async fn a_server_tells_its_clients_what_it_sees() {
        let local = tokio::task::LocalSet::new();
        let address = SocketAddrV4::new(Ipv4Addr::new(127, 0, 7, 1), 40_701);
        local
            .run_until(async {
                serve_in_background(address).await.unwrap();
                let from = Ipv4Addr::new(127, 0, 7, 2);
                let limit = Duration::from_secs(5);
                assert_eq!(*tcp(Some(from), address, limit).await.unwrap().ip(), from);
                assert_eq!(*udp(Some(from), address, limit).await.unwrap().ip(), from);
            })
            .await;
    }
}
