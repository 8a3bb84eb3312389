//! What to ask of EC2 next: a pure function of the state, the targets and the waiting ADDs.
//!
//! The plan names every call that is due now, one for each object at most, so that all of them can be made at once; what is
//! under way already is counted and never asked for twice. The pool settles where VPC CNI's settles (its targets and their
//! arithmetic are kept), but waiting ADDs, and pods that are
//! about to ask, are demand on top of it, and a cooling address is no spare one.

mod capacity;
mod cause;
mod draft;
mod grow;
mod ipv6;
mod pool;
mod shrink;
mod steps;

use std::collections::BTreeMap;
use std::time::Duration;

use draft::Draft;
use pool::Form;

use crate::arrivals::Band;
use crate::cloud::AddressCount;
use crate::ipv6::Families;
use crate::op::Op;
use crate::queue::Queue;
use crate::state::State;
use crate::time::Timestamp;

pub use capacity::Capacity;
pub use cause::{Cause, HaveSubnets, Mistake, NO_PREFIXES_HINT, Relief};

/// The static targets of the warm pool, by VPC CNI's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Targets {
    /// `ENABLE_PREFIX_DELEGATION`: /28 prefixes instead of single addresses, where the instance type can.
    pub prefixes: bool,
    /// `SLUICE_WARM_MODE`: adaptive replaces all warm targets; the minimum and the limits still count.
    pub mode: WarmMode,
    /// `WARM_ENI_TARGET`: so many ENIs' worth of free addresses. For secondary addresses only.
    pub warm_enis: u32,
    /// `WARM_PREFIX_TARGET`: so many prefixes' worth of free addresses. For prefixes only.
    pub warm_prefixes: u32,
    /// `WARM_IP_TARGET`: so many free addresses; 0 when not set. It and the next replace the two before.
    pub warm_ips: u32,
    /// `MINIMUM_IP_TARGET`: at least so many addresses, in use or not; 0 when not set.
    pub minimum_ips: u32,
    /// `MAX_ENI`, if it is set.
    pub max_enis: Option<u32>,
    /// How many pods the kubelet takes; no spare addresses are added beyond.
    pub max_pods: u32,
    /// `ENABLE_SUBNET_DISCOVERY`: new ENIs go to every tagged subnet of the zone, not only to the primary ENI's.
    pub subnet_discovery: bool,
    /// Whether ENIs and addresses are asked for and given back at all (`DISABLE_NETWORK_RESOURCE_PROVISIONING` says no).
    pub provisioning: bool,
    /// `AWS_MANAGE_ENIS_NON_SCHEDULABLE`: the pool of a cordoned node is kept warm too.
    pub warm_when_cordoned: bool,
    /// `CLUSTER_NAME`, by which subnets may be reserved for a cluster.
    pub cluster: Option<String>,
    /// `ENABLE_POD_ENI`: a place is kept for the trunk ENI until it is there.
    pub trunk: bool,
}

impl Default for Targets {
    /// What VPC CNI's manifest sets.
    fn default() -> Self {
        Self {
            prefixes: false,
            mode: WarmMode::Static,
            warm_enis: 1,
            warm_prefixes: 1,
            warm_ips: 0,
            minimum_ips: 0,
            max_enis: None,
            max_pods: 110,
            subnet_discovery: true,
            provisioning: true,
            warm_when_cordoned: false,
            cluster: None,
            trunk: false,
        }
    }
}

/// What says how many spare addresses are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WarmMode {
    /// The targets.
    #[default]
    Static,
    /// What the node has learned of arrivals and refills ([`crate::arrivals`]); [`plan`] puts in what that is now.
    Adaptive(Band),
}

/// How often adaptive mode thinks again when nothing happens: what it has learned fades.
const THINK_EVERY: Duration = Duration::from_secs(60);

/// What pods want beyond what they have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand {
    /// ADDs that wait for an address, or for that of the first of several interfaces.
    pub waiting: u32,
    /// Pods that are bound to the node and have not asked yet: their ADDs are about to come.
    pub bound: u32,
    /// How many of [`Self::waiting`] want an address of card 0 and no other: that of the first of several interfaces.
    pub pinned: u32,
    /// ADDs that wait for an address of each further network card.
    pub further: BTreeMap<u32, u32>,
}

impl Demand {
    /// Those that wait in `queue`, and the pods of [`crate::state::Event::PodsBound`] that neither wait nor hold an address.
    #[must_use]
    pub fn of(state: &State, queue: &Queue) -> Self {
        let mut further = queue.waiting_by_card();
        let waiting =
            queue.waiting().saturating_sub(further.iter().filter(|(card, _)| **card > 0).map(|(_, n)| n).sum());
        let pinned = further.remove(&0).unwrap_or(0);
        Self { waiting, bound: state.bound_without(queue), pinned, further }
    }

    /// All of them that have an address of card 0.
    #[must_use]
    pub const fn pods(&self) -> u32 {
        self.waiting.saturating_add(self.bound)
    }

    /// What is wanted of a further network card: by those that wait for it, and by `spilled` pods for which card 0 has no place.
    fn on(&self, card: u32, spilled: u32) -> Self {
        let own = self.further.get(&card).copied().unwrap_or(0);
        Self { waiting: own.saturating_add(spilled), ..Self::default() }
    }
}

/// A call that is due, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// The call.
    pub op: Op,
    /// Why it is due, for people.
    pub reason: String,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The calls that are due now; each can be made at once.
    pub ops: Vec<Planned>,
    /// Plan again then, if nothing happens before.
    pub wake_at: Option<Timestamp>,
    /// Why some waiting ADDs will not be served unless a pod goes or a person helps.
    pub hopeless: Option<Hopeless>,
    /// Why the pool does not grow although it should, where that passes by itself.
    pub held_up: Option<Cause>,
    /// Whether card 0 can hold no more, so that pods with one interface have addresses of further cards.
    pub spills: bool,
    /// The same as the first two for those that wait for an address of a further network card; of card 0, where it spills, for
    /// those that wait for it and no other.
    pub further: BTreeMap<u32, Outlook>,
}

/// What those can hope for who wait for an address of one network card and no other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outlook {
    /// As [`Plan::hopeless`].
    pub hopeless: Option<Hopeless>,
    /// As [`Plan::held_up`].
    pub held_up: Option<Cause>,
}

impl Plan {
    /// The group of those that wait together, by the network card that they have to have an address of: where card 0 spills, some
    /// have hope that others have not.
    #[must_use]
    pub const fn group(&self, card: Option<u32>) -> Option<u32> {
        match card {
            None if !self.spills => Some(0),
            card => card,
        }
    }

    fn outlook(&self, group: Option<u32>) -> Option<&Outlook> {
        group.filter(|card| *card > 0 || self.spills).and_then(|card| self.further.get(&card))
    }

    fn is_first(&self, group: Option<u32>) -> bool {
        group.is_none_or(|card| card == 0 && !self.spills)
    }

    /// Why some of a group will not be served.
    #[must_use]
    pub fn hopeless_in(&self, group: Option<u32>) -> Option<&Hopeless> {
        if self.is_first(group) { self.hopeless.as_ref() } else { self.outlook(group)?.hopeless.as_ref() }
    }

    /// Why the pool of a group does not grow.
    #[must_use]
    pub fn held_up_in(&self, group: Option<u32>) -> Option<&Cause> {
        let own = self.outlook(group).and_then(|outlook| outlook.held_up.as_ref());
        own.or(self.held_up.as_ref())
    }
}

/// Waiting ADDs for which there is no hope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hopeless {
    /// Why.
    pub cause: Cause,
    /// How many of them; the others will get what is free, cooling or on its way.
    pub beyond: u32,
}

/// How long the pool rests between two give-backs, and after it has grown (VPC CNI's `decreaseIPPoolInterval`).
pub const SHRINK_INTERVAL: Duration = Duration::from_secs(30);

/// How old an ENI has to be before it is freed (VPC CNI's `minENILifeTime`).
pub const MIN_ENI_LIFE: Duration = Duration::from_secs(60);

/// What is to be done now.
#[must_use]
pub fn plan(state: &State, targets: &Targets, demand: &Demand, now: Timestamp) -> Plan {
    let mut plan = whole_plan(state, targets, demand, now);
    let imds_only = state.node().is_some_and(|node| node.imds_only);
    if !targets.provisioning || imds_only {
        plan.ops.retain(|planned| planned.op.is_question() && !imds_only);
        without_provisioning(&mut plan, state, demand, now);
    }
    plan
}

/// What those that wait can hope for where nothing is asked for: what there is.
fn without_provisioning(plan: &mut Plan, state: &State, demand: &Demand, now: Timestamp) {
    // Before EC2 has told what there is, nobody knows that it is not enough.
    let known = state.node().is_some() && steps::is_surveyed(state, now);
    let cause = Cause::NotProvisioning { imds_only: state.node().is_some_and(|node| node.imds_only) };
    let hopeless = |beyond: u32| (beyond > 0 && known).then(|| Hopeless { cause: cause.clone(), beyond });
    let can_have = |card: u32| {
        let tally = state.ledger().tally_of(card, now);
        tally.free + tally.cooling + tally.pending
    };
    plan.spills = state.cards().len() > 1;
    plan.further.clear();
    let pinned = if plan.spills { demand.pinned } else { 0 };
    let mut spared = can_have(0).saturating_sub(pinned);
    let own = |card: u32| if card == 0 { pinned } else { demand.on(card, 0).waiting };
    for card in state.cards() {
        if card > 0 {
            spared = spared.saturating_add(can_have(card).saturating_sub(own(card)));
        }
        let hopeless = hopeless(own(card).saturating_sub(can_have(card)));
        if hopeless.is_some() {
            plan.further.insert(card, Outlook { hopeless, held_up: None });
        }
    }
    plan.hopeless = hopeless((demand.waiting - pinned).saturating_sub(spared));
}

fn whole_plan(state: &State, targets: &Targets, demand: &Demand, now: Timestamp) -> Plan {
    let mut draft = Draft::new(state, now);
    let Some(node) = state.node() else {
        draft.held_up(Cause::NotReady);
        return draft.plan;
    };
    let form = Form::of(targets, &node.limits);
    let learned = match targets.mode {
        WarmMode::Static => None,
        WarmMode::Adaptive(_) => {
            draft.wake(now + THINK_EVERY);
            let band = state.arrivals().band(form.places, now);
            Some(Targets { mode: WarmMode::Adaptive(band), ..targets.clone() })
        }
    };
    let targets = learned.as_ref().unwrap_or(targets);
    let further = targets.of_further_cards();
    let cards = state.cards();
    steps::learn(&mut draft, node);
    steps::take(&mut draft, node, targets);
    ipv6::delegate(&mut draft, node);
    if node.families == Families::V6 {
        ipv6::conclude(&mut draft, node, demand.waiting);
        for card in cards.into_iter().filter(|card| *card > 0) {
            draft.card = card;
            ipv6::one_eni(&mut draft, node, &further, form, demand.on(card, 0));
        }
        shrink::finish(&mut draft);
        return draft.plan;
    }
    let mut at_rest = Vec::new();
    let mut spilled = 0;
    for card in cards {
        draft.card = card;
        let (targets, here) = if card == 0 { (targets, demand.clone()) } else { (&further, demand.on(card, spilled)) };
        let (bound, nobody_waits) = (here.bound, here.waiting == 0);
        let grows = grow::grow(&mut draft, node, targets, form, here);
        if !grows && nobody_waits {
            at_rest.push((card, targets, bound));
        }
        spilled = spill(&mut draft, spilled, demand);
    }
    draft.conclude_spill(spilled);
    shrink::finish(&mut draft);
    for (card, targets, bound) in at_rest {
        draft.card = card;
        shrink::shrink(&mut draft, targets, form, bound);
    }
    if form.prefixes {
        // Single addresses stand in for prefixes only as long as they have to.
        let subnets = state.ledger().enis().filter_map(|eni| state.subnets().get(&eni.subnet));
        for until in subnets.filter_map(|subnet| subnet.short_until(AddressCount::Prefixes(1), now)) {
            draft.wake(until);
        }
    }
    draft.plan
}

/// Pods with one interface for which no card up to this one has a place: the next one may have. `spilled` are those that came here
/// from the cards before; whoever waits for this card and no other, as those that are pinned do for card 0, goes first.
fn spill(draft: &mut Draft<'_>, spilled: u32, demand: &Demand) -> u32 {
    let Some(hopeless) = draft.hopeless() else { return 0 };
    let is_full = matches!(hopeless.cause, Cause::EniLimit { .. });
    if draft.card == 0 {
        draft.plan.spills = is_full && draft.state.cards().len() > 1;
        if !draft.plan.spills {
            return 0;
        }
        let served = demand.waiting.saturating_sub(hopeless.beyond);
        let beyond = demand.pinned.saturating_sub(served);
        let spilled = hopeless.beyond - beyond;
        let of_card = (beyond > 0).then_some(Hopeless { beyond, ..hopeless });
        draft.plan.further.entry(0).or_default().hopeless = of_card;
        return spilled;
    }
    let own = hopeless.beyond.saturating_sub(spilled);
    let left = hopeless.beyond.min(spilled);
    draft.conclude((own > 0).then_some(Hopeless { beyond: own, ..hopeless }));
    left
}

#[cfg(test)]
mod tests;
