//! A record as Hubble's message.

use std::net::IpAddr;
use std::time::SystemTime;

use prost_types::Timestamp;
use sluice_contract::proxy::record::{Kind, Record as Request};
use sluice_hubble::event;
use sluice_hubble::flow::{
    CiliumEventType, Dns, DropReason, Endpoint, Flow, FlowType, Http, IcmPv4, IcmPv6, Ip, IpVersion, L7FlowType,
    Layer4, Layer7, LostEvent, LostEventSource, NetworkInterface, Policy, Sctp, Service, Tcp, TcpFlags,
    TrafficDirection, Udp, Verdict, Workload, layer4, layer7,
};
use sluice_hubble::observer::GetFlowsResponse;
use sluice_hubble::observer::get_flows_response::ResponseTypes;
use sluice_policy_bpf::events::End;
use sluice_policy_bpf::layout::{Basis, DropReason as Cause, EventKind, FlowDirection, Verdict as GateVerdict};
use sluice_policy_core::flow::{Judgement, Reason, Verdict as Judged};

use super::parties::{Party, ServiceName};
use super::record::{LostAt, Packet, Record, Requested, What};

/// The label of a policy's rule that decided.
const RULE: &str = "sluice:rule=";
/// The label of a policy that isolates the pod, where no rule allowed.
const ISOLATES: &str = "sluice:isolates=true";
/// Where Cilium's numbers have that a packet goes to a pod, and to the host's stack.
const TO_ENDPOINT: i32 = 0;
const TO_STACK: i32 = 3;

/// What all flows of a node have in common.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// The node's name.
    pub(crate) name: String,
    /// Tells the flows of this process from those of others.
    pub(crate) run: u64,
}

impl Node {
    /// The message of a record.
    pub(crate) fn response(&self, record: &Record) -> GetFlowsResponse {
        let time = Some(timestamp(record.time));
        let response = match &record.what {
            What::Lost { at, count } => ResponseTypes::LostEvents(lost(*at, *count)),
            What::Packet(_) | What::Request(_) => ResponseTypes::Flow(self.flow(record).unwrap_or_default()),
        };
        GetFlowsResponse { node_name: self.name.clone(), time, response_types: Some(response) }
    }

    /// The flow of a record; none if it tells of none.
    pub(crate) fn flow(&self, record: &Record) -> Option<Flow> {
        let flow = match &record.what {
            What::Lost { .. } => return None,
            What::Packet(packet) => of_packet(packet),
            What::Request(requested) => of_request(requested),
        };
        let Self { name, run } = self;
        let number = record.number;
        let uuid = format!(
            "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
            run >> 32,
            (run >> 16) & 0xffff,
            run & 0xfff,
            (number >> 48) & 0xfff,
            number & 0xffff_ffff_ffff
        );
        Some(Flow { time: Some(timestamp(record.time)), uuid, node_name: name.clone(), ..flow })
    }

    /// What tells that records are not kept any more.
    pub(crate) fn missed(&self, count: u64, now: SystemTime) -> GetFlowsResponse {
        let lost = LostEvent {
            source: LostEventSource::HubbleRingBuffer.into(),
            num_events_lost: count,
            ..LostEvent::default()
        };
        GetFlowsResponse {
            node_name: self.name.clone(),
            time: Some(timestamp(now)),
            response_types: Some(ResponseTypes::LostEvents(lost)),
        }
    }
}

fn lost(at: LostAt, count: u64) -> LostEvent {
    let source = match at {
        LostAt::Kernel => LostEventSource::PerfEventRingBuffer,
        LostAt::Reading | LostAt::Proxy => LostEventSource::ObserverEventsQueue,
    };
    LostEvent { source: source.into(), num_events_lost: count, ..LostEvent::default() }
}

pub(super) fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let nanos = i32::try_from(since.subsec_nanos()).unwrap_or_default();
    Timestamp { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos }
}

fn endpoint(party: &Party) -> Endpoint {
    let (namespace, pod_name) =
        party.pod.as_ref().map_or_else(Default::default, |pod| (pod.namespace.to_string(), pod.name.to_string()));
    let workload = |(kind, name): &(&'static str, String)| Workload { name: name.clone(), kind: (*kind).to_owned() };
    Endpoint {
        id: party.endpoint,
        identity: party.identity,
        cluster_name: String::new(),
        namespace,
        labels: party.labels.clone(),
        pod_name,
        workloads: party.workload.iter().map(workload).collect(),
    }
}

fn service(service: &ServiceName) -> Service {
    Service { name: service.name.to_string(), namespace: service.namespace.to_string() }
}

fn ip(source: IpAddr, destination: IpAddr, translated: Option<IpAddr>) -> Ip {
    let version = if source.is_ipv4() { IpVersion::IPv4 } else { IpVersion::IPv6 };
    Ip {
        source: source.to_string(),
        source_xlated: translated.map(|address| address.to_string()).unwrap_or_default(),
        destination: destination.to_string(),
        ip_version: version.into(),
        encrypted: false,
    }
}

/// Who sent the packets of a flow first, and to whom.
struct Ends {
    source: End,
    destination: End,
    /// What the source became by translation.
    translated: Option<IpAddr>,
}

fn ends(packet: &Packet) -> Ends {
    let event = &packet.event;
    // Of what was judged in place of the peer only the address may be known.
    let whole = |other: End| if other.port == 0 { End { port: event.peer.port, ..other } } else { other };
    match (event.direction, event.other.map(whole)) {
        (FlowDirection::Ingress, None) => Ends { source: event.peer, destination: event.own, translated: None },
        // Who it was before the host translated its address.
        (FlowDirection::Ingress, Some(source)) => {
            let translated = Some(event.peer.address.to_canonical()).filter(|_| source != event.peer);
            Ends { source, destination: event.own, translated }
        }
        (FlowDirection::Egress, None) => Ends { source: event.own, destination: event.peer, translated: None },
        (FlowDirection::Egress, Some(backend)) => Ends { source: event.own, destination: backend, translated: None },
    }
}

fn of_packet(packet: &Packet) -> Flow {
    let Packet { event, interface, judgement, own, peer, service: dialled } = packet;
    let Ends { source, destination, translated } = ends(packet);
    let egress = event.direction == FlowDirection::Egress;
    let (from, to) = if egress { (own, peer) } else { (peer, own) };
    let verdict = verdict(packet);
    let dropped = event.kind == EventKind::Drop;
    let reason = if dropped { drop_reason(event.reason) } else { DropReason::Unknown };
    let event_type = match event.kind {
        EventKind::Drop => CiliumEventType { r#type: event::DROP, sub_type: reason.into() },
        EventKind::Flow | EventKind::Changed | EventKind::Backend => {
            CiliumEventType { r#type: event::POLICY_VERDICT, sub_type: 0 }
        }
        EventKind::Closed => {
            CiliumEventType { r#type: event::TRACE, sub_type: if egress { TO_STACK } else { TO_ENDPOINT } }
        }
    };
    let judged = policies(packet);
    let allowed = if judged.denies { Vec::new() } else { judged.policies.clone() };
    let denied = if judged.denies { judged.policies } else { Vec::new() };
    let (egress_allowed_by, ingress_allowed_by) = by_direction(egress, allowed);
    let (egress_denied_by, ingress_denied_by) = by_direction(egress, denied);
    #[expect(deprecated, reason = "Hubble's clients print it")]
    Flow {
        verdict: verdict.into(),
        drop_reason: if dropped { u32::try_from(i32::from(reason)).unwrap_or_default() } else { 0 },
        drop_reason_desc: reason.into(),
        ip: Some(ip(source.address.to_canonical(), destination.address.to_canonical(), translated)),
        l4: layer4(event.protocol, event.flags, source.port, destination.port),
        source: Some(endpoint(from)),
        destination: Some(endpoint(to)),
        r#type: FlowType::L3L4.into(),
        source_names: from.names.clone(),
        destination_names: to.names.clone(),
        event_type: Some(event_type),
        destination_service: dialled.as_deref().map(service),
        traffic_direction: direction(egress).into(),
        // What of a reply a gate tells it tells of the flow, in the flow's own direction.
        is_reply: Some(false),
        interface: Some(NetworkInterface {
            index: event.interface,
            name: interface.as_deref().unwrap_or_default().to_owned(),
        }),
        summary: summary(packet, judgement.as_deref()),
        egress_allowed_by,
        ingress_allowed_by,
        egress_denied_by,
        ingress_denied_by,
        ..Flow::default()
    }
}

const fn direction(egress: bool) -> TrafficDirection {
    if egress { TrafficDirection::Egress } else { TrafficDirection::Ingress }
}

fn by_direction(egress: bool, policies: Vec<Policy>) -> (Vec<Policy>, Vec<Policy>) {
    if egress { (policies, Vec::new()) } else { (Vec::new(), policies) }
}

fn verdict(packet: &Packet) -> Verdict {
    let event = &packet.event;
    if event.kind == EventKind::Drop {
        return Verdict::Dropped;
    }
    let would_be_denied = packet
        .judgement
        .as_ref()
        .and_then(|judgement| judgement.audit.as_ref())
        .is_some_and(|audit| audit.verdict == Judged::Deny);
    match event.verdict {
        Some(GateVerdict::Deny) if event.audit => Verdict::Audit,
        // A flow that was open when a change denied it: its packets are dropped from now on.
        Some(GateVerdict::Deny) => Verdict::Dropped,
        _ if would_be_denied => Verdict::Audit,
        Some(GateVerdict::Redirect) => Verdict::Redirected,
        Some(GateVerdict::Allow | GateVerdict::Defer) | None => Verdict::Forwarded,
    }
}

/// The policies that decided.
struct Deciding {
    denies: bool,
    policies: Vec<Policy>,
}

fn policies(packet: &Packet) -> Deciding {
    let Some(judgement) = &packet.judgement else { return Deciding { denies: false, policies: Vec::new() } };
    // A dry run is told as what it would have been.
    let judgement: &Judgement = judgement.audit.as_deref().unwrap_or(judgement);
    let policy = match &judgement.reason {
        Reason::Rule(rule) => {
            let (_, at) = rule
                .to_string()
                .rsplit_once(", ")
                .map_or_else(Default::default, |(policy, at)| (policy.to_owned(), at.to_owned()));
            Some((&rule.policy, format!("{RULE}{at}")))
        }
        Reason::Isolated(policy) => Some((policy, ISOLATES.to_owned())),
        Reason::NoPolicy
        | Reason::OwnNode
        | Reason::OwnAddress
        | Reason::Service
        | Reason::TooLarge
        | Reason::Unknown => None,
    };
    let policies = policy.map(|(policy, label)| Policy {
        name: policy.name.to_string(),
        namespace: policy.namespace.as_ref().map(ToString::to_string).unwrap_or_default(),
        labels: vec![label],
        revision: 0,
        kind: policy.kind.as_str().to_owned(),
    });
    Deciding { denies: judgement.verdict == Judged::Deny, policies: policies.into_iter().collect() }
}

/// Cilium's reason for what a gate says; [`summary`] has the gate's own words.
pub(super) const fn drop_reason(cause: Cause) -> DropReason {
    match cause {
        Cause::Policy | Cause::Backend => DropReason::PolicyDenied,
        Cause::NoProxy | Cause::ProxyUnknown => DropReason::SocketLookupFailed,
        Cause::Lockdown | Cause::UnknownEndpoint | Cause::Broken => {
            DropReason::NoConfigurationAvailableToPerformPolicyDecision
        }
        Cause::Spoofed => DropReason::InvalidSourceIp,
        Cause::Malformed | Cause::SourceRoute => DropReason::InvalidPacketDropped,
        Cause::NotIp => DropReason::UnsupportedL3Protocol,
        Cause::Fragment => DropReason::FirstLogicalDatagramFragmentNotFound,
        Cause::ConnectionsFull => DropReason::CtMapInsertionFailed,
        Cause::NotReady => DropReason::DropEpNotReady,
        Cause::None | Cause::EventLost | Cause::CounterLost => DropReason::Unknown,
    }
}

fn layer4(protocol: u8, flags: u8, source_port: u16, destination_port: u16) -> Option<Layer4> {
    let (source_port, destination_port) = (source_port.into(), destination_port.into());
    let protocol = match protocol {
        6 => {
            let has = |bit: u8| flags & bit != 0;
            let flags = TcpFlags {
                fin: has(1),
                syn: has(2),
                rst: has(4),
                psh: has(8),
                ack: has(16),
                urg: has(32),
                ece: has(64),
                cwr: has(128),
                ns: false,
            };
            layer4::Protocol::Tcp(Tcp { source_port, destination_port, flags: Some(flags) })
        }
        17 => layer4::Protocol::Udp(Udp { source_port, destination_port }),
        132 => layer4::Protocol::Sctp(Sctp { source_port, destination_port }),
        // Gates do not read the code of a message.
        1 => layer4::Protocol::IcmPv4(IcmPv4 { r#type: flags.into(), code: 0 }),
        58 => layer4::Protocol::IcmPv6(IcmPv6 { r#type: flags.into(), code: 0 }),
        _ => return None,
    };
    Some(Layer4 { protocol: Some(protocol) })
}

/// What the packet was, and why it passed or did not.
fn summary(packet: &Packet, judgement: Option<&Judgement>) -> String {
    let event = &packet.event;
    let what = match event.protocol {
        6 => {
            let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
            let set = names.iter().enumerate().filter(|(bit, _)| event.flags & (1 << bit) != 0).map(|(_, name)| *name);
            format!("TCP Flags: {}", set.collect::<Vec<_>>().join(", "))
        }
        17 => "UDP".to_owned(),
        132 => "SCTP".to_owned(),
        1 => format!("ICMPv4 type {}", event.flags),
        58 => format!("ICMPv6 type {}", event.flags),
        number => format!("protocol {number}"),
    };
    match why(packet, judgement) {
        Some(why) => format!("{what}; {why}"),
        None => what,
    }
}

fn why(packet: &Packet, judgement: Option<&Judgement>) -> Option<String> {
    let event = &packet.event;
    let words = match event.reason {
        Cause::None | Cause::Policy | Cause::Backend => None,
        Cause::NoProxy => Some("no proxy takes flows with application rules: is sluice-proxy running?"),
        Cause::Lockdown => Some("a map is full, and the pod is locked down"),
        Cause::UnknownEndpoint => Some("the interface has no endpoint"),
        Cause::Broken => Some("the gate's maps lack a row or a decision"),
        Cause::Spoofed => Some("the source is not the pod's address"),
        Cause::Malformed => Some("a header is malformed"),
        Cause::NotIp => Some("neither IP nor ARP"),
        Cause::Fragment => Some("a fragment whose first one did not pass"),
        Cause::SourceRoute => Some("a source route"),
        Cause::ConnectionsFull => Some("the connection cannot be remembered"),
        Cause::NotReady => Some("the pod's gate is not set up yet"),
        Cause::ProxyUnknown => Some("it comes from the proxy, and is of no flow that the proxy has"),
        Cause::EventLost | Cause::CounterLost => None,
    };
    if let Some(words) = words {
        return Some(words.to_owned());
    }
    if let Some(judgement) = judgement {
        return Some(match &judgement.audit {
            Some(audit) => format!("{} (dry run: {}, {})", judgement.reason, audit.verdict.as_str(), audit.reason),
            None => judgement.reason.to_string(),
        });
    }
    match event.basis {
        Basis::NoPolicy => Some(Reason::NoPolicy.to_string()),
        Basis::OwnNode => Some(Reason::OwnNode.to_string()),
        Basis::OwnAddress => Some(Reason::OwnAddress.to_string()),
        Basis::Service => Some(Reason::Service.to_string()),
        Basis::Decision => Some("a rule that is not in force any more".to_owned()),
        Basis::Nothing | Basis::Broken => None,
    }
}

fn of_request(requested: &Requested) -> Flow {
    let Requested { request, client, server, service: dialled } = requested;
    let reached = request.backend.unwrap_or(request.server);
    let (protocol, http) = match &request.kind {
        Kind::Http { .. } => (6, true),
        Kind::Dns { .. } if request.udp => (17, false),
        Kind::Dns { .. } | Kind::Tls { .. } | Kind::Connection => (6, false),
    };
    let record = match &request.kind {
        Kind::Http { method, path, host, status, version } => Some(layer7::Record::Http(Http {
            code: status.unwrap_or_default().into(),
            method: method.clone(),
            url: url(host, request.server.port(), path),
            protocol: version.clone(),
            headers: Vec::new(),
        })),
        Kind::Dns { name, qtype, rcode, addresses } => Some(layer7::Record::Dns(Dns {
            query: name.clone(),
            ips: addresses.iter().map(ToString::to_string).collect(),
            observation_source: "proxy".to_owned(),
            rcode: rcode.unwrap_or_default().into(),
            qtypes: vec![qtype_name(*qtype)],
            ..Dns::default()
        })),
        Kind::Tls { .. } | Kind::Connection => None,
    };
    let verdict = match (request.passes, request.would_pass) {
        (false, _) => Verdict::Dropped,
        (true, Some(false)) => Verdict::Audit,
        (true, _) => Verdict::Forwarded,
    };
    let decided = request.rule.as_deref().unwrap_or(&request.reason);
    let policies: Vec<Policy> = policy_of_words(decided).into_iter().collect();
    let (allowed, denied) = if request.passes { (policies, Vec::new()) } else { (Vec::new(), policies) };
    let (egress_allowed_by, ingress_allowed_by) = by_direction(request.egress, allowed);
    let (egress_denied_by, ingress_denied_by) = by_direction(request.egress, denied);
    let latency_ns = request.latency_us.saturating_mul(1000);
    let flow_type = if record.is_some() { FlowType::L7 } else { FlowType::L3L4 };
    #[expect(deprecated, reason = "Hubble's clients print it")]
    Flow {
        verdict: verdict.into(),
        drop_reason: if request.passes { 0 } else { 133 },
        drop_reason_desc: if request.passes { DropReason::Unknown } else { DropReason::PolicyDenied }.into(),
        ip: Some(ip(request.client.ip().to_canonical(), reached.ip().to_canonical(), None)),
        l4: layer4(protocol, 0, request.client.port(), reached.port()),
        source: Some(endpoint(client)),
        destination: Some(endpoint(server)),
        r#type: flow_type.into(),
        source_names: client.names.clone(),
        destination_names: server.names.clone(),
        // A record has the question and what came of it.
        l7: record.map(|record| Layer7 { r#type: L7FlowType::Request.into(), latency_ns, record: Some(record) }),
        event_type: Some(CiliumEventType { r#type: event::L7, sub_type: 0 }),
        destination_service: dialled.as_deref().map(service),
        traffic_direction: direction(request.egress).into(),
        is_reply: Some(false),
        summary: request_summary(request, http),
        egress_allowed_by,
        ingress_allowed_by,
        egress_denied_by,
        ingress_denied_by,
        ..Flow::default()
    }
}

fn url(host: &str, port: u16, path: &str) -> String {
    match port {
        80 => format!("http://{host}{path}"),
        _ if host.contains(':') => format!("http://{host}{path}"),
        _ => format!("http://{host}:{port}{path}"),
    }
}

fn request_summary(request: &Request, http: bool) -> String {
    let what = match &request.kind {
        Kind::Http { method, path, status, version, .. } if http => {
            let status = status.map(|status| format!(" -> {status}")).unwrap_or_default();
            format!("{version} {method} {path}{status}")
        }
        Kind::Http { .. } | Kind::Connection => "a connection".to_owned(),
        Kind::Dns { name, qtype, rcode, addresses } => {
            let answer = match rcode {
                None => "no answer".to_owned(),
                Some(0) => addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
                Some(code) => format!("code {code}"),
            };
            format!("DNS {} {name} -> {answer}", qtype_name(*qtype))
        }
        Kind::Tls { server_name } => format!("TLS to {}", server_name.as_deref().unwrap_or("no named server")),
    };
    let why = request.rule.as_deref().unwrap_or(&request.reason);
    let dry = match request.would_pass {
        Some(false) if request.passes => " (dry run: it would be refused)",
        _ => "",
    };
    format!("{what}; {why}{dry}")
}

/// The policy in the words of a rule (`CiliumNetworkPolicy shop/db, ingress[0].toPorts[1]`), or of an isolation
/// ([`Reason::Isolated`]). None in the proxy's own words, such as those for a request that can be read in two ways.
fn policy_of_words(words: &str) -> Option<Policy> {
    let isolates = words.split_once(" isolates the pod").map(|(policy, _)| (policy, ISOLATES.to_owned()));
    let rule = || words.split_once(", ").map(|(policy, at)| (policy, format!("{RULE}{at}")));
    let (policy, label) = isolates.or_else(rule)?;
    let (kind, name) = policy.split_once(' ')?;
    if !kind.ends_with("Policy") || name.contains(' ') {
        return None;
    }
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    Some(Policy {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        labels: vec![label],
        revision: 0,
        kind: kind.to_owned(),
    })
}

/// The name of a type of records (IANA, DNS Resource Record TYPEs), of those that pods ask for.
pub(super) fn qtype_name(number: u16) -> String {
    match number {
        1 => "A".to_owned(),
        2 => "NS".to_owned(),
        5 => "CNAME".to_owned(),
        6 => "SOA".to_owned(),
        12 => "PTR".to_owned(),
        15 => "MX".to_owned(),
        16 => "TXT".to_owned(),
        28 => "AAAA".to_owned(),
        33 => "SRV".to_owned(),
        35 => "NAPTR".to_owned(),
        64 => "SVCB".to_owned(),
        65 => "HTTPS".to_owned(),
        number => format!("TYPE{number}"),
    }
}
