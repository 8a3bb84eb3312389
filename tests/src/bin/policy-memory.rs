//! Holds a cluster's objects, or an engine that knows them, and prints how much memory that takes. `bench` calls it.

#[path = "../../../policy-chain/core/tests/policy/allocator.rs"]
mod allocator;

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use sluice_policy_core::cluster::{Cluster, Event};
use sluice_tests::bench::policy::memory::Held;
use sluice_tests::bench::policy::town::Town;
use sluice_tests::bench::policy::{SEED, Size, engine};
use sluice_tests::bench::rss::anonymous;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _nobody = writeln!(std::io::stderr(), "policy-memory: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [part, policies, pods] = arguments.as_slice() else {
        return Err("usage: policy-memory cluster|engine POLICIES PODS".into());
    };
    let town = Town::new(Size { policies: policies.parse()?, pods: pods.parse()? }, SEED);
    let own = std::process::id();
    // This thread is the only one.
    let (resident, before) = (anonymous(own)?, allocator::begin());
    let held = || -> Result<Held, Box<dyn Error>> {
        Ok(Held {
            allocated: allocator::held().saturating_sub(before),
            peak: allocator::peak().saturating_sub(before),
            anonymous: bytes(anonymous(own)? - resident),
        })
    };
    let figures = if part == "cluster" {
        let mut cluster = Cluster::default();
        for object in town.objects() {
            cluster.apply(Event::Upsert(object?));
        }
        for event in town.learned() {
            cluster.apply(event);
        }
        let figures = held()?;
        drop(cluster);
        figures
    } else {
        let mut engine = engine();
        for object in town.objects() {
            engine.apply(Event::Upsert(object?));
        }
        for event in town.learned() {
            engine.apply(event);
        }
        drop(engine.commit());
        let figures = held()?;
        drop(engine);
        figures
    };
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&figures)?)?;
    Ok(())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an amount of memory")]
const fn bytes(mib: f64) -> usize {
    (mib * 1024.0 * 1024.0).max(0.0) as usize
}
