//! What is done every so often, and what becomes of interfaces that go.

use std::collections::BTreeMap;
use std::time::Duration;

use sluice_contract::id::Attachment;
use sluice_daemon::log::ErrorChain;
use sluice_policy_core::compile::image::DecisionId;
use tokio::time::Instant;

use super::timer::Timer;
use super::{Daemon, Knowledge};
use crate::cluster::Cluster;
use crate::daemon::pods::interface;
use crate::datapath::{AttachError, Datapath, Seen};
use crate::registry::Binding;

/// How often tombstones are looked for.
const TOMBSTONES_EVERY: Duration = Duration::from_secs(5);

/// How often the filters of all gates are looked at.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// How often writes that failed are tried again.
const RETRY_EVERY: Duration = Duration::from_secs(5);

/// How often flows that ended are forgotten.
const EXPIRE_EVERY: Duration = Duration::from_secs(5);

/// How often what the gates saw is read.
const SEEN_EVERY: Duration = Duration::from_millis(500);

/// How often the journal's time is moved on while the source is alive.
const TOUCH_EVERY: Duration = Duration::from_secs(15);

/// How often pods are looked for that were there before.
const ADOPT_EVERY: Duration = Duration::from_secs(10);

/// How often uplinks are looked after.
const TEND_EVERY: Duration = Duration::from_secs(10);

/// After a change of the host's interfaces, how long further ones are waited for.
const TEND_AFTER: Duration = Duration::from_millis(100);

/// Times that the events of the gates are read in one go.
const SEEN_ROUNDS: usize = 16;

#[derive(Debug)]
pub(super) struct Timers {
    tombstones: Timer,
    check: Timer,
    retry: Timer,
    expire: Timer,
    seen: Timer,
    touch: Timer,
    tend: Timer,
    adopt: Timer,
}

impl Timers {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            tombstones: Timer::new(now, TOMBSTONES_EVERY),
            check: Timer::new(now, CHECK_EVERY),
            retry: Timer::new(now, RETRY_EVERY),
            expire: Timer::new(now, EXPIRE_EVERY),
            seen: Timer::new(now, SEEN_EVERY),
            touch: Timer::new(now, TOUCH_EVERY),
            tend: Timer::new(now, TEND_EVERY),
            adopt: Timer::new(now, ADOPT_EVERY),
        }
    }

    /// When the next is due.
    pub(super) fn next(&self) -> Instant {
        let all = [&self.check, &self.retry, &self.expire, &self.seen, &self.touch, &self.tend, &self.adopt];
        all.iter().map(|timer| timer.next()).fold(self.tombstones.next(), Instant::min)
    }
}

impl<C: Cluster, D: Datapath> Daemon<C, D> {
    pub(super) async fn due_jobs(&mut self) {
        let now = Instant::now();
        if self.timers.tombstones.is_due(now) {
            self.drain_tombstones();
        }
        if self.timers.tend.is_due(now) {
            self.parts.gates.tend().await;
        }
        // What was told since the last commit has not made gates yet.
        if !self.dirty && self.timers.adopt.is_due(now) {
            self.find_ungated();
        }
        if self.timers.check.is_due(now) {
            self.repair().await;
        }
        if self.timers.retry.is_due(now) {
            self.try_again();
        }
        if self.timers.expire.is_due(now) {
            self.parts.gates.expire();
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

    /// Puts filters back that somebody has taken away.
    async fn repair(&mut self) {
        let bindings: Vec<Binding> = self.bindings.values().cloned().collect();
        for binding in bindings {
            for gate in binding.interfaces() {
                let interface = interface(gate);
                let missing = match self.parts.gates.check(&interface).await {
                    Ok(missing) => missing,
                    // The link watch says so too.
                    Err(AttachError::Gone { .. }) => continue,
                    Err(error) => {
                        tracing::error!(pod = %binding.key(), error = %ErrorChain(&error), "a gate could not be looked at");
                        self.parts.metrics.error("check");
                        continue;
                    }
                };
                if missing.is_empty() {
                    continue;
                }
                tracing::error!(pod = %binding.key(), interface = %gate.host, missing = ?missing, "a gate was not whole");
                match self.parts.gates.attach(&interface).await {
                    Ok(()) => self.parts.metrics.repaired(),
                    Err(error) => {
                        tracing::error!(pod = %binding.key(), error = %ErrorChain(&error), "a gate could not be mended");
                        self.parts.metrics.error("repair");
                    }
                }
            }
        }
    }

    /// Tries what failed again.
    fn try_again(&mut self) {
        for index in std::mem::take(&mut self.unbound) {
            self.unbind(index);
        }
        if self.knowledge == Knowledge::Nothing {
            return;
        }
        if self.parts.gates.is_behind() && self.parts.gates.retry(self.engine.image()) {
            tracing::info!("everything is in the kernel's maps again");
        }
        if self.knowledge == Knowledge::All && self.unswept && !self.dirty {
            self.sweep();
        }
    }

    /// Logs drops with names and rules.
    fn read_seen(&mut self) {
        for _ in 0..SEEN_ROUNDS {
            let seen = self.parts.gates.seen();
            if seen.is_empty() {
                return;
            }
            if !tracing::enabled!(tracing::Level::DEBUG) {
                continue;
            }
            for seen in seen {
                self.log_seen(&seen);
            }
        }
    }

    fn log_seen(&self, seen: &Seen) {
        let has = |binding: &&Binding| binding.interfaces().iter().any(|gate| gate.host_index == seen.index);
        let pod = self.bindings.values().find(has).map(|binding| binding.key().to_string());
        let judgement = self.engine.image().decisions.get(&DecisionId(seen.decision));
        tracing::debug!(
            pod = pod.as_deref().unwrap_or("?"),
            flow = seen.flow,
            verdict = seen.verdict,
            cause = seen.cause,
            rule = judgement.map(|judgement| judgement.reason.to_string()).as_deref().unwrap_or(""),
            "a packet was judged"
        );
    }

    /// Interfaces or addresses of the host have changed.
    pub(super) fn network_changed(&mut self) {
        self.timers.tend.bring_forward(Instant::now() + TEND_AFTER);
    }

    /// Pods that were there before are looked for by the next step.
    pub(super) fn adopt_soon(&mut self) {
        self.timers.adopt.bring_forward(Instant::now());
    }

    /// An interface is gone: what stood there has nothing to guard.
    pub(super) fn link_gone(&mut self, index: u32) {
        self.links.remove(&index);
        self.ended.remove(&index);
        self.links_gone(|gate, _| gate == index);
    }

    /// All interfaces are known: those of ours that are not among them are gone.
    pub(super) fn links_are(&mut self, links: BTreeMap<u32, String>) {
        self.links_gone(|index, name| links.get(&index).is_none_or(|link| link != name));
        self.ended.retain(|index| links.contains_key(index));
        self.links = links;
        self.adopt_soon();
    }

    fn links_gone(&mut self, is_gone: impl Fn(u32, &str) -> bool) {
        let mut dead: Vec<(Attachment, Vec<u32>, bool)> = Vec::new();
        for (attachment, binding) in &self.bindings {
            let (gone, left): (Vec<_>, Vec<_>) =
                binding.interfaces().iter().partition(|gate| is_gone(gate.host_index, gate.host.as_str()));
            if !gone.is_empty() {
                let gone = gone.iter().map(|gate| gate.host_index).collect();
                dead.push((attachment.clone(), gone, left.is_empty()));
            }
        }
        for (attachment, indexes, all) in dead {
            tracing::info!(attachment = %attachment, "interfaces of an endpoint are gone");
            if all {
                self.release(&attachment);
            }
            for index in indexes {
                self.unbound.remove(&index);
                if let Err(error) = self.parts.gates.forget(index) {
                    tracing::error!(index, error = %ErrorChain(&error), "an interface could not be forgotten");
                    self.parts.metrics.error("forget");
                }
            }
        }
    }
}
