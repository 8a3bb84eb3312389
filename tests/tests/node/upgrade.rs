//! ipamd is killed and replaced while packets go on every path: none is lost, no connection breaks, and nothing of the node's network
//! is touched. With `--all` each path has a thousand datagrams a second.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sluice_hostnet::netns::{NamespaceThread, ThreadSpec};
use sluice_hostnet::nft::draft;
use sluice_hostnet::state::{NftFamily, NftTableId};
use sluice_hostnet::watch::{NftEvent, NftWatch, Watch, Watched};
use sluice_policy_core::cluster::{
    Cluster, EndpointSlice, Event, Labels, NamedPort, Object, ObjectKey, Service, ServicePort,
};
use sluice_policy_core::flow::Protocol;
use sluice_tests::bed::{Bed, INTERNET, LIMIT, PEERED, add_pods, scene_with_peer};
use sluice_tests::privileged::{everything, privileged};
use sluice_tests::service_proxy::{Backend, Extra, Proxy};
use sluice_vpcsim::deployment::{Deployment, Pod};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// Where servers give back what they get, by TCP and UDP.
pub(super) const PORT: u16 = 7777;
/// Between two questions on a stream, and two datagrams unless a test wants another pace.
const EVERY: Duration = Duration::from_millis(10);
/// Between two datagrams of a path in CI: over a thousand a second on all of them together.
const ALL_TOGETHER: Duration = Duration::from_millis(20);
/// And with `--all`: a thousand a second on each. Two processors carry them on so many paths at a time.
const EACH: Duration = Duration::from_millis(1);
const PATHS_AT_ONCE: usize = 8;
/// Datagrams of a path that may be out. A receiver's queue has room for some 250 (`rmem_default`, and what the kernel counts for a small
/// one); what a full queue drops on a busy machine the network has not lost, so the next one waits.
const OUT: usize = 32;
/// How late an answer may be before it counts as lost.
const LATE: Duration = Duration::from_secs(5);
/// How often ipamd is killed.
const KILLS: usize = 3;
/// What goes by between two kills: a daemon compares everything in it.
const BETWEEN: Duration = Duration::from_secs(2);

/// Gives back what comes.
pub(super) async fn serve(address: SocketAddr) -> io::Result<()> {
    let tcp = TcpListener::bind(address).await?;
    let udp = UdpSocket::bind(address).await?;
    drop(tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            drop(tokio::task::spawn_local(async move {
                let (mut from, mut to) = stream.split();
                let _ended = tokio::io::copy(&mut from, &mut to).await;
            }));
        }
    }));
    drop(tokio::task::spawn_local(async move {
        let mut datagram = [0; 16];
        while let Ok((length, peer)) = udp.recv_from(&mut datagram).await {
            if let Err(error) = udp.send_to(&datagram[..length], peer).await {
                println!("{peer} gets no answer: {error}");
            }
        }
    }));
    Ok(())
}

/// What one path has come to.
#[derive(Debug, Default)]
struct Path {
    name: String,
    every: Duration,
    end: Arc<AtomicBool>,
    asked: AtomicU64,
    /// Which datagrams have no answer yet, and when each went.
    open: Mutex<BTreeMap<u64, Instant>>,
    streamed: AtomicU64,
}

impl Path {
    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream on which each question waits for its answer, until the end.
async fn stream(path: &Path, to: SocketAddr) -> Result<(), String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("{}: {what}: {error}", path.name);
    let mut stream = TcpStream::connect(to).await.map_err(|error| failed("no connection", &error))?;
    stream.set_nodelay(true).map_err(|error| failed("no option", &error))?;
    let mut ticks = interval(path.every.max(EVERY));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut number = 0_u64;
    while !path.end.load(Ordering::Relaxed) {
        ticks.tick().await;
        number += 1;
        stream.write_u64(number).await.map_err(|error| failed("the stream broke", &error))?;
        let answer = timeout(LATE, stream.read_u64()).await.map_err(|late| failed("the stream hangs", &late))?;
        let answer = answer.map_err(|error| failed("the stream broke", &error))?;
        if answer != number {
            return Err(failed("another answer", &answer));
        }
        path.streamed.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Datagrams at an even pace, as long as not too many are out, until the end; then as long as answers are still out.
async fn datagrams(path: &Path, to: SocketAddr) -> Result<(), String> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let failed = |error: io::Error| format!("{}: {error}", path.name);
    let socket = UdpSocket::bind((any, 0)).await.map_err(failed)?;
    socket.connect(to).await.map_err(failed)?;
    let mut ticks = interval(path.every);
    let mut datagram = [0; 16];
    let mut stopped = None;
    let out = || path.open().len();
    loop {
        tokio::select! {
            _ = ticks.tick(), if stopped.is_none() => {
                if path.end.load(Ordering::Relaxed) {
                    stopped = Some(Instant::now());
                } else if out() < OUT {
                    let number = path.asked.fetch_add(1, Ordering::Relaxed);
                    path.open().insert(number, Instant::now());
                    socket.send(&number.to_be_bytes()).await.map_err(failed)?;
                }
            }
            received = socket.recv(&mut datagram) => {
                received.map_err(failed)?;
                let number = datagram.first_chunk().map(|number| u64::from_be_bytes(*number));
                if let Some(number) = number {
                    path.open().remove(&number);
                }
            }
            () = tokio::time::sleep(LATE), if stopped.is_some() => return Ok(()),
        }
        if stopped.is_some_and(|since| out() == 0 || since.elapsed() > LATE) {
            return Ok(());
        }
    }
}

type Running = JoinHandle<Result<(), String>>;

/// Both kinds of questions on any number of paths, until the end.
#[derive(Debug)]
pub(super) struct Load {
    every: Duration,
    end: Arc<AtomicBool>,
    running: Vec<(Arc<Path>, [Running; 2])>,
}

impl Default for Load {
    fn default() -> Self {
        Self::every(EVERY)
    }
}

impl Load {
    /// A datagram of each path so often.
    fn every(every: Duration) -> Self {
        Self { every, end: Arc::default(), running: Vec::new() }
    }

    /// Starts both kinds on a path.
    pub(super) async fn start(&mut self, thread: &NamespaceThread, name: String, to: SocketAddr) {
        let path = Arc::new(Path { name, every: self.every, end: Arc::clone(&self.end), ..Path::default() });
        let (one, other) = (Arc::clone(&path), Arc::clone(&path));
        let begin = move || async move {
            [
                tokio::task::spawn_local(async move { stream(&one, to).await }),
                tokio::task::spawn_local(async move { datagrams(&other, to).await }),
            ]
        };
        self.running.push((path, thread.run(begin).await.unwrap()));
    }

    /// Waits until as many datagrams as go by in two seconds have been sent.
    pub(super) async fn goes_on(&self) {
        let path = &self.running[0].0;
        let asked = || path.asked.load(Ordering::Relaxed);
        let until = asked() + u64::try_from(BETWEEN.as_millis() / self.every.as_millis()).unwrap();
        let begun = Instant::now();
        while asked() < until {
            assert!(begun.elapsed() < LIMIT, "{}: {OUT} datagrams have no answer", path.name);
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Ends all questions, of which each has its answer.
    pub(super) async fn end(self) {
        self.end.store(true, Ordering::Relaxed);
        let (mut questions, mut streamed, paths) = (0, 0, self.running.len());
        for (path, tasks) in self.running {
            for task in tasks {
                task.await.unwrap().unwrap();
            }
            let (asked, now) = (path.asked.load(Ordering::Relaxed), Instant::now());
            let open = path.open();
            let lost: Vec<String> =
                open.iter().map(|(number, sent)| format!("{number} ({:?} ago)", now - *sent)).collect();
            assert!(lost.is_empty(), "{}: of {asked} datagrams were lost: {}", path.name, lost.join(", "));
            drop(open);
            assert!(asked > 0 && path.streamed.load(Ordering::Relaxed) > 0, "{path:?}");
            questions += asked;
            streamed += path.streamed.load(Ordering::Relaxed);
        }
        println!("{paths} paths: {questions} datagrams and {streamed} questions on streams, none lost");
    }
}

/// Kills ipamd and starts it again, some times, while the load goes on.
pub(super) async fn replace_ipamd(node: &Deployment, load: &Load) {
    for _ in 0..KILLS {
        node.kill_ipamd().await;
        node.start_ipamd().await.unwrap();
        node.ready(LIMIT).await.unwrap();
        load.goes_on().await;
    }
}

/// Service number `number`, with a pod behind it, by TCP and UDP: its ClusterIPs, and its node port.
fn service((cluster, extra): &mut (Cluster, Extra), number: u8, pod: &Pod, local: bool) -> ([IpAddr; 2], u16) {
    let key = ObjectKey { namespace: "x".into(), name: format!("s{number}").into() };
    let addresses = [
        Ipv4Addr::new(172, 20, 0, number).into(),
        Ipv6Addr::from([0xfd00, 0x20, 0, 0, 0, 0, 0, u16::from(number)]).into(),
    ];
    let node_port = 30_000 + u16::from(number);
    let protocols = [("tcp", Protocol::TCP), ("udp", Protocol::UDP)];
    let port = |(name, protocol): (&str, _)| ServicePort {
        name: name.into(),
        protocol,
        port: PORT,
        node_port: Some(node_port),
    };
    let target = |(name, protocol): (&str, _)| NamedPort { name: name.into(), protocol, port: PORT };
    cluster.apply(Event::Upsert(Object::Service(Service {
        key: key.clone(),
        labels: Labels::default(),
        addresses: addresses.to_vec().into(),
        ports: protocols.map(port).into(),
        selector: None,
    })));
    cluster.apply(Event::Upsert(Object::EndpointSlice(EndpointSlice {
        service: Some(Arc::clone(&key.name)),
        key: key.clone(),
        ports: Vec::from(protocols.map(target)).into(),
        ready: both(pod).into_iter().collect(),
    })));
    if local {
        extra.local.insert(key);
    }
    (addresses, node_port)
}

/// A pod's addresses.
fn both(pod: &Pod) -> [IpAddr; 2] {
    [pod.address.into(), pod.ipv6.unwrap().into()]
}

/// A path: who asks, its name, and who is asked.
type Way = (Arc<NamespaceThread>, String, SocketAddr);

/// A node, its pods on the primary ENI and those on the second one. The first of each serves.
type Side<'a> = (&'a str, &'a Deployment, Vec<Pod>, Vec<Pod>);

const ENIS: [&str; 2] = ["primary", "second"];

async fn sides<'a>(bed: &Bed, nodes: [(&'a str, &'a Deployment); 2]) -> [Side<'a>; 2] {
    let mut sides = Vec::new();
    for (name, node) in nodes {
        let pods = add_pods(node, "default", "p", 11).await.unwrap();
        let (primary, second): (Vec<_>, Vec<_>) =
            pods.into_iter().partition(|pod| bed.device_of(pod.address) == Some(0));
        for pod in [&primary[0], &second[0]] {
            let thread = node.node().pod(&pod.sandbox.netns).await.unwrap();
            for address in both(pod) {
                thread.run(move || serve((address, PORT).into())).await.unwrap().unwrap();
            }
        }
        sides.push((name, node, primary, second));
    }
    sides.try_into().unwrap_or_else(|_| panic!("two sides"))
}

/// All paths of docs/packet-paths.md that `here` is on, beside a service proxy, which is set up here: pods, ClusterIPs, node ports, the
/// Internet, an excluded network; from pods, from the Internet and from a peered VPC.
async fn ways(bed: &Bed, [here, there]: &[Side<'_>; 2]) -> Vec<Way> {
    let machine = bed.world.instance("peer").unwrap();
    let own = bed.world.instance("node-a").unwrap();
    let [peer, node]: [[IpAddr; 2]; 2] = bed.world.look(|model, _| {
        [machine, own].map(|id| {
            let eni = model.state().attached(id).into_iter().next().unwrap();
            [eni.primary.into(), eni.ipv6.first().copied().unwrap().into()]
        })
    });
    let (_, public) = bed.addresses_of("node-a").unwrap();
    let internet = bed.world.internet().await;
    internet.run(move || serve((INTERNET, PORT).into())).await.unwrap().unwrap();
    let outside = ThreadSpec::in_net("peer", bed.world.node("peer").unwrap().net().clone());
    let outside = Arc::new(NamespaceThread::spawn(outside).unwrap());
    for address in peer {
        outside.run(move || serve((address, PORT).into())).await.unwrap().unwrap();
    }

    let (_, deployment, primary, second) = here;
    let (_, _, _, far) = there;
    let mut services = (Cluster::default(), Extra::default());
    services.1.here.extend([&primary[0], &second[0]].into_iter().flat_map(both));
    let (near_ips, near_port) = service(&mut services, 1, &second[0], false);
    let (_, local_port) = service(&mut services, 2, &second[0], true);
    let (far_ips, far_port) = service(&mut services, 3, &far[0], false);
    let proxy = Proxy::new(deployment.node().net().clone(), Backend::Nftables);
    let apply = move || proxy.apply(&services.0, &services.1);
    tokio::task::spawn_blocking(apply).await.unwrap().unwrap();

    let mut targets: Vec<(String, IpAddr, u16)> = vec![("the Internet".into(), INTERNET.into(), PORT)];
    for (name, _, primary, second) in [here, there] {
        for (pod, eni) in [&primary[0], &second[0]].into_iter().zip(ENIS) {
            targets.extend(both(pod).map(|address| (format!("{eni} ENI, {name}"), address, PORT)));
        }
    }
    targets.extend(near_ips.map(|address| ("ClusterIP, same node".into(), address, PORT)));
    targets.extend(far_ips.map(|address| ("ClusterIP, other node".into(), address, PORT)));
    targets.extend(node.map(|address| ("node port of the own node, other node".into(), address, far_port)));
    targets.extend(peer.map(|address| ("an excluded network".into(), address, PORT)));
    let mut ways = Vec::new();
    for (pod, eni) in [&primary[1], &second[1]].into_iter().zip(ENIS) {
        let thread = deployment.node().pod(&pod.sandbox.netns).await.unwrap();
        for (name, address, port) in &targets {
            let name = format!("{eni} ENI to {name}, {address}");
            ways.push((Arc::clone(&thread), name, SocketAddr::new(*address, *port)));
        }
    }
    for (name, port) in [("Cluster", near_port), ("Local", local_port)] {
        ways.push((Arc::clone(&internet), format!("the Internet to a node port, {name}"), (public, port).into()));
    }
    for (pod, eni) in [&primary[0], &second[0]].into_iter().zip(ENIS) {
        for address in both(pod) {
            ways.push((Arc::clone(&outside), format!("a peered VPC to {eni} ENI, {address}"), (address, PORT).into()));
        }
    }
    ways
}

/// Issue F, 2.
#[tokio::test(flavor = "multi_thread")]
async fn ipamd_is_killed_and_replaced_under_load_and_no_packet_is_lost() {
    if !privileged() {
        return;
    }
    let settings = [("ENABLE_IPv6", "true"), ("MAX_ENI", "2"), ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", PEERED)];
    let bed = Bed::up_on(&scene_with_peer(0.1), |name| name != "peer", &settings).await.unwrap();
    bed.booted().await.unwrap();
    let here = bed.node("node-a").unwrap();
    let sides = sides(&bed, [("same node", here), ("other node", bed.node("node-b").unwrap())]).await;
    let ways = ways(&bed, &sides).await;
    let (every, at_once) = if everything() { (EACH, PATHS_AT_ONCE) } else { (ALL_TOGETHER, ways.len()) };

    let mut watch = Watch::open(here.node().net(), Watched::ALL).await.unwrap();
    let mut nft = NftWatch::open(here.node().net()).unwrap();
    // A new ipamd learns by a draft of its table what that has to hold; no packet comes on a draft.
    let drafts = [NftFamily::Ip, NftFamily::Ip6].map(|family| draft(&NftTableId::new(family, "sluice")));
    for some in ways.chunks(at_once) {
        let mut load = Load::every(every);
        for (thread, name, to) in some {
            load.start(thread, name.clone(), *to).await;
        }
        replace_ipamd(here, &load).await;
        load.end().await;
        // Each time: more than some starts tell the kernel does not keep.
        while let Ok(event) = timeout(Duration::from_millis(1), nft.next()).await {
            let event = event.unwrap();
            assert!(matches!(&event, NftEvent::Table(table) if drafts.contains(table)), "{event:?}");
        }
    }
    assert_eq!(watch.settle().await, [], "nothing of the node's network was touched");
}
