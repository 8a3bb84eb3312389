//! The pool of the AWS VPC CNI v1.23 by its rules (reference/vpc-cni.md 2.4, 2.6 to 2.8): one pool manager that wakes every
//! five seconds, does at most one thing that grows the pool, and knows nothing of pods that wait.
//!
//! Times are those that 2.8 assumes: a tick five seconds after the end of the last one, ten seconds for a new ENI, one for an
//! assignment, EC2 never throttles. It is kinder than the real one: a pod that found no address has one as soon as there
//! is one, where the kubelet would ask again only after 10 to 15 seconds with a new sandbox.

use std::collections::VecDeque;
use std::time::Duration;

use sluice_ipamd_core::cloud::InstanceLimits;
use sluice_ipamd_core::ipv6::Families;
use sluice_ipamd_core::plan::{Targets, WarmMode};

use crate::node::Networking;

/// Addresses of a prefix.
const PREFIX: u32 = 16;
/// From the end of a tick to the next one.
const TICK: Duration = Duration::from_secs(5);
/// Create, attach and set up (docs/eni-and-ip-target.md there: up to 10 s).
const NEW_ENI: Duration = Duration::from_secs(10);
/// AssignPrivateIpAddresses or its opposite.
const CHANGE: Duration = Duration::from_secs(1);
/// Describe, detach, two seconds, delete.
const FREE_ENI: Duration = Duration::from_secs(4);
/// `decreaseIPPoolInterval`.
const DECREASE_INTERVAL: Duration = Duration::from_secs(30);
/// `minENILifeTime`.
const MIN_ENI_LIFE: Duration = Duration::from_secs(60);
/// Calls of EC2 for a new ENI: Create, Attach, Modify, and what is described around them.
const CALLS_NEW_ENI: u64 = 6;
/// Calls of EC2 to free one.
const CALLS_FREE_ENI: u64 = 3;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    Free,
    Assigned(String),
    Cooling(Duration),
}

#[derive(Debug, Clone)]
struct Eni {
    primary: bool,
    since: Duration,
    /// Single addresses and prefixes, by their addresses.
    cidrs: Vec<Vec<Address>>,
}

impl Eni {
    fn count(&self, what: impl Fn(&Address) -> bool) -> u32 {
        u32::try_from(self.cidrs.iter().flatten().filter(|address| what(address)).count()).unwrap_or(u32::MAX)
    }

    fn total(&self) -> u32 {
        self.count(|_| true)
    }

    fn assigned(&self) -> u32 {
        self.count(|address| matches!(address, Address::Assigned(_)))
    }

    fn free_cidrs(&self) -> u32 {
        u32::try_from(self.cidrs.iter().filter(|cidr| is_unused(cidr)).count()).unwrap_or(u32::MAX)
    }

    fn places(&self) -> u32 {
        u32::try_from(self.cidrs.len()).unwrap_or(u32::MAX)
    }
}

/// No pod has an address of it; cooling ones do not count.
fn is_unused(cidr: &[Address]) -> bool {
    cidr.iter().all(|address| !matches!(address, Address::Assigned(_)))
}

/// What the pool manager is doing; it has its effect at its end.
#[derive(Debug, Clone, Copy)]
enum Action {
    Assign { eni: usize, places: u32 },
    NewEni { places: u32 },
}

/// A node of the VPC CNI.
#[derive(Debug, Clone)]
pub struct VpcCni {
    limits: InstanceLimits,
    networking: Networking,
    targets: Targets,
    cooldown: Duration,
    now: Duration,
    next_tick: Duration,
    doing: Option<(Duration, Action)>,
    enis: Vec<Eni>,
    last_decrease: Option<Duration>,
    calls: u64,
    waiting: VecDeque<(String, Duration)>,
    waits: Vec<Duration>,
    idle_address_seconds: f64,
    idle_since: Duration,
}

impl VpcCni {
    /// A node whose pool is at rest. [`Targets::trunk`] holds for instance types that can have a trunk ENI.
    #[must_use]
    pub fn settled(limits: InstanceLimits, targets: Targets, cooldown: Duration) -> Self {
        Self::connected(limits, Networking::default(), targets, cooldown)
    }

    /// The same with pods' IPv4 addresses as `networking` says. Its further network cards have pools of their own, which pods
    /// with one interface get nothing of, and are left out.
    #[must_use]
    pub fn connected(limits: InstanceLimits, networking: Networking, targets: Targets, cooldown: Duration) -> Self {
        // It has nothing else.
        let targets = Targets { mode: WarmMode::Static, ..targets };
        let primary = Eni { primary: true, since: Duration::ZERO, cidrs: Vec::new() };
        let mut node = Self {
            limits,
            networking,
            targets,
            cooldown,
            now: Duration::ZERO,
            next_tick: TICK,
            doing: None,
            enis: vec![primary],
            last_decrease: None,
            calls: 0,
            waiting: VecDeque::new(),
            waits: Vec::new(),
            idle_address_seconds: 0.0,
            idle_since: Duration::ZERO,
        };
        node.settle();
        node.forget();
        node
    }

    /// Counts calls, waits and idle addresses from now on.
    pub fn forget(&mut self) {
        self.calls = 0;
        self.waits.clear();
        (self.idle_address_seconds, self.idle_since) = (0.0, self.now);
    }

    /// The time since the start.
    #[must_use]
    pub const fn now(&self) -> Duration {
        self.now
    }

    /// Calls of EC2 since [`Self::forget`].
    #[must_use]
    pub const fn calls(&self) -> u64 {
        self.calls
    }

    /// How long each pod that was served has waited.
    #[must_use]
    pub fn waits(&self) -> &[Duration] {
        &self.waits
    }

    /// Pods that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Addresses on the node that no pod had, on average since [`Self::forget`].
    #[must_use]
    pub fn mean_idle(&self) -> f64 {
        self.idle_address_seconds / self.now.saturating_sub(self.idle_since).as_secs_f64().max(1e-9)
    }

    /// ENIs, single addresses or prefixes, and addresses that no pod has.
    #[must_use]
    pub fn figures(&self) -> (u32, u32, u32) {
        let enis = u32::try_from(self.enis.len()).unwrap_or(u32::MAX);
        (enis, self.enis.iter().map(Eni::places).sum(), self.total() - self.assigned())
    }

    /// A pod comes.
    pub fn add(&mut self, pod: &str) {
        self.waiting.push_back((pod.to_owned(), self.now));
        self.serve();
    }

    /// A pod ends.
    pub fn del(&mut self, pod: &str) {
        self.waiting.retain(|(waiting, _)| waiting != pod);
        let until = self.now + self.cooldown;
        for address in self.enis.iter_mut().flat_map(|eni| eni.cidrs.iter_mut().flatten()) {
            if matches!(address, Address::Assigned(held) if held == pod) {
                *address = Address::Cooling(until);
            }
        }
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let done = self.doing.map(|(at, _)| at);
            // A pod that waits gets a cooled address when its plugin is called again.
            let cooled = if self.waiting.is_empty() { None } else { self.next_cooled() };
            let next = done.unwrap_or(self.next_tick).min(cooled.unwrap_or(Duration::MAX));
            if next > until {
                break;
            }
            self.advance(next);
            if done == Some(next) {
                self.finish();
            } else if done.is_none() && next == self.next_tick {
                self.tick();
            }
            self.serve();
        }
        self.advance(until);
    }

    /// Lets time pass until the pool is at rest, or an hour has passed. Answers whether it is: by the rules some targets are never
    /// satisfied. With `WARM_ENI_TARGET=0` an empty pool grows by an ENI, which is freed again because it is one more than none.
    pub fn settle(&mut self) -> bool {
        for _ in 0..30 {
            let before = self.calls;
            self.run(2 * MIN_ENI_LIFE);
            if self.calls == before && self.doing.is_none() {
                return true;
            }
        }
        false
    }

    /// Lets time pass until nobody waits, or an hour has passed. Answers how long that took.
    pub fn serve_all(&mut self) -> Duration {
        let begun = self.now;
        while !self.waiting.is_empty() && self.now.saturating_sub(begun) < Duration::from_secs(3600) {
            let next = self.doing.map_or(self.next_tick, |(at, _)| at);
            self.run(next.saturating_sub(self.now).max(Duration::from_millis(1)));
        }
        self.now.saturating_sub(begun)
    }

    fn advance(&mut self, to: Duration) {
        let idle = f64::from(self.total() - self.assigned());
        self.idle_address_seconds += idle * to.saturating_sub(self.now).as_secs_f64();
        self.now = self.now.max(to);
    }

    fn next_cooled(&self) -> Option<Duration> {
        let addresses = self.enis.iter().flat_map(|eni| eni.cidrs.iter().flatten());
        addresses
            .filter_map(|address| match address {
                Address::Cooling(until) if *until > self.now => Some(*until),
                _ => None,
            })
            .min()
    }

    fn serve(&mut self) {
        let now = self.now;
        let mut free = self.enis.iter_mut().flat_map(|eni| eni.cidrs.iter_mut().flatten()).filter(|address| {
            matches!(address, Address::Free) || matches!(address, Address::Cooling(until) if *until <= now)
        });
        while !self.waiting.is_empty() {
            let Some(address) = free.next() else { break };
            if let Some((pod, since)) = self.waiting.pop_front() {
                *address = Address::Assigned(pod);
                self.waits.push(now.saturating_sub(since));
            }
        }
    }

    fn prefixes(&self) -> bool {
        self.targets.prefixes && self.limits.prefixes
    }

    const fn places_each(&self) -> u32 {
        self.limits.ipv4_per_eni.saturating_sub(1)
    }

    /// `GetAllocatableENIs`: what an ENI can hold for pods; with custom networking the primary ENI is none of theirs.
    const fn places_on(&self, eni: &Eni) -> u32 {
        if self.networking.custom && eni.primary { 0 } else { self.places_each() }
    }

    /// `maxIPsPerENI`.
    fn addresses_each(&self) -> u32 {
        self.places_each() * if self.prefixes() { PREFIX } else { 1 }
    }

    /// ENIs for pods: one place less where the node is to have a trunk ENI, which somebody else attaches.
    fn max_enis(&self) -> u32 {
        let most = self.targets.max_enis.filter(|max| *max >= 1).unwrap_or(u32::MAX).min(self.limits.enis);
        most.saturating_sub(u32::from(self.targets.trunk))
    }

    fn total(&self) -> u32 {
        self.enis.iter().map(Eni::total).sum()
    }

    fn assigned(&self) -> u32 {
        self.enis.iter().map(Eni::assigned).sum()
    }

    fn free_prefixes(&self) -> u32 {
        self.enis.iter().map(Eni::free_cidrs).sum()
    }

    /// `datastoreTargetState`: addresses short and over.
    fn short_and_over(&self) -> (u32, u32) {
        let (total, available) = (self.total(), self.total() - self.assigned());
        let (warm, minimum) = (self.targets.warm_ips, self.targets.minimum_ips);
        let short = warm.saturating_sub(available).max(minimum.saturating_sub(total));
        (short, available.saturating_sub(warm).min(total.saturating_sub(minimum)))
    }

    /// `overPrefix`.
    fn prefixes_over(&self) -> u32 {
        let total: u32 = self.enis.iter().map(Eni::places).sum();
        let warm = (self.assigned() + self.targets.warm_ips).div_ceil(PREFIX);
        let minimum = self.targets.minimum_ips.div_ceil(PREFIX);
        self.free_prefixes().min(total.saturating_sub(warm)).min(total.saturating_sub(minimum))
    }

    /// `WARM_ENI_TARGET` or `WARM_PREFIX_TARGET`.
    fn warm_units(&self) -> u32 {
        if self.prefixes() { self.targets.warm_prefixes } else { self.targets.warm_enis }
    }

    /// `isDatastorePoolTooLow`.
    fn is_low(&self) -> bool {
        let available = self.total() - self.assigned();
        if self.total() >= self.targets.max_pods {
            return false;
        }
        if self.targets.counts_addresses() {
            return self.short_and_over().0 > 0;
        }
        let unit = if self.prefixes() { PREFIX } else { self.addresses_each() };
        available < unit * self.warm_units() || (self.warm_units() == 0 && available == 0)
    }

    /// Addresses or prefixes that could be given back one by one.
    fn over(&self) -> u32 {
        match (self.targets.counts_addresses(), self.prefixes()) {
            (true, false) => self.short_and_over().1,
            (true, true) => self.prefixes_over(),
            (false, true) => self.free_prefixes().saturating_sub(self.targets.warm_prefixes),
            (false, false) => 0,
        }
    }

    /// `updateIPPoolIfRequired`.
    fn tick(&mut self) {
        let mut took = Duration::ZERO;
        if !self.targets.provisioning || self.networking.imds_only {
            self.next_tick = self.now + TICK;
            return;
        }
        if self.is_low() {
            if let Some((duration, action)) = self.increase() {
                self.doing = Some((self.now + duration, action));
                return;
            }
        } else if self.over() > 0 && self.last_decrease.is_none_or(|at| self.now.saturating_sub(at) > DECREASE_INTERVAL)
        {
            took += self.decrease();
        }
        took += self.free_eni();
        self.next_tick = self.now + took + TICK;
    }

    /// `increaseDatastorePool`: one call.
    fn increase(&mut self) -> Option<(Duration, Action)> {
        let short = self.short_and_over().0;
        let want = match (self.prefixes(), self.targets.counts_addresses()) {
            (false, true) => short,
            (false, false) => self.places_each(),
            (true, true) => short.div_ceil(PREFIX).max(1),
            (true, false) => self.targets.warm_prefixes.saturating_sub(self.free_prefixes()).max(1),
        };
        let each = self.places_each();
        let allocatable = |eni: &Eni| self.places_on(eni).saturating_sub(eni.places());
        let found = self.enis.iter().map(allocatable).enumerate().find(|(_, room)| *room > 0);
        if let Some((eni, room)) = found {
            self.calls += 1;
            return Some((CHANGE, Action::Assign { eni, places: want.min(room) }));
        }
        if u32::try_from(self.enis.len()).unwrap_or(u32::MAX) < self.max_enis() {
            self.calls += CALLS_NEW_ENI;
            return Some((NEW_ENI, Action::NewEni { places: want.min(each) }));
        }
        None
    }

    fn finish(&mut self) {
        let Some((_, action)) = self.doing.take() else { return };
        let size = if self.prefixes() { PREFIX } else { 1 };
        let cidr = vec![Address::Free; usize::try_from(size).unwrap_or(1)];
        let new = |places: u32| (0..places).map(|_| cidr.clone());
        match action {
            Action::Assign { eni, places } => {
                if let Some(eni) = self.enis.get_mut(eni) {
                    eni.cidrs.extend(new(places));
                }
            }
            Action::NewEni { places } => {
                self.enis.push(Eni { primary: false, since: self.now, cidrs: new(places).collect() });
            }
        }
        // The tick goes on after its growth.
        let took = self.free_eni();
        self.next_tick = self.now + took + TICK;
    }

    /// `decreaseDatastorePool`.
    fn decrease(&mut self) -> Duration {
        let mut over = self.over();
        let mut took = Duration::ZERO;
        for eni in &mut self.enis {
            let before = eni.cidrs.len();
            eni.cidrs.retain(|cidr| {
                let goes = over > 0 && is_unused(cidr);
                over -= u32::from(goes);
                !goes
            });
            if eni.cidrs.len() < before {
                self.calls += 1;
                took += CHANGE;
            }
        }
        self.last_decrease = Some(self.now);
        took
    }

    /// `shouldRemoveExtraENIs` and `tryFreeENI`: one ENI at most.
    fn free_eni(&mut self) -> Duration {
        let (total, available) = (self.total(), self.total() - self.assigned());
        let rich = available >= (self.warm_units() + 1) * self.addresses_each();
        if !self.targets.counts_addresses() && !rich && !self.prefixes() {
            return Duration::ZERO;
        }
        let warm = match self.prefixes() {
            true => self.targets.warm_ips.div_ceil(PREFIX) * PREFIX,
            false => self.targets.warm_ips,
        };
        let goes = self.enis.iter().position(|eni| {
            let rest = available - (eni.total() - eni.assigned());
            !eni.primary
                && self.now.saturating_sub(eni.since) > MIN_ENI_LIFE
                && eni.assigned() == 0
                && eni.count(|address| matches!(address, Address::Cooling(until) if *until > self.now)) == 0
                && (!self.targets.counts_addresses() || rest >= warm && total - eni.total() >= self.targets.minimum_ips)
                // Whether or not the targets in addresses are set.
                && (!self.prefixes() || self.free_prefixes() - eni.free_cidrs() >= self.targets.warm_prefixes)
        });
        let Some(index) = goes else { return Duration::ZERO };
        self.enis.remove(index);
        self.calls += CALLS_FREE_ENI;
        FREE_ENI
    }

    /// Pods come at once to a pool at rest.
    pub fn burst(&mut self, pods: u32) -> Burst {
        self.forget();
        // A tick has just ended.
        self.next_tick = self.now + TICK;
        for pod in 0..pods {
            self.add(&format!("burst{pod}"));
        }
        let first = u32::try_from(self.waits.len()).unwrap_or(u32::MAX);
        let took = self.serve_all();
        Burst { pods, at_once: first, took, ec2_calls: self.calls, all: self.waiting.is_empty() }
    }
}

/// Why there is nothing to say of the VPC CNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoBurst {
    /// It knows one family or the other.
    #[error("it has no pods with addresses of both families")]
    Families,
    /// It does not start (`ENABLE_PREFIX_DELEGATION` with all targets 0).
    #[error("it does not start with prefixes and no target above 0")]
    NoTarget,
    /// [`VpcCni::settle`].
    #[error("it makes an ENI and frees it again, on and on, with these settings")]
    Restless,
}

/// Pods come at once to a node whose pool is at rest.
///
/// # Errors
/// [`NoBurst`].
pub fn burst(
    limits: InstanceLimits,
    networking: Networking,
    targets: Targets,
    cooldown: Duration,
    pods: u32,
) -> Result<Burst, NoBurst> {
    match networking.families {
        Families::V4
            if targets.prefixes && [targets.warm_prefixes, targets.warm_ips, targets.minimum_ips] == [0; 3] =>
        {
            Err(NoBurst::NoTarget)
        }
        Families::V4 => {
            let mut node = VpcCni::connected(limits, networking, targets, cooldown);
            if node.settle() { Ok(node.burst(pods)) } else { Err(NoBurst::Restless) }
        }
        // 2.14: one /80, which the node has from its start, and no pool manager.
        Families::V6 => {
            let at_once = if limits.prefixes { pods } else { 0 };
            Ok(Burst { pods, at_once, took: Duration::ZERO, ec2_calls: 0, all: at_once == pods })
        }
        Families::Dual => Err(NoBurst::Families),
    }
}

/// What has come of a burst.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Burst {
    /// Pods that came at once.
    pub pods: u32,
    /// Pods for which an address was free.
    pub at_once: u32,
    /// Until all of them had an address.
    pub took: Duration,
    /// Calls of EC2 meanwhile.
    pub ec2_calls: u64,
    /// Whether all of them got one.
    pub all: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(name: &str) -> InstanceLimits {
        crate::node::limits_of(name).unwrap()
    }

    fn targets(prefixes: bool, warm: u32, warm_ips: u32, minimum_ips: u32) -> Targets {
        let max_pods = 250;
        Targets {
            prefixes,
            warm_enis: warm,
            warm_prefixes: warm,
            warm_ips,
            minimum_ips,
            max_pods,
            ..Targets::default()
        }
    }

    /// The seven rows of reference/vpc-cni.md 2.8.
    #[test]
    fn bursts_take_what_was_derived() {
        for (kind, targets, pods, at_once, seconds, calls) in [
            ("m5.large", targets(false, 1, 0, 0), 27, 9, 30, 12),
            ("m5.4xlarge", targets(false, 1, 0, 0), 110, 29, 45, 18),
            ("m5.4xlarge", targets(false, 1, 0, 0), 232, 29, 105, 42),
            ("m5.4xlarge", targets(false, 1, 5, 30), 110, 30, 120, 27),
            ("m5.4xlarge", targets(false, 1, 1, 0), 58, 1, 350, 62),
            ("m5.4xlarge", targets(true, 1, 0, 0), 110, 16, 36, 6),
            ("m5.4xlarge", targets(true, 1, 0, 0), 232, 16, 84, 14),
            ("m5.4xlarge", targets(true, 4, 0, 0), 232, 64, 18, 3),
        ] {
            let name = format!("{kind} {targets:?} {pods}");
            let burst = VpcCni::settled(limits(kind), targets, Duration::from_secs(30)).burst(pods);
            assert_eq!((burst.at_once, burst.ec2_calls, burst.all), (at_once, calls, true), "{name}");
            assert!(burst.took.as_secs().abs_diff(seconds) <= 1, "{name}: {:?}", burst.took);
        }
    }

    #[test]
    fn the_place_of_a_trunk_eni_is_not_its_own() {
        let targets = Targets { trunk: true, ..targets(false, 1, 0, 0) };
        let burst = VpcCni::settled(limits("m5.large"), targets, Duration::from_secs(30)).burst(27);
        assert_eq!((burst.at_once, burst.all), (9, false));
    }

    /// Rows of 2.7 that both forms have.
    #[test]
    fn it_settles_as_published() {
        for (kind, targets, pods, places, free) in [
            ("t3.small", targets(false, 1, 0, 0), 5, (3, 9), 4),
            ("t3.small", targets(false, 1, 2, 5), 0, (2, 5), 5),
            ("p3dn.24xlarge", targets(false, 1, 5, 10), 45, (2, 50), 5),
            ("t3.small", targets(true, 1, 0, 0), 17, (1, 3), 31),
            ("t3.small", targets(true, 0, 7, 20), 17, (1, 2), 15),
            ("p3dn.24xlarge", targets(true, 0, 5, 10), 15, (1, 2), 17),
        ] {
            let mut node = VpcCni::settled(limits(kind), targets, Duration::from_secs(30));
            for pod in 0..pods {
                node.add(&format!("p{pod}"));
                node.run(Duration::from_secs(60));
            }
            node.settle();
            assert_eq!(node.figures(), (places.0, places.1, free), "{kind} {pods}");
        }
    }
}
