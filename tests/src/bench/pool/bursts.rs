//! S-02: many pods at once.

use std::time::Duration;

use super::{pair, targets};
use crate::bench::report::{Part, Report};
use crate::bench::{BenchError, Say};

/// The number of the promise.
pub const ID: &str = "S-02";
/// What is measured, in one line.
pub const ABOUT: &str = "pods at once on a pool at rest, beside the AWS VPC CNI by its rules (virtual time)";

/// What the model takes at most over one AssignPrivateIpAddresses, in seconds.
const ASSIGN: f64 = 0.6;
/// The same over Create, Attach and the link of an ENI.
const NEW_ENI: f64 = 1.0 + 1.0 + 6.0;

/// Measures and reports.
///
/// # Errors
/// [`BenchError::Pool`].
pub fn run(_say: Say) -> Result<Report, BenchError> {
    let mut rows = vec![
        ["node, settings", "pods", "at once", "all after", "calls", "VPC CNI: at once", "all after", "calls"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut figures = Vec::new();
    for (name, kind, targets, pods) in [
        ("m5.large default", "m5.large", targets(false, 1, 0, 0), 27),
        ("m5.4xlarge default", "m5.4xlarge", targets(false, 1, 0, 0), 110),
        ("m5.4xlarge default", "m5.4xlarge", targets(false, 1, 0, 0), 232),
        ("m5.4xlarge WARM_IP=5 MIN=30", "m5.4xlarge", targets(false, 1, 5, 30), 110),
        ("m5.4xlarge WARM_IP=1", "m5.4xlarge", targets(false, 1, 1, 0), 58),
        ("m5.4xlarge prefixes, WARM_PREFIX=1", "m5.4xlarge", targets(true, 1, 0, 0), 110),
        ("m5.4xlarge prefixes, WARM_PREFIX=1", "m5.4xlarge", targets(true, 1, 0, 0), 232),
        ("m5.4xlarge prefixes, WARM_PREFIX=4", "m5.4xlarge", targets(true, 4, 0, 0), 232),
    ] {
        let (mut node, mut cni) = pair(kind, &targets)?;
        node.settle()?;
        let before = node.model().log().counts().clone();
        let calls = node.figures().ec2_calls;
        node.add_all((0..pods).map(|pod| format!("pod{pod}")))?;
        let took = node.serve_all()?.as_secs_f64();
        let calls = node.figures().ec2_calls - calls;
        let count = |log: &std::collections::BTreeMap<String, u64>| {
            log.get("AssignPrivateIpAddresses").copied().unwrap_or_default()
        };
        let assigns = count(node.model().log().counts()) - count(&before);
        let at_once = node.waits().iter().filter(|wait| **wait == Duration::ZERO).count();
        let theirs = cni.burst(pods);
        rows.push(vec![
            name.to_owned(),
            pods.to_string(),
            at_once.to_string(),
            format!("{took:.1} s"),
            calls.to_string(),
            theirs.at_once.to_string(),
            format!("{:.0} s", theirs.took.as_secs_f64()),
            theirs.ec2_calls.to_string(),
        ]);
        figures.push((targets.prefixes, pods, took, assigns, theirs.took.as_secs_f64()));
    }
    let prefixes = figures.iter().filter(|figure| figure.0 && figure.1 == 232);
    let (mut slowest, mut assigns) = (0.0_f64, 0);
    prefixes.for_each(|(_, _, took, calls, _)| (slowest, assigns) = (slowest.max(*took), assigns.max(*calls)));
    let singles = figures.iter().filter(|figure| !figure.0).map(|figure| figure.2).fold(0.0, f64::max);
    let ratio = figures.iter().map(|figure| figure.2 / figure.4).fold(0.0, f64::max);
    let part = |what: &str, figure: f64, limit: f64, unit| Part { what: what.into(), figure, limit, unit };
    Ok(Report {
        id: ID,
        figure: slowest,
        unit: "s",
        peer: Some(84.0),
        ratio: Some(ratio),
        parts: vec![
            part("232 pods by prefixes: Assign calls", assigns as f64, 2.0, ""),
            part("232 pods by prefixes: until all are served, EC2's own latency and 1 s", slowest, ASSIGN + 1.0, "s"),
            part("secondary addresses: until all are served, one ENI's latency and 1 s", singles, NEW_ENI + 1.0, "s"),
            part("the slowest row beside the VPC CNI's", ratio, 1.0, ""),
        ],
        rows,
        notes: vec![
            "VPC CNI: a tick of 5 s after each action, 10 s for an ENI, 1 s for an assignment, no throttling, without the".into(),
            "10 to 15 s that the kubelet lets pass before it tries a refused pod again".into(),
        ],
    })
}
