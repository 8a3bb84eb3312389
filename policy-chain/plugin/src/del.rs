//! DEL: policyd is told, or a tombstone is left for it. It succeeds whatever happens: the gate stands at an interface that
//! the plugins before this one take away, and nothing passes it without an endpoint.

use std::path::Path;
use std::time::{Duration, Instant};

use sluice_contract::cni::{NetConf, PolicyConf, chain};
use sluice_contract::id::{Attachment, ContainerId, IfName, PodRef};
use sluice_contract::node::{POLICY_TOMBSTONE_DIR, RUN_DIR};
use sluice_contract::rpc::PolicyDel;
use sluice_hostnet::plugin::tombstone;

use crate::note;
use crate::policyd::Policyd;

/// How long a DEL waits for a policyd that is gone, before it leaves a tombstone.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long it waits for an answer, less the client's second of grace.
const DEADLINE: Duration = Duration::from_secs(1);

pub(crate) fn run(conf: &NetConf, container: ContainerId, ifname: IfName, pod: PodRef) {
    // A conflist that somebody has broken while the pod ran must not keep the pod from being deleted.
    let options = PolicyConf::of(conf).unwrap_or_else(|error| {
        note(&format!("going on with the defaults: {}", chain(&error)));
        PolicyConf::default()
    });
    let attachment = Attachment { container, ifname, network: conf.name.clone() };
    let request = PolicyDel { attachment, pod };
    let policyd = Policyd { socket: &options.policyd_socket, deadline: Instant::now() + DEADLINE, patience: PATIENCE };
    match policyd.del(request.clone()) {
        Ok(()) => {}
        Err(error) if error.is_unknown() => {}
        Err(error) => {
            note(&format!("leaving a tombstone: {}", chain(&error)));
            if let Err(error) =
                tombstone::leave(&below(&options.run_dir, POLICY_TOMBSTONE_DIR), &request.attachment, &request)
            {
                note(&format!("policyd will know from the interface's end alone: {}", chain(&error)));
            }
        }
    }
}

/// A path below the node's state directory, in the one that the configuration names.
pub(crate) fn below(run_dir: &Path, path: &str) -> std::path::PathBuf {
    run_dir.join(Path::new(path).strip_prefix(RUN_DIR).unwrap_or(Path::new("policy")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_contract::node::POLICYD_READY;

    #[test]
    fn what_is_policyds_lies_in_its_own_directory() {
        assert_eq!(below(Path::new("/x"), POLICY_TOMBSTONE_DIR), Path::new("/x/policy/tombstones"));
        assert_eq!(below(Path::new(RUN_DIR), POLICYD_READY), Path::new(POLICYD_READY));
    }
}
