//! What rules ask of a peer. The identity of an address is the set of predicates that hold for it.

use ipnet::IpNet;

use super::view::{CiliumView, POD_NAMESPACE, PodView, matches};
use crate::cluster::{Labels, NAMESPACE_NAME_LABEL};
use crate::l7::dns::NamePattern;
use crate::model::Text;
use crate::model::cilium::{Entity, ServiceSelector};
use crate::model::selector::{CiliumRequirement, CiliumSelector, LabelSelector, LabelSource, Operator, Requirement};

/// A condition on an address. Equal conditions of different rules are equal values.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Predicate {
    /// A managed pod (live, not `hostNetwork`) of these namespaces with these labels.
    Pods {
        /// Where.
        namespaces: Namespaces,
        /// Which.
        pods: LabelSelector,
    },
    /// An address of the block and of none of the exceptions.
    Block {
        /// The block.
        cidr: IpNet,
        /// Left out; sorted, none inside of another.
        except: Vec<IpNet>,
        /// Whether the addresses of managed pods and nodes count (not in cilium.io rules, DESIGN 6.2).
        managed: bool,
    },
    /// What Cilium's labels of the address say (`fromEndpoints`, `toEndpoints`).
    Endpoints(CiliumSelector),
    /// An entity of Cilium. Never [`Entity::All`] (no predicate is needed) and never one that Sluice has nothing of.
    Entity(Entity),
    /// An address of a node with these labels, the own node included.
    Nodes(LabelSelector),
    /// A ready backend of one of these Services (`toServices`).
    Services(ServiceSelector),
    /// An address, not of a managed pod or node, that a name of this pattern was seen to resolve to.
    Name(NamePattern),
}

/// Which namespaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespaces {
    /// This one.
    Named(Text),
    /// Those with these labels.
    Labelled(LabelSelector),
}

/// Whose an address is, as far as labels go.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind<'a> {
    /// A managed pod's.
    Pod(PodView<'a>),
    /// The own node's.
    OwnNode,
    /// Another node's.
    RemoteNode,
    /// Nobody's that is known.
    Other,
}

impl Predicate {
    /// Whether it holds for what has these labels. Of blocks, Services and names, which are about the address, it does not.
    pub(super) fn holds(&self, kind: &Kind<'_>, v4: bool, api_server: bool, nodes: &[&Labels]) -> bool {
        match (self, kind) {
            (Self::Pods { namespaces, pods }, Kind::Pod(pod)) => {
                namespaces.holds(pod.namespace, pod.namespace_labels) && matches(pods, pod.labels)
            }
            (Self::Endpoints(selector), Kind::Pod(pod)) => CiliumView::Pod(*pod).matches(selector),
            (Self::Endpoints(selector), kind) => {
                let mut keys = match kind {
                    Kind::Pod(_) => vec![],
                    Kind::OwnNode => vec!["host"],
                    Kind::RemoteNode => vec!["remote-node"],
                    Kind::Other if v4 => vec!["world", "world-ipv4"],
                    Kind::Other => vec!["world", "world-ipv6"],
                };
                if api_server {
                    keys.push("kube-apiserver");
                }
                CiliumView::Reserved(&keys).matches(selector)
            }
            (Self::Entity(entity), kind) => is_entity(*entity, kind, v4, api_server),
            (Self::Nodes(selector), Kind::OwnNode | Kind::RemoteNode) => {
                nodes.iter().any(|labels| matches(selector, labels))
            }
            (
                Self::Pods { .. } | Self::Nodes(_) | Self::Block { .. } | Self::Services(_) | Self::Name(_),
                Kind::Pod(_) | Kind::OwnNode | Kind::RemoteNode | Kind::Other,
            ) => false,
        }
    }
}

impl Predicate {
    /// The namespaces whose pods it can hold for, if it names them.
    pub(super) fn namespaces(&self) -> Option<&[Text]> {
        match self {
            Self::Pods { namespaces: Namespaces::Named(name), .. } => Some(std::slice::from_ref(name)),
            Self::Pods { namespaces: Namespaces::Labelled(selector), .. } => {
                let named =
                    |one: &&Requirement| one.operator == Operator::In && one.key.as_ref() == NAMESPACE_NAME_LABEL;
                selector.requirements.iter().find(named).map(|one| one.values.as_slice())
            }
            Self::Endpoints(selector) => {
                let named = |one: &&CiliumRequirement| {
                    one.requirement.operator == Operator::In
                        && one.requirement.key.as_ref() == POD_NAMESPACE
                        && one.source != LabelSource::Reserved
                };
                selector.requirements.iter().find(named).map(|one| one.requirement.values.as_slice())
            }
            Self::Block { .. } | Self::Entity(_) | Self::Nodes(_) | Self::Services(_) | Self::Name(_) => None,
        }
    }
}

impl Namespaces {
    /// Whether a namespace is one of them.
    pub(super) fn holds(&self, name: &str, labels: &Labels) -> bool {
        match self {
            Self::Named(named) => named.as_ref() == name,
            Self::Labelled(selector) => matches(selector, labels),
        }
    }
}

const fn is_entity(entity: Entity, kind: &Kind<'_>, v4: bool, api_server: bool) -> bool {
    let other = matches!(kind, Kind::Other);
    match entity {
        Entity::All => true,
        Entity::World => other,
        Entity::WorldIpv4 => other && v4,
        Entity::WorldIpv6 => other && !v4,
        Entity::Cluster => !other || api_server,
        Entity::Host => matches!(kind, Kind::OwnNode),
        Entity::RemoteNode => matches!(kind, Kind::RemoteNode),
        Entity::KubeApiserver => api_server,
        Entity::Init | Entity::Ingress | Entity::Unmanaged | Entity::Health | Entity::None => false,
    }
}

/// Whether all of a prefix is in a block; one that is partly in it is not. The exceptions are sorted, and none is inside of
/// another: only the last that is not after the prefix can contain it.
pub(super) fn in_block(cidr: &IpNet, except: &[IpNet], prefix: &IpNet) -> bool {
    let before = except.partition_point(|one| one <= prefix);
    let nearest = before.checked_sub(1).and_then(|at| except.get(at));
    cidr.contains(prefix) && !nearest.is_some_and(|except| except.contains(prefix))
}
