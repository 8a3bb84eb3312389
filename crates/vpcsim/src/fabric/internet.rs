//! The Internet: one namespace behind all gateways, with hosts that tell who they are talked to by.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use sluice_contract::id::{IfName, MacAddr, VpcId};
use sluice_hostnet::netns::{Namespace, NamespaceThread};
use sluice_hostnet::plan::{Op, Planned};
use sluice_hostnet::state::{Address, Family, Neighbour, Route, TABLE_MAIN};

use super::router::far_end;
use super::wire::{FabricError, Wire, start};
use crate::probe;

/// It routes between gateways as the Internet does, and checks nothing.
const SYSCTLS: [(&str, &str); 7] = [
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/all/forwarding", "1"),
];

/// The namespace of the Internet.
#[derive(Debug)]
pub(crate) struct Internet {
    thread: Arc<NamespaceThread>,
    wire: Wire,
    links: BTreeMap<VpcId, IfName>,
    routed: BTreeMap<IpNet, VpcId>,
}

impl Internet {
    /// The Internet with `hosts`, each of which serves [`probe::serve`] on [`probe::ECHO_PORT`].
    pub(super) async fn start(hosts: &BTreeSet<IpAddr>) -> Result<Self, FabricError> {
        let thread = start("internet", &SYSCTLS).await?;
        let wire = Wire::open("internet", Arc::clone(&thread))?;
        let lo = IfName::new("lo").map_err(|source| wire.bad_name(source))?;
        let addresses = hosts
            .iter()
            .map(|host| Planned::new(Op::AddAddress(Address::new(lo.clone(), IpNet::from(*host))), "a host"));
        wire.apply(addresses.collect()).await?;
        for host in hosts {
            let address = SocketAddr::new(*host, probe::ECHO_PORT);
            wire.run(format!("the echo server {address}"), move || probe::serve_in_background(address)).await?;
        }
        Ok(Self { thread, wire, links: BTreeMap::new(), routed: BTreeMap::new() })
    }

    pub(super) fn net(&self) -> &Namespace {
        self.thread.net()
    }

    /// The thread in which things on the Internet run.
    pub(crate) const fn thread(&self) -> &Arc<NamespaceThread> {
        &self.thread
    }

    /// Takes up the link to a VPC's gateway, whose end has `gateway` as its MAC.
    pub(super) async fn join(&mut self, vpc: &VpcId, link: &str, gateway: MacAddr) -> Result<(), FabricError> {
        self.wire.up(link).await?;
        let dev = IfName::new(link).map_err(|source| self.wire.bad_name(source))?;
        let neighbours = Family::ALL.map(|family| {
            let neighbour = Neighbour::permanent(dev.clone(), far_end(family), gateway);
            Planned::new(Op::SetNeighbour { neighbour, before: None }, "a gateway was attached")
        });
        self.wire.apply(neighbours.into()).await?;
        self.links.insert(vpc.clone(), dev);
        // A link that is new has lost the routes of the one before.
        self.routed.retain(|_, owner| owner != vpc);
        Ok(())
    }

    /// Routes public addresses to the VPCs that have them: their public IPv4 addresses, and all of their IPv6.
    pub(super) async fn route(&mut self, public: &BTreeMap<VpcId, BTreeSet<IpNet>>) -> Result<(), FabricError> {
        let routed: BTreeMap<IpNet, VpcId> = public
            .iter()
            .filter(|(vpc, _)| self.links.contains_key(*vpc))
            .flat_map(|(vpc, addresses)| addresses.iter().map(|address| (*address, vpc.clone())))
            .collect();
        let route = |address: &IpNet, vpc: &VpcId| {
            let dev = self.links.get(vpc)?.clone();
            Some(Route::via(TABLE_MAIN, *address, far_end(Family::of(address.addr())), dev).with_onlink())
        };
        let mut ops = Vec::new();
        for (address, vpc) in &routed {
            if self.routed.get(address) != Some(vpc)
                && let Some(route) = route(address, vpc)
            {
                ops.push(Planned::new(Op::SetRoute { route, before: None }, "an address became public"));
            }
        }
        for (address, vpc) in &self.routed {
            if !routed.contains_key(address)
                && let Some(route) = route(address, vpc)
            {
                ops.push(Planned::new(Op::DeleteRoute(route), "an address is no longer public"));
            }
        }
        self.wire.apply(ops).await?;
        self.routed = routed;
        Ok(())
    }
}
