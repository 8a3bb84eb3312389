//! Filters and qdiscs of pods' interfaces that others take away, or have put there.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::json;
use sluice_contract::node::GATE_DIR;
use sluice_policy_core::cluster::PodKey;
use sluice_tests::live::stage::{APPLIED, Stage};
use sluice_tests::live::town::conflist;
use sluice_tests::privileged::{everything, privileged};

use super::restart::Traffic;
use super::{admits, begun, holds, options, stage, suite};

/// Where Debian has its plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// How long a gate may be away that the kernel tells of; the agent's own rounds come every 10 seconds. A machine that does something
/// else meanwhile may take longer.
fn at_once() -> Duration {
    if everything() { Duration::from_secs(5) } else { APPLIED }
}

/// The agent's own rounds come every 10 seconds: what is back sooner right after one was heard of from the kernel.
const HEARD: Duration = Duration::from_secs(5);
/// On a machine that does something else meanwhile, one of so many is enough.
const TRIES: usize = 5;

fn steps() -> String {
    let allow = admits("client");
    format!(
        "
  - apply: [{allow}]
    expect:
    - {{from: x/client, to: x/server, port: 80, verdict: allow}}
    - {{from: x/other, to: x/server, port: 80, verdict: deny}}
"
    )
}

/// A command on a node, and what it prints.
pub(super) async fn run(stage: &Stage<'_>, node: &str, line: &str) -> String {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let ran = stage.agents[node].node().run(move || Command::new(&words[0]).args(&words[1..]).output());
    let Output { status, stdout, stderr } = ran.await.unwrap().unwrap_or_else(|error| panic!("{line}: {error}"));
    assert!(status.success(), "{line}: {status} {}", String::from_utf8_lossy(&stderr));
    String::from_utf8_lossy(&stdout).into_owned()
}

/// The host's interface of a pod, by its agent.
pub(super) async fn interface(stage: &Stage<'_>, node: &str, pod: &str) -> (String, u64) {
    let view = stage.agents[node].until("no page", APPLIED, |_| true).await.unwrap();
    let gates = view["endpoints"].as_array().unwrap();
    let gate = gates.iter().find(|gate| gate["name"] == pod).unwrap();
    (gate["interface"].as_str().unwrap().to_owned(), gate["index"].as_u64().unwrap())
}

/// Whether both filters of the gate are at an interface.
async fn filters(stage: &Stage<'_>, node: &str, interface: &str) -> bool {
    let from = run(stage, node, &format!("tc filter show dev {interface} ingress")).await.contains("from_pod");
    let to = run(stage, node, &format!("tc filter show dev {interface} egress")).await.contains("to_pod");
    from && to
}

/// Pins of links to an interface.
pub(super) async fn links(stage: &Stage<'_>, node: &str, index: u64) -> usize {
    let directory = std::path::Path::new(GATE_DIR).join("links");
    let count = move || {
        let pins = std::fs::read_dir(directory).into_iter().flatten().flatten();
        pins.filter(|pin| pin.file_name().to_string_lossy().starts_with(&format!("{index}_"))).count()
    };
    stage.agents[node].node().run(count).await.unwrap()
}

/// Waits for something; how long it took.
async fn until(what: &str, limit: Duration, mut wanted: impl AsyncFnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !wanted().await {
        assert!(begun.elapsed() < limit, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    begun.elapsed()
}

/// Takes something away, and waits until it is back; then again, until it is back because the kernel has told of it.
async fn put_back(stage: &Stage<'_>, node: &str, line: &str, what: &str, back: impl AsyncFn() -> bool) {
    let take = async || {
        run(stage, node, line).await;
        until(what, at_once(), async || back().await).await
    };
    // A round may come at that time by chance. The next one is far off then.
    take().await;
    for _ in 0..TRIES {
        if take().await < HEARD {
            return;
        }
    }
    panic!("{what} before the agent's next round");
}

/// DESIGN 7: a filter that is missing is put back at once, and reported.
#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_is_taken_away_is_put_back() {
    if !privileged() {
        return;
    }
    let suite = suite(&steps());
    let options = options();
    let mut stage = stage(suite, &options).await;
    let mut act = begun(&mut stage, suite, &options).await;
    let (server, _) = interface(act.stage, "n2", "server").await;
    assert!(filters(act.stage, "n2", &server).await);
    for taken in ["tc filter del dev SERVER egress", "tc qdisc del dev SERVER clsact"] {
        // Once only: after ten seconds the gate stands by links, and there is nothing to be taken away.
        run(act.stage, "n2", &taken.replace("SERVER", &server)).await;
        until("the gate did not come back", at_once(), async || filters(act.stage, "n2", &server).await).await;
        holds(&mut act, suite, 0).await;
    }
    let said = act.stage.agents["n2"].node().log_tail("policyd", 1000);
    assert!(said.contains("a gate was not whole") && said.contains(&server), "{said}");
    // The way out, too.
    let judged = async || run(act.stage, "n1", "tc filter show dev eth0 egress").await.contains("uplink");
    run(act.stage, "n1", "ip address add 192.0.2.77/24 dev eth0").await;
    until("the uplink was not judged", at_once(), judged).await;
    put_back(act.stage, "n1", "tc qdisc del dev eth0 clsact", "the uplink was not judged any more", judged).await;
}

/// Once a pod has settled its gate stands by links: taking filters and qdiscs away opens nothing, and neither does an agent
/// that is killed and comes back with other programs.
#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_stands_by_links_outlasts_who_takes_qdiscs_away() {
    if !privileged() {
        return;
    }
    let suite = suite(&steps());
    let options = options();
    let mut stage = stage(suite, &options).await;
    let mut act = begun(&mut stage, suite, &options).await;
    let mut interfaces = Vec::new();
    for (node, pod) in [("n1", "client"), ("n1", "other"), ("n2", "server")] {
        let (name, index) = interface(act.stage, node, pod).await;
        let settled = async || {
            links(act.stage, node, index).await == 2
                && !run(act.stage, node, &format!("tc filter show dev {name} ingress")).await.contains("from_pod")
        };
        until("the gate was not linked", Duration::from_secs(60), settled).await;
        interfaces.push((node, name, index));
    }
    let traffic = Traffic::start(act.stage).await;
    traffic.goes_on().await;
    for (node, name, _) in &interfaces {
        run(act.stage, node, &format!("tc qdisc del dev {name} clsact")).await;
    }
    traffic.goes_on().await;
    for node in ["n1", "n2"] {
        let agent = &act.stage.agents[node];
        agent.kill().await;
        traffic.goes_on().await;
        agent.start().await.unwrap();
        agent.ready(APPLIED).await.unwrap();
    }
    traffic.goes_on().await;
    traffic.end().await;
    holds(&mut act, suite, 0).await;
    let (node, name, index) = &interfaces[1];
    assert!(!filters(act.stage, node, name).await, "links need no filters");
    act.stage.town.delete(&PodKey { namespace: "x".into(), name: "other".into() }).await.unwrap();
    until("a link's pin was left", at_once(), async || links(act.stage, node, *index).await == 0).await;
}

/// The bandwidth plugin's `ingress` qdisc has the place of the hooks: the gate stands by links beside it.
#[tokio::test(flavor = "multi_thread")]
async fn the_gate_stands_beside_the_bandwidth_plugin() {
    if !privileged() {
        return;
    }
    let suite = suite(&steps());
    let mut options = options();
    options.plan.plugins.push(("bandwidth".into(), std::path::Path::new(PLUGINS).join("bandwidth")));
    let rate = 1_000_000_000_u64;
    options.plan.conflist = conflist(&json!([
        {"type": "sluice-eni"},
        {"type": "bandwidth", "ingressRate": rate, "ingressBurst": rate, "egressRate": rate, "egressBurst": rate},
        {"type": "sluice-policy"},
    ]));
    let mut stage = stage(suite, &options).await;
    let mut act = begun(&mut stage, suite, &options).await;
    let (server, index) = interface(act.stage, "n2", "server").await;
    let qdiscs = run(act.stage, "n2", &format!("tc qdisc show dev {server}")).await;
    assert!(qdiscs.contains("ingress") && qdiscs.contains("tbf") && !qdiscs.contains("clsact"), "{qdiscs}");
    assert_eq!(links(act.stage, "n2", index).await, 2);
    // What a pod sends is still counted where the plugin wants it.
    let counted = run(act.stage, "n2", &format!("tc -s qdisc show dev {server} ingress")).await;
    let limited = run(act.stage, "n2", &format!("tc filter show dev {server} parent ffff:")).await;
    assert!(limited.contains("mirred"), "{limited}; {counted}");
    act.stage.agents["n2"].kill().await;
    holds(&mut act, suite, 0).await;
    act.stage.agents["n2"].start().await.unwrap();
    act.stage.agents["n2"].ready(APPLIED).await.unwrap();
    holds(&mut act, suite, 0).await;
    let said = act.stage.agents["n2"].node().log_tail("policyd", 1000);
    assert!(!said.contains("a gate was not whole"), "{said}");
}
