//! The product on one node: the built `sluice-ipamd` runs, the built `sluice-eni` and the conflist are in place.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use sluice_contract::node::{CONFLIST, IPAMD_INTROSPECTION_PORT};
use sluice_vpcsim::node::{Node, NodeError, Program};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Child;

use crate::binaries::{BinaryError, binary};

/// Where runtimes find plugins.
pub const CNI_BIN: &str = "/opt/cni/bin";
/// How long the pool may take to be as wanted.
const LIMIT: Duration = Duration::from_secs(120);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// The largest answer of introspection that is read, in bytes.
const ANSWER_LIMIT: u64 = 4 << 20;

/// Why the product does not run on a node.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// A program has not been built.
    #[error(transparent)]
    Binary(#[from] BinaryError),
    /// The node refused.
    #[error("the node cannot be set up")]
    Node(#[from] NodeError),
    /// ipamd does not answer as it should.
    #[error("{wanted} within {} s; ipamd says: {said}; its log ends with: {log}", LIMIT.as_secs())]
    Late {
        /// What should have been.
        wanted: String,
        /// What ipamd answered last.
        said: String,
        /// The last lines of its log.
        log: String,
    },
    /// ipamd ended.
    #[error("ipamd ended ({status}); its log ends with: {log}")]
    Ended {
        /// How.
        status: String,
        /// The last lines of its log.
        log: String,
    },
}

/// What introspection tells of the pool, as far as tests look at it.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Pool {
    /// Addresses of any state.
    pub total: u32,
    /// Addresses that an ADD could have at once.
    pub free: u32,
    /// Addresses that pods hold.
    pub assigned: u32,
    /// Addresses that are cooling.
    pub cooling: u32,
    /// Operations under way.
    pub flights: u32,
}

#[derive(Deserialize)]
struct View {
    ready: bool,
    pool: Pool,
}

/// ipamd, running. It ends when this is dropped.
#[derive(Debug)]
pub struct Deployment {
    process: Child,
    pid: u32,
}

/// The plugin's object of the conflist, with what the list says.
#[must_use]
pub fn plugin_config() -> Map<String, Value> {
    let mut config = Map::new();
    for (key, value) in [("cniVersion", "1.0.0"), ("name", "sluice"), ("type", "sluice-eni")] {
        config.insert(key.into(), value.into());
    }
    config
}

/// Puts the plugin and the conflist on `node` and starts ipamd there, with `settings` added to its environment.
///
/// # Errors
/// [`DeployError::Binary`] when a program is not built, else [`DeployError::Node`].
pub async fn deploy(node: &Node, settings: &[(&str, &str)]) -> Result<Deployment, DeployError> {
    node.install(&binary("sluice-eni")?, &Path::new(CNI_BIN).join("sluice-eni")).await?;
    let conflist = json!({ "cniVersion": "1.0.0", "name": "sluice", "plugins": [{ "type": "sluice-eni" }] });
    node.write(CONFLIST, &conflist.to_string()).await?;
    start_ipamd(node, settings).await
}

/// Starts ipamd alone, for a node that has the rest.
///
/// # Errors
/// As [`deploy`].
pub async fn start_ipamd(node: &Node, settings: &[(&str, &str)]) -> Result<Deployment, DeployError> {
    let mut env = BTreeMap::from(
        [
            ("AWS_ENDPOINT_URL_EC2", "http://169.254.169.252"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    env.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let program = Program { name: "ipamd".into(), path: binary("sluice-ipamd")?, args: Vec::new(), env };
    let process = node.start(&program).await?;
    let pid = process.id().unwrap_or_default();
    Ok(Deployment { process, pid })
}

impl Deployment {
    /// The process id of ipamd.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until ipamd is ready and its pool is as `wanted`; `text` says what that is.
    ///
    /// # Errors
    /// [`DeployError::Late`] after 120 s, [`DeployError::Ended`] when ipamd does not run any more.
    pub async fn wait_for(
        &mut self,
        node: &Node,
        text: &str,
        wanted: impl Fn(&Pool) -> bool,
    ) -> Result<Pool, DeployError> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let answer = node.run_async(introspect).await?.unwrap_or_else(|error| error.to_string());
            let view = answer.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str::<View>(body).ok());
            if let Some(view) = view.filter(|view| view.ready && wanted(&view.pool)) {
                return Ok(view.pool);
            }
            if let Ok(Some(status)) = self.process.try_wait() {
                return Err(DeployError::Ended { status: status.to_string(), log: log_end(node) });
            }
            if Instant::now() >= deadline {
                return Err(DeployError::Late { wanted: text.into(), said: answer, log: log_end(node) });
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The whole HTTP answer of ipamd's page on the pool. HTTP/1.0, so that it ends with the connection.
async fn introspect() -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, IPAMD_INTROSPECTION_PORT)).await?;
    stream.write_all(b"GET /v1/pool HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
    let mut answer = String::new();
    stream.take(ANSWER_LIMIT).read_to_string(&mut answer).await?;
    Ok(answer)
}

/// The last lines of ipamd's log.
fn log_end(node: &Node) -> String {
    let text = std::fs::read_to_string(node.log("ipamd")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(8).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
