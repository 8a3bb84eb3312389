//! Where in its document a part of a policy stands.

use serde_json::Value;

use super::Item;
use crate::flow::{Direction, RuleRef};
use crate::model::Policy;
use crate::model::cilium::CiliumPeers;

/// The value at a path such as `spec.ingress[0].from`.
pub(super) fn value_at<'a>(document: &'a Value, path: &str) -> Option<&'a Value> {
    if path.is_empty() {
        return None;
    }
    path.split('.').try_fold(document, |value, part| {
        let (name, indexes) = part.split_once('[').map_or((part, ""), |(name, rest)| (name, rest));
        let value = value.get(name)?;
        let indexes = indexes.split('[').filter(|index| !index.is_empty());
        indexes
            .map(|index| index.trim_end_matches(']').parse::<usize>().ok())
            .try_fold(value, |value, index| value.get(index?))
    })
}

/// The path of `spec`, or of an element of `specs`, by [`RuleRef::spec`].
pub(super) fn spec(number: u16) -> String {
    match number.checked_sub(1) {
        None => "spec".to_owned(),
        Some(index) => format!("specs[{index}]"),
    }
}

/// The path of a rule.
pub(super) fn rule(rule: &RuleRef) -> String {
    let deny = if rule.deny { "Deny" } else { "" };
    format!("{}.{}{deny}[{}]", spec(rule.spec), rule.direction, rule.index)
}

/// The path of whom a policy or one of its elements governs.
pub(super) fn subject(item: &Item<'_>, number: u16) -> String {
    let field = match item.policy.as_ref() {
        Policy::Network(_) => "podSelector",
        Policy::Cluster(_) => "subject",
        Policy::Cilium(_) => "endpointSelector",
    };
    format!("{}.{field}", spec(number))
}

/// `from` or `to`.
pub(super) const fn from_or_to(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    }
}

/// The name of the field with the ports of a rule, as the document has it.
pub(super) fn ports(item: &Item<'_>, rule: &str) -> String {
    let fields = value_at(&item.document.value, rule);
    let names = ["ports", "protocols", "toPorts", "icmps"];
    let found = names.iter().find(|name| fields.is_some_and(|fields| fields.get(**name).is_some()));
    found.map_or_else(|| rule.to_owned(), |name| format!("{rule}.{name}"))
}

/// The path of the peers of a rule of cilium.io.
pub(super) fn cilium_peers(item: &Item<'_>, rule: &str, direction: Direction, peers: &CiliumPeers) -> String {
    let fields = value_at(&item.document.value, rule);
    let names: &[&str] = match peers {
        CiliumPeers::Any => &[],
        CiliumPeers::Nothing => &["Endpoints", "CIDR", "CIDRSet", "Entities", "Services", "Groups", "Nodes", "FQDNs"],
        CiliumPeers::Endpoints(_) => &["Endpoints"],
        CiliumPeers::Cidrs(_) => &["CIDR", "CIDRSet"],
        CiliumPeers::Entities(_) => &["Entities"],
        CiliumPeers::Services(_) => &["Services"],
        CiliumPeers::Groups(_) => &["Groups"],
        CiliumPeers::Nodes(_) => &["Nodes"],
        CiliumPeers::Names(_) => &["FQDNs"],
    };
    let filled =
        |value: &Value| value.as_array().is_some_and(|list| !list.is_empty() || *peers == CiliumPeers::Nothing);
    let names = names.iter().map(|name| format!("{}{name}", from_or_to(direction)));
    let found = names.into_iter().find(|name| fields.and_then(|fields| fields.get(name)).is_some_and(filled));
    found.map_or_else(|| rule.to_owned(), |name| format!("{rule}.{name}"))
}
