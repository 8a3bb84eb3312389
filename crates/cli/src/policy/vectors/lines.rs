//! The results as JSON, an object a line.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};
use sluice_policy_core::vector::run::{Counts, Failure, Gate, Wrong};

use super::{File, Printer};

/// The last line.
#[derive(Debug, Serialize)]
struct Totals {
    passed: usize,
    failed: usize,
    undefined: usize,
    skipped: usize,
}

/// Prints JSON.
pub(super) struct Lines<'a> {
    pub(super) out: &'a mut dyn Write,
}

impl Lines<'_> {
    fn line(&mut self, value: &Value) -> io::Result<()> {
        writeln!(self.out, "{value}")
    }
}

impl Printer for Lines<'_> {
    fn file(&mut self, file: &File<'_>) -> io::Result<()> {
        let path = file.path.to_string_lossy();
        for failure in &file.outcome.failures {
            self.line(&self::failure(&path, failure))?;
        }
        for one in &file.outcome.faulty {
            let issues: Vec<String> = one.issues.iter().map(ToString::to_string).collect();
            self.line(&json!({ "type": "faulty", "file": path, "vector": one.vector.as_ref(), "issues": issues }))?;
        }
        for one in &file.outcome.undefined {
            self.line(&json!({
                "type": "undefined",
                "file": path,
                "vector": one.vector.as_ref(),
                "tag": one.tag.as_ref(),
                "probes": one.probes,
                "agree": one.agree,
            }))?;
        }
        let mut line = json!({ "type": "file", "file": path, "vectors": file.vectors });
        merge(&mut line, numbers(file.outcome.counts));
        self.line(&line)?;
        self.out.flush()
    }

    fn unreadable(&mut self, path: &Path, fault: &str) -> io::Result<()> {
        self.line(&json!({ "type": "unreadable", "file": path.to_string_lossy(), "message": fault }))
    }

    fn end(&mut self, _files: usize, counts: Counts) -> io::Result<()> {
        let Counts { passed, failed, undefined, skipped } = counts;
        let totals = Totals { passed, failed, undefined, skipped };
        writeln!(self.out, "{}", serde_json::to_string(&totals)?)?;
        self.out.flush()
    }
}

fn numbers(counts: Counts) -> Value {
    let Counts { passed, failed, undefined, skipped } = counts;
    json!({ "passed": passed, "failed": failed, "undefined": undefined, "skipped": skipped })
}

fn merge(line: &mut Value, more: Value) {
    if let (Value::Object(line), Value::Object(more)) = (line, more) {
        line.extend(more);
    }
}

fn failure(path: &str, failure: &Failure) -> Value {
    let mut line = json!({
        "type": "failure",
        "file": path,
        "vector": failure.vector.as_ref(),
        "title": failure.title.as_ref(),
        "mode": failure.mode.as_str(),
        "step": failure.step.0,
        "stepName": failure.step.1.as_ref(),
        "row": failure.path,
        "from": failure.from.to_string(),
        "to": failure.to.to_string(),
        "port": failure.port,
        "protocol": failure.protocol.to_string(),
        "family": failure.family.as_str(),
        "expected": failure.expected.as_str(),
        "got": failure.got.as_str(),
        "wrong": failure.wrong.as_str(),
        "gates": failure.gates.iter().map(gate).collect::<Vec<_>>(),
    });
    if let Some(request) = &failure.request {
        merge(&mut line, json!({ "request": request }));
    }
    match &failure.wrong {
        Wrong::Audit(recorded) => merge(&mut line, json!({ "recorded": recorded.as_str() })),
        Wrong::Judges(difference) => merge(&mut line, json!({ "difference": difference })),
        Wrong::Verdict | Wrong::Backends | Wrong::Rule | Wrong::NotOpen => {}
    }
    line
}

fn gate(gate: &Gate) -> Value {
    json!({
        "direction": gate.direction.as_str(),
        "subject": gate.subject,
        "peer": gate.peer,
        "service": gate.service,
        "verdict": gate.verdict,
        "rule": gate.rule,
        "answer": gate.answer,
    })
}
