//! Rules of application protocols beside plain ones.

use super::*;

#[test]
fn application_rules_never_narrow_a_plain_allow_of_the_same_peer() {
    // Reference 2.7, items 1 and 2.
    let l4 = cnp("l4", [spec([plain(endpoints("a"), tcp(80)), http(endpoints("a"), tcp(80))], [])]);
    assert_eq!(a80([l4]), "redirect l4[1] else allow l4[0]");
    let l3 = cnp("l3", [spec([http(endpoints("a"), tcp(80)), plain(endpoints("a"), Ports::Any)], [])]);
    assert_eq!(a80([l3]), "redirect l3[0] else allow l3[1]");
    let anyone = cnp("any", [spec([http(endpoints("a"), tcp(80)), plain(CiliumPeers::Any, tcp(80))], [])]);
    assert_eq!(a80([anyone]), "redirect any[0] else allow any[1]");
    let l7 = || cnp("l7", [spec([http(endpoints("a"), tcp(80))], [])]);
    assert_eq!(a80([l7()]), "redirect l7[0] else deny isolated l7");
    assert_eq!(a80([l7(), np("np", [(np_peers("a"), tcp(80))])]), "redirect l7[0] else allow np[0]");
    // One element may have both.
    let ports = vec![
        CiliumPorts::of(vec![one(TCP, 80)]),
        CiliumPorts { ports: tcp(80), application: Application::Http([].into()) },
    ];
    let mixed = CiliumAllow { peers: endpoints("a"), ports };
    assert_eq!(a80([cnp("mix", [spec([Ok(mixed)], [])])]), "redirect mix[0].1 else allow mix[0]");
}

#[test]
fn cve_2023_30851_an_allow_of_one_peer_is_not_a_wildcard_for_another() {
    // Reference 2.7 item 3: a's rules stay a's; b passes whole; c is dropped before the proxy.
    let program = ingress([cnp(
        "cnp",
        [spec(
            [http(CiliumPeers::Endpoints(vec![app("a"), app("b")]), tcp(80)), plain(endpoints("b"), Ports::Any)],
            [],
        )],
    )]);
    assert_eq!(ask(&program, &pod("a"), TCP, 80), "redirect cnp[0] else deny isolated cnp");
    assert_eq!(ask(&program, &pod("b"), TCP, 80), "redirect cnp[0] else allow cnp[1]");
    assert_eq!(ask(&program, &pod("c"), TCP, 80), "deny isolated cnp");
}

#[test]
fn cve_2024_52529_a_plain_range_does_not_skip_the_proxy() {
    let ranged = ports([range(TCP, 8000, 9000)]);
    let policies = [cnp("cnp", [spec([plain(endpoints("a"), ranged), http(CiliumPeers::Any, tcp(8080))], [])])];
    let program = ingress(policies);
    assert_eq!(ask(&program, &pod("a"), TCP, 8080), "redirect cnp[1] else allow cnp[0]");
    assert_eq!(ask(&program, &pod("a"), TCP, 8081), "allow cnp[0]");
    assert_eq!(ask(&program, &pod("b"), TCP, 8080), "redirect cnp[1] else deny isolated cnp");
}

#[test]
fn a_deny_keeps_a_packet_from_the_proxy() {
    let rules = spec([http(endpoints("a"), tcp(80))], [deny(CiliumPeers::Any, tcp(80))]);
    assert_eq!(a80([cnp("cnp", [rules])]), "deny cnp![0]");
}

#[test]
fn application_rules_of_overlapping_ranges_are_split_and_united() {
    // Reference 2.7 item 5.
    let program = ingress([cnp(
        "cnp",
        [spec(
            [
                http(CiliumPeers::Any, ports([range(TCP, 70, 90)])),
                http(CiliumPeers::Any, ports([range(TCP, 80, 8080)])),
            ],
            [],
        )],
    )]);
    for (port, expected) in [
        (69, "deny isolated cnp"),
        (70, "redirect cnp[0] else deny isolated cnp"),
        (79, "redirect cnp[0] else deny isolated cnp"),
        (80, "redirect cnp[0] cnp[1] else deny isolated cnp"),
        (90, "redirect cnp[0] cnp[1] else deny isolated cnp"),
        (91, "redirect cnp[1] else deny isolated cnp"),
        (8080, "redirect cnp[1] else deny isolated cnp"),
        (8081, "deny isolated cnp"),
    ] {
        assert_eq!(ask(&program, &[], TCP, port), expected, "{port}");
        assert_eq!(ask(&program, &[], UDP, port), "deny isolated cnp", "{port}");
    }
}

#[test]
fn dns_and_http_rules_that_meet_on_a_port_grant_nothing() {
    let rules = |and: Vec<Usable<CiliumAllow>>| {
        let parts = [dns(endpoints("a"), both(53)), http(endpoints("a"), ports([range(TCP, 50, 60)]))];
        ingress([cnp("cnp", [spec(parts.into_iter().chain(and), [])])])
    };
    let program = rules(vec![]);
    assert_eq!(ask(&program, &pod("a"), TCP, 53), "deny isolated cnp");
    assert_eq!(ask(&program, &pod("a"), TCP, 54), "redirect cnp[1] else deny isolated cnp");
    assert_eq!(ask(&program, &pod("a"), UDP, 53), "redirect cnp[0] else deny isolated cnp");
    assert_eq!(ask(&rules(vec![plain(CiliumPeers::Any, tcp(53))]), &pod("a"), TCP, 53), "allow cnp[2]");
    // Server names and HTTP can share a port.
    let names = allow(endpoints("a"), tcp(443), Application::ServerNames([].into()));
    let tls = ingress([cnp("tls", [spec([names, http(endpoints("a"), tcp(443))], [])])]);
    assert_eq!(ask(&tls, &pod("a"), TCP, 443), "redirect tls[0] tls[1] else deny isolated tls");
}

#[test]
fn application_rules_hold_for_the_protocols_of_their_parsers_only() {
    let wide = |application| {
        let transport = PortMatch { protocol: ProtocolMatch::Transport, port: PortTarget::Range(53, 53) };
        cnp("cnp", [spec([allow(CiliumPeers::Any, ports([transport]), application)], [])])
    };
    let dns = ingress([wide(Application::Dns([].into()))]);
    let redirect = "redirect cnp[0] else deny isolated cnp";
    for (protocol, expected) in [(TCP, redirect), (UDP, redirect), (SCTP, "deny isolated cnp")] {
        assert_eq!(ask(&dns, &[], protocol, 53), expected);
    }
    let http = ingress([wide(Application::Http([].into()))]);
    assert_eq!(ask(&http, &[], TCP, 53), redirect);
    assert_eq!(ask(&http, &[], UDP, 53), "deny isolated cnp");
    let every = ingress([cnp("cnp", [spec([world::http(CiliumPeers::Any, Ports::Any)], [])])]);
    assert_eq!(ask(&every, &[], TCP, 1), redirect);
    assert_eq!(ask(&every, &[], UDP, 1), "deny isolated cnp");
    assert_eq!(ask(&every, &[], GRE, 0), "deny isolated cnp");
}
