//! CNI plugins executed for many pods at once, and timed from exec to exit as a runtime would see it.
//!
//! Between the two readings of the clock there is nothing but `posix_spawn`, the pipes and `wait`: threads, namespaces,
//! files and commands are ready before, and answers are read after. The threads live on the node, so that nothing has
//! to be executed first to get there.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use sluice_hostnet::netns::{Namespace, NamespaceError};
use sluice_vpcsim::deployment::Deployment;
use sluice_vpcsim::node::{Node, NodeError};
use sluice_vpcsim::runtime::BIN_DIR;

/// Where the plugins' input lies on the node: in memory.
const DIR: &str = "/run/bench";
/// What a plugin may find by name: `ip` and such, for those that need it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The namespace of the pods.
pub const NAMESPACE: &str = "bench";

/// Why a burst has no times.
#[derive(Debug, thiserror::Error)]
pub enum BurstError {
    /// The node refused.
    #[error("the burst cannot be set up")]
    Node(#[from] NodeError),
    /// A pod's namespace could not be made.
    #[error("a pod's network namespace cannot be made")]
    Namespace(#[from] NamespaceError),
    /// A file could not be used, or a program not executed.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A plugin failed: there is no figure for what does not work.
    #[error("{program} {verb} failed for {container} ({status}): {printed}")]
    Failed {
        /// The plugin.
        program: String,
        /// ADD or DEL.
        verb: &'static str,
        /// The pod.
        container: String,
        /// How it ended.
        status: String,
        /// What it printed.
        printed: String,
    },
}

/// A plugin, and the configuration it gets.
#[derive(Debug, Clone)]
pub struct Plugin {
    /// The executable.
    pub program: PathBuf,
    /// The plugin's object of a conflist, with the list's name and version.
    pub config: Map<String, Value>,
}

/// The plugins of a conflist.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The plugins, in the order of the list: so ADD executes them, and DEL the other way round.
    pub chain: Vec<Plugin>,
    /// `CNI_PATH`: where they find the plugins that they execute themselves.
    pub path: PathBuf,
    /// Processes that work for them: their CPU counts.
    pub daemons: Vec<u32>,
}

impl Subject {
    /// The product, as it is on a node: the whole chain where pods are gated, else the primary plugin alone.
    pub async fn sluice(product: &Deployment) -> Self {
        let mut daemons: Vec<u32> = product.ipamd_pid().await.into_iter().collect();
        let chain = match product.policyd() {
            Some(policyd) => {
                daemons.extend(policyd.pid().await);
                Self::chain().chain
            }
            None => vec![plugin("sluice-eni", None)],
        };
        Self { chain, path: BIN_DIR.into(), daemons }
    }

    /// The whole chain, without its daemons' CPU.
    #[must_use]
    pub fn chain() -> Self {
        Self {
            chain: vec![plugin("sluice-eni", Some("gated")), plugin("sluice-policy", None)],
            path: BIN_DIR.into(),
            daemons: Vec::new(),
        }
    }
}

/// A plugin of ours, with one option switched on.
fn plugin(name: &str, option: Option<&str>) -> Plugin {
    let mut config = json!({ "cniVersion": "1.0.0", "name": "sluice", "type": name });
    if let (Some(fields), Some(option)) = (config.as_object_mut(), option) {
        fields.insert(option.to_owned(), true.into());
    }
    Plugin { program: Path::new(BIN_DIR).join(name), config: config.as_object().cloned().unwrap_or_default() }
}

/// The name and the uid of the pod in a set's `index`-th namespace.
#[must_use]
pub fn pod_name(index: usize) -> String {
    format!("pod-{index}")
}

/// The network namespaces of pods. They are made once and used by burst after burst: the kernel takes a namespace down
/// at leisure, which would be in the way of the next burst. A node can have one set.
#[derive(Debug)]
pub struct Sandboxes {
    paths: Vec<PathBuf>,
}

/// One burst: the times of each pod's ADD and DEL, and the CPU that they took together.
#[derive(Debug, Clone, Default)]
pub struct Times {
    /// Exec to exit of each ADD.
    pub add: Vec<Duration>,
    /// Exec to exit of each DEL.
    pub del: Vec<Duration>,
    /// CPU of all ADDs: the plugins, what they executed, and the daemons. The kernel counts in steps of 10 ms.
    pub add_cpu: Duration,
    /// What of it the daemons took.
    pub daemons_cpu: Duration,
}

impl Sandboxes {
    /// Makes `count` namespaces on `node`.
    ///
    /// # Errors
    /// [`BurstError::Namespace`].
    pub async fn new(node: &Node, count: usize) -> Result<Self, BurstError> {
        let paths: Vec<PathBuf> = (0..count).map(|i| PathBuf::from(format!("/run/netns/bench-{i}"))).collect();
        let wanted = paths.clone();
        node.run(move || {
            let create = |path| Namespace::create(path).map(drop);
            wanted.iter().try_for_each(create)
        })
        .await??;
        Ok(Self { paths })
    }

    /// Takes the namespaces from the `at`-th on out of the set, into one of their own.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        Self { paths: self.paths.split_off(at.min(self.paths.len())) }
    }

    /// Executes ADD for every pod, `at_once` at the same time, then DEL likewise. `label` tells this burst's pods from
    /// those of other bursts.
    ///
    /// # Errors
    /// [`BurstError::Failed`] with the first plugin that failed.
    pub async fn burst(
        &self,
        node: &Node,
        subject: &Subject,
        label: &str,
        at_once: usize,
    ) -> Result<Times, BurstError> {
        let pods = self.pods(label, (0..self.paths.len()).map(PodName::of));
        let subject = subject.clone();
        node.run(move || {
            let before = Cpu::now(&subject.daemons)?;
            let added = phase(&subject, "ADD", &pods, &[], at_once)?;
            let after = Cpu::now(&subject.daemons)?;
            let daemons_cpu = after.daemons.saturating_sub(before.daemons);
            let add_cpu = after.plugins.saturating_sub(before.plugins) + daemons_cpu;
            let results: Vec<Value> =
                added.iter().map(|ended| serde_json::from_slice(&ended.output.stdout).unwrap_or_default()).collect();
            let deleted = phase(&subject, "DEL", &pods, &results, at_once)?;
            let times = |ended: Vec<Ended>| ended.into_iter().map(|ended| ended.time).collect();
            Ok(Times { add: times(added), del: times(deleted), add_cpu, daemons_cpu })
        })
        .await?
    }

    /// Executes ADD for every pod, `at_once` at the same time, and leaves them.
    ///
    /// # Errors
    /// [`BurstError::Failed`] with the first plugin that failed.
    pub async fn fill(&self, node: &Node, subject: &Subject, at_once: usize) -> Result<(), BurstError> {
        let names: Vec<PodName> = (0..self.paths.len()).map(PodName::of).collect();
        self.fill_with(node, subject, &names, at_once).await
    }

    /// As [`Self::fill`], with pods that the cluster knows by these names.
    ///
    /// # Errors
    /// [`BurstError::Failed`] with the first plugin that failed.
    pub async fn fill_with(
        &self,
        node: &Node,
        subject: &Subject,
        names: &[PodName],
        at_once: usize,
    ) -> Result<(), BurstError> {
        let pods = self.pods("fill", names.iter().cloned());
        let subject = subject.clone();
        node.run(move || phase(&subject, "ADD", &pods, &[], at_once).map(drop)).await?
    }

    fn pods(&self, label: &str, names: impl Iterator<Item = PodName>) -> Vec<Pod> {
        let pods = self.paths.iter().zip(names).enumerate();
        pods.map(|(i, (netns, name))| Pod { name, container: format!("{label}-{i}"), netns: netns.clone() }).collect()
    }
}

/// A pod as the cluster knows it.
#[derive(Debug, Clone)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl PodName {
    /// The pod in a node's `index`-th namespace.
    pub(super) fn of(index: usize) -> Self {
        Self { namespace: NAMESPACE.to_owned(), name: pod_name(index), uid: pod_name(index) }
    }
}

struct Pod {
    name: PodName,
    container: String,
    netns: PathBuf,
}

/// One execution of a chain, as far as it went.
struct Ended {
    /// From the first plugin's exec to the last one's exit.
    time: Duration,
    /// The last plugin that was executed.
    program: PathBuf,
    /// What it answered.
    output: Output,
}

/// One verb for all pods, in batches. `previous` holds what ADD answered, for DEL.
fn phase(
    subject: &Subject,
    verb: &'static str,
    pods: &[Pod],
    previous: &[Value],
    at_once: usize,
) -> Result<Vec<Ended>, BurstError> {
    let io = |what: String| move |source| BurstError::Io { what, source };
    std::fs::create_dir_all(DIR).map_err(io(format!("{DIR} cannot be made")))?;
    let mut ended = Vec::with_capacity(pods.len());
    for (batch, offset) in pods.chunks(at_once.max(1)).zip((0..).step_by(at_once.max(1))) {
        let mut chains = Vec::with_capacity(batch.len());
        for (pod, i) in batch.iter().zip(offset..) {
            let ready = chain(subject, verb, pod, previous.get(i));
            chains.push(ready.map_err(io(format!("the input of {} cannot be written", pod.container)))?);
        }
        for (one, pod) in run_at_once(chains).into_iter().zip(batch) {
            let one = one.map_err(io(format!("a plugin for {} cannot be executed", pod.container)))?;
            let Ended { program, output, .. } = &one;
            if !output.status.success() {
                return Err(BurstError::Failed {
                    program: program.display().to_string(),
                    verb,
                    container: pod.container.clone(),
                    status: output.status.to_string(),
                    printed: [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat(),
                });
            }
            ended.push(one);
        }
    }
    Ok(ended)
}

/// A plugin that is ready to be executed.
struct Ready {
    command: Command,
    /// Its configuration, where its input is the result of the plugin before it.
    after: Option<Map<String, Value>>,
}

/// What libcni would execute (CNI specification 1.1.0, sections 3 and 4): DEL backwards, each plugin with the result of
/// the whole ADD; ADD forwards, each with the result of the one before it.
fn chain(subject: &Subject, verb: &str, pod: &Pod, previous: Option<&Value>) -> io::Result<Vec<Ready>> {
    let plugins = subject.chain.iter().enumerate();
    let order: Vec<_> = if verb == "DEL" { plugins.rev().collect() } else { plugins.collect() };
    let ready = |(at, plugin): (usize, &Plugin)| {
        let mut command = command(subject, plugin, verb, pod);
        let after = (verb == "ADD" && at > 0).then(|| plugin.config.clone());
        command.stdin(match &after {
            Some(_) => Stdio::piped(),
            None => input(plugin, pod, previous)?.into(),
        });
        Ok(Ready { command, after })
    };
    order.into_iter().map(ready).collect()
}

/// A plugin's input, in memory.
fn input(plugin: &Plugin, pod: &Pod, previous: Option<&Value>) -> io::Result<File> {
    let mut config = plugin.config.clone();
    if let Some(previous) = previous {
        config.insert("prevResult".into(), previous.clone());
    }
    let input = Path::new(DIR).join(&pod.container);
    std::fs::write(&input, Value::Object(config).to_string())?;
    let stdin = File::open(&input)?;
    std::fs::remove_file(&input)?;
    Ok(stdin)
}

fn command(subject: &Subject, plugin: &Plugin, verb: &str, pod: &Pod) -> Command {
    let mut command = Command::new(&plugin.program);
    command
        .env_clear()
        .env("PATH", PATH)
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", &pod.container)
        .env("CNI_NETNS", &pod.netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", &subject.path)
        .env(
            "CNI_ARGS",
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={};K8S_POD_INFRA_CONTAINER_ID={}",
                pod.name.namespace, pod.name.name, pod.name.uid, pod.container
            ),
        )
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run_at_once(chains: Vec<Vec<Ready>>) -> Vec<io::Result<Ended>> {
    let start = Barrier::new(chains.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = chains
            .into_iter()
            .map(|chain| {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    timed(chain)
                })
            })
            .collect();
        let ended = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_panic| Err(io::Error::other("the thread that timed it panicked")))
        };
        threads.into_iter().map(ended).collect()
    })
}

/// Executes a chain. What a runtime does between two plugins, reading a result and writing it into the next input,
/// counts too.
fn timed(chain: Vec<Ready>) -> io::Result<Ended> {
    let start = Instant::now();
    let mut last: Option<(PathBuf, Output)> = None;
    for Ready { mut command, after } in chain {
        let mut child = command.spawn()?;
        if let (Some(mut config), Some((_, before))) = (after, &last) {
            config.insert("prevResult".into(), serde_json::from_slice(&before.stdout)?);
            let mut stdin = child.stdin.take().ok_or_else(|| io::Error::other("a plugin has no input"))?;
            stdin.write_all(Value::Object(config).to_string().as_bytes())?;
        }
        let output = child.wait_with_output()?;
        let failed = !output.status.success();
        last = Some((command.get_program().into(), output));
        if failed {
            break;
        }
    }
    let (program, output) = last.ok_or_else(|| io::Error::other("a chain without a plugin"))?;
    Ok(Ended { time: start.elapsed(), program, output })
}

/// CPU that was taken so far.
struct Cpu {
    /// By this process's ended children.
    plugins: Duration,
    daemons: Duration,
}

impl Cpu {
    fn now(daemons: &[u32]) -> Result<Self, BurstError> {
        let io = |source| BurstError::Io { what: "the CPU time of a process cannot be read".into(), source };
        let plugins = stat("self").map_err(io)?.children;
        let of = |pid: &u32| Ok(stat(&pid.to_string()).map_err(io)?.own);
        Ok(Self { plugins, daemons: daemons.iter().map(of).sum::<Result<_, BurstError>>()? })
    }
}

struct CpuTimes {
    own: Duration,
    children: Duration,
}

/// `/proc/PID/stat` (proc(5)): after the name in parentheses, fields 14 and 15 are the process's own user and system
/// time, 16 and 17 those of its ended children, in hundredths of a second (`USER_HZ` is fixed).
fn stat(pid: &str) -> io::Result<CpuTimes> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(')').unwrap_or_default();
    let mut ticks = fields.split_whitespace().skip(11).map_while(|field| field.parse::<u64>().ok());
    let mut sum = || match (ticks.next(), ticks.next()) {
        (Some(user), Some(system)) => Ok(Duration::from_millis(10 * (user + system))),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat is not as proc(5) says"))),
    };
    Ok(CpuTimes { own: sum()?, children: sum()? })
}
