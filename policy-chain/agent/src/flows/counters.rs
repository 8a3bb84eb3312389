//! Flows as Hubble's metrics. Every label has a fixed set of values: what is not in it is `other`.

use axum::http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use sluice_contract::proxy::record::Kind;
use sluice_daemon::metrics::{Count, Seconds, seconds};
use sluice_policy_bpf::layout::{Basis, EventKind, Verdict};
use sluice_policy_core::flow::Reason;

use super::message::{drop_reason, qtype_name};
use super::record::{LostAt, Packet, Record, Requested, What};
use crate::metrics::Registered;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct Processed {
    protocol: &'static str,
    r#type: &'static str,
    verdict: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct Dropped {
    protocol: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct Judged {
    action: &'static str,
    direction: &'static str,
    r#match: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct Flag {
    flag: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct HttpLabels {
    method: &'static str,
    protocol: &'static str,
    status: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct Method {
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct DnsLabels {
    qtypes: String,
    rcode: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
struct Source {
    source: &'static str,
}

/// Hubble's metrics, as far as a flow gives them.
#[derive(Debug, Clone)]
pub(crate) struct FlowMetrics {
    processed: Family<Processed, Count>,
    drops: Family<Dropped, Count>,
    verdicts: Family<Judged, Count>,
    tcp: Family<Flag, Count>,
    http: Family<HttpLabels, Count>,
    http_seconds: Family<Method, Seconds, fn() -> Seconds>,
    dns: Family<DnsLabels, Count>,
    lost: Family<Source, Count>,
}

impl Default for FlowMetrics {
    fn default() -> Self {
        Self {
            processed: Family::default(),
            drops: Family::default(),
            verdicts: Family::default(),
            tcp: Family::default(),
            http: Family::default(),
            http_seconds: Family::new_with_constructor(seconds),
            dns: Family::default(),
            lost: Family::default(),
        }
    }
}

impl FlowMetrics {
    /// Registers all of them.
    pub(crate) fn register(&self, add: &mut impl FnMut(&'static str, &'static str, &dyn Registered)) {
        add("hubble_flows_processed_total", "Flows that were written down", &self.processed);
        add("hubble_drop_total", "Flows whose packet was dropped, by reason", &self.drops);
        add("hubble_policy_verdicts_total", "Verdicts on flows", &self.verdicts);
        add(
            "hubble_tcp_flags_total",
            "Packets that opened or ended a TCP connection, or were dropped, by flag",
            &self.tcp,
        );
        add("hubble_http_requests_total", "Requests that the proxy judged", &self.http);
        add("hubble_http_request_duration_seconds", "From a request to its answer", &self.http_seconds);
        add("hubble_dns_queries_total", "Questions that the proxy judged, by the answer's code", &self.dns);
        add("hubble_lost_events_total", "Events that did not become flows", &self.lost);
    }

    /// Counts a record.
    pub(crate) fn count(&self, record: &Record) {
        match &record.what {
            What::Packet(packet) => self.packet(packet),
            What::Request(requested) => self.request(requested),
            What::Lost { at, count } => {
                let source = match at {
                    LostAt::Kernel => "perf_event_ring_buffer",
                    LostAt::Reading | LostAt::Proxy => "observer_events_queue",
                };
                self.lost.get_or_create(&Source { source }).add_many(*count);
            }
        }
    }

    fn packet(&self, packet: &Packet) {
        let event = &packet.event;
        let protocol = match event.protocol {
            1 => "ICMPv4",
            6 => "TCP",
            17 => "UDP",
            58 => "ICMPv6",
            132 => "SCTP",
            _ => "other",
        };
        let verdict = match (event.kind, event.verdict) {
            (EventKind::Drop, _) => "DROPPED",
            (_, Some(Verdict::Deny)) if event.audit => "AUDIT",
            (_, Some(Verdict::Deny)) => "DROPPED",
            (_, Some(Verdict::Redirect)) => "REDIRECTED",
            (_, Some(Verdict::Allow | Verdict::Defer) | None) => "FORWARDED",
        };
        self.processed.get_or_create(&Processed { protocol, r#type: "L3_L4", verdict }).add();
        if event.kind == EventKind::Drop {
            let reason = drop_reason(event.reason).as_str_name();
            self.drops.get_or_create(&Dropped { protocol, reason }).add();
        }
        if event.kind != EventKind::Closed && event.verdict.is_some() {
            let action = match verdict {
                "DROPPED" => "dropped",
                "AUDIT" => "audit",
                "REDIRECTED" => "redirected",
                _ => "forwarded",
            };
            let decided = packet.judgement.as_ref().map(|judgement| &judgement.reason);
            let r#match = match (decided, event.basis) {
                (Some(Reason::Rule(_)), _) => "rule",
                (Some(Reason::Isolated(_)), _) => "isolated",
                (_, Basis::Service) => "service",
                _ => "none",
            };
            let direction = event.direction.as_str();
            self.verdicts.get_or_create(&Judged { action, direction, r#match }).add();
        }
        if event.protocol == 6 {
            for (bit, flag) in [(1, "FIN"), (2, "SYN"), (4, "RST")] {
                if event.flags & bit != 0 {
                    self.tcp.get_or_create(&Flag { flag }).add();
                }
            }
        }
    }

    fn request(&self, requested: &Requested) {
        let request = &requested.request;
        let verdict = if request.passes { "FORWARDED" } else { "DROPPED" };
        let protocol = match &request.kind {
            Kind::Http { method, status, version, .. } => {
                let method = known_method(method);
                let status = match status {
                    Some(status) if is_registered(*status) => status.to_string(),
                    Some(_) => "other".to_owned(),
                    None => "none".to_owned(),
                };
                let protocol = match version.as_str() {
                    "HTTP/1.0" => "HTTP/1.0",
                    "HTTP/1.1" => "HTTP/1.1",
                    _ => "HTTP/2",
                };
                self.http.get_or_create(&HttpLabels { method, protocol, status }).add();
                #[expect(clippy::cast_precision_loss, reason = "a distribution is an estimate")]
                let seconds = request.latency_us as f64 / 1e6;
                self.http_seconds.get_or_create(&Method { method }).observe(seconds);
                "HTTP"
            }
            Kind::Dns { qtype, rcode, .. } => {
                let rcode = match rcode {
                    Some(0) => "No Error",
                    Some(1) => "Format Error",
                    Some(2) => "Server Failure",
                    Some(3) => "Non-Existent Domain",
                    Some(5) => "Query Refused",
                    Some(_) => "other",
                    None => "none",
                };
                let name = qtype_name(*qtype);
                let qtypes = if name.starts_with("TYPE") { "other".to_owned() } else { name };
                self.dns.get_or_create(&DnsLabels { qtypes, rcode }).add();
                "DNS"
            }
            Kind::Tls { .. } => "TLS",
            Kind::Connection => "TCP",
        };
        self.processed.get_or_create(&Processed { protocol, r#type: "L7", verdict }).add();
    }
}

/// Whether it is a code that IANA's registry of status codes has: servers may send others.
fn is_registered(status: u16) -> bool {
    StatusCode::from_u16(status).is_ok_and(|status| status.canonical_reason().is_some())
}

fn known_method(method: &str) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    KNOWN.into_iter().find(|known| *known == method).unwrap_or("other")
}
