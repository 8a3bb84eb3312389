//! Kinds of metrics that the library lacks.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Metric, Registry};

/// A registry that knows what is in it, also before there is a value: it makes the documentation, and Prometheus is told of
/// every metric from the start.
#[derive(Debug, Default)]
pub struct Named {
    registry: Registry,
    metrics: BTreeMap<String, Described>,
}

/// What is said of a metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// What it means.
    pub help: &'static str,
    /// Prometheus' type: counter, gauge, histogram.
    pub kind: &'static str,
    /// Names of its labels, in the order in which they are written.
    pub labels: Vec<String>,
}

impl Named {
    /// Adds a metric without labels.
    pub fn register(&mut self, name: impl Into<String>, help: &'static str, metric: impl Metric) {
        self.add(name.into(), help, Vec::new(), metric);
    }

    /// Adds a metric with labels, which are those of the set's type.
    pub fn register_family<S, M, C>(&mut self, name: impl Into<String>, help: &'static str, family: Family<S, M, C>)
    where
        S: EncodeLabelSet + Default + Clone + Hash + Eq + fmt::Debug + Send + Sync + 'static,
        M: EncodeMetric + TypedMetric + fmt::Debug + Send + Sync + 'static,
        C: MetricConstructor<M> + Send + Sync + 'static,
        Family<S, M, C>: fmt::Debug,
    {
        self.add(name.into(), help, label_names::<S>(), Shown(family));
    }

    /// Adds a counter of the library under its own name, as [`Count`] has it.
    pub fn register_counter(&mut self, name: impl Into<String>, help: &'static str, counter: Counter) {
        self.register(name, help, Plain(counter));
    }

    fn add(&mut self, name: String, help: &'static str, labels: Vec<String>, metric: impl Metric) {
        let kind = match metric.metric_type() {
            MetricType::Counter => "counter",
            MetricType::Gauge => "gauge",
            MetricType::Histogram => "histogram",
            MetricType::Info | MetricType::Unknown => "unknown",
        };
        self.registry.register(name.clone(), help, metric);
        self.metrics.insert(name, Described { help, kind, labels });
    }

    /// All of them, by name.
    #[must_use]
    pub const fn described(&self) -> &BTreeMap<String, Described> {
        &self.metrics
    }

    /// The rows of a page of the documentation, in the form of [`row`].
    #[must_use]
    pub fn table(&self) -> String {
        let rows = self.metrics.iter();
        let rows = rows.map(|(name, metric)| row(name, metric.kind, &metric.labels, metric.help));
        format!("{TABLE}{}", rows.collect::<String>())
    }

    /// The text that Prometheus reads (its text format 0.0.4).
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string fails only when a metric's own encoder does, and none of ours can.
        if let Err(error) = encode(&mut text, &self.registry) {
            tracing::error!(error = %error, "metrics could not be written");
        }
        text
    }
}

/// The head of a table of metrics.
pub const TABLE: &str = "| metric | type | labels | meaning |\n|---|---|---|---|\n";

/// A row of a table of metrics.
#[must_use]
pub fn row(name: &str, kind: &str, labels: &[String], help: &str) -> String {
    format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "))
}

/// The names of the labels of a set: the library has no way to ask for them but to write one.
fn label_names<S: EncodeLabelSet + Default + Clone + Hash + Eq + fmt::Debug + Send + Sync + 'static>() -> Vec<String> {
    let family: Family<S, Gauge> = Family::default();
    family.get_or_create(&S::default()).set(0);
    let mut registry = Registry::default();
    registry.register("of", "", family);
    let mut text = String::new();
    // As above.
    let _written = encode(&mut text, &registry);
    let sample = text.lines().find_map(|line| line.strip_prefix("of{")?.split_once('}'));
    let labels = sample.map_or("", |(labels, _)| labels).split(',');
    labels.filter_map(|label| label.split_once('=')).map(|(name, _)| name.to_owned()).collect()
}

/// A family that is told of before it has a member.
#[derive(Debug)]
struct Shown<F>(F);

impl<F: EncodeMetric> EncodeMetric for Shown<F> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.0.metric_type()
    }

    fn is_empty(&self) -> bool {
        false
    }
}

/// A counter of the library, under the name by which it was registered.
#[derive(Debug)]
struct Plain(Counter);

impl EncodeMetric for Plain {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&self.0.get())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

/// A counter whose name is written as it is: the library would add `_total`, which VPC CNI's names do not have.
#[derive(Debug, Clone, Default)]
pub struct Count(Arc<AtomicU64>);

impl Count {
    /// One more.
    pub fn add(&self) {
        self.add_many(1);
    }

    /// So many more.
    pub fn add_many(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
}

impl TypedMetric for Count {
    const TYPE: MetricType = MetricType::Counter;
}

impl EncodeMetric for Count {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&self.0.load(Ordering::Relaxed))
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// A gauge of a fraction.
pub type Rate = Gauge<f64, AtomicU64>;

/// A distribution of seconds, from 50 microseconds to a minute and a half.
pub type Seconds = Histogram;

/// [`Seconds`] without a value yet.
#[must_use]
pub fn seconds() -> Seconds {
    Histogram::new(exponential_buckets(0.000_05, 3.0, 14))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
    struct Labels {
        r#type: &'static str,
        rule: String,
    }

    #[test]
    fn what_has_no_value_yet_is_told_of_too() {
        let mut named = Named::default();
        let family: Family<Labels, Count> = Family::default();
        named.register_family("a_total", "Things", family.clone());
        let gauge: Gauge = Gauge::default();
        named.register("b", "A gauge", gauge);
        let counter = Counter::default();
        named.register_counter("c", "A counter", counter.clone());
        counter.inc();
        assert_eq!(
            named.encode(),
            "# HELP a_total Things.\n# TYPE a_total counter\n# HELP b A gauge.\n# TYPE b gauge\nb 0\n# HELP c A counter.\n\
             # TYPE c counter\nc 1\n# EOF\n"
        );
        family.get_or_create(&Labels { r#type: "x", rule: "y".into() }).add();
        assert!(named.encode().contains("\na_total{type=\"x\",rule=\"y\"} 1\n"), "{}", named.encode());
        assert_eq!(
            named.table(),
            "| metric | type | labels | meaning |\n|---|---|---|---|\n| `a_total` | counter | type, rule | Things |\n\
             | `b` | gauge |  | A gauge |\n| `c` | counter |  | A counter |\n"
        );
    }
}
