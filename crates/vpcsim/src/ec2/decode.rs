//! From the parameters of the Query protocol to a request. Parameter names are those of the EC2 API reference.

use std::str::FromStr;

use crate::model::api::{
    Action, AssignIpv6Addresses, AssignPrivateIpAddresses, AttachNetworkInterface, AuthorizeSecurityGroupEgress,
    AuthorizeSecurityGroupIngress, CreateNetworkInterface, CreateSecurityGroup, CreateSubnet, CreateTags, CreateVpc,
    DeleteNetworkInterface, DeleteTags, Describe, DetachNetworkInterface, EniAttribute, Filter, InstanceTypeName,
    ModifyNetworkInterfaceAttribute, Page, Request, RevokeSecurityGroupEgress, RevokeSecurityGroupIngress,
    RunInstances, TerminateInstances, UnassignIpv6Addresses, UnassignPrivateIpAddresses, WantIpv4, WantIpv6,
};
use crate::model::state::{InterfaceType, Permission, Tags};
use crate::model::{ApiError, State};

use super::form::Form;

const ADDRESS: &str = "It must be an IP address.";
const PREFIX: &str = "It must be a prefix in CIDR notation.";
const NUMBER: &str = "It must be a number.";
const TRUTH: &str = "It must be true or false.";

/// What AWS lets a caller set and no part of the model depends on.
pub(super) const WITHOUT_EFFECT: &[&str] = &[
    "BlockDeviceMapping",
    "ConnectionTrackingSpecification",
    "CreditSpecification",
    "DisableApiTermination",
    "EbsOptimized",
    "EnaSrdSpecification",
    "IamInstanceProfile",
    "InstanceInitiatedShutdownBehavior",
    "InstanceTenancy",
    "KeyName",
    "MetadataOptions",
    "Monitoring",
    "Placement",
    "UserData",
];

/// Reads a call. `state` resolves what may be named in more than one way.
pub(super) fn decode(action: Action, mut form: Form, state: &State) -> Result<Request, ApiError> {
    form.ignore(WITHOUT_EFFECT);
    let request = read(action, &mut form, state)?;
    form.finish()?;
    Ok(request)
}

fn read(action: Action, form: &mut Form, state: &State) -> Result<Request, ApiError> {
    Ok(match action {
        Action::AssignIpv6Addresses => AssignIpv6Addresses {
            eni: form.require_id("NetworkInterfaceId")?,
            want: WantIpv6 {
                addresses: form.parsed_list("Ipv6Addresses", ADDRESS)?,
                count: form.count("Ipv6AddressCount")?,
                prefixes: form.parsed_list("Ipv6Prefix", PREFIX)?,
                prefix_count: form.count("Ipv6PrefixCount")?,
            },
        }
        .into(),
        Action::AssignPrivateIpAddresses => AssignPrivateIpAddresses {
            eni: form.require_id("NetworkInterfaceId")?,
            want: WantIpv4 {
                addresses: form.parsed_list("PrivateIpAddress", ADDRESS)?,
                count: form.count("SecondaryPrivateIpAddressCount")?,
                prefixes: form.parsed_list("Ipv4Prefix", PREFIX)?,
                prefix_count: form.count("Ipv4PrefixCount")?,
            },
            allow_reassignment: form.flag("AllowReassignment")?,
        }
        .into(),
        Action::UnassignIpv6Addresses => UnassignIpv6Addresses {
            eni: form.require_id("NetworkInterfaceId")?,
            addresses: form.parsed_list("Ipv6Addresses", ADDRESS)?,
            prefixes: form.parsed_list("Ipv6Prefix", PREFIX)?,
        }
        .into(),
        Action::UnassignPrivateIpAddresses => UnassignPrivateIpAddresses {
            eni: form.require_id("NetworkInterfaceId")?,
            addresses: form.parsed_list("PrivateIpAddress", ADDRESS)?,
            prefixes: form.parsed_list("Ipv4Prefix", PREFIX)?,
        }
        .into(),
        Action::AttachNetworkInterface => AttachNetworkInterface {
            eni: form.require_id("NetworkInterfaceId")?,
            instance: form.require_id("InstanceId")?,
            card: form.count("NetworkCardIndex")?,
            device: form.parsed("DeviceIndex", NUMBER)?.ok_or_else(|| ApiError::missing("DeviceIndex"))?,
        }
        .into(),
        Action::DetachNetworkInterface => {
            DetachNetworkInterface { attachment: form.require_id("AttachmentId")?, force: form.flag("Force")? }.into()
        }
        Action::DeleteNetworkInterface => DeleteNetworkInterface { eni: form.require_id("NetworkInterfaceId")? }.into(),
        Action::CreateNetworkInterface => create_network_interface(form)?.into(),
        Action::ModifyNetworkInterfaceAttribute => modify(form)?.into(),
        Action::RunInstances => run_instances(form)?.into(),
        Action::TerminateInstances => {
            let instances = form.ids("InstanceId")?;
            if instances.is_empty() {
                return Err(ApiError::missing("InstanceId"));
            }
            TerminateInstances { instances }.into()
        }
        Action::CreateVpc => CreateVpc {
            cidr: form.cidr("CidrBlock")?,
            ipv6: form.flag("AmazonProvidedIpv6CidrBlock")?,
            tags: tags_for(form, "vpc")?,
        }
        .into(),
        Action::CreateSubnet => CreateSubnet {
            vpc: form.require_id("VpcId")?,
            cidr: form.cidr("CidrBlock")?,
            ipv6_cidr: form.ipv6_cidr("Ipv6CidrBlock")?,
            availability_zone: form.take("AvailabilityZone"),
            tags: tags_for(form, "subnet")?,
        }
        .into(),
        Action::CreateSecurityGroup => CreateSecurityGroup {
            vpc: form.require_id("VpcId")?,
            name: form.require("GroupName")?,
            description: form.require("GroupDescription")?,
            tags: tags_for(form, "security-group")?,
        }
        .into(),
        Action::AuthorizeSecurityGroupEgress => {
            AuthorizeSecurityGroupEgress { group: form.require_id("GroupId")?, permissions: permissions(form)? }.into()
        }
        Action::AuthorizeSecurityGroupIngress => {
            AuthorizeSecurityGroupIngress { group: form.require_id("GroupId")?, permissions: permissions(form)? }.into()
        }
        Action::RevokeSecurityGroupEgress => {
            RevokeSecurityGroupEgress { group: form.require_id("GroupId")?, permissions: permissions(form)? }.into()
        }
        Action::RevokeSecurityGroupIngress => {
            RevokeSecurityGroupIngress { group: form.require_id("GroupId")?, permissions: permissions(form)? }.into()
        }
        Action::CreateTags => CreateTags { resources: form.list("ResourceId")?, tags: tags(form)? }.into(),
        Action::DeleteTags => {
            let resources = form.list("ResourceId")?;
            let mut tags = Vec::new();
            for mut part in form.parts("Tag")? {
                tags.push((part.require("Key")?, part.take("Value")));
                part.finish()?;
            }
            DeleteTags { resources, tags }.into()
        }
        Action::DescribeInstances => Request::DescribeInstances(describe(form, "InstanceId")?),
        Action::DescribeNetworkInterfaces => Request::DescribeNetworkInterfaces(describe(form, "NetworkInterfaceId")?),
        Action::DescribeRouteTables => Request::DescribeRouteTables(describe(form, "RouteTableId")?),
        Action::DescribeSubnets => Request::DescribeSubnets(describe(form, "SubnetId")?),
        Action::DescribeVpcs => Request::DescribeVpcs(describe(form, "VpcId")?),
        Action::DescribeSecurityGroups => {
            let names = form.list("GroupName")?;
            let mut request: Describe<_> = describe(form, "GroupId")?;
            for name in names {
                let found = state.security_groups.values().find(|group| group.name == name);
                request.ids.push(
                    found
                        .ok_or_else(|| {
                            ApiError::client(
                                "InvalidGroup.NotFound",
                                format!("The security group '{name}' does not exist"),
                            )
                        })?
                        .id
                        .clone(),
                );
            }
            Request::DescribeSecurityGroups(request)
        }
        Action::DescribeInstanceTypes => {
            let ids = form.list("InstanceType")?.into_iter().map(InstanceTypeName).collect();
            Request::DescribeInstanceTypes(Describe { ids, filters: filters(form)?, page: page(form)? })
        }
        Action::DescribeTags => {
            Request::DescribeTags(Describe { ids: Vec::new(), filters: filters(form)?, page: page(form)? })
        }
    })
}

fn describe<Id>(form: &mut Form, name: &str) -> Result<Describe<Id>, ApiError>
where
    Id: FromStr,
    ApiError: From<Id::Err>,
{
    Ok(Describe { ids: form.ids(name)?, filters: filters(form)?, page: page(form)? })
}

fn filters(form: &mut Form) -> Result<Vec<Filter>, ApiError> {
    let mut filters = Vec::new();
    for mut part in form.parts("Filter")? {
        filters.push(Filter { name: part.require("Name")?, values: part.list("Value")? });
        part.finish()?;
    }
    Ok(filters)
}

fn page(form: &mut Form) -> Result<Page, ApiError> {
    Ok(Page { max_results: form.parsed("MaxResults", NUMBER)?, next_token: form.take("NextToken") })
}

fn tags(form: &mut Form) -> Result<Tags, ApiError> {
    let mut tags = Tags::new();
    for mut part in form.parts("Tag")? {
        tags.insert(part.require("Key")?, part.take("Value").unwrap_or_default());
        part.finish()?;
    }
    Ok(tags)
}

/// `TagSpecification.N`, by the kind of resource.
fn tag_specifications(form: &mut Form, allowed: &[&str]) -> Result<Vec<(String, Tags)>, ApiError> {
    let mut all = Vec::new();
    for mut part in form.parts("TagSpecification")? {
        let kind = part.require("ResourceType")?;
        if !allowed.contains(&kind.as_str()) {
            return Err(ApiError::invalid_value(format!(
                "'{kind}' is not a valid taggable resource type for this operation."
            )));
        }
        all.push((kind, tags(&mut part)?));
        part.finish()?;
    }
    Ok(all)
}

fn tags_for(form: &mut Form, kind: &str) -> Result<Tags, ApiError> {
    Ok(tag_specifications(form, &[kind])?.into_iter().flat_map(|(_, tags)| tags).collect())
}

fn interface_type(form: &mut Form) -> Result<InterfaceType, ApiError> {
    match form.take("InterfaceType").as_deref() {
        None | Some("interface") => Ok(InterfaceType::Interface),
        Some("efa") => Ok(InterfaceType::Efa),
        Some("efa-only") => Ok(InterfaceType::EfaOnly),
        Some("trunk") => Ok(InterfaceType::Trunk),
        Some(other) => Err(ApiError::invalid_parameter("interfaceType", other, "This is not a valid interface type.")),
    }
}

/// Addresses as CreateNetworkInterface and RunInstances name them, with the primary one among them.
fn ipv4_of_new(form: &mut Form) -> Result<(Option<std::net::Ipv4Addr>, WantIpv4), ApiError> {
    let mut primary = form.parsed("PrivateIpAddress", ADDRESS)?;
    let mut addresses = Vec::new();
    for mut part in form.parts("PrivateIpAddresses")? {
        let address = part.require("PrivateIpAddress")?;
        let address =
            address.parse().ok().ok_or_else(|| ApiError::invalid_parameter("privateIpAddress", &address, ADDRESS))?;
        if part.flag("Primary")? {
            primary = Some(address);
        } else {
            addresses.push(address);
        }
        part.finish()?;
    }
    let want = WantIpv4 {
        addresses,
        count: form.count("SecondaryPrivateIpAddressCount")?,
        prefixes: form.parsed_members("Ipv4Prefix", "Ipv4Prefix", PREFIX)?,
        prefix_count: form.count("Ipv4PrefixCount")?,
    };
    Ok((primary, want))
}

fn ipv6_of_new(form: &mut Form) -> Result<WantIpv6, ApiError> {
    Ok(WantIpv6 {
        addresses: form.parsed_members("Ipv6Addresses", "Ipv6Address", ADDRESS)?,
        count: form.count("Ipv6AddressCount")?,
        prefixes: form.parsed_members("Ipv6Prefix", "Ipv6Prefix", PREFIX)?,
        prefix_count: form.count("Ipv6PrefixCount")?,
    })
}

fn create_network_interface(form: &mut Form) -> Result<CreateNetworkInterface, ApiError> {
    let (private_ip, want) = ipv4_of_new(form)?;
    Ok(CreateNetworkInterface {
        subnet: form.require_id("SubnetId")?,
        description: form.take("Description").unwrap_or_default(),
        groups: form.ids("SecurityGroupId")?,
        private_ip,
        want,
        want_ipv6: ipv6_of_new(form)?,
        interface_type: interface_type(form)?,
        tags: tags_for(form, "network-interface")?,
        client_token: form.take("ClientToken"),
    })
}

fn modify(form: &mut Form) -> Result<ModifyNetworkInterfaceAttribute, ApiError> {
    let eni = form.require_id("NetworkInterfaceId")?;
    let mut given = Vec::new();
    if let Some(text) = form.take("Description.Value") {
        given.push(EniAttribute::Description(text));
    }
    if let Some(on) = form.parsed("SourceDestCheck.Value", TRUTH)? {
        given.push(EniAttribute::SourceDestCheck(on));
    }
    let groups = form.ids("SecurityGroupId")?;
    if !groups.is_empty() {
        given.push(EniAttribute::Groups(groups));
    }
    if let Some(on) = form.parsed("Attachment.DeleteOnTermination", TRUTH)? {
        given.push(EniAttribute::DeleteOnTermination(form.require_id("Attachment.AttachmentId")?, on));
    }
    match <[EniAttribute; 1]>::try_from(given) {
        Ok([attribute]) => Ok(ModifyNetworkInterfaceAttribute { eni, attribute }),
        Err(given) if given.is_empty() => Err(ApiError::missing("attribute")),
        Err(_) => Err(ApiError::combination("Fields for multiple attribute types specified")),
    }
}

/// RunInstances, with one network interface at most, at device index 0.
fn run_instances(form: &mut Form) -> Result<RunInstances, ApiError> {
    let instance_type = form.take("InstanceType").unwrap_or_else(|| "m1.small".to_owned());
    let min = form.parsed("MinCount", NUMBER)?.ok_or_else(|| ApiError::missing("MinCount"))?;
    let max = form.parsed("MaxCount", NUMBER)?.ok_or_else(|| ApiError::missing("MaxCount"))?;
    let image = form.require("ImageId")?;
    let client_token = form.take("ClientToken");
    let mut instance_tags = Tags::new();
    let mut eni_tags = Tags::new();
    for (kind, tags) in tag_specifications(form, &["instance", "network-interface", "volume"])? {
        match kind.as_str() {
            "instance" => instance_tags.extend(tags),
            "network-interface" => eni_tags.extend(tags),
            _ => {}
        }
    }
    let mut interfaces = form.parts("NetworkInterface")?;
    if interfaces.len() > 1 {
        return Err(ApiError::client("UnsupportedOperation", "Only one network interface can be given at launch"));
    }
    let no_subnet = || ApiError::client("VPCIdNotSpecified", "No default VPC for this user");
    let mut interface = match interfaces.pop() {
        None => std::mem::take(form),
        Some(mut interface) => {
            if interface.count("DeviceIndex")? != 0 || interface.count("NetworkCardIndex")? != 0 {
                return Err(ApiError::invalid_value(
                    "When specifying network interfaces, you must include a device at index 0",
                ));
            }
            interface.ignore(&["DeleteOnTermination", "Description"]);
            if interface_type(&mut interface)? != InterfaceType::Interface {
                return Err(ApiError::client(
                    "UnsupportedOperation",
                    "Only interfaces of type interface can be launched",
                ));
            }
            interface
        }
    };
    let subnet = interface.take("SubnetId").ok_or_else(no_subnet)?.parse()?;
    let (private_ip, want) = ipv4_of_new(&mut interface)?;
    let request = RunInstances {
        min,
        max,
        image,
        groups: interface.ids("SecurityGroupId")?,
        private_ip,
        want,
        want_ipv6: ipv6_of_new(&mut interface)?,
        public_ip: interface.parsed("AssociatePublicIpAddress", TRUTH)?,
        tags: instance_tags,
        eni_tags,
        client_token,
        ..RunInstances::new(instance_type, subnet)
    };
    interface.finish()?;
    Ok(request)
}

fn permissions(form: &mut Form) -> Result<Vec<Permission>, ApiError> {
    let mut permissions = Vec::new();
    for mut part in form.parts("IpPermissions")? {
        let mut groups = Vec::new();
        for mut pair in part.parts("Groups")? {
            groups.push(pair.require_id("GroupId")?);
            pair.ignore(&["UserId", "Description"]);
            pair.finish()?;
        }
        permissions.push(Permission {
            protocol: part.require("IpProtocol")?,
            from_port: part.parsed("FromPort", NUMBER)?,
            to_port: part.parsed("ToPort", NUMBER)?,
            cidrs: ranges(&mut part, "IpRanges", "CidrIp")?,
            ipv6_cidrs: ranges(&mut part, "Ipv6Ranges", "CidrIpv6")?,
            groups,
        });
        part.finish()?;
    }
    if let Some(protocol) = form.take("IpProtocol") {
        permissions.push(Permission {
            protocol,
            from_port: form.parsed("FromPort", NUMBER)?,
            to_port: form.parsed("ToPort", NUMBER)?,
            cidrs: form.parsed("CidrIp", PREFIX)?.into_iter().collect(),
            ..Permission::default()
        });
    }
    Ok(permissions)
}

fn ranges<T: FromStr>(form: &mut Form, list: &str, member: &str) -> Result<Vec<T>, ApiError> {
    let mut ranges = Vec::new();
    for mut part in form.parts(list)? {
        part.ignore(&["Description"]);
        ranges.extend(part.parsed(member, PREFIX)?);
        part.finish()?;
    }
    Ok(ranges)
}
