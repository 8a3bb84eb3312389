//! Takes an attachment away with all its interfaces, as far as it is there and is the attachment's own.

use std::collections::BTreeSet;
use std::iter;
use std::net::IpAddr;

use sluice_contract::id::{Attachment, IfName};
use sluice_contract::node::veth::{self, End};
use sluice_contract::node::{RULE_FROM_POD, RULE_POD_INTERFACE, RULE_TO_POD, TABLE_MAIN, branch, nic, pod_table};
use sluice_contract::rpc::PodAddress;
use sluice_hostnet::branch::{is_vlan, strict_rules_to};
use sluice_hostnet::desired::View;
use sluice_hostnet::host::{ExecuteError, Host, ObserveError};
use sluice_hostnet::netlink::{LinkError, Netlink, OpenError};
use sluice_hostnet::netns::Namespace;
use sluice_hostnet::plan::{Op, Planned};
use sluice_hostnet::state::{Family, Link, LinkKind, Observed, Rule, host_prefix};

use super::{are_ends_of_one_veth, bears, is_host_end_of, is_uplink_of};
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
    /// Which interfaces of further network cards it has had, as far as that is known; more may be found.
    pub(crate) further: BTreeSet<u8>,
    /// What the host's ends may be called.
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

/// One interface of the attachment, and the host's end of it where that was found.
#[derive(Debug)]
struct Interface {
    attachment: Attachment,
    link: Option<Link>,
}

/// The interfaces of an attachment that are known so far: always the first.
#[derive(Debug)]
struct Interfaces(Vec<Interface>);

impl Interfaces {
    fn of(first: &Attachment, traces: &Traces) -> Self {
        let further = traces.further.iter().filter_map(|index| nic::attachment(first, *index));
        let all = iter::once(first.clone()).chain(further.filter(|further| further != first));
        Self(all.map(|attachment| Interface { attachment, link: None }).collect())
    }

    /// Takes `link` for the host's end that it is marked as; says whether it is one.
    fn take(&mut self, link: &Link) -> bool {
        let Some(interface) = self.0.iter_mut().find(|one| is_host_end_of(link, &one.attachment)) else { return false };
        interface.link.get_or_insert_with(|| link.clone());
        true
    }

    /// Puts `link` down as the host's end of `attachment`, of which nobody may have known.
    fn put(&mut self, attachment: Attachment, link: &Link) {
        match self.0.iter_mut().find(|one| one.attachment == attachment) {
            Some(interface) => {
                interface.link.get_or_insert_with(|| link.clone());
            }
            None => self.0.push(Interface { attachment, link: Some(link.clone()) }),
        }
    }

    /// Takes from all links of the host those that are marked as the attachment's.
    fn take_marked(&mut self, first: &Attachment, links: &[Link]) {
        for attachment in iter::once(first.clone()).chain(nic::further(first)) {
            let (mac, alias) = (veth::mac(End::Host, &attachment), veth::alias(&attachment));
            let is_it = |link: &&Link| link.kind == LinkKind::Veth && bears(link, mac, &alias);
            if let Some(link) = links.iter().find(is_it) {
                self.put(attachment, link);
            }
        }
    }

    /// Whether the host's end of one was not found.
    fn is_any_lost(&self) -> bool {
        self.0.iter().any(|one| one.link.is_none())
    }

    fn links(&self) -> impl Iterator<Item = &Link> {
        self.0.iter().filter_map(|one| one.link.as_ref())
    }
}

/// Takes the attachment away: its links, and with them their routes and the pod's ends, the VLAN of its branch ENI, then
/// its rules. As long as a link is there, ipamd takes the rules' going for somebody's mistake and puts them back.
pub(crate) async fn detach(attachment: &Attachment, traces: &Traces) -> Result<(), DetachError> {
    let host = Host::current().map_err(DetachError::Open)?;
    let mut interfaces = Interfaces::of(attachment, traces);
    let mut uplink = None;
    let mut unmarked = Vec::new();
    let is_unmarked = |link: &Link| link.kind == LinkKind::Veth && link.alias.is_none();
    for name in &traces.names {
        let found = host.netlink().link_by_name(name).await.map_err(DetachError::Look)?;
        match found {
            Some(found) if interfaces.take(&found) => {}
            Some(found) if is_uplink_of(&found, attachment) => uplink = uplink.or(Some(found)),
            Some(found) if is_unmarked(&found) => unmarked.push(found),
            _ => {}
        }
    }
    if let (true, Some(netns)) = (interfaces.is_any_lost(), &traces.netns) {
        look_behind(netns, attachment, &host, &mut interfaces).await.map_err(DetachError::Look)?;
    }
    if interfaces.is_any_lost() && traces.search {
        let all = host.netlink().links().await.map_err(DetachError::Look)?;
        interfaces.take_marked(attachment, &all);
        uplink = uplink.or_else(|| all.iter().find(|link| is_uplink_of(link, attachment)).cloned());
        unmarked = all.into_iter().filter(is_unmarked).collect();
    }

    let mut rules = layout::rules(&traces.held);
    let mut own: BTreeSet<IpAddr> = traces.held.iter().map(|held| held.ip).collect();
    // Without the ledger's word, the kernel's routes tell whose an address is, and its marks how many interfaces there
    // are.
    let in_doubt = (traces.held.is_empty() && interfaces.links().next().is_some()) || !traces.claimed.is_empty();
    let branched = uplink.is_some() || traces.held.iter().any(|address| address.branch.is_some());
    let adopted = interfaces.is_any_lost() && !unmarked.is_empty() && !traces.held.is_empty();
    if in_doubt || branched || adopted {
        let seen = host.observe(&everything()).await.map_err(DetachError::Observe)?;
        interfaces.take_marked(attachment, &seen.links);
        for lost in interfaces.0.iter_mut().filter(|one| one.link.is_none()) {
            let is_its = |link: &&Link| leads_to(&seen, link, &held_by(&lost.attachment, attachment, traces));
            lost.link = unmarked.iter().find(is_its).cloned();
        }
        let routed = own_addresses(&seen, &interfaces, traces);
        rules.extend(rules_of(&seen, &routed));
        own.extend(routed);
        uplink = uplink.or_else(|| seen.links.iter().find(|link| is_uplink(link, attachment, traces)).cloned());
        if let Some(table) = table_of(&seen, uplink.as_ref(), traces) {
            rules.extend(strict_rules_to(&seen.rules, table).cloned());
        }
    }
    let had_further = interfaces.0.len() > 1;
    let mut failure = None;
    for Link { index, name, .. } in interfaces.0.into_iter().filter_map(|one| one.link).chain(uplink) {
        if let Err(source) = host.netlink().delete_link(index).await {
            failure = failure.or(Some(DetachError::Link { name, source }));
        }
    }
    if !rules.is_empty() {
        let ops: Vec<_> = rules.into_iter().map(|rule| Planned::new(Op::DeleteRule(rule), "its pod is gone")).collect();
        let rules = host.execute(&ops).await.err().map(DetachError::Rules);
        failure = failure.or(rules);
    }
    if let (true, Some(netns)) = (had_further, &traces.netns) {
        clear_sandbox(netns, &own).await;
    }
    failure.map_or(Ok(()), Err)
}

/// The addresses that ipamd holds for one interface of the attachment `first`.
fn held_by<'t>(interface: &Attachment, first: &Attachment, traces: &'t Traces) -> Vec<&'t PodAddress> {
    // What is said of a further interface alone is all its own.
    let index = nic::has_further(first).then(|| nic::index(&interface.ifname));
    traces.held.iter().filter(|held| index.is_none_or(|index| held.interface == index)).collect()
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

/// Finds the host's ends as the pod's own ends lead to them: their names may be none that we know, and there may be more
/// of them than we know. A sandbox that cannot be entered is as good as gone.
async fn look_behind(
    netns: &Namespace,
    first: &Attachment,
    host: &Host,
    interfaces: &mut Interfaces,
) -> Result<(), LinkError> {
    let Ok(pod) = Netlink::open_in(netns) else { return Ok(()) };
    for pod_end in pod.links().await? {
        let further = nic::has_further(first).then(|| nic::index(&pod_end.name)).filter(|index| *index > 0);
        let attachment = match further {
            Some(index) => nic::attachment(first, index),
            None => (pod_end.name == first.ifname).then(|| first.clone()),
        };
        let (Some(attachment), Some(index)) = (attachment, pod_end.peer) else { continue };
        let host_end = host.netlink().link_by_index(index).await?;
        if let Some(host_end) = host_end
            && is_host_end_of(&host_end, &attachment)
            && are_ends_of_one_veth(&pod_end, &host_end)
        {
            interfaces.put(attachment, &host_end);
        }
    }
    Ok(())
}

/// Deletes the rules of further interfaces in a sandbox that is still there: they name no link, and so do not go with
/// one. They lead nowhere by now, so that nothing depends on it. Only those of the attachment's `own` addresses: what a late
/// DEL names may be another pod's by now.
async fn clear_sandbox(netns: &Namespace, own: &BTreeSet<IpAddr>) {
    let Ok(pod) = Host::of(netns.clone()) else { return };
    let view = View { rules: Family::ALL.into(), ..View::default() };
    let Ok(seen) = pod.observe(&view).await else { return };
    let leads_to_further = |rule: &Rule| (1..nic::INTERFACES_MAX).any(|index| rule.table == pod_table(index));
    let is_own = |rule: &Rule| rule.from.is_some_and(|from| own.iter().any(|ip| host_prefix(*ip) == from));
    let is_ours = |rule: &Rule| {
        rule.priority == RULE_POD_INTERFACE && is_own(rule) && rule.to.is_none() && leads_to_further(rule)
    };
    let rules = seen.rules.into_iter().filter(is_ours);
    let ops: Vec<_> = rules.map(|rule| Planned::new(Op::DeleteRule(rule), "its interface is gone")).collect();
    drop(pod.execute(&ops).await);
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
fn leads_to(seen: &Observed, link: &Link, held: &[&PodAddress]) -> bool {
    routed(seen).any(|(ip, dev)| *dev == link.name && held.iter().any(|address| address.ip == ip))
}

/// The addresses that are the attachment's: those that are routed to its links, and those that are claimed and routed
/// nowhere. What is routed to another link has found another owner.
fn own_addresses(seen: &Observed, interfaces: &Interfaces, traces: &Traces) -> BTreeSet<IpAddr> {
    let mut own: BTreeSet<IpAddr> = BTreeSet::new();
    for (ip, dev) in routed(seen) {
        if interfaces.links().any(|link| link.name == *dev) {
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
