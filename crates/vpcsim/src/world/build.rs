//! From a scene to a model, and from the scene's names to the model's ids.

use std::collections::BTreeMap;

use ipnet::IpNet;
use sluice_contract::id::{InstanceId, SubnetId, VpcId};

use super::WorldError;
use crate::model::api::CreateSubnet;
use crate::model::state::{RouteTarget, Tags};
use crate::model::{ApiError, InternetGatewayId, Model, NatGatewayId, PeeringId, SceneInstance, Settings};
use crate::scene::{Scene, Via, VpcScene};

/// The model's ids of what the scene names.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub(super) vpcs: BTreeMap<String, VpcId>,
    /// By `VPC/SUBNET`.
    pub(super) subnets: BTreeMap<String, SubnetId>,
    pub(super) instances: BTreeMap<String, InstanceId>,
}

/// What routes name.
#[derive(Debug, Default)]
struct Targets {
    gateways: BTreeMap<String, InternetGatewayId>,
    /// By VPC and name.
    nat_gateways: BTreeMap<(String, String), NatGatewayId>,
    peerings: BTreeMap<String, PeeringId>,
}

fn made<T>(what: String, result: Result<T, ApiError>) -> Result<T, WorldError> {
    result.map_err(|source| WorldError::Scene { what, source })
}

fn named(name: &str, tags: &BTreeMap<String, String>) -> Tags {
    let mut tags = tags.clone();
    tags.entry("Name".to_owned()).or_insert_with(|| name.to_owned());
    tags
}

/// The model of a scene, at its beginning.
pub(super) fn model(scene: &Scene) -> Result<(Model, Places), WorldError> {
    let settings =
        Settings { seed: scene.seed, time_scale: scene.time_scale, throttle: scene.throttle, ..Settings::aws() };
    let mut model = Model::new(settings);
    let (mut places, mut targets) = (Places::default(), Targets::default());
    for (name, vpc) in &scene.vpcs {
        add_vpc(&mut model, name, vpc, &mut places, &mut targets)?;
    }
    for (name, (one, other)) in &scene.peerings {
        if let (Some(one), Some(other)) = (places.vpcs.get(one), places.vpcs.get(other)) {
            let id = made(format!("peering {name}"), model.add_peering(one, other))?;
            targets.peerings.insert(name.clone(), id);
        }
    }
    for (name, vpc) in &scene.vpcs {
        add_routes(&mut model, name, vpc, &places, &targets)?;
    }
    for (name, instance) in &scene.instances {
        let Some(subnet) = places.subnets.get(&instance.subnet.to_string()) else { continue };
        let launch = SceneInstance {
            instance_type: instance.instance_type.clone(),
            subnet: subnet.clone(),
            private_ip: instance.address,
            public_ip: instance.public_address,
            tags: named(name, &instance.tags),
        };
        let id = made(format!("instance {name}"), model.add_instance(&launch))?;
        made(format!("the IPv6 address of instance {name}"), model.add_ipv6_address(&id))?;
        places.instances.insert(name.clone(), id);
    }
    Ok((model, places))
}

fn add_vpc(
    model: &mut Model,
    name: &str,
    vpc: &VpcScene,
    places: &mut Places,
    targets: &mut Targets,
) -> Result<(), WorldError> {
    let id = made(format!("VPC {name}"), model.add_vpc(&vpc.cidrs, vpc.ipv6_cidr, named(name, &BTreeMap::new())))?;
    made(format!("VPC {name}"), model.enforce_groups(&id, vpc.enforce_security_groups))?;
    for (subnet_name, subnet) in &vpc.subnets {
        let path = format!("{name}/{subnet_name}");
        let create = CreateSubnet {
            vpc: id.clone(),
            cidr: subnet.cidr,
            ipv6_cidr: subnet.ipv6_cidr,
            availability_zone: Some(subnet.zone.clone()),
            tags: named(subnet_name, &subnet.tags),
        };
        let subnet = made(format!("subnet {path}"), model.add_subnet(&create, false))?;
        places.subnets.insert(path, subnet);
    }
    if vpc.internet_gateway {
        let gateway = made(format!("the Internet gateway of {name}"), model.add_internet_gateway(&id))?;
        targets.gateways.insert(name.to_owned(), gateway);
    }
    for (nat, gateway) in &vpc.nat_gateways {
        if let Some(subnet) = places.subnets.get(&format!("{name}/{}", gateway.subnet)) {
            let id = made(format!("NAT gateway {nat} of {name}"), model.add_nat_gateway(subnet))?;
            targets.nat_gateways.insert((name.to_owned(), nat.clone()), id);
        }
    }
    places.vpcs.insert(name.to_owned(), id);
    Ok(())
}

fn add_routes(
    model: &mut Model,
    name: &str,
    vpc: &VpcScene,
    places: &Places,
    targets: &Targets,
) -> Result<(), WorldError> {
    let Some(vpc_id) = places.vpcs.get(name) else { return Ok(()) };
    for (subnet_name, subnet) in vpc.subnets.iter().filter(|(_, subnet)| !subnet.routes.is_empty()) {
        let path = format!("{name}/{subnet_name}");
        let Some(id) = places.subnets.get(&path) else { continue };
        let what = format!("the route table of {path}");
        let table = made(what.clone(), model.add_route_table(vpc_id, std::slice::from_ref(id)))?;
        for (destination, via) in &subnet.routes {
            let set = |target| -> Option<(IpNet, RouteTarget)> { Some((*destination, target)) };
            let route = match via {
                Via::InternetGateway => {
                    targets.gateways.get(name).and_then(|id| set(RouteTarget::InternetGateway(id.clone())))
                }
                Via::NatGateway(nat) => {
                    let found = targets.nat_gateways.get(&(name.to_owned(), nat.clone()));
                    found.and_then(|id| set(RouteTarget::NatGateway(id.clone())))
                }
                Via::Peering(peering) => {
                    targets.peerings.get(peering).and_then(|id| set(RouteTarget::Peering(id.clone())))
                }
            };
            // A scene whose routes name nothing was refused before.
            if let Some((destination, target)) = route {
                made(what.clone(), model.set_route(&table, destination, Some(target)))?;
            }
        }
    }
    Ok(())
}
