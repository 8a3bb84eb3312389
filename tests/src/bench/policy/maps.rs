//! What the image takes in the kernel's maps, with verdicts in two stages and in the single map that would be the other way
//! (docs/adr/0002).

use std::collections::{BTreeMap, BTreeSet};

use sluice_policy_core::compile::image::{Identity, Image, RowId};

use super::super::report::{Part, Report};
use super::super::{BenchError, Say};
use super::{Size, filled, float, objects, row};

/// The benchmark's name for programs.
pub const ID: &str = "policy-maps";
/// What is measured, in one line.
pub const ABOUT: &str = "entries and bytes of the kernel's maps, and verdicts in two stages beside one map";

/// Of an entry of the single map: prefix length, policy, identity, direction, protocol, port; verdict, proxy port, rule.
const SINGLE_BYTES: usize = 24;
const MIB: f64 = 1024.0 * 1024.0;

/// The same verdicts in both forms.
#[derive(Debug, Default, Clone, Copy)]
pub struct Comparison {
    /// Entries of `peers`, `rows` and `decisions`.
    pub two_entries: usize,
    /// Their bytes.
    pub two_bytes: usize,
    /// Entries of the single map.
    pub single_entries: usize,
    /// Their bytes.
    pub single_bytes: usize,
    /// Identities that some policy lists, or that have an address.
    pub identities: usize,
    /// Writes that one identity costs in two stages, mean: its peers, and the rows that nobody else has.
    pub two_mean: f64,
    /// The most.
    pub two_most: usize,
    /// In the single map, mean: every entry of every row.
    pub single_mean: f64,
    /// The most.
    pub single_most: usize,
}

impl Comparison {
    /// Unfolds an image.
    #[must_use]
    pub fn of(image: &Image) -> Self {
        let sizes = image.sizes();
        let stages = sizes.iter().filter(|size| ["peers", "rows", "decisions"].contains(&size.map));
        let (two_entries, two_bytes) = stages.fold((0, 0), |(n, b), size| (n + size.entries, b + size.bytes()));
        let length = |row: &RowId| image.rows.get(row).map_or(0, |row| row.entries.len());
        let single_entries = image.peers.values().map(length).sum();
        // Who has a row: one identity, or more.
        let mut owners: BTreeMap<RowId, Option<Identity>> = BTreeMap::new();
        for ((_, identity), row) in &image.peers {
            let owner = owners.entry(*row).or_insert(Some(*identity));
            if *owner != Some(*identity) {
                *owner = None;
            }
        }
        let used = image.ipcache.iter().chain(image.names.iter()).map(|(_, identity)| identity);
        let mut costs: BTreeMap<Identity, (usize, usize)> =
            used.chain(image.frontends.values().copied()).map(|identity| (identity, (0, 0))).collect();
        let mut counted: BTreeSet<RowId> = BTreeSet::new();
        for ((_, identity), row) in image.peers.iter().filter(|((_, identity), _)| *identity >= Identity::FIRST) {
            let (two, single) = costs.entry(*identity).or_default();
            let alone = owners.get(row).copied().flatten() == Some(*identity) && counted.insert(*row);
            *two += 1 + if alone { length(row) } else { 0 };
            *single += length(row);
        }
        costs.retain(|identity, _| *identity >= Identity::FIRST);
        let mean = |sum: usize| float(sum) / float(costs.len().max(1));
        Self {
            two_entries,
            two_bytes,
            single_entries,
            single_bytes: single_entries * SINGLE_BYTES,
            identities: costs.len(),
            two_mean: mean(costs.values().map(|(two, _)| two).sum()),
            two_most: costs.values().map(|(two, _)| *two).max().unwrap_or_default(),
            single_mean: mean(costs.values().map(|(_, single)| single).sum()),
            single_most: costs.values().map(|(_, single)| *single).max().unwrap_or_default(),
        }
    }
}

/// Measures and reports.
///
/// # Errors
/// [`BenchError`]: an object of the cluster that the parser does not take.
pub fn run(say: Say) -> Result<Report, BenchError> {
    let mut rows = Vec::new();
    let mut last = Comparison::default();
    for size in [Size::SMALL, Size::LARGE] {
        say(&size.to_string());
        let (town, objects) = objects(size)?;
        let (engine, ..) = filled(objects, town.learned());
        let image = engine.image();
        rows.push(row([&size.to_string(), "entries", "KiB", "writes of an identity", "most"]));
        for map in image.sizes() {
            let kib = format!("{:.0}", float(map.bytes()) / 1024.0);
            rows.push(row([&format!("  {}", map.map), &map.entries.to_string(), &kib, "", ""]));
        }
        let comparison = Comparison::of(image);
        let mut form = |what: &str, entries: usize, bytes: usize, mean: f64, most: usize| {
            let kib = format!("{:.0}", float(bytes) / 1024.0);
            rows.push(row([what, &entries.to_string(), &kib, &format!("{mean:.2}"), &most.to_string()]));
        };
        let Comparison { two_entries, two_bytes, two_mean, two_most, .. } = comparison;
        form("  verdicts in two stages", two_entries, two_bytes, two_mean, two_most);
        let Comparison { single_entries, single_bytes, single_mean, single_most, .. } = comparison;
        form("  verdicts in a single map", single_entries, single_bytes, single_mean, single_most);
        rows.push(row(["  identities", &comparison.identities.to_string(), "", "", ""]));
        last = comparison;
    }
    let (two, single) = (float(last.two_bytes) / MIB, float(last.single_bytes) / MIB);
    Ok(Report {
        id: ID,
        figure: two,
        unit: "MiB",
        peer: Some(single),
        ratio: Some(two / single),
        parts: vec![Part {
            what: format!("two stages / a single map, bytes, {}", Size::LARGE),
            figure: two / single,
            limit: 1.0,
            unit: "",
        }],
        rows,
        notes: vec!["bytes are those of keys and values, without the kernel's own".into()],
    })
}
