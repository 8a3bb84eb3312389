//! `sluice policy test`: vectors through the production compiler.

mod lines;
mod report;

use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use sluice_policy_core::settings::Settings;
use sluice_policy_core::vector::judge::{Afresh, Compiled, Judge};
use sluice_policy_core::vector::run::{Counts, Judges, Outcome, run};
use sluice_policy_core::vector::schema::Suite;
use sluice_policy_core::{manifest, oracle};

use super::Common;
use crate::config::Meaning;
use crate::exit::{DATA, FAILED, USAGE};
use crate::files;
use crate::paint::Paint;

/// Options of `sluice policy test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// Ask the reference evaluator beside the compiler. Where they differ, the probe fails.
    #[arg(long)]
    oracle: bool,
    #[command(flatten)]
    meaning: Meaning,
}

/// What came of one file.
struct File<'a> {
    path: &'a Path,
    vectors: usize,
    seconds: f64,
    outcome: Outcome,
}

/// Where the results go.
trait Printer {
    fn file(&mut self, file: &File<'_>) -> io::Result<()>;
    fn unreadable(&mut self, path: &Path, fault: &str) -> io::Result<()>;
    fn end(&mut self, files: usize, counts: Counts) -> io::Result<()>;
}

/// Runs all files.
pub(crate) fn main(options: &Options) -> ExitCode {
    let settings = match options.meaning.settings() {
        Ok(settings) => settings,
        Err(fault) => {
            complain(&fault);
            return ExitCode::from(USAGE);
        }
    };
    let out = io::stdout();
    let paint = Paint { colours: out.is_terminal() };
    let mut out = io::BufWriter::new(out.lock());
    let printed = if options.common.json {
        all(options, &settings, &mut lines::Lines { out: &mut out })
    } else {
        all(options, &settings, &mut report::Report { out: &mut out, paint })
    };
    match printed {
        Ok(code) => code,
        // Whoever reads has seen enough; what was found still counts.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(FAILED),
        Err(error) => {
            complain(&format!("the result cannot be written: {error}"));
            ExitCode::from(FAILED)
        }
    }
}

fn complain(text: &str) {
    // A closed standard error is no reason to stop.
    let _closed = writeln!(io::stderr().lock(), "sluice: {text}");
}

fn all(options: &Options, settings: &Settings, printer: &mut dyn Printer) -> io::Result<ExitCode> {
    let mut counts = Counts::default();
    let mut unreadable = false;
    let mut files = 0;
    for path in &options.common.files {
        let found: Vec<(PathBuf, Result<(), String>)> = match files::at(path) {
            Ok(found) => found.into_iter().map(|path| (path, Ok(()))).collect(),
            Err(fault) => vec![(path.clone(), Err(fault.to_string()))],
        };
        for (path, found) in found {
            files += 1;
            match found.and_then(|()| one(&path, options.oracle, settings)) {
                Ok(file) => {
                    counts += file.outcome.counts;
                    printer.file(&file)?;
                }
                Err(fault) => {
                    unreadable = true;
                    complain(&format!("{}: {fault}", path.display()));
                    printer.unreadable(&path, &fault)?;
                }
            }
        }
    }
    printer.end(files, counts)?;
    Ok(ExitCode::from(match (unreadable, counts.failed) {
        (true, _) => DATA,
        (false, 0) => 0,
        (false, _) => FAILED,
    }))
}

fn one<'a>(path: &'a Path, oracle: bool, settings: &Settings) -> Result<File<'a>, String> {
    let begun = Instant::now();
    let suite = read(path)?;
    let compiled = || Box::new(Compiled::new(settings.clone())) as Box<dyn Judge>;
    let by_oracle = || Box::new(Afresh::new(settings.clone(), oracle::judge)) as Box<dyn Judge>;
    let judges = Judges { judge: &compiled, beside: if oracle { Some(&by_oracle) } else { None } };
    let outcome = run(&suite, judges);
    let vectors = suite.vectors.len() + suite.faulty.len();
    Ok(File { path, vectors, seconds: begun.elapsed().as_secs_f64(), outcome })
}

fn read(path: &Path) -> Result<Suite, String> {
    let bytes = files::bytes(path).map_err(|error| format!("cannot be read: {error}"))?;
    let text = manifest::text(&bytes).map_err(|error| error.to_string())?;
    sluice_policy_core::vector::read(text)
        .map_err(|error| format!("is no file of vectors (docs/policy-vectors.md):\n{error}"))
}
