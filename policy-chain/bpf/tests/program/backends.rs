//! The second judgement, of packets that nothing translates: what it asks, remembers, and forgets. `live` has those that
//! are translated.

use sluice_policy_bpf::layout::{
    Address, CONNECTION_ANSWERED, CONNECTION_PROXIED, CONNECTION_SEEN, Connection, DropReason, ENDPOINT_AUDIT,
    ENDPOINT_BRIDGE, Endpoint, EventKind, FlowDirection, Hook, OwnAddress, Verdict,
};

use crate::frame::{ACK, Packet, SYN};
use crate::kernel::Action::{Drop, Pass};
use crate::kernel::{INTERFACE, UPLINK, may_run};
use crate::pod::{
    ALLOW, CLIENT, DENY, DRY_SERVICES, Family, NO_BACKENDS, NONE, ONLY_SERVER, PORT, Pod, REDIRECT, SERVICES, families,
};

fn in_both_families(test: impl Fn(&mut Pod, Family)) {
    if !may_run() {
        return;
    }
    for family in families() {
        test(&mut Pod::new(), family);
    }
}

fn to_service(family: Family) -> Packet {
    Packet::tcp((family.own, CLIENT), (family.service, PORT), SYN)
}

#[test]
fn a_service_is_left_to_its_backend() {
    in_both_families(|pod, family| {
        pod.policy(DENY, SERVICES);
        let packet = to_service(family);
        assert_eq!((pod.sends(&packet), pod.told()), (Pass, vec![EventKind::Flow]));
        assert_eq!(pod.flow().unwrap().verdict(), Some(Verdict::Defer));
        // Nobody translated it, so the Service's address is what it goes to.
        assert_eq!(pod.kernel.run(Hook::Uplink, &packet.frame(), INTERFACE), Drop);
        assert_eq!(pod.why(), Some(DropReason::Backend));
        let flow = pod.flow().unwrap();
        assert_eq!((flow.other, flow.other_port), (Address::from(family.service), PORT));
        assert_ne!(flow.backend_judged, 0);
        // Beside the port it is an address like others, and denied at once.
        assert_eq!(pod.sends(&Packet { destination_port: PORT + 1, ..packet.clone() }), Drop);
        // The answer comes from the Service's address again.
        let answer = Packet::tcp((family.service, PORT), (family.own, CLIENT), SYN | ACK);
        assert_eq!(pod.gets(&answer), Pass);
        assert_eq!(pod.flow().unwrap().state, CONNECTION_ANSWERED);
        assert_eq!((pod.sends(&Packet { flags: ACK, ..packet }), pod.gets(&answer)), (Pass, Pass));
    });
}

#[test]
fn a_backend_is_judged_once_a_revision() {
    in_both_families(|pod, family| {
        pod.policy(DENY, SERVICES);
        let packet = to_service(family);
        assert_eq!(pod.sends(&packet), Pass);
        // As if the flow had been left to its backend, which is the server.
        let key = pod.key((family.own, CLIENT), (family.service, PORT), 6);
        let at_server = pod.key((family.own, CLIENT), (family.server, PORT), 6);
        let flow = pod.kernel.connections.get(&key, 0).unwrap();
        pod.kernel.forget();
        pod.kernel.connections.insert(at_server, flow, 0).unwrap();
        pod.kernel.forget_recent();
        let packet = Packet { destination: family.server, ..packet };
        pod.kernel.events();
        let uplink = |pod: &mut Pod| {
            let action = pod.kernel.run(Hook::Uplink, &packet.frame(), INTERFACE);
            (action, pod.told())
        };
        assert_eq!(uplink(pod), (Pass, vec![EventKind::Backend]));
        assert_eq!(uplink(pod), (Pass, vec![]));
        let revised = |pod: &mut Pod, policy| {
            pod.policy(DENY, policy);
            // The pod's own gate has seen the packet before.
            let judged = pod.endpoint.revision << 8 | u64::from(Verdict::Defer.number());
            let flow = pod.kernel.connections.get(&at_server, 0).unwrap();
            let flow = Connection { judged, ..flow };
            pod.kernel.connections.insert(at_server, flow, 0).unwrap();
            pod.kernel.forget_recent();
        };
        revised(pod, NO_BACKENDS);
        assert_eq!(uplink(pod), (Drop, vec![EventKind::Drop]));
        assert_eq!(uplink(pod), (Drop, vec![EventKind::Drop]));
        assert_eq!(pod.kernel.dropped(DropReason::Backend), 2);
        revised(pod, SERVICES);
        assert_eq!(uplink(pod), (Pass, vec![EventKind::Backend]));
    });
}

/// Two packets of a flow that connection tracking sends to two backends at once write both down at once. What remains may name
/// the one, and hold the judgement of the other.
#[test]
fn a_judgement_of_one_backend_is_not_anothers() {
    in_both_families(|pod, family| {
        pod.policy(DENY, SERVICES);
        let packet = to_service(family);
        assert_eq!(pod.sends(&packet), Pass);
        let key = pod.key((family.own, CLIENT), (family.service, PORT), 6);
        let flow = pod.kernel.connections.get(&key, 0).unwrap();
        // As if it had been left to its backend: the one that is allowed, then one that is not.
        for (backend, action) in [(family.server, Pass), (family.other, Drop)] {
            pod.kernel.connections.insert(pod.key((family.own, CLIENT), (backend, PORT), 6), flow, 0).unwrap();
            let packet = Packet { destination: backend, ..packet.clone() };
            assert_eq!(pod.kernel.run(Hook::Uplink, &packet.frame(), INTERFACE), action);
        }
        let judged =
            |backend| pod.kernel.connections.get(&pod.key((family.own, CLIENT), (backend, PORT), 6), 0).unwrap();
        let (allowed, denied) = (judged(family.server), judged(family.other));
        let torn = Connection { backend_judged: allowed.backend_judged, ..denied };
        pod.kernel.connections.insert(pod.key((family.own, CLIENT), (family.other, PORT), 6), torn, 0).unwrap();
        pod.kernel.forget_recent();
        let packet = Packet { destination: family.other, ..packet };
        assert_eq!(pod.kernel.run(Hook::Uplink, &packet.frame(), INTERFACE), Drop);
    });
}

/// DESIGN 6.12: what the proxy has of a flow to a Service only for a dry run to see goes to no backend that is closed without
/// the dry run. The proxy itself need not know the backend.
#[test]
fn a_dry_run_at_the_proxy_opens_no_backend() {
    in_both_families(|pod, family| {
        pod.policy(DENY, DRY_SERVICES);
        for packet in [to_service(family), Packet::udp((family.own, CLIENT), (family.service, PORT))] {
            pod.kernel.forget();
            assert_eq!(pod.sends(&packet), Pass);
            // As if the proxy had taken it, and its packets had been left to a backend.
            let flow = pod.flow().unwrap();
            let judged = pod.endpoint.revision << 8 | u64::from(Verdict::Redirect.number());
            let seen = Connection { judged, state: CONNECTION_PROXIED | CONNECTION_SEEN, ..flow };
            let known = Connection { state: CONNECTION_PROXIED, ..seen };
            let unknown = 77;
            for (backend, flow, action) in [
                (family.server, seen, Pass),
                (family.other, seen, Drop),
                // The proxy had it before policy left it to its backend.
                (family.other, known, Drop),
                // What is the proxy's in force was judged by it, and what is allowed by the gate.
                (family.other, Connection { decision: REDIRECT, ..known }, Pass),
                (family.other, Connection { decision: ALLOW, ..seen }, Pass),
                // Of what decided it nothing is known any more.
                (family.other, Connection { decision: unknown, ..seen }, Drop),
                (family.other, Connection { decision: unknown, ..known }, Pass),
            ] {
                pod.kernel.forget_recent();
                let key = pod.key((family.own, CLIENT), (backend, PORT), packet.protocol);
                pod.kernel.connections.insert(key, flow, 0).unwrap();
                let packet = Packet { destination: backend, ..packet.clone() };
                let done = pod.kernel.run(Hook::Uplink, &packet.frame(), INTERFACE);
                assert_eq!(done, action, "{backend}, decision {}, state {}", flow.decision, flow.state);
            }
            assert_eq!(pod.why(), Some(DropReason::Backend));
        }
    });
}

/// What policy sent to the proxy and leaves there for a dry run alone is stopped by no proxy that is gone.
#[test]
fn what_becomes_a_dry_run_at_the_proxy_passes_without_it() {
    in_both_families(|pod, family| {
        pod.policy(DENY, DRY_SERVICES);
        let (own, service) = ((family.own, CLIENT), (family.service, PORT));
        let packet = Packet::udp(own, service);
        pod.kernel.forget();
        // As it was when policy sent it there.
        let flow = Connection {
            judged: (pod.endpoint.revision - 1) << 8 | u64::from(Verdict::Redirect.number()),
            expires: u64::MAX,
            state: CONNECTION_PROXIED | CONNECTION_ANSWERED,
            decision: REDIRECT,
            direction: FlowDirection::Egress.number(),
            ..Connection::default()
        };
        pod.kernel.connections.insert(pod.key(own, service, packet.protocol), flow, 0).unwrap();
        assert_eq!((pod.sends(&packet), pod.why()), (Drop, Some(DropReason::NoProxy)), "it was the proxy's");
        let flow = pod.flow().unwrap();
        assert_eq!(flow.verdict(), Some(Verdict::Redirect));
        assert_ne!(flow.state & CONNECTION_SEEN, 0);
        assert_eq!(pod.sends(&packet), Pass);
        assert_eq!(pod.flow().unwrap().verdict(), Some(Verdict::Defer));
    });
}

/// Only flows that were left to it are judged there, of pods that something restricts.
#[test]
fn what_was_judged_is_not_judged_again() {
    in_both_families(|pod, family| {
        pod.policy(DENY, ONLY_SERVER);
        let packet = Packet::tcp((family.own, CLIENT), (family.server, PORT), SYN);
        assert_eq!(pod.sends(&packet), Pass);
        pod.kernel.events();
        assert_eq!(pod.kernel.run(Hook::Uplink, &packet.frame(), INTERFACE), Pass);
        assert_eq!(pod.kernel.run(Hook::Uplink, &to_service(family).frame(), UPLINK), Pass, "no pod's");
        assert_eq!(pod.kernel.run(Hook::Uplink, &to_service(family).frame(), 0), Pass, "the node's own");
        assert_eq!(pod.told(), []);
        // Forgotten between the gate and the uplink: what a Service may have translated is judged.
        assert_eq!(pod.kernel.run(Hook::Uplink, &to_service(family).frame(), INTERFACE), Drop);
        pod.policy(DENY, NONE);
        assert_eq!(pod.kernel.run(Hook::Uplink, &to_service(family).frame(), INTERFACE), Pass);
        pod.policy(DENY, SERVICES);
        pod.flags(ENDPOINT_AUDIT);
        assert_eq!(pod.kernel.run(Hook::Uplink, &to_service(family).frame(), INTERFACE), Pass, "a dry run");
        assert_eq!(pod.kernel.events().pop().unwrap().verdict, Verdict::Deny.number());
    });
}

/// Between two pods of the node both are asked: the sender's egress policy, and the receiver's ingress policy.
#[test]
fn at_a_pod_of_the_node_both_are_asked() {
    in_both_families(|pod, family| {
        const SENDER: u32 = 60;
        let mut sender = Endpoint { id: 8, revision: 4, egress: SERVICES, ..Endpoint::default() };
        sender.addresses[0] = OwnAddress { address: family.other.into(), ..OwnAddress::default() };
        // A port of the pod that a Service's address happens to be: nothing translates it, so it is as the sender sent it.
        let packet = Packet::tcp((family.other, CLIENT), (family.service, PORT), SYN);
        pod.endpoint.addresses[0].address = family.service.into();
        for (egress, ingress, action, reason, endpoint) in [
            (SERVICES, ALLOW, Drop, DropReason::Backend, 8),
            (NONE, ALLOW, Pass, DropReason::None, 7),
            (NONE, DENY, Drop, DropReason::Policy, 7),
            (SERVICES, DENY, Drop, DropReason::Backend, 8),
        ] {
            pod.kernel.forget();
            pod.policy(ingress, NONE);
            sender.egress = egress;
            pod.kernel.put(SENDER, sender);
            assert_eq!(pod.kernel.run(Hook::ToPod, &packet.frame(), SENDER), action);
            let event = pod.kernel.events().pop().unwrap();
            assert_eq!((event.reason, event.endpoint), (reason.number(), endpoint));
        }
        // Behind a bridge, the sender is who owns the source.
        const BRIDGE: u32 = 61;
        pod.kernel.put(BRIDGE, Endpoint { flags: ENDPOINT_BRIDGE, ..Endpoint::default() });
        sender.egress = SERVICES;
        pod.kernel.put(SENDER, sender);
        pod.policy(ALLOW, NONE);
        assert_eq!(pod.kernel.run(Hook::ToPod, &packet.frame(), BRIDGE), Pass, "nobody's");
        pod.kernel.owners.insert(Address::from(family.other), SENDER, 0).unwrap();
        assert_eq!(pod.kernel.run(Hook::ToPod, &packet.frame(), BRIDGE), Drop);
        assert_eq!(pod.kernel.events().pop().unwrap().endpoint, 8);
    });
}
