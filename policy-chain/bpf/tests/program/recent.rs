//! What a processor remembers of packets that passed: it holds for packets like them, and until something changes.

use sluice_policy_bpf::layout::{Connection, DropReason, ENDPOINT_LOCKDOWN, Endpoint, FlowDirection, Hook, OwnAddress};

use crate::frame::{ACK, FIN, Packet, RST, SYN};
use crate::kernel::Action::{Drop, Pass};
use crate::kernel::{FREE_INTERFACE, INTERFACE, UPLINK, may_run};
use crate::pod::{ALLOW, CLIENT, DENY, Family, NONE, ONLY_NODE, PORT, Pod, SERVICES, families};

/// On one processor: each remembers for itself.
fn in_both_families(test: impl Fn(&mut Pod, Family)) {
    if !may_run() {
        return;
    }
    let this = nix::unistd::Pid::from_raw(0);
    let before = nix::sched::sched_getaffinity(this).unwrap();
    let first = (0..nix::sched::CpuSet::count()).find(|cpu| before.is_set(*cpu).unwrap()).unwrap();
    let mut one = nix::sched::CpuSet::new();
    one.set(first).unwrap();
    nix::sched::sched_setaffinity(this, &one).unwrap();
    for family in families() {
        test(&mut Pod::new(), family);
    }
    nix::sched::sched_setaffinity(this, &before).unwrap();
}

/// A flow of the pod with the server, whose entry is gone: only what is remembered lets its packets pass.
fn remembered(pod: &mut Pod, family: Family) -> Packet {
    pod.policy(DENY, ALLOW);
    let packet = |flags| Packet::tcp((family.own, CLIENT), (family.server, PORT), flags);
    assert_eq!((pod.sends(&packet(SYN)), pod.gets(&packet(SYN | ACK).turned())), (Pass, Pass));
    for key in pod.kernel.connections.keys().map(Result::unwrap).collect::<Vec<_>>() {
        pod.kernel.connections.remove(&key).unwrap();
    }
    packet(ACK)
}

#[test]
fn a_packet_like_one_that_passed_needs_no_entry() {
    in_both_families(|pod, family| {
        let packet = remembered(pod, family);
        assert_eq!((pod.sends(&packet), pod.gets(&packet.turned())), (Pass, Pass));
        assert_eq!(pod.flow(), None);
        let answer = packet.turned();
        for other in [
            Packet { source_port: PORT + 1, ..answer.clone() },
            Packet { destination_port: CLIENT + 1, ..answer.clone() },
            Packet { source: family.other, ..answer.clone() },
            Packet { protocol: 17, ..answer.clone() },
            Packet { flags: SYN, ..answer.clone() },
            Packet { flags: SYN | ACK, ..answer.clone() },
            Packet { flags: FIN | ACK, ..answer.clone() },
            Packet { flags: RST, ..answer.clone() },
            Packet { fragment: Some((1, 0, true)), ..answer.clone() },
        ] {
            assert_eq!(pod.gets(&other), Drop, "{other:?}");
        }
        for from in [FREE_INTERFACE, 0] {
            assert_eq!(pod.kernel.run(Hook::ToPod, &answer.frame(), from), Drop, "it comes from elsewhere");
        }
        assert_eq!(pod.gets(&answer), Pass, "what is dropped takes no place");
    });
}

/// An answer that passes by what is remembered of an older flow is not written down, so that the flow looks as if it had yet
/// to begin. No SYN but the one that opened it rides on that.
#[test]
fn an_answer_that_nobody_looked_at_lets_no_syn_in() {
    in_both_families(|pod, family| {
        pod.policy(ONLY_NODE, ALLOW);
        let packet = |flags| Packet::tcp((family.own, PORT), (family.server, CLIENT), flags);
        assert_eq!(pod.sends(&packet(SYN)), Pass);
        let opening = packet(SYN).turned();
        assert_eq!(pod.kernel.run(Hook::ToPod, &opening.frame(), 0), Pass);
        assert_eq!(pod.flow().unwrap().direction, FlowDirection::Ingress.number());
        assert_eq!((pod.sends(&packet(ACK)), pod.flow().unwrap().state), (Pass, 0));
        assert_eq!((pod.gets(&opening), pod.why()), (Drop, Some(DropReason::Policy)));
        assert_eq!(pod.kernel.run(Hook::ToPod, &opening.frame(), 0), Pass);
    });
}

#[test]
fn any_change_of_a_gate_ends_it() {
    in_both_families(|pod, family| {
        let answer = remembered(pod, family).turned();
        assert_eq!(pod.gets(&answer), Pass);
        pod.kernel.put(FREE_INTERFACE + 1, Endpoint::default());
        assert_eq!(pod.gets(&answer), Drop);
        let answer = remembered(pod, family).turned();
        pod.flags(ENDPOINT_LOCKDOWN);
        assert_eq!(pod.gets(&answer), Drop);
        pod.flags(0);
        let packet = remembered(pod, family);
        pod.policy(DENY, DENY);
        assert_eq!((pod.sends(&packet), pod.gets(&packet.turned())), (Drop, Drop));
    });
}

/// Whoever changes the gates may end in the middle of it.
#[test]
fn nothing_is_remembered_while_a_gate_is_changed() {
    in_both_families(|pod, family| {
        pod.kernel.begin_change();
        let packet = remembered(pod, family);
        pod.kernel.begin_change();
        let again = remembered(pod, family);
        assert_eq!(packet.frame(), again.frame());
        assert_eq!(pod.gets(&again.turned()), Drop);
    });
}

/// What may be another flow's the next time is not remembered: a flow that was left to its backend, at the backend's gate,
/// whose sender's entry is gone or says nothing about this backend.
#[test]
fn what_needs_a_second_judgement_again_is_not_remembered() {
    in_both_families(|pod, family| {
        const SENDER: u32 = 60;
        let mut sender = Endpoint { id: 8, revision: 4, egress: SERVICES, ..Endpoint::default() };
        sender.addresses[0] = OwnAddress { address: family.other.into(), ..OwnAddress::default() };
        pod.policy(ALLOW, NONE);
        pod.kernel.put(SENDER, sender);
        let packet = Packet::tcp((family.other, CLIENT), (family.own, PORT), ACK);
        // The sender's gate has let it pass, for what it knows of that flow.
        let mut key = pod.key((family.other, CLIENT), (family.own, PORT), 6);
        key.endpoint = sender.id;
        let flow = |revision: u64| Connection {
            judged: revision << 8 | 1,
            expires: u64::MAX,
            direction: FlowDirection::Egress.number(),
            ..Connection::default()
        };
        for (known, remembered) in [(None, false), (Some(flow(3)), false), (Some(flow(4)), true)] {
            pod.kernel.forget();
            if let Some(flow) = known {
                pod.kernel.connections.insert(key, flow, 0).unwrap();
            }
            assert_eq!(pod.kernel.run(Hook::ToPod, &packet.frame(), SENDER), Pass);
            // Nothing lets it pass any more but what is remembered.
            for key in pod.kernel.connections.keys().map(Result::unwrap).collect::<Vec<_>>() {
                pod.kernel.connections.remove(&key).unwrap();
            }
            pod.kernel.put_quietly(INTERFACE, Endpoint { ingress: DENY, ..pod.endpoint });
            let expected = if remembered { Pass } else { Drop };
            assert_eq!(pod.kernel.run(Hook::ToPod, &packet.frame(), SENDER), expected, "{known:?}");
            assert_eq!(pod.kernel.run(Hook::ToPod, &packet.frame(), UPLINK), Drop, "from elsewhere");
            pod.kernel.put(INTERFACE, pod.endpoint);
        }
    });
}
