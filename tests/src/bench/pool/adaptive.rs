//! Adaptive warm mode beside static targets and the VPC CNI, over days of arrivals.

use sluice_ipamd_core::arrivals::Band;
use sluice_ipamd_core::plan::{Targets, WarmMode};
use sluice_ipamd_sim::trace::{Replay, Trace};

use super::{pair, targets};
use crate::bench::report::{Part, Report};
use crate::bench::{BenchError, Say};

/// The name of the benchmark; it holds no numbered promise of speed.
pub const ID: &str = "adaptive";
/// What is measured, in one line.
pub const ABOUT: &str =
    "stalls, idle addresses and EC2 calls over five days of arrivals: adaptive, static, VPC CNI (virtual time)";

const KIND: &str = "m5.4xlarge";

/// Adaptive mode.
pub(super) fn adaptive() -> Targets {
    Targets { mode: WarmMode::Adaptive(Band::default()), ..targets(false, 1, 0, 0) }
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
    let row = |name: &str, replay: &Replay| {
        vec![
            format!("  {name}"),
            replay.pods.to_string(),
            replay.stalls.to_string(),
            format!("{:.1} s", replay.longest.as_secs_f64()),
            format!("{:.1}", replay.mean_idle),
            replay.ec2_calls.to_string(),
        ]
    };
    for trace in Trace::all() {
        say(trace.name);
        rows.push(vec![format!("{}: {}", trace.name, trace.about)]);
        let ours = trace.replay(pair(KIND, &adaptive())?.0)?;
        rows.push(row("adaptive", &ours));
        let mut better = 0;
        for warm_ips in [1, 2, 3, 5, 8, 10, 15, 20, 25, 30] {
            let replay = trace.replay(pair(KIND, &targets(false, 1, warm_ips, 0))?.0)?;
            better += u32::from(replay.beats(&ours));
            let mark = if replay.beats(&ours) { " (better in all)" } else { "" };
            rows.push(row(&format!("WARM_IP_TARGET={warm_ips}{mark}"), &replay));
        }
        for (name, warm) in [
            ("WARM_ENI_TARGET=1, the default", targets(false, 1, 0, 0)),
            ("WARM_ENI_TARGET=0", targets(false, 0, 0, 0)),
        ] {
            let replay = trace.replay(pair(KIND, &warm)?.0)?;
            better += u32::from(replay.beats(&ours));
            rows.push(row(name, &replay));
        }
        let cni = trace.replay_vpc_cni(pair(KIND, &targets(false, 1, 0, 0))?.1);
        rows.push(row("VPC CNI, WARM_ENI_TARGET=1", &cni));
        let part = |what: String, figure: f64, limit: f64| Part {
            what: format!("{}: {what}", trace.name),
            figure,
            limit,
            unit: "",
        };
        parts.push(part(
            "static settings that are better in one figure and worse in none".into(),
            f64::from(better),
            0.0,
        ));
        parts.push(part("idle addresses beside the VPC CNI's default".into(), ours.mean_idle / cni.mean_idle, 0.99));
        parts.push(part("stalls beside the VPC CNI's default".into(), f64::from(ours.stalls), f64::from(cni.stalls)));
        worst = worst.max(ours.mean_idle / cni.mean_idle);
    }
    Ok(Report {
        id: ID,
        figure: worst,
        unit: "of the VPC CNI's idle addresses, at worst",
        peer: Some(1.0),
        ratio: Some(worst),
        parts,
        rows,
        notes: vec![format!(
            "{KIND}, secondary addresses, 24 hours each; idle are all addresses that no pod has, cooling ones too"
        )],
    })
}
