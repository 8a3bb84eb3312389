//! What plugins ask, apart from ADD.

use std::collections::BTreeMap;

use sluice_contract::id::Attachment;
use sluice_contract::rpc::{
    GcRequest, PolicyCall, PolicyCheck, PolicyCheckReply, PolicyDel, PolicyOutcome, PolicyStatusReply, Refusal,
    RefusalCode, Reply,
};
use sluice_daemon::log::ErrorChain;

use super::{Daemon, Knowledge};
use crate::cluster::Cluster;
use crate::daemon::pods::interface;
use crate::datapath::Datapath;
use crate::inbox::{Asked, Token};
use crate::registry::Binding;

impl<C: Cluster, D: Datapath> Daemon<C, D> {
    pub(super) async fn asked(&mut self, asked: Asked) {
        let outcome = match asked.call {
            PolicyCall::Add(request) => {
                return self.add(asked.token, request, asked.answer, asked.since, asked.deadline);
            }
            PolicyCall::Del(request) => {
                self.del(&request);
                PolicyOutcome::Del
            }
            PolicyCall::Gc(request) => {
                self.gc(&request);
                PolicyOutcome::Gc
            }
            PolicyCall::Check(request) => {
                let Some(binding) = self.bindings.get(&request.attachment).cloned() else {
                    let message = format!("policyd knows no gate of {}", request.attachment);
                    let refusal = Refusal::new(RefusalCode::UnknownAttachment, message).hint("add it again");
                    self.parts.metrics.refused(refusal.code);
                    // Whoever asked may have gone.
                    let _sent = asked.answer.send(refusal.into());
                    return;
                };
                let differences = self.check(&request, &binding).await;
                PolicyOutcome::Check(PolicyCheckReply { differences, revision: self.revision })
            }
            PolicyCall::Status => PolicyOutcome::Status(PolicyStatusReply {
                endpoints: self.gates(),
                synced: self.knowledge == Knowledge::All,
                revision: self.revision,
            }),
        };
        // Whoever asked may have gone.
        let _sent = asked.answer.send(Reply::Done(outcome).into());
    }

    /// Host interfaces that have a gate.
    fn gates(&self) -> u32 {
        let count: usize = self.bindings.values().map(|binding| binding.interfaces().len()).sum();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// The attachment is gone.
    pub(super) fn del(&mut self, request: &PolicyDel) {
        self.cancel(&request.attachment);
        self.release(&request.attachment);
    }

    /// Refuses the waiting ADDs of an attachment.
    pub(super) fn cancel(&mut self, attachment: &Attachment) {
        let waits =
            |(token, waiting): (&Token, &super::Waiting)| (waiting.request.attachment == *attachment).then_some(*token);
        let tokens: Vec<Token> = self.waiting.iter().filter_map(waits).collect();
        for token in tokens {
            let message = format!("the attachment {attachment} was asked for again, or removed, while its ADD waited");
            self.refuse(token, Refusal::new(RefusalCode::Cancelled, message));
        }
    }

    fn gc(&mut self, request: &GcRequest) {
        let is_gone = |attachment: &&Attachment| {
            attachment.network == request.network && !request.valid.iter().any(|valid| valid.names(attachment))
        };
        let gone: Vec<Attachment> = self.bindings.keys().filter(is_gone).cloned().collect();
        for attachment in gone {
            tracing::info!(attachment = %attachment, "the runtime does not know this attachment any more");
            self.del(&PolicyDel { attachment, pod: sluice_contract::id::PodRef::default() });
        }
    }

    /// What is not as it should be.
    async fn check(&mut self, request: &PolicyCheck, binding: &Binding) -> Vec<String> {
        let mut differences = Vec::new();
        let key = binding.key();
        if self.superseded.contains(&request.attachment) {
            differences.push(format!("another pod is {key} now: this sandbox drops everything"));
        }
        if !self.engine.image().endpoints.contains_key(&key) {
            differences.push(format!("the cluster has no pod {key} on this node: its sandbox drops everything"));
        }
        if self.parts.gates.locked().contains(&key) {
            differences.push(format!("{key} is locked down, because its policy is not whole in the kernel"));
        }
        let bound: BTreeMap<u32, _> =
            binding.interfaces().iter().map(|interface| (interface.host_index, interface)).collect();
        for asked in &request.interfaces {
            let Some(gate) = bound.get(&asked.host_index) else {
                differences.push(format!("{} (index {}) has no gate", asked.host, asked.host_index));
                continue;
            };
            let mut addresses = (gate.addresses.clone(), asked.addresses.clone());
            addresses.0.sort_unstable();
            addresses.1.sort_unstable();
            if addresses.0 != addresses.1 {
                differences.push(format!(
                    "the gate of {} is for {:?}, but the pod has {:?}",
                    asked.host, addresses.0, addresses.1
                ));
            }
        }
        for gate in binding.interfaces() {
            match self.parts.gates.check(&interface(gate)).await {
                Ok(missing) => {
                    differences.extend(missing.into_iter().map(|missing| format!("{}: {}", gate.host, missing.what)))
                }
                Err(error) => differences.push(ErrorChain(&error).to_string()),
            }
        }
        differences
    }
}
