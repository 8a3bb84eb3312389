//! The host's side of a pod with a branch ENI ([`sluice_contract::node::branch`]): pure.
//!
//! Where nothing passes by the VPC (strict), both interfaces of the pod, its VLAN and the host's end of its veth, lead to the
//! VLAN's table, in which there are the router and the pod and nothing else: not even the node's own addresses. Else
//! (standard) the pod is routed as any other, and the VLAN's table is that of its ENI.
//!
//! Both `sluice-eni`, which makes it, and ipamd, which puts right what others change, go by this.

use std::net::IpAddr;

use sluice_contract::id::{IfName, MacAddr, VlanId};
use sluice_contract::node::branch::{self, Mode, RULE_BRANCH};
use sluice_contract::node::{RULE_FROM_POD, RULE_TO_POD};
use sluice_contract::rpc::{Branch, PodAddress};

use crate::desired::{Desired, Devices, LinkSettings, RouteScope, RuleScope, Scope};
use crate::state::{Family, Link, LinkKind, Route, Rule, Sysctl, SysctlKey, TABLE_MAIN, host_prefix};

/// The smallest MTU of a link with IPv6, in bytes (RFC 8200, section 5).
const MTU_MIN_V6: u32 = 1280;

/// The settings of IPv6 on the VLAN's link: those of the VPC CNI, and no detection of duplicates, which would hold up the first
/// question for the router.
const SYSCTLS_V6: [(&str, u8); 4] = [("accept_ra", 0), ("accept_redirects", 1), ("forwarding", 0), ("accept_dad", 0)];

/// What the kernel calls a link that is a VLAN.
const KIND: &str = "vlan";

/// Addresses of a pod contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BranchError {
    /// Some are a branch ENI's, some are not, or they are those of several.
    #[error("{one} and {other} are not addresses of one branch ENI")]
    Mixed {
        /// One of them.
        one: IpAddr,
        /// Another.
        other: IpAddr,
    },
    /// The router is of another family.
    #[error("{gateway} cannot be the router for {ip}")]
    Gateway {
        /// The address.
        ip: IpAddr,
        /// Its router.
        gateway: IpAddr,
    },
    /// The table is not the VLAN's.
    #[error("VLAN {vlan} has route table {expected}, not {table}")]
    Table {
        /// The VLAN.
        vlan: VlanId,
        /// Its table.
        expected: u32,
        /// The one that was given.
        table: u32,
    },
    /// The number cannot be in a name.
    #[error("VLAN {0} has no name for its link")]
    Name(VlanId),
}

/// A pod's branch ENI on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodBranch {
    /// The VLAN's link.
    pub link: IfName,
    /// The VLAN.
    pub vlan: VlanId,
    /// The branch ENI's MAC address, which is the link's.
    pub mac: MacAddr,
    /// The trunk ENI's, by which its link is found.
    pub trunk_mac: MacAddr,
    /// Whether nothing passes by the VPC.
    pub mode: Mode,
    /// The route table.
    pub table: u32,
    /// The pod's addresses, each with its router.
    pub addresses: Vec<(IpAddr, IpAddr)>,
}

impl PodBranch {
    /// The branch ENI of a pod's addresses; none where they are the pool's.
    ///
    /// # Errors
    /// [`BranchError`]: the addresses contradict each other.
    pub fn of(addresses: &[PodAddress]) -> Result<Option<Self>, BranchError> {
        let Some(first) = addresses.first() else { return Ok(None) };
        let key = |address: &PodAddress| {
            let same = |branch: Branch| (branch.vlan, branch.trunk_mac, branch.mode, address.eni_mac);
            address.branch.map(same)
        };
        if let Some(other) = addresses.iter().find(|address| key(address) != key(first)) {
            return Err(BranchError::Mixed { one: first.ip, other: other.ip });
        }
        let Some(Branch { vlan, trunk_mac, mode, .. }) = first.branch else { return Ok(None) };
        let table = branch::table(vlan);
        let mut hops = Vec::with_capacity(addresses.len());
        for address in addresses {
            let Some(Branch { gateway, .. }) = address.branch else { continue };
            if Family::of(gateway) != Family::of(address.ip) {
                return Err(BranchError::Gateway { ip: address.ip, gateway });
            }
            if address.table != table {
                return Err(BranchError::Table { vlan, expected: table, table: address.table });
            }
            hops.push((address.ip, gateway));
        }
        let link = branch::link(vlan).map_err(|_invalid| BranchError::Name(vlan))?;
        Ok(Some(Self { link, vlan, mac: first.eni_mac, trunk_mac, mode, table, addresses: hops }))
    }

    /// Whether a link is this VLAN on the trunk with the number `trunk`.
    #[must_use]
    pub fn is_link(&self, link: &Link, trunk: u32) -> bool {
        is_vlan(link) && link.name == self.link && link.mac == Some(self.mac) && link.peer == Some(trunk)
    }

    /// The way out: the VLAN's link is up, its table leads to the router, and, in strict mode, what comes by it or from the pod
    /// looks into no other. `host` is the host's end of the pod's veth, which need not be there yet, `mtu` the pod's.
    ///
    /// What leaves by the link is ours, and so are all rules of this kind that lead to its table: whatever else stands there was
    /// left by an earlier pod with the same VLAN.
    #[must_use]
    pub fn uplink(&self, host: &IfName, mtu: u32) -> Desired {
        let mut routes = Vec::new();
        for (_, gateway) in &self.addresses {
            // A link-local router is on the link by itself.
            if gateway.is_ipv4() {
                routes.push(Route::on_link(self.table, host_prefix(*gateway), self.link.clone()));
            }
            routes.push(Route::default_via(self.table, *gateway, self.link.clone()));
        }
        let mut sysctls: Vec<Sysctl> = loose_sources(&self.link).into_iter().collect();
        if mtu >= MTU_MIN_V6 {
            let of_link = |(name, value): &(&str, u8)| {
                let key = SysctlKey::of_interface(Family::V6, &self.link, name).ok()?;
                Some(Sysctl::new(key, value))
            };
            sysctls.extend(SYSCTLS_V6.iter().filter_map(of_link));
        }
        let scope = |family| RuleScope { family, priority: RULE_BRANCH, table: Some(self.table) };
        let by_link = |family| RouteScope::devices(self.table, family, Devices::Named(self.link.clone()));
        Desired {
            scope: Scope {
                rules: Family::ALL.map(scope).into(),
                routes: Family::ALL.map(by_link).into(),
                ..Scope::default()
            },
            links: vec![LinkSettings { dev: self.link.clone(), up: Some(true), mtu: Some(mtu) }],
            routes,
            rules: self.strict_rules(host),
            sysctls,
            ..Desired::default()
        }
    }

    /// The rules that are there from the first packet on: in strict mode they name interfaces, in standard mode addresses.
    #[must_use]
    pub fn rules(&self, host: &IfName) -> Vec<Rule> {
        match self.mode {
            Mode::Strict => self.strict_rules(host),
            Mode::Standard => self.addresses.iter().flat_map(|(ip, _)| rules_of_address(*ip, self.table)).collect(),
        }
    }

    /// What lets packets reach the pod; last of all.
    #[must_use]
    pub fn pod_routes(&self, host: &IfName) -> Vec<Route> {
        let table = match self.mode {
            Mode::Strict => self.table,
            Mode::Standard => TABLE_MAIN,
        };
        self.addresses.iter().map(|(ip, _)| Route::on_link(table, host_prefix(*ip), host.clone())).collect()
    }

    /// The settings of the host's end of the pod's veth beside those that all pods have.
    #[must_use]
    pub fn host_sysctls(&self, host: &IfName) -> Vec<Sysctl> {
        match self.mode {
            // No route but those of the VLAN's table leads to the pod, and none of the node's own leads out by it.
            Mode::Strict => loose_sources(host).into_iter().collect(),
            Mode::Standard => Vec::new(),
        }
    }

    fn strict_rules(&self, host: &IfName) -> Vec<Rule> {
        if self.mode == Mode::Standard {
            return Vec::new();
        }
        let mut rules = Vec::new();
        for family in Family::ALL {
            if self.addresses.iter().any(|(ip, _)| Family::of(*ip) == family) {
                rules.push(Rule::iif(family, RULE_BRANCH, self.link.clone(), self.table));
                rules.push(Rule::iif(family, RULE_BRANCH, host.clone(), self.table));
            }
        }
        rules
    }
}

/// The rules of one address: to it by the main table, and from it by its ENI's, unless that is main.
#[must_use]
pub fn rules_of_address(ip: IpAddr, table: u32) -> Vec<Rule> {
    let net = host_prefix(ip);
    let from = (table != TABLE_MAIN).then(|| Rule::from(RULE_FROM_POD, net, table));
    std::iter::once(Rule::to(RULE_TO_POD, net, TABLE_MAIN)).chain(from).collect()
}

/// Whether a link is a VLAN.
#[must_use]
pub fn is_vlan(link: &Link) -> bool {
    matches!(&link.kind, LinkKind::Other(kind) if kind == KIND)
}

/// Whether a rule is strict mode's beyond doubt: what comes by a VLAN's link leads to that VLAN's table. Others have rules of the
/// same priority, and tables of the same numbers.
#[must_use]
pub fn is_vlans_rule(rule: &Rule) -> bool {
    let table = rule.iif.as_ref().and_then(branch::vlan_of_link).map(branch::table);
    rule.priority == RULE_BRANCH && table == Some(rule.table)
}

/// The rules that lead to a VLAN's table in strict mode, whoever's they are.
pub fn strict_rules_to(rules: &[Rule], table: u32) -> impl Iterator<Item = &Rule> {
    rules.iter().filter(move |rule| rule.priority == RULE_BRANCH && rule.table == table && rule.iif.is_some())
}

/// The rules of strict mode by which what comes by an interface leads to another table than `table`: left by an earlier pod of
/// the same name.
pub fn strict_rules_beside<'r>(rules: &'r [Rule], dev: &'r IfName, table: u32) -> impl Iterator<Item = &'r Rule> {
    let is_one =
        move |rule: &&Rule| rule.priority == RULE_BRANCH && rule.table != table && rule.iif.as_ref() == Some(dev);
    rules.iter().filter(is_one)
}

/// Sources are taken wherever they come from (RFC 3704, loose): the main table does not lead to them by this interface.
fn loose_sources(dev: &IfName) -> Option<Sysctl> {
    SysctlKey::of_interface(Family::V4, dev, "rp_filter").ok().map(|key| Sysctl::new(key, 2))
}

#[cfg(test)]
mod tests;
