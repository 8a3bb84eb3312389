//! Carries a file of vectors out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::judge::Judge;
use super::probe::{Fate, Leg, Probe, enforced, fate, is_named, recorded};
use super::schema::{Endpoint, Expected, Family, Faulty, Fixture, Mode, Row, Step, Suite, Vector, Via};
use super::world::{Fault, World};
use crate::cluster::PodKey;
use crate::flow::{Direction, Judgement, Origin, Outcome as Final, Protocol, Query, Verdict};
use crate::model::Text;
use crate::parse::{Issue, Severity};

/// Failures that are kept in full; the others are only counted.
pub const MAX_FAILURES: usize = 10_000;

/// Who judges.
#[derive(Clone, Copy)]
pub struct Judges<'a> {
    /// Whose answers count.
    pub judge: &'a dyn Fn() -> Box<dyn Judge>,
    /// Who is asked beside it, and has to answer the same.
    pub beside: Option<&'a dyn Fn() -> Box<dyn Judge>>,
}

impl fmt::Debug for Judges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judges").field("beside", &self.beside.is_some()).finish_non_exhaustive()
    }
}

/// Numbers of probes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// As expected.
    pub passed: usize,
    /// Not as expected.
    pub failed: usize,
    /// Run, and not judged: [`super::schema::UNDEFINED_TAGS`].
    pub undefined: usize,
    /// Not run. There are none.
    pub skipped: usize,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.undefined += other.undefined;
        self.skipped += other.skipped;
    }
}

impl Counts {
    /// All probes.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.passed + self.failed + self.undefined + self.skipped
    }
}

/// What came of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Probes.
    pub counts: Counts,
    /// Probes by mode.
    pub by_mode: BTreeMap<Mode, Counts>,
    /// What is not as expected, in the order of the file.
    pub failures: Vec<Failure>,
    /// Failures beyond [`MAX_FAILURES`].
    pub not_kept: usize,
    /// Vectors that were run and not judged.
    pub undefined: Vec<Undefined>,
    /// Vectors that could not be run, or not to their end; their other probes count as failed, and at least one.
    pub faulty: Vec<Faulty>,
    /// Faults of objects that were applied, by vector: the vectors that failed only.
    pub issues: BTreeMap<Text, Vec<String>>,
}

impl Outcome {
    /// A vector cannot go on, after so many of its probes.
    fn fault(&mut self, vector: &Vector, mode: Mode, judged: usize, Fault { path, message }: Fault) {
        let rows = vector.steps.iter().flat_map(|step| &step.expect);
        let probes: usize = rows.map(|row| pairs(row).count()).sum();
        let left = Counts { failed: probes.saturating_sub(judged).max(1), ..Counts::default() };
        self.counts += left;
        *self.by_mode.entry(mode).or_default() += left;
        let issue = Issue { severity: Severity::Refused, path, message };
        self.faulty.push(Faulty { vector: Text::clone(&vector.id), issues: vec![issue] });
    }
}

/// A vector that was run and not judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undefined {
    /// Its id.
    pub vector: Text,
    /// The tag that says so.
    pub tag: Text,
    /// Its probes.
    pub probes: usize,
    /// Those that are as its rows say.
    pub agree: usize,
}

/// A probe that is not as expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Id of the vector.
    pub vector: Text,
    /// Its title.
    pub title: Text,
    /// How pods are reached.
    pub mode: Mode,
    /// The step's number, from 1, and name.
    pub step: (usize, Text),
    /// Path of the row in the file.
    pub path: String,
    /// Source.
    pub from: Endpoint,
    /// Destination.
    pub to: Endpoint,
    /// Port, or ICMP type.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Address family.
    pub family: Family,
    /// What is sent, if the row says.
    pub request: Option<String>,
    /// Verdict that is expected.
    pub expected: Expected,
    /// Verdict that came out.
    pub got: Expected,
    /// What is wrong.
    pub wrong: Wrong,
    /// The gates on the way, in order: egress at the source, ingress at the destination.
    pub gates: Vec<Gate>,
}

/// What a gate on the way of a probe says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// Direction.
    pub direction: Direction,
    /// The pod whose gate it is.
    pub subject: String,
    /// The other side, as this gate sees it.
    pub peer: String,
    /// Whether the other side is the address of a Service, which is judged again behind it.
    pub service: bool,
    /// `allow`, `deny`, `redirect` or `defer`.
    pub verdict: &'static str,
    /// The rule that decided, or what did instead of one.
    pub rule: String,
    /// Verdict and rule in a line, with what the proxy has to do and what is recorded.
    pub answer: String,
}

/// What is wrong with a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// The verdict.
    Verdict,
    /// The verdict, by the backend that is chosen: backends of one Service differ.
    Backends,
    /// What is recorded.
    Audit(Expected),
    /// Another rule decided than `rule` says.
    Rule,
    /// The two judges differ: the question, and both answers.
    Judges(String),
    /// No earlier row opened the flow that is said to be established.
    NotOpen,
}

impl Wrong {
    /// A word for it.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Verdict => "verdict",
            Self::Backends => "backends",
            Self::Audit(_) => "audit",
            Self::Rule => "rule",
            Self::Judges(_) => "judges",
            Self::NotOpen => "connection",
        }
    }
}

/// A flow, by what a row says of it.
type FlowKey = (Endpoint, Endpoint, Protocol, u16, Family);

/// How a flow was opened.
#[derive(Debug, Clone, Default)]
struct Opened {
    passed: bool,
    proxied: bool,
    /// The revisions of the gates on its way.
    gates: BTreeMap<PodKey, Option<u64>>,
}

/// Runs all vectors of a file, each on a cluster of its own.
#[must_use]
pub fn run(suite: &Suite, judges: Judges<'_>) -> Outcome {
    let mut outcome = Outcome { faulty: suite.faulty.clone(), ..Outcome::default() };
    outcome.counts.failed += suite.faulty.len();
    for vector in &suite.vectors {
        let mut undefined = Counts::default();
        for mode in vector.modes() {
            let mut run = Run::new(suite, vector, mode, judges);
            let mut steps = vector.steps.iter().enumerate();
            let fault = steps.try_for_each(|(index, step)| run.step(index, step)).err();
            let judged = run.counts.total();
            run.finish(&mut outcome, &mut undefined);
            if let Some(fault) = fault {
                outcome.fault(vector, mode, judged, fault);
            }
        }
        if let Some(tag) = vector.undefined() {
            outcome.undefined.push(Undefined {
                vector: Text::clone(&vector.id),
                tag: Text::clone(tag),
                probes: undefined.total(),
                agree: undefined.passed,
            });
        }
    }
    outcome
}

/// One vector, in one mode.
struct Run<'a> {
    vector: &'a Vector,
    mode: Mode,
    world: World,
    judge: Box<dyn Judge>,
    beside: Option<Box<dyn Judge>>,
    flows: BTreeMap<FlowKey, Opened>,
    /// As if every vector were judged.
    counts: Counts,
    /// Probes on which the judges differ: these fail in a vector that is not judged too.
    differ: usize,
    failures: Vec<Failure>,
}

impl<'a> Run<'a> {
    fn new(suite: &Suite, vector: &'a Vector, mode: Mode, judges: Judges<'_>) -> Self {
        let world = suite.fixtures.get(&vector.fixture).map_or_else(|| World::new(&Fixture::default()), World::new);
        let (judge, beside) = ((judges.judge)(), judges.beside.map(|make| make()));
        let (flows, failures) = (BTreeMap::new(), Vec::new());
        let mut run =
            Self { vector, mode, world, judge, beside, flows, counts: Counts::default(), differ: 0, failures };
        run.tell();
        run
    }

    /// Tells the judges what happened.
    fn tell(&mut self) {
        let events = self.world.take_events();
        self.judge.apply(&events);
        if let Some(beside) = &mut self.beside {
            beside.apply(&events);
        }
    }

    fn step(&mut self, index: usize, step: &'a Step) -> Result<(), Fault> {
        self.world.step(step)?;
        self.make_up(step)?;
        self.tell();
        for row in &step.expect {
            for (from, to) in pairs(row) {
                self.probe((index + 1, &step.name), &Probe { row, from, to, mode: self.mode })?;
            }
        }
        Ok(())
    }

    /// Makes up the Services that the step's probes go through and nobody declared.
    fn make_up(&mut self, step: &Step) -> Result<(), Fault> {
        if self.mode == Mode::PodIp && step.expect.iter().all(|row| row.via != Some(Via::Service)) {
            return Ok(());
        }
        let mut wanted: BTreeMap<PodKey, BTreeSet<(Protocol, u16, u16)>> = BTreeMap::new();
        for row in &step.expect {
            for to in &row.to.endpoints {
                let probe = Probe { row, from: to, to, mode: self.mode };
                if let Some((pod, port)) = probe.makes_up(&self.world) {
                    wanted.entry(pod).or_default().insert(port);
                }
            }
        }
        self.world.make_up(&wanted, &step.path)
    }

    fn probe(&mut self, step: (usize, &Text), probe: &Probe<'_>) -> Result<(), Fault> {
        let mut difference = None;
        let (judge, beside) = (&self.judge, self.beside.as_deref());
        let ways = probe.legs(&self.world, &mut |node, query| {
            let judgement = judge.judge(node, query);
            if let Some(beside) = beside {
                let other = beside.judge(node, query);
                if other != judgement && difference.is_none() {
                    difference = Some(differs(query, &judgement, &other));
                }
            }
            judgement
        })?;
        let row = probe.row;
        let request = row.request.as_ref();
        // Nobody is behind the Service: the service proxy lets nothing through.
        let none = Fate { verdict: Expected::Deny, because: Vec::new(), proxied: false };
        let fates: Vec<Fate> = ways.iter().map(|legs| fate(legs, request, enforced)).collect();
        let mut got = fates.first().cloned().unwrap_or_else(|| none.clone());
        let other = fates.iter().position(|fate| fate.verdict != row.verdict);
        let legs = ways.get(other.unwrap_or(0)).map_or(&[] as &[Leg], Vec::as_slice);
        let mut wrong = None;
        if let Some(other) = other.and_then(|other| fates.get(other)) {
            wrong = Some(if other.verdict == got.verdict { Wrong::Verdict } else { Wrong::Backends });
            got = other.clone();
        }
        let key = (probe.from.clone(), probe.to.clone(), row.protocol, row.port, row.family);
        let gates = || {
            let gate = |leg: &Leg| {
                let pod = leg.query.subject.clone();
                let revision = self.judge.revision(leg.node.as_ref(), &pod);
                (pod, revision)
            };
            ways.iter().flatten().map(gate).collect::<BTreeMap<_, _>>()
        };
        if row.established {
            // What is not told to have been opened was opened before anything was in force.
            let opened = self.flows.get(&key).cloned().unwrap_or(Opened { passed: true, ..Opened::default() });
            if !opened.passed {
                wrong = Some(Wrong::NotOpen);
            } else if !opened.proxied && opened.gates == gates() && opened.gates.values().all(Option::is_some) {
                // No gate looks at it again: a name that ended, say, cuts no flow.
                got.verdict = Expected::Allow;
            } else if got.proxied && !opened.proxied && got.verdict == Expected::Allow {
                // A direct flow whose verdict becomes REDIRECT is reset (DESIGN 6.5).
                got.verdict = Expected::Deny;
            }
        } else {
            let passed = got.verdict != Expected::Deny;
            let opened = Opened { passed, proxied: got.proxied, gates: gates() };
            // An attempt that fails does not end a connection that there is.
            if passed || !self.flows.get(&key).is_some_and(|open| open.passed) {
                self.flows.insert(key, opened);
            }
        }
        if wrong.as_ref().is_none_or(|wrong| *wrong == Wrong::Verdict) {
            wrong = (got.verdict != row.verdict).then_some(Wrong::Verdict);
        }
        let record = || ways.first().map_or_else(|| none.clone(), |legs| fate(legs, request, recorded));
        if wrong.is_none()
            && let Some(expected) = row.audit
        {
            let record = record();
            wrong = (record.verdict != expected).then_some(Wrong::Audit(record.verdict));
        }
        if wrong.is_none()
            && let Some(name) = &row.rule
        {
            let because = if row.audit.is_some() { record().because } else { got.because.clone() };
            wrong = (!because.iter().any(|(_, reason)| is_named(reason, name))).then_some(Wrong::Rule);
        }
        if difference.is_some() {
            self.differ += 1;
        }
        let wrong = difference.map(Wrong::Judges).or(wrong);
        let Some(wrong) = wrong else {
            self.counts.passed += 1;
            return Ok(());
        };
        self.counts.failed += 1;
        if self.failures.len() < MAX_FAILURES
            && (self.vector.undefined().is_none() || matches!(wrong, Wrong::Judges(_)))
        {
            let failure = self.failure(step, probe, got.verdict, wrong, legs);
            self.failures.push(failure);
        }
        Ok(())
    }

    fn failure(&self, step: (usize, &Text), probe: &Probe<'_>, got: Expected, wrong: Wrong, legs: &[Leg]) -> Failure {
        let row = probe.row;
        Failure {
            vector: Text::clone(&self.vector.id),
            title: Text::clone(&self.vector.title),
            mode: self.mode,
            step: (step.0, Text::clone(step.1)),
            path: row.path.clone(),
            from: probe.from.clone(),
            to: probe.to.clone(),
            port: row.port,
            protocol: row.protocol,
            family: row.family,
            request: row.request.as_ref().map(ToString::to_string),
            expected: row.verdict,
            got,
            wrong,
            gates: legs.iter().map(gate).collect(),
        }
    }

    fn finish(self, outcome: &mut Outcome, undefined: &mut Counts) {
        let mut counts = self.counts;
        if self.vector.undefined().is_some() {
            *undefined += counts;
            counts = Counts { undefined: counts.total() - self.differ, failed: self.differ, ..Counts::default() };
        }
        outcome.counts += counts;
        *outcome.by_mode.entry(self.mode).or_default() += counts;
        if !self.failures.is_empty() {
            let issues = self.world.issues().iter().map(|(object, issue)| format!("{object}: {issue}"));
            outcome.issues.insert(Text::clone(&self.vector.id), issues.collect());
        }
        let room = MAX_FAILURES.saturating_sub(outcome.failures.len());
        outcome.not_kept += counts.failed.saturating_sub(self.failures.len().min(room));
        outcome.failures.extend(self.failures.into_iter().take(room));
    }
}

/// The probes of a row: the cross product, without those to oneself; one to oneself only if it is written so.
pub fn pairs(row: &Row) -> impl Iterator<Item = (&Endpoint, &Endpoint)> {
    let lists = row.from.list || row.to.list;
    row.from
        .endpoints
        .iter()
        .flat_map(|from| row.to.endpoints.iter().map(move |to| (from, to)))
        .filter(move |(from, to)| !lists || from != to)
}

fn differs(query: &Query, judgement: &Judgement, other: &Judgement) -> String {
    format!("{}: {} / {}", asked(query), answered(judgement), answered(other))
}

fn asked(query: &Query) -> String {
    format!("{} of {} {}", query.direction, query.subject, peer(query))
}

/// `to 10.0.0.1, port 80/TCP`.
fn peer(query: &Query) -> String {
    let Query { direction, peer, protocol, port, origin, .. } = query;
    let to = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let origin = match origin {
        Origin::Forwarded => "",
        Origin::OwnNode => " of its own node",
        Origin::Hairpin => " through its own Service",
    };
    format!("{to} {peer}{origin}, {}", port_text(*protocol, *port))
}

/// `80/TCP`, `ICMP type 8`.
#[must_use]
pub fn port_text(protocol: Protocol, port: u16) -> String {
    match protocol {
        Protocol::ICMP | Protocol::ICMPV6 => format!("{protocol} type {port}"),
        Protocol::TCP | Protocol::UDP | Protocol::SCTP => format!("{port}/{protocol}"),
        _ => protocol.to_string(),
    }
}

fn answered(judgement: &Judgement) -> String {
    let Judgement { verdict, reason, audit } = judgement;
    let mut text = format!("{} ({reason})", verdict.as_str());
    if let Verdict::Redirect(to) = verdict {
        let lists: Vec<String> = to.lists.iter().map(|list| list.at.to_string()).collect();
        let otherwise = match &to.otherwise {
            Final::Allow(reason) => format!("allow ({reason})"),
            Final::Deny(reason) => format!("deny ({reason})"),
        };
        text = match to.see.filter(|_| lists.is_empty()) {
            Some(seen) => format!("{otherwise}, by way of the proxy, which looks at {seen}"),
            None => format!("redirect to [{}], otherwise {otherwise}", lists.join("; ")),
        };
    }
    if let Some(audit) = audit {
        text = format!("{text}, recorded as {}", answered(audit));
    }
    text
}

/// What a gate on the way says.
#[must_use]
pub fn gate(leg: &Leg) -> Gate {
    let Query { subject, direction, .. } = &leg.query;
    Gate {
        direction: *direction,
        subject: subject.to_string(),
        peer: peer(&leg.query),
        service: leg.frontend,
        verdict: leg.judgement.verdict.as_str(),
        rule: leg.judgement.reason.to_string(),
        answer: answered(&leg.judgement),
    }
}
