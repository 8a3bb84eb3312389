//! Two nodes whose pods are set up by a plan written by hand, as reference to what a CNI must do, and a matrix of who
//! reaches whom with real packets. With one rule missing, the matrix must fail. Needs root.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use sluice_contract::id::{EniId, IfName, PodRef};
use sluice_contract::node::{
    CONNMARK, MTU, RULE_FROM_ENI, RULE_FROM_POD, RULE_PRIMARY_ENI_MARK, RULE_TO_POD, TABLE_MAIN, VETH_PREFIX,
    host_veth, pod_gateway_v4, route_table,
};
use sluice_hostnet::desired::{Desired, LinkSettings};
use sluice_hostnet::host::Host;
use sluice_hostnet::netlink::VethSpec;
use sluice_hostnet::netns::NamespaceThread;
use sluice_hostnet::plan::{Op, Planned};
use sluice_hostnet::state::{
    Address, Family, Mark, Neighbour, NftFamily, NftTableId, Route, Rule, Sysctl, SysctlKey, host_prefix,
};
use sluice_vpcsim::fabric::Dropped;
use sluice_vpcsim::model::api::{AssignPrivateIpAddresses, WantIpv4};
use sluice_vpcsim::model::{Model, SceneEni};
use sluice_vpcsim::node::Node;
use sluice_vpcsim::probe;
use sluice_vpcsim::world::World;

use crate::privileged;

const SCENE: &str = "
time_scale: 0
throttle: false
vpcs:
  main:
    cidrs: [10.0.0.0/16]
    internet_gateway: true
    subnets: {public: {cidr: 10.0.1.0/24, routes: {0.0.0.0/0: internet-gateway}}}
instances:
  node-a: {type: m5.large, subnet: main/public, public_address: true}
  node-b: {type: m5.large, subnet: main/public, public_address: true}
internet_hosts: [198.51.100.10]
";
const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const PORT: u16 = 8080;
const LIMIT: Duration = Duration::from_secs(5);
/// Long enough for an answer on a loaded machine, short enough to wait for one that must not come.
const SHORT: Duration = Duration::from_secs(2);

/// SNAT of what leaves the VPC, and the mark that keeps it on the primary ENI.
fn nat(vpc: Ipv4Net, primary: Ipv4Addr) -> String {
    format!(
        "chain connmark {{
            type filter hook prerouting priority mangle; policy accept;
            iifname \"{VETH_PREFIX}*\" ip daddr != {vpc} ct mark set ct mark | {CONNMARK}
            iifname \"{VETH_PREFIX}*\" meta mark set ct mark & {CONNMARK}
        }}
        chain source {{
            type nat hook postrouting priority srcnat; policy accept;
            ip daddr != {vpc} fib daddr type != local snat to {primary} fully-random
        }}"
    )
}

struct Pod {
    name: String,
    node: String,
    address: Ipv4Addr,
    /// 0: the primary ENI.
    device: u32,
    thread: Arc<NamespaceThread>,
}

struct Cluster {
    world: World,
    pods: Vec<Pod>,
    enis: BTreeMap<String, [EniId; 2]>,
    hosts: BTreeMap<String, Host>,
}

fn dev(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

fn net(address: Ipv4Addr) -> IpNet {
    host_prefix(IpAddr::V4(address))
}

/// Two addresses for pods on each of the ENIs 0 and 1 of `name`; the second ENI is made.
async fn enis(world: &World, name: &str) -> ([EniId; 2], [Ipv4Addr; 2], [Vec<Ipv4Addr>; 2]) {
    let (instance, subnet) = (world.instance(name).unwrap().clone(), world.subnet("main/public").unwrap().clone());
    let want = WantIpv4 { count: 2, ..WantIpv4::default() };
    let edit = move |model: &mut Model, now| {
        let first = model.state().instances[&instance].primary_eni.clone();
        let assign = AssignPrivateIpAddresses { eni: first.clone(), want: want.clone(), allow_reassignment: false };
        model.call(assign, now).result.unwrap();
        let place = Some((instance, 0, 1));
        let eni =
            SceneEni { subnet, private_ip: None, want, want_ipv6: Default::default(), place, tags: Default::default() };
        let second = model.add_eni(&eni).unwrap();
        let of = |id: &EniId| &model.state().enis[id];
        let all = |id: &EniId| of(id).secondaries.iter().copied().collect::<Vec<_>>();
        let (primaries, secondaries) = ([of(&first).primary, of(&second).primary], [all(&first), all(&second)]);
        ([first, second], primaries, secondaries)
    };
    world.edit(edit).await
}

/// What a CNI sets up on a node before any pod: reference/vpc-cni.md 4.5, 4.6 and 4.10.
async fn set_up_node(host: &Host, eth1: &IfName, primaries: [Ipv4Addr; 2]) {
    let vpc: Ipv4Net = "10.0.0.0/16".parse().unwrap();
    let router: IpAddr = Ipv4Addr::new(10, 0, 1, 1).into();
    let table = route_table(0, 1).unwrap();
    let everything = Mark { value: CONNMARK, mask: CONNMARK };
    let desired = Desired {
        links: vec![LinkSettings { dev: eth1.clone(), up: Some(true), mtu: Some(MTU) }],
        addresses: vec![
            Address::new(eth1.clone(), Ipv4Net::new(primaries[1], 24).unwrap().into()).without_prefix_route(),
        ],
        routes: vec![
            Route::on_link(table, host_prefix(router), eth1.clone()),
            Route::default_via(table, router, eth1.clone()),
        ],
        rules: vec![
            Rule::mark(Family::V4, RULE_PRIMARY_ENI_MARK, everything, TABLE_MAIN),
            Rule::from(RULE_FROM_ENI, net(primaries[1]), table),
        ],
        sysctls: vec![Sysctl::new(SysctlKey::of_interface(Family::V4, &dev("eth0"), "rp_filter").unwrap(), 2)],
        nft: vec![host.ruleset(NftTableId::new(NftFamily::Ip, "by-hand"), nat(vpc, primaries[0])).await.unwrap()],
        ..Desired::default()
    };
    host.reconcile(&desired).await.unwrap();
}

/// What a CNI's ADD does: reference/vpc-cni.md 4.2 and 4.3.
async fn add_pod(node: &Node, host: &Host, name: &str, address: Ipv4Addr, device: u32) -> Pod {
    let sandbox = node.sandbox("default", name).await.unwrap();
    let thread = node.pod(&sandbox.netns).await.unwrap();
    let pod = Host::of(thread.net().clone()).unwrap();
    let reference = PodRef { namespace: "default".into(), name: name.into(), uid: None };
    let (eth0, veth) = (dev("eth0"), host_veth(VETH_PREFIX, &reference, 0).unwrap());
    let spec = VethSpec {
        name: &eth0,
        mac: None,
        up: true,
        peer_name: &veth,
        peer_mac: None,
        peer_namespace: Some(host.namespace()),
        mtu: MTU,
    };
    pod.netlink().create_veth(&spec).await.unwrap();
    let outer = host.netlink().link_by_name(&veth).await.unwrap().unwrap();
    host.netlink().set_link(outer.index, Some(true), None).await.unwrap();
    let gateway = IpAddr::V4(pod_gateway_v4(0));
    let inside = Desired {
        addresses: vec![Address::new(eth0.clone(), net(address))],
        routes: vec![
            Route::on_link(TABLE_MAIN, host_prefix(gateway), eth0.clone()),
            Route::default_via(TABLE_MAIN, gateway, eth0.clone()),
        ],
        neighbours: vec![Neighbour::permanent(eth0, gateway, outer.mac.unwrap())],
        ..Desired::default()
    };
    pod.reconcile(&inside).await.unwrap();
    let mut rules = vec![Rule::to(RULE_TO_POD, net(address), TABLE_MAIN)];
    if device > 0 {
        rules.push(Rule::from(RULE_FROM_POD, net(address), route_table(0, device).unwrap()));
    }
    let outside = Desired { routes: vec![Route::on_link(TABLE_MAIN, net(address), veth)], rules, ..Desired::default() };
    host.reconcile(&outside).await.unwrap();
    let serve = SocketAddrV4::new(address, PORT);
    thread.run(move || probe::serve_in_background(serve)).await.unwrap().unwrap();
    Pod { name: name.into(), node: node.name().into(), address, device, thread }
}

impl Cluster {
    /// Two pods on each ENI of each node.
    async fn up() -> Self {
        let began = Instant::now();
        let world = World::up(&SCENE.parse().unwrap()).await.unwrap();
        println!("world up after {:?}", began.elapsed());
        let (mut pods, mut all_enis, mut hosts) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for (name, node) in world.nodes() {
            let (enis, primaries, secondaries) = enis(&world, name).await;
            let eth1 = dev(&world.link_of(&enis[1]).await.unwrap());
            let host = Host::of(node.net().clone()).unwrap();
            set_up_node(&host, &eth1, primaries).await;
            for (device, addresses) in (0..).zip(secondaries) {
                for (n, address) in addresses.into_iter().enumerate() {
                    let pod = format!("{name}-{device}-{n}");
                    pods.push(add_pod(node, &host, &pod, address, device).await);
                }
            }
            all_enis.insert(name.clone(), enis);
            hosts.insert(name.clone(), host);
        }
        println!("pods up after {:?}", began.elapsed());
        Self { world, pods, enis: all_enis, hosts }
    }

    /// Every pair of pods by ICMP at full size and by TCP with the address seen; every node to its pods; every pod to
    /// the Internet, by TCP and UDP. Returns the cells that are not as they must be.
    async fn matrix(&self, limit: Duration) -> BTreeSet<String> {
        let mut cells = tokio::task::JoinSet::new();
        for from in &self.pods {
            for to in self.pods.iter().filter(|to| to.address != from.address) {
                let cell = format!("{} -> {}", from.name, to.name);
                let (thread, source, target) = (Arc::clone(&from.thread), from.address, to.address);
                cells.spawn(async move {
                    let probe = move || async move {
                        let tcp = probe::tcp(None, SocketAddrV4::new(target, PORT), limit).await;
                        tcp.is_ok_and(|seen| *seen.ip() == source)
                            && probe::ping(None, target, 9001 - 28, limit).await.is_ok()
                    };
                    (cell, thread.run(probe).await.unwrap())
                });
            }
            let public = self.public_address(&from.node);
            let (cell, thread) = (format!("{} -> Internet", from.name), Arc::clone(&from.thread));
            cells.spawn(async move {
                let host = SocketAddrV4::new(INTERNET, probe::ECHO_PORT);
                let probe = move || async move {
                    let tcp = probe::tcp(None, host, limit).await;
                    let udp = probe::udp(None, host, limit).await;
                    [tcp, udp].into_iter().all(|seen| seen.is_ok_and(|seen| *seen.ip() == public))
                };
                (cell, thread.run(probe).await.unwrap())
            });
            for (name, node) in self.world.nodes() {
                let (cell, node, target) = (format!("{name} -> {}", from.name), Arc::clone(node), from.address);
                cells.spawn(async move {
                    let probe = move || probe::tcp(None, SocketAddrV4::new(target, PORT), limit);
                    (cell, node.run_async(probe).await.unwrap().is_ok())
                });
            }
        }
        let mut wrong = BTreeSet::new();
        while let Some(cell) = cells.join_next().await {
            let (cell, right) = cell.unwrap();
            if !right {
                wrong.insert(cell);
            }
        }
        wrong
    }

    fn public_address(&self, node: &str) -> Ipv4Addr {
        let primary = &self.enis[node][0];
        self.world.look(|model, _| model.state().enis[primary].association.unwrap().public_ip)
    }
}

#[tokio::test]
async fn every_pod_reaches_every_pod_and_the_internet() {
    if !privileged() {
        return;
    }
    let cluster = Cluster::up().await;
    let began = Instant::now();
    assert_eq!(cluster.matrix(LIMIT).await, BTreeSet::new());
    println!("matrix after {:?}", began.elapsed());
    assert_eq!(cluster.world.dropped().await.unwrap(), []);
}

#[tokio::test]
async fn without_the_rule_of_a_pod_on_a_secondary_eni_the_fabric_drops_what_it_sends() {
    if !privileged() {
        return;
    }
    let cluster = Cluster::up().await;
    let broken = cluster.pods.iter().find(|pod| pod.device == 1 && pod.node == "node-a").unwrap();
    let rule = Rule::from(RULE_FROM_POD, net(broken.address), route_table(0, 1).unwrap());
    let host = &cluster.hosts["node-a"];
    host.execute(&[Planned::new(Op::DeleteRule(rule.clone()), "to see it missed")]).await.unwrap();

    let wrong = cluster.matrix(SHORT).await;
    // What it sends to another node leaves by the primary ENI, which may not send from its address: first packets and
    // answers alike. Its own node and, by the mark, the Internet do not need the rule.
    let other_node = cluster.pods.iter().filter(|pod| pod.node == "node-b");
    let mut expected: BTreeSet<String> = other_node
        .flat_map(|pod| [format!("{} -> {}", broken.name, pod.name), format!("{} -> {}", pod.name, broken.name)])
        .collect();
    expected.insert(format!("node-b -> {}", broken.name));
    assert_eq!(wrong, expected);
    let dropped = cluster.world.dropped().await.unwrap();
    let is_ours = |drop: &Dropped| drop.eni == cluster.enis["node-a"][0] && drop.source == broken.address;
    assert!(!dropped.is_empty() && dropped.iter().all(is_ours), "{dropped:?}");

    host.execute(&[Planned::new(Op::AddRule(rule), "to see it work again")]).await.unwrap();
    assert_eq!(cluster.matrix(LIMIT).await, BTreeSet::new());
}
