//! Takes an attachment away, as far as it is there and is the attachment's own.

use std::collections::BTreeSet;
use std::net::IpAddr;

use sluice_contract::id::{Attachment, IfName};
use sluice_contract::node::{RULE_FROM_POD, RULE_TO_POD, TABLE_MAIN, branch, veth};
use sluice_contract::rpc::PodAddress;
use sluice_hostnet::branch::{is_vlan, strict_rules_to};
use sluice_hostnet::desired::View;
use sluice_hostnet::host::{ExecuteError, Host, ObserveError};
use sluice_hostnet::netlink::{LinkError, Netlink, OpenError};
use sluice_hostnet::netns::Namespace;
use sluice_hostnet::plan::{Op, Planned};
use sluice_hostnet::state::{Family, Link, LinkKind, Observed, Rule, host_prefix};

use super::{are_ends_of_one_veth, is_host_end_of, is_uplink_of};
use crate::layout;

/// Why an attachment could not be taken away as a whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DetachError {
    /// Nothing was done.
    #[error("cannot speak to the kernel")]
    Open(#[source] OpenError),
    /// Nothing was done.
    #[error("cannot look for its links")]
    Look(#[source] LinkError),
    /// Nothing was done.
    #[error("cannot look at its routes and rules")]
    Observe(#[source] ObserveError),
    /// Rules are left.
    #[error("cannot delete its rules")]
    Rules(#[source] ExecuteError),
    /// The link is left.
    #[error("cannot delete {name}")]
    Link {
        /// The host's end.
        name: IfName,
        /// Why.
        #[source]
        source: LinkError,
    },
}

/// What is known of an attachment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Traces {
    /// What the host's end may be called.
    pub(crate) names: Vec<IfName>,
    /// The sandbox, where it is still there.
    pub(crate) netns: Option<Namespace>,
    /// Whether to look through all links for the attachment's mark, or for a route to what it holds, when no name leads
    /// to it.
    pub(crate) search: bool,
    /// Addresses that ipamd says are the attachment's.
    pub(crate) held: Vec<PodAddress>,
    /// Addresses that somebody else says are: they may be another's by now.
    pub(crate) claimed: Vec<IpAddr>,
}

/// Takes the attachment away: its link, and with that its routes and the pod's end, the VLAN of its branch ENI, then its rules.
/// As long as the link is there, ipamd takes the rules' going for somebody's mistake and puts them back.
pub(crate) async fn detach(attachment: &Attachment, traces: &Traces) -> Result<(), DetachError> {
    let host = Host::current().map_err(DetachError::Open)?;
    let mut link = None;
    let mut uplink = None;
    let mut unmarked = Vec::new();
    let is_unmarked = |link: &Link| link.kind == LinkKind::Veth && link.alias.is_none();
    for name in &traces.names {
        let found = host.netlink().link_by_name(name).await.map_err(DetachError::Look)?;
        match found {
            Some(found) if is_host_end_of(&found, attachment) => link = link.or(Some(found)),
            Some(found) if is_uplink_of(&found, attachment) => uplink = uplink.or(Some(found)),
            Some(found) if is_unmarked(&found) => unmarked.push(found),
            _ => {}
        }
    }
    if let (None, Some(netns)) = (&link, &traces.netns) {
        link = host_end_behind(netns, attachment, &host).await.map_err(DetachError::Look)?;
    }
    if link.is_none() && traces.search {
        let all = host.netlink().links().await.map_err(DetachError::Look)?;
        link = all.iter().find(|link| is_host_end_of(link, attachment)).cloned();
        uplink = uplink.or_else(|| all.iter().find(|link| is_uplink_of(link, attachment)).cloned());
        unmarked = all.into_iter().filter(is_unmarked).collect();
    }

    let mut rules = layout::rules(&traces.held);
    // Without the ledger's word, the kernel's routes tell whose an address is.
    let in_doubt = (traces.held.is_empty() && link.is_some()) || !traces.claimed.is_empty();
    let branched = uplink.is_some() || traces.held.iter().any(|address| address.branch.is_some());
    if in_doubt || branched || (link.is_none() && !unmarked.is_empty() && !traces.held.is_empty()) {
        let seen = host.observe(&everything()).await.map_err(DetachError::Observe)?;
        link = link.or_else(|| unmarked.into_iter().find(|unmarked| leads_to_held(&seen, unmarked, &traces.held)));
        rules.extend(rules_of(&seen, &own_addresses(&seen, link.as_ref(), traces)));
        uplink = uplink.or_else(|| seen.links.iter().find(|link| is_uplink(link, attachment, traces)).cloned());
        if let Some(table) = table_of(&seen, uplink.as_ref(), traces) {
            rules.extend(strict_rules_to(&seen.rules, table).cloned());
        }
    }
    let mut failure = None;
    for Link { index, name, .. } in link.into_iter().chain(uplink) {
        if let Err(source) = host.netlink().delete_link(index).await {
            failure = failure.or(Some(DetachError::Link { name, source }));
        }
    }
    if !rules.is_empty() {
        let ops: Vec<_> = rules.into_iter().map(|rule| Planned::new(Op::DeleteRule(rule), "its pod is gone")).collect();
        let rules = host.execute(&ops).await.err().map(DetachError::Rules);
        failure = failure.or(rules);
    }
    failure.map_or(Ok(()), Err)
}

/// Whether a link is the VLAN of the attachment's branch ENI: marked as such, or the ledger's, and unmarked because its ADD has
/// broken off.
fn is_uplink(link: &Link, attachment: &Attachment, traces: &Traces) -> bool {
    let of_ledger = |held: &PodAddress| {
        let named = held.branch.and_then(|held| branch::link(held.vlan).ok());
        named.is_some_and(|name| name == link.name) && link.mac == Some(held.eni_mac)
    };
    is_uplink_of(link, attachment) || (is_vlan(link) && link.alias.is_none() && traces.held.iter().any(of_ledger))
}

/// The table of the attachment's branch ENI: that of its VLAN or, where that has gone, the ledger's. None where the VLAN is
/// another's by now.
fn table_of(seen: &Observed, uplink: Option<&Link>, traces: &Traces) -> Option<u32> {
    if let Some(link) = uplink {
        return branch::vlan_of_link(&link.name).map(branch::table);
    }
    let vlan = traces.held.iter().find_map(|held| held.branch)?.vlan;
    let name = branch::link(vlan).ok()?;
    seen.link(&name).is_none().then(|| branch::table(vlan))
}

/// The host's end as the pod's own end leads to it: its name may be none that we know. A sandbox that cannot be entered
/// is as good as gone.
async fn host_end_behind(netns: &Namespace, attachment: &Attachment, host: &Host) -> Result<Option<Link>, LinkError> {
    let Ok(pod) = Netlink::open_in(netns) else { return Ok(None) };
    let Some(pod_end) = pod.link_by_name(&attachment.ifname).await? else { return Ok(None) };
    let Some(index) = pod_end.peer else { return Ok(None) };
    let host_end = host.netlink().link_by_index(index).await?;
    Ok(host_end.filter(|host_end| is_host_end_of(host_end, attachment) && are_ends_of_one_veth(&pod_end, host_end)))
}

/// The attachments whose marks the host's links bear.
pub(crate) async fn marked() -> Result<Vec<(Attachment, IfName)>, DetachError> {
    let host = Host::current().map_err(DetachError::Open)?;
    let links = host.netlink().links().await.map_err(DetachError::Look)?;
    let named = |link: Link| Some((veth::attachment(link.alias.as_deref()?)?, link.name));
    let is_ours = |link: &Link| link.kind == LinkKind::Veth || is_vlan(link);
    Ok(links.into_iter().filter(is_ours).filter_map(named).collect())
}

fn everything() -> View {
    View { routes: Family::ALL.map(|family| (family, TABLE_MAIN)).into(), rules: Family::ALL.into(), ..View::default() }
}

/// The pods' addresses that are routed, each with its device.
pub(super) fn routed(seen: &Observed) -> impl Iterator<Item = (IpAddr, &IfName)> {
    seen.routes.iter().filter_map(|route| {
        let destination = route.destination;
        let is_host = destination == host_prefix(destination.addr());
        route.dev.as_ref().filter(|_| is_host && route.gateway.is_none()).map(|dev| (destination.addr(), dev))
    })
}

/// Whether an unmarked veth is the one of held addresses, as after a takeover from the VPC CNI.
fn leads_to_held(seen: &Observed, link: &Link, held: &[PodAddress]) -> bool {
    routed(seen).any(|(ip, dev)| *dev == link.name && held.iter().any(|address| address.ip == ip))
}

/// The addresses that are the attachment's: those that are routed to its link, and those that are claimed and routed
/// nowhere. What is routed to another link has found another owner.
fn own_addresses(seen: &Observed, link: Option<&Link>, traces: &Traces) -> BTreeSet<IpAddr> {
    let mut own: BTreeSet<IpAddr> = BTreeSet::new();
    for (ip, dev) in routed(seen) {
        if link.is_some_and(|link| link.name == *dev) {
            own.insert(ip);
        }
    }
    own.extend(traces.claimed.iter().filter(|claimed| routed(seen).all(|(ip, _)| ip != **claimed)));
    own
}

/// The rules of addresses, whichever table they lead to.
pub(super) fn rules_of(seen: &Observed, addresses: &BTreeSet<IpAddr>) -> Vec<Rule> {
    let is_one = |net: Option<ipnet::IpNet>| net.is_some_and(|net| addresses.iter().any(|ip| host_prefix(*ip) == net));
    let is_theirs = |rule: &&Rule| match rule.priority {
        RULE_TO_POD => is_one(rule.to) && rule.from.is_none(),
        RULE_FROM_POD => is_one(rule.from) && rule.to.is_none(),
        _ => false,
    };
    seen.rules.iter().filter(is_theirs).cloned().collect()
}
