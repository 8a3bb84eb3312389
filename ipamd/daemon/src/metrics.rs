//! The one registry of metrics: VPC CNI's names for what VPC CNI has, `sluice_*` for the rest.
//!
//! Names are written exactly as VPC CNI writes them (Prometheus text format 0.0.4), so that dashboards carry over.
//! Counters count where things happen; gauges of the pool are set from the state when somebody asks.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use serde::Serialize;
use sluice_contract::rpc::RefusalCode;
use sluice_daemon::metrics::{Count, Named, Rate, Seconds, seconds};
use sluice_ipamd_core::cloud::{Api, CloudError};

/// Seconds to a repair; the last one is what is promised.
const REPAIR_BUCKETS: [f64; 5] = [0.15, 0.3, 0.6, 1.0, 2.0];

/// Seconds to a start: most take a few, and one that waits for EC2 minutes.
const START_BUCKETS: [f64; 8] = [0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0];

/// For how long what EC2 said of subnets is told, in seconds: a node at rest does not ask again.
const SUBNETS_TOLD: u64 = 900;

/// `fn`, VPC CNI's word for a call or a part of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct Function {
    r#fn: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct Code {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct ApiLabel {
    api: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct Latency {
    api: String,
    error: String,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct ApiError {
    api: String,
    error: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct FunctionError {
    r#fn: String,
    error: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct StartLabels {
    success: &'static str,
    with_api_server: &'static str,
    failure_reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct Success {
    success: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct CidrLabel {
    cidr: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct EniLabel {
    eni: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct SubnetLabel {
    subnet: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// Calls of one API since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CallCount {
    /// All.
    pub calls: u64,
    /// Those that failed, throttled ones among them.
    pub failed: u64,
    /// Those that EC2 throttled.
    pub throttled: u64,
}

/// The pool in numbers, as the gauges show it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PoolGauges {
    /// ENIs that are attached or being attached.
    pub enis: u32,
    /// ENIs that the instance may have.
    pub max_enis: u32,
    /// Addresses that all these could have.
    pub max_addresses: u32,
    /// Addresses of any state.
    pub total: u32,
    /// Addresses that an ADD could have at once.
    pub free: u32,
    /// Addresses that pods hold.
    pub assigned: u32,
    /// Addresses that are cooling.
    pub cooling: u32,
    /// Addresses that are alive in the kernel and nobody's.
    pub quarantined: u32,
    /// Addresses on ENIs that are not in service yet.
    pub pending: u32,
    /// /28 prefixes.
    pub prefixes: u32,
    /// ADDs that wait.
    pub waiting: u32,
    /// Operations under way.
    pub flights: u32,
    /// Rules of the ledger that were broken when last checked.
    pub violations: u32,
    /// Addresses that pods hold, by ENI.
    pub assigned_by_eni: BTreeMap<String, u32>,
    /// Addresses that pods hold, by prefix or single address; those of which pods hold none are left out.
    pub assigned_by_cidr: BTreeMap<String, u32>,
    /// Free addresses of subnets when EC2 was last asked.
    pub free_by_subnet: BTreeMap<String, u32>,
    /// How long ago that was, in seconds; none where it was before the start.
    pub subnets_seen: Option<u64>,
    /// Subnets that had no whole /28 when EC2 was last asked for one, where prefixes are wanted.
    pub without_prefixes: Vec<String>,
}

/// What the daemon counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Named,
    calls: Mutex<BTreeMap<String, CallCount>>,
    errors: Family<Function, Count>,
    add_requests: Count,
    del_requests: Family<Reason, Count>,
    no_address: Count,
    reconciles: Family<Function, Count>,
    api_latency: Family<Latency, Histogram>,
    api_errors: Family<ApiError, Count>,
    ec2_requests: Family<Function, Count>,
    ec2_errors: Family<Function, Count>,
    given_up: Family<FunctionError, Count>,
    start_seconds: Family<StartLabels, Histogram>,
    node_seconds: Family<Success, Histogram>,
    rates: Family<ApiLabel, Rate>,
    add_seconds: Seconds,
    del_seconds: Seconds,
    wait_seconds: Seconds,
    checkpoint_seconds: Seconds,
    checkpoint_failures: Count,
    refusals: Family<Code, Count>,
    rejected: Family<Reason, Count>,
    tombstones: Count,
    undelivered: Count,
    repairs: Family<Kind, Count>,
    repair_seconds: Histogram,
    litter: Family<Kind, Count>,
    flows_forgotten: Count,
    flow_failures: Count,
    flows_left: Count,
    elected: Gauge,
    leaked: Gauge,
    groups: Gauge,
    groups_left_out: Gauge,
    leaks_deleted: Count,
    reports_dropped: Count,
    gauges: BTreeMap<&'static str, Gauge>,
    eni_assigned: Family<EniLabel, Gauge>,
    cidr_assigned: Family<CidrLabel, Gauge>,
    subnet_free: Family<SubnetLabel, Gauge>,
}

/// Gauges of the pool: name, meaning, and where the value is.
type GaugeSpec = (&'static str, &'static str, fn(&PoolGauges) -> u32);

const GAUGES: &[GaugeSpec] = &[
    ("awscni_eni_allocated", "ENIs attached to the node", |p| p.enis),
    ("awscni_eni_max", "ENIs that the node may have", |p| p.max_enis),
    ("awscni_ip_max", "Addresses that the node may have", |p| p.max_addresses),
    ("awscni_total_ip_addresses", "Addresses that the node has", |p| p.total),
    ("awscni_assigned_ip_addresses", "Addresses that pods hold", |p| p.assigned),
    ("awscni_total_ipv4_prefixes", "Prefixes that the node has", |p| p.prefixes),
    ("awscni_ipamd_action_inprogress", "Operations under way", |p| p.flights),
    ("sluice_ipamd_free_ip_addresses", "Addresses that a pod could have at once", |p| p.free),
    ("sluice_ipamd_cooling_ip_addresses", "Addresses that rest after their pod has gone", |p| p.cooling),
    ("sluice_ipamd_quarantined_ip_addresses", "Addresses alive in the kernel that are nobody's", |p| p.quarantined),
    ("sluice_ipamd_pending_ip_addresses", "Addresses on ENIs that are not in service yet", |p| p.pending),
    ("sluice_ipamd_waiting_adds", "ADDs that wait for an address", |p| p.waiting),
    ("sluice_ipamd_subnets_without_prefixes", "Subnets that had no whole /28 when EC2 was last asked for one", |p| {
        u32::try_from(p.without_prefixes.len()).unwrap_or(u32::MAX)
    }),
    ("sluice_ipamd_invariant_violations", "Rules of the ledger broken when last checked", |p| p.violations),
];

impl Metrics {
    /// All metrics at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Named::default();
        let mut gauges = BTreeMap::new();
        for (name, help, _) in GAUGES {
            let gauge = Gauge::default();
            registry.register(*name, help, gauge.clone());
            gauges.insert(*name, gauge);
        }
        let metrics = Self {
            registry: Named::default(),
            calls: Mutex::default(),
            errors: Family::default(),
            add_requests: Count::default(),
            del_requests: Family::default(),
            no_address: Count::default(),
            reconciles: Family::default(),
            // A summary in VPC CNI: sum and count are what its dashboards use.
            api_latency: Family::new_with_constructor(|| Histogram::new([])),
            api_errors: Family::default(),
            ec2_requests: Family::default(),
            ec2_errors: Family::default(),
            given_up: Family::default(),
            start_seconds: Family::new_with_constructor(|| Histogram::new(START_BUCKETS)),
            node_seconds: Family::new_with_constructor(|| Histogram::new(START_BUCKETS)),
            rates: Family::default(),
            add_seconds: seconds(),
            del_seconds: seconds(),
            wait_seconds: seconds(),
            checkpoint_seconds: seconds(),
            checkpoint_failures: Count::default(),
            refusals: Family::default(),
            rejected: Family::default(),
            tombstones: Count::default(),
            undelivered: Count::default(),
            repairs: Family::default(),
            repair_seconds: Histogram::new(REPAIR_BUCKETS),
            litter: Family::default(),
            flows_forgotten: Count::default(),
            flow_failures: Count::default(),
            flows_left: Count::default(),
            elected: Gauge::default(),
            leaked: Gauge::default(),
            groups: Gauge::default(),
            groups_left_out: Gauge::default(),
            leaks_deleted: Count::default(),
            reports_dropped: Count::default(),
            gauges,
            eni_assigned: Family::default(),
            cidr_assigned: Family::default(),
            subnet_free: Family::default(),
        };
        metrics.register(&mut registry);
        Self { registry, ..metrics }
    }

    fn register(&self, registry: &mut Named) {
        let build: Family<Build, Gauge> = Family::default();
        build.get_or_create(&Build { version: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register_family("awscni_build_info", "Version of the daemon", build);
        registry.register_family("awscni_ipamd_error_count", "Errors by part of the daemon", self.errors.clone());
        registry.register("awscni_add_ip_req_count", "ADD requests", self.add_requests.clone());
        registry.register_family("awscni_del_ip_req_count", "DEL requests", self.del_requests.clone());
        let help = "ADD requests that found no free address and had to wait";
        registry.register("awscni_no_available_ip_addresses", help, self.no_address.clone());
        registry.register_family(
            "awscni_reconcile_count",
            "Comparisons with kernel, IMDS and EC2",
            self.reconciles.clone(),
        );
        let help = "Time of calls of EC2 and IMDS in milliseconds";
        registry.register_family("awscni_aws_api_latency_ms", help, self.api_latency.clone());
        let help = "Calls of EC2 and IMDS that failed";
        registry.register_family("awscni_aws_api_error_count", help, self.api_errors.clone());
        registry.register_family("awscni_ec2api_req_count", "Calls of EC2", self.ec2_requests.clone());
        registry.register_family("awscni_ec2api_error_count", "Calls of EC2 that failed", self.ec2_errors.clone());
        registry.register_family(
            "awscni_assigned_ip_per_eni",
            "Addresses that pods hold, by ENI",
            self.eni_assigned.clone(),
        );
        let help = "Addresses that pods hold, by prefix or single address; those of which they hold none are left out";
        registry.register_family("awscni_assigned_ip_per_cidr", help, self.cidr_assigned.clone());
        let help = "Calls of EC2 and IMDS given up for the time being, those among them that were not made because too many waited";
        registry.register_family("awscni_aws_utils_error_count", help, self.given_up.clone());
        let help = "Time from when the daemon had the node to itself until it answered plugins, in seconds; it waits for no API server";
        registry.register_family("awscni_ipamd_startup_duration_seconds", help, self.start_seconds.clone());
        let help = "Time from when the daemon's loop began until the node's network was set up for the first time, in seconds; attempts that failed by their end";
        registry.register_family("awscni_ipamd_node_initialization_duration_seconds", help, self.node_seconds.clone());
        let help = "Calls a second that the daemon allows itself";
        registry.register_family("sluice_ipamd_api_rate", help, self.rates.clone());
        let help = "Time from an ADD request to its reply in seconds";
        registry.register("sluice_ipamd_add_duration_seconds", help, self.add_seconds.clone());
        let help = "Time from a DEL request to its reply in seconds";
        registry.register("sluice_ipamd_del_duration_seconds", help, self.del_seconds.clone());
        let help = "Time that served ADDs waited for an address in seconds";
        registry.register("sluice_ipamd_add_wait_seconds", help, self.wait_seconds.clone());
        let help = "Time to write the checkpoint in seconds";
        registry.register("sluice_ipamd_checkpoint_duration_seconds", help, self.checkpoint_seconds.clone());
        let help = "Checkpoints that could not be written";
        registry.register("sluice_ipamd_checkpoint_failures_total", help, self.checkpoint_failures.clone());
        registry.register_family("sluice_ipamd_refusals_total", "Requests that were refused", self.refusals.clone());
        let help = "Connections that were closed without a request being heard";
        registry.register_family("sluice_ipamd_rejected_connections_total", help, self.rejected.clone());
        let help = "DELs that the plugin left behind as tombstones";
        registry.register("sluice_ipamd_tombstones_total", help, self.tombstones.clone());
        let help = "Replies that could not be written";
        registry.register("sluice_ipamd_undelivered_replies_total", help, self.undelivered.clone());
        let help = "Changes that put right what others had changed of the node's network, by kind";
        registry.register_family("sluice_ipamd_repairs_total", help, self.repairs.clone());
        let help = "Time from when others' change of the node's network was heard of until it was mended, in seconds";
        registry.register("sluice_ipamd_repair_seconds", help, self.repair_seconds.clone());
        let help = "Times that something was removed which a pod that is gone had left in the kernel, by kind";
        registry.register_family("sluice_ipamd_litter_total", help, self.litter.clone());
        let help = "Flows that connection tracking was made to forget because their pod is gone";
        registry.register("sluice_ipamd_flows_forgotten_total", help, self.flows_forgotten.clone());
        let help = "Attempts to make connection tracking forget flows that failed";
        registry.register("sluice_ipamd_flow_failures_total", help, self.flow_failures.clone());
        let help = "Addresses of pods that are gone whose flows were left: too many wait";
        registry.register("sluice_ipamd_flows_left_total", help, self.flows_left.clone());
        let help = "Events and conditions for the cluster that were not taken: too many wait";
        registry.register("sluice_ipamd_reports_dropped_total", help, self.reports_dropped.clone());
        registry.register(
            "sluice_ipamd_elected",
            "Whether this node does what one of the cluster does",
            self.elected.clone(),
        );
        let help = "ENIs of the cluster that are attached to nothing and whose instance is gone";
        registry.register("sluice_ipamd_left_enis", help, self.leaked.clone());
        let help = "Groups of AWS's interfaces that policies name and this node asks EC2 for, on behalf of the cluster";
        registry.register("sluice_ipamd_groups", help, self.groups.clone());
        let help = "Groups of AWS's interfaces that policies name and nobody asks EC2 for: there are too many";
        registry.register("sluice_ipamd_groups_left_out", help, self.groups_left_out.clone());
        let help = "ENIs that nodes which are gone had left behind and that were deleted";
        registry.register("sluice_ipamd_left_enis_deleted_total", help, self.leaks_deleted.clone());
        let help =
            "Free addresses of a subnet when EC2 was last asked; not told by a node that has not asked for 15 minutes";
        registry.register_family("sluice_subnet_free_addresses", help, self.subnet_free.clone());
    }

    /// The text that Prometheus reads.
    #[must_use]
    pub fn encode(&self) -> String {
        self.registry.encode()
    }

    /// Calls of each API since the start.
    #[must_use]
    pub fn calls(&self) -> BTreeMap<String, CallCount> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Brings the gauges up to date.
    pub fn set_pool(&self, pool: &PoolGauges) {
        for (name, _, value) in GAUGES {
            if let Some(gauge) = self.gauges.get(name) {
                gauge.set(value(pool).into());
            }
        }
        self.eni_assigned.clear();
        for (eni, assigned) in &pool.assigned_by_eni {
            self.eni_assigned.get_or_create(&EniLabel { eni: eni.clone() }).set((*assigned).into());
        }
        self.cidr_assigned.clear();
        for (cidr, assigned) in &pool.assigned_by_cidr {
            self.cidr_assigned.get_or_create(&CidrLabel { cidr: cidr.clone() }).set((*assigned).into());
        }
        self.subnet_free.clear();
        let is_told = pool.subnets_seen.is_some_and(|ago| ago <= SUBNETS_TOLD);
        for (subnet, free) in pool.free_by_subnet.iter().filter(|_| is_told) {
            self.subnet_free.get_or_create(&SubnetLabel { subnet: subnet.clone() }).set((*free).into());
        }
    }

    pub(crate) fn api_call(&self, api: Api, took: Duration, error: Option<&CloudError>) {
        let name = api.to_string();
        // EC2's codes are a bounded set, but what stands in for one may come from a proxy in between.
        let code = error.map_or(String::new(), |error| error.code.chars().take(64).collect());
        {
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            let count = calls.entry(name.clone()).or_default();
            count.calls += 1;
            count.failed += u64::from(error.is_some());
            count.throttled +=
                u64::from(error.is_some_and(|e| e.kind == sluice_ipamd_core::cloud::CloudErrorKind::Throttled));
        }
        let status = if error.is_some() { "error" } else { "ok" };
        let failed = error.is_some();
        let latency = Latency { api: name.clone(), error: failed.to_string(), status };
        self.api_latency.get_or_create(&latency).observe(took.as_secs_f64() * 1000.0);
        if failed {
            self.api_errors.get_or_create(&ApiError { api: name.clone(), error: code }).add();
        }
        if api != Api::Imds {
            let function = Function { r#fn: name };
            self.ec2_requests.get_or_create(&function).add();
            if failed {
                self.ec2_errors.get_or_create(&function).add();
            }
        }
    }

    /// A call of EC2 or IMDS has failed, or was not made.
    pub(crate) fn gave_up(&self, api: Api, code: &str) {
        let labels = FunctionError { r#fn: api.to_string(), error: code.chars().take(64).collect() };
        self.given_up.get_or_create(&labels).add();
    }

    /// Plugins are answered, so long after the daemon had the node to itself.
    pub(crate) fn started(&self, took: Duration) {
        // A start that fails ends the process: nobody could read of it.
        let labels = StartLabels { success: "true", with_api_server: "false", failure_reason: "" };
        self.start_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// The node's network is set up for the first time, or an attempt has failed.
    pub(crate) fn node_set_up(&self, took: Duration, success: bool) {
        let success = if success { "true" } else { "false" };
        self.node_seconds.get_or_create(&Success { success }).observe(took.as_secs_f64());
    }

    pub(crate) fn api_rate(&self, api: Api, rate: f64) {
        self.rates.get_or_create(&ApiLabel { api: api.to_string() }).set(rate);
    }

    pub(crate) fn error(&self, part: &str) {
        self.errors.get_or_create(&Function { r#fn: part.to_owned() }).add();
    }

    pub(crate) fn reconcile(&self, with: &str) {
        self.reconciles.get_or_create(&Function { r#fn: with.to_owned() }).add();
    }

    pub(crate) fn add_begun(&self) {
        self.add_requests.add();
    }

    pub(crate) fn add_waits(&self) {
        self.no_address.add();
    }

    pub(crate) fn add_ended(&self, took: Duration) {
        self.add_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn add_waited(&self, waited: Duration) {
        self.wait_seconds.observe(waited.as_secs_f64());
    }

    pub(crate) fn del_begun(&self, reason: &'static str) {
        self.del_requests.get_or_create(&Reason { reason }).add();
    }

    pub(crate) fn del_ended(&self, took: Duration) {
        self.del_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn refused(&self, code: RefusalCode) {
        self.refusals.get_or_create(&Code { code: code.as_str() }).add();
    }

    pub(crate) fn rejected(&self, reason: &'static str) {
        self.rejected.get_or_create(&Reason { reason }).add();
    }

    pub(crate) fn checkpoint(&self, took: Duration, written: bool) {
        self.checkpoint_seconds.observe(took.as_secs_f64());
        if !written {
            self.checkpoint_failures.add();
        }
    }

    pub(crate) fn tombstone(&self) {
        self.tombstones.add();
    }

    pub(crate) fn repaired(&self, kind: &'static str) {
        self.repairs.get_or_create(&Kind { kind }).add();
    }

    pub(crate) fn mended(&self, took: Duration) {
        self.repair_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn littered(&self, kind: &'static str) {
        self.litter.get_or_create(&Kind { kind }).add();
    }

    pub(crate) fn flows_forgotten(&self, count: usize) {
        self.flows_forgotten.add_many(u64::try_from(count).unwrap_or(u64::MAX));
    }

    pub(crate) fn flows_not_forgotten(&self) {
        self.flow_failures.add();
    }

    pub(crate) fn flows_left(&self) {
        self.flows_left.add();
    }

    /// Where a cluster's source registers its own.
    pub(crate) const fn registry(&mut self) -> &mut Named {
        &mut self.registry
    }

    pub(crate) fn report_dropped(&self) {
        self.reports_dropped.add();
    }

    pub(crate) fn elected(&self, elected: bool) {
        self.elected.set(elected.into());
        if !elected {
            self.leaked.set(0);
            self.groups.set(0);
            self.groups_left_out.set(0);
        }
    }

    pub(crate) fn leaks_seen(&self, alone: usize) {
        self.leaked.set(alone.try_into().unwrap_or(i64::MAX));
    }

    pub(crate) fn groups_wanted(&self, groups: usize, left_out: usize) {
        self.groups.set(groups.try_into().unwrap_or(i64::MAX));
        self.groups_left_out.set(left_out.try_into().unwrap_or(i64::MAX));
    }

    pub(crate) fn leak_deleted(&self) {
        self.leaks_deleted.add();
    }

    pub(crate) fn undelivered(&self) {
        self.undelivered.add();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_ipamd_core::cloud::CloudErrorKind;

    #[test]
    fn names_are_vpc_cnis_to_the_letter() {
        let metrics = Metrics::new();
        metrics.add_begun();
        metrics.del_begun("PodDeleted");
        let error = CloudError {
            api: Api::AssignPrivateIpAddresses,
            kind: CloudErrorKind::Throttled,
            code: "RequestLimitExceeded".into(),
            message: String::new(),
            retry_after: None,
        };
        metrics.api_call(Api::AssignPrivateIpAddresses, Duration::from_millis(20), Some(&error));
        metrics.set_pool(&PoolGauges {
            assigned: 3,
            assigned_by_eni: BTreeMap::from([("eni-1".into(), 3)]),
            assigned_by_cidr: BTreeMap::from([("10.0.0.16/28".into(), 2), ("10.0.0.9/32".into(), 1)]),
            ..PoolGauges::default()
        });
        let text = metrics.encode();
        for line in [
            "awscni_add_ip_req_count 1",
            "awscni_del_ip_req_count{reason=\"PodDeleted\"} 1",
            "awscni_assigned_ip_addresses 3",
            "awscni_assigned_ip_per_eni{eni=\"eni-1\"} 3",
            "awscni_assigned_ip_per_cidr{cidr=\"10.0.0.16/28\"} 2",
            "awscni_ec2api_req_count{fn=\"AssignPrivateIpAddresses\"} 1",
            "awscni_aws_api_error_count{api=\"AssignPrivateIpAddresses\",error=\"RequestLimitExceeded\"} 1",
            "awscni_no_available_ip_addresses 0",
            "sluice_ipamd_checkpoint_failures_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        let calls = metrics.calls();
        assert_eq!(calls["AssignPrivateIpAddresses"], CallCount { calls: 1, failed: 1, throttled: 1 });
    }

    /// All metrics of the VPC CNI 1.23.1 (reference/vpc-cni.md 7.1), with their labels.
    const VPC_CNIS: [(&str, &[&str]); 27] = [
        ("awscni_ipamd_error_count", &["fn"]),
        ("awscni_ipamd_action_inprogress", &["fn"]),
        ("awscni_eni_max", &[]),
        ("awscni_ip_max", &[]),
        ("awscni_reconcile_count", &["fn"]),
        ("awscni_add_ip_req_count", &[]),
        ("awscni_del_ip_req_count", &["reason"]),
        ("awscni_pod_eni_error_count", &["fn"]),
        ("awscni_aws_api_latency_ms", &["api", "error", "status"]),
        ("awscni_aws_api_error_count", &["api", "error"]),
        ("awscni_aws_utils_error_count", &["fn", "error"]),
        ("awscni_ec2api_req_count", &["fn"]),
        ("awscni_ec2api_error_count", &["fn"]),
        ("awscni_eni_allocated", &[]),
        ("awscni_total_ip_addresses", &[]),
        ("awscni_assigned_ip_addresses", &[]),
        ("awscni_force_removed_enis", &[]),
        ("awscni_force_removed_ips", &[]),
        ("awscni_total_ipv4_prefixes", &[]),
        ("awscni_assigned_ip_per_cidr", &["cidr"]),
        ("awscni_no_available_ip_addresses", &[]),
        ("awscni_assigned_ip_per_eni", &["eni"]),
        ("awscni_ipamd_startup_duration_seconds", &["success", "with_api_server", "failure_reason"]),
        ("awscni_ipamd_node_initialization_duration_seconds", &["success"]),
        ("awscni_connmark_backend", &["backend"]),
        ("awscni_connmark_reconcile_total", &["result"]),
        ("awscni_build_info", &["version", "goversion"]),
    ];

    /// Labels that have nothing to say here.
    const LABELS_LEFT_OUT: [(&str, &str); 2] =
        [("awscni_ipamd_action_inprogress", "fn"), ("awscni_build_info", "goversion")];

    /// Metrics of the VPC CNI that have no counterpart, and why.
    const LEFT_OUT: [(&str, &str); 5] = [
        (
            "awscni_pod_eni_error_count",
            "what fails of pods with branch ENIs is told where it happens: `sluice_ipamd_refusals_total`, and \
             `sluice_ipamd_kube_features_failed` for the request of a trunk ENI",
        ),
        ("awscni_force_removed_enis", "no ENI is forgotten while a pod uses it, whatever a description lacks"),
        ("awscni_force_removed_ips", "no address is forgotten while a pod uses it, whatever a description lacks"),
        ("awscni_connmark_backend", "there is one backend, nftables"),
        (
            "awscni_connmark_reconcile_total",
            "the marks of connections are mended with all else of the node's network: `sluice_ipamd_repairs_total`",
        ),
    ];

    #[test]
    fn each_of_vpc_cnis_metrics_is_there_or_left_out_for_a_reason() {
        let metrics = Metrics::new();
        let ours = metrics.registry.described();
        for (name, labels) in VPC_CNIS {
            let reason = LEFT_OUT.iter().find(|(left_out, _)| *left_out == name);
            assert_ne!(ours.contains_key(name), reason.is_some(), "{name} is there, or there is a reason");
            let Some(described) = ours.get(name) else { continue };
            let wanted: Vec<&str> =
                labels.iter().filter(|label| !LABELS_LEFT_OUT.contains(&(name, **label))).copied().collect();
            assert_eq!(described.labels, wanted, "{name}");
        }
        let names: Vec<&str> = VPC_CNIS.iter().map(|(name, _)| *name).collect();
        for name in LEFT_OUT.iter().map(|(name, _)| *name).chain(ours.keys().map(String::as_str)) {
            assert!(!name.starts_with("awscni_") || names.contains(&name), "{name} is none of VPC CNI's");
        }
    }

    #[test]
    fn what_is_free_in_subnets_is_told_for_a_quarter_of_an_hour() {
        let metrics = Metrics::new();
        let line = "sluice_subnet_free_addresses{subnet=\"subnet-1\"} 9";
        for (seen, told) in [(None, false), (Some(0), true), (Some(900), true), (Some(901), false), (Some(3), true)] {
            let free_by_subnet = BTreeMap::from([("subnet-1".to_owned(), 9)]);
            metrics.set_pool(&PoolGauges { free_by_subnet, subnets_seen: seen, ..PoolGauges::default() });
            assert_eq!(metrics.encode().lines().any(|found| found == line), told, "{seen:?}");
        }
    }

    #[test]
    fn calls_that_were_not_made_are_told_apart_from_those_that_failed() {
        let metrics = Metrics::new();
        metrics.gave_up(Api::CreateNetworkInterface, "BucketEmpty");
        let text = metrics.encode();
        let given_up = "awscni_aws_utils_error_count{fn=\"CreateNetworkInterface\",error=\"BucketEmpty\"} 1";
        assert!(text.lines().any(|line| line == given_up), "{text}");
        assert!(!text.contains("awscni_ec2api_error_count{"), "{text}");
    }

    /// docs/metrics.md is made from the registry. With `UPDATE_GOLDENS` set in the environment it is written anew.
    #[test]
    fn the_documentation_is_the_registry() {
        let mut text = String::from(
            "# Metrics of ipamd\n\nServed on port 61678 under /metrics, Prometheus text format. `awscni_*` are the AWS VPC \
             CNI's names; `sluice_*` are ours.\nThis page is made from the registry. Those that the API server's source adds: \
             [ipamd-kubernetes.md](ipamd-kubernetes.md). The others:\n[policyd's](policyd-metrics.md), [the proxy's](proxy-metrics.md).\n\n",
        );
        text.push_str(&Metrics::new().registry.table());
        text.push_str(
            "\n## The VPC CNI's that are not here\n\nOf its 27 metrics these have no counterpart. `awscni_ipamd_action_inprogress` has \
             no label `fn`, and\n`awscni_build_info` no `goversion`; `awscni_aws_api_latency_ms` is a histogram, whose sum and count are \
             those of its summary.\n\n",
        );
        for (name, why) in LEFT_OUT {
            text.push_str(&format!("- `{name}`: {why}.\n"));
        }
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
        if std::env::var_os("UPDATE_GOLDENS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap();
        assert!(written == text, "set UPDATE_GOLDENS to write docs/metrics.md anew");
    }
}
