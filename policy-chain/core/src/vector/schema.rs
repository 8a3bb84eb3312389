//! A file of vectors as plain data.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::cluster::{Labels, ObjectKey, PodKey, Visible};
use crate::flow::{Origin, Protocol};
use crate::l7::dns::Name;
use crate::model::Text;
use crate::parse::Issue;

/// The version of the schema that this is.
pub const SCHEMA_VERSION: i64 = 1;

/// Tags of vectors that are run and told but not judged, because nobody can say what is right.
pub const UNDEFINED_TAGS: [&str; 3] =
    ["implementation-defined-in-k8s", "tie-undefined-upstream", "legacy-schema-v0.1.1"];

/// Suites whose probes go through a Service per pod upstream: they are run in both modes.
const BOTH_MODES: [&str; 3] = ["e2e/", "legacy/", "cyclonus/"];

/// A file.
#[derive(Debug, Clone, PartialEq)]
pub struct Suite {
    /// Cluster layouts, by name.
    pub fixtures: BTreeMap<Text, Fixture>,
    /// Vectors, in the order of the file.
    pub vectors: Vec<Vector>,
    /// Those that cannot be run.
    pub faulty: Vec<Faulty>,
}

/// A vector that cannot be run, or not to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faulty {
    /// Its id; where it has none, its path in the file.
    pub vector: Text,
    /// Why, by paths in the file.
    pub issues: Vec<Issue>,
}

/// A cluster as it is before the first step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fixture {
    /// Namespaces and their labels.
    pub namespaces: BTreeMap<Text, Labels>,
    /// Nodes.
    pub nodes: BTreeMap<Text, NodeSpec>,
    /// Pods.
    pub pods: BTreeMap<PodKey, PodSpec>,
    /// Services.
    pub services: BTreeMap<ObjectKey, ServiceSpec>,
    /// Endpoints outside of the cluster.
    pub externals: BTreeMap<Text, External>,
    /// CiliumCIDRGroups.
    pub cidr_groups: BTreeMap<Text, CidrGroupSpec>,
}

/// The addresses of something: one of a family at most, one at least.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// `ip`.
    pub v4: Option<IpAddr>,
    /// `ip6`.
    pub v6: Option<IpAddr>,
}

impl Addresses {
    /// The one of a family.
    #[must_use]
    pub const fn of(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// Both, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.into_iter().chain(self.v6)
    }
}

/// Address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// `IPv4` or `IPv6`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// Labels.
    pub labels: Labels,
    /// Addresses.
    pub addresses: Addresses,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSpec {
    /// Labels.
    pub labels: Labels,
    /// Addresses.
    pub addresses: Addresses,
    /// Its node, if it has one.
    pub node: Option<Text>,
    /// Whether it shares its node's network.
    pub host_network: bool,
    /// Container ports.
    pub ports: Vec<ContainerPort>,
    /// `serviceAccount`.
    pub service_account: Option<Text>,
    /// `ready`: whether Services send it traffic.
    pub ready: bool,
    /// `phase` is `Succeeded` or `Failed`.
    pub finished: bool,
    /// `audit`: its gate is a dry run.
    pub audit: bool,
    /// `visibility`: what of its traffic is to be seen.
    pub visible: Box<[Visible]>,
}

/// A container port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPort {
    /// Name, if it has one.
    pub name: Option<Text>,
    /// Number.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Labels.
    pub labels: Labels,
    /// `selector`: the pods behind it. None if `endpoints` says who is.
    pub selector: Option<Labels>,
    /// `clusterIP`, as many as are given; where there is none and the Service is not headless, one of each family is made up.
    pub cluster_addresses: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub headless: bool,
    /// `externalIPs`, and addresses of load balancers.
    pub external_addresses: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<ServicePortSpec>,
    /// `endpoints`: addresses behind it, where no selector tells.
    pub endpoints: Vec<IpAddr>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePortSpec {
    /// Name; made up where there is none.
    pub name: Option<Text>,
    /// Port.
    pub port: u16,
    /// Port of the pods.
    pub target: TargetPort,
    /// Protocol.
    pub protocol: Protocol,
    /// `nodePort`.
    pub node_port: Option<u16>,
}

/// `targetPort`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// A number.
    Number(u16),
    /// The container port of that name, which may be another number in each pod.
    Named(Text),
}

/// An endpoint outside of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// Addresses.
    pub addresses: Addresses,
    /// Names that have resolved to them, for good.
    pub names: Vec<Name>,
}

/// A CiliumCIDRGroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CidrGroupSpec {
    /// Labels.
    pub labels: Labels,
    /// Prefixes.
    pub cidrs: Vec<IpNet>,
}

/// How the probes of a vector reach pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// By the pod's address.
    PodIp,
    /// Through a Service of the pod's own, with the same port numbers.
    ServiceIp,
}

impl Mode {
    /// `podIP` or `serviceIP`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PodIp => "podIP",
            Self::ServiceIp => "serviceIP",
        }
    }
}

/// A vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Vector {
    /// Id; unique in its file.
    pub id: Text,
    /// What it shows.
    pub title: Text,
    /// Name of its cluster layout.
    pub fixture: Text,
    /// Tags.
    pub tags: Vec<Text>,
    /// `modes`, if they are given.
    pub modes: Option<Vec<Mode>>,
    /// Steps, in order.
    pub steps: Vec<Step>,
}

impl Vector {
    /// The tag by which this vector is run and told but not judged, if it has one.
    #[must_use]
    pub fn undefined(&self) -> Option<&Text> {
        self.tags.iter().find(|tag| UNDEFINED_TAGS.contains(&tag.as_ref()))
    }

    /// How its probes reach pods: as `modes` says, else in both ways for the suites that use Services upstream.
    #[must_use]
    pub fn modes(&self) -> Vec<Mode> {
        match &self.modes {
            Some(modes) => modes.clone(),
            None if BOTH_MODES.iter().any(|suite| self.id.starts_with(suite)) => vec![Mode::PodIp, Mode::ServiceIp],
            None => vec![Mode::PodIp],
        }
    }
}

/// A step: what happens, in the order of these fields, and what is true then.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Step {
    /// Name.
    pub name: Text,
    /// Path in the file, for messages.
    pub path: String,
    /// `advanceSeconds`: time that passes first.
    pub advance_seconds: u64,
    /// Objects that are created or replaced.
    pub apply: Vec<Value>,
    /// Objects that are deleted.
    pub delete: Vec<Deleted>,
    /// All labels of namespaces.
    pub set_namespace_labels: BTreeMap<Text, Labels>,
    /// All labels of pods.
    pub set_pod_labels: BTreeMap<PodKey, Labels>,
    /// New namespaces.
    pub create_namespace: BTreeMap<Text, Labels>,
    /// Namespaces that go, with all that is in them.
    pub delete_namespace: Vec<Text>,
    /// New pods.
    pub create_pod: BTreeMap<PodKey, PodSpec>,
    /// Pods that go.
    pub delete_pod: Vec<PodKey>,
    /// Names that resolve.
    pub resolve: BTreeMap<Name, Resolution>,
    /// What is true then.
    pub expect: Vec<Row>,
}

/// An object to delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// `apiVersion`; of all that have the kind where it is not given.
    pub api_version: Option<Text>,
    /// Kind.
    pub kind: Text,
    /// Namespace, for a namespaced kind.
    pub namespace: Option<Text>,
    /// Name.
    pub name: Text,
}

/// What a name resolves to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Seconds that they are good for; none: for good.
    pub ttl: Option<u64>,
}

/// Probes with one expectation: all sources to all destinations.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Path in the file, for messages.
    pub path: String,
    /// Sources.
    pub from: Many,
    /// Destinations.
    pub to: Many,
    /// Destination port; the type of an ICMP message; 0 where there is none.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Address family.
    pub family: Family,
    /// How the destination is reached; none: as the mode says.
    pub via: Option<Via>,
    /// `targetPort`: the pod's port behind the Service.
    pub target_port: Option<u16>,
    /// `connection: established`: a packet of a flow that an earlier row opened.
    pub established: bool,
    /// How the packet comes to the destination's gate; none: as its source says.
    pub origin: Option<Origin>,
    /// What is sent once the connection stands.
    pub request: Option<Request>,
    /// What is expected.
    pub verdict: Expected,
    /// `audit`: what is recorded, as if dry runs were in force.
    pub audit: Option<Expected>,
    /// `rule`: what decides.
    pub rule: Option<Text>,
}

/// One endpoint, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Many {
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Whether they were written as a list.
    pub list: bool,
}

/// Who sends or receives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Endpoint {
    /// `namespace/name`: a pod; as a destination, a Service if no pod has the name.
    Pod(PodKey),
    /// `node:name`.
    Node(Text),
    /// `ext:name`: an endpoint of the fixture's externals.
    External(Text),
    /// `ip:address`: whoever has it.
    Address(IpAddr),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod(key) => key.fmt(f),
            Self::Node(name) => write!(f, "node:{name}"),
            Self::External(name) => write!(f, "ext:{name}"),
            Self::Address(address) => write!(f, "ip:{address}"),
        }
    }
}

/// `via`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// `podIP`: the pod's address, in every mode.
    Pod,
    /// `service`: a Service's address; `port` is its port.
    Service,
    /// `nodePort`: an address of the source's node; `port` is the Service's node port.
    NodePort,
}

/// What an application sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// `http`, with `host` and `headers`.
    Http {
        /// Method.
        method: Text,
        /// Request target: path and query.
        target: Text,
        /// `:authority`, or the `Host` header.
        host: Text,
        /// Other headers, in order.
        headers: Vec<(Text, Text)>,
    },
    /// `dns`: a question.
    Dns(Text),
    /// `serverName`: a TLS handshake with this name.
    ServerName(Text),
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http { method, target, host, headers } => {
                write!(f, "{method} {target}")?;
                if !host.is_empty() {
                    write!(f, " (Host: {host})")?;
                }
                headers.iter().try_for_each(|(name, value)| write!(f, " ({name}: {value})"))
            }
            Self::Dns(name) => write!(f, "DNS {name}"),
            Self::ServerName(name) => write!(f, "TLS {name}"),
        }
    }
}

/// What becomes of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Expected {
    /// It passes.
    Allow,
    /// Its packets are dropped, silently.
    Deny,
    /// The connection stands, and the proxy refuses the request (HTTP 403, gRPC PERMISSION_DENIED, DNS REFUSED, a TLS alert).
    Refuse,
}

impl Expected {
    /// `allow`, `deny` or `refuse`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Refuse => "refuse",
        }
    }
}
