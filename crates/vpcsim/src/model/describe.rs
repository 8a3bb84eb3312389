//! The Describe calls, over whatever state the caller is to see.

use std::time::Duration;

use super::api::{Describe, InstanceWithEnis, Listed, Reply, Request, TagOf};
use super::behaviour::Settings;
use super::error::{ApiError, Missing};
use super::filter::{self, Listable};
use super::state::{Eni, Instance, RouteTable, SecurityGroup, State, Subnet, Tags, Vpc};
use super::tags;
use crate::limits::{Hypervisor, INSTANCE_TYPES, InstanceType, instance_type};

/// Answers a Describe call from `state` as it was at `at`.
pub(super) fn describe(state: &State, settings: &Settings, request: &Request, at: Duration) -> Result<Reply, ApiError> {
    match request {
        Request::DescribeNetworkInterfaces(request) => {
            let found = select(
                request,
                "networkInterfaceSet",
                Missing::Eni,
                |id| state.enis.get(id),
                || state.enis.values().collect(),
            )?;
            let views = found.into_iter().map(|eni| EniView { eni, state, settings, at }).collect();
            Ok(Reply::NetworkInterfaces(listed(views, request, |view| view.eni.clone())?))
        }
        Request::DescribeInstances(request) => {
            let found = select(
                request,
                "instancesSet",
                Missing::Instance,
                |id| state.instances.get(id),
                || state.instances.values().collect(),
            )?;
            let views = found.into_iter().map(|instance| InstanceView { instance, state, at }).collect();
            Ok(Reply::Instances(listed(views, request, |view| InstanceWithEnis {
                instance: view.instance.clone(),
                enis: state.attached(&view.instance.id).into_iter().cloned().collect(),
            })?))
        }
        Request::DescribeSubnets(request) => {
            let found = select(
                request,
                "subnetSet",
                Missing::Subnet,
                |id| state.subnets.get(id),
                || state.subnets.values().collect(),
            )?;
            Ok(Reply::Subnets(listed(found, request, |subnet| (*subnet).clone())?))
        }
        Request::DescribeRouteTables(request) => {
            let found = select(
                request,
                "routeTableIdSet",
                Missing::RouteTable,
                |id| state.route_tables.get(id),
                || state.route_tables.values().collect(),
            )?;
            let views = found.into_iter().map(|table| RouteTableView { table, state }).collect();
            Ok(Reply::RouteTables(listed(views, request, |view| view.table.clone())?))
        }
        Request::DescribeVpcs(request) => {
            let found =
                select(request, "vpcSet", Missing::Vpc, |id| state.vpcs.get(id), || state.vpcs.values().collect())?;
            Ok(Reply::Vpcs(listed(found, request, |vpc| (*vpc).clone())?))
        }
        Request::DescribeSecurityGroups(request) => {
            let groups = &state.security_groups;
            let found = select(
                request,
                "securityGroupIdSet",
                Missing::SecurityGroup,
                |id| groups.get(id),
                || groups.values().collect(),
            )?;
            Ok(Reply::SecurityGroups(listed(found, request, |group| (*group).clone())?))
        }
        Request::DescribeInstanceTypes(request) => {
            let names: Vec<String> = request.ids.iter().map(|name| name.0.clone()).collect();
            let unknown: Vec<String> = names.iter().filter(|name| instance_type(name).is_none()).cloned().collect();
            if !unknown.is_empty() {
                let message = format!("The following supplied instance types do not exist: [{}]", unknown.join(", "));
                return Err(ApiError::client("InvalidInstanceType", message));
            }
            let mut found: Vec<&'static InstanceType> = INSTANCE_TYPES
                .iter()
                .filter(|entry| names.is_empty() || names.iter().any(|n| n == entry.name))
                .collect();
            found.sort_by_key(|entry| entry.name);
            let found = filter::matching(found, &request.filters)?;
            Ok(Reply::InstanceTypes(filter::page(found, &request.page, &(5..=100))?))
        }
        Request::DescribeTags(request) => Ok(Reply::Tags(listed(tags::all(state), request, Clone::clone)?)),
        _ => Err(ApiError::internal("not a Describe call")),
    }
}

/// The things asked for by id, or all of them.
fn select<'a, Id: ToString, T>(
    request: &Describe<Id>,
    parameter: &str,
    what: Missing,
    find: impl Fn(&Id) -> Option<&'a T>,
    all: impl FnOnce() -> Vec<&'a T>,
) -> Result<Vec<&'a T>, ApiError> {
    if request.ids.is_empty() {
        return Ok(all());
    }
    if request.page.max_results.is_some() {
        return Err(ApiError::combination(format!(
            "The parameter {parameter} cannot be used with the parameter maxResults"
        )));
    }
    let missing: Vec<String> = request.ids.iter().filter(|id| find(id).is_none()).map(ToString::to_string).collect();
    if !missing.is_empty() {
        return Err(ApiError::none_found(what, &missing));
    }
    Ok(request.ids.iter().filter_map(find).collect())
}

fn listed<Id, V: Listable, T>(
    views: Vec<V>,
    request: &Describe<Id>,
    take: impl Fn(&V) -> T,
) -> Result<Listed<T>, ApiError> {
    let mut found = filter::matching(views, &request.filters)?;
    found.sort_by_key(Listable::key);
    found.dedup_by_key(|view| view.key());
    let page = filter::page(found, &request.page, &(5..=1000))?;
    Ok(Listed { items: page.items.iter().map(take).collect(), next_token: page.next_token })
}

struct EniView<'a> {
    eni: &'a Eni,
    state: &'a State,
    settings: &'a Settings,
    at: Duration,
}

impl Listable for EniView<'_> {
    fn key(&self) -> String {
        self.eni.id.to_string()
    }

    fn tags(&self) -> Option<&Tags> {
        Some(&self.eni.tags)
    }

    fn values(&self, name: &str) -> Option<Vec<String>> {
        let eni = self.eni;
        let attachment = eni.attachment.as_ref();
        let one = |value: String| Some(vec![value]);
        let maybe = |value: Option<String>| Some(value.into_iter().collect());
        match name {
            "network-interface-id" => one(eni.id.to_string()),
            "subnet-id" => one(eni.subnet.to_string()),
            "vpc-id" => one(eni.vpc.to_string()),
            "availability-zone" => one(eni.availability_zone.clone()),
            "status" => one(eni.status(self.at).to_owned()),
            "description" => one(eni.description.clone()),
            "mac-address" => one(eni.mac.to_string()),
            "interface-type" => one(eni.interface_type.as_str().to_owned()),
            "owner-id" => one(self.settings.account.clone()),
            "requester-managed" => one(attachment.is_some_and(|at| at.instance.is_none()).to_string()),
            "source-dest-check" => one(eni.source_dest_check.to_string()),
            "group-id" => Some(eni.groups.iter().map(ToString::to_string).collect()),
            "group-name" => {
                let groups = eni.groups.iter().filter_map(|id| self.state.security_groups.get(id));
                Some(groups.map(|group| group.name.clone()).collect())
            }
            "private-ip-address" => one(eni.primary.to_string()),
            "addresses.private-ip-address" => {
                Some(std::iter::once(&eni.primary).chain(&eni.secondaries).map(ToString::to_string).collect())
            }
            "addresses.association.public-ip" | "association.public-ip" => {
                maybe(eni.association.map(|association| association.public_ip.to_string()))
            }
            "ipv6-addresses.ipv6-address" => Some(eni.ipv6.iter().map(ToString::to_string).collect()),
            "attachment.attachment-id" => maybe(attachment.map(|at| at.id.to_string())),
            "attachment.instance-id" => maybe(attachment.and_then(|at| Some(at.instance.as_ref()?.to_string()))),
            "attachment.device-index" => maybe(attachment.map(|at| at.device.to_string())),
            "attachment.network-card-index" => maybe(attachment.map(|at| at.card.to_string())),
            "attachment.status" => maybe(attachment.map(|at| at.status(self.at).as_str().to_owned())),
            "attachment.delete-on-termination" => maybe(attachment.map(|at| at.delete_on_termination.to_string())),
            _ => None,
        }
    }
}

struct InstanceView<'a> {
    instance: &'a Instance,
    state: &'a State,
    at: Duration,
}

impl Listable for InstanceView<'_> {
    fn key(&self) -> String {
        self.instance.id.to_string()
    }

    fn tags(&self) -> Option<&Tags> {
        Some(&self.instance.tags)
    }

    fn values(&self, name: &str) -> Option<Vec<String>> {
        let instance = self.instance;
        let primary = self.state.enis.get(&instance.primary_eni);
        let (code, state) = instance.state(self.at).code_and_name();
        let one = |value: String| Some(vec![value]);
        match name {
            "instance-id" => one(instance.id.to_string()),
            "instance-type" => one(instance.instance_type.clone()),
            "instance-state-name" => one(state.to_owned()),
            "instance-state-code" => one(code.to_string()),
            "vpc-id" => one(instance.vpc.to_string()),
            "subnet-id" => one(instance.subnet.to_string()),
            "availability-zone" => one(instance.availability_zone.clone()),
            "image-id" => one(instance.image.clone()),
            "reservation-id" => one(instance.reservation.clone()),
            "private-ip-address" => Some(primary.map(|eni| eni.primary.to_string()).into_iter().collect()),
            "ip-address" => {
                let public = primary.and_then(|eni| eni.association).map(|association| association.public_ip);
                Some(public.map(|address| address.to_string()).into_iter().collect())
            }
            "network-interface.network-interface-id" => {
                Some(self.state.attached(&instance.id).into_iter().map(|eni| eni.id.to_string()).collect())
            }
            _ => None,
        }
    }
}

impl Listable for &Subnet {
    fn key(&self) -> String {
        self.id.to_string()
    }

    fn tags(&self) -> Option<&Tags> {
        Some(&self.tags)
    }

    fn values(&self, name: &str) -> Option<Vec<String>> {
        let value = match name {
            "subnet-id" => self.id.to_string(),
            "vpc-id" => self.vpc.to_string(),
            "availability-zone" | "availabilityZone" => self.availability_zone.clone(),
            "cidr-block" | "cidr" | "cidrBlock" => self.cidr.to_string(),
            "state" => "available".to_owned(),
            "available-ip-address-count" => self.available().to_string(),
            "map-public-ip-on-launch" => self.map_public_ip.to_string(),
            "default-for-az" | "defaultForAz" => "false".to_owned(),
            _ => return None,
        };
        Some(vec![value])
    }
}

struct RouteTableView<'a> {
    table: &'a RouteTable,
    state: &'a State,
}

impl Listable for RouteTableView<'_> {
    fn key(&self) -> String {
        self.table.id.to_string()
    }

    fn tags(&self) -> Option<&Tags> {
        None
    }

    fn values(&self, name: &str) -> Option<Vec<String>> {
        let table = self.table;
        match name {
            "route-table-id" => Some(vec![table.id.to_string()]),
            "vpc-id" => Some(vec![table.vpc.to_string()]),
            "association.subnet-id" => Some(table.subnets.iter().map(ToString::to_string).collect()),
            "association.main" => Some(vec![self.state.is_main(table).to_string()]),
            "route.destination-cidr-block" => Some(table.routes.keys().map(ToString::to_string).collect()),
            _ => None,
        }
    }
}

impl Listable for &Vpc {
    fn key(&self) -> String {
        self.id.to_string()
    }

    fn tags(&self) -> Option<&Tags> {
        Some(&self.tags)
    }

    fn values(&self, name: &str) -> Option<Vec<String>> {
        match name {
            "vpc-id" => Some(vec![self.id.to_string()]),
            "cidr" | "cidr-block" => Some(self.cidrs.first().map(ToString::to_string).into_iter().collect()),
            "cidr-block-association.cidr-block" => Some(self.cidrs.iter().map(ToString::to_string).collect()),
            "ipv6-cidr-block-association.ipv6-cidr-block" => {
                Some(self.ipv6_cidrs.iter().map(ToString::to_string).collect())
            }
            "state" => Some(vec!["available".to_owned()]),
            "is-default" | "isDefault" => Some(vec!["false".to_owned()]),
            _ => None,
        }
    }
}

impl Listable for &SecurityGroup {
    fn key(&self) -> String {
        self.id.to_string()
    }

    fn tags(&self) -> Option<&Tags> {
        Some(&self.tags)
    }

    fn values(&self, name: &str) -> Option<Vec<String>> {
        let value = match name {
            "group-id" => self.id.to_string(),
            "group-name" => self.name.clone(),
            "description" => self.description.clone(),
            "vpc-id" => self.vpc.to_string(),
            _ => return None,
        };
        Some(vec![value])
    }
}

impl Listable for &'static InstanceType {
    fn key(&self) -> String {
        self.name.to_owned()
    }

    fn tags(&self) -> Option<&Tags> {
        None
    }

    fn values(&self, name: &str) -> Option<Vec<String>> {
        let value = match name {
            "instance-type" => self.name.to_owned(),
            "bare-metal" => (self.hypervisor == Hypervisor::None).to_string(),
            "current-generation" => (self.hypervisor != Hypervisor::Xen).to_string(),
            "hypervisor" => match self.hypervisor {
                Hypervisor::Nitro => "nitro".to_owned(),
                Hypervisor::Xen => "xen".to_owned(),
                Hypervisor::None => return Some(Vec::new()),
            },
            "network-info.maximum-network-interfaces" => self.enis().to_string(),
            "network-info.maximum-network-cards" => self.cards.len().to_string(),
            "network-info.ipv4-addresses-per-interface" => self.ipv4_per_eni.to_string(),
            "network-info.ipv6-addresses-per-interface" => self.ipv6_per_eni.to_string(),
            "network-info.efa-supported" => self.efa.to_string(),
            "processor-info.supported-architecture" => self.architecture.to_owned(),
            "vcpu-info.default-vcpus" => self.vcpus.to_string(),
            "memory-info.size-in-mib" => self.memory_mib.to_string(),
            _ => return None,
        };
        Some(vec![value])
    }
}

impl Listable for TagOf {
    fn key(&self) -> String {
        format!("{} {}", self.resource, self.key)
    }

    fn tags(&self) -> Option<&Tags> {
        None
    }

    fn values(&self, name: &str) -> Option<Vec<String>> {
        let value = match name {
            "key" => &self.key,
            "value" => &self.value,
            "resource-id" => &self.resource,
            "resource-type" => self.kind,
            name => {
                let matches = name.strip_prefix("tag:")? == self.key;
                return Some(matches.then(|| self.value.clone()).into_iter().collect());
            }
        };
        Some(vec![value.to_owned()])
    }
}
