//! `sluice policy`: unit tests of network policies, and what is wrong in them.

mod check;
mod vectors;

use std::path::PathBuf;
use std::process::ExitCode;

/// What every subcommand is given.
#[derive(Debug, clap::Args)]
struct Common {
    /// YAML or JSON files, or directories of them; `-` is standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Subcommands of `sluice policy`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Run vectors (unit tests of policies: a cluster, steps, and which traffic has to pass) through the compiler that the
    /// nodes use. docs/policy-vectors.md tells how they are written.
    ///
    /// Exit status: 0 if all is as expected, 1 if not, 65 if a file cannot be read.
    Test(vectors::Options),
    /// Look for what is wrong, doubtful or without effect in policies: what the API refuses, rules that others cover,
    /// selectors that select nothing. docs/policy-check.md tells all findings.
    ///
    /// Exit status: 0 if there is no error, 1 if there is one, 65 if something cannot be read.
    Check(check::Options),
}

/// Runs a subcommand.
pub(crate) fn main(command: &Command) -> ExitCode {
    match command {
        Command::Test(options) => vectors::main(options),
        Command::Check(options) => check::main(options),
    }
}
