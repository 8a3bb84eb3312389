//! Adaptive warm mode beside static targets and the VPC CNI, over days of arrivals.

use sluice_ipamd_core::plan::Targets;
use sluice_ipamd_sim::arms;
use sluice_ipamd_sim::trace::{Replay, Trace};

use super::{MAX_PODS, pair};
use crate::bench::report::{Part, Report};
use crate::bench::{BenchError, Say};

/// The name of the benchmark; it holds no numbered promise of speed.
pub const ID: &str = "adaptive";
/// What is measured, in one line.
pub const ABOUT: &str =
    "stalls, idle addresses and EC2 calls over five days of arrivals: adaptive, static, VPC CNI (virtual time)";

/// Two instance types: of 29 addresses an ENI, and of 49.
const KINDS: [&str; 2] = ["m5.4xlarge", "m5.24xlarge"];

/// Adaptive mode.
pub(super) fn adaptive() -> Targets {
    arms::adaptive(false, MAX_PODS)
}

fn row(name: &str, replay: &Replay) -> Vec<String> {
    vec![
        format!("  {name}"),
        replay.pods.to_string(),
        replay.stalls.to_string(),
        format!("{:.1} s", replay.longest.as_secs_f64()),
        format!("{:.1}", replay.mean_idle),
        replay.ec2_calls.to_string(),
    ]
}

/// Measures and reports.
///
/// # Errors
/// [`BenchError::Pool`].
pub fn run(say: Say) -> Result<Report, BenchError> {
    let mut rows = vec![
        ["trace, settings", "pods", "stalls", "longest wait", "mean idle", "EC2 calls"].map(str::to_owned).to_vec(),
    ];
    let mut parts = Vec::new();
    let mut worst = 0.0_f64;
    for kind in KINDS {
        for trace in Trace::all() {
            for prefixes in [false, true] {
                let form = if prefixes { "prefixes" } else { "single addresses" };
                let name = format!("{}, {kind}, {form}", trace.name);
                say(&name);
                rows.push(vec![format!("{name}: {}", trace.about)]);
                let ours = trace.replay(pair(kind, &arms::adaptive(prefixes, MAX_PODS))?.0)?;
                rows.push(row("adaptive", &ours));
                let mut better = 0;
                for arm in arms::fixed(prefixes, MAX_PODS) {
                    let replay = trace.replay(pair(kind, &arm.targets)?.0)?;
                    better += u32::from(replay.beats(&ours));
                    let mark = if replay.beats(&ours) { " (better in all)" } else { "" };
                    rows.push(row(&format!("{}{mark}", arm.name), &replay));
                }
                let cni = Targets { prefixes, max_pods: MAX_PODS, ..Targets::default() };
                let cni = trace.replay_vpc_cni(pair(kind, &cni)?.1);
                rows.push(row("VPC CNI's default", &cni));
                let part = |what: &str, figure: f64, limit: f64| Part {
                    what: format!("{name}: {what}"),
                    figure,
                    limit,
                    unit: "",
                };
                parts.push(part("stalls beside the VPC CNI's default", ours.stalls.into(), cni.stalls.into()));
                if prefixes {
                    // No more is promised (P-18): what comes and goes by sixteens follows the days less closely.
                    continue;
                }
                let idle = ours.mean_idle / cni.mean_idle;
                parts.push(part("idle addresses beside the VPC CNI's default", idle, 0.99));
                parts.push(part("static settings that are better in one figure and worse in none", better.into(), 0.0));
                worst = worst.max(idle);
            }
        }
    }
    Ok(Report {
        id: ID,
        figure: worst,
        unit: "of the VPC CNI's idle addresses, at worst, with secondary addresses",
        peer: Some(1.0),
        ratio: Some(worst),
        parts,
        rows,
        notes: vec!["24 hours each; idle are all addresses that no pod has, cooling ones too".to_owned()],
    })
}
