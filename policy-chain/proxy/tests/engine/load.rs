//! Many connections, large bodies and slow clients: what they cost is bounded.

use std::process::Stdio;
use std::time::Duration;

use sluice_proxy::engine::Limits;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::bed::{Proxy, alone, counting, public, read_until, resident, server, show, until, within};
use crate::peers::{have, mortal, script};

const GET: &[u8] = b"GET /public HTTP/1.1\r\nHost: a\r\n\r\n";
const LONG: Duration = Duration::from_secs(120);

/// 9,850 that have been served, and 200 that have not asked: two descriptors and one, of 20,000 that a process commonly has.
#[test]
fn ten_thousand_idle_connections_hold_no_buffers() {
    if !alone("load::ten_thousand_idle_connections_hold_no_buffers") || !have(&["/usr/bin/python3"]) {
        return;
    }
    within(LONG, async {
        const ASKING: u64 = 9_850;
        const SILENT: u64 = 200;
        let (server, _server) = script("many.py").await;
        let proxy = Proxy::start(public(), server).await;
        proxy.talk(b"GET /public HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.ok();
        let before = resident();
        let path = format!("{}/tests/engine/peers/many.py", env!("CARGO_MANIFEST_DIR"));
        let mut clients = mortal("/usr/bin/python3")
            .args([&path, "client", &proxy.address.port().to_string(), &ASKING.to_string(), &SILENT.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(clients.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("held"));
        until(|| proxy.counter("connections") == ASKING + SILENT + 1).await;
        // A record each is kept by the test. A buffer alone would be 16 KiB.
        let each = resident().saturating_sub(before) / 10_000;
        assert!(each < 9_000, "{each} octets a connection");
        println!("{each} octets a connection");
        clients.stdin.take().unwrap().write_all(b"\n").await.unwrap();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("well"));
    });
}

#[test]
fn large_bodies_take_no_memory() {
    if !alone("load::large_bodies_take_no_memory") {
        return;
    }
    within(LONG, async {
        const LENGTH: u64 = 1 << 30;
        let (server, _) = server(|mut stream, _| async move {
            let mut method = [0; 4];
            stream.read_exact(&mut method).await.unwrap();
            let block = vec![7; 1 << 20];
            if &method == b"GET " {
                read_until(&mut stream, b"\r\n\r\n").await;
                let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
                stream.write_all(text.as_bytes()).await.unwrap();
                for _ in 0..LENGTH >> 20 {
                    stream.write_all(&block).await.unwrap();
                }
                return;
            }
            let mut part = vec![0; 1 << 20];
            let mut last = Vec::new();
            while !last.ends_with(b"\r\n0\r\n\r\n") {
                let count = stream.read(&mut part).await.unwrap();
                assert_ne!(count, 0);
                last.extend_from_slice(&part[count.saturating_sub(7)..count]);
                last.drain(..last.len().saturating_sub(7));
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await.unwrap();
        })
        .await;
        let proxy = Proxy::start(public(), server).await;
        let before = resident();
        let mut client = proxy.connect().await;
        client.write_all(GET).await.unwrap();
        read_until(&mut client, b"\x07").await;
        let mut got = 0;
        let mut part = vec![0; 1 << 20];
        while let Ok(count @ 1..) = client.read(&mut part).await {
            got += count as u64;
            assert!(resident().saturating_sub(before) < 24 << 20);
        }
        assert!(got > LENGTH - 5000, "{got}");
        assert_eq!(proxy.wait_records(1).await[0].bytes, (0, LENGTH));

        // Chunked, to the server.
        let length = if std::env::var_os("SLUICE_TEST_ALL").is_some() { LENGTH } else { LENGTH / 8 };
        let mut client = proxy.connect().await;
        let head = b"POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.write_all(head).await.unwrap();
        let block = [&b"10000\r\n"[..], &vec![7; 1 << 16], b"\r\n"].concat();
        for _ in 0..length >> 16 {
            client.write_all(&block).await.unwrap();
            let grown = resident().saturating_sub(before);
            assert!(grown < 24 << 20, "{grown} octets");
        }
        client.write_all(b"0\r\n\r\n").await.unwrap();
        read_until(&mut client, b"done").await;
        assert_eq!(proxy.wait_records(2).await[1].bytes, (length, 4));
    });
}

#[test]
fn slow_clients_harm_nobody_and_are_given_up() {
    within(LONG, async {
        let (server, _) = counting().await;
        let limits = Limits { head_time: Duration::from_millis(500), ..Limits::default() };
        let proxy = Proxy::with(public(), server, limits).await;
        let mut slow = Vec::new();
        for _ in 0..2000 {
            let mut client = proxy.connect().await;
            client.write_all(b"GET /public HTTP/1.1\r\nHost: a\r\nX: ").await.unwrap();
            slow.push(client);
            if slow.len() % 100 == 0 {
                let answer = proxy.talk(b"GET /public HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
                assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", show(&answer));
            }
        }
        until(|| proxy.counter("heads_too_slow") == 2000).await;
        for client in &mut slow {
            let answer = read_until(client, b"\r\n\r\nthe request took too long\r\n").await;
            assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", show(&answer));
        }
    });
}
