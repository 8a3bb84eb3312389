//! Real packets between two pods of a node, under policies that the compiler has compiled.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use sluice_hostnet::conntrack;
use sluice_hostnet::netlink::Netlink;
use sluice_hostnet::netns::Namespace;

use super::*;
use crate::events::Event;
use crate::filters::Filters;
use crate::layout::{DropReason, EventKind, FlowDirection, Verdict};

/// A packet that is dropped is not answered: so long one waits for an answer that does not come.
const SILENCE: Duration = Duration::from_millis(300);
const DEADLINE: Duration = Duration::from_secs(5);

fn sh(namespace: Option<&Namespace>, script: &str) {
    let run = || Command::new("sh").args(["-ec", script]).output().unwrap();
    let output = match namespace {
        Some(namespace) => namespace.run(run).unwrap(),
        None => run(),
    };
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A pod: its namespace, joined to the host as the primary plugin does it.
struct Pod {
    namespace: Namespace,
    index: u32,
    v4: IpAddr,
    v6: IpAddr,
}

impl Pod {
    async fn new(netlink: &Netlink, number: u8) -> Self {
        let namespace = Namespace::new_unbound().unwrap();
        let host = IfName::new(format!("eni{number}")).unwrap();
        let spec = sluice_hostnet::netlink::VethSpec {
            name: &host,
            mac: None,
            up: true,
            peer_name: &IfName::new("eth0").unwrap(),
            peer_mac: None,
            peer_namespace: Some(&namespace),
            mtu: 1500,
        };
        let link = netlink.create_veth(&spec).await.unwrap();
        let mac = link.mac.unwrap();
        let (v4, v6) = (format!("10.0.0.{number}"), format!("2001:db8:1::{number}"));
        sh(
            Some(&namespace),
            &format!(
                "sysctl -qw net.ipv6.conf.eth0.accept_dad=0
                 ip link set lo up; ip link set eth0 up
                 ip addr add {v4}/32 dev eth0; ip addr add {v6}/128 dev eth0 nodad
                 ip route add 169.254.1.1 dev eth0; ip route add default via 169.254.1.1 dev eth0
                 ip neigh add 169.254.1.1 dev eth0 lladdr {mac} nud permanent
                 ip -6 neigh add fe80::1 dev eth0 lladdr {mac} nud permanent
                 ip -6 route add default via fe80::1 dev eth0"
            ),
        );
        sh(None, &format!("ip route add {v4} dev {host}; ip -6 route add {v6} dev {host}"));
        Self { namespace, index: link.index, v4: v4.parse().unwrap(), v6: v6.parse().unwrap() }
    }

    fn listen(&self, port: u16) -> [TcpListener; 2] {
        self.namespace
            .run(|| [self.v4, self.v6].map(|address| TcpListener::bind(SocketAddr::new(address, port)).unwrap()))
            .unwrap()
    }

    fn connect(&self, to: IpAddr, port: u16) -> io::Result<TcpStream> {
        let wait = if port == 81 { SILENCE } else { DEADLINE };
        self.connect_within(to, port, wait)
    }

    fn connect_within(&self, to: IpAddr, port: u16, wait: Duration) -> io::Result<TcpStream> {
        self.namespace.run(|| TcpStream::connect_timeout(&SocketAddr::new(to, port), wait)).unwrap()
    }
}

struct Two {
    node: Node,
    filters: Filters,
    db: Pod,
    api: Pod,
}

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: api}}}]
    ports: [{port: 80}]
";

impl Two {
    async fn new() -> Self {
        sh(
            None,
            "ip link set lo up
             sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0",
        );
        let (gate, _) = open();
        let netlink = Netlink::open().unwrap();
        let (db, api) = (Pod::new(&netlink, 1).await, Pod::new(&netlink, 2).await);
        let filters = Filters::new(gate.programs(), netlink);
        let mut two = Self { node: Node::new(gate), filters, db, api };
        two.gate_all().await;
        two.node.tell(&pod("db", "{ip: 10.0.0.1}, {ip: '2001:db8:1::1'}", "{app: db}", "n1"));
        two.node.tell(&pod("api", "{ip: 10.0.0.2}, {ip: '2001:db8:1::2'}", "{app: api}", "n1"));
        two
    }

    async fn gate_all(&mut self) {
        for (name, pod) in [("db", &self.db), ("api", &self.api)] {
            let addresses = vec![pod.v4, pod.v6];
            self.node.gate.bind(&key(name), Interface { addresses, ..interface(pod.index, &[]) }).unwrap();
            self.filters.attach(pod.index).await.unwrap();
        }
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.node.gate.counters().unwrap().drops.get(&reason).map_or(0, |counter| counter.packets)
    }

    fn flows(&self) -> BTreeMap<layout::ConnectionKey, layout::Connection> {
        let mut flows = BTreeMap::new();
        let maps = &self.node.gate.maps;
        maps.read("connections", |key, connection| {
            flows.insert(key, connection);
        })
        .unwrap();
        flows
    }
}

fn send(stream: &mut TcpStream, peer: &mut TcpStream) -> io::Result<()> {
    use io::{Read, Write};
    stream.write_all(b"x")?;
    peer.set_read_timeout(Some(SILENCE))?;
    peer.read_exact(&mut [0; 1])
}

#[test]
fn policy_holds_in_both_families_and_tells_what_decided() {
    on_a_node(|| async {
        let mut two = Two::new().await;
        let (_web, _closed) = (two.db.listen(80), two.db.listen(81));
        for address in [two.db.v4, two.db.v6] {
            two.api.connect(address, 81).unwrap_or_else(|error| panic!("{address}, without policy: {error}"));
        }
        two.node.tell(POLICY);
        let mut events = two.node.gate.events().unwrap();
        assert!(two.node.gate.events().is_none(), "there is one reader");
        while events.take().is_some() {}
        for address in [two.db.v4, two.db.v6] {
            two.api.connect(address, 80).unwrap_or_else(|error| panic!("{address}, allowed: {error}"));
            let denied = two.api.connect(address, 81).unwrap_err();
            assert_eq!(denied.kind(), io::ErrorKind::TimedOut, "a denied packet is dropped silently");
        }
        assert!(two.drops(DropReason::Policy) >= 2);
        let seen: Vec<Event> = std::iter::from_fn(|| events.take()).collect();
        assert_eq!(events.unreadable(), 0);
        let at_db = |event: &&Event| event.interface == two.db.index && event.direction == FlowDirection::Ingress;
        // Not what is left of the flows from before the policy: an opening packet.
        let opens = |event: &&Event| event.flags == 2 && event.own.address == two.db.v4;
        let dropped = seen.iter().filter(at_db).filter(opens).find(|event| event.kind == EventKind::Drop);
        let dropped = dropped.unwrap_or_else(|| panic!("{seen:#?}"));
        assert_eq!((dropped.own.port, dropped.peer.address), (81, two.api.v4));
        assert_eq!((dropped.reason, dropped.verdict), (DropReason::Policy, Some(Verdict::Deny)));
        assert_eq!(two.node.gate.pod_of(dropped.endpoint.unwrap()), Some(&key("db")));
        let image = two.node.engine.image();
        let reason = &image.decisions[&dropped.decision.unwrap()].reason;
        assert_eq!(reason.to_string(), "NetworkPolicy shop/db isolates the pod, and no rule allows this");
        let allowed = seen.iter().filter(at_db).filter(opens).find(|event| event.kind == EventKind::Flow);
        let allowed = allowed.unwrap_or_else(|| panic!("{seen:#?}"));
        assert_eq!((allowed.own.port, allowed.verdict), (80, Some(Verdict::Allow)));
        let decision = allowed.decision.unwrap();
        assert_eq!(image.decisions[&decision].reason.to_string(), "NetworkPolicy shop/db, ingress[0]");
        let counters = two.node.gate.counters().unwrap();
        assert!(counters.decisions[&decision].packets >= 2, "{counters:?}");
    });
}

#[test]
fn established_flows_are_cut_by_a_change_and_by_lockdown() {
    on_a_node(|| async {
        let mut two = Two::new().await;
        two.node.tell(POLICY);
        let [listener, _] = two.db.listen(80);
        let mut client = two.api.connect(two.db.v4, 80).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        send(&mut client, &mut server).unwrap();
        // The peer is no api any more.
        two.node.tell(&pod("api", "{ip: 10.0.0.2}, {ip: '2001:db8:1::2'}", "{app: other}", "n1"));
        send(&mut client, &mut server).unwrap_err();
        two.node.tell(&pod("api", "{ip: 10.0.0.2}, {ip: '2001:db8:1::2'}", "{app: api}", "n1"));
        let deadline = Instant::now() + DEADLINE;
        while send(&mut client, &mut server).is_err() {
            assert!(Instant::now() < deadline, "the flow goes on when it is allowed again");
        }
        two.node.gate.lock_down(&key("db")).unwrap();
        while send(&mut client, &mut server).is_ok() {}
        assert!(two.drops(DropReason::Lockdown) > 0);
    });
}

#[test]
fn a_restart_keeps_flows_and_an_unbound_pod_is_cut_off() {
    on_a_node(|| async {
        let mut two = Two::new().await;
        two.node.tell(POLICY);
        let [listener, _] = two.db.listen(80);
        let mut client = two.api.connect(two.db.v4, 80).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let Two { node, filters, db, api } = two;
        let Node { gate, engine } = node;
        drop((gate, filters));
        send(&mut client, &mut server).expect("policyd is down, its gates are not");

        let (mut gate, found) = open();
        assert_eq!(found.endpoints.len(), 2);
        let filters = Filters::new(gate.programs(), Netlink::open().unwrap());
        for (name, pod) in [("db", &db), ("api", &api)] {
            let addresses = vec![pod.v4, pod.v6];
            let bound = gate.bind(&key(name), Interface { addresses, ..interface(pod.index, &[]) }).unwrap();
            assert_eq!(bound, Bound::Kept);
            filters.attach(pod.index).await.unwrap();
            send(&mut client, &mut server).unwrap();
        }
        for operation in sluice_policy_core::compile::diff::diff(&Image::default(), engine.image()) {
            gate.apply(&operation).unwrap();
            send(&mut client, &mut server).unwrap_or_else(|error| panic!("after {operation:?}: {error}"));
        }
        assert_eq!(gate.sweep(engine.image()).unwrap(), Swept::default());
        send(&mut client, &mut server).unwrap();
        gate.unbind(db.index).unwrap();
        send(&mut client, &mut server).unwrap_err();
    });
}

#[test]
fn flows_that_were_there_before_the_gate_go_on_and_are_judged() {
    on_a_node(|| async {
        let mut two = Two::new().await;
        sh(None, "nft 'table inet t { chain c { type filter hook forward priority 0; ct state new accept; }; }'");
        for pod in [&two.db, &two.api] {
            sh(None, &format!("tc qdisc del dev eni{} clsact", if pod.index == two.db.index { 1 } else { 2 }));
        }
        let [listener, _] = two.db.listen(80);
        let [forbidden, _] = two.db.listen(82);
        let mut client = two.api.connect(two.db.v4, 80).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut bad_client = two.api.connect(two.db.v4, 82).unwrap();
        let (mut bad_server, _) = forbidden.accept().unwrap();
        two.node.tell(POLICY);

        let namespace = Namespace::current().unwrap();
        let own = [two.db.v4, two.api.v4];
        let flows = conntrack::flows(&namespace, 100, |flow| own.contains(&flow.original.source)).unwrap();
        assert_eq!(flows.len(), 2, "{flows:?}");
        let seeded = two.node.gate.seed(two.db.index, &flows, |_| false, Ktime::now()).unwrap();
        assert_eq!(seeded, 2);
        assert_eq!(two.node.gate.seed(two.db.index, &flows, |_| false, Ktime::now()).unwrap(), 0, "once");
        // As if it had stood at one direction a moment before the other: an answer is taken for the begin of a flow.
        let is_forbidden = |key: &layout::ConnectionKey| key.own == two.db.v4.into() && key.own_port == 82;
        let (forbidden_key, right) = two.flows().into_iter().find(|(key, _)| is_forbidden(key)).unwrap();
        assert_eq!(right.direction, FlowDirection::Ingress.number());
        let wrong = layout::Connection { direction: FlowDirection::Egress.number(), ..right };
        two.node.gate.maps.connections.insert(forbidden_key, wrong, 0).unwrap();
        assert_eq!(two.node.gate.seed(two.db.index, &flows, |_| false, Ktime::now()).unwrap(), 1);
        assert_eq!(two.flows()[&forbidden_key].direction, right.direction);
        let seeded = two.node.gate.seed(two.api.index, &flows, |_| false, Ktime::now()).unwrap();
        assert_eq!(seeded, 2, "as the other pod sees them");
        two.gate_all().await;

        // Whoever speaks first: here the side that did not open the flow.
        send(&mut server, &mut client).expect("the flow goes on");
        send(&mut bad_server, &mut bad_client).expect_err("policy does not allow this one");
        let connection = two.flows().into_iter().find(|(key, _)| key.own == two.db.v4.into() && key.own_port == 80);
        assert_eq!(connection.unwrap().1.verdict(), Some(Verdict::Allow));
    });
}

#[test]
fn flows_past_their_time_and_of_pods_that_are_gone_are_forgotten() {
    on_a_node(|| async {
        let mut two = Two::new().await;
        let socket = two.api.namespace.run(|| UdpSocket::bind("10.0.0.2:0").unwrap()).unwrap();
        for port in 1000..1400_u16 {
            socket.send_to(b"x", (two.db.v4, port)).unwrap();
        }
        let flows = two.flows().len();
        assert!(flows >= 800, "{flows}");
        let now = Ktime::now();
        let mut steps = 0;
        let walk = |two: &mut Two, now: Ktime, steps: &mut usize| {
            let (mut seen, mut removed) = (0, 0);
            loop {
                let step = two.node.gate.expire(now, 300).unwrap();
                (seen, removed) = (seen + step.seen, removed + step.removed);
                *steps += 1;
                assert!(step.seen <= 300);
                if step.flows.is_some() {
                    return (seen, removed, step.flows);
                }
            }
        };
        assert_eq!(walk(&mut two, now, &mut steps), (flows, 0, Some(flows)), "nothing is past its time");
        assert!(steps >= 3, "bounded steps");
        // One pod goes, and its flows with it.
        let (api, of_api) = (two.api.index, entries(&two.node.gate)[&two.api.index].id);
        let left = two.flows().keys().filter(|key| key.endpoint != of_api).count();
        two.node.gate.unbind(api).unwrap();
        two.node.gate.forget(api).unwrap();
        walk(&mut two, now, &mut steps);
        assert_eq!(two.flows().len(), left);
        // An hour later.
        walk(&mut two, now.plus(Duration::from_secs(3600)), &mut steps);
        assert_eq!(two.flows().len(), 0);
    });
}

#[test]
fn promotion_loses_no_packet_and_judges_once() {
    on_a_node(|| async {
        let mut two = Two::new().await;
        two.node.tell(POLICY);
        let [listener, _] = two.db.listen(80);
        let _closed = two.db.listen(81);
        let mut client = two.api.connect(two.db.v4, 80).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut links = crate::links::Links::open(Path::new(ROOT)).unwrap();
        links.promote(two.db.index, &IfName::new("eni1").unwrap()).unwrap();
        send(&mut client, &mut server).unwrap();
        two.filters.leave_to_links(two.db.index).await.unwrap();
        send(&mut client, &mut server).unwrap();
        let decision = {
            let before = two.node.gate.counters().unwrap().decisions;
            two.api.connect(two.db.v4, 80).unwrap();
            let after = two.node.gate.counters().unwrap().decisions;
            let grown = after
                .iter()
                .filter(|(id, counter)| before.get(id).is_none_or(|before| before.packets < counter.packets));
            grown.map(|(id, counter)| counter.packets - before.get(id).map_or(0, |b| b.packets)).collect::<Vec<_>>()
        };
        assert_eq!(decision, [1], "one judgement of a new flow");
        two.api.connect(two.db.v4, 81).unwrap_err();
    });
}

/// A Service of one family, and what stands behind it.
struct Service {
    v6: bool,
    address: &'static str,
    /// The node's own address.
    node: &'static str,
    /// The pod's.
    db: &'static str,
}

const SERVICES: [Service; 2] = [
    Service { v6: false, address: "10.96.0.1", node: "10.0.0.254", db: "10.0.0.1" },
    Service { v6: true, address: "fd00:96::1", node: "2001:db8:1::fe", db: "2001:db8:1::1" },
];

impl Service {
    fn objects(&self) -> String {
        let Self { v6, address, node, db } = self;
        let family = if *v6 { "IPv6" } else { "IPv4" };
        format!(
            "
apiVersion: v1
kind: Service
metadata: {{name: s, namespace: shop}}
spec: {{clusterIP: '{address}', clusterIPs: ['{address}'], ports: [{{port: 80, targetPort: 8080, name: a}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: s-1, namespace: shop, labels: {{kubernetes.io/service-name: s}}}}
addressType: {family}
ports: [{{name: a, port: 8080, protocol: TCP}}]
endpoints:
- {{addresses: ['{db}'], conditions: {{ready: true}}}}
- {{addresses: ['{node}'], conditions: {{ready: true}}}}
"
        )
    }

    /// The service proxy has chosen the backend on the node.
    fn choose_node(&self) {
        let Self { v6, address, node, .. } = self;
        let (ip, bits, to) =
            if *v6 { ("ip6", "128 nodad", format!("[{node}]")) } else { ("ip", "32", (*node).to_owned()) };
        sh(
            None,
            &format!(
                "ip addr add {node}/{bits} dev lo
                 nft 'table {ip} proxy {{ chain pre {{ type nat hook prerouting priority -100
                   {ip} daddr {address} tcp dport 80 dnat to {to}:8080
                 }}
                 }}'"
            ),
        );
    }
}

fn egress(to: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: api, namespace: shop}}, \
         spec: {{podSelector: {{matchLabels: {{app: api}}}}, policyTypes: [Egress], egress: [{to}]}}}}"
    )
}

#[test]
fn a_service_with_a_backend_on_the_node_itself_is_judged_at_local_input() {
    for service in SERVICES {
        on_a_node(|| judged_at_local_input(service));
    }
}

async fn judged_at_local_input(of: Service) {
    let mut two = Two::new().await;
    of.choose_node();
    let backend: SocketAddr = SocketAddr::new(of.node.parse().unwrap(), 8080);
    let listener = TcpListener::bind(backend).unwrap();
    let service: IpAddr = of.address.parse().unwrap();
    two.node.tell(&of.objects());
    two.api.connect(service, 80).expect("no policy");
    // The other backend would be allowed. Where nothing sees which one it is before it has the packet, its answer tells.
    two.node.tell(&egress("{to: [{podSelector: {matchLabels: {app: db}}}]}"));
    two.api.connect_within(service, 80, SILENCE).expect_err("the answer does not come");
    assert!(two.drops(DropReason::Backend) > 0);

    crate::local::attach(Path::new(ROOT)).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let mut events = two.node.gate.events().unwrap();
    while events.take().is_some() {}
    two.api.connect_within(service, 80, SILENCE).expect_err("the backend that was chosen is not allowed");
    assert!(two.drops(DropReason::Backend) > 0);
    let seen: Vec<Event> = std::iter::from_fn(|| events.take()).collect();
    let dropped = seen.iter().find(|event| event.kind == EventKind::Drop).unwrap_or_else(|| panic!("{seen:#?}"));
    assert_eq!(dropped.hook, layout::Hook::LocalInput);
    assert_eq!((dropped.peer.address, dropped.peer.port), (service, 80));
    let other = dropped.other.unwrap();
    assert_eq!(SocketAddr::new(other.address, other.port), backend);
    let reason = &two.node.engine.image().decisions[&dropped.decision.unwrap()].reason;
    assert_eq!(reason.to_string(), "NetworkPolicy shop/api isolates the pod, and no rule allows this");

    let bits = if of.v6 { 128 } else { 32 };
    let to = format!("{{to: [{{ipBlock: {{cidr: '{}/{bits}'}}}}], ports: [{{port: 8080}}]}}", of.node);
    two.node.tell(&egress(&to));
    let mut client = two.api.connect(service, 80).expect("the backend is allowed");
    let port = client.local_addr().unwrap().port();
    let mut accepted = listener.incoming().map(Result::unwrap);
    let mut server = accepted.find(|server| server.peer_addr().unwrap().port() == port).unwrap();
    // A newer process takes the place of the older one; neither leaves a gap, and the flow goes on.
    crate::local::attach(Path::new(ROOT)).unwrap();
    crate::local::attach(Path::new(ROOT)).unwrap();
    send(&mut client, &mut server).unwrap();
    assert_eq!(pins(&Path::new(ROOT).join("links")), ["local4", "local6"]);
    two.node.tell(&egress("{to: [{podSelector: {matchLabels: {app: db}}}]}"));
    send(&mut server, &mut client).expect_err("an established flow is cut as well, whoever speaks first");
    send(&mut client, &mut server).expect_err("in both directions");
    // What no pod sends is nobody's business, nor what a pod sends to the node itself where policy allows that.
    TcpStream::connect_timeout(&backend, DEADLINE).unwrap();
    crate::local::detach(Path::new(ROOT)).unwrap();
    crate::local::detach(Path::new(ROOT)).unwrap();
    two.api.connect_within(service, 80, SILENCE).expect_err("and again the answer does not come");
}
