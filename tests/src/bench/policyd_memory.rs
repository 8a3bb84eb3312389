//! S-06, the policy agent's part: what policyd keeps in memory, and what the gates' maps take in the kernel.

use std::collections::BTreeMap;

use super::policy::Size;
use super::report::{Part, Report};
use super::rss::anonymous;
use super::town_node::TownNode;
use super::{BenchError, Say};

/// The benchmark's name for programs.
pub const ID: &str = "S-06-policyd";
/// What is measured, in one line.
pub const ABOUT: &str = "anonymous memory of policyd, and its maps: 250 local pods, 10,000 pods, 1,000 policies";

/// The cluster.
const SIZE: Size = Size { policies: 1_000, pods: 10_000 };
/// The promises, in MiB.
const LIMIT: f64 = 100.0;
const MAPS_LIMIT: f64 = 64.0;
const MIB: f64 = 1024.0 * 1024.0;

/// Measures and reports.
///
/// # Errors
/// [`BenchError`]: what could not be set up.
pub async fn run(say: Say) -> Result<Report, BenchError> {
    let town = TownNode::up(SIZE, say).await?;
    let pid = town.policyd.pid().await.ok_or(BenchError::Incomplete)?;
    let memory = anonymous(pid)?;
    let maps = maps(pid)?;
    let kernel = maps.values().map(|(_, bytes)| bytes).sum::<f64>() / MIB;
    let mut rows = vec![
        vec!["pods of the node".to_owned(), town.pods.len().to_string()],
        vec!["cluster".to_owned(), SIZE.to_string()],
        vec!["anonymous memory of policyd".to_owned(), format!("{memory:.1} MiB")],
        vec![format!("{} maps", maps.len()), format!("{kernel:.1} MiB")],
    ];
    rows.extend(maps.values().map(|(what, bytes)| vec![format!("  {what}"), format!("{:.2} MiB", bytes / MIB)]));
    let part = |what: &str, figure, limit| Part { what: what.into(), figure, limit, unit: "MiB" };
    Ok(Report {
        id: ID,
        figure: memory,
        unit: "MiB",
        peer: None,
        ratio: None,
        parts: vec![
            part("anonymous memory of policyd", memory, LIMIT),
            part("the gates' maps in the kernel", kernel, MAPS_LIMIT),
        ],
        rows,
        notes: vec!["a map's size is what the kernel says it takes (`memlock` of /proc/PID/fdinfo)".into()],
    })
}

/// The maps that a process has open, by their numbers: what each is, and its bytes (`bpf_map_show_fdinfo`).
fn maps(pid: u32) -> Result<BTreeMap<u64, (String, f64)>, BenchError> {
    let path = format!("/proc/{pid}/fdinfo");
    let unreadable = |error: std::io::Error| BenchError::Memory { path: path.clone(), reason: error.to_string() };
    let mut maps = BTreeMap::new();
    for entry in std::fs::read_dir(&path).map_err(unreadable)? {
        // A descriptor that was closed meanwhile.
        let Ok(text) = std::fs::read_to_string(entry.map_err(unreadable)?.path()) else { continue };
        let fields: BTreeMap<&str, &str> =
            text.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim())).collect();
        let number = |name: &str| fields.get(name).and_then(|value| value.parse::<u32>().ok());
        if let (Some(id), Some(bytes)) = (number("map_id"), number("memlock")) {
            let of = |name| fields.get(name).copied().unwrap_or("?");
            let what = format!(
                "type {}, {} + {} bytes, {} at most",
                of("map_type"),
                of("key_size"),
                of("value_size"),
                of("max_entries")
            );
            maps.insert(u64::from(id), (what, f64::from(bytes)));
        }
    }
    Ok(maps)
}
