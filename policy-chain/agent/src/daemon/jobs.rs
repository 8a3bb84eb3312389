//! What is done every so often, and what becomes of interfaces that go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sluice_contract::id::Attachment;
use sluice_contract::rpc::GateInterface;
use sluice_daemon::log::ErrorChain;
use sluice_policy_core::cluster::ObjectId;
use tokio::time::Instant;

use super::timer::Timer;
use super::{Before, Daemon, Knowledge};
use crate::cluster::{Cluster, Notice, Weight};
use crate::daemon::pods::interface;
use crate::datapath::{AttachError, Datapath, Interface};
use crate::outbox::Letter;
use crate::registry::Binding;

/// How often tombstones are looked for.
const TOMBSTONES_EVERY: Duration = Duration::from_secs(5);

/// How often the filters of all gates are looked at.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// After something was taken from an interface, how long more of it is waited for.
const MEND_AFTER: Duration = Duration::from_millis(20);

/// How often an interface may be given links.
const PROMOTE_EVERY: Duration = Duration::from_millis(500);

/// How often writes that failed are tried again.
const RETRY_EVERY: Duration = Duration::from_secs(5);

/// How often flows that ended are forgotten.
const EXPIRE_EVERY: Duration = Duration::from_secs(5);

/// How often what the gates saw is read.
const SEEN_EVERY: Duration = Duration::from_millis(200);

/// How often the journal's time is moved on while the source is alive.
const TOUCH_EVERY: Duration = Duration::from_secs(15);

/// How often pods are looked for that were there before.
const ADOPT_EVERY: Duration = Duration::from_secs(10);

/// How often uplinks are looked after.
const TEND_EVERY: Duration = Duration::from_secs(10);

/// After a change of the host's interfaces, how long further ones are waited for.
const TEND_AFTER: Duration = Duration::from_millis(100);

/// How often names that are past their time are looked for. All flows are read then.
const NAMES_EVERY: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Timers {
    tombstones: Timer,
    check: Timer,
    mend: Timer,
    promote: Timer,
    retry: Timer,
    expire: Timer,
    seen: Timer,
    touch: Timer,
    tend: Timer,
    adopt: Timer,
    names: Timer,
}

impl Timers {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            tombstones: Timer::new(now, TOMBSTONES_EVERY),
            check: Timer::new(now, CHECK_EVERY),
            mend: Timer::new(now, CHECK_EVERY),
            promote: Timer::new(now, PROMOTE_EVERY),
            retry: Timer::new(now, RETRY_EVERY),
            expire: Timer::new(now, EXPIRE_EVERY),
            seen: Timer::new(now, SEEN_EVERY),
            touch: Timer::new(now, TOUCH_EVERY),
            tend: Timer::new(now, TEND_EVERY),
            adopt: Timer::new(now, ADOPT_EVERY),
            names: Timer::new(now, NAMES_EVERY),
        }
    }

    /// When the next is due.
    pub(super) fn next(&self) -> Instant {
        let gates = [&self.check, &self.mend, &self.promote, &self.tend, &self.adopt];
        let others = [&self.retry, &self.expire, &self.seen, &self.touch, &self.names];
        gates.iter().chain(&others).map(|timer| timer.next()).fold(self.tombstones.next(), Instant::min)
    }
}

impl<C: Cluster, D: Datapath> Daemon<C, D> {
    pub(super) async fn due_jobs(&mut self) {
        let now = Instant::now();
        if self.timers.tombstones.is_due(now) {
            self.drain_tombstones();
        }
        if self.timers.tend.is_due(now) {
            self.tend().await;
        }
        // What was told since the last commit has not made gates yet.
        if !self.dirty && self.timers.adopt.is_due(now) {
            self.find_ungated().await;
        }
        if self.timers.check.is_due(now) {
            self.tell_what_lasts();
            self.repair(|_| true).await;
        }
        if self.timers.mend.is_due(now) && !self.suspects.is_empty() {
            let suspects = std::mem::take(&mut self.suspects);
            self.repair(|index| suspects.contains(&index)).await;
        }
        if self.timers.promote.is_due(now) {
            self.promote().await;
        }
        if self.timers.retry.is_due(now) {
            self.try_again().await;
        }
        if self.timers.expire.is_due(now) {
            self.parts.gates.expire();
        }
        if self.timers.names.is_due(now) {
            self.end_names();
        }
        if self.timers.seen.is_due(now) {
            self.read_seen();
        }
        if self.timers.touch.is_due(now) && self.knowledge == Knowledge::All && self.stale.is_none() {
            self.parts.journal.touch(self.parts.clock.now());
        }
    }

    /// DELs that were left behind while nobody listened.
    fn drain_tombstones(&mut self) {
        let mut spent = Vec::new();
        for (path, request) in self.parts.tombstones.read() {
            tracing::info!(attachment = %request.attachment, "a DEL that was left behind");
            self.parts.metrics.tombstone();
            self.del(&request);
            spent.push(path);
        }
        self.parts.tombstones.remove(&spent);
    }

    /// Puts gates back that somebody has taken away, of interfaces whose index is wanted.
    async fn repair(&mut self, wanted: impl Fn(u32) -> bool) {
        let is_wanted = |binding: &&Binding| binding.interfaces().iter().any(|gate| wanted(gate.host_index));
        let bindings: Vec<Binding> = self.bindings.values().filter(is_wanted).cloned().collect();
        for binding in bindings {
            // What is to be bound at the end of this step gets its gate then.
            let adopting = self.adopting.get(&binding.add.attachment).cloned().unwrap_or_default();
            let is_due = |gate: &&GateInterface| wanted(gate.host_index) && !adopting.contains(&gate.host_index);
            for gate in binding.interfaces().iter().filter(is_due) {
                self.repair_one(&binding, &interface(gate)).await;
            }
        }
    }

    /// Puts this process' programs in the place of those of before, now that the maps have what they judge by. Where that fails,
    /// those judge on, and it is tried again: at those interfaces alone.
    pub(super) async fn take_over(&mut self) {
        self.took_over = true;
        // The uplinks' turn comes with the next step. Until then nothing is known of them.
        self.uplinks_replaced = false;
        self.timers.tend.bring_forward(Instant::now());
        let wanted = self.unreplaced.take();
        let (mut left, mut interfaces) = (BTreeSet::new(), Vec::new());
        for (attachment, binding) in &self.bindings {
            for gate in binding.interfaces() {
                if wanted.as_ref().is_some_and(|wanted| !wanted.contains(&gate.host_index)) {
                    continue;
                }
                if self.adopting.get(attachment).is_some_and(|new| new.contains(&gate.host_index)) {
                    // It is bound at the end of this step, and gets its gate then.
                    left.insert(gate.host_index);
                } else {
                    interfaces.push(interface(gate));
                }
            }
        }
        for interface in interfaces {
            // An ADD that is under way has what drops everything there, until its own turn. What is not there is mended with the
            // next check.
            let replaced = match self.parts.gates.check(&interface).await {
                Ok(differences) if differences.iter().any(|one| one.older) => self.parts.gates.attach(&interface).await,
                Ok(differences) if differences.is_empty() => Ok(()),
                Ok(_) => continue,
                Err(error) => Err(error),
            };
            match replaced {
                Ok(()) => self.seen_whole(interface.index),
                Err(AttachError::Gone { .. }) => {}
                Err(error) => {
                    left.insert(interface.index);
                    tracing::error!(interface = %interface.name, error = %ErrorChain(&error), "a gate of before stays for now");
                    self.parts.metrics.error("repair");
                }
            }
        }
        if left.is_empty() {
            self.before = Before::Replaced;
        }
        self.unreplaced = Some(left);
    }

    async fn repair_one(&mut self, binding: &Binding, interface: &Interface) {
        let pod = binding.key();
        let differences = match self.parts.gates.check(interface).await {
            Ok(differences) => differences,
            // The link watch says so too.
            Err(AttachError::Gone { .. }) => return,
            Err(error) => {
                tracing::error!(pod = %pod, error = %ErrorChain(&error), "a gate could not be looked at");
                self.parts.metrics.error("check");
                return;
            }
        };
        if differences.is_empty() {
            self.seen_whole(interface.index);
            return;
        }
        let is_gate = differences.iter().all(|one| one.older);
        if !self.took_over && (is_gate || self.knowledge != Knowledge::Nothing) {
            return;
        }
        let was_whole = self.whole.contains(&interface.index);
        let was_refused = self.refused.contains(&interface.index);
        let attached = self.parts.gates.attach(interface).await;
        if let Err(error) = &attached {
            tracing::error!(pod = %pod, error = %ErrorChain(error), "a gate could not be mended; trying on");
            self.parts.metrics.error("repair");
        } else {
            self.seen_whole(interface.index);
        }
        if was_refused {
            if attached.is_ok() {
                tracing::info!(pod = %pod, interface = %interface.name, "a pod that was there before has a gate now");
                self.tend_soon();
            }
            return;
        }
        let taken: Vec<&str> = differences.iter().filter(|one| !one.older).map(|one| &*one.what).collect();
        if taken.is_empty() {
            if attached.is_ok() {
                tracing::debug!(pod = %pod, interface = %interface.name, "its gate is that of this process now");
            }
            return;
        }
        if !was_whole && attached.is_err() {
            // It may never have been there.
            self.refused.insert(interface.index);
            return;
        }
        tracing::error!(pod = %pod, interface = %interface.name, missing = ?taken, "a gate was not whole");
        let then = match attached {
            Ok(()) => {
                self.parts.metrics.repaired();
                "it is back"
            }
            Err(_) => "it could not be put back yet",
        };
        if !was_whole {
            return;
        }
        let message = format!(
            "the pod's policy was not enforced at {} for a moment, because somebody took its gate away ({}); {then}. Look \
             for what changes filters or qdiscs of pods' interfaces",
            interface.name,
            taken.join(", "),
        );
        let uid = self.engine.cluster().pods.get(&pod).map(|pod| pod.uid.clone());
        let about = Some(ObjectId::Pod(pod));
        let notice = Notice { about, uid, weight: Weight::Warning, reason: "PolicyGateRemoved", message };
        self.parts.outbox.put(Letter::Notice(notice));
    }

    /// The gate at an interface is whole: what it lacks from now on was taken away.
    pub(super) fn seen_whole(&mut self, index: u32) {
        self.refused.remove(&index);
        self.whole.insert(index);
    }

    /// Makes gates outlast whoever takes filters away, one after the other.
    async fn promote(&mut self) {
        match self.parts.gates.promote().await {
            None | Some(Err(AttachError::Gone { .. })) => {}
            Some(Ok(interface)) => {
                tracing::debug!(interface = %interface, "its gate stands by links");
                self.parts.metrics.promoted();
            }
            Some(Err(error)) => {
                tracing::warn!(error = %ErrorChain(&error), "a gate stands by filters alone");
                self.parts.metrics.error("promote");
            }
        }
    }

    /// Tries what failed again.
    async fn try_again(&mut self) {
        for index in std::mem::take(&mut self.unbound) {
            self.unbind(index);
        }
        self.bind_soon();
        if self.knowledge == Knowledge::Nothing {
            return;
        }
        if self.parts.gates.is_behind() && self.parts.gates.retry(self.engine.image()) {
            tracing::info!("everything is in the kernel's maps again");
        }
        if self.took_over && self.before == Before::Judging {
            self.take_over().await;
        }
        if self.knowledge == Knowledge::All && self.unswept && !self.dirty {
            self.sweep();
        }
        self.leave_other_layouts();
    }

    /// Something was taken from the hooks of an interface.
    pub(super) fn hooks_changed(&mut self, index: u32) {
        let soon = |after| Instant::now() + after;
        if self.bindings.values().any(|binding| binding.interfaces().iter().any(|gate| gate.host_index == index)) {
            self.suspects.insert(index);
            self.timers.mend.bring_forward(soon(MEND_AFTER));
        } else if !self.ended.contains(&index) {
            // It may be an uplink.
            self.timers.tend.bring_forward(soon(TEND_AFTER));
        }
    }

    /// Looks after the uplinks.
    pub(super) async fn tend(&mut self) {
        self.has_new_vlan = false;
        // With gates of before, from a time when the node was ours, the uplinks are part of what they enforce.
        if self.aws_node && self.bindings.is_empty() {
            self.uplinks_replaced = true;
            return;
        }
        let tended = self.parts.gates.tend(self.took_over).await;
        for _ in 0..tended.lost {
            self.parts.metrics.repaired();
        }
        self.uplinks_replaced = tended.replaced;
        self.leave_other_layouts();
    }

    /// Interfaces or addresses of the host have changed. `of_pod`: a pod's VLAN has come.
    pub(super) fn network_changed(&mut self, of_pod: bool) {
        self.has_new_vlan |= of_pod;
        self.timers.tend.bring_forward(Instant::now() + TEND_AFTER);
    }

    /// Uplinks, and what other agents have left at pods' interfaces, are looked after by the next step.
    pub(super) fn tend_soon(&mut self) {
        self.timers.tend.bring_forward(Instant::now());
    }

    /// Pods that were there before are looked for by the next step.
    pub(super) fn adopt_soon(&mut self) {
        self.timers.adopt.bring_forward(Instant::now());
    }

    /// An interface is gone: what stood there has nothing to guard.
    pub(super) fn link_gone(&mut self, index: u32) {
        self.links.remove(&index);
        self.links_gone(|gate, _| gate.host_index == index);
        if self.ended.contains(&index) {
            self.forget(index);
        }
    }

    /// All interfaces are known: those of ours that are not among them are gone.
    pub(super) fn links_are(&mut self, links: BTreeMap<u32, String>) {
        self.links = links;
        self.links_told = true;
        self.has_new_veths = true;
        self.links_gone(|gate, links| links.get(&gate.host_index).is_none_or(|link| link != gate.host.as_str()));
        let ended: Vec<u32> = self.ended.iter().copied().filter(|index| !self.links.contains_key(index)).collect();
        for index in ended {
            self.forget(index);
        }
        self.adopt_soon();
    }

    /// Keeps nothing of an interface that is gone.
    fn forget(&mut self, index: u32) {
        self.unbound.remove(&index);
        self.ended.remove(&index);
        self.refused.remove(&index);
        self.whole.remove(&index);
        self.unbindable.remove(&index);
        if let Err(error) = self.parts.gates.forget(index) {
            tracing::error!(index, error = %ErrorChain(&error), "an interface could not be forgotten");
            self.parts.metrics.error("forget");
        }
    }

    /// Releases the endpoints of which no interface is left, beside those that are gone now.
    fn links_gone(&mut self, is_gone: impl Fn(&GateInterface, &BTreeMap<u32, String>) -> bool) {
        let mut dead: Vec<(Attachment, Vec<u32>, bool)> = Vec::new();
        for (attachment, binding) in &self.bindings {
            let (gone, left): (Vec<_>, Vec<_>) =
                binding.interfaces().iter().partition(|gate| is_gone(gate, &self.links));
            if !gone.is_empty() {
                let gone = gone.iter().map(|gate| gate.host_index).collect();
                let all = !left.iter().any(|gate| self.links.contains_key(&gate.host_index));
                dead.push((attachment.clone(), gone, all));
            }
        }
        for (attachment, indexes, all) in dead {
            tracing::info!(attachment = %attachment, "interfaces of an endpoint are gone");
            if all {
                self.release(&attachment);
            }
            for index in indexes {
                self.forget(index);
            }
        }
    }
}
