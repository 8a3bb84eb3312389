//! What becomes of connections: limits, ends, resets, upgrades, and changes of policy meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sluice_proxy::engine::Limits;
use sluice_proxy::policy::Refused;
use sluice_proxy::record::Kind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::bed::{
    Proxy, canned, counting, http, public, read_all, read_until, requests, rules, run, seen, server, show, until,
};

const GET: &[u8] = b"GET /public HTTP/1.1\r\nHost: a\r\n\r\n";

/// An address where nobody listens.
async fn nobody() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

fn is_reset<T: std::fmt::Debug>(result: Result<T, std::io::Error>) -> bool {
    matches!(result, Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset)
}

#[test]
fn each_request_is_judged_by_the_rules_of_its_time() {
    run(async {
        let (server, _) = counting().await;
        let proxy = Proxy::start(public(), server).await;
        let mut client = proxy.connect().await;
        client.write_all(GET).await.unwrap();
        read_until(&mut client, b"answer 1\n").await;
        proxy.policy.set(Ok(rules([http("GET", "/other")])));
        client.write_all(GET).await.unwrap();
        read_until(&mut client, b"Access denied\r\n").await;
        proxy.policy.set(Ok(public()));
        client.write_all(GET).await.unwrap();
        read_until(&mut client, b"answer 2\n").await;
        proxy.policy.set(Err(Refused::Denied("CiliumNetworkPolicy shop/db, egressDeny[0]".into())));
        client.write_all(GET).await.unwrap();
        assert!(is_reset(read_all(&mut client).await), "what the gate refuses is reset");
        assert_eq!(proxy.counter("connections_refused"), 1);
    });
}

#[test]
fn a_request_to_a_service_is_judged_by_its_backends_rules_before_the_server_sees_it() {
    run(async {
        let (server, sent) = counting().await;
        let dialled = "10.100.0.1:80".parse().unwrap();
        let backend = Ok(Arc::new(rules([http("GET", "/public/b")])));
        let backends = HashMap::from([(server, backend)]);
        let proxy = Proxy::to_backend(public(), backends, dialled, server, Limits::default()).await;
        let mut client = proxy.connect().await;
        client.write_all(GET).await.unwrap();
        read_until(&mut client, b"Access denied\r\n").await;
        assert_eq!((sent.connections(), sent.text().len()), (1, 0), "connected, and nothing sent");
        client.write_all(b"GET /public/b HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        read_until(&mut client, b"answer 1\n").await;
        assert_eq!(proxy.wait_records(2).await[1].backend, Some(server));

        let refused = HashMap::from([(server, Err(Refused::Denied("the gate".into())))]);
        let proxy = Proxy::to_backend(public(), refused, dialled, server, Limits::default()).await;
        assert!(is_reset(proxy.talk(GET).await));
        let records = proxy.records();
        assert_eq!((records[0].passes, &*records[0].reason), (false, "the gate"));
        assert_eq!(sent.all().last().map(Vec::len), Some(0));
    });
}

#[test]
fn a_server_that_cannot_be_reached_is_a_bad_gateway() {
    run(async {
        let proxy = Proxy::start(public(), nobody().await).await;
        let answer = proxy.talk(GET).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 502 "), "{}", show(&answer));
        assert_eq!(proxy.counter("connects_failed"), 1);
        assert_eq!(requests(&proxy.records()), [(502, "/public".into(), true)]);
    });
}

#[test]
fn a_server_that_does_not_answer_is_a_gateway_timeout() {
    run(async {
        let (server, _) = server(|mut stream, _| async move {
            read_all(&mut stream).await.ok();
        })
        .await;
        let limits = Limits { response: Duration::from_millis(50), ..Limits::default() };
        let proxy = Proxy::with(public(), server, limits).await;
        let answer = proxy.talk(GET).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 504 "), "{}", show(&answer));
        assert_eq!(proxy.counter("stalled"), 1);
    });
}

#[test]
fn a_connection_that_the_server_ends_while_it_is_idle_is_ended_and_not_answered() {
    run(async {
        let (server, _) = canned(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true).await;
        let proxy = Proxy::start(public(), server).await;
        let mut client = proxy.connect().await;
        client.write_all(GET).await.unwrap();
        read_until(&mut client, b"ok").await;
        assert_eq!(read_all(&mut client).await.unwrap(), b"");
    });
}

#[test]
fn what_a_server_says_unasked_is_not_taken_for_an_answer() {
    run(async {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
        let (server, _) = canned(answer, false).await;
        let proxy = Proxy::start(public(), server).await;
        let answer = show(&proxy.talk(&GET.repeat(2)).await.unwrap());
        assert!(answer.ends_with("\\r\\n\\r\\nok"), "{answer}");
    });
}

#[test]
fn heads_have_limits() {
    let long = "x".repeat(70_000);
    for (input, status) in [
        (format!("GET /public HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), "431"),
        (format!("GET /public/{long} HTTP/1.1\r\nHost: a\r\n\r\n"), "414"),
        (format!("GET /public HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(200)), "431"),
        (format!("GET /public HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(600)), "431"),
        (format!("GET /public HTTP/1.1\r\nHost: a\r\nX: {}\r\nConnection: close\r\n\r\n", "x".repeat(60_000)), "200"),
        (format!("GET /public/{} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "x".repeat(32_000)), "200"),
    ] {
        run(async {
            let (server, _) = counting().await;
            let proxy = Proxy::start(public(), server).await;
            for before in [&b""[..], GET] {
                let answer = show(&proxy.talk(&[before, input.as_bytes()].concat()).await.unwrap());
                let last = answer.rsplit("HTTP/1.1 ").next().unwrap();
                assert!(last.starts_with(status), "{status}: {answer}");
            }
            assert_eq!(proxy.counter("heads_too_large"), if status == "200" { 0 } else { 2 });
        });
    }
}

#[test]
fn a_head_that_trickles_in_is_given_up() {
    run(async {
        let (server, _) = counting().await;
        let limits = Limits { head_time: Duration::from_millis(60), ..Limits::default() };
        let proxy = Proxy::with(public(), server, limits).await;
        for before in [&b""[..], GET] {
            let mut client = proxy.connect().await;
            client.write_all(before).await.unwrap();
            if !before.is_empty() {
                read_until(&mut client, b"answer 1\n").await;
            }
            let (mut read, mut write) = client.split();
            let trickle = async {
                write.write_all(b"GET /public HTTP/1.1\r\n").await.unwrap();
                while write.write_all(b"X: y\r\n").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let mut answer = Vec::new();
            tokio::select! {
                () = trickle => {}
                read = read.read_to_end(&mut answer) => { read.unwrap(); }
            }
            assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", show(&answer));
        }
        assert_eq!(proxy.counter("heads_too_slow"), 2);
    });
}

#[test]
fn a_pod_has_so_many_connections_and_no_more() {
    run(async {
        let (server, _) = counting().await;
        let proxy = Proxy::with(public(), server, Limits { pod_connections: 3, ..Limits::default() }).await;
        let mut held = Vec::new();
        for _ in 0..3 {
            let mut client = proxy.connect().await;
            client.write_all(GET).await.unwrap();
            read_until(&mut client, b"answer 1\n").await;
            held.push(client);
        }
        let mut fourth = proxy.connect().await;
        assert!(is_reset(read_all(&mut fourth).await));
        assert_eq!(proxy.counter("pod_connections_exceeded"), 1);
        drop(held);
        loop {
            let mut again = proxy.connect().await;
            if again.write_all(GET).await.is_ok() && matches!(again.read(&mut [0; 64]).await, Ok(1..)) {
                break;
            }
        }
    });
}

#[test]
fn half_closed_is_half_closed() {
    run(async {
        // The server answers when the client's stream has ended.
        let (server, _) = server(|mut stream, note| async move {
            note(&read_all(&mut stream).await.unwrap());
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate").await.unwrap();
        })
        .await;
        let proxy = Proxy::start(public(), server).await;
        let mut client = proxy.connect().await;
        client.write_all(GET).await.unwrap();
        client.shutdown().await.unwrap();
        assert!(read_all(&mut client).await.unwrap().ends_with(b"late"));
    });
}

#[test]
fn a_reset_by_the_client_resets_the_servers_connection() {
    run(async {
        let (seen, mut ended) = tokio::sync::mpsc::channel(1);
        let (server, sent) = server(move |mut stream, note| {
            let seen = seen.clone();
            async move {
                let mut part = [0; 100];
                let count = stream.read(&mut part).await.unwrap();
                note(&part[..count]);
                seen.send(stream.read(&mut part).await.map_err(|error| error.kind())).await.unwrap();
            }
        })
        .await;
        let proxy = Proxy::start(public(), server).await;
        let mut client = proxy.connect().await;
        client.write_all(GET).await.unwrap();
        until(|| !sent.text().is_empty()).await;
        client.set_zero_linger().unwrap();
        drop(client);
        assert_eq!(ended.recv().await, Some(Err(std::io::ErrorKind::ConnectionReset)));
    });
}

#[test]
fn a_response_that_breaks_off_breaks_off_for_the_client() {
    run(async {
        for answer in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nbegin",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ] {
            let (server, _) = canned(answer, true).await;
            let proxy = Proxy::start(public(), server).await;
            assert!(is_reset(proxy.talk(GET).await), "{}", show(answer));
        }
    });
}

#[test]
fn an_early_answer_gets_through_whatever_becomes_of_the_body() {
    run(async {
        // The server reads the head alone, says no, and goes.
        let (server, _) = server(|mut stream, _| async move {
            read_until(&mut stream, b"\r\n\r\n").await;
            let answer = b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno\n";
            stream.write_all(answer).await.unwrap();
        })
        .await;
        let proxy = Proxy::start(public(), server).await;
        let mut client = proxy.connect().await;
        client.write_all(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n").await.unwrap();
        let answer = read_until(&mut client, b"no\n").await;
        assert!(answer.starts_with(b"HTTP/1.1 413 "), "{}", show(&answer));
    });
}

#[test]
fn expectations_are_the_servers_to_answer() {
    run(async {
        let (server, _) = server(|mut stream, _| async move {
            let head = read_until(&mut stream, b"\r\n\r\n").await;
            assert!(show(&head).contains("Expect: 100-continue"));
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            read_until(&mut stream, b"hello").await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes").await.unwrap();
        })
        .await;
        let proxy = Proxy::start(public(), server).await;
        let mut client = proxy.connect().await;
        let head = b"PUT /upload HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
        client.write_all(head).await.unwrap();
        assert_eq!(read_until(&mut client, b"\r\n\r\n").await, b"HTTP/1.1 100 Continue\r\n\r\n");
        client.write_all(b"hello").await.unwrap();
        read_until(&mut client, b"yes").await;
    });
}

const UPGRADE: &[u8] =
    b"GET /public/ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n";

/// A server that switches protocols and echoes.
async fn switching() -> std::net::SocketAddr {
    server(|mut stream, _| async move {
        let head = read_until(&mut stream, b"\r\n\r\n").await;
        assert!(show(&head).contains("upgrade: websocket\\r\\nconnection: upgrade\\r\\n"), "{}", show(&head));
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst";
        stream.write_all(answer).await.unwrap();
        let mut part = [0; 100];
        while let Ok(count @ 1..) = stream.read(&mut part).await {
            stream.write_all(&part[..count]).await.unwrap();
        }
    })
    .await
    .0
}

#[test]
fn after_an_upgrade_octets_go_both_ways_until_policy_no_longer_lets_them() {
    run(async {
        let proxy = Proxy::start(public(), switching().await).await;
        let mut client = proxy.connect().await;
        client.write_all(&[UPGRADE, b"ahead"].concat()).await.unwrap();
        let answer = read_until(&mut client, b"firstahead").await;
        assert!(
            answer.starts_with(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nconnection: upgrade\r\n")
        );
        assert_eq!(requests(&proxy.records()), [(101, "/public/ws".into(), true)]);
        for word in [&b"GET /secret HTTP/1.1\r\n\r\n"[..], b"\x81\x05hello"] {
            client.write_all(word).await.unwrap();
            assert_eq!(read_until(&mut client, word).await, word);
        }
        // Another rule that has the upgrade too.
        proxy.policy.set(Ok(rules([http("GET", "/public/ws")])));
        client.write_all(b"on").await.unwrap();
        read_until(&mut client, b"on").await;
        proxy.policy.set(Ok(rules([http("GET", "/other")])));
        assert!(is_reset(read_all(&mut client).await));
        let records = proxy.wait_records(2).await;
        assert_eq!((&records[1].kind, records[1].passes), (&Kind::Connection, true));
    });
}

#[test]
fn connect_makes_a_tunnel_where_a_rule_lets_it() {
    run(async {
        let (server, sent) = server(|mut stream, note| async move {
            note(&read_until(&mut stream, b"\r\n\r\n").await);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n").await.unwrap();
            let mut part = [0; 100];
            while let Ok(count @ 1..) = stream.read(&mut part).await {
                stream.write_all(&part[..count]).await.unwrap();
            }
        })
        .await;
        let connect = b"CONNECT db.example:5432 HTTP/1.1\r\nHost: db.example:5432\r\n\r\n";
        let refused = Proxy::start(public(), server).await;
        assert!(refused.talk(connect).await.unwrap().starts_with(b"HTTP/1.1 403 "));
        let only = sluice_policy_core::l7::http::HttpRuleSpec {
            method: Some("CONNECT".into()),
            host: Some("db\\.example:5432".into()),
            ..Default::default()
        };
        let proxy = Proxy::start(rules([crate::bed::rule(only)]), server).await;
        let mut client = proxy.connect().await;
        client.write_all(connect).await.unwrap();
        assert_eq!(show(&read_until(&mut client, b"\r\n\r\n").await), "HTTP/1.1 200 OK\\r\\n\\r\\n");
        client.write_all(b"\x00raw").await.unwrap();
        read_until(&mut client, b"\x00raw").await;
        assert_eq!(show(&sent.all()[0]), show(connect));
    });
}

#[test]
fn what_is_no_http_is_refused_unless_all_may_pass() {
    run(async {
        let (server, _) = server(|mut stream, note| async move {
            stream.write_all(b"220 mail.example ESMTP\r\n").await.unwrap();
            let said = read_until(&mut stream, b"\r\n").await;
            note(&said);
            stream.write_all(b"250 hello\r\n").await.unwrap();
        })
        .await;
        let proxy = Proxy::start(public(), server).await;
        for input in [&b"EHLO pod.example\r\n"[..], b"\x16\x03\x01\x00\x05hello", b"PRI * HTTP/1.1\r\n\r\n", b"\0"] {
            let answer = proxy.talk(input).await.unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", show(&answer));
        }
        assert_eq!(proxy.counter("other_protocols"), 4);

        let proxy = Proxy::start(seen(public()), server).await;
        let mut client = proxy.connect().await;
        read_until(&mut client, b"ESMTP\r\n").await;
        client.write_all(b"EHLO pod.example\r\n").await.unwrap();
        assert_eq!(read_all(&mut client).await.unwrap(), b"250 hello\r\n");
        drop(client);
        let records = proxy.wait_records(1).await;
        assert_eq!((&records[0].kind, records[0].passes), (&Kind::Connection, true));
        assert_eq!(records[0].bytes, (18, 35));
    });
}

#[test]
fn what_all_may_pass_is_seen_and_answered_by_the_server() {
    run(async {
        let (server, _) = counting().await;
        let proxy = Proxy::start(seen(public()), server).await;
        let mut client = proxy.connect().await;
        client.write_all(b"GET /secret HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        read_until(&mut client, b"answer 1\n").await;
        let records = proxy.wait_records(1).await;
        assert_eq!((records[0].passes, records[0].rule.as_deref()), (true, None));
        assert_eq!(&*records[0].reason, "no policy decides");
    });
}

#[test]
fn dry_runs_say_what_they_would_do() {
    run(async {
        let (server, _) = counting().await;
        let mut given = seen(public());
        given.audit = Some(Arc::new(public()));
        let proxy = Proxy::start(given, server).await;
        proxy.talk(b"GET /secret HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        let records = proxy.wait_records(1).await;
        assert_eq!((records[0].passes, records[0].would_pass), (true, Some(false)));
    });
}

/// One side of a relayed connection ends or is reset, and the other sees the same.
#[test]
fn a_relay_carries_ends_and_resets_over() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let given = sluice_proxy::policy::Rules { looks: sluice_proxy::policy::Looks::Nothing, ..seen(rules([])) };
        let proxy = Proxy::start(given, listener.local_addr().unwrap()).await;
        let pair = async || -> (TcpStream, TcpStream) {
            let client = proxy.connect().await;
            (client, listener.accept().await.unwrap().0)
        };
        let (mut client, mut server) = pair().await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut server).await.unwrap(), b"question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        assert_eq!(read_all(&mut client).await.unwrap(), b"answer");
        assert_eq!(proxy.wait_records(1).await[0].bytes, (8, 6));
        for by_client in [true, false] {
            let (client, server) = pair().await;
            let (goes, mut stays) = if by_client { (client, server) } else { (server, client) };
            goes.set_zero_linger().unwrap();
            drop(goes);
            assert!(is_reset(read_all(&mut stays).await), "{by_client}");
        }
        let (mut client, _server) = pair().await;
        proxy.policy.set(Ok(rules([])));
        assert!(is_reset(read_all(&mut client).await), "policy no longer lets it");
    });
}

/// Bulk both ways at once, through pipes and buffers, with every octet where it belongs.
#[test]
fn a_relay_keeps_octets_in_order() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let given = sluice_proxy::policy::Rules { looks: sluice_proxy::policy::Looks::Nothing, ..seen(rules([])) };
        let proxy = Proxy::start(given, listener.local_addr().unwrap()).await;
        let client = proxy.connect().await;
        let server = listener.accept().await.unwrap().0;
        let octets: Arc<Vec<u8>> = Arc::new((0..6_000_000_u32).map(|at| (at / 7 % 251) as u8).collect());
        let side = |stream: TcpStream| {
            let octets = Arc::clone(&octets);
            async move {
                let (mut read, mut write) = stream.into_split();
                let sending = async {
                    for (index, part) in octets.chunks(77_777).enumerate() {
                        write.write_all(part).await.unwrap();
                        if index % 7 == 0 {
                            tokio::task::yield_now().await;
                        }
                    }
                    write.shutdown().await.unwrap();
                };
                let mut got = Vec::new();
                let (_, read) = tokio::join!(sending, read.read_to_end(&mut got));
                read.unwrap();
                assert!(got == *octets, "{} octets, not as sent", got.len());
            }
        };
        tokio::join!(side(client), side(server));
        assert_eq!(proxy.wait_records(1).await[0].bytes, (6_000_000, 6_000_000));
    });
}
