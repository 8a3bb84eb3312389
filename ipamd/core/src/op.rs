//! One call of EC2 each: what the planner asks for and the executor carries out.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use ipnet::Ipv6Net;
use sluice_contract::id::{AttachmentId, EniId, InstanceId, SecurityGroupId, SubnetId, VpcId};

use crate::cloud::{AddressCount, Api, Assigned, CloudError, CreateEni, Ec2Eni, Ec2Subnet, Unassign};

/// A call of EC2. It says all that the call needs: whoever carries it out has nothing left to decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// CreateNetworkInterface. Its client token names the intent.
    Create(CreateEni),
    /// AttachNetworkInterface.
    Attach {
        /// What.
        eni: EniId,
        /// To which instance: this node.
        instance: InstanceId,
        /// On which network card.
        card: u32,
        /// As which device on the card.
        device: u32,
    },
    /// ModifyNetworkInterfaceAttribute: delete the ENI with the instance.
    DeleteOnTermination {
        /// Which ENI.
        eni: EniId,
        /// Its attachment.
        attachment: AttachmentId,
    },
    /// ModifyNetworkInterfaceAttribute: its security groups.
    SetGroups {
        /// Which ENI.
        eni: EniId,
        /// All that it is to have.
        groups: Vec<SecurityGroupId>,
    },
    /// CreateTags.
    Tag {
        /// Which ENI.
        eni: EniId,
        /// What it is to have beside its other tags.
        tags: BTreeMap<String, String>,
    },
    /// AssignPrivateIpAddresses.
    Assign {
        /// To which ENI.
        eni: EniId,
        /// How many.
        count: AddressCount,
    },
    /// AssignIpv6Addresses: one /80.
    AssignIpv6 {
        /// To which ENI.
        eni: EniId,
    },
    /// UnassignPrivateIpAddresses.
    Unassign {
        /// From which ENI.
        eni: EniId,
        /// Which.
        what: Unassign,
    },
    /// DetachNetworkInterface.
    Detach {
        /// Which ENI.
        eni: EniId,
        /// Its attachment.
        attachment: AttachmentId,
    },
    /// DeleteNetworkInterface.
    Delete {
        /// Which ENI.
        eni: EniId,
    },
    /// DescribeNetworkInterfaces of one ENI that a call may have changed without our knowing.
    Inspect {
        /// Which ENI.
        eni: EniId,
    },
    /// DescribeNetworkInterfaces of all that the node owns, attached or not: after a start, and when IMDS shows something
    /// that is not in the ledger.
    Survey {
        /// This node.
        instance: InstanceId,
    },
    /// DescribeSubnets of the VPC and zone.
    Subnets {
        /// The node's VPC.
        vpc: VpcId,
        /// The node's zone.
        availability_zone: String,
    },
}

/// What an operation works on. Two operations with the same key are never under way at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum OpKey {
    /// A create, by its client token.
    Create(String),
    /// Everything else, by ENI: calls on one ENI go one after the other, but for the harmless attribute change.
    Eni(EniId),
    /// [`Op::DeleteOnTermination`] and [`Op::SetGroups`], which go beside others.
    Attribute(EniId),
    /// [`Op::Tag`], which goes beside others.
    Tags(EniId),
    /// [`Op::AssignIpv6`], which goes beside IPv4's calls.
    Ipv6(EniId),
    /// [`Op::Survey`].
    Survey,
    /// [`Op::Subnets`].
    Subnets,
}

impl Op {
    /// Whether it only asks.
    #[must_use]
    pub const fn is_question(&self) -> bool {
        matches!(self, Self::Inspect { .. } | Self::Survey { .. } | Self::Subnets { .. })
    }

    /// The API that is called.
    #[must_use]
    pub const fn api(&self) -> Api {
        match self {
            Self::Create(_) => Api::CreateNetworkInterface,
            Self::Attach { .. } => Api::AttachNetworkInterface,
            Self::DeleteOnTermination { .. } | Self::SetGroups { .. } => Api::ModifyNetworkInterfaceAttribute,
            Self::Tag { .. } => Api::CreateTags,
            Self::Assign { .. } => Api::AssignPrivateIpAddresses,
            Self::AssignIpv6 { .. } => Api::AssignIpv6Addresses,
            Self::Unassign { .. } => Api::UnassignPrivateIpAddresses,
            Self::Detach { .. } => Api::DetachNetworkInterface,
            Self::Delete { .. } => Api::DeleteNetworkInterface,
            Self::Inspect { .. } | Self::Survey { .. } => Api::DescribeNetworkInterfaces,
            Self::Subnets { .. } => Api::DescribeSubnets,
        }
    }

    /// The ENI that it works on, where there is one.
    #[must_use]
    pub const fn eni(&self) -> Option<&EniId> {
        match self {
            Self::Create(_) | Self::Survey { .. } | Self::Subnets { .. } => None,
            Self::Attach { eni, .. }
            | Self::DeleteOnTermination { eni, .. }
            | Self::SetGroups { eni, .. }
            | Self::Tag { eni, .. }
            | Self::Assign { eni, .. }
            | Self::Unassign { eni, .. }
            | Self::Detach { eni, .. }
            | Self::AssignIpv6 { eni }
            | Self::Delete { eni }
            | Self::Inspect { eni } => Some(eni),
        }
    }

    /// What it works on.
    #[must_use]
    pub fn key(&self) -> OpKey {
        match self {
            Self::Create(request) => OpKey::Create(request.client_token.clone()),
            Self::DeleteOnTermination { eni, .. } | Self::SetGroups { eni, .. } => OpKey::Attribute(eni.clone()),
            Self::Tag { eni, .. } => OpKey::Tags(eni.clone()),
            Self::AssignIpv6 { eni } => OpKey::Ipv6(eni.clone()),
            Self::Survey { .. } => OpKey::Survey,
            Self::Subnets { .. } => OpKey::Subnets,
            Self::Attach { eni, .. }
            | Self::Assign { eni, .. }
            | Self::Unassign { eni, .. }
            | Self::Detach { eni, .. }
            | Self::Delete { eni }
            | Self::Inspect { eni } => OpKey::Eni(eni.clone()),
        }
    }

    /// The subnet that addresses are taken from, where the operation itself says it.
    #[must_use]
    pub const fn subnet(&self) -> Option<&SubnetId> {
        match self {
            Self::Create(request) => Some(&request.subnet),
            _ => None,
        }
    }
}

/// The form of golden plans: verb, object, what.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(request) => write!(f, "create ENI in {} with {}", request.subnet, request.addresses),
            Self::Attach { eni, card, device, .. } => write!(f, "attach {eni} as card {card} device {device}"),
            Self::DeleteOnTermination { eni, .. } => write!(f, "mark {eni} to go with the instance"),
            Self::SetGroups { eni, groups } => {
                write!(f, "set the security groups of {eni}:")?;
                groups.iter().try_for_each(|group| write!(f, " {group}"))
            }
            Self::Tag { eni, tags } => {
                write!(f, "tag {eni}:")?;
                tags.iter().try_for_each(|(key, value)| write!(f, " {key}={value}"))
            }
            Self::Assign { eni, count } => write!(f, "assign {count} to {eni}"),
            Self::AssignIpv6 { eni } => write!(f, "assign a /80 to {eni}"),
            Self::Unassign { eni, what } => {
                write!(f, "unassign from {eni}:")?;
                what.addresses.iter().try_for_each(|address| write!(f, " {address}"))?;
                what.prefixes.iter().try_for_each(|prefix| write!(f, " {prefix}"))
            }
            Self::Detach { eni, .. } => write!(f, "detach {eni}"),
            Self::Delete { eni } => write!(f, "delete {eni}"),
            Self::Inspect { eni } => write!(f, "ask EC2 about {eni}"),
            Self::Survey { .. } => f.write_str("ask EC2 for all ENIs of this node"),
            Self::Subnets { availability_zone, .. } => write!(f, "ask EC2 for the subnets in {availability_zone}"),
        }
    }
}

impl AddressCount {
    /// How many places of an ENI it takes.
    #[must_use]
    pub const fn places(self) -> u32 {
        match self {
            Self::Secondary(count) | Self::Prefixes(count) => count,
        }
    }

    /// How many addresses it makes.
    #[must_use]
    pub const fn addresses(self) -> u32 {
        match self {
            Self::Secondary(count) => count,
            Self::Prefixes(count) => count.saturating_mul(16),
        }
    }
}

impl fmt::Display for AddressCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secondary(1) => f.write_str("1 address"),
            Self::Secondary(count) => write!(f, "{count} addresses"),
            Self::Prefixes(1) => f.write_str("1 prefix"),
            Self::Prefixes(count) => write!(f, "{count} prefixes"),
        }
    }
}

/// What a successful operation brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// [`Op::Create`].
    Created(Ec2Eni),
    /// [`Op::Attach`].
    Attached(AttachmentId),
    /// [`Op::Assign`].
    Assigned(Assigned),
    /// [`Op::AssignIpv6`].
    AssignedIpv6(Ipv6Net),
    /// [`Op::Inspect`]; nothing when EC2 does not know the ENI.
    Inspected(Option<Ec2Eni>),
    /// [`Op::Survey`].
    Surveyed(Vec<Ec2Eni>),
    /// [`Op::Subnets`].
    Subnets(Vec<Ec2Subnet>),
    /// All others.
    Done,
}

/// An operation that failed, and when it is worth trying again (the executor's backoff; EC2's own word goes first).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What EC2 said.
    pub error: CloudError,
    /// From now.
    pub retry_after: Duration,
}
