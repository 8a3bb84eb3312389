use super::*;
use crate::event;
use crate::flow::{
    CiliumEventType, Dns, Endpoint, EventTypeFilter, FlowType, Http, HttpHeader, Ip, Layer4, Layer7, NetworkInterface,
    Service, Tcp, Verdict, Workload,
};

/// From web of shop to the Service db, denied.
fn packet() -> Flow {
    let flags = Some(TcpFlags { syn: true, ..Default::default() });
    Flow {
        uuid: "u-1".into(),
        node_name: "node-a".into(),
        verdict: Verdict::Dropped.into(),
        drop_reason_desc: crate::flow::DropReason::PolicyDenied.into(),
        r#type: FlowType::L3L4.into(),
        is_reply: Some(false),
        traffic_direction: crate::flow::TrafficDirection::Egress.into(),
        event_type: Some(CiliumEventType { r#type: event::DROP, sub_type: 133 }),
        interface: Some(NetworkInterface { index: 7, name: "eni7".into() }),
        ip: Some(Ip {
            source: "10.0.0.7".into(),
            destination: "10.0.9.1".into(),
            source_xlated: "192.168.0.1".into(),
            ip_version: IpVersion::IPv4.into(),
            ..Default::default()
        }),
        l4: Some(Layer4 {
            protocol: Some(layer4::Protocol::Tcp(Tcp { source_port: 40000, destination_port: 5432, flags })),
        }),
        source: Some(Endpoint {
            id: 3,
            identity: 300,
            namespace: "shop".into(),
            pod_name: "web-7d4b9-x2x1z".into(),
            labels: vec!["k8s:app=web".into()],
            workloads: vec![Workload { name: "web".into(), kind: "Deployment".into() }],
            ..Default::default()
        }),
        destination: Some(Endpoint { identity: 2, labels: vec!["reserved:world".into()], ..Default::default() }),
        destination_names: vec!["db.example.com".into()],
        destination_service: Some(Service { name: "db".into(), namespace: "shop".into() }),
        ..Default::default()
    }
}

fn request(record: layer7::Record) -> Flow {
    Flow { l7: Some(Layer7 { record: Some(record), ..Default::default() }), ..packet() }
}

fn get() -> Flow {
    let header = HttpHeader { key: "X-Team".into(), value: "a".into() };
    request(layer7::Record::Http(Http {
        code: 503,
        method: "GET".into(),
        url: "http://db.example.com:80/items/7?all".into(),
        protocol: "HTTP/1.1".into(),
        headers: vec![header],
    }))
}

fn passes(filter: FlowFilter, flow: &Flow) -> bool {
    let filters = Filters::new(std::slice::from_ref(&filter), &[]).unwrap();
    let none = Filters::new(&[], &[filter]).unwrap();
    assert_ne!(filters.passes(flow), none.passes(flow), "a deny list is the contrary of an allow list");
    filters.passes(flow)
}

macro_rules! filter {
    ($($field:ident: $value:expr),* $(,)?) => {
        FlowFilter { $($field: $value.into_iter().map(Into::into).collect(),)* ..Default::default() }
    };
}

#[test]
fn ends_are_found_by_what_they_are_called() {
    for (filter, matches) in [
        (filter! { source_ip: ["10.0.0.7"] }, true),
        (filter! { source_ip: ["10.0.0.0/24"] }, true),
        (filter! { source_ip: ["10.0.0.8", "10.0.0.7"] }, true),
        (filter! { destination_ip: ["10.0.0.7"] }, false),
        (filter! { source_ip_xlated: ["192.168.0.0/16"] }, true),
        (filter! { source_pod: ["shop/web"] }, true),
        (filter! { source_pod: ["shop/"] }, true),
        (filter! { source_pod: ["/web"] }, true),
        (filter! { source_pod: ["web"] }, false),
        (filter! { source_pod: ["shop/db"] }, false),
        (filter! { destination_pod: ["shop/"] }, false),
        (filter! { destination_fqdn: ["*.example.com"] }, true),
        (filter! { destination_fqdn: ["DB.example.com."] }, true),
        (filter! { destination_fqdn: ["example.com"] }, false),
        (filter! { source_label: ["app=web"] }, true),
        (filter! { destination_label: ["reserved:world"] }, true),
        (filter! { destination_service: ["shop/db"] }, true),
        (filter! { source_service: ["shop/db"] }, false),
        (filter! { source_workload: [Workload { name: "web".into(), kind: String::new() }] }, true),
        (filter! { source_workload: [Workload { name: "web".into(), kind: "Job".into() }] }, false),
        (filter! { source_port: ["40000"] }, true),
        (filter! { destination_port: ["5432", "80"] }, true),
        (filter! { destination_port: ["40000"] }, false),
        (filter! { source_identity: [300_u32] }, true),
        (filter! { destination_identity: [300_u32] }, false),
        (filter! { source_cluster_name: ["east"] }, false),
        // All that is set has to match.
        (filter! { source_pod: ["shop/web"], destination_port: ["80"] }, false),
    ] {
        assert_eq!(passes(filter.clone(), &packet()), matches, "{filter:?}");
    }
}

#[test]
fn packets_are_found_by_what_became_of_them() {
    let syn = TcpFlags { syn: true, ..Default::default() };
    let event = |sub_type, match_sub_type| EventTypeFilter { r#type: event::DROP, match_sub_type, sub_type };
    for (filter, matches) in [
        (filter! { uuid: ["u-1"] }, true),
        (filter! { verdict: [Verdict::Dropped] }, true),
        (filter! { verdict: [Verdict::Forwarded, Verdict::Redirected] }, false),
        (filter! { drop_reason_desc: [crate::flow::DropReason::PolicyDenied] }, true),
        (filter! { traffic_direction: [crate::flow::TrafficDirection::Ingress] }, false),
        (filter! { event_type: [event(0, false)] }, true),
        (filter! { event_type: [event(0, true)] }, false),
        (filter! { event_type: [event(133, true)] }, true),
        (filter! { interface: [NetworkInterface { index: 0, name: "eni7".into() }] }, true),
        (filter! { interface: [NetworkInterface { index: 8, name: String::new() }] }, false),
        (filter! { protocol: ["TCP"] }, true),
        (filter! { protocol: ["udp", "icmp"] }, false),
        (filter! { protocol: ["http"] }, false),
        (filter! { reply: [false] }, true),
        (filter! { reply: [true] }, false),
        (filter! { tcp_flags: [syn] }, true),
        (filter! { tcp_flags: [TcpFlags { ack: true, ..syn }] }, false),
        (filter! { ip_version: [IpVersion::IPv4] }, true),
        (filter! { ip_version: [IpVersion::IPv6] }, false),
        (filter! { node_name: ["node-*"] }, true),
        (filter! { node_name: ["default/node-a"] }, true),
        (filter! { node_name: ["node"] }, false),
    ] {
        assert_eq!(passes(filter.clone(), &packet()), matches, "{filter:?}");
    }
}

#[test]
fn requests_are_found_by_what_they_ask_for() {
    let question = request(layer7::Record::Dns(Dns { query: "api.example.".into(), rcode: 5, ..Default::default() }));
    for (filter, flow, matches) in [
        (filter! { http_status_code: ["503"] }, get(), true),
        (filter! { http_status_code: ["5+"] }, get(), true),
        (filter! { http_status_code: ["4+"] }, get(), false),
        (filter! { http_status_code: ["5+"] }, packet(), false),
        (filter! { http_method: ["get"] }, get(), true),
        (filter! { http_path: ["^/items/[0-9]+$"] }, get(), true),
        (filter! { http_path: ["example"] }, get(), false),
        (filter! { http_url: ["example"] }, get(), true),
        (filter! { http_header: [HttpHeader { key: "x-team".into(), value: "a".into() }] }, get(), true),
        (filter! { http_header: [HttpHeader { key: "x-team".into(), value: "b".into() }] }, get(), false),
        (filter! { protocol: ["http"] }, get(), true),
        (filter! { protocol: ["dns"] }, question.clone(), true),
        (filter! { dns_query: ["^api\\."] }, question.clone(), true),
        (filter! { dns_query: ["^api\\."] }, get(), false),
    ] {
        assert_eq!(passes(filter.clone(), &flow), matches, "{filter:?}");
    }
    assert_eq!(path_of("http://h/a?b"), "/a");
    assert_eq!(path_of("http://h"), "/");
    assert_eq!(path_of("/a/b"), "/a/b");
}

#[test]
fn one_of_several_filters_is_enough_and_what_is_denied_is_not_told() {
    let (web, db) = (filter! { source_pod: ["shop/web"] }, filter! { source_pod: ["shop/db"] });
    assert!(Filters::new(&[db.clone(), web.clone()], &[]).unwrap().passes(&packet()));
    assert!(!Filters::new(std::slice::from_ref(&web), &[db, web.clone()]).unwrap().passes(&packet()));
    assert!(Filters::new(&[], &[]).unwrap().passes(&packet()));
    // A filter in which nothing is set matches everything.
    assert!(Filters::new(&[FlowFilter::default()], &[]).unwrap().passes(&packet()));
}

#[test]
fn a_filter_that_cannot_be_used_is_refused() {
    for filter in [
        filter! { source_ip: ["10.0.0"] },
        filter! { destination_port: ["http"] },
        filter! { http_status_code: ["600"] },
        filter! { http_status_code: ["40"] },
        filter! { http_path: ["("] },
        filter! { protocol: ["kafka"] },
        filter! { source_label: ["a b"] },
        filter! { node_labels: ["a=b"] },
        filter! { trace_id: ["1"] },
        FlowFilter {
            experimental: Some(crate::flow::flow_filter::Experimental { cel_expression: vec!["true".into()] }),
            ..Default::default()
        },
        FlowFilter { source_ip: vec!["10.0.0.1".into(); MOST], ..Default::default() },
        filter! { dns_query: ["(a{1000}){1000}"] },
    ] {
        assert!(Filters::new(&[], std::slice::from_ref(&filter)).is_err(), "{:?}", filter.source_ip.first());
    }
}
