//! What the lint says of the meaning of policies is what the oracle says: application rules that refuse nothing, pods that can ask
//! no name server, names that they cannot ask for.

use std::collections::BTreeMap;

use sluice_policy_core::cluster::{Cluster, Event, Object, ObjectId, PodKey};
use sluice_policy_core::flow::{Direction, Judgement, Origin, Outcome, Protocol, Query, Verdict};
use sluice_policy_core::l7::Message;
use sluice_policy_core::l7::dns::Name;
use sluice_policy_core::lint::{self, Document, Finding, Id, Role};
use sluice_policy_core::model::PolicyRef;
use sluice_policy_core::oracle::explain::{Effect, matching};
use sluice_policy_core::settings::Settings;
use sluice_policy_core::{manifest, oracle, parse};

use super::cluster_of;
use crate::random::flows::Targets;
use crate::random::{Random, objects, render};
use crate::world::{World, cnp};

/// Flows that are judged for each finding.
const FLOWS: usize = 60;

/// Who may be a name server: outside, and another node.
const SERVERS: [&str; 3] = ["203.0.113.53", "2001:db8:53::53", "198.51.100.53"];

fn worlds() -> u64 {
    match std::env::var_os("SLUICE_TEST_ALL") {
        Some(_) => 20_000,
        None if cfg!(debug_assertions) => 300,
        None => 1_500,
    }
}

/// With dry runs in force, and the pods' own too.
fn full(judgement: &Judgement) -> &Judgement {
    judgement.audit.as_deref().unwrap_or(judgement)
}

struct Scene<'a> {
    cluster: &'a Cluster,
    settings: &'a Settings,
    finding: &'a Finding,
    policy: &'a PolicyRef,
}

impl Scene<'_> {
    fn context(&self, query: &Query, found: &Judgement) -> String {
        format!("{:#?}\n{query:#?}\n{found:#?}", self.finding)
    }

    /// The pods that the policy isolates in egress: those are surely its subjects.
    fn subjects(&self) -> Vec<PodKey> {
        let isolated = |pod: &&PodKey| {
            let query = self.dns(pod, SERVERS[0], Protocol::UDP);
            let all = matching(self.cluster, self.settings, &query);
            all.iter().any(|one| one.effect == Effect::Isolate && one.policy == *self.policy)
        };
        self.cluster.pods.keys().filter(isolated).cloned().collect()
    }

    fn dns(&self, pod: &PodKey, server: &str, protocol: Protocol) -> Query {
        let (direction, origin) = (Direction::Egress, Origin::Forwarded);
        Query { subject: pod.clone(), direction, peer: server.parse().unwrap(), protocol, port: 53, origin }
    }

    /// Questions of all subjects to servers whose addresses no name has.
    fn questions(&self) -> Vec<(Query, Judgement)> {
        let named = |server: &str| {
            let server = server.parse().unwrap();
            self.cluster.names.values().any(|addresses| addresses.contains_key(&server))
        };
        let mut asked = Vec::new();
        for pod in self.subjects() {
            for server in SERVERS.into_iter().filter(|server| !named(server)) {
                for protocol in [Protocol::UDP, Protocol::TCP] {
                    let query = self.dns(&pod, server, protocol);
                    asked.push((query.clone(), oracle::judge(self.cluster, self.settings, &query)));
                }
            }
        }
        asked
    }

    /// Whoever is let through by these rules would be let through without them.
    fn toothless(&self, random: &mut Random) -> usize {
        let (rule, element) = self.finding.path.rsplit_once(".toPorts[").unwrap();
        let element: u32 = element.trim_end_matches(']').parse().unwrap();
        let rule = format!("{}, {}", self.policy, rule.strip_prefix("spec.").unwrap_or(rule));
        let targets = Targets::of(self.cluster, self.settings);
        let mut seen = 0;
        for _ in 0..FLOWS {
            let query = targets.flow(random);
            let judgement = oracle::judge(self.cluster, self.settings, &query);
            for found in [&judgement, full(&judgement)] {
                let Verdict::Redirect(proxied) = &found.verdict else { continue };
                let mut lists = proxied.lists.iter().map(|list| &list.at);
                if lists.any(|at| at.rule.to_string() == rule && at.element == element) {
                    assert!(matches!(proxied.otherwise, Outcome::Allow(_)), "{}", self.context(&query, found));
                    seen += 1;
                }
            }
        }
        seen
    }

    fn no_dns(&self) -> usize {
        let questions = self.questions();
        for (query, judgement) in &questions {
            let found = full(judgement);
            assert_eq!(found.verdict, Verdict::Deny, "{}", self.context(query, found));
        }
        questions.len()
    }

    fn never_learned(&self, document: &Document) -> usize {
        let pointer = format!("/{}", self.finding.path.replace(['.', '['], "/").replace(']', ""));
        let peer = document.value.pointer(&pointer).unwrap();
        let name = ["matchName", "matchPattern"].iter().find_map(|field| peer[*field].as_str()).unwrap();
        let message = Message::Dns { name: Name::new(name).unwrap(), qtype: 1 };
        let questions = self.questions();
        for (query, judgement) in &questions {
            let found = full(judgement);
            let refused = match &found.verdict {
                Verdict::Deny => true,
                Verdict::Redirect(proxied) => matches!(proxied.outcome(&message), Outcome::Deny(_)),
                Verdict::Allow | Verdict::Defer => false,
            };
            assert!(refused, "{}", self.context(query, found));
        }
        questions.len()
    }
}

#[test]
fn what_is_told_of_meaning_is_so() {
    let mut seen: BTreeMap<Id, (usize, usize)> = BTreeMap::new();
    for seed in 0..worlds() {
        let mut random = Random::new(seed ^ 0xf0d0_0000_0000_0000);
        let settings = objects::settings(&mut random);
        let mut events = objects::world(&mut random);
        let mut documents = Vec::new();
        let mut ids = Vec::new();
        for policy in cluster_of(&events).policies.values() {
            let id = policy.id().clone();
            let event = match render::policy(policy, &mut random) {
                None => Event::Delete(ObjectId::Policy(id)),
                Some(value) => {
                    let Some(object @ Object::Policy(_)) = parse::object(&value).object else { panic!("{value:#}") };
                    documents.push(Document { file: String::new(), line: ids.len(), value, role: Role::Checked });
                    ids.push(id);
                    Event::Upsert(object)
                }
            };
            events.push(event);
        }
        let found = lint::check(&documents).findings;
        let meant = [Id::ToothlessApplicationRule, Id::NoDns, Id::NamesNeverLearned];
        let findings: Vec<&Finding> = found.iter().filter(|one| meant.contains(&one.id)).collect();
        if findings.is_empty() {
            continue;
        }
        let cluster = cluster_of(&events);
        for finding in findings {
            let policy = &ids[finding.line];
            let scene = Scene { cluster: &cluster, settings: &settings, finding, policy };
            // Of a policy of several elements it is not seen which of them isolates a pod.
            let one_element = documents[finding.line].value["specs"].is_null();
            let judged = match finding.id {
                Id::ToothlessApplicationRule => scene.toothless(&mut random),
                Id::NoDns if one_element => scene.no_dns(),
                Id::NamesNeverLearned if one_element => scene.never_learned(&documents[finding.line]),
                _ => 0,
            };
            let (times, flows) = seen.entry(finding.id).or_default();
            *times += 1;
            *flows += judged;
        }
    }
    println!("{seen:#?}");
    // Names that all rules refuse are rare in what the generator makes: see below.
    for (id, least) in [(Id::ToothlessApplicationRule, 20), (Id::NoDns, 20)] {
        let (_, flows) = seen.get(&id).copied().unwrap_or_default();
        assert!(flows >= least, "{id}: {seen:#?}");
    }
}

#[test]
fn names_that_the_dns_rules_refuse_are_told() {
    for (rules, told) in [
        (", rules: {dns: [{matchPattern: '*.example.org'}]}", true),
        (", rules: {dns: [{matchPattern: '*.example.com'}]}", false),
        // Looked at, because a rule names peers, and not restricted.
        ("", false),
    ] {
        let policy = cnp(
            "p",
            &format!(
                "endpointSelector: {{}}, egress: [{{toFQDNs: [{{matchName: a.example.com}}]}}, \
                 {{toEndpoints: [{{matchLabels: {{app: api}}}}], toPorts: [{{ports: [{{port: '53', protocol: ANY}}]{rules}}}]}}]"
            ),
        );
        let becomes = if told { "refuse" } else { "pass" };
        World::new(&policy).holds(&format!("shop/web-0 > shop/api-0 UDP/53|TCP/53 DNS a.example.com {becomes}"));
        let values = manifest::documents(&policy).unwrap().into_iter();
        let document = |value| Document { file: String::new(), line: 1, value, role: Role::Checked };
        let found = lint::check(&values.map(document).collect::<Vec<_>>()).findings;
        let names = found.iter().filter(|one| one.id == Id::NamesNeverLearned).count();
        assert_eq!(names, usize::from(told), "{found:#?}");
    }
}
