//! Requests through everything that a node has: agents, plugins, gates and proxies of two nodes. What is allowed works, what
//! is not is refused in the protocol's words, and the server sees who has asked (issue D, the matrix).
//!
//! Every path that a packet can take is in `policy-chain/proxy/tests/net`; here is what those paths have to carry.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use sluice_hostnet::netns::{NamespaceThread, ThreadSpec};
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::vector;
use sluice_policy_core::vector::schema::{Mode, Suite, Vector};
use sluice_tests::live::place::placed;
use sluice_tests::live::run::Act;
use sluice_tests::live::stage::Stage;
use sluice_tests::privileged::privileged;
use sluice_vpcsim::deployment::Binaries;
use sluice_vpcsim::probe::http::{self, HTTP_PORT};
use sluice_vpcsim::proxy::Proxy;

use crate::gate::{chain, options};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a proxy may take to have its policy.
const READY: Duration = Duration::from_secs(30);

/// A client with a server on its node, and one on another.
const FIXTURE: &str = r#"
schemaVersion: 1
fixtures:
  f:
    namespaces: {x: {}}
    nodes: {n1: {ip: 10.9.0.1}, n2: {ip: 10.9.0.2}}
    pods:
      x/client: {labels: {app: client}, ip: 10.1.0.1, node: n1}
      x/near: {labels: {app: server, at: near}, ip: 10.1.0.2, node: n1}
      x/far: {labels: {app: server, at: far}, ip: 10.1.0.3, node: n2}
    services:
      x/near: {selector: {at: near}, ports: [{port: 80, targetPort: 8081, protocol: TCP, nodePort: 30080}]}
      x/far: {selector: {at: far}, ports: [{port: 80, targetPort: 8081, protocol: TCP, nodePort: 30081}]}
vectors:
- id: l7
  fixture: f
  steps:
  - apply: [EGRESS]
  - apply: [INGRESS]
    delete: [{kind: CiliumNetworkPolicy, namespace: x, name: egress}]
  - apply: [EGRESS]
"#;

fn policy(name: &str, app: &str, direction: &str, peers: &str) -> String {
    format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: {name}, namespace: x}}, spec: \
         {{endpointSelector: {{matchLabels: {{app: {app}}}}}, {direction}: [{{{peers}: [all], toPorts: [{{ports: [{{port: \
         '8081', protocol: TCP}}], rules: {{http: [{{method: GET, path: /public}}]}}}}]}}]}}}}"
    )
}

fn suite() -> &'static Suite {
    let text = FIXTURE
        .replace("INGRESS", &policy("ingress", "server", "ingress", "fromEntities"))
        .replace("EGRESS", &policy("egress", "client", "egress", "toEntities"));
    let read = vector::read(&text).unwrap_or_else(|error| panic!("{error}"));
    Box::leak(Box::new(placed(read)))
}

fn key(name: &str) -> PodKey {
    PodKey { namespace: "x".into(), name: name.into() }
}

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => panic!("{v6}: the fixture is IPv4"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_judged_on_every_side_by_every_way() {
    if !privileged() {
        return;
    }
    let suite = suite();
    let options = options();
    let fixture = &suite.fixtures["f"];
    let mut stage = Stage::build(fixture, &options).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let binary = Binaries::find("sluice-proxy").unwrap();
    let mut proxies = Vec::new();
    for node in stage.town.nodes.values() {
        let proxy = Proxy::new(Arc::clone(&node.node), binary.clone(), BTreeMap::new());
        proxy.start().await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        proxies.push(proxy);
    }
    for proxy in &proxies {
        proxy.ready(READY).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    }
    let mut pods = BTreeMap::new();
    for name in ["client", "near", "far"] {
        let net = stage.town.pod(&key(name)).unwrap().net.clone();
        let thread = NamespaceThread::spawn(ThreadSpec::in_net("pod", net)).unwrap();
        let address = v4(fixture.pods[&key(name)].addresses.v4.unwrap());
        pods.insert(name, (Arc::new(thread), address));
    }
    for name in ["near", "far"] {
        let (thread, address) = pods[name].clone();
        let at = SocketAddrV4::new(address, HTTP_PORT);
        thread.run(move || http::serve_in_background(at)).await.unwrap().unwrap();
    }
    let vector: &Vector = &suite.vectors[0];
    let mut act =
        Act::begin(&mut stage, vector, Mode::PodIp, &options).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let (client, own) = pods["client"].clone();
    let node = v4(fixture.nodes["n1"].addresses.v4.unwrap());
    let mut wrong = Vec::new();
    for (step, side) in vector.steps.iter().zip(["egress", "ingress", "both"]) {
        act.advance(step).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        for (name, node_port) in [("near", 30080), ("far", 30081)] {
            let service = act.world.cluster().services.values().find(|service| &*service.key.name == name).unwrap();
            let ways = [
                ("pod IP", SocketAddrV4::new(pods[name].1, HTTP_PORT)),
                (
                    "ClusterIP",
                    SocketAddrV4::new(v4(service.addresses.iter().copied().find(IpAddr::is_ipv4).unwrap()), 80),
                ),
                ("NodePort", SocketAddrV4::new(node, node_port)),
            ];
            for (way, to) in ways {
                for (method, path, status) in
                    [("GET", "/public", 200), ("GET", "/private", 403), ("POST", "/public", 403)]
                {
                    let asked = client.run(move || http::get(to, method, path, LIMIT)).await.unwrap();
                    let cell = format!("{side}, {name}, {way}, {method} {path}");
                    match asked {
                        Ok(answer) if answer.status != status => wrong.push(format!("{cell}: {answer:?}")),
                        Ok(answer) if status == 403 && answer.body != "Access denied\r\n" => {
                            wrong.push(format!("{cell}: {answer:?}"));
                        }
                        // A node port is masqueraded.
                        Ok(answer)
                            if status == 200 && way != "NodePort" && answer.body != format!("GET /public {own}\n") =>
                        {
                            wrong.push(format!("{cell}: {answer:?}"));
                        }
                        Ok(_) => {}
                        Err(error) => wrong.push(format!("{cell}: {error}")),
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Each is on record, at the side that has judged it.
    let mut told = BTreeSet::new();
    for proxy in &proxies {
        for record in proxy.records().await.unwrap_or_else(|error| panic!("{}", chain(&error))) {
            told.insert(record.to_string());
        }
    }
    assert!(told.iter().any(|record| record.contains("/public")), "{told:#?}");
    assert!(told.iter().any(|record| record.contains("/private")), "{told:#?}");
    for proxy in &proxies {
        proxy.stop().await;
    }
}
