//! What the process of a CNI plugin does, whichever plugin it is: it reads what the runtime asks, answers on standard
//! output, asks its daemon, and leaves a tombstone where the daemon cannot be told.

mod arena;
mod client;
pub mod tombstone;

use std::future::Future;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::Value;
use sluice_contract::cni::{Environment, ErrorCode, Failure, NetConf, STDIN_LIMIT, SpecVersion};

use crate::netns::Namespace;

pub use arena::Arena;
pub use client::{Client, ClientError};

/// The body of `main`: `answer` gets standard input, whose value goes to standard output, and its failure as an error
/// object. `us` is the plugin's name, for its lines on standard error.
#[must_use]
pub fn run(us: &str, answer: impl FnOnce(&[u8]) -> Result<Option<Value>, Failure>) -> ExitCode {
    let stdin = match read_stdin() {
        Ok(stdin) => stdin,
        Err(error) => {
            let failure = Failure::of(ErrorCode::Io, &error);
            return print(us, &failure.object(SpecVersion::NEWEST), ExitCode::FAILURE);
        }
    };
    match answer(&stdin) {
        Ok(Some(value)) => print(us, &value, ExitCode::SUCCESS),
        Ok(None) => ExitCode::SUCCESS,
        Err(failure) => {
            note(us, &failure.to_string());
            let version = NetConf::version_of(&stdin).unwrap_or(SpecVersion::NEWEST);
            print(us, &failure.object(version), ExitCode::FAILURE)
        }
    }
}

/// The variables of the CNI protocol. Bytes that are not UTF-8 become U+FFFD, which no grammar of them allows.
#[must_use]
pub fn environment() -> Environment {
    Environment::read(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
}

/// One line for people: runtimes log a plugin's standard error.
pub fn note(us: &str, text: &str) {
    // Nobody reads it if it cannot be written.
    drop(writeln!(io::stderr(), "{us}: {text}"));
}

/// The sandbox's namespace, open, so that it is the same one from here on.
///
/// # Errors
/// Code 4 when it cannot be opened, or is the host's own.
pub fn sandbox(path: &Path) -> Result<Namespace, Failure> {
    let netns = Namespace::open(path).map_err(|error| Failure::of(ErrorCode::InvalidEnvironment, &error))?;
    if netns.is_current() {
        let text = format!("CNI_NETNS {} is the host's own namespace", path.display());
        return Err(Failure::new(ErrorCode::InvalidEnvironment, text));
    }
    Ok(netns)
}

/// Runs `work` on a runtime of the calling thread.
///
/// # Errors
/// Code 5 when there can be no runtime.
pub fn on_runtime<F: Future>(work: F) -> Result<F::Output, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(ErrorCode::Io, format!("cannot start: {error}")))?;
    Ok(runtime.block_on(work))
}

/// All of standard input, or a byte more than is read of a configuration. A person at a terminal is not waited for.
fn read_stdin() -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let stdin = io::stdin().lock();
    if !stdin.is_terminal() {
        let limit = u64::try_from(STDIN_LIMIT).unwrap_or(u64::MAX);
        stdin.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn print(us: &str, value: &impl Serialize, status: ExitCode) -> ExitCode {
    let mut out = io::stdout().lock();
    match serde_json::to_writer(&mut out, value).map_err(io::Error::from).and_then(|()| out.flush()) {
        Ok(()) => status,
        Err(error) => {
            note(us, &format!("cannot write the answer: {error}"));
            ExitCode::FAILURE
        }
    }
}
