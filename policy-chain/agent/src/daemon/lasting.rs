//! What people are told of once it has lasted: pods of the node without a gate, and rules for a proxy where none runs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sluice_policy_core::cluster::{ObjectId, PodKey};
use tokio::time::Instant;

use super::{Daemon, Knowledge};
use crate::cluster::{Cluster, Notice, Weight};
use crate::datapath::Datapath;
use crate::outbox::Letter;

/// What passes sooner is no news: pods are adopted one after the other, and proxies restart.
const LASTING: Duration = Duration::from_secs(60);

/// Since when.
#[derive(Debug, Default)]
pub(super) struct Lasting {
    ungated: BTreeMap<PodKey, Since>,
    no_proxy: Option<Since>,
    unreplaced: Option<Since>,
}

#[derive(Debug, Clone, Copy)]
struct Since {
    at: Instant,
    told: bool,
}

impl Since {
    const fn new(at: Instant) -> Self {
        Self { at, told: false }
    }

    /// Whether it is to be told now: once.
    fn tells(&mut self, now: Instant) -> bool {
        let tells = !self.told && now.saturating_duration_since(self.at) >= LASTING;
        self.told |= tells;
        tells
    }
}

impl<C: Cluster, D: Datapath> Daemon<C, D> {
    /// To be called every few seconds.
    pub(super) fn tell_what_lasts(&mut self) {
        if self.knowledge != Knowledge::All {
            return;
        }
        let now = Instant::now();
        let mut lasting = std::mem::take(&mut self.lasting);
        // Those of a node that is not ours are no news.
        let ungated = if self.aws_node { BTreeSet::new() } else { self.without_gate() };
        lasting.ungated.retain(|pod, _| ungated.contains(pod));
        for pod in ungated {
            if lasting.ungated.entry(pod.clone()).or_insert(Since::new(now)).tells(now) {
                let uid = self.engine.cluster().pods.get(&pod).map(|pod| pod.uid.clone());
                let message = if self.told.contains_key(&pod) {
                    "a gate of this pod cannot be put in its place: at that interface no policy is enforced, or everything \
                     is dropped; it is tried on; see the log of sluice-policyd"
                } else {
                    "no policy is enforced on this pod: it was there before sluice-policyd, and nothing on the node says \
                     which interface is its own; restart it (kubectl rollout restart), so that it gets a gate"
                };
                let about = Some(ObjectId::Pod(pod));
                self.warn(Notice { uid, ..notice(about, Weight::Warning, "PodWithoutGate", message) });
            }
        }
        let proxy = self.parts.proxies.view();
        if proxy.decisions > 0 && proxy.connected == 0 {
            if lasting.no_proxy.get_or_insert(Since::new(now)).tells(now) {
                let message = "policies have rules for HTTP, DNS or TLS names, and no sluice-proxy runs on this node: what they \
                     concern is dropped; start it (the DaemonSet sluice-proxy), and see its log";
                self.warn(notice(None, Weight::Warning, "ProxyMissing", message));
            }
        } else if lasting.no_proxy.take().is_some_and(|since| since.told) {
            self.warn(notice(None, Weight::Normal, "ProxyFound", "rules for HTTP, DNS and TLS names are served again"));
        }
        let unreplaced = self.unreplaced.as_ref().map_or(0, BTreeSet::len);
        if unreplaced > 0 {
            if lasting.unreplaced.get_or_insert(Since::new(now)).tells(now) {
                let message = format!(
                    "gates of the sluice-policyd before still judge at {unreplaced} interfaces of pods, because they cannot be \
                     replaced: after a change of the maps' layout by the policies of before; see the log of sluice-policyd"
                );
                self.warn(notice(None, Weight::Warning, "PolicyGateNotReplaced", &message));
            }
        } else if lasting.unreplaced.take().is_some_and(|since| since.told) {
            self.warn(notice(None, Weight::Normal, "PolicyGateReplaced", "all gates of the node are those of now"));
        }
        self.lasting = lasting;
    }

    fn warn(&mut self, notice: Notice) {
        self.parts.outbox.put(Letter::Notice(notice));
    }
}

fn notice(about: Option<ObjectId>, weight: Weight, reason: &'static str, message: &str) -> Notice {
    Notice { about, uid: None, weight, reason, message: message.to_owned() }
}
