//! What an annotation has seen of pods' traffic on real nodes, and that it limits nothing (SPECIFICATION L-25); that dry runs of
//! policies are told and limit nothing either (L-05); and how long what is only relayed lasts when the proxy is replaced.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use sluice_policy_core::vector::schema::Family;
use sluice_tests::privileged::privileged;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use super::dns::{self, A, Entry, Zone};
use super::ground::{Ground, READY, RESOLVER, SITE, at, must, policy, ports, suite_seen};
use super::speak::{Common, LIMIT, Said, Speaks};

/// The port of a server that sends back what it gets, and is no HTTP server.
const ECHO: u16 = 9100;

async fn echo(at: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(at).await?;
    spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            spawn_local(async move {
                let (mut read, mut write) = stream.split();
                // It ends with its client.
                tokio::io::copy(&mut read, &mut write).await.ok();
            });
        }
    });
    Ok(())
}

/// Has something sent back, says so, and waits for the end of the connection.
async fn hold(to: SocketAddr, held: oneshot::Sender<()>) -> io::Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(b"\0\x01no HTTP").await?;
    let mut back = [0; 9];
    stream.read_exact(&mut back).await?;
    assert_eq!(&back, b"\0\x01no HTTP");
    held.send(()).ok();
    // The end, or a reset.
    stream.read_u8().await.map(drop).or(Ok(()))
}

/// Node, direction, pod, what it was, and its verdict.
type Seen = (String, String, String, String, String);

fn seen(record: &Value, node: &str) -> Seen {
    let text = |key: &str| record.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let what = match &*text("kind") {
        "http" => format!("{} {}", text("method"), text("path")),
        "dns" => text("name"),
        "tls" => text("server_name"),
        other => other.to_owned(),
    };
    (node.to_owned(), text("direction"), text("pod"), what, text("verdict"))
}

/// What a client asks of a server passes, and the server sees the client's address; the flag: whether rules have it.
async fn passes(ground: &Ground, common: &Common, client: &str, server: &str, (speaks, allowed): (Speaks, bool)) {
    let (to, common) = (at(ground.address(server, Family::V4), speaks.port()), common.clone());
    let said = ground.places.of(client).run(move || speaks.ask(to, allowed, common)).await.unwrap();
    let own = ground.address(client, Family::V4);
    assert!(matches!(said, Ok(Said::Served(from)) if from == own), "{client} to {server} {speaks:?}: {said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_seen_is_on_record_and_passes() {
    if !privileged() {
        return;
    }
    let [http, tls, plain] = [Speaks::Http1, Speaks::Tls, Speaks::Http2].map(Speaks::port);
    let out = format!("egress/{http}/TCP/HTTP, egress/{tls}/TCP/TLS, egress/53/UDP/DNS");
    let into = format!("ingress/{http}/TCP/HTTP, ingress/{ECHO}/TCP/HTTP");
    let dry =
        |policy: String| policy.replace("namespace: x}", "namespace: x, annotations: {sluice.dev/audit: 'true'}}");
    let egress = dry(policy("egress", "client", &format!("egress: [{{toEntities: [cluster], {}}}]", ports())));
    let ingress = dry(policy("ingress", "server", &format!("ingress: [{{fromEntities: [all], {}}}]", ports())));
    let steps = format!("  - {{}}\n  - apply: [{egress}, {ingress}]\n");
    let suite = suite_seen(&steps, &[("client-primary", &out), ("far-second", &into)]);
    let mut ground = Ground::new(suite, &[("SLUICE_PROXY_DRAIN", "1")]).await;
    let common = Common::new();
    for server in ["near-primary", "far-second"] {
        for speaks in [Speaks::Http1, Speaks::Tls, Speaks::Http2] {
            let (to, common) = (at(ground.address(server, Family::V4), speaks.port()), common.clone());
            ground.places.of(server).run(move || speaks.serve(to, common)).await.unwrap().unwrap();
        }
    }
    let to = at(ground.address("far-second", Family::V4), ECHO);
    ground.places.of("far-second").run(move || echo(to)).await.unwrap().unwrap();
    let zone = Zone::default();
    zone.put("site.example", Entry { ttl: 30, addresses: vec![SITE[0].parse().unwrap()], long: false });
    let served = zone.clone();
    let resolver = at(RESOLVER.parse().unwrap(), 53);
    ground.places.of("").run(move || async move { served.serve(resolver).await }).await.unwrap().unwrap();
    {
        let mut act = ground.begin().await;
        must(act.advance(&suite.vectors[0].steps[0]).await);
    }
    // No policy selects any of them, and whatever is asked for passes.
    for server in ["near-primary", "far-second"] {
        passes(&ground, &common, "client-primary", server, (Speaks::Http1, true)).await;
        passes(&ground, &common, "client-second", server, (Speaks::Http1, true)).await;
        passes(&ground, &common, "client-primary", server, (Speaks::Tls, true)).await;
        passes(&ground, &common, "client-primary", server, (Speaks::Http2, true)).await;
    }
    let resolve = move || dns::ask(resolver, "site.example", A, LIMIT);
    let client = ground.places.of("client-primary");
    assert_eq!(client.run(resolve).await.unwrap().unwrap(), [SITE[0].parse::<std::net::IpAddr>().unwrap()]);

    let of = |node: &str, direction: &str, pod: &str, what: &str| -> Seen {
        (node.into(), direction.into(), format!("x/{pod}"), what.into(), "passed".into())
    };
    let wanted = [
        of("n1", "egress", "client-primary", "GET /public"),
        of("n1", "egress", "client-primary", "allowed.example"),
        of("n1", "egress", "client-primary", "site.example"),
        of("n2", "ingress", "far-second", "GET /public"),
    ];
    // What nobody asked to see is not there: the second client, the other server, HTTP/2's port.
    let wanted = BTreeSet::from(wanted);
    let end = tokio::time::Instant::now() + READY;
    loop {
        let (mut found, mut http_requests, mut elsewhere) = (BTreeSet::new(), 0, Vec::new());
        for (node, proxy) in &ground.proxies {
            for record in must(proxy.records().await) {
                let seen = seen(&record, node);
                http_requests += usize::from(seen.3 == "GET /public");
                let server = record.get("server").and_then(Value::as_str).and_then(|at| at.parse::<SocketAddr>().ok());
                if server.is_some_and(|server| server.port() == plain) {
                    elsewhere.push(record);
                }
                found.insert(seen);
            }
        }
        // Twice at the client, to each server; and at the server that is looked at, from both clients.
        if found == wanted && http_requests == 4 {
            assert_eq!(elsewhere, Vec::<Value>::new());
            break;
        }
        assert!(tokio::time::Instant::now() < end, "{http_requests} requests on record; {found:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // Dry runs: the second client's requests pass, also those that no rule has, and both sides tell what would become of them.
    {
        let mut act = ground.begin().await;
        for step in &suite.vectors[0].steps {
            must(act.advance(step).await);
        }
    }
    for asked in [(Speaks::Http1, true), (Speaks::Http1, false), (Speaks::Tls, true), (Speaks::Tls, false)] {
        passes(&ground, &common, "client-second", "near-primary", asked).await;
    }
    let of = |direction: &str, kind: &str, dry: &str| [direction, kind, "passed", dry].map(str::to_owned);
    let mut wanted = BTreeSet::new();
    for direction in ["egress", "ingress"] {
        for kind in ["http", "tls"] {
            wanted.extend(["passed", "refused"].map(|dry| of(direction, kind, dry)));
        }
    }
    let end = tokio::time::Instant::now() + READY;
    loop {
        let records = must(ground.proxies["n1"].records().await);
        let dry = records.iter().filter(|record| record.get("dry_run").is_some());
        let text = |record: &Value, key: &str| record.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let told = |record| ["direction", "kind", "verdict", "dry_run"].map(|key| text(record, key));
        let found: BTreeSet<[String; 4]> = dry.map(told).collect();
        if found == wanted {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "{found:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // What is only relayed goes on while the process after it serves, and lasts for as long as that one is told to drain.
    let places = ground.places.clone();
    let connect = |held| {
        let places = places.clone();
        tokio::spawn(async move { places.of("client-second").run(move || hold(to, held)).await.unwrap() })
    };
    let (held, holds) = oneshot::channel();
    let first = connect(held);
    holds.await.unwrap();
    must(ground.proxies["n2"].replace(READY).await);
    tokio::time::timeout(LIMIT, first).await.expect("it outlives its process").unwrap().unwrap();
    let (held, holds) = oneshot::channel();
    let second = connect(held);
    holds.await.unwrap();
    assert!(!second.is_finished());
}
