//! What the benchmarks measure with does measure.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::bench::burst::{BurstError, Plugin, Sandboxes, Subject};
use sluice_tests::containerd::{DEBIAN_CNI, installed};
use sluice_tests::privileged::may_run;
use sluice_vpcsim::node::Node;

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_times_each_pod_and_a_failure_is_no_time() {
    if !may_run(installed()) {
        return;
    }
    let tag = format!("burst-{}", std::process::id());
    let node = Node::boot("burst", &std::env::temp_dir().join(format!("sluice-{tag}")), &tag).await.unwrap();
    let config = json!({"cniVersion": "1.0.0", "name": "reference", "type": "ptp",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/29"}]]}});
    // The second plugin of the chain needs the first one's result.
    let second = json!({"cniVersion": "1.0.0", "name": "reference", "type": "tuning", "promisc": false});
    let plugin = |name: &str, config: &Value| Plugin {
        program: PathBuf::from(DEBIAN_CNI).join(name),
        config: config.as_object().unwrap().clone(),
    };
    let mut subject = Subject {
        chain: vec![plugin("ptp", &config), plugin("tuning", &second)],
        path: DEBIAN_CNI.into(),
        daemons: vec![std::process::id()],
    };
    let sandboxes = Sandboxes::new(&node, 5).await.unwrap();
    for at_once in [1, 2, 5] {
        let times = sandboxes.burst(&node, &subject, &format!("n{at_once}"), at_once).await.unwrap();
        assert_eq!((times.add.len(), times.del.len()), (5, 5));
        assert!(times.add.iter().chain(&times.del).all(|time| *time > Duration::from_micros(100)), "{times:?}");
    }
    subject.chain[1].config.insert("sysctl".into(), json!({"net.no.such": "1"}));
    let error = sandboxes.burst(&node, &subject, "second", 1).await.unwrap_err();
    let is_second = |error: &BurstError| matches!(error, BurstError::Failed { verb: "ADD", program, .. } if program.ends_with("tuning"));
    assert!(is_second(&error), "{error}");
    subject.chain[0].config.insert("ipam".into(), json!({"type": "no-such-plugin"}));
    let error = sandboxes.burst(&node, &subject, "bad", 5).await.unwrap_err();
    assert!(matches!(error, BurstError::Failed { verb: "ADD", .. }), "{error}");
    assert!(error.to_string().contains("no-such-plugin"), "{error}");
}
