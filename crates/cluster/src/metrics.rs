//! What is counted of the talk with the API server.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

/// Counters of a session and of the Events.
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
    /// Kubernetes Events that were made.
    pub events_sent: Counter,
    /// Events that were counted on one that is there.
    pub events_counted: Counter,
    /// Events that were not sent: too many, or refused.
    pub events_dropped: Counter,
}

impl Metrics {
    /// The end of the name and the meaning of each counter: whose they are goes before it.
    #[must_use]
    pub const fn counters(&self) -> [(&'static str, &'static str, &Counter); 9] {
        [
            ("events", "Kubernetes Events made", &self.events_sent),
            ("events_counted", "Events counted on one that is there", &self.events_counted),
            ("events_dropped", "Events not sent: too many, or refused", &self.events_dropped),
            ("failures", "Lists and watches that failed", &self.failures),
            ("lists", "Lists begun", &self.lists),
            ("malformed", "Objects that could not be read", &self.malformed),
            ("objects", "Objects told: new, changed, gone", &self.events),
            ("relists", "Watches that had lost their place", &self.relists),
            ("watches", "Watches begun", &self.watches),
        ]
    }

    /// The same of each gauge.
    #[must_use]
    pub const fn gauges(&self) -> [(&'static str, &'static str, &Gauge); 1] {
        [("failing", "Kinds that cannot be read now", &self.failing)]
    }
}
