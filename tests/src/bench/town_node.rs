//! The first node of the made-up cluster ([`Town`]): policyd beside an API server that has the cluster, the plugins, and all pods
//! of the node, each added by the whole chain. Addresses come from a daemon that knows them beforehand: they are not
//! what is measured.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sluice_policy_core::cluster::Object;
use sluice_vpcsim::deployment::Binaries;
use sluice_vpcsim::node::Node;
use sluice_vpcsim::policyd::{Policyd, Source};
use sluice_vpcsim::runtime::BIN_DIR;
use tokio::net::TcpListener;

use super::burst::{PodName, Sandboxes, Subject};
use super::policy::town::{self, Town};
use super::policy::{SEED, Size};
use super::{BenchError, POOL_LIMIT, Say, plugin};
use crate::apiserver::{ApiServer, builtin, policy_kinds};
use crate::live::ipamd;

/// Where the API server listens, on the node.
const API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 6443);
/// Where policyd is told of it.
const KUBECONFIG: &str = "/run/bench/kubeconfig";
/// ADDs at the same time.
const AT_ONCE: usize = 10;

/// The node.
#[derive(Debug)]
pub struct TownNode {
    /// The cluster.
    pub town: Town,
    /// Its API server.
    pub api: Arc<ApiServer>,
    /// The agent.
    pub policyd: Policyd,
    /// The node's pods, all with their gates.
    pub pods: Vec<Gated>,
    /// The machine. It goes last.
    pub node: Arc<Node>,
}

/// A pod with a gate.
#[derive(Debug, Clone)]
pub struct Gated {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// The index of its interface on the host.
    pub index: u32,
}

impl TownNode {
    /// Boots the node, tells the API server of the cluster, starts policyd, and adds the pods.
    ///
    /// # Errors
    /// [`BenchError`]: what could not be set up, or the first plugin that failed.
    pub async fn up(size: Size, say: Say) -> Result<Self, BenchError> {
        let town = Town::new(size, SEED);
        let tag = format!("sluice-bench-{}", std::process::id());
        let node = Arc::new(Node::boot(&town::node_name(0), &std::env::temp_dir().join(&tag), &tag).await?);
        say(&format!("telling the API server of {size}"));
        let bound = node.run(|| {
            let listener = std::net::TcpListener::bind(API)?;
            listener.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(listener)
        });
        let bound = bound.await?.and_then(TcpListener::from_std);
        let kinds = builtin().into_iter().chain(policy_kinds()).collect();
        let api = bound.and_then(|listener| ApiServer::on(listener, kinds));
        let api = api.map_err(BenchError::setup("the API server does not start"))?;
        for value in town.values() {
            api.put(value).map_err(BenchError::setup("the API server does not take an object"))?;
        }
        let policyd = Self::policyd(&node).await?;
        policyd.start().await?;
        policyd.ready(POOL_LIMIT).await?;

        let mut this = Self { town, api: Arc::new(api), policyd, pods: Vec::new(), node };
        this.add_pods(say).await?;
        Ok(this)
    }

    async fn policyd(node: &Arc<Node>) -> Result<Policyd, BenchError> {
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{API}")}}],
            "users": [{"name": "c", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}]});
        node.write(KUBECONFIG, &config.to_string()).await?;
        let binary = Binaries::find("sluice-policyd")?;
        Ok(Policyd::new(Arc::clone(node), binary, Source::Kubeconfig(KUBECONFIG.into())))
    }

    async fn add_pods(&mut self, say: Say) -> Result<(), BenchError> {
        for name in ["sluice-eni", "sluice-policy"] {
            self.node.install(&plugin(name)?, &Path::new(BIN_DIR).join(name)).await?;
        }
        let book = ipamd::Book::default();
        let mut names = Vec::new();
        for pod in self.town.local() {
            let Object::Pod(pod) = self.town.pod(pod, None)? else { return Err(BenchError::Incomplete) };
            let (namespace, name) = (pod.key.namespace.to_string(), pod.key.name.to_string());
            lock(&book).insert((namespace.clone(), name.clone()), pod.addresses.to_vec().into());
            names.push(PodName { namespace, name, uid: pod.uid.to_string() });
        }
        let served = ipamd::serve_beside(&self.node, book).await?;
        let _serving = served.map_err(BenchError::setup("the daemon that gives addresses does not start"))?;
        say(&format!("adding {} pods", names.len()));
        let sandboxes = Sandboxes::new(&self.node, names.len()).await?;
        sandboxes.fill_with(&self.node, &Subject::chain(), &names, AT_ONCE).await?;
        let all = |view: &Value| gates(view).len() >= names.len();
        let view = self.policyd.until("the pods did not have their gates", POOL_LIMIT, all).await?;
        self.pods = gates(&view);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The gates on policyd's page.
fn gates(view: &Value) -> Vec<Gated> {
    let gate = |gate: &Value| {
        Some(Gated {
            namespace: gate.get("namespace")?.as_str()?.to_owned(),
            name: gate.get("name")?.as_str()?.to_owned(),
            address: gate.get("addresses")?.get(0)?.as_str()?.parse().ok()?,
            index: gate.get("index")?.as_u64()?.try_into().ok()?,
        })
    };
    view.get("endpoints").and_then(Value::as_array).into_iter().flatten().filter_map(gate).collect()
}
