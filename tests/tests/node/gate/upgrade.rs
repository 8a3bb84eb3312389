//! The agent is replaced by another binary while packets flow: what passed goes on, and what did not does not begin to.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use sluice_contract::node::GATE_DIR;
use sluice_policy_core::model::Text;
use sluice_tests::live::stage::{APPLIED, Stage};
use sluice_tests::privileged::privileged;
use sluice_tests::prober::Station;
use sluice_vpcsim::policyd::Policyd;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::restart::{Traffic, station};
use super::{begun, client_only, client_then_other, options, stage, step, suite};

/// Where [`Traffic`] has its server.
const SERVER: &str = "10.1.0.3:81";
/// Between two datagrams of a flow.
const PACE: Duration = Duration::from_millis(2);
/// How long what must not come is waited for.
const QUIET: Duration = Duration::from_millis(500);
/// How long what is still on its way is waited for, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Octets that wait to be read: more than there are while the machine does something else for seconds.
const RECEIVED: usize = 8 << 20;
/// How long gates may take until they stand by links: ten seconds after they were made, with pauses.
const LINKED: Duration = Duration::from_secs(60);
/// A layout of the maps that this build does not know.
const OTHER_LAYOUT: &str = "/sys/fs/bpf/sluice/4000000000";

/// The agent's binary once more, elsewhere; gone with the test.
struct Copied(PathBuf);

impl Copied {
    fn of(binary: &Path) -> Self {
        let directory = std::env::temp_dir().join(format!("sluice-upgrade-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::copy(binary, directory.join("sluice-policyd")).unwrap();
        Self(directory)
    }

    fn binary(&self) -> PathBuf {
        self.0.join("sluice-policyd")
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let _stays = std::fs::remove_dir_all(&self.0);
    }
}

/// One flow of datagrams to the server, each of which it sends back, until it is told to end: how many went out, and how many came
/// back. All that `passes` is waited for at the end.
pub(super) fn datagrams(from: &Station, stop: &Arc<AtomicBool>, passes: bool) -> JoinHandle<(u64, u64)> {
    let address = from.address;
    let socket = from.net.run(move || std::net::UdpSocket::bind((address, 0))).unwrap().unwrap();
    socket.set_nonblocking(true).unwrap();
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVED).unwrap();
    let socket = UdpSocket::from_std(socket).unwrap();
    let (server, stop): (SocketAddr, _) = (SERVER.parse().unwrap(), Arc::clone(stop));
    tokio::spawn(async move {
        socket.connect(server).await.unwrap();
        let (mut sent, mut came, mut text) = (0_u64, 0_u64, [0; 64]);
        while !stop.load(Ordering::Relaxed) {
            sent += u64::from(socket.send(b"?").await.is_ok());
            let next = Instant::now() + PACE;
            while timeout_at(next, socket.recv(&mut text)).await.is_ok_and(|got| got.is_ok()) {
                came += 1;
            }
        }
        let end = Instant::now() + if passes { PATIENCE } else { QUIET };
        while came < sent && timeout_at(end, socket.recv(&mut text)).await.is_ok_and(|got| got.is_ok()) {
            came += 1;
        }
        (sent, came)
    })
}

/// All that is on its way: an open connection, new ones, pings and flows of datagrams; some that have to pass, some that must not.
struct Load {
    traffic: Traffic,
    stop: Arc<AtomicBool>,
    flows: [JoinHandle<(u64, u64)>; 2],
}

impl Load {
    async fn start(stage: &Stage<'_>) -> Self {
        let traffic = Traffic::start(stage).await;
        let stop = Arc::new(AtomicBool::new(false));
        let of = |pod, address, passes| datagrams(&station(stage, pod, address), &stop, passes);
        let flows = [of("client", "10.1.0.1", true), of("other", "10.1.0.2", false)];
        traffic.goes_on().await;
        Self { traffic, stop, flows }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.traffic.end().await;
        let [allowed, denied] = self.flows;
        let (sent, came) = allowed.await.unwrap();
        assert!(sent > 100 && sent == came, "{came} of {sent} datagrams came back");
        let (sent, came) = denied.await.unwrap();
        assert!(sent > 100 && came == 0, "{came} of {sent} datagrams came back that must not");
    }
}

/// How the agent before comes to its end.
#[derive(Debug, Clone, Copy)]
enum End {
    /// It is asked to, and the next one starts after it: a DaemonSet's rolling update.
    Stopped,
    /// It is killed.
    Killed,
    /// The next one has started already, and waits for it: the same with a surge.
    Relieved,
}

/// Issue C, 2: an upgrade under traffic, there and back.
#[tokio::test(flavor = "multi_thread")]
async fn no_packet_is_lost_and_nothing_opens_when_the_agent_is_replaced_by_another_binary() {
    if !privileged() {
        return;
    }
    let suite = suite(&client_then_other());
    let options = options();
    let first = options.policyd.clone().unwrap();
    let copied = Copied::of(&first);
    let mut stage = stage(suite, &options).await;
    let mut act = begun(&mut stage, suite, &options).await;
    let load = Load::start(act.stage).await;
    let rounds = [(copied.binary(), End::Stopped), (first, End::Killed), (copied.binary(), End::Relieved)];
    for (binary, end) in rounds {
        let names: Vec<Text> = act.stage.agents.keys().cloned().collect();
        for name in names {
            let last = act.stage.agents.remove(&name).unwrap();
            let next = Policyd::new(Arc::clone(last.node()), binary.clone(), act.stage.publisher.source());
            match end {
                End::Stopped => last.stop().await,
                End::Killed => last.kill().await,
                End::Relieved => {
                    next.start().await.unwrap();
                    load.traffic.goes_on().await;
                    last.stop().await;
                }
            }
            load.traffic.goes_on().await;
            next.start().await.unwrap();
            next.ready(APPLIED).await.unwrap_or_else(|error| panic!("{end:?}: {error}"));
            act.stage.agents.insert(name, next);
            load.traffic.goes_on().await;
        }
    }
    load.end().await;
    // The last ones have not only kept what there was.
    step(&mut act, suite, 1).await;
}

/// Ends an agent, and leaves what it has pinned as another layout of the maps.
pub(super) async fn end_with_layout(agent: &Policyd) {
    agent.stop().await;
    agent.node().run(|| std::fs::rename(GATE_DIR, OTHER_LAYOUT).unwrap()).await.unwrap();
}

/// Starts it again, and waits until that is gone.
pub(super) async fn begin_beside_layout(agent: &Policyd) {
    agent.start().await.unwrap();
    agent.ready(APPLIED).await.unwrap();
    let end = Instant::now() + APPLIED;
    while agent.node().run(|| Path::new(OTHER_LAYOUT).exists()).await.unwrap() {
        assert!(Instant::now() < end, "{}", agent.node().log_tail(Policyd::LOG, 40));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Gates stand by links by then, which no filter replaces: those of another layout of the maps judge until the ones of now stand
/// behind them, and nobody is said to have taken a gate away.
#[tokio::test(flavor = "multi_thread")]
async fn gates_that_stand_by_links_are_replaced_across_layouts() {
    if !privileged() {
        return;
    }
    let suite = suite(&client_only());
    let options = options();
    let mut stage = stage(suite, &options).await;
    let mut act = begun(&mut stage, suite, &options).await;
    let load = Load::start(act.stage).await;
    for (node, pods) in [("n1", 2), ("n2", 1)] {
        let agent = &act.stage.agents[node];
        let end = Instant::now() + LINKED;
        loop {
            let links = || {
                let pins = std::fs::read_dir(Path::new(GATE_DIR).join("links")).into_iter().flatten().flatten();
                pins.filter(|pin| pin.file_name().to_string_lossy().ends_with("_pod")).count()
            };
            if agent.node().run(links).await.unwrap() == 2 * pods {
                break;
            }
            assert!(Instant::now() < end, "{node}: {}", agent.node().log_tail(Policyd::LOG, 40));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    for agent in act.stage.agents.values() {
        end_with_layout(agent).await;
        load.traffic.goes_on().await;
        begin_beside_layout(agent).await;
        load.traffic.goes_on().await;
        let said = agent.node().log_tail(Policyd::LOG, 400);
        assert!(!said.contains("a gate was not whole"), "{said}");
    }
    load.end().await;
    super::holds(&mut act, suite, 0).await;
}
