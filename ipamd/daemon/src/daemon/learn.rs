//! Who this node is: what IMDS tells, what the table or EC2 says of its type, and the settings.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::Ipv4Net;
use sluice_contract::id::SecurityGroupId;
use sluice_ipamd_core::cloud::{Api, CloudError, CloudErrorKind, ImdsEni, InstanceIdentity, InstanceLimits};
use sluice_ipamd_core::limits::{largest, limits};
use sluice_ipamd_core::op::Failure;
use sluice_ipamd_core::state::{Node, tag};

use crate::cloud::Cloud;
use crate::config::Config;
use crate::executor::Executor;

/// What IMDS tells.
#[derive(Debug)]
pub(super) struct Learnt {
    pub(super) identity: InstanceIdentity,
    pub(super) limits: InstanceLimits,
    pub(super) enis: Vec<ImdsEni>,
    pub(super) vpc_cidrs: Vec<Ipv4Net>,
}

/// The node as IMDS and the settings have it.
pub(super) fn node(
    config: &Config,
    identity: InstanceIdentity,
    limits: InstanceLimits,
    vpc_cidrs: Vec<Ipv4Net>,
    security_groups: Vec<SecurityGroupId>,
) -> Node {
    let pool = &config.pool;
    let mut tags: BTreeMap<String, String> = pool.additional_tags.clone();
    tags.insert(tag::INSTANCE.to_owned(), identity.instance.to_string());
    if let Some(cluster) = &pool.cluster_name {
        tags.insert(tag::CLUSTER.to_owned(), cluster.clone());
        tags.insert(tag::OWNER.to_owned(), tag::OWNER_VPC_CNI.to_owned());
    }
    Node {
        identity,
        limits,
        vpc_cidrs,
        security_groups,
        tags,
        manage_untagged_enis: pool.manage_untagged_eni,
        families: config.network.families,
        custom_networking: pool.custom_networking.is_some(),
        subnet_discovery: pool.subnet_discovery,
        imds_only: pool.imds_only,
        multi_nic: pool.multi_nic,
    }
}

/// Asks IMDS; what does not change is asked once.
pub(super) async fn learn<C: Cloud>(
    executor: &Executor<C>,
    known: Option<(InstanceIdentity, InstanceLimits)>,
    imds_only: bool,
) -> Result<Learnt, Failure> {
    let cloud = executor.cloud();
    let (identity, limits) = match known {
        Some(known) => known,
        None => {
            let identity = executor.call(Api::Imds, cloud.identity()).await?;
            let limits = match limits(&identity.instance_type) {
                Some(limits) => limits,
                None if imds_only => largest(),
                None => {
                    let asked = cloud.instance_limits(&identity.instance_type);
                    executor.call(Api::DescribeInstanceTypes, asked).await?
                }
            };
            (identity, limits)
        }
    };
    let vpc_cidrs = executor.call(Api::Imds, cloud.vpc_cidrs()).await?;
    if vpc_cidrs.is_empty() {
        // To believe it would be to translate all traffic inside the VPC.
        return Err(Failure { error: no_cidrs(), retry_after: Duration::from_secs(2) });
    }
    let enis = executor.call(Api::Imds, cloud.imds_enis()).await?;
    Ok(Learnt { identity, limits, enis, vpc_cidrs })
}

fn no_cidrs() -> CloudError {
    CloudError {
        api: Api::Imds,
        kind: CloudErrorKind::Other,
        code: "NoVpcCidr".to_owned(),
        message: "IMDS lists no CIDR of the VPC".to_owned(),
        retry_after: None,
    }
}
