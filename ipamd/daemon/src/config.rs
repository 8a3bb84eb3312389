//! Configuration: VPC CNI's environment variables with their defaults, and `SLUICE_*` for what is ours. This is the only
//! place that knows their names.
//!
//! Every fault is collected and all are reported at once. What VPC CNI silently replaces by its default (`WARM_ENI_TARGET=x`)
//! is a fault here: a pool that is sized by a typing error is found when it is too late.

mod fault;
pub mod overrides;
mod variables;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::Serialize;
use sluice_contract::node;
use sluice_contract::node::branch::Mode;
use sluice_contract::node::egress::egress_of;
use sluice_hostnet::state::Family;
use sluice_ipamd_core::arrivals::Band;
use sluice_ipamd_core::cloud::InstanceLimits;
use sluice_ipamd_core::ipv6::Families;
use sluice_ipamd_core::plan::{Targets, WarmMode};
use sluice_ipamd_core::state::State;

use crate::log::LogFormat;

pub use fault::{ConfigFault, ConfigFaults};
pub use variables::{Effect, VARIABLES, Variable};

use fault::Reader;

/// Where the AWS VPC CNI keeps its allocations, unless it is told otherwise.
pub const AWS_NODE_CHECKPOINT: &str = sluice_daemon::aws_node::CHECKPOINT;

/// The kubelet's default for the most pods of a node.
const KUBELET_MAX_PODS: u32 = 110;

/// How SNAT picks the source port of a translated connection (`AWS_VPC_K8S_CNI_RANDOMIZESNAT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RandomizeSnat {
    /// `fully-random`: a pseudo-random generator.
    #[default]
    Prng,
    /// `random`: a hash.
    Hashrandom,
    /// The kernel's own order.
    None,
}

/// What says how many addresses are kept warm (`SLUICE_WARM_MODE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WarmSetting {
    /// The targets.
    #[default]
    Static,
    /// What the node learns of its pods' arrivals.
    Adaptive,
}

impl From<WarmSetting> for WarmMode {
    fn from(setting: WarmSetting) -> Self {
        match setting {
            WarmSetting::Static => Self::Static,
            WarmSetting::Adaptive => Self::Adaptive(Band::default()),
        }
    }
}

/// How many addresses are kept warm, and in which form. Their meaning is VPC CNI's (`docs/eni-and-ip-target.md` there).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolConfig {
    /// `ENABLE_PREFIX_DELEGATION`: /28 prefixes instead of single addresses.
    pub prefix_delegation: bool,
    /// `SLUICE_WARM_MODE`.
    pub warm_mode: WarmSetting,
    /// `WARM_ENI_TARGET`, in ENIs' worth of addresses; passed over when one of the next two is set.
    pub warm_eni_target: u32,
    /// `WARM_IP_TARGET`, in free addresses; 0 is unset.
    pub warm_ip_target: u32,
    /// `MINIMUM_IP_TARGET`, in addresses of any state; 0 is unset.
    pub minimum_ip_target: u32,
    /// `WARM_PREFIX_TARGET`, in free prefixes; prefix mode only.
    pub warm_prefix_target: u32,
    /// `MAX_ENI`; none leaves it to the instance type.
    pub max_eni: Option<u32>,
    /// `IP_COOLDOWN_PERIOD`: how long an address is not handed out after its pod has gone.
    pub cooldown: Duration,
    /// `MANAGE_UNTAGGED_ENI`: whether ENIs without our tag are used for pods.
    pub manage_untagged_eni: bool,
    /// `ENABLE_SUBNET_DISCOVERY`: whether ENIs are also made in subnets tagged `kubernetes.io/role/cni`.
    pub subnet_discovery: bool,
    /// `CLUSTER_NAME`, a tag of new ENIs and a condition on subnets.
    pub cluster_name: Option<String>,
    /// `DISABLE_NETWORK_RESOURCE_PROVISIONING`, the other way round: whether ENIs and addresses are asked for and given back.
    pub provisioning: bool,
    /// `ENABLE_IMDS_ONLY_MODE`: EC2 is never called.
    pub imds_only: bool,
    /// `AWS_MANAGE_ENIS_NON_SCHEDULABLE`: whether the pool of a cordoned node is kept warm too.
    pub warm_when_cordoned: bool,
    /// `AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG`: ENIs are made where the node's ENIConfig says. How the node names it.
    pub custom_networking: Option<EniConfigNaming>,
    /// `ENABLE_MULTI_NIC`: ENIs of further network cards serve pods too, of those that ask for an interface on each.
    pub multi_nic: bool,
    /// `ADDITIONAL_ENI_TAGS`.
    pub additional_tags: BTreeMap<String, String>,
}

/// How a node names its ENIConfig.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EniConfigNaming {
    /// `ENI_CONFIG_ANNOTATION_DEF`.
    pub annotation: String,
    /// `ENI_CONFIG_LABEL_DEF`.
    pub label: String,
}

/// What the host's network is set up with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkConfig {
    /// `ENABLE_IPv4` and `ENABLE_IPv6`: which addresses pods have. Both together are dual-stack, which VPC CNI has not.
    pub families: Families,
    /// `ENABLE_V4_EGRESS` and `ENABLE_V6_EGRESS`: the family that pods have for egress alone, by the node's address. None where
    /// they have addresses of the VPC in both.
    pub egress: Option<Family>,
    /// `AWS_VPC_ENI_MTU`, in bytes.
    pub eni_mtu: u32,
    /// `POD_MTU`, in bytes.
    pub pod_mtu: u32,
    /// `AWS_VPC_K8S_CNI_CONNMARK`: mark and mask of connections that belong to the primary ENI.
    pub connmark: u32,
    /// `AWS_VPC_K8S_CNI_VETHPREFIX`.
    pub veth_prefix: String,
    /// `AWS_VPC_K8S_CNI_RANDOMIZESNAT`.
    pub randomize_snat: RandomizeSnat,
    /// `AWS_VPC_CNI_NODE_PORT_SUPPORT`: connections to NodePorts are answered by the primary ENI.
    pub node_port_support: bool,
    /// `AWS_VPC_K8S_CNI_EXTERNALSNAT`: something outside the node translates what leaves the VPC.
    pub external_snat: bool,
    /// `SLUICE_SNAT_BY_ENI`: what leaves the VPC leaves by its pod's ENI, and with that one's address.
    pub snat_by_eni: bool,
    /// `AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS`: what goes there is not translated either.
    pub exclude_snat: Vec<Ipv4Net>,
    /// `SLUICE_EXCLUDE_SNAT_ROUTES`: nor what goes to private networks that the VPC's route tables lead to.
    pub exclude_snat_routes: bool,
    /// `AWS_EXTERNAL_SERVICE_CIDRS`: what goes there leaves by the primary ENI.
    pub external_services: Vec<Ipv4Net>,
    /// `DISABLE_TCP_EARLY_DEMUX`.
    pub disable_tcp_early_demux: bool,
    /// `DISABLE_POD_V6`: pods have no IPv6 at all, not even link-local addresses.
    pub disable_pod_v6: bool,
    /// `SLUICE_BLOCK_POD_METADATA`: pods do not reach the instance metadata service, which would give them the node's role.
    pub block_metadata: bool,
    /// `ENABLE_POD_ENI` and `POD_SECURITY_GROUP_ENFORCING_MODE`: how security groups of pods are enforced; none without them.
    pub pod_eni: Option<Mode>,
}

impl NetworkConfig {
    /// Whether packets of pods are of a family, be it their own or for egress alone.
    #[must_use]
    pub fn carries(&self, family: Family) -> bool {
        let own = match family {
            Family::V4 => self.families.has_v4(),
            Family::V6 => self.families.has_v6(),
        };
        own || self.egress == Some(family)
    }

    /// The address by which the pod with `address` leaves in the family that it has no address of the VPC in.
    #[must_use]
    pub fn egress_of(&self, address: IpAddr) -> Option<IpAddr> {
        egress_of(address).filter(|egress| self.egress == Some(Family::of(*egress)))
    }
}

/// Everything that ipamd is told from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// The warm pool.
    pub pool: PoolConfig,
    /// The host's network.
    pub network: NetworkConfig,
    /// `AWS_VPC_K8S_CNI_LOGLEVEL`, or `SLUICE_LOG` word for word: a filter of `tracing-subscriber`.
    pub log_filter: String,
    /// `SLUICE_LOG_FORMAT`.
    pub log_format: LogFormat,
    /// `SLUICE_RUN_DIR`: socket, checkpoint and tombstones live here.
    pub run_dir: PathBuf,
    /// `SLUICE_METRICS_ADDRESS`; none with `DISABLE_METRICS`.
    pub metrics_address: Option<SocketAddr>,
    /// `INTROSPECTION_BIND_ADDRESS`; none with `DISABLE_INTROSPECTION`.
    pub introspection_address: Option<SocketAddr>,
    /// `SLUICE_HEALTH_ADDRESS`: where a kubelet asks, from the start on.
    pub health_address: SocketAddr,
    /// `HTTP_TIMEOUT`: how long one call of EC2 or IMDS may take.
    pub call_timeout: Duration,
    /// `SLUICE_ADD_DEADLINE`: the longest that an ADD waits for an address, whatever its own deadline.
    pub add_deadline: Duration,
    /// `SLUICE_MAX_WAITING`: how many ADDs may wait at once.
    pub max_waiting: u32,
    /// `SLUICE_MAX_PODS`: the most pods that the kubelet takes; no spare addresses are added beyond. None leaves it to the node's
    /// object, and to the instance type until that is known.
    pub max_pods: Option<u32>,
    /// `SLUICE_STOP_GRACE`: how long a stop waits for calls under way.
    pub stop_grace: Duration,
    /// `MY_NODE_NAME`: the name of this node's object.
    pub node_name: Option<String>,
    /// `AWS_VPC_K8S_CNI_BACKING_STORE`: where the AWS VPC CNI has kept its allocations.
    pub aws_node_file: PathBuf,
    /// `SLUICE_CLUSTER_DIR`: files that stand for the API server.
    pub cluster_dir: Option<PathBuf>,
    /// `SLUICE_EC2_RATE`: calls a second of each changing EC2 action when EC2 does not throttle.
    pub ec2_rate: u32,
    /// `DISABLE_LEAKED_ENI_CLEANUP` is not set: the elected node deletes ENIs that nodes which are gone have left behind.
    pub leaked_eni_cleanup: bool,
    /// `ANNOTATE_POD_IP`: pods' addresses are written into an annotation of theirs.
    pub annotate_pod_ip: bool,
    /// Variables that are set and not yet in effect, for the log at start.
    pub without_effect: Vec<&'static str>,
    /// `SLUICE_NAMESPACE`: where the cluster's ConfigMap and Lease are.
    pub namespace: String,
    /// `CLUSTER_ENDPOINT`: URL of the API server, in place of the service account's or the kubeconfig's.
    pub cluster_endpoint: Option<String>,
    /// The environment, as far as it sets variables.
    #[serde(skip)]
    environment: BTreeMap<String, String>,
    /// What the cluster has set in place of it.
    overrides: BTreeMap<String, String>,
}

impl Config {
    /// The socket that plugins connect to.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("ipamd.sock")
    }

    /// The ledger's checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> PathBuf {
        self.run_dir.join("ipam.json")
    }

    /// The mark of the first readiness since the node booted ([`sluice_contract::node::IPAMD_READY`]).
    #[must_use]
    pub fn ready_mark(&self) -> PathBuf {
        self.run_dir.join("ready")
    }

    /// The settings that the cluster had for this node when it last said so.
    #[must_use]
    pub fn kept_overrides(&self) -> PathBuf {
        self.run_dir.join("overrides.json")
    }

    /// The directory of tombstones.
    #[must_use]
    pub fn tombstones(&self) -> PathBuf {
        self.run_dir.join("tombstones")
    }

    /// What the planner is to keep, on an instance with `limits`. Without them the number of pods is a guess.
    #[must_use]
    pub fn targets(&self, limits: Option<&InstanceLimits>) -> Targets {
        let pool = &self.pool;
        // What EKS's own node images set for secondary addresses: each ENI's addresses less its own, and two pods of the
        // host's network.
        let by_type = limits.map_or(0, |limits| {
            // With custom networking pods get no address of the primary ENI.
            let enis = limits.enis.saturating_sub(u32::from(pool.custom_networking.is_some()));
            enis.saturating_mul(limits.ipv4_per_eni.saturating_sub(1)).saturating_add(2)
        });
        Targets {
            prefixes: pool.prefix_delegation,
            mode: pool.warm_mode.into(),
            warm_enis: pool.warm_eni_target,
            warm_prefixes: pool.warm_prefix_target,
            warm_ips: pool.warm_ip_target,
            minimum_ips: pool.minimum_ip_target,
            max_enis: pool.max_eni,
            max_pods: self.max_pods.unwrap_or_else(|| by_type.max(KUBELET_MAX_PODS)),
            subnet_discovery: pool.subnet_discovery,
            provisioning: pool.provisioning,
            warm_when_cordoned: pool.warm_when_cordoned,
            cluster: pool.cluster_name.clone(),
            trunk: self.network.pod_eni.is_some(),
        }
    }

    /// What the planner is to keep on the node of `state`: for as many pods as its object says that the kubelet takes, unless the
    /// settings say it.
    #[must_use]
    pub fn targets_of(&self, state: &State) -> Targets {
        let targets = self.targets(state.node().map(|node| &node.limits));
        let max_pods = self.max_pods.or_else(|| state.max_pods()).unwrap_or(targets.max_pods);
        Targets { max_pods, ..targets }
    }

    /// Reads the environment of this process.
    ///
    /// # Errors
    /// [`ConfigFaults`] lists every variable that is wrong.
    #[expect(clippy::disallowed_methods, reason = "config.rs is where the environment is read")]
    pub fn from_environment() -> Result<Self, ConfigFaults> {
        Self::load(&|name| std::env::var(name).ok())
    }

    /// Reads variables from `source`. An empty value is an unset one, as Kubernetes' manifests have it.
    ///
    /// # Errors
    /// [`ConfigFaults`] lists every variable that is wrong.
    pub fn load(source: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigFaults> {
        let mut from = Reader::new(source);
        let pool = Self::pool(&mut from);
        let network = Self::network(&mut from);
        let level = from.choice(
            "AWS_VPC_K8S_CNI_LOGLEVEL",
            &[("INFO", "info"), ("DEBUG", "debug"), ("WARN", "warn"), ("ERROR", "error"), ("FATAL", "error")],
        );
        let config = Self {
            pool,
            network,
            log_filter: from.text("SLUICE_LOG").unwrap_or_else(|| level.to_owned()),
            log_format: from.choice("SLUICE_LOG_FORMAT", &[("text", LogFormat::Text), ("json", LogFormat::Json)]),
            run_dir: from.path("SLUICE_RUN_DIR", None).unwrap_or_else(|| node::RUN_DIR.into()),
            metrics_address: {
                let default = SocketAddr::from((Ipv6Addr::UNSPECIFIED, node::IPAMD_METRICS_PORT));
                let address = from.address("SLUICE_METRICS_ADDRESS", default);
                (!from.boolean("DISABLE_METRICS", false)).then_some(address)
            },
            introspection_address: {
                let default = SocketAddr::from(([127, 0, 0, 1], node::IPAMD_INTROSPECTION_PORT));
                let address = from.address("INTROSPECTION_BIND_ADDRESS", default);
                (!from.boolean("DISABLE_INTROSPECTION", false)).then_some(address)
            },
            health_address: {
                let default = SocketAddr::from(([127, 0, 0, 1], node::IPAMD_HEALTH_PORT));
                from.address("SLUICE_HEALTH_ADDRESS", default)
            },
            call_timeout: from.seconds("HTTP_TIMEOUT", 10, 10..=300),
            add_deadline: from.seconds("SLUICE_ADD_DEADLINE", 60, 1..=220),
            max_waiting: from.number("SLUICE_MAX_WAITING", 1024, 1..=10_000),
            max_pods: Some(from.number("SLUICE_MAX_PODS", 0, 0..=10_000)).filter(|pods| *pods > 0),
            stop_grace: from.seconds("SLUICE_STOP_GRACE", 5, 0..=60),
            node_name: from.text("MY_NODE_NAME"),
            aws_node_file: from
                .path("AWS_VPC_K8S_CNI_BACKING_STORE", None)
                .unwrap_or_else(|| AWS_NODE_CHECKPOINT.into()),
            cluster_dir: from.path("SLUICE_CLUSTER_DIR", None),
            ec2_rate: from.number("SLUICE_EC2_RATE", 5, 1..=100),
            leaked_eni_cleanup: !from.boolean("DISABLE_LEAKED_ENI_CLEANUP", false),
            annotate_pod_ip: from.boolean("ANNOTATE_POD_IP", false),
            without_effect: Vec::new(),
            namespace: from.text("SLUICE_NAMESPACE").unwrap_or_else(|| "kube-system".to_owned()),
            cluster_endpoint: from.endpoint("CLUSTER_ENDPOINT"),
            environment: {
                let set = |name: &str| Some((name.to_owned(), source(name)?));
                VARIABLES.iter().filter_map(|variable| set(variable.name)).collect()
            },
            overrides: BTreeMap::new(),
        };
        if config.pool.custom_networking.is_some() {
            const RULE: &str = "custom networking needs";
            if config.node_name.is_none() {
                from.fault("MY_NODE_NAME", "", format!("{RULE} the name of the node's object"));
            }
            if config.network.families == Families::V6 {
                from.fault("ENABLE_IPv6", "true", format!("{RULE} IPv4: pods of IPv6 alone are on the primary ENI"));
            }
        }
        if config.network.pod_eni.is_some() && config.node_name.is_none() {
            let rule = "pods' own security groups need the name of the node's object";
            from.fault("MY_NODE_NAME", "", rule.to_owned());
        }
        if config.annotate_pod_ip && config.node_name.is_none() {
            from.fault("MY_NODE_NAME", "", "pods' annotations need the name of the node's object");
        }
        let without_effect = from.set_without_effect();
        from.finish()?;
        Ok(Self { without_effect, ..config })
    }

    fn pool(from: &mut Reader<'_>) -> PoolConfig {
        PoolConfig {
            prefix_delegation: from.boolean("ENABLE_PREFIX_DELEGATION", false),
            warm_mode: from
                .choice("SLUICE_WARM_MODE", &[("static", WarmSetting::Static), ("adaptive", WarmSetting::Adaptive)]),
            // VPC CNI: a negative number is the default.
            warm_eni_target: from.target("WARM_ENI_TARGET", 1, 1, 100),
            warm_ip_target: from.target("WARM_IP_TARGET", 0, 0, 100_000),
            minimum_ip_target: from.target("MINIMUM_IP_TARGET", 0, 0, 100_000),
            warm_prefix_target: from.target("WARM_PREFIX_TARGET", 1, 0, 10_000),
            max_eni: Some(from.target("MAX_ENI", 0, 0, 1000)).filter(|max| *max > 0),
            cooldown: from.seconds("IP_COOLDOWN_PERIOD", 30, 0..=86_400),
            manage_untagged_eni: from.boolean("MANAGE_UNTAGGED_ENI", true),
            subnet_discovery: from.boolean("ENABLE_SUBNET_DISCOVERY", true),
            cluster_name: from.text("CLUSTER_NAME"),
            provisioning: !from.boolean("DISABLE_NETWORK_RESOURCE_PROVISIONING", false),
            imds_only: from.boolean("ENABLE_IMDS_ONLY_MODE", false),
            warm_when_cordoned: from.boolean("AWS_MANAGE_ENIS_NON_SCHEDULABLE", false),
            custom_networking: {
                let key = "k8s.amazonaws.com/eniConfig";
                let naming = EniConfigNaming {
                    annotation: from.text("ENI_CONFIG_ANNOTATION_DEF").unwrap_or_else(|| key.to_owned()),
                    label: from.text("ENI_CONFIG_LABEL_DEF").unwrap_or_else(|| key.to_owned()),
                };
                from.boolean("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", false).then_some(naming)
            },
            multi_nic: from.boolean("ENABLE_MULTI_NIC", false),
            additional_tags: from.tags("ADDITIONAL_ENI_TAGS"),
        }
    }

    fn network(from: &mut Reader<'_>) -> NetworkConfig {
        let families = from.families("ENABLE_IPv4", "ENABLE_IPv6");
        let egress = [from.boolean("ENABLE_V4_EGRESS", true), from.boolean("ENABLE_V6_EGRESS", false)];
        let egress = match (families, egress) {
            (Families::V6, [true, _]) => Some(Family::V4),
            (Families::V4, [_, true]) => Some(Family::V6),
            _ => None,
        };
        // RFC 791, and RFC 8200, section 5.
        let smallest = if families.has_v6() || egress == Some(Family::V6) { 1280 } else { 576 };
        let eni_mtu = from.number("AWS_VPC_ENI_MTU", node::MTU, smallest..=9001);
        let disable_pod_v6 = from.boolean("DISABLE_POD_V6", false);
        if disable_pod_v6 && (families.has_v6() || egress == Some(Family::V6)) {
            let rule = "pods cannot be without IPv6 where ENABLE_IPv6 or ENABLE_V6_EGRESS gives them addresses of it";
            from.fault("DISABLE_POD_V6", "true", rule.to_owned());
        }
        NetworkConfig {
            families,
            egress,
            eni_mtu,
            pod_mtu: from.number("POD_MTU", eni_mtu, smallest..=9001),
            connmark: from.mark("AWS_VPC_K8S_CNI_CONNMARK", node::CONNMARK),
            veth_prefix: from.veth_prefix("AWS_VPC_K8S_CNI_VETHPREFIX", node::VETH_PREFIX),
            randomize_snat: from.choice(
                "AWS_VPC_K8S_CNI_RANDOMIZESNAT",
                &[
                    ("prng", RandomizeSnat::Prng),
                    ("hashrandom", RandomizeSnat::Hashrandom),
                    ("none", RandomizeSnat::None),
                ],
            ),
            node_port_support: from.boolean("AWS_VPC_CNI_NODE_PORT_SUPPORT", true),
            external_snat: from.boolean("AWS_VPC_K8S_CNI_EXTERNALSNAT", false),
            snat_by_eni: from.boolean("SLUICE_SNAT_BY_ENI", false),
            exclude_snat: from.cidrs("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS"),
            exclude_snat_routes: from.boolean("SLUICE_EXCLUDE_SNAT_ROUTES", false),
            external_services: from.cidrs("AWS_EXTERNAL_SERVICE_CIDRS"),
            disable_tcp_early_demux: from.boolean("DISABLE_TCP_EARLY_DEMUX", false),
            disable_pod_v6,
            block_metadata: from.boolean("SLUICE_BLOCK_POD_METADATA", false),
            pod_eni: {
                let modes = [("strict", Mode::Strict), ("standard", Mode::Standard)];
                let mode = from.choice("POD_SECURITY_GROUP_ENFORCING_MODE", &modes);
                from.boolean("ENABLE_POD_ENI", false).then_some(mode)
            },
        }
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
