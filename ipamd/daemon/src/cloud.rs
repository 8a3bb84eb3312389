//! The `Cloud` seam: EC2 and IMDS as ipamd needs them.
//!
//! Two implementations exist: `sluice-ipamd-ec2` on aws-sdk-ec2, and vpcsim's model in virtual time. They carry out;
//! rate limits, retries and decisions belong to the executor.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use ipnet::{Ipv4Net, Ipv6Net};
use sluice_contract::id::{AttachmentId, EniId, InstanceId, SecurityGroupId, SubnetId, VpcId};
use sluice_ipamd_core::cloud::{
    AddressCount, Assigned, CloudError, CreateEni, Ec2Eni, Ec2Subnet, ImdsEni, InstanceIdentity, InstanceLimits,
    Unassign,
};
use sluice_ipamd_core::shared::{Group, Member, VpcRoute};

/// EC2 and IMDS. Every method is one call of the API in its name (IMDS methods: as many GETs as it takes), without
/// retries.
pub trait Cloud: Send + Sync + 'static {
    /// Who this node is (IMDS).
    fn identity(&self) -> impl Future<Output = Result<InstanceIdentity, CloudError>> + Send;

    /// The attached ENIs (IMDS).
    fn imds_enis(&self) -> impl Future<Output = Result<Vec<ImdsEni>, CloudError>> + Send;

    /// The VPC's IPv4 CIDRs, `vpc-ipv4-cidr-blocks` of the primary ENI (IMDS).
    fn vpc_cidrs(&self) -> impl Future<Output = Result<Vec<Ipv4Net>, CloudError>> + Send;

    /// DescribeNetworkInterfaces by id. An id that EC2 does not know is left out of the answer.
    fn describe_enis(&self, enis: &[EniId]) -> impl Future<Output = Result<Vec<Ec2Eni>, CloudError>> + Send;

    /// DescribeNetworkInterfaces of all that are attached to `instance`, and of all that carry the tag
    /// `node.k8s.amazonaws.com/instance_id` with its id: what this node owns, attached or not.
    fn owned_enis(&self, instance: &InstanceId) -> impl Future<Output = Result<Vec<Ec2Eni>, CloudError>> + Send;

    /// DescribeNetworkInterfaces of all that carry the tag `cluster.k8s.amazonaws.com/name` with this name and are attached to
    /// nothing (`status` `available`): of all nodes, those that are gone too.
    fn unattached_enis(&self, cluster: &str) -> impl Future<Output = Result<Vec<Ec2Eni>, CloudError>> + Send;

    /// DescribeInstances: which of these EC2 has and has not terminated.
    fn living(
        &self,
        instances: &BTreeSet<InstanceId>,
    ) -> impl Future<Output = Result<BTreeSet<InstanceId>, CloudError>> + Send;

    /// The interfaces that a group may mean: DescribeInstances of those with its tags, or DescribeNetworkInterfaces of its
    /// security groups ([`Group::api`]).
    fn members(&self, group: &Group) -> impl Future<Output = Result<Vec<Member>, CloudError>> + Send;

    /// DescribeRouteTables of a VPC: the IPv4 routes of all of them. Those to prefix lists are not among them.
    fn routes(&self, vpc: &VpcId) -> impl Future<Output = Result<Vec<VpcRoute>, CloudError>> + Send;

    /// DescribeSubnets of a VPC and availability zone.
    fn subnets(
        &self,
        vpc: &VpcId,
        availability_zone: &str,
    ) -> impl Future<Output = Result<Vec<Ec2Subnet>, CloudError>> + Send;

    /// DescribeInstanceTypes, for a type that the built-in table lacks.
    fn instance_limits(&self, instance_type: &str) -> impl Future<Output = Result<InstanceLimits, CloudError>> + Send;

    /// CreateNetworkInterface.
    fn create_eni(&self, request: &CreateEni) -> impl Future<Output = Result<Ec2Eni, CloudError>> + Send;

    /// AttachNetworkInterface.
    fn attach_eni(
        &self,
        eni: &EniId,
        instance: &InstanceId,
        card: u32,
        device: u32,
    ) -> impl Future<Output = Result<AttachmentId, CloudError>> + Send;

    /// ModifyNetworkInterfaceAttribute, `Attachment.DeleteOnTermination = true`.
    fn delete_on_termination(
        &self,
        eni: &EniId,
        attachment: &AttachmentId,
    ) -> impl Future<Output = Result<(), CloudError>> + Send;

    /// ModifyNetworkInterfaceAttribute, `SecurityGroupId`: all groups of the ENI.
    fn set_groups(
        &self,
        eni: &EniId,
        groups: &[SecurityGroupId],
    ) -> impl Future<Output = Result<(), CloudError>> + Send;

    /// AssignPrivateIpAddresses.
    fn assign(&self, eni: &EniId, count: AddressCount) -> impl Future<Output = Result<Assigned, CloudError>> + Send;

    /// AssignIpv6Addresses, `Ipv6PrefixCount` 1: the new /80.
    fn assign_ipv6_prefix(&self, eni: &EniId) -> impl Future<Output = Result<Ipv6Net, CloudError>> + Send;

    /// UnassignPrivateIpAddresses.
    fn unassign(&self, eni: &EniId, what: &Unassign) -> impl Future<Output = Result<(), CloudError>> + Send;

    /// DetachNetworkInterface.
    fn detach_eni(&self, attachment: &AttachmentId) -> impl Future<Output = Result<(), CloudError>> + Send;

    /// DeleteNetworkInterface. An ENI that is gone already is success.
    fn delete_eni(&self, eni: &EniId) -> impl Future<Output = Result<(), CloudError>> + Send;

    /// CreateTags on one ENI.
    fn tag_eni(
        &self,
        eni: &EniId,
        tags: &BTreeMap<String, String>,
    ) -> impl Future<Output = Result<(), CloudError>> + Send;

    /// DescribeSubnets of one: its CIDR is needed for an ENI that IMDS does not show yet.
    fn describe_subnet(&self, subnet: &SubnetId) -> impl Future<Output = Result<Ec2Subnet, CloudError>> + Send;
}
