//! The pure step from what is to what should be.
//!
//! Order keeps live pods on the air: everything is added before anything is deleted, a route's next hop before the
//! route, a table's routes before the rule that leads there; and the other way round for deletes. What is right
//! already is not touched.

mod apply;

use std::fmt;

use serde::{Deserialize, Serialize};
use sluice_contract::id::IfName;

use crate::desired::{Desired, LinkSettings};
use crate::state::{
    Address, Family, Neighbour, NftRuleset, NftTable, NftTableId, Observed, Protocol, Route, Rule, Sysctl, SysctlKey,
};

/// One change. Each can be done twice without harm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Writes a sysctl.
    SetSysctl {
        /// Which, and its new value.
        sysctl: Sysctl,
        /// The value before, where it is known.
        before: Option<String>,
    },
    /// Changes a link.
    SetLink {
        /// The link and what to set.
        to: LinkSettings,
        /// What the same fields were before.
        before: LinkSettings,
    },
    /// Adds an address.
    AddAddress(Address),
    /// Deletes an address.
    DeleteAddress(Address),
    /// Writes a permanent or proxy neighbour.
    SetNeighbour {
        /// The entry.
        neighbour: Neighbour,
        /// The entry whose place it takes.
        before: Option<Neighbour>,
    },
    /// Deletes a neighbour.
    DeleteNeighbour(Neighbour),
    /// Writes a route in the place of any with the same key.
    SetRoute {
        /// The route.
        route: Route,
        /// The route whose place it takes.
        before: Option<Route>,
    },
    /// Deletes a route.
    DeleteRoute(Route),
    /// Adds a rule.
    AddRule(Rule),
    /// Deletes a rule; of several equal ones, one.
    DeleteRule(Rule),
    /// Writes a whole nftables table in one transaction.
    SetNft {
        /// The table.
        ruleset: NftRuleset,
        /// The table whose place it takes.
        before: Option<NftTable>,
    },
    /// Deletes an nftables table.
    DeleteNft(NftTableId),
}

impl Op {
    /// The change that takes this one back; none for nftables tables, whose text a plan does not know (the executor
    /// saves it before it writes), and for a sysctl whose value before is unknown.
    #[must_use]
    pub fn inverse(&self) -> Option<Self> {
        Some(match self.clone() {
            Self::SetSysctl { sysctl: Sysctl { key, value }, before } => {
                Self::SetSysctl { sysctl: Sysctl { key, value: before? }, before: Some(value) }
            }
            Self::SetLink { to, before } => Self::SetLink { to: before, before: to },
            Self::AddAddress(address) => Self::DeleteAddress(address),
            Self::DeleteAddress(address) => Self::AddAddress(address),
            Self::SetNeighbour { neighbour, before: Some(before) } => {
                Self::SetNeighbour { neighbour: before, before: Some(neighbour) }
            }
            Self::SetNeighbour { neighbour, before: None } => Self::DeleteNeighbour(neighbour),
            Self::DeleteNeighbour(neighbour) => Self::SetNeighbour { neighbour, before: None },
            Self::SetRoute { route, before: Some(before) } => Self::SetRoute { route: before, before: Some(route) },
            Self::SetRoute { route, before: None } => Self::DeleteRoute(route),
            Self::DeleteRoute(route) => Self::SetRoute { route, before: None },
            Self::AddRule(rule) => Self::DeleteRule(rule),
            Self::DeleteRule(rule) => Self::AddRule(rule),
            Self::SetNft { .. } | Self::DeleteNft(_) => return None,
        })
    }

    /// Whether the op takes something away.
    #[must_use]
    pub const fn is_delete(&self) -> bool {
        matches!(
            self,
            Self::DeleteAddress(_)
                | Self::DeleteNeighbour(_)
                | Self::DeleteRoute(_)
                | Self::DeleteRule(_)
                | Self::DeleteNft(_)
        )
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetSysctl { sysctl, .. } => write!(f, "sysctl {} = {}", sysctl.key, sysctl.value),
            Self::SetLink { to, .. } => {
                write!(f, "link set {}", to.dev)?;
                if let Some(up) = to.up {
                    f.write_str(if up { " up" } else { " down" })?;
                }
                if let Some(mtu) = to.mtu {
                    write!(f, " mtu {mtu}")?;
                }
                Ok(())
            }
            Self::AddAddress(address) => write!(f, "address add {address}"),
            Self::DeleteAddress(address) => write!(f, "address del {address}"),
            Self::SetNeighbour { neighbour, .. } => write!(f, "neighbour replace {neighbour}"),
            Self::DeleteNeighbour(neighbour) => write!(f, "neighbour del {neighbour}"),
            Self::SetRoute { route, .. } => write!(f, "route replace {route}"),
            Self::DeleteRoute(route) => write!(f, "route del {route}"),
            Self::AddRule(rule) => write!(f, "rule add {rule}"),
            Self::DeleteRule(rule) => write!(f, "rule del {rule}"),
            Self::SetNft { ruleset, .. } => write!(f, "nft table {}", ruleset.id),
            Self::DeleteNft(id) => write!(f, "nft delete table {id}"),
        }
    }
}

/// A change and why it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// The change.
    pub op: Op,
    /// Why, for a person.
    pub reason: String,
}

impl Planned {
    /// A change and why it is made.
    #[must_use]
    pub fn new(op: Op, reason: impl Into<String>) -> Self {
        Self { op, reason: reason.into() }
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.op, self.reason)
    }
}

const MISSING: &str = "missing";
const UNWANTED: &str = "ours, and not wanted";

/// What to do, in order, to get from `observed` to `desired`. Only what `desired.scope` names is deleted. Planning
/// again from the result gives nothing to do.
///
/// A link that is desired and does not exist is passed over, and so is what stands on it: nothing here can make it.
///
/// What falls as a side effect is seen by the next look, not foreseen: with the last IPv4 address of a link the kernel
/// drops the link's IPv4 routes and neighbours. A desire with routes on a link should keep an address on it.
#[must_use]
pub fn plan(observed: &Observed, desired: &Desired) -> Vec<Planned> {
    let mut adds = Vec::new();
    let mut deletes = Vec::new();
    sysctls(observed, desired, &mut adds);
    links(observed, desired, &mut adds);
    let addresses_gone = addresses(observed, desired, &mut adds);
    neighbours(observed, desired, &mut adds, &mut deletes);
    let routes_gone = routes(observed, desired, &mut adds);
    rules(observed, desired, &mut adds, &mut deletes);
    // Behind the rules that lead to them, and before the addresses that they may stand on.
    let neighbours_gone: Vec<Planned> = deletes.extract_if(.., |p| matches!(p.op, Op::DeleteNeighbour(_))).collect();
    deletes.extend(routes_gone);
    deletes.extend(neighbours_gone);
    deletes.extend(addresses_gone);
    nft(observed, desired, &mut adds, &mut deletes);
    adds.extend(deletes);
    adds
}

/// Whether things on `dev` can be made: a plan for a link that is not there yet would fail as a whole.
fn exists(observed: &Observed, dev: Option<&IfName>) -> bool {
    dev.is_none_or(|dev| observed.link(dev).is_some())
}

fn sysctls(observed: &Observed, desired: &Desired, adds: &mut Vec<Planned>) {
    for sysctl in &desired.sysctls {
        let before = observed.sysctls.iter().find(|seen| seen.key == sysctl.key).map(|seen| seen.value.clone());
        if before.as_ref() != Some(&sysctl.value) {
            let reason = before.as_ref().map_or_else(|| "unknown so far".into(), |before| format!("is {before}"));
            adds.push(Planned::new(Op::SetSysctl { sysctl: sysctl.clone(), before }, reason));
        }
    }
}

fn links(observed: &Observed, desired: &Desired, adds: &mut Vec<Planned>) {
    for settings in &desired.links {
        let Some(link) = observed.link(&settings.dev) else { continue };
        let up = settings.up.filter(|up| *up != link.up);
        let mtu = settings.mtu.filter(|mtu| *mtu != link.mtu);
        let reason = match (up, mtu) {
            (None, None) => continue,
            (Some(up), None) => if up { "is down" } else { "is up" }.to_owned(),
            (None, Some(_)) => format!("MTU is {}", link.mtu),
            (Some(up), Some(_)) => format!("is {}, MTU is {}", if up { "down" } else { "up" }, link.mtu),
        };
        let to = LinkSettings { dev: settings.dev.clone(), up, mtu };
        let before = LinkSettings { dev: settings.dev.clone(), up: up.map(|up| !up), mtu: mtu.map(|_| link.mtu) };
        adds.push(Planned::new(Op::SetLink { to, before }, reason));
    }
}

fn addresses(observed: &Observed, desired: &Desired, adds: &mut Vec<Planned>) -> Vec<Planned> {
    let gone: Vec<&Address> = observed
        .addresses
        .iter()
        .filter(|seen| desired.scope.owns_address(seen) && !desired.addresses.iter().any(|wanted| wanted.is_same(seen)))
        .collect();
    for wanted in &desired.addresses {
        // Deleting the first IPv4 address of a prefix takes the later ones with it, and the last one of a link all
        // its routes, unless the kernel is told to promote a later one.
        // The kernel lists the first one first.
        let place = |of: &Address| observed.addresses.iter().position(|seen| seen.is_same(of)).unwrap_or(usize::MAX);
        let endangered = |seen: &&&Address| {
            seen.dev == wanted.dev
                && place(seen) < place(wanted)
                && Family::of(seen.net.addr()) == Family::V4
                && seen.net.trunc() == wanted.net.trunc()
        };
        if let Some(first) = gone.iter().find(endangered)
            && let Ok(key) = SysctlKey::of_interface(Family::V4, &wanted.dev, "promote_secondaries")
        {
            let on = Sysctl::new(key, 1);
            let before = observed.sysctls.iter().find(|seen| seen.key == on.key).map(|seen| seen.value.clone());
            let planned = adds.iter().any(|p| matches!(&p.op, Op::SetSysctl { sysctl, .. } if *sysctl == on));
            if before.as_deref() != Some("1") && !planned {
                let reason = format!("so that deleting {} spares {}", first.net, wanted.net);
                adds.push(Planned::new(Op::SetSysctl { sysctl: on, before }, reason));
            }
        }
        if exists(observed, Some(&wanted.dev)) && !observed.addresses.iter().any(|seen| seen.is_same(wanted)) {
            adds.push(Planned::new(Op::AddAddress(wanted.clone()), MISSING));
        }
    }
    gone.into_iter().map(|address| Planned::new(Op::DeleteAddress(address.clone()), UNWANTED)).collect()
}

fn neighbours(observed: &Observed, desired: &Desired, adds: &mut Vec<Planned>, deletes: &mut Vec<Planned>) {
    for wanted in &desired.neighbours {
        if !exists(observed, Some(&wanted.dev)) {
            continue;
        }
        let before = observed.neighbours.iter().find(|seen| seen.is_same_entry(wanted)).cloned();
        if before.as_ref() != Some(wanted) {
            let reason = before.as_ref().map_or_else(|| MISSING.into(), |before| format!("was {before}"));
            adds.push(Planned::new(Op::SetNeighbour { neighbour: wanted.clone(), before }, reason));
        }
    }
    for seen in &observed.neighbours {
        let wanted = desired.neighbours.iter().any(|wanted| wanted.is_same_entry(seen));
        if desired.scope.owns_neighbour(seen) && !wanted {
            deletes.push(Planned::new(Op::DeleteNeighbour(seen.clone()), UNWANTED));
        }
    }
}

fn routes(observed: &Observed, desired: &Desired, adds: &mut Vec<Planned>) -> Vec<Planned> {
    let mut wanted: Vec<Route> = desired.routes.iter().cloned().map(Route::canonical).collect();
    // A next hop must be reachable before a route by way of it is accepted.
    wanted.sort_by_key(|route| route.gateway.is_some());
    // What takes another route's place is neither wanted nor left to delete.
    let mut replaced: Vec<&Route> = Vec::new();
    for route in &wanted {
        let mut same_key = observed.routes.iter().filter(|seen| seen.key() == route.key());
        if !exists(observed, route.dev.as_ref()) || same_key.clone().any(|seen| seen.is_same(route)) {
            continue;
        }
        let before = same_key.next();
        replaced.extend(before);
        let reason = before.map_or_else(|| MISSING.into(), |before| format!("was {before}"));
        adds.push(Planned::new(Op::SetRoute { route: route.clone(), before: before.cloned() }, reason));
    }
    // With an address comes the kernel's route to its prefix, unless the address says otherwise.
    let implied = |seen: &Route| {
        let of = |address: &Address| {
            seen.dev.as_ref() == Some(&address.dev) && seen.destination == address.net.trunc() && !address.noprefixroute
        };
        seen.protocol == Protocol::KERNEL && desired.addresses.iter().any(of)
    };
    let mut gone: Vec<&Route> = observed
        .routes
        .iter()
        .filter(|seen| {
            desired.scope.owns_route(seen)
                && !implied(seen)
                && !wanted.iter().any(|route| route.is_same(seen))
                && !replaced.iter().any(|before| std::ptr::eq(*before, *seen))
        })
        .collect();
    gone.sort_by_key(|route| route.gateway.is_none());
    gone.into_iter().map(|route| Planned::new(Op::DeleteRoute(route.clone()), UNWANTED)).collect()
}

fn rules(observed: &Observed, desired: &Desired, adds: &mut Vec<Planned>, deletes: &mut Vec<Planned>) {
    let wanted: Vec<Rule> = desired.rules.iter().cloned().map(Rule::canonical).collect();
    for (at, rule) in wanted.iter().enumerate() {
        let twice = wanted.iter().take(at).any(|earlier| earlier == rule);
        if !twice && !observed.rules.contains(rule) {
            adds.push(Planned::new(Op::AddRule(rule.clone()), MISSING));
        }
    }
    for (at, seen) in observed.rules.iter().enumerate() {
        if !desired.scope.owns_rule(seen) {
            continue;
        }
        if !wanted.contains(seen) {
            deletes.push(Planned::new(Op::DeleteRule(seen.clone()), UNWANTED));
        } else if observed.rules.iter().take(at).any(|earlier| earlier == seen) {
            deletes.push(Planned::new(Op::DeleteRule(seen.clone()), "stands there twice"));
        }
    }
}

fn nft(observed: &Observed, desired: &Desired, adds: &mut Vec<Planned>, deletes: &mut Vec<Planned>) {
    for ruleset in &desired.nft {
        let before = observed.nft.iter().find(|seen| seen.id == ruleset.id);
        if before.is_none_or(|before| before.content != ruleset.content) {
            let reason = if before.is_some() { "differs" } else { MISSING };
            adds.push(Planned::new(Op::SetNft { ruleset: ruleset.clone(), before: before.cloned() }, reason));
        }
    }
    for seen in &observed.nft {
        if desired.scope.nft.contains(&seen.id) && !desired.nft.iter().any(|ruleset| ruleset.id == seen.id) {
            deletes.push(Planned::new(Op::DeleteNft(seen.id.clone()), UNWANTED));
        }
    }
}

#[cfg(test)]
mod tests;
