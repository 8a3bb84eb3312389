//! Settings that come from the cluster and go before the environment: what may change while ipamd runs, and what has to
//! wait for its next start.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fs, io};

use sluice_daemon::environment::ConfigFaults;

use super::{Config, VARIABLES};

/// Variables whose change is safe at once: they say what the pool is to be from now on.
pub const LIVE: &[&str] = &[
    "ADDITIONAL_ENI_TAGS",
    "DISABLE_LEAKED_ENI_CLEANUP",
    "ENABLE_PREFIX_DELEGATION",
    "ENABLE_SUBNET_DISCOVERY",
    "IP_COOLDOWN_PERIOD",
    "MAX_ENI",
    "MINIMUM_IP_TARGET",
    "SLUICE_MAX_PODS",
    "SLUICE_WARM_MODE",
    "WARM_ENI_TARGET",
    "WARM_IP_TARGET",
    "WARM_PREFIX_TARGET",
];

/// Variables that the cluster cannot set: they say where the node's files, sockets and cluster are, or are used before it is
/// asked.
pub const FIXED: &[&str] = &[
    "AWS_VPC_K8S_CNI_LOGLEVEL",
    "CLUSTER_ENDPOINT",
    "HTTP_TIMEOUT",
    "INTROSPECTION_BIND_ADDRESS",
    "MY_NODE_NAME",
    "SLUICE_CLUSTER_DIR",
    "SLUICE_HEALTH_ADDRESS",
    "SLUICE_LOG",
    "SLUICE_LOG_FORMAT",
    "SLUICE_METRICS_ADDRESS",
    "SLUICE_NAMESPACE",
    "SLUICE_RUN_DIR",
];

/// What is set, by variable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides(pub BTreeMap<String, String>);

/// What becomes of overrides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The configuration from now on.
    pub config: Config,
    /// Variables whose change is in force.
    pub live: BTreeSet<String>,
    /// Variables whose change waits for the next start.
    pub restart: BTreeSet<String>,
}

impl Config {
    /// The configuration with other overrides than before: what may change at once does.
    ///
    /// # Errors
    /// Every override that is wrong, or that the cluster cannot set; the configuration stays as it is then.
    pub fn with(&self, wanted: &Overrides) -> Result<Changed, Vec<String>> {
        let known = |name: &String| VARIABLES.iter().any(|variable| variable.name == name);
        let mut faults = Vec::new();
        for name in wanted.0.keys() {
            if !known(name) {
                faults.push(format!("{}: there is no such setting", name.chars().take(80).collect::<String>()));
            } else if FIXED.contains(&name.as_str()) {
                faults.push(format!("{name}: it can be set in ipamd's environment only"));
            }
        }
        // All of it has to be right, so that the next start finds what it can use.
        if let Err(ConfigFaults(more)) = self.layered(&wanted.0) {
            faults.extend(more.iter().map(ToString::to_string));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let differs = |name: &&str| self.overrides.get(*name) != wanted.0.get(*name);
        let names: BTreeSet<&str> = wanted.0.keys().chain(self.overrides.keys()).map(String::as_str).collect();
        let is_live = |name: &str| LIVE.contains(&name);
        let (live, restart): (BTreeSet<&str>, BTreeSet<&str>) =
            names.into_iter().filter(differs).partition(|name| is_live(name));
        let mut now: BTreeMap<String, String> = wanted.0.clone();
        now.retain(|name, _| is_live(name));
        now.extend(
            self.overrides.iter().filter(|(name, _)| !is_live(name)).map(|(name, value)| (name.clone(), value.clone())),
        );
        let owned = |names: BTreeSet<&str>| names.into_iter().map(str::to_owned).collect();
        let config = self
            .layered(&now)
            .map_err(|ConfigFaults(faults)| faults.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        Ok(Changed { config, live: owned(live), restart: owned(restart) })
    }

    /// This configuration with the overrides that were kept, whether they may change at once or not. Without any, or with such
    /// as cannot be used any more, it is as it was.
    #[must_use]
    pub fn restored(self) -> Self {
        let path = self.kept_overrides();
        let kept = match fs::read(&path) {
            Ok(json) => serde_json::from_slice::<BTreeMap<String, String>>(&json),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::error!(path = %path.display(), %error, "the cluster's settings cannot be read");
                }
                return self;
            }
        };
        let layered = kept.map_err(|error| error.to_string()).and_then(|kept| {
            let fixed = kept.keys().find(|name| FIXED.contains(&name.as_str()));
            match fixed {
                Some(name) => Err(format!("{name} is not for the cluster to set")),
                None => self.layered(&kept).map_err(|faults| faults.to_string()),
            }
        });
        match layered {
            Ok(config) => config,
            Err(error) => {
                tracing::error!(path = %path.display(), error, "the cluster's settings that were kept are not used");
                self
            }
        }
    }

    /// What the environment says, below these overrides.
    fn layered(&self, overrides: &BTreeMap<String, String>) -> Result<Self, ConfigFaults> {
        let read = Self::load(&|name| overrides.get(name).or_else(|| self.environment.get(name)).cloned())?;
        // An argument may have said where the cluster is, and no override can.
        let cluster_dir = self.cluster_dir.clone();
        Ok(Self { environment: self.environment.clone(), overrides: overrides.clone(), cluster_dir, ..read })
    }
}

/// Keeps overrides for the next start, in place of those before.
pub(crate) fn keep(path: &Path, overrides: &Overrides) -> io::Result<()> {
    let json = serde_json::to_vec(&overrides.0)?;
    let aside = path.with_extension("json.new");
    fs::write(&aside, json)?;
    fs::rename(aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(set: &[(&str, &str)]) -> Config {
        let set = map(set);
        Config::load(&|name| set.get(name).cloned()).unwrap()
    }

    fn map(set: &[(&str, &str)]) -> BTreeMap<String, String> {
        set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn names(set: &BTreeSet<String>) -> Vec<&str> {
        set.iter().map(String::as_str).collect()
    }

    #[test]
    fn what_is_safe_changes_at_once_and_the_rest_waits() {
        let begun = config(&[("WARM_IP_TARGET", "3"), ("AWS_VPC_ENI_MTU", "1500")]);
        let wanted = Overrides(map(&[("WARM_IP_TARGET", "7"), ("AWS_VPC_ENI_MTU", "9001")]));
        let Changed { config, live, restart } = begun.with(&wanted).unwrap();
        assert_eq!((config.pool.warm_ip_target, config.network.eni_mtu), (7, 1500));
        assert_eq!((names(&live), names(&restart)), (vec!["WARM_IP_TARGET"], vec!["AWS_VPC_ENI_MTU"]));
        // What is taken away is as the environment has it.
        let Changed { config, live, .. } = config.with(&Overrides::default()).unwrap();
        assert_eq!((config.pool.warm_ip_target, names(&live)), (3, vec!["WARM_IP_TARGET"]));
        assert_eq!(config, begun);
    }

    #[test]
    fn every_fault_is_told_and_nothing_changes() {
        let begun = config(&[]);
        let wrong = [("WARM_IP_TARGET", "many"), ("MAX_ENI", "-x"), ("IP_COOLDOWN_PERIOD", "60")];
        let faults = begun.with(&Overrides(map(&wrong))).unwrap_err().join("; ");
        assert!(faults.contains("WARM_IP_TARGET") && faults.contains("MAX_ENI"), "{faults}");
        let faults = begun.with(&Overrides(map(&[("NO_SUCH", "1"), ("SLUICE_RUN_DIR", "/x")]))).unwrap_err().join("; ");
        assert!(faults.contains("NO_SUCH") && faults.contains("SLUICE_RUN_DIR"), "{faults}");
    }

    #[test]
    fn what_is_live_or_fixed_is_a_variable() {
        for name in LIVE.iter().chain(FIXED) {
            assert!(VARIABLES.iter().any(|variable| variable.name == *name), "{name}");
        }
        let page = include_str!("../../../../docs/ipamd-kubernetes.md");
        for name in LIVE {
            assert!(page.contains(&format!("`{name}`")), "{name} is not on the page");
        }
    }
}
