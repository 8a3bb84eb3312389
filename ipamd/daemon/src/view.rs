//! A picture of the state for people and programs: what the introspection port shows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;
use sluice_contract::id::{EniId, IfName, MacAddr, PodRef, SubnetId, VlanId};
use sluice_contract::node::branch::{self, Mode};
use sluice_ipamd_core::branch::Held;
use sluice_ipamd_core::ipv6::Families;
use sluice_ipamd_core::ledger::{AddressState, Block, Eni, Role, Stage};
use sluice_ipamd_core::plan::{Capacity, Cause, Hopeless, Outlook, Plan, Targets};
use sluice_ipamd_core::state::State;
use sluice_ipamd_core::time::Timestamp;

use crate::metrics::PoolGauges;

/// The state at one moment. Container ids are left out: who knows one could ask for its address to be taken back.
#[derive(Debug, Clone, Serialize)]
pub struct View {
    /// When, RFC 3339.
    pub at: String,
    /// Whether pods could be started at some time since the boot.
    pub ready: bool,
    /// The instance and what its type can hold; none before it is known.
    pub node: Option<NodeView>,
    /// The pool in numbers.
    pub pool: PoolGauges,
    /// Addresses that the ENIs of each network card have for pods, and those of them that pods hold.
    pub cards: BTreeMap<u32, (u32, u32)>,
    /// ENIs by id.
    pub enis: BTreeMap<EniId, EniView>,
    /// Operations under way.
    pub under_way: Vec<String>,
    /// Creates that have been begun and not ended, by client token.
    pub intents: Vec<String>,
    /// Why the pool does not grow although it should.
    pub held_up: Option<String>,
    /// APIs that are not called for now, and EC2's words.
    pub obstacles: BTreeMap<String, String>,
    /// Addresses alive in the kernel that no known ENI has.
    pub strays: Vec<IpAddr>,
    /// Pods that have branch ENIs, by their ids.
    pub branches: BTreeMap<EniId, BranchView>,
}

/// A branch ENI that a pod has.
#[derive(Debug, Clone, Serialize)]
pub struct BranchView {
    /// Whose it is.
    pub pod: PodRef,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its VLAN on the trunk ENI's link.
    pub vlan: VlanId,
    /// Route table.
    pub table: u32,
    /// How its security groups are enforced.
    pub mode: Mode,
    /// The host's interface of the pod.
    pub host_ifname: IfName,
    /// Since when, RFC 3339.
    pub at: String,
}

impl BranchView {
    fn of(held: &Held) -> Self {
        Self {
            pod: held.owner.pod.clone(),
            addresses: held.addresses.iter().map(|(ip, _)| *ip).collect(),
            vlan: held.vlan,
            table: branch::table(held.vlan),
            mode: held.mode,
            host_ifname: held.owner.host_ifname.clone(),
            at: held.since.to_string(),
        }
    }
}

/// The node.
#[derive(Debug, Clone, Serialize)]
pub struct NodeView {
    /// Its instance id.
    pub instance: String,
    /// Its type.
    pub instance_type: String,
    /// Its zone.
    pub availability_zone: String,
    /// ENIs that the type allows on its first network card.
    pub max_enis: u32,
    /// Whether `MAX_ENI` allows fewer.
    pub limited_by_setting: bool,
    /// Whether prefixes would hold more: they are off, and the type takes them.
    pub prefixes_would_help: bool,
    /// How many pods the kubelet takes, once the node's object has said so (`status.capacity.pods`).
    pub max_pods: Option<u32>,
    /// Network cards whose ENIs serve pods.
    pub cards: Vec<u32>,
    /// Addresses an ENI that the type allows, its own among them.
    pub addresses_per_eni: u32,
    /// CIDRs of the VPC.
    pub vpc_cidrs: Vec<Ipv4Net>,
    /// Which addresses pods have.
    pub families: Families,
}

/// An ENI.
#[derive(Debug, Clone, Serialize)]
pub struct EniView {
    /// Its MAC address.
    pub mac: MacAddr,
    /// Network card.
    pub card: u32,
    /// Device number; none while it is not attached.
    pub device: Option<u32>,
    /// Route table of its pods.
    pub table: Option<u32>,
    /// Its subnet.
    pub subnet: SubnetId,
    /// Its own address.
    pub primary_ip: Ipv4Addr,
    /// What it is to the node.
    pub role: Role,
    /// Where it is in its life.
    pub stage: Stage,
    /// Prefixes and secondary addresses, and the addresses in them.
    /// Those of IPv6 are listed only where something is to tell of them: there are more than a thousand.
    pub blocks: BTreeMap<IpNet, BTreeMap<IpAddr, AddressView>>,
    /// The /80 that pods' IPv6 addresses are of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Net>,
}

/// An address.
#[derive(Debug, Clone, Serialize)]
pub struct AddressView {
    /// free, assigned, cooling or quarantined.
    pub state: &'static str,
    /// Since when it is assigned or in quarantine; until when it cools.
    pub at: String,
    /// Who has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// The IPv6 address that the pod has beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Addr>,
    /// By which host interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_ifname: Option<IfName>,
}

impl AddressView {
    fn of(address: &AddressState, now: Timestamp) -> Self {
        let (owner, ipv6) = match address {
            AddressState::Assigned { owner, ipv6, .. } => (Some(owner), *ipv6),
            _ => (None, None),
        };
        let (state, at) = match address {
            AddressState::Cooling { until } if *until <= now => ("free", until),
            AddressState::Cooling { until } => ("cooling", until),
            AddressState::Free { since }
            | AddressState::Assigned { since, .. }
            | AddressState::Quarantined { since } => (address.name(), since),
        };
        Self {
            state,
            at: at.to_string(),
            ipv6,
            pod: owner.map(|owner| owner.pod.clone()),
            host_ifname: owner.map(|owner| owner.host_ifname.clone()),
        }
    }
}

impl EniView {
    fn of(eni: &Eni, now: Timestamp) -> Self {
        let views = |addresses: &BTreeMap<IpAddr, AddressState>| {
            let told = addresses.iter().filter(|(address, state)| address.is_ipv4() || state.name() != "free");
            told.map(|(address, state)| (*address, AddressView::of(state, now))).collect()
        };
        Self {
            mac: eni.mac,
            card: eni.card,
            device: eni.device,
            table: eni.table(),
            subnet: eni.subnet.clone(),
            primary_ip: eni.primary_ip,
            role: eni.role,
            stage: eni.stage,
            blocks: eni.blocks.iter().map(|(net, block)| (*net, views(&block.addresses))).collect(),
            ipv6: eni.ipv6.map(|ipv6| ipv6.net),
        }
    }
}

/// The pool in numbers.
pub(crate) fn gauges(
    state: &State,
    targets: &Targets,
    capacity: &Capacity,
    waiting: u32,
    violations: u32,
    now: Timestamp,
) -> PoolGauges {
    let tally = state.ledger().tally(now);
    let assigned_by_eni = state
        .ledger()
        .enis()
        .map(|eni| (eni.id.to_string(), eni.count(|state| matches!(state, AddressState::Assigned { .. }))))
        .collect();
    let in_block = |(net, block): (&IpNet, &Block)| {
        let held = block.addresses.values().filter(|state| matches!(state, AddressState::Assigned { .. })).count();
        (held > 0).then(|| (net.to_string(), u32::try_from(held).unwrap_or(u32::MAX)))
    };
    let assigned_by_cidr = state.ledger().enis().flat_map(|eni| &eni.blocks).filter_map(in_block).collect();
    let free_by_subnet =
        state.subnets().iter().filter_map(|(id, subnet)| Some((id.to_string(), subnet.available?))).collect();
    PoolGauges {
        enis: tally.enis,
        max_enis: capacity.enis,
        max_addresses: capacity.addresses,
        total: tally.total(),
        free: tally.free,
        assigned: tally.assigned,
        cooling: tally.cooling,
        quarantined: tally.quarantined,
        pending: tally.pending,
        prefixes: tally.prefixes,
        waiting,
        flights: u32::try_from(state.flights().len()).unwrap_or(u32::MAX),
        violations,
        assigned_by_eni,
        assigned_by_cidr,
        free_by_subnet,
        subnets_seen: state.subnets_at().map(|at| now.since(at).as_secs()),
        without_prefixes: without_prefixes(state, targets).map(ToString::to_string).collect(),
    }
}

/// The subnets that had no whole /28 when EC2 was last asked for one, where prefixes are wanted.
pub(crate) fn without_prefixes<'s>(state: &'s State, targets: &Targets) -> impl Iterator<Item = &'s SubnetId> {
    let lacking = state.subnets().iter().filter(|(_, subnet)| subnet.lacks_prefixes());
    let wanted = targets.prefixes;
    lacking.filter(move |_| wanted).map(|(id, _)| id)
}

/// Why the pool does not grow: in words that name the network cards, where they are further ones.
fn held_up(plan: &Plan) -> Option<String> {
    let cause = |hopeless: Option<&Hopeless>, held_up: Option<&Cause>| {
        hopeless.map(|hopeless| hopeless.cause.to_string()).or_else(|| held_up.map(ToString::to_string))
    };
    let mut further: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (card, Outlook { hopeless, held_up }) in &plan.further {
        if let Some(cause) = cause(hopeless.as_ref(), held_up.as_ref()) {
            further.entry(cause).or_default().push(card.to_string());
        }
    }
    let further = further.into_iter().map(|(cause, cards)| {
        let noun = if cards.len() == 1 { "card" } else { "cards" };
        format!("network {noun} {}: {cause}", cards.join(", "))
    });
    let all: Vec<String> = cause(plan.hopeless.as_ref(), plan.held_up.as_ref()).into_iter().chain(further).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

fn cards(state: &State, now: Timestamp) -> BTreeMap<u32, (u32, u32)> {
    let cards: BTreeSet<u32> = state.ledger().enis().map(|eni| eni.card).collect();
    let tallies = cards.into_iter().map(|card| (card, state.ledger().tally_of(card, now)));
    tallies.map(|(card, tally)| (card, (tally.total(), tally.assigned))).collect()
}

/// The picture.
pub(crate) fn view(
    state: &State,
    plan: &Plan,
    ready: bool,
    pool: PoolGauges,
    capacity: &Capacity,
    now: Timestamp,
) -> View {
    View {
        at: now.to_string(),
        ready,
        node: state.node().map(|node| NodeView {
            instance: node.identity.instance.to_string(),
            instance_type: node.identity.instance_type.clone(),
            availability_zone: node.identity.availability_zone.clone(),
            max_enis: node.limits.enis,
            limited_by_setting: capacity.by_setting,
            prefixes_would_help: capacity.prefixes_would_help,
            max_pods: state.max_pods(),
            cards: state.cards(),
            addresses_per_eni: node.limits.ipv4_per_eni,
            vpc_cidrs: node.vpc_cidrs.clone(),
            families: node.families,
        }),
        pool,
        cards: cards(state, now),
        enis: state.ledger().enis().map(|eni| (eni.id.clone(), EniView::of(eni, now))).collect(),
        under_way: state.flights().values().map(ToString::to_string).collect(),
        intents: state.intents().keys().cloned().collect(),
        held_up: held_up(plan),
        obstacles: state
            .obstacles()
            .iter()
            .filter(|(_, obstacle)| obstacle.until > now)
            .map(|(api, obstacle)| (api.to_string(), obstacle.message.clone()))
            .collect(),
        strays: state.ledger().strays().iter().copied().collect(),
        branches: state.branches().map(|held| (held.eni.clone(), BranchView::of(held))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cards_that_do_not_grow_are_named() {
        let mut plan = Plan::default();
        assert_eq!(held_up(&plan), None);
        let stuck = Outlook { hopeless: None, held_up: Some(Cause::NoSubnet) };
        plan.further = BTreeMap::from([(1, stuck.clone()), (2, Outlook::default()), (3, stuck)]);
        let further = "network cards 1, 3: no subnet in the node's zone is tagged for new ENIs";
        assert_eq!(held_up(&plan).unwrap(), further);
        plan.held_up = Some(Cause::NoEniConfig);
        assert_eq!(held_up(&plan).unwrap(), format!("no ENIConfig is known for this node; {further}"));
    }
}
