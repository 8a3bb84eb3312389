//! `sluice-policyd` on a node, by its own binary, as a process of the node.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sluice_contract::cni::chain;
use sluice_contract::node::POLICYD_METRICS_PORT;
use tokio::process::Child;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::deployment::{DeploymentError, LOOK, page, text};
use crate::node::{Node, Program};

/// The port, on the loopback address, that shows what is in force.
const PORT: u16 = 61680;
/// The page there that says it.
const PAGE: &str = "/v1/policy";
/// How long a daemon that was asked to stop may take.
const STOP: Duration = Duration::from_secs(10);

/// Where policyd has the cluster from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory of objects.
    Directory(PathBuf),
    /// An API server.
    Kubeconfig(PathBuf),
    /// The API server at this address, by TLS, with the service account whose files the node has where a pod has them.
    ServiceAccount(SocketAddr),
}

/// policyd of one node.
#[derive(Debug)]
pub struct Policyd {
    node: Arc<Node>,
    binary: PathBuf,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    process: Mutex<Option<Child>>,
}

impl Policyd {
    /// The name of its log file.
    pub const LOG: &str = "policyd";

    /// policyd of a node, not started yet.
    #[must_use]
    pub fn new(node: Arc<Node>, binary: PathBuf, source: Source) -> Self {
        let mut env = BTreeMap::from([("MY_NODE_NAME".to_owned(), node.name().to_owned())]);
        let args = match source {
            Source::Directory(path) => vec!["--cluster-dir".to_owned(), path.display().to_string()],
            Source::Kubeconfig(path) => {
                env.insert("KUBECONFIG".to_owned(), path.display().to_string());
                Vec::new()
            }
            Source::ServiceAccount(server) => {
                env.insert("KUBERNETES_SERVICE_HOST".to_owned(), server.ip().to_string());
                env.insert("KUBERNETES_SERVICE_PORT".to_owned(), server.port().to_string());
                Vec::new()
            }
        };
        Self { node, binary, args, env, process: Mutex::default() }
    }

    /// Sets variables of its configuration, before it is started.
    #[must_use]
    pub fn with_environment(mut self, environment: BTreeMap<String, String>) -> Self {
        self.env.extend(environment);
        self
    }

    /// The node.
    #[must_use]
    pub const fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Starts it; a running one is left alone.
    ///
    /// # Errors
    /// [`DeploymentError::Node`] when it cannot be executed.
    pub async fn start(&self) -> Result<(), DeploymentError> {
        let mut process = self.process.lock().await;
        if process.is_none() {
            let (path, args, env) = (self.binary.clone(), self.args.clone(), self.env.clone());
            *process = Some(self.node.start(&Program { name: Self::LOG.into(), path, args, env }).await?);
        }
        Ok(())
    }

    /// Kills it by SIGKILL, as the kernel would, and waits for its end.
    pub async fn kill(&self) {
        let child = self.process.lock().await.take();
        if let Some(mut child) = child
            && let Err(error) = child.kill().await
        {
            tracing::warn!(%error, "policyd could not be killed");
        }
    }

    /// Asks it to stop, as a kubelet does, and waits for its end; what does not stop is killed.
    pub async fn stop(&self) {
        let Some(mut child) = self.process.lock().await.take() else { return };
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // Gone meanwhile is what is wanted.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if tokio::time::timeout(STOP, child.wait()).await.is_err()
            && let Err(error) = child.kill().await
        {
            tracing::warn!(%error, "policyd could not be killed");
        }
    }

    /// Its process id while it runs.
    pub async fn pid(&self) -> Option<u32> {
        self.process.lock().await.as_ref().and_then(Child::id)
    }

    /// A page of its port.
    ///
    /// # Errors
    /// [`DeploymentError::Page`].
    pub async fn page(&self, path: &str) -> Result<Value, DeploymentError> {
        page(&self.node, "sluice-policyd", PORT, path).await
    }

    /// Its metrics, as Prometheus reads them.
    ///
    /// # Errors
    /// [`DeploymentError::Page`].
    pub async fn metrics(&self) -> Result<String, DeploymentError> {
        let text = text(&self.node, "sluice-policyd", POLICYD_METRICS_PORT, "/metrics").await?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Waits until what it says of itself is as `wanted`, and returns that.
    ///
    /// # Errors
    /// [`DeploymentError::Ended`] when it gave up, [`DeploymentError::Late`] after `limit`.
    pub async fn until(
        &self,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(&Value) -> bool,
    ) -> Result<Value, DeploymentError> {
        let end = Instant::now() + limit;
        loop {
            let last = match self.page(PAGE).await {
                Ok(view) if wanted(&view) => return Ok(view),
                Ok(view) => format!("policyd says {view}"),
                Err(error) => chain(&error),
            };
            self.alive().await?;
            if Instant::now() >= end {
                let node = self.node.name().to_owned();
                let last = format!("{last}; its last words:\n{}", self.node.log_tail(Self::LOG, 20));
                return Err(DeploymentError::Late { node, what: what.to_owned(), limit, last });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until everything that the cluster says has come and is in force.
    ///
    /// # Errors
    /// As [`Self::until`].
    pub async fn ready(&self, limit: Duration) -> Result<(), DeploymentError> {
        let ready = |view: &Value| view.get("synced").and_then(Value::as_bool) == Some(true);
        self.until("policyd did not become ready", limit, ready).await.map(drop)
    }

    /// Waits until a pod has no gate any more.
    ///
    /// # Errors
    /// As [`Self::until`].
    pub async fn without(&self, namespace: &str, name: &str, limit: Duration) -> Result<(), DeploymentError> {
        let is_it = |gate: &Value| {
            let text = |key: &str| gate.get(key).and_then(Value::as_str);
            text("namespace") == Some(namespace) && text("name") == Some(name)
        };
        let gates = |view: &Value| view.get("endpoints").and_then(Value::as_array).cloned().unwrap_or_default();
        self.until("a gate was not given up", limit, |view| !gates(view).iter().any(is_it)).await.map(drop)
    }

    /// Waits until this generation of a NetworkPolicy, or a later one, is in force.
    ///
    /// # Errors
    /// As [`Self::until`].
    pub async fn enforces(
        &self,
        namespace: &str,
        name: &str,
        generation: i64,
        limit: Duration,
    ) -> Result<(), DeploymentError> {
        let in_force = |view: &Value| {
            let policies = view.get("policies").and_then(Value::as_array);
            policies.into_iter().flatten().any(|policy| {
                let text = |key: &str| policy.get(key).and_then(Value::as_str);
                text("kind") == Some("NetworkPolicy")
                    && text("namespace") == Some(namespace)
                    && text("name") == Some(name)
                    && policy.get("generation").and_then(Value::as_i64) >= Some(generation)
            })
        };
        self.until("a policy was not in force", limit, in_force).await.map(drop)
    }

    async fn alive(&self) -> Result<(), DeploymentError> {
        let mut process = self.process.lock().await;
        let ended = process.as_mut().and_then(|child| child.try_wait().ok().flatten());
        let Some(status) = ended else { return Ok(()) };
        *process = None;
        let node = self.node.name().to_owned();
        let log = self.node.log_tail(Self::LOG, 20);
        Err(DeploymentError::Ended { program: "sluice-policyd", node, status: status.to_string(), log })
    }
}
