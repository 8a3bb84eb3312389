//! Between vpcsim's model and what ipamd sees of EC2.

use std::time::Duration;

use sluice_contract::id::{EniId, InstanceId, SubnetId, VpcId};
use sluice_ipamd_core::cloud::{
    AddressCount, Api, Assigned, CloudError, CloudErrorKind, CreateEni, Ec2Attachment, Ec2Eni, Ec2Subnet, ImdsEni,
    InterfaceType, Unassign,
};
use sluice_ipamd_core::op::{Op, Outcome};
use sluice_vpcsim::model::api::{
    AssignIpv6Addresses, AssignPrivateIpAddresses, AttachNetworkInterface, CreateNetworkInterface, CreateTags,
    DeleteNetworkInterface, Describe, DetachNetworkInterface, EniAttribute, Filter, ModifyNetworkInterfaceAttribute,
    UnassignPrivateIpAddresses, WantIpv4, WantIpv6,
};
use sluice_vpcsim::model::state::{self, Eni, State};
use sluice_vpcsim::model::{ApiError, Reply, Request};

/// An error of EC2 by what there is to do about it. The layer on the AWS SDK has its own reading of the same codes.
#[must_use]
pub fn cloud_error(api: Api, error: &ApiError) -> CloudError {
    let kind = match error.code.as_ref() {
        "RequestLimitExceeded" => CloudErrorKind::Throttled,
        "UnauthorizedOperation" => CloudErrorKind::Denied,
        "InsufficientFreeAddressesInSubnet" => CloudErrorKind::InsufficientAddresses,
        "InsufficientCidrBlocks" => CloudErrorKind::InsufficientPrefixes,
        "PrivateIpAddressLimitExceeded" => CloudErrorKind::AddressLimit,
        "AttachmentLimitExceeded" => CloudErrorKind::AttachmentLimit,
        "InternalError" => CloudErrorKind::Unavailable,
        code if code.ends_with("NotFound") => CloudErrorKind::NotFound,
        _ if error.message.contains("sufficient free Ipv4 addresses or prefixes") => {
            CloudErrorKind::InsufficientPrefixes
        }
        "InvalidParameterValue"
        | "InvalidNetworkInterface.InUse"
        | "IncorrectState"
        | "IdempotentParameterMismatch" => CloudErrorKind::Conflict,
        _ => CloudErrorKind::Other,
    };
    CloudError { api, kind, code: error.code.to_string(), message: error.message.clone(), retry_after: None }
}

/// An ENI as DescribeNetworkInterfaces tells it.
#[must_use]
pub fn ec2_eni(eni: &Eni) -> Ec2Eni {
    Ec2Eni {
        eni: eni.id.clone(),
        mac: eni.mac,
        attachment: eni.attachment.as_ref().map(|attachment| Ec2Attachment {
            attachment: attachment.id.clone(),
            instance: attachment.instance.clone(),
            device: attachment.device,
            card: attachment.card,
            delete_on_termination: attachment.delete_on_termination,
        }),
        subnet: eni.subnet.clone(),
        primary_ip: eni.primary,
        secondary_ips: eni.secondaries.clone(),
        prefixes: eni.prefixes.clone(),
        ipv6_prefixes: eni.ipv6_prefixes.clone(),
        security_groups: eni.groups.clone(),
        tags: eni.tags.clone(),
        interface_type: match eni.interface_type {
            state::InterfaceType::Efa => InterfaceType::Efa,
            state::InterfaceType::EfaOnly => InterfaceType::EfaOnly,
            state::InterfaceType::Trunk => InterfaceType::Trunk,
            state::InterfaceType::Interface | state::InterfaceType::NatGateway => InterfaceType::Interface,
        },
        description: eni.description.clone(),
        // vpcsim takes it and tracks nothing by it.
        connection_tracking: None,
    }
}

/// A subnet as DescribeSubnets tells it.
#[must_use]
pub fn ec2_subnet(subnet: &state::Subnet) -> Ec2Subnet {
    Ec2Subnet {
        subnet: subnet.id.clone(),
        cidr: subnet.cidr,
        ipv6_cidr: subnet.ipv6_cidr,
        availability_zone: subnet.availability_zone.clone(),
        available: subnet.available(),
        tags: subnet.tags.clone(),
    }
}

/// The ENIs of an instance whose links show, as IMDS lists them.
#[must_use]
pub fn imds_enis(state: &State, instance: &InstanceId, now: Duration) -> Vec<ImdsEni> {
    let shown = state.attached(instance).into_iter().filter_map(|eni| {
        let attachment = eni.attachment.as_ref().filter(|attachment| attachment.has_link(now))?;
        Some(ImdsEni {
            eni: eni.id.clone(),
            mac: eni.mac,
            device: attachment.device,
            card: attachment.card,
            subnet: eni.subnet.clone(),
            subnet_cidr: state.subnets.get(&eni.subnet)?.cidr,
            primary_ip: eni.primary,
            secondary_ips: eni.secondaries.clone(),
            prefixes: eni.prefixes.clone(),
            ipv6_prefixes: eni.ipv6_prefixes.clone(),
            security_groups: eni.groups.clone(),
        })
    });
    shown.collect()
}

const fn want(count: AddressCount) -> WantIpv4 {
    let (count, prefix_count) = match count {
        AddressCount::Secondary(count) => (count, 0),
        AddressCount::Prefixes(count) => (0, count),
    };
    WantIpv4 { addresses: Vec::new(), count, prefixes: Vec::new(), prefix_count }
}

/// DescribeNetworkInterfaces by filters: one for each value.
#[must_use]
pub fn describe_enis(name: &str, values: &[String]) -> Describe<EniId> {
    let filters = vec![Filter { name: name.into(), values: values.to_vec() }];
    Describe { filters, ..Describe::default() }
}

/// DescribeSubnets of a VPC and zone.
#[must_use]
pub fn describe_subnets(vpc: &VpcId, availability_zone: &str) -> Describe<SubnetId> {
    let filter = |name: &str, value: String| Filter { name: name.into(), values: vec![value] };
    let filters = vec![filter("vpc-id", vpc.to_string()), filter("availability-zone", availability_zone.to_owned())];
    Describe { filters, ..Describe::default() }
}

/// CreateNetworkInterface.
#[must_use]
pub fn create_eni(request: &CreateEni) -> CreateNetworkInterface {
    CreateNetworkInterface {
        description: request.description.clone(),
        groups: request.security_groups.clone(),
        want: want(request.addresses),
        want_ipv6: WantIpv6 { prefix_count: u32::from(request.ipv6_prefix), ..WantIpv6::default() },
        tags: request.tags.clone(),
        client_token: Some(request.client_token.clone()),
        ..CreateNetworkInterface::new(request.subnet.clone())
    }
}

/// AssignPrivateIpAddresses.
#[must_use]
pub fn assign(eni: &EniId, count: AddressCount) -> AssignPrivateIpAddresses {
    AssignPrivateIpAddresses { eni: eni.clone(), want: want(count), allow_reassignment: false }
}

/// AssignIpv6Addresses: one /80.
#[must_use]
pub fn assign_ipv6(eni: &EniId) -> AssignIpv6Addresses {
    AssignIpv6Addresses { eni: eni.clone(), want: WantIpv6 { prefix_count: 1, ..WantIpv6::default() } }
}

/// UnassignPrivateIpAddresses.
#[must_use]
pub fn unassign(eni: &EniId, what: &Unassign) -> UnassignPrivateIpAddresses {
    UnassignPrivateIpAddresses {
        eni: eni.clone(),
        addresses: what.addresses.iter().copied().collect(),
        prefixes: what.prefixes.iter().copied().collect(),
    }
}

/// The calls of an operation, in order: one, but for a survey, which asks for what is attached and for what is tagged.
#[must_use]
pub fn requests(op: &Op) -> Vec<Request> {
    match op {
        Op::Create(request) => vec![create_eni(request).into()],
        Op::Attach { eni, instance, card, device } => {
            let attach =
                AttachNetworkInterface { eni: eni.clone(), instance: instance.clone(), card: *card, device: *device };
            vec![attach.into()]
        }
        Op::DeleteOnTermination { eni, attachment } => {
            let attribute = EniAttribute::DeleteOnTermination(attachment.clone(), true);
            vec![ModifyNetworkInterfaceAttribute { eni: eni.clone(), attribute }.into()]
        }
        Op::SetGroups { eni, groups } => {
            let attribute = EniAttribute::Groups(groups.clone());
            vec![ModifyNetworkInterfaceAttribute { eni: eni.clone(), attribute }.into()]
        }
        Op::Tag { eni, tags } => {
            vec![CreateTags { resources: vec![eni.to_string()], tags: tags.clone() }.into()]
        }
        Op::Assign { eni, count } => vec![assign(eni, *count).into()],
        Op::AssignIpv6 { eni } => vec![assign_ipv6(eni).into()],
        Op::Unassign { eni, what } => vec![unassign(eni, what).into()],
        Op::Detach { attachment, .. } => {
            vec![DetachNetworkInterface { attachment: attachment.clone(), force: false }.into()]
        }
        Op::Delete { eni } => vec![DeleteNetworkInterface { eni: eni.clone() }.into()],
        // By filter, because an id that is unknown is left out of the answer then.
        Op::Inspect { eni } => vec![describe_enis("network-interface-id", &[eni.to_string()]).into()],
        Op::Survey { instance } => ["attachment.instance-id", "tag:node.k8s.amazonaws.com/instance_id"]
            .into_iter()
            .map(|name| describe_enis(name, &[instance.to_string()]).into())
            .collect(),
        Op::Subnets { vpc, availability_zone } => vec![describe_subnets(vpc, availability_zone).into()],
    }
}

/// What the answers to [`requests`] mean for the operation.
///
/// # Errors
/// [`CloudErrorKind::Other`] where an answer is that of another call.
pub fn outcome(op: &Op, replies: Vec<Reply>) -> Result<Outcome, CloudError> {
    let mut surveyed: Vec<Ec2Eni> = Vec::new();
    for reply in replies {
        match (op, reply) {
            (Op::Create(_), Reply::NetworkInterface(eni)) => return Ok(Outcome::Created(ec2_eni(&eni))),
            (Op::Attach { .. }, Reply::Attached { attachment, .. }) => return Ok(Outcome::Attached(attachment)),
            (Op::Assign { .. }, Reply::AssignedIpv4 { addresses, prefixes, .. }) => {
                let (addresses, prefixes) = (addresses.into_iter().collect(), prefixes.into_iter().collect());
                return Ok(Outcome::Assigned(Assigned { addresses, prefixes }));
            }
            (Op::AssignIpv6 { .. }, Reply::Ipv6 { prefixes, .. }) if !prefixes.is_empty() => {
                return Ok(prefixes.into_iter().next().map_or(Outcome::Done, Outcome::AssignedIpv6));
            }
            (Op::Inspect { eni }, Reply::NetworkInterfaces(listed)) => {
                return Ok(Outcome::Inspected(listed.items.iter().find(|found| found.id == *eni).map(ec2_eni)));
            }
            (Op::Survey { .. }, Reply::NetworkInterfaces(listed)) => {
                let new = listed.items.iter().filter(|found| surveyed.iter().all(|known| known.eni != found.id));
                let new: Vec<Ec2Eni> = new.map(ec2_eni).collect();
                surveyed.extend(new);
            }
            (Op::Subnets { .. }, Reply::Subnets(listed)) => {
                return Ok(Outcome::Subnets(listed.items.iter().map(ec2_subnet).collect()));
            }
            (
                Op::DeleteOnTermination { .. }
                | Op::SetGroups { .. }
                | Op::Tag { .. }
                | Op::Unassign { .. }
                | Op::Detach { .. }
                | Op::Delete { .. },
                _anything,
            ) => return Ok(Outcome::Done),
            (op, other) => {
                return Err(CloudError {
                    api: op.api(),
                    kind: CloudErrorKind::Other,
                    code: "UnexpectedAnswer".to_owned(),
                    message: format!("{op} was answered with {other:?}"),
                    retry_after: None,
                });
            }
        }
    }
    Ok(Outcome::Surveyed(surveyed))
}
