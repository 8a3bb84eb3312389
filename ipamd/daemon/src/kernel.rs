//! The `Kernel` seam: the host's network as ipamd needs it.
//!
//! Two implementations exist: [`host::HostKernel`] over hostnet, and a model of a host for tests. Both carry out what
//! [`desired`] says; they decide nothing.

pub mod desired;
pub mod host;
mod repair;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;
use serde::Serialize;
use sluice_contract::id::{Attachment, EniId, IfName, MacAddr};
use sluice_hostnet::branch::PodBranch;
use sluice_ipamd_core::garbage::Look;
use sluice_ipamd_core::recover::KernelView;
use tokio::time::Instant;

/// What the node's own part of the network depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeNetwork {
    /// The primary ENI's MAC address, by which its link is found.
    pub primary_mac: MacAddr,
    /// The node's address: what leaves the VPC gets it as its source.
    pub primary_ip: Ipv4Addr,
    /// Destinations within these keep pods' addresses as source.
    pub vpc_cidrs: Vec<Ipv4Net>,
    /// And within these: networks that the VPC's route tables lead to, as by a peering or a transit gateway.
    pub routed_cidrs: Vec<Ipv4Net>,
    /// The settings.
    pub config: crate::config::NetworkConfig,
}

/// What a secondary ENI's part of the network depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EniNetwork {
    /// Which ENI, for logs.
    pub eni: EniId,
    /// By which its link is found.
    pub mac: MacAddr,
    /// Its own address.
    pub primary_ip: Ipv4Addr,
    /// The subnet that it is in; its second address is the router.
    pub subnet: Ipv4Net,
    /// Its own IPv6 address, where pods have IPv6 addresses of it: the one that goes with its IPv4 address, which no pod has.
    pub ipv6: Option<Ipv6Addr>,
    /// The route table of its pods.
    pub table: u32,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is the trunk ENI, which carries branch ENIs: nothing is sent from its own address.
    pub trunk: bool,
}

/// The pods of the host as the kernel shows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pods {
    /// Their addresses.
    pub view: KernelView,
    /// Whose they are, where the alias of the host's interface tells ([`sluice_contract::node::veth`]).
    pub attachments: BTreeMap<IpAddr, Attachment>,
    /// Addresses of which only rules are left: no interface of a pod carries them.
    pub dead: BTreeSet<IpAddr>,
    /// Route tables of secondary ENIs that are gone: their rule is there, and its address is on no link. And of VLANs whose rules
    /// are there, and none of the interfaces that they name.
    pub leftovers: BTreeSet<u32>,
    /// The interfaces that are marked as an attachment's, VLANs of branch ENIs among them. Not where there are both for one
    /// attachment: such a pod's route may be in the VLAN's table, which is not looked at.
    pub marked: BTreeMap<IfName, Attachment>,
    /// Every veth of the host.
    pub veths: BTreeSet<IfName>,
}

impl Pods {
    /// The same as a look for what pods that are gone have left.
    #[must_use]
    pub fn look(&self) -> Look {
        let routed = self.view.pods.iter().filter(|(address, _)| !self.dead.contains(address));
        Look {
            routed: routed.map(|(address, dev)| (*address, dev.clone())).collect(),
            dead: self.dead.clone(),
            marked: self.marked.clone(),
        }
    }
}

/// A pod that the ledger knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNetwork {
    /// Whose it is.
    pub attachment: Attachment,
    /// The host's interface of it.
    pub dev: IfName,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The address that it has for egress alone.
    pub egress: Option<IpAddr>,
    /// The route table of what it sends.
    pub table: u32,
    /// Its branch ENI, where it has security groups of its own.
    pub branch: Option<PodBranch>,
    /// Whether its ADD ended long ago. Until then it is left alone unless it has been seen whole.
    pub settled: bool,
}

/// What others have changed.
#[derive(Debug, Clone)]
pub struct Disturbance {
    /// In words; not more than can be read.
    pub changes: Vec<String>,
    /// When the first of it was heard of.
    pub since: Instant,
}

/// A change that was made to put right what others had changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// What kind of thing: `rule`, `route`, `address`, `neighbour`, `link`, `nft` or `sysctl`.
    pub kind: &'static str,
    /// What was done.
    pub op: String,
    /// What was wrong.
    pub reason: String,
}

/// What became of the rules of a pod that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cleared {
    /// They were removed.
    Removed,
    /// There was none any more.
    Nothing,
    /// An interface of a pod carries one of the addresses, and nothing was touched.
    InUse,
}

/// What came of looking for what others had changed.
#[derive(Debug, Default)]
pub struct Repaired {
    /// What was put right.
    pub made: Vec<Repair>,
    /// What could not be.
    pub failed: Vec<KernelError>,
}

/// What the kernel did not do.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The ENI's link has not shown up: EC2 takes some seconds to plug it in.
    #[error("no link has the MAC address {0}")]
    NoLink(MacAddr),
    /// Netlink, sysctl or nft failed.
    #[error("{action} failed")]
    Failed {
        /// What was tried.
        action: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Connection tracking cannot be asked, now or later.
    #[error("this kernel has no ctnetlink (nf_conntrack_netlink)")]
    NoConntrack(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The host's network.
///
/// Every method compares before it changes: what is right already stays untouched.
pub trait Kernel: Send + Sync + 'static {
    /// Which pods' addresses live on this host.
    fn pods(&self, veth_prefix: &str) -> impl Future<Output = Result<Pods, KernelError>> + Send;

    /// Sets up what concerns all pods: sysctls, the rule of the primary ENI's mark, the nftables table.
    fn set_up_node(&self, node: &NodeNetwork) -> impl Future<Output = Result<(), KernelError>> + Send;

    /// Sets up a secondary ENI: address, route table and rule. Waits some seconds for its link to show. What another ENI has
    /// left for the same table goes.
    fn set_up_eni(&self, eni: &EniNetwork) -> impl Future<Output = Result<(), KernelError>> + Send;

    /// Takes away what [`Kernel::set_up_eni`] has made for a table and the kernel has not removed with the link.
    fn clear_table(&self, table: u32) -> impl Future<Output = Result<(), KernelError>> + Send;

    /// Takes away the rules of a pod that is gone; its host routes have gone with its interface. When an interface of a pod
    /// carries one of the addresses, nothing is touched.
    fn clear_pod(
        &self,
        addresses: &[IpAddr],
        veth_prefix: &str,
    ) -> impl Future<Output = Result<Cleared, KernelError>> + Send;

    /// Takes away the route to an address by a pod's interface that has it no longer, if the interface is still marked as the
    /// attachment's. Answers whether something was taken away.
    fn clear_route(
        &self,
        address: IpAddr,
        dev: &IfName,
        attachment: &Attachment,
    ) -> impl Future<Output = Result<bool, KernelError>> + Send;

    /// Takes away a pod's interface, if it is still marked as the attachment's and no address is routed by it. Answers whether
    /// it was taken away.
    fn clear_link(
        &self,
        dev: &IfName,
        attachment: &Attachment,
    ) -> impl Future<Output = Result<bool, KernelError>> + Send;

    /// Makes connection tracking forget all flows that name one of the addresses. Answers how many it has forgotten.
    fn forget_flows(&self, addresses: &BTreeSet<IpAddr>) -> impl Future<Output = Result<usize, KernelError>> + Send;

    /// Waits until somebody else has changed what [`Kernel::set_up_node`] and [`Kernel::set_up_eni`] have made, or a pod's part,
    /// and answers what, `not_before` a time: what is heard until then is gathered. The first call answers without a change, so that
    /// what has changed before is found.
    fn disturbed(
        &self,
        veth_prefix: &str,
        not_before: Instant,
    ) -> impl Future<Output = Result<Disturbance, KernelError>> + Send;

    /// Puts right what others have changed of what has been set up, and of the pods that stand.
    fn repair(&self, pods: &[PodNetwork]) -> impl Future<Output = Repaired> + Send;
}
