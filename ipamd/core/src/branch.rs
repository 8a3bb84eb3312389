//! Pods with security groups of their own: what their annotation says, and what is remembered of them.
//!
//! Their addresses are no pool's. AWS's VPC resource controller makes a branch ENI for each, associates it with the node's
//! trunk ENI, and writes the annotation `vpc.amazonaws.com/pod-eni` on the pod. What an ADD was given is remembered, so that
//! DEL and CHECK find it also when the pod's object has gone, or says something else.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use sluice_contract::id::{Attachment, EniId, InvalidId, MacAddr, VlanId};
use sluice_contract::node::branch::{Mode, router, table};
use sluice_contract::rpc::{Branch, PodAddress};

use crate::cloud::InterfaceType;
use crate::ipv6::Families;
use crate::ledger::{Eni, Owner};
use crate::state::State;
use crate::time::Timestamp;

/// The annotation that the controller writes, and the resource that pods ask for that are to have one.
pub const POD_ENI: &str = "vpc.amazonaws.com/pod-eni";

/// The longest annotation that is read, in bytes; a real one has 300.
pub const LONGEST: usize = 16 << 10;

/// Why an annotation cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AnnotationError {
    /// It is too long to be one.
    #[error("it has {0} bytes, more than {LONGEST}")]
    TooLong(usize),
    /// It is not JSON, or not of this form.
    #[error("it is no JSON list of branch ENIs")]
    Malformed(#[source] serde_json::Error),
    /// It names none.
    #[error("it names no branch ENI")]
    Empty,
    /// An id, a MAC address or a VLAN's number.
    #[error("{field} cannot be used")]
    Id {
        /// The field.
        field: &'static str,
        /// What is wrong.
        #[source]
        source: InvalidId,
    },
    /// An address or a CIDR.
    #[error("{field} is {value:?}: {rule}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it says, cut to 80 characters.
        value: String,
        /// What it must be.
        rule: &'static str,
    },
    /// It has no address of a family that pods have.
    #[error("it has no address of a family that pods of this node have")]
    NoAddress,
}

/// An element of the annotation. Fields that others add are passed over; Go, in which the controller is written, does not
/// tell upper case from lower.
#[derive(Debug, Deserialize)]
struct Element {
    #[serde(rename = "eniId", alias = "eniID")]
    eni_id: String,
    #[serde(rename = "ifAddress")]
    if_address: String,
    #[serde(rename = "privateIp", alias = "privateIP", default)]
    private_ip: String,
    #[serde(rename = "ipv6Addr", alias = "ipV6Addr", alias = "ipv6addr", default)]
    ipv6_addr: String,
    #[serde(rename = "vlanId", alias = "vlanID")]
    vlan_id: u16,
    #[serde(rename = "subnetCidr", alias = "subnetCIDR", default)]
    subnet_cidr: String,
    #[serde(rename = "subnetV6Cidr", alias = "subnetV6CIDR", default)]
    subnet_v6_cidr: String,
}

/// A branch ENI, as an annotation tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEni {
    /// The branch ENI.
    pub eni: EniId,
    /// Its MAC address.
    pub mac: MacAddr,
    /// The VLAN by which it is reached on the trunk ENI's link.
    pub vlan: VlanId,
    /// Its addresses, each with the router of its subnet.
    pub addresses: Vec<(IpAddr, IpAddr)>,
}

impl PodEni {
    /// Reads an annotation, of which the first element counts. `families`: which addresses pods have.
    ///
    /// # Errors
    /// [`AnnotationError`] says what is wrong with it.
    pub fn read(annotation: &str, families: Families) -> Result<Self, AnnotationError> {
        if annotation.len() > LONGEST {
            return Err(AnnotationError::TooLong(annotation.len()));
        }
        let elements: Vec<Element> = serde_json::from_str(annotation).map_err(AnnotationError::Malformed)?;
        let element = elements.into_iter().next().ok_or(AnnotationError::Empty)?;
        let id = |field| move |source| AnnotationError::Id { field, source };
        let mut addresses = Vec::new();
        if families.has_v4() && !element.private_ip.is_empty() {
            let ip: Ipv4Addr = parsed("privateIp", &element.private_ip, "it must be an IPv4 address")?;
            let net: Ipv4Net = parsed("subnetCidr", &element.subnet_cidr, "it must be the IPv4 CIDR of its subnet")?;
            let within = net.prefix_len() < 31 && net.contains(&ip) && ip > net.network();
            addresses.push(address("privateIp", &element.private_ip, ip.into(), net.into(), within)?);
        }
        if families.has_v6() && !element.ipv6_addr.is_empty() {
            let ip: Ipv6Addr = parsed("ipv6Addr", &element.ipv6_addr, "it must be an IPv6 address")?;
            let net: Ipv6Net =
                parsed("subnetV6Cidr", &element.subnet_v6_cidr, "it must be the IPv6 CIDR of its subnet")?;
            addresses.push(address("ipv6Addr", &element.ipv6_addr, ip.into(), net.into(), net.contains(&ip))?);
        }
        if addresses.is_empty() {
            return Err(AnnotationError::NoAddress);
        }
        Ok(Self {
            eni: EniId::new(&element.eni_id).map_err(id("eniId"))?,
            mac: element.if_address.parse::<MacAddr>().map_err(id("ifAddress"))?,
            vlan: VlanId::new(element.vlan_id).map_err(id("vlanId"))?,
            addresses,
        })
    }
}

fn cut(value: &str) -> String {
    value.chars().take(80).collect()
}

fn parsed<T: std::str::FromStr>(field: &'static str, value: &str, rule: &'static str) -> Result<T, AnnotationError> {
    value.parse().map_err(|_not_one| AnnotationError::Field { field, value: cut(value), rule })
}

/// An address with its router. That it is the router's would be as wrong as that it is elsewhere.
fn address(
    field: &'static str,
    value: &str,
    ip: IpAddr,
    net: IpNet,
    within: bool,
) -> Result<(IpAddr, IpAddr), AnnotationError> {
    let gateway = router(ip, net);
    if within && gateway != ip && is_hosts(ip) {
        Ok((ip, gateway))
    } else {
        let rule = "it must be an address that a host of the subnet can have";
        Err(AnnotationError::Field { field, value: cut(value), rule })
    }
}

/// Whether a host can have an address in a VPC: not the services of the link, such as the instance metadata service, which would
/// then be the pod's on the whole node.
fn is_hosts(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            !(v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_broadcast() || v4.is_unspecified())
        }
        IpAddr::V6(v6) => {
            let of_link = v6.is_unicast_link_local() || matches!(v6.segments(), [0xfd00, 0xec2, ..]);
            !(v6.is_loopback() || v6.is_multicast() || v6.is_unspecified() || of_link)
        }
    }
}

/// What an attachment was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// Who has it; with the host's interface that the pod really has.
    pub owner: Owner,
    /// The branch ENI.
    pub eni: EniId,
    /// Its MAC address.
    pub mac: MacAddr,
    /// The VLAN.
    pub vlan: VlanId,
    /// MAC address of the trunk ENI.
    pub trunk_mac: MacAddr,
    /// Device number of the trunk ENI.
    pub trunk_device: u32,
    /// The addresses, each with its router.
    pub addresses: Vec<(IpAddr, IpAddr)>,
    /// How its security groups are enforced.
    pub mode: Mode,
    /// Since when.
    pub since: Timestamp,
}

impl Held {
    /// The addresses as plugins are told of them.
    #[must_use]
    pub fn pod_addresses(&self) -> Vec<PodAddress> {
        let told = |(ip, gateway): &(IpAddr, IpAddr)| PodAddress {
            ip: *ip,
            interface: 0,
            eni: self.eni.clone(),
            eni_mac: self.mac,
            card: 0,
            device: self.trunk_device,
            table: table(self.vlan),
            branch: Some(Branch { vlan: self.vlan, trunk_mac: self.trunk_mac, gateway: *gateway, mode: self.mode }),
        };
        self.addresses.iter().map(told).collect()
    }
}

impl State {
    /// The trunk ENI of this node, if one is attached.
    #[must_use]
    pub fn trunk(&self) -> Option<&Eni> {
        self.ledger
            .enis()
            .find(|eni| eni.interface_type == InterfaceType::Trunk && eni.card == 0 && eni.device.is_some())
    }

    /// What an attachment has of a branch ENI.
    #[must_use]
    pub fn branch_of(&self, attachment: &Attachment) -> Option<&Held> {
        self.branches.get(attachment)
    }

    /// All that attachments have of branch ENIs.
    pub fn branches(&self) -> impl Iterator<Item = &Held> {
        self.branches.values()
    }

    /// The addresses of branch ENIs that pods have.
    #[must_use]
    pub fn branch_addresses(&self) -> BTreeSet<IpAddr> {
        self.branches.values().flat_map(|held| &held.addresses).map(|(ip, _)| *ip).collect()
    }

    /// Takes in what an attachment has been given. What an earlier sandbox of the same pod had, and what had the same VLAN, is
    /// forgotten: EC2 gives a VLAN to one branch ENI at a time.
    pub(crate) fn branch_held(&mut self, held: Held) -> Result<(), &'static str> {
        if self.ledger.address_of(&held.owner.attachment).is_some() {
            return Err("it has an address of the pool");
        }
        if held.addresses.iter().any(|(ip, _)| self.ledger.address(*ip).is_some() || self.is_own(*ip)) {
            return Err("the address is the pool's, or the node's own");
        }
        if held.addresses.iter().any(|(ip, _)| self.is_foreign(*ip)) {
            return Err("the address is not of the VPC");
        }
        let pod = &held.owner.pod;
        self.branches.retain(|_, other| {
            let of = &other.owner.pod;
            let same_pod = !pod.name.is_empty() && of.namespace == pod.namespace && of.name == pod.name;
            let same_address = other.addresses.iter().any(|(ip, _)| held.addresses.iter().any(|(new, _)| new == ip));
            !same_pod && !same_address && other.vlan != held.vlan && other.eni != held.eni
        });
        self.branches.insert(held.owner.attachment.clone(), held);
        Ok(())
    }

    /// Whether an address is none of the VPC's, as far as that is known: what else were led to the pod would be somebody else's.
    fn is_foreign(&self, ip: IpAddr) -> bool {
        let cidrs = self.node.as_ref().map(|node| &node.vpc_cidrs).filter(|cidrs| !cidrs.is_empty());
        match (ip, cidrs) {
            (IpAddr::V4(v4), Some(cidrs)) => !cidrs.iter().any(|cidr| cidr.contains(&v4)),
            _ => false,
        }
    }

    fn is_own(&self, ip: IpAddr) -> bool {
        self.ledger.enis().any(|eni| IpAddr::V4(eni.primary_ip) == ip)
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
