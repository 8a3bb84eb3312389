//! What is translated: a host with two pods and an uplink, and nftables in the place of a service proxy.
//!
//! Here the programs read connection tracking, which packets of a test run do not have.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use aya::programs::TcAttachType;
use sluice_hostnet::netns::Namespace;
use sluice_policy_bpf::layout::{
    Address, Connection, ConnectionKey, DropReason, Endpoint, Event, EventKind, FlowDirection, FlowOrigin, Hook,
    OwnAddress, Verdict,
};

use crate::kernel::{may_run, prefix};
use crate::pod::{ALLOW, DENY, Family, NO_BACKENDS, NONE, ONLY_NODE, ONLY_SERVER, PORT, Pod, SERVICES, families};

/// Where backends listen.
const BACKEND: u16 = 8080;
/// How long a packet that is not dropped may take on a busy machine; and how long is waited for one that is.
const PATIENCE: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(400);

/// The pods' numbers.
const CLIENT_ID: u32 = 7;
const SERVER_ID: u32 = 8;

struct Host {
    host: Namespace,
    client: Namespace,
    server: Namespace,
    world: Namespace,
    pod: Pod,
    /// One in each namespace, for as long as the host is there: a port that is bound anew may still be held by a process that
    /// another test is about to start.
    listeners: [(Namespace, TcpListener); 3],
    /// The endpoints of the two pods, and their interfaces.
    endpoints: [(u32, Endpoint); 2],
    family: Family,
}

fn run(namespace: &Namespace, program: &str, arguments: &str, input: &str) {
    let output = namespace.run(|| {
        let mut child = Command::new(program)
            .args(arguments.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    });
    let output = output.unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A link to another namespace: `name` here, `eth0` there. Routes lead there and back.
fn link(host: &Namespace, name: &str, there: &Namespace, family: Family, address: IpAddr) {
    let (ip, gateway) = if family.own.is_ipv4() { ("-4", "169.254.1.1/32") } else { ("-6", "fe80::1/64") };
    let path = format!("/proc/{}/fd/{}", std::process::id(), there.as_fd().as_raw_fd());
    run(host, "ip", &format!("link add {name} type veth peer name eth0 netns {path}"), "");
    run(
        host,
        "ip",
        &format!("{ip} address add {gateway} dev {name} {}", if family.own.is_ipv4() { "" } else { "nodad" }),
        "",
    );
    run(host, "ip", &format!("link set {name} up"), "");
    let bits = if family.own.is_ipv4() { 32 } else { 128 };
    run(there, "ip", "link set lo up", "");
    run(
        there,
        "ip",
        &format!("{ip} address add {address}/{bits} dev eth0 {}", if bits == 32 { "" } else { "nodad" }),
        "",
    );
    run(there, "ip", "link set eth0 up", "");
    let gateway = gateway.split('/').next().unwrap();
    run(there, "ip", &format!("{ip} route add default via {gateway} dev eth0 onlink"), "");
    run(host, "ip", &format!("{ip} route add {address} dev {name}"), "");
}

impl Host {
    fn new(family: Family) -> Self {
        let [host, client, server, world] = [(); 4].map(|()| Namespace::new_unbound().unwrap());
        run(&host, "ip", "link set lo up", "");
        link(&host, "client", &client, family, family.own);
        link(&host, "server", &server, family, family.server);
        link(&host, "uplink", &world, family, family.other);
        let node = if family.own.is_ipv4() { "10.0.0.9/32" } else { "2001:db8::9/128 nodad" };
        run(&host, "ip", &format!("address add dev lo {node}"), "");
        host.run(|| {
            for (file, value) in [
                ("ipv4/conf/all/forwarding", "1"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/client/rp_filter", "0"),
                ("ipv4/conf/client/accept_local", "1"),
            ] {
                std::fs::write(format!("/proc/sys/net/{file}"), value).unwrap();
            }
        })
        .unwrap();
        let mut pod = Pod::new();
        let endpoints = host
            .run(|| {
                pod.kernel.attach(Hook::FromPod, "client", TcAttachType::Ingress);
                pod.kernel.attach(Hook::ToPod, "client", TcAttachType::Egress);
                pod.kernel.attach(Hook::FromPod, "server", TcAttachType::Ingress);
                pod.kernel.attach(Hook::ToPod, "server", TcAttachType::Egress);
                pod.kernel.attach(Hook::Uplink, "uplink", TcAttachType::Egress);
                [("client", CLIENT_ID, family.own), ("server", SERVER_ID, family.server)].map(|(name, id, own)| {
                    let mut endpoint = Endpoint { id, revision: 1, ..Endpoint::default() };
                    endpoint.addresses[0] = OwnAddress { address: own.into(), ..OwnAddress::default() };
                    (nix::net::if_::if_nametoindex(name).unwrap(), endpoint)
                })
            })
            .unwrap();
        let listeners = [(&client, family.own), (&server, family.server), (&world, family.other)]
            .map(|(at, address)| (at.clone(), at.run(|| TcpListener::bind((address, BACKEND)).unwrap()).unwrap()));
        let mut this = Self { host, client, server, world, pod, listeners, endpoints, family };
        this.client(NONE);
        this.server(NONE);
        this
    }

    /// The service proxy sends the Service's port there; and masquerades, where that is asked for.
    fn serve(&self, backend: IpAddr, masquerade: bool) {
        let (ip, family) = if backend.is_ipv4() { ("ip", "") } else { ("ip6", "[]") };
        let to = if family.is_empty() { format!("{backend}:{BACKEND}") } else { format!("[{backend}]:{BACKEND}") };
        let masquerade = if masquerade { "ct status dnat masquerade" } else { "" };
        let rules = format!(
            "table {ip} proxy\ndelete table {ip} proxy\ntable {ip} proxy {{\n chain pre {{\n \
             type nat hook prerouting priority -100;\n {ip} daddr {} tcp dport {PORT} dnat to {to}\n }}\n \
             chain post {{\n type nat hook postrouting priority 100;\n {masquerade}\n }}\n}}\n",
            self.family.service
        );
        run(&self.host, "nft", "-f -", &rules);
    }

    /// The same of datagrams, masqueraded.
    fn serve_datagrams(&self, backend: IpAddr) {
        let ip = if backend.is_ipv4() { "ip" } else { "ip6" };
        let rules = format!(
            "table {ip} datagrams {{\n chain pre {{\n type nat hook prerouting priority -100;\n \
             {ip} daddr {} udp dport {PORT} dnat to {}\n }}\n \
             chain post {{\n type nat hook postrouting priority 100;\n ct status dnat masquerade\n }}\n}}\n",
            self.family.service,
            SocketAddr::from((backend, BACKEND)),
        );
        run(&self.host, "nft", "-f -", &rules);
    }

    /// The client may send what this policy allows.
    fn client(&mut self, egress: u32) {
        self.endpoints[0].1.egress = egress;
        self.write(0);
    }

    /// The server may get what this policy allows.
    fn server(&mut self, ingress: u32) {
        self.endpoints[1].1.ingress = ingress;
        self.write(1);
    }

    fn write(&mut self, index: usize) {
        let (interface, endpoint) = &mut self.endpoints[index];
        endpoint.revision += 1;
        self.pod.kernel.put(*interface, *endpoint);
        self.pod.kernel.events();
    }

    fn service(&self) -> SocketAddr {
        (self.family.service, PORT).into()
    }

    /// Whether one in a namespace reaches another's listener at an address.
    fn reach(&self, from: &Namespace, at: &Namespace, to: SocketAddr, patience: Duration) -> std::io::Result<Open> {
        let (_, listener) = self.listeners.iter().find(|(namespace, _)| namespace == at).unwrap();
        let near = from.run(|| TcpStream::connect_timeout(&to, patience)).unwrap()?;
        let (far, peer) = listener.accept()?;
        Ok(Open { near, far, peer })
    }
}

/// A connection.
struct Open {
    near: TcpStream,
    far: TcpStream,
    /// Whom the server sees.
    peer: SocketAddr,
}

impl Open {
    /// Whether a byte gets through, there and back.
    fn works(&mut self, patience: Duration) -> bool {
        let mut byte = [0];
        for (from, to) in [(&self.near, &self.far), (&self.far, &self.near)] {
            to.set_read_timeout(Some(patience)).unwrap();
            let (mut from, mut to) = (from, to);
            if from.write_all(b"x").is_err() || to.read_exact(&mut byte).is_err() {
                return false;
            }
        }
        true
    }
}

/// Runs a test on a host for each family.
fn on_a_host(test: impl Fn(&mut Host)) {
    if !may_run() {
        return;
    }
    for family in families() {
        test(&mut Host::new(family));
    }
}

/// The last segment that was dropped: where, whose, and why.
fn dropped(host: &mut Host) -> Option<(Hook, u32, DropReason)> {
    let events = host.pod.kernel.events();
    let last = events.iter().rev().find(|event| event.kind == EventKind::Drop.number() && event.protocol == 6)?;
    Some((hook(last), last.endpoint, DropReason::of(last.reason).unwrap()))
}

/// Whether a segment was dropped at the uplink for its backend. Not the last one alone: what the other side repeats of a
/// flow that is denied is dropped before the pod.
fn dropped_at_uplink(host: &mut Host) -> bool {
    let dropped = |event: &Event| event.kind == EventKind::Drop.number() && hook(event) == Hook::Uplink;
    let backend = |event: &Event| event.endpoint == CLIENT_ID && event.reason == DropReason::Backend.number();
    host.pod.kernel.events().iter().any(|event| dropped(event) && backend(event))
}

fn hook(event: &Event) -> Hook {
    *Hook::ALL.iter().find(|hook| hook.number() == event.hook).unwrap()
}

#[test]
fn a_backend_on_the_node_is_judged_at_its_gate() {
    on_a_host(|host| {
        let family = host.family;
        host.serve(family.server, false);
        host.client(SERVICES);
        let (client, server, service) = (host.client.clone(), host.server.clone(), host.service());
        let mut open = host.reach(&client, &server, service, PATIENCE).unwrap();
        assert_eq!(open.peer.ip(), family.own);
        assert!(open.works(PATIENCE));
        let events = host.pod.kernel.events();
        let backend: Vec<_> = events.iter().filter(|event| event.kind == EventKind::Backend.number()).collect();
        let [event] = backend[..] else { panic!("{events:#?}") };
        assert_eq!((hook(event), event.endpoint), (Hook::ToPod, CLIENT_ID));
        assert_eq!((IpAddr::from(event.peer), event.peer_port), (family.service, PORT));
        assert_eq!((IpAddr::from(event.other), event.other_port), (family.server, BACKEND));
        // It is denied, and so is what was open.
        host.client(NO_BACKENDS);
        assert!(!open.works(SILENCE));
        assert_eq!(dropped(host), Some((Hook::ToPod, CLIENT_ID, DropReason::Backend)));
        assert!(host.reach(&client, &server, service, SILENCE).is_err());
        assert_eq!(dropped(host), Some((Hook::ToPod, CLIENT_ID, DropReason::Backend)));
        // The server's own gate has its say as well.
        host.client(SERVICES);
        host.server(DENY);
        assert!(host.reach(&client, &server, service, SILENCE).is_err());
        assert_eq!(dropped(host), Some((Hook::ToPod, SERVER_ID, DropReason::Policy)));
    });
}

#[test]
fn a_backend_elsewhere_is_judged_at_the_uplink() {
    on_a_host(|host| {
        let family = host.family;
        let (client, world, service) = (host.client.clone(), host.world.clone(), host.service());
        for masquerade in [false, true] {
            host.serve(family.other, masquerade);
            host.client(SERVICES);
            assert!(host.reach(&client, &world, service, SILENCE).is_err(), "it is not the server");
            assert!(dropped_at_uplink(host));
            // What nothing restricts passes.
            host.client(NONE);
            let mut open = host.reach(&client, &world, service, PATIENCE).unwrap();
            assert_eq!(open.peer.ip() == family.own, !masquerade);
            assert!(open.works(PATIENCE));
            // The address becomes the server's: the flow is allowed, and then it is not.
            let key = prefix(128, Address::from(family.other));
            host.pod.kernel.ipcache.insert(&key, 300, 0).unwrap();
            host.client(SERVICES);
            assert!(open.works(PATIENCE));
            host.pod.kernel.ipcache.remove(&key).unwrap();
            host.client(SERVICES);
            assert!(!open.works(SILENCE));
            assert!(dropped_at_uplink(host));
        }
    });
}

/// A source that was masqueraded is not the node: who sent the packet is asked of connection tracking.
#[test]
fn a_masqueraded_source_is_known() {
    on_a_host(|host| {
        let family = host.family;
        let (client, server, service) = (host.client.clone(), host.server.clone(), host.service());
        host.serve(family.server, true);
        host.server(ONLY_NODE);
        assert!(host.reach(&client, &server, service, SILENCE).is_err());
        let events = host.pod.kernel.events();
        let event = events.iter().rev().find(|event| event.kind == EventKind::Drop.number()).unwrap();
        assert_eq!((event.endpoint, event.origin), (SERVER_ID, FlowOrigin::Forwarded.number()));
        assert_eq!(IpAddr::from(event.other), family.own, "before translation");
        assert_ne!(IpAddr::from(event.peer), family.own);
        // The policy that allows the client, by its own address.
        host.pod.kernel.ipcache.insert(&prefix(128, Address::from(family.own)), 300, 0).unwrap();
        host.server(ONLY_SERVER);
        let mut open = host.reach(&client, &server, service, PATIENCE).unwrap();
        assert_ne!(open.peer.ip(), family.own);
        assert!(open.works(PATIENCE));
        // The node itself.
        host.server(ONLY_NODE);
        let node = host.host.clone();
        let direct = SocketAddr::from((family.server, BACKEND));
        assert!(host.reach(&node, &server, direct, PATIENCE).unwrap().works(PATIENCE));
    });
}

/// A pod that reaches itself through its Service is judged by the rows of its own address.
#[test]
fn a_pod_reaches_itself_through_a_service() {
    on_a_host(|host| {
        let family = host.family;
        let (client, service) = (host.client.clone(), host.service());
        host.serve(family.own, true);
        host.endpoints[0].1.ingress = DENY;
        for (ingress, egress, refused) in [
            // No policy that is judged for a hairpin.
            (0, 0, None),
            (ALLOW, ALLOW, None),
            (ALLOW, DENY, Some(DropReason::Backend)),
            (DENY, ALLOW, Some(DropReason::Policy)),
        ] {
            let own = &mut host.endpoints[0].1.addresses[0];
            (own.ingress, own.egress) = (ingress, egress);
            host.client(SERVICES);
            let patience = if refused.is_some() { SILENCE } else { PATIENCE };
            let open = host.reach(&client, &client, service, patience);
            assert_eq!(open.is_err(), refused.is_some(), "{:#?}", host.pod.kernel.events());
            if let Ok(mut open) = open {
                assert!(open.works(PATIENCE));
            }
            assert_eq!(dropped(host), refused.map(|reason| (Hook::ToPod, CLIENT_ID, reason)));
        }
    });
}

/// Forgets every connection of a namespace, as service proxies do with those of backends that are gone.
fn forget_connections(namespace: &Namespace) {
    use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};
    use nix::sys::socket::{recv, sendto, socket};

    /// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE`, of nothing in particular.
    const DELETE: u16 = 1 << 8 | 2;
    /// `NLM_F_REQUEST | NLM_F_ACK`.
    const FLAGS: u16 = 5;
    let mut message = Vec::new();
    message.extend(20_u32.to_ne_bytes());
    message.extend(DELETE.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    message.extend([0; 12]);
    namespace
        .run(|| {
            let flags = SockFlag::SOCK_CLOEXEC;
            let netlink = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter).unwrap();
            sendto(netlink.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty()).unwrap();
            let mut answer = [0; 256];
            let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
            // The error of the acknowledgment.
            assert_eq!(answer[16..length.min(20)], [0; 4]);
        })
        .unwrap();
}

/// The address and port that a source was translated to are given to another as soon as connection tracking has forgotten the
/// first: the server's gate, which has not, lets nobody ride on that flow.
#[test]
fn a_translated_source_that_is_now_anothers_is_judged() {
    const FROM: u16 = 5555;
    on_a_host(|host| {
        let family = host.family;
        host.serve_datagrams(family.server);
        host.pod.kernel.ipcache.insert(&prefix(128, Address::from(family.own)), 300, 0).unwrap();
        host.server(ONLY_SERVER);
        let service = host.service();
        let bound =
            |at: &Namespace, address: IpAddr, port: u16| at.run(|| UdpSocket::bind((address, port)).unwrap()).unwrap();
        let server = bound(&host.server, family.server, BACKEND);
        let (client, world) = (bound(&host.client, family.own, FROM), bound(&host.world, family.other, FROM));
        let arrives = |from: &UdpSocket, patience: Duration| {
            let mut byte = [0];
            from.send_to(b"x", service).unwrap();
            server.set_read_timeout(Some(patience)).unwrap();
            let (_, peer) = server.recv_from(&mut byte).ok()?;
            server.send_to(b"y", peer).unwrap();
            from.set_read_timeout(Some(PATIENCE)).unwrap();
            from.recv_from(&mut byte).unwrap();
            Some(peer)
        };
        let peer = arrives(&client, PATIENCE).unwrap();
        assert_eq!(peer.port(), FROM);
        assert_ne!(peer.ip(), family.own);
        // That it passed is not remembered: the next one like it, which may be another's, is looked at, and makes its flow anew.
        for _ in 0..3 {
            let connections = &mut host.pod.kernel.connections;
            for key in connections.keys().map(Result::unwrap).collect::<Vec<ConnectionKey>>() {
                connections.remove(&key).unwrap();
            }
            assert_eq!(arrives(&client, PATIENCE), Some(peer));
            let mut flows = host.pod.kernel.connections.iter().map(Result::unwrap);
            let into = FlowDirection::Ingress.number();
            assert!(flows.any(|(key, flow)| key.endpoint == SERVER_ID && flow.direction == into));
        }
        forget_connections(&host.host);
        host.pod.kernel.events();
        assert_eq!(arrives(&world, SILENCE), None);
        let events = host.pod.kernel.events();
        let event = events.iter().rev().find(|event| event.kind == EventKind::Drop.number()).unwrap();
        assert_eq!((IpAddr::from(event.peer), event.peer_port), (peer.ip(), peer.port()), "it looks the same");
        assert_eq!((event.endpoint, IpAddr::from(event.other)), (SERVER_ID, family.other));
        assert!(arrives(&client, PATIENCE).is_some());
    });
}

/// A flow that is denied, and that the gate has forgotten because its table was full, stays denied: what its server goes on to
/// send is no flow of the server's own. And one that is allowed goes on, whoever speaks first.
#[test]
fn a_flow_that_the_gate_forgot_is_whose_it_was() {
    on_a_host(|host| {
        let family = host.family;
        host.serve(family.server, false);
        let (client, server, world) = (host.client.clone(), host.server.clone(), host.world.clone());
        let hears = |from: &TcpStream, to: &TcpStream, patience: Duration| {
            let (mut from, mut to) = (from, to);
            from.write_all(b"x").unwrap();
            to.set_read_timeout(Some(patience)).unwrap();
            to.read_exact(&mut [0]).is_ok()
        };
        host.server(NONE);
        let mut denied = host.reach(&world, &server, (family.server, BACKEND).into(), PATIENCE).unwrap();
        assert!(denied.works(PATIENCE));
        host.server(DENY);
        assert!(!hears(&denied.near, &denied.far, SILENCE));
        host.pod.kernel.forget();
        assert!(hears(&denied.far, &denied.near, PATIENCE), "nothing restricts what the server sends");
        assert!(!hears(&denied.near, &denied.far, SILENCE));

        host.endpoints[0].1.ingress = DENY;
        host.client(ALLOW);
        let mut open = host.reach(&client, &world, (family.other, BACKEND).into(), PATIENCE).unwrap();
        assert!(open.works(PATIENCE));
        host.pod.kernel.forget();
        assert!(open.works(PATIENCE));
        host.pod.kernel.forget();
        assert!(hears(&open.far, &open.near, PATIENCE), "the other side's is an answer");
        host.client(DENY);
        host.pod.kernel.forget();
        assert!(!hears(&open.far, &open.near, SILENCE), "to what policy denies");
    });
}

/// A flow to the pod that looks as if a Service had opened it lets no datagram of the pod's own pass to a backend.
#[test]
fn an_answer_to_a_service_that_is_none_is_judged_by_its_backend() {
    const FROM: u16 = 5556;
    on_a_host(|host| {
        let family = host.family;
        host.serve_datagrams(family.other);
        host.client(SERVICES);
        let own = host.endpoints[0].1;
        let key = ConnectionKey {
            endpoint: CLIENT_ID,
            own: family.own.into(),
            peer: family.service.into(),
            own_port: FROM,
            peer_port: PORT,
            protocol: 17,
            ..ConnectionKey::default()
        };
        let flow = Connection {
            judged: own.revision << 8 | u64::from(Verdict::Allow.number()),
            expires: u64::MAX,
            other: family.service.into(),
            direction: FlowDirection::Ingress.number(),
            ..Connection::default()
        };
        host.pod.kernel.connections.insert(key, flow, 0).unwrap();
        let bound =
            |at: &Namespace, address: IpAddr, port| at.run(|| UdpSocket::bind((address, port)).unwrap()).unwrap();
        let (client, world) = (bound(&host.client, family.own, FROM), bound(&host.world, family.other, BACKEND));
        client.send_to(b"x", host.service()).unwrap();
        world.set_read_timeout(Some(SILENCE)).unwrap();
        assert!(world.recv_from(&mut [0]).is_err());
        assert!(dropped_at_uplink(host));
    });
}
