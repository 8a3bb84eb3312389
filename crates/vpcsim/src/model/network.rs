//! VPCs, subnets, security groups.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use ipnet::{Ipv4Net, Ipv6Net};
use sluice_contract::id::{SecurityGroupId, SubnetId, VpcId};

use super::Edit;
use super::address::{AddressSpace, Ipv6Space};
use super::api::{CreateSecurityGroup, CreateSubnet, CreateVpc, Reply};
use super::error::{ApiError, Missing};
use super::id::RouteTableId;
use super::state::{Permission, RouteTable, SecurityGroup, Subnet, Tags, Vpc};

/// VPCs of a region. AWS's default quota is 5 and is raised on request.
const MOST_VPCS: usize = 100;
/// Subnets of a VPC (VPC quota).
const MOST_SUBNETS: usize = 200;
/// IPv4 CIDRs of a VPC (VPC quota).
const MOST_CIDRS: usize = 5;
/// Security groups of a region (VPC quota).
const MOST_SECURITY_GROUPS: usize = 2500;
/// Rules a group and direction (VPC quota).
const MOST_RULES: usize = 60;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

impl Edit<'_> {
    pub(super) fn create_vpc(&mut self, request: &CreateVpc) -> Result<Reply, ApiError> {
        let ipv6 = if request.ipv6 { vec![self.fresh_ipv6_block()] } else { Vec::new() };
        let vpc = self.new_vpc(&[request.cidr], ipv6, request.tags.clone())?;
        Ok(Reply::Vpc(Box::new(vpc)))
    }

    pub(super) fn new_vpc(&mut self, cidrs: &[Ipv4Net], ipv6: Vec<Ipv6Net>, tags: Tags) -> Result<Vpc, ApiError> {
        if self.state.vpcs.len() >= MOST_VPCS {
            return Err(ApiError::client("VpcLimitExceeded", "The maximum number of VPCs has been reached."));
        }
        if cidrs.is_empty() {
            return Err(ApiError::missing("cidrBlock"));
        }
        super::tags::check(&tags)?;
        let id: VpcId = self.fresh("vpc-")?;
        let table = RouteTable {
            id: RouteTableId::new(self.fresh_id("rtb-")),
            vpc: id.clone(),
            subnets: BTreeSet::new(),
            routes: BTreeMap::new(),
        };
        let group = SecurityGroup {
            id: self.fresh("sg-")?,
            vpc: id.clone(),
            name: "default".to_owned(),
            description: "default VPC security group".to_owned(),
            ingress: Vec::new(),
            egress: vec![everything(!ipv6.is_empty())],
            tags: Tags::new(),
        };
        let group_id = group.id.clone();
        let ingress = Permission { protocol: "-1".to_owned(), groups: vec![group_id.clone()], ..Permission::default() };
        let group = SecurityGroup { ingress: vec![ingress], ..group };
        let vpc = Vpc {
            id: id.clone(),
            cidrs: Vec::new(),
            ipv6_cidrs: ipv6,
            main_route_table: table.id.clone(),
            default_security_group: group_id.clone(),
            enforces_groups: false,
            tags,
        };
        self.state.route_tables.insert(table.id.clone(), table);
        self.state.security_groups.insert(group_id, group);
        self.state.vpcs.insert(id.clone(), vpc);
        for cidr in cidrs {
            self.add_cidr(&id, *cidr)?;
        }
        self.state.vpcs.get(&id).cloned().ok_or_else(|| ApiError::not_found(Missing::Vpc, &id))
    }

    pub(super) fn add_cidr(&mut self, id: &VpcId, cidr: Ipv4Net) -> Result<(), ApiError> {
        let vpc = self.state.vpcs.get_mut(id).ok_or_else(|| ApiError::not_found(Missing::Vpc, id))?;
        if !(16..=28).contains(&cidr.prefix_len()) || cidr.trunc() != cidr {
            return Err(ApiError::client("InvalidVpc.Range", format!("The CIDR '{cidr}' is invalid.")));
        }
        if vpc.cidrs.iter().any(|other| overlap(*other, cidr)) {
            return Err(ApiError::client(
                "CidrConflict",
                format!("The CIDR '{cidr}' conflicts with another CIDR block of the VPC {id}"),
            ));
        }
        if vpc.cidrs.len() >= MOST_CIDRS {
            return Err(ApiError::client(
                "CidrBlockLimitExceeded",
                "The maximum number of CIDR blocks per VPC has been reached.",
            ));
        }
        vpc.cidrs.push(cidr);
        Ok(())
    }

    pub(super) fn create_subnet(&mut self, request: &CreateSubnet) -> Result<Reply, ApiError> {
        Ok(Reply::Subnet(Box::new(self.new_subnet(request)?)))
    }

    pub(super) fn new_subnet(&mut self, request: &CreateSubnet) -> Result<Subnet, ApiError> {
        super::tags::check(&request.tags)?;
        let cidr = request.cidr;
        let vpc = self.state.vpcs.get(&request.vpc).ok_or_else(|| ApiError::not_found(Missing::Vpc, &request.vpc))?;
        let range = |cidr: &dyn std::fmt::Display| {
            ApiError::client("InvalidSubnet.Range", format!("The CIDR '{cidr}' is invalid."))
        };
        let inside = vpc.cidrs.iter().any(|outer| outer.contains(&cidr));
        if !(16..=28).contains(&cidr.prefix_len()) || cidr.trunc() != cidr || !inside {
            return Err(range(&cidr));
        }
        if let Some(ipv6) = request.ipv6_cidr {
            let inside = vpc.ipv6_cidrs.iter().any(|outer| outer.contains(&ipv6));
            if ipv6.prefix_len() != 64 || ipv6.trunc() != ipv6 || !inside {
                return Err(range(&ipv6));
            }
        }
        let siblings: Vec<&Subnet> = self.state.subnets.values().filter(|other| other.vpc == request.vpc).collect();
        if siblings.len() >= MOST_SUBNETS {
            return Err(ApiError::client("SubnetLimitExceeded", "The maximum number of subnets has been reached."));
        }
        let conflict = siblings.iter().any(|other| {
            overlap(other.cidr, cidr) || (other.ipv6_cidr.is_some() && other.ipv6_cidr == request.ipv6_cidr)
        });
        if conflict {
            return Err(ApiError::client(
                "InvalidSubnet.Conflict",
                format!("The CIDR '{cidr}' conflicts with another subnet"),
            ));
        }
        let zone = request.availability_zone.clone().unwrap_or_else(|| format!("{}a", self.settings.region));
        let letter = zone.strip_prefix(self.settings.region.as_str()).unwrap_or_default();
        if !matches!(letter.as_bytes(), [b'a'..=b'f']) {
            return Err(ApiError::invalid_parameter(
                "availabilityZone",
                &zone,
                &format!(
                    "Subnets can currently only be created in the following availability zones: {0}a, {0}b, {0}c, {0}d, {0}e, {0}f.",
                    self.settings.region
                ),
            ));
        }
        let id: SubnetId = self.fresh("subnet-")?;
        let subnet = Subnet {
            id: id.clone(),
            vpc: request.vpc.clone(),
            cidr,
            ipv6_cidr: request.ipv6_cidr,
            availability_zone: zone,
            map_public_ip: false,
            tags: request.tags.clone(),
            space: AddressSpace::new(cidr),
            ipv6_space: Ipv6Space::new(request.ipv6_cidr),
        };
        self.state.subnets.insert(id, subnet.clone());
        Ok(subnet)
    }

    pub(super) fn create_security_group(&mut self, request: &CreateSecurityGroup) -> Result<Reply, ApiError> {
        super::tags::check(&request.tags)?;
        let vpc = self.state.vpcs.get(&request.vpc).ok_or_else(|| ApiError::not_found(Missing::Vpc, &request.vpc))?;
        let everything = everything(!vpc.ipv6_cidrs.is_empty());
        if request.name.is_empty() || request.name.len() > 255 || request.name.starts_with("sg-") {
            return Err(ApiError::invalid_parameter(
                "groupName",
                &request.name,
                "It must have 1 to 255 characters and not start with sg-.",
            ));
        }
        let groups = &self.state.security_groups;
        if groups.values().any(|group| group.vpc == request.vpc && group.name == request.name) {
            return Err(ApiError::client(
                "InvalidGroup.Duplicate",
                format!("The security group '{}' already exists for VPC '{}'", request.name, request.vpc),
            ));
        }
        if groups.len() >= MOST_SECURITY_GROUPS {
            return Err(ApiError::client(
                "SecurityGroupLimitExceeded",
                "The maximum number of security groups has been reached.",
            ));
        }
        let group = SecurityGroup {
            id: self.fresh("sg-")?,
            vpc: request.vpc.clone(),
            name: request.name.clone(),
            description: request.description.clone(),
            ingress: Vec::new(),
            egress: vec![everything],
            tags: request.tags.clone(),
        };
        self.state.security_groups.insert(group.id.clone(), group.clone());
        Ok(Reply::SecurityGroup(Box::new(group)))
    }

    pub(super) fn authorize(
        &mut self,
        id: &SecurityGroupId,
        permissions: &[Permission],
        direction: Direction,
    ) -> Result<Reply, ApiError> {
        let peers = permissions.iter().flat_map(|permission| &permission.groups);
        for peer in peers.chain([id]) {
            if !self.state.security_groups.contains_key(peer) {
                return Err(ApiError::not_found(Missing::SecurityGroup, peer));
            }
        }
        if permissions.is_empty() {
            return Err(ApiError::missing("ipPermissions"));
        }
        let group = self.state.security_groups.get_mut(id);
        let group = group.ok_or_else(|| ApiError::not_found(Missing::SecurityGroup, id))?;
        let rules = match direction {
            Direction::Ingress => &mut group.ingress,
            Direction::Egress => &mut group.egress,
        };
        for permission in permissions {
            if permission.cidrs.is_empty() && permission.ipv6_cidrs.is_empty() && permission.groups.is_empty() {
                return Err(ApiError::missing("ipRanges"));
            }
            if rules.contains(permission) {
                return Err(ApiError::client("InvalidPermission.Duplicate", "the specified rule already exists"));
            }
            rules.push(permission.clone());
        }
        if rules.len() > MOST_RULES {
            return Err(ApiError::client(
                "RulesPerSecurityGroupLimitExceeded",
                "The maximum number of rules per security group has been reached.",
            ));
        }
        Ok(Reply::Done)
    }

    pub(super) fn revoke(
        &mut self,
        id: &SecurityGroupId,
        permissions: &[Permission],
        direction: Direction,
    ) -> Result<Reply, ApiError> {
        if permissions.is_empty() {
            return Err(ApiError::missing("ipPermissions"));
        }
        let group = self.state.security_groups.get_mut(id);
        let group = group.ok_or_else(|| ApiError::not_found(Missing::SecurityGroup, id))?;
        let rules = match direction {
            Direction::Ingress => &mut group.ingress,
            Direction::Egress => &mut group.egress,
        };
        if !permissions.iter().all(|permission| rules.contains(permission)) {
            return Err(ApiError::client(
                "InvalidPermission.NotFound",
                "The specified rule does not exist in this security group.",
            ));
        }
        rules.retain(|rule| !permissions.contains(rule));
        Ok(Reply::Done)
    }

    /// A /56 out of a range for documentation (RFC 9637, 3fff::/20) that no other VPC has.
    pub(super) fn fresh_ipv6_block(&mut self) -> Ipv6Net {
        loop {
            let bits = (0x3fff_u128 << 112) | (u128::from(self.random.draw() & 0x0f_ffff_ffff) << 72);
            let block = Ipv6Net::new(Ipv6Addr::from_bits(bits), 56).unwrap_or_default();
            if self.state.vpcs.values().all(|vpc| !vpc.ipv6_cidrs.contains(&block)) {
                return block;
            }
        }
    }
}

/// What a new group lets out; of IPv6 where its VPC has any (VPC User Guide, "Default security groups for your VPCs").
fn everything(ipv6: bool) -> Permission {
    let ipv6_cidrs = if ipv6 { vec![Ipv6Net::default()] } else { Vec::new() };
    Permission { protocol: "-1".to_owned(), cidrs: vec![Ipv4Net::default()], ipv6_cidrs, ..Permission::default() }
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}
