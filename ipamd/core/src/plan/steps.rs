//! The next step of each ENI in its life: attach, delete with the instance, detach, delete; and asking EC2 where the state
//! is in doubt.

use std::collections::BTreeSet;
use std::time::Duration;

use sluice_contract::id::SecurityGroupId;
use sluice_contract::node::DEVICES;

use super::capacity::eni_limit;
use super::draft::Draft;
use super::{Cause, Targets};
use crate::ledger::{AddressState, Eni, Stage};
use crate::op::{Op, OpKey};
use crate::state::{Node, SETTLE, State};
use crate::time::Timestamp;

/// How old the knowledge of subnets may be when an ENI is made by it.
pub(super) const SUBNETS_HOLD: Duration = Duration::from_secs(600);

/// What has to be known of EC2 before anything else, and intents whose ENI is not known.
pub(super) fn learn(draft: &mut Draft<'_>, node: &Node) {
    if let Some(at) = draft.state.survey_at {
        if at > draft.now {
            draft.wake(at);
        } else if !draft.is_busy(&OpKey::Survey) {
            let op = Op::Survey { instance: node.identity.instance.clone() };
            let answered = draft.state.ledger().enis().any(|eni| eni.confirmed.is_some());
            let again = answered && draft.state.resurvey_at.is_some();
            let reason = if again {
                "what EC2 said before may lack what was done just before it"
            } else {
                "EC2 has not yet said what this node owns"
            };
            note(draft, op, reason);
        }
    }
    if draft.state.subnets_at.is_none() && !draft.is_busy(&OpKey::Subnets) {
        ask_for_subnets(draft, node, "EC2 has not yet said which subnets there are");
    }
    let intents: Vec<_> = draft.state.intents().values().map(|intent| intent.request.clone()).collect();
    for request in intents {
        let op = Op::Create(request);
        if !draft.is_busy(&op.key()) && is_surveyed(draft.state, draft.now) {
            let reason = "begun before, and its outcome is not known: the same client token answers with the same ENI";
            if let Err(cause) = draft.ask(op, reason.to_owned()) {
                draft.held_up(cause);
            }
        }
    }
}

/// DescribeSubnets.
pub(super) fn ask_for_subnets(draft: &mut Draft<'_>, node: &Node, reason: &str) {
    let op = Op::Subnets { vpc: node.identity.vpc.clone(), availability_zone: node.identity.availability_zone.clone() };
    note(draft, op, reason);
}

/// The next step of every ENI.
pub(super) fn take(draft: &mut Draft<'_>, node: &Node, targets: &Targets) {
    let state = draft.state;
    for eni in state.ledger().enis() {
        mark_for_deletion(draft, eni);
        follow_groups(draft, node, eni);
        tag(draft, eni);
        if let Some(at) = eni.recheck {
            draft.wake(at);
        }
        if draft.is_busy(&OpKey::Eni(eni.id.clone())) {
            continue;
        }
        if let Some(at) = eni.not_before.filter(|at| *at > draft.now) {
            draft.wake(at);
        } else if eni.unsure || eni.recheck.is_some_and(|at| at <= draft.now) {
            // A survey that is due tells of this one, too.
            if is_surveyed(state, draft.now) {
                let op = Op::Inspect { eni: eni.id.clone() };
                note(draft, op, "it may be otherwise than the ledger has it");
            }
        } else {
            match eni.stage {
                Stage::Created => attach(draft, node, targets, eni),
                Stage::Leaving => leave(draft, eni, "it is being freed"),
                Stage::Attached | Stage::InService if eni.is_cut_off() && !eni.has_pods() => {
                    let op = Op::Inspect { eni: eni.id.clone() };
                    note(draft, op, "it was detached from under its pods, and they have gone");
                }
                Stage::Attached | Stage::InService => {}
            }
        }
    }
}

fn mark_for_deletion(draft: &mut Draft<'_>, eni: &Eni) {
    let Some(attachment) = eni.attachment.clone() else { return };
    let stays = matches!(eni.stage, Stage::Attached | Stage::InService);
    let key = OpKey::Attribute(eni.id.clone());
    if stays && eni.may_be_freed() && !eni.delete_on_termination && !draft.is_busy(&key) {
        let op = Op::DeleteOnTermination { eni: eni.id.clone(), attachment };
        note(draft, op, "it was made for this instance and must not outlive it");
    }
}

/// Gives an ENI of ours the security groups that the primary ENI has by now. With custom networking they are the ENIConfig's,
/// which concerns new ENIs only.
fn follow_groups(draft: &mut Draft<'_>, node: &Node, eni: &Eni) {
    let stays = matches!(eni.stage, Stage::Attached | Stage::InService) && eni.may_be_freed() && !eni.unsure;
    let set = |groups: &[SecurityGroupId]| groups.iter().cloned().collect::<BTreeSet<_>>();
    let same = set(&eni.security_groups) == set(&node.security_groups);
    let unknown = node.security_groups.is_empty() || eni.security_groups.is_empty();
    if stays && !same && !unknown && !node.custom_networking && !draft.is_busy(&OpKey::Attribute(eni.id.clone())) {
        let op = Op::SetGroups { eni: eni.id.clone(), groups: node.security_groups.clone() };
        note(draft, op, "the primary ENI has other security groups now");
    }
}

/// Gives an ENI that pods use the tags that it lacks: by them it is known to be this node's and this cluster's, also when it
/// is attached no more.
fn tag(draft: &mut Draft<'_>, eni: &Eni) {
    let stays = matches!(eni.stage, Stage::Attached | Stage::InService) && eni.is_of_pods() && !eni.unsure;
    if stays && !eni.missing_tags.is_empty() && !draft.is_busy(&OpKey::Tags(eni.id.clone())) {
        let op = Op::Tag { eni: eni.id.clone(), tags: eni.missing_tags.clone() };
        note(draft, op, "it has to be known as this node's");
    }
}

fn attach(draft: &mut Draft<'_>, node: &Node, targets: &Targets, eni: &Eni) {
    let card = eni.card;
    let taken = devices(draft, card);
    let limit = eni_limit(node, targets, card);
    if u32::try_from(taken.attached).unwrap_or(u32::MAX) >= limit {
        let is_leaving = |other: &Eni| other.card == card && other.stage == Stage::Leaving && other.device.is_some();
        let leaving = draft.state.ledger().enis().any(is_leaving);
        if !leaving && eni.may_be_freed() {
            leave(draft, eni, &format!("{limit} ENIs are attached already, as many as may be"));
        }
        return;
    }
    let Some(device) = (u32::from(card == 0)..DEVICES).find(|device| !taken.numbers.contains(device)) else { return };
    let op = Op::Attach { eni: eni.id.clone(), instance: node.identity.instance.clone(), card, device };
    note(draft, op, &format!("device {device} is the lowest that is free on card {card}"));
}

struct Devices {
    /// ENIs that are attached or being attached.
    attached: usize,
    /// Device numbers that are taken, or that EC2 says are.
    numbers: BTreeSet<u32>,
}

fn devices(draft: &Draft<'_>, card: u32) -> Devices {
    let ledger = draft.state.ledger();
    let attached = ledger.enis().filter(|eni| eni.card == card).filter_map(|eni| eni.device);
    let attaching = draft.ops().filter_map(|op| match op {
        Op::Attach { eni, card: on, device, .. } if *on == card => {
            // An answer may have come in by a description before the call has ended.
            ledger.eni(eni).filter(|eni| eni.device.is_none()).map(|_| *device)
        }
        _ => None,
    });
    let numbers: BTreeSet<u32> = attached.chain(attaching).collect();
    let count = numbers.len();
    let busy = draft.state.busy_devices.iter().filter(|((on, _), at)| *on == card && draft.now.since(**at) < SETTLE);
    let numbers = numbers.into_iter().chain(busy.map(|((_, device), _)| *device)).collect();
    Devices { attached: count, numbers }
}

/// The next step in the leaving of an ENI.
pub(super) fn leave(draft: &mut Draft<'_>, eni: &Eni, reason: &str) {
    let id = eni.id.clone();
    if !eni.may_be_freed() {
        return;
    }
    if eni.in_use(draft.now).is_some() {
        let states = eni.blocks.values().flat_map(|block| block.addresses.values());
        // A pod's end is an event; the end of a cooldown is not.
        if let Some(cooled) = states.filter_map(AddressState::available_from).max() {
            draft.wake(cooled);
        }
        return;
    }
    match (&eni.attachment, eni.device) {
        (Some(attachment), _) => note(draft, Op::Detach { eni: id, attachment: attachment.clone() }, reason),
        (None, None) => note(draft, Op::Delete { eni: id }, reason),
        (None, Some(_)) => {
            note(draft, Op::Inspect { eni: id }, "it is to be detached, and its attachment's id is not known");
        }
    }
}

/// Asks for an operation that the growth of the pool does not stand on; an obstacle means later.
pub(super) fn note(draft: &mut Draft<'_>, op: Op, reason: &str) {
    // Whatever stands in the way has set the time at which the plan is made anew.
    if let Err(cause @ Cause::Denied { .. }) = draft.ask(op, reason.to_owned()) {
        draft.held_up(cause);
    }
}

/// Whether EC2 has said what this node owns, so that what is made or given back is in knowledge of all.
pub(super) fn is_surveyed(state: &State, now: Timestamp) -> bool {
    state.survey_at.is_none_or(|at| at > now)
}
