//! From the SDK's types, in which everything is optional text, to the checked ones of ipamd-core.
//!
//! A value that makes no sense ends in an error that names the object and the field: an ENI that is left out of an answer
//! counts as gone, so nothing may be left out because it could not be read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::Ipv4Addr;
use std::str::FromStr;

use aws_sdk_ec2::types::{
    AttachmentStatus, InstanceTypeHypervisor, InstanceTypeInfo, NetworkCardInfo, NetworkInterface,
    NetworkInterfaceAttachment, NetworkInterfaceType, Subnet, SubnetCidrBlockStateCode, Tag,
};
use ipnet::{Ipv4Net, Ipv6Net};
use sluice_ipamd_core::cloud::{
    Api, CloudError, CloudErrorKind, ConnectionTracking, Ec2Attachment, Ec2Eni, Ec2Subnet, InstanceLimits,
    InterfaceType,
};
use sluice_ipamd_core::ipv6::DELEGATED;

use crate::error::{cloud_error, malformed};

/// Reads fields of one object of an answer.
pub(crate) struct Fields<'a> {
    /// The call.
    pub(crate) api: Api,
    /// What the object is, for errors.
    pub(crate) of: &'a str,
}

impl Fields<'_> {
    fn wrong(&self, field: &str, value: &str, why: &dyn Display) -> CloudError {
        let value: String = value.chars().take(80).collect();
        malformed(self.api, &format!("{field} of {} is {value:?}: {why}", self.of))
    }

    /// A field that has to be there.
    pub(crate) fn required<T: FromStr<Err: Display>>(&self, field: &str, value: Option<&str>) -> Result<T, CloudError> {
        match self.optional(field, value)? {
            Some(value) => Ok(value),
            None => Err(malformed(self.api, &format!("{field} of {} is missing", self.of))),
        }
    }

    /// A field that may be missing; a wrong one is an error all the same.
    pub(crate) fn optional<T: FromStr<Err: Display>>(
        &self,
        field: &str,
        value: Option<&str>,
    ) -> Result<Option<T>, CloudError> {
        let parse = |value: &str| value.parse().map_err(|error| self.wrong(field, value, &error));
        value.filter(|value| !value.is_empty()).map(parse).transpose()
    }

    /// A number of things, which EC2 writes as a signed one.
    pub(crate) fn count(&self, field: &str, value: Option<i32>) -> Result<u32, CloudError> {
        let value = value.ok_or_else(|| malformed(self.api, &format!("{field} of {} is missing", self.of)))?;
        u32::try_from(value).map_err(|error| self.wrong(field, &value.to_string(), &error))
    }

    /// A network; host bits are cleared.
    pub(crate) fn network(&self, field: &str, value: Option<&str>) -> Result<Ipv4Net, CloudError> {
        self.required(field, value).map(|net: Ipv4Net| net.trunc())
    }

    /// The /80 prefixes among `prefixes`; one of another size is not used, and said so.
    pub(crate) fn ipv6_prefixes<'v>(
        &self,
        prefixes: impl Iterator<Item = Option<&'v str>>,
    ) -> Result<BTreeSet<Ipv6Net>, CloudError> {
        let mut found = BTreeSet::new();
        for prefix in prefixes {
            let prefix = self.required("Ipv6Prefix", prefix).map(|net: Ipv6Net| net.trunc())?;
            if is_delegated(&prefix) {
                found.insert(prefix);
            } else {
                tracing::warn!(object = self.of, %prefix, "a prefix that is no /80 is not used");
            }
        }
        Ok(found)
    }

    /// The /28 prefixes among `prefixes`. EC2 assigns no others today; one of another size is not used, and said so.
    pub(crate) fn prefixes<'v>(
        &self,
        prefixes: impl Iterator<Item = Option<&'v str>>,
    ) -> Result<BTreeSet<Ipv4Net>, CloudError> {
        let mut found = BTreeSet::new();
        for prefix in prefixes {
            let prefix = self.network("Ipv4Prefix", prefix)?;
            if prefix.prefix_len() == 28 {
                found.insert(prefix);
            } else {
                tracing::warn!(object = self.of, %prefix, "a prefix that is no /28 is not used");
            }
        }
        Ok(found)
    }
}

/// An ENI as Describe and Create tell it.
///
/// One without IPv4 addresses (efa-only, or in a subnet of IPv6 only) has `0.0.0.0` as its primary address and the type
/// `EfaOnly`: no pod can use it, and it counts among the ENIs of the instance.
pub(crate) fn eni(api: Api, seen: &NetworkInterface) -> Result<Ec2Eni, CloudError> {
    let id = seen.network_interface_id().unwrap_or("a network interface without id");
    let fields = Fields { api, of: id };
    let primary_ip: Option<Ipv4Addr> = fields.optional("PrivateIpAddress", seen.private_ip_address())?;
    let interface_type = match (seen.interface_type(), primary_ip) {
        (_, None) | (Some(NetworkInterfaceType::EfaOnly), _) => InterfaceType::EfaOnly,
        (Some(NetworkInterfaceType::Trunk), _) => InterfaceType::Trunk,
        (Some(NetworkInterfaceType::Efa), _) => InterfaceType::Efa,
        _ => InterfaceType::Interface,
    };
    let mut secondary_ips = BTreeSet::new();
    for address in seen.private_ip_addresses() {
        let ip: Ipv4Addr = fields.required("PrivateIpAddresses", address.private_ip_address())?;
        if address.primary() != Some(true) && Some(ip) != primary_ip {
            secondary_ips.insert(ip);
        }
    }
    let groups = seen.groups().iter().map(|group| fields.required("Groups", group.group_id()));
    Ok(Ec2Eni {
        eni: fields.required("NetworkInterfaceId", seen.network_interface_id())?,
        mac: fields.required("MacAddress", seen.mac_address())?,
        attachment: match seen.attachment() {
            Some(attachment) if attachment.status() != Some(&AttachmentStatus::Detached) => {
                Some(self::attachment(&fields, attachment)?)
            }
            _ => None,
        },
        subnet: fields.required("SubnetId", seen.subnet_id())?,
        primary_ip: primary_ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
        secondary_ips,
        prefixes: fields.prefixes(seen.ipv4_prefixes().iter().map(|prefix| prefix.ipv4_prefix()))?,
        ipv6_prefixes: fields.ipv6_prefixes(seen.ipv6_prefixes().iter().map(|prefix| prefix.ipv6_prefix()))?,
        security_groups: groups.collect::<Result<_, _>>()?,
        tags: tags(seen.tag_set()),
        interface_type,
        description: seen.description().unwrap_or_default().to_owned(),
        connection_tracking: connection_tracking(&fields, seen)?,
    })
}

/// The times that an ENI's connections are remembered for, where any differs from EC2's default.
fn connection_tracking(fields: &Fields<'_>, seen: &NetworkInterface) -> Result<Option<ConnectionTracking>, CloudError> {
    let Some(seen) = seen.connection_tracking_configuration() else { return Ok(None) };
    let seconds = |field, value: Option<i32>| value.map(|value| fields.count(field, Some(value))).transpose();
    let found = ConnectionTracking {
        tcp_established: seconds("TcpEstablishedTimeout", seen.tcp_established_timeout())?,
        udp_stream: seconds("UdpStreamTimeout", seen.udp_stream_timeout())?,
        udp: seconds("UdpTimeout", seen.udp_timeout())?,
    };
    Ok(Some(found).filter(|found| *found != ConnectionTracking::default()))
}

fn attachment(fields: &Fields<'_>, seen: &NetworkInterfaceAttachment) -> Result<Ec2Attachment, CloudError> {
    Ok(Ec2Attachment {
        attachment: fields.required("Attachment.AttachmentId", seen.attachment_id())?,
        instance: fields.optional("Attachment.InstanceId", seen.instance_id())?,
        device: fields.count("Attachment.DeviceIndex", seen.device_index())?,
        card: fields.count("Attachment.NetworkCardIndex", seen.network_card_index().or(Some(0)))?,
        delete_on_termination: seen.delete_on_termination().unwrap_or(false),
    })
}

/// A subnet, or nothing for one without IPv4.
pub(crate) fn subnet(api: Api, seen: &Subnet) -> Result<Option<Ec2Subnet>, CloudError> {
    let fields = Fields { api, of: seen.subnet_id().unwrap_or("a subnet without id") };
    if seen.cidr_block().is_none_or(str::is_empty) && seen.ipv6_native() == Some(true) {
        return Ok(None);
    }
    Ok(Some(Ec2Subnet {
        subnet: fields.required("SubnetId", seen.subnet_id())?,
        cidr: fields.network("CidrBlock", seen.cidr_block())?,
        ipv6_cidr: ipv6_cidr(&fields, seen)?,
        availability_zone: seen.availability_zone().unwrap_or_default().to_owned(),
        // Some other implementations of the API count below zero.
        available: u32::try_from(seen.available_ip_address_count().unwrap_or(0)).unwrap_or(0),
        tags: tags(seen.tags()),
    }))
}

/// Whether a prefix is of the size that EC2 delegates.
pub(crate) fn is_delegated(net: &Ipv6Net) -> bool {
    net.prefix_len() == DELEGATED
}

/// The IPv6 CIDR that a subnet has; one that is being taken away does not count.
fn ipv6_cidr(fields: &Fields<'_>, seen: &Subnet) -> Result<Option<Ipv6Net>, CloudError> {
    let associated = seen.ipv6_cidr_block_association_set().iter().find(|association| {
        let state = association.ipv6_cidr_block_state().and_then(|state| state.state());
        state == Some(&SubnetCidrBlockStateCode::Associated)
    });
    let cidr = associated.and_then(|association| association.ipv6_cidr_block());
    fields.optional("Ipv6CidrBlock", cidr).map(|cidr: Option<Ipv6Net>| cidr.map(|cidr| cidr.trunc()))
}

fn tags(seen: &[Tag]) -> BTreeMap<String, String> {
    let pair = |tag: &Tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned()));
    seen.iter().filter_map(pair).collect()
}

/// The limits of the default network card, which takes the first place, and of the others in order.
pub(crate) fn limits(seen: &InstanceTypeInfo) -> Result<InstanceLimits, CloudError> {
    let name = seen.instance_type().map_or("an instance type without name", |name| name.as_str());
    let fields = Fields { api: Api::DescribeInstanceTypes, of: name };
    let network = seen.network_info().ok_or_else(|| {
        cloud_error(fields.api, CloudErrorKind::Other, "MalformedAnswer", &format!("{name} has no NetworkInfo"))
    })?;
    let default = network.default_network_card_index().unwrap_or(0);
    let (first, further): (Vec<&NetworkCardInfo>, Vec<&NetworkCardInfo>) =
        network.network_cards().iter().partition(|card| card.network_card_index() == Some(default));
    let enis = first.first().and_then(|card| card.maximum_network_interfaces());
    let enis = enis.or(network.maximum_network_interfaces());
    let mut by_index = BTreeMap::new();
    for card in further {
        let index = fields.count("NetworkCardIndex", card.network_card_index())?;
        by_index.insert(index, fields.count("MaximumNetworkInterfaces", card.maximum_network_interfaces())?);
    }
    Ok(InstanceLimits {
        enis: fields.count("MaximumNetworkInterfaces", enis)?,
        ipv4_per_eni: fields.count("Ipv4AddressesPerInterface", network.ipv4_addresses_per_interface())?,
        further_cards: by_index.into_values().collect(),
        prefixes: seen.bare_metal() == Some(true) || seen.hypervisor() == Some(&InstanceTypeHypervisor::Nitro),
    })
}
