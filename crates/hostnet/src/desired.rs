//! What should be in a network namespace, and what of it is ours to change.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sluice_contract::id::IfName;

use crate::state::{
    Address, Family, Neighbour, NftRuleset, NftTableId, Protocol, Route, RtScope, Rule, Sysctl, SysctlKey,
};

/// What a link should be like. A field that is none stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LinkSettings {
    /// The link.
    pub dev: IfName,
    /// Whether it should be up.
    pub up: Option<bool>,
    /// Its MTU in bytes.
    pub mtu: Option<u32>,
}

/// Devices, by name or by the start of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Devices {
    /// One device.
    Named(IfName),
    /// Every device whose name starts so.
    Prefixed(String),
    /// Every device, and routes without one.
    Any,
}

impl Devices {
    /// Whether `dev` is meant.
    #[must_use]
    pub fn contains(&self, dev: Option<&IfName>) -> bool {
        match (self, dev) {
            (Self::Any, _) => true,
            (Self::Named(name), Some(dev)) => name == dev,
            (Self::Prefixed(prefix), Some(dev)) => dev.as_str().starts_with(prefix.as_str()),
            (_, None) => false,
        }
    }
}

/// Routes that are ours to delete when they are not desired.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RouteScope {
    /// The table.
    pub table: u32,
    /// The family.
    pub family: Family,
    /// The devices that they leave by.
    pub devices: Devices,
    /// Who made them; none means anybody.
    pub protocols: Option<BTreeSet<Protocol>>,
}

impl RouteScope {
    /// A whole table of one family.
    #[must_use]
    pub const fn table(table: u32, family: Family) -> Self {
        Self { table, family, devices: Devices::Any, protocols: None }
    }

    /// What leaves by some devices in one table.
    #[must_use]
    pub const fn devices(table: u32, family: Family, devices: Devices) -> Self {
        Self { table, family, devices, protocols: None }
    }

    /// Whether `route` is within.
    #[must_use]
    pub fn contains(&self, route: &Route) -> bool {
        self.table == route.table
            && self.family == route.family()
            && self.devices.contains(route.dev.as_ref())
            && self.protocols.as_ref().is_none_or(|protocols| protocols.contains(&route.protocol))
    }
}

/// Rules that are ours to delete when they are not desired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleScope {
    /// The family.
    pub family: Family,
    /// The priority.
    pub priority: u32,
    /// The table they lead to; none means any.
    pub table: Option<u32>,
}

impl RuleScope {
    /// Every rule of a priority.
    #[must_use]
    pub const fn priority(family: Family, priority: u32) -> Self {
        Self { family, priority, table: None }
    }

    /// Whether `rule` is within.
    #[must_use]
    pub fn contains(&self, rule: &Rule) -> bool {
        self.family == rule.family
            && self.priority == rule.priority
            && self.table.is_none_or(|table| table == rule.table)
    }
}

/// What is ours: a plan deletes only what is in here. What is desired is made wherever it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Interfaces whose global addresses are ours. Link-local addresses are the kernel's.
    pub addresses: BTreeSet<IfName>,
    /// Routes that are ours.
    pub routes: BTreeSet<RouteScope>,
    /// Rules that are ours.
    pub rules: BTreeSet<RuleScope>,
    /// Interfaces whose permanent and proxy neighbours are ours.
    pub neighbours: BTreeSet<IfName>,
    /// nftables tables that are ours.
    pub nft: BTreeSet<NftTableId>,
}

impl Scope {
    /// Whether an address is ours to delete.
    #[must_use]
    pub fn owns_address(&self, address: &Address) -> bool {
        address.scope == RtScope::Global && self.addresses.contains(&address.dev)
    }

    /// Whether a route is ours to delete.
    #[must_use]
    pub fn owns_route(&self, route: &Route) -> bool {
        self.routes.iter().any(|scope| scope.contains(route))
    }

    /// Whether a rule is ours to delete.
    #[must_use]
    pub fn owns_rule(&self, rule: &Rule) -> bool {
        self.rules.iter().any(|scope| scope.contains(rule))
    }

    /// Whether a neighbour is ours to delete.
    #[must_use]
    pub fn owns_neighbour(&self, neighbour: &Neighbour) -> bool {
        self.neighbours.contains(&neighbour.dev)
    }
}

/// What should be there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// What is ours to delete.
    pub scope: Scope,
    /// Links. They must exist: a plan makes none.
    pub links: Vec<LinkSettings>,
    /// Addresses.
    pub addresses: Vec<Address>,
    /// Routes.
    pub routes: Vec<Route>,
    /// Rules.
    pub rules: Vec<Rule>,
    /// Neighbours.
    pub neighbours: Vec<Neighbour>,
    /// Sysctls.
    pub sysctls: Vec<Sysctl>,
    /// nftables tables.
    pub nft: Vec<NftRuleset>,
}

/// Which parts of a namespace to look at. Each part costs a dump (or a read); what is not named is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Families whose addresses are read.
    pub addresses: BTreeSet<Family>,
    /// Tables whose routes are read.
    pub routes: BTreeSet<(Family, u32)>,
    /// Families whose rules are read.
    pub rules: BTreeSet<Family>,
    /// Families whose permanent and proxy neighbours are read.
    pub neighbours: BTreeSet<Family>,
    /// Sysctls that are read.
    pub sysctls: BTreeSet<SysctlKey>,
    /// nftables tables that are read.
    pub nft: BTreeSet<NftTableId>,
}

impl Desired {
    /// What has to be looked at to plan for this: links always, and what else is named here.
    #[must_use]
    pub fn view(&self) -> View {
        let routes = self.routes.iter().map(|route| (route.family(), route.table));
        let promotable = self.scope.addresses.iter().filter_map(|dev| {
            // plan() may want to know it before it deletes an address.
            SysctlKey::of_interface(Family::V4, dev, "promote_secondaries").ok()
        });
        let both = |wanted: bool| if wanted { BTreeSet::from(Family::ALL) } else { BTreeSet::new() };
        View {
            addresses: both(!self.addresses.is_empty() || !self.scope.addresses.is_empty()),
            routes: self.scope.routes.iter().map(|scope| (scope.family, scope.table)).chain(routes).collect(),
            rules: (self.scope.rules.iter().map(|scope| scope.family))
                .chain(self.rules.iter().map(|rule| rule.family))
                .collect(),
            neighbours: both(!self.neighbours.is_empty() || !self.scope.neighbours.is_empty()),
            sysctls: self.sysctls.iter().map(|sysctl| sysctl.key.clone()).chain(promotable).collect(),
            nft: self.scope.nft.iter().cloned().chain(self.nft.iter().map(|ruleset| ruleset.id.clone())).collect(),
        }
    }
}
