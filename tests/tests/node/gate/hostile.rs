//! A pod that sends what it must not.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket};
use sluice_hostnet::netns::Namespace;
use sluice_policy_core::cluster::PodKey;
use sluice_tests::live::stage::Stage;
use sluice_tests::privileged::privileged;

use super::{admits, begun, options, policy, stage, suite};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
const PORT: u16 = 4000;
/// How long an address may be in use.
const PATIENCE: Duration = Duration::from_secs(5);

fn net(stage: &Stage<'_>, pod: &str) -> Namespace {
    let key = PodKey { namespace: "x".into(), name: pod.into() };
    stage.town.pod(&key).unwrap().net.clone()
}

/// A socket at an address. One of before may still be there for a moment, in a child of this process that is about to be another
/// program.
fn bound(net: &Namespace, at: SocketAddrV4) -> UdpSocket {
    let deadline = Instant::now() + PATIENCE;
    let bind = || loop {
        match UdpSocket::bind(at) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::yield_now();
            }
            bound => return bound.unwrap(),
        }
    };
    let socket = net.run(bind).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Who has sent what arrived. Packets cross namespaces while they are sent.
fn senders(socket: &UdpSocket) -> Vec<SocketAddr> {
    let mut buffer = [0; 8];
    std::iter::from_fn(|| socket.recv_from(&mut buffer).ok()).map(|(_, from)| from).collect()
}

/// A UDP datagram with a header of our own (RFC 791, RFC 768; the kernel fills the checksum of the header in, and none of
/// the datagram is none).
fn forged(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend([0, 9, 0, 0, b'!']);
    packet
}

fn send_forged(net: &Namespace, from: SocketAddrV4, to: SocketAddrV4) {
    net.run(|| {
        let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).unwrap();
        let sent = sendto(raw.as_raw_fd(), &forged(from, to), &SockaddrIn::from(to), MsgFlags::empty());
        assert_eq!(sent, Ok(29));
    })
    .unwrap();
}

/// Issue C, 6; conntrack poisoning: another pod's address, and the tuple of a flow that it has open, help nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_source_reaches_nobody() {
    if !privileged() {
        return;
    }
    let allow = admits("client");
    let suite = suite(&format!("\n  - apply: [{allow}]\n    expect: []\n"));
    let options = options();
    let mut stage = stage(suite, &options).await;
    let act = begun(&mut stage, suite, &options).await;
    let (client, other, server) = (net(act.stage, "client"), net(act.stage, "other"), net(act.stage, "server"));
    let to = SocketAddrV4::new(SERVER, PORT);
    let listener = bound(&server, to);
    let honest = bound(&client, SocketAddrV4::new(CLIENT, PORT));
    honest.send_to(b"!", to).unwrap();
    assert_eq!(senders(&listener).len(), 1, "the allowed one passes");
    // The tuple of the flow that is open, another one, and its own address, which is not allowed.
    for from in [(CLIENT, PORT), (CLIENT, PORT + 1), (OTHER, PORT)] {
        send_forged(&other, SocketAddrV4::new(from.0, from.1), to);
    }
    assert_eq!(senders(&listener), []);
    // A pod that is in no policy may send, but only in its own name; as itself it does reach whom it may.
    let free = bound(&client, SocketAddrV4::new(CLIENT, PORT + 2));
    send_forged(&other, SocketAddrV4::new(SERVER, PORT), SocketAddrV4::new(CLIENT, PORT + 2));
    assert_eq!(senders(&free), []);
    send_forged(&other, SocketAddrV4::new(OTHER, PORT), SocketAddrV4::new(CLIENT, PORT + 2));
    assert_eq!(senders(&free), [SocketAddr::from((OTHER, PORT))]);
}

/// Port reuse: what a port was allowed to reach does not let it reach anybody else; and an answer from an allowed server's
/// port is only an answer if it was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_was_used_before_opens_nothing() {
    if !privileged() {
        return;
    }
    let egress = policy(
        "client",
        "{podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress, Egress], egress: [{to: [{podSelector: {matchLabels: {app: server}}}], ports: [{port: 4000, protocol: UDP}]}]}",
    );
    let suite = suite(&format!("\n  - apply: [{egress}]\n    expect: []\n"));
    let options = options();
    let mut stage = stage(suite, &options).await;
    let act = begun(&mut stage, suite, &options).await;
    let (client, other, server) = (net(act.stage, "client"), net(act.stage, "other"), net(act.stage, "server"));
    let allowed = bound(&server, SocketAddrV4::new(SERVER, PORT));
    let (wrong_port, wrong_pod) =
        (bound(&server, SocketAddrV4::new(SERVER, PORT + 1)), bound(&other, SocketAddrV4::new(OTHER, PORT)));
    for round in 0..100 {
        let socket = bound(&client, SocketAddrV4::new(CLIENT, 5000));
        // Before anything was asked, nothing is an answer.
        if round == 0 {
            allowed.send_to(b"!", (CLIENT, 5000)).unwrap();
            assert_eq!(senders(&socket), []);
        }
        socket.send_to(b"?", (SERVER, PORT)).unwrap();
        socket.send_to(b"?", (SERVER, PORT + 1)).unwrap();
        socket.send_to(b"?", (OTHER, PORT)).unwrap();
        assert_eq!(senders(&allowed).len(), 1, "round {round}");
        assert_eq!((senders(&wrong_port), senders(&wrong_pod)), (Vec::new(), Vec::new()), "round {round}");
        allowed.send_to(b"!", (CLIENT, 5000)).unwrap();
        wrong_port.send_to(b"!", (CLIENT, 5000)).unwrap();
        wrong_pod.send_to(b"!", (CLIENT, 5000)).unwrap();
        assert_eq!(senders(&socket), [SocketAddr::from((SERVER, PORT))], "round {round}");
    }
}
