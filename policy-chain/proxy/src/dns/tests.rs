//! The engine over loopback, between clients and a server that follows a script.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::sync::atomic::AtomicBool;

use sluice_policy_core::l7::dns::NamePattern;
use sluice_policy_core::model::cilium::Application;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;

use super::wire::tests::{Build, POINTER, name, query};
use super::*;
use crate::connect::{Connect, Upstream};
use crate::flow::{Direction, Protocol};
use crate::names::{Link, Wanted};
use crate::policy::{Looks, Outcome, Refused, RuleList};

const PATIENCE: Duration = Duration::from_secs(10);

/// One answer for every flow, which can be changed.
#[derive(Debug)]
struct Said {
    rules: Mutex<Result<Arc<Rules>, Refused>>,
    version: watch::Sender<u64>,
}

impl Said {
    fn new(rules: Result<Rules, Refused>) -> Arc<Self> {
        Arc::new(Self { rules: Mutex::new(rules.map(Arc::new)), version: watch::Sender::new(1) })
    }

    fn say(&self, rules: Result<Rules, Refused>) {
        *self.rules.lock().unwrap() = rules.map(Arc::new);
        self.version.send_modify(|version| *version += 1);
    }
}

impl Policy for Said {
    fn rules(&self, _: &Flow, _: Protocol, _: SocketAddr) -> Result<Arc<Rules>, Refused> {
        self.rules.lock().unwrap().clone()
    }

    fn version(&self) -> u64 {
        *self.version.borrow()
    }

    async fn changed(&self, version: u64) {
        let mut versions = self.version.subscribe();
        let _moved = versions.wait_for(|now| *now != version).await;
    }
}

type Seen = (String, u16, Option<u16>, usize, bool, Option<String>);

#[derive(Debug, Default)]
struct Records(Mutex<Vec<Record>>);

impl Recorder for Records {
    fn record(&self, record: Record) {
        self.0.lock().unwrap().push(record);
    }
}

impl Records {
    /// Name, type, response code, addresses, whether it passed, rule.
    fn seen(&self) -> Vec<Seen> {
        let records = self.0.lock().unwrap();
        records
            .iter()
            .map(|record| match &record.kind {
                Kind::Dns { name, qtype, rcode, addresses } => (
                    name.to_string(),
                    *qtype,
                    *rcode,
                    addresses.len(),
                    record.passes,
                    record.rule.as_ref().map(ToString::to_string),
                ),
                other => panic!("{other:?}"),
            })
            .collect()
    }
}

/// Upstream sockets that go to the script's server whatever was dialled. The proxy answers from where it listens.
#[derive(Debug)]
struct Loopback {
    server: SocketAddr,
    listener: StdUdpSocket,
    broken: Arc<AtomicBool>,
}

impl Sockets for Loopback {
    fn upstream(&self, _: SocketAddr, _: SocketAddr) -> std::io::Result<StdUdpSocket> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(std::io::ErrorKind::AddrInUse.into());
        }
        let socket = bind();
        socket.connect(self.server)?;
        Ok(socket)
    }

    fn reply(&self, _: SocketAddr) -> std::io::Result<StdUdpSocket> {
        self.listener.try_clone()
    }
}

impl Connect for Loopback {
    async fn connect(&self, _: &Flow) -> std::io::Result<Upstream> {
        Ok(Upstream { stream: TcpStream::connect(self.server).await?, backend: self.server })
    }
}

fn bind() -> StdUdpSocket {
    let socket = StdUdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

fn rules(patterns: &[&str], passes: bool) -> Rules {
    let patterns = patterns.iter().map(|pattern| NamePattern::cilium(pattern).unwrap()).collect();
    Rules {
        pod: PodKey { namespace: "web".into(), name: "client".into() },
        lists: [Arc::new(RuleList::new("CiliumNetworkPolicy web/dns, egress[0]".into(), Application::Dns(patterns)))]
            .into(),
        otherwise: Outcome { passes, reason: "isolated".into() },
        audit: None,
        looks: Looks::Dns,
    }
}

/// What a test works with.
struct Bed {
    policy: Arc<Said>,
    records: Arc<Records>,
    dns: Arc<Dns<Said, Records>>,
    link: Link,
    /// Where clients ask.
    proxy: SocketAddr,
    /// The server's socket.
    server: UdpSocket,
    broken: Arc<AtomicBool>,
    running: tokio::task::JoinHandle<()>,
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Bed {
    /// Has to be called within a `LocalSet`.
    fn with(rules: Result<Rules, Refused>, limits: Limits) -> Self {
        Self::beside(Vec::new(), rules, limits)
    }

    /// With further listeners.
    fn beside(others: Vec<StdUdpSocket>, rules: Result<Rules, Refused>, limits: Limits) -> Self {
        let (names, link) = Names::new(None);
        let (policy, records) = (Said::new(rules), Arc::new(Records::default()));
        let dns = Arc::new(Dns::new(Arc::clone(&policy), Arc::clone(&records), names, limits));
        let server = UdpSocket::from_std(bind()).unwrap();
        let listener = bind();
        let proxy = listener.local_addr().unwrap();
        let broken = Arc::new(AtomicBool::new(false));
        let sockets = Loopback {
            server: server.local_addr().unwrap(),
            listener: listener.try_clone().unwrap(),
            broken: Arc::clone(&broken),
        };
        let engine = Arc::clone(&dns);
        let running = tokio::task::spawn_local(async move {
            if others.is_empty() {
                engine.serve_datagrams(vec![listener], sockets).await.unwrap();
            } else {
                socket::tell_destinations(&listener).unwrap();
                engine.serve_telling(others.into_iter().chain([listener]).collect(), sockets).await.unwrap();
            }
        });
        Self { policy, records, dns, link, proxy, server, broken, running }
    }

    fn new(patterns: &[&str]) -> Self {
        Self::with(Ok(rules(patterns, false)), Limits::default())
    }

    async fn client(&self) -> UdpSocket {
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        client.connect(self.proxy).await.unwrap();
        client
    }

    /// A query as the server gets it, and from where.
    async fn asked(&self) -> (Vec<u8>, SocketAddr) {
        let mut message = vec![0; 4_096];
        let (length, from) = timeout(PATIENCE, self.server.recv_from(&mut message)).await.unwrap().unwrap();
        message.truncate(length);
        (message, from)
    }

    async fn answer(&self, to: SocketAddr, message: &[u8]) {
        self.server.send_to(message, to).await.unwrap();
    }

    fn count(&self, name: &str) -> u64 {
        self.dns.counters.each().find(|(counter, ..)| *counter == name).unwrap().2
    }

    async fn counted(&self, name: &str, count: u64) {
        let counted = timeout(PATIENCE, async {
            while self.count(name) < count {
                tokio::task::yield_now().await;
            }
        });
        counted.await.unwrap_or_else(|_| panic!("{name}: {} of {count}", self.count(name)));
    }

    fn want(&self, patterns: &[&str]) {
        let patterns = patterns.iter().map(|pattern| NamePattern::cilium(pattern).unwrap()).collect();
        let least = Duration::from_secs(60);
        self.link.wanted.send(Arc::new(Wanted { patterns, least, classes: Vec::new() })).unwrap();
    }
}

async fn got(client: &UdpSocket) -> Vec<u8> {
    let mut message = vec![0; 65_536];
    let length = timeout(PATIENCE, client.recv(&mut message)).await.unwrap().unwrap();
    message.truncate(length);
    message
}

/// The answer to a query: one address.
fn address(query: &[u8], address: [u8; 4]) -> Vec<u8> {
    let id = u16::from_be_bytes([query[0], query[1]]);
    Build::new(id, 0x8180, [1, 1, 0, 0]).raw(&query[12..]).record(&POINTER, 1, 300, &address).done()
}

macro_rules! local {
    ($($(#[$meta:meta])* async fn $name:ident() $body:block)*) => {
        $(
            $(#[$meta])*
            #[test]
            fn $name() {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                tokio::task::LocalSet::new().block_on(&runtime, async $body);
            }
        )*
    };
}

local! {
    /// What passes goes on octet by octet, both ways, with its number and its letters' case; what does not is refused.
    async fn a_query_passes_by_its_name_or_is_refused() {
        let bed = Bed::new(&["*.example.com"]);
        let client = bed.client().await;
        let asked = query(0x2a2a, "wWw.Example.COM", 16);
        client.send(&asked).await.unwrap();
        let (seen, from) = bed.asked().await;
        assert_eq!(seen, asked);
        let answer = Build::new(0x2a2a, 0x8180, [1, 1, 0, 0]).raw(&asked[12..]).record(&POINTER, 16, 5, b"\x02hi").done();
        bed.answer(from, &answer).await;
        assert_eq!(got(&client).await, answer);
        for of in ["example.com", "a.b.example.com", "example.org", "www.example.com.evil.org"] {
            client.send(&query(7, of, 28)).await.unwrap();
            let refused = got(&client).await;
            assert_eq!(refused, Build::new(7, 0x8105, [1, 0, 0, 0]).question(of, 28).done(), "{of}");
        }
        let rule = Some("CiliumNetworkPolicy web/dns, egress[0]".to_owned());
        let seen = bed.records.seen();
        assert_eq!(seen[0], ("www.example.com".into(), 16, Some(0), 0, true, rule));
        assert_eq!(seen[1], ("example.com".into(), 28, Some(5), 0, false, None));
        assert_eq!((seen.len(), bed.count("sluice_proxy_dns_refused")), (5, 4));
    }

    /// Cilium's `tofqdns-dns-reject-response-code`.
    async fn a_refusal_may_be_that_there_is_no_such_name() {
        let limits = Limits { refusal: Refusal::NameError, ..Limits::default() };
        let bed = Bed::with(Ok(rules(&["a.b"], false)), limits);
        let client = bed.client().await;
        client.send(&query(1, "c.d", 1)).await.unwrap();
        assert_eq!(got(&client).await[3] & 0xf, 3);
    }

    async fn what_is_no_question_is_refused_or_dropped() {
        let bed = Bed::with(Ok(rules(&["a.b"], true)), Limits::default());
        let client = bed.client().await;
        let two = Build::new(9, 0x100, [2, 0, 0, 0]).question("a.b", 1).question("c.d", 1).done();
        client.send(&two).await.unwrap();
        assert_eq!(got(&client).await, [0, 9, 0x81, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        client.send(b"GET / HTTP").await.unwrap();
        client.send(&vec![1; 5_000]).await.unwrap();
        bed.counted("sluice_proxy_dns_malformed", 3).await;
        // An answer is no query: nothing is sent back, else two proxies would answer each other for ever.
        client.send(&Build::new(9, 0x8100, [1, 0, 0, 0]).question("a.b", 1).done()).await.unwrap();
        bed.counted("sluice_proxy_dns_malformed", 4).await;
        // A name that no rule can mean passes where everything does.
        let odd = Build::new(3, 0, [1, 0, 0, 0]).raw(b"\x03a b\x00\x00\x0c\x00\x01").done();
        client.send(&odd).await.unwrap();
        assert_eq!(bed.asked().await.0, odd);
        bed.policy.say(Ok(rules(&["*"], false)));
        client.send(&odd).await.unwrap();
        bed.counted("sluice_proxy_dns_repeated", 1).await;
        let odd = [&[0, 4], &odd[2..]].concat();
        client.send(&odd).await.unwrap();
        assert_eq!(got(&client).await[3] & 0xf, 5);
    }

    /// Somebody who guesses numbers, or a server that answers something else, is not believed.
    async fn only_the_answer_to_the_question_passes() {
        let bed = Bed::new(&["*.example.com"]);
        let client = bed.client().await;
        let asked = query(5, "www.example.com", 1);
        client.send(&asked).await.unwrap();
        let (_, from) = bed.asked().await;
        let other = query(5, "evil.example.com", 1);
        bed.answer(from, &address(&other, [203, 0, 113, 9])).await;
        bed.answer(from, &address(&query(5, "www.example.com", 28), [203, 0, 113, 9])).await;
        bed.answer(from, &Build::new(5, 0x8180, [0, 1, 0, 0]).record(&[0], 1, 9, &[203, 0, 113, 9]).done()).await;
        bed.answer(from, &address(&query(6, "www.example.com", 1), [203, 0, 113, 9])).await;
        // From another address than the server's the kernel itself leaves it out.
        let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        stranger.send_to(&address(&asked, [203, 0, 113, 9]), from).await.unwrap();
        bed.counted("sluice_proxy_dns_other_question", 3).await;
        bed.counted("sluice_proxy_dns_unasked", 1).await;
        // Servers may write the name in other letters.
        let answer = address(&query(5, "WWW.example.com", 1), [192, 0, 2, 1]);
        bed.answer(from, &answer).await;
        assert_eq!(got(&client).await, answer);
        bed.answer(from, &answer).await;
        bed.counted("sluice_proxy_dns_unasked", 2).await;
    }

    /// Many questions by one port, answered in another order; the same number twice; one that is asked again.
    async fn answers_find_their_questions_in_any_order() {
        let bed = Bed::new(&["*.example.com"]);
        let client = bed.client().await;
        let mut from = None;
        for id in 0..100_u16 {
            client.send(&query(id % 50, &format!("n{id}.example.com"), 1)).await.unwrap();
            from = Some(bed.asked().await.1);
        }
        client.send(&query(0, "n0.example.com", 1)).await.unwrap();
        let (repeated, session) = bed.asked().await;
        assert_eq!((repeated, Some(session)), (query(0, "n0.example.com", 1), from), "one socket, and sent again");
        for id in (0..100_u16).rev() {
            let answer = address(&query(id % 50, &format!("n{id}.example.com"), 1), [192, 0, 2, 1]);
            bed.answer(session, &answer).await;
            assert_eq!(got(&client).await, answer);
        }
        assert_eq!(bed.count("sluice_proxy_dns_repeated"), 1);
        assert_eq!(bed.count("sluice_proxy_dns_answers"), 100);
    }

    /// What does not fit is passed as it is: the client asks again over TCP.
    async fn truncated_and_large_answers_pass() {
        let bed = Bed::new(&["*.example.com"]);
        let client = bed.client().await;
        let asked = Build::new(5, 0x100, [1, 0, 0, 1]).question("a.example.com", 16).opt(65_000, 0).done();
        client.send(&asked).await.unwrap();
        let (seen, from) = bed.asked().await;
        assert_eq!(seen, asked, "EDNS passes");
        let mut large = Build::new(5, 0x8380, [1, 30, 0, 0]).question("a.example.com", 16);
        for _ in 0..30 {
            large = large.record(&POINTER, 16, 5, &[7; 2_000]);
        }
        let large = large.done();
        bed.answer(from, &large).await;
        assert_eq!(got(&client).await, large);
        assert!(large.len() > 60_000);
    }

    /// A change of policy holds for the next question by the same port.
    async fn a_change_of_policy_is_for_the_next_question() {
        let bed = Bed::new(&["a.example.com"]);
        let client = bed.client().await;
        client.send(&query(1, "a.example.com", 1)).await.unwrap();
        bed.asked().await;
        bed.policy.say(Ok(rules(&["b.example.com"], false)));
        client.send(&query(2, "a.example.com", 1)).await.unwrap();
        assert_eq!(got(&client).await[3] & 0xf, 5);
        client.send(&query(3, "b.example.com", 1)).await.unwrap();
        bed.asked().await;
        bed.policy.say(Err(Refused::Denied("no".into())));
        client.send(&query(4, "b.example.com", 1)).await.unwrap();
        bed.counted("sluice_proxy_dns_no_rules", 1).await;
    }

    /// A question whose rules are on their way waits for them.
    async fn rules_that_are_on_their_way_are_waited_for() {
        let bed = Bed::with(Err(Refused::NoDecision(7)), Limits::default());
        let client = bed.client().await;
        client.send(&query(1, "a.example.com", 1)).await.unwrap();
        client.send(&query(2, "b.example.com", 1)).await.unwrap();
        bed.counted("sluice_proxy_dns_udp_queries", 2).await;
        bed.policy.say(Ok(rules(&["a.example.com"], false)));
        bed.asked().await;
        assert_eq!(got(&client).await[..4], [0, 2, 0x81, 5]);
    }

    async fn a_server_that_cannot_be_reached_fails_at_once() {
        let mut bed = Bed::new(&["*"]);
        let client = bed.client().await;
        let unused = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let gone = std::mem::replace(&mut bed.server, unused);
        drop(gone);
        client.send(&query(1, "a.example.com", 1)).await.unwrap();
        let answer = got(&client).await;
        assert_eq!(answer, Build::new(1, 0x8102, [1, 0, 0, 0]).question("a.example.com", 1).done());
        assert_eq!(bed.records.seen()[0].2, Some(2));
    }

    /// Neither a pod nor all of them together hold more than they may.
    async fn questions_that_wait_are_bounded() {
        let limits = Limits { asked_of_pod: 3, asked: 100, sockets: 4, timeout: Duration::from_millis(50), ..Limits::default() };
        let bed = Bed::with(Ok(rules(&["*"], false)), limits);
        let client = bed.client().await;
        for id in 0..5 {
            client.send(&query(id, "a.example.com", 1)).await.unwrap();
        }
        bed.counted("sluice_proxy_dns_over_pod", 2).await;
        // What is not answered makes room.
        bed.counted("sluice_proxy_dns_timed_out", 3).await;
        assert_eq!(bed.records.seen()[0].2, None);
        for _ in 0..5 {
            bed.client().await.send(&query(9, "a.example.com", 1)).await.unwrap();
        }
        bed.counted("sluice_proxy_dns_over_pod", 4).await;
        bed.counted("sluice_proxy_dns_timed_out", 6).await;
        bed.broken.store(true, Ordering::Relaxed);
        bed.client().await.send(&query(9, "a.example.com", 1)).await.unwrap();
        bed.counted("sluice_proxy_dns_unsent", 1).await;
        bed.broken.store(false, Ordering::Relaxed);
        bed.client().await.send(&query(9, "a.example.com", 1)).await.unwrap();
        bed.counted("sluice_proxy_dns_forwarded", 7).await;
    }

    /// A listener that cannot be read, as no socket can be that is none, is tried now and then; the others are served.
    async fn a_listener_that_cannot_be_read_is_left_alone() {
        let (none, mut writer) = std::io::pipe().unwrap();
        std::io::Write::write_all(&mut writer, b"x").unwrap();
        let none = StdUdpSocket::from(std::os::fd::OwnedFd::from(none));
        let bed = Bed::beside(vec![none], Ok(rules(&["*"], false)), Limits::default());
        let failures = u64::from(udp::FAILURES);
        bed.counted("sluice_proxy_dns_unreceived", failures).await;
        let begun = Instant::now();
        let client = bed.client().await;
        client.send(&query(7, "a.example.com", 1)).await.unwrap();
        let (seen, from) = bed.asked().await;
        let answer = address(&seen, [192, 0, 2, 1]);
        bed.answer(from, &answer).await;
        assert_eq!(got(&client).await, answer);
        // Once for each time that it is looked for, every half second.
        bed.counted("sluice_proxy_dns_unreceived", failures + 3).await;
        assert!(begun.elapsed() > Duration::from_millis(500), "{:?}", begun.elapsed());
    }

    /// An answer goes when the gates know its addresses, and those behind it do not wait for it.
    async fn an_answer_is_held_until_its_addresses_are_known() {
        let limits = Limits { hold: PATIENCE, ..Limits::default() };
        let mut bed = Bed::with(Ok(rules(&["*"], false)), limits);
        bed.want(&["*.example.com"]);
        let client = bed.client().await;
        client.send(&query(1, "a.example.com", 1)).await.unwrap();
        client.send(&query(2, "a.example.org", 1)).await.unwrap();
        let (first, from) = bed.asked().await;
        let (second, _) = bed.asked().await;
        let held = address(&first, [192, 0, 2, 1]);
        bed.answer(from, &held).await;
        let ask = timeout(PATIENCE, bed.link.asks.recv()).await.unwrap().unwrap();
        assert_eq!(ask.resolution.name.as_str(), "a.example.com");
        assert_eq!(*ask.resolution.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!((ask.resolution.ttl, ask.resolution.pod.to_string().as_str()), (300, "web/client"));
        // No rule means this one.
        let other = address(&second, [192, 0, 2, 2]);
        bed.answer(from, &other).await;
        assert_eq!(got(&client).await, other);
        ask.done.send(true).unwrap();
        assert_eq!(got(&client).await, held);
        // Once it is known nobody waits, and nobody is asked.
        client.send(&query(3, "A.example.com", 1)).await.unwrap();
        let (again, from) = bed.asked().await;
        bed.answer(from, &address(&again, [192, 0, 2, 1])).await;
        assert_eq!(got(&client).await[..2], [0, 3]);
        assert!(bed.link.asks.try_recv().is_err());
    }

    /// Nobody waits for ever, and without policyd nobody waits at all.
    async fn an_answer_is_held_for_a_while_only() {
        let limits = Limits { hold: Duration::from_millis(20), ..Limits::default() };
        let mut bed = Bed::with(Ok(rules(&["*"], false)), limits);
        bed.want(&["*"]);
        let client = bed.client().await;
        client.send(&query(1, "a.example.com", 1)).await.unwrap();
        let (first, from) = bed.asked().await;
        bed.answer(from, &address(&first, [192, 0, 2, 1])).await;
        let ask = timeout(PATIENCE, bed.link.asks.recv()).await.unwrap().unwrap();
        assert_eq!(got(&client).await[..2], [0, 1]);
        let late = bed.dns.names.counters().each().into_iter().find(|(name, ..)| name.ends_with("late")).unwrap();
        assert_eq!(late.2, 1);
        drop(ask);
        bed.link.asks.close();
        client.send(&query(2, "b.example.com", 1)).await.unwrap();
        let (second, from) = bed.asked().await;
        bed.answer(from, &address(&second, [192, 0, 2, 1])).await;
        assert_eq!(got(&client).await[..2], [0, 2]);
    }

    /// Slow and silent servers harm nobody but those who ask them.
    async fn a_thousand_waiting_questions_delay_nobody() {
        let bed = Bed::new(&["*"]);
        let silent = bed.client().await;
        for id in 0..1_000 {
            silent.send(&query(id, "slow.example.com", 1)).await.unwrap();
            bed.asked().await;
        }
        let client = bed.client().await;
        client.send(&query(1, "fast.example.com", 1)).await.unwrap();
        let (fast, from) = bed.asked().await;
        bed.answer(from, &address(&fast, [192, 0, 2, 1])).await;
        assert_eq!(got(&client).await[..2], [0, 1]);
    }
}

/// A connection through the engine: the client's end, the server's end, and how it ended.
struct Stream {
    client: TcpStream,
    server: TcpStream,
    served: tokio::task::JoinHandle<Result<(), StreamError>>,
}

async fn stream(bed: &Bed) -> Stream {
    let (proxy, server) = (
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(),
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(),
    );
    let client = TcpStream::connect(proxy.local_addr().unwrap()).await.unwrap();
    let (accepted, from) = proxy.accept().await.unwrap();
    let flow = Flow { direction: Direction::Egress, client: from, server: proxy.local_addr().unwrap() };
    let connect = Loopback { server: server.local_addr().unwrap(), listener: bind(), broken: Arc::default() };
    let dns = Arc::clone(&bed.dns);
    let served = tokio::task::spawn_local(async move { dns.serve_stream(&connect, accepted, flow).await });
    let (server, _) = server.accept().await.unwrap();
    Stream { client, server, served }
}

fn frame(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

async fn framed(stream: &mut TcpStream) -> Vec<u8> {
    let read = async {
        let mut message = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut message).await.unwrap();
        message
    };
    timeout(PATIENCE, read).await.unwrap()
}

local! {
    /// Several messages at once, cut anywhere, answered in another order, one refused.
    async fn a_stream_carries_many_questions() {
        let bed = Bed::new(&["*.example.com"]);
        let Stream { mut client, mut server, served } = stream(&bed).await;
        let queries: Vec<Vec<u8>> =
            ["a.example.com", "evil.org", "b.example.com"].iter().zip(1..).map(|(of, id)| query(id, of, 1)).collect();
        let octets: Vec<u8> = queries.iter().flat_map(|query| frame(query)).collect();
        for part in octets.chunks(7) {
            client.write_all(part).await.unwrap();
            client.flush().await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(framed(&mut server).await, queries[0]);
        assert_eq!(framed(&mut server).await, queries[2]);
        assert_eq!(framed(&mut client).await[..4], [0, 2, 0x81, 5]);
        let answers = [address(&queries[2], [192, 0, 2, 3]), address(&queries[0], [192, 0, 2, 1])];
        server.write_all(&[frame(&answers[0]), frame(&answers[1])].concat()).await.unwrap();
        assert_eq!(framed(&mut client).await, answers[0]);
        assert_eq!(framed(&mut client).await, answers[1]);
        // The client is done: the server sees the end of the stream, and the client its own.
        client.shutdown().await.unwrap();
        assert_eq!(timeout(PATIENCE, server.read(&mut [0])).await.unwrap().unwrap(), 0);
        drop(server);
        assert_eq!(timeout(PATIENCE, client.read(&mut [0])).await.unwrap().unwrap(), 0);
        timeout(PATIENCE, served).await.unwrap().unwrap().unwrap();
    }

    /// A client that has said all that it has to say is still answered; so is one whose server ends after its answer.
    async fn half_closed_streams_are_answered() {
        let bed = Bed::new(&["*"]);
        let Stream { mut client, mut server, served } = stream(&bed).await;
        let asked = query(1, "a.example.com", 1);
        client.write_all(&frame(&asked)).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(framed(&mut server).await, asked);
        let answer = address(&asked, [192, 0, 2, 1]);
        server.write_all(&frame(&answer)).await.unwrap();
        drop(server);
        assert_eq!(framed(&mut client).await, answer);
        assert_eq!(timeout(PATIENCE, client.read(&mut [0])).await.unwrap().unwrap(), 0);
        timeout(PATIENCE, served).await.unwrap().unwrap().unwrap();
    }

    async fn answers_over_a_stream_are_held_too() {
        let limits = Limits { hold: PATIENCE, ..Limits::default() };
        let mut bed = Bed::with(Ok(rules(&["*"], false)), limits);
        bed.want(&["*.example.com"]);
        let Stream { mut client, mut server, .. } = stream(&bed).await;
        let (first, second) = (query(1, "a.example.com", 1), query(2, "b.example.org", 1));
        client.write_all(&[frame(&first), frame(&second)].concat()).await.unwrap();
        framed(&mut server).await;
        framed(&mut server).await;
        let (held, other) = (address(&first, [192, 0, 2, 1]), address(&second, [192, 0, 2, 2]));
        server.write_all(&[frame(&held), frame(&other)].concat()).await.unwrap();
        assert_eq!(framed(&mut client).await, other);
        timeout(PATIENCE, bed.link.asks.recv()).await.unwrap().unwrap().done.send(true).unwrap();
        assert_eq!(framed(&mut client).await, held);
    }

    /// A zone transfer is a series of messages, of which only the first needs to repeat the question.
    async fn a_transfer_passes_whole() {
        let bed = Bed::new(&["*"]);
        let Stream { mut client, mut server, .. } = stream(&bed).await;
        let asked = query(1, "example.com", 252);
        client.write_all(&frame(&asked)).await.unwrap();
        framed(&mut server).await;
        let first = Build::new(1, 0x8400, [1, 1, 0, 0]).raw(&asked[12..]).record(&POINTER, 6, 1, &[0; 22]).done();
        let next = Build::new(1, 0x8400, [0, 1, 0, 0]).record(&name("example.com"), 6, 1, &[0; 22]).done();
        server.write_all(&[frame(&first), frame(&next), frame(&next)].concat()).await.unwrap();
        for expected in [&first, &next, &next] {
            assert_eq!(framed(&mut client).await, *expected);
        }
    }

    async fn streams_end_on_what_is_no_dns() {
        let bed = Bed::new(&["*"]);
        for octets in [b"\x00\x03abc".as_slice(), b"\x00\x40cut", b"\x00\x0c\x00\x01\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00"] {
            let Stream { mut client, server, served } = stream(&bed).await;
            client.write_all(octets).await.unwrap();
            client.shutdown().await.unwrap();
            let ended = timeout(PATIENCE, served).await.unwrap().unwrap();
            assert!(matches!(ended, Err(StreamError::Broken { .. })), "{ended:?}");
            drop(server);
        }
    }

    /// Who asks more than he may is read no further until he is answered.
    async fn a_client_is_read_as_far_as_it_is_answered() {
        let limits = Limits { asked_of_connection: 2, ..Limits::default() };
        let bed = Bed::with(Ok(rules(&["*"], false)), limits);
        let Stream { mut client, mut server, .. } = stream(&bed).await;
        let queries: Vec<Vec<u8>> = (0..6).map(|id| query(id, "a.example.com", 1)).collect();
        client.write_all(&queries.iter().flat_map(|query| frame(query)).collect::<Vec<u8>>()).await.unwrap();
        for (at, query) in queries.iter().enumerate() {
            assert_eq!(framed(&mut server).await, *query);
            assert!(bed.count("sluice_proxy_dns_tcp_queries") <= at as u64 + 2);
            server.write_all(&frame(&address(query, [192, 0, 2, 1]))).await.unwrap();
            framed(&mut client).await;
        }
    }

    async fn a_silent_stream_ends() {
        let limits = Limits { idle: Duration::from_millis(50), ..Limits::default() };
        let bed = Bed::with(Ok(rules(&["*"], false)), limits);
        let Stream { mut client, served, .. } = stream(&bed).await;
        timeout(PATIENCE, served).await.unwrap().unwrap().unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }

    async fn a_flow_without_rules_is_not_served() {
        let bed = Bed::with(Err(Refused::NoFlow), Limits::default());
        let Stream { served, .. } = stream(&bed).await;
        let ended = timeout(PATIENCE, served).await.unwrap().unwrap();
        assert!(matches!(ended, Err(StreamError::NoRules { .. })), "{ended:?}");
    }
}
