//! S-04: ipamd is killed and starts again, with EC2 and the metadata service gone.

use std::time::{Duration, Instant};

use serde_json::Value;
use sluice_vpcsim::world::{Service, World};

use super::burst::{Sandboxes, Subject};
use super::report::{Part, Report};
use super::stats::{millis, percentile};
use super::{BenchError, POOL_LIMIT, Say, count, install, scene};

/// The number of the promise.
pub const ID: &str = "S-04";
/// What is measured, in one line.
pub const ABOUT: &str = "kill -9 of ipamd with 100 pods: from its exec to serving, without EC2 and IMDS";

/// Pods of the node.
const PODS: usize = 100;
/// How many of them are added at the same time.
const AT_ONCE: usize = 10;
/// Restarts.
const ROUNDS: usize = 20;
/// How long a restart may take at all.
const LIMIT: Duration = Duration::from_secs(20);
/// The promise, in milliseconds.
const PROMISE: f64 = 1000.0;

/// Measures and reports.
///
/// # Errors
/// [`BenchError`]: what could not be set up, or the first restart that did not serve.
pub async fn run(say: Say) -> Result<Report, BenchError> {
    let world = World::up(&scene(&[("node", "m5.4xlarge")])?).await?;
    let node = world.node("node")?;
    let product = install(node, &[("ENABLE_PREFIX_DELEGATION", "true"), ("SLUICE_MAX_PODS", "250")]).await?;
    let warm = |view: &Value| count(view, "free") > Some(0) && count(view, "flights") == Some(0);
    product.pool_until("the pool was not warm", POOL_LIMIT, warm).await?;
    say(&format!("adding {PODS} pods"));
    let sandboxes = Sandboxes::new(node, PODS).await?;
    sandboxes.fill(node, &Subject::sluice(&product).await, AT_ONCE).await?;
    let settled = |view: &Value| count(view, "assigned") == Some(PODS as u64) && count(view, "flights") == Some(0);
    product.pool_until("the pods did not have their addresses", POOL_LIMIT, settled).await?;
    world.stop_service(Service::Ec2).await;
    world.stop_service(Service::Imds).await;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        say(&format!("restart {} of {ROUNDS}", round + 1));
        product.kill_ipamd().await;
        let begun = Instant::now();
        product.start_ipamd().await?;
        product.ready(LIMIT).await?;
        times.push(begun.elapsed());
        let all = |view: &Value| count(view, "assigned") == Some(PODS as u64);
        product.pool_until("a pod was forgotten", LIMIT, all).await?;
    }
    let (median, slowest) = (millis(percentile(&times, 50)), millis(percentile(&times, 100)));
    let row = |what: &str, value: f64| vec![what.to_owned(), format!("{value:.0} ms")];
    Ok(Report {
        id: ID,
        figure: slowest,
        unit: "ms",
        peer: None,
        ratio: None,
        parts: vec![Part { what: "the slowest of them".into(), figure: slowest, limit: PROMISE, unit: "ms" }],
        rows: vec![row("restart to serving, median", median), row("slowest", slowest)],
        notes: vec![format!("{ROUNDS} restarts, looked at every 20 ms; every pod kept its address over all of them")],
    })
}
