//! Two nodes with two ENIs each, with agents and proxies, and pods on all of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use sluice_hostnet::netns::{NamespaceThread, ThreadSpec};
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::model::Text;
use sluice_policy_core::vector;
use sluice_policy_core::vector::schema::{Family, Mode, Suite};
use sluice_tests::live::place::placed;
use sluice_tests::live::run::Act;
use sluice_tests::live::stage::{Options, Stage};
use sluice_vpcsim::deployment::Binaries;
use sluice_vpcsim::proxy::Proxy;

use super::speak::Speaks;
use crate::gate::{chain, options};

/// How long a proxy may take to have its policy.
pub(super) const READY: Duration = Duration::from_secs(30);
/// The host on the Internet, and its DNS server.
pub(super) const SITE: [&str; 2] = ["198.51.100.7", "2001:db8:77::7"];
pub(super) const RESOLVER: &str = "198.51.100.53";

/// A client on each ENI of the first node, and servers on each ENI of both.
const PODS: &str = r#"
schemaVersion: 1
fixtures:
  f:
    namespaces: {x: {}}
    nodes: {n1: {ip: 10.9.0.1, ip6: 'fd00:9::1'}, n2: {ip: 10.9.0.2, ip6: 'fd00:9::2'}}
    pods:
      x/client-primary: {labels: {app: client}, ip: 10.1.0.1, ip6: 'fd00:1::1', node: n1}
      x/client-second: {labels: {app: client, eni: second}, ip: 10.1.0.2, ip6: 'fd00:1::2', node: n1}
      x/near-primary: {labels: {app: server, at: near-primary}, ip: 10.1.0.3, ip6: 'fd00:1::3', node: n1}
      x/near-second: {labels: {app: server, at: near-second, eni: second}, ip: 10.1.0.4, ip6: 'fd00:1::4', node: n1}
      x/far-primary: {labels: {app: server, at: far-primary}, ip: 10.1.1.3, ip6: 'fd00:1::13', node: n2}
      x/far-second: {labels: {app: server, at: far-second, eni: second}, ip: 10.1.1.4, ip6: 'fd00:1::14', node: n2}
    services:
"#;
/// The servers.
pub(super) const SERVERS: [&str; 4] = ["near-primary", "near-second", "far-primary", "far-second"];
/// The first port of Services.
pub(super) const SERVICE_PORT: u16 = 80;

/// The first node port of a server's Service.
pub(super) fn node_port(server: &str) -> u16 {
    let number = SERVERS.iter().position(|name| *name == server).unwrap();
    30_100 + 10 * u16::try_from(number).unwrap()
}

/// An address outside of the cluster by which a server is reached.
pub(super) fn external(server: &str) -> [IpAddr; 2] {
    let number = SERVERS.iter().position(|name| *name == server).unwrap();
    [format!("203.0.113.{}", number + 1), format!("2001:db8:113::{}", number + 1)].map(|text| text.parse().unwrap())
}

/// A suite of one vector of these steps, as YAML. It lives as long as the test's process.
pub(super) fn suite(steps: &str) -> &'static Suite {
    suite_seen(steps, &[])
}

/// The same, with what of pods' traffic is to be seen: by pod, elements of the annotation.
pub(super) fn suite_seen(steps: &str, seen: &[(&str, &str)]) -> &'static Suite {
    let mut text = PODS.to_owned();
    for (pod, visibility) in seen {
        text = text.replace(&format!("x/{pod}: {{"), &format!("x/{pod}: {{visibility: [{visibility}], "));
    }
    for server in SERVERS {
        let port = |speaks: Speaks| {
            format!(
                "{{port: {}, targetPort: {}, protocol: TCP, nodePort: {}}}",
                speaks.after(SERVICE_PORT),
                speaks.port(),
                speaks.after(node_port(server))
            )
        };
        let ports = Speaks::ALL.map(port).join(", ");
        let [v4, v6] = external(server);
        text += &format!(
            "      x/{server}: {{selector: {{at: {server}}}, externalIPs: [{v4}, '{v6}'], ports: [{ports}]}}\n"
        );
    }
    text += "      x/dns: {selector: {at: far-primary}, ports: [{port: 53, targetPort: 53, protocol: UDP}, {port: 53, targetPort: \
             53, protocol: TCP}]}\n";
    text += &format!("vectors:\n- id: l7\n  fixture: f\n  steps:\n{steps}");
    let read = vector::read(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    Box::leak(Box::new(placed(read)))
}

/// A policy `x/name` for pods of an app, as YAML in flow style.
pub(super) fn policy(name: &str, app: &str, rules: &str) -> String {
    format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: {name}, namespace: x}}, spec: \
         {{endpointSelector: {{matchLabels: {{app: {app}}}}}, {rules}}}}}"
    )
}

/// The `toPorts` of everything that is spoken, each with its rule.
pub(super) fn ports() -> String {
    let of = |speaks: Speaks| format!("{{ports: [{{port: '{}', protocol: TCP}}], {}}}", speaks.port(), speaks.rule());
    format!("toPorts: [{}]", Speaks::ALL.map(of).join(", "))
}

/// What an attempt gave, or the end of the test.
pub(super) fn must<T, E: std::error::Error>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("{}", chain(&error)))
}

pub(super) fn key(name: &str) -> PodKey {
    PodKey { namespace: "x".into(), name: name.into() }
}

/// Nodes, pods and proxies; and threads in the pods' namespaces, by the pods' names, and outside (`""`).
pub(super) struct Ground {
    pub(super) suite: &'static Suite,
    pub(super) options: Options,
    pub(super) stage: Stage<'static>,
    pub(super) proxies: BTreeMap<Text, Proxy>,
    pub(super) places: Places,
}

/// Threads in the namespaces of pods, and outside.
#[derive(Clone)]
pub(super) struct Places(BTreeMap<String, Arc<NamespaceThread>>);

impl Places {
    /// The one of a pod; of nobody, the one outside.
    pub(super) fn of(&self, pod: &str) -> &NamespaceThread {
        &self.0[pod]
    }
}

impl Ground {
    /// Builds everything, and starts the proxies with these variables.
    pub(super) async fn new(suite: &'static Suite, env: &[(&str, &str)]) -> Self {
        let options = options();
        let mut stage = must(Stage::build(&suite.fixtures["f"], &options).await);
        let binary = Binaries::find("sluice-proxy").unwrap();
        let env: BTreeMap<String, String> =
            env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut proxies = BTreeMap::new();
        for (name, node) in &stage.town.nodes {
            let proxy = Proxy::new(Arc::clone(&node.node), binary.clone(), env.clone());
            must(proxy.start().await);
            proxies.insert(Text::clone(name), proxy);
        }
        for proxy in proxies.values() {
            must(proxy.ready(READY).await);
        }
        let mut places = BTreeMap::new();
        for (key, pod) in &stage.town.pods {
            let thread = NamespaceThread::spawn(ThreadSpec::in_net("pod", pod.net.clone())).unwrap();
            places.insert(key.name.to_string(), Arc::new(thread));
        }
        for address in SITE.into_iter().chain([RESOLVER]) {
            must(stage.town.outside(address.parse().unwrap()).await);
        }
        let outside = must(stage.town.outside(RESOLVER.parse().unwrap()).await);
        let thread = NamespaceThread::spawn(ThreadSpec::in_net("outside", outside.net)).unwrap();
        places.insert(String::new(), Arc::new(thread));
        Self { suite, options, stage, proxies, places: Places(places) }
    }

    /// The cluster as the fixture has it, with no policy; steps are done with it.
    pub(super) async fn begin(&mut self) -> Act<'_, 'static> {
        must(Act::begin(&mut self.stage, &self.suite.vectors[0], Mode::PodIp, &self.options).await)
    }

    /// The address of a pod.
    pub(super) fn address(&self, pod: &str, family: Family) -> IpAddr {
        self.suite.fixtures["f"].pods[&key(pod)].addresses.of(family).unwrap()
    }

    /// The address of a node.
    pub(super) fn node_address(&self, node: &str, family: Family) -> IpAddr {
        self.suite.fixtures["f"].nodes[node].addresses.of(family).unwrap()
    }
}

/// An address and a port of the family of an address.
pub(super) fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}
