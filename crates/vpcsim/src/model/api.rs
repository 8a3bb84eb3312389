//! The EC2 calls that the model answers, as types: what is asked and what is told.
//!
//! Names of requests are the API's action names; field names follow the API's parameters where they are not too long.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::Serialize;
use sluice_contract::id::{AttachmentId, EniId, InstanceId, SecurityGroupId, SubnetId, VpcId};

use super::id::RouteTableId;
use super::state::{
    Eni, Instance, InstanceState, InterfaceType, Permission, RouteTable, SecurityGroup, Subnet, Tags, Vpc,
};
use crate::limits::InstanceType;

macro_rules! actions {
    ($($name:ident),* $(,)?) => {
        /// An EC2 action that the model knows.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[expect(missing_docs, reason = "each is the EC2 API's action of that name")]
        pub enum Action { $($name),* }

        impl Action {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The action's name in the API.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }
        }

        impl FromStr for Action {
            type Err = UnknownAction;
            fn from_str(name: &str) -> Result<Self, UnknownAction> {
                match name {
                    $(stringify!($name) => Ok(Self::$name),)*
                    _ => Err(UnknownAction(name.chars().take(80).collect())),
                }
            }
        }

        /// A call.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each is the EC2 API's action of that name")]
        pub enum Request { $($name($name)),* }

        impl Request {
            /// Which action it is.
            #[must_use]
            pub const fn action(&self) -> Action {
                match self { $(Self::$name(_) => Action::$name),* }
            }
        }

        $(impl From<$name> for Request {
            fn from(request: $name) -> Self {
                Self::$name(request)
            }
        })*
    };
}

actions!(
    AssignIpv6Addresses,
    AssignPrivateIpAddresses,
    AttachNetworkInterface,
    AuthorizeSecurityGroupEgress,
    AuthorizeSecurityGroupIngress,
    CreateNetworkInterface,
    CreateSecurityGroup,
    CreateSubnet,
    CreateTags,
    CreateVpc,
    DeleteNetworkInterface,
    DeleteTags,
    DescribeInstances,
    DescribeInstanceTypes,
    DescribeNetworkInterfaces,
    DescribeRouteTables,
    DescribeSecurityGroups,
    DescribeSubnets,
    DescribeTags,
    DescribeVpcs,
    DetachNetworkInterface,
    ModifyNetworkInterfaceAttribute,
    RevokeSecurityGroupEgress,
    RevokeSecurityGroupIngress,
    RunInstances,
    TerminateInstances,
    UnassignIpv6Addresses,
    UnassignPrivateIpAddresses,
);

/// The model has no such action.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no action {0:?}")]
pub struct UnknownAction(pub String);

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Action {
    /// Whether the action only reads.
    #[must_use]
    pub fn is_describe(self) -> bool {
        self.as_str().starts_with("Describe")
    }
}

/// `Filter.N`: any of the values, in which `*` and `?` are wildcards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// The filter's name, e.g. `subnet-id` or `tag:Name`.
    pub name: String,
    /// The values of which one must match.
    pub values: Vec<String>,
}

/// `MaxResults` and `NextToken`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// At most so many; all when absent.
    pub max_results: Option<u32>,
    /// Where the page before ended.
    pub next_token: Option<String>,
}

/// What every Describe call takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Describe<Id> {
    /// Only these; all when empty.
    pub ids: Vec<Id>,
    /// Only those that match every filter.
    pub filters: Vec<Filter>,
    /// Which page.
    pub page: Page,
}

impl<Id> Default for Describe<Id> {
    fn default() -> Self {
        Self { ids: Vec::new(), filters: Vec::new(), page: Page::default() }
    }
}

/// DescribeInstances.
pub type DescribeInstances = Describe<InstanceId>;
/// DescribeInstanceTypes, by name.
pub type DescribeInstanceTypes = Describe<InstanceTypeName>;
/// DescribeNetworkInterfaces.
pub type DescribeNetworkInterfaces = Describe<EniId>;
/// DescribeRouteTables.
pub type DescribeRouteTables = Describe<RouteTableId>;
/// DescribeSecurityGroups.
pub type DescribeSecurityGroups = Describe<SecurityGroupId>;
/// DescribeSubnets.
pub type DescribeSubnets = Describe<SubnetId>;
/// DescribeTags; its `ids` stay empty.
pub type DescribeTags = Describe<NoId>;
/// DescribeVpcs.
pub type DescribeVpcs = Describe<VpcId>;

/// The name of an instance type, e.g. `m5.large`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct InstanceTypeName(pub String);

impl fmt::Display for InstanceTypeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What has no ids to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoId {}

/// The IPv4 addresses and prefixes that a call wants: named, or as many as counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantIpv4 {
    /// These secondary addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// So many secondary addresses (`SecondaryPrivateIpAddressCount`).
    pub count: u32,
    /// These /28s.
    pub prefixes: Vec<Ipv4Net>,
    /// So many /28s (`Ipv4PrefixCount`).
    pub prefix_count: u32,
}

/// The IPv6 addresses and prefixes that a call wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantIpv6 {
    /// These addresses.
    pub addresses: Vec<Ipv6Addr>,
    /// So many addresses (`Ipv6AddressCount`).
    pub count: u32,
    /// These /80s.
    pub prefixes: Vec<Ipv6Net>,
    /// So many /80s (`Ipv6PrefixCount`).
    pub prefix_count: u32,
}

/// AssignPrivateIpAddresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignPrivateIpAddresses {
    /// The ENI.
    pub eni: EniId,
    /// What to assign.
    pub want: WantIpv4,
    /// Whether a named address may be taken away from another ENI of the subnet.
    pub allow_reassignment: bool,
}

/// UnassignPrivateIpAddresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnassignPrivateIpAddresses {
    /// The ENI.
    pub eni: EniId,
    /// Secondary addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// /28s.
    pub prefixes: Vec<Ipv4Net>,
}

/// AssignIpv6Addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignIpv6Addresses {
    /// The ENI.
    pub eni: EniId,
    /// What to assign.
    pub want: WantIpv6,
}

/// UnassignIpv6Addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnassignIpv6Addresses {
    /// The ENI.
    pub eni: EniId,
    /// Addresses.
    pub addresses: Vec<Ipv6Addr>,
    /// /80s.
    pub prefixes: Vec<Ipv6Net>,
}

/// CreateNetworkInterface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateNetworkInterface {
    /// The subnet to make it in.
    pub subnet: SubnetId,
    /// `Description`.
    pub description: String,
    /// `SecurityGroupId.N`; the VPC's default group when empty.
    pub groups: Vec<SecurityGroupId>,
    /// The primary address; EC2's choice when absent.
    pub private_ip: Option<Ipv4Addr>,
    /// Addresses beside the primary one.
    pub want: WantIpv4,
    /// IPv6 addresses.
    pub want_ipv6: WantIpv6,
    /// `InterfaceType`.
    pub interface_type: InterfaceType,
    /// Tags to make it with.
    pub tags: Tags,
    /// Makes a repeated call answer with the ENI of the first.
    pub client_token: Option<String>,
}

impl CreateNetworkInterface {
    /// An ENI in `subnet` with everything else left to EC2.
    #[must_use]
    pub fn new(subnet: SubnetId) -> Self {
        Self {
            subnet,
            description: String::new(),
            groups: Vec::new(),
            private_ip: None,
            want: WantIpv4::default(),
            want_ipv6: WantIpv6::default(),
            interface_type: InterfaceType::Interface,
            tags: Tags::new(),
            client_token: None,
        }
    }
}

/// AttachNetworkInterface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachNetworkInterface {
    /// The ENI.
    pub eni: EniId,
    /// The instance.
    pub instance: InstanceId,
    /// `NetworkCardIndex`.
    pub card: u32,
    /// `DeviceIndex`.
    pub device: u32,
}

/// DetachNetworkInterface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachNetworkInterface {
    /// The attachment.
    pub attachment: AttachmentId,
    /// `Force`: the link goes at once.
    pub force: bool,
}

/// DeleteNetworkInterface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteNetworkInterface {
    /// The ENI.
    pub eni: EniId,
}

/// ModifyNetworkInterfaceAttribute: one attribute a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModifyNetworkInterfaceAttribute {
    /// The ENI.
    pub eni: EniId,
    /// What becomes of it.
    pub attribute: EniAttribute,
}

/// An attribute of an ENI and its new value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EniAttribute {
    /// `Description`.
    Description(String),
    /// `SourceDestCheck`.
    SourceDestCheck(bool),
    /// `SecurityGroupId.N`.
    Groups(Vec<SecurityGroupId>),
    /// `Attachment.DeleteOnTermination` of the attachment named.
    DeleteOnTermination(AttachmentId, bool),
}

/// CreateTags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateTags {
    /// Ids of any kind.
    pub resources: Vec<String>,
    /// Tags to set.
    pub tags: Tags,
}

/// DeleteTags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteTags {
    /// Ids of any kind.
    pub resources: Vec<String>,
    /// Keys to delete, each only if it has the value when one is given.
    pub tags: Vec<(String, Option<String>)>,
}

/// CreateVpc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateVpc {
    /// `CidrBlock`.
    pub cidr: Ipv4Net,
    /// `AmazonProvidedIpv6CidrBlock`: a /56 of EC2's choice.
    pub ipv6: bool,
    /// Tags to make it with.
    pub tags: Tags,
}

/// CreateSubnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateSubnet {
    /// The VPC.
    pub vpc: VpcId,
    /// `CidrBlock`.
    pub cidr: Ipv4Net,
    /// `Ipv6CidrBlock`, a /64 of the VPC's.
    pub ipv6_cidr: Option<Ipv6Net>,
    /// `AvailabilityZone`; the region's first when absent.
    pub availability_zone: Option<String>,
    /// Tags to make it with.
    pub tags: Tags,
}

/// CreateSecurityGroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateSecurityGroup {
    /// The VPC.
    pub vpc: VpcId,
    /// `GroupName`.
    pub name: String,
    /// `GroupDescription`.
    pub description: String,
    /// Tags to make it with.
    pub tags: Tags,
}

/// AuthorizeSecurityGroupIngress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizeSecurityGroupIngress {
    /// The group.
    pub group: SecurityGroupId,
    /// What may come in.
    pub permissions: Vec<Permission>,
}

/// AuthorizeSecurityGroupEgress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizeSecurityGroupEgress {
    /// The group.
    pub group: SecurityGroupId,
    /// What may go out.
    pub permissions: Vec<Permission>,
}

/// RevokeSecurityGroupIngress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokeSecurityGroupIngress {
    /// The group.
    pub group: SecurityGroupId,
    /// What may come in no longer, as it was authorized.
    pub permissions: Vec<Permission>,
}

/// RevokeSecurityGroupEgress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokeSecurityGroupEgress {
    /// The group.
    pub group: SecurityGroupId,
    /// What may go out no longer, as it was authorized.
    pub permissions: Vec<Permission>,
}

/// RunInstances, with one ENI an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInstances {
    /// `InstanceType`.
    pub instance_type: String,
    /// `ImageId`.
    pub image: String,
    /// `MinCount`.
    pub min: u32,
    /// `MaxCount`.
    pub max: u32,
    /// `SubnetId`.
    pub subnet: SubnetId,
    /// `SecurityGroupId.N`.
    pub groups: Vec<SecurityGroupId>,
    /// The primary address; only for a single instance.
    pub private_ip: Option<Ipv4Addr>,
    /// Addresses beside the primary one.
    pub want: WantIpv4,
    /// IPv6 addresses.
    pub want_ipv6: WantIpv6,
    /// `AssociatePublicIpAddress`; the subnet's setting when absent.
    pub public_ip: Option<bool>,
    /// `TagSpecification` of the instances.
    pub tags: Tags,
    /// `TagSpecification` of their ENIs.
    pub eni_tags: Tags,
    /// Makes a repeated call answer with the instances of the first.
    pub client_token: Option<String>,
}

impl RunInstances {
    /// One instance in `subnet`, with everything else left to EC2.
    #[must_use]
    pub fn new(instance_type: impl Into<String>, subnet: SubnetId) -> Self {
        Self {
            instance_type: instance_type.into(),
            image: "ami-00000000000000000".to_owned(),
            min: 1,
            max: 1,
            subnet,
            groups: Vec::new(),
            private_ip: None,
            want: WantIpv4::default(),
            want_ipv6: WantIpv6::default(),
            public_ip: None,
            tags: Tags::new(),
            eni_tags: Tags::new(),
            client_token: None,
        }
    }
}

/// TerminateInstances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TerminateInstances {
    /// The instances.
    pub instances: Vec<InstanceId>,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// Where it ended, if there is more.
    pub next_token: Option<String>,
}

/// An instance and the ENIs attached to it.
#[derive(Debug, Clone)]
pub struct InstanceWithEnis {
    /// The instance.
    pub instance: Instance,
    /// Its ENIs, by card and device.
    pub enis: Vec<Eni>,
}

/// One tag of one resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TagOf {
    /// The resource's id.
    pub resource: String,
    /// Its kind in EC2's words, e.g. `network-interface`.
    pub kind: &'static str,
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
}

/// What a call is answered with.
#[derive(Debug, Clone)]
pub enum Reply {
    /// It is done; nothing else to tell.
    Done,
    /// AssignPrivateIpAddresses: what was added.
    AssignedIpv4 {
        /// The ENI.
        eni: EniId,
        /// New secondary addresses.
        addresses: Vec<Ipv4Addr>,
        /// New /28s.
        prefixes: Vec<Ipv4Net>,
    },
    /// AssignIpv6Addresses and UnassignIpv6Addresses: what was added, or taken away.
    Ipv6 {
        /// The ENI.
        eni: EniId,
        /// The addresses.
        addresses: Vec<Ipv6Addr>,
        /// The /80s.
        prefixes: Vec<Ipv6Net>,
    },
    /// AttachNetworkInterface.
    Attached {
        /// The attachment.
        attachment: AttachmentId,
        /// The card it is on.
        card: u32,
    },
    /// CreateNetworkInterface.
    NetworkInterface(Box<Eni>),
    /// DescribeNetworkInterfaces.
    NetworkInterfaces(Listed<Eni>),
    /// RunInstances: the reservation's id and its instances.
    Launched(String, Vec<InstanceWithEnis>),
    /// DescribeInstances: one reservation an instance launched alone, grouped by the caller if need be.
    Instances(Listed<InstanceWithEnis>),
    /// TerminateInstances: the instances with the state each had before.
    Terminated(Vec<(InstanceId, InstanceState)>),
    /// DescribeInstanceTypes.
    InstanceTypes(Listed<&'static InstanceType>),
    /// CreateVpc.
    Vpc(Box<Vpc>),
    /// DescribeVpcs.
    Vpcs(Listed<Vpc>),
    /// CreateSubnet.
    Subnet(Box<Subnet>),
    /// DescribeSubnets.
    Subnets(Listed<Subnet>),
    /// DescribeRouteTables.
    RouteTables(Listed<RouteTable>),
    /// CreateSecurityGroup.
    SecurityGroup(Box<SecurityGroup>),
    /// DescribeSecurityGroups.
    SecurityGroups(Listed<SecurityGroup>),
    /// DescribeTags.
    Tags(Listed<TagOf>),
}
