//! The options of sluice-policy.

use std::path::PathBuf;
use std::time::Duration;

use super::conf::{ConfError, NetConf, absolute, rule};
use crate::node;

/// The default of [`PolicyConf::wait`].
const WAIT: Duration = Duration::from_secs(10);
/// The longest: with the 60 s that sluice-eni may wait for an address, within the four minutes that the kubelet gives a
/// sandbox.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// The options of sluice-policy in its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyConf {
    /// `policydSocket`: where policyd listens.
    pub policyd_socket: PathBuf,
    /// `runDir`: the node's state directory, with `policy/` in it: tombstones and the ready mark.
    pub run_dir: PathBuf,
    /// `policyWaitSeconds`: how long an ADD waits for the pod's policy to be in force.
    pub wait: Duration,
}

impl Default for PolicyConf {
    fn default() -> Self {
        Self { policyd_socket: node::POLICYD_SOCKET.into(), run_dir: node::RUN_DIR.into(), wait: WAIT }
    }
}

impl PolicyConf {
    /// Reads the options out of a configuration.
    ///
    /// # Errors
    /// [`ConfError::Rule`] for a value that cannot be used.
    pub fn of(conf: &NetConf) -> Result<Self, ConfError> {
        let mut options = Self::default();
        let field = |name: &str| conf.plugin.get(name).filter(|value| !value.is_null());
        if let Some(path) = field("policydSocket") {
            options.policyd_socket = absolute("policydSocket", path)?;
        }
        if let Some(path) = field("runDir") {
            options.run_dir = absolute("runDir", path)?;
        }
        if let Some(seconds) = field("policyWaitSeconds") {
            let allowed = 1..=WAIT_MAX.as_secs();
            let seconds = seconds.as_u64().filter(|seconds| allowed.contains(seconds));
            options.wait = Duration::from_secs(seconds.ok_or_else(|| {
                rule("policyWaitSeconds", format!("it must be a number of seconds, 1 to {}", WAIT_MAX.as_secs()))
            })?);
        }
        Ok(options)
    }
}
