//! The loop: one task owns the engine, the gates and the queue of waiting ADDs, and nothing else changes them.
//!
//! Inputs are requests of plugins, what the source tells, links that go, and timers. They are taken in batches. Each batch
//! ends in one step:
//!
//! 1. ADDs whose pods are known join: their sandboxes are recorded on disk and their addresses go into the engine;
//! 2. what has changed is appended to the journal, compiled, told to the proxies as far as it is about requests, and carried
//!    out in the kernel: everything that had come by then is in force together;
//! 3. only then are the interfaces of those ADDs bound and attached, and the ADDs answered.
//!
//! So no pod starts before every policy that was received is in force (S-07), and a crash at any point leaves a journal
//! that knows what the kernel knows.

mod add;
mod adopt;
mod flows;
mod jobs;
mod lasting;
mod look;
mod names;
mod pods;
mod requests;
mod stand_ins;
#[cfg(test)]
mod tests;
mod timer;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sluice_contract::id::Attachment;
use sluice_contract::names::Resolved;
use sluice_contract::rpc::{PolicyAdd, PolicyDel};
use sluice_daemon::log::ErrorChain;
use sluice_daemon::tombstones::Tombstones;
use sluice_policy_core::cluster::{Object, ObjectId, Pod, PodKey};
use sluice_policy_core::compile::diff::Operation;
use sluice_policy_core::compile::engine::{Engine, MAX_CONDITIONS, Notice as EngineNotice};
use sluice_policy_core::flow::Direction;
use sluice_policy_core::model::PolicyRef;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::{Cluster, Notice, Place, Report, Told, Weight};
use crate::config::Config;
use crate::datapath::Datapath;
use crate::flows::Flows;
use crate::gates::{Gates, Trouble};
use crate::inbox::{Answer, Input, Token};
use crate::journal::{Entry, Journal};
use crate::metrics::Metrics;
use crate::names::NameFiles;
use crate::outbox::{Letter, Outbox};
use crate::proxy::Proxies;
use crate::registry::{Binding, Registry};
use crate::store;
use crate::view::View;
use flows::Watching;
use jobs::Timers;
use lasting::Lasting;
use names::Names;
use stand_ins::StandIns;

pub(crate) use pods::interface;

/// Inputs of each kind that are taken into one batch at most, so that none waits for long.
const BATCH: usize = 512;

/// Policies that an Event names.
const NAMED: usize = 3;

/// A clock that shows wall-clock time and moves with tokio's, so that virtual time moves both.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    wall: SystemTime,
    start: Instant,
}

impl Clock {
    /// A clock that shows `wall` now.
    pub(crate) fn starting_at(wall: SystemTime) -> Self {
        Self { wall, start: Instant::now() }
    }

    pub(crate) fn now(&self) -> SystemTime {
        self.wall + self.start.elapsed()
    }
}

/// What the loop works with.
#[derive(Debug)]
pub(crate) struct Parts<C, D> {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) cluster: Arc<C>,
    pub(crate) gates: Gates<D>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) registry: Registry,
    pub(crate) tombstones: Tombstones<PolicyDel>,
    pub(crate) journal: Journal,
    pub(crate) outbox: Outbox,
    pub(crate) proxies: Proxies,
    pub(crate) flows: Flows,
    pub(crate) names: NameFiles,
    /// Where the numbers of identities are kept.
    pub(crate) checkpoint: PathBuf,
    /// The mark of the first readiness since the boot.
    pub(crate) ready_mark: PathBuf,
}

/// What the loop starts with.
#[derive(Debug)]
pub(crate) struct Start {
    /// An engine that knows the numbers of identities, and no objects.
    pub(crate) engine: Engine,
    /// The greatest number of an identity in the maps.
    pub(crate) known_identities: u32,
    /// The sandboxes that had gates. Their interfaces are bound.
    pub(crate) bindings: BTreeMap<Attachment, Binding>,
    /// What the journal of the process before says, if it is young enough.
    pub(crate) known: Option<Vec<(Object, Option<String>)>>,
    /// What names resolved to before.
    pub(crate) names: Vec<Resolved>,
    /// Whether the AWS VPC CNI's daemon serves the node. [`Input::AwsNodeGone`] tells when it has gone.
    pub(crate) aws_node: bool,
}

/// How much of the cluster is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Knowledge {
    /// Not enough to say anything: the gates stay as they are.
    Nothing,
    /// What was known before the restart, and what was told since.
    Journal,
    /// Everything.
    All,
}

/// What there is of gates that are not this process'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// They may judge at pods' interfaces.
    Judging,
    /// This process' programs are in the place of all; what another layout of the maps has pinned may be there.
    Replaced,
    /// Nothing.
    Gone,
}

/// The loop's task.
#[derive(Debug)]
pub(crate) struct Daemon<C, D> {
    parts: Parts<C, D>,
    engine: Engine,
    knowledge: Knowledge,
    /// Whether the AWS VPC CNI's daemon serves the node: nothing is taken over from it, and no gate is put where none was.
    aws_node: bool,
    /// Why what is known may be old.
    stale: Option<String>,
    /// What only the journal has said yet.
    unheard: BTreeSet<ObjectId>,
    /// Whether the maps may hold what no image of this process has.
    unswept: bool,
    /// Gates of before whose pods are not known any more are closed, though the maps are not swept yet.
    closed_unknown: bool,
    /// Whether pods' hooks may have this process' programs. Where the maps are empty, as those of another layout are, the programs
    /// of before judge on until what these need is in the maps.
    took_over: bool,
    before: Before,
    /// No uplink is judged by another layout's program alone.
    uplinks_replaced: bool,
    /// Interfaces at which programs of before still judge, because they could not be replaced; none: no take-over has ended yet.
    unreplaced: Option<BTreeSet<u32>>,
    /// The greatest number of an identity that the gates of before know; none once they have been written anew.
    known_identities: Option<u32>,
    /// Whether anything was applied to the engine since its last commit.
    dirty: bool,
    /// Objects that changed since the journal was written.
    changed: BTreeSet<ObjectId>,
    /// Texts of policies and groups, and the policies' generations.
    texts: BTreeMap<ObjectId, (Arc<str>, Option<i64>)>,
    /// Sandboxes that have gates.
    bindings: BTreeMap<Attachment, Binding>,
    /// Those of them whose pod's name another pod has now: they drop.
    superseded: BTreeSet<Attachment>,
    /// Those that are to be bound again after the next commit.
    rebind: BTreeSet<Attachment>,
    /// Pods that were there before, with the interfaces that get their gates after the next commit.
    adopting: BTreeMap<Attachment, BTreeSet<u32>>,
    /// Interfaces at which no gate could be put yet, of such pods or since the restart: nobody has taken it away.
    refused: BTreeSet<u32>,
    /// Interfaces that could not be bound: it is tried again every few seconds.
    unbindable: BTreeSet<u32>,
    /// Interfaces whose gates this process has seen whole: what they lack then was taken away.
    whole: BTreeSet<u32>,
    /// Whether interfaces may have come that pods that were there before have beside those that are known.
    has_new_veths: bool,
    /// Whether the VLAN of a pod's branch ENI has come since the uplinks were last looked after.
    has_new_vlan: bool,
    /// The host's interfaces by index, as they were when policyd began or lost sight of them, and those of sandboxes since.
    links: BTreeMap<u32, String>,
    /// Whether all of them have been told.
    links_told: bool,
    /// Interfaces whose sandboxes have ended and that may still be there: nobody adopts them.
    ended: BTreeSet<u32>,
    /// What the source said last of the pods that have sandboxes.
    told: BTreeMap<PodKey, Option<Pod>>,
    /// Interfaces whose gate may have been taken away.
    suspects: BTreeSet<u32>,
    /// Interfaces that could not be unbound yet.
    unbound: BTreeSet<u32>,
    number: u64,
    waiting: BTreeMap<Token, Waiting>,
    reports: BTreeMap<Place, Report>,
    /// Reports whose policy's status has not been sent.
    unreported: BTreeSet<Place>,
    revision: u64,
    /// Up to which revision each kind was told.
    read: BTreeMap<Arc<str>, u64>,
    /// Who wants to see the state after the next step.
    lookers: Vec<oneshot::Sender<View>>,
    lookups: JoinSet<()>,
    timers: Timers,
    names: Names,
    stand_ins: StandIns,
    watching: Watching,
    lasting: Lasting,
}

/// A waiting ADD.
#[derive(Debug)]
struct Waiting {
    request: PolicyAdd,
    answer: oneshot::Sender<Answer>,
    since: Instant,
    deadline: Instant,
    /// Whether the pod has been looked up.
    looked_up: bool,
}

impl<C: Cluster, D: Datapath> Daemon<C, D> {
    /// A daemon that goes on from `start`.
    pub(crate) fn new(parts: Parts<C, D>, start: Start) -> Self {
        let number = start.bindings.values().map(|binding| binding.number).max().unwrap_or(0);
        let told = start.bindings.values().map(|binding| (binding.key(), None)).collect();
        let links = start.bindings.values().flat_map(Binding::interfaces);
        let links = links.map(|gate| (gate.host_index, gate.host.to_string())).collect();
        let mut daemon = Self {
            names: Names::default(),
            stand_ins: StandIns::default(),
            watching: Watching::default(),
            lasting: Lasting::default(),
            parts,
            engine: start.engine,
            knowledge: Knowledge::Nothing,
            aws_node: start.aws_node,
            stale: None,
            unheard: BTreeSet::new(),
            unswept: true,
            closed_unknown: false,
            took_over: start.known_identities > 0,
            before: Before::Judging,
            uplinks_replaced: false,
            unreplaced: None,
            known_identities: Some(start.known_identities),
            dirty: true,
            changed: BTreeSet::new(),
            texts: BTreeMap::new(),
            bindings: start.bindings,
            superseded: BTreeSet::new(),
            rebind: BTreeSet::new(),
            adopting: BTreeMap::new(),
            refused: BTreeSet::new(),
            unbindable: BTreeSet::new(),
            whole: BTreeSet::new(),
            has_new_veths: true,
            has_new_vlan: false,
            links,
            links_told: false,
            ended: BTreeSet::new(),
            told,
            suspects: BTreeSet::new(),
            unbound: BTreeSet::new(),
            number,
            waiting: BTreeMap::new(),
            reports: BTreeMap::new(),
            unreported: BTreeSet::new(),
            revision: 0,
            read: BTreeMap::new(),
            lookers: Vec::new(),
            lookups: JoinSet::new(),
            timers: Timers::new(Instant::now()),
        };
        daemon.remember_names(start.names);
        if let Some(known) = start.known {
            daemon.remember(known);
        }
        daemon
    }

    /// Runs until `stop` resolves. Everything stays pinned and recorded.
    pub(crate) async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut told: mpsc::Receiver<Told>,
        stop: impl Future<Output = ()> + Send,
    ) {
        tokio::pin!(stop);
        self.step().await;
        loop {
            let wake = self.wake();
            tokio::select! {
                biased;
                () = &mut stop => break,
                Some(input) = inputs.recv() => self.input(input).await,
                Some(told) = told.recv() => self.told(told),
                Some(ended) = self.lookups.join_next(), if !self.lookups.is_empty() => self.looked_up(ended),
                () = tokio::time::sleep_until(wake) => {}
            }
            for _ in 0..BATCH {
                match inputs.try_recv() {
                    Ok(input) => self.input(input).await,
                    Err(_) => break,
                }
            }
            for _ in 0..BATCH {
                match told.try_recv() {
                    Ok(told) => self.told(told),
                    Err(_) => break,
                }
            }
            self.step().await;
        }
        self.refuse_all();
        tracing::info!(endpoints = self.bindings.len(), "stopped; gates stay as they are");
    }

    async fn input(&mut self, input: Input) {
        match input {
            Input::Call(asked) => self.asked(*asked).await,
            Input::Withdrawn(token) => {
                self.waiting.remove(&token);
            }
            // What has been told by now is in force then.
            Input::Look(to) => self.lookers.push(to),
            Input::NetworkChanged { of_pod } => self.network_changed(of_pod),
            Input::HooksChanged(index) => self.hooks_changed(index),
            Input::AwsNodeGone => self.aws_node_gone(),
            Input::VethChanged => self.has_new_veths = true,
            Input::LinkGone(index) => self.link_gone(index),
            Input::Links(links) => self.links_are(links),
            Input::Resolved(resolutions, done) => self.resolved(resolutions, done),
            Input::Requested(records) => self.requested(records),
            Input::LookAtObjects(to) => {
                let _objects = to.send(self.manifests());
            }
            Input::LookAtNodes(to) => {
                let nodes = self.engine.cluster().nodes.values();
                let nodes = nodes.map(|node| (node.name.to_string(), node.addresses.clone())).collect();
                // Whoever asked may have gone; nothing is lost then.
                let _nodes = to.send(nodes);
            }
            Input::LookAtNames(to) => {
                let _view = to.send(self.names_view());
            }
        }
    }

    /// Admits, compiles, carries out, answers.
    async fn step(&mut self) {
        self.due_jobs().await;
        let admitted = self.admit();
        self.commit().await;
        if self.choose_stand_ins() {
            self.commit().await;
        }
        self.answer_names();
        self.bind_again().await;
        self.finish_adoptions().await;
        self.finish(admitted).await;
        self.parts.proxies.endpoints(self.parts.gates.endpoints());
        self.parts.proxies.expire(Instant::now());
        self.refuse_late();
        self.send_statuses();
        for to in std::mem::take(&mut self.lookers) {
            // Whoever asked may have gone; nothing is lost then.
            let _view = to.send(self.view());
        }
    }

    /// Compiles what has changed, and has it carried out.
    async fn commit(&mut self) {
        if self.knowledge == Knowledge::Nothing || !self.dirty {
            return;
        }
        self.dirty = false;
        self.watching.changed();
        self.keep_journal();
        self.keep_names();
        let begun = Instant::now();
        let update = self.engine.commit();
        let compiled = begun.elapsed();
        for notice in update.notices {
            match notice {
                EngineNotice::NamesForgotten(count) => {
                    tracing::warn!(count, "addresses of names were forgotten: there are too many");
                    self.parts.metrics.error("names");
                }
                EngineNotice::TooLarge { direction, policies, pods } => {
                    self.report_too_large(direction, &policies, pods);
                }
            }
        }
        self.names_committed();
        if !update.operations.is_empty() {
            self.keep_checkpoint(&update.operations);
            self.close_old_gates(&update.operations);
            self.parts.proxies.announce(&update.operations).await;
            let begun = Instant::now();
            let troubles = self.parts.gates.carry_out(&update.operations, self.engine.image());
            self.parts.proxies.carried_out(&update.operations, Instant::now());
            self.parts.metrics.committed(compiled, begun.elapsed(), update.operations.len());
            self.revision += 1;
            self.report_troubles(troubles);
        }
        if !self.took_over {
            self.take_over().await;
        }
        if self.knowledge == Knowledge::All && self.unswept {
            self.sweep();
        }
        self.leave_other_layouts();
        self.mark_ready();
    }

    /// Before the first image of this process: the policies of before have no rows for identities of which they do not
    /// know, and would judge these as they judge anybody. If there are such, the gates of before drop until they have
    /// the policies of now, a moment later.
    fn close_old_gates(&mut self, operations: &[Operation]) {
        let Some(known) = self.known_identities.take() else { return };
        let is_new = |operation: &Operation| match operation {
            Operation::SetAddress(_, identity) | Operation::SetName(_, identity) => identity.0 > known,
            Operation::SetFrontend(_, identity) => identity.0 > known,
            _ => false,
        };
        if !operations.iter().any(is_new) {
            return;
        }
        match self.parts.gates.lock_down_kept() {
            Ok(0) => {}
            Ok(gates) => {
                tracing::info!(gates, "gates of before are closed for the moment in which they get new policies")
            }
            Err(error) => {
                tracing::error!(error = %ErrorChain(&error), "gates of before could not be closed");
                self.parts.metrics.error("close");
            }
        }
    }

    /// Removes from the maps what no image of this process has. Only when everything is known: until then
    /// something may be in force that is still to be told.
    fn sweep(&mut self) {
        // What the proxy wrote alone is known first, with the next commit.
        if self.parts.gates.is_behind() {
            self.close_unknown();
            return;
        }
        if self.take_names_of_proxy() {
            return;
        }
        match self.parts.gates.sweep(self.engine.image()) {
            Ok(()) => {
                self.unswept = false;
                self.parts.proxies.swept();
                self.engine.forget_checkpoint();
                tracing::info!("the maps hold what is known now, and nothing else");
            }
            Err(error) => {
                tracing::error!(error = %ErrorChain(&error), "the maps could not be swept");
                self.parts.metrics.error("sweep");
            }
        }
    }

    /// Where maps are too full for what is to be in force, they may never be swept: pods of before that nobody knows any more do not keep
    /// their policies until then.
    fn close_unknown(&mut self) {
        if self.closed_unknown {
            return;
        }
        match self.parts.gates.lock_down_kept() {
            Ok(gates) => {
                self.closed_unknown = true;
                if gates > 0 {
                    tracing::info!(gates, "gates of before whose pods are not known any more are closed");
                }
            }
            Err(error) => {
                tracing::error!(error = %ErrorChain(&error), "gates of before could not be closed");
                self.parts.metrics.error("close");
            }
        }
    }

    /// Takes away what another layout of the maps has pinned, once nothing stands open when its programs go.
    fn leave_other_layouts(&mut self) {
        if self.before != Before::Replaced || !self.uplinks_replaced || self.knowledge != Knowledge::All || self.unswept
        {
            return;
        }
        match self.parts.gates.leave_other_layouts() {
            Ok(true) => self.before = Before::Gone,
            Ok(false) => {}
            Err(error) => {
                tracing::error!(error = %ErrorChain(&error), "what another layout has pinned stays: its programs may still judge");
                self.parts.metrics.error("sweep");
            }
        }
    }

    /// Writes the numbers of identities before the kernel has them, if there may be new ones.
    fn keep_checkpoint(&mut self, operations: &[Operation]) {
        let numbers = |operation: &Operation| {
            matches!(operation, Operation::SetAddress(..) | Operation::SetName(..) | Operation::SetFrontend(..))
        };
        if !operations.iter().any(numbers) {
            return;
        }
        let written =
            serde_json::to_vec(&self.engine.checkpoint()).map_err(|error| error.to_string()).and_then(|json| {
                store::write(&self.parts.checkpoint, &json).map_err(|error| ErrorChain(&error).to_string())
            });
        if let Err(error) = written {
            // A restart numbers above what the maps hold, then.
            tracing::error!(error, "the checkpoint could not be written");
            self.parts.metrics.error("checkpoint");
        }
    }

    /// Writes what has changed, before it is in force.
    fn keep_journal(&mut self) {
        let changed = std::mem::take(&mut self.changed);
        let cluster = self.engine.cluster();
        let texts = &self.texts;
        let text = |id: &ObjectId| texts.get(id).map(|(text, _)| &**text);
        let written = if self.parts.journal.wants_rewriting() {
            let objects = pods::objects(cluster).map(|object| {
                let text = text(&object.id());
                (object, text)
            });
            self.parts.journal.rewrite(objects)
        } else {
            let objects: Vec<(ObjectId, Option<Object>)> =
                changed.into_iter().map(|id| (id.clone(), pods::object(cluster, &id))).collect();
            self.parts.journal.append(objects.iter().map(|(id, object)| match object {
                Some(object) => Entry::Set(object, text(id)),
                None => Entry::Gone(id),
            }))
        };
        if let Err(error) = written {
            tracing::error!(error = %ErrorChain(&error), "the journal could not be written");
            self.parts.metrics.error("journal");
        }
    }

    fn report_troubles(&mut self, troubles: Vec<Trouble>) {
        for trouble in troubles {
            self.parts.metrics.apply_failed(trouble.map);
            for pod in trouble.locked {
                let uid = self.engine.cluster().pods.get(&pod).map(|pod| pod.uid.clone());
                let message = format!(
                    "the pod drops all traffic, because its policy is not whole in the kernel: {}; fewer policies, peers or \
                     ports make it fit",
                    trouble.message
                );
                let reason = if trouble.kind == "full" { "PolicyMapFull" } else { "PolicyNotWritten" };
                let about = Some(ObjectId::Pod(pod));
                let notice = Notice { about, uid, weight: Weight::Warning, reason, message };
                self.parts.outbox.put(Letter::Notice(notice));
            }
        }
    }

    fn report_too_large(&self, direction: Direction, policies: &[PolicyRef], pods: Vec<PodKey>) {
        let mut names: Vec<String> = policies.iter().take(NAMED).map(ToString::to_string).collect();
        if let Some(more) = policies.len().checked_sub(NAMED).filter(|more| *more > 0) {
            names.push(format!("{more} more"));
        }
        let names = names.join(", ");
        tracing::error!(%direction, policies = names, pods = pods.len(), "policies are too large together to be in force");
        self.parts.metrics.error("too-large");
        for pod in pods {
            let uid = self.engine.cluster().pods.get(&pod).map(|pod| pod.uid.clone());
            let message = format!(
                "no {direction} passes, because the pod's policies of this direction are too large together ({names}): their \
                 rules name more than {MAX_CONDITIONS} ports for all peers that they tell apart; fewer peers in rules with \
                 many ports, or ranges of ports, make them fit"
            );
            let about = Some(ObjectId::Pod(pod));
            let notice = Notice { about, uid, weight: Weight::Warning, reason: "PolicyTooLarge", message };
            self.parts.outbox.put(Letter::Notice(notice));
        }
    }

    /// Leaves the mark of the first readiness since the boot.
    fn mark_ready(&mut self) {
        if self.aws_node || self.knowledge == Knowledge::Nothing || self.parts.ready_mark.exists() {
            return;
        }
        match store::write(&self.parts.ready_mark, b"") {
            Ok(()) => tracing::info!("ready: policy is in force"),
            Err(error) => {
                tracing::error!(error = %ErrorChain(&error), "the mark of readiness could not be left");
                self.parts.metrics.error("ready");
            }
        }
    }

    /// When something is due by itself.
    fn wake(&self) -> Instant {
        let waiting = self.waiting.values().map(|waiting| self.wakes(waiting)).min();
        let timers = self.timers.next();
        // A moment at least, so that a time that has passed cannot make the loop spin.
        let soonest = Instant::now() + Duration::from_millis(1);
        waiting.map_or(timers, |waiting| waiting.min(timers)).max(soonest)
    }
}
