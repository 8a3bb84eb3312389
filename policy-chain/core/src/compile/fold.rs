//! From the rules that a peer is meant by to its row: the decision on every protocol and port.

use std::collections::{BTreeMap, HashMap};

use super::bits::Bits;
use super::lower::{Effect, Entry, Isolation, Lowered, Part, Section};
use super::port_space::{PortRange, Spans, cover};
use super::program::{Program, RowKey};
use super::row::Row;
use crate::flow::{AppProtocol, Judgement, Lists, Origin, Outcome, Protocol, Proxied, Reason, Verdict};
use crate::model::cluster_network_policy::Action;

/// A [`Reason`], by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Cause {
    Rule(u32),
    Isolated(u32),
    NoPolicy,
    OwnNode,
}

/// An [`Outcome`], by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Ending {
    Allow(Cause),
    Deny(Cause),
}

/// A verdict with its reason, by number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Decision {
    Final(Ending),
    /// The lists, and what follows without them.
    Proxied(Lists, Ending),
    /// It passes, for this reason, and the proxy looks at it.
    Seen(AppProtocol, Cause),
}

/// What changes from one port to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    /// A unit becomes active, or is not any more.
    Unit(usize),
    /// What the proxy looks for if the flow passes. Where one port's ends and the next one's begins, the latter comes last.
    See(Option<AppProtocol>),
}

/// What is decided without the dry runs, and with them where that differs.
type Judged = (Decision, Option<Decision>);

/// The row of the peers with this key.
pub(super) fn row<D: Clone>(program: &Program, key: &RowKey, mut decide: impl FnMut(Judgement) -> D) -> Row<D> {
    let lowered = program.lowered();
    let entries = key.entries.iter().filter_map(|&index| lowered.entries.get(index as usize));
    let units: Vec<Unit<'_>> =
        entries.flat_map(|entry| entry.parts.iter().map(move |part| Unit { entry, part })).collect();
    let mut fold = Fold::new(lowered, &units, key.origin);
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

/// A part of an entry that a peer is meant by.
#[derive(Clone, Copy)]
struct Unit<'a> {
    entry: &'a Entry,
    part: &'a Part,
}

/// The application lists that are active, and how many of them are for either parser.
#[derive(Debug, Clone)]
struct Active {
    lists: Lists,
    dns: usize,
}

impl Active {
    fn set(&mut self, lowered: &Lowered, number: usize, active: bool) {
        let Some(list) = lowered.lists.get(number) else { return };
        let dns = usize::from(list.application.protocol() == Some(AppProtocol::Dns));
        if active {
            self.lists.insert(number, list);
            self.dns += dns;
        } else {
            self.lists.remove(number);
            self.dns -= dns;
        }
    }

    /// The lists that hold. One port cannot have two parsers: then neither's rules grant anything.
    fn in_force(&self) -> Option<&Lists> {
        let lists = &self.lists;
        let mixed = self.dns > 0 && self.dns < lists.len();
        (!lists.is_empty() && !mixed).then_some(lists)
    }
}

/// What a peer is meant by, in the order of the entries, and what of it is active at the moment.
struct Fold<'a> {
    lowered: &'a Lowered,
    units: &'a [Unit<'a>],
    origin: Origin,
    /// Where each section ends.
    ends: [usize; 5],
    active: Bits,
    proxied: Active,
    /// The units that are not dry runs, and the active ones of their lists; none where the dry runs change nothing.
    enforced: Option<(Bits, Active)>,
    scratch: Bits,
    /// What the proxy looks for if the flow passes.
    see: Option<AppProtocol>,
    numbers: HashMap<Judged, u32>,
}

impl<'a> Fold<'a> {
    fn new(lowered: &'a Lowered, units: &'a [Unit<'a>], origin: Origin) -> Self {
        let count = units.len();
        let end = |section: Section| units.partition_point(|unit| unit.entry.section <= section);
        let none = Active { lists: Lists::with_places(lowered.lists.len()), dns: 0 };
        let dry_runs = lowered.enforced != lowered.all || units.iter().any(|unit| unit.entry.audit);
        let enforced = dry_runs.then(|| {
            let mut enforced = Bits::none(count);
            for (place, _) in units.iter().enumerate().filter(|(_, unit)| !unit.entry.audit) {
                enforced.insert(place);
            }
            (enforced, none.clone())
        });
        let mut fold = Self {
            lowered,
            units,
            origin,
            ends: [Section::Admin, Section::Deny, Section::Plain, Section::Application, Section::Baseline].map(end),
            active: Bits::none(count),
            proxied: none,
            enforced,
            scratch: Bits::none(count),
            see: None,
            numbers: HashMap::new(),
        };
        for (place, _) in units.iter().enumerate().filter(|(_, unit)| unit.part.ports.every) {
            fold.toggle(place);
        }
        fold
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Unit(place) => self.toggle(place),
            Change::See(see) => self.see = see,
        }
    }

    /// Makes a unit active, or not any more.
    fn toggle(&mut self, place: usize) {
        let active = self.active.toggle(place);
        let Some(Unit { entry, part }) = self.units.get(place) else { return };
        let Some(number) = part.list else { return };
        self.proxied.set(self.lowered, number, active);
        if let Some((_, proxied)) = &mut self.enforced
            && !entry.audit
        {
            proxied.set(self.lowered, number, active);
        }
    }

    /// The number of what is decided while these units are active.
    fn decide(&mut self) -> u32 {
        let judged = match &self.enforced {
            None => (self.judge(&self.active, &self.proxied, self.lowered.all), None),
            Some((enforced, proxied)) => {
                self.scratch.assign_masked(&self.active, enforced);
                let without = self.judge(&self.scratch, proxied, self.lowered.enforced);
                let with = self.judge(&self.active, &self.proxied, self.lowered.all);
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
        active.range(first, end).filter_map(|place| self.units.get(place).map(|unit| unit.entry))
    }

    /// Which decision these entries make together. What passes is looked at where it is to be seen; what comes from the own
    /// node never is (DESIGN 6.3).
    fn judge(&self, active: &Bits, proxied: &Active, isolation: Isolation) -> Decision {
        match (self.judge_rules(active, proxied, isolation), self.see) {
            (Decision::Final(Ending::Allow(cause)), Some(see)) if self.origin != Origin::OwnNode => {
                Decision::Seen(see, cause)
            }
            (decision, _) => decision,
        }
    }

    fn judge_rules(&self, active: &Bits, proxied: &Active, isolation: Isolation) -> Decision {
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
        match proxied.in_force() {
            Some(lists) => Decision::Proxied(lists.clone(), without),
            None => Decision::Final(without),
        }
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
            .units
            .iter()
            .map(|unit| (!unit.part.ports.named.is_empty()).then(|| unit.part.ports.resolved(&key.named_ports)))
            .collect();
        let ranges: Vec<&[PortRange]> = self
            .units
            .iter()
            .zip(&resolved)
            .map(|(unit, resolved)| resolved.as_deref().unwrap_or(&unit.part.ports.ranges))
            .collect();
        let mut protocols: Vec<Protocol> = Vec::new();
        for ranges in &ranges {
            let each = ranges.chunk_by(|one, next| one.protocol == next.protocol);
            protocols.extend(each.filter_map(<[_]>::first).map(|range| range.protocol));
        }
        protocols.extend(self.lowered.seen.keys().map(|(protocol, _)| *protocol));
        protocols.sort_unstable();
        protocols.dedup();
        let mut changes: Vec<(u16, Change)> = Vec::new();
        let mut spans = Vec::with_capacity(protocols.len());
        for protocol in protocols {
            changes.clear();
            for (place, ranges) in ranges.iter().enumerate() {
                let first = ranges.partition_point(|range| range.protocol < protocol);
                let end = ranges.partition_point(|range| range.protocol <= protocol);
                // A unit's ranges neither overlap nor touch: each is turned on where it begins, and off behind its end.
                for range in ranges.get(first..end).unwrap_or(&[]) {
                    changes.push((range.first, Change::Unit(place)));
                    changes.extend(range.last.checked_add(1).map(|behind| (behind, Change::Unit(place))));
                }
            }
            for ((_, port), see) in self.lowered.seen.range((protocol, 0)..=(protocol, u16::MAX)) {
                changes.push((*port, Change::See(Some(*see))));
                changes.extend(port.checked_add(1).map(|behind| (behind, Change::See(None))));
            }
            changes.sort_unstable();
            spans.push(Spans { protocol, decisions: self.sweep(&changes) });
        }
        spans
    }

    /// Walks over the ports of one protocol, and decides wherever the active units change.
    fn sweep(&mut self, changes: &[(u16, Change)]) -> Vec<(u16, u32)> {
        let before = (self.active.clone(), self.proxied.clone(), self.enforced.clone());
        let mut decisions: Vec<(u16, u32)> = Vec::new();
        if changes.first().is_none_or(|(port, _)| *port > 0) {
            decisions.push((0, self.decide()));
        }
        for of_a_port in changes.chunk_by(|one, next| one.0 == next.0) {
            of_a_port.iter().for_each(|(_, change)| self.change(*change));
            let decision = self.decide();
            if let Some((port, _)) = of_a_port.first()
                && decisions.last().is_none_or(|(_, last)| *last != decision)
            {
                decisions.push((*port, decision));
            }
        }
        (self.active, self.proxied, self.enforced) = before;
        self.see = None;
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
        Decision::Seen(see, cause) => {
            let reason = reason(lowered, *cause);
            (Verdict::Redirect(Proxied::seen(*see, reason.clone())), reason)
        }
        Decision::Proxied(lists, without) => {
            let (otherwise, why) = match without {
                Ending::Allow(cause) => (Outcome::Allow(reason(lowered, *cause)), cause),
                Ending::Deny(cause) => (Outcome::Deny(reason(lowered, *cause)), cause),
            };
            let first = lists.first().map(|list| Reason::Rule(list.at.rule.clone()));
            let reason = first.unwrap_or_else(|| reason(lowered, *why));
            (Verdict::Redirect(Proxied { lists: lists.clone(), see: None, otherwise }), reason)
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
