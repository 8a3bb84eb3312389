//! The answers in words and in JSON.

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::json;
use sluice_ipamd_sim::node::Figures;
use sluice_ipamd_sim::vpc_cni::{Burst, NoBurst};

use crate::paint::Paint;

fn table(paint: Paint, header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let right = |text: &str| Cell::new(text).set_alignment(CellAlignment::Right);
    table.set_header(header.iter().map(|text| right(&text.to_uppercase())));
    for row in rows {
        table.add_row(row.iter().map(|text| right(text)));
    }
    let mut lines = table.lines();
    let heading = lines.next().map(|line| format!("{}\n", paint.heading(line.trim_end())));
    heading.into_iter().chain(lines.map(|line| format!("{}\n", line.trim_end()))).collect()
}

/// Pods and what the node has with them; /80s where pods have IPv6 addresses.
pub(super) fn rows(rows: &[Figures], paint: Paint) -> String {
    let has_v6 = rows.iter().any(|row| row.ipv6_prefixes > 0);
    let row = |row: &Figures| {
        let before = [row.pods, row.enis, row.addresses, row.prefixes].map(|number| number.to_string());
        let delegated = has_v6.then(|| row.ipv6_prefixes.to_string());
        before.into_iter().chain(delegated).chain([row.free.to_string(), row.ec2_calls.to_string()]).collect()
    };
    let mut header = vec!["pods", "ENIs", "addresses", "prefixes"];
    header.extend(has_v6.then_some("/80s"));
    header.extend(["free", "EC2 calls"]);
    table(paint, &header, rows.iter().map(row).collect())
}

pub(super) fn rows_json(rows: &[Figures]) -> String {
    let row = |row: &Figures| {
        json!({
            "pods": row.pods,
            "enis": row.enis,
            "addresses": row.addresses,
            "prefixes": row.prefixes,
            "ipv6_prefixes": row.ipv6_prefixes,
            "free": row.free,
            "ec2_calls": row.ec2_calls,
        })
    };
    format!("{}\n", json!(rows.iter().map(row).collect::<Vec<_>>()))
}

/// A burst on both.
pub(super) fn burst(sluice: &Burst, vpc_cni: &Result<Burst, NoBurst>, paint: Paint) -> String {
    let row = |name: &str, burst: &Burst| {
        let took = if burst.all { format!("{:.1} s", burst.took.as_secs_f64()) } else { "never".to_owned() };
        vec![name.to_owned(), burst.at_once.to_string(), took, burst.ec2_calls.to_string()]
    };
    let header = [&format!("{} pods at once", sluice.pods), "served at once", "all served after", "EC2 calls"];
    let rows =
        std::iter::once(row("Sluice", sluice)).chain(vpc_cni.iter().map(|burst| row("AWS VPC CNI", burst))).collect();
    let mut text = table(paint, &header, rows);
    let note = match vpc_cni {
        Ok(_) => "The VPC CNI by its own rules: a tick of 5 s, 10 s for an ENI, 1 s for an assignment, no throttling, and without the\n\
                  10 to 15 s that the kubelet lets pass before it tries a pod again.\n"
            .to_owned(),
        Err(none) => format!("No line of the VPC CNI: {none}.\n"),
    };
    text.push_str(&paint.dim(&note));
    text
}

pub(super) fn burst_json(sluice: &Burst, vpc_cni: Option<&Burst>) -> String {
    let one = |burst: &Burst| {
        json!({
            "at_once": burst.at_once,
            "seconds": burst.all.then_some(burst.took.as_secs_f64()),
            "ec2_calls": burst.ec2_calls,
        })
    };
    format!("{}\n", json!({ "burst": sluice.pods, "sluice": one(sluice), "vpc_cni": vpc_cni.map(one) }))
}
