//! What a flow is, and how long it is one.

use sluice_policy_bpf::layout::{
    CONNECTION_ADOPTED, CONNECTION_ANSWERED, CONNECTION_FIN, CONNECTION_FIN_BACK, CONNECTION_MIDSTREAM,
    CONNECTION_PROXIED, CONNECTION_RESET, Connection, DropReason, EventKind, FlowDirection, Hook,
    SETTING_KEEP_ESTABLISHED, Settings, Verdict,
};
use sluice_policy_core::flow::Protocol;

use crate::frame::{ACK, FIN, Packet, RST, SYN};
use crate::kernel::Action::{Drop, Pass};
use crate::kernel::{FREE_INTERFACE, UPLINK, may_run};
use crate::pod::{ALLOW, CLIENT, DENY, Family, NONE, ONLY_DNS, ONLY_NODE, ONLY_SERVER, PORT, Pod, REDIRECT, families};

/// ns.
const SECOND: u64 = 1_000_000_000;

/// Runs a test for IPv4 and IPv6, each with a pod of its own.
fn in_both_families(test: impl Fn(&mut Pod, Family)) {
    if !may_run() {
        return;
    }
    for family in families() {
        test(&mut Pod::new(), family);
    }
}

/// A TCP segment of the pod as a client of `family.server`, and one of the server.
fn client(family: Family) -> (impl Fn(u8) -> Packet, impl Fn(u8) -> Packet) {
    let (own, peer) = ((family.own, CLIENT), (family.server, PORT));
    (move |flags| Packet::tcp(own, peer, flags), move |flags| Packet::tcp(peer, own, flags))
}

/// A TCP segment of the pod as a server of `family.server`, and one of its client.
fn server(family: Family) -> (impl Fn(u8) -> Packet, impl Fn(u8) -> Packet) {
    let (own, peer) = ((family.own, PORT), (family.server, CLIENT));
    (move |flags| Packet::tcp(own, peer, flags), move |flags| Packet::tcp(peer, own, flags))
}

#[test]
fn answers_pass_and_nothing_else() {
    in_both_families(|pod, family| {
        pod.policy(DENY, ALLOW);
        let (out, back) = client(family);
        assert_eq!(pod.gets(&back(SYN | ACK)), Drop);
        assert_eq!(pod.sends(&out(SYN)), Pass);
        assert_eq!(pod.gets(&back(SYN | ACK)), Pass);
        assert_eq!(pod.sends(&out(ACK)), Pass);
        assert_eq!(pod.gets(&back(ACK)), Pass);
        let (own, peer) = ((family.own, CLIENT), (family.server, PORT));
        for stranger in [
            Packet::tcp((family.server, PORT + 1), own, ACK),
            Packet::tcp((family.other, PORT), own, ACK),
            Packet::tcp(peer, (family.own, CLIENT + 1), ACK),
            Packet::udp(peer, own),
        ] {
            assert_eq!(pod.gets(&stranger), Drop, "{stranger:?}");
        }
        assert_eq!(pod.kernel.dropped(DropReason::Policy), 5);
        assert_eq!(pod.kernel.counted(DENY), 5);
        assert_eq!(pod.kernel.counted(ALLOW), 1, "a flow is judged once");
    });
}

#[test]
fn a_server_port_that_is_allowed_is_no_way_out() {
    in_both_families(|pod, family| {
        pod.policy(ONLY_DNS, DENY);
        let server = (family.own, 53);
        let asked = Packet::udp((family.other, CLIENT), server);
        let answer = Packet::udp(server, (family.other, CLIENT));
        assert_eq!(pod.sends(&answer), Drop);
        assert_eq!(pod.gets(&asked), Pass);
        assert_eq!(pod.sends(&answer), Pass);
        assert_eq!(pod.sends(&Packet::udp(server, (family.other, CLIENT + 1))), Drop);
        assert_eq!(pod.sends(&Packet::udp(server, (family.server, CLIENT))), Drop);
    });
}

/// A segment whose flow nobody knows is for a time taken for an answer. An ACK that never reaches its destination (its hop
/// limit is 1) makes a flow of it, which a SYN then must not ride on.
#[test]
fn an_ack_then_a_syn_is_no_way_out() {
    in_both_families(|pod, family| {
        pod.policy(ALLOW, DENY);
        pod.adopt(60);
        let (out, back) = server(family);
        assert_eq!(pod.sends(&out(SYN)), Drop);
        assert_eq!(pod.sends(&Packet { hops: 1, ..out(ACK) }), Pass);
        assert_eq!(pod.flow().unwrap().state & CONNECTION_ADOPTED, CONNECTION_ADOPTED);
        assert_eq!(pod.sends(&out(SYN)), Drop);
        assert_eq!(pod.why(), Some(DropReason::Policy));
        assert_eq!(pod.gets(&back(ACK)), Pass, "the adopted flow is as it was");
        assert_eq!(pod.sends(&Packet::udp((family.own, PORT), (family.server, CLIENT))), Drop, "UDP is not adopted");

        pod.adopt(-1);
        pod.kernel.forget();
        assert_eq!(pod.sends(&out(ACK)), Drop);
        pod.policy(DENY, ALLOW);
        assert_eq!(pod.gets(&back(ACK)), Drop);
        pod.adopt(60);
        assert_eq!(pod.gets(&back(ACK)), Pass);
    });
}

/// What neither direction allows is not adopted, and what the packet's own direction allows is a flow of that.
#[test]
fn only_what_policy_allows_is_adopted() {
    in_both_families(|pod, family| {
        pod.policy(DENY, DENY);
        pod.adopt(60);
        let (out, back) = client(family);
        assert_eq!((pod.sends(&out(ACK)), pod.gets(&back(ACK))), (Drop, Drop));
        pod.policy(DENY, ALLOW);
        assert_eq!(pod.sends(&out(ACK)), Pass);
        assert_eq!(pod.flow().unwrap().state, CONNECTION_MIDSTREAM);
    });
}

#[test]
fn a_reset_ends_a_flow_unless_it_goes_on() {
    in_both_families(|pod, family| {
        pod.policy(DENY, ALLOW);
        let (out, back) = client(family);
        for by_pod in [true, false] {
            let reset = |pod: &Pod| if by_pod { pod.sends(&out(RST)) } else { pod.gets(&back(RST | ACK)) };
            assert_eq!((pod.sends(&out(SYN)), pod.gets(&back(SYN | ACK))), (Pass, Pass));
            let open = pod.flow().unwrap();
            drop(pod.told());
            assert_eq!((reset(pod), pod.told()), (Pass, vec![EventKind::Closed]));
            let soon = pod.flow().unwrap();
            assert_eq!(soon.state, open.state | CONNECTION_RESET);
            assert!(soon.expires < open.expires - 1000 * SECOND);
            assert_eq!((reset(pod), pod.told()), (Pass, vec![]), "told once");
            assert_eq!(pod.flow().unwrap().state, soon.state);
            // It was forged, and the receiver did not believe it: seen as soon as a packet is looked at whole.
            pod.kernel.forget_recent();
            assert_eq!(pod.gets(&back(ACK)), Pass);
            let lives = pod.flow().unwrap();
            assert_eq!(lives.state, open.state);
            assert!(lives.expires >= open.expires);
            // It was not, and the port is used again.
            assert_eq!(reset(pod), Pass);
            assert_eq!(pod.gets(&back(SYN)), Drop);
            drop(pod.told());
            assert_eq!((pod.sends(&out(SYN)), pod.told()), (Pass, vec![EventKind::Flow]));
            assert_eq!(pod.flow().unwrap().state, 0);
            // Or not, and its time is soon up.
            assert_eq!(reset(pod), Pass);
            pod.expire();
            assert_eq!(pod.gets(&back(ACK)), Drop);
            pod.kernel.forget();
        }
        assert_eq!(pod.sends(&out(RST)), Pass, "judged as any packet");
        assert_eq!(pod.flow(), None, "and of no flow");
    });
}

#[test]
fn a_finished_flow_lasts_for_what_is_on_its_way() {
    in_both_families(|pod, family| {
        pod.policy(DENY, ALLOW);
        let (out, back) = client(family);
        assert_eq!((pod.sends(&out(SYN)), pod.gets(&back(SYN | ACK))), (Pass, Pass));
        let open = pod.flow().unwrap().expires;
        assert_eq!(pod.sends(&out(FIN | ACK)), Pass);
        assert_eq!(pod.flow().unwrap().state & (CONNECTION_FIN | CONNECTION_FIN_BACK), CONNECTION_FIN);
        drop(pod.told());
        assert_eq!(pod.gets(&back(FIN | ACK)), Pass);
        assert_eq!(pod.told(), [EventKind::Closed]);
        assert_eq!((pod.sends(&out(ACK)), pod.gets(&back(ACK))), (Pass, Pass));
        assert!(pod.flow().unwrap().expires < open, "it is forgotten sooner");
        assert_eq!(pod.told(), []);
        // The next one, from the same port.
        assert_eq!((pod.sends(&out(SYN)), pod.told()), (Pass, vec![EventKind::Flow]));
        assert_eq!(pod.flow().unwrap().state, 0);
        // And one that the other side would open.
        assert_eq!(pod.gets(&back(SYN)), Drop);
    });
}

/// What is kept although policy has changed is the flow, not its ports.
#[test]
fn a_port_used_again_is_judged_again() {
    in_both_families(|pod, family| {
        pod.kernel.set(Settings { flags: SETTING_KEEP_ESTABLISHED, ..Settings::default() });
        pod.policy(DENY, ALLOW);
        let (out, back) = client(family);
        assert_eq!((pod.sends(&out(SYN)), pod.gets(&back(SYN | ACK))), (Pass, Pass));
        pod.policy(DENY, DENY);
        assert_eq!((pod.sends(&out(ACK)), pod.gets(&back(ACK))), (Pass, Pass), "it is kept");
        assert_eq!(pod.flow().unwrap().revision(), pod.endpoint.revision);
        assert_eq!(pod.sends(&out(SYN)), Drop);
        assert_eq!(pod.sends(&out(FIN | ACK)), Pass, "that SYN changed nothing");
        assert_eq!(pod.sends(&out(SYN)), Drop);
    });
}

/// What nobody has answered is not established, and a SYN that is repeated for minutes is not kept.
#[test]
fn what_is_unanswered_is_not_kept() {
    in_both_families(|pod, family| {
        pod.kernel.set(Settings { flags: SETTING_KEEP_ESTABLISHED, ..Settings::default() });
        pod.policy(DENY, ALLOW);
        let (out, back) = client(family);
        assert_eq!((pod.sends(&out(SYN)), pod.sends(&out(SYN))), (Pass, Pass));
        pod.policy(DENY, DENY);
        assert_eq!((pod.sends(&out(SYN)), pod.why()), (Drop, Some(DropReason::Policy)));
        assert_eq!(pod.gets(&back(SYN | ACK)), Drop, "its answer comes too late");
        let asked = Packet::udp((family.own, CLIENT), (family.server, PORT));
        pod.policy(DENY, ALLOW);
        assert_eq!(pod.sends(&asked), Pass);
        pod.policy(DENY, DENY);
        assert_eq!((pod.sends(&asked), pod.gets(&asked.turned())), (Drop, Drop));
    });
}

#[test]
fn a_syn_that_is_repeated_is_the_same_flow() {
    in_both_families(|pod, family| {
        pod.policy(DENY, ALLOW);
        let (out, _) = client(family);
        assert_eq!((pod.sends(&out(SYN)), pod.sends(&out(SYN))), (Pass, Pass));
        assert_eq!(pod.told(), [EventKind::Flow]);
    });
}

/// The node's own flow is no way in for whoever knows its ports. Denied, the other's SYN harms nothing.
#[test]
fn a_syn_that_another_repeats_is_judged() {
    in_both_families(|pod, family| {
        pod.policy(ONLY_NODE, DENY);
        let (answer, asked) = server(family);
        let node = |pod: &Pod| pod.kernel.run(Hook::ToPod, &asked(SYN).frame(), 0);
        assert_eq!((node(pod), pod.told()), (Pass, vec![EventKind::Flow]));
        assert_eq!((pod.gets(&asked(SYN)), pod.why()), (Drop, Some(DropReason::Policy)));
        assert_eq!((node(pod), pod.told()), (Pass, vec![]));
        assert_eq!((pod.sends(&answer(SYN | ACK)), pod.gets(&asked(SYN))), (Pass, Drop));
        // A flow of the pod with itself, and who says that he is the pod.
        pod.policy(NONE, NONE);
        pod.kernel.put(FREE_INTERFACE, pod.endpoint);
        let own = Packet::tcp((family.own, CLIENT), (family.own, PORT), SYN).frame();
        assert_eq!(pod.kernel.run(Hook::ToPod, &own, FREE_INTERFACE), Pass);
        assert_eq!(pod.kernel.run(Hook::ToPod, &own, UPLINK), Drop);
        assert_eq!(pod.why(), Some(DropReason::Spoofed));
    });
}

/// An opening packet from the side that did not open the flow is judged in its own direction; denied, it harms nothing.
#[test]
fn the_other_side_opens_a_flow_of_its_own() {
    in_both_families(|pod, family| {
        pod.policy(DENY, ALLOW);
        let (out, back) = client(family);
        assert_eq!((pod.sends(&out(SYN)), pod.gets(&back(SYN | ACK))), (Pass, Pass));
        assert_eq!(pod.gets(&back(SYN)), Drop);
        assert_eq!((pod.sends(&out(ACK)), pod.gets(&back(ACK))), (Pass, Pass));
        // SCTP: INIT is chunk 1, DATA chunk 0.
        let chunk = |packet: Packet, chunk| Packet { protocol: Protocol::SCTP.0, flags: chunk, ..packet };
        assert_eq!((pod.sends(&chunk(out(0), 1)), pod.gets(&chunk(back(0), 2))), (Pass, Pass));
        assert_eq!((pod.gets(&chunk(back(0), 1)), pod.gets(&chunk(back(0), 0))), (Drop, Pass));
    });
}

/// Whichever packet comes first, the flow is judged in its own direction; denied, nobody opens it again by going on.
#[test]
fn a_change_of_policy_is_felt_by_open_flows() {
    in_both_families(|pod, family| {
        let (answer, asked) = server(family);
        for answer_first in [true, false] {
            pod.policy(ALLOW, NONE);
            assert_eq!(
                (pod.gets(&asked(SYN)), pod.sends(&answer(SYN | ACK)), pod.gets(&asked(ACK))),
                (Pass, Pass, Pass)
            );
            drop(pod.told());
            pod.policy(DENY, NONE);
            let first = if answer_first { pod.sends(&answer(ACK)) } else { pod.gets(&asked(ACK)) };
            assert_eq!((first, pod.told()), (Drop, vec![EventKind::Changed, EventKind::Drop]));
            // Nothing restricts what the pod sends, so this would be a flow of its own if the other were forgotten.
            for _ in 0..2 {
                assert_eq!((pod.sends(&answer(ACK)), pod.gets(&asked(ACK)), pod.gets(&asked(SYN))), (Drop, Drop, Drop));
                assert_eq!((pod.sends(&answer(RST)), pod.gets(&asked(RST))), (Drop, Drop));
            }
            assert_eq!(pod.flow().unwrap().verdict(), Some(Verdict::Deny));
            drop(pod.told());
            pod.policy(ALLOW, NONE);
            assert_eq!((pod.sends(&answer(ACK)), pod.told()), (Pass, vec![EventKind::Changed]));
            assert_eq!(pod.gets(&asked(RST)), Pass);
        }
    });
}

/// What a denied flow's other side repeats keeps it denied; then it is forgotten.
#[test]
fn a_denied_flow_is_remembered() {
    in_both_families(|pod, family| {
        let server = (family.own, PORT);
        let (asked, answer) =
            (Packet::udp((family.other, CLIENT), server), Packet::udp(server, (family.other, CLIENT)));
        pod.policy(ALLOW, NONE);
        assert_eq!((pod.gets(&asked), pod.sends(&answer)), (Pass, Pass));
        pod.policy(DENY, NONE);
        assert_eq!((pod.sends(&answer), pod.gets(&asked), pod.sends(&answer)), (Drop, Drop, Drop));
        // UDP: the asking side alone keeps it in mind.
        let end = pod.leave(5);
        assert_eq!((pod.sends(&answer), pod.flow().unwrap().expires), (Drop, end));
        assert_eq!(pod.gets(&asked), Drop);
        assert!(pod.flow().unwrap().expires > end + 10 * SECOND);
        pod.expire();
        assert_eq!(pod.gets(&asked), Drop);
        assert_eq!(pod.sends(&answer), Pass, "a flow of the pod's");

        // TCP: both sides, which repeat what was lost for minutes.
        pod.kernel.forget();
        pod.policy(ALLOW, NONE);
        let (answer, asked) = self::server(family);
        assert_eq!((pod.gets(&asked(SYN)), pod.sends(&answer(SYN | ACK))), (Pass, Pass));
        pod.policy(DENY, NONE);
        assert_eq!(pod.gets(&asked(ACK)), Drop);
        for packet in [answer(ACK), asked(ACK)] {
            let end = pod.leave(100);
            let sent = if packet.source == family.own { pod.sends(&packet) } else { pod.gets(&packet) };
            assert_eq!(sent, Drop);
            let left = pod.flow().unwrap().expires - end;
            assert!((190 * SECOND..210 * SECOND).contains(&left), "{left}");
        }
    });
}

#[test]
fn a_change_that_is_none_for_a_flow_is_not_told() {
    in_both_families(|pod, family| {
        pod.policy(DENY, ALLOW);
        let (out, back) = client(family);
        assert_eq!((pod.sends(&out(SYN)), pod.gets(&back(SYN | ACK))), (Pass, Pass));
        drop(pod.told());
        pod.policy(DENY, ONLY_SERVER);
        assert_eq!((pod.gets(&back(ACK)), pod.sends(&out(ACK))), (Pass, Pass));
        assert_eq!(pod.told(), []);
        assert_eq!(pod.flow().unwrap().revision(), pod.endpoint.revision);
    });
}

#[test]
fn without_a_proxy_what_is_for_it_is_dropped() {
    in_both_families(|pod, family| {
        pod.policy(DENY, REDIRECT);
        let (out, back) = client(family);
        assert_eq!((pod.sends(&out(SYN)), pod.why()), (Drop, Some(DropReason::NoProxy)));
        assert_eq!(pod.flow(), None);
        pod.policy(DENY, ALLOW);
        assert_eq!((pod.sends(&out(SYN)), pod.gets(&back(SYN | ACK))), (Pass, Pass));
        pod.policy(DENY, REDIRECT);
        assert_eq!((pod.gets(&back(ACK)), pod.why()), (Drop, Some(DropReason::NoProxy)));
        assert_eq!((pod.sends(&out(ACK)), pod.why()), (Drop, Some(DropReason::NoProxy)));
    });
}

/// A flow that the proxy has stays with it when policy lets it pass: TCP, because there are two connections. Datagrams go straight.
#[test]
fn datagrams_leave_the_proxy_when_policy_does_not_send_them_there() {
    in_both_families(|pod, family| {
        pod.policy(DENY, ALLOW);
        let (own, peer) = ((family.own, CLIENT), (family.server, PORT));
        let (datagram, segment) = (Packet::udp(own, peer), Packet::tcp(own, peer, ACK));
        // Whether established flows are kept or not: the proxy has no rules for what is not sent there any more.
        for (flags, packet, state, stays) in [
            (0, &datagram, CONNECTION_PROXIED, false),
            (0, &segment, CONNECTION_PROXIED, true),
            (SETTING_KEEP_ESTABLISHED, &datagram, CONNECTION_PROXIED, false),
            (SETTING_KEEP_ESTABLISHED, &segment, CONNECTION_PROXIED, true),
            // One that had been let pass before.
            (SETTING_KEEP_ESTABLISHED, &datagram, 0, false),
        ] {
            pod.kernel.forget();
            pod.kernel.set(Settings { flags, ..Settings::default() });
            let key = pod.key(own, peer, packet.protocol);
            // As it was when policy sent it to the proxy.
            let judged = (pod.endpoint.revision - 1) << 8 | u64::from(Verdict::Redirect.number());
            let flow = Connection {
                judged,
                expires: u64::MAX,
                state: state | CONNECTION_ANSWERED,
                decision: REDIRECT,
                direction: FlowDirection::Egress.number(),
                ..Connection::default()
            };
            pod.kernel.connections.insert(key, flow, 0).unwrap();
            assert_eq!(pod.sends(packet), if stays { Drop } else { Pass }, "there is no proxy");
            let flow = pod.flow().unwrap();
            assert_eq!(flow.revision(), pod.endpoint.revision);
            assert_eq!(flow.verdict(), Some(if stays { Verdict::Redirect } else { Verdict::Allow }));
            assert_eq!(flow.state & CONNECTION_PROXIED != 0, stays);
            assert_eq!(pod.gets(&packet.turned()), if stays { Drop } else { Pass });
        }
    });
}

#[test]
fn a_flow_whose_time_is_up_is_none() {
    in_both_families(|pod, family| {
        pod.policy(DENY, ALLOW);
        let (out, back) = client(family);
        assert_eq!((pod.sends(&out(SYN)), pod.gets(&back(SYN | ACK))), (Pass, Pass));
        pod.expire();
        assert_eq!(pod.gets(&back(ACK)), Drop);
        assert_eq!(pod.sends(&out(ACK)), Pass);
        assert_eq!(pod.gets(&back(ACK)), Pass);
    });
}

#[test]
fn an_echo_is_answered_and_nothing_else() {
    in_both_families(|pod, family| {
        pod.policy(DENY, ALLOW);
        let (request, reply) = if family.own.is_ipv4() { (8, 0) } else { (128, 129) };
        let asked = Packet::icmp(family.own, family.server, request, 7);
        let answer = Packet::icmp(family.server, family.own, reply, 7);
        assert_eq!(pod.gets(&answer), Drop);
        assert_eq!((pod.sends(&asked), pod.gets(&answer), pod.sends(&asked)), (Pass, Pass, Pass));
        assert_eq!(pod.gets(&Packet::icmp(family.server, family.own, reply, 8)), Drop);
        for identifier in [7, 0, u16::from(request)] {
            // One's own echo lets nobody ask.
            assert_eq!(pod.sends(&Packet::icmp(family.own, family.server, request, identifier)), Pass);
            assert_eq!(pod.gets(&Packet::icmp(family.server, family.own, request, identifier)), Drop);
        }
        if family.own.is_ipv4() {
            assert_eq!(pod.gets(&Packet::icmp(family.server, family.own, 14, 7)), Drop, "another question's answer");
        }
        // An answer that nobody asked for opens nothing, though policy lets it go.
        pod.kernel.forget();
        assert_eq!(pod.sends(&Packet::icmp(family.own, family.server, reply, 9)), Pass);
        assert_eq!(pod.flow(), None);
    });
}

/// Policy is asked for a flow once, and the entry of a flow is written once a second at most.
#[test]
fn an_established_packet_writes_nothing() {
    in_both_families(|pod, family| {
        pod.policy(DENY, ALLOW);
        let (out, back) = client(family);
        assert_eq!((pod.sends(&out(SYN)), pod.gets(&back(SYN | ACK)), pod.sends(&out(ACK))), (Pass, Pass, Pass));
        drop(pod.told());
        let before = pod.flow();
        for _ in 0..3 {
            assert_eq!((pod.sends(&out(ACK)), pod.gets(&back(ACK))), (Pass, Pass));
        }
        assert_eq!((pod.flow(), pod.told()), (before, vec![]));
    });
}
