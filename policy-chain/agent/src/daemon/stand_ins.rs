//! Identities for names that nobody has asked for yet: each set of patterns that may mean one name has addresses that stand for
//! those that the name may have one day, so that the proxy knows what such an address becomes while policyd is away (DESIGN 8).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice_policy_core::cluster::Event;
use sluice_policy_core::l7::dns::{Name, NamePattern};

use super::names::seconds;
use super::{Daemon, Knowledge};
use crate::cluster::Cluster;
use crate::datapath::Datapath;

/// Sets of patterns that have stand-ins.
const SETS: usize = 1_024;
/// How often it is tried whether a pattern means a name, a few milliseconds of work whenever patterns change.
const TRIALS: usize = 100_000;
/// Seconds that they are known for; those that are wanted are renewed long before.
const LAST: u64 = 300;
/// What stands in the place of a pattern's `*`.
const ANY: &str = "sluice-any";

/// Whether an address is of those that stand for others. Nothing is ever sent to one: "this network" (RFC 1122, 3.2.1.3) but for
/// `0.0.0.0`, and the prefix for what is thrown away (RFC 6666).
pub(super) fn is_stand_in(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[0] == 0 && !v4.is_unspecified(),
        IpAddr::V6(v6) => matches!(v6.segments(), [0x100, 0, 0, 0, ..]),
    }
}

/// The stand-ins of a number, one of each family.
fn addresses(number: u32) -> Vec<IpAddr> {
    let number = number & 0x00ff_ffff;
    vec![Ipv4Addr::from_bits(number).into(), Ipv6Addr::from_bits(0x100 << 112 | u128::from(number)).into()]
}

/// A name that a pattern means.
fn example(pattern: &NamePattern) -> Option<Name> {
    let text = pattern
        .exact()
        .map_or_else(|| pattern.normal().replace("**", "*").replace('*', ANY), |name| name.as_str().to_owned());
    Name::new(&text).ok().filter(|name| pattern.matches(name))
}

/// A name for each set of patterns that mean one name, as far as one pattern's example shows them.
fn examples(patterns: &[NamePattern]) -> BTreeSet<Name> {
    let mut of_sets: BTreeMap<Vec<usize>, Name> = BTreeMap::new();
    let most = SETS.min(TRIALS / patterns.len().max(1));
    for name in patterns.iter().filter_map(example).take(most) {
        let set = (0..).zip(patterns).filter(|(_, pattern)| pattern.matches(&name)).map(|(at, _)| at).collect();
        of_sets.entry(set).or_insert(name);
    }
    of_sets.into_values().collect()
}

/// The stand-ins.
#[derive(Debug, Default)]
pub(super) struct StandIns {
    /// The number of each name's.
    of: BTreeMap<Name, u32>,
    last: u32,
    /// Whether rules mean other names than when they were chosen.
    stale: bool,
}

impl StandIns {
    /// Rules mean other names from now on.
    pub(super) const fn patterns_changed(&mut self) {
        self.stale = true;
    }

    /// How many addresses there are.
    pub(super) fn count(&self) -> usize {
        2 * self.of.len()
    }
}

impl<C: Cluster, D: Datapath> Daemon<C, D> {
    /// Chooses stand-ins for the patterns of now. Whether there is something to be committed.
    pub(super) fn choose_stand_ins(&mut self) -> bool {
        if self.knowledge == Knowledge::Nothing || !std::mem::take(&mut self.stand_ins.stale) {
            return false;
        }
        let wanted = examples(&self.engine.name_patterns());
        // Those that nobody wants any more end by themselves.
        self.stand_ins.of.retain(|name, _| wanted.contains(name));
        for name in wanted {
            if !self.stand_ins.of.contains_key(&name) {
                self.stand_ins.last = self.stand_ins.last.wrapping_add(1).max(1);
                self.stand_ins.of.insert(name, self.stand_ins.last);
            }
        }
        self.renew_stand_ins();
        self.dirty
    }

    /// Has them stay.
    pub(super) fn renew_stand_ins(&mut self) {
        let until = seconds(self.parts.clock.now()) + LAST;
        for (name, number) in &self.stand_ins.of {
            let addresses = addresses(*number);
            let state = self.engine.cluster();
            let known = |address| state.names.get(name).is_some_and(|known| known.contains_key(address));
            self.dirty |= !addresses.iter().all(known);
            self.engine.apply(Event::Resolved { name: name.clone(), addresses, until: Some(until) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_has_an_example_and_every_set_one() {
        let patterns: Vec<NamePattern> =
            ["*", "**", "*.example.com", "**.example.com", "a*b.example.com", "*.*.example.com", "*x*"]
                .iter()
                .map(|text| NamePattern::cilium(text).unwrap())
                .chain([NamePattern::name("www.example.com").unwrap(), NamePattern::domain("*.example.org").unwrap()])
                .collect();
        for pattern in &patterns {
            assert!(example(pattern).is_some_and(|name| pattern.matches(&name)), "{pattern}");
        }
        let names: Vec<String> = examples(&patterns).iter().map(ToString::to_string).collect();
        assert!(names.len() >= 5 && names.iter().any(|name| name.starts_with("www.example.com")), "{names:?}");
        let one = [NamePattern::cilium("*.example.com").unwrap(), NamePattern::cilium("**.example.com").unwrap()];
        assert_eq!(examples(&one).len(), 1, "one name shows both");
    }

    #[test]
    fn stand_ins_are_told_from_addresses_that_something_has() {
        for number in [1, 2, 1_000, u32::MAX] {
            assert!(addresses(number).iter().all(is_stand_in));
        }
        for other in ["0.0.0.0", "10.0.0.1", "::", "::1", "100:0:0:1::1", "2001:db8::1"] {
            assert!(!is_stand_in(&other.parse().unwrap()), "{other}");
        }
    }
}
