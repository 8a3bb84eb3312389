//! The `Kernel` seam over hostnet: the node's real network.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use sluice_contract::id::{Attachment, IfName, MacAddr};
use sluice_contract::node::branch;
use sluice_contract::node::egress::is_egress;
use sluice_contract::node::{RULE_FROM_ENI, RULE_FROM_POD, RULE_TO_POD, TABLE_MAIN, veth};
use sluice_hostnet::branch::{is_vlan, is_vlans_rule, strict_rules_to};
use sluice_hostnet::conntrack;
use sluice_hostnet::desired::{Desired, View};
use sluice_hostnet::host::Host;
use sluice_hostnet::netlink::OpenError;
use sluice_hostnet::plan::{Op, Planned};
use sluice_hostnet::state::{
    Family, Link, LinkKind, NftRuleset, NftTableId, Observed, Protocol, Route, Rule, host_prefix,
};
use sluice_hostnet::vpc_cni::Leftovers;
use sluice_hostnet::watch::{Event, NftEvent, NftWatch, WaitForLinkError, Watch, Watched};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::repair::{self, Ours, Part};
use super::{
    Cleared, Disturbance, EniNetwork, Kernel, KernelError, NodeNetwork, PodNetwork, Pods, Repair, Repaired, desired,
};
use crate::log::ErrorChain;

/// How long an ENI's link is waited for. EC2 takes 2 to 6 seconds to plug one in, and now and then far longer.
const LINK_SHOWS: Duration = Duration::from_secs(30);

/// How long the primary ENI's link is waited for: the node has booted by it.
const PRIMARY_SHOWS: Duration = Duration::from_secs(5);

/// How long changes are gathered before they are told of: who changes one thing mostly changes several.
const GATHER: Duration = Duration::from_millis(100);

/// Changes that are told of by name; the others are found all the same.
const TOLD: usize = 16;

/// Flows that connection tracking is made to forget at once: as many as it knows at the most on nodes of the largest types.
const FORGOTTEN: usize = 1 << 20;

/// What is tried then.
const FORGETTING: &str = "forgetting flows";

/// What a pod's address is said to live on when its route is gone and its rule is not.
const UNKNOWN_LINK: &str = "unknown";

/// One network namespace: on a node, the host's.
#[derive(Debug)]
pub struct HostKernel {
    host: Host,
    /// The tables that were wanted last, with the content that `nft` makes of them, which takes two runs of `nft` to learn.
    rulesets: Mutex<BTreeMap<NftTableId, NftRuleset>>,
    /// What has been set up, by which a repair goes.
    set_up: Mutex<SetUp>,
    /// The same as it is compared with events.
    ours: std::sync::Mutex<Ours>,
    watches: Mutex<Option<Watches>>,
    /// Whether what the VPC CNI has left in the packet filter is gone.
    cleaned: AtomicBool,
}

/// What has been set up. Whoever holds it may change the network; so a repair never meets half of another change.
#[derive(Debug, Default)]
struct SetUp {
    node: Option<NodeNetwork>,
    enis: BTreeMap<u32, EniNetwork>,
}

#[derive(Debug)]
struct Watches {
    routing: Watch,
    nft: NftWatch,
}

fn failed<E>(action: impl fmt::Display) -> impl FnOnce(E) -> KernelError
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |source| KernelError::Failed { action: action.to_string(), source: Box::new(source) }
}

impl HostKernel {
    /// The namespace that the calling thread is in.
    ///
    /// # Errors
    /// [`OpenError`] when netlink cannot be had.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn current() -> Result<Self, OpenError> {
        Host::current().map(Self::over)
    }

    /// The namespace of `host`.
    #[must_use]
    pub fn over(host: Host) -> Self {
        Self {
            host,
            rulesets: Mutex::default(),
            set_up: Mutex::default(),
            ours: std::sync::Mutex::default(),
            watches: Mutex::default(),
            cleaned: AtomicBool::new(false),
        }
    }

    async fn link(&self, mac: MacAddr, within: Duration) -> Result<IfName, KernelError> {
        match self.host.wait_for_link(mac, within).await {
            Ok(link) => Ok(link.name),
            Err(WaitForLinkError::Timeout { mac, .. }) => Err(KernelError::NoLink(mac)),
            Err(error) => Err(failed(format!("looking for the link {mac}"))(error)),
        }
    }

    /// A table with its content; learnt anew when the body changes.
    async fn ruleset(&self, table: NftTableId, body: String) -> Result<NftRuleset, KernelError> {
        let mut last = self.rulesets.lock().await;
        match last.get(&table) {
            Some(known) if known.body == body => Ok(known.clone()),
            _ => {
                let learnt =
                    self.host.ruleset(table.clone(), body).await.map_err(failed("loading the nftables table"))?;
                last.insert(table, learnt.clone());
                Ok(learnt)
            }
        }
    }

    async fn see_pods(&self) -> Result<Observed, KernelError> {
        let view = View {
            addresses: Family::ALL.into(),
            routes: Family::ALL.map(|family| (family, TABLE_MAIN)).into(),
            rules: Family::ALL.into(),
            ..View::default()
        };
        self.host.observe(&view).await.map_err(failed("reading the pods' routes and rules"))
    }

    async fn reconcile(&self, action: &str, desired: &Desired) -> Result<Vec<Planned>, KernelError> {
        let executed = self.host.reconcile(desired).await.map_err(failed(action))?;
        Ok(executed.changed)
    }

    fn ours(&self) -> MutexGuard<'_, Ours> {
        self.ours.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node's part, by the primary ENI's link.
    async fn node(&self, node: &NodeNetwork, primary: &IfName) -> Result<Vec<Planned>, KernelError> {
        let mut wanted = desired::node(node, primary).map_err(failed("naming the sysctls"))?;
        for (table, body) in desired::rulesets(node, primary) {
            wanted.nft.push(self.ruleset(table, body).await?);
        }
        self.ours().parts.insert(Part::Node, (node.primary_mac, wanted.clone()));
        self.reconcile("setting up the node's network", &wanted).await
    }

    /// Takes away what the VPC CNI has left in the packet filter, once, now that ours is there. What it left does what ours does,
    /// so that a failure holds nothing up.
    async fn clean(&self) {
        if self.cleaned.load(Ordering::Relaxed) {
            return;
        }
        match self.host.remove_vpc_cni().await {
            Ok(Leftovers { removed, left }) => {
                self.cleaned.store(true, Ordering::Relaxed);
                for rule in removed {
                    tracing::info!(rule, "what the VPC CNI had left was removed");
                }
                if !left.is_empty() {
                    tracing::warn!(
                        left = ?left,
                        "tables of iptables-legacy hold rules of the VPC CNI, and only iptables-legacy can remove them: on the host, \
                         for each table, `iptables-legacy-save -t TABLE | grep -v AWS | iptables-legacy-restore -w -T TABLE` (for ip6 \
                         with ip6tables-legacy; docs/migration.md has all of it), or drain and reboot the node"
                    );
                }
            }
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "what the VPC CNI may have left was not removed");
            }
        }
    }

    /// An ENI's part, by its link.
    async fn eni(&self, eni: &EniNetwork, dev: &IfName) -> Result<Vec<Planned>, KernelError> {
        let wanted = desired::eni(eni, dev).map_err(failed("naming the sysctls"))?;
        self.ours().parts.insert(Part::Eni(eni.table), (eni.mac, wanted.clone()));
        self.reconcile(&format!("setting up {} as {dev}", eni.eni), &wanted).await
    }

    /// Watches from now on, and takes in which pods stand.
    async fn watch(&self, veth_prefix: &str) -> Result<Watches, KernelError> {
        let namespace = self.host.namespace();
        let routing = Watch::open_for_node(namespace, Watched::ALL, veth_prefix)
            .await
            .map_err(failed("watching the host's network"))?;
        let nft = NftWatch::open(namespace).map_err(failed("watching nftables"))?;
        let seen = self.see_pods().await?;
        let Pods { view, dead, .. } = pods(&seen, veth_prefix);
        let mut ours = self.ours();
        ours.standing.clear();
        // Those too that were made when the settings had another prefix.
        ours.standing.extend(view.pods.into_iter().filter(|(address, _)| !dead.contains(address)));
        for route in &seen.routes {
            ours.stands(route, veth_prefix);
        }
        drop(ours);
        Ok(Watches { routing, nft })
    }

    /// The next change of what is ours, in words; an error when the watch has ended.
    async fn next_change(&self, watches: &mut Watches, veth_prefix: &str) -> Result<String, KernelError> {
        let lost = || "more has changed than could be followed".to_owned();
        loop {
            let change = tokio::select! {
                event = watches.routing.next() => {
                    let closed = || std::io::Error::other("the netlink socket is closed");
                    let event = event.ok_or_else(closed).map_err(failed("watching the host's network"))?;
                    if event == Event::Lost { Some(lost()) } else { self.ours().touched(&event, veth_prefix) }
                }
                event = watches.nft.next() => match event.map_err(failed("watching nftables"))? {
                    NftEvent::Lost => Some(lost()),
                    NftEvent::Table(table) => {
                        self.ours().owns_table(&table).then(|| format!("the nftables table {table} was changed"))
                    }
                },
            };
            if let Some(change) = change {
                return Ok(change);
            }
        }
    }

    /// What stands in the place of each part, in order.
    async fn repair_parts(&self, set_up: &SetUp) -> Result<Vec<Result<Vec<Planned>, KernelError>>, KernelError> {
        let links = self.host.netlink().links().await.map_err(failed("reading the links"))?;
        let named = |mac: MacAddr| {
            let is_it = |kind: &LinkKind| matches!(kind, LinkKind::Physical | LinkKind::Veth);
            links.iter().find(|link| link.mac == Some(mac) && is_it(&link.kind)).map(|link| link.name.clone())
        };
        let mut done = Vec::new();
        // A link that is gone is EC2's matter; the ledger hears of it.
        if let Some(node) = &set_up.node
            && let Some(primary) = named(node.primary_mac)
        {
            done.push(self.node(node, &primary).await);
        }
        for eni in set_up.enis.values() {
            if let Some(dev) = named(eni.mac) {
                done.push(self.eni(eni, &dev).await);
            }
        }
        Ok(done)
    }

    /// The pods' part. What fails for one of them, as where its interface goes just then, holds up no other.
    async fn repair_pods(&self, pods: &[PodNetwork]) -> Vec<Result<Vec<Planned>, KernelError>> {
        const MENDING: &str = "mending the pods' routes and rules";
        let tables: BTreeSet<u32> = pods.iter().filter_map(|pod| Some(pod.branch.as_ref()?.table)).collect();
        let tables = std::iter::once(TABLE_MAIN).chain(tables);
        let view = View {
            routes: tables.flat_map(|table| Family::ALL.map(|family| (family, table))).collect(),
            rules: Family::ALL.into(),
            neighbours: Family::ALL.into(),
            sysctls: pods
                .iter()
                .filter(|pod| pod.egress.is_some())
                .filter_map(|pod| repair::ipv6_switch(&pod.dev))
                .collect(),
            ..View::default()
        };
        let seen = match self.host.observe(&view).await {
            Ok(seen) => seen,
            Err(error) => return vec![Err(failed("reading the pods' routes and rules")(error))],
        };
        let standing = self.ours().standing.clone();
        // Nothing is left of a plan that fails on the way.
        if let Ok(executed) = self.host.execute(&repair::pods(&seen, pods, &standing)).await {
            return vec![Ok(executed.changed)];
        }
        let mut done = Vec::new();
        for pod in pods {
            let ops = repair::pods(&seen, std::slice::from_ref(pod), &standing);
            if !ops.is_empty() {
                let executed = self.host.execute(&ops).await;
                done.push(executed.map(|executed| executed.changed).map_err(failed(MENDING)));
            }
        }
        done
    }
}

fn tell(changed: Vec<Planned>) {
    for planned in changed {
        tracing::info!(op = %planned.op, reason = planned.reason, "the host's network was changed");
    }
}

impl Kernel for HostKernel {
    async fn pods(&self, veth_prefix: &str) -> Result<Pods, KernelError> {
        Ok(pods(&self.see_pods().await?, veth_prefix))
    }

    async fn set_up_node(&self, node: &NodeNetwork) -> Result<(), KernelError> {
        let primary = self.link(node.primary_mac, PRIMARY_SHOWS).await?;
        let mut set_up = self.set_up.lock().await;
        set_up.node = Some(node.clone());
        tell(self.node(node, &primary).await?);
        drop(set_up);
        self.clean().await;
        Ok(())
    }

    async fn set_up_eni(&self, eni: &EniNetwork) -> Result<(), KernelError> {
        let dev = self.link(eni.mac, LINK_SHOWS).await?;
        let mut set_up = self.set_up.lock().await;
        set_up.enis.insert(eni.table, eni.clone());
        tell(self.eni(eni, &dev).await?);
        drop(set_up);
        Ok(())
    }

    async fn clear_table(&self, table: u32) -> Result<(), KernelError> {
        let mut set_up = self.set_up.lock().await;
        set_up.enis.remove(&table);
        self.ours().parts.remove(&Part::Eni(table));
        tell(self.reconcile(&format!("clearing table {table}"), &desired::no_eni(table)).await?);
        drop(set_up);
        Ok(())
    }

    async fn clear_pod(&self, addresses: &[IpAddr], veth_prefix: &str) -> Result<Cleared, KernelError> {
        let seen = self.see_pods().await?;
        let found = pods(&seen, veth_prefix);
        if addresses.iter().any(|ip| found.view.pods.contains_key(ip) && !found.dead.contains(ip)) {
            return Ok(Cleared::InUse);
        }
        let ops: Vec<_> = seen
            .rules
            .iter()
            .filter(|rule| rule_of_pod(rule).is_some_and(|ip| addresses.contains(&ip)))
            .map(|rule| Planned::new(Op::DeleteRule(rule.clone()), "its pod is gone"))
            .collect();
        let executed = self.host.execute(&ops).await.map_err(failed(format!("removing the rules of {addresses:?}")))?;
        let cleared = if executed.changed.is_empty() { Cleared::Nothing } else { Cleared::Removed };
        tell(executed.changed);
        Ok(cleared)
    }

    async fn clear_route(&self, address: IpAddr, dev: &IfName, attachment: &Attachment) -> Result<bool, KernelError> {
        let seen = self.see_pods().await?;
        if marked(&seen).get(dev) != Some(attachment) {
            return Ok(false);
        }
        let net = host_prefix(address);
        let its =
            |route: &&Route| route.table == TABLE_MAIN && route.destination == net && route.dev.as_ref() == Some(dev);
        let reason = "the pod has another address";
        let ops: Vec<_> =
            seen.routes.iter().filter(its).map(|route| Planned::new(Op::DeleteRoute(route.clone()), reason)).collect();
        // Who watches must not take it for somebody's mistake.
        self.ours().standing.retain(|standing, by| *standing != address || by != dev);
        let executed = self.host.execute(&ops).await.map_err(failed(format!("removing the route to {address}")))?;
        let removed = !executed.changed.is_empty();
        tell(executed.changed);
        Ok(removed)
    }

    async fn clear_link(&self, dev: &IfName, attachment: &Attachment) -> Result<bool, KernelError> {
        let seen = self.see_pods().await?;
        let routed = seen.routes.iter().any(|route| {
            route.dev.as_ref() == Some(dev) && route.table == TABLE_MAIN && route.protocol != Protocol::KERNEL
        });
        let link = seen.link(dev).filter(|_| marked(&seen).get(dev) == Some(attachment) && !routed);
        let Some(link) = link else { return Ok(false) };
        self.host.netlink().delete_link(link.index).await.map_err(failed(format!("removing {dev}")))?;
        if let Some(vlan) = branch::vlan_of_link(dev).filter(|_| is_vlan(link)) {
            let its = strict_rules_to(&seen.rules, branch::table(vlan));
            let ops: Vec<_> = its.map(|rule| Planned::new(Op::DeleteRule(rule.clone()), "its pod is gone")).collect();
            let executed = self.host.execute(&ops).await.map_err(failed(format!("removing the rules of {dev}")))?;
            tell(executed.changed);
        }
        tracing::info!(link = %dev, attachment = %attachment, "the interface of a pod that is gone was removed");
        Ok(true)
    }

    async fn forget_flows(&self, addresses: &BTreeSet<IpAddr>) -> Result<usize, KernelError> {
        let (namespace, addresses) = (self.host.namespace().clone(), addresses.clone());
        // A dump of a large table takes seconds.
        let work = tokio::task::spawn_blocking(move || conntrack::forget(&namespace, &addresses, FORGOTTEN));
        match work.await {
            Ok(Err(error)) if error.is_unsupported() => Err(KernelError::NoConntrack(Box::new(error))),
            Ok(forgotten) => forgotten.map_err(failed(FORGETTING)),
            Err(error) => Err(failed(FORGETTING)(error)),
        }
    }

    async fn disturbed(&self, veth_prefix: &str, not_before: Instant) -> Result<Disturbance, KernelError> {
        let mut held = self.watches.lock().await;
        // Put back at the end alone: a watch that fails, or is given up in the middle, begins anew.
        let Some(mut watches) = held.take() else {
            *held = Some(self.watch(veth_prefix).await?);
            return Ok(Disturbance { changes: Vec::new(), since: Instant::now() });
        };
        let mut changes = vec![self.next_change(&mut watches, veth_prefix).await?];
        let since = Instant::now();
        let end = not_before.max(since + GATHER);
        while let Ok(change) = tokio::time::timeout_at(end, self.next_change(&mut watches, veth_prefix)).await {
            let change = change?;
            if changes.len() < TOLD && !changes.contains(&change) {
                changes.push(change);
            }
        }
        *held = Some(watches);
        Ok(Disturbance { changes, since })
    }

    async fn repair(&self, pods: &[PodNetwork]) -> Repaired {
        let set_up = self.set_up.lock().await;
        let mut done = self.repair_parts(&set_up).await.unwrap_or_else(|error| vec![Err(error)]);
        done.extend(self.repair_pods(pods).await);
        drop(set_up);
        let mut repaired = Repaired::default();
        for outcome in done {
            match outcome {
                Ok(changed) => repaired.made.extend(changed.into_iter().map(|Planned { op, reason }| Repair {
                    kind: repair::kind(&op),
                    op: op.to_string(),
                    reason,
                })),
                Err(error) => repaired.failed.push(error),
            }
        }
        repaired
    }
}

/// The interfaces of pods, by their marks: veths, and VLANs of branch ENIs.
fn marked(seen: &Observed) -> BTreeMap<&IfName, Attachment> {
    let pods = seen.links.iter().filter(|link| link.kind == LinkKind::Veth || is_vlan(link));
    pods.filter_map(|link| Some((&link.name, veth::attachment(link.alias.as_deref()?)?))).collect()
}

/// Which pod's rule it is: to its address, or from its address to an ENI's table.
fn rule_of_pod(rule: &Rule) -> Option<IpAddr> {
    let net = match (rule.priority, rule.from, rule.to) {
        (RULE_TO_POD, None, Some(to)) if rule.table == TABLE_MAIN => to,
        (RULE_FROM_POD, Some(from), None) => from,
        _ => return None,
    };
    (net == host_prefix(net.addr())).then(|| net.addr())
}

/// The pods' addresses: host routes by pods' interfaces, and pods' rules. Both are counted, so that an address counts as
/// dead only when all of its pod is gone. Addresses for egress alone follow from them and are in no ledger.
///
/// A pod's interface is one by its name, by its mark, or because it carries an address that a pod's rule is about: pods that
/// were made when `AWS_VPC_K8S_CNI_VETHPREFIX` was another live on under their names, and those that the VPC CNI has made
/// carry no mark.
fn pods(seen: &Observed, veth_prefix: &str) -> Pods {
    let mut found = Pods::default();
    let unknown = IfName::new(UNKNOWN_LINK).ok();
    let marked = marked(seen);
    let whose = |link: &Link| marked.get(&link.name).cloned();
    let of_vlans: BTreeSet<Attachment> = seen.links.iter().filter(|link| is_vlan(link)).filter_map(whose).collect();
    let of_veths: BTreeSet<Attachment> = seen.links.iter().filter(|link| !is_vlan(link)).filter_map(whose).collect();
    let lone =
        marked.iter().filter(|(_, attachment)| !(of_vlans.contains(*attachment) && of_veths.contains(*attachment)));
    found.marked = lone.map(|(dev, attachment)| ((*dev).clone(), attachment.clone())).collect();
    let veths = seen.links.iter().filter(|link| link.kind == LinkKind::Veth);
    found.veths = veths.map(|link| link.name.clone()).collect();
    let ruled: BTreeSet<IpAddr> = seen.rules.iter().filter_map(rule_of_pod).collect();
    for address in &ruled {
        if let Some(dev) = &unknown {
            found.view.pods.insert(*address, dev.clone());
            found.dead.insert(*address);
        }
    }
    for rule in seen.rules.iter().filter(|rule| rule.priority == RULE_FROM_ENI && rule.table != TABLE_MAIN) {
        let gone = |ip: IpAddr| !seen.addresses.iter().any(|address| address.net.addr() == ip);
        if rule.from.is_some_and(|net| net.prefix_len() == net.max_prefix_len() && gone(net.addr())) {
            found.leftovers.insert(rule.table);
        }
    }
    for table in seen.rules.iter().filter(|rule| is_vlans_rule(rule)).map(|rule| rule.table) {
        let is_there = |rule: &Rule| rule.iif.as_ref().is_none_or(|dev| seen.link(dev).is_some());
        if !strict_rules_to(&seen.rules, table).any(is_there) {
            found.leftovers.insert(table);
        }
    }
    for route in seen.routes.iter().filter(|route| route.gateway.is_none() && route.table == TABLE_MAIN) {
        let whole = route.destination.prefix_len() == route.destination.max_prefix_len();
        let address = route.destination.addr();
        if let (true, Some(dev)) = (whole && !is_egress(address), &route.dev)
            && (dev.as_str().starts_with(veth_prefix) || marked.contains_key(dev) || ruled.contains(&address))
            && let Some(link) = seen.links.iter().find(|link| link.name == *dev && link.kind == LinkKind::Veth)
        {
            found.view.pods.insert(address, dev.clone());
            found.dead.remove(&address);
            // Not of a pod with a VLAN: its address is no pool's, and nobody else's to adopt.
            found.attachments.extend(found.marked.get(&link.name).map(|attachment| (address, attachment.clone())));
        }
    }
    found
}

#[cfg(test)]
mod tests;
