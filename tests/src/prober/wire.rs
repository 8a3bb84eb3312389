//! SCTP and ICMP packets as bytes.

/// SCTP's common header and the fixed part of an INIT chunk (RFC 9260, sections 3.1 and 3.3.2), in bytes.
const SCTP_INIT: usize = 12 + 20;
/// Chunk types.
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// `State Cookie` (RFC 9260, section 3.3.3.1), which an INIT-ACK has to carry.
const COOKIE: [u8; 8] = [0, 7, 0, 8, b'c', b'o', b'o', b'k'];

/// An SCTP packet as far as it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sctp {
    /// Source port.
    pub(super) source: u16,
    /// Destination port.
    pub(super) destination: u16,
    /// What it is.
    pub(super) chunk: Chunk,
}

/// The first chunk of an SCTP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunk {
    /// INIT with its initiate tag.
    Init(u32),
    /// INIT-ACK; the packet's verification tag.
    InitAck(u32),
}

/// Writes a packet with one chunk.
pub(super) fn sctp(packet: Sctp) -> Vec<u8> {
    let (kind, verification, initiate, more) = match packet.chunk {
        Chunk::Init(tag) => (INIT, 0, tag, &[][..]),
        Chunk::InitAck(tag) => (INIT_ACK, tag, 1, &COOKIE[..]),
    };
    let mut bytes = Vec::with_capacity(SCTP_INIT + more.len());
    bytes.extend(packet.source.to_be_bytes());
    bytes.extend(packet.destination.to_be_bytes());
    bytes.extend(verification.to_be_bytes());
    bytes.extend([0; 4]);
    let length = u16::try_from(20 + more.len()).unwrap_or(20);
    bytes.extend([kind, 0]);
    bytes.extend(length.to_be_bytes());
    bytes.extend(initiate.to_be_bytes());
    // Receiver window, streams out and in, first TSN.
    bytes.extend(65_536_u32.to_be_bytes());
    bytes.extend([0, 1, 0, 1]);
    bytes.extend(1_u32.to_be_bytes());
    bytes.extend(more);
    let checksum = crc32c(&bytes).to_le_bytes();
    bytes.splice(8..12, checksum);
    bytes
}

/// Reads a packet; none if it is neither INIT nor INIT-ACK.
pub(super) fn read_sctp(bytes: &[u8]) -> Option<Sctp> {
    let number = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let long = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let chunk = match *bytes.get(12)? {
        INIT => Chunk::Init(long(16)?),
        INIT_ACK => Chunk::InitAck(long(4)?),
        _ => return None,
    };
    Some(Sctp { source: number(0)?, destination: number(2)?, chunk })
}

/// CRC32c (RFC 9260, appendix A), reflected, bit by bit: packets are small.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// An echo request (RFC 792, RFC 4443 section 4.1) with this identifier. The kernel fills the checksum of ICMPv6 in.
pub(super) fn ping(v4: bool, id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    if !v4 {
        return vec![128, 0, 0, 0, high, low, 0, 1];
    }
    let sum = [0x0800_u32, u32::from(id), 1].iter().sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    let [a, b] = (!u16::try_from(sum & 0xffff).unwrap_or_default()).to_be_bytes();
    vec![8, 0, a, b, high, low, 0, 1]
}

/// The identifier of an echo reply.
pub(super) fn read_pong(v4: bool, bytes: &[u8]) -> Option<u16> {
    let reply = if v4 { 0 } else { 129 };
    match *bytes {
        [kind, _, _, _, high, low, ..] if kind == reply => Some(u16::from_be_bytes([high, low])),
        _ => None,
    }
}

/// What follows an IPv4 header, which raw sockets of that family show.
pub(super) fn behind_v4(packet: &[u8]) -> &[u8] {
    let header = packet.first().map_or(0, |first| usize::from(first & 15) * 4);
    packet.get(header..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4.
    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn packets_read_as_they_were_written() {
        for chunk in [Chunk::Init(7), Chunk::InitAck(9)] {
            let packet = Sctp { source: 40_000, destination: 80, chunk };
            assert_eq!(read_sctp(&sctp(packet)), Some(packet));
        }
        assert_eq!(read_sctp(&[0; 12]), None);
        let mut pong = ping(true, 0x1234);
        pong[0] = 0;
        assert_eq!(read_pong(true, &pong), Some(0x1234));
        assert_eq!(read_pong(true, &ping(true, 0x1234)), None);
    }
}
