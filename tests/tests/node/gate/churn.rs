//! Pods that come and go leave nothing behind.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sluice_policy_core::cluster::PodKey;
use sluice_tests::live::stage::{APPLIED, Stage};
use sluice_tests::privileged::privileged;

use super::{begun, options, policy, stage, suite, times};

/// Series of metrics that an agent may have, whoever came and went: it begins with a hundred.
const SERIES: usize = 200;

/// What an agent holds: descriptors, and gates; programs and maps are held by descriptors and pins. Links of pods that are there
/// are made in their time, and do not count.
async fn held(stage: &Stage<'_>) -> BTreeMap<String, usize> {
    let mut held = BTreeMap::new();
    for (name, agent) in &stage.agents {
        let pid = agent.pid().await.unwrap();
        held.insert(format!("descriptors of {name}"), std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count());
        let view = agent.until("no page", APPLIED, |_| true).await.unwrap();
        let gates = view["endpoints"].as_array().cloned().unwrap_or_default();
        let of_gates: Vec<String> = gates.iter().map(|gate| format!("{}_", gate["index"])).collect();
        held.insert(format!("gates of {name}"), gates.len());
        let pins = agent.node().run(move || {
            let mut left = vec![std::path::PathBuf::from(sluice_contract::node::BPF_DIR)];
            let mut count = 0;
            while let Some(directory) = left.pop() {
                for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                    let file = entry.file_name().into_string().unwrap_or_default();
                    count += usize::from(!of_gates.iter().any(|gate| file.starts_with(gate)));
                    if entry.path().is_dir() {
                        left.push(entry.path());
                    }
                }
            }
            count
        });
        held.insert(format!("pins of {name}"), pins.await.unwrap());
    }
    held
}

/// Issue C, 2: descriptors, maps and programs are what they were after 1,000 pods.
#[tokio::test(flavor = "multi_thread")]
async fn pods_that_come_and_go_leave_nothing() {
    if !privileged() {
        return;
    }
    let deny = policy("all", "{podSelector: {}, policyTypes: [Ingress]}");
    let suite = suite(&format!("\n  - apply: [{deny}]\n    expect: []\n"));
    let options = options();
    let mut stage = stage(suite, &options).await;
    let mut act = begun(&mut stage, suite, &options).await;
    let client = PodKey { namespace: "x".into(), name: "client".into() };
    let mut pods = Vec::new();
    for (number, node) in (1..=10_u8).zip(["n1", "n2"].into_iter().cycle()) {
        let mut spec = act.stage.fixture.pods[&client].clone();
        spec.addresses.v4 = Some([10, 1, 1, number].into());
        spec.node = Some(node.into());
        let key = PodKey { namespace: "x".into(), name: format!("churn-{number}").into() };
        act.declare(&key, &spec).await.unwrap();
        pods.push((key, spec));
    }
    let mut baseline: Option<BTreeMap<String, usize>> = None;
    for round in 0..times(100, 10) {
        act.stage.town.add(&pods).await.unwrap();
        for (key, _) in &pods {
            act.stage.town.delete(key).await.unwrap();
        }
        for (key, spec) in &pods {
            let agent = &act.stage.agents[spec.node.as_ref().unwrap()];
            agent.without(&key.namespace, &key.name, APPLIED).await.unwrap();
        }
        // The first round may open what stays open. A connection of ours may still be closing, now or when that was counted.
        let before = match baseline.take() {
            Some(before) => before,
            None => held(act.stage).await,
        };
        let has_more = |now: &BTreeMap<String, usize>| now.iter().any(|(what, count)| before.get(what) < Some(count));
        let deadline = Instant::now() + APPLIED;
        let mut now = held(act.stage).await;
        while has_more(&now) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
            now = held(act.stage).await;
        }
        assert!(!has_more(&now), "after {} pods {now:?}, and before {before:?}", (round + 1) * pods.len());
        baseline = Some(now);
    }
    for (name, agent) in &act.stage.agents {
        // A kind of thing that happens for the first time makes one; a pod makes none.
        let series = agent.metrics().await.unwrap().lines().filter(|line| !line.starts_with('#')).count();
        assert!(series < SERIES, "{name} has {series} series");
    }
}
