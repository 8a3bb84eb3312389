//! What came of a run, for people and for programs.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};
use sluice_policy_core::model::Text;
use sluice_policy_core::vector::run::{Counts, Gate};
use sluice_policy_core::vector::schema::{Expected, Family, Mode};

/// Failures that are kept in full; the others are only counted.
const MAX_FAILURES: usize = 10_000;

/// A probe that is not as expected.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Id of the vector.
    pub vector: Text,
    /// How pods are reached.
    pub mode: Mode,
    /// The family.
    pub family: Family,
    /// The step's number, from 1, and name.
    pub step: (usize, Text),
    /// Path of the row in the file.
    pub path: String,
    /// Source, destination, port and protocol in words.
    pub probe: String,
    /// What is expected.
    pub expected: Expected,
    /// What came back.
    pub got: String,
    /// The gates on the way, and the rule that decides at each, as the compiler says.
    pub gates: Vec<Gate>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vector, mode, family, step, path, probe, expected, got, gates } = self;
        writeln!(f, "FAILED {vector} ({}, {}), step {} {}", mode.as_str(), family.as_str(), step.0, step.1)?;
        write!(f, "  {probe}: expected {}, was {got}\n  {path}", expected.as_str())?;
        gates
            .iter()
            .try_for_each(|gate| write!(f, "\n  {} of {} {}: {}", gate.direction, gate.subject, gate.peer, gate.answer))
    }
}

impl Failure {
    /// As an object.
    #[must_use]
    pub fn json(&self) -> Value {
        let gate = |gate: &Gate| {
            json!({"direction": gate.direction.as_str(), "subject": gate.subject, "peer": gate.peer,
                "verdict": gate.verdict, "rule": gate.rule})
        };
        json!({"type": "failure", "vector": &*self.vector, "mode": self.mode.as_str(), "family": self.family.as_str(),
            "step": {"number": self.step.0, "name": &*self.step.1}, "path": self.path, "probe": self.probe,
            "expected": self.expected.as_str(), "got": self.got,
            "gates": self.gates.iter().map(gate).collect::<Vec<_>>()})
    }
}

/// All of a run.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Probes.
    pub counts: Counts,
    /// What is not as expected.
    pub failures: Vec<Failure>,
    /// Why probes were not sent, and how many for each reason.
    pub skipped: BTreeMap<String, usize>,
    /// Vectors that nobody can judge: probes, and those that are as the file says.
    pub undefined: BTreeMap<Text, (usize, usize)>,
}

impl std::ops::AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.counts += other.counts;
        self.failures.extend(other.failures);
        self.failures.truncate(MAX_FAILURES);
        for (why, probes) in other.skipped {
            *self.skipped.entry(why).or_default() += probes;
        }
        for (vector, (probes, agree)) in other.undefined {
            let sum = self.undefined.entry(vector).or_default();
            *sum = (sum.0 + probes, sum.1 + agree);
        }
    }
}

impl Report {
    /// Counts a failure.
    pub fn fail(&mut self, failure: Failure) {
        self.counts.failed += 1;
        if self.failures.len() < MAX_FAILURES {
            self.failures.push(failure);
        }
    }

    /// Counts probes that are not sent.
    pub fn skip(&mut self, why: &str, probes: usize) {
        self.counts.skipped += probes;
        *self.skipped.entry(why.to_owned()).or_default() += probes;
    }

    /// The last line.
    #[must_use]
    pub fn json(&self) -> Value {
        let Counts { passed, failed, undefined, skipped } = self.counts;
        json!({"passed": passed, "failed": failed, "undefined": undefined, "skipped": skipped, "reasons": self.skipped})
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (vector, (probes, agree)) in &self.undefined {
            writeln!(f, "not judged: {vector}: {agree} of {probes} probes are as the file says")?;
        }
        for (why, probes) in &self.skipped {
            writeln!(f, "skipped: {probes} probes: {why}")?;
        }
        let Counts { passed, failed, undefined, skipped } = self.counts;
        write!(f, "{passed} passed, {failed} failed, {undefined} undefined, {skipped} skipped")
    }
}
