//! Rules that other rules leave nothing to do.

use std::collections::BTreeMap;

use super::Budget;
use super::rules::{Effect, Proxied, Rule, Rules};
use crate::flow::Direction;
use crate::l7::dns::NamePattern;
use crate::l7::http::{HttpRule, HttpRuleSpec};
use crate::model::PolicyRef;
use crate::model::cilium::Application;
use crate::model::cluster_network_policy::{Action, ClusterTier};

/// A rule, and the one that leaves it nothing to do: by index in [`Rules::all`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Covered {
    pub(super) rule: usize,
    pub(super) by: usize,
}

/// Rules by what they may cover.
struct Sorted<'a> {
    rules: &'a [Rule],
    /// By tier and direction, in the order in which they are asked.
    ordered: BTreeMap<(ClusterTier, Direction), Vec<(u16, usize)>>,
    denies: BTreeMap<Direction, Vec<usize>>,
    allows: BTreeMap<(usize, Direction), Vec<usize>>,
}

impl<'a> Sorted<'a> {
    fn of(rules: &'a Rules) -> Self {
        let mut sorted =
            Self { rules: &rules.all, ordered: BTreeMap::new(), denies: BTreeMap::new(), allows: BTreeMap::new() };
        for (index, rule) in rules.all.iter().enumerate() {
            let direction = rule.rule.direction;
            match &rule.effect {
                Effect::Ordered { tier, priority, .. } => {
                    sorted.ordered.entry((*tier, direction)).or_default().push((*priority, index));
                }
                Effect::Deny => sorted.denies.entry(direction).or_default().push(index),
                Effect::Allow(_) => sorted.allows.entry((rule.policy, direction)).or_default().push(index),
            }
        }
        sorted.ordered.values_mut().for_each(|rules| rules.sort_unstable());
        sorted
    }

    fn get(&self, index: usize) -> Option<&'a Rule> {
        self.rules.get(index)
    }
}

/// Whether the subjects, peers and ports of `rule` are all governed by `by`, and `by` is in force wherever `rule` is.
fn has_all_of(by: &Rule, rule: &Rule) -> bool {
    in_force_with(by, rule)
        && rule.ports.within(&by.ports)
        && proxied(rule).iter().all(|one| one.ports.within(&by.ports))
        && rule.subject.within(&by.subject)
        && rule.peers.within(&by.peers)
}

/// What is a dry run changes nothing for what is not.
const fn in_force_with(by: &Rule, rule: &Rule) -> bool {
    !by.audit || rule.audit
}

fn proxied(rule: &Rule) -> &[Proxied] {
    match &rule.effect {
        Effect::Allow(proxied) => proxied,
        Effect::Ordered { .. } | Effect::Deny => &[],
    }
}

/// The rules that can be left out without a change of any verdict. No two of them need each other's cover.
pub(super) fn covered(rules: &Rules, budget: &mut Budget) -> Vec<Covered> {
    let sorted = Sorted::of(rules);
    let mut found = Vec::new();
    for list in sorted.ordered.values() {
        for (at, &(priority, index)) in list.iter().enumerate() {
            let Some(rule) = sorted.get(index).filter(|rule| rule.usable && !rule.is_empty()) else { continue };
            let before = list.iter().take(at).filter_map(|&(theirs, other)| Some((theirs, other, sorted.get(other)?)));
            let by = before
                .filter(|(theirs, _, other)| *theirs < priority || other.policy == rule.policy)
                .find(|(_, _, other)| budget.take() && !other.is_empty() && has_all_of(other, rule));
            if let Some((_, by, _)) = by {
                found.push(Covered { rule: index, by });
            }
        }
    }
    for (&(_, direction), list) in &sorted.allows {
        for (at, &index) in list.iter().enumerate() {
            let Some(rule) = sorted.get(index).filter(|rule| rule.usable && !rule.is_empty()) else { continue };
            let denies = sorted.denies.get(&direction).into_iter().flatten();
            let denied = denies.copied().find(|&deny| {
                budget.take() && sorted.get(deny).is_some_and(|deny| !deny.is_empty() && has_all_of(deny, rule))
            });
            if let Some(by) = denied {
                found.push(Covered { rule: index, by });
                continue;
            }
            // An allow with application rules has its traffic seen, whoever else allows it.
            if !proxied(rule).is_empty() {
                continue;
            }
            let by = list.iter().enumerate().find(|&(other_at, &other)| {
                let Some(other) = sorted.get(other).filter(|_| other_at != at && budget.take()) else { return false };
                // Of two that say the same, the later one is told.
                !other.is_empty() && has_all_of(other, rule) && (other_at < at || !has_all_of(rule, other))
            });
            if let Some((_, &by)) = by {
                found.push(Covered { rule: index, by });
            }
        }
    }
    found.sort_unstable_by_key(|one| one.rule);
    found
}

/// Application rules (by index of their rule, and in `toPorts`) and the plain allow that makes every request pass.
pub(super) fn toothless(rules: &Rules, budget: &mut Budget) -> Vec<(Covered, usize)> {
    let mut found = Vec::new();
    let plain: Vec<usize> = rules
        .all
        .iter()
        .enumerate()
        .filter(|(_, rule)| matches!(rule.effect, Effect::Allow(_)) && !rule.ports.is_empty() && !rule.is_empty())
        .map(|(index, _)| index)
        .collect();
    for (index, rule) in rules.all.iter().enumerate().filter(|(_, rule)| rule.usable && !rule.is_empty()) {
        for one in proxied(rule).iter().filter(|one| !passes_all(&one.application) && !one.ports.is_empty()) {
            let by = plain.iter().copied().find(|&other| {
                budget.take()
                    && rules.all.get(other).is_some_and(|other| {
                        other.rule.direction == rule.rule.direction
                            && in_force_with(other, rule)
                            && one.ports.within(&other.ports)
                            && rule.subject.within(&other.subject)
                            && rule.peers.within(&other.peers)
                    })
            });
            if let Some(by) = by {
                found.push((Covered { rule: index, by }, one.index));
            }
        }
    }
    found
}

/// Whether application rules let every request pass: they are there so that the traffic is seen.
fn passes_all(application: &Application) -> bool {
    match application {
        Application::None => true,
        Application::Http(rules) => {
            let every = HttpRule::new(HttpRuleSpec::default()).ok();
            rules.iter().any(|rule| every.as_ref() == Some(&**rule))
        }
        Application::Dns(names) => names.iter().any(is_every),
        Application::ServerNames(names) => names.iter().any(|name| matches!(name.to_string().as_str(), "*" | "**")),
    }
}

/// Whether a pattern means every name.
pub(super) fn is_every(name: &NamePattern) -> bool {
    NamePattern::cilium("*").is_ok_and(|every| *name == every)
}

/// Application rules for DNS, and others that share a port with them: then all of them grant nothing.
pub(super) fn mixed(rules: &Rules, budget: &mut Budget) -> Vec<(Covered, usize)> {
    let is_dns = |one: &Proxied| matches!(one.application, Application::Dns(_));
    let of_kind = |dns: bool| {
        let rules = rules.all.iter().enumerate().filter(|(_, rule)| rule.usable && !rule.is_empty());
        let all = rules.flat_map(|(index, rule)| proxied(rule).iter().map(move |one| (index, rule, one)));
        all.filter(move |(_, _, one)| is_dns(one) == dns).collect::<Vec<_>>()
    };
    let (dns, streams) = (of_kind(true), of_kind(false));
    let mut found = Vec::new();
    for &(index, rule, one) in &streams {
        let by = dns.iter().find(|(_, other, theirs)| {
            budget.take()
                && other.rule.direction == rule.rule.direction
                && one.ports.meets(&theirs.ports)
                && meet(rule, other)
        });
        if let Some(&(by, ..)) = by {
            found.push((Covered { rule: index, by }, one.index));
        }
    }
    found
}

/// Whether there is a subject and a peer that both rules surely mean, if there is any.
fn meet(one: &Rule, other: &Rule) -> bool {
    (one.subject.within(&other.subject) || other.subject.within(&one.subject))
        && (one.peers.within(&other.peers) || other.peers.within(&one.peers))
}

/// Pairs of rules of ClusterNetworkPolicies of one tier and priority that may meet and do different things; one a pair of
/// policies.
pub(super) fn ties(rules: &Rules, budget: &mut Budget) -> Vec<Covered> {
    let mut groups: BTreeMap<(ClusterTier, u16, Direction), Vec<(usize, Action)>> = BTreeMap::new();
    for (index, rule) in rules.all.iter().enumerate() {
        if let Effect::Ordered { tier, priority, action } = rule.effect {
            groups.entry((tier, priority, rule.rule.direction)).or_default().push((index, action));
        }
    }
    let mut found: BTreeMap<(&PolicyRef, &PolicyRef), Covered> = BTreeMap::new();
    for group in groups.values() {
        for (at, &(index, action)) in group.iter().enumerate() {
            for &(other_index, other_action) in group.iter().take(at) {
                let (Some(rule), Some(other)) = (rules.all.get(index), rules.all.get(other_index)) else { continue };
                let pair = (&rule.rule.policy, &other.rule.policy);
                if rule.policy == other.policy || action == other_action || found.contains_key(&pair) || !budget.take()
                {
                    continue;
                }
                let apart = rule.is_empty()
                    || other.is_empty()
                    || rule.subject.apart(&other.subject)
                    || rule.peers.apart(&other.peers)
                    || rule.ports.apart(&other.ports);
                if !apart {
                    found.insert(pair, Covered { rule: index, by: other_index });
                }
            }
        }
    }
    found.into_values().collect()
}
