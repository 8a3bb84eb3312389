//! A picture of the state for people and programs: what the introspection port shows. All of it is in force: it is taken
//! between two steps of the daemon's loop.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;
use sluice_contract::id::IfName;

/// The state at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct View {
    /// Whether all that the cluster says has come since the start.
    pub synced: bool,
    /// Why what is known may be old; none when the cluster answers.
    pub stale: Option<String>,
    /// Whether ADDs are served: all is known, or what was known before a restart is young enough.
    pub serving: bool,
    /// Whether the AWS VPC CNI's daemon serves the node: until it has gone no pod that was there before gets a gate.
    pub aws_node: bool,
    /// Counts the changes of the node's policy since the start.
    pub revision: u64,
    /// Up to which revision of the API server each kind (`plural.group`) was told and is in force; empty with files.
    pub read: BTreeMap<String, u64>,
    /// Pods that are known.
    pub pods: usize,
    /// ADDs that wait.
    pub waiting: usize,
    /// Policies.
    pub policies: Vec<PolicyView>,
    /// Gates.
    pub endpoints: Vec<EndpointView>,
    /// Local pods that have an address and no gate.
    pub without_gate: Vec<String>,
    /// What is wrong, by object or file.
    pub faults: BTreeMap<String, Vec<String>>,
    /// What the proxy is told.
    pub proxy: ProxyView,
    /// Packets by the rule that decided.
    pub counters: Vec<CounterView>,
    /// Packets dropped without a rule, by reason.
    pub drops: BTreeMap<&'static str, u64>,
    /// Addresses of names that are known.
    pub name_addresses: usize,
    /// Flows.
    pub flows: FlowsView,
}

/// How many flows there are and were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct FlowsView {
    /// Flows that can be looked at.
    pub kept: usize,
    /// Flows that are kept at most.
    pub limit: usize,
    /// Flows so far.
    pub seen: u64,
    /// Events that did not become flows.
    pub lost: u64,
}

/// What is known of names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NamesView {
    /// The patterns that rules have for names.
    pub patterns: Vec<String>,
    /// Addresses that are known; one that two names have counts twice.
    pub addresses: usize,
    /// Names, not all if there are very many.
    pub names: Vec<NameView>,
}

/// A name and addresses of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NameView {
    /// The name that was asked for.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// When they are forgotten, in seconds since 1970, if no pod uses them then.
    pub until: u64,
    /// The pod that asked first.
    pub pod: Option<String>,
}

/// What the proxy is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ProxyView {
    /// Proxies that are there: one, and those that drain.
    pub connected: usize,
    /// Counts the changes that proxies are told of.
    pub version: u64,
    /// The version that all of them have in force; none before the first, and without a proxy.
    pub in_force: Option<u64>,
    /// Lists of application rules.
    pub lists: usize,
    /// Decisions that redirect.
    pub decisions: usize,
    /// Pods.
    pub endpoints: usize,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyView {
    /// Kind.
    pub kind: &'static str,
    /// Namespace, if it has one.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// `metadata.generation` of what is in force.
    pub generation: Option<i64>,
    /// What is wrong with it.
    pub issues: Vec<String>,
}

/// A gate at one interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndpointView {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The host's interface.
    pub interface: IfName,
    /// Its index.
    pub index: u32,
    /// The addresses behind it.
    pub addresses: Vec<IpAddr>,
    /// The endpoint's revision; none: there is no endpoint, and the interface drops everything.
    pub revision: Option<u64>,
    /// Whether ingress is restricted by a policy.
    pub ingress: bool,
    /// Whether egress is.
    pub egress: bool,
    /// The gate is a dry run.
    pub audit: bool,
    /// It drops everything because a map is full.
    pub locked: bool,
}

/// Packets of one rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CounterView {
    /// What happened.
    pub verdict: &'static str,
    /// The rule, or why else.
    pub rule: String,
    /// Packets.
    pub packets: u64,
}
