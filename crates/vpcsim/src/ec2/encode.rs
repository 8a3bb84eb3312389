//! From a reply to XML. Element names are those of the EC2 API reference.

use std::fmt::Display;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::IpNet;
use sluice_contract::id::SecurityGroupId;

use super::xml::Xml;
use crate::limits::{Hypervisor, InstanceType};
use crate::live::iso8601;
use crate::model::api::{InstanceWithEnis, Listed, TagOf};
use crate::model::state::{
    Eni, InstanceState, Permission, RouteTable, RouteTarget, SecurityGroup, State, Subnet, Tags, Vpc,
};
use crate::model::{ApiError, Reply, Settings};
use crate::names;

/// The version of the API, and its namespace.
pub(super) const VERSION: &str = "2016-11-15";
const NAMESPACE: &str = "http://ec2.amazonaws.com/doc/2016-11-15/";

/// What a reply needs beside itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context<'a> {
    /// For the names of groups.
    pub(super) state: &'a State,
    /// For the account, the region and the calendar.
    pub(super) settings: &'a Settings,
    /// The time that the reply tells of.
    pub(super) at: Duration,
}

/// The answer to a call.
pub(super) fn response(action: &str, request_id: &str, reply: &Reply, context: Context<'_>) -> String {
    Xml::document(&format!("{action}Response"), Some(NAMESPACE), |xml| {
        xml.text("requestId", request_id);
        context.reply(xml, reply);
    })
}

/// The answer to a call that failed.
pub(super) fn error(request_id: &str, error: &ApiError) -> String {
    Xml::document("Response", None, |xml| {
        xml.element("Errors", |xml| {
            xml.element("Error", |xml| {
                xml.text("Code", &error.code).text("Message", &error.message);
            });
        });
        xml.text("RequestID", request_id);
    })
}

impl Context<'_> {
    fn reply(self, xml: &mut Xml, reply: &Reply) {
        match reply {
            Reply::Done => {
                xml.text("return", true);
            }
            Reply::AssignedIpv4 { eni, addresses, prefixes } => {
                xml.text("return", true).text("networkInterfaceId", eni);
                xml.set("assignedPrivateIpAddressesSet", addresses, |xml, address| {
                    xml.text("privateIpAddress", address);
                });
                xml.set("assignedIpv4PrefixSet", prefixes, |xml, prefix| {
                    xml.text("ipv4Prefix", prefix);
                });
            }
            Reply::Ipv6 { eni, addresses, prefixes } => {
                // One reply serves both calls: each client reads the element that it knows.
                xml.text("networkInterfaceId", eni);
                xml.values("assignedIpv6Addresses", addresses).values("assignedIpv6PrefixSet", prefixes);
                xml.values("unassignedIpv6Addresses", addresses).values("unassignedIpv6PrefixSet", prefixes);
            }
            Reply::Attached { attachment, card } => {
                xml.text("attachmentId", attachment).text("networkCardIndex", card);
            }
            Reply::NetworkInterface(eni) => {
                xml.element("networkInterface", |xml| self.interface(xml, eni));
            }
            Reply::NetworkInterfaces(listed) => {
                list(xml, "networkInterfaceSet", listed, |xml, eni| self.interface(xml, eni));
            }
            Reply::Launched(reservation, instances) => self.reservation(xml, reservation, instances),
            Reply::Instances(listed) => self.reservations(xml, listed),
            Reply::Terminated(ended) => {
                xml.set("instancesSet", ended, |xml, (id, before)| {
                    let now = self.state.instances.get(id).map(|instance| instance.state(self.at));
                    xml.text("instanceId", id);
                    instance_state(xml, "currentState", now.unwrap_or(InstanceState::Terminated));
                    instance_state(xml, "previousState", *before);
                });
            }
            Reply::InstanceTypes(listed) => {
                list(xml, "instanceTypeSet", listed, |xml, entry| instance_type(xml, entry));
            }
            Reply::Vpc(vpc) => {
                xml.element("vpc", |xml| self.vpc(xml, vpc));
            }
            Reply::Vpcs(listed) => {
                list(xml, "vpcSet", listed, |xml, vpc| self.vpc(xml, vpc));
            }
            Reply::Subnet(subnet) => {
                xml.element("subnet", |xml| self.subnet(xml, subnet));
            }
            Reply::Subnets(listed) => {
                list(xml, "subnetSet", listed, |xml, subnet| self.subnet(xml, subnet));
            }
            Reply::RouteTables(listed) => {
                list(xml, "routeTableSet", listed, |xml, table| self.route_table(xml, table));
            }
            Reply::SecurityGroup(group) => {
                xml.text("return", true).text("groupId", &group.id);
                tags(xml, &group.tags);
            }
            Reply::SecurityGroups(listed) => {
                list(xml, "securityGroupInfo", listed, |xml, group| self.security_group(xml, group));
            }
            Reply::Tags(listed) => {
                list(xml, "tagSet", listed, tag_of);
            }
        }
    }

    fn time(self, at: Duration) -> String {
        iso8601(self.settings.epoch.saturating_add(at))
    }

    fn groups(self, xml: &mut Xml, groups: &[SecurityGroupId]) {
        xml.set("groupSet", groups, |xml, id| {
            let name = self.state.security_groups.get(id).map_or("", |group| &group.name);
            xml.text("groupId", id).text("groupName", name);
        });
    }

    fn interface(self, xml: &mut Xml, eni: &Eni) {
        let requester = eni.attachment.as_ref().is_some_and(|attachment| attachment.instance.is_none());
        xml.text("networkInterfaceId", &eni.id)
            .text("subnetId", &eni.subnet)
            .text("vpcId", &eni.vpc)
            .text("availabilityZone", &eni.availability_zone)
            .text("description", &eni.description)
            .text("ownerId", &self.settings.account)
            .text("requesterManaged", requester)
            .text("status", eni.status(self.at))
            .text("macAddress", eni.mac)
            .text("privateIpAddress", eni.primary)
            .text("privateDnsName", names::private(&self.settings.region, eni.primary))
            .text("sourceDestCheck", eni.source_dest_check)
            .text("interfaceType", eni.interface_type.as_str());
        self.groups(xml, &eni.groups);
        if let Some(attachment) = &eni.attachment {
            xml.element("attachment", |xml| {
                xml.text("attachmentId", &attachment.id);
                if let Some(instance) = &attachment.instance {
                    xml.text("instanceId", instance).text("instanceOwnerId", &self.settings.account);
                } else {
                    xml.text("instanceOwnerId", "amazon-aws");
                }
                self.attachment_rest(xml, attachment);
            });
        }
        self.addresses(xml, eni);
        tags(xml, &eni.tags);
    }

    fn attachment_rest(self, xml: &mut Xml, attachment: &crate::model::state::Attachment) {
        xml.text("deviceIndex", attachment.device)
            .text("networkCardIndex", attachment.card)
            .text("status", attachment.status(self.at).as_str())
            .text("attachTime", self.time(attachment.requested))
            .text("deleteOnTermination", attachment.delete_on_termination);
    }

    /// The addresses of an ENI, the same for DescribeNetworkInterfaces and DescribeInstances.
    fn addresses(self, xml: &mut Xml, eni: &Eni) {
        let association = |xml: &mut Xml, address: Ipv4Addr| {
            if let Some(association) = eni.association.filter(|association| association.private_ip == address) {
                xml.element("association", |xml| {
                    xml.text("publicIp", association.public_ip)
                        .text("publicDnsName", names::public(&self.settings.region, association.public_ip))
                        .text("ipOwnerId", "amazon");
                });
            }
        };
        association(xml, eni.primary);
        let all = std::iter::once(&eni.primary).chain(&eni.secondaries);
        xml.set("privateIpAddressesSet", all, |xml, address| {
            xml.text("privateIpAddress", address)
                .text("privateDnsName", names::private(&self.settings.region, *address))
                .text("primary", *address == eni.primary);
            association(xml, *address);
        });
        xml.set("ipv4PrefixSet", &eni.prefixes, |xml, prefix| {
            xml.text("ipv4Prefix", prefix);
        });
        xml.set("ipv6AddressesSet", &eni.ipv6, |xml, address| {
            xml.text("ipv6Address", address);
        });
        xml.set("ipv6PrefixSet", &eni.ipv6_prefixes, |xml, prefix| {
            xml.text("ipv6Prefix", prefix);
        });
    }

    fn reservation(self, xml: &mut Xml, id: &str, instances: &[InstanceWithEnis]) {
        xml.text("reservationId", id).text("ownerId", &self.settings.account);
        xml.set("groupSet", std::iter::empty::<()>(), |_, ()| {});
        xml.set("instancesSet", instances.iter().enumerate(), |xml, (index, instance)| {
            self.instance(xml, index, instance);
        });
    }

    fn reservations(self, xml: &mut Xml, listed: &Listed<InstanceWithEnis>) {
        let mut order: Vec<&str> = Vec::new();
        for item in &listed.items {
            if !order.contains(&item.instance.reservation.as_str()) {
                order.push(&item.instance.reservation);
            }
        }
        xml.set("reservationSet", order, |xml, reservation| {
            let members: Vec<InstanceWithEnis> =
                listed.items.iter().filter(|item| item.instance.reservation == reservation).cloned().collect();
            self.reservation(xml, reservation, &members);
        });
        xml.maybe("nextToken", listed.next_token.as_ref());
    }

    fn instance(self, xml: &mut Xml, index: usize, item: &InstanceWithEnis) {
        let instance = &item.instance;
        let primary = item.enis.iter().find(|eni| eni.id == instance.primary_eni);
        let limits = crate::limits::instance_type(&instance.instance_type);
        xml.text("instanceId", &instance.id).text("imageId", &instance.image);
        instance_state(xml, "instanceState", instance.state(self.at));
        let public = primary.and_then(|eni| eni.association).map(|association| association.public_ip);
        xml.text(
            "privateDnsName",
            primary.map_or_else(String::new, |eni| names::private(&self.settings.region, eni.primary)),
        )
        .text("dnsName", public.map_or_else(String::new, |address| names::public(&self.settings.region, address)))
        .text("amiLaunchIndex", index)
        .text("instanceType", &instance.instance_type)
        .text("launchTime", self.time(instance.launched));
        xml.element("placement", |xml| {
            xml.text("availabilityZone", &instance.availability_zone).text("tenancy", "default");
        });
        xml.element("monitoring", |xml| {
            xml.text("state", "disabled");
        });
        // An instance that is gone has neither a place nor addresses left to tell of.
        if let Some(eni) = primary {
            xml.text("subnetId", &instance.subnet)
                .text("vpcId", &instance.vpc)
                .text("privateIpAddress", eni.primary)
                .maybe("ipAddress", public)
                .text("sourceDestCheck", eni.source_dest_check);
            self.groups(xml, &eni.groups);
        }
        xml.text("architecture", limits.map_or("x86_64", |limits| limits.architecture))
            .text("rootDeviceType", "ebs")
            .text("virtualizationType", "hvm")
            .text("hypervisor", "xen");
        tags(xml, &instance.tags);
        xml.set("networkInterfaceSet", &item.enis, |xml, eni| {
            xml.text("networkInterfaceId", &eni.id)
                .text("subnetId", &eni.subnet)
                .text("vpcId", &eni.vpc)
                .text("description", &eni.description)
                .text("ownerId", &self.settings.account)
                .text("status", eni.status(self.at))
                .text("macAddress", eni.mac)
                .text("privateIpAddress", eni.primary)
                .text("sourceDestCheck", eni.source_dest_check)
                .text("interfaceType", eni.interface_type.as_str());
            self.groups(xml, &eni.groups);
            if let Some(attachment) = &eni.attachment {
                xml.element("attachment", |xml| {
                    xml.text("attachmentId", &attachment.id);
                    self.attachment_rest(xml, attachment);
                });
            }
            self.addresses(xml, eni);
        });
    }

    fn vpc(self, xml: &mut Xml, vpc: &Vpc) {
        xml.text("vpcId", &vpc.id)
            .text("ownerId", &self.settings.account)
            .text("state", "available")
            .maybe("cidrBlock", vpc.cidrs.first());
        xml.set("cidrBlockAssociationSet", vpc.cidrs.iter().enumerate(), |xml, (index, cidr)| {
            xml.text("associationId", association_id(&vpc.id, index)).text("cidrBlock", cidr);
            state_element(xml, "cidrBlockState", "associated");
        });
        xml.set("ipv6CidrBlockAssociationSet", vpc.ipv6_cidrs.iter().enumerate(), |xml, (index, cidr)| {
            xml.text("associationId", association_id(&vpc.id, index.saturating_add(100))).text("ipv6CidrBlock", cidr);
            state_element(xml, "ipv6CidrBlockState", "associated");
        });
        xml.text("instanceTenancy", "default").text("isDefault", false);
        tags(xml, &vpc.tags);
    }

    fn subnet(self, xml: &mut Xml, subnet: &Subnet) {
        let Settings { region, account, .. } = self.settings;
        xml.text("subnetId", &subnet.id)
            .text("subnetArn", format_args!("arn:aws:ec2:{region}:{account}:subnet/{}", subnet.id))
            .text("state", "available")
            .text("vpcId", &subnet.vpc)
            .text("ownerId", account)
            .text("cidrBlock", subnet.cidr)
            .text("availableIpAddressCount", subnet.available())
            .text("availabilityZone", &subnet.availability_zone)
            .text("availabilityZoneId", names::zone_id(region, &subnet.availability_zone))
            .text("defaultForAz", false)
            .text("mapPublicIpOnLaunch", subnet.map_public_ip)
            .text("assignIpv6AddressOnCreation", false);
        xml.set("ipv6CidrBlockAssociationSet", subnet.ipv6_cidr, |xml, cidr| {
            xml.text("associationId", association_id(&subnet.id, 0)).text("ipv6CidrBlock", cidr);
            state_element(xml, "ipv6CidrBlockState", "associated");
        });
        tags(xml, &subnet.tags);
    }

    fn route_table(self, xml: &mut Xml, table: &RouteTable) {
        xml.text("routeTableId", &table.id).text("vpcId", &table.vpc).text("ownerId", &self.settings.account);
        let vpc = self.state.vpcs.get(&table.vpc);
        let local = vpc.map(|vpc| {
            let v6 = vpc.ipv6_cidrs.iter().copied().map(IpNet::from);
            vpc.cidrs.iter().copied().map(IpNet::from).chain(v6).collect::<Vec<_>>()
        });
        let local = local.into_iter().flatten().map(|cidr| (cidr, None));
        let routes = local.chain(table.routes.iter().map(|(cidr, target)| (*cidr, Some(target))));
        xml.set("routeSet", routes, |xml, (destination, target)| {
            let name =
                if matches!(destination, IpNet::V4(_)) { "destinationCidrBlock" } else { "destinationIpv6CidrBlock" };
            xml.text(name, destination);
            let origin = if target.is_some() { "CreateRoute" } else { "CreateRouteTable" };
            match target {
                None => xml.text("gatewayId", "local"),
                Some(RouteTarget::InternetGateway(id)) => xml.text("gatewayId", id),
                Some(RouteTarget::NatGateway(id)) => xml.text("natGatewayId", id),
                Some(RouteTarget::Peering(id)) => xml.text("vpcPeeringConnectionId", id),
                Some(RouteTarget::Eni(id)) => xml.text("networkInterfaceId", id),
            };
            xml.text("state", "active").text("origin", origin);
        });
        let main = self.state.is_main(table).then_some(None);
        let associations = main.into_iter().chain(table.subnets.iter().map(Some));
        xml.set("associationSet", associations.enumerate(), |xml, (index, subnet)| {
            xml.text("routeTableAssociationId", association_id(&table.id, index))
                .text("routeTableId", &table.id)
                .maybe("subnetId", subnet)
                .text("main", subnet.is_none());
            state_element(xml, "associationState", "associated");
        });
        tags(xml, &Tags::new());
    }

    fn security_group(self, xml: &mut Xml, group: &SecurityGroup) {
        xml.text("ownerId", &self.settings.account)
            .text("groupId", &group.id)
            .text("groupName", &group.name)
            .text("groupDescription", &group.description)
            .text("vpcId", &group.vpc);
        xml.set("ipPermissions", &group.ingress, |xml, rule| self.permission(xml, rule));
        xml.set("ipPermissionsEgress", &group.egress, |xml, rule| self.permission(xml, rule));
        tags(xml, &group.tags);
    }

    fn permission(self, xml: &mut Xml, rule: &Permission) {
        xml.text("ipProtocol", &rule.protocol).maybe("fromPort", rule.from_port).maybe("toPort", rule.to_port);
        xml.set("groups", &rule.groups, |xml, id| {
            xml.text("userId", &self.settings.account).text("groupId", id);
        });
        xml.set("ipRanges", &rule.cidrs, |xml, cidr| {
            xml.text("cidrIp", cidr);
        });
        xml.set("ipv6Ranges", &rule.ipv6_cidrs, |xml, cidr| {
            xml.text("cidrIpv6", cidr);
        });
    }
}

fn list<T>(xml: &mut Xml, name: &str, listed: &Listed<T>, each: impl FnMut(&mut Xml, &T)) {
    xml.set(name, &listed.items, each).maybe("nextToken", listed.next_token.as_ref());
}

fn tags(xml: &mut Xml, tags: &Tags) {
    xml.set("tagSet", tags, |xml, (key, value)| {
        xml.text("key", key).text("value", value);
    });
}

fn tag_of(xml: &mut Xml, tag: &TagOf) {
    xml.text("resourceId", &tag.resource)
        .text("resourceType", tag.kind)
        .text("key", &tag.key)
        .text("value", &tag.value);
}

fn state_element(xml: &mut Xml, name: &str, state: &str) {
    xml.element(name, |xml| {
        xml.text("state", state);
    });
}

fn instance_state(xml: &mut Xml, name: &str, state: InstanceState) {
    let (code, word) = state.code_and_name();
    xml.element(name, |xml| {
        xml.text("code", code).text("name", word);
    });
}

fn instance_type(xml: &mut Xml, entry: &InstanceType) {
    let hypervisor = match entry.hypervisor {
        Hypervisor::Nitro => Some("nitro"),
        Hypervisor::Xen => Some("xen"),
        Hypervisor::None => None,
    };
    xml.text("instanceType", entry.name)
        .text("currentGeneration", entry.hypervisor != Hypervisor::Xen)
        .text("freeTierEligible", false)
        .text("bareMetal", entry.hypervisor == Hypervisor::None)
        .maybe("hypervisor", hypervisor);
    xml.element("processorInfo", |xml| {
        xml.values("supportedArchitectures", [entry.architecture]);
    });
    xml.element("vCpuInfo", |xml| {
        xml.text("defaultVCpus", entry.vcpus);
    });
    xml.element("memoryInfo", |xml| {
        xml.text("sizeInMiB", entry.memory_mib);
    });
    xml.element("networkInfo", |xml| {
        xml.text("maximumNetworkInterfaces", entry.enis())
            .text("maximumNetworkCards", entry.cards.len())
            .text("defaultNetworkCardIndex", 0);
        xml.set("networkCards", entry.cards.iter().enumerate(), |xml, (index, most)| {
            xml.text("networkCardIndex", index).text("maximumNetworkInterfaces", most);
        });
        xml.text("ipv4AddressesPerInterface", entry.ipv4_per_eni)
            .text("ipv6AddressesPerInterface", entry.ipv6_per_eni)
            .text("ipv6Supported", true)
            .text("enaSupport", "required")
            .text("efaSupported", entry.efa);
    });
}

/// An id for the association of a CIDR, the same each time it is told.
fn association_id(of: &impl Display, index: usize) -> String {
    let of = of.to_string();
    let (prefix, digits) = of.split_once('-').unwrap_or(("", &of));
    let kind = match prefix {
        "subnet" => "subnet-cidr-assoc",
        "rtb" => "rtbassoc",
        _ => "vpc-cidr-assoc",
    };
    let tail: String = digits.chars().skip(3).collect();
    format!("{kind}-{index:03x}{tail}")
}
