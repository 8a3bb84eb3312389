//! Kinds of metrics that the library lacks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Metric, Registry};

/// A registry that remembers what is in it: the library shows no family before it has a member.
#[derive(Debug, Default)]
pub struct Named {
    /// The library's registry.
    pub registry: Registry,
    /// Help texts by name.
    pub names: BTreeMap<&'static str, &'static str>,
}

impl Named {
    /// Adds a metric.
    pub fn register(&mut self, name: &'static str, help: &'static str, metric: impl Metric) {
        self.names.insert(name, help);
        self.registry.register(name, help, metric);
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
