//! The configuration: environment variables, all read here, all faults told at once.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Duration;

use serde::Serialize;
use sluice_contract::node;
use sluice_daemon::environment::{ConfigFaults, Reader, Variable};
use sluice_daemon::log::LogFormat;

use crate::dns::Refusal;

const fn variable(name: &'static str, default: &'static str, meaning: &'static str) -> Variable {
    Variable { name, default, meaning }
}

/// Every variable that is read, by name.
pub const VARIABLES: &[Variable] = &[
    variable("DISABLE_INTROSPECTION", "false", "do not serve the introspection port"),
    variable("DISABLE_METRICS", "false", "do not serve the metrics port"),
    variable("SLUICE_LOG", "info", "log filter, e.g. info,sluice_proxy=debug"),
    variable("SLUICE_LOG_FORMAT", "text", "text, or json"),
    variable(
        "SLUICE_PROXY_DNS_REFUSAL",
        "refused",
        "the answer to a DNS question that no rule has: refused, or nxdomain, so that resolvers go on with their search list",
    ),
    variable("SLUICE_PROXY_DRAIN", "600", "seconds that connections have to end once the process is to, 0 to 86400"),
    variable("SLUICE_PROXY_INTROSPECTION_ADDRESS", "127.0.0.1:61682", "introspection address"),
    variable("SLUICE_PROXY_METRICS_ADDRESS", "[::]:9963", "metrics address; [::] is every address of both families"),
    variable("SLUICE_PROXY_MTU", "9001", "MTU of the links to the host, not less than the pods', 1280 to 65535"),
    variable("SLUICE_PROXY_POD_CONNECTIONS", "20000", "connections of one pod at once, 1 to 1000000"),
    variable("SLUICE_PROXY_RECORDS", "8192", "records that are kept to be looked at, 16 to 1000000"),
    variable("SLUICE_PROXY_RECORDS_FILE", "none", "append every record to this file, one JSON object a line"),
    variable(
        "SLUICE_PROXY_RECORDS_FILE_MIB",
        "64",
        "size at which that file becomes FILE.1 and is begun anew, 1 to 10240",
    ),
    variable("SLUICE_PROXY_WORKERS", "the number of CPUs", "threads for each direction, 1 to 256"),
    variable("SLUICE_RUN_DIR", node::RUN_DIR, "directory of sockets and runtime state"),
];

/// Everything that the proxy is told from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// `SLUICE_LOG`: a filter of `tracing-subscriber`.
    pub log_filter: String,
    /// `SLUICE_LOG_FORMAT`.
    pub log_format: LogFormat,
    /// `SLUICE_RUN_DIR`: policyd's socket and snapshot, and the namespaces.
    pub run_dir: PathBuf,
    /// `SLUICE_PROXY_METRICS_ADDRESS`; none with `DISABLE_METRICS`.
    pub metrics_address: Option<SocketAddr>,
    /// `SLUICE_PROXY_INTROSPECTION_ADDRESS`; none with `DISABLE_INTROSPECTION`.
    pub introspection_address: Option<SocketAddr>,
    /// `SLUICE_PROXY_WORKERS`.
    pub workers: usize,
    /// `SLUICE_PROXY_MTU`, in octets.
    pub mtu: u32,
    /// `SLUICE_PROXY_POD_CONNECTIONS`.
    pub pod_connections: usize,
    /// `SLUICE_PROXY_RECORDS`.
    pub records: usize,
    /// `SLUICE_PROXY_RECORDS_FILE`.
    pub records_file: Option<PathBuf>,
    /// `SLUICE_PROXY_RECORDS_FILE_MIB`, in octets.
    pub records_file_size: u64,
    /// `SLUICE_PROXY_DNS_REFUSAL` (Cilium's `tofqdns-dns-reject-response-code`).
    pub dns_refusal: Refusal,
    /// `SLUICE_PROXY_DRAIN`.
    pub drain: Duration,
}

impl Config {
    /// policyd's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("policyd-proxy.sock")
    }

    /// Where a process that takes over tells the one before.
    #[must_use]
    pub fn seat(&self) -> PathBuf {
        self.run_dir.join("proxy.sock")
    }

    /// What policyd told last.
    #[must_use]
    pub fn snapshot(&self) -> PathBuf {
        self.run_dir.join("policy").join("proxy.json")
    }

    /// What the proxy writes of names while policyd is away.
    #[must_use]
    pub fn names(&self) -> PathBuf {
        self.run_dir.join("policy").join(sluice_contract::names::ALONE_FILE)
    }

    /// The directory of the namespaces.
    #[must_use]
    pub fn namespaces(&self) -> PathBuf {
        self.run_dir.join("netns")
    }

    /// Reads the environment of this process.
    ///
    /// # Errors
    /// [`ConfigFaults`] lists every variable that is wrong.
    #[expect(clippy::disallowed_methods, reason = "config.rs is where the environment is read")]
    pub fn from_environment() -> Result<Self, ConfigFaults> {
        Self::load(&|name| std::env::var(name).ok())
    }

    /// Reads variables from `source`.
    ///
    /// # Errors
    /// [`ConfigFaults`] lists every variable that is wrong.
    pub fn load(source: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigFaults> {
        let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let cpus = available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(1)).clamp(1, 256);
        let mut from = Reader::new(source, |name| VARIABLES.iter().any(|variable| variable.name == name));
        let config = Self {
            log_filter: from.text("SLUICE_LOG").unwrap_or_else(|| "info".to_owned()),
            log_format: from.log_format(),
            run_dir: from.path("SLUICE_RUN_DIR", None).unwrap_or_else(|| node::RUN_DIR.into()),
            metrics_address: {
                let default = SocketAddr::from((Ipv6Addr::UNSPECIFIED, node::PROXY_METRICS_PORT));
                let address = from.address("SLUICE_PROXY_METRICS_ADDRESS", default);
                (!from.boolean("DISABLE_METRICS", false)).then_some(address)
            },
            introspection_address: {
                let default = SocketAddr::from(([127, 0, 0, 1], node::PROXY_INTROSPECTION_PORT));
                let address = from.address("SLUICE_PROXY_INTROSPECTION_ADDRESS", default);
                (!from.boolean("DISABLE_INTROSPECTION", false)).then_some(address)
            },
            workers: size(from.number("SLUICE_PROXY_WORKERS", cpus, 1..=256)),
            mtu: from.number("SLUICE_PROXY_MTU", node::MTU, 1280..=65_535),
            pod_connections: size(from.number("SLUICE_PROXY_POD_CONNECTIONS", 20_000, 1..=1_000_000)),
            records: size(from.number("SLUICE_PROXY_RECORDS", 8192, 16..=1_000_000)),
            records_file: from.path("SLUICE_PROXY_RECORDS_FILE", None),
            records_file_size: u64::from(from.number("SLUICE_PROXY_RECORDS_FILE_MIB", 64, 1..=10_240)) << 20,
            dns_refusal: from.parsed("SLUICE_PROXY_DNS_REFUSAL", Refusal::Refused, |value| match value {
                "refused" => Ok(Refusal::Refused),
                "nxdomain" => Ok(Refusal::NameError),
                _ => Err("it must be refused or nxdomain".to_owned()),
            }),
            drain: Duration::from_secs(from.number("SLUICE_PROXY_DRAIN", 600, 0..=86_400).into()),
        };
        from.finish().map(|()| config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(set: &[(&str, &str)]) -> Result<Config, ConfigFaults> {
        Config::load(&|name| set.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_defaults_are_those_of_the_table() {
        let config = load(&[]).unwrap();
        assert_eq!(config.socket(), PathBuf::from(node::PROXY_SOCKET));
        assert_eq!(config.snapshot(), PathBuf::from(node::PROXY_SNAPSHOT));
        let default = |name| VARIABLES.iter().find(|variable| variable.name == name).unwrap().default;
        assert_eq!(config.metrics_address.unwrap().to_string(), default("SLUICE_PROXY_METRICS_ADDRESS"));
        assert_eq!(config.introspection_address.unwrap().to_string(), default("SLUICE_PROXY_INTROSPECTION_ADDRESS"));
        assert_eq!(config.drain.as_secs().to_string(), default("SLUICE_PROXY_DRAIN"));
        assert_eq!(config.pod_connections.to_string(), default("SLUICE_PROXY_POD_CONNECTIONS"));
        assert_eq!(config.records.to_string(), default("SLUICE_PROXY_RECORDS"));
        assert_eq!(config.mtu.to_string(), default("SLUICE_PROXY_MTU"));
        assert!(VARIABLES.is_sorted_by_key(|variable| variable.name));
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let faults = load(&[
            ("SLUICE_PROXY_WORKERS", "0"),
            ("SLUICE_PROXY_RECORDS_FILE", "records.json"),
            ("SLUICE_PROXY_METRICS_ADDRESS", "9963"),
            ("SLUICE_LOG_FORMAT", "xml"),
        ])
        .unwrap_err();
        let names: Vec<&str> = faults.0.iter().map(|fault| fault.variable).collect();
        let wrong =
            ["SLUICE_LOG_FORMAT", "SLUICE_PROXY_METRICS_ADDRESS", "SLUICE_PROXY_RECORDS_FILE", "SLUICE_PROXY_WORKERS"];
        assert_eq!(names, wrong);
        assert!(faults.to_string().contains("SLUICE_PROXY_WORKERS=\"0\""), "{faults}");
    }

    /// The table of docs/sluice-proxy.md is made from [`VARIABLES`]. With `UPDATE_GOLDENS` set in the environment it is
    /// written anew.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test's own switch")]
    fn the_page_of_variables_is_up_to_date() {
        const BEGIN: &str = "| variable | default | meaning |\n|---|---|---|\n";
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/sluice-proxy.md");
        let page = std::fs::read_to_string(&path).unwrap();
        let (before, rest) = page.split_once(BEGIN).unwrap();
        let after = rest.split_once("\n\n").map_or("", |(_, after)| after);
        let row = |one: &Variable| format!("| `{}` | {} | {} |\n", one.name, one.default, one.meaning);
        let rows: String = VARIABLES.iter().map(row).collect();
        let text = format!("{before}{BEGIN}{rows}\n{after}");
        let update = std::env::var("UPDATE_GOLDENS").is_ok();
        if update {
            std::fs::write(&path, &text).unwrap();
        }
        assert!(update || page == text, "set UPDATE_GOLDENS to write docs/sluice-proxy.md anew");
    }
}
