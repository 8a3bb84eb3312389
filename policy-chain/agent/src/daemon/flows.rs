//! What gates and proxies saw becomes flows.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use sluice_contract::proxy::record::Records;
use sluice_policy_bpf::events::Event;
use sluice_policy_bpf::layout::{DropReason, EventKind, FlowDirection};
use sluice_policy_core::cluster::PodKey;
use tokio::time::Instant;

use super::Daemon;
use crate::cluster::Cluster;
use crate::datapath::{Datapath, Seen};
use crate::flows::{Gated, LostAt, Packet, Parties, Pods, Record, Requested, What};

/// Times that the events of the gates are read in one go.
const ROUNDS: usize = 16;

/// Events of one go that become flows; more of them are counted as lost.
const AT_ONCE: usize = 4096;

/// Flows that are logged of those that are read in one go.
const LOGGED: usize = 256;

/// What of flows the loop has.
#[derive(Debug, Default)]
pub(super) struct Watching {
    parties: Parties,
    /// Events that the kernel had lost when it was asked last; none: it was not.
    lost: Option<u64>,
}

impl Watching {
    /// The cluster is another than before.
    pub(super) fn changed(&mut self) {
        self.parties.forget();
    }
}

impl<C: Cluster, D: Datapath> Daemon<C, D> {
    /// Writes down what the gates saw.
    pub(super) fn read_seen(&mut self) {
        if !self.parts.flows.wanted() {
            return;
        }
        let mut seen = Vec::new();
        let mut unread = 0_u64;
        for _ in 0..ROUNDS {
            let mut batch = self.parts.gates.seen();
            if batch.is_empty() {
                break;
            }
            let room = AT_ONCE.saturating_sub(seen.len());
            let surplus = batch.len().saturating_sub(room);
            batch.truncate(room);
            unread += u64::try_from(surplus).unwrap_or(u64::MAX);
            seen.append(&mut batch);
        }
        let lost = self.lost_in_kernel();
        if seen.is_empty() && lost == 0 {
            return;
        }
        let now = self.parts.clock.now();
        let losses = [(LostAt::Kernel, lost), (LostAt::Reading, unread)].into_iter().filter(|(_, count)| *count > 0);
        let mut records: Vec<Record> =
            losses.map(|(at, count)| Record { number: 0, time: now, what: What::Lost { at, count } }).collect();
        let gated = self.gated();
        let mut parties = std::mem::take(&mut self.watching.parties);
        parties.refresh(self.engine.cluster(), Instant::now());
        let pods: Pods<'_> = self.parts.gates.endpoints().collect();
        let logged = tracing::enabled!(tracing::Level::DEBUG);
        for (count, Seen { ago, event }) in seen.iter().enumerate() {
            let packet = self.packet(event, &gated, &pods, &mut parties);
            if logged && count < LOGGED {
                log(&packet);
            }
            let time = now.checked_sub(*ago).unwrap_or(now);
            records.push(Record { number: 0, time, what: What::Packet(Box::new(packet)) });
        }
        drop(pods);
        self.watching.parties = parties;
        self.parts.flows.add(records);
    }

    /// Writes down what a proxy did.
    pub(super) fn requested(&mut self, Records { lost, records }: Records) {
        if !self.parts.flows.wanted() {
            return;
        }
        let now = self.parts.clock.now();
        let mut written = Vec::with_capacity(records.len() + 1);
        if lost > 0 {
            written.push(Record { number: 0, time: now, what: What::Lost { at: LostAt::Proxy, count: lost } });
        }
        let mut parties = std::mem::take(&mut self.watching.parties);
        parties.refresh(self.engine.cluster(), Instant::now());
        let pods: Pods<'_> = self.parts.gates.endpoints().collect();
        for request in records {
            let node = &self.parts.config.node;
            let mut at = |address: IpAddr| parties.at(address.to_canonical(), &self.engine, node, &pods);
            let client = at(request.client.ip());
            let server = at(request.backend.unwrap_or(request.server).ip());
            let service = parties.service(request.server.ip().to_canonical());
            let time = request.time().unwrap_or(now);
            let requested = Requested { request, client, server, service };
            written.push(Record { number: 0, time, what: What::Request(Box::new(requested)) });
        }
        drop(pods);
        self.watching.parties = parties;
        self.parts.flows.add(written);
    }

    /// Events that the kernel lost since it was asked last.
    fn lost_in_kernel(&mut self) -> u64 {
        let drops = self.parts.gates.drops();
        // Where it cannot be read, nothing is known to be new.
        let lost = drops.get(DropReason::EventLost.as_str()).copied().or(self.watching.lost).unwrap_or_default();
        // What was lost before this process began is nobody's news.
        lost.saturating_sub(self.watching.lost.replace(lost).unwrap_or(lost))
    }

    /// The pods behind interfaces, by the interfaces' indexes.
    fn gated(&self) -> BTreeMap<u32, Gated> {
        let gates = self.bindings.values().flat_map(|binding| {
            let key = binding.key();
            binding
                .interfaces()
                .iter()
                .map(move |gate| (gate.host_index, Gated { key: key.clone(), interface: gate.host.as_str().into() }))
        });
        gates.collect()
    }

    fn packet(&self, event: &Event, gated: &BTreeMap<u32, Gated>, pods: &Pods<'_>, parties: &mut Parties) -> Packet {
        let gate = gated.get(&event.interface);
        // At an uplink the interface is nobody's, and the pod is told by its number.
        let key: Option<&PodKey> =
            event.endpoint.and_then(|id| pods.get(&id).copied()).or_else(|| gate.map(|gate| &gate.key));
        let node = &self.parts.config.node;
        let own_address = event.own.address.to_canonical();
        let own = match key {
            Some(key) => parties.gated(key, own_address, &self.engine, pods),
            None => parties.at(own_address, &self.engine, node, pods),
        };
        // The backend that a Service chose, or who it was before its address was translated.
        let peer_address = event.other.map_or(event.peer.address, |other| other.address).to_canonical();
        let peer = parties.at(peer_address, &self.engine, node, pods);
        let service = (event.direction == FlowDirection::Egress)
            .then(|| parties.service(event.peer.address.to_canonical()))
            .flatten();
        let judgement = event.decision.and_then(|id| self.engine.image().decisions.get(&id)).map(Arc::clone);
        let interface = gate.map(|gate| Arc::clone(&gate.interface));
        Packet { event: *event, interface, judgement, own, peer, service }
    }
}

fn log(packet: &Packet) {
    let Packet { event, judgement, own, .. } = packet;
    let kind = match event.kind {
        EventKind::Flow => "a flow began",
        EventKind::Drop => "a packet was dropped",
        EventKind::Changed => "a flow was judged anew",
        EventKind::Backend => "a flow was judged at its backend",
        EventKind::Closed => "a connection was closed",
    };
    tracing::debug!(
        pod = own.pod.as_ref().map(ToString::to_string).as_deref().unwrap_or("?"),
        direction = event.direction.as_str(),
        own = %std::net::SocketAddr::new(event.own.address, event.own.port),
        peer = %std::net::SocketAddr::new(event.peer.address, event.peer.port),
        protocol = event.protocol,
        verdict = event.verdict.map_or("none", |verdict| verdict.as_str()),
        cause = if event.reason == DropReason::None { "" } else { event.reason.as_str() },
        rule = judgement.as_ref().map(|judgement| judgement.reason.to_string()).as_deref().unwrap_or(""),
        what = kind,
        "a packet was judged"
    );
}
