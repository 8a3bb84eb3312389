//! All that policies have about a flow, not only what decides: for people who ask why.

use super::labels::selects;
use super::tiers::{denials, denials_of_host, is_selected, rule_ref};
use super::{Flow, Peer, Scene, address, gate, peers, ports};
use crate::cluster::Cluster;
use crate::flow::{Direction, Origin, Query, RuleRef};
use crate::model::cilium::Application;
use crate::model::cluster_network_policy::{Action, ClusterRule, ClusterTier};
use crate::model::{CiliumPolicy, ClusterNetworkPolicy, NetworkPolicy, Policy, PolicyRef, Text, Unusable};
use crate::settings::Settings;

/// Where a rule stands. The order is that of precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Tier Admin, with this priority.
    Admin(u16),
    /// NetworkPolicy and cilium.io.
    Normal,
    /// Tier Baseline, with this priority.
    Baseline(u16),
}

/// What a rule does with the flow. The order is that of precedence within a standing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Drops it.
    Deny,
    /// Leaves it to the next tier.
    Pass,
    /// Has the proxy look at its requests.
    Proxy,
    /// Lets it pass.
    Allow,
    /// The policy isolates the pod in this direction: what no rule allows is dropped.
    Isolate,
}

impl Effect {
    /// A word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Pass => "pass",
            Self::Proxy => "proxy",
            Self::Allow => "allow",
            Self::Isolate => "isolate",
        }
    }
}

/// Something that a policy has about a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matching {
    /// Where it stands.
    pub standing: Standing,
    /// What it does.
    pub effect: Effect,
    /// The policy.
    pub policy: PolicyRef,
    /// The rule; none for [`Effect::Isolate`].
    pub rule: Option<RuleRef>,
    /// The author's name for the rule.
    pub name: Option<Text>,
    /// Why the rule, or a CiliumCIDRGroup that it uses, cannot be used, if so: then it denies everything.
    pub unusable: Option<Unusable>,
    /// Whether the policy is a dry run.
    pub dry_run: bool,
}

/// All rules that match a flow at a gate, dry runs among them, in the order of precedence: of what stands first, the first
/// decides. Nothing for a pod without gate, nor for what no policy is asked about.
#[must_use]
pub fn matching(cluster: &Cluster, settings: &Settings, query: &Query) -> Vec<Matching> {
    let Some(subject) = gate(cluster, settings, query) else { return Vec::new() };
    let scene = Scene { cluster, settings, subject, dry_runs: true };
    let address = query.peer.to_canonical();
    if query.origin != Origin::Hairpin && address::has(&subject.addresses, address) {
        return Vec::new();
    }
    let own_node = query.direction == Direction::Ingress && query.origin == Origin::OwnNode;
    let peer = if own_node {
        Peer::own_node(&scene, address)
    } else {
        Peer::of(&scene, query.direction, query.origin, address)
    };
    let Query { direction, origin, protocol, port, .. } = *query;
    let flow = Flow { direction, origin, peer, protocol, port };
    if own_node {
        // Only denies that name the host are asked about (DESIGN 6.3).
        let denials = denials_of_host(&scene, &flow).into_iter();
        return denials
            .map(|(rule, dry_run)| normal(Effect::Deny, &rule.policy.clone(), Some(rule), None, dry_run))
            .collect();
    }
    let mut found = Vec::new();
    for policy in scene.policies() {
        match policy {
            Policy::Cluster(policy) => of_cluster(policy, &scene, &flow, &mut found),
            Policy::Network(policy) => of_network(policy, &scene, &flow, &mut found),
            Policy::Cilium(policy) => of_cilium(policy, &scene, &flow, &mut found),
        }
    }
    // The rules of one ClusterNetworkPolicy go by their order; a policy whose first match is stronger goes first.
    let first = |one: &Matching| {
        let of = found.iter().filter(|other| other.policy == one.policy && other.standing == one.standing);
        of.min_by_key(|other| other.rule.as_ref().map(|rule| rule.index)).map_or(one.effect, |first| first.effect)
    };
    let key = |one: &Matching| match one.standing {
        Standing::Normal => (one.standing, one.effect, one.policy.clone(), one.rule.clone()),
        Standing::Admin(_) | Standing::Baseline(_) => (one.standing, first(one), one.policy.clone(), one.rule.clone()),
    };
    let mut keyed: Vec<_> = found.iter().map(|one| (key(one), one.clone())).collect();
    keyed.sort_by(|(a, _), (b, _)| a.cmp(b));
    keyed.into_iter().map(|(_, one)| one).collect()
}

fn of_cluster(policy: &ClusterNetworkPolicy, scene: &Scene<'_>, flow: &Flow<'_>, found: &mut Vec<Matching>) {
    if !policy.subject.as_ref().is_some_and(|one| peers::is_subject(one, scene, scene.subject)) {
        return;
    }
    let standing = match policy.tier {
        ClusterTier::Admin => Standing::Admin(policy.priority),
        ClusterTier::Baseline => Standing::Baseline(policy.priority),
    };
    let rules: &[ClusterRule] = match flow.direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    };
    for (index, rule) in rules.iter().enumerate() {
        let (effect, unusable) = match (&rule.matches, rule.action) {
            (Ok(matches), action) => {
                if !peers::of_cluster_network_policy(&matches.peers, scene, &flow.peer)
                    || !ports::hold(&matches.ports, scene, flow)
                {
                    continue;
                }
                let effect = match action {
                    Action::Accept => Effect::Allow,
                    Action::Deny => Effect::Deny,
                    Action::Pass => Effect::Pass,
                };
                (effect, None)
            }
            (Err(_), Action::Accept) => continue,
            (Err(unusable), Action::Deny | Action::Pass) => (Effect::Deny, Some(unusable.clone())),
        };
        found.push(Matching {
            standing,
            effect,
            policy: policy.id.clone(),
            rule: Some(rule_ref(&policy.id, flow.direction, 0, false, index)),
            name: rule.name.clone(),
            unusable,
            dry_run: policy.audit,
        });
    }
}

fn of_network(policy: &NetworkPolicy, scene: &Scene<'_>, flow: &Flow<'_>, found: &mut Vec<Matching>) {
    let rules = match flow.direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    };
    let subject = scene.subject;
    let Some(rules) = rules else { return };
    if policy.id.namespace.as_ref() != Some(&subject.key.namespace) || !selects(&policy.pods, &subject.labels) {
        return;
    }
    let mut put = |effect, rule| found.push(normal(effect, &policy.id, rule, None, policy.audit));
    for (index, rule) in rules.iter().enumerate() {
        let holds = rule.as_ref().is_ok_and(|rule| {
            peers::of_network_policy(&rule.peers, &policy.id, scene, &flow.peer)
                && ports::hold(&rule.ports, scene, flow)
        });
        if holds {
            put(Effect::Allow, Some(rule_ref(&policy.id, flow.direction, 0, false, index)));
        }
    }
    put(Effect::Isolate, None);
}

fn of_cilium(policy: &CiliumPolicy, scene: &Scene<'_>, flow: &Flow<'_>, found: &mut Vec<Matching>) {
    let (id, direction) = (&policy.id, flow.direction);
    let mut isolates = false;
    for rule in policy.rules.iter().filter(|rule| is_selected(rule, scene)) {
        let (allows, default_deny) = match direction {
            Direction::Ingress => (&rule.ingress, rule.default_deny_ingress),
            Direction::Egress => (&rule.egress, rule.default_deny_egress),
        };
        isolates |= default_deny;
        for (index, deny) in denials(rule, direction).iter().enumerate() {
            let unusable = match deny {
                Ok(deny) => match peers::unusable_group(&deny.peers, scene) {
                    Some(unusable) => Some(unusable.clone()),
                    None if !peers::of_cilium(&deny.peers, scene, &flow.peer)
                        || !ports::hold(&deny.ports, scene, flow) =>
                    {
                        continue;
                    }
                    None => None,
                },
                Err(unusable) => Some(unusable.clone()),
            };
            let rule = rule_ref(id, direction, rule.number, true, index);
            found.push(normal(Effect::Deny, id, Some(rule), unusable, policy.audit));
        }
        for (index, allow) in allows.iter().enumerate() {
            let Ok(allow) = allow else { continue };
            if !peers::of_cilium(&allow.peers, scene, &flow.peer) {
                continue;
            }
            let mut effects = [false; 2];
            for port in allow.ports.iter().filter(|port| ports::hold(&port.ports, scene, flow)) {
                if port.application == Application::None {
                    effects[1] = true;
                } else if ports::carries(&port.application, flow.protocol) {
                    effects[0] = true;
                }
            }
            let rule = rule_ref(id, direction, rule.number, false, index);
            for (effect, _) in [Effect::Proxy, Effect::Allow].into_iter().zip(effects).filter(|(_, there)| *there) {
                found.push(normal(effect, id, Some(rule.clone()), None, policy.audit));
            }
        }
    }
    if isolates {
        found.push(normal(Effect::Isolate, id, None, None, policy.audit));
    }
}

fn normal(
    effect: Effect,
    policy: &PolicyRef,
    rule: Option<RuleRef>,
    unusable: Option<Unusable>,
    dry_run: bool,
) -> Matching {
    Matching { standing: Standing::Normal, effect, policy: policy.clone(), rule, name: None, unusable, dry_run }
}
