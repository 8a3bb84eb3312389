//! Services of a vector, and the EndpointSlices that a controller would write for them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::super::schema::{Family, ServicePortSpec, ServiceSpec, TargetPort};
use super::{Fault, World};
use crate::cluster::{
    Endpoint, EndpointSlice, Event, Labels, NamedPort, Object, ObjectId, ObjectKey, Pod, PodKey, Service, ServicePort,
};
use crate::flow::Protocol;
use crate::model::Text;

/// A Service whose EndpointSlices are ours to write.
#[derive(Debug)]
pub(super) struct Made {
    families: Vec<Family>,
    ports: Vec<ServicePortSpec>,
    backing: Backing,
}

/// Who is behind a Service.
#[derive(Debug)]
enum Backing {
    /// The pods of its namespace with these labels.
    Selector(Labels),
    /// These addresses.
    Addresses(Vec<IpAddr>),
    /// This pod: a Service that was made up for it.
    Pod(PodKey),
}

/// A Service's address and port, and one backend behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// The Service.
    pub service: ObjectKey,
    /// The address that is dialled.
    pub frontend: IpAddr,
    /// Address of the backend.
    pub backend: IpAddr,
    /// Its port.
    pub port: u16,
}

impl World {
    pub(super) fn service(&mut self, key: &ObjectKey, spec: &ServiceSpec) {
        let mut addresses = spec.cluster_addresses.clone();
        if addresses.is_empty() && !spec.headless {
            addresses = self.allocate();
        }
        let families = if spec.headless {
            vec![Family::V4, Family::V6]
        } else {
            [Family::V4, Family::V6]
                .into_iter()
                .filter(|family| addresses.iter().any(|address| Family::of(*address) == *family))
                .collect()
        };
        addresses.extend(&spec.external_addresses);
        let backing = match &spec.selector {
            Some(selector) => Backing::Selector(selector.clone()),
            None => Backing::Addresses(spec.endpoints.clone()),
        };
        self.make(key, spec.labels.clone(), addresses, Made { families, ports: spec.ports.clone(), backing });
    }

    fn make(&mut self, key: &ObjectKey, labels: Labels, addresses: Vec<IpAddr>, made: Made) {
        let several = made.ports.len() > 1;
        let ports = made.ports.iter().map(|port| ServicePort {
            name: port_name(port, several),
            protocol: port.protocol,
            port: port.port,
            node_port: port.node_port,
        });
        let selector = match &made.backing {
            Backing::Selector(selector) => Some(selector.clone()),
            Backing::Addresses(_) | Backing::Pod(_) => None,
        };
        self.upsert(Object::Service(Service {
            key: key.clone(),
            labels,
            addresses: addresses.into(),
            ports: ports.collect(),
            selector,
        }));
        self.services.insert(key.clone(), made);
    }

    /// An address of each family, from the ranges for benchmarks (RFC 2544, RFC 5180), which no cluster uses.
    fn allocate(&mut self) -> Vec<IpAddr> {
        loop {
            self.allocated += 1;
            let offset = self.allocated & 0x1_ffff;
            let v4 = IpAddr::V4(Ipv4Addr::from_bits(0xc612_0000 | offset));
            let v6 = IpAddr::V6(Ipv6Addr::from_bits(0x2001_0002_u128 << 96 | u128::from(offset)));
            let cluster = &self.cluster;
            let taken = cluster
                .services
                .values()
                .any(|service| service.addresses.contains(&v4) || service.addresses.contains(&v6))
                || cluster.pods.values().any(|pod| pod.addresses.contains(&v4) || pod.addresses.contains(&v6));
            if !taken || self.allocated > 0x1_ffff {
                return vec![v4, v6];
            }
        }
    }

    /// Writes the slices that follow from the Services and pods as they are now.
    pub(super) fn follow(&mut self) {
        let mut wanted: BTreeMap<ObjectKey, EndpointSlice> = BTreeMap::new();
        for (key, made) in &self.services {
            for slice in self.slices(key, made) {
                wanted.insert(slice.key.clone(), slice);
            }
        }
        let ours = |slice: &EndpointSlice| slice.key.name.starts_with(PREFIX);
        let gone: Vec<ObjectKey> = self
            .cluster
            .slices
            .values()
            .filter(|slice| ours(slice) && !wanted.contains_key(&slice.key))
            .map(|slice| slice.key.clone())
            .collect();
        for key in gone {
            self.event(Event::Delete(ObjectId::EndpointSlice(key)));
        }
        for (key, slice) in wanted {
            if self.cluster.slices.get(&key) != Some(&slice) {
                self.upsert(Object::EndpointSlice(slice));
            }
        }
    }

    fn slices(&self, key: &ObjectKey, made: &Made) -> Vec<EndpointSlice> {
        let mut slices = Vec::new();
        for family in &made.families {
            // Pods whose ports are other numbers are in slices of their own.
            let mut groups: BTreeMap<Vec<NamedPort>, Vec<Endpoint>> = BTreeMap::new();
            let of = |addresses: &[IpAddr]| -> Vec<IpAddr> {
                addresses.iter().copied().filter(|address| Family::of(*address) == *family).collect()
            };
            let mut put = |pod: Option<&Pod>, addresses: Vec<IpAddr>, ready: bool| {
                if !addresses.is_empty() {
                    groups
                        .entry(resolve(&made.ports, pod))
                        .or_default()
                        .push(Endpoint { addresses: addresses.into(), ready });
                }
            };
            match &made.backing {
                Backing::Addresses(addresses) => {
                    for address in of(addresses) {
                        put(None, vec![address], true);
                    }
                }
                Backing::Selector(selector) => {
                    let selected = |pod: &&Arc<Pod>| {
                        pod.key.namespace == key.namespace
                            && !pod.finished
                            && selector.iter().all(|(name, value)| pod.labels.get(name) == Some(value))
                    };
                    for pod in self.cluster.pods.values().filter(selected) {
                        put(Some(pod), of(&pod.addresses.to_vec()), pod.ready);
                    }
                }
                Backing::Pod(key) => {
                    if let Some(pod) = self.cluster.pods.get(key).filter(|pod| !pod.finished) {
                        put(Some(pod), of(&pod.addresses.to_vec()), true);
                    }
                }
            }
            for (index, (ports, endpoints)) in groups.into_iter().enumerate() {
                let name = format!("{PREFIX}{}-{}-{index}", key.name, family.as_str().to_ascii_lowercase());
                slices.push(EndpointSlice {
                    key: ObjectKey { namespace: Arc::clone(&key.namespace), name: name.into() },
                    service: Some(Arc::clone(&key.name)),
                    ports: ports.into(),
                    endpoints,
                });
            }
        }
        slices
    }

    /// Makes up Services for pods, each with these ports (protocol, port, port of the pod), in addition to those that it has.
    ///
    /// # Errors
    /// One port would lead to two ports of the pod.
    pub fn make_up(
        &mut self,
        wanted: &BTreeMap<PodKey, BTreeSet<(Protocol, u16, u16)>>,
        path: &str,
    ) -> Result<(), Fault> {
        for (pod, wanted) in wanted {
            let key = made_up(pod);
            let mut ports: BTreeMap<(Protocol, u16), u16> = BTreeMap::new();
            let known = self.services.get(&key);
            let before = known.map_or(0, |known| known.ports.len());
            for port in known.iter().flat_map(|known| &known.ports) {
                if let TargetPort::Number(target) = port.target {
                    ports.insert((port.protocol, port.port), target);
                }
            }
            for (protocol, port, target) in wanted {
                if ports.insert((*protocol, *port), *target).is_some_and(|earlier| earlier != *target) {
                    let message =
                        format!("port {port}/{protocol} of {pod} leads to two targetPorts: declare a Service");
                    return Err(Fault::new(path, message));
                }
            }
            if ports.len() == before {
                continue;
            }
            let addresses = match self.cluster.services.get(&key) {
                Some(service) => service.addresses.to_vec(),
                None => self.allocate(),
            };
            let ports = ports.into_iter().map(|((protocol, port), target)| ServicePortSpec {
                name: Some(format!("{}-{port}", protocol.to_string().to_ascii_lowercase()).into()),
                port,
                target: TargetPort::Number(target),
                protocol,
                node_port: None,
            });
            let made = Made {
                families: vec![Family::V4, Family::V6],
                ports: ports.collect(),
                backing: Backing::Pod(pod.clone()),
            };
            self.make(&key, Labels::default(), addresses, made);
        }
        self.follow();
        Ok(())
    }

    /// The least Service that leads from this port to this address, and how.
    #[must_use]
    pub fn in_front_of(&self, backend: IpAddr, protocol: Protocol, port: u16, target: Option<u16>) -> Option<Behind> {
        let behind = |service: &Service| {
            self.behind(service, protocol, |candidate| candidate.port == port, Family::of(backend))
                .into_iter()
                .find(|behind| behind.backend == backend && target.is_none_or(|target| target == behind.port))
        };
        self.cluster.services.values().find_map(behind)
    }

    /// The same, from a node port; the address is that of the node.
    #[must_use]
    pub fn in_front_by_node_port(&self, backend: IpAddr, protocol: Protocol, port: u16) -> Option<Behind> {
        let behind = |service: &Service| {
            self.targets(service, protocol, |candidate| candidate.node_port == Some(port), Family::of(backend))
                .into_iter()
                .find(|(address, _)| *address == backend)
                .map(|(backend, port)| Behind { service: service.key.clone(), frontend: backend, backend, port })
        };
        self.cluster.services.values().find_map(behind)
    }

    /// All ready backends of a Service's port, if it is dialled in this family.
    #[must_use]
    pub fn behind(
        &self,
        service: &Service,
        protocol: Protocol,
        port: impl Fn(&ServicePort) -> bool,
        family: Family,
    ) -> Vec<Behind> {
        let Some(frontend) = service.addresses.iter().find(|address| Family::of(*address) == family) else {
            return Vec::new();
        };
        let targets = self.targets(service, protocol, port, family).into_iter();
        targets.map(|(backend, port)| Behind { service: service.key.clone(), frontend, backend, port }).collect()
    }

    fn targets(
        &self,
        service: &Service,
        protocol: Protocol,
        port: impl Fn(&ServicePort) -> bool,
        family: Family,
    ) -> Vec<(IpAddr, u16)> {
        let Some(port) = service.ports.iter().find(|candidate| candidate.protocol == protocol && port(candidate))
        else {
            return Vec::new();
        };
        let mut targets = BTreeSet::new();
        let slices = self.cluster.slices.values().filter(|slice| {
            slice.key.namespace == service.key.namespace && slice.service.as_ref() == Some(&service.key.name)
        });
        for slice in slices {
            let Some(target) =
                slice.ports.iter().find(|target| target.name == port.name && target.protocol == protocol)
            else {
                continue;
            };
            for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.ready) {
                let of = endpoint.addresses.iter().filter(|address| Family::of(*address) == family);
                targets.extend(of.map(|address| (address, target.port)));
            }
        }
        targets.into_iter().collect()
    }

    /// The Service that was made up for a pod.
    #[must_use]
    pub fn made_up_for(&self, pod: &PodKey) -> Option<&Service> {
        self.cluster.services.get(&made_up(pod))
    }
}

/// Begins the names of what is made up.
const PREFIX: &str = "vector--";

fn made_up(pod: &PodKey) -> ObjectKey {
    ObjectKey { namespace: Arc::clone(&pod.namespace), name: format!("{PREFIX}{}", pod.name).into() }
}

fn port_name(port: &ServicePortSpec, several: bool) -> Text {
    match &port.name {
        Some(name) => Arc::clone(name),
        None if several => format!("{}-{}", port.protocol.to_string().to_ascii_lowercase(), port.port).into(),
        None => Text::from(""),
    }
}

/// The ports of a slice for this pod. A name that the pod has no port of leads nowhere.
fn resolve(ports: &[ServicePortSpec], pod: Option<&Pod>) -> Vec<NamedPort> {
    let several = ports.len() > 1;
    let resolved = ports.iter().filter_map(|port| {
        let number = match &port.target {
            TargetPort::Number(number) => *number,
            TargetPort::Named(name) => {
                let named =
                    pod?.template.ports.iter().find(|named| named.name == *name && named.protocol == port.protocol)?;
                named.port
            }
        };
        Some(NamedPort { name: port_name(port, several), protocol: port.protocol, port: number })
    });
    resolved.collect()
}
