//! The state as it is kept on disk: one JSON document with a version, read strictly.
//!
//! What is under way is not kept: after a crash its outcome is unknown, so every ENI that was being worked on is marked as
//! unsure, and creates are repeated with the client token of their intent.

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
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    version: String,
    written: Timestamp,
    seed: u64,
    sequence: u64,
    node: Option<NodeRecord>,
    enis: Vec<EniRecord>,
    intents: BTreeMap<String, Intent>,
    subnets: BTreeMap<SubnetId, Subnet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    eni_config: Option<EniConfig>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Ipv4Net>,
    strays: BTreeSet<IpAddr>,
    last_grown: Option<Timestamp>,
    last_shrunk: Option<Timestamp>,
    found_cool_until: Option<Timestamp>,
    resurvey_at: Option<Timestamp>,
    hearsay_until: Option<Timestamp>,
    #[serde(default)]
    arrivals: Arrivals,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    branches: Vec<Held>,
}

/// The node with what its object says. It is here that a version of before passes over what it does not know; elsewhere it would put
/// the whole document aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct NodeRecord {
    #[serde(flatten)]
    node: Node,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_pods: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EniRecord {
    id: EniId,
    mac: MacAddr,
    card: u32,
    device: Option<u32>,
    subnet: SubnetId,
    subnet_cidr: Ipv4Net,
    primary_ip: Ipv4Addr,
    #[serde(default)]
    security_groups: Vec<SecurityGroupId>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    missing_tags: BTreeMap<String, String>,
    interface_type: InterfaceType,
    role: Role,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    closed: bool,
    stage: Stage,
    since: Timestamp,
    attachment: Option<AttachmentId>,
    delete_on_termination: bool,
    unsure: bool,
    not_before: Option<Timestamp>,
    recheck: Option<Timestamp>,
    confirmed: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipv6: Option<Delegation>,
    blocks: BTreeMap<IpNet, BlockRecord>,
    departed: BTreeMap<IpNet, Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BlockRecord {
    added: Timestamp,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    withdrawn: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    hearsay: bool,
    /// Addresses that have not been free ever since the block came.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    addresses: BTreeMap<IpAddr, AddressRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum AddressRecord {
    Free {
        since: Timestamp,
    },
    Assigned {
        owner: Owner,
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

impl Checkpoint {
    /// The state as it is to be written at `now`.
    #[must_use]
    pub fn of(state: &State, now: Timestamp) -> Self {
        let busy: BTreeSet<&EniId> = state.flights.values().filter_map(crate::op::Op::eni).collect();
        Self {
            version: VERSION.to_owned(),
            written: now,
            seed: state.seed,
            sequence: state.sequence,
            node: state.node.clone().map(|node| NodeRecord { node, max_pods: state.max_pods }),
            enis: state.ledger.enis().map(|eni| EniRecord::of(eni, busy.contains(&eni.id), now)).collect(),
            intents: state.intents.clone(),
            subnets: state.subnets.clone(),
            eni_config: state.eni_config.clone(),
            routes: state.routes.clone(),
            strays: state.ledger.strays().clone(),
            last_grown: state.last_grown,
            last_shrunk: state.last_shrunk,
            found_cool_until: state.found_cool_until,
            resurvey_at: state.resurvey_at,
            hearsay_until: state.hearsay_until,
            arrivals: state.arrivals.kept(),
            branches: state.branches.values().cloned().collect(),
        }
    }

    /// When it was written.
    #[must_use]
    pub const fn written(&self) -> Timestamp {
        self.written
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
        let back = self.written.since(now);
        let (node, max_pods) = self.node.map_or((None, None), |record| (Some(record.node), record.max_pods));
        let mut state = State {
            node,
            max_pods,
            intents: self.intents,
            subnets: self.subnets,
            eni_config: self.eni_config,
            routes: self.routes,
            seed: self.seed,
            sequence: self.sequence,
            last_grown: self.last_grown.map(|at| at.earlier(back)),
            last_shrunk: self.last_shrunk.map(|at| at.earlier(back)),
            found_cool_until: self.found_cool_until.map(|at| at.earlier(back)),
            resurvey_at: self.resurvey_at.map(|at| at.earlier(back)),
            hearsay_until: self.hearsay_until.map(|at| at.earlier(back)),
            arrivals: self.arrivals.bounded(),
            branches: BTreeMap::new(),
            survey_at: Some(now),
            imds_trusted: false,
            ..State::default()
        };
        state.arrivals.set_back(back);
        for record in self.enis {
            record.restore(&mut state, back)?;
        }
        state.ledger.restore_strays(self.strays);
        for held in self.branches {
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

impl EniRecord {
    fn of(eni: &Eni, busy: bool, now: Timestamp) -> Self {
        Self {
            id: eni.id.clone(),
            mac: eni.mac,
            card: eni.card,
            device: eni.device,
            subnet: eni.subnet.clone(),
            subnet_cidr: eni.subnet_cidr,
            primary_ip: eni.primary_ip,
            security_groups: eni.security_groups.clone(),
            missing_tags: eni.missing_tags.clone(),
            interface_type: eni.interface_type,
            role: eni.role,
            closed: eni.closed,
            stage: eni.stage,
            since: eni.since,
            attachment: eni.attachment.clone(),
            delete_on_termination: eni.delete_on_termination,
            unsure: eni.unsure || busy,
            not_before: eni.not_before,
            recheck: if busy { Some(now + SETTLE) } else { eni.recheck },
            confirmed: eni.confirmed,
            ipv6: eni.ipv6,
            blocks: eni.blocks.iter().map(|(net, block)| (*net, BlockRecord::of(block))).collect(),
            departed: eni.departed.clone(),
        }
    }

    fn restore(self, state: &mut State, back: Duration) -> Result<(), CheckpointError> {
        let id = self.id.clone();
        let ledger = &mut state.ledger;
        ledger.add_eni(Eni {
            id: self.id,
            mac: self.mac,
            card: self.card,
            device: self.device,
            subnet: self.subnet,
            subnet_cidr: self.subnet_cidr,
            primary_ip: self.primary_ip,
            security_groups: self.security_groups,
            connection_tracking: None,
            missing_tags: self.missing_tags,
            interface_type: self.interface_type,
            role: self.role,
            closed: self.closed,
            stage: self.stage,
            since: self.since.earlier(back),
            attachment: self.attachment,
            delete_on_termination: self.delete_on_termination,
            unsure: self.unsure,
            not_before: self.not_before.map(|at| at.earlier(back)),
            recheck: self.recheck.map(|at| at.earlier(back)),
            confirmed: self.confirmed.map(|at| at.earlier(back)),
            ipv6: self.ipv6.map(|ipv6| Delegation { since: ipv6.since.earlier(back), ..ipv6 }),
            blocks: BTreeMap::new(),
            departed: BTreeMap::new(),
        })?;
        for (net, block) in self.blocks {
            ledger.add_blocks(&id, [net], None, block.added.earlier(back))?;
            for (address, record) in block.addresses {
                if !net.contains(&address) {
                    return Err(LedgerError::UnknownAddress(address).into());
                }
                match record {
                    AddressRecord::Assigned { owner, ipv6, since } => {
                        ledger.restore_owner(address, Arc::new(owner), ipv6, since.earlier(back))?;
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
        let departed = self.departed.into_iter().map(|(net, at)| (net, at.earlier(back)));
        ledger.eni_mut(&id)?.departed.extend(departed);
        Ok(())
    }
}

impl BlockRecord {
    fn of(block: &Block) -> Self {
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

impl AddressRecord {
    fn of(state: &AddressState) -> Self {
        match state {
            AddressState::Free { since } => Self::Free { since: *since },
            AddressState::Assigned { owner, ipv6, since } => {
                Self::Assigned { owner: Owner::clone(owner), ipv6: *ipv6, since: *since }
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
