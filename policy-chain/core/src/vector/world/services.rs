//! Services of a vector, and the EndpointSlices that a controller would write for them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use serde_json::Value;

use super::super::schema::{Family, ServicePortSpec, ServiceSpec, TargetPort};
use super::{Fault, World};
use crate::cluster::{
    EndpointSlice, Event, Labels, NamedPort, Object, ObjectId, ObjectKey, Pod, PodKey, Service, ServicePort,
};
use crate::flow::Protocol;
use crate::model::Text;
use crate::parse;

/// A Service whose EndpointSlices are ours to write.
#[derive(Debug)]
pub(super) struct Made {
    families: Vec<Family>,
    ports: Vec<ServicePortSpec>,
    backing: Backing,
    /// It is an object that was applied, with slices that follow its selector as long as none of its own are applied.
    applied: bool,
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
        self.make(
            key,
            spec.labels.clone(),
            addresses,
            Made { families, ports: spec.ports.clone(), backing, applied: false },
        );
    }

    /// A Service to be applied, with the addresses that an API server would give it if it asks for none.
    pub(super) fn given_addresses<'v>(&mut self, value: &'v Value) -> Cow<'v, Value> {
        let text = |value: &'v Value, name: &str| value.get(name).and_then(Value::as_str);
        let spec = value.get("spec").filter(|_| text(value, "kind") == Some("Service")).and_then(Value::as_object);
        let Some(spec) = spec else { return Cow::Borrowed(value) };
        let asked =
            ["clusterIP", "clusterIPs"].iter().any(|name| spec.get(*name).is_some_and(|value| !value.is_null()));
        if asked || spec.get("type").and_then(Value::as_str) == Some("ExternalName") {
            return Cow::Borrowed(value);
        }
        let known = parse::object(value).object.and_then(|object| match object {
            Object::Service(service) => self.cluster.services.get(&service.key).map(|known| known.addresses.to_vec()),
            _ => None,
        });
        let addresses = known.filter(|known| !known.is_empty()).unwrap_or_else(|| self.allocate());
        let mut value = value.clone();
        if let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) {
            let addresses = addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
            spec.insert("clusterIPs".into(), addresses.into());
        }
        Cow::Owned(value)
    }

    /// A Service that was applied: from now on its slices follow its selector, as those that a controller writes.
    pub(super) fn applied_service(&mut self, service: &Service, value: &Value) {
        self.services.remove(&service.key);
        let Some(selector) = &service.selector else { return };
        let has = |family: Family| {
            service.addresses.is_empty() || service.addresses.iter().any(|address| Family::of(address) == family)
        };
        let families = [Family::V4, Family::V6].into_iter().filter(|family| has(*family)).collect();
        let listed = value.pointer("/spec/ports").and_then(Value::as_array);
        let target = |port: &ServicePort| {
            let same = |one: &&Value| {
                let protocol = one.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
                one.get("port").and_then(Value::as_u64) == Some(port.port.into())
                    && protocol == port.protocol.to_string()
            };
            let target = listed.into_iter().flatten().find(same)?.get("targetPort")?;
            match target.as_str() {
                Some(name) => Some(TargetPort::Named(name.into())),
                None => target.as_u64().and_then(|number| u16::try_from(number).ok()).map(TargetPort::Number),
            }
        };
        let ports = service.ports.iter().map(|port| ServicePortSpec {
            name: Some(Arc::clone(&port.name)),
            port: port.port,
            target: target(port).unwrap_or(TargetPort::Number(port.port)),
            protocol: port.protocol,
            node_port: port.node_port,
        });
        let backing = Backing::Selector(selector.clone());
        self.services.insert(service.key.clone(), Made { families, ports: ports.collect(), backing, applied: true });
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
        let ours = |slice: &EndpointSlice| slice.key.name.starts_with(PREFIX);
        for (key, made) in &self.services {
            let of = |slice: &EndpointSlice| {
                slice.key.namespace == key.namespace && slice.service.as_ref() == Some(&key.name)
            };
            if made.applied && self.cluster.slices.values().any(|slice| of(slice) && !ours(slice)) {
                continue;
            }
            for slice in self.slices(key, made) {
                wanted.insert(slice.key.clone(), slice);
            }
        }
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
            let mut groups: BTreeMap<Vec<NamedPort>, Vec<IpAddr>> = BTreeMap::new();
            let of = |addresses: &[IpAddr]| -> Vec<IpAddr> {
                addresses.iter().copied().filter(|address| Family::of(*address) == *family).collect()
            };
            let mut put = |pod: Option<&Pod>, addresses: Vec<IpAddr>, ready: bool| {
                if !addresses.is_empty() {
                    let group = groups.entry(resolve(&made.ports, pod)).or_default();
                    group.extend(addresses.into_iter().filter(|_| ready));
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
            for (index, (ports, ready)) in groups.into_iter().enumerate() {
                let name = format!("{PREFIX}{}-{}-{index}", key.name, family.as_str().to_ascii_lowercase());
                slices.push(EndpointSlice {
                    key: ObjectKey { namespace: Arc::clone(&key.namespace), name: name.into() },
                    service: Some(Arc::clone(&key.name)),
                    ports: ports.into(),
                    ready: ready.into_iter().collect(),
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
                applied: false,
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
        for slice in self.slices_of(service) {
            let Some(target) =
                slice.ports.iter().find(|target| target.name == port.name && target.protocol == protocol)
            else {
                continue;
            };
            let of = slice.ready.iter().filter(|address| Family::of(*address) == family);
            targets.extend(of.map(|address| (address, target.port)));
        }
        targets.into_iter().collect()
    }

    fn slices_of(&self, service: &Service) -> impl Iterator<Item = &EndpointSlice> {
        let ObjectKey { namespace, name } = service.key.clone();
        let of =
            move |slice: &&EndpointSlice| slice.key.namespace == namespace && slice.service.as_ref() == Some(&name);
        self.cluster.slices.values().filter(of)
    }

    /// The addresses of a Service's ready backends, which are what the name of a headless one stands for.
    #[must_use]
    pub fn backends(&self, service: &Service, family: Family) -> BTreeSet<IpAddr> {
        let ready = self.slices_of(service).flat_map(|slice| slice.ready.iter());
        ready.filter(|address| Family::of(*address) == family).collect()
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
