//! The host: who else configures it, and what the kernel can do.

use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use sluice_contract::node::VETH_PREFIX;
use sluice_hostnet::state::{Observed, Rule};

use super::facts::{AWS_PINS, CILIUM_MAPS, CILIUM_PINS, CILIUM_STATE, own_conflist};
use super::{Facts, Finding};
use crate::daemons::{is, number};

/// Plugins of others that set pods up.
const PRIMARY: [&str; 8] = ["aws-cni", "cilium-cni", "calico", "flannel", "weave-net", "ptp", "bridge", "kube-ovn"];

/// Links that other CNIs leave.
const LEFT: [(&str, &str); 7] = [
    ("cilium_", "Cilium"),
    ("lxc", "Cilium"),
    ("cali", "Calico"),
    ("tunl", "Calico"),
    ("vxlan.calico", "Calico"),
    ("flannel", "Flannel"),
    ("weave", "Weave Net"),
];

/// What others leave besides links.
const FILES: [(&str, &str); 4] = [
    (CILIUM_PINS, "Cilium"),
    (CILIUM_MAPS, "Cilium"),
    (CILIUM_STATE, "Cilium"),
    (AWS_PINS, "the VPC CNI's network policy agent"),
];
/// The tables of what goes to its proxy and comes from it, and the bits of the marks that its rules look at. A VLAN's table may have
/// such a number, too.
const CILIUM_TABLES: [u32; 2] = [2004, 2005];
const CILIUM_MARKS: u32 = 0xf00;

/// Sluice is of this time: a clock that shows an earlier one is wrong, and EC2 refuses calls that are signed by it.
const BUILT: u64 = 1_790_000_000;

pub(super) fn check(facts: &Facts, findings: &mut Vec<Finding>) {
    conflist(facts, findings);
    if let Ok(host) = &facts.host {
        leftovers(facts, host, findings);
        sysctls(host, findings);
        mtu(host, findings);
    }
    managers(facts, findings);
    kernel(facts, findings);
    pods(facts, findings);
    let since = facts.now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    if since < BUILT {
        findings.push(
            Finding::broken(
                "clock",
                "the clock is wrong: EC2 refuses calls that are signed by it",
                "set it (chronyc makestep), and keep it (Amazon Time Sync: 169.254.169.123)",
            )
            .seen_by([format!("{since} seconds since 1970")]),
        );
    } else {
        findings.push(Finding::well("clock", "it is at a time that can be"));
    }
}

fn plugin_types(content: &Value) -> Vec<&str> {
    let plugins = content.get("plugins").and_then(Value::as_array);
    match plugins {
        Some(plugins) => plugins.iter().filter_map(|plugin| plugin.get("type").and_then(Value::as_str)).collect(),
        None => content.get("type").and_then(Value::as_str).into_iter().collect(),
    }
}

/// Whether the conflist gives pods addresses and no gates.
pub(super) fn without_policy(facts: &Facts) -> bool {
    let Ok(files) = &facts.conflists else { return false };
    let own = files.iter().find(|(name, _)| name == own_conflist()).and_then(|(_, content)| content.as_ref());
    own.is_some_and(|content| {
        let types = plugin_types(content);
        types.contains(&"sluice-eni") && !types.contains(&"sluice-policy")
    })
}

fn conflist(facts: &Facts, findings: &mut Vec<Finding>) {
    const CHECK: &str = "conflist";
    const AGAIN: &str = "run `sluice install` (the init container of the DaemonSet sluice)";
    let files = match &facts.conflists {
        Ok(files) => files,
        Err(why) if !facts.on_host => {
            findings.push(Finding::unknown(
                CHECK,
                format!("{why} in this container: ask in conflist, or with the host's --root"),
            ));
            return;
        }
        Err(why) => {
            findings
                .push(Finding::broken(CHECK, "no network is configured: no pod starts", AGAIN).seen_by([why.clone()]));
            return;
        }
    };
    let names = files.iter().map(|(name, content)| {
        let types = content.as_ref().map(|content| plugin_types(content).join(", "));
        format!("{name}: {}", types.unwrap_or_else(|| "no JSON that can be read".to_owned()))
    });
    let names: Vec<String> = names.collect();
    let own = own_conflist();
    let Some((first, content)) = files.first() else {
        findings.push(Finding::broken(CHECK, "no network is configured: no pod starts", AGAIN));
        return;
    };
    let Some(at) = files.iter().position(|(name, _)| name == own) else {
        findings
            .push(Finding::broken(CHECK, format!("{own} is not there: runtimes use {first}"), AGAIN).seen_by(names));
        return;
    };
    if at > 0 {
        let finding =
            format!("runtimes take the first by name, and that is {first}, not {own}: new pods are not Sluice's");
        let mend = format!("remove {first} (it is left of another CNI, or somebody writes it: find who)");
        findings.push(Finding::broken(CHECK, finding, mend).seen_by(names));
        return;
    }
    let Some(content) = content else {
        findings.push(Finding::broken(CHECK, format!("{own} is no JSON: no pod starts"), AGAIN).seen_by(names));
        return;
    };
    let types = plugin_types(content);
    if !types.contains(&"sluice-eni") && !types.contains(&"sluice-policy") {
        findings.push(Finding::broken(CHECK, format!("{own} has none of Sluice's plugins"), AGAIN).seen_by(names));
        return;
    }
    let missing: Vec<String> = types
        .iter()
        .filter(|kind| !facts.plugins.contains(**kind))
        .map(|kind| format!("/opt/cni/bin/{kind} is not there"))
        .collect();
    if !missing.is_empty() {
        findings.push(
            Finding::broken(CHECK, format!("{own} names plugins that are not there: no pod starts"), AGAIN)
                .seen_by(missing),
        );
        return;
    }
    findings.push(Finding::well(CHECK, format!("{own} is the first, with {}", types.join(", "))));
    let others = files.iter().skip(1).filter(|(_, content)| {
        content.as_ref().is_some_and(|content| plugin_types(content).iter().any(|kind| PRIMARY.contains(kind)))
    });
    let others: Vec<String> = others.map(|(name, _)| format!("/etc/cni/net.d/{name}")).collect();
    if !others.is_empty() {
        findings.push(
            Finding::doubtful(
                "conflist leftovers",
                format!("files of other CNIs wait to be used: without {own} pods would be theirs"),
                "remove them, unless that is what they are for (a node that goes back to its former CNI)",
            )
            .seen_by(others),
        );
    }
}

/// Whether a rule leads packets with a mark of Cilium's into a table of its proxy.
pub(super) fn is_ciliums(rule: &Rule) -> bool {
    CILIUM_TABLES.contains(&rule.table) && rule.mark.is_some_and(|mark| mark.mask & CILIUM_MARKS == CILIUM_MARKS)
}

fn leftovers(facts: &Facts, host: &Observed, findings: &mut Vec<Finding>) {
    let links = host.links.iter().filter_map(|link| {
        let name = link.name.as_str();
        let (_, whose) = LEFT.iter().find(|(prefix, _)| name.starts_with(prefix))?;
        Some(format!("{name} ({whose})"))
    });
    let rules = host.rules.iter().filter(|rule| is_ciliums(rule));
    let rules = rules.map(|rule| format!("ip rule {}: table {} (Cilium)", rule.priority, rule.table));
    let files = facts.files.iter().filter_map(|path| {
        let (_, whose) = FILES.iter().find(|(left, _)| path.starts_with(left))?;
        Some(format!("{} ({whose})", path.display()))
    });
    let legacy = facts.legacy.iter().flatten().map(|table| format!("iptables-legacy, {table} (the VPC CNI)"));
    let left: Vec<String> = links.chain(rules).chain(files).chain(legacy).collect();
    if let Err(why) = &facts.legacy {
        findings.push(Finding::unknown("other CNIs", format!("rules of the VPC CNI in iptables-legacy: {why}")));
    }
    findings.push(if left.is_empty() && facts.on_host {
        Finding::well("other CNIs", "nothing of other CNIs is left")
    } else if left.is_empty() {
        Finding::well("other CNIs", "no interfaces and rules of other CNIs are left; their files are seen on the host alone (--root)")
    } else {
        Finding::doubtful(
            "other CNIs",
            "something of other CNIs is there: their rules and programs may still meet packets",
            "if none of their pods is left, take that CNI off the node (its own cleanup; docs/migration.md has the commands for the VPC CNI's network policy agent and its rules in iptables-legacy, and for Cilium behind the VPC CNI), or replace the node",
        )
        .seen_by(left)
    });
}

fn sysctls(host: &Observed, findings: &mut Vec<Finding>) {
    let value =
        |key: &str| host.sysctls.iter().find(|sysctl| sysctl.key.as_str() == key).map(|sysctl| sysctl.value.trim());
    if value("net/ipv4/ip_forward").is_some_and(|value| value != "1") {
        findings.push(Finding::broken(
            "sysctls",
            "net.ipv4.ip_forward is off: pods reach nobody",
            "find who sets it (a hardening script, /etc/sysctl.d): ipamd sets it at its start",
        ));
    } else if value("net/ipv4/conf/all/rp_filter") == Some("1") {
        findings.push(Finding::doubtful(
            "sysctls",
            "net.ipv4.conf.all.rp_filter is 1 (strict), and holds for all interfaces: what comes in by one ENI and goes out by another is dropped",
            "set it to 0 or 2 (/etc/sysctl.d), and look for who sets it",
        ));
    } else {
        findings.push(Finding::well("sysctls", "forwarding and reverse path filters are as they should be"));
    }
}

fn mtu(host: &Observed, findings: &mut Vec<Finding>) {
    // The uplink of the default route.
    let default = host.routes.iter().find(|route| route.destination.prefix_len() == 0 && route.gateway.is_some());
    let uplink = default.and_then(|route| route.dev.as_ref()).and_then(|dev| host.link(dev));
    let Some(uplink) = uplink else {
        findings.push(Finding::unknown("mtu", "the host has no default route"));
        return;
    };
    let larger = host.links.iter().filter(|link| link.name.as_str().starts_with(VETH_PREFIX) && link.mtu > uplink.mtu);
    let larger: Vec<String> = larger.map(|link| format!("{}: {}", link.name, link.mtu)).collect();
    findings.push(if larger.is_empty() {
        Finding::well("mtu", format!("pods' packets fit through {} ({})", uplink.name, uplink.mtu))
    } else {
        Finding::doubtful(
            "mtu",
            format!("pods may send larger packets than {} takes ({}): large ones are lost where ICMP is filtered", uplink.name, uplink.mtu),
            "set POD_MTU to the uplink's MTU or less, or AWS_VPC_ENI_MTU to what the network carries (9001 in a VPC), and restart the pods",
        )
        .seen_by(larger)
    });
}

fn managers(facts: &Facts, findings: &mut Vec<Finding>) {
    let there = |path: &str| facts.files.contains(Path::new(path));
    let cloud_setup = [
        "/etc/systemd/system/timers.target.wants/nm-cloud-setup.timer",
        "/etc/systemd/system/multi-user.target.wants/nm-cloud-setup.service",
    ];
    let cloud_setup: Vec<String> = cloud_setup.into_iter().filter(|path| there(path)).map(str::to_owned).collect();
    findings.push(if cloud_setup.is_empty() && !facts.on_host {
        Finding::unknown("managers", "whether nm-cloud-setup is enabled is not seen from this container")
    } else if cloud_setup.is_empty() {
        Finding::well("managers", "nm-cloud-setup is not enabled")
    } else {
        Finding::broken(
            "managers",
            "nm-cloud-setup is enabled: it gives pods' addresses to the host and writes rules of its own (priorities 30200 and up, table 30200)",
            "systemctl disable --now nm-cloud-setup.timer nm-cloud-setup.service, then reboot the node",
        )
        .seen_by(cloud_setup)
    });
    if there("/var/run/aws-node/ipamd.sock") {
        findings.push(Finding::broken(
            "aws-node",
            "the VPC CNI's daemon runs on this node, too: Sluice only observes and waits",
            "take the node over by its label, or remove the DaemonSet aws-node from it; the two never run together",
        ));
    }
}

fn kernel(facts: &Facts, findings: &mut Vec<Finding>) {
    let mut numbers = facts.release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or_default());
    let version = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let release = &facts.release;
    findings.push(if version < (5, 15) {
        Finding::broken(
            "kernel",
            format!("Linux {release} is older than 5.15: gates may not load"),
            "use a newer image of the node's operating system",
        )
    } else if version < (6, 1) {
        Finding::doubtful(
            "kernel",
            format!("Linux {release}: application rules need 6.1"),
            "use a newer image where policies have HTTP, DNS or TLS rules",
        )
    } else {
        Finding::well("kernel", format!("Linux {release}"))
    });
    if facts.node.policyd.is_ok() && !facts.files.contains(Path::new("/sys/fs/bpf/sluice")) {
        findings.push(if facts.on_host {
            Finding::doubtful(
                "bpffs",
                "the gates' pins are not at /sys/fs/bpf/sluice as seen from here: gates would not outlive policyd",
                "mount bpffs on the host at /sys/fs/bpf, and give it to the container by a hostPath with mountPropagation: HostToContainer",
            )
        } else {
            Finding::unknown("bpffs", "/sys/fs/bpf/sluice is not seen from this container")
        });
    }
}

/// What lets a node hold more addresses, in words that go on with "or".
pub(super) fn more_addresses(ipamd: &Value) -> &'static str {
    match (is(ipamd, "/node/limited_by_setting"), is(ipamd, "/node/prefixes_would_help")) {
        (true, true) => "raise MAX_ENI, or use prefixes (ENABLE_PREFIX_DELEGATION)",
        (true, false) => "raise MAX_ENI",
        (false, true) => "use prefixes (ENABLE_PREFIX_DELEGATION), or a larger instance type",
        (false, false) => "use a larger instance type",
    }
}

/// Whether the kubelet takes more pods than there are addresses for.
fn pods(facts: &Facts, findings: &mut Vec<Finding>) {
    let Ok(ipamd) = &facts.node.ipamd else { return };
    // The node's object knows the kubelet's options, too, which go before its configuration.
    let said = Some(number(ipamd, "/node/max_pods")).filter(|pods| *pods > 0);
    let Some(max_pods) = said.or(facts.max_pods) else { return };
    let most = number(ipamd, "/pool/max_addresses");
    if most == 0 {
        return;
    }
    // Pods with hostNetwork need none: kube-proxy, sluice, sluice-proxy at least.
    findings.push(if max_pods > most + 3 {
        Finding::doubtful(
            "max pods",
            format!("the kubelet takes {max_pods} pods, and the node can hold {most} addresses"),
            format!("set maxPods to {} or less, or {}", most + 2, more_addresses(ipamd)),
        )
    } else {
        Finding::well("max pods", format!("{max_pods} pods, {most} addresses"))
    });
}
