//! What the programs tell, as it happens.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{MapData, RingBuf};
use sluice_policy_core::compile::image::DecisionId;

use crate::gate::Ktime;
use crate::layout::{self, Basis, DropReason, EventKind, FlowDirection, FlowOrigin, Hook, Verdict};
use crate::sys::from_bytes;

/// An address with a port; of an ICMP query with its identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct End {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
}

/// Something that a program saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub time: Ktime,
    /// What.
    pub kind: EventKind,
    /// Which program says so.
    pub hook: Hook,
    /// The pod's number ([`Gate::pod_of`](crate::gate::Gate::pod_of)); none: of no pod that is known.
    pub endpoint: Option<u32>,
    /// Index of the interface.
    pub interface: u32,
    /// Direction of the flow, as the pod sees it.
    pub direction: FlowDirection,
    /// How the flow's first packet came.
    pub origin: FlowOrigin,
    /// What policy says; none: it was not asked.
    pub verdict: Option<Verdict>,
    /// What the verdict rests on.
    pub basis: Basis,
    /// The decision, where it rests on one.
    pub decision: Option<DecisionId>,
    /// Why it was dropped; [`DropReason::None`]: it was not.
    pub reason: DropReason,
    /// The pod's gate is a dry run: it passed, whatever the verdict.
    pub audit: bool,
    /// The pod's end.
    pub own: End,
    /// The other end, as the pod sees it.
    pub peer: End,
    /// The source before translation, or the backend; none: there was no translation that is known.
    pub other: Option<End>,
    /// Protocol, by its number.
    pub protocol: u8,
    /// TCP flags, or the type of an ICMP message.
    pub flags: u8,
    /// EtherType.
    pub ether_type: u16,
    /// Length of the packet in bytes, from the Ethernet header on.
    pub length: u32,
}

impl Event {
    /// None: it is not of this layout.
    fn of(event: &layout::Event) -> Option<Self> {
        let end = |address: layout::Address, port| End { address: address.into(), port };
        let basis = Basis::of(event.basis)?;
        Some(Self {
            time: Ktime(event.time),
            kind: EventKind::of(event.kind)?,
            hook: Hook::of(event.hook)?,
            endpoint: Some(event.endpoint).filter(|id| *id != 0),
            interface: event.interface,
            direction: FlowDirection::of(event.direction)?,
            origin: FlowOrigin::of(event.origin)?,
            verdict: Verdict::of(event.verdict),
            basis,
            decision: (basis == Basis::Decision).then_some(DecisionId(event.decision)),
            reason: DropReason::of(event.reason)?,
            audit: event.audit != 0,
            own: end(event.own, event.own_port),
            peer: end(event.peer, event.peer_port),
            other: (!event.other.is_none()).then(|| end(event.other, event.other_port)),
            protocol: event.protocol,
            flags: event.flags,
            ether_type: event.ether_type,
            length: event.length,
        })
    }
}

/// The reader of the events. The programs do not wake it for each one, which would cost every connection 15 us: whoever
/// reads looks every 100 ms, and its descriptor shows readable when the buffer is a quarter full.
pub struct Events {
    ring: RingBuf<MapData>,
    unreadable: u64,
}

impl Events {
    pub(crate) const fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring, unreadable: 0 }
    }

    /// The next event; none: there is none now. What is not of this layout is passed over and counted.
    pub fn take(&mut self) -> Option<Event> {
        loop {
            let item = self.ring.next()?;
            match from_bytes::<layout::Event>(&item).as_ref().and_then(Event::of) {
                Some(event) => return Some(event),
                None => self.unreadable = self.unreadable.saturating_add(1),
            }
        }
    }

    /// How many were passed over. What the programs could not tell for lack of room is counted by them.
    #[must_use]
    pub const fn unreadable(&self) -> u64 {
        self.unreadable
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("unreadable", &self.unreadable).finish_non_exhaustive()
    }
}
