//! EC2 as the planner's calls see it, without time: who has which address, and AWS's refusals.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use sluice_contract::id::{AttachmentId, EniId, InstanceId, MacAddr, SubnetId};
use sluice_ipamd_core::cloud::{
    AddressCount, Api, Assigned, CloudError, CloudErrorKind, CreateEni, Ec2Attachment, Ec2Eni, Ec2Subnet,
    InstanceLimits, InterfaceType,
};
use sluice_ipamd_core::op::{Op, Outcome};

/// The IPv6 CIDR of every subnet.
const IPV6: &str = "2001:db8:0:1::/64";

pub(crate) struct Subnet {
    pub(crate) cidr: Ipv4Net,
    pub(crate) tags: BTreeMap<String, String>,
    /// Addresses that are not this node's.
    pub(crate) others: BTreeSet<Ipv4Addr>,
}

pub(crate) struct Ec2 {
    pub(crate) limits: InstanceLimits,
    pub(crate) instance: InstanceId,
    pub(crate) enis: BTreeMap<EniId, Ec2Eni>,
    pub(crate) subnets: BTreeMap<SubnetId, Subnet>,
    tokens: BTreeMap<String, (CreateEni, EniId)>,
    next: u32,
    /// Calls and refusals that only a wrong plan provokes.
    pub(crate) calls: BTreeMap<Api, u32>,
    pub(crate) blunders: Vec<String>,
}

pub(crate) fn error(api: Api, kind: CloudErrorKind, code: &str) -> CloudError {
    CloudError { api, kind, code: code.to_owned(), message: format!("{code} (model)"), retry_after: None }
}

impl Ec2 {
    pub(crate) fn new(limits: InstanceLimits) -> Self {
        Self {
            limits,
            instance: InstanceId::new("i-00000001").unwrap(),
            enis: BTreeMap::new(),
            subnets: BTreeMap::new(),
            tokens: BTreeMap::new(),
            next: 0,
            calls: BTreeMap::new(),
            blunders: Vec::new(),
        }
    }

    /// Makes the primary ENI, as launching the instance does.
    pub(crate) fn launch(&mut self, subnet: &SubnetId) -> EniId {
        let mut eni = self.fresh(subnet, AddressCount::Secondary(0), BTreeMap::new()).unwrap();
        eni.attachment = Some(self.attachment(0, 0));
        let id = eni.eni.clone();
        self.enis.insert(id.clone(), eni);
        id
    }

    fn attachment(&self, card: u32, device: u32) -> Ec2Attachment {
        Ec2Attachment {
            attachment: AttachmentId::new(format!("eni-attach-{:08x}", self.next)).unwrap(),
            instance: Some(self.instance.clone()),
            device,
            card,
            delete_on_termination: (card, device) == (0, 0),
        }
    }

    fn taken(&self, subnet: &SubnetId) -> BTreeSet<Ipv4Addr> {
        let mut taken = self.subnets[subnet].others.clone();
        for eni in self.enis.values() {
            taken.insert(eni.primary_ip);
            taken.extend(&eni.secondary_ips);
            taken
                .extend(eni.prefixes.iter().flat_map(|net| (0..16).map(|n| Ipv4Addr::from(u32::from(net.addr()) + n))));
        }
        taken
    }

    /// Free addresses of a subnet; AWS keeps the first four and the last.
    pub(crate) fn free(&self, subnet: &SubnetId) -> Vec<Ipv4Addr> {
        let cidr = self.subnets[subnet].cidr;
        let taken = self.taken(subnet);
        let (first, last) = (u32::from(cidr.network()) + 4, u32::from(cidr.broadcast()) - 1);
        (first..=last).map(Ipv4Addr::from).filter(|address| !taken.contains(address)).collect()
    }

    fn take(&self, subnet: &SubnetId, count: AddressCount, api: Api) -> Result<Assigned, CloudError> {
        let free = self.free(subnet);
        match count {
            AddressCount::Secondary(count) => {
                let addresses: BTreeSet<_> = free.into_iter().take(count as usize).collect();
                if addresses.len() < count as usize {
                    let code = "InsufficientFreeAddressesInSubnet";
                    return Err(error(api, CloudErrorKind::InsufficientAddresses, code));
                }
                Ok(Assigned { addresses, prefixes: BTreeSet::new() })
            }
            AddressCount::Prefixes(count) => {
                let free: BTreeSet<u32> = free.into_iter().map(u32::from).collect();
                let whole =
                    free.iter().filter(|first| **first % 16 == 0 && (0..16).all(|n| free.contains(&(**first + n))));
                let prefixes: BTreeSet<_> =
                    whole.take(count as usize).map(|first| Ipv4Net::new(Ipv4Addr::from(*first), 28).unwrap()).collect();
                if prefixes.len() < count as usize {
                    return Err(error(api, CloudErrorKind::InsufficientPrefixes, "InsufficientCidrBlocks"));
                }
                Ok(Assigned { addresses: BTreeSet::new(), prefixes })
            }
        }
    }

    fn fresh(
        &mut self,
        subnet: &SubnetId,
        count: AddressCount,
        tags: BTreeMap<String, String>,
    ) -> Result<Ec2Eni, CloudError> {
        let api = Api::CreateNetworkInterface;
        let mut assigned = self.take(subnet, count, api)?;
        let own = match self.free(subnet).into_iter().next_back() {
            Some(own) if !assigned.addresses.contains(&own) => own,
            _ => return Err(error(api, CloudErrorKind::InsufficientAddresses, "InsufficientFreeAddressesInSubnet")),
        };
        assigned.prefixes.retain(|net| !net.contains(&own));
        self.next += 1;
        Ok(Ec2Eni {
            eni: EniId::new(format!("eni-{:08x}", self.next)).unwrap(),
            mac: MacAddr([2, 0, 0, 0, self.next.to_be_bytes()[2], self.next.to_be_bytes()[3]]),
            attachment: None,
            subnet: subnet.clone(),
            primary_ip: own,
            secondary_ips: assigned.addresses,
            prefixes: assigned.prefixes,
            ipv6_prefixes: BTreeSet::new(),
            security_groups: Vec::new(),
            tags,
            interface_type: InterfaceType::Interface,
            description: String::new(),
            connection_tracking: None,
        })
    }

    pub(crate) fn described_subnets(&self) -> Vec<Ec2Subnet> {
        self.subnets
            .iter()
            .map(|(id, subnet)| Ec2Subnet {
                subnet: id.clone(),
                cidr: subnet.cidr,
                ipv6_cidr: Some(IPV6.parse().unwrap()),
                availability_zone: "xx-1a".to_owned(),
                available: u32::try_from(self.free(id).len()).unwrap(),
                tags: subnet.tags.clone(),
            })
            .collect()
    }

    /// A /80 that nobody has had.
    fn fresh_ipv6(&mut self) -> Ipv6Net {
        self.next += 1;
        let subnet: Ipv6Net = IPV6.parse().unwrap();
        Ipv6Net::new((subnet.network().to_bits() | u128::from(self.next) << 48).into(), 80).unwrap()
    }

    /// The ENI that has an address for pods.
    pub(crate) fn holder(&self, address: IpAddr) -> Option<&Ec2Eni> {
        self.enis.values().find(|eni| match address {
            IpAddr::V4(v4) => eni.secondary_ips.contains(&v4) || eni.prefixes.iter().any(|net| net.contains(&v4)),
            IpAddr::V6(v6) => eni.ipv6_prefixes.iter().any(|net| net.contains(&v6)),
        })
    }

    /// Carries a call out.
    pub(crate) fn call(&mut self, op: &Op) -> Result<Outcome, CloudError> {
        let api = op.api();
        *self.calls.entry(api).or_default() += 1;
        let missing = || error(api, CloudErrorKind::NotFound, "InvalidNetworkInterfaceID.NotFound");
        match op {
            Op::Create(request) => {
                if let Some((first, eni)) = self.tokens.get(&request.client_token) {
                    if first != request {
                        self.blunders.push(format!("another request with token {}", request.client_token));
                        return Err(error(api, CloudErrorKind::Conflict, "IdempotentParameterMismatch"));
                    }
                    return self.enis.get(eni).cloned().map(Outcome::Created).ok_or_else(missing);
                }
                let mut eni = self.fresh(&request.subnet, request.addresses, request.tags.clone())?;
                if request.ipv6_prefix {
                    eni.ipv6_prefixes.insert(self.fresh_ipv6());
                }
                self.tokens.insert(request.client_token.clone(), (request.clone(), eni.eni.clone()));
                self.enis.insert(eni.eni.clone(), eni.clone());
                Ok(Outcome::Created(eni))
            }
            Op::Attach { eni, card, device, .. } => {
                let attached = self.enis.values().filter_map(|eni| eni.attachment.as_ref());
                let devices: Vec<u32> = attached.filter(|a| a.card == *card).map(|a| a.device).collect();
                let known = self.enis.get(eni).ok_or_else(missing)?;
                if known.attachment.is_some() || devices.contains(device) {
                    return Err(error(api, CloudErrorKind::Conflict, "InvalidParameterValue"));
                }
                if devices.len() >= self.limits.enis_of(*card) as usize {
                    self.blunders.push(format!("{op} beyond the limit"));
                    return Err(error(api, CloudErrorKind::AttachmentLimit, "AttachmentLimitExceeded"));
                }
                self.next += 1;
                let attachment = self.attachment(*card, *device);
                self.enis.get_mut(eni).unwrap().attachment = Some(attachment.clone());
                Ok(Outcome::Attached(attachment.attachment))
            }
            Op::DeleteOnTermination { eni, .. } => {
                let known = self.enis.get_mut(eni).ok_or_else(missing)?;
                let attachment = known.attachment.as_mut().ok_or_else(missing)?;
                attachment.delete_on_termination = true;
                Ok(Outcome::Done)
            }
            Op::SetGroups { eni, groups } => {
                self.enis.get_mut(eni).ok_or_else(missing)?.security_groups.clone_from(groups);
                Ok(Outcome::Done)
            }
            Op::Tag { eni, tags } => {
                self.enis.get_mut(eni).ok_or_else(missing)?.tags.extend(tags.clone());
                Ok(Outcome::Done)
            }
            Op::Assign { eni, count } => {
                let known = self.enis.get(eni).ok_or_else(missing)?;
                let places = known.secondary_ips.len() + known.prefixes.len() + count.places() as usize;
                if places > self.limits.ipv4_per_eni as usize - 1 {
                    self.blunders.push(format!("{op} beyond the limit"));
                    return Err(error(api, CloudErrorKind::AddressLimit, "PrivateIpAddressLimitExceeded"));
                }
                let assigned = self.take(&known.subnet.clone(), *count, api)?;
                let known = self.enis.get_mut(eni).unwrap();
                known.secondary_ips.extend(&assigned.addresses);
                known.prefixes.extend(&assigned.prefixes);
                Ok(Outcome::Assigned(assigned))
            }
            Op::AssignIpv6 { eni } => {
                let net = self.fresh_ipv6();
                self.enis.get_mut(eni).ok_or_else(missing)?.ipv6_prefixes.insert(net);
                Ok(Outcome::AssignedIpv6(net))
            }
            Op::Unassign { eni, what } => {
                let known = self.enis.get_mut(eni).ok_or_else(missing)?;
                if !what.addresses.is_subset(&known.secondary_ips) || !what.prefixes.is_subset(&known.prefixes) {
                    return Err(error(api, CloudErrorKind::Conflict, "InvalidParameterValue"));
                }
                known.secondary_ips.retain(|address| !what.addresses.contains(address));
                known.prefixes.retain(|prefix| !what.prefixes.contains(prefix));
                Ok(Outcome::Done)
            }
            Op::Detach { eni, attachment } => {
                let known = self.enis.get_mut(eni).ok_or_else(missing)?;
                match &known.attachment {
                    Some(current) if current.attachment == *attachment => known.attachment = None,
                    _ => return Err(error(api, CloudErrorKind::NotFound, "InvalidAttachmentID.NotFound")),
                }
                Ok(Outcome::Done)
            }
            Op::Delete { eni } => match self.enis.get(eni) {
                Some(known) if known.attachment.is_some() => {
                    Err(error(api, CloudErrorKind::Conflict, "InvalidNetworkInterface.InUse"))
                }
                _ => {
                    self.enis.remove(eni);
                    Ok(Outcome::Done)
                }
            },
            Op::Inspect { eni } => Ok(Outcome::Inspected(self.enis.get(eni).cloned())),
            Op::Survey { .. } => Ok(Outcome::Surveyed(self.enis.values().cloned().collect())),
            Op::Subnets { .. } => Ok(Outcome::Subnets(self.described_subnets())),
        }
    }
}
