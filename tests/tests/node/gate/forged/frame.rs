//! Frames as bytes, and a socket that sends them as they are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Command;

use nix::libc;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike as _, sendto, socket};

pub(super) type Mac = [u8; 6];

const UDP: u8 = 17;
const FRAGMENT: u8 = 44;

/// The address of a link of the calling thread's namespace, by `ip`.
pub(super) fn mac(interface: &str) -> Mac {
    let output = Command::new("ip").args(["-j", "link", "show", "dev", interface]).output().expect("ip is needed");
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let address = links[0]["address"].as_str().unwrap();
    let bytes: Vec<u8> = address.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// A pod's interface, as `AF_PACKET` has it.
pub(super) struct Wire {
    socket: OwnedFd,
    address: LinkAddr,
    own: Mac,
    gateway: Mac,
}

impl Wire {
    /// In the calling thread's namespace.
    pub(super) fn open(interface: &str, own: Mac, gateway: Mac) -> Self {
        // Protocol 0: it receives nothing.
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let index = nix::net::if_::if_nametoindex(interface).unwrap();
        Self { socket, address: link(index), own, gateway }
    }

    pub(super) const fn own(&self) -> Mac {
        self.own
    }

    pub(super) const fn gateway(&self) -> Mac {
        self.gateway
    }

    pub(super) fn frame(&self, packet: &[u8]) -> Vec<u8> {
        ethernet(self.gateway, self.own, &[], packet)
    }

    pub(super) fn send(&self, frame: &[u8]) {
        let sent = sendto(self.socket.as_raw_fd(), frame, &self.address, MsgFlags::empty());
        assert_eq!(sent, Ok(frame.len()));
    }
}

#[expect(unsafe_code, reason = "nix makes no address of a link")]
fn link(index: u32) -> LinkAddr {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET.try_into().unwrap(),
        sll_protocol: 0,
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>().try_into().unwrap();
    let address: *const libc::sockaddr_ll = &raw const address;
    // SAFETY: it is the address of a value of the family that it names, of this length, and it lives through the call.
    unsafe { LinkAddr::from_raw(address.cast(), Some(length)) }.unwrap()
}

/// A frame around an IP packet, with tags (TPID and TCI) before it.
pub(super) fn ethernet(to: Mac, from: Mac, tags: &[(u16, u16)], packet: &[u8]) -> Vec<u8> {
    let kind: u16 = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    let mut frame = [to, from].concat();
    for (kind, tag) in tags {
        frame.extend(kind.to_be_bytes());
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(kind.to_be_bytes());
    frame.extend(packet);
    frame
}

/// "`address` is at `from`" (RFC 826), to one host.
pub(super) fn arp_reply(from: Mac, address: Ipv4Addr, to: Mac) -> Vec<u8> {
    let mut frame = [to, from].concat();
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2]);
    frame.extend(from);
    frame.extend(address.octets());
    frame.extend(to);
    frame.extend([169, 254, 1, 1]);
    frame
}

/// The sum of RFC 1071 over parts of even length, the last one apart.
fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// A UDP datagram in one family. Its text is filled up with dots, so that it can be cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Datagram {
    pub(super) from: (IpAddr, u16),
    pub(super) to: (IpAddr, u16),
    pub(super) text: &'static str,
}

impl Datagram {
    fn octets(address: IpAddr) -> Vec<u8> {
        match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        }
    }

    /// The UDP header and the text.
    fn udp(&self) -> Vec<u8> {
        let text = format!("{:.<64}", self.text);
        let length = u16::try_from(8 + text.len()).unwrap();
        let mut udp = Vec::new();
        udp.extend(self.from.1.to_be_bytes());
        udp.extend(self.to.1.to_be_bytes());
        udp.extend(length.to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(text.as_bytes());
        let (from, to) = (Self::octets(self.from.0), Self::octets(self.to.0));
        let sum = checksum(&[&from, &to, &[0, UDP], &length.to_be_bytes(), &udp]);
        udp.splice(6..8, sum.to_be_bytes());
        udp
    }

    /// An IP packet: of IPv4 with options and the fragment's number, flags and offset; of IPv6 with what comes between.
    fn ip(&self, v4: (&[u8], u16, u16), v6: (u8, &[u8]), payload: &[u8]) -> Vec<u8> {
        let (from, to) = (Self::octets(self.from.0), Self::octets(self.to.0));
        if self.to.0.is_ipv6() {
            let (next, between) = v6;
            let length = u16::try_from(between.len() + payload.len()).unwrap();
            return [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[next, 64], &from, &to, between, payload].concat();
        }
        let (options, number, fragment) = v4;
        let words = u8::try_from(5 + options.len() / 4).unwrap();
        let length = u16::try_from(usize::from(words) * 4 + payload.len()).unwrap();
        let mut header = vec![0x40 | words, 0];
        for word in [length, number, fragment] {
            header.extend(word.to_be_bytes());
        }
        header.extend([64, UDP, 0, 0]);
        header.extend([&from, &to, options].concat());
        let sum = checksum(&[&header]);
        header.splice(10..12, sum.to_be_bytes());
        [&header, payload].concat()
    }

    /// The plain packet.
    pub(super) fn packet(&self) -> Vec<u8> {
        self.ip((&[], 1, 0), (UDP, &[]), &self.udp())
    }

    /// In two fragments of this number, the first with the whole header.
    pub(super) fn fragments(&self, number: u16) -> [Vec<u8>; 2] {
        self.fragments_at(number, 24)
    }

    /// In two fragments, cut at so many bytes of UDP; the second says that it begins at the next multiple of eight.
    pub(super) fn fragments_at(&self, number: u16, cut: usize) -> [Vec<u8>; 2] {
        let udp = self.udp();
        let (first, second) = udp.split_at(cut);
        let offset = u16::try_from(cut.div_ceil(8)).unwrap();
        [(first, 0, true), (second, offset, false)].map(|(part, offset, more)| {
            let v6 = offset << 3 | u16::from(more);
            let between = [&[UDP, 0][..], &v6.to_be_bytes(), &[0, 0], &number.to_be_bytes()].concat();
            self.ip((&[], number, u16::from(more) << 13 | offset), (FRAGMENT, &between), part)
        })
    }

    /// With options that say nothing: no operation; hop-by-hop and destination options, padded.
    pub(super) fn with_options(&self) -> Vec<u8> {
        let between = [[60, 0, 1, 4, 0, 0, 0, 0], [UDP, 0, 1, 4, 0, 0, 0, 0]].concat();
        self.ip((&[1, 1, 1, 1], 1, 0), (0, &between), &self.udp())
    }

    /// By way of another: a loose source route (RFC 791), a routing header of type 0 (RFC 5095 forbids it).
    pub(super) fn source_routed(&self, by: IpAddr) -> Vec<u8> {
        let by = Self::octets(by);
        let option = [&[131, 7, 4][..], &by[..4], &[0]].concat();
        let between = [&[UDP, 2, 0, 1, 0, 0, 0, 0][..], &by].concat();
        self.ip((&option, 1, 0), (43, if self.to.0.is_ipv6() { &between } else { &[] }), &self.udp())
    }
}

/// An ICMPv6 message of the link (hop limit 255).
pub(super) fn icmpv6(from: Ipv6Addr, to: Ipv6Addr, kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0], body].concat();
    let length = u16::try_from(message.len()).unwrap();
    let sum = checksum(&[&from.octets(), &to.octets(), &length.to_be_bytes(), &[0, 58], &message]);
    message.splice(2..4, sum.to_be_bytes());
    [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[58, 255], &from.octets(), &to.octets(), &message].concat()
}
