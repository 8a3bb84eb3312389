//! The static settings that adaptive mode is compared with.

use sluice_ipamd_core::arrivals::Band;
use sluice_ipamd_core::plan::{Targets, WarmMode};

/// A setting and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arm {
    /// As it would be set.
    pub name: String,
    /// What the planner has of it.
    pub targets: Targets,
}

/// `WARM_IP_TARGET` alone.
const WARM_IPS: [u32; 10] = [1, 2, 3, 5, 8, 10, 15, 20, 25, 30];

/// `WARM_IP_TARGET` and `MINIMUM_IP_TARGET`.
const PAIRS: [(u32, u32); 8] = [(1, 30), (5, 30), (5, 60), (10, 60), (15, 60), (20, 60), (5, 100), (10, 100)];

/// Adaptive mode on a node of so many pods.
#[must_use]
pub fn adaptive(prefixes: bool, max_pods: u32) -> Targets {
    Targets { mode: WarmMode::Adaptive(Band::default()), prefixes, max_pods, ..Targets::default() }
}

/// The static settings, in single addresses or in prefixes, on a node of so many pods.
#[must_use]
pub fn fixed(prefixes: bool, max_pods: u32) -> Vec<Arm> {
    let plain = Targets { prefixes, max_pods, ..Targets::default() };
    let mut arms = Vec::new();
    let mut arm = |name: String, targets: Targets| arms.push(Arm { name, targets });
    if prefixes {
        for warm_prefixes in [0, 1, 2] {
            arm(format!("WARM_PREFIX_TARGET={warm_prefixes}"), Targets { warm_prefixes, ..plain.clone() });
        }
    } else {
        for warm_enis in [0, 1, 2, 3] {
            arm(format!("WARM_ENI_TARGET={warm_enis}"), Targets { warm_enis, ..plain.clone() });
        }
    }
    let alone: &[u32] = if prefixes { &[1, 5, 16, 20, 30] } else { &WARM_IPS };
    for warm_ips in alone.iter().copied() {
        arm(format!("WARM_IP_TARGET={warm_ips}"), Targets { warm_ips, ..plain.clone() });
    }
    for (warm_ips, minimum_ips) in PAIRS {
        let name = format!("WARM_IP_TARGET={warm_ips} MINIMUM_IP_TARGET={minimum_ips}");
        arm(name, Targets { warm_ips, minimum_ips, ..plain.clone() });
    }
    arms
}
