//! What a benchmark tells: one line for programs, a table for people.

use serde::Serialize;
use serde_json::{Number, Value};

/// The result of one benchmark.
#[derive(Debug, Clone)]
pub struct Report {
    /// The number of the promise: `S-01`.
    pub id: &'static str,
    /// The figure that the promise bounds.
    pub figure: f64,
    /// Its unit.
    pub unit: &'static str,
    /// The peer's figure in the same run, if there is a peer.
    pub peer: Option<f64>,
    /// The median over the rounds of the product's figure divided by the peer's.
    pub ratio: Option<f64>,
    /// Each part of the promise: what it says, what was measured, and whether it holds.
    pub parts: Vec<Part>,
    /// The rows of the table that shows the rest.
    pub rows: Vec<Vec<String>>,
    /// What is to be said beside the table, a line each.
    pub notes: Vec<String>,
}

/// One part of a promise.
#[derive(Debug, Clone)]
pub struct Part {
    /// What is measured: `p50 of ADD, one at a time`.
    pub what: String,
    /// What was measured.
    pub figure: f64,
    /// The most it may be.
    pub limit: f64,
    /// Unit of both, empty for ratios.
    pub unit: &'static str,
}

impl Part {
    /// Whether the figure is within its limit.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.figure <= self.limit
    }
}

#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    figure: Value,
    unit: &'a str,
    peer: Value,
    ratio: Value,
    holds: bool,
}

impl Report {
    /// Whether every part of the promise holds.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.parts.iter().all(Part::holds)
    }

    /// One line of JSON.
    #[must_use]
    pub fn json(&self) -> String {
        let number = |value: Option<f64>| {
            value.and_then(|value| Number::from_f64((value * 1e3).round() / 1e3)).map_or(Value::Null, Value::Number)
        };
        let line = Line {
            id: self.id,
            figure: number(Some(self.figure)),
            unit: self.unit,
            peer: number(self.peer),
            ratio: number(self.ratio),
            holds: self.holds(),
        };
        serde_json::to_string(&line).unwrap_or_default()
    }

    /// The table, and the promise part by part.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = table(&self.rows);
        text.push('\n');
        for note in &self.notes {
            text.push_str(&format!("  {note}\n"));
        }
        if !self.notes.is_empty() {
            text.push('\n');
        }
        let parts: Vec<Vec<String>> = self
            .parts
            .iter()
            .map(|part| {
                let number = |value: f64| format!("{value:.2} {}", part.unit).trim_end().to_owned();
                let verdict = if part.holds() { "holds" } else { "DOES NOT HOLD" };
                vec![part.what.clone(), number(part.figure), format!("<= {}", number(part.limit)), verdict.into()]
            })
            .collect();
        text.push_str(&table(&parts));
        text
    }
}

/// Columns as wide as their longest cell; the first to the left, the others to the right.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell: &String| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::from("  ");
        for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
            line.push_str(&if i == 0 { format!("{cell:<width$}") } else { format!("  {cell:>width$}") });
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let part = |figure, limit| Part { what: "time".into(), figure, limit, unit: "ms" };
        Report {
            id: "S-01",
            figure: 81.234_56,
            unit: "ms",
            peer: Some(900.0),
            ratio: None,
            parts: vec![part(8.0, 10.0), part(81.2, 250.0)],
            rows: vec![vec!["pods".into(), "p50".into()], vec!["1".into(), "123.4".into()]],
            notes: vec!["A/A 1.02".into()],
        }
    }

    #[test]
    fn programs_get_one_line() {
        let line = r#"{"id":"S-01","figure":81.235,"unit":"ms","peer":900.0,"ratio":null,"holds":true}"#;
        assert_eq!(report().json(), line);
    }

    #[test]
    fn one_part_that_does_not_hold_breaks_the_promise() {
        let mut report = report();
        report.parts[1].limit = 80.0;
        assert!(!report.holds());
        assert_eq!(
            report.text(),
            "  pods    p50\n  1     123.4\n\n  A/A 1.02\n\n  time   8.00 ms  <= 10.00 ms          holds\n  time  81.20 ms  <= 80.00 ms  DOES NOT HOLD\n"
        );
        report.parts[0].figure = f64::NAN;
        assert!(!report.parts[0].holds(), "what was not measured does not hold");
    }
}
