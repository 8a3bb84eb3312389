//! The registry of policyd's metrics. Counters count where things happen; gauges are set from the state when somebody asks.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use sluice_contract::rpc::RefusalCode;
use sluice_daemon::metrics::{Count, Named, Seconds, seconds};
use sluice_policy_bpf::layout::DropReason;

use crate::flows::FlowMetrics;
use crate::view::View;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct Code {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct Part {
    part: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct Map {
    map: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct Rule {
    verdict: &'static str,
    rule: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// Rules that are counted one by one; packets of others are in the sum `other`.
const MAX_RULES: usize = 1000;

/// Among the causes of drops: an event that was not told, and a judgement that was not counted by its rule.
const UNTOLD: [&str; 2] = [DropReason::EventLost.as_str(), DropReason::CounterLost.as_str()];

/// All metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Mutex<Named>,
    adds: Count,
    add_seconds: Seconds,
    refusals: Family<Code, Count>,
    rejected: Family<Reason, Count>,
    errors: Family<Part, Count>,
    events: Count,
    commits: Count,
    commit_seconds: Seconds,
    apply_seconds: Seconds,
    operations: Count,
    apply_failures: Family<Map, Count>,
    repaired: Count,
    promoted: Count,
    superseded: Count,
    tombstones: Count,
    notices: Count,
    names_learned: Count,
    names_dropped: Family<Reason, Count>,
    names_in_use: Count,
    name_addresses: Gauge,
    rules: Family<Rule, Gauge>,
    drops: Family<Reason, Gauge>,
    untold: Family<Reason, Gauge>,
    endpoints: Gauge,
    locked: Gauge,
    waiting: Gauge,
    adoptable: Gauge,
    synced: Gauge,
    stale: Gauge,
    policies: Gauge,
    pods: Gauge,
    faults: Gauge,
    revision: Gauge,
    proxy_updates: Count,
    proxy_late: Count,
    proxy_seconds: Seconds,
    proxies: Gauge,
    proxy_decisions: Gauge,
    proxy_lists: Gauge,
    flows: Gauge,
    of_flows: FlowMetrics,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let metrics = Self {
            registry: Mutex::default(),
            adds: Count::default(),
            add_seconds: seconds(),
            refusals: Family::default(),
            rejected: Family::default(),
            errors: Family::default(),
            events: Count::default(),
            commits: Count::default(),
            commit_seconds: seconds(),
            apply_seconds: seconds(),
            operations: Count::default(),
            apply_failures: Family::default(),
            repaired: Count::default(),
            promoted: Count::default(),
            superseded: Count::default(),
            tombstones: Count::default(),
            notices: Count::default(),
            names_learned: Count::default(),
            names_dropped: Family::default(),
            names_in_use: Count::default(),
            name_addresses: Gauge::default(),
            rules: Family::default(),
            drops: Family::default(),
            untold: Family::default(),
            endpoints: Gauge::default(),
            locked: Gauge::default(),
            waiting: Gauge::default(),
            adoptable: Gauge::default(),
            synced: Gauge::default(),
            stale: Gauge::default(),
            policies: Gauge::default(),
            pods: Gauge::default(),
            faults: Gauge::default(),
            revision: Gauge::default(),
            proxy_updates: Count::default(),
            proxy_late: Count::default(),
            proxy_seconds: seconds(),
            proxies: Gauge::default(),
            proxy_decisions: Gauge::default(),
            proxy_lists: Gauge::default(),
            flows: Gauge::default(),
            of_flows: FlowMetrics::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let mut named = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut add = |name, help, metric: &dyn Registered| metric.register(&mut named, name, help);
        add("sluice_policy_add_requests", "ADDs of the chained plugin", &self.adds);
        add("sluice_policy_add_seconds", "From an ADD to its answer", &self.add_seconds);
        add("sluice_policy_add_waiting", "ADDs that wait for their pod's policy", &self.waiting);
        add("sluice_policy_refusals", "Requests that were refused, by code", &self.refusals);
        add("sluice_policy_connections_rejected", "Connections that brought no request, by reason", &self.rejected);
        add("sluice_policy_errors", "Faults of policyd's own, by part", &self.errors);
        add("sluice_policy_events", "Changes that the cluster told", &self.events);
        add("sluice_policy_commits", "Times that changes were compiled", &self.commits);
        add("sluice_policy_commit_seconds", "Compiling a batch of changes", &self.commit_seconds);
        add("sluice_policy_apply_seconds", "Writing a batch of changes to the kernel", &self.apply_seconds);
        add("sluice_policy_operations", "Writes to the kernel's maps", &self.operations);
        add(
            "sluice_policy_apply_failures",
            "Writes that failed, by the map that was full; none where the kernel refused",
            &self.apply_failures,
        );
        add(
            "sluice_policy_gates_repaired",
            "Gates that somebody took off an interface and that were put back",
            &self.repaired,
        );
        add(
            "sluice_policy_gates_linked",
            "Gates by filters that were given links (tcx), which outlast who takes filters away",
            &self.promoted,
        );
        add(
            "sluice_policy_endpoints_superseded",
            "Endpoints turned to drop because another pod has their pod's name",
            &self.superseded,
        );
        add("sluice_policy_tombstones", "DELs that were left behind while policyd was down", &self.tombstones);
        add(
            "sluice_policy_outbox_dropped",
            "Events, statuses and addresses that were not sent: too many waited, or they failed too often",
            &self.notices,
        );
        add("sluice_policy_names_learned", "Resolutions of names that the proxy told", &self.names_learned);
        add("sluice_policy_names_dropped", "Resolutions of names that were not kept, by reason", &self.names_dropped);
        add(
            "sluice_policy_names_kept_in_use",
            "Addresses of names that were past their time and stayed, because a pod uses them",
            &self.names_in_use,
        );
        add("sluice_policy_name_addresses", "Addresses of names that are known", &self.name_addresses);
        add("sluice_policy_endpoints", "Host interfaces that have a gate", &self.endpoints);
        add("sluice_policy_endpoints_locked", "Pods that are locked down because a map is full", &self.locked);
        add(
            "sluice_policy_pods_without_gate",
            "Pods of the node with an address and no gate: they were there before",
            &self.adoptable,
        );
        add("sluice_policy_synced", "1 when all that the cluster says has come since the start", &self.synced);
        add("sluice_policy_stale", "1 when the cluster does not answer, and what is known may be old", &self.stale);
        add("sluice_policy_policies", "Policies that are known", &self.policies);
        add("sluice_policy_pods", "Pods that are known", &self.pods);
        add("sluice_policy_faulty_objects", "Objects in which something is wrong", &self.faults);
        add("sluice_policy_revision", "Number of the node's policy that is in force", &self.revision);
        add("sluice_policy_rule_packets", "Packets by the rule that decided", &self.rules);
        add("sluice_policy_dropped_packets", "Packets dropped without a rule, by reason", &self.drops);
        add(
            "sluice_policy_packets_untold",
            "Packets whose event was not told, or whose judgement not counted by its rule, because there were too many",
            &self.untold,
        );
        add("sluice_policy_proxies", "Proxies that are connected", &self.proxies);
        add("sluice_policy_proxy_updates", "Changes that proxies were told of", &self.proxy_updates);
        add(
            "sluice_policy_proxy_late",
            "Times that a proxy had not taken in a decision when the kernel got it",
            &self.proxy_late,
        );
        add(
            "sluice_policy_proxy_seconds",
            "From telling a decision to the proxies having it in force",
            &self.proxy_seconds,
        );
        add(
            "sluice_policy_proxy_decisions",
            "Decisions that redirect to the proxy, dry runs included",
            &self.proxy_decisions,
        );
        add("sluice_policy_proxy_lists", "Lists of application rules that the proxy is told", &self.proxy_lists);
        add("sluice_policy_flows", "Flows that can be looked at", &self.flows);
        self.of_flows.register(&mut add);
        let build: Family<Build, Gauge> = Family::default();
        build.get_or_create(&Build { version: env!("CARGO_PKG_VERSION") }).set(1);
        add("sluice_policy_build_info", "The version of policyd", &build);
    }

    /// Has others register theirs.
    pub(crate) fn register_more(&self, register: impl FnOnce(&mut Named)) {
        register(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// All metrics as text.
    pub(crate) fn encode(&self) -> String {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).encode()
    }

    /// Sets the gauges.
    pub(crate) fn set(&self, view: &View) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.endpoints.set(number(view.endpoints.len()));
        self.locked.set(number(view.endpoints.iter().filter(|endpoint| endpoint.locked).count()));
        self.waiting.set(number(view.waiting));
        self.adoptable.set(number(view.without_gate.len()));
        self.synced.set(view.synced.into());
        self.stale.set(view.stale.is_some().into());
        self.policies.set(number(view.policies.len()));
        self.pods.set(number(view.pods));
        self.faults.set(number(view.faults.len()));
        self.name_addresses.set(number(view.name_addresses));
        self.flows.set(number(view.flows.kept));
        self.revision.set(i64::try_from(view.revision).unwrap_or(i64::MAX));
        self.proxies.set(number(view.proxy.connected));
        self.proxy_decisions.set(number(view.proxy.decisions));
        self.proxy_lists.set(number(view.proxy.lists));
        self.rules.clear();
        for (at, counter) in view.counters.iter().enumerate() {
            let rule = if at < MAX_RULES { counter.rule.clone() } else { "other".to_owned() };
            let packets = i64::try_from(counter.packets).unwrap_or(i64::MAX);
            self.rules.get_or_create(&Rule { verdict: counter.verdict, rule }).inc_by(packets);
        }
        for (reason, packets) in &view.drops {
            let packets = i64::try_from(*packets).unwrap_or(i64::MAX);
            // What the programs could not tell, or count, is no drop.
            let family = if UNTOLD.contains(reason) { &self.untold } else { &self.drops };
            family.get_or_create(&Reason { reason }).set(packets);
        }
    }

    /// What flows are counted by.
    pub(crate) fn of_flows(&self) -> FlowMetrics {
        self.of_flows.clone()
    }

    pub(crate) fn add_begun(&self) {
        self.adds.add();
    }

    pub(crate) fn add_ended(&self, took: Duration) {
        self.add_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn refused(&self, code: RefusalCode) {
        self.refusals.get_or_create(&Code { code: code.as_str() }).add();
    }

    pub(crate) fn rejected(&self, reason: &'static str) {
        self.rejected.get_or_create(&Reason { reason }).add();
    }

    pub(crate) fn error(&self, part: &'static str) {
        self.errors.get_or_create(&Part { part }).add();
    }

    pub(crate) fn told(&self) {
        self.events.add();
    }

    pub(crate) fn committed(&self, compiled: Duration, applied: Duration, operations: usize) {
        self.commits.add();
        self.commit_seconds.observe(compiled.as_secs_f64());
        self.apply_seconds.observe(applied.as_secs_f64());
        for _ in 0..operations {
            self.operations.add();
        }
    }

    pub(crate) fn apply_failed(&self, map: &'static str) {
        self.apply_failures.get_or_create(&Map { map: if map.is_empty() { "none" } else { map } }).add();
    }

    pub(crate) fn repaired(&self) {
        self.repaired.add();
    }

    pub(crate) fn promoted(&self) {
        self.promoted.add();
    }

    pub(crate) fn superseded(&self) {
        self.superseded.add();
    }

    pub(crate) fn tombstone(&self) {
        self.tombstones.add();
    }

    pub(crate) fn proxy_update(&self) {
        self.proxy_updates.add();
    }

    pub(crate) fn proxy_told(&self, took: Duration) {
        self.proxy_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn proxy_late(&self, proxies: usize) {
        (0..proxies).for_each(|_| self.proxy_late.add());
    }

    pub(crate) fn name_learned(&self) {
        self.names_learned.add();
    }

    pub(crate) fn names_dropped(&self, reason: &'static str) {
        self.names_dropped.get_or_create(&Reason { reason }).add();
    }

    pub(crate) fn names_in_use(&self, count: usize) {
        for _ in 0..count {
            self.names_in_use.add();
        }
    }

    pub(crate) fn outbox_dropped(&self) {
        self.notices.add();
    }
}

/// A metric that can be registered by reference: all of them share what they hold when they are cloned.
pub(crate) trait Registered {
    fn register(&self, named: &mut Named, name: &'static str, help: &'static str);
}

impl Registered for Count {
    fn register(&self, named: &mut Named, name: &'static str, help: &'static str) {
        named.register(name, help, self.clone());
    }
}

impl Registered for Gauge {
    fn register(&self, named: &mut Named, name: &'static str, help: &'static str) {
        named.register(name, help, self.clone());
    }
}

impl Registered for Seconds {
    fn register(&self, named: &mut Named, name: &'static str, help: &'static str) {
        named.register(name, help, self.clone());
    }
}

impl<S, M, C> Registered for Family<S, M, C>
where
    S: EncodeLabelSet + Default + Clone + Hash + Eq + Debug + Send + Sync + 'static,
    M: EncodeMetric + TypedMetric + Debug + Send + Sync + 'static,
    C: MetricConstructor<M> + Clone + Send + Sync + 'static,
    Self: Debug,
{
    fn register(&self, named: &mut Named, name: &'static str, help: &'static str) {
        named.register_family(name, help, self.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// docs/policyd-metrics.md is made from the registry. With `UPDATE_GOLDENS` set in the environment it is written anew.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test's own switch")]
    fn the_page_of_metrics_is_up_to_date() {
        let metrics = Metrics::new();
        metrics.register_more(|named| crate::cluster::kube::Metrics::default().register(named));
        let text = format!(
            "# Metrics of policyd\n\nServed on port 9962 under /metrics, Prometheus text format. This page is made from the registry.\n\
             `sluice_policy_kube_*` are there where the cluster is an API server.\n\n{}",
            metrics.registry.lock().unwrap().table()
        );
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/policyd-metrics.md");
        if std::env::var("UPDATE_GOLDENS").is_ok() {
            std::fs::write(&path, &text).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == text, "set UPDATE_GOLDENS to write docs/policyd-metrics.md anew");
    }

    /// However many pods there were, and whatever they asked for: there are no more series than kinds of things.
    #[test]
    fn a_thousand_pods_make_no_series() {
        let metrics = Metrics::new();
        let series = |metrics: &Metrics| metrics.encode().lines().filter(|line| !line.starts_with('#')).count();
        let mut most = 0;
        for round in 0..3_u32 {
            for pod in 0..1_000_u32 {
                churned(&metrics, round * 1_000 + pod);
            }
            let now = series(&metrics);
            assert!(round == 0 || now == most, "{now} series after {most}, with pods that were not there before");
            most = now;
        }
        assert!(most < MAX_RULES + 1_000, "{most} series");
    }

    /// What a pod leaves behind in the metrics: flows of all kinds, requests and questions of its own, and a rule for it.
    fn churned(metrics: &Metrics, pod: u32) {
        let flows = metrics.of_flows();
        for record in crate::flows::samples(pod) {
            flows.count(&record);
        }
        let counters = (pod..pod + 1_500).map(|pod| crate::view::CounterView {
            rule: format!("NetworkPolicy ns/pod-{pod}, ingress[0]"),
            verdict: "allow",
            packets: 1,
        });
        // The view is what costs; once in a while is enough.
        if pod % 500 == 499 {
            metrics.set(&View { counters: counters.collect(), ..View::default() });
        }
    }
}
