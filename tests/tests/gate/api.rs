//! The API server is away, breaks off, or has forgotten what was watched.

use sluice_policy_core::cluster::PodKey;
use sluice_tests::apiserver::{Fault, FaultRule, Outage};
use sluice_tests::live::publish::SourceKind;
use sluice_tests::privileged::privileged;

use super::{begin, holds, options, policy, stage, step, suite};

/// Issue C, 3; DESIGN 11: verdicts hold, pods that are known start, and what changed meanwhile is in force afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_server_does_opens_nothing_and_closes_nothing() {
    if !privileged() {
        return;
    }
    let spec = |from: &str| {
        format!(
            "{{podSelector: {{matchLabels: {{app: server}}}}, ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {from}}}}}}}]}}]}}"
        )
    };
    let (allow, swap) = (policy("server", &spec("client")), policy("server", &spec("other")));
    let rows = |client: &str, other: &str| {
        format!(
            "[{{from: x/client, to: x/server, port: 80, verdict: {client}}}, {{from: x/other, to: x/server, port: 80, verdict: {other}}}]"
        )
    };
    let (one, two) = (rows("allow", "deny"), rows("deny", "allow"));
    let steps: String = [(&allow, &one), (&swap, &two), (&allow, &one), (&swap, &two), (&allow, &one)]
        .iter()
        .map(|(policy, rows)| format!("\n  - apply: [{policy}]\n    expect: {rows}"))
        .collect();
    let suite = suite(&steps);
    let mut options = options();
    options.source = SourceKind::Api;
    let mut stage = stage(suite, &options).await;
    let mut act = begin(&mut stage, suite, &options).await;
    step(&mut act, suite, 0).await;

    // Away: pods that are known come and go.
    let api = |act: &super::Act<'_, 'static>, outage| act.stage.publisher.api.as_ref().unwrap().outage(outage);
    let other = PodKey { namespace: "x".into(), name: "other".into() };
    let pod = act.stage.fixture.pods[&other].clone();
    for outage in [Outage::Refuse, Outage::Hang] {
        api(&act, outage);
        holds(&mut act, suite, 0).await;
        act.stage.town.delete(&other).await.unwrap();
        act.stage.town.add(&[(other.clone(), pod.clone())]).await.unwrap();
        holds(&mut act, suite, 0).await;
        // Whoever was left hanging is answered by nobody: a server that comes back knows no old connections.
        act.stage.publisher.api.as_ref().unwrap().heal();
        act.stage.publisher.api.as_ref().unwrap().cut();
    }
    step(&mut act, suite, 1).await;

    // The watches are cut, and then the server has forgotten what they would go on with (410 Gone).
    act.stage.publisher.api.as_ref().unwrap().cut();
    step(&mut act, suite, 2).await;
    act.stage.publisher.api.as_ref().unwrap().compact();
    act.stage.publisher.api.as_ref().unwrap().end_watches();
    step(&mut act, suite, 3).await;

    // It has too much to do.
    let busy = Fault::Status { code: 429, retry_after: Some(1) };
    act.stage.publisher.api.as_ref().unwrap().fault(FaultRule::times(5, "", "networkpolicies", busy));
    act.stage.publisher.api.as_ref().unwrap().cut();
    step(&mut act, suite, 4).await;
}
