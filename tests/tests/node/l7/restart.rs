//! The agent and the proxy die, stop and are replaced while requests are made (SPECIFICATION L-33).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use sluice_policy_core::vector::schema::Family;
use sluice_tests::live::stage::APPLIED;
use sluice_tests::privileged::{everything, privileged};
use sluice_vpcsim::policyd::Policyd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::dns::{self, A, Entry, Zone};
use super::ground::{Ground, Places, READY, RESOLVER, SITE, at, must, policy, ports, suite};
use super::speak::{Common, LIMIT, Said, Speaks};

/// Clients that ask at the same time, and how often each does: 1,000 requests a second in all.
const CLIENTS: usize = 20;
const EVERY: Duration = Duration::from_millis(20);
/// After so many requests a client opens another connection.
const EACH: usize = 10;
/// How long a connection may take that has to fail.
const DROP: Duration = Duration::from_millis(300);
/// A port of the Internet's host that no rule looks into.
const PLAIN: u16 = 9000;

/// Requests that have to be served, until it is told to end.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// A pod asks servers in turn.
    fn start(places: &Places, pod: &'static str, servers: &[SocketAddr]) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients = (0..CLIENTS).map(|number| {
            let (places, stop, served) = (places.clone(), Arc::clone(&stop), Arc::clone(&served));
            let to = servers[number % servers.len()];
            tokio::spawn(async move {
                places.of(pod).run(move || client(to, stop, served)).await.expect("the pod's thread has ended")
            })
        });
        let clients = clients.collect();
        Self { stop, served, clients }
    }

    /// Waits until so many more requests have been served.
    async fn goes_on(&self, more: usize) {
        let wanted = self.served.load(Ordering::Relaxed) + more;
        let all = async {
            while self.served.load(Ordering::Relaxed) < wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(READY, all).await.expect("requests are not served any more");
    }

    /// Ends it; every request has been served. Gives how many there were.
    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            assert_eq!(client.await.unwrap(), Vec::<String>::new());
        }
        self.served.load(Ordering::Relaxed)
    }
}

/// Asks again and again, on connections of [`EACH`] requests; says which were not served.
async fn client(to: SocketAddr, stop: Arc<AtomicBool>, served: Arc<AtomicUsize>) -> Vec<String> {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut wrong, mut open, mut asked) = (Vec::new(), None, 0);
    while !stop.load(Ordering::Relaxed) && wrong.len() < 3 {
        ticks.tick().await;
        let exchange = async {
            let mut stream = match open.take() {
                Some(stream) => stream,
                None => TcpStream::connect(to).await?,
            };
            let goes_on = exchange(&mut stream).await?;
            io::Result::Ok((stream, goes_on))
        };
        asked += 1;
        match timeout(LIMIT, exchange).await {
            Ok(Ok((stream, goes_on))) => {
                served.fetch_add(1, Ordering::Relaxed);
                open = (goes_on && asked % EACH != 0).then_some(stream);
            }
            Ok(Err(error)) => wrong.push(format!("request {asked} to {to}: {error}")),
            Err(_elapsed) => wrong.push(format!("request {asked} to {to}: no answer")),
        }
    }
    wrong
}

/// One request; whether the connection may have another.
async fn exchange(stream: &mut TcpStream) -> io::Result<bool> {
    stream.write_all(b"GET /public HTTP/1.1\r\nHost: a\r\n\r\n").await?;
    let (mut text, mut part) = (Vec::new(), [0; 1024]);
    loop {
        let count = stream.read(&mut part).await?;
        text.extend(&part[..count]);
        let said = String::from_utf8_lossy(&text).to_ascii_lowercase();
        if let Some((head, body)) = said.split_once("\r\n\r\n") {
            if !head.starts_with("http/1.1 200 ") {
                return Err(io::Error::other(said));
            }
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if length.is_some_and(|length: usize| body.len() >= length) {
                return Ok(!head.contains("connection: close"));
            }
        }
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("it ends after {said:?}")));
        }
    }
}

/// Servers, a name, and policies on both sides, in force.
async fn ground() -> (Ground, Vec<SocketAddr>, Zone) {
    let egress = policy(
        "egress",
        "client",
        &format!(
            "egress: [{{toEntities: [cluster], {}}}, {{toFQDNs: [{{matchName: site.example}}], toPorts: [{{ports: [{{port: \
             '{PLAIN}', protocol: TCP}}]}}]}}, {{toEntities: [world], toPorts: [{{ports: [{{port: '53', protocol: ANY}}], rules: \
             {{dns: [{{matchPattern: '*.example'}}]}}}}]}}]",
            ports()
        ),
    );
    let ingress = policy("ingress", "server", &format!("ingress: [{{fromEntities: [all], {}}}]", ports()));
    let suite = suite(&format!("  - apply: [{egress}, {ingress}]\n"));
    let mut ground = Ground::new(suite, &[]).await;
    let common = Common::new();
    let mut servers = Vec::new();
    for server in ["near-primary", "far-primary", "near-second", "far-second"] {
        let (to, common) = (at(ground.address(server, Family::V4), Speaks::Http1.port()), common.clone());
        ground.places.of(server).run(move || Speaks::Http1.serve(to, common)).await.unwrap().unwrap();
        servers.push(to);
    }
    let zone = Zone::default();
    let site = SITE[0].parse().unwrap();
    zone.put("site.example", Entry { ttl: 30, addresses: vec![site], long: false });
    let served = zone.clone();
    let outside = move || async move {
        served.serve(at(RESOLVER.parse().unwrap(), 53)).await?;
        Speaks::Http1.serve(at(site, PLAIN), common).await
    };
    ground.places.of("").run(outside).await.unwrap().unwrap();
    {
        let mut act = ground.begin().await;
        must(act.advance(&suite.vectors[0].steps[0]).await);
    }
    (ground, servers, zone)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_when_the_agent_dies_and_when_the_proxy_is_replaced() {
    if !privileged() {
        return;
    }
    let (ground, servers, _zone) = ground().await;
    let load = Load::start(&ground.places, "client-primary", &servers);
    let begun = Instant::now();
    load.goes_on(500).await;
    for agent in ground.stage.agents.values() {
        agent.kill().await;
    }
    load.goes_on(500).await;
    // A name that nobody has asked for before can be reached all the same.
    let (client, site) = (ground.places.of("client-primary"), at(SITE[0].parse().unwrap(), PLAIN));
    let reach = move || async move { Speaks::Http1.ask(site, true, Common::new()).await };
    assert!(timeout(DROP, client.run(reach)).await.is_err(), "it is not known yet");
    let resolve = || dns::ask(at(RESOLVER.parse().unwrap(), 53), "site.example", A, LIMIT);
    assert_eq!(client.run(resolve).await.unwrap().unwrap(), [site.ip()]);
    assert!(matches!(client.run(reach).await.unwrap(), Ok(Said::Served(_))));
    for agent in ground.stage.agents.values() {
        must(agent.start().await);
    }
    for agent in ground.stage.agents.values() {
        must(agent.ready(APPLIED).await);
    }
    load.goes_on(500).await;
    for _ in 0..2 {
        for proxy in ground.proxies.values() {
            let before = proxy.pid().await;
            must(proxy.replace(READY).await);
            assert_ne!(proxy.pid().await, before);
            load.goes_on(200).await;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let served = load.end().await;
    assert!(served > 2_300);
    println!("{served} requests in {seconds:.1} s, none failed");
}

/// The connections that the drop reason of a proxy that is away has been counted for.
async fn dropped_without_proxy(agent: &Policyd, more_than: u64) -> u64 {
    let count = |view: &Value| view.pointer("/drops/no-proxy").and_then(Value::as_u64).unwrap_or_default();
    count(&must(agent.until("nothing was dropped for want of a proxy", APPLIED, |view| count(view) > more_than).await))
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_proxy_a_node_drops_what_is_redirected_and_keeps_names() {
    if !privileged() {
        return;
    }
    let (ground, servers, _zone) = ground().await;
    let client = ground.places.of("client-primary");
    let common = Common::new();
    let ask = |to: SocketAddr| {
        let common = common.clone();
        let asked = async move { client.run(move || Speaks::Http1.ask(to, true, common)).await.unwrap() };
        async move { timeout(DROP, asked).await.unwrap_or_else(|_| Err("silence".into())) }
    };
    let site = at(SITE[0].parse().unwrap(), PLAIN);
    assert!(ask(site).await.is_err(), "nobody has asked for its name");
    let resolve = || dns::ask(at(RESOLVER.parse().unwrap(), 53), "site.example", A, LIMIT);
    assert_eq!(client.run(resolve).await.unwrap().unwrap(), [site.ip()]);
    assert!(matches!(ask(site).await, Ok(Said::Served(_))));
    let (agent, proxy) = (&ground.stage.agents["n1"], &ground.proxies["n1"]);
    let mut fastest = Duration::MAX;
    for _ in 0..3 {
        assert!(matches!(
            client
                .run({
                    let (to, common) = (servers[1], common.clone());
                    move || Speaks::Http1.ask(to, true, common)
                })
                .await
                .unwrap(),
            Ok(Said::Served(_))
        ));
        let before = must(agent.page("/v1/policy").await);
        let before = before.pointer("/drops/no-proxy").and_then(Value::as_u64).unwrap_or_default();
        proxy.kill().await;
        for to in &servers[..2] {
            let said = ask(*to).await;
            assert!(said.is_err(), "{to}: {said:?} without a proxy");
        }
        assert!(dropped_without_proxy(agent, before).await > before);
        assert!(matches!(ask(site).await, Ok(Said::Served(_))), "what is known by name needs no proxy");
        let begun = Instant::now();
        must(proxy.start().await);
        while !matches!(ask(servers[1]).await, Ok(Said::Served(_))) {
            assert!(begun.elapsed() < READY, "it is not served again");
        }
        fastest = fastest.min(begun.elapsed());
    }
    println!("served again after {fastest:?} at best");
    assert!(!everything() || fastest < Duration::from_secs(1), "{fastest:?}");
}
