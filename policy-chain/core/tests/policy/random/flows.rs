//! Random flows, aimed at where rules begin and end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use sluice_policy_core::cluster::{Cluster, PodKey};
use sluice_policy_core::flow::{Direction, Origin, Protocol, Query};
use sluice_policy_core::model::Policy;
use sluice_policy_core::model::cilium::Application;
use sluice_policy_core::model::port::{PortMatch, PortTarget, Ports, ProtocolMatch};
use sluice_policy_core::settings::Settings;

use super::Random;
use super::objects::{BLOCKS, TRANSPORTS, node_address, pod_address, port, text, transport, world_address};

/// What a cluster offers to aim at.
#[derive(Debug)]
pub(crate) struct Targets {
    /// Pods with a gate, and a few without.
    subjects: Vec<(PodKey, Vec<IpAddr>)>,
    frontends: Vec<(IpAddr, Protocol, u16)>,
    own_node: Vec<IpAddr>,
    /// Container ports that have a name.
    named: Vec<(Protocol, u16)>,
    /// Ports that application rules are for.
    proxied: Vec<(Protocol, u16)>,
}

/// The numbered ports that application rules of a cluster are for.
pub(crate) fn proxied(cluster: &Cluster) -> Vec<(Protocol, u16)> {
    let policies = cluster.policies.values().filter_map(|policy| match policy.as_ref() {
        Policy::Cilium(policy) => Some(policy),
        Policy::Network(_) | Policy::Cluster(_) => None,
    });
    let allows = policies.flat_map(|policy| &policy.rules).flat_map(|rule| rule.ingress.iter().chain(&rule.egress));
    let lists = allows.flatten().flat_map(|allow| &allow.ports).filter(|list| list.application != Application::None);
    let ports = lists.flat_map(|list| if let Ports::Of(ports) = &list.ports { ports.as_slice() } else { &[] });
    let numbered = |port: &PortMatch| match (port.protocol, &port.port) {
        (ProtocolMatch::Exactly(protocol), PortTarget::Range(first, _)) => Some((protocol, *first)),
        _ => None,
    };
    ports.filter_map(numbered).collect()
}

impl Targets {
    pub(crate) fn of(cluster: &Cluster, settings: &Settings) -> Self {
        let own_node: Vec<IpAddr> = settings
            .node
            .as_ref()
            .and_then(|name| cluster.nodes.get(name))
            .map(|node| node.addresses.clone())
            .unwrap_or_default();
        let mut frontends = Vec::new();
        for service in cluster.services.values() {
            for port in service.ports.iter() {
                frontends.extend(service.addresses.iter().map(|address| (address, port.protocol, port.port)));
                if let Some(number) = port.node_port {
                    frontends.extend(own_node.iter().map(|address| (*address, port.protocol, number)));
                }
            }
        }
        let mut subjects = Vec::new();
        for pod in cluster.pods.values() {
            // Others have no gate here: now and then, to see that they have none.
            let times = if !pod.host_network && !pod.finished && pod.node == settings.node { 60 } else { 1 };
            subjects.extend((0..times).map(|_| (pod.key.clone(), pod.addresses.to_vec())));
        }
        subjects.push((PodKey { namespace: text("a"), name: text("nobody") }, Vec::new()));
        let named = cluster
            .pods
            .values()
            .flat_map(|pod| pod.template.ports.iter())
            .map(|port| (port.protocol, port.port))
            .collect();
        Self { subjects, frontends, own_node, named, proxied: proxied(cluster) }
    }

    /// A flow of one of the pods.
    pub(crate) fn flow(&self, random: &mut Random) -> Query {
        let (subject, own) = random.pick(&self.subjects).clone();
        let direction = *random.pick(&Direction::BOTH);
        let mut origin = Origin::Forwarded;
        let (mut protocol, mut port) = self.port(random);
        let mut peer = Self::anyone(random);
        match (random.below(12), direction) {
            (0, _) if !own.is_empty() => {
                peer = *random.pick(&own);
                origin = Origin::Hairpin;
            }
            (1, _) if !own.is_empty() && random.one_in(3) => peer = *random.pick(&own),
            (2..=4, Direction::Egress) if !self.frontends.is_empty() => {
                (peer, protocol, port) = *random.pick(&self.frontends);
                if random.one_in(12) {
                    port = beside(random, port);
                }
            }
            (2 | 3, Direction::Ingress) if !self.own_node.is_empty() => {
                peer = *random.pick(&self.own_node);
                origin = *random.pick(&[Origin::Forwarded, Origin::OwnNode]);
            }
            _ => {}
        }
        // ICMP is of the family of the addresses.
        if protocol == Protocol::ICMP && peer.to_canonical().is_ipv6() {
            protocol = Protocol::ICMPV6;
        }
        if let (IpAddr::V4(v4), true) = (peer, random.one_in(40)) {
            peer = v4.to_ipv6_mapped().into();
        }
        Query { subject, direction, peer, protocol, port, origin }
    }

    fn anyone(random: &mut Random) -> IpAddr {
        match random.below(12) {
            0..=5 => pod_address(random),
            6 => node_address(random),
            7 | 8 => world_address(random),
            _ => end_of_block(random),
        }
    }

    fn port(&self, random: &mut Random) -> (Protocol, u16) {
        if random.one_in(5) && !self.named.is_empty() {
            return *random.pick(&self.named);
        }
        if random.one_in(5) && !self.proxied.is_empty() {
            return *random.pick(&self.proxied);
        }
        match random.below(12) {
            0 => (Protocol::ICMP, *random.pick(&[0, 3, 8, 128])),
            1 => (*random.pick(&[Protocol(47), Protocol(2), Protocol(0), Protocol(255)]), 0),
            2 => (*random.pick(&TRANSPORTS), u16::try_from(random.below(65536)).unwrap()),
            3 => (Protocol::UDP, 53),
            _ => (transport(random), end_of_range(random)),
        }
    }
}

fn end_of_range(random: &mut Random) -> u16 {
    let port = port(random);
    if random.one_in(4) { beside(random, port) } else { port }
}

fn beside(random: &mut Random, port: u16) -> u16 {
    if random.one_in(2) { port.wrapping_add(1) } else { port.wrapping_sub(1) }
}

/// The first or last address of a block, or the one before or after it.
fn end_of_block(random: &mut Random) -> IpAddr {
    let block: IpNet = random.pick(&BLOCKS).parse().unwrap();
    let first = random.one_in(2);
    let end = if first { block.network() } else { block.broadcast() };
    if random.one_in(2) {
        return end;
    }
    match end {
        IpAddr::V4(end) => {
            let end = u32::from(end);
            Ipv4Addr::from(if first { end.wrapping_sub(1) } else { end.wrapping_add(1) }).into()
        }
        IpAddr::V6(end) => {
            let end = u128::from(end);
            Ipv6Addr::from(if first { end.wrapping_sub(1) } else { end.wrapping_add(1) }).into()
        }
    }
}
