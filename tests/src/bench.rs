//! The benchmarks behind SPECIFICATION's numbers. A figure stands beside that of a peer, taken in the same run, in turns;
//! an A/A run (the product against itself) shows how far figures are apart that should be equal.

pub mod add_latency;
pub mod burst;
pub mod dns;
pub mod flows;
pub mod http;
mod machine;
pub mod packet;
pub mod policy;
pub mod policyd_memory;
pub mod pool;
pub mod publish;
pub mod reaction;
pub mod report;
pub mod restart;
pub mod rss;
pub mod stats;
pub mod test_run;
pub mod town_node;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sluice_vpcsim::deployment::{Binaries, Deployment, DeploymentError, GateBinaries, PLAIN_CONFLIST};
use sluice_vpcsim::node::{Node, NodeError};
use sluice_vpcsim::policyd::Source;
use sluice_vpcsim::scene::{Scene, SceneError};
use sluice_vpcsim::world::WorldError;

use burst::BurstError;
use report::Report;

/// Why a benchmark has no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The scene is wrong.
    #[error(transparent)]
    Scene(#[from] SceneError),
    /// The world did not come up.
    #[error("the simulated VPC does not come up")]
    World(#[from] WorldError),
    /// A node refused.
    #[error("a node cannot be set up")]
    Node(#[from] NodeError),
    /// The product does not run.
    #[error(transparent)]
    Deployment(#[from] DeploymentError),
    /// Pods could not be added or deleted.
    #[error(transparent)]
    Burst(#[from] BurstError),
    /// The made-up cluster of the policy benchmarks is not read.
    #[error(transparent)]
    Policy(#[from] policy::NotRead),
    /// The API server or the agents of a benchmark do not do their part.
    #[error("the cluster of the benchmark fails")]
    Cluster(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What was set up does not work.
    #[error("{what}")]
    Setup {
        /// What.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A node in virtual time.
    #[error("a node cannot be simulated")]
    Pool(#[from] sluice_ipamd_sim::node::SimError),
    /// A size has no figure.
    #[error("a size was not measured")]
    Incomplete,
    /// A process's memory could not be read.
    #[error("{path} cannot be used: {reason}")]
    Memory {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
}

impl BenchError {
    /// [`BenchError::Setup`] of any reason.
    fn setup<E: Into<Box<dyn std::error::Error + Send + Sync>>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        |source| Self::Setup { what, source: source.into() }
    }
}

/// The variable that names the directory of the plugins as they are deployed; `./bench` sets it.
const PLUGINS: &str = "SLUICE_BENCH_PLUGINS";

/// How long the pool may take to be as a benchmark needs it.
const POOL_LIMIT: Duration = Duration::from_secs(120);

/// Where a node's policyd reads the cluster from.
const CLUSTER_DIR: &str = "/run/cluster";

/// Tells a person how far a benchmark is.
pub type Say = fn(&str);

/// A benchmark's run.
pub type Run = Pin<Box<dyn Future<Output = Result<Report, BenchError>>>>;

/// A benchmark.
#[derive(Debug, Clone, Copy)]
pub struct Benchmark {
    /// The number of the promise that it holds.
    pub id: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What it measures, in one line.
    pub about: &'static str,
    /// Runs it.
    pub run: fn(Say) -> Run,
}

/// Every benchmark.
pub const ALL: [Benchmark; 17] = [
    Benchmark {
        id: add_latency::ID,
        name: "add_latency",
        about: add_latency::ABOUT,
        run: |say| Box::pin(add_latency::run(say)),
    },
    Benchmark {
        id: pool::bursts::ID,
        name: "bursts",
        about: pool::bursts::ABOUT,
        run: |say| Box::pin(std::future::ready(pool::bursts::run(say))),
    },
    Benchmark {
        id: pool::steady::ID,
        name: "steady",
        about: pool::steady::ABOUT,
        run: |say| Box::pin(std::future::ready(pool::steady::run(say))),
    },
    Benchmark { id: restart::ID, name: "restart", about: restart::ABOUT, run: |say| Box::pin(restart::run(say)) },
    Benchmark {
        id: pool::adaptive::ID,
        name: "adaptive",
        about: pool::adaptive::ABOUT,
        run: |say| Box::pin(std::future::ready(pool::adaptive::run(say))),
    },
    Benchmark { id: rss::ID, name: "rss", about: rss::ABOUT, run: |say| Box::pin(rss::run(say)) },
    Benchmark {
        id: policy::compile::ID,
        name: "policy_compile",
        about: policy::compile::ABOUT,
        run: |say| Box::pin(std::future::ready(policy::compile::run(say))),
    },
    Benchmark {
        id: policy::event::ID,
        name: "policy_event",
        about: policy::event::ABOUT,
        run: |say| Box::pin(std::future::ready(policy::event::run(say))),
    },
    Benchmark {
        id: policy::memory::ID,
        name: "policy_memory",
        about: policy::memory::ABOUT,
        run: |say| Box::pin(policy::memory::run(say)),
    },
    Benchmark {
        id: policy::maps::ID,
        name: "policy_maps",
        about: policy::maps::ABOUT,
        run: |say| Box::pin(std::future::ready(policy::maps::run(say))),
    },
    Benchmark { id: publish::ID, name: "publish", about: publish::ABOUT, run: |say| Box::pin(publish::run(say)) },
    Benchmark {
        id: policyd_memory::ID,
        name: "policyd_memory",
        about: policyd_memory::ABOUT,
        run: |say| Box::pin(policyd_memory::run(say)),
    },
    Benchmark { id: reaction::ID, name: "reaction", about: reaction::ABOUT, run: |say| Box::pin(reaction::run(say)) },
    Benchmark { id: packet::ID, name: "packet", about: packet::ABOUT, run: |say| Box::pin(packet::run(say)) },
    Benchmark { id: http::ID, name: "http", about: http::ABOUT, run: |say| Box::pin(http::run(say)) },
    Benchmark { id: flows::ID, name: "flows", about: flows::ABOUT, run: |say| Box::pin(flows::run(say)) },
    Benchmark { id: dns::ID, name: "dns", about: dns::ABOUT, run: |say| Box::pin(dns::run(say)) },
];

/// A plugin: as it is deployed where `./bench` has built it so, else the one beside this program.
fn plugin(name: &str) -> Result<PathBuf, DeploymentError> {
    let Some(directory) = std::env::var_os(PLUGINS) else { return Binaries::find(name) };
    let path = Path::new(&directory).join(name);
    if path.is_file() { Ok(path) } else { Err(DeploymentError::Missing { path }) }
}

fn binaries() -> Result<Binaries, DeploymentError> {
    Ok(Binaries { ipamd: Binaries::find("sluice-ipamd")?, eni: plugin("sluice-eni")? })
}

/// A VPC with these machines, name and instance type, in which EC2 answers at once: its latency is not measured.
fn scene(instances: &[(&str, &str)]) -> Result<Scene, SceneError> {
    let mut text = String::from(
        "time_scale: 0\nthrottle: false\nvpcs:\n  main:\n    cidrs: [10.0.0.0/16]\n    subnets:\n      nodes: {cidr: 10.0.0.0/20}\ninstances:\n",
    );
    for (name, kind) in instances {
        text.push_str(&format!("  {name}: {{type: {kind}, subnet: main/nodes}}\n"));
    }
    text.parse()
}

/// The product on `node`, with ipamd running; `settings` are ipamd's environment.
async fn install(node: &Arc<Node>, settings: &[(&str, &str)]) -> Result<Deployment, DeploymentError> {
    let environment = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let product = Deployment::install(Arc::clone(node), &binaries()?, PLAIN_CONFLIST, environment).await?;
    product.start_ipamd().await?;
    Ok(product)
}

/// The product with the gate on `node`, both daemons running; `cluster` is what policyd reads.
async fn install_gated(
    node: &Arc<Node>,
    settings: &[(&str, &str)],
    cluster: &str,
) -> Result<Deployment, DeploymentError> {
    gated_with(node, settings, cluster, BTreeMap::new()).await
}

/// The same; `policyd` are variables of policyd's configuration.
async fn gated_with(
    node: &Arc<Node>,
    settings: &[(&str, &str)],
    cluster: &str,
    policyd: BTreeMap<String, String>,
) -> Result<Deployment, DeploymentError> {
    let environment = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let gate = GateBinaries { policyd: Binaries::find("sluice-policyd")?, policy: plugin("sluice-policy")? };
    node.write(Path::new(CLUSTER_DIR).join("all.yaml"), cluster).await?;
    let source = Source::Directory(CLUSTER_DIR.into());
    let product = Deployment::install_gated(Arc::clone(node), &binaries()?, &gate, environment, source).await?;
    let product = product.with_policyd_environment(policyd);
    product.start_ipamd().await?;
    if let Some(policyd) = product.policyd() {
        policyd.start().await?;
        policyd.ready(POOL_LIMIT).await?;
    }
    Ok(product)
}

/// A number of the pool, by its name on the introspection page.
fn count(view: &Value, name: &str) -> Option<u64> {
    view.get("pool")?.get(name)?.as_u64()
}
