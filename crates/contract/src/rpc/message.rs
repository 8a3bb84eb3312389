//! The messages between plugins and daemons.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{Attachment, ContainerId, EniId, IfName, MacAddr, NetworkName, PodRef, VlanId};
use crate::node::veth::POD_IFNAME;
use crate::node::{branch, nic};

/// The protocol versions that one side speaks, both ends included. A side speaks its own and the two before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolRange {
    /// The oldest.
    pub min: u32,
    /// The newest.
    pub max: u32,
}

impl ProtocolRange {
    /// What this build speaks.
    pub const OURS: Self = Self { min: 1, max: 1 };

    /// The newest version that both sides speak, or none.
    #[must_use]
    pub const fn common(self, other: Self) -> Option<u32> {
        let max = if self.max < other.max { self.max } else { other.max };
        let min = if self.min > other.min { self.min } else { other.min };
        if min <= max { Some(max) } else { None }
    }
}

/// The first frame from either side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The versions that the sender speaks.
    pub protocol: ProtocolRange,
    /// Name and version of the sender, for logs: `sluice-eni 0.1.0`.
    pub software: String,
}

impl Hello {
    /// The greeting of `software`, e.g. `sluice-eni`.
    #[must_use]
    pub fn of(software: &str) -> Self {
        Self { protocol: ProtocolRange::OURS, software: format!("{software} {}", env!("CARGO_PKG_VERSION")) }
    }
}

/// What a plugin asks, and how long it will wait for the answer. `C` is the questions of one socket: [`Call`] of
/// ipamd's, [`PolicyCall`](super::PolicyCall) of policyd's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request<C = Call> {
    /// Milliseconds that the plugin will wait from now; the daemon answers before, with a refusal if need be.
    pub deadline_ms: u64,
    /// The question.
    #[serde(flatten)]
    pub call: C,
}

/// The questions that ipamd answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub enum Call {
    /// Give the attachment an address, the same one if it has one already.
    Add(AddRequest),
    /// Take the attachment's address back; a waiting ADD of it is cancelled.
    Del(DelRequest),
    /// Which addresses does the attachment have?
    Check(CheckRequest),
    /// May pods be started?
    Status,
    /// Take back what belongs to none of these attachments.
    Gc(GcRequest),
}

/// [`Call::Add`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddRequest {
    /// What the address is for.
    pub attachment: Attachment,
    /// The pod behind it.
    pub pod: PodRef,
    /// Path of the sandbox's network namespace, as the runtime gave it.
    pub netns: String,
    /// The host's interface that the plugin will make.
    pub host_ifname: IfName,
    /// Whether the plugin leads a pod out by a branch ENI. One that does not say so would have such a pod's traffic go past its
    /// security groups, and is given none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub branches: bool,
    /// Whether the pod wants an interface on each network card ([`crate::node::nic`]). A node that does not serve further cards
    /// gives it one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub every_card: bool,
}

/// [`Call::Del`]. It concerns all interfaces of the attachment, and so does [`Call::Check`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelRequest {
    /// What to release.
    pub attachment: Attachment,
    /// The pod behind it, where the runtime still knows it.
    #[serde(default)]
    pub pod: PodRef,
    /// Why: `deleted`, or `add_failed` for an ADD that was undone, so that its address need not cool.
    #[serde(default)]
    pub add_failed: bool,
}

/// [`Call::Check`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRequest {
    /// What to look up.
    pub attachment: Attachment,
}

/// [`Call::Gc`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcRequest {
    /// The network whose attachments are listed.
    pub network: NetworkName,
    /// The attachments that live (`cni.dev/valid-attachments`).
    pub valid: Vec<GcAttachment>,
}

use crate::cni::GcAttachment;

/// An address that a pod holds, and the ENI that carries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodAddress {
    /// The address; a pod has it as /32 or /128.
    pub ip: IpAddr,
    /// Which of the pod's interfaces has it: 0 for the first. Further ones are [`crate::node::nic`]'s.
    pub interface: u8,
    /// The ENI that EC2 assigned the address to.
    pub eni: EniId,
    /// The ENI's MAC address.
    pub eni_mac: MacAddr,
    /// Network card of the ENI.
    pub card: u32,
    /// Device number of the ENI on its card.
    pub device: u32,
    /// The route table by which the pod's packets leave; [`crate::node::TABLE_MAIN`] for the primary ENI.
    pub table: u32,
    /// Where the address is a branch ENI's: by which link it is reached. The ENI is then that one, and card and device are the
    /// trunk's. Only plugins that say that they know it get one ([`AddRequest::branches`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<Branch>,
}

/// How an address of a branch ENI is reached: by a VLAN on the trunk ENI's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    /// The VLAN.
    pub vlan: VlanId,
    /// MAC address of the trunk ENI, by which its link is found.
    pub trunk_mac: MacAddr,
    /// The subnet's router in the family of the address.
    pub gateway: IpAddr,
    /// Whether what stays on the node goes by the VPC too.
    pub mode: branch::Mode,
}

/// The answer to [`Call::Add`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddReply {
    /// The pod's addresses.
    pub addresses: Vec<PodAddress>,
    /// MTU of the pod's interface in bytes (`POD_MTU`); a plugin's own configuration overrides it.
    pub mtu: u32,
    /// The address by which the pod leaves in the family that it has no address of the VPC in ([`crate::node::egress`]). Nobody
    /// outside the node knows it, so that the runtime is not told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<IpAddr>,
    /// Whether IPv6 is switched off inside the pod (`DISABLE_POD_V6`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disable_ipv6: bool,
}

/// The answer to [`Call::Del`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelReply {
    /// What was released; empty when the attachment was unknown, which is success (CNI spec 1.1.0, DEL).
    pub addresses: Vec<PodAddress>,
}

/// The answer to [`Call::Gc`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcReply {
    /// The attachments that were released, with what they held.
    pub released: Vec<(Attachment, Vec<PodAddress>)>,
}

/// The answer to [`Call::Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReply {
    /// Addresses that an ADD could have at once.
    pub free: u32,
    /// Addresses that pods hold.
    pub assigned: u32,
}

/// What a daemon answers. `O` is the answers of one socket: [`Outcome`] of ipamd's,
/// [`PolicyOutcome`](super::PolicyOutcome) of policyd's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply<O = Outcome> {
    /// It was done.
    Done(O),
    /// It was not; nothing has changed.
    Refused(Refusal),
}

/// The answers to the calls of the same names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub enum Outcome {
    /// [`Call::Add`], and what [`Call::Check`] finds.
    Add(AddReply),
    /// [`Call::Del`].
    Del(DelReply),
    /// [`Call::Gc`].
    Gc(GcReply),
    /// [`Call::Status`].
    Status(StatusReply),
}

/// Why a request was refused. Each code is a cause that an operator can tell from the others and mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// No address was free in time; more are on their way.
    PoolGrowing,
    /// No subnet has an address left.
    SubnetExhausted,
    /// The instance type's limits, or `MAX_ENI`, are reached.
    EniLimit,
    /// EC2 limits the rate of calls.
    Throttled,
    /// IAM denies a call.
    IamDenied,
    /// EC2 cannot be reached or fails.
    Ec2Unavailable,
    /// Too many requests wait already.
    QueueFull,
    /// The same attachment's DEL came while its ADD waited.
    Cancelled,
    /// The attachment has no address here.
    UnknownAttachment,
    /// The daemon has not yet been ready since the node booted.
    NotReady,
    /// The policy of the pod is not in force yet: policyd does not know the pod, is not synchronised, or a map is full;
    /// or its drop program is not there to be attached.
    PolicyNotReady,
    /// No protocol version is common to both sides.
    VersionSkew,
    /// The request cannot be understood.
    BadRequest,
    /// The daemon could not record the outcome, e.g. on a full disk.
    Storage,
    /// The pod has security groups of its own, and its branch ENI is not known yet: nobody has made it, or the API server has
    /// not told.
    PodEniPending,
    /// A code of a newer daemon.
    #[serde(other)]
    Other,
}

impl RefusalCode {
    /// The code as it is written on the wire and in metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PoolGrowing => "pool_growing",
            Self::SubnetExhausted => "subnet_exhausted",
            Self::EniLimit => "eni_limit",
            Self::Throttled => "throttled",
            Self::IamDenied => "iam_denied",
            Self::Ec2Unavailable => "ec2_unavailable",
            Self::QueueFull => "queue_full",
            Self::Cancelled => "cancelled",
            Self::UnknownAttachment => "unknown_attachment",
            Self::NotReady => "not_ready",
            Self::PolicyNotReady => "policy_not_ready",
            Self::VersionSkew => "version_skew",
            Self::BadRequest => "bad_request",
            Self::Storage => "storage",
            Self::PodEniPending => "pod_eni_pending",
            Self::Other => "other",
        }
    }

    /// Whether the same request may succeed later without anybody's help.
    #[must_use]
    pub const fn is_retriable(self) -> bool {
        !matches!(self, Self::VersionSkew | Self::BadRequest | Self::Other | Self::UnknownAttachment)
    }
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A typed refusal: what is wrong, what to do, when to try again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The cause.
    pub code: RefusalCode,
    /// The cause in words, with the object's name.
    pub message: String,
    /// The next step for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// When it is worth asking again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl Refusal {
    /// A refusal without hint or time.
    #[must_use]
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, retry_after_ms: None }
    }

    /// The same with the next step for a person.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with the time after which to ask again.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after_ms = Some(u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
        self
    }
}

/// The parts of an attachment that a GC list may name without the network (CNI spec 1.1.0, GC).
impl GcAttachment {
    /// Whether `attachment` is the one that is named here, or that of a further interface of the same pod, which runtimes do not
    /// list.
    #[must_use]
    pub fn names(&self, attachment: &Attachment) -> bool {
        let Attachment { container, ifname, .. } = attachment;
        let is_further = || nic::index(ifname) > 0 && self.ifname.as_str() == POD_IFNAME;
        self.container_id == *container && (self.ifname == *ifname || is_further())
    }

    /// The entry by which a runtime lists `attachment`.
    #[must_use]
    pub fn of(attachment: &Attachment) -> Self {
        let Attachment { container, ifname, .. } = nic::first(attachment);
        Self::new(container, ifname)
    }

    /// An entry for `container` and `ifname`.
    #[must_use]
    pub const fn new(container_id: ContainerId, ifname: IfName) -> Self {
        Self { container_id, ifname }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_meet_in_the_newest_that_both_speak() {
        let range = |min, max| ProtocolRange { min, max };
        assert_eq!(range(1, 3).common(range(2, 5)), Some(3));
        assert_eq!(range(4, 6).common(range(2, 4)), Some(4));
        assert_eq!(range(1, 2).common(range(3, 5)), None);
    }

    #[test]
    fn a_request_reads_as_it_is_documented() {
        let request = Request {
            deadline_ms: 60_000,
            call: Call::Del(DelRequest {
                attachment: Attachment {
                    container: ContainerId::new("abc").unwrap(),
                    ifname: IfName::new("eth0").unwrap(),
                    network: NetworkName::new("sluice").unwrap(),
                },
                pod: PodRef { namespace: "default".into(), name: "web-0".into(), uid: None },
                add_failed: false,
            }),
        };
        assert_eq!(
            serde_json::to_value(&request).unwrap(),
            serde_json::json!({"deadline_ms": 60000, "call": "del", "add_failed": false,
                "attachment": {"container": "abc", "ifname": "eth0", "network": "sluice"},
                "pod": {"namespace": "default", "name": "web-0"}})
        );
    }

    #[test]
    fn an_address_without_a_branch_reads_and_is_written_as_before_there_were_any() {
        let plain = serde_json::json!({"ip": "10.0.1.60", "interface": 0, "eni": "eni-0a1b2c3d4e5f60718",
            "eni_mac": "02:00:00:00:00:09", "card": 0, "device": 1, "table": 2});
        let address: PodAddress = serde_json::from_value(plain.clone()).unwrap();
        assert_eq!(address.branch, None);
        assert_eq!(serde_json::to_value(&address).unwrap(), plain);
        let branch =
            serde_json::json!({"vlan": 7, "trunk_mac": "02:00:00:00:00:0a", "gateway": "10.0.2.1", "mode": "strict"});
        let mut with = plain;
        with["branch"] = branch;
        let address: PodAddress = serde_json::from_value(with.clone()).unwrap();
        assert_eq!(address.branch.unwrap().mode, branch::Mode::Strict);
        assert_eq!(serde_json::to_value(&address).unwrap(), with);
        with["branch"]["vlan"] = serde_json::json!(4095);
        assert!(serde_json::from_value::<PodAddress>(with).is_err());
    }

    #[test]
    fn a_code_of_a_newer_daemon_is_still_a_refusal() {
        let refusal: Refusal = serde_json::from_str(r#"{"code":"moon_phase","message":"no"}"#).unwrap();
        assert_eq!(refusal.code, RefusalCode::Other);
    }
}
