//! CHECK: is the policy still in force on the sandbox's interfaces? What they are is looked up anew; what stands at them is
//! policyd's to say.

use std::path::Path;
use std::time::{Duration, Instant};

use sluice_contract::cni::{ErrorCode, Failure, NetConf, PolicyConf, chain};
use sluice_contract::id::{Attachment, ContainerId, IfName};
use sluice_contract::rpc::PolicyCheck;
use sluice_hostnet::plugin::{on_runtime, sandbox};

use crate::find::{Whose, find};
use crate::policyd::Policyd;

/// How long a CHECK waits for a policyd that is gone.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long it waits for an answer.
const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) fn run(conf: &NetConf, container: ContainerId, netns_path: &Path, ifname: IfName) -> Result<(), Failure> {
    let options = PolicyConf::of(conf)?;
    // NetConf::parse has made sure of it.
    let result = conf.prev_result()?.unwrap_or_default();
    let netns = sandbox(netns_path)?;
    let attachment = Attachment { container, ifname, network: conf.name.clone() };
    // By now there may be others, of further networks.
    let found = on_runtime(find(&result, &attachment.ifname, &netns, netns_path, Whose::Reported))?;
    let interfaces = found.map_err(|error| {
        let code = if error.code() == ErrorCode::Kernel { ErrorCode::Kernel } else { ErrorCode::CheckFailed };
        Failure::new(code, format!("{attachment} is not as ADD left it: {}", chain(&error)))
    })?;
    let policyd = Policyd { socket: &options.policyd_socket, deadline: Instant::now() + DEADLINE, patience: PATIENCE };
    let reply = policyd.check(PolicyCheck { attachment: attachment.clone(), interfaces })?;
    if reply.differences.is_empty() {
        return Ok(());
    }
    let text = format!("the policy of {attachment} is not in force: {}", reply.differences.join("; "));
    Err(Failure::new(ErrorCode::CheckFailed, text))
}
