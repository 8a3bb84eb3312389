//! The image of the kernel's maps, and the lookups that the kernel's program makes in them.
//!
//! [`Image::judge`] reads the maps as the program does, in the same order and with no precedence to work out: what has
//! precedence over what was folded into the rows. The maps, and how one is found from the other:
//!
//! ```text
//! endpoints  pod                        -> policy ids, own addresses, revision
//! names      longest prefix             -> identity      looked up first
//! ipcache    longest prefix             -> identity      then; nothing there: Identity::WORLD
//! frontends  address, protocol, port    -> identity      on egress, before both
//! peers      policy, identity           -> row           nothing there: policy, Identity::ANY (of a frontend: FRONTEND)
//! rows       row, protocol, port prefix -> decision      longest prefix
//! decisions  decision                   -> verdict and reason
//! ```

mod canonical;
mod prefixes;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::row::Row;
use crate::cluster::PodKey;
use crate::flow::{Direction, Judgement, Origin, Outcome, Protocol, Proxied, Query, Reason, Verdict};
use crate::pack::pack_map;

pub use canonical::{Canonical, CanonicalAddress, CanonicalEndpoint};
pub use prefixes::Prefixes;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);
    };
}

number! {
    /// An equivalence class of addresses, or a frontend of a Service.
    Identity
}
number! {
    /// The policies of one direction that endpoints share.
    PolicyId
}
number! {
    /// A row, shared by all peers of all policies for which the same happens.
    RowId
}
number! {
    /// A verdict with its reason; the number is what the kernel's events carry.
    DecisionId
}

impl Identity {
    /// The row of all identities that a policy does not list.
    pub const ANY: Self = Self(0);
    /// The own node, as the origin of ingress traffic.
    pub const HOST: Self = Self(1);
    /// An address that no prefix holds. The image has a prefix for every address, so this is for maps that are not filled yet.
    pub const WORLD: Self = Self(2);
    /// The row of all frontends that a policy does not list.
    pub const FRONTEND: Self = Self(3);
    /// The first number that is given to a class.
    pub const FIRST: Self = Self(256);
}

impl PolicyId {
    /// No policy: everything passes.
    pub const NONE: Self = Self(0);
}

/// What a row's entries are in the image.
pub type RowEntries = Row<DecisionId>;

/// Address, protocol and port that the node's service proxy translates.
pub type FrontendKey = (IpAddr, Protocol, u16);

/// The gate of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod's addresses, ascending: what it sends from, and what it may always reach.
    pub addresses: Vec<OwnAddress>,
    /// Policy for what goes to the pod.
    pub ingress: PolicyId,
    /// Policy for what goes out of it.
    pub egress: PolicyId,
    /// The gate is a dry run: it records, and lets pass.
    pub audit: bool,
    /// Moves when established flows have to be judged again (DESIGN 6.5).
    pub revision: u64,
}

/// An address of a pod, and what happens to the pod's packets to itself through one of its Services (DESIGN 6.11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnAddress {
    /// The address.
    pub address: IpAddr,
    /// Hairpin, at ingress; none where there is no ingress policy.
    pub ingress: Option<RowId>,
    /// Hairpin, at egress.
    pub egress: Option<RowId>,
}

impl Endpoint {
    /// The policy of a direction.
    #[must_use]
    pub const fn policy(&self, direction: Direction) -> PolicyId {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    /// Whether all but the revision is equal.
    #[must_use]
    pub fn same_but_revision(&self, other: &Self) -> bool {
        self.addresses == other.addresses
            && self.ingress == other.ingress
            && self.egress == other.egress
            && self.audit == other.audit
    }
}

/// All maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// Addresses that names were seen to resolve to; host prefixes.
    pub names: Prefixes,
    /// Pods, nodes, API servers, and every prefix that a policy names.
    pub ipcache: Prefixes,
    /// What the service proxy translates.
    pub frontends: BTreeMap<FrontendKey, Identity>,
    /// Which row a policy has for an identity.
    pub peers: BTreeMap<(PolicyId, Identity), RowId>,
    /// Rows.
    pub rows: BTreeMap<RowId, Arc<RowEntries>>,
    /// Verdicts with their reasons.
    pub decisions: BTreeMap<DecisionId, Arc<Judgement>>,
    /// Gates.
    pub endpoints: BTreeMap<PodKey, Arc<Endpoint>>,
}

/// Number of entries of a map, and their bytes in the kernel (keys and values, without the kernel's own overhead).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapSize {
    /// Name of the map.
    pub map: &'static str,
    /// Entries.
    pub entries: usize,
    /// Bytes of an entry, key and value.
    pub entry_bytes: usize,
}

impl MapSize {
    /// Bytes of all entries.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.entries.saturating_mul(self.entry_bytes)
    }
}

impl Image {
    /// Less room for what is held.
    pub(super) fn pack(&mut self) {
        self.ipcache.pack();
        self.names.pack();
        pack_map(&mut self.frontends);
        pack_map(&mut self.peers);
    }

    /// The size of each map.
    #[must_use]
    pub fn sizes(&self) -> Vec<MapSize> {
        let rows = self.rows.values().map(|row| row.entries.len()).sum();
        let size = |map, entries, entry_bytes| MapSize { map, entries, entry_bytes };
        vec![
            // u32 prefix length + u8[16] -> u32
            size("names", self.names.len(), 24),
            size("ipcache", self.ipcache.len(), 24),
            // u8[16] + u16 + u8 + padding -> u32
            size("frontends", self.frontends.len(), 24),
            // u32 + u32 -> u32
            size("peers", self.peers.len(), 12),
            // u32 prefix length + u32 + u8 + u16 + padding -> u32
            size("rows", rows, 16),
            // u32 -> verdict, proxy port, flags
            size("decisions", self.decisions.len(), 12),
            // u32 interface -> id, two policies, flags, revision, two addresses with two rows each
            size("endpoints", self.endpoints.len(), 80),
        ]
    }

    /// Whether the first packet of a flow passes, as the kernel's program finds it.
    #[must_use]
    pub fn judge(&self, query: &Query) -> Judgement {
        let Some(endpoint) = self.endpoints.get(&query.subject) else {
            return allow(Reason::Unknown);
        };
        let judgement = self.gate(endpoint, query);
        if endpoint.audit { audited(judgement) } else { judgement }
    }

    fn gate(&self, endpoint: &Endpoint, query: &Query) -> Judgement {
        let peer = query.peer.to_canonical();
        let own = endpoint.addresses.iter().find(|own| own.address == peer);
        let policy = endpoint.policy(query.direction);
        if let Some(own) = own {
            let row = match (query.origin, query.direction) {
                (Origin::Forwarded | Origin::OwnNode, _) => return allow(Reason::OwnAddress),
                (Origin::Hairpin, Direction::Ingress) => own.ingress,
                (Origin::Hairpin, Direction::Egress) => own.egress,
            };
            return row.map_or_else(|| allow(Reason::NoPolicy), |row| self.decide(row, query));
        }
        let frontend = match query.direction {
            Direction::Egress => self.frontends.get(&(peer, query.protocol, query.port)),
            Direction::Ingress => None,
        };
        let own_node = query.direction == Direction::Ingress && query.origin == Origin::OwnNode;
        if policy == PolicyId::NONE {
            return match frontend {
                Some(_) => Judgement { verdict: Verdict::Defer, reason: Reason::Service, audit: None },
                None if own_node => allow(Reason::OwnNode),
                None => allow(Reason::NoPolicy),
            };
        }
        let (identity, otherwise) = match frontend {
            Some(identity) => (*identity, Identity::FRONTEND),
            None if own_node => (Identity::HOST, Identity::ANY),
            None => (self.identity(peer), Identity::ANY),
        };
        match self.row(policy, identity, otherwise) {
            Some(row) => self.decide(row, query),
            None => broken(),
        }
    }

    /// The identity of an address.
    #[must_use]
    pub fn identity(&self, address: IpAddr) -> Identity {
        self.names.longest(address).or_else(|| self.ipcache.longest(address)).unwrap_or(Identity::WORLD)
    }

    /// The row of an identity; `otherwise` is looked up where the policy does not list it.
    #[must_use]
    pub fn row(&self, policy: PolicyId, identity: Identity, otherwise: Identity) -> Option<RowId> {
        self.peers.get(&(policy, identity)).or_else(|| self.peers.get(&(policy, otherwise))).copied()
    }

    fn decide(&self, row: RowId, query: &Query) -> Judgement {
        let decision = self.rows.get(&row).and_then(|row| row.get(query.protocol, query.port));
        match decision.and_then(|decision| self.decisions.get(decision)) {
            Some(judgement) => Judgement::clone(judgement),
            None => broken(),
        }
    }

    /// The identity of a whole prefix in the ipcache, if it has an entry of its own.
    #[must_use]
    pub fn prefix(&self, prefix: &IpNet) -> Option<Identity> {
        self.ipcache.get(prefix)
    }
}

const fn allow(reason: Reason) -> Judgement {
    Judgement { verdict: Verdict::Allow, reason, audit: None }
}

/// What a lookup gives that finds nothing where something has to be: the packet is dropped. No image of the engine has
/// such a hole.
const fn broken() -> Judgement {
    Judgement { verdict: Verdict::Deny, reason: Reason::Unknown, audit: None }
}

/// What a gate that is a dry run makes of a judgement: it records what all policies say, and lets pass. A redirected flow
/// is still proxied, so that its requests are seen.
#[must_use]
pub fn audited(judgement: Judgement) -> Judgement {
    let full = match judgement.audit {
        Some(full) => *full,
        None => judgement,
    };
    match &full.verdict {
        // A deferred flow is judged, and recorded, where its backend can be seen.
        Verdict::Allow | Verdict::Defer => full,
        Verdict::Deny => Judgement { verdict: Verdict::Allow, reason: Reason::NoPolicy, audit: Some(Box::new(full)) },
        Verdict::Redirect(proxied) => Judgement {
            verdict: Verdict::Redirect(Proxied {
                lists: proxied.lists.clone(),
                see: proxied.see,
                otherwise: Outcome::Allow(Reason::NoPolicy),
            }),
            reason: full.reason.clone(),
            audit: Some(Box::new(full)),
        },
    }
}
