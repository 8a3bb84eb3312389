//! Carries a file of vectors out with packets.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_policy_core::cluster::{ObjectKey, PodKey, ServicePort};
use sluice_policy_core::flow::{Protocol, Verdict};
use sluice_policy_core::model::Text;
use sluice_policy_core::settings::Settings;
use sluice_policy_core::vector::Judge as _;
use sluice_policy_core::vector::judge::Compiled;
use sluice_policy_core::vector::probe::{Leg, Probe, Way};
use sluice_policy_core::vector::run::{gate, pairs, port_text};
use sluice_policy_core::vector::schema::{Endpoint, Expected, Family, Mode, PodSpec, Row, Step, Suite, Vector, Via};
use sluice_policy_core::vector::world::{Party, World};

use super::report::{Failure, Report};
use super::stage::{LiveError, Options, Stage};
use crate::prober::{Answer, Dial, Held, Transport};

/// How long a probe that has to pass may take: more than one repetition of a TCP SYN.
const PASS: Duration = Duration::from_secs(5);
/// How long silence is listened to. Packets cross namespaces in microseconds.
const DROP: Duration = Duration::from_millis(400);

/// What is told while it runs.
#[derive(Debug)]
pub enum Told<'a> {
    /// A cluster stands.
    Fixture {
        /// The fixture.
        name: &'a str,
        /// How long it took.
        took: Duration,
        /// How many pods it has.
        pods: usize,
    },
    /// A vector is through in a mode.
    Vector {
        /// Its id.
        id: &'a str,
        /// The mode.
        mode: Mode,
        /// How long it took.
        took: Duration,
    },
    /// A probe is not as expected.
    Failure(&'a Failure),
}

/// Runs a file, a cluster a fixture.
///
/// # Errors
/// [`LiveError`]. A probe that is not as expected is no error.
pub async fn run(
    suite: &Suite,
    options: &Options,
    tell: &mut (dyn FnMut(Told<'_>) + Send),
) -> Result<Report, LiveError> {
    let mut report = Report::default();
    let wanted = |vector: &&Vector| options.only.as_ref().is_none_or(|only| vector.id.contains(only.as_str()));
    for (name, fixture) in &suite.fixtures {
        let vectors: Vec<&Vector> =
            suite.vectors.iter().filter(|vector| vector.fixture == *name).filter(wanted).collect();
        if vectors.is_empty() {
            continue;
        }
        let begun = Instant::now();
        let mut stage = Stage::build(fixture, options).await?;
        tell(Told::Fixture { name, took: begun.elapsed(), pods: stage.town.pods.len() });
        for vector in vectors {
            let modes = vector.modes().into_iter().filter(|mode| options.mode.is_none_or(|only| only == *mode));
            for mode in modes {
                let begun = Instant::now();
                let mut act = Act::begin(&mut stage, vector, mode, options).await?;
                act.play(&mut report, tell).await?;
                tell(Told::Vector { id: &vector.id, mode, took: begun.elapsed() });
            }
        }
    }
    Ok(report)
}

type FlowKey = (Endpoint, Endpoint, Protocol, u16, Family);

/// One vector in one mode.
#[derive(Debug)]
pub struct Act<'s, 'a> {
    /// The cluster.
    pub stage: &'s mut Stage<'a>,
    vector: &'a Vector,
    mode: Mode,
    family: Family,
    gated: bool,
    /// What the cluster has to be.
    pub world: World,
    judge: Compiled,
    held: BTreeMap<FlowKey, Held>,
    /// Flows that a later row looks at again.
    looked_at: BTreeSet<FlowKey>,
}

/// A probe that is on its way.
struct Cell<'a> {
    row: &'a Row,
    from: &'a Endpoint,
    to: &'a Endpoint,
    expected: Expected,
    legs: Vec<Leg>,
    /// Whether the service proxy itself says no.
    rejected: bool,
    dial: Dial,
    /// How often it is dialled.
    times: usize,
}

impl<'s, 'a> Act<'s, 'a> {
    /// Makes the cluster as the fixture has it.
    ///
    /// # Errors
    /// [`LiveError`].
    pub async fn begin(
        stage: &'s mut Stage<'a>,
        vector: &'a Vector,
        mode: Mode,
        options: &Options,
    ) -> Result<Self, LiveError> {
        let world = World::new(stage.fixture);
        let (gated, family) = (options.policyd.is_some(), options.family);
        let rows = vector.steps.iter().flat_map(|step| &step.expect).filter(|row| row.established);
        let looked_at = rows.flat_map(|row| pairs(row).map(move |(from, to)| key(row, from, to))).collect();
        let judge = Compiled::new(Settings::default());
        let mut act = Self { stage, vector, mode, family, gated, world, judge, held: BTreeMap::new(), looked_at };
        act.restore().await?;
        act.follow(&[]);
        Ok(act)
    }

    /// Pods as the fixture has them, whatever the vector before did.
    async fn restore(&mut self) -> Result<(), LiveError> {
        let fixture = self.stage.fixture;
        let extra: Vec<PodKey> =
            self.stage.town.pods.keys().filter(|key| !fixture.pods.contains_key(*key)).cloned().collect();
        for pod in extra {
            self.stage.town.delete(&pod).await?;
        }
        let events = self.world.take_events();
        self.judge.apply(&events);
        self.stage.objects.clear();
        self.stage.objects.follow(&events);
        let missing =
            fixture.pods.iter().filter(|(key, spec)| !self.stage.town.pods.contains_key(*key) && !spec.finished);
        let missing: Vec<(PodKey, PodSpec)> = missing.map(|(key, spec)| (key.clone(), spec.clone())).collect();
        if !missing.is_empty() {
            self.stage.publish().await?;
            self.stage.town.add(&missing).await?;
        }
        // What a later row finds established, and no row opens, was open before anything was in force.
        if !self.looked_at.is_empty() {
            self.stage.publish().await?;
            self.stage.program(&self.world).await?;
            let rows = self.vector.steps.iter().flat_map(|step| &step.expect).filter(|row| row.established);
            for row in rows {
                for (from, to) in pairs(row) {
                    if let Ok(cell) = self.cell(row, from, to).await? {
                        self.hold(&cell.dial, key(row, from, to)).await;
                    }
                }
            }
        }
        Ok(())
    }

    async fn hold(&mut self, dial: &Dial, key: FlowKey) {
        if dial.transport == Transport::Tcp
            && let Ok(held) = self.stage.town.prober.hold(dial).await
        {
            self.held.insert(key, held);
        }
    }

    fn follow(&mut self, apply: &[serde_json::Value]) {
        let events = self.world.take_events();
        self.judge.apply(&events);
        self.stage.objects.follow(&events);
        self.stage.objects.apply(apply);
    }

    /// Carries all steps out.
    ///
    /// # Errors
    /// [`LiveError`]. A probe that is not as expected is no error.
    pub async fn play(
        &mut self,
        report: &mut Report,
        tell: &mut (dyn FnMut(Told<'_>) + Send),
    ) -> Result<(), LiveError> {
        let rows = || self.vector.steps.iter().flat_map(|step| &step.expect);
        if self.vector.steps.iter().any(needs_names) {
            report.skip("names are learned by the proxy", rows().map(|row| pairs(row).count()).sum());
            return Ok(());
        }
        for (index, step) in self.vector.steps.iter().enumerate() {
            self.advance(step).await?;
            self.probe((index + 1, &step.name), step, report, tell).await?;
        }
        Ok(())
    }

    /// Does what a step says, and waits until it is in force.
    ///
    /// # Errors
    /// [`LiveError`].
    pub async fn advance(&mut self, step: &'a Step) -> Result<(), LiveError> {
        self.world.step(step)?;
        self.make_up(step)?;
        self.follow(&step.apply);
        for pod in &step.delete_pod {
            self.stage.town.delete(pod).await?;
        }
        let gone = self.stage.town.pods.keys().filter(|pod| step.delete_namespace.contains(&pod.namespace));
        for pod in gone.cloned().collect::<Vec<_>>() {
            self.stage.town.delete(&pod).await?;
        }
        self.stage.publish().await?;
        let created: Vec<(PodKey, PodSpec)> =
            step.create_pod.iter().map(|(key, spec)| (key.clone(), spec.clone())).collect();
        for (key, spec) in &created {
            self.stage.town.make_room(key, spec).await?;
        }
        self.stage.town.add(&created).await?;
        self.stage.program(&self.world).await
    }

    /// Makes a pod known, without starting it.
    ///
    /// # Errors
    /// [`LiveError`].
    pub async fn declare(&mut self, key: &PodKey, spec: &PodSpec) -> Result<(), LiveError> {
        let step = Step { create_pod: [(key.clone(), spec.clone())].into(), ..Step::default() };
        self.world.step(&step)?;
        self.follow(&[]);
        self.stage.publish().await
    }

    fn make_up(&mut self, step: &Step) -> Result<(), LiveError> {
        let mut wanted: BTreeMap<PodKey, BTreeSet<(Protocol, u16, u16)>> = BTreeMap::new();
        for row in &step.expect {
            for to in &row.to.endpoints {
                let probe = Probe { row, from: to, to, mode: self.mode };
                if let Some((pod, port)) = probe.makes_up(&self.world) {
                    wanted.entry(pod).or_default().insert(port);
                }
            }
        }
        Ok(self.world.make_up(&wanted, &step.path)?)
    }

    /// Probes all rows of a step.
    ///
    /// # Errors
    /// [`LiveError`]. A probe that is not as expected is no error.
    pub async fn probe(
        &mut self,
        number: (usize, &Text),
        step: &'a Step,
        report: &mut Report,
        tell: &mut (dyn FnMut(Told<'_>) + Send),
    ) -> Result<(), LiveError> {
        let (mut cells, mut dials) = (Vec::new(), Vec::new());
        let mut undefined = (0, 0);
        for row in &step.expect {
            for (from, to) in pairs(row) {
                match self.cell(row, from, to).await? {
                    Ok(cell) => {
                        dials.extend(std::iter::repeat_n(&cell.dial, cell.times).cloned());
                        cells.push(cell);
                    }
                    Err(why) => report.skip(why, 1),
                }
            }
        }
        let mut answers = self.stage.town.prober.dial(&dials).await?.into_iter();
        for cell in cells {
            let key = key(cell.row, cell.from, cell.to);
            let mut wrong = None;
            if cell.row.established {
                let patience = if cell.expected == Expected::Allow { PASS } else { DROP };
                let answer = match self.held.get_mut(&key) {
                    Some(held) => held.poke(patience).await,
                    None => Answer::Failed(io::Error::other("the connection was never open")),
                };
                wrong = (answer.is_answered() != (cell.expected == Expected::Allow)).then(|| answer.to_string());
            } else {
                for answer in answers.by_ref().take(cell.times) {
                    let right = match (cell.expected, &answer) {
                        (Expected::Allow, Answer::Answered) | (Expected::Deny, Answer::Silent) => true,
                        (Expected::Deny, Answer::Refused(_)) => cell.rejected,
                        _ => false,
                    };
                    if !right {
                        wrong = Some(answer.to_string());
                    }
                }
                if self.looked_at.contains(&key) && cell.expected == Expected::Allow {
                    self.hold(&cell.dial, key).await;
                }
            }
            if self.vector.undefined().is_some() {
                undefined = (undefined.0 + 1, undefined.1 + usize::from(wrong.is_none()));
                continue;
            }
            let Some(got) = wrong else {
                report.counts.passed += 1;
                continue;
            };
            let Cell { row, from, to, expected, legs, .. } = cell;
            let failure = Failure {
                vector: Text::clone(&self.vector.id),
                mode: self.mode,
                family: self.family,
                step: (number.0, Text::clone(number.1)),
                path: row.path.clone(),
                probe: format!("{from} to {to}, {}", port_text(row.protocol, row.port)),
                expected,
                got,
                gates: legs.iter().map(gate).collect(),
            };
            tell(Told::Failure(&failure));
            report.fail(failure);
        }
        if undefined.0 > 0 {
            report.counts.undefined += undefined.0;
            let entry = report.undefined.entry(Text::clone(&self.vector.id)).or_default();
            *entry = (entry.0 + undefined.0, entry.1 + undefined.1);
        }
        Ok(())
    }

    /// Sees to it that the probe's destination serves. Or says why the probe cannot be sent.
    async fn cell(
        &mut self,
        row: &'a Row,
        from: &'a Endpoint,
        to: &'a Endpoint,
    ) -> Result<Result<Cell<'a>, &'static str>, LiveError> {
        if row.request.is_some() || row.verdict == Expected::Refuse {
            return Ok(Err("requests are judged by the proxy"));
        }
        let transport = match (row.protocol, row.port) {
            (Protocol::TCP, _) => Transport::Tcp,
            (Protocol::UDP, _) => Transport::Udp,
            (Protocol::SCTP, _) => Transport::Sctp,
            (Protocol::ICMP, 8) | (Protocol::ICMPV6, 128) => Transport::Ping,
            (Protocol::ICMP | Protocol::ICMPV6, _) => return Ok(Err("of ICMP only echo requests are answered")),
            _ => return Ok(Err("nobody answers this protocol")),
        };
        if row.origin.is_some() {
            return Ok(Err("the row says how the packet comes to the gate"));
        }
        let probe = Probe { row, from, to, mode: self.mode };
        let source = self.world.party(from, row.family, &format!("{}.from", row.path))?;
        let ways = probe.ways(&self.world, &source)?;
        let parties = std::iter::once(&source).chain(ways.iter().map(|way| &way.party));
        let known = |party: &Party| party.pod.as_ref().is_none_or(|pod| self.stage.town.pods.contains_key(&pod.key));
        if !parties.into_iter().all(known) {
            return Ok(Err("the pod is not attached any more: its address is another's"));
        }
        if let [Way { behind: Some(behind), .. }] = ways.as_slice()
            && let Some(service) = self.world.cluster().services.get(&behind.service)
        {
            let dialled = |port: &ServicePort| match row.via {
                Some(Via::NodePort) => port.node_port == Some(row.port),
                _ => port.port == row.port,
            };
            if self.world.behind(service, row.protocol, dialled, row.family).len() > 1 {
                return Ok(Err("the service proxy chooses among several backends"));
            }
        }
        let judge = &self.judge;
        let legs = probe.legs(&self.world, &mut |node, query| judge.judge(node, query))?;
        if legs.iter().flatten().any(|leg| matches!(leg.judgement.verdict, Verdict::Redirect(_))) {
            return Ok(Err("the proxy has a part in it"));
        }
        let service = ways.is_empty() || ways.iter().any(|way| way.behind.is_some());
        if service && source.pod.is_none() && source.node.is_none() {
            return Ok(Err("a Service's address is not routed outside of the cluster"));
        }
        let expected = if self.gated { row.verdict } else { Expected::Allow };
        let Some((dialled, port)) = self.dialled(row, to, &ways) else {
            return Ok(Err("the Service has no address of the family"));
        };
        if ways.is_empty() && !self.gated {
            return Ok(Err("nobody is behind the Service"));
        }
        let mut served = Vec::new();
        for way in &ways {
            let port = way.behind.as_ref().map_or(way.port, |behind| behind.port);
            served.push((self.stage.station(&way.party).await?, transport, port));
        }
        self.stage.town.prober.serve(served).await?;
        let station = self.stage.station(&source).await?;
        let patience = if expected == Expected::Allow { PASS } else { DROP };
        let dial = Dial { from: station, to: dialled, port, transport, patience };
        // Of several backends each one should be met. A flow that is open is not dialled again.
        let times = match ways.len() {
            _ if row.established => 0,
            0 | 1 => 1,
            several => 3 * several,
        };
        let rejected = ways.is_empty();
        let legs = legs.into_iter().next().unwrap_or_default();
        Ok(Ok(Cell { row, from, to, expected, legs, rejected, dial, times }))
    }

    /// The address and port that are dialled.
    fn dialled(&self, row: &Row, to: &Endpoint, ways: &[Way]) -> Option<(IpAddr, u16)> {
        if let Some(way) = ways.first() {
            return Some((way.address, way.port));
        }
        let of = |address: &IpAddr| Family::of(*address) == row.family;
        match to {
            Endpoint::Pod(key) => {
                let key = ObjectKey { namespace: Arc::clone(&key.namespace), name: Arc::clone(&key.name) };
                let service = self.world.cluster().services.get(&key)?;
                service.addresses.iter().find(of).map(|address| (address, row.port))
            }
            Endpoint::Address(address) => Some((*address, row.port)),
            _ => None,
        }
    }
}

fn key(row: &Row, from: &Endpoint, to: &Endpoint) -> FlowKey {
    (from.clone(), to.clone(), row.protocol, row.port, row.family)
}

/// Whether a step needs names to be learned, which the proxy does.
fn needs_names(step: &Step) -> bool {
    fn names(value: &serde_json::Value) -> bool {
        match value {
            serde_json::Value::Object(map) => {
                map.iter().any(|(key, value)| key == "toFQDNs" || key == "domainNames" || names(value))
            }
            serde_json::Value::Array(list) => list.iter().any(names),
            _ => false,
        }
    }
    !step.resolve.is_empty() || step.apply.iter().any(names)
}
