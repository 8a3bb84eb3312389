//! What the source counts.

use prometheus_client::metrics::counter::Counter;
use sluice_daemon::metrics::Named;

/// What the names of all of them begin with.
const PREFIX: &str = "sluice_policy_kube";

/// Counters of the Kubernetes source.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Of what is read, and of Events.
    pub api: sluice_cluster::Metrics,
    /// Addresses of pods that were published.
    pub published: Counter,
    /// Conditions that were written on policies.
    pub statuses: Counter,
    /// Conditions that need not be written: they were there, by this node or another.
    pub statuses_found: Counter,
    /// Conditions that could not be written.
    pub status_dropped: Counter,
}

impl Metrics {
    /// The end of the name and the meaning of each counter.
    fn counters(&self) -> impl Iterator<Item = (&'static str, &'static str, &Counter)> {
        let own = [
            ("published", "Pods whose addresses were published", &self.published),
            ("statuses", "Conditions written on policies", &self.statuses),
            ("statuses_dropped", "Conditions that could not be written", &self.status_dropped),
            ("statuses_found", "Conditions that were there already", &self.statuses_found),
        ];
        self.api.counters().into_iter().chain(own)
    }

    /// Registers all of them.
    pub fn register(&self, registry: &mut Named) {
        for (name, help, counter) in self.counters() {
            registry.register_counter(format!("{PREFIX}_{name}"), help, counter.clone());
        }
        for (name, help, gauge) in self.api.gauges() {
            registry.register(format!("{PREFIX}_{name}"), help, gauge.clone());
        }
    }
}
