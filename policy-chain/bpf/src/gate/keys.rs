//! Between what the compiler says and what the maps hold.

use std::net::IpAddr;

use ipnet::IpNet;
use sluice_policy_core::compile::image::{FrontendKey, RowId};
use sluice_policy_core::compile::row::PortPrefix;
use sluice_policy_core::flow::{Judgement, Protocol, Verdict};

use crate::layout::{self, Address, AddressPrefix, Decision, Frontend, RowPort, RowPrefix};

/// Bits of an IPv4-mapped address before the IPv4 address.
const MAPPED_BITS: u32 = 96;
/// Bits of a row's number.
const ROW_BITS: u32 = 32;
/// Bits of a row's number and a protocol.
const PROTOCOL_BITS: u32 = 40;

/// The key of a prefix.
pub(super) fn prefix(net: &IpNet) -> AddressPrefix {
    let mapped = if net.addr().is_ipv4() { MAPPED_BITS } else { 0 };
    AddressPrefix { bits: mapped + u32::from(net.prefix_len()), address: Address::from(net.network()) }
}

/// The prefix of a key; none for a key that is not of this crate.
pub(super) fn net(key: &AddressPrefix) -> Option<IpNet> {
    // `::ffff:0:0/96` is all of IPv4; a shorter prefix with such an address is IPv6's.
    let address = match IpAddr::from(key.address) {
        IpAddr::V4(v4) if key.bits < MAPPED_BITS => IpAddr::V6(v4.to_ipv6_mapped()),
        address => address,
    };
    let mapped = if address.is_ipv4() { MAPPED_BITS } else { 0 };
    IpNet::new(address, u8::try_from(key.bits.checked_sub(mapped)?).ok()?).ok()
}

/// The key of a frontend.
pub(super) fn frontend((address, protocol, port): &FrontendKey) -> Frontend {
    Frontend { address: Address::from(address.to_canonical()), port: *port, protocol: protocol.0, unused: 0 }
}

/// The frontend of a key.
pub(super) fn frontend_key(key: &Frontend) -> FrontendKey {
    (IpAddr::from(key.address), Protocol(key.protocol), key.port)
}

/// The key of an entry of a row.
pub(super) fn row_prefix(row: RowId, ports: PortPrefix) -> RowPrefix {
    let (bits, protocol) = match ports.protocol {
        None => (ROW_BITS, 0),
        Some(protocol) => (PROTOCOL_BITS + u32::from(ports.bits), protocol.0),
    };
    RowPrefix { bits, of: RowPort { row: row.0, protocol, port: ports.port.to_be_bytes(), unused: 0 } }
}

/// What an entry of a row is for.
pub(super) fn port_prefix(key: &RowPrefix) -> Option<(RowId, PortPrefix)> {
    let row = RowId(key.of.row);
    if key.bits <= ROW_BITS {
        return Some((row, PortPrefix::ANY));
    }
    let bits = u8::try_from(key.bits.checked_sub(PROTOCOL_BITS)?).ok()?;
    let port = u16::from_be_bytes(key.of.port);
    Some((row, PortPrefix { protocol: Some(Protocol(key.of.protocol)), port, bits }))
}

/// What a decision's entry says.
pub(super) fn decision(judgement: &Judgement) -> Decision {
    let full = judgement.audit.as_deref().unwrap_or(judgement);
    Decision { verdict: verdict(&judgement.verdict).number(), full: verdict(&full.verdict).number(), unused: 0 }
}

const fn verdict(verdict: &Verdict) -> layout::Verdict {
    match verdict {
        Verdict::Allow => layout::Verdict::Allow,
        Verdict::Deny => layout::Verdict::Deny,
        Verdict::Redirect(_) => layout::Verdict::Redirect,
        Verdict::Defer => layout::Verdict::Defer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_comes_back_and_is_found_where_the_program_looks() {
        let cases = [
            ("10.0.0.0/8", 104),
            ("0.0.0.0/0", 96),
            ("10.1.2.3/32", 128),
            ("::/0", 0),
            ("2001:db8::/32", 32),
            ("fe80::1/128", 128),
        ];
        for (text, bits) in cases {
            let expected: IpNet = text.parse().unwrap();
            let key = prefix(&expected);
            assert_eq!((key.bits, net(&key)), (bits, Some(expected)), "{text}");
        }
        assert_eq!(prefix(&"10.9.9.9/8".parse().unwrap()), prefix(&"10.0.0.0/8".parse().unwrap()), "bits behind are 0");
    }

    #[test]
    fn an_entry_of_a_row_comes_back() {
        let tcp = Some(Protocol::TCP);
        for (ports, bits) in [
            (PortPrefix::ANY, 32),
            (PortPrefix { protocol: tcp, port: 0, bits: 0 }, 40),
            (PortPrefix { protocol: tcp, port: 0x1f00, bits: 8 }, 48),
            (PortPrefix { protocol: tcp, port: 8080, bits: 16 }, 56),
        ] {
            let key = row_prefix(RowId(7), ports);
            assert_eq!((key.bits, port_prefix(&key)), (bits, Some((RowId(7), ports))));
        }
        // Bytes are compared from the first on: the port's high byte comes first.
        let key = row_prefix(RowId(7), PortPrefix { protocol: tcp, port: 0x1f90, bits: 16 });
        assert_eq!(key.of.port, [0x1f, 0x90]);
    }
}
