//! What adaptive warm mode learns: in what crowds pods come, and how long the pool takes to grow.
//!
//! A pod finds the pool empty if more pods have come within the time of a refill, itself among them, than addresses were
//! spare when the refill began. So each pod that comes is counted by the size of its crowd: how many have come within that time
//! up to it. The spare addresses that keep the share of pods that find nothing below a bound are then the quantile of crowd sizes,
//! whatever the arrivals look like: a steady trickle has small crowds, a deployment of 20 has crowds of 1 to 20.
//!
//! There are two kinds of refill, an assignment to an ENI that has room and a new ENI, which takes ten times as long, so
//! there are two crowds: *near* ones, for which addresses have to be spare, and *far* ones, for which addresses and room on
//! attached ENIs together suffice. Room costs no address of the subnet.
//!
//! What was seen an hour ago counts half. Before anything was seen, the node keeps what VPC CNI's default keeps at least, one
//! ENI's worth, and never more than that later: a larger crowd waits for one call of EC2, in parallel for all of it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluice_contract::id::EniId;

use crate::time::Timestamp;

/// Of so many pods one may find the pool empty.
const ONE_OF: u64 = 1000;

/// After so long what was seen counts half.
const HALF_LIFE: Duration = Duration::from_secs(3600);

/// The weight of a pod that has just come.
const ONE: u64 = 1 << 20;

/// What is taken for seen besides, in pods that came alone: a crowd that was seen once, long ago, counts for less and less.
const ALONE: u64 = 10;

/// The weight of the crowd of one ENI's addresses that a node begins with.
const AT_FIRST: u64 = ONE / 10;

/// The largest crowd that is told from larger ones.
const LARGEST: u32 = 256;

/// The heaviest that a crowd is taken to be: more than all pods of a node's life, and all crowds together are still a number.
const HEAVIEST: u64 = ONE << 32;

/// Refills take this long until one has been measured: AssignPrivateIpAddresses; Create, Attach and the link.
const FIRST_LEADS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Shortest and longest time that is taken for a refill.
const LEADS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// Refills that are being measured at once; a node has fewer ENIs.
const MEASURED: usize = 128;

/// How many spare addresses are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Band {
    /// The pool grows when fewer are spare.
    pub low: u32,
    /// It grows up to, and shrinks down to, so many.
    pub high: u32,
    /// It shrinks when more are spare.
    pub most: u32,
    /// Spare addresses and room for more on ENIs that are there, together, are to be as many; otherwise an ENI is made.
    pub reserve: u32,
}

/// Crowds of one kind by size, each with its weight.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Crowds {
    weights: BTreeMap<u32, u64>,
    /// When the weights were right.
    at: Timestamp,
}

impl Crowds {
    fn seen(&mut self, size: u32, weight: u64, now: Timestamp) {
        self.fade(now);
        *self.weights.entry(size.min(LARGEST)).or_default() += weight;
    }

    /// Brings the weights up to date; often enough that what is rounded does not matter.
    fn fade(&mut self, now: Timestamp) {
        let elapsed = now.since(self.at);
        if elapsed < Duration::from_secs(10) {
            return;
        }
        let share = (-elapsed.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
        for weight in self.weights.values_mut() {
            *weight = scaled(*weight, share);
        }
        self.weights.retain(|_, weight| *weight > 0);
        self.at = now;
    }

    /// The smallest number such that larger crowds have at most one part in [`ONE_OF`] of the weight.
    fn enough(&self, now: Timestamp) -> u32 {
        let share = (-now.since(self.at).as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
        let all: u64 = self.weights.values().sum();
        let allowed = (scaled(all, share) + ALONE * ONE) / ONE_OF;
        let mut larger = 0;
        for (size, weight) in self.weights.iter().rev() {
            larger += scaled(*weight, share);
            if larger > allowed {
                return *size;
            }
        }
        1
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "weights are far below 2^52, and a share is between 0 and 1"
)]
fn scaled(weight: u64, share: f64) -> u64 {
    (weight as f64 * share) as u64
}

/// How long a refill takes: quick to grow, slow to shrink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Lead(Duration);

impl Lead {
    fn measured(&mut self, took: Duration) {
        let took = took.clamp(LEADS.0, LEADS.1);
        self.0 = took.max((self.0 * 7 + took) / 8);
    }
}

/// Arrivals of pods and times of refills.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrivals {
    /// Pods that have come within the longest refill.
    recent: VecDeque<Timestamp>,
    near: Crowds,
    far: Crowds,
    assignment: Lead,
    eni: Lead,
    /// Since when each refill is on its way. Not kept over a restart: what is measured then is the restart.
    #[serde(skip)]
    begun: BTreeMap<EniId, Timestamp>,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self {
            recent: VecDeque::new(),
            near: Crowds::default(),
            far: Crowds::default(),
            assignment: Lead(FIRST_LEADS.0),
            eni: Lead(FIRST_LEADS.1),
            begun: BTreeMap::new(),
        }
    }
}

impl Arrivals {
    /// A pod has asked for an address for the first time. An ENI holds `places` addresses.
    pub(crate) fn arrived(&mut self, places: u32, now: Timestamp) {
        if self.near.weights.is_empty() {
            self.near = Crowds { weights: BTreeMap::new(), at: now };
            self.far = self.near.clone();
            self.near.seen(places, AT_FIRST, now);
            self.far.seen(places, AT_FIRST, now);
        }
        while self.recent.len() >= usize::try_from(LARGEST).unwrap_or(usize::MAX)
            || self.recent.front().is_some_and(|at| now.since(*at) > self.far_time())
        {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        let within = |time: Duration| {
            let crowd = self.recent.iter().rev().take_while(|at| now.since(**at) <= time).count();
            u32::try_from(crowd).unwrap_or(LARGEST)
        };
        let (near, far) = (within(self.near_time()), within(self.far_time()));
        self.near.seen(near, ONE, now);
        self.far.seen(far, ONE, now);
    }

    /// What is kept over a restart: not which refills are under way, whose end nobody would tell.
    pub(crate) fn kept(&self) -> Self {
        Self { begun: BTreeMap::new(), ..self.clone() }
    }

    /// What a document tells, as far as it can have been learned: sums and multiples of other numbers may be none.
    pub(crate) fn bounded(mut self) -> Self {
        for lead in [&mut self.assignment, &mut self.eni] {
            lead.0 = lead.0.clamp(LEADS.0, LEADS.1);
        }
        for crowds in [&mut self.near, &mut self.far] {
            crowds.weights.retain(|size, _| *size <= LARGEST);
            crowds.weights.values_mut().for_each(|weight| *weight = (*weight).min(HEAVIEST));
        }
        self
    }

    /// A refill has begun on an ENI, or an ENI is being made since `since`.
    pub(crate) fn begun(&mut self, eni: &EniId, since: Timestamp) {
        if self.begun.len() < MEASURED {
            self.begun.insert(eni.clone(), since);
        }
    }

    /// The addresses of a refill are there.
    pub(crate) fn assigned(&mut self, eni: &EniId, now: Timestamp) {
        if let Some(since) = self.begun.remove(eni) {
            self.assignment.measured(now.since(since));
        }
    }

    /// A new ENI takes pods.
    pub(crate) fn ready(&mut self, eni: &EniId, now: Timestamp) {
        if let Some(since) = self.begun.remove(eni) {
            self.eni.measured(now.since(since));
        }
    }

    /// It has come to nothing.
    pub(crate) fn given_up(&mut self, eni: &EniId) {
        self.begun.remove(eni);
    }

    /// An assignment, and the one before it that is still under way: calls on one ENI go one after the other.
    fn near_time(&self) -> Duration {
        self.assignment.0 * 2
    }

    fn far_time(&self) -> Duration {
        self.eni.0 + self.eni.0 / 4
    }

    /// How many spare addresses are wanted at `now`, where an ENI holds `places`.
    #[must_use]
    pub fn band(&self, places: u32, now: Timestamp) -> Band {
        if self.near.weights.is_empty() {
            return Band { low: places, high: places, most: places, reserve: places };
        }
        // A sample's quantile is a little less than what it stands for.
        let with_margin = |crowd: u32| crowd + crowd / 8 + u32::from(crowd > 1);
        let low = with_margin(self.near.enough(now)).min(places);
        let step = (low / 4).max(2);
        let high = (low + step).min(places.max(low));
        let reserve = with_margin(self.far.enough(now)).min(places).max(low);
        Band { low, high, most: high + step, reserve }
    }

    /// All times set back, as the checkpoint's are when the clock has been.
    pub(crate) fn set_back(&mut self, by: Duration) {
        for at in self.recent.iter_mut().chain([&mut self.near.at, &mut self.far.at]) {
            *at = at.earlier(by);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{at, eni_id};

    const PLACES: u32 = 29;

    /// `crowd` pods at once every `every` seconds, for `times`.
    fn crowds(arrivals: &mut Arrivals, crowd: u32, every: u64, times: u64, from: u64) {
        for time in 0..times {
            for _ in 0..crowd {
                arrivals.arrived(PLACES, at(from + time * every));
            }
        }
    }

    #[test]
    fn at_first_a_node_keeps_what_the_default_keeps() {
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.band(PLACES, at(0)).low, PLACES);
        arrivals.arrived(PLACES, at(0));
        assert_eq!(arrivals.band(PLACES, at(0)).low, PLACES, "one pod says little");
    }

    #[test]
    fn a_trickle_needs_few_and_a_crowd_as_many_as_it_has() {
        let mut arrivals = Arrivals::default();
        crowds(&mut arrivals, 1, 60, 24 * 60, 0);
        let now = at(24 * 3600);
        assert_eq!(arrivals.band(PLACES, now), Band { low: 1, high: 3, most: 5, reserve: 1 });
        crowds(&mut arrivals, 12, 600, 2, 24 * 3600);
        let band = arrivals.band(PLACES, at(25 * 3600));
        assert_eq!((band.low, band.reserve), (14, 14), "{band:?}");
        assert!(arrivals.band(PLACES, at(26 * 3600)).low >= 12, "remembered for hours");
        assert_eq!(arrivals.band(PLACES, at(24 * 3600 * 3)).low, 1, "but not for days");
    }

    #[test]
    fn never_more_than_an_eni_holds() {
        let mut arrivals = Arrivals::default();
        crowds(&mut arrivals, 200, 60, 10, 0);
        assert_eq!(arrivals.band(PLACES, at(600)), Band { low: 29, high: 29, most: 36, reserve: 29 });
    }

    #[test]
    fn pods_that_come_within_a_refill_are_one_crowd() {
        let mut arrivals = Arrivals::default();
        // One every four seconds: alone for an assignment, three for an ENI.
        crowds(&mut arrivals, 1, 4, 3000, 0);
        let band = arrivals.band(PLACES, at(12_000));
        assert_eq!((band.low, band.reserve), (1, 5), "{band:?}");
        // Calls that take longer make larger crowds.
        for n in 0..20 {
            arrivals.begun(&eni_id(1), at(12_000 + n * 60));
            arrivals.assigned(&eni_id(1), at(12_010 + n * 60));
        }
        crowds(&mut arrivals, 1, 4, 3000, 13_200);
        assert!(arrivals.band(PLACES, at(25_200)).low >= 5);
    }

    #[test]
    fn numbers_that_nobody_can_have_learned_are_not_reckoned_with() {
        let (most, when) = (u64::MAX, at(0).as_millis());
        let crowds = format!(r#"{{"weights": {{"1": {most}, "7": {most}, "4294967295": {most}}}, "at": {when}}}"#);
        let lead = format!(r#"{{"secs": {most}, "nanos": 0}}"#);
        let text =
            format!(r#"{{"recent": [], "near": {crowds}, "far": {crowds}, "assignment": {lead}, "eni": {lead}}}"#);
        let mut arrivals = serde_json::from_str::<Arrivals>(&text).unwrap().bounded();
        arrivals.arrived(PLACES, at(1));
        arrivals.begun(&eni_id(1), at(1));
        arrivals.assigned(&eni_id(1), at(2));
        arrivals.begun(&eni_id(2), at(1));
        arrivals.ready(&eni_id(2), at(2));
        let band = arrivals.band(PLACES, at(2));
        assert!(band.low <= PLACES && band.reserve <= PLACES, "{band:?}");
        // What was learned stays as it is.
        let mut learned = Arrivals::default();
        crowds_of_all_sizes(&mut learned);
        assert_eq!(learned.clone().bounded(), learned);
    }

    fn crowds_of_all_sizes(arrivals: &mut Arrivals) {
        for crowd in [1, 20, 300] {
            crowds(arrivals, crowd, 120, 3, u64::from(crowd) * 1000);
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_survives_a_checkpoint() {
        let mut arrivals = Arrivals::default();
        for n in 0..10_000u32 {
            arrivals.arrived(PLACES, at(u64::from(n / 100)));
            arrivals.begun(&eni_id(n), at(0));
        }
        assert!(arrivals.recent.len() <= 256 && arrivals.begun.len() <= MEASURED);
        assert!(arrivals.far.weights.len() <= 257);
        arrivals.begun.clear();
        let text = serde_json::to_string(&arrivals).unwrap();
        assert_eq!(serde_json::from_str::<Arrivals>(&text).unwrap(), arrivals);
    }
}
