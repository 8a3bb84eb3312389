//! The program says what the image says, on random clusters and flows.

use std::net::IpAddr;

use sluice_policy_bpf::layout::{Address, Connection, Event, EventKind, FlowDirection, Hook, Verdict as Number};
use sluice_policy_core::cluster::Cluster;
use sluice_policy_core::compile::engine::Engine;
use sluice_policy_core::compile::image::Image;
use sluice_policy_core::flow::{Direction, Judgement, Origin, Protocol, Query, Verdict};
use sluice_policy_core::oracle;

use crate::compiled::Compiled;
use crate::frame::{ACK, Packet, SYN};
use crate::kernel::{Action, FREE_INTERFACE, INTERFACE, UPLINK, may_run};
use crate::random::flows::Targets;
use crate::random::{Random, objects};

/// Flows that are judged in one cluster.
const FLOWS_OF_A_WORLD: u64 = 100;

fn worlds() -> std::ops::Range<u64> {
    if let Some(seed) = std::env::var_os("SLUICE_TEST_SEED") {
        let seed = seed.to_str().unwrap().parse().unwrap();
        return seed..seed + 1;
    }
    0..if std::env::var_os("SLUICE_TEST_ALL").is_some() { 2_000 } else { 200 }
}

/// The other side's port, or the pod's where it is the client.
const CLIENT_PORT: u16 = 40_000;

/// The first packet of a flow, and the first that answers it.
pub(crate) struct Exchange {
    pub(crate) opens: Packet,
    pub(crate) answers: Packet,
}

/// The packets of a question; none where no packet could ask it.
pub(crate) fn exchange(query: &Query, own: IpAddr) -> Option<Exchange> {
    let peer = query.peer.to_canonical();
    let (source, destination) = match query.direction {
        Direction::Ingress => (peer, own),
        Direction::Egress => (own, peer),
    };
    // Hop-by-hop options are no protocol there.
    if query.protocol == Protocol(0) && own.is_ipv6() {
        return None;
    }
    let mut opens = Packet::new(source, destination, query.protocol);
    let mut answers = Packet::new(destination, source, query.protocol);
    match query.protocol {
        Protocol::ICMP | Protocol::ICMPV6 => {
            opens.flags = u8::try_from(query.port).unwrap();
            opens.source_port = 7;
            answers.source_port = 7;
            answers.flags = if query.protocol == Protocol::ICMP { 0 } else { 129 };
        }
        Protocol::TCP | Protocol::UDP | Protocol::SCTP => {
            (opens.source_port, opens.destination_port) = (CLIENT_PORT, query.port);
            (answers.source_port, answers.destination_port) = (query.port, CLIENT_PORT);
            if query.protocol == Protocol::TCP {
                (opens.flags, answers.flags) = (SYN, SYN | ACK);
            }
            if query.protocol == Protocol::SCTP {
                (opens.flags, answers.flags) = (1, 2);
            }
        }
        _ => {}
    }
    Some(Exchange { opens, answers })
}

/// Whether an answer is let pass with the flow.
fn is_answered(query: &Query) -> bool {
    match query.protocol {
        Protocol::ICMP => query.port == 8,
        Protocol::ICMPV6 => query.port == 128,
        _ => true,
    }
}

/// What the gate does: there is no proxy.
fn expected(judgement: &Judgement, audit: bool) -> Action {
    match judgement.verdict {
        Verdict::Allow | Verdict::Defer => Action::Pass,
        Verdict::Redirect(_) if audit => Action::Pass,
        Verdict::Deny | Verdict::Redirect(_) => Action::Drop,
    }
}

struct Case<'a> {
    seed: u64,
    query: &'a Query,
    judgement: Judgement,
}

impl Case<'_> {
    fn check(&self, compiled: &Compiled, step: &str, action: Action, events: &[Event]) {
        let audit = compiled.endpoint.flags != 0;
        let told = events.last().map(|event| compiled.told(event));
        let right = action == expected(&self.judgement, audit) && told.as_ref() == Some(&self.judgement);
        assert!(
            right,
            "seed {}, {step}: {:#?}\nimage: {:#?}\nkernel: {action:?}, {events:#?}\n{told:#?}",
            self.seed, self.query, self.judgement
        );
    }
}

/// One flow at the gate: its first packet, the answer, and what is remembered.
fn at_the_gate(compiled: &mut Compiled, case: &Case<'_>, exchange: &Exchange) {
    let (hook, back) = match case.query.direction {
        Direction::Ingress => (Hook::ToPod, Hook::FromPod),
        Direction::Egress => (Hook::FromPod, Hook::ToPod),
    };
    let from = match case.query.origin {
        Origin::Forwarded => UPLINK,
        Origin::OwnNode => 0,
        Origin::Hairpin => FREE_INTERFACE,
    };
    let action = compiled.kernel.run(hook, &exchange.opens.frame(), from);
    let events = compiled.kernel.events();
    case.check(compiled, "first packet", action, &events);
    let kind = if action == Action::Pass { EventKind::Flow } else { EventKind::Drop };
    assert_eq!((events.len(), events[0].kind), (1, kind.number()), "{events:#?}");
    let known = compiled.kernel.connections.keys().count();
    assert_eq!(known, usize::from(action == Action::Pass && is_answered(case.query)), "seed {}", case.seed);
    if known == 1 {
        let answered_from = if case.query.origin == Origin::OwnNode { 0 } else { UPLINK };
        let answer = compiled.kernel.run(back, &exchange.answers.frame(), answered_from);
        assert_eq!(answer, Action::Pass, "seed {}, answer: {:#?}", case.seed, case.query);
        assert_eq!(compiled.kernel.events().len(), 0);
        let again = compiled.kernel.run(hook, &exchange.opens.frame(), from);
        if case.query.protocol == Protocol::UDP {
            assert_eq!(again, Action::Pass, "seed {}, again: {:#?}", case.seed, case.query);
        }
        compiled.kernel.events();
    }
    compiled.kernel.forget();
}

/// The same question where a backend is visible: at an uplink, of a flow whose verdict was left to it.
fn at_an_uplink(compiled: &mut Compiled, case: &Case<'_>, exchange: &Exchange) {
    let packet = &exchange.opens;
    let own = (packet.source, packet.source_port);
    let peer = (packet.destination, packet.destination_port);
    let key = compiled.key(own, peer, packet.protocol);
    let deferred = Connection {
        judged: compiled.endpoint.revision << 8 | u64::from(Number::Defer.number()),
        expires: u64::MAX,
        direction: FlowDirection::Egress.number(),
        ..Connection::default()
    };
    compiled.kernel.connections.insert(key, deferred, 0).unwrap();
    let action = compiled.kernel.run(Hook::Uplink, &packet.frame(), INTERFACE);
    let events = compiled.kernel.events();
    if compiled.endpoint.egress == 0 {
        // Nothing restricts the pod, so it is not even asked.
        assert_eq!((action, events.len()), (Action::Pass, 0));
    } else {
        case.check(compiled, "at the uplink", action, &events);
        let found = compiled.kernel.connections.get(&key, 0).unwrap();
        assert_eq!((found.other, found.other_port), (Address::from(peer.0), peer.1));
        let again = compiled.kernel.run(Hook::Uplink, &packet.frame(), INTERFACE);
        assert_eq!(again, action);
        let told = usize::from(action == Action::Drop);
        assert_eq!(compiled.kernel.events().len(), told, "what is remembered is not asked again");
    }
    compiled.kernel.forget();
}

#[test]
fn the_program_says_what_the_image_says() {
    if !may_run() {
        return;
    }
    let mut compiled = Compiled::new();
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    for seed in worlds() {
        let mut random = Random::new(seed ^ 0xb9f0_0000_0000_0000);
        let settings = objects::settings(&mut random);
        let mut engine = Engine::new(settings.clone());
        let mut cluster = Cluster::default();
        for event in objects::world(&mut random) {
            cluster.apply(event.clone());
            engine.apply(event);
        }
        engine.commit();
        compiled.load(engine.image());
        let targets = Targets::of(&cluster, &settings);
        for _ in 0..FLOWS_OF_A_WORLD {
            let query = targets.flow(&mut random);
            if !compiled.stand(&query.subject) {
                continue;
            }
            let judgement = engine.judge(&query);
            assert_eq!(judgement, oracle::judge(&cluster, &settings, &query), "seed {seed}: {query:#?}");
            let peer = query.peer.to_canonical();
            let image: &Image = engine.image();
            let own = image.endpoints[&query.subject].addresses.iter().map(|own| own.address).collect::<Vec<_>>();
            let is_own = own.contains(&peer);
            let own = if is_own { Some(peer) } else { own.into_iter().find(|own| own.is_ipv4() == peer.is_ipv4()) };
            let Some(exchange) = own.and_then(|own| exchange(&query, own)) else { continue };
            *seen.entry(format!("{} {}", query.direction, judgement.verdict.as_str())).or_default() += 1;
            let ports = [Protocol::TCP, Protocol::UDP, Protocol::SCTP].contains(&query.protocol);
            let case = Case { seed, query: &query, judgement };
            if is_own && query.direction == Direction::Ingress && query.origin == Origin::Forwarded {
                // The image lets a pod reach itself; the program knows that such a packet did not come from it.
                assert_eq!(compiled.kernel.run(Hook::ToPod, &exchange.opens.frame(), UPLINK), Action::Drop);
                compiled.kernel.events();
                continue;
            }
            let frontend = image.frontends.contains_key(&(peer, query.protocol, query.port));
            if query.direction == Direction::Egress
                && ports
                && !frontend
                && (!is_own || query.origin == Origin::Hairpin)
            {
                at_an_uplink(&mut compiled, &case, &exchange);
            }
            if query.direction == Direction::Ingress || query.origin == Origin::Forwarded {
                at_the_gate(&mut compiled, &case, &exchange);
            }
        }
    }
    println!("{seen:#?}");
    let wanted = [
        "ingress allow",
        "ingress deny",
        "ingress redirect",
        "egress allow",
        "egress deny",
        "egress redirect",
        "egress defer",
    ];
    for kind in wanted {
        assert!(seen.get(kind).is_some_and(|count| *count > 20), "{kind}: {seen:#?}");
    }
}
