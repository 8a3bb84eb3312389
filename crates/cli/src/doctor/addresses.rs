//! ipamd: the pool, subnets, EC2's answers; and whether pods' addresses are routed as they have to be.

use std::net::IpAddr;

use serde_json::Value;
use sluice_contract::node::{RULE_EXTERNAL_SERVICE, RULE_FROM_POD, RULE_PRIMARY_ENI_MARK, RULE_TO_POD, TABLE_MAIN};
use sluice_hostnet::state::{Family, Observed, Rule, host_prefix};

use super::facts::{Assigned, assigned, by_name, texts};
use super::host::{is_ciliums, more_addresses};
use super::{Facts, Finding};
use crate::daemons::{is, number, text};

/// Priorities above which nothing comes before the pods' rules.
const BEFORE_PODS: u32 = RULE_FROM_POD;

pub(super) fn check(facts: &Facts, findings: &mut Vec<Finding>) {
    let ipamd = match &facts.node.ipamd {
        Ok(ipamd) => ipamd,
        Err(why) => {
            findings.push(
                Finding::broken(
                    "ipamd",
                    "sluice-ipamd does not answer: new pods wait, then fail",
                    "see its log (kubectl -n kube-system logs ds/sluice -c ipamd); with DISABLE_INTROSPECTION it runs and is not seen",
                )
                .seen_by([why.clone()]),
            );
            return;
        }
    };
    if is(ipamd, "/ready") {
        findings.push(Finding::well("ipamd", "sluice-ipamd answers, and pods may start"));
    } else {
        findings.push(Finding::broken(
            "ipamd",
            "sluice-ipamd was never ready since the node booted: no pod starts",
            "see what EC2 and IMDS answered, below, and its log",
        ));
    }
    pool(ipamd, findings);
    ec2(ipamd, findings);
    match &facts.host {
        Ok(host) => {
            routes(ipamd, host, findings);
            rules(host, findings);
        }
        Err(why) => findings.push(Finding::unknown("routes", format!("the host cannot be looked at: {why}"))),
    }
}

fn pool(ipamd: &Value, findings: &mut Vec<Finding>) {
    let count = |name: &str| number(ipamd, &format!("/pool/{name}"));
    let (waiting, free, assigned, most) = (count("waiting"), count("free"), count("assigned"), count("max_addresses"));
    let numbers = format!(
        "{} addresses: {assigned} assigned, {free} free, {} cooling, {} quarantined, {} pending; {} of {} ENIs",
        count("total"),
        count("cooling"),
        count("quarantined"),
        count("pending"),
        count("enis"),
        count("max_enis"),
    );
    if waiting > 0 && most > 0 && assigned >= most {
        findings.push(
            Finding::broken(
                "pool",
                format!("{waiting} pods wait, and the node can hold no more addresses"),
                format!("lower the kubelet's maxPods to what the node holds ({most}), or {}", more_addresses(ipamd)),
            )
            .seen_by([numbers.clone()]),
        );
    } else if waiting > 0 && free == 0 {
        findings.push(
            Finding::doubtful(
                "pool",
                format!("{waiting} pods wait for an address"),
                "see why the pool does not grow, below; else wait: it does",
            )
            .seen_by([numbers.clone()]),
        );
    } else {
        findings.push(Finding::well("pool", numbers.clone()));
    }
    let without_prefixes = texts(ipamd, "/pool/without_prefixes");
    if !without_prefixes.is_empty() {
        findings.push(
            Finding::doubtful(
                "prefixes",
                "a subnet has no whole /28 left: pods get single addresses, of which an ENI holds a sixteenth",
                "reserve a CIDR for prefixes (aws ec2 create-subnet-cidr-reservation), or add a subnet with the tag kubernetes.io/role/cni=1",
            )
            .seen_by(without_prefixes),
        );
    }
    if count("violations") > 0 {
        findings.push(
            Finding::broken(
                "ledger",
                "rules of the ledger are broken: two pods may have one address",
                "this is a fault of Sluice: run sluice bundle, and report it",
            )
            .seen_by([format!("{} rules", count("violations"))]),
        );
    }
    let strays = texts(ipamd, "/strays");
    if !strays.is_empty() {
        findings.push(
            Finding::doubtful(
                "quarantine",
                "the kernel has addresses that no known ENI holds: they are handed to nobody",
                "a pod of another CNI, or an ENI that went while its pod ran: restart those pods",
            )
            .seen_by(strays),
        );
    }
}

/// What EC2 says, and what follows for subnets.
fn ec2(ipamd: &Value, findings: &mut Vec<Finding>) {
    let obstacles = by_name(ipamd, "/obstacles");
    let said = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of = |words: &[&str]| -> Vec<String> {
        let is_it = |said: &str| words.iter().any(|word| said.to_ascii_lowercase().contains(word));
        obstacles.iter().map(|(api, value)| format!("{api}: {}", said(value))).filter(|line| is_it(line)).collect()
    };
    let held_up = text(ipamd, "/held_up").to_owned();
    let held_by = |words: &[&str]| words.iter().any(|word| held_up.to_ascii_lowercase().contains(word));
    const DENIED: &[&str] = &["unauthorizedoperation", "accessdenied", "not authorized", "denied", "permission"];
    const FULL: &[&str] =
        &["insufficientfreeaddresses", "insufficientcidr", "enough free", "no free", "exhausted", "sufficient free"];
    const QUOTA: &[&str] = &["networkinterfacelimitexceeded"];
    const GROUPS: &[&str] =
        &["invalidgroup.notfound", "invalidsecuritygroupid.notfound", "securitygroupsperinterfacelimitexceeded"];
    const THROTTLED: &[&str] = &["requestlimitexceeded", "throttl", "request limit"];
    let mut known = false;
    let mut tell = |check, words: &[&str], finding: &str, mend: &str, findings: &mut Vec<Finding>, broken: bool| {
        let mut evidence = of(words);
        if held_by(words) {
            evidence.push(held_up.clone());
        }
        if evidence.is_empty() {
            return;
        }
        known = true;
        let made = if broken { Finding::broken(check, finding, mend) } else { Finding::doubtful(check, finding, mend) };
        findings.push(made.seen_by(evidence));
    };
    tell(
        "iam",
        DENIED,
        "EC2 denies calls: the pool cannot change",
        "give the node's role (or the service account's) the actions named here; `sluice doctor` again after a minute",
        findings,
        true,
    );
    tell(
        "subnet",
        FULL,
        "a subnet has no room for what is asked: the pool cannot grow there",
        "add a subnet with the tag kubernetes.io/role/cni=1, use secondary addresses where there is no free /28, or lower the warm targets of all nodes",
        findings,
        true,
    );
    tell(
        "quota",
        QUOTA,
        "the account has as many network interfaces as its quota allows: no node gets more",
        "raise the quota (Service Quotas: Network interfaces per Region), or delete interfaces that nobody uses",
        findings,
        true,
    );
    tell(
        "security groups",
        GROUPS,
        "EC2 makes no ENI with the security groups that are named",
        "see spec.securityGroups of the node's ENIConfig, else the groups of the primary ENI: each has to be there, in the VPC, and no more of them than the account's quota allows on an interface",
        findings,
        true,
    );
    tell(
        "throttling",
        THROTTLED,
        "EC2 throttles calls: the pool changes slowly",
        "nothing here: calls are slowed down by themselves; look for who else calls EC2 in this account and region, or ask for higher limits",
        findings,
        false,
    );
    let others: Vec<String> = obstacles.iter().map(|(api, value)| format!("{api}: {}", said(value))).collect();
    if !known && (!held_up.is_empty() || !others.is_empty()) {
        let evidence = others.into_iter().chain((!held_up.is_empty()).then_some(held_up));
        findings.push(
            Finding::doubtful("ec2", "the pool is held up", "the words below are EC2's, or say what is waited for")
                .seen_by(evidence),
        );
    } else if !known {
        findings.push(Finding::well("ec2", "no call is held up"));
    }
    let low = by_name(ipamd, "/pool/free_by_subnet");
    let low = low.iter().filter(|(_, free)| free.as_u64().is_some_and(|free| free < 16));
    let low: Vec<String> = low.map(|(subnet, free)| format!("{subnet}: {free} free addresses")).collect();
    if !low.is_empty() {
        findings.push(
            Finding::doubtful(
                "subnet room",
                "a subnet is nearly full",
                "add a subnet with the tag kubernetes.io/role/cni=1, or a secondary CIDR to the VPC",
            )
            .seen_by(low),
        );
    }
}

/// Whether every pod's address leads to its interface, and its packets to its ENI.
fn routes(ipamd: &Value, host: &Observed, findings: &mut Vec<Finding>) {
    let pods = assigned(ipamd);
    let mut missing = Vec::new();
    for Assigned { address, interface, pod, table } in &pods {
        let prefix = host_prefix(*address);
        if !host.links.iter().any(|link| link.name.as_str() == interface) {
            missing.push(format!("{pod} ({address}): its interface {interface} is gone"));
            continue;
        }
        let has_route = host.routes.iter().any(|route| {
            route.table == TABLE_MAIN
                && route.destination == prefix
                && route.dev.as_ref().is_some_and(|dev| dev.as_str() == interface)
        });
        if !has_route {
            missing.push(format!("{pod}: no route {address} dev {interface} in table main"));
        }
        let to = host.rules.iter().any(|rule| rule.priority == RULE_TO_POD && rule.to == Some(prefix));
        if !to {
            missing.push(format!("{pod}: no rule {RULE_TO_POD}: to {address} lookup main"));
        }
        let from = |rule: &Rule| rule.priority == RULE_FROM_POD && rule.from == Some(prefix) && rule.table == *table;
        if *table != TABLE_MAIN && !host.rules.iter().any(from) {
            missing.push(format!("{pod}: no rule {RULE_FROM_POD}: from {address} lookup {table}"));
        }
    }
    let tables: std::collections::BTreeSet<u32> = pods.iter().map(|pod| pod.table).collect();
    for table in tables.into_iter().filter(|table| *table != TABLE_MAIN) {
        let v4 = pods.iter().any(|pod| pod.table == table && pod.address.is_ipv4());
        let default = host.routes.iter().any(|route| {
            route.table == table && route.destination == Family::V4.everything() && route.gateway.is_some_and(is_v4)
        });
        if v4 && !default {
            missing.push(format!("table {table}: no default route: its pods reach nobody outside the node"));
        }
    }
    findings.push(if missing.is_empty() {
        Finding::well("routes", format!("the addresses of {} pods are routed as they have to be", pods.len()))
    } else {
        Finding::broken(
            "routes",
            "routes or rules of pods are missing: somebody took them away",
            "ipamd puts them back at once, where it runs and can: see its log; and look for who did it: NetworkManager, \
             systemd-networkd (ManageForeignRoutes=no), nm-cloud-setup, a script",
        )
        .seen_by(missing)
    });
}

const fn is_v4(address: IpAddr) -> bool {
    address.is_ipv4()
}

/// Rules that nobody of us made and that come before the pods' own.
fn rules(host: &Observed, findings: &mut Vec<Finding>) {
    const OURS: [u32; 4] = [RULE_TO_POD, RULE_PRIMARY_ENI_MARK, RULE_EXTERNAL_SERVICE, RULE_FROM_POD];
    let foreign = host.rules.iter().filter(|rule| {
        // 0 is the kernel's: local; 10 and 20 are those of security groups for pods, as VPC CNI has them.
        let is_known = matches!(rule.priority, 0 | 10 | 20) || OURS.contains(&rule.priority);
        // Of what another CNI has left, the check of that tells.
        !is_known && rule.priority <= BEFORE_PODS && !is_ciliums(rule)
    });
    let foreign: Vec<String> = foreign.map(shown).collect();
    findings.push(if foreign.is_empty() {
        Finding::well("rules", "no rule of others comes before the pods' rules")
    } else {
        Finding::doubtful(
            "rules",
            "rules of others come before the pods' rules: pods' packets may leave by the wrong interface",
            format!(
                "find who made them; give them a priority above {BEFORE_PODS} or remove them (ip rule del priority N)"
            ),
        )
        .seen_by(foreign)
    });
}

fn shown(rule: &Rule) -> String {
    let mut text = format!("{}:", rule.priority);
    let mut add = |word: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!(" {word} {value}"));
        }
    };
    add("from", Some(rule.from.map_or_else(|| "all".to_owned(), |net| net.to_string())));
    add("to", rule.to.map(|net| net.to_string()));
    add("fwmark", rule.mark.map(|mark| format!("{mark:?}")));
    add("iif", rule.iif.as_ref().map(ToString::to_string));
    add("lookup", Some(rule.table.to_string()));
    text
}
