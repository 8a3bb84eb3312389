//! What a packet costs. `cargo test --profile fast -p sluice-policy-bpf --test program cost -- --ignored --nocapture`

use std::net::{IpAddr, Ipv4Addr};

use sluice_policy_bpf::layout::{Connection, ConnectionKey, Endpoint, Hook, OwnAddress};

use crate::compiled::Compiled;
use crate::frame::{ACK, Packet, SYN};
use crate::kernel::{Action, UPLINK, may_run};

const ROUNDS: usize = 9;
const PACKETS: u32 = 1_000_000;
/// A pod and its peer.
const FLOWS: [(&str, &str); 2] = [("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8::2")];

/// The median of some rounds, ns.
fn median(compiled: &Compiled, hook: Hook, packet: &Packet) -> u128 {
    let frame = packet.frame();
    let mut times: Vec<u128> = (0..ROUNDS)
        .map(|_| {
            let (action, time) = compiled.kernel.repeat(hook, &frame, UPLINK, PACKETS);
            assert_eq!(action, Action::Pass);
            time.as_nanos()
        })
        .collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}

#[test]
#[ignore = "it measures, and holds nothing"]
fn an_established_packet() {
    if !may_run() {
        return;
    }
    let mut compiled = Compiled::new();
    let mut entries = 0;
    for (least, (own, peer)) in [0_u32, 1_000, 100_000].into_iter().flat_map(|least| FLOWS.map(|flow| (least, flow))) {
        // Flows of others, of which there are that many.
        while entries < least {
            entries += 1;
            let peer = IpAddr::from(Ipv4Addr::from(0x0b00_0000 + entries));
            let key = ConnectionKey { endpoint: 2, peer: peer.into(), protocol: 6, ..ConnectionKey::default() };
            let flow = Connection { expires: u64::MAX, ..Connection::default() };
            compiled.kernel.connections.insert(key, flow, 0).unwrap();
        }
        let (own, peer): (IpAddr, IpAddr) = (own.parse().unwrap(), peer.parse().unwrap());
        let mut endpoint = Endpoint { id: 1, revision: 3, ..Endpoint::default() };
        endpoint.addresses[0] = OwnAddress { address: own.into(), ingress: 0, egress: 0 };
        compiled.put(endpoint);
        let (client, server) = ((own, 40_000), (peer, 80));
        for (hook, packet) in [
            (Hook::FromPod, Packet::tcp(client, server, SYN)),
            (Hook::ToPod, Packet::tcp(server, client, SYN | ACK)),
            (Hook::FromPod, Packet::udp(client, server)),
            (Hook::ToPod, Packet::udp(server, client)),
        ] {
            assert_eq!(compiled.kernel.run(hook, &packet.frame(), UPLINK), Action::Pass);
        }
        println!(
            "{own}, {entries} other flows: drop {} ns, TCP out {} ns, in {} ns, UDP out {} ns, in {} ns",
            {
                let frame = Packet::tcp(client, server, ACK).frame();
                compiled.kernel.repeat(Hook::Closed, &frame, UPLINK, PACKETS).1.as_nanos()
            },
            median(&compiled, Hook::FromPod, &Packet::tcp(client, server, ACK)),
            median(&compiled, Hook::ToPod, &Packet::tcp(server, client, ACK)),
            median(&compiled, Hook::FromPod, &Packet::udp(client, server)),
            median(&compiled, Hook::ToPod, &Packet::udp(server, client)),
        );
    }
}
