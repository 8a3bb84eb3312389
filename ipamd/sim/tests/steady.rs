//! Where the pool settles, beside the VPC CNI's by its own rules (reference/vpc-cni.md 2.6): over a grid of instance types and
//! settings, on the way from no pod to as many as the node holds, and back.
#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sluice_ipamd_core::plan::Targets;
use sluice_ipamd_sim::node::{Node, limits_of};
use sluice_ipamd_sim::vpc_cni::VpcCni;
use sluice_vpcsim::model::Settings;

const COOLDOWN: Duration = Duration::from_secs(30);

/// Pods that are asked for at most: beyond, larger types go on as they have begun.
const MOST: u32 = 130;

/// Few and many ENIs, few and many addresses of each, with prefixes and (`m4.large`) without.
const TYPES: [&str; 6] = ["t3.small", "t3.medium", "m4.large", "m5.large", "m5.xlarge", "m5.4xlarge"];

/// A point of the grid.
#[derive(Debug)]
struct Case {
    kind: &'static str,
    targets: Targets,
}

impl Case {
    fn places(&self) -> u32 {
        limits_of(self.kind).unwrap().ipv4_per_eni - 1
    }

    fn prefixes(&self) -> bool {
        self.targets.prefixes && limits_of(self.kind).unwrap().prefixes
    }

    /// Pods that all ENIs hold.
    fn capacity(&self) -> u32 {
        let enis = limits_of(self.kind).unwrap().enis;
        let enis = self.targets.max_enis.map_or(enis, |most| most.min(enis));
        enis * self.places() * if self.prefixes() { 16 } else { 1 }
    }

    /// Numbers of pods at which the two are compared: those around which something changes.
    fn stops(&self) -> BTreeSet<u32> {
        let each = self.places() * if self.prefixes() { 16 } else { 1 };
        let most = self.capacity().min(MOST);
        let around = |n: u32| [n.saturating_sub(1), n, n + 1];
        let of_units = [16, each, 2 * each, 3 * each, self.targets.max_pods, most].into_iter().flat_map(around);
        let parts = (0..=6).map(|part| most * part / 6);
        of_units.chain(parts).chain([0, 1, 2, 5]).filter(|pods| *pods <= most).collect()
    }

    fn name(&self) -> String {
        let Targets { prefixes, warm_enis, warm_prefixes, warm_ips, minimum_ips, max_enis, max_pods, .. } =
            &self.targets;
        let form =
            if *prefixes { format!("prefixes, WARM_PREFIX={warm_prefixes}") } else { format!("WARM_ENI={warm_enis}") };
        let kind = self.kind;
        format!("{kind} {form} WARM_IP={warm_ips} MINIMUM_IP={minimum_ips} MAX_ENI={max_enis:?} max pods {max_pods}")
    }
}

fn grid() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in TYPES {
        let limits = limits_of(kind).unwrap();
        // As ipamd derives it.
        let max_pods = (limits.enis * (limits.ipv4_per_eni - 1) + 2).max(110);
        let plain = Targets { max_pods, ..Targets::default() };
        let mut settings: Vec<Targets> = Vec::new();
        for prefixes in [false, true] {
            let form = Targets { prefixes, ..plain.clone() };
            let units = u32::from(prefixes)..=3;
            settings.extend(units.map(|warm| Targets { warm_enis: warm, warm_prefixes: warm, ..form.clone() }));
            let pairs = [
                (1, 0),
                (5, 0),
                (15, 0),
                (16, 0),
                (0, 10),
                (0, 40),
                (1, 1),
                (2, 5),
                (5, 10),
                (5, 40),
                (15, 40),
                (7, 20),
            ];
            settings.extend(pairs.map(|(warm_ips, minimum_ips)| Targets { warm_ips, minimum_ips, ..form.clone() }));
            // No target in units beside that in addresses.
            settings.push(Targets { warm_ips: 5, warm_prefixes: 0, warm_enis: 0, ..form.clone() });
            for max_enis in [1, 2] {
                settings.push(Targets { max_enis: Some(max_enis), ..form.clone() });
                settings.push(Targets { max_enis: Some(max_enis), warm_ips: 5, ..form.clone() });
            }
            for max_pods in [8, 20, 60] {
                settings.push(Targets { max_pods, ..form.clone() });
                settings.push(Targets { max_pods, warm_enis: 2, warm_prefixes: 2, ..form.clone() });
                settings.push(Targets { max_pods, warm_ips: 5, ..form.clone() });
                settings.push(Targets { max_pods, warm_ips: 5, minimum_ips: 30, ..form.clone() });
            }
        }
        cases.extend(settings.into_iter().map(|targets| Case { kind, targets }));
    }
    cases
}

/// ENIs, addresses or prefixes, free addresses.
type Pool = (u32, u32, u32);

struct Pair {
    node: Node,
    cni: VpcCni,
    pods: u32,
    /// Whether the VPC CNI's pool is at rest.
    rests: bool,
}

impl Pair {
    fn new(case: &Case) -> Self {
        let node = Node::new(case.kind, case.targets.clone(), COOLDOWN, Settings::aws()).unwrap();
        let cni = VpcCni::settled(limits_of(case.kind).unwrap(), case.targets.clone(), COOLDOWN);
        let mut pair = Self { node, cni, pods: 0, rests: false };
        pair.settle();
        pair
    }

    fn settle(&mut self) {
        self.node.settle().unwrap();
        self.rests = self.cni.settle();
    }

    fn pools(&self) -> (Pool, Pool) {
        let figures = self.node.figures();
        ((figures.enis, self.node.places().iter().sum(), figures.free), self.cni.figures())
    }

    /// Adds pods until there are `pods`, never more at once than both have addresses for: what a pool does for those that wait
    /// is another matter.
    fn grow(&mut self, pods: u32) {
        while self.pods < pods {
            let (ours, theirs) = self.pools();
            let more = ours.2.min(theirs.2).clamp(1, pods - self.pods);
            let names = (self.pods..self.pods + more).map(|pod| format!("pod{pod}"));
            names.clone().for_each(|pod| self.cni.add(&pod));
            // One look at all of them, as at the VPC CNI's tick: near the most pods it matters in which portions they are seen.
            self.node.add_all(names).unwrap();
            self.pods += more;
            self.settle();
        }
    }

    /// The last that came go first.
    fn shrink(&mut self, pods: u32) {
        while self.pods > pods {
            self.pods -= 1;
            self.node.del(&format!("pod{}", self.pods)).unwrap();
            self.cni.del(&format!("pod{}", self.pods));
        }
        self.settle();
    }
}

/// Where Sluice settles elsewhere on purpose (docs/capacity-planning.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    /// The VPC CNI's pool grows no more, whoever waits: `MINIMUM_IP_TARGET` alone wants no spare address, or there are as many
    /// addresses as the kubelet takes pods. Here pods that wait are served, with no more than they need.
    Served,
    /// With `WARM_ENI_TARGET=0` and all ENIs full, the VPC CNI makes an ENI, frees it a minute later as one too many, and so on. Here
    /// it stays.
    Rests,
    /// Where pods have gone, the VPC CNI gives back addresses of any ENI, and keeps the rest of each. Here whole ENIs go first.
    FewerEnis,
    /// The VPC CNI looks at the most pods that the kubelet takes before a step, and takes all that the step brings. Here nothing is
    /// taken that no pod can have.
    NoneBeyondMost,
}

/// What tells the pools apart at a point, if that is on purpose.
fn on_purpose(case: &Case, pair: &Pair, going: bool) -> Option<Difference> {
    let ((enis, places, free), (their_enis, their_places, their_free)) = pair.pools();
    let Targets { warm_enis, warm_ips, minimum_ips, max_pods, .. } = case.targets;
    let size = if case.prefixes() { 16 } else { 1 };
    if pair.cni.waiting() > 0 {
        let by_minimum = (warm_ips, minimum_ips > 0) == (0, true);
        let unit = if case.prefixes() || case.targets.counts_addresses() { size } else { case.places() };
        let explained = by_minimum || their_places * size >= max_pods;
        return (explained && their_free == 0 && free < unit).then_some(Difference::Served);
    }
    if !pair.rests {
        let explained = (warm_enis, case.targets.counts_addresses(), case.prefixes()) == (0, false, false);
        return (explained && pair.pods.is_multiple_of(case.places())).then_some(Difference::Rests);
    }
    if going && enis < their_enis && (places, free) == (their_places, their_free) {
        return Some(Difference::FewerEnis);
    }
    let most = max_pods.max(pair.pods);
    let just_enough = (places.saturating_sub(1) * size..places * size).contains(&(most - 1));
    (just_enough && places < their_places && enis <= their_enis).then_some(Difference::NoneBeyondMost)
}

#[test]
fn p08_the_pool_settles_where_the_vpc_cnis_does() {
    let mut differ = Vec::new();
    let (mut compared, mut purposes) = (0, BTreeMap::new());
    let mut compare = |case: &Case, pair: &Pair, going: bool| {
        let (ours, theirs) = pair.pools();
        assert_eq!(pair.node.figures().pods, pair.pods, "{}", case.name());
        compared += 1;
        if ours == theirs && pair.rests && pair.cni.waiting() == 0 {
            return;
        }
        match on_purpose(case, pair, going) {
            Some(difference) => *purposes.entry(difference).or_insert(0) += 1,
            None => {
                let way = if going { "going" } else { "coming" };
                let line = format!("{}, {} pods, {way}: {ours:?}, VPC CNI {theirs:?}", case.name(), pair.pods);
                println!("{line}");
                differ.push(line);
            }
        }
    };
    for case in grid() {
        let mut pair = Pair::new(&case);
        let stops = case.stops();
        for pods in &stops {
            pair.grow(*pods);
            compare(&case, &pair, false);
            if pair.cni.waiting() > 0 {
                break;
            }
        }
        if pair.cni.waiting() > 0 {
            // From here on they have other pods.
            continue;
        }
        for pods in stops.into_iter().rev().skip(1) {
            pair.shrink(pods);
            compare(&case, &pair, true);
        }
    }
    println!("{compared} compared, {purposes:?} on purpose");
    assert!(differ.is_empty(), "{} differ\n{}", differ.len(), differ.join("\n"));
    assert_eq!(purposes.len(), 4, "a difference that does not show is none: {purposes:?}");
}
