//! What the ledger keeps of an ENI, of a block of addresses and of one address.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use sluice_contract::id::{Attachment, AttachmentId, EniId, IfName, MacAddr, PodRef, SecurityGroupId, SubnetId};

use crate::cloud::{ConnectionTracking, InterfaceType};
use crate::ipv6::{self, Delegation};
use crate::time::Timestamp;

/// Who holds an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The sandbox's attachment.
    pub attachment: Attachment,
    /// The pod behind it.
    pub pod: PodRef,
    /// The host's interface of the pod.
    pub host_ifname: IfName,
    /// Path of the sandbox's network namespace.
    pub netns: String,
}

/// The state of one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressState {
    /// A pod may have it.
    Free {
        /// Since when.
        since: Timestamp,
    },
    /// A pod has it.
    Assigned {
        /// Whose it is.
        owner: Arc<Owner>,
        /// The IPv6 address that the pod has with it, where pods have both families.
        ipv6: Option<Ipv6Addr>,
        /// Since when.
        since: Timestamp,
    },
    /// A pod had it not long ago, and others may still send to it.
    Cooling {
        /// From then on it is free.
        until: Timestamp,
    },
    /// It is alive in the kernel, and no attachment is known to have it: not to be handed out until it is gone.
    Quarantined {
        /// Since when.
        since: Timestamp,
    },
}

impl AddressState {
    /// From when on a pod may have the address, if no more happens to it.
    #[must_use]
    pub const fn available_from(&self) -> Option<Timestamp> {
        match self {
            Self::Free { since } => Some(*since),
            Self::Cooling { until } => Some(*until),
            Self::Assigned { .. } | Self::Quarantined { .. } => None,
        }
    }

    /// Whether a pod may have the address now.
    #[must_use]
    pub fn is_available(&self, now: Timestamp) -> bool {
        self.available_from().is_some_and(|from| matches!(self, Self::Free { .. }) || from <= now)
    }

    /// Whether it lives in the kernel, as far as is known.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        matches!(self, Self::Assigned { .. } | Self::Quarantined { .. })
    }

    /// The state's name as it stands in logs and on the introspection port.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Free { .. } => "free",
            Self::Assigned { .. } => "assigned",
            Self::Cooling { .. } => "cooling",
            Self::Quarantined { .. } => "quarantined",
        }
    }
}

/// A secondary address (/32) or a prefix (/28) of an ENI, or its /80 where pods have IPv6 alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// When it came into the ledger.
    pub added: Timestamp,
    /// Whether it is being given back to EC2, or EC2 says that it is gone: no pod may have addresses of it any more.
    pub withdrawn: bool,
    /// Whether all that speaks for it is one description that may have been late ([`crate::state::Event::Surveyed`] after a
    /// lost checkpoint): no pod gets addresses of it before EC2 has shown it again.
    pub hearsay: bool,
    /// Every address of it that pods may have ([`ipv6::hosts`]).
    pub addresses: BTreeMap<IpAddr, AddressState>,
}

impl Block {
    /// The addresses of a block that pods may have.
    pub fn hosts(net: IpNet) -> impl Iterator<Item = IpAddr> {
        ipv6::hosts(net)
    }

    /// Whether its ENI may give addresses of it to pods.
    #[must_use]
    pub const fn is_offered(&self) -> bool {
        !self.withdrawn && !self.hearsay
    }

    /// An address of it that stands against giving the block back, and its state.
    #[must_use]
    pub fn in_use(&self, now: Timestamp) -> Option<(IpAddr, &'static str)> {
        self.addresses
            .iter()
            .find(|(_, state)| !state.is_available(now))
            .map(|(address, state)| (*address, state.name()))
    }
}

/// What an ENI is to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Device 0: the node's own address is on it. Never freed.
    Primary,
    /// Made for pods by this daemon or one like it; freed when it is not needed.
    Secondary,
    /// Somebody else's (`node.k8s.amazonaws.com/no_manage`): it takes a place on the instance, and is let alone.
    Unmanaged,
}

/// Where an ENI is in its life. Each step is recorded before the next one is taken, so that it goes on after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It exists and is attached to nothing. Next: attach.
    Created,
    /// It is attached; the host has not set it up. Next: its link shows, addresses, routes and rules are put in place.
    Attached,
    /// Pods may have its addresses.
    InService,
    /// It is being freed. Next: detach, then delete.
    Leaving,
}

/// An ENI of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eni {
    /// Its id.
    pub id: EniId,
    /// Its MAC address, by which its link is found.
    pub mac: MacAddr,
    /// Network card.
    pub card: u32,
    /// Device number on the card; none before it is attached.
    pub device: Option<u32>,
    /// The subnet that it is in.
    pub subnet: SubnetId,
    /// That subnet's CIDR; its second address is the router. The ENI's own address as /32 until EC2 has described the
    /// subnet: the host cannot set the ENI up before.
    pub subnet_cidr: Ipv4Net,
    /// Its own address, which no pod gets.
    pub primary_ip: Ipv4Addr,
    /// Its security groups, as EC2 last told them.
    pub security_groups: Vec<SecurityGroupId>,
    /// What the primary ENI hands down to those that are made beside it; not kept over a restart, since EC2 is asked first.
    pub connection_tracking: Option<ConnectionTracking>,
    /// Tags of ENIs of this node that EC2 does not show on it, or with another value.
    pub missing_tags: BTreeMap<String, String>,
    /// What EC2 says that it is.
    pub interface_type: InterfaceType,
    /// What it is to this node.
    pub role: Role,
    /// Whether no pod gets an address of it any more: the primary ENI with custom networking, and ENIs in subnets that are
    /// tagged out of use. Pods that have one keep it, and what they leave is given back.
    pub closed: bool,
    /// Where it is in its life.
    pub stage: Stage,
    /// When it came into the ledger.
    pub since: Timestamp,
    /// Its attachment, once known; IMDS does not tell it.
    pub attachment: Option<AttachmentId>,
    /// Whether EC2 deletes it with the instance.
    pub delete_on_termination: bool,
    /// Whether a call may have changed it without our knowing: EC2 has to be asked before the next change.
    pub unsure: bool,
    /// Nothing is tried on it before then; set after a failure that concerns it alone.
    pub not_before: Option<Timestamp>,
    /// EC2 is to be asked once more then: what a call without an answer has done may show late.
    pub recheck: Option<Timestamp>,
    /// When EC2 last described it.
    pub confirmed: Option<Timestamp>,
    /// The /80 that pods' IPv6 addresses are of, where pods have IPv6.
    pub ipv6: Option<Delegation>,
    /// Secondary addresses and prefixes.
    pub blocks: BTreeMap<IpNet, Block>,
    /// Blocks that were given back, and when: EC2 and IMDS may show them for a while yet.
    pub departed: BTreeMap<IpNet, Timestamp>,
}

/// How long an answer of EC2 about an ENI holds against IMDS.
const CONFIRMATION_HOLDS: Duration = Duration::from_secs(300);

impl Eni {
    /// Whether a difference between IMDS and the ledger is worth a call: not while IMDS may merely be late, nor when EC2
    /// has answered not long ago.
    #[must_use]
    pub fn may_be_asked_about(&self, now: Timestamp) -> bool {
        let changed = self.blocks.values().map(|block| block.added).max().map_or(self.since, |at| at.max(self.since));
        let settled = now.since(changed) > crate::state::SETTLE;
        settled && self.confirmed.is_none_or(|at| now.since(at) > CONFIRMATION_HOLDS)
    }

    /// Whether its subnet's CIDR is known, without which the host cannot set it up.
    #[must_use]
    pub const fn is_subnet_known(&self) -> bool {
        self.subnet_cidr.prefix_len() < 32
    }

    /// Whether pods may have its addresses now.
    #[must_use]
    pub fn takes_pods(&self) -> bool {
        self.stage == Stage::InService && self.carries_pods()
    }

    /// Whether pods may have its addresses once it is in service.
    #[must_use]
    pub fn carries_pods(&self) -> bool {
        self.is_of_pods() && !self.closed
    }

    /// Whether it is of a kind whose addresses pods may have or, if it is closed, may have had.
    #[must_use]
    pub fn is_of_pods(&self) -> bool {
        self.role != Role::Unmanaged && matches!(self.interface_type, InterfaceType::Interface | InterfaceType::Efa)
    }

    /// Whether the daemon may ever free it.
    #[must_use]
    pub fn may_be_freed(&self) -> bool {
        self.role == Role::Secondary && self.interface_type == InterfaceType::Interface
    }

    /// An address of it that stands against freeing the ENI, and its state.
    #[must_use]
    pub fn in_use(&self, now: Timestamp) -> Option<(IpAddr, &'static str)> {
        self.blocks.values().find_map(|block| block.in_use(now))
    }

    /// Whether pods live on it, as far as is known.
    #[must_use]
    pub fn has_pods(&self) -> bool {
        self.blocks.values().flat_map(|block| block.addresses.values()).any(AddressState::is_live)
    }

    /// Whether EC2 has shown it unattached while pods lived on it: for them it keeps its device number, by which their packets
    /// are routed.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        self.may_be_freed() && self.device.is_some() && self.attachment.is_none()
    }

    /// How many of its places for IPv4 addresses and prefixes are taken.
    #[must_use]
    pub fn places_taken(&self) -> u32 {
        u32::try_from(self.blocks.keys().filter_map(ipv6::pooled).count()).unwrap_or(u32::MAX)
    }

    /// The IPv6 address that a pod has with the IPv4 address `address` of this ENI.
    #[must_use]
    pub fn companion(&self, address: IpAddr) -> Option<Ipv6Addr> {
        match address {
            IpAddr::V4(address) => self.ipv6.map(|ipv6| ipv6::companion(ipv6.net, address)),
            IpAddr::V6(_) => None,
        }
    }

    /// How many of its addresses `matches` holds for.
    pub fn count(&self, matches: impl Fn(&AddressState) -> bool) -> u32 {
        let count =
            self.blocks.values().flat_map(|block| block.addresses.values()).filter(|state| matches(state)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// The route table by which its pods' packets leave; none before it is attached, and none at a place that has no table.
    #[must_use]
    pub fn table(&self) -> Option<u32> {
        self.device.and_then(|device| sluice_contract::node::route_table(self.card, device))
    }
}
