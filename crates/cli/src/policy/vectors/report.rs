//! The results for people: a line a file, and what failed by vector.

use std::io::{self, Write};
use std::path::Path;

use sluice_policy_core::vector::run::{Counts, Failure, Outcome, Wrong, port_text};
use sluice_policy_core::vector::schema::{Family, Mode};

use super::{File, Printer};
use crate::paint::Paint;

/// Failures of a vector that are shown.
const SHOWN: usize = 10;

/// Prints for people.
pub(super) struct Report<'a> {
    pub(super) out: &'a mut dyn Write,
    pub(super) paint: Paint,
}

impl Printer for Report<'_> {
    fn file(&mut self, file: &File<'_>) -> io::Result<()> {
        let outcome = &file.outcome;
        let mark = if outcome.counts.failed == 0 { self.paint.good("✓") } else { self.paint.bad("✗") };
        let vectors = counted(file.vectors, "vector");
        let path = self.paint.heading(&file.path.display().to_string());
        let seconds = self.paint.dim(&format!("{:.1} s", file.seconds));
        writeln!(self.out, "{mark} {path}  {vectors}, {}  {seconds}", self.counts(outcome.counts))?;
        self.failures(outcome)?;
        for one in &outcome.faulty {
            writeln!(
                self.out,
                "  {}  {}",
                self.paint.heading(&one.vector),
                self.paint.bad("cannot be run as it is written")
            )?;
            for issue in &one.issues {
                writeln!(self.out, "    {issue}")?;
            }
        }
        for one in &outcome.undefined {
            let agree = if one.agree == one.probes {
                format!("{} as written", counted(one.probes, "probe"))
            } else {
                format!("{} of {} as written", one.agree, counted(one.probes, "probe"))
            };
            let line = format!("  not judged: {}  {agree} ({})", one.vector, one.tag);
            writeln!(self.out, "{}", self.paint.dim(&line))?;
        }
        self.out.flush()
    }

    fn unreadable(&mut self, path: &Path, _fault: &str) -> io::Result<()> {
        writeln!(
            self.out,
            "{} {}  cannot be read",
            self.paint.bad("✗"),
            self.paint.heading(&path.display().to_string())
        )
    }

    fn end(&mut self, files: usize, counts: Counts) -> io::Result<()> {
        if files > 1 {
            writeln!(self.out, "{}, {}", counted(files, "file"), self.counts(counts))?;
        }
        self.out.flush()
    }
}

impl Report<'_> {
    fn counts(&self, counts: Counts) -> String {
        let mut parts = Vec::new();
        if counts.failed > 0 {
            parts.push(self.paint.bad(&format!("{} failed", grouped(counts.failed))));
        }
        parts.push(format!("{} passed", grouped(counts.passed)));
        if counts.undefined > 0 {
            parts.push(format!("{} not judged", grouped(counts.undefined)));
        }
        format!("{}: {}", counted(counts.total(), "probe"), parts.join(", "))
    }

    /// What failed, by vector and mode, and in it by step.
    fn failures(&mut self, outcome: &Outcome) -> io::Result<()> {
        let same = |a: &Failure, b: &Failure| a.vector == b.vector && a.mode == b.mode;
        for group in outcome.failures.chunk_by(same) {
            let Some(first) = group.first() else { continue };
            let mode = match first.mode {
                Mode::PodIp => "",
                Mode::ServiceIp => ", through Services",
            };
            let title = if first.title == first.vector { String::new() } else { format!("  {}", first.title) };
            let number = format!("{} failed{mode}", counted(group.len(), "probe"));
            writeln!(self.out, "\n  {}{title}  {}", self.paint.heading(&first.vector), self.paint.bad(&number))?;
            let mut step = None;
            for failure in group.iter().take(SHOWN) {
                if step != Some(&failure.step) {
                    step = Some(&failure.step);
                    let name = if failure.step.1.is_empty() { String::new() } else { format!(": {}", failure.step.1) };
                    writeln!(self.out, "    step {}{name}", failure.step.0)?;
                }
                self.failure(failure)?;
            }
            if group.len() > SHOWN {
                let more = format!("    and {} more; --json tells all", grouped(group.len() - SHOWN));
                writeln!(self.out, "{}", self.paint.dim(&more))?;
            }
            for issue in outcome.issues.get(&first.vector).into_iter().flatten() {
                writeln!(self.out, "    {}", self.paint.dim(&format!("note: {issue}")))?;
            }
        }
        if !outcome.failures.is_empty() {
            if outcome.not_kept > 0 {
                writeln!(self.out, "\n  and {} more failures that were not kept", grouped(outcome.not_kept))?;
            }
            writeln!(self.out)?;
        }
        Ok(())
    }

    fn failure(&mut self, failure: &Failure) -> io::Result<()> {
        let family = if failure.family == Family::V6 { " (IPv6)" } else { "" };
        let request = failure.request.as_ref().map_or_else(String::new, |request| format!("  {request}"));
        let (from, to) = (&failure.from, &failure.to);
        let (expected, got) = (failure.expected.as_str(), failure.got.as_str());
        let fault = match &failure.wrong {
            Wrong::Verdict => format!("expected {expected}, got {got}"),
            Wrong::Backends => format!("expected {expected} by every backend, got {got} by this one"),
            Wrong::Audit(recorded) => format!("{got} as expected, but recorded as {}", recorded.as_str()),
            Wrong::Rule => format!("{got} as expected, but by another rule"),
            Wrong::Judges(_) => "the compiler and the oracle differ: please report this".to_owned(),
            Wrong::NotOpen => "no earlier row opened this connection".to_owned(),
        };
        writeln!(
            self.out,
            "      {from} -> {to}  {}{family}{request}  {}  {}",
            port_text(failure.protocol, failure.port),
            self.paint.bad(&fault),
            self.paint.dim(&failure.path),
        )?;
        if let Wrong::Judges(difference) = &failure.wrong {
            writeln!(self.out, "        {difference}")?;
        }
        for gate in &failure.gates {
            let service = if gate.service { " (a Service)" } else { "" };
            let asked = format!("{} of {} {}{service}", gate.direction, gate.subject, gate.peer);
            writeln!(self.out, "        {asked}: {}", gate.answer)?;
        }
        if failure.gates.is_empty() && !matches!(failure.wrong, Wrong::NotOpen) {
            writeln!(self.out, "        no gate is on this way, or no backend behind the Service")?;
        }
        Ok(())
    }
}

/// `1 probe`, `58,840 probes`.
fn counted(number: usize, what: &str) -> String {
    format!("{} {what}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// A number with a comma at every third digit.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let length = digits.len();
    let comma = |index: usize| index > 0 && (length - index).is_multiple_of(3);
    digits
        .chars()
        .enumerate()
        .flat_map(|(index, digit)| comma(index).then_some(',').into_iter().chain([digit]))
        .collect()
}
