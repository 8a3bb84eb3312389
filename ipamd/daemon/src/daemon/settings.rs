//! Settings that the cluster has for this node.

use std::collections::BTreeSet;

use super::{Daemon, with_settings};
use crate::cloud::Cloud;
use crate::cluster::{About, Weight};
use crate::config::overrides::{Changed, Overrides, keep};
use crate::kernel::Kernel;
use crate::log::ErrorChain;

impl<C: Cloud, K: Kernel> Daemon<C, K> {
    /// Takes in what the cluster has set, or why that cannot be used: the last good settings stay then.
    pub(super) fn overridden(&mut self, overrides: Result<Overrides, Vec<String>>) {
        let changed = overrides.and_then(|wanted| self.parts.config.with(&wanted).map(|changed| (wanted, changed)));
        let (wanted, Changed { config, live, restart }) = match changed {
            Ok(changed) => changed,
            Err(faults) => {
                tracing::error!(?faults, "the cluster's settings cannot be used; the last good ones stay");
                let message = format!("ConfigMap sluice-ipamd is not used: {}", faults.join("; "));
                return self.notice(About::Node, Weight::Warning, "SettingsRejected", message);
            }
        };
        // Kept for the next start, which may be without an API server.
        if let Err(error) = keep(&self.parts.config.kept_overrides(), &wanted) {
            tracing::error!(error = %ErrorChain(&error), "the cluster's settings cannot be kept for the next start");
        }
        if !live.is_empty() {
            let names = joined(&live);
            tracing::info!(names, "settings of the cluster are in force");
            self.parts.config = config;
            with_settings(&mut self.state, &self.parts);
            self.targets = self.parts.config.targets_of(&self.state);
            self.dirty = true;
            let message = format!("changed at once: {names}");
            self.notice(About::Node, Weight::Normal, "SettingsChanged", message);
        }
        if !restart.is_empty() {
            let names = joined(&restart);
            tracing::warn!(names, "settings of the cluster wait for ipamd's next start");
            let message = format!("these settings wait for ipamd's next start: {names}");
            self.notice(About::Node, Weight::Warning, "SettingsNeedRestart", message);
        }
    }
}

fn joined(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}
