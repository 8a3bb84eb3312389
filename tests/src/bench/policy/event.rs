//! How long the compiler takes for one event, its commit included.

use std::collections::BTreeMap;
use std::time::Duration;

use sluice_policy_core::cluster::{Event, Object, ObjectId};
use sluice_policy_core::compile::engine::Engine;
use sluice_policy_core::model::Text;

use super::super::report::{Part, Report};
use super::super::stats::{millis, percentile};
use super::super::{BenchError, Say};
use super::town::{APPS, Dice, Kind, Town};
use super::{NotRead, SEED, Size, Spent, filled, objects, one, policies, row};

/// The benchmark's name for programs.
pub const ID: &str = "policy-event";
/// What is measured, in one line.
pub const ABOUT: &str = "one event to the operations that it makes, 250 local pods";

/// How often each event is told.
const ROUNDS: usize = 200;
/// The promise, in ms.
const LIMIT: f64 = 5.0;

/// What one kind of event took.
#[derive(Debug, Default)]
struct Samples {
    times: Vec<Spent>,
    operations: Vec<usize>,
}

/// By kind of event, in the order in which they are told.
type Table = BTreeMap<(usize, &'static str), Samples>;

/// Measures and reports.
///
/// # Errors
/// [`BenchError`]: an object of the cluster that the parser does not take.
pub fn run(say: Say) -> Result<Report, BenchError> {
    let mut rows = vec![row(["", "p50", "p99", "most", "p99 by the clock", "operations", "most"])];
    let mut parts = Vec::new();
    let mut figure: f64 = 0.0;
    let mut growth = Vec::new();
    for size in [Size::SMALL, Size::LARGE] {
        say(&format!("{size}, {ROUNDS} events of each kind"));
        let (town, objects) = objects(size)?;
        let (mut engine, ..) = filled(objects, town.learned());
        let table = tell(&mut engine, &town)?;
        rows.push(row([&size.to_string(), "", "", "", "", "", ""]));
        let mut worst = (0.0, "");
        for ((_, what), samples) in &table {
            let list = |of: fn(&Spent) -> Duration| samples.times.iter().map(of).collect::<Vec<Duration>>();
            let (cpu, wall) = (list(|spent| spent.cpu), list(|spent| spent.wall));
            let at = |percent| millis(percentile(&cpu, percent));
            let count = |percent: usize| {
                let mut sorted = samples.operations.clone();
                sorted.sort_unstable();
                let rank = (sorted.len() * percent).div_ceil(100).max(1);
                sorted.get(rank - 1).copied().unwrap_or_default()
            };
            if at(99) > worst.0 {
                worst = (at(99), what);
            }
            rows.push(vec![
                format!("  {what}"),
                format!("{:.3} ms", at(50)),
                format!("{:.3} ms", at(99)),
                format!("{:.3} ms", at(100)),
                format!("{:.3} ms", millis(percentile(&wall, 99))),
                count(50).to_string(),
                count(100).to_string(),
            ]);
        }
        let all: Vec<Duration> =
            table.values().flat_map(|samples| samples.times.iter().map(|spent| spent.cpu)).collect();
        growth.push(millis(percentile(&all, 50)));
        figure = figure.max(worst.0);
        parts.push(Part { what: format!("p99 of {:?}, {size}", worst.1), figure: worst.0, limit: LIMIT, unit: "ms" });
    }
    let [small, large] = growth.as_slice() else { return Err(BenchError::Incomplete) };
    let notes = vec![
        format!("the median of all events: {small:.3} ms small, {large:.3} ms large, {:.1} times", large / small),
        "processor time; the part is the slowest kind of event at each size".into(),
    ];
    Ok(Report { id: ID, figure, unit: "ms", peer: None, ratio: None, parts, rows, notes })
}

fn tell(engine: &mut Engine, town: &Town) -> Result<Table, NotRead> {
    let mut dice = Dice::new(SEED ^ 0x6576_656e);
    let mut table = Table::new();
    let local: Vec<usize> = town.local().collect();
    for round in 0..ROUNDS {
        let mut time = |order: usize, what: &'static str, event: Event| {
            let (spent, operations) = one(engine, event);
            let samples = table.entry((order, what)).or_default();
            samples.times.push(spent);
            samples.operations.push(operations.len());
        };
        // A pod of another node, and one of this node.
        let near = local.get(dice.below(local.len())).copied().unwrap_or_default();
        let mut far = dice.below(town.size.pods);
        if far.is_multiple_of(town.nodes()) {
            far += 1;
        }
        let app = dice.one_of(&APPS);
        time(0, "a pod elsewhere has another label", Event::Upsert(town.pod(far, Some(app))?));
        time(1, "and its own again", Event::Upsert(town.pod(far, None)?));
        time(2, "a pod of this node has another label", Event::Upsert(town.pod(near, Some(app))?));
        time(3, "and its own again, here", Event::Upsert(town.pod(near, None)?));
        let Some(workload) = town.workload(far) else { continue };
        let new = town.further_pod(workload, round, 1)?;
        time(4, "a new pod elsewhere", Event::Upsert(new.clone()));
        time(5, "it is gone", Event::Delete(id(&new)));
        let Some(home) = town.workload(near) else { continue };
        let new = town.further_pod(home, round, 0)?;
        time(6, "a new pod on this node", Event::Upsert(new.clone()));
        time(7, "it is gone, here", Event::Delete(id(&new)));
        // A policy that selects pods of this node.
        let name = format!("event-{round}");
        let policy = policies::app_to_app(&name, home, app, 7_000)?;
        time(8, "a new policy for pods of this node", Event::Upsert(policy.clone()));
        time(9, "it has another port", Event::Upsert(policies::app_to_app(&name, home, app, 7_001 + round)?));
        time(10, "it is gone, the policy", Event::Delete(id(&policy)));
        let served: Vec<_> = town.workloads.iter().filter(|workload| workload.kind != Kind::Job).collect();
        let Some(workload) = served.get(dice.below(served.len())) else { continue };
        time(11, "an endpoint is not ready any more", Event::Upsert(Town::slice(workload, false)?));
        time(12, "and is again", Event::Upsert(Town::slice(workload, true)?));
    }
    Ok(table)
}

fn id(object: &Object) -> ObjectId {
    match object {
        Object::Namespace(namespace) => ObjectId::Namespace(Text::clone(&namespace.name)),
        Object::Pod(pod) => ObjectId::Pod(pod.key.clone()),
        Object::Node(node) => ObjectId::Node(Text::clone(&node.name)),
        Object::Service(service) => ObjectId::Service(service.key.clone()),
        Object::EndpointSlice(slice) => ObjectId::EndpointSlice(slice.key.clone()),
        Object::CidrGroup(group) => ObjectId::CidrGroup(Text::clone(&group.name)),
        Object::Policy(policy) => ObjectId::Policy(policy.id().clone()),
    }
}
