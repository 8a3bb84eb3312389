//! Packets that are not plain: fragments, options, errors, what belongs to the link, what is forged.

use std::net::IpAddr;

use sluice_policy_bpf::layout::{
    DropReason, ENDPOINT_ANY_SOURCE, ENDPOINT_AUDIT, ENDPOINT_LOCKDOWN, Endpoint, EventKind, Hook, OwnAddress,
};
use sluice_policy_core::flow::Protocol;

use crate::frame::{ACK, Packet, SYN, ethernet};
use crate::kernel::Action::{Drop, Pass};
use crate::kernel::{Action, INTERFACE, UPLINK, may_run};
use crate::pod::{ALLOW, BROKEN, CLIENT, DENY, DRY, Family, NONE, ONLY_NODE, PORT, Pod, REDIRECT, families};

fn in_both_families(test: impl Fn(&mut Pod, Family)) {
    if !may_run() {
        return;
    }
    for family in families() {
        test(&mut Pod::new(), family);
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The pod sends a packet; what became of it, and why.
fn sent(pod: &mut Pod, packet: &Packet) -> (Action, Option<DropReason>) {
    (pod.sends(packet), pod.why())
}

fn got(pod: &mut Pod, packet: &Packet) -> (Action, Option<DropReason>) {
    (pod.gets(packet), pod.why())
}

const fn dropped(reason: DropReason) -> (Action, Option<DropReason>) {
    (Drop, Some(reason))
}

const PASSED: (Action, Option<DropReason>) = (Pass, None);

#[test]
fn fragments_follow_the_first() {
    in_both_families(|pod, family| {
        let whole = Packet { payload: vec![0; 16], ..Packet::udp((family.own, CLIENT), (family.server, PORT)) };
        let first = |identification| Packet { fragment: Some((identification, 0, true)), ..whole.clone() };
        let later = |identification, offset| Packet {
            fragment: Some((identification, offset, true)),
            payload: vec![0; 16],
            ..whole.clone()
        };
        let last = |identification| Packet { fragment: Some((identification, 40, false)), ..later(identification, 40) };
        pod.policy(DENY, ALLOW);
        assert_eq!(sent(pod, &later(1, 24)), dropped(DropReason::Fragment), "before the first");
        assert_eq!(sent(pod, &first(1)), PASSED);
        assert_eq!((sent(pod, &later(1, 24)), sent(pod, &last(1))), (PASSED, PASSED));
        assert_eq!(sent(pod, &later(2, 24)), dropped(DropReason::Fragment), "of another packet");
        let elsewhere = Packet { destination: family.other, ..later(1, 24) };
        assert_eq!(sent(pod, &elsewhere), dropped(DropReason::Fragment));
        let forged = Packet { source: family.other, ..later(1, 24) };
        assert_eq!(sent(pod, &forged), dropped(DropReason::Fragment));
        // The flow's, whatever comes by a fragment first.
        pod.policy(DENY, DENY);
        assert_eq!(sent(pod, &later(1, 24)), dropped(DropReason::Policy));
        pod.kernel.forget();
        assert_eq!(sent(pod, &first(3)), dropped(DropReason::Policy));
        assert_eq!(sent(pod, &later(3, 24)), dropped(DropReason::Fragment));
        // In the other direction.
        pod.policy(ALLOW, DENY);
        let back = |packet: Packet| Packet { source: packet.destination, destination: packet.source, ..packet };
        assert_eq!((got(pod, &back(first(4))), got(pod, &back(later(4, 24)))), (PASSED, PASSED));
        assert_eq!(sent(pod, &later(4, 24)), dropped(DropReason::Fragment), "of a packet the other way");
    });
}

/// What the first fragment does not show, a later one could write.
#[test]
fn a_first_fragment_has_the_whole_header() {
    in_both_families(|pod, family| {
        let tcp = Packet::tcp((family.own, CLIENT), (family.server, PORT), SYN);
        let raw = |protocol: Protocol, payload: usize, offset| Packet {
            fragment: Some((9, offset, true)),
            payload: vec![0; payload],
            // No header is written for it.
            protocol: 200,
            ..Packet::new(family.own, family.server, protocol)
        };
        let as_protocol = |mut frame: Vec<u8>, protocol: Protocol| {
            // IPv4's protocol; the next header of the fragment header.
            let at = if family.own.is_ipv4() { 14 + 9 } else { 14 + 40 };
            assert_eq!(frame[at], 200);
            frame[at] = protocol.0;
            frame
        };
        for (protocol, header) in [(Protocol::TCP, 20), (Protocol::UDP, 8), (Protocol::SCTP, 12)] {
            let short = as_protocol(raw(protocol, header - 4, 0).frame(), protocol);
            assert_eq!(pod.kernel.run(Hook::FromPod, &short, 0), Drop, "{protocol}");
            assert_eq!(pod.why(), Some(DropReason::Fragment), "{protocol}");
        }
        assert_eq!(sent(pod, &Packet { fragment: Some((9, 0, true)), ..tcp.clone() }), PASSED);
        let over = Packet { fragment: Some((9, 8, true)), payload: vec![0; 16], ..tcp.clone() };
        assert_eq!(sent(pod, &over), dropped(DropReason::Fragment));
        // RFC 6946: a fragment header, and all of the packet.
        if family.own.is_ipv6() {
            assert_eq!(sent(pod, &Packet { fragment: Some((10, 0, false)), ..tcp.clone() }), PASSED);
            assert_eq!(sent(pod, &Packet { fragment: Some((10, 24, false)), ..tcp }), dropped(DropReason::Fragment));
        }
    });
}

#[test]
fn options_and_extension_headers_are_walked() {
    if !may_run() {
        return;
    }
    let mut pod = Pod::new();
    let [v4, v6] = families();
    pod.policy(DENY, ALLOW);
    let tcp = |family: Family| Packet::tcp((family.own, CLIENT), (family.server, PORT), SYN);
    let options = |options: &[u8]| Packet { options: options.to_vec(), ..tcp(v4) };
    // Router alert; no operation and end; record route.
    for fine in [&[148, 4, 0, 0][..], &[1, 1, 1, 0], &[7, 7, 4, 0, 0, 0, 0, 0]] {
        assert_eq!(sent(&mut pod, &options(fine)), PASSED, "{fine:?}");
        assert_eq!(pod.told(), []);
    }
    assert_eq!(pod.flow().unwrap().state, 0, "all are one flow");
    for route in [&[131, 7, 4, 10, 0, 0, 9, 0][..], &[137, 7, 4, 10, 0, 0, 9, 0], &[1, 148, 4, 0, 0, 131, 3, 4]] {
        assert_eq!(sent(&mut pod, &options(route)), dropped(DropReason::SourceRoute), "{route:?}");
    }
    assert_eq!(sent(&mut pod, &options(&[148, 1, 0, 0])), dropped(DropReason::Malformed));
    // What looks like an option behind the end is none.
    assert_eq!(sent(&mut pod, &options(&[0, 131, 3, 4])), PASSED);

    pod.kernel.forget();
    let extensions = |list: &[(u8, usize)]| Packet {
        extensions: list.iter().map(|(kind, length)| (*kind, vec![0; *length])).collect(),
        ..tcp(v6)
    };
    assert_eq!(sent(&mut pod, &extensions(&[(0, 8), (60, 16), (43, 24), (51, 24), (60, 8), (135, 8)])), PASSED);
    let key = pod.key((v6.own, CLIENT), (v6.server, PORT), 6);
    assert!(pod.kernel.connections.get(&key, 0).is_ok(), "the ports are those behind the headers");
    assert_eq!(sent(&mut pod, &extensions(&[(60, 8); 8])), PASSED);
    assert_eq!(sent(&mut pod, &extensions(&[(60, 8); 9])), dropped(DropReason::Malformed));
    let mut routed = extensions(&[(43, 24)]);
    routed.extensions[0].1[3] = 1;
    assert_eq!(sent(&mut pod, &routed), dropped(DropReason::SourceRoute));
    let mut frame = extensions(&[(60, 8)]).frame();
    frame[14 + 40 + 1] = 200;
    assert_eq!(pod.kernel.run(Hook::FromPod, &frame, 0), Drop, "a header longer than the packet");
}

#[test]
fn a_packet_cut_short_is_dropped() {
    in_both_families(|pod, family| {
        for packet in [
            Packet::tcp((family.own, CLIENT), (family.server, PORT), SYN),
            Packet::udp((family.own, CLIENT), (family.server, PORT)),
            Packet::icmp(family.own, family.server, if family.own.is_ipv4() { 8 } else { 128 }, 1),
        ] {
            let frame = Packet { payload: Vec::new(), ..packet }.frame();
            assert_eq!(pod.kernel.run(Hook::FromPod, &frame, 0), Pass);
            // The kernel takes no frame without a whole IP header for this test.
            for length in 14 + if family.own.is_ipv4() { 20 } else { 40 }..frame.len() {
                assert_eq!(pod.kernel.run(Hook::FromPod, &frame[..length], 0), Drop, "{length}");
                assert_eq!(pod.why(), Some(DropReason::Malformed));
            }
            // Padding is not of the packet.
            let padded = [&frame[..], &[0; 30]].concat();
            assert_eq!(pod.kernel.run(Hook::FromPod, &padded, 0), Pass);
            let mut short = padded;
            let at = if family.own.is_ipv4() { 14 + 3 } else { 14 + 5 };
            short[at] -= 1;
            assert_eq!(pod.kernel.run(Hook::FromPod, &short, 0), Drop);
        }
    });
}

#[test]
fn a_pod_sends_from_its_own_addresses() {
    in_both_families(|pod, family| {
        let forged = Packet::tcp((family.other, CLIENT), (family.server, PORT), SYN);
        assert_eq!(sent(pod, &forged), dropped(DropReason::Spoofed));
        pod.flags(ENDPOINT_ANY_SOURCE);
        assert_eq!(sent(pod, &forged), PASSED);
        pod.flags(0);
        let to_itself = Packet::tcp((family.own, CLIENT), (family.own, PORT), SYN);
        assert_eq!(got(pod, &to_itself), dropped(DropReason::Spoofed), "from elsewhere");
        pod.policy(DENY, DENY);
        assert_eq!(sent(pod, &to_itself), PASSED, "a pod may reach itself");
    });
    if may_run() {
        let mut pod = Pod::new();
        let mapped = |text: &str| address(&format!("::ffff:{text}"));
        let packet = Packet::tcp((mapped("10.0.0.1"), CLIENT), (families()[1].server, PORT), SYN);
        assert_eq!(sent(&mut pod, &packet), dropped(DropReason::Malformed));
        let packet = Packet::tcp((families()[1].own, CLIENT), (mapped("10.0.0.20"), PORT), SYN);
        assert_eq!(sent(&mut pod, &packet), dropped(DropReason::Malformed));
    }
}

#[test]
fn the_node_is_who_has_no_interface() {
    in_both_families(|pod, family| {
        pod.policy(ONLY_NODE, DENY);
        let probe = Packet::tcp((family.other, CLIENT), (family.own, PORT), SYN);
        assert_eq!(got(pod, &probe), dropped(DropReason::Policy), "the same address, forwarded");
        assert_eq!(pod.kernel.run(Hook::ToPod, &probe.frame(), 0), Pass);
        assert_eq!(pod.sends(&Packet::tcp((family.own, PORT), (family.other, CLIENT), SYN | ACK)), Pass);
        // Judged again by an answer, it is still the node's.
        pod.policy(ONLY_NODE, NONE);
        assert_eq!(pod.sends(&Packet::tcp((family.own, PORT), (family.other, CLIENT), ACK)), Pass);
    });
}

#[test]
fn errors_of_known_flows_pass() {
    in_both_families(|pod, family| {
        pod.policy(DENY, DENY);
        let kinds: &[u8] = if family.own.is_ipv4() { &[3, 11, 12] } else { &[1, 2, 3, 4] };
        let out = Packet::tcp((family.own, CLIENT), (family.server, PORT), SYN);
        let back = Packet::tcp((family.server, PORT), (family.own, CLIENT), SYN | ACK);
        for kind in kinds {
            // By a router on the way.
            assert_eq!(got(pod, &out.error(family.other, family.own, *kind)), dropped(DropReason::Policy));
        }
        pod.policy(DENY, ALLOW);
        assert_eq!((sent(pod, &out), got(pod, &back)), (PASSED, PASSED));
        pod.kernel.events();
        for kind in kinds {
            assert_eq!(got(pod, &out.error(family.other, family.own, *kind)), PASSED);
            let stranger = Packet::tcp((family.own, CLIENT + 1), (family.server, PORT), SYN);
            assert_eq!(got(pod, &stranger.error(family.other, family.own, *kind)), dropped(DropReason::Policy));
            assert_eq!(got(pod, &back.error(family.other, family.own, *kind)), dropped(DropReason::Policy), "not sent");
        }
        // By the pod, about what it got: to who sent that, and to nobody else.
        pod.policy(ALLOW, DENY);
        let asked = Packet::udp((family.server, CLIENT), (family.own, PORT));
        assert_eq!(got(pod, &asked), PASSED);
        assert_eq!(sent(pod, &asked.error(family.own, family.server, kinds[0])), PASSED);
        assert_eq!(sent(pod, &asked.error(family.own, family.other, kinds[0])), dropped(DropReason::Policy));
        // Of an echo; and an error is no error's.
        pod.policy(DENY, ALLOW);
        let echo = Packet::icmp(family.own, family.server, if family.own.is_ipv4() { 8 } else { 128 }, 3);
        assert_eq!(sent(pod, &echo), PASSED);
        assert_eq!(got(pod, &echo.error(family.other, family.own, kinds[0])), PASSED);
        let of_error = echo.error(family.own, family.server, kinds[0]).error(family.other, family.own, kinds[0]);
        assert_eq!(got(pod, &of_error), dropped(DropReason::Policy));
        // Denied since.
        pod.policy(DENY, DENY);
        assert_eq!(got(pod, &echo.error(family.other, family.own, kinds[0])), dropped(DropReason::Policy));
    });
}

#[test]
fn neighbours_are_found_whatever_policy_says() {
    if !may_run() {
        return;
    }
    let mut pod = Pod::new();
    pod.policy(DENY, DENY);
    let own = families()[1].own;
    let gateway = address("fe80::1");
    let message = |source, destination, kind, target: IpAddr| {
        let IpAddr::V6(target) = target else { panic!("{target}") };
        Packet { hops: 255, payload: target.octets().to_vec(), ..Packet::icmp(source, destination, kind, 0) }
    };
    let nodes = address("ff02::1:ff00:1");
    for fine in [
        message(own, nodes, 135, gateway),
        message(address("::"), nodes, 135, own),
        message(address("fe80::2"), address("ff02::2"), 133, gateway),
        message(own, gateway, 136, own),
        message(address("fe80::2"), gateway, 136, address("fe80::2")),
    ] {
        assert_eq!(sent(&mut pod, &fine), PASSED, "{fine:?}");
        let routed = Packet { hops: 64, ..fine };
        assert_eq!(pod.sends(&routed), Drop, "it came through a router: {routed:?}");
        pod.kernel.events();
    }
    let stranger = address("2001:db8::99");
    for forged in [
        message(own, gateway, 136, stranger),
        message(stranger, nodes, 135, gateway),
        // CVE-2020-10749
        message(address("fe80::2"), address("ff02::1"), 134, own),
        message(own, gateway, 137, own),
    ] {
        assert_eq!(sent(&mut pod, &forged), dropped(DropReason::Spoofed), "{forged:?}");
    }
    for kind in [134, 135, 136, 137] {
        assert_eq!(got(&mut pod, &message(gateway, own, kind, own)), PASSED);
    }
    // What the gate lets pass for the link is no way past it: it is not forwarded, to an uplink or to another pod.
    const SENDER: u32 = 60;
    let mut sender = Endpoint { id: 8, revision: 1, egress: ALLOW, ..Endpoint::default() };
    sender.addresses[0] = OwnAddress { address: own.into(), ..OwnAddress::default() };
    let probe = message(own, stranger, 135, stranger);
    assert_eq!(sent(&mut pod, &probe), PASSED, "whether it is reachable: its address may be on the link");
    for kind in [130, 133, 135, 136, 143] {
        let forwarded = Packet { hops: 254, flags: kind, ..probe.clone() };
        assert_eq!(pod.kernel.run(Hook::Uplink, &forwarded.frame(), INTERFACE), Drop);
        assert_eq!(pod.why(), Some(DropReason::Policy));
        pod.policy(NONE, NONE);
        pod.kernel.put(SENDER, sender);
        assert_eq!(pod.kernel.run(Hook::ToPod, &forwarded.frame(), SENDER), Drop);
        let elsewhere = Packet { source: stranger, ..forwarded };
        assert_eq!(got(&mut pod, &elsewhere), PASSED, "nothing is known of its sender");
        pod.policy(DENY, DENY);
    }
    let report = Packet { hops: 1, ..message(address("fe80::2"), address("ff02::16"), 143, own) };
    assert_eq!(sent(&mut pod, &Packet { extensions: vec![(0, vec![0, 0, 5, 2, 0, 0, 1, 0])], ..report }), PASSED);

    let arp = |sender: &str| {
        let IpAddr::V4(sender) = address(sender) else { panic!("{sender}") };
        let mut message = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1];
        message.extend(sender.octets());
        message.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 20]);
        ethernet(0x0806, &message)
    };
    for (sender, action) in [("10.0.0.1", Pass), ("0.0.0.0", Pass), ("10.0.0.20", Drop)] {
        assert_eq!(pod.kernel.run(Hook::FromPod, &arp(sender), 0), action, "{sender}");
    }
    assert_eq!(pod.kernel.run(Hook::ToPod, &arp("10.0.0.20"), 0), Pass);
    assert_eq!(pod.kernel.run(Hook::FromPod, &arp("10.0.0.1")[..30], 0), Drop);
}

#[test]
fn what_is_not_ip_is_dropped() {
    if !may_run() {
        return;
    }
    let mut pod = Pod::new();
    let tagged = [&[0, 5, 8, 0][..], &Packet::new(families()[0].own, families()[0].server, Protocol(47)).ip()].concat();
    for (kind, content) in [(0x8100, &tagged[..]), (0x88cc, &[0; 46]), (0x0026, &[0; 46]), (0x8847, &[0; 46])] {
        assert_eq!(pod.kernel.run(Hook::FromPod, &ethernet(kind, content), 0), Drop);
        assert_eq!(pod.why(), Some(DropReason::NotIp), "{kind:x}");
    }
    // A header that is not what the frame says.
    let v4 = Packet::udp((families()[0].own, CLIENT), (families()[0].server, PORT)).ip();
    assert_eq!(pod.kernel.run(Hook::FromPod, &ethernet(0x86dd, &[&v4[..], &[0; 40]].concat()), 0), Drop);
    assert_eq!(pod.why(), Some(DropReason::Malformed));
}

#[test]
fn flags_of_an_endpoint() {
    in_both_families(|pod, family| {
        let packet = Packet::tcp((family.own, CLIENT), (family.server, PORT), SYN);
        let back = Packet::tcp((family.server, PORT), (family.own, CLIENT), SYN | ACK);
        pod.policy(DENY, ALLOW);
        assert_eq!((sent(pod, &packet), got(pod, &back)), (PASSED, PASSED));
        pod.flags(ENDPOINT_LOCKDOWN);
        assert_eq!(sent(pod, &Packet { flags: ACK, ..packet.clone() }), dropped(DropReason::Lockdown));
        assert_eq!(got(pod, &back), dropped(DropReason::Lockdown));
        pod.flags(0);
        assert_eq!(got(pod, &back), PASSED);

        // A dry run: what would be dropped passes, and is told.
        pod.kernel.forget();
        pod.flags(ENDPOINT_AUDIT);
        for (policy, verdict) in [(DENY, 2), (REDIRECT, 3), (BROKEN, 2), (DRY, 2), (ALLOW, 1)] {
            pod.policy(NONE, policy);
            pod.kernel.forget();
            assert_eq!(pod.sends(&packet), Pass);
            let event = pod.kernel.events().pop().unwrap();
            assert_eq!((event.kind, event.verdict, event.audit), (EventKind::Flow.number(), verdict, 1));
        }
        // A policy that is a dry run: what it would do is in the decision.
        pod.flags(0);
        pod.policy(NONE, DRY);
        pod.kernel.forget();
        assert_eq!(pod.sends(&packet), Pass);
        let event = pod.kernel.events().pop().unwrap();
        assert_eq!((event.verdict, event.audit, event.decision), (1, 0, DRY));
        pod.policy(NONE, BROKEN);
        pod.kernel.forget();
        assert_eq!(sent(pod, &packet), dropped(DropReason::Broken));
    });
}

/// What is told of a packet.
#[test]
fn an_event_says_who_and_what() {
    in_both_families(|pod, family| {
        pod.policy(DENY, ALLOW);
        let packet = Packet::tcp((family.server, 1234), (family.own, PORT), SYN);
        assert_eq!(pod.gets(&packet), Drop);
        let event = pod.kernel.events().pop().unwrap();
        assert_eq!((event.endpoint, event.interface, event.decision), (7, INTERFACE, DENY));
        assert_eq!((IpAddr::from(event.own), IpAddr::from(event.peer)), (family.own, family.server));
        assert_eq!((event.own_port, event.peer_port, event.protocol, event.flags), (PORT, 1234, 6, SYN));
        assert_eq!((event.hook, event.direction, event.verdict), (Hook::ToPod.number(), 0, 2));
        assert_eq!(usize::try_from(event.length).unwrap(), packet.frame().len());
        assert!(event.time > 0);
        assert_eq!(pod.kernel.run(Hook::ToPod, &packet.frame(), UPLINK), Drop);
    });
}
