//! What pods that are gone have left in the host's network: pure.
//!
//! That something of a pod is left is no proof that its pod is gone: its ADD may be under way, and so may its DEL. So litter is
//! what has been seen as such at every look for longer than an ADD can take, and it is judged against what lives:
//!
//! - rules of an address that no pod's interface carries;
//! - a route to an address by the interface of an attachment that has another one, and not this one beside it: an IPv6 address
//!   of a /80 that the ENI has no longer is its pod's until the pod goes;
//! - a pod's interface by which no address is routed and whose attachment nobody knows: of a pod that works the route is there,
//!   because the plugin makes it last, and what is lost of an attachment that is known is put back.
//!
//! Interfaces that carry an address are never litter here: whether their sandbox lives the runtime alone knows, which tells
//! by GC. Of addresses that the node cannot have had for pods nothing is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_contract::id::{Attachment, IfName};

use crate::ledger::AddressState;
use crate::recover::{ADD_TAKES, anchored};
use crate::state::State;
use crate::time::Timestamp;

/// The pods' part of the host's network at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// Addresses that are routed by a pod's interface.
    pub routed: BTreeMap<IpAddr, IfName>,
    /// Addresses of which only rules are there.
    pub dead: BTreeSet<IpAddr>,
    /// The pods' interfaces that are marked as an attachment's.
    pub marked: BTreeMap<IfName, Attachment>,
}

/// Something that a pod has left behind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Litter {
    /// The rules of a pod's addresses.
    Rules {
        /// The address by which the ledger has the pod.
        address: IpAddr,
        /// All of its addresses that rules are about.
        all: BTreeSet<IpAddr>,
        /// Who has held the address when this was seen, and since when. Between two looks it may go from one pod to the next,
        /// whose rules come before its route: those are not what was seen.
        owner: Option<(Attachment, Timestamp)>,
    },
    /// The route to an address by an interface.
    Route(IpAddr, IfName),
    /// An interface.
    Link(IfName, Attachment),
}

impl Litter {
    /// The kind of [`Self::Rules`].
    pub const RULE: &'static str = "rule";
    /// The kind of [`Self::Route`].
    pub const ROUTE: &'static str = "route";
    /// The kind of [`Self::Link`].
    pub const LINK: &'static str = "link";

    /// What kind of thing, for logs and metrics.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Rules { .. } => Self::RULE,
            Self::Route(..) => Self::ROUTE,
            Self::Link(..) => Self::LINK,
        }
    }
}

/// What looks like litter, and since when.
#[derive(Debug, Clone, Default)]
pub struct Garbage {
    since: BTreeMap<Litter, Timestamp>,
}

impl Garbage {
    /// Takes a look in and answers what is to go. `busy` says of attachments that are not in the ledger whether they are about
    /// to be.
    pub fn look(
        &mut self,
        look: &Look,
        state: &State,
        busy: impl Fn(&Attachment) -> bool,
        now: Timestamp,
    ) -> Vec<Litter> {
        let seen = litter(look, state, busy);
        self.since.retain(|known, _| seen.contains(known));
        for one in seen {
            self.since.entry(one).or_insert(now);
        }
        self.since.iter().filter(|(_, since)| now.since(**since) > ADD_TAKES).map(|(one, _)| one.clone()).collect()
    }
}

/// What looks like litter now.
fn litter(look: &Look, state: &State, busy: impl Fn(&Attachment) -> bool) -> BTreeSet<Litter> {
    let ledger = state.ledger();
    let alive: BTreeSet<IpAddr> = look.routed.keys().map(|address| anchored(state, *address)).collect();
    let branches = state.branch_addresses();
    let mut dead: BTreeMap<IpAddr, BTreeSet<IpAddr>> = BTreeMap::new();
    for address in &look.dead {
        dead.entry(anchored(state, *address)).or_default().insert(*address);
    }
    let rules = dead.into_iter().filter(|(address, _)| !alive.contains(address));
    let rules = rules.filter_map(|(address, all)| {
        let owner = match ledger.address(address) {
            None if branches.contains(&address) => return None,
            Some(AddressState::Assigned { owner, since, .. }) => Some((owner.attachment.clone(), *since)),
            Some(AddressState::Quarantined { .. }) => None,
            // The next look finds it in quarantine.
            Some(AddressState::Free { .. } | AddressState::Cooling { .. }) => return None,
            None if of_pods(state, address) => None,
            None => return None,
        };
        Some(Litter::Rules { address, all, owner })
    });
    let routes = look.routed.iter().filter_map(|(address, dev)| {
        let own = ledger.address_of(look.marked.get(dev)?)?;
        let other = anchored(state, *address);
        (other != own && (ledger.address(other).is_some() || of_pods(state, other)))
            .then(|| Litter::Route(*address, dev.clone()))
    });
    let links = look.marked.iter().filter(|(dev, attachment)| {
        let routed = look.routed.values().any(|by| by == *dev);
        let known = ledger.address_of(attachment).is_some() || state.branch_of(attachment).is_some();
        !routed && !known && !busy(attachment)
    });
    let links = links.map(|(dev, attachment)| Litter::Link(dev.clone(), attachment.clone()));
    rules.chain(routes).chain(links).collect()
}

/// Whether an address that no ENI has now can have been a pod's of this node: the VPC's, or of a subnet that ENIs are or may be
/// in, whichever /80 of it an ENI had before.
fn of_pods(state: &State, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => state.node().is_some_and(|node| node.vpc_cidrs.iter().any(|net| net.contains(&v4))),
        IpAddr::V6(v6) => {
            // A subnet's CIDR is not known where EC2 is never asked.
            let mut delegated = state.ledger().enis().filter_map(|eni| eni.ipv6);
            let mut subnets = state.subnets().values().filter_map(|subnet| subnet.ipv6_cidr);
            subnets.any(|net| net.contains(&v6))
                || delegated.any(|own| own.net.network().to_bits() >> 64 == v6.to_bits() >> 64)
        }
    }
}

#[cfg(test)]
mod tests;
