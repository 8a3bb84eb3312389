//! Routes.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sluice_contract::id::IfName;

use super::{Family, RtScope, family_of};

/// Number of the kernel's main route table.
pub const TABLE_MAIN: u32 = 254;
/// Number of the kernel's table of local and broadcast addresses.
pub const TABLE_LOCAL: u32 = 255;
/// The metric that the kernel gives an IPv6 route for which none is asked (`IP6_RT_PRIO_USER`).
pub const IPV6_DEFAULT_METRIC: u32 = 1024;

/// What happens to a packet that a route matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RouteKind {
    /// It is sent on.
    Unicast,
    /// It is for this host.
    Local,
    /// It is for everybody on the link.
    Broadcast,
    /// It is for a multicast group.
    Multicast,
    /// It is dropped silently.
    Blackhole,
    /// It is answered with ICMP unreachable.
    Unreachable,
    /// It is answered with ICMP prohibited.
    Prohibit,
    /// The next rule decides.
    Throw,
    /// Anything else, by its number.
    Other(u8),
}

/// Who made a route (`rtm_protocol`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Protocol(pub u8);

impl Protocol {
    /// Unknown.
    pub const UNSPEC: Self = Self(0);
    /// The kernel, as for the prefix of an address.
    pub const KERNEL: Self = Self(2);
    /// A tool at boot: what `ip route add` and the AWS VPC CNI write, and `ip route` does not print.
    pub const BOOT: Self = Self(3);
    /// An administrator.
    pub const STATIC: Self = Self(4);
    /// Router advertisements.
    pub const RA: Self = Self(9);
    /// A DHCP client.
    pub const DHCP: Self = Self(16);
}

/// A route in one of the tables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Route {
    /// The table's number.
    pub table: u32,
    /// What it matches: the prefix with host bits cleared; [`Family::everything`] for a default route.
    pub destination: IpNet,
    /// What it does.
    pub kind: RouteKind,
    /// The next hop; none where the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The interface; none for a route that drops.
    pub dev: Option<IfName>,
    /// The source address of packets that this host sends on it.
    pub source: Option<IpAddr>,
    /// How far away the destination is. IPv6 knows only [`RtScope::Global`].
    pub scope: RtScope,
    /// The lower wins among routes to one destination. 0 unless set; IPv6: [`IPV6_DEFAULT_METRIC`].
    pub metric: u32,
    /// The path's largest packet, in bytes, where it is set. No route of ours has one: links have MTUs. One that somebody has given to
    /// a route of ours makes it another route, which is replaced.
    pub mtu: Option<u32>,
    /// The next hop is taken to be on the link although no route says so.
    pub onlink: bool,
    /// Who made it.
    pub protocol: Protocol,
}

impl Route {
    fn new(table: u32, destination: IpNet, kind: RouteKind) -> Self {
        let metric = match family_of(&destination) {
            Family::V4 => 0,
            Family::V6 => IPV6_DEFAULT_METRIC,
        };
        Self {
            table,
            destination: destination.trunc(),
            kind,
            gateway: None,
            dev: None,
            source: None,
            scope: RtScope::Global,
            metric,
            mtu: None,
            onlink: false,
            protocol: Protocol::BOOT,
        }
    }

    /// `DESTINATION dev DEV scope link`: the destination is on the link.
    #[must_use]
    pub fn on_link(table: u32, destination: IpNet, dev: IfName) -> Self {
        let mut route = Self::new(table, destination, RouteKind::Unicast);
        route.dev = Some(dev);
        if family_of(&destination) == Family::V4 {
            route.scope = RtScope::Link;
        }
        route
    }

    /// `DESTINATION via GATEWAY dev DEV`.
    #[must_use]
    pub fn via(table: u32, destination: IpNet, gateway: IpAddr, dev: IfName) -> Self {
        let mut route = Self::new(table, destination, RouteKind::Unicast);
        route.gateway = Some(gateway);
        route.dev = Some(dev);
        route
    }

    /// `default via GATEWAY dev DEV`, in the gateway's family.
    #[must_use]
    pub fn default_via(table: u32, gateway: IpAddr, dev: IfName) -> Self {
        Self::via(table, Family::of(gateway).everything(), gateway, dev)
    }

    /// `blackhole DESTINATION`.
    #[must_use]
    pub fn blackhole(table: u32, destination: IpNet) -> Self {
        Self::new(table, destination, RouteKind::Blackhole)
    }

    /// `unreachable DESTINATION`.
    #[must_use]
    pub fn unreachable(table: u32, destination: IpNet) -> Self {
        Self::new(table, destination, RouteKind::Unreachable)
    }

    /// The same route with a preferred source address.
    #[must_use]
    pub const fn with_source(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// The same route with a metric.
    #[must_use]
    pub const fn with_metric(mut self, metric: u32) -> Self {
        self.metric = metric;
        self
    }

    /// The same route with a next hop that needs no route of its own.
    #[must_use]
    pub const fn with_onlink(mut self) -> Self {
        self.onlink = true;
        self
    }

    /// The route's family.
    #[must_use]
    pub fn family(&self) -> Family {
        family_of(&self.destination)
    }

    /// What the kernel holds at most one of, and what `replace` replaces.
    #[must_use]
    pub const fn key(&self) -> RouteKey {
        RouteKey { table: self.table, destination: self.destination, metric: self.metric }
    }

    /// The route in the form in which the kernel would report it: host bits cleared, and IPv6 without a scope and
    /// never without a metric.
    #[must_use]
    pub fn canonical(mut self) -> Self {
        self.destination = self.destination.trunc();
        if self.family() == Family::V6 {
            self.scope = RtScope::Global;
            if self.metric == 0 {
                self.metric = IPV6_DEFAULT_METRIC;
            }
        }
        self
    }

    /// Whether both send packets the same way: only who made the route may differ.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Self { protocol: other.protocol, ..self.clone() } == *other
    }
}

/// What a table holds at most one route of, multipath aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// The table's number.
    pub table: u32,
    /// What the route matches.
    pub destination: IpNet,
    /// Its metric.
    pub metric: u32,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RouteKind::Unicast => {}
            kind => write!(f, "{} ", format!("{kind:?}").to_lowercase())?,
        }
        if self.destination.prefix_len() == 0 {
            f.write_str("default")?
        } else {
            write!(f, "{}", self.destination)?
        }
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(dev) = &self.dev {
            write!(f, " dev {dev}")?;
        }
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        write!(f, " table {}", self.table)
    }
}
