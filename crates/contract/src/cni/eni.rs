//! What is our own in a configuration and in a result: the options of sluice-eni, and the attachment that it reports.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::conf::{ConfError, NetConf, absolute, rule};
use crate::id::{EniId, IfName, MacAddr, VlanId};
use crate::node;
use crate::rpc::PodAddress;

/// The key of [`EniAttachment`] in a result. libcni reads results into its own types, so that it passes over the key
/// and hands it on to nobody: a chained plugin asks ipamd (`rpc::Call::Check`) when it does not find it.
pub const ATTACHMENT_KEY: &str = "sluice.dev/attachment";
/// The key of a list of [`EniAttachment`] in the result of a pod that has further interfaces ([`node::nic`]), in their
/// order. [`ATTACHMENT_KEY`] is that of the first.
pub const FURTHER_ATTACHMENTS_KEY: &str = "sluice.dev/further-attachments";

/// The smallest MTU of a pod, in bytes: what every IPv4 host must take (RFC 791). Pods with IPv6 need 1280 (RFC 8200).
const MTU_MIN: u32 = 576;
/// The largest, in bytes: what a VPC carries.
const MTU_MAX: u32 = node::MTU;
/// The default of [`EniConf::deadline`].
const DEADLINE: Duration = Duration::from_secs(60);
/// The longest deadline: the kubelet gives a sandbox four minutes.
const DEADLINE_MAX: Duration = Duration::from_secs(240);

/// The options of sluice-eni in its configuration. `vethPrefix` and `mtu` are those of the VPC CNI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniConf {
    /// `vethPrefix`: how the names of host interfaces start; [`node::is_veth_prefix`].
    pub veth_prefix: String,
    /// `mtu`, a number or a string: the pod's MTU in bytes. `None` leaves it to ipamd.
    pub mtu: Option<u32>,
    /// `ipamdSocket`: where ipamd listens.
    pub ipamd_socket: PathBuf,
    /// `runDir`: the node's state directory, with tombstones and the ready mark.
    pub run_dir: PathBuf,
    /// `deadlineSeconds`: how long an ADD waits for an address.
    pub deadline: Duration,
    /// `gated`: sluice-policy follows in the list, so that the pod is closed until its policy is in force.
    pub gated: bool,
}

impl Default for EniConf {
    fn default() -> Self {
        Self {
            veth_prefix: node::VETH_PREFIX.to_owned(),
            mtu: None,
            ipamd_socket: node::IPAMD_SOCKET.into(),
            run_dir: node::RUN_DIR.into(),
            deadline: DEADLINE,
            gated: false,
        }
    }
}

impl EniConf {
    /// Reads the options out of a configuration.
    ///
    /// # Errors
    /// [`ConfError::Rule`] for a value that cannot be used.
    pub fn of(conf: &NetConf) -> Result<Self, ConfError> {
        let mut options = Self::default();
        let field = |name: &str| conf.plugin.get(name).filter(|value| !value.is_null());
        if let Some(prefix) = field("vethPrefix") {
            options.veth_prefix = veth_prefix(prefix)?;
        }
        if let Some(mtu) = field("mtu") {
            options.mtu = mtu_of(mtu)?;
        }
        if let Some(path) = field("ipamdSocket") {
            options.ipamd_socket = absolute("ipamdSocket", path)?;
        }
        if let Some(path) = field("runDir") {
            options.run_dir = absolute("runDir", path)?;
        }
        if let Some(seconds) = field("deadlineSeconds") {
            let allowed = 1..=DEADLINE_MAX.as_secs();
            let seconds = seconds.as_u64().filter(|seconds| allowed.contains(seconds));
            options.deadline = Duration::from_secs(seconds.ok_or_else(|| {
                rule("deadlineSeconds", format!("it must be a number of seconds, {} to {}", 1, DEADLINE_MAX.as_secs()))
            })?);
        }
        if let Some(gated) = field("gated") {
            options.gated = gated.as_bool().ok_or_else(|| rule("gated", "it must be true or false"))?;
        }
        Ok(options)
    }
}

fn veth_prefix(value: &Value) -> Result<String, ConfError> {
    let prefix = value.as_str().filter(|prefix| node::is_veth_prefix(prefix));
    prefix.map(str::to_owned).ok_or_else(|| rule("vethPrefix", node::VETH_PREFIX_RULE))
}

/// An empty string is "not set": templates leave it so.
fn mtu_of(value: &Value) -> Result<Option<u32>, ConfError> {
    let number = match value {
        Value::String(text) if text.is_empty() => return Ok(None),
        Value::String(text) => text.parse().ok(),
        other => other.as_u64().and_then(|number| u32::try_from(number).ok()),
    };
    match number {
        Some(mtu) if (MTU_MIN..=MTU_MAX).contains(&mtu) => Ok(Some(mtu)),
        _ => Err(rule("mtu", format!("it must be a number of bytes, {MTU_MIN} to {MTU_MAX}"))),
    }
}

/// What lies behind one interface of a pod: the ENI, and the table by which the pod's packets leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EniAttachment {
    /// The host's interface.
    pub host_interface: IfName,
    /// The ENI.
    pub eni: EniId,
    /// Its MAC address.
    pub eni_mac: MacAddr,
    /// Its network card.
    pub card: u32,
    /// Its device number on the card.
    pub device: u32,
    /// The route table.
    pub table: u32,
    /// The VLAN, where the ENI is a branch; card and device are then the trunk's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanId>,
}

impl EniAttachment {
    /// The attachment of `address` by `host_interface`.
    #[must_use]
    pub fn of(host_interface: &IfName, address: &PodAddress) -> Self {
        Self {
            host_interface: host_interface.clone(),
            eni: address.eni.clone(),
            eni_mac: address.eni_mac,
            card: address.card,
            device: address.device,
            table: address.table,
            vlan: address.branch.map(|branch| branch.vlan),
        }
    }
}
