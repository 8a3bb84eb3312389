//! Policies on the running pods: who may reach whom by the compiler, who does by packets, and which rule says so.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_hostnet::netns::NamespaceThread;
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::flow::{Direction, Origin, Protocol, Query, Verdict};
use sluice_policy_core::manifest;
use sluice_policy_core::settings::Settings;
use sluice_policy_core::vector::Judge as _;
use sluice_policy_core::vector::judge::Compiled;
use sluice_vpcsim::probe::{self, ECHO_PORT};
use tokio::process::Command;
use tokio::task::JoinSet;

use super::Progress;
use super::act::{ActError, Actor, Stage};
use super::cluster::{Cluster, MARKER};
use super::report::{PolicyAct, PolicyCell};

/// What the demo does with policies: each set is in force alone. Pods with an odd number are app=db, the others app=web; those
/// of node-a are in namespace shop, those of node-b in namespace guest.
const ACTS: [(&str, &str); 6] = [
    ("everything is denied in namespace shop", include_str!("policies/deny-all.yaml")),
    (
        "shop's databases are reached by the web pods of their own namespace, on the port named http",
        include_str!("policies/label-and-port.yaml"),
    ),
    ("shop is reached from namespace guest only", include_str!("policies/namespace.yaml")),
    ("guest reaches the Internet but not the VPC, by CIDR", include_str!("policies/cidr.yaml")),
    (
        "an administrator denies guest to shop, whatever the namespace allows",
        include_str!("policies/cluster-deny.yaml"),
    ),
    ("a Service is judged by the pod behind it", include_str!("policies/service.yaml")),
];
/// How long agents may take to enforce an act.
const LIMIT: Duration = Duration::from_secs(30);
/// How long an allowed connection may take, and how long silence is listened to.
const ALLOWED: Duration = Duration::from_secs(3);
const DENIED: Duration = Duration::from_millis(500);
/// The host on the Internet.
const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// The Service of the first database, and its port.
const SERVICE: (Ipv4Addr, u16) = (Ipv4Addr::new(172, 20, 0, 10), 80);

/// Where a probe goes.
struct Target {
    name: String,
    /// What is dialled.
    dialled: (Ipv4Addr, u16),
    /// The pod that is reached.
    pod: Option<PodKey>,
    /// What is reached.
    reached: Ipv4Addr,
}

/// Applies one act after the other, and probes every pod pair, the Internet, and a Service.
pub(crate) async fn play(
    stage: &Stage<'_>,
    cluster: &mut Cluster,
    progress: &Progress,
) -> Result<Vec<PolicyAct>, ActError> {
    let wrong = |what: String| ActError::Policies { what };
    let backend = stage.actors.first().ok_or_else(|| wrong("there is no pod for the Service".into()))?;
    let service = service(backend);
    serve(stage, backend).await?;
    let mut shown = Vec::new();
    for (title, text) in std::iter::once(("no policy yet", "")).chain(ACTS) {
        let policies = manifest::documents(text).map_err(|error| wrong(error.to_string()))?;
        cluster.more = service.iter().cloned().chain(policies).collect();
        enforce(stage, cluster).await?;
        let mut judge = Compiled::new(Settings::default());
        judge.apply(&cluster.events());
        shown.push(PolicyAct { title: title.to_owned(), cells: probe(stage, backend, &judge).await? });
    }
    cluster.more.clear();
    enforce(stage, cluster).await?;
    progress.done(&format!("{} sets of policies were applied to the running pods, one after the other", ACTS.len()));
    Ok(shown)
}

/// Writes the cluster and waits until both agents enforce it.
pub(crate) async fn enforce(stage: &Stage<'_>, cluster: &mut Cluster) -> Result<(), ActError> {
    let generation = cluster.write().map_err(ActError::Cluster)?;
    for agent in stage.deployments.values().filter_map(|deployment| deployment.policyd()) {
        agent.enforces(MARKER.0, MARKER.1, generation, LIMIT).await?;
    }
    Ok(())
}

pub(crate) fn key(actor: &Actor) -> PodKey {
    PodKey { namespace: actor.pod.sandbox.namespace.as_str().into(), name: actor.name.as_str().into() }
}

fn service(backend: &Actor) -> [Value; 2] {
    let (address, port) = SERVICE;
    let metadata = |labels: Value| json!({"name": "db", "namespace": "shop", "labels": labels});
    [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata(json!({})), "spec": {
            "clusterIP": address.to_string(), "selector": {"app": "db"}, "ports": [{"port": port, "targetPort": "http"}]}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": metadata(json!({"kubernetes.io/service-name": "db"})), "ports": [{"port": ECHO_PORT}],
            "endpoints": [{"addresses": [backend.pod.address.to_string()], "conditions": {"ready": true}}]}),
    ]
}

/// What kube-proxy does for the Service, on both nodes.
async fn serve(stage: &Stage<'_>, backend: &Actor) -> Result<(), ActError> {
    let (address, port) = SERVICE;
    let rule = format!("ip daddr {address} tcp dport {port} dnat to {}:{ECHO_PORT}", backend.pod.address);
    let rules = format!(
        "add table ip demo-services; delete table ip demo-services; table ip demo-services {{ chain prerouting {{ type nat hook \
         prerouting priority dstnat; {rule}; }}; chain output {{ type nat hook output priority -100; {rule}; }}; }}"
    );
    for deployment in stage.deployments.values() {
        let mut command = Command::new("nft");
        command.arg(&rules).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).kill_on_drop(true);
        let child = deployment.node().spawn(command).await?;
        let output = child.wait_with_output().await.map_err(ActError::Cluster)?;
        if !output.status.success() {
            let what = format!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
            return Err(ActError::Policies { what });
        }
    }
    Ok(())
}

async fn probe(stage: &Stage<'_>, backend: &Actor, judge: &Compiled) -> Result<Vec<PolicyCell>, ActError> {
    let mut targets: Vec<Target> = Vec::new();
    for actor in &stage.actors {
        let (address, name) = (actor.pod.address, key(actor).to_string());
        targets.push(Target { name, dialled: (address, ECHO_PORT), pod: Some(key(actor)), reached: address });
    }
    let outside = Target { name: "Internet".into(), dialled: (INTERNET, ECHO_PORT), pod: None, reached: INTERNET };
    let name = "Service shop/db".to_owned();
    let behind = Target { name, dialled: SERVICE, pod: Some(key(backend)), reached: backend.pod.address };
    targets.extend([outside, behind]);
    let mut probes = JoinSet::new();
    let mut index = 0_usize;
    for from in &stage.actors {
        let thread = stage.deployment(&from.node)?.node().pod(&from.pod.sandbox.netns).await?;
        for to in targets.iter().filter(|to| to.pod.as_ref() != Some(&key(from))) {
            let denied_by = denied_by(stage, judge, from, to);
            let cell = PolicyCell {
                from: key(from).to_string(),
                to: to.name.clone(),
                allowed: denied_by.is_none(),
                passed: false,
                denied_by,
            };
            probes.spawn(dial(Arc::clone(&thread), to.dialled, index, cell));
            index += 1;
        }
    }
    let mut cells = Vec::new();
    while let Some(done) = probes.join_next().await {
        cells.push(done?);
    }
    cells.sort_by_key(|(index, _)| *index);
    Ok(cells.into_iter().map(|(_, cell)| cell).collect())
}

async fn dial(
    thread: Arc<NamespaceThread>,
    to: (Ipv4Addr, u16),
    index: usize,
    mut cell: PolicyCell,
) -> (usize, PolicyCell) {
    let limit = if cell.allowed { ALLOWED } else { DENIED };
    let work = move || async move { probe::tcp(None, SocketAddrV4::new(to.0, to.1), limit).await.is_ok() };
    cell.passed = thread.run(work).await.unwrap_or(false);
    (index, cell)
}

/// The rule that denies a connection, if one does, and whose gate it is at.
fn denied_by(stage: &Stage<'_>, judge: &Compiled, from: &Actor, to: &Target) -> Option<String> {
    let gate = |pod: PodKey, node: &str, direction, peer: Ipv4Addr| {
        let query = Query {
            subject: pod.clone(),
            direction,
            peer: peer.into(),
            protocol: Protocol::TCP,
            port: ECHO_PORT,
            origin: Origin::Forwarded,
        };
        let judgement = judge.judge(Some(&node.into()), &query);
        (judgement.verdict == Verdict::Deny).then(|| format!("{direction} of {pod}: {}", judgement.reason))
    };
    let far = to.pod.clone().zip(stage.actors.iter().find(|actor| Some(key(actor)) == to.pod));
    let out = gate(key(from), &from.node, Direction::Egress, to.reached);
    out.or_else(|| far.and_then(|(pod, actor)| gate(pod, &actor.node, Direction::Ingress, from.pod.address)))
}

#[cfg(test)]
mod tests {
    use sluice_policy_core::parse;

    use super::*;

    #[test]
    fn the_policies_of_the_demo_are_faultless() {
        for (title, text) in ACTS {
            let documents = manifest::documents(text).unwrap();
            assert!(!documents.is_empty(), "{title}");
            for document in documents {
                assert!(parse::object(&document).issues.is_empty(), "{title}");
            }
        }
    }
}
