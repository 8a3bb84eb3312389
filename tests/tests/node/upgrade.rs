//! ipamd is killed and replaced while packets go on every path: none is lost, no connection breaks, and nothing of the node's network
//! is touched.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sluice_hostnet::netns::NamespaceThread;
use sluice_hostnet::nft::draft;
use sluice_hostnet::state::{NftFamily, NftTableId};
use sluice_hostnet::watch::{NftEvent, NftWatch, Watch, Watched};
use sluice_tests::bed::{Bed, INTERNET, LIMIT, add_pods, scene_with_ipv6};
use sluice_tests::privileged::privileged;
use sluice_vpcsim::deployment::Deployment;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// Where servers give back what they get, by TCP and UDP.
pub(super) const PORT: u16 = 7777;
/// Between two questions of a path: over a thousand a second on all of them.
const EVERY: Duration = Duration::from_millis(10);
/// How late an answer may be before it counts as lost.
const LATE: Duration = Duration::from_secs(5);
/// How often ipamd is killed.
const KILLS: usize = 3;
/// Questions of one path that go by between two kills: two seconds, in which a daemon compares everything.
const BETWEEN: u64 = 200;

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
            let _lost = udp.send_to(&datagram[..length], peer).await;
        }
    }));
    Ok(())
}

/// What one path has come to.
#[derive(Debug, Default)]
struct Path {
    name: String,
    end: Arc<AtomicBool>,
    asked: AtomicU64,
    answered: AtomicU64,
    streamed: AtomicU64,
}

/// A stream on which each question waits for its answer, until the end.
async fn stream(path: &Path, to: SocketAddr) -> Result<(), String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("{}: {what}: {error}", path.name);
    let mut stream = TcpStream::connect(to).await.map_err(|error| failed("no connection", &error))?;
    stream.set_nodelay(true).map_err(|error| failed("no option", &error))?;
    let mut ticks = interval(EVERY);
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

/// Datagrams at an even pace, until the end; then as long as answers are still out.
async fn datagrams(path: &Path, to: SocketAddr) -> Result<(), String> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let failed = |error: io::Error| format!("{}: {error}", path.name);
    let socket = UdpSocket::bind((any, 0)).await.map_err(failed)?;
    socket.connect(to).await.map_err(failed)?;
    let mut ticks = interval(EVERY);
    let mut datagram = [0; 16];
    let mut stopped = None;
    loop {
        tokio::select! {
            _ = ticks.tick(), if stopped.is_none() => {
                if path.end.load(Ordering::Relaxed) {
                    stopped = Some(Instant::now());
                    continue;
                }
                let number = path.asked.fetch_add(1, Ordering::Relaxed);
                socket.send(&number.to_be_bytes()).await.map_err(failed)?;
            }
            received = socket.recv(&mut datagram) => {
                received.map_err(failed)?;
                path.answered.fetch_add(1, Ordering::Relaxed);
            }
            () = tokio::time::sleep(LATE), if stopped.is_some() => return Ok(()),
        }
        let out = path.asked.load(Ordering::Relaxed) - path.answered.load(Ordering::Relaxed);
        if stopped.is_some_and(|since| out == 0 || since.elapsed() > LATE) {
            return Ok(());
        }
    }
}

type Running = JoinHandle<Result<(), String>>;

/// Both kinds of questions on any number of paths, until the end.
#[derive(Debug, Default)]
pub(super) struct Load {
    end: Arc<AtomicBool>,
    running: Vec<(Arc<Path>, [Running; 2])>,
}

impl Load {
    /// Starts both kinds on a path.
    pub(super) async fn start(&mut self, thread: &NamespaceThread, name: String, to: SocketAddr) {
        let path = Arc::new(Path { name, end: Arc::clone(&self.end), ..Path::default() });
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
        let asked = || self.running[0].0.asked.load(Ordering::Relaxed);
        let until = asked() + BETWEEN;
        while asked() < until {
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Ends all questions, of which each has its answer.
    pub(super) async fn end(self) {
        self.end.store(true, Ordering::Relaxed);
        let (mut questions, mut streamed) = (0, 0);
        for (path, tasks) in self.running {
            for task in tasks {
                task.await.unwrap().unwrap();
            }
            let (asked, answered) = (path.asked.load(Ordering::Relaxed), path.answered.load(Ordering::Relaxed));
            assert_eq!(asked, answered, "{}: datagrams were lost", path.name);
            assert!(asked > 0 && path.streamed.load(Ordering::Relaxed) > 0, "{path:?}");
            questions += asked;
            streamed += path.streamed.load(Ordering::Relaxed);
        }
        println!("{questions} datagrams and {streamed} questions on streams, none lost");
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

/// Issue F, 2.
#[tokio::test(flavor = "multi_thread")]
async fn ipamd_is_killed_and_replaced_under_load_and_no_packet_is_lost() {
    if !privileged() {
        return;
    }
    let bed = Bed::up(&scene_with_ipv6(0.1), &[("ENABLE_IPv6", "true"), ("MAX_ENI", "2")]).await.unwrap();
    bed.booted().await.unwrap();
    let (here, there) = (bed.node("node-a").unwrap(), bed.node("node-b").unwrap());
    let mut servers = Vec::new();
    for (node, name) in [(here, "same node"), (there, "other node")] {
        let pods = add_pods(node, "default", "p", 10).await.unwrap();
        let (primary, second): (Vec<_>, Vec<_>) =
            pods.into_iter().partition(|pod| bed.device_of(pod.address) == Some(0));
        servers.push((name, node, primary, second));
    }
    let mut targets: Vec<(String, SocketAddr)> = vec![("the Internet".into(), (INTERNET, PORT).into())];
    let internet = bed.world.internet().await;
    internet.run(move || serve((INTERNET, PORT).into())).await.unwrap().unwrap();
    for (name, node, primary, second) in &servers {
        // The first of each ENI serves, the last ones ask.
        for (pod, eni) in [(&primary[0], "primary"), (&second[0], "second")] {
            let thread = node.node().pod(&pod.sandbox.netns).await.unwrap();
            for address in [IpAddr::V4(pod.address), pod.ipv6.unwrap().into()] {
                let to = SocketAddr::new(address, PORT);
                thread.run(move || serve(to)).await.unwrap().unwrap();
                targets.push((format!("{eni} ENI, {name}, {}", if to.is_ipv4() { "IPv4" } else { "IPv6" }), to));
            }
        }
    }
    let (_, _, primary, second) = &servers[0];
    let mut load = Load::default();
    for (pod, eni) in [(&primary[1], "primary"), (&second[0], "second")] {
        let thread = here.node().pod(&pod.sandbox.netns).await.unwrap();
        for (name, to) in &targets {
            let own = [IpAddr::V4(pod.address), pod.ipv6.unwrap().into()].contains(&to.ip());
            if !own {
                load.start(&thread, format!("{eni} ENI to {name}"), *to).await;
            }
        }
    }

    let mut watch = Watch::open(here.node().net(), Watched::ALL).await.unwrap();
    let mut nft = NftWatch::open(here.node().net()).unwrap();
    replace_ipamd(here, &load).await;
    load.end().await;
    assert_eq!(watch.settle().await, [], "nothing of the node's network was touched");
    // A new ipamd learns by a draft of its table what that has to hold; no packet comes on a draft.
    let drafts = [NftFamily::Ip, NftFamily::Ip6].map(|family| draft(&NftTableId::new(family, "sluice")));
    while let Ok(event) = timeout(Duration::from_millis(1), nft.next()).await {
        let event = event.unwrap();
        assert!(matches!(&event, NftEvent::Table(table) if drafts.contains(table)), "{event:?}");
    }
}
