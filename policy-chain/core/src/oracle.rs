//! What a policy set says about a flow, word by word as the specifications have it: slow, plain, and the measure for
//! [`crate::compile`], with which it shares nothing but the parsed model.
//!
//! Each function is a sentence of a specification, and names it: NetworkPolicy v1 (`networking.k8s.io/v1` type comments
//! and the page "Network Policies"), ClusterNetworkPolicy (`policy.networking.k8s.io/v1alpha2` type comments), Cilium
//! (`pkg/policy/api`, documentation "Layer 3/4/7 Policy"), and DESIGN 6 and 7 where those leave room.
//!
//! - [`judge`]: whose gate, own address, Services, own node, dry runs. [`judge_request`]: requests of a proxied flow.
//! - `tiers`: Admin, then NetworkPolicy with cilium.io, then Baseline.
//! - `peers`, `ports`: does a rule mean this peer, this port.
//! - `address`, `labels`: who has an address, and what is known of it.
//! - `services`: what the service proxy translates, and to what.

mod address;
pub mod explain;
mod labels;
mod peers;
mod ports;
mod services;
mod tiers;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use address::Peer;

use crate::cluster::{Cluster, Pod};
use crate::flow::{Direction, Judgement, Origin, Outcome, Protocol, Proxied, Query, Reason, Verdict};
use crate::l7::Message;
use crate::model::Policy;
use crate::settings::Settings;

/// May the first packet of this flow pass the gate?
#[must_use]
pub fn judge(cluster: &Cluster, settings: &Settings, query: &Query) -> Judgement {
    let Some(subject) = gate(cluster, settings, query) else {
        return Answer::new(Verdict::Allow, Reason::Unknown).into();
    };
    let ask = |dry_runs| Scene { cluster, settings, subject, dry_runs }.answer(query);
    if subject.audit { audited(ask(true)) } else { compared(ask(false), ask(true)) }
}

/// May one request of this flow pass, once the flow itself is through the gate?
///
/// A request passes if one of the rules that the proxy has for the flow lets it; else what becomes of it is what would
/// become of the flow without those rules (DESIGN 6.6; Cilium: "rules of one list are ORed"). A flow that is not proxied is
/// not looked into: its verdict is that of all its requests. None: the address is a Service's, and the backend that it is
/// sent to has to be asked about (DESIGN 8).
#[must_use]
pub fn judge_request(cluster: &Cluster, settings: &Settings, query: &Query, message: &Message<'_>) -> Option<Outcome> {
    let judgement = judge(cluster, settings, query);
    let proxied = match judgement.verdict {
        Verdict::Allow => return Some(Outcome::Allow(judgement.reason)),
        Verdict::Deny => return Some(Outcome::Deny(judgement.reason)),
        Verdict::Defer => return None,
        Verdict::Redirect(proxied) => proxied,
    };
    let subject = gate(cluster, settings, query)?;
    let scene = Scene { cluster, settings, subject, dry_runs: true };
    let peer = query.peer.to_canonical();
    let Query { direction, protocol, port, origin, .. } = *query;
    if direction == Direction::Egress
        && origin != Origin::Hairpin
        && services::frontend(&scene, peer, protocol, port).is_some()
    {
        return None;
    }
    // The verdict has named the lists; of dry runs it has none, unless the pod is one.
    let having = proxied.lists.iter().find(|list| list.application.permits(message).passes());
    Some(match having {
        Some(list) => Outcome::Allow(Reason::Rule(list.at.rule.clone())),
        None => proxied.otherwise,
    })
}

/// The pod whose gate is asked about. Only pods of this node have a gate here; a pod with `hostNetwork` is its node
/// (DESIGN 6.9; `ClusterNetworkPolicySpec.subject`: "does not select hostNetwork pods"), and one that is finished has no
/// network any more (Kubernetes, "Pod lifecycle").
fn gate<'a>(cluster: &'a Cluster, settings: &Settings, query: &Query) -> Option<&'a Pod> {
    let pod: &Pod = cluster.pods.get(&query.subject)?;
    (address::is_managed(pod) && pod.node == settings.node).then_some(pod)
}

/// Dry runs of policies (DESIGN 6.12): traffic goes as if they were not there; what they would have said is told if it
/// differs.
fn compared(enforced: Answer, full: Answer) -> Judgement {
    let differs = enforced != full;
    Judgement { audit: differs.then(|| Box::new(full.into())), ..enforced.into() }
}

/// A pod that is a dry run (DESIGN 6.12, "L7 included"): everything passes; what is proxied is proxied still, so that it
/// is seen; what would have happened is told, unless it is the same.
fn audited(full: Answer) -> Judgement {
    let enforced = match &full.verdict {
        // What is left to the backends is judged, and told, once more there.
        Verdict::Allow | Verdict::Defer => return full.into(),
        Verdict::Deny => Answer::new(Verdict::Allow, Reason::NoPolicy),
        Verdict::Redirect(proxied) => {
            let otherwise = Outcome::Allow(Reason::NoPolicy);
            let passes = Proxied { lists: proxied.lists.clone(), see: proxied.see, otherwise };
            Answer::new(Verdict::Redirect(passes), full.reason.clone())
        }
    };
    Judgement { audit: Some(Box::new(full.into())), ..enforced.into() }
}

/// A verdict and why, before it is compared with its dry run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    verdict: Verdict,
    reason: Reason,
}

impl Answer {
    const fn new(verdict: Verdict, reason: Reason) -> Self {
        Self { verdict, reason }
    }
}

impl From<Answer> for Judgement {
    fn from(Answer { verdict, reason }: Answer) -> Self {
        Self { verdict, reason, audit: None }
    }
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Allow(reason) => Self::new(Verdict::Allow, reason),
            Outcome::Deny(reason) => Self::new(Verdict::Deny, reason),
        }
    }
}

/// What is known when a flow is judged.
#[derive(Debug, Clone, Copy)]
struct Scene<'a> {
    cluster: &'a Cluster,
    settings: &'a Settings,
    subject: &'a Pod,
    /// Whether policies that are dry runs count.
    dry_runs: bool,
}

/// One direction of a flow at one gate, with its peer looked up.
#[derive(Debug)]
struct Flow<'a> {
    direction: Direction,
    origin: Origin,
    peer: Peer<'a>,
    protocol: Protocol,
    port: u16,
}

impl<'a> Scene<'a> {
    /// The policies that count, by kind, namespace and name.
    fn policies(&self) -> impl Iterator<Item = &'a Policy> {
        let dry_runs = self.dry_runs;
        self.cluster.policies.values().map(AsRef::as_ref).filter(move |policy| dry_runs || !policy.audit())
    }

    fn answer(&self, query: &Query) -> Answer {
        let peer = query.peer.to_canonical();
        let Query { direction, protocol, port, .. } = *query;
        // Only ingress comes from the own node; a pod sends from nowhere but itself.
        let origin = match (direction, query.origin) {
            (Direction::Egress, Origin::OwnNode) => Origin::Forwarded,
            (_, origin) => origin,
        };
        // "Pods cannot block access to themselves" (Network Policies); a pod to its own address is not subject to
        // ClusterNetworkPolicy either (its type comment on hairpin traffic); DESIGN 6.11.
        if origin != Origin::Hairpin && address::has(&self.subject.addresses, peer) {
            return Answer::new(Verdict::Allow, Reason::OwnAddress);
        }
        match (direction, origin) {
            (Direction::Ingress, Origin::OwnNode) => self.own_node_to_pod(peer, protocol, port),
            (Direction::Egress, Origin::Forwarded) => self
                .service(peer, protocol, port)
                .unwrap_or_else(|| self.plain(direction, origin, peer, protocol, port)),
            _ => self.plain(direction, origin, peer, protocol, port),
        }
    }

    /// "Traffic to and from the node where a Pod is running is always allowed" (Network Policies), read as DESIGN 6.3 does:
    /// to the pod, unproxied, and only an explicit cilium.io deny of `host` overrides it.
    fn own_node_to_pod(&self, peer: IpAddr, protocol: Protocol, port: u16) -> Answer {
        let peer = Peer::own_node(self, peer);
        let flow = Flow { direction: Direction::Ingress, origin: Origin::OwnNode, peer, protocol, port };
        match tiers::denials_of_host(self, &flow).into_keys().next() {
            Some(rule) => Answer::new(Verdict::Deny, Reason::Rule(rule)),
            None => Answer::new(Verdict::Allow, Reason::OwnNode),
        }
    }

    /// A flow to a Service is judged by the backend that the packet is sent to, not by the virtual address (DESIGN 6.8, 7).
    /// None: this is no Service.
    fn service(&self, peer: IpAddr, protocol: Protocol, port: u16) -> Option<Answer> {
        let (service, service_port) = services::frontend(self, peer, protocol, port)?;
        let (mut lists, mut see) = (BTreeMap::new(), None);
        let (mut denied, mut refused) = (None, None);
        let (mut passes, mut otherwise) = (false, false);
        // By address, then port: the first that is denied is the least.
        for (address, port) in services::backends(self.cluster, service, service_port, peer) {
            // "Pod -> Service -> itself is subject" (ClusterNetworkPolicy, July 2026; DESIGN 6.11).
            let hairpin = address::has(&self.subject.addresses, address);
            let origin = if hairpin { Origin::Hairpin } else { Origin::Forwarded };
            let answer = self.plain(Direction::Egress, origin, address, protocol, port);
            match answer.verdict {
                Verdict::Deny => {
                    refused.get_or_insert_with(|| answer.reason.clone());
                    denied.get_or_insert(answer.reason);
                }
                Verdict::Redirect(proxied) => {
                    lists.extend(proxied.lists.iter().map(|list| (list.at.clone(), Arc::clone(list))));
                    see = see.or(proxied.see);
                    match proxied.otherwise {
                        Outcome::Allow(_) => otherwise = true,
                        Outcome::Deny(reason) => {
                            refused.get_or_insert(reason);
                        }
                    }
                }
                Verdict::Allow | Verdict::Defer => (passes, otherwise) = (true, true),
            }
        }
        let first = lists.keys().next().map(|at| Reason::Rule(at.rule.clone()));
        Some(match (first.or(see.map(|_| Reason::Service)), denied) {
            (Some(reason), _) => {
                let lists = lists.into_values().collect();
                // What no backend would let pass without its rules does not pass at the Service either.
                let otherwise = match refused {
                    Some(reason) if !otherwise => Outcome::Deny(reason),
                    _ => Outcome::Allow(Reason::Service),
                };
                let proxied = Proxied { lists, see, otherwise };
                Answer::new(Verdict::Redirect(proxied), reason)
            }
            (None, Some(reason)) if !passes => Answer::new(Verdict::Deny, reason),
            // Also without a ready backend: the service proxy refuses, or sends it where this is judged again.
            (None, _) => Answer::new(Verdict::Defer, Reason::Service),
        })
    }

    /// A flow to or from an address that is what it says, by the tiers.
    fn plain(&self, direction: Direction, origin: Origin, peer: IpAddr, protocol: Protocol, port: u16) -> Answer {
        let peer = Peer::of(self, direction, origin, peer);
        tiers::decide(self, &Flow { direction, origin, peer, protocol, port })
    }
}

#[cfg(test)]
mod tests;
