//! How long compiling takes, and how much memory it needs, at the sizes of SPECIFICATION. Not run by default: build with
//! optimisations and ask for it.
//!
//! ```text
//! cargo test --profile fast -p sluice-policy-core --test scale -- --ignored --nocapture
//! ```

#![cfg(test)]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde_json::json;
use sluice_policy_core::cluster::{Event, Object, ObjectId};
use sluice_policy_core::compile::engine::Engine;
use sluice_policy_core::parse;
use sluice_policy_core::settings::Settings;

const NODE: &str = "node-0";
/// Pods of a Deployment.
const REPLICAS: usize = 10;
/// Deployments of a namespace.
const DEPLOYMENTS: usize = 10;

fn object(value: &serde_json::Value) -> Object {
    let parsed = parse::object(value);
    parsed.object.unwrap_or_else(|| panic!("{value}: {:?}", parsed.issues))
}

fn address(index: usize) -> IpAddr {
    let index = u32::try_from(index).unwrap();
    IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + 256 + index))
}

fn namespace_of(deployment: usize) -> usize {
    deployment / DEPLOYMENTS
}

fn pod(index: usize, pods: usize, tier: Option<&str>) -> Object {
    let (deployment, nodes) = (index / REPLICAS, (pods / 200).max(2));
    let tier = tier.unwrap_or(["front", "back", "data"][deployment % 3]);
    object(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": format!("ns-{}", namespace_of(deployment)), "name": format!("app-{deployment}-{index}"),
            "uid": format!("00000000-0000-0000-0000-{index:012}"), "creationTimestamp": "2026-11-25T10:00:00Z",
            "labels": { "app": format!("app-{deployment}"), "tier": tier, "pod-template-hash": format!("{deployment:x}") },
        },
        "spec": {
            "nodeName": format!("node-{}", index % nodes),
            "containers": [{ "name": "main", "ports": [{ "name": "web", "containerPort": 8080 }] }],
        },
        "status": { "phase": "Running", "podIPs": [{ "ip": address(index).to_string() }] },
    }))
}

fn policy(index: usize, namespaces: usize, port: u16) -> Object {
    let (namespace, deployment) = (index % namespaces, index / namespaces);
    let metadata = json!({ "namespace": format!("ns-{namespace}"), "name": format!("policy-{index}") });
    let app = format!("app-{}", namespace * DEPLOYMENTS + deployment % DEPLOYMENTS);
    let other = format!("ns-{}", (namespace + 1) % namespaces);
    let cidr = format!("192.{}.{}.0/24", 100 + index / 250 % 100, index % 250);
    let value = match index % 5 {
        0 => json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata,
            "spec": { "podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{ "from": [{ "podSelector": {} }] }] },
        }),
        1 => json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata,
            "spec": {
                "podSelector": { "matchLabels": { "app": app } },
                "ingress": [{
                    "from": [{
                        "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": other } },
                        "podSelector": { "matchLabels": { "tier": "front" } },
                    }],
                    "ports": [{ "port": port }],
                }],
            },
        }),
        2 => json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata,
            "spec": {
                "podSelector": { "matchLabels": { "app": app } }, "policyTypes": ["Egress"],
                "egress": [
                    { "to": [{ "namespaceSelector": { "matchLabels": { "team": format!("team-{}", index % 20) } } }] },
                    { "to": [{ "ipBlock": { "cidr": cidr } }], "ports": [{ "port": port }] },
                    { "to": [{ "podSelector": { "matchLabels": { "tier": "data" } } }], "ports": [{ "port": "web" }] },
                ],
            },
        }),
        3 => json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata,
            "spec": {
                "endpointSelector": { "matchLabels": { "app": app } },
                "ingress": [{
                    "fromEndpoints": [{ "matchLabels": { "tier": "front" } }],
                    "toPorts": [{
                        "ports": [{ "port": port.to_string(), "protocol": "TCP" }],
                        "rules": { "http": [{ "method": "GET" }] },
                    }],
                }],
                "egress": [{ "toEntities": ["kube-apiserver"] }, { "toCIDR": [cidr] }],
            },
        }),
        _ => json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata,
            "spec": {
                "podSelector": { "matchLabels": { "tier": "data" } },
                "ingress": [{
                    "from": [{ "podSelector": { "matchLabels": { "tier": "back" } } }], "ports": [{ "port": port }],
                }],
            },
        }),
    };
    object(&value)
}

fn tell(pods: usize, policies: usize, tell: &mut dyn FnMut(Object)) {
    let (deployments, namespaces) = (pods / REPLICAS, pods / REPLICAS / DEPLOYMENTS);
    for index in 0..namespaces {
        tell(object(&json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": format!("ns-{index}"), "labels": { "team": format!("team-{}", index % 20) } },
        })));
    }
    for index in 0..(pods / 200).max(2) {
        let last = u32::try_from(index).unwrap();
        let ip = Ipv4Addr::from(0xac10_0000 + last).to_string();
        tell(object(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": format!("node-{index}") },
            "status": { "addresses": [{ "type": "InternalIP", "address": ip }] },
        })));
    }
    (0..pods).for_each(|index| tell(pod(index, pods, None)));
    for deployment in 0..deployments {
        let (namespace, name) = (format!("ns-{}", namespace_of(deployment)), format!("app-{deployment}"));
        let ip = Ipv4Addr::from(0xac20_0000 + u32::try_from(deployment).unwrap()).to_string();
        tell(object(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": namespace, "name": name },
            "spec": { "clusterIP": ip, "clusterIPs": [ip], "selector": { "app": name },
                "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP" }] },
        })));
        let addresses = (deployment * REPLICAS..(deployment + 1) * REPLICAS).map(|index| address(index).to_string());
        let endpoints: Vec<_> =
            addresses.map(|address| json!({ "addresses": [address], "conditions": { "ready": true } })).collect();
        tell(object(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "namespace": namespace, "name": format!("{name}-1"),
                "labels": { "kubernetes.io/service-name": name } },
            "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }], "endpoints": endpoints,
        })));
    }
    (0..policies).for_each(|index| tell(policy(index, namespaces, 8080)));
}

/// Resident anonymous memory, in MiB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}

/// Time on the processor: others who use the machine do not count.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|spent| spent.parse().ok()).unwrap_or_default())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn measure(pods: usize, policies: usize) {
    let before = resident();
    let mut engine = Engine::new(Settings { node: Some(NODE.into()), cilium_cidrs_match_managed: false });
    let told = cpu();
    tell(pods, policies, &mut |object| engine.apply(Event::Upsert(object)));
    let told = cpu().saturating_sub(told);
    let objects = resident() - before;
    let full = cpu();
    let update = engine.commit();
    let full = cpu().saturating_sub(full);
    let operations = update.operations.len();
    drop(update);
    let all = resident() - before;
    let mut time = |event: Event| {
        let start = cpu();
        engine.apply(event);
        let update = engine.commit();
        (cpu().saturating_sub(start), update.operations.len())
    };
    let mut rows: Vec<(&str, Vec<Duration>, usize)> = Vec::new();
    let mut note =
        |what, (spent, operations): (Duration, usize)| match rows.iter_mut().find(|(known, ..)| *known == what) {
            Some((_, times, most)) => {
                times.push(spent);
                *most = operations.max(*most);
            }
            None => rows.push((what, vec![spent], operations)),
        };
    let nodes = (pods / 200).max(2);
    let namespaces = pods / REPLICAS / DEPLOYMENTS;
    for index in 0..15 {
        let (remote, local) = (index * 97 * nodes % pods + 1, index * 7 * nodes % pods);
        note("a pod elsewhere changes its labels", time(Event::Upsert(pod(remote, pods, Some("other")))));
        note("and back", time(Event::Upsert(pod(remote, pods, None))));
        let Object::Pod(gone) = pod(remote, pods, None) else { unreachable!() };
        note("a pod elsewhere goes", time(Event::Delete(ObjectId::Pod(gone.key))));
        note("a pod elsewhere comes", time(Event::Upsert(pod(remote, pods, None))));
        note("a pod of the node changes its labels", time(Event::Upsert(pod(local, pods, Some("other")))));
        note("and back again", time(Event::Upsert(pod(local, pods, None))));
        let chosen = index * namespaces * 5 / 3 % policies;
        note("a policy changes", time(Event::Upsert(policy(chosen, namespaces, 9090))));
        let Object::Policy(known) = policy(chosen, namespaces, 8080) else { unreachable!() };
        note("a policy goes", time(Event::Delete(ObjectId::Policy(known.id().clone()))));
        note("a policy comes", time(Event::Upsert(policy(chosen, namespaces, 8080))));
    }
    println!("{policies} policies, {pods} pods, of the node {}:", engine.image().endpoints.len());
    println!("  objects read and told in {told:.1?}, full compile {full:.1?}, {operations} operations");
    println!("  memory: objects {objects:.1} MiB, with all that is compiled {all:.1} MiB");
    for size in engine.image().sizes() {
        println!("  map {:10} {:8} entries {:10} bytes", size.map, size.entries, size.bytes());
    }
    for (what, times, most) in rows {
        let worst = times.iter().max().copied().unwrap_or_default();
        println!("  {what}: median {:.2?}, worst {worst:.2?}, up to {most} operations", median(times));
    }
}

#[test]
#[ignore = "a measurement"]
fn small() {
    measure(5_000, 1_000);
}

#[test]
#[ignore = "a measurement"]
fn large() {
    measure(100_000, 10_000);
}
