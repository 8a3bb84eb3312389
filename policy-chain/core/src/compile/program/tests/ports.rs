//! Protocols, ICMP, named ports.

use super::*;

#[test]
fn a_rule_opens_its_own_protocol_only() {
    let program = ingress([np("np", [(NetworkPeers::All, ports([one(SCTP, 80), all_of(UDP)]))])]);
    assert_eq!(ask(&program, &[], SCTP, 80), "allow np[0]");
    assert_eq!(ask(&program, &[], TCP, 80), "deny isolated np");
    assert_eq!(ask(&program, &[], UDP, 65535), "allow np[0]");
    assert_eq!(ask(&program, &[], GRE, 0), "deny isolated np");
    assert_eq!(ask(&program, &[], Protocol::ICMP, 8), "deny isolated np");
}

#[test]
fn every_protocol_is_more_than_the_transports() {
    let transport = PortMatch { protocol: ProtocolMatch::Transport, port: PortTarget::Any };
    let program = ingress([np("np", [(np_peers("a"), ports([transport])), (np_peers("b"), Ports::Any)])]);
    for protocol in [TCP, UDP, SCTP] {
        assert_eq!(ask(&program, &pod("a"), protocol, 0), "allow np[0]");
        assert_eq!(ask(&program, &pod("a"), protocol, 65535), "allow np[0]");
    }
    for protocol in [Protocol::ICMP, Protocol::ICMPV6, GRE, Protocol(0), Protocol(255)] {
        assert_eq!(ask(&program, &pod("a"), protocol, 0), "deny isolated np");
        assert_eq!(ask(&program, &pod("b"), protocol, 0), "allow np[1]");
    }
    assert_eq!(row(&program, &pod("b"), &[], Origin::Forwarded).entries.len(), 1);
    assert_eq!(row(&program, &pod("a"), &[], Origin::Forwarded).entries.len(), 4);
}

#[test]
fn icmp_types_are_the_ports_of_icmp() {
    let types = ports([one(Protocol::ICMP, 8), one(Protocol::ICMPV6, 128), all_of(GRE)]);
    let program = ingress([cnp("cnp", [spec([plain(CiliumPeers::Any, types)], [])])]);
    assert_eq!(ask(&program, &[], Protocol::ICMP, 8), "allow cnp[0]");
    assert_eq!(ask(&program, &[], Protocol::ICMP, 0), "deny isolated cnp");
    assert_eq!(ask(&program, &[], Protocol::ICMPV6, 128), "allow cnp[0]");
    assert_eq!(ask(&program, &[], Protocol::ICMPV6, 8), "deny isolated cnp");
    assert_eq!(ask(&program, &[], GRE, 0), "allow cnp[0]");
    assert_eq!(ask(&program, &[], TCP, 8), "deny isolated cnp");
}

#[test]
fn named_ports_are_the_subjects_on_ingress_and_the_peers_on_egress() {
    let http_port = || ports([named(ProtocolMatch::Exactly(TCP), "http")]);
    let policies = [selected(np("np", [(np_peers("a"), http_port())]))];
    let own = [port("http", TCP, 8080), port("http", UDP, 9090), port("https", TCP, 8443)];
    let of =
        |direction| Program::new(direction, &policies, &template(&own), &|_| Networks::default(), &Settings::default());
    let ingress = of(Direction::Ingress);
    assert!(ingress.named_ports().is_empty());
    assert_eq!(ask(&ingress, &pod("a"), TCP, 8080), "allow np[0]");
    assert_eq!(ask(&ingress, &pod("a"), UDP, 9090), "deny isolated np");
    assert_eq!(ask(&ingress, &pod("a"), TCP, 8443), "deny isolated np");

    let egress = of(Direction::Egress);
    assert_eq!(egress.named_ports(), ["http".into()]);
    let answer =
        |ports: &[NamedPort], number| say(row(&egress, &pod("a"), ports, Origin::Forwarded).get(TCP, number).unwrap());
    assert_eq!(answer(&[], 8080), "deny isolated np");
    for number in [80, 3000] {
        let theirs = [port("http", TCP, number), port("metrics", TCP, 9)];
        assert_eq!(answer(&theirs, number), "allow np[0]");
        assert_eq!(answer(&theirs, 8080), "deny isolated np");
        assert_eq!(answer(&theirs, 9), "deny isolated np");
    }
    assert_eq!(answer(&[port("http", UDP, 80)], 80), "deny isolated np");
}

#[test]
fn a_named_port_of_no_protocol_is_that_of_the_container_port() {
    let any = || ports([named(ProtocolMatch::Transport, "dns")]);
    let program = program(Direction::Egress, [np("np", [(np_peers("a"), any())])]);
    let theirs = [port("dns", UDP, 53), port("dns", TCP, 5353)];
    let row = row(&program, &pod("a"), &theirs, Origin::Forwarded);
    for (protocol, number, expected) in [
        (UDP, 53, "allow np[0]"),
        (TCP, 5353, "allow np[0]"),
        (TCP, 53, "deny isolated np"),
        (UDP, 5353, "deny isolated np"),
    ] {
        assert_eq!(say(row.get(protocol, number).unwrap()), expected);
    }
}

#[test]
fn a_peers_ports_matter_only_to_the_rules_that_mean_it() {
    let http_port = ports([named(ProtocolMatch::Exactly(TCP), "http")]);
    let program = program(Direction::Egress, [np("np", [(np_peers("a"), http_port), (np_peers("b"), tcp(80))])]);
    let key = |peer: &[Predicate], ports: &[NamedPort]| {
        let holds = |index: usize| peer.contains(&program.predicates()[index]);
        program.key(&PeerFacts { holds: &holds, named_ports: ports, origin: Origin::Forwarded })
    };
    let (one, two) = ([port("http", TCP, 1), port("x", TCP, 1)], [port("http", TCP, 2)]);
    assert_eq!(key(&pod("b"), &one), key(&pod("b"), &two));
    assert_ne!(key(&pod("a"), &one), key(&pod("a"), &two));
    assert_eq!(key(&pod("a"), &one), key(&pod("a"), &one[..1]));
    assert_eq!(key(&[], &one), program.default_key(Origin::Forwarded));
}

// C, and a pod that reaches itself.
