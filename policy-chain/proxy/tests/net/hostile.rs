//! What nobody may do, and dry runs.

use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use sluice_hostnet::netns::Namespace;
use sluice_policy_bpf::layout::{DropReason, MARK_FROM_PROXY};
use sluice_proxy::connect::Connect as _;
use sluice_proxy::flow::{Direction, Flow};
use sluice_proxy::net::Upstreams;
use tokio::net::{TcpSocket, TcpStream};

use super::world::*;

/// A pod that sets the mark of what has been judged is judged.
#[test]
fn a_pod_cannot_mark_its_packets_as_the_proxys() {
    on_a_node(|| async {
        let mut world = World::new().await;
        let mut proxy = Proxy::start().await;
        for address in ["10.0.2.9:8080", "10.0.2.9:9999"] {
            world.vpc.serve(address).await;
        }
        world.tell(&policy("a", "a", &[Direction::Egress]));
        let connect = |port: u16| {
            world.party("a").run(move || async move {
                let socket = TcpSocket::new_v4().unwrap();
                setsockopt(&socket, sockopt::Mark, &MARK_FROM_PROXY).unwrap();
                let connected = socket.connect(([10, 0, 2, 9], port).into());
                tokio::time::timeout(SILENCE, connected).await.is_ok_and(|connected| connected.is_ok())
            })
        };
        assert!(connect(8080).await, "by way of the proxy");
        assert_eq!(proxy.next().await.flow.direction, Direction::Egress);
        let before = world.drops(DropReason::Policy);
        assert!(!connect(9999).await);
        assert!(world.drops(DropReason::Policy) > before);
        remove_places().await;
    });
}

/// What the proxy sends in somebody's name who has no flow with it reaches nobody.
#[test]
fn the_proxy_speaks_for_flows_that_it_has_and_for_nobody_else() {
    on_a_node(|| async {
        let mut world = World::new().await;
        let mut proxy = Proxy::start().await;
        world.vpc.serve("10.0.2.9:8080").await;
        world.party("c").serve("10.0.0.103:8080").await;
        world.tell(&policy("a", "a", &[Direction::Egress]));
        let host = Namespace::current().unwrap();
        // A pod's flow that it never had; somebody's who is no pod; a pod's whose gate redirects nothing; and the other direction.
        for (direction, client, server) in [
            (Direction::Egress, "10.0.0.101:40001", "10.0.2.9:8080"),
            (Direction::Egress, "10.0.0.77:40001", "10.0.2.9:8080"),
            (Direction::Egress, "10.0.0.103:40001", "10.0.2.9:8080"),
            (Direction::Ingress, "10.0.2.9:40001", "10.0.0.103:8080"),
            (Direction::Ingress, "10.0.0.101:40001", "10.0.0.103:8080"),
        ] {
            let before = world.drops(DropReason::ProxyUnknown);
            let upstreams = Upstreams::new(direction, &host).unwrap();
            let flow = Flow { direction, client: client.parse().unwrap(), server: server.parse().unwrap() };
            let thread = proxy.places.of(direction).thread("forger").unwrap();
            let connected = thread
                .run(move || async move { tokio::time::timeout(SILENCE, upstreams.connect(&flow)).await.is_ok() })
                .await
                .unwrap();
            assert!(!connected, "{flow}");
            assert!(world.drops(DropReason::ProxyUnknown) > before, "{flow}");
        }
        assert_eq!(world.counted("spoofed"), 0);
        assert!(proxy.is_quiet());
        // Nor once the pod is locked down.
        world.party("a").ask("10.0.2.9:8080").await.unwrap();
        world.lock_down("a");
        let asked = world.party("a").ask_within("10.0.2.9:8080", SILENCE).await;
        asked.expect_err("locked down");
        remove_places().await;
    });
}

/// DESIGN 6.12: a dry run passes, by way of the proxy where there is one, which tells what would become of it.
#[test]
fn a_dry_run_goes_by_way_of_the_proxy_and_passes_without_it() {
    on_a_node(|| async {
        let mut world = World::with_audit().await;
        for address in ["10.0.2.9:8080", "10.0.2.9:9999"] {
            world.vpc.serve(address).await;
        }
        world.tell(&policy("a", "a", &[Direction::Egress]));
        let a = world.party("a").clone();
        for to in ["10.0.2.9:8080", "10.0.2.9:9999"] {
            a.ask(to).await.unwrap_or_else(|error| panic!("{to}, there is no proxy: {error}"));
        }
        let mut proxy = Proxy::start().await;
        a.ask("10.0.2.9:8080").await.unwrap();
        assert_eq!(proxy.next().await.flow.direction, Direction::Egress);
        a.ask("10.0.2.9:9999").await.unwrap();
        assert!(proxy.is_quiet(), "what would be dropped is not for the proxy");
        proxy.kill();
        a.ask_within("10.0.2.9:8080", Duration::from_secs(2)).await.expect("it is gone");
        assert_eq!(world.drops(DropReason::NoProxy), 0);
        remove_places().await;
    });
}

/// The same of a policy: what passes without it goes by way of the proxy from its first packet on, straight and by a Service,
/// in both directions; what is under way is left alone.
#[test]
fn a_dry_run_of_a_policy_goes_by_way_of_the_proxy_and_passes_without_it() {
    on_a_node(|| async {
        let mut world = World::new().await;
        for address in ["10.0.2.9:8080", "10.0.2.9:9999"] {
            world.vpc.serve(address).await;
        }
        world.party("c").serve("10.0.0.103:8080").await;
        let (a, c) = (world.party("a").clone(), world.party("c").clone());
        let before = a.run(|| async { TcpStream::connect("10.0.2.9:8080").await.unwrap().into_std().unwrap() }).await;
        let dry =
            |policy: String| policy.replace("namespace: x}", "namespace: x, annotations: {sluice.dev/audit: 'true'}}");
        world.tell(&format!(
            "{}---\n{}---\n{}",
            dry(policy("a", "a", &[Direction::Egress])),
            dry(policy("c", "c", &[Direction::Ingress])),
            service("s", 81, "10.0.2.9", 8080),
        ));
        for to in ["10.0.2.9:8080", "10.0.2.9:9999", "10.96.0.1:81"] {
            a.ask(to).await.unwrap_or_else(|error| panic!("{to}, there is no proxy: {error}"));
        }
        let mut proxy = Proxy::start().await;
        for (to, backend) in [("10.0.2.9:8080", "10.0.2.9:8080"), ("10.96.0.1:81", "10.0.2.9:8080")] {
            a.ask(to).await.unwrap_or_else(|error| panic!("{to}: {error}"));
            let seen = proxy.next().await;
            assert_eq!((seen.flow.direction, seen.backend), (Direction::Egress, backend.parse().unwrap()));
        }
        // Both gates have a dry run that would redirect it.
        a.ask("10.0.0.103:8080").await.unwrap();
        let both = [proxy.next().await, proxy.next().await].map(|seen| seen.flow.direction);
        assert!(both.contains(&Direction::Egress) && both.contains(&Direction::Ingress), "{both:?}");
        a.ask("10.0.2.9:9999").await.unwrap();
        let under_way = a.run(move || async move {
            let mut stream = TcpStream::from_std(before).unwrap();
            hello(&mut stream).await?;
            echo(&mut stream).await
        });
        under_way.await.expect("it was open before");
        assert!(proxy.is_quiet(), "what would be dropped, or was under way, is not for the proxy");
        proxy.kill();
        a.ask_within("10.0.2.9:8080", Duration::from_secs(2)).await.expect("it is gone");
        c.ask_within("10.0.2.9:8080", Duration::from_secs(2)).await.expect("nobody asks for it");
        assert_eq!(world.drops(DropReason::NoProxy), 0);
        remove_places().await;
    });
}
