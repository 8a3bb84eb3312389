//! Connections that end before their peers want it: because the process leaves, and because policy has changed under a
//! request that is being answered.

use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use http::{Request, Response};
use sluice_proxy::engine::Limits;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use crate::bed::{Proxy, counting, http, public, read_all, read_until, rules, run, server, show};

const GET: &[u8] = b"GET /public HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn a_process_that_leaves_ends_idle_connections_and_those_that_are_answered() {
    run(async {
        let (server, _) = counting().await;
        let limits = Limits { leave: Duration::from_millis(50), ..Limits::default() };
        let proxy = Proxy::with(public(), server, limits).await;
        let (mut idle, mut busy) = (proxy.connect().await, proxy.connect().await);
        for client in [&mut idle, &mut busy] {
            client.write_all(GET).await.unwrap();
            read_until(client, b"answer 1\n").await;
        }
        assert_eq!(proxy.connections.oldest(10).len(), 2);
        proxy.connections.end();
        busy.write_all(GET).await.unwrap();
        let last = read_all(&mut busy).await.unwrap();
        let text = show(&last).to_ascii_lowercase();
        assert!(text.contains("answer 2") && text.contains("connection: close"), "{text}");
        let begun = Instant::now();
        assert_eq!(read_all(&mut idle).await.unwrap(), b"");
        assert!(begun.elapsed() < Limits::default().leave, "as soon as it is to");
        drop((idle, busy));
        while !proxy.connections.oldest(1).is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(proxy.counter("stalled"), 0);
        // One that comes all the same has one answer.
        let mut late = proxy.connect().await;
        late.write_all(GET).await.unwrap();
        assert!(show(&read_all(&mut late).await.unwrap()).contains("answer 1"));
    });
}

/// A server whose response goes on for ever, an octet at a time as long as it is read.
async fn endless() -> std::net::SocketAddr {
    let (address, _) = server(|mut stream, _| async move {
        read_until(&mut stream, b"\r\n\r\n").await;
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        if stream.write_all(head).await.is_err() {
            return;
        }
        while stream.write_all(b"1\r\na\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    address
}

#[test]
fn a_response_under_way_ends_when_its_request_passes_no_longer() {
    for gate in [false, true] {
        run(async {
            let proxy = Proxy::start(public(), endless().await).await;
            let mut client = proxy.connect().await;
            client.write_all(GET).await.unwrap();
            read_until(&mut client, b"1\r\na\r\n1\r\na\r\n").await;
            // What lets it pass otherwise changes nothing.
            proxy.policy.set(Ok(rules([http("GET", "/public")])));
            for _ in 0..20 {
                read_until(&mut client, b"1\r\na\r\n").await;
            }
            match gate {
                false => proxy.policy.set(Ok(rules([http("GET", "/other")]))),
                true => proxy.policy.set(Err(sluice_proxy::policy::Refused::NoFlow)),
            }
            let error = read_all(&mut client).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            let record = proxy.wait_records(1).await.remove(0);
            assert!(!record.passes && record.reason.contains("policy changed"), "{record:?}");
        });
    }
}

/// A server of HTTP/2 whose responses go on for ever.
async fn endless_streams() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            spawn_local(async move {
                let Ok(mut server) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((_request, mut respond))) = server.accept().await {
                    spawn_local(async move {
                        let mut send = respond.send_response(Response::new(()), false).unwrap();
                        while send.send_data(Bytes::from_static(b"a"), false).is_ok() {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                    });
                }
            });
        }
    });
    address
}

#[test]
fn a_stream_under_way_ends_when_its_request_passes_no_longer_and_others_go_on() {
    run(async {
        let proxy = Proxy::start(rules([http("GET", "/a"), http("GET", "/b")]), endless_streams().await).await;
        let stream = TcpStream::connect(proxy.address).await.unwrap();
        let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
        spawn_local(async move {
            connection.await.ok();
        });
        let mut bodies = Vec::new();
        for path in ["/a", "/b"] {
            let request = Request::get(format!("http://a{path}")).body(()).unwrap();
            let (response, _) = sender.send_request(request, true).unwrap();
            bodies.push(response.await.unwrap().into_body());
        }
        let [a, b] = &mut bodies[..] else { panic!() };
        a.data().await.unwrap().unwrap();
        proxy.policy.set(Ok(rules([http("GET", "/b")])));
        let error = loop {
            match a.data().await.unwrap() {
                Ok(data) => a.flow_control().release_capacity(data.len()).unwrap(),
                Err(error) => break error,
            }
        };
        assert_eq!(error.reason(), Some(Reason::CANCEL));
        for _ in 0..20 {
            let data = b.data().await.unwrap().unwrap();
            b.flow_control().release_capacity(data.len()).unwrap();
        }
        let record = proxy.wait_records(1).await.remove(0);
        assert!(!record.passes && record.reason.contains("policy changed"), "{record:?}");
    });
}
