//! What the source counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters of the Kubernetes source.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Lists that were begun.
    pub lists: Counter,
    /// Watches that were begun.
    pub watches: Counter,
    /// Times that a watch had lost its place, so that everything was listed again.
    pub relists: Counter,
    /// Objects that were told: new, changed, gone.
    pub events: Counter,
    /// Objects that could not be read.
    pub malformed: Counter,
    /// Lists and watches that failed.
    pub failures: Counter,
    /// Kinds that cannot be read now.
    pub failing: Gauge,
    /// Addresses of pods that were published.
    pub published: Counter,
    /// Conditions that were written on policies.
    pub statuses: Counter,
    /// Conditions that need not be written: they were there, by this node or another.
    pub statuses_found: Counter,
    /// Conditions that could not be written.
    pub status_dropped: Counter,
    /// Kubernetes Events that were made.
    pub events_sent: Counter,
    /// Events that were counted on one that is there.
    pub events_counted: Counter,
    /// Events that were not sent: too many, or refused.
    pub events_dropped: Counter,
}

impl Metrics {
    /// Name and meaning of the counters.
    const fn counters(&self) -> [(&'static str, &'static str, &Counter); 13] {
        [
            ("sluice_policy_kube_events", "Kubernetes Events made", &self.events_sent),
            ("sluice_policy_kube_events_counted", "Events counted on one that is there", &self.events_counted),
            ("sluice_policy_kube_events_dropped", "Events not sent: too many, or refused", &self.events_dropped),
            ("sluice_policy_kube_failures", "Lists and watches that failed", &self.failures),
            ("sluice_policy_kube_lists", "Lists begun", &self.lists),
            ("sluice_policy_kube_malformed", "Objects that could not be read", &self.malformed),
            ("sluice_policy_kube_objects", "Objects told: new, changed, gone", &self.events),
            ("sluice_policy_kube_published", "Pods whose addresses were published", &self.published),
            ("sluice_policy_kube_relists", "Watches that had lost their place", &self.relists),
            ("sluice_policy_kube_statuses", "Conditions written on policies", &self.statuses),
            ("sluice_policy_kube_statuses_dropped", "Conditions that could not be written", &self.status_dropped),
            ("sluice_policy_kube_statuses_found", "Conditions that were there already", &self.statuses_found),
            ("sluice_policy_kube_watches", "Watches begun", &self.watches),
        ]
    }

    /// Name and meaning of the gauges.
    const fn gauges(&self) -> [(&'static str, &'static str, &Gauge); 1] {
        [("sluice_policy_kube_failing", "Kinds that cannot be read now", &self.failing)]
    }

    /// Registers all of them.
    pub fn register(&self, registry: &mut Registry) {
        for (name, help, counter) in self.counters() {
            registry.register(name, help, counter.clone());
        }
        for (name, help, gauge) in self.gauges() {
            registry.register(name, help, gauge.clone());
        }
    }

    /// Name and meaning of all of them.
    #[cfg(test)]
    pub(crate) fn named(&self) -> Vec<(&'static str, &'static str)> {
        let counters = self.counters().map(|(name, help, _)| (name, help));
        counters.into_iter().chain(self.gauges().map(|(name, help, _)| (name, help))).collect()
    }
}
