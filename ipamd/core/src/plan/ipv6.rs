//! The /80s of ENIs. One is enough for all pods of an ENI, so there is nothing to grow or to give back; with IPv6 alone one ENI
//! is enough for a network card.

use super::draft::Draft;
use super::pool::Form;
use super::{Cause, Demand, Hopeless, Relief, Targets, grow};
use crate::cloud::{Api, CloudErrorKind};
use crate::ipv6::WINDOW;
use crate::ledger::{Eni, Stage};
use crate::op::{Op, OpKey};
use crate::state::Node;

/// Asks for the /80s that are missing. New ENIs are made with one.
pub(super) fn delegate(draft: &mut Draft<'_>, node: &Node) {
    let state = draft.state;
    if !node.families.has_v6() {
        return;
    }
    if !node.limits.prefixes {
        draft.held_up(Cause::NoIpv6 { instance_type: node.identity.instance_type.clone() });
        return;
    }
    let lacks = |eni: &&Eni| eni.stage != Stage::Leaving && state.lacks_ipv6(&eni.id);
    for eni in state.ledger().enis().filter(lacks) {
        let resting = eni.unsure || eni.not_before.is_some_and(|at| at > draft.now);
        if resting || draft.is_busy(&OpKey::Ipv6(eni.id.clone())) {
            continue;
        }
        let op = Op::AssignIpv6 { eni: eni.id.clone() };
        if let Err(cause) = draft.ask(op, "pods' IPv6 addresses are of a /80 of their ENI".to_owned()) {
            draft.held_up(cause);
        }
    }
}

/// Asks for the ENI of a further network card: one with a /80 is enough, and as much as is kept.
pub(super) fn one_eni(draft: &mut Draft<'_>, node: &Node, targets: &Targets, form: Form, demand: Demand) {
    let state = draft.state;
    let card = draft.card;
    let is_it = |eni: &Eni| eni.card == card && eni.carries_pods() && eni.stage != Stage::Leaving;
    let is_coming = state.intents().values().any(|intent| intent.card == card);
    let is_wanted = demand.waiting > 0 || !state.cordoned || targets.warm_when_cordoned;
    if is_wanted && node.limits.prefixes && !is_coming && !state.ledger().enis().any(is_it) {
        grow::one_eni(draft, node, targets, form, demand);
    } else if let Some(cooled) = state.ledger().next_cooled(draft.now).filter(|_| demand.waiting > 0) {
        draft.wake(cooled);
    }
}

/// Says which of those that wait for an IPv6 address wait in vain.
pub(super) fn conclude(draft: &mut Draft<'_>, node: &Node, waiting: u32) {
    let state = draft.state;
    let tally = state.ledger().tally_of(0, draft.now);
    let can_come = tally.free + tally.cooling + tally.pending;
    if let Some(cooled) = state.ledger().next_cooled(draft.now).filter(|_| waiting > tally.free) {
        draft.wake(cooled);
    }
    let Some(primary) = state.ledger().primary() else { return };
    let cause = if !node.limits.prefixes {
        Cause::NoIpv6 { instance_type: node.identity.instance_type.clone() }
    } else if primary.ipv6.is_some() {
        Cause::EniLimit { limit: 1, by_setting: false, addresses: u32::from(WINDOW), relief: Relief::None }
    } else {
        match draft.obstacle(Api::AssignIpv6Addresses) {
            Some(obstacle) if obstacle.kind == CloudErrorKind::Denied => {
                super::draft::cause_of(state, Api::AssignIpv6Addresses, obstacle)
            }
            // It is on its way.
            _ => return,
        }
    };
    let beyond = waiting.saturating_sub(can_come);
    draft.conclude((beyond > 0).then_some(Hopeless { cause, beyond }));
}

#[cfg(test)]
mod tests;
