//! What the service proxy translates, and to what.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Scene, address};
use crate::cluster::{Cluster, EndpointSlice, Service, ServicePort};
use crate::flow::Protocol;

/// The Service that an address and port stand for on this node: one of the Service's addresses with its port, or one of the
/// node's with its node port (DESIGN 7, "Egress to Services"). Of several that claim it, the least by namespace and name.
pub(super) fn frontend<'a>(
    scene: &Scene<'a>,
    address: IpAddr,
    protocol: Protocol,
    port: u16,
) -> Option<(&'a Service, &'a ServicePort)> {
    let at_node = address::own_node(scene).is_some_and(|node| address::has(node.addresses.iter().copied(), address));
    scene.cluster.services.values().find_map(|service| {
        let at_service = address::has(&service.addresses, address);
        let port = service.ports.iter().find(|one| {
            one.protocol == protocol && (at_service && one.port == port || at_node && one.node_port == Some(port))
        })?;
        Some((service, port))
    })
}

/// Where the service proxy may send it: the ready endpoints of the Service's slices, on the slice's port of the same name and
/// protocol, in the family of the address that was dialled (the proxy translates within a family).
pub(super) fn backends(
    cluster: &Cluster,
    service: &Service,
    port: &ServicePort,
    dialled: IpAddr,
) -> BTreeSet<(IpAddr, u16)> {
    let mut backends = BTreeSet::new();
    for slice in slices_of(cluster, service) {
        let Some(target) = slice.ports.iter().find(|one| one.name == port.name && one.protocol == port.protocol) else {
            continue;
        };
        let same_family = slice.ready.iter().filter(|address| address.is_ipv4() == dialled.is_ipv4());
        backends.extend(same_family.map(|address| (address, target.port)));
    }
    backends
}

/// The EndpointSlices of a Service: of its namespace, with the label `kubernetes.io/service-name`.
pub(super) fn slices_of<'a>(cluster: &'a Cluster, service: &'a Service) -> impl Iterator<Item = &'a EndpointSlice> {
    cluster.slices.values().filter(|slice| {
        slice.key.namespace == service.key.namespace && slice.service.as_ref() == Some(&service.key.name)
    })
}
