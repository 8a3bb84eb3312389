//! S-06: what ipamd keeps in memory on a full node.

use std::path::PathBuf;

use sluice_vpcsim::world::World;

use super::burst::{Sandboxes, Subject};
use super::report::{Part, Report};
use super::{BenchError, Say, scene};
use crate::deploy::{CNI_BIN, deploy, plugin_config};

/// The number of the promise.
pub const ID: &str = "S-06";
/// What is measured, in one line.
pub const ABOUT: &str = "anonymous memory of ipamd with 232 pods on an m5.4xlarge, prefixes";

/// Pods of the node: the kubelet's limit for the type without prefixes, which AWS keeps up to 30 vCPUs.
const PODS: usize = 232;
/// How many of them are added at the same time.
const AT_ONCE: usize = 10;
/// The promise, in MiB.
const LIMIT: f64 = 20.0;

/// Measures and reports.
///
/// # Errors
/// [`BenchError`]: what could not be set up, or the first plugin that failed.
pub async fn run(say: Say) -> Result<Report, BenchError> {
    let world = World::up(&scene(&[("node", "m5.4xlarge")])?).await?;
    let node = world.node("node")?;
    let mut ipamd = deploy(node, &[("ENABLE_PREFIX_DELEGATION", "true"), ("WARM_PREFIX_TARGET", "1")]).await?;
    ipamd.wait_for(node, "a warm pool", |pool| pool.free > 0 && pool.flights == 0).await?;
    let idle = anonymous(ipamd.pid())?;
    say(&format!("adding {PODS} pods"));
    let subject = Subject {
        program: PathBuf::from(CNI_BIN).join("sluice-eni"),
        path: CNI_BIN.into(),
        config: plugin_config(),
        daemons: vec![ipamd.pid()],
    };
    Sandboxes::new(node, PODS).await?.fill(node, &subject, AT_ONCE).await?;
    let wanted = format!("{PODS} addresses are assigned");
    let pool = ipamd.wait_for(node, &wanted, |pool| pool.assigned == 232 && pool.flights == 0).await?;
    let full = anonymous(ipamd.pid())?;
    let row = |what: &str, value: String| vec![what.to_owned(), value];
    Ok(Report {
        id: ID,
        figure: full,
        unit: "MiB",
        peer: None,
        ratio: None,
        parts: vec![Part {
            what: format!("anonymous memory of ipamd, {PODS} pods"),
            figure: full,
            limit: LIMIT,
            unit: "MiB",
        }],
        rows: vec![
            row("pods", pool.assigned.to_string()),
            row("addresses", pool.total.to_string()),
            row("anonymous memory without pods", format!("{idle:.1} MiB")),
            row("with them", format!("{full:.1} MiB")),
        ],
    })
}

/// `RssAnon` of `/proc/PID/status` (proc(5)), in MiB.
fn anonymous(pid: u32) -> Result<f64, BenchError> {
    let path = format!("/proc/{pid}/status");
    let unreadable = |reason: String| BenchError::Memory { path: path.clone(), reason };
    let text = std::fs::read_to_string(&path).map_err(|error| unreadable(error.to_string()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok())
        .map(|kib| kib / 1024.0)
        .ok_or_else(|| unreadable("it has no RssAnon".into()))
}
