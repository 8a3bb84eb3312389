//! From policies to one list of rules in the order in which they are asked, each with its peers as predicates.

mod peers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::peers::{Peers, cluster_peers, network_peers};
use super::port_space::PortSet;
use super::predicate::Predicate;
use super::program::Networks;
use super::select::Selected;
use crate::cluster::{NamedPort, PodTemplate};
use crate::flow::{AppProtocol, DNS_PORT, Direction, List, ListRef, Protocol, RuleRef};
use crate::model::cilium::{Application, CidrBlock, CiliumAllow, CiliumDeny, CiliumRule};
use crate::model::cluster_network_policy::{Action, ClusterRule, ClusterTier};
use crate::model::network_policy::NetworkRule;
use crate::model::port::{Ports, ProtocolMatch};
use crate::model::{CiliumPolicy, ClusterNetworkPolicy, NetworkPolicy, Policy, PolicyRef, Text, Usable};
use crate::settings::Settings;

/// Where a rule stands. The order is that in which entries are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Section {
    /// Tier Admin.
    Admin,
    /// A deny of cilium.io.
    Deny,
    /// An allow without application rules.
    Plain,
    /// An allow with application rules.
    Application,
    /// Tier Baseline.
    Baseline,
}

/// What the rules of a section differ in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Effect {
    /// Admin and Baseline: what the rule does.
    Ordered(Action),
    /// Deny and allow: nothing.
    Only,
}

/// Ports of a rule. An allow with application rules has one part for each list of them, and so as many as it has elements of
/// `toPorts` with one; every other rule is of one part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) ports: PortSet,
    /// Which of [`Lowered::lists`].
    pub(super) list: Option<usize>,
}

/// One rule, of one section: what its peers are is kept apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) section: Section,
    pub(super) effect: Effect,
    /// Admin and Baseline: the policy's priority.
    pub(super) priority: u16,
    /// Whether another policy of the same section has the same priority.
    pub(super) tied: bool,
    /// Which of [`Lowered::rules`].
    pub(super) rule: u32,
    /// Which policy, by the order of the policies' names.
    pub(super) policy: u32,
    /// Of a policy that is a dry run.
    pub(super) audit: bool,
    pub(super) parts: Vec<Part>,
}

impl Entry {
    /// The names of ports that each peer resolves.
    pub(super) fn named(&self) -> impl Iterator<Item = &(Text, ProtocolMatch)> {
        self.parts.iter().flat_map(|part| &part.ports.named)
    }
}

/// Whose default deny holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Isolation {
    /// The least policy that isolates, by index in [`Lowered::policies`].
    pub(super) by: Option<u32>,
    /// The least NetworkPolicy that does.
    pub(super) network: Option<u32>,
}

/// All rules of a direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lowered {
    /// In the order of their sections; within Admin and Baseline by priority, policy, index; in the others by rule.
    pub(super) entries: Vec<Entry>,
    /// Sorted, without doubles.
    pub(super) rules: Vec<RuleRef>,
    /// The application lists, in the order of where they stand.
    pub(super) lists: Vec<Arc<List>>,
    /// Sorted.
    pub(super) policies: Vec<PolicyRef>,
    /// Sorted, without doubles.
    pub(super) predicates: Vec<Predicate>,
    /// Which entries each predicate is enough for; ascending.
    pub(super) by_predicate: Vec<Vec<u32>>,
    /// The entries whose peer is anyone.
    pub(super) anyone: Vec<u32>,
    /// Without the policies that are dry runs.
    pub(super) enforced: Isolation,
    /// With them.
    pub(super) all: Isolation,
    /// Whether a CIDR group was asked for.
    pub(super) groups: bool,
    /// What the proxy looks at, if it passes, by protocol and port.
    pub(super) seen: BTreeMap<(Protocol, u16), AppProtocol>,
}

/// A rule before everything is numbered.
#[derive(Debug)]
struct Draft {
    section: Section,
    priority: u16,
    rule: RuleRef,
    effect: Effect,
    audit: bool,
    peers: Peers,
    parts: Vec<DraftPart>,
}

#[derive(Debug)]
struct DraftPart {
    ports: PortSet,
    /// Element of `toPorts`, and its application rules.
    list: Option<(u32, Application)>,
}

impl DraftPart {
    /// The part, with its list among the others, which come in the order of where they stand.
    fn numbered(&self, rule: &RuleRef, lists: &mut Vec<Arc<List>>) -> Part {
        let list = self.list.as_ref().map(|(element, application)| {
            let at = ListRef { rule: rule.clone(), element: *element };
            lists.push(Arc::new(List { at, application: application.clone() }));
            lists.len() - 1
        });
        Part { ports: self.ports.clone(), list }
    }

    fn plain(ports: PortSet) -> Vec<Self> {
        vec![Self { ports, list: None }]
    }
}

/// What lowering needs to know.
pub(super) struct Lowering<'a> {
    direction: Direction,
    /// Ingress: the subject's ports, which names are resolved with.
    own: Option<&'a [NamedPort]>,
    groups: &'a dyn Fn(&CidrBlock) -> Networks,
    settings: &'a Settings,
    drafts: Vec<Draft>,
    asked_groups: bool,
    seen: BTreeMap<(Protocol, u16), AppProtocol>,
    /// Whether a rule means peers by their names.
    learns: bool,
    /// Policy, whether it is a NetworkPolicy, whether it is a dry run.
    isolating: Vec<(PolicyRef, bool, bool)>,
}

impl std::fmt::Debug for Lowering<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lowering")
            .field("direction", &self.direction)
            .field("drafts", &self.drafts)
            .finish_non_exhaustive()
    }
}

impl<'a> Lowering<'a> {
    pub(super) fn new(
        direction: Direction,
        subject: &'a PodTemplate,
        groups: &'a dyn Fn(&CidrBlock) -> Networks,
        settings: &'a Settings,
    ) -> Self {
        let own: Option<&[NamedPort]> = match direction {
            Direction::Ingress => Some(&subject.ports),
            Direction::Egress => None,
        };
        let visible = subject.visible.iter().filter(|visible| visible.direction == direction);
        Self {
            direction,
            own,
            groups,
            settings,
            drafts: Vec::new(),
            asked_groups: false,
            seen: visible.map(|visible| ((visible.protocol, visible.port), visible.application)).collect(),
            learns: false,
            isolating: Vec::new(),
        }
    }

    /// All rules of the direction, of these policies in any order.
    pub(super) fn lower(mut self, policies: &[Selected]) -> Lowered {
        for selected in policies {
            match selected.policy.as_ref() {
                Policy::Network(policy) => self.network(policy),
                Policy::Cluster(policy) => self.cluster(policy),
                Policy::Cilium(policy) => self.cilium(policy, &selected.specs),
            }
        }
        self.number()
    }

    fn rule(&self, policy: &PolicyRef, spec: u16, deny: bool, index: usize) -> RuleRef {
        RuleRef { policy: policy.clone(), direction: self.direction, spec, deny, index: short(index) }
    }

    fn push(&mut self, mut draft: Draft) {
        let named = draft.peers.predicates.iter().any(|one| matches!(one, Predicate::Name(_)));
        self.learns |= named && self.direction == Direction::Egress;
        let somebody = draft.peers.anyone || !draft.peers.predicates.is_empty();
        draft.parts.retain(|part| !part.ports.is_empty());
        if somebody && !draft.parts.is_empty() {
            self.drafts.push(draft);
        }
    }

    fn network(&mut self, policy: &NetworkPolicy) {
        let rules = match self.direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        let Some(rules) = rules else { return };
        self.isolating.push((policy.id.clone(), true, policy.audit));
        for (index, rule) in usable(rules) {
            let NetworkRule { peers, ports } = rule;
            let draft = Draft {
                section: Section::Plain,
                priority: 0,
                rule: self.rule(&policy.id, 0, false, index),
                effect: Effect::Only,
                audit: policy.audit,
                peers: network_peers(peers, policy.id.namespace.as_ref()),
                parts: DraftPart::plain(PortSet::new([ports], self.own)),
            };
            self.push(draft);
        }
    }

    fn cluster(&mut self, policy: &ClusterNetworkPolicy) {
        let rules = match self.direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        let section = match policy.tier {
            ClusterTier::Admin => Section::Admin,
            ClusterTier::Baseline => Section::Baseline,
        };
        for (index, ClusterRule { action, matches, .. }) in rules.iter().enumerate() {
            let (action, peers, ports) = match matches {
                Ok(matches) => (*action, cluster_peers(&matches.peers), &matches.ports),
                // What an Accept would have meant is not known: it grants nothing. What a Deny or a Pass would have
                // stopped or let go on to a rule that stops it is not known either: nothing gets past it.
                Err(_) if *action == Action::Accept => continue,
                Err(_) => (Action::Deny, Peers::ANYONE, &Ports::Any),
            };
            let draft = Draft {
                section,
                priority: policy.priority,
                rule: self.rule(&policy.id, 0, false, index),
                effect: Effect::Ordered(action),
                audit: policy.audit,
                peers,
                parts: DraftPart::plain(PortSet::new([ports], self.own)),
            };
            self.push(draft);
        }
    }

    fn cilium(&mut self, policy: &CiliumPolicy, specs: &[u16]) {
        let mut isolates = false;
        for &spec in specs {
            let Some(rule) = policy.rules.get(usize::from(spec)) else { continue };
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
            let (default_deny, allows, denies) = match self.direction {
                Direction::Ingress => (default_deny_ingress, ingress, ingress_deny),
                Direction::Egress => (default_deny_egress, egress, egress_deny),
            };
            isolates |= default_deny;
            for (index, allow) in usable(allows) {
                let rule = self.rule(&policy.id, *number, false, index);
                self.cilium_allow(policy, &rule, allow);
            }
            for (index, deny) in denies.iter().enumerate() {
                let usable = deny.as_ref().ok().map(|CiliumDeny { peers, ports }| (self.cilium_peers(peers), ports));
                // A deny that cannot be used, or of peers that are not all known, denies everything.
                let (peers, ports) = usable.filter(|(peers, _)| !peers.others).unwrap_or((Peers::ANYONE, &Ports::Any));
                let draft = Draft {
                    section: Section::Deny,
                    priority: 0,
                    rule: self.rule(&policy.id, *number, true, index),
                    effect: Effect::Only,
                    audit: policy.audit,
                    peers,
                    parts: DraftPart::plain(PortSet::new([ports], self.own)),
                };
                self.push(draft);
            }
        }
        if isolates {
            self.isolating.push((policy.id.clone(), false, policy.audit));
        }
    }

    /// An element may have some ports with and some without application rules.
    fn cilium_allow(&mut self, policy: &CiliumPolicy, rule: &RuleRef, allow: &CiliumAllow) {
        let peers = self.cilium_peers(&allow.peers);
        let plain = allow.ports.iter().filter(|ports| ports.application == Application::None);
        let plain = DraftPart::plain(PortSet::new(plain.map(|ports| &ports.ports), self.own));
        let mut proxied = Vec::new();
        for (element, ports) in (0..).zip(&allow.ports) {
            // Whatever protocols the ports are for, the parsers speak these only.
            let protocols: &[Protocol] = match ports.application.protocol() {
                None => continue,
                Some(AppProtocol::Http | AppProtocol::Tls) => &[Protocol::TCP],
                Some(AppProtocol::Dns) => &[Protocol::TCP, Protocol::UDP],
            };
            let list = Some((element, ports.application.clone()));
            let ports = PortSet::new([&ports.ports], self.own).within(protocols);
            proxied.push(DraftPart { ports, list });
        }
        for (section, parts) in [(Section::Plain, plain), (Section::Application, proxied)] {
            let (rule, peers, audit) = (rule.clone(), peers.clone(), policy.audit);
            self.push(Draft { section, priority: 0, rule, effect: Effect::Only, audit, peers, parts });
        }
    }

    /// Sorts everything and gives it its numbers.
    fn number(mut self) -> Lowered {
        if self.learns {
            // Whatever else was to be seen there: without these answers the names' addresses are not known.
            self.seen.extend([Protocol::TCP, Protocol::UDP].map(|protocol| ((protocol, DNS_PORT), AppProtocol::Dns)));
        }
        let mut drafts = self.drafts;
        drafts.sort_by(|one, other| {
            let key = |draft: &Draft| (draft.section, draft.priority);
            key(one).cmp(&key(other)).then_with(|| one.rule.cmp(&other.rule))
        });
        let rules = numbered(drafts.iter().map(|draft| &draft.rule));
        let named = drafts.iter().map(|draft| &draft.rule.policy).chain(self.isolating.iter().map(|(id, _, _)| id));
        let policies = numbered(named);
        let predicates = numbered(drafts.iter().flat_map(|draft| &draft.peers.predicates));
        let mut priorities: BTreeMap<(Section, u16), BTreeSet<&PolicyRef>> = BTreeMap::new();
        for draft in &drafts {
            priorities.entry((draft.section, draft.priority)).or_default().insert(&draft.rule.policy);
        }
        let mut by_predicate = vec![Vec::new(); predicates.len()];
        let mut anyone = Vec::new();
        let (mut entries, mut lists) = (Vec::new(), Vec::new());
        for (index, draft) in (0..u32::MAX).zip(&drafts) {
            if draft.peers.anyone {
                anyone.push(index);
            }
            for predicate in &draft.peers.predicates {
                let list = predicates.get(predicate).and_then(|&at| by_predicate.get_mut(at as usize));
                if let Some(list) = list
                    && list.last() != Some(&index)
                {
                    list.push(index);
                }
            }
            let together = priorities.get(&(draft.section, draft.priority)).map_or(0, BTreeSet::len);
            entries.push(Entry {
                section: draft.section,
                effect: draft.effect,
                priority: draft.priority,
                tied: together > 1,
                rule: rules.get(&draft.rule).copied().unwrap_or(u32::MAX),
                policy: policies.get(&draft.rule.policy).copied().unwrap_or(u32::MAX),
                audit: draft.audit,
                parts: draft.parts.iter().map(|part| part.numbered(&draft.rule, &mut lists)).collect(),
            });
        }
        let isolation = |dry_runs: bool| {
            let least = |network_only: bool| {
                let counted = self
                    .isolating
                    .iter()
                    .filter(|(_, network, audit)| (dry_runs || !*audit) && (*network || !network_only));
                counted.filter_map(|(id, _, _)| policies.get(id)).min().copied()
            };
            Isolation { by: least(false), network: least(true) }
        };
        Lowered {
            enforced: isolation(false),
            all: isolation(true),
            rules: rules.into_keys().cloned().collect(),
            lists,
            policies: policies.into_keys().cloned().collect(),
            predicates: predicates.into_keys().cloned().collect(),
            entries,
            by_predicate,
            anyone,
            groups: self.asked_groups,
            seen: self.seen,
        }
    }
}

/// Numbers for values, in their order.
fn numbered<'a, T: Ord>(values: impl Iterator<Item = &'a T>) -> BTreeMap<&'a T, u32> {
    let distinct: BTreeSet<&T> = values.collect();
    distinct.into_iter().zip(0..).collect()
}

fn short(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}

/// The rules that can be used, each with its index in the whole list.
fn usable<T>(rules: &[Usable<T>]) -> impl Iterator<Item = (usize, &T)> {
    rules.iter().enumerate().filter_map(|(index, rule)| Some((index, rule.as_ref().ok()?)))
}
