//! The pods of the node: which policies select them, and their gates.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Engine;
use super::book::managed;
use super::programs::{Born, Inputs, Overrides};
use crate::cluster::{Cluster, Pod, PodKey};
use crate::compile::image::{Endpoint, OwnAddress, PolicyId, RowId};
use crate::compile::predicate::{Kind, Predicate, in_block};
use crate::compile::program::{PeerFacts, Selected, selects};
use crate::compile::view::PodView;
use crate::flow::{Direction, Origin};
use crate::model::cilium::Entity;
use crate::model::{Policy, PolicyKind, PolicyRef, Text};

const KINDS: [PolicyKind; 8] = [
    PolicyKind::AdminNetworkPolicy,
    PolicyKind::ClusterNetworkPolicy,
    PolicyKind::AwsClusterNetworkPolicy,
    PolicyKind::NetworkPolicy,
    PolicyKind::AwsApplicationNetworkPolicy,
    PolicyKind::CiliumNetworkPolicy,
    PolicyKind::CiliumClusterwideNetworkPolicy,
    PolicyKind::BaselineAdminNetworkPolicy,
];

/// One direction of a subject.
#[derive(Debug, Default)]
pub(super) struct Side {
    /// By policy.
    selected: Vec<Selected>,
    pub(super) program: Option<u32>,
    /// What the gate has: program, its overrides, and the id that stands for both.
    gate: Option<(u32, Overrides, PolicyId)>,
    /// Hairpin rows by address.
    hairpins: BTreeMap<IpAddr, RowId>,
}

/// A pod of the node.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) pod: Arc<Pod>,
    pub(super) sides: [Side; 2],
    revision: u64,
}

const fn side(direction: Direction) -> usize {
    match direction {
        Direction::Ingress => 0,
        Direction::Egress => 1,
    }
}

/// The policies that can select a pod of a namespace.
fn candidates<'a>(cluster: &'a Cluster, namespace: &'a Text) -> impl Iterator<Item = &'a Arc<Policy>> {
    KINDS.iter().flat_map(move |kind| {
        [None, Some(namespace)].into_iter().flat_map(move |namespace| {
            let first = PolicyRef { kind: *kind, namespace: namespace.cloned(), name: "".into() };
            let inside = move |id: &PolicyRef| id.kind == *kind && id.namespace.as_ref() == namespace;
            cluster.policies.range(first..).take_while(move |(id, _)| inside(id)).map(|(_, policy)| policy)
        })
    })
}

impl Engine {
    fn view<'a>(&'a self, pod: &'a Pod) -> Option<PodView<'a>> {
        Some(PodView {
            namespace: &pod.key.namespace,
            namespace_labels: self.namespaces.get(&pod.key.namespace)?,
            labels: &pod.labels,
            service_account: &pod.template.service_account,
        })
    }

    /// Which policies select which of the node's pods, as far as that may have changed; and their programs.
    pub(super) fn resolve(&mut self, born: &mut Born, released: &mut Vec<u32>) -> BTreeSet<PodKey> {
        let mut whole = std::mem::take(&mut self.dirty.subjects);
        for namespace in &self.dirty.namespaces {
            let of = self.subjects.keys().filter(|key| key.namespace == *namespace).cloned();
            whole.extend(of);
        }
        let policies = std::mem::take(&mut self.dirty.policies);
        let mut programs: BTreeSet<PodKey> = BTreeSet::new();
        // Other pods than those that had their names.
        let mut others: BTreeSet<PodKey> = BTreeSet::new();
        for key in &whole {
            let pod = self.cluster.pods.get(key).filter(|pod| managed(pod) && pod.node == self.settings.node).cloned();
            let Some(pod) = pod else { continue };
            let subject = self.subjects.remove(key);
            if subject.as_ref().is_some_and(|subject| subject.pod.uid != pod.uid) {
                others.insert(key.clone());
            }
            let mut sides = [Vec::new(), Vec::new()];
            if let Some(view) = self.view(&pod) {
                for policy in candidates(&self.cluster, &pod.key.namespace) {
                    for direction in Direction::BOTH {
                        if let Some(list) = sides.get_mut(side(direction)) {
                            list.extend(selects(policy, direction, &view));
                        }
                    }
                }
            }
            let mut subject = subject.unwrap_or_else(|| Subject {
                pod: Arc::clone(&pod),
                sides: [Side::default(), Side::default()],
                revision: self.first_revision,
            });
            subject.pod = pod;
            for (side, mut selected) in subject.sides.iter_mut().zip(sides) {
                selected.sort_by(|one, other| one.id().cmp(other.id()));
                side.selected = selected;
            }
            for address in &subject.pod.addresses {
                self.subject_addresses.entry(address).or_default().insert(key.clone());
            }
            self.subjects.insert(key.clone(), subject);
            programs.insert(key.clone());
        }
        // One policy at a time, for all the other pods that it may select.
        for id in &policies {
            let policy = self.cluster.policies.get(id).cloned();
            let meant = |key: &&PodKey| id.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace);
            let keys: Vec<PodKey> =
                self.subjects.keys().filter(meant).filter(|key| !whole.contains(*key)).cloned().collect();
            for key in keys {
                let Some(pod) = self.subjects.get(&key).map(|subject| Arc::clone(&subject.pod)) else { continue };
                for direction in Direction::BOTH {
                    let now = match (&policy, self.view(&pod)) {
                        (Some(policy), Some(view)) => selects(policy, direction, &view),
                        _ => None,
                    };
                    let Some(side) =
                        self.subjects.get_mut(&key).and_then(|subject| subject.sides.get_mut(side(direction)))
                    else {
                        continue;
                    };
                    let at = side.selected.binary_search_by(|one| one.id().cmp(id));
                    match (at, now) {
                        (Ok(at), Some(now)) => {
                            if let Some(slot) = side.selected.get_mut(at) {
                                *slot = now;
                            }
                        }
                        (Ok(at), None) => {
                            side.selected.remove(at);
                        }
                        (Err(at), Some(now)) => side.selected.insert(at, now),
                        (Err(_), None) => continue,
                    }
                    programs.insert(key.clone());
                }
            }
        }
        if std::mem::take(&mut self.dirty.groups) {
            let depend = self.programs.groups_changed();
            let of = self.subjects.iter().filter(|(_, subject)| {
                subject.sides.iter().any(|side| side.program.is_some_and(|program| depend.contains(&program)))
            });
            programs.extend(of.map(|(key, _)| key.clone()));
            // A program that restricted nothing may restrict something now.
            let open = self.subjects.iter().filter(|(_, subject)| {
                subject.sides.iter().any(|side| side.program.is_none() && !side.selected.is_empty())
            });
            programs.extend(open.map(|(key, _)| key.clone()));
        }
        let mut changed = whole;
        let inputs = Inputs { groups: &self.cluster.cidr_groups, settings: &self.settings };
        for key in programs {
            let Some(subject) = self.subjects.get_mut(&key) else { continue };
            for direction in Direction::BOTH {
                let Some(side) = subject.sides.get_mut(side(direction)) else { continue };
                let program = self.programs.acquire(
                    direction,
                    &side.selected,
                    &subject.pod.template,
                    &inputs,
                    (&mut self.atoms, &mut self.store),
                    born,
                );
                if program != side.program {
                    changed.insert(key.clone());
                }
                if let Some(joined) = program.filter(|_| program != side.program || others.contains(&key)) {
                    born.joined.entry(joined).or_default().insert(key.clone());
                }
                released.extend(side.program);
                side.program = program;
            }
        }
        changed
    }

    /// Pods that are no subjects any more.
    pub(super) fn drop_subjects(
        &mut self,
        changed: &BTreeSet<PodKey>,
        released: &mut Vec<u32>,
        gates: &mut Vec<(u32, Overrides)>,
    ) {
        for key in changed {
            let stays = self.cluster.pods.get(key).is_some_and(|pod| managed(pod) && pod.node == self.settings.node);
            if stays {
                continue;
            }
            let Some(subject) = self.subjects.remove(key) else { continue };
            for side in subject.sides {
                released.extend(side.program);
                gates.extend(side.gate.map(|(program, overrides, _)| (program, overrides)));
                side.hairpins.values().for_each(|row| self.store.release(*row));
            }
            self.store.set_endpoint(key, None);
        }
    }

    /// Brings gates up to date. `gates` gets what they do not have any more.
    pub(super) fn set_gates(
        &mut self,
        changed: &BTreeSet<PodKey>,
        moved: &BTreeSet<u32>,
        gates: &mut Vec<(u32, Overrides)>,
    ) {
        // A gate that is looked at anew may turn out to be as it was, and still have flows of a peer that is another now.
        let renewed: BTreeSet<&PodKey> = changed.iter().filter(|key| self.set_gate(key, gates)).collect();
        let bumped: Vec<PodKey> = self
            .subjects
            .iter()
            .filter(|(key, subject)| {
                !renewed.contains(*key)
                    && subject.sides.iter().any(|side| side.program.is_some_and(|program| moved.contains(&program)))
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in bumped {
            if let Some(subject) = self.subjects.get_mut(&key)
                && let Some(endpoint) = self.store.image().endpoints.get(&key)
            {
                subject.revision += 1;
                let endpoint = Endpoint { revision: subject.revision, ..Endpoint::clone(endpoint) };
                self.store.set_endpoint(&key, Some(endpoint));
            }
        }
    }

    /// Gives whether the gate has another revision now.
    fn set_gate(&mut self, key: &PodKey, gates: &mut Vec<(u32, Overrides)>) -> bool {
        let Some(mut subject) = self.subjects.remove(key) else { return false };
        let pod = Arc::clone(&subject.pod);
        for direction in Direction::BOTH {
            let Some(side) = subject.sides.get_mut(side(direction)) else { continue };
            let hairpins = match side.program {
                Some(program) => self.hairpins(&pod, program),
                None => BTreeMap::new(),
            };
            for row in std::mem::replace(&mut side.hairpins, hairpins).values() {
                self.store.release(*row);
            }
            let gate = side.program.map(|program| {
                let overrides = match direction {
                    Direction::Ingress => Overrides::new(),
                    Direction::Egress => self.overrides(program, &side.hairpins),
                };
                let front = |index: u32| self.fronts.get(index).map(|front| front.identity);
                let id = self.programs.variant(program, &overrides, &self.classes, &front, &mut self.store);
                (program, overrides, id)
            });
            let before = std::mem::replace(&mut side.gate, gate);
            gates.extend(before.map(|(program, overrides, _)| (program, overrides)));
        }
        let [ingress, egress] = &subject.sides;
        let policy = |side: &Side| side.gate.as_ref().map_or(PolicyId::NONE, |(_, _, id)| *id);
        let mut addresses: Vec<OwnAddress> = pod
            .addresses
            .iter()
            .map(|address| OwnAddress {
                address,
                ingress: ingress.hairpins.get(&address).copied(),
                egress: egress.hairpins.get(&address).copied(),
            })
            .collect();
        addresses.sort_by_key(|own| own.address);
        let mut endpoint = Endpoint {
            addresses,
            ingress: policy(ingress),
            egress: policy(egress),
            audit: pod.audit,
            revision: subject.revision,
        };
        let before = self.store.image().endpoints.get(key);
        let renewed = before.is_none_or(|before| !before.same_but_revision(&endpoint));
        if renewed {
            subject.revision += 1;
            endpoint.revision = subject.revision;
            self.store.set_endpoint(key, Some(endpoint));
        }
        self.subjects.insert(key.clone(), subject);
        renewed
    }

    /// What happens to a pod's packets to itself through a Service, by its addresses.
    fn hairpins(&mut self, pod: &Pod, program: u32) -> BTreeMap<IpAddr, RowId> {
        let mut rows = BTreeMap::new();
        let Some(labels) = self.namespaces.get(&pod.key.namespace) else { return rows };
        let Some(instance) = self.programs.get(program) else { return rows };
        let view = PodView {
            namespace: &pod.key.namespace,
            namespace_labels: labels,
            labels: &pod.labels,
            service_account: &pod.template.service_account,
        };
        for address in &pod.addresses {
            let prefix = IpNet::from(address);
            let api_server = self.book.api_servers.contains(&address);
            let holds = |at: usize| match (instance.program.predicates().get(at), instance.atom(at)) {
                (Some(Predicate::Block { cidr, except, managed }), _) => *managed && in_block(cidr, except, &prefix),
                (Some(Predicate::Services(_)), Some(atom)) => self.book.backs(address, atom),
                (Some(Predicate::Entity(Entity::KubeApiserver)), _) => api_server,
                (Some(predicate), _) => predicate.holds(&Kind::Pod(view), address.is_ipv4(), api_server, &[]),
                (None, _) => false,
            };
            let facts = PeerFacts { holds: &holds, named_ports: &pod.template.ports, origin: Origin::Hairpin };
            rows.insert(address, instance.row_for(&facts, &mut self.store));
        }
        rows
    }

    /// The frontends for which the pod, being a backend itself, has another row than others with its program.
    fn overrides(&mut self, program: u32, own: &BTreeMap<IpAddr, RowId>) -> Overrides {
        let Some(instance) = self.programs.get(program) else { return Overrides::new() };
        let fronts: BTreeSet<u32> = own.keys().flat_map(|address| self.fronts.at(*address)).collect();
        let mut overrides = Overrides::new();
        for front in fronts {
            let row = self.fronts.decide_at(front, instance, own, &self.book, &self.classes, &mut self.store);
            if let Some(row) = row.filter(|row| instance.row_of_front(front) != Some(*row)) {
                overrides.push((front, row));
            }
        }
        overrides
    }
}
