//! Netlink messages as our types. What our types cannot say is left out, so that nobody changes it.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use sluice_contract::id::{IfName, MacAddr};

use crate::state::{
    Address, Family, Link, LinkKind, Mark, Neighbour, NeighbourKind, Protocol, Route, RouteKind, RtScope, Rule,
};

/// The names of links by their numbers.
pub(crate) type Names = HashMap<u32, IfName>;

const fn family(family: AddressFamily) -> Option<Family> {
    match family {
        AddressFamily::Inet => Some(Family::V4),
        AddressFamily::Inet6 => Some(Family::V6),
        _ => None,
    }
}

const fn scope(number: u8) -> RtScope {
    match number {
        0 => RtScope::Global,
        200 => RtScope::Site,
        253 => RtScope::Link,
        254 => RtScope::Host,
        255 => RtScope::Nowhere,
        number => RtScope::Other(number),
    }
}

fn route_kind(kind: RouteType) -> RouteKind {
    match kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local => RouteKind::Local,
        RouteType::Broadcast => RouteKind::Broadcast,
        RouteType::Multicast => RouteKind::Multicast,
        RouteType::BlackHole => RouteKind::Blackhole,
        RouteType::Unreachable => RouteKind::Unreachable,
        RouteType::Prohibit => RouteKind::Prohibit,
        RouteType::Throw => RouteKind::Throw,
        other => RouteKind::Other(other.into()),
    }
}

fn mac(bytes: &[u8]) -> Option<MacAddr> {
    <[u8; 6]>::try_from(bytes).ok().map(MacAddr)
}

const fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// A link; none if it has no name that we could use.
pub(crate) fn decode_link(message: &LinkMessage) -> Option<Link> {
    let loopback = message.header.link_layer_type == LinkLayerType::Loopback;
    let mut name = None;
    let mut link = Link {
        index: message.header.index,
        name: IfName::new("lo").ok()?,
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        kind: if loopback { LinkKind::Loopback } else { LinkKind::Physical },
        peer: None,
        peer_netns: None,
        alias: None,
        master: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = IfName::new(text).ok(),
            LinkAttribute::Address(bytes) if !loopback => link.mac = mac(bytes),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Link(index) => link.peer = Some(*index),
            LinkAttribute::LinkNetNsId(id) => link.peer_netns = Some(*id),
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::IfAlias(text) => link.alias = Some(text.clone()),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Veth) => link.kind = LinkKind::Veth,
                        LinkInfo::Kind(kind) => link.kind = LinkKind::Other(kind.to_string()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link.name = name?;
    Some(link)
}

pub(crate) fn decode_address(message: &AddressMessage, names: &Names) -> Option<Address> {
    let family = family(message.header.family)?;
    let (mut local, mut remote) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => remote = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    Some(Address {
        dev: names.get(&message.header.index)?.clone(),
        // On a point-to-point link, `Address` is the other end's.
        net: IpNet::new(local.or(remote)?, message.header.prefix_len).ok()?,
        scope: scope(message.header.scope.into()),
        nodad: family == Family::V6 && flags.contains(AddressFlags::Nodad),
        noprefixroute: flags.contains(AddressFlags::Noprefixroute),
    })
}

/// A route with at most one next hop; none for multipath, next hop objects, tunnels, source routing, and what the
/// kernel merely caches.
pub(crate) fn decode_route(message: &RouteMessage, names: &Names) -> Option<Route> {
    let header = &message.header;
    let family = family(header.address_family)?;
    if header.flags.contains(RouteFlags::Cloned) || header.source_prefix_length > 0 || header.tos > 0 {
        return None;
    }
    let mut route = Route {
        table: u32::from(header.table),
        destination: family.everything(),
        kind: route_kind(header.kind),
        gateway: None,
        dev: None,
        source: None,
        scope: scope(header.scope.into()),
        metric: 0,
        mtu: None,
        onlink: header.flags.contains(RouteFlags::Onlink),
        protocol: Protocol(header.protocol.into()),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                route.destination = IpNet::new(route_address(address)?, header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Gateway(address) => route.gateway = Some(route_address(address)?),
            RouteAttribute::PrefSource(address) => route.source = Some(route_address(address)?),
            RouteAttribute::Oif(index) => route.dev = Some(names.get(index)?.clone()),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    if let RouteMetric::Mtu(mtu) = metric {
                        route.mtu = Some(*mtu);
                    }
                }
            }
            RouteAttribute::MultiPath(_)
            | RouteAttribute::NhId(_)
            | RouteAttribute::Via(_)
            | RouteAttribute::Encap(_)
            | RouteAttribute::EncapType(_)
            | RouteAttribute::Source(_)
            | RouteAttribute::Realm(_) => return None,
            _ => {}
        }
    }
    if matches!(route.kind, RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit | RouteKind::Throw) {
        // IPv6 puts such routes on the loopback interface.
        route.dev = None;
    }
    Some(route)
}

/// A rule that looks up a table; none if it says more than our type can.
pub(crate) fn decode_rule(message: &RuleMessage) -> Option<Rule> {
    let header = &message.header;
    if header.action != RuleAction::ToTable || header.tos > 0 || header.flags.contains(RuleFlags::Invert) {
        return None;
    }
    let mut rule = Rule::all(family(header.family)?, 0, u32::from(header.table));
    let (mut value, mut mask) = (0, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(address) => rule.from = Some(IpNet::new(*address, header.src_len).ok()?),
            RuleAttribute::Destination(address) => rule.to = Some(IpNet::new(*address, header.dst_len).ok()?),
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::FwMark(mark) => value = *mark,
            RuleAttribute::FwMask(bits) => mask = Some(*bits),
            RuleAttribute::Iifname(name) => rule.iif = Some(IfName::new(name).ok()?),
            RuleAttribute::Protocol(_) | RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            _ => return None,
        }
    }
    rule.mark = mask.map(|mask| Mark { value, mask });
    Some(rule)
}

/// An entry that somebody set; none for what was learned.
pub(crate) fn decode_neighbour(message: &NeighbourMessage, names: &Names) -> Option<Neighbour> {
    let header = &message.header;
    let (mut address, mut mac_of) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(IpAddr::V4(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(IpAddr::V6(*ip)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac_of = mac(bytes),
            _ => {}
        }
    }
    let kind = if header.flags.contains(NeighbourFlags::Proxy) {
        NeighbourKind::Proxy
    } else if header.state == NeighbourState::Permanent {
        NeighbourKind::Permanent(mac_of?)
    } else {
        return None;
    };
    Some(Neighbour { dev: names.get(&header.ifindex)?.clone(), address: address?, kind })
}
