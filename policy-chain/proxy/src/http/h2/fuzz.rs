//! Hostile frames of HTTP/2, from clients: a whole connection, from what the client writes to what the server gets.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use sluice_fuzz::{Grammar, Shape, Target};
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::l7::http::{HttpRule, HttpRuleSpec};
use sluice_policy_core::model::cilium::Application;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};

use super::super::PREFACE;
use crate::connect::{Connect, Upstream};
use crate::connections::Connections;
use crate::engine::{Counters, Engine, Limits};
use crate::flow::{Direction, Flow, Protocol};
use crate::policy::{Lists, Looks, Outcome, Policy, Refused, RuleList, Rules};
use crate::record::{Record, Recorder};

/// A connection that nobody ends is quiet when its tasks had so many turns without an octet.
const QUIET: usize = 64;

#[derive(Debug)]
struct Fixed(Arc<Rules>);

impl Policy for Fixed {
    fn rules(&self, _flow: &Flow, _protocol: Protocol, _backend: SocketAddr) -> Result<Arc<Rules>, Refused> {
        Ok(Arc::clone(&self.0))
    }

    fn version(&self) -> u64 {
        1
    }

    async fn changed(&self, _version: u64) {
        std::future::pending().await
    }
}

/// How many records say that something passed.
#[derive(Debug, Default)]
struct Passed(Mutex<usize>);

impl Recorder for Passed {
    fn record(&self, record: Record) {
        *self.0.lock().unwrap() += usize::from(record.passes);
    }
}

/// Gives the other ends of connections to whoever serves them.
#[derive(Debug)]
struct Paired(mpsc::Sender<TcpStream>);

impl Connect for Paired {
    async fn connect(&self, flow: &Flow) -> io::Result<Upstream> {
        let (ours, theirs) = pair()?;
        self.0.try_send(theirs).map_err(io::Error::other)?;
        Ok(Upstream { stream: ours, backend: flow.server })
    }
}

/// Two ends of a connection, without a network: no port is used up, however many there are.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let (one, other) = UnixStream::pair()?;
    let stream = |end: UnixStream| {
        end.set_nonblocking(true)?;
        TcpStream::from_std(OwnedFd::from(end).into())
    };
    Ok((stream(one)?, stream(other)?))
}

/// What may be asked for, by `GET` and `POST`.
fn may(method: &str, path: &str) -> bool {
    matches!(method, "GET" | "POST") && path.starts_with("/public")
}

fn rules() -> Arc<Rules> {
    let spec =
        HttpRuleSpec { method: Some("GET|POST".into()), path: Some("/public.*".into()), ..HttpRuleSpec::default() };
    let application = Application::Http([Arc::new(HttpRule::new(spec).unwrap())].into());
    Arc::new(Rules {
        pod: PodKey { namespace: "shop".into(), name: "web".into() },
        lists: Lists::from([Arc::new(RuleList::new("CiliumNetworkPolicy shop/db, egress[0]".into(), application))]),
        otherwise: Outcome { passes: false, reason: "no rule has it".into() },
        audit: None,
        looks: Looks::Http,
    })
}

/// Methods and paths that the server got.
type Seen = Rc<RefCell<Vec<(String, String)>>>;

/// A server that answers every request with its body, and trailers.
async fn server(stream: TcpStream, seen: Seen) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let path = request.uri().path_and_query().map_or("", |path| path.as_str()).to_owned();
        seen.borrow_mut().push((request.method().to_string(), path));
        spawn_local(async move {
            let mut body = request.into_body();
            let Ok(mut send) = respond.send_response(Response::new(()), false) else { return };
            while let Some(Ok(data)) = body.data().await {
                let given_back = body.flow_control().release_capacity(data.len());
                if given_back.and_then(|()| send.send_data(data, false)).is_err() {
                    return;
                }
            }
            let trailers = HeaderMap::from_iter([(http::header::TRAILER, HeaderValue::from_static("x"))]);
            // A client that has reset the stream wants none.
            send.send_trailers(trailers).or_else(|_reset| send.send_data(Bytes::new(), true)).ok();
        });
    }
}

/// The octets with every frame's length one that is there: without that, nearly all that is changed ends at its first frame.
fn framed(octets: &[u8]) -> Vec<u8> {
    const HEAD: usize = 9;
    let mut out = Vec::with_capacity(octets.len());
    let mut rest = octets;
    while let Some((head, after)) = rest.split_at_checked(HEAD) {
        let [high, middle, low, kind @ ..] = head else { break };
        let said = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
        let length = if said <= after.len() && said <= 16_384 { said } else { after.len().min(said % 97) };
        let (payload, next) = after.split_at(length);
        out.extend_from_slice(&u32::try_from(length).unwrap_or(0).to_be_bytes()[1..]);
        out.extend_from_slice(kind);
        out.extend_from_slice(payload);
        rest = next;
    }
    out
}

/// What the proxy said: for each frame its type, and of a GOAWAY and RST_STREAM why.
fn said(octets: &[u8]) -> Vec<(u8, u8)> {
    let mut frames = Vec::new();
    let mut rest = octets;
    while let [high, middle, low, kind, _, _, _, _, _, after @ ..] = rest {
        let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
        let Some((payload, next)) = after.split_at_checked(length) else { break };
        let why = match (kind, payload) {
            (3, [.., code]) | (7, [_, _, _, _, _, _, _, code, ..]) => *code,
            _ => 0,
        };
        frames.push((*kind, why));
        rest = next;
    }
    frames.dedup();
    frames
}

/// What came of a connection.
#[derive(Debug)]
struct Came {
    /// Requests that the server got.
    got: usize,
    /// The engine's counts that are not 0.
    counts: Vec<(&'static str, u64)>,
    /// See [`said`].
    said: Vec<(u8, u8)>,
}

/// A connection of a client that writes this and says no more.
async fn connection(octets: &[u8]) -> Came {
    let (connect, mut accepted) = mpsc::channel(16);
    let (passed, counters) = (Arc::new(Passed::default()), Arc::new(Counters::default()));
    let policy = Arc::new(Fixed(rules()));
    let connections = Arc::new(Connections::default());
    let engine = Engine::new(
        Arc::clone(&policy),
        Arc::clone(&passed),
        Arc::new(Paired(connect)),
        Limits::default(),
        Arc::clone(&counters),
        connections,
    );
    let seen = Seen::default();
    let serving = spawn_local({
        let seen = Rc::clone(&seen);
        async move {
            while let Some(stream) = accepted.recv().await {
                spawn_local(server(stream, Rc::clone(&seen)));
            }
        }
    });
    let (mut client, ours) = pair().unwrap();
    let address = |last| SocketAddr::from(([10, 0, 0, last], 80));
    let flow = Flow { direction: Direction::Egress, client: address(1), server: address(2) };
    let proxying = spawn_local(async move { engine.serve(ours, flow, Arc::clone(&policy.0), 1).await });
    let mut heard = Vec::new();
    {
        let (read, mut write) = client.split();
        let writing = async {
            // What a proxy that has ended the connection does not take is not written.
            write.write_all(octets).await.ok();
            std::future::pending::<()>().await;
        };
        let reading = async {
            let (mut part, mut quiet) = ([0; 4096], 0);
            while quiet < QUIET {
                match read.try_read(&mut part) {
                    Ok(count @ 1..) => {
                        heard.extend_from_slice(&part[..count]);
                        quiet = 0;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => quiet += 1,
                    Ok(_) | Err(_) => return,
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::select! { () = writing => {}, () = reading => {} }
    }
    // Whatever the proxy still waits for, it ends with its client.
    drop(client);
    proxying.await.expect("the proxy has panicked");
    serving.abort();
    for (method, path) in seen.borrow().iter() {
        assert!(may(method, path), "{method} {path} has reached the server");
    }
    let got = seen.borrow().len();
    // Whatever became of it.
    assert!(got <= *passed.0.lock().unwrap(), "{got} requests have reached the server, and not all are on record");
    let counts = counters.each().filter(|(.., count)| *count > 0).map(|(name, _, count)| (name, count)).collect();
    Came { got, counts, said: said(&heard) }
}

fn run(frames: &[u8]) -> Came {
    // Whatever a turn of a task has sent, others see in their next.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().event_interval(1).build().unwrap();
    LocalSet::new().block_on(&runtime, connection(&[PREFACE, frames].concat()))
}

/// What is changed at random begins with what works: else nothing of the way to the server would be tried.
#[test]
fn the_corpus_is_understood() {
    for (name, got, counted, times) in [
        ("get", 1, "requests_passed", 1),
        ("post", 1, "requests_passed", 1),
        ("trailers", 1, "requests_passed", 1),
        ("continuation", 1, "requests_passed", 1),
        ("padded-priority", 1, "requests_passed", 1),
        ("streams", 2, "requests_passed", 2),
        ("settings", 1, "requests_passed", 1),
        ("table", 3, "requests_passed", 3),
        ("dots", 1, "requests_passed", 1),
        ("refused", 1, "requests_refused", 1),
        ("grpc", 0, "requests_refused", 1),
        ("huffman", 0, "requests_refused", 1),
        ("connect", 0, "requests_refused", 1),
        ("two-hosts", 0, "requests_bad", 1),
        ("moved", 0, "requests_moved", 1),
        ("push", 0, "requests_passed", 0),
        ("early-data", 0, "requests_passed", 0),
    ] {
        let path = format!("{}/corpus/http2/{name}", env!("CARGO_MANIFEST_DIR"));
        let came = run(&std::fs::read(path).unwrap());
        let found = came.counts.iter().find(|(name, _)| *name == counted).map_or(0, |(_, count)| *count);
        assert_eq!((came.got, found), (got, times), "{name}: {came:?}");
    }
}

#[test]
fn fuzz_http2() {
    const WORDS: &[&str] = &[
        // Heads of frames: SETTINGS, its acknowledgement, HEADERS that end all, DATA, RST_STREAM, PING, GOAWAY, WINDOW_UPDATE,
        // CONTINUATION.
        "\0\0\0\u{4}\0\0\0\0\0",
        "\0\0\0\u{4}\u{1}\0\0\0\0",
        "\0\0\u{10}\u{1}\u{5}\0\0\0\u{1}",
        "\0\0\u{1}\0\u{1}\0\0\0\u{1}",
        "\0\0\u{4}\u{3}\0\0\0\0\u{1}\0\0\0\u{8}",
        "\0\0\u{8}\u{6}\0\0\0\0\0",
        "\0\0\u{8}\u{7}\0\0\0\0\0\0\0\0\0\0\0\0\0",
        "\0\0\u{4}\u{8}\0\0\0\0\u{1}\u{7f}",
        "\0\0\u{1}\u{9}\u{4}\0\0\0\u{1}",
        // Fields: names by their place in HPACK's table, values as they are.
        "\u{4}\u{7}/public",
        "\u{4}\u{b}/public/../x",
        "\u{4}\u{9}/a%2fb?c=",
        "\u{1}\u{1}a",
        "\u{0}\u{4}host\u{1}b",
        "\u{0}\u{2}te\u{8}trailers",
        "\u{0}\u{e}content-length\u{1}3",
        "\u{0}\u{c}content-type\u{10}application/grpc",
        "\u{0}\u{a}connection\u{5}close",
        "\u{0}\u{7}:method\u{7}CONNECT",
        "\u{0}\u{9}:protocol\u{9}websocket",
    ];
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/http2");
    Target { name: "http2", corpus: corpus.as_ref(), grammar: Grammar::Octets, words: WORDS }.run(|octets| {
        let frames = if octets.len() % 2 == 0 { octets.to_vec() } else { framed(octets) };
        let Came { got, counts, said } = run(&frames);
        let counts: Vec<(&str, u64)> = counts.into_iter().map(|(name, count)| (name, count.min(2))).collect();
        Shape::said(&format!("{counts:?} {} {said:?}", got.min(3)).replace('"', ""))
    });
}
