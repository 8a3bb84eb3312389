//! The allocations of the AWS VPC CNI's daemon, as it keeps them: read at a takeover of its node, and written when the node
//! is handed back (reference/vpc-cni.md 2.5).
//!
//! The file tells of pods and addresses only, not of ENIs, cooldown or the pool: those are learnt from IMDS and EC2, and an
//! allocation is believed as far as the kernel shows its address alive.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use sluice_contract::id::{Attachment, ContainerId, IfName, NetworkName, PodRef};
use sluice_contract::node::nic;

use crate::checkpoint::SIZE_LIMIT;
use crate::ledger::{AddressState, Ledger};

/// The only format that there is.
pub const VERSION: &str = "vpc-cni-ipam/1";

/// The network's name in `10-aws.conflist`.
pub const NETWORK: &str = "aws-cni";

/// The network of allocations that releases before 1.7 had learnt from the runtime; they name no interface.
const MIGRATED_NETWORK: &str = "_migrated-from-cri";
const MIGRATED_IFNAME: &str = "unknown";

/// Why a document is not a list of allocations.
#[derive(Debug, thiserror::Error)]
pub enum AwsNodeError {
    /// It is too long to be one.
    #[error("the VPC CNI's allocations have {0} bytes, more than {SIZE_LIMIT}")]
    TooLong(usize),
    /// It is not JSON, or not of this form.
    #[error("the VPC CNI's allocations cannot be read")]
    Malformed(#[source] serde_json::Error),
    /// A release that keeps them otherwise has written it.
    #[error("the VPC CNI's allocations are of version {0:?}, and {VERSION:?} is read")]
    Version(String),
    /// A value makes no sense.
    #[error("{field} of allocation {index} is {value:?}: {why}")]
    Invalid {
        /// Which allocation, counted from 0.
        index: usize,
        /// The field.
        field: &'static str,
        /// What it says, cut to 80 characters.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// Two allocations name the same address, or the same interface of a sandbox.
    #[error("allocation {index} names {object}, which another one has")]
    Twice {
        /// Which allocation, counted from 0.
        index: usize,
        /// The address or the attachment.
        object: String,
    },
    /// It could not be written.
    #[error("the VPC CNI's allocations cannot be written")]
    Write(#[source] serde_json::Error),
}

/// A pod and its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// The sandbox's interface. The network is [`NETWORK`] where the file has the name of a migration.
    pub attachment: Attachment,
    /// The pod; names are empty where a migration did not know them.
    pub pod: PodRef,
    /// Its address.
    pub address: IpAddr,
    /// When it was given, in nanoseconds since 1970.
    pub since_nanos: i64,
}

/// Fields that a newer release adds are passed over: they are said of pods that run.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    version: String,
    #[serde(default)]
    allocations: Vec<Record>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    #[serde(rename = "networkName")]
    network: String,
    #[serde(rename = "containerID")]
    container: String,
    #[serde(rename = "ifName")]
    ifname: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipv4: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipv6: Option<String>,
    #[serde(rename = "allocationTimestamp", default)]
    since_nanos: i64,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Metadata {
    #[serde(rename = "k8sPodNamespace", default, skip_serializing_if = "String::is_empty")]
    namespace: String,
    #[serde(rename = "k8sPodName", default, skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(rename = "interfacesCount", default, skip_serializing_if = "is_zero")]
    interfaces: u32,
}

const fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Read before the rest, so that another version is told from a damaged file.
#[derive(Deserialize)]
struct Versioned {
    version: String,
}

/// Reads `ipam.json`.
///
/// # Errors
/// [`AwsNodeError`]; nothing of the file is used then.
pub fn read(document: &[u8]) -> Result<Vec<Allocation>, AwsNodeError> {
    if document.len() > SIZE_LIMIT {
        return Err(AwsNodeError::TooLong(document.len()));
    }
    let Versioned { version } = serde_json::from_slice(document).map_err(AwsNodeError::Malformed)?;
    if version != VERSION {
        return Err(AwsNodeError::Version(version.chars().take(80).collect()));
    }
    let document: Document = serde_json::from_slice(document).map_err(AwsNodeError::Malformed)?;
    let (mut addresses, mut attachments) = (BTreeSet::new(), BTreeSet::new());
    let mut allocations = Vec::with_capacity(document.allocations.len());
    for (index, record) in document.allocations.into_iter().enumerate() {
        let allocation = record.read(index)?;
        let twice = |object: String| AwsNodeError::Twice { index, object };
        if !addresses.insert(allocation.address) {
            return Err(twice(allocation.address.to_string()));
        }
        if !attachments.insert(allocation.attachment.clone()) {
            return Err(twice(allocation.attachment.to_string()));
        }
        allocations.push(allocation);
    }
    Ok(allocations)
}

impl Record {
    fn read(self, index: usize) -> Result<Allocation, AwsNodeError> {
        let invalid = |field, value: &str, why: String| AwsNodeError::Invalid {
            index,
            field,
            value: value.chars().take(80).collect(),
            why,
        };
        let migrated = self.network == MIGRATED_NETWORK;
        let network = if migrated { NETWORK } else { &self.network };
        let ifname = if migrated && self.ifname == MIGRATED_IFNAME { "eth0" } else { &self.ifname };
        let attachment = Attachment {
            container: ContainerId::new(&self.container)
                .map_err(|error| invalid("containerID", &self.container, error.to_string()))?,
            ifname: IfName::new(ifname).map_err(|error| invalid("ifName", ifname, error.to_string()))?,
            network: NetworkName::new(network).map_err(|error| invalid("networkName", network, error.to_string()))?,
        };
        let ipv4 = self.ipv4.as_deref().filter(|text| !text.is_empty());
        let ipv6 = self.ipv6.as_deref().filter(|text| !text.is_empty());
        let address = match (ipv4, ipv6) {
            (Some(text), None) => {
                text.parse().map(|ip: Ipv4Addr| IpAddr::V4(ip)).map_err(|error| ("ipv4", text, error))
            }
            (None, Some(text)) => {
                text.parse().map(|ip: Ipv6Addr| IpAddr::V6(ip)).map_err(|error| ("ipv6", text, error))
            }
            (Some(text), Some(_)) => return Err(invalid("ipv4", text, "there is an ipv6 beside it".to_owned())),
            (None, None) => return Err(invalid("ipv4", "", "there is no address".to_owned())),
        };
        let address = address.map_err(|(field, text, error)| invalid(field, text, error.to_string()))?;
        let pod = PodRef { namespace: self.metadata.namespace, name: self.metadata.name, uid: None };
        Ok(Allocation { attachment, pod, address, since_nanos: self.since_nanos })
    }
}

/// What the VPC CNI's daemon is to know of the pods of this ledger, by network card: `ipam.json` has those of card 0,
/// `ipam-nic-N.json` those of card N. Pods that it could not have served are left out: their names are not known, or they
/// have two families (of those it is told the IPv4 address).
///
/// Every allocation is of the network [`NETWORK`] and of a pod's first interface, because that is what the VPC CNI's plugin will
/// ask to delete: what it finds of that in so many files as the pod has interfaces.
///
/// # Errors
/// [`AwsNodeError::Write`]; it does not happen.
pub fn write(ledger: &Ledger) -> Result<BTreeMap<u32, Vec<u8>>, AwsNodeError> {
    let mut cards: BTreeMap<u32, Vec<Record>> = BTreeMap::from([(0, Vec::new())]);
    let mut interfaces: BTreeMap<Attachment, u32> = BTreeMap::new();
    for (attachment, _) in ledger.owners() {
        *interfaces.entry(nic::first(attachment)).or_default() += 1;
    }
    for eni in ledger.enis() {
        for (address, state) in eni.blocks.values().flat_map(|block| &block.addresses) {
            let AddressState::Assigned { owner, since, .. } = state else { continue };
            if owner.pod.name.is_empty() {
                continue;
            }
            let nanos = i64::try_from(since.as_millis()).unwrap_or(0).saturating_mul(1_000_000);
            let (ipv4, ipv6) = match address {
                IpAddr::V4(ip) => (Some(ip.to_string()), None),
                IpAddr::V6(ip) => (None, Some(ip.to_string())),
            };
            let first = nic::first(&owner.attachment);
            cards.entry(eni.card).or_default().push(Record {
                network: NETWORK.to_owned(),
                container: first.container.to_string(),
                ifname: first.ifname.to_string(),
                ipv4,
                ipv6,
                since_nanos: nanos,
                metadata: Metadata {
                    namespace: owner.pod.namespace.clone(),
                    name: owner.pod.name.clone(),
                    interfaces: interfaces.get(&first).copied().unwrap_or(1),
                },
            });
        }
    }
    let document = |allocations| {
        let document = Document { version: VERSION.to_owned(), allocations };
        serde_json::to_vec(&document).map_err(AwsNodeError::Write)
    };
    cards.into_iter().map(|(card, allocations)| Ok((card, document(allocations)?))).collect()
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
