//! What keeps the pool from growing, in words, and what would help.

use std::fmt;

use sluice_contract::id::SubnetId;

use crate::cloud::Api;
use crate::state::State;
use crate::time::Timestamp;

/// What keeps the pool from growing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// Every ENI that the node may have is there or on its way, and full.
    EniLimit {
        /// ENIs that the node may have.
        limit: u32,
        /// Whether `MAX_ENI` sets the limit, not the instance type.
        by_setting: bool,
        /// Addresses that so many ENIs hold for pods, each in the form that it has.
        addresses: u32,
        /// What would let them hold more.
        relief: Relief,
    },
    /// No subnet that the node may use has an address left.
    SubnetExhausted {
        /// The subnets.
        subnets: Vec<SubnetId>,
        /// EC2 is asked again then.
        until: Timestamp,
    },
    /// None of the subnets that are known may be used.
    NoSubnet,
    /// IAM denies a call.
    Denied {
        /// The call.
        api: Api,
        /// EC2's words.
        message: String,
        /// It is tried again then.
        until: Timestamp,
    },
    /// EC2 limits the rate of a call.
    Throttled {
        /// The call.
        api: Api,
        /// It is tried again then.
        until: Timestamp,
    },
    /// EC2 cannot be reached, fails, or refuses a call.
    Unavailable {
        /// The call.
        api: Api,
        /// EC2's words, or what stood in place of them.
        message: String,
        /// What a person has to mend, where EC2's error code says so.
        mistake: Option<Mistake>,
        /// It is tried again then.
        until: Timestamp,
    },
    /// The settings leave it to somebody else to bring addresses.
    NotProvisioning {
        /// By `ENABLE_IMDS_ONLY_MODE`, not by `DISABLE_NETWORK_RESOURCE_PROVISIONING`.
        imds_only: bool,
    },
    /// It is not known where ENIs are to be made.
    NoEniConfig,
    /// The ENIConfig names a subnet that EC2 does not show in the node's VPC and zone.
    EniConfigSubnet {
        /// The ENIConfig.
        name: String,
        /// The subnet.
        subnet: SubnetId,
    },
    /// The instance type cannot be given prefixes, and with them no IPv6 for pods.
    NoIpv6 {
        /// The instance type.
        instance_type: String,
    },
    /// Who the node is and what it can hold is not known yet.
    NotReady,
}

/// What would let ENIs that are full hold more addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Relief {
    /// Nothing: they hold what they can.
    #[default]
    None,
    /// /28 prefixes, which are off; the instance type takes them.
    Prefixes,
    /// /28 prefixes, which are on: single addresses stand in for them, since these subnets had no whole one when EC2 was last asked.
    WholePrefixes(Vec<SubnetId>),
}

/// What a person has to mend before EC2 makes an ENI, by its error code (EC2 API reference, "Error codes").
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mistake {
    /// The account has as many network interfaces in the region as its quota allows.
    InterfaceQuota,
    /// One of the security groups is not there.
    NoGroup {
        /// The ENIConfig that names them; none: they are the primary ENI's.
        eni_config: Option<String>,
    },
    /// They are more than the account's quota allows on an interface.
    TooManyGroups {
        /// The same.
        eni_config: Option<String>,
    },
}

impl Mistake {
    /// The mistake that EC2's error code stands for, if it is one.
    pub(super) fn of(code: &str, state: &State) -> Option<Self> {
        let eni_config = || state.named_groups().map(|config| config.name.clone());
        match code {
            "NetworkInterfaceLimitExceeded" => Some(Self::InterfaceQuota),
            "InvalidGroup.NotFound" | "InvalidSecurityGroupID.NotFound" => {
                Some(Self::NoGroup { eni_config: eni_config() })
            }
            "SecurityGroupsPerInterfaceLimitExceeded" => Some(Self::TooManyGroups { eni_config: eni_config() }),
            _ => None,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        let of = |eni_config: &Option<String>| match eni_config {
            Some(name) => format!("spec.securityGroups of ENIConfig {name}"),
            None => "the security groups of the primary ENI, which new ENIs get".to_owned(),
        };
        match self {
            Self::InterfaceQuota => {
                "raise the account's quota of network interfaces in the region (Service Quotas: Network \
                 interfaces per Region), or delete unused ones"
                    .to_owned()
            }
            Self::NoGroup { eni_config } => format!("see {}: one of them is not in the VPC", of(eni_config)),
            Self::TooManyGroups { eni_config } => format!(
                "see {}: have fewer of them, or raise the account's quota of security groups per network interface",
                of(eni_config)
            ),
        }
    }
}

/// What to do where a subnet has addresses and no whole /28.
pub const NO_PREFIXES_HINT: &str = "reserve a CIDR for prefixes (aws ec2 create-subnet-cidr-reservation), or add a subnet with the tag \
     kubernetes.io/role/cni=1";

/// Subnets with a verb that goes with their number: `subnet a has`, `subnets a, b have`.
#[derive(Debug, Clone, Copy)]
pub struct HaveSubnets<'a>(
    /// The subnets.
    pub &'a [SubnetId],
);

impl fmt::Display for HaveSubnets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (noun, verb) = if self.0.len() == 1 { ("subnet", "has") } else { ("subnets", "have") };
        f.write_str(noun)?;
        for (index, subnet) in self.0.iter().enumerate() {
            write!(f, "{} {subnet}", if index == 0 { "" } else { "," })?;
        }
        write!(f, " {verb}")
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EniLimit { limit, by_setting, addresses, relief } => {
                let by = if *by_setting { "MAX_ENI allows" } else { "the instance type allows" };
                let (enis, their) = if *limit == 1 { ("ENI", "its") } else { ("ENIs", "their") };
                write!(f, "{by} {limit} {enis}, and all {addresses} of {their} addresses for pods are taken")?;
                match relief {
                    Relief::WholePrefixes(subnets) => write!(f, "; {} no whole /28 left", HaveSubnets(subnets)),
                    Relief::None | Relief::Prefixes => Ok(()),
                }
            }
            Self::SubnetExhausted { subnets, .. } => write!(f, "{} no free address left", HaveSubnets(subnets)),
            Self::NoSubnet => f.write_str("no subnet in the node's zone is tagged for new ENIs"),
            Self::Denied { message, .. } | Self::Unavailable { message, .. } => f.write_str(message),
            Self::Throttled { api, .. } => write!(f, "EC2 limits the rate of {api}"),
            Self::NotProvisioning { .. } => f.write_str("no address is free, and the settings ask for none"),
            Self::NoEniConfig => f.write_str("no ENIConfig is known for this node"),
            Self::EniConfigSubnet { name, subnet } => {
                write!(f, "ENIConfig {name} names {subnet}, which is not in the node's VPC and zone")
            }
            Self::NoIpv6 { instance_type } => {
                write!(f, "{instance_type} instances cannot be given /80s for pods' IPv6 addresses")
            }
            Self::NotReady => f.write_str("the node's identity and limits are not known yet"),
        }
    }
}
