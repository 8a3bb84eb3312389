//! S-12: how long until other nodes know the address of a new pod.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::{Client, Config};
use serde_json::{Value, json};
use sluice_policy_core::cluster::{Event, Object, PodKey, Uid};
use sluice_policyd::cluster::kube::{Kube, Options, Timing};
use sluice_policyd::cluster::{Cluster as _, TOLD_LIMIT, Told};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::report::{Part, Report};
use super::{BenchError, Say};
use crate::apiserver::ApiServer;

/// The number of the promise.
pub const ID: &str = "S-12";
/// What is measured, in one line.
pub const ABOUT: &str =
    "a new pod's address from its ADD to the other nodes' agents, 20 nodes, 400 pods, an API server in memory";

const NODES: usize = 20;
const PODS: usize = 400;
/// ADDs of the whole cluster that end at the same time.
const AT_ONCE: usize = 20;
/// The promise is 1 s to the other nodes' gates; S-08 leaves 50 ms of it to the compiler and the maps.
const LIMIT: f64 = 950.0;
/// How long nothing may come until the benchmark has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an agent was told: the pod, and when.
type Seen = mpsc::Sender<(usize, Arc<str>, Instant)>;

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> BenchError {
    BenchError::Cluster(Box::new(error))
}

/// Measures and reports.
///
/// # Errors
/// [`BenchError`]: the API server or an agent's source does not do its part.
pub async fn run(say: Say) -> Result<Report, BenchError> {
    let server = ApiServer::start().await.map_err(failed)?;
    let mut uids: BTreeMap<String, Uid> = BTreeMap::new();
    for number in 0..PODS {
        let name = format!("pod-{number}");
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {"nodeName": node(number)}, "status": {"phase": "Pending"},
        });
        let pod = server.put(pod).map_err(failed)?;
        let uid = pod.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
        uids.insert(name, Uid::from(uid));
    }
    let (seen, mut told) = mpsc::channel(TOLD_LIMIT);
    let (mut sources, mut tasks) = (Vec::new(), JoinSet::new());
    let mut synced = Vec::new();
    for number in 0..NODES {
        let mut config = Config::new(server.url().parse().map_err(failed)?);
        config.default_retry = false;
        let client = Client::try_from(config).map_err(failed)?;
        let options = Options { node: node(number), seed: number as u64, timing: Timing::default() };
        let source = Arc::new(Kube::new(client, options));
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let (sender, receiver) = mpsc::channel(TOLD_LIMIT);
        tasks.spawn(listen(number, receiver, ready, seen.clone()));
        tasks.spawn({
            let source = Arc::clone(&source);
            async move { source.run(sender).await }
        });
        sources.push(source);
        synced.push(is_ready);
    }
    for ready in synced {
        timeout(PATIENCE, ready).await.map_err(failed)?.map_err(failed)?;
    }
    say(&format!("publishing the addresses of {PODS} pods from {NODES} nodes"));
    let mut times = Vec::new();
    for first in (0..PODS).step_by(AT_ONCE) {
        let mut began: BTreeMap<String, (usize, Instant)> = BTreeMap::new();
        let mut writes = JoinSet::new();
        for number in first..PODS.min(first + AT_ONCE) {
            let (name, own) = (format!("pod-{number}"), number % NODES);
            let (Some(source), Some(uid)) = (sources.get(own).map(Arc::clone), uids.get(&name).cloned()) else {
                return Err(BenchError::Incomplete);
            };
            began.insert(name.clone(), (own, Instant::now()));
            let [.., high, low] = number.to_be_bytes();
            let address = IpAddr::from(Ipv4Addr::new(10, 0, high, low));
            let key = PodKey { namespace: "default".into(), name: name.into() };
            writes.spawn(async move { source.publish_addresses(&key, &uid, &[address]).await });
        }
        let mut left = began.len() * (NODES - 1);
        while left > 0 {
            let next = timeout(PATIENCE, told.recv()).await.map_err(failed)?;
            let (node, pod, at) = next.ok_or(BenchError::Incomplete)?;
            // Its own node needs no watch to know it.
            if let Some((_, since)) = began.get(&*pod).filter(|(own, _)| *own != node) {
                times.push(at.saturating_duration_since(*since).as_secs_f64() * 1e3);
                left -= 1;
            }
        }
        while let Some(written) = writes.join_next().await {
            written.map_err(failed)?.map_err(failed)?;
        }
    }
    times.sort_by(f64::total_cmp);
    let at = |share: usize| times.get((times.len() * share / 1000).min(times.len().saturating_sub(1))).copied();
    let (Some(median), Some(figure), Some(most)) = (at(500), at(990), at(1000)) else {
        return Err(BenchError::Incomplete);
    };
    let row = |what: &str, value: String| vec![what.to_owned(), value];
    Ok(Report {
        id: ID,
        figure,
        unit: "ms",
        peer: None,
        ratio: None,
        parts: vec![Part { what: "p99, to each other node's agent".to_owned(), figure, limit: LIMIT, unit: "ms" }],
        rows: vec![
            row("p50", format!("{median:.1} ms")),
            row("p99", format!("{figure:.1} ms")),
            row("longest", format!("{most:.1} ms")),
            row("measured", times.len().to_string()),
        ],
        notes: vec!["the API server and all agents share this machine".to_owned()],
    })
}

fn node(number: usize) -> String {
    format!("node-{}", number % NODES)
}

/// Says that everything has been told, and then which pods have an address, and when that was told.
async fn listen(number: usize, mut told: mpsc::Receiver<Told>, ready: tokio::sync::oneshot::Sender<()>, seen: Seen) {
    let mut ready = Some(ready);
    while let Some(told) = told.recv().await {
        let pod = match told {
            Told::Synced => {
                // Whoever waits for it may have given up.
                let _told = ready.take().map(|ready| ready.send(()));
                continue;
            }
            Told::Event { event: Event::Upsert(Object::Pod(pod)), .. } if !pod.addresses.is_empty() => pod,
            _ => continue,
        };
        if seen.send((number, pod.key.name, Instant::now())).await.is_err() {
            return;
        }
    }
}
