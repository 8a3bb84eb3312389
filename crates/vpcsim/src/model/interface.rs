//! Network interfaces: made, attached, given addresses, and taken away again.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use sluice_contract::id::{EniId, MacAddr, SecurityGroupId, SubnetId};

use super::Edit;
use super::address::Standing;
use super::api::{
    AssignIpv6Addresses, AssignPrivateIpAddresses, AttachNetworkInterface, CreateNetworkInterface,
    DetachNetworkInterface, EniAttribute, ModifyNetworkInterfaceAttribute, Reply, UnassignIpv6Addresses,
    UnassignPrivateIpAddresses, WantIpv4, WantIpv6,
};
use super::error::{ApiError, Missing};
use super::state::{Attachment, Eni, InstanceState, State};
use crate::limits::InstanceType;

/// ENIs of a region (EC2 quota "Network interfaces per Region").
const MOST_ENIS: usize = 5000;
/// Security groups of an ENI (EC2 quota).
const MOST_GROUPS: usize = 5;
/// IPv4 or IPv6 places of an ENI that is attached to nothing: the most that any instance type has.
const MOST_PLACES: usize = 64;
/// How long an ended instance is still told of.
const REMEMBERED: Duration = Duration::from_secs(3600);

type Taken4 = (Vec<Ipv4Addr>, Vec<Ipv4Net>);
type Taken6 = (Vec<Ipv6Addr>, Vec<Ipv6Net>);

/// Who wants addresses: the errors differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Create,
    Assign,
}

impl Edit<'_> {
    pub(super) fn create_interface(&mut self, request: &CreateNetworkInterface) -> Result<Reply, ApiError> {
        let eni = self.new_interface(request)?;
        Ok(Reply::NetworkInterface(Box::new(eni)))
    }

    /// Makes an ENI that is attached to nothing.
    pub(super) fn new_interface(&mut self, request: &CreateNetworkInterface) -> Result<Eni, ApiError> {
        let subnet = self
            .state
            .subnets
            .get(&request.subnet)
            .ok_or_else(|| ApiError::not_found(Missing::Subnet, &request.subnet))?;
        let (vpc, availability_zone) = (subnet.vpc.clone(), subnet.availability_zone.clone());
        if self.state.enis.len() >= MOST_ENIS {
            return Err(ApiError::client(
                "NetworkInterfaceLimitExceeded",
                format!("The maximum number of network interfaces ({MOST_ENIS}) has been reached."),
            ));
        }
        let groups = if request.groups.is_empty() {
            let vpc = self.state.vpcs.get(&vpc).ok_or_else(|| ApiError::not_found(Missing::Vpc, &vpc))?;
            vec![vpc.default_security_group.clone()]
        } else {
            self.check_groups(&request.groups, &request.subnet)?;
            request.groups.clone()
        };
        super::tags::check(&request.tags)?;
        check_room(1, &request.want, MOST_PLACES)?;
        check_room(0, &request.want_ipv6, MOST_PLACES)?;
        let primary = match request.private_ip {
            Some(address) => self.take_named(&request.subnet, address, Purpose::Create)?,
            None => self.take_any(&request.subnet)?,
        };
        let (secondaries, prefixes) = self.take_ipv4(&request.subnet, &request.want, Purpose::Create)?;
        let (ipv6, ipv6_prefixes) = self.take_ipv6(&request.subnet, &request.want_ipv6)?;
        let eni = Eni {
            id: self.fresh("eni-")?,
            subnet: request.subnet.clone(),
            vpc,
            availability_zone,
            mac: self.fresh_mac(),
            description: request.description.clone(),
            interface_type: request.interface_type,
            primary,
            secondaries: secondaries.into_iter().collect(),
            prefixes: prefixes.into_iter().collect(),
            ipv6: ipv6.into_iter().collect(),
            ipv6_prefixes: ipv6_prefixes.into_iter().collect(),
            groups,
            source_dest_check: true,
            association: None,
            attachment: None,
            tags: request.tags.clone(),
        };
        self.state.enis.insert(eni.id.clone(), eni.clone());
        Ok(eni)
    }

    pub(super) fn delete_interface(&mut self, id: &EniId) -> Result<Reply, ApiError> {
        let eni = self.state.enis.get(id).ok_or_else(|| ApiError::not_found(Missing::Eni, id))?;
        if eni.attachment.is_some() {
            return Err(ApiError::interface_in_use(id));
        }
        remove(self.state, id);
        Ok(Reply::Done)
    }

    pub(super) fn attach(&mut self, request: &AttachNetworkInterface) -> Result<Reply, ApiError> {
        let link_at = self.now.saturating_add(self.settings.draw(self.settings.link, self.random));
        let attachment = self.plug(request, link_at)?;
        Ok(Reply::Attached { attachment: attachment.id, card: attachment.card })
    }

    /// Attaches an ENI whose link shows at `link_at`.
    pub(super) fn plug(&mut self, request: &AttachNetworkInterface, link_at: Duration) -> Result<Attachment, ApiError> {
        let AttachNetworkInterface { eni: eni_id, instance: instance_id, card, device } = request;
        let eni = self.state.enis.get(eni_id).ok_or_else(|| ApiError::not_found(Missing::Eni, eni_id))?;
        let instance =
            self.state.instances.get(instance_id).ok_or_else(|| ApiError::not_found(Missing::Instance, instance_id))?;
        if eni.attachment.is_some() {
            return Err(ApiError::interface_attached(eni_id));
        }
        if !matches!(instance.state(self.now), InstanceState::Pending | InstanceState::Running) {
            return Err(ApiError::client("IncorrectState", format!("Instance '{instance_id}' is not 'running'.")));
        }
        if eni.availability_zone != instance.availability_zone {
            return Err(ApiError::combination(
                "You may not attach a network interface to an instance if they are not in the same availability zone",
            ));
        }
        let limits = self.limits_of(&instance.instance_type)?;
        let attached = self.state.attached(instance_id);
        let most_here = usize::try_from(*card).ok().and_then(|card| limits.cards.get(card)).ok_or_else(|| {
            ApiError::invalid_parameter(
                "networkCardIndex",
                card,
                &format!("{} has {} network cards.", limits.name, limits.cards.len()),
            )
        })?;
        let here: Vec<u32> = attached
            .iter()
            .filter_map(|eni| eni.attachment.as_ref().filter(|at| at.card == *card).map(|at| at.device))
            .collect();
        if here.contains(device) {
            return Err(ApiError::device_in_use(instance_id, *device));
        }
        if here.len() >= usize::try_from(*most_here).unwrap_or(0) {
            return Err(ApiError::attachment_limit(attached.len().saturating_add(1), limits.name));
        }
        if eni.ipv4_places() > places(limits.ipv4_per_eni) || eni.ipv6_places() > places(limits.ipv6_per_eni) {
            return Err(ApiError::address_limit());
        }
        check_prefixes(limits, !eni.prefixes.is_empty() || !eni.ipv6_prefixes.is_empty())?;
        let attachment = Attachment {
            id: self.fresh("eni-attach-")?,
            instance: Some(instance_id.clone()),
            card: *card,
            device: *device,
            delete_on_termination: false,
            requested: self.now,
            link_at,
            detached_at: None,
        };
        self.interface(eni_id)?.attachment = Some(attachment.clone());
        Ok(attachment)
    }

    pub(super) fn detach(&mut self, request: &DetachNetworkInterface) -> Result<Reply, ApiError> {
        let delay = if request.force { Duration::ZERO } else { self.settings.draw(self.settings.detach, self.random) };
        let end = self.now.saturating_add(delay);
        let missing = || ApiError::not_found(Missing::Attachment, &request.attachment);
        let eni = self
            .state
            .enis
            .values_mut()
            .find(|eni| eni.attachment.as_ref().is_some_and(|at| at.id == request.attachment))
            .ok_or_else(missing)?;
        let attachment = eni.attachment.as_mut().ok_or_else(missing)?;
        if attachment.instance.is_none() {
            return Err(ApiError::client(
                "OperationNotPermitted",
                "You are not allowed to manage 'ela-attach' attachments.",
            ));
        }
        if attachment.device == 0 && attachment.card == 0 {
            return Err(ApiError::client(
                "OperationNotPermitted",
                "The network interface at device index 0 and networkCard index 0 cannot be detached.",
            ));
        }
        if attachment.detached_at.is_some() {
            return Err(ApiError::client(
                "IncorrectState",
                format!("Interface attachment '{}' is already detaching.", request.attachment),
            ));
        }
        attachment.detached_at = Some(end);
        settle(self.state, self.now);
        Ok(Reply::Done)
    }

    pub(super) fn modify_interface(&mut self, request: &ModifyNetworkInterfaceAttribute) -> Result<Reply, ApiError> {
        if let EniAttribute::Groups(groups) = &request.attribute {
            let subnet = self.interface(&request.eni)?.subnet.clone();
            self.check_groups(groups, &subnet)?;
        }
        let eni = self.interface(&request.eni)?;
        match &request.attribute {
            EniAttribute::Description(text) => eni.description.clone_from(text),
            EniAttribute::SourceDestCheck(on) => eni.source_dest_check = *on,
            EniAttribute::Groups(groups) => eni.groups.clone_from(groups),
            EniAttribute::DeleteOnTermination(id, on) => {
                let attachment = eni.attachment.as_mut().filter(|attachment| attachment.id == *id);
                attachment.ok_or_else(|| ApiError::not_found(Missing::Attachment, id))?.delete_on_termination = *on;
            }
        }
        Ok(Reply::Done)
    }

    pub(super) fn assign_ipv4(&mut self, request: &AssignPrivateIpAddresses) -> Result<Reply, ApiError> {
        if request.want.is_empty() {
            return Err(ApiError::missing("secondaryPrivateIpAddressCount"));
        }
        let eni = self.interface(&request.eni)?;
        let (subnet, used) = (eni.subnet.clone(), eni.ipv4_places());
        let (most, limits) = self.limits_of_interface(&request.eni, |limits| limits.ipv4_per_eni)?;
        check_room(used, &request.want, most)?;
        if let Some(limits) = limits {
            check_prefixes(limits, !request.want.prefixes.is_empty() || request.want.prefix_count > 0)?;
        }
        if request.allow_reassignment {
            self.release_for_move(&subnet, &request.want.addresses);
        }
        let (addresses, prefixes) = self.take_ipv4(&subnet, &request.want, Purpose::Assign)?;
        let eni = self.interface(&request.eni)?;
        eni.secondaries.extend(&addresses);
        eni.prefixes.extend(&prefixes);
        Ok(Reply::AssignedIpv4 { eni: request.eni.clone(), addresses, prefixes })
    }

    pub(super) fn unassign_ipv4(&mut self, request: &UnassignPrivateIpAddresses) -> Result<Reply, ApiError> {
        if request.addresses.is_empty() && request.prefixes.is_empty() {
            return Err(ApiError::missing("privateIpAddress"));
        }
        let eni = self.interface(&request.eni)?;
        let addresses: BTreeSet<_> = request.addresses.iter().copied().collect();
        let prefixes: BTreeSet<_> = request.prefixes.iter().copied().collect();
        if !addresses.is_subset(&eni.secondaries) || !prefixes.is_subset(&eni.prefixes) {
            return Err(ApiError::not_assigned(&request.eni));
        }
        eni.secondaries.retain(|address| !addresses.contains(address));
        eni.prefixes.retain(|prefix| !prefixes.contains(prefix));
        let subnet = eni.subnet.clone();
        if let Some(subnet) = self.state.subnets.get_mut(&subnet) {
            addresses.into_iter().for_each(|address| subnet.space.release(address));
            prefixes.into_iter().for_each(|prefix| subnet.space.release_prefix(prefix));
        }
        Ok(Reply::Done)
    }

    pub(super) fn assign_ipv6(&mut self, request: &AssignIpv6Addresses) -> Result<Reply, ApiError> {
        if request.want.is_empty() {
            return Err(ApiError::missing("ipv6AddressCount"));
        }
        let eni = self.interface(&request.eni)?;
        let (subnet, used) = (eni.subnet.clone(), eni.ipv6_places());
        let (most, limits) = self.limits_of_interface(&request.eni, |limits| limits.ipv6_per_eni)?;
        check_room(used, &request.want, most)?;
        if let Some(limits) = limits {
            check_prefixes(limits, !request.want.prefixes.is_empty() || request.want.prefix_count > 0)?;
        }
        let (addresses, prefixes) = self.take_ipv6(&subnet, &request.want)?;
        let eni = self.interface(&request.eni)?;
        eni.ipv6.extend(&addresses);
        eni.ipv6_prefixes.extend(&prefixes);
        Ok(Reply::Ipv6 { eni: request.eni.clone(), addresses, prefixes })
    }

    pub(super) fn unassign_ipv6(&mut self, request: &UnassignIpv6Addresses) -> Result<Reply, ApiError> {
        if request.addresses.is_empty() && request.prefixes.is_empty() {
            return Err(ApiError::missing("ipv6Addresses"));
        }
        let eni = self.interface(&request.eni)?;
        let held = request.addresses.iter().all(|address| eni.ipv6.contains(address))
            && request.prefixes.iter().all(|prefix| eni.ipv6_prefixes.contains(prefix));
        if !held {
            return Err(ApiError::not_assigned(&request.eni));
        }
        eni.ipv6.retain(|address| !request.addresses.contains(address));
        eni.ipv6_prefixes.retain(|prefix| !request.prefixes.contains(prefix));
        let subnet = eni.subnet.clone();
        if let Some(subnet) = self.state.subnets.get_mut(&subnet) {
            request.addresses.iter().for_each(|address| subnet.ipv6_space.release(*address));
            request.prefixes.iter().for_each(|prefix| subnet.ipv6_space.release_prefix(*prefix));
        }
        Ok(Reply::Ipv6 {
            eni: request.eni.clone(),
            addresses: request.addresses.clone(),
            prefixes: request.prefixes.clone(),
        })
    }

    fn interface(&mut self, id: &EniId) -> Result<&mut Eni, ApiError> {
        self.state.enis.get_mut(id).ok_or_else(|| ApiError::not_found(Missing::Eni, id))
    }

    pub(super) fn limits_of(&self, name: &str) -> Result<&'static InstanceType, ApiError> {
        let known = self.settings.instance_type(name);
        known.ok_or_else(|| ApiError::invalid_value(format!("Invalid value '{name}' for InstanceType.")))
    }

    /// How many places an ENI has, and the limits of the instance that it is attached to.
    fn limits_of_interface(
        &self,
        id: &EniId,
        limit: fn(&InstanceType) -> u32,
    ) -> Result<(usize, Option<&'static InstanceType>), ApiError> {
        let attachment = self.state.enis.get(id).and_then(|eni| eni.attachment.as_ref());
        let instance = attachment.and_then(|attachment| self.state.instances.get(attachment.instance.as_ref()?));
        let Some(instance) = instance else { return Ok((MOST_PLACES, None)) };
        let limits = self.limits_of(&instance.instance_type)?;
        Ok((places(limit(limits)), Some(limits)))
    }

    fn check_groups(&self, groups: &[SecurityGroupId], subnet: &SubnetId) -> Result<(), ApiError> {
        if groups.is_empty() {
            return Err(ApiError::missing("groupId"));
        }
        if groups.len() > MOST_GROUPS {
            return Err(ApiError::client(
                "SecurityGroupsPerInterfaceLimitExceeded",
                "The maximum number of security groups per interface has been reached.",
            ));
        }
        let vpc = self.state.subnets.get(subnet).map(|subnet| &subnet.vpc);
        for id in groups {
            let group = self.state.security_groups.get(id);
            let group = group.ok_or_else(|| ApiError::not_found(Missing::SecurityGroup, id))?;
            if Some(&group.vpc) != vpc {
                return Err(ApiError::client(
                    "InvalidParameter",
                    format!("Security group {id} and subnet {subnet} belong to different networks."),
                ));
            }
        }
        Ok(())
    }

    fn take_any(&mut self, subnet: &SubnetId) -> Result<Ipv4Addr, ApiError> {
        let placement = self.settings.placement;
        let space = self.state.subnets.get_mut(subnet).map(|subnet| &mut subnet.space);
        space.and_then(|space| space.take_any(placement, self.random)).ok_or_else(ApiError::insufficient_addresses)
    }

    fn take_named(&mut self, id: &SubnetId, address: Ipv4Addr, purpose: Purpose) -> Result<Ipv4Addr, ApiError> {
        let subnet = self.state.subnets.get_mut(id).ok_or_else(|| ApiError::not_found(Missing::Subnet, id))?;
        match subnet.space.standing(address) {
            Standing::Outside => Err(ApiError::address_outside(address)),
            Standing::Reserved => Err(ApiError::address_reserved(address)),
            Standing::Taken if purpose == Purpose::Assign => Err(ApiError::move_not_allowed(address)),
            Standing::Taken => Err(ApiError::address_in_use(address)),
            Standing::Free => {
                subnet.space.take(address);
                Ok(address)
            }
        }
    }

    fn take_ipv4(&mut self, subnet: &SubnetId, want: &WantIpv4, purpose: Purpose) -> Result<Taken4, ApiError> {
        let mut addresses = Vec::new();
        let mut prefixes = Vec::new();
        for address in &want.addresses {
            addresses.push(self.take_named(subnet, *address, purpose)?);
        }
        for _ in 0..want.count {
            addresses.push(self.take_any(subnet)?);
        }
        let placement = self.settings.placement;
        let space =
            &mut self.state.subnets.get_mut(subnet).ok_or_else(|| ApiError::not_found(Missing::Subnet, subnet))?.space;
        for prefix in &want.prefixes {
            if !space.take_prefix(*prefix) {
                return Err(ApiError::invalid_value(format!(
                    "The prefix {prefix} is not a free /28 of the subnet {subnet}"
                )));
            }
            prefixes.push(*prefix);
        }
        for _ in 0..want.prefix_count {
            let prefix = space.take_any_prefix(placement, self.random);
            prefixes.push(prefix.ok_or_else(|| match purpose {
                Purpose::Create => ApiError::insufficient_for_create(),
                Purpose::Assign => ApiError::insufficient_prefixes(),
            })?);
        }
        Ok((addresses, prefixes))
    }

    fn take_ipv6(&mut self, id: &SubnetId, want: &WantIpv6) -> Result<Taken6, ApiError> {
        let subnet = self.state.subnets.get_mut(id).ok_or_else(|| ApiError::not_found(Missing::Subnet, id))?;
        if !want.is_empty() && subnet.ipv6_cidr.is_none() {
            return Err(ApiError::invalid_value(format!("The subnet {id} has no IPv6 CIDR block")));
        }
        let space = &mut subnet.ipv6_space;
        let mut addresses = Vec::new();
        let mut prefixes = Vec::new();
        for address in &want.addresses {
            match space.standing(*address) {
                Standing::Outside => return Err(ApiError::address_outside(*address)),
                Standing::Reserved => return Err(ApiError::address_reserved(*address)),
                Standing::Taken => return Err(ApiError::address_in_use(*address)),
                Standing::Free => space.take(*address),
            };
            addresses.push(*address);
        }
        for _ in 0..want.count {
            addresses.push(space.take_any(self.random).ok_or_else(ApiError::insufficient_addresses)?);
        }
        for prefix in &want.prefixes {
            if !space.take_prefix(*prefix) {
                return Err(ApiError::invalid_value(format!(
                    "The prefix {prefix} is not a free /80 of the subnet {id}"
                )));
            }
            prefixes.push(*prefix);
        }
        for _ in 0..want.prefix_count {
            prefixes.push(space.take_any_prefix(self.random).ok_or_else(ApiError::insufficient_prefixes)?);
        }
        Ok((addresses, prefixes))
    }

    /// Takes secondary addresses away from whichever ENI of the subnet has them.
    fn release_for_move(&mut self, subnet: &SubnetId, addresses: &[Ipv4Addr]) {
        for address in addresses {
            let holder =
                self.state.enis.values_mut().find(|eni| eni.subnet == *subnet && eni.secondaries.contains(address));
            if let Some(eni) = holder {
                eni.secondaries.remove(address);
                if let Some(subnet) = self.state.subnets.get_mut(subnet) {
                    subnet.space.release(*address);
                }
            }
        }
    }

    /// A locally administered address of AWS's kind that no other ENI has.
    fn fresh_mac(&mut self) -> MacAddr {
        loop {
            let [_, _, first, b, c, d, e, f] = self.random.draw().to_be_bytes();
            let mac = MacAddr([(first & 0x0c) | 0x02, b, c, d, e, f]);
            if self.state.enis.values().all(|eni| eni.mac != mac) {
                return mac;
            }
        }
    }
}

/// What both kinds of want have in common.
trait Want {
    /// Places that it takes up.
    fn places(&self) -> usize;
    /// How many of the four ways to ask it uses.
    fn ways(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.ways() == 0
    }
}

macro_rules! want {
    ($want:ty) => {
        impl Want for $want {
            fn places(&self) -> usize {
                let counted = places(self.count).saturating_add(places(self.prefix_count));
                self.addresses.len().saturating_add(self.prefixes.len()).saturating_add(counted)
            }

            fn ways(&self) -> usize {
                let used =
                    [!self.addresses.is_empty(), !self.prefixes.is_empty(), self.count > 0, self.prefix_count > 0];
                used.into_iter().filter(|used| *used).count()
            }
        }
    };
}

want!(WantIpv4);
want!(WantIpv6);

fn check_room(used: usize, want: &impl Want, most: usize) -> Result<(), ApiError> {
    if want.ways() > 1 {
        return Err(ApiError::combination(
            "Only one of addresses, an address count, prefixes and a prefix count may be specified",
        ));
    }
    if !want.is_empty() && used.saturating_add(want.places()) > most {
        return Err(ApiError::address_limit());
    }
    Ok(())
}

fn check_prefixes(limits: &InstanceType, wanted: bool) -> Result<(), ApiError> {
    if wanted && !limits.prefixes() {
        return Err(ApiError::client(
            "UnsupportedOperation",
            format!("Prefixes are not supported for the instance type {}", limits.name),
        ));
    }
    Ok(())
}

fn places(limit: u32) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// Takes an ENI out of the world and gives its addresses back.
fn remove(state: &mut State, id: &EniId) {
    let Some(eni) = state.enis.remove(id) else { return };
    let Some(subnet) = state.subnets.get_mut(&eni.subnet) else { return };
    subnet.space.release(eni.primary);
    eni.secondaries.iter().for_each(|address| subnet.space.release(*address));
    eni.prefixes.iter().for_each(|prefix| subnet.space.release_prefix(*prefix));
    eni.ipv6.iter().for_each(|address| subnet.ipv6_space.release(*address));
    eni.ipv6_prefixes.iter().for_each(|prefix| subnet.ipv6_space.release_prefix(*prefix));
}

/// When [`settle`] next has something to do.
pub(super) fn next_due(state: &State) -> Option<Duration> {
    let detaches = state.enis.values().filter_map(|eni| eni.attachment.as_ref()?.detached_at);
    let ends = state.instances.values().filter_map(|instance| instance.terminated_at);
    detaches.chain(ends.map(|end| end.saturating_add(REMEMBERED))).min()
}

/// Ends detaches that are over, and forgets instances that ended long ago.
pub(super) fn settle(state: &mut State, now: Duration) {
    let mut gone = Vec::new();
    for eni in state.enis.values_mut() {
        let over = eni.attachment.as_ref().filter(|at| at.detached_at.is_some_and(|end| end <= now));
        let Some(attachment) = over else { continue };
        let ended = attachment
            .instance
            .as_ref()
            .and_then(|id| state.instances.get(id))
            .is_some_and(|instance| instance.terminated_at.is_some());
        if ended && attachment.delete_on_termination {
            gone.push(eni.id.clone());
        }
        eni.attachment = None;
    }
    gone.iter().for_each(|id| remove(state, id));
    state.instances.retain(|_, instance| instance.terminated_at.is_none_or(|end| now < end.saturating_add(REMEMBERED)));
}
