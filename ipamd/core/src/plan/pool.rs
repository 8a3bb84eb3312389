//! The pool in numbers, as it will be when all that is under way has come, and VPC CNI's arithmetic on them
//! (reference/vpc-cni.md 2.6).

use std::ops::{AddAssign, Sub};

use super::{Targets, WarmMode};
use crate::cloud::{AddressCount, InstanceLimits};
use crate::ipv6::is_prefix;
use crate::ledger::{Block, Eni, Stage};
use crate::op::{Op, OpKey};
use crate::state::State;
use crate::time::Timestamp;

/// Addresses of a prefix.
pub(super) const PREFIX: u32 = 16;

/// In which form addresses are asked for, and what an ENI holds in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    /// Prefixes, not single addresses.
    pub(super) prefixes: bool,
    /// Places of an ENI, its own address apart.
    pub(super) places: u32,
}

impl Form {
    pub(super) const fn of(targets: &Targets, limits: &InstanceLimits) -> Self {
        Self { prefixes: targets.prefixes && limits.prefixes, places: limits.ipv4_per_eni.saturating_sub(1) }
    }

    /// Addresses that an ENI has room for beside those places that are taken.
    pub(super) fn room_beside(self, taken: u32) -> i64 {
        i64::from(self.places.saturating_sub(taken)) * if self.prefixes { i64::from(PREFIX) } else { 1 }
    }
}

/// Parts of the pool add up: each ENI's, and each create's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pool {
    /// Addresses of the wanted form that a pod could have, now or once what is under way has come.
    pub(super) spare: i64,
    /// The same in the other form: good for a pod, but not what the targets count.
    pub(super) foreign: i64,
    /// Those of both that a pod could have only later: their ENI is not in service, or they are asked for.
    pub(super) pending: i64,
    /// Addresses that are cooling, or that EC2 has yet to confirm, and will be offered then.
    pub(super) cooling: i64,
    /// Addresses of the wanted form, in use or not.
    pub(super) total: i64,
    /// Addresses of both forms, in use or not.
    pub(super) everything: i64,
    /// Addresses of prefixes that are in use: assigned, cooling, quarantined.
    pub(super) used_of_prefixes: i64,
    /// Prefixes.
    pub(super) prefixes: i64,
    /// Prefixes that no pod has an address of.
    pub(super) free_prefixes: i64,
    /// Spare single addresses of the wanted form.
    pub(super) spare_singles: i64,
    /// Addresses of the wanted form that ENIs have room for, those that are being made among them.
    pub(super) room: i64,
}

impl AddAssign for Pool {
    fn add_assign(&mut self, other: Self) {
        self.spare += other.spare;
        self.foreign += other.foreign;
        self.pending += other.pending;
        self.cooling += other.cooling;
        self.total += other.total;
        self.everything += other.everything;
        self.used_of_prefixes += other.used_of_prefixes;
        self.prefixes += other.prefixes;
        self.free_prefixes += other.free_prefixes;
        self.spare_singles += other.spare_singles;
        self.room += other.room;
    }
}

impl Sub for Pool {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self {
            spare: self.spare - other.spare,
            foreign: self.foreign - other.foreign,
            pending: self.pending - other.pending,
            cooling: self.cooling - other.cooling,
            total: self.total - other.total,
            everything: self.everything - other.everything,
            used_of_prefixes: self.used_of_prefixes - other.used_of_prefixes,
            prefixes: self.prefixes - other.prefixes,
            free_prefixes: self.free_prefixes - other.free_prefixes,
            spare_singles: self.spare_singles - other.spare_singles,
            room: self.room - other.room,
        }
    }
}

impl Pool {
    /// The pool of a network card.
    pub(super) fn of(state: &State, card: u32, form: Form, now: Timestamp) -> Self {
        let mut pool = Self::default();
        for eni in state.ledger().enis().filter(|eni| eni.card == card) {
            pool += Self::of_eni(state, eni, form, now);
        }
        for intent in state.intents().values().filter(|intent| intent.card == card) {
            pool += Self::coming(intent.request.addresses, form.prefixes);
            pool.room += form.room_beside(intent.request.addresses.places());
        }
        pool
    }

    /// What an ENI has, and what is asked for on it.
    pub(super) fn of_eni(state: &State, eni: &Eni, form: Form, now: Timestamp) -> Self {
        let mut pool = Self::default();
        if !eni.carries_pods() || eni.stage == Stage::Leaving {
            return pool;
        }
        // While its subnet has no prefix, single addresses are what there is to want.
        let singles_wanted = !form.prefixes || is_short_of_prefixes(state, eni, now);
        for (net, block) in eni.blocks.iter().filter(|(_, block)| !block.withdrawn) {
            let is_prefix = is_prefix(net);
            pool += Self::of_block(block, is_prefix, if is_prefix { form.prefixes } else { singles_wanted }, now);
        }
        if eni.stage != Stage::InService {
            pool.pending = pool.spare + pool.foreign;
        }
        let mut taken = eni.places_taken();
        if let Some(Op::Assign { count, .. }) = state.flights().get(&OpKey::Eni(eni.id.clone())) {
            pool += Self::coming(*count, form.prefixes);
            taken = taken.saturating_add(count.places());
        }
        pool.room = form.room_beside(taken);
        pool
    }

    /// What one block has.
    pub(super) fn of_block(block: &Block, is_prefix: bool, wanted: bool, now: Timestamp) -> Self {
        let mut pool = Self::default();
        for state in block.addresses.values() {
            let available = state.is_available(now) && !block.hearsay;
            pool.everything += 1;
            pool.total += i64::from(wanted);
            pool.spare += i64::from(available && wanted);
            pool.foreign += i64::from(available && !wanted);
            pool.spare_singles += i64::from(available && wanted && !is_prefix);
            pool.cooling += i64::from(!available && state.available_from().is_some());
            pool.used_of_prefixes += i64::from(!available && is_prefix);
        }
        pool.prefixes = i64::from(is_prefix);
        pool.free_prefixes = i64::from(is_prefix && !block.hearsay && block.in_use(now).is_none());
        pool
    }

    /// What a call brings.
    pub(super) fn coming(count: AddressCount, prefixes_wanted: bool) -> Self {
        let addresses = i64::from(count.addresses());
        let (prefixes, singles) = match count {
            AddressCount::Prefixes(count) => (i64::from(count), 0),
            AddressCount::Secondary(_) => (0, addresses),
        };
        // Single addresses are only asked for where they are wanted.
        let wanted = prefixes_wanted || prefixes == 0;
        Self {
            spare: if wanted { addresses } else { 0 },
            foreign: if wanted { 0 } else { addresses },
            pending: addresses,
            total: if wanted { addresses } else { 0 },
            everything: addresses,
            prefixes,
            free_prefixes: prefixes,
            spare_singles: singles,
            ..Self::default()
        }
    }

    /// What is left of the wanted form once those that wait have been served; less than nothing when that does not
    /// suffice for them.
    pub(super) fn available(&self, waiting: u32) -> i64 {
        self.spare - (i64::from(waiting) - self.foreign).max(0)
    }

    /// The pool as it will be for the targets when pods that are about to ask have been served.
    pub(super) fn less_due(self, bound: u32) -> Self {
        Self { spare: self.available(bound), ..self }
    }

    /// How many addresses the targets and those that wait want beyond the pool.
    pub(super) fn missing(&self, targets: &Targets, form: Form, waiting: u32) -> i64 {
        let available = self.available(waiting);
        if self.everything >= i64::from(targets.max_pods) {
            return (-available).max(0);
        }
        let warm = match targets.mode {
            WarmMode::Adaptive(band) if available < i64::from(band.low) => i64::from(band.high) - available,
            WarmMode::Adaptive(_) => 0,
            WarmMode::Static => (targets.spare_wanted(form) - available).max(0),
        };
        let minimum = (i64::from(targets.minimum_ips) - self.total).max(0);
        let wanted = if targets.counts_addresses() { warm.max(minimum) } else { warm };
        // The last ENI or prefix may go beyond it, and no second one, also where a crowd came at once.
        wanted.min((i64::from(targets.max_pods) - self.everything).max(-available))
    }

    /// Whether an ENI more is wanted for its room: adaptive mode keeps a reserve of addresses and places.
    pub(super) fn lacks_room(&self, targets: &Targets, bound: u32) -> bool {
        match targets.mode {
            WarmMode::Adaptive(band) => {
                let full = self.everything + self.room >= i64::from(targets.max_pods);
                !full && self.available(bound) + self.room < i64::from(band.reserve)
            }
            WarmMode::Static => false,
        }
    }

    /// Whether so many spare addresses are too many.
    pub(super) fn is_rich(&self, targets: &Targets) -> bool {
        match targets.mode {
            WarmMode::Adaptive(band) => self.spare > i64::from(band.most),
            WarmMode::Static => true,
        }
    }

    /// How many prefixes could be given back, if the pool is rich.
    pub(super) fn surplus_prefixes(&self, targets: &Targets, form: Form) -> i64 {
        let size = i64::from(PREFIX);
        let surplus = if targets.counts_addresses() {
            let warm = (self.used_of_prefixes + targets.spare_wanted(form) + size - 1) / size;
            let minimum = (i64::from(targets.minimum_ips) + size - 1) / size;
            self.free_prefixes.min(self.prefixes - warm).min(self.prefixes - minimum)
        } else {
            self.free_prefixes - i64::from(targets.warm_prefixes)
        };
        // Never so many that the pool would have to grow again.
        surplus.min((self.spare - targets.spare_wanted(form)) / size).max(0)
    }

    /// How many single addresses could be given back, if the pool is rich.
    pub(super) fn surplus_singles(&self, targets: &Targets, form: Form) -> i64 {
        let over = self.spare - targets.spare_wanted(form);
        let over = match (targets.counts_addresses(), form.prefixes) {
            (true, _) => over.min(self.total - i64::from(targets.minimum_ips)),
            (false, true) => over,
            // WARM_ENI_TARGET counts whole ENIs, and only whole ENIs are given back.
            (false, false) => 0,
        };
        over.clamp(0, self.spare_singles.max(0))
    }

    /// Whether what is left is not soon wanted back.
    fn can_spare_room(&self, targets: &Targets) -> bool {
        match targets.mode {
            WarmMode::Adaptive(band) => self.spare + self.room >= 2 * i64::from(band.reserve),
            WarmMode::Static => true,
        }
    }

    /// Whether the pool can do without an ENI whose part is `part`.
    pub(super) fn can_spare(&self, part: Self, targets: &Targets, form: Form) -> bool {
        let rest = *self - part;
        if part.everything == 0 {
            return rest.can_spare_room(targets);
        }
        if rest.missing(targets, form, 0) > 0 {
            return false;
        }
        let size = i64::from(PREFIX);
        match (targets.counts_addresses(), form.prefixes) {
            (true, false) => rest.spare >= targets.spare_wanted(form) && rest.can_spare_room(targets),
            (true, true) => {
                rest.spare >= (targets.spare_wanted(form) + size - 1) / size * size && rest.can_spare_room(targets)
            }
            (false, true) => rest.free_prefixes >= i64::from(targets.warm_prefixes),
            (false, false) => self.spare >= (i64::from(targets.warm_enis) + 1) * i64::from(form.places),
        }
    }
}

impl Targets {
    /// Whether `WARM_IP_TARGET` or `MINIMUM_IP_TARGET` is set, which replace the targets in ENIs and prefixes, as adaptive mode
    /// does.
    #[must_use]
    pub const fn counts_addresses(&self) -> bool {
        self.warm_ips != 0 || self.minimum_ips != 0 || matches!(self.mode, WarmMode::Adaptive(_))
    }

    /// What further network cards keep: one address, whatever the targets of card 0 are, because few pods have interfaces there.
    #[must_use]
    pub fn of_further_cards(&self) -> Self {
        Self { mode: WarmMode::Static, warm_ips: 1, minimum_ips: 1, ..self.clone() }
    }

    /// How many spare addresses are kept when the pool has grown or shrunk. A target of no ENI or prefix still wants one address: VPC CNI grows the pool
    /// when it is empty.
    pub(super) fn spare_wanted(&self, form: Form) -> i64 {
        if let WarmMode::Adaptive(band) = self.mode {
            i64::from(band.high)
        } else if self.counts_addresses() {
            i64::from(self.warm_ips)
        } else if form.prefixes {
            (i64::from(self.warm_prefixes) * i64::from(PREFIX)).max(1)
        } else {
            (i64::from(self.warm_enis) * i64::from(form.places)).max(1)
        }
    }

    /// The target that counts, in the words of the configuration.
    pub(super) fn words(&self, form: Form) -> String {
        if let WarmMode::Adaptive(band) = self.mode {
            return format!("adaptive: {} to {} spare, {} with room", band.low, band.most, band.reserve);
        }
        match (self.warm_ips, self.minimum_ips) {
            (0, 0) if form.prefixes => format!("WARM_PREFIX_TARGET={}", self.warm_prefixes),
            (0, 0) => format!("WARM_ENI_TARGET={}", self.warm_enis),
            (warm, 0) => format!("WARM_IP_TARGET={warm}"),
            (0, minimum) => format!("MINIMUM_IP_TARGET={minimum}"),
            (warm, minimum) => format!("WARM_IP_TARGET={warm} MINIMUM_IP_TARGET={minimum}"),
        }
    }
}

/// So many addresses, in words.
pub(super) fn spare_words(addresses: i64) -> String {
    if addresses == 1 { "1 address is spare".to_owned() } else { format!("{} addresses are spare", addresses.max(0)) }
}

/// Whether prefixes are not to be had for an ENI now.
pub(super) fn is_short_of_prefixes(state: &State, eni: &Eni, now: Timestamp) -> bool {
    let subnet = state.subnets().get(&eni.subnet);
    subnet.is_some_and(|subnet| subnet.short_until(AddressCount::Prefixes(1), now).is_some())
}
