//! The daemon in virtual time against vpcsim's model of EC2 and a model of a host. Every test ends with the ledger, EC2
//! and the host compared.

mod announce;
mod branch;
mod burst;
mod capacity;
mod cidrs;
mod cluster;
mod crash;
mod custom;
mod defects;
mod families;
mod fleet;
mod memory;
mod modes;
mod mtu;
mod nics;
mod repair;
mod requests;
pub(crate) mod sim;
mod storm;
mod trouble;
mod worst;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use sluice_contract::id::{IfName, PodRef};
use sluice_contract::rpc::{
    AddReply, AddRequest, Call, DelReply, DelRequest, Outcome, PodAddress, Refusal, RefusalCode, Reply,
};
use sluice_ipamd_core::ipv6::pooled;
use sluice_ipamd_core::ledger::Stage;
use sluice_ipamd_core::time::Timestamp;
use sluice_vpcsim::model::Settings;
use sluice_vpcsim::model::state::Eni;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Daemon;
use crate::clock::Clock;
use crate::cluster::{REPORT_LIMIT, Report};
use crate::config::Config;
use crate::inbox::Handle;
use crate::metrics::Metrics;
use crate::run::start;
use crate::testing::{TestDir, attachment};
use crate::view::View;
use sim::{SimCloud, SimHost};

/// What outlives the daemon.
struct World {
    dir: TestDir,
    clock: Clock,
    cloud: SimCloud,
    host: SimHost,
    environment: BTreeMap<String, String>,
    starts: u64,
    reports: Option<mpsc::Receiver<Report>>,
}

/// The daemon's loop until it has waited so often; then all of it is gone at once, the calls that it has under way too.
struct Mortal<F> {
    run: Option<Pin<Box<F>>>,
    waits: u64,
    died: Arc<Notify>,
}

impl<F: Future<Output = ()>> Future for Mortal<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(run) = self.run.as_mut() else { return Poll::Pending };
        let ended = run.as_mut().poll(context);
        self.waits -= 1;
        if self.waits == 0 && ended.is_pending() {
            self.run = None;
            self.died.notify_one();
        }
        ended
    }
}

/// A daemon that runs.
struct Node {
    handle: Handle,
    task: JoinHandle<()>,
    stop: Option<oneshot::Sender<()>>,
    metrics: Arc<Metrics>,
}

impl World {
    /// An instance of `instance_type` in a /24, and EC2 as AWS behaves.
    fn new(instance_type: &str) -> Self {
        Self::with(Settings::aws(), instance_type, "10.0.1.0/24")
    }

    fn with(settings: Settings, instance_type: &str, cidr: &str) -> Self {
        Self::of(SimCloud::new(settings, instance_type, cidr))
    }

    /// One instance of a cloud.
    fn of(cloud: SimCloud) -> Self {
        let host = SimHost::new(cloud.clone());
        let clock = Clock::starting_at(Timestamp::from_millis(1_767_225_600_000));
        Self { dir: TestDir::new(), clock, cloud, host, environment: BTreeMap::new(), starts: 0, reports: None }
    }

    fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.into(), value.into());
    }

    fn config(&self) -> Config {
        let run_dir = self.dir.path().display().to_string();
        Config::load(&|name| match name {
            "SLUICE_RUN_DIR" => Some(run_dir.clone()),
            name => self.environment.get(name).cloned(),
        })
        .unwrap()
        .restored()
    }

    /// What has been reported since this was last asked.
    fn reported(&mut self) -> Vec<Report> {
        let reports = self.reports.as_mut().unwrap();
        std::iter::from_fn(|| reports.try_recv().ok()).collect()
    }

    async fn start(&mut self) -> Node {
        self.start_mortal(u64::MAX).await.0
    }

    /// A daemon that dies at the n-th point at which its loop waits for something; the second resolves then.
    async fn start_mortal(&mut self, waits: u64) -> (Node, Arc<Notify>) {
        self.starts += 1;
        let (handle, inputs) = Handle::new();
        let metrics = Arc::new(Metrics::new());
        let (reports, reported) = mpsc::channel(REPORT_LIMIT);
        self.reports = Some(reported);
        let (parts, begin) = start(
            self.config(),
            self.clock,
            self.cloud.clone(),
            self.host.clone(),
            Arc::clone(&metrics),
            reports,
            self.starts,
        )
        .await;
        let (stop, stops) = oneshot::channel();
        let died = Arc::new(Notify::new());
        let run = Daemon::new(parts, begin).run(inputs, async {
            if stops.await.is_err() {
                // The test keeps the sender until it stops the daemon.
                std::future::pending::<()>().await;
            }
        });
        let task = tokio::spawn(Mortal { run: Some(Box::pin(run)), waits, died: Arc::clone(&died) });
        (Node { handle, task, stop: Some(stop), metrics }, died)
    }

    /// A daemon that is ready and has nothing left to do.
    async fn settled(&mut self) -> Node {
        let node = self.start().await;
        node.wait("a settled pool", |view| view.ready && view.is_settled()).await;
        node
    }

    /// Compares ledger, EC2 and host: no address twice, every ENI known and set up, none left behind.
    async fn agrees(&self, node: &Node) {
        let view = node.view().await;
        assert_eq!(view.pool.violations, 0);
        let (attached, loose) = self.cloud.owned();
        assert!(loose.is_empty(), "left behind: {loose:?}");
        let ec2: BTreeSet<_> = attached.iter().map(|eni| eni.id.clone()).collect();
        let ours: BTreeSet<_> = view.enis.keys().cloned().collect();
        assert_eq!(ours, ec2, "the ledger knows the ENIs of EC2");
        for eni in &attached {
            let known: BTreeSet<_> = view.enis[&eni.id].blocks.keys().filter_map(pooled).collect();
            let there: BTreeSet<_> = eni.assigned().filter(|net| net.addr() != eni.primary).collect();
            assert_eq!(known, there, "the ledger knows the addresses of {}", eni.id);
        }
        let host = self.host.state();
        let is_secondary = |eni: &&Eni| eni.attachment.as_ref().is_some_and(|at| (at.card, at.device) != (0, 0));
        let secondaries: BTreeSet<_> = attached.iter().filter(is_secondary).map(|eni| eni.id.clone()).collect();
        assert_eq!(host.enis.keys().cloned().collect::<BTreeSet<_>>(), secondaries, "the host has the ENIs set up");
        for address in host.pods.keys() {
            let states = view.enis.values().flat_map(|eni| eni.blocks.values()).flatten();
            let mut known = states.filter(|(ip, state)| *ip == address || state.ipv6.map(IpAddr::V6) == Some(*address));
            assert!(known.any(|(_, state)| state.state == "assigned"), "{address} lives");
        }
    }

    /// What the plugin does after an ADD.
    fn pod_runs(&self, container: &str, address: IpAddr) {
        let before = self.host.state().pods.insert(address, host_ifname(container));
        assert_eq!(before, None, "{address} is given to {container} and lives already");
    }

    /// What the plugin does before a DEL.
    fn pod_ends(&self, address: IpAddr) {
        self.host.state().pods.remove(&address);
    }
}

fn host_ifname(container: &str) -> IfName {
    IfName::new(format!("eni{container:.11}")).unwrap()
}

impl View {
    fn is_settled(&self) -> bool {
        let at_rest = self.under_way.is_empty() && self.pool.pending == 0 && self.pool.waiting == 0;
        self.node.is_some() && at_rest && self.enis.values().all(|eni| eni.stage == Stage::InService)
    }
}

impl Node {
    /// A line of the metrics: its value; 0 where there is no such line.
    fn counted(&self, line: &str) -> u64 {
        let text = self.metrics.encode();
        let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    async fn view(&self) -> View {
        self.handle.look().await.expect("the loop answers")
    }

    /// Waits, in virtual time, until `holds`; the state must stay so for some seconds.
    async fn wait(&self, what: &str, holds: impl Fn(&View) -> bool) -> View {
        let end = Instant::now() + Duration::from_secs(1800);
        let mut since = 0;
        loop {
            let view = self.view().await;
            since = if holds(&view) { since + 1 } else { 0 };
            if since > 8 {
                return view;
            }
            assert!(Instant::now() < end, "no {what} in half an hour: {view:#?}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn ask(&self, call: Call, deadline: Duration) -> Reply {
        let (_, reply) = self.handle.ask(call, Instant::now() + deadline).await;
        match reply.await {
            Ok(answer) => answer.reply,
            Err(_) => Reply::Refused(Refusal::new(RefusalCode::NotReady, "the daemon is gone")),
        }
    }

    async fn add_within(&self, container: &str, deadline: Duration) -> Result<PodAddress, Refusal> {
        match self.ask(Call::Add(add_request(container)), deadline).await {
            Reply::Done(Outcome::Add(AddReply { mut addresses, mtu, .. })) => {
                assert!((1..=2).contains(&addresses.len()) && mtu == 9001, "{addresses:?}");
                Ok(addresses.remove(0))
            }
            Reply::Refused(refusal) => Err(refusal),
            other => panic!("ADD answered {other:?}"),
        }
    }

    async fn add(&self, container: &str) -> Result<PodAddress, Refusal> {
        self.add_within(container, Duration::from_secs(60)).await
    }

    async fn del(&self, container: &str) -> Vec<PodAddress> {
        let request = DelRequest { attachment: attachment(container), pod: PodRef::default(), add_failed: false };
        match self.ask(Call::Del(request), Duration::from_secs(10)).await {
            Reply::Done(Outcome::Del(DelReply { addresses })) => addresses,
            other => panic!("DEL answered {other:?}"),
        }
    }

    /// The process is killed.
    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.is_err());
    }

    /// The process is asked to stop.
    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.task.await.unwrap();
    }
}

pub(crate) fn add_request(container: &str) -> AddRequest {
    AddRequest {
        attachment: attachment(container),
        pod: PodRef { namespace: "default".into(), name: container.into(), uid: None },
        netns: format!("/run/netns/{container}"),
        host_ifname: host_ifname(container),
        branches: true,
        every_card: false,
    }
}
