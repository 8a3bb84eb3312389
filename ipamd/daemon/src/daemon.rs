//! The loop: one task owns the state and the queue of waiting ADDs, and nothing else changes them.
//!
//! Inputs are requests of plugins, the ends of operations and kernel jobs, and timers. They are taken in batches. Each
//! batch ends in one step:
//!
//! 1. plan and serve (pure), and apply what they say: addresses are given, operations begun;
//! 2. write the checkpoint, once for the whole batch;
//! 3. only then send the replies and make the calls.
//!
//! So a crash at any point leaves either no trace of a change, or the change in the checkpoint before anybody knew of it.
//! If the checkpoint cannot be written, what was given in this batch is taken back and refused, and no call is made.

mod announce;
mod branch;
mod flows;
mod gone;
mod jobs;
mod leaks;
mod learn;
mod reports;
mod requests;
mod resolve;
mod settings;
mod timer;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sluice_contract::id::{Attachment, EniId, PodRef};
use sluice_contract::node::nic;
use sluice_contract::rpc::{DelRequest, Refusal, RefusalCode};
use sluice_daemon::tombstones::Tombstones;
use sluice_ipamd_core::check::check;
use sluice_ipamd_core::checkpoint::Writer;
use sluice_ipamd_core::cloud::{CloudError, CloudErrorKind};
use sluice_ipamd_core::garbage::Garbage;
use sluice_ipamd_core::ledger::{Owner, Stage};
use sluice_ipamd_core::limits;
use sluice_ipamd_core::op::{Failure, Op, Outcome};
use sluice_ipamd_core::plan::{Capacity, Demand, Plan, Targets, plan};
use sluice_ipamd_core::queue::{Queue, Token};
use sluice_ipamd_core::serve::{Serving, serve};
use sluice_ipamd_core::state::{Event, Node, State};
use sluice_ipamd_core::time::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::cloud::Cloud;
use crate::cluster::{Report, Told};
use crate::config::Config;
use crate::executor::{Executor, Random};
use crate::inbox::{Answer, InForce, Input, stopping};
use crate::kernel::{Disturbance, Kernel, NodeNetwork};
use crate::log::ErrorChain;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::view::{self, View};
use jobs::{Done, Job};
use reports::Reports;
use timer::Timer;

/// Inputs that are taken into one batch at most, so that none waits for long.
const BATCH: usize = 512;

/// How often the ledger's rules are checked.
const CHECK_EVERY: Duration = Duration::from_secs(60);

/// How often IMDS is read, the host's network compared, and pods looked for in the kernel.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Between two repairs of the host's network: whoever fights over it with us does not take more than this of the node.
const REPAIR_GAP: Duration = Duration::from_millis(500);

/// So many changes of others before repairs that failed are remembered.
const IN_VAIN_MOST: usize = 256;

/// How often tombstones are looked for.
const TOMBSTONES_EVERY: Duration = Duration::from_secs(5);

/// Between two steps that nothing but the plan asked for.
const WAKE_AFTER: Duration = Duration::from_millis(5);

/// After a checkpoint that could not be written, before the next attempt.
const STORE_AGAIN: Duration = Duration::from_secs(1);

/// What the loop works with.
#[derive(Debug)]
pub(crate) struct Parts<C, K> {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) executor: Arc<Executor<C>>,
    pub(crate) kernel: Arc<K>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) reports: mpsc::Sender<Report>,
    pub(crate) store: Store,
    pub(crate) tombstones: Tombstones<DelRequest>,
    pub(crate) seed: u64,
}

/// What the loop starts with.
#[derive(Debug)]
pub(crate) struct Start {
    /// The state.
    pub(crate) state: State,
    /// Pods that live and that no checkpoint tells of, by address.
    pub(crate) orphans: BTreeMap<IpAddr, Owner>,
}

/// The loop's task.
#[derive(Debug)]
pub(crate) struct Daemon<C, K> {
    parts: Parts<C, K>,
    targets: Targets,
    random: Random,
    state: State,
    queue: Queue,
    /// ADDs whose reply has not been sent.
    waiting: BTreeMap<Token, Waiting>,
    /// The request that an interface's address was given by, until another asks for the same interface.
    granted_by: BTreeMap<Attachment, Token>,
    plan: Plan,
    wake_at: Option<Instant>,
    ready: bool,
    stopping: bool,
    violations: u32,
    /// Whether the state has changed since the checkpoint was written.
    dirty: bool,
    /// What writes it.
    checkpoints: Writer,
    /// Tombstones whose attachments are released, to be removed after the next checkpoint.
    spent: Vec<PathBuf>,
    /// Addresses whose pods' remains are being taken from the kernel, with the ADDs that wait for that. None of them can be
    /// given before it has ended.
    clearing: BTreeMap<IpAddr, Vec<requests::Asking>>,
    /// Before then the host's network is not repaired again.
    next_repair: Instant,
    /// What others have changed and is to be mended at the next turn of that timer: it was just heard of, or could not be mended.
    unmended: Option<Disturbance>,
    /// What was heard of before repairs that failed, until one does not.
    in_vain: BTreeSet<String>,
    /// Something like that was heard of while a repair was under way.
    echoed: bool,
    /// What looks like left behind by pods that are gone.
    garbage: Garbage,
    /// What connection tracking is to forget of pods that are gone.
    forgetting: flows::Forgetting,
    /// Pods with security groups of their own.
    branching: branch::Branching,
    outbox: Vec<Reply>,
    tasks: JoinSet<Done>,
    jobs: HashMap<tokio::task::Id, Job>,
    node_done: Option<NodeNetwork>,
    /// Since when the node's network is to be set up for the first time; none once it is.
    begun: Option<Instant>,
    /// Pods that lived at the start and that no checkpoint told of, by address, until their ENIs are known.
    orphans: BTreeMap<IpAddr, Owner>,
    enis: BTreeMap<EniId, jobs::EniSide>,
    timers: Timers,
    /// The search for ENIs that are left behind, where it is this node's.
    searching: Option<leaks::Searching>,
    /// What it asks EC2 for on behalf of all nodes, where that is its turn.
    resolving: resolve::Resolving,
    reports: Reports,
    /// What was reported of pods' addresses.
    announced: announce::Announced,
}

#[derive(Debug)]
struct Timers {
    learn: Timer,
    pods: Timer,
    watch: Timer,
    mend: Timer,
    node: Timer,
    check: Timer,
    tombstones: Timer,
    store: Timer,
}

/// A waiting ADD.
#[derive(Debug)]
struct Waiting {
    answer: oneshot::Sender<Answer>,
    since: Instant,
    /// Whether it has been counted as one that found no free address.
    counted: bool,
    pod: PodRef,
    /// What it wants, by its interfaces.
    parts: Vec<requests::Part>,
    deadline: Timestamp,
}

/// A reply that goes out when the checkpoint is written.
#[derive(Debug)]
struct Reply {
    to: oneshot::Sender<Answer>,
    answer: Answer,
    token: Token,
    kind: ReplyKind,
    since: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReplyKind {
    Add,
    Del,
    /// It depends on no change.
    Other,
}

impl<C: Cloud, K: Kernel> Daemon<C, K> {
    /// A daemon that goes on from `start`.
    pub(crate) fn new(parts: Parts<C, K>, start: Start) -> Self {
        let now = Instant::now();
        let mut state = start.state;
        with_settings(&mut state, &parts);
        let targets = parts.config.targets_of(&state);
        // What served before the restart goes on serving: the tmpfs that held the checkpoint dies with the boot.
        let ready = state.node().is_some() && state.ledger().primary().is_some_and(|eni| eni.stage == Stage::InService);
        let ready = ready || parts.config.ready_mark().exists();
        let timers = Timers {
            learn: Timer::due(now, LOOK_EVERY),
            pods: Timer::due(now, LOOK_EVERY),
            watch: Timer::due(now, REPAIR_GAP),
            mend: Timer::due(now, REPAIR_GAP),
            node: Timer::due(now, LOOK_EVERY),
            check: Timer::due(now, CHECK_EVERY),
            tombstones: Timer::due(now, TOMBSTONES_EVERY),
            store: Timer::due(now, STORE_AGAIN),
        };
        let announced = parts.config.annotate_pod_ip.then(|| announce::Announced::before(&state));
        let mut daemon = Self {
            random: Random::new(parts.seed),
            targets,
            state,
            queue: Queue::default(),
            waiting: BTreeMap::new(),
            granted_by: BTreeMap::new(),
            plan: Plan::default(),
            wake_at: None,
            ready,
            stopping: false,
            violations: 0,
            dirty: true,
            checkpoints: Writer::default(),
            spent: Vec::new(),
            clearing: BTreeMap::new(),
            next_repair: now,
            unmended: None,
            in_vain: BTreeSet::new(),
            echoed: false,
            garbage: Garbage::default(),
            forgetting: flows::Forgetting::new(now),
            branching: branch::Branching::default(),
            outbox: Vec::new(),
            tasks: JoinSet::new(),
            jobs: HashMap::new(),
            node_done: None,
            begun: Some(now),
            orphans: start.orphans,
            enis: BTreeMap::new(),
            timers,
            searching: None,
            resolving: resolve::Resolving::new(now),
            reports: Reports::new(parts.reports.clone()),
            announced: announced.unwrap_or_default(),
            parts,
        };
        // Those that an earlier daemon took back: it may not have come to that.
        daemon.cool_since(&BTreeMap::new());
        daemon
    }

    /// Runs until `stop` resolves, then for as long as calls are under way, `stop_grace` at most.
    pub(crate) async fn run(mut self, mut inputs: mpsc::Receiver<Input>, stop: impl Future<Output = ()> + Send) {
        tokio::pin!(stop);
        self.step();
        loop {
            let wake = self.wake();
            tokio::select! {
                biased;
                () = &mut stop => break,
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.ended(ended),
                Some(input) = inputs.recv() => self.input(input),
                () = tokio::time::sleep_until(wake) => {}
            }
            self.take_more(&mut inputs);
            self.step();
        }
        self.stop(&mut inputs).await;
    }

    /// Takes in what else has come, without waiting.
    fn take_more(&mut self, inputs: &mut mpsc::Receiver<Input>) {
        for _ in 0..BATCH {
            if let Some(ended) = self.tasks.try_join_next_with_id() {
                self.ended(ended);
            } else if let Ok(input) = inputs.try_recv() {
                self.input(input);
            } else {
                break;
            }
        }
    }

    /// The graceful stop: waiting ADDs are refused, calls under way are heard out, the last checkpoint is written.
    async fn stop(&mut self, inputs: &mut mpsc::Receiver<Input>) {
        tracing::info!(waiting = self.waiting.len(), flights = self.state.flights().len(), "stopping");
        self.stopping = true;
        let waiting: Vec<Token> = self.waiting.keys().copied().collect();
        for token in waiting {
            self.refuse_add(token, stopping());
        }
        self.refuse_pending(None, &stopping());
        let end = Instant::now() + self.parts.config.stop_grace;
        loop {
            self.step();
            if self.state.flights().is_empty() {
                break;
            }
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.ended(ended),
                Some(input) = inputs.recv() => self.input(input),
                () = tokio::time::sleep_until(end) => {
                    // Journalled: the next start finds out what has become of them.
                    tracing::warn!(flights = self.state.flights().len(), "calls were still under way at the stop");
                    break;
                }
            }
            self.take_more(inputs);
        }
        self.tasks.abort_all();
        self.dirty = true;
        self.step();
        tracing::info!("stopped");
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Call(asked) => self.asked(*asked),
            Input::Withdrawn(token) => self.withdrawn(token),
            Input::Undelivered(token, attachment) => self.undelivered(token, &attachment),
            Input::Told(Told::EniConfig(config)) => {
                self.apply(Event::EniConfigKnown(config));
            }
            Input::Told(Told::Routes(routes)) => {
                self.apply(Event::RoutesKnown(routes));
            }
            Input::Told(Told::Groups(groups)) => self.groups_wanted(groups),
            Input::Told(Told::Schedulable(schedulable)) => {
                self.apply(Event::Schedulable(schedulable));
            }
            Input::Told(Told::MaxPods(pods)) => {
                self.apply(Event::MaxPodsKnown(pods));
                self.targets = self.parts.config.targets_of(&self.state);
            }
            Input::Told(Told::PodsBound(pods)) => {
                self.apply(Event::PodsBound(pods));
                self.announce_again();
            }
            Input::Told(Told::Claims(claims)) => self.claimed(claims),
            Input::Told(Told::Overrides(overrides)) => self.overridden(overrides),
            Input::Told(Told::Elected(elected)) => self.elected(elected),
            Input::Look(to) => {
                // Whoever asked may have gone; nothing is lost then.
                let _view = to.send(self.view());
            }
            Input::LookAtSettings(to) => {
                let in_force =
                    InForce { config: self.parts.config.clone(), eni_config: self.state.eni_config().cloned() };
                // As above.
                let _in_force = to.send(Box::new(in_force));
            }
        }
    }

    /// Applies an event; a refused one is reported and changes nothing.
    fn apply(&mut self, event: Event) -> bool {
        let now = self.parts.clock.now();
        match self.state.apply(event, now) {
            Ok(()) => {
                self.dirty = true;
                true
            }
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "a change of the state was refused");
                self.parts.metrics.error("apply");
                false
            }
        }
    }

    /// Plans, serves, records, and then lets the world know.
    fn step(&mut self) {
        self.due_jobs();
        self.serve_pending();
        let serving = self.serve_waiting();
        let launch = self.begin_planned();
        self.report_pool();
        self.ask_for_trunk();
        let changed = self.dirty || !self.outbox.is_empty();
        let kept = self.keep(&launch);
        self.send_replies(kept);
        if kept {
            if changed {
                self.announce();
            }
            for op in launch {
                self.spawn(Job::Op(op));
            }
        }
        self.host_jobs();
        let clock = self.parts.clock;
        let wakes = [serving.wake_at, self.plan.wake_at.filter(|_| !self.stopping)];
        // A moment at least, so that a time that has passed cannot make the loop spin.
        let soonest = Instant::now() + WAKE_AFTER;
        self.wake_at = wakes.into_iter().flatten().map(|at| clock.instant(at).max(soonest)).min();
    }

    fn demand(&self) -> Demand {
        Demand::of(&self.state, &self.queue)
    }

    /// Gives addresses to waiting ADDs, and refuses those for which there is none in time.
    fn serve_waiting(&mut self) -> Serving {
        self.gather_again();
        if self.queue.waiters().next().is_none() {
            return Serving::default();
        }
        let now = self.parts.clock.now();
        self.plan = plan(&self.state, &self.targets, &self.demand(), now);
        let mut serving = serve(&self.state, &self.queue, &self.plan, now);
        // Those for whom there is no hope are about to leave.
        self.report_pool();
        for grant in std::mem::take(&mut serving.grants) {
            let attachment = grant.owner.attachment.clone();
            if !grant.held && !self.apply(Event::Assign(grant.address, Arc::clone(&grant.owner))) {
                // The waiter stays in the queue; the next step sees the state as it is.
                continue;
            }
            let tokens = self.queue.remove(&attachment);
            self.grant(&attachment, grant.address, &tokens, grant.held);
        }
        for refused in std::mem::take(&mut serving.refused) {
            for token in refused.tokens {
                // What goes back with it may be what others wait for.
                let frees = self.waiting.get(&token).is_some_and(Waiting::wants_several);
                serving.wake_at = if frees { Some(now) } else { serving.wake_at };
                self.refuse_part(token, &refused.attachment, refused.refusal.clone());
            }
        }
        for waiting in self.waiting.values_mut().filter(|waiting| !waiting.counted) {
            waiting.counted = true;
            self.parts.metrics.add_waits();
        }
        serving
    }

    /// Marks the operations that are due as begun; they are made when that is recorded.
    fn begin_planned(&mut self) -> Vec<Op> {
        if self.stopping {
            return Vec::new();
        }
        let now = self.parts.clock.now();
        self.plan = plan(&self.state, &self.targets, &self.demand(), now);
        let mut launch = Vec::new();
        for planned in std::mem::take(&mut self.plan.ops) {
            if self.apply(Event::Begin(planned.op.clone())) {
                tracing::info!(op = %planned.op, reason = %planned.reason, "asking EC2");
                launch.push(planned.op);
            }
        }
        if let Some(op) = self.subnets_due()
            && self.apply(Event::Begin(op.clone()))
        {
            launch.push(op);
        }
        launch
    }

    /// Writes the checkpoint, if anything has changed. Answers whether what is in memory is on disk.
    fn keep(&mut self, launch: &[Op]) -> bool {
        if !self.dirty {
            return true;
        }
        let begun = Instant::now();
        let written = match self.checkpoints.write(&self.state, self.parts.clock.now()) {
            Ok(document) => self.parts.store.write(&document).map_err(|error| ErrorChain(&error).to_string()),
            Err(error) => Err(ErrorChain(&error).to_string()),
        };
        self.parts.metrics.checkpoint(begun.elapsed(), written.is_ok());
        match written {
            Ok(()) => {
                self.dirty = false;
                let spent = std::mem::take(&mut self.spent);
                self.parts.tombstones.remove(&spent);
                true
            }
            Err(error) => {
                tracing::error!(error, "the checkpoint could not be written");
                self.timers.store = Timer::due(Instant::now() + STORE_AGAIN, STORE_AGAIN);
                for op in launch {
                    self.apply(Event::End(op.clone(), Err(not_recorded(op))));
                }
                false
            }
        }
    }

    /// Sends the replies of this batch; without a checkpoint, refuses those that depend on one.
    fn send_replies(&mut self, kept: bool) {
        for mut reply in std::mem::take(&mut self.outbox) {
            if !kept && reply.kind != ReplyKind::Other {
                if let Some(attachment) = reply.answer.granted.take() {
                    self.give_back(&attachment, reply.token);
                }
                let refusal = Refusal::new(RefusalCode::Storage, "ipamd could not record the outcome of the request")
                    .hint("is the file system of /run full? `df /run` tells")
                    .retry_after(STORE_AGAIN);
                self.parts.metrics.refused(refusal.code);
                reply.answer = refusal.into();
            }
            let took = reply.since.elapsed();
            match reply.kind {
                ReplyKind::Add => self.parts.metrics.add_ended(took),
                ReplyKind::Del => self.parts.metrics.del_ended(took),
                ReplyKind::Other => {}
            }
            if let Err(answer) = reply.to.send(reply.answer)
                && let Some(attachment) = answer.granted
            {
                // Its socket closed a moment ago.
                self.give_back(&attachment, reply.token);
            }
        }
    }

    /// When the loop has something to do by itself.
    fn wake(&self) -> Instant {
        let Timers { learn, pods, watch, mend, node, check, tombstones, store } = &self.timers;
        let timers = [learn, pods, watch, check, tombstones].into_iter().filter_map(Timer::wake);
        // These have nothing to do before there is a node to set up, a change to record, or something to mend.
        let node = node.wake().filter(|_| self.node_network().is_some());
        let store = store.wake().filter(|_| self.dirty);
        let mend = mend.wake().filter(|_| self.unmended.is_some());
        let enis = self.enis.values().filter_map(|eni| eni.timer.wake());
        let resolve = self.resolving.wake().filter(|_| self.state.node().is_some());
        let search = self.searching.as_ref().and_then(|searching| searching.timer.wake());
        timers
            .chain(search)
            .chain(self.branching.wake())
            .chain(resolve)
            .chain(self.forgetting.wake())
            .chain(self.reports.wake())
            .chain(node)
            .chain(store)
            .chain(mend)
            .chain(enis)
            .chain(self.wake_at)
            .min()
            .unwrap_or_else(|| Instant::now() + LOOK_EVERY)
    }

    /// Starts what is due by the clock.
    fn due_jobs(&mut self) {
        let now = Instant::now();
        if self.timers.check.begin(now) {
            self.check();
            self.timers.check.succeeded(now);
        }
        if self.timers.tombstones.begin(now) {
            self.drain_tombstones();
            self.timers.tombstones.succeeded(now);
        }
        if !self.stopping && self.timers.learn.begin(now) {
            self.spawn(Job::Learn);
        }
        if !self.stopping && self.timers.pods.begin(now) {
            self.spawn(Job::Pods);
        }
        if !self.stopping && self.unmended.is_some() && self.timers.mend.begin(now) {
            self.mend();
        }
        if !self.stopping && self.timers.watch.begin(now) {
            self.spawn(Job::Watch(self.next_repair));
        }
        if !self.stopping {
            self.search(now);
            self.resolve(now);
            self.forget_flows(now);
        }
    }

    /// Looks for broken rules; each is reported, none ends the process.
    fn check(&mut self) {
        let violations = check(&self.state, self.parts.clock.now());
        for violation in violations.iter().take(16) {
            tracing::error!(violation = %violation, "a rule of the ledger is broken");
        }
        self.violations = u32::try_from(violations.len()).unwrap_or(u32::MAX);
    }

    /// A picture of the state.
    fn view(&self) -> View {
        let now = self.parts.clock.now();
        let waiting: BTreeSet<Attachment> =
            self.queue.waiters().map(|waiter| nic::first(&waiter.owner.attachment)).collect();
        let waiting = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
        let capacity = Capacity::of(&self.state, &self.targets, now);
        let pool = view::gauges(&self.state, &self.targets, &capacity, waiting, self.violations, now);
        view::view(&self.state, &self.plan, self.ready, pool, &capacity, now)
    }

    /// Whether pods could be started at some time since the boot.
    const fn is_ready(&self) -> bool {
        self.ready
    }

    fn attachments_of(&self, network: &sluice_contract::id::NetworkName) -> BTreeSet<Attachment> {
        let branches = self.state.branches().map(|held| &held.owner.attachment);
        let all = self.state.ledger().owners().map(|(a, _)| a).chain(branches);
        all.filter(|a| a.network == *network).cloned().collect()
    }
}

/// A checkpoint has the node as the settings of its time had it; these hold from the first request on.
fn with_settings<C, K>(state: &mut State, parts: &Parts<C, K>) {
    let Some(Node { identity, limits, vpc_cidrs, security_groups, .. }) = state.node().cloned() else { return };
    // What a version before this one has written may lack what this one's table tells.
    let limits = limits::limits(&identity.instance_type).unwrap_or(limits);
    let node = learn::node(&parts.config, identity, limits, vpc_cidrs, security_groups);
    if let Err(error) = state.apply(Event::NodeKnown(node), parts.clock.now()) {
        tracing::error!(error = %ErrorChain(&error), "the settings do not fit the checkpoint");
    }
}

/// The failure of an operation that was not made because its beginning could not be recorded.
fn not_recorded(op: &Op) -> Failure {
    Failure {
        error: CloudError {
            api: op.api(),
            kind: CloudErrorKind::Other,
            code: "NotRecorded".to_owned(),
            message: "the call was not made, because the checkpoint could not be written".to_owned(),
            retry_after: None,
        },
        retry_after: STORE_AGAIN,
    }
}

/// The failure of an operation whose task ended badly: it may have had its effect.
fn lost(op: &Op) -> Failure {
    Failure {
        error: CloudError {
            api: op.api(),
            kind: CloudErrorKind::Timeout,
            code: "TaskLost".to_owned(),
            message: "the task that made the call ended badly".to_owned(),
            retry_after: None,
        },
        retry_after: Duration::from_secs(10),
    }
}

/// Only for its name in signatures.
type OpResult = Result<Outcome, Failure>;

#[cfg(test)]
pub(crate) mod tests;
