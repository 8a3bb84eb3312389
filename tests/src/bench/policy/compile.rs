//! How long it takes from objects to an image, at two sizes.

use super::super::report::{Part, Report};
use super::super::stats::{median, millis};
use super::super::{BenchError, Say};
use super::{Size, filled, float, objects, row};

/// The benchmark's name for programs.
pub const ID: &str = "policy-compile";
/// What is measured, in one line.
pub const ABOUT: &str = "from a cluster's objects to the image of the kernel's maps, 250 local pods";

/// How often it is done, small and large.
const ROUNDS: [usize; 2] = [9, 3];
/// The promise at the small size, in ms.
const LIMIT: f64 = 200.0;
/// What an object may cost at the large size, as a multiple of what it costs at the small one.
const GROWTH: f64 = 2.0;

/// Measures and reports.
///
/// # Errors
/// [`BenchError`]: an object of the cluster that the parser does not take.
pub fn run(say: Say) -> Result<Report, BenchError> {
    let mut rows = vec![row(["", "objects", "entries", "told", "committed", "together", "by the clock", "an object"])];
    let mut times = Vec::new();
    for (size, rounds) in [Size::SMALL, Size::LARGE].into_iter().zip(ROUNDS) {
        say(&format!("{size}, {rounds} times"));
        let (town, objects) = objects(size)?;
        let mut told_in = Vec::new();
        let mut together = Vec::new();
        let mut clock = Vec::new();
        let mut entries = 0;
        for _ in 0..rounds {
            let (engine, told, all) = filled(objects.clone(), town.learned());
            told_in.push(millis(told.cpu));
            together.push(millis(all.cpu));
            clock.push(millis(all.wall));
            entries = engine.image().sizes().iter().map(|size| size.entries).sum();
        }
        let (told, all) = (median(&told_in), median(&together));
        let each = all * 1e3 / float(size.objects());
        times.push((all, each));
        rows.push(vec![
            size.to_string(),
            objects.len().to_string(),
            entries.to_string(),
            format!("{told:.1} ms"),
            format!("{:.1} ms", all - told),
            format!("{all:.1} ms"),
            format!("{:.1} ms", median(&clock)),
            format!("{each:.2} us"),
        ]);
    }
    let [(small, small_each), (_, large_each)] = times.as_slice() else { return Err(BenchError::Incomplete) };
    let growth = large_each / small_each;
    Ok(Report {
        id: ID,
        figure: *small,
        unit: "ms",
        peer: None,
        ratio: None,
        parts: vec![
            Part { what: format!("everything compiled, {}", Size::SMALL), figure: *small, limit: LIMIT, unit: "ms" },
            Part { what: "an object at the large size / at the small".into(), figure: growth, limit: GROWTH, unit: "" },
        ],
        rows,
        notes: vec!["medians of processor time; an object is a policy or a pod; entries are those of all maps".into()],
    })
}
