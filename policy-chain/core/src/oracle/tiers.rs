//! Admin, then NetworkPolicy and cilium.io together, then Baseline (DESIGN 6.1), for one direction.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::labels::{CiliumLabels, selects};
use super::{Answer, Flow, Scene, peers, ports};
use crate::flow::{
    AppProtocol, DNS_PORT, Direction, List, ListRef, Origin, Outcome, Protocol, Proxied, Reason, RuleRef, Verdict,
};
use crate::model::cilium::{Application, CiliumAllow, CiliumDeny, CiliumPeers, CiliumRule};
use crate::model::cluster_network_policy::{Action, ClusterPeer, ClusterRule, ClusterTier};
use crate::model::network_policy::{NetworkPeer, NetworkPeers, NetworkRule};
use crate::model::{ClusterNetworkPolicy, NetworkPolicy, Policy, PolicyRef, Usable};

/// The tiers; and what passes and is to be seen goes through the proxy, which restricts nothing by that.
pub(super) fn decide(scene: &Scene<'_>, flow: &Flow<'_>) -> Answer {
    let answer = by_tiers(scene, flow);
    match looked_for(scene, flow) {
        Some(application) if answer.verdict == Verdict::Allow => {
            Answer::new(Verdict::Redirect(Proxied::seen(application, answer.reason.clone())), answer.reason)
        }
        _ => answer,
    }
}

/// What the proxy looks for in a flow that passes. Where a rule means peers by their names, "allowed flows to port 53 go through
/// the proxy for looking on", so that names are known by the pod's own questions (Cilium, "DNS based": "the DNS proxy
/// intercepts"; here without a dns rule), whether or not the rule is of a dry run. Else it is what the pod's annotation says
/// (Cilium, "L7 protocol visibility": "direction, port, L4 protocol, L7 protocol").
fn looked_for(scene: &Scene<'_>, flow: &Flow<'_>) -> Option<AppProtocol> {
    let is_dns = flow.direction == Direction::Egress
        && matches!(flow.protocol, Protocol::TCP | Protocol::UDP)
        && flow.port == DNS_PORT;
    if is_dns && names_peers(scene) {
        return Some(AppProtocol::Dns);
    }
    let asked = scene.subject.template.visible.iter().find(|visible| {
        visible.direction == flow.direction && visible.protocol == flow.protocol && visible.port == flow.port
    });
    asked.map(|visible| visible.application)
}

/// Whether a rule for what goes out of the pod means peers by their names.
fn names_peers(scene: &Scene<'_>) -> bool {
    let subject = scene.subject;
    scene.cluster.policies.values().any(|policy| match policy.as_ref() {
        Policy::Network(policy) => {
            let named = |rule: &NetworkRule| match &rule.peers {
                NetworkPeers::All => false,
                NetworkPeers::Of(peers) => {
                    peers.iter().flatten().any(|peer| matches!(peer, NetworkPeer::Names(names) if !names.is_empty()))
                }
            };
            policy.id.namespace.as_ref() == Some(&subject.key.namespace)
                && selects(&policy.pods, &subject.labels)
                && policy.egress.iter().flatten().flatten().any(named)
        }
        Policy::Cluster(policy) => {
            let named = |rule: &ClusterRule| {
                let peers = rule.matches.iter().flat_map(|matches| &matches.peers);
                peers.into_iter().any(|peer| matches!(peer, ClusterPeer::Names(names) if !names.is_empty()))
            };
            policy.subject.as_ref().is_some_and(|one| peers::is_subject(one, scene, subject))
                && policy.egress.iter().any(named)
        }
        Policy::Cilium(policy) => policy.rules.iter().filter(|rule| is_selected(rule, scene)).any(|rule| {
            let named = |peers: &CiliumPeers| matches!(peers, CiliumPeers::Names(names) if !names.is_empty());
            rule.egress.iter().flatten().any(|allow| named(&allow.peers))
                || rule.egress_deny.iter().flatten().any(|deny| named(&deny.peers))
        }),
    })
}

/// "Admin tier -> NetworkPolicy and CNP (deny > redirect > allow) -> Baseline -> default" (DESIGN 6.1).
fn by_tiers(scene: &Scene<'_>, flow: &Flow<'_>) -> Answer {
    match cluster_tier(scene, flow, ClusterTier::Admin) {
        Some((Action::Accept, rule)) => return Outcome::Allow(Reason::Rule(rule)).into(),
        Some((Action::Deny, rule)) => return Outcome::Deny(Reason::Rule(rule)).into(),
        // "Pass: skip the remaining rules of this tier."
        Some((Action::Pass, _)) | None => {}
    }
    let found = Found::by(scene, flow);
    // Cilium: a deny beats every allow, however wide or narrow either is (reference 2.6).
    if let Some(rule) = found.denied.first() {
        return Outcome::Deny(Reason::Rule(rule.clone())).into();
    }
    let without_proxy = if let Some(reason) = found.allowed.first() {
        Outcome::Allow(reason.clone())
    } else if let Some(policy) = found.isolating.first() {
        Outcome::Deny(Reason::Isolated(policy.clone()))
    } else {
        baseline(scene, flow)
    };
    // Redirect beats allow (CVE-2024-52529), and does not narrow it (DESIGN 6.6; reference 2.7).
    match found.proxied.keys().next().map(|at| Reason::Rule(at.rule.clone())) {
        None => without_proxy.into(),
        Some(first) => {
            let lists = found.proxied.into_iter().map(|(at, application)| Arc::new(List { at, application }));
            let proxied = Proxied { lists: lists.collect(), see: None, otherwise: without_proxy };
            Answer::new(Verdict::Redirect(proxied), first)
        }
    }
}

/// Reached only where no NetworkPolicy and no cilium.io rule isolates the pod and none allows the flow.
fn baseline(scene: &Scene<'_>, flow: &Flow<'_>) -> Outcome {
    match cluster_tier(scene, flow, ClusterTier::Baseline) {
        Some((Action::Accept, rule)) => Outcome::Allow(Reason::Rule(rule)),
        Some((Action::Deny, rule)) => Outcome::Deny(Reason::Rule(rule)),
        // Pass is legal in Baseline too; then as without any policy.
        Some((Action::Pass, _)) | None => Outcome::Allow(Reason::NoPolicy),
    }
}

/// What a tier of ClusterNetworkPolicies says. "Policies with lower priority values have higher precedence"; "rules are
/// evaluated in order, the first that matches decides"; of policies with one priority "implementations can apply any":
/// Deny, Pass, Accept, then the name (DESIGN 6.7).
fn cluster_tier(scene: &Scene<'_>, flow: &Flow<'_>, tier: ClusterTier) -> Option<(Action, RuleRef)> {
    let mut decisions = BTreeSet::new();
    for policy in scene.policies() {
        let Policy::Cluster(policy) = policy else { continue };
        let is_subject = policy.subject.as_ref().is_some_and(|one| peers::is_subject(one, scene, scene.subject));
        if policy.tier == tier
            && is_subject
            && let Some((action, index)) = first_match(policy, scene, flow)
        {
            decisions.insert((policy.priority, action, rule_ref(&policy.id, flow.direction, 0, false, index)));
        }
    }
    decisions.pop_first().map(|(_, action, rule)| (action, rule))
}

fn first_match(policy: &ClusterNetworkPolicy, scene: &Scene<'_>, flow: &Flow<'_>) -> Option<(Action, usize)> {
    let rules = match flow.direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    };
    rules.iter().enumerate().find_map(|(index, rule)| Some((action(rule, scene, flow)?, index)))
}

/// What the rule does to the flow, if anything. "Implementations that do not recognise a peer must fail closed": an Accept
/// that cannot be used matches nothing, a Deny or Pass denies everything.
fn action(rule: &ClusterRule, scene: &Scene<'_>, flow: &Flow<'_>) -> Option<Action> {
    match (&rule.matches, rule.action) {
        (Ok(matches), action) => {
            let holds = peers::of_cluster_network_policy(&matches.peers, scene, &flow.peer)
                && ports::hold(&matches.ports, scene, flow);
            holds.then_some(action)
        }
        (Err(_), Action::Accept) => None,
        (Err(_), Action::Deny | Action::Pass) => Some(Action::Deny),
    }
}

/// What the policies of tier Normal have about a flow.
#[derive(Debug, Default)]
struct Found {
    /// Rules of cilium.io that deny it.
    denied: BTreeSet<RuleRef>,
    /// Why it is allowed.
    allowed: BTreeSet<Reason>,
    /// Lists of cilium.io for which the proxy looks at it. They are those of the elements of `toPorts` that mean the flow's
    /// port: "rules of one port do not restrict another" (reference 2.7).
    proxied: BTreeMap<ListRef, Application>,
    /// Policies that isolate the pod in this direction.
    isolating: BTreeSet<PolicyRef>,
}

impl Found {
    fn by(scene: &Scene<'_>, flow: &Flow<'_>) -> Self {
        let mut found = Self::default();
        let mut dns = false;
        let mut tcp = false;
        for policy in scene.policies() {
            match policy {
                Policy::Cluster(_) => {}
                Policy::Network(policy) => found.add_network_policy(policy, scene, flow),
                Policy::Cilium(policy) => {
                    for rule in &policy.rules {
                        if is_selected(rule, scene) {
                            found.add_denials(rule, &policy.id, scene, flow);
                            for application in found.add_allows(rule, &policy.id, scene, flow) {
                                match application {
                                    Application::None => {}
                                    Application::Dns(_) => dns = true,
                                    Application::Http(_) | Application::ServerNames(_) => tcp = true,
                                }
                            }
                        }
                    }
                }
            }
        }
        // Cilium refuses "http + dns on one port" (reference 2.7.7); rules of several policies can still meet there. The
        // parsers cannot share a port, so these rules grant nothing.
        if dns && tcp {
            found.proxied.clear();
        }
        found
    }

    /// "The pod is isolated for a direction if a policy selects it and has the direction in its policyTypes. Then only
    /// what some rule of those policies allows is allowed. Policies do not conflict; they are additive" (Network Policies).
    fn add_network_policy(&mut self, policy: &NetworkPolicy, scene: &Scene<'_>, flow: &Flow<'_>) {
        let subject = scene.subject;
        let rules = match flow.direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        let selected =
            policy.id.namespace.as_ref() == Some(&subject.key.namespace) && selects(&policy.pods, &subject.labels);
        let (true, Some(rules)) = (selected, rules) else { return };
        self.isolating.insert(policy.id.clone());
        // A pod to itself through its Service is never denied by NetworkPolicy (DESIGN 6.11).
        if flow.origin == Origin::Hairpin {
            self.allowed.insert(Reason::Isolated(policy.id.clone()));
        }
        let allows = |rule: &Usable<NetworkRule>| {
            rule.as_ref().is_ok_and(|rule| {
                peers::of_network_policy(&rule.peers, &policy.id, scene, &flow.peer)
                    && ports::hold(&rule.ports, scene, flow)
            })
        };
        for (index, _) in rules.iter().enumerate().filter(|(_, rule)| allows(rule)) {
            self.allowed.insert(Reason::Rule(rule_ref(&policy.id, flow.direction, 0, false, index)));
        }
    }

    /// `ingressDeny`, `egressDeny`. One that cannot be used, or whose CiliumCIDRGroup cannot, denies all of its direction
    /// (DESIGN 6).
    fn add_denials(&mut self, rule: &CiliumRule, id: &PolicyRef, scene: &Scene<'_>, flow: &Flow<'_>) {
        for (index, deny) in denials(rule, flow.direction).iter().enumerate() {
            let denies = deny.as_ref().map_or(true, |deny| {
                peers::unusable_group(&deny.peers, scene).is_some()
                    || peers::of_cilium(&deny.peers, scene, &flow.peer) && ports::hold(&deny.ports, scene, flow)
            });
            if denies {
                self.denied.insert(rule_ref(id, flow.direction, rule.number, true, index));
            }
        }
    }

    /// `ingress`, `egress`, and whether the pod is under default deny: per direction, if some rule that selects it says so
    /// (reference 2.5; DESIGN 6.7: also without rules in that direction). Returns the application rules that it added.
    fn add_allows<'a>(
        &mut self,
        rule: &'a CiliumRule,
        id: &PolicyRef,
        scene: &Scene<'_>,
        flow: &Flow<'_>,
    ) -> Vec<&'a Application> {
        let (allows, default_deny): (&[Usable<CiliumAllow>], bool) = match flow.direction {
            Direction::Ingress => (&rule.ingress, rule.default_deny_ingress),
            Direction::Egress => (&rule.egress, rule.default_deny_egress),
        };
        if default_deny {
            self.isolating.insert(id.clone());
        }
        let mut applications = Vec::new();
        // An allow that cannot be used grants nothing (DESIGN 6).
        for (index, allow) in allows.iter().enumerate().filter_map(|(index, allow)| Some((index, allow.as_ref().ok()?)))
        {
            if !peers::of_cilium(&allow.peers, scene, &flow.peer) {
                continue;
            }
            let elements = (0..).zip(&allow.ports);
            for (element, port) in elements.filter(|(_, port)| ports::hold(&port.ports, scene, flow)) {
                let rule = rule_ref(id, flow.direction, rule.number, false, index);
                if port.application == Application::None {
                    self.allowed.insert(Reason::Rule(rule));
                } else if ports::carries(&port.application, flow.protocol) {
                    self.proxied.insert(ListRef { rule, element }, port.application.clone());
                    applications.push(&port.application);
                }
            }
        }
        applications
    }
}

/// The rules of cilium.io that deny the own node by name (DESIGN 6.3), each with whether its policy is a dry run.
pub(super) fn denials_of_host(scene: &Scene<'_>, flow: &Flow<'_>) -> BTreeMap<RuleRef, bool> {
    let mut denied = BTreeMap::new();
    for policy in scene.policies() {
        let Policy::Cilium(policy) = policy else { continue };
        for rule in policy.rules.iter().filter(|rule| is_selected(rule, scene)) {
            for (index, deny) in rule.ingress_deny.iter().enumerate() {
                if deny.as_ref().is_ok_and(|deny| {
                    peers::names_host(&deny.peers, &flow.peer) && ports::hold(&deny.ports, scene, flow)
                }) {
                    denied.insert(rule_ref(&policy.id, Direction::Ingress, rule.number, true, index), policy.audit);
                }
            }
        }
    }
    denied
}

pub(super) fn denials(rule: &CiliumRule, direction: Direction) -> &[Usable<CiliumDeny>] {
    match direction {
        Direction::Ingress => &rule.ingress_deny,
        Direction::Egress => &rule.egress_deny,
    }
}

/// `endpointSelector`; the namespace of a CiliumNetworkPolicy is part of it.
pub(super) fn is_selected(rule: &CiliumRule, scene: &Scene<'_>) -> bool {
    CiliumLabels::of_pod(scene.cluster, scene.subject).selected_by(&rule.subject)
}

pub(super) fn rule_ref(policy: &PolicyRef, direction: Direction, spec: u16, deny: bool, index: usize) -> RuleRef {
    let index = u16::try_from(index).unwrap_or(u16::MAX);
    RuleRef { policy: policy.clone(), direction, spec, deny, index }
}
