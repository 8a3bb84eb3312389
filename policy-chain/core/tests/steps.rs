//! What the operations of an update promise: each step of them is safe, and numbers outlive a restart.

#![cfg(test)]

#[path = "agree/flows.rs"]
mod flows;
#[path = "agree/objects.rs"]
mod objects;
#[path = "agree/policies.rs"]
mod policies;
#[path = "agree/random.rs"]
mod random;

use std::collections::BTreeMap;

use flows::Targets;
use random::Random;
use sluice_policy_core::cluster::{Event, Object, ObjectId};
use sluice_policy_core::compile::diff::diff;
use sluice_policy_core::compile::engine::Engine;
use sluice_policy_core::compile::image::Image;
use sluice_policy_core::flow::{Judgement, Query, Verdict};

/// Cases; more in `./test --all`.
fn cases() -> u64 {
    if std::env::var_os("SLUICE_TEST_ALL").is_some() { 2_000 } else { 80 }
}

/// What passes, from least to most: a looser verdict than both the old one and the new one is unsafe.
const fn looseness(judgement: &Judgement) -> u8 {
    match judgement.verdict {
        Verdict::Deny => 0,
        Verdict::Redirect(_) => 1,
        Verdict::Defer | Verdict::Allow => 2,
    }
}

/// Whether an event changes peers and policies at once for the same pods: then there is a step between the two.
const fn is_double(event: &Event) -> bool {
    matches!(event, Event::Upsert(Object::Namespace(_)) | Event::Delete(ObjectId::Namespace(_)))
}

fn engine_of(seed: u64) -> (Engine, Random, Targets) {
    let mut random = Random::new(seed);
    let settings = objects::settings(&mut random);
    let mut engine = Engine::new(settings.clone());
    for event in objects::world(&mut random) {
        engine.apply(event);
    }
    engine.commit();
    let targets = Targets::of(engine.cluster(), &settings);
    (engine, random, targets)
}

#[test]
fn no_step_of_an_update_lets_pass_what_neither_end_lets_pass() {
    let mut steps = 0;
    for seed in 0..cases() {
        let (mut engine, mut random, targets) = engine_of(seed);
        for _ in 0..6 {
            let event = objects::event(&mut random);
            let double = is_double(&event);
            let old = engine.image().clone();
            engine.apply(event.clone());
            let update = engine.commit();
            let new = engine.image();
            let queries: Vec<Query> = (0..40).map(|_| targets.flow(&mut random)).collect();
            let ends: Vec<u8> =
                queries.iter().map(|query| looseness(&old.judge(query)).max(looseness(&new.judge(query)))).collect();
            let mut image = old.clone();
            for (index, operation) in update.operations.iter().enumerate() {
                image.apply(operation);
                steps += 1;
                if double {
                    continue;
                }
                for (query, most) in queries.iter().zip(&ends) {
                    let found = image.judge(query);
                    assert!(
                        looseness(&found) <= *most,
                        "seed {seed}, {event:#?}, step {index} of {:#?}: {query:?}\nold {:?}\nnew {:?}\nbetween {found:?}",
                        update.operations,
                        old.judge(query),
                        new.judge(query),
                    );
                }
            }
            assert_eq!(image, *new, "seed {seed}: the operations do not lead to the image");
        }
    }
    assert!(steps > 1000, "only {steps} steps");
}

#[test]
fn the_difference_of_two_images_leads_from_one_to_the_other() {
    for seed in 0..cases() / 4 {
        let (one, ..) = engine_of(seed);
        let (other, ..) = engine_of(seed + 1_000_000);
        let mut image: Image = one.image().clone();
        let operations = diff(one.image(), other.image());
        for operation in &operations {
            image.apply(operation);
        }
        assert_eq!(image, *other.image(), "seed {seed}");
        assert!(diff(&image, other.image()).is_empty());
    }
}

/// The numbers of the addresses and frontends of an image.
fn numbers(image: &Image) -> BTreeMap<String, u32> {
    let addresses = image.ipcache.iter().map(|(prefix, id)| (prefix.to_string(), id.0));
    let names = image.names.iter().map(|(prefix, id)| (format!("name {prefix}"), id.0));
    let frontends = image.frontends.iter().map(|(key, id)| (format!("{key:?}"), id.0));
    addresses.chain(names).chain(frontends).collect()
}

#[test]
fn numbers_outlive_a_restart() {
    for seed in 0..cases() / 4 {
        let mut random = Random::new(seed);
        let settings = objects::settings(&mut random);
        let mut events = objects::world(&mut random);
        let mut engine = Engine::new(settings.clone());
        for event in &events {
            engine.apply(event.clone());
            engine.commit();
        }
        for _ in 0..10 {
            let event = objects::event(&mut random);
            engine.apply(event.clone());
            engine.commit();
            events.push(event);
        }
        let text = serde_json::to_string(&engine.checkpoint()).unwrap();
        let mut restored = Engine::restore(settings, &serde_json::from_str(&text).unwrap());
        for event in &events {
            restored.apply(event.clone());
        }
        restored.commit();
        assert_eq!(numbers(engine.image()), numbers(restored.image()), "seed {seed}");
        assert_eq!(engine.checkpoint(), restored.checkpoint(), "seed {seed}");
    }
}

#[test]
fn the_same_history_gives_the_same_numbers() {
    for seed in 0..cases() / 8 {
        let (mut one, mut random, _) = engine_of(seed);
        let (mut other, ..) = engine_of(seed);
        for _ in 0..10 {
            let event = objects::event(&mut random);
            one.apply(event.clone());
            other.apply(event);
            assert_eq!(one.commit(), other.commit(), "seed {seed}");
        }
    }
}

#[test]
fn what_changes_nothing_writes_nothing() {
    for seed in 0..cases() / 8 {
        let (mut engine, mut random, _) = engine_of(seed);
        let again: Vec<Event> = {
            let cluster = engine.cluster();
            let pods = cluster.pods.values().map(|pod| Object::Pod(pod.as_ref().clone()));
            let policies = cluster.policies.values().map(|policy| Object::Policy(policy.as_ref().clone()));
            pods.chain(policies).map(Event::Upsert).collect()
        };
        for event in again {
            engine.apply(event);
        }
        assert_eq!(engine.commit().operations, [], "seed {seed}");
        // There and back again: as it was, but for the numbers.
        let before = engine.image().canonical();
        let pod = engine.cluster().pods.values().nth(random.below(engine.cluster().pods.len())).cloned().unwrap();
        engine.apply(Event::Delete(ObjectId::Pod(pod.key.clone())));
        engine.commit();
        engine.apply(Event::Upsert(Object::Pod(pod.as_ref().clone())));
        engine.commit();
        assert!(engine.image().canonical() == before, "seed {seed}");
    }
}
