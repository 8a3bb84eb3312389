//! From the rules that a peer is meant by to its row: the decision on every protocol and port.

use std::collections::BTreeMap;

use super::bits::{Bits, Table};
use super::lower::{Effect, Entry, Isolation, Lowered, Section};
use super::port_space::{PortRange, Spans, cover};
use super::program::{Program, RowKey};
use super::row::Row;
use crate::flow::{Judgement, Origin, Outcome, Protocol, Proxied, Reason, Verdict};
use crate::model::cluster_network_policy::Action;

/// A [`Reason`], by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    Rule(u32),
    Isolated(u32),
    NoPolicy,
    OwnNode,
}

/// An [`Outcome`], by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    Allow(Cause),
    Deny(Cause),
}

/// A verdict with its reason, by number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Decision {
    Final(Ending),
    /// The rules, ascending, and what follows without them.
    Proxied(Vec<u32>, Ending),
}

/// What is decided without the dry runs, and with them where that differs.
type Judged = (Decision, Option<Decision>);

/// The row of the peers with this key.
pub(super) fn row<D: Clone>(program: &Program, key: &RowKey, mut decide: impl FnMut(Judgement) -> D) -> Row<D> {
    let lowered = program.lowered();
    let entries: Vec<&Entry> = key.entries.iter().filter_map(|&index| lowered.entries.get(index as usize)).collect();
    let mut fold = Fold::new(lowered, &entries, key.origin);
    let other = fold.decide();
    let spans = fold.spans(key);
    let covered = cover(other, &spans);
    let mut known: BTreeMap<u32, D> = BTreeMap::new();
    let decisions = fold.in_order();
    let mut row = Vec::with_capacity(covered.len());
    for (prefix, number) in covered {
        let decision = match known.get(&number) {
            Some(decision) => decision.clone(),
            None => {
                let Some(judged) = decisions.get(&number) else { continue };
                let decision = decide(judgement(lowered, judged));
                known.insert(number, decision.clone());
                decision
            }
        };
        row.push((prefix, decision));
    }
    Row { entries: row }
}

/// The entries that a peer is meant by, by their place among them, and which of them are active at the moment.
struct Fold<'a> {
    lowered: &'a Lowered,
    entries: &'a [&'a Entry],
    origin: Origin,
    /// Where each section ends.
    ends: [usize; 5],
    active: Bits,
    /// The entries that are not dry runs; none where the dry runs change nothing.
    enforced: Option<Bits>,
    scratch: Bits,
    numbers: BTreeMap<Judged, u32>,
}

impl<'a> Fold<'a> {
    fn new(lowered: &'a Lowered, entries: &'a [&'a Entry], origin: Origin) -> Self {
        let count = entries.len();
        let end = |section: Section| entries.partition_point(|entry| entry.section <= section);
        let mut active = Bits::none(count);
        for (place, _) in entries.iter().enumerate().filter(|(_, entry)| entry.ports.every) {
            active.insert(place);
        }
        let dry_runs = lowered.enforced != lowered.all || entries.iter().any(|entry| entry.audit);
        let enforced = dry_runs.then(|| {
            let mut enforced = Bits::none(count);
            for (place, _) in entries.iter().enumerate().filter(|(_, entry)| !entry.audit) {
                enforced.insert(place);
            }
            enforced
        });
        Self {
            lowered,
            entries,
            origin,
            ends: [Section::Admin, Section::Deny, Section::Plain, Section::Application, Section::Baseline].map(end),
            active,
            enforced,
            scratch: Bits::none(count),
            numbers: BTreeMap::new(),
        }
    }

    /// The number of what is decided while these entries are active.
    fn decide(&mut self) -> u32 {
        let judged = match &self.enforced {
            None => (self.judge(&self.active, self.lowered.all), None),
            Some(enforced) => {
                self.scratch.assign_masked(&self.active, enforced);
                let without = self.judge(&self.scratch, self.lowered.enforced);
                let with = self.judge(&self.active, self.lowered.all);
                let differs = with != without;
                (without, differs.then_some(with))
            }
        };
        let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        *self.numbers.entry(judged).or_insert(next)
    }

    /// The decisions by their numbers.
    fn in_order(&self) -> BTreeMap<u32, &Judged> {
        self.numbers.iter().map(|(judged, number)| (*number, judged)).collect()
    }

    /// The active entries of a section.
    fn section<'b>(&'b self, active: &'b Bits, section: Section) -> impl Iterator<Item = &'a Entry> + use<'a, 'b> {
        let [admin, deny, plain, application, baseline] = self.ends;
        let (first, end) = match section {
            Section::Admin => (0, admin),
            Section::Deny => (admin, deny),
            Section::Plain => (deny, plain),
            Section::Application => (plain, application),
            Section::Baseline => (application, baseline),
        };
        active.range(first, end).filter_map(|place| self.entries.get(place).copied())
    }

    /// Which decision these entries make together.
    fn judge(&self, active: &Bits, isolation: Isolation) -> Decision {
        if self.origin == Origin::OwnNode {
            let denied = self.section(active, Section::Deny).next();
            return Decision::Final(
                denied.map_or(Ending::Allow(Cause::OwnNode), |entry| Ending::Deny(Cause::Rule(entry.rule))),
            );
        }
        match ordered(self.section(active, Section::Admin)) {
            Some((Action::Accept, rule)) => return Decision::Final(Ending::Allow(Cause::Rule(rule))),
            Some((Action::Deny, rule)) => return Decision::Final(Ending::Deny(Cause::Rule(rule))),
            Some((Action::Pass, _)) | None => {}
        }
        if let Some(entry) = self.section(active, Section::Deny).next() {
            return Decision::Final(Ending::Deny(Cause::Rule(entry.rule)));
        }
        let without = self.without_application(active, isolation);
        let mut rules: Vec<u32> = Vec::new();
        let (mut dns, mut stream) = (false, false);
        for entry in self.section(active, Section::Application) {
            dns |= entry.effect == Effect::Dns;
            stream |= entry.effect == Effect::Stream;
            if rules.last() != Some(&entry.rule) {
                rules.push(entry.rule);
            }
        }
        // One port cannot have two parsers: then neither's rules grant anything.
        if rules.is_empty() || (dns && stream) {
            return Decision::Final(without);
        }
        Decision::Proxied(rules, without)
    }

    /// What follows if no application rule is counted.
    fn without_application(&self, active: &Bits, isolation: Isolation) -> Ending {
        if let Some(entry) = self.section(active, Section::Plain).next() {
            return Ending::Allow(Cause::Rule(entry.rule));
        }
        if self.origin == Origin::Hairpin
            && let Some(policy) = isolation.network
        {
            return Ending::Allow(Cause::Isolated(policy));
        }
        if let Some(policy) = isolation.by {
            return Ending::Deny(Cause::Isolated(policy));
        }
        match ordered(self.section(active, Section::Baseline)) {
            Some((Action::Accept, rule)) => Ending::Allow(Cause::Rule(rule)),
            Some((Action::Deny, rule)) => Ending::Deny(Cause::Rule(rule)),
            Some((Action::Pass, _)) | None => Ending::Allow(Cause::NoPolicy),
        }
    }

    /// What happens on each port, of the protocols that a rule names.
    fn spans(&mut self, key: &RowKey) -> Vec<Spans> {
        let resolved: Vec<Option<Vec<PortRange>>> = self
            .entries
            .iter()
            .map(|entry| (!entry.ports.named.is_empty()).then(|| entry.ports.resolved(&key.named_ports)))
            .collect();
        let ranges: Vec<&[PortRange]> = self
            .entries
            .iter()
            .zip(&resolved)
            .map(|(entry, resolved)| resolved.as_deref().unwrap_or(&entry.ports.ranges))
            .collect();
        let mut protocols: Vec<Protocol> = Vec::new();
        for ranges in &ranges {
            let each = ranges.chunk_by(|one, next| one.protocol == next.protocol);
            protocols.extend(each.filter_map(<[_]>::first).map(|range| range.protocol));
        }
        protocols.sort_unstable();
        protocols.dedup();
        let mut cuts = Cuts(Vec::new());
        protocols
            .into_iter()
            .map(|protocol| {
                let of: Vec<&[PortRange]> = ranges
                    .iter()
                    .map(|ranges| {
                        let first = ranges.partition_point(|range| range.protocol < protocol);
                        let end = ranges.partition_point(|range| range.protocol <= protocol);
                        ranges.get(first..end).unwrap_or(&[])
                    })
                    .collect();
                cuts.reset();
                for range in of.iter().copied().flatten() {
                    cuts.add(range.first);
                    if let Some(behind) = range.last.checked_add(1) {
                        cuts.add(behind);
                    }
                }
                Spans { protocol, decisions: self.sweep(&mut cuts, &of) }
            })
            .collect()
    }

    /// Walks over the ports of one protocol, and decides wherever the active entries change.
    fn sweep(&mut self, cuts: &mut Cuts, ranges: &[&[PortRange]]) -> Vec<(u16, u32)> {
        let ports = cuts.ports();
        // An entry's ranges neither overlap nor touch: each is turned on where it begins, and off behind its end.
        let mut changes = Table::new(ports.len(), self.entries.len());
        for (place, ranges) in ranges.iter().enumerate() {
            for range in *ranges {
                changes.toggle(cuts.rank(range.first), place);
                if let Some(behind) = range.last.checked_add(1) {
                    changes.toggle(cuts.rank(behind), place);
                }
            }
        }
        let before = self.active.clone();
        let mut decisions: Vec<(u16, u32)> = Vec::with_capacity(ports.len());
        for (port, change) in ports.into_iter().zip(changes.rows()) {
            self.active.toggle(change);
            let decision = self.decide();
            if decisions.last().is_none_or(|(_, last)| *last != decision) {
                decisions.push((port, decision));
            }
        }
        self.active = before;
        decisions
    }
}

/// The first match of each policy, and of policies with one priority the strictest. Entries come by priority, then policy.
fn ordered<'a>(entries: impl Iterator<Item = &'a Entry>) -> Option<(Action, u32)> {
    let mut best: Option<(Action, &Entry)> = None;
    let mut policy = None;
    for entry in entries {
        let Effect::Ordered(action) = entry.effect else { continue };
        if best.is_some_and(|(_, best)| best.priority != entry.priority) {
            break;
        }
        if policy == Some(entry.policy) {
            continue;
        }
        policy = Some(entry.policy);
        if best.is_none_or(|(least, _)| action < least) {
            best = Some((action, entry));
        }
        if !entry.tied {
            break;
        }
    }
    best.map(|(action, entry)| (action, entry.rule))
}

/// A set of ports that knows how many lie below one of them.
struct Cuts(Vec<u16>);

impl Cuts {
    /// Port 0 only.
    fn reset(&mut self) {
        self.0.clear();
        self.0.push(0);
    }

    fn add(&mut self, port: u16) {
        self.0.push(port);
    }

    /// All of them, ascending. After this, [`Cuts::rank`] can be asked.
    fn ports(&mut self) -> Vec<u16> {
        self.0.sort_unstable();
        self.0.dedup();
        self.0.clone()
    }

    /// How many lie below a port.
    fn rank(&self, port: u16) -> usize {
        self.0.partition_point(|cut| *cut < port)
    }
}

/// A decision in words.
fn judgement(lowered: &Lowered, (enforced, all): &Judged) -> Judgement {
    let mut judgement = stated(lowered, enforced);
    judgement.audit = all.as_ref().map(|all| Box::new(stated(lowered, all)));
    judgement
}

fn stated(lowered: &Lowered, decision: &Decision) -> Judgement {
    let (verdict, reason) = match decision {
        Decision::Final(Ending::Allow(cause)) => (Verdict::Allow, reason(lowered, *cause)),
        Decision::Final(Ending::Deny(cause)) => (Verdict::Deny, reason(lowered, *cause)),
        Decision::Proxied(numbers, without) => {
            let rules = numbers.iter().filter_map(|&rule| lowered.rules.get(rule as usize)).cloned().collect();
            let otherwise = match without {
                Ending::Allow(cause) => Outcome::Allow(reason(lowered, *cause)),
                Ending::Deny(cause) => Outcome::Deny(reason(lowered, *cause)),
            };
            let least = numbers.first().map_or(Reason::NoPolicy, |&rule| reason(lowered, Cause::Rule(rule)));
            (Verdict::Redirect(Proxied { rules, otherwise }), least)
        }
    };
    Judgement { verdict, reason, audit: None }
}

fn reason(lowered: &Lowered, cause: Cause) -> Reason {
    match cause {
        Cause::Rule(rule) => lowered.rules.get(rule as usize).cloned().map_or(Reason::NoPolicy, Reason::Rule),
        Cause::Isolated(policy) => {
            lowered.policies.get(policy as usize).cloned().map_or(Reason::NoPolicy, Reason::Isolated)
        }
        Cause::NoPolicy => Reason::NoPolicy,
        Cause::OwnNode => Reason::OwnNode,
    }
}
