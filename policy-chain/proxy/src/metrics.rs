//! The proxy's metrics. What happens is counted where it happens; they are read when somebody asks.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use sluice_daemon::metrics::{TABLE, row};
use sluice_policy_bpf::reader::Reader;

use crate::policy::Pushed;
use crate::policyd::Status;
use crate::record::ring::Ring;
use crate::worker::Flows;
use crate::{dns, engine, names};

/// Counters of a part: name, meaning, value.
pub type Part = Box<dyn Fn() -> Vec<(String, &'static str, u64)> + Send + Sync>;

/// The counters of the engines.
#[must_use]
pub fn parts(engine: Arc<engine::Counters>, dns: Arc<dns::Counters>, names: Arc<names::Counters>) -> Vec<Part> {
    let own = |(name, help, value): (&str, _, _)| (name.to_owned(), help, value);
    vec![
        Box::new(move || {
            engine.each().map(|(name, help, value)| (format!("sluice_proxy_{name}"), help, value)).collect()
        }),
        Box::new(move || dns.each().map(own).collect()),
        Box::new(move || names.each().into_iter().map(own).collect()),
    ]
}

/// All metrics.
pub struct Metrics {
    ring: Arc<Ring>,
    policy: Arc<Pushed<Reader>>,
    status: Arc<Status>,
    flows: Arc<Flows>,
    parts: Vec<Part>,
    serving: AtomicBool,
    lost: OnceLock<Arc<AtomicU64>>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Metrics of these.
    #[must_use]
    pub const fn new(
        ring: Arc<Ring>,
        policy: Arc<Pushed<Reader>>,
        status: Arc<Status>,
        flows: Arc<Flows>,
        parts: Vec<Part>,
    ) -> Self {
        Self { ring, policy, status, flows, parts, serving: AtomicBool::new(false), lost: OnceLock::new() }
    }

    /// Whether connections are taken.
    pub fn set_serving(&self, serving: bool) {
        self.serving.store(serving, Ordering::Relaxed);
    }

    /// Whether connections are taken.
    #[must_use]
    pub fn serving(&self) -> bool {
        self.serving.load(Ordering::Relaxed)
    }

    /// Counts records that did not come into the file. Told once.
    pub fn set_file(&self, lost: Arc<AtomicU64>) {
        let _first = self.lost.set(lost);
    }

    /// Every metric: name, meaning, whether it only grows, value.
    fn each(&self) -> BTreeMap<String, (&'static str, bool, u64)> {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let size = |size: usize| u64::try_from(size).unwrap_or(u64::MAX);
        let sizes = self.policy.sizes();
        let lost = self.lost.get().map_or(0, |lost| load(lost));
        let gauge = |name: &str, help, value| (name.to_owned(), (help, false, value));
        let count = |name: &str, help, value| (name.to_owned(), (help, true, value));
        let own = [
            gauge("sluice_proxy_serving", "1 while connections are taken", self.serving().into()),
            gauge("sluice_proxy_policyd_connected", "1 while policyd is there", self.status.connected().into()),
            gauge("sluice_proxy_policy_version", "policyd's number of what is in force", self.status.version()),
            gauge("sluice_proxy_policy_lists", "Lists of application rules in force", size(sizes.lists)),
            gauge("sluice_proxy_policy_decisions", "Decisions whose meaning is known", size(sizes.decisions)),
            gauge("sluice_proxy_policy_endpoints", "Pods that are known", size(sizes.endpoints)),
            count("sluice_proxy_policy_updates", "Changes that policyd told", self.status.updates()),
            count("sluice_proxy_policy_faults", "Parts of what policyd told that cannot be used", self.policy.faults()),
            count("sluice_proxy_policyd_connections", "Times that policyd was reached", self.status.connections()),
            gauge(
                "sluice_proxy_connections_open",
                "Connections that are open",
                size(self.flows.open.load(Ordering::Relaxed)),
            ),
            count(
                "sluice_proxy_flows_refused",
                "Connections reset because a gate denies them or nothing is known of them",
                load(&self.flows.refused),
            ),
            count(
                "sluice_proxy_flows_unsettled",
                "Of these: policyd had not told within a second what their decision means",
                load(&self.flows.unsettled),
            ),
            count(
                "sluice_proxy_not_accepted",
                "Times that no connection could be accepted, as without file descriptors",
                load(&self.flows.not_accepted),
            ),
            count("sluice_proxy_records", "Records of requests, questions and connections", self.ring.last()),
            count("sluice_proxy_records_refused", "Of these: of what did not pass", self.ring.refused()),
            count(
                "sluice_proxy_records_dry_run_refused",
                "Of these: of what passed and would not, were the dry runs in force",
                self.ring.would_be_refused(),
            ),
            count("sluice_proxy_records_lost", "Records that did not come into the file", lost),
        ];
        let parts = self.parts.iter().flat_map(|part| part());
        own.into_iter().chain(parts.map(|(name, help, value)| (name, (help, true, value)))).collect()
    }

    /// All of them as text (Prometheus text format 0.0.4).
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        for (name, (help, grows, value)) in self.each() {
            let kind = kind(grows);
            // Writing to a string does not fail.
            let _written = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
        text
    }

    /// The table of docs/proxy-metrics.md.
    #[must_use]
    pub fn table(&self) -> String {
        let rows = self.each();
        let rows = rows.iter().map(|(name, (help, grows, _))| row(name, kind(*grows), &[], help));
        format!("{TABLE}{}", rows.collect::<String>())
    }
}

/// Prometheus' type of what only grows, or of what does not.
const fn kind(grows: bool) -> &'static str {
    if grows { "counter" } else { "gauge" }
}

#[cfg(test)]
mod tests {
    use sluice_contract::proxy::Snapshot;

    use super::*;

    /// docs/proxy-metrics.md is made from what is served. With `UPDATE_GOLDENS` set in the environment it is written anew.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test's own switch")]
    fn the_page_of_metrics_is_up_to_date() {
        let (names, _link) = names::Names::new(None);
        let metrics = Metrics::new(
            Arc::new(Ring::new(16, 1)),
            Arc::new(Pushed::new(&Snapshot::default())),
            Arc::default(),
            Arc::default(),
            parts(Arc::default(), Arc::default(), names.counters()),
        );
        let mut text = String::from(
            "# Metrics of the proxy\n\nServed on port 9963 under /metrics, Prometheus text format. This page is made from what \
             is served.\n\n",
        );
        text.push_str(&metrics.table());
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/proxy-metrics.md");
        if std::env::var("UPDATE_GOLDENS").is_ok() {
            std::fs::write(&path, &text).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == text, "set UPDATE_GOLDENS to write docs/proxy-metrics.md anew");
        assert!(metrics.encode().lines().filter(|line| !line.starts_with('#')).count() > 40);
    }
}
