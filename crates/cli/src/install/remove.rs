//! Taking Sluice off a node.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sluice_contract::id::IfName;
use sluice_contract::node::branch::{RULE_BRANCH, RULE_LOCAL, RULE_ROUTER};
use sluice_contract::node::{
    BPF_DIR, RULE_EXTERNAL_SERVICE, RULE_FROM_ENI, RULE_FROM_POD, RULE_PRIMARY_ENI_MARK, RULE_TO_POD, TABLE_MAIN, veth,
};
use sluice_hostnet::branch::{is_vlan, is_vlans_rule};
use sluice_hostnet::desired::{Desired, RouteScope, RuleScope, View};
use sluice_hostnet::host::{Host, ObserveError, ReconcileError};
use sluice_hostnet::netlink::{LinkError, OpenError};
use sluice_hostnet::netns::{Namespace, NamespaceError};
use sluice_hostnet::nft::draft;
use sluice_hostnet::state::{Family, Link, LinkKind, NftFamily, NftTableId, Rule, TABLE_LOCAL};
use sluice_hostnet::tc::{Hook, Slot, TcError};

use super::conflist::{self, ConflistError};
use super::files::{self, FileError};
use super::{Places, ready, seccomp};

/// The priorities of rules that ipamd makes.
const RULES: [u32; 5] = [RULE_TO_POD, RULE_PRIMARY_ENI_MARK, RULE_EXTERNAL_SERVICE, RULE_FROM_POD, RULE_FROM_ENI];

/// The names under which policyd's programs stand at links.
const PROGRAMS: [&str; 4] = ["from_pod", "to_pod", "drop", "uplink"];

/// The host's ends of the proxy's links.
const PROXY_LINKS: [&str; 2] = ["sluice-egress", "sluice-ingress"];

/// Why something is still there.
#[derive(Debug, thiserror::Error)]
pub(super) enum RemoveError {
    /// Daemons would put back what is taken away.
    #[error("{} still {} on this node: stop {} first", .0.join(" and "), if .0.len() == 1 { "runs" } else { "run" }, if .0.len() == 1 { "it" } else { "them" })]
    Running(Vec<&'static str>),
    /// Pods need the plugins for their DEL.
    #[error(
        "{pods} pods of this node still have addresses of Sluice; {next}, then run this again (--force takes everything away now, and cuts them off)"
    )]
    Pods {
        /// How many.
        pods: usize,
        /// What to do.
        next: &'static str,
    },
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Conflist(#[from] ConflistError),
    #[error("netlink cannot be used")]
    Netlink(#[from] OpenError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Tc(#[from] TcError),
    #[error("cannot look at the host's network")]
    Observe(#[from] ObserveError),
    #[error("cannot clear the host's network")]
    Reconcile(#[from] ReconcileError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
}

/// Takes everything away, the conflist last; what is not there any more is passed over.
pub(super) async fn everything(places: &Places, force: bool, say: &dyn Fn(&str)) -> Result<(), RemoveError> {
    let running = ready::running(&places.run_dir).await;
    if !running.is_empty() {
        return Err(RemoveError::Running(running));
    }
    let conflist = places.conflist();
    let other = conflist::has_other(&places.net_dir, &conflist)?;
    let host = Host::current()?;
    let links = host.netlink().links().await?;
    // What `sluice handback` leaves behind: pods are the VPC CNI's then, whoever has made their links.
    let state = places.run_dir.join("ipam.json");
    let handed_back = state.with_extension("json.handed-back").exists() && !state.exists();
    let is_pod = |alias: &Option<String>| !handed_back && alias.as_deref().is_some_and(veth::is_ours);
    // A pod with security groups of its own has a VLAN beside its veth.
    let pods = links.iter().filter(|link| is_pod(&link.alias) && !is_vlan(link)).count();
    if pods > 0 && !force {
        if other && files::remove(&conflist)? {
            say(&format!("{} is gone: new pods are another plugin's", conflist.display()));
        }
        let next = if other { "restart them" } else { "drain the node" };
        return Err(RemoveError::Pods { pods, next });
    }

    for link in links.iter().filter(|link| is_pod(&link.alias)) {
        host.netlink().delete_link(link.index).await?;
    }
    for link in links.iter().filter(|link| !is_pod(&link.alias)) {
        filters(&host, link.index).await?;
    }
    if handed_back {
        unmark(&host, &links).await?;
    }
    // Links at hooks go with their pins.
    if files::remove_all(Path::new(BPF_DIR))? {
        say("programs and maps are gone from the kernel");
    }
    for name in PROXY_LINKS {
        if let Ok(name) = IfName::new(name) {
            host.netlink().delete_link_if(&name, |link| link.kind == LinkKind::Veth).await?;
        }
    }
    for name in ["egress", "ingress"] {
        Namespace::remove(places.run_dir.join("netns").join(name))?;
    }
    network(&host, has_vpc_cni(&places.net_dir), say).await?;
    for name in conflist::OURS {
        if files::remove(&places.bin_dir.join(name))? {
            say(&format!("{} is gone", places.bin_dir.join(name).display()));
        }
    }
    seccomp::remove(&places.seccomp_dir, say)?;
    if files::remove_all(&places.run_dir)? {
        say(&format!("{} is gone", places.run_dir.display()));
    }
    if files::remove(&conflist)? {
        let next = if other {
            "new pods are another plugin's"
        } else {
            "no other is there: the node starts no pods until one is"
        };
        say(&format!("{} is gone; {next}", conflist.display()));
    }
    Ok(())
}

/// Takes the names of our attachments off links that are the VPC CNI's now. Else this would count them as pods of ours another time,
/// when what tells that they were handed back is gone.
async fn unmark(host: &Host, links: &[Link]) -> Result<(), RemoveError> {
    for link in links.iter().filter(|link| link.alias.as_deref().is_some_and(veth::is_ours)) {
        if let Err(error) = host.netlink().set_alias(link.index, "").await {
            let there = host.netlink().links().await?;
            // Its pod may have ended meanwhile.
            if there.iter().any(|other| other.index == link.index) {
                return Err(error.into());
            }
        }
    }
    Ok(())
}

/// Takes policyd's programs off the hooks of a link.
async fn filters(host: &Host, index: u32) -> Result<(), RemoveError> {
    for hook in Hook::ALL {
        // A link may end, and one without hooks has no filters.
        let Ok(filters) = host.netlink().filters(index, hook).await else { continue };
        let is_ours = |name: &Option<String>| name.as_deref().is_some_and(|name| PROGRAMS.contains(&name));
        if filters.iter().any(|filter| filter.slot == Slot::GATE && is_ours(&filter.name)) {
            host.netlink().remove_filter(index, hook, Slot::GATE).await?;
        }
    }
    Ok(())
}

/// Whether the AWS VPC CNI has a conflist: its rules and routes are the same as ours, and stay for it.
fn has_vpc_cni(net_dir: &Path) -> bool {
    let entries = fs::read_dir(net_dir).into_iter().flatten().filter_map(io::Result::ok);
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().any(|path| conflist::names(path, "aws-cni"))
}

/// Of pods with security groups of their own, the rules and tables of their VLANs; and the node's own addresses come first again, as
/// the kernel has it.
fn branches(rules: &[Rule], gone: &mut Desired) {
    for rule in rules {
        if is_vlans_rule(rule) {
            gone.scope
                .rules
                .insert(RuleScope { table: Some(rule.table), ..RuleScope::priority(rule.family, RULE_BRANCH) });
            gone.scope.routes.insert(RouteScope::table(rule.table, rule.family));
        }
        if *rule == Rule::all(rule.family, RULE_LOCAL, TABLE_LOCAL) {
            gone.rules.push(Rule::all(rule.family, RULE_ROUTER, TABLE_LOCAL));
            for priority in [RULE_ROUTER, RULE_LOCAL] {
                let scope = RuleScope { table: Some(TABLE_LOCAL), ..RuleScope::priority(rule.family, priority) };
                gone.scope.rules.insert(scope);
            }
        }
    }
}

/// Takes rules, routes of secondary ENIs and nftables away. What pods that are the VPC CNI's leave the VPC by stays until its daemon has its
/// own: a connection that is not translated at its beginning never is.
async fn network(host: &Host, handed_over: bool, say: &dyn Fn(&str)) -> Result<(), RemoveError> {
    let mut gone = Desired::default();
    for family in [NftFamily::Ip, NftFamily::Ip6] {
        let table = NftTableId::new(family, "sluice");
        gone.scope.nft.insert(draft(&table));
        if !handed_over || family == NftFamily::Ip6 {
            gone.scope.nft.insert(table);
        }
    }
    if !handed_over {
        let view = View { rules: Family::ALL.into_iter().collect(), ..View::default() };
        let rules: Vec<Rule> = host.observe(&view).await?.rules.into_iter().collect();
        for rule in rules.iter().filter(|rule| RULES.contains(&rule.priority)) {
            gone.scope.rules.insert(RuleScope::priority(rule.family, rule.priority));
            let own = matches!(rule.priority, RULE_FROM_POD | RULE_FROM_ENI) && rule.table != TABLE_MAIN;
            if own {
                gone.scope.routes.insert(RouteScope::table(rule.table, rule.family));
            }
        }
        branches(&rules, &mut gone);
    }
    host.reconcile(&gone).await?;
    say(if handed_over {
        "rules, routes and the translation of addresses stay for the AWS VPC CNI: when its daemon is ready, `nft delete table ip sluice`"
    } else {
        "rules, routes and nftables are gone"
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_hostnet::plan::plan;
    use sluice_hostnet::state::Observed;

    #[test]
    fn the_nodes_own_addresses_come_first_again_and_other_rules_stay() {
        let vlan = IfName::new("vlan.eth.7").unwrap();
        let rules = vec![
            Rule::iif(Family::V4, RULE_BRANCH, vlan.clone(), 107),
            Rule::iif(Family::V4, RULE_BRANCH, vlan, 7),
            Rule::iif(Family::V4, RULE_BRANCH, IfName::new("tun0").unwrap(), 200),
            Rule::all(Family::V4, RULE_LOCAL, TABLE_LOCAL),
            Rule::all(Family::V4, RULE_LOCAL, TABLE_MAIN),
        ];
        let mut gone = Desired::default();
        branches(&rules, &mut gone);
        let seen = Observed { rules, ..Observed::default() };
        let ops: Vec<String> = plan(&seen, &gone).iter().map(|planned| planned.op.to_string()).collect();
        assert_eq!(
            ops,
            [
                "rule add 0: from all lookup 255",
                "rule del 10: from all iif vlan.eth.7 lookup 107",
                "rule del 20: from all lookup 255",
            ]
        );
        let mut plain = Desired::default();
        branches(&[Rule::all(Family::V4, RULE_ROUTER, TABLE_LOCAL)], &mut plain);
        assert_eq!(plain, Desired::default());
    }
}
