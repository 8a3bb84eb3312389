//! What a node can hold for pods when all is asked for.

use super::Targets;
use super::pool::{Form, Pool};
use crate::ipv6::{Families, WINDOW};
use crate::ledger::{Eni, Stage};
use crate::limits::takes_trunk;
use crate::state::{Node, State};
use crate::time::Timestamp;

/// What the node can hold for pods on all network cards that serve them, and what would let it hold more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// ENIs that it may have, the primary one among them.
    pub enis: u32,
    /// Addresses that these hold for pods: what is there, in whatever form, and what there is room for in the form that is asked
    /// for. Where pods have IPv6 alone, those that are given out of the /80s.
    pub addresses: u32,
    /// `MAX_ENI` allows fewer ENIs than the instance type does.
    pub by_setting: bool,
    /// Prefixes would hold more: they are off, and the instance type takes them.
    pub prefixes_would_help: bool,
}

impl Capacity {
    /// Of the node of `state`; nothing before it is known.
    #[must_use]
    pub fn of(state: &State, targets: &Targets, now: Timestamp) -> Self {
        let Some(node) = state.node() else { return Self::default() };
        let form = Form::of(targets, &node.limits);
        let mut all = Self { prefixes_would_help: would_prefixes_help(node, form), ..Self::default() };
        for card in state.cards() {
            let limit = eni_limit(node, targets, card);
            let addresses = if node.families == Families::V6 {
                // One /80 a card is all that pods have.
                if node.limits.prefixes { u32::from(WINDOW) } else { 0 }
            } else {
                all.by_setting |= limit < node.limits.enis_of(card);
                of_card(state, node, targets, form, card, &Pool::of(state, card, form, now))
            };
            all.enis = all.enis.saturating_add(limit);
            all.addresses = all.addresses.saturating_add(addresses);
        }
        all
    }
}

/// Whether the node's ENIs would hold more with prefixes.
pub(super) fn would_prefixes_help(node: &Node, form: Form) -> bool {
    node.families != Families::V6 && node.limits.prefixes && !form.prefixes
}

/// How many ENIs the node may have on a network card.
pub(super) fn eni_limit(node: &Node, targets: &Targets, card: u32) -> u32 {
    let limit = node.limits.enis_of(card);
    targets.max_enis.filter(|max| *max >= 1).map_or(limit, |max| max.min(limit))
}

/// How many of them are kept for the trunk ENI, which somebody else makes and attaches, to card 0.
pub(super) fn kept_for_trunk(state: &State, node: &Node, targets: &Targets, card: u32) -> u32 {
    let wanted = card == 0 && targets.trunk && takes_trunk(&node.identity.instance_type, &node.limits);
    u32::from(wanted && state.trunk().is_none())
}

/// ENIs that hold a place on a network card, or will.
pub(super) fn made(state: &State, card: u32) -> u32 {
    let holds = |eni: &&Eni| eni.card == card && (eni.device.is_some() || eni.stage == Stage::Created);
    let coming = state.intents().values().filter(|intent| intent.card == card);
    u32::try_from(state.ledger().enis().filter(holds).count() + coming.count()).unwrap_or(u32::MAX)
}

/// How many addresses the ENIs that a network card may have hold for pods. `pool` is the card's: what there is, in whatever form, and
/// what there is room for.
pub(super) fn of_card(state: &State, node: &Node, targets: &Targets, form: Form, card: u32, pool: &Pool) -> u32 {
    // With custom networking pods get no address of the primary ENI, also before that is known.
    let primary = card == 0 && node.custom_networking && state.ledger().primary().is_none();
    let enis = eni_limit(node, targets, card)
        .saturating_sub(kept_for_trunk(state, node, targets, card))
        .saturating_sub(u32::from(primary));
    let unmade = i64::from(enis.saturating_sub(made(state, card))) * form.room_beside(0);
    u32::try_from(pool.everything + pool.room + unmade).unwrap_or(0)
}

#[cfg(test)]
mod tests;
