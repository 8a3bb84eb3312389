//! What others change of the part of the host's network that is ours: pure. [`super::host`] watches, and carries out.
//!
//! Ours is what [`desired`](super::desired) asks for, for the node and each ENI, and the route and rules of pods that stand: the
//! plugin makes a pod's route last, so a pod whose route has been seen is whole, and one whose route has not been seen may
//! be in the middle of its ADD. A pod's interface is what ends it: the plugin's DEL takes it away first, and so does the
//! kernel with the sandbox, so what goes missing while the interface is there was taken by somebody else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_contract::id::{IfName, MacAddr};
use sluice_contract::node::branch::{RULE_BRANCH, STRICT_PREFIX, vlan_of_table};
use sluice_contract::node::{RULE_FROM_POD, RULE_TO_POD, TABLE_MAIN, veth};
use sluice_hostnet::branch::rules_of_address;
use sluice_hostnet::desired::{Desired, LinkSettings, RuleScope, Scope};
use sluice_hostnet::plan::{Op, Planned, plan};
use sluice_hostnet::state::{Family, Link, LinkKind, NftTableId, Observed, Route, Rule, SysctlKey, host_prefix};
use sluice_hostnet::watch::{Change, Event};

use super::PodNetwork;

/// What is ours at one time.
#[derive(Debug, Default)]
pub(super) struct Ours {
    /// The node's part and each ENI's, with the MAC address of the link that it is about.
    pub(super) parts: BTreeMap<Part, (MacAddr, Desired)>,
    /// The pods that stand: the interface behind each address.
    pub(super) standing: BTreeMap<IpAddr, IfName>,
}

/// Something that is set up as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// What concerns all pods.
    Node,
    /// The ENI of a table.
    Eni(u32),
}

impl Ours {
    fn desired(&self) -> impl Iterator<Item = &Desired> {
        self.parts.values().map(|(_, desired)| desired)
    }

    /// Takes in a pod that stands.
    pub(super) fn stands(&mut self, route: &Route, veth_prefix: &str) {
        if let Some((address, dev)) = pod_route(route).filter(|(_, dev)| dev.as_str().starts_with(veth_prefix)) {
            self.standing.insert(address, dev.clone());
        }
    }

    /// Takes in what has changed, and says so if it is not as we have made it.
    pub(super) fn touched(&mut self, event: &Event, veth_prefix: &str) -> Option<String> {
        match event {
            Event::Link(Change::New, link) => self.link(link),
            Event::Link(Change::Gone, link) => {
                self.standing.retain(|_, dev| *dev != link.name);
                None
            }
            Event::Address(Change::New, address) => {
                let strange = |desired: &Desired| {
                    desired.scope.owns_address(address) && !desired.addresses.iter().any(|own| own.is_same(address))
                };
                self.desired().any(strange).then(|| format!("address {address} was added"))
            }
            Event::Address(Change::Gone, address) => {
                let own = |desired: &Desired| desired.addresses.iter().any(|own| own.is_same(address));
                self.desired().any(own).then(|| format!("address {address} was deleted"))
            }
            Event::Route(Change::New, route) => self.new_route(route, veth_prefix),
            Event::Route(Change::Gone, route) => {
                let pods = pod_route(route).is_some_and(|(address, dev)| self.standing.get(&address) == Some(dev));
                let own = |desired: &Desired| desired.routes.iter().any(|own| own.is_same(route));
                (pods || self.desired().any(own)).then(|| format!("route {route} was deleted"))
            }
            Event::Rule(change, rule) => {
                let wanted = self.desired().any(|desired| desired.rules.contains(rule));
                // Of pods with branch ENIs no more is known here than that the rule looks like one of theirs.
                let branchs = *change == Change::Gone && is_branchs(rule);
                let pods = branchs || pods_of_rule(rule).any(|address| self.standing.contains_key(&address));
                let (ours, verb) = match change {
                    Change::New => {
                        let strange = self.desired().any(|desired| desired.scope.owns_rule(rule)) && !wanted;
                        (strange || pods, "added")
                    }
                    Change::Gone => (wanted || pods, "deleted"),
                };
                ours.then(|| format!("rule {rule} was {verb}"))
            }
            Event::Neighbour(Change::New, neighbour) => {
                let pods = self.standing.values().any(|dev| *dev == neighbour.dev);
                let ours = pods || self.desired().any(|desired| desired.scope.owns_neighbour(neighbour));
                ours.then(|| format!("neighbour {neighbour} was added"))
            }
            Event::Lost => Some("more has changed than could be followed".to_owned()),
            Event::Neighbour(Change::Gone, _) | Event::Hooks(_) | Event::Other(_) => None,
        }
    }

    fn link(&self, link: &Link) -> Option<String> {
        let differs = |to: &LinkSettings| {
            to.dev == link.name && (to.up.is_some_and(|up| up != link.up) || to.mtu.is_some_and(|mtu| mtu != link.mtu))
        };
        let ours = self.desired().flat_map(|desired| &desired.links).any(differs);
        let pods = !link.up && self.standing.values().any(|dev| *dev == link.name);
        let renamed = |(mac, desired): &(MacAddr, Desired)| {
            link.mac == Some(*mac)
                && matches!(link.kind, LinkKind::Physical | LinkKind::Veth)
                && !desired.links.iter().any(|settings| settings.dev == link.name)
        };
        if ours || pods {
            return Some(format!("{} is {}, MTU {}", link.name, if link.up { "up" } else { "down" }, link.mtu));
        }
        self.parts.values().any(renamed).then(|| format!("a link has another name, {}", link.name))
    }

    fn new_route(&mut self, route: &Route, veth_prefix: &str) -> Option<String> {
        if let Some((address, dev)) = pod_route(route)
            && self.standing.get(&address).is_some_and(|own| own != dev)
            && !dev.as_str().starts_with(veth_prefix)
        {
            return Some(format!("route {route} was added"));
        }
        self.stands(route, veth_prefix);
        let strange = |desired: &Desired| {
            let wanted = desired.routes.iter().any(|own| own.is_same(route));
            let in_place = desired.routes.iter().any(|own| own.key() == route.key());
            !wanted && (in_place || desired.scope.owns_route(route))
        };
        self.desired().any(strange).then(|| format!("route {route} was added"))
    }

    /// Whether a table of nftables is ours.
    pub(super) fn owns_table(&self, table: &NftTableId) -> bool {
        self.desired().any(|desired| desired.scope.nft.contains(table))
    }
}

/// The address and the interface of a route that looks like a pod's.
fn pod_route(route: &Route) -> Option<(IpAddr, &IfName)> {
    let address = route.destination.addr();
    let whole = route.destination == host_prefix(address);
    let dev = route.dev.as_ref().filter(|_| whole && route.table == TABLE_MAIN && route.gateway.is_none())?;
    Some((address, dev))
}

/// The addresses that a rule of pods' priorities is about, whichever table it leads to.
fn pods_of_rule(rule: &Rule) -> impl Iterator<Item = IpAddr> {
    let ours = matches!(rule.priority, RULE_TO_POD | RULE_FROM_POD);
    let nets = [rule.from, rule.to].into_iter().flatten();
    nets.filter(move |net| ours && *net == host_prefix(net.addr())).map(|net| net.addr())
}

/// Whether a rule looks like one of strict mode's.
fn is_branchs(rule: &Rule) -> bool {
    let by_pod = rule.iif.as_ref().is_some_and(|dev| dev.as_str().starts_with(STRICT_PREFIX));
    rule.priority == RULE_BRANCH && by_pod && vlan_of_table(rule.table).is_some()
}

/// What brings the pods of the ledger that stand back to what the plugin has made. Pods that `seen` has no interface of are
/// passed over.
pub(super) fn pods(seen: &Observed, pods: &[PodNetwork], standing: &BTreeMap<IpAddr, IfName>) -> Vec<Planned> {
    let mut seen = seen.clone();
    let priorities = [RULE_TO_POD, RULE_FROM_POD];
    let scopes = Family::ALL.into_iter().flat_map(|family| priorities.map(|at| RuleScope::priority(family, at)));
    let mut desired = Desired { scope: Scope { rules: scopes.collect(), ..Scope::default() }, ..Desired::default() };
    let mut known: BTreeSet<IpAddr> = BTreeSet::new();
    for pod in pods {
        let stands = pod.settled || pod.addresses.iter().any(|ip| standing.get(ip) == Some(&pod.dev));
        if !stands || !seen.link(&pod.dev).is_some_and(|link| carries(link, pod)) {
            continue;
        }
        // Nothing can be routed by a VLAN that is gone. The pod is cut off then: its next ADD makes it anew.
        if pod.branch.as_ref().is_some_and(|branch| seen.link(&branch.link).is_none()) {
            continue;
        }
        desired.links.push(LinkSettings { dev: pod.dev.clone(), up: Some(true), mtu: None });
        desired.scope.neighbours.insert(pod.dev.clone());
        let to = |ip: &IpAddr| Route::on_link(TABLE_MAIN, host_prefix(*ip), pod.dev.clone());
        known.extend(pod.addresses.iter().chain(&pod.egress));
        // One that was made before pods had an address for that family's way out has none, and its link takes no route of it.
        let switched_off = |key: SysctlKey| seen.sysctls.iter().any(|seen| seen.key == key && seen.value == "1");
        let egress = pod.egress.filter(|_| !ipv6_switch(&pod.dev).is_some_and(switched_off));
        if let Some(branch) = &pod.branch {
            // With a link that goes down go its routes.
            desired.links.push(LinkSettings { dev: branch.link.clone(), up: Some(true), mtu: None });
            desired.routes.extend(branch.uplink(&pod.dev, 0).routes);
            desired.routes.extend(branch.pod_routes(&pod.dev));
            desired.routes.extend(egress.iter().map(to));
            desired.rules.extend(branch.rules(&pod.dev));
            continue;
        }
        desired.routes.extend(pod.addresses.iter().chain(&egress).map(to));
        desired.rules.extend(pod.addresses.iter().flat_map(|ip| rules_of_address(*ip, pod.table)));
    }
    // The rules of other addresses are not looked at: whose they are is not known here. Those of strict mode are only put back.
    seen.rules.retain(|rule| is_branchs(rule) || pods_of_rule(rule).any(|address| known.contains(&address)));
    plan(&seen, &desired)
}

/// Whether IPv6 is switched off on a pod's link, which [`pods`] has to be shown for those that may have an address for the way out.
pub(super) fn ipv6_switch(dev: &IfName) -> Option<SysctlKey> {
    SysctlKey::new(format!("net/ipv6/conf/{dev}/disable_ipv6")).ok()
}

/// Whether a link is the pod's: marked as such, or unmarked, as the VPC CNI leaves it.
fn carries(link: &Link, pod: &PodNetwork) -> bool {
    let marked = link.alias.as_deref().map(veth::attachment);
    link.kind == LinkKind::Veth && marked.is_none_or(|marked| marked.as_ref() == Some(&pod.attachment))
}

/// What kind of thing an op changes, for the metric.
pub(super) const fn kind(op: &Op) -> &'static str {
    match op {
        Op::SetSysctl { .. } => "sysctl",
        Op::SetLink { .. } => "link",
        Op::AddAddress(_) | Op::DeleteAddress(_) => "address",
        Op::SetNeighbour { .. } | Op::DeleteNeighbour(_) => "neighbour",
        Op::SetRoute { .. } | Op::DeleteRoute(_) => "route",
        Op::AddRule(_) | Op::DeleteRule(_) => "rule",
        Op::SetNft { .. } | Op::DeleteNft(_) => "nft",
    }
}

#[cfg(test)]
mod tests;
