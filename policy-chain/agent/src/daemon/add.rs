//! ADDs: they wait until the cluster knows their pod, and are answered when its policy is in force.

use std::net::IpAddr;
use std::time::Duration;

use sluice_contract::id::Attachment;
use sluice_contract::node::branch::STRICT_PREFIX;
use sluice_contract::rpc::{PolicyAdd, PolicyAddReply, PolicyOutcome, Refusal, RefusalCode, Reply};
use sluice_daemon::log::ErrorChain;
use sluice_policy_core::cluster::Uid;
use tokio::sync::oneshot;
use tokio::task::JoinError;
use tokio::time::Instant;

use super::{Daemon, Knowledge, Waiting};
use crate::cluster::Cluster;
use crate::daemon::pods::interface;
use crate::datapath::Datapath;
use crate::inbox::{Answer, Token, stopping};
use crate::outbox::Letter;
use crate::registry::{Binding, key_of};

/// How long an ADD waits for the watch before its pod is looked up.
const LOOK_UP_AFTER: Duration = Duration::from_millis(500);

/// Interfaces of one sandbox, and addresses of one interface: more is no pod's.
const MAX_INTERFACES: usize = 64;

/// An ADD whose pod is known.
#[derive(Debug)]
pub(super) struct Admitted {
    attachment: Attachment,
    answer: oneshot::Sender<Answer>,
    since: Instant,
}

impl<C: Cluster, D: Datapath> Daemon<C, D> {
    pub(super) fn add(
        &mut self,
        token: Token,
        request: PolicyAdd,
        answer: oneshot::Sender<Answer>,
        since: Instant,
        deadline: Instant,
    ) {
        self.parts.metrics.add_begun();
        self.cancel(&request.attachment);
        if let Some((path, tombstone)) = self.parts.tombstones.find(&request.attachment) {
            // A DEL of the same attachment was left behind: it came first.
            self.parts.metrics.tombstone();
            self.del(&tombstone);
            self.parts.tombstones.remove(&[path]);
        }
        let fault = fault(&request);
        self.waiting.insert(token, Waiting { request, answer, since, deadline, looked_up: false });
        if let Some(fault) = fault {
            return self.refuse(token, Refusal::new(RefusalCode::BadRequest, fault));
        }
        if self.waiting.len() > usize::try_from(self.parts.config.max_waiting).unwrap_or(usize::MAX) {
            let message = format!("{} pods wait for their policy already", self.parts.config.max_waiting);
            let refusal = Refusal::new(RefusalCode::QueueFull, message).retry_after(Duration::from_secs(5));
            self.refuse(token, refusal);
        }
    }

    /// When something is to be done about a waiting ADD.
    pub(super) fn wakes(&self, waiting: &Waiting) -> Instant {
        let look_up = waiting.since + LOOK_UP_AFTER;
        if waiting.looked_up { waiting.deadline } else { look_up.min(waiting.deadline) }
    }

    /// Why an ADD cannot be served now; none: it can.
    fn obstacle(&self, request: &PolicyAdd) -> Option<String> {
        let key = key_of(request);
        if self.knowledge == Knowledge::Nothing {
            return Some(match &self.stale {
                Some(why) => format!("policyd does not know the cluster's policies: {why}"),
                None => "policyd has not yet been told all of the cluster's policies".to_owned(),
            });
        }
        let asked = Uid::from(request.pod.uid.as_deref().unwrap_or_default());
        // Of a pod that has a sandbox already, what the source said last counts; gone is gone.
        let told = match self.told.get(&key) {
            Some(told) => told.as_ref(),
            None => self.engine.cluster().pods.get(&key).map(std::sync::Arc::as_ref),
        };
        let Some(pod) = told else {
            return Some(match &self.stale {
                Some(why) => format!("the pod {key} is not known, and the cluster does not answer: {why}"),
                None => format!("the cluster has not yet told of the pod {key}"),
            });
        };
        if !asked.is_empty() && !pod.uid.is_empty() && pod.uid != asked {
            return Some(format!("the pod {key} is known with UID {}, and the runtime's has {asked}", pod.uid));
        }
        let node = self.parts.config.node.as_str();
        match &pod.node {
            Some(other) if **other != *node => Some(format!(
                "the pod {key} is on node {other} for the cluster, and this node is {node}: is MY_NODE_NAME right?"
            )),
            _ if pod.host_network => Some(format!("the pod {key} is on its host's network for the cluster")),
            _ if pod.finished => Some(format!("the pod {key} has ended for the cluster")),
            _ => None,
        }
    }

    /// ADDs whose pods are known: their sandboxes are recorded, and the engine gets their addresses.
    pub(super) fn admit(&mut self) -> Vec<Admitted> {
        let ready: Vec<Token> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| self.obstacle(&waiting.request).is_none())
            .map(|(token, _)| *token)
            .collect();
        let mut admitted = Vec::new();
        for token in ready {
            let Some(waiting) = self.waiting.get(&token) else { continue };
            let binding = Binding { add: waiting.request.clone(), number: self.number + 1 };
            if let Err(error) = self.parts.registry.write(&binding) {
                tracing::error!(error = %ErrorChain(&error), "an endpoint could not be recorded");
                let message = format!("recording the endpoint failed: {}", ErrorChain(&error));
                self.refuse(token, Refusal::new(RefusalCode::Storage, message));
                continue;
            }
            self.number += 1;
            let Some(Waiting { answer, since, .. }) = self.waiting.remove(&token) else { continue };
            admitted.push(Admitted { attachment: binding.add.attachment.clone(), answer, since });
            self.record(binding);
        }
        admitted
    }

    /// Takes a sandbox in. Nothing is bound yet.
    pub(super) fn record(&mut self, binding: Binding) {
        let attachment = binding.add.attachment.clone();
        let key = binding.key();
        if let Some(before) = self.bindings.get(&attachment).cloned() {
            let kept = |index: u32| binding.interfaces().iter().any(|interface| interface.host_index == index);
            for interface in before.interfaces() {
                if !before.is_for(&key) || !kept(interface.host_index) {
                    self.unbind(interface.host_index);
                }
            }
            self.bindings.remove(&attachment);
            if !before.is_for(&key) {
                self.put_pod(&before.key());
            }
        }
        let known = self.engine.cluster().pods.get(&key).map(|pod| pod.as_ref().clone());
        self.told.entry(key.clone()).or_insert(known);
        self.superseded.remove(&attachment);
        self.rebind.remove(&attachment);
        // The link watch tells of those alone that go.
        let links = binding.interfaces().iter().map(|gate| (gate.host_index, gate.host.to_string()));
        self.links.extend(links);
        self.bindings.insert(attachment, binding);
        self.put_pod(&key);
    }

    /// Binds and attaches the interfaces of admitted ADDs, whose pods' policy is in force now, and answers.
    pub(super) async fn finish(&mut self, admitted: Vec<Admitted>) {
        // A pod with a branch ENI brings an uplink of its own: what it sends to Services is judged there once more.
        if !admitted.is_empty() && (self.has_new_vlan || admitted.iter().any(|one| self.brings_uplink(one))) {
            self.tend().await;
        }
        for Admitted { attachment, answer, since } in admitted {
            if answer.is_closed() {
                // Withdrawn meanwhile: its DEL comes, or a new ADD.
                self.release(&attachment);
                continue;
            }
            let reply = match self.close_gates(&attachment).await {
                Ok(()) => {
                    self.publish(&attachment);
                    Reply::Done(PolicyOutcome::Add(PolicyAddReply { revision: self.revision }))
                }
                Err(message) => {
                    self.release(&attachment);
                    let refusal = Refusal::new(RefusalCode::PolicyNotReady, message)
                        .hint("the runtime tries again; `sluice doctor` tells more")
                        .retry_after(Duration::from_secs(1));
                    self.parts.metrics.refused(refusal.code);
                    Reply::Refused(refusal)
                }
            };
            self.parts.metrics.add_ended(since.elapsed());
            // Whoever asked may have gone; then its DEL comes.
            let _sent = answer.send(reply.into());
        }
    }

    /// Whether the interface of an admitted ADD is that of a pod with a branch ENI in strict mode.
    fn brings_uplink(&self, admitted: &Admitted) -> bool {
        let binding = self.bindings.get(&admitted.attachment);
        binding.is_some_and(|of| of.interfaces().iter().any(|gate| gate.host.as_str().starts_with(STRICT_PREFIX)))
    }

    /// Puts gates on the interfaces of a sandbox.
    async fn close_gates(&mut self, attachment: &Attachment) -> Result<(), String> {
        let Some(binding) = self.bindings.get(attachment).cloned() else {
            return Err(format!("the attachment {attachment} was removed meanwhile"));
        };
        let key = binding.key();
        if self.superseded.contains(attachment) {
            return Err(format!("another pod is {key} now"));
        }
        if !self.engine.image().endpoints.contains_key(&key) {
            return Err(format!("the pod {key} has no policy on this node"));
        }
        if self.parts.gates.locked().contains(&key) {
            return Err(format!("the policy of {key} does not fit into the kernel's maps"));
        }
        for gate in binding.interfaces() {
            let interface = interface(gate);
            self.parts.gates.bind(&key, &interface).await.map_err(|error| ErrorChain(&error).to_string())?;
            self.unbindable.remove(&interface.index);
            self.parts.gates.attach(&interface).await.map_err(|error| ErrorChain(&error).to_string())?;
            self.seen_whole(interface.index);
        }
        tracing::info!(pod = %key, attachment = %attachment, revision = self.revision, "policy is in force");
        Ok(())
    }

    /// Lets the other nodes know the pod's addresses.
    fn publish(&self, attachment: &Attachment) {
        if !self.parts.config.publish_pod_ips {
            return;
        }
        let Some(key) = self.bindings.get(attachment).map(Binding::key) else { return };
        let Some(pod) = self.engine.cluster().pods.get(&key) else { return };
        let told: Vec<IpAddr> = match self.told.get(&key) {
            Some(Some(told)) => told.addresses.to_vec(),
            _ => Vec::new(),
        };
        let addresses: Vec<IpAddr> = pod.addresses.to_vec();
        if told != addresses {
            self.parts.outbox.put(Letter::Publish { pod: key, uid: pod.uid.clone(), addresses });
        }
    }

    /// Refuses ADDs whose time is over, and looks up the pods of those that wait for long.
    pub(super) fn refuse_late(&mut self) {
        let now = Instant::now();
        let late: Vec<Token> =
            self.waiting.iter().filter(|(_, waiting)| waiting.deadline <= now).map(|(token, _)| *token).collect();
        for token in late {
            let Some(waiting) = self.waiting.get(&token) else { continue };
            let why = self.obstacle(&waiting.request).unwrap_or_else(|| "the time is over".to_owned());
            let message = format!("the policy of {} is not in force: {why}", waiting.request.pod);
            let refusal = Refusal::new(RefusalCode::PolicyNotReady, message)
                .hint("the runtime tries again; the pod starts once its policy is in force")
                .retry_after(Duration::from_secs(1));
            self.refuse(token, refusal);
        }
        let mut look_up = Vec::new();
        for waiting in self.waiting.values_mut() {
            if !waiting.looked_up && waiting.since + LOOK_UP_AFTER <= now {
                waiting.looked_up = true;
                look_up.push(key_of(&waiting.request));
            }
        }
        for pod in look_up {
            let cluster = std::sync::Arc::clone(&self.parts.cluster);
            let deadline = self.parts.config.add_deadline;
            self.lookups.spawn(async move {
                match tokio::time::timeout(deadline, cluster.look_up(&pod)).await {
                    Ok(Ok(found)) => tracing::debug!(pod = %pod, found, "a pod was looked up"),
                    Ok(Err(error)) => {
                        tracing::warn!(pod = %pod, error = %ErrorChain(&error), "a pod could not be looked up");
                    }
                    Err(_late) => tracing::warn!(pod = %pod, "a pod was looked up for too long"),
                }
            });
        }
    }

    pub(super) fn looked_up(&mut self, ended: Result<(), JoinError>) {
        if let Err(error) = ended {
            tracing::error!(error = %ErrorChain(&error), "looking a pod up ended badly");
            self.parts.metrics.error("look_up");
        }
    }

    pub(super) fn refuse(&mut self, token: Token, refusal: Refusal) {
        let Some(waiting) = self.waiting.remove(&token) else { return };
        tracing::warn!(pod = %waiting.request.pod, code = %refusal.code, reason = refusal.message, "an ADD was refused");
        self.parts.metrics.refused(refusal.code);
        self.parts.metrics.add_ended(waiting.since.elapsed());
        // Whoever asked may have gone.
        let _sent = waiting.answer.send(refusal.into());
    }

    /// Refuses whatever waits, at the end.
    pub(super) fn refuse_all(&mut self) {
        let waiting: Vec<Token> = self.waiting.keys().copied().collect();
        for token in waiting {
            self.refuse(token, stopping());
        }
    }
}

/// What makes a request one that can never be served.
fn fault(request: &PolicyAdd) -> Option<String> {
    if request.pod.namespace.is_empty() || request.pod.name.is_empty() {
        return Some(
            "the runtime does not say which pod it is (K8S_POD_NAMESPACE, K8S_POD_NAME): policy is for pods".to_owned(),
        );
    }
    if request.interfaces.is_empty() {
        return Some(format!("the pod {} has no interface with a host's side: no gate can stand there", request.pod));
    }
    let many = |interface: &sluice_contract::rpc::GateInterface| interface.addresses.len() > MAX_INTERFACES;
    if request.interfaces.len() > MAX_INTERFACES || request.interfaces.iter().any(many) {
        return Some(format!("the pod {} has more than {MAX_INTERFACES} interfaces or addresses", request.pod));
    }
    request
        .interfaces
        .iter()
        .find(|interface| interface.addresses.is_empty())
        .map(|interface| format!("the interface {} of the pod {} has no address", interface.container, request.pod))
}
