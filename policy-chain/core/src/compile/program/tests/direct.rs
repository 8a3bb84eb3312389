//! The decision procedure, said once more and as plainly as can be, on the policies themselves: one packet, one peer.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::cluster::{NamedPort, Visible};
use crate::compile::predicate::{Namespaces, Predicate};
use crate::compile::program::Selected;
use crate::flow::{
    AppProtocol, DNS_PORT, Direction, Judgement, List, ListRef, Lists, Origin, Outcome, Protocol, Proxied, Reason,
    RuleRef, Verdict,
};
use crate::model::cilium::{Application, CidrBlock, CiliumPeers, Entity};
use crate::model::cluster_network_policy::{Action, ClusterPeer, ClusterSubject, ClusterTier};
use crate::model::network_policy::{NetworkPeer, NetworkPeers};
use crate::model::port::{PortTarget, Ports};
use crate::model::selector::LabelSelector;
use crate::model::{Policy, PolicyRef, Text};

pub(super) struct Packet<'a> {
    pub(super) direction: Direction,
    pub(super) origin: Origin,
    /// What holds for the peer.
    pub(super) truth: &'a BTreeSet<Predicate>,
    /// The ports that names are resolved with.
    pub(super) named: &'a [NamedPort],
    /// What of the pod is to be seen.
    pub(super) visible: &'a [Visible],
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

pub(super) fn judge(policies: &[Selected], packet: &Packet<'_>) -> Judgement {
    let learns = packet.direction == Direction::Egress
        && [Protocol::TCP, Protocol::UDP].contains(&packet.protocol)
        && packet.port == DNS_PORT
        && policies.iter().any(means_names);
    let answer = |dry_runs: bool| {
        let counted: Vec<&Selected> = policies.iter().filter(|one| dry_runs || !one.policy.audit()).collect();
        let (verdict, reason) = packet.answer(&counted);
        let verdict = match verdict {
            Verdict::Allow if learns => Verdict::Redirect(Proxied::seen(AppProtocol::Dns, reason.clone())),
            Verdict::Allow if !packet.is_of_own_node() => match packet.application() {
                Some(application) => Verdict::Redirect(Proxied::seen(application, reason.clone())),
                None => Verdict::Allow,
            },
            verdict => verdict,
        };
        Judgement { verdict, reason, audit: None }
    };
    let (enforced, all) = (answer(false), answer(true));
    let audit = (enforced != all).then(|| Box::new(all));
    Judgement { audit, ..enforced }
}

impl Packet<'_> {
    /// Whether the pod's own node sent it to the pod.
    fn is_of_own_node(&self) -> bool {
        self.origin == Origin::OwnNode && self.direction == Direction::Ingress
    }

    /// What is to be seen of it.
    fn application(&self) -> Option<AppProtocol> {
        let this =
            |one: &&Visible| (one.direction, one.protocol, one.port) == (self.direction, self.protocol, self.port);
        self.visible.iter().find(this).map(|one| one.application)
    }
}

/// Whether a rule for egress means peers by names.
fn means_names(selected: &Selected) -> bool {
    match &*selected.policy {
        Policy::Network(policy) => {
            let peers = policy.egress.iter().flatten().flatten().filter_map(|rule| match &rule.peers {
                NetworkPeers::All => None,
                NetworkPeers::Of(peers) => Some(peers),
            });
            peers.flatten().flatten().any(|peer| matches!(peer, NetworkPeer::Names(names) if !names.is_empty()))
        }
        Policy::Cluster(policy) => {
            let matches = policy.egress.iter().flat_map(|rule| &rule.matches);
            let mut peers = matches.flat_map(|matches| &matches.peers);
            peers.any(|peer| matches!(peer, ClusterPeer::Names(names) if !names.is_empty()))
        }
        Policy::Cilium(policy) => selected.specs.iter().any(|spec| {
            let rule = &policy.rules[usize::from(*spec)];
            let allows = rule.egress.iter().flatten().map(|allow| &allow.peers);
            let mut peers = allows.chain(rule.egress_deny.iter().flatten().map(|deny| &deny.peers));
            peers.any(|peers| matches!(peers, CiliumPeers::Names(names) if !names.is_empty()))
        }),
    }
}

impl Packet<'_> {
    fn answer(&self, policies: &[&Selected]) -> (Verdict, Reason) {
        let allow = |reason| (Verdict::Allow, reason);
        let refuse = |reason| (Verdict::Deny, reason);
        if self.is_of_own_node() {
            let denied = self.denials(policies, true);
            return denied.first().map_or(allow(Reason::OwnNode), |rule| refuse(Reason::Rule(rule.clone())));
        }
        match self.tier(policies, ClusterTier::Admin) {
            Some((Action::Accept, rule)) => return allow(Reason::Rule(rule)),
            Some((Action::Deny, rule)) => return refuse(Reason::Rule(rule)),
            _ => {}
        }
        if let Some(rule) = self.denials(policies, false).first() {
            return refuse(Reason::Rule(rule.clone()));
        }
        let mut allowed: BTreeSet<Reason> = self.allowed(policies).into_iter().map(Reason::Rule).collect();
        let mut isolating: BTreeSet<PolicyRef> = BTreeSet::new();
        for one in policies {
            match &*one.policy {
                Policy::Network(policy) => {
                    isolating.insert(policy.id.clone());
                    if self.origin == Origin::Hairpin {
                        allowed.insert(Reason::Isolated(policy.id.clone()));
                    }
                }
                Policy::Cilium(policy) => {
                    for spec in &one.specs {
                        let rule = &policy.rules[usize::from(*spec)];
                        let default_deny = match self.direction {
                            Direction::Ingress => rule.default_deny_ingress,
                            Direction::Egress => rule.default_deny_egress,
                        };
                        if default_deny {
                            isolating.insert(policy.id.clone());
                        }
                    }
                }
                Policy::Cluster(_) => {}
            }
        }
        let otherwise = match (allowed.pop_first(), isolating.pop_first()) {
            (Some(reason), _) => Outcome::Allow(reason),
            (None, Some(policy)) => Outcome::Deny(Reason::Isolated(policy)),
            (None, None) => match self.tier(policies, ClusterTier::Baseline) {
                Some((Action::Accept, rule)) => Outcome::Allow(Reason::Rule(rule)),
                Some((Action::Deny, rule)) => Outcome::Deny(Reason::Rule(rule)),
                _ => Outcome::Allow(Reason::NoPolicy),
            },
        };
        let lists = self.proxied(policies);
        let first = lists.first().map(|list| Reason::Rule(list.at.rule.clone()));
        match (first, otherwise) {
            (Some(first), otherwise) => (Verdict::Redirect(Proxied { lists, see: None, otherwise }), first),
            (None, Outcome::Allow(reason)) => allow(reason),
            (None, Outcome::Deny(reason)) => refuse(reason),
        }
    }

    fn reference(&self, policy: &PolicyRef, spec: u16, deny: bool, index: usize) -> RuleRef {
        let index = u16::try_from(index).unwrap();
        RuleRef { policy: policy.clone(), direction: self.direction, spec, deny, index }
    }

    fn tier(&self, policies: &[&Selected], tier: ClusterTier) -> Option<(Action, RuleRef)> {
        let mut matches = BTreeSet::new();
        for one in policies {
            let Policy::Cluster(policy) = &*one.policy else { continue };
            if policy.tier != tier {
                continue;
            }
            let rules = match self.direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            for (index, rule) in rules.iter().enumerate() {
                let action = match (&rule.matches, rule.action) {
                    (Ok(matches), action) => {
                        let meant = matches.peers.iter().any(|peer| self.is_cluster_peer(peer));
                        (meant && self.is_port(&matches.ports)).then_some(action)
                    }
                    (Err(_), Action::Accept) => None,
                    (Err(_), _) => Some(Action::Deny),
                };
                if let Some(action) = action {
                    let name = policy.id.clone();
                    matches.insert((policy.priority, action, name, index));
                    break;
                }
            }
        }
        matches.pop_first().map(|(_, action, policy, index)| (action, self.reference(&policy, 0, false, index)))
    }

    fn denials(&self, policies: &[&Selected], of_host: bool) -> Vec<RuleRef> {
        let mut found = BTreeSet::new();
        for one in policies {
            let Policy::Cilium(policy) = &*one.policy else { continue };
            for &spec in &one.specs {
                let rule = &policy.rules[usize::from(spec)];
                let denies = match self.direction {
                    Direction::Ingress => &rule.ingress_deny,
                    Direction::Egress => &rule.egress_deny,
                };
                for (index, deny) in denies.iter().enumerate() {
                    let meant = match deny {
                        Err(_) => !of_host,
                        Ok(deny) if of_host => {
                            matches!(&deny.peers, CiliumPeers::Entities(list) if list.contains(&Entity::Host))
                                && self.is_port(&deny.ports)
                        }
                        Ok(deny) => self.is_cilium_peer(&deny.peers) && self.is_port(&deny.ports),
                    };
                    if meant {
                        found.insert(self.reference(&policy.id, spec, true, index));
                    }
                }
            }
        }
        found.into_iter().collect()
    }

    /// The rules that allow without the proxy.
    fn allowed(&self, policies: &[&Selected]) -> BTreeSet<RuleRef> {
        let mut found = BTreeSet::new();
        for one in policies {
            match &*one.policy {
                Policy::Network(policy) => {
                    let rules = match self.direction {
                        Direction::Ingress => policy.ingress.as_ref(),
                        Direction::Egress => policy.egress.as_ref(),
                    };
                    for (index, rule) in rules.unwrap().iter().enumerate() {
                        if let Ok(rule) = rule
                            && self.is_network_peer(&rule.peers, &policy.id)
                            && self.is_port(&rule.ports)
                        {
                            found.insert(self.reference(&policy.id, 0, false, index));
                        }
                    }
                }
                Policy::Cilium(_) => {
                    let all = self.cilium_allows(one).into_iter();
                    found.extend(all.filter(|(_, one)| **one == Application::None).map(|(at, _)| at.rule));
                }
                Policy::Cluster(_) => {}
            }
        }
        found
    }

    fn proxied(&self, policies: &[&Selected]) -> Lists {
        let all: Vec<(ListRef, &Application)> = policies.iter().flat_map(|one| self.cilium_allows(one)).collect();
        let dns = |application: &Application| matches!(application, Application::Dns(_));
        let spoken: Vec<_> = all
            .into_iter()
            .filter(|(_, application)| {
                *application != &Application::None
                    && (self.protocol == Protocol::TCP || self.protocol == Protocol::UDP && dns(application))
            })
            .collect();
        if spoken.iter().any(|(_, one)| dns(one)) && spoken.iter().any(|(_, one)| !dns(one)) {
            return Lists::default();
        }
        let lists = spoken.into_iter().map(|(at, application)| List { at, application: application.clone() });
        lists.map(Arc::new).collect()
    }

    /// The elements of `toPorts` that mean the packet.
    fn cilium_allows<'p>(&self, one: &'p Selected) -> Vec<(ListRef, &'p Application)> {
        let Policy::Cilium(policy) = &*one.policy else { return Vec::new() };
        let mut found = Vec::new();
        for &spec in &one.specs {
            let rule = &policy.rules[usize::from(spec)];
            let allows = match self.direction {
                Direction::Ingress => &rule.ingress,
                Direction::Egress => &rule.egress,
            };
            for (index, allow) in allows.iter().enumerate() {
                let Ok(allow) = allow else { continue };
                for (element, ports) in (0..).zip(&allow.ports) {
                    if self.is_cilium_peer(&allow.peers) && self.is_port(&ports.ports) {
                        let rule = self.reference(&policy.id, spec, false, index);
                        found.push((ListRef { rule, element }, &ports.application));
                    }
                }
            }
        }
        found
    }

    fn is_port(&self, ports: &Ports) -> bool {
        let Ports::Of(list) = ports else { return true };
        list.iter().any(|wanted| {
            wanted.protocol.holds(self.protocol)
                && match &wanted.port {
                    PortTarget::Any => true,
                    PortTarget::Range(first, last) => *first <= self.port && self.port <= *last,
                    PortTarget::Named(name) => self.named.contains(&NamedPort {
                        name: Text::clone(name),
                        protocol: self.protocol,
                        port: self.port,
                    }),
                }
        })
    }

    fn holds(&self, predicate: &Predicate) -> bool {
        self.truth.contains(predicate)
    }

    fn is_network_peer(&self, peers: &NetworkPeers, policy: &PolicyRef) -> bool {
        let NetworkPeers::Of(peers) = peers else { return true };
        peers.iter().flatten().any(|peer| match peer {
            NetworkPeer::Pods { namespaces, pods } => {
                let namespaces = match namespaces {
                    None => Namespaces::Named(policy.namespace.clone().unwrap()),
                    Some(selector) => Namespaces::Labelled(selector.clone()),
                };
                self.holds(&Predicate::Pods { namespaces, pods: pods.clone() })
            }
            NetworkPeer::IpBlock { cidr, except } => {
                self.holds(&Predicate::Block { cidr: *cidr, except: except.clone(), managed: true })
            }
            NetworkPeer::Names(names) => names.iter().any(|name| self.holds(&Predicate::Name(name.clone()))),
        })
    }

    fn is_cluster_peer(&self, peer: &ClusterPeer) -> bool {
        match peer {
            ClusterPeer::Pods(ClusterSubject::Namespaces(namespaces)) => self.holds(&Predicate::Pods {
                namespaces: Namespaces::Labelled(namespaces.clone()),
                pods: LabelSelector::default(),
            }),
            ClusterPeer::Pods(ClusterSubject::Pods { namespaces, pods }) => self
                .holds(&Predicate::Pods { namespaces: Namespaces::Labelled(namespaces.clone()), pods: pods.clone() }),
            ClusterPeer::Networks(networks) => {
                networks.iter().any(|cidr| self.holds(&Predicate::Block { cidr: *cidr, except: vec![], managed: true }))
            }
            ClusterPeer::Nodes(selector) => self.holds(&Predicate::Nodes(selector.clone())),
            ClusterPeer::Names(names) => names.iter().any(|name| self.holds(&Predicate::Name(name.clone()))),
        }
    }

    fn is_cilium_peer(&self, peers: &CiliumPeers) -> bool {
        match peers {
            CiliumPeers::Any => true,
            CiliumPeers::Nothing => false,
            CiliumPeers::Endpoints(list) => list.iter().any(|one| self.holds(&Predicate::Endpoints(one.clone()))),
            CiliumPeers::Cidrs(list) => list.iter().any(|rule| match &rule.block {
                CidrBlock::Cidr(cidr) => {
                    self.holds(&Predicate::Block { cidr: *cidr, except: rule.except.clone(), managed: false })
                }
                CidrBlock::Group(_) | CidrBlock::Groups(_) => false,
            }),
            CiliumPeers::Entities(list) => {
                list.iter().any(|entity| *entity == Entity::All || self.holds(&Predicate::Entity(*entity)))
            }
            CiliumPeers::Services(list) => list.iter().any(|one| self.holds(&Predicate::Services(one.clone()))),
            CiliumPeers::Groups(_) => false,
            CiliumPeers::Nodes(list) => list.iter().any(|one| self.holds(&Predicate::Nodes(one.clone()))),
            CiliumPeers::Names(list) => list.iter().any(|one| self.holds(&Predicate::Name(one.clone()))),
        }
    }
}
