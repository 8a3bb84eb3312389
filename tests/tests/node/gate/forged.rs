//! A pod that builds its frames itself (`AF_PACKET`): addresses, tags, fragments and neighbours that are not its own.

mod frame;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::Value;
use sluice_hostnet::netns::Namespace;
use sluice_policy_core::cluster::PodKey;
use sluice_tests::live::stage::{APPLIED, Stage};
use sluice_tests::privileged::privileged;

use super::{begun, options, policy, stage, suite_of};
use frame::{Datagram, Wire, arp_reply, ethernet, icmpv6};

const FIXTURE: &str = r#"
schemaVersion: 1
fixtures:
  f:
    namespaces: {x: {}}
    nodes: {n1: {ip: 10.9.0.1, ip6: "fd00:9::1"}, n2: {ip: 10.9.0.2, ip6: "fd00:9::2"}}
    pods:
      x/client: {labels: {app: client}, ip: 10.1.0.1, ip6: "fd00:1::1", node: n1}
      x/other: {labels: {app: other}, ip: 10.1.0.2, ip6: "fd00:1::2", node: n1}
      x/server: {labels: {app: server}, ip: 10.1.0.3, ip6: "fd00:1::3", node: n2}
vectors:
- id: test
  fixture: f
  steps:
"#;

const PORT: u16 = 4000;
/// A port of the server that nobody may reach.
const CLOSED: u16 = 4001;
const PATIENCE: Duration = Duration::from_secs(20);
const CLIENT: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1))];
const OTHER: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2)), IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2))];
const SERVER: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 1, 0, 3)), IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 3))];

/// What the server gets at a port, in both families.
struct Server {
    sockets: Vec<UdpSocket>,
}

impl Server {
    fn new(net: &Namespace, port: u16) -> Self {
        let bind = |address: &IpAddr| {
            let socket = UdpSocket::bind((*address, port)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        Self { sockets: net.run(|| SERVER.iter().map(bind).collect()).unwrap() }
    }

    /// Texts and senders of what has come.
    fn got(&self) -> Vec<(String, SocketAddr)> {
        let mut buffer = [0; 4096];
        let mut got = Vec::new();
        for socket in &self.sockets {
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let text: String = String::from_utf8_lossy(&buffer[..length]).trim_end_matches('.').to_owned();
                got.push((text, from));
            }
        }
        got
    }
}

/// A pod that sends frames.
struct Forger {
    net: Namespace,
    wire: Wire,
}

impl Forger {
    async fn of(stage: &Stage<'_>, pod: &str) -> Self {
        let key = PodKey { namespace: "x".into(), name: pod.into() };
        let attached = stage.town.pod(&key).unwrap();
        let net = attached.net.clone();
        let view = stage.agents[&*attached.on].until("no page", APPLIED, |_| true).await.unwrap();
        let gates = view["endpoints"].as_array().unwrap().clone();
        let gate = gates.into_iter().find(|gate| gate["name"] == pod).unwrap();
        let host = gate["interface"].as_str().unwrap().to_owned();
        let own = net.run(|| frame::mac("eth0")).unwrap();
        let node = stage.town.node(&attached.on).unwrap().node.net().clone();
        let gateway = node.run(|| frame::mac(&host)).unwrap();
        let wire = net.run(|| Wire::open("eth0", own, gateway)).unwrap();
        Self { net, wire }
    }

    /// By the kernel, as everybody does.
    fn honestly(&self, from: IpAddr, to: IpAddr, text: &str) {
        let socket = self.net.run(|| UdpSocket::bind((from, 0)).unwrap()).unwrap();
        socket.send_to(text.as_bytes(), (to, PORT)).unwrap();
    }

    fn send(&self, packet: &[u8]) {
        self.wire.send(&self.wire.frame(packet));
    }
}

/// Packets that the gates of n1 dropped for a reason.
async fn dropped(stage: &Stage<'_>, reason: &str) -> u64 {
    let view: Value = stage.agents["n1"].until("no page", APPLIED, |_| true).await.unwrap();
    view["drops"][reason].as_u64().unwrap_or_default()
}

/// What arrives until, and without, the honest datagrams that follow what was sent.
fn arrives(server: &Server, honest: &Forger) -> Vec<String> {
    let mut got = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    for (own, to) in CLIENT.into_iter().zip(SERVER) {
        honest.honestly(own, to, "last");
    }
    let lasts = |got: &Vec<(String, SocketAddr)>| got.iter().filter(|(text, _)| text == "last").count();
    while lasts(&got) < 2 {
        assert!(Instant::now() < deadline, "only {got:?} came");
        got.extend(server.got());
        std::thread::yield_now();
    }
    got.into_iter().map(|(text, _)| text).filter(|text| text != "last").collect()
}

/// Issue C, 6: nothing that a pod can put on its wire takes it where it may not go, and what is odd but honest arrives.
#[tokio::test(flavor = "multi_thread")]
async fn frames_that_a_pod_builds_itself_reach_nobody_whom_it_may_not_reach() {
    if !privileged() {
        return;
    }
    let allow = policy(
        "server",
        "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 4000, protocol: UDP}]}]}",
    );
    let suite = suite_of(FIXTURE, &format!("\n  - apply: [{allow}]\n    expect: []\n"));
    let options = options();
    let mut stage = stage(suite, &options).await;
    let act = begun(&mut stage, suite, &options).await;
    let server = PodKey { namespace: "x".into(), name: "server".into() };
    let server_net = act.stage.town.pod(&server).unwrap().net.clone();
    let (open, closed) = (Server::new(&server_net, PORT), Server::new(&server_net, CLOSED));
    let (client, other) = (Forger::of(act.stage, "client").await, Forger::of(act.stage, "other").await);
    // The way is known: nothing waits for a neighbour.
    assert_eq!(arrives(&open, &client), [] as [&str; 0]);
    for (at, ((own, foreign), to)) in CLIENT.into_iter().zip(OTHER).zip(SERVER).enumerate() {
        let honest = Datagram { from: (own, 5000), to: (to, PORT), text: "honest" };
        let forged = Datagram { from: (own, 5001), to: (to, PORT), text: "forged" };
        let denied = Datagram { from: (foreign, 5000), to: (to, PORT), text: "denied" };

        // Frames as they should be, and their odd but honest kin.
        client.send(&honest.packet());
        client.wire.send(&ethernet(client.wire.gateway(), other.wire.own(), &[], &honest.packet()));
        for part in honest.fragments(7) {
            client.send(&part);
        }
        client.send(&honest.with_options());
        assert_eq!(arrives(&open, &client), ["honest"; 4], "family {at}");

        // Another's address, another's MAC, and what the policy does not allow, in all the same shapes.
        let before = dropped(act.stage, "spoofed").await;
        other.send(&forged.packet());
        other.wire.send(&ethernet(other.wire.gateway(), client.wire.own(), &[], &forged.packet()));
        forged.fragments(8).iter().for_each(|part| other.send(part));
        other.send(&forged.with_options());
        // Of two fragments the second is dropped for want of the first.
        assert_eq!(dropped(act.stage, "spoofed").await - before, 4, "family {at}");
        other.send(&denied.packet());
        other.wire.send(&ethernet(other.wire.gateway(), client.wire.own(), &[], &denied.packet()));
        denied.fragments(9).iter().for_each(|part| other.send(part));
        other.send(&denied.with_options());
        assert_eq!(arrives(&open, &client), [] as [&str; 0], "family {at}");

        // A VLAN of any number, tags within tags, whoever sends.
        let before = dropped(act.stage, "not-ip").await;
        for tags in [&[(0x8100, 7)][..], &[(0x8100, 0)], &[(0x88a8, 7)], &[(0x88a8, 7), (0x8100, 7)]] {
            client.wire.send(&ethernet(client.wire.gateway(), client.wire.own(), tags, &honest.packet()));
            other.wire.send(&ethernet(other.wire.gateway(), other.wire.own(), tags, &forged.packet()));
        }
        assert_eq!(arrives(&open, &client), [] as [&str; 0], "family {at}");
        assert_eq!(dropped(act.stage, "not-ip").await - before, 8, "family {at}");

        // A second first fragment, to a port that is closed, under the number of the one that passed; parts of it overlap.
        let shut = Datagram { to: (to, CLOSED), ..honest };
        let (allowed, overlapping) = (honest.fragments(10), shut.fragments(10));
        for part in [&allowed[0], &overlapping[0], &overlapping[1]] {
            client.send(part);
        }
        // The rest of a datagram whose beginning was never seen, and a beginning without its whole header.
        client.send(&shut.fragments(11)[1]);
        shut.fragments_at(12, 4).iter().for_each(|part| client.send(part));
        arrives(&open, &client);
        assert_eq!(closed.got(), [], "family {at}");

        // Headers that lead elsewhere: a source route.
        let before = dropped(act.stage, "source-route").await;
        client.send(&honest.source_routed(foreign));
        assert_eq!(arrives(&open, &client), [] as [&str; 0], "family {at}");
        assert_eq!(dropped(act.stage, "source-route").await - before, 1, "family {at}");
    }
    // The pod's own IPv4 address, in IPv6 (RFC 4291, 2.5.5.2).
    let IpAddr::V4(own) = CLIENT[0] else { unreachable!("it is the first family") };
    let mapped = Datagram { from: (own.to_ipv6_mapped().into(), 5000), to: (SERVER[1], PORT), text: "mapped" };
    client.send(&mapped.packet());
    assert_eq!(arrives(&open, &client), [] as [&str; 0]);

    // Neighbours: another pod's address is at its MAC; here is a router; this is a better way (CVE-2020-10749).
    let before = dropped(act.stage, "spoofed").await;
    let (IpAddr::V4(claimed), IpAddr::V6(target)) = (CLIENT[0], CLIENT[1]) else { unreachable!("so they are written") };
    let IpAddr::V6(foreign) = OTHER[1] else { unreachable!("so it is written") };
    other.wire.send(&arp_reply(other.wire.own(), claimed, other.wire.gateway()));
    let all = "ff02::1".parse().unwrap();
    let link_local: Ipv6Addr = "fe80::66".parse().unwrap();
    let advertisement = |source, target: Ipv6Addr| {
        let body = [&[0x20, 0, 0, 0][..], &target.octets(), &[2, 1], &other.wire.own()].concat();
        icmpv6(source, all, 136, 0, &body)
    };
    other.send(&advertisement(foreign, target));
    other.send(&advertisement(link_local, target));
    other.send(&advertisement(target, foreign));
    let router = [&[64, 0, 0x07, 0x08][..], &[0; 8], &[1, 1], &other.wire.own()].concat();
    other.send(&icmpv6(link_local, all, 134, 0, &router));
    let redirect = [&[0; 4][..], &link_local.octets(), &target.octets()].concat();
    other.send(&icmpv6(link_local, all, 137, 0, &redirect));
    assert_eq!(arrives(&open, &client), [] as [&str; 0]);
    assert_eq!(dropped(act.stage, "spoofed").await - before, 6);
    // Its own it may tell.
    other.send(&advertisement(foreign, foreign));
    assert_eq!(dropped(act.stage, "spoofed").await - before, 6);
}
