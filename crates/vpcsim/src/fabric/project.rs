//! From what EC2 keeps to what each VPC's router must hold: pure, so that a wrong projection fails without a packet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use sluice_contract::id::{EniId, InstanceId, MacAddr, VpcId};

use super::groups;
use super::router::{Port, RouterSpec, Target};
use crate::model::state::{Eni, InterfaceType, RouteTarget, State};

/// Characters of an id that fit into an interface name behind its first letter; the last ones, which are random.
const LINK_ID: usize = 14;

/// What the fabric must be like at one point in time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Projection {
    /// The router of each VPC.
    pub routers: BTreeMap<VpcId, RouterSpec>,
    /// What is plugged into the routers, by the router's end of the link.
    pub plugs: BTreeMap<String, Plug>,
    /// VPCs that an Internet gateway joins to the Internet.
    pub gateways: Vec<VpcId>,
    /// Links between routers: name of the link in both, requester, accepter.
    pub peerings: BTreeMap<String, (VpcId, VpcId)>,
}

/// An ENI as something that is plugged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plug {
    /// The VPC whose router it is plugged into.
    pub vpc: VpcId,
    /// The ENI.
    pub eni: EniId,
    /// Its MAC, which the far end of the link gets.
    pub mac: MacAddr,
    /// Its primary address.
    pub primary: Ipv4Addr,
    /// Its first IPv6 address, which a machine learns by DHCPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// What it belongs to.
    pub at: PlugAt,
}

/// What an ENI belongs to. The order is that in which a machine finds its links at boot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PlugAt {
    /// An instance.
    Instance {
        /// The instance.
        id: InstanceId,
        /// Its network card and device index; the primary ENI is (0, 0).
        place: (u32, u32),
    },
    /// A NAT gateway.
    NatGateway,
}

impl Projection {
    /// What `state` asks for at `now`. Instances without a machine in `machines` are left out.
    pub(crate) fn of(state: &State, now: Duration, machines: &BTreeSet<InstanceId>) -> Self {
        let mut projection = Self::default();
        for vpc in state.vpcs.values() {
            let cidrs = vpc.cidrs.iter().copied().map(IpNet::V4);
            let cidrs = cidrs.chain(vpc.ipv6_cidrs.iter().copied().map(IpNet::V6)).collect();
            let guards = vpc.enforces_groups.then(Vec::new);
            let spec = RouterSpec { cidrs, guards, ..RouterSpec::default() };
            projection.routers.insert(vpc.id.clone(), spec);
        }
        for gateway in state.internet_gateways.values() {
            let Some(vpc) = &gateway.vpc else { continue };
            if let Some(router) = projection.routers.get_mut(vpc) {
                router.internet = Some(gateway_mac(vpc, Side::Far));
                projection.gateways.push(vpc.clone());
            }
        }
        for peering in state.peerings.values() {
            let link = link_name('p', peering.id.as_str());
            for (vpc, side) in [(&peering.requester, Side::Far), (&peering.accepter, Side::Near)] {
                if let Some(router) = projection.routers.get_mut(vpc) {
                    router.peers.insert(link.clone(), link_mac(&link, side));
                }
            }
            projection.peerings.insert(link, (peering.requester.clone(), peering.accepter.clone()));
        }
        projection.plug_instances(state, now, machines);
        projection.plug_nat_gateways(state);
        projection.route(state);
        projection.guard(state);
        projection
    }

    /// What the groups of the ENIs that are plugged in let pass. NAT gateways have none.
    fn guard(&mut self, state: &State) {
        for (vpc, router) in &mut self.routers {
            let Some(guards) = &mut router.guards else { continue };
            let members = groups::members(state, vpc);
            for plug in self.plugs.values().filter(|plug| plug.vpc == *vpc && plug.at != PlugAt::NatGateway) {
                if let Some(eni) = state.enis.get(&plug.eni) {
                    guards.push(groups::guard(state, port_link(&eni.id), &eni.groups, &members));
                }
            }
        }
    }

    fn plug_instances(&mut self, state: &State, now: Duration, machines: &BTreeSet<InstanceId>) {
        for link in state.links(now).filter(|link| machines.contains(link.instance)) {
            let at = PlugAt::Instance { id: link.instance.clone(), place: (link.card, link.device) };
            self.plug(state, link.eni, at);
        }
    }

    fn plug_nat_gateways(&mut self, state: &State) {
        for gateway in state.nat_gateways.values() {
            if let Some(eni) = state.enis.get(&gateway.eni) {
                self.plug(state, eni, PlugAt::NatGateway);
                if let Some(router) = self.routers.get_mut(&eni.vpc) {
                    router.public.insert(gateway.private_ip, gateway.public_ip);
                }
            }
        }
    }

    fn plug(&mut self, state: &State, eni: &Eni, at: PlugAt) {
        let (Some(subnet), Some(router)) = (state.subnets.get(&eni.subnet), self.routers.get_mut(&eni.vpc)) else {
            return;
        };
        let link = port_link(&eni.id);
        router.ports.push(Port {
            link: link.clone(),
            mac: eni.mac,
            primary: eni.primary,
            subnet: subnet.cidr,
            table: table_index(state, eni),
            assigned: eni.assigned().map(IpNet::V4).chain(eni.assigned_ipv6().map(IpNet::V6)).collect(),
            source_check: eni.source_dest_check && eni.interface_type != InterfaceType::NatGateway,
        });
        if let Some(association) = &eni.association {
            router.public.insert(association.private_ip, association.public_ip);
        }
        let plug = Plug {
            vpc: eni.vpc.clone(),
            eni: eni.id.clone(),
            mac: eni.mac,
            primary: eni.primary,
            ipv6: eni.ipv6.first().copied(),
            subnet: subnet.cidr,
            at,
        };
        self.plugs.insert(link, plug);
    }

    fn route(&mut self, state: &State) {
        for (vpc, router) in &mut self.routers {
            for (index, table) in (0..).zip(state.route_tables.values().filter(|table| table.vpc == *vpc)) {
                // What is not for an ENI reaches it only with the check off, as in `SourceDestCheck`.
                let port = |eni: &EniId| {
                    let link = port_link(eni);
                    let found = router.ports.iter().find(|port| port.link == link && !port.source_check);
                    found.map_or(Target::Blackhole, |port| Target::Port { link: port.link.clone(), via: port.primary })
                };
                let routes = table.routes.iter().map(|(destination, target)| {
                    let target = match target {
                        RouteTarget::InternetGateway(_) if router.internet.is_some() => Target::InternetGateway,
                        RouteTarget::NatGateway(id) => {
                            state.nat_gateways.get(id).map_or(Target::Blackhole, |gateway| port(&gateway.eni))
                        }
                        RouteTarget::Peering(id) if state.peerings.contains_key(id) => {
                            Target::Peer { link: link_name('p', id.as_str()) }
                        }
                        RouteTarget::Eni(id) => port(id),
                        RouteTarget::InternetGateway(_) | RouteTarget::Peering(_) => Target::Blackhole,
                    };
                    (*destination, target)
                });
                let routes = routes.collect();
                router.tables.insert(index, routes);
            }
        }
    }
}

/// The place of an ENI's route table among those of its VPC.
fn table_index(state: &State, eni: &Eni) -> u32 {
    let Some(own) = state.route_table(&eni.subnet) else { return 0 };
    let tables = state.route_tables.values().filter(|table| table.vpc == eni.vpc);
    (0..).zip(tables).find(|(_, table)| table.id == own.id).map_or(0, |(index, _)| index)
}

/// The router's end of an ENI's link.
pub(crate) fn port_link(eni: &EniId) -> String {
    link_name('r', eni.as_str())
}

/// An interface name of at most 15 bytes from an id: a letter and the id's end.
pub(super) fn link_name(letter: char, id: &str) -> String {
    let digits = id.rsplit_once('-').map_or(id, |(_, digits)| digits);
    let skip = digits.chars().count().saturating_sub(LINK_ID);
    std::iter::once(letter).chain(digits.chars().skip(skip)).collect()
}

/// One end of a link of the fabric itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The end of a VPC's router, or of a peering's requester.
    Near,
    /// The end of the Internet, or of a peering's accepter.
    Far,
}

/// The MAC of one end of a link between routers, from the link's name: locally administered, stable.
pub(super) fn link_mac(link: &str, side: Side) -> MacAddr {
    // FNV-1a; distinct names need distinct MACs only on one link.
    let hash = link.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let [a, b, c, d] = hash.to_be_bytes();
    MacAddr([0x0a, if side == Side::Near { 0 } else { 1 }, a, b, c, d])
}

/// The MAC of one end of a VPC's link to the Internet.
pub(super) fn gateway_mac(vpc: &VpcId, side: Side) -> MacAddr {
    link_mac(vpc.as_str(), side)
}

#[cfg(test)]
pub(super) mod tests;
