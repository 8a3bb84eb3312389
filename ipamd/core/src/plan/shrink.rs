//! Giving back: whole ENIs first, then what is spare on the others. Nothing that a pod uses or that cools is given back,
//! and nothing before the pool has been at rest for a while.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net};
use sluice_contract::id::EniId;

use super::draft::Draft;
use super::pool::{Form, Pool, is_short_of_prefixes, spare_words};
use super::steps::{is_surveyed, leave, note};
use super::{MIN_ENI_LIFE, SHRINK_INTERVAL, Targets};
use crate::cloud::Unassign;
use crate::ipv6::pooled;
use crate::ledger::{Eni, Role, Stage};
use crate::op::{Op, OpKey};
use crate::time::Timestamp;

/// Gives back what neither the targets nor the pods that are about to ask want of the card. Not to be called while something is missing.
pub(super) fn shrink(draft: &mut Draft<'_>, targets: &Targets, form: Form, bound: u32) {
    let state = draft.state;
    if !is_surveyed(state, draft.now) {
        return;
    }
    let mut pool = Pool::of(state, draft.card, form, draft.now).less_due(bound);
    let rests_until = [state.last_grown, state.last_shrunk].into_iter().flatten().max().map(|at| at + SHRINK_INTERVAL);
    let at_rest = rests_until.is_none_or(|until| until <= draft.now);
    let mut wanted = false;

    let of_card = |eni: &&Eni| eni.card == draft.card && eni.carries_pods();
    let mut enis: Vec<&Eni> = state.ledger().enis().filter(of_card).collect();
    enis.retain(|eni| eni.stage != Stage::Leaving && !draft.is_busy(&OpKey::Eni(eni.id.clone())));
    // The emptiest first: they can go whole.
    enis.sort_by_key(|eni| (eni.role == Role::Primary, used(eni, draft.now), Reverse((eni.card, eni.device))));
    let mut going: BTreeSet<&EniId> = BTreeSet::new();
    for eni in &enis {
        let part = Pool::of_eni(state, eni, form, draft.now);
        if !eni.may_be_freed() || eni.in_use(draft.now).is_some() || !pool.can_spare(part, targets, form) {
            continue;
        }
        let old_enough = eni.since + MIN_ENI_LIFE;
        if old_enough > draft.now && eni.stage != Stage::Created {
            draft.wake(old_enough);
            continue;
        }
        wanted = true;
        if at_rest && !eni.unsure {
            pool = pool - part;
            going.insert(&eni.id);
            leave(
                draft,
                eni,
                &format!("{} without it, {}", spare_words(pool.spare + pool.foreign), targets.words(form)),
            );
        }
    }
    for eni in enis.into_iter().filter(|eni| eni.stage == Stage::InService && !going.contains(&eni.id)) {
        let (nets, part) = surplus_of(draft, eni, &pool, targets, form);
        if nets.is_empty() {
            continue;
        }
        wanted = true;
        if at_rest && !eni.unsure {
            pool = pool - part;
            let reason = format!("{}, {}", spare_words(pool.spare + part.spare + part.foreign), targets.words(form));
            give_back(draft, eni, nets, &reason);
        }
    }
    if let Some(until) = rests_until.filter(|_| wanted && !at_rest) {
        draft.wake(until);
    }
    if let Some(cooled) = state.ledger().next_cooled(draft.now) {
        // What has cooled may be one too many.
        draft.wake(cooled);
    }
}

/// Repeats give-backs that were begun and have failed: no pod may have these addresses any more, and they take places. ENIs
/// that pods are to leave go when they have.
pub(super) fn finish(draft: &mut Draft<'_>) {
    let state = draft.state;
    if !is_surveyed(state, draft.now) {
        return;
    }
    for eni in state.ledger().enis().filter(|eni| eni.stage != Stage::Leaving && !eni.unsure) {
        let resting = eni.not_before.is_some_and(|at| at > draft.now);
        if resting || draft.is_busy(&OpKey::Eni(eni.id.clone())) {
            continue;
        }
        if eni.closed && eni.may_be_freed() && eni.in_use(draft.now).is_none() {
            leave(draft, eni, "its subnet is tagged out of use, and no pod is on it");
            continue;
        }
        let begun = eni.blocks.iter().filter(|(_, block)| block.withdrawn && block.in_use(draft.now).is_none());
        let free: Vec<Ipv4Net> = begun.filter_map(|(net, _)| pooled(net)).collect();
        if !free.is_empty() {
            give_back(draft, eni, free, "begun before, and not yet done");
        }
    }
}

/// Blocks of an ENI that the pool can do without, and what they are of it.
fn surplus_of(draft: &Draft<'_>, eni: &Eni, pool: &Pool, targets: &Targets, form: Form) -> (Vec<Ipv4Net>, Pool) {
    let singles_wanted = !form.prefixes || is_short_of_prefixes(draft.state, eni, draft.now);
    // One that is rich shrinks to what is wanted of it, and not just until it is rich no more.
    let rich = pool.is_rich(targets);
    let mut part = Pool::default();
    let mut nets = Vec::new();
    for net in returnable(eni, draft.now, |_| true) {
        let Some(block) = eni.blocks.get(&IpNet::V4(net)) else { continue };
        let is_prefix = net.prefix_len() < 32;
        let wanted = if is_prefix { form.prefixes } else { singles_wanted };
        // With each that goes less is left over, of either form.
        let rest = *pool - part;
        let surplus =
            if is_prefix { rest.surplus_prefixes(targets, form) } else { rest.surplus_singles(targets, form) };
        if wanted && (!rich || surplus <= 0) {
            continue;
        }
        part += Pool::of_block(block, is_prefix, wanted, draft.now);
        nets.push(net);
    }
    (nets, part)
}

/// Blocks of which no pod uses an address and none cools, the longest-free first: that is safest for who gets them next.
pub(super) fn returnable(eni: &Eni, now: Timestamp, which: impl Fn(&Ipv4Net) -> bool) -> Vec<Ipv4Net> {
    let pooled = eni.blocks.iter().filter_map(|(net, block)| Some((pooled(net)?, block)));
    let blocks = pooled.filter(|(net, block)| which(net) && block.is_offered() && block.in_use(now).is_none());
    let mut blocks: Vec<_> = blocks
        .map(|(net, block)| (block.addresses.values().filter_map(|state| state.available_from()).max(), net))
        .collect();
    blocks.sort_unstable();
    blocks.into_iter().map(|(_, net)| net).collect()
}

/// UnassignPrivateIpAddresses. Answers whether it is planned.
pub(super) fn give_back(draft: &mut Draft<'_>, eni: &Eni, nets: Vec<Ipv4Net>, reason: &str) -> bool {
    let mut what = Unassign::default();
    for net in nets {
        if net.prefix_len() < 32 {
            what.prefixes.insert(net);
        } else {
            what.addresses.insert(net.addr());
        }
    }
    let op = Op::Unassign { eni: eni.id.clone(), what };
    let key = op.key();
    if draft.is_busy(&key) {
        return false;
    }
    note(draft, op, reason);
    draft.is_busy(&key)
}

fn used(eni: &Eni, now: Timestamp) -> u32 {
    eni.count(|state| !state.is_available(now))
}
