//! sluice-eni: the primary CNI plugin. It gives a pod the address of the VPC that ipamd chose, by a veth pair.
//!
//! Executed by a runtime for each verb: everything is parsed and checked before anything is changed, and what an ADD
//! has changed before it failed is taken back. Standard output carries the answer and nothing else.
#![forbid(unsafe_code)]

mod add;
mod check;
mod del;
mod gate;
mod gc;
mod ipamd;
mod kernel;
mod layout;
mod status;

use std::process::ExitCode;

use serde_json::Value;
use sluice_contract::cni::{Failure, Invocation, NetConf, VersionReply};
use sluice_hostnet::plugin;

/// The plugin's name.
const NAME: &str = "sluice-eni";

#[global_allocator]
static MEMORY: plugin::Arena = plugin::Arena::new();

fn main() -> ExitCode {
    plugin::run(NAME, answer)
}

fn answer(stdin: &[u8]) -> Result<Option<Value>, Failure> {
    let invocation = Invocation::parse(&plugin::environment())?;
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
    plugin::note(NAME, text);
}
