//! Setting a scene without the API: at once, unthrottled, not in the log.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sluice_contract::id::{EniId, InstanceId, SubnetId, VpcId};

use super::Model;
use super::api::{
    AssignIpv6Addresses, AttachNetworkInterface, CreateNetworkInterface, CreateSubnet, RunInstances, WantIpv4, WantIpv6,
};
use super::error::{ApiError, Missing};
use super::id::{InternetGatewayId, NatGatewayId, PeeringId, RouteTableId};
use super::state::{
    Association, Attachment, InterfaceType, InternetGateway, NatGateway, Peering, RouteTable, RouteTarget, Tags,
};

/// An instance to set up, running from the start.
#[derive(Debug, Clone)]
pub struct SceneInstance {
    /// Its type.
    pub instance_type: String,
    /// Where its primary ENI is.
    pub subnet: SubnetId,
    /// Its primary address; the model's choice when absent.
    pub private_ip: Option<Ipv4Addr>,
    /// Whether its primary address has a public one.
    pub public_ip: bool,
    /// Its tags.
    pub tags: Tags,
}

/// An ENI to set up; attached and showing when it has a place.
#[derive(Debug, Clone)]
pub struct SceneEni {
    /// Where it is.
    pub subnet: SubnetId,
    /// Its primary address; the model's choice when absent.
    pub private_ip: Option<Ipv4Addr>,
    /// Addresses beside the primary one.
    pub want: WantIpv4,
    /// IPv6 addresses.
    pub want_ipv6: WantIpv6,
    /// The instance, card and device that it is plugged in at.
    pub place: Option<(InstanceId, u32, u32)>,
    /// Its tags.
    pub tags: Tags,
}

impl Model {
    /// Makes a VPC of one or more CIDRs, the primary one first.
    ///
    /// # Errors
    /// As CreateVpc and AssociateVpcCidrBlock.
    pub fn add_vpc(&mut self, cidrs: &[Ipv4Net], ipv6: Option<Ipv6Net>, tags: Tags) -> Result<VpcId, ApiError> {
        self.edit(|edit| Ok(edit.new_vpc(cidrs, ipv6.into_iter().collect(), tags)?.id))
    }

    /// Adds a secondary CIDR to a VPC.
    ///
    /// # Errors
    /// As AssociateVpcCidrBlock.
    pub fn add_vpc_cidr(&mut self, vpc: &VpcId, cidr: Ipv4Net) -> Result<(), ApiError> {
        self.edit(|edit| edit.add_cidr(vpc, cidr))
    }

    /// Makes a subnet. With `map_public_ip`, instances launched in it through the API get a public address.
    ///
    /// # Errors
    /// As CreateSubnet.
    pub fn add_subnet(&mut self, subnet: &CreateSubnet, map_public_ip: bool) -> Result<SubnetId, ApiError> {
        self.edit(|edit| {
            let id = edit.new_subnet(subnet)?.id;
            if let Some(subnet) = edit.state.subnets.get_mut(&id) {
                subnet.map_public_ip = map_public_ip;
            }
            Ok(id)
        })
    }

    /// Makes an Internet gateway and attaches it to a VPC.
    ///
    /// # Errors
    /// `InvalidVpcID.NotFound`; `Resource.AlreadyAssociated` when the VPC has one.
    pub fn add_internet_gateway(&mut self, vpc: &VpcId) -> Result<InternetGatewayId, ApiError> {
        self.edit(|edit| {
            if !edit.state.vpcs.contains_key(vpc) {
                return Err(ApiError::not_found(Missing::Vpc, vpc));
            }
            if edit.state.internet_gateways.values().any(|gateway| gateway.vpc.as_ref() == Some(vpc)) {
                return Err(ApiError::client(
                    "Resource.AlreadyAssociated",
                    format!("resource {vpc} is already associated with an Internet gateway"),
                ));
            }
            let id = InternetGatewayId::new(edit.fresh_id("igw-"));
            let gateway = InternetGateway { id: id.clone(), vpc: Some(vpc.clone()) };
            edit.state.internet_gateways.insert(id.clone(), gateway);
            Ok(id)
        })
    }

    /// Gives the primary ENI of an instance an IPv6 address, if its subnet has any: what the subnet's attribute
    /// `AssignIpv6AddressOnCreation` does at launch.
    ///
    /// # Errors
    /// `InvalidInstanceID.NotFound`, and as AssignIpv6Addresses.
    pub fn add_ipv6_address(&mut self, instance: &InstanceId) -> Result<(), ApiError> {
        self.edit(|edit| {
            let found = edit.state.instances.get(instance);
            let found = found.ok_or_else(|| ApiError::not_found(Missing::Instance, instance))?;
            let (eni, subnet) = (found.primary_eni.clone(), found.subnet.clone());
            if edit.state.subnets.get(&subnet).is_some_and(|subnet| subnet.ipv6_cidr.is_some()) {
                let want = WantIpv6 { count: 1, ..WantIpv6::default() };
                edit.assign_ipv6(&AssignIpv6Addresses { eni, want })?;
            }
            Ok(())
        })
    }

    /// Makes a public NAT gateway in a subnet, with an ENI and a public address of its own.
    ///
    /// # Errors
    /// As CreateNatGateway.
    pub fn add_nat_gateway(&mut self, subnet: &SubnetId) -> Result<NatGatewayId, ApiError> {
        self.edit(|edit| {
            let id = NatGatewayId::new(edit.fresh_id("nat-"));
            let eni = edit.new_interface(&CreateNetworkInterface {
                description: format!("Interface for NAT Gateway {id}"),
                interface_type: InterfaceType::NatGateway,
                ..CreateNetworkInterface::new(subnet.clone())
            })?;
            let public_ip = edit.fresh_public_ip()?;
            let attachment = Attachment {
                id: edit.fresh("eni-attach-")?,
                instance: None,
                card: 0,
                device: 1,
                delete_on_termination: false,
                requested: edit.now,
                link_at: edit.now,
                detached_at: None,
            };
            if let Some(eni) = edit.state.enis.get_mut(&eni.id) {
                eni.attachment = Some(attachment);
                eni.source_dest_check = false;
                eni.association = Some(Association { public_ip, private_ip: eni.primary });
            }
            let gateway =
                NatGateway { id: id.clone(), subnet: subnet.clone(), eni: eni.id, private_ip: eni.primary, public_ip };
            edit.state.nat_gateways.insert(id.clone(), gateway);
            Ok(id)
        })
    }

    /// Peers two VPCs. Routes are set apart, on both sides.
    ///
    /// # Errors
    /// `InvalidVpcID.NotFound`; `OverlappingCidrs` when an address would be in both.
    pub fn add_peering(&mut self, requester: &VpcId, accepter: &VpcId) -> Result<PeeringId, ApiError> {
        self.edit(|edit| {
            let vpc = |id: &VpcId| edit.state.vpcs.get(id).ok_or_else(|| ApiError::not_found(Missing::Vpc, id));
            let (one, other) = (vpc(requester)?, vpc(accepter)?);
            let overlaps = |a: &Ipv4Net| other.cidrs.iter().any(|b| a.contains(b) || b.contains(a));
            if one.cidrs.iter().any(overlaps) {
                return Err(ApiError::client(
                    "OverlappingCidrs",
                    format!("The VPCs {requester} and {accepter} have overlapping CIDRs"),
                ));
            }
            let id = PeeringId::new(edit.fresh_id("pcx-"));
            let peering = Peering { id: id.clone(), requester: requester.clone(), accepter: accepter.clone() };
            edit.state.peerings.insert(id.clone(), peering);
            Ok(id)
        })
    }

    /// Makes a route table for some subnets of a VPC, which leave the one that they had.
    ///
    /// # Errors
    /// `InvalidVpcID.NotFound`, `InvalidSubnetID.NotFound`.
    pub fn add_route_table(&mut self, vpc: &VpcId, subnets: &[SubnetId]) -> Result<RouteTableId, ApiError> {
        self.edit(|edit| {
            if !edit.state.vpcs.contains_key(vpc) {
                return Err(ApiError::not_found(Missing::Vpc, vpc));
            }
            for id in subnets {
                let subnet = edit.state.subnets.get(id).filter(|subnet| subnet.vpc == *vpc);
                subnet.ok_or_else(|| ApiError::not_found(Missing::Subnet, id))?;
            }
            for table in edit.state.route_tables.values_mut() {
                table.subnets.retain(|id| !subnets.contains(id));
            }
            let id = RouteTableId::new(edit.fresh_id("rtb-"));
            let subnets: BTreeSet<SubnetId> = subnets.iter().cloned().collect();
            let table = RouteTable { id: id.clone(), vpc: vpc.clone(), subnets, routes: BTreeMap::new() };
            edit.state.route_tables.insert(id.clone(), table);
            Ok(id)
        })
    }

    /// Says whether packets of a VPC obey security groups.
    ///
    /// # Errors
    /// `InvalidVpcID.NotFound`.
    pub fn enforce_groups(&mut self, vpc: &VpcId, enforced: bool) -> Result<(), ApiError> {
        self.edit(|edit| {
            let found = edit.state.vpcs.get_mut(vpc).ok_or_else(|| ApiError::not_found(Missing::Vpc, vpc))?;
            found.enforces_groups = enforced;
            Ok(())
        })
    }

    /// Sets a route; `None` takes it away.
    ///
    /// # Errors
    /// `InvalidRouteTableID.NotFound`; `InvalidID` when the target does not exist.
    pub fn set_route(
        &mut self,
        table: &RouteTableId,
        destination: impl Into<IpNet>,
        target: Option<RouteTarget>,
    ) -> Result<(), ApiError> {
        let destination = destination.into();
        self.edit(|edit| {
            let state = &mut *edit.state;
            let (known, name) = match &target {
                None => (true, String::new()),
                Some(RouteTarget::InternetGateway(id)) => (state.internet_gateways.contains_key(id), id.to_string()),
                Some(RouteTarget::NatGateway(id)) => (state.nat_gateways.contains_key(id), id.to_string()),
                Some(RouteTarget::Peering(id)) => (state.peerings.contains_key(id), id.to_string()),
                Some(RouteTarget::Eni(id)) => (state.enis.contains_key(id), id.to_string()),
            };
            if !known {
                return Err(ApiError::not_found(Missing::Resource, name));
            }
            let found = state.route_tables.get_mut(table);
            let routes = &mut found.ok_or_else(|| ApiError::not_found(Missing::RouteTable, table))?.routes;
            match target {
                Some(target) => routes.insert(destination.trunc(), target),
                None => routes.remove(&destination.trunc()),
            };
            Ok(())
        })
    }

    /// Sets up an instance that runs from now on.
    ///
    /// # Errors
    /// As RunInstances.
    pub fn add_instance(&mut self, instance: &SceneInstance) -> Result<InstanceId, ApiError> {
        self.edit(|edit| {
            let request = RunInstances {
                private_ip: instance.private_ip,
                public_ip: Some(instance.public_ip),
                tags: instance.tags.clone(),
                ..RunInstances::new(instance.instance_type.clone(), instance.subnet.clone())
            };
            let reservation = edit.fresh_id("r-");
            let now: Duration = edit.now;
            Ok(edit.launch(&request, &reservation, now)?.instance.id)
        })
    }

    /// Sets up an ENI.
    ///
    /// # Errors
    /// As CreateNetworkInterface and AttachNetworkInterface.
    pub fn add_eni(&mut self, eni: &SceneEni) -> Result<EniId, ApiError> {
        self.edit(|edit| {
            let id = edit
                .new_interface(&CreateNetworkInterface {
                    private_ip: eni.private_ip,
                    want: eni.want.clone(),
                    want_ipv6: eni.want_ipv6.clone(),
                    tags: eni.tags.clone(),
                    ..CreateNetworkInterface::new(eni.subnet.clone())
                })?
                .id;
            if let Some((instance, card, device)) = &eni.place {
                let plug = AttachNetworkInterface {
                    eni: id.clone(),
                    instance: instance.clone(),
                    card: *card,
                    device: *device,
                };
                edit.plug(&plug, edit.now)?;
            }
            Ok(id)
        })
    }
}
