//! What a text goes through.

use std::net::IpAddr;

use serde_json::Value;
use sluice_policy_core::cluster::{Cluster, Event, Object, PodKey};
use sluice_policy_core::compile::engine::Engine;
use sluice_policy_core::compile::image::Image;
use sluice_policy_core::flow::{Direction, Origin, Protocol, Query, Reason, Verdict};
use sluice_policy_core::l7::dns::Name;
use sluice_policy_core::manifest;
use sluice_policy_core::oracle;
use sluice_policy_core::parse::cursor::MAX_ISSUES;
use sluice_policy_core::parse::{self, Parsed, Severity};
use sluice_policy_core::settings::Settings;

use crate::cost::Cost;
use crate::random::Random;
use crate::random::flows::proxied;
use crate::sound_objects;

/// How far the cases came, and what they took.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    cases: u64,
    refused_texts: u64,
    objects: u64,
    policies: u64,
    without_fault: u64,
    not_read: u64,
    issues: u64,
    /// Allow, deny, redirect, defer.
    verdicts: [u64; 4],
    slowest: (u64, u64),
    largest: (usize, u64),
    most_for_a_byte: (usize, u64),
}

impl Counts {
    pub(crate) fn note(&mut self, seed: u64, length: usize, cost: Cost) {
        self.cases += 1;
        self.slowest = self.slowest.max((cost.nanoseconds, seed));
        self.largest = self.largest.max((cost.bytes, seed));
        if length > 10_000 {
            self.most_for_a_byte = self.most_for_a_byte.max((cost.bytes / length, seed));
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.cases += other.cases;
        self.refused_texts += other.refused_texts;
        self.objects += other.objects;
        self.policies += other.policies;
        self.without_fault += other.without_fault;
        self.not_read += other.not_read;
        self.issues += other.issues;
        for (sum, more) in self.verdicts.iter_mut().zip(other.verdicts) {
            *sum += more;
        }
        self.slowest = self.slowest.max(other.slowest);
        self.largest = self.largest.max(other.largest);
        self.most_for_a_byte = self.most_for_a_byte.max(other.most_for_a_byte);
    }

    /// The cases are not all of one kind.
    pub(crate) fn assert_wide(&self) {
        let wide = [
            self.refused_texts > self.cases / 100,
            self.objects > self.cases,
            self.policies > self.cases / 2,
            self.without_fault > self.objects / 10,
            self.not_read > self.objects / 100,
            self.issues > self.cases / 2,
            self.verdicts.iter().all(|count| *count > self.cases / 20),
        ];
        assert_eq!(wide, [true; 7], "{self:#?}");
    }
}

/// A cluster that texts come to.
#[derive(Debug)]
pub(crate) struct Target {
    base: Vec<Event>,
    settings: Settings,
}

impl Target {
    pub(crate) fn new(cluster: &str) -> Self {
        let base = sound_objects(cluster).into_iter().map(Event::Upsert).collect();
        Self { base, settings: Settings { node: Some("n1".into()), ..Settings::default() } }
    }

    /// Reads a text, adds it to the cluster, and holds the image equal to the oracle.
    pub(crate) fn run(&self, text: &str, random: &mut Random, counts: &mut Counts) {
        let read = manifest::read(text);
        for error in &read.errors {
            let shown = error.to_string();
            assert!(shown.len() < 1000 && error.line > 0 && error.line <= 2 + text.lines().count(), "{shown}");
            assert!(!error.fault.is_empty() && !error.hint.is_empty(), "{shown}");
            counts.refused_texts += 1;
        }
        let mut events = self.base.clone();
        for document in &read.documents {
            let parsed = parse::object(&document.value);
            check(&parsed, &document.value);
            counts.objects += 1;
            counts.issues += parsed.issues.len() as u64;
            counts.without_fault += u64::from(parsed.issues.is_empty());
            counts.not_read += u64::from(parsed.object.is_none());
            counts.policies += u64::from(matches!(parsed.object, Some(Object::Policy(_))));
            events.extend(parsed.object.map(Event::Upsert));
        }
        self.compile(events, random, counts);
    }

    fn compile(&self, mut events: Vec<Event>, random: &mut Random, counts: &mut Counts) {
        for (name, address) in [("www.example.com", "203.0.113.9"), ("example.com", "198.51.100.1")] {
            let (name, addresses) = (Name::new(name).unwrap(), vec![address.parse().unwrap()]);
            events.push(Event::Resolved { name, addresses, until: None });
        }
        // Some things go again, and some come before the cluster.
        for _ in 0..random.below(3) {
            let Event::Upsert(object) = random.pick(&events) else { continue };
            events.push(Event::Delete(object.id()));
        }
        if random.one_in(3) {
            let (one, other) = (random.below(events.len()), random.below(events.len()));
            events.swap(one, other);
        }
        let mut cluster = Cluster::default();
        let (mut engine, mut image) = (Engine::new(self.settings.clone()), Image::default());
        let every = random.between(2, 40);
        let last = events.len() - 1;
        for (index, event) in events.into_iter().enumerate() {
            cluster.apply(event.clone());
            engine.apply(event);
            if index % every == every - 1 || index == last {
                engine.commit().operations.iter().for_each(|operation| image.apply(operation));
            }
        }
        let subjects: Vec<&PodKey> =
            cluster.pods.values().filter(|pod| pod.node == self.settings.node).map(|pod| &pod.key).collect();
        if subjects.is_empty() {
            return;
        }
        let proxied = proxied(&cluster);
        for _ in 0..16 {
            let query = query(random, &subjects, &proxied);
            let expected = oracle::judge(&cluster, &self.settings, &query);
            // What is too large to be in force the oracle does not know.
            let found = engine.judge(&query);
            if found.reason == Reason::TooLarge {
                assert_eq!((image.judge(&query), found.verdict.clone()), (found, Verdict::Deny), "{query:?}");
                continue;
            }
            assert_eq!(engine.judge(&query), expected, "compiled, and the oracle, on {query:?}");
            assert_eq!(image.judge(&query), expected, "by operations, and the oracle, on {query:?}");
            counts.verdicts[match expected.verdict.as_str() {
                "allow" => 0,
                "deny" => 1,
                "redirect" => 2,
                _ => 3,
            }] += 1;
        }
    }
}

/// A flow, now and then of a port that application rules are for.
fn query(random: &mut Random, subjects: &[&PodKey], proxied: &[(Protocol, u16)]) -> Query {
    const PEERS: &[&str] = &[
        "10.9.1.1",
        "10.9.1.2",
        "10.9.1.3",
        "10.9.1.4",
        "10.9.2.1",
        "10.9.2.2",
        "10.9.0.1",
        "10.9.0.2",
        "fd00:9::1",
        "fd00:9:1::3",
        "10.0.0.1",
        "10.255.255.255",
        "203.0.113.1",
        "203.0.113.9",
        "203.0.113.80",
        "198.51.100.1",
        "172.20.0.10",
        "172.20.0.11",
        "172.20.0.12",
        "2001:db8::1",
        "::",
        "255.255.255.255",
        "::ffff:10.9.1.3",
    ];
    const PORTS: &[u16] = &[0, 1, 8, 53, 79, 80, 81, 443, 8080, 8081, 8443, 30080, 65535];
    const PROTOCOLS: &[Protocol] =
        &[Protocol::TCP, Protocol::TCP, Protocol::TCP, Protocol::UDP, Protocol::SCTP, Protocol::ICMP, Protocol(47)];
    let direction = *random.pick(&Direction::BOTH);
    let peer: IpAddr = random.pick(PEERS).parse().unwrap();
    let mut protocol = *random.pick(PROTOCOLS);
    let mut port = *random.pick(PORTS);
    if protocol == Protocol::ICMP && peer.to_canonical().is_ipv6() {
        protocol = Protocol::ICMPV6;
    }
    if matches!(peer.to_string().as_str(), "172.20.0.10" | "203.0.113.80" | "172.20.0.12") && random.one_in(2) {
        (protocol, port) = (Protocol::TCP, 80);
    }
    if !proxied.is_empty() && random.one_in(2) {
        (protocol, port) = *random.pick(proxied);
    }
    let own = peer.to_string() == "10.9.0.1" && direction == Direction::Ingress && random.one_in(2);
    let origin = if own { Origin::OwnNode } else { Origin::Forwarded };
    Query { subject: (*random.pick(subjects)).clone(), direction, peer, protocol, port, origin }
}

/// What is told of an object is bounded, names a place that is there, or one that is missing in a place that is, and shows
/// what stands there.
fn check(parsed: &Parsed, document: &Value) {
    assert!(parsed.issues.len() <= MAX_ISSUES + 1, "{} issues", parsed.issues.len());
    let refused = parsed.issues.iter().any(|issue| issue.severity > Severity::Warning);
    assert!(parsed.object.is_some() || refused, "refused without a word: {document}");
    for issue in &parsed.issues {
        assert!(issue.path.len() < 2000 && issue.message.len() < 3000, "{issue}");
        assert!(issue.message.len() > 4, "{issue} of {document}");
        assert!(stands(document, &issue.path), "no such place: {issue} of {document}");
    }
}

/// Whether a path leads to a value, or to a field that is missing in an object that is there.
fn stands(value: &Value, path: &str) -> bool {
    let path = path.strip_prefix('.').unwrap_or(path);
    if path.is_empty() {
        return true;
    }
    match value {
        Value::Array(list) => {
            let Some((index, rest)) = path.strip_prefix('[').and_then(|path| path.split_once(']')) else {
                return false;
            };
            index.parse::<usize>().ok().and_then(|index| list.get(index)).is_some_and(|value| stands(value, rest))
        }
        Value::Object(map) => {
            let there = map.iter().any(|(key, value)| {
                // A key may be shown cut, or quoted.
                path.strip_prefix(key.as_str())
                    .is_some_and(|rest| (rest.is_empty() || rest.starts_with(['.', '['])) && stands(value, rest))
            });
            there || !path.contains('[') || path.contains("...") || path.contains('"')
        }
        _ => !path.contains('['),
    }
}
