//! What shells and `man` know of the command: made from the options themselves.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;

use crate::exit;

/// Options of `sluice completion`.
#[derive(Debug, clap::Args)]
pub(crate) struct Completion {
    /// The shell: `source <(sluice completion bash)`.
    shell: Shell,
}

/// Options of `sluice man`.
#[derive(Debug, clap::Args)]
pub(crate) struct Man {
    /// The directory that the pages are written to.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Prints what the shell reads.
pub(crate) fn completion(options: &Completion, command: &mut Command) -> ExitCode {
    let mut text = Vec::new();
    clap_complete::generate(options.shell, command, "sluice", &mut text);
    match io::stdout().lock().write_all(&text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

/// Writes the manual: a page for each command.
pub(crate) fn man(options: &Man, command: Command) -> ExitCode {
    let written = std::fs::create_dir_all(&options.directory)
        .and_then(|()| clap_mangen::generate_to(command, &options.directory));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A closed standard error is no reason for another status.
            let _closed = writeln!(io::stderr().lock(), "sluice man: {}: {error}", options.directory.display());
            ExitCode::from(exit::DATA)
        }
    }
}
