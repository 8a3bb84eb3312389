use std::net::IpAddr;

use proptest::prelude::*;
use sluice_contract::id::{IfName, MacAddr};

use super::*;
use crate::state::{Address, Mark, Neighbour, Protocol, Route, Rule, host_prefix};

fn error(header: Vec<u8>) -> ErrorMessage {
    let mut message = ErrorMessage::default();
    message.header = header;
    message
}

/// A request's header with its length, what of the request is there, and then attributes.
fn nack(length: u32, body: &[u8], attributes: &[u8]) -> ErrorMessage {
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.resize(NLMSG_HEADER, 0);
    bytes.extend(body);
    bytes.extend(attributes);
    error(bytes)
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap();
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[test]
fn the_kernels_words_are_found_behind_the_request_or_its_header() {
    let mut attributes = attribute(2, &[1, 0, 0, 0]);
    attributes.extend(attribute(NLMSGERR_ATTR_MSG, b"Nexthop has invalid gateway\0"));
    let words = Some("Nexthop has invalid gateway".to_owned());
    let capped = nack(44, &[], &attributes);
    assert_eq!(extack(&capped, NLM_F_ACK_TLVS | NLM_F_CAPPED), words);
    let whole = nack(19, &[1, 2, 3, 0], &attributes);
    assert_eq!(extack(&whole, NLM_F_ACK_TLVS), words);
    assert_eq!(extack(&capped, NLM_F_CAPPED), None, "no attributes were promised");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_error_message_makes_us_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), flags in any::<u16>()) {
        let _words = extack(&error(bytes), flags);
    }

    /// What is written is read back the same.
    #[test]
    fn routes_survive_the_wire(low in any::<u32>(), length in 0u8..33, table in 1u32..70_000, metric in 0u32..9, six in any::<bool>()) {
        let names = Names::from([(7, dev())]);
        let address = |low: u32| -> IpAddr {
            if six { std::net::Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(low)).into() } else { std::net::Ipv4Addr::from(low).into() }
        };
        let destination = ipnet::IpNet::new(address(low), length).unwrap();
        let routes = [
            Route { mtu: Some(1400), ..Route::on_link(table, destination, dev()).with_source(address(low ^ 1)) },
            Route::via(table, destination, address(low ^ 3), dev()).with_onlink().with_metric(metric),
            Route { protocol: Protocol::KERNEL, ..Route::blackhole(table, destination) },
            Route::unreachable(table, destination),
        ];
        for route in routes.map(Route::canonical) {
            let index = route.dev.as_ref().map(|_| 7);
            prop_assert_eq!(decode::decode_route(&encode::route(&route, index), &names), Some(route));
        }
        let rules = [
            Rule::from(1536, destination, table),
            Rule::to(512, destination, table),
            Rule::mark(crate::state::Family::of(address(0)), 1024, Mark { value: low, mask: 0x80 }, table),
            Rule::iif(crate::state::Family::of(address(0)), 10, dev(), table),
        ];
        for rule in rules.map(Rule::canonical) {
            prop_assert_eq!(decode::decode_rule(&encode::rule(&rule)), Some(rule));
        }
        let mut with_host_bits = Address::new(dev(), ipnet::IpNet::new(address(low), length).unwrap());
        with_host_bits.nodad = six;
        prop_assert_eq!(decode::decode_address(&encode::address(&with_host_bits, 7), &names), Some(with_host_bits.clone()));
        let bare = with_host_bits.without_prefix_route();
        prop_assert_eq!(decode::decode_address(&encode::address(&bare, 7), &names), Some(bare));
        let neighbour = Neighbour::permanent(dev(), host_prefix(address(low)).addr(), MacAddr([2, 0, 0, 0, 0, length]));
        prop_assert_eq!(decode::decode_neighbour(&encode::neighbour(&neighbour, 7), &names), Some(neighbour));
        let proxy = Neighbour::proxy(dev(), address(low));
        prop_assert_eq!(decode::decode_neighbour(&encode::neighbour(&proxy, 7), &names), Some(proxy));
    }
}

fn dev() -> IfName {
    IfName::new("eth1").unwrap()
}

#[test]
fn rules_that_say_more_than_we_can_are_left_alone() {
    use netlink_packet_route::rule::{RuleAttribute, RuleFlags};
    let plain = encode::rule(&Rule::from(9, host_prefix("10.0.0.1".parse().unwrap()), 2));
    assert!(decode::decode_rule(&plain).is_some());
    let mut inverted = plain.clone();
    inverted.header.flags = RuleFlags::Invert;
    let mut limited = plain.clone();
    limited.attributes.push(RuleAttribute::Oifname("eth0".into()));
    let mut suppressing = plain;
    suppressing.attributes.push(RuleAttribute::SuppressPrefixLen(0));
    for rule in [inverted, limited, suppressing] {
        assert_eq!(decode::decode_rule(&rule), None);
    }
}
