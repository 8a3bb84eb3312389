//! What the demo found, as plain data: printed as tables for people, as JSON for programs.

use std::collections::BTreeMap;

use serde::Serialize;

/// Everything that one run shows.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Report {
    /// The nodes with their ENIs.
    pub nodes: Vec<NodeRow>,
    /// The pods that the matrix is about.
    pub pods: Vec<PodRow>,
    /// Who reached whom.
    pub matrix: Vec<Cell>,
    /// What policies do to it.
    pub policies: Vec<PolicyAct>,
    /// What policies for requests do to these.
    pub requests: Vec<RequestAct>,
    /// What the nodes' agents saw of it.
    pub flows: Vec<FlowAct>,
    /// The burst of pods.
    pub burst: Option<Burst>,
    /// What happened after the burst's pods were deleted.
    pub give_back: Option<GiveBack>,
    /// Seconds from start to end.
    pub seconds: f64,
}

/// A question to `sluice observe` on both nodes.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FlowAct {
    /// Its options.
    pub question: String,
    /// The answers, each with its node.
    pub lines: Vec<String>,
    /// What one of them has to name.
    pub wanted: String,
    /// Whether one does.
    pub named: bool,
}

/// A node.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct NodeRow {
    /// Its name.
    pub name: String,
    /// Its instance id.
    pub instance: String,
    /// Its instance type.
    pub instance_type: String,
    /// Its warm-pool settings in words.
    pub settings: String,
    /// Its ENIs, the primary first.
    pub enis: Vec<EniRow>,
}

/// An ENI of a node.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct EniRow {
    /// Its id.
    pub eni: String,
    /// Device number; 0 for the primary ENI.
    pub device: u32,
    /// Link on the node.
    pub link: String,
    /// Its own address.
    pub primary_ip: String,
    /// Addresses that pods hold.
    pub assigned: u32,
    /// Addresses that pods could have at once.
    pub free: u32,
}

/// A pod.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PodRow {
    /// `namespace/name`.
    pub pod: String,
    /// Its node.
    pub node: String,
    /// Its address.
    pub address: String,
    /// The ENI that holds the address.
    pub eni: String,
    /// That ENI's link on the node.
    pub link: String,
    /// The route table by which its packets leave.
    pub table: String,
    /// The host's end of its veth.
    pub host_ifname: String,
}

/// One probe of the matrix.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Cell {
    /// Who asked.
    pub from: String,
    /// Who was asked.
    pub to: String,
    /// The source address that the far side had to see.
    pub expected: String,
    /// The source address that it saw; nothing if there was no answer.
    pub seen: Option<String>,
    /// What went wrong, if anything did.
    pub problem: Option<String>,
}

impl Cell {
    /// Whether the probe went as it had to.
    #[must_use]
    pub(crate) fn holds(&self) -> bool {
        self.problem.is_none() && self.seen.as_deref() == Some(self.expected.as_str())
    }
}

/// A set of policies that was in force.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PolicyAct {
    /// What it says.
    pub title: String,
    /// Who reached whom then.
    pub cells: Vec<PolicyCell>,
}

/// One connection under policies.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PolicyCell {
    /// Who connects.
    pub from: String,
    /// To whom.
    pub to: String,
    /// Whether it has to pass.
    pub allowed: bool,
    /// Whether it did.
    pub passed: bool,
    /// The rule that denies it, and where.
    pub denied_by: Option<String>,
}

/// A policy for requests that was in force.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RequestAct {
    /// What it says.
    pub title: String,
    /// What was tried then.
    pub cells: Vec<RequestCell>,
}

/// One request under a policy.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RequestCell {
    /// Who sends it.
    pub from: String,
    /// To whom.
    pub to: String,
    /// What it is.
    pub request: String,
    /// What has to come of it.
    pub expected: String,
    /// What came of it.
    pub seen: String,
    /// What the proxy recorded: the verdict, and the rule or the reason.
    pub recorded: Option<String>,
    /// Whether the proxy has to record it.
    #[serde(skip)]
    pub needs_record: bool,
}

impl RequestCell {
    /// Whether it went as it had to.
    #[must_use]
    pub(crate) fn holds(&self) -> bool {
        self.seen == self.expected && (self.recorded.is_some() || !self.needs_record)
    }
}

/// The pools of all nodes at one moment.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Sample {
    /// What the moment is.
    pub moment: String,
    /// Seconds since the burst began; negative before.
    pub seconds: f64,
    /// ENIs.
    pub enis: u32,
    /// Addresses that pods hold.
    pub assigned: u32,
    /// Addresses that pods could have at once.
    pub free: u32,
    /// Addresses that are cooling.
    pub cooling: u32,
    /// ADDs that wait for an address.
    pub waiting: u32,
}

/// A burst of pods.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Burst {
    /// How many pods.
    pub pods: usize,
    /// How many were served.
    pub served: usize,
    /// Milliseconds from exec to exit of the fastest, the median and the slowest ADD.
    pub add_ms: [f64; 3],
    /// The pools before, during and after.
    pub samples: Vec<Sample>,
    /// EC2 calls by action, from the first ADD until the pools were settled.
    pub ec2_calls: BTreeMap<String, u32>,
    /// Errors of ADDs that failed.
    pub errors: Vec<String>,
}

/// After the deletion of the burst's pods.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct GiveBack {
    /// `IP_COOLDOWN_PERIOD` in seconds.
    pub cooldown_seconds: u32,
    /// The pools after the deletion, after the cooldown, after the give-back.
    pub samples: Vec<Sample>,
    /// EC2 calls by action since the deletion.
    pub ec2_calls: BTreeMap<String, u32>,
    /// Errors of DELs that failed.
    pub errors: Vec<String>,
}

impl Report {
    /// What did not go as it had to, in words; empty when all is well.
    #[must_use]
    pub(crate) fn faults(&self) -> Vec<String> {
        let cells = self.matrix.iter().filter(|cell| !cell.holds()).map(|cell| {
            let seen = match (&cell.seen, &cell.problem) {
                (_, Some(problem)) => problem.clone(),
                (Some(seen), None) => format!("the far side saw {seen} instead of {}", cell.expected),
                (None, None) => "no answer".to_owned(),
            };
            format!("{} -> {}: {seen}", cell.from, cell.to)
        });
        let policies = self.policies.iter().flat_map(|act| {
            act.cells.iter().filter(|cell| cell.allowed != cell.passed).map(move |cell| {
                let PolicyCell { from, to, passed, .. } = cell;
                let (did, has) = if *passed { ("passes", "not ") } else { ("does not pass", "") };
                format!("{}: {from} -> {to} {did}, and has {has}to", act.title)
            })
        });
        let requests = self.requests.iter().flat_map(|act| {
            act.cells.iter().filter(|cell| !cell.holds()).map(move |cell| {
                let RequestCell { from, to, request, expected, seen, .. } = cell;
                let what = if seen == expected {
                    "the proxy has no record of it".to_owned()
                } else {
                    format!("{seen} instead of {expected}")
                };
                format!("{}: {request} from {from} to {to}: {what}", act.title)
            })
        });
        let burst = self.burst.iter().flat_map(|burst| {
            let unserved = (burst.served < burst.pods)
                .then(|| format!("{} of {} pods of the burst were served", burst.served, burst.pods));
            unserved.into_iter().chain(burst.errors.iter().cloned())
        });
        let deletes = self.give_back.iter().flat_map(|give_back| give_back.errors.iter().cloned());
        let flows = self.flows.iter().filter(|act| !act.named);
        let flows = flows.map(|act| format!("sluice observe {}: no flow names {:?}", act.question, act.wanted));
        let acts = policies.chain(requests).chain(flows);
        let mut faults: Vec<String> = cells.chain(acts).chain(burst).chain(deletes).collect();
        if self.matrix.is_empty() {
            faults.push("the matrix is empty: nothing was probed".to_owned());
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(expected: &str, seen: Option<&str>, problem: Option<&str>) -> Cell {
        Cell {
            from: "a".into(),
            to: "b".into(),
            expected: expected.into(),
            seen: seen.map(str::to_owned),
            problem: problem.map(str::to_owned),
        }
    }

    #[test]
    fn a_cell_holds_only_when_the_far_side_saw_the_expected_source() {
        assert!(cell("10.0.0.1", Some("10.0.0.1"), None).holds());
        assert!(!cell("10.0.0.1", Some("10.0.0.2"), None).holds());
        assert!(!cell("10.0.0.1", None, None).holds());
        assert!(!cell("10.0.0.1", Some("10.0.0.1"), Some("timed out")).holds());
    }

    #[test]
    fn a_policy_that_is_not_enforced_is_a_fault() {
        let cell = |allowed, passed| PolicyCell { from: "a".into(), to: "b".into(), allowed, passed, denied_by: None };
        let cells = vec![cell(true, true), cell(false, false), cell(false, true), cell(true, false)];
        let policies = vec![PolicyAct { title: "deny".into(), cells }];
        let report = Report { matrix: vec![], policies, ..Report::default() };
        let faults = report.faults();
        assert_eq!(faults[0], "deny: a -> b passes, and has not to");
        assert_eq!(faults[1], "deny: a -> b does not pass, and has to");
        assert_eq!(faults.len(), 3);
    }

    #[test]
    fn a_request_that_went_otherwise_or_left_no_record_is_a_fault() {
        let cell = |seen: &str, recorded: Option<&str>| RequestCell {
            from: "a".into(),
            to: "b".into(),
            request: "GET /".into(),
            expected: "403".into(),
            seen: seen.into(),
            recorded: recorded.map(str::to_owned),
            needs_record: true,
        };
        let cells = vec![cell("403", Some("refused by x")), cell("200", Some("passed by y")), cell("403", None)];
        let report = Report { requests: vec![RequestAct { title: "http".into(), cells }], ..Report::default() };
        let faults = report.faults();
        assert_eq!(faults[0], "http: GET / from a to b: 200 instead of 403");
        assert_eq!(faults[1], "http: GET / from a to b: the proxy has no record of it");
        assert_eq!(faults.len(), 3);
    }

    #[test]
    fn an_empty_matrix_is_a_fault_and_so_is_every_broken_cell() {
        assert_eq!(Report::default().faults(), ["the matrix is empty: nothing was probed"]);
        let report = Report {
            matrix: vec![cell("10.0.0.1", Some("10.0.0.1"), None), cell("10.0.0.1", Some("10.0.0.2"), None)],
            ..Report::default()
        };
        assert_eq!(report.faults(), ["a -> b: the far side saw 10.0.0.2 instead of 10.0.0.1"]);
    }
}
