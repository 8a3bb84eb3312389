//! S-01: how long ADD and DEL take when an address is free, from the first plugin's exec to the last one's exit, with the
//! pod's policy in force at the end; beside `ptp` with `host-local`, the reference plugins that do the least that a
//! plugin can do: a veth pair, an address from a file, a route; and the same on a node that has 200 pods already.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_vpcsim::deployment::{Deployment, DeploymentError};
use sluice_vpcsim::node::Node;
use sluice_vpcsim::world::World;

use super::burst::{NAMESPACE, Plugin, PodName, Sandboxes, Subject, Times, pod_name};
use super::report::{Part, Report};
use super::stats::{median, millis, percentile};
use super::{BenchError, POOL_LIMIT, Say, count, install, install_gated, scene};
use crate::containerd::DEBIAN_CNI;

/// The number of the promise.
pub const ID: &str = "S-01";
/// What is measured, in one line.
pub const ABOUT: &str = "ADD and DEL with a free address, whole chain, exec to exit, beside ptp + host-local";

/// Pods of a burst.
const PODS: usize = 50;
/// How many of them at the same time.
const AT_ONCE: [usize; 3] = [1, 10, 50];
/// Rounds; each measures everything once, in another order.
const ROUNDS: usize = 6;
/// The warm pool: more than two bursts' addresses, on seven ENIs.
const POOL: u64 = 200;
/// Pods that a crowded node has already: more than an m5.4xlarge's secondary addresses leave room for, so it has prefixes.
const STANDING: usize = 200;
/// The promise: the most that the median of single ADDs may take, in milliseconds.
const ALONE: f64 = 10.0;
/// The most that the 99th percentile of 50 at once may take, in milliseconds.
const CROWDED: f64 = 250.0;
/// The most of the peer's 99th percentile that it may be (ADR 13).
const PART: f64 = 1.0 / 2.0;
/// The most CPU that an ADD may take, as a part of the peer's: 5 ms where the peer takes 8 ms (ADR 0003).
const CPU_PART: f64 = 5.0 / 8.0;

/// Who is measured, in turns: the chain, its peer, the chain again, sluice-eni without the gate, and the chain where
/// [`STANDING`] pods are.
const ARMS: [&str; 5] = ["sluice", "ptp + host-local", "sluice again", "sluice-eni alone", "sluice beside 200 pods"];

/// The bursts of one kind: a round each, for each of [`ARMS`].
#[derive(Default)]
struct Level {
    at_once: usize,
    arms: [Vec<Times>; 5],
}

/// Measures and reports.
///
/// # Errors
/// [`BenchError`]: what could not be set up, or the first plugin that failed.
pub async fn run(say: Say) -> Result<Report, BenchError> {
    let nodes = ["sluice", "peer", "plain", "crowded"].map(|name| (name, "m5.4xlarge"));
    let world = World::up(&scene(&nodes)?).await?;
    let (node, peer_node, plain_node) = (world.node("sluice")?, world.node("peer")?, world.node("plain")?);
    let crowded_node = world.node("crowded")?;
    say("filling the warm pools");
    let pool = POOL.to_string();
    let settings = [("MINIMUM_IP_TARGET", pool.as_str()), ("WARM_IP_TARGET", "1"), ("IP_COOLDOWN_PERIOD", "1")];
    let product = install_gated(node, &settings, &cluster(node.name(), PODS)).await?;
    let plain = install(plain_node, &settings).await?;
    let ours = Subject::sluice(&product).await;
    let alone = Subject::sluice(&plain).await;
    let peer = peer_subject();
    let sandboxes = Sandboxes::new(node, PODS).await?;
    let peer_sandboxes = Sandboxes::new(peer_node, PODS).await?;
    let plain_sandboxes = Sandboxes::new(plain_node, PODS).await?;
    let crowded = Crowded::up(crowded_node, say).await?;

    let mut levels = AT_ONCE.map(|at_once| Level { at_once, ..Level::default() });
    for round in 0..ROUNDS {
        say(&format!("round {} of {ROUNDS}", round + 1));
        for level in &mut levels {
            for turn in 0..ARMS.len() {
                let arm = (round + turn) % ARMS.len();
                let label = format!("r{round}-n{}-{arm}", level.at_once);
                let times = match arm {
                    1 => peer_sandboxes.burst(peer_node, &peer, &label, level.at_once).await?,
                    3 => {
                        await_free(&plain).await?;
                        plain_sandboxes.burst(plain_node, &alone, &label, level.at_once).await?
                    }
                    4 => {
                        await_free(&crowded.product).await?;
                        crowded.sandboxes.burst(crowded_node, &crowded.subject, &label, level.at_once).await?
                    }
                    _ => {
                        await_free(&product).await?;
                        sandboxes.burst(node, &ours, &label, level.at_once).await?
                    }
                };
                if let Some(bursts) = level.arms.get_mut(arm) {
                    bursts.push(times);
                }
            }
        }
    }
    Ok(report(&levels))
}

/// A node with [`STANDING`] pods, and room for a burst.
struct Crowded {
    product: Deployment,
    subject: Subject,
    sandboxes: Sandboxes,
}

impl Crowded {
    async fn up(node: &Arc<Node>, say: Say) -> Result<Self, BenchError> {
        let target = (POOL + STANDING as u64).to_string();
        let settings = [
            ("ENABLE_PREFIX_DELEGATION", "true"),
            ("MINIMUM_IP_TARGET", target.as_str()),
            ("WARM_IP_TARGET", "1"),
            ("IP_COOLDOWN_PERIOD", "1"),
            ("SLUICE_MAX_PODS", "500"),
        ];
        let product = install_gated(node, &settings, &cluster(node.name(), PODS + STANDING)).await?;
        let mut sandboxes = Sandboxes::new(node, PODS + STANDING).await?;
        let standing = sandboxes.split_off(PODS);
        await_free(&product).await?;
        let subject = Subject::sluice(&product).await;
        say(&format!("adding {STANDING} pods that stay"));
        let names: Vec<PodName> = (PODS..PODS + STANDING).map(PodName::of).collect();
        standing.fill_with(node, &subject, &names, 10).await?;
        Ok(Self { product, subject, sandboxes })
    }
}

/// The cluster as policyd reads it: so many pods, and a policy that each of them is subject to.
fn cluster(node: &str, pods: usize) -> String {
    let mut objects = vec![
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } }),
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": { "name": "web", "namespace": NAMESPACE },
            "spec": {
                "podSelector": {},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{ "from": [{ "podSelector": {} }], "ports": [{ "port": 80 }] }],
                "egress": [{ "to": [{ "ipBlock": { "cidr": "10.0.0.0/8" } }] }],
            },
        }),
    ];
    objects.extend((0..pods).map(pod_name).map(|name| {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "namespace": NAMESPACE, "uid": name, "labels": { "app": "web" } },
            "spec": { "nodeName": node, "containers": [{ "name": "web", "image": "web" }] },
        })
    }));
    objects.iter().map(|object| format!("---\n{object}\n")).collect()
}

/// Waits until no ADD of a burst has to wait for an address, and nothing else goes on.
async fn await_free(product: &Deployment) -> Result<(), DeploymentError> {
    let free = |view: &Value| count(view, "free") >= Some(POOL) && count(view, "flights") == Some(0);
    product.pool_until("the whole pool was not free", POOL_LIMIT, free).await.map(drop)
}

fn peer_subject() -> Subject {
    let config = json!({
        "cniVersion": "1.0.0",
        "name": "reference",
        "type": "ptp",
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.99.0.0/16" }]] },
    });
    let program = PathBuf::from(DEBIAN_CNI).join("ptp");
    let plugin = Plugin { program, config: config.as_object().cloned().unwrap_or_default() };
    Subject { chain: vec![plugin], path: DEBIAN_CNI.into(), daemons: Vec::new() }
}

impl Level {
    fn adds(&self, arm: usize) -> Vec<Duration> {
        self.times(arm, |times| &times.add)
    }

    fn times(&self, arm: usize, verb: impl Fn(&Times) -> &Vec<Duration>) -> Vec<Duration> {
        self.arms.get(arm).into_iter().flatten().flat_map(|times| verb(times).iter().copied()).collect()
    }

    /// Milliseconds of CPU an ADD, over all rounds, because the kernel counts coarsely.
    fn cpu(&self, arm: usize, of: impl Fn(&Times) -> Duration) -> f64 {
        let bursts = self.arms.get(arm).into_iter().flatten();
        let (cpu, adds) = bursts.fold((Duration::ZERO, 0_u32), |(cpu, adds), times| {
            (cpu + of(times), adds + u32::try_from(times.add.len()).unwrap_or_default())
        });
        millis(cpu) / f64::from(adds)
    }

    /// The median over the rounds of one arm's 99th percentile of ADD divided by another's in the same round.
    fn ratio(&self, arm: usize, other: usize) -> f64 {
        let of = |arm: usize| self.arms.get(arm).into_iter().flatten().map(|times| millis(percentile(&times.add, 99)));
        let ratios: Vec<f64> = of(arm).zip(of(other)).map(|(one, other)| one / other).collect();
        median(&ratios)
    }
}

fn report(levels: &[Level; 3]) -> Report {
    let [alone, _, crowded] = levels;
    let p = |percent, times: &[Duration]| millis(percentile(times, percent));
    let mut rows = vec![
        ["at once", "", "ADD p50", "p95", "p99 ms", "DEL p50", "p95", "p99 ms", "CPU an ADD", "daemons ms"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut notes = Vec::new();
    let all = |times: &Times| times.add_cpu;
    for level in levels {
        for (arm, name) in ARMS.iter().enumerate() {
            let mut row = vec![level.at_once.to_string(), (*name).to_owned()];
            for times in [level.adds(arm), level.times(arm, |times| &times.del)] {
                row.extend([50, 95, 99].map(|percent| format!("{:.1}", p(percent, &times))));
            }
            row.extend([level.cpu(arm, all), level.cpu(arm, |times| times.daemons_cpu)].map(|cpu| format!("{cpu:.1}")));
            rows.push(row);
        }
        notes.push(format!(
            "{} at once: p99 of ADD is {:.2} of the peer's; A/A {:.2}; beside {STANDING} pods {:.2} (medians of {ROUNDS} rounds)",
            level.at_once,
            level.ratio(0, 1),
            level.ratio(0, 2),
            level.ratio(4, 0)
        ));
    }
    let figure = p(99, &crowded.adds(0));
    let ratio = crowded.ratio(0, 1);
    let cpu = levels.iter().map(|level| level.cpu(0, all) / level.cpu(1, all)).fold(0.0, f64::max);
    let part = |what: &str, figure, limit, unit| Part { what: what.into(), figure, limit, unit };
    Report {
        id: ID,
        figure,
        unit: "ms",
        peer: Some(p(99, &crowded.adds(1))),
        ratio: Some(ratio),
        parts: vec![
            part("p50 of an ADD alone", p(50, &alone.adds(0)), ALONE, "ms"),
            part("p99 of 50 ADDs at once", figure, CROWDED, "ms"),
            part("the same by the peer's", ratio, PART, ""),
            part("CPU an ADD, daemons included, by the peer's", cpu, CPU_PART, ""),
            part("p50 of an ADD alone, beside 200 pods", p(50, &alone.adds(4)), ALONE, "ms"),
            part("p99 of 50 ADDs at once, beside 200 pods", p(99, &crowded.adds(4)), CROWDED, "ms"),
        ],
        rows,
        notes,
    }
}
