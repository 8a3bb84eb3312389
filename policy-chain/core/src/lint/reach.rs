//! What all policies together leave their subjects: a way to DNS, names that are learned, anything at all.

use std::collections::{BTreeMap, BTreeSet};

use super::cover::is_every;
use super::peers::Part;
use super::ports::PortSet;
use super::rules::{Effect, Isolation, Rule};
use super::values::Labelled;
use super::{Id, Item, Set, place};
use crate::flow::{Direction, Protocol};
use crate::l7::dns::NamePattern;
use crate::model::Policy;
use crate::model::cilium::{Application, CiliumRule};
use crate::model::cluster_network_policy::Action;

/// Pairs of policies and rules that are looked at.
const MAX_PAIRS: usize = 10_000_000;

/// The port of DNS.
const DNS_PORT: u16 = 53;

/// Looks at all policies. False: there were too many to look at all.
pub(super) fn check(set: &mut Set<'_, '_>) -> bool {
    let mut pairs = super::Budget(MAX_PAIRS);
    let mut isolations: BTreeMap<(usize, u16, Direction), &Isolation> = BTreeMap::new();
    for one in &set.rules.isolations {
        isolations.insert((one.policy, one.spec, one.direction), one);
    }
    let mut by_name = BTreeSet::new();
    for rule in set.rules.all.iter().filter(|rule| asks_by_name(rule)) {
        by_name.insert((rule.policy, rule.rule.spec));
    }
    for isolation in isolations.values() {
        let Some(item) = set.items.get(isolation.policy).filter(|item| item.is_checked()) else { continue };
        deny_only(set, item, isolation, &mut pairs);
        if isolation.direction == Direction::Egress && by_name.contains(&(isolation.policy, isolation.spec)) {
            no_dns(set, item, isolation, &mut pairs);
        }
    }
    for rule in set.rules.all.iter().filter(|rule| rule.rule.direction == Direction::Egress) {
        if let Some(item) = set.items.get(rule.policy).filter(|item| item.is_checked()) {
            never_learned(set, item, rule, &mut pairs);
        }
    }
    pairs.is_left()
}

/// The rules of a direction that may be for the same pods.
fn rules_for<'a>(
    rules: &'a [Rule],
    direction: Direction,
    subject: &'a Labelled,
    pairs: &mut super::Budget,
) -> Option<Vec<&'a Rule>> {
    let mut found = Vec::new();
    for rule in rules.iter().filter(|rule| rule.rule.direction == direction) {
        if !pairs.take() {
            return None;
        }
        if !rule.subject.apart(subject) {
            found.push(rule);
        }
    }
    Some(found)
}

/// A part of a Cilium policy that has deny rules only: what is not denied is not allowed either.
fn deny_only(set: &mut Set<'_, '_>, item: &Item<'_>, isolation: &Isolation, pairs: &mut super::Budget) {
    let Policy::Cilium(policy) = item.policy.as_ref() else { return };
    let Some(CiliumRule { ingress, ingress_deny, egress, egress_deny, .. }) = policy.rule(isolation.spec) else {
        return;
    };
    let direction = isolation.direction;
    let (allows, denies) = match direction {
        Direction::Ingress => (ingress, ingress_deny),
        Direction::Egress => (egress, egress_deny),
    };
    if !allows.is_empty() || denies.is_empty() || isolation.subject.is_empty() {
        return;
    }
    let spec = place::spec(isolation.spec);
    let said = place::value_at(&item.document.value, &format!("{spec}.enableDefaultDeny.{direction}"));
    // An author who says so means it.
    if said.is_some_and(|said| !said.is_null()) {
        return;
    }
    let Some(rules) = rules_for(&set.rules.all, direction, &isolation.subject, pairs) else { return };
    let allowed = rules.iter().any(|rule| {
        let allows = match &rule.effect {
            Effect::Allow(_) => true,
            Effect::Ordered { action, .. } => *action == Action::Accept,
            Effect::Deny => false,
        };
        allows && !rule.is_empty()
    });
    if allowed {
        return;
    }
    let path = format!("{spec}.{direction}Deny");
    let message = format!(
        "the policy only denies, and no other policy here allows its endpoints any {direction}: deny rules put them under \
         default deny, so that nothing passes at all"
    );
    let hint =
        format!("add enableDefaultDeny: {{{direction}: false}} to deny this and nothing else, or rules that allow");
    set.findings.of(item, Id::DenyOnly, &path, message, hint);
}

/// Whether a rule lets pods reach what they find by name: pods, Services and names. Addresses need no name server.
fn asks_by_name(rule: &Rule) -> bool {
    let by_name = |part: &Part| matches!(part, Part::Pods(_) | Part::Services(_) | Part::Name(_));
    rule.rule.direction == Direction::Egress
        && matches!(rule.effect, Effect::Allow(_))
        && rule.usable
        && !rule.is_empty()
        && rule.peers.parts.iter().any(by_name)
}

/// A policy that lets pods out, to peers that are found by name, and nowhere to a name server.
fn no_dns(set: &mut Set<'_, '_>, item: &Item<'_>, isolation: &Isolation, pairs: &mut super::Budget) {
    if isolation.subject.is_empty() {
        return;
    }
    let Some(rules) = rules_for(&set.rules.all, Direction::Egress, &isolation.subject, pairs) else { return };
    let to_dns = |rule: &&Rule| {
        let lets = match &rule.effect {
            Effect::Allow(_) => true,
            Effect::Ordered { action, .. } => *action == Action::Accept,
            Effect::Deny => false,
        };
        lets && may_hold_dns(rule)
    };
    if rules.iter().any(to_dns) {
        return;
    }
    let path = format!("{}.egress", place::spec(isolation.spec));
    let message = "the pods may reach peers that are found by name, and no policy here lets them ask a name server \
                   (port 53 of UDP and TCP)";
    let hint = "allow egress to port 53, UDP and TCP, of k8s-app=kube-dns in namespace kube-system";
    set.findings.of(item, Id::NoDns, &path, message, hint);
}

/// Whether a rule may allow DNS, as far as can be told.
fn may_hold_dns(rule: &Rule) -> bool {
    let mut proxied = match &rule.effect {
        Effect::Allow(proxied) => proxied.as_slice(),
        Effect::Ordered { .. } | Effect::Deny => &[],
    }
    .iter();
    let on_port =
        is_dns(&rule.ports) || proxied.any(|one| is_dns(&one.ports) || matches!(one.application, Application::Dns(_)));
    on_port && rule.peers.parts.iter().any(may_be_server)
}

/// Whether peers may be name servers: not where they are pods of namespaces that are named, and nothing about them says so.
fn may_be_server(part: &Part) -> bool {
    match part {
        Part::Pods(pods) => {
            let system = |name: &str| name == "kube-system" || name.contains("dns");
            !pods.is_empty()
                && (pods.namespaces().is_none_or(|names| names.iter().any(|name| system(name)))
                    || pods.is_named(|value| value.contains("dns")))
        }
        Part::Name(_) => false,
        Part::Kinds(_) | Part::Block { .. } | Part::Nodes(_) | Part::Services(_) | Part::Group(..) => true,
    }
}

/// Names that pods cannot ask for: all their DNS has rules, and no rule has the name. Where DNS passes without rules it is
/// looked at too, because a rule names peers, and every name is learned.
fn never_learned(set: &mut Set<'_, '_>, item: &Item<'_>, rule: &Rule, pairs: &mut super::Budget) {
    if !matches!(item.policy.as_ref(), Policy::Cilium(_)) || !rule.usable || rule.is_empty() {
        return;
    }
    let names = rule.peers.parts.iter().filter_map(|part| if let Part::Name(name) = part { Some(name) } else { None });
    let names: Vec<&NamePattern> = names.collect();
    if names.is_empty() || !is_isolated(set, rule, pairs) {
        return;
    }
    let Some(rules) = rules_for(&set.rules.all, Direction::Egress, &rule.subject, pairs) else { return };
    if rules.iter().any(|rule| may_pass_dns(rule)) {
        return;
    }
    let proxied =
        rules.iter().filter_map(|rule| if let Effect::Allow(proxied) = &rule.effect { Some(proxied) } else { None });
    let lists = proxied
        .flatten()
        .filter_map(|one| if let Application::Dns(names) = &one.application { Some(names) } else { None });
    let asked: Vec<&NamePattern> = lists.flat_map(|names| names.iter()).collect();
    // No way to DNS at all is another finding.
    if asked.is_empty() || asked.iter().any(|asked| is_every(asked)) {
        return;
    }
    let path = format!("{}.toFQDNs", place::rule(&rule.rule));
    for (index, name) in names.iter().enumerate() {
        // Whether two patterns have a name in common is not told.
        let Some(exact) = name.exact() else { continue };
        if !asked.iter().any(|asked| asked.matches(&exact)) {
            let message = format!(
                "no DNS rule for these pods lets them ask for {name}: its addresses are known only if another pod of the node asks"
            );
            set.findings.of(
                item,
                Id::NamesNeverLearned,
                &format!("{path}[{index}]"),
                message,
                "add the name to the DNS rules, or a pattern that has it",
            );
        }
    }
}

/// Whether all pods of a rule are surely under default deny for what they send.
fn is_isolated(set: &Set<'_, '_>, rule: &Rule, pairs: &mut super::Budget) -> bool {
    set.rules.isolations.iter().filter(|one| one.direction == Direction::Egress).any(|one| {
        let in_force = set.items.get(one.policy).is_some_and(|item| !item.policy.audit());
        pairs.take() && in_force && rule.subject.within(&one.subject)
    })
}

/// Whether a rule may let DNS pass that no DNS rule is for.
fn may_pass_dns(rule: &Rule) -> bool {
    let lets = match &rule.effect {
        Effect::Allow(_) => true,
        Effect::Ordered { action, .. } => *action == Action::Accept,
        Effect::Deny => false,
    };
    // Whom a name resolves to is known only after it was asked for.
    lets && is_dns(&rule.ports)
        && rule.peers.parts.iter().any(|part| !matches!(part, Part::Name(_)) && !part.is_empty())
}

fn is_dns(ports: &PortSet) -> bool {
    ports.has_names() || ports.has_port(Protocol::UDP, DNS_PORT) || ports.has_port(Protocol::TCP, DNS_PORT)
}
