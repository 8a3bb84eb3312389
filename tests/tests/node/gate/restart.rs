//! The agent dies, stops and comes back while packets flow (SPECIFICATION: 0 packets lost and no verdict changed).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sluice_policy_core::cluster::PodKey;
use sluice_tests::live::stage::{APPLIED, Stage};
use sluice_tests::privileged::privileged;
use sluice_tests::prober::{Ask, Dial, Prober, Station, Transport};

use super::{admits, begun, client_then_other, options, stage, step, suite};

/// How long a packet may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long silence is listened to.
const DROP: Duration = Duration::from_millis(200);

pub(super) fn station(stage: &Stage<'_>, pod: &str, address: &str) -> Station {
    let key = PodKey { namespace: "x".into(), name: pod.into() };
    Station { net: stage.town.pod(&key).unwrap().net.clone(), address: address.parse().unwrap() }
}

/// Traffic that has to pass, and traffic that must not, until it is stopped.
pub(super) struct Traffic {
    stop: Arc<AtomicBool>,
    exchanges: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Traffic {
    pub(super) async fn start(stage: &Stage<'_>) -> Self {
        let prober = Arc::new(Prober::default());
        let (client, other) = (station(stage, "client", "10.1.0.1"), station(stage, "other", "10.1.0.2"));
        let server = station(stage, "server", "10.1.0.3");
        prober.serve([(server.clone(), Transport::Tcp, 81), (server, Transport::Udp, 81)]).await.unwrap();
        let dial = move |from: &Station, transport, patience| Dial {
            from: from.clone(),
            to: "10.1.0.3".parse().unwrap(),
            port: 81,
            transport,
            ask: Ask::Echo,
            patience,
        };
        let (stop, exchanges) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut held = prober.hold(&dial(&client, Transport::Tcp, PATIENCE)).await.unwrap();
        let mut tasks = Vec::new();
        let (ended, count, keep) = (Arc::clone(&stop), Arc::clone(&exchanges), Arc::clone(&prober));
        tasks.push(tokio::spawn(async move {
            let (mut wrong, _servers) = (Vec::new(), keep);
            while !ended.load(Ordering::Relaxed) {
                let answer = held.poke(PATIENCE).await;
                if !answer.is_answered() {
                    wrong.push(format!("the open connection is {answer}"));
                    break;
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
            wrong
        }));
        for (from, right, patience) in [(client, "answered", PATIENCE), (other, "silent", DROP)] {
            let (ended, prober) = (Arc::clone(&stop), Arc::clone(&prober));
            tasks.push(tokio::spawn(async move {
                let mut wrong = Vec::new();
                while !ended.load(Ordering::Relaxed) {
                    let all = [Transport::Tcp, Transport::Udp, Transport::Ping];
                    let dials = all.map(|transport| dial(&from, transport, patience));
                    for answer in prober.dial(&dials).await.unwrap() {
                        if answer.to_string() != right {
                            wrong.push(format!("from {}: {answer}, not {right}", from.address));
                        }
                    }
                }
                wrong
            }));
        }
        Self { stop, exchanges, tasks }
    }

    /// Waits until the open connection has exchanged some more.
    pub(super) async fn goes_on(&self) {
        let wanted = self.exchanges.load(Ordering::Relaxed) + 20;
        let more = async {
            while self.exchanges.load(Ordering::Relaxed) < wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, more).await.expect("nothing passes any more");
    }

    pub(super) async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            assert_eq!(task.await.unwrap(), Vec::<String>::new());
        }
    }
}

/// Issue C, 2: kill -9 and upgrade under traffic.
#[tokio::test(flavor = "multi_thread")]
async fn no_packet_is_lost_and_no_verdict_changes_when_the_agent_restarts() {
    if !privileged() {
        return;
    }
    let suite = suite(&client_then_other());
    let options = options();
    let mut stage = stage(suite, &options).await;
    let mut act = begun(&mut stage, suite, &options).await;
    let traffic = Traffic::start(act.stage).await;
    traffic.goes_on().await;
    for round in 0..4 {
        for agent in act.stage.agents.values() {
            if round % 2 == 0 { agent.kill().await } else { agent.stop().await }
        }
        traffic.goes_on().await;
        for agent in act.stage.agents.values() {
            agent.start().await.unwrap();
        }
        for agent in act.stage.agents.values() {
            agent.ready(APPLIED).await.unwrap();
        }
        traffic.goes_on().await;
    }
    traffic.end().await;
    // It has not only kept what there was.
    step(&mut act, suite, 1).await;
}

/// What changed while the agent was away is in force when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn what_changes_while_the_agent_is_down_is_in_force_when_it_is_back() {
    if !privileged() {
        return;
    }
    let allow = admits("client");
    let steps = format!(
        "
  - apply: [{allow}]
    expect: [{{from: x/other, to: x/server, port: 80, verdict: deny}}]
  - delete: [{{kind: NetworkPolicy, namespace: x, name: server}}]
    expect: [{{from: x/other, to: x/server, port: 80, verdict: deny}}]
  - expect: [{{from: x/other, to: x/server, port: 80, verdict: allow}}]
"
    );
    let suite = suite(&steps);
    let options = options();
    let mut stage = stage(suite, &options).await;
    let mut act = begun(&mut stage, suite, &options).await;
    for agent in act.stage.agents.values() {
        agent.kill().await;
    }
    step(&mut act, suite, 1).await;
    for agent in act.stage.agents.values() {
        agent.start().await.unwrap();
    }
    step(&mut act, suite, 2).await;
}
