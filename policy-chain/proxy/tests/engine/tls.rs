//! TLS: judged by the name in the ClientHello, and relayed as it is.

use sluice_proxy::engine::Limits;
use sluice_proxy::record::Kind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bed::{Proxy, http, names, read_all, read_until, rules, run, seen, server, show};

fn vector(octets: usize, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    [&length[length.len() - octets..], content].concat()
}

/// A ClientHello, in records of so many octets.
pub(crate) fn hello(name: Option<&str>, of: usize) -> Vec<u8> {
    let extensions = name.map_or_else(Vec::new, |name| {
        let list = vector(2, &[&[0][..], &vector(2, name.as_bytes())].concat());
        [&[0, 0][..], &vector(2, &list)].concat()
    });
    let content =
        [&[3, 3][..], &[7; 32], &vector(1, &[]), &vector(2, &[0x13, 1]), &vector(1, &[0]), &vector(2, &extensions)]
            .concat();
    let message = [&[1][..], &vector(3, &content)].concat();
    message.chunks(of).flat_map(|part| [&[22, 3, 1][..], &vector(2, part)].concat()).collect()
}

/// Answers what it has read of so many octets with `served`, and echoes what comes then.
async fn echo(expects: usize) -> (std::net::SocketAddr, crate::bed::Sent) {
    server(move |mut stream, note| async move {
        let mut first = vec![0; expects];
        if stream.read_exact(&mut first).await.is_err() {
            return;
        }
        note(&first);
        stream.write_all(b"served").await.unwrap();
        let mut part = [0; 1000];
        while let Ok(count @ 1..) = stream.read(&mut part).await {
            stream.write_all(&part[..count]).await.unwrap();
        }
    })
    .await
}

#[test]
fn a_name_that_a_rule_has_passes_as_it_came() {
    for of in [7, 4000] {
        run(async {
            let first = hello(Some("Shop.Example"), of);
            let (server, sent) = echo(first.len()).await;
            let proxy = Proxy::start(rules([names(&["*.example"])]), server).await;
            let mut client = proxy.connect().await;
            client.set_nodelay(true).unwrap();
            for octet in first.chunks(11) {
                client.write_all(octet).await.unwrap();
                tokio::task::yield_now().await;
            }
            read_until(&mut client, b"served").await;
            client.write_all(b"opaque").await.unwrap();
            read_until(&mut client, b"opaque").await;
            drop(client);
            assert_eq!(sent.all()[0], first);
            let records = proxy.wait_records(1).await;
            assert_eq!(records[0].kind, Kind::Tls { server_name: Some("shop.example".into()) });
            assert!(records[0].passes);
            assert_eq!(records[0].bytes, (first.len() as u64 + 6, 12));
        });
    }
}

#[test]
fn another_name_and_none_are_refused_by_an_alert_and_the_server_sees_nothing() {
    for name in [Some("other.test"), None, Some("a.shop.example")] {
        run(async {
            let (server, sent) = echo(1).await;
            let proxy = Proxy::start(rules([names(&["*.example"])]), server).await;
            let answer = proxy.talk(&hello(name, 4000)).await.unwrap();
            assert_eq!(answer, [21, 3, 3, 0, 2, 2, 49], "access_denied");
            assert_eq!(sent.connections(), 0);
            assert_eq!(proxy.counter("tls_refused"), 1);
            assert_eq!(proxy.records()[0].kind, Kind::Tls { server_name: name.map(Into::into) });
        });
    }
}

#[test]
fn what_is_no_clienthello_is_refused() {
    for octets in [&b"GET / HTTP/1.1\r\n\r\n"[..], &hello(Some("10.0.0.1"), 99), &hello(Some("a b.example"), 99)] {
        run(async {
            let (server, sent) = echo(1).await;
            let proxy = Proxy::start(rules([names(&["*"])]), server).await;
            assert_eq!(proxy.talk(octets).await.unwrap(), [21, 3, 3, 0, 2, 2, 50], "decode_error");
            assert_eq!((sent.connections(), proxy.counter("tls_bad")), (0, 1));
        });
    }
}

#[test]
fn a_clienthello_that_trickles_in_is_given_up() {
    run(async {
        let (server, sent) = echo(1).await;
        let limits = Limits { head_time: std::time::Duration::from_millis(40), ..Limits::default() };
        let proxy = Proxy::with(rules([names(&["*"])]), server, limits).await;
        let mut client = proxy.connect().await;
        client.write_all(&hello(Some("a.example"), 99)[..20]).await.unwrap();
        assert_eq!(read_all(&mut client).await.unwrap(), [21, 3, 3, 0, 2, 2, 50]);
        assert_eq!((sent.connections(), proxy.counter("heads_too_slow")), (0, 1));
    });
}

#[test]
fn an_open_connection_is_judged_again_when_policy_changes() {
    run(async {
        let first = hello(Some("shop.example"), 4000);
        let (server, _) = echo(first.len()).await;
        let proxy = Proxy::start(rules([names(&["*.example"])]), server).await;
        let mut client = proxy.connect().await;
        client.write_all(&first).await.unwrap();
        read_until(&mut client, b"served").await;
        proxy.policy.set(Ok(rules([names(&["shop.*"])])));
        client.write_all(b"still").await.unwrap();
        read_until(&mut client, b"still").await;
        proxy.policy.set(Ok(rules([names(&["other.*"])])));
        assert!(read_all(&mut client).await.is_err());
    });
}

#[test]
fn one_port_can_have_rules_for_both() {
    run(async {
        let first = hello(Some("shop.example"), 4000);
        let (server, _) = echo(first.len()).await;
        let given = || rules([names(&["shop.example"]), http("GET", "/public")]);
        let proxy = Proxy::start(given(), server).await;
        let mut client = proxy.connect().await;
        client.write_all(&first).await.unwrap();
        read_until(&mut client, b"served").await;
        let answer = proxy.talk(b"GET /secret HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 403 "), "{}", show(&answer));
        let (server, _) = crate::bed::counting().await;
        let proxy = Proxy::start(given(), server).await;
        let answer = proxy.talk(b"GET /public HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", show(&answer));
    });
}

/// As with STARTTLS: nobody waits for a ClientHello that comes later, if at all.
#[test]
fn a_server_that_speaks_first_is_heard_where_all_may_pass() {
    run(async {
        let (server, _) = server(|mut stream, _| async move {
            stream.write_all(b"220 ready\r\n").await.unwrap();
            let mut part = [0; 100];
            while let Ok(count @ 1..) = stream.read(&mut part).await {
                stream.write_all(&part[..count]).await.unwrap();
            }
        })
        .await;
        let proxy = Proxy::start(seen(rules([names(&["*.example"])])), server).await;
        let mut client = proxy.connect().await;
        read_until(&mut client, b"220 ready\r\n").await;
        client.write_all(b"STARTTLS\r\n").await.unwrap();
        read_until(&mut client, b"STARTTLS\r\n").await;
        drop(client);
        assert_eq!(proxy.wait_records(1).await[0].kind, Kind::Tls { server_name: None });
        assert_eq!(proxy.counter("other_protocols"), 1);
    });
}

#[test]
fn where_all_may_pass_names_are_only_seen() {
    run(async {
        let first = hello(Some("other.test"), 4000);
        let (server, _) = echo(first.len()).await;
        let proxy = Proxy::start(seen(rules([names(&["*.example"])])), server).await;
        let mut client = proxy.connect().await;
        client.write_all(&first).await.unwrap();
        read_until(&mut client, b"served").await;
        drop(client);
        let records = proxy.wait_records(1).await;
        assert_eq!((records[0].passes, &*records[0].reason), (true, "no policy decides"));
        assert_eq!(records[0].kind, Kind::Tls { server_name: Some("other.test".into()) });
    });
}
