//! All rules of a policy set, each with whom it governs and what it matches as sets.

use super::peers::Peers;
use super::ports::PortSet;
use super::values::Labelled;
use crate::flow::{Direction, Protocol, RuleRef};
use crate::model::cilium::{Application, CiliumAllow, CiliumRule};
use crate::model::cluster_network_policy::{Action, ClusterRule, ClusterTier};
use crate::model::network_policy::NetworkRule;
use crate::model::port::Ports;
use crate::model::{CiliumPolicy, ClusterNetworkPolicy, NetworkPolicy, Policy, PolicyRef};

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

/// What a rule says.
struct Meaning {
    peers: Peers,
    ports: PortSet,
    effect: Effect,
    usable: bool,
}

impl Meaning {
    const fn of(peers: Peers, ports: PortSet, effect: Effect) -> Self {
        Self { peers, ports, effect, usable: true }
    }

    /// Of an allow that cannot be used.
    fn nothing(effect: Effect) -> Self {
        Self { peers: Peers::default(), ports: PortSet::default(), effect, usable: false }
    }

    /// Of a deny or pass that cannot be used.
    fn everything(effect: Effect) -> Self {
        Self { peers: Peers::anyone(), ports: PortSet::new([&Ports::Any]), effect, usable: false }
    }
}

impl Place<'_> {
    fn rule(&self, index: usize, subject: &Labelled, meaning: Meaning) -> Rule {
        let Place { policy, id, audit, direction, spec } = *self;
        let Meaning { peers, ports, effect, usable } = meaning;
        let (index, deny) = (u16::try_from(index).unwrap_or(u16::MAX), effect == Effect::Deny);
        let rule = RuleRef { policy: id.clone(), direction, spec, deny, index };
        Rule { policy, rule, audit, subject: subject.clone(), peers, ports, effect, usable }
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
            let effect = Effect::Allow(Vec::new());
            let meaning = match rule {
                Ok(NetworkRule { peers, ports }) => {
                    Meaning::of(Peers::network(peers, namespace), PortSet::new([ports]), effect)
                }
                Err(_) => Meaning::nothing(effect),
            };
            self.all.push(place.rule(index, &subject, meaning));
        }
    }

    fn cluster(&mut self, policy: &ClusterNetworkPolicy, place: Place<'_>) {
        let rules = match place.direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        let Some(subject) = policy.subject.as_ref().map(Labelled::cluster) else { return };
        for (index, ClusterRule { action, matches, .. }) in rules.iter().enumerate() {
            let effect = |action| Effect::Ordered { tier: policy.tier, priority: policy.priority, action };
            let meaning = match matches {
                Ok(matches) => {
                    Meaning::of(Peers::cluster(&matches.peers), PortSet::new([&matches.ports]), effect(*action))
                }
                Err(_) if *action == Action::Accept => Meaning::nothing(effect(Action::Accept)),
                Err(_) => Meaning::everything(effect(Action::Deny)),
            };
            self.all.push(place.rule(index, &subject, meaning));
        }
    }

    fn cilium(&mut self, policy: &CiliumPolicy, place: Place<'_>) {
        for rule in &policy.rules {
            let CiliumRule {
                number,
                default_deny_ingress,
                default_deny_egress,
                ingress,
                ingress_deny,
                egress,
                egress_deny,
                ..
            } = rule;
            let place = Place { spec: *number, ..place };
            let (default_deny, allows, denies) = match place.direction {
                Direction::Ingress => (default_deny_ingress, ingress, ingress_deny),
                Direction::Egress => (default_deny_egress, egress, egress_deny),
            };
            let subject = Labelled::endpoints(&rule.subject);
            if *default_deny {
                self.isolations.push(place.isolation(&subject));
            }
            for (index, allow) in allows.iter().enumerate() {
                let meaning = allow.as_ref().map_or_else(|_| Meaning::nothing(Effect::Allow(Vec::new())), cilium_allow);
                self.all.push(place.rule(index, &subject, meaning));
            }
            for (index, deny) in denies.iter().enumerate() {
                let meaning = match deny {
                    Ok(deny) => Meaning::of(Peers::cilium(&deny.peers), PortSet::new([&deny.ports]), Effect::Deny),
                    Err(_) => Meaning::everything(Effect::Deny),
                };
                self.all.push(place.rule(index, &subject, meaning));
            }
        }
    }
}

fn cilium_allow(allow: &CiliumAllow) -> Meaning {
    let plain = allow.ports.iter().filter(|ports| ports.application == Application::None);
    let plain = PortSet::new(plain.map(|ports| &ports.ports));
    let mut proxied = Vec::new();
    for (index, ports) in allow.ports.iter().enumerate() {
        let protocols: &[Protocol] = match ports.application {
            Application::None => continue,
            Application::Http(_) | Application::ServerNames(_) => &[Protocol::TCP],
            Application::Dns(_) => &[Protocol::TCP, Protocol::UDP],
        };
        let application = ports.application.clone();
        proxied.push(Proxied { index, ports: PortSet::new([&ports.ports]).only(protocols), application });
    }
    Meaning::of(Peers::cilium(&allow.peers), plain, Effect::Allow(proxied))
}
