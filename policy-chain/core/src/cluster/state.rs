//! The owner of all objects.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

use super::interner::Interner;
use super::names::{Ends, Names};
use super::objects::Objects;
use super::{
    CidrGroup, EndpointSlice, Event, Labels, NAMESPACE_NAME_LABEL, Namespace, Node, Object, ObjectId, ObjectKey, Pod,
    PodKey, Service,
};
use crate::l7::dns::Name;
use crate::model::{Policy, PolicyRef, Text};

/// All objects that are known, as plain maps. Change them by [`Self::apply`] only: it keeps what they promise.
///
/// - A [`Namespace`] has the label [`NAMESPACE_NAME_LABEL`] with its name.
/// - No address is IPv4-mapped, and no list of addresses has one twice.
/// - [`Self::names`] holds what has not ended by the latest [`Event::Time`], at most
///   [`super::MAX_ADDRESSES_OF_A_NAME`] addresses for each name and [`super::MAX_ADDRESSES_OF_NAMES`] for all. What is too much
///   is forgotten, beginning with what ends first (what never ends comes last; of equals the least name and address). A
///   rule that allows a name then does not allow that address: too little is allowed, never too much.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// Namespaces by name. A namespace that is not here may have pods and policies: [`Self::namespace_labels`].
    pub namespaces: BTreeMap<Text, Namespace>,
    /// Pods.
    pub pods: Objects<PodKey, Arc<Pod>>,
    /// Nodes by name.
    pub nodes: BTreeMap<Text, Node>,
    /// Services.
    pub services: Objects<ObjectKey, Service>,
    /// EndpointSlices.
    pub slices: Objects<ObjectKey, EndpointSlice>,
    /// CiliumCIDRGroups by name.
    pub cidr_groups: BTreeMap<Text, CidrGroup>,
    /// Policies.
    pub policies: Objects<PolicyRef, Arc<Policy>>,
    /// Addresses of names, and when each is forgotten (none: never).
    pub names: Names,
    /// Addresses of names that were forgotten because there were too many, ever.
    pub names_overflowed: u64,
    pub(super) ends: Ends,
    interner: Interner,
}

impl PartialEq for Cluster {
    /// Whether the same objects and names are known.
    fn eq(&self, other: &Self) -> bool {
        self.namespaces == other.namespaces
            && self.pods == other.pods
            && self.nodes == other.nodes
            && self.services == other.services
            && self.slices == other.slices
            && self.cidr_groups == other.cidr_groups
            && self.policies == other.policies
            && self.names == other.names
    }
}

/// What an event changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// Nothing that was known.
    Nothing,
    /// The event's object: it is new, other than before, or gone.
    Object,
    /// These names have other addresses than before: learned, ended, or forgotten because there were too many. Not named
    /// is one of which only the end moved.
    Names(BTreeSet<Name>),
}

impl Applied {
    const fn object(changed: bool) -> Self {
        if changed { Self::Object } else { Self::Nothing }
    }

    fn names(names: BTreeSet<Name>) -> Self {
        if names.is_empty() { Self::Nothing } else { Self::Names(names) }
    }
}

impl Cluster {
    /// Takes an event in, and says what it changed.
    pub fn apply(&mut self, event: Event) -> Applied {
        match event {
            Event::Upsert(object) => Applied::object(self.upsert(object)),
            Event::Delete(id) => Applied::object(self.delete(&id)),
            Event::Resolved { name, addresses, until } => Applied::names(self.resolved(&name, &addresses, until)),
            Event::Time(now) => Applied::names(self.time(now)),
        }
    }

    /// The labels of a namespace; of one without object, its name only.
    #[must_use]
    pub fn namespace_labels(&self, name: &str) -> Labels {
        match self.namespaces.get(name) {
            Some(namespace) => namespace.labels.clone(),
            None => Labels::new([(NAMESPACE_NAME_LABEL.into(), name.into())]),
        }
    }

    /// Less room for what is held.
    pub(crate) fn pack(&mut self) {
        self.interner.pack();
        self.pods.pack();
        self.services.pack();
        self.slices.pack();
        self.policies.pack();
    }

    fn upsert(&mut self, object: Object) -> bool {
        match object {
            Object::Namespace(mut namespace) => {
                if namespace.labels.get(NAMESPACE_NAME_LABEL) != Some(&namespace.name) {
                    namespace.labels = namespace.labels.with(NAMESPACE_NAME_LABEL.into(), Arc::clone(&namespace.name));
                }
                namespace.labels = self.interner.labels(&namespace.labels);
                put(&mut self.namespaces, Arc::clone(&namespace.name), namespace)
            }
            Object::Pod(pod) => {
                let before = self.pods.get(&pod.key).cloned();
                let changed = before.as_deref() != Some(&pod);
                if changed {
                    self.pods.put(Arc::new(self.interner.pod(pod, before.as_deref())));
                }
                changed
            }
            Object::Node(mut node) => {
                canonical(&mut node.addresses);
                node.labels = self.interner.labels(&node.labels);
                put(&mut self.nodes, Arc::clone(&node.name), node)
            }
            Object::Service(service) => self.services.put(self.interner.service(service)),
            Object::EndpointSlice(slice) => self.slices.put(self.interner.slice(slice)),
            Object::CidrGroup(mut group) => {
                for cidr in group.cidrs.iter_mut().flatten() {
                    *cidr = canonical_net(*cidr);
                }
                put(&mut self.cidr_groups, Arc::clone(&group.name), group)
            }
            Object::Policy(policy) => self.policies.put(Arc::new(self.interner.policy(policy))),
        }
    }

    fn delete(&mut self, id: &ObjectId) -> bool {
        match id {
            ObjectId::Namespace(name) => self.namespaces.remove(name).is_some(),
            ObjectId::Pod(key) => self.pods.remove(key),
            ObjectId::Node(name) => self.nodes.remove(name).is_some(),
            ObjectId::Service(key) => self.services.remove(key),
            ObjectId::EndpointSlice(key) => self.slices.remove(key),
            ObjectId::CidrGroup(name) => self.cidr_groups.remove(name).is_some(),
            ObjectId::Policy(id) => self.policies.remove(id),
        }
    }
}

/// Whether this changes the map.
fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: V) -> bool {
    match map.entry(key) {
        Entry::Occupied(mut entry) => {
            let changed = *entry.get() != value;
            if changed {
                entry.insert(value);
            }
            changed
        }
        Entry::Vacant(entry) => {
            entry.insert(value);
            true
        }
    }
}

/// IPv4-mapped addresses as IPv4, and none twice, in the order of the list.
fn canonical(addresses: &mut Vec<IpAddr>) {
    let mut seen = BTreeSet::new();
    for address in addresses.iter_mut() {
        *address = address.to_canonical();
    }
    addresses.retain(|address| seen.insert(*address));
    addresses.shrink_to_fit();
}

/// A block within `::ffff:0:0/96` as a block of IPv4; host bits cleared.
#[must_use]
pub fn canonical_net(net: IpNet) -> IpNet {
    let mapped = match net {
        IpNet::V6(net) if net.prefix_len() >= 96 => net.addr().to_ipv4_mapped().zip(net.prefix_len().checked_sub(96)),
        _ => None,
    };
    mapped.and_then(|(address, length)| Ipv4Net::new(address, length).ok()).map_or(net, IpNet::V4).trunc()
}
