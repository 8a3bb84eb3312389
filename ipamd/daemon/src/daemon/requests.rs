//! What plugins ask, and what becomes of an address whose asker has gone.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_contract::id::{Attachment, NetworkName};
use sluice_contract::rpc::{
    AddReply, AddRequest, Call, CheckRequest, DelReply, DelRequest, GcReply, GcRequest, Outcome, PodAddress, Refusal,
    RefusalCode, Reply as WireReply, StatusReply,
};
use sluice_ipamd_core::aws_node::NETWORK;
use sluice_ipamd_core::ledger::Owner;
use sluice_ipamd_core::queue::Token;
use sluice_ipamd_core::state::Event;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Daemon, Reply, ReplyKind, Waiting};
use crate::cloud::Cloud;
use crate::inbox::{Answer, Asked, stopping};
use crate::kernel::Kernel;

/// An ADD.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) token: Token,
    pub(super) request: AddRequest,
    pub(super) since: Instant,
    pub(super) deadline: Instant,
    pub(super) answer: oneshot::Sender<Answer>,
}

impl<C: Cloud, K: Kernel> Daemon<C, K> {
    /// What the ledger calls an attachment: a pod that was taken over from the VPC CNI is of its network, whatever the
    /// configuration that is in force calls it.
    fn known_as(&self, attachment: Attachment) -> Attachment {
        let taken_over = NetworkName::new(NETWORK).map(|network| Attachment { network, ..attachment.clone() });
        let is_held = |attachment: &Attachment| {
            let waits = || self.orphans.values().any(|owner| owner.attachment == *attachment);
            self.state.ledger().address_of(attachment).is_some() || waits()
        };
        match taken_over {
            Ok(other) if !is_held(&attachment) && is_held(&other) => other,
            _ => attachment,
        }
    }

    pub(super) fn asked(&mut self, asked: Asked) {
        let Asked { token, mut call, since, deadline, answer } = asked;
        match &mut call {
            Call::Del(DelRequest { attachment, .. }) | Call::Check(CheckRequest { attachment, .. }) => {
                *attachment = self.known_as(attachment.clone());
            }
            Call::Add(_) | Call::Gc(_) | Call::Status => {}
        }
        let (kind, outcome) = match call {
            Call::Add(request) => {
                self.parts.metrics.add_begun();
                return self.add(Asking { token, request, since, deadline, answer });
            }
            Call::Del(request) => (ReplyKind::Del, Ok(self.del(&request))),
            Call::Gc(request) => (ReplyKind::Del, Ok(self.gc(&request))),
            Call::Check(request) => (ReplyKind::Other, self.check_attachment(&request)),
            Call::Status => (ReplyKind::Other, self.status()),
        };
        let reply = match outcome {
            Ok(outcome) => WireReply::Done(outcome),
            Err(refusal) => {
                self.parts.metrics.refused(refusal.code);
                WireReply::Refused(refusal)
            }
        };
        self.outbox.push(Reply { to: answer, answer: reply.into(), token, kind, since });
    }

    pub(super) fn add(&mut self, asking: Asking) {
        if let Some((path, tombstone)) = self.parts.tombstones.find(&asking.request.attachment) {
            // A DEL of the same attachment was left behind: it came first.
            self.drain(path, tombstone);
        }
        let held = self.state.ledger().address_of(&asking.request.attachment);
        if let Some(parked) = held.and_then(|held| self.clearing.get_mut(&held)) {
            return parked.push(asking);
        }
        let Some(asking) = self.by_branch(asking) else { return };
        let Asking { token, request, since, deadline, answer } = asking;
        let AddRequest { attachment, pod, netns, host_ifname, .. } = request;
        self.waiting.insert(token, Waiting { answer, since, counted: false, pod: pod.clone() });
        if self.stopping {
            return self.refuse_add(token, stopping());
        }
        if let Some(held) = self.state.ledger().address_of(&attachment) {
            // It does not wait, so the planner must not count it as demand.
            return self.grant(&attachment, held, &[token], true);
        }
        let owner = Arc::new(Owner { attachment, pod, host_ifname, netns });
        let now = self.parts.clock.now();
        let deadline = now + deadline.saturating_duration_since(Instant::now());
        if self.waiting.len() > usize::try_from(self.parts.config.max_waiting).unwrap_or(usize::MAX) {
            let refusal = Refusal::new(
                RefusalCode::QueueFull,
                format!("{} pods wait for an address already", self.parts.config.max_waiting),
            )
            .retry_after(Duration::from_secs(5));
            return self.refuse_add(token, refusal);
        }
        let is_new = !self.queue.waits(&owner.attachment);
        match self.queue.join(token, owner, deadline, now) {
            Ok(()) if is_new => {
                self.apply(Event::Arrived);
            }
            Ok(()) => {}
            Err(refusal) => self.refuse_add(token, refusal),
        }
    }

    /// Tells the requests of an attachment what it has been given.
    pub(super) fn grant(&mut self, attachment: &Attachment, address: IpAddr, tokens: &[Token], held: bool) {
        // Only a request that is alone in knowing of the address may take it with it when it goes.
        let only = match tokens {
            [token] if !held => Some(*token),
            _ => None,
        };
        match only {
            Some(token) => self.granted_by.insert(attachment.clone(), token),
            None => self.granted_by.remove(attachment),
        };
        let addresses = self.pod_addresses(address);
        let network = &self.parts.config.network;
        let (mtu, egress) = (network.pod_mtu, network.egress_of(address));
        for token in tokens {
            let Some(Waiting { answer, since, counted, .. }) = self.waiting.remove(token) else { continue };
            if counted {
                self.parts.metrics.add_waited(since.elapsed());
            }
            let outcome = Outcome::Add(AddReply { addresses: addresses.clone(), mtu, egress });
            let granted = only.map(|_| attachment.clone());
            let reply = Answer { reply: WireReply::Done(outcome), granted };
            self.outbox.push(Reply { to: answer, answer: reply, token: *token, kind: ReplyKind::Add, since });
        }
        tracing::info!(attachment = %attachment, address = %address, held, "an address was given");
    }

    /// Refuses a waiting ADD.
    pub(super) fn refuse_add(&mut self, token: Token, refusal: Refusal) {
        let Some(Waiting { answer, since, pod, .. }) = self.waiting.remove(&token) else { return };
        tracing::warn!(code = %refusal.code, reason = %refusal.message, "an ADD was refused");
        self.parts.metrics.refused(refusal.code);
        self.report_refusal(pod, &refusal);
        self.outbox.push(Reply { to: answer, answer: refusal.into(), token, kind: ReplyKind::Other, since });
    }

    fn del(&mut self, request: &DelRequest) -> Outcome {
        self.parts.metrics.del_begun(if request.add_failed { "SetupNSFailed" } else { "PodDeleted" });
        for token in self.queue.remove(&request.attachment) {
            let refusal = Refusal::new(RefusalCode::Cancelled, "the attachment's DEL came while its ADD waited");
            self.refuse_add(token, refusal);
        }
        let cancelled = Refusal::new(RefusalCode::Cancelled, "the attachment's DEL came while its ADD waited");
        self.refuse_pending(Some(&request.attachment), &cancelled);
        self.orphans.retain(|_, owner| owner.attachment != request.attachment);
        let addresses = self.release(&request.attachment, self.cooldown_after(request));
        Outcome::Del(DelReply { addresses })
    }

    fn gc(&mut self, request: &GcRequest) -> Outcome {
        let mut released = Vec::new();
        for attachment in self.attachments_of(&request.network) {
            if !request.valid.iter().any(|valid| valid.names(&attachment)) {
                let addresses = self.release(&attachment, self.parts.config.pool.cooldown);
                released.push((attachment, addresses));
            }
        }
        Outcome::Gc(GcReply { released })
    }

    fn check_attachment(&self, request: &CheckRequest) -> Result<Outcome, Refusal> {
        if let Some(outcome) = self.check_branch(&request.attachment) {
            return Ok(outcome);
        }
        let address = self.state.ledger().address_of(&request.attachment);
        let held = address.map(|address| (self.pod_addresses(address), address));
        match held.filter(|(addresses, _)| !addresses.is_empty()) {
            Some((addresses, address)) => {
                let network = &self.parts.config.network;
                let egress = network.egress_of(address);
                Ok(Outcome::Add(AddReply { addresses, mtu: network.pod_mtu, egress }))
            }
            None => Err(Refusal::new(
                RefusalCode::UnknownAttachment,
                format!("attachment {} has no address on this node", request.attachment),
            )),
        }
    }

    fn status(&self) -> Result<Outcome, Refusal> {
        if !self.is_ready() {
            let missing = match (self.state.node(), self.state.ledger().primary()) {
                (None, _) => "IMDS and EC2 have not told who this node is",
                (_, None) => "the primary ENI is not known",
                _ => "the node's network is not set up",
            };
            return Err(Refusal::new(RefusalCode::NotReady, format!("ipamd is not ready yet: {missing}"))
                .hint("its log and `sluice status` show what it waits for")
                .retry_after(Duration::from_secs(2)));
        }
        let tally = self.state.ledger().tally(self.parts.clock.now());
        Ok(Outcome::Status(StatusReply { free: tally.free, assigned: tally.assigned }))
    }

    /// How long an address cools after a DEL: not at all when its pod never ran.
    pub(super) const fn cooldown_after(&self, request: &DelRequest) -> Duration {
        if request.add_failed { Duration::ZERO } else { self.parts.config.pool.cooldown }
    }

    /// Takes an attachment's address back, if it has one.
    pub(super) fn release(&mut self, attachment: &Attachment, cooldown: Duration) -> Vec<PodAddress> {
        self.granted_by.remove(attachment);
        let Some(address) = self.state.ledger().address_of(attachment) else { return self.let_go(attachment) };
        let described = self.pod_addresses(address);
        if self.clearing.contains_key(&address) {
            // It is taken back when the kernel is clear of its pod.
            return described;
        }
        if self.apply(Event::Release(attachment.clone(), cooldown)) {
            tracing::info!(attachment = %attachment, address = %address, "an address was taken back");
        }
        described
    }

    /// A request's socket has closed before its reply.
    pub(super) fn withdrawn(&mut self, token: Token) {
        self.waiting.remove(&token);
        if self.queue.withdraw(token) || self.branching.withdraw(token) {
            tracing::info!("an ADD was withdrawn while it waited");
            return;
        }
        let granted = self.granted_by.iter().find(|(_, by)| **by == token).map(|(attachment, _)| attachment.clone());
        if let Some(attachment) = granted {
            self.give_back(&attachment, token);
        }
    }

    /// A reply could not be written.
    pub(super) fn undelivered(&mut self, token: Token, attachment: &Attachment) {
        self.give_back(attachment, token);
    }

    /// Takes an address back that its asker never heard of: it need not cool. Not if somebody else has asked for the same
    /// attachment since.
    pub(super) fn give_back(&mut self, attachment: &Attachment, token: Token) {
        if self.granted_by.get(attachment) == Some(&token) {
            self.release(attachment, Duration::ZERO);
        }
    }

    /// What a pod has that was given `address`, as plugins are told of it.
    pub(super) fn pod_addresses(&self, address: IpAddr) -> Vec<PodAddress> {
        let ledger = self.state.ledger();
        let described = |ip: IpAddr| {
            let eni = ledger.eni_of(address)?;
            Some(PodAddress {
                ip,
                interface: 0,
                eni: eni.id.clone(),
                eni_mac: eni.mac,
                card: eni.card,
                device: eni.device?,
                table: eni.table()?,
                branch: None,
            })
        };
        let companion = ledger.companion_of(address).map(IpAddr::V6);
        std::iter::once(address).chain(companion).filter_map(described).collect()
    }
}
