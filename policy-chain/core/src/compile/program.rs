//! The policies that select a pod, for one direction of its traffic, as one ordered list of rules.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::fold;
use super::lower::{Entry, Isolation, Lowered, Lowering, Part, Section};
use super::predicate::Predicate;
use super::row::Row;
pub use super::select::{Selected, selects};
pub use super::view::PodView;
use crate::cluster::{CidrGroup, NamedPort, PodTemplate};
use crate::flow::{Direction, Judgement, Origin};
use crate::model::cilium::{CidrBlock, Entity};
use crate::model::selector::{LabelSource, Operator};
use crate::model::{PolicyRef, Text};
use crate::settings::Settings;

/// What policies say about one direction of a pod's traffic, for any peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    direction: Direction,
    lowered: Lowered,
    named_ports: Vec<Text>,
}

/// What has to be known of a peer.
#[derive(Clone, Copy)]
pub struct PeerFacts<'a> {
    /// Whether a predicate holds, by its index in [`Program::predicates`].
    pub holds: &'a dyn Fn(usize) -> bool,
    /// Its named ports, if it is a managed pod.
    pub named_ports: &'a [NamedPort],
    /// How its packets come.
    pub origin: Origin,
}

impl std::fmt::Debug for PeerFacts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerFacts")
            .field("named_ports", &self.named_ports)
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

/// All that a row depends on: peers with equal keys have equal rows. Of one program only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    /// The rules that the peer is meant by, ascending.
    pub(super) entries: Vec<u32>,
    /// The peer's ports of the names that those rules ask for, sorted.
    pub(super) named_ports: Vec<NamedPort>,
    pub(super) origin: Origin,
}

impl Program {
    /// The program of a pod.
    ///
    /// `policies` are all that select it in this direction, in any order; of `subject` its named ports count (on ingress), and
    /// what of it is to be seen; `groups` gives the addresses of a CIDR group, by name or by labels ([`networks`] does).
    #[must_use]
    pub fn new(
        direction: Direction,
        policies: &[Selected],
        subject: &PodTemplate,
        groups: &dyn Fn(&CidrBlock) -> Networks,
        settings: &Settings,
    ) -> Self {
        let lowered = Lowering::new(direction, subject, groups, settings).lower(policies);
        let names = lowered.entries.iter().flat_map(Entry::named).map(|(name, _)| name);
        let named_ports = names.collect::<BTreeSet<_>>().into_iter().cloned().collect();
        Self { direction, lowered, named_ports }
    }

    /// The direction.
    #[must_use]
    pub const fn direction(&self) -> Direction {
        self.direction
    }

    /// What the rules ask of peers: sorted, without doubles.
    #[must_use]
    pub fn predicates(&self) -> &[Predicate] {
        &self.lowered.predicates
    }

    /// The names of ports that each peer resolves (egress), sorted. If there are none, rows do not depend on the peer's
    /// named ports.
    #[must_use]
    pub fn named_ports(&self) -> &[Text] {
        &self.named_ports
    }

    /// Whether a CIDR group was asked for: if one changes, the program has to be made anew.
    #[must_use]
    pub const fn depends_on_groups(&self) -> bool {
        self.lowered.groups
    }

    /// Whether nothing is restricted, and nothing seen: every row says [`crate::flow::Reason::NoPolicy`] (and, to the own node,
    /// [`crate::flow::Reason::OwnNode`]).
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.lowered.entries.is_empty() && self.lowered.all == Isolation::default() && self.lowered.seen.is_empty()
    }

    /// The least policy whose default deny is in force.
    #[must_use]
    pub fn isolated_by(&self) -> Option<&PolicyRef> {
        self.policy(self.lowered.enforced.by)
    }

    /// The least policy whose default deny would be in force, were the dry runs.
    #[must_use]
    pub fn isolated_by_any(&self) -> Option<&PolicyRef> {
        self.policy(self.lowered.all.by)
    }

    fn policy(&self, index: Option<u32>) -> Option<&PolicyRef> {
        self.lowered.policies.get(index? as usize)
    }

    pub(super) const fn lowered(&self) -> &Lowered {
        &self.lowered
    }

    /// What the peer's row depends on. Cheaper by far than the row.
    #[must_use]
    pub fn key(&self, facts: &PeerFacts<'_>) -> RowKey {
        let holding: Vec<usize> = (0..self.lowered.predicates.len()).filter(|at| (facts.holds)(*at)).collect();
        self.key_of(&holding, facts.named_ports, facts.origin)
    }

    /// The same, where it is known which predicates hold: by their indexes, in any order.
    pub(super) fn key_of(&self, holding: &[usize], ports: &[NamedPort], origin: Origin) -> RowKey {
        let lowered = &self.lowered;
        let origin = match (origin, self.direction) {
            (Origin::OwnNode, Direction::Egress) => Origin::Forwarded,
            // Only what isolates as a NetworkPolicy is another thing for a pod that reaches itself.
            (Origin::Hairpin, _) if lowered.all.network.is_none() => Origin::Forwarded,
            (origin, _) => origin,
        };
        let mut entries: Vec<u32> = Vec::new();
        let of = |at: &usize| lowered.by_predicate.get(*at).into_iter().flatten().copied();
        if origin == Origin::OwnNode {
            let deny =
                |entry: &u32| lowered.entries.get(*entry as usize).is_some_and(|entry| entry.section == Section::Deny);
            let host = |at: &&usize| lowered.predicates.get(**at).is_some_and(names_host);
            entries.extend(holding.iter().filter(host).flat_map(of).filter(deny));
        } else {
            entries.extend(&lowered.anyone);
            entries.extend(holding.iter().flat_map(of));
        }
        entries.sort_unstable();
        entries.dedup();
        let mut named_ports = Vec::new();
        if !self.named_ports.is_empty() && !ports.is_empty() {
            let meant = entries.iter().filter_map(|&entry| lowered.entries.get(entry as usize));
            let wanted: Vec<_> = meant.flat_map(Entry::named).collect();
            let asked = |port: &&NamedPort| {
                wanted.iter().any(|(name, protocol)| port.name == *name && protocol.holds(port.protocol))
            };
            named_ports.extend(ports.iter().filter(asked).cloned());
            named_ports.sort();
            named_ports.dedup();
        }
        RowKey { entries, named_ports, origin }
    }

    /// What happens to a peer's packets.
    #[must_use]
    pub fn row(&self, facts: &PeerFacts<'_>) -> Row<Judgement> {
        self.row_of(&self.key(facts))
    }

    /// What happens to the packets of the peers with this key.
    #[must_use]
    pub fn row_of(&self, key: &RowKey) -> Row<Judgement> {
        self.map_row(key, |judgement| judgement)
    }

    /// The same, with something else in place of each judgement; it is asked for once for each that is in the row, in the
    /// order of their first entries.
    #[must_use]
    pub fn map_row<D: Clone>(&self, key: &RowKey, decision: impl FnMut(Judgement) -> D) -> Row<D> {
        fold::row(self, key, decision)
    }

    /// How many conditions on ports the row of this key is made of: its cost, in time and in entries.
    pub(super) fn weight(&self, key: &RowKey) -> usize {
        let entries = key.entries.iter().filter_map(|&index| self.lowered.entries.get(index as usize));
        let part = |part: &Part| 1 + part.ports.ranges.len() + part.ports.named.len().min(key.named_ports.len());
        entries.flat_map(|entry| &entry.parts).map(part).sum()
    }

    /// Whether nothing but dry runs is said: what cannot be put in force then restricts nothing.
    pub(super) fn is_dry_run(&self) -> bool {
        self.lowered.enforced == Isolation::default() && self.lowered.entries.iter().all(|entry| entry.audit)
    }

    /// What the row of a peer depends on that no predicate holds for and that has no named ports: only the rules for
    /// anyone are left.
    #[must_use]
    pub fn default_key(&self, origin: Origin) -> RowKey {
        self.key(&PeerFacts { holds: &|_| false, named_ports: &[], origin })
    }

    /// The row of a peer that no predicate holds for and that has no named ports.
    #[must_use]
    pub fn default_row(&self, origin: Origin) -> Row<Judgement> {
        self.row_of(&self.default_key(origin))
    }
}

/// Whether the predicate names the entity `host` itself (DESIGN 6.3): then a deny holds for the own node too.
#[must_use]
pub fn names_host(predicate: &Predicate) -> bool {
    match predicate {
        Predicate::Entity(entity) => *entity == Entity::Host,
        Predicate::Endpoints(selector) => selector.requirements.iter().any(|wanted| {
            wanted.source == LabelSource::Reserved
                && wanted.requirement.key.as_ref() == "host"
                && matches!(wanted.requirement.operator, Operator::In | Operator::Exists)
        }),
        Predicate::Pods { .. }
        | Predicate::Block { .. }
        | Predicate::Nodes(_)
        | Predicate::Services(_)
        | Predicate::Name(_) => false,
    }
}

/// The addresses of a CIDR block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks {
    /// Those that are known.
    pub known: Vec<IpNet>,
    /// Whether there are others: those of a group that cannot be used.
    pub others: bool,
}

/// The addresses of a CIDR block, of these groups if it is one; nothing for a group that is not there.
pub fn networks<'a>(groups: impl IntoIterator<Item = &'a CidrGroup>, block: &CidrBlock) -> Networks {
    let chosen = |group: &CidrGroup| match block {
        CidrBlock::Cidr(_) => false,
        CidrBlock::Group(name) => group.name == *name,
        CidrBlock::Groups(selector) => super::view::matches(selector, &group.labels),
    };
    match block {
        CidrBlock::Cidr(network) => Networks { known: vec![*network], others: false },
        CidrBlock::Group(_) | CidrBlock::Groups(_) => {
            let mut networks = Networks::default();
            for group in groups.into_iter().filter(|group| chosen(group)) {
                networks.others |= group.cidrs.is_err();
                networks.known.extend(group.cidrs.iter().flatten());
            }
            networks
        }
    }
}

#[cfg(test)]
mod tests;
