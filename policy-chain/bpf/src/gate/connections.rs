//! The flows that the programs remember: what has ended is forgotten, and what was there before the gate is made known.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use sluice_hostnet::conntrack::{Flow, Tuple};
use sluice_policy_core::flow::Protocol;

use super::maps::removed;
use super::{ApplyError, Gate, Ktime};
use crate::layout::{
    Address, CONNECTION_ADOPTED, CONNECTION_ANSWERED, Connection, ConnectionKey, FlowDirection, FlowOrigin, Verdict,
};
use crate::sys::Cursor;

/// A batch must have room for all flows of a bucket of the kernel's table.
const LEAST_BATCH: usize = 256;
/// `BPF_NOEXIST`: what is there is newer.
const ONLY_NEW: u64 = 1;
/// Whatever connection tracking says, a seeded flow that shows itself no more is forgotten after so long: the default of
/// `nf_conntrack_tcp_timeout_established` is five days.
const LONGEST_SEED: Duration = Duration::from_secs(6 * 3600);

/// Where the walk through the flows is.
#[derive(Debug)]
pub(super) struct Walk {
    cursor: Cursor,
    left: usize,
}

impl Walk {
    pub(super) const fn new() -> Self {
        Self { cursor: Cursor::new(), left: 0 }
    }
}

/// What a step of the expiry did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expired {
    /// Flows looked at.
    pub seen: usize,
    /// Flows forgotten.
    pub removed: usize,
    /// If the step has ended a walk through all flows: how many that walk has left.
    pub flows: Option<usize>,
}

impl Gate {
    /// Forgets flows that are past their time, or whose pod is gone. Looks at about `budget` flows (not under 256) and goes
    /// on from there the next time: at 4,096, some 2 ms.
    ///
    /// The programs take a flow past its time for none anyway; this is for the memory, so that the kernel never has to
    /// throw out the oldest flow of a table that is full.
    ///
    /// # Errors
    /// [`ApplyError::Kernel`].
    pub fn expire(&mut self, now: Ktime, budget: usize) -> Result<Expired, ApplyError> {
        let map = "connections";
        let mut entries: Vec<(ConnectionKey, Connection)> = Vec::new();
        let end = self.maps.read_some(map, &mut self.expiry.cursor, budget.max(LEAST_BATCH), &mut entries)?;
        let pods = self.pods.values().map(|pod| pod.id);
        let known: BTreeSet<u32> = pods.chain(self.kept.values().map(|entry| entry.id)).collect();
        let mut gone = 0_usize;
        for (key, connection) in &entries {
            let is_over = |connection: &Connection| connection.expires < now.0 || !known.contains(&key.endpoint);
            // Read once more: a packet may have come meanwhile.
            if is_over(connection) && self.maps.connections.get(key, 0).is_ok_and(|current| is_over(&current)) {
                removed(map, self.maps.connections.remove(key))?;
                gone += 1;
            }
        }
        self.expiry.left = self.expiry.left.saturating_add(entries.len() - gone);
        let flows = end.then(|| std::mem::take(&mut self.expiry.left));
        Ok(Expired { seen: entries.len(), removed: gone, flows })
    }

    /// Which of these addresses a pod has a flow with that is not past its time. Reads all flows: 100,000 take some 50 ms.
    ///
    /// # Errors
    /// [`ApplyError::Kernel`].
    pub fn peers_with_flows(&self, of: &BTreeSet<IpAddr>, now: Ktime) -> Result<BTreeSet<IpAddr>, ApplyError> {
        let mut found = BTreeSet::new();
        self.maps.read("connections", |key: ConnectionKey, connection: Connection| {
            let peer = IpAddr::from(key.peer);
            if connection.expires >= now.0 && of.contains(&peer) {
                found.insert(peer);
            }
        })?;
        Ok(found)
    }

    /// Makes the flows of a bound interface known that connection tracking knew before the gate was put on: they are
    /// judged at their next packet, in their own direction, whichever side sends it. `is_own_node` tells the node's own
    /// addresses. Flows that are not of this interface, or known already, are left out; says how many were not. A flow that
    /// is known as opened by the other side is put right, and counted: a gate of which one direction stood a moment before the
    /// other takes an answer for a flow's begin.
    ///
    /// # Errors
    /// [`ApplyError::Kernel`].
    pub fn seed(
        &mut self,
        index: u32,
        flows: &[Flow],
        is_own_node: impl Fn(IpAddr) -> bool,
        now: Ktime,
    ) -> Result<usize, ApplyError> {
        let own = self.own_addresses(index);
        let Ok(entry) = self.maps.endpoints.get(&index, 0) else { return Ok(0) };
        let mut seeded = 0;
        for flow in flows {
            let mut halves = Vec::new();
            if own.contains(&flow.original.source) {
                halves.push(outgoing(entry.id, &flow.original));
            }
            if own.contains(&flow.reply.source) {
                halves.push(incoming(entry.id, flow));
            }
            for (key, direction) in halves {
                let from_node = direction == FlowDirection::Ingress && is_own_node(flow.original.source);
                let origin = if from_node { FlowOrigin::OwnNode } else { FlowOrigin::Forwarded };
                let answered = if flow.is_answered() { CONNECTION_ANSWERED } else { 0 };
                let ingress = direction == FlowDirection::Ingress;
                let connection = Connection {
                    // Of no revision that an endpoint has: it is judged before anything of it passes, unless what is established is
                    // to be kept.
                    judged: Verdict::Allow.number().into(),
                    expires: now.plus(flow.expires_in.min(LONGEST_SEED)).0,
                    state: answered | CONNECTION_ADOPTED,
                    other: if ingress { flow.original.source.into() } else { Address::NONE },
                    direction: direction.number(),
                    origin: origin.number(),
                    ..Default::default()
                };
                match self.maps.connections.insert(key, connection, ONLY_NEW) {
                    Ok(()) => seeded += 1,
                    Err(aya::maps::MapError::SyscallError(error))
                        if error.io_error.raw_os_error() == Some(libc::EEXIST) =>
                    {
                        let known = self.maps.connections.get(&key, 0);
                        if known.is_ok_and(|known| known.direction != connection.direction) {
                            let replaced = self.maps.connections.insert(key, connection, 0);
                            replaced.map_err(|error| self.maps.failed("connections", error))?;
                            seeded += 1;
                        }
                    }
                    Err(error) => return Err(self.maps.failed("connections", error)),
                }
            }
        }
        Ok(seeded)
    }
}

/// As the pod sees it, before any translation.
fn outgoing(endpoint: u32, tuple: &Tuple) -> (ConnectionKey, FlowDirection) {
    let direction = FlowDirection::Egress;
    let own = (tuple.source, tuple.source_port);
    (key(endpoint, tuple.protocol, own, (tuple.destination, tuple.destination_port), direction), direction)
}

/// As the pod sees it, after all translation: the other way round of what it answers.
fn incoming(endpoint: u32, flow: &Flow) -> (ConnectionKey, FlowDirection) {
    let (direction, reply) = (FlowDirection::Ingress, &flow.reply);
    let (own, peer) = match Protocol(reply.protocol) {
        // The answer's type is not the question's.
        Protocol::ICMP | Protocol::ICMPV6 => {
            ((reply.source, flow.original.source_port), (reply.destination, flow.original.destination_port))
        }
        _ => ((reply.source, reply.source_port), (reply.destination, reply.destination_port)),
    };
    (key(endpoint, reply.protocol, own, peer, direction), direction)
}

/// For ICMP, connection tracking has the identifier in the place of one port and the type in the place of the other.
fn key(
    endpoint: u32,
    protocol: u8,
    own: (IpAddr, u16),
    peer: (IpAddr, u16),
    direction: FlowDirection,
) -> ConnectionKey {
    let mut key = ConnectionKey {
        endpoint,
        own: Address::from(own.0),
        peer: Address::from(peer.0),
        own_port: own.1,
        peer_port: peer.1,
        protocol,
        ..Default::default()
    };
    if matches!(Protocol(protocol), Protocol::ICMP | Protocol::ICMPV6) {
        key.query = u8::try_from(peer.1).unwrap_or_default();
        key.query_direction = direction.number();
        let identifier = own.1;
        (key.own_port, key.peer_port) =
            if direction == FlowDirection::Egress { (identifier, 0) } else { (0, identifier) };
    }
    key
}
