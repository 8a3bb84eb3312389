//! policyd and the proxy: whether every pod has its gate, every policy means something, and requests are judged.

use serde_json::Value;

use super::facts::{by_name, texts};
use super::host::without_policy;
use super::{Facts, Finding};
use crate::daemons::{is, list, number, text};

pub(super) fn check(facts: &Facts, findings: &mut Vec<Finding>) {
    let policyd = match &facts.node.policyd {
        Ok(policyd) => policyd,
        Err(_) if without_policy(facts) => {
            findings.push(Finding::well("policyd", "the conflist has no sluice-policy: pods have no gates"));
            return;
        }
        Err(why) => {
            findings.push(
                Finding::broken(
                    "policyd",
                    "sluice-policyd does not answer: pods keep their verdicts, new pods wait, then fail",
                    "see its log (kubectl -n kube-system logs ds/sluice -c policyd); with DISABLE_INTROSPECTION it runs and is not seen",
                )
                .seen_by([why.clone()]),
            );
            return;
        }
    };
    let stale = text(policyd, "/stale");
    if !is(policyd, "/serving") {
        findings.push(Finding::broken(
            "policyd",
            "sluice-policyd does not know the cluster yet: no pod starts",
            "it waits for the API server: see below, and its log",
        ));
    } else if stale.is_empty() {
        findings.push(Finding::well("policyd", format!("revision {} is in force", number(policyd, "/revision"))));
    }
    if !stale.is_empty() {
        findings.push(
            Finding::doubtful(
                "api server",
                "what policyd knows of the cluster may be old: changes of policies and pods are not in force",
                "look at the API server and at the way to it; pods go on as they are",
            )
            .seen_by([stale.to_owned()]),
        );
    }
    gates(policyd, findings);
    policies(policyd, findings);
    proxy(policyd, &facts.node.proxy, findings);
}

fn gates(policyd: &Value, findings: &mut Vec<Finding>) {
    let endpoints = list(policyd, "/endpoints");
    let name = |endpoint: &Value| {
        format!("{}/{} ({})", text(endpoint, "/namespace"), text(endpoint, "/name"), text(endpoint, "/interface"))
    };
    let locked: Vec<String> = endpoints.iter().filter(|endpoint| is(endpoint, "/locked")).map(name).collect();
    if !locked.is_empty() {
        findings.push(
            Finding::broken(
                "maps",
                "a map of the gates is full: these pods drop everything",
                "fewer or larger blocks in policies, or fewer policies for these pods; see sluice_policy_apply_failures for the map",
            )
            .seen_by(locked),
        );
    }
    let without = texts(policyd, "/without_gate");
    if !without.is_empty() {
        findings.push(
            Finding::doubtful(
                "gates",
                "pods that were there before have no gate: no policy is enforced on them",
                "restart them (kubectl rollout restart): behind a bridge nothing on the host says which interface is whose",
            )
            .seen_by(without),
        );
    }
    let silent = endpoints.iter().filter(|endpoint| endpoint.get("revision").is_none_or(Value::is_null));
    let silent: Vec<String> = silent.map(name).collect();
    if !silent.is_empty() {
        findings.push(
            Finding::doubtful(
                "endpoints",
                "interfaces whose pod is not known drop everything",
                "a pod of a moment ago, or one that the API server does not know (any more): they go with their sandboxes",
            )
            .seen_by(silent),
        );
    }
    if findings.iter().all(|finding| !matches!(finding.check, "maps" | "gates" | "endpoints")) {
        findings.push(Finding::well("gates", format!("{} interfaces have a gate", endpoints.len())));
    }
    let gone = number(policyd, "/drops/not-ready");
    if gone > 0 {
        findings
            .push(Finding::well("closed", format!("{gone} packets came before their pod's policy, and were dropped")));
    }
}

fn policies(policyd: &Value, findings: &mut Vec<Finding>) {
    let faults = by_name(policyd, "/faults");
    let count = list(policyd, "/policies").len();
    if faults.is_empty() {
        findings.push(Finding::well("policies", format!("{count} policies, and nothing is wrong with them")));
        return;
    }
    let lines = faults.iter().flat_map(|(object, issues)| {
        let issues = issues.as_array().map(Vec::as_slice).unwrap_or_default();
        issues.iter().filter_map(Value::as_str).map(move |issue| format!("{object}: {issue}"))
    });
    findings.push(
        Finding::doubtful(
            "policies",
            format!(
                "something is wrong with {} objects: an allow that cannot be used grants nothing, a deny denies all",
                faults.len()
            ),
            "mend them: `sluice policy check FILE` says the same before they are applied",
        )
        .seen_by(lines),
    );
}

fn proxy(policyd: &Value, proxy: &Result<Value, String>, findings: &mut Vec<Finding>) {
    let (decisions, connected) = (number(policyd, "/proxy/decisions"), number(policyd, "/proxy/connected"));
    let dropped = number(policyd, "/drops/no-proxy");
    if decisions == 0 && connected == 0 {
        findings.push(Finding::well("proxy", "no policy has application rules, and no proxy runs"));
        return;
    }
    if connected == 0 {
        let mut evidence =
            vec![format!("{decisions} decisions send flows to the proxy, and none is connected to policyd")];
        evidence.extend(proxy.as_ref().err().map(|why| format!("sluice-proxy: {why}")));
        evidence.push(format!("{dropped} packets were dropped because no proxy took them"));
        findings.push(
            Finding::broken(
                "proxy",
                "policies have application rules, and no sluice-proxy runs: those flows are dropped",
                "start it (the DaemonSet sluice-proxy), and see its log (kubectl -n kube-system logs ds/sluice-proxy)",
            )
            .seen_by(evidence),
        );
        return;
    }
    match proxy {
        Ok(page) if !is(page, "/serving") => findings.push(Finding::broken(
            "proxy",
            "sluice-proxy runs and does not serve yet: flows with application rules are dropped",
            "see its log",
        )),
        Ok(_) => findings.push(Finding::well("proxy", format!("{connected} connected, {decisions} decisions"))),
        Err(why) => {
            findings.push(Finding::unknown("proxy", format!("it is connected to policyd, and not seen: {why}")))
        }
    }
}
