//! Pods that are gone and have left their rules in the kernel: by a DEL that came while this daemon was down, after the
//! sandbox. The address is held until the rules are removed, so that nobody can be given it meanwhile.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use sluice_contract::id::Attachment;
use sluice_contract::node::nic;
use sluice_contract::rpc::{DelRequest, Refusal, RefusalCode};
use sluice_ipamd_core::garbage::{Litter, Look};

use super::jobs::Job;
use super::requests::Asking;
use super::{Daemon, LOOK_EVERY};
use crate::cloud::Cloud;
use crate::kernel::{Cleared, Kernel};

/// An address whose pod is gone.
#[derive(Debug, Clone)]
pub(super) struct Gone {
    pub(super) address: IpAddr,
    /// The addresses of its further interfaces, which are held like that one.
    pub(super) further: Vec<IpAddr>,
    /// What the pod had beside it: an IPv6 address; litter may be of several pods.
    pub(super) others: BTreeSet<IpAddr>,
    /// The tombstone that tells of it; none for litter.
    pub(super) tombstone: Option<(PathBuf, DelRequest)>,
}

impl Gone {
    /// All addresses of the pod.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        self.held().chain(self.others.iter().copied()).collect()
    }

    /// The addresses that nobody can be given meanwhile.
    fn held(&self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(self.address).chain(self.further.iter().copied())
    }
}

impl<C: Cloud, K: Kernel> Daemon<C, K> {
    /// Takes in the DELs that plugins have left behind.
    pub(super) fn drain_tombstones(&mut self) {
        if self.stopping {
            return;
        }
        for (path, request) in self.parts.tombstones.read() {
            self.drain(path, request);
        }
    }

    /// Begins to take one in. One that is being taken in, or waits for the checkpoint only, is passed over.
    pub(super) fn drain(&mut self, path: PathBuf, request: DelRequest) {
        if self.spent.contains(&path) {
            return;
        }
        self.orphans.retain(|_, owner| nic::first(&owner.attachment) != request.attachment);
        let held: Vec<IpAddr> = self.held(&request.attachment).into_iter().map(|(_, address)| address).collect();
        if held.iter().any(|address| self.clearing.contains_key(address)) {
            return;
        }
        match held.split_first() {
            Some((address, further)) => {
                let ledger = self.state.ledger();
                let others = held.iter().filter_map(|address| ledger.companion_of(*address)).map(IpAddr::V6).collect();
                let tombstone = Some((path, request));
                self.clear_pod(Gone { address: *address, further: further.to_vec(), others, tombstone });
            }
            None => {
                // What its plugin could not take away without our word is litter now.
                self.let_go(&request.attachment);
                self.drained(path, &request);
            }
        }
    }

    fn drained(&mut self, path: PathBuf, request: &DelRequest) {
        self.parts.metrics.tombstone();
        self.parts.metrics.del_begun("Tombstone");
        tracing::info!(attachment = %request.attachment, "a tombstone was drained");
        self.spent.push(path);
        self.dirty = true;
    }

    fn clear_pod(&mut self, gone: Gone) {
        self.clearing.extend(gone.held().map(|address| (address, Vec::new())));
        self.spawn(Job::ClearPod(Box::new(gone)));
    }

    /// Removes what pods that are gone have left in the kernel ([`sluice_ipamd_core::garbage`]).
    pub(super) fn clear_litter(&mut self, look: &Look) {
        if self.stopping {
            return;
        }
        let known: BTreeSet<&Attachment> = self.orphans.values().map(|owner| &owner.attachment).collect();
        let busy = |attachment: &Attachment| known.contains(attachment) || self.queue.waits(attachment);
        let litter = self.garbage.look(look, &self.state, busy, self.parts.clock.now());
        for one in litter {
            // It is counted when it is gone: the kernel may show by then that it is in use.
            tracing::warn!(litter = ?one, "a pod that is gone has left something: it is removed");
            match one {
                Litter::Rules { address, mut all, .. } => {
                    all.remove(&address);
                    self.clear_pod(Gone { address, further: Vec::new(), others: all, tombstone: None });
                }
                Litter::Route(address, dev) => {
                    if let Some(attachment) = look.marked.get(&dev).cloned() {
                        self.spawn(Job::ClearRoute(address, dev, attachment));
                    }
                }
                Litter::Link(dev, attachment) => self.spawn(Job::ClearLink(dev, attachment)),
            }
        }
    }

    /// Nothing of the pod is left, or an interface still carries its address.
    pub(super) fn pod_cleared(&mut self, gone: Gone, cleared: Cleared) {
        let waiting = self.no_longer_clearing(&gone);
        if let Some((path, request)) = gone.tombstone {
            let cooldown = self.cooldown_after(&request);
            // Until the next look at the kernel, which puts an address that lives into quarantine.
            let cooldown = if cleared == Cleared::InUse { cooldown.max(LOOK_EVERY * 2) } else { cooldown };
            self.release_all(&request.attachment, cooldown);
            self.drained(path, &request);
        } else if cleared == Cleared::Removed {
            self.parts.metrics.littered(Litter::RULE);
        }
        for asking in waiting {
            self.add(asking);
        }
    }

    /// The tombstone stays, and with it the attachment's hold on the address: the next pass tries again.
    pub(super) fn pod_not_cleared(&mut self, gone: &Gone) {
        for asking in self.no_longer_clearing(gone) {
            let refusal = Refusal::new(
                RefusalCode::NotReady,
                format!(
                    "the rules that an earlier pod of this attachment left for {} could not be removed",
                    gone.address
                ),
            )
            .hint("ipamd's log says why; it tries again by itself")
            .retry_after(Duration::from_secs(5));
            self.refuse_asking(asking, refusal);
        }
    }

    /// Answers the ADDs that have waited for the end of it.
    fn no_longer_clearing(&mut self, gone: &Gone) -> Vec<Asking> {
        gone.held().flat_map(|address| self.clearing.remove(&address).unwrap_or_default()).collect()
    }
}
