//! What happens without the agent, and with nonsense in its source.

use std::time::{Duration, Instant};

use sluice_policy_core::cluster::PodKey;
use sluice_tests::live::stage::APPLIED;
use sluice_tests::live::town::TownError;
use sluice_tests::privileged::privileged;
use sluice_vpcsim::runtime::RuntimeError;

use super::{begin, begun, client_only, holds, options, stage, step, suite};

/// Issue C, 3; DESIGN 11: existing verdicts hold, ADD fails retriably, DEL succeeds and is made up for.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_agent_verdicts_hold_adds_wait_and_fail_and_deletes_succeed() {
    if !privileged() {
        return;
    }
    let suite = suite(&client_only());
    let options = options();
    let mut stage = stage(suite, &options).await;
    let mut act = begun(&mut stage, suite, &options).await;
    act.stage.agents["n1"].kill().await;
    holds(&mut act, suite, 0).await;

    let other = PodKey { namespace: "x".into(), name: "other".into() };
    let spec = act.stage.fixture.pods[&other].clone();
    act.stage.town.delete(&other).await.unwrap();
    let begun = Instant::now();
    let refused = act.stage.town.add(&[(other.clone(), spec.clone())]).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(90));
    // CNI spec 1.1.0, section 5: 11 is "try again later".
    let retriable = matches!(&refused, TownError::Runtime(RuntimeError::Plugin { plugin, code: 11, .. }) if plugin == "sluice-policy");
    assert!(retriable, "{refused}");

    act.stage.agents["n1"].start().await.unwrap();
    act.stage.agents["n1"].without("x", "other", APPLIED).await.unwrap();
    act.stage.town.add(&[(other, spec)]).await.unwrap();
    holds(&mut act, suite, 0).await;
}

/// Issue C, 3: a malformed object among good ones is reported, and the rest goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_object_is_reported_and_the_others_are_in_force() {
    if !privileged() {
        return;
    }
    let suite = suite(&client_only());
    let options = options();
    let mut stage = stage(suite, &options).await;
    let mut act = begin(&mut stage, suite, &options).await;
    let bad = "kind: NetworkPolicy\napiVersion: networking.k8s.io/v1\nmetadata: {name: bad, namespace: x}\nspec: {podSelector: 7}\n---\n{{{\n";
    act.stage.publisher.directory.write("bad.yaml", bad).unwrap();
    step(&mut act, suite, 0).await;
    let told = |view: &serde_json::Value| view["faults"].to_string().contains("bad.yaml");
    for agent in act.stage.agents.values() {
        agent.until("the malformed file was not reported", APPLIED, told).await.unwrap();
    }
    holds(&mut act, suite, 0).await;
}
