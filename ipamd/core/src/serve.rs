//! Which waiting ADDs get which address, and which are refused and in what words.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_contract::id::Attachment;
use sluice_contract::rpc::{Refusal, RefusalCode};

use crate::cloud::Api;
use crate::ledger::{Owner, Stage};
use crate::op::{Op, OpKey};
use crate::plan::{Cause, NO_PREFIXES_HINT, Plan, Relief};
use crate::queue::{Queue, Token, Waiter};
use crate::state::State;
use crate::time::Timestamp;

/// An address for a waiting attachment. The daemon applies [`crate::state::Event::Assign`] (unless it is `held` already),
/// records it, takes the attachment from the queue, and answers its requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Who gets it.
    pub owner: Arc<Owner>,
    /// What.
    pub address: IpAddr,
    /// Whether the attachment has it already: the ledger need not change.
    pub held: bool,
}

/// A refusal for requests. The daemon withdraws them from the queue and answers them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Whose requests.
    pub attachment: Attachment,
    /// The requests.
    pub tokens: Vec<Token>,
    /// The answer.
    pub refusal: Refusal,
}

/// What happens to the queue now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Serving {
    /// In the queue's order, each with another address; those with one of a further card for want of one of card 0 come last.
    pub grants: Vec<Grant>,
    /// Passed deadlines, and those for whom there is no hope.
    pub refused: Vec<Refused>,
    /// Serve again then, if nothing happens before: a deadline passes, or an address has cooled.
    pub wake_at: Option<Timestamp>,
}

/// Decides for the whole queue. `plan` is the newest plan for this state and queue: its words explain what an ADD waited for
/// in vain.
///
/// Whoever has waited longest gets the address that has been free longest. Where there is no hope for some, those that came
/// last are refused.
#[must_use]
pub fn serve(state: &State, queue: &Queue, plan: &Plan, now: Timestamp) -> Serving {
    let mut serving = Serving::default();
    // Of each network card, the longest-free first.
    let mut free = BTreeMap::new();
    let mut take = |card: u32| free.entry(card).or_insert_with(|| state.ledger().available_on(card, now)).next();
    let mut left: Vec<&Waiter> = Vec::new();
    // Where card 0 is full, those have a choice who have to have no address of it: the others go first.
    let (pinned, others): (Vec<&Waiter>, Vec<&Waiter>) =
        queue.waiters().partition(|waiter| plan.spills && waiter.card.is_some());
    for waiter in pinned.into_iter().chain(others) {
        let held = state.ledger().address_of(&waiter.owner.attachment);
        match held.or_else(|| take(waiter.card.unwrap_or(0))) {
            Some(address) => {
                serving.grants.push(Grant { owner: Arc::clone(&waiter.owner), address, held: held.is_some() });
            }
            None => left.push(waiter),
        }
    }
    if plan.spills {
        // Whoever may have an address of any card has it of the first that has one left.
        let further: Vec<u32> = state.cards().into_iter().filter(|card| *card > 0).collect();
        left.retain(|waiter| {
            let spilled = waiter.card.is_none().then(|| further.iter().find_map(|card| take(*card))).flatten();
            let Some(address) = spilled else { return true };
            serving.grants.push(Grant { owner: Arc::clone(&waiter.owner), address, held: false });
            false
        });
    }
    let mut groups: BTreeMap<Option<u32>, Vec<&Waiter>> = BTreeMap::new();
    for waiter in left {
        groups.entry(plan.group(waiter.card)).or_default().push(waiter);
    }
    for (group, left) in groups {
        serving.refuse(state, plan, group, left, now);
    }
    if serving.wake_at.is_some() {
        serving.wake_at = serving.wake_at.into_iter().chain(state.ledger().next_cooled(now)).min();
    }
    serving
}

impl Serving {
    /// Refuses those of `left`, a group of the plan, that have no hope or no time any more.
    fn refuse(&mut self, state: &State, plan: &Plan, group: Option<u32>, left: Vec<&Waiter>, now: Timestamp) {
        // The plan counted all that wait; those that are served just now are not hopeless.
        let hopeless = plan.hopeless_in(group);
        let beyond = hopeless.map_or(0, |hopeless| usize::try_from(hopeless.beyond).unwrap_or(usize::MAX));
        let hopeful = left.len().saturating_sub(beyond);
        for (index, waiter) in left.into_iter().enumerate() {
            let attachment = waiter.owner.attachment.clone();
            if let Some(hopeless) = hopeless.filter(|_| index >= hopeful) {
                let refusal = hopeless.cause.refusal(state, group, now);
                self.refused.push(Refused { attachment, tokens: waiter.tokens.keys().copied().collect(), refusal });
                continue;
            }
            let (late, waiting): (Vec<_>, Vec<_>) = waiter.tokens.iter().partition(|(_, deadline)| **deadline <= now);
            self.wake_at = waiting.into_iter().map(|(_, deadline)| *deadline).chain(self.wake_at).min();
            if !late.is_empty() {
                let tokens = late.into_iter().map(|(token, _)| *token).collect();
                let refusal = too_late(state, plan, group, now.since(waiter.since), now);
                self.refused.push(Refused { attachment, tokens, refusal });
            }
        }
    }
}

/// The answer when a deadline has passed.
fn too_late(state: &State, plan: &Plan, group: Option<u32>, waited: Duration, now: Timestamp) -> Refusal {
    if let Some(cause) = plan.hopeless_in(group).map(|hopeless| &hopeless.cause).or(plan.held_up_in(group)) {
        let Refusal { code, message, hint, retry_after_ms } = cause.refusal(state, group, now);
        return Refusal { code, message: format!("{message}; waited {} s", waited.as_secs()), hint, retry_after_ms };
    }
    let (of_card, waited) = (of_card(group), waited.as_secs());
    let message = format!("no address{of_card} was free within {waited} s: {}", under_way(state, now));
    Refusal::new(RefusalCode::PoolGrowing, message)
        .hint("the pool is growing and the runtime will try again; `sluice status` shows what is under way")
        .retry_after(Duration::from_secs(5))
}

/// Which addresses are meant: nothing for those of card 0, which most pods have.
fn of_card(card: Option<u32>) -> String {
    card.filter(|card| *card > 0).map(|card| format!(" of network card {card}")).unwrap_or_default()
}

/// What is being done to get addresses, in words.
fn under_way(state: &State, now: Timestamp) -> String {
    let mut words: Vec<String> = state
        .flights()
        .values()
        .filter(|op| matches!(op, Op::Create(_) | Op::Attach { .. } | Op::Assign { .. }))
        .map(ToString::to_string)
        .collect();
    let begun =
        state.intents().iter().filter(|(token, _)| !state.flights().contains_key(&OpKey::Create((*token).clone())));
    words.extend(begun.map(|(_, intent)| Op::Create(intent.request.clone()).to_string()));
    let coming = state.ledger().enis().filter(|eni| eni.stage == Stage::Attached && eni.carries_pods());
    words.extend(coming.map(|eni| format!("set {} up on the host", eni.id)));
    let cooling = state.ledger().tally(now).cooling;
    if cooling > 0 {
        words.push(format!("{cooling} addresses are cooling"));
    }
    if words.is_empty() { "nothing is under way".to_owned() } else { words.join(", ") }
}

/// The action that IAM's words name, else the call: one that sets tags is refused for `ec2:CreateTags` too.
fn denied(api: Api, message: &str) -> String {
    let named = message.split_once("is not authorized to perform: ").map(|(_, rest)| rest);
    let named = named.and_then(|rest| rest.split_whitespace().next()).filter(|action| action.starts_with("ec2:"));
    named.map_or_else(|| format!("ec2:{api}"), |action| action.chars().take(80).collect())
}

impl Cause {
    /// The code by which plugins and operators tell it from others.
    #[must_use]
    pub const fn code(&self) -> RefusalCode {
        match self {
            Self::EniLimit { .. } | Self::NoIpv6 { .. } | Self::NotProvisioning { .. } => RefusalCode::EniLimit,
            Self::SubnetExhausted { .. } | Self::NoSubnet | Self::EniConfigSubnet { .. } => {
                RefusalCode::SubnetExhausted
            }
            Self::Denied { .. } => RefusalCode::IamDenied,
            Self::Throttled { .. } => RefusalCode::Throttled,
            Self::Unavailable { .. } => RefusalCode::Ec2Unavailable,
            Self::NotReady | Self::NoEniConfig => RefusalCode::NotReady,
        }
    }

    /// What an operator can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::EniLimit { relief: Relief::WholePrefixes(_), .. } => NO_PREFIXES_HINT.to_owned(),
            Self::EniLimit { by_setting: true, .. } => {
                "raise MAX_ENI, or lower the node's max pods to what its ENIs hold".to_owned()
            }
            Self::EniLimit { relief: Relief::None, .. } => {
                "lower the node's max pods to what its ENIs hold, or use a larger instance type".to_owned()
            }
            Self::EniLimit { relief: Relief::Prefixes, .. } => {
                "lower the node's max pods to what its ENIs hold, use prefixes (ENABLE_PREFIX_DELEGATION), or a larger \
                 instance type"
                    .to_owned()
            }
            Self::SubnetExhausted { .. } => {
                "free addresses in the subnet, or tag another one in this zone with kubernetes.io/role/cni=1".to_owned()
            }
            Self::NoSubnet => "tag a subnet in this zone with kubernetes.io/role/cni=1".to_owned(),
            Self::NotProvisioning { imds_only } => {
                let setting =
                    if *imds_only { "ENABLE_IMDS_ONLY_MODE" } else { "DISABLE_NETWORK_RESOURCE_PROVISIONING" };
                format!("assign addresses to the node's ENIs, or unset {setting}")
            }
            Self::NoEniConfig => {
                "make an ENIConfig and name it on the node by the label k8s.amazonaws.com/eniConfig, or call it default"
                    .to_owned()
            }
            Self::EniConfigSubnet { name, .. } => {
                format!("let spec.subnet of ENIConfig {name} be a subnet of the node's own availability zone")
            }
            Self::NoIpv6 { .. } => "use an instance type on Nitro".to_owned(),
            Self::Denied { api, message, .. } => format!("allow {} in the node's IAM role", denied(*api, message)),
            Self::Throttled { .. } => {
                "the call is repeated by itself; ask AWS for a higher rate if it lasts".to_owned()
            }
            Self::Unavailable { mistake: Some(mistake), .. } => mistake.hint(),
            Self::Unavailable { mistake: None, .. } => {
                "the call is repeated by itself; check the route to the EC2 endpoint".to_owned()
            }
            Self::NotReady => "the daemon is starting; check that the node reaches IMDS at 169.254.169.254".to_owned(),
        }
    }

    /// When the call that is in the way is made again.
    #[must_use]
    pub const fn until(&self) -> Option<Timestamp> {
        match self {
            Self::SubnetExhausted { until, .. }
            | Self::Denied { until, .. }
            | Self::Throttled { until, .. }
            | Self::Unavailable { until, .. } => Some(*until),
            Self::EniLimit { .. }
            | Self::NoSubnet
            | Self::NotProvisioning { .. }
            | Self::NoEniConfig
            | Self::EniConfigSubnet { .. }
            | Self::NoIpv6 { .. }
            | Self::NotReady => None,
        }
    }

    /// The answer to an ADD that waits in vain for an address of the network card because of it.
    #[must_use]
    pub fn refusal(&self, state: &State, card: Option<u32>, now: Timestamp) -> Refusal {
        let of_card = of_card(card);
        let refusal = Refusal::new(self.code(), format!("no address{of_card} is free: {self}")).hint(self.hint());
        match self.until().or_else(|| state.ledger().next_cooled(now)) {
            Some(until) => refusal.retry_after(until.since(now).max(Duration::from_secs(1))),
            None => refusal,
        }
    }
}

#[cfg(test)]
mod tests;
