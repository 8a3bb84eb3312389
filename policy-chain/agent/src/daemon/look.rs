//! The picture of the state that others see.

use std::collections::BTreeMap;

use sluice_policy_core::cluster::{Object, ObjectId};
use sluice_policy_core::compile::image::{DecisionId, PolicyId};

use serde_json::Value;

use super::pods::objects;
use super::{Daemon, Knowledge};
use crate::cluster::{Cluster, Place};
use crate::datapath::Datapath;
use crate::flows::Counts;
use crate::journal::manifest;
use crate::view::{CounterView, EndpointView, FlowsView, PolicyView, View};

fn flows_view(counts: &Counts) -> FlowsView {
    FlowsView { kept: counts.kept, limit: counts.limit, seen: counts.seen, lost: counts.lost }
}

impl<C: Cluster, D: Datapath> Daemon<C, D> {
    pub(super) fn view(&mut self) -> View {
        let counted = self.parts.gates.counters();
        let drops = self.parts.gates.drops();
        let (image, state) = (self.engine.image(), self.engine.cluster());
        let counters = counted.into_iter().filter_map(|(number, packets)| {
            let judgement = image.decisions.get(&DecisionId(number))?;
            Some(CounterView { verdict: judgement.verdict.as_str(), rule: judgement.reason.to_string(), packets })
        });
        let issues = |place: &Place| -> Vec<String> {
            let report = self.reports.get(place);
            report.into_iter().flat_map(|report| &report.issues).map(ToString::to_string).collect()
        };
        let policies = state.policies.keys().map(|policy| {
            let id = ObjectId::Policy(policy.clone());
            PolicyView {
                kind: policy.kind.as_str(),
                namespace: policy.namespace.as_ref().map(ToString::to_string),
                name: policy.name.to_string(),
                generation: self.texts.get(&id).and_then(|(_, generation)| *generation),
                issues: issues(&Place::Object(id)),
            }
        });
        let faults: BTreeMap<String, Vec<String>> = self
            .reports
            .iter()
            .filter(|(_, report)| !report.issues.is_empty())
            .map(|(place, report)| (place.to_string(), report.issues.iter().map(ToString::to_string).collect()))
            .collect();
        View {
            synced: self.knowledge == Knowledge::All,
            stale: self.stale.clone(),
            serving: self.knowledge != Knowledge::Nothing,
            aws_node: self.aws_node,
            revision: self.revision,
            read: self.read.iter().map(|(kind, revision)| (kind.to_string(), *revision)).collect(),
            pods: state.pods.len(),
            waiting: self.waiting.len(),
            policies: if self.knowledge == Knowledge::Nothing { Vec::new() } else { policies.collect() },
            endpoints: self.endpoints(),
            without_gate: self.without_gate().iter().map(ToString::to_string).collect(),
            faults,
            proxy: self.parts.proxies.view(),
            counters: counters.collect(),
            drops,
            name_addresses: self.names_known(),
            flows: flows_view(&self.parts.flows.counts(self.parts.clock.now())),
        }
    }

    /// All objects, as manifests.
    pub(super) fn manifests(&self) -> Vec<Value> {
        let own = |object: &Object| self.texts.get(&object.id()).map(|(text, _)| &**text);
        objects(self.engine.cluster()).filter_map(|object| manifest(&object, own(&object))).collect()
    }

    fn endpoints(&self) -> Vec<EndpointView> {
        let mut endpoints = Vec::new();
        for (attachment, binding) in &self.bindings {
            let key = binding.key();
            let endpoint = self.engine.image().endpoints.get(&key).filter(|_| !self.superseded.contains(attachment));
            for gate in binding.interfaces() {
                endpoints.push(EndpointView {
                    namespace: key.namespace.to_string(),
                    name: key.name.to_string(),
                    interface: gate.host.clone(),
                    index: gate.host_index,
                    addresses: gate.addresses.clone(),
                    revision: endpoint.map(|endpoint| endpoint.revision),
                    ingress: endpoint.is_some_and(|endpoint| endpoint.ingress != PolicyId::NONE),
                    egress: endpoint.is_some_and(|endpoint| endpoint.egress != PolicyId::NONE),
                    audit: endpoint.is_some_and(|endpoint| endpoint.audit),
                    locked: self.parts.gates.locked().contains(&key),
                });
            }
        }
        endpoints
    }
}
