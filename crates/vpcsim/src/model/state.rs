//! What exists. Everything here is plain data that anyone may read and only the model changes.
//!
//! Points in time are durations since the world began (the `now` of `Model::call`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;
use sluice_contract::id::{AttachmentId, EniId, InstanceId, MacAddr, SecurityGroupId, SubnetId, VpcId};

use super::address::{AddressSpace, Ipv6Space};
use super::id::{InternetGatewayId, NatGatewayId, PeeringId, RouteTableId};

/// Tags of a resource.
pub type Tags = BTreeMap<String, String>;

/// The whole of an account in a region.
#[derive(Debug, Clone, Default, Serialize)]
pub struct State {
    /// VPCs.
    pub vpcs: BTreeMap<VpcId, Vpc>,
    /// Subnets.
    pub subnets: BTreeMap<SubnetId, Subnet>,
    /// Route tables, the main one of each VPC among them.
    pub route_tables: BTreeMap<RouteTableId, RouteTable>,
    /// Internet gateways.
    pub internet_gateways: BTreeMap<InternetGatewayId, InternetGateway>,
    /// NAT gateways.
    pub nat_gateways: BTreeMap<NatGatewayId, NatGateway>,
    /// VPC peering connections.
    pub peerings: BTreeMap<PeeringId, Peering>,
    /// Security groups.
    pub security_groups: BTreeMap<SecurityGroupId, SecurityGroup>,
    /// Instances, terminated ones too.
    pub instances: BTreeMap<InstanceId, Instance>,
    /// Network interfaces, attached or not.
    pub enis: BTreeMap<EniId, Eni>,
}

/// A VPC.
#[derive(Debug, Clone, Serialize)]
pub struct Vpc {
    /// Its id.
    pub id: VpcId,
    /// IPv4 CIDRs: the primary one first, then the associated ones in order.
    pub cidrs: Vec<Ipv4Net>,
    /// IPv6 CIDRs.
    pub ipv6_cidrs: Vec<Ipv6Net>,
    /// The route table of subnets that are associated with none.
    pub main_route_table: RouteTableId,
    /// The group that an ENI gets when none is named.
    pub default_security_group: SecurityGroupId,
    /// Whether packets obey security groups here, as on AWS. Where they do not, groups are only kept and told.
    pub enforces_groups: bool,
    /// Tags.
    pub tags: Tags,
}

/// A subnet.
#[derive(Debug, Clone, Serialize)]
pub struct Subnet {
    /// Its id.
    pub id: SubnetId,
    /// The VPC it belongs to.
    pub vpc: VpcId,
    /// `CidrBlock`.
    pub cidr: Ipv4Net,
    /// A /64, if it has one.
    pub ipv6_cidr: Option<Ipv6Net>,
    /// `AvailabilityZone`, e.g. `us-east-1a`.
    pub availability_zone: String,
    /// Whether an instance's primary ENI gets a public address here (`MapPublicIpOnLaunch`).
    pub map_public_ip: bool,
    /// Tags.
    pub tags: Tags,
    /// Which IPv4 addresses are taken.
    #[serde(skip)]
    pub space: AddressSpace,
    /// Which IPv6 addresses and prefixes are taken.
    #[serde(skip)]
    pub ipv6_space: Ipv6Space,
}

impl Subnet {
    /// `AvailableIpAddressCount`: free addresses, whether or not any /28 of them is whole.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.space.available()
    }

    /// The router's address, the first after the network's (VPC User Guide, "Subnet sizing for IPv4").
    #[must_use]
    pub fn router(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.cidr.network().to_bits().saturating_add(1))
    }
}

/// A route table.
#[derive(Debug, Clone, Serialize)]
pub struct RouteTable {
    /// Its id.
    pub id: RouteTableId,
    /// The VPC it belongs to.
    pub vpc: VpcId,
    /// Subnets that name it; all others of the VPC use the main one.
    pub subnets: BTreeSet<SubnetId>,
    /// Routes beside the local ones, which every table has for every CIDR of its VPC.
    pub routes: BTreeMap<IpNet, RouteTarget>,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum RouteTarget {
    /// To the Internet, 1:1 for addresses that have a public one.
    InternetGateway(InternetGatewayId),
    /// To the Internet behind the gateway's one public address.
    NatGateway(NatGatewayId),
    /// Into another VPC.
    Peering(PeeringId),
    /// To an ENI, whatever address the packet is for; the ENI must have its source/destination check off.
    Eni(EniId),
}

/// An Internet gateway.
#[derive(Debug, Clone, Serialize)]
pub struct InternetGateway {
    /// Its id.
    pub id: InternetGatewayId,
    /// The VPC it is attached to.
    pub vpc: Option<VpcId>,
}

/// A public NAT gateway.
#[derive(Debug, Clone, Serialize)]
pub struct NatGateway {
    /// Its id.
    pub id: NatGatewayId,
    /// The subnet it stands in, whose route table decides where its packets go.
    pub subnet: SubnetId,
    /// The requester-managed ENI that holds its private address.
    pub eni: EniId,
    /// Its private address.
    pub private_ip: Ipv4Addr,
    /// Its public address.
    pub public_ip: Ipv4Addr,
}

/// An active VPC peering connection. Routes to it are set in both VPCs' tables.
#[derive(Debug, Clone, Serialize)]
pub struct Peering {
    /// Its id.
    pub id: PeeringId,
    /// One side.
    pub requester: VpcId,
    /// The other.
    pub accepter: VpcId,
}

/// A security group. Packets obey its rules where the VPC enforces them.
#[derive(Debug, Clone, Serialize)]
pub struct SecurityGroup {
    /// Its id.
    pub id: SecurityGroupId,
    /// The VPC it belongs to.
    pub vpc: VpcId,
    /// `GroupName`.
    pub name: String,
    /// `GroupDescription`.
    pub description: String,
    /// What may come in.
    pub ingress: Vec<Permission>,
    /// What may go out.
    pub egress: Vec<Permission>,
    /// Tags.
    pub tags: Tags,
}

/// `IpPermission`: a protocol, its ports, and who it is for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Permission {
    /// `tcp`, `udp`, `icmp`, a number, or `-1` for all.
    pub protocol: String,
    /// First port, or ICMP type.
    pub from_port: Option<i32>,
    /// Last port, or ICMP code.
    pub to_port: Option<i32>,
    /// Peers by address.
    pub cidrs: Vec<Ipv4Net>,
    /// Peers by IPv6 address.
    pub ipv6_cidrs: Vec<Ipv6Net>,
    /// Peers by group.
    pub groups: Vec<SecurityGroupId>,
}

/// An instance.
#[derive(Debug, Clone, Serialize)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// `InstanceType`, e.g. `m5.large`.
    pub instance_type: String,
    /// `ImageId`, kept and told.
    pub image: String,
    /// The subnet of its primary ENI.
    pub subnet: SubnetId,
    /// The VPC of its primary ENI.
    pub vpc: VpcId,
    /// `AvailabilityZone`.
    pub availability_zone: String,
    /// The ENI at card 0, device 0.
    pub primary_eni: EniId,
    /// `LaunchTime`.
    pub launched: Duration,
    /// When it is `running`.
    pub running_at: Duration,
    /// When it is gone, once its end was asked for.
    pub terminated_at: Option<Duration>,
    /// `ReservationId` of the call that launched it.
    pub reservation: String,
    /// Tags.
    pub tags: Tags,
}

impl Instance {
    /// `InstanceState` at `now`.
    #[must_use]
    pub fn state(&self, now: Duration) -> InstanceState {
        match self.terminated_at {
            Some(end) if now < end => InstanceState::ShuttingDown,
            Some(_) => InstanceState::Terminated,
            None if now < self.running_at => InstanceState::Pending,
            None => InstanceState::Running,
        }
    }
}

/// `InstanceState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// Starting.
    Pending,
    /// Up.
    Running,
    /// On its way down.
    ShuttingDown,
    /// Gone, told for a while.
    Terminated,
}

impl InstanceState {
    /// The API's number and word.
    #[must_use]
    pub const fn code_and_name(self) -> (u32, &'static str) {
        match self {
            Self::Pending => (0, "pending"),
            Self::Running => (16, "running"),
            Self::ShuttingDown => (32, "shutting-down"),
            Self::Terminated => (48, "terminated"),
        }
    }
}

/// What an ENI is for (`InterfaceType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum InterfaceType {
    /// `interface`.
    #[default]
    Interface,
    /// `efa`.
    Efa,
    /// `efa-only`: has no IP addresses on AWS; here it has its primary one.
    EfaOnly,
    /// `trunk`.
    Trunk,
    /// `nat_gateway`: belongs to EC2 itself.
    NatGateway,
}

impl InterfaceType {
    /// The word that the API uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Interface => "interface",
            Self::Efa => "efa",
            Self::EfaOnly => "efa-only",
            Self::Trunk => "trunk",
            Self::NatGateway => "nat_gateway",
        }
    }
}

/// A network interface.
#[derive(Debug, Clone, Serialize)]
pub struct Eni {
    /// Its id.
    pub id: EniId,
    /// Its subnet.
    pub subnet: SubnetId,
    /// Its VPC.
    pub vpc: VpcId,
    /// `AvailabilityZone`.
    pub availability_zone: String,
    /// `MacAddress`; no two ENIs share one.
    pub mac: MacAddr,
    /// `Description`.
    pub description: String,
    /// `InterfaceType`.
    pub interface_type: InterfaceType,
    /// `PrivateIpAddress`.
    pub primary: Ipv4Addr,
    /// Secondary private addresses.
    pub secondaries: BTreeSet<Ipv4Addr>,
    /// `Ipv4Prefixes`, each a /28.
    pub prefixes: BTreeSet<Ipv4Net>,
    /// `Ipv6Addresses`.
    pub ipv6: BTreeSet<Ipv6Addr>,
    /// `Ipv6Prefixes`, each a /80.
    pub ipv6_prefixes: BTreeSet<Ipv6Net>,
    /// `Groups`.
    pub groups: Vec<SecurityGroupId>,
    /// Whether packets must come from, or be for, an address of the ENI (`SourceDestCheck`).
    pub source_dest_check: bool,
    /// Its public address, if it has one.
    pub association: Option<Association>,
    /// Where it is plugged in.
    pub attachment: Option<Attachment>,
    /// Tags.
    pub tags: Tags,
}

impl Eni {
    /// Whether `address` is assigned to the ENI, by itself or in a prefix.
    #[must_use]
    pub fn holds(&self, address: Ipv4Addr) -> bool {
        self.primary == address
            || self.secondaries.contains(&address)
            || self.prefixes.iter().any(|prefix| prefix.contains(&address))
    }

    /// Everything assigned to the ENI as prefixes: /32 for the primary and secondary addresses, /28 for the rest.
    pub fn assigned(&self) -> impl Iterator<Item = Ipv4Net> + '_ {
        std::iter::once(self.primary)
            .chain(self.secondaries.iter().copied())
            .map(Ipv4Net::from)
            .chain(self.prefixes.iter().copied())
    }

    /// Everything of IPv6 assigned to the ENI as prefixes: /128 for addresses, /80 for the rest.
    pub fn assigned_ipv6(&self) -> impl Iterator<Item = Ipv6Net> + '_ {
        self.ipv6.iter().copied().map(Ipv6Net::from).chain(self.ipv6_prefixes.iter().copied())
    }

    /// Places of the instance type's IPv4 limit in use: each address and each prefix takes one.
    #[must_use]
    pub fn ipv4_places(&self) -> usize {
        1usize.saturating_add(self.secondaries.len()).saturating_add(self.prefixes.len())
    }

    /// Places of the instance type's IPv6 limit in use.
    #[must_use]
    pub fn ipv6_places(&self) -> usize {
        self.ipv6.len().saturating_add(self.ipv6_prefixes.len())
    }

    /// `Status` as DescribeNetworkInterfaces tells it at `now`.
    #[must_use]
    pub fn status(&self, now: Duration) -> &'static str {
        match &self.attachment {
            None => "available",
            Some(attachment) if attachment.status(now) == AttachmentStatus::Attaching => "attaching",
            Some(_) => "in-use",
        }
    }
}

/// A public address and the private one that it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Association {
    /// The address that the Internet sees.
    pub public_ip: Ipv4Addr,
    /// The address that the instance sees.
    pub private_ip: Ipv4Addr,
}

/// Where an ENI is plugged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attachment {
    /// `AttachmentId`.
    pub id: AttachmentId,
    /// `InstanceId`; absent for a gateway's ENI.
    pub instance: Option<InstanceId>,
    /// `NetworkCardIndex`.
    pub card: u32,
    /// `DeviceIndex`.
    pub device: u32,
    /// `DeleteOnTermination`.
    pub delete_on_termination: bool,
    /// `AttachTime`.
    pub requested: Duration,
    /// When the link shows at the instance.
    pub link_at: Duration,
    /// When the link is gone and the ENI free again, once a detach was asked for.
    pub detached_at: Option<Duration>,
}

impl Attachment {
    /// `Attachment.Status` at `now`. There is no `detached`: an ENI whose detach is over has no attachment.
    #[must_use]
    pub fn status(&self, now: Duration) -> AttachmentStatus {
        if self.detached_at.is_some() {
            AttachmentStatus::Detaching
        } else if now < self.link_at {
            AttachmentStatus::Attaching
        } else {
            AttachmentStatus::Attached
        }
    }

    /// Whether the instance has the link at `now`.
    #[must_use]
    pub fn has_link(&self, now: Duration) -> bool {
        now >= self.link_at && self.detached_at.is_none_or(|end| now < end)
    }
}

/// How far an attach or detach is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachmentStatus {
    /// Asked for; the instance has no link yet.
    Attaching,
    /// The instance has the link.
    Attached,
    /// Asked to go; the instance still has the link.
    Detaching,
}

impl AttachmentStatus {
    /// The word that the API uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Attaching => "attaching",
            Self::Attached => "attached",
            Self::Detaching => "detaching",
        }
    }
}

/// A link that an instance has: an ENI that is attached and shows.
#[derive(Debug, Clone, Copy)]
pub struct Link<'a> {
    /// The ENI.
    pub eni: &'a Eni,
    /// Its instance.
    pub instance: &'a InstanceId,
    /// Its network card.
    pub card: u32,
    /// Its device index on the card.
    pub device: u32,
}

impl State {
    /// The links that instances have at `now`, by ENI id.
    pub fn links(&self, now: Duration) -> impl Iterator<Item = Link<'_>> {
        self.enis.values().filter_map(move |eni| {
            let attachment = eni.attachment.as_ref().filter(|attachment| attachment.has_link(now))?;
            let instance = attachment.instance.as_ref()?;
            Some(Link { eni, instance, card: attachment.card, device: attachment.device })
        })
    }

    /// ENIs attached to an instance, whether or not their links show, by card and device.
    #[must_use]
    pub fn attached(&self, instance: &InstanceId) -> Vec<&Eni> {
        let mut enis: Vec<(u32, u32, &Eni)> = self
            .enis
            .values()
            .filter_map(|eni| {
                let attachment = eni.attachment.as_ref().filter(|a| a.instance.as_ref() == Some(instance))?;
                Some((attachment.card, attachment.device, eni))
            })
            .collect();
        enis.sort_by_key(|(card, device, _)| (*card, *device));
        enis.into_iter().map(|(_, _, eni)| eni).collect()
    }

    /// Whether a route table is the main one of its VPC.
    #[must_use]
    pub fn is_main(&self, table: &RouteTable) -> bool {
        self.vpcs.get(&table.vpc).is_some_and(|vpc| vpc.main_route_table == table.id)
    }

    /// The route table that decides for a subnet: its own, else the main one of its VPC.
    #[must_use]
    pub fn route_table(&self, subnet: &SubnetId) -> Option<&RouteTable> {
        self.route_tables.values().find(|table| table.subnets.contains(subnet)).or_else(|| {
            let vpc = self.vpcs.get(&self.subnets.get(subnet)?.vpc)?;
            self.route_tables.get(&vpc.main_route_table)
        })
    }

    /// The ENI that holds `address` in a VPC.
    #[must_use]
    pub fn holder(&self, vpc: &VpcId, address: Ipv4Addr) -> Option<&Eni> {
        self.enis.values().find(|eni| eni.vpc == *vpc && eni.holds(address))
    }
}
