//! One node: the daemon's loop around the planner, in virtual time.
//!
//! The same pure functions decide as in the daemon ([`plan`], [`serve`], [`State::apply`]); in place of the executor the model's
//! answers arrive when EC2 would have sent them. The host sets an ENI up as soon as its link shows. The executor's own
//! token buckets are left out: a node needs more calls at once than they allow only when EC2 throttles it.

mod scene;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sluice_contract::id::{Attachment, ContainerId, EniId, IfName, InstanceId, InvalidId, NetworkName, PodRef};
use sluice_contract::rpc::Refusal;
use sluice_ipamd_core::check::check;
use sluice_ipamd_core::cloud::{CloudError, CloudErrorKind, InstanceLimits};
use sluice_ipamd_core::ledger::{Owner, Stage};
use sluice_ipamd_core::limits;
use sluice_ipamd_core::op::{Failure, Op, Outcome};
use sluice_ipamd_core::plan::{Demand, Plan, Targets, plan};
use sluice_ipamd_core::queue::{Queue, Token};
use sluice_ipamd_core::serve::serve;
use sluice_ipamd_core::state::{Event, State};
use sluice_ipamd_core::time::Timestamp;
use sluice_vpcsim::model::{ApiError, CallFailure, Model, Settings};

pub use scene::Networking;

use crate::translate;
use scene::Scene;

/// How long a call without an answer is waited for (`HTTP_TIMEOUT`).
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// After a failed call, before the next one of its kind.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How long an ADD waits. The kubelet would ask again and again; here the request just stays.
const ADD_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// A pool that has asked nothing of EC2 for so long has settled: longer than any pause of the planner that is not for a subnet
/// without addresses.
const SETTLED: Duration = Duration::from_secs(130);

/// Hours after which a pool that has not settled never will.
const NEVER: Duration = Duration::from_secs(12 * 3600);

/// Why a node could not be simulated.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// Nothing is known of the type.
    #[error("instance type {0:?} is in no table: is it spelt as in EC2's DescribeInstanceTypes, like m5.4xlarge?")]
    UnknownType(String),
    /// The model refuses the scene.
    #[error("the simulated VPC cannot be set up")]
    Scene(#[source] ApiError),
    /// A name is no id.
    #[error("a name of the simulation is no id")]
    Name(#[from] InvalidId),
    /// A pod was refused for good.
    #[error("the node holds {held} pods and not one more: {} ({})", refusal.message, refusal.hint.as_deref().unwrap_or("no advice"))]
    Full {
        /// Pods that have addresses.
        held: u32,
        /// What the plugin would have been told.
        refusal: Box<Refusal>,
    },
    /// It went on asking EC2 for hours.
    #[error("the pool does not settle with these targets; it last asked for: {0}")]
    Restless(String),
    /// A rule of the ledger is broken: a defect of the planner.
    #[error("a rule of the ledger is broken, which is a defect of Sluice: {0}")]
    Broken(String),
}

/// What a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// Pods that have addresses.
    pub pods: u32,
    /// ENIs, the primary among them.
    pub enis: u32,
    /// Addresses for pods, in use or not, those of prefixes among them. Pods with addresses of both families are counted by
    /// IPv4's; of a /80 those count that pods may have ([`sluice_ipamd_core::ipv6::WINDOW`]).
    pub addresses: u32,
    /// /28 prefixes.
    pub prefixes: u32,
    /// /80 prefixes, of which pods' IPv6 addresses are.
    pub ipv6_prefixes: u32,
    /// Addresses that a pod could have at once.
    pub free: u32,
    /// Calls of EC2 since the node started.
    pub ec2_calls: u64,
}

#[derive(Debug)]
struct Flight {
    op: Op,
    ends: Duration,
    result: Result<Outcome, CloudError>,
}

/// A node in virtual time.
#[derive(Debug)]
pub struct Node {
    model: Model,
    instance: InstanceId,
    start: Timestamp,
    now: Duration,
    state: State,
    queue: Queue,
    targets: Targets,
    cooldown: Duration,
    plan: Plan,
    flights: Vec<Flight>,
    waiting: BTreeMap<Attachment, Duration>,
    waits: Vec<Duration>,
    refused: Option<Refusal>,
    tokens: u64,
    last_op: Duration,
    last_reason: String,
    idle: IdleTime,
}

/// Address-seconds without a pod.
#[derive(Debug, Clone, Copy, Default)]
struct IdleTime {
    address_seconds: f64,
    since: Duration,
}

/// The limits of an instance type.
///
/// # Errors
/// [`SimError::UnknownType`].
pub fn limits_of(instance_type: &str) -> Result<InstanceLimits, SimError> {
    limits::limits(instance_type).ok_or_else(|| SimError::UnknownType(instance_type.to_owned()))
}

impl Node {
    /// A node of IPv4 pods that starts at time 0, in a subnet with room for twice what it can hold. EC2 behaves as `settings`
    /// say.
    ///
    /// # Errors
    /// [`SimError`]: the type is unknown, or the scene cannot be set up.
    pub fn new(
        instance_type: &str,
        targets: Targets,
        cooldown: Duration,
        settings: Settings,
    ) -> Result<Self, SimError> {
        Self::connected(instance_type, Networking::default(), targets, cooldown, settings)
    }

    /// The same with pods' addresses as `networking` says.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn connected(
        instance_type: &str,
        networking: Networking,
        targets: Targets,
        cooldown: Duration,
        settings: Settings,
    ) -> Result<Self, SimError> {
        let start = Timestamp::from_millis(u64::try_from(settings.epoch.as_millis()).unwrap_or(0));
        let Scene { model, instance, known, config } = Scene::new(instance_type, networking, &targets, settings)?;
        let mut new = Self {
            state: State::new(model.settings().seed),
            model,
            instance,
            start,
            now: Duration::ZERO,
            queue: Queue::default(),
            targets,
            cooldown,
            plan: Plan::default(),
            flights: Vec::new(),
            waiting: BTreeMap::new(),
            waits: Vec::new(),
            refused: None,
            tokens: 0,
            last_op: Duration::ZERO,
            last_reason: String::new(),
            idle: IdleTime::default(),
        };
        new.apply(Event::NodeKnown(known));
        new.apply(Event::EniConfigKnown(config));
        let listed = translate::imds_enis(new.model.state(), &new.instance, Duration::ZERO);
        new.apply(Event::ImdsSeen(listed));
        new.host_sets_up();
        new.pump()?;
        Ok(new)
    }

    /// The time since the start.
    #[must_use]
    pub const fn now(&self) -> Duration {
        self.now
    }

    /// The node's targets; changed ones count from now on, as after a restart with other settings.
    pub const fn targets_mut(&mut self) -> &mut Targets {
        &mut self.targets
    }

    /// How long each pod that was served has waited for its address, in the order in which they were served.
    #[must_use]
    pub fn waits(&self) -> &[Duration] {
        &self.waits
    }

    /// Pods that wait.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        self.queue.waiting()
    }

    /// The model of EC2.
    #[must_use]
    pub const fn model(&self) -> &Model {
        &self.model
    }

    /// Addresses on the node that no pod had, on average since the start.
    #[must_use]
    pub fn mean_idle(&self) -> f64 {
        self.idle.address_seconds / self.now.as_secs_f64().max(1e-9)
    }

    /// Counts idle addresses from now on.
    pub const fn forget_idle(&mut self) {
        self.idle = IdleTime { address_seconds: 0.0, since: self.now };
    }

    /// Addresses on the node that no pod had, on average since [`Self::forget_idle`].
    #[must_use]
    pub fn mean_idle_since(&self) -> f64 {
        self.idle.address_seconds / (self.now.saturating_sub(self.idle.since)).as_secs_f64().max(1e-9)
    }

    fn at(&self) -> Timestamp {
        self.start + self.now
    }

    /// What the node has now.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let tally = self.state.ledger().tally(self.at());
        let delegated = self.state.ledger().enis().filter(|eni| eni.ipv6.is_some()).count();
        let ipv6_prefixes = u32::try_from(delegated).unwrap_or(u32::MAX);
        Figures {
            pods: tally.assigned,
            enis: tally.enis,
            addresses: tally.total(),
            // Where pods have IPv6 alone, these are the blocks.
            prefixes: if self.state.families().has_v4() { tally.prefixes } else { 0 },
            ipv6_prefixes,
            free: tally.free,
            ec2_calls: self.model.log().total(),
        }
    }

    /// Addresses and prefixes of each ENI, in the order of their devices.
    #[must_use]
    pub fn places(&self) -> Vec<u32> {
        let mut enis: Vec<_> = self.state.ledger().enis().map(|eni| (eni.device, eni.places_taken())).collect();
        enis.sort_unstable();
        enis.into_iter().map(|(_, places)| places).collect()
    }

    /// A pod comes.
    ///
    /// # Errors
    /// [`SimError`]: the name is none, or a rule is broken.
    pub fn add(&mut self, pod: &str) -> Result<(), SimError> {
        self.join(pod)?;
        self.pump()
    }

    /// Pods come at once, before the daemon looks.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn add_all(&mut self, pods: impl IntoIterator<Item = String>) -> Result<(), SimError> {
        for pod in pods {
            self.join(&pod)?;
        }
        self.pump()
    }

    fn join(&mut self, pod: &str) -> Result<(), SimError> {
        let owner = owner(pod)?;
        self.tokens += 1;
        self.waiting.insert(owner.attachment.clone(), self.now);
        self.apply(Event::Arrived);
        let at = self.at();
        if let Err(refusal) = self.queue.join(Token(self.tokens), owner, None, at + ADD_DEADLINE, at) {
            self.refused = Some(refusal);
        }
        Ok(())
    }

    /// The scheduler has bound pods to the node.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn bound(&mut self, pods: impl IntoIterator<Item = String>) -> Result<(), SimError> {
        let pods: Result<BTreeSet<PodRef>, SimError> =
            pods.into_iter().map(|pod| Ok(owner(&pod)?.pod.clone())).collect();
        self.apply(Event::PodsBound(pods?));
        self.pump()
    }

    /// A pod ends.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn del(&mut self, pod: &str) -> Result<(), SimError> {
        let attachment = owner(pod)?.attachment.clone();
        self.queue.remove(&attachment);
        self.waiting.remove(&attachment);
        if self.state.ledger().address_of(&attachment).is_some() {
            self.apply(Event::Release(attachment, self.cooldown));
        }
        self.pump()
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// [`SimError`]: a rule is broken, or a pod was refused for good.
    pub fn run(&mut self, time: Duration) -> Result<(), SimError> {
        let until = self.now + time;
        while let Some(next) = self.next().filter(|next| *next <= until) {
            self.advance(next.max(self.now + Duration::from_millis(1)).min(until));
            self.end_flights();
            self.pump()?;
        }
        self.advance(until);
        Ok(())
    }

    /// Lets time pass until the pool is at rest.
    ///
    /// # Errors
    /// [`SimError`]: as [`Self::run`], or it is never at rest.
    pub fn settle(&mut self) -> Result<(), SimError> {
        let begun = self.now;
        loop {
            self.run(Duration::from_secs(10))?;
            let quiet = self.now.saturating_sub(self.last_op.max(begun));
            if quiet >= SETTLED && self.flights.is_empty() {
                return Ok(());
            }
            if self.now.saturating_sub(begun) > NEVER {
                return Err(SimError::Restless(self.last_reason.clone()));
            }
        }
    }

    /// Lets time pass until nobody waits. Answers how long that took.
    ///
    /// # Errors
    /// As [`Self::settle`].
    pub fn serve_all(&mut self) -> Result<Duration, SimError> {
        let begun = self.now;
        while self.queue.waiting() > 0 {
            let next = self.next().unwrap_or(self.now + NEVER);
            if next.saturating_sub(begun) > NEVER {
                return Err(SimError::Restless(self.last_reason.clone()));
            }
            self.run(next.saturating_sub(self.now).max(Duration::from_millis(1)))?;
        }
        Ok(self.now.saturating_sub(begun))
    }

    fn advance(&mut self, to: Duration) {
        let tally = self.state.ledger().tally(self.at());
        let idle = f64::from(tally.total() - tally.assigned);
        self.idle.address_seconds += idle * to.saturating_sub(self.now).as_secs_f64();
        self.now = self.now.max(to);
        self.model.settle(self.now);
    }

    fn next(&self) -> Option<Duration> {
        let at = |time: Timestamp| time.since(self.start);
        let serving = serve(&self.state, &self.queue, &self.plan, self.at());
        self.flights
            .iter()
            .map(|flight| flight.ends)
            .chain(self.plan.wake_at.map(at))
            .chain(serving.wake_at.map(at))
            .chain(self.model.next_change(self.now))
            .min()
    }

    /// Events of a simulation that are refused are stale plans, as in the daemon, and change nothing.
    fn apply(&mut self, event: Event) -> bool {
        self.state.apply(event, self.at()).is_ok()
    }

    /// Plans, serves and asks until nothing more happens at this time.
    fn pump(&mut self) -> Result<(), SimError> {
        loop {
            let now = self.at();
            self.plan = plan(&self.state, &self.targets, &Demand::of(&self.state, &self.queue), now);
            let serving = serve(&self.state, &self.queue, &self.plan, now);
            let mut quiet = serving.grants.is_empty() && serving.refused.is_empty();
            for grant in serving.grants {
                if grant.held || self.apply(Event::Assign(grant.address, Arc::clone(&grant.owner))) {
                    self.queue.remove(&grant.owner.attachment);
                    if let Some(since) = self.waiting.remove(&grant.owner.attachment) {
                        self.waits.push(self.now.saturating_sub(since));
                    }
                }
            }
            for refused in serving.refused {
                self.queue.remove(&refused.attachment);
                self.waiting.remove(&refused.attachment);
                self.refused = Some(refused.refusal);
            }
            for planned in std::mem::take(&mut self.plan.ops) {
                if self.apply(Event::Begin(planned.op.clone())) {
                    quiet = false;
                    self.last_op = self.now;
                    self.last_reason = format!("{} ({})", planned.op, planned.reason);
                    let flight = self.call(planned.op);
                    self.flights.push(flight);
                }
            }
            if quiet {
                break;
            }
        }
        if let Some(violation) = check(&self.state, self.at()).into_iter().next() {
            return Err(SimError::Broken(violation.to_string()));
        }
        match self.refused.take() {
            Some(refusal) => Err(SimError::Full { held: self.figures().pods, refusal: Box::new(refusal) }),
            None => Ok(()),
        }
    }

    fn call(&mut self, op: Op) -> Flight {
        let mut ends = self.now;
        let mut replies = Vec::new();
        let mut result = Ok(());
        for request in translate::requests(&op) {
            let outcome = self.model.call_from("node", request, self.now);
            ends += outcome.answer_after;
            match outcome.result {
                Ok(reply) => replies.push(reply),
                Err(CallFailure::Api(error)) => {
                    result = Err(translate::cloud_error(op.api(), &error));
                    break;
                }
                Err(CallFailure::NoAnswer) => {
                    ends = self.now + CALL_TIMEOUT;
                    result = Err(CloudError {
                        api: op.api(),
                        kind: CloudErrorKind::Timeout,
                        code: "NoAnswer".to_owned(),
                        message: format!("no answer within {CALL_TIMEOUT:?}"),
                        retry_after: None,
                    });
                    break;
                }
            }
        }
        let result = match result.and_then(|()| translate::outcome(&op, replies)) {
            Err(error) if error.kind == CloudErrorKind::NotFound && matches!(op, Op::Delete { .. }) => {
                Ok(Outcome::Done)
            }
            result => result,
        };
        Flight { op, ends, result }
    }

    fn end_flights(&mut self) {
        let (ended, going) = std::mem::take(&mut self.flights).into_iter().partition(|flight| flight.ends <= self.now);
        self.flights = going;
        for Flight { op, result, .. } in ended {
            let result = result.map_err(|error| Failure { error, retry_after: RETRY_AFTER });
            self.apply(Event::End(op, result));
        }
        self.host_sets_up();
    }

    /// Links that show are set up.
    fn host_sets_up(&mut self) {
        let attached: Vec<EniId> = self
            .state
            .ledger()
            .enis()
            .filter(|eni| eni.stage == Stage::Attached && eni.carries_pods() && eni.is_subnet_known())
            .filter(|eni| {
                let known = self.model.state().enis.get(&eni.id);
                let attachment = known.and_then(|known| known.attachment.as_ref());
                attachment.is_some_and(|attachment| attachment.has_link(self.now))
            })
            .map(|eni| eni.id.clone())
            .collect();
        for eni in attached {
            self.apply(Event::EniReady(eni));
        }
    }
}

fn owner(pod: &str) -> Result<Arc<Owner>, SimError> {
    Ok(Arc::new(Owner {
        attachment: Attachment {
            container: ContainerId::new(pod)?,
            ifname: IfName::new("eth0")?,
            network: NetworkName::new("sluice")?,
        },
        pod: PodRef { namespace: "default".to_owned(), name: pod.to_owned(), uid: None },
        host_ifname: IfName::new("eni00000000000")?,
        netns: format!("/run/netns/{pod}"),
    }))
}
