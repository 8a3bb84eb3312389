//! Arrivals and ends of pods on one node over a day, and what comes of them. Traces are made from a seed, to be the same
//! in every run.

use std::time::Duration;

use sluice_vpcsim::model::random::Random;

use crate::node::{Node, SimError};
use crate::vpc_cni::VpcCni;

/// A pod comes or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    at: Duration,
    pod: u32,
    comes: bool,
}

/// A day of a node.
#[derive(Debug, Clone)]
pub struct Trace {
    /// Its name.
    pub name: &'static str,
    /// What happens in it.
    pub about: &'static str,
    changes: Vec<Change>,
    pods: u32,
}

/// What has come of a trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Replay {
    /// Pods that came.
    pub pods: u32,
    /// Pods that found no address free.
    pub stalls: u32,
    /// The longest that one of them waited.
    pub longest: Duration,
    /// Addresses on the node that no pod had, on average.
    pub mean_idle: f64,
    /// Calls of EC2.
    pub ec2_calls: u64,
}

/// How long a trace is.
const DAY: Duration = Duration::from_secs(24 * 3600);

struct Maker {
    random: Random,
    changes: Vec<Change>,
    pods: u32,
}

impl Maker {
    const fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), changes: Vec::new(), pods: 0 }
    }

    /// A number between 0 and 1.
    fn share(&mut self) -> f64 {
        f64::from(self.random.below(1 << 24)) / f64::from(1 << 24)
    }

    /// A time with an exponential distribution.
    fn about(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-(1.0 - self.share()).ln())
    }

    fn between(&mut self, from: u64, to: u64) -> Duration {
        self.random.between(Duration::from_millis(from), Duration::from_millis(to))
    }

    /// A pod that comes at `at` and ends after `life`.
    fn pod(&mut self, at: Duration, life: Duration) {
        self.changes.push(Change { at, pod: self.pods, comes: true });
        self.changes.push(Change { at: at + life, pod: self.pods, comes: false });
        self.pods += 1;
    }

    /// `count` pods within `spread`, each of which lives for `life` on average.
    fn crowd(&mut self, at: Duration, count: u32, spread: Duration, life: Duration) {
        for _ in 0..count {
            let at = at + spread.mul_f64(self.share());
            let life = self.about(life);
            self.pod(at, life);
        }
    }

    fn done(mut self, name: &'static str, about: &'static str) -> Trace {
        self.changes.sort_by_key(|change| (change.at, change.pod, !change.comes));
        self.changes.retain(|change| change.at < DAY);
        Trace { name, about, changes: self.changes, pods: self.pods }
    }
}

impl Trace {
    /// The traces of the benchmark.
    #[must_use]
    pub fn all() -> Vec<Self> {
        vec![Self::steady(), Self::diurnal(), Self::bursty(), Self::cron(), Self::deploy_and_roll()]
    }

    /// Pods one by one at a constant rate.
    #[must_use]
    pub fn steady() -> Self {
        let mut maker = Maker::new(1);
        let mut at = Duration::ZERO;
        while at < DAY {
            at += maker.about(Duration::from_secs(30));
            let life = maker.about(Duration::from_secs(1200));
            maker.pod(at, life);
        }
        maker.done("steady", "a pod every 30 s, each for 20 min")
    }

    /// The rate follows the day: quiet at night, twenty times as much at noon.
    #[must_use]
    pub fn diurnal() -> Self {
        let mut maker = Maker::new(2);
        let mut at = Duration::ZERO;
        while at < DAY {
            // Thinned out from the highest rate (Lewis and Shedler, 1979).
            at += maker.about(Duration::from_secs(15));
            let day = at.as_secs_f64() / DAY.as_secs_f64();
            let rate = 0.05 + 0.95 * (0.5 - 0.5 * (day * std::f64::consts::TAU).cos());
            if maker.share() < rate {
                let life = maker.about(Duration::from_secs(1200));
                maker.pod(at, life);
            }
        }
        maker.done("diurnal", "from a pod in 5 min at night to one in 15 s at noon, each for 20 min")
    }

    /// Crowds at random times.
    #[must_use]
    pub fn bursty() -> Self {
        let mut maker = Maker::new(3);
        let mut at = Duration::ZERO;
        while at < DAY {
            at += maker.about(Duration::from_secs(900));
            let count = 4 + maker.random.below(17);
            maker.crowd(at, count, Duration::from_secs(2), Duration::from_secs(600));
        }
        maker.done("bursty", "4 to 20 pods within 2 s, every 15 min at random, each for 10 min")
    }

    /// Jobs at fixed minutes, and a little else.
    #[must_use]
    pub fn cron() -> Self {
        let mut maker = Maker::new(4);
        let mut at = Duration::ZERO;
        while at < DAY {
            let hourly = at.as_secs().is_multiple_of(3600);
            let count = if hourly { 18 + maker.random.below(7) } else { 6 + maker.random.below(5) };
            for _ in 0..count {
                let (at, life) = (at + maker.between(0, 1500), maker.between(60_000, 180_000));
                maker.pod(at, life);
            }
            at += Duration::from_secs(900);
        }
        let mut at = Duration::ZERO;
        while at < DAY {
            at += maker.about(Duration::from_secs(300));
            let life = maker.about(Duration::from_secs(1800));
            maker.pod(at, life);
        }
        maker.done(
            "cron-like",
            "6 to 10 jobs every 15 min, 18 to 24 at the full hour, each for 1 to 3 min; others in between",
        )
    }

    /// Sixty pods of services that are deployed anew, a quarter at a time, and scaled now and then.
    #[must_use]
    pub fn deploy_and_roll() -> Self {
        let mut maker = Maker::new(5);
        let mut running: Vec<(u32, Duration)> = Vec::new();
        let comes = |maker: &mut Maker, at: Duration, running: &mut Vec<(u32, Duration)>| {
            running.push((maker.pods, at));
            maker.changes.push(Change { at, pod: maker.pods, comes: true });
            maker.pods += 1;
        };
        let ends = |maker: &mut Maker, at: Duration, running: &mut Vec<(u32, Duration)>| {
            if !running.is_empty() {
                let (pod, _) = running.remove(0);
                maker.changes.push(Change { at, pod, comes: false });
            }
        };
        for _ in 0..60 {
            let at = maker.between(1000, 20_000);
            comes(&mut maker, at, &mut running);
        }
        let mut at = Duration::from_secs(600);
        while at < DAY {
            at += maker.about(Duration::from_secs(3600));
            if maker.random.below(4) == 0 {
                // Scaled up by a few, and down again after half an hour.
                let count = 4 + maker.random.below(9);
                for _ in 0..count {
                    let at = at + maker.between(0, 1000);
                    comes(&mut maker, at, &mut running);
                }
                for _ in 0..count {
                    let at = at + Duration::from_secs(1800) + maker.between(0, 1000);
                    ends(&mut maker, at, &mut running);
                }
                continue;
            }
            // maxSurge 25 % of 60: fifteen new ones, and as many old ones go once these are ready.
            for wave in 0..4 {
                let at = at + Duration::from_secs(45 * wave);
                for _ in 0..15 {
                    let at = at + maker.between(0, 1500);
                    comes(&mut maker, at, &mut running);
                }
                for _ in 0..15 {
                    let at = at + Duration::from_secs(30) + maker.between(0, 5000);
                    ends(&mut maker, at, &mut running);
                }
            }
        }
        maker
            .done("deploy-and-roll", "60 pods, replaced by fifteens about every 80 min, scaled by 4 to 12 now and then")
    }

    /// Replays it on a node whose pool is at rest.
    ///
    /// # Errors
    /// [`SimError`] of the node.
    pub fn replay(&self, mut node: Node) -> Result<Replay, SimError> {
        node.settle()?;
        node.forget_idle();
        let begun = node.now();
        let calls = node.figures().ec2_calls;
        for change in &self.changes {
            node.run((begun + change.at).saturating_sub(node.now()))?;
            let pod = format!("pod{}", change.pod);
            if change.comes { node.add(&pod)? } else { node.del(&pod)? }
        }
        node.run((begun + DAY).saturating_sub(node.now()))?;
        Ok(self.outcome(node.waits(), node.waiting(), node.mean_idle_since(), node.figures().ec2_calls - calls))
    }

    /// Replays it on a node of the VPC CNI.
    #[must_use]
    pub fn replay_vpc_cni(&self, mut node: VpcCni) -> Replay {
        node.forget();
        let begun = node.now();
        for change in &self.changes {
            node.run((begun + change.at).saturating_sub(node.now()));
            let pod = format!("pod{}", change.pod);
            if change.comes {
                node.add(&pod);
            } else {
                node.del(&pod);
            }
        }
        node.run((begun + DAY).saturating_sub(node.now()));
        let waiting = u32::try_from(node.waiting()).unwrap_or(u32::MAX);
        self.outcome(node.waits(), waiting, node.mean_idle(), node.calls())
    }

    fn outcome(&self, waits: &[Duration], waiting: u32, mean_idle: f64, ec2_calls: u64) -> Replay {
        let stalled = waits.iter().filter(|wait| !wait.is_zero()).count();
        Replay {
            pods: self.pods,
            stalls: u32::try_from(stalled).unwrap_or(u32::MAX).saturating_add(waiting),
            longest: waits.iter().copied().max().unwrap_or_default(),
            mean_idle,
            ec2_calls,
        }
    }
}

impl Replay {
    /// Whether it is nowhere worse than `other`, in stalls, idle addresses and calls, and somewhere better.
    #[must_use]
    pub fn beats(&self, other: &Self) -> bool {
        let no_worse =
            self.stalls <= other.stalls && self.mean_idle <= other.mean_idle && self.ec2_calls <= other.ec2_calls;
        no_worse && (self.stalls, self.ec2_calls, self.mean_idle) != (other.stalls, other.ec2_calls, other.mean_idle)
    }
}

#[cfg(test)]
mod tests {
    use sluice_ipamd_core::plan::Targets;
    use sluice_vpcsim::model::Settings;

    use super::*;
    use crate::arms;
    use crate::node::limits_of;

    const MAX_PODS: u32 = 234;
    const COOLDOWN: Duration = Duration::from_secs(30);

    fn replay(trace: &Trace, kind: &str, targets: Targets) -> Replay {
        trace.replay(Node::new(kind, targets, COOLDOWN, Settings::aws()).unwrap()).unwrap()
    }

    /// `./bench adaptive` has all settings and both types on all days; this holds the promise where it is cheap to.
    fn holds(trace: &Trace, kind: &str, prefixes: bool, names: &[&str]) {
        let adaptive = replay(trace, kind, arms::adaptive(prefixes, MAX_PODS));
        let default = Targets { prefixes, max_pods: MAX_PODS, ..Targets::default() };
        let cni = trace.replay_vpc_cni(VpcCni::settled(limits_of(kind).unwrap(), default, COOLDOWN));
        println!("{} {kind}: adaptive {adaptive:?}, VPC CNI {cni:?}", trace.name);
        assert!(adaptive.mean_idle < cni.mean_idle && adaptive.stalls <= cni.stalls, "{} {kind}", trace.name);
        let arms: Vec<_> =
            arms::fixed(prefixes, MAX_PODS).into_iter().filter(|arm| names.contains(&arm.name.as_str())).collect();
        assert_eq!(arms.len(), names.len());
        for arm in arms {
            let fixed = replay(trace, kind, arm.targets);
            println!("{} {kind}: {} {fixed:?}", trace.name, arm.name);
            assert!(!fixed.beats(&adaptive), "{} {kind} {}", trace.name, arm.name);
        }
    }

    #[test]
    fn adaptive_mode_needs_fewer_addresses_than_the_default_and_stalls_no_more() {
        let names =
            ["WARM_ENI_TARGET=2", "WARM_IP_TARGET=5", "WARM_IP_TARGET=20", "WARM_IP_TARGET=5 MINIMUM_IP_TARGET=60"];
        for trace in Trace::all() {
            holds(&trace, "m5.4xlarge", false, &names);
        }
    }

    #[test]
    fn the_same_holds_for_prefixes_and_on_larger_enis() {
        let trace = Trace::bursty();
        holds(&trace, "m5.4xlarge", true, &["WARM_PREFIX_TARGET=1", "WARM_IP_TARGET=16"]);
        holds(&trace, "m5.24xlarge", false, &["WARM_ENI_TARGET=1", "WARM_IP_TARGET=15 MINIMUM_IP_TARGET=60"]);
    }
}
