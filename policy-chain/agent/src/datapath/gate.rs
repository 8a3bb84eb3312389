//! The gates of this host's kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use sluice_contract::id::IfName;
use sluice_contract::node::egress::is_egress;
use sluice_hostnet::conntrack::{self, ConntrackError, Flow};
use sluice_hostnet::desired::View;
use sluice_hostnet::host::Host;
use sluice_hostnet::netlink::Netlink;
use sluice_hostnet::netns::Namespace;
use sluice_hostnet::state::{Family, Link, LinkKind, Observed, TABLE_MAIN, host_prefix};
use sluice_policy_bpf::cilium;
use sluice_policy_bpf::events::{Event, Events};
use sluice_policy_bpf::filters::{FilterError, Filters, Instead};
use sluice_policy_bpf::gate::{self, Gate, GateConfig, Ktime};
use sluice_policy_bpf::links::{LinkError, Links, Promotions};
use sluice_policy_bpf::local::{self, LocalError};
use sluice_policy_bpf::programs::Program;
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::compile::diff::Operation;
use sluice_policy_core::compile::engine::Floor;
use sluice_policy_core::compile::image::{Identity, Image};
use tokio::task::{JoinError, JoinHandle};

use super::uplinks::{Stand, Uplinks};
use super::{ApplyError, AttachError, Datapath, Difference, Found, HeldIdentities, Interface, Seen, Tended, Veth};
use crate::log::ErrorChain;

/// How long after its maps were made a gate takes packets of flows that it does not know for the replies of such that were
/// there before (DESIGN 7).
const ADOPTION: Duration = Duration::from_secs(300);

/// Events that are read in one go.
const EVENTS: usize = 1024;

/// Flows that are looked at in one go to be forgotten.
const FLOWS: usize = 4096;

/// Flows of one pod that are taken over.
const SEEDED: usize = 100_000;

/// Any error, as this seam has it.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The gates.
#[derive(Debug)]
pub struct GateDatapath {
    gate: Gate,
    filters: Filters,
    netlink: Netlink,
    events: Option<Events>,
    uplinks: Uplinks,
    /// None where the kernel has none (before Linux 6.6).
    links: Option<Arc<Mutex<Links>>>,
    promotions: Promotions,
    promoting: Option<Promoting>,
    /// What was last said of connection tracking, so that it is said once.
    conntrack: Tracking,
    /// It was said that another layout is held.
    held: bool,
    /// It was said that Cilium's agent runs.
    cilium_runs: bool,
}

/// An interface that is being given links.
#[derive(Debug)]
struct Promoting {
    interface: Interface,
    task: JoinHandle<Result<(), LinkError>>,
}

/// Whether the programs can ask the kernel's connection tracking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tracking {
    NotAsked,
    Absent,
    Failed,
    Known,
}

/// How gates are to behave, whatever policy says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behaviour {
    /// Established flows are kept when policy changes, or judged anew.
    pub keep_established: bool,
    /// What the gates see is told ([`Datapath::seen`]), or they are silent.
    pub tell_events: bool,
}

impl GateDatapath {
    /// Loads the programs, or takes over what is pinned. In the host's network namespace, inside a tokio runtime.
    ///
    /// # Errors
    /// There is no file system for pins, the kernel refuses a program, or another process holds the gates.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open(behaviour: Behaviour) -> Result<(Self, Found), Failure> {
        Self::open_with(&GateConfig::default(), behaviour)
    }

    /// The same, with its pins elsewhere or of another size.
    ///
    /// # Errors
    /// As [`GateDatapath::open`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open_with(config: &GateConfig, behaviour: Behaviour) -> Result<(Self, Found), Failure> {
        let (mut gate, found) = Gate::open(config)?;
        let conntrack = find_conntrack(&mut gate, Tracking::NotAsked);
        if found.made.contains(&"connections") {
            gate.adopt_until(Ktime::now().plus(ADOPTION))?;
        }
        gate.keep_established(behaviour.keep_established)?;
        gate.tell_events(behaviour.tell_events)?;
        gate.judged_at_local_input(judge_local_input(config))?;
        let links = match Links::supported().then(|| Links::open(&config.root)) {
            None => None,
            Some(Ok(links)) => Some(Arc::new(Mutex::new(links))),
            Some(Err(error)) => {
                tracing::error!(error = %ErrorChain(&error), "gates stand by filters alone");
                None
            }
        };
        let netlink = Netlink::open()?;
        let filters = Filters::new(gate.programs(), netlink.clone());
        let events = gate.events();
        let gate::Highest { identity, policy, row, decision, revision } = found.highest;
        let found = Found {
            endpoints: found.endpoints.keys().copied().collect(),
            floor: Floor { policy, row, decision, identity, revision },
        };
        let uplinks = Uplinks::open()?;
        let promotions = Promotions::default();
        Ok((
            Self {
                gate,
                filters,
                netlink,
                events,
                uplinks,
                links,
                promotions,
                promoting: None,
                conntrack,
                held: false,
                cilium_runs: false,
            },
            found,
        ))
    }

    /// Whether Cilium's agent runs on this node: what it has at interfaces is then not taken from it.
    fn cilium_runs(&mut self) -> bool {
        let runs = cilium::agent_runs().unwrap_or_else(|error| {
            tracing::warn!(error = %error, "it cannot be seen whether Cilium's agent runs");
            false
        });
        if runs && !std::mem::replace(&mut self.cilium_runs, runs) {
            tracing::warn!(
                "Cilium's agent runs on this node: its programs stay, and may keep packets from the gates, until it has gone"
            );
        }
        self.cilium_runs = runs;
        runs
    }

    /// The interface as the gate wants it. The bridge that it may be a port of is asked of the kernel.
    async fn gate_interface(&self, interface: &Interface) -> gate::Interface {
        let link = self.netlink.link_by_index(interface.index).await;
        let bridge = match link {
            Ok(link) => link.and_then(|link| link.master),
            Err(error) => {
                tracing::warn!(interface = %interface.name, error = %error, "an interface could not be looked at");
                None
            }
        };
        if bridge.is_some() {
            tracing::warn!(
                interface = %interface.name,
                "a pod is behind a bridge: flows that rules for HTTP, DNS or TLS names are for do not get through"
            );
        }
        gate::Interface {
            index: interface.index,
            name: interface.name.clone(),
            addresses: interface.addresses.clone(),
            first: interface.first,
            any_source: false,
            bridge,
        }
    }

    /// The interface is given links when its turn comes, unless it has some.
    fn promote_later(&mut self, interface: &Interface) {
        let is_linked = || self.filters.are_linked(interface.index).unwrap_or(false);
        if self.links.is_some() && !is_linked() {
            self.promotions.add(interface.index, interface.name.clone(), Ktime::now());
        }
    }

    /// Whether the interface of this index has this name, still.
    async fn is_there(&self, interface: &Interface) -> Result<(), AttachError> {
        let link = self.netlink.link_by_index(interface.index).await.map_err(|source| AttachError::Kernel {
            action: format!("looking for the interface {}", interface.name),
            source: source.into(),
        })?;
        match link {
            Some(link) if link.name == interface.name => Ok(()),
            _ => Err(AttachError::Gone { name: interface.name.clone(), index: interface.index }),
        }
    }
}

/// The veths among links, with what is routed by each.
fn veths(seen: Observed) -> Vec<Veth> {
    let mut routed: BTreeMap<IfName, Vec<IpAddr>> = BTreeMap::new();
    for route in seen.routes {
        let (to, is_host) = (route.destination.addr(), host_prefix(route.destination.addr()) == route.destination);
        if let Some(dev) = route.dev.filter(|_| is_host && !is_egress(to)) {
            routed.entry(dev).or_default().push(to);
        }
    }
    let links = seen.links.into_iter().filter(|link| link.kind == LinkKind::Veth);
    let veth = |link: Link| {
        let addresses = routed.remove(&link.name).unwrap_or_default();
        Veth { index: link.index, name: link.name, alias: link.alias, peer_netns: link.peer_netns, addresses }
    };
    links.map(veth).collect()
}

/// Gives an interface links, on a thread that may wait.
fn link(links: &Arc<Mutex<Links>>, interface: &Interface) -> JoinHandle<Result<(), LinkError>> {
    let (links, index, name) = (Arc::clone(links), interface.index, interface.name.clone());
    tokio::task::spawn_blocking(move || links.lock().unwrap_or_else(PoisonError::into_inner).promote(index, &name))
}

/// Lets the programs ask connection tracking. Where that is a module, it comes with the first rule that needs it: this is tried
/// again until then.
fn find_conntrack(gate: &mut Gate, before: Tracking) -> Tracking {
    if before == Tracking::Known {
        return before;
    }
    let now = match gate.find_conntrack() {
        Ok(true) => Tracking::Known,
        Ok(false) => Tracking::Absent,
        Err(error) => {
            if before != Tracking::Failed {
                tracing::error!(error = %ErrorChain(&error), "flows to Services cannot be judged by their backends");
            }
            Tracking::Failed
        }
    };
    match (before, now) {
        (Tracking::NotAsked, Tracking::Absent) => {
            tracing::info!(
                "there is no connection tracking yet: nothing is translated, and nothing is judged by backends"
            );
        }
        (Tracking::Absent | Tracking::Failed, Tracking::Known) => {
            tracing::info!("connection tracking is there: flows to Services are judged by their backends");
        }
        _ => {}
    }
    now
}

/// What pods send to Services with a backend on the node itself is judged there. Without it the gates judge what they can
/// see: the answers of such a backend. Whether it is.
fn judge_local_input(config: &GateConfig) -> bool {
    let attached = local::attach(&config.root);
    match &attached {
        Ok(()) => {}
        Err(error @ LocalError::Unsupported) => tracing::warn!(error = %error, "local input is not judged"),
        Err(error) => tracing::error!(error = %ErrorChain(error), "local input cannot be judged"),
    }
    attached.is_ok()
}

fn failed(error: gate::ApplyError) -> ApplyError {
    match error {
        gate::ApplyError::Full { map, limit } => ApplyError::Full { map, limit },
        gate::ApplyError::Addresses { limit, .. } => {
            ApplyError::Full { map: "addresses of an endpoint", limit: u32::try_from(limit).unwrap_or(u32::MAX) }
        }
        gate::ApplyError::Kernel { map, action, source } => {
            ApplyError::Kernel { action: format!("to {action} the map {map}"), source: source.into() }
        }
    }
}

fn unlinked(interface: &Interface) -> impl FnOnce(LinkError) -> AttachError {
    move |error| match error {
        LinkError::Gone { .. } => AttachError::Gone { name: interface.name.clone(), index: interface.index },
        other => {
            AttachError::Kernel { action: format!("linking the gate to {}", interface.name), source: other.into() }
        }
    }
}

/// The end of a task that gives an interface links.
fn linked(interface: &Interface, ended: Result<Result<(), LinkError>, JoinError>) -> Result<(), AttachError> {
    let lost = |error: JoinError| AttachError::Kernel {
        action: format!("linking the gate to {}", interface.name),
        source: error.into(),
    };
    ended.map_err(lost)?.map_err(unlinked(interface))
}

fn unattached(interface: &Interface) -> impl FnOnce(FilterError) -> AttachError {
    move |error| match error {
        FilterError::Gone { .. } => AttachError::Gone { name: interface.name.clone(), index: interface.index },
        other => {
            AttachError::Kernel { action: format!("putting the gate on {}", interface.name), source: other.into() }
        }
    }
}

impl Datapath for GateDatapath {
    fn apply(&mut self, operation: &Operation) -> Result<(), ApplyError> {
        self.gate.apply(operation).map_err(failed)
    }

    fn identities(&self, prefix: &IpNet) -> Option<HeldIdentities> {
        match self.gate.identities(prefix) {
            Ok((name, address)) => Some(HeldIdentities { name, address: address.unwrap_or(Identity::WORLD) }),
            Err(error) => {
                tracing::error!(error = %ErrorChain(&error), "the identity of an address could not be read");
                None
            }
        }
    }

    async fn bind(&mut self, pod: &PodKey, interface: &Interface) -> Result<(), ApplyError> {
        let interface = self.gate_interface(interface).await;
        self.gate.bind(pod, interface).map(|_| ()).map_err(failed)
    }

    fn unbind(&mut self, index: u32) -> Result<(), ApplyError> {
        self.promotions.remove(index);
        self.gate.unbind(index).map_err(failed)
    }

    fn forget(&mut self, index: u32) -> Result<(), ApplyError> {
        self.promotions.remove(index);
        self.gate.forget(index).map_err(failed)
    }

    fn lock_down(&mut self, pod: &PodKey) -> Result<(), ApplyError> {
        self.gate.lock_down(pod).map_err(failed)
    }

    fn lock_down_kept(&mut self) -> Result<usize, ApplyError> {
        self.gate.lock_down_kept().map_err(failed)
    }

    async fn attach(&mut self, interface: &Interface) -> Result<(), AttachError> {
        // Behind sluice-eni both hooks are closed already, and taking their place is all there is to do.
        if !self.gate.is_linked(interface.index) {
            let swapped = self.filters.swap(interface.index, &interface.name).await;
            if swapped.map_err(unattached(interface))? {
                if self.links.is_some() {
                    self.promotions.add(interface.index, interface.name.clone(), Ktime::now());
                }
                return Ok(());
            }
        }
        // Of such a pod packets go already.
        let is_before = |(_, program)| {
            self.gate.has_link(interface.index, program) || self.gate.is_of_another_layout(interface.index, program)
        };
        if Program::POD.into_iter().any(is_before) {
            return self.adopt(interface).await;
        }
        self.is_there(interface).await?;
        // Where the primary plugin has left nothing, nothing may pass between the one direction's program and the other's.
        let attached = match self.filters.attach_drop(interface.index).await {
            Ok(()) => self.filters.attach(interface.index).await,
            Err(error) => Err(error),
        };
        match (attached, &self.links) {
            (Ok(()), _) => {
                self.promote_later(interface);
                Ok(())
            }
            (Err(error), Some(links)) if error.is_no_room() => {
                let linking = link(links, interface);
                linked(interface, linking.await)
            }
            (Err(error), _) => Err(unattached(interface)(error)),
        }
    }

    async fn adopt(&mut self, interface: &Interface) -> Result<(), AttachError> {
        self.is_there(interface).await?;
        let has_hooks = self.filters.has_hooks(interface.index).await.map_err(unattached(interface))?;
        if let Some(links) = &self.links
            && !has_hooks
        {
            match linked(interface, link(links, interface).await) {
                Err(error @ AttachError::Kernel { .. }) => {
                    tracing::warn!(interface = %interface.name, error = %ErrorChain(&error), "a gate gets filters, because it cannot stand by links");
                }
                done => return done,
            }
        }
        // Nothing was judged here until now, or it is by what a process before has put there: one direction may be a moment before
        // the other.
        self.filters.attach(interface.index).await.map_err(unattached(interface))?;
        self.promote_later(interface);
        Ok(())
    }

    async fn promote(&mut self) -> Option<Result<IfName, AttachError>> {
        if let Some(Promoting { interface, task }) = self.promoting.take_if(|promoting| promoting.task.is_finished()) {
            let mut done = linked(&interface, task.await);
            if done.is_ok() {
                // A packet is judged once.
                done = self.filters.leave_to_links(interface.index).await.map_err(unattached(&interface));
            }
            return Some(done.map(|()| interface.name));
        }
        if self.promoting.is_none()
            && let Some(links) = &self.links
            && let Some((index, name)) = self.promotions.next(Ktime::now())
        {
            // Links are put where a gate is: what it lets pass is the maps' business.
            let interface = Interface { index, name, addresses: Vec::new(), first: true };
            let task = link(links, &interface);
            self.promoting = Some(Promoting { interface, task });
        }
        None
    }

    async fn check(&mut self, interface: &Interface) -> Result<Vec<Difference>, AttachError> {
        self.is_there(interface).await?;
        let missing = self.filters.check(interface.index).await.map_err(unattached(interface))?;
        if missing.is_empty() {
            // Its gate may be of a process before.
            self.promote_later(interface);
        }
        let gate = &self.gate;
        let words = missing.into_iter().map(|missing| {
            // What drops everything is asked behind a link, whosever that is.
            let passes_links = missing.instead != Instead::Drop;
            let of_another_layout = passes_links && gate.is_of_another_layout(interface.index, missing.program);
            let linked = passes_links && gate.has_link(interface.index, missing.program);
            let older = missing.instead == Instead::Older || of_another_layout || linked;
            let instead = match missing.instead {
                _ if linked => "that of the process before is there, by a link".to_owned(),
                _ if of_another_layout => "that of another layout of the maps is there".to_owned(),
                Instead::Older => "that of the process before is there".to_owned(),
                Instead::Nothing => "nothing is there".to_owned(),
                Instead::Drop => "the program that drops everything is there".to_owned(),
                Instead::Other { name, .. } => format!("{} is there", name.as_deref().unwrap_or("something else")),
            };
            Difference { what: format!("{} is not at {:?}: {instead}", missing.program.name(), missing.hook), older }
        });
        Ok(words.collect())
    }

    async fn behind(&mut self, address: IpAddr) -> Option<(u32, IfName)> {
        let index = match self.netlink.link_behind(address).await {
            Ok(index) => index?,
            Err(error) => {
                tracing::warn!(%address, error = %error, "the route to a pod could not be read");
                return None;
            }
        };
        match self.netlink.link_by_index(index).await {
            // What else an address may be routed to is a VLAN of the node's, a tunnel, ...
            Ok(link) => link.filter(|link| link.kind == LinkKind::Veth).map(|link| (index, link.name)),
            Err(error) => {
                tracing::warn!(index, error = %ErrorChain(&error), "an interface could not be looked at");
                None
            }
        }
    }

    async fn veths(&mut self) -> Option<Vec<Veth>> {
        let routes = Family::ALL.map(|family| (family, TABLE_MAIN)).into();
        let view = View { routes, ..View::default() };
        let seen = match Host::current() {
            Ok(host) => host.observe(&view).await.map_err(|error| ErrorChain(&error).to_string()),
            Err(error) => Err(ErrorChain(&error).to_string()),
        };
        match seen {
            Ok(seen) => Some(veths(seen)),
            Err(error) => {
                tracing::warn!(error, "the host's veths could not be read");
                None
            }
        }
    }

    async fn seed(&mut self, interface: &Interface) {
        if let Err(error) = self.gate.adopt_until(Ktime::now().plus(ADOPTION)) {
            tracing::error!(error = %ErrorChain(&error), "replies of older flows could not be allowed for");
        }
        let addresses = interface.addresses.clone();
        let dump = tokio::task::spawn_blocking(move || {
            let of_pod =
                |flow: &Flow| addresses.contains(&flow.original.source) || addresses.contains(&flow.reply.source);
            conntrack::flows(&Namespace::current().map_err(ConntrackError::Namespace)?, SEEDED, of_pod)
        });
        let flows = match dump.await {
            Ok(Ok(flows)) => flows,
            Ok(Err(error)) => {
                tracing::warn!(interface = %interface.name, error = %ErrorChain(&error), "flows of a pod are not known");
                return;
            }
            Err(error) => {
                tracing::error!(interface = %interface.name, error = %ErrorChain(&error), "flows of a pod are not known");
                return;
            }
        };
        let own = &self.uplinks.own;
        match self.gate.seed(interface.index, &flows, |address| own.contains(&address), Ktime::now()) {
            Ok(0) => {}
            Ok(seeded) => tracing::info!(interface = %interface.name, seeded, "flows of a pod are known to its gate"),
            Err(error) => {
                tracing::error!(interface = %interface.name, error = %ErrorChain(&error), "flows of a pod are not known");
            }
        }
    }

    async fn tend(&mut self, replace: bool) -> Tended {
        let cilium_runs = self.cilium_runs();
        if !cilium_runs {
            match self.gate.remove_cilium_links() {
                Ok(removed) if removed.is_empty() => {}
                Ok(removed) => {
                    tracing::info!(removed = removed.len(), "programs that Cilium had left at interfaces are gone")
                }
                Err(error) => {
                    tracing::error!(error = %ErrorChain(&error), "programs that Cilium has left may keep packets from the gates");
                }
            }
        }
        let pods: BTreeSet<u32> = self.gate.interfaces().map(|(index, _)| index).collect();
        let Self { gate, filters, links, uplinks, .. } = self;
        uplinks.tend(&Stand { gate, filters, links: links.as_ref() }, &pods, replace, !cilium_runs).await
    }

    fn endpoints(&self) -> impl Iterator<Item = (u32, &PodKey)> + Clone {
        self.gate.endpoints()
    }

    fn sweep(&mut self, image: &Image) -> Result<(), ApplyError> {
        let swept = self.gate.sweep(image).map_err(failed)?;
        tracing::info!(removed = ?swept.removed, locked = ?swept.locked, "the pinned maps were swept");
        Ok(())
    }

    fn leave_other_layouts(&mut self) -> Result<bool, ApplyError> {
        let failed = |source: std::io::Error| ApplyError::Kernel {
            action: "to take away what another layout has pinned".to_owned(),
            source: source.into(),
        };
        let removed = self.gate.remove_other_layouts().map_err(failed)?;
        if !removed.is_empty() {
            tracing::info!(removed = ?removed, "what another layout had pinned is gone");
        }
        let left = self.gate.other_layouts().map_err(failed)?;
        if !left.is_empty() && !std::mem::replace(&mut self.held, true) {
            tracing::warn!(left = ?left, "another process holds what another layout has pinned: its programs judge until it ends");
        }
        Ok(left.is_empty())
    }

    fn seen(&mut self) -> Vec<Seen> {
        let Some(events) = &mut self.events else { return Vec::new() };
        let now = Ktime::now();
        let seen = |event: Event| Seen { ago: Duration::from_nanos(now.0.saturating_sub(event.time.0)), event };
        std::iter::from_fn(|| events.take()).take(EVENTS).map(seen).collect()
    }

    fn counters(&mut self) -> BTreeMap<u32, u64> {
        match self.gate.counters() {
            Ok(counters) => counters.decisions.into_iter().map(|(id, counter)| (id.0, counter.packets)).collect(),
            Err(error) => {
                tracing::error!(error = %error, "the counters could not be read");
                BTreeMap::new()
            }
        }
    }

    fn drops(&mut self) -> BTreeMap<&'static str, u64> {
        let drops = self.gate.drops().unwrap_or_default();
        drops.into_iter().map(|(reason, counter)| (reason.as_str(), counter.packets)).collect()
    }

    fn expire(&mut self) {
        self.conntrack = find_conntrack(&mut self.gate, self.conntrack);
        if let Err(error) = self.gate.expire(Ktime::now(), FLOWS) {
            tracing::error!(error = %error, "flows that ended could not be forgotten");
        }
    }

    fn in_use(&mut self, addresses: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        self.gate.peers_with_flows(addresses, Ktime::now()).unwrap_or_else(|error| {
            tracing::error!(error = %error, "the open flows could not be read");
            addresses.clone()
        })
    }
}
