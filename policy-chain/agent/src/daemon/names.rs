//! Names: what the proxy saw them resolve to goes into the engine, stays for its time, and for as long as a pod uses it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sluice_contract::names::Resolved;
use sluice_contract::proxy::{NameClass, Names as Wanted, Resolution};
use sluice_daemon::log::ErrorChain;
use sluice_policy_core::cluster::{self, Event, PodKey};
use sluice_policy_core::l7::dns::{Name, NamePattern};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::stand_ins::is_stand_in;
use super::{Daemon, Knowledge};
use crate::cluster::Cluster;
use crate::datapath::Datapath;
use crate::inbox::Known;
use crate::view::{NameView, NamesView};

/// Addresses of names that a pod may have made known at once: so that one pod that asks for everything takes no room from
/// others ([`cluster::MAX_ADDRESSES_OF_NAMES`]).
pub(super) const OF_POD: usize = 8_192;

/// Answers to the proxy that may wait for a commit.
const WAITING: usize = 4_096;

/// How long an address stays known that is past its time and that a pod uses; then it is looked at again.
const IN_USE: Duration = Duration::from_secs(60);

/// Classes that the proxy is told of: what it may write without policyd.
const CLASSES: usize = 4_096;

/// How often the proxy is told of classes.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Names and their addresses that the introspection shows.
const SHOWN: usize = 10_000;

/// What is known of names beside what the engine knows.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Who made an address of a name known.
    by: BTreeMap<(Name, IpAddr), PodKey>,
    of_pod: BTreeMap<PodKey, usize>,
    /// Resolutions since the last commit, and who wants to know.
    new: Vec<Resolved>,
    waiting: Vec<(Known, oneshot::Sender<Known>)>,
    patterns: Vec<NamePattern>,
    /// When the proxy was last told what to know of names; none: it is to be told.
    told: Option<Instant>,
}

impl Names {
    fn take(&mut self, name: &Name, addresses: &[IpAddr], pod: &PodKey) {
        for address in addresses {
            if self.by.insert((name.clone(), *address), pod.clone()).is_none() {
                *self.of_pod.entry(pod.clone()).or_default() += 1;
            }
        }
    }

    /// Forgets who made known what is known no more.
    fn forget(&mut self, is_known: impl Fn(&Name, &IpAddr) -> bool) {
        let of_pod = &mut self.of_pod;
        self.by.retain(|(name, address), pod| {
            let known = is_known(name, address);
            if !known && let Some(count) = of_pod.get_mut(pod) {
                *count = count.saturating_sub(1);
            }
            known
        });
        of_pod.retain(|_, count| *count > 0);
    }
}

/// Seconds since 1970.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl<C: Cluster, D: Datapath> Daemon<C, D> {
    /// Takes in what was known of names before the restart.
    pub(super) fn remember_names(&mut self, known: Vec<Resolved>) {
        self.engine.apply(Event::Time(seconds(self.parts.clock.now())));
        for resolved in known {
            let Ok(name) = Name::new(&resolved.name) else { continue };
            let until = Some(resolved.until);
            if let Some((namespace, pod)) = resolved.pod {
                let pod = PodKey { namespace: namespace.into(), name: pod.into() };
                self.names.take(&name, &resolved.addresses, &pod);
            }
            self.engine.apply(Event::Resolved { name, addresses: resolved.addresses, until });
            self.dirty = true;
        }
        let state = self.engine.cluster();
        self.names.forget(|name, address| is_known(state, name, address));
    }

    /// The proxy has seen names resolve. It is told what became of that with the next commit.
    pub(super) fn resolved(&mut self, resolutions: Vec<Resolution>, done: oneshot::Sender<Known>) {
        if self.names.waiting.len() >= WAITING {
            self.parts.metrics.names_dropped("waiting");
            return;
        }
        let now = seconds(self.parts.clock.now());
        let mut known = Known::default();
        for resolution in resolutions {
            let id = resolution.id;
            match self.learn(resolution, now) {
                Ok(()) => known.kept.push(id),
                Err(why) => {
                    self.parts.metrics.names_dropped(why);
                    known.dropped.push(id);
                }
            }
        }
        self.names.waiting.push((known, done));
    }

    fn learn(&mut self, resolution: Resolution, now: u64) -> Result<(), &'static str> {
        let Resolution { namespace, pod, name, mut addresses, ttl, .. } = resolution;
        let name = Name::new(&name).map_err(|_invalid| "invalid")?;
        if !self.names.patterns.iter().any(|pattern| pattern.matches(&name)) {
            return Err("unmeant");
        }
        for address in &mut addresses {
            *address = address.to_canonical();
        }
        addresses.retain(|address| !is_stand_in(address));
        addresses.truncate(cluster::MAX_ADDRESSES_OF_A_NAME);
        let pod = PodKey { namespace: namespace.into(), name: pod.into() };
        let state = self.engine.cluster();
        let new: Vec<IpAddr> = addresses.iter().filter(|address| !is_known(state, &name, address)).copied().collect();
        let held = self.names.of_pod.get(&pod).copied().unwrap_or_default();
        if held + new.len() > OF_POD {
            return Err("pod");
        }
        let lasts = u64::from(ttl).max(self.parts.config.name_min_ttl.as_secs());
        // Rounded up, so that it is not over before its time.
        let until = now.saturating_add(lasts).saturating_add(1);
        self.names.take(&name, &new, &pod);
        self.names.new.push(Resolved {
            name: name.to_string(),
            addresses: addresses.clone(),
            until,
            pod: Some((pod.namespace.to_string(), pod.name.to_string())),
        });
        self.parts.metrics.name_learned();
        self.engine.apply(Event::Resolved { name, addresses, until: Some(until) });
        self.dirty |= !new.is_empty();
        Ok(())
    }

    /// Writes what is new to disk, before the kernel has it.
    pub(super) fn keep_names(&mut self) {
        let new = std::mem::take(&mut self.names.new);
        let written = if self.parts.names.wants_rewriting() {
            let all = entries(self.engine.cluster(), &self.names.by);
            self.parts.names.rewrite(all).and_then(|()| self.parts.names.forget_taken())
        } else if new.is_empty() {
            Ok(())
        } else {
            self.parts.names.append(new.into_iter())
        };
        if let Err(error) = written {
            tracing::error!(error = %ErrorChain(&error), "names could not be written to disk");
            self.parts.metrics.error("names");
        }
    }

    /// What was resolved before is in force: the proxy is told.
    pub(super) fn answer_names(&mut self) {
        if self.knowledge == Knowledge::Nothing || self.dirty {
            return;
        }
        self.tell_names();
        if !self.names.new.is_empty() {
            self.keep_names();
        }
        let behind = self.parts.gates.is_behind();
        for (mut known, done) in std::mem::take(&mut self.names.waiting) {
            if behind {
                // A map may lack them: the proxy tells them again.
                known.dropped.append(&mut known.kept);
            }
            // A proxy that has gone wants to know nothing.
            let _told = done.send(known);
        }
    }

    /// Which names the rules of now mean.
    pub(super) fn names_committed(&mut self) {
        let patterns = self.engine.name_patterns();
        if patterns != self.names.patterns {
            self.names.patterns = patterns;
            self.names.told = None;
            self.stand_ins.patterns_changed();
        }
    }

    /// Tells the proxy what it has to know of names: patterns at once, classes a moment later.
    fn tell_names(&mut self) {
        let now = Instant::now();
        if self.names.told.is_some_and(|told| now < told + TELL_EVERY) {
            return;
        }
        self.names.told = Some(now);
        let texts = |patterns: &[NamePattern]| patterns.iter().map(|one| one.normal().to_owned()).collect();
        let classes = self.engine.name_classes().into_iter().take(CLASSES).map(|class| NameClass {
            base: class.base.0,
            patterns: texts(&class.patterns),
            identity: class.identity.0,
        });
        let wanted = Wanted {
            patterns: texts(&self.names.patterns),
            least: u32::try_from(self.parts.config.name_min_ttl.as_secs()).unwrap_or(u32::MAX),
            classes: classes.collect(),
        };
        self.parts.proxies.names(wanted);
    }

    /// Names past their time: those that pods use stay.
    pub(super) fn end_names(&mut self) {
        self.take_names_of_proxy();
        self.renew_stand_ins();
        let now = seconds(self.parts.clock.now());
        let state = self.engine.cluster();
        let ending: Vec<(Name, IpAddr)> =
            state.names_ending(now).map(|(name, address)| (name.clone(), address)).collect();
        if !ending.is_empty() {
            let addresses: BTreeSet<IpAddr> = ending.iter().map(|(_, address)| *address).collect();
            let used = self.parts.gates.in_use(&addresses);
            let until = Some(now + IN_USE.as_secs());
            let mut kept = 0;
            for (name, address) in ending.into_iter().filter(|(_, address)| used.contains(address)) {
                kept += 1;
                self.engine.apply(Event::Resolved { name, addresses: vec![address], until });
            }
            self.parts.metrics.names_in_use(kept);
            self.dirty = true;
        }
        // Also where nothing ends: what comes later must not be of before.
        self.engine.apply(Event::Time(now));
        let known = self.names_known();
        let state = self.engine.cluster();
        if self.names.by.len() > known {
            self.names.forget(|name, address| is_known(state, name, address));
        }
    }

    /// What the proxy wrote to the maps while policyd was away. Whether there was any.
    pub(super) fn take_names_of_proxy(&mut self) -> bool {
        let taken = self.parts.names.take_alone();
        if taken.is_empty() {
            return false;
        }
        tracing::info!(names = taken.len(), "taking over names that the proxy wrote alone");
        self.names.new.extend(taken.iter().cloned());
        self.remember_names(taken);
        self.keep_names();
        if let Err(error) = self.parts.names.forget_taken() {
            tracing::error!(error = %ErrorChain(&error), "the proxy's names could not be put away");
            self.parts.metrics.error("names");
        }
        true
    }

    /// For the introspection.
    pub(super) fn names_view(&self) -> NamesView {
        let state = self.engine.cluster();
        let names = entries(state, &self.names.by).take(SHOWN).map(|one| NameView {
            name: one.name,
            addresses: one.addresses,
            until: one.until,
            pod: one.pod.map(|(namespace, pod)| format!("{namespace}/{pod}")),
        });
        NamesView {
            patterns: self.names.patterns.iter().map(ToString::to_string).collect(),
            addresses: self.names_known(),
            names: names.collect(),
        }
    }

    /// How many addresses of names are known, without those that stand for others.
    pub(super) fn names_known(&self) -> usize {
        self.engine.cluster().names_known().saturating_sub(self.stand_ins.count())
    }
}

fn is_known(state: &cluster::Cluster, name: &Name, address: &IpAddr) -> bool {
    state.names.get(name).is_some_and(|known| known.contains_key(address))
}

/// All that is known, a name, an end and a pod at a time.
fn entries<'a>(
    state: &'a cluster::Cluster,
    by: &'a BTreeMap<(Name, IpAddr), PodKey>,
) -> impl Iterator<Item = Resolved> + 'a {
    state.names.iter().flat_map(move |(name, addresses)| {
        let mut grouped: BTreeMap<(u64, Option<&PodKey>), Vec<IpAddr>> = BTreeMap::new();
        for (address, until) in addresses.iter().filter(|(address, _)| !is_stand_in(address)) {
            // What never ends is of no proxy.
            let Some(until) = until else { continue };
            let pod = by.get(&(name.clone(), *address));
            grouped.entry((*until, pod)).or_default().push(*address);
        }
        grouped.into_iter().map(move |((until, pod), addresses)| Resolved {
            name: name.to_string(),
            addresses,
            until,
            pod: pod.map(|pod| (pod.namespace.to_string(), pod.name.to_string())),
        })
    })
}
