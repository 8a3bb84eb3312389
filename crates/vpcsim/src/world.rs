//! A world: the model, the packets that follow it, and the machines in between, in real time.
//!
//! Every change of the model, and every time at which the model says that something shows by itself (a link, a detach),
//! the fabric is made what the model says by the difference.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use sluice_contract::id::{EniId, InstanceId, SubnetId, VpcId};
use sluice_hostnet::netns::NamespaceThread;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::fabric::{Dropped, Fabric, FabricError, Projection, port_link};
use crate::live::LiveModel;
use crate::model::api::{Reply, Request};
use crate::model::{ApiError, CallFailure, Model};
use crate::node::{Node, NodeError};
use crate::scene::Scene;

mod build;
pub(crate) mod leftovers;
mod services;

use build::Places;
pub use leftovers::{Claim, Outcome, down};

/// Where worlds keep what is on the host's disk: a directory each, by tag.
pub const BASE_DIR: &str = "/run/vpcsim";
/// How long a wait for a link or a change may take.
const SHOW: Duration = Duration::from_secs(60);

/// How long after a failure the fabric is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// Why a world did not come up or is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// The model refuses the scene.
    #[error("the scene: {what}")]
    Scene {
        /// What was being made.
        what: String,
        /// EC2's reason.
        source: ApiError,
    },
    /// A machine.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The packets.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// The world's directory.
    #[error("{path} cannot be made")]
    Directory {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A name that the scene does not have.
    #[error("there is no {kind} {name:?} in this world")]
    Unknown {
        /// What it would be.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// An EC2 call failed.
    #[error("an EC2 call failed")]
    Call(#[from] CallFailure),
    /// Something did not show in time.
    #[error("{what} did not show within {} s", SHOW.as_secs())]
    Late {
        /// What was waited for.
        what: String,
    },
    /// A service's socket cannot be opened.
    #[error("the {service:?} service of {vpc} cannot be started")]
    Service {
        /// Which.
        service: Service,
        /// The VPC.
        vpc: VpcId,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A machine's boot was cancelled.
    #[error("the machines did not boot")]
    Boot(#[from] tokio::task::JoinError),
}

/// A service of EC2 that nodes reach at an address of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// The EC2 API, at [`crate::fabric::EC2_ENDPOINT`].
    Ec2,
    /// The instance metadata service, at [`crate::fabric::IMDS`].
    Imds,
}

/// A running world. Dropping it takes all of it down.
#[derive(Debug)]
pub struct World {
    follower: JoinHandle<()>,
    nodes: BTreeMap<String, Arc<Node>>,
    core: Arc<Core>,
    services: services::Services,
    places: Places,
    tag: String,
    /// Held for its end, which comes after the machines'.
    _claim: Arc<Claim>,
}

/// What the world shares with the task that makes packets follow the model.
#[derive(Debug)]
struct Core {
    live: LiveModel,
    fabric: tokio::sync::Mutex<Fabric>,
    machines: Mutex<BTreeMap<InstanceId, Arc<Node>>>,
}

impl Core {
    fn machines(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Arc<Node>>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the packets follow the model; returns the version and time that they follow.
    async fn follow(&self) -> Result<(u64, Duration), FabricError> {
        let mut fabric = self.fabric.lock().await;
        let (state, version, now) = self.live.with(|model, now| (model.snapshot(), model.version(), now));
        let machines = self.machines().clone();
        fabric.apply(&Projection::of(&state, now, &machines.keys().cloned().collect()), &machines).await?;
        self.live.followed(version);
        Ok((version, now))
    }
}

/// Follows the model until the world is gone.
async fn follow(core: Weak<Core>, live: LiveModel, (mut version, mut now): (u64, Duration)) {
    loop {
        live.changed(version, now).await;
        let Some(core) = core.upgrade() else { return };
        match core.follow().await {
            Ok(followed) => (version, now) = followed,
            Err(error) => {
                tracing::error!(error = %Chain(&error), "the fabric does not follow the model");
                drop(core);
                tokio::time::sleep(TRY_AGAIN).await;
            }
        }
    }
}

/// An error with its causes, on one line.
pub struct Chain<'a>(pub &'a dyn std::error::Error);

impl std::fmt::Debug for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl World {
    /// Brings a scene up: VPCs, gateways, Internet hosts, and a machine for each instance, with its primary ENI as
    /// DHCP leaves it.
    ///
    /// # Errors
    /// [`WorldError`]; what was made is taken away again.
    pub async fn up(scene: &Scene) -> Result<Self, WorldError> {
        static WORLDS: AtomicU32 = AtomicU32::new(0);
        let tag = format!("{}-{}", std::process::id(), WORLDS.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new(BASE_DIR).join(&tag);
        let claim = Claim::of(dir.clone()).map_err(|source| WorldError::Directory { path: dir, source })?;
        Self::build(scene, tag, Arc::new(claim)).await
    }

    async fn build(scene: &Scene, tag: String, claim: Arc<Claim>) -> Result<Self, WorldError> {
        let (model, places) = build::model(scene)?;
        let mut booting = tokio::task::JoinSet::new();
        for name in places.instances.keys() {
            let (name, dir, tag) = (name.clone(), claim.dir().join(name), tag.clone());
            // A boot that nobody waits for any more still makes the machine's directory: the world's goes after it.
            let claim = Arc::clone(&claim);
            booting.spawn(async move { (Node::boot(&name, &dir, &tag).await, claim) });
        }
        let fabric = Fabric::new(&scene.internet_hosts).await;
        let mut nodes = BTreeMap::new();
        while let Some(booted) = booting.join_next().await {
            let (node, _claim) = booted?;
            let node = node?;
            nodes.insert(node.name().to_owned(), Arc::new(node));
        }
        let machine = |(name, id): (&String, &InstanceId)| Some((id.clone(), Arc::clone(nodes.get(name)?)));
        let live = LiveModel::new(model);
        let core = Arc::new(Core {
            live: live.clone(),
            fabric: tokio::sync::Mutex::new(fabric?),
            machines: Mutex::new(places.instances.iter().filter_map(machine).collect()),
        });
        let first = core.follow().await?;
        let routers = core.fabric.lock().await.routers();
        let services = services::Services::new(live.clone(), routers);
        let follower = tokio::spawn(follow(Arc::downgrade(&core), live, first));
        let world = Self { follower, nodes, core, services, places, tag, _claim: claim };
        for service in [Service::Ec2, Service::Imds] {
            world.start_service(service).await?;
        }
        Ok(world)
    }

    /// What tells this world's processes and directories from those of others.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The machines by name.
    #[must_use]
    pub const fn nodes(&self) -> &BTreeMap<String, Arc<Node>> {
        &self.nodes
    }

    /// A machine.
    ///
    /// # Errors
    /// [`WorldError::Unknown`].
    pub fn node(&self, name: &str) -> Result<&Arc<Node>, WorldError> {
        self.nodes.get(name).ok_or_else(|| unknown("instance", name))
    }

    /// The id of an instance of the scene.
    ///
    /// # Errors
    /// [`WorldError::Unknown`].
    pub fn instance(&self, name: &str) -> Result<&InstanceId, WorldError> {
        self.places.instances.get(name).ok_or_else(|| unknown("instance", name))
    }

    /// The id of a VPC of the scene.
    ///
    /// # Errors
    /// [`WorldError::Unknown`].
    pub fn vpc(&self, name: &str) -> Result<&VpcId, WorldError> {
        self.places.vpcs.get(name).ok_or_else(|| unknown("VPC", name))
    }

    /// The id of a subnet of the scene, by `VPC/SUBNET`.
    ///
    /// # Errors
    /// [`WorldError::Unknown`].
    pub fn subnet(&self, name: &str) -> Result<&SubnetId, WorldError> {
        self.places.subnets.get(name).ok_or_else(|| unknown("subnet", name))
    }

    /// Time since the world began, which is the model's time.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.core.live.now()
    }

    /// Looks at the model as it is now, or changes it by its scene calls; the packets have followed when this returns.
    pub async fn edit<R>(&self, change: impl FnOnce(&mut Model, Duration) -> R) -> R {
        let result = self.core.live.with(change);
        self.core.live.settled().await;
        result
    }

    /// Looks at the model as it is now.
    pub fn look<R>(&self, look: impl FnOnce(&Model, Duration) -> R) -> R {
        self.core.live.with(|model, now| look(model, now))
    }

    /// Calls EC2 as a client in the region would, without HTTP: the reply comes after EC2's latency.
    ///
    /// # Errors
    /// EC2's own.
    pub async fn call(&self, request: impl Into<Request>) -> Result<Reply, CallFailure> {
        self.core.live.call("", request).await.result
    }

    /// Waits until the link of an ENI is on its node, and returns its name there.
    ///
    /// # Errors
    /// [`WorldError::Late`].
    pub async fn link_of(&self, eni: &EniId) -> Result<String, WorldError> {
        let deadline = Instant::now() + SHOW;
        loop {
            if let Some(link) = self.core.fabric.lock().await.link_on_node(eni) {
                return Ok(link.to_owned());
            }
            if Instant::now() >= deadline {
                return Err(WorldError::Late { what: format!("the link of {eni}") });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The model with its clock, to build other servers on.
    #[must_use]
    pub fn live(&self) -> &LiveModel {
        &self.core.live
    }

    /// Starts a service in every VPC; it runs from the beginning, so this is for after [`Self::stop_service`].
    ///
    /// # Errors
    /// [`WorldError::Service`] when its socket cannot be opened.
    pub async fn start_service(&self, service: Service) -> Result<(), WorldError> {
        self.services.start(service).await
    }

    /// Stops a service in every VPC: connections break, new ones are refused.
    pub async fn stop_service(&self, service: Service) {
        self.services.stop(service).await;
    }

    /// Restarts a machine: its processes are killed, its disk is as it was, `/run` and network begin anew, and its ENIs
    /// are there as after the first boot. Whoever holds the old [`Node`] holds an empty shell.
    ///
    /// # Errors
    /// [`WorldError`]; the machine is gone then.
    pub async fn reboot(&mut self, name: &str) -> Result<(), WorldError> {
        let id = self.instance(name)?.clone();
        let node = Arc::new(self.node(name)?.reboot().await?);
        let mut fabric = self.core.fabric.lock().await;
        fabric.unplug_machine(&id).await?;
        self.core.machines().insert(id, Arc::clone(&node));
        drop(fabric);
        self.core.follow().await?;
        self.nodes.insert(name.to_owned(), node);
        Ok(())
    }

    /// Packets that source checks refused so far: what a wrong route on a node looks like from outside.
    ///
    /// # Errors
    /// [`FabricError`] when the router cannot be asked.
    pub async fn dropped(&self) -> Result<Vec<Dropped>, FabricError> {
        self.core.fabric.lock().await.dropped().await
    }

    /// Forgets the packets that source checks refused so far.
    ///
    /// # Errors
    /// [`FabricError`] when the router cannot be told.
    pub async fn forget_dropped(&self) -> Result<(), FabricError> {
        self.core.fabric.lock().await.forget_dropped().await
    }

    /// The name of an ENI's link at its VPC's router.
    #[must_use]
    pub fn port_of(eni: &EniId) -> String {
        port_link(eni)
    }

    /// The thread in which the Internet's hosts live.
    pub async fn internet(&self) -> Arc<NamespaceThread> {
        Arc::clone(self.core.fabric.lock().await.internet().thread())
    }

    /// The thread of a VPC's router.
    ///
    /// # Errors
    /// [`WorldError::Unknown`].
    pub async fn router(&self, vpc: &str) -> Result<Arc<NamespaceThread>, WorldError> {
        let id = self.vpc(vpc)?;
        self.core.fabric.lock().await.router(id).cloned().ok_or_else(|| unknown("VPC", vpc))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.follower.abort();
        for node in self.nodes.values() {
            if let Err(error) = node.kill_processes() {
                tracing::warn!(%error, "a node goes down with processes left");
            }
        }
    }
}

fn unknown(kind: &'static str, name: &str) -> WorldError {
    WorldError::Unknown { kind, name: name.into() }
}
