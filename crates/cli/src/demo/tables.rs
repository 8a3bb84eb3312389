//! The report as tables for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use comfy_table::{Cell as TableCell, CellAlignment, Table, presets};

use super::report::{Burst, Cell, FlowAct, GiveBack, NodeRow, PodRow, PolicyAct, Report, RequestAct, Sample};
use crate::paint::Paint;

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().map(|text| text.to_uppercase()));
    table
}

fn number(value: impl std::fmt::Display) -> TableCell {
    TableCell::new(value.to_string()).set_alignment(CellAlignment::Right)
}

fn indented(table: &Table) -> String {
    table.lines().map(|line| format!(" {}\n", line.trim_end())).collect()
}

/// The nodes with their ENIs.
#[must_use]
pub(crate) fn nodes(rows: &[NodeRow], paint: Paint) -> String {
    let mut table = table(&["node", "instance", "eni", "device", "link", "own address", "pods", "free"]);
    for node in rows {
        for (index, eni) in node.enis.iter().enumerate() {
            let first = |text: &str| if index == 0 { text.to_owned() } else { String::new() };
            table.add_row([
                TableCell::new(first(&node.name)),
                TableCell::new(first(&format!("{} {}", node.instance_type, node.instance))),
                TableCell::new(&eni.eni),
                number(eni.device),
                TableCell::new(&eni.link),
                TableCell::new(&eni.primary_ip),
                number(eni.assigned),
                number(eni.free),
            ]);
        }
    }
    let mut text = format!("{}\n{}", paint.heading("Nodes"), indented(&table));
    for node in rows {
        let _infallible = writeln!(text, " {}", paint.dim(&format!("{}: {}", node.name, node.settings)));
    }
    text
}

/// The pods with address, ENI and table.
#[must_use]
pub(crate) fn pods(rows: &[PodRow], paint: Paint) -> String {
    let mut table = table(&["pod", "node", "address", "eni", "link", "table", "host interface"]);
    for pod in rows {
        table.add_row([&pod.pod, &pod.node, &pod.address, &pod.eni, &pod.link, &pod.table, &pod.host_ifname]);
    }
    format!("{}\n{}", paint.heading("Pods"), indented(&table))
}

/// Who reached whom: a row for each sender, a column for each receiver; in a cell the source that the receiver saw.
#[must_use]
pub(crate) fn matrix(cells: &[Cell], paint: Paint) -> String {
    let mut senders: Vec<&str> = Vec::new();
    for cell in cells {
        if !senders.contains(&cell.from.as_str()) {
            senders.push(&cell.from);
        }
    }
    // Receivers stand in the senders' order, and those that only receive behind them.
    let mut columns: Vec<&str> =
        senders.iter().copied().filter(|name| cells.iter().any(|cell| cell.to == *name)).collect();
    for cell in cells {
        if !columns.contains(&cell.to.as_str()) {
            columns.push(&cell.to);
        }
    }
    let header: Vec<&str> = std::iter::once("from \\ to").chain(columns.iter().copied()).collect();
    let mut table = table(&[]);
    table.set_header(header);
    for from in senders {
        let mut line = vec![from.to_owned()];
        for column in &columns {
            line.push(match cells.iter().find(|cell| cell.from == from && cell.to == *column) {
                None => "·".to_owned(),
                Some(cell) if cell.holds() => format!("✓ {}", cell.expected),
                Some(cell) => format!("✗ {}", cell.seen.as_deref().unwrap_or("no answer")),
            });
        }
        table.add_row(line);
    }
    // The colours go in after the table has its widths: escape sequences would count as characters.
    let body: String = indented(&table)
        .split_inclusive('\n')
        .map(|line| line.replace('✓', &paint.good("✓")).replace('✗', &paint.bad("✗")))
        .collect();
    format!(
        "{} {}\n{body}",
        paint.heading("Who reaches whom"),
        paint.dim("(TCP connections; in each cell the source address that the far side saw)")
    )
}

/// Who reaches whom under each set of policies, and below it the rules that deny.
#[must_use]
pub(crate) fn policies(acts: &[PolicyAct], paint: Paint) -> String {
    let mut text = format!("{}\n", paint.heading("Policies on the running pods"));
    for act in acts {
        let _infallible = writeln!(text, " {}", act.title);
        let mut columns: Vec<&str> = Vec::new();
        let mut senders: Vec<&str> = Vec::new();
        for cell in &act.cells {
            for (list, name) in [(&mut senders, cell.from.as_str()), (&mut columns, cell.to.as_str())] {
                if !list.contains(&name) {
                    list.push(name);
                }
            }
        }
        // Receivers stand in the senders' order, and those that only receive behind them.
        columns.sort_by_key(|column| senders.iter().position(|sender| sender == column).unwrap_or(usize::MAX));
        let mut rules: Vec<&str> = Vec::new();
        let mut table = table(&[]);
        table.set_header(std::iter::once("from \\ to").chain(columns.iter().copied()));
        for from in &senders {
            let mut line = vec![(*from).to_owned()];
            for column in &columns {
                let Some(cell) = act.cells.iter().find(|cell| cell.from == *from && cell.to == *column) else {
                    line.push("·".to_owned());
                    continue;
                };
                let wrong = if cell.allowed == cell.passed { "" } else { " WRONG" };
                let passed = if cell.passed { "✓" } else { "✗" };
                let rule = cell.denied_by.as_deref().map_or_else(String::new, |rule| {
                    let known = rules.iter().position(|known| *known == rule);
                    let number = known.unwrap_or_else(|| {
                        rules.push(rule);
                        rules.len() - 1
                    });
                    format!(" [{}]", number + 1)
                });
                line.push(format!("{passed}{rule}{wrong}"));
            }
            table.add_row(line);
        }
        // The colours go in after the table has its widths: escape sequences would count as characters.
        let body = indented(&table).replace('✓', &paint.good("✓")).replace('✗', &paint.bad("✗"));
        text.push_str(&body);
        for (number, rule) in rules.iter().enumerate() {
            let _infallible = writeln!(text, " {}", paint.dim(&format!("[{}] {rule}", number + 1)));
        }
        text.push('\n');
    }
    text
}

/// What came of requests under policies for them, and what the proxies recorded.
#[must_use]
pub(crate) fn requests(acts: &[RequestAct], paint: Paint) -> String {
    let mut text = format!("{}\n", paint.heading("Policies for requests and names, and the proxies' records"));
    for act in acts {
        let mut table = table(&["from", "to", "request", "outcome", "recorded"]);
        for cell in &act.cells {
            let outcome = if cell.holds() { format!("✓ {}", cell.seen) } else { format!("✗ {} WRONG", cell.seen) };
            table.add_row([
                &cell.from,
                &cell.to,
                &cell.request,
                &outcome,
                cell.recorded.as_deref().unwrap_or(if cell.needs_record { "nothing" } else { "·" }),
            ]);
        }
        // The colours go in after the table has its widths: escape sequences would count as characters.
        let body = indented(&table).replace('✓', &paint.good("✓")).replace('✗', &paint.bad("✗"));
        let _infallible = writeln!(text, " {}\n{body}", act.title);
    }
    text
}

/// What `sluice observe` said.
pub(crate) fn flows(acts: &[FlowAct], paint: Paint) -> String {
    let mut text =
        format!("{}\n", paint.heading("Flows with the policy and rule that decided, by sluice observe on both nodes"));
    for act in acts {
        let sign = if act.named { paint.good("✓") } else { paint.bad("✗") };
        let _infallible = writeln!(text, " {sign} sluice observe {}", act.question);
        for line in &act.lines {
            let _infallible = writeln!(text, "   {line}");
        }
    }
    text
}

fn samples(rows: &[Sample]) -> String {
    let mut table = table(&["", "s", "enis", "pods", "free", "cooling", "waiting"]);
    for sample in rows {
        table.add_row([
            TableCell::new(&sample.moment),
            number(format!("{:.1}", sample.seconds)),
            number(sample.enis),
            number(sample.assigned),
            number(sample.free),
            number(sample.cooling),
            number(sample.waiting),
        ]);
    }
    indented(&table)
}

fn calls(calls: &BTreeMap<String, u32>) -> String {
    let total: u32 = calls.values().sum();
    let each: Vec<String> = calls.iter().map(|(action, count)| format!("{action} {count}")).collect();
    if each.is_empty() { "none".to_owned() } else { format!("{total} ({})", each.join(", ")) }
}

/// The warm pool before, during and after the burst.
#[must_use]
pub(crate) fn burst(burst: &Burst, paint: Paint) -> String {
    let [fastest, median, slowest] = burst.add_ms;
    format!(
        "{}\n{} ADD: fastest {fastest:.0} ms, median {median:.0} ms, slowest {slowest:.0} ms; {} of {} pods served\n EC2 \
         calls: {}\n",
        paint.heading(&format!("The warm pool during a burst of {} pods", burst.pods)),
        samples(&burst.samples),
        burst.served,
        burst.pods,
        calls(&burst.ec2_calls)
    )
}

/// Cooldown and give-back.
#[must_use]
pub(crate) fn give_back(give_back: &GiveBack, paint: Paint) -> String {
    format!(
        "{} {}\n{} EC2 calls: {}\n",
        paint.heading("The burst's pods are deleted"),
        paint.dim(&format!("(cooldown {} s)", give_back.cooldown_seconds)),
        samples(&give_back.samples),
        calls(&give_back.ec2_calls)
    )
}

/// The last line: all is well, or what is not.
#[must_use]
pub(crate) fn verdict(report: &Report, paint: Paint) -> String {
    let faults = report.faults();
    if faults.is_empty() {
        let probes = report.matrix.len()
            + report.policies.iter().map(|act| act.cells.len()).sum::<usize>()
            + report.requests.iter().map(|act| act.cells.len()).sum::<usize>();
        return paint.good(&format!("All {probes} cells are as they have to be ({:.0} s).", report.seconds));
    }
    let mut text = paint.bad(&format!("{} faults:", faults.len()));
    for fault in faults {
        text.push_str("\n  ");
        text.push_str(&fault);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Paint = Paint { colours: false };

    #[test]
    fn the_matrix_shows_what_was_seen_and_what_was_not() {
        let cell = |from: &str, to: &str, expected: &str, seen: Option<&str>| Cell {
            from: from.into(),
            to: to.into(),
            expected: expected.into(),
            seen: seen.map(str::to_owned),
            problem: None,
        };
        let text = matrix(
            &[
                cell("pod-a", "pod-b", "10.0.1.20", Some("10.0.1.20")),
                cell("pod-a", "Internet", "198.51.100.10", Some("198.51.100.10")),
                cell("pod-b", "pod-a", "10.0.1.21", None),
            ],
            PLAIN,
        );
        assert_eq!(
            text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>(),
            ["from \\ to pod-a pod-b Internet", "pod-a · ✓ 10.0.1.20 ✓ 198.51.100.10", "pod-b ✗ no answer · ·"]
        );
    }
}
