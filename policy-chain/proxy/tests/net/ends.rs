//! How connections end, and what happens when policy or the proxy does.

use std::net::IpAddr;
use std::time::Duration;

use sluice_policy_bpf::layout::DropReason;
use sluice_proxy::flow::Direction;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::world::*;

const BOTH: [&[Direction]; 2] = [&[Direction::Egress], &[Direction::Ingress]];

/// A world in which what `a` sends to `c` is proxied at one end or at both, and `c` answers.
async fn between(egress: bool, ingress: bool) -> World {
    let world = silent(egress, ingress).await;
    world.party("c").serve("10.0.0.103:8080").await;
    world
}

/// The same, without a server.
async fn silent(egress: bool, ingress: bool) -> World {
    let mut world = World::new().await;
    if egress {
        world.tell(&policy("a", "a", BOTH[0]));
    }
    if ingress {
        world.tell(&policy("c", "c", BOTH[1]));
    }
    world
}

#[test]
fn a_half_close_is_carried_and_the_other_half_goes_on() {
    on_a_node(|| async {
        let world = between(true, true).await;
        let _proxy = Proxy::start().await;
        let (heard, all) = world
            .party("a")
            .run(|| async {
                let mut stream = TcpStream::connect("10.0.0.103:8080").await.unwrap();
                hello(&mut stream).await.unwrap();
                let all = vec![7_u8; 1_000_000];
                let (mut from, mut to) = stream.split();
                let mut heard = Vec::new();
                let say = async {
                    to.write_all(&all).await.unwrap();
                    // The server ends only when it has heard this.
                    to.shutdown().await.unwrap();
                };
                let ((), read) = tokio::join!(say, from.read_to_end(&mut heard));
                read.unwrap();
                (heard.len(), all.len())
            })
            .await;
        assert_eq!(heard, all);
        remove_places().await;
    });
}

#[test]
fn a_reset_is_carried_both_ways() {
    on_a_node(|| async {
        let world = silent(true, true).await;
        let _proxy = Proxy::start().await;
        let (told, mut ends) = tokio::sync::mpsc::channel(16);
        world
            .party("c")
            .run(move || async move {
                let listener = TcpListener::bind("10.0.0.103:8080").await.unwrap();
                tokio::task::spawn_local(async move {
                    // The first hears of the client's end, the second makes one.
                    let (mut first, _) = listener.accept().await.unwrap();
                    first.write_all(b"x").await.unwrap();
                    told.try_send(first.read(&mut [0; 8]).await.map_err(|error| error.kind())).unwrap();
                    let (mut second, _) = listener.accept().await.unwrap();
                    second.read_exact(&mut [0; 1]).await.unwrap();
                    second.set_zero_linger().unwrap();
                });
            })
            .await;
        let end = world
            .party("a")
            .run(|| async {
                let mut first = TcpStream::connect("10.0.0.103:8080").await.unwrap();
                first.read_exact(&mut [0; 1]).await.unwrap();
                first.set_zero_linger().unwrap();
                drop(first);
                let mut second = TcpStream::connect("10.0.0.103:8080").await.unwrap();
                second.write_all(b"x").await.unwrap();
                second.read(&mut [0; 8]).await.map_err(|error| error.kind())
            })
            .await;
        assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset), "the server's");
        let end = tokio::time::timeout(DEADLINE, ends.recv()).await.unwrap().unwrap();
        assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset), "the client's");
        remove_places().await;
    });
}

#[test]
fn nobody_listening_is_told_as_a_reset() {
    on_a_node(|| async {
        let world = between(true, false).await;
        let _proxy = Proxy::start().await;
        let end = world
            .party("a")
            .run(|| async {
                // On a busy machine the reset is there before the connection is looked at.
                let mut stream = TcpStream::connect("10.0.0.103:80").await.map_err(|error| error.kind())?;
                stream.read(&mut [0; 1]).await.map_err(|error| error.kind())
            })
            .await;
        assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
        remove_places().await;
    });
}

/// Connects `count` times from each of ten ports, each time ending with a reset; gives how many failed, and the first error.
async fn resets(from: &Party, own: IpAddr, to: &'static str, count: usize) -> (usize, Option<String>) {
    from.run(move || async move {
        let ports = (41000..41010).map(|port| async move {
            let (mut failed, mut first) = (0_usize, None);
            for _ in 0..count {
                let once = async {
                    let mut stream = bound(own, port).connect(to.parse().unwrap()).await?;
                    hello(&mut stream).await?;
                    echo(&mut stream).await?;
                    stream.set_zero_linger()
                };
                let once = tokio::time::timeout(DEADLINE, once).await;
                if let Err(error) = once.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
                    failed += 1;
                    first.get_or_insert_with(|| format!("port {port}: {error}"));
                }
            }
            (failed, first)
        });
        let tasks: Vec<_> = ports.map(tokio::task::spawn_local).collect();
        let mut all = (0, None);
        for task in tasks {
            let (failed, first) = task.await.unwrap();
            all = (all.0 + failed, all.1.or(first));
        }
        all
    })
    .await
}

/// Issue D: 10,000 connections that end with a reset, from 10 ports, none failed; a part of them where tests are short.
fn resets_of(egress: bool, ingress: bool) {
    on_a_node(move || async move {
        let count = if std::env::var_os("SLUICE_TEST_ALL").is_some() { 1000 } else { 100 };
        let world = between(egress, ingress).await;
        let _proxy = Proxy::start().await;
        let own = world.pods["a"].v4;
        let (failed, first) = resets(world.party("a"), own, "10.0.0.103:8080", count).await;
        assert_eq!(failed, 0, "of {}: {first:?}", count * 10);
        remove_places().await;
    });
}

#[test]
fn a_port_is_used_again_at_once_after_a_reset_at_egress() {
    resets_of(true, false);
}

#[test]
fn a_port_is_used_again_at_once_after_a_reset_at_ingress() {
    resets_of(false, true);
}

#[test]
fn a_port_is_used_again_at_once_after_a_reset_at_both() {
    resets_of(true, true);
}

/// A client that closes properly and uses its port again: the proxy's side of it is in TIME_WAIT.
#[test]
fn a_port_is_used_again_after_an_orderly_end() {
    on_a_node(|| async {
        let world = between(true, true).await;
        let _proxy = Proxy::start().await;
        let own = world.pods["a"].v4;
        let reused = world
            .party("a")
            .run(move || async move {
                let mut connections = 0;
                for _ in 0..20 {
                    let mut stream = bound(own, 42000).connect("10.0.0.103:8080".parse().unwrap()).await.unwrap();
                    hello(&mut stream).await.unwrap();
                    echo(&mut stream).await.unwrap();
                    stream.shutdown().await.unwrap();
                    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0, "the server ends as well");
                    connections += 1;
                    // No TIME_WAIT of the client's own is in the way.
                    stream.set_zero_linger().unwrap();
                }
                connections
            })
            .await;
        assert_eq!(reused, 20);
        remove_places().await;
    });
}

#[test]
fn a_direct_flow_that_becomes_the_proxys_is_reset_and_a_proxied_one_stays() {
    on_a_node(|| async {
        let mut world = World::new().await;
        let mut proxy = Proxy::start().await;
        world.party("c").serve("10.0.0.103:8080").await;
        let (direct, speak) = tokio::sync::oneshot::channel::<()>();
        let (open, opened) = tokio::sync::oneshot::channel::<()>();
        let a = world.party("a").clone();
        let flow = tokio::task::spawn_local(async move {
            a.run(|| async move {
                let mut stream = TcpStream::connect("10.0.0.103:8080").await.unwrap();
                hello(&mut stream).await.unwrap();
                open.send(()).unwrap();
                speak.await.unwrap();
                echo(&mut stream).await.map_err(|error| error.kind())
            })
            .await
        });
        opened.await.unwrap();
        assert!(proxy.is_quiet());
        world.tell(&policy("a", "a", BOTH[0]));
        direct.send(()).unwrap();
        let end = tokio::time::timeout(DEADLINE, flow).await.unwrap().unwrap();
        assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));

        // And one that is proxied goes on when nothing asks for it any more, and stops when it is denied.
        let (go_on, mut next) = tokio::sync::mpsc::channel::<()>(16);
        let (said, mut heard) = tokio::sync::mpsc::channel(16);
        let a = world.party("a").clone();
        let flow = tokio::task::spawn_local(async move {
            a.run(|| async move {
                let mut stream = TcpStream::connect("10.0.0.103:8080").await.unwrap();
                hello(&mut stream).await.unwrap();
                said.try_send(Ok(())).unwrap();
                while next.recv().await.is_some() {
                    let echoed = tokio::time::timeout(SILENCE, echo(&mut stream)).await;
                    said.try_send(
                        echoed
                            .map_err(|_elapsed| std::io::ErrorKind::TimedOut)
                            .and_then(|echoed| echoed.map_err(|error| error.kind())),
                    )
                    .unwrap();
                }
            })
            .await;
        });
        heard.recv().await.unwrap().unwrap();
        proxy.next().await;
        world.tell(&allow_all("a"));
        go_on.try_send(()).unwrap();
        heard.recv().await.unwrap().expect("it keeps the proxy");
        assert!(proxy.is_quiet());
        world.party("a").ask("10.0.0.103:8080").await.unwrap();
        assert!(proxy.is_quiet(), "a new one goes straight");
        let before = world.drops(DropReason::Policy);
        world.tell(&deny_all("a"));
        go_on.try_send(()).unwrap();
        assert_eq!(heard.recv().await.unwrap(), Err(std::io::ErrorKind::TimedOut), "its packets drop");
        assert!(world.drops(DropReason::Policy) > before);
        drop(go_on);
        flow.await.unwrap();
        remove_places().await;
    });
}

fn allow_all(pod: &str) -> String {
    format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: a, namespace: x}}, spec: \
         {{endpointSelector: {{matchLabels: {{app: {pod}}}}}, egress: [{{toEntities: [all]}}]}}}}\n"
    )
}

fn deny_all(pod: &str) -> String {
    format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: a, namespace: x}}, spec: \
         {{endpointSelector: {{matchLabels: {{app: {pod}}}}}, egressDeny: [{{toEntities: [all]}}]}}}}\n"
    )
}

/// DESIGN 11: without the proxy redirected flows drop, with a reason, and never pass; what is allowed without rules goes on.
#[test]
fn without_the_proxy_nothing_passes_and_a_new_one_takes_over() {
    on_a_node(|| async {
        let mut world = between(true, true).await;
        world.party("c").serve("10.0.0.103:22").await;
        let a = world.party("a").clone();
        a.ask_within("10.0.0.103:8080", SILENCE).await.expect_err("there has never been one");
        assert!(world.drops(DropReason::NoProxy) > 0);
        let proxy = Proxy::start().await;
        let (index, namespace) = (proxy.places.egress.link(), proxy.places.egress.namespace().clone());
        a.ask("10.0.0.103:8080").await.unwrap();

        // Another process takes the sockets over, and what the older one has is not lost.
        let (open, opened) = tokio::sync::oneshot::channel::<()>();
        let (taken, speak) = tokio::sync::oneshot::channel::<()>();
        let old = a.clone();
        let flow = tokio::task::spawn_local(async move {
            old.run(|| async move {
                let mut stream = TcpStream::connect("10.0.0.103:8080").await.unwrap();
                hello(&mut stream).await.unwrap();
                open.send(()).unwrap();
                speak.await.unwrap();
                echo(&mut stream).await.map_err(|error| error.kind())
            })
            .await
        });
        opened.await.unwrap();
        let mut next = Proxy::start().await;
        assert_eq!(next.places.egress.link(), index, "the link stays");
        assert_eq!(next.places.egress.namespace(), &namespace, "and the namespace");
        taken.send(()).unwrap();
        assert_eq!(flow.await.unwrap(), Ok(()));
        a.ask("10.0.0.103:8080").await.unwrap();
        for _ in 0..2 {
            next.next().await;
        }
        // The older one goes; the newer one does not notice.
        proxy.kill();
        for _ in 0..20 {
            a.ask("10.0.0.103:8080").await.unwrap();
        }

        // Killed: what is open is reset, nothing new passes, and what needs no proxy does.
        let (open, opened) = tokio::sync::oneshot::channel::<()>();
        let (gone, speak) = tokio::sync::oneshot::channel::<()>();
        let old = a.clone();
        let flow = tokio::task::spawn_local(async move {
            old.run(|| async move {
                let mut stream = TcpStream::connect("10.0.0.103:8080").await.unwrap();
                hello(&mut stream).await.unwrap();
                open.send(()).unwrap();
                speak.await.unwrap();
                echo(&mut stream).await.map_err(|error| error.kind())
            })
            .await
        });
        opened.await.unwrap();
        next.kill();
        gone.send(()).unwrap();
        assert!(flow.await.unwrap().is_err());
        let before = world.drops(DropReason::NoProxy);
        a.ask_within("10.0.0.103:8080", SILENCE).await.expect_err("nothing passes");
        assert!(world.drops(DropReason::NoProxy) > before);
        a.ask("10.0.0.103:22").await.expect("no rules, no proxy");
        // A client that goes on trying gets through when it is back.
        let waiting = a.clone();
        let ask = tokio::task::spawn_local(async move { waiting.ask_within("10.0.0.103:8080", DEADLINE).await });
        let mut back = Proxy::start().await;
        ask.await.unwrap().expect("repeated by the client");
        back.next().await;

        // What somebody took away is put back.
        sh(None, "ip link del sluice-egress");
        sh(Some(&namespace), "ip rule del priority 100 && ip route flush table 100");
        let renewed = back.places.repair(&places()).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(renewed, [], "the namespace is the same");
        assert_ne!(back.places.egress.link(), index);
        a.ask("10.0.0.103:8080").await.unwrap();
        // A namespace that is made anew needs a process that begins anew.
        sh(None, "umount -l /mnt/run/netns/egress");
        let renewed = back.places.repair(&places()).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(renewed, [Direction::Egress]);
        a.ask_within("10.0.0.103:8080", SILENCE).await.expect_err("its sockets are in the old one");
        back.kill();
        let back = Proxy::start().await;
        a.ask("10.0.0.103:8080").await.unwrap();
        world.tell(&allow_all("a"));
        drop(back);
        remove_places().await;
        tokio::time::timeout(Duration::from_secs(1), remove_places()).await.expect("twice");
    });
}
