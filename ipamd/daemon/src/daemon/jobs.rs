//! What runs beside the loop: operations, questions to IMDS, and work on the host's network. Each is a task whose end
//! comes back to the loop; none of them touches the state.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use sluice_contract::id::{Attachment, EniId, IfName};
use sluice_contract::node::{branch, nic};
use sluice_hostnet::branch::PodBranch;
use sluice_ipamd_core::cloud::InterfaceType;
use sluice_ipamd_core::garbage::Litter;
use sluice_ipamd_core::ledger::{AddressState, Eni, Role, Stage};
use sluice_ipamd_core::op::{Failure, Op};
use sluice_ipamd_core::recover::{ADD_TAKES, reconcile};
use sluice_ipamd_core::state::Event;
use tokio::task::JoinError;
use tokio::time::Instant;

use super::flows::Left;
use super::gone::Gone;
use super::leaks::{self, Look};
use super::learn::{Learnt, learn, node};
use super::resolve::{self, Found, Wanted};
use super::{Daemon, IN_VAIN_MOST, LOOK_EVERY, OpResult, REPAIR_GAP, Timer, lost};
use crate::cloud::Cloud;
use crate::cluster::{About, Weight};
use crate::kernel::{
    Cleared, Disturbance, EniNetwork, Kernel, KernelError, NodeNetwork, PodNetwork, Pods, Repair, Repaired,
};
use crate::log::ErrorChain;

/// A piece of work.
#[derive(Debug, Clone)]
pub(super) enum Job {
    /// A call of EC2.
    Op(Op),
    /// Who is this node, which ENIs does IMDS show, which CIDRs has the VPC?
    Learn,
    /// Which pods does the kernel show?
    Pods,
    /// Set up the node's own network.
    Node(Box<NodeNetwork>),
    /// Set up an ENI.
    SetUp(EniNetwork),
    /// Take an ENI's setting up away.
    TearDown(EniNetwork),
    /// Clear a table whose ENI nobody remembers.
    Clear(u32),
    /// Take away what a pod that is gone has left behind.
    ClearPod(Box<Gone>),
    /// Take away the route to an address by the interface of a pod that has another one.
    ClearRoute(IpAddr, IfName, Attachment),
    /// Take away the interface of a pod that is gone.
    ClearLink(IfName, Attachment),
    /// Make connection tracking forget what pods that are gone have left there.
    ForgetFlows(Vec<Left>),
    /// Wait until others change what is ours, and until a time.
    Watch(Instant),
    /// Put right what others have changed.
    Repair(Repairing),
    /// Which ENIs of this cluster are attached to nothing?
    Leaks(String),
    /// Delete an ENI of this cluster that has leaked.
    Reap(EniId, String),
    /// Ask EC2 for what all nodes need.
    Resolve(Box<Wanted>),
}

/// A repair: what is known to have changed, and the pods as the ledger has them.
#[derive(Debug, Clone)]
pub(super) struct Repairing {
    disturbance: Disturbance,
    pods: Vec<PodNetwork>,
}

/// How it ended.
#[derive(Debug)]
pub(super) enum Done {
    Op(Box<(Op, OpResult)>),
    Learn(Result<Box<Learnt>, Failure>),
    Pods(Result<Pods, KernelError>),
    Node(Box<NodeNetwork>, Result<(), KernelError>),
    SetUp(EniNetwork, Result<(), KernelError>),
    TearDown(EniNetwork, Result<(), KernelError>),
    Clear(u32, Result<(), KernelError>),
    ClearPod(Box<Gone>, Result<Cleared, KernelError>),
    /// What kind of litter, and whether it was removed: it may have gone by itself, or be in use by now.
    Swept(&'static str, Result<bool, KernelError>),
    ForgotFlows(Vec<Left>, Result<usize, KernelError>),
    Disturbed(Result<Disturbance, KernelError>),
    Repaired(Disturbance, Repaired),
    Leaks(Result<Look, Failure>),
    Reap(EniId, Result<bool, Failure>),
    Resolved(Box<Found>),
}

/// An ENI on the host.
#[derive(Debug)]
pub(super) struct EniSide {
    network: EniNetwork,
    /// Whether it has been set up as `network` says.
    done: bool,
    /// Whether it has been found to have left, and its next turn put forward for that.
    left: bool,
    pub(super) timer: Timer,
}

impl<C: Cloud, K: Kernel> Daemon<C, K> {
    pub(super) fn spawn(&mut self, job: Job) {
        let (executor, kernel) = (Arc::clone(&self.parts.executor), Arc::clone(&self.parts.kernel));
        let known = self.state.node().map(|node| (node.identity.clone(), node.limits.clone()));
        let imds_only = self.parts.config.pool.imds_only;
        let prefix = self.parts.config.network.veth_prefix.clone();
        let work = job.clone();
        let task = self.tasks.spawn(async move {
            match work {
                Job::Op(op) => {
                    let result = executor.run(&op).await;
                    Done::Op(Box::new((op, result)))
                }
                Job::Learn => Done::Learn(learn(&executor, known, imds_only).await.map(Box::new)),
                Job::Pods => Done::Pods(kernel.pods(&prefix).await),
                Job::Node(network) => {
                    let result = kernel.set_up_node(&network).await;
                    Done::Node(network, result)
                }
                Job::SetUp(network) => {
                    let result = kernel.set_up_eni(&network).await;
                    Done::SetUp(network, result)
                }
                Job::TearDown(network) => {
                    let result = kernel.clear_table(network.table).await;
                    Done::TearDown(network, result)
                }
                Job::Clear(table) => Done::Clear(table, kernel.clear_table(table).await),
                Job::ClearPod(gone) => {
                    let result = kernel.clear_pod(&gone.addresses(), &prefix).await;
                    Done::ClearPod(gone, result)
                }
                Job::ClearRoute(address, dev, attachment) => {
                    Done::Swept(Litter::ROUTE, kernel.clear_route(address, &dev, &attachment).await)
                }
                Job::ClearLink(dev, attachment) => {
                    Done::Swept(Litter::LINK, kernel.clear_link(&dev, &attachment).await)
                }
                Job::ForgetFlows(left) => {
                    let result = kernel.forget_flows(&Left::addresses(&left)).await;
                    Done::ForgotFlows(left, result)
                }
                Job::Watch(not_before) => Done::Disturbed(kernel.disturbed(&prefix, not_before).await),
                Job::Repair(Repairing { disturbance, pods }) => Done::Repaired(disturbance, kernel.repair(&pods).await),
                Job::Leaks(cluster) => Done::Leaks(leaks::look(&executor, &cluster).await),
                Job::Resolve(wanted) => Done::Resolved(Box::new(resolve::ask(&executor, *wanted).await)),
                Job::Reap(eni, cluster) => {
                    let result = leaks::reap(&executor, &eni, &cluster).await;
                    Done::Reap(eni, result)
                }
            }
        });
        self.jobs.insert(task.id(), job);
    }

    /// Takes in the end of a task, be it a bad one.
    pub(super) fn ended(&mut self, ended: Result<(tokio::task::Id, Done), JoinError>) {
        match ended {
            Ok((id, done)) => {
                self.jobs.remove(&id);
                self.done(done);
            }
            Err(error) => {
                tracing::error!(error = %ErrorChain(&error), "a task ended badly");
                self.parts.metrics.error("task");
                let now = Instant::now();
                let (random, pause) = (&mut self.random, Duration::from_secs(1));
                match self.jobs.remove(&error.id()) {
                    None | Some(Job::Clear(_) | Job::ClearRoute(..) | Job::ClearLink(..) | Job::Reap(..)) => {}
                    Some(Job::Leaks(_)) => {
                        if let Some(searching) = &mut self.searching {
                            searching.timer.failed(now, leaks::AGAIN, random);
                        }
                    }
                    Some(Job::Resolve(_)) => self.resolving.timer.failed(now, pause, random),
                    Some(Job::ClearPod(gone)) => self.pod_not_cleared(&gone),
                    Some(Job::ForgetFlows(left)) => self.flows_not_forgotten(left),
                    Some(Job::Op(op)) => {
                        let failure = lost(&op);
                        self.apply(Event::End(op, Err(failure)));
                    }
                    Some(Job::Learn) => self.timers.learn.failed(now, pause, random),
                    Some(Job::Pods) => self.timers.pods.failed(now, pause, random),
                    Some(Job::Watch(_)) => self.timers.watch.failed(now, pause, random),
                    Some(Job::Repair(Repairing { disturbance, .. })) => self.repair_ended(Some(disturbance), pause),
                    Some(Job::Node(_)) => self.timers.node.failed(now, pause, random),
                    Some(Job::SetUp(network) | Job::TearDown(network)) => {
                        if let Some(side) = self.enis.get_mut(&network.eni) {
                            side.timer.failed(now, pause, random);
                        }
                    }
                }
            }
        }
    }

    fn done(&mut self, done: Done) {
        let now = Instant::now();
        match done {
            Done::Op(ended) => {
                let (op, result) = *ended;
                if let Err(failure) = &result {
                    let Failure { error, retry_after } = failure;
                    tracing::warn!(op = %op, error = %error, retry_after = ?retry_after, "EC2 did not do it");
                }
                self.apply(Event::End(op, result));
                self.adopt();
            }
            Done::Learn(Ok(learnt)) => {
                self.timers.learn.succeeded(now);
                self.learnt(*learnt);
            }
            Done::Learn(Err(failure)) => {
                tracing::warn!(error = %failure.error, "IMDS or EC2 did not tell who this node is");
                self.timers.learn.failed(now, failure.retry_after, &mut self.random);
            }
            Done::Pods(Ok(_)) if !self.clearing.is_empty() => {
                // It may show half of what is being taken away.
                self.timers.pods.failed(now, Duration::ZERO, &mut self.random);
            }
            Done::Pods(Ok(pods)) => {
                self.timers.pods.succeeded(now);
                self.parts.metrics.reconcile("kernel");
                let cooldown = self.parts.config.pool.cooldown;
                let cooling = self.cooling();
                let findings = reconcile(&mut self.state, &pods.view, cooldown, self.parts.clock.now());
                self.dirty = true;
                self.cool_since(&cooling);
                for finding in findings {
                    tracing::warn!(finding = %finding, "the kernel differs from the ledger");
                }
                // Setting up an ENI clears its table anyway.
                let now = self.parts.clock.now();
                self.forget_branches(|held| {
                    now.since(held.since) > ADD_TAKES && !pods.veths.contains(&held.owner.host_ifname)
                });
                let branches = self.state.branches().map(|held| branch::table(held.vlan));
                let enis = self.enis.values().map(|side| side.network.table);
                let in_use: BTreeSet<u32> = enis.chain(branches).collect();
                for table in pods.leftovers.difference(&in_use) {
                    self.spawn(Job::Clear(*table));
                }
                self.clear_litter(&pods.look());
            }
            Done::Pods(Err(error)) => {
                tracing::error!(error = %ErrorChain(&error), "the kernel's pods could not be read");
                self.timers.pods.failed(now, Duration::ZERO, &mut self.random);
            }
            Done::Leaks(looked) => self.looked(looked),
            Done::Resolved(found) => self.resolved(*found),
            Done::Reap(eni, reaped) => self.reaped(&eni, &reaped),
            Done::Node(network, Ok(())) => {
                self.timers.node.succeeded(now);
                if let Some(begun) = self.begun.take() {
                    self.parts.metrics.node_set_up(now.saturating_duration_since(begun), true);
                }
                self.node_done = Some(*network);
                self.primary_is_ready();
            }
            Done::Node(_, Err(error)) => {
                tracing::error!(error = %ErrorChain(&error), "the node's network could not be set up");
                self.parts.metrics.error("set_up_node");
                if let Some(begun) = self.begun {
                    self.parts.metrics.node_set_up(now.saturating_duration_since(begun), false);
                }
                self.timers.node.failed(now, Duration::ZERO, &mut self.random);
            }
            Done::SetUp(network, result) => self.eni_set_up(&network, result),
            Done::TearDown(network, result) => self.eni_torn_down(&network, result),
            Done::ClearPod(gone, Ok(cleared)) => self.pod_cleared(*gone, cleared),
            Done::ClearPod(gone, Err(error)) => {
                tracing::warn!(address = %gone.address, error = %ErrorChain(&error), "a pod's rules could not be removed");
                self.parts.metrics.error("clear_pod");
                self.pod_not_cleared(&gone);
            }
            Done::Swept(kind, Ok(true)) => self.parts.metrics.littered(kind),
            Done::Swept(_, Ok(false)) => {}
            Done::Swept(_, Err(error)) => {
                // The next look finds it again.
                tracing::warn!(error = %ErrorChain(&error), "what a pod has left could not be removed");
                self.parts.metrics.error("clear_litter");
            }
            Done::ForgotFlows(left, forgotten) => self.forgot_flows(left, forgotten),
            Done::Disturbed(Ok(disturbance)) => self.disturbed(disturbance),
            Done::Disturbed(Err(error)) => {
                tracing::error!(error = %ErrorChain(&error), "the host's network cannot be watched");
                self.parts.metrics.error("watch");
                self.timers.watch.failed(now, REPAIR_GAP, &mut self.random);
            }
            Done::Repaired(disturbance, repaired) => {
                let is_whole = repaired.failed.is_empty();
                self.repaired(&disturbance, repaired);
                // Nobody changes it a second time, so that nothing more would be heard of what could not be mended.
                self.repair_ended((!is_whole).then_some(disturbance), REPAIR_GAP);
            }
            Done::Clear(table, Ok(())) => tracing::info!(table, "what an ENI had left behind is cleared"),
            Done::Clear(table, Err(error)) => {
                // The next look at the kernel finds it again.
                tracing::warn!(table, error = %ErrorChain(&error), "a table could not be cleared");
                self.parts.metrics.error("clear_table");
            }
        }
    }

    fn learnt(&mut self, learnt: Learnt) {
        let Learnt { identity, limits, enis, vpc_cidrs } = learnt;
        self.parts.metrics.reconcile("imds");
        let primary = enis.iter().find(|eni| eni.mac == identity.primary_mac);
        let security_groups = primary.map(|eni| eni.security_groups.clone()).unwrap_or_default();
        let node = node(&self.parts.config, identity, limits, vpc_cidrs, security_groups);
        if self.state.node() != Some(&node) {
            tracing::info!(
                instance = %node.identity.instance, instance_type = node.identity.instance_type,
                enis = node.limits.enis, addresses = node.limits.ipv4_per_eni, "this node is known"
            );
            self.apply(Event::NodeKnown(node));
            self.targets = self.parts.config.targets_of(&self.state);
        }
        self.apply(Event::ImdsSeen(enis));
        self.adopt();
        self.timers.node.hurry(Instant::now());
    }

    /// Gives addresses in quarantine back to the attachments that the kernel named at the start.
    fn adopt(&mut self) {
        let quarantined =
            |address: &IpAddr| matches!(self.state.ledger().address(*address), Some(AddressState::Quarantined { .. }));
        let due: Vec<IpAddr> = self.orphans.keys().filter(|address| quarantined(address)).copied().collect();
        for address in due {
            let Some(owner) = self.orphans.remove(&address) else { continue };
            let attachment = owner.attachment.clone();
            if self.apply(Event::Adopt(address, Arc::new(owner))) {
                tracing::warn!(attachment = %attachment, address = %address, "an address was adopted from the kernel");
            }
        }
    }

    /// Starts what is due on the host's network, by what the state says should be there.
    pub(super) fn host_jobs(&mut self) {
        if self.stopping {
            return;
        }
        let now = Instant::now();
        if let Some(wanted) = self.node_network() {
            if self.node_done.as_ref() != Some(&wanted) && self.node_done.is_some() {
                self.timers.node.hurry(now);
            }
            if self.timers.node.begin(now) {
                self.spawn(Job::Node(Box::new(wanted)));
            }
            self.primary_is_ready();
        }
        self.note_enis(now);
        let ledger = self.state.ledger();
        let is_here = |id: &EniId| ledger.eni(id).filter(|eni| eni.device.is_some());
        // A table that an ENI has left is cleared before another takes it.
        let left: BTreeSet<u32> =
            self.enis.iter().filter(|(id, _)| is_here(id).is_none()).map(|(_, side)| side.network.table).collect();
        let mut due = Vec::new();
        for (id, side) in &mut self.enis {
            match is_here(id) {
                None if side.timer.begin(now) => due.push(Job::TearDown(side.network.clone())),
                Some(_) if left.contains(&side.network.table) => side.timer.postpone(now),
                Some(eni) if eni.stage != Stage::Leaving && side.timer.begin(now) => {
                    due.push(Job::SetUp(side.network.clone()));
                }
                // It is being freed: its setting up goes with its link.
                Some(eni) if eni.stage == Stage::Leaving && !side.timer.is_running() => side.timer.succeeded(now),
                _ => {}
            }
        }
        for job in due {
            self.spawn(job);
        }
    }

    /// Keeps the list of ENIs on the host up to date with the ledger.
    fn note_enis(&mut self, now: Instant) {
        let (mtu, trunks) = (self.parts.config.network.eni_mtu, self.parts.config.network.pod_eni.is_some());
        for eni in self.state.ledger().enis() {
            let cidr = self.state.subnets().get(&eni.subnet).map_or(eni.subnet_cidr, |subnet| subnet.cidr);
            let Some(network) = eni_network(eni, cidr, mtu, trunks) else { continue };
            let side = self.enis.entry(eni.id.clone()).or_insert_with(|| EniSide {
                network: network.clone(),
                done: false,
                left: false,
                timer: Timer::due(now, LOOK_EVERY),
            });
            if side.network != network {
                side.network = network;
                side.done = false;
                side.timer.hurry(now);
            }
        }
        for (id, side) in &mut self.enis {
            // An ENI that has left is taken care of now, not at its next turn: the next ENI of its device waits for its
            // table. An earlier daemon may have set it up, so it does not matter whether this one has.
            let left = self.state.ledger().eni(id).is_none_or(|eni| eni.device.is_none());
            if left && !side.left {
                side.done = false;
                side.timer.hurry(now);
            }
            side.left = left;
        }
    }

    /// The primary ENI takes pods as soon as the node's network is set up.
    fn primary_is_ready(&mut self) {
        if self.node_done.is_none() {
            return;
        }
        let Some(primary) = self.state.ledger().primary() else { return };
        if primary.stage == Stage::Attached && !self.state.lacks_ipv6(&primary.id) {
            let id = primary.id.clone();
            self.apply(Event::EniReady(id));
        }
        if !self.ready && self.state.node().is_some() {
            self.ready = true;
            self.mark_ready();
            tracing::info!("pods can be started");
        }
    }

    /// Tells STATUS of the plugin that pods can be started. The mark stays when the daemon goes, and dies with the boot.
    fn mark_ready(&self) {
        let mark = self.parts.config.ready_mark();
        if let Err(error) = std::fs::write(&mark, []) {
            tracing::error!(path = %mark.display(), error = %error, "the ready mark could not be written");
        }
    }

    /// The pods of the ledger, as the host's network should have them.
    fn pod_networks(&self) -> Vec<PodNetwork> {
        let ledger = self.state.ledger();
        let now = self.parts.clock.now();
        let network = &self.parts.config.network;
        let pods = ledger.owners().filter_map(|(attachment, address)| {
            let AddressState::Assigned { owner, since, .. } = ledger.address(address)? else { return None };
            // What is being taken away is nobody's to mend.
            (!self.clearing.contains_key(&address)).then_some(())?;
            let companion = ledger.companion_of(address).map(IpAddr::V6);
            Some(PodNetwork {
                attachment: attachment.clone(),
                dev: owner.host_ifname.clone(),
                addresses: std::iter::once(address).chain(companion).collect(),
                // By its first interface a pod has it.
                egress: network.egress_of(address).filter(|_| nic::index(&attachment.ifname) == 0),
                table: ledger.eni_of(address)?.table()?,
                branch: None,
                settled: now.since(*since) > ADD_TAKES,
            })
        });
        let branches = self.state.branches().filter_map(|held| {
            let first = held.addresses.first().filter(|_| held.mode == branch::Mode::Standard);
            Some(PodNetwork {
                attachment: held.owner.attachment.clone(),
                dev: held.owner.host_ifname.clone(),
                addresses: held.addresses.iter().map(|(ip, _)| *ip).collect(),
                egress: first.and_then(|(ip, _)| network.egress_of(*ip)),
                table: branch::table(held.vlan),
                branch: Some(PodBranch::of(&held.pod_addresses()).ok()??),
                settled: now.since(held.since) > ADD_TAKES,
            })
        });
        pods.chain(branches).collect()
    }

    /// Compares everything that was set up, and the pods that stand, and puts right what is not as it was made.
    pub(super) fn mend(&mut self) {
        let Some(disturbance) = self.unmended.take() else { return };
        let pods = self.pod_networks();
        self.spawn(Job::Repair(Repairing { disturbance, pods }));
    }

    /// Others have changed something, or a failed repair has taken back what it had done: that must not lead to the next at once.
    fn disturbed(&mut self, disturbance: Disturbance) {
        let now = Instant::now();
        let is_echo = disturbance.since <= self.next_repair
            && !disturbance.changes.is_empty()
            && disturbance.changes.iter().all(|change| self.in_vain.contains(change));
        if is_echo {
            // If what is under way mends everything, it may have been more than that.
            self.echoed |= self.jobs.values().any(|job| matches!(job, Job::Repair(_)));
            self.timers.watch.succeeded(now);
            self.timers.watch.hurry(self.next_repair.max(now));
            return;
        }
        // A repair compares everything, so that what could not be mended before is among it.
        self.unmended = Some(disturbance);
        self.timers.mend.hurry(now.max(self.next_repair));
    }

    /// A repair has ended. What could not be mended is tried again, later and later, and holds up nothing that is heard of then.
    fn repair_ended(&mut self, unmended: Option<Disturbance>, at_least: Duration) {
        let now = Instant::now();
        if std::mem::take(&mut self.echoed) && unmended.is_none() && self.unmended.is_none() {
            self.unmended = Some(Disturbance { changes: Vec::new(), since: now });
        }
        self.next_repair = now + REPAIR_GAP;
        if let Some(disturbance) = &unmended {
            self.timers.mend.failed(now, at_least, &mut self.random);
            if self.in_vain.len() >= IN_VAIN_MOST {
                self.in_vain.clear();
            }
            self.in_vain.extend(disturbance.changes.iter().cloned());
        } else {
            self.timers.mend.succeeded(now);
            self.in_vain.clear();
        }
        if self.unmended.is_some() {
            // It was heard of while this was tried again; whoever has heard of it goes on when it is mended.
            self.timers.mend.hurry(self.next_repair);
            return;
        }
        self.unmended = unmended;
        // The watch has waited, unless this was tried again.
        let watches = self.jobs.values().any(|job| matches!(job, Job::Watch(_)));
        if self.timers.watch.is_running() && !watches {
            // Heard of at once, and mended when its time has come.
            self.timers.watch.succeeded(now);
            self.timers.watch.hurry(now);
        }
    }

    fn repaired(&self, disturbance: &Disturbance, repaired: Repaired) {
        let Disturbance { changes, since } = disturbance;
        let Repaired { made, failed } = repaired;
        if let Some(Repair { op, reason, .. }) = made.first() {
            let (count, took) = (made.len(), since.elapsed());
            self.parts.metrics.mended(took);
            tracing::warn!(?changes, count, ?took, "others have changed the node's network: it was mended");
            // What all of it was is in the log.
            let others = if count > 1 { format!(", and {} more", count - 1) } else { String::new() };
            let message = format!(
                "something on the node has changed its network, and what is Sluice's was put right: {op} ({reason}){others}; \
                 NetworkManager, systemd-networkd and firewall programs must leave pods' interfaces, rules and tables alone"
            );
            self.notice(About::Node, Weight::Warning, "NetworkRepaired", message);
        }
        for Repair { kind, op, reason } in made {
            self.parts.metrics.repaired(kind);
            tracing::warn!(op, reason, "mended");
        }
        for error in failed {
            tracing::error!(error = %ErrorChain(&error), "what others have changed could not be mended");
            self.parts.metrics.error("repair");
        }
    }

    /// What the node's network should be like, once that is known.
    pub(super) fn node_network(&self) -> Option<NodeNetwork> {
        let node = self.state.node()?;
        let primary = self.state.ledger().primary()?;
        let routes = self.state.routes().iter().filter(|_| self.parts.config.network.exclude_snat_routes);
        Some(NodeNetwork {
            primary_mac: primary.mac,
            primary_ip: primary.primary_ip,
            vpc_cidrs: node.vpc_cidrs.clone(),
            routed_cidrs: routes.copied().collect(),
            config: self.parts.config.network.clone(),
        })
    }

    fn eni_set_up(&mut self, network: &EniNetwork, result: Result<(), KernelError>) {
        let now = Instant::now();
        let Some(side) = self.enis.get_mut(&network.eni) else { return };
        // If it left meanwhile, taking it away does not wait for another turn of setting it up.
        side.left = false;
        match result {
            Ok(()) => {
                side.done = side.network == *network;
                side.timer.succeeded(now);
                if !side.done {
                    side.timer.hurry(now);
                    return;
                }
                let attached = |eni: &Eni| eni.stage == Stage::Attached;
                if self.state.ledger().eni(&network.eni).is_some_and(attached) {
                    tracing::info!(eni = %network.eni, table = network.table, "an ENI is set up");
                    self.apply(Event::EniReady(network.eni.clone()));
                }
            }
            Err(error) => {
                tracing::warn!(eni = %network.eni, error = %ErrorChain(&error), "an ENI could not be set up");
                self.parts.metrics.error("set_up_eni");
                side.timer.failed(now, Duration::ZERO, &mut self.random);
            }
        }
    }

    fn eni_torn_down(&mut self, network: &EniNetwork, result: Result<(), KernelError>) {
        let now = Instant::now();
        match result {
            Ok(()) => {
                tracing::info!(eni = %network.eni, table = network.table, "an ENI's setting up is taken away");
                self.enis.remove(&network.eni);
            }
            Err(error) => {
                tracing::warn!(eni = %network.eni, error = %ErrorChain(&error), "an ENI could not be torn down");
                self.parts.metrics.error("tear_down_eni");
                if let Some(side) = self.enis.get_mut(&network.eni) {
                    side.timer.failed(now, Duration::ZERO, &mut self.random);
                }
            }
        }
    }
}

/// What an ENI should be on the host; nothing for the primary ENI, those of others, and those that are not attached or
/// whose subnet is not known yet. `trunks`: the trunk ENI is set up too, for the branch ENIs on it.
fn eni_network(eni: &Eni, subnet: Ipv4Net, mtu: u32, trunks: bool) -> Option<EniNetwork> {
    let trunk = trunks && eni.interface_type == InterfaceType::Trunk && eni.role != Role::Primary;
    let of_pods = eni.role == Role::Secondary && eni.is_of_pods();
    ((of_pods || trunk) && subnet.prefix_len() < 32).then_some(())?;
    eni.device?;
    Some(EniNetwork {
        eni: eni.id.clone(),
        mac: eni.mac,
        primary_ip: eni.primary_ip,
        subnet: subnet.trunc(),
        ipv6: eni.companion(eni.primary_ip.into()),
        table: eni.table()?,
        mtu,
        trunk,
    })
}
