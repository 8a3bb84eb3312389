//! Hostile frames: built wrong on purpose, and then damaged. The program does with each what [`Model`] does.

use std::net::IpAddr;

use sluice_policy_bpf::layout::{FragmentKey, Hook};
use sluice_policy_core::cluster::Cluster;
use sluice_policy_core::compile::engine::Engine;
use sluice_policy_core::flow::{Direction, Protocol};

use crate::agree::exchange;
use crate::compiled::Compiled;
use crate::frame::Packet;
use crate::kernel::{Action, FREE_INTERFACE, UPLINK, may_run};
use crate::model::Model;
use crate::random::flows::Targets;
use crate::random::{Random, objects};

/// Frames at one gate.
const FRAMES: u64 = 250;

fn frames() -> u64 {
    match std::env::var_os("SLUICE_TEST_ALL") {
        Some(_) => 1_000_000,
        None => 100_000,
    }
}

fn byte(random: &mut Random) -> u8 {
    u8::try_from(random.below(256)).unwrap()
}

fn some_address(random: &mut Random, like: IpAddr, own: &[IpAddr]) -> IpAddr {
    let odd: &[&str] = if like.is_ipv4() {
        &["0.0.0.0", "255.255.255.255", "127.0.0.1", "224.0.0.1", "169.254.1.1"]
    } else {
        &["::", "::1", "ff02::1", "fe80::2", "::ffff:10.0.0.1", "::10.0.0.1", "ff02::1:ff00:1"]
    };
    let own: Vec<IpAddr> = own.iter().copied().filter(|own| own.is_ipv4() == like.is_ipv4()).collect();
    match random.below(4) {
        0 => random.pick(odd).parse().unwrap(),
        1 if !own.is_empty() => *random.pick(&own),
        _ => {
            let address = objects::pod_address(random);
            if address.is_ipv4() == like.is_ipv4() { address } else { like }
        }
    }
}

/// Builds it wrong, in some of the ways that a header can be used.
fn twist(random: &mut Random, packet: &mut Packet, own: &[IpAddr], known: &[Packet]) {
    if random.one_in(3) {
        packet.flags = match Protocol(packet.protocol) {
            Protocol::ICMP => *random.pick(&[0, 3, 4, 5, 8, 11, 12, 13, 14, 17, 18]),
            Protocol::ICMPV6 => *random.pick(&[1, 2, 3, 4, 128, 129, 130, 133, 134, 135, 136, 137, 143]),
            Protocol::TCP => *random.pick(&[0, 1, 2, 4, 16, 17, 18, 20, 6, 3, 0x3f, 0x42, 0xc2]),
            _ => byte(random) & 3,
        };
    }
    if random.one_in(8) {
        packet.hops = *random.pick(&[0, 1, 255]);
    }
    if random.one_in(8) {
        packet.source = some_address(random, packet.source, own);
    }
    if random.one_in(10) {
        packet.destination = some_address(random, packet.destination, own);
    }
    if random.one_in(6) {
        let offset = *random.pick(&[0, 0, 0, 8, 16, 24, 1480]);
        packet.fragment = Some((u32::try_from(random.below(2)).unwrap(), offset, random.one_in(2) || offset == 0));
    }
    if random.one_in(6) && packet.source.is_ipv4() {
        for _ in 0..random.between(1, 4) {
            let option: &[&[u8]] = &[&[1, 1, 1, 1], &[148, 4, 0, 0], &[131, 3, 4, 0], &[7, 3, 4, 1], &[0, 0, 0, 0]];
            packet.options.extend(*random.pick(option));
        }
    }
    if random.one_in(4) && packet.source.is_ipv6() {
        let most = if random.one_in(4) { 10 } else { 3 };
        for _ in 0..random.between(1, most) {
            let kind = *random.pick(&[0, 43, 60, 60, 51, 135, 139, 140]);
            let mut content = vec![0; 8 * random.between(1, 3)];
            if random.one_in(3) {
                content[3] = 1;
            }
            packet.extensions.push((kind, content));
        }
    }
    // An error about a packet that is known, or is not.
    if random.one_in(8) && !known.is_empty() {
        let quoted = random.pick(known).clone();
        let kinds: &[u8] = if quoted.source.is_ipv4() { &[3, 4, 5, 11, 12] } else { &[1, 2, 3, 4] };
        let router = if random.one_in(2) { packet.source } else { some_address(random, quoted.source, own) };
        if router.is_ipv4() == quoted.source.is_ipv4() {
            let (from, to) =
                if random.one_in(2) { (router, quoted.source) } else { (quoted.destination, quoted.source) };
            *packet = quoted.error(from, to, *random.pick(kinds));
        }
    }
}

fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    while random.one_in(3) {
        match random.below(4) {
            0 => {
                let at = random.below(frame.len().min(90));
                frame[at] ^= 1 << random.below(8);
            }
            1 => {
                let at = 12 + random.below(frame.len().min(80) - 12);
                frame[at] = byte(random);
            }
            2 if frame.len() > 60 => frame.truncate(random.between(14, frame.len())),
            _ => frame.extend((0..random.below(20)).map(|_| 0xa5)),
        }
        if frame.len() < 14 {
            return;
        }
    }
}

/// Frames that this kernel takes for a test run: with a whole header of the protocol that they name.
fn is_runnable(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.len() >= 14 + 20,
        Some([0x86, 0xdd]) => frame.len() >= 14 + 40,
        Some(_) => true,
        None => false,
    }
}

#[test]
fn hostile_frames_fare_as_in_the_model() {
    if !may_run() {
        return;
    }
    let mut compiled = Compiled::new();
    let (mut passed, mut dropped) = (0_u64, 0_u64);
    let mut reasons = std::collections::BTreeMap::<u8, u64>::new();
    let mut seed = 0_u64;
    while passed + dropped < frames() {
        seed += 1;
        let mut random = Random::new(seed ^ 0x4057_11e0_0000_0000);
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
        let pod = targets.flow(&mut random).subject;
        if !compiled.stand(&pod) {
            continue;
        }
        let own: Vec<IpAddr> = engine.image().endpoints[&pod].addresses.iter().map(|own| own.address).collect();
        let mut model = Model::new(engine.image(), pod.clone());
        let mut known: Vec<Packet> = Vec::new();
        for index in 0..FRAMES {
            let mut query = targets.flow(&mut random);
            query.subject = pod.clone();
            let peer = query.peer.to_canonical();
            let address = own.iter().copied().find(|own| own.is_ipv4() == peer.is_ipv4());
            let Some(exchange) = address.and_then(|own| exchange(&query, own)) else { continue };
            // A packet of its own, or one of a flow that is known, in either direction.
            let mut packet = if random.one_in(2) || known.is_empty() {
                exchange.opens
            } else {
                let packet = random.pick(&known).clone();
                if random.one_in(2) { packet } else { packet.turned() }
            };
            let whole = packet.clone();
            twist(&mut random, &mut packet, &own, &known);
            if packet.source.is_ipv4() != packet.destination.is_ipv4() {
                continue;
            }
            let hook = match query.direction {
                _ if random.one_in(10) => *random.pick(&[Hook::FromPod, Hook::ToPod]),
                _ if own.contains(&packet.source) => Hook::FromPod,
                Direction::Egress if !own.contains(&packet.destination) => Hook::FromPod,
                _ => Hook::ToPod,
            };
            let from = *random.pick(&[UPLINK, UPLINK, UPLINK, 0, FREE_INTERFACE]);
            let mut frame = packet.frame();
            damage(&mut random, &mut frame);
            if !is_runnable(&frame) {
                continue;
            }
            let expected = model.gate(hook, &frame, from);
            let found = compiled.kernel.run(hook, &frame, from);
            let events = compiled.kernel.events();
            assert_eq!(
                found, expected,
                "seed {seed}, frame {index}: {hook:?} from {from}, own {own:?}: {packet:#?}\n{frame:02x?}\n{events:#?}"
            );
            match found {
                Action::Pass => passed += 1,
                Action::Drop => {
                    dropped += 1;
                    *reasons.entry(events.last().unwrap().reason).or_default() += 1;
                }
            }
            if model.replaced {
                // What is remembered of packets holds for a second at most, but so long also after their flow.
                compiled.kernel.forget_recent();
            }
            if found == Action::Pass && known.len() < 12 {
                known.push(whole);
            }
        }
        compiled.kernel.forget();
        let keys: Vec<FragmentKey> = compiled.kernel.fragments.keys().map(Result::unwrap).collect();
        for key in keys {
            compiled.kernel.fragments.remove(&key).unwrap();
        }
    }
    println!("{passed} passed, {dropped} dropped: {reasons:?}");
    assert!(passed > frames() / 5 && dropped > frames() / 5, "{passed} passed, {dropped} dropped");
    // Policy, the proxy, forged, malformed, not IP, fragments, source routes.
    for reason in [1, 3, 7, 8, 9, 10, 11] {
        assert!(reasons.get(&reason).is_some_and(|count| *count > 20), "{reason}: {reasons:?}");
    }
}
