//! GC: policyd is told which attachments live. It has all that there is of the others.

use std::time::{Duration, Instant};

use sluice_contract::cni::{ErrorCode, Failure, NetConf, PolicyConf};
use sluice_contract::rpc::GcRequest;

use crate::policyd::Policyd;

/// How long a GC waits for a policyd that is gone.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long it waits for an answer.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn run(conf: &NetConf) -> Result<(), Failure> {
    let options = PolicyConf::of(conf)?;
    // NetConf::parse has made sure of the list; without one, nothing may be taken away.
    let Some(valid) = conf.valid_attachments.clone() else {
        return Err(Failure::new(ErrorCode::InvalidConfig, "GC without a list of valid attachments"));
    };
    let policyd = Policyd { socket: &options.policyd_socket, deadline: Instant::now() + DEADLINE, patience: PATIENCE };
    Ok(policyd.gc(GcRequest { network: conf.name.clone(), valid })?)
}
