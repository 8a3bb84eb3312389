//! The address pool in virtual time: the planner that ipamd runs, on vpcsim's model of EC2, and the AWS VPC CNI's pool by its
//! own rules beside it. These need no root, and their figures are the same on every machine.

pub mod adaptive;
pub mod bursts;
pub mod steady;

use std::time::Duration;

use sluice_ipamd_core::plan::Targets;
use sluice_ipamd_sim::node::{Node, SimError, limits_of};
use sluice_ipamd_sim::vpc_cni::VpcCni;
use sluice_vpcsim::model::Settings;

/// `IP_COOLDOWN_PERIOD`.
const COOLDOWN: Duration = Duration::from_secs(30);

/// As many pods as the secondary addresses of an m5.4xlarge serve, and two of the host's network.
const MAX_PODS: u32 = 234;

/// A node of ours, and one of the VPC CNI's with the same targets at rest.
fn pair(kind: &str, targets: &Targets) -> Result<(Node, VpcCni), SimError> {
    let node = Node::new(kind, targets.clone(), COOLDOWN, Settings::aws())?;
    Ok((node, VpcCni::settled(limits_of(kind)?, targets.clone(), COOLDOWN)))
}

/// Targets of WARM_ENI or WARM_PREFIX, WARM_IP and MINIMUM_IP.
fn targets(prefixes: bool, warm: u32, warm_ips: u32, minimum_ips: u32) -> Targets {
    Targets {
        prefixes,
        warm_enis: warm,
        warm_prefixes: warm,
        warm_ips,
        minimum_ips,
        max_pods: MAX_PODS,
        ..Targets::default()
    }
}
