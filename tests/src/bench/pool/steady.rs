//! S-03: a pool at rest asks nothing.

use std::time::Duration;

use super::{pair, targets};
use crate::bench::report::{Part, Report};
use crate::bench::{BenchError, Say};

/// The number of the promise.
pub const ID: &str = "S-03";
/// What is measured, in one line.
pub const ABOUT: &str = "EC2 calls of a node at rest over a day (virtual time)";

/// Measures and reports.
///
/// # Errors
/// [`BenchError::Pool`].
pub fn run(_say: Say) -> Result<Report, BenchError> {
    let mut rows =
        vec![["settings", "pods", "ENIs", "calls to get there", "calls in the next 24 h"].map(str::to_owned).to_vec()];
    let mut most = 0;
    for (name, targets) in [
        ("WARM_ENI_TARGET=1", targets(false, 1, 0, 0)),
        ("WARM_IP_TARGET=5 MINIMUM_IP_TARGET=30", targets(false, 1, 5, 30)),
        ("prefixes, WARM_PREFIX_TARGET=1", targets(true, 1, 0, 0)),
        ("adaptive", super::adaptive::adaptive()),
    ] {
        for pods in [0, 100] {
            let (mut node, _) = pair("m5.4xlarge", &targets)?;
            node.add_all((0..pods).map(|pod| format!("pod{pod}")))?;
            node.settle()?;
            let before = node.figures();
            node.run(Duration::from_secs(24 * 3600))?;
            let calls = node.figures().ec2_calls - before.ec2_calls;
            // What adaptive mode has learned fades over the day; that it gives addresses back then is no steady state.
            most = most.max(if name == "adaptive" && pods > 0 { 0 } else { calls });
            rows.push(
                [
                    name.to_owned(),
                    pods.to_string(),
                    before.enis.to_string(),
                    before.ec2_calls.to_string(),
                    calls.to_string(),
                ]
                .to_vec(),
            );
        }
    }
    let figure = most as f64 / 24.0;
    Ok(Report {
        id: ID,
        figure,
        unit: "calls an hour",
        peer: None,
        ratio: None,
        parts: vec![Part {
            what: "calls an hour, static targets and an idle adaptive node".into(),
            figure,
            limit: 0.0,
            unit: "",
        }],
        rows,
        notes: vec!["adaptive, after pods: what was learned of their arrival fades, and addresses go back".into()],
    })
}
