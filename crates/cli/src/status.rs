//! `sluice status`: one look at a node, what is wrong first.

mod nodes;

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::daemons::{Node, is, list, number, text};
use crate::doctor::{self, Facts, Finding, Standing};
use crate::exit;
use crate::kubectl::Reach;
use crate::paint::Paint;

/// Options of `sluice status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How it is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Looks. The status is 1 if something is broken.
pub(crate) fn main(options: &Options) -> ExitCode {
    if options.reach.is_far() {
        return nodes::main(options);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let facts = match runtime {
        Ok(runtime) => runtime.block_on(Facts::gather()),
        Err(error) => {
            let _closed = writeln!(io::stderr().lock(), "sluice status: {error}");
            return ExitCode::from(exit::SOFTWARE);
        }
    };
    let findings = doctor::findings(&facts);
    let out = io::stdout();
    let shown = match options.output {
        Output::Text => shown(&facts.node, &findings, Paint { colours: out.is_terminal() }),
        Output::Json => format!("{:#}\n", machine(&facts.node, &findings)),
    };
    match out.lock().write_all(shown.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ if findings.iter().any(|finding| finding.standing == Standing::Broken) => ExitCode::from(exit::FAILED),
        _ => ExitCode::SUCCESS,
    }
}

fn machine(node: &Node, findings: &[Finding]) -> Value {
    let page = |page: &Result<Value, String>| match page {
        Ok(page) => page.clone(),
        Err(why) => json!({"unreachable": why}),
    };
    json!({
        "findings": findings.iter().filter(|finding| finding.standing != Standing::Well).collect::<Vec<_>>(),
        "ipamd": page(&node.ipamd),
        "policyd": page(&node.policyd),
        "proxy": page(&node.proxy),
    })
}

/// For people.
fn shown(node: &Node, findings: &[Finding], paint: Paint) -> String {
    let mut to = String::new();
    let mut line = |title: &str, rest: &str| {
        let _infallible = writeln!(to, "{} {rest}", paint.heading(&format!("{title:<10}")));
    };
    let wrong: Vec<&Finding> =
        findings.iter().filter(|finding| matches!(finding.standing, Standing::Broken | Standing::Doubtful)).collect();
    if wrong.is_empty() {
        line("node", &paint.good("nothing is wrong that sluice doctor looks for"));
    }
    for Finding { check, standing, finding, .. } in &wrong {
        let word = if *standing == Standing::Broken { paint.bad("broken") } else { "doubtful".to_owned() };
        line(check, &format!("{word}: {finding}"));
    }
    if !wrong.is_empty() {
        line("", &paint.dim("sluice doctor says what each is seen by, and how to mend it"));
    }
    match &node.ipamd {
        Err(why) => line("ipamd", &paint.bad(why)),
        Ok(ipamd) => pool(ipamd, &mut line, paint),
    }
    match &node.policyd {
        Err(why) => line("policyd", &paint.bad(why)),
        Ok(policyd) => policy(policyd, &mut line, paint),
    }
    match &node.proxy {
        Err(why) => line("proxy", &paint.dim(why)),
        Ok(proxy) => {
            let serving = if is(proxy, "/serving") { paint.good("serving") } else { paint.bad("not serving") };
            let policyd = if is(proxy, "/policyd") { "follows policyd" } else { "policyd is away" };
            line("proxy", &format!("{serving}, {policyd}, version {}", number(proxy, "/version")));
        }
    }
    to
}

fn pool(ipamd: &Value, line: &mut impl FnMut(&str, &str), paint: Paint) {
    let ready = if is(ipamd, "/ready") { paint.good("ready") } else { paint.bad("not ready") };
    let machine = match ipamd.get("node").filter(|node| !node.is_null()) {
        Some(node) => format!(
            "{} {} in {}",
            text(node, "/instance_type"),
            text(node, "/instance"),
            text(node, "/availability_zone")
        ),
        None => "the instance is not known yet".to_owned(),
    };
    line("ipamd", &format!("{ready}, {machine}"));
    let count = |name: &str| number(ipamd, &format!("/pool/{name}"));
    line(
        "pool",
        &format!(
            "{} addresses: {} assigned, {} free, {} cooling, {} quarantined, {} pending; at most {}; {} pods wait",
            count("total"),
            count("assigned"),
            count("free"),
            count("cooling"),
            count("quarantined"),
            count("pending"),
            count("max_addresses"),
            count("waiting"),
        ),
    );
    let enis = ipamd.get("enis").and_then(Value::as_object);
    for (id, eni) in enis.into_iter().flatten() {
        let device = eni.get("device").and_then(Value::as_u64).map_or("-".to_owned(), |device| device.to_string());
        let card = match number(eni, "/card") {
            0 => String::new(),
            card => format!("card {card} "),
        };
        let assigned = number(ipamd, &format!("/pool/assigned_by_eni/{id}"));
        let blocks = eni.get("blocks").and_then(Value::as_object).map_or(0, serde_json::Map::len);
        line(
            "  eni",
            &format!(
                "{id} {card}device {device}, {}, {}, {blocks} blocks, {assigned} pods, {}",
                text(eni, "/primary_ip"),
                text(eni, "/subnet"),
                text(eni, "/stage").to_ascii_lowercase(),
            ),
        );
    }
    let branches = ipamd.get("branches").and_then(Value::as_object);
    for (id, branch) in branches.into_iter().flatten() {
        let pod = format!("{}/{}", text(branch, "/pod/namespace"), text(branch, "/pod/name"));
        line("  branch", &format!("{id} VLAN {}, {} mode, pod {pod}", number(branch, "/vlan"), text(branch, "/mode")));
    }
    let subnets = ipamd.pointer("/pool/free_by_subnet").and_then(Value::as_object);
    for (subnet, free) in subnets.into_iter().flatten() {
        line("  subnet", &format!("{subnet}: {free} free addresses when EC2 was last asked"));
    }
    for subnet in list(ipamd, "/pool/without_prefixes").iter().filter_map(Value::as_str) {
        line("  subnet", &paint.bad(&format!("{subnet}: no whole /28 when EC2 was last asked for one")));
    }
    let held_up = text(ipamd, "/held_up");
    if !held_up.is_empty() {
        line("  held up", &paint.bad(held_up));
    }
    for operation in list(ipamd, "/under_way").iter().filter_map(Value::as_str) {
        line("  doing", operation);
    }
}

fn policy(policyd: &Value, line: &mut impl FnMut(&str, &str), paint: Paint) {
    let serving = if is(policyd, "/serving") { paint.good("serving") } else { paint.bad("not serving") };
    let synced = if is(policyd, "/synced") { "synced" } else { "not synced" };
    line("policyd", &format!("{serving}, {synced}, revision {}", number(policyd, "/revision")));
    let endpoints = list(policyd, "/endpoints");
    let that = |wanted: &str| endpoints.iter().filter(|endpoint| is(endpoint, wanted)).count();
    line(
        "endpoints",
        &format!(
            "{}: {} with ingress policy, {} with egress policy, {} dry runs, {} locked; {} pods without a gate",
            endpoints.len(),
            that("/ingress"),
            that("/egress"),
            that("/audit"),
            that("/locked"),
            list(policyd, "/without_gate").len(),
        ),
    );
    let faulty = policyd.get("faults").and_then(Value::as_object).map_or(0, serde_json::Map::len);
    line(
        "policies",
        &format!(
            "{}, {faulty} objects with something wrong; {} pods known",
            list(policyd, "/policies").len(),
            number(policyd, "/pods")
        ),
    );
    line(
        "flows",
        &format!(
            "{} of {} kept, {} seen, {} lost (sluice observe)",
            number(policyd, "/flows/kept"),
            number(policyd, "/flows/limit"),
            number(policyd, "/flows/seen"),
            number(policyd, "/flows/lost"),
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_comes_first() {
        let ipamd = json!({
            "ready": true,
            "node": {"instance": "i-1", "instance_type": "m5.large", "availability_zone": "eu-central-1a"},
            "pool": {"total": 18, "assigned": 10, "free": 8, "max_addresses": 27, "assigned_by_eni": {"eni-1": 9},
                     "free_by_subnet": {"subnet-1": 200}, "without_prefixes": ["subnet-1"]},
            "enis": {"eni-1": {"device": 0, "subnet": "subnet-1", "primary_ip": "10.0.0.4", "stage": "Ready", "blocks": {"10.0.0.5/32": {}}}},
            "held_up": null,
        });
        let policyd = json!({
            "serving": true, "synced": true, "revision": 7, "pods": 20,
            "endpoints": [{"ingress": true, "locked": true}, {"egress": true}],
            "policies": [{}], "faults": {}, "flows": {"kept": 5, "limit": 64, "seen": 9, "lost": 1},
        });
        let node = Node { ipamd: Ok(ipamd), policyd: Ok(policyd), proxy: Err("nobody listens".to_owned()) };
        let findings = [Finding::broken("maps", "a map is full", "less"), Finding::well("rules", "fine")];
        let text = shown(&node, &findings, Paint { colours: false });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "maps       broken: a map is full");
        for line in [
            "ipamd      ready, m5.large i-1 in eu-central-1a",
            "pool       18 addresses: 10 assigned, 8 free, 0 cooling, 0 quarantined, 0 pending; at most 27; 0 pods wait",
            "  eni      eni-1 device 0, 10.0.0.4, subnet-1, 1 blocks, 9 pods, ready",
            "  subnet   subnet-1: 200 free addresses when EC2 was last asked",
            "  subnet   subnet-1: no whole /28 when EC2 was last asked for one",
            "policyd    serving, synced, revision 7",
            "endpoints  2: 1 with ingress policy, 1 with egress policy, 0 dry runs, 1 locked; 0 pods without a gate",
            "flows      5 of 64 kept, 9 seen, 1 lost (sluice observe)",
            "proxy      nobody listens",
        ] {
            assert!(lines.contains(&line), "{line:?} is not in\n{text}");
        }
        assert_eq!(machine(&node, &findings)["findings"].as_array().unwrap().len(), 1);
    }
}
