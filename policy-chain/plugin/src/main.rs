//! sluice-policy: the chained CNI plugin. It has policyd put the policy of a pod in force on the interfaces that the
//! plugins before it have made, and hands their result on when that is done.
//!
//! It changes nothing in the kernel itself, and nothing in the result. What it adds to policyd's knowledge is which
//! interfaces there are: named by `prevResult`, found in the kernel.
#![forbid(unsafe_code)]

mod add;
mod check;
mod del;
mod find;
mod gc;
mod policyd;
mod reported;
mod status;

use std::process::ExitCode;

use serde_json::Value;
use sluice_contract::cni::{Failure, Invocation, NetConf, VersionReply};
use sluice_hostnet::plugin;

/// The plugin's name.
const NAME: &str = "sluice-policy";

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
            add::run(&conf, container, &netns, ifname, args.pod).map(Some)
        }
        Invocation::Del { container, ifname, args, .. } => {
            del::run(&conf, container, ifname, args.pod);
            Ok(None)
        }
        Invocation::Check { container, netns, ifname, .. } => {
            check::run(&conf, container, &netns, ifname).map(|()| None)
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
