//! What ipamd sees of EC2 and IMDS, and what it asks of them: plain data, shared by the planner (which decides), the
//! daemon (which carries out) and the two implementations of the `Cloud` seam.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use sluice_contract::id::{AttachmentId, EniId, InstanceId, MacAddr, SecurityGroupId, SubnetId, VpcId};

/// The node itself, from IMDS at start; none of it changes while the instance runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceIdentity {
    /// `instance-id`.
    pub instance: InstanceId,
    /// `instance-type`, e.g. `m5.large`.
    pub instance_type: String,
    /// `placement/availability-zone`.
    pub availability_zone: String,
    /// `placement/region`.
    pub region: String,
    /// `mac`: the primary ENI's address.
    pub primary_mac: MacAddr,
    /// The VPC of the primary ENI.
    pub vpc: VpcId,
}

/// One attached ENI as IMDS lists it (`network/interfaces/macs/<mac>/`). IMDS may lag behind EC2 and leave things out:
/// nothing is ever removed because of what is *not* here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImdsEni {
    /// `interface-id`.
    pub eni: EniId,
    /// The key under `macs/`.
    pub mac: MacAddr,
    /// `device-number`; 0 for the primary ENI.
    pub device: u32,
    /// `network-card`; 0 where IMDS has no such key.
    pub card: u32,
    /// `subnet-id`.
    pub subnet: SubnetId,
    /// `subnet-ipv4-cidr-block`.
    pub subnet_cidr: Ipv4Net,
    /// First of `local-ipv4s`.
    pub primary_ip: Ipv4Addr,
    /// The rest of `local-ipv4s`.
    pub secondary_ips: BTreeSet<Ipv4Addr>,
    /// `ipv4-prefix`, /28 each.
    pub prefixes: BTreeSet<Ipv4Net>,
    /// `ipv6-prefix`, /80 each.
    pub ipv6_prefixes: BTreeSet<Ipv6Net>,
    /// `security-group-ids`.
    pub security_groups: Vec<SecurityGroupId>,
}

/// What `InterfaceType` says that an ENI is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum InterfaceType {
    /// `interface`, and every type not listed here.
    #[default]
    Interface,
    /// `trunk`: carries branch ENIs; never used for pods' own addresses, never freed.
    Trunk,
    /// `efa`: usable, never freed.
    Efa,
    /// `efa-only`: has no IP addresses.
    EfaOnly,
}

/// An ENI as EC2's DescribeNetworkInterfaces tells it: the truth, if late.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ec2Eni {
    /// `NetworkInterfaceId`.
    pub eni: EniId,
    /// `MacAddress`.
    pub mac: MacAddr,
    /// `Attachment`, while it has one.
    pub attachment: Option<Ec2Attachment>,
    /// `SubnetId`.
    pub subnet: SubnetId,
    /// `PrivateIpAddress`.
    pub primary_ip: Ipv4Addr,
    /// `PrivateIpAddresses` less the primary.
    pub secondary_ips: BTreeSet<Ipv4Addr>,
    /// `Ipv4Prefixes`.
    pub prefixes: BTreeSet<Ipv4Net>,
    /// `Ipv6Prefixes`, /80 each.
    pub ipv6_prefixes: BTreeSet<Ipv6Net>,
    /// `Groups`.
    pub security_groups: Vec<SecurityGroupId>,
    /// `TagSet`.
    pub tags: BTreeMap<String, String>,
    /// `InterfaceType`.
    pub interface_type: InterfaceType,
    /// `Description`.
    pub description: String,
    /// `ConnectionTrackingConfiguration`, where it has one.
    pub connection_tracking: Option<ConnectionTracking>,
}

/// How long the security groups of an ENI remember idle connections, in seconds; what is absent is EC2's default (EC2 User
/// Guide, "Security group connection tracking").
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionTracking {
    /// `TcpEstablishedTimeout`, 60 to 432,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_established: Option<u32>,
    /// `UdpStreamTimeout`, 60 to 180: of flows that have had more than one exchange.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp_stream: Option<u32>,
    /// `UdpTimeout`, 30 to 60: of others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<u32>,
}

/// Where an ENI is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ec2Attachment {
    /// `AttachmentId`.
    pub attachment: AttachmentId,
    /// `InstanceId`; absent for attachments of AWS's own services.
    pub instance: Option<InstanceId>,
    /// `DeviceIndex`.
    pub device: u32,
    /// `NetworkCardIndex`.
    pub card: u32,
    /// `DeleteOnTermination`.
    pub delete_on_termination: bool,
}

/// A subnet that ENIs may be made in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ec2Subnet {
    /// `SubnetId`.
    pub subnet: SubnetId,
    /// `CidrBlock`.
    pub cidr: Ipv4Net,
    /// The IPv6 CIDR that is associated with it (`Ipv6CidrBlockAssociationSet`), if there is one.
    pub ipv6_cidr: Option<Ipv6Net>,
    /// `AvailabilityZone`.
    pub availability_zone: String,
    /// `AvailableIpAddressCount`: free addresses, not counting whether any /28 of them is whole.
    pub available: u32,
    /// `TagSet`.
    pub tags: BTreeMap<String, String>,
}

/// Where new ENIs are made and with which security groups, by custom networking (`ENIConfig` of `crd.k8s.amazonaws.com/v1alpha1`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EniConfig {
    /// The object's name.
    pub name: String,
    /// `spec.subnet`: in the node's VPC and zone.
    pub subnet: SubnetId,
    /// `spec.securityGroups`; those of the primary ENI where it is empty.
    pub security_groups: Vec<SecurityGroupId>,
}

/// What an instance type can hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceLimits {
    /// ENIs on network card 0, the primary among them.
    pub enis: u32,
    /// ENIs on each further network card, from card 1 on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_cards: Vec<u32>,
    /// IPv4 addresses an ENI, its primary address among them. In prefix mode each place but the first holds a /28.
    pub ipv4_per_eni: u32,
    /// Whether prefixes can be assigned (Nitro and bare metal).
    pub prefixes: bool,
}

impl InstanceLimits {
    /// ENIs that a network card holds; none for one that there is not.
    #[must_use]
    pub fn enis_of(&self, card: u32) -> u32 {
        let further = |card: u32| self.further_cards.get(usize::try_from(card.checked_sub(1)?).ok()?).copied();
        if card == 0 { self.enis } else { further(card).unwrap_or(0) }
    }
}

/// How many addresses to ask for, and in which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressCount {
    /// So many secondary addresses (`SecondaryPrivateIpAddressCount`).
    Secondary(u32),
    /// So many /28 prefixes (`Ipv4PrefixCount`).
    Prefixes(u32),
}

/// CreateNetworkInterface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateEni {
    /// The network card that it is for. EC2 hears of it when the ENI is attached.
    #[serde(default)]
    pub card: u32,
    /// The subnet to make it in.
    pub subnet: SubnetId,
    /// Its security groups.
    pub security_groups: Vec<SecurityGroupId>,
    /// Addresses beside the primary one.
    pub addresses: AddressCount,
    /// Whether it gets a /80 (`Ipv6PrefixCount` 1).
    #[serde(default)]
    pub ipv6_prefix: bool,
    /// That of the primary ENI, where it has one (`ConnectionTrackingSpecification`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_tracking: Option<ConnectionTracking>,
    /// `aws-K8S-<instance id>`.
    pub description: String,
    /// Tags to make it with.
    pub tags: BTreeMap<String, String>,
    /// Makes a repeated call answer with the ENI of the first (EC2 API, "Ensuring idempotency").
    pub client_token: String,
}

/// What AssignPrivateIpAddresses added.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// New secondary addresses.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// New /28 prefixes.
    pub prefixes: BTreeSet<Ipv4Net>,
}

/// What to give back to EC2.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unassign {
    /// Secondary addresses.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// /28 prefixes.
    pub prefixes: BTreeSet<Ipv4Net>,
}

/// The API actions that ipamd calls, one token bucket each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Api {
    /// AssignIpv6Addresses.
    AssignIpv6Addresses,
    /// AssignPrivateIpAddresses.
    AssignPrivateIpAddresses,
    /// AttachNetworkInterface.
    AttachNetworkInterface,
    /// CreateNetworkInterface.
    CreateNetworkInterface,
    /// CreateTags.
    CreateTags,
    /// DeleteNetworkInterface.
    DeleteNetworkInterface,
    /// DescribeInstances.
    DescribeInstances,
    /// DescribeInstanceTypes.
    DescribeInstanceTypes,
    /// DescribeNetworkInterfaces.
    DescribeNetworkInterfaces,
    /// DescribeRouteTables.
    DescribeRouteTables,
    /// DescribeSubnets.
    DescribeSubnets,
    /// DetachNetworkInterface.
    DetachNetworkInterface,
    /// ModifyNetworkInterfaceAttribute.
    ModifyNetworkInterfaceAttribute,
    /// UnassignPrivateIpAddresses.
    UnassignPrivateIpAddresses,
    /// The instance metadata service, which is no EC2 API but fails like one.
    Imds,
}

impl fmt::Display for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why a call failed, by what there is to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloudErrorKind {
    /// RequestLimitExceeded, Throttling, RequestThrottled and the like: slow the bucket down, try again.
    Throttled,
    /// UnauthorizedOperation, AccessDenied, AuthFailure, or no credentials: nothing helps but a person.
    Denied,
    /// InsufficientFreeAddressesInSubnet: the subnet has too few addresses.
    InsufficientAddresses,
    /// InsufficientCidrBlocks, and CreateNetworkInterface's InvalidParameterValue "There aren't sufficient free Ipv4
    /// addresses or prefixes": the subnet has no whole /28, though it may have addresses.
    InsufficientPrefixes,
    /// PrivateIpAddressLimitExceeded: the ENI holds more than was believed.
    AddressLimit,
    /// AttachmentLimitExceeded: the instance holds more ENIs than was believed.
    AttachmentLimit,
    /// The object is not there (`…NotFound`).
    NotFound,
    /// The object is in another state than the call needs (`InvalidParameterValue` on a device index in use,
    /// `IncorrectState`, `IdempotentParameterMismatch`).
    Conflict,
    /// No answer in time: the call may have had its effect.
    Timeout,
    /// The endpoint cannot be reached, or answers 5xx.
    Unavailable,
    /// Anything else.
    Other,
}

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{api} failed with {code}: {message}")]
pub struct CloudError {
    /// The call.
    pub api: Api,
    /// What to do about it.
    pub kind: CloudErrorKind,
    /// EC2's error code, or a word of ours where there was no answer.
    pub code: String,
    /// EC2's message.
    pub message: String,
    /// When EC2 (or the bucket) says that it is worth trying again.
    pub retry_after: Option<Duration>,
}
