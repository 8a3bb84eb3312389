//! Random objects of a cluster, out of few names, labels, addresses and ports, so that they meet often.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use sluice_policy_core::cluster::{
    CidrGroup, EndpointSlice, Event, Labels, NamedPort, Namespace, Node, Object, ObjectId, ObjectKey, Pod, PodKey,
    PodTemplate, Service, ServicePort, Uid, Visible,
};
use sluice_policy_core::flow::{AppProtocol, DNS_PORT, Direction, Protocol};
use sluice_policy_core::l7::dns::Name;
use sluice_policy_core::model::{Policy, PolicyKind, PolicyRef, Text};
use sluice_policy_core::parse::cilium::groups::AwsGroup;
use sluice_policy_core::settings::Settings;

use super::{Random, policies};

pub(crate) const NAMESPACES: [&str; 4] = ["a", "b", "c", "default"];
pub(crate) const NODES: [&str; 3] = ["n1", "n2", "n3"];
pub(crate) const APPS: [&str; 3] = ["x", "y", "z"];
pub(crate) const ROLES: [&str; 2] = ["p", "q"];
pub(crate) const TEAMS: [&str; 2] = ["red", "blue"];
pub(crate) const ACCOUNTS: [&str; 2] = ["default", "builder"];
pub(crate) const NAMES: [&str; 5] = ["example.com", "a.example.com", "b.example.com", "x.a.example.com", "example.org"];
/// Names of ports.
pub(crate) const PORT_NAMES: [&str; 3] = ["web", "dns", "metrics"];
/// The ports that objects and rules have. Flows go to these, and to those beside them.
pub(crate) const PORTS: [u16; 9] = [1, 53, 80, 81, 443, 8080, 8088, 30080, 65535];
/// One of [`PORTS`], often the same one.
pub(crate) fn port(random: &mut Random) -> u16 {
    if random.one_in(3) { 80 } else { *random.pick(&PORTS) }
}

/// TCP, UDP or SCTP, mostly TCP.
pub(crate) fn transport(random: &mut Random) -> Protocol {
    if random.one_in(2) { Protocol::TCP } else { *random.pick(&TRANSPORTS) }
}

pub(crate) const TRANSPORTS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];

/// Blocks that lie in one another, and end beside the addresses of pods, nodes, Services and the world.
pub(crate) const BLOCKS: [&str; 26] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.0/28",
    "10.0.0.4/30",
    "10.0.0.5/32",
    "10.0.0.3/32",
    "10.0.1.0/24",
    "10.0.1.1/32",
    "10.96.0.0/16",
    "10.96.0.1/32",
    "192.0.0.0/8",
    "192.0.2.0/24",
    "192.0.2.0/25",
    "192.0.2.128/25",
    "192.0.2.4/30",
    "192.0.2.5/32",
    "203.0.113.0/24",
    "::/0",
    "fd00::/64",
    "fd00::4/126",
    "fd00::5/128",
    "fd00:1::/64",
    "2001:db8::/32",
    "2001:db8::/126",
    "2001:db8::1/128",
];

/// Addresses of nobody in the cluster, some of them in a range of pods.
pub(crate) const WORLD: [&str; 10] = [
    "192.0.2.1",
    "192.0.2.4",
    "192.0.2.5",
    "192.0.2.127",
    "192.0.2.128",
    "203.0.113.7",
    "10.0.0.15",
    "198.51.100.1",
    "2001:db8::1",
    "2001:db8::4",
];

pub(crate) fn text(text: &str) -> Text {
    text.into()
}

/// One of these.
pub(crate) fn one_of(random: &mut Random, texts: &[&str]) -> Text {
    text(texts[random.below(texts.len())])
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn block(random: &mut Random) -> IpNet {
    random.pick(&BLOCKS).parse().unwrap()
}

/// Whose gates. Mostly those of a node that is known.
pub(crate) fn settings(random: &mut Random) -> Settings {
    let node = match random.below(24) {
        0 => None,
        1 => Some(text("nowhere")),
        _ => Some(text("n1")),
    };
    Settings { node, cilium_cidrs_match_managed: random.one_in(4) }
}

/// A cluster and its policies, as the events that make it.
pub(crate) fn world(random: &mut Random) -> Vec<Event> {
    let mut events = Vec::new();
    let mut add = |object: Object| events.push(Event::Upsert(object));
    for name in NAMESPACES {
        if !random.one_in(5) {
            add(Object::Namespace(namespace(random, name)));
        }
    }
    for name in NODES {
        if !random.one_in(6) {
            add(Object::Node(node(random, name)));
        }
    }
    for index in 0..random.between(3, PODS) {
        add(Object::Pod(pod(random, index)));
    }
    for index in 0..random.between(1, SERVICES) {
        add(Object::Service(service(random, index)));
    }
    for index in 0..random.between(2, SLICES) {
        add(Object::EndpointSlice(slice(random, index)));
    }
    for index in 0..random.below(GROUPS + 1) {
        add(Object::CidrGroup(cidr_group(random, index)));
    }
    // All dialects in most clusters; in some, one that would otherwise be seldom asked last.
    let only = random.below(6);
    let lenient = random.one_in(5);
    for _ in 0..random.between(2, 18) {
        let mut policy = policies::policy(random);
        if let (Policy::Cilium(policy), true) = (&mut policy, lenient) {
            for rule in &mut policy.rules {
                (rule.default_deny_ingress, rule.default_deny_egress) = (false, false);
            }
        }
        let wanted = match policy {
            Policy::Cluster(_) => only != 1,
            Policy::Network(_) => !matches!(only, 0 | 1),
            Policy::Cilium(_) => only != 0,
        };
        if wanted {
            add(Object::Policy(policy));
        }
    }
    for _ in 0..random.below(6) {
        events.push(resolved(random));
    }
    events
}

/// Something that happens to a cluster.
pub(crate) fn event(random: &mut Random) -> Event {
    match random.below(20) {
        0 => Event::Time(u64::try_from(random.below(40)).unwrap()),
        1..=3 => resolved(random),
        4..=8 => Event::Delete(id(random)),
        _ => Event::Upsert(object(random)),
    }
}

const PODS: usize = 9;
const SERVICES: usize = 4;
const SLICES: usize = 7;
const GROUPS: usize = 3;

fn object(random: &mut Random) -> Object {
    match random.below(16) {
        0 | 1 => {
            let name = *random.pick(&NAMESPACES);
            Object::Namespace(namespace(random, name))
        }
        2 => {
            let name = *random.pick(&NODES);
            Object::Node(node(random, name))
        }
        3..=6 => {
            let index = random.below(PODS);
            Object::Pod(pod(random, index))
        }
        7 => {
            let index = random.below(SERVICES);
            Object::Service(service(random, index))
        }
        8 | 9 => {
            let index = random.below(SLICES);
            Object::EndpointSlice(slice(random, index))
        }
        10 => {
            let index = random.below(GROUPS);
            Object::CidrGroup(cidr_group(random, index))
        }
        _ => Object::Policy(policies::policy(random)),
    }
}

fn id(random: &mut Random) -> ObjectId {
    match random.below(9) {
        0 => ObjectId::Namespace(one_of(random, &NAMESPACES)),
        1 => ObjectId::Node(one_of(random, &NODES)),
        2 | 3 => ObjectId::Pod(pod_key(random.below(PODS))),
        4 => ObjectId::Service(service_key(random.below(SERVICES))),
        5 => ObjectId::EndpointSlice(slice_key(random.below(SLICES))),
        6 => ObjectId::CidrGroup(group_name(random.below(GROUPS))),
        _ => ObjectId::Policy(policy_ref(random)),
    }
}

/// One of the few names that policies have.
pub(crate) fn policy_ref(random: &mut Random) -> PolicyRef {
    let kind = *random.pick(&[
        PolicyKind::AdminNetworkPolicy,
        PolicyKind::ClusterNetworkPolicy,
        PolicyKind::ClusterNetworkPolicy,
        PolicyKind::ClusterNetworkPolicy,
        PolicyKind::AwsClusterNetworkPolicy,
        PolicyKind::NetworkPolicy,
        PolicyKind::NetworkPolicy,
        PolicyKind::NetworkPolicy,
        PolicyKind::AwsApplicationNetworkPolicy,
        PolicyKind::CiliumNetworkPolicy,
        PolicyKind::CiliumNetworkPolicy,
        PolicyKind::CiliumNetworkPolicy,
        PolicyKind::CiliumClusterwideNetworkPolicy,
        PolicyKind::CiliumClusterwideNetworkPolicy,
        PolicyKind::BaselineAdminNetworkPolicy,
    ]);
    policy_ref_of(random, kind)
}

fn policy_ref_of(random: &mut Random, kind: PolicyKind) -> PolicyRef {
    let namespaced = matches!(
        kind,
        PolicyKind::NetworkPolicy | PolicyKind::AwsApplicationNetworkPolicy | PolicyKind::CiliumNetworkPolicy
    );
    let namespace = namespaced.then(|| one_of(random, &["a", "a", "b", "c"]));
    let name = match kind {
        // There is one in a cluster.
        PolicyKind::BaselineAdminNetworkPolicy => "default",
        _ => random.pick(&["one", "two", "three"]),
    };
    PolicyRef { kind, namespace, name: text(name) }
}

fn namespace(random: &mut Random, name: &str) -> Namespace {
    let mut labels = Vec::new();
    if !random.one_in(4) {
        labels.push((text("team"), one_of(random, &TEAMS)));
    }
    if random.one_in(3) {
        labels.push((text("env"), text("prod")));
    }
    // The API server does not let anyone; a file might.
    if random.one_in(12) {
        labels.push((text("kubernetes.io/metadata.name"), one_of(random, &NAMESPACES)));
    }
    Namespace { name: text(name), labels: Labels::new(labels) }
}

fn node(random: &mut Random, name: &str) -> Node {
    let mut labels = vec![(text("zone"), one_of(random, &["1", "2"]))];
    // What pods are called, too (CVE-2025-30163).
    if random.one_in(3) {
        labels.push((text("app"), one_of(random, &APPS)));
    }
    let index = name.trim_start_matches('n');
    let mut addresses = vec![address(&format!("10.0.1.{index}"))];
    if !random.one_in(3) {
        addresses.push(address(&format!("fd00:1::{index}")));
    }
    match random.below(12) {
        0 => addresses.push(pod_address(random)),
        1 => addresses.push(node_address(random)),
        2 => addresses.push(address(&format!("::ffff:10.0.1.1{index}"))),
        3 => addresses.push(world_address(random)),
        4 => addresses.clear(),
        _ => {}
    }
    Node { name: text(name), labels: Labels::new(labels), addresses }
}

fn pod_key(index: usize) -> PodKey {
    PodKey { namespace: text(["a", "b", "a", "c"][index % 4]), name: text(&format!("p{index}")) }
}

pub(crate) fn pod_address(random: &mut Random) -> IpAddr {
    if random.one_in(3) {
        address(&format!("fd00::{:x}", random.between(1, 9)))
    } else {
        address(&format!("10.0.0.{}", random.between(1, 9)))
    }
}

pub(crate) fn node_address(random: &mut Random) -> IpAddr {
    if random.one_in(3) {
        address(&format!("fd00:1::{}", random.between(1, 3)))
    } else {
        address(&format!("10.0.1.{}", random.between(1, 3)))
    }
}

pub(crate) fn world_address(random: &mut Random) -> IpAddr {
    address(WORLD[random.below(WORLD.len())])
}

fn pod(random: &mut Random, index: usize) -> Pod {
    let number = index + 1;
    let host_network = random.one_in(10);
    let mut addresses = vec![address(&format!("10.0.0.{number}"))];
    if random.one_in(2) {
        addresses.push(address(&format!("fd00::{number:x}")));
    }
    match random.below(16) {
        0 => addresses.push(pod_address(random)),
        1 => addresses = vec![pod_address(random)],
        2 => addresses.clear(),
        3 => addresses = vec![address(&format!("::ffff:10.0.0.{number}"))],
        4 => addresses = addresses.split_off(1),
        5 => addresses = vec![address(&format!("fd00::{number:x}")), address(&format!("10.0.0.{number}"))],
        6 => addresses.push(node_address(random)),
        _ => {}
    }
    if host_network {
        addresses = vec![node_address(random)];
    }
    let node = match random.below(14) {
        0 => None,
        1 => Some("n2"),
        2 => Some("nowhere"),
        _ => Some("n1"),
    };
    Pod {
        key: pod_key(index),
        uid: Uid::default(),
        created: one_of(random, &["", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]).as_ref().into(),
        labels: pod_labels(random),
        template: Arc::new(PodTemplate {
            service_account: one_of(random, &ACCOUNTS),
            ports: random.list(0, 3, named_port).into(),
            visible: visible(random),
        }),
        node: node.map(text),
        host_network,
        finished: random.one_in(14),
        addresses: addresses.into(),
        ready: random.one_in(2),
        audit: random.one_in(12),
    }
}

fn pod_labels(random: &mut Random) -> Labels {
    let mut labels = Vec::new();
    if !random.one_in(5) {
        labels.push((text("app"), one_of(random, &APPS)));
    }
    if random.one_in(2) {
        labels.push((text("role"), one_of(random, &ROLES)));
    }
    // What only the system may set (CVE-2023-39347), and names of reserved labels.
    match random.below(20) {
        0 => labels.push((text("io.kubernetes.pod.namespace"), one_of(random, &NAMESPACES))),
        1 => labels.push((text("io.cilium.k8s.namespace.labels.team"), one_of(random, &TEAMS))),
        2 => labels.push((text("io.cilium.k8s.policy.serviceaccount"), one_of(random, &ACCOUNTS))),
        3 => labels.push((one_of(random, &["host", "world", "kube-apiserver"]), text(""))),
        4 => labels.push((text("team"), one_of(random, &TEAMS))),
        _ => {}
    }
    Labels::new(labels)
}

/// What is to be seen of a pod; of most of them nothing.
fn visible(random: &mut Random) -> Box<[Visible]> {
    if !random.one_in(4) {
        return Box::default();
    }
    let mut found = BTreeMap::new();
    for _ in 0..random.between(1, 4) {
        let (protocol, application) = match random.below(5) {
            0 => (Protocol::UDP, AppProtocol::Dns),
            1 => (Protocol::TCP, AppProtocol::Dns),
            2 => (Protocol::TCP, AppProtocol::Tls),
            _ => (Protocol::TCP, AppProtocol::Http),
        };
        let (direction, port) = match application {
            AppProtocol::Dns => (Direction::Egress, if random.one_in(3) { port(random) } else { DNS_PORT }),
            _ => (*random.pick(&Direction::BOTH), port(random)),
        };
        found.insert((direction, protocol, port), application);
    }
    let visible = |((direction, protocol, port), application)| Visible { direction, protocol, port, application };
    found.into_iter().map(visible).collect()
}

fn named_port(random: &mut Random) -> NamedPort {
    let name = one_of(random, &PORT_NAMES);
    let protocol = transport(random);
    NamedPort { name, protocol, port: port(random) }
}

fn service_key(index: usize) -> ObjectKey {
    // The last one is the API server's.
    if index + 1 == SERVICES {
        return ObjectKey { namespace: text("default"), name: text("kubernetes") };
    }
    ObjectKey { namespace: text(NAMESPACES[index % 3]), name: text(&format!("s{index}")) }
}

fn service(random: &mut Random, index: usize) -> Service {
    let number = index + 1;
    let mut addresses = vec![address(&format!("10.96.0.{number}"))];
    if random.one_in(3) {
        addresses.push(address(&format!("fd00:96::{number}")));
    }
    match random.below(14) {
        // Headless.
        0 | 1 => addresses.clear(),
        // An external address, which may be anyone's.
        2 => addresses.push(world_address(random)),
        3 => addresses.push(node_address(random)),
        4 => addresses.push(pod_address(random)),
        // Another Service's.
        5 => addresses.push(address("10.96.0.2")),
        _ => {}
    }
    let mut ports: Vec<ServicePort> = Vec::new();
    for index in 0..random.between(1, 3) {
        let protocol = transport(random);
        let port = port(random);
        let node_port = random.maybe(3, |random| *random.pick(&[30080, 30081]));
        let same = |one: &ServicePort| {
            one.protocol == protocol && (one.port == port || one.node_port.is_some() && one.node_port == node_port)
        };
        if !ports.iter().any(same) {
            ports.push(ServicePort { name: text(["", "web", "dns"][index]), protocol, port, node_port });
        }
    }
    let labels = random.maybe(2, |random| (text("app"), one_of(random, &APPS)));
    let selector = random.maybe(2, |random| Labels::new([(text("app"), one_of(random, &APPS))]));
    Service {
        key: service_key(index),
        labels: Labels::new(labels),
        addresses: addresses.into(),
        ports: ports.into(),
        selector,
    }
}

fn slice_key(index: usize) -> ObjectKey {
    let mut key = service_key(index % SERVICES);
    key.name = text(&format!("{}-{index}", key.name));
    key
}

fn slice(random: &mut Random, index: usize) -> EndpointSlice {
    let key = slice_key(index);
    let service = service_key(index % SERVICES).name;
    let service = if random.one_in(12) { None } else { Some(service) };
    let mut ports: Vec<NamedPort> = Vec::new();
    for name in ["", "web", "dns"] {
        for protocol in TRANSPORTS {
            if !random.one_in(3) {
                ports.push(NamedPort { name: text(name), protocol, port: port(random) });
            }
        }
    }
    let ready = random.list(0, 5, |random| match random.below(6) {
        0 => node_address(random),
        1 => world_address(random),
        _ => pod_address(random),
    });
    EndpointSlice { key, service, ports: ports.into(), ready: ready.into_iter().collect() }
}

/// Security groups of which the first one is resolved, now and then.
pub(crate) const SECURITY_GROUPS: [&str; 2] = ["sg-1", "sg-9"];

/// The CiliumCIDRGroup that stands for a security group.
pub(crate) fn aws_group(id: &str) -> Text {
    AwsGroup { ids: [text(id)].into(), ..AwsGroup::default() }.cidr_group_name()
}

fn group_name(index: usize) -> Text {
    if index + 1 == GROUPS { aws_group(SECURITY_GROUPS[0]) } else { text(&format!("g{index}")) }
}

fn cidr_group(random: &mut Random, index: usize) -> CidrGroup {
    let labels = random.maybe(2, |random| (text("team"), one_of(random, &TEAMS)));
    // Rules only point to groups, so there have to be more bad ones of them than of rules to be met as often.
    let cidrs = policies::usable_but(4, random, |random| random.list(0, 3, block));
    CidrGroup { name: group_name(index), labels: Labels::new(labels), cidrs }
}

fn resolved(random: &mut Random) -> Event {
    let addresses = random.list(1, 2, |random| match random.below(8) {
        0 => pod_address(random),
        1 => node_address(random),
        2 => address("::ffff:192.0.2.5"),
        _ => world_address(random),
    });
    let until = random.maybe(2, |random| u64::try_from(random.below(40)).unwrap());
    Event::Resolved { name: Name::new(NAMES[random.below(NAMES.len())]).unwrap(), addresses, until }
}
