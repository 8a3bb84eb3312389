//! Sends what the rows of a step say, and judges what comes back.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_policy_core::cluster::{ObjectKey, ServicePort};
use sluice_policy_core::flow::{Origin, Protocol, Verdict};
use sluice_policy_core::model::Text;
use sluice_policy_core::vector::Judge as _;
use sluice_policy_core::vector::probe::{Leg, Probe, Way};
use sluice_policy_core::vector::run::{gate, pairs, port_text};
use sluice_policy_core::vector::schema::{Endpoint, Expected, Family, Request, Row, Step, Via};
use sluice_policy_core::vector::world::Party;
use sluice_vpcsim::probe::dns::Kind;

use super::report::{Failure, Report};
use super::run::{Act, FlowKey, Told, key};
use super::stage::{Choice, LiveError};
use crate::prober::{Answer, Ask, Dial, Transport};

/// How long a probe that has to pass may take: more than one repetition of a TCP SYN.
const PASS: Duration = Duration::from_secs(10);
/// How long silence is listened to. Packets cross namespaces in microseconds.
const DROP: Duration = Duration::from_millis(400);

/// A probe that is on its way.
pub(super) struct Cell<'a> {
    row: &'a Row,
    from: &'a Endpoint,
    to: &'a Endpoint,
    expected: Expected,
    legs: Vec<Leg>,
    /// Whether the proxy has a part in it.
    proxied: bool,
    /// Whether the service proxy itself says no.
    rejected: bool,
    /// One, or one for each backend, with what the service proxy has to choose.
    dials: Vec<(Option<Choice>, Dial)>,
}

impl Cell<'_> {
    fn is_right(&self, answer: &Answer) -> bool {
        match (self.expected, answer) {
            (Expected::Allow, Answer::Answered)
            | (Expected::Refuse, Answer::Declined(_))
            | (Expected::Deny, Answer::Silent) => true,
            // A direct connection that would have to be proxied is reset.
            (Expected::Deny, Answer::Refused(_)) => self.rejected || (self.row.established && self.proxied),
            _ => false,
        }
    }

    fn what(&self) -> String {
        let request = self.row.request.as_ref().map_or_else(String::new, |request| format!(", {request}"));
        format!("{} to {}, {}{request}", self.from, self.to, port_text(self.row.protocol, self.row.port))
    }
}

impl<'a> Act<'_, 'a> {
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
        let mut cells = Vec::new();
        let mut undefined = (0, 0);
        for row in &step.expect {
            for (from, to) in pairs(row) {
                match self.cell(row, from, to).await? {
                    Ok(cell) => cells.push(cell),
                    Err(why) => report.skip(why, 1),
                }
            }
        }
        let mut answers = self.dial(&cells).await?;
        for (index, cell) in cells.iter().enumerate() {
            let key = key(cell.row, cell.from, cell.to);
            if cell.row.established {
                answers.insert(index, vec![self.poke(cell, &key).await]);
            }
            let wrong = answers.remove(&index).unwrap_or_default().into_iter().find(|answer| !cell.is_right(answer));
            if !cell.row.established && cell.expected == Expected::Allow && self.looked_at.contains(&key) {
                self.hold(cell, key).await?;
            }
            if self.vector.undefined().is_some() {
                undefined = (undefined.0 + 1, undefined.1 + usize::from(wrong.is_none()));
                continue;
            }
            let Some(got) = wrong else {
                report.counts.passed += 1;
                continue;
            };
            let failure = Failure {
                vector: Text::clone(&self.vector.id),
                mode: self.mode,
                family: self.family,
                step: (number.0, Text::clone(number.1)),
                path: cell.row.path.clone(),
                probe: cell.what(),
                expected: cell.expected,
                got: got.to_string(),
                gates: cell.legs.iter().map(gate).collect(),
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

    /// Dials what is no open flow, all at once that needs no choice of the service proxy; the answers by the cell's number.
    async fn dial(&self, cells: &[Cell<'_>]) -> Result<BTreeMap<usize, Vec<Answer>>, LiveError> {
        let mut rounds: BTreeMap<Option<&Choice>, Vec<(usize, Dial)>> = BTreeMap::new();
        for (index, cell) in cells.iter().enumerate().filter(|(_, cell)| !cell.row.established) {
            for (choice, dial) in &cell.dials {
                rounds.entry(choice.as_ref()).or_default().push((index, dial.clone()));
            }
        }
        let mut answers: BTreeMap<usize, Vec<Answer>> = BTreeMap::new();
        let mut chosen = false;
        for (choice, round) in rounds {
            if choice.is_some() {
                self.stage.program(&self.world, choice).await?;
                chosen = true;
            }
            let (indices, dials): (Vec<usize>, Vec<Dial>) = round.into_iter().unzip();
            for (index, answer) in indices.into_iter().zip(self.stage.town.prober.dial(&dials).await?) {
                answers.entry(index).or_default().push(answer);
            }
        }
        if chosen {
            self.stage.program(&self.world, None).await?;
        }
        Ok(answers)
    }

    /// What an open flow says.
    async fn poke(&mut self, cell: &Cell<'_>, key: &FlowKey) -> Answer {
        let patience = if cell.expected == Expected::Deny { DROP } else { PASS };
        let Some(held) = self.held.get_mut(key) else {
            return Answer::Failed(io::Error::other("the connection was never open"));
        };
        match (&cell.row.request, cell.dials.first()) {
            (Some(_), Some((_, dial))) => held.ask(&dial.ask, patience).await,
            _ => held.poke(patience).await,
        }
    }

    /// Opens a flow that a later row looks at.
    pub(super) async fn hold(&mut self, cell: &Cell<'_>, key: FlowKey) -> Result<(), LiveError> {
        let Some((choice, dial)) = cell.dials.first().filter(|(_, dial)| dial.transport == Transport::Tcp) else {
            return Ok(());
        };
        if choice.is_some() {
            self.stage.program(&self.world, choice.as_ref()).await?;
        }
        if let Ok(held) = self.stage.town.prober.hold(dial).await {
            self.held.insert(key, held);
        }
        if choice.is_some() {
            self.stage.program(&self.world, None).await?;
        }
        Ok(())
    }

    /// Sees to it that the probe's destination serves. Or says why the probe cannot be sent.
    pub(super) async fn cell(
        &mut self,
        row: &'a Row,
        from: &'a Endpoint,
        to: &'a Endpoint,
    ) -> Result<Result<Cell<'a>, &'static str>, LiveError> {
        let transport = match (row.protocol, row.port) {
            (Protocol::TCP, _) => Transport::Tcp,
            (Protocol::UDP, _) => Transport::Udp,
            (Protocol::SCTP, _) => Transport::Sctp,
            (Protocol::ICMP, 8) | (Protocol::ICMPV6, 128) => Transport::Ping,
            (protocol, _) => Transport::Packet(protocol.0),
        };
        let probe = Probe { row, from, to, mode: self.mode };
        let source = self.world.party(from, row.family, &format!("{}.from", row.path))?;
        let ways = probe.ways(&self.world, &source)?;
        let parties = std::iter::once(&source).chain(ways.iter().map(|way| &way.party));
        let known = |party: &Party| party.pod.as_ref().is_none_or(|pod| self.stage.town.pods.contains_key(&pod.key));
        if !parties.into_iter().all(known) {
            return Ok(Err("the pod is not attached any more: its address is another's"));
        }
        let service = ways.is_empty() || ways.iter().any(|way| way.behind.is_some());
        if service && source.pod.is_none() && source.node.is_none() {
            return Ok(Err("a Service's address is not routed outside of the cluster"));
        }
        let judge = &self.judge;
        let legs = probe.legs(&self.world, &mut |node, query| judge.judge(node, query))?;
        let redirects = |leg: &Leg| matches!(leg.judgement.verdict, Verdict::Redirect(_));
        let proxied = self.gated && legs.iter().flatten().any(redirects);
        let expected = if self.gated { row.verdict } else { Expected::Allow };
        if expected == Expected::Deny && ways.iter().any(|way| self.names.was(way.address)) && !row.established {
            return Ok(Err("a name whose time has ended stays known while a pod uses it"));
        }
        if self.dialled(row, to, &ways).is_none() {
            return Ok(Err("the Service has no address of the family"));
        }
        if ways.is_empty() && !self.gated {
            return Ok(Err("nobody is behind the Service"));
        }
        let mut served = Vec::new();
        for way in &ways {
            let port = way.behind.as_ref().map_or(way.port, |behind| behind.port);
            served.push((self.stage.station(&way.party).await?, transport, port));
        }
        self.stage.town.prober.serve(served).await?;
        let own = source.node.as_ref().filter(|node| {
            ways.iter().any(|way| way.party.pod.as_ref().is_some_and(|pod| pod.node.as_ref() == Some(*node)))
        });
        let station = match (row.origin, own) {
            (None, _) | (Some(Origin::OwnNode), Some(_)) | (Some(Origin::Forwarded), None) => {
                self.stage.station(&source).await?
            }
            (Some(Origin::Forwarded), Some(node)) => self.stage.masqueraded(node, source.address).await?,
            (Some(_), _) => return Ok(Err("no packet of this source comes in the way that the row says")),
        };
        let patience = if expected == Expected::Deny { DROP } else { PASS };
        let mut dials = Vec::new();
        for way in ways.iter().map(Some).chain(ways.is_empty().then_some(None)) {
            let Some((address, port)) = self.dialled(row, to, way.map_or(&[], std::slice::from_ref)) else { continue };
            let (from, ask) = (station.clone(), self.ask(row, address, proxied));
            let dial = Dial { from, to: address, port, transport, ask, patience };
            dials.push((way.and_then(|way| self.choice(row, way)), dial));
        }
        let rejected = ways.is_empty();
        let legs = legs.into_iter().next().unwrap_or_default();
        Ok(Ok(Cell { row, from, to, expected, legs, proxied, rejected, dials }))
    }

    /// What is said on a connection to this address.
    fn ask(&self, row: &Row, dialled: IpAddr, proxied: bool) -> Ask {
        match &row.request {
            Some(Request::Http { method, target, host, headers }) => {
                // A client that is told no name sends the address that it dials (RFC 9110, 7.2).
                let address = match dialled {
                    IpAddr::V4(v4) => v4.to_string(),
                    IpAddr::V6(v6) => format!("[{v6}]"),
                };
                let host = if host.is_empty() { &*address } else { host };
                Ask::http(method, target, host, headers.iter().map(|(name, value)| (&**name, &**value)))
            }
            Some(Request::Dns(name)) => Ask::Dns { name: name.to_string(), kind: Kind::A },
            Some(Request::ServerName(name)) => Ask::Tls { server: name.to_string() },
            // Whatever the proxy says to a datagram, it has come that far.
            None if proxied && row.protocol == Protocol::UDP => Ask::Dns { name: "a.invalid".into(), kind: Kind::A },
            None if proxied => Ask::Nothing,
            None => Ask::Echo,
        }
    }

    /// What the service proxy has to choose for this way: something only where it has a choice.
    fn choice(&self, row: &Row, way: &Way) -> Option<Choice> {
        let behind = way.behind.as_ref()?;
        let service = self.world.cluster().services.get(&behind.service)?;
        let dialled = |port: &ServicePort| match row.via {
            Some(Via::NodePort) => port.node_port == Some(row.port),
            _ => port.port == row.port,
        };
        let several = self.world.behind(service, row.protocol, dialled, row.family).len() > 1;
        several.then(|| Choice { service: behind.service.clone(), backend: behind.backend })
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
