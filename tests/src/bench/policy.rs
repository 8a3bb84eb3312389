//! S-08, the compiler's part of it, and what the policy set of a large cluster takes: time, memory, entries of maps.
//!
//! The cluster is made up from a seed ([`town`]); reading its objects is not measured.

pub mod compile;
pub mod event;
pub mod maps;
pub mod memory;
pub mod policies;
pub mod town;

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use sluice_policy_core::cluster::{Event, Object};
use sluice_policy_core::compile::diff::Operation;
use sluice_policy_core::compile::engine::Engine;
use sluice_policy_core::settings::Settings;

use town::Town;

/// How large a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Policies of all dialects.
    pub policies: usize,
    /// Pods.
    pub pods: usize,
}

impl Size {
    /// The size that SPECIFICATION speaks of.
    pub const SMALL: Self = Self { policies: 1_000, pods: 5_000 };
    /// Ten times the policies, and twenty times the pods.
    pub const LARGE: Self = Self { policies: 10_000, pods: 100_000 };

    /// Policies and pods: what a figure is divided by to be compared with that of the other size.
    #[must_use]
    pub const fn objects(self) -> usize {
        self.policies + self.pods
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} policies, {} pods", self.policies, self.pods)
    }
}

/// An object of the made-up cluster that the parser does not take.
#[derive(Debug, thiserror::Error)]
#[error("the made-up {object} is not read as it was meant: {issues}; mend tests/src/bench/policy")]
pub struct NotRead {
    /// The object.
    pub object: String,
    /// What the parser says.
    pub issues: String,
}

/// The seed of all figures that are told of.
pub const SEED: u64 = 20_261_125;

/// An engine for the first node.
#[must_use]
pub fn engine() -> Engine {
    Engine::new(Settings { node: Some(town::node_name(0).into()), cilium_cidrs_match_managed: false })
}

/// How long something took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    /// On the processor: this is what the compiler is measured by, since it has one thread and waits for nothing.
    pub cpu: Duration,
    /// By the clock on the wall; longer if the machine does other things too.
    pub wall: Duration,
}

/// A stop watch.
#[derive(Debug, Clone, Copy)]
struct Watch(Duration, Instant);

impl Watch {
    fn start() -> Self {
        Self(processor(), Instant::now())
    }

    fn spent(self) -> Spent {
        Spent { cpu: processor().saturating_sub(self.0), wall: self.1.elapsed() }
    }
}

/// The time that this thread was on a processor. Without such a clock all figures are zero, which no machine attains.
fn processor() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// An engine that knows the town and has an image for it, and how long that took: each object told, and the first commit
/// with it.
fn filled(objects: Vec<Object>, learned: Vec<Event>) -> (Engine, Spent, Spent) {
    let mut engine = engine();
    let start = Watch::start();
    for event in objects.into_iter().map(Event::Upsert).chain(learned) {
        engine.apply(event);
    }
    let told = start.spent();
    let update = engine.commit();
    let all = start.spent();
    drop(update);
    (engine, told, all)
}

/// One event: how long until its operations are known, and what they are.
fn one(engine: &mut Engine, event: Event) -> (Spent, Vec<Operation>) {
    let start = Watch::start();
    engine.apply(event);
    let update = engine.commit();
    (start.spent(), update.operations)
}

/// Cells of a row.
fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// All objects of a town of that size.
fn objects(size: Size) -> Result<(Town, Vec<Object>), NotRead> {
    let town = Town::new(size, SEED);
    let objects = town.objects().collect::<Result<Vec<Object>, NotRead>>()?;
    Ok((town, objects))
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
const fn float(number: usize) -> f64 {
    number as f64
}
