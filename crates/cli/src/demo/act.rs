//! What the demo does, step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use sluice_policy_core::cluster::PodKey;
use sluice_vpcsim::deployment::{Binaries, Deployment, DeploymentError, GateBinaries, Pod};
use sluice_vpcsim::model::IMDS;
use sluice_vpcsim::node::NodeError;
use sluice_vpcsim::policyd::Source;
use sluice_vpcsim::scene::{Scene, SceneError};
use sluice_vpcsim::world::{World, WorldError};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Progress;
use super::cluster::Cluster;
use super::report::{Burst, EniRow, GiveBack, NodeRow, PodRow, Sample};

const SCENE: &str = include_str!("scene.yaml");
/// Pods of each node before the burst: one more than the primary ENI has addresses for.
const PODS: usize = 10;
/// Pods of the burst, on both nodes together.
const BURST: usize = 20;
/// `IP_COOLDOWN_PERIOD` in seconds: short, so that the demo is.
const COOLDOWN: u32 = 8;
/// How long any single step may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at a pool that changes.
const LOOK: Duration = Duration::from_millis(100);
/// The samples of a burst that are shown: more would not be read.
const SAMPLES: usize = 6;

/// The settings of each node: VPC CNI's default, and targets in addresses.
const SETTINGS: [(&str, &[(&str, &str)]); 2] =
    [("node-a", &[("WARM_ENI_TARGET", "1")]), ("node-b", &[("WARM_IP_TARGET", "3"), ("MINIMUM_IP_TARGET", "12")])];

/// Why the demo could not be played.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ActError {
    /// The scene.
    #[error("the scene of the demo is wrong")]
    Scene(#[from] SceneError),
    /// The world.
    #[error("the world did not come up or broke")]
    World(#[from] WorldError),
    /// A node.
    #[error("a node failed")]
    Node(#[from] NodeError),
    /// Sluice on a node.
    #[error("Sluice did not do what the demo needs")]
    Deployment(#[from] DeploymentError),
    /// The directory of the cluster, or a program.
    #[error("the demo's cluster could not be written")]
    Cluster(#[source] std::io::Error),
    /// The demo's own policies.
    #[error("the demo's policies: {what}")]
    Policies {
        /// What is wrong.
        what: String,
    },
    /// A task of the demo was lost.
    #[error("a task of the demo broke")]
    Task(#[from] tokio::task::JoinError),
    /// No pod got an address of the kind that the matrix needs.
    #[error("no pod of {node} is on {kind}: the matrix would not show it")]
    NoSuchPod {
        /// The node.
        node: String,
        /// The kind of ENI.
        kind: &'static str,
    },
}

/// Brings the world up.
pub(crate) async fn raise() -> Result<World, ActError> {
    let scene: Scene = SCENE.parse()?;
    Ok(World::up(&scene).await?)
}

/// A pod of the matrix.
#[derive(Debug, Clone)]
pub(crate) struct Actor {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) pod: Pod,
    pub(crate) place: Place,
}

/// Where an address is.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) eni: String,
    pub(crate) device: u64,
    pub(crate) table: u64,
}

/// The world with Sluice running on its nodes.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    pub(crate) world: &'a World,
    pub(crate) deployments: BTreeMap<String, std::sync::Arc<Deployment>>,
    pub(crate) actors: Vec<Actor>,
}

impl<'a> Stage<'a> {
    /// Installs Sluice on both nodes and waits until they can start pods. What is started is noted in `running` before it is
    /// waited for.
    pub(crate) async fn set(
        world: &'a World,
        (binaries, gate, proxy): (&Binaries, &GateBinaries, &Path),
        cluster: &mut Cluster,
        running: &mut Vec<std::sync::Arc<Deployment>>,
        progress: &Progress,
    ) -> Result<Self, ActError> {
        let mut stage = Self { world, deployments: BTreeMap::new(), actors: Vec::new() };
        for (node, _) in SETTINGS {
            cluster.node(node, stage.addresses_of(node)?.0);
            for number in 1..=PODS {
                cluster.pod(pod_key(node, number), node, if number % 2 == 0 { "web" } else { "db" });
            }
        }
        for number in 0..BURST {
            let (node, _) = SETTINGS.get(number % SETTINGS.len()).copied().unwrap_or_default();
            cluster.pod(PodKey { namespace: "burst".into(), name: format!("p{number}").into() }, node, "burst");
        }
        cluster.write().map_err(ActError::Cluster)?;
        for (name, settings) in SETTINGS {
            let environment: BTreeMap<String, String> = settings
                .iter()
                .map(|(variable, value)| ((*variable).to_owned(), (*value).to_owned()))
                .chain([("IP_COOLDOWN_PERIOD".to_owned(), COOLDOWN.to_string())])
                .collect();
            let node = std::sync::Arc::clone(world.node(name)?);
            let source = Source::Directory(cluster.directory().to_owned());
            let installed = Deployment::install_gated(node, binaries, gate, environment, source).await?;
            let one = BTreeMap::from([("SLUICE_PROXY_WORKERS".to_owned(), "1".to_owned())]);
            let deployment = std::sync::Arc::new(installed.with_proxy(proxy.to_owned(), one));
            running.push(std::sync::Arc::clone(&deployment));
            deployment.start_ipamd().await?;
            if let Some(policyd) = deployment.policyd() {
                policyd.start().await?;
            }
            if let Some(proxy) = deployment.proxy() {
                proxy.start().await?;
            }
            stage.deployments.insert(name.to_owned(), deployment);
        }
        for deployment in stage.deployments.values() {
            deployment.ready(LIMIT).await?;
            if let Some(policyd) = deployment.policyd() {
                policyd.ready(LIMIT).await?;
            }
            if let Some(proxy) = deployment.proxy() {
                proxy.ready(LIMIT).await?;
            }
        }
        progress.done("sluice-ipamd, sluice-policyd and sluice-proxy run on both nodes, and pods may start");
        Ok(stage)
    }

    /// Starts pods until both kinds of ENI are in use on both nodes; keeps one of each for the matrix.
    pub(crate) async fn pods(&mut self, cluster: &mut Cluster, progress: &Progress) -> Result<(), ActError> {
        progress.begin("pods are started; the first ones use up the primary ENI's addresses, so the pool grows");
        let mut adding = JoinSet::new();
        for (node, deployment) in &self.deployments {
            let (node, deployment) = (node.clone(), std::sync::Arc::clone(deployment));
            adding.spawn(async move {
                let mut pods = Vec::new();
                for number in 1..=PODS {
                    let key = pod_key(&node, number);
                    pods.push(deployment.add(&key.namespace, &key.name).await?);
                }
                Ok::<_, DeploymentError>((node, pods))
            });
        }
        let mut all = BTreeMap::new();
        while let Some(added) = adding.join_next().await {
            let (node, pods) = added??;
            all.insert(node, pods);
        }
        for (node, pods) in all {
            for (number, pod) in (1..).zip(&pods) {
                cluster.started(&pod_key(&node, number), pod.address);
            }
            let places = self.places(&node).await?;
            for (kind, wanted) in [("the primary ENI", true), ("a secondary ENI", false)] {
                let found = pods.iter().find_map(|pod| {
                    Some((pod, places.get(&pod.address)?)).filter(|(_, at)| (at.device == 0) == wanted)
                });
                let (pod, place) = found.ok_or_else(|| ActError::NoSuchPod { node: node.clone(), kind })?;
                let (pod, place) = (pod.clone(), place.clone());
                self.actors.push(Actor { name: pod.sandbox.name.clone(), node: node.clone(), pod, place });
            }
        }
        self.settled().await?;
        progress.done(&format!("{PODS} pods run on each node"));
        Ok(())
    }

    /// Where each address of a node's pods is.
    async fn places(&self, node: &str) -> Result<BTreeMap<Ipv4Addr, Place>, ActError> {
        let view = self.deployment(node)?.page("/v1/pool").await?;
        let mut places = BTreeMap::new();
        for (id, eni) in objects(&view, "enis") {
            let number = |key: &str| eni.get(key).and_then(Value::as_u64).unwrap_or_default();
            let place = Place { eni: id.to_owned(), device: number("device"), table: number("table") };
            for (_, block) in objects(eni, "blocks") {
                let addresses = block.as_object().into_iter().flatten().filter_map(|(text, _)| text.parse().ok());
                places.extend(addresses.map(|address: Ipv4Addr| (address, place.clone())));
            }
        }
        Ok(places)
    }

    pub(crate) fn deployment(&self, node: &str) -> Result<&std::sync::Arc<Deployment>, ActError> {
        self.deployments.get(node).ok_or_else(|| WorldError::Unknown { kind: "deployment", name: node.into() }.into())
    }

    /// Waits until no ipamd has anything left to do.
    async fn settled(&self) -> Result<(), ActError> {
        for deployment in self.deployments.values() {
            let idle = |view: &Value| {
                let empty = |key: &str| view.get(key).and_then(Value::as_array).is_some_and(Vec::is_empty);
                empty("under_way") && empty("intents") && gauge(view, "pending") == 0 && gauge(view, "waiting") == 0
            };
            deployment.pool_until("the pool did not settle", LIMIT, idle).await?;
        }
        Ok(())
    }

    /// The nodes for the report.
    pub(crate) async fn node_rows(&self) -> Result<Vec<NodeRow>, ActError> {
        let mut rows = Vec::new();
        for (name, settings) in SETTINGS {
            let view = self.deployment(name)?.page("/v1/pool").await?;
            let text = |key: &str| {
                let value = view.get("node").and_then(|node| node.get(key));
                value.and_then(Value::as_str).unwrap_or("?").to_owned()
            };
            let mut enis = Vec::new();
            for (id, eni) in objects(&view, "enis") {
                let states: Vec<&str> = objects(eni, "blocks")
                    .flat_map(|(_, block)| block.as_object().into_iter().flatten())
                    .filter_map(|(_, address)| address.get("state")?.as_str())
                    .collect();
                let count =
                    |state: &str| u32::try_from(states.iter().filter(|s| **s == state).count()).unwrap_or(u32::MAX);
                let device = eni.get("device").and_then(Value::as_u64).and_then(|d| u32::try_from(d).ok());
                enis.push(EniRow {
                    eni: id.to_owned(),
                    device: device.unwrap_or_default(),
                    link: self.link(id).await?,
                    primary_ip: eni.get("primary_ip").and_then(Value::as_str).unwrap_or("?").to_owned(),
                    assigned: count("assigned"),
                    free: count("free"),
                });
            }
            enis.sort_by_key(|eni| eni.device);
            let words: Vec<String> = settings.iter().map(|(variable, value)| format!("{variable}={value}")).collect();
            rows.push(NodeRow {
                name: name.to_owned(),
                instance: text("instance"),
                instance_type: text("instance_type"),
                settings: words.join(" "),
                enis,
            });
        }
        Ok(rows)
    }

    async fn link(&self, eni: &str) -> Result<String, ActError> {
        match eni.parse() {
            Ok(id) => Ok(self.world.link_of(&id).await?),
            Err(_not_an_id) => Ok("?".to_owned()),
        }
    }

    /// The matrix's pods for the report.
    pub(crate) async fn pod_rows(&self) -> Result<Vec<PodRow>, ActError> {
        let mut rows = Vec::new();
        for actor in &self.actors {
            let host_ifname = actor
                .pod
                .result
                .get("interfaces")
                .and_then(Value::as_array)
                .and_then(|interfaces| interfaces.iter().find(|interface| interface.get("sandbox").is_none()))
                .and_then(|interface| interface.get("name")?.as_str());
            rows.push(PodRow {
                pod: format!("{}/{}", actor.pod.sandbox.namespace, actor.name),
                node: actor.node.clone(),
                address: actor.pod.address.to_string(),
                eni: actor.place.eni.clone(),
                link: self.link(&actor.place.eni).await?,
                table: if actor.place.device == 0 { "main".into() } else { actor.place.table.to_string() },
                host_ifname: host_ifname.unwrap_or("?").to_owned(),
            });
        }
        Ok(rows)
    }

    /// Starts many pods at once, watches the pools meanwhile, and waits until they have settled.
    pub(crate) async fn burst(&self, progress: &Progress) -> Result<(Burst, Vec<(String, Pod)>), ActError> {
        progress.begin(&format!("{BURST} pods at once"));
        let calls_before = self.calls();
        let mut samples = vec![self.sample("before", 0.0).await?];
        let begun = Instant::now();
        let mut adding = JoinSet::new();
        let nodes: Vec<_> = self.deployments.iter().collect();
        for number in 0..BURST {
            let Some((node, deployment)) = nodes.get(number % nodes.len().max(1)) else { break };
            let (node, deployment) = ((*node).clone(), std::sync::Arc::clone(deployment));
            adding.spawn(async move { (node, deployment.add("burst", &format!("p{number}")).await) });
        }
        let mut pods = Vec::new();
        let mut errors = Vec::new();
        let mut during: Vec<Sample> = Vec::new();
        while !adding.is_empty() {
            tokio::select! {
                Some(added) = adding.join_next() => match added? {
                    (node, Ok(pod)) => pods.push((node, pod)),
                    (node, Err(error)) => errors.push(format!("an ADD of the burst failed on {node}: {error}")),
                },
                () = tokio::time::sleep(LOOK) => {
                    let sample = self.sample("during", begun.elapsed().as_secs_f64()).await?;
                    if during.last().is_none_or(|last| !alike(last, &sample)) {
                        during.push(sample);
                    }
                }
            }
        }
        samples.extend(thinned(during, SAMPLES));
        samples.push(self.sample("all served", begun.elapsed().as_secs_f64()).await?);
        self.settled().await?;
        samples.push(self.sample("settled", begun.elapsed().as_secs_f64()).await?);
        let mut times: Vec<f64> = pods.iter().map(|(_, pod)| pod.took.as_secs_f64() * 1000.0).collect();
        times.sort_by(f64::total_cmp);
        let at = |index: usize| times.get(index).copied().unwrap_or_default();
        let burst = Burst {
            pods: BURST,
            served: pods.len(),
            add_ms: [at(0), at(times.len() / 2), at(times.len().saturating_sub(1))],
            samples,
            ec2_calls: since(&self.calls(), &calls_before),
            errors,
        };
        progress.done(&format!("{} of {BURST} pods of the burst run", pods.len()));
        Ok((burst, pods))
    }

    /// Deletes the burst's pods, and watches them cool and be given back.
    pub(crate) async fn delete(&self, pods: Vec<(String, Pod)>, progress: &Progress) -> Result<GiveBack, ActError> {
        let calls_before = self.calls();
        let begun = Instant::now();
        let mut deleting = JoinSet::new();
        for (node, pod) in pods {
            let deployment = std::sync::Arc::clone(self.deployment(&node)?);
            deleting.spawn(
                async move { deployment.delete(&pod.sandbox).await.map_err(|error| format!("{node}: {error}")) },
            );
        }
        let mut errors = Vec::new();
        while let Some(deleted) = deleting.join_next().await {
            if let Err(error) = deleted? {
                errors.push(format!("a DEL of the burst failed on {error}"));
            }
        }
        let mut samples = vec![self.sample("deleted", begun.elapsed().as_secs_f64()).await?];
        progress
            .begin(&format!("their addresses cool for {COOLDOWN} s, then those that are not needed are given back"));
        for deployment in self.deployments.values() {
            let cooled = |view: &Value| gauge(view, "cooling") == 0;
            deployment.pool_until("addresses are still cooling", LIMIT, cooled).await?;
        }
        samples.push(self.sample("cooled", begun.elapsed().as_secs_f64()).await?);
        let given_back =
            || self.calls().get("UnassignPrivateIpAddresses") > calls_before.get("UnassignPrivateIpAddresses");
        let end = Instant::now() + LIMIT;
        while !given_back() && Instant::now() < end {
            tokio::time::sleep(LOOK).await;
        }
        if !given_back() {
            errors.push(format!("nothing was given back within {} s", LIMIT.as_secs()));
        }
        self.settled().await?;
        samples.push(self.sample("given back", begun.elapsed().as_secs_f64()).await?);
        progress.done("what node-b does not need is given back to EC2; node-a keeps a warm ENI");
        Ok(GiveBack { cooldown_seconds: COOLDOWN, samples, ec2_calls: since(&self.calls(), &calls_before), errors })
    }

    async fn sample(&self, moment: &str, seconds: f64) -> Result<Sample, ActError> {
        let mut sample = Sample { moment: moment.into(), seconds, ..Sample::default() };
        for deployment in self.deployments.values() {
            let view = deployment.page("/v1/pool").await?;
            sample.enis += gauge(&view, "enis");
            sample.assigned += gauge(&view, "assigned");
            sample.free += gauge(&view, "free");
            sample.cooling += gauge(&view, "cooling");
            sample.waiting += gauge(&view, "waiting");
        }
        Ok(sample)
    }

    /// A node's own address, and the one that the Internet sees.
    pub(crate) fn addresses_of(&self, node: &str) -> Result<(Ipv4Addr, Ipv4Addr), ActError> {
        let id = self.world.instance(node)?;
        let found = self.world.look(|model, _| {
            let eni = model.state().attached(id).into_iter().next()?;
            Some((eni.primary, eni.association.as_ref()?.public_ip))
        });
        found.ok_or_else(|| WorldError::Unknown { kind: "public address of", name: node.into() }.into())
    }

    fn calls(&self) -> BTreeMap<String, u64> {
        let mut calls = self.world.look(|model, _| model.log().counts().clone());
        calls.remove(IMDS);
        calls
    }
}

/// A pod of a node by its number: `shop/a1` on node-a, `guest/b1` on node-b.
fn pod_key(node: &str, number: usize) -> PodKey {
    let letter = node.trim_start_matches("node-");
    let namespace = if letter == "a" { "shop" } else { "guest" };
    PodKey { namespace: namespace.into(), name: format!("{letter}{number}").into() }
}

/// A number of the pool.
fn gauge(view: &Value, name: &str) -> u32 {
    let value = view.get("pool").and_then(|pool| pool.get(name)).and_then(Value::as_u64);
    value.and_then(|value| u32::try_from(value).ok()).unwrap_or_default()
}

fn objects<'v>(value: &'v Value, key: &str) -> impl Iterator<Item = (&'v str, &'v Value)> {
    value.get(key).and_then(Value::as_object).into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}

fn alike(a: &Sample, b: &Sample) -> bool {
    (a.enis, a.assigned, a.free, a.waiting) == (b.enis, b.assigned, b.free, b.waiting)
}

/// At most `count` of `samples`, evenly spread.
fn thinned(samples: Vec<Sample>, count: usize) -> Vec<Sample> {
    let step = samples.len().div_ceil(count.max(1)).max(1);
    samples.into_iter().step_by(step).collect()
}

fn since(now: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> BTreeMap<String, u32> {
    let actions: BTreeSet<&String> = now.keys().collect();
    actions
        .into_iter()
        .filter_map(|action| {
            let more = now.get(action)?.saturating_sub(before.get(action).copied().unwrap_or_default());
            (more > 0).then(|| (action.clone(), u32::try_from(more).unwrap_or(u32::MAX)))
        })
        .collect()
}
