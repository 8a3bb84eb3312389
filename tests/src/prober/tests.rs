use std::net::{Ipv4Addr, Ipv6Addr};

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
    Dial { from, to: address, port, transport, patience: Duration::from_millis(400) }
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
