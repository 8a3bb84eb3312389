//! What the source counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// What the names of all of them begin with.
const PREFIX: &str = "sluice_ipamd_kube";

/// Counters of the Kubernetes source.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Of what is read, and of Events.
    pub api: sluice_cluster::Metrics,
    /// Conditions that were written on the node.
    pub conditions: Counter,
    /// Conditions that could not be written.
    pub conditions_failed: Counter,
}

impl Metrics {
    fn counters(&self) -> impl Iterator<Item = (&'static str, &'static str, &Counter)> {
        let own = [
            ("conditions", "Conditions written on the node's object", &self.conditions),
            ("conditions_failed", "Attempts to write a condition that failed", &self.conditions_failed),
        ];
        self.api.counters().into_iter().chain(own)
    }

    /// Registers all of them.
    pub fn register(&self, registry: &mut Registry) {
        for (name, help, counter) in self.counters() {
            registry.register(format!("{PREFIX}_{name}"), help, counter.clone());
        }
        for (name, help, gauge) in self.api.gauges() {
            registry.register(format!("{PREFIX}_{name}"), help, gauge.clone());
        }
    }

    /// Name and meaning of all of them.
    #[must_use]
    pub fn named(&self) -> Vec<(String, &'static str)> {
        let gauges = self.api.gauges().into_iter().map(|(name, help, _)| (name, help));
        let all = self.counters().map(|(name, help, _)| (name, help)).chain(gauges);
        all.map(|(name, help)| (format!("{PREFIX}_{name}"), help)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_all_of_them() {
        let page = include_str!("../../../docs/ipamd-kubernetes.md");
        for (name, help) in Metrics::default().named() {
            assert!(page.contains(&format!("| `{name}` | {help} |")), "| `{name}` | {help} |");
        }
    }
}
