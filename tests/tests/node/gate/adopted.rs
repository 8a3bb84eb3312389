//! Pods that run, and talk, before the agent is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use sluice_policy_core::model::Text;
use sluice_tests::live::run::Act;
use sluice_tests::live::stage::{APPLIED, Options, Stage};
use sluice_tests::live::town::conflist;
use sluice_tests::privileged::privileged;
use sluice_tests::prober::{Prober, Transport};
use sluice_vpcsim::policyd::{Policyd, Source};

use super::restart::station;
use super::taken::{interface, links, run};
use super::upgrade::{begin_beside_layout, datagrams, end_with_layout};
use super::{admits, begun, holds, options, policy, stage, suite};

/// How many pods the nodes have.
const PODS: [(&str, usize); 2] = [("n1", 2), ("n2", 1)];

/// How pods are attached where no agent is.
pub(super) fn before(options: &Options) -> Options {
    let mut before = options.clone();
    before.policyd = None;
    before.plan.conflist = conflist(&json!([{"type": "sluice-eni"}]));
    before
}

/// Starts the agents, and waits until they have taken all pods in.
pub(super) async fn install(stage: &mut Stage<'_>, options: &Options, source: &Source) {
    for (name, node) in &stage.town.nodes {
        let agent = Policyd::new(Arc::clone(&node.node), options.policyd.clone().unwrap(), source.clone());
        agent.start().await.unwrap();
        stage.agents.insert(Text::clone(name), agent);
    }
    for (node, pods) in PODS {
        let list = |view: &Value, key: &str| view[key].as_array().map_or(0, Vec::len);
        let adopted = |view: &Value| list(view, "endpoints") == pods && list(view, "without_gate") == 0;
        stage.agents[node].until("pods were not adopted", APPLIED, adopted).await.unwrap();
    }
}

/// DESIGN 6: pods that were there before install get gates. What their policy allows goes on, in the direction in which it was
/// opened; the rest is cut.
#[tokio::test(flavor = "multi_thread")]
async fn pods_that_talk_before_the_agent_comes_keep_what_their_policy_allows() {
    if !privileged() {
        return;
    }
    let server = admits("client");
    let client = policy(
        "client",
        "{podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress, Egress], egress: [{to: [{podSelector: {matchLabels: {app: server}}}]}]}",
    );
    let steps = format!(
        "
  - expect:
    - {{from: [x/client, x/other, 'ext:out'], to: x/server, port: 80, connection: established, verdict: allow}}
    - {{from: [x/server, 'ext:out'], to: x/client, port: 82, connection: established, verdict: allow}}
    - {{from: x/client, to: x/other, port: 83, connection: established, verdict: allow}}
  - apply: [{server}, {client}]
    expect:
    - {{from: x/client, to: x/server, port: 80, connection: established, verdict: allow}}
    - {{from: [x/other, 'ext:out'], to: x/server, port: 80, connection: established, verdict: deny}}
    # The client may reach the server, and this is not it.
    - {{from: [x/server, 'ext:out'], to: x/client, port: 82, connection: established, verdict: deny}}
    - {{from: x/client, to: x/other, port: 83, connection: established, verdict: deny}}
    - {{from: x/client, to: x/server, port: 84, verdict: allow}}
    - {{from: x/other, to: x/server, port: 84, verdict: deny}}
    - {{from: x/server, to: x/client, port: 84, verdict: deny}}
"
    );
    let suite = suite(&steps);
    let options = options();
    let mut stage = stage(suite, &before(&options)).await;
    let mut act = begun(&mut stage, suite, &options).await;
    act.advance(&suite.vectors[0].steps[1]).await.unwrap_or_else(|error| panic!("{}", super::chain(&error)));
    let source = act.stage.publisher.source();
    install(act.stage, &options, &source).await;
    for (node, pods) in PODS {
        let said = act.stage.agents[node].node().log_tail(Policyd::LOG, 1000);
        let seeded = said.lines().filter(|line| line.contains("flows of a pod are known")).count();
        assert_eq!(seeded, pods, "{said}");
    }
    holds(&mut act, suite, 1).await;
}

/// The first that is put on the interface of a pod that talks is a link (ADR 17), and so is what takes its place across layouts of
/// the maps: no qdisc is made there, which would stop the interface for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn pods_that_talk_before_the_agent_comes_lose_no_packet_by_their_gates() {
    if !privileged() {
        return;
    }
    let server = admits("client");
    let steps = format!(
        "
  - expect:
    - {{from: [x/client, x/other], to: x/server, port: 80, verdict: allow}}
  - apply: [{server}]
    expect:
    - {{from: x/client, to: x/server, port: 80, verdict: allow}}
    - {{from: x/other, to: x/server, port: 80, verdict: deny}}
"
    );
    let suite = suite(&steps);
    let options = options();
    let mut stage = stage(suite, &before(&options)).await;
    let mut act = begun(&mut stage, suite, &options).await;
    act.advance(&suite.vectors[0].steps[1]).await.unwrap_or_else(|error| panic!("{}", super::chain(&error)));
    let prober = Prober::default();
    prober.serve([(station(act.stage, "server", "10.1.0.3"), Transport::Udp, 81)]).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let flow = datagrams(&station(act.stage, "client", "10.1.0.1"), &stop, true);
    let source = act.stage.publisher.source();
    install(act.stage, &options, &source).await;
    let linked = async |act: &Act<'_, '_>| {
        for (node, pod) in [("n1", "client"), ("n1", "other"), ("n2", "server")] {
            let (name, index) = interface(act.stage, node, pod).await;
            assert_eq!(links(act.stage, node, index).await, 2, "{pod}");
            let qdiscs = run(act.stage, node, &format!("tc qdisc show dev {name}")).await;
            assert!(!qdiscs.contains("clsact"), "{pod}: {qdiscs}");
        }
    };
    linked(&act).await;
    holds(&mut act, suite, 1).await;
    for agent in act.stage.agents.values() {
        end_with_layout(agent).await;
        begin_beside_layout(agent).await;
    }
    linked(&act).await;
    stop.store(true, Ordering::Relaxed);
    let (sent, came) = flow.await.unwrap();
    assert!(sent > 100 && sent == came, "{came} of {sent} datagrams came back");
    holds(&mut act, suite, 1).await;
}
