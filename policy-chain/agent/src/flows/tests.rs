use std::net::IpAddr;

use sluice_contract::proxy::record::{Kind, Record as Request};
use sluice_hubble::flow::{Flow, Verdict as HubbleVerdict, layer4, layer7};
use sluice_hubble::json;
use sluice_policy_bpf::events::{End, Event};
use sluice_policy_bpf::gate::Ktime;
use sluice_policy_bpf::layout::{Basis, DropReason, EventKind, FlowDirection, FlowOrigin, Hook, Verdict};
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::flow::{Direction, Judgement, Reason, RuleRef, Verdict as Judged};
use sluice_policy_core::model::{PolicyKind, PolicyRef};

use super::parties::{Party, ServiceName};
use super::record::Requested;
use super::*;

const NODE: &str = "node-a";

fn end(address: &str, port: u16) -> End {
    End { address: address.parse().unwrap(), port }
}

fn party(namespace: &str, name: &str, endpoint: u32) -> Arc<Party> {
    Arc::new(Party {
        pod: Some(PodKey { namespace: namespace.into(), name: name.into() }),
        endpoint,
        identity: 300 + endpoint,
        labels: vec![format!("k8s:app={name}")],
        ..Party::default()
    })
}

fn world(name: &str) -> Arc<Party> {
    Arc::new(Party {
        identity: 2,
        labels: vec!["reserved:world".into()],
        names: vec![name.to_owned()],
        ..Party::default()
    })
}

/// The first packet of a connection from web to db, denied at web's egress by a rule of a policy.
fn dropped() -> Packet {
    let event = Event {
        time: Ktime(1),
        kind: EventKind::Drop,
        hook: Hook::FromPod,
        endpoint: Some(7),
        interface: 12,
        direction: FlowDirection::Egress,
        origin: FlowOrigin::Forwarded,
        verdict: Some(Verdict::Deny),
        basis: Basis::Decision,
        decision: None,
        reason: DropReason::Policy,
        audit: false,
        own: end("10.0.0.7", 40000),
        peer: end("10.0.1.9", 5432),
        other: None,
        protocol: 6,
        flags: 2,
        ether_type: 0x0800,
        length: 74,
    };
    Packet {
        event,
        interface: Some("eni7".into()),
        judgement: Some(Arc::new(Judgement { verdict: Judged::Deny, reason: rule(), audit: None })),
        own: party("shop", "web", 7),
        peer: party("shop", "db", 0),
        service: None,
    }
}

fn rule() -> Reason {
    let policy =
        PolicyRef { kind: PolicyKind::CiliumNetworkPolicy, namespace: Some("shop".into()), name: "web".into() };
    Reason::Rule(RuleRef { policy, direction: Direction::Egress, spec: 0, deny: true, index: 1 })
}

fn record(what: What) -> Record {
    Record { number: 5, time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_005), what }
}

fn flow(packet: Packet) -> Flow {
    node().flow(&record(What::Packet(Box::new(packet)))).unwrap()
}

fn node() -> Node {
    Node { name: NODE.into(), run: 0x0123_4567_89ab_cdef }
}

/// Records of a pod like no other: its own name, addresses, ports, protocols and rule, and requests with methods, paths, codes
/// and questions that nobody else has.
pub(crate) fn samples(pod: u32) -> Vec<Record> {
    let own =
        End { address: std::net::Ipv4Addr::from(0x0a00_0000 + pod).into(), port: u16::try_from(pod % 60_000).unwrap() };
    let kinds = [EventKind::Flow, EventKind::Drop, EventKind::Changed, EventKind::Backend, EventKind::Closed];
    let verdicts = [None, Some(Verdict::Allow), Some(Verdict::Deny), Some(Verdict::Redirect), Some(Verdict::Defer)];
    let policy = PolicyRef {
        kind: PolicyKind::NetworkPolicy,
        namespace: Some("shop".into()),
        name: format!("pod-{pod}").as_str().into(),
    };
    let packets = kinds.into_iter().zip(verdicts).map(|(kind, verdict)| {
        let event = Event {
            kind,
            verdict,
            own,
            protocol: u8::try_from(pod % 256).unwrap(),
            flags: u8::try_from(pod % 256).unwrap(),
            endpoint: Some(pod),
            ..dropped().event
        };
        let reason = Reason::Isolated(policy.clone());
        let judgement = Some(Arc::new(Judgement { verdict: Judged::Deny, reason, audit: None }));
        What::Packet(Box::new(Packet { event, judgement, own: party("shop", &format!("pod-{pod}"), pod), ..dropped() }))
    });
    let number = u16::try_from(pod % 65_536).unwrap();
    let http = Kind::Http {
        method: format!("METHOD{pod}"),
        path: format!("/{pod}"),
        host: format!("pod-{pod}"),
        status: Some(number),
        version: format!("HTTP/{pod}"),
    };
    let dns = Kind::Dns { name: format!("pod-{pod}."), qtype: number, rcode: Some(number), addresses: Vec::new() };
    let tls = Kind::Tls { server_name: Some(format!("pod-{pod}")) };
    let requests = [http, dns, tls, Kind::Connection]
        .into_iter()
        .map(|kind| What::Request(Box::new(requested(kind, pod.is_multiple_of(2)))));
    packets.chain(requests).map(record).collect()
}

#[test]
fn a_dropped_packet_names_both_ends_the_policy_and_the_rule() {
    let expected = serde_json::json!({
        "time": "2023-11-14T22:13:20.005Z",
        "uuid": "01234567-89ab-4def-8000-000000000005",
        "verdict": "DROPPED",
        "drop_reason": 133,
        "drop_reason_desc": "POLICY_DENIED",
        "IP": {"source": "10.0.0.7", "destination": "10.0.1.9", "ipVersion": "IPv4"},
        "l4": {"TCP": {"source_port": 40000, "destination_port": 5432, "flags": {"SYN": true}}},
        "source": {
            "ID": 7, "identity": 307, "namespace": "shop", "pod_name": "web", "labels": ["k8s:app=web"],
        },
        "destination": {"identity": 300, "namespace": "shop", "pod_name": "db", "labels": ["k8s:app=db"]},
        "Type": "L3_L4",
        "node_name": "node-a",
        "event_type": {"type": 1, "sub_type": 133},
        "traffic_direction": "EGRESS",
        "is_reply": false,
        "interface": {"index": 12, "name": "eni7"},
        "Summary": "TCP Flags: SYN; CiliumNetworkPolicy shop/web, egressDeny[1]",
        "egress_denied_by": [{
            "name": "web", "namespace": "shop", "kind": "CiliumNetworkPolicy", "labels": ["sluice:rule=egressDeny[1]"],
        }],
    });
    assert_eq!(json::value(&flow(dropped())).unwrap(), expected);
}

#[test]
fn what_became_of_a_packet_is_told_in_hubbles_words() {
    let policy = || PolicyRef { kind: PolicyKind::NetworkPolicy, namespace: Some("shop".into()), name: "db".into() };
    let judged = |verdict, reason| Some(Arc::new(Judgement { verdict, reason, audit: None }));
    let event = |kind, verdict, reason| Event { kind, verdict, reason, ..dropped().event };
    let flow_event = event(EventKind::Flow, Some(Verdict::Allow), DropReason::None);

    // A policy that isolates and has no rule for it.
    let isolated = flow(Packet { judgement: judged(Judged::Deny, Reason::Isolated(policy())), ..dropped() });
    assert_eq!(isolated.egress_denied_by[0].labels, ["sluice:isolates=true"]);
    // Nobody decides.
    let free = flow(Packet { event: Event { basis: Basis::NoPolicy, ..flow_event }, judgement: None, ..dropped() });
    assert_eq!(free.verdict(), HubbleVerdict::Forwarded);
    assert_eq!(free.event_type.unwrap().r#type, sluice_hubble::event::POLICY_VERDICT);
    assert!(free.egress_allowed_by.is_empty() && free.egress_denied_by.is_empty());
    // The pod's gate is a dry run, and a policy is one.
    let audited = Event { verdict: Some(Verdict::Deny), audit: true, ..flow_event };
    assert_eq!(flow(Packet { event: audited, ..dropped() }).verdict(), HubbleVerdict::Audit);
    let dry = Judgement {
        verdict: Judged::Allow,
        reason: Reason::NoPolicy,
        audit: Some(Box::new(Judgement { verdict: Judged::Deny, reason: rule(), audit: None })),
    };
    let dry = flow(Packet { event: flow_event, judgement: Some(Arc::new(dry)), ..dropped() });
    assert_eq!((dry.verdict(), dry.egress_denied_by[0].name.as_str()), (HubbleVerdict::Audit, "web"));
    // The proxy has it.
    let redirected = Event { verdict: Some(Verdict::Redirect), ..flow_event };
    assert_eq!(flow(Packet { event: redirected, ..dropped() }).verdict(), HubbleVerdict::Redirected);
    // No proxy has it: the words say what to do.
    let nobody = event(EventKind::Drop, Some(Verdict::Redirect), DropReason::NoProxy);
    #[expect(deprecated, reason = "Hubble's clients print it")]
    let summary = flow(Packet { event: nobody, ..dropped() }).summary;
    assert!(summary.contains("is sluice-proxy running?"), "{summary}");
}

#[test]
fn ends_are_who_they_are_behind_services_and_translation() {
    // Judged at its backend: the pod dialled the Service.
    let backend = Event { kind: EventKind::Backend, other: Some(end("10.0.1.9", 8080)), ..dropped().event };
    let backend = Event { peer: end("10.96.0.10", 80), ..backend };
    let service = Some(Arc::new(ServiceName { namespace: "shop".into(), name: "db".into() }));
    let flow_ = flow(Packet { event: backend, service, ..dropped() });
    assert_eq!(flow_.ip.unwrap().destination, "10.0.1.9");
    assert_eq!(flow_.destination_service.unwrap().name, "db");
    let Some(layer4::Protocol::Tcp(tcp)) = flow_.l4.unwrap().protocol else { panic!("it is TCP") };
    assert_eq!(tcp.destination_port, 8080);
    // Judged by the peer's own address: the port is the peer's.
    let same = Event { other: Some(end("10.0.1.9", 0)), ..dropped().event };
    let flow_ = flow(Packet { event: same, ..dropped() });
    let Some(layer4::Protocol::Tcp(tcp)) = flow_.l4.unwrap().protocol else { panic!("it is TCP") };
    assert_eq!(tcp.destination_port, 5432);
    // To the pod, from somebody whose address was translated to the node's.
    let translated = Event {
        kind: EventKind::Flow,
        verdict: Some(Verdict::Allow),
        reason: DropReason::None,
        direction: FlowDirection::Ingress,
        peer: end("192.168.0.1", 999),
        other: Some(end("198.51.100.10", 0)),
        ..dropped().event
    };
    let flow_ = flow(Packet { event: translated, peer: world("api.example"), ..dropped() });
    let ip = flow_.ip.unwrap();
    assert_eq!((ip.source.as_str(), ip.source_xlated.as_str()), ("198.51.100.10", "192.168.0.1"));
    assert_eq!(flow_.source_names, ["api.example"]);
    assert_eq!(flow_.destination.unwrap().pod_name, "web");
}

fn requested(kind: Kind, passes: bool) -> Requested {
    let at = |text: &str| text.parse().unwrap();
    Requested {
        request: Request {
            time_us: 1,
            egress: false,
            pod: None,
            client: at("10.0.0.7:40000"),
            server: at("10.0.1.9:80"),
            backend: None,
            udp: matches!(kind, Kind::Dns { .. }),
            kind,
            passes,
            rule: passes.then(|| "CiliumNetworkPolicy shop/db, ingress[0].toPorts[0]".to_owned()),
            reason: "CiliumNetworkPolicy shop/db isolates the pod, and no rule allows this".into(),
            would_pass: None,
            latency_us: 250,
        },
        client: party("shop", "web", 7),
        server: party("shop", "db", 8),
        service: None,
    }
}

#[test]
fn requests_have_what_was_asked_what_came_of_it_and_why() {
    let http = |status| Kind::Http {
        method: "GET".into(),
        path: "/public?a".into(),
        host: "db".into(),
        status: Some(status),
        version: "HTTP/1.1".into(),
    };
    let told = |requested| node().flow(&record(What::Request(Box::new(requested)))).unwrap();
    let passed = told(requested(http(200), true));
    let layer7 = passed.l7.unwrap();
    assert_eq!(layer7.latency_ns, 250_000);
    let Some(layer7::Record::Http(http_)) = layer7.record else { panic!("it is HTTP") };
    assert_eq!((http_.code, http_.method.as_str(), http_.url.as_str()), (200, "GET", "http://db/public?a"));
    assert_eq!(passed.ingress_allowed_by[0].labels, ["sluice:rule=ingress[0].toPorts[0]"]);
    let refused = told(requested(http(403), false));
    assert_eq!(refused.verdict(), HubbleVerdict::Dropped);
    assert_eq!((refused.ingress_denied_by[0].name.as_str(), refused.ingress_allowed_by.len()), ("db", 0));
    let question = Kind::Dns { name: "api.example".into(), qtype: 28, rcode: Some(5), addresses: Vec::<IpAddr>::new() };
    let question = told(requested(question, false));
    let Some(layer7::Record::Dns(dns)) = question.l7.unwrap().record else { panic!("it is DNS") };
    assert_eq!((dns.query.as_str(), dns.rcode, dns.qtypes[0].as_str()), ("api.example", 5, "AAAA"));
    assert!(matches!(question.l4.unwrap().protocol, Some(layer4::Protocol::Udp(_))));
}

#[test]
fn the_newest_are_kept_and_what_is_gone_is_counted() {
    let flows = Flows::new(4, FlowMetrics::default());
    let one = || record(What::Packet(Box::new(dropped())));
    flows.add((0..3).map(|_| one()));
    let numbers = |after, most| {
        let (records, gone) = flows.after(after, most);
        (records.iter().map(|record| record.number).collect::<Vec<_>>(), gone)
    };
    assert_eq!(numbers(0, 10), (vec![1, 2, 3], 0));
    flows.add((0..4).map(|_| one()));
    assert_eq!(numbers(0, 10), (vec![4, 5, 6, 7], 3));
    assert_eq!(numbers(2, 2), (vec![4, 5], 1));
    assert_eq!(numbers(7, 10), (vec![], 0));
    flows.add([record(What::Lost { at: LostAt::Kernel, count: 9 })]);
    let counts = flows.counts(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_010));
    assert_eq!((counts.kept, counts.limit, counts.seen, counts.lost), (4, 4, 7, 9));
    assert!((counts.rate - 7.0 / 60.0).abs() < 1e-9, "{}", counts.rate);
}

#[test]
fn peers_that_come_go_and_move_are_told() {
    let peers = |list: &[(&str, &str)]| {
        list.iter().map(|(name, address)| ((*name).to_owned(), address.parse().unwrap())).collect()
    };
    let old = peers(&[("a", "10.0.0.1:4244"), ("b", "10.0.0.2:4244")]);
    let new = peers(&[("b", "10.0.0.3:4244"), ("c", "10.0.0.4:4244")]);
    let told: Vec<(String, i32)> =
        observer::changes(&old, &new, false).into_iter().map(|change| (change.name, change.r#type)).collect();
    assert_eq!(told, [("a".to_owned(), 2), ("b".to_owned(), 3), ("c".to_owned(), 1)]);
}

mod served {
    use sluice_hubble::flow::FlowFilter;
    use sluice_hubble::observer::get_flows_response::ResponseTypes;
    use sluice_hubble::observer::observer_server::Observer as _;
    use sluice_hubble::observer::{GetAgentEventsRequest, GetFlowsRequest, GetFlowsResponse};
    use tokio::time::timeout;
    use tonic::{Code, Request as Asked};

    use super::*;
    use crate::inbox::Handle;

    fn observer(flows: &Flows) -> Observer {
        // What is asked of the loop is not asked here.
        let (handle, _inputs) = Handle::new();
        Observer::new(flows.clone(), node(), handle, false)
    }

    fn at(second: u64, port: u16) -> Record {
        let packet = Packet { event: Event { peer: end("10.0.1.9", port), ..dropped().event }, ..dropped() };
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        Record { number: 0, time, what: What::Packet(Box::new(packet)) }
    }

    fn port(response: &GetFlowsResponse) -> u32 {
        let Some(ResponseTypes::Flow(flow)) = &response.response_types else { panic!("{response:?} is no flow") };
        match &flow.l4.as_ref().unwrap().protocol {
            Some(layer4::Protocol::Tcp(tcp)) => tcp.destination_port,
            other => panic!("{other:?}"),
        }
    }

    async fn ports(flows: &Flows, request: GetFlowsRequest) -> Vec<u32> {
        let mut stream = observer(flows).get_flows(Asked::new(request)).await.unwrap().into_inner();
        let mut found = Vec::new();
        while let Some(response) = futures_util::StreamExt::next(&mut stream).await {
            found.push(port(&response.unwrap()));
        }
        found
    }

    #[tokio::test(start_paused = true)]
    async fn flows_are_told_as_they_are_asked_for() {
        let flows = Flows::new(16, FlowMetrics::default());
        flows.add((1..=6).map(|number| at(number, 80 + u16::from(number % 2 == 0))));
        let odd = FlowFilter { destination_port: vec!["80".into()], ..FlowFilter::default() };
        let since = |second| Some(message::timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(second)));
        let asked = GetFlowsRequest::default;
        assert_eq!(ports(&flows, asked()).await, [80, 81, 80, 81, 80, 81]);
        assert_eq!(ports(&flows, GetFlowsRequest { number: 2, ..asked() }).await, [80, 81]);
        assert_eq!(ports(&flows, GetFlowsRequest { number: 3, first: true, ..asked() }).await, [80, 81, 80]);
        let white = GetFlowsRequest { number: 2, whitelist: vec![odd.clone()], ..asked() };
        assert_eq!(ports(&flows, white).await, [80, 80]);
        let black = GetFlowsRequest { blacklist: vec![odd.clone()], ..asked() };
        assert_eq!(ports(&flows, black).await, [81, 81, 81]);
        let middle = GetFlowsRequest { since: since(2), until: since(4), ..asked() };
        assert_eq!(ports(&flows, middle).await, [81, 80, 81]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_follows_is_told_what_comes_and_what_was_missed() {
        let flows = Flows::new(4, FlowMetrics::default());
        flows.add([at(1, 80)]);
        let asked = GetFlowsRequest { number: 1, follow: true, ..GetFlowsRequest::default() };
        let mut stream = observer(&flows).get_flows(Asked::new(asked)).await.unwrap().into_inner();
        let mut next = async || {
            let next = futures_util::StreamExt::next(&mut stream);
            timeout(Duration::from_secs(5), next).await.ok().map(|response| response.unwrap().unwrap())
        };
        assert_eq!(port(&next().await.unwrap()), 80);
        assert_eq!(next().await, None);
        flows.add([at(2, 81)]);
        assert_eq!(port(&next().await.unwrap()), 81);
        // More at once than are kept: what is gone is told as lost.
        flows.add((0..6).map(|_| at(3, 82)));
        let Some(ResponseTypes::LostEvents(lost)) = next().await.unwrap().response_types else {
            panic!("none is lost")
        };
        assert_eq!((lost.source, lost.num_events_lost), (3, 2));
        for _ in 0..4 {
            assert_eq!(port(&next().await.unwrap()), 82);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_answered_is_refused() {
        let flows = Flows::new(4, FlowMetrics::default());
        let wrong = FlowFilter { source_ip: vec!["10.0.0".into()], ..FlowFilter::default() };
        for request in [
            GetFlowsRequest { whitelist: vec![wrong], ..GetFlowsRequest::default() },
            GetFlowsRequest { first: true, follow: true, ..GetFlowsRequest::default() },
            GetFlowsRequest {
                field_mask: Some(prost_types::FieldMask { paths: vec!["sauce".into()] }),
                ..GetFlowsRequest::default()
            },
        ] {
            let Err(status) = observer(&flows).get_flows(Asked::new(request)).await else { panic!("it was served") };
            assert_eq!(status.code(), Code::InvalidArgument);
        }
        let events = observer(&flows).get_agent_events(Asked::new(GetAgentEventsRequest::default())).await;
        assert_eq!(events.err().unwrap().code(), Code::Unimplemented);
    }
}

#[test]
fn flows_are_counted_by_hubbles_names_within_bounds() {
    let metrics = FlowMetrics::default();
    let flows = Flows::new(4, metrics.clone());
    let methods = ["GET", "GET", "BREW", "X1", "X2"];
    let request = |method: &str| {
        let kind = Kind::Http {
            method: method.into(),
            path: "/".into(),
            host: "db".into(),
            status: Some(200),
            version: "HTTP/1.1".into(),
        };
        record(What::Request(Box::new(requested(kind, true))))
    };
    flows.add(methods.iter().map(|method| request(method)));
    flows.add([record(What::Packet(Box::new(dropped()))), record(What::Lost { at: LostAt::Proxy, count: 3 })]);
    let mut named = sluice_daemon::metrics::Named::default();
    metrics
        .register(&mut |name, help, metric: &dyn crate::metrics::Registered| metric.register(&mut named, name, help));
    let text = named.encode();
    for line in [
        "hubble_drop_total{protocol=\"TCP\",reason=\"POLICY_DENIED\"} 1",
        "hubble_flows_processed_total{protocol=\"HTTP\",type=\"L7\",verdict=\"FORWARDED\"} 5",
        "hubble_http_requests_total{method=\"GET\",protocol=\"HTTP/1.1\",status=\"200\"} 2",
        "hubble_http_requests_total{method=\"other\",protocol=\"HTTP/1.1\",status=\"200\"} 3",
        "hubble_lost_events_total{source=\"observer_events_queue\"} 3",
        "hubble_policy_verdicts_total{action=\"dropped\",direction=\"egress\",match=\"rule\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn flows_are_written_to_a_file_as_filters_and_fields_say() {
    let directory = std::env::temp_dir().join(format!("sluice-flows-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("flows.jsonl");
    let flows = Flows::new(8, FlowMetrics::default());
    let export = Export {
        path: path.clone(),
        limit: 600,
        allow: vec![r#"{"verdict":["DROPPED"]}"#.to_owned()],
        deny: vec![r#"{"destination_port":["81"]}"#.to_owned()],
        fields: vec!["verdict".to_owned(), "source.pod_name".to_owned()],
    };
    assert!(export.faults().is_empty());
    let mut writer = export::Writer::new(export.clone(), node()).unwrap();
    let packet = |port| {
        let packet = Packet { event: Event { peer: end("10.0.1.9", port), ..dropped().event }, ..dropped() };
        record(What::Packet(Box::new(packet)))
    };
    flows.add([packet(80), packet(81), packet(80)]);
    writer.write_new(&flows);
    let line = r#"{"flow":{"verdict":"DROPPED","source":{"pod_name":"web"}},"node_name":"node-a","time":"2023-11-14T22:13:20.005Z"}"#;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{line}\n{line}\n"));
    // More than are kept came: the loss is told; and the file is begun anew at its size.
    flows.add((0..12).map(|_| packet(80)));
    writer.write_new(&flows);
    let now = std::fs::read_to_string(&path).unwrap();
    let before = std::fs::read_to_string(directory.join("flows.jsonl.1")).unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    assert_eq!(before.lines().count(), 2);
    assert!(
        now.lines().next().unwrap().contains(r#""lost_events":{"source":"HUBBLE_RING_BUFFER","num_events_lost":"4"}"#),
        "{now}"
    );
    assert_eq!(now.lines().count(), 9);
    let wrong = Export {
        allow: vec!["{".into()],
        deny: vec![r#"{"source_ip":["x"]}"#.into()],
        fields: vec!["sauce".into()],
        ..export
    };
    assert_eq!(wrong.faults().len(), 3);
}
