//! What rules ask of a peer. The identity of an address is the set of predicates that hold for it.

use ipnet::IpNet;

use crate::l7::dns::NamePattern;
use crate::model::Text;
use crate::model::cilium::{Entity, ServiceSelector};
use crate::model::selector::{CiliumSelector, LabelSelector};

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
        /// Left out; sorted, without doubles.
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
