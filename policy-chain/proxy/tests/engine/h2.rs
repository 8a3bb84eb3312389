//! HTTP/2 and gRPC: streams, bodies, trailers, refusals, and abuse.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Request, Response};
use sluice_proxy::policy::Rules;
use sluice_proxy::record::Kind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use crate::bed::{Proxy, alone, public, requests, resident, rules, run, seen, show, within};

/// A server of HTTP/2 that answers each request with its body, a field that says what it saw, and the trailers it got.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            spawn_local(async move {
                let Ok(mut server) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, mut respond))) = server.accept().await {
                    spawn_local(async move {
                        let saw = format!("{} {}", request.method(), request.uri());
                        let mut response = Response::builder().header("x-saw", saw);
                        for name in request.headers().keys() {
                            response = response.header("x-field", name.as_str());
                        }
                        let mut body = request.into_body();
                        let mut send = respond.send_response(response.body(()).unwrap(), false).unwrap();
                        while let Some(data) = body.data().await {
                            let Ok(data) = data else { return };
                            body.flow_control().release_capacity(data.len()).unwrap();
                            if push(&mut send, data).await.is_err() {
                                return;
                            }
                        }
                        let mut trailers = body.trailers().await.unwrap_or_default().unwrap_or_default();
                        trailers.insert("x-end", "yes".parse().unwrap());
                        send.send_trailers(trailers).ok();
                    });
                }
            });
        }
    });
    address
}

/// Sends all of `data`, as the window lets it.
async fn push(send: &mut h2::SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let room = std::future::poll_fn(|cx| send.poll_capacity(cx)).await.ok_or(Reason::CANCEL)??;
        let part = data.split_to(room.min(data.len()));
        send.send_data(part, false)?;
    }
    Ok(())
}

async fn client(to: SocketAddr) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(to).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    spawn_local(async move {
        connection.await.ok();
    });
    sender
}

/// Sends a request with a body and trailers; gives the response, its body and its trailers.
async fn ask(
    sender: &h2::client::SendRequest<Bytes>,
    request: Request<()>,
    body: Bytes,
    trailers: Option<HeaderMap>,
) -> Result<(Response<()>, Vec<u8>, Option<HeaderMap>), h2::Error> {
    let whole = body.is_empty() && trailers.is_none();
    let mut sender = sender.clone().ready().await?;
    let (response, mut send) = sender.send_request(request, whole)?;
    let sending = async {
        if whole {
            return;
        }
        push(&mut send, body).await.ok();
        match trailers {
            Some(trailers) => send.send_trailers(trailers).ok(),
            None => send.send_data(Bytes::new(), true).ok(),
        };
    };
    let receiving = async {
        let (parts, mut body) = response.await?.into_parts();
        let mut content = Vec::new();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            content.extend_from_slice(&data);
        }
        let trailers = body.trailers().await?;
        Ok((Response::from_parts(parts, ()), content, trailers))
    };
    tokio::join!(receiving, sending).0
}

fn request(method: &str, uri: &str) -> Request<()> {
    Request::builder().method(method).uri(uri).body(()).unwrap()
}

async fn proxy(rules: Rules) -> Proxy {
    Proxy::start(rules, echo().await).await
}

#[test]
fn streams_pass_or_are_refused_one_by_one() {
    run(async {
        let proxy = proxy(public()).await;
        let sender = client(proxy.address).await;
        let (refused, body, _) = ask(&sender, request("GET", "http://a/secret"), Bytes::new(), None).await.unwrap();
        assert_eq!((refused.status().as_u16(), &*body), (403, &b"Access denied\r\n"[..]));
        let mut asked = request("POST", "http://Shop.Example:080/x/../upload?q");
        asked.headers_mut().insert("x-one", "1".parse().unwrap());
        let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "7".parse().unwrap())]);
        let (passed, body, trailers) = ask(&sender, asked, Bytes::from_static(b"hello"), Some(trailers)).await.unwrap();
        assert_eq!(passed.headers()["x-saw"], "POST http://shop.example:80/upload?q");
        assert_eq!(&*body, b"hello");
        let trailers = trailers.unwrap();
        assert_eq!((&trailers["x-sum"], &trailers["x-end"]), (&"7".parse().unwrap(), &"yes".parse().unwrap()));
        let (refused, ..) = ask(&sender, request("HEAD", "http://a/secret"), Bytes::new(), None).await.unwrap();
        assert_eq!(refused.status(), 403);
        let (bad, ..) = ask(&sender, request("GET", "http://a/public/%00"), Bytes::new(), None).await.unwrap();
        assert_eq!(bad.status(), 400);
        let (moved, ..) = ask(&sender, request("GET", "http://a/public%2f..%2Fx?y"), Bytes::new(), None).await.unwrap();
        assert_eq!((moved.status().as_u16(), &moved.headers()["location"]), (307, &"/x?y".parse().unwrap()));
        let records = proxy.wait_records(5).await;
        assert_eq!(
            requests(&records)[..3],
            [(403, "/secret".into(), false), (200, "/upload?q".into(), true), (403, "/secret".into(), false)]
        );
        assert_eq!(records[1].bytes, (5, 5));
        let counters = ["requests_refused", "requests_bad", "requests_moved"];
        assert_eq!(counters.map(|name| proxy.counter(name)), [2, 1, 1]);
    });
}

#[test]
fn grpc_is_refused_in_its_own_words() {
    run(async {
        let proxy = proxy(public()).await;
        let sender = client(proxy.address).await;
        let mut asked = request("POST", "http://a/shop.Cart/Add");
        asked.headers_mut().insert("content-type", "application/grpc+proto".parse().unwrap());
        asked.headers_mut().insert("te", "trailers".parse().unwrap());
        let (response, body, trailers) = ask(&sender, asked, Bytes::from_static(b"\0\0\0\0\0"), None).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        assert_eq!(response.headers()["grpc-status"], "7");
        assert_eq!(response.headers()["grpc-message"], "Access denied");
        assert!(body.is_empty() && trailers.is_none(), "a trailers-only response");
    });
}

#[test]
fn each_stream_is_judged_by_the_rules_of_its_time() {
    run(async {
        let proxy = proxy(public()).await;
        let sender = client(proxy.address).await;
        let status = async |sender: &h2::client::SendRequest<Bytes>| {
            ask(sender, request("GET", "http://a/public"), Bytes::new(), None)
                .await
                .map(|(response, ..)| response.status().as_u16())
        };
        assert_eq!(status(&sender).await.unwrap(), 200);
        proxy.policy.set(Ok(rules([])));
        assert_eq!(status(&sender).await.unwrap(), 403);
        proxy.policy.set(Ok(seen(rules([]))));
        assert_eq!(status(&sender).await.unwrap(), 200);
        proxy.policy.set(Err(sluice_proxy::policy::Refused::NoFlow));
        assert!(status(&sender).await.is_err());
    });
}

#[test]
fn large_bodies_go_both_ways_within_windows() {
    within(std::time::Duration::from_secs(60), async {
        let proxy = proxy(public()).await;
        let sender = client(proxy.address).await;
        let body = Bytes::from((0..3_000_000_u32).map(|at| (at / 3 % 251) as u8).collect::<Vec<u8>>());
        let one = || async {
            let (_, echoed, _) = ask(&sender, request("PUT", "http://a/upload"), body.clone(), None).await.unwrap();
            assert!(echoed == body, "{} octets came back", echoed.len());
        };
        tokio::join!(one(), one(), one());
    });
}

#[test]
fn a_reset_goes_through() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (told, mut heard) = tokio::sync::mpsc::channel(1);
        let proxy = Proxy::start(public(), listener.local_addr().unwrap()).await;
        spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut server = h2::server::handshake(stream).await.unwrap();
            let mut first = true;
            while let Some(Ok((_, mut respond))) = server.accept().await {
                if std::mem::take(&mut first) {
                    respond.send_reset(Reason::INADEQUATE_SECURITY);
                    continue;
                }
                let told = told.clone();
                told.send(Reason::NO_ERROR).await.unwrap();
                spawn_local(async move {
                    told.send(std::future::poll_fn(|cx| respond.poll_reset(cx)).await.unwrap()).await.unwrap();
                });
            }
        });
        let sender = client(proxy.address).await;
        let error = ask(&sender, request("GET", "http://a/public"), Bytes::new(), None).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::INADEQUATE_SECURITY));
        let (response, mut send) =
            sender.clone().ready().await.unwrap().send_request(request("PUT", "http://a/upload"), false).unwrap();
        assert_eq!(heard.recv().await, Some(Reason::NO_ERROR), "the server has it");
        send.send_reset(Reason::CANCEL);
        assert_eq!(heard.recv().await, Some(Reason::CANCEL));
        drop(response);
    });
}

#[test]
fn a_server_that_cannot_be_reached_is_unavailable() {
    run(async {
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let proxy = Proxy::start(public(), nobody).await;
        let sender = client(proxy.address).await;
        let (response, ..) = ask(&sender, request("GET", "http://a/public"), Bytes::new(), None).await.unwrap();
        assert_eq!(response.status(), 502);
        let mut asked = request("POST", "http://a/upload");
        asked.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let (response, ..) = ask(&sender, asked, Bytes::new(), None).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "14");
    });
}

/// A connection spoken by hand.
struct Raw(TcpStream);

impl Raw {
    async fn new(to: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        Self(stream)
    }

    /// Sends a frame; false once the proxy no longer reads.
    async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.0.write_all(&[&head, payload].concat()).await.is_ok()
    }

    /// The error code of the GOAWAY that ends the connection; none if it just ends.
    async fn goodbye(mut self) -> Option<u32> {
        let mut octets = Vec::new();
        // The connection may be reset after the frame.
        self.0.read_to_end(&mut octets).await.ok();
        let mut rest = &octets[..];
        let mut code = None;
        while rest.len() >= 9 {
            let length = usize::from(rest[0]) << 16 | usize::from(rest[1]) << 8 | usize::from(rest[2]);
            let Some(payload) = rest.get(9..9 + length) else { break };
            if rest[3] == 7 {
                code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
            rest = &rest[9 + length..];
        }
        code
    }
}

/// No more is held of an abuse than a connection may have.
fn bounded(before: usize) {
    let grown = resident().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} octets");
}

/// `GET http://a/public`, with all but the path and authority in the static table (RFC 7541, A).
const GET: &[u8] = b"\x82\x86\x04\x07/public\x01\x01a";
const CALM: Option<u32> = Some(11);

#[test]
fn rapid_resets_end_the_connection() {
    if !alone("h2::rapid_resets_end_the_connection") {
        return;
    }
    run(async {
        let proxy = proxy(public()).await;
        let before = resident();
        let mut raw = Raw::new(proxy.address).await;
        let mut stream = 1;
        while stream < 200_001 && raw.frame(1, 5, stream, GET).await && raw.frame(3, 0, stream, &[0, 0, 0, 8]).await {
            stream += 2;
        }
        assert!(stream < 200_001, "the proxy took 100,000 resets");
        let code = raw.goodbye().await;
        assert!(code.is_none() || code == CALM, "{code:?}");
        bounded(before);
        assert_eq!(proxy.counter("http2_abuse"), 1);
        assert!(proxy.counter("requests_passed") < 1000);
    });
}

#[test]
fn endless_continuations_end_the_connection() {
    if !alone("h2::endless_continuations_end_the_connection") {
        return;
    }
    run(async {
        let proxy = proxy(public()).await;
        let before = resident();
        let mut raw = Raw::new(proxy.address).await;
        raw.frame(1, 0, 1, GET).await;
        // One literal field after the other, never indexed.
        let fields = b"\x10\x01x\x7f\x81\x01".iter().copied().chain([b'y'; 256]).collect::<Vec<u8>>();
        let mut sent = 0;
        while sent < 50_000 && raw.frame(9, 0, 1, &fields).await {
            sent += 1;
        }
        assert!(sent < 50_000, "the proxy took 13 MB of one head");
        bounded(before);
        raw.goodbye().await;
    });
}

#[test]
fn a_head_that_unpacks_to_much_is_refused() {
    if !alone("h2::a_head_that_unpacks_to_much_is_refused") {
        return;
    }
    run(async {
        let proxy = proxy(public()).await;
        let before = resident();
        let mut raw = Raw::new(proxy.address).await;
        // 3,000 octets into the table, then referred to again and again: 60 MB.
        let mut head = b"\x82\x86\x04\x07/public\x01\x01a\x40\x01x\x7f\xb9\x16".to_vec();
        head.extend_from_slice(&[b'y'; 3000]);
        head.resize(head.len() + 12_000, 0xbe);
        raw.frame(1, 5, 1, &head).await;
        let mut answer = [0; 9];
        let mut frames = Vec::new();
        while raw.0.read_exact(&mut answer).await.is_ok() {
            let length = usize::from(answer[0]) << 16 | usize::from(answer[1]) << 8 | usize::from(answer[2]);
            let mut payload = vec![0; length];
            raw.0.read_exact(&mut payload).await.unwrap();
            frames.push(answer[3]);
            // The answer of h2 itself: 431 and the stream's reset, or the end of it all.
            if matches!(answer[3], 1 | 3 | 7) {
                break;
            }
        }
        assert!(frames.iter().any(|kind| matches!(kind, 1 | 3 | 7)), "{frames:?}");
        bounded(before);
        assert_eq!(proxy.counter("requests_passed"), 0);
    });
}

#[test]
fn malformed_frames_end_the_connection() {
    for (kind, flags, stream, payload) in [
        (8_u8, 0_u8, 0_u32, &[0x7f, 0xff, 0xff, 0xff][..]), // a window beyond 2^31
        (8, 0, 0, &[0, 0, 0, 0]),                           // a window of nothing more
        (0, 0, 1, b"data"),                                 // on an idle stream
        (4, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff]),         // a window that no one may have
        (6, 0, 0, b"short"),                                // a ping of five octets
        (1, 5, 2, GET),                                     // on a server's stream
        (9, 4, 1, GET),                                     // a continuation of nothing
        (5, 4, 1, GET),                                     // a push by a client
    ] {
        run(async {
            let proxy = proxy(public()).await;
            let mut raw = Raw::new(proxy.address).await;
            raw.frame(kind, flags, stream, payload).await;
            let code = raw.goodbye().await;
            assert!(code.is_some_and(|code| code != 0), "{kind} {flags} {stream}: {code:?}");
        });
    }
}

#[test]
fn floods_of_pings_and_settings_are_not_kept() {
    if !alone("h2::floods_of_pings_and_settings_are_not_kept") {
        return;
    }
    run(async {
        let proxy = proxy(public()).await;
        for (kind, payload) in [(6, &[0; 8][..]), (4, &[0, 3, 0, 0, 0, 9])] {
            let mut raw = Raw::new(proxy.address).await;
            // The client reads nothing: what would be answers stays out of the proxy's memory, for it stops reading too.
            let before = resident();
            let flood = async {
                for _ in 0..2_000_000 {
                    if !raw.frame(kind, 0, 0, payload).await {
                        return;
                    }
                }
            };
            tokio::time::timeout(std::time::Duration::from_secs(2), flood).await.ok();
            let grown = resident().saturating_sub(before);
            assert!(grown < 20 << 20, "{grown} octets");
        }
    });
}

#[test]
fn a_client_that_does_not_read_stops_the_server() {
    if !alone("h2::a_client_that_does_not_read_stops_the_server") {
        return;
    }
    within(std::time::Duration::from_secs(60), async {
        // A server that sends without end; a client that asks with a large window and reads nothing.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(public(), listener.local_addr().unwrap()).await;
        let pushed = Rc::new(Cell::new(0));
        let count = Rc::clone(&pushed);
        spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut server = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = server.accept().await {
                let count = Rc::clone(&count);
                spawn_local(async move {
                    let mut send = respond.send_response(Response::new(()), false).unwrap();
                    while push(&mut send, Bytes::from_static(&[7; 16_000])).await.is_ok() {
                        count.set(count.get() + 1);
                    }
                });
            }
        });
        let mut raw = Raw::new(proxy.address).await;
        let before = resident();
        raw.frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]).await;
        raw.frame(8, 0, 0, &[0x7f, 0, 0, 0]).await;
        for stream in 0..100 {
            raw.frame(1, 5, 2 * stream + 1, GET).await;
        }
        // Until nothing has moved between two looks.
        let mut before_that = usize::MAX;
        while before_that != pushed.get() || pushed.get() == 0 {
            before_that = pushed.get();
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        let grown = resident().saturating_sub(before);
        assert!(grown < 100 << 20, "{grown} octets for one connection");
    });
}

#[test]
fn extended_connect_is_not_spoken() {
    run(async {
        let proxy = proxy(public()).await;
        let mut raw = Raw::new(proxy.address).await;
        // :method CONNECT, :scheme, :path, :authority, :protocol websocket.
        let head = b"\x02\x07CONNECT\x86\x04\x07/public\x01\x01a\x00\x09:protocol\x09websocket";
        raw.frame(1, 4, 1, head).await;
        raw.frame(6, 0, 0, &[1; 8]).await;
        let mut seen = Vec::new();
        while !seen.windows(8).any(|eight| eight == [1; 8]) {
            let mut part = [0; 1000];
            let count = raw.0.read(&mut part).await.unwrap();
            assert_ne!(count, 0, "{}", show(&seen));
            seen.extend_from_slice(&part[..count]);
        }
        assert_eq!(proxy.counter("requests_passed"), 0);
    });
}

#[test]
fn an_http_1_server_is_a_bad_gateway() {
    run(async {
        let (server, _) = crate::bed::canned(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", true).await;
        let proxy = Proxy::start(public(), server).await;
        let sender = client(proxy.address).await;
        let answer = ask(&sender, request("GET", "http://a/public"), Bytes::new(), None).await;
        assert!(answer.is_err() || answer.unwrap().0.status() == 502);
        let records = proxy.wait_records(1).await;
        assert!(matches!(&records[0].kind, Kind::Http { asked, .. } if asked.path() == "/public"));
    });
}
