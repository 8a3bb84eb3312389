//! Rules that the lint calls shadowed can be left out: no verdict changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_policy_core::cluster::{Event, Object, ObjectId};
use sluice_policy_core::flow::{Direction, Judgement, Outcome, Reason, RuleRef, Verdict};
use sluice_policy_core::lint;
use sluice_policy_core::model::{Policy, PolicyRef};

use super::shrink::Case;
use super::{Compiled, cluster_of};
use crate::random::flows::Targets;
use crate::random::{Random, objects};

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

/// The policy without these rules. What its lists say by being there, default deny, stays.
fn without(policy: &Policy, rules: &[&RuleRef]) -> Policy {
    let mut policy = policy.clone();
    let listed = |direction, spec, deny, index: usize| {
        let wanted = |rule: &&&RuleRef| (rule.direction, rule.spec, rule.deny) == (direction, spec, deny);
        rules.iter().filter(wanted).any(|rule| usize::from(rule.index) == index)
    };
    fn keep<T>(list: &mut Vec<T>, listed: impl Fn(usize) -> bool) {
        let mut index = 0;
        list.retain(|_| {
            index += 1;
            !listed(index - 1)
        });
    }
    match &mut policy {
        Policy::Network(policy) => {
            for (direction, list) in
                [(Direction::Ingress, &mut policy.ingress), (Direction::Egress, &mut policy.egress)]
            {
                if let Some(list) = list {
                    keep(list, |index| listed(direction, 0, false, index));
                }
            }
        }
        Policy::Cluster(policy) => {
            keep(&mut policy.ingress, |index| listed(Direction::Ingress, 0, false, index));
            keep(&mut policy.egress, |index| listed(Direction::Egress, 0, false, index));
        }
        Policy::Cilium(policy) => {
            for rule in &mut policy.rules {
                let spec = rule.number;
                keep(&mut rule.ingress, |index| listed(Direction::Ingress, spec, false, index));
                keep(&mut rule.egress, |index| listed(Direction::Egress, spec, false, index));
            }
        }
    }
    policy
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
    for seed in 0..worlds() {
        let mut random = Random::new(seed ^ 0x5ad0_0000_0000_0000);
        let settings = objects::settings(&mut random);
        let events = objects::world(&mut random);
        let cluster = cluster_of(&events);
        let policies: Vec<Arc<Policy>> = cluster.policies.values().cloned().collect();
        let shadowed = lint::shadowed(&policies);
        if shadowed.is_empty() {
            continue;
        }
        let mut of: BTreeMap<PolicyRef, Vec<&RuleRef>> = BTreeMap::new();
        for (rule, by) in &shadowed {
            of.entry(rule.policy.clone()).or_default().push(rule);
            let kind = format!("{:?} by {:?}{}", rule.policy.kind, by.policy.kind, if by.deny { " deny" } else { "" });
            *kinds.entry(kind).or_default() += 1;
        }
        let mut less = events.clone();
        for (policy, rules) in &of {
            less.push(Event::Delete(ObjectId::Policy(policy.clone())));
            less.push(Event::Upsert(Object::Policy(without(&cluster.policies[policy], rules))));
        }
        let targets = Targets::of(&cluster, &settings);
        let query = targets.flow(&mut random);
        let all = Case { settings: settings.clone(), events, commit_every: None, query };
        let before = Compiled::of(&all);
        let after = Compiled::of(&Case { events: less, ..all });
        for _ in 0..FLOWS {
            let query = targets.flow(&mut random);
            let (before, after) = (before.engine.judge(&query), after.engine.judge(&query));
            assert_eq!(
                verdicts(&before),
                verdicts(&after),
                "seed {seed}: {query:#?}\nbefore: {before:#?}\nafter: {after:#?}\nshadowed: {shadowed:#?}"
            );
        }
    }
    println!("{kinds:#?}");
    assert!(kinds.len() >= 6 && kinds.values().sum::<usize>() >= 100, "{kinds:#?}");
}
