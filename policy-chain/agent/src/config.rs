//! Configuration: the node's name by VPC CNI's variable, and `SLUICE_*` for what is ours. This is the only place that
//! knows their names. Every fault is collected, and all are reported at once.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use sluice_contract::node;
use sluice_daemon::aws_node;
use sluice_daemon::environment::Reader;
pub use sluice_daemon::environment::{ConfigFault, ConfigFaults, Variable};

use crate::flows::{Export, TlsFiles};
use crate::log::LogFormat;

const fn variable(name: &'static str, default: &'static str, meaning: &'static str) -> Variable {
    Variable { name, default, meaning }
}

/// Every variable that is read, by name.
pub const VARIABLES: &[Variable] = &[
    variable(
        "AWS_VPC_K8S_CNI_BACKING_STORE",
        "/var/run/aws-node/ipam.json",
        "where the AWS VPC CNI keeps its allocations; while its daemon answers beside it, policyd waits",
    ),
    variable("CLUSTER_ENDPOINT", "the service account's", "URL of the API server; token and authority stay the same"),
    variable("DISABLE_HUBBLE", "false", "do not serve Hubble's protocol by TCP; the socket in SLUICE_RUN_DIR stays"),
    variable("DISABLE_INTROSPECTION", "false", "do not serve the introspection port"),
    variable("DISABLE_METRICS", "false", "do not serve the metrics port"),
    variable("INTROSPECTION_BIND_ADDRESS", "127.0.0.1:61679", "where ipamd serves introspection, for the node's page"),
    variable("MY_NODE_NAME", "the host's name", "the node's name in the cluster"),
    variable("SLUICE_CILIUM_CIDRS_MATCH_MANAGED", "false", "CIDRs of cilium.io rules match managed pods and nodes too"),
    variable(
        "SLUICE_FLOWS",
        "16384",
        "flows that are kept to be looked at, 1 to 1000000; 0: none, and gates do not tell what they see",
    ),
    variable(
        "SLUICE_FLOWS_FILE",
        "none",
        "append flows to this file, one JSON object a line, as hubble observe -o jsonpb prints them",
    ),
    variable(
        "SLUICE_FLOWS_FILE_ALLOW",
        "all flows",
        "flows that are written: filters of Hubble, one JSON object a line, as sluice observe --print-raw-filters shows them",
    ),
    variable("SLUICE_FLOWS_FILE_DENY", "none", "flows that are not written"),
    variable("SLUICE_FLOWS_FILE_FIELDS", "all", "fields that are written, such as time,verdict,source.pod_name"),
    variable("SLUICE_FLOWS_FILE_MIB", "64", "size at which that file becomes FILE.1 and is begun anew, 1 to 10240"),
    variable(
        "SLUICE_HUBBLE_ADDRESS",
        "127.0.0.1:4244",
        "address of Hubble's observer; open it ([::]:4244, for Hubble Relay) with TLS, or where pods cannot reach it",
    ),
    variable(
        "SLUICE_HUBBLE_TLS_CERT",
        "none",
        "file of the certificate with which that address is served by TLS 1.3 (PEM); read again when it changes",
    ),
    variable(
        "SLUICE_HUBBLE_TLS_CLIENT_CA",
        "none",
        "file of the authorities whose clients may come; without it, all may",
    ),
    variable("SLUICE_HUBBLE_TLS_KEY", "none", "file of the certificate's key"),
    variable(
        "SLUICE_KEEP_ESTABLISHED",
        "false",
        "flows that were let pass and answered stay so when policy changes; datagrams at the proxy are judged by the policy of now",
    ),
    variable("SLUICE_LOG", "info", "log filter, e.g. info,sluice_policyd=debug"),
    variable("SLUICE_LOG_FORMAT", "text", "text, or json"),
    variable("SLUICE_POLICY_ADD_DEADLINE", "10", "seconds that an ADD waits for its pod's policy, 1 to 220"),
    variable("SLUICE_POLICY_INTROSPECTION_ADDRESS", "127.0.0.1:61680", "introspection address"),
    variable("SLUICE_POLICY_MAX_WAITING", "1024", "ADDs that may wait at once, 1 to 10000"),
    variable("SLUICE_POLICY_METRICS_ADDRESS", "[::]:9962", "metrics address; [::] is every address of both families"),
    variable(
        "SLUICE_POLICY_NAME_MIN_TTL",
        "60",
        "seconds that an address of a name is allowed at least, whatever the TTL of its record, 0 to 86400",
    ),
    variable(
        "SLUICE_PROXY_INTROSPECTION_ADDRESS",
        "127.0.0.1:61682",
        "where the proxy serves introspection, for the node's page",
    ),
    variable("SLUICE_PUBLISH_POD_IPS", "true", "tell a new pod's addresses to all nodes at once, by an annotation"),
    variable("SLUICE_RUN_DIR", node::RUN_DIR, "directory of sockets and runtime state"),
];

/// Everything that policyd is told from outside, but the directory that may stand for its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// `MY_NODE_NAME`.
    pub node: String,
    /// `AWS_VPC_K8S_CNI_BACKING_STORE`: beside it is the socket of the AWS VPC CNI's daemon.
    pub aws_node_file: PathBuf,
    /// `CLUSTER_ENDPOINT`: URL of the API server, in place of the service account's or the kubeconfig's.
    pub cluster_endpoint: Option<String>,
    /// `SLUICE_CILIUM_CIDRS_MATCH_MANAGED`.
    pub cilium_cidrs_match_managed: bool,
    /// `SLUICE_KEEP_ESTABLISHED`: flows that were let pass and answered stay so when policy changes.
    pub keep_established: bool,
    /// `SLUICE_HUBBLE_ADDRESS`; none with `DISABLE_HUBBLE`.
    pub hubble_address: Option<SocketAddr>,
    /// `SLUICE_HUBBLE_TLS_*`: with it that address is served by TLS.
    pub hubble_tls: Option<TlsFiles>,
    /// `SLUICE_FLOWS`: how many are kept; with 0 nothing is written down, and there are no metrics of flows.
    pub flows: usize,
    /// `SLUICE_FLOWS_FILE` and what goes with it.
    pub export: Option<Export>,
    /// `SLUICE_LOG`: a filter of `tracing-subscriber`.
    pub log_filter: String,
    /// `SLUICE_LOG_FORMAT`.
    pub log_format: LogFormat,
    /// `SLUICE_RUN_DIR`: the socket lives here, and the state in `policy/`.
    pub run_dir: PathBuf,
    /// `SLUICE_POLICY_METRICS_ADDRESS`; none with `DISABLE_METRICS`.
    pub metrics_address: Option<SocketAddr>,
    /// `SLUICE_POLICY_INTROSPECTION_ADDRESS`; none with `DISABLE_INTROSPECTION`.
    pub introspection_address: Option<SocketAddr>,
    /// `INTROSPECTION_BIND_ADDRESS`: where ipamd is asked.
    pub ipamd_address: SocketAddr,
    /// `SLUICE_PROXY_INTROSPECTION_ADDRESS`: where the proxy is asked.
    pub proxy_address: SocketAddr,
    /// `SLUICE_POLICY_ADD_DEADLINE`: the longest that an ADD waits, whatever its own deadline.
    pub add_deadline: Duration,
    /// `SLUICE_POLICY_MAX_WAITING`: how many ADDs may wait at once.
    pub max_waiting: u32,
    /// `SLUICE_POLICY_NAME_MIN_TTL`: how long an address of a name is allowed at least (Cilium's `tofqdns-min-ttl`).
    pub name_min_ttl: Duration,
    /// `SLUICE_PUBLISH_POD_IPS`.
    pub publish_pod_ips: bool,
}

impl Config {
    /// The socket that the chained plugin connects to.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("policyd.sock")
    }

    /// The socket that the proxy connects to.
    #[must_use]
    pub fn proxy_socket(&self) -> PathBuf {
        self.run_dir.join("policyd-proxy.sock")
    }

    /// The socket on which flows are told.
    #[must_use]
    pub fn hubble_socket(&self) -> PathBuf {
        self.run_dir.join("hubble.sock")
    }

    /// The directory of the state.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.run_dir.join("policy")
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
        let mut from = Reader::new(source, |name| VARIABLES.iter().any(|variable| variable.name == name));
        let config = Self {
            node: node_name(&mut from),
            aws_node_file: from
                .path("AWS_VPC_K8S_CNI_BACKING_STORE", None)
                .unwrap_or_else(|| aws_node::CHECKPOINT.into()),
            cluster_endpoint: from.endpoint("CLUSTER_ENDPOINT"),
            cilium_cidrs_match_managed: from.boolean("SLUICE_CILIUM_CIDRS_MATCH_MANAGED", false),
            keep_established: from.boolean("SLUICE_KEEP_ESTABLISHED", false),
            hubble_address: {
                let default = SocketAddr::from(([127, 0, 0, 1], node::HUBBLE_PORT));
                let address = from.address("SLUICE_HUBBLE_ADDRESS", default);
                (!from.boolean("DISABLE_HUBBLE", false)).then_some(address)
            },
            hubble_tls: tls(&mut from),
            flows: usize::try_from(from.number("SLUICE_FLOWS", 16_384, 0..=1_000_000)).unwrap_or_default(),
            export: export(&mut from),
            log_filter: from.text("SLUICE_LOG").unwrap_or_else(|| "info".to_owned()),
            log_format: from.log_format(),
            run_dir: from.path("SLUICE_RUN_DIR", None).unwrap_or_else(|| node::RUN_DIR.into()),
            metrics_address: {
                let default = SocketAddr::from((Ipv6Addr::UNSPECIFIED, node::POLICYD_METRICS_PORT));
                let address = from.address("SLUICE_POLICY_METRICS_ADDRESS", default);
                (!from.boolean("DISABLE_METRICS", false)).then_some(address)
            },
            introspection_address: {
                let default = SocketAddr::from(([127, 0, 0, 1], node::POLICYD_INTROSPECTION_PORT));
                let address = from.address("SLUICE_POLICY_INTROSPECTION_ADDRESS", default);
                (!from.boolean("DISABLE_INTROSPECTION", false)).then_some(address)
            },
            ipamd_address: {
                let default = SocketAddr::from(([127, 0, 0, 1], node::IPAMD_INTROSPECTION_PORT));
                from.address("INTROSPECTION_BIND_ADDRESS", default)
            },
            proxy_address: {
                let default = SocketAddr::from(([127, 0, 0, 1], node::PROXY_INTROSPECTION_PORT));
                from.address("SLUICE_PROXY_INTROSPECTION_ADDRESS", default)
            },
            add_deadline: Duration::from_secs(from.number("SLUICE_POLICY_ADD_DEADLINE", 10, 1..=220).into()),
            max_waiting: from.number("SLUICE_POLICY_MAX_WAITING", 1024, 1..=10_000),
            name_min_ttl: Duration::from_secs(from.number("SLUICE_POLICY_NAME_MIN_TTL", 60, 0..=86_400).into()),
            publish_pod_ips: from.boolean("SLUICE_PUBLISH_POD_IPS", true),
        };
        from.finish().map(|()| config)
    }
}

/// The files of TLS: certificate and key, or neither.
fn tls(from: &mut Reader<'_>) -> Option<TlsFiles> {
    const CERT: &str = "SLUICE_HUBBLE_TLS_CERT";
    const KEY: &str = "SLUICE_HUBBLE_TLS_KEY";
    const CLIENT_CA: &str = "SLUICE_HUBBLE_TLS_CLIENT_CA";
    let (certificate, key, client_ca) = (from.path(CERT, None), from.path(KEY, None), from.path(CLIENT_CA, None));
    match (certificate, key) {
        (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key, client_ca }),
        (Some(_), None) => {
            from.fault(KEY, "", "a certificate needs its key");
            None
        }
        (None, Some(_)) => {
            from.fault(CERT, "", "a key needs its certificate");
            None
        }
        (None, None) => {
            if client_ca.is_some() {
                from.fault(CERT, "", "without a certificate there is no TLS, and nobody asks clients for theirs");
            }
            None
        }
    }
}

/// Where flows are written, if they are.
fn export(from: &mut Reader<'_>) -> Option<Export> {
    let parts = |text: Option<String>, between: char| -> Vec<String> {
        let text = text.unwrap_or_default();
        text.split(between).map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
    };
    let limit = u64::from(from.number("SLUICE_FLOWS_FILE_MIB", 64, 1..=10_240)) << 20;
    let allow = parts(from.text("SLUICE_FLOWS_FILE_ALLOW"), '\n');
    let deny = parts(from.text("SLUICE_FLOWS_FILE_DENY"), '\n');
    let fields = parts(from.text("SLUICE_FLOWS_FILE_FIELDS"), ',');
    let export = Export { path: from.path("SLUICE_FLOWS_FILE", None)?, limit, allow, deny, fields };
    for (variable, value, rule) in export.faults() {
        from.fault(variable, &value, rule);
    }
    Some(export)
}

/// `MY_NODE_NAME`, else the host's name, as the kubelet does without `--hostname-override`.
fn node_name(from: &mut Reader<'_>) -> String {
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = from.text("MY_NODE_NAME").unwrap_or_else(|| host().trim().to_ascii_lowercase());
    let valid = |name: &str| {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        (1..=253).contains(&name.len()) && name.bytes().all(allowed)
    };
    if !valid(&name) {
        let rule = "it must be the node's name in the cluster: lower-case letters, digits, '-' and '.'";
        from.fault("MY_NODE_NAME", &name, rule);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(set: &[(&str, &str)]) -> Result<Config, ConfigFaults> {
        Config::load(&|name| set.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_defaults_are_those_of_the_table() {
        let config = load(&[("MY_NODE_NAME", "node-1")]).unwrap();
        assert_eq!(config.socket(), PathBuf::from(node::POLICYD_SOCKET));
        assert_eq!(config.directory(), PathBuf::from(node::POLICY_DIR));
        assert_eq!(config.hubble_socket(), PathBuf::from(node::HUBBLE_SOCKET));
        let default = |name| VARIABLES.iter().find(|variable| variable.name == name).unwrap().default;
        assert_eq!(config.metrics_address.unwrap().to_string(), default("SLUICE_POLICY_METRICS_ADDRESS"));
        assert_eq!(config.introspection_address.unwrap().to_string(), default("SLUICE_POLICY_INTROSPECTION_ADDRESS"));
        assert_eq!(config.ipamd_address.to_string(), default("INTROSPECTION_BIND_ADDRESS"));
        assert_eq!(config.proxy_address.to_string(), default("SLUICE_PROXY_INTROSPECTION_ADDRESS"));
        assert_eq!(config.hubble_address.unwrap().to_string(), default("SLUICE_HUBBLE_ADDRESS"));
        assert_eq!(config.flows.to_string(), default("SLUICE_FLOWS"));
        assert_eq!(config.add_deadline.as_secs().to_string(), default("SLUICE_POLICY_ADD_DEADLINE"));
        assert_eq!(config.aws_node_file.to_str(), Some(default("AWS_VPC_K8S_CNI_BACKING_STORE")));
        assert!(VARIABLES.is_sorted_by_key(|variable| variable.name));
        assert_eq!(config.cluster_endpoint, None);
        let elsewhere = load(&[("MY_NODE_NAME", "node-1"), ("CLUSTER_ENDPOINT", "https://api")]).unwrap();
        assert_eq!(elsewhere.cluster_endpoint.as_deref(), Some("https://api/"));
    }

    /// The table of docs/policyd.md is made from [`VARIABLES`]. With `UPDATE_GOLDENS` set in the environment it is written
    /// anew.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test's own switch")]
    fn the_page_of_variables_is_up_to_date() {
        const BEGIN: &str = "| variable | default | meaning |\n|---|---|---|\n";
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/policyd.md");
        let page = std::fs::read_to_string(&path).unwrap();
        let (before, rest) = page.split_once(BEGIN).unwrap();
        let after = rest.split_once("\n\n").map_or("", |(_, after)| after);
        let rows: String = VARIABLES
            .iter()
            .map(|variable| format!("| `{}` | {} | {} |\n", variable.name, variable.default, variable.meaning))
            .collect();
        let text = format!("{before}{BEGIN}{rows}\n{after}");
        if std::env::var("UPDATE_GOLDENS").is_ok() {
            std::fs::write(&path, &text).unwrap();
        }
        assert!(
            std::env::var("UPDATE_GOLDENS").is_ok() || page == text,
            "set UPDATE_GOLDENS to write docs/policyd.md anew"
        );
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let faults = load(&[
            ("MY_NODE_NAME", "Node 1"),
            ("SLUICE_POLICY_ADD_DEADLINE", "0"),
            ("SLUICE_RUN_DIR", "run"),
            ("DISABLE_METRICS", "maybe"),
            ("CLUSTER_ENDPOINT", "ftp://api"),
            ("SLUICE_LOG_FORMAT", "xml"),
            ("SLUICE_POLICY_METRICS_ADDRESS", "9962"),
        ])
        .unwrap_err();
        let names: Vec<&str> = faults.0.iter().map(|fault| fault.variable).collect();
        assert_eq!(
            names,
            [
                "CLUSTER_ENDPOINT",
                "DISABLE_METRICS",
                "MY_NODE_NAME",
                "SLUICE_LOG_FORMAT",
                "SLUICE_POLICY_ADD_DEADLINE",
                "SLUICE_POLICY_METRICS_ADDRESS",
                "SLUICE_RUN_DIR"
            ]
        );
    }

    #[test]
    fn a_node_without_a_name_has_that_of_its_host() {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_ascii_lowercase();
        assert_eq!(load(&[("MY_NODE_NAME", " ")]).map(|config| config.node), Ok(host));
    }
}
