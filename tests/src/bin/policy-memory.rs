//! Holds a cluster's objects, or an engine that knows them, and prints how much memory that takes. `bench` calls it.
#![expect(unsafe_code, reason = "an allocator that counts is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use sluice_policy_core::cluster::{Cluster, Event};
use sluice_tests::bench::policy::memory::Held;
use sluice_tests::bench::policy::town::Town;
use sluice_tests::bench::policy::{SEED, Size, engine};
use sluice_tests::bench::rss::anonymous;

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
// JUSTIFICATION: bytes can be counted exactly in no other way.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller's promises are the callee's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the callee's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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
    let (before, resident) = (HELD.load(Ordering::Relaxed), anonymous(own)?);
    PEAK.store(before, Ordering::Relaxed);
    let held = || -> Result<Held, Box<dyn Error>> {
        Ok(Held {
            allocated: HELD.load(Ordering::Relaxed).saturating_sub(before),
            peak: PEAK.load(Ordering::Relaxed).saturating_sub(before),
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
