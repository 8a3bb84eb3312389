//! The packets: each VPC's router is a network namespace, each ENI a link from it to a node, and the Internet another
//! namespace behind the gateways.
//!
//! What must be there is a pure projection of the model's state; it is made so by the difference to what was made
//! before.

mod changes;
mod groups;
mod internet;
mod machine;
mod project;
mod router;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use sluice_contract::id::{EniId, InstanceId, VpcId};
use sluice_hostnet::netns::NamespaceThread;
use sluice_hostnet::state::Family;

pub(crate) use internet::Internet;
use machine::NatGateway;
pub(crate) use project::{Plug, PlugAt, Projection, port_link};
use project::{Side, gateway_mac, link_mac, link_name};
pub use router::{EC2_ENDPOINT, IMDS};
use router::{IGW_LINK, RouterState};
pub use wire::FabricError;
pub(crate) use wire::loopback_up;
use wire::{End, Wire};

use crate::node::Node;

/// What ENIs and peerings carry (VPC User Guide, "Network MTU for your EC2 instance"), in bytes.
const JUMBO: u32 = 9001;
/// What goes through an Internet gateway, and what a link comes up with, in bytes.
const ETHERNET: u32 = 1500;
/// A router: it forwards, answers ARP for others, trusts nobody's routes and tells nobody of better ones.
const ROUTER_SYSCTLS: [(&str, &str); 8] = [
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/proxy_arp", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/all/forwarding", "1"),
];

/// Packets that a router's source check refused: the ENI may not send from that address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dropped {
    /// The ENI that they came from.
    pub eni: EniId,
    /// Their source.
    pub source: IpAddr,
    /// Their destination.
    pub destination: IpAddr,
    /// How many.
    pub packets: u64,
}

/// All routers, links and gateways of a world.
#[derive(Debug)]
pub(crate) struct Fabric {
    internet: Internet,
    routers: BTreeMap<VpcId, Router>,
    /// By the router's end of the link.
    plugged: BTreeMap<String, Plug>,
    nat_gateways: BTreeMap<String, NatGateway>,
    peered: BTreeMap<String, (VpcId, VpcId)>,
    /// Names of the links that each machine has.
    names: BTreeMap<InstanceId, BTreeMap<String, String>>,
}

#[derive(Debug)]
struct Router {
    thread: Arc<NamespaceThread>,
    wire: Wire,
    /// What its packet filter holds. Where a change fails half-way, the two differ until the next one.
    filtered: RouterState,
    /// What its addresses, routes, rules and neighbours are.
    routed: RouterState,
    has_gateway: bool,
}

impl Fabric {
    /// An Internet with `hosts` and nothing else.
    pub(crate) async fn new(hosts: &BTreeSet<IpAddr>) -> Result<Self, FabricError> {
        Ok(Self {
            internet: Internet::start(hosts).await?,
            routers: BTreeMap::new(),
            plugged: BTreeMap::new(),
            nat_gateways: BTreeMap::new(),
            peered: BTreeMap::new(),
            names: BTreeMap::new(),
        })
    }

    /// The thread of a VPC's router, where its services live.
    pub(crate) fn router(&self, vpc: &VpcId) -> Option<&Arc<NamespaceThread>> {
        self.routers.get(vpc).map(|router| &router.thread)
    }

    /// The routers' threads, by VPC.
    pub(crate) fn routers(&self) -> BTreeMap<VpcId, Arc<NamespaceThread>> {
        self.routers.iter().map(|(vpc, router)| (vpc.clone(), Arc::clone(&router.thread))).collect()
    }

    /// The Internet.
    pub(crate) const fn internet(&self) -> &Internet {
        &self.internet
    }

    /// The link of an ENI on its node, once it is plugged in.
    pub(crate) fn link_on_node(&self, eni: &EniId) -> Option<&str> {
        let link = port_link(eni);
        self.names.values().find_map(|names| names.get(&link)).map(String::as_str)
    }

    /// Makes the fabric what `to` says. What leaves goes first, so that an ENI or an address can move.
    pub(crate) async fn apply(
        &mut self,
        to: &Projection,
        nodes: &BTreeMap<InstanceId, Arc<Node>>,
    ) -> Result<(), FabricError> {
        self.take_away(to).await?;
        for vpc in to.routers.keys() {
            if !self.routers.contains_key(vpc) {
                self.routers.insert(vpc.clone(), Router::start(vpc).await?);
            }
        }
        self.join_internet(to).await?;
        self.join_peers(to).await?;
        let mut new: Vec<_> = to.plugs.iter().filter(|(link, _)| !self.plugged.contains_key(*link)).collect();
        new.sort_by_key(|(_, plug)| &plug.at);
        for (link, plug) in new {
            self.plug(link, plug, nodes).await?;
        }
        for (vpc, spec) in &to.routers {
            if let Some(router) = self.routers.get_mut(vpc) {
                router.become_state(spec.state()).await?;
            }
        }
        let public = to.routers.iter().map(|(vpc, spec)| {
            let v4 = spec.public.values().map(|address| IpNet::from(IpAddr::V4(*address)));
            let v6 = spec.cidrs.iter().copied().filter(|cidr| Family::of(cidr.addr()) == Family::V6);
            (vpc.clone(), v4.chain(v6).collect())
        });
        self.internet.route(&public.collect()).await
    }

    /// Packets that source checks refused, by ENI.
    pub(crate) async fn dropped(&self) -> Result<Vec<Dropped>, FabricError> {
        let mut all = Vec::new();
        for router in self.routers.values() {
            for (link, source, destination, packets) in router.wire.dropped().await? {
                if let Some(plug) = self.plugged.get(&link) {
                    all.push(Dropped { eni: plug.eni.clone(), source, destination, packets });
                }
            }
        }
        all.sort();
        Ok(all)
    }

    /// Forgets the packets that source checks refused so far.
    pub(crate) async fn forget_dropped(&self) -> Result<(), FabricError> {
        for router in self.routers.values() {
            router.wire.nft("flush set ip vpcsim dropped\nflush set ip6 vpcsim dropped\n".into()).await?;
        }
        Ok(())
    }

    /// Unplugs all that an instance has; the next [`Self::apply`] plugs it in again, where the instance is then.
    pub(crate) async fn unplug_machine(&mut self, instance: &InstanceId) -> Result<(), FabricError> {
        let of = |plug: &Plug| matches!(&plug.at, PlugAt::Instance { id, .. } if id == instance);
        let plugs = self.plugged.iter().filter(|(_, plug)| of(plug));
        self.unplug(plugs.map(|(link, plug)| (plug.vpc.clone(), link.clone())).collect()).await
    }

    /// Unplugs what `to` has not, or has elsewhere.
    async fn take_away(&mut self, to: &Projection) -> Result<(), FabricError> {
        self.routers.retain(|vpc, _| to.routers.contains_key(vpc));
        let plugs = self.plugged.iter().filter(|(link, plug)| to.plugs.get(*link) != Some(*plug));
        let mut gone: Vec<(VpcId, String)> = plugs.map(|(link, plug)| (plug.vpc.clone(), link.clone())).collect();
        let peers = self.peered.iter().filter(|(link, ends)| to.peerings.get(*link) != Some(*ends));
        gone.extend(peers.flat_map(|(link, (a, b))| [(a.clone(), link.clone()), (b.clone(), link.clone())]));
        for (vpc, router) in &self.routers {
            if router.has_gateway && !to.gateways.contains(vpc) {
                gone.push((vpc.clone(), IGW_LINK.to_owned()));
            }
        }
        self.unplug(gone).await
    }

    async fn unplug(&mut self, gone: Vec<(VpcId, String)>) -> Result<(), FabricError> {
        for (vpc, link) in gone {
            if let Some(router) = self.routers.get_mut(&vpc) {
                let without = router.routed.without_link(&link);
                router.become_state(without).await?;
                router.wire.unplug(&link).await?;
                router.has_gateway &= link != IGW_LINK;
            }
            self.plugged.remove(&link);
            self.peered.remove(&link);
            self.nat_gateways.remove(&link);
            for names in self.names.values_mut() {
                names.remove(&link);
            }
        }
        Ok(())
    }

    async fn join_internet(&mut self, to: &Projection) -> Result<(), FabricError> {
        for vpc in &to.gateways {
            let Some(router) = self.routers.get_mut(vpc).filter(|router| !router.has_gateway) else { continue };
            let near = End { name: IGW_LINK.into(), mac: gateway_mac(vpc, Side::Near), mtu: ETHERNET };
            let far = End { name: link_name('v', vpc.as_str()), mac: gateway_mac(vpc, Side::Far), mtu: ETHERNET };
            router.wire.plug(&near, &far, self.internet.net()).await?;
            router.has_gateway = true;
            self.internet.join(vpc, &far.name, near.mac).await?;
        }
        Ok(())
    }

    async fn join_peers(&mut self, to: &Projection) -> Result<(), FabricError> {
        for (link, (requester, accepter)) in &to.peerings {
            if self.peered.contains_key(link) {
                continue;
            }
            let (Some(one), Some(other)) = (self.routers.get(requester), self.routers.get(accepter)) else { continue };
            let end = |side| End { name: link.clone(), mac: link_mac(link, side), mtu: JUMBO };
            one.wire.plug(&end(Side::Near), &end(Side::Far), other.thread.net()).await?;
            other.wire.up(link).await?;
            self.peered.insert(link.clone(), (requester.clone(), accepter.clone()));
        }
        Ok(())
    }

    async fn plug(
        &mut self,
        link: &str,
        plug: &Plug,
        nodes: &BTreeMap<InstanceId, Arc<Node>>,
    ) -> Result<(), FabricError> {
        let Some(router) = self.routers.get(&plug.vpc) else { return Ok(()) };
        let near = End { name: link.to_owned(), mac: link_mac(link, Side::Near), mtu: JUMBO };
        match &plug.at {
            PlugAt::NatGateway => {
                let gateway = NatGateway::start(plug).await?;
                let far = End { name: machine::FIRST_LINK.into(), mac: plug.mac, mtu: JUMBO };
                router.wire.plug(&near, &far, gateway.net()).await?;
                gateway.configure(plug).await?;
                self.nat_gateways.insert(link.to_owned(), gateway);
            }
            PlugAt::Instance { id, place } => {
                let Some(node) = nodes.get(id) else { return Ok(()) };
                let names = self.names.entry(id.clone()).or_default();
                let name = (0u32..).map(|n| format!("eth{n}")).find(|name| !names.values().any(|used| used == name));
                let far = End { name: name.unwrap_or_default(), mac: plug.mac, mtu: ETHERNET };
                router.wire.plug(&near, &far, node.net()).await?;
                names.insert(link.to_owned(), far.name.clone());
                if *place == (0, 0) {
                    machine::configure(node.net(), &far.name, plug).await?;
                }
            }
        }
        self.plugged.insert(link.to_owned(), plug.clone());
        Ok(())
    }
}

impl Router {
    async fn start(vpc: &VpcId) -> Result<Self, FabricError> {
        let thread = wire::start(vpc.as_str(), &ROUTER_SYSCTLS).await?;
        let wire = Wire::open(vpc.as_str(), Arc::clone(&thread))?;
        wire.nft(router::FILTER.into()).await?;
        Ok(Self { thread, wire, filtered: RouterState::default(), routed: RouterState::default(), has_gateway: false })
    }

    async fn become_state(&mut self, state: RouterState) -> Result<(), FabricError> {
        // The filter first: what is routed before it may be sent would be remembered as dropped.
        let filter = router::filter_changes(&self.filtered, &state);
        if !filter.is_empty() {
            self.wire.nft(filter).await?;
        }
        self.filtered = state.clone();
        let ops = changes::changes(&self.routed, &state).map_err(|source| self.wire.bad_name(source))?;
        self.wire.apply(ops).await?;
        self.routed = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
