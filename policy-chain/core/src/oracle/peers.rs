//! Does a rule mean this peer?

use ipnet::IpNet;

use super::address::{self, Kind, Peer};
use super::labels::{selects, selects_namespace};
use super::{Scene, services};
use crate::cluster::{CidrGroup, Pod, Service};
use crate::l7::dns::NamePattern;
use crate::model::cilium::{CidrBlock, CidrRule, CiliumPeers, Entity, ServiceSelector};
use crate::model::cluster_network_policy::{ClusterPeer, ClusterSubject};
use crate::model::network_policy::{NetworkPeer, NetworkPeers};
use crate::model::selector::LabelSelector;
use crate::model::{PolicyRef, Text, Unusable};

/// `from` and `to` of NetworkPolicy: "items in this list are combined using a logical OR. If this field is empty or
/// missing, this rule matches all". A peer that cannot be used grants nothing.
pub(super) fn of_network_policy(peers: &NetworkPeers, policy: &PolicyRef, scene: &Scene<'_>, peer: &Peer<'_>) -> bool {
    match peers {
        NetworkPeers::All => true,
        NetworkPeers::Of(peers) => peers.iter().flatten().any(|one| network_peer(one, policy, scene, peer)),
    }
}

fn network_peer(rule: &NetworkPeer, policy: &PolicyRef, scene: &Scene<'_>, peer: &Peer<'_>) -> bool {
    match rule {
        // "podSelector ... If namespaceSelector is also set, the pods matching podSelector in the namespaces selected by
        // namespaceSelector. Otherwise in the policy's own namespace." Never an address outside, whatever is empty.
        NetworkPeer::Pods { namespaces, pods } => pod_of(peer).is_some_and(|pod| {
            let there = match namespaces {
                Some(namespaces) => selects_namespace(namespaces, scene.cluster, &pod.key.namespace),
                None => policy.namespace.as_ref() == Some(&pod.key.namespace),
            };
            there && selects(pods, &pod.labels)
        }),
        // Matches whoever has the address, pods too (DESIGN 6.2; e2e 34-36).
        NetworkPeer::IpBlock { cidr, except } => in_block(cidr, except, peer),
        NetworkPeer::Names(names) => resolved(names, scene, peer),
    }
}

/// `from` and `to` of ClusterNetworkPolicy: one of the peers.
pub(super) fn of_cluster_network_policy(peers: &[ClusterPeer], scene: &Scene<'_>, peer: &Peer<'_>) -> bool {
    peers.iter().any(|one| match one {
        ClusterPeer::Pods(subject) => pod_of(peer).is_some_and(|pod| is_subject(subject, scene, pod)),
        // "networks ... also match pod IPs".
        ClusterPeer::Networks(networks) => networks.iter().any(|network| in_block(network, &[], peer)),
        ClusterPeer::Nodes(selector) => node_of(selector, scene, peer),
        ClusterPeer::Names(names) => resolved(names, scene, peer),
    })
}

/// `namespaces` or `pods` of ClusterNetworkPolicy, as its subject and as a peer. Pods with `hostNetwork` are never asked.
pub(super) fn is_subject(subject: &ClusterSubject, scene: &Scene<'_>, pod: &Pod) -> bool {
    let there = |namespaces| selects_namespace(namespaces, scene.cluster, &pod.key.namespace);
    match subject {
        ClusterSubject::Namespaces(namespaces) => there(namespaces),
        ClusterSubject::Pods { namespaces, pods } => there(namespaces) && selects(pods, &pod.labels),
    }
}

/// The peers of an element of a cilium.io rule.
pub(super) fn of_cilium(peers: &CiliumPeers, scene: &Scene<'_>, peer: &Peer<'_>) -> bool {
    match peers {
        CiliumPeers::Any => true,
        CiliumPeers::Nothing => false,
        CiliumPeers::Endpoints(selectors) => selectors.iter().any(|selector| peer.labels.selected_by(selector)),
        CiliumPeers::Cidrs(rules) => rules.iter().any(|rule| cidr_rule(rule, scene, peer)),
        CiliumPeers::Entities(entities) => entities.iter().any(|entity| is_entity(*entity, peer)),
        CiliumPeers::Services(selectors) => selectors.iter().any(|selector| backs_service(selector, scene, peer)),
        // A group that is not there is nobody, never anyone (CVE-2025-64715).
        CiliumPeers::Groups(names) => {
            names.iter().any(|name| in_group(scene.cluster.cidr_groups.get(name), &[], scene, peer))
        }
        CiliumPeers::Nodes(selectors) => selectors.iter().any(|selector| node_of(selector, scene, peer)),
        CiliumPeers::Names(names) => resolved(names, scene, peer),
    }
}

/// A block of a cilium.io rule. "CIDR rules do not apply to traffic where both sides of the connection are managed by
/// Cilium", nor to nodes; unless a setting says so (`policy-cidr-match-mode`; DESIGN 6.2). All of a family is `world`, whoever
/// that is (Cilium, `pkg/policy/api/cidr.go`).
fn in_cilium_block(cidr: &IpNet, except: &[IpNet], scene: &Scene<'_>, peer: &Peer<'_>) -> bool {
    let is_asked = match peer.kind {
        Kind::Other => true,
        Kind::Masqueraded => is_world(cidr, except) || scene.settings.cilium_cidrs_match_managed,
        Kind::Pod(_) | Kind::OwnNode | Kind::RemoteNode => scene.settings.cilium_cidrs_match_managed,
    };
    is_asked && in_block(cidr, except, peer)
}

fn is_world(cidr: &IpNet, except: &[IpNet]) -> bool {
    cidr.prefix_len() == 0 && !except.iter().any(|except| cidr.contains(except))
}

fn cidr_rule(rule: &CidrRule, scene: &Scene<'_>, peer: &Peer<'_>) -> bool {
    let groups = &scene.cluster.cidr_groups;
    match &rule.block {
        CidrBlock::Cidr(cidr) => in_cilium_block(cidr, &rule.except, scene, peer),
        CidrBlock::Group(name) => in_group(groups.get(name), &rule.except, scene, peer),
        CidrBlock::Groups(selector) => groups
            .values()
            .any(|group| selects(selector, &group.labels) && in_group(Some(group), &rule.except, scene, peer)),
    }
}

/// A group that cannot be used grants nothing; for a deny see [`unusable_group`].
fn in_group(group: Option<&CidrGroup>, except: &[IpNet], scene: &Scene<'_>, peer: &Peer<'_>) -> bool {
    let mut cidrs = group.into_iter().flat_map(|group| group.cidrs.iter().flatten());
    cidrs.any(|cidr| in_cilium_block(cidr, except, scene, peer))
}

/// Why a CiliumCIDRGroup that the element uses cannot be used, if one cannot: "a deny that cannot be used denies all of its
/// direction" (DESIGN 6), and so does one whose addresses are not known.
pub(super) fn unusable_group<'a>(peers: &CiliumPeers, scene: &Scene<'a>) -> Option<&'a Unusable> {
    let groups = &scene.cluster.cidr_groups;
    let named = |name: &Text| groups.get(name)?.cidrs.as_ref().err();
    match peers {
        CiliumPeers::Groups(names) => names.iter().find_map(named),
        CiliumPeers::Cidrs(rules) => rules.iter().find_map(|rule| match &rule.block {
            CidrBlock::Cidr(_) => None,
            CidrBlock::Group(name) => named(name),
            CidrBlock::Groups(selector) => groups
                .values()
                .filter(|group| selects(selector, &group.labels))
                .find_map(|one| one.cidrs.as_ref().err()),
        }),
        _ => None,
    }
}

/// IPBlock: "except is a slice of CIDRs that should not be included within an IPBlock".
fn in_block(cidr: &IpNet, except: &[IpNet], peer: &Peer<'_>) -> bool {
    cidr.contains(&peer.address) && !except.iter().any(|except| except.contains(&peer.address))
}

/// Cilium, `pkg/policy/api/entity.go` (reference 2.4). What Sluice has nothing of matches nothing.
const fn is_entity(entity: Entity, peer: &Peer<'_>) -> bool {
    let world = matches!(peer.kind, Kind::Masqueraded | Kind::Other);
    match entity {
        Entity::All => true,
        Entity::World => world,
        Entity::WorldIpv4 => world && peer.address.is_ipv4(),
        Entity::WorldIpv6 => world && peer.address.is_ipv6(),
        Entity::Cluster => !world || peer.api_server,
        Entity::Host => matches!(peer.kind, Kind::OwnNode),
        Entity::RemoteNode => matches!(peer.kind, Kind::RemoteNode),
        Entity::KubeApiserver => peer.api_server,
        Entity::Init | Entity::Ingress | Entity::Unmanaged | Entity::Health | Entity::None => false,
    }
}

/// `toServices`: the ready endpoints of the Services, whoever they are. A Service that is not there has none.
fn backs_service(selector: &ServiceSelector, scene: &Scene<'_>, peer: &Peer<'_>) -> bool {
    let is_meant = |service: &Service| match selector {
        ServiceSelector::Named { namespace, name } => {
            let there = namespace.as_ref().is_none_or(|namespace| *namespace == service.key.namespace);
            there && *name == service.key.name
        }
        ServiceSelector::Labels { namespace, selector } => {
            let there = namespace.as_ref().is_none_or(|namespace| *namespace == service.key.namespace);
            there && selects(selector, &service.labels)
        }
    };
    let meant = scene.cluster.services.values().filter(|service| is_meant(service));
    meant
        .flat_map(|service| services::slices_of(scene.cluster, service))
        .any(|slice| slice.ready.contains(&peer.address))
}

/// `nodes`, `fromNodes`, `toNodes`: an address of a node with these labels, never a pod with them (CVE-2025-30163).
fn node_of(selector: &LabelSelector, scene: &Scene<'_>, peer: &Peer<'_>) -> bool {
    let is_node = matches!(peer.kind, Kind::OwnNode | Kind::RemoteNode);
    let mut nodes = scene.cluster.nodes.values();
    is_node
        && nodes
            .any(|node| address::has(node.addresses.iter().copied(), peer.address) && selects(selector, &node.labels))
}

/// `toFQDNs`, `domainNames`: an address that one of the names was seen to resolve to. Pods and nodes keep what they are
/// (Cilium, "DNS based": in-cluster addresses are never selected).
fn resolved(names: &[NamePattern], scene: &Scene<'_>, peer: &Peer<'_>) -> bool {
    let known = scene.cluster.names.iter().filter(|(_, addresses)| addresses.contains_key(&peer.address));
    matches!(peer.kind, Kind::Other) && known.into_iter().any(|(name, _)| names.iter().any(|one| one.matches(name)))
}

const fn pod_of<'a>(peer: &Peer<'a>) -> Option<&'a Pod> {
    match peer.kind {
        Kind::Pod(pod) => Some(pod),
        Kind::OwnNode | Kind::RemoteNode | Kind::Masqueraded | Kind::Other => None,
    }
}

/// Whether a cilium.io element names the own node itself: the entity `host`, or a selector that asks for `reserved:host` and
/// selects the node (DESIGN 6.3: "only an explicit cilium.io deny of `host` overrides").
pub(super) fn names_host(peers: &CiliumPeers, peer: &Peer<'_>) -> bool {
    use crate::model::selector::{CiliumSelector, LabelSource, Operator};
    let asks_for_host = |selector: &CiliumSelector| {
        selector.requirements.iter().any(|one| {
            let key: &Text = &one.requirement.key;
            one.source == LabelSource::Reserved
                && &**key == "host"
                && matches!(one.requirement.operator, Operator::In | Operator::Exists)
        })
    };
    match peers {
        CiliumPeers::Entities(entities) => entities.contains(&Entity::Host),
        CiliumPeers::Endpoints(selectors) => {
            selectors.iter().any(|selector| asks_for_host(selector) && peer.labels.selected_by(selector))
        }
        _ => false,
    }
}
