//! Hostile text through all of it: manifest, parser, cluster, compiler, queries.
//!
//! Each case is told by its seed: some objects of the scenarios and of corpus.yaml, changed as trees or as text. Whatever
//! comes, nothing panics, time and memory are bounded by the size of the text, what cannot be used is told by path and
//! value, and for what was accepted the image says what the oracle says. `SLUICE_TEST_ALL` tries 20 times as many;
//! `SLUICE_TEST_SEED` one.

mod large;
mod mutate;
mod target;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use mutate::Corpus;
use serde_json::Value;
use sluice_policy_core::manifest;
use target::{Counts, Target};

use crate::CLUSTER;
use crate::cost::cost;
use crate::random::Random;

/// The objects that stand in a text of vectors.
fn objects_in(value: &Value, found: &mut Vec<Value>) {
    match value {
        Value::Object(map) if map.contains_key("apiVersion") && map.contains_key("kind") => found.push(value.clone()),
        Value::Object(map) => map.values().for_each(|value| objects_in(value, found)),
        Value::Array(list) => list.iter().for_each(|value| objects_in(value, found)),
        _ => {}
    }
}

fn corpus() -> Corpus {
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios/policy");
    let mut objects = Vec::new();
    for name in ["netpol.yaml", "sluice.yaml"] {
        let text = std::fs::read_to_string(scenarios.join(name)).unwrap();
        for document in manifest::documents(&text).unwrap_or_else(|error| panic!("{name}: {error}")) {
            objects_in(&document, &mut objects);
        }
    }
    objects.sort_by_cached_key(Value::to_string);
    objects.dedup();
    assert!(objects.len() > 300, "{} objects in the scenarios", objects.len());
    // Those that have every field, and the cluster, as often as all the others together.
    let whole: Vec<Value> = [include_str!("fuzz/corpus.yaml"), CLUSTER]
        .iter()
        .flat_map(|text| manifest::documents(text).unwrap_or_else(|error| panic!("{error}")))
        .collect();
    let times = objects.len() / whole.len() + 1;
    objects.extend(std::iter::repeat_n(whole, times).flatten());
    let texts = include_str!("fuzz/corpus.yaml").split("---\n").chain([CLUSTER]).map(str::to_owned).collect();
    Corpus::new(objects, texts)
}

fn cases() -> std::ops::Range<u64> {
    let asked = std::env::var_os("SLUICE_TEST_SEED").map(|seed| seed.to_str().unwrap().parse::<u64>().unwrap());
    let cases = match std::env::var_os("SLUICE_TEST_ALL") {
        Some(_) => 400_000,
        None if cfg!(debug_assertions) => 2_000,
        None => 20_000,
    };
    asked.map_or(0..cases, |seed| seed..seed + 1)
}

/// The text of a case.
fn text_of(corpus: &Corpus, random: &mut Random) -> String {
    if random.one_in(4) {
        let mut text = random.list(1, 2, |random| random.pick(&corpus.texts).clone()).join("---\n");
        mutate::text(&mut text, random);
        return text;
    }
    let mut text = random.list(1, 4, |random| corpus.object(random).to_string()).join("\n---\n");
    if random.one_in(10) {
        mutate::text(&mut text, random);
    }
    text
}

#[test]
fn no_text_does_harm() {
    let (corpus, target) = (corpus(), Target::new(CLUSTER));
    let cases = cases();
    let next = AtomicU64::new(cases.start);
    let run = || {
        let mut counts = Counts::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= cases.end {
                return counts;
            }
            let mut random = Random::new(seed);
            let text = text_of(&corpus, &mut random);
            let shown: String = text.chars().take(4000).collect();
            let tried = catch_unwind(AssertUnwindSafe(|| cost(|| target.run(&text, &mut random, &mut counts))));
            let ((), cost) = tried.unwrap_or_else(|_| panic!("seed {seed}: a panic on\n{shown}"));
            counts.note(seed, text.len(), cost);
            assert!(cost.nanoseconds < LONGEST, "seed {seed} took {} ms, on\n{shown}", cost.nanoseconds / 1_000_000);
            let most = FEWEST_BYTES + BYTES_OF_A_BYTE * text.len();
            assert!(cost.bytes < most, "seed {seed} took {} bytes for {}, on\n{shown}", cost.bytes, text.len());
        }
    };
    let mut counts = Counts::default();
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(8));
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        for thread in running {
            counts.merge(&thread.join().expect("its panic is printed above"));
        }
    });
    println!("{counts:#?}");
    if cases.end - cases.start >= 20_000 {
        counts.assert_wide();
    }
}

/// The longest that a case may take: generous, a thousand times what most take.
const LONGEST: u64 = if cfg!(debug_assertions) { 20_000_000_000 } else { 2_000_000_000 };

/// Bytes that a case may hold whatever its size: a cluster, an engine and its image.
const FEWEST_BYTES: usize = 4 << 20;

/// Bytes that a case may hold for each of its text.
const BYTES_OF_A_BYTE: usize = 400;
