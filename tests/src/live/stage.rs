//! A cluster with its agents, for all vectors of a fixture.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::model::Text;
use sluice_policy_core::vector::schema::{Family, Fixture, Mode, PodSpec};
use sluice_policy_core::vector::world::{Fault, Party, World};
use sluice_vpcsim::deployment::DeploymentError;
use sluice_vpcsim::policyd::Policyd;

use super::objects::Objects;
use super::publish::{Publisher, SourceKind};
use super::town::{Plan, Town, TownError};
use crate::prober::{ProberError, Station};
use crate::service_proxy::{Extra, ProxyError};

/// How long agents may take to enforce what was written.
pub const APPLIED: Duration = Duration::from_secs(20);

/// Why a run ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The file is wrong.
    #[error("the vectors are wrong")]
    Fault(#[from] Fault),
    /// The cluster.
    #[error(transparent)]
    Town(#[from] TownError),
    /// The probes.
    #[error(transparent)]
    Prober(#[from] ProberError),
    /// The service proxy.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The agent.
    #[error(transparent)]
    Deployment(#[from] DeploymentError),
    /// The directory of the cluster.
    #[error("the cluster cannot be written")]
    Write(#[source] io::Error),
    /// Work was cancelled.
    #[error("the work was cancelled")]
    Cancelled(#[from] tokio::task::JoinError),
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only vectors whose id has this in it.
    pub only: Option<String>,
    /// Only this mode; none: what each vector says.
    pub mode: Option<Mode>,
    /// The family of all that does not say, for reports.
    pub family: Family,
    /// How pods are attached.
    pub plan: Plan,
    /// Where agents have the cluster from.
    pub source: SourceKind,
    /// The agent; none: there are no gates, and everything has to pass.
    pub policyd: Option<PathBuf>,
}

/// A cluster, for all vectors of a fixture.
#[derive(Debug)]
pub struct Stage<'a> {
    /// The fixture.
    pub fixture: &'a Fixture,
    /// Its nodes and pods.
    pub town: Town,
    /// The cluster's objects as they are written next.
    pub objects: Objects,
    /// The agents by node; none where pods have no gates.
    pub agents: BTreeMap<Text, Policyd>,
    /// The way to the agents.
    pub publisher: Publisher,
}

impl<'a> Stage<'a> {
    /// Builds nodes and pods, each pod with its gate where there is an agent.
    ///
    /// # Errors
    /// [`LiveError`]; what was made is taken away again.
    pub async fn build(fixture: &'a Fixture, options: &Options) -> Result<Self, LiveError> {
        let mut town = Town::build(fixture, &options.plan).await?;
        let publisher = Publisher::new(options.source, &mut town).await?;
        let (objects, agents) = (Objects::default(), BTreeMap::new());
        let mut stage = Self { fixture, town, objects, agents, publisher };
        let mut world = World::new(fixture);
        stage.objects.follow(&world.take_events());
        stage.publisher.publish(&mut stage.objects)?;
        if let Some(binary) = &options.policyd {
            for (name, node) in &stage.town.nodes {
                let source = stage.publisher.source();
                let agent = Policyd::new(Arc::clone(&node.node), binary.clone(), source);
                agent.start().await?;
                stage.agents.insert(Text::clone(name), agent);
            }
            for agent in stage.agents.values() {
                agent.ready(APPLIED).await?;
            }
        }
        let pods: Vec<(PodKey, PodSpec)> = fixture.pods.iter().map(|(key, spec)| (key.clone(), spec.clone())).collect();
        stage.town.add(&pods).await?;
        Ok(stage)
    }

    /// Writes the cluster and waits until every agent that runs enforces it.
    ///
    /// # Errors
    /// [`LiveError`]: an agent ended, or took too long.
    pub async fn publish(&mut self) -> Result<(), LiveError> {
        let published = self.publisher.publish(&mut self.objects)?;
        for agent in self.agents.values() {
            if agent.pid().await.is_none() {
                continue;
            }
            agent.until("a policy was not in force", APPLIED, |view| published.shows(view)).await?;
        }
        Ok(())
    }

    /// Makes every node's service proxy do what the cluster's Services say.
    ///
    /// # Errors
    /// [`LiveError::Proxy`].
    pub async fn program(&self, world: &World) -> Result<(), LiveError> {
        let externals = self.fixture.services.values().flat_map(|service| service.external_addresses.iter().copied());
        let extra = Arc::new(Extra { external: externals.collect(), affinity: BTreeMap::new() });
        let cluster = Arc::new(world.cluster().clone());
        let mut programmed = tokio::task::JoinSet::new();
        for node in self.town.nodes.values() {
            let (proxy, cluster, extra) = (Arc::clone(&node.proxy), Arc::clone(&cluster), Arc::clone(&extra));
            programmed.spawn_blocking(move || proxy.apply(&cluster, &extra));
        }
        while let Some(done) = programmed.join_next().await {
            done??;
        }
        Ok(())
    }

    /// Where an endpoint's packets come from and go to.
    ///
    /// # Errors
    /// [`TownError`]: it is not there.
    pub async fn station(&mut self, party: &Party) -> Result<Station, TownError> {
        let address = party.address;
        if let Some(pod) = &party.pod {
            return Ok(Station { net: self.town.pod(&pod.key)?.net.clone(), address });
        }
        if let Some(node) = &party.node {
            return Ok(Station { net: self.town.node(node)?.node.net().clone(), address });
        }
        self.town.outside(address).await
    }
}
