//! The owner of an image: events in, operations out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::diff::{self, Operation};
use super::image::{DecisionId, Endpoint, FrontendKey, Identity, Image, OwnAddress, PolicyId, RowEntries, RowId};
use super::predicate::{Kind, Predicate, in_block};
use super::program::{PeerFacts, Program, Selected, networks, selects};
use super::row::{PortPrefix, Row};
use super::service;
use super::view::{PodView, matches};
use crate::cluster::{Cluster, EndpointSlice, Event, Labels, NamedPort, Pod, PodKey, Service};
use crate::flow::{Direction, Judgement, Origin, Protocol, Query};
use crate::model::Text;
use crate::model::cilium::ServiceSelector;
use crate::settings::Settings;

/// Compiles what it is told into an image.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    cluster: Cluster,
    image: Image,
}

/// What a commit changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Update {
    /// What to write to the kernel's maps, in this order.
    pub operations: Vec<Operation>,
    /// What someone should know.
    pub notices: Vec<Notice>,
}

/// Something that someone should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Key {
    holds: BTreeSet<usize>,
    /// The own node's: what holds where it is the source of a forwarded packet.
    forwarded: Option<BTreeSet<usize>>,
    ports: Vec<NamedPort>,
}

type Backends = Vec<(IpAddr, u16)>;

impl Engine {
    /// An engine that knows nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, cluster: Cluster::default(), image: Image::default() }
    }

    /// Takes an event in.
    pub fn apply(&mut self, event: Event) {
        self.cluster.apply(event);
    }

    /// Brings the image up to date.
    pub fn commit(&mut self) -> Update {
        let new = Build::new(&self.cluster, &self.settings).image(&self.image);
        let operations = diff::diff(&self.image, &new);
        self.image = new;
        Update { operations, notices: Vec::new() }
    }

    /// The image as of the last commit.
    #[must_use]
    pub const fn image(&self) -> &Image {
        &self.image
    }

    /// What is known.
    #[must_use]
    pub const fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// May the first packet of a flow pass, as of the last commit?
    #[must_use]
    pub fn judge(&self, query: &Query) -> Judgement {
        self.image.judge(query)
    }
}

fn managed(pod: &Pod) -> bool {
    !pod.host_network && !pod.finished
}

#[derive(Debug)]
struct Build<'a> {
    cluster: &'a Cluster,
    settings: &'a Settings,
    image: Image,
    rows: BTreeMap<Vec<(PortPrefix, DecisionId)>, RowId>,
    decisions: Vec<Judgement>,
    namespaces: BTreeMap<Text, Labels>,
    predicates: Vec<Predicate>,
    asked: BTreeSet<Text>,
    pods: BTreeMap<IpAddr, Arc<Pod>>,
}

impl<'a> Build<'a> {
    fn new(cluster: &'a Cluster, settings: &'a Settings) -> Self {
        let mut pods: BTreeMap<IpAddr, Arc<Pod>> = BTreeMap::new();
        for pod in cluster.pods.values().filter(|pod| managed(pod)) {
            for address in &pod.addresses {
                let youngest =
                    pods.get(address).is_none_or(|other| (other.created, &other.key) < (pod.created, &pod.key));
                if youngest {
                    pods.insert(*address, Arc::clone(pod));
                }
            }
        }
        let names = cluster.pods.keys().map(|key| Arc::clone(&key.namespace));
        let namespaces = names.map(|name| (Arc::clone(&name), cluster.namespace_labels(&name))).collect();
        Self {
            cluster,
            settings,
            image: Image::default(),
            rows: BTreeMap::new(),
            decisions: Vec::new(),
            namespaces,
            predicates: Vec::new(),
            asked: BTreeSet::new(),
            pods,
        }
    }

    fn view<'b>(&'b self, pod: &'b Pod) -> Option<PodView<'b>> {
        Some(PodView {
            namespace: &pod.key.namespace,
            namespace_labels: self.namespaces.get(&pod.key.namespace)?,
            labels: &pod.labels,
            service_account: &pod.service_account,
        })
    }

    fn intern(&mut self, row: Row<Judgement>) -> RowId {
        let mut entries = Vec::new();
        for (prefix, judgement) in row.entries {
            let known = self.decisions.iter().position(|one| *one == judgement);
            let number = known.unwrap_or_else(|| {
                self.decisions.push(judgement.clone());
                self.decisions.len() - 1
            });
            let id = DecisionId(u32::try_from(number).unwrap_or(u32::MAX));
            self.image.decisions.insert(id, Arc::new(judgement));
            entries.push((prefix, id));
        }
        let next = RowId(u32::try_from(self.rows.len()).unwrap_or(u32::MAX));
        let id = *self.rows.entry(entries.clone()).or_insert(next);
        self.image.rows.insert(id, Arc::new(RowEntries { entries }));
        id
    }

    fn services(&self, selector: &ServiceSelector, address: IpAddr) -> bool {
        let meant = self.cluster.services.values().filter(|service| match selector {
            ServiceSelector::Named { namespace, name } => {
                namespace.as_ref() == Some(&service.key.namespace) && *name == service.key.name
            }
            ServiceSelector::Labels { namespace, selector } => {
                namespace.as_ref().is_none_or(|namespace| *namespace == service.key.namespace)
                    && matches(selector, &service.labels)
            }
        });
        meant
            .flat_map(|service| self.slices(service))
            .any(|slice| slice.endpoints.iter().any(|endpoint| endpoint.ready && endpoint.addresses.contains(&address)))
    }

    fn slices<'b>(&'b self, service: &'b Service) -> impl Iterator<Item = &'b EndpointSlice> {
        self.cluster.slices.values().filter(move |slice| {
            slice.key.namespace == service.key.namespace && slice.service.as_ref() == Some(&service.key.name)
        })
    }

    fn backends(&self, service: &Service, name: &Text, protocol: Protocol, v4: bool) -> Backends {
        let mut found = BTreeSet::new();
        for slice in self.slices(service) {
            let Some(target) = slice.ports.iter().find(|port| port.name == *name && port.protocol == protocol) else {
                continue;
            };
            for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.ready) {
                let family = endpoint.addresses.iter().filter(|address| address.is_ipv4() == v4);
                found.extend(family.map(|address| (*address, target.port)));
            }
        }
        found.into_iter().collect()
    }

    fn is_api_server(&self, address: IpAddr) -> bool {
        self.cluster.slices.values().any(|slice| {
            slice.key.namespace.as_ref() == "default"
                && slice.service.as_deref() == Some("kubernetes")
                && slice.endpoints.iter().any(|endpoint| endpoint.ready && endpoint.addresses.contains(&address))
        })
    }

    fn holding(
        &self,
        prefix: &IpNet,
        kind: &Kind<'_>,
        api_server: bool,
        named: bool,
        nodes: &[&Labels],
    ) -> BTreeSet<usize> {
        let v4 = matches!(prefix, IpNet::V4(_));
        let host = prefix.prefix_len() == prefix.max_prefix_len();
        let holds = |predicate: &Predicate| match predicate {
            Predicate::Block { cidr, except, managed } => {
                (*managed || matches!(kind, Kind::Other)) && in_block(cidr, except, prefix)
            }
            Predicate::Services(selector) => host && self.services(selector, prefix.addr()),
            Predicate::Name(pattern) => {
                named
                    && matches!(kind, Kind::Other)
                    && self
                        .cluster
                        .names
                        .iter()
                        .any(|(name, addresses)| addresses.contains_key(&prefix.addr()) && pattern.matches(name))
            }
            other => other.holds(kind, v4, api_server, nodes),
        };
        self.predicates.iter().enumerate().filter(|(_, predicate)| holds(predicate)).map(|(index, _)| index).collect()
    }

    fn key(&self, prefix: &IpNet, host: bool, named: bool) -> Key {
        let address = prefix.addr();
        if !host {
            return Key { holds: self.holding(prefix, &Kind::Other, false, named, &[]), ..Key::default() };
        }
        let api_server = self.is_api_server(address);
        let nodes: Vec<_> = self.cluster.nodes.values().filter(|node| node.addresses.contains(&address)).collect();
        let labels: Vec<&Labels> = nodes.iter().map(|node| &node.labels).collect();
        if let Some(pod) = self.pods.get(&address) {
            let Some(view) = self.view(pod) else { return Key::default() };
            let holds = self.holding(prefix, &Kind::Pod(view), api_server, named, &labels);
            return Key { holds, forwarded: None, ports: self.ports(pod) };
        }
        if nodes.iter().any(|node| Some(&node.name) == self.settings.node.as_ref()) {
            let holds = self.holding(prefix, &Kind::OwnNode, api_server, named, &labels);
            let forwarded = Some(self.holding(prefix, &Kind::Other, false, named, &[]));
            return Key { holds, forwarded, ports: Vec::new() };
        }
        let kind = if nodes.is_empty() { Kind::Other } else { Kind::RemoteNode };
        Key { holds: self.holding(prefix, &kind, api_server, named, &labels), ..Key::default() }
    }

    fn ports(&self, pod: &Pod) -> Vec<NamedPort> {
        let mut ports: Vec<_> = pod.ports.iter().filter(|port| self.asked.contains(&port.name)).cloned().collect();
        ports.sort();
        ports.dedup();
        ports
    }

    fn row(&self, program: &Program, key: &Key, origin: Origin) -> Row<Judgement> {
        let holds = match (program.direction(), &key.forwarded, origin) {
            (Direction::Ingress, Some(forwarded), Origin::Forwarded) => forwarded,
            _ => &key.holds,
        };
        let index = |at: usize| self.predicates.iter().position(|one| program.predicates().get(at) == Some(one));
        let facts = PeerFacts {
            holds: &|at| index(at).is_some_and(|index| holds.contains(&index)),
            named_ports: &key.ports,
            origin,
        };
        program.row(&facts)
    }

    fn image(mut self, old: &Image) -> Image {
        // Whose gates, and their programs.
        let subjects: Vec<Arc<Pod>> =
            self.cluster.pods.values().filter(|pod| managed(pod) && pod.node == self.settings.node).cloned().collect();
        let groups = |block: &_| networks(self.cluster.cidr_groups.values(), block);
        let mut programs: Vec<(Program, Vec<(PodKey, Direction)>)> = Vec::new();
        for pod in &subjects {
            let Some(view) = self.view(pod) else { continue };
            for direction in Direction::BOTH {
                let selected: Vec<Selected> =
                    self.cluster.policies.values().filter_map(|policy| selects(policy, direction, &view)).collect();
                let program = Program::new(direction, &selected, &pod.ports, &groups, self.settings);
                if program.is_open() {
                    continue;
                }
                match programs.iter_mut().find(|(one, _)| *one == program) {
                    Some((_, of)) => of.push((pod.key.clone(), direction)),
                    None => programs.push((program, vec![(pod.key.clone(), direction)])),
                }
            }
        }
        let predicates: BTreeSet<_> = programs.iter().flat_map(|(program, _)| program.predicates()).cloned().collect();
        self.predicates = predicates.into_iter().collect();
        self.asked = programs.iter().flat_map(|(program, _)| program.named_ports()).cloned().collect();
        // Addresses.
        let mut hosts: BTreeSet<IpAddr> = self.pods.keys().copied().collect();
        hosts.extend(self.cluster.nodes.values().flat_map(|node| node.addresses.iter().copied()));
        for slice in self.cluster.slices.values() {
            for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.ready) {
                for address in &endpoint.addresses {
                    let asked = self.predicates.iter().any(|predicate| match predicate {
                        Predicate::Services(selector) => self.services(selector, *address),
                        _ => false,
                    });
                    if asked || self.is_api_server(*address) {
                        hosts.insert(*address);
                    }
                }
            }
        }
        let mut regions: BTreeSet<IpNet> = ["0.0.0.0/0", "::/0"].iter().filter_map(|net| net.parse().ok()).collect();
        for predicate in &self.predicates {
            if let Predicate::Block { cidr, except, .. } = predicate {
                regions.insert(*cidr);
                regions.extend(except);
            }
        }
        let mut keys: BTreeMap<IpNet, Key> =
            regions.iter().map(|region| (*region, self.key(region, false, false))).collect();
        keys.extend(hosts.iter().map(|host| (IpNet::from(*host), self.key(&IpNet::from(*host), true, false))));
        let mut named: BTreeMap<IpNet, Key> = BTreeMap::new();
        for address in self.cluster.names.values().flat_map(BTreeMap::keys) {
            let prefix = IpNet::from(*address);
            let key = self.key(&prefix, true, true);
            if key.holds.iter().any(|index| matches!(self.predicates.get(*index), Some(Predicate::Name(_)))) {
                named.insert(prefix, key);
            }
        }
        let mut numbers: BTreeMap<Key, Identity> = BTreeMap::new();
        let mut next = Identity::FIRST.0;
        for (prefixes, list) in [(&mut self.image.ipcache, &keys), (&mut self.image.names, &named)] {
            for (prefix, key) in list {
                let identity = *numbers.entry(key.clone()).or_insert_with(|| {
                    next += 1;
                    Identity(next - 1)
                });
                prefixes.set(*prefix, Some(identity));
            }
        }
        // Frontends.
        let own_node = self.settings.node.as_ref().and_then(|name| self.cluster.nodes.get(name));
        let mut frontends: BTreeMap<Identity, (Protocol, Backends)> = BTreeMap::new();
        for service in self.cluster.services.values() {
            for port in &service.ports {
                for v4 in [true, false] {
                    let at_service = service.addresses.iter().map(|address| (*address, port.port));
                    let at_node = own_node
                        .into_iter()
                        .flat_map(|node| node.addresses.iter().filter_map(|address| Some((*address, port.node_port?))));
                    let at: Vec<FrontendKey> = at_service
                        .chain(at_node)
                        .filter(|(address, _)| address.is_ipv4() == v4)
                        .map(|(address, number)| (address, port.protocol, number))
                        .filter(|key| !self.image.frontends.contains_key(key))
                        .collect();
                    if at.is_empty() {
                        continue;
                    }
                    let identity = Identity(next);
                    next += 1;
                    self.image.frontends.extend(at.into_iter().map(|key| (key, identity)));
                    let backends = self.backends(service, &port.name, port.protocol, v4);
                    frontends.insert(identity, (port.protocol, backends));
                }
            }
        }
        // Policies.
        let mut endpoints: BTreeMap<PodKey, Endpoint> = subjects
            .iter()
            .map(|pod| {
                let mut addresses: Vec<_> = pod
                    .addresses
                    .iter()
                    .map(|address| OwnAddress { address: *address, ingress: None, egress: None })
                    .collect();
                addresses.sort_by_key(|own| own.address);
                let (none, revision) = (PolicyId::NONE, 1);
                (pod.key.clone(), Endpoint { addresses, ingress: none, egress: none, audit: pod.audit, revision })
            })
            .collect();
        let mut policies = 0;
        for (program, of) in &programs {
            let rows: BTreeMap<Identity, Row<Judgement>> =
                numbers.iter().map(|(key, id)| (*id, self.row(program, key, Origin::Forwarded))).collect();
            let default = program.default_row(Origin::Forwarded);
            let own = Key {
                holds: self.holding(&IpNet::from(IpAddr::from([0, 0, 0, 0])), &Kind::OwnNode, false, false, &[]),
                ..Key::default()
            };
            let host = self.row(program, &own, Origin::OwnNode);
            let mut tables: HashMap<Vec<(Identity, Row<Judgement>)>, PolicyId> = HashMap::new();
            for (key, direction) in of {
                let Some(pod) = self.cluster.pods.get(key) else { continue };
                let mut hairpins: BTreeMap<IpAddr, Row<Judgement>> = BTreeMap::new();
                for address in &pod.addresses {
                    let prefix = IpNet::from(*address);
                    let Some(view) = self.view(pod) else { continue };
                    let holds = self.holding(&prefix, &Kind::Pod(view), self.is_api_server(*address), false, &[]);
                    let hairpin = Key { holds, forwarded: None, ports: self.ports(pod) };
                    hairpins.insert(*address, self.row(program, &hairpin, Origin::Hairpin));
                }
                let mut listed = Vec::new();
                if *direction == Direction::Egress {
                    for (identity, (protocol, backends)) in &frontends {
                        let judged: Vec<&Judgement> = backends
                            .iter()
                            .filter_map(|(address, port)| {
                                let row = hairpins.get(address).or_else(|| rows.get(&self.image.identity(*address)));
                                row?.get(*protocol, *port)
                            })
                            .collect();
                        let row = Row { entries: vec![(PortPrefix::ANY, service::frontend(judged))] };
                        listed.push((*identity, row));
                    }
                }
                let known = tables.get(&listed).copied();
                let id = known.unwrap_or_else(|| {
                    policies += 1;
                    PolicyId(policies)
                });
                if known.is_none() {
                    for (identity, row) in rows.iter().chain(listed.iter().map(|(identity, row)| (identity, row))) {
                        let row = self.intern(row.clone());
                        self.image.peers.insert((id, *identity), row);
                    }
                    for (identity, row) in [(Identity::ANY, &default), (Identity::HOST, &host)] {
                        let row = self.intern(row.clone());
                        self.image.peers.insert((id, identity), row);
                    }
                    tables.insert(listed, id);
                }
                let hairpins: BTreeMap<IpAddr, RowId> =
                    hairpins.into_iter().map(|(address, row)| (address, self.intern(row))).collect();
                let Some(endpoint) = endpoints.get_mut(key) else { continue };
                for own in &mut endpoint.addresses {
                    let row = hairpins.get(&own.address).copied();
                    match direction {
                        Direction::Ingress => own.ingress = row,
                        Direction::Egress => own.egress = row,
                    }
                }
                match direction {
                    Direction::Ingress => endpoint.ingress = id,
                    Direction::Egress => endpoint.egress = id,
                }
            }
        }
        for (key, mut endpoint) in endpoints {
            if let Some(before) = old.endpoints.get(&key) {
                endpoint.revision = before.revision + 1;
            }
            self.image.endpoints.insert(key, Arc::new(endpoint));
        }
        self.image
    }
}
