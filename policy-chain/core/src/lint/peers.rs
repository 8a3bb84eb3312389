//! Peers of rules, as sets of addresses that can be compared: only what is proven counts.

use ipnet::IpNet;

use super::values::Labelled;
use crate::compile::view::{CiliumView, POD_NAMESPACE};
use crate::l7::dns::NamePattern;
use crate::model::Text;
use crate::model::cilium::{CidrBlock, CiliumPeers, Entity, ServiceSelector};
use crate::model::cluster_network_policy::ClusterPeer;
use crate::model::network_policy::{NetworkPeer, NetworkPeers};
use crate::model::selector::{CiliumSelector, LabelSource, Operator, Requirement};

/// Addresses that are no pod's, by what they are and whether they are the API server's: a bit each.
pub(super) type Kinds = u8;

const OWN_NODE: Kinds = 0b0000_0011;
const REMOTE_NODE: Kinds = 0b0000_1100;
const WORLD_V4: Kinds = 0b0011_0000;
const WORLD_V6: Kinds = 0b1100_0000;
const WORLD: Kinds = WORLD_V4 | WORLD_V6;
const NODES: Kinds = OWN_NODE | REMOTE_NODE;
const API_SERVER: Kinds = 0b1010_1010;
const ALL: Kinds = 0xff;

/// Some addresses.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Part {
    /// Managed pods.
    Pods(Labelled),
    /// All that is of one of these kinds.
    Kinds(Kinds),
    /// A block, without the exceptions.
    Block {
        cidr: IpNet,
        except: Vec<IpNet>,
        /// Whether pods and nodes count for sure. Of cilium.io rules a setting says so.
        managed: bool,
    },
    /// Nodes with these labels.
    Nodes(Labelled),
    /// What names were seen to resolve to.
    Name(NamePattern),
    /// Backends of Services.
    Services(ServiceSelector),
    /// What CIDR groups hold: it may change at any time.
    Group(CidrBlock, Vec<IpNet>),
}

/// The peers of a rule: all of its parts together.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Peers {
    pub(super) parts: Vec<Part>,
}

impl Peers {
    pub(super) fn anyone() -> Self {
        Self { parts: vec![Part::Pods(Labelled::default()), Part::Kinds(ALL)] }
    }

    pub(super) fn network(peers: &NetworkPeers, namespace: Option<&Text>) -> Self {
        let NetworkPeers::Of(peers) = peers else { return Self::anyone() };
        let mut parts = Vec::new();
        for peer in peers.iter().flatten() {
            match peer {
                NetworkPeer::Pods { namespaces: Some(namespaces), pods } => {
                    parts.push(Part::Pods(Labelled::pods_in(namespaces, pods)));
                }
                NetworkPeer::Pods { namespaces: None, pods } => {
                    parts.push(Part::Pods(Labelled::pods_of(namespace, pods)))
                }
                NetworkPeer::IpBlock { cidr, except } => {
                    parts.push(Part::Block { cidr: *cidr, except: except.clone(), managed: true });
                }
                NetworkPeer::Names(names) => parts.extend(names.iter().cloned().map(Part::Name)),
            }
        }
        Self { parts }
    }

    pub(super) fn cluster(peers: &[ClusterPeer]) -> Self {
        let mut parts = Vec::new();
        for peer in peers {
            match peer {
                ClusterPeer::Pods(subject) => parts.push(Part::Pods(Labelled::cluster(subject))),
                ClusterPeer::Networks(networks) => {
                    let block = |cidr: &IpNet| Part::Block { cidr: *cidr, except: Vec::new(), managed: true };
                    parts.extend(networks.iter().map(block));
                }
                ClusterPeer::Nodes(selector) => parts.push(Part::Nodes(Labelled::objects(selector))),
                ClusterPeer::Names(names) => parts.extend(names.iter().cloned().map(Part::Name)),
            }
        }
        Self { parts }
    }

    pub(super) fn cilium(peers: &CiliumPeers) -> Self {
        let mut parts = Vec::new();
        match peers {
            CiliumPeers::Any => return Self::anyone(),
            CiliumPeers::Nothing => {}
            CiliumPeers::Endpoints(selectors) => {
                for selector in selectors {
                    parts.push(Part::Pods(Labelled::endpoints(selector)));
                    parts.push(Part::Kinds(selected_kinds(selector)));
                }
            }
            CiliumPeers::Cidrs(rules) => parts.extend(rules.iter().map(|rule| match &rule.block {
                CidrBlock::Cidr(cidr) => Part::Block { cidr: *cidr, except: rule.except.clone(), managed: false },
                group => Part::Group(group.clone(), rule.except.clone()),
            })),
            CiliumPeers::Entities(entities) => {
                for entity in entities {
                    let (pods, kinds) = of_entity(*entity);
                    parts.extend(pods.map(Part::Pods));
                    parts.push(Part::Kinds(kinds));
                }
            }
            CiliumPeers::Services(services) => parts.extend(services.iter().cloned().map(Part::Services)),
            CiliumPeers::Groups(names) => {
                let group = |name: &Text| Part::Group(CidrBlock::Group(Text::clone(name)), Vec::new());
                parts.extend(names.iter().map(group));
            }
            CiliumPeers::Nodes(selectors) => {
                parts.extend(selectors.iter().map(|selector| Part::Nodes(Labelled::objects(selector))));
            }
            CiliumPeers::Names(names) => parts.extend(names.iter().cloned().map(Part::Name)),
        }
        parts.retain(|part| !matches!(part, Part::Kinds(0)));
        Self { parts }
    }

    fn kinds(&self) -> Kinds {
        self.parts.iter().fold(0, |kinds, part| if let Part::Kinds(more) = part { kinds | more } else { kinds })
    }

    fn has_pods(&self, pods: &Labelled) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Pods(own) if pods.within(own)))
    }

    /// Whether all addresses of these kinds, and all pods, are meant.
    fn has_all(&self, kinds: Kinds) -> bool {
        self.kinds() & kinds == kinds && self.has_pods(&Labelled::default())
    }

    /// Whether anyone is meant.
    pub(super) fn is_anyone(&self) -> bool {
        self.has_all(ALL)
    }

    /// Whether surely nobody is meant, in any cluster.
    pub(super) fn is_empty(&self) -> bool {
        self.parts.iter().all(Part::is_empty)
    }

    /// Whether everyone who is meant here is meant there too.
    pub(super) fn within(&self, other: &Self) -> bool {
        other.is_anyone() || self.parts.iter().all(|part| part.is_empty() || part.within(other))
    }

    /// Whether nobody can be meant by both.
    pub(super) fn apart(&self, other: &Self) -> bool {
        self.parts.iter().all(|one| other.parts.iter().all(|other| one.apart(other)))
    }
}

impl Part {
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Pods(pods) | Self::Nodes(pods) => pods.is_empty(),
            Self::Kinds(kinds) => *kinds == 0,
            Self::Block { cidr, except, .. } => excepts_all(cidr, except),
            Self::Name(_) | Self::Services(_) | Self::Group(..) => false,
        }
    }

    fn within(&self, all: &Peers) -> bool {
        let within_one = |test: &dyn Fn(&Self) -> bool| all.parts.iter().any(test);
        match self {
            Self::Pods(pods) => all.has_pods(pods),
            Self::Kinds(kinds) => all.kinds() & kinds == *kinds,
            Self::Block { cidr, except, managed } => {
                // Nodes have addresses of both families.
                let family = if cidr.addr().is_ipv4() { WORLD_V4 } else { WORLD_V6 };
                all.has_all(NODES | family)
                    || within_one(&|other| {
                        matches!(other, Self::Block { cidr: theirs, except: but, managed: sure }
                            if (*sure || !managed) && block_within(cidr, except, theirs, but))
                    })
            }
            Self::Nodes(nodes) => {
                all.kinds() & NODES == NODES
                    || within_one(&|other| matches!(other, Self::Nodes(theirs) if nodes.within(theirs)))
            }
            Self::Name(name) => {
                let exact = name.exact();
                all.kinds() & WORLD == WORLD
                    || within_one(&|other| {
                        matches!(other, Self::Name(theirs)
                            if theirs == name || exact.as_ref().is_some_and(|name| theirs.matches(name)))
                    })
            }
            Self::Services(_) => within_one(&|other| self == other),
            Self::Group(group, except) => within_one(&|other| {
                matches!(other, Self::Group(theirs, but)
                    if group == theirs && but.iter().all(|one| except.iter().any(|own| own.contains(one))))
            }),
        }
    }

    fn apart(&self, other: &Self) -> bool {
        match (self, other) {
            (one, other) if one.is_empty() || other.is_empty() => true,
            (Self::Pods(one), Self::Pods(other)) | (Self::Nodes(one), Self::Nodes(other)) => one.apart(other),
            (Self::Kinds(one), Self::Kinds(other)) => one & other == 0,
            (Self::Pods(_), Self::Kinds(_) | Self::Nodes(_) | Self::Name(_))
            | (Self::Kinds(_) | Self::Nodes(_) | Self::Name(_), Self::Pods(_))
            | (Self::Nodes(_), Self::Name(_))
            | (Self::Name(_), Self::Nodes(_)) => true,
            (Self::Nodes(_), Self::Kinds(kinds)) | (Self::Kinds(kinds), Self::Nodes(_)) => kinds & NODES == 0,
            (Self::Name(_), Self::Kinds(kinds)) | (Self::Kinds(kinds), Self::Name(_)) => kinds & WORLD == 0,
            (Self::Block { cidr: one, .. }, Self::Block { cidr: other, .. }) => {
                !one.contains(other) && !other.contains(one)
            }
            _ => false,
        }
    }
}

/// Whether a block without some parts lies in another without others.
fn block_within(cidr: &IpNet, except: &[IpNet], outer: &IpNet, outer_except: &[IpNet]) -> bool {
    let left_out = |one: &IpNet| {
        let meets = one.contains(cidr) || cidr.contains(one);
        !meets || except.iter().any(|own| own.contains(one))
    };
    outer.contains(cidr) && outer_except.iter().all(left_out)
}

/// Whether the exceptions leave nothing of a block.
pub(super) fn excepts_all(cidr: &IpNet, except: &[IpNet]) -> bool {
    IpNet::aggregate(&except.to_vec()).iter().any(|one| one.contains(cidr))
}

/// The kinds of addresses whose labels a selector of Cilium selects.
pub(super) fn selected_kinds(selector: &CiliumSelector) -> Kinds {
    let mut kinds = 0;
    let bases: [(Kinds, &[&str]); 4] = [
        (OWN_NODE, &["host"]),
        (REMOTE_NODE, &["remote-node"]),
        (WORLD_V4, &["world", "world-ipv4"]),
        (WORLD_V6, &["world", "world-ipv6"]),
    ];
    for (bits, labels) in bases {
        if CiliumView::Reserved(labels).matches(selector) {
            kinds |= bits & !API_SERVER;
        }
        let with: Vec<&str> = labels.iter().copied().chain(["kube-apiserver"]).collect();
        if CiliumView::Reserved(&with).matches(selector) {
            kinds |= bits & API_SERVER;
        }
    }
    kinds
}

/// Whether a selector of Cilium selects what is no pod only because that lacks a label.
pub(super) fn takes_outsiders(selector: &CiliumSelector) -> bool {
    selected_kinds(selector) != 0 && selector.requirements.iter().all(|one| is_of_lack(&one.requirement))
}

/// Whether a selector of Cilium for pods is held to no namespace because it asks for the lack of a `reserved:` label.
pub(super) fn takes_all_namespaces(selector: &CiliumSelector) -> bool {
    let (reserved, others): (Vec<_>, Vec<_>) =
        selector.requirements.iter().partition(|one| one.source == LabelSource::Reserved);
    !reserved.is_empty()
        && reserved.iter().all(|one| is_of_lack(&one.requirement))
        && !others.iter().any(|one| *one.requirement.key == *POD_NAMESPACE)
}

const fn is_of_lack(requirement: &Requirement) -> bool {
    matches!(requirement.operator, Operator::NotIn | Operator::DoesNotExist)
}

/// The pods and the kinds of other addresses that an entity means.
fn of_entity(entity: Entity) -> (Option<Labelled>, Kinds) {
    match entity {
        Entity::All => (Some(Labelled::default()), ALL),
        Entity::World => (None, WORLD),
        Entity::WorldIpv4 => (None, WORLD_V4),
        Entity::WorldIpv6 => (None, WORLD_V6),
        Entity::Cluster => (Some(Labelled::default()), NODES | API_SERVER),
        Entity::Host => (None, OWN_NODE),
        Entity::RemoteNode => (None, REMOTE_NODE),
        Entity::KubeApiserver => (Some(Labelled::api_server()), API_SERVER),
        Entity::Init | Entity::Ingress | Entity::Unmanaged | Entity::Health | Entity::None => (None, 0),
    }
}
