//! The state as it is kept on disk: one JSON document with a version, read strictly.
//!
//! What is under way is not kept: after a crash its outcome is unknown, so every ENI that was being worked on is marked as
//! unsure, and creates are repeated with the client token of their intent.

mod entries;
mod writer;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use sluice_contract::id::{AttachmentId, EniId, MacAddr, SecurityGroupId, SubnetId};

use crate::arrivals::Arrivals;
use crate::branch::Held;
use crate::check::{Violation, check};
use crate::cloud::{EniConfig, InterfaceType};
use crate::ipv6::Delegation;
use crate::ledger::{AddressState, Block, Eni, LedgerError, Owner, Role, Stage};
use crate::state::{Intent, Node, SETTLE, State, Subnet};
use crate::time::Timestamp;
use entries::Entries;

pub use writer::Writer;

/// The format that this build writes, and the only one that it reads.
pub const VERSION: &str = "sluice-ipam/1";

/// Longer than any document of a real node (250 pods take 150 KB): what is longer is not read.
pub const SIZE_LIMIT: usize = 16 << 20;

/// Why a document is not a checkpoint. The daemon keeps the file aside and goes on without it.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It is too long to be one.
    #[error("the checkpoint has {0} bytes, more than {SIZE_LIMIT}")]
    TooLong(usize),
    /// There is none, though there ought to be.
    #[error("there is no checkpoint, though a daemon has served since the node booted")]
    Missing,
    /// It is not JSON, or not of this form.
    #[error("the checkpoint cannot be read")]
    Malformed(#[source] serde_json::Error),
    /// Another version of Sluice, or another program, has written it.
    #[error("the checkpoint is of version {0:?}, and this is {VERSION:?}")]
    Version(String),
    /// Its parts contradict each other.
    #[error("the checkpoint contradicts itself")]
    Ledger(#[from] LedgerError),
    /// It breaks a rule that every state keeps.
    #[error("the checkpoint breaks a rule: {0}")]
    Rule(Violation),
    /// It could not be written.
    #[error("the checkpoint cannot be written")]
    Write(#[source] serde_json::Error),
}

/// A state in the form in which it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Checkpoint<'a>(Document<'a, EniRecord<'a>>);

/// It is made for every pod that comes or goes, so it borrows what is large.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<'a, E> {
    version: Cow<'a, str>,
    written: Timestamp,
    seed: u64,
    sequence: u64,
    node: Option<NodeRecord<'a>>,
    enis: Vec<E>,
    intents: Cow<'a, BTreeMap<String, Intent>>,
    subnets: Cow<'a, BTreeMap<SubnetId, Subnet>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    eni_config: Option<Cow<'a, EniConfig>>,
    #[serde(default, skip_serializing_if = "<[Ipv4Net]>::is_empty")]
    routes: Cow<'a, [Ipv4Net]>,
    strays: Cow<'a, BTreeSet<IpAddr>>,
    last_grown: Option<Timestamp>,
    last_shrunk: Option<Timestamp>,
    found_cool_until: Option<Timestamp>,
    resurvey_at: Option<Timestamp>,
    hearsay_until: Option<Timestamp>,
    #[serde(default)]
    arrivals: Arrivals,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    branches: Vec<Cow<'a, Held>>,
}

/// The node with what its object says. It is here that a version of before passes over what it does not know; elsewhere it would put
/// the whole document aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct NodeRecord<'a> {
    #[serde(flatten)]
    node: Cow<'a, Node>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_pods: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EniRecord<'a> {
    id: Cow<'a, EniId>,
    mac: MacAddr,
    card: u32,
    device: Option<u32>,
    subnet: Cow<'a, SubnetId>,
    subnet_cidr: Ipv4Net,
    primary_ip: Ipv4Addr,
    #[serde(default)]
    security_groups: Cow<'a, [SecurityGroupId]>,
    #[serde(default, skip_serializing_if = "is_empty")]
    missing_tags: Cow<'a, BTreeMap<String, String>>,
    interface_type: InterfaceType,
    role: Role,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    closed: bool,
    stage: Stage,
    since: Timestamp,
    attachment: Option<Cow<'a, AttachmentId>>,
    delete_on_termination: bool,
    unsure: bool,
    not_before: Option<Timestamp>,
    recheck: Option<Timestamp>,
    confirmed: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipv6: Option<Delegation>,
    blocks: Entries<IpNet, BlockRecord<'a>>,
    departed: Cow<'a, BTreeMap<IpNet, Timestamp>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BlockRecord<'a> {
    added: Timestamp,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    withdrawn: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    hearsay: bool,
    /// Addresses that have not been free ever since the block came.
    #[serde(default, skip_serializing_if = "Entries::is_empty")]
    addresses: Entries<IpAddr, AddressRecord<'a>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum AddressRecord<'a> {
    Free {
        since: Timestamp,
    },
    Assigned {
        owner: Cow<'a, Owner>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ipv6: Option<Ipv6Addr>,
        since: Timestamp,
    },
    Cooling {
        until: Timestamp,
    },
    Quarantined {
        since: Timestamp,
    },
}

/// Read before the rest, so that another version is told from a damaged file.
#[derive(Deserialize)]
struct Versioned {
    version: String,
}

// As serde asks it.
#[expect(clippy::ptr_arg, reason = "serde gives the field as it is")]
fn is_empty(tags: &Cow<'_, BTreeMap<String, String>>) -> bool {
    tags.is_empty()
}

impl<'a, E> Document<'a, E> {
    fn of(state: &'a State, now: Timestamp, enis: Vec<E>) -> Self {
        Self {
            version: VERSION.into(),
            written: now,
            seed: state.seed,
            sequence: state.sequence,
            node: state.node.as_ref().map(|node| NodeRecord { node: Cow::Borrowed(node), max_pods: state.max_pods }),
            enis,
            intents: Cow::Borrowed(&state.intents),
            subnets: Cow::Borrowed(&state.subnets),
            eni_config: state.eni_config.as_ref().map(Cow::Borrowed),
            routes: Cow::Borrowed(&state.routes),
            strays: Cow::Borrowed(state.ledger.strays()),
            last_grown: state.last_grown,
            last_shrunk: state.last_shrunk,
            found_cool_until: state.found_cool_until,
            resurvey_at: state.resurvey_at,
            hearsay_until: state.hearsay_until,
            arrivals: state.arrivals.kept(),
            branches: state.branches.values().map(Cow::Borrowed).collect(),
        }
    }
}

/// The ENIs that are being worked on.
fn busy(state: &State) -> BTreeSet<&EniId> {
    state.flights.values().filter_map(crate::op::Op::eni).collect()
}

impl<'a> Checkpoint<'a> {
    /// The state as it is to be written at `now`.
    #[must_use]
    pub fn of(state: &'a State, now: Timestamp) -> Self {
        let busy = busy(state);
        let enis = state.ledger.enis().map(|eni| EniRecord::of(eni, busy.contains(&eni.id), now));
        Self(Document::of(state, now, enis.collect()))
    }

    /// When it was written.
    #[must_use]
    pub const fn written(&self) -> Timestamp {
        self.0.written
    }

    /// The document.
    ///
    /// # Errors
    /// [`CheckpointError::Write`]; it does not happen with a state that was made by events.
    pub fn to_json(&self) -> Result<Vec<u8>, CheckpointError> {
        serde_json::to_vec(self).map_err(CheckpointError::Write)
    }

    /// Reads a document.
    ///
    /// # Errors
    /// [`CheckpointError`] says what it is instead of a checkpoint.
    pub fn from_json(document: &[u8]) -> Result<Self, CheckpointError> {
        if document.len() > SIZE_LIMIT {
            return Err(CheckpointError::TooLong(document.len()));
        }
        let Versioned { version } = serde_json::from_slice(document).map_err(CheckpointError::Malformed)?;
        if version != VERSION {
            return Err(CheckpointError::Version(version));
        }
        serde_json::from_slice(document).map_err(CheckpointError::Malformed)
    }

    /// The state that it describes, at `now`. If the clock has been set back since, all of its times are set back with it:
    /// no address is free later because of that, and none cools for less.
    ///
    /// # Errors
    /// [`CheckpointError::Ledger`] and [`CheckpointError::Rule`] when it contradicts itself.
    pub fn into_state(self, now: Timestamp) -> Result<State, CheckpointError> {
        let document = self.0;
        let back = document.written.since(now);
        let (node, max_pods) =
            document.node.map_or((None, None), |record| (Some(record.node.into_owned()), record.max_pods));
        let mut state = State {
            node,
            max_pods,
            intents: document.intents.into_owned(),
            subnets: document.subnets.into_owned(),
            eni_config: document.eni_config.map(Cow::into_owned),
            routes: document.routes.into_owned(),
            seed: document.seed,
            sequence: document.sequence,
            last_grown: document.last_grown.map(|at| at.earlier(back)),
            last_shrunk: document.last_shrunk.map(|at| at.earlier(back)),
            found_cool_until: document.found_cool_until.map(|at| at.earlier(back)),
            resurvey_at: document.resurvey_at.map(|at| at.earlier(back)),
            hearsay_until: document.hearsay_until.map(|at| at.earlier(back)),
            arrivals: document.arrivals.bounded(),
            branches: BTreeMap::new(),
            survey_at: Some(now),
            imds_trusted: false,
            ..State::default()
        };
        state.arrivals.set_back(back);
        for record in document.enis {
            record.restore(&mut state, back)?;
        }
        state.ledger.restore_strays(document.strays.into_owned());
        for held in document.branches.into_iter().map(Cow::into_owned) {
            let since = held.since.earlier(back);
            // One that contradicts the rest is forgotten: an annotation that was forged may say what the pool has had since, and
            // the pool does not hang on it.
            let _contradicts = state.branch_held(Held { since, ..held }).is_err();
        }
        // Somebody may have moved an ENI to another network card: that is told, and no reason to forget who has what.
        let is_damage = |violation: &Violation| !matches!(violation, Violation::CardTwice(_));
        match check(&state, now).into_iter().find(is_damage) {
            Some(violation) => Err(CheckpointError::Rule(violation)),
            None => Ok(state),
        }
    }
}

impl<'a> EniRecord<'a> {
    fn of(eni: &'a Eni, busy: bool, now: Timestamp) -> Self {
        Self {
            id: Cow::Borrowed(&eni.id),
            mac: eni.mac,
            card: eni.card,
            device: eni.device,
            subnet: Cow::Borrowed(&eni.subnet),
            subnet_cidr: eni.subnet_cidr,
            primary_ip: eni.primary_ip,
            security_groups: Cow::Borrowed(&eni.security_groups),
            missing_tags: Cow::Borrowed(&eni.missing_tags),
            interface_type: eni.interface_type,
            role: eni.role,
            closed: eni.closed,
            stage: eni.stage,
            since: eni.since,
            attachment: eni.attachment.as_ref().map(Cow::Borrowed),
            delete_on_termination: eni.delete_on_termination,
            unsure: eni.unsure || busy,
            not_before: eni.not_before,
            recheck: if busy { Some(now + SETTLE) } else { eni.recheck },
            confirmed: eni.confirmed,
            ipv6: eni.ipv6,
            blocks: eni.blocks.iter().map(|(net, block)| (*net, BlockRecord::of(block))).collect(),
            departed: Cow::Borrowed(&eni.departed),
        }
    }

    fn restore(self, state: &mut State, back: Duration) -> Result<(), CheckpointError> {
        let id = self.id.into_owned();
        let ledger = &mut state.ledger;
        ledger.add_eni(Eni {
            id: id.clone(),
            mac: self.mac,
            card: self.card,
            device: self.device,
            subnet: self.subnet.into_owned(),
            subnet_cidr: self.subnet_cidr,
            primary_ip: self.primary_ip,
            security_groups: self.security_groups.into_owned(),
            connection_tracking: None,
            missing_tags: self.missing_tags.into_owned(),
            interface_type: self.interface_type,
            role: self.role,
            closed: self.closed,
            stage: self.stage,
            since: self.since.earlier(back),
            attachment: self.attachment.map(Cow::into_owned),
            delete_on_termination: self.delete_on_termination,
            unsure: self.unsure,
            not_before: self.not_before.map(|at| at.earlier(back)),
            recheck: self.recheck.map(|at| at.earlier(back)),
            confirmed: self.confirmed.map(|at| at.earlier(back)),
            ipv6: self.ipv6.map(|ipv6| Delegation { since: ipv6.since.earlier(back), ..ipv6 }),
            blocks: BTreeMap::new(),
            departed: BTreeMap::new(),
        })?;
        for (net, block) in self.blocks.into_iter() {
            ledger.add_blocks(&id, [net], None, block.added.earlier(back))?;
            for (address, record) in block.addresses.into_iter() {
                if !net.contains(&address) {
                    return Err(LedgerError::UnknownAddress(address).into());
                }
                match record {
                    AddressRecord::Assigned { owner, ipv6, since } => {
                        ledger.restore_owner(address, Arc::new(owner.into_owned()), ipv6, since.earlier(back))?;
                    }
                    AddressRecord::Free { since } => {
                        ledger.set_unowned(address, AddressState::Free { since: since.earlier(back) })?;
                    }
                    AddressRecord::Cooling { until } => {
                        ledger.set_unowned(address, AddressState::Cooling { until: until.earlier(back) })?;
                    }
                    AddressRecord::Quarantined { since } => {
                        ledger.set_unowned(address, AddressState::Quarantined { since: since.earlier(back) })?;
                    }
                }
            }
            ledger.set_withdrawn(&id, net, block.withdrawn)?;
            ledger.set_hearsay(&id, net, block.hearsay)?;
        }
        let departed = self.departed.iter().map(|(net, at)| (*net, at.earlier(back)));
        ledger.eni_mut(&id)?.departed.extend(departed);
        Ok(())
    }
}

impl<'a> BlockRecord<'a> {
    fn of(block: &'a Block) -> Self {
        let untouched = AddressState::Free { since: block.added };
        let touched = block.addresses.iter().filter(|(_, state)| **state != untouched);
        Self {
            added: block.added,
            withdrawn: block.withdrawn,
            hearsay: block.hearsay,
            addresses: touched.map(|(address, state)| (*address, AddressRecord::of(state))).collect(),
        }
    }
}

impl<'a> AddressRecord<'a> {
    fn of(state: &'a AddressState) -> Self {
        match state {
            AddressState::Free { since } => Self::Free { since: *since },
            AddressState::Assigned { owner, ipv6, since } => {
                Self::Assigned { owner: Cow::Borrowed(owner), ipv6: *ipv6, since: *since }
            }
            AddressState::Cooling { until } => Self::Cooling { until: *until },
            AddressState::Quarantined { since } => Self::Quarantined { since: *since },
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::full_document;
