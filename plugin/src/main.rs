//! sluice-eni: the primary CNI plugin. It gives a pod the address of the VPC that ipamd chose, by a veth pair.
//!
//! Executed by a runtime for each verb: everything is parsed and checked before anything is changed, and what an ADD
//! has changed before it failed is taken back. Standard output carries the answer and nothing else.
#![forbid(unsafe_code)]

mod add;
mod check;
mod config;
mod del;
mod failure;
mod gate;
mod gc;
mod ipamd;
mod kernel;
mod layout;
mod status;
mod tombstone;

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

use serde_json::Value;
use sluice_contract::cni::{ErrorCode, Invocation, NetConf, STDIN_LIMIT, SpecVersion, VersionReply};

use crate::failure::Failure;

fn main() -> ExitCode {
    let stdin = match read_stdin() {
        Ok(stdin) => stdin,
        Err(error) => {
            let failure = Failure::of(ErrorCode::Io, &error);
            return print(&failure.object(SpecVersion::NEWEST), ExitCode::FAILURE);
        }
    };
    match answer(&stdin) {
        Ok(Some(value)) => print(&value, ExitCode::SUCCESS),
        Ok(None) => ExitCode::SUCCESS,
        Err(failure) => {
            note(&failure.to_string());
            let version = NetConf::version_of(&stdin).unwrap_or(SpecVersion::NEWEST);
            print(&failure.object(version), ExitCode::FAILURE)
        }
    }
}

/// All of standard input, or a byte more than is read of a configuration. A person at a terminal is not waited for.
fn read_stdin() -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let stdin = std::io::stdin().lock();
    if !stdin.is_terminal() {
        let limit = u64::try_from(STDIN_LIMIT).unwrap_or(u64::MAX);
        stdin.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn answer(stdin: &[u8]) -> Result<Option<Value>, Failure> {
    let invocation = Invocation::parse(&config::environment())?;
    if invocation == Invocation::Version {
        return Ok(serde_json::to_value(VersionReply::to(stdin)).ok());
    }
    let conf = NetConf::parse(invocation.verb(), stdin)?;
    match invocation {
        Invocation::Add { container, netns, ifname, args } => {
            let result = add::run(&conf, container, &netns, ifname, &args.pod)?;
            Ok(Some(result.to_value(conf.version)))
        }
        Invocation::Del { container, netns, ifname, args } => {
            del::run(&conf, container, netns.as_deref(), ifname, args.pod).map(|()| None)
        }
        Invocation::Check { container, netns, ifname, args } => {
            check::run(&conf, container, &netns, ifname, &args.pod).map(|()| None)
        }
        Invocation::Gc => gc::run(&conf).map(|()| None),
        Invocation::Status => status::run(&conf).map(|()| None),
        Invocation::Version => Ok(None),
    }
}

/// One line for people: runtimes log a plugin's standard error.
pub(crate) fn note(text: &str) {
    // Nobody reads it if it cannot be written.
    drop(writeln!(std::io::stderr(), "sluice-eni: {text}"));
}

fn print(value: &impl serde::Serialize, status: ExitCode) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match serde_json::to_writer(&mut out, value).map_err(std::io::Error::from).and_then(|()| out.flush()) {
        Ok(()) => status,
        Err(error) => {
            note(&format!("cannot write the answer: {error}"));
            ExitCode::FAILURE
        }
    }
}
