//! Pods that send, and are sent to, from their first instruction on.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sluice_hostnet::netns::Namespace;
use sluice_policy_core::cluster::PodKey;
use sluice_tests::privileged::privileged;

use super::{begun, options, policy, stage, suite, times};

const PORT: u16 = 4000;
/// How many datagrams a pod sends after its ADD, at least.
const AFTER: usize = 20;
/// How long they may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Datagrams in a namespace, without a pause.
struct Sender {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Sender {
    fn start(net: &Namespace, to: SocketAddr) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (net, ended, count) = (net.clone(), Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            let send = || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                while !ended.load(Ordering::Relaxed) {
                    // There is no route at first.
                    match socket.send_to(b"!", to) {
                        Ok(_) => drop(count.fetch_add(1, Ordering::Relaxed)),
                        Err(_) => std::thread::yield_now(),
                    }
                }
            };
            net.run(send).unwrap();
        });
        Self { stop, sent, thread: Some(thread) }
    }

    async fn sent(&self, more: usize) {
        let wanted = self.sent.load(Ordering::Relaxed) + more;
        let sent = async {
            while self.sent.load(Ordering::Relaxed) < wanted {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, sent).await.expect("nothing can be sent");
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn receiver(net: &Namespace, at: &str) -> UdpSocket {
    let socket = net.run(|| UdpSocket::bind(at).unwrap()).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

fn received(socket: &UdpSocket) -> usize {
    let mut buffer = [0; 8];
    std::iter::from_fn(|| socket.recv_from(&mut buffer).ok()).count()
}

/// SPECIFICATION S-07; issue C, 2: the policy is there first, then the pod, which sends all the time, and is sent to.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_passes_before_the_policy() {
    if !privileged() {
        return;
    }
    let deny = policy("victim", "{podSelector: {matchLabels: {app: victim}}, policyTypes: [Ingress, Egress]}");
    let suite = suite(&format!("\n  - apply: [{deny}]\n    expect: []\n"));
    let options = options();
    let mut stage = stage(suite, &options).await;
    let mut act = begun(&mut stage, suite, &options).await;

    let outside = act.stage.town.outside("198.51.100.7".parse().unwrap()).await.unwrap();
    let listener = receiver(&outside.net, "198.51.100.7:4000");
    let far: SocketAddr = "198.51.100.7:4000".parse().unwrap();
    let client = PodKey { namespace: "x".into(), name: "client".into() };
    // The same pod, once with a policy and once without: what is counted can be counted.
    for (app, starts) in [("free", 3), ("victim", times(1000, 60))] {
        for round in 0..starts {
            let key = PodKey { namespace: "x".into(), name: format!("starter-{app}").into() };
            let mut spec = act.stage.fixture.pods[&client].clone();
            spec.addresses.v4 = Some("10.1.0.9".parse().unwrap());
            spec.labels = sluice_policy_core::cluster::Labels::new([("app".into(), app.into())]);
            if round == 0 {
                act.declare(&key, &spec).await.unwrap();
            }
            let sandbox = act.stage.town.sandbox(&key, &spec).await.unwrap();
            let net = act.stage.town.net(&spec, &sandbox).await.unwrap();
            let inside = receiver(&net, "0.0.0.0:4000");
            let out = Sender::start(&net, far);
            let into = Sender::start(&outside.net, SocketAddr::new("10.1.0.9".parse().unwrap(), PORT));
            act.stage.town.attach(&key, &spec, sandbox).await.unwrap();
            out.sent(AFTER).await;
            into.sent(AFTER).await;
            let (mut passed_out, mut passed_in) = (received(&listener), received(&inside));
            let deadline = std::time::Instant::now() + PATIENCE;
            while app == "free" && (passed_out == 0 || passed_in == 0) && std::time::Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(1)).await;
                (passed_out, passed_in) = (passed_out + received(&listener), passed_in + received(&inside));
            }
            drop((out, into));
            (passed_out, passed_in) = (passed_out + received(&listener), passed_in + received(&inside));
            act.stage.town.delete(&key).await.unwrap();
            if app == "free" {
                assert!(passed_out > 0 && passed_in > 0, "{passed_out} out, {passed_in} in");
            } else {
                assert_eq!((passed_out, passed_in), (0, 0), "datagrams out and in, at start {round}");
            }
        }
    }
}
