//! Every way a packet can take.

use std::net::SocketAddr;

use sluice_policy_bpf::layout::{DropReason, Verdict};
use sluice_policy_bpf::reader::Reader;
use sluice_proxy::flow::{Direction, Protocol};

use super::world::*;

const EGRESS: &[Direction] = &[Direction::Egress];
const INGRESS: &[Direction] = &[Direction::Ingress];

fn socket(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

/// Asks `to`, and holds that the server has seen the client's own address, and what the proxy has seen in each direction.
async fn holds(proxy: &mut Proxy, from: &Party, to: &str, backend: &str, directions: &[Direction], own_address: bool) {
    let (seen, own) = from.ask_within(to, DEADLINE).await.unwrap_or_else(|error| panic!("{to}: {error}"));
    if own_address {
        assert_eq!(seen, own, "{to}: the server sees the client as it is");
    }
    for direction in directions {
        let relayed = proxy.next().await;
        assert_eq!(relayed.flow.direction, *direction, "{to}");
        assert_eq!(relayed.backend, socket(backend), "{to}, {direction}");
        if *direction == Direction::Egress {
            assert_eq!((relayed.flow.client, relayed.flow.server), (own, socket(to)));
        }
    }
    assert!(proxy.is_quiet(), "{to}: by way of the proxy once a direction");
}

#[test]
fn egress_goes_by_way_of_the_proxy_on_every_path() {
    on_a_node(|| async {
        let mut world = World::new().await;
        let mut proxy = Proxy::start().await;
        for address in ["10.0.2.9:8080", "198.51.100.7:80", "[2001:db8:0:2::9]:8080"] {
            world.vpc.serve(address).await;
        }
        for address in ["10.0.0.103:8080", "[2001:db8::103]:8080", "10.0.0.103:22"] {
            world.party("c").serve(address).await;
        }
        world.party("a").serve("10.0.0.101:8080").await;
        world.tell(&service("c", 80, "10.0.0.103", 8080));
        world.tell(&service("out", 81, IN_VPC, 8080));
        world.tell(&service("self", 82, "10.0.0.101", 8080));
        world.tell(&policy("a", "a", EGRESS));
        world.tell(&policy("b", "b", EGRESS));
        for name in ["a", "b"] {
            let (first, second) = (world.counted("primary"), world.counted("secondary"));
            let from = world.party(name).clone();
            for (to, backend, own) in [
                ("10.0.0.103:8080", "10.0.0.103:8080", true),
                ("[2001:db8::103]:8080", "[2001:db8::103]:8080", true),
                ("10.0.2.9:8080", "10.0.2.9:8080", true),
                ("[2001:db8:0:2::9]:8080", "[2001:db8:0:2::9]:8080", true),
                ("198.51.100.7:80", "198.51.100.7:80", false),
                ("10.96.0.1:80", "10.0.0.103:8080", true),
                ("10.96.0.1:81", "10.0.2.9:8080", true),
            ] {
                holds(&mut proxy, &from, to, backend, EGRESS, own).await;
            }
            // On the right ENI, and SNATed to the node's address on the first.
            let (first, second) = (world.counted("primary") - first, world.counted("secondary") - second);
            match name {
                "a" => assert!(first > 0 && second == 0, "{first} {second}"),
                _ => assert!(first > 0 && second > 0, "{first} {second}"),
            }
        }
        assert_eq!(world.counted("spoofed"), 0);
        // To itself by way of a Service, masqueraded as kube-proxy does it.
        let from = world.party("a").clone();
        holds(&mut proxy, &from, "10.96.0.1:82", "10.0.0.101:8080", EGRESS, false).await;
        // What is allowed without rules goes straight, and what is not, nowhere.
        from.ask("10.0.0.103:22").await.unwrap();
        assert!(proxy.is_quiet());
        from.ask_within("10.0.2.9:9999", SILENCE).await.unwrap_err();
        assert!(world.drops(DropReason::Policy) > 0);
        assert_eq!(world.drops(DropReason::NoProxy), 0);
        remove_places().await;
    });
}

#[test]
fn ingress_goes_by_way_of_the_proxy_on_every_path() {
    on_a_node(|| async {
        let mut world = World::new().await;
        let mut proxy = Proxy::start().await;
        for address in ["10.0.0.103:8080", "[2001:db8::103]:8080", "10.0.0.103:22"] {
            world.party("c").serve(address).await;
        }
        for address in ["10.0.0.102:8080", "[2001:db8::102]:8080"] {
            world.party("b").serve(address).await;
        }
        world.tell(&policy("c", "c", INGRESS));
        world.tell(&policy("b", "b", INGRESS));
        let (vpc, a) = (world.vpc.clone(), world.party("a").clone());
        // Node ports: as the client is, and masqueraded; to a pod of the second ENI, answered on the first. Before anything has
        // a reason to use the second, so that no late packet of it is counted.
        let second = world.counted("secondary");
        holds(&mut proxy, &vpc, "10.0.0.10:30080", "10.0.0.103:8080", INGRESS, true).await;
        holds(&mut proxy, &vpc, "10.0.0.10:30081", "10.0.0.103:8080", INGRESS, false).await;
        holds(&mut proxy, &vpc, "10.0.0.10:30082", "10.0.0.102:8080", INGRESS, true).await;
        assert_eq!(world.counted("secondary"), second, "connections that came by the first ENI leave by it");
        for (to, backend, own) in [
            ("10.0.0.103:8080", "10.0.0.103:8080", true),
            ("[2001:db8::103]:8080", "[2001:db8::103]:8080", true),
            ("10.0.0.102:8080", "10.0.0.102:8080", true),
            ("[2001:db8::102]:8080", "[2001:db8::102]:8080", true),
        ] {
            holds(&mut proxy, &a, to, backend, INGRESS, true).await;
            holds(&mut proxy, &vpc, to, backend, INGRESS, own).await;
        }
        holds(&mut proxy, &a, "10.96.0.1:80", "10.0.0.103:8080", INGRESS, true).await;
        assert_eq!(world.counted("spoofed"), 0);
        a.ask("10.0.0.103:22").await.unwrap();
        assert!(proxy.is_quiet());
        remove_places().await;
    });
}

#[test]
fn both_ends_of_a_flow_are_proxied_on_one_node() {
    on_a_node(|| async {
        let mut world = World::new().await;
        let mut proxy = Proxy::start().await;
        for address in ["10.0.0.103:8080", "[2001:db8::103]:8080"] {
            world.party("c").serve(address).await;
        }
        world.tell(&service("c", 80, "10.0.0.103", 8080));
        world.tell(&policy("a", "a", EGRESS));
        world.tell(&policy("b", "b", EGRESS));
        world.tell(&policy("c", "c", INGRESS));
        let reader = Reader::open(&places().gate).unwrap();
        for name in ["a", "b"] {
            let from = world.party(name).clone();
            for (to, backend) in [
                ("10.0.0.103:8080", "10.0.0.103:8080"),
                ("[2001:db8::103]:8080", "[2001:db8::103]:8080"),
                ("10.96.0.1:80", "10.0.0.103:8080"),
            ] {
                let (seen, own) = from.ask_within(to, DEADLINE).await.unwrap_or_else(|error| panic!("{to}: {error}"));
                assert_eq!(seen, own);
                let mut relayed = [proxy.next().await, proxy.next().await];
                relayed.sort_by_key(|seen| seen.flow.direction == Direction::Ingress);
                let [out, into] = relayed;
                assert_eq!((out.flow.direction, into.flow.direction), (Direction::Egress, Direction::Ingress));
                assert_eq!((out.backend, into.flow.server), (socket(backend), socket(backend)));
                assert_eq!((out.flow.client, into.flow.client), (own, own));
                assert!(proxy.is_quiet());
                // The kernel's maps say which decision each is by.
                for flow in [out.flow, into.flow] {
                    let entry = reader.flow(flow.direction, Protocol::TCP, flow.client, flow.server).unwrap().unwrap();
                    assert_eq!(entry.verdict, Verdict::Redirect);
                    assert_eq!(entry.revision, entry.subject.revision);
                    assert!(entry.decision.is_some());
                }
                let judged = reader.judge_backend(own.ip(), Protocol::TCP, socket(backend)).unwrap().unwrap();
                assert_eq!(judged.verdict, Verdict::Redirect);
                let other = SocketAddr::new(socket(backend).ip(), 9999);
                let judged = reader.judge_backend(own.ip(), Protocol::TCP, other).unwrap().unwrap();
                assert_eq!(judged.verdict, Verdict::Deny);
            }
        }
        remove_places().await;
    });
}
