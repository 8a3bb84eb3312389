//! What is looked at. Gathered in one go; the checks themselves do no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use sluice_contract::cni::chain;
use sluice_contract::node::{CONFLIST, IPAMD_READY, POLICYD_READY, TABLE_MAIN};
use sluice_hostnet::desired::View;
use sluice_hostnet::host::Host;
use sluice_hostnet::state::{Family, Observed, SysctlKey};

use crate::daemons::{Node, list, number};
use crate::root::within;

/// Bytes of a file that is read.
const LIMIT: usize = 1 << 20;

/// Where runtimes look for networks.
const CNI_DIR: &str = "/etc/cni/net.d";
/// Where they look for plugins.
const CNI_BIN: &str = "/opt/cni/bin";

/// Everything that is known of a node.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) node: Node,
    /// Files of `/etc/cni/net.d` that runtimes read, in the order in which they do, and what they say; none where the
    /// directory cannot be read.
    pub(crate) conflists: Result<Vec<(String, Option<Value>)>, String>,
    /// Plugins that are there.
    pub(crate) plugins: BTreeSet<String>,
    /// The host's links, rules and routes.
    pub(crate) host: Result<Observed, String>,
    /// Tables of iptables-legacy with rules of the VPC CNI, and which.
    pub(crate) legacy: Result<Vec<String>, String>,
    /// Whether the host's files are seen: the image has no `/etc/os-release`.
    pub(crate) on_host: bool,
    /// Files that are there, of those that tell something.
    pub(crate) files: BTreeSet<PathBuf>,
    /// The kernel's release.
    pub(crate) release: String,
    /// `maxPods` of the kubelet's configuration, where it is found.
    pub(crate) max_pods: Option<u64>,
    /// Whether the clock is at a year that can be.
    pub(crate) now: std::time::SystemTime,
}

/// Files that tell something by being there.
const TELLING: [&str; 12] = [
    IPAMD_READY,
    POLICYD_READY,
    "/var/run/aws-node/ipamd.sock",
    "/etc/systemd/system/timers.target.wants/nm-cloud-setup.timer",
    "/etc/systemd/system/nm-cloud-setup.service.d",
    "/etc/systemd/system/multi-user.target.wants/nm-cloud-setup.service",
    "/sys/fs/bpf/sluice",
    "/run/sluice",
    "/etc/systemd/network/80-ec2.network",
    CILIUM_PINS,
    CILIUM_STATE,
    AWS_PINS,
];

/// Where Cilium pins its links.
pub(super) const CILIUM_PINS: &str = "/sys/fs/bpf/cilium";
/// Where its agent has its sockets and state.
pub(super) const CILIUM_STATE: &str = "/var/run/cilium";
/// Where it pins its maps, beside those of others; their names begin with `cilium_`.
pub(super) const CILIUM_MAPS: &str = "/sys/fs/bpf/tc/globals";

/// Where the VPC CNI's network policy agent pins its programs and maps.
pub(super) const AWS_PINS: &str = "/sys/fs/bpf/globals/aws";

/// Sysctls that are looked at, whatever interfaces there are.
pub(super) const SYSCTLS: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv4/conf/all/rp_filter"];

/// Where the kubelet's configuration is, by distribution.
const KUBELET: [&str; 3] = [
    "/etc/kubernetes/kubelet/config.json",
    "/etc/kubernetes/kubelet/kubelet-config.json",
    "/var/lib/kubelet/config.yaml",
];

impl Facts {
    /// Looks at everything from where this runs.
    pub(crate) async fn gather() -> Self {
        Self::gather_in(Path::new("/")).await
    }

    /// The same from a container that has the host's root at `root`. All but files is that of the namespaces in which this runs.
    pub(crate) async fn gather_in(root: &Path) -> Self {
        let node = Node::look();
        let host = observe(&node).await;
        let legacy = legacy().await;
        Self {
            node,
            conflists: conflists(root, Path::new(CNI_DIR)),
            plugins: names(root, Path::new(CNI_BIN)),
            host,
            legacy,
            on_host: exists(root, Path::new("/etc/os-release")),
            files: files(root),
            release: read(Path::new("/proc/sys/kernel/osrelease")).unwrap_or_default().trim().to_owned(),
            max_pods: KUBELET.iter().find_map(|path| max_pods(&read(&within(root, Path::new(path)).ok()?)?)),
            now: std::time::SystemTime::now(),
        }
    }
}

fn read(path: &Path) -> Option<String> {
    let bytes = std::fs::read(path).ok()?;
    (bytes.len() <= LIMIT).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether a path of the host is there.
fn exists(root: &Path, path: &Path) -> bool {
    within(root, path).is_ok_and(|path| path.exists())
}

/// The names in a directory of the host.
fn names(root: &Path, directory: &Path) -> BTreeSet<String> {
    let entries = within(root, directory).and_then(std::fs::read_dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Files that are there, of those that tell something.
pub(super) fn files(root: &Path) -> BTreeSet<PathBuf> {
    let mut found: BTreeSet<PathBuf> = TELLING.iter().map(PathBuf::from).filter(|path| exists(root, path)).collect();
    let maps = Path::new(CILIUM_MAPS);
    found.extend(names(root, maps).into_iter().filter(|name| name.starts_with("cilium_")).map(|name| maps.join(name)));
    found
}

/// The files that a runtime reads, in its order (libcni: names that end in .conf, .conflist or .json, sorted).
pub(super) fn conflists(root: &Path, directory: &Path) -> Result<Vec<(String, Option<Value>)>, String> {
    let there = within(root, directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    if !there.is_dir() {
        return Err(format!("{} is not there", directory.display()));
    }
    let is_one = |name: &String| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end));
    let all = names(root, directory).into_iter().filter(is_one);
    Ok(all
        .map(|name| {
            let file = within(root, &directory.join(&name)).ok();
            let content = file.and_then(|file| read(&file)).and_then(|text| serde_json::from_str(&text).ok());
            (name, content)
        })
        .collect())
}

/// `maxPods` of a configuration in JSON or YAML.
pub(super) fn max_pods(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.trim_start().trim_start_matches('"').starts_with("maxPods"))?;
    let (_, value) = line.split_once(':')?;
    value.trim().trim_end_matches(',').parse().ok()
}

/// Links, rules, the tables that pods' routes are in, and sysctls.
async fn observe(node: &Node) -> Result<Observed, String> {
    let mut tables = BTreeSet::from([TABLE_MAIN]);
    if let Ok(ipamd) = &node.ipamd {
        let enis = ipamd.get("enis").and_then(Value::as_object);
        tables.extend(enis.into_iter().flatten().filter_map(|(_, eni)| u32::try_from(number(eni, "/table")).ok()));
        tables.remove(&0);
    }
    let view = View {
        routes: tables.into_iter().flat_map(|table| Family::ALL.map(|family| (family, table))).collect(),
        rules: BTreeSet::from(Family::ALL),
        sysctls: SYSCTLS.iter().filter_map(|key| SysctlKey::new(*key).ok()).collect(),
        ..View::default()
    };
    let host = Host::current().map_err(|error| chain(&error))?;
    host.observe(&view).await.map_err(|error| chain(&error))
}

async fn legacy() -> Result<Vec<String>, String> {
    let host = Host::current().map_err(|error| chain(&error))?;
    host.vpc_cni_in_legacy().await.map_err(|error| chain(&error))
}

/// The addresses that ipamd says pods have, with their interfaces and the tables of their ENIs.
pub(super) fn assigned(ipamd: &Value) -> Vec<Assigned> {
    let mut all = Vec::new();
    let enis = ipamd.get("enis").and_then(Value::as_object);
    for (_, eni) in enis.into_iter().flatten() {
        let blocks = eni.get("blocks").and_then(Value::as_object);
        for (address, known) in blocks.into_iter().flatten().filter_map(|(_, block)| block.as_object()).flatten() {
            let Ok(address) = address.parse() else { continue };
            if known.get("state").and_then(Value::as_str) != Some("assigned") {
                continue;
            }
            let word = |pointer: &str| known.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
            all.push(Assigned {
                address,
                interface: word("/host_ifname"),
                pod: format!("{}/{}", word("/pod/namespace"), word("/pod/name")),
                table: u32::try_from(number(eni, "/table")).unwrap_or(TABLE_MAIN),
            });
        }
    }
    all
}

/// An address that a pod has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Assigned {
    pub(super) address: std::net::IpAddr,
    pub(super) interface: String,
    pub(super) pod: String,
    pub(super) table: u32,
}

/// The name of our file in `/etc/cni/net.d`.
pub(super) fn own_conflist() -> &'static str {
    CONFLIST.rsplit_once('/').map_or(CONFLIST, |(_, name)| name)
}

/// The texts of a list of a page.
pub(super) fn texts(value: &Value, pointer: &str) -> Vec<String> {
    list(value, pointer).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// What a page has by name.
pub(super) fn by_name(value: &Value, pointer: &str) -> BTreeMap<String, Value> {
    let map = value.pointer(pointer).and_then(Value::as_object);
    map.into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect()
}
