//! Rules that the lint calls shadowed can be taken out as its hint says: no verdict changes. Policies are as their authors
//! write them, so that what a field says by being there, or by its default, counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use sluice_policy_core::cluster::{Event, Object, ObjectId};
use sluice_policy_core::flow::{Judgement, Outcome, Reason, Verdict};
use sluice_policy_core::lint::{self, Document, Finding, Id, Role};
use sluice_policy_core::model::Policy;
use sluice_policy_core::parse;

use super::shrink::Case;
use super::{Compiled, cluster_of};
use crate::random::flows::Targets;
use crate::random::{Random, objects, render};

/// Flows that are judged for each cluster with shadowed rules.
const FLOWS: usize = 150;

/// Clusters that are looked at; not all have shadowed rules.
fn worlds() -> u64 {
    match std::env::var_os("SLUICE_TEST_ALL") {
        Some(_) => 20_000,
        None if cfg!(debug_assertions) => 600,
        None => 3_000,
    }
}

/// Does to a policy what the hints of findings say.
fn follow(policy: &mut Value, findings: &[&Finding]) {
    let mut removed: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for finding in findings {
        let (list, index) = finding.path.rsplit_once('[').unwrap();
        let pointer = format!("/{}", list.replace(['.', '['], "/").replace(']', ""));
        let index: usize = index.trim_end_matches(']').parse().unwrap();
        if finding.hint.starts_with("write {} in its place") {
            *policy.pointer_mut(&pointer).and_then(|list| list.get_mut(index)).unwrap() = json!({});
            continue;
        }
        if finding.hint.starts_with("write policyTypes: [Ingress, Egress] and remove it") {
            policy["spec"]["policyTypes"] = json!(["Ingress", "Egress"]);
        } else {
            assert!(finding.hint.starts_with("remove it"), "{finding:#?}");
        }
        removed.entry(pointer).or_default().push(index);
    }
    for (pointer, mut indexes) in removed {
        indexes.sort_unstable();
        let list = policy.pointer_mut(&pointer).and_then(Value::as_array_mut).unwrap();
        indexes.into_iter().rev().for_each(|index| drop(list.remove(index)));
    }
}

fn object_of(written: &Value) -> Object {
    parse::object(written).object.unwrap_or_else(|| panic!("{written:#}"))
}

/// A judgement without the names of rules, which move when one is left out.
fn told(judgement: &Judgement) -> String {
    let outcome = |outcome: &Outcome| match outcome {
        Outcome::Allow(_) => "allow",
        Outcome::Deny(_) => "deny",
    };
    match &judgement.verdict {
        // What is only looked at passes as it passes unseen: a rule by name is not left out for what it makes seen.
        Verdict::Redirect(proxied) if proxied.lists.is_empty() => match judgement.reason {
            Reason::Service => "defer".to_owned(),
            _ => outcome(&proxied.otherwise).to_owned(),
        },
        Verdict::Redirect(proxied) => {
            format!("redirect by {}, else {}", proxied.lists.len(), outcome(&proxied.otherwise))
        }
        verdict => verdict.as_str().to_owned(),
    }
}

/// The verdict, and what is recorded for dry runs (which may name another reason of the same verdict, or none).
fn verdicts(judgement: &Judgement) -> (String, String) {
    (told(judgement), told(judgement.audit.as_deref().unwrap_or(judgement)))
}

#[test]
fn a_rule_called_shadowed_can_be_left_out() {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let mut hints: BTreeMap<String, usize> = BTreeMap::new();
    for seed in 0..worlds() {
        let mut random = Random::new(seed ^ 0x5ad0_0000_0000_0000);
        let settings = objects::settings(&mut random);
        let mut events = objects::world(&mut random);
        // The policies as somebody could have written them; those that nobody could are not there.
        let mut documents = Vec::new();
        for policy in cluster_of(&events).policies.values() {
            let event = match render::policy(policy, &mut random) {
                None => Event::Delete(ObjectId::Policy(policy.id().clone())),
                Some(value) => {
                    let event = Event::Upsert(object_of(&value));
                    let line = documents.len();
                    documents.push(Document { file: String::new(), line, value, role: Role::Checked });
                    event
                }
            };
            events.push(event);
        }
        let findings = lint::check(&documents).findings;
        let mut of: BTreeMap<usize, Vec<&Finding>> = BTreeMap::new();
        for finding in findings.iter().filter(|one| one.id == Id::ShadowedRule) {
            of.entry(finding.line).or_default().push(finding);
            *hints.entry(finding.hint.clone()).or_default() += 1;
        }
        if of.is_empty() {
            continue;
        }
        let cluster = cluster_of(&events);
        let policies: Vec<Arc<Policy>> = cluster.policies.values().cloned().collect();
        for (rule, by) in lint::shadowed(&policies) {
            let kind = format!("{:?} by {:?}{}", rule.policy.kind, by.policy.kind, if by.deny { " deny" } else { "" });
            *kinds.entry(kind).or_default() += 1;
        }
        let mut less = events.clone();
        for (document, findings) in &of {
            let mut policy = documents[*document].value.clone();
            follow(&mut policy, findings);
            less.push(Event::Upsert(object_of(&policy)));
        }
        let targets = Targets::of(&cluster, &settings);
        let query = targets.flow(&mut random);
        let all = Case { settings: settings.clone(), events, commit_every: None, query };
        let before = Compiled::of(&all);
        let after = Compiled::of(&Case { events: less, ..all });
        for _ in 0..FLOWS {
            let query = targets.flow(&mut random);
            let (before, after) = (before.engine.judge(&query), after.engine.judge(&query));
            let shadowed: Vec<&&Finding> = of.values().flatten().collect();
            assert_eq!(
                verdicts(&before),
                verdicts(&after),
                "seed {seed}: {query:#?}\nbefore: {before:#?}\nafter: {after:#?}\nshadowed: {shadowed:#?}"
            );
        }
    }
    println!("{kinds:#?}\n{hints:#?}");
    assert!(kinds.len() >= 6 && kinds.values().sum::<usize>() >= 100, "{kinds:#?}");
    for way in ["remove it", "write {}", "write policyTypes"] {
        let times: usize = hints.iter().filter(|(hint, _)| hint.starts_with(way)).map(|(_, times)| times).sum();
        assert!(times >= 3, "{way}: {hints:#?}");
    }
}
