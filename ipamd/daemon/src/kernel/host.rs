//! The `Kernel` seam over hostnet: the node's real network.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use sluice_contract::id::{IfName, MacAddr};
use sluice_contract::node::{RULE_FROM_ENI, RULE_FROM_POD, RULE_TO_POD, TABLE_MAIN, veth};
use sluice_hostnet::desired::{Desired, View};
use sluice_hostnet::host::Host;
use sluice_hostnet::netlink::OpenError;
use sluice_hostnet::nft;
use sluice_hostnet::plan::{Op, Planned};
use sluice_hostnet::state::{Family, LinkKind, NftRuleset, NftTableId, Observed, Rule, host_prefix};
use sluice_hostnet::watch::WaitForLinkError;
use tokio::sync::Mutex;

use super::{EniNetwork, Kernel, KernelError, NodeNetwork, Pods, desired};

/// How long an ENI's link is waited for. EC2 takes 2 to 6 seconds to plug one in, and now and then far longer.
const LINK_SHOWS: Duration = Duration::from_secs(30);

/// How long the primary ENI's link is waited for: the node has booted by it.
const PRIMARY_SHOWS: Duration = Duration::from_secs(5);

/// What a pod's address is said to live on when its route is gone and its rule is not.
const UNKNOWN_LINK: &str = "unknown";

/// One network namespace: on a node, the host's.
#[derive(Debug)]
pub struct HostKernel {
    host: Host,
    /// The tables that were wanted last, with the content that `nft` makes of them, which takes two runs of `nft` to learn.
    rulesets: Mutex<BTreeMap<NftTableId, NftRuleset>>,
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
        Self { host, rulesets: Mutex::default() }
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
                let learnt = nft::ruleset(table.clone(), body).await.map_err(failed("loading the nftables table"))?;
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

    async fn reconcile(&self, action: &str, desired: &Desired) -> Result<(), KernelError> {
        let executed = self.host.reconcile(desired).await.map_err(failed(action))?;
        for planned in executed.changed {
            tracing::info!(op = %planned.op, reason = planned.reason, "the host's network was changed");
        }
        Ok(())
    }
}

impl Kernel for HostKernel {
    async fn pods(&self, veth_prefix: &str) -> Result<Pods, KernelError> {
        Ok(pods(&self.see_pods().await?, veth_prefix))
    }

    async fn set_up_node(&self, node: &NodeNetwork) -> Result<(), KernelError> {
        let primary = self.link(node.primary_mac, PRIMARY_SHOWS).await?;
        let mut wanted = desired::node(node, &primary).map_err(failed("naming the sysctls"))?;
        for (table, body) in desired::rulesets(node, &primary) {
            wanted.nft.push(self.ruleset(table, body).await?);
        }
        self.reconcile("setting up the node's network", &wanted).await
    }

    async fn set_up_eni(&self, eni: &EniNetwork) -> Result<(), KernelError> {
        let dev = self.link(eni.mac, LINK_SHOWS).await?;
        let wanted = desired::eni(eni, &dev).map_err(failed("naming the sysctls"))?;
        self.reconcile(&format!("setting up {} as {dev}", eni.eni), &wanted).await
    }

    async fn clear_table(&self, table: u32) -> Result<(), KernelError> {
        self.reconcile(&format!("clearing table {table}"), &desired::no_eni(table)).await
    }

    async fn clear_pod(&self, addresses: &[IpAddr], veth_prefix: &str) -> Result<bool, KernelError> {
        let seen = self.see_pods().await?;
        let found = pods(&seen, veth_prefix);
        if addresses.iter().any(|ip| found.view.pods.contains_key(ip) && !found.dead.contains(ip)) {
            return Ok(false);
        }
        let ops: Vec<_> = seen
            .rules
            .iter()
            .filter(|rule| rule_of_pod(rule).is_some_and(|ip| addresses.contains(&ip)))
            .map(|rule| Planned::new(Op::DeleteRule(rule.clone()), "its pod is gone"))
            .collect();
        let executed = self.host.execute(&ops).await.map_err(failed(format!("removing the rules of {addresses:?}")))?;
        for planned in executed.changed {
            tracing::info!(op = %planned.op, reason = planned.reason, "the host's network was changed");
        }
        Ok(true)
    }
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
/// dead only when all of its pod is gone.
fn pods(seen: &Observed, veth_prefix: &str) -> Pods {
    let mut found = Pods::default();
    let unknown = IfName::new(UNKNOWN_LINK).ok();
    for address in seen.rules.iter().filter_map(rule_of_pod) {
        if let Some(dev) = &unknown {
            found.view.pods.insert(address, dev.clone());
            found.dead.insert(address);
        }
    }
    for rule in seen.rules.iter().filter(|rule| rule.priority == RULE_FROM_ENI && rule.table != TABLE_MAIN) {
        let gone = |ip: IpAddr| !seen.addresses.iter().any(|address| address.net.addr() == ip);
        if rule.from.is_some_and(|net| net.prefix_len() == net.max_prefix_len() && gone(net.addr())) {
            found.leftovers.insert(rule.table);
        }
    }
    for route in seen.routes.iter().filter(|route| route.gateway.is_none() && route.table == TABLE_MAIN) {
        let whole = route.destination.prefix_len() == route.destination.max_prefix_len();
        let address = route.destination.addr();
        if let (true, Some(dev)) = (whole, &route.dev)
            && dev.as_str().starts_with(veth_prefix)
            && let Some(link) = seen.links.iter().find(|link| link.name == *dev && link.kind == LinkKind::Veth)
        {
            found.view.pods.insert(address, dev.clone());
            found.dead.remove(&address);
            let attachment = link.alias.as_deref().and_then(veth::attachment);
            found.attachments.extend(attachment.map(|attachment| (address, attachment)));
        }
    }
    found
}

#[cfg(test)]
mod tests;
