//! From one state of a router to the next, as operations on its namespace.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_contract::id::{IfName, InvalidId, MacAddr};
use sluice_hostnet::plan::{Op, Planned};
use sluice_hostnet::state::{Address, Family, Neighbour, Route, Rule};

use super::router::{Hop, RouterState};

/// The operations, in an order in which each finds what it stands on; the packet filter is
/// [`super::router::filter_changes`].
///
/// # Errors
/// When a link's name is none.
pub(super) fn changes(from: &RouterState, to: &RouterState) -> Result<Vec<Planned>, InvalidId> {
    let mut ops = Vec::new();
    for (link, address) in to.local.difference(&from.local) {
        ops.push(Op::AddAddress(local(link, *address)?));
    }
    for ((link, address), mac) in added(&from.neighbours, &to.neighbours) {
        ops.push(Op::SetNeighbour { neighbour: neighbour(link, *address, *mac)?, before: None });
    }
    for ((table, net), hop) in added(&from.routes, &to.routes) {
        let before = from.routes.get(&(*table, *net)).map(|hop| route(*table, *net, hop)).transpose()?;
        ops.push(Op::SetRoute { route: route(*table, *net, hop)?, before });
    }
    for family in Family::ALL {
        for each in to.rules.difference(&from.rules) {
            ops.push(Op::AddRule(rule(family, each)?));
        }
        for each in from.rules.difference(&to.rules) {
            ops.push(Op::DeleteRule(rule(family, each)?));
        }
    }
    for ((table, net), hop) in gone(&from.routes, &to.routes) {
        ops.push(Op::DeleteRoute(route(*table, *net, hop)?));
    }
    for ((link, address), mac) in gone(&from.neighbours, &to.neighbours) {
        ops.push(Op::DeleteNeighbour(neighbour(link, *address, *mac)?));
    }
    for (link, address) in from.local.difference(&to.local) {
        ops.push(Op::DeleteAddress(local(link, *address)?));
    }
    Ok(ops.into_iter().map(|op| Planned::new(op, "the VPC changed")).collect())
}

/// Entries of `to` that are not so in `from`.
fn added<'a, K: Ord, V: PartialEq>(
    from: &'a BTreeMap<K, V>,
    to: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    to.iter().filter(|(key, value)| from.get(key) != Some(value))
}

/// Entries of `from` whose keys are not in `to`.
fn gone<'a, K: Ord, V>(from: &'a BTreeMap<K, V>, to: &'a BTreeMap<K, V>) -> impl Iterator<Item = (&'a K, &'a V)> {
    from.iter().filter(|(key, _)| !to.contains_key(key))
}

fn local(link: &str, address: IpAddr) -> Result<Address, InvalidId> {
    Ok(Address::new(IfName::new(link)?, IpNet::from(address)))
}

fn neighbour(link: &str, address: IpAddr, mac: MacAddr) -> Result<Neighbour, InvalidId> {
    Ok(Neighbour::permanent(IfName::new(link)?, address, mac))
}

fn route(table: u32, net: IpNet, hop: &Hop) -> Result<Route, InvalidId> {
    Ok(match hop {
        Hop::Blackhole => Route::blackhole(table, net),
        Hop::Via { link, gateway } => Route::via(table, net, *gateway, IfName::new(link)?).with_onlink(),
    })
}

fn rule(family: Family, (priority, link, table): &(u32, String, u32)) -> Result<Rule, InvalidId> {
    Ok(Rule::iif(family, *priority, IfName::new(link)?, *table))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> RouterState {
        let mut state = RouterState::default();
        let via = Hop::Via { link: "r1".into(), gateway: "10.0.0.4".parse().unwrap() };
        state.local.insert(("lo".into(), "10.0.0.1".parse().unwrap()));
        state.routes.insert((254, "10.0.0.4/32".parse().unwrap()), via);
        state.rules.insert((40_000, "r1".into(), 1000));
        state.neighbours.insert(("r1".into(), "10.0.0.4".parse().unwrap()), MacAddr([2, 0, 0, 0, 0, 1]));
        state
    }

    fn words(from: &RouterState, to: &RouterState) -> Vec<String> {
        changes(from, to).unwrap().iter().map(|planned| planned.op.to_string()).collect()
    }

    #[test]
    fn what_is_built_on_something_comes_after_it_and_goes_before_it() {
        let empty = RouterState::default();
        assert_eq!(
            words(&empty, &state()),
            [
                "address add 10.0.0.1/32 dev lo",
                "neighbour replace 10.0.0.4 dev r1 lladdr 02:00:00:00:00:01",
                "route replace 10.0.0.4/32 via 10.0.0.4 dev r1 table 254",
                "rule add 40000: from all iif r1 lookup 1000",
                "rule add 40000: from all iif r1 lookup 1000",
            ]
        );
        assert_eq!(
            words(&state(), &empty),
            [
                "rule del 40000: from all iif r1 lookup 1000",
                "rule del 40000: from all iif r1 lookup 1000",
                "route del 10.0.0.4/32 via 10.0.0.4 dev r1 table 254",
                "neighbour del 10.0.0.4 dev r1 lladdr 02:00:00:00:00:01",
                "address del 10.0.0.1/32 dev lo",
            ]
        );
    }

    #[test]
    fn an_address_that_moves_is_one_replaced_route() {
        let mut to = state();
        let via = Hop::Via { link: "r2".into(), gateway: "10.0.0.5".parse().unwrap() };
        to.routes.insert((254, "10.0.0.4/32".parse().unwrap()), via);
        assert_eq!(words(&state(), &to), ["route replace 10.0.0.4/32 via 10.0.0.5 dev r2 table 254"]);
        assert!(words(&state(), &state()).is_empty());
    }
}
