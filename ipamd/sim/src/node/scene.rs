//! What a simulated node stands in: a VPC, the subnets of its ENIs, and what the daemon would have learned of both at its start.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};
use sluice_contract::id::{InstanceId, MacAddr, SubnetId, VpcId};
use sluice_ipamd_core::cloud::{EniConfig, InstanceIdentity, InstanceLimits};
use sluice_ipamd_core::ipv6::Families;
use sluice_ipamd_core::limits;
use sluice_ipamd_core::plan::Targets;
use sluice_ipamd_core::state::{Node as Known, tag};
use sluice_vpcsim::limits::{Hypervisor, InstanceType};
use sluice_vpcsim::model::api::CreateSubnet;
use sluice_vpcsim::model::{Model, SceneInstance, Settings};

use super::{SimError, limits_of};

/// The node's availability zone.
const ZONE: &str = "us-east-1a";

/// Where the primary ENI is, and all others without custom networking.
const VPC: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 16);

/// Where an ENIConfig has its ENIs: what people add to a VPC that has run out of addresses (RFC 6598).
const OF_ENI_CONFIG: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 16);

/// Settings that are not the planner's targets, and decide all the same which ENIs pods have addresses of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Networking {
    /// `ENABLE_IPv4` and `ENABLE_IPv6`.
    pub families: Families,
    /// `AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG`: the node has an ENIConfig, and its subnet room for all ENIs.
    pub custom: bool,
    /// `ENABLE_MULTI_NIC`: ENIs of all network cards serve pods.
    pub multi_nic: bool,
    /// `ENABLE_IMDS_ONLY_MODE`: EC2 is never called.
    pub imds_only: bool,
}

/// A VPC with an instance in it.
pub(super) struct Scene {
    pub(super) model: Model,
    pub(super) instance: InstanceId,
    pub(super) known: Known,
    pub(super) config: Option<EniConfig>,
}

/// A type that the model's own table lacks. What is leaked is a few bytes a call.
fn further_type(instance_type: &str) -> Option<&'static InstanceType> {
    let row = limits::find(instance_type)?;
    let hypervisor = match row.hypervisor {
        limits::Hypervisor::Nitro => Hypervisor::Nitro,
        limits::Hypervisor::Xen => Hypervisor::Xen,
        limits::Hypervisor::Metal => Hypervisor::None,
    };
    Some(Box::leak(Box::new(InstanceType {
        name: row.name,
        cards: Vec::leak(row.enis_per_card),
        ipv4_per_eni: row.ipv4_per_eni,
        ipv6_per_eni: row.ipv6_per_eni,
        hypervisor,
        vcpus: 0,
        memory_mib: 0,
        architecture: "x86_64",
        efa: false,
    })))
}

/// A subnet of `cidr` with room for twice what the node can hold, with the `index`-th /64 of the VPC where `ipv6` is that.
fn subnet(
    model: &mut Model,
    vpc: &VpcId,
    cidr: Ipv4Net,
    length: u8,
    ipv6: Option<Ipv6Net>,
    index: u128,
) -> Result<SubnetId, SimError> {
    let ipv6_cidr = ipv6.map(|net| {
        let first = net.network().to_bits() | (index << 64);
        Ipv6Net::new_assert(first.into(), 64)
    });
    let request = CreateSubnet {
        vpc: vpc.clone(),
        cidr: Ipv4Net::new_assert(cidr.network(), length),
        ipv6_cidr,
        availability_zone: Some(ZONE.to_owned()),
        tags: BTreeMap::new(),
    };
    model.add_subnet(&request, false).map_err(SimError::Scene)
}

impl Scene {
    /// Sets it up.
    pub(super) fn new(
        instance_type: &str,
        networking: Networking,
        targets: &Targets,
        mut settings: Settings,
    ) -> Result<Self, SimError> {
        let limits = limits_of(instance_type)?;
        if settings.instance_type(instance_type).is_none() {
            settings.further_types.extend(further_type(instance_type));
        }
        let mut model = Model::new(settings);
        let enis = limits.further_cards.iter().filter(|_| networking.multi_nic).fold(limits.enis, |all, of| all + of);
        let most = enis.saturating_mul(limits.ipv4_per_eni).saturating_mul(if targets.prefixes { 32 } else { 2 });
        let length = (16..=20u8).rev().find(|length| 1u32 << (32 - length) >= most.saturating_add(16)).unwrap_or(16);
        let cidrs: Vec<Ipv4Net> = [VPC].into_iter().chain(networking.custom.then_some(OF_ENI_CONFIG)).collect();
        // As AWS gives them: a /56 for a VPC, a /64 of it for a subnet.
        let ipv6 = Ipv6Net::new_assert([0x2600, 0x1f14, 0x5e8, 0x9000, 0, 0, 0, 0].into(), 56);
        let ipv6 = networking.families.has_v6().then_some(ipv6);
        let vpc = model.add_vpc(&cidrs, ipv6, BTreeMap::new()).map_err(SimError::Scene)?;
        let own = subnet(&mut model, &vpc, VPC, length, ipv6, 0)?;
        let config = if networking.custom {
            let subnet = subnet(&mut model, &vpc, OF_ENI_CONFIG, length, ipv6, 1)?;
            Some(EniConfig { name: "default".to_owned(), subnet, security_groups: Vec::new() })
        } else {
            None
        };
        let instance = SceneInstance {
            instance_type: instance_type.to_owned(),
            subnet: own,
            private_ip: None,
            public_ip: false,
            tags: BTreeMap::new(),
        };
        let instance = model.add_instance(&instance).map_err(SimError::Scene)?;
        let known = known(&model, &instance, instance_type, vpc, limits, cidrs, networking, targets);
        Ok(Self { model, instance, known, config })
    }
}

#[expect(clippy::too_many_arguments, reason = "it is what the daemon learns at its start, put together once")]
fn known(
    model: &Model,
    instance: &InstanceId,
    instance_type: &str,
    vpc: VpcId,
    limits: InstanceLimits,
    vpc_cidrs: Vec<Ipv4Net>,
    networking: Networking,
    targets: &Targets,
) -> Known {
    let primary = model.state().attached(instance).first().map(|eni| (eni.mac, eni.groups.clone()));
    let (primary_mac, security_groups) = primary.unwrap_or((MacAddr([0; 6]), Vec::new()));
    Known {
        identity: InstanceIdentity {
            instance: instance.clone(),
            instance_type: instance_type.to_owned(),
            availability_zone: ZONE.to_owned(),
            region: model.settings().region.clone(),
            primary_mac,
            vpc,
        },
        limits,
        vpc_cidrs,
        security_groups,
        tags: BTreeMap::from([(tag::INSTANCE.to_owned(), instance.to_string())]),
        manage_untagged_enis: true,
        families: networking.families,
        custom_networking: networking.custom,
        subnet_discovery: targets.subnet_discovery,
        imds_only: networking.imds_only,
        multi_nic: networking.multi_nic,
    }
}
