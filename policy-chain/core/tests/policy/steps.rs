//! What the operations of an update promise: each step of them is safe, and numbers outlive a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_policy_core::cluster::{Event, Object, ObjectId, PodKey};
use sluice_policy_core::compile::diff::{Operation, diff};
use sluice_policy_core::compile::engine::{Checkpoint, Engine, Floor, Update};
use sluice_policy_core::compile::image::Image;
use sluice_policy_core::flow::{Direction, Judgement, Origin, Protocol, Query, Verdict};
use sluice_policy_core::settings::Settings;

use crate::random::flows::Targets;
use crate::random::{Random, objects};

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

/// Does an update step by step, and judges these flows at each: none passes more freely than before the update or after it.
/// Gives whether somebody had a number for the time of the update.
fn walk(old: &Image, update: &Update, new: &Image, queries: &[Query], what: &dyn std::fmt::Debug) -> bool {
    let ends: Vec<u8> =
        queries.iter().map(|query| looseness(&old.judge(query)).max(looseness(&new.judge(query)))).collect();
    // Gates that were there and have their new revision.
    let revision = |image: &Image, pod: &PodKey| image.endpoints.get(pod).map(|endpoint| endpoint.revision);
    let moved = |image: &Image, pod: &PodKey| {
        let has = revision(image, pod);
        has == revision(new, pod) && revision(old, pod).is_some_and(|had| has != Some(had))
    };
    let mut image = old.clone();
    for (index, operation) in update.operations.iter().enumerate() {
        image.apply(operation);
        for (query, most) in queries.iter().zip(&ends) {
            let found = image.judge(query);
            assert!(
                looseness(&found) <= *most,
                "{what:#?}, step {index} of {:#?}: {query:?}\nold {:?}\nnew {:?}\nbetween {found:?}",
                update.operations,
                old.judge(query),
                new.judge(query),
            );
            // An open flow is judged anew once, when its gate gets another revision: by then it is as it is to be.
            assert!(
                !moved(&image, &query.subject) || looseness(&found) == looseness(&new.judge(query)),
                "{what:#?}, step {index} of {:#?}: {query:?} by the new revision\nnew {:?}\nnow {found:?}",
                update.operations,
                new.judge(query),
            );
        }
    }
    assert_eq!(image, *new, "{what:#?}: the operations do not lead to the image");
    let set: Vec<_> = update.operations.iter().filter(|one| matches!(one, Operation::SetAddress(..))).collect();
    let prefix = |operation: &&Operation| match operation {
        Operation::SetAddress(prefix, _) => Some(*prefix),
        _ => None,
    };
    set.iter().filter_map(prefix).collect::<BTreeSet<_>>().len() < set.len()
}

#[test]
fn no_step_of_an_update_lets_pass_what_neither_end_lets_pass() {
    let (mut steps, mut staged) = (0, 0);
    // The last one has a node that comes with Services at its ports.
    for seed in (0..2 * cases()).chain([2634]) {
        let (mut engine, mut random, targets) = engine_of(seed);
        // One event at a time, then several in one commit.
        for round in 0..10 {
            let count = if round < 6 { 1 } else { random.between(2, 4) };
            let events: Vec<Event> = (0..count).map(|_| objects::event(&mut random)).collect();
            let old = engine.image().clone();
            events.iter().cloned().for_each(|event| engine.apply(event));
            let update = engine.commit();
            let queries: Vec<Query> = (0..40).map(|_| targets.flow(&mut random)).collect();
            staged += usize::from(walk(&old, &update, engine.image(), &queries, &(seed, events)));
            steps += update.operations.len();
        }
    }
    assert!(steps > 4000 && staged > 0, "only {steps} steps, {staged} updates in stages");
}

/// The addresses of pods that have a network of their own.
fn addresses(engine: &Engine) -> BTreeSet<IpAddr> {
    let managed = engine.cluster().pods.values().filter(|pod| !pod.finished && !pod.host_network);
    managed.flat_map(|pod| pod.addresses.iter()).collect()
}

/// What is written down of an open flow holds for one revision of its gate (DESIGN 6.5).
#[test]
fn a_gate_whose_peer_becomes_another_has_another_revision() {
    let mut turned = 0;
    for seed in 0..2 * cases() {
        let (mut engine, mut random, targets) = engine_of(seed);
        for round in 0..10 {
            let count = if round < 6 { 1 } else { random.between(2, 4) };
            let events: Vec<Event> = (0..count).map(|_| objects::event(&mut random)).collect();
            let (old, had) = (engine.image().clone(), addresses(&engine));
            events.iter().cloned().for_each(|event| engine.apply(event));
            let update = engine.commit();
            let (new, has) = (engine.image(), addresses(&engine));
            for query in (0..200).map(|_| targets.flow(&mut random)) {
                // Someone who comes moves nothing, unless less passes than did when nobody had the address; and neither does a
                // name that ends. Of Services other tests speak.
                let peer = query.peer.to_canonical();
                let is_plain = |image: &Image| {
                    image.names.iter().all(|(prefix, _)| prefix != peer.into())
                        && !image.frontends.contains_key(&(peer, query.protocol, query.port))
                };
                let gates = (old.endpoints.get(&query.subject), new.endpoints.get(&query.subject));
                let (Some(before), Some(now), Origin::Forwarded) = (gates.0, gates.1, query.origin) else { continue };
                let (was, is) = (old.judge(&query), new.judge(&query));
                let concerned = match (had.contains(&peer), has.contains(&peer)) {
                    (stayed, true) => stayed || looseness(&is) < looseness(&was) && !now.audit,
                    _ => false,
                };
                if was.verdict != is.verdict && concerned && is_plain(&old) && is_plain(new) {
                    turned += 1;
                    assert!(
                        now.revision > before.revision,
                        "seed {seed}, {events:#?}: {query:?}\nold {was:?}\nnew {is:?}\n{:#?}",
                        update.operations
                    );
                }
            }
        }
    }
    assert!(turned > 20, "only {turned} verdicts turned");
}

/// Whom a pod of a namespace lets in depends on the namespace's label, and so does who its pods are to others: neither before
/// nor after the label changes may one of them reach the other, and not on the way either.
#[test]
fn a_namespace_whose_label_changes_is_never_open_to_itself() {
    let policy = |name: &str, own: &str, other: &str| {
        format!(
            "{{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {{name: {name}}}, \
              spec: {{tier: Admin, priority: 1, subject: {{namespaces: {{matchLabels: {{env: {own}}}}}}}, ingress: [\
                {{action: Accept, from: [{{namespaces: {{matchLabels: {{env: {other}}}}}}}]}}, \
                {{action: Deny, from: [{{namespaces: {{}}}}]}}]}}}}\n---\n"
        )
    };
    let pod = |namespace: &str, name: &str, address: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{namespace: {namespace}, name: {name}}}, spec: {{nodeName: n1, \
              containers: [{{name: c}}]}}, status: {{phase: Running, podIPs: [{{ip: {address}}}]}}}}\n---\n"
        )
    };
    let namespace = |name: &str, env: &str| {
        format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{env: {env}}}}}}}\n---\n")
    };
    let mut engine = Engine::new(Settings { node: Some("n1".into()), ..Settings::default() });
    let tell = |engine: &mut Engine, text: &str| {
        let (objects, faults) = crate::objects(text);
        assert_eq!(faults, [""; 0], "{text}");
        objects.into_iter().for_each(|object| engine.apply(Event::Upsert(object)));
        engine.commit()
    };
    // Another namespace keeps its label: its pods' policies stay in use.
    let world = [
        namespace("a", "dev"),
        namespace("b", "dev"),
        namespace("c", "prod"),
        pod("a", "one", "10.0.0.1"),
        pod("a", "two", "10.0.0.2"),
        pod("b", "three", "10.0.0.3"),
        pod("c", "four", "10.0.0.4"),
        policy("dev", "dev", "prod"),
        policy("prod", "prod", "dev"),
    ];
    tell(&mut engine, &world.concat());
    let addresses = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"];
    let subjects = [("a", "one"), ("a", "two"), ("b", "three"), ("c", "four")];
    let queries: Vec<Query> = subjects
        .iter()
        .flat_map(|(namespace, name)| {
            let subject = PodKey { namespace: (*namespace).into(), name: (*name).into() };
            addresses.map(|peer| Query {
                subject: subject.clone(),
                direction: Direction::Ingress,
                peer: peer.parse().unwrap(),
                protocol: Protocol::TCP,
                port: 80,
                origin: Origin::Forwarded,
            })
        })
        .collect();
    for env in ["prod", "dev"] {
        let old = engine.image().clone();
        let update = tell(&mut engine, &namespace("a", env));
        assert_eq!(engine.judge(&queries[1]).verdict, Verdict::Deny);
        assert!(walk(&old, &update, engine.image(), &queries, &env), "{env}: {:#?}", update.operations);
    }
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
    let mut reused = (0, 0);
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
        let (old, written) = (engine.image(), serde_json::from_str(&text).unwrap());
        let floor = floor_of(old);
        let mut restored = Engine::restore(settings.clone(), &written, floor);
        for event in &events {
            restored.apply(event.clone());
        }
        restored.commit();
        assert_eq!(numbers(engine.image()), numbers(restored.image()), "seed {seed}");
        assert_eq!(engine.checkpoint(), restored.checkpoint(), "seed {seed}");
        assert!(restored.image().canonical() == old.canonical(), "seed {seed}");
        nothing_shared(restored.image(), floor);
        // A form that this program does not know is as good as none: then identities are above the floor too.
        let unknown = Checkpoint { version: Checkpoint::VERSION + 1, ..written };
        let mut restored = Engine::restore(settings, &unknown, floor);
        for event in &events {
            restored.apply(event.clone());
        }
        restored.commit();
        nothing_shared(restored.image(), floor);
        let lowest = numbers(restored.image()).values().min().copied();
        assert!(lowest.is_none_or(|lowest| lowest > floor.identity), "seed {seed}");
        // What is below is used again once nothing of before is left.
        restored.forget_checkpoint();
        for _ in 0..20 {
            restored.apply(objects::event(&mut random));
            restored.commit();
        }
        let again = restored.image();
        let rows = again.rows.keys().filter(|row| row.0 <= floor.row).count();
        let identities = numbers(again).values().filter(|number| **number <= floor.identity).count();
        reused = (reused.0 + rows, reused.1 + identities);
    }
    assert!(reused.0 > 0 && reused.1 > 0, "{reused:?}");
}

/// What the maps of an image hold.
fn floor_of(image: &Image) -> Floor {
    let peers = image.peers.keys().map(|(_, identity)| identity.0);
    Floor {
        policy: image.peers.keys().map(|(policy, _)| policy.0).max().unwrap_or_default(),
        row: image.rows.keys().map(|row| row.0).max().unwrap_or_default(),
        decision: image.decisions.keys().map(|decision| decision.0).max().unwrap_or_default(),
        identity: numbers(image).into_values().chain(peers).max().unwrap_or_default(),
        revision: image.endpoints.values().map(|endpoint| endpoint.revision).max().unwrap_or_default(),
    }
}

/// No number of policies, rows, decisions and revisions is one of those before the restart.
fn nothing_shared(image: &Image, floor: Floor) {
    assert!(image.peers.keys().all(|(policy, _)| policy.0 > floor.policy));
    assert!(image.rows.keys().all(|row| row.0 > floor.row));
    assert!(image.decisions.keys().all(|decision| decision.0 > floor.decision));
    assert!(image.endpoints.values().all(|endpoint| endpoint.revision > floor.revision));
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
