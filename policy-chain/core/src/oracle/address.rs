//! Who has an address, and what is known of it.

use std::net::IpAddr;

use super::Scene;
use super::labels::CiliumLabels;
use crate::cluster::{Cluster, Node, Pod};
use crate::flow::{Direction, Origin};

/// Whose an address is. No other answer is possible, and none is two of these.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind<'a> {
    /// A managed pod's.
    Pod(&'a Pod),
    /// The own node's: Cilium's `host`.
    OwnNode,
    /// Another known node's: Cilium's `remote-node`.
    RemoteNode,
    /// The own node's, of a packet that the node only forwarded, so that nobody knows who sent it: Cilium's `world`, and in no
    /// block of its rules, for those are about who sent it.
    Masqueraded,
    /// Nobody's in the cluster, as far as policies know: Cilium's `world`.
    Other,
}

/// The other side of a flow.
#[derive(Debug)]
pub(super) struct Peer<'a> {
    /// Its address.
    pub(super) address: IpAddr,
    /// Whose that is.
    pub(super) kind: Kind<'a>,
    /// Whether it backs `default/kubernetes`, whatever else it is (Cilium, `pkg/policy/api/entity.go`; reference 2.4).
    pub(super) api_server: bool,
    /// Cilium's labels of it.
    pub(super) labels: CiliumLabels,
}

impl<'a> Peer<'a> {
    fn new(scene: &Scene<'a>, address: IpAddr, kind: Kind<'a>, api_server: bool) -> Self {
        let labels = CiliumLabels::of(scene.cluster, address, kind, api_server);
        Self { address, kind, api_server, labels }
    }

    /// The own node itself, where a packet came from no interface.
    pub(super) fn own_node(scene: &Scene<'a>, address: IpAddr) -> Self {
        Self::new(scene, address, Kind::OwnNode, is_api_server(scene.cluster, address))
    }

    /// Who has the address.
    pub(super) fn of(scene: &Scene<'a>, direction: Direction, origin: Origin, address: IpAddr) -> Self {
        let api_server = is_api_server(scene.cluster, address);
        // "To itself through its Service: source is the pod" (DESIGN 6.11), whoever else claims its address.
        if origin == Origin::Hairpin {
            return Self::new(scene, address, Kind::Pod(scene.subject), api_server);
        }
        if let Some(pod) = pod_at(scene.cluster, address) {
            return Self::new(scene, address, Kind::Pod(pod), api_server);
        }
        if own_node(scene).is_some_and(|node| has(node.addresses.iter().copied(), address)) {
            // "A forwarded packet whose source was SNATed to the node's address is not the node: world" (DESIGN 6.3;
            // Cilium #23603), nor is it whatever else the node's address may be.
            if direction == Direction::Ingress {
                return Self::new(scene, address, Kind::Masqueraded, false);
            }
            return Self::new(scene, address, Kind::OwnNode, api_server);
        }
        if scene.cluster.nodes.values().any(|node| has(node.addresses.iter().copied(), address)) {
            return Self::new(scene, address, Kind::RemoteNode, api_server);
        }
        Self::new(scene, address, Kind::Other, api_server)
    }
}

/// Whether an address is among these; `::ffff:192.0.2.1` is 192.0.2.1 (RFC 4291 2.5.5.2).
pub(super) fn has(addresses: impl IntoIterator<Item = IpAddr>, address: IpAddr) -> bool {
    addresses.into_iter().any(|one| one.to_canonical() == address)
}

/// Whether policies speak of the pod itself: it has an address that is not its node's, and still has it
/// (DESIGN 6.9; Network Policies, "NetworkPolicy and hostNetwork pods"; "Pod lifecycle").
pub(super) const fn is_managed(pod: &Pod) -> bool {
    !pod.host_network && !pod.finished
}

/// The pod that has an address: the youngest that claims it, because the others' status is late (an address is given out
/// again before the API knows that its last owner is gone).
fn pod_at(cluster: &Cluster, address: IpAddr) -> Option<&Pod> {
    cluster
        .pods
        .values()
        .filter(|pod| is_managed(pod) && has(&pod.addresses, address))
        .max_by_key(|pod| (&pod.created, &pod.key))
        .map(AsRef::as_ref)
}

/// The node that this gate is on.
pub(super) fn own_node<'a>(scene: &Scene<'a>) -> Option<&'a Node> {
    scene.cluster.nodes.get(scene.settings.node.as_ref()?)
}

fn is_api_server(cluster: &Cluster, address: IpAddr) -> bool {
    cluster
        .slices
        .values()
        .filter(|slice| &*slice.key.namespace == "default" && slice.service.as_deref() == Some("kubernetes"))
        .any(|slice| slice.ready.contains(&address))
}
