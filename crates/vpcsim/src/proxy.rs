//! `sluice-proxy` on a node, by its own binary, as a process of the node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sluice_contract::cni::chain;
use sluice_contract::node::PROXY_INTROSPECTION_PORT;
use tokio::process::Child;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::deployment::{DeploymentError, LOOK, page};
use crate::node::{Node, Program};

/// The page, on the loopback address, with the records, the newest first.
const RECORDS: &str = "/v1/records";
/// The page that says which policy is in force.
const POLICY: &str = "/v1/policy";
/// How long a proxy that was asked to stop may take: its connections drain.
const STOP: Duration = Duration::from_secs(15);

/// The proxy of one node.
#[derive(Debug)]
pub struct Proxy {
    node: Arc<Node>,
    binary: PathBuf,
    env: BTreeMap<String, String>,
    process: Mutex<Option<Child>>,
}

impl Proxy {
    /// The name of its log file.
    pub const LOG: &str = "proxy";

    /// The proxy of a node, not started yet. `env` are variables of its configuration.
    #[must_use]
    pub fn new(node: Arc<Node>, binary: PathBuf, env: BTreeMap<String, String>) -> Self {
        Self { node, binary, env, process: Mutex::default() }
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
            *process = Some(self.spawn().await?);
        }
        Ok(())
    }

    async fn spawn(&self) -> Result<Child, DeploymentError> {
        let (path, env) = (self.binary.clone(), self.env.clone());
        Ok(self.node.start(&Program { name: Self::LOG.into(), path, args: Vec::new(), env }).await?)
    }

    /// Starts another one beside the running one, waits until it has taken over, then ends the old one as [`Self::stop`] does.
    ///
    /// # Errors
    /// As [`Self::start`] and [`Self::ready`].
    pub async fn replace(&self, limit: Duration) -> Result<(), DeploymentError> {
        let new = self.spawn().await?;
        let old = self.process.lock().await.replace(new);
        let ready = self.ready(limit).await;
        if let Some(old) = old {
            end(old).await;
        }
        ready
    }

    /// Kills it by SIGKILL, as the kernel would, and waits for its end.
    pub async fn kill(&self) {
        let child = self.process.lock().await.take();
        if let Some(mut child) = child
            && let Err(error) = child.kill().await
        {
            tracing::warn!(%error, "the proxy could not be killed");
        }
    }

    /// Asks it to stop, as a kubelet does, and waits for its end; what does not stop is killed.
    pub async fn stop(&self) {
        let child = self.process.lock().await.take();
        if let Some(child) = child {
            end(child).await;
        }
    }

    /// Its process id while it runs.
    pub async fn pid(&self) -> Option<u32> {
        self.process.lock().await.as_ref().and_then(Child::id)
    }

    /// Its records, the newest first.
    ///
    /// # Errors
    /// [`DeploymentError::Page`].
    pub async fn records(&self) -> Result<Vec<Value>, DeploymentError> {
        match self.page(RECORDS).await? {
            Value::Array(records) => Ok(records),
            _ => Err(DeploymentError::Page {
                program: "sluice-proxy",
                node: self.node.name().to_owned(),
                page: RECORDS.to_owned(),
                reason: "it is no list".to_owned(),
            }),
        }
    }

    /// Waits until it has its policy from policyd, and takes what gates redirect.
    ///
    /// # Errors
    /// [`DeploymentError::Ended`] when it gave up, [`DeploymentError::Late`] after `limit`.
    pub async fn ready(&self, limit: Duration) -> Result<(), DeploymentError> {
        let end = Instant::now() + limit;
        loop {
            let last = match self.page(POLICY).await {
                Ok(view) if is_ready(&view, self.pid().await) => return Ok(()),
                Ok(view) => format!("the proxy says {view}"),
                Err(error) => chain(&error),
            };
            self.alive().await?;
            if Instant::now() >= end {
                let (node, what) = (self.node.name().to_owned(), "the proxy did not become ready".to_owned());
                let last = format!("{last}; its last words:\n{}", self.node.log_tail(Self::LOG, 20));
                return Err(DeploymentError::Late { node, what, limit, last });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A page of its port.
    ///
    /// # Errors
    /// [`DeploymentError::Page`].
    pub async fn page(&self, path: &str) -> Result<Value, DeploymentError> {
        page(&self.node, "sluice-proxy", PROXY_INTROSPECTION_PORT, path).await
    }

    async fn alive(&self) -> Result<(), DeploymentError> {
        let mut process = self.process.lock().await;
        let ended = process.as_mut().and_then(|child| child.try_wait().ok().flatten());
        let Some(status) = ended else { return Ok(()) };
        *process = None;
        let node = self.node.name().to_owned();
        let log = self.node.log_tail(Self::LOG, 20);
        Err(DeploymentError::Ended { program: "sluice-proxy", node, status: status.to_string(), log })
    }
}

/// Whether a page is that of process `pid`, and says that it serves.
fn is_ready(view: &Value, pid: Option<u32>) -> bool {
    let says = |key: &str| view.get(key).and_then(Value::as_bool) == Some(true);
    let process = view.get("process").and_then(Value::as_u64);
    says("policyd") && says("serving") && process.is_some() && process == pid.map(u64::from)
}

async fn end(mut child: Child) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // Gone meanwhile is what is wanted.
        let _gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    if tokio::time::timeout(STOP, child.wait()).await.is_err()
        && let Err(error) = child.kill().await
    {
        tracing::warn!(%error, "the proxy could not be killed");
    }
}
