//! What objects and image take in memory at 100,000 peers. A process of its own holds each, and nothing else.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::report::{Part, Report};
use super::super::{BenchError, Say};
use super::{Size, float, row};

/// The benchmark's name for programs.
pub const ID: &str = "policy-memory";
/// What is measured, in one line.
pub const ABOUT: &str = "memory of the cluster's objects and of the whole engine, 250 local pods";
/// The program that holds one of them, beside this one.
pub const PROGRAM: &str = "policy-memory";

/// The promise, in MiB.
const LIMIT: f64 = 60.0;
/// What an object may take at the large size, as a multiple of what it takes at the small one.
const GROWTH: f64 = 1.5;
const MIB: f64 = 1024.0 * 1024.0;

/// What [`PROGRAM`] prints, in bytes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Held {
    /// Allocated and not freed.
    pub allocated: usize,
    /// The most that was, at any time.
    pub peak: usize,
    /// By how much the anonymous memory of the process grew.
    pub anonymous: usize,
}

/// Measures and reports.
///
/// # Errors
/// [`BenchError`]: the program that holds the objects does not run.
pub async fn run(say: Say) -> Result<Report, BenchError> {
    let mut rows = vec![row(["", "allocated", "at most", "anonymous", "a pod"])];
    let mut totals = Vec::new();
    for size in [Size::SMALL, Size::LARGE] {
        rows.push(row([&size.to_string(), "", "", "", ""]));
        let mut held = Vec::new();
        for part in ["cluster", "engine"] {
            say(&format!("{part}, {size}"));
            held.push(ask(part, size).await?);
        }
        let [cluster, engine] = held.as_slice() else { return Err(BenchError::Incomplete) };
        let mib = |bytes: usize| format!("{:.1} MiB", float(bytes) / MIB);
        let each = |bytes: usize| format!("{} bytes", bytes / size.pods);
        let mut line = |what: &str, held: &Held| {
            let Held { allocated, peak, anonymous } = *held;
            rows.push(vec![what.to_owned(), mib(allocated), mib(peak), mib(anonymous), each(allocated)]);
        };
        line("  the cluster's objects", cluster);
        line("  the engine, with them", engine);
        let own = engine.allocated.saturating_sub(cluster.allocated);
        rows.push(vec!["  of the engine alone".into(), mib(own), String::new(), String::new(), each(own)]);
        totals.push((float(engine.allocated) / MIB, float(engine.allocated) / float(size.objects())));
    }
    let [(_, small_each), (large, large_each)] = totals.as_slice() else { return Err(BenchError::Incomplete) };
    Ok(Report {
        id: ID,
        figure: *large,
        unit: "MiB",
        peer: None,
        ratio: None,
        parts: vec![
            Part {
                what: format!("allocated by the engine, {}", Size::LARGE),
                figure: *large,
                limit: LIMIT,
                unit: "MiB",
            },
            Part {
                what: "an object at the large size / at the small".into(),
                figure: large_each / small_each,
                limit: GROWTH,
                unit: "",
            },
        ],
        rows,
        notes: vec!["anonymous: growth of the process's RssAnon, with what the allocator keeps".into()],
    })
}

/// Runs the program.
async fn ask(part: &str, size: Size) -> Result<Held, BenchError> {
    let path = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.join(PROGRAM)));
    let path = path.unwrap_or_else(|| PathBuf::from(PROGRAM));
    let failed = |reason: String| BenchError::Memory { path: path.display().to_string(), reason };
    let mut command = tokio::process::Command::new(&path);
    command.arg(part).arg(size.policies.to_string()).arg(size.pods.to_string());
    let output = command.output().await.map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end())));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| failed(format!("it prints no figures: {error}")))
}
