//! The nodes of a cluster: what is wrong first, and on which of them; then a line for each.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::{Options, Output};
use crate::daemons::{list, number, text};
use crate::exit;
use crate::paint::Paint;

/// Nodes that are named of those that have the same finding.
const NAMED: usize = 5;

/// What a node says of itself, or why nothing.
type Nodes = BTreeMap<String, Result<Value, String>>;

/// Asks. The status is 1 if something is broken anywhere, or a node says nothing.
pub(super) fn main(options: &Options) -> ExitCode {
    let agents = match options.reach.agents() {
        Ok(agents) => agents,
        Err(why) => {
            let _closed = writeln!(io::stderr().lock(), "sluice status: {why}");
            return ExitCode::from(exit::UNAVAILABLE);
        }
    };
    let arguments = ["status", "--output", "json"].map(str::to_owned);
    let said = options.reach.ask(&agents, &arguments);
    let read =
        |said: Vec<u8>| serde_json::from_slice(&said).map_err(|error| format!("what it says is no JSON: {error}"));
    let nodes: Nodes = agents.into_iter().zip(said).map(|(agent, said)| (agent.node, said.and_then(read))).collect();
    let out = io::stdout();
    let shown = match options.output {
        Output::Text => shown(&nodes, Paint { colours: out.is_terminal() }),
        Output::Json => format!("{:#}\n", machine(&nodes)),
    };
    match out.lock().write_all(shown.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ if nodes.values().all(|node| node.as_ref().is_ok_and(|node| standing(node) != "broken")) => ExitCode::SUCCESS,
        _ => ExitCode::from(exit::FAILED),
    }
}

fn machine(nodes: &Nodes) -> Value {
    let nodes = nodes.iter().map(|(name, node)| {
        let node = match node {
            Ok(node) => node.clone(),
            Err(why) => json!({ "unreachable": why }),
        };
        (name.clone(), node)
    });
    json!({ "nodes": nodes.collect::<serde_json::Map<_, _>>() })
}

/// The worst of what a node has found.
fn standing(node: &Value) -> &str {
    let findings = list(node, "/findings");
    let has = |standing: &str| findings.iter().any(|finding| text(finding, "/standing") == standing);
    ["broken", "doubtful"].into_iter().find(|standing| has(standing)).unwrap_or("well")
}

fn shown(nodes: &Nodes, paint: Paint) -> String {
    let mut wrong: BTreeMap<(u8, String), Vec<&str>> = BTreeMap::new();
    for (name, node) in nodes {
        match node {
            Err(why) => wrong.entry((0, format!("node: it cannot be asked: {why}"))).or_default().push(name),
            Ok(node) => {
                for finding in list(node, "/findings") {
                    let rank = match text(finding, "/standing") {
                        "broken" => 0,
                        "doubtful" => 1,
                        _ => continue,
                    };
                    let line = format!("{}: {}", text(finding, "/check"), text(finding, "/finding"));
                    wrong.entry((rank, line)).or_default().push(name);
                }
            }
        }
    }
    let mut to = String::new();
    for ((rank, line), names) in &wrong {
        let word = if *rank == 0 { paint.bad("broken  ") } else { paint.heading("doubtful") };
        let more = names.len().saturating_sub(NAMED);
        let mut named = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
        if more > 0 {
            named.push_str(&format!(" and {more} more"));
        }
        to.push_str(&format!("{word}  {line}\n            {}\n", paint.dim(&named)));
    }
    if wrong.is_empty() {
        to.push_str(&format!("{}\n", paint.good("nothing is wrong that sluice doctor looks for, on any node")));
    }
    let titles = ["NODE", "STATE", "ADDRESSES", "FREE", "WAIT", "ENDPOINTS", "POLICIES", "REVISION", "FLOWS LOST"];
    let mut rows = vec![titles.map(str::to_owned)];
    rows.extend(nodes.iter().map(|(name, node)| match node {
        Err(_) => {
            let mut row: [String; 9] = std::array::from_fn(|_| "-".to_owned());
            row[0].clone_from(name);
            "silent".clone_into(&mut row[1]);
            row
        }
        Ok(node) => {
            let count = |pointer: &str| number(node, pointer).to_string();
            let addresses = format!("{} of {}", count("/ipamd/pool/assigned"), count("/ipamd/pool/max_addresses"));
            [
                name.clone(),
                standing(node).to_owned(),
                addresses,
                count("/ipamd/pool/free"),
                count("/ipamd/pool/waiting"),
                list(node, "/policyd/endpoints").len().to_string(),
                list(node, "/policyd/policies").len().to_string(),
                count("/policyd/revision"),
                count("/policyd/flows/lost"),
            ]
        }
    }));
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..titles.len()).filter_map(width).collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        to.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        to.push('\n');
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_comes_first_with_the_nodes_that_have_it() {
        let node = |findings: Value| {
            json!({"findings": findings, "ipamd": {"pool": {"assigned": 3, "free": 2, "max_addresses": 27}},
                "policyd": {"endpoints": [{}, {}], "policies": [{}], "revision": 7, "flows": {"lost": 1}}})
        };
        let broken = json!([{"check": "maps", "standing": "broken", "finding": "a map is full"}]);
        let nodes = Nodes::from([
            ("a".to_owned(), Ok(node(broken.clone()))),
            ("b".to_owned(), Ok(node(json!([])))),
            ("c".to_owned(), Ok(node(broken))),
            ("d".to_owned(), Err("container not found".to_owned())),
        ]);
        let text = shown(&nodes, Paint { colours: false });
        assert_eq!(
            text,
            "broken    maps: a map is full\n            a, c\n\
             broken    node: it cannot be asked: container not found\n            d\n\
             NODE  STATE   ADDRESSES  FREE  WAIT  ENDPOINTS  POLICIES  REVISION  FLOWS LOST\n\
             a     broken  3 of 27    2     0     2          1         7         1\n\
             b     well    3 of 27    2     0     2          1         7         1\n\
             c     broken  3 of 27    2     0     2          1         7         1\n\
             d     silent  -          -     -     -          -         -         -\n"
        );
        assert_eq!(machine(&nodes)["nodes"]["d"]["unreachable"], "container not found");
    }
}
