//! An engine between a client and a server on the loopback interface, with rules that a test sets.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::l7::http::{HttpRule, HttpRuleSpec};
use sluice_policy_core::l7::sni::ServerNamePattern;
use sluice_policy_core::model::cilium::Application;
use sluice_proxy::connect::{Connect, Upstream};
use sluice_proxy::connections::Connections;
use sluice_proxy::engine::{Counters, Engine, Limits};
use sluice_proxy::flow::{Direction, Flow, Protocol};
use sluice_proxy::policy::{Looks, Outcome, Policy, Refused, RuleList, Rules};
use sluice_proxy::record::{Kind, Record, Recorder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};

/// How long anything in a test may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test on one thread, within [`PATIENCE`].
pub(crate) fn run<F: Future>(test: F) -> F::Output {
    within(PATIENCE, test)
}

/// Runs a test on one thread, within a time of its own.
pub(crate) fn within<F: Future>(time: Duration, test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tasks = LocalSet::new();
    let output = runtime.block_on(tasks.run_until(async { tokio::time::timeout(time, test).await }));
    output.expect("the test took too long")
}

/// Rules that a test sets.
pub(crate) struct Fixed {
    state: watch::Sender<(u64, Given)>,
}

/// Rules for every flow, and for flows to some backends.
#[derive(Clone)]
pub(crate) struct Given {
    pub(crate) rules: Result<Arc<Rules>, Refused>,
    pub(crate) backends: HashMap<SocketAddr, Result<Arc<Rules>, Refused>>,
}

impl Fixed {
    pub(crate) fn set(&self, rules: Result<Rules, Refused>) {
        self.state.send_modify(|(version, given)| {
            *version += 1;
            given.rules = rules.map(Arc::new);
        });
    }
}

impl Policy for Fixed {
    fn rules(&self, _flow: &Flow, protocol: Protocol, backend: SocketAddr) -> Result<Arc<Rules>, Refused> {
        assert_eq!(protocol, Protocol::TCP);
        let state = self.state.borrow();
        state.1.backends.get(&backend).unwrap_or(&state.1.rules).clone()
    }

    fn version(&self) -> u64 {
        self.state.borrow().0
    }

    async fn changed(&self, version: u64) {
        let mut state = self.state.subscribe();
        state.wait_for(|(now, _)| *now != version).await.expect("the sender lives in self");
    }
}

/// Keeps all records.
#[derive(Default)]
pub(crate) struct Kept(Mutex<Vec<Record>>);

impl Recorder for Kept {
    fn record(&self, record: Record) {
        self.0.lock().unwrap().push(record);
    }
}

/// Connects to one address, whatever the flow says, and says that packets go to `backend`.
pub(crate) struct Plain {
    to: SocketAddr,
    backend: SocketAddr,
}

impl Connect for Plain {
    async fn connect(&self, _flow: &Flow) -> io::Result<Upstream> {
        let stream = TcpStream::connect(self.to).await?;
        stream.set_nodelay(true)?;
        Ok(Upstream { stream, backend: self.backend })
    }
}

/// An engine that listens.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) policy: Arc<Fixed>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) connections: Arc<Connections>,
    records: Arc<Kept>,
}

impl Proxy {
    /// Starts one before a server.
    pub(crate) async fn start(rules: Rules, server: SocketAddr) -> Self {
        Self::with(rules, server, Limits::default()).await
    }

    /// Starts one with limits.
    pub(crate) async fn with(rules: Rules, server: SocketAddr, limits: Limits) -> Self {
        Self::to_backend(rules, HashMap::new(), server, server, limits).await
    }

    /// Starts one whose connections to `dialled` go to `server`.
    pub(crate) async fn to_backend(
        rules: Rules,
        backends: HashMap<SocketAddr, Result<Arc<Rules>, Refused>>,
        dialled: SocketAddr,
        server: SocketAddr,
        limits: Limits,
    ) -> Self {
        let given = Given { rules: Ok(Arc::new(rules)), backends };
        let policy = Arc::new(Fixed { state: watch::Sender::new((1, given)) });
        let (records, counters) = (Arc::new(Kept::default()), Arc::new(Counters::default()));
        let connect = Arc::new(Plain { to: server, backend: server });
        let connections = Arc::new(Connections::default());
        let engine = Engine::new(
            Arc::clone(&policy),
            Arc::clone(&records),
            connect,
            limits,
            Arc::clone(&counters),
            Arc::clone(&connections),
        );
        let engine = Rc::new(engine);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let rules_of = Arc::clone(&policy);
        spawn_local(async move {
            loop {
                let (stream, client) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let flow = Flow { direction: Direction::Egress, client, server: dialled };
                let engine = Rc::clone(&engine);
                let policy = Arc::clone(&rules_of);
                spawn_local(async move {
                    let version = policy.version();
                    let rules = policy.rules(&flow, Protocol::TCP, dialled).unwrap();
                    engine.serve(stream, flow, rules, version).await;
                });
            }
        });
        Self { address, policy, counters, connections, records }
    }

    /// All records so far.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.records.0.lock().unwrap().clone()
    }

    /// Waits until there are so many records.
    pub(crate) async fn wait_records(&self, count: usize) -> Vec<Record> {
        loop {
            let records = self.records();
            if records.len() >= count {
                return records;
            }
            tokio::task::yield_now().await;
        }
    }

    /// A counter, by its name.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.counters.each().find(|(one, ..)| *one == name).unwrap_or_else(|| panic!("no counter {name}")).2
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends octets, and gives all that comes back until the end of the connection; a reset is told by `Err`.
    pub(crate) async fn talk(&self, octets: &[u8]) -> Result<Vec<u8>, io::Error> {
        let mut stream = self.connect().await;
        stream.write_all(octets).await?;
        read_all(&mut stream).await
    }
}

/// Reads to the end.
pub(crate) async fn read_all(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

/// Reads until what has been read ends so.
pub(crate) async fn read_until(stream: &mut (impl AsyncReadExt + Unpin), end: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    while !answer.ends_with(end) {
        let mut part = [0; 4096];
        let count = stream.read(&mut part).await.unwrap_or_else(|error| panic!("{error} after {}", show(&answer)));
        assert_ne!(count, 0, "ended after {}", show(&answer));
        answer.extend_from_slice(&part[..count]);
    }
    answer
}

pub(crate) fn show(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).escape_debug().to_string()
}

/// A rule with these conditions: method and path.
pub(crate) fn http(method: &str, path: &str) -> Application {
    rule(HttpRuleSpec { method: Some(method.into()), path: Some(path.into()), ..HttpRuleSpec::default() })
}

pub(crate) fn rule(spec: HttpRuleSpec) -> Application {
    Application::Http([Arc::new(HttpRule::new(spec).unwrap())].into())
}

pub(crate) fn names(patterns: &[&str]) -> Application {
    Application::ServerNames(patterns.iter().map(|pattern| ServerNamePattern::new(pattern).unwrap()).collect())
}

/// Rules of which one has to let a request pass.
pub(crate) fn rules(applications: impl IntoIterator<Item = Application>) -> Rules {
    let lists: Vec<Arc<RuleList>> = applications
        .into_iter()
        .enumerate()
        .map(|(index, application)| {
            Arc::new(RuleList::new(format!("CiliumNetworkPolicy shop/db, egress[{index}]").into(), application))
        })
        .collect();
    let looks = lists.iter().fold(Looks::Nothing, |looks, list| looks.and(Looks::of(&list.application)));
    Rules {
        pod: PodKey { namespace: "shop".into(), name: "web".into() },
        lists: lists.into(),
        otherwise: Outcome { passes: false, reason: "no rule has it".into() },
        audit: None,
        looks,
    }
}

/// The same rules, but all may pass.
pub(crate) fn seen(rules: Rules) -> Rules {
    Rules { otherwise: Outcome { passes: true, reason: "no policy decides".into() }, ..rules }
}

pub(crate) fn public() -> Rules {
    rules([http("GET|HEAD", "/public.*"), http("POST|PUT", "/upload.*")])
}

/// What a server has been sent, connection by connection.
#[derive(Clone, Default)]
pub(crate) struct Sent(Rc<RefCell<Vec<Vec<u8>>>>);

impl Sent {
    /// All connections' octets.
    pub(crate) fn all(&self) -> Vec<Vec<u8>> {
        self.0.borrow().clone()
    }

    pub(crate) fn text(&self) -> String {
        self.all().iter().map(|octets| String::from_utf8_lossy(octets).into_owned()).collect()
    }

    pub(crate) fn connections(&self) -> usize {
        self.0.borrow().len()
    }
}

/// Keeps octets that a server has been sent.
pub(crate) type Note = Rc<dyn Fn(&[u8])>;

/// Starts a server that calls `serve` for each connection.
pub(crate) async fn server<F: Future<Output = ()> + 'static>(
    serve: impl Fn(TcpStream, Note) -> F + 'static,
) -> (SocketAddr, Sent) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let sent = Sent::default();
    let kept = sent.clone();
    spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let index = kept.0.borrow().len();
            kept.0.borrow_mut().push(Vec::new());
            let log = kept.clone();
            let note: Note = Rc::new(move |octets| log.0.borrow_mut()[index].extend_from_slice(octets));
            spawn_local(serve(stream, note));
        }
    });
    (address, sent)
}

/// A server that reads what comes, strictly as RFC 9112 has it, and answers each request with `200` and its number.
pub(crate) async fn counting() -> (SocketAddr, Sent) {
    server(|mut stream, note| async move {
        let mut held = Vec::new();
        let mut number = 0;
        loop {
            let mut part = [0; 4096];
            let Ok(count @ 1..) = stream.read(&mut part).await else { return };
            note(&part[..count]);
            held.extend_from_slice(&part[..count]);
            while let Some(length) = request_length(&held) {
                let head_only = held.starts_with(b"HEAD");
                held.drain(..length);
                number += 1;
                let body = if head_only { String::new() } else { format!("answer {number}\n") };
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len().max(9));
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// Length of the request at the start, its body with it.
fn request_length(octets: &[u8]) -> Option<usize> {
    let head = octets.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&octets[..head]).to_ascii_lowercase();
    if text.contains("transfer-encoding: chunked") {
        let body = &octets[head..];
        let last =
            if body.starts_with(b"0\r\n") { 0 } else { body.windows(5).position(|five| five == b"\r\n0\r\n")? + 2 };
        let end = body[last..].windows(4).position(|four| four == b"\r\n\r\n")?;
        return Some(head + last + end + 4);
    }
    let length = text
        .split("content-length: ")
        .nth(1)
        .map_or(0, |rest| rest.split("\r\n").next().unwrap().parse::<usize>().unwrap());
    (octets.len() >= head + length).then_some(head + length)
}

/// Status, path and verdict of the HTTP requests recorded.
pub(crate) fn requests(records: &[Record]) -> Vec<(u16, String, bool)> {
    records
        .iter()
        .filter_map(|record| match &record.kind {
            Kind::Http { asked, status, .. } => {
                Some((status.unwrap_or_default(), asked.path().to_owned(), record.passes))
            }
            _ => None,
        })
        .collect()
}

/// A server that answers every connection's first request with these octets, and ends it then if asked.
pub(crate) async fn canned(answer: &'static [u8], ends: bool) -> (SocketAddr, Sent) {
    server(move |mut stream, note| async move {
        let mut held = Vec::new();
        loop {
            let mut part = [0; 4096];
            let Ok(count @ 1..) = stream.read(&mut part).await else { return };
            note(&part[..count]);
            held.extend_from_slice(&part[..count]);
            if let Some(length) = request_length(&held) {
                held.drain(..length);
                if stream.write_all(answer).await.is_err() || ends {
                    return;
                }
            }
        }
    })
    .await
}

/// Waits until something holds.
pub(crate) async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::task::yield_now().await;
    }
}

/// Pseudo-random numbers from a seed (xorshift).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) const fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}

/// How many cases a test of random ones tries; `SLUICE_TEST_ALL` tries twenty times as many.
pub(crate) fn cases(few: u64) -> u64 {
    if std::env::var_os("SLUICE_TEST_ALL").is_some() { 20 * few } else { few }
}

/// Octets of this process in memory that are no part of a file.
pub(crate) fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: Vec<usize> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
    (pages[1] - pages[2]) * 4096
}

/// Whether this process runs this test alone, so that it can measure itself. If not, runs one that does, to its good end.
pub(crate) fn alone(test: &str) -> bool {
    if std::env::var_os("SLUICE_TEST_ALONE").is_some() {
        return true;
    }
    let this = std::env::current_exe().unwrap();
    let run =
        std::process::Command::new(this).args(["--exact", test, "--nocapture"]).env("SLUICE_TEST_ALONE", "1").output();
    let output = run.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "there is no test {test}: {text}");
    println!("{text}");
    false
}
