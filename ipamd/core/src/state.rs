//! Everything that the daemon knows, with one way to change it: [`State::apply`].
//!
//! The state says what *is* and what has been *begun*; it decides nothing. The planner reads it and asks for operations;
//! their beginnings and ends come back as events. A beginning is written to the checkpoint before the call is made, so a
//! crash at any point leaves a state from which the planner goes on.

mod observe;
mod outcome;
mod subnet;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use sluice_contract::id::{Attachment, EniId, PodRef, SecurityGroupId, SubnetId};

use crate::arrivals::Arrivals;
use crate::branch::Held;
use crate::cloud::{
    Api, CloudErrorKind, CreateEni, Ec2Eni, Ec2Subnet, EniConfig, ImdsEni, InstanceIdentity, InstanceLimits,
    InterfaceType,
};
use crate::ipv6::Families;
use crate::ledger::{AddressState, Eni, Ledger, LedgerError, Owner, Role, Stage};
use crate::op::{Failure, Op, OpKey, Outcome};
use crate::queue::{QUEUE_LIMIT, Queue};
use crate::time::Timestamp;
use observe::blocks_of;
pub use subnet::{Shortage, Subnet};

/// How long EC2's and IMDS's descriptions may lag behind a call. A description that contradicts what a call did is not
/// believed before that much time has passed.
pub const SETTLE: Duration = Duration::from_secs(60);

/// How long blocks that were given back are remembered.
const DEPARTED_KEPT: Duration = Duration::from_secs(600);

/// First and longest pause of a subnet that has no addresses left.
const SUBNET_PAUSE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(300));

/// The same where it has no whole /28 left. Single addresses stand in for prefixes meanwhile, and a try costs some of them.
const PREFIX_PAUSE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// How long the planner holds back after EC2 has said that the instance has all the ENIs it can have.
const ATTACHMENT_LIMIT_PAUSE: Duration = Duration::from_secs(300);

/// What does not change while the instance runs, or hardly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Who it is.
    pub identity: InstanceIdentity,
    /// What its type can hold.
    pub limits: InstanceLimits,
    /// IPv4 CIDRs of the VPC.
    pub vpc_cidrs: Vec<Ipv4Net>,
    /// Security groups of the primary ENI, which new ENIs get.
    pub security_groups: Vec<SecurityGroupId>,
    /// Tags of new ENIs, `createdAt` and the intent apart.
    pub tags: BTreeMap<String, String>,
    /// Whether attached ENIs that do not carry this node's tag are used all the same (`MANAGE_UNTAGGED_ENI`).
    pub manage_untagged_enis: bool,
    /// Which addresses pods have.
    #[serde(default)]
    pub families: Families,
    /// `AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG`: ENIs are made where an ENIConfig says, and pods get no address of the primary ENI.
    #[serde(default)]
    pub custom_networking: bool,
    /// `ENABLE_SUBNET_DISCOVERY`: ENIs in subnets that are tagged out of use take no pods.
    #[serde(default)]
    pub subnet_discovery: bool,
    /// `ENABLE_IMDS_ONLY_MODE`: EC2 is never called, and IMDS alone tells what there is.
    #[serde(default)]
    pub imds_only: bool,
    /// `ENABLE_MULTI_NIC`: ENIs on further network cards serve pods too.
    #[serde(default)]
    pub multi_nic: bool,
}

/// A create that has been begun: written before the call, so that what it made is found again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The call, word for word: a repeated call must not differ (EC2 API, IdempotentParameterMismatch).
    pub request: CreateEni,
    /// The network card that the ENI is for, as the request has it.
    pub card: u32,
    /// When it was begun.
    pub since: Timestamp,
    /// How many times the call has been made.
    pub tries: u32,
}

/// Why calls of an API are not worth making, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// What kind of failure it was.
    pub kind: CloudErrorKind,
    /// EC2's error code, or what stood in place of it.
    pub code: String,
    /// EC2's words.
    pub message: String,
    /// No call before then.
    pub until: Timestamp,
}

/// What changes the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Who the node is has been learnt, or has changed.
    NodeKnown(Node),
    /// IMDS has listed the attached ENIs. It removes nothing; what it shows beyond the ledger is used at once only while
    /// the ledger is empty, and otherwise after EC2 has confirmed it.
    ImdsSeen(Vec<ImdsEni>),
    /// EC2 has listed all ENIs that this node owns, attached or not.
    Surveyed(Vec<Ec2Eni>),
    /// EC2 has described an ENI of the ledger, or does not know it (`None`).
    EniDescribed(EniId, Option<Ec2Eni>),
    /// EC2 has described subnets.
    SubnetsKnown(Vec<Ec2Subnet>),
    /// Which ENIConfig is this node's; nothing when it names none, or one that is not there.
    EniConfigKnown(Option<EniConfig>),
    /// Private networks beside the VPC: what goes there keeps pods' addresses, where the settings say so.
    RoutesKnown(Vec<Ipv4Net>),
    /// Whether new pods may be scheduled to the node.
    Schedulable(bool),
    /// How many pods the node's kubelet takes, those of the host's network among them.
    MaxPodsKnown(u32),
    /// The host has set an ENI up. One without the /80 that its pods need waits for that.
    EniReady(EniId),
    /// A pod has asked for an address for the first time, whether there is one or not.
    Arrived,
    /// An ADD gets an address.
    Assign(IpAddr, Arc<Owner>),
    /// An address in quarantine is that of an attachment: the kernel says whose, where the ledger has forgotten it.
    Adopt(IpAddr, Arc<Owner>),
    /// An attachment is gone; its address cools for so long.
    Release(Attachment, Duration),
    /// An attachment has been given what its pod's annotation says of a branch ENI.
    BranchHeld(Box<Held>),
    /// An attachment that had a branch ENI is gone.
    BranchReleased(Attachment),
    /// Every address that lives in the kernel; one that has left quarantine cools for so long.
    KernelSeen(BTreeSet<IpAddr>, Duration),
    /// The pods that are bound to this node, want an address of their own and had no sandbox when this was seen: all of them
    /// each time. They are forgotten over a restart, because whoever watches tells of them anew. No more than
    /// [`QUEUE_LIMIT`] of them count.
    PodsBound(BTreeSet<PodRef>),
    /// A planned operation is about to be carried out.
    Begin(Op),
    /// It has ended.
    End(Op, Result<Outcome, Failure>),
}

/// Why an event was refused. The state is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The ledger refuses it.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A branch ENI cannot be an attachment's, or is not.
    #[error("{attachment} cannot have a branch ENI: {why}")]
    Branch {
        /// Whose it would be.
        attachment: Attachment,
        /// What stands against it.
        why: &'static str,
    },
    /// The plan that the operation comes from is out of date.
    #[error("{op} is not possible now: {why}")]
    Stale {
        /// The operation.
        op: String,
        /// What stands against it.
        why: &'static str,
    },
}

/// All that is known and begun.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    pub(crate) ledger: Ledger,
    pub(crate) node: Option<Node>,
    pub(crate) intents: BTreeMap<String, Intent>,
    pub(crate) flights: BTreeMap<OpKey, Op>,
    pub(crate) obstacles: BTreeMap<Api, Obstacle>,
    pub(crate) subnets: BTreeMap<SubnetId, Subnet>,
    /// Whether no new pods are scheduled to the node, as far as is known.
    pub(crate) cordoned: bool,
    /// How many pods the kubelet takes, as far as the node's object has said so.
    pub(crate) max_pods: Option<u32>,
    /// The ENIConfig of this node, once known.
    pub(crate) eni_config: Option<EniConfig>,
    /// Private networks beside the VPC that its route tables lead to, as far as is known.
    pub(crate) routes: Vec<Ipv4Net>,
    /// Device numbers that EC2 said were in use though we know of nothing there, and when.
    pub(crate) busy_devices: BTreeMap<(u32, u32), Timestamp>,
    /// Network cards that EC2 says hold all ENIs that they can, and until when that is believed.
    pub(crate) full_cards: BTreeMap<u32, Timestamp>,
    /// ENIs that were deleted, and when: a description may yet show them.
    pub(crate) deleted: BTreeMap<EniId, Timestamp>,
    /// Makes client tokens differ from those of a state that was lost.
    pub(crate) seed: u64,
    /// Makes client tokens differ from each other.
    pub(crate) sequence: u64,
    pub(crate) last_grown: Option<Timestamp>,
    pub(crate) last_shrunk: Option<Timestamp>,
    /// When EC2 is to be asked for all ENIs of this node, if it has to be.
    pub(crate) survey_at: Option<Timestamp>,
    /// EC2 is asked for all ENIs once more then, though a survey before has answered: its answer may be late.
    pub(crate) resurvey_at: Option<Timestamp>,
    /// What only a description before then shows is hearsay: a state that was lost may have given it back.
    pub(crate) hearsay_until: Option<Timestamp>,
    /// Whether what IMDS says of the primary ENI's addresses is used at once: only while there is nothing that it could
    /// contradict.
    pub(crate) imds_trusted: bool,
    /// Addresses that are found, not asked for, cool until then: a state that was lost may have released them just before.
    pub(crate) found_cool_until: Option<Timestamp>,
    /// When EC2 last described the subnets.
    pub(crate) subnets_at: Option<Timestamp>,
    /// Pods that are about to ask.
    pub(crate) bound: BTreeSet<PodRef>,
    /// What adaptive warm mode has learned.
    pub(crate) arrivals: Arrivals,
    /// What attachments have of branch ENIs.
    pub(crate) branches: BTreeMap<Attachment, Held>,
}

impl State {
    /// An empty state. `seed` is a random number.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, survey_at: Some(Timestamp::default()), imds_trusted: true, ..Self::default() }
    }

    /// Who holds which address.
    #[must_use]
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Who the node is, once known.
    #[must_use]
    pub const fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// Creates that have been begun, by client token.
    #[must_use]
    pub const fn intents(&self) -> &BTreeMap<String, Intent> {
        &self.intents
    }

    /// Operations that are under way.
    #[must_use]
    pub const fn flights(&self) -> &BTreeMap<OpKey, Op> {
        &self.flights
    }

    /// APIs that are not worth calling for now.
    #[must_use]
    pub const fn obstacles(&self) -> &BTreeMap<Api, Obstacle> {
        &self.obstacles
    }

    /// Where new ENIs are made with custom networking, once known.
    #[must_use]
    pub const fn eni_config(&self) -> Option<&EniConfig> {
        self.eni_config.as_ref()
    }

    /// The same, where it is the one that names the security groups of new ENIs; else these are the primary ENI's.
    #[must_use]
    pub fn named_groups(&self) -> Option<&EniConfig> {
        let custom = self.node.as_ref().is_some_and(|node| node.custom_networking);
        self.eni_config.as_ref().filter(|config| custom && !config.security_groups.is_empty())
    }

    /// How many pods the kubelet takes, those of the host's network among them; none before the node's object has said so.
    #[must_use]
    pub const fn max_pods(&self) -> Option<u32> {
        self.max_pods
    }

    /// Private networks beside the VPC that its route tables lead to; none before they are known.
    #[must_use]
    pub fn routes(&self) -> &[Ipv4Net] {
        &self.routes
    }

    /// When EC2 last described the subnets; none where it has not since the start.
    #[must_use]
    pub const fn subnets_at(&self) -> Option<Timestamp> {
        self.subnets_at
    }

    /// The subnets that are known.
    #[must_use]
    pub const fn subnets(&self) -> &BTreeMap<SubnetId, Subnet> {
        &self.subnets
    }

    /// What adaptive warm mode has learned.
    #[must_use]
    pub const fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    /// The network cards whose ENIs serve pods, in order: card 0, and with `ENABLE_MULTI_NIC` the others. Which of a pod's
    /// interfaces is on which card goes by their order here.
    #[must_use]
    pub fn cards(&self) -> Vec<u32> {
        let further = self.node.iter().flat_map(|node| (1..).zip(&node.limits.further_cards)).map(|(card, _)| card);
        std::iter::once(0).chain(further.filter(|card| self.serves(*card))).collect()
    }

    /// Whether a network card serves pods: not where all that is attached to it is of EFA alone.
    fn serves(&self, card: u32) -> bool {
        let mut attached = self.ledger.enis().filter(|eni| eni.card == card && eni.device.is_some()).peekable();
        // Where nothing is asked for, nothing comes to a card that is empty.
        let is_empty = self.node.as_ref().is_some_and(|node| node.imds_only) && attached.peek().is_none();
        let is_for_efa = attached.peek().is_some() && attached.all(|eni| eni.interface_type == InterfaceType::EfaOnly);
        card == 0 || (self.is_for_pods(card) && !is_empty && !is_for_efa)
    }

    /// Whether ENIs on a network card may serve pods, by the settings.
    pub(crate) fn is_for_pods(&self, card: u32) -> bool {
        card == 0 || self.node.as_ref().is_some_and(|node| node.multi_nic && node.limits.enis_of(card) > 0)
    }

    /// Until when a network card is known to hold all ENIs that it can.
    #[must_use]
    pub fn full_until(&self, card: u32, now: Timestamp) -> Option<Timestamp> {
        self.full_cards.get(&card).copied().filter(|until| *until > now)
    }

    /// What keeps calls of `api` from being worth making now.
    #[must_use]
    pub fn obstacle(&self, api: Api, now: Timestamp) -> Option<&Obstacle> {
        self.obstacles.get(&api).filter(|obstacle| obstacle.until > now)
    }

    /// EC2 is to be asked for all ENIs at `at` at the latest, and then in any case.
    pub(crate) fn survey_again(&mut self, at: Timestamp) {
        self.survey_at = Some(self.survey_at.map_or(at, |due| due.min(at)));
        self.resurvey_at = self.resurvey_at.max(Some(at));
    }

    /// How many of the pods that are bound to this node neither hold an address nor wait in `queue`. One that was made anew
    /// under the same name is told by its UID, where both are known.
    #[must_use]
    pub fn bound_without(&self, queue: &Queue) -> u32 {
        if self.bound.is_empty() {
            return 0;
        }
        let held = self.ledger.owners().filter_map(|(_, address)| match self.ledger.address(address) {
            Some(AddressState::Assigned { owner, .. }) => Some(&owner.pod),
            _ => None,
        });
        let served: BTreeMap<(&str, &str), Option<&str>> = held
            .chain(self.branches.values().map(|held| &held.owner.pod))
            .chain(queue.waiters().map(|waiter| &waiter.owner.pod))
            .map(|pod| ((pod.namespace.as_str(), pod.name.as_str()), pod.uid.as_deref()))
            .collect();
        let due = self.bound.iter().filter(|pod| match served.get(&(pod.namespace.as_str(), pod.name.as_str())) {
            None => true,
            Some(uid) => matches!((uid, pod.uid.as_deref()), (Some(known), Some(bound)) if *known != bound),
        });
        u32::try_from(due.count()).unwrap_or(u32::MAX)
    }

    /// The client token of the `ahead`-th create from here.
    #[must_use]
    pub fn client_token(&self, ahead: u64) -> String {
        format!("sluice-{:016x}-{}", self.seed, self.sequence.wrapping_add(ahead))
    }

    /// Changes the state.
    ///
    /// # Errors
    /// [`ApplyError`] when the event contradicts the state; nothing has changed then.
    pub fn apply(&mut self, event: Event, now: Timestamp) -> Result<(), ApplyError> {
        match event {
            Event::NodeKnown(node) => self.node_known(node)?,
            Event::ImdsSeen(enis) => self.imds_seen(&enis, now)?,
            Event::Surveyed(enis) => self.surveyed(&enis, now),
            Event::EniDescribed(eni, described) => self.described(&eni, described.as_ref(), now)?,
            Event::SubnetsKnown(subnets) => self.subnets_known(subnets, now)?,
            Event::EniConfigKnown(config) => self.eni_config = config,
            Event::RoutesKnown(routes) => self.routes = routes,
            Event::Schedulable(schedulable) => self.cordoned = !schedulable,
            Event::MaxPodsKnown(pods) => self.max_pods = Some(pods),
            Event::EniReady(id) => self.ready(&id, now)?,
            Event::Arrived => {
                let places = self.node.as_ref().map_or(0, |node| Self::places_per_eni(&node.limits));
                self.arrivals.arrived(places, now);
            }
            Event::Assign(address, owner) => self.ledger.assign(address, owner, now)?,
            Event::Adopt(address, owner) => self.ledger.adopt(address, owner, now)?,
            Event::Release(attachment, cooldown) => {
                self.ledger.release(&attachment, cooldown, now)?;
            }
            Event::BranchHeld(held) => {
                let attachment = held.owner.attachment.clone();
                self.branch_held(*held).map_err(|why| ApplyError::Branch { attachment, why })?;
            }
            Event::BranchReleased(attachment) => {
                if self.branches.remove(&attachment).is_none() {
                    return Err(ApplyError::Branch { attachment, why: "it has none" });
                }
            }
            Event::KernelSeen(alive, cooldown) => self.kernel_seen(&alive, cooldown, now),
            Event::PodsBound(pods) => self.bound = pods.into_iter().take(QUEUE_LIMIT).collect(),
            Event::Begin(op) => self.begin(op, now)?,
            Event::End(op, result) => self.end(&op, result, now)?,
        }
        Ok(())
    }

    /// [`Event::KernelSeen`], which cannot contradict the state.
    pub(crate) fn kernel_seen(&mut self, alive: &BTreeSet<IpAddr>, cooldown: Duration, now: Timestamp) {
        if !self.ledger.strays().is_subset(alive) {
            // Pods have gone whose ENI is not known yet: their addresses cool when they are found.
            self.found_cool_until = self.found_cool_until.max(Some(now + cooldown));
        }
        self.ledger.kernel_seen(alive, cooldown, now);
    }

    /// Takes in who the node is. ENIs that lack what pods are to have from now on take none until they have it.
    fn node_known(&mut self, node: Node) -> Result<(), ApplyError> {
        let families = node.families;
        let let_alone = |eni: &&Eni| eni.role == Role::Unmanaged && !self.is_for_pods(eni.card);
        let let_alone: Vec<EniId> = self.ledger.enis().filter(let_alone).map(|eni| eni.id.clone()).collect();
        self.node = Some(node);
        self.close_and_open()?;
        for id in let_alone {
            // What was let alone on a card that serves pods by now may be for them: EC2 knows by its tags.
            let card = self.ledger.eni_mut(&id)?.card;
            self.ledger.eni_mut(&id)?.unsure |= self.is_for_pods(card);
        }
        let enis: Vec<EniId> = self.ledger.enis().map(|eni| eni.id.clone()).collect();
        for id in enis {
            if !families.has_v6() {
                self.ledger.set_ipv6(&id, None)?;
            } else if self.lacks_ipv6(&id) {
                self.set_up_again(&id)?;
            }
        }
        Ok(())
    }

    /// Brings up to date which ENIs pods get no address of.
    fn close_and_open(&mut self) -> Result<(), LedgerError> {
        let turned = self.ledger.enis().filter(|eni| eni.closed != self.is_closed(eni.role, eni.card, &eni.subnet));
        let turned: Vec<(EniId, bool)> = turned.map(|eni| (eni.id.clone(), !eni.closed)).collect();
        for (id, closed) in turned {
            self.ledger.set_closed(&id, closed)?;
            // What EC2 has shown on it meanwhile was not taken in.
            self.ledger.eni_mut(&id)?.unsure |= !closed;
        }
        Ok(())
    }

    /// Which addresses pods have.
    #[must_use]
    pub fn families(&self) -> Families {
        self.node.as_ref().map_or_else(Families::default, |node| node.families)
    }

    /// Whether the ENI has no /80 though its pods are to have addresses of one.
    #[must_use]
    pub fn lacks_ipv6(&self, id: &EniId) -> bool {
        self.families().has_v6()
            && self.ledger.eni(id).is_some_and(|eni| eni.ipv6.is_none() && Self::is_delegated_to(self.families(), eni))
    }

    /// Whether pods' IPv6 addresses are of this ENI.
    #[must_use]
    pub fn is_delegated_to(families: Families, eni: &Eni) -> bool {
        match families {
            Families::V4 => false,
            Families::V6 => eni.role == Role::Primary || (eni.card > 0 && eni.carries_pods()),
            Families::Dual => eni.carries_pods(),
        }
    }

    /// The ENI takes no new pods until the host has set it up once more.
    fn set_up_again(&mut self, id: &EniId) -> Result<(), ApplyError> {
        if self.ledger.eni(id).is_some_and(|eni| eni.stage == Stage::InService) {
            self.ledger.set_stage(id, Stage::Attached)?;
        }
        Ok(())
    }

    fn ready(&mut self, id: &EniId, now: Timestamp) -> Result<(), ApplyError> {
        let lacks_ipv6 = self.lacks_ipv6(id);
        let eni = self.ledger.eni_mut(id)?;
        if eni.stage == Stage::Attached && !lacks_ipv6 {
            eni.since = now;
            self.ledger.set_stage(id, Stage::InService)?;
            self.arrivals.ready(id, now);
        }
        Ok(())
    }

    /// Records that an operation is about to be carried out, with what that means for the ledger.
    fn begin(&mut self, op: Op, now: Timestamp) -> Result<(), ApplyError> {
        let stale = |op: &Op, why| Err(ApplyError::Stale { op: op.to_string(), why });
        if self.flights.contains_key(&op.key()) {
            return stale(&op, "another operation on the same object is under way");
        }
        match &op {
            Op::Create(request) => {
                let intent = Intent { request: request.clone(), card: request.card, since: now, tries: 0 };
                let intent = self.intents.entry(request.client_token.clone()).or_insert(intent);
                intent.tries = intent.tries.saturating_add(1);
                // Plans number their creates ahead, and not all of them need have been begun.
                let number: Option<u64> =
                    request.client_token.rsplit('-').next().and_then(|number| number.parse().ok());
                self.sequence = self.sequence.max(number.map_or(0, |number| number.saturating_add(1)));
            }
            Op::Unassign { eni, what } => {
                let blocks = blocks_of(&what.addresses, &what.prefixes);
                let known = self.ledger.eni_mut(eni)?;
                for net in &blocks {
                    match known.blocks.get(net) {
                        None => return stale(&op, "the ENI does not have them"),
                        Some(block) if block.in_use(now).is_some() => return stale(&op, "an address is in use"),
                        Some(_) => {}
                    }
                }
                for net in blocks {
                    self.ledger.set_withdrawn(eni, net, true)?;
                }
            }
            Op::Detach { eni, .. } | Op::Delete { eni } => {
                let known = self.ledger.eni_mut(eni)?;
                if !known.may_be_freed() {
                    return stale(&op, "the ENI is not ours to free");
                }
                if known.in_use(now).is_some() {
                    return stale(&op, "an address of it is in use");
                }
                self.ledger.set_stage(eni, Stage::Leaving)?;
            }
            Op::Assign { eni, count } => {
                let known = self.ledger.eni_mut(eni)?.places_taken();
                let places = self.node.as_ref().map_or(u32::MAX, |node| Self::places_per_eni(&node.limits));
                if known.saturating_add(count.places()) > places {
                    return stale(&op, "the ENI has no place for them");
                }
                self.arrivals.begun(eni, now);
            }
            Op::Attach { eni, card, .. } => {
                self.ledger.eni_mut(eni)?;
                let is_here = |op: &&Op| matches!(op, Op::Attach { card: on, .. } if on == card);
                let attaching = self.flights.values().filter(is_here).count();
                let attached = self.ledger.enis().filter(|eni| eni.card == *card && eni.device.is_some());
                let there = attached.count() + attaching;
                let limit = self.node.as_ref().map_or(u32::MAX, |node| node.limits.enis_of(*card));
                if u32::try_from(there).unwrap_or(u32::MAX) >= limit {
                    return stale(&op, "the instance has no place for it");
                }
            }
            Op::AssignIpv6 { eni } => {
                if self.ledger.eni_mut(eni)?.ipv6.is_some() {
                    return stale(&op, "the ENI has one already");
                }
            }
            Op::DeleteOnTermination { eni, .. }
            | Op::SetGroups { eni, .. }
            | Op::Tag { eni, .. }
            | Op::Inspect { eni } => {
                self.ledger.eni_mut(eni)?;
            }
            Op::Survey { .. } | Op::Subnets { .. } => {}
        }
        self.flights.insert(op.key(), op);
        Ok(())
    }

    /// The tags of an ENI that is made at `now` under `token`.
    pub(crate) fn eni_tags(&self, token: &str, now: Timestamp) -> BTreeMap<String, String> {
        let mut tags = self.node.as_ref().map(|node| node.tags.clone()).unwrap_or_default();
        tags.insert(tag::CREATED_AT.to_owned(), now.to_string());
        tags.insert(tag::INTENT.to_owned(), token.to_owned());
        tags
    }
}

/// Tags of ENIs. All but the intent's are VPC CNI's.
pub mod tag {
    /// The instance that the ENI was made for.
    pub const INSTANCE: &str = "node.k8s.amazonaws.com/instance_id";
    /// When it was made, RFC 3339.
    pub const CREATED_AT: &str = "node.k8s.amazonaws.com/createdAt";
    /// `true`: not ours to use.
    pub const NO_MANAGE: &str = "node.k8s.amazonaws.com/no_manage";
    /// The cluster's name.
    pub const CLUSTER: &str = "cluster.k8s.amazonaws.com/name";
    /// Whose it is to delete when its node is gone: EKS's controller deletes those of [`OWNER_VPC_CNI`] with their cluster.
    pub const OWNER: &str = "eks:eni:owner";
    /// What the AWS VPC CNI writes there, and so do we.
    pub const OWNER_VPC_CNI: &str = "amazon-vpc-cni";
    /// Of a subnet: whether ENIs for pods may be made in it (`1`) or not (`0`).
    pub const SUBNET_ROLE: &str = "kubernetes.io/role/cni";
    /// Of a subnet, with a cluster's name behind: only that cluster's ENIs are made in it.
    pub const SUBNET_CLUSTER: &str = "cni.networking.k8s.aws/cluster/";
    /// The client token that it was made with.
    pub const INTENT: &str = "sluice.dev/intent";
}

#[cfg(test)]
mod tests;
