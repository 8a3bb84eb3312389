//! A cluster with its agents, for all vectors of a fixture.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sluice_policy_core::cluster::{EndpointSlice, Event, Object, ObjectKey, PodKey};
use sluice_policy_core::model::Text;
use sluice_policy_core::vector::schema::{Family, Fixture, Mode, PodSpec};
use sluice_policy_core::vector::world::{Fault, Party, World};
use sluice_vpcsim::deployment::DeploymentError;
use sluice_vpcsim::policyd::Policyd;
use sluice_vpcsim::proxy::Proxy;

use super::objects::Objects;
use super::publish::{Publisher, SourceKind};
use super::town::{Plan, Town, TownError};
use crate::prober::{ProberError, Station};
use crate::service_proxy::{Extra, ProxyError, nftables};

/// How long agents may take to enforce what was written.
pub const APPLIED: Duration = Duration::from_secs(60);

/// Who is masqueraded by nodes (RFC 5737, TEST-NET-1; RFC 3849).
const MASQUERADED_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 254));
const MASQUERADED_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0xffff, 0, 0, 0, 0xfe));

/// Why a run ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The file is wrong.
    #[error("the vectors are wrong")]
    Fault(#[from] Fault),
    /// A name was not resolved.
    #[error("{asker} was not told the addresses of {name}: {answer}")]
    Name {
        /// The pod that asked.
        asker: PodKey,
        /// For which name.
        name: String,
        /// What came back.
        answer: String,
    },
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
    /// Clusters at once, one at least.
    pub at_once: usize,
    /// sluice-proxy; none: what has to be proxied drops.
    pub sluice_proxy: Option<PathBuf>,
}

/// A backend that a node's service proxy has to choose: of this Service, this address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Choice {
    /// The Service.
    pub service: ObjectKey,
    /// The backend.
    pub backend: IpAddr,
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
    /// sluice-proxy by node, where there is one.
    pub proxies: BTreeMap<Text, Proxy>,
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
        let (objects, agents, proxies) = (Objects::default(), BTreeMap::new(), BTreeMap::new());
        let mut stage = Self { fixture, town, objects, agents, proxies, publisher };
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
        if let Some(binary) = &options.sluice_proxy {
            for (name, node) in &stage.town.nodes {
                let proxy = Proxy::new(Arc::clone(&node.node), binary.clone(), BTreeMap::new());
                proxy.start().await?;
                stage.proxies.insert(Text::clone(name), proxy);
            }
            for proxy in stage.proxies.values() {
                proxy.ready(APPLIED).await?;
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

    /// Makes every node's service proxy do what the cluster's Services say. Of several backends of a Service it may have to choose
    /// one; agents know all of them.
    ///
    /// # Errors
    /// [`LiveError::Proxy`].
    pub async fn program(&self, world: &World, choice: Option<&Choice>) -> Result<(), LiveError> {
        let externals = self.fixture.services.values().flat_map(|service| service.external_addresses.iter().copied());
        let extra = Arc::new(Extra { external: externals.collect(), ..Extra::default() });
        let mut cluster = world.cluster().clone();
        if let Some(Choice { service, backend }) = choice {
            let mine = |slice: &&EndpointSlice| {
                slice.key.namespace == service.namespace && slice.service.as_ref() == Some(&service.name)
            };
            for mut slice in cluster.slices.values().filter(mine).cloned().collect::<Vec<_>>() {
                slice.ready = slice.ready.iter().filter(|address| address == backend).collect();
                cluster.apply(Event::Upsert(Object::EndpointSlice(slice)));
            }
        }
        let cluster = Arc::new(cluster);
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

    /// Somebody outside of the cluster whose packets get this address of a node as they are forwarded by it.
    ///
    /// # Errors
    /// [`LiveError`].
    pub(super) async fn masqueraded(&mut self, node: &str, address: IpAddr) -> Result<Station, LiveError> {
        let (outside, family) = match address {
            IpAddr::V4(_) => (MASQUERADED_V4, "ip"),
            IpAddr::V6(_) => (MASQUERADED_V6, "ip6"),
        };
        let station = self.town.outside(outside).await?;
        let net = self.town.node(node)?.node.net().clone();
        let table = format!("table {family} sluice-live");
        let rules = format!(
            "{table}\ndelete {table}\n{table} {{ chain masqueraded {{ type nat hook postrouting priority 100; \
             {family} saddr {outside} snat to {address}; }}\n}}\n"
        );
        tokio::task::spawn_blocking(move || net.run(|| nftables(&rules))).await?.map_err(TownError::from)??;
        Ok(station)
    }
}
