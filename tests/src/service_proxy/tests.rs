use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;

use sluice_hostnet::netns::Namespace;
use sluice_policy_core::cluster::{EndpointSlice, Event, Labels, NamedPort, Object, ObjectKey};

use super::iptables::Before;
use super::*;
use crate::privileged::privileged;
use crate::prober::{Answer, Ask, Dial, Prober, Station, Transport};

fn key(name: &str) -> ObjectKey {
    ObjectKey { namespace: "shop".into(), name: name.into() }
}

/// `shop/web` on port 80 with a node port and an external address, in both families, `shop/sticky` with affinity, and
/// `shop/empty` with nobody behind it.
fn cluster() -> (Cluster, Extra) {
    let mut cluster = Cluster::default();
    let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
    let mut service = |name: &str, addresses: &[&str], node_port: Option<u16>, backends: &[&str]| {
        let port = |port, node_port| ServicePort { name: "http".into(), protocol: Protocol::TCP, port, node_port };
        let key = key(name);
        cluster.apply(Event::Upsert(Object::Service(Service {
            key: key.clone(),
            labels: Labels::default(),
            addresses: ips(addresses).into(),
            ports: [port(80, node_port)].into(),
            selector: None,
        })));
        cluster.apply(Event::Upsert(Object::EndpointSlice(EndpointSlice {
            service: Some(Arc::clone(&key.name)),
            key,
            ports: vec![NamedPort { name: "http".into(), protocol: Protocol::TCP, port: 8080 }].into(),
            ready: ips(backends).into_iter().collect(),
        })));
    };
    let pods = ["10.1.0.2", "10.2.0.2", "fd00:2::2"];
    service("web", &["172.20.0.10", "fd00:20::10", "192.0.2.1"], Some(30_080), &pods);
    service("sticky", &["172.20.0.11"], None, &pods);
    service("empty", &["172.20.0.12"], None, &[]);
    let affinity = [(key("sticky"), Duration::from_secs(10_800))].into();
    (cluster, Extra { external: ips(&["192.0.2.1"]).into_iter().collect(), affinity, ..Extra::default() })
}

fn fronts(family: Family) -> Vec<Front> {
    let (cluster, extra) = cluster();
    plan(&cluster, family, &extra)
}

#[test]
fn the_rules_are_those_of_the_golden_files() {
    let golden = |name: &str, text: &str| {
        let path = format!("{}/golden/service-proxy/{name}", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("SLUICE_GOLDEN").is_some() {
            std::fs::write(&path, text).unwrap();
        }
        let wanted = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, wanted, "{path}; SLUICE_GOLDEN=1 writes it");
    };
    golden("nft-ipv4.txt", &nft::text(Family::V4, &fronts(Family::V4)));
    golden("nft-ipv6.txt", &nft::text(Family::V6, &fronts(Family::V6)));
    let (text, after) = iptables::text(Family::V4, &fronts(Family::V4), &Before::default());
    golden("iptables-ipv4.txt", &text);
    golden("iptables-ipv4-gone.txt", &iptables::text(Family::V4, &[], &after).0);
}

/// A router with two pods behind it, `10.1.0.2` and `10.2.0.2`.
struct Town {
    node: Namespace,
    pods: [Namespace; 2],
}

fn ip(net: &Namespace, lines: &str) {
    let run = || {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let status = Command::new("ip").args(line.split_whitespace()).status().unwrap();
            assert!(status.success(), "ip {line}");
        }
    };
    net.run(run).unwrap();
}

impl Town {
    fn build() -> Self {
        let town = Self {
            node: Namespace::new_unbound().unwrap(),
            pods: [Namespace::new_unbound().unwrap(), Namespace::new_unbound().unwrap()],
        };
        for (n, pod) in (1..).zip(&town.pods) {
            let fd = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(pod));
            let path = format!("/proc/{}/fd/{fd}", std::process::id());
            ip(
                &town.node,
                &format!(
                    "link add p{n} type veth peer name eth0 netns {path}\naddr add 10.{n}.0.1/24 dev p{n}\nlink set p{n} up"
                ),
            );
            ip(
                pod,
                &format!(
                    "link set lo up\naddr add 10.{n}.0.2/24 dev eth0\nlink set eth0 up\nroute add default via 10.{n}.0.1"
                ),
            );
        }
        ip(&town.node, "link set lo up\nroute add default dev p2");
        town.node.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap()).unwrap();
        town
    }

    fn pod(&self, n: u8) -> Station {
        Station { net: self.pods[usize::from(n) - 1].clone(), address: Ipv4Addr::new(10, n, 0, 2).into() }
    }
}

/// How many connections of `times` from the first pod are answered; only the second pod serves.
async fn answered(town: &Town, prober: &Prober, (to, port): (&str, u16), times: usize) -> (usize, Vec<Answer>) {
    let dial = Dial {
        from: town.pod(1),
        to: to.parse().unwrap(),
        port,
        transport: Transport::Tcp,
        ask: Ask::Echo,
        patience: Duration::from_secs(2),
    };
    let mut answers = Vec::new();
    for _ in 0..times {
        answers.extend(prober.dial(std::slice::from_ref(&dial)).await.unwrap());
    }
    (answers.iter().filter(|answer| answer.is_answered()).count(), answers)
}

#[tokio::test]
async fn packets_go_where_the_services_say_with_every_backend() {
    if !privileged() {
        return;
    }
    for backend in Backend::ALL {
        let town = Town::build();
        let (mut cluster, extra) = cluster();
        let proxy = Proxy::new(town.node.clone(), backend);
        proxy.apply(&cluster, &extra).unwrap();
        let prober = Prober::default();
        prober.serve([(town.pod(2), Transport::Tcp, 8080)]).await.unwrap();
        // Both backends are chosen, and the first pod itself, which refuses, is one of them: by masquerade even that comes back.
        for (to, port) in [("172.20.0.10", 80), ("192.0.2.1", 80), ("10.1.0.1", 30_080)] {
            let (count, answers) = answered(&town, &prober, (to, port), 20).await;
            assert!((1..20).contains(&count), "{backend}, {to}: {count} of 20");
            assert!(answers.iter().all(|one| !matches!(one, Answer::Silent)), "{backend}, {to}: {answers:?}");
        }
        let (count, _) = answered(&town, &prober, ("172.20.0.11", 80), 20).await;
        assert!(count == 0 || count == 20, "{backend}: affinity sends one client to two backends: {count}");
        // The kernel sends few ICMP errors a second to one address.
        let (count, answers) = answered(&town, &prober, ("172.20.0.12", 80), 3).await;
        assert!(count == 0 && answers.iter().all(|one| matches!(one, Answer::Refused(_))), "{backend}: {answers:?}");
        // What goes away is gone.
        cluster.apply(Event::Delete(sluice_policy_core::cluster::ObjectId::Service(key("web"))));
        proxy.apply(&cluster, &extra).unwrap();
        proxy.apply(&cluster, &extra).unwrap();
        let (count, _) = answered(&town, &prober, ("10.1.0.1", 30_080), 3).await;
        assert_eq!(count, 0, "{backend}");
    }
}
