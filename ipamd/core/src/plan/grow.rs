//! Growth: every call that the demand and the targets need, at once.
//!
//! First the ENIs that are there are filled (one Assign each, for all that is missing on it), then new ones are made, in
//! parallel and with full counts. An ENI that is being worked on takes its share of the need without a second call: the
//! plan after the end of the first asks for the rest.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;
use sluice_contract::id::{SecurityGroupId, SubnetId};

use super::capacity::{eni_limit, kept_for_trunk, made, of_card, would_prefixes_help};
use super::draft::{Draft, cause_of};
use super::pool::{Form, PREFIX, Pool, is_short_of_prefixes, spare_words};
use super::shrink::{give_back, returnable};
use super::steps::{SUBNETS_HOLD, ask_for_subnets, is_surveyed};
use super::{Cause, Demand, Hopeless, Relief, Targets};
use crate::cloud::{AddressCount, Api, CloudErrorKind, CreateEni};
use crate::ipv6::is_prefix;
use crate::ledger::{Eni, Role, Stage};
use crate::op::{Op, OpKey};
use crate::state::{Node, State, Subnet};
use crate::time::Timestamp;

/// What is wanted, and how far it is covered.
pub(super) struct Growth<'a> {
    node: &'a Node,
    card: u32,
    targets: &'a Targets,
    form: Form,
    pool: Pool,
    demand: Demand,
    /// Addresses that are missing.
    missing: i64,
    /// Those of them that nothing has been found for yet.
    left: i64,
    /// ENIs are filled, whatever is missing: their unit is the ENI.
    whole: bool,
    /// Addresses that were covered by calls that IAM denies.
    denied: Option<(i64, Cause)>,
    /// Subnets that would have been used and have no addresses at all, and when to try them again.
    short: BTreeMap<SubnetId, Timestamp>,
    /// Why: the reason of every call.
    reason: String,
}

/// Asks for what is missing on the card. Answers whether anything is.
pub(super) fn grow(draft: &mut Draft<'_>, node: &Node, targets: &Targets, form: Form, demand: Demand) -> bool {
    let keeps_warm = !draft.state.cordoned || targets.warm_when_cordoned;
    let due = demand.pods();
    let mut growth = Growth::new(draft, node, targets, form, demand);
    let pool = growth.pool;
    let missing = if keeps_warm {
        pool.missing(targets, form, due)
    } else {
        // Those that wait are served: they were here before, or tolerate it.
        (-pool.available(due)).max(0)
    };
    (growth.missing, growth.left) = (missing, missing);
    if missing > 0 {
        growth.fill(draft, form.prefixes);
        growth.swap(draft);
        growth.create(draft, form.prefixes);
        if form.prefixes {
            growth.fill(draft, false);
            growth.create(draft, false);
        }
    }
    growth.conclude(draft);
    if keeps_warm && missing <= 0 && pool.lacks_room(targets, due) {
        // An ENI takes long to come; its addresses do not. So it comes before its addresses are wanted, with one of them.
        growth.left = 1;
        growth.create(draft, form.prefixes);
    }
    missing > 0
}

/// Asks for one ENI on the card, whatever the pool has.
pub(super) fn one_eni(draft: &mut Draft<'_>, node: &Node, targets: &Targets, form: Form, demand: Demand) {
    let mut growth = Growth::new(draft, node, targets, form, demand);
    (growth.missing, growth.left) = (1, 1);
    growth.create(draft, false);
    growth.conclude(draft);
}

fn reason(pool: &Pool, targets: &Targets, form: Form, demand: &Demand) -> String {
    let spare = spare_words(pool.spare + pool.foreign);
    let waits = match demand.waiting {
        0 => String::new(),
        1 => "1 ADD waits, ".to_owned(),
        waiting => format!("{waiting} ADDs wait, "),
    };
    let bound = match demand.bound {
        0 => String::new(),
        1 => "1 pod is about to ask, ".to_owned(),
        bound => format!("{bound} pods are about to ask, "),
    };
    format!("{waits}{bound}{spare} or coming, {}", targets.words(form))
}

impl<'a> Growth<'a> {
    /// Of the draft's card, with nothing missing yet.
    fn new(draft: &Draft<'_>, node: &'a Node, targets: &'a Targets, form: Form, demand: Demand) -> Self {
        let pool = Pool::of(draft.state, draft.card, form, draft.now);
        Self {
            node,
            card: draft.card,
            targets,
            form,
            reason: reason(&pool, targets, form, &demand),
            pool,
            demand,
            missing: 0,
            left: 0,
            whole: !form.prefixes && !targets.counts_addresses(),
            denied: None,
            short: BTreeMap::new(),
        }
    }

    const fn size(prefixes: bool) -> i64 {
        if prefixes { PREFIX as i64 } else { 1 }
    }

    /// How many of `room` places the need wants.
    fn wanted(&self, room: u32, prefixes: bool) -> u32 {
        let size = Self::size(prefixes);
        let need = u32::try_from((self.left.max(0) + size - 1) / size).unwrap_or(u32::MAX);
        match (self.left > 0, self.whole) {
            (false, _) => 0,
            (true, true) => room,
            (true, false) => room.min(need),
        }
    }

    /// A call for `places` is under way, or will be as soon as it can be.
    const fn cover(&mut self, places: u32, prefixes: bool) {
        self.left -= places as i64 * Self::size(prefixes);
    }

    /// A call that would have covered `places` cannot be made now.
    fn hindered(&mut self, draft: &mut Draft<'_>, places: u32, prefixes: bool, cause: Cause) {
        if matches!(cause, Cause::Denied { .. }) {
            let addresses = i64::from(places) * Self::size(prefixes);
            let known = self.denied.as_ref().map_or(0, |(known, _)| *known);
            self.denied = Some((known + addresses, cause.clone()));
        }
        draft.held_up(cause);
    }

    /// A subnet that would have been used is short. What has no whole /28 is tried for single addresses next: only what lacks those
    /// too is in the way.
    fn short_of(&mut self, subnet: &SubnetId, prefixes: bool, until: Timestamp) {
        if !prefixes {
            self.short.insert(subnet.clone(), until);
        }
    }

    /// Fills the ENIs that are there.
    fn fill(&mut self, draft: &mut Draft<'_>, prefixes: bool) {
        let state = draft.state;
        let mut enis: Vec<&Eni> = state
            .ledger()
            .enis()
            .filter(|eni| eni.card == self.card && eni.carries_pods() && eni.stage != Stage::Leaving)
            .filter(|eni| prefixes == (self.form.prefixes && !is_short_of_prefixes(state, eni, draft.now)))
            .collect();
        enis.sort_by_key(|eni| (eni.stage != Stage::InService, eni.role != Role::Primary, eni.device));
        for eni in enis {
            let room = room(state, eni, self.form);
            let places = self.wanted(room, prefixes);
            if places == 0 {
                continue;
            }
            let subnet = state.subnets().get(&eni.subnet);
            if let Some(until) = short_until(subnet, prefixes, draft.now) {
                self.short_of(&eni.subnet, prefixes, until);
                draft.wake(until);
                continue;
            }
            self.cover(places, prefixes);
            let resting = eni.unsure || eni.not_before.is_some_and(|at| at > draft.now);
            if eni.stage == Stage::Created || resting || draft.is_busy(&OpKey::Eni(eni.id.clone())) {
                continue;
            }
            let count = count(places.min(asked_at_most(subnet, prefixes)), prefixes);
            if let Err(cause) = draft.ask(Op::Assign { eni: eni.id.clone(), count }, self.reason.clone()) {
                self.hindered(draft, places, prefixes, cause);
            }
        }
    }

    /// Makes room on full ENIs by giving back free addresses of the form that is not wanted.
    fn swap(&mut self, draft: &mut Draft<'_>) {
        let state = draft.state;
        let mut spare = self.pool.spare + self.pool.foreign - self.pool.pending - i64::from(self.demand.pods());
        let card = self.card;
        for eni in state.ledger().enis().filter(|eni| eni.card == card && eni.takes_pods() && !eni.unsure) {
            let prefixes = self.form.prefixes && !is_short_of_prefixes(state, eni, draft.now);
            if let Some(Op::Unassign { what, .. }) = state.flights().get(&OpKey::Eni(eni.id.clone())) {
                // What is being given back already leaves places that the next plan fills.
                let freed = u32::try_from(what.addresses.len() + what.prefixes.len()).unwrap_or(u32::MAX);
                let places = self.wanted(freed, prefixes);
                self.cover(places, prefixes);
                continue;
            }
            if room(state, eni, self.form) > 0
                || prefixes != self.form.prefixes
                || short_until(state.subnets().get(&eni.subnet), prefixes, draft.now).is_some()
            {
                continue;
            }
            let others: Vec<Ipv4Net> = returnable(eni, draft.now, |net| (net.prefix_len() < 32) != prefixes);
            let room = u32::try_from(others.len()).unwrap_or(u32::MAX);
            let mut places = 0;
            let mut given = Vec::new();
            for net in others.into_iter().take(usize::try_from(self.wanted(room, prefixes)).unwrap_or(usize::MAX)) {
                let addresses = i64::from(PREFIX).min(1 << (32 - net.prefix_len()));
                if addresses <= spare {
                    spare -= addresses;
                    places += 1;
                    given.push(net);
                }
            }
            if !given.is_empty()
                && give_back(draft, eni, given, "its places are wanted for the other form of addresses")
            {
                self.cover(places, prefixes);
            }
        }
    }

    /// Makes new ENIs.
    fn create(&mut self, draft: &mut Draft<'_>, prefixes: bool) {
        self.cover_by_intents(draft.state, prefixes);
        let mut slots = self.free_slots(draft);
        if self.left <= 0 || self.is_cooling_enough(draft) || slots == 0 || !self.may_create(draft, prefixes) {
            return;
        }
        let mut planned: BTreeMap<SubnetId, i64> = BTreeMap::new();
        while self.left > 0 && slots > 0 {
            let Some((id, subnet)) = self.subnet(draft, prefixes, &planned) else { return };
            let places = self.wanted(self.form.places, prefixes);
            let at_most = asked_at_most(Some(subnet), prefixes);
            let asked = places.min(at_most).max(1);
            self.cover(places.max(1), prefixes);
            slots -= 1;
            if at_most < u32::MAX {
                // The subnet has refused more than that: one call at a time shows what it has left.
                if planned.contains_key(id) || self.is_asked(draft, id) {
                    continue;
                }
            }
            *planned.entry(id.clone()).or_default() += 1 + i64::from(asked) * Self::size(prefixes);
            let op = Op::Create(self.request(draft, id, count(asked, prefixes)));
            if let Err(cause) = draft.ask(op, self.reason.clone()) {
                self.hindered(draft, places, prefixes, cause);
            }
        }
    }

    /// The room of ENIs that are being made takes its share of the need: they are filled as soon as they are there. ENIs
    /// of a few addresses each would be the price of a burst whose pods come one after the other.
    fn cover_by_intents(&mut self, state: &State, prefixes: bool) {
        let card = self.card;
        for intent in state.intents().values().filter(|intent| intent.card == card) {
            let same_form = matches!(intent.request.addresses, AddressCount::Prefixes(_)) == prefixes;
            let room = self.form.places.saturating_sub(intent.request.addresses.places());
            let places = self.wanted(room, prefixes);
            if same_form && places > 0 {
                self.cover(places, prefixes);
            }
        }
    }

    /// Whether what cools is as much as is missing, and nobody waits for it: an ENI is not made for half a minute.
    fn is_cooling_enough(&mut self, draft: &mut Draft<'_>) -> bool {
        let waiting_left =
            i64::from(self.demand.pods()) - self.pool.spare - self.pool.foreign - (self.missing - self.left);
        let enough = waiting_left <= 0 && self.left <= self.pool.cooling;
        if enough {
            self.left = 0;
            if let Some(cooled) = draft.state.ledger().next_cooled(draft.now) {
                draft.wake(cooled);
            }
        }
        enough
    }

    /// Whether an ENI is being made in the subnet.
    fn is_asked(&self, draft: &Draft<'_>, subnet: &SubnetId) -> bool {
        draft.ops().any(|op| op.subnet() == Some(subnet))
    }

    /// Whether ENIs can be made now; if they will be soon, the need is covered by that.
    fn may_create(&mut self, draft: &mut Draft<'_>, prefixes: bool) -> bool {
        if let Some(until) = draft.state.full_until(self.card, draft.now) {
            draft.wake(until);
            return false;
        }
        let create = Api::CreateNetworkInterface;
        if let Some(obstacle) = draft.obstacle(create) {
            let cause = cause_of(draft.state, create, obstacle);
            if obstacle.kind != CloudErrorKind::AttachmentLimit {
                let places = u32::try_from(self.left.max(0) / Self::size(prefixes) + 1).unwrap_or(u32::MAX);
                self.hindered(draft, places, prefixes, cause);
                self.left = 0;
            }
            return false;
        }
        let unknown =
            (self.targets.subnet_discovery || self.node.custom_networking) && draft.state.subnets_at.is_none();
        let describe = if is_surveyed(draft.state, draft.now) { None } else { Some(Api::DescribeNetworkInterfaces) };
        let describe = describe.or_else(|| unknown.then_some(Api::DescribeSubnets));
        if let Some(api) = describe {
            // What there is has to be known first: the answer brings another plan.
            match draft.obstacle(api) {
                // VPC CNI's way out: the primary ENI's subnet is known.
                Some(_) if api == Api::DescribeSubnets => {}
                Some(obstacle) => {
                    let cause = cause_of(draft.state, api, obstacle);
                    self.hindered(draft, u32::try_from(self.left).unwrap_or(u32::MAX), false, cause);
                    self.left = 0;
                    return false;
                }
                None => {
                    self.left = 0;
                    return false;
                }
            }
        } else if draft.state.subnets_at.is_some_and(|at| draft.now.since(at) > SUBNETS_HOLD)
            && !draft.is_busy(&OpKey::Subnets)
        {
            ask_for_subnets(draft, self.node, "an ENI is being made, and what is known of the subnets is old");
        }
        true
    }

    /// How many ENIs can be made.
    fn free_slots(&self, draft: &Draft<'_>) -> u32 {
        let planned = draft.plan.ops.iter().filter(|planned| match &planned.op {
            Op::Create(request) => {
                request.card == self.card && !draft.state.intents().contains_key(&request.client_token)
            }
            _ => false,
        });
        let there = made(draft.state, self.card).saturating_add(u32::try_from(planned.count()).unwrap_or(u32::MAX));
        let kept = kept_for_trunk(draft.state, self.node, self.targets, self.card);
        eni_limit(self.node, self.targets, self.card).saturating_sub(there).saturating_sub(kept)
    }

    /// The subnet with the most free addresses, of those that have any.
    fn subnet<'s>(
        &mut self,
        draft: &mut Draft<'s>,
        prefixes: bool,
        planned: &BTreeMap<SubnetId, i64>,
    ) -> Option<(&'s SubnetId, &'s Subnet)> {
        let state = draft.state;
        let primary = state.ledger().primary().map(|eni| &eni.subnet);
        let has_families = |subnet: &Subnet| !self.node.families.has_v6() || subnet.ipv6_cidr.is_some();
        let usable = |id: &SubnetId, subnet: &Subnet| {
            let takes_enis = if self.node.custom_networking {
                state.eni_config().is_some_and(|config| config.subnet == *id)
            } else {
                subnet.takes_enis(primary == Some(id), self.targets)
            };
            takes_enis && has_families(subnet)
        };
        let mut best: Option<(i64, (&SubnetId, &Subnet))> = None;
        for (id, subnet) in state.subnets().iter().filter(|(id, subnet)| usable(id, subnet)) {
            if let Some(until) = short_until(Some(subnet), prefixes, draft.now) {
                self.short_of(id, prefixes, until);
                draft.wake(until);
                continue;
            }
            let free = i64::from(subnet.available.unwrap_or(0)) - planned.get(id).copied().unwrap_or(0);
            if best.is_none_or(|(most, _)| free > most) {
                best = Some((free, (id, subnet)));
            }
        }
        best.map(|(_, subnet)| subnet)
    }

    fn request(&self, draft: &Draft<'_>, subnet: &SubnetId, addresses: AddressCount) -> CreateEni {
        let state = draft.state;
        let new = draft.plan.ops.iter().filter(|planned| match &planned.op {
            Op::Create(request) => !state.intents().contains_key(&request.client_token),
            _ => false,
        });
        let client_token = state.client_token(u64::try_from(new.count()).unwrap_or(u64::MAX));
        CreateEni {
            card: self.card,
            subnet: subnet.clone(),
            security_groups: self.security_groups(state),
            addresses: if self.node.families.has_v4() { addresses } else { AddressCount::Secondary(0) },
            ipv6_prefix: self.node.families.has_v6(),
            connection_tracking: state.ledger().primary().and_then(|eni| eni.connection_tracking),
            description: format!("aws-K8S-{}", self.node.identity.instance),
            tags: state.eni_tags(&client_token, draft.now),
            client_token,
        }
    }

    /// The security groups of new ENIs.
    fn security_groups(&self, state: &State) -> Vec<SecurityGroupId> {
        let own = state.named_groups().map(|config| &config.security_groups);
        own.unwrap_or(&self.node.security_groups).clone()
    }

    /// Says why what is still missing will not come.
    fn conclude(&mut self, draft: &mut Draft<'_>) {
        let state = draft.state;
        let mut coming = self.missing - self.left.max(0);
        let mut pool = self.pool.spare + self.pool.foreign + self.pool.cooling;
        if let Some(obstacle) = draft.obstacle(Api::AttachNetworkInterface)
            && obstacle.kind == CloudErrorKind::Denied
        {
            // What is not attached yet will not be.
            let created = state.ledger().enis().filter(|eni| eni.card == self.card && eni.stage == Stage::Created);
            let stuck: i64 = created.map(|eni| Pool::of_eni(state, eni, self.form, draft.now).everything).sum();
            if stuck > 0 {
                pool -= stuck;
                self.denied.get_or_insert((0, cause_of(state, Api::AttachNetworkInterface, obstacle)));
            }
        }
        let mut hopeless = None;
        if let Some((addresses, cause)) = self.denied.take() {
            coming -= addresses;
            hopeless = Some(cause);
        }
        if self.left > 0 {
            let cause = self.limit(draft);
            draft.held_up(cause.clone());
            // A place that is being freed is one to come.
            let is_going = |eni: &Eni| eni.card == self.card && eni.stage == Stage::Leaving && eni.device.is_some();
            let freed = state.ledger().enis().any(is_going);
            // An ENIConfig may be told of at any moment.
            let may_come = (freed && matches!(cause, Cause::EniLimit { .. })) || cause == Cause::NoEniConfig;
            if !may_come {
                hopeless = hopeless.or(Some(cause));
            }
        }
        let beyond = u32::try_from(i64::from(self.demand.waiting) - pool - coming.max(0)).unwrap_or(0);
        draft.conclude(hopeless.filter(|_| beyond > 0).map(|cause| Hopeless { cause, beyond }));
    }

    /// Why there is no subnet for an ENI.
    fn no_subnet(&self, state: &State) -> Cause {
        match state.eni_config() {
            _ if !self.node.custom_networking => Cause::NoSubnet,
            None => Cause::NoEniConfig,
            Some(config) if state.subnets().contains_key(&config.subnet) => Cause::NoSubnet,
            Some(config) => Cause::EniConfigSubnet { name: config.name.clone(), subnet: config.subnet.clone() },
        }
    }

    /// Which limit is in the way of more.
    fn limit(&mut self, draft: &Draft<'_>) -> Cause {
        if let Some(until) = self.short.values().min().copied() {
            return Cause::SubnetExhausted { subnets: std::mem::take(&mut self.short).into_keys().collect(), until };
        }
        let limit = eni_limit(self.node, self.targets, self.card);
        let is_full = draft.state.full_until(self.card, draft.now).is_some();
        if !is_full
            && self.free_slots(draft) > 0
            && draft.state.obstacle(Api::CreateNetworkInterface, draft.now).is_none()
        {
            return self.no_subnet(draft.state);
        }
        Cause::EniLimit {
            limit,
            by_setting: limit < self.node.limits.enis_of(self.card),
            addresses: of_card(draft.state, self.node, self.targets, self.form, self.card, &self.pool),
            relief: self.relief(draft.state),
        }
    }

    /// What would let the ENIs of the card hold more.
    fn relief(&self, state: &State) -> Relief {
        if !self.form.prefixes {
            return if would_prefixes_help(self.node, self.form) { Relief::Prefixes } else { Relief::None };
        }
        let stands_in = |eni: &&Eni| eni.card == self.card && eni.blocks.keys().any(|net| !is_prefix(net));
        let of = state.ledger().enis().filter(|eni| eni.carries_pods()).filter(stands_in).map(|eni| &eni.subnet);
        let lacks = |id: &&SubnetId| state.subnets().get(*id).is_some_and(Subnet::lacks_prefixes);
        let subnets: BTreeSet<&SubnetId> = of.filter(lacks).collect();
        if subnets.is_empty() { Relief::None } else { Relief::WholePrefixes(subnets.into_iter().cloned().collect()) }
    }
}

fn room(state: &State, eni: &Eni, form: Form) -> u32 {
    form.places.saturating_sub(eni.places_taken() + state.places_asked_for(&eni.id))
}

const fn count(places: u32, prefixes: bool) -> AddressCount {
    if prefixes { AddressCount::Prefixes(places) } else { AddressCount::Secondary(places) }
}

fn short_until(subnet: Option<&Subnet>, prefixes: bool, now: Timestamp) -> Option<Timestamp> {
    subnet.and_then(|subnet| subnet.short_until(count(1, prefixes), now))
}

/// A subnet that has refused a number may yet have half of it.
fn asked_at_most(subnet: Option<&Subnet>, prefixes: bool) -> u32 {
    subnet.map_or(u32::MAX, |subnet| subnet.asked_at_most(count(1, prefixes)))
}
