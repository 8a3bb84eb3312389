//! The state of the cluster that policies speak of: objects as plain data, and one owner that events are applied to.

mod interner;
mod label_set;
pub mod labels;
mod names;
mod objects;
mod state;
mod value;
mod visible;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::flow::Protocol;
use crate::model::{Policy, PolicyRef, Text, Usable};

pub use label_set::Labels;
pub use names::{MAX_ADDRESSES_OF_A_NAME, MAX_ADDRESSES_OF_NAMES, Names};
pub use objects::{Keyed, Objects};
pub use state::{Applied, Cluster, canonical_net};
pub use value::{AddressSet, Addresses, AddressesIter, Created, Uid};
pub use visible::{VISIBILITY_ANNOTATION, Visible};

/// The label that the API server keeps on every namespace: its name. Immutable.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Annotation with the addresses of a pod, separated by commas (AWS's name): its gate tells them before the API server knows
/// them, so that the other nodes' gates know the pod at once (DESIGN 6).
pub const POD_IPS_ANNOTATION: &str = "vpc.amazonaws.com/pod-ips";

/// Namespace and name of a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodKey {
    /// Namespace.
    pub namespace: Text,
    /// Name.
    pub name: Text,
}

impl std::fmt::Display for PodKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Name.
    pub name: Text,
    /// Labels, [`NAMESPACE_NAME_LABEL`] among them whatever the object says.
    pub labels: Labels,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub key: PodKey,
    /// The UID by which the container runtime knows the pod: for the mirror of a static pod, the value of its annotation
    /// `kubernetes.io/config.mirror`, else `metadata.uid`. Empty where there is none (a pod in a file).
    pub uid: Uid,
    /// `metadata.creationTimestamp`. Of two live pods that claim an address, the younger has it; of equally old ones, the one
    /// with the greater key.
    pub created: Created,
    /// Labels.
    pub labels: Labels,
    /// What the pods of a workload have in common.
    pub template: Arc<PodTemplate>,
    /// `spec.nodeName`, once it is scheduled.
    pub node: Option<Text>,
    /// `spec.hostNetwork`: it is its node, to every policy (DESIGN 6.9).
    pub host_network: bool,
    /// `status.phase` is `Succeeded` or `Failed`: it holds no address any more, whatever its status says.
    pub finished: bool,
    /// `status.podIPs`, else what the annotation `vpc.amazonaws.com/pod-ips` says.
    pub addresses: Addresses,
    /// Condition `Ready`.
    pub ready: bool,
    /// [`crate::model::AUDIT_ANNOTATION`]: its gate records verdicts and lets traffic pass.
    pub audit: bool,
}

/// What comes from the template of a pod, and is the same for all that were made from it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodTemplate {
    /// `spec.serviceAccountName`; `default` where there is none.
    pub service_account: Text,
    /// Container ports that have a name, of all containers and of init containers that stay.
    pub ports: Box<[NamedPort]>,
    /// [`VISIBILITY_ANNOTATION`]: what of the pod's traffic the proxy looks at although no rule asks for it. Sorted; of a
    /// direction, protocol and port there is one.
    pub visible: Box<[Visible]>,
}

/// A container port with a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// Name.
    pub name: Text,
    /// Protocol.
    pub protocol: Protocol,
    /// Number.
    pub port: u16,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Name.
    pub name: Text,
    /// Labels.
    pub labels: Labels,
    /// `status.addresses` that are IP addresses.
    pub addresses: Vec<IpAddr>,
}

/// Namespace and name of a Service or EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Namespace.
    pub namespace: Text,
    /// Name.
    pub name: Text,
}

/// A Service. One without an address that the service proxy translates (headless, ExternalName) has no `addresses`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Labels.
    pub labels: Labels,
    /// `spec.clusterIPs`, `spec.externalIPs` and `status.loadBalancer.ingress[].ip`.
    pub addresses: Addresses,
    /// Ports; what many Services have in common.
    pub ports: Arc<[ServicePort]>,
    /// `spec.selector`; none for a Service whose EndpointSlices someone else writes.
    pub selector: Option<Labels>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Name; empty where there is only one port.
    pub name: Text,
    /// Protocol.
    pub protocol: Protocol,
    /// The port that clients dial.
    pub port: u16,
    /// The port on every node, if it has one.
    pub node_port: Option<u16>,
}

/// An EndpointSlice (discovery.k8s.io/v1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub key: ObjectKey,
    /// The Service, from the label `kubernetes.io/service-name`; a slice without it belongs to none.
    pub service: Option<Text>,
    /// Ports of every endpoint in it: name, protocol, number. A port without number means "all ports" and is left out.
    pub ports: Arc<[NamedPort]>,
    /// Addresses of its endpoints that are ready (`conditions.ready`; missing is true). The service proxy sends to no others.
    pub ready: AddressSet,
}

/// A CiliumCIDRGroup (`cilium.io/v2`, and `v2alpha1`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CidrGroup {
    /// Name.
    pub name: Text,
    /// Labels.
    pub labels: Labels,
    /// `spec.externalCIDRs`, host bits cleared. An allow that uses a group that cannot be used grants nothing by it; a deny
    /// that does denies all of its direction.
    pub cidrs: Usable<Vec<IpNet>>,
}

/// An object that the policy set knows.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// Namespace.
    Namespace(Namespace),
    /// Pod.
    Pod(Pod),
    /// Node.
    Node(Node),
    /// Service.
    Service(Service),
    /// EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// CiliumCIDRGroup.
    CidrGroup(CidrGroup),
    /// A policy of any dialect.
    Policy(Policy),
}

impl Object {
    /// Which it is.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        match self {
            Self::Namespace(object) => ObjectId::Namespace(Text::clone(&object.name)),
            Self::Pod(object) => ObjectId::Pod(object.key.clone()),
            Self::Node(object) => ObjectId::Node(Text::clone(&object.name)),
            Self::Service(object) => ObjectId::Service(object.key.clone()),
            Self::EndpointSlice(object) => ObjectId::EndpointSlice(object.key.clone()),
            Self::CidrGroup(object) => ObjectId::CidrGroup(Text::clone(&object.name)),
            Self::Policy(object) => ObjectId::Policy(object.id().clone()),
        }
    }
}

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectId {
    /// Namespace, by name.
    Namespace(Text),
    /// Pod.
    Pod(PodKey),
    /// Node, by name.
    Node(Text),
    /// Service.
    Service(ObjectKey),
    /// EndpointSlice.
    EndpointSlice(ObjectKey),
    /// CiliumCIDRGroup, by name.
    CidrGroup(Text),
    /// Policy.
    Policy(PolicyRef),
}

/// A change of what is known. Applying one twice is applying it once.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The object is new, or is so now.
    Upsert(Object),
    /// The object is gone.
    Delete(ObjectId),
    /// A name was seen to resolve to addresses, until a time (seconds on the caller's clock). A later end wins.
    Resolved {
        /// The name asked for.
        name: crate::l7::dns::Name,
        /// Its addresses.
        addresses: Vec<IpAddr>,
        /// When this is forgotten; none: never.
        until: Option<u64>,
    },
    /// It is this time now: what ended is forgotten.
    Time(u64),
}

#[cfg(test)]
mod tests;
