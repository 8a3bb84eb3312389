//! S-08: from an event to the first packet that is judged anew, with the whole agent: the API server's watch, parsing, journal,
//! compiler and maps. Packets are put through the gates' own programs, each at the interface of its pod.
//!
//! The clock starts when the API server is given the object, so that its part and the network's count too.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::policy::Size;
use super::report::{Part, Report};
use super::stats::{millis, percentile};
use super::test_run::{Content, Judge, frame};
use super::town_node::{Gated, TownNode};
use super::{BenchError, Say};

/// The number of the promise.
pub const ID: &str = "S-08";
/// What is measured, in one line.
pub const ABOUT: &str = "event to the first packet judged anew: 250 local pods, 1,000 policies, 5,000 pods";

/// Events of each kind.
const ROUNDS: usize = 100;
/// Pods that a small change affects at most.
const FEW: usize = 10;
/// The promises, in milliseconds.
const LIMIT_FEW: f64 = 100.0;
const LIMIT_ALL: f64 = 250.0;
const LIMIT_IDENTITY: f64 = 50.0;
/// How long an event may take until the benchmark has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pods that an error names.
const NAMED: usize = 5;
/// Between two looks at the packets.
const LOOK: Duration = Duration::from_micros(200);
/// A host of the Internet, and a port of it.
const FAR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)), 4000);
const PORT: u16 = 4000;

/// One packet at the gate of a pod.
#[derive(Debug, Clone)]
struct Probe {
    /// The pod.
    pod: String,
    index: u32,
    program: &'static str,
    frame: Vec<u8>,
}

/// Events that turn a verdict there and back.
#[derive(Debug, Clone)]
struct Turns {
    /// With the first of them the packets pass, with the second they do not.
    objects: [Value; 2],
    probes: Vec<Probe>,
}

/// Measures and reports.
///
/// # Errors
/// [`BenchError`]: what could not be set up, or a verdict that did not change.
pub async fn run(say: Say) -> Result<Report, BenchError> {
    let town = TownNode::up(Size::SMALL, say).await?;
    // The node's pods of as many namespaces as are not too many.
    let mut namespaces: Vec<&str> = Vec::new();
    let of = |list: &[&str]| town.pods.iter().filter(|pod| list.contains(&&*pod.namespace)).count();
    for pod in &town.pods {
        let more: Vec<&str> = namespaces.iter().copied().chain([pod.namespace.as_str()]).collect();
        if !namespaces.contains(&pod.namespace.as_str()) && of(&more) <= FEW {
            namespaces = more;
        }
    }
    let few: Vec<&Gated> = town.pods.iter().filter(|pod| namespaces.contains(&pod.namespace.as_str())).collect();
    let all: Vec<&Gated> = town.pods.iter().collect();
    let selected = json!({"matchExpressions": [{
        "key": "kubernetes.io/metadata.name", "operator": "In", "values": namespaces,
    }]});
    let kinds = [
        ("a policy of few pods", few.len(), LIMIT_FEW, outwards("few", &selected, &few)),
        ("a policy of all pods", all.len(), LIMIT_ALL, outwards("all", &json!({}), &all)),
    ];
    let mut results = Vec::new();
    for (what, pods, limit, turns) in kinds {
        say(&format!("{what}: {ROUNDS} changes, {pods} pods"));
        results.push((what, pods, limit, measure(&town, turns).await?));
    }
    let peer = peer(&town)?;
    say(&format!("the identity of a peer: {ROUNDS} changes, {} pods", all.len()));
    results.push((
        "the identity of a peer of all pods",
        all.len(),
        LIMIT_IDENTITY,
        identity(&town, &peer, &all).await?,
    ));

    let at = |times: &[Duration], percent| millis(percentile(times, percent));
    let mut rows = vec![["", "pods", "p50", "p95", "p99", "longest"].map(str::to_owned).to_vec()];
    let mut parts = Vec::new();
    for (what, pods, limit, times) in &results {
        let mut row = vec![(*what).to_owned(), pods.to_string()];
        row.extend([50, 95, 99, 100].map(|percent| format!("{:.1} ms", at(times, percent))));
        rows.push(row);
        parts.push(Part { what: format!("p99, {what}"), figure: at(times, 99), limit: *limit, unit: "ms" });
    }
    let figure = parts.first().map_or(f64::NAN, |part| part.figure);
    let notes =
        vec!["an event counts until the last of its pods judges anew; the API server shares this machine".into()];
    Ok(Report { id: ID, figure, unit: "ms", peer: None, ratio: None, parts, rows, notes })
}

/// A policy of tier Admin, before which no other is asked.
fn admin(name: &str, namespaces: &Value, direction: &str, rules: &Value) -> Value {
    let mut spec = json!({
        "tier": "Admin", "priority": 0,
        "subject": { "pods": { "namespaceSelector": namespaces, "podSelector": {} } },
    });
    if let Some(fields) = spec.as_object_mut() {
        fields.insert(direction.to_owned(), rules.clone());
    }
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": { "name": format!("bench-{name}") }, "spec": spec,
    })
}

/// A policy for what pods send to the Internet.
fn outwards(name: &str, namespaces: &Value, pods: &[&Gated]) -> Turns {
    let policy = |action: &str| {
        let rules = json!([{ "name": "far", "action": action, "to": [{ "networks": [format!("{}/32", FAR.ip())] }] }]);
        admin(name, namespaces, "egress", &rules)
    };
    let probe = |pod: &&Gated| Probe {
        pod: format!("{}/{}", pod.namespace, pod.name),
        index: pod.index,
        program: "from_pod",
        frame: frame(SocketAddr::new(pod.address, PORT), FAR, Content::Datagram),
    };
    Turns { objects: [policy("Accept"), policy("Deny")], probes: pods.iter().map(probe).collect() }
}

/// A pod of another node, as the API server has it, and its address.
fn peer(town: &TownNode) -> Result<(Value, IpAddr), BenchError> {
    let local: Vec<usize> = town.town.local().collect();
    let far = (0..town.town.size.pods).find(|pod| !local.contains(pod)).ok_or(BenchError::Incomplete)?;
    let value = town.town.pod_value(far, None);
    let address = value.pointer("/status/podIPs/0/ip").and_then(Value::as_str).and_then(|ip| ip.parse().ok());
    Ok((value, address.ok_or(BenchError::Incomplete)?))
}

/// A pod of another node gets other labels, by which it is let in or not.
async fn identity(
    town: &TownNode,
    (pod, address): &(Value, IpAddr),
    all: &[&Gated],
) -> Result<Vec<Duration>, BenchError> {
    let from = |role: &str| json!([{ "pods": { "namespaceSelector": {}, "podSelector": { "matchLabels": { "bench": role } } } }]);
    let rules = json!([
        { "name": "in", "action": "Accept", "from": from("in") }, { "name": "out", "action": "Deny", "from": from("out") },
    ]);
    let put = town.api.put(admin("peer", &json!({}), "ingress", &rules));
    put.map_err(BenchError::setup("the API server does not take a policy"))?;
    let labelled = |role: &str| {
        let mut pod = pod.clone();
        if let Some(labels) = pod.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
            labels.insert("bench".to_owned(), role.into());
        }
        pod
    };
    let probe = |pod: &&Gated| Probe {
        pod: format!("{}/{}", pod.namespace, pod.name),
        index: pod.index,
        program: "to_pod",
        frame: frame(SocketAddr::new(*address, PORT), SocketAddr::new(pod.address, PORT), Content::Datagram),
    };
    let probes = all.iter().map(probe).collect();
    measure(town, Turns { objects: [labelled("in"), labelled("out")], probes }).await
}

/// How long each change takes until all packets are judged by it.
async fn measure(town: &TownNode, turns: Turns) -> Result<Vec<Duration>, BenchError> {
    let api = Arc::clone(&town.api);
    let work = move || {
        let judges = [("from_pod", Judge::open("from_pod")?), ("to_pod", Judge::open("to_pod")?)];
        let passes = |probe: &Probe| {
            let judge = judges.iter().find(|(name, _)| *name == probe.program).ok_or(BenchError::Incomplete)?;
            // By another interface than its own: the node's packets are let through.
            Ok::<bool, BenchError>(judge.1.run(&probe.frame, probe.index, probe.index + 1_000_000, 1)?.passes)
        };
        let mut times = Vec::with_capacity(ROUNDS);
        // The first turns bring what is measured into its place.
        for round in 0..ROUNDS + 2 {
            let pass = round % 2 == 0;
            let [first, second] = &turns.objects;
            let begun = Instant::now();
            let put = api.put(if pass { first.clone() } else { second.clone() });
            put.map_err(BenchError::setup("the API server does not take an object"))?;
            let mut waiting: Vec<&Probe> = turns.probes.iter().collect();
            loop {
                // The last one first: what has turned is not looked at again.
                while let Some(probe) = waiting.last() {
                    if passes(probe)? != pass {
                        break;
                    }
                    waiting.pop();
                }
                if waiting.is_empty() {
                    break;
                }
                if begun.elapsed() > PATIENCE {
                    let stuck: Vec<&str> = waiting.iter().rev().take(NAMED).map(|probe| &*probe.pod).collect();
                    let text = format!(
                        "{} of {} gates judge as before change {round}, of the pods {}{}",
                        waiting.len(),
                        turns.probes.len(),
                        stuck.join(", "),
                        if waiting.len() > NAMED { ", ..." } else { "" }
                    );
                    return Err(BenchError::setup("a change did not come into force")(text));
                }
                // Waking early only means looking early.
                std::thread::park_timeout(LOOK);
            }
            if round >= 2 {
                times.push(begun.elapsed());
            }
        }
        // What is measured next is not to meet a denial of this.
        let [first, _] = &turns.objects;
        api.put(first.clone()).map_err(BenchError::setup("the API server does not take an object"))?;
        Ok(times)
    };
    town.node.run(work).await?
}
