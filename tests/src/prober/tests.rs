use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};

use super::*;
use crate::privileged::privileged;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// A network namespace with loopback.
fn net() -> Namespace {
    let net = Namespace::new_unbound().unwrap();
    let up = || std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(net.run(up).unwrap().success());
    net
}

fn dial(net: &Namespace, address: IpAddr, transport: Transport, port: u16) -> Dial {
    let from = Station { net: net.clone(), address };
    Dial { from, to: address, port, transport, ask: Ask::Echo, patience: Duration::from_millis(400) }
}

#[tokio::test]
async fn each_protocol_is_answered_where_it_is_served_and_nowhere_else() {
    if !privileged() {
        return;
    }
    let (net, prober) = (net(), Prober::default());
    let transports = [Transport::Tcp, Transport::Udp, Transport::Sctp, Transport::Ping];
    let station = |address| Station { net: net.clone(), address };
    let wanted = [V4, V6].into_iter().flat_map(|at| transports.map(|transport| (station(at), transport, 80)));
    prober.serve(wanted).await.unwrap();
    let dials = |port: u16| -> Vec<Dial> {
        let one = |at| transports.map(|transport| dial(&net, at, transport, port));
        [V4, V6].into_iter().flat_map(one).collect()
    };
    let answers = prober.dial(&dials(80)).await.unwrap();
    assert!(answers.iter().all(Answer::is_answered), "{answers:?}");
    let words: Vec<String> = prober.dial(&dials(81)).await.unwrap().iter().map(ToString::to_string).collect();
    // Closed ports say so by themselves; SCTP has nobody there who would; ping has no ports.
    for (word, wanted) in words.iter().zip(["refused", "refused", "silent", "answered"].iter().cycle()) {
        assert!(word.starts_with(wanted), "{words:?}");
    }
}

#[tokio::test]
async fn many_probes_of_one_address_find_their_own_answers() {
    if !privileged() {
        return;
    }
    let (net, prober) = (net(), Prober::default());
    let station = Station { net: net.clone(), address: V4 };
    prober.serve([(station, Transport::Sctp, 80)]).await.unwrap();
    // Every second one to a port that nobody serves.
    let dials: Vec<Dial> = (0..200).map(|n| dial(&net, V4, Transport::Sctp, 80 + n % 2)).collect();
    for (n, answer) in prober.dial(&dials).await.unwrap().iter().enumerate() {
        assert_eq!(answer.is_answered(), n % 2 == 0, "{n}: {answer}");
    }
}

#[tokio::test]
async fn a_held_connection_lives_until_its_packets_are_dropped() {
    if !privileged() {
        return;
    }
    let (net, prober) = (net(), Prober::default());
    prober.serve([(Station { net: net.clone(), address: V4 }, Transport::Tcp, 80)]).await.unwrap();
    let mut held = prober.hold(&dial(&net, V4, Transport::Tcp, 80)).await.unwrap();
    assert!(held.poke(Duration::from_secs(5)).await.is_answered());
    let down = || std::process::Command::new("ip").args(["link", "set", "lo", "down"]).status().unwrap();
    assert!(net.run(down).unwrap().success());
    assert!(!held.poke(Duration::from_millis(300)).await.is_answered());
}

#[tokio::test]
async fn packets_that_nobody_answers_are_seen_to_arrive_where_they_are_for() {
    if !privileged() {
        return;
    }
    let (near, far, prober) = (net(), net(), Prober::default());
    let peer = format!("/proc/{}/fd/{}", std::process::id(), far.as_fd().as_raw_fd());
    let lines = |net: &Namespace, text: String| {
        let run = move || std::process::Command::new("sh").args(["-ec", &text]).status().unwrap();
        assert!(net.run(run).unwrap().success());
    };
    let addresses = ["10.7.0.1", "10.7.0.2", "fd07::1", "fd07::2"].map(|text| text.parse::<IpAddr>().unwrap());
    lines(
        &near,
        format!(
            "ip link add v type veth peer name v netns {peer}; ip addr add 10.7.0.1/24 dev v; ip addr add fd07::1/64 dev v nodad; ip link set v up"
        ),
    );
    lines(&far, "ip addr add 10.7.0.2/24 dev v; ip addr add fd07::2/64 dev v nodad; ip link set v up".into());
    for (from, to, icmp, kind) in [(addresses[0], addresses[1], 1, 13), (addresses[2], addresses[3], 58, 8)] {
        let dial = |transport, port| Dial {
            from: Station { net: near.clone(), address: from },
            to,
            port,
            transport,
            ask: Ask::Echo,
            patience: Duration::from_secs(5),
        };
        // What a namespace sends itself does not arrive in it.
        prober.serve([(dial(Transport::Packet(47), 0).from, Transport::Packet(47), 0)]).await.unwrap();
        let lost = Dial { patience: Duration::from_millis(300), ..dial(Transport::Packet(47), 0) };
        let answers = prober.dial(&[lost]).await.unwrap();
        assert!(matches!(answers[..], [Answer::Silent]), "{from}: {answers:?}");
        let station = Station { net: far.clone(), address: to };
        prober.serve([(station, Transport::Packet(47), 0)]).await.unwrap();
        let dials = [dial(Transport::Packet(47), 0), dial(Transport::Packet(icmp), kind)];
        let answers = prober.dial(&dials).await.unwrap();
        assert!(answers.iter().all(Answer::is_answered), "{from}: {answers:?}");
    }
}

#[tokio::test]
async fn servers_answer_in_the_protocol_that_they_are_spoken_to_in() {
    if !privileged() {
        return;
    }
    let (net, prober) = (net(), Prober::default());
    let station = Station { net: net.clone(), address: V4 };
    prober.serve([(station.clone(), Transport::Tcp, 80), (station, Transport::Udp, 80)]).await.unwrap();
    prober.know([("a.example".to_owned(), vec![V4])].into());
    let asks = [
        Ask::Echo,
        Ask::Nothing,
        Ask::http("POST", "/a", "b", [("X", "y")]),
        Ask::Dns { name: "a.example.".into(), kind: dns::Kind::A },
        Ask::Dns { name: "b.example".into(), kind: dns::Kind::Aaaa },
        Ask::Tls { server: "a.example".into() },
    ];
    let dials: Vec<Dial> =
        asks.iter().map(|ask| Dial { ask: ask.clone(), ..dial(&net, V4, Transport::Tcp, 80) }).collect();
    let answers = prober.dial(&dials).await.unwrap();
    assert!(answers.iter().all(Answer::is_answered), "{answers:?}");
    let mut held = prober.hold(&dials[2]).await.unwrap();
    for ask in asks.iter().cycle().take(12) {
        assert!(held.ask(ask, Duration::from_secs(5)).await.is_answered(), "{ask:?}");
    }
    let dials = [Ask::Echo, asks[3].clone()].map(|ask| Dial { ask, ..dial(&net, V4, Transport::Udp, 80) });
    let answers = prober.dial(&dials).await.unwrap();
    assert!(answers.iter().all(Answer::is_answered), "{answers:?}");
}
