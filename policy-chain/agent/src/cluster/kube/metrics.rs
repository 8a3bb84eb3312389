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
    /// Registers all of them.
    pub fn register(&self, registry: &mut Registry) {
        let mut counter = |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
        counter("sluice_policy_kube_lists", "Lists begun", &self.lists);
        counter("sluice_policy_kube_watches", "Watches begun", &self.watches);
        counter("sluice_policy_kube_relists", "Watches that had lost their place", &self.relists);
        counter("sluice_policy_kube_objects", "Objects told: new, changed, gone", &self.events);
        counter("sluice_policy_kube_malformed", "Objects that could not be read", &self.malformed);
        counter("sluice_policy_kube_failures", "Lists and watches that failed", &self.failures);
        counter("sluice_policy_kube_published", "Pod addresses published", &self.published);
        counter("sluice_policy_kube_statuses", "Conditions written on policies", &self.statuses);
        counter("sluice_policy_kube_statuses_found", "Conditions that were there already", &self.statuses_found);
        counter("sluice_policy_kube_statuses_dropped", "Conditions that could not be written", &self.status_dropped);
        counter("sluice_policy_kube_events", "Kubernetes Events made", &self.events_sent);
        counter("sluice_policy_kube_events_counted", "Events counted on one that is there", &self.events_counted);
        counter("sluice_policy_kube_events_dropped", "Events not sent", &self.events_dropped);
        registry.register("sluice_policy_kube_failing", "Kinds that cannot be read now", self.failing.clone());
    }
}
