//! Plain types for what a network namespace holds. No I/O.
//!
//! Devices are named, not numbered: a name can be written down before the link exists. Values are kept in the form in
//! which the kernel reports them, so that equal means equal; constructors bring them into it.

mod nft;
mod sysctl;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use sluice_contract::id::{IfName, MacAddr};

pub use nft::{NftContent, NftFamily, NftRuleset, NftTable, NftTableId};
pub use sysctl::{InvalidSysctlKey, Sysctl, SysctlKey};

/// Number of the kernel's main route table.
pub const TABLE_MAIN: u32 = 254;
/// Number of the kernel's table of local and broadcast addresses.
pub const TABLE_LOCAL: u32 = 255;
/// The metric that the kernel gives an IPv6 route for which none is asked (`IP6_RT_PRIO_USER`).
pub const IPV6_DEFAULT_METRIC: u32 = 1024;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The prefix that holds every address of the family: the destination of a default route.
    #[must_use]
    pub fn everything(self) -> IpNet {
        match self {
            Self::V4 => Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into(),
            Self::V6 => Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0).into(),
        }
    }
}

/// The family of a prefix.
fn family_of(net: &IpNet) -> Family {
    Family::of(net.addr())
}

/// The /32 or /128 of an address.
#[must_use]
pub fn host_prefix(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// What kind of device a link is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LinkKind {
    /// Hardware, or what looks like it: the kernel names no kind. An ENI is one.
    Physical,
    /// `lo`.
    Loopback,
    /// One end of a veth pair. An ENI of vpcsim is one.
    Veth,
    /// Any other kind, as the kernel names it (`bridge`, `vlan`, ...).
    Other(String),
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: IfName,
    /// Its Ethernet address; none where the link has no such thing.
    pub mac: Option<MacAddr>,
    /// The largest packet, in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Whether it is switched on (`IFF_UP`), which says nothing about the carrier.
    pub up: bool,
    /// What it is.
    pub kind: LinkKind,
    /// The number of the link that it is tied to (a veth's other end, a VLAN's parent), in the namespace
    /// [`Link::peer_netns`].
    pub peer: Option<u32>,
    /// The kernel's id of the namespace of [`Link::peer`], where that is another than the link's own.
    pub peer_netns: Option<i32>,
    /// A free text that stays with the link (`IFLA_IFALIAS`).
    pub alias: Option<String>,
}

/// An address on an interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Address {
    /// The interface.
    pub dev: IfName,
    /// The address, with the length of the prefix that is on the link.
    pub net: IpNet,
    /// How far it may be used.
    pub scope: RtScope,
    /// IPv6: no duplicate address detection, so the address is usable at once (`IFA_F_NODAD`).
    pub nodad: bool,
    /// The kernel adds no route to the prefix (`IFA_F_NOPREFIXROUTE`).
    pub noprefixroute: bool,
}

impl Address {
    /// A global address that is usable at once.
    #[must_use]
    pub const fn new(dev: IfName, net: IpNet) -> Self {
        Self { dev, net, scope: RtScope::Global, nodad: true, noprefixroute: false }
    }

    /// The same address without the kernel's route to its prefix.
    #[must_use]
    pub const fn without_prefix_route(mut self) -> Self {
        self.noprefixroute = true;
        self
    }

    /// Whether the kernel takes both for the same address: flags may differ.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.dev == other.dev && self.net == other.net
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.net, self.dev)
    }
}

/// How far away an address or a route's destination can be (`rtnetlink(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RtScope {
    /// Anywhere.
    Global,
    /// Within the site.
    Site,
    /// On the attached link.
    Link,
    /// On this host.
    Host,
    /// Does not exist.
    Nowhere,
    /// A number that somebody chose.
    Other(u8),
}

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
    /// The path's largest packet, in bytes, where it is set.
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

    /// The same route with a path MTU, in bytes.
    #[must_use]
    pub const fn with_mtu(mut self, mtu: u32) -> Self {
        self.mtu = Some(mtu);
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

/// A mark and the bits of it that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mark {
    /// The value that the masked mark must have.
    pub value: u32,
    /// The bits that are looked at.
    pub mask: u32,
}

/// A rule that sends packets to a route table. Rules with anything that these fields cannot say are not represented
/// and never touched.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// Which packets it is for.
    pub family: Family,
    /// Rules are tried from the lowest.
    pub priority: u32,
    /// The source that it matches, host bits cleared; none matches all.
    pub from: Option<IpNet>,
    /// The destination that it matches, host bits cleared; none matches all.
    pub to: Option<IpNet>,
    /// The packet mark that it matches.
    pub mark: Option<Mark>,
    /// The interface by which the packet came, `lo` for packets of this host.
    pub iif: Option<IfName>,
    /// The table that is looked up.
    pub table: u32,
}

impl Rule {
    /// A rule that matches every packet of a family.
    #[must_use]
    pub const fn all(family: Family, priority: u32, table: u32) -> Self {
        Self { family, priority, from: None, to: None, mark: None, iif: None, table }
    }

    /// `priority PRIORITY from SOURCE lookup TABLE`.
    #[must_use]
    pub fn from(priority: u32, source: IpNet, table: u32) -> Self {
        Self { from: Some(source.trunc()), ..Self::all(family_of(&source), priority, table) }
    }

    /// `priority PRIORITY to DESTINATION lookup TABLE`.
    #[must_use]
    pub fn to(priority: u32, destination: IpNet, table: u32) -> Self {
        Self { to: Some(destination.trunc()), ..Self::all(family_of(&destination), priority, table) }
    }

    /// `priority PRIORITY fwmark VALUE/MASK lookup TABLE`.
    #[must_use]
    pub fn mark(family: Family, priority: u32, mark: Mark, table: u32) -> Self {
        Self { mark: Some(mark), ..Self::all(family, priority, table) }
    }

    /// `priority PRIORITY iif DEV lookup TABLE`.
    #[must_use]
    pub fn iif(family: Family, priority: u32, dev: IfName, table: u32) -> Self {
        Self { iif: Some(dev), ..Self::all(family, priority, table) }
    }

    /// The rule in the form in which the kernel would report it: host bits cleared, and nothing said where all is
    /// matched.
    #[must_use]
    pub fn canonical(mut self) -> Self {
        let shorten = |net: Option<IpNet>| net.map(|net| net.trunc()).filter(|net| net.prefix_len() > 0);
        self.from = shorten(self.from);
        self.to = shorten(self.to);
        self.mark = self.mark.filter(|mark| mark.mask != 0);
        self
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: from ", self.priority)?;
        match self.from {
            Some(from) => write!(f, "{from}")?,
            None => f.write_str("all")?,
        }
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        if let Some(mark) = self.mark {
            write!(f, " fwmark {:#x}/{:#x}", mark.value, mark.mask)?;
        }
        if let Some(iif) = &self.iif {
            write!(f, " iif {iif}")?;
        }
        write!(f, " lookup {}", self.table)
    }
}

/// What is set down about an address on a link. What the kernel learns by itself is not represented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NeighbourKind {
    /// It has this Ethernet address, for good.
    Permanent(MacAddr),
    /// This host answers for it (`ip neigh add proxy`).
    Proxy,
}

/// An entry of the neighbour table that somebody set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Neighbour {
    /// The interface.
    pub dev: IfName,
    /// The neighbour's address.
    pub address: IpAddr,
    /// What is set down.
    pub kind: NeighbourKind,
}

impl Neighbour {
    /// `ADDRESS dev DEV lladdr MAC nud permanent`.
    #[must_use]
    pub const fn permanent(dev: IfName, address: IpAddr, mac: MacAddr) -> Self {
        Self { dev, address, kind: NeighbourKind::Permanent(mac) }
    }

    /// `proxy ADDRESS dev DEV`.
    #[must_use]
    pub const fn proxy(dev: IfName, address: IpAddr) -> Self {
        Self { dev, address, kind: NeighbourKind::Proxy }
    }

    /// Whether one takes the other's place: a permanent and a proxy entry of one address live side by side.
    #[must_use]
    pub fn is_same_entry(&self, other: &Self) -> bool {
        self.dev == other.dev
            && self.address == other.address
            && matches!(self.kind, NeighbourKind::Proxy) == matches!(other.kind, NeighbourKind::Proxy)
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            NeighbourKind::Permanent(mac) => write!(f, "{} dev {} lladdr {mac}", self.address, self.dev),
            NeighbourKind::Proxy => write!(f, "proxy {} dev {}", self.address, self.dev),
        }
    }
}

/// A picture of a network namespace, as far as it was looked at. A part that was not read is empty, so a plan must be
/// made from a picture that covers what the plan's scope names ([`crate::desired::Desired::view`]).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Links.
    pub links: Vec<Link>,
    /// Addresses.
    pub addresses: Vec<Address>,
    /// Routes, with a single next hop.
    pub routes: Vec<Route>,
    /// Rules, in the kernel's order. The same rule may stand there twice.
    pub rules: Vec<Rule>,
    /// Permanent and proxy neighbours.
    pub neighbours: Vec<Neighbour>,
    /// Sysctls that exist.
    pub sysctls: Vec<Sysctl>,
    /// nftables tables.
    pub nft: Vec<NftTable>,
}

impl Observed {
    /// The link of a name.
    #[must_use]
    pub fn link(&self, name: &IfName) -> Option<&Link> {
        self.links.iter().find(|link| link.name == *name)
    }

    /// The first link with an Ethernet address. An ENI is known by it before its name is; skip the kinds that copy
    /// their parent's address (VLAN, macvlan) by [`Link::kind`].
    #[must_use]
    pub fn link_by_mac(&self, mac: MacAddr) -> Option<&Link> {
        self.links.iter().find(|link| link.mac == Some(mac))
    }
}
