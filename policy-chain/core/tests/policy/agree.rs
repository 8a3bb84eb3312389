//! The compiler against the oracle: random clusters, policies of all dialects, flows, histories.
//!
//! A failure prints its seed and the smallest case that was found by leaving things out. `SLUICE_TEST_ALL` judges a million
//! flows; `SLUICE_TEST_SEED` judges those of one seed.

mod coverage;
mod found;
mod shadow;
mod shrink;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use coverage::Coverage;
use shrink::{Case, shrink};
use sluice_policy_core::cluster::{Cluster, Event, Object, PodKey};
use sluice_policy_core::compile::engine::Engine;
use sluice_policy_core::compile::image::Image;
use sluice_policy_core::flow::{Direction, Judgement, Origin, Protocol, Query, RuleRef, Verdict};
use sluice_policy_core::model::cilium::CiliumAllow;
use sluice_policy_core::model::network_policy::NetworkPeers;
use sluice_policy_core::model::{Policy, PolicyKind, Unusable};
use sluice_policy_core::settings::Settings;
use sluice_policy_core::{oracle, parse};

use crate::random::flows::Targets;
use crate::random::{Random, objects, policies, render, requests};
use crate::sound_objects;

/// Flows that are judged in one cluster.
const FLOWS_OF_A_WORLD: u64 = 100;

/// How many flows are judged; few where nothing is optimised, for whoever is at work on the compiler.
fn flows() -> u64 {
    match std::env::var_os("SLUICE_TEST_ALL") {
        Some(_) => 1_000_000,
        None if cfg!(debug_assertions) => 20_000,
        None => ALL_KINDS,
    }
}

/// So many reach every kind of rule and verdict.
const ALL_KINDS: u64 = 300_000;

/// The seeds of `flows` flows, or the one that is asked for.
fn seeds(flows: u64) -> std::ops::Range<u64> {
    let asked = std::env::var_os("SLUICE_TEST_SEED").map(|seed| seed.to_str().unwrap().parse::<u64>().unwrap());
    asked.map_or(0..flows.div_ceil(FLOWS_OF_A_WORLD), |seed| seed..seed + 1)
}

fn cluster_of(events: &[Event]) -> Cluster {
    let mut cluster = Cluster::default();
    for event in events {
        cluster.apply(event.clone());
    }
    cluster
}

/// An engine, and the image that its operations make elsewhere.
struct Compiled {
    engine: Engine,
    mirror: Image,
}

impl Compiled {
    fn new(settings: &Settings) -> Self {
        Self { engine: Engine::new(settings.clone()), mirror: Image::default() }
    }

    fn of(case: &Case) -> Self {
        let mut compiled = Self::new(&case.settings);
        for (index, event) in case.events.iter().enumerate() {
            compiled.engine.apply(event.clone());
            if case.commit_every.is_some_and(|every| (index + 1) % every == 0) {
                compiled.commit();
            }
        }
        compiled.commit();
        compiled
    }

    fn commit(&mut self) {
        for operation in self.engine.commit().operations {
            self.mirror.apply(&operation);
        }
    }
}

/// What is wrong with an answer.
fn difference(compiled: &Compiled, cluster: &Cluster, settings: &Settings, query: &Query) -> Option<String> {
    let expected = oracle::judge(cluster, settings, query);
    let found = compiled.engine.judge(query);
    let mirrored = compiled.mirror.judge(query);
    let shown = |judgement: &Judgement| format!("{judgement:#?}");
    if found != expected {
        return Some(format!("oracle: {}\ncompiled: {}", shown(&expected), shown(&found)));
    }
    (mirrored != found).then(|| format!("compiled: {}\nby its operations: {}", shown(&found), shown(&mirrored)))
}

fn difference_of(case: &Case) -> Option<String> {
    let judged =
        AssertUnwindSafe(|| difference(&Compiled::of(case), &cluster_of(&case.events), &case.settings, &case.query));
    catch_unwind(judged).unwrap_or_else(|_| Some("a panic".to_owned()))
}

/// Fails with the smallest case.
fn fail(seed: u64, case: Case) -> ! {
    let case = shrink(case, &|case| difference_of(case).is_some());
    let difference = difference_of(&case).unwrap_or_else(|| "another run of the case does not fail".to_owned());
    panic!("seed {seed}: {case:#?}\n{difference}");
}

/// Judges all seeds, on all processors.
fn of_all(seeds: std::ops::Range<u64>, judge: impl Fn(u64, &mut Coverage) + Sync) -> Coverage {
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(8));
    let next = AtomicU64::new(seeds.start);
    let run = || {
        let mut coverage = Coverage::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return coverage;
            }
            judge(seed, &mut coverage);
        }
    };
    let mut coverage = Coverage::default();
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        for thread in running {
            coverage.merge(thread.join().expect("its panic is printed above"));
        }
    });
    coverage
}

/// Every verdict, reason, "otherwise" and dry run of the image is the oracle's.
#[test]
fn the_image_says_what_the_oracle_says() {
    let seeds = seeds(flows());
    let coverage = of_all(seeds.clone(), |seed, coverage| {
        let mut random = Random::new(seed);
        let settings = objects::settings(&mut random);
        let events = objects::world(&mut random);
        let cluster = cluster_of(&events);
        let targets = Targets::of(&cluster, &settings);
        let query = targets.flow(&mut random);
        let mut case = Case { settings, events, commit_every: None, query };
        let compiled = catch_unwind(|| Compiled::of(&case)).unwrap_or_else(|_| fail(seed, case.clone()));
        for _ in 0..FLOWS_OF_A_WORLD {
            case.query = targets.flow(&mut random);
            if difference(&compiled, &cluster, &case.settings, &case.query).is_some() {
                fail(seed, case);
            }
            coverage.note(&cluster, &case.query, &compiled.engine.judge(&case.query));
        }
    });
    println!("{}", coverage.report());
    if (seeds.end - seeds.start) * FLOWS_OF_A_WORLD >= ALL_KINDS {
        coverage.assert_at_least(3, coverage::WANTED);
    }
}

/// What becomes of a request of a flow, by the verdict of the image, is what the oracle says of it.
#[test]
fn a_request_is_judged_as_the_oracle_judges_it() {
    let seeds = seeds(flows() / 2);
    let coverage = of_all(seeds.clone(), |seed, coverage| {
        let mut random = Random::new(seed ^ 0x4e9e_0000_0000_0000);
        let settings = objects::settings(&mut random);
        let events = objects::world(&mut random);
        let cluster = cluster_of(&events);
        let targets = Targets::of(&cluster, &settings);
        let query = targets.flow(&mut random);
        let compiled = Compiled::of(&Case { settings: settings.clone(), events, commit_every: None, query });
        for _ in 0..FLOWS_OF_A_WORLD {
            let query = targets.flow(&mut random);
            let Verdict::Redirect(proxied) = compiled.engine.judge(&query).verdict else { continue };
            // Also of other ports of the same rules.
            let rules: Vec<&CiliumAllow> = proxied.lists.iter().map(|list| allow(&cluster, &list.at.rule)).collect();
            if rules.is_empty() {
                // Only looked at.
                continue;
            }
            for _ in 0..4 {
                let rule = *random.pick(&rules);
                let ports = random.pick(&rule.ports);
                requests::with_request(&mut random, &ports.application, |kind, message| {
                    // None: of a Service's address, of which the backend is asked about.
                    let Some(expected) = oracle::judge_request(&cluster, &settings, &query, message) else { return };
                    let found = proxied.outcome(message);
                    assert_eq!(found, expected, "seed {seed}: {query:#?}, {message:?}, {proxied:#?}");
                    coverage.note_request(kind, &found, &proxied);
                });
            }
        }
    });
    println!("{}", coverage.report());
    if (seeds.end - seeds.start) * FLOWS_OF_A_WORLD >= ALL_KINDS / 2 {
        coverage.assert_at_least(20, coverage::WANTED_OF_REQUESTS);
    }
}

/// The rule of cilium.io that a verdict names.
fn allow<'a>(cluster: &'a Cluster, rule: &RuleRef) -> &'a CiliumAllow {
    let Policy::Cilium(policy) = cluster.policies[&rule.policy].as_ref() else { panic!("{rule} has no proxy") };
    let spec = policy.rule(rule.spec).unwrap();
    let list = if rule.direction == Direction::Ingress { &spec.ingress } else { &spec.egress };
    list[usize::from(rule.index)].as_ref().unwrap()
}

/// An image that was kept up to date event by event says what one says that is made afresh, and is the same but for its
/// numbers.
#[test]
fn a_history_ends_where_a_fresh_start_ends() {
    of_all(seeds(flows() / 4), |seed, _| {
        let mut random = Random::new(seed ^ 0x5eed_0000_0000_0000);
        let settings = objects::settings(&mut random);
        let mut events = objects::world(&mut random);
        let began = events.len();
        events.extend(random.list(5, 30, objects::event));
        let every = random.between(1, 3);
        let mut cluster = Cluster::default();
        let mut compiled = Compiled::new(&settings);
        for (index, event) in events.iter().enumerate() {
            cluster.apply(event.clone());
            compiled.engine.apply(event.clone());
            if (index + 1) % every != 0 && index + 1 != events.len() {
                continue;
            }
            compiled.commit();
            if index + 1 < began {
                continue;
            }
            let targets = Targets::of(&cluster, &settings);
            for _ in 0..8 {
                let query = targets.flow(&mut random);
                if difference(&compiled, &cluster, &settings, &query).is_some() {
                    let (settings, events) = (settings.clone(), events[..=index].to_vec());
                    fail(seed, Case { settings, events, commit_every: Some(every), query });
                }
            }
        }
        let mut fresh = Compiled::new(&settings);
        for event in &events {
            fresh.engine.apply(event.clone());
        }
        fresh.commit();
        let same = fresh.engine.image().canonical() == compiled.engine.image().canonical();
        assert!(same, "seed {seed}: the image is not the one that is made afresh");
    });
}

/// What a policy of any dialect says is the same after it was written down and read.
#[test]
fn a_policy_is_read_as_it_was_meant() {
    let mut read: BTreeMap<PolicyKind, u64> = BTreeMap::new();
    for seed in 0..6_000 {
        let mut random = Random::new(seed);
        let meant = policies::policy(&mut random);
        let Some(written) = render::policy(&meant, &mut random) else { continue };
        let found = parse::object(&written);
        let Some(Object::Policy(found)) = found.object else { panic!("seed {seed}: {written:#}: {:?}", found.issues) };
        assert_eq!(without_reasons(found), without_reasons(meant.clone()), "seed {seed}: {written:#}");
        *read.entry(meant.id().kind).or_default() += 1;
    }
    assert!(read.len() == 8 && read.values().all(|count| *count > 100), "{read:?}");
}

/// A policy whose unusable parts are all unusable for the same reason.
fn without_reasons(mut policy: Policy) -> Policy {
    let reason = || Unusable { path: String::new(), reason: String::new() };
    match &mut policy {
        Policy::Network(one) => {
            for rule in one.ingress.iter_mut().chain(&mut one.egress).flatten() {
                match rule {
                    Err(why) => *why = reason(),
                    Ok(rule) => {
                        if let NetworkPeers::Of(peers) = &mut rule.peers {
                            peers.iter_mut().filter_map(|peer| peer.as_mut().err()).for_each(|why| *why = reason());
                        }
                    }
                }
            }
        }
        Policy::Cluster(one) => {
            let rules = one.ingress.iter_mut().chain(&mut one.egress);
            rules.filter_map(|rule| rule.matches.as_mut().err()).for_each(|why| *why = reason());
        }
        Policy::Cilium(one) => {
            for rule in &mut one.rules {
                let allows = rule.ingress.iter_mut().chain(&mut rule.egress);
                allows.filter_map(|rule| rule.as_mut().err()).for_each(|why| *why = reason());
                let denies = rule.ingress_deny.iter_mut().chain(&mut rule.egress_deny);
                denies.filter_map(|rule| rule.as_mut().err()).for_each(|why| *why = reason());
            }
        }
    }
    policy
}

/// A pod is a backend of the Service that it dials, so its own row decides with the others'; then another pod is the backend.
#[test]
fn a_pod_that_is_a_backend_no_more_is_judged_by_the_new_ones() {
    let slice = |backend: &str| {
        format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, \
             metadata: {{namespace: a, name: s-1, labels: {{kubernetes.io/service-name: s}}}}, \
             ports: [{{name: \"\", port: 80, protocol: TCP}}], endpoints: [{{addresses: [{backend}]}}]}}"
        )
    };
    let objects = [
        "{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p}, spec: {nodeName: n1, containers: [{name: c}]}, \
          status: {phase: Running, podIPs: [{ip: 10.0.0.1}]}}",
        "{apiVersion: v1, kind: Service, metadata: {namespace: a, name: s}, \
          spec: {clusterIPs: [10.96.0.1], ports: [{port: 80}]}}",
        &slice("10.0.0.1"),
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: a, name: deny}, \
          spec: {podSelector: {}, policyTypes: [Egress]}}",
    ];
    let event = |text: &str| Event::Upsert(sound_objects(text).remove(0));
    let query = Query {
        subject: PodKey { namespace: "a".into(), name: "p".into() },
        direction: Direction::Egress,
        peer: "10.96.0.1".parse().unwrap(),
        protocol: Protocol::TCP,
        port: 80,
        origin: Origin::Forwarded,
    };
    let mut case = Case {
        settings: Settings { node: Some("n1".into()), ..Settings::default() },
        events: objects.into_iter().map(event).collect(),
        commit_every: Some(1),
        query,
    };
    let verdict = |case: &Case| Compiled::of(case).engine.judge(&case.query).verdict;
    assert_eq!((verdict(&case), difference_of(&case)), (Verdict::Defer, None));
    case.events.push(event(&slice("10.0.0.2")));
    assert_eq!((verdict(&case), difference_of(&case)), (Verdict::Deny, None));
}
