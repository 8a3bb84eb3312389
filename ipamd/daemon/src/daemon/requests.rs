//! What plugins ask, and what becomes of an address whose asker has gone.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_contract::id::{Attachment, NetworkName, PodRef};
use sluice_contract::node::{nic, veth};
use sluice_contract::rpc::{
    AddReply, AddRequest, Call, CheckRequest, DelReply, DelRequest, GcReply, GcRequest, Outcome, PodAddress, Refusal,
    RefusalCode, Reply as WireReply, StatusReply,
};
use sluice_ipamd_core::aws_node::NETWORK;
use sluice_ipamd_core::ledger::Owner;
use sluice_ipamd_core::queue::Token;
use sluice_ipamd_core::state::Event;
use sluice_ipamd_core::time::Timestamp;
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

/// An interface that an ADD wants an address for.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// Who will have the address.
    owner: Arc<Owner>,
    /// The network card that the address has to be of; none where the pod has this interface alone.
    card: Option<u32>,
}

impl Waiting {
    /// One that wants nothing and is about to be refused.
    fn in_vain(answer: oneshot::Sender<Answer>, since: Instant, pod: PodRef) -> Self {
        Self { answer, since, counted: false, pod, parts: Vec::new(), deadline: Timestamp::default() }
    }

    /// Whether it is an ADD of the pod whose first interface this is.
    fn is_of(&self, first: &Attachment) -> bool {
        self.parts.first().is_some_and(|part| part.owner.attachment == *first)
    }

    /// Whether it wants an address for an interface.
    fn wants(&self, attachment: &Attachment) -> bool {
        self.parts.iter().any(|part| part.owner.attachment == *attachment)
    }

    /// Whether it wants more than one interface.
    pub(super) const fn wants_several(&self) -> bool {
        self.parts.len() > 1
    }
}

impl<C: Cloud, K: Kernel> Daemon<C, K> {
    /// What the ledger calls an attachment: a pod that was taken over from the VPC CNI is of its network, whatever the
    /// configuration that is in force calls it.
    fn known_as(&self, attachment: Attachment) -> Attachment {
        let taken_over = NetworkName::new(NETWORK).map(|network| Attachment { network, ..attachment.clone() });
        let is_held = |attachment: &Attachment| {
            let waits = || self.orphans.values().any(|owner| nic::first(&owner.attachment) == *attachment);
            !self.held(attachment).is_empty() || waits()
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
        let first = &asking.request.attachment;
        if nic::index(&first.ifname) > 0 {
            let text = format!("{} is no name to ask for: it is kept for further interfaces of pods", first.ifname);
            let refusal = Refusal::new(RefusalCode::BadRequest, text).hint("call the network's interface otherwise");
            return self.refuse_asking(asking, refusal);
        }
        if let Some((path, tombstone)) = self.parts.tombstones.find(first) {
            // A DEL of the same attachment was left behind: it came first.
            self.drain(path, tombstone);
        }
        if let Some(parked) = self.parked(&asking.request.attachment) {
            return parked.push(asking);
        }
        let Some(asking) = self.by_branch(asking) else { return };
        let parts = match self.parts_of(&asking.request) {
            Ok(parts) => parts,
            Err(refusal) => return self.refuse_asking(asking, refusal),
        };
        let Asking { token, request: AddRequest { pod, .. }, since, deadline, answer } = asking;
        let deadline = self.parts.clock.now() + deadline.saturating_duration_since(Instant::now());
        self.waiting.insert(token, Waiting { answer, since, counted: false, pod, parts, deadline });
        if self.stopping {
            return self.refuse_add(token, stopping());
        }
        let lacking = self.lacking(token);
        if lacking.is_empty() {
            // It does not wait, so the planner must not count it as demand.
            return self.answer_held(token, false);
        }
        if self.waiting.len() > usize::try_from(self.parts.config.max_waiting).unwrap_or(usize::MAX) {
            let refusal = Refusal::new(
                RefusalCode::QueueFull,
                format!("{} pods wait for an address already", self.parts.config.max_waiting),
            )
            .retry_after(Duration::from_secs(5));
            return self.refuse_add(token, refusal);
        }
        self.share(token);
        let is_new = |part: &Part| {
            let Attachment { ifname, .. } = &part.owner.attachment;
            nic::index(ifname) == 0 && !self.queue.waits(&part.owner.attachment)
        };
        let is_new = lacking.iter().any(is_new);
        if self.join(token, lacking) && is_new {
            self.apply(Event::Arrived);
        }
    }

    /// The ADDs that wait until the kernel is clear of what an earlier pod of the same attachment has left.
    fn parked(&mut self, first: &Attachment) -> Option<&mut Vec<Asking>> {
        if self.clearing.is_empty() {
            return None;
        }
        let mut held = self.held(first).into_iter().map(|(_, address)| address);
        let address = held.find(|address| self.clearing.contains_key(address))?;
        self.clearing.get_mut(&address)
    }

    /// The interfaces that an ADD wants: one, or one on each network card whose ENIs serve pods.
    fn parts_of(&self, request: &AddRequest) -> Result<Vec<Part>, Refusal> {
        let AddRequest { attachment, pod, netns, host_ifname, every_card, .. } = request;
        let owner = |attachment: Attachment, host_ifname| {
            Arc::new(Owner { attachment, pod: pod.clone(), host_ifname, netns: netns.clone() })
        };
        let mut first = Part { owner: owner(attachment.clone(), host_ifname.clone()), card: None };
        if !every_card || !nic::has_further(attachment) || !self.parts.config.pool.multi_nic {
            return Ok(vec![first]);
        }
        if self.state.node().is_none() {
            let text = format!("pod {pod} wants an interface on each network card, and the node's are not known yet");
            return Err(Refusal::new(RefusalCode::NotReady, text)
                .hint("the daemon is starting; check that the node reaches IMDS at 169.254.169.254")
                .retry_after(Duration::from_secs(2)));
        }
        let cards = self.state.cards();
        // With one card it is a pod like any other.
        first.card = (cards.len() > 1).then_some(0);
        let mut parts = vec![first];
        let prefix = &self.parts.config.network.veth_prefix;
        for (index, card) in (1..nic::INTERFACES_MAX).zip(cards.into_iter().skip(1)) {
            let Some(attachment) = nic::attachment(attachment, index) else { break };
            let host_ifname = veth::host_name(prefix, pod, &attachment).map_err(|error| {
                let text = format!("interface {} of pod {pod} has no name on the host: {error}", attachment.ifname);
                Refusal::new(RefusalCode::BadRequest, text)
            })?;
            parts.push(Part { owner: owner(attachment, host_ifname), card: Some(card) });
        }
        Ok(parts)
    }

    /// The interfaces of a waiting ADD that have no address.
    fn lacking(&self, token: Token) -> Vec<Part> {
        let Some(waiting) = self.waiting.get(&token) else { return Vec::new() };
        let ledger = self.state.ledger();
        let lacks = |part: &&Part| ledger.address_of(&part.owner.attachment).is_none();
        waiting.parts.iter().filter(lacks).cloned().collect()
    }

    /// Lets a waiting ADD wait for addresses of these interfaces. Answers whether it does; it is refused otherwise.
    fn join(&mut self, token: Token, parts: Vec<Part>) -> bool {
        let Some(deadline) = self.waiting.get(&token).map(|waiting| waiting.deadline) else { return false };
        let now = self.parts.clock.now();
        for Part { owner, card } in parts {
            let attachment = owner.attachment.clone();
            if let Err(refusal) = self.queue.join(token, owner, card, deadline, now) {
                self.refuse_part(token, &attachment, refusal);
                return false;
            }
        }
        true
    }

    /// An ADD asks for what others were given an address for: they cannot take it with them when they go, unless they wait for
    /// more of it still.
    fn share(&mut self, token: Token) {
        let Some(waiting) = self.waiting.get(&token).filter(|waiting| waiting.wants_several()) else { return };
        for part in &waiting.parts {
            let attachment = &part.owner.attachment;
            if self.granted_by.get(attachment).is_some_and(|by| !self.waiting.contains_key(by)) {
                self.granted_by.remove(attachment);
            }
        }
    }

    /// What a waiting ADD of several interfaces had may have been taken back meanwhile, as by GC: it waits for that again.
    pub(super) fn gather_again(&mut self) {
        let several = self.waiting.iter().filter(|(_, waiting)| waiting.wants_several());
        let several: Vec<Token> = several.map(|(token, _)| *token).collect();
        for token in several {
            let mut lacking = self.lacking(token);
            if lacking.is_empty() {
                self.answer_held(token, false);
            } else {
                lacking.retain(|part| !self.queue.waits(&part.owner.attachment));
                self.join(token, lacking);
            }
        }
    }

    /// Tells the requests of an attachment what it has been given, those that want no more.
    pub(super) fn grant(&mut self, attachment: &Attachment, address: IpAddr, tokens: &[Token], held: bool) {
        match tokens {
            [token, ..] if !held => self.granted_by.insert(attachment.clone(), *token),
            _ => self.granted_by.remove(attachment),
        };
        tracing::info!(attachment = %attachment, address = %address, held, "an address was given");
        for token in tokens {
            self.answer_held(*token, tokens.len() == 1);
        }
    }

    /// Answers a waiting ADD if all its interfaces have their address. `alone`: nobody else waits for the one that it wants.
    fn answer_held(&mut self, token: Token, alone: bool) {
        let Some(waiting) = self.waiting.get(&token) else { return };
        let address = |part: &Part| self.state.ledger().address_of(&part.owner.attachment);
        let Some(held) = waiting.parts.iter().map(address).collect::<Option<Vec<IpAddr>>>() else { return };
        let Some(Waiting { answer, since, counted, parts, .. }) = self.waiting.remove(&token) else { return };
        if counted {
            self.parts.metrics.add_waited(since.elapsed());
        }
        let (mut addresses, mut granted) = (Vec::new(), None);
        for (part, address) in parts.iter().zip(&held) {
            let attachment = &part.owner.attachment;
            // Only a request that is alone in knowing of the address may take it with it when it goes.
            let is_alone =
                if parts.len() > 1 { !self.waiting.values().any(|other| other.wants(attachment)) } else { alone };
            if is_alone && self.granted_by.get(attachment) == Some(&token) {
                granted.get_or_insert_with(|| attachment.clone());
            } else {
                self.granted_by.remove(attachment);
            }
            addresses.extend(self.pod_addresses(attachment, *address));
        }
        let network = &self.parts.config.network;
        let egress = held.first().and_then(|address| network.egress_of(*address));
        let outcome =
            Outcome::Add(AddReply { addresses, mtu: network.pod_mtu, egress, disable_ipv6: network.disable_pod_v6 });
        let reply = Answer { reply: WireReply::Done(outcome), granted };
        self.outbox.push(Reply { to: answer, answer: reply, token, kind: ReplyKind::Add, since });
    }

    /// Refuses a waiting ADD because of one of its interfaces.
    pub(super) fn refuse_part(&mut self, token: Token, attachment: &Attachment, refusal: Refusal) {
        let several = self.waiting.get(&token).filter(|waiting| waiting.wants_several());
        let part = several.and_then(|waiting| waiting.parts.iter().find(|part| part.owner.attachment == *attachment));
        let refusal = match part {
            Some(Part { card: Some(card), .. }) => {
                let why = format!("the pod wants an address of each network card, and has none of card {card}");
                let message = format!("{}; {why}", refusal.message);
                Refusal { message, ..refusal }
            }
            _ => refusal,
        };
        self.refuse_add(token, refusal);
    }

    /// Refuses a waiting ADD. What it was given for some of its interfaces goes back.
    pub(super) fn refuse_add(&mut self, token: Token, refusal: Refusal) {
        let Some(waiting) = self.waiting.remove(&token) else { return };
        self.queue.withdraw(token);
        if waiting.wants_several() {
            self.give_all_back(token);
        }
        let Waiting { answer, since, pod, .. } = waiting;
        tracing::warn!(code = %refusal.code, reason = %refusal.message, "an ADD was refused");
        self.parts.metrics.refused(refusal.code);
        self.report_refusal(pod, &refusal);
        self.outbox.push(Reply { to: answer, answer: refusal.into(), token, kind: ReplyKind::Other, since });
    }

    /// Refuses an ADD before it waits.
    pub(super) fn refuse_asking(&mut self, asking: Asking, refusal: Refusal) {
        let Asking { token, request, since, answer, .. } = asking;
        self.waiting.insert(token, Waiting::in_vain(answer, since, request.pod));
        self.refuse_add(token, refusal);
    }

    fn del(&mut self, request: &DelRequest) -> Outcome {
        self.parts.metrics.del_begun(if request.add_failed { "SetupNSFailed" } else { "PodDeleted" });
        let first = &request.attachment;
        let cancelled = Refusal::new(RefusalCode::Cancelled, "the attachment's DEL came while its ADD waited");
        let waiting = self.waiting.iter().filter(|(_, waiting)| waiting.is_of(first));
        let waiting: Vec<Token> = waiting.map(|(token, _)| *token).collect();
        for token in waiting {
            self.refuse_add(token, cancelled.clone());
        }
        self.refuse_pending(Some(first), &cancelled);
        self.orphans.retain(|_, owner| nic::first(&owner.attachment) != *first);
        let addresses = self.release_all(first, self.cooldown_after(request));
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
        let held = self.held(&request.attachment);
        let described = held.iter().map(|(attachment, address)| self.pod_addresses(attachment, *address));
        let addresses: Vec<PodAddress> = described.flatten().collect();
        // Without its first interface a pod is nobody's.
        let first = held.first().filter(|(attachment, _)| *attachment == request.attachment && !addresses.is_empty());
        match first {
            Some((_, address)) => {
                let network = &self.parts.config.network;
                let egress = network.egress_of(*address);
                Ok(Outcome::Add(AddReply {
                    addresses,
                    mtu: network.pod_mtu,
                    egress,
                    disable_ipv6: network.disable_pod_v6,
                }))
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
        let assigned = self.state.ledger().tally(self.parts.clock.now()).assigned;
        Ok(Outcome::Status(StatusReply { free: self.free(), assigned }))
    }

    /// Addresses that a pod with one interface could have at once: those of further network cards only when the first is full.
    pub(super) fn free(&self) -> u32 {
        let (ledger, now) = (self.state.ledger(), self.parts.clock.now());
        if self.plan.spills { ledger.tally(now).free } else { ledger.tally_of(0, now).free }
    }

    /// How long an address cools after a DEL: not at all when its pod never ran.
    pub(super) const fn cooldown_after(&self, request: &DelRequest) -> Duration {
        if request.add_failed { Duration::ZERO } else { self.parts.config.pool.cooldown }
    }

    /// The interfaces of a pod that have an address of the pool, in their order. None for the name of a further interface: no
    /// runtime has a word in that.
    pub(super) fn held(&self, first: &Attachment) -> Vec<(Attachment, IpAddr)> {
        if nic::index(&first.ifname) > 0 {
            return Vec::new();
        }
        let ledger = self.state.ledger();
        let all = std::iter::once(first.clone()).chain(nic::further(first));
        all.filter_map(|attachment| ledger.address_of(&attachment).map(|address| (attachment, address))).collect()
    }

    /// Takes back what all interfaces of a pod have.
    pub(super) fn release_all(&mut self, first: &Attachment, cooldown: Duration) -> Vec<PodAddress> {
        if nic::index(&first.ifname) > 0 {
            return Vec::new();
        }
        let held = self.held(first);
        let mut described = self.release(first, cooldown);
        for (attachment, _) in held.iter().filter(|(attachment, _)| attachment != first) {
            described.extend(self.release(attachment, cooldown));
        }
        described
    }

    /// Takes the address of an interface back, if it has one.
    pub(super) fn release(&mut self, attachment: &Attachment, cooldown: Duration) -> Vec<PodAddress> {
        self.granted_by.remove(attachment);
        let Some(address) = self.state.ledger().address_of(attachment) else { return self.let_go(attachment) };
        let described = self.pod_addresses(attachment, address);
        if self.clearing.contains_key(&address) {
            // It is taken back when the kernel is clear of its pod.
            return described;
        }
        let companion = self.state.ledger().companion_of(address);
        if self.apply(Event::Release(attachment.clone(), cooldown)) {
            self.leaves_flows(address, companion, cooldown);
            tracing::info!(attachment = %attachment, address = %address, "an address was taken back");
        }
        described
    }

    /// A request's socket has closed before its reply.
    pub(super) fn withdrawn(&mut self, token: Token) {
        self.waiting.remove(&token);
        if self.queue.withdraw(token) || self.branching.withdraw(token) {
            tracing::info!("an ADD was withdrawn while it waited");
        }
        self.give_all_back(token);
    }

    /// A reply could not be written.
    pub(super) fn undelivered(&mut self, token: Token, attachment: &Attachment) {
        self.give_back(attachment, token);
    }

    /// Takes back what its asker never heard of, this attachment's address among it. Not if somebody else has asked for the same
    /// attachment since.
    pub(super) fn give_back(&mut self, attachment: &Attachment, token: Token) {
        if self.granted_by.get(attachment) == Some(&token) {
            self.give_all_back(token);
        }
    }

    /// Takes addresses back that their asker never heard of: they need not cool. Those that another request waits for more of
    /// are that one's from now on.
    fn give_all_back(&mut self, token: Token) {
        let granted = self.granted_by.iter().filter(|(_, by)| **by == token);
        let granted: Vec<Attachment> = granted.map(|(attachment, _)| attachment.clone()).collect();
        for attachment in granted {
            let heir = self.waiting.iter().find(|(_, waiting)| waiting.wants(&attachment)).map(|(heir, _)| *heir);
            match heir {
                Some(heir) => {
                    self.granted_by.insert(attachment, heir);
                }
                None => {
                    self.release(&attachment, Duration::ZERO);
                }
            }
        }
    }

    /// What an interface has that was given `address`, as plugins are told of it.
    pub(super) fn pod_addresses(&self, attachment: &Attachment, address: IpAddr) -> Vec<PodAddress> {
        let ledger = self.state.ledger();
        let described = |ip: IpAddr| {
            let eni = ledger.eni_of(address)?;
            Some(PodAddress {
                ip,
                interface: nic::index(&attachment.ifname),
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
