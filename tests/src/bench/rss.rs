//! S-06: what ipamd keeps in memory on a full node.

use serde_json::Value;
use sluice_vpcsim::world::World;

use super::burst::{Sandboxes, Subject};
use super::report::{Part, Report};
use super::{BenchError, POOL_LIMIT, Say, count, install, scene};

/// The number of the promise.
pub const ID: &str = "S-06";
/// What is measured, in one line.
pub const ABOUT: &str = "anonymous memory of ipamd with 232 pods on an m5.4xlarge, prefixes";

/// Pods of the node: as many as the type holds without prefixes.
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
    let settings = [("ENABLE_PREFIX_DELEGATION", "true"), ("WARM_PREFIX_TARGET", "1"), ("SLUICE_MAX_PODS", "250")];
    let product = install(node, &settings).await?;
    let warm = |view: &Value| count(view, "free") > Some(0) && count(view, "flights") == Some(0);
    product.pool_until("the pool was not warm", POOL_LIMIT, warm).await?;
    let pid = product.ipamd_pid().await.unwrap_or_default();
    let idle = anonymous(pid)?;
    say(&format!("adding {PODS} pods"));
    let sandboxes = Sandboxes::new(node, PODS).await?;
    sandboxes.fill(node, &Subject::sluice(&product).await, AT_ONCE).await?;
    let settled = |view: &Value| count(view, "assigned") == Some(PODS as u64) && count(view, "flights") == Some(0);
    let view = product.pool_until("the pods did not have their addresses", POOL_LIMIT, settled).await?;
    let full = anonymous(pid)?;
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
            row("pods", PODS.to_string()),
            row("addresses", count(&view, "total").unwrap_or_default().to_string()),
            row("anonymous memory without pods", format!("{idle:.1} MiB")),
            row("with them", format!("{full:.1} MiB")),
        ],
        notes: Vec::new(),
    })
}

/// `RssAnon` of `/proc/PID/status` (proc(5)), in MiB.
///
/// # Errors
/// [`BenchError::Memory`] if the file cannot be read.
pub fn anonymous(pid: u32) -> Result<f64, BenchError> {
    let path = format!("/proc/{pid}/status");
    let unreadable = |reason: String| BenchError::Memory { path: path.clone(), reason };
    let text = std::fs::read_to_string(&path).map_err(|error| unreadable(error.to_string()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok())
        .map(|kib| kib / 1024.0)
        .ok_or_else(|| unreadable("it has no RssAnon".into()))
}
