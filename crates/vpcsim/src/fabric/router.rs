//! What a VPC's router does, as data: from the VPC's contents to the routes, rules, neighbours and packet filter sets of
//! a Linux namespace that behaves as the VPC's mapping service does.
//!
//! - An address is reached through the ENI that it is assigned to, whatever the node believes: one route a piece, over a
//!   permanent neighbour entry with the ENI's MAC. What nobody holds is a black hole.
//! - The router answers ARP on an ENI for its subnet's addresses that somebody holds (proxy ARP), for the subnet's first
//!   address and for 169.254.169.254, and for nothing else.
//! - A packet whose source is not assigned to the ENI it comes from is dropped (the source half of
//!   `SourceDestCheck`), and remembered.
//! - IPv6 is the same, but for neighbours: the router has [`ROUTER_V6`] on every ENI's link, by which nodes send, and
//!   knows each ENI's MAC for [`FAR_END_V6`], by which it sends. It leaves the VPC untranslated.
//! - What is not for the VPC goes by the route table of the ENI's subnet; into the Internet only with a public address,
//!   1:1.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use sluice_contract::id::MacAddr;
use sluice_hostnet::state::Family;

use super::groups::{self, Guard};

/// The router's link to the Internet gateway.
pub(super) const IGW_LINK: &str = "igw";
/// The next hop behind any point-to-point link of the router: on no interface, with a permanent neighbour.
pub(super) const FAR_END: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);
/// The router's own address on every ENI's link (VPC User Guide, "Subnet CIDR blocks": the link-local address on Nitro).
pub(super) const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0xec2, 0, 0, 0, 0, 0, 1);
/// The next hop of IPv6 behind an ENI's link.
pub(super) const FAR_END_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0xec2, 0, 0, 0, 0, 0, 2);
/// The instance metadata service.
pub const IMDS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Where vpcsim serves the EC2 API inside a VPC, as an interface endpoint would.
pub const EC2_ENDPOINT: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 252);
/// First priority of the rules that send what is not for the VPC to a subnet's route table; behind `main`, which
/// holds the VPC itself.
const SUBNET_RULE: u32 = 40_000;
/// First number of the route tables that stand for the VPC's own.
const FIRST_TABLE: u32 = 1_000;

/// One VPC as its router sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RouterSpec {
    /// The VPC's CIDRs of both families.
    pub cidrs: Vec<IpNet>,
    /// The ENIs that are plugged in, NAT gateways' among them.
    pub ports: Vec<Port>,
    /// Routes of each route table beside the VPC's own CIDRs, by the table's index.
    pub tables: BTreeMap<u32, Vec<(IpNet, Target)>>,
    /// Links to peered VPCs, with the far end's MAC.
    pub peers: BTreeMap<String, MacAddr>,
    /// Private to public address, 1:1.
    pub public: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// MAC of the Internet's end of the gateway link, when there is a gateway.
    pub internet: Option<MacAddr>,
    /// What the ENIs' security groups let pass; none where they are not enforced.
    pub guards: Option<Vec<Guard>>,
}

/// An ENI's socket in the router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    /// The router's end of the link.
    pub link: String,
    /// The ENI's MAC, on the node's end.
    pub mac: MacAddr,
    /// The ENI's primary address.
    pub primary: Ipv4Addr,
    /// The ENI's subnet.
    pub subnet: Ipv4Net,
    /// Index of the subnet's route table.
    pub table: u32,
    /// All that is assigned to it, the primary address among them: /32s and /28s, /128s and /80s.
    pub assigned: Vec<IpNet>,
    /// Whether a foreign source is dropped; NAT gateways forward for others.
    pub source_check: bool,
}

/// Where a route of a route table leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// The Internet gateway.
    InternetGateway,
    /// An ENI, e.g. that of a NAT gateway.
    Port {
        /// The router's link.
        link: String,
        /// The ENI's primary address, which has a neighbour entry.
        via: Ipv4Addr,
    },
    /// A peered VPC.
    Peer {
        /// The router's link.
        link: String,
    },
    /// Nowhere: what the route named is gone.
    Blackhole,
}

/// How a route ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hop {
    Blackhole,
    Via { link: String, gateway: IpAddr },
}

/// The state of the router's namespace, each set compared by content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RouterState {
    /// Addresses that the router itself answers for, each on its loopback or on one link.
    pub local: BTreeSet<(String, IpAddr)>,
    /// (table, destination) -> hop.
    pub routes: BTreeMap<(u32, IpNet), Hop>,
    /// (priority, incoming link, table), of both families.
    pub rules: BTreeSet<(u32, String, u32)>,
    /// (link, address) -> MAC.
    pub neighbours: BTreeMap<(String, IpAddr), MacAddr>,
    /// Sources that an ENI may send from.
    pub assigned: BTreeSet<(String, IpNet)>,
    /// CIDRs inside of which nothing is tracked: the VPC's, unless security groups are enforced.
    pub vpc: BTreeSet<IpNet>,
    /// Addresses that may be asked for on an ENI by ARP.
    pub onlink: BTreeSet<(String, Ipv4Net)>,
    /// Public addresses by their private ones.
    pub public: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// What the ENIs' security groups let pass; none where they are not enforced.
    pub guards: Option<Vec<Guard>>,
}

impl RouterState {
    /// The state without anything on one link, as it is once the link is gone.
    pub(super) fn without_link(&self, link: &str) -> Self {
        let mut state = self.clone();
        state.local.retain(|(on, _)| on != link);
        state.routes.retain(|_, hop| !matches!(hop, Hop::Via { link: over, .. } if over == link));
        state.rules.retain(|(_, iif, _)| iif != link);
        state.neighbours.retain(|(on, _), _| on != link);
        state.assigned.retain(|(on, _)| on != link);
        state.onlink.retain(|(on, _)| on != link);
        state
    }
}

impl RouterSpec {
    /// What the namespace must hold for this VPC.
    pub(super) fn state(&self) -> RouterState {
        let main = sluice_contract::node::TABLE_MAIN;
        let guards = self.guards.clone();
        let mut state = RouterState { public: self.public.clone(), guards, ..RouterState::default() };
        let loopback = |address: Ipv4Addr| ("lo".to_owned(), IpAddr::V4(address));
        state.local.extend([IMDS, EC2_ENDPOINT].map(loopback));
        for cidr in &self.cidrs {
            state.routes.insert((main, cidr.trunc()), Hop::Blackhole);
            // Groups know connections, which takes tracking.
            if self.guards.is_none() {
                state.vpc.insert(cidr.trunc());
            }
        }
        for port in &self.ports {
            state.local.extend(first_router_address(port.subnet).map(loopback));
            state.local.insert((port.link.clone(), ROUTER_V6.into()));
            state.neighbours.insert((port.link.clone(), port.primary.into()), port.mac);
            state.neighbours.insert((port.link.clone(), FAR_END_V6.into()), port.mac);
            for net in &port.assigned {
                let gateway = match net {
                    IpNet::V4(_) => port.primary.into(),
                    IpNet::V6(_) => FAR_END_V6.into(),
                };
                let hop = Hop::Via { link: port.link.clone(), gateway };
                state.routes.insert((main, net.trunc()), hop);
                if port.source_check {
                    state.assigned.insert((port.link.clone(), net.trunc()));
                }
            }
            if !port.source_check {
                state.assigned.extend(Family::ALL.map(|family| (port.link.clone(), family.everything())));
            }
            state.onlink.insert((port.link.clone(), port.subnet.trunc()));
            state.onlink.insert((port.link.clone(), link_local_services()));
            state.rules.insert((SUBNET_RULE, port.link.clone(), FIRST_TABLE + port.table));
        }
        for (table, routes) in &self.tables {
            for (destination, target) in routes {
                let far = far_end(Family::of(destination.addr()));
                let hop = match (target, destination) {
                    (Target::InternetGateway, _) => Hop::Via { link: IGW_LINK.into(), gateway: far },
                    (Target::Port { link, via }, IpNet::V4(_)) => {
                        Hop::Via { link: link.clone(), gateway: (*via).into() }
                    }
                    (Target::Port { link, .. }, IpNet::V6(_)) | (Target::Peer { link }, _) => {
                        Hop::Via { link: link.clone(), gateway: far }
                    }
                    (Target::Blackhole, _) => Hop::Blackhole,
                };
                state.routes.insert((FIRST_TABLE + table, destination.trunc()), hop);
            }
        }
        let internet = self.internet.map(|mac| (IGW_LINK.to_owned(), mac));
        for (link, mac) in self.peers.clone().into_iter().chain(internet) {
            for family in Family::ALL {
                state.neighbours.insert((link.clone(), far_end(family)), mac);
            }
        }
        state
    }
}

/// The next hop behind a point-to-point link.
pub(super) const fn far_end(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(FAR_END),
        Family::V6 => IpAddr::V6(FAR_END_V6),
    }
}

/// A subnet's first usable address is the VPC router's (Amazon VPC user guide, "Subnet sizing": base + 1).
pub(super) fn first_router_address(subnet: Ipv4Net) -> Option<Ipv4Addr> {
    subnet.hosts().next()
}

/// 169.254.169.0/24: what the fabric itself serves on every ENI.
fn link_local_services() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 169, 0), 24)
}

/// The parts of the router's packet filter that never change. Links of ENIs are named `r…`.
///
/// `dropped` keeps what the source check refused, by link, source and destination, so that a wrong route on a node can
/// be told by name.
pub(super) const FILTER: &str = r#"
table ip vpcsim {
  set assigned { type ifname . ipv4_addr; flags interval; }
  set dropped { type ifname . ipv4_addr . ipv4_addr; size 4096; flags dynamic; counter; }
  set vpc { type ipv4_addr; flags interval; }
  set public_private { type ipv4_addr; }
  set public_public { type ipv4_addr; }
  map to_public { type ipv4_addr : ipv4_addr; }
  map to_private { type ipv4_addr : ipv4_addr; }
  # Its own rule for the verdict: a rule ends early when the set has no room.
  chain refused {
    update @dropped { iifname . ip saddr . ip daddr counter }
    drop
  }
  chain source_check { type filter hook prerouting priority raw; policy accept;
    iifname "r*" iifname . ip saddr != @assigned jump refused
    iifname "igw" ip daddr != @public_public counter drop
    ip saddr @vpc ip daddr @vpc notrack
  }
  chain gateway_in { type nat hook prerouting priority dstnat; policy accept;
    iifname "igw" dnat to ip daddr map @to_private
  }
  chain gateway { type filter hook forward priority filter; policy accept;
    oifname "igw" ip saddr != @public_private counter drop
  }
  chain gateway_out { type nat hook postrouting priority srcnat; policy accept;
    oifname "igw" snat to ip saddr map @to_public
  }
}
table ip6 vpcsim {
  set assigned { type ifname . ipv6_addr; flags interval; }
  set dropped { type ifname . ipv6_addr . ipv6_addr; size 4096; flags dynamic; counter; }
  set vpc { type ipv6_addr; flags interval; }
  chain refused {
    update @dropped { iifname . ip6 saddr . ip6 daddr counter }
    drop
  }
  # What stays on the link is not checked: neighbours speak from link-local addresses and, before they have one, from ::.
  chain source_check { type filter hook prerouting priority raw; policy accept;
    iifname "r*" ip6 saddr != { ::/128, fe80::/10 } iifname . ip6 saddr != @assigned jump refused
    ip6 saddr @vpc ip6 daddr @vpc notrack
  }
}
table arp vpcsim {
  set onlink { type ifname . ipv4_addr; flags interval; }
  chain in { type filter hook input priority filter; policy accept;
    iifname "r*" arp operation request iifname . arp daddr ip != @onlink counter drop
  }
}
"#;

/// The nft commands that turn the sets of `from` into those of `to`; empty when they are the same.
pub(super) fn filter_changes(from: &RouterState, to: &RouterState) -> String {
    let mut script = String::new();
    let mut change = |verb: &str, set: &str, elements: &[String]| {
        if !elements.is_empty() {
            // Writing to a String cannot fail.
            let _infallible = writeln!(script, "{verb} element {set} {{ {} }}", elements.join(", "));
        }
    };
    let pair = |link: &str, net: &dyn Display| format!("\"{link}\" . {net}");
    for (table, family) in [("ip", Family::V4), ("ip6", Family::V6)] {
        let is_ours = |net: &IpNet| Family::of(net.addr()) == family;
        let pairs = |a: &BTreeSet<(String, IpNet)>, b: &BTreeSet<(String, IpNet)>| -> Vec<String> {
            a.difference(b).filter(|(_, net)| is_ours(net)).map(|(link, net)| pair(link, net)).collect()
        };
        let set = format!("{table} vpcsim assigned");
        change("delete", &set, &pairs(&from.assigned, &to.assigned));
        change("add", &set, &pairs(&to.assigned, &from.assigned));
        let nets = |a: &BTreeSet<IpNet>, b: &BTreeSet<IpNet>| -> Vec<String> {
            a.difference(b).filter(|net| is_ours(net)).map(ToString::to_string).collect()
        };
        let set = format!("{table} vpcsim vpc");
        change("delete", &set, &nets(&from.vpc, &to.vpc));
        change("add", &set, &nets(&to.vpc, &from.vpc));
    }
    let onlink = |a: &BTreeSet<(String, Ipv4Net)>, b: &BTreeSet<(String, Ipv4Net)>| -> Vec<String> {
        a.difference(b).map(|(link, net)| pair(link, net)).collect()
    };
    change("delete", "arp vpcsim onlink", &onlink(&from.onlink, &to.onlink));
    change("add", "arp vpcsim onlink", &onlink(&to.onlink, &from.onlink));
    let gone: Vec<_> = from.public.iter().filter(|(private, public)| to.public.get(private) != Some(public)).collect();
    let come: Vec<_> = to.public.iter().filter(|(private, public)| from.public.get(private) != Some(public)).collect();
    for (verb, some) in [("delete", gone), ("add", come)] {
        let list = |text: &dyn Fn(&Ipv4Addr, &Ipv4Addr) -> String| -> Vec<String> {
            some.iter().map(|(private, public)| text(private, public)).collect()
        };
        change(verb, "ip vpcsim to_public", &list(&|private, public| format!("{private} : {public}")));
        change(verb, "ip vpcsim to_private", &list(&|private, public| format!("{public} : {private}")));
        change(verb, "ip vpcsim public_private", &list(&|private, _| private.to_string()));
        change(verb, "ip vpcsim public_public", &list(&|_, public| public.to_string()));
    }
    if from.guards != to.guards {
        script += &groups::script(to.guards.as_deref());
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net<N: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> N {
        text.parse().unwrap()
    }

    fn port(link: &str, primary: &str, assigned: &[&str]) -> Port {
        Port {
            link: link.into(),
            mac: MacAddr([2, 0, 0, 0, 0, 9]),
            primary: primary.parse().unwrap(),
            subnet: net("10.0.1.0/24"),
            table: 0,
            assigned: assigned.iter().map(|text| net(text)).collect(),
            source_check: true,
        }
    }

    fn spec() -> RouterSpec {
        RouterSpec {
            cidrs: vec![net("10.0.0.0/16")],
            ports: vec![port("r1", "10.0.1.10", &["10.0.1.10/32", "10.0.1.32/28"])],
            tables: [(0, vec![(net("0.0.0.0/0"), Target::InternetGateway), (net("::/0"), Target::InternetGateway)])]
                .into(),
            public: [("10.0.1.10".parse().unwrap(), "198.51.100.7".parse().unwrap())].into(),
            internet: Some(MacAddr([2, 0, 0, 0, 0, 1])),
            ..RouterSpec::default()
        }
    }

    #[test]
    fn an_address_is_reached_by_assignment_and_the_rest_of_the_vpc_is_a_black_hole() {
        let state = spec().state();
        let via = |link: &str, gateway: &str| Hop::Via { link: link.into(), gateway: gateway.parse().unwrap() };
        assert_eq!(
            state.routes,
            [
                ((254, net("10.0.0.0/16")), Hop::Blackhole),
                ((254, net("10.0.1.10/32")), via("r1", "10.0.1.10")),
                ((254, net("10.0.1.32/28")), via("r1", "10.0.1.10")),
                ((1000, net("0.0.0.0/0")), via("igw", "169.254.0.1")),
                ((1000, net("::/0")), via("igw", "fe80:ec2::2")),
            ]
            .into()
        );
        assert!(state.local.contains(&("lo".into(), "10.0.1.1".parse().unwrap())));
        assert!(state.local.contains(&("r1".into(), ROUTER_V6.into())));
        assert_eq!(state.rules, [(40_000, "r1".to_owned(), 1000)].into());
    }

    #[test]
    fn a_delegated_prefix_is_reached_over_the_link_of_its_eni() {
        let mut spec = spec();
        spec.cidrs.push(net("2001:db8::/56"));
        spec.ports[0].assigned.push(net("2001:db8:0:1:7::/80"));
        let state = spec.state();
        let via = Hop::Via { link: "r1".into(), gateway: FAR_END_V6.into() };
        assert_eq!(state.routes.get(&(254, net("2001:db8:0:1:7::/80"))), Some(&via));
        assert_eq!(state.routes.get(&(254, net("2001:db8::/56"))), Some(&Hop::Blackhole));
        assert_eq!(state.neighbours.get(&("r1".into(), FAR_END_V6.into())), Some(&MacAddr([2, 0, 0, 0, 0, 9])));
        assert_eq!(
            filter_changes(&self::spec().state(), &state),
            "add element ip6 vpcsim assigned { \"r1\" . 2001:db8:0:1:7::/80 }\n\
             add element ip6 vpcsim vpc { 2001:db8::/56 }\n"
        );
        let unplugged = state.without_link("r1");
        assert!(unplugged.local.iter().all(|(link, _)| link == "lo"));
    }

    #[test]
    fn an_unchanged_vpc_changes_nothing() {
        let state = spec().state();
        assert_eq!(filter_changes(&state, &state), "");
    }

    #[test]
    fn an_address_that_moves_is_taken_from_the_one_eni_before_it_is_given_to_the_other() {
        let mut from = spec();
        from.ports.push(port("r2", "10.0.1.11", &["10.0.1.11/32", "10.0.1.20/32"]));
        let mut to = spec();
        to.ports[0].assigned.push(net("10.0.1.20/32"));
        to.ports.push(port("r2", "10.0.1.11", &["10.0.1.11/32"]));
        assert_eq!(
            filter_changes(&from.state(), &to.state()),
            "delete element ip vpcsim assigned { \"r2\" . 10.0.1.20/32 }\n\
             add element ip vpcsim assigned { \"r1\" . 10.0.1.20/32 }\n"
        );
    }
}
