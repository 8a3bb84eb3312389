//! One machine with a client and a server, which is all that a benchmark of the proxy needs: agent, plugins and gate are the
//! product's; or, without a gate, the same machine with nothing between the two.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::Value;
use sluice_hostnet::netns::{Namespace, NamespaceThread, ThreadSpec};
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::vector;
use sluice_policy_core::vector::schema::{Family, Mode, Suite};
use sluice_vpcsim::deployment::{Binaries, GATED_CONFLIST, PLAIN_CONFLIST};
use sluice_vpcsim::node::Node;
use sluice_vpcsim::proxy::Proxy;
use tokio::process::{Child, Command};

use super::{BenchError, plugin};
use crate::live::publish::SourceKind;
use crate::live::run::Act;
use crate::live::stage::{Options, Stage};
use crate::live::town::Plan;
use crate::service_proxy::Backend;

/// The client's address.
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// The server's.
pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
/// That of somebody in between.
pub(super) const MIDDLE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
/// Where clients run, where servers do, and in between one worker on each.
pub(super) const CLIENT_CPU: usize = 0;
pub(super) const SERVER_CPU: usize = 1;
pub(super) const CPUS: [usize; 2] = [CLIENT_CPU, SERVER_CPU];

/// How long the proxy may take to have its policy, and between two looks.
const READY: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);
/// The log of programs that are not the product's.
const LOG: &str = "peer";
/// Where they look for others.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const FIXTURE: &str = "
schemaVersion: 1
fixtures:
  f:
    namespaces: {x: {}}
    nodes: {n1: {ip: 10.9.0.1}}
    pods:
      x/client: {labels: {app: client}, ip: 10.1.0.1, node: n1}
      x/server: {labels: {app: server}, ip: 10.1.0.2, node: n1}
      x/middle: {labels: {app: middle}, ip: 10.1.0.3, node: n1}
vectors:
- id: bench
  fixture: f
  steps:
  - apply: [POLICY]
";

/// The cluster of a machine with this policy, which is of the namespace `x` and selects `app: client`.
pub(super) fn cluster(policy: &Value) -> Result<Suite, BenchError> {
    let text = FIXTURE.replace("POLICY", &policy.to_string());
    vector::read(&text).map_err(|error| BenchError::setup("the policy of a benchmark is not read")(error.to_string()))
}

/// The machine.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    /// Its proxy, if it has one.
    proxy: Option<Proxy>,
    stage: Stage<'a>,
}

impl<'a> Machine<'a> {
    /// Sets it up with gates, and the policy in force; nothing takes what gates redirect.
    pub(super) async fn gated(suite: &'a Suite) -> Result<Self, BenchError> {
        let plugins = ["sluice-eni", "sluice-policy"].map(|name| Ok::<_, BenchError>((name.to_owned(), plugin(name)?)));
        let plugins = plugins.into_iter().collect::<Result<_, _>>()?;
        let policyd = Some(Binaries::find("sluice-policyd")?);
        let mut machine = Self::build(suite, GATED_CONFLIST, plugins, policyd).await?;
        let vector = suite.vectors.first().ok_or(BenchError::Incomplete)?;
        let options = options(GATED_CONFLIST, Vec::new(), None);
        let in_force = BenchError::setup::<crate::live::stage::LiveError>;
        let begun = Act::begin(&mut machine.stage, vector, Mode::PodIp, &options).await;
        let mut act = begun.map_err(in_force("the cluster of a benchmark is not in force"))?;
        for step in &vector.steps {
            act.advance(step).await.map_err(in_force("the policy of a benchmark is not in force"))?;
        }
        Ok(machine)
    }

    /// Sets it up without gates.
    pub(super) async fn open(suite: &'a Suite) -> Result<Self, BenchError> {
        let plugins = vec![("sluice-eni".to_owned(), plugin("sluice-eni")?)];
        Self::build(suite, PLAIN_CONFLIST, plugins, None).await
    }

    async fn build(
        suite: &'a Suite,
        conflist: &str,
        plugins: Vec<(String, PathBuf)>,
        policyd: Option<PathBuf>,
    ) -> Result<Self, BenchError> {
        let fixture = suite.fixtures.values().next().ok_or(BenchError::Incomplete)?;
        let options = options(conflist, plugins, policyd);
        let stage = Stage::build(fixture, &options).await;
        let stage = stage.map_err(BenchError::setup("the machine of a benchmark is not set up"))?;
        let machine = Self { proxy: None, stage };
        let node = machine.node()?;
        let settings = node.run(|| write_settings(&NODE_SETTINGS));
        settings.await?.map_err(BenchError::setup("a machine's sysctls cannot be set"))?;
        for pod in ["client", "server", "middle"] {
            let net = machine.pod(pod)?;
            let done =
                net.run(|| write_settings(&POD_SETTINGS)).map_err(BenchError::setup("a pod cannot be entered"))?;
            done.map_err(BenchError::setup("a pod's sysctls cannot be set"))?;
        }
        Ok(machine)
    }

    /// Starts the product's proxy with a worker a direction on each of these CPUs.
    pub(super) async fn start_proxy(&mut self, cpus: &[usize]) -> Result<(), BenchError> {
        let environment = BTreeMap::from([("SLUICE_PROXY_WORKERS".to_owned(), cpus.len().to_string())]);
        let proxy = Proxy::new(Arc::clone(self.node()?), Binaries::find("sluice-proxy")?, environment);
        proxy.start().await?;
        proxy.ready(READY).await?;
        let pid = proxy.pid().await.ok_or(BenchError::Incomplete)?;
        self.proxy = Some(proxy);
        let end = Instant::now() + READY;
        // Its workers begin after it has its policy.
        while bind_workers(pid, cpus)? < 2 * cpus.len() {
            if Instant::now() >= end {
                return Err(BenchError::Incomplete);
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// The product's proxy.
    pub(super) const fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    /// How many addresses of names its agent knows.
    pub(super) async fn names(&self) -> Result<u64, BenchError> {
        let agent = self.stage.agents.values().next().ok_or(BenchError::Incomplete)?;
        let view = agent.page("/v1/names").await?;
        view.get("addresses").and_then(Value::as_u64).ok_or(BenchError::Incomplete)
    }

    /// The node.
    pub(super) fn node(&self) -> Result<&Arc<Node>, BenchError> {
        self.stage.town.node("n1").map(|node| &node.node).map_err(BenchError::setup("there is no machine"))
    }

    /// The network of a pod.
    pub(super) fn pod(&self, name: &str) -> Result<Namespace, BenchError> {
        let pod = self.stage.town.pod(&PodKey { namespace: "x".into(), name: name.into() });
        pod.map(|pod| pod.net.clone()).map_err(BenchError::setup("there is no pod"))
    }

    /// Where a pod's network is bound, on the node.
    pub(super) fn pod_path(&self, name: &str) -> Result<PathBuf, BenchError> {
        let pod = self.stage.town.pod(&PodKey { namespace: "x".into(), name: name.into() });
        let pod = pod.map_err(BenchError::setup("there is no pod"))?;
        pod.sandbox.as_ref().map(|sandbox| sandbox.netns.clone()).ok_or(BenchError::Incomplete)
    }

    /// A thread in a pod, on a CPU.
    pub(super) async fn thread(&self, pod: &str, cpu: usize) -> Result<NamespaceThread, BenchError> {
        let spawned = NamespaceThread::spawn(ThreadSpec::in_net(pod, self.pod(pod)?));
        let thread = spawned.map_err(BenchError::setup("a pod cannot be entered"))?;
        let pinned = thread.run(move || async move { pin(0, cpu) }).await;
        let pinned = pinned.map_err(BenchError::setup("a thread in a pod has ended"))?;
        pinned.map_err(BenchError::setup("a thread cannot be bound to a CPU"))?;
        Ok(thread)
    }

    /// The last words of the programs that [`Self::start`] has started.
    pub(super) fn last_words(&self) -> String {
        self.node().map(|node| node.log_tail(LOG, 5)).unwrap_or_default()
    }

    /// Starts a program in a namespace of the machine, on a CPU or on several (`0-1`). It ends with the machine, at the latest.
    /// `words` is a line for the shell, which replaces itself by the program.
    pub(super) async fn start(
        &self,
        namespace: &Path,
        cpus: &str,
        words: &str,
        input: Stdio,
        output: Stdio,
    ) -> Result<Child, BenchError> {
        let node = self.node()?;
        let log = fs::File::options().create(true).append(true).open(node.log(LOG));
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "nsenter"])
            .arg(format!("--net={}", namespace.display()))
            .args(["taskset", "-c", cpus, "sh", "-c", words])
            .env_clear()
            .env("PATH", PATH)
            .stdin(input)
            .stdout(output)
            .stderr(log.map_err(BenchError::setup("a log cannot be written"))?)
            .kill_on_drop(true);
        Ok(node.spawn(command).await?)
    }
}

fn options(conflist: &str, plugins: Vec<(String, PathBuf)>, policyd: Option<PathBuf>) -> Options {
    let plan = Plan { conflist: conflist.to_owned(), plugins, proxy: Backend::Nftables };
    Options {
        only: None,
        mode: None,
        family: Family::V4,
        plan,
        source: SourceKind::Directory,
        policyd,
        at_once: 1,
        sluice_proxy: None,
    }
}

/// Tens of thousands of connections a second from one address: what has ended has to be forgotten at once, on the node and at
/// both ends, or what is measured is a lack of ports.
const NODE_SETTINGS: [(&str, &str); 6] = [
    ("netfilter/nf_conntrack_tcp_timeout_time_wait", "1"),
    ("netfilter/nf_conntrack_tcp_timeout_fin_wait", "1"),
    ("netfilter/nf_conntrack_tcp_timeout_close_wait", "1"),
    ("netfilter/nf_conntrack_tcp_timeout_last_ack", "1"),
    ("netfilter/nf_conntrack_tcp_timeout_close", "1"),
    ("ipv4/tcp_tw_reuse", "1"),
];
const POD_SETTINGS: [(&str, &str); 4] = [
    ("ipv4/ip_local_port_range", "1024 65535"),
    ("ipv4/tcp_tw_reuse", "1"),
    ("core/somaxconn", "16384"),
    ("ipv4/tcp_max_syn_backlog", "16384"),
];

/// Writes sysctls of the thread's network; what this kernel does not have is left out.
fn write_settings(list: &[(&str, &str)]) -> io::Result<()> {
    list.iter().try_for_each(|(key, value)| match fs::write(Path::new("/proc/sys/net").join(key), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    })
}

/// Binds a thread to a CPU; 0 is the caller.
pub(super) fn pin(thread: i32, cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(thread), &set)?)
}

/// Binds the workers of a proxy, as far as they are there: how many that are.
fn bind_workers(pid: u32, cpus: &[usize]) -> Result<usize, BenchError> {
    let failed = BenchError::setup::<io::Error>;
    let mut bound = 0;
    for (tid, name) in threads(pid).map_err(failed("the proxy's threads cannot be listed"))? {
        let number = match name.split_once('-') {
            Some(("egress" | "ingress", number)) => number.parse().ok(),
            _ => None,
        };
        if let Some(cpu) = number.and_then(|number: usize| cpus.get(number)) {
            pin(tid, *cpu).map_err(failed("a worker cannot be bound to a CPU"))?;
            bound += 1;
        }
    }
    Ok(bound)
}

/// The threads of a process, with their names.
fn threads(pid: u32) -> io::Result<Vec<(i32, String)>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let entry = entry?;
        // One that has ended meanwhile.
        let Ok(name) = fs::read_to_string(entry.path().join("comm")) else { continue };
        if let Some(tid) = entry.file_name().to_str().and_then(|tid| tid.parse().ok()) {
            threads.push((tid, name.trim_end().to_owned()));
        }
    }
    Ok(threads)
}

/// Whose CPU time is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Who {
    /// Nobody's.
    Nobody,
    /// That of a process with all of its threads and children.
    Process(u32),
    /// That of threads of this process.
    Threads(Vec<i32>),
}

impl Who {
    /// The time that they have run (`schedstat` of `/proc/PID/task/TID`, in nanoseconds).
    pub(super) fn cpu(&self) -> Result<Duration, BenchError> {
        let spent = match self {
            Self::Nobody => Ok(0),
            Self::Process(pid) => spent_by(*pid),
            Self::Threads(tids) => tids.iter().map(|tid| spent(&format!("/proc/self/task/{tid}"))).sum(),
        };
        let unreadable = BenchError::setup::<io::Error>("the CPU time of what is measured cannot be read");
        spent.map(Duration::from_nanos).map_err(unreadable)
    }
}

fn spent_by(pid: u32) -> io::Result<u64> {
    let mut sum = 0;
    for (tid, _) in threads(pid)? {
        let task = format!("/proc/{pid}/task/{tid}");
        sum += spent(&task)?;
        for child in fs::read_to_string(format!("{task}/children"))?.split_whitespace() {
            sum += spent_by(child.parse().map_err(io::Error::other)?)?;
        }
    }
    Ok(sum)
}

fn spent(task: &str) -> io::Result<u64> {
    let text = fs::read_to_string(format!("{task}/schedstat"))?;
    let first = text.split_whitespace().next().and_then(|number| number.parse().ok());
    first.ok_or_else(|| io::ErrorKind::InvalidData.into())
}
