//! Every path that a packet takes on a node, beside a service proxy of each kind: whether it arrives, whom the far side sees,
//! and which ENI has carried it, as the VPC's router counts it.

mod cell;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use sluice_hostnet::netns::NamespaceThread;
use sluice_ipamd_core::ipv6::companion;
use sluice_policy_core::cluster::{
    Cluster, EndpointSlice, Event, Labels, NamedPort, Object, ObjectKey, Service, ServicePort,
};
use sluice_policy_core::flow::Protocol;
use sluice_policy_core::vector::schema::Family;
use sluice_tests::bed::{Bed, LIMIT, PEERED, add_pods, scene_with_peer, serve};
use sluice_tests::live::eni::{self, Eni};
use sluice_tests::privileged::{everything, privileged};
use sluice_tests::service_proxy::{Backend, Extra, Proxy};
use sluice_vpcsim::deployment::Pod;
use sluice_vpcsim::probe::{self, ECHO_PORT};
use sluice_vpcsim::world::World;

use cell::{Addresses, Cell, Node, Place, Sent, Way, all, slice};

/// The Internet's host in both families.
const INTERNET: [&str; 2] = ["198.51.100.10", "2001:db8:51::10"];
/// Pods on each node that take the first ENI's addresses and two of the second's.
const PODS: usize = 11;

const NODES: [(Node, &str); 2] = [(Node::A, "node-a"), (Node::B, "node-b")];

fn name(node: Node) -> &'static str {
    NODES[node as usize].1
}

fn of(family: Family, v4: Ipv4Addr, v6: Option<std::net::Ipv6Addr>) -> IpAddr {
    match family {
        Family::V4 => v4.into(),
        Family::V6 => v6.expect("an IPv6 address").into(),
    }
}

/// An instance's address in both families.
type Both = [IpAddr; 2];

/// Two pods on each ENI of each node, the first of which are the servers; the threads from which is called; and who is where.
struct Ground {
    bed: Bed,
    servers: BTreeMap<(Node, Eni), Pod>,
    clients: BTreeMap<Eni, Pod>,
    callers: BTreeMap<Eni, Arc<NamespaceThread>>,
    nodes: BTreeMap<Node, (Both, Ipv4Addr)>,
    /// The ENIs of the nodes: the router's end of each link, and its own addresses.
    ports: BTreeMap<String, (Node, Eni)>,
    owns: BTreeMap<(Node, Eni), Both>,
    peer: Both,
}

fn both(world: &World, machine: &str) -> Both {
    let id = world.instance(machine).unwrap();
    world.look(|model, _| {
        let eni = model.state().attached(id).into_iter().next().unwrap();
        [eni.primary.into(), eni.ipv6.first().copied().expect("an IPv6 address").into()]
    })
}

impl Ground {
    async fn new() -> Self {
        let settings = [("ENABLE_IPv6", "true"), ("MAX_ENI", "2"), ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", PEERED)];
        let bed = Bed::up_on(&scene_with_peer(0.1), |name| name != "peer", &settings).await.unwrap();
        bed.booted().await.unwrap();
        let (mut servers, mut clients, mut callers) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut nodes = BTreeMap::new();
        for (node, machine) in NODES {
            let deployment = bed.node(machine).unwrap();
            for pod in add_pods(deployment, "default", "p", PODS).await.unwrap() {
                let eni = if bed.device_of(pod.address) == Some(0) { Eni::Primary } else { Eni::Second };
                if let Entry::Vacant(first) = servers.entry((node, eni)) {
                    serve(deployment, &pod).await.unwrap();
                    first.insert(pod);
                } else if let (Node::A, Entry::Vacant(first)) = (node, clients.entry(eni)) {
                    callers.insert(eni, deployment.node().pod(&pod.sandbox.netns).await.unwrap());
                    first.insert(pod);
                }
            }
            let (_, public) = bed.addresses_of(machine).unwrap();
            nodes.insert(node, (both(&bed.world, machine), public));
        }
        let peer = both(&bed.world, "peer");
        for address in peer {
            let machine = bed.world.node("peer").unwrap();
            let to = SocketAddr::new(address, ECHO_PORT);
            machine.run_async(move || probe::serve_in_background(to)).await.unwrap().unwrap();
        }
        let (mut ports, mut owns) = (BTreeMap::new(), BTreeMap::new());
        for (node, machine) in NODES {
            let id = bed.world.instance(machine).unwrap();
            bed.world.look(|model, _| {
                for eni in model.state().attached(id) {
                    let Some(attachment) = &eni.attachment else { continue };
                    let kind = if attachment.device == 0 { Eni::Primary } else { Eni::Second };
                    ports.insert(World::port_of(&eni.id), (node, kind));
                    // The first of the others is the one whose pods are used; its own IPv6 address goes with its IPv4 address.
                    let own = || eni.ipv6_prefixes.first().map(|net| companion(*net, eni.primary)).expect("a prefix");
                    let v6 = eni.ipv6.first().copied().unwrap_or_else(own);
                    owns.entry((node, kind)).or_insert([eni.primary.into(), v6.into()]);
                }
            });
        }
        Self { bed, servers, clients, callers, nodes, ports, owns, peer }
    }

    /// Each server has two Services, with the policies Cluster and Local, and this node's pods.
    fn services(&self, node: Node) -> (Cluster, Extra) {
        let mut cluster = Cluster::default();
        let mut extra = Extra::default();
        for ((at, eni), pod) in &self.servers {
            let addresses = [IpAddr::V4(pod.address), of(Family::V6, pod.address, pod.ipv6)];
            if *at == node {
                extra.here.extend(addresses);
            }
            for local in [false, true] {
                let key = ObjectKey { namespace: "x".into(), name: format!("{at:?}-{eni:?}-{local}").into() };
                let port = node_port(*at, *eni, local);
                let http =
                    |port, node_port| ServicePort { name: "http".into(), protocol: Protocol::TCP, port, node_port };
                cluster.apply(Event::Upsert(Object::Service(Service {
                    key: key.clone(),
                    labels: Labels::default(),
                    addresses: [Family::V4, Family::V6]
                        .map(|family| cluster_ip(*at, *eni, local, family))
                        .to_vec()
                        .into(),
                    ports: [http(80, Some(port))].into(),
                    selector: None,
                })));
                cluster.apply(Event::Upsert(Object::EndpointSlice(EndpointSlice {
                    service: Some(Arc::clone(&key.name)),
                    key: key.clone(),
                    ports: vec![NamedPort { name: "http".into(), protocol: Protocol::TCP, port: ECHO_PORT }].into(),
                    ready: addresses.iter().copied().collect(),
                })));
                if local {
                    extra.local.insert(key);
                }
            }
        }
        (cluster, extra)
    }

    /// What is called.
    fn target(&self, cell: Cell) -> SocketAddr {
        let Cell { way, place, family, .. } = cell;
        let node = cell.servers_node();
        let node_port_of = |local| {
            let entry = cell.entry();
            let outside = place == Place::Outside;
            let address = if outside { self.public(entry, family) } else { self.node(entry, family) };
            SocketAddr::new(address, node_port(node, cell.server.unwrap(), local))
        };
        match way {
            Way::PodIp => SocketAddr::new(self.server(node, cell.server.unwrap(), family), ECHO_PORT),
            Way::ClusterIp | Way::Hairpin => SocketAddr::new(cluster_ip(node, cell.server.unwrap(), false, family), 80),
            Way::NodePort(_) => node_port_of(false),
            Way::NodePortLocal => node_port_of(true),
            Way::Internet => SocketAddr::new(self.internet(family), ECHO_PORT),
            Way::Excluded => SocketAddr::new(self.peer(family), ECHO_PORT),
        }
    }

    /// Calls, and answers whom the server has seen.
    async fn call(&self, cell: Cell) -> Result<IpAddr, String> {
        let to = self.target(cell);
        let asked = match (cell.client, cell.way) {
            (Some(eni), Way::Hairpin) => {
                let node = self.bed.node(name(Node::A)).unwrap().node();
                let inside = node.pod(&self.servers[&(Node::A, eni)].sandbox.netns).await.unwrap();
                inside.run(move || probe::seen_by(to, LIMIT)).await.map_err(|e| e.to_string())?
            }
            (Some(eni), _) => {
                self.callers[&eni].run(move || probe::seen_by(to, LIMIT)).await.map_err(|e| e.to_string())?
            }
            (None, Way::PodIp) => {
                let peer = self.bed.world.node("peer").unwrap();
                peer.run_async(move || probe::seen_by(to, LIMIT)).await.map_err(|e| e.to_string())?
            }
            (None, _) => {
                let internet = self.bed.world.internet().await;
                internet.run(move || probe::seen_by(to, LIMIT)).await.map_err(|e| e.to_string())?
            }
        };
        asked.map_err(|error| format!("{to}: {error}"))
    }

    /// What the nodes' ENIs have sent so far.
    async fn sent(&self) -> BTreeMap<Sent, u64> {
        let router = self.bed.world.router("main").await.unwrap();
        let ways = eni::counted(router.net()).await.unwrap();
        let known = |((link, from, to), packets): ((String, IpAddr, IpAddr), u64)| {
            let (node, eni) = self.ports.get(&link)?;
            Some(((*node, *eni, from, to), packets))
        };
        // Neighbours speak on their links, and the daemon asks EC2 and the metadata service.
        let routed = |(_, _, from, to): &Sent| match (from, to) {
            (IpAddr::V6(from), IpAddr::V6(to)) => !from.is_unicast_link_local() && !to.is_multicast(),
            (_, IpAddr::V4(to)) => !to.is_link_local(),
            _ => true,
        };
        ways.into_iter().filter_map(known).filter(|(sent, _)| routed(sent)).collect()
    }

    async fn ask(&self, cell: Cell) -> Result<(), String> {
        let expected = cell.expected(self);
        let before = self.sent().await;
        let seen = self.call(cell).await;
        let after = self.sent().await;
        let new = after.iter().filter(|(sent, packets)| before.get(*sent).is_none_or(|before| before < *packets));
        let sent: BTreeSet<Sent> = new.map(|(sent, _)| *sent).collect();
        if seen.as_ref().is_ok_and(|seen| expected.seen.contains(seen)) && sent == expected.sent {
            return Ok(());
        }
        let dropped = self.bed.world.dropped().await.unwrap();
        Err(format!("{seen:?} by {sent:?}, not {expected:?}; dropped: {dropped:?}"))
    }
}

fn number(node: Node, eni: Eni, local: bool) -> u8 {
    10 + 4 * u8::from(local) + 2 * (node as u8) + eni as u8
}

fn node_port(node: Node, eni: Eni, local: bool) -> u16 {
    30_000 + u16::from(number(node, eni, local))
}

fn cluster_ip(node: Node, eni: Eni, local: bool, family: Family) -> IpAddr {
    let number = number(node, eni, local);
    of(family, Ipv4Addr::new(172, 20, 0, number), Some([0xfd00, 0x20, 0, 0, 0, 0, 0, u16::from(number)].into()))
}

impl Addresses for Ground {
    fn client(&self, eni: Eni, family: Family) -> IpAddr {
        let pod = &self.clients[&eni];
        of(family, pod.address, pod.ipv6)
    }

    fn server(&self, node: Node, eni: Eni, family: Family) -> IpAddr {
        let pod = &self.servers[&(node, eni)];
        of(family, pod.address, pod.ipv6)
    }

    fn node(&self, node: Node, family: Family) -> IpAddr {
        self.nodes[&node].0[usize::from(family == Family::V6)]
    }

    fn eni(&self, node: Node, eni: Eni, family: Family) -> IpAddr {
        self.owns[&(node, eni)][usize::from(family == Family::V6)]
    }

    fn public(&self, node: Node, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.nodes[&node].1.into(),
            Family::V6 => self.node(node, family),
        }
    }

    fn internet(&self, family: Family) -> IpAddr {
        INTERNET[usize::from(family == Family::V6)].parse().unwrap()
    }

    fn peer(&self, family: Family) -> IpAddr {
        self.peer[usize::from(family == Family::V6)]
    }
}

/// Issue F, 1.
#[tokio::test(flavor = "multi_thread")]
async fn every_path_arrives_by_the_right_eni_and_in_the_right_name() {
    if !privileged() {
        return;
    }
    let cells = all();
    let cells = if everything() { cells } else { slice(&cells) };
    let ground = Ground::new().await;
    let router = ground.bed.world.router("main").await.unwrap();
    eni::count(router.net()).await.unwrap();
    let mut wrong = Vec::new();
    for backend in Backend::ALL {
        let mut proxies = Vec::new();
        for (node, _) in NODES {
            let net = ground.bed.node(name(node)).unwrap().node().net().clone();
            let proxy = Proxy::new(net, backend);
            let (cluster, extra) = ground.services(node);
            let applied = move || proxy.apply(&cluster, &extra).map(|()| proxy);
            proxies.push(tokio::task::spawn_blocking(applied).await.unwrap().unwrap());
        }
        for cell in cells.iter().filter(|cell| cell.backend == backend) {
            if let Err(why) = ground.ask(*cell).await {
                wrong.push(format!("{cell}: {why}"));
            }
        }
        for proxy in proxies {
            tokio::task::spawn_blocking(move || proxy.remove()).await.unwrap().unwrap();
        }
    }
    assert!(wrong.is_empty(), "{} of {} cells are wrong:\n{}", wrong.len(), cells.len(), wrong.join("\n"));
    println!("{} cells", cells.len());
}
