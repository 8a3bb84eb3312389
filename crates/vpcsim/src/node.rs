//! A simulated machine: network, mount and UTS namespaces in which production binaries run with their production
//! paths.
//!
//! The machine sees the host's file system with layers of its own, all in memory: `/run` is fresh; `/etc`, `/opt` and
//! `/var` are the host's below a private layer, so nothing that is written there (`/etc/cni/net.d`, `/opt/cni/bin`,
//! `/var/lib/cni`) reaches the host or another node; `/sys/fs/bpf` is a bpffs of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sluice_contract::id::PodRef;
use sluice_hostnet::netns::{Namespace, NamespaceError, NamespaceId, NamespaceThread, ThreadError, ThreadSpec};
use tokio::process::{Child, Command};

use crate::fabric::{FabricError, loopback_up};
use crate::runtime::Sandbox;
use crate::world::leftovers::TAG_VARIABLE;

mod disk;
pub(crate) mod processes;

/// Where runtimes keep the names of pods' network namespaces.
pub const NETNS_DIR: &str = "/run/netns";
/// The `PATH` of what runs on a node.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long killed processes may take to go.
const KILL: Duration = Duration::from_secs(5);

/// Why something could not be done on a node.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Namespaces could not be made or entered.
    #[error("node {node}: {what}")]
    Namespace {
        /// The node.
        node: String,
        /// What was being done.
        what: String,
        /// The reason.
        source: NamespaceError,
    },
    /// The node's thread has ended, or what ran on it panicked.
    #[error("node {node} cannot be entered")]
    Thread {
        /// The node.
        node: String,
        /// The reason.
        source: ThreadError,
    },
    /// A loopback interface could not be switched on.
    #[error("node {node}: no loopback")]
    Loopback {
        /// The node.
        node: String,
        /// The reason.
        source: FabricError,
    },
    /// A file or process of the node made trouble.
    #[error("node {node}: {what}")]
    Io {
        /// The node.
        node: String,
        /// What was being done.
        what: String,
        /// The operating system's reason.
        source: io::Error,
    },
}

/// A long-lived program to start on a node.
#[derive(Debug, Clone, Default)]
pub struct Program {
    /// Name of its log file.
    pub name: String,
    /// The executable: a path on the node, where the host's tree is visible too.
    pub path: PathBuf,
    /// Arguments.
    pub args: Vec<String>,
    /// The whole environment, `PATH` excepted.
    pub env: BTreeMap<String, String>,
}

/// A simulated machine. Dropping it ends its processes and removes all that it made.
#[derive(Debug)]
pub struct Node {
    name: String,
    dir: PathBuf,
    tag: String,
    tid: i32,
    thread: NamespaceThread,
    /// A thread for each sandbox that something was run in.
    pods: Mutex<BTreeMap<PathBuf, Arc<NamespaceThread>>>,
    next_sandbox: AtomicU32,
    /// Whether the machine lives on as another, which has the directory now.
    replaced: AtomicBool,
}

impl Node {
    /// Boots a machine called `name` without any link but loopback. `dir` is made on the host, for its logs, and goes
    /// with the node. The node's programs carry `tag` in their environment.
    ///
    /// # Errors
    /// [`NodeError::Namespace`] and [`NodeError::Io`] without the privilege to make namespaces and mounts.
    pub async fn boot(name: &str, dir: &Path, tag: &str) -> Result<Self, NodeError> {
        let io = |what: &str, source| NodeError::Io { node: name.into(), what: what.into(), source };
        std::fs::create_dir_all(dir.join("log")).map_err(|source| io("its directory cannot be made", source))?;
        let thread = match NamespaceThread::spawn(ThreadSpec::new_node(name, name)) {
            Ok(thread) => thread,
            Err(source) => {
                remove_dir(dir);
                return Err(NodeError::Namespace { node: name.into(), what: "it cannot boot".into(), source });
            }
        };
        let layers = dir.join("layers");
        Self::set_up(name, dir, tag, thread, move || disk::mount_layers(&layers)).await
    }

    /// The machine after a restart: `/etc`, `/opt` and `/var` as they were, `/run`, network and processes anew. This
    /// one is an empty shell from then on.
    pub(crate) async fn reboot(&self) -> Result<Self, NodeError> {
        self.kill_processes()?;
        self.threads().clear();
        let name = self.name.clone();
        // From the node's thread, so that the new one begins with its mounts.
        let thread = self.run(move || NamespaceThread::spawn(ThreadSpec::new_node(name.clone(), name))).await?;
        let thread = thread.map_err(|source| self.namespace("it cannot boot".into(), source))?;
        self.replaced.store(true, Ordering::Relaxed);
        Self::set_up(&self.name, &self.dir, &self.tag, thread, disk::unmount_volatile).await
    }

    /// From here on, dropping the node takes everything away again.
    async fn set_up(
        name: &str,
        dir: &Path,
        tag: &str,
        thread: NamespaceThread,
        disk: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<Self, NodeError> {
        let mut node = Self {
            name: name.into(),
            dir: dir.into(),
            tag: tag.into(),
            tid: 0,
            thread,
            pods: Mutex::default(),
            next_sandbox: AtomicU32::new(0),
            replaced: AtomicBool::new(false),
        };
        let set_up = node.run(move || {
            disk()?;
            disk::mount_volatile()?;
            disk::boot_sysctls()?;
            Ok(nix::unistd::gettid().as_raw())
        });
        let done = set_up.await?;
        node.tid = done.map_err(|source| node.io("its file systems and sysctls cannot be set up".into(), source))?;
        node.loopback_up(node.thread.net()).await?;
        Ok(node)
    }

    /// The node's name, which is its host name too.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's directory on the host; `log/` holds what its programs print.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The node's network namespace.
    #[must_use]
    pub const fn net(&self) -> &Namespace {
        self.thread.net()
    }

    /// The command that opens a shell on the node.
    #[must_use]
    pub fn enter_hint(&self) -> String {
        let me = std::process::id();
        let ns = |file: &str| format!("/proc/{me}/task/{}/ns/{file}", self.tid);
        format!("nsenter --net={} --mount={} --uts={} bash", ns("net"), ns("mnt"), ns("uts"))
    }

    /// Runs `work` on the node, e.g. to read or write its files. Nothing else runs there meanwhile.
    ///
    /// # Errors
    /// [`NodeError::Thread`] when the node is gone or `work` panicked.
    pub async fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> Result<R, NodeError> {
        self.run_async(|| async { work() }).await
    }

    /// Makes a future on the node and drives it there, e.g. one that uses sockets.
    ///
    /// # Errors
    /// [`NodeError::Thread`] when the node is gone or the future panicked.
    pub async fn run_async<R, F>(&self, make: impl FnOnce() -> F + Send + 'static) -> Result<R, NodeError>
    where
        R: Send + 'static,
        F: Future<Output = R> + 'static,
    {
        self.thread.run(make).await.map_err(|source| NodeError::Thread { node: self.name.clone(), source })
    }

    /// Starts `command` on the node; the child belongs to the caller's runtime.
    ///
    /// # Errors
    /// [`NodeError::Io`] when it cannot be executed.
    pub async fn spawn(&self, mut command: Command) -> Result<Child, NodeError> {
        let what = format!("{} cannot be started", command.as_std().get_program().display());
        let runtime = tokio::runtime::Handle::current();
        let spawned = self.run(move || {
            let _entered = runtime.enter();
            command.spawn()
        });
        spawned.await?.map_err(|source| self.io(what, source))
    }

    /// Starts a long-lived program. It is killed with the node at the latest, also when this process is killed. What
    /// it prints goes to [`Self::log`].
    ///
    /// # Errors
    /// [`NodeError::Io`] when its log cannot be opened or it cannot be executed.
    pub async fn start(&self, program: &Program) -> Result<Child, NodeError> {
        let path = self.log(&program.name);
        let opened = std::fs::File::options().create(true).append(true).open(&path);
        let streams = opened.and_then(|out| Ok((out.try_clone()?, out)));
        let (out, err) =
            streams.map_err(|source| self.io(format!("the log {} cannot be written", path.display()), source))?;
        // setpriv replaces itself by the program, which is then signalled when the node's thread ends.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&program.path)
            .args(&program.args)
            .env_clear()
            .env("PATH", PATH)
            .env(TAG_VARIABLE, &self.tag)
            .envs(&program.env)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .kill_on_drop(true);
        self.spawn(command).await
    }

    /// The log file, on the host, of the program called `name`.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("log").join(format!("{name}.log"))
    }

    /// The last lines of that log.
    #[must_use]
    pub fn log_tail(&self, name: &str, lines: usize) -> String {
        let text = std::fs::read_to_string(self.log(name)).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
    }

    /// Copies a file of the host to `to` on the node, directories included, and keeps its mode.
    ///
    /// # Errors
    /// [`NodeError::Io`] with the operating system's reason.
    pub async fn install(&self, from: &Path, to: &Path) -> Result<(), NodeError> {
        let what = format!("{} cannot be copied to {}", from.display(), to.display());
        let (from, to) = (from.to_owned(), to.to_owned());
        let copied = self.run(move || {
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::copy(from, to)
        });
        copied.await?.map(drop).map_err(|source| self.io(what, source))
    }

    /// Writes a file on the node, directories included.
    ///
    /// # Errors
    /// [`NodeError::Io`] with the operating system's reason.
    pub async fn write(&self, path: impl AsRef<Path>, text: &str) -> Result<(), NodeError> {
        let (path, text) = (path.as_ref().to_owned(), text.to_owned());
        let what = format!("{} cannot be written", path.display());
        let written = self.run(move || {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(path, text)
        });
        written.await?.map_err(|source| self.io(what, source))
    }

    /// Makes a pod's sandbox as a runtime does: a network namespace with loopback up, named `/run/netns/cni-…`. The pod has
    /// no annotations.
    ///
    /// # Errors
    /// [`NodeError`] when the namespace or its name cannot be made.
    pub async fn sandbox(&self, namespace: &str, name: &str) -> Result<Sandbox, NodeError> {
        let serial = self.next_sandbox.fetch_add(1, Ordering::Relaxed);
        let pod = PodRef { namespace: namespace.into(), name: name.into(), uid: None };
        let id = format!("{}{serial:08x}", sluice_contract::node::veth_hash(&pod, 0));
        let netns = Path::new(NETNS_DIR).join(format!("cni-{id}"));
        let path = netns.clone();
        let made = self.run(move || Namespace::create(&path)).await?;
        let made = made.map_err(|source| self.namespace(format!("no sandbox for {namespace}/{name}"), source))?;
        self.loopback_up(&made).await?;
        let annotations = BTreeMap::new();
        Ok(Sandbox { id, namespace: namespace.into(), name: name.into(), netns, annotations })
    }

    /// Takes a sandbox's namespace away; twice is fine.
    ///
    /// # Errors
    /// [`NodeError::Namespace`] when its name cannot be removed.
    pub async fn remove_sandbox(&self, sandbox: &Sandbox) -> Result<(), NodeError> {
        let thread = self.threads().remove(&sandbox.netns);
        // Its end is waited for where blocking does not matter.
        drop(tokio::task::spawn_blocking(move || drop(thread)).await);
        let path = sandbox.netns.clone();
        let removed = self.run(move || Namespace::remove(path)).await?;
        removed.map_err(|source| self.namespace(format!("sandbox {} cannot be removed", sandbox.id), source))
    }

    /// A thread inside the network namespace that `netns` names on the node, whoever made it.
    ///
    /// # Errors
    /// [`NodeError::Namespace`] when there is no such namespace.
    pub async fn pod(&self, netns: &Path) -> Result<Arc<NamespaceThread>, NodeError> {
        if let Some(thread) = self.threads().get(netns) {
            return Ok(Arc::clone(thread));
        }
        let path = netns.to_owned();
        let joined = self.run(move || {
            // From the node's thread, so that the pod's has the node's mounts and host name.
            NamespaceThread::spawn(ThreadSpec::in_net("pod", Namespace::open(path)?))
        });
        let joined =
            joined.await?.map_err(|source| self.namespace(format!("no pod at {}", netns.display()), source))?;
        let thread = Arc::new(joined);
        self.threads().insert(netns.to_owned(), Arc::clone(&thread));
        Ok(thread)
    }

    /// Ids of the processes on the node and in its sandboxes, and of all that descend from them.
    #[must_use]
    pub fn processes(&self) -> BTreeSet<i32> {
        processes::running(&self.namespaces())
    }

    /// Kills, by SIGKILL, what runs on the node, and waits until it is gone.
    ///
    /// # Errors
    /// [`NodeError::Io`] when something is still there after 5 s.
    pub fn kill_processes(&self) -> Result<(), NodeError> {
        processes::kill(&self.namespaces(), KILL)
            .map_err(|left| self.io(format!("processes {left:?} do not die"), io::ErrorKind::TimedOut.into()))
    }

    /// The mount namespace, and the network namespaces of the node and of its sandboxes.
    pub(crate) fn namespaces(&self) -> BTreeSet<NamespaceId> {
        let mut ids = BTreeSet::from([self.thread.mount().id(), self.thread.net().id()]);
        let pods = self.thread.mount().run(|| {
            let entries = std::fs::read_dir(NETNS_DIR).into_iter().flatten().filter_map(Result::ok);
            entries.filter_map(|entry| Some(Namespace::open(entry.path()).ok()?.id())).collect::<Vec<_>>()
        });
        ids.extend(pods.into_iter().flatten());
        ids
    }

    async fn loopback_up(&self, namespace: &Namespace) -> Result<(), NodeError> {
        let done = loopback_up(&self.name, namespace).await;
        done.map_err(|source| NodeError::Loopback { node: self.name.clone(), source })
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, Arc<NamespaceThread>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn namespace(&self, what: String, source: NamespaceError) -> NodeError {
        NodeError::Namespace { node: self.name.clone(), what, source }
    }

    fn io(&self, what: String, source: io::Error) -> NodeError {
        NodeError::Io { node: self.name.clone(), what, source }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.kill_processes() {
            tracing::warn!(%error, "a node goes down with processes left");
        }
        self.threads().clear();
        if !self.replaced.load(Ordering::Relaxed) {
            remove_dir(&self.dir);
        }
    }
}

fn remove_dir(dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "a node's directory stays");
    }
}
