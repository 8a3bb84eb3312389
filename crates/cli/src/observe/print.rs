//! Flows as they are shown: `hubble observe`'s forms.

use std::io::{self, StdoutLock, Write as _};

use clap::ValueEnum;
use sluice_hubble::flow::{
    DropReason, Endpoint, Flow, L7FlowType, LostEvent, LostEventSource, Policy, Service, TrafficDirection, Verdict,
    layer4, layer7,
};
use sluice_hubble::observer::GetFlowsResponse;
use sluice_hubble::observer::get_flows_response::ResponseTypes;
use sluice_hubble::{event, json};

use super::time::TimeFormat;
use crate::paint::Paint;

/// How flows are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// A line each, for people.
    Compact,
    /// A block each.
    Dict,
    /// JSON, a line each; the same as jsonpb.
    Json,
    /// JSON with the protocol's names, a line each.
    Jsonpb,
    /// Columns.
    Table,
}

/// What is shown, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    pub(super) format: Format,
    pub(super) paint: Paint,
    pub(super) time: TimeFormat,
    pub(super) numeric: bool,
    pub(super) node: bool,
    pub(super) policies: bool,
    pub(super) follow: bool,
}

/// Rows that a table holds back, so that its columns fit: then it is shown, and another begins.
const ROWS: usize = 10_000;

/// The widths of the columns of a table that does not wait for its end.
const WIDTHS: [usize; 5] = [20, 28, 28, 26, 10];

const TITLES: [&str; 6] = ["TIMESTAMP", "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY"];

/// Whether somebody still reads what is shown: whoever has closed has seen enough.
pub(super) fn goes_on(shown: io::Result<()>) -> Result<bool, String> {
    match shown {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(format!("the standard output cannot be written: {error}")),
    }
}

/// Shows flows on the standard output.
pub(super) struct Printer {
    style: Style,
    out: StdoutLock<'static>,
    rows: Vec<[String; 6]>,
    shown: usize,
}

impl Printer {
    pub(super) fn new(style: Style) -> Self {
        Self { style, out: io::stdout().lock(), rows: Vec::new(), shown: 0 }
    }

    /// Shows what a server said.
    pub(super) fn show(&mut self, response: &GetFlowsResponse) -> io::Result<()> {
        match self.style.format {
            Format::Json | Format::Jsonpb => {
                let line = json::line(response).map_err(io::Error::other)?;
                writeln!(self.out, "{line}")?;
            }
            Format::Compact | Format::Dict | Format::Table => match &response.response_types {
                Some(ResponseTypes::Flow(flow)) => self.flow(flow)?,
                Some(ResponseTypes::LostEvents(lost)) => self.lost(response, lost)?,
                Some(ResponseTypes::NodeStatus(_)) | None => {}
            },
        }
        if self.style.follow { self.out.flush() } else { Ok(()) }
    }

    /// Nothing more comes.
    pub(super) fn end(&mut self) -> io::Result<()> {
        if !self.rows.is_empty() {
            self.table()?;
        }
        self.out.flush()
    }

    /// Shows the rows that were held back.
    fn table(&mut self) -> io::Result<()> {
        let rows = std::mem::take(&mut self.rows);
        let mut widths = TITLES.map(str::len);
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        self.row(&TITLES.map(str::to_owned), &widths, true)?;
        for row in &rows {
            self.row(row, &widths, false)?;
        }
        Ok(())
    }

    fn flow(&mut self, flow: &Flow) -> io::Result<()> {
        let cells = self.cells(flow);
        let [time, source, destination, kind, verdict, summary] = &cells;
        match self.style.format {
            Format::Table if self.style.follow => {
                let [a, b, c, d, e] = WIDTHS;
                let widths = [a, b, c, d, e, 0];
                if self.shown == 0 {
                    self.row(&TITLES.map(str::to_owned), &widths, true)?;
                }
                self.row(&cells, &widths, false)?;
            }
            Format::Table => {
                self.rows.push(cells);
                if self.rows.len() >= ROWS {
                    self.table()?;
                }
            }
            Format::Dict => {
                if self.shown > 0 {
                    writeln!(self.out, "------------")?;
                }
                for (title, cell) in TITLES.iter().zip(&cells) {
                    let title = self.style.paint.dim(&format!("{title:>11}"));
                    writeln!(self.out, "{title}: {}", self.painted(cell, flow, *cell == *verdict))?;
                }
                if self.style.node {
                    writeln!(self.out, "{}: {}", self.style.paint.dim("       NODE"), flow.node_name)?;
                }
            }
            Format::Compact | Format::Json | Format::Jsonpb => {
                let node = if self.style.node { format!(" [{}]", flow.node_name) } else { String::new() };
                let arrow = match flow.is_reply {
                    None => "<>",
                    Some(true) => "<-",
                    Some(false) => "->",
                };
                let paint = self.style.paint;
                let (time, verdict) = (paint.dim(time), self.painted(verdict, flow, true));
                let policies = if self.style.policies { policies(flow) } else { String::new() };
                writeln!(
                    self.out,
                    "{time}{node}: {source} {arrow} {destination} {kind} {verdict} ({summary}){policies}"
                )?;
            }
        }
        self.shown += 1;
        Ok(())
    }

    fn painted(&self, cell: &str, flow: &Flow, is_verdict: bool) -> String {
        match flow.verdict() {
            _ if !is_verdict => cell.to_owned(),
            Verdict::Dropped | Verdict::Error => self.style.paint.bad(cell),
            Verdict::Forwarded | Verdict::Redirected => self.style.paint.good(cell),
            _ => self.style.paint.heading(cell),
        }
    }

    fn row(&mut self, cells: &[String; 6], widths: &[usize; 6], heading: bool) -> io::Result<()> {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        let line = line.trim_end();
        let line = if heading { self.style.paint.heading(line) } else { line.to_owned() };
        self.shown += 1;
        writeln!(self.out, "{line}")
    }

    fn lost(&mut self, response: &GetFlowsResponse, lost: &LostEvent) -> io::Result<()> {
        let time = self.style.time.show(response.time.as_ref());
        let at = match lost.source() {
            LostEventSource::PerfEventRingBuffer => "between the gates and policyd",
            LostEventSource::ObserverEventsQueue => "in policyd, which had more than it reads at once",
            LostEventSource::HubbleRingBuffer => "before they could be read from policyd",
            LostEventSource::UnknownLostEventSource => "somewhere",
        };
        let text = format!("{time}: EVENTS LOST: {} {at}", lost.num_events_lost);
        writeln!(self.out, "{}", self.style.paint.bad(&text))
    }

    fn cells(&self, flow: &Flow) -> [String; 6] {
        let ip = flow.ip.clone().unwrap_or_default();
        let (from, to) = ports(flow);
        let numeric = self.style.numeric;
        let source = Named {
            address: &ip.source,
            endpoint: flow.source.as_ref(),
            names: &flow.source_names,
            service: flow.source_service.as_ref(),
            port: from,
        };
        let destination = Named {
            address: &ip.destination,
            endpoint: flow.destination.as_ref(),
            names: &flow.destination_names,
            service: flow.destination_service.as_ref(),
            port: to,
        };
        #[expect(deprecated, reason = "it is where a flow's line is")]
        let summary = flow.summary.clone();
        // What pods ask for stands in it, and a terminal would do what that says.
        let plain = |cell: String| cell.replace(char::is_control, "\u{fffd}");
        [
            self.style.time.show(flow.time.as_ref()),
            source.shown(numeric),
            destination.shown(numeric),
            kind(flow),
            match flow.verdict() {
                Verdict::Unknown => "UNKNOWN".to_owned(),
                Verdict::Audit => "AUDITED".to_owned(),
                verdict => verdict.as_str_name().to_owned(),
            },
            summary,
        ]
        .map(plain)
    }
}

/// An end of a flow.
struct Named<'f> {
    address: &'f str,
    endpoint: Option<&'f Endpoint>,
    names: &'f [String],
    service: Option<&'f Service>,
    port: Option<u32>,
}

impl Named<'_> {
    fn shown(&self, numeric: bool) -> String {
        let pod = self.endpoint.filter(|endpoint| !endpoint.pod_name.is_empty());
        let name = match (pod, self.names.first(), self.service) {
            _ if numeric => self.address.to_owned(),
            (Some(pod), ..) => format!("{}/{}", pod.namespace, pod.pod_name),
            (None, Some(name), _) => name.clone(),
            (None, None, Some(service)) => format!("{}/{}", service.namespace, service.name),
            (None, None, None) => self.address.to_owned(),
        };
        let port = match self.port {
            Some(port) if name.contains(':') => return format!("[{name}]:{port}{}", self.who()),
            Some(port) => format!(":{port}"),
            None => String::new(),
        };
        format!("{name}{port}{}", self.who())
    }

    /// What it is that is no pod, and otherwise its identity.
    fn who(&self) -> String {
        let Some(endpoint) = self.endpoint else { return String::new() };
        let reserved = endpoint.labels.iter().find_map(|label| label.strip_prefix("reserved:"));
        match reserved {
            Some(what) => format!(" ({what})"),
            None if endpoint.identity != 0 => format!(" (ID:{})", endpoint.identity),
            None => String::new(),
        }
    }
}

fn ports(flow: &Flow) -> (Option<u32>, Option<u32>) {
    match flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref()) {
        Some(layer4::Protocol::Tcp(tcp)) => (Some(tcp.source_port), Some(tcp.destination_port)),
        Some(layer4::Protocol::Udp(udp)) => (Some(udp.source_port), Some(udp.destination_port)),
        Some(layer4::Protocol::Sctp(sctp)) => (Some(sctp.source_port), Some(sctp.destination_port)),
        Some(layer4::Protocol::IcmPv4(_) | layer4::Protocol::IcmPv6(_)) | None => (None, None),
    }
}

/// What told of the flow.
fn kind(flow: &Flow) -> String {
    let direction = match flow.traffic_direction() {
        TrafficDirection::Unknown => "",
        TrafficDirection::Ingress => " INGRESS",
        TrafficDirection::Egress => " EGRESS",
    };
    if let Some(l7) = &flow.l7 {
        let what = match &l7.record {
            Some(layer7::Record::Http(_)) => "http",
            Some(layer7::Record::Dns(_)) => "dns",
            None => "l7",
        };
        let half = match l7.r#type() {
            L7FlowType::Request => "request",
            L7FlowType::Response => "response",
            L7FlowType::Sample | L7FlowType::UnknownL7Type => "sample",
        };
        return format!("{what}-{half}{direction}");
    }
    let event = flow.event_type.unwrap_or_default();
    match event.r#type {
        event::DROP => match flow.drop_reason_desc() {
            DropReason::PolicyDenied => format!("policy-denied{direction}"),
            reason => format!("{}{direction}", reason.as_str_name().to_ascii_lowercase().replace('_', "-")),
        },
        event::POLICY_VERDICT => format!("policy-verdict{direction}"),
        event::TRACE => match event.sub_type {
            0 => "to-endpoint".to_owned(),
            _ => "to-stack".to_owned(),
        },
        event::L7 => format!("proxied{direction}"),
        number => format!("event-{number}"),
    }
}

/// ` EGRESS DENIED BY: shop/web`, as Hubble's `--print-policy-names`.
fn policies(flow: &Flow) -> String {
    let mut text = String::new();
    for (what, list) in [
        ("EGRESS ALLOWED BY", &flow.egress_allowed_by),
        ("INGRESS ALLOWED BY", &flow.ingress_allowed_by),
        ("EGRESS DENIED BY", &flow.egress_denied_by),
        ("INGRESS DENIED BY", &flow.ingress_denied_by),
    ] {
        if list.is_empty() {
            continue;
        }
        let name = |policy: &Policy| match policy.namespace.as_str() {
            "" => policy.name.clone(),
            namespace => format!("{namespace}/{}", policy.name),
        };
        text.push_str(&format!(" {what}: {}", list.iter().map(name).collect::<Vec<_>>().join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use sluice_hubble::flow::{CiliumEventType, Ip, Layer4, Tcp};

    use super::*;

    fn flow() -> Flow {
        let tcp = Tcp { source_port: 40000, destination_port: 80, flags: None };
        #[expect(deprecated, reason = "it is where a flow's line is")]
        Flow {
            verdict: Verdict::Dropped.into(),
            drop_reason_desc: DropReason::PolicyDenied.into(),
            traffic_direction: TrafficDirection::Egress.into(),
            event_type: Some(CiliumEventType { r#type: event::DROP, sub_type: 133 }),
            ip: Some(Ip { source: "10.0.0.7".into(), destination: "2001:db8::1".into(), ..Default::default() }),
            l4: Some(Layer4 { protocol: Some(layer4::Protocol::Tcp(tcp)) }),
            source: Some(Endpoint {
                identity: 300,
                namespace: "shop".into(),
                pod_name: "web".into(),
                ..Default::default()
            }),
            destination: Some(Endpoint { labels: vec!["reserved:world".into()], ..Default::default() }),
            egress_denied_by: vec![Policy { name: "p".into(), namespace: "shop".into(), ..Default::default() }],
            summary: "TCP Flags: SYN; NetworkPolicy shop/p".into(),
            ..Flow::default()
        }
    }

    #[test]
    fn a_flow_is_a_line_with_names() {
        let style = Style {
            format: Format::Compact,
            paint: Paint { colours: false },
            time: TimeFormat::StampMilli,
            numeric: false,
            node: false,
            policies: true,
            follow: false,
        };
        let printer = Printer::new(style);
        let cells = printer.cells(&flow());
        assert_eq!(
            cells,
            [
                "N/A",
                "shop/web:40000 (ID:300)",
                "[2001:db8::1]:80 (world)",
                "policy-denied EGRESS",
                "DROPPED",
                "TCP Flags: SYN; NetworkPolicy shop/p"
            ]
        );
        assert_eq!(policies(&flow()), " EGRESS DENIED BY: shop/p");
        let named = Flow { destination_names: vec!["api.example".into()], ..flow() };
        assert_eq!(printer.cells(&named)[2], "api.example:80 (world)");
        let hostile = Flow { destination_names: vec!["a\u{1b}]0;b\u{7}.example".into()], ..flow() };
        assert_eq!(printer.cells(&hostile)[2], "a\u{fffd}]0;b\u{fffd}.example:80 (world)");
        let numeric = Printer { style: Style { numeric: true, ..style }, ..printer };
        assert_eq!(numeric.cells(&named)[1], "10.0.0.7:40000 (ID:300)");
    }
}
