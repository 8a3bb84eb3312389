//! The gate as it is on a node: agent, plugins and programs, with packets. What a single probe cannot tell: starts, restarts,
//! flows that are open, pods that come and go, hostile packets (issue C; reference suites' stateful scenarios).

mod adopted;
mod api;
mod churn;
mod down;
mod flows;
mod forged;
mod hostile;
mod restart;
mod start;
mod taken;
mod upgrade;

use sluice_policy_core::vector;
use sluice_policy_core::vector::schema::{Family, Mode, Step, Suite, Vector};
use sluice_tests::live::place::placed;
use sluice_tests::live::publish::SourceKind;
use sluice_tests::live::report::Report;
use sluice_tests::live::run::Act;
use sluice_tests::live::stage::{Options, Stage};
use sluice_tests::live::town::Plan;
use sluice_tests::service_proxy::Backend;
use sluice_vpcsim::deployment::{Binaries, GATED_CONFLIST, GateBinaries};

/// Two nodes, three pods, and one address in the rest of the world.
const FIXTURE: &str = r#"
schemaVersion: 1
fixtures:
  f:
    namespaces: {x: {}}
    nodes: {n1: {ip: 10.9.0.1}, n2: {ip: 10.9.0.2}}
    pods:
      x/client: {labels: {app: client}, ip: 10.1.0.1, node: n1}
      x/other: {labels: {app: other}, ip: 10.1.0.2, node: n1}
      x/server: {labels: {app: server}, ip: 10.1.0.3, node: n2}
    externals: {out: {ip: 198.51.100.7}}
vectors:
- id: test
  fixture: f
  steps:
"#;

/// A suite of one vector with these steps, as YAML. It lives as long as the test's process.
fn suite(steps: &str) -> &'static Suite {
    suite_of(FIXTURE, steps)
}

/// The same in another cluster.
fn suite_of(fixture: &str, steps: &str) -> &'static Suite {
    let read = vector::read(&format!("{fixture}{steps}")).unwrap_or_else(|error| panic!("{error}"));
    Box::leak(Box::new(placed(read)))
}

/// A policy `x/name` as YAML in flow style.
fn policy(name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: x}}, spec: {spec}}}"
    )
}

/// The policy that lets pods of the app `from` in to the servers, and nobody else.
fn admits(from: &str) -> String {
    let peer = format!("{{podSelector: {{matchLabels: {{app: {from}}}}}}}");
    policy("server", &format!("{{podSelector: {{matchLabels: {{app: server}}}}, ingress: [{{from: [{peer}]}}]}}"))
}

/// A step that lets the client in to the server, and nobody else.
fn client_only() -> String {
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

/// A step that lets the client in to the server, and one that lets the other one in; each time nobody else.
fn client_then_other() -> String {
    let swap = admits("other");
    format!(
        "{}
  - apply: [{swap}]
    expect:
    - {{from: x/client, to: x/server, port: 80, verdict: deny}}
    - {{from: x/other, to: x/server, port: 80, verdict: allow}}
",
        client_only()
    )
}

/// Everything of the product that a node has.
pub(crate) fn options() -> Options {
    let gate = GateBinaries::beside_this_program().unwrap();
    let eni = Binaries::find("sluice-eni").unwrap();
    Options {
        only: None,
        mode: None,
        family: Family::V4,
        plan: Plan {
            conflist: GATED_CONFLIST.into(),
            plugins: vec![("sluice-eni".into(), eni), ("sluice-policy".into(), gate.policy)],
            proxy: Backend::Nftables,
        },
        source: SourceKind::Directory,
        policyd: Some(gate.policyd),
        at_once: 1,
        sluice_proxy: None,
    }
}

/// How many times something is done: the whole number with `./test --all`, else a part of it.
fn times(all: usize, part: usize) -> usize {
    if sluice_tests::privileged::everything() { all } else { part }
}

async fn stage(suite: &'static Suite, options: &Options) -> Stage<'static> {
    Stage::build(&suite.fixtures["f"], options).await.unwrap_or_else(|error| panic!("{}", chain(&error)))
}

async fn begin<'s>(stage: &'s mut Stage<'static>, suite: &'static Suite, options: &Options) -> Act<'s, 'static> {
    let vector: &Vector = &suite.vectors[0];
    Act::begin(stage, vector, Mode::PodIp, options).await.unwrap_or_else(|error| panic!("{}", chain(&error)))
}

/// The same, with its first step done.
async fn begun<'s>(stage: &'s mut Stage<'static>, suite: &'static Suite, options: &Options) -> Act<'s, 'static> {
    let mut act = begin(stage, suite, options).await;
    step(&mut act, suite, 0).await;
    act
}

/// Does a step, and holds all of its rows.
async fn step(act: &mut Act<'_, 'static>, suite: &'static Suite, number: usize) {
    let step: &Step = &suite.vectors[0].steps[number];
    act.advance(step).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    holds(act, suite, number).await;
}

/// Holds the rows of a step, without doing it.
async fn holds(act: &mut Act<'_, 'static>, suite: &'static Suite, number: usize) {
    let step: &Step = &suite.vectors[0].steps[number];
    let mut report = Report::default();
    act.probe((number + 1, &step.name), step, &mut report, &mut |_| {})
        .await
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let told: Vec<String> = report.failures.iter().map(ToString::to_string).collect();
    assert!(told.is_empty(), "step {}:\n{}", number + 1, told.join("\n"));
    assert_eq!(report.counts.skipped, 0, "step {}: {:?}", number + 1, report.skipped);
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    sluice_vpcsim::world::Chain(error).to_string()
}
