//! A container runtime reduced to what CNI sees of it: it reads the node's first conflist, and executes its plugins as
//! libcni does: environment, standard input, the chain of `prevResult`, the cached result for CHECK and DEL
//! (CNI spec 1.1.0, sections 3 and 4).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use sluice_contract::cni::chain;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::node::{Node, NodeError};

/// Where runtimes look for network configuration.
pub const CONF_DIR: &str = "/etc/cni/net.d";
/// Where runtimes look for plugins.
pub const BIN_DIR: &str = "/opt/cni/bin";
/// The capability by which containerd hands a pod's annotations on; other runtimes pass over it.
pub const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// How long one plugin may take before it is killed; above the plugins' own deadline of 60 s.
const PLUGIN_TIME_LIMIT: Duration = Duration::from_secs(90);

/// A pod's sandbox: a network namespace with a name, and what CNI is told of it.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// `CNI_CONTAINERID`.
    pub id: String,
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `CNI_NETNS`: the path inside the node.
    pub netns: PathBuf,
    /// The pod's annotations, for plugins that declare [`POD_ANNOTATIONS`].
    pub annotations: BTreeMap<String, String>,
}

/// A verb of the CNI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// ADD.
    Add,
    /// DEL.
    Del,
    /// CHECK.
    Check,
    /// GC.
    Gc,
    /// STATUS.
    Status,
}

impl Verb {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }
}

/// Why a chain of plugins failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The node has no usable conflist.
    #[error("{path}: {reason}")]
    Conflist {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A plugin could not be executed, or did not end in time.
    #[error("{plugin} {verb} did not run: {reason}")]
    Execute {
        /// The plugin's type.
        plugin: String,
        /// The verb.
        verb: &'static str,
        /// What happened.
        reason: String,
    },
    /// A plugin answered with an error object.
    #[error("{plugin} {verb} failed with code {code}: {msg}{}", if details.is_empty() { String::new() } else { format!(" ({details})") })]
    Plugin {
        /// The plugin's type.
        plugin: String,
        /// The verb.
        verb: &'static str,
        /// `code` of the error object.
        code: u64,
        /// `msg` of the error object.
        msg: String,
        /// `details` of the error object.
        details: String,
    },
    /// The node is gone.
    #[error("the node cannot be entered")]
    Node(#[from] NodeError),
}

/// The runtime of one node.
#[derive(Debug)]
pub struct Runtime {
    conflist: Value,
    /// The last plugin's result for each sandbox, as libcni caches it.
    results: Mutex<BTreeMap<String, Value>>,
}

impl Runtime {
    /// A runtime that uses the first conflist, by name, of `/etc/cni/net.d` inside `node`.
    ///
    /// # Errors
    /// [`RuntimeError::Conflist`] when there is none or it cannot be read.
    pub async fn start(node: &Node) -> Result<Self, RuntimeError> {
        let (path, text) = node.run(|| first_conflist(Path::new(CONF_DIR))).await??;
        let conflist: Value = serde_json::from_str(&text)
            .map_err(|error| RuntimeError::Conflist { path: path.clone(), reason: error.to_string() })?;
        if conflist.get("plugins").and_then(Value::as_array).is_none_or(Vec::is_empty) {
            return Err(RuntimeError::Conflist { path, reason: "it has no plugins".into() });
        }
        Ok(Self { conflist, results: Mutex::new(BTreeMap::new()) })
    }

    /// Attaches `sandbox` to the network and returns the chain's result.
    ///
    /// # Errors
    /// The first plugin's that failed. As libcni's callers do, call [`Self::del`] then.
    pub async fn add(&self, node: &Node, sandbox: &Sandbox) -> Result<Value, RuntimeError> {
        let mut result = None;
        for plugin in self.plugins() {
            let config = self.config(plugin, Some(sandbox), result.as_ref());
            result = Some(execute(node, plugin, Verb::Add, Some(sandbox), &config).await?.1);
        }
        let result = result.unwrap_or(Value::Null);
        self.cache().insert(sandbox.id.clone(), result.clone());
        Ok(result)
    }

    /// Caches the result of an ADD that this runtime has not made itself: that of a node's network before this one.
    pub fn adopt(&self, sandbox: &Sandbox, result: Value) {
        self.cache().insert(sandbox.id.clone(), result);
    }

    /// Detaches `sandbox`: all plugins in reverse order, with the cached result.
    ///
    /// # Errors
    /// The first plugin's that failed; the cached result is kept for another try.
    pub async fn del(&self, node: &Node, sandbox: &Sandbox) -> Result<(), RuntimeError> {
        let cached = self.cache().get(&sandbox.id).cloned();
        for plugin in self.plugins().rev() {
            execute(node, plugin, Verb::Del, Some(sandbox), &self.config(plugin, Some(sandbox), cached.as_ref()))
                .await?;
        }
        self.cache().remove(&sandbox.id);
        Ok(())
    }

    /// Detaches `sandbox` as a runtime does that lost its state, or that is done already: no `CNI_NETNS`, no
    /// `prevResult`. containerd does so after every DEL.
    ///
    /// # Errors
    /// The first plugin's that failed.
    pub async fn del_blindly(&self, node: &Node, sandbox: &Sandbox) -> Result<(), RuntimeError> {
        let forgotten = Sandbox { netns: PathBuf::new(), ..sandbox.clone() };
        for plugin in self.plugins().rev() {
            execute(node, plugin, Verb::Del, Some(&forgotten), &self.config(plugin, Some(&forgotten), None)).await?;
        }
        self.cache().remove(&sandbox.id);
        Ok(())
    }

    /// Asks every plugin whether `sandbox` is as its ADD left it.
    ///
    /// # Errors
    /// The first plugin's that says no.
    pub async fn check(&self, node: &Node, sandbox: &Sandbox) -> Result<(), RuntimeError> {
        let cached = self.cache().get(&sandbox.id).cloned();
        for plugin in self.plugins() {
            execute(node, plugin, Verb::Check, Some(sandbox), &self.config(plugin, Some(sandbox), cached.as_ref()))
                .await?;
        }
        Ok(())
    }

    /// Asks every plugin whether it can serve.
    ///
    /// # Errors
    /// The first plugin's that says no.
    pub async fn status(&self, node: &Node) -> Result<(), RuntimeError> {
        for plugin in self.plugins() {
            execute(node, plugin, Verb::Status, None, &self.config(plugin, None, None)).await?;
        }
        Ok(())
    }

    /// Tells every plugin which sandboxes live, by container id and interface.
    ///
    /// # Errors
    /// The first plugin's that failed.
    pub async fn gc(&self, node: &Node, valid: &[&Sandbox]) -> Result<(), RuntimeError> {
        let list: Value = valid.iter().map(|s| json!({"containerID": s.id, "ifname": "eth0"})).collect();
        for plugin in self.plugins() {
            let mut config = self.config(plugin, None, None);
            config.insert("cni.dev/valid-attachments".into(), list.clone());
            config.insert("cni.dev/attachments".into(), list.clone());
            execute(node, plugin, Verb::Gc, None, &config).await?;
        }
        Ok(())
    }

    fn plugins(&self) -> impl DoubleEndedIterator<Item = &Value> {
        self.conflist.get("plugins").and_then(Value::as_array).into_iter().flatten()
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Value>> {
        self.results.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What libcni sends to a plugin: its own object of the list, with the list's name and version, the arguments of the
    /// capabilities that it declares, and `prevResult`.
    fn config(&self, plugin: &Value, sandbox: Option<&Sandbox>, previous: Option<&Value>) -> Map<String, Value> {
        let mut config = plugin.as_object().cloned().unwrap_or_default();
        let capabilities = config.remove("capabilities");
        let declares = |name: &str| capabilities.as_ref().and_then(|all| all.get(name)?.as_bool()) == Some(true);
        if let Some(sandbox) = sandbox.filter(|_| declares(POD_ANNOTATIONS)) {
            config.insert("runtimeConfig".into(), json!({POD_ANNOTATIONS: sandbox.annotations}));
        }
        for key in ["name", "cniVersion"] {
            if let Some(value) = self.conflist.get(key) {
                config.insert(key.into(), value.clone());
            }
        }
        if let Some(previous) = previous {
            config.insert("prevResult".into(), previous.clone());
        }
        config
    }
}

fn first_conflist(dir: &Path) -> Result<(PathBuf, String), RuntimeError> {
    let wrong = |path: &Path, reason: String| RuntimeError::Conflist { path: path.to_owned(), reason };
    let entries = std::fs::read_dir(dir).map_err(|error| wrong(dir, error.to_string()))?;
    let first = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "conflist"))
        .min()
        .ok_or_else(|| wrong(dir, "it holds no conflist".into()))?;
    let text = std::fs::read_to_string(&first).map_err(|error| wrong(&first, error.to_string()))?;
    Ok((first, text))
}

/// Executes one plugin inside the node and returns the time from exec to exit with what it printed.
async fn execute(
    node: &Node,
    plugin: &Value,
    verb: Verb,
    sandbox: Option<&Sandbox>,
    config: &Map<String, Value>,
) -> Result<(Duration, Value), RuntimeError> {
    let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let failed = |reason: String| RuntimeError::Execute { plugin: kind.clone(), verb: verb.as_str(), reason };
    if kind.is_empty() || kind.contains('/') {
        return Err(failed("its type is not the name of a file".into()));
    }
    let mut command = Command::new(Path::new(BIN_DIR).join(&kind));
    command
        .env_clear()
        .env("CNI_COMMAND", verb.as_str())
        .env("CNI_PATH", BIN_DIR)
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if let Some(sandbox) = sandbox {
        command.env("CNI_CONTAINERID", &sandbox.id).env("CNI_NETNS", &sandbox.netns).env("CNI_IFNAME", "eth0").env(
            "CNI_ARGS",
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={}",
                sandbox.namespace, sandbox.name, sandbox.id
            ),
        );
    }
    let started = Instant::now();
    let mut child = node.spawn(command).await.map_err(|error| failed(chain(&error)))?;
    let input = Value::Object(config.clone()).to_string();
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin that fails early may close its input unread; what it prints says why.
        let _unread = stdin.write_all(input.as_bytes()).await;
    }
    let output = tokio::time::timeout(PLUGIN_TIME_LIMIT, child.wait_with_output())
        .await
        .map_err(|_elapsed| failed(format!("it ran for more than {} s", PLUGIN_TIME_LIMIT.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    let elapsed = started.elapsed();
    let printed = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        let value = if printed.trim().is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&printed)
                .map_err(|error| failed(format!("it exited with 0 and printed no JSON: {error}")))?
        };
        return Ok((elapsed, value));
    }
    let object: Value = serde_json::from_str(&printed).unwrap_or_default();
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    match object.get("code").and_then(Value::as_u64) {
        Some(code) => Err(RuntimeError::Plugin {
            plugin: kind,
            verb: verb.as_str(),
            code,
            msg: text("msg"),
            details: text("details"),
        }),
        None => Err(failed(format!("{}; {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_told_of_the_capabilities_that_it_declares() {
        let conflist = json!({"cniVersion": "1.1.0", "name": "net", "plugins": [
            {"type": "declares", "capabilities": {POD_ANNOTATIONS: true, "bandwidth": true}},
            {"type": "refuses", "capabilities": {POD_ANNOTATIONS: false}},
            {"type": "silent"},
        ]});
        let runtime = Runtime { conflist, results: Mutex::default() };
        let annotations = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let sandbox = Sandbox {
            id: "c1".into(),
            namespace: "default".into(),
            name: "p".into(),
            netns: PathBuf::new(),
            annotations,
        };
        let told = |sandbox| -> Vec<Map<String, Value>> {
            runtime.plugins().map(|plugin| runtime.config(plugin, sandbox, None)).collect()
        };
        let configs = told(Some(&sandbox));
        assert_eq!(configs[0]["runtimeConfig"], json!({POD_ANNOTATIONS: {"a": "b"}}));
        assert!(configs.iter().all(|config| config["name"] == "net" && !config.contains_key("capabilities")));
        assert!(!configs[1].contains_key("runtimeConfig") && !configs[2].contains_key("runtimeConfig"));
        // GC and STATUS are of no pod.
        assert!(told(None).iter().all(|config| !config.contains_key("runtimeConfig")));
    }
}
