//! Our types as netlink messages.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::LinkUnspec;
use sluice_contract::id::{IfName, MacAddr};

use crate::state::{Address, Family, Neighbour, NeighbourKind, Route, RouteKind, RtScope, Rule};

pub(crate) const fn family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn family_of(address: IpAddr) -> AddressFamily {
    family(Family::of(address))
}

pub(super) const fn scope(scope: RtScope) -> u8 {
    match scope {
        RtScope::Global => 0,
        RtScope::Site => 200,
        RtScope::Link => 253,
        RtScope::Host => 254,
        RtScope::Nowhere => 255,
        RtScope::Other(number) => number,
    }
}

pub(super) const fn route_kind(kind: RouteKind) -> RouteType {
    match kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Local => RouteType::Local,
        RouteKind::Broadcast => RouteType::Broadcast,
        RouteKind::Multicast => RouteType::Multicast,
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Prohibit => RouteType::Prohibit,
        RouteKind::Throw => RouteType::Throw,
        RouteKind::Other(number) => RouteType::Other(number),
    }
}

/// The header has room for tables up to 255; the attribute has it for all.
fn header_table(table: u32) -> u8 {
    u8::try_from(table).unwrap_or(0)
}

pub(crate) fn address(address: &Address, index: u32) -> AddressMessage {
    let mut message = AddressMessage::default();
    let ip = address.net.addr();
    let mut flags = AddressFlags::empty();
    // IPv4 has no duplicate address detection here, but would show the flag.
    flags.set(AddressFlags::Nodad, address.nodad && ip.is_ipv6());
    flags.set(AddressFlags::Noprefixroute, address.noprefixroute);
    message.header.family = family_of(ip);
    message.header.prefix_len = address.net.prefix_len();
    message.header.index = index;
    message.header.scope = AddressScope::from(scope(address.scope));
    if flags.contains(AddressFlags::Nodad) {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    if !flags.is_empty() {
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    message
}

pub(crate) fn route(route: &Route, index: Option<u32>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.family());
    message.header.destination_prefix_length = route.destination.prefix_len();
    message.header.table = header_table(route.table);
    message.header.protocol = RouteProtocol::from(route.protocol.0);
    message.header.scope = RouteScope::from(scope(route.scope));
    message.header.kind = route_kind(route.kind);
    if route.onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(route.table));
    if route.destination.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(route.destination.addr().into()));
    }
    attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(RouteAddress::from(gateway))));
    attributes.extend(index.map(RouteAttribute::Oif));
    attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(RouteAddress::from(source))));
    if route.metric > 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    message
}

/// A question for the routes of one table, which the kernel filters since Linux 4.20.
pub(crate) fn routes_of(of: Family, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(of);
    message.attributes = vec![RouteAttribute::Table(table)];
    message
}

pub(crate) fn rule(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    let prefix = |net: Option<IpNet>| net.map_or(0, |net| net.prefix_len());
    message.header.family = family(rule.family);
    message.header.src_len = prefix(rule.from);
    message.header.dst_len = prefix(rule.to);
    message.header.table = header_table(rule.table);
    message.header.action = RuleAction::ToTable;
    let attributes = &mut message.attributes;
    attributes.push(RuleAttribute::Priority(rule.priority));
    attributes.push(RuleAttribute::Table(rule.table));
    attributes.extend(rule.from.map(|net| RuleAttribute::Source(net.addr())));
    attributes.extend(rule.to.map(|net| RuleAttribute::Destination(net.addr())));
    if let Some(mark) = rule.mark {
        attributes.push(RuleAttribute::FwMark(mark.value));
        attributes.push(RuleAttribute::FwMask(mark.mask));
    }
    attributes.extend(rule.iif.as_ref().map(|dev| RuleAttribute::Iifname(dev.to_string())));
    message
}

pub(crate) fn rules_of(of: Family) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(of);
    message
}

pub(crate) fn addresses_of(of: Family) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(of);
    message
}

pub(crate) fn neighbour(neighbour: &Neighbour, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family_of(neighbour.address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unspec;
    message.attributes.push(NeighbourAttribute::Destination(match neighbour.address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }));
    match neighbour.kind {
        NeighbourKind::Permanent(MacAddr(mac)) => {
            message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        }
        NeighbourKind::Proxy => message.header.flags = NeighbourFlags::Proxy,
    }
    message
}

/// A question for the neighbours of a family: those with an address, or the proxy entries. The kernel keeps two
/// tables and dumps one at a time.
pub(crate) fn neighbours_of(of: Family, proxy: bool) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(of);
    if proxy {
        message.header.flags = NeighbourFlags::Proxy;
    }
    message
}

/// A question for a link by its name, without statistics.
pub(crate) fn link_named(name: &IfName) -> LinkMessage {
    LinkUnspec::new_with_name(name.as_str())
        .append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]))
        .build()
}

/// A question for a link by its number, or for all (0), without statistics.
pub(crate) fn link_numbered(index: u32) -> LinkMessage {
    LinkUnspec::new_with_index(index)
        .append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]))
        .build()
}

/// A question for all links of the namespace that the asker's knows by this number, without statistics.
pub(crate) fn links_in(namespace: i32) -> LinkMessage {
    LinkUnspec::new_with_index(0)
        .append_extra_attribute(LinkAttribute::IfNetnsId(namespace))
        .append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]))
        .build()
}

pub(crate) fn set_link(index: u32, up: Option<bool>, mtu: Option<u32>) -> LinkMessage {
    let mut builder = LinkUnspec::new_with_index(index);
    if let Some(mtu) = mtu {
        builder = builder.mtu(mtu);
    }
    match up {
        Some(true) => builder.up(),
        Some(false) => builder.down(),
        None => builder,
    }
    .build()
}
