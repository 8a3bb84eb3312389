//! What policies mean, as one binary: what its parts share, the generator of random clusters above all, is compiled once.
//!
//! | part | what it holds |
//! |---|---|
//! | [`advisories`] | what other implementations got wrong stays right |
//! | [`agree`] | the compiler says what the oracle says, on random clusters, policies, flows and histories |
//! | [`fuzz`] | hostile text does no harm |
//! | [`guide`] | each policy of docs/policy-guide.md does what the page says |
//! | [`growth`] | what many parts take grows as their number does |
//! | [`identities`] | examples of which identity an address has, and when open flows are judged again |
//! | [`memory`] | what a cluster's objects take |
//! | [`steps`] | each step of an update is safe; numbers outlive a restart |
//! | [`too_large`] | what is too large to be in force lets nothing pass |
//! | [`vectors`] | the vectors of tests/scenarios/policy |
//!
//! `cargo test -p sluice-policy-core --test policy agree::` runs one of them.
#![cfg(test)]

mod advisories;
mod agree;
mod allocator;
mod cost;
mod fuzz;
mod growth;
mod guide;
mod identities;
mod memory;
mod random;
mod steps;
mod too_large;
mod vectors;
mod world;

use sluice_policy_core::cluster::Object;
use sluice_policy_core::{manifest, parse};

/// The cluster that the advisories speak of, and that hostile texts come to.
const CLUSTER: &str = include_str!("cluster.yaml");

/// The objects of a text, and their faults as `Severity path: message`.
fn objects(text: &str) -> (Vec<Object>, Vec<String>) {
    let (mut objects, mut faults) = (Vec::new(), Vec::new());
    for document in manifest::documents(text).unwrap_or_else(|error| panic!("{error}")) {
        let parsed = parse::object(&document);
        objects.extend(parsed.object);
        faults.extend(parsed.issues.iter().map(|issue| format!("{:?} {issue}", issue.severity)));
    }
    (objects, faults)
}

/// The objects of a text that has no fault.
fn sound_objects(text: &str) -> Vec<Object> {
    let (objects, faults) = objects(text);
    assert_eq!(faults, [""; 0], "{text}");
    objects
}
