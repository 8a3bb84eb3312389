//! Peers of the three dialects, as predicates.

use ipnet::IpNet;

use super::{Lowering, usable};
use crate::compile::predicate::{Namespaces, Predicate};
use crate::compile::program::Networks;
use crate::model::Text;
use crate::model::cilium::{CidrBlock, CiliumPeers, Entity};
use crate::model::cluster_network_policy::{ClusterPeer, ClusterSubject};
use crate::model::network_policy::{NetworkPeer, NetworkPeers};
use crate::model::selector::LabelSelector;

/// Whom a rule is for: those for whom one of the predicates holds, or anyone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Peers {
    pub(super) anyone: bool,
    /// Also where `anyone` is set: a deny that names the own node's entity besides is a deny of the own node (DESIGN 6.3).
    pub(super) predicates: Vec<Predicate>,
    /// Whether there are peers besides that are not known: those of a CIDR group that cannot be used.
    pub(super) others: bool,
}

impl Peers {
    pub(super) const ANYONE: Self = Self { anyone: true, predicates: Vec::new(), others: false };

    const fn of(predicates: Vec<Predicate>) -> Self {
        Self { anyone: false, predicates, others: false }
    }
}

impl Lowering<'_> {
    /// The peers of an element of a cilium.io policy.
    pub(super) fn cilium_peers(&mut self, peers: &CiliumPeers) -> Peers {
        let predicates = match peers {
            CiliumPeers::Any => return Peers::ANYONE,
            CiliumPeers::Nothing => Vec::new(),
            CiliumPeers::Endpoints(selectors) => selectors.iter().cloned().map(Predicate::Endpoints).collect(),
            CiliumPeers::Cidrs(rules) => {
                let mut peers = Peers::default();
                for rule in rules {
                    let networks = match &rule.block {
                        CidrBlock::Cidr(network) => Networks { known: vec![*network], others: false },
                        group => self.group(group),
                    };
                    peers.others |= networks.others;
                    peers.predicates.extend(self.cilium_blocks(&networks.known, &rule.except));
                }
                return peers;
            }
            CiliumPeers::Groups(names) => {
                let mut peers = Peers::default();
                for name in names {
                    let networks = self.group(&CidrBlock::Group(Text::clone(name)));
                    peers.others |= networks.others;
                    peers.predicates.extend(self.cilium_blocks(&networks.known, &[]));
                }
                return peers;
            }
            CiliumPeers::Entities(entities) => {
                let named = entities.iter().filter(|entity| exists(**entity)).copied().map(Predicate::Entity);
                let anyone = entities.contains(&Entity::All);
                return Peers { anyone, ..Peers::of(named.collect()) };
            }
            CiliumPeers::Services(services) => services.iter().cloned().map(Predicate::Services).collect(),
            CiliumPeers::Nodes(selectors) => selectors.iter().cloned().map(Predicate::Nodes).collect(),
            CiliumPeers::Names(patterns) => patterns.iter().cloned().map(Predicate::Name).collect(),
        };
        Peers::of(predicates)
    }

    fn group(&mut self, group: &CidrBlock) -> Networks {
        self.asked_groups = true;
        (self.groups)(group)
    }

    fn cilium_blocks(&self, networks: &[IpNet], except: &[IpNet]) -> Vec<Predicate> {
        let managed = self.settings.cilium_cidrs_match_managed;
        let exceptions = exceptions(except);
        networks.iter().filter_map(|network| block(*network, &exceptions, managed)).collect()
    }
}

/// The peers of a NetworkPolicy of `namespace`.
pub(super) fn network_peers(peers: &NetworkPeers, namespace: Option<&Text>) -> Peers {
    let NetworkPeers::Of(peers) = peers else { return Peers::ANYONE };
    let mut predicates = Vec::new();
    for (_, peer) in usable(peers) {
        match peer {
            NetworkPeer::Pods { namespaces, pods } => {
                let namespaces = match (namespaces, namespace) {
                    (Some(selector), _) => Namespaces::Labelled(selector.clone()),
                    (None, Some(own)) => Namespaces::Named(Text::clone(own)),
                    (None, None) => continue,
                };
                predicates.push(Predicate::Pods { namespaces, pods: pods.clone() });
            }
            NetworkPeer::IpBlock { cidr, except } => predicates.extend(block(*cidr, &exceptions(except), true)),
            NetworkPeer::Names(patterns) => predicates.extend(patterns.iter().cloned().map(Predicate::Name)),
        }
    }
    Peers::of(predicates)
}

/// The peers of a rule of a ClusterNetworkPolicy.
pub(super) fn cluster_peers(peers: &[ClusterPeer]) -> Peers {
    let mut predicates = Vec::new();
    for peer in peers {
        match peer {
            ClusterPeer::Pods(subject) => {
                let (namespaces, pods) = match subject {
                    ClusterSubject::Namespaces(namespaces) => (namespaces.clone(), LabelSelector::default()),
                    ClusterSubject::Pods { namespaces, pods } => (namespaces.clone(), pods.clone()),
                };
                predicates.push(Predicate::Pods { namespaces: Namespaces::Labelled(namespaces), pods });
            }
            ClusterPeer::Networks(networks) => {
                predicates.extend(networks.iter().filter_map(|network| block(*network, &[], true)));
            }
            ClusterPeer::Nodes(selector) => predicates.push(Predicate::Nodes(selector.clone())),
            ClusterPeer::Names(patterns) => predicates.extend(patterns.iter().cloned().map(Predicate::Name)),
        }
    }
    Peers::of(predicates)
}

/// Exceptions in order, without those inside of others: no two have an address in common.
fn exceptions(except: &[IpNet]) -> Vec<IpNet> {
    let mut all: Vec<IpNet> = except.iter().map(IpNet::trunc).collect();
    // A network comes before all that is inside of it, and nothing else comes between.
    all.sort_unstable();
    all.dedup_by(|network, before| before.contains(&*network));
    all
}

/// A block in the one form that it has as a predicate: exceptions that say nothing are left out. None if nothing is left.
fn block(cidr: IpNet, exceptions: &[IpNet], managed: bool) -> Option<Predicate> {
    let cidr = cidr.trunc();
    let (before, after) = exceptions.split_at_checked(exceptions.partition_point(|one| *one <= cidr))?;
    if before.last().is_some_and(|one| one.contains(&cidr)) {
        return None;
    }
    let except = after.iter().take_while(|one| cidr.contains(*one)).copied().collect();
    Some(Predicate::Block { cidr, except, managed })
}

/// Whether the entity is a predicate that something may fulfil.
const fn exists(entity: Entity) -> bool {
    match entity {
        // `all` is no predicate: it is anyone.
        Entity::All | Entity::Init | Entity::Ingress | Entity::Unmanaged | Entity::Health | Entity::None => false,
        Entity::World
        | Entity::WorldIpv4
        | Entity::WorldIpv6
        | Entity::Cluster
        | Entity::Host
        | Entity::RemoteNode
        | Entity::KubeApiserver => true,
    }
}
