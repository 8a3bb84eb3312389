//! An image in the kernel's maps.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_policy_bpf::layout::{
    Address, Basis, ConnectionKey, Decision, ENDPOINT_AUDIT, Endpoint, Event, Frontend, OwnAddress, Peer, RowPort,
    Verdict as Number,
};
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::compile::diff::{Operation, diff};
use sluice_policy_core::compile::image::{self, Image, RowId, audited};
use sluice_policy_core::compile::row::PortPrefix;
use sluice_policy_core::flow::{Judgement, Reason, Verdict};

use crate::kernel::{FREE_INTERFACE, INTERFACE, Kernel, prefix};

/// The kernel, and what its maps hold.
pub(crate) struct Compiled {
    pub(crate) kernel: Kernel,
    image: Image,
    /// The endpoint that stands at the interface.
    pub(crate) endpoint: Endpoint,
    next_id: u32,
    ids: BTreeMap<PodKey, u32>,
}

impl Compiled {
    pub(crate) fn new() -> Self {
        Self {
            kernel: Kernel::new(),
            image: Image::default(),
            endpoint: Endpoint::default(),
            next_id: 1,
            ids: BTreeMap::new(),
        }
    }

    /// Makes the maps those of an image. Pods get new numbers, so that flows of another image are nobody's.
    pub(crate) fn load(&mut self, image: &Image) {
        self.ids.clear();
        for operation in diff(&self.image, image) {
            self.apply(&operation);
            self.image.apply(&operation);
        }
    }

    /// Puts a pod's endpoint at the interface. False: the pod has none.
    pub(crate) fn stand(&mut self, pod: &PodKey) -> bool {
        let Some(endpoint) = self.image.endpoints.get(pod) else { return false };
        let id = *self.ids.entry(pod.clone()).or_insert_with(|| {
            self.next_id += 1;
            self.next_id
        });
        let written = written(endpoint, id);
        self.put(written);
        true
    }

    /// Writes the endpoint at the interface.
    pub(crate) fn put(&mut self, endpoint: Endpoint) {
        self.endpoint = endpoint;
        self.kernel.put(INTERFACE, endpoint);
        self.kernel.put(FREE_INTERFACE, Endpoint { egress: 0, ..endpoint });
    }

    fn apply(&mut self, operation: &Operation) {
        let kernel = &mut self.kernel;
        match operation {
            Operation::SetDecision(id, judgement) => {
                kernel.decisions.insert(id.0, decision(judgement), 0).unwrap();
            }
            Operation::SetRow(id, row) => {
                remove_row(kernel, &self.image, *id);
                for (port, decision) in &row.entries {
                    let (bits, key) = row_key(*id, *port);
                    kernel.rows.insert(&prefix(bits, key), decision.0, 0).unwrap();
                }
            }
            Operation::SetPeer(policy, identity, row) => {
                kernel.peers.insert(Peer { policy: policy.0, identity: identity.0 }, row.0, 0).unwrap();
            }
            Operation::SetAddress(net, identity) => {
                let (bits, address) = address_key(net);
                kernel.ipcache.insert(&prefix(bits, address), identity.0, 0).unwrap();
            }
            Operation::RemoveAddress(net) => {
                let (bits, address) = address_key(net);
                kernel.ipcache.remove(&prefix(bits, address)).unwrap();
            }
            Operation::SetName(net, identity) => {
                let (bits, address) = address_key(net);
                kernel.names.insert(&prefix(bits, address), identity.0, 0).unwrap();
            }
            Operation::RemoveName(net) => {
                let (bits, address) = address_key(net);
                kernel.names.remove(&prefix(bits, address)).unwrap();
            }
            Operation::SetFrontend((address, protocol, port), identity) => {
                kernel.frontends.insert(frontend(*address, protocol.0, *port), identity.0, 0).unwrap();
            }
            Operation::RemoveFrontend((address, protocol, port)) => {
                kernel.frontends.remove(&frontend(*address, protocol.0, *port)).unwrap();
            }
            Operation::SetEndpoint(..) | Operation::SetRevision(..) | Operation::RemoveEndpoint(_) => {}
            Operation::RemovePeer(policy, identity) => {
                kernel.peers.remove(&Peer { policy: policy.0, identity: identity.0 }).unwrap();
            }
            Operation::RemoveRow(id) => remove_row(kernel, &self.image, *id),
            Operation::RemoveDecision(id) => kernel.decisions.remove(&id.0).unwrap(),
        }
    }

    /// The judgement that an event tells of.
    pub(crate) fn told(&self, event: &Event) -> Judgement {
        let plain = |verdict, reason| Judgement { verdict, reason, audit: None };
        let judgement = match Basis::of(event.basis).unwrap() {
            Basis::Decision => Judgement::clone(self.image.decisions.get(&image::DecisionId(event.decision)).unwrap()),
            Basis::NoPolicy => plain(Verdict::Allow, Reason::NoPolicy),
            Basis::OwnNode => plain(Verdict::Allow, Reason::OwnNode),
            Basis::OwnAddress => plain(Verdict::Allow, Reason::OwnAddress),
            Basis::Service => plain(Verdict::Defer, Reason::Service),
            Basis::Broken | Basis::Nothing => plain(Verdict::Deny, Reason::Unknown),
        };
        if event.audit == 1 { audited(judgement) } else { judgement }
    }

    /// The flow's entry.
    pub(crate) fn key(&self, own: (IpAddr, u16), peer: (IpAddr, u16), protocol: u8) -> ConnectionKey {
        ConnectionKey {
            endpoint: self.endpoint.id,
            own: own.0.into(),
            peer: peer.0.into(),
            own_port: own.1,
            peer_port: peer.1,
            protocol,
            ..ConnectionKey::default()
        }
    }
}

fn remove_row(kernel: &mut Kernel, image: &Image, id: RowId) {
    for (port, _) in image.rows.get(&id).map(|row| row.entries.as_slice()).unwrap_or_default() {
        let (bits, key) = row_key(id, *port);
        kernel.rows.remove(&prefix(bits, key)).unwrap();
    }
}

fn row_key(row: RowId, port: PortPrefix) -> (u32, RowPort) {
    let Some(protocol) = port.protocol else {
        return (32, RowPort { row: row.0, ..RowPort::default() });
    };
    let key = RowPort { row: row.0, protocol: protocol.0, port: port.port.to_be_bytes(), unused: 0 };
    (40 + u32::from(port.bits), key)
}

fn address_key(net: &IpNet) -> (u32, Address) {
    let bits = u32::from(net.prefix_len());
    (if matches!(net, IpNet::V4(_)) { 96 + bits } else { bits }, net.network().into())
}

fn frontend(address: IpAddr, protocol: u8, port: u16) -> Frontend {
    Frontend { address: address.into(), port, protocol, unused: 0 }
}

fn number(verdict: &Verdict) -> u8 {
    match verdict {
        Verdict::Allow => Number::Allow,
        Verdict::Deny => Number::Deny,
        Verdict::Redirect(_) => Number::Redirect,
        Verdict::Defer => Number::Defer,
    }
    .number()
}

fn decision(judgement: &Judgement) -> Decision {
    let full = judgement.audit.as_deref().unwrap_or(judgement);
    Decision { verdict: number(&judgement.verdict), full: number(&full.verdict), unused: 0 }
}

fn written(endpoint: &image::Endpoint, id: u32) -> Endpoint {
    let mut written = Endpoint {
        revision: endpoint.revision,
        id,
        ingress: endpoint.ingress.0,
        egress: endpoint.egress.0,
        flags: if endpoint.audit { ENDPOINT_AUDIT } else { 0 },
        ..Endpoint::default()
    };
    for (slot, own) in written.addresses.iter_mut().zip(&endpoint.addresses) {
        *slot = OwnAddress {
            address: own.address.into(),
            ingress: own.ingress.map_or(0, |row| row.0),
            egress: own.egress.map_or(0, |row| row.0),
        };
    }
    written
}
