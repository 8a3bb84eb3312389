//! A pod with simple policies, written into the maps by hand.

use std::net::IpAddr;

use sluice_policy_bpf::layout::{
    Address, Connection, ConnectionKey, Decision, DropReason, Endpoint, Event, EventKind, Frontend, Hook, OwnAddress,
    Peer, RowPort, Settings, Verdict,
};

use crate::frame::Packet;
use crate::kernel::{Action, INTERFACE, Kernel, UPLINK, prefix};

/// Nothing is restricted.
pub(crate) const NONE: u32 = 0;
/// Everything is allowed.
pub(crate) const ALLOW: u32 = 1;
/// Everything is denied.
pub(crate) const DENY: u32 = 2;
/// Everything goes to the proxy.
pub(crate) const REDIRECT: u32 = 3;
/// Everything is allowed, and would be denied if the dry runs were in force.
pub(crate) const DRY: u32 = 4;
/// [`SERVER`] is allowed, the rest denied.
pub(crate) const ONLY_SERVER: u32 = 5;
/// Port 53 is allowed, the rest denied.
pub(crate) const ONLY_DNS: u32 = 6;
/// The own node is allowed, the rest denied.
pub(crate) const ONLY_NODE: u32 = 7;
/// Services are left to their backends, of which [`SERVER`] is allowed; the rest is denied.
pub(crate) const SERVICES: u32 = 8;
/// A row that is not there.
pub(crate) const BROKEN: u32 = 9;
/// As [`SERVICES`], but no backend is allowed.
pub(crate) const NO_BACKENDS: u32 = 10;
/// As [`SERVICES`], but a dry run would send to the proxy what is left to its backend.
pub(crate) const DRY_SERVICES: u32 = 11;

const ANY: u32 = 0;
const HOST: u32 = 1;
const FRONTEND: u32 = 3;
const SERVER: u32 = 300;
const SERVICE: u32 = 301;
/// The decision, and the row of all packets, by which flows are left to their backends.
const DEFER: u32 = 5;
/// The same, where a dry run would have the proxy look at it.
const DRY_DEFER: u32 = 6;
const DNS_ROW: u32 = 20;

/// The port of everything that serves.
pub(crate) const PORT: u16 = 80;
pub(crate) const CLIENT: u16 = 40_000;

/// Addresses of one family.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Family {
    pub(crate) own: IpAddr,
    pub(crate) server: IpAddr,
    pub(crate) other: IpAddr,
    pub(crate) service: IpAddr,
}

pub(crate) fn families() -> [Family; 2] {
    let family = |[own, server, other, service]: [&str; 4]| Family {
        own: own.parse().unwrap(),
        server: server.parse().unwrap(),
        other: other.parse().unwrap(),
        service: service.parse().unwrap(),
    };
    [
        family(["10.0.0.1", "10.0.0.20", "10.0.0.30", "10.96.0.1"]),
        family(["2001:db8::1", "2001:db8::20", "2001:db8::30", "fd00:96::1"]),
    ]
}

pub(crate) struct Pod {
    pub(crate) kernel: Kernel,
    pub(crate) endpoint: Endpoint,
}

impl Pod {
    pub(crate) fn new() -> Self {
        let mut kernel = Kernel::new();
        let decision = |verdict: Verdict, full: Verdict| Decision {
            verdict: verdict.number(),
            full: full.number(),
            ..Decision::default()
        };
        for (number, value) in [
            (ALLOW, decision(Verdict::Allow, Verdict::Allow)),
            (DENY, decision(Verdict::Deny, Verdict::Deny)),
            (REDIRECT, decision(Verdict::Redirect, Verdict::Redirect)),
            (DRY, decision(Verdict::Allow, Verdict::Deny)),
            (DEFER, decision(Verdict::Defer, Verdict::Defer)),
            (DRY_DEFER, decision(Verdict::Defer, Verdict::Redirect)),
        ] {
            kernel.decisions.insert(number, value, 0).unwrap();
            kernel.rows.insert(&prefix(32, RowPort { row: number, ..RowPort::default() }), number, 0).unwrap();
        }
        kernel.rows.insert(&prefix(32, RowPort { row: DNS_ROW, ..RowPort::default() }), DENY, 0).unwrap();
        for protocol in [6, 17] {
            let dns = RowPort { row: DNS_ROW, protocol, port: 53_u16.to_be_bytes(), unused: 0 };
            kernel.rows.insert(&prefix(56, dns), ALLOW, 0).unwrap();
        }
        for (policy, identity, row) in [
            (ALLOW, ANY, ALLOW),
            (DENY, ANY, DENY),
            (REDIRECT, ANY, REDIRECT),
            (DRY, ANY, DRY),
            (ONLY_SERVER, ANY, DENY),
            (ONLY_SERVER, SERVER, ALLOW),
            (ONLY_DNS, ANY, DNS_ROW),
            (ONLY_NODE, ANY, DENY),
            (ONLY_NODE, HOST, ALLOW),
            (SERVICES, ANY, DENY),
            (SERVICES, FRONTEND, DEFER),
            (SERVICES, SERVER, ALLOW),
            (BROKEN, ANY, 99),
            (NO_BACKENDS, ANY, DENY),
            (NO_BACKENDS, FRONTEND, DEFER),
            (DRY_SERVICES, ANY, DENY),
            (DRY_SERVICES, FRONTEND, DRY_DEFER),
            (DRY_SERVICES, SERVER, ALLOW),
        ] {
            kernel.peers.insert(Peer { policy, identity }, row, 0).unwrap();
        }
        let mut endpoint = Endpoint { id: 7, revision: 1, ..Endpoint::default() };
        for (slot, family) in endpoint.addresses.iter_mut().zip(families()) {
            *slot = OwnAddress { address: family.own.into(), ..OwnAddress::default() };
            kernel.ipcache.insert(&prefix(128, Address::from(family.server)), SERVER, 0).unwrap();
            for protocol in [6, 17] {
                let frontend = Frontend { address: family.service.into(), port: PORT, protocol, unused: 0 };
                kernel.frontends.insert(frontend, SERVICE, 0).unwrap();
            }
        }
        let mut pod = Self { kernel, endpoint };
        pod.policy(NONE, NONE);
        pod
    }

    /// Gives the pod other policies, and moves its revision.
    pub(crate) fn policy(&mut self, ingress: u32, egress: u32) {
        self.endpoint.ingress = ingress;
        self.endpoint.egress = egress;
        self.endpoint.revision += 1;
        self.write();
    }

    pub(crate) fn flags(&mut self, flags: u32) {
        self.endpoint.flags = flags;
        self.write();
    }

    fn write(&mut self) {
        self.kernel.put(INTERFACE, self.endpoint);
    }

    /// Until now + so many seconds, packets of flows that nobody knows may be replies.
    pub(crate) fn adopt(&mut self, seconds: i64) {
        let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
        let until = (time.tv_sec() + seconds).max(0);
        let adopt_until = u64::try_from(until).unwrap() * 1_000_000_000;
        self.kernel.set(Settings { adopt_until, ..Settings::default() });
    }

    /// The pod sends a packet.
    #[must_use]
    pub(crate) fn sends(&self, packet: &Packet) -> Action {
        self.kernel.run(Hook::FromPod, &packet.frame(), 0)
    }

    /// A packet for the pod comes by an uplink.
    #[must_use]
    pub(crate) fn gets(&self, packet: &Packet) -> Action {
        self.kernel.run(Hook::ToPod, &packet.frame(), UPLINK)
    }

    /// Why the last packet was dropped.
    #[must_use]
    pub(crate) fn why(&mut self) -> Option<DropReason> {
        let events = self.kernel.events();
        let last = events.last().filter(|event| event.kind == EventKind::Drop.number())?;
        assert_eq!(last.endpoint, self.endpoint.id);
        DropReason::of(last.reason)
    }

    /// What was told since the last call.
    #[must_use]
    pub(crate) fn told(&mut self) -> Vec<EventKind> {
        self.kernel.events().iter().map(|event: &Event| EventKind::of(event.kind).unwrap()).collect()
    }

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

    /// The only flow that is known.
    #[must_use]
    pub(crate) fn flow(&self) -> Option<Connection> {
        let keys: Vec<ConnectionKey> = self.kernel.connections.keys().map(Result::unwrap).collect();
        assert!(keys.len() < 2, "{keys:#?}");
        keys.first().map(|key| self.kernel.connections.get(key, 0).unwrap())
    }

    /// Lets the time of all flows run out.
    pub(crate) fn expire(&mut self) {
        self.end(1);
    }

    /// Leaves so many seconds to all flows.
    pub(crate) fn leave(&mut self, seconds: u64) -> u64 {
        let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
        let expires = (u64::try_from(time.tv_sec()).unwrap() + seconds) * 1_000_000_000;
        self.end(expires);
        expires
    }

    fn end(&mut self, expires: u64) {
        let keys: Vec<ConnectionKey> = self.kernel.connections.keys().map(Result::unwrap).collect();
        for key in keys {
            let connection = self.kernel.connections.get(&key, 0).unwrap();
            self.kernel.connections.insert(key, Connection { expires, ..connection }, 0).unwrap();
        }
        self.kernel.forget_recent();
    }
}
