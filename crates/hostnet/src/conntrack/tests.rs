//! Against the real connection tracking, in a namespace made for it (root).

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::process::Command;

use super::*;

const RULES: &str = "table inet t {
 chain output { type filter hook output priority 0
 ct state new accept
 }
 chain nat { type nat hook output priority -100
 ip daddr 10.96.0.1 udp dport 53 dnat ip to 127.0.0.2:5353
 }
}";

fn run(namespace: &Namespace, program: &str, arguments: &[&str]) {
    let output = namespace.run(|| Command::new(program).args(arguments).output()).unwrap();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_translated_flow_and_a_plain_one_are_listed_in_both_families() {
    let namespace = Namespace::new_unbound().unwrap();
    run(&namespace, "ip", &["link", "set", "lo", "up"]);
    run(&namespace, "ip", &["route", "add", "10.96.0.0/16", "dev", "lo", "src", "127.0.0.1"]);
    run(&namespace, "nft", &[RULES]);
    let (v4, v6) = namespace
        .run(|| {
            let v4 = UdpSocket::bind("127.0.0.1:0").unwrap();
            v4.send_to(b"x", "10.96.0.1:53").unwrap();
            let v6 = UdpSocket::bind("[::1]:0").unwrap();
            v6.send_to(b"x", "[::1]:7777").unwrap();
            (v4.local_addr().unwrap(), v6.local_addr().unwrap())
        })
        .unwrap();

    let udp = flows(&namespace, 10, |flow| flow.original.protocol == 17).unwrap();
    let translated = udp.iter().find(|flow| flow.original.source_port == v4.port()).unwrap();
    assert_eq!(translated.original.destination, IpAddr::from([10, 96, 0, 1]));
    assert_eq!(translated.original.destination_port, 53);
    assert_eq!((translated.reply.source, translated.reply.source_port), (IpAddr::from([127, 0, 0, 2]), 5353));
    assert!(translated.expires_in > Duration::from_secs(1), "{translated:?}");
    let plain = udp.iter().find(|flow| flow.original.source_port == v6.port()).unwrap();
    assert_eq!((plain.original.source, plain.original.destination), (v6.ip(), v6.ip()));
    assert_eq!(plain.original.destination_port, 7777);

    let mut lookup = Lookup::open(&namespace).unwrap();
    for known in [translated, plain] {
        let found = lookup.flow(&known.original).unwrap().expect("a flow that is listed");
        assert_eq!((found.original, found.reply), (known.original, known.reply));
        let unknown = Tuple { source_port: 1, ..known.original };
        assert_eq!(lookup.flow(&unknown).unwrap(), None);
    }

    let limited = flows(&namespace, 0, |flow| flow.original.protocol == 17);
    assert!(matches!(limited, Err(ConntrackError::TooMany { limit: 0 })), "{limited:?}");
    assert_eq!(flows(&namespace, 10, |flow| flow.original.protocol == 6).unwrap(), []);
}

/// Ways in which a flow may name an address.
const WAYS: &str = "table inet t {
 chain zones { type filter hook output priority -300
 ip daddr 127.0.0.4 ct zone set 7
 }
 chain output { type filter hook output priority 0
 ct state new accept
 }
 chain nat { type nat hook output priority -100
 ip daddr 10.96.0.1 udp dport 53 dnat ip to 127.0.0.2:5353
 }
 chain source { type nat hook postrouting priority 100
 ip daddr 127.0.0.3 udp dport 99 snat ip to 127.0.0.1
 }
}";

/// Sends a packet from an address to another.
fn send(namespace: &Namespace, from: &str, to: &str) {
    let sent = namespace.run(|| UdpSocket::bind((from, 0)).and_then(|socket| socket.send_to(b"x", to))).unwrap();
    assert_eq!(sent.unwrap(), 1);
}

/// Where the flows of UDP go that are known.
fn known(namespace: &Namespace) -> BTreeSet<(IpAddr, u16)> {
    let udp = flows(namespace, 100, |flow| flow.original.protocol == 17).unwrap();
    udp.iter().map(|flow| (flow.original.destination, flow.original.destination_port)).collect()
}

fn addresses(all: &[&str]) -> BTreeSet<IpAddr> {
    all.iter().map(|address| address.parse().unwrap()).collect()
}

#[test]
fn flows_of_an_address_are_forgotten_however_they_name_it_and_those_of_another_stay() {
    let namespace = Namespace::new_unbound().unwrap();
    run(&namespace, "ip", &["link", "set", "lo", "up"]);
    run(&namespace, "ip", &["route", "add", "10.96.0.0/16", "dev", "lo", "src", "127.0.0.1"]);
    run(&namespace, "nft", &[WAYS]);
    // To it, translated and not; from it, translated and not.
    send(&namespace, "127.0.0.1", "10.96.0.1:53");
    send(&namespace, "127.0.0.1", "127.0.0.2:11");
    send(&namespace, "127.0.0.2", "127.0.0.3:99");
    send(&namespace, "127.0.0.2", "127.0.0.3:12");
    // In a zone of its own.
    send(&namespace, "127.0.0.2", "127.0.0.4:13");
    send(&namespace, "127.0.0.1", "127.0.0.4:14");
    // Others'.
    send(&namespace, "127.0.0.1", "127.0.0.3:15");
    send(&namespace, "::1", "[::1]:16");
    assert_eq!(known(&namespace).len(), 8);

    assert_eq!(forget(&namespace, &addresses(&["127.0.0.2", "127.0.0.9"]), 100).unwrap(), 5);
    let at = |address: &str, port| (address.parse::<IpAddr>().unwrap(), port);
    let others = BTreeSet::from([at("127.0.0.4", 14), at("127.0.0.3", 15), at("::1", 16)]);
    assert_eq!(known(&namespace), others);
    assert_eq!(forget(&namespace, &addresses(&["127.0.0.2"]), 100).unwrap(), 0, "there is none any more");
    assert_eq!(forget(&namespace, &BTreeSet::new(), 100).unwrap(), 0);
    assert_eq!(forget(&namespace, &addresses(&["::1"]), 100).unwrap(), 1);

    let limited = forget(&namespace, &addresses(&["127.0.0.1"]), 1);
    assert!(matches!(limited, Err(ConntrackError::TooMany { limit: 1 })), "{limited:?}");
    assert_eq!(known(&namespace).len(), 1, "what the limit allows is forgotten");
    assert_eq!(forget(&namespace, &addresses(&["127.0.0.1"]), 1).unwrap(), 1);
    assert!(known(&namespace).is_empty());
}

#[test]
fn what_is_cut_off_or_strange_is_no_flow() {
    assert_eq!(flow(&[]), None);
    assert_eq!(flow(&[8, 0, 1, 0x80, 4, 0, 1, 0x80]), None);
}
