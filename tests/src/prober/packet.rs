//! Packets of protocols that nobody answers: it counts that they arrive.
//!
//! They are written with their IP headers and read off the interface of the namespace that they are for, so that every protocol
//! and every type of ICMP is one of them.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{RETRY, lock};

/// What such a packet ends with, before its number.
const TAG: [u8; 8] = *b"sluice\0\0";
/// Protocol numbers (IANA).
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// Octets of an ICMP header, in both families (RFC 792, RFC 4443).
const ICMP_HEADER: usize = 8;
/// The time to live of packets, in hops.
const HOPS: u8 = 64;

const FLAGS: SockFlag = SockFlag::SOCK_NONBLOCK.union(SockFlag::SOCK_CLOEXEC);

/// Who waits for which packet to arrive, in all namespaces.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    next: AtomicU64,
    waiting: Mutex<BTreeMap<u64, oneshot::Sender<()>>>,
}

/// Reads what arrives for an address.
#[derive(Debug)]
pub(super) struct Catcher(JoinHandle<()>);

/// A socket that sends packets as they are; called in its namespace.
pub(super) fn sender(from: IpAddr) -> io::Result<OwnedFd> {
    let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    Ok(socket(family, SockType::Raw, FLAGS, SockProtocol::Raw)?)
}

/// A socket that sees all packets of a namespace, from their IP headers on; called in it.
pub(super) fn tap() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Packet, SockType::Datagram, FLAGS, SockProtocol::EthAll)?)
}

impl Catcher {
    pub(super) fn of(tap: OwnedFd, address: IpAddr, arrivals: Arc<Arrivals>) -> io::Result<Self> {
        // The standard library's type for datagrams receives on any socket.
        let socket = UdpSocket::from_std(tap.into())?;
        Ok(Self(tokio::spawn(async move {
            let mut buffer = [0; 2048];
            loop {
                // An interface that went down, say: not worth a busy loop.
                let Ok(length) = socket.recv(&mut buffer).await else {
                    tokio::time::sleep(RETRY).await;
                    continue;
                };
                if let Some(number) = numbered(buffer.get(..length).unwrap_or_default(), address)
                    && let Some(arrived) = lock(&arrivals.waiting).remove(&number)
                {
                    // Whoever sent it may have stopped waiting.
                    let _gone = arrived.send(());
                }
            }
        })))
    }
}

impl Drop for Catcher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The number of a packet for `address`. What the namespace itself sends is seen too, and is for others; and so is the error by
/// which the far end quotes a packet that it has no use for, behind more headers than a packet of ours has.
fn numbered(packet: &[u8], address: IpAddr) -> Option<u64> {
    let (to, header): (IpAddr, _) = match packet.first()? >> 4 {
        4 => (<[u8; 4]>::try_from(packet.get(16..20)?).ok()?.into(), 20),
        6 => (<[u8; 16]>::try_from(packet.get(24..40)?).ok()?.into(), 40),
        _ => return None,
    };
    let (before, number) = packet.split_last_chunk()?;
    let headers = before.strip_suffix(&TAG)?;
    (to == address && headers.len() <= header + ICMP_HEADER).then(|| u64::from_be_bytes(*number))
}

/// Sends packets until one arrives. The port of `to` is the type of an ICMP message.
pub(super) async fn call(
    socket: OwnedFd,
    from: IpAddr,
    protocol: u8,
    to: SocketAddr,
    arrivals: &Arrivals,
) -> io::Result<()> {
    let socket = UdpSocket::from_std(socket.into())?;
    let number = arrivals.next.fetch_add(1, Ordering::Relaxed);
    let (arrived, mut answer) = oneshot::channel();
    {
        let mut waiting = lock(&arrivals.waiting);
        waiting.retain(|_, other| !other.is_closed());
        waiting.insert(number, arrived);
    }
    let tag = [TAG, number.to_be_bytes()].concat();
    let packet = match protocol {
        ICMP | ICMPV6 => {
            let kind = u8::try_from(to.port()).map_err(|_beyond| io::Error::from(io::ErrorKind::InvalidInput))?;
            ip(from, to.ip(), protocol, &icmp(from, to.ip(), protocol, kind, &tag)?)?
        }
        _ => ip(from, to.ip(), protocol, &tag)?,
    };
    let mut wait = RETRY;
    loop {
        socket.send_to(&packet, SocketAddr::new(to.ip(), 0)).await?;
        if timeout(wait, &mut answer).await.is_ok() {
            return Ok(());
        }
        wait *= 2;
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// A packet with an IP header (RFC 791, RFC 8200). The kernel fills checksum and length of IPv4 in.
fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> io::Result<Vec<u8>> {
    let header = if from.is_ipv4() {
        vec![0x45, 0, 0, 0, 0, 0, 0, 0, HOPS, protocol, 0, 0]
    } else {
        let [high, low] = u16::try_from(payload.len()).map_err(io::Error::other)?.to_be_bytes();
        vec![0x60, 0, 0, 0, high, low, protocol, HOPS]
    };
    Ok([&header, &*octets(from), &*octets(to), payload].concat())
}

/// An ICMP message (RFC 792, RFC 4443) of a type, with code 0.
fn icmp(from: IpAddr, to: IpAddr, protocol: u8, kind: u8, rest: &[u8]) -> io::Result<Vec<u8>> {
    let mut message = [&[kind, 0, 0, 0], rest].concat();
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    // Only ICMPv6 has a pseudo-header in its checksum.
    let pseudo = if protocol == ICMPV6 {
        [&*octets(from), &*octets(to), &length.to_be_bytes(), &[0, protocol]].concat()
    } else {
        Vec::new()
    };
    let sum = checksum(&[pseudo, message.clone()].concat());
    message.splice(2..4, sum.to_be_bytes());
    Ok(message)
}

/// The Internet checksum (RFC 1071) of an even number of octets.
fn checksum(octets: &[u8]) -> u16 {
    let words = octets.chunks(2).map(|word| word.iter().fold(0, |sum, octet| sum << 8 | u32::from(*octet)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_found_by_its_number_where_it_is_for() {
        for (from, to) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let packet = ip(from, to, 47, &[TAG, 7_u64.to_be_bytes()].concat()).unwrap();
            assert_eq!((numbered(&packet, to), numbered(&packet, from)), (Some(7), None));
            assert_eq!(numbered(&packet[..packet.len() - 1], to), None);
        }
    }

    /// RFC 1071: the sum over a message with its checksum is 0.
    #[test]
    fn checksums_come_out() {
        let from: IpAddr = "fd00::1".parse().unwrap();
        let message = icmp(from, from, ICMPV6, 8, &[1, 2, 3, 4]).unwrap();
        let pseudo = [&*octets(from), &*octets(from), &[0, 8, 0, ICMPV6]].concat();
        assert_eq!(checksum(&[pseudo, message].concat()), 0);
    }
}
