//! Sluice on a node of a world, by its own binaries at their production paths: `sluice-ipamd` as a process of the node,
//! `sluice-eni` and the conflist where a runtime looks for them, and pods made as a runtime makes them.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sluice_contract::cni::chain;
use sluice_contract::node::{CONFLIST, IPAMD_INTROSPECTION_PORT};
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::fabric::EC2_ENDPOINT;
use crate::node::{Node, NodeError, Program};
use crate::policyd::{Policyd, Source};
use crate::proxy::Proxy;
use crate::runtime::{BIN_DIR, Runtime, RuntimeError, Sandbox};

/// The conflist of a node with the primary plugin alone.
pub const PLAIN_CONFLIST: &str = r#"{"cniVersion": "1.0.0", "name": "sluice",
    "plugins": [{"type": "sluice-eni", "capabilities": {"io.kubernetes.cri.pod-annotations": true}}]}"#;

/// The conflist of a node whose pods have gates.
pub const GATED_CONFLIST: &str = r#"{"cniVersion": "1.0.0", "name": "sluice",
    "plugins": [{"type": "sluice-eni", "gated": true, "capabilities": {"io.kubernetes.cri.pod-annotations": true}},
        {"type": "sluice-policy"}]}"#;

/// Between two looks at what is waited for.
pub(crate) const LOOK: Duration = Duration::from_millis(20);
/// How long a page of the introspection port may take.
const PAGE: Duration = Duration::from_secs(5);
/// The longest page that is read, in bytes.
const PAGE_LIMIT: usize = 4 << 20;

/// Where the binaries are on this machine.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// `sluice-ipamd`.
    pub ipamd: PathBuf,
    /// `sluice-eni`.
    pub eni: PathBuf,
}

/// Where the binaries of the policy half are on this machine.
#[derive(Debug, Clone)]
pub struct GateBinaries {
    /// `sluice-policyd`.
    pub policyd: PathBuf,
    /// `sluice-policy`.
    pub policy: PathBuf,
}

/// Why a node does not run Sluice.
#[derive(Debug, thiserror::Error)]
pub enum DeploymentError {
    /// A binary has not been built.
    #[error("{} is missing: build it by `cargo build --profile fast --bins`", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The directory of this program is not known.
    #[error("the directory of this program cannot be told")]
    Here(#[source] io::Error),
    /// The node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The plugin or its conflist.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A daemon ended by itself.
    #[error("{program} on {node} has ended ({status}); its last words:\n{log}")]
    Ended {
        /// Which.
        program: &'static str,
        /// The node.
        node: String,
        /// How.
        status: String,
        /// The end of its log.
        log: String,
    },
    /// Something was waited for in vain.
    #[error("{what} on {node} within {} s; {last}", limit.as_secs())]
    Late {
        /// The node.
        node: String,
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// What there was instead.
        last: String,
    },
    /// A page of the introspection port could not be read.
    #[error("the page {page} of {program} on {node} cannot be read: {reason}")]
    Page {
        /// The daemon.
        program: &'static str,
        /// The node.
        node: String,
        /// Its path.
        page: String,
        /// Why.
        reason: String,
    },
    /// The result of an ADD lacks what every result has.
    #[error("the result of the ADD has no address: {result}")]
    Result {
        /// The result.
        result: Value,
    },
}

impl Binaries {
    /// The binaries in the directory of the running program, or in the one above (tests run in `deps/`).
    ///
    /// # Errors
    /// [`DeploymentError::Missing`] says how to build them.
    pub fn beside_this_program() -> Result<Self, DeploymentError> {
        Ok(Self { ipamd: Self::find("sluice-ipamd")?, eni: Self::find("sluice-eni")? })
    }

    /// One binary, by its name, in the same place.
    ///
    /// # Errors
    /// [`DeploymentError::Missing`] says how to build it.
    pub fn find(name: &str) -> Result<PathBuf, DeploymentError> {
        let program = std::env::current_exe().map_err(DeploymentError::Here)?;
        let here = program.parent().unwrap_or(Path::new("/"));
        let directory = if here.ends_with("deps") { here.parent().unwrap_or(here) } else { here };
        let path = directory.join(name);
        if path.is_file() { Ok(path) } else { Err(DeploymentError::Missing { path }) }
    }
}

impl GateBinaries {
    /// As [`Binaries::beside_this_program`].
    ///
    /// # Errors
    /// [`DeploymentError::Missing`] says how to build them.
    pub fn beside_this_program() -> Result<Self, DeploymentError> {
        Ok(Self { policyd: Binaries::find("sluice-policyd")?, policy: Binaries::find("sluice-policy")? })
    }
}

/// A pod that has an address.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its sandbox.
    pub sandbox: Sandbox,
    /// Its IPv4 address; `0.0.0.0` where pods have IPv6 alone.
    pub address: Ipv4Addr,
    /// Its IPv6 address, where pods have one.
    pub ipv6: Option<Ipv6Addr>,
    /// The result of the chain's ADD.
    pub result: Value,
    /// How long the ADD took.
    pub took: Duration,
}

/// A node on which Sluice is installed.
#[derive(Debug)]
pub struct Deployment {
    node: Arc<Node>,
    runtime: Runtime,
    ipamd: PathBuf,
    environment: BTreeMap<String, String>,
    process: Mutex<Option<Child>>,
    policyd: Option<Policyd>,
    proxy: Option<Proxy>,
}

impl Deployment {
    /// Puts plugin and conflist in place. `environment` is added to what ipamd needs to find EC2.
    ///
    /// # Errors
    /// [`DeploymentError`] when a file cannot be put in place.
    pub async fn install(
        node: Arc<Node>,
        binaries: &Binaries,
        conflist: &str,
        environment: BTreeMap<String, String>,
    ) -> Result<Self, DeploymentError> {
        node.install(&binaries.eni, &Path::new(BIN_DIR).join("sluice-eni")).await?;
        node.write(CONFLIST, conflist).await?;
        let runtime = Runtime::start(&node).await?;
        let (ipamd, process) = (binaries.ipamd.clone(), Mutex::default());
        Ok(Self { node, runtime, ipamd, environment, process, policyd: None, proxy: None })
    }

    /// Puts both plugins and a conflist that names them in place, and gives the node a policyd that has the cluster from
    /// `source`; [`Self::policyd`] starts it.
    ///
    /// # Errors
    /// [`DeploymentError`] when a file cannot be put in place.
    pub async fn install_gated(
        node: Arc<Node>,
        binaries: &Binaries,
        gate: &GateBinaries,
        environment: BTreeMap<String, String>,
        source: Source,
    ) -> Result<Self, DeploymentError> {
        node.install(&gate.policy, &Path::new(BIN_DIR).join("sluice-policy")).await?;
        let policyd = Policyd::new(Arc::clone(&node), gate.policyd.clone(), source);
        let installed = Self::install(node, binaries, GATED_CONFLIST, environment).await?;
        Ok(Self { policyd: Some(policyd), ..installed })
    }

    /// The node also gets a proxy, which [`Self::proxy`] starts. `environment` are variables of its configuration.
    #[must_use]
    pub fn with_proxy(self, binary: PathBuf, environment: BTreeMap<String, String>) -> Self {
        Self { proxy: Some(Proxy::new(Arc::clone(&self.node), binary, environment)), ..self }
    }

    /// policyd, where there is one, gets variables of its configuration. To be called before it is started.
    #[must_use]
    pub fn with_policyd_environment(self, environment: BTreeMap<String, String>) -> Self {
        Self { policyd: self.policyd.map(|policyd| policyd.with_environment(environment)), ..self }
    }

    /// The proxy, where there is one.
    #[must_use]
    pub const fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    /// The policy agent, where there is one.
    #[must_use]
    pub const fn policyd(&self) -> Option<&Policyd> {
        self.policyd.as_ref()
    }

    /// The node.
    #[must_use]
    pub const fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// The runtime that executes the plugins.
    #[must_use]
    pub const fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Starts ipamd; a running one is left alone.
    ///
    /// # Errors
    /// [`DeploymentError::Node`] when it cannot be executed.
    pub async fn start_ipamd(&self) -> Result<(), DeploymentError> {
        let mut process = self.process.lock().await;
        if process.is_none() {
            let mut env = self.environment.clone();
            env.entry("AWS_ENDPOINT_URL_EC2".into()).or_insert_with(|| format!("http://{EC2_ENDPOINT}"));
            let program = Program { name: "ipamd".into(), path: self.ipamd.clone(), args: Vec::new(), env };
            *process = Some(self.node.start(&program).await?);
        }
        Ok(())
    }

    /// Kills ipamd by SIGKILL, as the kernel would, and waits for its end.
    pub async fn kill_ipamd(&self) {
        let child = self.process.lock().await.take();
        if let Some(mut child) = child
            && let Err(error) = child.kill().await
        {
            tracing::warn!(%error, "ipamd could not be killed");
        }
    }

    /// Kills the daemons, as the kernel would, and waits for their ends.
    pub async fn end(&self) {
        self.kill_ipamd().await;
        if let Some(policyd) = &self.policyd {
            policyd.kill().await;
        }
        if let Some(proxy) = &self.proxy {
            proxy.kill().await;
        }
    }

    /// Process id of ipamd while it runs.
    pub async fn ipamd_pid(&self) -> Option<u32> {
        self.process.lock().await.as_ref().and_then(Child::id)
    }

    /// Waits until ipamd says that pods may start. STATUS would say it too, but exists only since CNI 1.1.0.
    ///
    /// # Errors
    /// [`DeploymentError::Ended`] when ipamd gave up, [`DeploymentError::Late`] after `limit`.
    pub async fn ready(&self, limit: Duration) -> Result<(), DeploymentError> {
        let ready = |view: &Value| view.get("ready").and_then(Value::as_bool) == Some(true);
        self.pool_until("pods could not be started", limit, ready).await.map(drop)
    }

    /// A page of ipamd's introspection port.
    ///
    /// # Errors
    /// [`DeploymentError::Page`].
    pub async fn page(&self, path: &str) -> Result<Value, DeploymentError> {
        page(&self.node, "sluice-ipamd", IPAMD_INTROSPECTION_PORT, path).await
    }

    /// Waits until the page `/v1/pool` is as `wanted` says, and returns it.
    ///
    /// # Errors
    /// [`DeploymentError::Ended`] when ipamd gave up, [`DeploymentError::Late`] after `limit`.
    pub async fn pool_until(
        &self,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(&Value) -> bool,
    ) -> Result<Value, DeploymentError> {
        let end = Instant::now() + limit;
        loop {
            let last = match self.page("/v1/pool").await {
                Ok(view) if wanted(&view) => return Ok(view),
                Ok(view) => format!("the pool is {}", view.get("pool").unwrap_or(&view)),
                Err(error) => chain(&error),
            };
            self.alive().await?;
            self.pause(end, limit, what, last).await?;
        }
    }

    /// Makes a sandbox and attaches it.
    ///
    /// # Errors
    /// The chain's. The attachment and the sandbox are taken away again then, as a runtime does.
    pub async fn add(&self, namespace: &str, name: &str) -> Result<Pod, DeploymentError> {
        self.add_annotated(namespace, name, BTreeMap::new()).await
    }

    /// The same for a pod that has annotations.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub async fn add_annotated(
        &self,
        namespace: &str,
        name: &str,
        annotations: BTreeMap<String, String>,
    ) -> Result<Pod, DeploymentError> {
        let sandbox = Sandbox { annotations, ..self.node.sandbox(namespace, name).await? };
        let begun = Instant::now();
        let added = self.runtime.add(&self.node, &sandbox).await;
        let took = begun.elapsed();
        let pod = added.map_err(DeploymentError::from).and_then(|result| {
            let (address, ipv6): (Option<Ipv4Addr>, Option<Ipv6Addr>) = (address_of(&result), address_of(&result));
            if address.is_none() && ipv6.is_none() {
                return Err(DeploymentError::Result { result });
            }
            let address = address.unwrap_or(Ipv4Addr::UNSPECIFIED);
            Ok(Pod { sandbox: sandbox.clone(), address, ipv6, result, took })
        });
        if pod.is_err()
            && let Err(error) = self.delete(&sandbox).await
        {
            tracing::warn!(%error, sandbox = sandbox.id, "a sandbox that was not attached stays behind");
        }
        pod
    }

    /// Detaches a sandbox and takes it away.
    ///
    /// # Errors
    /// The chain's, or the node's.
    pub async fn delete(&self, sandbox: &Sandbox) -> Result<(), DeploymentError> {
        self.runtime.del(&self.node, sandbox).await?;
        Ok(self.node.remove_sandbox(sandbox).await?)
    }

    /// The last lines of ipamd's log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        self.node.log_tail("ipamd", lines)
    }

    async fn alive(&self) -> Result<(), DeploymentError> {
        let mut process = self.process.lock().await;
        let ended = process.as_mut().and_then(|child| child.try_wait().ok().flatten());
        match ended {
            None => Ok(()),
            Some(status) => {
                *process = None;
                let node = self.node.name().to_owned();
                let (program, log) = ("sluice-ipamd", self.log_tail(20));
                Err(DeploymentError::Ended { program, node, status: status.to_string(), log })
            }
        }
    }

    async fn pause(&self, end: Instant, limit: Duration, what: &str, last: String) -> Result<(), DeploymentError> {
        if Instant::now() >= end {
            return Err(DeploymentError::Late { node: self.node.name().into(), what: what.into(), limit, last });
        }
        tokio::time::sleep(LOOK).await;
        Ok(())
    }
}

/// The first address of a family in a result.
fn address_of<A: FromStr>(result: &Value) -> Option<A> {
    result.get("ips")?.as_array()?.iter().find_map(|ip| {
        let address = ip.get("address")?.as_str()?;
        address.split('/').next()?.parse().ok()
    })
}

/// A page of a daemon of the node, from the loopback address.
pub(crate) async fn page(node: &Node, program: &'static str, port: u16, path: &str) -> Result<Value, DeploymentError> {
    let text = text(node, program, port, path).await?;
    serde_json::from_slice(&text).map_err(|error| DeploymentError::Page {
        program,
        node: node.name().to_owned(),
        page: path.to_owned(),
        reason: error.to_string(),
    })
}

/// What a daemon answers at a path of one of its ports.
pub(crate) async fn text(
    node: &Node,
    program: &'static str,
    port: u16,
    path: &str,
) -> Result<Vec<u8>, DeploymentError> {
    let asked = path.to_owned();
    let answer = node.run_async(move || async move {
        match tokio::time::timeout(PAGE, get(port, &asked)).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(format!("no answer within {} s", PAGE.as_secs())),
        }
    });
    let failed =
        |reason: String| DeploymentError::Page { program, node: node.name().to_owned(), page: path.to_owned(), reason };
    answer.await?.map_err(failed)
}

async fn get(port: u16, path: &str) -> Result<Vec<u8>, String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect(address).await.map_err(|error| chain(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| chain(&error))?;
    let request = Request::get(path)
        .header("host", "localhost")
        .body(http_body_util::Empty::<Bytes>::new())
        .map_err(|error| chain(&error))?;
    // Takes the sender with it: the connection ends when it is dropped.
    let exchange = async move {
        let answer = sender.send_request(request).await.map_err(|error| chain(&error))?;
        let status = answer.status();
        let body = http_body_util::Limited::new(answer.into_body(), PAGE_LIMIT);
        let body = http_body_util::BodyExt::collect(body).await.map_err(|error| error.to_string())?.to_bytes();
        if status == StatusCode::OK { Ok(body.to_vec()) } else { Err(format!("HTTP status {status}")) }
    };
    let (answer, _ended) = tokio::join!(exchange, connection);
    answer
}
