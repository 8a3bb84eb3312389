//! Frames, byte by byte.

use std::net::IpAddr;

use sluice_policy_core::flow::Protocol;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// An IP packet in an Ethernet frame.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    /// TCP's flags; the type of an ICMP message (the source port is its identifier); SCTP's first chunk.
    pub(crate) flags: u8,
    pub(crate) hops: u8,
    /// IPv4 options, a multiple of 4 bytes.
    pub(crate) options: Vec<u8>,
    /// IPv6 extension headers: type and content, the first two bytes of which are written here.
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    /// Identification, offset in bytes, whether more follow.
    pub(crate) fragment: Option<(u32, u16, bool)>,
    /// What follows the transport header; in a fragment that is not the first, all there is.
    pub(crate) payload: Vec<u8>,
}

impl Packet {
    pub(crate) fn new(source: IpAddr, destination: IpAddr, protocol: Protocol) -> Self {
        Self {
            source,
            destination,
            protocol: protocol.0,
            source_port: 0,
            destination_port: 0,
            flags: 0,
            hops: 64,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            payload: b"sluice!!".to_vec(),
        }
    }

    pub(crate) fn tcp(source: (IpAddr, u16), destination: (IpAddr, u16), flags: u8) -> Self {
        Self {
            source_port: source.1,
            destination_port: destination.1,
            flags,
            ..Self::new(source.0, destination.0, Protocol::TCP)
        }
    }

    pub(crate) fn udp(source: (IpAddr, u16), destination: (IpAddr, u16)) -> Self {
        Self { protocol: Protocol::UDP.0, ..Self::tcp(source, destination, 0) }
    }

    /// An ICMP message of the addresses' family.
    pub(crate) fn icmp(source: IpAddr, destination: IpAddr, kind: u8, identifier: u16) -> Self {
        let protocol = if source.is_ipv4() { Protocol::ICMP } else { Protocol::ICMPV6 };
        Self { flags: kind, source_port: identifier, ..Self::new(source, destination, protocol) }
    }

    /// The same, the other way; an answer, if it asks.
    pub(crate) fn turned(&self) -> Self {
        let flags = match (Protocol(self.protocol), self.flags) {
            (Protocol::ICMP, 8) => 0,
            (Protocol::ICMPV6, 128) => 129,
            (_, flags) => flags,
        };
        let (source, destination) = (self.destination, self.source);
        let (mut source_port, mut destination_port) = (self.destination_port, self.source_port);
        if [Protocol::ICMP, Protocol::ICMPV6].contains(&Protocol(self.protocol)) {
            (source_port, destination_port) = (self.source_port, 0);
        }
        Self { source, destination, source_port, destination_port, flags, ..self.clone() }
    }

    /// An ICMP error about this packet.
    pub(crate) fn error(&self, source: IpAddr, destination: IpAddr, kind: u8) -> Self {
        let quoted = self.ip();
        let payload = quoted[..quoted.len().min(if source.is_ipv4() { 28 } else { 96 })].to_vec();
        Self { payload, ..Self::icmp(source, destination, kind, 0) }
    }

    fn transport(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if self.fragment.is_some_and(|(_, offset, _)| offset > 0) {
            out.extend(&self.payload);
            return out;
        }
        match Protocol(self.protocol) {
            Protocol::TCP => {
                out.extend(self.source_port.to_be_bytes());
                out.extend(self.destination_port.to_be_bytes());
                out.extend([0; 8]);
                out.extend([0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
            }
            Protocol::UDP => {
                out.extend(self.source_port.to_be_bytes());
                out.extend(self.destination_port.to_be_bytes());
                out.extend(u16::try_from(8 + self.payload.len()).unwrap().to_be_bytes());
                out.extend([0; 2]);
            }
            Protocol::SCTP => {
                out.extend(self.source_port.to_be_bytes());
                out.extend(self.destination_port.to_be_bytes());
                out.extend([0; 8]);
                out.extend([self.flags, 0, 0, 4]);
            }
            Protocol::ICMP | Protocol::ICMPV6 => {
                out.extend([self.flags, 0, 0, 0]);
                out.extend(self.source_port.to_be_bytes());
                out.extend([0; 2]);
            }
            _ => {}
        }
        out.extend(&self.payload);
        out
    }

    /// The packet without its frame.
    pub(crate) fn ip(&self) -> Vec<u8> {
        let transport = self.transport();
        let mut out = Vec::new();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                assert_eq!(self.options.len() % 4, 0);
                let header = 20 + self.options.len();
                let (identification, offset, more) = self.fragment.unwrap_or_default();
                out.push(0x40 | u8::try_from(header / 4).unwrap());
                out.push(0);
                out.extend(u16::try_from(header + transport.len()).unwrap().to_be_bytes());
                out.extend(u16::try_from(identification).unwrap().to_be_bytes());
                out.extend(((offset / 8) | if more { 0x2000 } else { 0 }).to_be_bytes());
                out.extend([self.hops, self.protocol, 0, 0]);
                out.extend(source.octets());
                out.extend(destination.octets());
                out.extend(&self.options);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut extensions = self.extensions.clone();
                if let Some((identification, offset, more)) = self.fragment {
                    let mut content = vec![0, 0];
                    content.extend((offset & 0xfff8 | u16::from(more)).to_be_bytes());
                    content.extend(identification.to_be_bytes());
                    extensions.push((44, content));
                }
                let length = extensions.iter().map(|(_, content)| content.len()).sum::<usize>() + transport.len();
                out.extend([0x60, 0, 0, 0]);
                out.extend(u16::try_from(length).unwrap().to_be_bytes());
                out.push(extensions.first().map_or(self.protocol, |(kind, _)| *kind));
                out.push(self.hops);
                out.extend(source.octets());
                out.extend(destination.octets());
                for (index, (kind, content)) in extensions.iter().enumerate() {
                    let mut content = content.clone();
                    content[0] = extensions.get(index + 1).map_or(self.protocol, |(kind, _)| *kind);
                    match kind {
                        44 => {}
                        51 => content[1] = u8::try_from(content.len() / 4 - 2).unwrap(),
                        _ => content[1] = u8::try_from(content.len() / 8 - 1).unwrap(),
                    }
                    out.extend(content);
                }
            }
            mixed => panic!("{mixed:?}"),
        }
        out.extend(transport);
        out
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        ethernet(if self.source.is_ipv4() { 0x0800 } else { 0x86dd }, &self.ip())
    }
}

pub(crate) fn ethernet(kind: u16, content: &[u8]) -> Vec<u8> {
    let mut out = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    out.extend(kind.to_be_bytes());
    out.extend(content);
    out
}
