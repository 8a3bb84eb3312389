//! `sluice doctor`: what breaks nodes in practice, looked for on this node; each finding with what it is seen by, and its mend.

mod addresses;
mod facts;
mod host;
mod policy;

#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

pub(crate) use self::facts::Facts;
use crate::exit;
use crate::paint::Paint;

/// Options of `sluice doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Show what is well, too.
    #[arg(long)]
    all: bool,
    /// The host's root, where this runs in a container that has it elsewhere (`kubectl debug node`: /host).
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

/// How it stands with something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// Pods suffer from it.
    Broken,
    /// They will, or something does not work as it should.
    Doubtful,
    /// It could not be looked at.
    Unknown,
    /// It is as it should be.
    Well,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What was looked at: `conflist`, `routes`.
    pub(crate) check: &'static str,
    /// How it stands.
    pub(crate) standing: Standing,
    /// In a sentence.
    pub(crate) finding: String,
    /// What it is seen by.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) evidence: Vec<String>,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mend: Option<String>,
}

/// Lines of evidence that are shown of one finding.
const EVIDENCE: usize = 8;

impl Finding {
    pub(crate) fn well(check: &'static str, finding: impl Into<String>) -> Self {
        Self { check, standing: Standing::Well, finding: finding.into(), evidence: Vec::new(), mend: None }
    }

    pub(crate) fn unknown(check: &'static str, why: impl Into<String>) -> Self {
        Self { check, standing: Standing::Unknown, finding: why.into(), evidence: Vec::new(), mend: None }
    }

    pub(crate) fn broken(check: &'static str, finding: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            check,
            standing: Standing::Broken,
            finding: finding.into(),
            evidence: Vec::new(),
            mend: Some(mend.into()),
        }
    }

    pub(crate) fn doubtful(check: &'static str, finding: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { standing: Standing::Doubtful, ..Self::broken(check, finding, mend) }
    }

    pub(crate) fn seen_by(mut self, evidence: impl IntoIterator<Item = String>) -> Self {
        let mut all: Vec<String> = evidence.into_iter().collect();
        if let Some(more @ 1..) = all.len().checked_sub(EVIDENCE) {
            all.truncate(EVIDENCE);
            all.push(format!("and {more} more"));
        }
        self.evidence = all;
        self
    }
}

/// All checks, the worst findings first.
pub(crate) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    addresses::check(facts, &mut all);
    policy::check(facts, &mut all);
    host::check(facts, &mut all);
    all.sort_by_key(|finding| finding.standing);
    all
}

/// Looks, and says what it found. The status is 1 if something is broken.
pub(crate) fn main(options: &Options) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let facts = match runtime {
        Ok(runtime) => runtime.block_on(Facts::gather_in(&options.root)),
        Err(error) => {
            let _closed = writeln!(io::stderr().lock(), "sluice doctor: {error}");
            return ExitCode::from(exit::SOFTWARE);
        }
    };
    let findings = findings(&facts);
    let out = io::stdout();
    let paint = Paint { colours: out.is_terminal() && !options.json };
    let told = if options.json {
        serde_json::to_string_pretty(&findings).map(|text| text + "\n").map_err(io::Error::from)
    } else {
        Ok(text(&findings, options.all, paint))
    };
    match told.and_then(|text| out.lock().write_all(text.as_bytes())) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ if findings.iter().any(|finding| finding.standing == Standing::Broken) => ExitCode::from(exit::FAILED),
        _ => ExitCode::SUCCESS,
    }
}

/// For people.
pub(crate) fn text(findings: &[Finding], all: bool, paint: Paint) -> String {
    let mut text = String::new();
    let shown = findings.iter().filter(|finding| all || finding.standing != Standing::Well);
    for Finding { check, standing, finding, evidence, mend } in shown {
        let word = match standing {
            Standing::Broken => paint.bad("broken  "),
            Standing::Doubtful => paint.heading("doubtful"),
            Standing::Unknown => paint.dim("unknown "),
            Standing::Well => paint.good("well    "),
        };
        let _infallible = writeln!(text, "{word}  {check}: {finding}");
        for line in evidence {
            let _infallible = writeln!(text, "            {}", paint.dim(line));
        }
        if let Some(mend) = mend {
            let _infallible = writeln!(text, "          → {mend}");
        }
    }
    let count = |wanted: Standing| findings.iter().filter(|finding| finding.standing == wanted).count();
    let (broken, doubtful, unknown) = (count(Standing::Broken), count(Standing::Doubtful), count(Standing::Unknown));
    let _infallible = writeln!(
        text,
        "{}: {broken} broken, {doubtful} doubtful, {unknown} unknown, {} well",
        if broken == 0 { paint.good("checked") } else { paint.bad("checked") },
        count(Standing::Well),
    );
    text
}
