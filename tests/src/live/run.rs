//! Carries a file of vectors out with packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::flow::Protocol;
use sluice_policy_core::settings::Settings;
use sluice_policy_core::vector::Judge as _;
use sluice_policy_core::vector::judge::Compiled;
use sluice_policy_core::vector::probe::Probe;
use sluice_policy_core::vector::run::pairs;
use sluice_policy_core::vector::schema::{Endpoint, Family, Fixture, Mode, PodSpec, Row, Step, Suite, Vector};
use sluice_policy_core::vector::world::World;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::names::{Names, learn, needs_proxy};
use super::report::{Failure, Report};
use super::stage::{LiveError, Options, Stage};
use crate::prober::Held;

/// Vectors that are worth a cluster of their own.
const VECTORS: usize = 10;

/// What is told while it runs.
#[derive(Debug)]
pub enum Told<'a> {
    /// A cluster stands.
    Fixture {
        /// The fixture.
        name: &'a str,
        /// How long it took.
        took: Duration,
        /// How many pods it has.
        pods: usize,
    },
    /// A vector is through in a mode.
    Vector {
        /// Its id.
        id: &'a str,
        /// The mode.
        mode: Mode,
        /// How long it took.
        took: Duration,
    },
    /// A probe is not as expected.
    Failure(&'a Failure),
}

/// Who is told, by several clusters at once.
pub type Tell = Arc<dyn Fn(Told<'_>) + Send + Sync>;

/// Runs a file, a cluster or several a fixture.
///
/// # Errors
/// [`LiveError`]. A probe that is not as expected is no error.
pub async fn run(suite: &'static Suite, options: &Options, tell: &Tell) -> Result<Report, LiveError> {
    let wanted = |vector: &&Vector| options.only.as_ref().is_none_or(|only| vector.id.contains(only.as_str()));
    let slots = Arc::new(Semaphore::new(options.at_once));
    let mut parts = JoinSet::new();
    for (name, fixture) in &suite.fixtures {
        let vectors: Vec<&Vector> =
            suite.vectors.iter().filter(|vector| vector.fixture == *name).filter(wanted).collect();
        let clusters = vectors.len().div_ceil(VECTORS).min(options.at_once);
        for number in 0..clusters {
            let part = vectors.iter().skip(number).step_by(clusters).copied().collect();
            let (slots, options, tell) = (Arc::clone(&slots), options.clone(), Arc::clone(tell));
            parts.spawn(async move {
                let _slot = slots.acquire().await;
                on_a_cluster((&**name, fixture), part, options, &tell).await
            });
        }
    }
    let mut report = Report::default();
    while let Some(part) = parts.join_next().await {
        report += part??;
    }
    Ok(report)
}

/// Runs vectors on one cluster, one after the other.
async fn on_a_cluster(
    (name, fixture): (&'static str, &'static Fixture),
    vectors: Vec<&'static Vector>,
    mut options: Options,
    tell: &Tell,
) -> Result<Report, LiveError> {
    if !vectors.iter().flat_map(|vector| &vector.steps).any(needs_proxy) {
        options.sluice_proxy = None;
    }
    let begun = Instant::now();
    let mut stage = Stage::build(fixture, &options).await?;
    tell(Told::Fixture { name, took: begun.elapsed(), pods: stage.town.pods.len() });
    let mut report = Report::default();
    for vector in vectors {
        let modes = vector.modes().into_iter().filter(|mode| options.mode.is_none_or(|only| only == *mode));
        for mode in modes {
            let begun = Instant::now();
            let mut act = Act::begin(&mut stage, vector, mode, &options).await?;
            act.play(&mut report, &mut |told| tell(told)).await?;
            tell(Told::Vector { id: &vector.id, mode, took: begun.elapsed() });
        }
    }
    Ok(report)
}

pub(super) type FlowKey = (Endpoint, Endpoint, Protocol, u16, Family);

/// One vector in one mode.
#[derive(Debug)]
pub struct Act<'s, 'a> {
    /// The cluster.
    pub stage: &'s mut Stage<'a>,
    pub(super) vector: &'a Vector,
    pub(super) mode: Mode,
    pub(super) family: Family,
    pub(super) gated: bool,
    /// What the cluster has to be.
    pub world: World,
    pub(super) judge: Compiled,
    /// Names that have resolved.
    pub(super) names: Names,
    pub(super) held: BTreeMap<FlowKey, Held>,
    /// Flows that a later row looks at again.
    pub(super) looked_at: BTreeSet<FlowKey>,
    /// All pods that there were.
    specs: BTreeMap<PodKey, PodSpec>,
}

impl<'s, 'a> Act<'s, 'a> {
    /// Makes the cluster as the fixture has it.
    ///
    /// # Errors
    /// [`LiveError`].
    pub async fn begin(
        stage: &'s mut Stage<'a>,
        vector: &'a Vector,
        mode: Mode,
        options: &Options,
    ) -> Result<Self, LiveError> {
        let world = World::new(stage.fixture);
        let (gated, family) = (options.policyd.is_some(), options.family);
        let rows = vector.steps.iter().flat_map(|step| &step.expect).filter(|row| row.established);
        let looked_at = rows.flat_map(|row| pairs(row).map(move |(from, to)| key(row, from, to))).collect();
        let judge = Compiled::new(Settings::default());
        let (names, specs) = (Names::new(stage.fixture, vector), stage.fixture.pods.clone());
        let held = BTreeMap::new();
        let mut act = Self { stage, vector, mode, family, gated, world, judge, names, held, looked_at, specs };
        act.restore().await?;
        act.follow(&[]);
        Ok(act)
    }

    /// Pods as the fixture has them, whatever the vector before did.
    async fn restore(&mut self) -> Result<(), LiveError> {
        let fixture = self.stage.fixture;
        let extra: Vec<PodKey> =
            self.stage.town.pods.keys().filter(|key| !fixture.pods.contains_key(*key)).cloned().collect();
        for pod in extra {
            self.stage.town.delete(&pod).await?;
        }
        let events = self.world.take_events();
        self.judge.apply(&events);
        self.stage.objects.clear();
        self.stage.objects.follow(&events);
        let missing =
            fixture.pods.iter().filter(|(key, spec)| !self.stage.town.pods.contains_key(*key) && !spec.finished);
        let missing: Vec<(PodKey, PodSpec)> = missing.map(|(key, spec)| (key.clone(), spec.clone())).collect();
        if !missing.is_empty() {
            self.stage.publish().await?;
            self.stage.town.add(&missing).await?;
        }
        // What a later row finds established, and no row opens, was open before anything was in force.
        if !self.looked_at.is_empty() {
            self.stage.publish().await?;
            self.stage.program(&self.world, None).await?;
            let rows = self.vector.steps.iter().flat_map(|step| &step.expect).filter(|row| row.established);
            for row in rows {
                for (from, to) in pairs(row) {
                    if let Ok(cell) = self.cell(row, from, to).await? {
                        self.hold(&cell, key(row, from, to)).await?;
                    }
                }
            }
        }
        Ok(())
    }

    fn follow(&mut self, apply: &[serde_json::Value]) {
        let events = self.world.take_events();
        self.judge.apply(&events);
        self.stage.objects.follow(&events);
        self.stage.objects.apply(apply);
    }

    /// Carries all steps out.
    ///
    /// # Errors
    /// [`LiveError`]. A probe that is not as expected is no error.
    pub async fn play(
        &mut self,
        report: &mut Report,
        tell: &mut (dyn FnMut(Told<'_>) + Send),
    ) -> Result<(), LiveError> {
        for (index, step) in self.vector.steps.iter().enumerate() {
            self.advance(step).await?;
            self.probe((index + 1, &step.name), step, report, tell).await?;
        }
        Ok(())
    }

    /// Does what a step says, and waits until it is in force.
    ///
    /// # Errors
    /// [`LiveError`].
    pub async fn advance(&mut self, step: &'a Step) -> Result<(), LiveError> {
        self.world.step(step)?;
        self.make_up(step)?;
        self.follow(&step.apply);
        for pod in &step.delete_pod {
            self.stage.town.delete(pod).await?;
        }
        let gone = self.stage.town.pods.keys().filter(|pod| step.delete_namespace.contains(&pod.namespace));
        for pod in gone.cloned().collect::<Vec<_>>() {
            self.stage.town.delete(&pod).await?;
        }
        self.stage.publish().await?;
        for (key, spec) in &step.create_pod {
            self.specs.insert(key.clone(), spec.clone());
            if !spec.finished {
                self.stage.town.make_room(key, spec).await?;
            }
        }
        self.stage.town.add(&self.unattached()).await?;
        self.stage.program(&self.world, None).await?;
        learn(&mut self.names, step, self.stage, &self.world, self.family).await
    }

    /// The pods that live and have no network: new ones, and those whose address was another's for a time.
    fn unattached(&self) -> Vec<(PodKey, PodSpec)> {
        let mut wanted = Vec::new();
        for pod in self.world.cluster().pods.values() {
            let key = &pod.key;
            let is_it = |address: IpAddr| self.world.holder(address).pod.is_none_or(|holder| holder.key == *key);
            if self.stage.town.pods.contains_key(key) || !pod.addresses.iter().all(is_it) {
                continue;
            }
            wanted.extend(self.specs.get(key).map(|spec| (key.clone(), spec.clone())));
        }
        wanted
    }

    /// Makes a pod known, without starting it.
    ///
    /// # Errors
    /// [`LiveError`].
    pub async fn declare(&mut self, key: &PodKey, spec: &PodSpec) -> Result<(), LiveError> {
        let step = Step { create_pod: [(key.clone(), spec.clone())].into(), ..Step::default() };
        self.world.step(&step)?;
        self.follow(&[]);
        self.stage.publish().await
    }

    fn make_up(&mut self, step: &Step) -> Result<(), LiveError> {
        let mut wanted: BTreeMap<PodKey, BTreeSet<(Protocol, u16, u16)>> = BTreeMap::new();
        for row in &step.expect {
            for to in &row.to.endpoints {
                let probe = Probe { row, from: to, to, mode: self.mode };
                if let Some((pod, port)) = probe.makes_up(&self.world) {
                    wanted.entry(pod).or_default().insert(port);
                }
            }
        }
        Ok(self.world.make_up(&wanted, &step.path)?)
    }
}

pub(super) fn key(row: &Row, from: &Endpoint, to: &Endpoint) -> FlowKey {
    (from.clone(), to.clone(), row.protocol, row.port, row.family)
}
