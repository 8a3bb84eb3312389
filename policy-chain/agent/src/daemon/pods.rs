//! What the source tells, and how a pod of this node differs from what is told of it.
//!
//! Of a pod with a sandbox here, the sandbox is the better witness: its addresses are those that the runtime has given it,
//! and it lives until its DEL, whatever becomes of its object. Of two sandboxes of one pod the younger counts. A
//! sandbox whose pod's name another pod has now drops everything.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;
use sluice_contract::id::{Attachment, ContainerId};
use sluice_contract::node::nic;
use sluice_daemon::log::ErrorChain;
use sluice_policy_core::cluster::{Addresses, Cluster as State, Event, Object, ObjectId, Pod, PodKey, Uid};
use sluice_policy_core::model::Text;
use sluice_policy_core::parse::Severity;

use super::{Daemon, Knowledge};
use crate::cluster::{Cluster, Place, Report, Told};
use crate::datapath::{Datapath, Interface};
use crate::registry::Binding;
use sluice_contract::rpc::GateInterface;

/// Faults of one object that are logged; all of them are in the introspection.
const LOGGED: usize = 5;

/// The objects of a state, one by one.
pub(super) fn objects(state: &State) -> impl Iterator<Item = Object> {
    let namespaces = state.namespaces.values().cloned().map(Object::Namespace);
    let pods = state.pods.values().map(|pod| Object::Pod(Pod::clone(pod)));
    let nodes = state.nodes.values().cloned().map(Object::Node);
    let services = state.services.values().cloned().map(Object::Service);
    let slices = state.slices.values().cloned().map(Object::EndpointSlice);
    let groups = state.cidr_groups.values().cloned().map(Object::CidrGroup);
    let policies = state.policies.values().map(|policy| Object::Policy(policy.as_ref().clone()));
    namespaces.chain(pods).chain(nodes).chain(services).chain(slices).chain(groups).chain(policies)
}

/// One object of a state.
pub(super) fn object(state: &State, id: &ObjectId) -> Option<Object> {
    match id {
        ObjectId::Namespace(name) => state.namespaces.get(name).cloned().map(Object::Namespace),
        ObjectId::Pod(key) => state.pods.get(key).map(|pod| Object::Pod(Pod::clone(pod))),
        ObjectId::Node(name) => state.nodes.get(name).cloned().map(Object::Node),
        ObjectId::Service(key) => state.services.get(key).cloned().map(Object::Service),
        ObjectId::EndpointSlice(key) => state.slices.get(key).cloned().map(Object::EndpointSlice),
        ObjectId::CidrGroup(name) => state.cidr_groups.get(name).cloned().map(Object::CidrGroup),
        ObjectId::Policy(id) => state.policies.get(id).map(|policy| Object::Policy(policy.as_ref().clone())),
    }
}

/// Whether an object is known as it is.
fn is_known(state: &State, object: &Object) -> bool {
    match object {
        Object::Namespace(object) => state.namespaces.get(&object.name) == Some(object),
        Object::Pod(object) => state.pods.get(&object.key).is_some_and(|known| **known == *object),
        Object::Node(object) => state.nodes.get(&object.name) == Some(object),
        Object::Service(object) => state.services.get(&object.key) == Some(object),
        Object::EndpointSlice(object) => state.slices.get(&object.key) == Some(object),
        Object::CidrGroup(object) => state.cidr_groups.get(&object.name) == Some(object),
        Object::Policy(object) => state.policies.get(object.id()).is_some_and(|known| **known == *object),
    }
}

/// The host's side of an interface.
pub(crate) fn interface(gate: &GateInterface) -> Interface {
    Interface {
        index: gate.host_index,
        name: gate.host.clone(),
        addresses: gate.addresses.clone(),
        first: nic::index(&gate.container) == 0,
    }
}

/// Whether a sandbox is one of the pod with this UID. What does not know its UID is.
pub(super) fn is_of(binding: &Binding, uid: &Uid) -> bool {
    let own = binding.add.pod.uid.as_deref().unwrap_or_default();
    own.is_empty() || uid.is_empty() || Uid::from(own) == *uid
}

impl<C: Cluster, D: Datapath> Daemon<C, D> {
    /// Goes on with what was known before the restart.
    pub(super) fn remember(&mut self, known: Vec<(Object, Option<String>)>) {
        tracing::info!(objects = known.len(), "going on with what was known before the restart");
        for (object, text) in known {
            let id = object.id();
            self.take(Event::Upsert(object), text.map(Arc::from));
            self.unheard.insert(id);
        }
        self.knowledge = Knowledge::Journal;
    }

    pub(super) fn told(&mut self, told: Told) {
        self.parts.metrics.told();
        match told {
            Told::Event { event, json } => {
                match &event {
                    Event::Upsert(object) => self.unheard.remove(&object.id()),
                    Event::Delete(id) => self.unheard.remove(id),
                    Event::Resolved { .. } | Event::Time(_) => false,
                };
                self.take(event, json);
            }
            Told::Report(report) => self.reported(report),
            Told::Upto { kind, revision } => {
                self.read.insert(kind, revision);
            }
            Told::Synced => self.synced(),
            Told::Stale { why } => {
                tracing::warn!(reason = why, "the cluster does not answer; what is known may be old");
                self.stale = Some(why);
            }
        }
    }

    /// Everything has been told.
    fn synced(&mut self) {
        self.stale = None;
        for id in std::mem::take(&mut self.unheard) {
            self.take(Event::Delete(id), None);
        }
        if self.knowledge != Knowledge::All {
            self.knowledge = Knowledge::All;
            self.dirty = true;
            self.adopt_soon();
            let state = self.engine.cluster();
            tracing::info!(pods = state.pods.len(), policies = state.policies.len(), "everything has been told");
        }
        self.parts.journal.touch(self.parts.clock.now());
    }

    fn reported(&mut self, report: Report) {
        let place = report.place.clone();
        for issue in report.issues.iter().take(LOGGED) {
            match issue.severity {
                Severity::Warning => tracing::info!(object = %place, issue = %issue, "worth knowing of an object"),
                Severity::Unusable | Severity::Refused => {
                    tracing::warn!(object = %place, issue = %issue, "something is wrong with an object");
                }
            }
        }
        self.unreported.insert(place.clone());
        if report.issues.is_empty() && report.generation.is_none() {
            self.reports.remove(&place);
        } else {
            self.reports.insert(place, report);
        }
    }

    /// Takes a change in, with what the sandboxes know better.
    fn take(&mut self, event: Event, json: Option<Arc<str>>) {
        match event {
            Event::Upsert(Object::Pod(pod)) if self.told.contains_key(&pod.key) => {
                let key = pod.key.clone();
                self.told.insert(key.clone(), Some(pod));
                self.put_pod(&key);
            }
            Event::Delete(ObjectId::Pod(key)) if self.told.contains_key(&key) => {
                self.told.insert(key.clone(), None);
                self.put_pod(&key);
            }
            Event::Upsert(object) => {
                if let (Some(text), id @ (ObjectId::Policy(_) | ObjectId::CidrGroup(_))) = (json, object.id()) {
                    let generation = generation(&text);
                    self.texts.insert(id, (text, generation));
                }
                self.apply(Event::Upsert(object));
            }
            Event::Delete(id) => {
                self.texts.remove(&id);
                self.apply(Event::Delete(id));
            }
            other => self.apply(other),
        }
    }

    /// Takes a change into the engine.
    fn apply(&mut self, event: Event) {
        match &event {
            Event::Upsert(object) if is_known(self.engine.cluster(), object) => return,
            Event::Upsert(object) => {
                self.changed.insert(object.id());
            }
            Event::Delete(id) => {
                self.changed.insert(id.clone());
            }
            Event::Resolved { .. } | Event::Time(_) => {}
        }
        self.engine.apply(event);
        self.dirty = true;
    }

    /// The sandbox of a pod that counts: the youngest that is the pod's.
    fn sandbox(&self, key: &PodKey) -> Option<&ContainerId> {
        let of_pod = self.bindings.values().filter(|binding| binding.is_for(key));
        let live = of_pod.filter(|binding| !self.superseded.contains(&binding.add.attachment));
        live.max_by_key(|binding| binding.number).map(|binding| &binding.add.attachment.container)
    }

    /// Brings what the engine knows of a pod with sandboxes up to date.
    pub(super) fn put_pod(&mut self, key: &PodKey) {
        let Some(told) = self.told.get(key).cloned() else { return };
        if let Some(pod) = &told {
            self.supersede(key, &pod.uid);
        }
        let addresses: Option<Addresses> = self.sandbox(key).map(|container| {
            let of_sandbox = self
                .bindings
                .values()
                .filter(|binding| binding.add.attachment.container == *container && binding.is_for(key));
            of_sandbox.flat_map(Binding::interfaces).flat_map(|interface| interface.addresses.iter().copied()).collect()
        });
        if !self.bindings.values().any(|binding| binding.is_for(key)) {
            self.told.remove(key);
        }
        let base = told.or_else(|| {
            // Gone for the cluster, but its sandbox lives: what was known of it holds.
            addresses.as_ref()?;
            self.engine.cluster().pods.get(key).map(|pod| Pod::clone(pod))
        });
        match (base, addresses) {
            (Some(pod), Some(addresses)) => {
                let node = pod.node.clone().or_else(|| Some(Text::from(&*self.parts.config.node)));
                self.apply(Event::Upsert(Object::Pod(Pod { addresses, node, ..pod })));
            }
            (Some(pod), None) => self.apply(Event::Upsert(Object::Pod(pod))),
            (None, _) if self.engine.cluster().pods.contains_key(key) => {
                self.apply(Event::Delete(ObjectId::Pod(key.clone())));
            }
            (None, _) => {}
        }
    }

    /// Sandboxes of another pod of this name drop from now on; those of this pod that did are bound again.
    fn supersede(&mut self, key: &PodKey, uid: &Uid) {
        let of_pod: Vec<(Attachment, bool)> = self
            .bindings
            .values()
            .filter(|binding| binding.is_for(key))
            .map(|binding| (binding.add.attachment.clone(), is_of(binding, uid)))
            .collect();
        for (attachment, is_of_pod) in of_pod {
            if is_of_pod {
                if self.superseded.remove(&attachment) {
                    self.rebind.insert(attachment);
                    self.has_new_veths = true;
                }
            } else if self.superseded.insert(attachment.clone()) {
                tracing::info!(pod = %key, attachment = %attachment, "another pod has its name: it drops everything");
                self.parts.metrics.superseded();
                self.rebind.remove(&attachment);
                self.unbind_all(&attachment);
            }
        }
    }

    /// Makes the interfaces of an attachment drop.
    pub(super) fn unbind_all(&mut self, attachment: &Attachment) {
        let Some(binding) = self.bindings.get(attachment) else { return };
        let indexes: BTreeSet<u32> = binding.interfaces().iter().map(|interface| interface.host_index).collect();
        for index in indexes {
            self.unbind(index);
        }
    }

    pub(super) fn unbind(&mut self, index: u32) {
        // One that has gone cannot be adopted.
        if self.links.contains_key(&index) {
            self.ended.insert(index);
        }
        self.unbindable.remove(&index);
        match self.parts.gates.unbind(index) {
            Ok(()) => {
                self.unbound.remove(&index);
            }
            Err(error) => {
                tracing::error!(index, error = %ErrorChain(&error), "an interface could not be made to drop; trying on");
                self.parts.metrics.error("unbind");
                self.unbound.insert(index);
            }
        }
    }

    /// Binds what is its pod's again, now that its pod's policy is in force.
    pub(super) async fn bind_again(&mut self) {
        for attachment in std::mem::take(&mut self.rebind) {
            let Some(binding) = self.bindings.get(&attachment) else { continue };
            let (key, interfaces) = (binding.key(), binding.interfaces().to_vec());
            for gate in interfaces {
                self.bind(&key, &interface(&gate)).await;
            }
        }
    }

    /// Binds an interface, and says whether it is. What fails is told of once, and tried again every few seconds: with its
    /// gate the interface drops everything until then.
    pub(super) async fn bind(&mut self, key: &PodKey, interface: &Interface) -> bool {
        match self.parts.gates.bind(key, interface).await {
            Ok(()) => {
                if self.unbindable.remove(&interface.index) {
                    tracing::info!(pod = %key, interface = %interface.name, "an interface is bound at last");
                }
                true
            }
            Err(error) => {
                self.parts.metrics.error("bind");
                if self.unbindable.insert(interface.index) {
                    let error = ErrorChain(&error);
                    tracing::error!(pod = %key, %error, "an interface could not be bound; trying on");
                }
                false
            }
        }
    }

    /// Has what could not be bound bound again, after the next commit.
    pub(super) fn bind_soon(&mut self) {
        if self.unbindable.is_empty() {
            return;
        }
        let is_unbound = |gate: &GateInterface| self.unbindable.contains(&gate.host_index);
        let unbound = self.bindings.iter().filter(|(_, binding)| binding.interfaces().iter().any(is_unbound));
        let live = unbound.filter(|(attachment, _)| !self.superseded.contains(*attachment));
        self.rebind.extend(live.map(|(attachment, _)| attachment.clone()));
    }

    /// The sandbox is gone: its interfaces drop, and nothing remembers it.
    pub(super) fn release(&mut self, attachment: &Attachment) {
        self.unbind_all(attachment);
        let Some(binding) = self.bindings.remove(attachment) else { return };
        self.superseded.remove(attachment);
        self.rebind.remove(attachment);
        self.parts.registry.remove(attachment);
        self.put_pod(&binding.key());
        tracing::info!(pod = %binding.key(), attachment = %attachment, "endpoint removed");
    }

    /// Sends the status of policies that were reported on, now that they are in force.
    pub(super) fn send_statuses(&mut self) {
        if self.knowledge == Knowledge::Nothing {
            return;
        }
        for place in std::mem::take(&mut self.unreported) {
            let Place::Object(ObjectId::Policy(policy)) = &place else { continue };
            let report = self.reports.get(&place);
            let status = crate::cluster::PolicyStatus {
                policy: policy.clone(),
                generation: report.and_then(|report| report.generation),
                issues: report.map(|report| report.issues.clone()).unwrap_or_default(),
            };
            self.parts.outbox.put(crate::outbox::Letter::Status(status));
        }
    }
}

/// `metadata.generation` of a text.
fn generation(text: &str) -> Option<i64> {
    serde_json::from_str::<Value>(text).ok()?.get("metadata")?.get("generation")?.as_i64()
}
