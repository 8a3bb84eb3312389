//! All rules of a policy set, each with whom it governs and what it matches as sets.

use super::peers::Peers;
use super::ports::PortSet;
use super::values::Labelled;
use crate::flow::{Direction, Protocol, RuleRef};
use crate::model::cilium::{Application, CiliumAllow, CiliumRule};
use crate::model::cluster_network_policy::{Action, ClusterRule, ClusterTier};
use crate::model::network_policy::NetworkRule;
use crate::model::port::Ports;
use crate::model::{CiliumPolicy, ClusterNetworkPolicy, NetworkPolicy, Policy, PolicyRef, Usable};

/// What a rule does.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Effect {
    /// A rule of a ClusterNetworkPolicy.
    Ordered { tier: ClusterTier, priority: u16, action: Action },
    /// A deny of cilium.io.
    Deny,
    /// An allow; on some ports there may be application rules.
    Allow(Vec<Proxied>),
}

/// What application rules of an allow are for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Proxied {
    /// Index in `toPorts`.
    pub(super) index: usize,
    pub(super) ports: PortSet,
    pub(super) application: Application,
}

/// A rule.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    /// Which of the policies of the set.
    pub(super) policy: usize,
    pub(super) rule: RuleRef,
    pub(super) audit: bool,
    /// Whom it governs.
    pub(super) subject: Labelled,
    pub(super) peers: Peers,
    /// The ports without application rules.
    pub(super) ports: PortSet,
    pub(super) effect: Effect,
    /// Whether it can be used. One that cannot be and denies has all peers and ports.
    pub(super) usable: bool,
}

impl Rule {
    /// Whether it never matches anything.
    pub(super) fn is_empty(&self) -> bool {
        let proxied = matches!(&self.effect, Effect::Allow(list) if list.iter().any(|one| !one.ports.is_empty()));
        self.subject.is_empty() || self.peers.is_empty() || (self.ports.is_empty() && !proxied)
    }
}

/// A policy's subjects that are put under default deny.
#[derive(Debug, Clone)]
pub(super) struct Isolation {
    pub(super) policy: usize,
    /// Element of a Cilium policy.
    pub(super) spec: u16,
    pub(super) direction: Direction,
    pub(super) subject: Labelled,
}

/// The rules of a policy set.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub(super) all: Vec<Rule>,
    pub(super) isolations: Vec<Isolation>,
}

/// The element of a policy.
#[derive(Clone, Copy)]
struct Place<'a> {
    policy: usize,
    id: &'a PolicyRef,
    audit: bool,
    direction: Direction,
    spec: u16,
}

impl Place<'_> {
    fn rule(&self, deny: bool, index: usize) -> RuleRef {
        let index = u16::try_from(index).unwrap_or(u16::MAX);
        RuleRef { policy: self.id.clone(), direction: self.direction, spec: self.spec, deny, index }
    }

    fn isolation(&self, subject: &Labelled) -> Isolation {
        let Place { policy, spec, direction, .. } = *self;
        Isolation { policy, spec, direction, subject: subject.clone() }
    }
}

impl Rules {
    /// Of policies, told apart by their place in the list.
    pub(super) fn of<'a>(policies: impl IntoIterator<Item = &'a Policy>) -> Self {
        let mut rules = Self::default();
        for (index, policy) in policies.into_iter().enumerate() {
            for direction in Direction::BOTH {
                let place = Place { policy: index, id: policy.id(), audit: policy.audit(), direction, spec: 0 };
                match policy {
                    Policy::Network(policy) => rules.network(policy, place),
                    Policy::Cluster(policy) => rules.cluster(policy, place),
                    Policy::Cilium(policy) => rules.cilium(policy, place),
                }
            }
        }
        rules
    }

    fn network(&mut self, policy: &NetworkPolicy, place: Place<'_>) {
        let rules = match place.direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        let Some(rules) = rules else { return };
        let namespace = policy.id.namespace.as_ref();
        let subject = Labelled::pods_of(namespace, &policy.pods);
        self.isolations.push(place.isolation(&subject));
        for (index, rule) in rules.iter().enumerate() {
            let (peers, ports) = match rule {
                Ok(NetworkRule { peers, ports }) => (Peers::network(peers, namespace), PortSet::new([ports])),
                Err(_) => (Peers::default(), PortSet::default()),
            };
            let (rule, usable) = (place.rule(false, index), rule.is_ok());
            let effect = Effect::Allow(Vec::new());
            self.all.push(Rule {
                policy: place.policy,
                rule,
                audit: place.audit,
                subject: subject.clone(),
                peers,
                ports,
                effect,
                usable,
            });
        }
    }

    fn cluster(&mut self, policy: &ClusterNetworkPolicy, place: Place<'_>) {
        let rules = match place.direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        let Some(subject) = policy.subject.as_ref().map(Labelled::cluster) else { return };
        for (index, ClusterRule { action, matches, .. }) in rules.iter().enumerate() {
            let (action, peers, ports) = match matches {
                Ok(matches) => (*action, Peers::cluster(&matches.peers), PortSet::new([&matches.ports])),
                Err(_) if *action == Action::Accept => (Action::Accept, Peers::default(), PortSet::default()),
                Err(_) => (Action::Deny, Peers::anyone(), PortSet::new([&Ports::Any])),
            };
            let (rule, usable) = (place.rule(false, index), matches.is_ok());
            let effect = Effect::Ordered { tier: policy.tier, priority: policy.priority, action };
            self.all.push(Rule {
                policy: place.policy,
                rule,
                audit: place.audit,
                subject: subject.clone(),
                peers,
                ports,
                effect,
                usable,
            });
        }
    }

    fn cilium(&mut self, policy: &CiliumPolicy, place: Place<'_>) {
        for (spec, rule) in (0..=u16::MAX).zip(&policy.rules) {
            let CiliumRule {
                default_deny_ingress,
                default_deny_egress,
                ingress,
                ingress_deny,
                egress,
                egress_deny,
                ..
            } = rule;
            let place = Place { spec, ..place };
            let (default_deny, allows, denies) = match place.direction {
                Direction::Ingress => (default_deny_ingress, ingress, ingress_deny),
                Direction::Egress => (default_deny_egress, egress, egress_deny),
            };
            let subject = Labelled::endpoints(&rule.subject);
            if *default_deny {
                self.isolations.push(place.isolation(&subject));
            }
            for (index, allow) in allows.iter().enumerate() {
                self.cilium_allow(allow, place.rule(false, index), &subject, place);
            }
            for (index, deny) in denies.iter().enumerate() {
                let (peers, ports) = match deny {
                    Ok(deny) => (Peers::cilium(&deny.peers), PortSet::new([&deny.ports])),
                    Err(_) => (Peers::anyone(), PortSet::new([&Ports::Any])),
                };
                let (rule, usable) = (place.rule(true, index), deny.is_ok());
                self.all.push(Rule {
                    policy: place.policy,
                    rule,
                    audit: place.audit,
                    subject: subject.clone(),
                    peers,
                    ports,
                    effect: Effect::Deny,
                    usable,
                });
            }
        }
    }

    fn cilium_allow(&mut self, allow: &Usable<CiliumAllow>, rule: RuleRef, subject: &Labelled, place: Place<'_>) {
        let mut peers = Peers::default();
        let mut ports = PortSet::default();
        let mut proxied = Vec::new();
        if let Ok(allow) = allow {
            peers = Peers::cilium(&allow.peers);
            let plain = allow.ports.iter().filter(|ports| ports.application == Application::None);
            ports = PortSet::new(plain.map(|ports| &ports.ports));
            for (index, ports) in allow.ports.iter().enumerate() {
                let protocols: &[Protocol] = match ports.application {
                    Application::None => continue,
                    Application::Http(_) | Application::ServerNames(_) => &[Protocol::TCP],
                    Application::Dns(_) => &[Protocol::TCP, Protocol::UDP],
                };
                let application = ports.application.clone();
                proxied.push(Proxied { index, ports: PortSet::new([&ports.ports]).only(protocols), application });
            }
        }
        let (effect, usable) = (Effect::Allow(proxied), allow.is_ok());
        self.all.push(Rule {
            policy: place.policy,
            rule,
            audit: place.audit,
            subject: subject.clone(),
            peers,
            ports,
            effect,
            usable,
        });
    }
}
