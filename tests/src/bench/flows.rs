//! P-62: what flows cost: bulk, requests and connections between two gated pods with flows and without, and a storm of drops.
//!
//! Each arm is a node of its own with the whole product. One thread has both ends of a connection, and it shares one processor
//! with the arm's policyd, so that whatever policyd does with flows is taken from the traffic. In each round each arm has
//! its turn; figures are medians over the rounds of what is compared within one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use sluice_vpcsim::deployment::{Deployment, Pod};
use sluice_vpcsim::world::World;

use super::packet::traffic;
use super::report::{Part, Report};
use super::rss::anonymous;
use super::stats::median;
use super::{BenchError, POOL_LIMIT, Say, gated_with, scene};
use crate::storm::{Storm, Told};

/// The number of the promise.
pub const ID: &str = "P-62";
/// What is measured, in one line.
pub const ABOUT: &str = "bulk, requests and connections with flows and without, and a storm of drops";

/// Rounds; in each, each arm has a turn.
const ROUNDS: usize = 21;
/// How long a turn asks on one connection, and how long with a connection each: several times policyd reads meanwhile.
const REQUESTS: Duration = Duration::from_millis(600);
const CONNECTIONS: Duration = Duration::from_millis(1_000);
/// Transfers of a turn.
const BULKS: usize = 4;
/// The arms: flows that policyd keeps.
const ARMS: [(&str, &str, &str); 3] =
    [("with flows", "flows", "16384"), ("without", "none", "0"), ("without, again", "again", "0")];
const WITH: usize = 0;
const WITHOUT: usize = 1;
const AGAIN: usize = 2;
/// The processor on which traffic and policyd are.
const PROCESSOR: usize = 0;
/// The promise: what flows may cost.
const COST: f64 = 1.02;

/// How long the storm lasts, and how many threads send.
const STORM: Duration = Duration::from_secs(10);
const SENDERS: usize = 2;
/// How long policyd may take until it has counted the last of it.
const COUNTED: Duration = Duration::from_secs(10);
/// The promise: processors that policyd takes in a storm, MiB that it grows by, packets of which nothing is said.
const STORM_CPU: f64 = 0.10;
const STORM_MEMORY: f64 = 16.0;

/// client and server may speak with each other; storm may not speak at all.
const CLUSTER: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: bench}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: bench, uid: client, labels: {app: web}}
spec: {nodeName: NODE, containers: [{name: main, image: main}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: bench, uid: server, labels: {app: web}}
spec: {nodeName: NODE, containers: [{name: main, image: main}]}
---
apiVersion: v1
kind: Pod
metadata: {name: storm, namespace: bench, uid: storm, labels: {app: storm}}
spec: {nodeName: NODE, containers: [{name: main, image: main}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: bench}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/16}}]}]
  egress: [{to: [{ipBlock: {cidr: 10.0.0.0/16}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: storm, namespace: bench}
spec: {podSelector: {matchLabels: {app: storm}}, policyTypes: [Egress]}
"#;

/// A node with its pods.
struct Arm {
    product: Deployment,
    pods: BTreeMap<&'static str, Pod>,
}

/// What a turn has shown: microseconds of a request, of a connection with a request, milliseconds of a transfer; and of
/// policyd's processor time, what each connection took, in microseconds.
#[derive(Debug, Clone, Copy)]
struct Turn {
    request: f64,
    connection: f64,
    bulk: f64,
    policyd: f64,
}

impl Arm {
    async fn up(world: &World, name: &str, kept: &str) -> Result<Self, BenchError> {
        let node = world.node(name)?;
        let environment = BTreeMap::from([("SLUICE_FLOWS".to_owned(), kept.to_owned())]);
        let product = gated_with(node, &[("WARM_IP_TARGET", "3")], &CLUSTER.replace("NODE", name), environment).await?;
        product.ready(POOL_LIMIT).await?;
        let mut pods = BTreeMap::new();
        for name in ["client", "server", "storm"] {
            pods.insert(name, product.add("bench", name).await?);
        }
        let arm = Self { product, pods };
        arm.at("client", reuse_ports).await?;
        Ok(arm)
    }

    fn pod(&self, name: &str) -> Result<&Pod, BenchError> {
        self.pods.get(name).ok_or(BenchError::Incomplete)
    }

    /// Runs `work` in a pod, on a thread of its own.
    async fn at<T: Send + 'static>(
        &self,
        pod: &str,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, BenchError> {
        let thread = self.product.node().pod(&self.pod(pod)?.sandbox.netns).await?;
        let done = thread.run(move || async move { work() }).await;
        let done = done.map_err(BenchError::setup("a pod cannot be entered"))?;
        done.map_err(BenchError::setup(format!("the pod {pod} does not do its part")))
    }

    async fn policyd(&self) -> u32 {
        match self.product.policyd() {
            Some(policyd) => policyd.pid().await.unwrap_or_default(),
            None => 0,
        }
    }

    async fn told(&self) -> Result<Told, BenchError> {
        let policyd = self.product.policyd().ok_or(BenchError::Incomplete)?;
        Ok(Told::of(&policyd.page("/v1/policy").await?))
    }

    /// Has policyd on the processor of the traffic, or lets it go everywhere.
    async fn pin(&self, here: bool) -> Result<(), BenchError> {
        let path = format!("/proc/{}/task", self.policyd().await);
        let tasks = std::fs::read_dir(path).map_err(BenchError::setup("policyd's threads cannot be listed"))?;
        for task in tasks.flatten() {
            if let Some(task) = task.file_name().to_str().and_then(|name| name.parse().ok()) {
                // A thread that has ended meanwhile needs no processor.
                let _ended = sched_setaffinity(Pid::from_raw(task), &processors(here));
            }
        }
        Ok(())
    }

    async fn turn(&self) -> Result<Turn, BenchError> {
        let address = self.pod("server")?.address;
        let listener = self.at("server", move || traffic::listen(address.into())).await?;
        let policyd = self.policyd().await;
        self.at("client", move || {
            sched_setaffinity(Pid::from_raw(0), &processors(true)).map_err(std::io::Error::from)?;
            let request = 1e6 / traffic::requests(&listener, REQUESTS)?;
            let before = processor_time(policyd)?;
            let begun = Instant::now();
            let rate = traffic::connections(&listener, CONNECTIONS)?;
            let connections = rate * begun.elapsed().as_secs_f64();
            let policyd = (processor_time(policyd)? - before) * 1e6 / connections;
            let mut bulk = 0.0;
            for _ in 0..BULKS {
                bulk += traffic::bulk(&mut traffic::connect(&listener)?)? * 1e3;
            }
            #[expect(clippy::cast_precision_loss, reason = "a handful")]
            let bulk = bulk / BULKS as f64;
            Ok(Turn { request, connection: 1e6 / rate, bulk, policyd })
        })
        .await
    }
}

/// A port is used again soon after its connection has ended: there are many, one after the other.
fn reuse_ports() -> std::io::Result<()> {
    for (name, value) in [("tcp_tw_reuse", "1"), ("ip_local_port_range", "1024 65535")] {
        std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value)?;
    }
    Ok(())
}

fn processors(here: bool) -> CpuSet {
    let mut set = CpuSet::new();
    let all = if here { PROCESSOR..PROCESSOR + 1 } else { 0..CpuSet::count() };
    for processor in all {
        // What the machine does not have is not in the set.
        let _absent = set.set(processor);
    }
    set
}

/// Seconds of processor time of a process: `utime` and `stime` of `/proc/PID/stat` (proc(5)), in hundredths.
fn processor_time(process: u32) -> std::io::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    Ok(fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0)
}

/// What a storm has shown.
#[derive(Debug, Clone, Copy)]
struct Weather {
    told: Told,
    /// Processors that policyd took.
    processors: f64,
    /// MiB that it grew by.
    grown: f64,
    took: f64,
}

/// Measures and reports.
///
/// # Errors
/// [`BenchError`]: what could not be set up, or packets that do not arrive.
pub async fn run(say: Say) -> Result<Report, BenchError> {
    let world = World::up(&scene(&ARMS.map(|(_, name, _)| (name, "m5.large")))?).await?;
    let mut arms = Vec::new();
    for (what, name, kept) in ARMS {
        say(&format!("setting up: {what}"));
        let arm = Arm::up(&world, name, kept).await?;
        arm.pin(true).await?;
        arms.push(arm);
    }
    let mut turns: Vec<Vec<Turn>> = ARMS.iter().map(|_| Vec::new()).collect();
    say(&format!("{ROUNDS} rounds"));
    for round in 0..ROUNDS {
        for turn in 0..arms.len() {
            let at = (round + turn) % arms.len();
            if let (Some(arm), Some(turns)) = (arms.get(at), turns.get_mut(at)) {
                turns.push(arm.turn().await?);
            }
        }
    }
    say(&format!("a storm of {} s", STORM.as_secs()));
    let weather = storm(arms.get(WITH).ok_or(BenchError::Incomplete)?).await?;
    Ok(report(&turns, weather))
}

async fn storm(arm: &Arm) -> Result<Weather, BenchError> {
    arm.pin(false).await?;
    let policyd = arm.policyd().await;
    let time = || processor_time(policyd).map_err(BenchError::setup("policyd's time cannot be read"));
    let to = SocketAddr::from((arm.pod("server")?.address, 9));
    let before = (arm.told().await?, time()?, anonymous(policyd)?, Instant::now());
    let storm = arm.at("storm", move || Storm::begin(SENDERS, to)).await?;
    tokio::time::sleep(STORM).await;
    let sent = tokio::task::spawn_blocking(move || storm.end()).await;
    let sent = sent.map_err(BenchError::setup("the storm does not end"))?;
    let took = before.3.elapsed().as_secs_f64();
    let processors = (time()? - before.1) / took;
    let grown = anonymous(policyd)? - before.2;
    let end = Instant::now() + COUNTED;
    loop {
        let told = arm.told().await?.since(before.0);
        if (told.dropped >= sent && told.is_all()) || Instant::now() > end {
            return Ok(Weather { told, processors, grown, took });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The median over the rounds of one arm's turns by another's of the same round.
fn paired(turns: &[Vec<Turn>], one: usize, other: usize, of: impl Fn(&Turn) -> f64) -> f64 {
    let arm = |arm: usize| turns.get(arm).into_iter().flatten();
    median(&arm(one).zip(arm(other)).map(|(one, other)| of(one) / of(other)).collect::<Vec<f64>>())
}

fn report(turns: &[Vec<Turn>], weather: Weather) -> Report {
    type Of = fn(&Turn) -> f64;
    let kinds: [(&str, Of); 3] = [
        ("a request", |turn| turn.request),
        ("connect, request, close", |turn| turn.connection),
        ("bulk", |turn| turn.bulk),
    ];
    let of = |arm: usize, of: Of| median(&turns.get(arm).into_iter().flatten().map(of).collect::<Vec<f64>>());
    let mut parts: Vec<Part> = kinds
        .iter()
        .map(|(what, of)| Part {
            what: format!("{what}, with flows by without"),
            figure: paired(turns, WITH, WITHOUT, of),
            limit: COST,
            unit: "",
        })
        .collect();
    let Weather { told, processors, grown, took } = weather;
    let untold = told.dropped.saturating_sub(told.flows + told.lost);
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let float = |count: u64| count as f64;
    parts.push(Part { what: "policyd in the storm".into(), figure: processors, limit: STORM_CPU, unit: "processors" });
    parts.push(Part { what: "policyd's growth by the storm".into(), figure: grown, limit: STORM_MEMORY, unit: "MiB" });
    parts.push(Part {
        what: "drops that are neither told nor counted as lost".into(),
        figure: float(untold),
        limit: 0.0,
        unit: "",
    });
    let mut rows = vec![["", "a request", "connect, request, close", "bulk"].map(str::to_owned).to_vec()];
    for (at, (name, _, _)) in ARMS.iter().enumerate() {
        rows.push(vec![
            (*name).to_owned(),
            format!("{:.2} us", of(at, |turn| turn.request)),
            format!("{:.1} us", of(at, |turn| turn.connection)),
            format!("{:.2} Gbit/s", traffic::BULK_BITS / (of(at, |turn| turn.bulk) / 1e3)),
        ]);
    }
    let again = kinds.map(|(what, of)| format!("{what} {:.3}", paired(turns, AGAIN, WITHOUT, of))).join(", ");
    let cost = |arm| of(arm, |turn| turn.policyd);
    let notes = vec![
        format!("A/A, without again by without: {again}"),
        format!(
            "traffic and policyd share a processor; policyd takes {:.1} us of it a connection with flows, {:.1} without",
            cost(WITH),
            cost(WITHOUT)
        ),
        format!(
            "storm: {:.0} drops a second; of {} dropped packets {} were told as flows and {} counted as lost",
            float(told.dropped) / took,
            told.dropped,
            told.flows,
            told.lost
        ),
    ];
    let figure = parts.iter().take(kinds.len()).map(|part| part.figure).fold(0.0, f64::max);
    Report { id: ID, figure, unit: "", peer: None, ratio: None, parts, rows, notes }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn what_nobody_tells_breaks_the_promise() {
        let turn = Turn { request: 10.0, connection: 50.0, bulk: 20.0, policyd: 1.0 };
        let turns = vec![vec![turn], vec![turn], vec![turn]];
        let told = Told { dropped: 1_000, flows: 10, lost: 990 };
        let weather = Weather { told, processors: 0.05, grown: 1.0, took: 1.0 };
        assert!(report(&turns, weather).holds());
        let silent = Weather { told: Told { lost: 989, ..told }, ..weather };
        assert!(!report(&turns, silent).holds());
        let slow = vec![vec![Turn { connection: 52.0, ..turn }], vec![turn], vec![turn]];
        assert!(!report(&slow, weather).holds());
    }

    #[test]
    fn what_policyd_says_is_read() {
        let view =
            serde_json::json!({"drops": {"policy": 5, "spoofed": 2, "event-lost": 4}, "flows": {"seen": 3, "lost": 4}});
        let told = Told::of(&view);
        assert_eq!(told, Told { dropped: 7, flows: 3, lost: 4 });
        assert!(told.is_all() && !Told { lost: 3, ..told }.is_all());
    }
}
