//! Instances: launched with one ENI each, and ended.

use std::net::Ipv4Addr;
use std::time::Duration;

use sluice_contract::id::InstanceId;

use super::Edit;
use super::api::{
    AttachNetworkInterface, CreateNetworkInterface, InstanceWithEnis, Reply, RunInstances, TerminateInstances,
};
use super::error::{ApiError, Missing};
use super::state::{Association, Instance, InterfaceType};

/// Instances that one call may launch.
const MOST_AT_ONCE: u32 = 100;

impl Edit<'_> {
    pub(super) fn run_instances(&mut self, request: &RunInstances) -> Result<Reply, ApiError> {
        if request.min == 0 || request.max < request.min || request.max > MOST_AT_ONCE {
            return Err(ApiError::invalid_value(format!(
                "Invalid value '{}' for maxCount. It must be at least minCount and at most {MOST_AT_ONCE}.",
                request.max
            )));
        }
        if request.private_ip.is_some() && request.max > 1 {
            return Err(ApiError::combination(
                "The parameter PrivateIpAddress cannot be used when launching more than one instance",
            ));
        }
        super::tags::check(&request.tags)?;
        let boot = self.settings.draw(self.settings.boot, self.random);
        let reservation = self.fresh_id("r-");
        let mut launched = Vec::new();
        for _ in 0..request.max {
            launched.push(self.launch(request, &reservation, self.now.saturating_add(boot))?);
        }
        Ok(Reply::Launched(reservation, launched))
    }

    /// Makes one instance, whose primary link is there at once.
    pub(super) fn launch(
        &mut self,
        request: &RunInstances,
        reservation: &str,
        running_at: Duration,
    ) -> Result<InstanceWithEnis, ApiError> {
        let limits = self.limits_of(&request.instance_type)?;
        let eni = self.new_interface(&CreateNetworkInterface {
            groups: request.groups.clone(),
            private_ip: request.private_ip,
            want: request.want.clone(),
            want_ipv6: request.want_ipv6.clone(),
            tags: request.eni_tags.clone(),
            interface_type: InterfaceType::Interface,
            ..CreateNetworkInterface::new(request.subnet.clone())
        })?;
        let subnet = self
            .state
            .subnets
            .get(&request.subnet)
            .ok_or_else(|| ApiError::not_found(Missing::Subnet, &request.subnet))?;
        let public = request.public_ip.unwrap_or(subnet.map_public_ip);
        let instance = Instance {
            id: self.fresh("i-")?,
            instance_type: limits.name.to_owned(),
            image: request.image.clone(),
            subnet: request.subnet.clone(),
            vpc: eni.vpc.clone(),
            availability_zone: eni.availability_zone.clone(),
            primary_eni: eni.id.clone(),
            launched: self.now,
            running_at,
            terminated_at: None,
            reservation: reservation.to_owned(),
            tags: request.tags.clone(),
        };
        self.state.instances.insert(instance.id.clone(), instance.clone());
        let plug = AttachNetworkInterface { eni: eni.id.clone(), instance: instance.id.clone(), card: 0, device: 0 };
        self.plug(&plug, self.now)?;
        let association = if public {
            Some(Association { public_ip: self.fresh_public_ip()?, private_ip: eni.primary })
        } else {
            None
        };
        if let Some(eni) = self.state.enis.get_mut(&eni.id) {
            eni.association = association;
            if let Some(attachment) = &mut eni.attachment {
                attachment.delete_on_termination = true;
            }
        }
        let enis = self.state.attached(&instance.id).into_iter().cloned().collect();
        Ok(InstanceWithEnis { instance, enis })
    }

    pub(super) fn terminate_instances(&mut self, request: &TerminateInstances) -> Result<Reply, ApiError> {
        let mut ended = Vec::new();
        for id in &request.instances {
            let delay = self.settings.draw(self.settings.detach, self.random);
            ended.push(self.terminate(id, self.now.saturating_add(delay))?);
        }
        super::interface::settle(self.state, self.now);
        Ok(Reply::Terminated(ended))
    }

    fn terminate(
        &mut self,
        id: &InstanceId,
        end: Duration,
    ) -> Result<(InstanceId, super::state::InstanceState), ApiError> {
        let instance = self.state.instances.get_mut(id).ok_or_else(|| ApiError::not_found(Missing::Instance, id))?;
        let before = instance.state(self.now);
        if instance.terminated_at.is_none() {
            instance.terminated_at = Some(end);
            let attachments = self.state.enis.values_mut().filter_map(|eni| eni.attachment.as_mut());
            for attachment in attachments.filter(|attachment| attachment.instance.as_ref() == Some(id)) {
                attachment.detached_at = Some(attachment.detached_at.unwrap_or(end).min(end));
            }
        }
        Ok((id.clone(), before))
    }

    /// The lowest public address that is in use nowhere.
    pub(super) fn fresh_public_ip(&self) -> Result<Ipv4Addr, ApiError> {
        let pool = self.settings.public_pool;
        let taken = |address: Ipv4Addr| {
            self.state.enis.values().any(|eni| eni.association.is_some_and(|a| a.public_ip == address))
        };
        let free = pool.hosts().skip(9).find(|address| !taken(*address));
        free.ok_or_else(|| {
            ApiError::client("AddressLimitExceeded", format!("The pool of public addresses {pool} is used up"))
        })
    }
}
