//! `--env`: ipamd's settings, read as ipamd reads them, and what each has to do with a plan.

use std::collections::BTreeMap;

use sluice_ipamd_core::cloud::InstanceLimits;
use sluice_ipamd_core::ipv6::{Families, WINDOW};
use sluice_ipamd_core::limits::takes_trunk;
use sluice_ipamd_core::plan::{Targets, WarmMode};
use sluice_ipamd_daemon::Config;
use sluice_ipamd_daemon::config::{ConfigFaults, VARIABLES};
use sluice_ipamd_sim::node::Networking;

/// What a setting has to do with a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bearing {
    /// The simulated node has it.
    Planned,
    /// It matters to pods that wait, and so to a burst alone.
    OfBursts,
    /// It matters to pools, and not to this node: what this one lacks.
    Elsewhere(&'static str),
    /// It does not matter to what a pool holds.
    None,
}

const PLANNED: &[&str] = &[
    "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG",
    "DISABLE_NETWORK_RESOURCE_PROVISIONING",
    "ENABLE_IMDS_ONLY_MODE",
    "ENABLE_IPv4",
    "ENABLE_IPv6",
    "ENABLE_MULTI_NIC",
    "ENABLE_POD_ENI",
    "ENABLE_PREFIX_DELEGATION",
    "MAX_ENI",
    "MINIMUM_IP_TARGET",
    "SLUICE_MAX_PODS",
    "SLUICE_WARM_MODE",
    "WARM_ENI_TARGET",
    "WARM_IP_TARGET",
    "WARM_PREFIX_TARGET",
];

const OF_BURSTS: &[&str] = &["SLUICE_ADD_DEADLINE", "SLUICE_EC2_RATE", "SLUICE_MAX_WAITING"];

const ELSEWHERE: &[(&str, &str)] = &[
    ("AWS_MANAGE_ENIS_NON_SCHEDULABLE", "the planned node is not cordoned"),
    ("CLUSTER_NAME", "the planned node has one subnet for new ENIs, reserved for nobody"),
    ("ENABLE_SUBNET_DISCOVERY", "the planned node has one subnet for new ENIs"),
    ("ENI_CONFIG_ANNOTATION_DEF", "the planned node's ENIConfig is known, however it is named"),
    ("ENI_CONFIG_LABEL_DEF", "the planned node's ENIConfig is known, however it is named"),
    ("IP_COOLDOWN_PERIOD", "no pod of a plan ends"),
    ("MANAGE_UNTAGGED_ENI", "nobody else attaches ENIs to the planned node"),
];

const NOT_OF_THE_POOL: &[&str] = &[
    "ADDITIONAL_ENI_TAGS",
    "ANNOTATE_POD_IP",
    "AWS_EXTERNAL_SERVICE_CIDRS",
    "AWS_VPC_CNI_NODE_PORT_SUPPORT",
    "AWS_VPC_ENI_MTU",
    "AWS_VPC_K8S_CNI_BACKING_STORE",
    "AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER",
    "AWS_VPC_K8S_CNI_CONNMARK",
    "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS",
    "AWS_VPC_K8S_CNI_EXTERNALSNAT",
    "AWS_VPC_K8S_CNI_LOGLEVEL",
    "AWS_VPC_K8S_CNI_LOG_FILE",
    "AWS_VPC_K8S_CNI_RANDOMIZESNAT",
    "AWS_VPC_K8S_CNI_VETHPREFIX",
    "CLUSTER_ENDPOINT",
    "DISABLE_INTROSPECTION",
    "DISABLE_LEAKED_ENI_CLEANUP",
    "DISABLE_METRICS",
    "DISABLE_POD_V6",
    "DISABLE_TCP_EARLY_DEMUX",
    "ENABLE_BANDWIDTH_PLUGIN",
    "ENABLE_V4_EGRESS",
    "ENABLE_V6_EGRESS",
    "HTTP_TIMEOUT",
    "INTROSPECTION_BIND_ADDRESS",
    "MY_NODE_NAME",
    "NETWORK_POLICY_ENFORCING_MODE",
    "POD_MTU",
    "POD_SECURITY_GROUP_ENFORCING_MODE",
    "SLUICE_BLOCK_POD_METADATA",
    "SLUICE_CLUSTER_DIR",
    "SLUICE_EXCLUDE_SNAT_ROUTES",
    "SLUICE_LOG",
    "SLUICE_LOG_FORMAT",
    "SLUICE_HEALTH_ADDRESS",
    "SLUICE_METRICS_ADDRESS",
    "SLUICE_NAMESPACE",
    "SLUICE_RUN_DIR",
    "SLUICE_SNAT_BY_ENI",
    "SLUICE_STOP_GRACE",
];

/// Nothing for a setting that no list has: one that is new, whose bearing nobody has thought about.
fn bearing(name: &str) -> Option<Bearing> {
    if PLANNED.contains(&name) {
        return Some(Bearing::Planned);
    }
    if OF_BURSTS.contains(&name) {
        return Some(Bearing::OfBursts);
    }
    if let Some((_, why)) = ELSEWHERE.iter().find(|(known, _)| *known == name) {
        return Some(Bearing::Elsewhere(why));
    }
    NOT_OF_THE_POOL.contains(&name).then_some(Bearing::None)
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SettingsError {
    /// It has no value.
    #[error("--env {0:?} is not of the form NAME=VALUE, like WARM_IP_TARGET=5")]
    Form(String),
    /// ipamd has no such setting.
    #[error("--env {name}: ipamd has no such setting; did you mean {nearest}? (docs/configuration.md lists all)")]
    Unknown {
        /// What was given.
        name: String,
        /// The setting of the pool whose name is most like it.
        nearest: &'static str,
    },
    /// A value is wrong.
    #[error("{0}\n  docs/configuration.md says what each may be")]
    Value(#[from] ConfigFaults),
    /// What it does is not simulated.
    #[error("{name}: {why}; {instead}")]
    NotSimulated {
        /// The setting and its value, with what was asked.
        name: String,
        /// What is missing.
        why: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
}

/// The settings, with what is to be said about them.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) config: Config,
    given: Vec<String>,
    pub(super) notes: Vec<String>,
}

/// Reads them.
///
/// # Errors
/// [`SettingsError`].
pub(super) fn read(given: &[String], prefix_delegation: bool, is_burst: bool) -> Result<Read, SettingsError> {
    // In the DaemonSet it comes from the downward API.
    let mut settings = BTreeMap::from([("MY_NODE_NAME", "planned")]);
    let mut notes = Vec::new();
    let mut names = Vec::new();
    for text in given {
        let (name, value) = text.split_once('=').ok_or_else(|| SettingsError::Form(text.clone()))?;
        if !VARIABLES.iter().any(|variable| variable.name == name) {
            return Err(SettingsError::Unknown { name: name.to_owned(), nearest: nearest(name) });
        }
        match bearing(name) {
            Some(Bearing::None) => notes.push(format!("{name} does not change what a pool holds")),
            Some(Bearing::Elsewhere(why)) => notes.push(format!("{name} changes nothing here: {why}")),
            Some(Bearing::OfBursts) if !is_burst => {
                notes.push(format!("{name} changes nothing here: no pod waits where they come one by one"));
            }
            Some(Bearing::OfBursts | Bearing::Planned) => {}
            None => {
                return Err(SettingsError::NotSimulated {
                    name: name.to_owned(),
                    why: "what it does to a pool is not simulated",
                    instead: "leave it out",
                });
            }
        }
        names.push(name.to_owned());
        settings.insert(name, value);
    }
    if prefix_delegation {
        settings.insert("ENABLE_PREFIX_DELEGATION", "true");
    }
    let config = Config::load(&|name| settings.get(name).map(|value| (*value).to_owned()))?;
    Ok(Read { config, given: names, notes })
}

impl Read {
    /// What of them is not in the targets.
    pub(super) const fn networking(&self) -> Networking {
        Networking {
            families: self.config.network.families,
            custom: self.config.pool.custom_networking.is_some(),
            multi_nic: self.config.pool.multi_nic,
            imds_only: self.config.pool.imds_only,
        }
    }

    /// What has no effect on this instance type or beside other settings, and what of a node is not in the figures.
    pub(super) fn note(&mut self, instance_type: &str, limits: &InstanceLimits, targets: &Targets, most: u32) {
        let families = self.config.network.families;
        if targets.prefixes && !limits.prefixes {
            self.notes.push(format!(
                "{instance_type} takes no prefixes (it is no Nitro type): ENABLE_PREFIX_DELEGATION has no effect"
            ));
        }
        if families.has_v6() && limits.prefixes {
            let grows = if families == Families::V6 { "; nothing grows, and no target counts" } else { "" };
            self.notes.push(format!("a /80 has 2^48 addresses, of which pods get the first {WINDOW}{grows}"));
        }
        let prefixes = targets.prefixes && limits.prefixes;
        let adaptive = matches!(targets.mode, WarmMode::Adaptive(_));
        let counts = match (adaptive, targets.counts_addresses(), prefixes) {
            (true, ..) => "SLUICE_WARM_MODE=adaptive counts",
            (false, true, _) => "targets in addresses count",
            (false, false, true) => "WARM_PREFIX_TARGET counts",
            (false, false, false) => "WARM_ENI_TARGET counts",
        };
        let units = !targets.counts_addresses();
        for (name, has_effect) in [
            ("WARM_ENI_TARGET", units && !prefixes),
            ("WARM_PREFIX_TARGET", units && prefixes),
            ("WARM_IP_TARGET", !adaptive),
        ] {
            if families.has_v4() && !has_effect && self.given.iter().any(|given| given == name) {
                self.notes.push(format!("{name} is passed over: {counts}"));
            }
        }
        if families.has_v4() && adaptive {
            self.notes.push("what adaptive mode keeps depends on arrivals: here pods come minutes apart".to_owned());
        }
        if targets.trunk && families.has_v4() {
            self.notes.push(if takes_trunk(instance_type, limits) {
                "ENABLE_POD_ENI keeps the place of an ENI for the trunk, which the rows do not count; nor do they count \
                 pods with branch ENIs"
                    .to_owned()
            } else {
                format!("{instance_type} takes no trunk ENI: ENABLE_POD_ENI has no effect")
            });
        }
        if self.config.pool.multi_nic {
            self.notes.push(if limits.further_cards.is_empty() {
                format!("{instance_type} has one network card: ENABLE_MULTI_NIC has no effect")
            } else {
                "the pods are those with one interface; one with an interface on each network card has an address of \
                 each"
                    .to_owned()
            });
        }
        if self.config.pool.imds_only || !self.config.pool.provisioning {
            self.notes
                .push("nothing is asked of EC2: pods have what others assign to the ENIs, here nothing".to_owned());
        }
        if most > targets.max_pods {
            let by = if self.config.max_pods.is_some() { "SLUICE_MAX_PODS" } else { "derived from the instance type" };
            self.notes.push(format!(
                "the kubelet takes {} pods ({by}); with more, no spare addresses are added",
                targets.max_pods
            ));
        }
    }

    /// What the simulation of a burst leaves out, where that would change the answer.
    ///
    /// # Errors
    /// [`SettingsError::NotSimulated`].
    pub(super) fn check_burst(&self, pods: u32, waiting: u32, took: std::time::Duration) -> Result<(), SettingsError> {
        let config = &self.config;
        let default_rate = 5;
        let fault = if config.ec2_rate < default_rate {
            Some((
                format!("SLUICE_EC2_RATE={}", config.ec2_rate),
                "calls of EC2 are not slowed down in the simulation, and a burst would wait for that",
                "leave it out for its default of 5, which no burst of one node waits for",
            ))
        } else if waiting > config.max_waiting {
            Some((
                format!("SLUICE_MAX_WAITING={} with --burst {pods}", config.max_waiting),
                "more would wait at once; when the kubelet tries those that are refused again is not simulated",
                "raise it, or ask for a smaller burst",
            ))
        } else if took > config.add_deadline {
            Some((
                format!("SLUICE_ADD_DEADLINE={} with --burst {pods}", config.add_deadline.as_secs()),
                "pods would wait for longer; when the kubelet tries those that are refused again is not simulated",
                "raise it, or ask for a smaller burst",
            ))
        } else {
            None
        };
        match fault {
            Some((name, why, instead)) => Err(SettingsError::NotSimulated { name, why, instead }),
            None => Ok(()),
        }
    }
}

/// The name that shares most of its words with `name`, the shortest of them.
fn nearest(name: &str) -> &'static str {
    let name = name.to_ascii_uppercase();
    let words: Vec<&str> = name.split(['_', '-']).collect();
    let shared = |known: &str| known.split('_').filter(|word| words.contains(word)).count();
    PLANNED
        .iter()
        .copied()
        .max_by_key(|known| (shared(known), std::cmp::Reverse(known.len())))
        .unwrap_or("WARM_IP_TARGET")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_of_ipamd_has_its_bearing_and_one_alone() {
        let elsewhere = ELSEWHERE.iter().map(|(name, _)| *name);
        let mut listed: Vec<&str> =
            PLANNED.iter().chain(OF_BURSTS).chain(NOT_OF_THE_POOL).copied().chain(elsewhere).collect();
        listed.sort_unstable();
        let mut known: Vec<&str> = VARIABLES.iter().map(|variable| variable.name).collect();
        known.sort_unstable();
        assert_eq!(listed, known);
    }
}
