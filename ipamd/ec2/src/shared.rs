//! What one node asks for all: members of groups, and the VPC's routes.

use std::collections::BTreeSet;

use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::Region;
use aws_sdk_ec2::types::{Filter, GroupIdentifier, InstanceNetworkInterface, NetworkInterface, Route, RouteState};
use ipnet::{IpNet, Ipv4Net};
use sluice_contract::id::VpcId;
use sluice_ipamd_core::cloud::{Api, CloudError};
use sluice_ipamd_core::shared::{Group, Member, VpcRoute};

use crate::cloud::{Ec2Cloud, MOST_PAGES, PAGE, filter, literal, too_many_pages};
use crate::decode::Fields;
use crate::error::{Asked, of_ec2};

/// Values of one filter (EC2 API, "Filter").
const MOST_VALUES: usize = 200;

impl Ec2Cloud {
    /// The client for a group's region. One for another region is made anew: it shares the connections.
    async fn client_of(&self, group: &Group) -> Result<Client, CloudError> {
        let own = self.client(group.api()).await?;
        let here = own.config().region().map(Region::as_ref);
        let elsewhere = group.region.as_ref().filter(|region| here != Some(region.as_str()));
        Ok(match elsewhere {
            None => own.clone(),
            Some(region) => Client::from_conf(own.config().to_builder().region(Region::new(region.clone())).build()),
        })
    }

    /// The interfaces that a group may mean.
    pub(crate) async fn members_of(&self, group: &Group) -> Result<Vec<Member>, CloudError> {
        let client = self.client_of(group).await?;
        if !group.tags.is_empty() {
            return members_by_tags(&client, group).await;
        }
        // Where both are named the ids choose, and the names are looked at afterwards.
        let (name, values) = if group.ids.is_empty() { ("group-name", &group.names) } else { ("group-id", &group.ids) };
        let values: Vec<String> = values.iter().map(|value| literal(value)).collect();
        let mut members = Vec::new();
        for values in values.chunks(MOST_VALUES) {
            let filter = Filter::builder().name(name).set_values(Some(values.to_vec())).build();
            members.extend(members_by_group(&client, filter).await?);
        }
        Ok(members)
    }

    /// The IPv4 routes of all route tables of a VPC.
    pub(crate) async fn routes_of(&self, vpc: &VpcId) -> Result<Vec<VpcRoute>, CloudError> {
        const API: Api = Api::DescribeRouteTables;
        let client = self.client(API).await?;
        let mut routes = Vec::new();
        let mut next: Option<String> = None;
        for _ in 0..MOST_PAGES {
            // Pages of route tables have 100 at most (EC2 API, DescribeRouteTables).
            let request = client.describe_route_tables().filters(filter("vpc-id", vpc.as_str())).max_results(100);
            let page = Box::pin(request.set_next_token(next).send());
            let page = page.await.map_err(|error| of_ec2(API, Asked::Other, &error))?;
            for table in page.route_tables() {
                let fields = Fields { api: API, of: table.route_table_id().unwrap_or("a route table without id") };
                for route in table.routes() {
                    routes.extend(self::route(&fields, route)?);
                }
            }
            next = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
            if next.is_none() {
                return Ok(routes);
            }
        }
        Err(too_many_pages(API))
    }
}

async fn members_by_group(client: &Client, filter: Filter) -> Result<Vec<Member>, CloudError> {
    const API: Api = Api::DescribeNetworkInterfaces;
    let mut members = Vec::new();
    let mut next: Option<String> = None;
    for _ in 0..MOST_PAGES {
        let request = client.describe_network_interfaces().filters(filter.clone()).max_results(PAGE);
        let page = Box::pin(request.set_next_token(next).send());
        let page = page.await.map_err(|error| of_ec2(API, Asked::Other, &error))?;
        for interface in page.network_interfaces() {
            members.push(member_of(interface)?);
        }
        next = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
        if next.is_none() {
            return Ok(members);
        }
    }
    Err(too_many_pages(API))
}

async fn members_by_tags(client: &Client, group: &Group) -> Result<Vec<Member>, CloudError> {
    const API: Api = Api::DescribeInstances;
    let filters: Vec<Filter> = group.tags.iter().map(|(key, value)| filter(&format!("tag:{key}"), value)).collect();
    let mut members = Vec::new();
    let mut next: Option<String> = None;
    for _ in 0..MOST_PAGES {
        let request = client.describe_instances().set_filters(Some(filters.clone())).max_results(PAGE);
        let page = Box::pin(request.set_next_token(next).send());
        let page = page.await.map_err(|error| of_ec2(API, Asked::Other, &error))?;
        let instances = page.reservations().iter().flat_map(|reservation| reservation.instances());
        for interface in instances.flat_map(|instance| instance.network_interfaces()) {
            members.push(member_of_instance(interface)?);
        }
        next = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
        if next.is_none() {
            return Ok(members);
        }
    }
    Err(too_many_pages(API))
}

fn member_of(seen: &NetworkInterface) -> Result<Member, CloudError> {
    let fields = Fields {
        api: Api::DescribeNetworkInterfaces,
        of: seen.network_interface_id().unwrap_or("a network interface without id"),
    };
    let v4 = seen.private_ip_addresses().iter().map(|address| address.private_ip_address());
    let v6 = seen.ipv6_addresses().iter().map(|address| address.ipv6_address());
    let v4_nets = seen.ipv4_prefixes().iter().map(|prefix| prefix.ipv4_prefix());
    let v6_nets = seen.ipv6_prefixes().iter().map(|prefix| prefix.ipv6_prefix());
    Ok(Member { groups: groups(seen.groups()), cidrs: cidrs(&fields, v4.chain(v6), v4_nets.chain(v6_nets))? })
}

fn member_of_instance(seen: &InstanceNetworkInterface) -> Result<Member, CloudError> {
    let fields = Fields {
        api: Api::DescribeInstances,
        of: seen.network_interface_id().unwrap_or("a network interface without id"),
    };
    let v4 = seen.private_ip_addresses().iter().map(|address| address.private_ip_address());
    let v6 = seen.ipv6_addresses().iter().map(|address| address.ipv6_address());
    let v4_nets = seen.ipv4_prefixes().iter().map(|prefix| prefix.ipv4_prefix());
    let v6_nets = seen.ipv6_prefixes().iter().map(|prefix| prefix.ipv6_prefix());
    Ok(Member { groups: groups(seen.groups()), cidrs: cidrs(&fields, v4.chain(v6), v4_nets.chain(v6_nets))? })
}

fn groups(seen: &[GroupIdentifier]) -> BTreeSet<(String, String)> {
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    seen.iter().map(|group| (text(group.group_id()), text(group.group_name()))).collect()
}

fn cidrs<'v>(
    fields: &Fields<'_>,
    addresses: impl Iterator<Item = Option<&'v str>>,
    networks: impl Iterator<Item = Option<&'v str>>,
) -> Result<BTreeSet<IpNet>, CloudError> {
    let address =
        |text| fields.required::<std::net::IpAddr>("PrivateIpAddresses or Ipv6Addresses", text).map(IpNet::from);
    let network = |text| fields.required::<IpNet>("Ipv4Prefixes or Ipv6Prefixes", text).map(|net| net.trunc());
    addresses.map(address).chain(networks.map(network)).collect()
}

/// A route, if it is one of IPv4 to a CIDR and leads somewhere.
fn route(fields: &Fields<'_>, seen: &Route) -> Result<Option<VpcRoute>, CloudError> {
    let destination: Option<Ipv4Net> = fields.optional("DestinationCidrBlock", seen.destination_cidr_block())?;
    let target = [
        seen.vpc_peering_connection_id(),
        seen.transit_gateway_id(),
        seen.gateway_id(),
        seen.local_gateway_id(),
        seen.core_network_arn(),
        seen.nat_gateway_id(),
        seen.network_interface_id(),
    ];
    let target = target.into_iter().flatten().next().unwrap_or_default().to_owned();
    // What it led to is gone, or is not there yet: it leads nowhere.
    let leads = seen.state() != Some(&RouteState::Blackhole);
    Ok(destination.filter(|_| leads).map(|destination| VpcRoute { destination: destination.trunc(), target }))
}
