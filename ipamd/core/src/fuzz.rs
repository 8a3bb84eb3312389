//! Hostile checkpoints.

use std::error::Error;
use std::path::Path;

use sluice_fuzz::{Counting, Grammar, Shape, Target};

use crate::arrivals::Band;
use crate::check::check;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::fixture::at;
use crate::plan::{Demand, Targets, WarmMode, plan};
use crate::state::Event;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/checkpoint");

/// The corpus has to be of the version that is read, or nothing but the version is ever tried.
#[test]
fn the_corpus_has_a_checkpoint_of_this_version() {
    let path = Path::new(CORPUS).join("full");
    if std::env::var_os("SLUICE_FUZZ_KEEP").is_some() {
        std::fs::write(&path, crate::checkpoint::full_document()).unwrap();
    }
    let document = std::fs::read(&path).unwrap();
    let state = Checkpoint::from_json(&document).and_then(|checkpoint| checkpoint.into_state(at(6)));
    assert!(state.is_ok(), "{}: {:?}; SLUICE_FUZZ_KEEP=1 writes it anew", path.display(), state.err());
}

fn said(error: &CheckpointError) -> Shape {
    Shape::said(error).and(error.source().map(|cause| Shape::said(&cause)))
}

#[test]
fn fuzz_checkpoint() {
    const WORDS: &[&str] = &[
        "free",
        "assigned",
        "cooling",
        "quarantined",
        "owner",
        "since",
        "until",
        "enis",
        "blocks",
        "addresses",
        "intents",
        "subnets",
        "primary",
        "secondary",
        "attached",
        "in_service",
        "leaving",
        "10.0.0.0/28",
        "10.0.0.1/32",
        "10.0.0.0/0",
        "eni-00000001",
        "version",
        "written",
        "seed",
        "sequence",
        "device",
        "card",
        "stage",
        "role",
    ];
    Target { name: "checkpoint", corpus: CORPUS.as_ref(), grammar: Grammar::Text, words: WORDS }.run(|octets| {
        let now = at(6);
        let checkpoint = match Checkpoint::from_json(octets) {
            Ok(checkpoint) => checkpoint,
            Err(error) => return said(&error),
        };
        let state = match checkpoint.into_state(now) {
            Ok(state) => state,
            Err(error) => return said(&error),
        };
        assert_eq!(check(&state, now), [], "a checkpoint that breaks a rule is taken");
        let document = Checkpoint::of(&state, now).to_json().expect("a document of our own");
        let again = Checkpoint::from_json(&document).and_then(|checkpoint| checkpoint.into_state(now));
        let again = again.expect("a checkpoint of our own");
        assert_eq!(again.ledger(), state.ledger(), "a checkpoint changes when it is written once more");
        // Whatever it says, the planner has an answer.
        let planned = plan(&state, &Targets::default(), &Demand::default(), now);
        // So it has by what was learned, and a pod may come.
        let mut state = state;
        state.apply(Event::Arrived, now).expect("a pod may always come");
        let adaptive = Targets { mode: WarmMode::Adaptive(Band::default()), ..Targets::default() };
        let _answer = plan(&state, &adaptive, &Demand::default(), now);
        Shape::of(&(state.node().is_some(), state.ledger().enis().count().min(4), planned.ops.len().min(4)))
    });
}
